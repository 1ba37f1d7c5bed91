// SPDX-License-Identifier: MPL-2.0
//! Models: load, predict a footprint, run a batch. No globals but the one ONNX Runtime environment, no
//! GStreamer. All `unsafe` of the engines and every trap of their crates stays below this module.

pub mod cancel;
#[cfg(any(test, feature = "test-support"))]
pub mod card;
pub mod exit;
#[cfg(any(test, feature = "test-support"))]
pub mod fake;
pub mod halves;
pub mod isolated;
pub mod manifest;
pub mod nvml;
pub mod onnx;
pub(crate) mod pages;
pub mod times;
mod whisper;
pub mod whisper_cpp;

use std::path::PathBuf;

pub use cancel::CancelToken;

use crate::transcript::Task;
use times::Times;

/// What went wrong in an engine, with the model and the sizes that belong to it.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum EngineError {
    /// The file is not what its name says.
    #[error("{} is not a usable model: {why}. Fetch it anew with `scribe-models fetch`, or name another file in the property model", path.display())]
    InvalidModel {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        why: String,
    },
    /// No such model here, or no such name.
    #[error("{0}")]
    ModelMissing(String),
    /// The file cannot be read.
    #[error("cannot read model file {}: {why}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        why: String,
    },
    /// The runtime library is missing or too old.
    #[error("{0}")]
    Runtime(String),
    /// A setting that this model cannot serve.
    #[error("{0}")]
    Unsupported(String),
    /// Memory is not there, or not scribe's to use: nothing was loaded.
    #[error(
        "{what}: {figures}. Raise memory-limit (or SCRIBE_MEMORY_LIMIT), choose a smaller model, or end what else takes the memory"
    )]
    NoRoom {
        /// The model.
        what: String,
        /// What is needed, and what there is.
        figures: String,
    },
    /// No memory for a state or a batch.
    #[error("{what} ran out of memory")]
    OutOfMemory {
        /// What was being done, with its size.
        what: String,
    },
    /// The engine failed on valid input.
    #[error("{what} failed: {why}")]
    Failed {
        /// What was being done.
        what: String,
        /// The engine's words or number.
        why: String,
    },
    /// Whoever asked does not want the answer any more.
    #[error("cancelled")]
    Cancelled,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum DeviceId {
    /// The processor and its memory.
    #[default]
    Cpu,
    /// An NVIDIA card by its number in CUDA's order.
    Cuda(u32),
    /// A card that is made up, for tests.
    #[cfg(any(test, feature = "test-support"))]
    Simulated(u32),
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            #[cfg(any(test, feature = "test-support"))]
            Self::Simulated(n) => write!(f, "simulated:{n}"),
        }
    }
}

/// Bytes that a model takes, known from its file and its parameters before it is loaded. Each kind of model says it;
/// the registry reserves it. It is a promise: nothing that the model does may take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Footprint {
    /// What is loaded once, however many lanes run it.
    pub weights_bytes: u64,
    /// On top of it while it loads.
    pub load_extra_bytes: u64,
    /// A lane at its largest, with one item in work.
    pub lane_bytes: u64,
    /// Each further item that a lane works on in the same batch.
    pub item_bytes: u64,
    /// Each decoder of a lane beyond those it has room for from the start.
    pub decoder_bytes: u64,
}

impl Footprint {
    /// A lane that works on up to `items` at once.
    pub fn lane_of(&self, items: usize) -> u64 {
        let more = items.saturating_sub(1) as u64;
        self.lane_bytes
            .saturating_add(self.item_bytes.saturating_mul(more))
    }
}

/// Language of a window.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Language {
    /// The model decides, from this window alone.
    #[default]
    Auto,
    /// ISO 639-1 code, one the model knows.
    Fixed(String),
}

/// Identity of a window among those handed to one `run`.
pub type WindowId = u64;

/// Up to 29 s of sound to be turned into text.
#[derive(Clone, Debug)]
pub struct Window {
    /// Chosen by the asker, handed back with the result.
    pub id: WindowId,
    /// 16 kHz mono, -1 to 1, finite. At most [`MAX_WINDOW_SAMPLES`].
    pub samples: std::sync::Arc<[f32]>,
    /// The language, where it is known.
    pub language: Language,
    /// Transcribe, or translate into English.
    pub task: Task,
    /// Text that might have come before: names, spelling and style follow it. Empty for none.
    pub prompt: String,
    /// Words to expect. Empty for none.
    pub vocabulary: Vec<String>,
    /// Tokens that the text begins with, as an earlier answer gave them: the model goes on behind them, and they are in
    /// the answer with times of their own. Fewer than 220. Empty for none; for engines that
    /// [can](SpeechModelInfo::takes_prefix).
    pub prefix: Vec<u32>,
    /// Most tokens behind the prefix; 0 for as many as there is room for.
    pub most_tokens: u32,
    /// Set when the answer is not wanted any more.
    pub cancel: CancelToken,
}

