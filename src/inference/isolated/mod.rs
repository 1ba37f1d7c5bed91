// SPDX-License-Identifier: MPL-2.0
//! Speech models in a process of their own, `scribe-worker`, which may die at any moment: it is started again, the
//! windows in work are done once more, and whoever asked sees nothing but a delay.
//!
//! One worker holds the weights of one model, of either engine; each lane is a thread in it with a socket and a slot of
//! shared memory that has room for all windows which the engine decodes side by side.
//!
//! - `host`: keeps a worker running; decides when to try again and when to give up.
//! - `lane`: our half of a lane; `serve`: the worker's half, and its main loop.
//! - `child`: the process. `protocol`, `socket`, `slot`: what they say, and where the samples lie.

mod child;
mod host;
mod lane;
pub mod protocol;
pub mod serve;
mod slot;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::onnx::Runtime;
use super::onnx::whisper::optimum::{OptimumModel, OptimumSpec};
use super::onnx::whisper::{OnnxWhisperModel, OnnxWhisperSpec};
use super::whisper;
use super::whisper_cpp::{WhisperCppModel, WhisperCppSpec};
use super::{
    EngineError, Footprint, ProcessStats, SpeechModel, SpeechModelInfo, SpeechToText, exit,
};
use host::Host;
use lane::IsolatedLane;
use protocol::Loaded;

pub(crate) use child::PROGRAM;
pub(super) use child::end_all;
pub use child::{find, workers};

/// Whether speech models run in a process of their own where no property says so: `auto`, `in-process` or `process`.
const VARIABLE: &str = "SCRIBE_ISOLATION";

/// What a worker takes before its model does: program, libraries, the runtime of an engine.
const PROCESS_BYTES: u64 = 16 << 20;
/// What a lane takes in it and in us beside its engine and its slot: two packets, a stack.
const LANE_BYTES: u64 = 1 << 20;

/// Where a model runs, seen from the process that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// As `SCRIBE_ISOLATION` says, else in a process of its own on a card and in ours on the processor: an engine that
    /// finds no memory on a card ends its process.
    #[default]
    Auto,
    /// In the process: a crash of the engine is one of the application.
    InProcess,
    /// In `scribe-worker`.
    Process,
}

impl Isolation {
    /// Whether to run a model in a process of its own. Fails if the environment says something else than it can.
    pub fn is_process(self, on_card: bool) -> Result<bool, EngineError> {
        let variable = std::env::var_os(VARIABLE);
        let variable = variable.as_ref().map(|v| v.to_str().unwrap_or("?"));
        self.decide(variable, on_card)
    }

    fn decide(self, variable: Option<&str>, on_card: bool) -> Result<bool, EngineError> {
        match (self, variable) {
            (Self::InProcess, _) => Ok(false),
            (Self::Process, _) => Ok(true),
            (Self::Auto, None | Some("" | "auto")) => Ok(on_card),
            (Self::Auto, Some("in-process")) => Ok(false),
            (Self::Auto, Some("process")) => Ok(true),
            (Self::Auto, Some(other)) => Err(EngineError::Unsupported(format!(
                "{VARIABLE} is \"{other}\": auto, in-process or process"
            ))),
        }
    }
}

/// What a worker is to load, and with which engine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EngineSpec {
    /// A ggml file on whisper.cpp.
    WhisperCpp(WhisperCppSpec),
    /// Two graphs on ONNX Runtime.
    OnnxWhisper(OnnxWhisperSpec),
    /// An export in Optimum's layout on ONNX Runtime.
    Optimum(OptimumSpec),
}

impl EngineSpec {
    /// Loads it, in this process.
    pub fn load(&self) -> Result<Arc<dyn SpeechModel>, EngineError> {
        match self {
            Self::WhisperCpp(spec) => Ok(Arc::new(WhisperCppModel::load(spec)?)),
            Self::OnnxWhisper(spec) => Ok(Arc::new(OnnxWhisperModel::load(spec)?)),
            Self::Optimum(spec) => Ok(Arc::new(OptimumModel::load(spec)?)),
        }
    }

    /// What a worker takes with it, where the model takes `model` in our own process. Reads the file's header at most.
    pub fn footprint(&self, model: Footprint) -> Result<Footprint, EngineError> {
        let areas = match self {
            Self::WhisperCpp(_) | Self::Optimum(_) => 1,
            Self::OnnxWhisper(spec) => spec.max_batch()?,
        };
        let lane = slot::size(areas) as u64 + LANE_BYTES;
        Ok(Footprint {
            weights_bytes: model.weights_bytes + PROCESS_BYTES,
            lane_bytes: model.lane_bytes + lane,
            ..model
        })
    }

