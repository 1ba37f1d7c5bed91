// SPDX-License-Identifier: MPL-2.0
//! The kinds of model there are. Each is a type of its own: a lease on one can never stand where another is
//! wanted, and no name can stand where a model should.

use std::fmt::Debug;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::inference::isolated::{EngineSpec, IsolatedModel};
use crate::inference::onnx::embedding::{FbankModel, FbankSpec, WaveformModel, WaveformSpec};
use crate::inference::onnx::segmentation::{PyannoteModel, PyannoteSpec};
use crate::inference::onnx::vad::{SileroModel, SileroSpec};
use crate::inference::onnx::whisper::optimum::{OptimumModel, OptimumSpec};
use crate::inference::onnx::whisper::{LANES_ON_A_CARD, OnnxWhisperModel, OnnxWhisperSpec};
use crate::inference::whisper_cpp::{WhisperCppModel, WhisperCppSpec};
use crate::inference::{
    BatchParams, CancelToken, Decoded, DeviceId, Embedder, EmbedderModel, EngineError, Footprint,
    ResultSink, SegmentationScores, Segmenter, SegmenterModel, SpeechModel, SpeechToText, Vad,
    VadBlock, VadModel, VadProbs, VoiceVector, Window, WindowId, WindowSource,
};

/// What the registry must know of a kind of model.
pub trait Kind: Sized + Send + Sync + 'static {
    /// For messages and logs.
    const NAME: &'static str;
    /// Names one way to load one file. Equal specs share one loaded model.
    type Spec: Clone + Eq + Hash + Debug + Send + Sync + 'static;
    /// What is asked. Cloned for a batch that may have to be done again.
    type Job: Clone + Send + 'static;
    /// What is answered.
    type Out: Send + 'static;
    /// What jobs must have in common to share a batch.
    type Params: Clone + PartialEq + Send + 'static;
    /// The loaded model.
    type Model: Send + Sync + ?Sized + 'static;
    /// What one thread needs to run it.
    type Lane: Send;

    /// Its name, for people.
    fn name(spec: &Self::Spec) -> String;
    /// Where it runs.
    fn device(spec: &Self::Spec) -> DeviceId;
    /// Whether in a process of its own, which on a card has a context of its own.
    fn apart(_spec: &Self::Spec) -> bool {
        false
    }
    /// What it will take. Reads the file's header at most.
    fn footprint(spec: &Self::Spec) -> Result<Footprint, EngineError>;
    /// What it takes of the processor's memory beside its footprint, where that is another device's.
    fn host_bytes(_spec: &Self::Spec) -> Result<u64, EngineError> {
        Ok(0)
    }
    /// Loads. Slow: never on a streaming thread.
    fn load(spec: &Self::Spec) -> Result<Arc<Self::Model>, EngineError>;
    /// Makes a lane, warmed: it takes no more memory from then on than its footprint says.
    fn lane(model: &Self::Model) -> Result<Self::Lane, EngineError>;
    /// Runs one batch.
    fn run(
        lane: &mut Self::Lane,
        feed: &dyn Feed<Self>,
        params: &Self::Params,
    ) -> Result<(), EngineError>;
    /// Gives back what batches have taken, after one that did not fit or when others need the room.
    fn trim(_lane: &mut Self::Lane) {}
    /// Bytes that a batch with these params takes beyond the lane's footprint.
    fn extra_bytes(_footprint: &Footprint, _params: &Self::Params) -> u64 {
        0
    }
    /// Makes anew what the lanes of its model share. What it takes on top is reserved meanwhile, as for a load.
    fn rebuild(_lane: &mut Self::Lane) -> Result<(), EngineError> {
        Ok(())
    }
    /// The same model on the CPU, if it runs elsewhere.
    fn on_cpu(_spec: &Self::Spec) -> Option<Self::Spec> {
        None
    }
    /// Params that take less memory and give nearly the same, if there are any.
    fn lighter(_params: &Self::Params) -> Option<Self::Params> {
        None
    }
    /// Items in a batch that are thought best before any is measured.
    fn likes_batch(model: &Self::Model) -> usize {
        Self::max_batch(model)
    }
    /// A lane asks for another job whenever one of its is done, and works on it beside the others.
    const ONE_BY_ONE: bool = false;
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
    /// Has `wait` run, which computes nothing: others have the lane's cores meanwhile.
    fn rest(&self, wait: &mut dyn FnMut()) {
        wait();
    }
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
    /// One of the others in a process of its own.
    Isolated(Box<WhisperSpec>),
    /// Two graphs, the encoder and the decoder, on ONNX Runtime.
    Onnx(OnnxWhisperSpec, [FileStamp; 2]),
    /// An export in Optimum's layout on ONNX Runtime, with all of its files.
    Optimum(OptimumSpec, Vec<FileStamp>),
    /// A scripted answer, by the name it was registered with.
    #[cfg(any(test, feature = "test-support"))]
    Fake(String),
}

