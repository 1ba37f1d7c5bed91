// SPDX-License-Identifier: MPL-2.0
//! From a path to a store that may be used: whose file it is, in which state, with which key.
//!
//! The file itself is opened by SQLite alone: a process that closes any other handle of it would lose SQLite's locks
//! (POSIX locks, `fcntl(2)`).

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::error::{BUSY_S, Problem};
use super::schema::{self, Step};
use super::seal::{Key, Seal};

/// Files up to here are looked through when they are opened: some milliseconds.
const QUICK_CHECK_BYTES_MAX: u64 = 4 << 20;
/// No SQLite file is smaller, but for an empty one.
const PAGE_BYTES_MIN: u64 = 512;
const IDENTITY_BYTES: usize = 16;
const KEY_CHECK: &[u8] = b"scribe-voices";

/// How a store is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Make it if there is none; with `key` an encrypted one.
    pub create: bool,
    /// Change nothing: works on a file, folder or disk that may not be written to.
    pub read_only: bool,
    /// Take no voice of somebody without consent.
    pub require_consent: bool,
    /// What it is encrypted with, see [`Key::find`].
    pub key: Option<Key>,
}

/// A file that is a store, of today's version, and the key fits.
pub(super) struct Opened {
    pub(super) conn: Connection,
    pub(super) seal: Seal,
    pub(super) identity: Vec<u8>,
    pub(super) key_check: Option<Vec<u8>>,
}

pub(super) fn open(path: &Path, options: &OpenOptions, steps: &[Step]) -> Result<Opened, Problem> {
    let (path, bytes) = place(path, options)?;
    let mut conn = connect(&path, options)?;
    identify(&mut conn, &path, options, steps)?;
    if bytes <= QUICK_CHECK_BYTES_MAX {
        quick_check(&conn)?;
    }
    let (identity, key_check) = lock_of(&conn)?;
    let seal = unlock(&identity, key_check.as_deref(), options.key.as_ref())?;
    Ok(Opened {
        conn,
        seal,
        identity,
        key_check,
    })
}

/// The file behind all links, made if it may be, and its size.
fn place(path: &Path, options: &OpenOptions) -> Result<(PathBuf, u64), Problem> {
    let failed = |doing| move |source| Problem::Io { doing, source };
    let may_create = options.create && !options.read_only;
    match fs::metadata(path) {
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            if let Ok(target) = fs::read_link(path) {
                return Err(Problem::DanglingLink { target });
            }
            if !may_create {
                return Err(Problem::Missing);
            }
            make(path).map_err(failed("make the store"))?;
        }
        Err(err) => return Err(failed("look at the store")(err)),
    }
    let path = fs::canonicalize(path).map_err(failed("find the store"))?;
    let metadata = fs::metadata(&path).map_err(failed("look at the store"))?;
    match metadata.len() {
        _ if !metadata.is_file() => Err(Problem::Foreign("it is no file")),
        0 if !may_create => Err(Problem::Foreign("it is empty")),
        // SQLite would take it for an empty one.
        1..PAGE_BYTES_MIN => Err(Problem::Foreign("it is no SQLite file")),
        bytes => Ok((path, bytes)),
    }
}

/// An empty file for its owner alone, without ever holding it open. Two may do so at once.
fn make(path: &Path) -> io::Result<()> {
    match mknodat(CWD, path, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) => sync_folder(path),
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Makes the name of a new file last.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// A connection that can read. `path` is absolute: SQLite takes what begins with "file:" for an address.
fn connect(path: &Path, options: &OpenOptions) -> Result<Connection, Problem> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(|err| match err.into() {
        // Here nothing but the file itself is opened.
        Problem::NoCompanions => Problem::Unreadable,
        other => other,
    })?;
    // The first look at the file: whether it can be read shows here.
    let conn = match set_up(&conn).and_then(|()| schema::application_id(&conn)) {
        // Without its companions there is nothing in them: the file alone is all.
        Err(Problem::NoCompanions | Problem::ReadOnly) if options.read_only && is_settled(path) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
                | OpenFlags::SQLITE_OPEN_URI
                | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(immutable(path), flags)?;
            set_up(&conn)?;
            conn
        }
        Err(problem) => return Err(problem),
        Ok(_) => conn,
    };
    if options.read_only {
        conn.pragma_update(None, "query_only", true)?;
    } else if conn.is_readonly("main")? {
        return Err(Problem::ReadOnly);
    }
    Ok(conn)
}

