// SPDX-License-Identifier: MPL-2.0
//! The voices store: one SQLite file, used by several processes at once.
//!
//! Each change is one transaction: killed at any moment, it is there or it is not. Who has expired is in the file until
//! [`Store::expire`] and never seen.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, TransactionBehavior};

use super::error::{Problem, StoreError};
use super::open::{self, OpenOptions, Opened};
use super::people::{
    LeftOut, Who, add_take, check_consent, check_name_is_free, find, has_expired, living, whose,
};
use super::purge::{Purge, count_deletion, purge};
use super::rows::Rows;
use super::schema::{self, Step};
use super::seal::{Key, Seal};
use super::{Consent, Grade, ModelKey, Take, Voice, VoiceId, consent, names, record};

/// How long a deletion waits for those who still read what was deleted.
const PURGE_PATIENCE: Duration = Duration::from_secs(3);
/// The same when a deletion of the past is finished: nobody has asked for it now.
const PURGE_PATIENCE_AT_OPENING: Duration = Duration::from_millis(500);

/// What enrolment has made of a voice.
#[derive(Clone, Debug, PartialEq)]
pub struct Enrolled {
    /// Lasting.
    pub id: VoiceId,
    /// Of this store.
    pub number: u32,
    /// Name, or "Speaker 7".
    pub label: String,
    /// Was not in the store before.
    pub is_new: bool,
    /// Takes now.
    pub takes: usize,
    /// Speech in all of them, seconds.
    pub net_speech_s: f64,
    /// By that.
    pub grade: Grade,
    /// The take that had to go, when there were [`TAKES_MAX`](super::TAKES_MAX).
    pub left_out: Option<LeftOut>,
}

/// Who was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Given to nobody again.
    pub id: VoiceId,
    /// Name, or "Speaker 7".
    pub label: String,
    /// When they had to go, seconds since 1970 (UTC).
    pub expires: Option<u64>,
}

/// What [`Store::check`] has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Voices, expired ones too.
    pub voices: usize,
    /// Their takes.
    pub takes: usize,
    /// Voices that [`Store::expire`] would remove.
    pub expired: usize,
    /// It is encrypted.
    pub is_sealed: bool,
    /// Of the tables.
    pub version: i64,
}

