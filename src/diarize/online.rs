// SPDX-License-Identifier: MPL-2.0
//! Who spoke when in a stream that is still going on.
//!
//! A window of the last ten seconds every `step`, its local speakers, their vectors; what is `latency` behind the newest
//! sound is final (`turns`). Who people are is learnt on the way (`known`). What was told too soon is mended: when no window
//! to come sees it any more, and again whenever all voices are clustered anew. What is kept does not grow with the stream.

mod known;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use known::{KnownVoices, Relabelled};
pub use turns::Told;

use super::activity::{Activity, LOCAL_SPEAKERS};
use super::local::LocalVoice;
use super::reconstruct::Cutting;
use super::voice::{VoiceInput, VoiceThresholds};
use crate::inference::{CancelToken, EngineError, SEGMENTATION_WINDOW, SegmentationScores};
use crate::registry::{Class, Degraded, Embedding, Lease, Segmentation, Ticket};
use turns::{LiveTurns, Making};

/// Samples of the least latency: 0.5 s.
pub const LATENCY_LEAST: usize = 8_000;
/// Samples of the most latency: 10 s, as no window sees more.
pub const LATENCY_MOST: usize = SEGMENTATION_WINDOW;
/// Samples from one window to the next where there is no hurry.
const STEP: usize = 16_000;
/// The same under a latency of two steps: with twice as many windows the error at 0.5 s is a point less.
const STEP_SHORT: usize = 8_000;
/// Windows that are with the models at a time. While they are, the next ones are left out: each sees the same sound but for
/// its last step, so that a slow machine hears with less care and no later.
const AHEAD: usize = 2;
/// Ends of pieces that wait for their last windows; what is between more of them is not heard.
const PIECES_AHEAD: usize = 16;

/// How turns are made of what is heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnlineOptions {
    /// How the vectors of one person differ from those of another.
    pub thresholds: VoiceThresholds,
    /// Samples from a sound to what is final of it, [`LATENCY_LEAST`] to [`LATENCY_MOST`]. What the models take comes on
    /// top, and at the least latency the 40 ms that a window has no frames for.
    pub latency: usize,
    /// Most people.
    pub max_speakers: usize,
    /// How turns are cut.
    pub cutting: Cutting,
    /// Wait for the models instead of leaving windows out: for sound that comes faster than in real time. The turns do not
    /// depend on the machine then.
    pub lockstep: bool,
}

/// Hears a stream window by window. [`Online::push`] never waits, but for [`OnlineOptions::lockstep`].
pub struct Online {
    segmentation: Arc<Lease<Segmentation>>,
    embedding: Arc<Lease<Embedding>>,
    voice: VoiceInput,
    cancel: CancelToken,
    latency: usize,
    step: u64,
    lockstep: bool,
    turns: LiveTurns,
    /// The sound of the last ten seconds of the piece.
    buffer: VecDeque<f32>,
    /// Where the piece begins, while there is one.
    piece: Option<u64>,
    /// Samples of it so far.
    pushed: u64,
    /// The end of its next window, and of the last one that was handed over.
    next: u64,
    heard: u64,
    flights: VecDeque<Flight>,
    /// The start of the piece whose windows are made turns of.
    current: u64,
}

/// What happens in the order of the stream.
enum Flight {
    Begin(u64),
    Window(Box<Window>),
    /// The end of a piece of so many samples.
    End(u64),
}

/// A window whose answers are not all there, from the start of the piece.
struct Window {
    start: u64,
    end: u64,
    deadline: Instant,
    samples: Arc<[f32]>,
    scores: Ticket<SegmentationScores>,
    heard: Option<(Activity, [LocalVoice; LOCAL_SPEAKERS])>,
}

impl Online {
    /// With these models. `voice` says what the embedding model looks at; `known` are the people of an [`Online`] before
    /// it, whose ids stay, or nobody.
    pub fn new(
        segmentation: Arc<Lease<Segmentation>>,
        embedding: Arc<Lease<Embedding>>,
        voice: VoiceInput,
        options: OnlineOptions,
        known: KnownVoices,
        cancel: CancelToken,
    ) -> Self {
        let latency = options.latency.clamp(LATENCY_LEAST, LATENCY_MOST);
        let step = if latency < 2 * STEP { STEP_SHORT } else { STEP };
        let how = Making {
            thresholds: options.thresholds,
            lookahead: (latency - step) as u64,
            max_speakers: options.max_speakers.max(1),
            cutting: options.cutting,
        };
        Self {
            segmentation,
            embedding,
            voice,
            cancel,
            latency,
            step: step as u64,
            lockstep: options.lockstep,
            turns: LiveTurns::new(how, known),
            buffer: VecDeque::new(),
            piece: None,
            pushed: 0,
            next: 0,
            heard: 0,
            flights: VecDeque::new(),
            current: 0,
        }
    }