fn set_up(conn: &Connection) -> Result<(), Problem> {
    conn.busy_timeout(Duration::from_secs(BUSY_S))?;
    // The file may come from anywhere: nothing that is defined in it is run.
    for (config, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    ] {
        conn.set_db_config(config, on)?;
    }
    conn.execute_batch(
        "PRAGMA foreign_keys = ON;
         PRAGMA synchronous = FULL;
         PRAGMA cell_size_check = ON;
         -- What is deleted is overwritten, and no copy goes to a folder for temporary files.
         PRAGMA secure_delete = ON;
         PRAGMA temp_store = MEMORY;",
    )?;
    Ok(())
}

fn is_settled(path: &Path) -> bool {
    match fs::metadata(schema::with_suffix(path, "-wal")) {
        Ok(wal) => wal.len() == 0,
        Err(err) => err.kind() == io::ErrorKind::NotFound,
    }
}

/// The address of a file that nobody changes while it is read.
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            // Writing to a string cannot fail.
            byte => drop(write!(uri, "%{byte:02x}")),
        }
    }
    uri + "?immutable=1"
}

/// Whose file this is; an empty one becomes ours, an old one of ours becomes new.
fn identify(
    conn: &mut Connection,
    path: &Path,
    options: &OpenOptions,
    steps: &[Step],
) -> Result<(), Problem> {
    let is_empty = |conn: &Connection| -> Result<bool, Problem> {
        let marks = schema::application_id(conn)? | schema::version(conn)?;
        Ok(marks == 0 && schema::definitions(conn)? == 0)
    };
    if is_empty(conn)? {
        if !options.create || options.read_only {
            return Err(Problem::Foreign("it is empty"));
        }
        write_ahead(conn)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been quicker.
        if is_empty(&tx)? {
            let mut identity = [0; IDENTITY_BYTES];
            getrandom::fill(&mut identity)?;
            let seal = Seal::new(options.key.as_ref());
            let key_check = key_check(&seal, &identity)?;
            schema::create(&tx, &identity, key_check.as_deref())?;
            tx.commit()?;
        }
    }
    if schema::application_id(conn)? != schema::APPLICATION_ID {
        return Err(Problem::Foreign("it is the database of another program"));
    }
    match schema::version(conn)? {
        schema::VERSION => {}
        version if version > schema::VERSION => {
            return Err(Problem::Newer {
                version,
                known: schema::VERSION,
            });
        }
        version if options.read_only => return Err(Problem::NeedsMigration { version }),
        version => schema::migrate(conn, path, version, steps)?,
    }
    if !options.read_only {
        write_ahead(conn)?;
    }
    Ok(())
}

/// Readers and one writer at once. Where a file system cannot do that, SQLite stays with its older way, as safe and
/// slower.
fn write_ahead(conn: &Connection) -> Result<(), Problem> {
    let begun = Instant::now();
    loop {
        // SQLite does not wait by itself here.
        match conn
            .pragma_update(None, "journal_mode", "wal")
            .map_err(Problem::from)
        {
            Err(Problem::Busy { .. }) if begun.elapsed() < Duration::from_secs(BUSY_S) => {
                thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

/// Damage that would be found by reading every page.
pub(super) fn quick_check(conn: &Connection) -> Result<(), Problem> {
    let found: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(Problem::Damaged(found.replace('\n', " "))),
    }
}

/// The store's random number, and what its key opens.
pub(super) fn lock_of(conn: &Connection) -> Result<(Vec<u8>, Option<Vec<u8>>), Problem> {
    let mut query = conn.prepare_cached("SELECT identity, key_check FROM store")?;
    Ok(query.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// What tells the right key: None for a store that is not encrypted.
pub(super) fn key_check(seal: &Seal, identity: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    seal.is_sealed()
        .then(|| seal.close(&place_of_check(identity), KEY_CHECK))
        .transpose()
}

fn unlock(identity: &[u8], key_check: Option<&[u8]>, key: Option<&Key>) -> Result<Seal, Problem> {
    let seal = Seal::new(key);
    match (key_check, key) {
        (None, None) => Ok(seal),
        (None, Some(_)) => Err(Problem::NotSealed),
        (Some(_), None) => Err(Problem::NeedsKey),
        (Some(check), Some(_)) => match seal.open(&place_of_check(identity), check) {
            Some(text) if **text == *KEY_CHECK => Ok(seal),
            _ => Err(Problem::WrongKey),
        },
    }
}

fn place_of_check(identity: &[u8]) -> Vec<u8> {
    [b"scribe-voices/1 store", identity].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_the_file_whatever_its_name() {
        assert_eq!(
            immutable(Path::new("/a b/50%?#ü.db")),
            "file:/a%20b/50%25%3f%23%c3%bc.db?immutable=1"
        );
    }
}
