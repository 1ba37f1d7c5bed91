// SPDX-License-Identifier: MPL-2.0
//! Live: sound in, words out while somebody speaks.
//!
//! A [`Session`] serves one channel of one stream, as [`file::Session`](super::file::Session) does for files. What is
//! decoded when, and which words stand, is the [`policy`]'s; here are voice activity, the registry's jobs, and how an
//! answer becomes words.

pub mod ladder;
pub mod policy;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audio::buffer::SampleBuffer;
use crate::audio::{SAMPLE_RATE, SampleIndex, speech};
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, ProcessStats, Token, VAD_FRAME, VadBlock,
    VadProbs, VadState, Window,
};
use crate::registry::{Class, Degraded, Ticket};
use crate::transcript::SegmentInfo;

use super::file::{Models, SessionParams, SessionStats, Spoken};
use super::guards::{self, GuardParams, WindowFacts};
use super::language::Votes;
use super::packer::Plan;
use super::{RawWord, folded, words};
use ladder::{Ladder, Level};
use policy::{Answer, Ask, LiveParams, Outcome, Policy, Reason, Said};

const SECOND: u64 = SAMPLE_RATE as u64;
/// Frames of voice activity asked for at once: 4 s at most, where sound has waited.
const VAD_FRAMES: usize = 125;
/// Frames that are waited for while nobody speaks: 128 ms.
const QUIET_FRAMES: usize = 4;
/// Frames below this level, -46 dBFS, count as pauses where no voice activity model runs.
const QUIET_LEVEL: f32 = 0.005;
/// How fast a loud moment is forgotten, for each frame: by half in a minute.
const LOUD_DECAY: f32 = 0.9996;
/// Sound of a file that waits for its words.
const MOST_UNDONE: u64 = 15 * SECOND;
/// Decodings that may fail in a row.
const MOST_FAILED: u32 = 3;
/// Least speech in a window whose language counts: 3 s.
const LANGUAGE_SPEECH: u64 = 3 * SECOND;
/// A word that was heard before is looked for so near to where it was, without a prefix.
const SAME_PLACE: u64 = SECOND * 3 / 2;
/// Words of what was heard before by which the place is known.
const ANCHOR: usize = 6;
/// Most bytes of text for a byte of its compressed form.
const COMPRESSION_MOST: f32 = 2.4;

/// Text that may still change: all behind the last words that went out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Counts up with each change.
    pub revision: u32,
    /// Empty: what was told before is taken back.
    pub text: String,
    /// Where it begins.
    pub start: SampleIndex,
    /// Where it ends.
    pub end: SampleIndex,
}

/// Speech that no words come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// From here.
    pub from: SampleIndex,
    /// To there.
    pub to: SampleIndex,
}

type Wake = Arc<dyn Fn() + Send + Sync>;

/// A decoding that is asked for.
struct Asked {
    ask: Ask,
    plan: Plan,
    facts: WindowFacts,
    ticket: Ticket<Decoded>,
}

/// A stretch without a hole.
struct Piece {
    buffer: SampleBuffer,
    policy: Policy,
    vad_state: VadState,
    vad: Option<(Ticket<VadProbs>, u64)>,
    asked: Option<Asked>,
    /// Level of the loudest block of late: what comes after speech is not amplified to it.
    loudest: f32,
    heard: SampleIndex,
    ended: bool,
}

/// See the module.
pub struct Session {
    models: Arc<Models>,
    params: SessionParams,
    live: LiveParams,
    guards: GuardParams,
    wake: Wake,
    pieces: VecDeque<Piece>,
    ladder: Ladder,
    level: Level,
    language: Votes,
    stats: SessionStats,
    settled: SampleIndex,
    partial: Partial,
    told: String,
    skipped: Vec<Skipped>,
    degraded: Vec<Degraded>,
    failed: u32,
}

