// SPDX-License-Identifier: MPL-2.0
//! Files: sound in, words out, as fast as the registry's lanes go.
//!
//! A [`Session`] serves one channel of one stream. It never blocks: [`Session::poll`] takes the answers that
//! have come, asks for what is next and returns what is complete, in order. Several windows are in flight.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Add;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::audio::buffer::SampleBuffer;
use crate::audio::speech::{self, Speech, SpeechParams};
use crate::audio::{SAMPLE_RATE, SampleIndex};
use crate::inference::isolated::Isolation;
use crate::inference::manifest;
use crate::inference::onnx::vad::SileroSpec;
use crate::inference::onnx::whisper::OnnxWhisperSpec;
use crate::inference::onnx::whisper::optimum::OptimumSpec;
use crate::inference::times::Times;
use crate::inference::whisper_cpp::WhisperCppSpec;
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Layout, ProcessStats, VAD_FRAME, VadBlock,
    VadProbs, VadState, Window,
};
use crate::registry::{
    Class, Degraded, FileStamp, FirstOf, Lease, ModelStats, Registry, Request, Ticket, VadSpec,
    VoiceActivity, Whisper, WhisperSpec,
};
use crate::transcript::{SegmentInfo, Task};

use super::RawWord;
use super::guards::{self, GuardParams, Ladder, Pass, Verdict, WindowFacts};
use super::language::Votes;
use super::packer::{Packer, Plan};
use super::{join, words};

/// Frames of voice activity asked for at once: 16 s.
const VAD_BLOCK_FRAMES: usize = 500;
/// Fewest frames worth a call while more sound is to come: 1 s.
const VAD_LEAST_FRAMES: usize = 32;
/// Sound that may wait for voice activity: two blocks.
const MOST_UNHEARD: u64 = 2 * (VAD_BLOCK_FRAMES * VAD_FRAME) as u64;
/// Lateness of word times of a model whose own was not measured: that of tiny.en, milliseconds.
const WORD_TIME_OFFSET_MS: f64 = 100.0;
/// Frames below this level, -46 dBFS, count as pauses where no voice activity model runs.
const QUIET_LEVEL: f32 = 0.005;
/// Least speech in a window whose language counts: 5 s.
const LANGUAGE_SPEECH: u64 = 5 * SAMPLE_RATE as u64;

/// What a session works by.
#[derive(Clone, Debug)]
pub struct SessionParams {
    /// The speech model.
    pub speech: WhisperSpec,
    /// Speech models to use when that one cannot be had, the best first.
    pub fallback: Vec<WhisperSpec>,
    /// What was given up before: a model of the chain that is not here.
    pub given_up: Vec<Degraded>,
    /// The voice activity model; `None` lets everything through.
    pub vad: Option<VadSpec>,
    /// ISO 639-1; `None` for what is heard.
    pub language: Option<String>,
    /// Transcribe or translate.
    pub task: Task,
    /// Text that might have come before.
    pub prompt: String,
    /// Words to expect.
    pub vocabulary: Vec<String>,
    /// Beams, 0 for the default.
    pub beam: u32,
    /// Temperatures for windows that the guards refuse.
    pub temperatures: Vec<f32>,
    /// Word times from the model's attention.
    pub word_times: bool,
    /// No text filters.
    pub verbatim: bool,
    /// Voice activity thresholds.
    pub speech_params: SpeechParams,
}

impl SessionParams {
    /// Defaults for these models.
    pub fn new(speech: WhisperSpec, vad: Option<VadSpec>) -> Self {
        Self {
            speech,
            fallback: Vec::new(),
            given_up: Vec::new(),
            vad,
            language: None,
            task: Task::Transcribe,
            prompt: String::new(),
            vocabulary: Vec::new(),
            beam: 0,
            temperatures: vec![0.4, 0.8],
            word_times: true,
            verbatim: false,
            speech_params: SpeechParams::default(),
        }
    }
}

