// SPDX-License-Identifier: MPL-2.0
//! `scribe-models import`: a model that no manifest knows goes into the folder of models, converted
//! if need be, with a description beside it that says what it is.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{Catalog, Entry, GraphType, Task, WeightType, sha256_file};

use crate::convert::{ConvertError, ggml, safetensors, whisper_onnx};
use crate::failure::{Failure, Trouble};
use crate::fetch::{
    ggml_from_archive, ggml_from_folder, ggml_from_safetensors, graphs_from, graphs_from_archive,
    graphs_from_folder,
};
use crate::settings;
use crate::store::{self, Expected, Lock};

/// What the command line says of the new model.
pub struct Wanted {
    /// Its name.
    pub name: Option<String>,
    /// What a Whisper model becomes.
    pub form: Form,
    /// What it does.
    pub task: Option<Task>,
    /// The licence of its weights.
    pub licence: Option<String>,
}

/// What a Whisper model becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A ggml file with weights of this type; one that is a ggml file stays as it is.
    Ggml(WeightType),
    /// Two ONNX graphs.
    Onnx(GraphType),
}

/// What a file or folder holds, by its first bytes.
#[derive(Clone, Copy)]
enum Kind {
    Ct2Folder,
    Safetensors,
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
    let becomes_graphs = matches!((kind, wanted.form), (Kind::Ggml, Form::Onnx(_)));
    if !becomes_graphs && let Some(entry) = known(catalog, source, kind)? {
        return take_known(entry, source, &dir);
    }
    let name = match &wanted.name {
        Some(name) => name.clone(),
        None => default_name(source),
    };
    check_name(&name)?;
    let model = New::plan(kind, name, &wanted)?;
    if let Some(entry) = catalog.manifest().find(&model.id) {
        return Err(Failure::Usage(format!(
            "{} is a name of {}, and this is another file: give one with --name",
            model.id, entry.id
        )));
    }
    let places: Vec<PathBuf> = model.files.iter().map(|file| dir.join(file)).collect();
    if let Some(place) = places.iter().find(|place| place.exists()) {
        return Err(Failure::Input(format!(
            "{} is there already: remove it, or give another name with --name",
            place.display()
        )));
    }
    let place = &places[0];
    let work = settings::work_dir(&dir);
    let lock = Lock::wait(&work, &model.files[0])?;
    let part = |file: &String| work.join(format!("{file}.part"));
    let parts: Vec<PathBuf> = model.files.iter().map(part).collect();
    let made = make(kind, source, &work, &parts, wanted.form).and_then(|()| {
        let description = write_description(&model, &parts, place)?;
        // The first file comes last: where it is, the others are.
        let mut files = parts.iter().zip(&places).rev();
        files
            .try_for_each(|(part, place)| store::put_in_place(part, place))
            .inspect_err(|_| store::remove(&description))
    });
    parts.iter().for_each(|part| store::remove(part));
    drop(lock);
    let _ = fs::remove_dir(&work);
    made?;
    crate::answer(format_args!("{}  {}", model.id, place.display()));
    Ok(())
}

/// Names and words for a new model.
struct New {
    id: String,
    /// Its own file first.
    files: Vec<String>,
    task: Task,
    engine: &'static str,
    licence: String,
}

