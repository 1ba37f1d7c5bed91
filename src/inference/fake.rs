// SPDX-License-Identifier: MPL-2.0
//! Engines for tests: answers from a script, delays, failures, panics. Only with `test-support`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::card::Block;
use super::{
    BatchParams, Decoded, DeviceId, Embedder, EmbedderInfo, EmbedderModel, EngineError, Footprint,
    Language, Layout, ResultSink, SEGMENTATION_CLASSES, SEGMENTATION_WINDOW, SegmentationScores,
    Segmenter, SegmenterModel, SpeechModel, SpeechModelInfo, SpeechToText, Token, Vad, VadBlock,
    VadModel, VadProbs, VoiceVector, Window, WindowSource,
};

type Answer = dyn Fn(&Window, &BatchParams) -> Result<Decoded, EngineError> + Send + Sync;

type Delays = dyn Fn(&Window) -> Duration + Send + Sync;

/// What a fake speech model does.
#[derive(Clone)]
pub struct FakeSpeech {
    /// Gives the text of a window.
    pub answer: Arc<Answer>,
    /// How long a window takes. A cancelled window ends at once if `heeds_cancel`.
    pub delay: Duration,
    /// How long a window takes, where it is not as long for all.
    pub delays: Option<Arc<Delays>>,
    /// Windows that a lane works on side by side: from the environment variable `SCRIBE_TEST_PLACES`, else 1.
    pub places: usize,
    /// How long a load takes.
    pub load_delay: Duration,
    /// A load fails with this.
    pub load_error: Option<EngineError>,
    /// Whether a cancelled window ends early: whisper.cpp's encoder does not.
    pub heeds_cancel: bool,
    /// Loads so far.
    pub loads: Arc<AtomicUsize>,
    /// Lanes made so far.
    pub lanes: Arc<AtomicUsize>,
    /// Windows decoded so far.
    pub windows: Arc<AtomicUsize>,
    /// More than English.
    pub multilingual: bool,
    /// Where it says that it runs.
    pub device: DeviceId,
    /// What it says that it takes.
    pub footprint: Footprint,
    /// The fake that stands for it on the CPU.
    pub on_cpu: Option<String>,
    /// Windows that find no memory before one does.
    pub out_of_memory: Arc<AtomicUsize>,
}

impl FakeSpeech {
    /// Answers each window with `answer`, at once.
    pub fn new(
        answer: impl Fn(&Window, &BatchParams) -> Result<Decoded, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            answer: Arc::new(answer),
            delay: Duration::ZERO,
            delays: None,
            places: places(),
            load_delay: Duration::ZERO,
            load_error: None,
            heeds_cancel: true,
            loads: Arc::default(),
            lanes: Arc::default(),
            windows: Arc::default(),
            multilingual: false,
            device: DeviceId::Cpu,
            footprint: Footprint::default(),
            on_cpu: None,
            out_of_memory: Arc::default(),
        }
    }

    /// Says `text` in each window, its words spread evenly over the window's sound.
    pub fn saying(text: &str) -> Self {
        let text = text.to_owned();
        Self::new(move |window, _| Ok(spread(&text, window)))
    }

    /// Hears words: a stretch of sound at a level of 0.02 to 0.99 is the word `w2` to `w99`, wherever in a window it is.
    pub fn hearing() -> Self {
        Self::new(|window, _| Ok(hear(window)))
    }

    /// Makes it known: the property `model` takes it as `fake:NAME`.
    pub fn register(self, name: &str) -> Self {
        models()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.into(), self.clone());
        self
    }
}

/// Samples that a level is measured over: 10 ms.
const HEARD_BLOCK: usize = 160;
/// A hole in a word, in blocks.
const HEARD_HOLE: usize = 7;
/// Shortest word that is heard, in blocks.
const HEARD_LEAST: usize = 6;