/// Finds the speech model that `model` names (empty: the default) for `device` (`auto`, `cpu`, `cuda:N`) and `engine`
/// (`None`: the one that its file is for).
pub fn speech_spec(
    model: &str,
    engine: Option<manifest::Engine>,
    device: &str,
    threads: u32,
    word_times: bool,
    isolation: Isolation,
) -> Result<WhisperSpec, EngineError> {
    #[cfg(any(test, feature = "test-support"))]
    if let Some(name) = model.strip_prefix("fake:") {
        return Ok(WhisperSpec::Fake(name.to_owned()));
    }
    let cuda_device = cuda_device(device)?;
    // Of the default models only the ggml file is for cards, where whisper.cpp was built for them.
    let for_card = cfg!(feature = "cuda") && cuda_device.is_some() && matches!(model, "" | "auto");
    let engine = engine.or(for_card.then_some(manifest::Engine::WhisperCpp));
    let found = manifest::resolve_for(model, manifest::Task::Asr, engine).map_err(missing)?;
    let own = engine_of(&found);
    if engine.is_some_and(|asked| asked != own) {
        return Err(EngineError::Unsupported(match own {
            manifest::Engine::WhisperCpp => format!(
                "{} is a model for whisper.cpp, and engine=onnx was asked for: name NAME.encoder.onnx in the property \
                 model, or leave engine at auto",
                found.id
            ),
            manifest::Engine::OnnxRuntime => format!(
                "{} is a model for ONNX Runtime, and engine=whisper-cpp was asked for: name a ggml file in the \
                 property model, or leave engine at auto",
                found.id
            ),
        }));
    }
    if let Some(export) = &found.export {
        return optimum_spec(&found, export, cuda_device, isolation);
    }
    if own == manifest::Engine::OnnxRuntime {
        return onnx_spec(&found, cuda_device, isolation);
    }
    let (path, stamp) = FileStamp::of(&found.path)?;
    let spec = WhisperCppSpec {
        name: found.id.clone(),
        path,
        cuda_device,
        threads,
        word_times,
        word_time_offset: word_time_offset(&found),
    };
    let isolated = isolation.is_process(spec.cuda_device.is_some())?;
    let spec = WhisperSpec::WhisperCpp(spec, stamp);
    Ok(if isolated { spec.isolated() } else { spec })
}

/// The engine that a model's file is for.
fn engine_of(model: &manifest::ResolvedModel) -> manifest::Engine {
    match &model.entry {
        Some(entry) => entry.engine,
        None if model.path.extension().is_some_and(|e| e == "onnx") => {
            manifest::Engine::OnnxRuntime
        }
        None => manifest::Engine::WhisperCpp,
    }
}

fn onnx_spec(
    found: &manifest::ResolvedModel,
    cuda_device: Option<u32>,
    isolation: Isolation,
) -> Result<WhisperSpec, EngineError> {
    let decoder = OnnxWhisperSpec::decoder_beside(&found.path)?;
    let (encoder, encoder_stamp) = FileStamp::of(&found.path)?;
    let (decoder, decoder_stamp) = FileStamp::of(&decoder)?;
    let spec = OnnxWhisperSpec {
        encoder,
        decoder,
        name: found.id.clone(),
        cuda_device,
        word_time_offset: word_time_offset(found),
    };
    let isolated = isolation.is_process(cuda_device.is_some())?;
    let spec = WhisperSpec::Onnx(spec, [encoder_stamp, decoder_stamp]);
    Ok(if isolated { spec.isolated() } else { spec })
}

fn optimum_spec(
    found: &manifest::ResolvedModel,
    export: &manifest::Export,
    cuda_device: Option<u32>,
    isolation: Isolation,
) -> Result<WhisperSpec, EngineError> {
    if cuda_device.is_some() {
        return Err(EngineError::Unsupported(format!(
            "{} has Optimum's layout, which runs on the processor alone: set device=cpu, or name graphs that scribe-models \
             makes (scribe-models import --type onnx-f16)",
            found.id
        )));
    }
    // Names in it say what a file is: it may be a link to one that has another.
    let files = export.files();
    let stamps = files.iter().map(|file| Ok(FileStamp::of(file)?.1));
    let stamps = stamps.collect::<Result<_, EngineError>>()?;
    let spec = OptimumSpec {
        export: export.clone(),
        name: found.id.clone(),
        word_time_offset: word_time_offset(found),
    };
    let isolated = isolation.is_process(false)?;
    let spec = WhisperSpec::Optimum(spec, stamps);
    Ok(if isolated { spec.isolated() } else { spec })
}