    /// What was given up to go on since the last call.
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut out = self.segmentation.degraded();
        out.extend(self.embedding.degraded());
        out
    }

    /// The people heard so far.
    pub fn known(&self) -> &KnownVoices {
        self.turns.known()
    }

    /// The people heard so far, for the [`Online`] after it: after a flush, say. What is in flight is dropped.
    pub fn into_known(self) -> KnownVoices {
        self.turns.into_known()
    }

    /// More sound, 16 kHz mono. It follows on what came since the last piece ended; `start` counts where a piece begins,
    /// and pieces come in their order.
    pub fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        self.check()?;
        let mut rest = samples;
        if rest.is_empty() {
            return Ok(());
        }
        if self.piece.is_none() {
            self.piece = Some(start);
            (self.pushed, self.heard) = (0, 0);
            self.next = self.step;
            self.buffer.clear();
            self.flights.push_back(Flight::Begin(start));
        }
        while !rest.is_empty() {
            let until = (self.next - self.pushed).min(rest.len() as u64) as usize;
            let (own, more) = rest.split_at(until);
            rest = more;
            self.buffer.extend(own);
            let spare = self.buffer.len().saturating_sub(SEGMENTATION_WINDOW);
            self.buffer.drain(..spare);
            self.pushed += own.len() as u64;
            if self.pushed == self.next {
                self.next += self.step;
                self.advance(false)?;
                if self.windows() < AHEAD {
                    self.hand_over()?;
                }
            }
        }
        Ok(())
    }

    /// What comes next does not follow on. People stay who they are.
    pub fn end_piece(&mut self) -> Result<(), EngineError> {
        self.check()?;
        if self.piece.take().is_none() {
            return Ok(());
        }
        let ends = self.flights.iter().filter(|f| matches!(f, Flight::End(_)));
        if self.pushed > self.heard && ends.count() < PIECES_AHEAD {
            self.hand_over()?;
        }
        self.flights.push_back(Flight::End(self.pushed));
        self.buffer.clear();
        Ok(())
    }

    /// What has become final since the last call. Never waits.
    pub fn poll(&mut self) -> Result<Told, EngineError> {
        self.check()?;
        self.advance(false)?;
        // Models that do not answer hold back what no window to come would see, and no more.
        let most = (self.latency + SEGMENTATION_WINDOW) as u64;
        if self.piece == Some(self.current) && self.pushed > most {
            self.turns.give_up(self.pushed - most);
        }
        Ok(self.turns.take())
    }

    /// The end of the stream, or of what is to be final before something else begins: waits for what is in flight and gives
    /// the rest. All voices are looked at once more. More may be pushed after it, as after [`Online::end_piece`].
    pub fn finish(&mut self) -> Result<Told, EngineError> {
        self.end_piece()?;
        self.advance(true)?;
        self.turns.finish();
        Ok(self.turns.take())
    }

    fn check(&self) -> Result<(), EngineError> {
        if self.cancel.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Windows in flight.
    fn windows(&self) -> usize {
        let windows = self.flights.iter();
        windows.filter(|f| matches!(f, Flight::Window(_))).count()
    }

    /// Hands over the window that ends with the newest sound.
    fn hand_over(&mut self) -> Result<(), EngineError> {
        let samples: Arc<[f32]> = self.buffer.iter().copied().collect();
        let deadline = Instant::now() + Duration::from_millis(self.latency as u64 / 16);
        let order = Some(deadline);
        let job = Arc::clone(&samples);
        let scores = self.segmentation.submit(job, (), Class::Live, order);
        self.heard = self.pushed;
        self.flights.push_back(Flight::Window(Box::new(Window {
            start: self.pushed - samples.len() as u64,
            end: self.pushed,
            deadline,
            samples,
            scores,
            heard: None,
        })));
        self.advance(self.lockstep)
    }

    /// Goes on with the answers that are there; `all` waits for those that are not.
    fn advance(&mut self, all: bool) -> Result<(), EngineError> {
        // All of them first: vectors are asked for as soon as it is known who talks.
        for flight in &mut self.flights {
            let Flight::Window(window) = flight else {
                continue;
            };
            let scores = match &window.heard {
                Some(_) => None,
                None if all => Some(window.scores.answer(&self.cancel)),
                None => window.scores.poll(),
            };
            if let Some(scores) = scores {
                let activity = Activity::of(&scores?, window.samples.len());
                let order = (Class::Live, Some(window.deadline));
                let voices = std::array::from_fn(|local| {
                    let samples = &window.samples;
                    LocalVoice::ask(
                        &self.embedding,
                        self.voice,
                        samples,
                        &activity,
                        local,
                        order,
                    )
                });
                window.heard = Some((activity, voices));
            }
        }
        while let Some(flight) = self.flights.front_mut() {
            if let Flight::Window(window) = flight {
                let is_ready = |v: &LocalVoice| all || v.is_ready();
                let heard = window.heard.as_ref();
                if !heard.is_some_and(|(_, voices)| voices.iter().all(is_ready)) {
                    break;
                }
            }
            match self.flights.pop_front() {
                Some(Flight::Begin(start)) => {
                    self.current = start;
                    self.turns.begin_piece(start);
                }
                Some(Flight::End(samples)) => self.turns.end_piece(samples),
                Some(Flight::Window(window)) => self.heard(*window)?,
                None => {}
            }
        }
        Ok(())
    }

    /// A window whose answers are there.
    fn heard(&mut self, window: Window) -> Result<(), EngineError> {
        let Some((activity, mut voices)) = window.heard else {
            return Ok(());
        };
        for voice in &mut voices {
            voice.wait(&self.cancel)?;
        }
        let voices = voices.each_ref().map(|v| v.vector().map(Arc::from));
        self.turns
            .window(window.start, window.end, activity, voices);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
