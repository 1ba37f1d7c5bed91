// SPDX-License-Identifier: MPL-2.0
//! The kinds of model there are. Each is a type of its own: a lease on one can never stand where another is
//! wanted, and no name can stand where a model should.

use std::fmt::Debug;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::inference::onnx::vad::{SileroModel, SileroSpec};
use crate::inference::whisper_cpp::{WhisperCppModel, WhisperCppSpec};
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, ResultSink, SpeechModel, SpeechToText, Vad,
    VadBlock, VadModel, VadProbs, Window, WindowId, WindowSource,
};

/// What the registry must know of a kind of model.
pub trait Kind: Sized + Send + Sync + 'static {
    /// For messages and logs.
    const NAME: &'static str;
    /// Names one way to load one file. Equal specs share one loaded model.
    type Spec: Clone + Eq + Hash + Debug + Send + Sync + 'static;
    /// What is asked.
    type Job: Send + 'static;
    /// What is answered.
    type Out: Send + 'static;
    /// What jobs must have in common to share a batch.
    type Params: Clone + PartialEq + Send + 'static;
    /// The loaded model.
    type Model: Send + Sync + ?Sized + 'static;
    /// What one thread needs to run it.
    type Lane: Send;

    /// Loads. Slow: never on a streaming thread.
    fn load(spec: &Self::Spec) -> Result<Arc<Self::Model>, EngineError>;
    /// Makes a lane.
    fn lane(model: &Self::Model) -> Result<Self::Lane, EngineError>;
    /// Runs one batch.
    fn run(
        lane: &mut Self::Lane,
        feed: &dyn Feed<Self>,
        params: &Self::Params,
    ) -> Result<(), EngineError>;
    /// Threads a batch computes with; 0 for what is too small to count.
    fn permits(spec: &Self::Spec) -> usize;
    /// Most lanes on a machine of `cores`.
    fn lanes(spec: &Self::Spec, cores: usize) -> usize;
    /// Most jobs in one batch.
    fn max_batch(model: &Self::Model) -> usize;
    /// Seconds of sound in a job, for fairness between streams.
    fn seconds(job: &Self::Job) -> f64;
}

/// Jobs of one batch: a lane takes them one by one and answers each.
pub trait Feed<K: Kind> {
    /// The next job, with its number and its cancel flag.
    fn next(&self) -> Option<(u64, K::Job, CancelToken)>;
    /// The answer to job `id`.
    fn finish(&self, id: u64, result: Result<K::Out, EngineError>);
}

/// Speech to text.
#[derive(Debug)]
pub enum Whisper {}

/// Voice activity.
#[derive(Debug)]
pub enum VoiceActivity {}

/// Identity of a file's content at one moment: a file that was replaced is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    size: u64,
    modified_ns: u128,
}

impl FileStamp {
    /// Stamp of a file, and its path without links.
    pub fn of(path: &Path) -> Result<(PathBuf, Self), EngineError> {
        let failed = |e: std::io::Error| EngineError::ModelFile {
            path: path.to_owned(),
            why: e.to_string(),
        };
        let real = path.canonicalize().map_err(failed)?;
        let meta = real.metadata().map_err(failed)?;
        let modified_ns = meta
            .modified()
            .ok()
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |d| d.as_nanos());
        Ok((
            real,
            Self {
                size: meta.len(),
                modified_ns,
            },
        ))
    }
}

/// Which speech model, on which engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WhisperSpec {
    /// A ggml file on whisper.cpp.
    WhisperCpp(WhisperCppSpec, FileStamp),
    /// A scripted answer, by the name it was registered with.
    #[cfg(any(test, feature = "test-support"))]
    Fake(String),
}

/// Which voice activity model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VadSpec {
    /// Silero VAD on ONNX Runtime.
    Silero(SileroSpec, FileStamp),
    /// Loudness.
    #[cfg(any(test, feature = "test-support"))]
    Fake,
}

impl Kind for Whisper {
    const NAME: &'static str = "speech";
    type Spec = WhisperSpec;
    type Job = Window;
    type Out = Decoded;
    type Params = BatchParams;
    type Model = dyn SpeechModel;
    type Lane = Box<dyn SpeechToText>;

    fn load(spec: &WhisperSpec) -> Result<Arc<dyn SpeechModel>, EngineError> {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => Ok(Arc::new(WhisperCppModel::load(spec)?)),
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(name) => Ok(Arc::new(crate::inference::fake::FakeSpeechModel::load(
                name,
            )?)),
        }
    }

    fn lane(model: &dyn SpeechModel) -> Result<Self::Lane, EngineError> {
        model.lane()
    }

    fn run(
        lane: &mut Self::Lane,
        feed: &dyn Feed<Self>,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        struct Windows<'a>(&'a dyn Feed<Whisper>);
        impl WindowSource for Windows<'_> {
            fn next(&mut self) -> Option<Window> {
                let (id, window, cancel) = self.0.next()?;
                Some(Window {
                    id,
                    cancel,
                    ..window
                })
            }
        }
        struct Results<'a>(&'a dyn Feed<Whisper>);
        impl ResultSink for Results<'_> {
            fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
                self.0.finish(id, result);
            }
        }
        lane.run(&mut Windows(feed), &mut Results(feed), params)
    }

    fn permits(spec: &WhisperSpec) -> usize {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => spec.threads.max(1) as usize,
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(_) => 1,
        }
    }

    fn lanes(spec: &WhisperSpec, cores: usize) -> usize {
        (cores / Self::permits(spec)).max(1)
    }

    fn max_batch(model: &dyn SpeechModel) -> usize {
        model.info().max_batch
    }

    fn seconds(job: &Window) -> f64 {
        job.samples.len() as f64 / 16_000.0
    }
}

impl Kind for VoiceActivity {
    const NAME: &'static str = "voice activity";
    type Spec = VadSpec;
    type Job = VadBlock;
    type Out = VadProbs;
    type Params = ();
    type Model = dyn VadModel;
    type Lane = Box<dyn Vad>;

    fn load(spec: &VadSpec) -> Result<Arc<dyn VadModel>, EngineError> {
        match spec {
            VadSpec::Silero(spec, _) => Ok(Arc::new(SileroModel::load(spec)?)),
            #[cfg(any(test, feature = "test-support"))]
            VadSpec::Fake => Ok(Arc::new(crate::inference::fake::FakeVad)),
        }
    }

    fn lane(model: &dyn VadModel) -> Result<Self::Lane, EngineError> {
        model.lane()
    }

    fn run(lane: &mut Self::Lane, feed: &dyn Feed<Self>, _params: &()) -> Result<(), EngineError> {
        while let Some((id, block, _)) = feed.next() {
            feed.finish(id, lane.run(block));
        }
        Ok(())
    }

    /// A hundredth of a core for a stream in real time: waiting for a permit would cost more than it takes.
    fn permits(_spec: &VadSpec) -> usize {
        0
    }

    fn lanes(_spec: &VadSpec, _cores: usize) -> usize {
        1
    }

    fn max_batch(_model: &dyn VadModel) -> usize {
        1
    }

    fn seconds(job: &VadBlock) -> f64 {
        job.samples.len() as f64 / 16_000.0
    }
}