/// Finds the models of a chain, separated by commas: each a model for the same device, `cpu` for the first model on the
/// CPU, or both as in `base.en-q5_1@cpu`. What is not here is passed over, and told.
pub fn fallback_specs(
    chain: &str,
    first: &str,
    device: &str,
    spec: impl Fn(&str, &str) -> Result<WhisperSpec, EngineError>,
) -> (Vec<WhisperSpec>, Vec<Degraded>) {
    let (mut specs, mut missing) = (Vec::new(), Vec::new());
    for link in chain.split(',').map(str::trim).filter(|l| !l.is_empty()) {
        let (model, device) = match link.split_once('@') {
            Some((model, device)) => (model, device),
            None if link == "cpu" => (first, "cpu"),
            None => (link, device),
        };
        match spec(model, device) {
            Ok(spec) => specs.push(spec),
            Err(error) => missing.push(Degraded {
                what: "speech model".into(),
                from: link.to_owned(),
                to: "the next of the chain".into(),
                reason: error.to_string(),
            }),
        }
    }
    (specs, missing)
}

/// Finds the voice activity model that `model` names (empty: the default).
pub fn vad_spec(model: &str) -> Result<VadSpec, EngineError> {
    #[cfg(any(test, feature = "test-support"))]
    if model == "fake:" {
        return Ok(VadSpec::Fake);
    }
    let found = manifest::resolve(model, manifest::Task::Vad).map_err(missing)?;
    let (path, stamp) = FileStamp::of(&found.path)?;
    Ok(VadSpec::Silero(SileroSpec { path }, stamp))
}

/// Constant lateness of the model's word times, from its manifest entry.
fn word_time_offset(model: &manifest::ResolvedModel) -> i32 {
    let ms = model
        .entry
        .as_ref()
        .and_then(|e| e.contract.number("word_time_offset_ms"));
    (ms.unwrap_or(WORD_TIME_OFFSET_MS) * f64::from(SAMPLE_RATE) / 1000.0) as i32
}

fn missing(error: manifest::ModelError) -> EngineError {
    EngineError::ModelMissing(error.to_string())
}

fn cuda_device(device: &str) -> Result<Option<u32>, EngineError> {
    match device.strip_prefix("cuda") {
        None => Ok(None),
        Some("") => Ok(Some(0)),
        Some(number) => {
            let number = number.strip_prefix(':').and_then(|n| n.parse().ok());
            number.map(Some).ok_or_else(|| {
                EngineError::Unsupported(format!(
                    "device \"{device}\" is not known: auto, cpu or cuda:N"
                ))
            })
        }
    }
}

/// The models a session uses, leased together.
#[derive(Debug)]
pub struct Models {
    speech: Lease<Whisper>,
    vad: Option<Lease<VoiceActivity>>,
    in_flight: usize,
    word_time_offset: i32,
    default_beam: u32,
    multilingual: bool,
    engine: String,
    layout: Layout,
    word_times: bool,
    takes_prefix: bool,
    /// Which of the chain it is: 0 for the one that was asked for.
    place: usize,
    /// What was given up to have them.
    given_up: Mutex<Vec<Degraded>>,
}

impl Models {
    /// Leases them, waiting while they load. Not for a streaming thread.
    pub fn acquire(
        registry: &Registry,
        params: &SessionParams,
        cancel: &CancelToken,
    ) -> Result<Self, EngineError> {
        let mut chain = vec![params.speech.clone()];
        chain.extend(params.fallback.iter().cloned());
        let request = (
            FirstOf::<Whisper>(chain),
            params.vad.clone().map(Request::<VoiceActivity>),
        );
        let (chosen, vad) = registry.acquire(request, cancel)?;
        let speech = chosen.lease;
        let place = chosen.degraded.len();
        let mut given_up = params.given_up.clone();
        given_up.extend(chosen.degraded);
        let Some(model) = speech.model() else {
            return Err(EngineError::Cancelled);
        };
        if let Some(language) = &params.language
            && !model.knows_language(language)
        {
            return Err(EngineError::Unsupported(format!(
                "{} does not know the language \"{language}\": set language-code to {}",
                model.info().name,
                if model.info().multilingual {
                    "one it knows, or to auto"
                } else {
                    "en or auto, or choose a multilingual model (one without .en)"
                }
            )));
        }
        if params.task == Task::Translate && !model.info().multilingual {
            return Err(EngineError::Unsupported(format!(
                "{} knows English only and cannot translate: choose a multilingual model (one without .en), or task=transcribe",
                model.info().name
            )));
        }
        let info = model.info();
        Ok(Self {
            in_flight: in_flight(registry.cores(), info.max_batch),
            word_time_offset: info.word_time_offset,
            default_beam: info.default_beam,
            multilingual: info.multilingual,
            engine: format!("{} on {}", info.name, info.engine),
            layout: info.layout,
            word_times: info.word_times,
            takes_prefix: info.takes_prefix,
            place,
            given_up: Mutex::new(given_up),
            speech,
            vad,
        })
    }

