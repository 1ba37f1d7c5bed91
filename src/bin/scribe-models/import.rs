// SPDX-License-Identifier: MPL-2.0
//! `scribe-models import`: a model that no manifest knows goes into the folder of models, converted
//! if need be, with a description beside it that says what it is.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{Catalog, Entry, Task, WeightType, sha256_file};

use crate::convert::{ConvertError, ggml};
use crate::failure::{Failure, Trouble};
use crate::fetch::{ggml_from_archive, ggml_from_folder};
use crate::settings;
use crate::store::{self, Expected, Lock};

/// What the command line says of the new model.
pub struct Wanted {
    /// Its name.
    pub name: Option<String>,
    /// How a converted model stores its matrices.
    pub weights: WeightType,
    /// What it does.
    pub task: Option<Task>,
    /// The licence of its weights.
    pub licence: Option<String>,
}

/// What a file or folder holds, by its first bytes.
enum Kind {
    Ct2Folder,
    Archive,
    Ggml,
    Onnx,
}

/// Takes a model into the folder of models.
pub fn import(
    catalog: &Catalog,
    source: &Path,
    wanted: Wanted,
    dir: Option<PathBuf>,
) -> Result<(), Failure> {
    let dir = settings::target_dir(catalog, dir)?;
    let kind = kind(source)?;
    if let Some(entry) = known(catalog, source, &kind)? {
        return take_known(entry, source, &dir);
    }
    let name = match &wanted.name {
        Some(name) => name.clone(),
        None => default_name(source),
    };
    check_name(catalog, &name)?;
    let model = New::plan(&kind, name, &wanted)?;
    let place = dir.join(&model.file);
    if place.exists() {
        return Err(Failure::Input(format!(
            "{} is there already: remove it, or give another name with --name",
            place.display()
        )));
    }
    let work = settings::work_dir(&dir);
    let lock = Lock::wait(&work, &model.file)?;
    let part = work.join(format!("{}.part", model.file));
    let made = make(&kind, source, &work, &part, wanted.weights).and_then(|()| {
        let description = write_description(&model, &part, &place)?;
        store::put_in_place(&part, &place).inspect_err(|_| store::remove(&description))
    });
    store::remove(&part);
    drop(lock);
    let _ = fs::remove_dir(&work);
    made?;
    crate::answer(format_args!("{}  {}", model.id, place.display()));
    Ok(())
}

/// Names and words for a new model.
struct New {
    id: String,
    file: String,
    task: Task,
    engine: &'static str,
    licence: String,
}

impl New {
    fn plan(kind: &Kind, name: String, wanted: &Wanted) -> Result<Self, Failure> {
        let licence = wanted
            .licence
            .clone()
            .unwrap_or_else(|| "not stated".into());
        let stem = match (kind, wanted.weights) {
            (Kind::Ct2Folder | Kind::Archive, weights) if weights != WeightType::F16 => {
                format!("{name}-{}", weights.word())
            }
            _ => name,
        };
        let (task, engine, file) = match kind {
            Kind::Onnx => {
                let no_task = || {
                    Failure::Usage("an ONNX file does not say what it does: say it with --task vad, segmentation or embedding".into())
                };
                (
                    wanted.task.ok_or_else(no_task)?,
                    "onnxruntime",
                    format!("{stem}.onnx"),
                )
            }
            _ if wanted.task.is_some_and(|task| task != Task::Asr) => {
                return Err(Failure::Usage(
                    "this is a Whisper model, and its task is asr".into(),
                ));
            }
            _ => (Task::Asr, "whisper.cpp", format!("ggml-{stem}.bin")),
        };
        Ok(Self {
            id: stem,
            file,
            task,
            engine,
            licence,
        })
    }
}

fn kind(source: &Path) -> Result<Kind, Failure> {
    if source.is_dir() {
        if source.join("model.bin").is_file() {
            return Ok(Kind::Ct2Folder);
        }
        return Err(Failure::Input(format!(
            "{} has no model.bin: a CTranslate2 model's folder does",
            source.display()
        )));
    }
    let mut start = Vec::new();
    let read = File::open(source).and_then(|file| file.take(4).read_to_end(&mut start));
    read.map_err(|err| Failure::file("read", source, err))?;
    match start.as_slice() {
        [] => Err(Failure::Input(format!("{} is empty", source.display()))),
        b"lmgg" => Ok(Kind::Ggml),
        b"PK\x03\x04" => Ok(Kind::Archive),
        // The first field of an ONNX file is the version of its form, a small number.
        [0x08, version @ 1..=0x7f, ..] if *version < 64 => Ok(Kind::Onnx),
        b"GGUF" => Err(Failure::Input(format!(
            "{} is a GGUF file: whisper.cpp wants a ggml one",
            source.display()
        ))),
        _ => Err(Failure::Input(format!(
            "{} is neither a ggml nor an ONNX file nor an archive with a CTranslate2 model",
            source.display()
        ))),
    }
}