/// See [`FakeSpeech::hearing`]: the words behind the window's prefix, and the prefix where it was said.
fn hear(window: &Window) -> Decoded {
    let level = |block: &[f32]| {
        let loudest = block.iter().fold(0.0f32, |a, s| a.max(s.abs()));
        if loudest < 0.015 {
            0
        } else {
            (loudest * 100.0).round() as u32
        }
    };
    let mut levels: Vec<u32> = window.samples.chunks(HEARD_BLOCK).map(level).collect();
    // A lost buffer does not make two words of one.
    for n in 1..levels.len() {
        let next = levels.iter().skip(n).take(HEARD_HOLE + 1).copied();
        if levels[n] < levels[n - 1] && next.into_iter().any(|l| l == levels[n - 1]) {
            levels[n] = levels[n - 1];
        }
    }
    let mut heard: Vec<Token> = Vec::new();
    let mut at = 0;
    for run in levels.chunk_by(|a, b| a == b) {
        let (start, end) = (at * HEARD_BLOCK, (at + run.len()) * HEARD_BLOCK);
        at += run.len();
        if run[0] > 0 && run.len() >= HEARD_LEAST {
            heard.push(Token {
                id: 1000 + run[0],
                bytes: format!(" w{}", run[0]).into_bytes(),
                probability: 0.9,
                start: Some(start as u32),
                end: Some(end as u32),
            });
        }
    }
    let tokens = behind_prefix(heard, window);
    Decoded {
        alignment_end: tokens.last().and_then(|t| t.end),
        tokens,
        language: "en".into(),
        sot_no_speech: 0.01,
        avg_logprob: -0.2,
        gaps: Vec::new(),
        temperature: 0.0,
    }
}

/// What was heard as an engine writes it that takes a prefix: its tokens, where they were heard, and what comes behind
/// the last of them.
pub fn behind_prefix(mut heard: Vec<Token>, window: &Window) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut from = 0;
    for id in &window.prefix {
        let found = heard[from..].iter().position(|t| t.id == *id);
        let token = found.map(|n| heard[from + n].clone());
        from += found.map_or(0, |n| n + 1);
        let before = tokens.last().and_then(|t| t.end);
        tokens.push(token.unwrap_or_else(|| Token {
            id: *id,
            bytes: b" forgotten".to_vec(),
            probability: 1.0,
            start: before.or(Some(0)),
            end: before.or(Some(0)),
        }));
    }
    tokens.extend(heard.drain(from..));
    tokens
}

/// `text` with a token a word, evenly over the louder part of the window.
pub fn spread(text: &str, window: &Window) -> Decoded {
    let words: Vec<&str> = text.split_whitespace().collect();
    let loud = |s: &f32| s.abs() > 0.001;
    let first = window.samples.iter().position(loud).unwrap_or(0);
    let last = window
        .samples
        .iter()
        .rposition(loud)
        .unwrap_or(window.samples.len().saturating_sub(1));
    let step = (last - first) / words.len().max(1);
    let tokens: Vec<Token> = words
        .iter()
        .enumerate()
        .map(|(i, word)| Token {
            id: 1000 + i as u32,
            bytes: format!(" {word}").into_bytes(),
            probability: 0.9,
            start: Some((first + i * step) as u32),
            end: Some((first + (i + 1) * step) as u32),
        })
        .collect();
    Decoded {
        alignment_end: tokens.last().and_then(|t| t.end),
        tokens,
        language: match &window.language {
            Language::Fixed(code) => code.clone(),
            Language::Auto => "en".into(),
        },
        sot_no_speech: 0.01,
        avg_logprob: -0.2,
        gaps: Vec::new(),
        temperature: 0.0,
    }
}

fn models() -> &'static Mutex<HashMap<String, FakeSpeech>> {
    static MODELS: LazyLock<Mutex<HashMap<String, FakeSpeech>>> = LazyLock::new(Mutex::default);
    &MODELS
}