/// A store that is open. One thread at a time; each thread or process may open its own.
pub struct Store {
    path: PathBuf,
    conn: Connection,
    seal: Seal,
    identity: Vec<u8>,
    key_check: Option<Vec<u8>>,
    read_only: bool,
    require_consent: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `path`, behind links if there are some.
    ///
    /// # Errors
    /// If there is none, it is not one, it is damaged, newer than this scribe, or the key is not its own.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        Self::open_with(path, options, schema::STEPS)
    }

    fn open_with(path: &Path, options: &OpenOptions, steps: &[Step]) -> Result<Self, StoreError> {
        let opened = open::open(path, options, steps);
        let Opened {
            conn,
            seal,
            identity,
            key_check,
        } = opened.map_err(|problem| StoreError::new(path, problem))?;
        let store = Self {
            path: path.into(),
            conn,
            seal,
            identity,
            key_check,
            read_only: options.read_only,
            require_consent: options.require_consent,
        };
        if !options.read_only {
            // Of a deletion in the past. If it cannot be finished now, then another time.
            let _ = purge(&store.conn, PURGE_PATIENCE_AT_OPENING);
        }
        Ok(store)
    }

    /// As it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.seal.is_sealed()
    }

    pub(super) fn requires_consent(&self) -> bool {
        self.require_consent
    }

    /// Of which model all its vectors are. None while there are none.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn model(&self) -> Result<Option<ModelKey>, StoreError> {
        self.read(|rows| rows.model())
    }

    /// A number that is another one whenever another process (or another [`Store`]) has changed something. Cheap.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn version(&self) -> Result<i64, StoreError> {
        let version = self
            .conn
            .pragma_query_value(None, "data_version", |row| row.get(0));
        version.map_err(|err| StoreError::new(&self.path, err))
    }

    /// Everybody who has not expired, by number.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn voices(&self) -> Result<Vec<Voice>, StoreError> {
        let now = now();
        let mut voices = self.read(|rows| rows.all())?;
        voices.retain(|voice| !has_expired(voice, now));
        Ok(voices)
    }

    /// Everybody whom [`expire`](Self::expire) would remove at `now`, without their takes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn expired(&self, now: u64) -> Result<Vec<Removed>, StoreError> {
        let heads = self.read(|rows| rows.heads())?;
        let expired = heads.iter().filter(|voice| has_expired(voice, now));
        Ok(expired.map(removed).collect())
    }

    /// Who is meant by an id (also one that was merged away), a name, or "Speaker 7" of somebody without one. Capitals
    /// count only between names that differ in nothing else.
    ///
    /// # Errors
    /// If it is nobody, or could be several, or they have expired.
    pub fn find(&self, who: &str) -> Result<Voice, StoreError> {
        let now = now();
        self.read(|rows| {
            let id = find(rows, who)?;
            let mut voice = living(rows, id, now)?;
            let takes = rows.takes(id)?;
            voice.takes = takes.into_iter().map(|row| row.take).collect();
            Ok(voice)
        })
    }

    /// As [`find`](Self::find), for who may have expired.
    ///
    /// # Errors
    /// If it is nobody, or could be several.
    pub fn find_id(&self, who: &str) -> Result<VoiceId, StoreError> {
        self.read(|rows| find(rows, who))
    }

    /// Ids that were merged into `id`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn former_ids(&self, id: VoiceId) -> Result<Vec<VoiceId>, StoreError> {
        let aliases = self.read(|rows| rows.aliases())?;
        Ok(aliases.get(&id).cloned().unwrap_or_default())
    }

    /// Adds what one recording says of a voice. `consent` and `expires` replace what there was, if they are given.
    ///
    /// # Errors
    /// If the take is none, is of another model than the store, consent is required and missing, or the file cannot be
    /// written; the store is then as before.
    pub fn enrol(
        &mut self,
        who: Who<'_>,
        take: &Take,
        consent: Option<Consent>,
        expires: Option<u64>,
    ) -> Result<Enrolled, StoreError> {
        let now = now();
        let require_consent = self.require_consent;
        let (enrolled, has_deleted) = self.write(|rows| {
            record::check(take)?;
            let (mut voice, is_new, has_deleted) = whose(rows, who, now)?;
            rows.keep_model(&take.model)?;
            if consent.is_some() {
                voice.consent = consent;
            }
            expires.inspect(|at| voice.expires = Some(*at));
            check_consent(&voice, require_consent)?;
            voice.updated = now;
            rows.put_head(&voice)?;
            let left_out = add_take(rows, voice.id, take)?;
            voice.takes = rows.takes(voice.id)?.into_iter().map(|r| r.take).collect();
            let enrolled = Enrolled {
                id: voice.id,
                number: voice.number,
                label: voice.label(),
                is_new,
                takes: voice.takes.len(),
                net_speech_s: voice.net_speech_s(),
                grade: voice.grade(),
                left_out,
            };
            Ok((enrolled, has_deleted))
        })?;
        if has_deleted {
            // Enrolled is enrolled; what had expired leaves the file now or later.
            let _ = purge(&self.conn, PURGE_PATIENCE);
        }
        Ok(enrolled)
    }

    /// Gives `id` a name, or another one.
    ///
    /// # Errors
    /// If it cannot be a name, somebody else has it, or the file cannot be written.
    pub fn rename(&mut self, id: VoiceId, name: &str) -> Result<(), StoreError> {
        let now = now();
        let had_name = self.write(|rows| {
            let name = names::normal(name)?;
            let mut voice = living(rows, id, now)?;
            check_name_is_free(rows, &name, voice.id, now)?;
            let former = voice.name.replace(name);
            voice.updated = now;
            rows.put_head(&voice)?;
            if former.is_some() {
                count_deletion(rows)?;
            }
            Ok(former.is_some())
        })?;
        if had_name {
            // Renamed is renamed; the former name leaves the file now or later.
            let _ = purge(&self.conn, PURGE_PATIENCE);
        }
        Ok(())
    }

    /// Makes `from` and `into` one person: `into`, with the takes of both. Who looks for the id `from` finds `into` from
    /// now on. Name and consent are `into`'s, else `from`'s; of two terms the shorter holds. Returns how many takes
    /// were too many.
    ///
    /// # Errors
    /// If both are one, both have names and not `lose_name`, or the file cannot be written.
    pub fn merge(
        &mut self,
        from: VoiceId,
        into: VoiceId,
        lose_name: bool,
    ) -> Result<usize, StoreError> {
        let now = now();
        let left_out = self.write(|rows| {
            let (from, mut into) = (living(rows, from, now)?, living(rows, into, now)?);
            if from.id == into.id {
                return Err(Problem::SameVoice(into.id));
            }
            if let (Some(from), Some(into), false) = (&from.name, &into.name, lose_name) {
                let (from, into) = (from.clone(), into.clone());
                return Err(Problem::TwoNames { from, into });
            }
            let mut left_out = 0;
            for row in rows.takes(from.id)? {
                left_out += usize::from(add_take(rows, into.id, &row.take)?.is_some());
            }
            rows.alias(from.id, into.id)?;
            rows.delete(from.id)?;
            into.name = into.name.or(from.name);
            into.consent = into.consent.or(from.consent);
            into.expires = [into.expires, from.expires].into_iter().flatten().min();
            into.created = into.created.min(from.created);
            into.updated = now;
            rows.put_head(&into)?;
            // What is left of `from` is a name, and takes that were too many.
            count_deletion(rows)?;
            Ok(left_out)
        })?;
        // The voices are one; the rest leaves the file now or later.
        let _ = purge(&self.conn, PURGE_PATIENCE);
        Ok(left_out)
    }

    /// Forgets `id`, and every id that was merged into it.
    ///
    /// # Errors
    /// If there is no such voice, or the file cannot be written.
    pub fn delete(&mut self, id: VoiceId) -> Result<Purge, StoreError> {
        self.write(|rows| {
            let unknown = || Problem::Unknown {
                who: id.to_string(),
                nearest: Vec::new(),
            };
            let id = rows.resolve(id)?.ok_or_else(unknown)?;
            rows.delete(id)?;
            count_deletion(rows)
        })?;
        Ok(purge(&self.conn, PURGE_PATIENCE))
    }

    /// Forgets everybody who has expired at `now`, seconds since 1970 (UTC).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn expire(&mut self, now: u64) -> Result<(Vec<Removed>, Purge), StoreError> {
        let removed = self.write(|rows| {
            let mut gone = Vec::new();
            for voice in rows.heads()? {
                if has_expired(&voice, now) {
                    rows.delete(voice.id)?;
                    gone.push(removed(&voice));
                }
            }
            if !gone.is_empty() {
                count_deletion(rows)?;
            }
            Ok(gone)
        })?;
        Ok((removed, purge(&self.conn, PURGE_PATIENCE)))
    }

    /// Writes down who allowed to keep this voice.
    ///
    /// # Errors
    /// If it does not say all, or the file cannot be written.
    pub fn set_consent(&mut self, id: VoiceId, given: Consent) -> Result<(), StoreError> {
        let now = now();
        self.write(|rows| {
            consent::check(&given)?;
            let mut voice = living(rows, id, now)?;
            voice.consent = Some(given);
            voice.updated = now;
            rows.put_head(&voice)
        })
    }

    /// When this voice is to be forgotten, seconds since 1970 (UTC), or never.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_expiry(&mut self, id: VoiceId, expires: Option<u64>) -> Result<(), StoreError> {
        let now = now();
        self.write(|rows| {
            let mut voice = living(rows, id, now)?;
            voice.expires = expires;
            voice.updated = now;
            rows.put_head(&voice)
        })
    }

    /// Closes every row anew with `key`, or opens them all without one, and purges the file of what there was.
    ///
    /// # Errors
    /// If the file cannot be written; it is then as before.
    pub fn reseal(&mut self, key: Option<&Key>) -> Result<Purge, StoreError> {
        let seal = Seal::new(key);
        let identity = self.identity.clone();
        let key_check = self.write(|rows| {
            let anew = Rows {
                seal: &seal,
                ..*rows
            };
            for voice in rows.heads()? {
                let takes = rows.takes(voice.id)?;
                anew.put_head(&voice)?;
                for row in takes {
                    anew.put_take(row.row, voice.id, &row.take)?;
                }
            }
            let key_check = open::key_check(&seal, &identity)?;
            rows.conn
                .execute("UPDATE store SET key_check = ?1", [&key_check])?;
            count_deletion(rows)?;
            Ok(key_check)
        })?;
        self.seal = seal;
        self.key_check = key_check;
        Ok(purge(&self.conn, PURGE_PATIENCE))
    }

    /// Reads every page and opens every row.
    ///
    /// # Errors
    /// Says what is damaged.
    pub fn check(&self) -> Result<Checked, StoreError> {
        let now = now();
        self.read(|rows| {
            let sql = "PRAGMA integrity_check(1)";
            let found: String = rows.conn.query_row(sql, [], |row| row.get(0))?;
            if found != "ok" {
                return Err(Problem::Damaged(found.replace('\n', " ")));
            }
            if rows.conn.prepare("PRAGMA foreign_key_check")?.exists([])? {
                return Err(Problem::Damaged(
                    "a row belongs to a voice that is not there".into(),
                ));
            }
            let voices = rows.all()?;
            Ok(Checked {
                voices: voices.len(),
                takes: voices.iter().map(|voice| voice.takes.len()).sum(),
                expired: voices
                    .iter()
                    .filter(|voice| has_expired(voice, now))
                    .count(),
                is_sealed: self.is_sealed(),
                version: schema::version(rows.conn)?,
            })
        })
    }

    /// All that `look` sees is of one moment.
    pub(super) fn read<T>(
        &self,
        look: impl FnOnce(&Rows<'_>) -> Result<T, Problem>,
    ) -> Result<T, StoreError> {
        let looked = (|| {
            let tx = self.conn.unchecked_transaction()?;
            look(&self.rows(&tx)?)
        })();
        looked.map_err(|problem| StoreError::new(&self.path, problem))
    }

    /// All that `change` does is done, or nothing of it.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&Rows<'_>) -> Result<T, Problem>,
    ) -> Result<T, StoreError> {
        let changed = (|| {
            if self.read_only {
                return Err(Problem::OpenedForReading);
            }
            let tx =
                rusqlite::Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
            let changed = change(&self.rows(&tx)?)?;
            tx.commit()?;
            Ok(changed)
        })();
        changed.map_err(|problem| StoreError::new(&self.path, problem))
    }

    fn rows<'a>(&'a self, conn: &'a Connection) -> Result<Rows<'a>, Problem> {
        let (identity, key_check) = open::lock_of(conn)?;
        if identity != self.identity || key_check != self.key_check {
            return Err(Problem::KeyChanged);
        }
        Ok(Rows {
            conn,
            seal: &self.seal,
            store: &self.identity,
        })
    }
}

