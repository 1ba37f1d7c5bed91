// SPDX-License-Identifier: MPL-2.0
//! All that can go wrong with a store, as sentences with a cause and a remedy.
//!
//! No message has a value of a vector in it, nor of a key. Names stand in quotes, with what could steer a
//! terminal escaped.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{ModelKey, VoiceId};

/// What went wrong, and with which file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct StoreError {
    /// The store's file.
    pub path: PathBuf,
    /// What is the matter with it.
    #[source]
    pub problem: Problem,
}

impl StoreError {
    /// With the file that it happened to.
    pub(super) fn new(path: &Path, problem: impl Into<Problem>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No such file.
    #[error("there is no voices store: enrol someone first, or give the path of the store")]
    Missing,
    /// A symbolic link that leads nowhere.
    #[error(
        "this is a link to {}, and nothing is there: mend the link, or remove it",
        target.display()
    )]
    DanglingLink {
        /// Where it points.
        target: PathBuf,
    },
    /// Not a store of ours.
    #[error("this is not a voices store: {0}. Nothing was changed; give the path of the store")]
    Foreign(&'static str),
    /// Written by a later scribe.
    #[error(
        "the store has version {version}, and this scribe knows versions up to {known}: update scribe"
    )]
    Newer {
        /// The file's.
        version: i64,
        /// Ours.
        known: i64,
    },
    /// From before all versions that can be brought up to date.
    #[error(
        "the store has version {version}, from which there is no way to version {known}: enrol again"
    )]
    TooOld {
        /// The file's.
        version: i64,
        /// Ours.
        known: i64,
    },
    /// Older, and opened only for reading.
    #[error(
        "the store has the old version {version}: `scribe-voices check` brings it up to date, and leaves a copy beside it"
    )]
    NeedsMigration {
        /// The file's.
        version: i64,
    },
    /// SQLite or our own look found damage.
    #[error(
        "the store is damaged ({0}): put back a backup or an export. What can still be read can be rescued with \
         sqlite3's .recover; a damaged voice goes with `scribe-voices delete voice-…`"
    )]
    Damaged(String),
    /// Another process holds it.
    #[error(
        "another process has been writing to the store for {waited_s} s: try again when it is done"
    )]
    Busy {
        /// How long we stood in line.
        waited_s: u64,
    },
    /// File or file system may not be written to.
    #[error(
        "the store may not be written to: give this user write access to the file and its folder, or open it for reading"
    )]
    ReadOnly,
    /// Not even reading is allowed.
    #[error("the store cannot be opened: give this user read access to the file")]
    Unreadable,
    /// SQLite cannot make its files beside ours.
    #[error(
        "the files -wal and -shm beside the store cannot be used: give this user write access to the folder, or copy the \
         store with its -wal to another one"
    )]
    NoCompanions,
    /// A change through a store that was opened for reading.
    #[error("the store was opened for reading alone")]
    OpenedForReading,
    /// No room on the disk.
    #[error("the disk is full, and the store is as it was before: free some space and try again")]
    Full,
    /// Reading or writing went wrong.
    #[error(
        "the disk did not read or write ({0}), and the store is as it was before: look at the disk, and at the limit of this \
         process for the size of files (ulimit -f)"
    )]
    Disk(String),
    /// The system refuses.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// Anything else that SQLite says.
    #[error("SQLite says: {0}")]
    Sqlite(rusqlite::Error),
    /// Sealed with another key.
    #[error("this is not the key of the store: give the one that it was encrypted with")]
    WrongKey,
    /// Sealed, and no key is here.
    #[error(
        "the store is encrypted and no key was given: set SCRIBE_VOICES_KEY or SCRIBE_VOICES_KEY_FILE, or give --key-file"
    )]
    NeedsKey,
    /// A key and nothing to open with it.
    #[error(
        "a key was given and the store is not encrypted: `scribe-voices encrypt` does that, or leave the key away"
    )]
    NotSealed,
    /// `encrypt` on what is encrypted.
    #[error("the store is encrypted already: `scribe-voices rekey` gives it another key")]
    IsSealed,
    /// Encrypted, decrypted or given another key since it was opened.
    #[error(
        "another process has changed how the store is encrypted: open it again, with the key it has now"
    )]
    KeyChanged,
    /// Vectors that cannot be compared with those that are there.
    #[error(
        "the voices of this store are from the embedding model {store} and the new one is from {take}: vectors of two \
         models cannot be compared. Choose the store's model, or enrol everybody again into another store"
    )]
    OtherModel {
        /// The store's.
        store: Box<ModelKey>,
        /// That of what was to be added.
        take: Box<ModelKey>,
    },
    /// Not a take.
    #[error("this cannot be kept as a voice: {0}")]
    BadTake(&'static str),
    /// Not a name.
    #[error("{name:?} cannot be a name: {why}")]
    BadName {
        /// What was given.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// Not a consent.
    #[error("the consent is not complete: {0}")]
    BadConsent(&'static str),
    /// A date beyond the year 9999.
    #[error("a time after the year 9999 cannot be kept")]
    BadTime,
    /// `require-consent`.
    #[error(
        "{who} has given no consent, and it is required: say who consented, when and for what (`scribe-voices consent`, or \
         where the voice is enrolled)"
    )]
    NoConsent {
        /// Whose voice.
        who: String,
    },
    /// Two people cannot have one name.
    #[error(
        "{name:?} is the name of {id}: choose another name, or merge the two with `scribe-voices merge`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: VoiceId,
    },
    /// Nobody of that name.
    #[error("no voice is called {who:?}{}", did_you_mean(nearest))]
    Unknown {
        /// What was asked for.
        who: String,
        /// Names that resemble it.
        nearest: Vec<String>,
    },
    /// Several that differ in capitals alone.
    #[error(
        "{who:?} could be {}: write the name exactly, or give the id",
        list(names)
    )]
    Ambiguous {
        /// What was asked for.
        who: String,
        /// Who could be meant.
        names: Vec<String>,
    },
    /// To be forgotten, and still in the file.
    #[error(
        "the voice of {who} has expired and is not used any more: `scribe-voices expire` removes it; enrol again to keep it"
    )]
    Expired {
        /// Whose voice.
        who: String,
    },
    /// A voice with itself.
    #[error("both are {0}: there is nothing to merge")]
    SameVoice(VoiceId),
    /// Merging would lose a name.
    #[error(
        "one is called {from:?} and the other {into:?}: say that they are one person (--yes) to lose the first name"
    )]
    TwoNames {
        /// The name that would go.
        from: String,
        /// The name that would stay.
        into: String,
    },
    /// Not what `export` writes.
    #[error("this cannot be imported: {0}")]
    BadImport(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    NoRandom(getrandom::Error),
}