impl Session {
    /// A session on leased models; `wake` is called from other threads when [`Session::poll`] has something.
    pub fn new(models: Arc<Models>, params: SessionParams, live: LiveParams, wake: Wake) -> Self {
        let language = if models.is_multilingual() {
            params.language.clone()
        } else {
            Some("en".into())
        };
        Self {
            guards: GuardParams {
                verbatim: params.verbatim,
                ..GuardParams::default()
            },
            models,
            params,
            ladder: Ladder::for_step(live.step),
            live,
            wake,
            pieces: VecDeque::new(),
            level: Level::default(),
            language: Votes::new(language),
            stats: SessionStats::default(),
            settled: SampleIndex(0),
            partial: Partial {
                revision: 0,
                text: String::new(),
                start: SampleIndex(0),
                end: SampleIndex(0),
            },
            told: String::new(),
            skipped: Vec::new(),
            degraded: Vec::new(),
            failed: 0,
        }
    }

    /// The models it uses.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Sound for which there has been so much time that a larger model may be tried, samples.
    pub fn spare(&self) -> u64 {
        self.pieces
            .back()
            .map_or(&self.ladder, |p| p.policy.ladder())
            .spare()
    }

    /// Goes on with other models: what was asked of the old ones is asked again.
    pub fn set_models(&mut self, models: Arc<Models>) {
        self.models = models;
        self.ladder.begin_anew();
        for piece in &mut self.pieces {
            piece.asked = None;
            piece.policy.begin_anew();
        }
        self.level = Level::Ends;
    }

    /// Even the least work is too much for this model.
    pub fn wants_smaller(&self) -> bool {
        self.level >= Level::Smaller
    }

    /// When words are due, from now on.
    pub fn set_latency(&mut self, latency: Option<u64>) {
        self.live.latency = latency;
        for piece in &mut self.pieces {
            piece.policy.set_latency(latency);
        }
    }

    /// Takes in sound that begins at `start`; it follows on what came since the last piece ended.
    pub fn push(&mut self, start: SampleIndex, samples: &[f32]) {
        if samples.is_empty() {
            return;
        }
        self.stats.audio_seconds += samples.len() as f64 / SECOND as f64;
        let piece = self.open_piece(start);
        piece.buffer.push(samples);
        piece.policy.sound(piece.buffer.end());
    }

    /// Takes in `count` samples of silence at `start`.
    pub fn push_silence(&mut self, start: SampleIndex, count: u64) {
        let zeros = [0.0; 1600];
        let piece = self.open_piece(start);
        let mut left = count;
        while left > 0 {
            let now = left.min(zeros.len() as u64);
            piece.buffer.push(&zeros[..now as usize]);
            left -= now;
        }
        piece.policy.sound(piece.buffer.end());
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) {
        if let Some(piece) = self.pieces.back_mut() {
            piece.ended = true;
        }
    }

    /// No sound comes for a while: what was said so far is complete.
    pub fn stall(&mut self) {
        if let Some(piece) = self.pieces.back_mut() {
            piece.policy.stall();
        }
    }

    /// Whether more sound is wanted now: a live source does not wait.
    pub fn wants_input(&mut self) -> bool {
        if self.live.latency.is_some() {
            return true;
        }
        let undone = |p: &mut Piece| p.buffer.end().since(p.policy.settled_until());
        self.pieces.len() < 4 && self.pieces.iter_mut().map(undone).sum::<u64>() < MOST_UNDONE
    }

    /// Whether all that came in has gone out.
    pub fn is_idle(&self) -> bool {
        let done = |p: &Piece| p.ended && p.heard == p.buffer.end() && p.policy.is_idle();
        self.pieces.iter().all(done)
    }

    /// Whether a model has yet to answer: for those who have time of their own.
    pub fn is_waiting(&self) -> bool {
        self.stats().in_work > 0
    }

    /// No word will come that begins before this.
    pub fn settled_until(&self) -> SampleIndex {
        self.settled
    }

