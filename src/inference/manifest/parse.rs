// SPDX-License-Identifier: MPL-2.0
//! From a manifest's text to [`Entry`] values. Nothing is taken on trust: file names stay within
//! their folder, digests have their form, names are unique.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::is_sha256;
use super::{
    Companion, Contract, Engine, Entry, GraphType, Library, Package, Runtime, Source, Take, Task,
    WeightType,
};

/// The version of the manifest's form that this code reads.
const SCHEMA: u32 = 1;

/// One manifest file, checked.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) default_asr: Option<String>,
    pub(super) default_set: Vec<String>,
    pub(super) preferred: BTreeMap<Task, Vec<String>>,
    pub(super) runtimes: Vec<Runtime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    schema: u32,
    default_asr: Option<String>,
    #[serde(default)]
    default_set: Vec<String>,
    #[serde(default)]
    preferred: BTreeMap<Task, Vec<String>>,
    #[serde(default)]
    package: BTreeMap<String, RawPackage>,
    #[serde(default)]
    runtime: Vec<RawRuntime>,
    #[serde(default)]
    family: BTreeMap<String, toml::Table>,
    #[serde(default)]
    model: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPackage {
    name: Option<String>,
    version: String,
    file: String,
    size: u64,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRuntime {
    arch: String,
    provider: Option<String>,
    package: String,
    path: String,
    file: String,
    soname: String,
    size: u64,
    sha256: String,
    #[serde(default)]
    libraries: Vec<RawLibrary>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLibrary {
    package: String,
    path: String,
    file: String,
    size: u64,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    id: String,
    task: Task,
    engine: Engine,
    file: String,
    size: u64,
    sha256: String,
    #[serde(default)]
    companions: Vec<Companion>,
    sha1: Option<String>,
    #[serde(default)]
    licence: String,
    #[serde(default)]
    attribution: String,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    sources: Vec<RawSource>,
    #[serde(default)]
    contract: Contract,
    #[serde(default)]
    threshold: toml::Table,
    #[serde(default)]
    cost: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    url: Option<String>,
    pypi: Option<String>,
    path: Option<String>,
    make: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Reads a manifest. The error is a sentence about what is wrong in it.
pub(super) fn manifest(text: &str) -> Result<Parsed, String> {
    let raw: RawManifest =
        toml::from_str(text).map_err(|err| err.to_string().trim_end().to_owned())?;
    if raw.schema != SCHEMA {
        return Err(format!(
            "schema {} is not known, this version reads schema {SCHEMA}",
            raw.schema
        ));
    }
    let packages = raw
        .package
        .into_iter()
        .map(|(key, package)| Ok((key.clone(), package.check(&key)?)))
        .collect::<Result<BTreeMap<_, _>, String>>()?;
    let mut parsed = Parsed {
        default_asr: raw.default_asr,
        default_set: raw.default_set,
        preferred: raw.preferred,
        ..Parsed::default()
    };
    for table in raw.model {
        parsed
            .entries
            .push(entry_of_family(table, &raw.family, &packages)?);
    }
    for runtime in raw.runtime {
        parsed.runtimes.push(runtime.check(&packages)?);
    }
    Ok(parsed)
}

/// Reads one entry that stands alone, as beside a model file.
pub(super) fn entry(table: toml::Table) -> Result<Entry, String> {
    check_entry(table, &BTreeMap::new())
}

fn entry_of_family(
    mut table: toml::Table,
    families: &BTreeMap<String, toml::Table>,
    packages: &BTreeMap<String, Package>,
) -> Result<Entry, String> {
    if let Some(name) = table.remove("family") {
        let name = name.as_str().ok_or("family is not a text")?;
        let family = families
            .get(name)
            .ok_or_else(|| format!("there is no family {name}"))?;
        inherit(&mut table, family);
    }
    check_entry(table, packages)
}

/// Adds what `table` lacks from `family`, and the same within tables of one name.
fn inherit(table: &mut toml::Table, family: &toml::Table) {
    for (key, value) in family {
        match (table.get_mut(key), value) {
            (None, _) => {
                table.insert(key.clone(), value.clone());
            }
            (Some(toml::Value::Table(own)), toml::Value::Table(inherited)) => {
                inherit(own, inherited)
            }
            (Some(_), _) => {}
        }
    }
}

fn check_entry(table: toml::Table, packages: &BTreeMap<String, Package>) -> Result<Entry, String> {
    let label = table
        .get("id")
        .and_then(toml::Value::as_str)
        .unwrap_or("an entry without id")
        .to_owned();
    let raw: RawEntry = table
        .try_into()
        .map_err(|err| format!("{label}: {}", err.to_string().trim_end()))?;
    let named = |reason: String| format!("{label}: {reason}");
    for name in std::iter::once(&raw.id).chain(&raw.aliases) {
        check_name(name).map_err(named)?;
    }
    check_file(&raw.file, raw.size, &raw.sha256).map_err(named)?;
    for Companion {
        file,
        size_bytes,
        sha256,
    } in &raw.companions
    {
        check_file(file, *size_bytes, sha256).map_err(named)?;
    }
    let files = 1 + raw.companions.len();
    let sources = raw
        .sources
        .into_iter()
        .map(|source| source.check(files, packages))
        .collect::<Result<_, _>>();
    Ok(Entry {
        id: raw.id,
        task: raw.task,
        engine: raw.engine,
        size_bytes: raw.size,
        sha256: raw.sha256,
        companions: raw.companions,
        sha1: raw.sha1,
        licence: raw.licence,
        attribution: raw.attribution,
        aliases: raw.aliases,
        sources: sources.map_err(named)?,
        contract: raw.contract,
        threshold: raw.threshold,
        cost: raw.cost,
        file: raw.file,
    })
}

impl RawSource {
    /// - `files`: how many files the model has.
    fn check(self, files: usize, packages: &BTreeMap<String, Package>) -> Result<Source, String> {
        let names_each = |place: &str| {
            if files == 1 || place.contains("{file}") {
                return Ok(());
            }
            Err(format!(
                "{place} is one file and the model has {files}: {{file}} stands for each one's name"
            ))
        };
        let key = match (self.url, self.pypi) {
            (Some(url), None) if url.starts_with("https://") || url.starts_with("http://") => {
                names_each(&url)?;
                return Ok(Source::Url(url));
            }
            (Some(url), None) => return Err(format!("{url} is no http or https address")),
            (None, Some(key)) => key,
            _ => return Err("a source has either url or pypi".into()),
        };
        let package = packages
            .get(&key)
            .ok_or_else(|| format!("there is no package {key}"))?
            .clone();
        let makes = |made: usize| {
            if files == made {
                return Ok(());
            }
            Err(format!(
                "the source {key} makes {made} files, and the model has {files} with its companions"
            ))
        };
        let take = match (self.path, self.make.as_deref(), self.kind.as_deref()) {
            (Some(path), None, None) => {
                names_each(&path)?;
                Take::Member(path)
            }
            (None, Some("ct2-to-ggml"), Some(kind @ ("f16" | "q8_0" | "q5_1"))) => {
                makes(1)?;
                Take::Ct2ToGgml(match kind {
                    "f16" => WeightType::F16,
                    "q8_0" => WeightType::Q8_0,
                    _ => WeightType::Q5_1,
                })
            }
            (None, Some("ct2-to-onnx"), kind @ (None | Some("int8" | "f16" | "f32"))) => {
                makes(2)?;
                Take::Ct2ToOnnx(match kind {
                    Some("f16") => GraphType::F16,
                    Some("f32") => GraphType::F32,
                    _ => GraphType::Int8,
                })
            }
            (None, Some("resemblyzer-to-onnx"), None) => {
                makes(1)?;
                Take::ResemblyzerToOnnx
            }
            (None, Some("silero-to-rows"), None) => {
                makes(1)?;
                Take::SileroToRows
            }
            _ => {
                return Err(format!(
                    "the source {key} has neither a path nor a known make with its type"
                ));
            }
        };
        Ok(Source::Package { package, take })
    }
}

impl RawPackage {
    fn check(self, key: &str) -> Result<Package, String> {
        check_file(&self.file, self.size, &self.sha256)
            .map_err(|reason| format!("package {key}: {reason}"))?;
        let name = self.name.unwrap_or_else(|| key.to_owned());
        let Self {
            version,
            file,
            size,
            sha256,
            ..
        } = self;
        Ok(Package {
            name,
            version,
            file,
            size_bytes: size,
            sha256,
        })
    }
}

impl RawRuntime {
    fn check(self, packages: &BTreeMap<String, Package>) -> Result<Runtime, String> {
        check_plain(&self.soname)?;
        let library = RawLibrary {
            package: self.package,
            path: self.path,
            file: self.file,
            size: self.size,
            sha256: self.sha256,
        };
        let libraries = self.libraries.into_iter();
        Ok(Runtime {
            arch: self.arch,
            provider: self.provider,
            library: library.check(packages)?,
            soname: self.soname,
            libraries: libraries
                .map(|l| l.check(packages))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl RawLibrary {
    fn check(self, packages: &BTreeMap<String, Package>) -> Result<Library, String> {
        check_file(&self.file, self.size, &self.sha256)?;
        let package = packages
            .get(&self.package)
            .ok_or_else(|| format!("there is no package {}", self.package))?;
        Ok(Library {
            package: package.clone(),
            member: self.path,
            file: self.file,
            size_bytes: self.size,
            sha256: self.sha256,
        })
    }
}

fn check_file(file: &str, size: u64, sha256: &str) -> Result<(), String> {
    check_plain(file)?;
    if size == 0 {
        return Err(format!("{file} has a size of 0"));
    }
    if !is_sha256(sha256) {
        return Err(format!("'{sha256}' is no SHA-256 in lower-case hex"));
    }
    Ok(())
}

/// A name that stays in its folder and is not hidden.
fn check_plain(file: &str) -> Result<(), String> {
    let fits =
        !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', '\0', '\n']);
    if fits {
        Ok(())
    } else {
        Err(format!("'{file}' is no plain file name"))
    }
}

/// A name that a person can type and that cannot be taken for a path or an option.
fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(format!(
        "'{name}' is no name: letters, digits and . _ + - are, after a letter or digit"
    ))
}