    /// What was given up to go on since the last call.
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::mem::take(&mut *given_up);
        out.extend(self.speech.degraded());
        out.extend(self.vad.iter().flat_map(Lease::degraded));
        out
    }

    /// What the registry says of the speech model.
    pub fn speech_stats(&self) -> ModelStats {
        self.speech.stats()
    }

    /// What the parts of both models have taken since they were loaded.
    pub fn times(&self) -> Times {
        let speech = self.speech.model().map(|m| m.times());
        let vad = self.vad.as_ref().and_then(Lease::model).map(|m| m.times());
        speech.unwrap_or_default() + vad.unwrap_or_default()
    }

    /// Model, engine and instruction sets.
    pub fn describe(&self) -> String {
        self.engine.clone()
    }

    /// Whose form the speech model's files have.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether the speech model tells when words were said; else they are spread over the speech.
    pub fn word_times(&self) -> bool {
        self.word_times
    }

    /// Whether the speech model knows more than English.
    pub fn is_multilingual(&self) -> bool {
        self.multilingual
    }

    /// Texts that the speech model follows at once where nobody asks for a number.
    pub fn default_beam(&self) -> u32 {
        self.default_beam
    }

    /// Constant lateness of the speech model's word times, in samples.
    pub fn word_time_offset(&self) -> i32 {
        self.word_time_offset
    }

    /// Has a window decoded.
    pub fn decode(
        &self,
        window: Window,
        params: BatchParams,
        class: Class,
        deadline: Option<Instant>,
    ) -> Ticket<Decoded> {
        self.speech.submit(window, params, class, deadline)
    }

    /// Asks for the voice activity of live sound; `None` without a model for it.
    pub fn voice_activity(&self, block: VadBlock) -> Option<Ticket<VadProbs>> {
        let vad = self.vad.as_ref()?;
        Some(vad.submit(block, (), Class::Live, None))
    }

    /// Which model of the chain that was asked for it is, from 0.
    pub fn place(&self) -> usize {
        self.place
    }

    /// Whether the speech model goes on behind a text that it is given.
    pub fn takes_prefix(&self) -> bool {
        self.takes_prefix
    }

    /// The process that the speech model runs in; `None` for ours.
    pub fn process(&self) -> Option<ProcessStats> {
        self.speech.model()?.process()
    }
}

/// Windows of a stream in work or waiting: as many as all lanes hold, and as many again where they take one whenever a
/// place is free, for those that are heard again hold up what comes after them.
fn in_flight(lanes: usize, batch: usize) -> usize {
    if batch > 1 {
        2 * lanes * batch
    } else {
        lanes + 1
    }
}

/// A window's words, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// Where the window begins.
    pub start: SampleIndex,
    /// No later word begins before this.
    pub end: SampleIndex,
    /// In order, not overlapping.
    pub words: Vec<RawWord>,
    /// Token ids of each word.
    pub tokens: Vec<Vec<u32>>,
    /// The window's figures; `id` and `seek` are the taker's.
    pub info: SegmentInfo,
    /// What was said is complete: more may follow, and begins anew.
    pub complete: bool,
}

/// What a session has done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionStats {
    /// Seconds of sound taken in.
    pub audio_seconds: f64,
    /// Seconds of it that are speech.
    pub speech_seconds: f64,
    /// Windows decoded.
    pub windows: u64,
    /// Further passes over windows that the guards refused.
    pub decoded_again: u64,
    /// Windows that gave no text in the end.
    pub refused: u64,
    /// Words given out.
    pub words: u64,
    /// Questions that the models have yet to answer.
    pub in_work: u64,
}

impl Add for SessionStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            audio_seconds: self.audio_seconds + other.audio_seconds,
            speech_seconds: self.speech_seconds + other.speech_seconds,
            windows: self.windows + other.windows,
            decoded_again: self.decoded_again + other.decoded_again,
            refused: self.refused + other.refused,
            words: self.words + other.words,
            in_work: self.in_work + other.in_work,
        }
    }
}

impl fmt::Display for SessionStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} s of sound, {:.1} s of speech, {} windows, {} decoded again, {} without text, {} words",
            self.audio_seconds,
            self.speech_seconds,
            self.windows,
            self.decoded_again,
            self.refused,
            self.words
        )
    }
}

/// A stretch without a hole.
struct Piece {
    buffer: SampleBuffer,
    speech: Speech,
    packer: Packer,
    vad_state: VadState,
    vad: Option<(Ticket<VadProbs>, u64)>,
    /// Level of the loudest block so far: what comes after speech is not amplified to it.
    loudest: f32,
    /// Voice activity is known up to here.
    heard: SampleIndex,
    ended: bool,
}