    /// What was done so far.
    pub fn stats(&self) -> SessionStats {
        let vad = self.pieces.iter().filter(|p| p.vad.is_some()).count();
        let asked = self.pieces.iter().filter(|p| p.asked.is_some()).count();
        SessionStats {
            in_work: (vad + asked) as u64,
            ..self.stats.clone()
        }
    }

    /// The process that the speech model runs in; `None` for ours.
    pub fn process(&self) -> Option<ProcessStats> {
        self.models.process()
    }

    /// Text that may still change, if it is another than last time.
    pub fn partial(&mut self) -> Option<Partial> {
        let open: Vec<&Said> = self
            .pieces
            .iter()
            .flat_map(|p| p.policy.open_words())
            .collect();
        let text: String = open.iter().map(|s| s.word.text.as_str()).collect();
        let text = text.trim().to_owned();
        if text == self.told {
            return None;
        }
        self.told.clone_from(&text);
        self.partial = Partial {
            revision: self.partial.revision.wrapping_add(1),
            start: open.first().map_or(self.settled, |s| s.word.start),
            end: open.last().map_or(self.settled, |s| s.word.end),
            text,
        };
        Some(self.partial.clone())
    }

    /// Speech that was given up since the last call.
    pub fn skipped(&mut self) -> Vec<Skipped> {
        std::mem::take(&mut self.skipped)
    }

    /// What was given up to keep up since the last call, and what was taken up again.
    pub fn degraded(&mut self) -> Vec<Degraded> {
        std::mem::take(&mut self.degraded)
    }

    /// Goes on with everything that can go on, and returns the words that stand, in order.
    pub fn poll(&mut self) -> Result<Vec<Spoken>, EngineError> {
        let mut out = Vec::new();
        self.listen()?;
        loop {
            self.collect(&mut out)?;
            let Some(piece) = self.pieces.front() else {
                break;
            };
            let over = piece.ended
                && piece.heard == piece.buffer.end()
                && piece.vad.is_none()
                && piece.policy.is_idle();
            if !over {
                break;
            }
            self.settled = self.settled.max(piece.buffer.end());
            self.ladder = piece.policy.ladder().clone();
            self.pieces.pop_front();
        }
        if let Some(piece) = self.pieces.front_mut() {
            self.settled = self.settled.max(piece.policy.settled_until());
        }
        self.tell_level();
        for spoken in &out {
            self.stats.words += spoken.words.len() as u64;
        }
        Ok(out)
    }

    fn open_piece(&mut self, start: SampleIndex) -> &mut Piece {
        if self.pieces.back().is_none_or(|p| p.ended) {
            let ladder = self
                .pieces
                .back()
                .map_or(&self.ladder, |p| p.policy.ladder());
            self.pieces.push_back(Piece {
                buffer: SampleBuffer::new(start),
                policy: Policy::new(start, self.live.clone(), ladder.clone()),
                vad_state: VadState::default(),
                vad: None,
                asked: None,
                loudest: 0.0,
                heard: start,
                ended: false,
            });
        }
        let last = self.pieces.len() - 1;
        &mut self.pieces[last]
    }

    /// Voice activity of all pieces.
    fn listen(&mut self) -> Result<(), EngineError> {
        for piece in &mut self.pieces {
            if let Some((ticket, samples)) = &mut piece.vad
                && let Some(result) = ticket.poll()
            {
                let samples = *samples;
                piece.vad = None;
                let VadProbs { probs, state } = result?;
                piece.vad_state = state;
                let spoken = probs.iter().filter(|p| **p >= self.live.speech.threshold);
                self.stats.speech_seconds += (spoken.count() * VAD_FRAME) as f64 / SECOND as f64;
                piece.heard = piece.heard.plus(samples).min(piece.buffer.end());
                piece.policy.hear(&probs);
            }
            if piece.vad.is_none() {
                piece.ask(&self.models, &self.wake, &self.live);
            }
            if piece.ended && piece.vad.is_none() && piece.heard == piece.buffer.end() {
                piece.policy.end();
            }
        }
        Ok(())
    }