/// How long a writer stands in line, seconds.
pub(super) const BUSY_S: u64 = 10;

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        use rusqlite::ErrorCode as C;
        match &error {
            E::SqliteFailure(code, text) => match code.code {
                C::DatabaseBusy | C::DatabaseLocked => Self::Busy { waited_s: BUSY_S },
                C::ReadOnly => Self::ReadOnly,
                C::DiskFull => Self::Full,
                // The file of shared memory could not grow.
                C::SystemIoFailure if code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => {
                    Self::Full
                }
                C::SystemIoFailure => Self::Disk(format!("SQLite's code {}", code.extended_code)),
                C::CannotOpen => Self::NoCompanions,
                C::NotADatabase => Self::Foreign("it is no SQLite file"),
                C::DatabaseCorrupt => Self::Damaged(text.clone().unwrap_or_default()),
                // A schema that was tampered with: our own statements are right.
                C::Unknown | C::TypeMismatch => Self::Damaged(error.to_string()),
                _ => Self::Sqlite(error),
            },
            E::SqlInputError { msg, .. } => Self::Damaged(msg.clone()),
            E::InvalidColumnType(..)
            | E::FromSqlConversionFailure(..)
            | E::IntegralValueOutOfRange(..)
            | E::Utf8Error(..)
            | E::QueryReturnedNoRows => {
                Self::Damaged("a row has not the form that it should have".into())
            }
            _ => Self::Sqlite(error),
        }
    }
}

impl From<getrandom::Error> for Problem {
    fn from(error: getrandom::Error) -> Self {
        Self::NoRandom(error)
    }
}

/// As the end of a sentence: ", did you mean …?".
fn did_you_mean(names: &[String]) -> impl fmt::Display {
    match names {
        [] => ": `scribe-voices list` shows all".to_owned(),
        names => format!(": did you mean {}?", list(names)),
    }
}

/// `"a", "b" or "c"`.
fn list(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_file_the_cause_and_the_remedy() {
        let problem = Problem::Unknown {
            who: "Alise\u{1b}[2J".into(),
            nearest: vec!["Alice".into(), "Elise".into()],
        };

        let error = StoreError::new(Path::new("/v/voices.db"), problem);

        assert_eq!(
            error.to_string(),
            "/v/voices.db: no voice is called \"Alise\\u{1b}[2J\": did you mean \"Alice\" or \"Elise\"?"
        );
    }
}
