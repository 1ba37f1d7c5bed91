// SPDX-License-Identifier: MPL-2.0
//! Where model files may lie.
//!
//! Everything here is worked out from a [`Places`] value and not from the environment, so that a
//! test or a program can say where to look.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The plugin's file, said once by `plugin_init`. A process has one plugin, so one static is right.
static PLUGIN_FILE: OnceLock<PathBuf> = OnceLock::new();

/// Tells where the plugin's own file lies: models and libraries beside it are found from there.
/// The first call counts. Without one, the program's own file is taken.
pub fn set_plugin_file(path: &Path) {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let _ = PLUGIN_FILE.set(path);
}

/// What the search for models starts from.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `SCRIBE_MODELS`: folders that come first.
    pub models: Vec<PathBuf>,
    /// `SCRIBE_MANIFEST`: a manifest that adds to the built-in one or replaces parts of it.
    pub manifest: Option<PathBuf>,
    /// The plugin's file, or the program's.
    pub own_file: Option<PathBuf>,
    /// `XDG_DATA_HOME`, by default `~/.local/share`.
    pub data_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`, by default `~/.cache`.
    pub cache_home: Option<PathBuf>,
    /// Share folders of the system, searched last.
    pub system: Vec<PathBuf>,
}

impl Places {
    /// As the environment of this process says.
    pub fn from_env() -> Self {
        let own_file = PLUGIN_FILE
            .get()
            .cloned()
            .or_else(|| env::current_exe().ok());
        Self {
            models: env::var_os("SCRIBE_MODELS")
                .map(|list| {
                    env::split_paths(&list)
                        .filter(|p| !p.as_os_str().is_empty())
                        .collect()
                })
                .unwrap_or_default(),
            manifest: non_empty("SCRIBE_MANIFEST"),
            own_file,
            data_home: home_folder("XDG_DATA_HOME", ".local/share"),
            cache_home: home_folder("XDG_CACHE_HOME", ".cache"),
            system: vec!["/usr/local/share".into(), "/usr/share".into()],
        }
    }

    /// The folders searched, in order, each once. They need not exist.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut all = self.models.clone();
        all.extend(self.repository().map(|repo| repo.join("models")));
        let shares = self
            .data_home
            .iter()
            .cloned()
            .chain(self.prefix_shares())
            .chain(self.system.iter().cloned());
        all.extend(shares.map(|share| share.join("scribe/models")));
        let mut once: Vec<PathBuf> = Vec::with_capacity(all.len());
        for folder in all {
            if !once.contains(&folder) {
                once.push(folder);
            }
        }
        once
    }

    /// The repository that the plugin or program was built in, if it still lies there:
    /// `REPO/target/release/libgstscribe.so`, any target folder and any depth below it.
    pub fn repository(&self) -> Option<PathBuf> {
        let own = self.own_file.as_deref()?;
        own.ancestors().skip(1).find_map(|folder| {
            let is_target = folder.file_name()?.to_str()?.starts_with("target");
            let repo = folder.parent()?;
            (is_target && repo.join("models/manifest.toml").is_file()).then(|| repo.to_owned())
        })
    }

    /// Where a program puts models if nobody said where.
    pub fn default_target(&self) -> Option<PathBuf> {
        if let Some(first) = self.models.first() {
            return Some(first.clone());
        }
        self.repository()
            .map(|repo| repo.join("models"))
            .or_else(|| {
                self.data_home
                    .as_ref()
                    .map(|home| home.join("scribe/models"))
            })
    }

    /// `PREFIX/share` for a plugin in `PREFIX/lib/…` or a program in `PREFIX/bin`.
    fn prefix_shares(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let own = self.own_file.as_deref().unwrap_or_else(|| Path::new(""));
        own.ancestors().skip(1).filter_map(|folder| {
            match folder.file_name().and_then(OsStr::to_str)? {
                "share" => Some(folder.to_owned()),
                "lib" | "lib64" | "libexec" | "bin" => Some(folder.parent()?.join("share")),
                _ => None,
            }
        })
    }
}

fn home_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    // The XDG specification has relative values ignored.
    non_empty(variable)
        .filter(|path| path.is_absolute())
        .or_else(|| non_empty("HOME").map(|home| home.join(below_home)))
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