    /// The answer that has come to the first piece, and its next question.
    fn collect(&mut self, out: &mut Vec<Spoken>) -> Result<(), EngineError> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return Ok(());
        };
        let outcome = self.go_on(&mut piece, out);
        self.pieces.push_front(piece);
        outcome
    }

    fn go_on(&mut self, piece: &mut Piece, out: &mut Vec<Spoken>) -> Result<(), EngineError> {
        let mut info = SegmentInfo {
            task: self.params.task,
            language: self.language.settled().to_owned(),
            ..SegmentInfo::default()
        };
        if let Some(asked) = &mut piece.asked
            && let Some(result) = asked.ticket.poll()
            && let Some(asked) = piece.asked.take()
        {
            match result {
                Ok(decoded) => {
                    self.failed = 0;
                    if asked.plan.speech_samples() >= LANGUAGE_SPEECH {
                        self.language.take(&decoded);
                    }
                    info.language.clone_from(&decoded.language);
                    info.avg_logprob = decoded.avg_logprob;
                    info.no_speech_prob = decoded.sot_no_speech;
                    info.compression_ratio = guards::compression_ratio(&decoded);
                    let answer = self.answer(&decoded, &asked);
                    piece.policy.answer(answer);
                }
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => {
                    self.failed += 1;
                    if self.failed > MOST_FAILED {
                        return Err(error);
                    }
                    self.degraded.push(Degraded {
                        what: "live captions".into(),
                        from: "a decoding".into(),
                        to: "the next one".into(),
                        reason: error.to_string(),
                    });
                    piece.policy.failed();
                }
            }
        }
        if let Some(ask) = piece.policy.question() {
            self.stats.windows += 1;
            piece.asked = Some(self.submit(piece, ask));
        }
        while let Some(outcome) = piece.policy.take() {
            match outcome {
                Outcome::Words { words, ends } => out.extend(spoken(words, ends, &info)),
                Outcome::Skipped { from, to } => self.skipped.push(Skipped { from, to }),
            }
        }
        piece
            .buffer
            .drop_before(piece.policy.oldest_needed().min(piece.heard));
        Ok(())
    }

    fn submit(&self, piece: &Piece, ask: Ask) -> Asked {
        let plan = piece.policy.plan(&ask);
        let mut samples = plan.copy(&piece.buffer);
        let gain = speech::gain(speech::level(&samples));
        speech::amplify(&mut samples, gain);
        let facts = WindowFacts::of(&plan, &samples, "");
        let window = Window {
            id: 0,
            samples: samples.into(),
            language: self.language.language(),
            task: self.params.task,
            prompt: self.params.prompt.clone(),
            vocabulary: self.params.vocabulary.clone(),
            prefix: if self.models.takes_prefix() {
                ask.prefix_tokens()
            } else {
                Vec::new()
            },
            most_tokens: if self.models.takes_prefix() {
                ask.most_tokens
            } else {
                0
            },
            cancel: CancelToken::new(),
        };
        // Texts beside the first are the first thing that a machine without time does without. Behind a prefix they cost
        // little; where all is written anew with each step, they cost as much again.
        let plain =
            ask.reason == Reason::Step && (self.level > Level::Full || !self.models.takes_prefix());
        let beam = match self.params.beam {
            0 if plain => 1,
            0 => self.models.default_beam(),
            beam => beam,
        };
        let params = BatchParams {
            beam,
            word_times: self.params.word_times,
            ..BatchParams::default()
        };
        // Ends first: all that was said waits for them.
        let (class, deadline) = match ask.reason {
            Reason::Step => (Class::Live, None),
            Reason::End | Reason::Cut | Reason::Rest => {
                let due = self.live.latency.unwrap_or(0) as f64 / SECOND as f64;
                let due = Instant::now() + Duration::from_secs_f64(due);
                (Class::LiveDeadline, Some(due))
            }
        };
        let ticket = self.models.decode(window, params, class, deadline);
        let wake = Arc::clone(&self.wake);
        ticket.on_ready(move || wake());
        Asked {
            ask,
            plan,
            facts,
            ticket,
        }
    }

    /// Words out of what the model has written.
    fn answer(&self, decoded: &Decoded, asked: &Asked) -> Answer {
        let (ask, plan) = (&asked.ask, &asked.plan);
        let offset = self.models.word_time_offset();
        let heard = words::words(decoded, plan, offset);
        let (appendix, heard) = if self.models.takes_prefix() {
            let told = ask.prefix.iter().map(|s| s.tokens.len()).sum();
            behind_tokens(heard, &decoded.tokens, told)
        } else {
            behind_words(heard, &ask.prefix)
        };
        let text: String = heard.iter().map(|(word, _)| word.text.as_str()).collect();
        let loops = guards::compression(&text) > COMPRESSION_MOST || guards::loops(&text);
        let no_speech = decoded.sot_no_speech;
        let heard = guards::clean(heard, &asked.facts, plan, no_speech, &self.guards);
        let words = heard.into_iter().map(|(word, tokens)| Said {
            bare: bare(&tokens, &decoded.tokens),
            word,
            tokens,
        });
        let heard_to = |end: u32| plan.stream(end.saturating_sub(offset.max(0).unsigned_abs()));
        Answer {
            words: words.collect(),
            appendix,
            loops,
            avg_logprob: decoded.avg_logprob,
            no_speech,
            heard_to: decoded.alignment_end.map(heard_to),
            silent: asked.facts.silent,
        }
    }

    fn tell_level(&mut self) {
        let Some(piece) = self.pieces.front() else {
            return;
        };
        let ladder = piece.policy.ladder();
        let level = ladder.level();
        if level == self.level {
            return;
        }
        let cost = ladder.cost() as f64 / SECOND as f64;
        let step = ladder.step(self.live.step) as f64 / SECOND as f64;
        let reason = if level > self.level {
            format!("decoding takes {cost:.1} s: captions would fall behind")
        } else {
            format!("decoding takes {cost:.1} s: there is time for a step of {step:.1} s")
        };
        self.degraded.push(Degraded {
            what: "live captions".into(),
            from: self.level.name().into(),
            to: level.name().into(),
            reason,
        });
        self.level = level;
    }
}

