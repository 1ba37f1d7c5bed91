// SPDX-License-Identifier: MPL-2.0
//! Everything that can end the program, as sentences with a cause and a remedy.

use std::io;
use std::path::{Path, PathBuf};

use gstscribe::voices::{KeyError, Problem, StoreError};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The command line or the environment asks for something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// Another file.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The answer was no.
    #[error("nothing was changed")]
    Declined,
}

impl Failure {
    /// What the system said about a file.
    pub fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            doing,
            path: path.into(),
            source,
        }
    }

    /// 2 for wrong use, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        let Self::Store(StoreError { problem, .. }) = self else {
            return if matches!(self, Self::Usage(_)) { 2 } else { 1 };
        };
        match problem {
            Problem::Unknown { .. }
            | Problem::Ambiguous { .. }
            | Problem::BadName { .. }
            | Problem::BadConsent(_)
            | Problem::BadTime => 2,
            _ => 1,
        }
    }
}
