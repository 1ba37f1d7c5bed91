// SPDX-License-Identifier: MPL-2.0
//! Which recordings there are, and where their transcripts go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::options::Options;

/// Endings of names that a folder is searched for. A file that is named itself may have any.
const ENDINGS: [&str; 38] = [
    "3gp", "aac", "ac3", "aif", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "flac", "flv",
    "m2ts", "m4a", "m4b", "m4v", "mka", "mkv", "mov", "mp2", "mp3", "mp4", "mpeg", "mpg", "mts",
    "mxf", "oga", "ogg", "ogv", "opus", "ts", "vob", "w64", "wav", "webm", "wma", "wmv",
];

/// A recording and its transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The recording.
    pub source: PathBuf,
    /// The transcript.
    pub target: PathBuf,
}

impl Work {
    /// What it is called while it is written.
    pub fn partial(&self) -> PathBuf {
        let name = self.target.file_name().unwrap_or_default();
        self.target
            .with_file_name(format!(".{}.part", name.to_string_lossy()))
    }

    /// Its transcript is whole, and not older than the recording.
    pub fn is_done(&self) -> bool {
        let changed = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
        match (changed(&self.target), changed(&self.source)) {
            (Some(target), Some(source)) => target >= source,
            _ => false,
        }
    }
}

/// A recording, and the way to it below the folder that was named.
struct Found {
    source: PathBuf,
    below: PathBuf,
}

/// All recordings, each with a target of its own.
pub fn plan(options: &Options) -> Result<Vec<Work>, String> {
    let mut found = Vec::new();
    for path in &options.paths {
        if path.is_dir() {
            search(path, Path::new(""), &mut found)?;
        } else {
            let name = path
                .file_name()
                .ok_or_else(|| format!("{} is no file", path.display()))?;
            found.push(Found {
                source: path.clone(),
                below: name.into(),
            });
        }
    }
    if found.is_empty() {
        return Err(
            "no recordings there: a folder is searched for names of audio and video files".into(),
        );
    }
    Ok(targets(found, &options.out, options.format.extension()))
}

fn search(folder: &Path, below: &Path, found: &mut Vec<Found>) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", folder.display());
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        // A link to a folder may lead back here: links to files alone are followed.
        if entry.file_type().map_err(failed)?.is_dir() {
            search(&path, &below.join(&name), found)?;
        } else if path.is_file() && has_ending(&path) {
            found.push(Found {
                source: path,
                below: below.join(&name),
            });
        }
    }
    Ok(())
}

fn has_ending(path: &Path) -> bool {
    let ending = path
        .extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

/// `talk.mp4` becomes `talk.vtt`; where there is a `talk.wav` too, both keep their ending and become `talk.mp4.vtt` and
/// `talk.wav.vtt`. The same recording named twice is done once.
fn targets(found: Vec<Found>, out: &Path, ending: &str) -> Vec<Work> {
    let mut names: HashMap<PathBuf, usize> = HashMap::new();
    for one in &found {
        *names.entry(one.below.with_extension("")).or_default() += 1;
    }
    let mut works: Vec<Work> = Vec::with_capacity(found.len());
    for one in found {
        let plain = one.below.with_extension("");
        let name = if names[&plain] == 1 { plain } else { one.below };
        let mut target = out.join(name).into_os_string();
        target.push(".");
        target.push(ending);
        let mut work = Work {
            source: one.source,
            target: target.into(),
        };
        if works.iter().any(|w| w.source == work.source) {
            continue;
        }
        // Two folders with recordings of one name.
        for n in 2.. {
            if works.iter().all(|w| w.target != work.target) {
                break;
            }
            work.target.set_extension(format!("{n}.{ending}"));
        }
        works.push(work);
    }
    works
}
