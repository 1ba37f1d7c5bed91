// SPDX-License-Identifier: MPL-2.0
//! Engines for tests: answers from a script, delays, failures, panics. Only with `test-support`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{
    BatchParams, Decoded, EngineError, Language, ResultSink, SpeechModel, SpeechModelInfo,
    SpeechToText, Token, Vad, VadBlock, VadModel, VadProbs, Window, WindowSource,
};

type Answer = dyn Fn(&Window, &BatchParams) -> Result<Decoded, EngineError> + Send + Sync;

/// What a fake speech model does.
#[derive(Clone)]
pub struct FakeSpeech {
    /// Gives the text of a window.
    pub answer: Arc<Answer>,
    /// How long a window takes. A cancelled window ends at once if `heeds_cancel`.
    pub delay: Duration,
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
}

impl FakeSpeech {
    /// Answers each window with `answer`, at once.
    pub fn new(
        answer: impl Fn(&Window, &BatchParams) -> Result<Decoded, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            answer: Arc::new(answer),
            delay: Duration::ZERO,
            load_delay: Duration::ZERO,
            load_error: None,
            heeds_cancel: true,
            loads: Arc::default(),
            lanes: Arc::default(),
            windows: Arc::default(),
            multilingual: false,
        }
    }

    /// Says `text` in each window, its words spread evenly over the window's sound.
    pub fn saying(text: &str) -> Self {
        let text = text.to_owned();
        Self::new(move |window, _| Ok(spread(&text, window)))
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

/// The model registered as `name`.
pub fn speech(name: &str) -> Option<FakeSpeech> {
    models()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(name)
        .cloned()
}

/// A loaded fake.
pub struct FakeSpeechModel {
    script: FakeSpeech,
    info: SpeechModelInfo,
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
            max_batch: 1,
            word_time_offset: 0,
        };
        Ok(Self { script, info })
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
        Ok(Box::new(FakeLane(self.script.clone())))
    }
}

struct FakeLane(FakeSpeech);

impl FakeLane {
    fn wait(&self, window: &Window) -> Result<(), EngineError> {
        let until = Instant::now() + self.0.delay;
        while Instant::now() < until {
            if self.0.heeds_cancel && window.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(2).min(self.0.delay));
        }
        if window.cancel.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Ok(())
        }
    }
}

impl SpeechToText for FakeLane {
    fn run(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        while let Some(window) = source.next() {
            let result = self
                .wait(&window)
                .and_then(|()| (self.0.answer)(&window, params));
            self.0.windows.fetch_add(1, Ordering::SeqCst);
            sink.push(window.id, result);
        }
        Ok(())
    }
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
