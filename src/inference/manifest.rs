// SPDX-License-Identifier: MPL-2.0
//! Models by name: what is known of each (`models/manifest.toml`) and where its file lies.
//!
//! No network, and no model is opened here: a name goes in, a checked path and what the manifest
//! says of it come out. The manifest is compiled in; a file named by `SCRIBE_MANIFEST` adds to it,
//! and so does `FILE.toml` beside a model file `FILE`. docs/models.md shows both.

mod digest;
mod entry;
mod error;
mod exports;
mod parse;
mod places;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

pub use digest::{hex, sha256_file};
pub use entry::{
    Companion, Contract, Engine, Entry, GraphType, Library, Package, Runtime, Source, Take, Task,
    WeightType,
};
pub use error::ModelError;
pub use exports::Export;
pub use places::{Places, set_plugin_file};

const BUILT_IN: &str = include_str!("../../models/manifest.toml");

/// How alike two names must be for the one to be suggested for the other (0 to 1).
const ALIKE_MIN: f64 = 0.7;

/// A longer file beside a model is not read as its description.
const SIDECAR_BYTES_MAX: u64 = 256 * 1024;

/// A model that is on disk and whole.
#[derive(Clone, Debug)]
pub struct ResolvedModel {
    /// Its file.
    pub path: PathBuf,
    /// Its further files, in the order of the entry.
    pub companions: Vec<PathBuf>,
    /// What is known of it; `None` for a file that no manifest describes.
    pub entry: Option<Entry>,
    /// The entry's id, else the file's name.
    pub id: String,
    /// Its files, where it is a Whisper model in Optimum's layout; `path` is the encoder then.
    pub export: Option<Export>,
}

/// Finds the model that `name` stands for: a short name (`tiny.en`, `base-q5_1`), an id, a file's
/// name, a path, or `auto` (also the empty text) for the task's default.
///
/// A known model's file is compared with its SHA-256, once per state of the file. May therefore
/// read a large file: for worker threads, never for a streaming thread.
pub fn resolve(name: &str, task: Task) -> Result<ResolvedModel, ModelError> {
    Catalog::from_env()?.resolve(name, task)
}

/// The same; `auto` stands for the default among the models for `engine`, if one is wanted.
pub fn resolve_for(
    name: &str,
    task: Task,
    engine: Option<Engine>,
) -> Result<ResolvedModel, ModelError> {
    Catalog::from_env()?.resolve_for(name, task, engine)
}

/// SHA-256 of a model's file, worked out once per state of the file.
pub fn file_digest(path: &Path) -> Result<String, ModelError> {
    let places = Places::from_env();
    digest::Cache::new(places.cache_home.as_deref())
        .sha256(path)
        .map_err(|err| ModelError::read(path, err))
}

/// The models that are known: those of the built-in manifest and those of the user's.
#[derive(Debug)]
pub struct Manifest {
    entries: Vec<Entry>,
    default_asr: String,
    default_set: Vec<String>,
    preferred: BTreeMap<Task, Vec<String>>,
    runtimes: Vec<Runtime>,
}

impl Manifest {
    /// The built-in manifest, and on top of it the file `extension`, if any.
    pub fn load(extension: Option<&Path>) -> Result<Self, ModelError> {
        let built_in = "the built-in manifest";
        let parsed = parse_as(built_in, BUILT_IN)?;
        let mut manifest = Self {
            entries: parsed.entries,
            default_asr: parsed.default_asr.unwrap_or_default(),
            default_set: parsed.default_set,
            preferred: parsed.preferred,
            runtimes: parsed.runtimes,
        };
        manifest.check_names(built_in)?;
        if let Some(path) = extension {
            let text = fs::read_to_string(path).map_err(|err| ModelError::read(path, err))?;
            let origin = path.display().to_string();
            manifest.extend(parse_as(&origin, &text)?);
            manifest.check_names(&origin)?;
        }
        Ok(manifest)
    }

    /// All models, in the manifest's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The id of the Whisper model used when none is named.
    pub fn default_asr(&self) -> &str {
        &self.default_asr
    }