/// Seconds since 1970 (UTC).
/// Now, seconds since 1970 (UTC).
pub fn now() -> u64 {
    // A clock that is set before 1970 lets nobody expire.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn removed(voice: &Voice) -> Removed {
    Removed {
        id: voice.id,
        label: voice.label(),
        expires: voice.expires,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::take;
    use super::*;

    /// A store as it might have been before version 1: without former ids.
    fn version_0(path: &Path) {
        let options = OpenOptions {
            create: true,
            ..OpenOptions::default()
        };
        let mut store = Store::open(path, &options).unwrap();
        store
            .enrol(Who::Named("Alice"), &take(1, 8), None, None)
            .unwrap();
        drop(store);
        let old = Connection::open(path).unwrap();
        old.execute_batch("DROP TABLE alias; PRAGMA user_version = 0;")
            .unwrap();
    }

    const TO_1: &str = "CREATE TABLE alias (id INTEGER PRIMARY KEY,
        voice INTEGER NOT NULL REFERENCES voice (id) ON DELETE CASCADE) STRICT;
        CREATE INDEX alias_voice ON alias (voice);";

    #[test]
    fn an_old_store_is_brought_up_to_date_and_a_copy_of_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("voices.db");
        version_0(&path);
        let steps = [Step {
            from: 0,
            run: |conn| conn.execute_batch(TO_1),
        }];
        let reading = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        let to_read = Store::open_with(&path, &reading, &steps).unwrap_err();
        assert!(matches!(
            to_read.problem,
            Problem::NeedsMigration { version: 0 }
        ));

        let mut store = Store::open_with(&path, &OpenOptions::default(), &steps).unwrap();

        store.check().unwrap();
        assert_eq!(store.find("Alice").unwrap().takes, [take(1, 8)]);
        store
            .enrol(Who::Named("Bob"), &take(2, 8), None, None)
            .unwrap();
        drop(store);
        let backup = folder.path().join("voices.db.v0.bak");
        assert_eq!(
            fs::metadata(&backup).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let kept = Connection::open(&backup).unwrap();
        assert_eq!(schema::version(&kept).unwrap(), 0);
        assert_eq!(
            schema::application_id(&kept).unwrap(),
            schema::APPLICATION_ID
        );
        // With a store of today's version no second copy is made.
        fs::remove_file(&backup).unwrap();
        Store::open_with(&path, &OpenOptions::default(), &steps).unwrap();
        assert!(!backup.exists());
    }

    #[test]
    fn a_step_that_fails_leaves_the_old_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("voices.db");
        version_0(&path);
        let fails = [Step {
            from: 0,
            run: |conn| {
                conn.execute_batch(TO_1)?;
                conn.execute_batch("INSERT INTO nowhere VALUES (1)")
            },
        }];

        let failed = Store::open_with(&path, &OpenOptions::default(), &fails);
        let no_way = Store::open_with(&path, &OpenOptions::default(), &[]);

        assert!(failed.is_err());
        assert!(matches!(
            no_way.unwrap_err().problem,
            Problem::TooOld { version: 0, .. }
        ));
        let old = Connection::open(&path).unwrap();
        assert_eq!(schema::version(&old).unwrap(), 0);
        let tables: i64 = old
            .query_row(
                "SELECT count(*) FROM sqlite_schema WHERE name = 'alias'",
                [],
                |r| r.get(0),
            )
            .unwrap();
        assert_eq!(tables, 0);
        // And can be brought up to date at last.
        let steps = [Step {
            from: 0,
            run: |conn| conn.execute_batch(TO_1),
        }];
        Store::open_with(&path, &OpenOptions::default(), &steps)
            .unwrap()
            .check()
            .unwrap();
    }
}
