// SPDX-License-Identifier: MPL-2.0
//! Files put into place: locked against a second process, checked, moved there in one step.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{Entry, sha256_file};

use crate::failure::Failure;

/// What a file must be.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Its length.
    pub size_bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub sha256: &'a str,
}

impl<'a> Expected<'a> {
    /// The files of a model, its own first.
    pub fn files_of(entry: &'a Entry) -> Vec<Self> {
        let first = Self {
            name: &entry.file,
            size_bytes: entry.size_bytes,
            sha256: &entry.sha256,
        };
        let companions = entry.companions.iter().map(|other| Self {
            name: &other.file,
            size_bytes: other.size_bytes,
            sha256: &other.sha256,
        });
        std::iter::once(first).chain(companions).collect()
    }

    /// Why the file at `path` is not this one; `None` if it is.
    pub fn difference(&self, path: &Path) -> Result<Option<String>, Failure> {
        let size = fs::metadata(path)
            .map_err(|err| Failure::file("read", path, err))?
            .len();
        if size != self.size_bytes {
            return Ok(Some(format!(
                "it has {size} bytes and should have {}",
                self.size_bytes
            )));
        }
        let digest = sha256_file(path).map_err(|err| Failure::file("read", path, err))?;
        Ok((digest != self.sha256)
            .then(|| format!("its SHA-256 is {digest} and should be {}", self.sha256)))
    }

    /// Whether `path` is a file and this one.
    pub fn is_at(&self, path: &Path) -> Result<bool, Failure> {
        Ok(path.is_file() && self.difference(path)?.is_none())
    }
}

/// Makes a folder and those above it.
pub fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|err| Failure::file("make the folder", folder, err))
}

/// A file that only we work on, until the drop. Its lock file goes with it.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until nobody else works on `name` in `folder`.
    pub fn wait(folder: &Path, name: &str) -> Result<Self, Failure> {
        let path = folder.join(format!("{name}.lock"));
        loop {
            let file = open_lock(folder, &path)?;
            if file.try_lock().is_err() {
                eprintln!("{name}: another scribe-models works on it, waiting");
                file.lock()
                    .map_err(|err| Failure::file("lock", &path, err))?;
            }
            // Whoever held it has removed it: the lock must be on the file that others see.
            if is_same_file(&file, &path) {
                return Ok(Self { path, _file: file });
            }
        }
    }

    /// The same without waiting: `None` if somebody else has it.
    pub fn attempt(folder: &Path, name: &str) -> Option<Self> {
        let path = folder.join(format!("{name}.lock"));
        let file = open_lock(folder, &path).ok()?;
        let ours = file.try_lock().is_ok() && is_same_file(&file, &path);
        ours.then_some(Self { path, _file: file })
    }
}

fn open_lock(folder: &Path, path: &Path) -> Result<File, Failure> {
    loop {
        make_folder(folder)?;
        match OpenOptions::new().create(true).append(true).open(path) {
            // The folder was cleared away between these two steps.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map_err(|err| Failure::file("lock", path, err)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While still locked, so that nobody locks a file that is about to vanish unnoticed.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Moves a finished file to its final name. A reader sees the old file, the new one or none, and
/// never a part.
pub fn put_in_place(part: &Path, place: &Path) -> Result<(), Failure> {
    let synced = File::open(part).and_then(|file| file.sync_all());
    synced.map_err(|err| Failure::file("write", part, err))?;
    fs::rename(part, place).map_err(|err| Failure::file("write", place, err))
}

/// Copies a file, which must then be as expected.
pub fn copy_checked(
    from: &Path,
    part: &Path,
    expected: &Expected<'_>,
) -> Result<Option<String>, Failure> {
    fs::copy(from, part).map_err(|err| Failure::file("copy to", part, err))?;
    let difference = expected.difference(part)?;
    if difference.is_some() {
        remove(part);
    }
    Ok(difference)
}

/// Removes a file if it is there; that it cannot be removed hurts nobody.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// A folder that is gone after use.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder of that name.
    pub fn new(path: PathBuf) -> Result<Self, Failure> {
        let _ = fs::remove_dir_all(&path);
        make_folder(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