    /// The ids that make up the default set: every task, without the better but larger models.
    pub fn default_set(&self) -> &[String] {
        &self.default_set
    }

    /// The ids that `auto` stands for, best first.
    pub fn preferred(&self, task: Task) -> Vec<&str> {
        let listed = self.preferred.get(&task).into_iter().flatten();
        let default = (task == Task::Asr).then_some(&self.default_asr);
        let mut ids: Vec<&str> = Vec::new();
        for id in listed.chain(default) {
            if !ids.contains(&id.as_str()) {
                ids.push(id);
            }
        }
        ids
    }

    /// ONNX Runtime's library for a kind of machine, as `std::env::consts::ARCH` names it, and what it can compute on
    /// besides the processor.
    pub fn runtime(&self, arch: &str, provider: Option<&str>) -> Option<&Runtime> {
        self.runtimes
            .iter()
            .find(|runtime| runtime.arch == arch && runtime.provider.as_deref() == provider)
    }

    /// The model with that id, alias or file name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.names().contains(&name))
    }

    /// Names that look like `name`, best first, three at most.
    pub fn nearest(&self, name: &str, task: Option<Task>) -> Vec<String> {
        let wanted = name.to_lowercase();
        let mut near: Vec<(f64, &str)> = self
            .entries
            .iter()
            .filter(|entry| task.is_none_or(|task| task == entry.task))
            .filter_map(|entry| {
                // The short names are for people; a file's name is not what anybody meant to type.
                let names = entry.names().into_iter().filter(|n| *n != entry.file);
                names
                    .map(|n| (likeness(&wanted, n), n))
                    .max_by(|a, b| a.0.total_cmp(&b.0))
            })
            .filter(|(alike, _)| *alike >= ALIKE_MIN)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.into_iter()
            .take(3)
            .map(|(_, name)| name.to_owned())
            .collect()
    }

    /// Adds what `other` says; its entries replace those with the same id.
    fn extend(&mut self, other: parse::Parsed) {
        for entry in other.entries {
            match self.entries.iter_mut().find(|known| known.id == entry.id) {
                Some(known) => *known = entry,
                None => self.entries.push(entry),
            }
        }
        if let Some(id) = other.default_asr {
            self.preferred.remove(&Task::Asr);
            self.default_asr = id;
        }
        if !other.default_set.is_empty() {
            self.default_set = other.default_set;
        }
        self.preferred.extend(other.preferred);
        let kind = |runtime: &Runtime| (runtime.arch.clone(), runtime.provider.clone());
        let kinds: HashSet<_> = other.runtimes.iter().map(kind).collect();
        self.runtimes
            .retain(|runtime| !kinds.contains(&kind(runtime)));
        self.runtimes.extend(other.runtimes);
    }

    /// No name stands for two models, and every id that is referred to exists.
    fn check_names(&self, origin: &str) -> Result<(), ModelError> {
        let wrong = |reason| ModelError::Manifest {
            origin: origin.into(),
            reason,
        };
        let mut seen = HashSet::new();
        let names = self.entries.iter().flat_map(|entry| {
            let companions = entry.companions.iter();
            let names = entry.names().into_iter();
            names.chain(companions.map(|other| other.file.as_str()))
        });
        for name in names {
            if !seen.insert(name) {
                return Err(wrong(format!("two models have the name {name}")));
            }
        }
        let referred = self.preferred.values().flatten().chain(&self.default_set);
        for id in referred.chain(std::iter::once(&self.default_asr)) {
            if self.find(id).is_none() {
                return Err(wrong(format!(
                    "{id} is referred to, and there is no such model"
                )));
            }
        }
        Ok(())
    }
}

fn parse_as(origin: &str, text: &str) -> Result<parse::Parsed, ModelError> {
    parse::manifest(text).map_err(|reason| ModelError::Manifest {
        origin: origin.into(),
        reason,
    })
}

fn likeness(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b).max(strsim::normalized_damerau_levenshtein(a, b))
}

/// A manifest and the places where its models may lie.
pub struct Catalog {
    manifest: Manifest,
    places: Places,
    digests: digest::Cache,
}