impl WhisperSpec {
    /// The same in a process of its own.
    #[must_use]
    pub fn isolated(self) -> Self {
        match self {
            Self::Isolated(_) => self,
            here => Self::Isolated(Box::new(here)),
        }
    }

    /// What a worker would load.
    fn engine(&self) -> Result<EngineSpec, EngineError> {
        match self {
            Self::WhisperCpp(spec, _) => Ok(EngineSpec::WhisperCpp(spec.clone())),
            Self::Onnx(spec, _) => Ok(EngineSpec::OnnxWhisper(spec.clone())),
            Self::Optimum(spec, _) => Ok(EngineSpec::Optimum(spec.clone())),
            Self::Isolated(spec) => spec.engine(),
            #[cfg(any(test, feature = "test-support"))]
            Self::Fake(name) => Err(EngineError::Unsupported(format!(
                "{name} is scripted in this process, and scribe-worker does not know it"
            ))),
        }
    }
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
    const ONE_BY_ONE: bool = true;
    type Spec = WhisperSpec;
    type Job = Window;
    type Out = Decoded;
    type Params = BatchParams;
    type Model = dyn SpeechModel;
    type Lane = Box<dyn SpeechToText>;

    fn name(spec: &WhisperSpec) -> String {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => named(&spec.name, spec.cuda_device),
            WhisperSpec::Onnx(spec, _) => named(&spec.name, spec.cuda_device),
            WhisperSpec::Optimum(spec, _) => named(&spec.name, None),
            WhisperSpec::Isolated(spec) => Self::name(spec),
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(name) => name.clone(),
        }
    }

    fn on_cpu(spec: &WhisperSpec) -> Option<WhisperSpec> {
        match spec {
            WhisperSpec::WhisperCpp(spec, stamp) => {
                spec.cuda_device?;
                let moved = WhisperCppSpec {
                    cuda_device: None,
                    ..spec.clone()
                };
                Some(WhisperSpec::WhisperCpp(moved, stamp.clone()))
            }
            WhisperSpec::Onnx(spec, stamps) => {
                spec.cuda_device?;
                let spec = OnnxWhisperSpec {
                    cuda_device: None,
                    ..spec.clone()
                };
                Some(WhisperSpec::Onnx(spec, stamps.clone()))
            }
            WhisperSpec::Optimum(..) => None,
            WhisperSpec::Isolated(spec) => Self::on_cpu(spec).map(WhisperSpec::isolated),
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(name) => crate::inference::fake::on_cpu(name).map(WhisperSpec::Fake),
        }
    }

    fn device(spec: &WhisperSpec) -> DeviceId {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => {
                spec.cuda_device.map_or(DeviceId::Cpu, DeviceId::Cuda)
            }
            WhisperSpec::Onnx(spec, _) => spec.cuda_device.map_or(DeviceId::Cpu, DeviceId::Cuda),
            WhisperSpec::Optimum(..) => DeviceId::Cpu,
            WhisperSpec::Isolated(spec) => Self::device(spec),
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(name) => crate::inference::fake::device(name),
        }
    }

    fn apart(spec: &WhisperSpec) -> bool {
        matches!(spec, WhisperSpec::Isolated(..))
    }

    fn footprint(spec: &WhisperSpec) -> Result<Footprint, EngineError> {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => spec.footprint(),
            WhisperSpec::Onnx(spec, [encoder, decoder]) => {
                spec.footprint(encoder.size, decoder.size)
            }
            WhisperSpec::Optimum(spec, _) => spec.footprint(),
            WhisperSpec::Isolated(spec) => {
                let model = Self::footprint(spec)?;
                match Self::device(spec) {
                    DeviceId::Cpu => spec.engine()?.footprint(model),
                    // A card's memory is reckoned, and of that a process takes its context.
                    _ => Ok(model),
                }
            }
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(name) => Ok(crate::inference::fake::footprint(name)),
        }
    }

    /// Of whisper.cpp's on a card it is little, and not counted.
    fn host_bytes(spec: &WhisperSpec) -> Result<u64, EngineError> {
        match spec {
            WhisperSpec::Onnx(spec, [encoder, decoder]) => {
                spec.host_bytes(encoder.size, decoder.size)
            }
            WhisperSpec::Isolated(spec) => Self::host_bytes(spec),
            _ => Ok(0),
        }
    }

    fn load(spec: &WhisperSpec) -> Result<Arc<dyn SpeechModel>, EngineError> {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => Ok(Arc::new(WhisperCppModel::load(spec)?)),
            WhisperSpec::Onnx(spec, _) => Ok(Arc::new(OnnxWhisperModel::load(spec)?)),
            WhisperSpec::Optimum(spec, _) => Ok(Arc::new(OptimumModel::load(spec)?)),
            WhisperSpec::Isolated(spec) => Ok(Arc::new(IsolatedModel::load(spec.engine()?)?)),
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

            fn rest(&mut self, wait: &mut dyn FnMut()) {
                self.0.rest(wait);
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

    /// ONNX Runtime's have no decoders: nothing.
    fn extra_bytes(footprint: &Footprint, params: &BatchParams) -> u64 {
        let decoders = u64::from(WhisperCppSpec::extra_decoders(params));
        footprint.decoder_bytes.saturating_mul(decoders)
    }

    /// As many beams as every lane has room for.
    fn lighter(params: &BatchParams) -> Option<BatchParams> {
        (WhisperCppSpec::extra_decoders(params) > 0).then(|| WhisperCppSpec::within_a_lane(params))
    }

    fn permits(spec: &WhisperSpec) -> usize {
        match spec {
            WhisperSpec::WhisperCpp(spec, _) => spec.threads.max(1) as usize,
            WhisperSpec::Onnx(..) | WhisperSpec::Optimum(..) => 1,
            WhisperSpec::Isolated(spec) => Self::permits(spec),
            #[cfg(any(test, feature = "test-support"))]
            WhisperSpec::Fake(_) => 1,
        }
    }

    fn lanes(spec: &WhisperSpec, cores: usize) -> usize {
        match spec {
            WhisperSpec::Onnx(spec, _) if spec.cuda_device.is_some() => LANES_ON_A_CARD,
            WhisperSpec::Isolated(spec) => Self::lanes(spec, cores),
            _ => (cores / Self::permits(spec)).max(1),
        }
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

    fn name(spec: &VadSpec) -> String {
        match spec {
            VadSpec::Silero(spec, _) => stem(&spec.path),
            #[cfg(any(test, feature = "test-support"))]
            VadSpec::Fake => "fake".into(),
        }
    }

    fn device(_spec: &VadSpec) -> DeviceId {
        DeviceId::Cpu
    }

    fn footprint(spec: &VadSpec) -> Result<Footprint, EngineError> {
        match spec {
            VadSpec::Silero(spec, stamp) => Ok(spec.footprint(stamp.size)),
            #[cfg(any(test, feature = "test-support"))]
            VadSpec::Fake => Ok(Footprint::default()),
        }
    }

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

/// Who talks when, by local names. A job is a window of at most ten seconds, 16 kHz mono.
#[derive(Debug)]
pub enum Segmentation {}

/// Voices as vectors. A job is a segment of one voice, 16 kHz mono.
#[derive(Debug)]
pub enum Embedding {}

/// Which segmentation model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SegmentationSpec {
    /// pyannote segmentation on ONNX Runtime.
    Pyannote(PyannoteSpec, FileStamp),
    /// A scripted one, by the name it was registered with.
    #[cfg(any(test, feature = "test-support"))]
    Fake(String),
}

/// Which embedding model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EmbeddingSpec {
    /// One that takes samples, on ONNX Runtime.
    Waveform(WaveformSpec, FileStamp),
    /// One that takes mel bands, on ONNX Runtime.
    Fbank(FbankSpec, FileStamp),
    /// A scripted one, by the name it was registered with.
    #[cfg(any(test, feature = "test-support"))]
    Fake(String),
}

impl EmbeddingSpec {
    /// Values in a vector.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Waveform(spec, _) => spec.dimension,
            Self::Fbank(spec, _) => spec.dimension,
            #[cfg(any(test, feature = "test-support"))]
            Self::Fake(_) => crate::inference::fake::VOICE_DIMENSION,
        }
    }
}

