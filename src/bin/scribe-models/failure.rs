// SPDX-License-Identifier: MPL-2.0
//! Everything that can end the program, as sentences with a cause and a remedy.

use std::io;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::ModelError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A model's name, file or manifest.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The command line or the environment asks for something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// A file or folder of ours.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No room.
    #[error("the disk is full: {} could not be written. Free some space or choose another folder with --dir; what has been downloaded is kept", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// No source had it.
    #[error("cannot get {what}:\n{}", reasons.iter().map(|reason| format!("  {reason}")).collect::<Vec<_>>().join("\n"))]
    NoSource {
        /// The model or library.
        what: String,
        /// One line a source that was tried.
        reasons: Vec<String>,
    },
    /// Something that the user gave is not usable.
    #[error("{0}")]
    Input(String),
    /// Several models were asked for and some failed; each has been reported.
    #[error("{failed} of {all} failed")]
    Some {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
}

impl Failure {
    /// What the system said about a file of ours.
    pub fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.into() }
            }
            _ => Self::File {
                doing,
                path: path.into(),
                source,
            },
        }
    }

    /// 2 for wrong use, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Model(ModelError::Unknown { .. } | ModelError::WrongTask { .. }) => 2,
            _ => 1,
        }
    }
}

/// Why a source did not work.
#[derive(Debug)]
pub enum Trouble {
    /// The source's fault: try the next one.
    Source(String),
    /// Ours: the next one would fail alike.
    Local(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Local(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_as_such() {
        let failure = Failure::file(
            "write",
            Path::new("/m/a.part"),
            io::Error::from(io::ErrorKind::StorageFull),
        );

        assert!(
            failure
                .to_string()
                .starts_with("the disk is full: /m/a.part")
        );
    }
}