/// One decoding of one window: `plan` may be half of what was packed.
struct Part {
    plan: Plan,
    samples: Arc<[f32]>,
    ladder: Ladder,
    params: BatchParams,
    prompt: bool,
    ticket: Option<Ticket<Decoded>>,
    done: Option<Decoded>,
}

struct InFlight {
    plan: Plan,
    parts: Vec<Part>,
}

type Wake = Arc<dyn Fn() + Send + Sync>;

/// See the module.
pub struct Session {
    models: Arc<Models>,
    params: SessionParams,
    guard_params: GuardParams,
    wake: Wake,
    pieces: VecDeque<Piece>,
    planned: VecDeque<(Plan, Arc<[f32]>)>,
    in_flight: VecDeque<InFlight>,
    /// Words of a window that the next one overlaps.
    held: Option<(Plan, Spoken)>,
    language: Votes,
    settled: SampleIndex,
    stats: SessionStats,
}

impl Session {
    /// The models it uses.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// A session on leased models; `wake` is called from other threads when [`Session::poll`] has something.
    pub fn new(models: Arc<Models>, params: SessionParams, wake: Wake) -> Self {
        let language = if models.multilingual {
            params.language.clone()
        } else {
            Some("en".into())
        };
        let guard_params = GuardParams {
            verbatim: params.verbatim,
            ..GuardParams::default()
        };
        Self {
            models,
            params,
            guard_params,
            wake,
            pieces: VecDeque::new(),
            planned: VecDeque::new(),
            in_flight: VecDeque::new(),
            held: None,
            language: Votes::new(language),
            settled: SampleIndex(0),
            stats: SessionStats::default(),
        }
    }

    /// Takes in sound that begins at `start`; it follows on what came since the last piece ended.
    pub fn push(&mut self, start: SampleIndex, samples: &[f32]) {
        if samples.is_empty() {
            return;
        }
        self.stats.audio_seconds += samples.len() as f64 / f64::from(SAMPLE_RATE);
        self.open_piece(start).buffer.push(samples);
    }

    /// Takes in `count` samples of silence at `start`.
    pub fn push_silence(&mut self, start: SampleIndex, count: u64) {
        let zeros = [0.0; 1600];
        let mut left = count;
        while left > 0 {
            let now = left.min(zeros.len() as u64);
            self.open_piece(start).buffer.push(&zeros[..now as usize]);
            left -= now;
        }
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) {
        if let Some(piece) = self.pieces.back_mut() {
            piece.ended = true;
        }
    }

    /// Whether more sound is wanted now.
    pub fn wants_input(&self) -> bool {
        let unheard: u64 = self
            .pieces
            .iter()
            .map(|p| p.buffer.end().since(p.heard))
            .sum();
        self.pieces.len() < 16
            && unheard < MOST_UNHEARD
            && self.planned.len() < self.models.in_flight
    }

