// SPDX-License-Identifier: MPL-2.0
//! What can be wrong with a model's name or file, each with its remedy.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::Task;

/// Why a model cannot be used. The text names the cause and what a person can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No model, file or alias of that name.
    #[error(
        "no model is called '{name}'{}: `scribe-models list` shows the names, a path works too",
        did_you_mean(nearest)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Known names that look like it, best first.
        nearest: Vec<String>,
    },
    /// The name is that of a model for something else.
    #[error(
        "{id} is for {actual}, and a model for {wanted} is needed here: `scribe-models list` shows which does what"
    )]
    WrongTask {
        /// The model that was named.
        id: String,
        /// What it does.
        actual: Task,
        /// What was wanted.
        wanted: Task,
    },
    /// A known model that is on no disk of ours.
    #[error(
        "model {id} is not here{}. Get it with:\n  scribe-models fetch {id}\nSearched: {}",
        present_instead(present),
        list(folders)
    )]
    Missing {
        /// The model's id.
        id: String,
        /// The same model in other precisions, where those are here.
        present: Vec<String>,
        /// Where it was looked for, in order.
        folders: Vec<PathBuf>,
    },
    /// Of a model's several files one is missing.
    #[error("model {id} has several files, and {} is not there: get it with `scribe-models fetch {id}`", path.display())]
    MissingCompanion {
        /// Where it should be.
        path: PathBuf,
        /// The model.
        id: String,
    },
    /// A path to nothing.
    #[error("there is no model file {}: check the path, or name a model as `scribe-models list` does", path.display())]
    NoSuchFile {
        /// The path.
        path: PathBuf,
    },
    /// A path to a folder.
    #[error("{} is a folder, and a model is one file, or a folder with encoder_model.onnx and a decoder as Optimum exports them: name the file in it, or make one out of a CTranslate2 folder with `scribe-models import {}`", path.display(), path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// A Whisper model in Optimum's layout that lacks a file.
    #[error("{} is of a Whisper model as Optimum exports them, and that is not whole: {why}", path.display())]
    Incomplete {
        /// The folder, or the graph that was named.
        path: PathBuf,
        /// What is missing, and what should be there.
        why: String,
    },
    /// A file of no bytes.
    #[error("model file {} is empty: {}", path.display(), again(id.as_deref()))]
    Empty {
        /// The file.
        path: PathBuf,
        /// The model it should hold, if it is a known one.
        id: Option<String>,
    },
    /// A known model's file has another length than the model.
    #[error("model file {} has {actual_bytes} bytes, and {id} has {expected_bytes}: it is cut short or another model, {}", path.display(), again(Some(id)))]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// The model it should hold.
        id: String,
        /// The model's length.
        expected_bytes: u64,
        /// The file's length.
        actual_bytes: u64,
    },
    /// A known model's file has other bytes than the model.
    #[error("model file {} is damaged: its SHA-256 is {actual}, that of {id} is {expected}; {}", path.display(), again(Some(id)))]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// The model it should hold.
        id: String,
        /// The model's SHA-256.
        expected: String,
        /// The file's SHA-256.
        actual: String,
    },
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A manifest, ours or the user's, that says something impossible.
    #[error("{origin}: {reason}")]
    Manifest {
        /// The file, or "built-in manifest".
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ModelError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            return Self::NoSuchFile { path: path.into() };
        }
        Self::Read {
            path: path.into(),
            source,
        }
    }
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!(" (near it: {})", nearest.join(", "))
    }
}

fn present_instead(present: &[String]) -> String {
    if present.is_empty() {
        String::new()
    } else {
        format!(" (here: {})", present.join(", "))
    }
}

fn again(id: Option<&str>) -> String {
    match id {
        Some(id) => format!("get it anew with `scribe-models fetch {id}`"),
        None => "get or copy it anew".into(),
    }
}

fn list(folders: &[PathBuf]) -> String {
    let mut text = String::new();
    for (n, folder) in folders.iter().enumerate() {
        let _ = write!(
            text,
            "{}{}",
            if n == 0 { "" } else { ", " },
            folder.display()
        );
    }
    text
}