/// Longest window an engine must take: 29 s.
pub const MAX_WINDOW_SAMPLES: usize = 29 * 16_000;

/// What windows must have in common to be decoded side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchParams {
    /// Beams; 1 is greedy.
    pub beam: u32,
    /// 0 for the most likely text, above for sampling.
    pub temperature: f32,
    /// Samples drawn at a temperature above 0, the best is kept.
    pub best_of: u32,
    /// Let the model write timestamps between its words.
    pub timestamps: bool,
    /// Ask for word times: costs a little.
    pub word_times: bool,
}

impl Default for BatchParams {
    fn default() -> Self {
        Self {
            beam: 1,
            temperature: 0.0,
            best_of: 1,
            timestamps: false,
            word_times: true,
        }
    }
}

/// A token of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Number in the vocabulary.
    pub id: u32,
    /// Its bytes: not necessarily whole characters.
    pub bytes: Vec<u8>,
    /// Probability, 0 to 1.
    pub probability: f32,
    /// Where its sound begins, in samples of the window. `None` where the engine gave no times.
    pub start: Option<u32>,
    /// Where its sound ends, in samples of the window.
    pub end: Option<u32>,
}

/// The text of one window.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Decoded {
    /// Plain text tokens in order: no specials, no timestamps.
    pub tokens: Vec<Token>,
    /// ISO 639-1 code that was used.
    pub language: String,
    /// Probability of "no speech" at the start-of-transcript position, 0 to 1.
    pub sot_no_speech: f32,
    /// Mean natural logarithm of the tokens' probabilities, the end token included.
    pub avg_logprob: f32,
    /// How far into the window the model has listened when it wrote its last tokens, in samples.
    /// `None` where the engine cannot tell.
    pub alignment_end: Option<u32>,
    /// Stretches (from, to) in samples over which the alignment jumped between neighbouring tokens.
    pub gaps: Vec<(u32, u32)>,
    /// Temperature of the pass that gave it.
    pub temperature: f32,
}

/// Hands out windows until there are none. An engine asks again whenever a row is free.
pub trait WindowSource {
    /// The next window, or none left. Windows whose token is cancelled are not handed out.
    fn next(&mut self) -> Option<Window>;

    /// Has `wait` run, which computes nothing: whoever hands the windows out may lend the cores to others meanwhile.
    fn rest(&mut self, wait: &mut dyn FnMut()) {
        wait();
    }
}

/// Takes finished windows, in any order.
pub trait ResultSink {
    /// The answer for window `id`. Called once for each window taken from the source.
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>);
}

/// What a loaded speech model can do.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeechModelInfo {
    /// Short name for people: `tiny.en-q8_0`.
    pub name: String,
    /// Engine and instruction sets in use, for `stats`.
    pub engine: String,
    /// More than English.
    pub multilingual: bool,
    /// Bytes the weights take.
    pub weight_bytes: u64,
    /// Most windows that one lane decodes side by side.
    pub max_batch: usize,
    /// Beams where nobody asks for a number.
    pub default_beam: u32,
    /// Constant lateness of its word times, in samples: taken off by the logic. Measured per model.
    pub word_time_offset: i32,
    /// Whose form its files have.
    pub layout: Layout,
    /// It tells when words were said. Where it does not, they are spread over the speech.
    pub word_times: bool,
    /// It goes on behind a prefix.
    pub takes_prefix: bool,
}

/// Whose form a speech model's files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A ggml file.
    Ggml,
    /// Our own graphs.
    Scribe,
    /// An export of Optimum's, which is slower.
    Optimum,
}

impl Layout {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Ggml, Self::Scribe, Self::Optimum];

    /// As `stats` names it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ggml => "ggml",
            Self::Scribe => "scribe",
            Self::Optimum => "optimum",
        }
    }
}

/// The process that a model runs in, where it is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessStats {
    /// Its number; `None` while none runs.
    pub pid: Option<u32>,
    /// Times that it was started anew.
    pub restarts: u64,
}

/// Weights of a speech model, loaded once; lanes run it.
pub trait SpeechModel: Send + Sync {
    /// What it can do.
    fn info(&self) -> &SpeechModelInfo;
    /// Whether it knows this ISO 639-1 code.
    fn knows_language(&self, code: &str) -> bool;
    /// Makes what one thread needs to run it.
    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError>;
    /// What its parts have taken; nothing where the engine does not count it.
    fn times(&self) -> Times {
        Times::default()
    }
    /// The process it runs in; `None` for ours.
    fn process(&self) -> Option<ProcessStats> {
        None
    }
}