impl New {
    fn plan(kind: Kind, name: String, wanted: &Wanted) -> Result<Self, Failure> {
        let licence = wanted
            .licence
            .clone()
            .unwrap_or_else(|| "not stated".into());
        let stem = match (kind, wanted.form) {
            (Kind::Ct2Folder | Kind::Safetensors | Kind::Archive, Form::Ggml(weights))
                if weights != WeightType::F16 =>
            {
                format!("{name}-{}", weights.word())
            }
            (Kind::Onnx, Form::Onnx(_)) => name,
            (_, Form::Onnx(graphs)) => format!("{name}-onnx-{}", graphs.word()),
            _ => name,
        };
        let speech_only = || match wanted.task {
            Some(task) if task != Task::Asr => Err(Failure::Usage(
                "this is a Whisper model, and its task is asr".into(),
            )),
            _ => Ok(Task::Asr),
        };
        let (task, engine, files) = match (kind, wanted.form) {
            (Kind::Onnx, _) => {
                let no_task = || {
                    Failure::Usage("an ONNX file does not say what it does: say it with --task vad, segmentation or embedding".into())
                };
                (
                    wanted.task.ok_or_else(no_task)?,
                    "onnxruntime",
                    vec![format!("{stem}.onnx")],
                )
            }
            (_, Form::Onnx(_)) => (
                speech_only()?,
                "onnxruntime",
                ["encoder", "decoder"]
                    .map(|side| format!("{stem}.{side}.onnx"))
                    .into(),
            ),
            _ => (
                speech_only()?,
                "whisper.cpp",
                vec![format!("ggml-{stem}.bin")],
            ),
        };
        Ok(Self {
            id: stem,
            files,
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
        if safetensors::is_in(source) {
            return Ok(Kind::Safetensors);
        }
        return Err(Failure::Input(format!(
            "{} has neither model.bin, as a CTranslate2 model's folder has, nor {}, as one of transformers",
            source.display(),
            safetensors::WHOLE
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
    kind: Kind,
) -> Result<Option<&'a Entry>, Failure> {
    if matches!(kind, Kind::Ct2Folder | Kind::Safetensors | Kind::Archive) {
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
    let files = Expected::files_of(entry);
    let lock = Lock::wait(&work, &entry.file)?;
    // The first file comes last: where it is, the others are.
    for (n, file) in files.iter().enumerate().rev() {
        let place = dir.join(file.name);
        if file.is_at(&place)? {
            continue;
        }
        let source = match n {
            0 => source.to_owned(),
            _ => source.with_file_name(file.name),
        };
        if !source.is_file() {
            return Err(Failure::Input(format!(
                "this is one of the {} files of {}, and {} is missing",
                files.len(),
                entry.id,
                source.display()
            )));
        }
        let part = work.join(format!("{}.part", file.name));
        if let Some(difference) = store::copy_checked(&source, &part, file)? {
            return Err(Failure::Input(format!(
                "{} is not the file of {}, or changed while it was copied: {difference}",
                source.display(),
                entry.id
            )));
        }
        store::put_in_place(&part, &place)?;
    }
    drop(lock);
    let _ = fs::remove_dir(&work);
    let place = dir.join(&entry.file);
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

fn check_name(name: &str) -> Result<(), Failure> {
    let is_plain = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c));
    match is_plain {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "'{name}' is no name: letters, digits and . _ + - are, after a letter or digit"
        ))),
    }
}

/// - `parts`: one path for each file of the model.
fn make(
    kind: Kind,
    source: &Path,
    work: &Path,
    parts: &[PathBuf],
    form: Form,
) -> Result<(), Failure> {
    let wrong = |err: ConvertError| match err {
        ConvertError::Input(reason) => Failure::Input(format!("{}: {reason}", source.display())),
        ConvertError::File(err) => Failure::file("read", source, err),
    };
    let part = &parts[0];
    let converted = match (kind, form) {
        (Kind::Ct2Folder, Form::Ggml(weights)) => ggml_from_folder(source, part, weights),
        (Kind::Archive, Form::Ggml(weights)) => ggml_from_archive(source, work, part, weights),
        (Kind::Ct2Folder, Form::Onnx(graphs)) => {
            graphs_from_folder(source, [part, &parts[1]], graphs)
        }
        (Kind::Archive, Form::Onnx(graphs)) => {
            graphs_from_archive(source, work, [part, &parts[1]], graphs)
        }
        (Kind::Ggml, Form::Onnx(graphs)) => {
            graphs_from(source, [part, &parts[1]], graphs, whisper_onnx::from_ggml)
        }
        (Kind::Safetensors, Form::Onnx(graphs)) => graphs_from(
            source,
            [part, &parts[1]],
            graphs,
            whisper_onnx::from_safetensors,
        ),
        (Kind::Safetensors, Form::Ggml(weights)) => ggml_from_safetensors(source, part, weights),
        (Kind::Ggml | Kind::Onnx, _) => {
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
fn write_description(model: &New, parts: &[PathBuf], place: &Path) -> Result<PathBuf, Failure> {
    let measured = |part: &PathBuf| -> Result<(u64, String), Failure> {
        let unreadable = |err| Failure::file("read", part, err);
        let size = fs::metadata(part).map_err(unreadable)?.len();
        Ok((size, sha256_file(part).map_err(unreadable)?))
    };
    // A text in JSON's quotes is one in TOML's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let New {
        id,
        files,
        task,
        engine,
        licence,
    } = model;
    let (size, sha256) = measured(&parts[0])?;
    let mut text = format!(
        "# Written by scribe-models import. docs/models.md lists what may be added.\n\
         id = {}\ntask = \"{}\"\nengine = \"{engine}\"\nfile = {}\nsize = {size}\nsha256 = \"{sha256}\"\nlicence = {}\n",
        quoted(id),
        task.word(),
        quoted(&files[0]),
        quoted(licence),
    );
    for (file, part) in files.iter().zip(parts).skip(1) {
        let (size, sha256) = measured(part)?;
        text += &format!(
            "\n[[companions]]\nfile = {}\nsize = {size}\nsha256 = \"{sha256}\"\n",
            quoted(file)
        );
    }
    let mut description = place.as_os_str().to_owned();
    description.push(".toml");
    let description = PathBuf::from(description);
    fs::write(&description, text).map_err(|err| Failure::file("write", &description, err))?;
    Ok(description)
}