/// The model registered as `name`, or the one that `name` describes.
pub fn speech(name: &str) -> Option<FakeSpeech> {
    let mut models = models().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = models.get(name) {
        return Some(known.clone());
    }
    let made = described(name)?;
    models.insert(name.to_owned(), made.clone());
    Some(made)
}

/// A model for processes that nobody can register one in, such as gst-launch-1.0:
/// `card=0,weights=4400,lane=750,load=20,takes=30,says=one+two,hears=1,gate=FILE`. Sizes in MiB, the load and a window in
/// milliseconds; a window waits
/// until the file is there, or until nobody wants it any more.
fn described(name: &str) -> Option<FakeSpeech> {
    let mut text = String::new();
    let mut gate = None;
    let mut hears = false;
    let mut fake = FakeSpeech::saying("");
    for part in name.split(',') {
        let (key, value) = part.split_once('=')?;
        let number = || value.parse::<u64>().ok();
        match key {
            "card" => fake.device = DeviceId::Simulated(value.parse().ok()?),
            "weights" => fake.footprint.weights_bytes = number()? << 20,
            "lane" => fake.footprint.lane_bytes = number()? << 20,
            "load" => fake.load_delay = Duration::from_millis(number()?),
            "hears" => hears = true,
            "takes" => fake.delay = Duration::from_millis(number()?),
            "says" => text = value.replace('+', " "),
            "gate" => gate = Some(std::path::PathBuf::from(value)),
            _ => return None,
        }
    }
    fake.answer = Arc::new(move |window, _| {
        while gate.as_ref().is_some_and(|gate| !gate.exists()) {
            if window.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(if hears {
            hear(window)
        } else {
            spread(&text, window)
        })
    });
    Some(fake)
}

/// Where the model registered as `name` runs.
pub fn device(name: &str) -> DeviceId {
    speech(name).map_or(DeviceId::Cpu, |s| s.device)
}

/// The fake that stands for `name` on the CPU.
pub fn on_cpu(name: &str) -> Option<String> {
    speech(name)?.on_cpu
}

/// What the model registered as `name` takes.
pub fn footprint(name: &str) -> Footprint {
    speech(name).map_or_else(Footprint::default, |s| s.footprint)
}

/// A loaded fake.
pub struct FakeSpeechModel {
    script: FakeSpeech,
    info: SpeechModelInfo,
    _weights: Option<Block>,
}

/// Takes memory where the fake says that it runs.
fn take(device: DeviceId, bytes: u64) -> Result<Option<Block>, EngineError> {
    let DeviceId::Simulated(number) = device else {
        return Ok(None);
    };
    let Some(card) = super::card::get(number) else {
        return Err(EngineError::Unsupported(format!("no card {number}")));
    };
    let block = card.alloc(std::process::id(), bytes);
    block.map(Some).map_err(|full| EngineError::OutOfMemory {
        what: format!("{full:?}"),
    })
}

impl FakeSpeechModel {
    /// "Loads" the model registered as `name`.
    pub fn load(name: &str) -> Result<Self, EngineError> {
        let script = speech(name)
            .ok_or_else(|| EngineError::Unsupported(format!("no fake model named {name}")))?;
        std::thread::sleep(script.load_delay);
        script.loads.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = &script.load_error {
            return Err(error.clone());
        }
        let info = SpeechModelInfo {
            name: format!("fake:{name}"),
            engine: "fake".into(),
            multilingual: script.multilingual,
            weight_bytes: 1,
            max_batch: script.places,
            default_beam: 4,
            word_time_offset: 0,
            layout: Layout::Ggml,
            word_times: true,
            takes_prefix: true,
        };
        let weights = take(script.device, script.footprint.weights_bytes)?;
        Ok(Self {
            script,
            info,
            _weights: weights,
        })
    }
}

impl SpeechModel for FakeSpeechModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        code == "en" || (self.script.multilingual && code.len() == 2)
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        self.script.lanes.fetch_add(1, Ordering::SeqCst);
        let memory = take(self.script.device, self.script.footprint.lane_bytes)?;
        Ok(Box::new(FakeLane(self.script.clone(), memory)))
    }
}