    /// The model's files: one that was replaced is another model.
    fn files(&self) -> Vec<&Path> {
        match self {
            Self::WhisperCpp(spec) => vec![&spec.path],
            Self::OnnxWhisper(spec) => vec![&spec.encoder, &spec.decoder],
            Self::Optimum(spec) => {
                let data = spec.export.data.iter().map(PathBuf::as_path);
                spec.export.graphs().into_iter().chain(data).collect()
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::WhisperCpp(spec) => &spec.name,
            Self::OnnxWhisper(spec) => &spec.name,
            Self::Optimum(spec) => &spec.name,
        }
    }

    /// What a worker must know of ONNX Runtime to load it.
    fn runtime(&self) -> Option<Runtime> {
        match self {
            Self::WhisperCpp(_) => None,
            Self::OnnxWhisper(_) | Self::Optimum(_) => Some(Runtime::own()),
        }
    }

    /// What a window may take on a slow machine, before one was measured.
    fn expected_window(&self) -> Duration {
        match self {
            Self::WhisperCpp(spec) => spec.expected_window(),
            Self::OnnxWhisper(spec) => spec.expected_window(),
            Self::Optimum(spec) => spec.expected_window(),
        }
    }
}

/// When a worker counts as dead, and when to give up. The defaults are for users; tests have less time.
#[derive(Clone, Debug, PartialEq)]
pub struct IsolatedOptions {
    /// The worker's program; `None` for where [`find`] finds it.
    pub program: Option<PathBuf>,
    /// Waits before the first, second, … start after a failure in a row; the last one for all that follow.
    pub backoff: Vec<Duration>,
    /// After this long without a failure the next is the first again, and a model that was given up is tried anew.
    pub settled_after: Duration,
    /// A window on which workers have crashed so often fails.
    pub most_crashes: u32,
    /// A window on which workers were killed from outside so often fails: it may be what takes the memory for
    /// which the system kills.
    pub most_kills: u32,
    /// A model that failed to load so often in a row fails.
    pub most_failed_loads: u32,
    /// A started program must say who it is within this time.
    pub hello_within: Duration,
    /// A model must be loaded, and a lane made, within this time and that of reading the file at 50 MB/s.
    pub load_within: Duration,
    /// A worker is killed when it has given no sign of life for this long, or for `silence_windows` windows,
    /// whichever is longer. An engine gives none while it encodes: 10 s and more with a small model on a machine
    /// with ten times more work than cores.
    pub silence: Duration,
    /// See `silence`. What a window takes is measured; before the first, it is reckoned from the model's size.
    pub silence_windows: f32,
}

impl Default for IsolatedOptions {
    fn default() -> Self {
        Self {
            program: None,
            backoff: [200, 1_000, 5_000, 25_000]
                .map(Duration::from_millis)
                .into(),
            settled_after: Duration::from_secs(60),
            most_crashes: 3,
            most_kills: 10,
            most_failed_loads: 3,
            hello_within: Duration::from_secs(30),
            load_within: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            silence_windows: 8.0,
        }
    }
}

#[cfg(any(test, feature = "test-support"))]
static OPTIONS_OF_TESTS: std::sync::OnceLock<IsolatedOptions> = std::sync::OnceLock::new();

/// What [`IsolatedModel::load`] takes in place of the defaults in this process, so that a test of the registry does
/// not wait as long as a user. The first call wins.
#[cfg(any(test, feature = "test-support"))]
pub fn set_options(options: IsolatedOptions) {
    let _ = OPTIONS_OF_TESTS.set(options);
}

/// A model that is loaded in a worker. Dropped with its last lane, it ends the worker.
pub struct IsolatedModel {
    host: Arc<Host>,
    loaded: Loaded,
}

impl IsolatedModel {
    /// Starts a worker and has it load the model. What the engine says of a bad file is said here too.
    pub fn load(spec: EngineSpec) -> Result<Self, EngineError> {
        #[cfg(any(test, feature = "test-support"))]
        if let Some(options) = OPTIONS_OF_TESTS.get() {
            return Self::load_with(spec, options.clone());
        }
        Self::load_with(spec, IsolatedOptions::default())
    }

    /// The same with limits of one's own.
    pub fn load_with(spec: EngineSpec, options: IsolatedOptions) -> Result<Self, EngineError> {
        let _outside = exit::outside();
        let (host, loaded) = Host::start(spec, options)?;
        Ok(Self { host, loaded })
    }
}

impl SpeechModel for IsolatedModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.loaded.info
    }

    fn knows_language(&self, code: &str) -> bool {
        let number = whisper::language_id(code).and_then(|n| usize::try_from(n).ok());
        let code = number.map(whisper::language_code);
        code.is_some_and(|code| self.loaded.languages.iter().any(|known| known == code))
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        let _outside = exit::outside();
        let lane = IsolatedLane::open(Arc::clone(&self.host), self.loaded.info.max_batch)?;
        Ok(Box::new(lane))
    }

    fn process(&self) -> Option<ProcessStats> {
        Some(self.host.stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_what_auto_means_and_nothing_else() {
        for (variable, auto, auto_on_card) in [
            (None, false, true),
            (Some(""), false, true),
            (Some("auto"), false, true),
            (Some("in-process"), false, false),
            (Some("process"), true, true),
        ] {
            let decide = |isolation: Isolation, on_card| isolation.decide(variable, on_card);
            assert_eq!(decide(Isolation::Auto, false), Ok(auto), "{variable:?}");
            assert_eq!(
                decide(Isolation::Auto, true),
                Ok(auto_on_card),
                "{variable:?}"
            );
            for on_card in [false, true] {
                assert_eq!(decide(Isolation::InProcess, on_card), Ok(false));
                assert_eq!(decide(Isolation::Process, on_card), Ok(true));
            }
        }
        let wrong = Isolation::Auto.decide(Some("worker"), true).unwrap_err();
        assert!(wrong.to_string().contains("SCRIBE_ISOLATION is \"worker\""));
    }
}