impl Catalog {
    /// As the environment of this process says.
    pub fn from_env() -> Result<Self, ModelError> {
        let places = Places::from_env();
        Ok(Self::new(
            Manifest::load(places.manifest.as_deref())?,
            places,
        ))
    }

    /// With a manifest and places of one's own.
    pub fn new(manifest: Manifest, places: Places) -> Self {
        let digests = digest::Cache::new(places.cache_home.as_deref());
        Self {
            manifest,
            places,
            digests,
        }
    }

    /// What is known of models.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where they may lie.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// See [`resolve`].
    pub fn resolve(&self, name: &str, task: Task) -> Result<ResolvedModel, ModelError> {
        self.resolve_for(name, task, None)
    }

    /// See [`resolve_for`].
    pub fn resolve_for(
        &self,
        name: &str,
        task: Task,
        engine: Option<Engine>,
    ) -> Result<ResolvedModel, ModelError> {
        match name {
            "" | "auto" => self.resolve_default(task, engine),
            _ if name.contains('/') => self.resolve_path(&self.in_folders(expand_home(name)), task),
            _ => self.resolve_name(name, task),
        }
    }

    /// The first file of that name in the search folders, unchecked; rather one whose companions lie beside it.
    pub fn locate(&self, entry: &Entry) -> Option<PathBuf> {
        let folders = self.places.folders().into_iter();
        let mut here = folders.filter(|folder| folder.join(&entry.file).is_file());
        let first = here.next()?;
        let is_whole = |folder: &PathBuf| {
            let mut companions = entry.companions.iter();
            companions.all(|other| folder.join(&other.file).is_file())
        };
        let folder = match is_whole(&first) {
            true => first,
            false => here.find(is_whole).unwrap_or(first),
        };
        Some(folder.join(&entry.file))
    }

    /// The descriptions that lie beside model files in the search folders.
    pub fn sidecars(&self) -> Vec<(PathBuf, Entry)> {
        let mut found = Vec::new();
        for folder in self.places.folders() {
            let Ok(listing) = fs::read_dir(&folder) else {
                continue;
            };
            let mut files: Vec<PathBuf> = listing
                .flatten()
                .map(|item| item.path())
                .filter(|path| path.extension().is_some_and(|e| e == "toml"))
                .collect();
            files.sort();
            for file in files.iter().map(|sidecar| sidecar.with_extension("")) {
                // A broken description is reported to whoever uses its model, not to all others.
                if let Ok(Some(entry)) = self.sidecar(&file, None) {
                    found.push((file, entry));
                }
            }
        }
        found
    }

    fn resolve_default(
        &self,
        task: Task,
        engine: Option<Engine>,
    ) -> Result<ResolvedModel, ModelError> {
        let preferred = self.manifest.preferred(task);
        let mut entries = preferred
            .iter()
            .filter_map(|id| self.manifest.find(id))
            .filter(|entry| engine.is_none_or(|engine| entry.engine == engine));
        let by_default = |entry: &&Entry| self.manifest.default_set.contains(&entry.id);
        let easiest = entries.clone().find(by_default);
        let last_resort = easiest.or_else(|| entries.clone().next_back());
        if let Some(entry) = entries.find(|entry| self.locate(entry).is_some()) {
            return self.resolve_entry(entry);
        }
        match last_resort {
            // One of the default set is the easiest to get, or else the last one.
            Some(entry) => self.resolve_entry(entry),
            None => Err(ModelError::Unknown {
                name: format!("auto ({task})"),
                nearest: Vec::new(),
            }),
        }
    }