struct FakeLane(
    FakeSpeech,
    #[allow(dead_code, reason = "held, never read")] Option<Block>,
);

impl FakeLane {
    /// When a window that comes now will be done.
    fn done_at(&self, window: &Window) -> Instant {
        let own = self.0.delays.as_ref().map(|delay| delay(window));
        Instant::now() + own.unwrap_or(self.0.delay)
    }

    fn is_gone(&self, window: &Window) -> bool {
        self.0.heeds_cancel && window.cancel.is_cancelled()
    }
}

impl SpeechToText for FakeLane {
    fn run(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let mut inside: Vec<(Window, Instant)> = Vec::new();
        loop {
            if inside.len() < self.0.places
                && let Some(window) = source.next()
            {
                let short = |n: usize| n.checked_sub(1);
                if self
                    .0
                    .out_of_memory
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, short)
                    .is_ok()
                {
                    return Err(EngineError::OutOfMemory {
                        what: "a window".into(),
                    });
                }
                let done_at = self.done_at(&window);
                inside.push((window, done_at));
            }
            if inside.is_empty() {
                return Ok(());
            }
            let done = inside
                .iter()
                .position(|(window, at)| Instant::now() >= *at || self.is_gone(window));
            let Some(done) = done else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            let (window, _) = inside.remove(done);
            let result = if window.cancel.is_cancelled() {
                Err(EngineError::Cancelled)
            } else {
                (self.0.answer)(&window, params)
            };
            self.0.windows.fetch_add(1, Ordering::SeqCst);
            sink.push(window.id, result);
        }
    }
}

/// Windows side by side where a test does not say: what tests/transcriber.rs does with engines that take one at a time it
/// does with those that take several, too.
fn places() -> usize {
    let given = std::env::var("SCRIBE_TEST_PLACES").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}

/// Voice activity by loudness: above -40 dBFS is speech.
pub struct FakeVad;

impl VadModel for FakeVad {
    fn lane(&self) -> Result<Box<dyn Vad>, EngineError> {
        Ok(Box::new(FakeVad))
    }
}

impl Vad for FakeVad {
    fn run(&mut self, block: VadBlock) -> Result<VadProbs, EngineError> {
        let probs = block
            .samples
            .chunks_exact(super::VAD_FRAME)
            .map(|frame| {
                let power = frame.iter().map(|s| s * s).sum::<f32>() / frame.len() as f32;
                if power.sqrt() > 0.01 { 0.95 } else { 0.02 }
            })
            .collect();
        Ok(VadProbs {
            probs,
            state: block.state,
        })
    }
}

type BeforeBatch = dyn Fn(usize) -> Result<(), EngineError> + Send + Sync;

/// What a fake segmentation or embedding model does: the answers are made from the sound, the rest is scripted.
#[derive(Clone)]
pub struct FakeBatches {
    /// Called with the size of each batch before it is worked on, that of the warm-up included: it may fail, block
    /// or book memory.
    pub before: Arc<BeforeBatch>,
    /// How long a batch takes, at any size.
    pub delay: Duration,
    /// How long a load takes.
    pub load_delay: Duration,
    /// A load fails with this.
    pub load_error: Option<EngineError>,
    /// Most items in a batch.
    pub max_batch: usize,
    /// Loads so far.
    pub loads: Arc<AtomicUsize>,
    /// Lanes made so far.
    pub lanes: Arc<AtomicUsize>,
    /// Sizes of the batches that were answered, in order.
    pub batches: Arc<Mutex<Vec<usize>>>,
    /// How often a lane gave back what batches have taken.
    pub shrinks: Arc<AtomicUsize>,
    /// Sessions made anew so far.
    pub rebuilds: Arc<AtomicUsize>,
    /// Where it says that it runs.
    pub device: DeviceId,
    /// What it says that it takes.
    pub footprint: Footprint,
}

