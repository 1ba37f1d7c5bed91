// SPDX-License-Identifier: MPL-2.0
//! Who spoke when in a recording, once all of it has been heard.
//!
//! Both models run while the sound passes: a window of ten seconds every `step`, its local speakers, one vector for each of
//! them from what they say alone. What is kept is a few kilobytes a window. At the end vectors become people (`cluster`)
//! and windows become turns (`reconstruct`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::activity::{Activity, LOCAL_SPEAKERS};
use super::cluster::{self, Clustering};
use super::local::LocalVoice;
use super::reconstruct::{Cutting, Reconstruction, Talk, Turns};
use super::voice::{VoiceInput, VoiceThresholds};
use crate::inference::{CancelToken, EngineError, SEGMENTATION_WINDOW, SegmentationScores};
use crate::registry::{Class, Degraded, Embedding, Lease, Segmentation, Ticket};

/// Windows that are handed over ahead of their answers: several batches of the model, and no more, for each holds ten
/// seconds of sound.
const AHEAD: usize = 16;
/// How turns are made of what was heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OfflineOptions {
    /// How the vectors of one person differ from those of another.
    pub thresholds: VoiceThresholds,
    /// Fewest people, 1 or more.
    pub min_speakers: usize,
    /// Most people.
    pub max_speakers: usize,
    /// How turns are cut.
    pub cutting: Cutting,
}

/// Who spoke when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diarization {
    /// The turns; speakers are numbered in the order of their first.
    pub turns: Turns,
    /// For each speaker the voice, of length 1.
    pub voices: Vec<Vec<f32>>,
}

/// A window whose answers are not all there.
struct Flight {
    piece: usize,
    start: u64,
    samples: Arc<[f32]>,
    scores: Ticket<SegmentationScores>,
}

/// A window as it is kept.
struct Window {
    piece: usize,
    /// From the start of the piece, samples.
    start: u64,
    activity: Activity,
    voices: [LocalVoice; LOCAL_SPEAKERS],
}

/// Hears a recording window by window. [`Offline::finish`] gives what it has heard.
pub struct Offline {
    segmentation: Arc<Lease<Segmentation>>,
    embedding: Arc<Lease<Embedding>>,
    /// From the start of one window to that of the next, samples.
    step: usize,
    voice: VoiceInput,
    cancel: CancelToken,
    /// Sound from the start of the next window on.
    buffer: VecDeque<f32>,
    /// Where the next window begins in the last piece.
    next: u64,
    pieces: Vec<Piece>,
    has_ended: bool,
    flights: VecDeque<Flight>,
    windows: Vec<Window>,
    /// Windows before it have all their vectors.
    settled: usize,
}

/// Sound without a hole.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    samples: u64,
}

/// Windows of a recording with their local speakers and the vectors of those.
pub struct Heard {
    /// From the start of one window to that of the next, samples.
    step: usize,
    pieces: Vec<Piece>,
    windows: Vec<Window>,
}

impl Offline {
    /// With these models, in windows every `step` samples. `voice` says what the embedding model looks at.
    pub fn new(
        segmentation: Arc<Lease<Segmentation>>,
        embedding: Arc<Lease<Embedding>>,
        step: usize,
        voice: VoiceInput,
        cancel: CancelToken,
    ) -> Self {
        Self {
            segmentation,
            embedding,
            step: step.clamp(1, SEGMENTATION_WINDOW),
            voice,
            cancel,
            buffer: VecDeque::new(),
            next: 0,
            pieces: Vec::new(),
            has_ended: true,
            flights: VecDeque::new(),
            windows: Vec::new(),
            settled: 0,
        }
    }