impl Piece {
    /// Asks for the voice activity of what has come, if a frame is complete.
    fn ask(&mut self, models: &Models, wake: &Wake, live: &LiveParams) {
        let unheard = self.buffer.end().since(self.heard);
        let frame = VAD_FRAME as u64;
        let whole = ((unheard / frame) as usize).min(VAD_FRAMES);
        let last = self.ended && whole < VAD_FRAMES;
        // Silence is looked at less often: a job costs more than what it computes.
        let least = if self.policy.is_quiet() {
            QUIET_FRAMES
        } else {
            1
        };
        if unheard == 0 || (whole < least && !last) {
            return;
        }
        let taken = if last { unheard } else { whole as u64 * frame };
        let mut samples = self.buffer.copy(self.heard, self.heard.plus(taken));
        samples.resize(samples.len().div_ceil(VAD_FRAME) * VAD_FRAME, 0.0);
        let frames = samples.len() / VAD_FRAME;
        self.loudest *= LOUD_DECAY.powi(frames as i32);
        self.loudest = self.loudest.max(speech::level(&samples));
        speech::amplify(&mut samples, speech::gain(self.loudest));
        let block = VadBlock {
            samples,
            state: self.vad_state.clone(),
        };
        match models.voice_activity(block) {
            Some(ticket) => {
                let wake = Arc::clone(wake);
                ticket.on_ready(move || wake());
                self.vad = Some((ticket, taken));
            }
            None => {
                let copy = self.buffer.copy(self.heard, self.heard.plus(taken));
                let probs: Vec<f32> = copy.chunks(VAD_FRAME).map(|f| loud(f, live)).collect();
                self.heard = self.heard.plus(taken);
                self.policy.hear(&probs);
            }
        }
    }
}