    /// Whether all that came in has gone out.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
            && self.planned.is_empty()
            && self.held.is_none()
            && self.pieces.is_empty()
    }

    /// No word will come that begins before this.
    pub fn settled_until(&self) -> SampleIndex {
        self.settled
    }

    /// What was done so far.
    pub fn stats(&self) -> SessionStats {
        let vad = self.pieces.iter().filter(|p| p.vad.is_some()).count();
        let parts = self.in_flight.iter().flat_map(|f| &f.parts);
        let asked = parts.filter(|p| p.ticket.is_some()).count();
        SessionStats {
            in_work: (vad + asked) as u64,
            ..self.stats.clone()
        }
    }

    /// The process that the speech model runs in; `None` for ours.
    pub fn process(&self) -> Option<ProcessStats> {
        self.models.process()
    }

    /// Goes on with everything that can go on, and returns what is complete.
    pub fn poll(&mut self) -> Result<Vec<Spoken>, EngineError> {
        self.listen()?;
        self.pack();
        self.launch();
        self.collect()?;
        let out = self.emit();
        self.launch();
        self.settle();
        for spoken in &out {
            self.stats.words += spoken.words.len() as u64;
        }
        Ok(out)
    }

    fn open_piece(&mut self, start: SampleIndex) -> &mut Piece {
        if self.pieces.back().is_none_or(|p| p.ended) {
            self.pieces.push_back(Piece {
                buffer: SampleBuffer::new(start),
                speech: Speech::new(start, self.params.speech_params),
                packer: Packer::new(start, self.params.vad.is_some()),
                vad_state: VadState::default(),
                vad: None,
                loudest: 0.0,
                heard: start,
                ended: false,
            });
        }
        let last = self.pieces.len() - 1;
        &mut self.pieces[last]
    }

    /// Voice activity of the pieces, a block at a time.
    fn listen(&mut self) -> Result<(), EngineError> {
        for piece in &mut self.pieces {
            let before = piece.speech.speech_samples();
            if let Some((ticket, samples)) = &mut piece.vad
                && let Some(result) = ticket.poll()
            {
                let samples = *samples;
                piece.vad = None;
                let VadProbs { probs, state } = result?;
                piece.vad_state = state;
                piece.speech.push(&probs);
                piece.heard = piece.heard.plus(samples).min(piece.buffer.end());
            }
            if piece.vad.is_none() {
                piece.ask(self.models.vad.as_ref(), &self.wake);
            }
            let speech = piece.speech.speech_samples().saturating_sub(before);
            self.stats.speech_seconds += speech as f64 / f64::from(SAMPLE_RATE);
        }
        Ok(())
    }

    /// Windows out of what was heard; pieces that are done go.
    fn pack(&mut self) {
        while let Some(piece) = self.pieces.front_mut() {
            let complete = piece.ended && piece.heard == piece.buffer.end() && piece.vad.is_none();
            let plans = piece.packer.plan(&piece.speech, piece.heard, complete);
            for plan in plans {
                let mut samples = plan.copy(&piece.buffer);
                let gain = speech::gain(speech::level(&samples));
                speech::amplify(&mut samples, gain);
                self.planned.push_back((plan, samples.into()));
            }
            if !complete {
                let needed = piece.packer.oldest_needed().min(piece.heard);
                piece.buffer.drop_before(needed);
                piece.speech.drop_before(needed);
                return;
            }
            let speech = piece.speech.open_samples();
            self.stats.speech_seconds += speech as f64 / f64::from(SAMPLE_RATE);
            self.pieces.pop_front();
        }
    }

    fn launch(&mut self) {
        while self.in_flight.len() < self.models.in_flight {
            let Some((plan, samples)) = self.planned.pop_front() else {
                return;
            };
            self.stats.windows += 1;
            let part = self.part(plan.clone(), samples);
            self.in_flight.push_back(InFlight {
                plan,
                parts: vec![part],
            });
        }
    }

    fn part(&mut self, plan: Plan, samples: Arc<[f32]>) -> Part {
        let beam = match self.params.beam {
            0 => self.models.default_beam,
            beam => beam,
        };
        let params = BatchParams {
            beam,
            word_times: self.params.word_times,
            ..BatchParams::default()
        };
        let mut part = Part {
            plan,
            samples,
            ladder: Ladder::new(beam, &self.params.temperatures),
            params,
            prompt: true,
            ticket: None,
            done: None,
        };
        self.submit(&mut part);
        part
    }

    fn submit(&self, part: &mut Part) {
        let window = Window {
            id: 0,
            samples: Arc::clone(&part.samples),
            language: self.language.language(),
            task: self.params.task,
            prompt: if part.prompt {
                self.params.prompt.clone()
            } else {
                String::new()
            },
            vocabulary: if part.prompt {
                self.params.vocabulary.clone()
            } else {
                Vec::new()
            },
            prefix: Vec::new(),
            most_tokens: 0,
            cancel: CancelToken::new(),
        };
        let ticket = self
            .models
            .speech
            .submit(window, part.params.clone(), Class::File, None);
        let wake = Arc::clone(&self.wake);
        ticket.on_ready(move || wake());
        part.ticket = Some(ticket);
    }

    /// Takes answers; what the guards refuse is decoded again.
    fn collect(&mut self) -> Result<(), EngineError> {
        let mut flights = std::mem::take(&mut self.in_flight);
        for flight in &mut flights {
            let mut i = 0;
            while i < flight.parts.len() {
                let part = &mut flight.parts[i];
                let answer = part.ticket.as_mut().and_then(Ticket::poll);
                let Some(answer) = answer else {
                    i += 1;
                    continue;
                };
                part.ticket = None;
                let decoded = answer?;
                if part.plan.speech_samples() >= LANGUAGE_SPEECH {
                    self.language.take(&decoded);
                }
                let facts =
                    WindowFacts::of(&part.plan, &part.samples, &self.prompt_text(part.prompt));
                let verdict = guards::judge(&decoded, &facts, &self.guard_params);
                match part.ladder.next(decoded, verdict, &facts) {
                    Verdict::Done(best) => {
                        part.done = Some(best);
                        i += 1;
                    }
                    Verdict::Again(pass) => {
                        self.stats.decoded_again += 1;
                        self.again(&mut flight.parts, i, &pass);
                    }
                }
            }
        }
        self.in_flight = flights;
        Ok(())
    }

    fn again(&mut self, parts: &mut Vec<Part>, at: usize, pass: &Pass) {
        if let Pass::Split | Pass::Tail { .. } | Pass::Gap { .. } = pass {
            self.divide(parts, at, pass);
            return;
        }
        let part = &mut parts[at];
        match pass {
            Pass::Beam { beam } => {
                part.params.beam = *beam;
                part.params.temperature = 0.0;
                part.prompt = false;
            }
            Pass::Temperature(t) => {
                part.params.temperature = *t;
                part.params.beam = 1;
                part.params.best_of = 3;
                part.prompt = false;
            }
            Pass::Split | Pass::Tail { .. } | Pass::Gap { .. } => {}
        }
        let mut part = parts.remove(at);
        self.submit(&mut part);
        parts.insert(at, part);
    }

    /// Two parts for one: both heard again, or only what lies behind a text that is kept.
    fn divide(&mut self, parts: &mut Vec<Part>, at: usize, pass: &Pass) {
        let samples = |seconds: f32| (seconds * SAMPLE_RATE as f32) as u32;
        let least = samples(self.guard_params.tail_s);
        let long = samples(self.guard_params.early_end_s);
        let plan = &parts[at].plan;
        let (behind, halves) = match pass {
            Pass::Tail { from } => {
                let much = plan.speech_behind(*from) > u64::from(long);
                (plan.split_behind(*from, least), much)
            }
            Pass::Gap { from } => (plan.split_behind(*from, least), true),
            _ => (None, true),
        };
        let kept = behind.as_ref().and_then(|_| match pass {
            Pass::Gap { from: 0 } => None,
            Pass::Gap { from } => Some(parts[at].ladder.last_until(*from)),
            _ => Some(parts[at].ladder.best()),
        });
        let halves = || plan.split().filter(|_| halves);
        let Some((a, b)) = behind.or_else(halves) else {
            // No pause to cut at: what there is must do.
            let part = &mut parts[at];
            part.done = Some(part.ladder.best());
            return;
        };
        let whole = Arc::clone(&parts[at].samples);
        let cut = a.len().min(whole.len());
        let (first, second): (Arc<[f32]>, Arc<[f32]>) = (whole[..cut].into(), whole[cut..].into());
        let mut b = self.part(b, second);
        // Halves are not halved again.
        if !matches!(pass, Pass::Gap { .. }) {
            b.ladder.no_halves();
        }
        let a = if let Some(kept) = kept {
            if matches!(pass, Pass::Tail { .. }) {
                b.ladder.only_good();
            }
            let part = &parts[at];
            Part {
                plan: a,
                samples: first,
                ladder: part.ladder.clone(),
                params: part.params.clone(),
                prompt: part.prompt,
                ticket: None,
                done: Some(kept),
            }
        } else {
            let mut a = self.part(a, first);
            a.ladder.no_halves();
            a
        };
        parts.splice(at..=at, [a, b]);
    }

    fn prompt_text(&self, given: bool) -> String {
        if given {
            format!(
                "{} {}",
                self.params.vocabulary.join(" "),
                self.params.prompt
            )
        } else {
            String::new()
        }
    }

    /// Complete windows from the front, in order.
    fn emit(&mut self) -> Vec<Spoken> {
        let mut out = Vec::new();
        while self
            .in_flight
            .front()
            .is_some_and(|f| f.parts.iter().all(|p| p.done.is_some()))
        {
            let Some(flight) = self.in_flight.pop_front() else {
                break;
            };
            let mut spoken = self.spoken(flight.parts, &flight.plan);
            if let Some((before, mut held)) = self.held.take() {
                if flight.plan.overlaps_previous() {
                    join::join(&mut held, &mut spoken, before.end());
                }
                out.push(held);
            }
            if flight.plan.forced_cut() {
                self.held = Some((flight.plan, spoken));
            } else {
                out.push(spoken);
            }
        }
        if self.in_flight.is_empty() && self.planned.is_empty() && self.pieces.is_empty() {
            out.extend(self.held.take().map(|(_, spoken)| spoken));
        }
        out.retain(|s| !s.words.is_empty());
        out
    }

    fn spoken(&mut self, parts: Vec<Part>, plan: &Plan) -> Spoken {
        let mut spoken = Spoken {
            start: plan.start(),
            end: plan.end(),
            words: Vec::new(),
            tokens: Vec::new(),
            info: SegmentInfo {
                task: self.params.task,
                ..SegmentInfo::default()
            },
            complete: true,
        };
        for part in parts {
            let Some(decoded) = part.done else { continue };
            let facts = WindowFacts::of(&part.plan, &part.samples, &self.prompt_text(part.prompt));
            let timed = words::words(&decoded, &part.plan, self.models.word_time_offset);
            let timed = guards::clean(
                timed,
                &facts,
                &part.plan,
                decoded.sot_no_speech,
                &self.guard_params,
            );
            spoken.info.language.clone_from(&decoded.language);
            spoken.info.temperature = spoken.info.temperature.max(decoded.temperature);
            spoken.info.avg_logprob = decoded.avg_logprob;
            spoken.info.no_speech_prob = decoded.sot_no_speech;
            spoken.info.compression_ratio = spoken
                .info
                .compression_ratio
                .max(guards::compression_ratio(&decoded));
            for (word, tokens) in timed {
                // Halves may meet in a word: times never go backwards.
                if spoken
                    .words
                    .last()
                    .is_none_or(|last| word.start >= last.end)
                {
                    spoken.words.push(word);
                    spoken.tokens.push(tokens);
                } else if let Some(last) = spoken.words.last() {
                    let start = last.end;
                    let end = word.end.max(start.plus(1));
                    spoken.words.push(RawWord { start, end, ..word });
                    spoken.tokens.push(tokens);
                }
            }
        }
        if spoken.words.is_empty() {
            self.stats.refused += 1;
        }
        spoken
    }

    fn settle(&mut self) {
        let waiting = self
            .held
            .as_ref()
            .map(|(plan, _)| plan.start())
            .or_else(|| self.in_flight.front().map(|f| f.plan.start()))
            .or_else(|| self.planned.front().map(|(plan, _)| plan.start()))
            .or_else(|| {
                self.pieces
                    .front()
                    .map(|p| p.packer.oldest_needed().min(p.heard))
            });
        if let Some(at) = waiting {
            self.settled = self.settled.max(at);
        }
    }
}

