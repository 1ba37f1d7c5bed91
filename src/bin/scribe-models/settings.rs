// SPDX-License-Identifier: MPL-2.0
//! What the command line and the environment say, checked before any work.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gstscribe::inference::manifest::Catalog;

use crate::Getting;
use crate::failure::Failure;

/// How and whereto models are got.
pub struct Settings {
    /// Where finished files go.
    pub dir: PathBuf,
    /// Folder whose files come before any download.
    pub from: Option<PathBuf>,
    /// Never connect.
    pub offline: bool,
    /// Keep downloaded archives.
    pub keep: bool,
    /// How long a source may send nothing.
    pub timeout: Duration,
    /// How often a broken connection is made anew.
    pub retries: u32,
}

impl Settings {
    /// For getting things to `dir`, as the command line and the environment say.
    pub fn new(dir: PathBuf, getting: &Getting) -> Result<Self, Failure> {
        let from = env::var_os("SCRIBE_MODELS_FROM")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        if let Some(folder) = from.as_deref().filter(|folder| !folder.is_dir()) {
            return Err(Failure::Usage(format!(
                "SCRIBE_MODELS_FROM={} is no folder",
                folder.display()
            )));
        }
        Ok(Self {
            dir,
            from,
            offline: switched_on("SCRIBE_OFFLINE"),
            keep: getting.keep,
            timeout: Duration::from_secs(getting.timeout),
            retries: getting.retries,
        })
    }

    /// Where parts, archives and locks lie while a model is got.
    pub fn work_dir(&self) -> PathBuf {
        work_dir(&self.dir)
    }
}

/// The folder for unfinished things in a folder of models: on the same disk, so that a finished
/// file is moved and not copied.
pub fn work_dir(dir: &Path) -> PathBuf {
    dir.join("download")
}

/// The folder that models go to.
pub fn target_dir(catalog: &Catalog, dir: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let target = dir.or_else(|| catalog.places().default_target());
    target.ok_or_else(|| {
        Failure::Usage("there is no home folder: say where models go with --dir".into())
    })
}

fn switched_on(variable: &str) -> bool {
    env::var_os(variable)
        .is_some_and(|value| !matches!(value.to_str(), Some("" | "0" | "no" | "false" | "off")))
}
