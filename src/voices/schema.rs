// SPDX-License-Identifier: MPL-2.0
//! The tables, their version, and the way from older ones.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::error::Problem;
use super::open::sync_folder;

/// Of the tables below.
pub const VERSION: i64 = 1;
/// What `file` and SQLite know our files by: "scrv".
pub(super) const APPLICATION_ID: i64 = 0x7363_7276;

/// Names, consents and vectors are in `content`, which [`Seal`](super::seal::Seal) has closed. The rest lies open even
/// in an encrypted store: ids, numbers, times, the model.
const TABLES: &str = "
CREATE TABLE store (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    identity    BLOB NOT NULL,
    -- Known text, sealed: tells whether a key is the right one. NULL in a store that is not encrypted.
    key_check   BLOB,
    next_number INTEGER NOT NULL,
    -- Deletions so far, and how many of them have left no byte behind.
    deletions   INTEGER NOT NULL,
    purged      INTEGER NOT NULL
) STRICT;
CREATE TABLE model (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    name      TEXT NOT NULL,
    version   TEXT NOT NULL,
    dimension INTEGER NOT NULL
) STRICT;
CREATE TABLE voice (
    id       INTEGER PRIMARY KEY,
    number   INTEGER NOT NULL UNIQUE,
    created  INTEGER NOT NULL,
    updated  INTEGER NOT NULL,
    expires  INTEGER,
    name_tag BLOB UNIQUE,
    content  BLOB NOT NULL
) STRICT;
CREATE TABLE take (
    id      INTEGER PRIMARY KEY,
    voice   INTEGER NOT NULL REFERENCES voice (id) ON DELETE CASCADE,
    content BLOB NOT NULL
) STRICT;
CREATE INDEX take_voice ON take (voice);
CREATE TABLE alias (
    id    INTEGER PRIMARY KEY,
    voice INTEGER NOT NULL REFERENCES voice (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX alias_voice ON alias (voice);
";

/// The way from one version to the next. Runs in a transaction, and must not end it.
pub(super) struct Step {
    pub(super) from: i64,
    pub(super) run: fn(&Connection) -> rusqlite::Result<()>,
}

/// Every version that was ever released finds its way through these. Version 1 is the first.
pub(super) const STEPS: &[Step] = &[];

/// Makes the tables in a file that has none. Part of a transaction.
pub(super) fn create(
    conn: &Connection,
    identity: &[u8],
    key_check: Option<&[u8]>,
) -> Result<(), Problem> {
    conn.execute_batch(TABLES)?;
    conn.execute(
        "INSERT INTO store (one, identity, key_check, next_number, deletions, purged) VALUES (1, ?1, ?2, 1, 0, 0)",
        rusqlite::params![identity, key_check],
    )?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", VERSION)?;
    Ok(())
}

/// Version in the file.
pub(super) fn version(conn: &Connection) -> Result<i64, Problem> {
    Ok(conn.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Whose file it is; 0 for nobody's.
pub(super) fn application_id(conn: &Connection) -> Result<i64, Problem> {
    Ok(conn.pragma_query_value(None, "application_id", |row| row.get(0))?)
}

/// Tables, indexes and whatever else is defined in the file.
pub(super) fn definitions(conn: &Connection) -> Result<i64, Problem> {
    Ok(conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?)
}

/// Brings an older store up to [`VERSION`], all steps or none, and leaves a copy of the old one beside it.
pub(super) fn migrate(
    conn: &mut Connection,
    path: &Path,
    version_then: i64,
    steps: &[Step],
) -> Result<(), Problem> {
    let has_way = (version_then..VERSION).all(|v| steps.iter().any(|step| step.from == v));
    if !has_way {
        return Err(Problem::TooOld {
            version: version_then,
            known: VERSION,
        });
    }
    back_up(conn, &backup_path(path, version_then))?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been quicker.
    for from in version(&tx)?..VERSION {
        for step in steps.iter().filter(|step| step.from == from) {
            (step.run)(&tx)?;
        }
        tx.pragma_update(None, "user_version", from + 1)?;
    }
    tx.commit()?;
    Ok(())
}

/// `voices.db.v1.bak`.
pub(super) fn backup_path(path: &Path, version: i64) -> PathBuf {
    with_suffix(path, &format!(".v{version}.bak"))
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = OsString::from(path);
    text.push(suffix);
    PathBuf::from(text)
}

/// A copy under its final name only when it is whole, for its owner alone.
fn back_up(conn: &Connection, to: &Path) -> Result<(), Problem> {
    let failed = |source| Problem::Io {
        doing: "write a backup beside it",
        source,
    };
    let part = with_suffix(to, &format!(".{}", std::process::id()));
    fs::remove_file(&part).or_else(|err| match err.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(failed(err)),
    })?;
    let written = (|| {
        // SQLite writes into an empty file, and leaves its mode as it is.
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(failed)?;
        let name = part
            .to_str()
            .ok_or_else(|| failed(io::Error::other("its path is not UTF-8: move the store")))?;
        conn.execute("VACUUM INTO ?1", [name])?;
        file.sync_all().map_err(failed)?;
        fs::rename(&part, to).map_err(failed)?;
        sync_folder(to).map_err(failed)
    })();
    if written.is_err() {
        // The part is of no use; that it stays is no further error.
        let _ = fs::remove_file(&part);
    }
    written
}