    /// What was given up to go on since the last call.
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut out = self.segmentation.degraded();
        out.extend(self.embedding.degraded());
        out
    }

    /// More sound, 16 kHz mono. It follows on what came since the last piece ended; `start` counts where a piece begins.
    /// Waits while the models are far behind.
    pub fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        if samples.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut self.has_ended) {
            self.pieces.push(Piece { start, samples: 0 });
            self.next = 0;
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.samples += samples.len() as u64;
        }
        self.buffer.extend(samples);
        while self.buffer.len() >= SEGMENTATION_WINDOW {
            self.window(SEGMENTATION_WINDOW)?;
        }
        Ok(())
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) -> Result<(), EngineError> {
        let samples = self.pieces.last().map_or(0, |piece| piece.samples);
        // What no full window has seen to its end.
        let seen = match self.next.checked_sub(self.step as u64) {
            Some(last) => last + SEGMENTATION_WINDOW as u64,
            None => 0,
        };
        if !self.has_ended && samples > seen {
            self.window(self.buffer.len().min(SEGMENTATION_WINDOW))?;
        }
        self.buffer.clear();
        self.has_ended = true;
        Ok(())
    }

    /// Hands over the window at the front.
    fn window(&mut self, len: usize) -> Result<(), EngineError> {
        let samples: Arc<[f32]> = self.buffer.iter().take(len).copied().collect();
        self.buffer.drain(..self.step.min(self.buffer.len()));
        let scores = self
            .segmentation
            .submit(Arc::clone(&samples), (), Class::File, None);
        self.flights.push_back(Flight {
            piece: self.pieces.len().saturating_sub(1),
            start: self.next,
            samples,
            scores,
        });
        self.next += self.step as u64;
        self.take_answers(AHEAD)
    }

    /// Takes the answers that are there, and waits for more while `most` windows are without.
    fn take_answers(&mut self, most: usize) -> Result<(), EngineError> {
        loop {
            let is_behind = self.flights.len() > most;
            let Some(flight) = self.flights.front_mut() else {
                break;
            };
            let answer = if is_behind {
                Some(flight.scores.answer(&self.cancel))
            } else {
                flight.scores.poll()
            };
            let Some(answer) = answer else {
                break;
            };
            let scores = answer?;
            if let Some(flight) = self.flights.pop_front() {
                let activity = Activity::of(&scores, flight.samples.len());
                let voices = self.ask_for_voices(&flight, &activity);
                self.windows.push(Window {
                    piece: flight.piece,
                    start: flight.start,
                    activity,
                    voices,
                });
            }
        }
        // Those of a few windows ago are there, or soon will be.
        let until = self.windows.len().saturating_sub(most);
        self.settle(until)
    }

    fn ask_for_voices(&self, flight: &Flight, activity: &Activity) -> [LocalVoice; LOCAL_SPEAKERS] {
        std::array::from_fn(|local| {
            let order = (Class::File, None);
            let samples = &flight.samples;
            LocalVoice::ask(&self.embedding, self.voice, samples, activity, local, order)
        })
    }

    fn settle(&mut self, until: usize) -> Result<(), EngineError> {
        while self.settled < until {
            let window = &mut self.windows[self.settled];
            for voice in &mut window.voices {
                voice.wait(&self.cancel)?;
            }
            self.settled += 1;
        }
        Ok(())
    }

    /// The end of the recording. Waits for all answers.
    pub fn finish(mut self) -> Result<Heard, EngineError> {
        self.end_piece()?;
        self.take_answers(0)?;
        self.settle(self.windows.len())?;
        Ok(Heard {
            step: self.step,
            pieces: self.pieces,
            windows: self.windows,
        })
    }
}

impl Heard {
    /// Who spoke when.
    pub fn diarization(&self, options: &OfflineOptions) -> Diarization {
        let all = || self.windows.iter().flat_map(|w| &w.voices);
        let mut training: Vec<&[f32]> = all()
            .filter(|v| v.is_training())
            .filter_map(LocalVoice::vector)
            .collect();
        if training.is_empty() {
            // A recording in which nobody talks for two seconds on end.
            training = all().filter_map(LocalVoice::vector).collect();
        }
        let per_second = 16_000.0 / self.step as f32;
        let how = Clustering {
            link: options.thresholds.link,
            merge: options.thresholds.merge,
            least: (options.thresholds.least_seconds * per_second)
                .round()
                .max(1.0) as usize,
            min: options.min_speakers,
            max: options.max_speakers,
        };
        let people = cluster::people(&training, &how);
        let mut turns = Turns::default();
        let mut windows = self.windows.iter().peekable();
        for (n, piece) in self.pieces.iter().enumerate() {
            // Each for itself: no turn goes over a hole.
            let mut own = Reconstruction::new(people.len(), options.cutting);
            while let Some(window) = windows.next_if(|w| w.piece == n) {
                let voices = window.voices.each_ref().map(LocalVoice::vector);
                let who = cluster::assign(&people, &voices);
                own.window(window.start, &window.activity, &who);
            }
            let own = own.finish(piece.samples);
            let at = |list: Vec<Talk>| list.into_iter().map(|talk| talk.later(piece.start));
            turns.all.extend(at(own.all));
            turns.exclusive.extend(at(own.exclusive));
        }
        in_order(turns, people)
    }
}

/// Numbers speakers in the order of their first turns. Who has none is nobody.
fn in_order(turns: Turns, people: Vec<Vec<f32>>) -> Diarization {
    let mut order: Vec<usize> = Vec::new();
    for turn in &turns.all {
        if !order.contains(&turn.speaker) {
            order.push(turn.speaker);
        }
    }
    let renumber = |list: Vec<Talk>| {
        list.into_iter()
            .filter_map(|turn| {
                let speaker = order.iter().position(|s| *s == turn.speaker)?;
                Some(Talk { speaker, ..turn })
            })
            .collect()
    };
    Diarization {
        turns: Turns {
            all: renumber(turns.all),
            exclusive: renumber(turns.exclusive),
        },
        voices: order.iter().map(|s| people[*s].clone()).collect(),
    }
}