impl Piece {
    /// Without voice activity all counts as speech; quiet frames are where to cut.
    fn take_all(&mut self, unheard: u64) {
        let whole = if self.ended {
            unheard.div_ceil(VAD_FRAME as u64)
        } else {
            unheard / VAD_FRAME as u64
        };
        let to = self.heard.plus(whole * VAD_FRAME as u64);
        let samples = self.buffer.copy(self.heard, to);
        let probs: Vec<f32> = samples
            .chunks(VAD_FRAME)
            .map(|frame| {
                let power = frame.iter().map(|s| s * s).sum::<f32>() / frame.len() as f32;
                if power.sqrt() < QUIET_LEVEL { 0.1 } else { 0.9 }
            })
            .collect();
        self.speech.push(&probs);
        self.heard = to.min(self.buffer.end());
    }

    /// Asks for the voice activity of the next block, if there is one.
    fn ask(&mut self, vad: Option<&Lease<VoiceActivity>>, wake: &Wake) {
        let unheard = self.buffer.end().since(self.heard);
        let Some(vad) = vad else {
            self.take_all(unheard);
            return;
        };
        let whole = (unheard / VAD_FRAME as u64) as usize;
        let frames = whole.min(VAD_BLOCK_FRAMES);
        let last = self.ended && whole < VAD_BLOCK_FRAMES;
        if unheard == 0 || (frames < VAD_LEAST_FRAMES && !last) {
            return;
        }
        let mut samples = self.buffer.copy(
            self.heard,
            self.heard.plus(if last {
                unheard
            } else {
                (frames * VAD_FRAME) as u64
            }),
        );
        let taken = samples.len() as u64;
        self.loudest = self.loudest.max(speech::level(&samples));
        speech::amplify(&mut samples, speech::gain(self.loudest));
        samples.resize(samples.len().div_ceil(VAD_FRAME) * VAD_FRAME, 0.0);
        let block = VadBlock {
            samples,
            state: self.vad_state.clone(),
        };
        let ticket = vad.submit(block, (), Class::File, None);
        let wake = Arc::clone(wake);
        ticket.on_ready(move || wake());
        self.vad = Some((ticket, taken));
    }
}