    fn resolve_name(&self, name: &str, task: Task) -> Result<ResolvedModel, ModelError> {
        let here = Path::new(name);
        if here.extension().is_some_and(|e| e == "bin" || e == "onnx") && here.is_file() {
            return self.resolve_path(here, task);
        }
        if let Some(entry) = self.manifest.find(name) {
            check_task(entry, task)?;
            return self.resolve_entry(entry);
        }
        if let Some((path, entry)) = self
            .sidecars()
            .into_iter()
            .find(|(_, entry)| entry.names().contains(&name))
        {
            check_task(&entry, task)?;
            return self.check(path, entry);
        }
        let files = [name.to_owned(), format!("ggml-{name}.bin")];
        let in_folders = self
            .places
            .folders()
            .into_iter()
            .flat_map(|folder| files.clone().map(|file| folder.join(file)));
        if let Some(path) = in_folders.into_iter().find(|path| path.is_file()) {
            return self.resolve_path(&path, task);
        }
        if here.exists() {
            return self.resolve_path(here, task);
        }
        Err(ModelError::Unknown {
            name: name.into(),
            nearest: self.manifest.nearest(name, Some(task)),
        })
    }

    fn resolve_entry(&self, entry: &Entry) -> Result<ResolvedModel, ModelError> {
        match self.locate(entry) {
            Some(path) => self.check(path, entry.clone()),
            None => Err(ModelError::Missing {
                id: entry.id.clone(),
                present: self.other_precisions(entry),
                folders: self.places.folders(),
            }),
        }
    }

    /// A folder that is not here and is in one of the folders of models: `onnx-community/whisper-base`, as it is fetched.
    fn in_folders(&self, path: PathBuf) -> PathBuf {
        if path.is_absolute() || path.exists() {
            return path;
        }
        let folders = self.places.folders().into_iter();
        let mut found = folders.map(|folder| folder.join(&path));
        found.find(|folder| folder.exists()).unwrap_or(path)
    }

    fn resolve_path(&self, path: &Path, task: Task) -> Result<ResolvedModel, ModelError> {
        if task == Task::Asr {
            let export = Export::find(path).map_err(|why| ModelError::Incomplete {
                path: path.into(),
                why,
            })?;
            if let Some(export) = export {
                return Ok(ResolvedModel {
                    path: export.encoder.clone(),
                    companions: Vec::new(),
                    entry: None,
                    id: export.id(),
                    export: Some(export),
                });
            }
        }
        let size_bytes = file_size(path, None)?;
        if let Some(entry) = self.sidecar(path, Some(task))? {
            check_task(&entry, task)?;
            return self.check(path.into(), entry);
        }
        // A known model under any name. Only a file of the right length can be one, so that a
        // large unknown file is not read for nothing.
        let mut alike = self
            .manifest
            .entries
            .iter()
            .filter(|entry| entry.size_bytes == size_bytes)
            .peekable();
        if alike.peek().is_some() {
            let digest = self
                .digests
                .sha256(path)
                .map_err(|err| ModelError::read(path, err))?;
            if let Some(entry) = alike.find(|entry| entry.sha256 == digest) {
                check_task(entry, task)?;
                return self.check(path.into(), entry.clone());
            }
        }
        let id = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        Ok(ResolvedModel {
            path: path.into(),
            companions: Vec::new(),
            entry: None,
            id,
            export: None,
        })
    }

    /// The same Whisper model in other precisions, as far as they are here.
    fn other_precisions(&self, entry: &Entry) -> Vec<String> {
        if entry.task != Task::Asr {
            return Vec::new();
        }
        let same = |other: &&Entry| {
            without_precision(&other.id) == without_precision(&entry.id) && other.id != entry.id
        };
        let here = self
            .manifest
            .entries
            .iter()
            .filter(same)
            .filter(|other| self.locate(other).is_some());
        here.map(|other| other.id.clone()).collect()
    }

    fn check(&self, path: PathBuf, entry: Entry) -> Result<ResolvedModel, ModelError> {
        self.check_file(&path, &entry.id, entry.size_bytes, &entry.sha256)?;
        let mut companions = Vec::with_capacity(entry.companions.len());
        for other in &entry.companions {
            let path = path.with_file_name(&other.file);
            if !path.exists() {
                return Err(ModelError::MissingCompanion { path, id: entry.id });
            }
            self.check_file(&path, &entry.id, other.size_bytes, &other.sha256)?;
            companions.push(path);
        }
        Ok(ResolvedModel {
            path,
            companions,
            id: entry.id.clone(),
            entry: Some(entry),
            export: None,
        })
    }