/// A model's name, with the card that it runs on.
fn named(name: &str, cuda_device: Option<u32>) -> String {
    match cuda_device {
        Some(n) => format!("{name} on cuda:{n}"),
        None => name.to_owned(),
    }
}

/// What a lane takes that is warmed with its largest batch: all of it from the start.
fn warmed(footprint: Footprint, max_batch: usize) -> Footprint {
    Footprint {
        lane_bytes: footprint.lane_of(max_batch),
        item_bytes: 0,
        ..footprint
    }
}

/// A file's name without its ending.
fn stem(path: &Path) -> String {
    path.file_stem()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Runs all jobs that `feed` has as one batch. One that does not fit leaves its jobs unanswered and is the outcome:
/// the registry asks again for fewer. Any other failure is told to the jobs that cause it, and to no other.
fn run_whole<K: Kind>(
    feed: &dyn Feed<K>,
    mut run: impl FnMut(&[K::Job]) -> Result<Vec<K::Out>, EngineError>,
) -> Result<(), EngineError> {
    let mut ids = Vec::new();
    let mut jobs = Vec::new();
    while let Some((id, job, cancel)) = feed.next() {
        if cancel.is_cancelled() {
            feed.finish(id, Err(EngineError::Cancelled));
        } else {
            ids.push(id);
            jobs.push(job);
        }
    }
    let mut answer = |jobs: &[K::Job]| -> Result<Vec<K::Out>, EngineError> {
        let out = run(jobs)?;
        if out.len() == jobs.len() {
            return Ok(out);
        }
        Err(EngineError::Failed {
            what: format!("a {} batch", K::NAME),
            why: format!("{} jobs have {} answers", jobs.len(), out.len()),
        })
    };
    if jobs.is_empty() {
        return Ok(());
    }
    match answer(&jobs) {
        Ok(out) => {
            for (id, out) in ids.into_iter().zip(out) {
                feed.finish(id, Ok(out));
            }
        }
        Err(error @ EngineError::OutOfMemory { .. }) => return Err(error),
        Err(error) if jobs.len() == 1 => feed.finish(ids[0], Err(error)),
        Err(_) => {
            for (id, job) in ids.into_iter().zip(jobs.chunks(1)) {
                match answer(job) {
                    Ok(out) => out.into_iter().for_each(|out| feed.finish(id, Ok(out))),
                    Err(error @ EngineError::OutOfMemory { .. }) => return Err(error),
                    Err(error) => feed.finish(id, Err(error)),
                }
            }
        }
    }
    Ok(())
}

impl Kind for Segmentation {
    const NAME: &'static str = "speaker segmentation";
    type Spec = SegmentationSpec;
    type Job = Arc<[f32]>;
    type Out = SegmentationScores;
    type Params = ();
    type Model = dyn SegmenterModel;
    type Lane = Box<dyn Segmenter>;

    fn name(spec: &SegmentationSpec) -> String {
        match spec {
            SegmentationSpec::Pyannote(spec, _) => stem(&spec.path),
            #[cfg(any(test, feature = "test-support"))]
            SegmentationSpec::Fake(name) => name.clone(),
        }
    }

    fn device(spec: &SegmentationSpec) -> DeviceId {
        match spec {
            SegmentationSpec::Pyannote(..) => DeviceId::Cpu,
            #[cfg(any(test, feature = "test-support"))]
            SegmentationSpec::Fake(name) => crate::inference::fake::batches_device(name),
        }
    }

    fn footprint(spec: &SegmentationSpec) -> Result<Footprint, EngineError> {
        match spec {
            SegmentationSpec::Pyannote(spec, stamp) => {
                Ok(warmed(spec.footprint(stamp.size), spec.max_batch))
            }
            #[cfg(any(test, feature = "test-support"))]
            SegmentationSpec::Fake(name) => Ok(crate::inference::fake::batches_footprint(name)),
        }
    }

    fn load(spec: &SegmentationSpec) -> Result<Arc<dyn SegmenterModel>, EngineError> {
        match spec {
            SegmentationSpec::Pyannote(spec, _) => Ok(Arc::new(PyannoteModel::load(spec)?)),
            #[cfg(any(test, feature = "test-support"))]
            SegmentationSpec::Fake(name) => {
                let model = crate::inference::fake::FakeSegmenterModel::load(name)?;
                Ok(Arc::new(model))
            }
        }
    }

    fn lane(model: &dyn SegmenterModel) -> Result<Self::Lane, EngineError> {
        model.lane()
    }

    fn run(lane: &mut Self::Lane, feed: &dyn Feed<Self>, _params: &()) -> Result<(), EngineError> {
        run_whole(feed, |windows| lane.run(windows))
    }

    fn trim(lane: &mut Self::Lane) {
        lane.shrink();
    }

    fn rebuild(lane: &mut Self::Lane) -> Result<(), EngineError> {
        lane.rebuild()
    }

    fn permits(_spec: &SegmentationSpec) -> usize {
        1
    }

    /// A session each. The embedding model, whose lanes take turns on one, keeps up with as many.
    fn lanes(_spec: &SegmentationSpec, cores: usize) -> usize {
        cores.clamp(1, 4)
    }

    fn max_batch(model: &dyn SegmenterModel) -> usize {
        model.max_batch()
    }

    fn seconds(job: &Arc<[f32]>) -> f64 {
        job.len() as f64 / 16_000.0
    }
}

impl Kind for Embedding {
    const NAME: &'static str = "voice embedding";
    type Spec = EmbeddingSpec;
    type Job = Arc<[f32]>;
    type Out = VoiceVector;
    type Params = ();
    type Model = dyn EmbedderModel;
    type Lane = Box<dyn Embedder>;

    fn name(spec: &EmbeddingSpec) -> String {
        match spec {
            EmbeddingSpec::Waveform(spec, _) => stem(&spec.path),
            EmbeddingSpec::Fbank(spec, _) => stem(&spec.path),
            #[cfg(any(test, feature = "test-support"))]
            EmbeddingSpec::Fake(name) => name.clone(),
        }
    }

    fn device(spec: &EmbeddingSpec) -> DeviceId {
        match spec {
            EmbeddingSpec::Waveform(..) | EmbeddingSpec::Fbank(..) => DeviceId::Cpu,
            #[cfg(any(test, feature = "test-support"))]
            EmbeddingSpec::Fake(name) => crate::inference::fake::batches_device(name),
        }
    }

    fn footprint(spec: &EmbeddingSpec) -> Result<Footprint, EngineError> {
        match spec {
            EmbeddingSpec::Waveform(spec, stamp) => {
                Ok(warmed(spec.footprint(stamp.size), spec.max_batch))
            }
            EmbeddingSpec::Fbank(spec, stamp) => Ok(spec.footprint(stamp.size)),
            #[cfg(any(test, feature = "test-support"))]
            EmbeddingSpec::Fake(name) => Ok(crate::inference::fake::batches_footprint(name)),
        }
    }

    fn load(spec: &EmbeddingSpec) -> Result<Arc<dyn EmbedderModel>, EngineError> {
        match spec {
            EmbeddingSpec::Waveform(spec, _) => Ok(Arc::new(WaveformModel::load(spec)?)),
            EmbeddingSpec::Fbank(spec, _) => Ok(Arc::new(FbankModel::load(spec)?)),
            #[cfg(any(test, feature = "test-support"))]
            EmbeddingSpec::Fake(name) => {
                let model = crate::inference::fake::FakeEmbedderModel::load(name)?;
                Ok(Arc::new(model))
            }
        }
    }

    fn lane(model: &dyn EmbedderModel) -> Result<Self::Lane, EngineError> {
        model.lane()
    }

    fn run(lane: &mut Self::Lane, feed: &dyn Feed<Self>, _params: &()) -> Result<(), EngineError> {
        run_whole(feed, |segments| lane.run(segments))
    }

    fn trim(lane: &mut Self::Lane) {
        lane.shrink();
    }

    fn rebuild(lane: &mut Self::Lane) -> Result<(), EngineError> {
        lane.rebuild()
    }

    fn permits(_spec: &EmbeddingSpec) -> usize {
        1
    }

    /// Lanes of a session take turns: a second one would book memory and wait.
    fn lanes(_spec: &EmbeddingSpec, _cores: usize) -> usize {
        1
    }

    fn max_batch(model: &dyn EmbedderModel) -> usize {
        model.max_batch()
    }

    fn seconds(job: &Arc<[f32]>) -> f64 {
        job.len() as f64 / 16_000.0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Three jobs, numbered from 0.
    #[derive(Default)]
    struct ThreeJobs {
        taken: RefCell<u64>,
        cancelled: Option<u64>,
        answers: RefCell<Vec<(u64, Result<VoiceVector, EngineError>)>>,
    }

    impl Feed<Embedding> for ThreeJobs {
        fn next(&self) -> Option<(u64, Arc<[f32]>, CancelToken)> {
            let id = *self.taken.borrow();
            *self.taken.borrow_mut() += 1;
            let cancel = CancelToken::new();
            if self.cancelled == Some(id) {
                cancel.cancel();
            }
            (id < 3).then(|| (id, Arc::from([id as f32]), cancel))
        }

        fn finish(&self, id: u64, result: Result<VoiceVector, EngineError>) {
            self.answers.borrow_mut().push((id, result));
        }
    }

    fn vectors(jobs: &[Arc<[f32]>]) -> Vec<VoiceVector> {
        let vector = |job: &Arc<[f32]>| VoiceVector {
            values: job.to_vec(),
        };
        jobs.iter().map(vector).collect()
    }

    fn failed() -> EngineError {
        EngineError::Failed {
            what: "a test".into(),
            why: "it wants to".into(),
        }
    }

    #[test]
    fn all_jobs_are_one_batch_and_each_has_its_own_answer() {
        let feed = ThreeJobs::default();
        let mut sizes = Vec::new();

        let outcome = run_whole(&feed, |jobs| {
            sizes.push(jobs.len());
            Ok(vectors(jobs))
        });

        assert_eq!(outcome, Ok(()));
        assert_eq!(sizes, [3]);
        for (id, answer) in feed.answers.take() {
            assert_eq!(answer.map(|v| v.values), Ok(vec![id as f32]));
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_answers_no_job() {
        let feed = ThreeJobs::default();
        let full = EngineError::OutOfMemory {
            what: "a batch of 3".into(),
        };

        let outcome = run_whole(&feed, |_| Err(full.clone()));

        assert_eq!(outcome, Err(full));
        assert_eq!(feed.answers.take(), []);
    }

    #[test]
    fn one_bad_job_fails_alone() {
        let feed = ThreeJobs::default();

        let outcome = run_whole(&feed, |jobs| {
            if jobs.iter().any(|job| job[0] == 1.0) {
                Err(failed())
            } else {
                Ok(vectors(jobs))
            }
        });

        let answers = feed.answers.take();
        assert_eq!(outcome, Ok(()));
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[1], (1, Err(failed())));
        assert!(answers[0].1.is_ok() && answers[2].1.is_ok());
    }

    #[test]
    fn a_cancelled_job_is_not_worked_on() {
        let feed = ThreeJobs {
            cancelled: Some(1),
            ..Default::default()
        };
        let mut seen = Vec::new();

        let outcome = run_whole(&feed, |jobs| {
            seen.extend(jobs.iter().map(|job| job[0]));
            Ok(vectors(jobs))
        });

        assert_eq!(outcome, Ok(()));
        assert_eq!(seen, [0.0, 2.0]);
        assert_eq!(feed.answers.take()[0], (1, Err(EngineError::Cancelled)));
    }

    #[test]
    fn an_engine_that_forgets_a_job_fails() {
        let feed = ThreeJobs::default();

        let outcome = run_whole(&feed, |_| Ok(Vec::new()));

        assert_eq!(outcome, Ok(()));
        let answers = feed.answers.take();
        assert_eq!(answers.len(), 3);
        assert!(answers.iter().all(|(_, answer)| answer.is_err()));
    }
}