impl Default for FakeBatches {
    fn default() -> Self {
        Self {
            before: Arc::new(|_| Ok(())),
            delay: Duration::ZERO,
            load_delay: Duration::ZERO,
            load_error: None,
            max_batch: 32,
            loads: Arc::default(),
            lanes: Arc::default(),
            batches: Arc::default(),
            shrinks: Arc::default(),
            rebuilds: Arc::default(),
            device: DeviceId::Cpu,
            footprint: Footprint::default(),
        }
    }
}

impl FakeBatches {
    /// Batches of more than `most` items run out of memory.
    pub fn fitting(most: usize) -> Self {
        Self {
            before: Arc::new(move |items| {
                if items > most {
                    let what = format!("a batch of {items}");
                    Err(EngineError::OutOfMemory { what })
                } else {
                    Ok(())
                }
            }),
            ..Self::default()
        }
    }

    /// Makes it known, as a segmentation and as an embedding model.
    pub fn register(self, name: &str) -> Self {
        scripts()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.into(), self.clone());
        self
    }

    fn load(name: &str) -> Result<Self, EngineError> {
        let script = batches(name)
            .ok_or_else(|| EngineError::Unsupported(format!("no fake model named {name}")))?;
        std::thread::sleep(script.load_delay);
        script.loads.fetch_add(1, Ordering::SeqCst);
        match &script.load_error {
            Some(error) => Err(error.clone()),
            None => Ok(script),
        }
    }

    /// A lane, warmed as a real one is: with the largest batch that fits.
    fn lane(&self) -> Result<Self, EngineError> {
        let mut items = self.max_batch;
        while let Err(error) = (self.before)(items) {
            if items == 1 || !matches!(error, EngineError::OutOfMemory { .. }) {
                return Err(error);
            }
            items /= 2;
        }
        self.lanes.fetch_add(1, Ordering::SeqCst);
        Ok(self.clone())
    }

    fn work<T>(
        &self,
        items: &[Arc<[f32]>],
        answer: impl Fn(&[f32]) -> T,
    ) -> Result<Vec<T>, EngineError> {
        (self.before)(items.len())?;
        std::thread::sleep(self.delay);
        self.batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(items.len());
        Ok(items.iter().map(|item| answer(item)).collect())
    }
}

fn scripts() -> &'static Mutex<HashMap<String, FakeBatches>> {
    static SCRIPTS: LazyLock<Mutex<HashMap<String, FakeBatches>>> = LazyLock::new(Mutex::default);
    &SCRIPTS
}

/// The segmentation or embedding model registered as `name`.
pub fn batches(name: &str) -> Option<FakeBatches> {
    scripts()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(name)
        .cloned()
}

/// Where the segmentation or embedding model registered as `name` runs.
pub fn batches_device(name: &str) -> DeviceId {
    batches(name).map_or(DeviceId::Cpu, |s| s.device)
}

/// What the segmentation or embedding model registered as `name` takes.
pub fn batches_footprint(name: &str) -> Footprint {
    batches(name).map_or_else(Footprint::default, |s| s.footprint)
}

/// A loaded fake segmentation model: A talks wherever it is louder than -40 dBFS.
pub struct FakeSegmenterModel(FakeBatches);

impl FakeSegmenterModel {
    /// "Loads" the model registered as `name`.
    pub fn load(name: &str) -> Result<Self, EngineError> {
        FakeBatches::load(name).map(Self)
    }
}

impl SegmenterModel for FakeSegmenterModel {
    fn max_batch(&self) -> usize {
        self.0.max_batch
    }

    fn lane(&self) -> Result<Box<dyn Segmenter>, EngineError> {
        Ok(Box::new(FakeSegmenter(self.0.lane()?)))
    }
}

struct FakeSegmenter(FakeBatches);