/// The model of the manifest that a file is, if it is one.
fn known<'a>(
    catalog: &'a Catalog,
    source: &Path,
    kind: &Kind,
) -> Result<Option<&'a Entry>, Failure> {
    if matches!(kind, Kind::Ct2Folder | Kind::Archive) {
        return Ok(None);
    }
    let unreadable = |err| Failure::file("read", source, err);
    let size = fs::metadata(source).map_err(unreadable)?.len();
    let mut alike = catalog
        .manifest()
        .entries()
        .iter()
        .filter(|entry| entry.size_bytes == size)
        .peekable();
    if alike.peek().is_none() {
        return Ok(None);
    }
    let digest = sha256_file(source).map_err(unreadable)?;
    Ok(alike.find(|entry| entry.sha256 == digest))
}

fn take_known(entry: &Entry, source: &Path, dir: &Path) -> Result<(), Failure> {
    let work = settings::work_dir(dir);
    let place = dir.join(&entry.file);
    let expected = Expected {
        name: &entry.file,
        size_bytes: entry.size_bytes,
        sha256: &entry.sha256,
    };
    if !expected.is_at(&place)? {
        let _lock = Lock::wait(&work, &entry.file)?;
        let part = work.join(format!("{}.part", entry.file));
        if let Some(difference) = store::copy_checked(source, &part, &expected)? {
            return Err(Failure::Input(format!(
                "{} changed while it was copied: {difference}",
                source.display()
            )));
        }
        store::put_in_place(&part, &place)?;
    }
    let _ = fs::remove_dir(&work);
    crate::answer(format_args!("{}  {}", entry.id, place.display()));
    Ok(())
}

/// The file's name without `ggml-` and its ending, or the folder's.
fn default_name(source: &Path) -> String {
    let full = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let name = if full.is_dir() {
        full.file_name()
    } else {
        full.file_stem()
    };
    let name = name.unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix("ggml-").unwrap_or(&name);
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._+-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect()
}

fn check_name(catalog: &Catalog, name: &str) -> Result<(), Failure> {
    let is_plain = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c));
    if !is_plain {
        return Err(Failure::Usage(format!(
            "'{name}' is no name: letters, digits and . _ + - are, after a letter or digit"
        )));
    }
    match catalog.manifest().find(name) {
        Some(entry) => Err(Failure::Usage(format!(
            "{name} is a name of {}, and this is another file: give one with --name",
            entry.id
        ))),
        None => Ok(()),
    }
}

fn make(
    kind: &Kind,
    source: &Path,
    work: &Path,
    part: &Path,
    weights: WeightType,
) -> Result<(), Failure> {
    let wrong = |err: ConvertError| match err {
        ConvertError::Input(reason) => Failure::Input(format!("{}: {reason}", source.display())),
        ConvertError::File(err) => Failure::file("read", source, err),
    };
    let converted = match kind {
        Kind::Ct2Folder => ggml_from_folder(source, part, weights),
        Kind::Archive => ggml_from_archive(source, work, part, weights),
        Kind::Ggml | Kind::Onnx => {
            if matches!(kind, Kind::Ggml) {
                ggml::inspect(source).map_err(wrong)?;
            }
            fs::copy(source, part).map_err(|err| Failure::file("copy to", part, err))?;
            Ok(())
        }
    };
    converted.map_err(|trouble| match trouble {
        Trouble::Source(reason) => Failure::Input(format!("{}: {reason}", source.display())),
        Trouble::Local(failure) => failure,
    })
}

/// Writes `FILE.toml` and returns its path: from then on the model has a name, a licence and a digest to be verified by.
fn write_description(model: &New, part: &Path, place: &Path) -> Result<PathBuf, Failure> {
    let unreadable = |err| Failure::file("read", part, err);
    let size = fs::metadata(part).map_err(unreadable)?.len();
    let sha256 = sha256_file(part).map_err(unreadable)?;
    // A text in JSON's quotes is one in TOML's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let New {
        id,
        file,
        task,
        engine,
        licence,
    } = model;
    let text = format!(
        "# Written by scribe-models import. docs/models.md lists what may be added.\n\
         id = {}\ntask = \"{}\"\nengine = \"{engine}\"\nfile = {}\nsize = {size}\nsha256 = \"{sha256}\"\nlicence = {}\n",
        quoted(id),
        task.word(),
        quoted(file),
        quoted(licence),
    );
    let mut description = place.as_os_str().to_owned();
    description.push(".toml");
    let description = PathBuf::from(description);
    fs::write(&description, text).map_err(|err| Failure::file("write", &description, err))?;
    Ok(description)
}