/// Without a voice activity model: what is not quiet is speech.
fn loud(frame: &[f32], live: &LiveParams) -> f32 {
    let power = frame.iter().map(|s| s * s).sum::<f32>() / frame.len().max(1) as f32;
    if power.sqrt() < QUIET_LEVEL {
        0.0
    } else {
        live.speech.threshold.max(0.9)
    }
}

fn spoken(words: Vec<Said>, ends: bool, info: &SegmentInfo) -> Option<Spoken> {
    let start = words.first()?.word.start;
    let end = words.last()?.word.end;
    let (words, tokens) = words.into_iter().map(|s| (s.word, s.tokens)).unzip();
    Some(Spoken {
        start,
        end,
        words,
        tokens,
        info: info.clone(),
        complete: ends,
    })
}

/// How many of a word's tokens come before the punctuation at its end.
fn bare(ids: &[u32], tokens: &[Token]) -> usize {
    let is_punctuation = |id: &u32| {
        let token = tokens.iter().find(|t| t.id == *id);
        token.is_some_and(|t| {
            std::str::from_utf8(&t.bytes).is_ok_and(|text| !text.chars().any(char::is_alphanumeric))
        })
    };
    let behind = ids.iter().rev().take_while(|id| is_punctuation(id)).count();
    ids.len() - behind
}

type Heard = Vec<(RawWord, Vec<u32>)>;
type Appendix = Option<(String, Vec<u32>)>;

/// The words behind the first `told` tokens, and what was written to the last word before.
fn behind_tokens(heard: Heard, tokens: &[Token], told: usize) -> (Appendix, Heard) {
    let mut at = 0;
    let mut appendix = None;
    let mut out = Vec::new();
    for (word, ids) in heard {
        let first = ids.first();
        let start = tokens[at.min(tokens.len())..]
            .iter()
            .position(|t| Some(&t.id) == first)
            .map_or(at, |n| at + n);
        at = start + ids.len();
        if at <= told {
            continue;
        }
        if start >= told {
            out.push((word, ids));
            continue;
        }
        let more = ids[told - start..].to_vec();
        let bytes = tokens.iter().skip(told).take(more.len());
        let bytes: Vec<u8> = bytes.flat_map(|t| t.bytes.clone()).collect();
        appendix = Some((String::from_utf8_lossy(&bytes).into_owned(), more));
    }
    (appendix, out)
}

/// The same for a model that was told nothing: what stands is looked for in what it has written.
fn behind_words(heard: Heard, said: &[Said]) -> (Appendix, Heard) {
    let Some(last) = said.last() else {
        return (None, heard);
    };
    let same = |word: &RawWord, said: &Said| folded(&word.text) == folded(&said.word.text);
    // The longest end of what stands that is found near its place, and there the nearest.
    let mut best: Option<(usize, u64, usize)> = None;
    for (n, (word, _)) in heard.iter().enumerate() {
        let far = word.end.0.abs_diff(last.word.end.0);
        if far > SAME_PLACE {
            continue;
        }
        let long = (0..=n.min(said.len() - 1).min(ANCHOR - 1))
            .take_while(|k| same(&heard[n - k].0, &said[said.len() - 1 - k]))
            .count();
        let better = best.is_none_or(|(l, f, _)| long > l || (long == l && far < f));
        if long > 0 && better {
            best = Some((long, far, n));
        }
    }
    let Some((_, _, at)) = best else {
        let middle = |w: &RawWord| (w.start.0 + w.end.0) / 2;
        let behind = heard
            .into_iter()
            .filter(|(w, _)| middle(w) > last.word.end.0);
        return (None, behind.collect());
    };
    let text = heard[at].0.text.trim_end();
    let stop = text.trim_end_matches(|c: char| !c.is_alphanumeric());
    let stop = text[stop.len()..].to_owned();
    let appendix = (!stop.is_empty()).then_some((stop, Vec::new()));
    (appendix, heard.into_iter().skip(at + 1).collect())
}