impl Segmenter for FakeSegmenter {
    fn run(&mut self, windows: &[Arc<[f32]>]) -> Result<Vec<SegmentationScores>, EngineError> {
        const STEP: usize = 270;
        const FRAMES: usize = 589;
        self.0.work(windows, |window| {
            let mut scores = Vec::with_capacity(FRAMES * SEGMENTATION_CLASSES);
            for frame in 0..FRAMES {
                let at = (frame * STEP).min(SEGMENTATION_WINDOW);
                let loud = window
                    .get(at..window.len().min(at + STEP))
                    .is_some_and(|sound| sound.iter().any(|s| s.abs() > 0.01));
                let likely = usize::from(loud);
                // 0.94 for one class and 0.01 for each other.
                scores.extend((0..SEGMENTATION_CLASSES).map(|class| {
                    if class == likely {
                        0.94_f32.ln()
                    } else {
                        0.01_f32.ln()
                    }
                }));
            }
            SegmentationScores { scores }
        })
    }

    fn shrink(&mut self) {
        self.0.shrinks.fetch_add(1, Ordering::SeqCst);
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        self.0.rebuilds.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Values in a vector of the fake embedding model.
pub const VOICE_DIMENSION: usize = 2;

/// A loaded fake embedding model: a vector of two whose angle is the first sample, in radians.
pub struct FakeEmbedderModel {
    script: FakeBatches,
    info: EmbedderInfo,
}

impl FakeEmbedderModel {
    /// "Loads" the model registered as `name`.
    pub fn load(name: &str) -> Result<Self, EngineError> {
        Ok(Self {
            script: FakeBatches::load(name)?,
            info: EmbedderInfo {
                name: format!("fake:{name}"),
                dimension: VOICE_DIMENSION,
                min_samples: 1,
            },
        })
    }
}

impl EmbedderModel for FakeEmbedderModel {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn max_batch(&self) -> usize {
        self.script.max_batch
    }

    fn lane(&self) -> Result<Box<dyn Embedder>, EngineError> {
        Ok(Box::new(FakeEmbedder(self.script.lane()?)))
    }
}

struct FakeEmbedder(FakeBatches);

impl Embedder for FakeEmbedder {
    fn run(&mut self, segments: &[Arc<[f32]>]) -> Result<Vec<VoiceVector>, EngineError> {
        if segments.iter().any(|s| s.is_empty()) {
            return Err(EngineError::Failed {
                what: "voice embedding".into(),
                why: "a segment is empty".into(),
            });
        }
        self.0.work(segments, |segment| VoiceVector {
            values: vec![segment[0].cos(), segment[0].sin()],
        })
    }

    fn shrink(&mut self) {
        self.0.shrinks.fetch_add(1, Ordering::SeqCst);
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        self.0.rebuilds.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fake_model_answers_what_fits_and_nothing_more() {
        let script = FakeBatches::fitting(2).register("fits two");
        let item: Arc<[f32]> = vec![0.5; 16_000].into();

        let model = FakeEmbedderModel::load("fits two").unwrap();
        let mut embedder = model.lane().unwrap();
        let three = embedder.run(&vec![Arc::clone(&item); 3]);
        let two = embedder.run(&vec![Arc::clone(&item); 2]).unwrap();
        let model = FakeSegmenterModel::load("fits two").unwrap();
        let scores = model.lane().unwrap().run(&[item]).unwrap();

        assert!(matches!(three, Err(EngineError::OutOfMemory { .. })));
        assert_eq!(two[0].values, [0.5_f32.cos(), 0.5_f32.sin()]);
        // A second of sound: A talks in 60 of the frames that are 270 samples apart.
        let talks = |frame: &&[f32]| frame[1] > frame[0];
        let frames = scores[0].scores.chunks(SEGMENTATION_CLASSES);
        assert_eq!(frames.filter(talks).count(), 60);
        assert_eq!(*script.batches.lock().unwrap(), [2, 1]);
        assert_eq!(script.loads.load(Ordering::SeqCst), 2);
    }
}