/// One lane of a speech model: used by one thread at a time.
pub trait SpeechToText: Send {
    /// Decodes windows until the source has none. Fails as a whole only if the lane is unusable;
    /// what concerns one window goes to the sink.
    fn run(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError>;
}

/// What the voice activity model remembers between blocks: all zeros at the start of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct VadState {
    /// LSTM state h.
    pub h: Vec<f32>,
    /// LSTM state c.
    pub c: Vec<f32>,
    /// Last 64 samples of the block before.
    pub context: Vec<f32>,
}

impl Default for VadState {
    fn default() -> Self {
        Self {
            h: vec![0.0; 128],
            c: vec![0.0; 128],
            context: vec![0.0; 64],
        }
    }
}

/// A block of sound for the voice activity model.
#[derive(Clone, Debug)]
pub struct VadBlock {
    /// 16 kHz mono, a multiple of [`VAD_FRAME`] samples.
    pub samples: Vec<f32>,
    /// State after the block before.
    pub state: VadState,
}

/// Samples a voice activity frame covers: 32 ms.
pub const VAD_FRAME: usize = 512;

/// Answer to a [`VadBlock`].
#[derive(Clone, Debug, PartialEq)]
pub struct VadProbs {
    /// Probability of speech for each frame of 512 samples.
    pub probs: Vec<f32>,
    /// State to hand in with the next block.
    pub state: VadState,
}

/// Weights of a voice activity model.
pub trait VadModel: Send + Sync {
    /// Makes what one thread needs to run it.
    fn lane(&self) -> Result<Box<dyn Vad>, EngineError>;
    /// What it has taken; nothing where the engine does not count it.
    fn times(&self) -> Times {
        Times::default()
    }
}

/// One lane of a voice activity model.
pub trait Vad: Send {
    /// Probabilities for a block.
    fn run(&mut self, block: VadBlock) -> Result<VadProbs, EngineError>;
}

/// Samples of a segmentation window: 10 s.
pub const SEGMENTATION_WINDOW: usize = 160_000;
/// Classes of the segmentation model: nobody, A, B, C, A+B, A+C, B+C.
pub const SEGMENTATION_CLASSES: usize = 7;

/// Who talks when in one window, by local names.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentationScores {
    /// Natural logarithms of probabilities, `[frames, 7]` in row order. Classes: nobody, A, B, C, A+B, A+C, B+C. A
    /// full window has 589 frames, 270 samples apart.
    pub scores: Vec<f32>,
}

/// Weights of a speaker segmentation model.
pub trait SegmenterModel: Send + Sync {
    /// Most windows in one batch.
    fn max_batch(&self) -> usize;
    /// Makes what one thread needs to run it, warmed with the largest batch.
    fn lane(&self) -> Result<Box<dyn Segmenter>, EngineError>;
}

/// One lane of a segmentation model.
pub trait Segmenter: Send {
    /// Scores of each window. A window has at most [`SEGMENTATION_WINDOW`] samples, 16 kHz mono; a shorter one is
    /// filled with silence. Fails with [`EngineError::OutOfMemory`] if the batch does not fit, and is usable then.
    fn run(
        &mut self,
        windows: &[std::sync::Arc<[f32]>],
    ) -> Result<Vec<SegmentationScores>, EngineError>;
    /// Gives back what batches have taken.
    fn shrink(&mut self);

    /// Makes anew what the model's lanes share, from the same file. Its memory is reserved like a load's.
    fn rebuild(&mut self) -> Result<(), EngineError>;
}

/// A voice as a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct VoiceVector {
    /// Of length 1. Its dimension is the model's.
    pub values: Vec<f32>,
}

/// What a voice embedding model is.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedderInfo {
    /// Short name for people, and the identity of its vectors: those of two models cannot be compared.
    pub name: String,
    /// Values in a vector.
    pub dimension: usize,
    /// Fewest samples it can say anything about.
    pub min_samples: usize,
}

/// Weights of a voice embedding model.
pub trait EmbedderModel: Send + Sync {
    /// What it is.
    fn info(&self) -> &EmbedderInfo;
    /// Most segments in one batch.
    fn max_batch(&self) -> usize;
    /// Makes what one thread needs to run it, warmed with the largest batch.
    fn lane(&self) -> Result<Box<dyn Embedder>, EngineError>;
}

/// One lane of a voice embedding model.
pub trait Embedder: Send {
    /// The vector of each segment: 16 kHz mono, any length from `min_samples`. Fails with
    /// [`EngineError::OutOfMemory`] if the batch does not fit, and is usable then.
    fn run(&mut self, segments: &[std::sync::Arc<[f32]>]) -> Result<Vec<VoiceVector>, EngineError>;
    /// Gives back what batches have taken.
    fn shrink(&mut self);

    /// Makes anew what the model's lanes share, from the same file. Its memory is reserved like a load's.
    fn rebuild(&mut self) -> Result<(), EngineError>;
}