    fn check_file(
        &self,
        path: &Path,
        id: &str,
        expected_bytes: u64,
        sha256: &str,
    ) -> Result<(), ModelError> {
        let actual_bytes = file_size(path, Some(id))?;
        if actual_bytes != expected_bytes {
            return Err(ModelError::WrongSize {
                path: path.into(),
                id: id.into(),
                expected_bytes,
                actual_bytes,
            });
        }
        let actual = self
            .digests
            .sha256(path)
            .map_err(|err| ModelError::read(path, err))?;
        if actual != sha256 {
            return Err(ModelError::WrongDigest {
                path: path.into(),
                id: id.into(),
                expected: sha256.into(),
                actual,
            });
        }
        Ok(())
    }

    /// What `FILE.toml` says of the model `FILE`, if both are there. What it leaves out is taken
    /// from the file itself; the task from `task`.
    fn sidecar(&self, model: &Path, task: Option<Task>) -> Result<Option<Entry>, ModelError> {
        let mut name = model.as_os_str().to_owned();
        name.push(".toml");
        let sidecar = PathBuf::from(name);
        let fits = fs::metadata(&sidecar)
            .is_ok_and(|meta| meta.is_file() && meta.len() <= SIDECAR_BYTES_MAX);
        if !fits || !model.is_file() {
            return Ok(None);
        }
        let wrong = |reason: String| ModelError::Manifest {
            origin: sidecar.display().to_string(),
            reason,
        };
        let text = fs::read_to_string(&sidecar).map_err(|err| ModelError::read(&sidecar, err))?;
        let mut table: toml::Table = text
            .parse()
            .map_err(|err: toml::de::Error| wrong(err.to_string().trim_end().into()))?;
        self.fill_in(&mut table, model, task)?;
        parse::entry(table).map(Some).map_err(wrong)
    }

    fn fill_in(
        &self,
        table: &mut toml::Table,
        model: &Path,
        task: Option<Task>,
    ) -> Result<(), ModelError> {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|p| p.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let mut add = |key: &str, value: toml::Value| {
            table.entry(key).or_insert(value);
        };
        add(
            "id",
            text(model.file_stem()).trim_start_matches("ggml-").into(),
        );
        add("file", text(model.file_name()).into());
        if let Some(task) = task {
            add("task", task.word().into());
        }
        let onnx = model.extension().is_some_and(|e| e == "onnx");
        add(
            "engine",
            if onnx { "onnxruntime" } else { "whisper.cpp" }.into(),
        );
        let size_bytes = file_size(model, None)?;
        add(
            "size",
            toml::Value::Integer(i64::try_from(size_bytes).unwrap_or(i64::MAX)),
        );
        if !table.contains_key("sha256") {
            let digest = self
                .digests
                .sha256(model)
                .map_err(|err| ModelError::read(model, err))?;
            table.insert("sha256".into(), digest.into());
        }
        Ok(())
    }
}

fn check_task(entry: &Entry, wanted: Task) -> Result<(), ModelError> {
    if entry.task == wanted {
        return Ok(());
    }
    Err(ModelError::WrongTask {
        id: entry.id.clone(),
        actual: entry.task,
        wanted,
    })
}

/// Length of a file that is there, is a file and is not empty.
fn file_size(path: &Path, id: Option<&str>) -> Result<u64, ModelError> {
    let meta = fs::metadata(path).map_err(|err| ModelError::read(path, err))?;
    if meta.is_dir() {
        return Err(ModelError::Directory { path: path.into() });
    }
    if meta.len() == 0 {
        return Err(ModelError::Empty {
            path: path.into(),
            id: id.map(str::to_owned),
        });
    }
    Ok(meta.len())
}

fn without_precision(id: &str) -> &str {
    ["-f16", "-q5_0", "-q5_1", "-q8_0", "-int8", "-f32"]
        .iter()
        .find_map(|end| id.strip_suffix(end))
        .unwrap_or(id)
}

/// A leading `~/` is the home folder: a shell leaves it alone in `model=~/m.bin`.
fn expand_home(name: &str) -> PathBuf {
    match (name.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests;
