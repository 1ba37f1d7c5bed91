// SPDX-License-Identifier: MPL-2.0
//! The voices of a conversation: vectors while the sound passes, speakers once a diarizer tells who spoke when.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::hearing::Hearing;
use super::measure::{Measure, Measured};
use crate::inference::{CancelToken, EngineError, VoiceVector};
use crate::registry::{Class, Degraded, Embedding, Lease, Segmentation, Ticket, VoiceActivity};

/// A pause of this parts speech, milliseconds: within a turn there are shorter ones.
const MIN_SILENCE_MS: u32 = 300;
/// Shorter speech says too little of a voice, samples: 1 s.
const PIECE_LEAST: usize = 16_000;
/// Pieces that are handed over ahead of their answers.
const AHEAD: usize = 32;

/// A piece of speech with its vector, in samples of the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// When.
    pub samples: Range<u64>,
    /// Its vector, of length 1.
    pub vector: Vec<f32>,
}

/// Hears a conversation. No sound is kept but that of the pieces with the model: what is kept of an hour is a few
/// megabytes.
pub struct Conversation {
    hearing: Hearing,
    embedding: Arc<Lease<Embedding>>,
    duration: usize,
    hop: usize,
    measure: Measure,
    cancel: CancelToken,
    /// Speech that goes on, and where it begins.
    open: Vec<f32>,
    open_start: u64,
    flights: VecDeque<(Range<u64>, Ticket<VoiceVector>)>,
    ready: Vec<Spoken>,
}

impl Conversation {
    /// With these models, in pieces of `duration` samples every `hop`.
    pub fn new(
        vad: Arc<Lease<VoiceActivity>>,
        segmentation: Arc<Lease<Segmentation>>,
        embedding: Arc<Lease<Embedding>>,
        duration: usize,
        hop: usize,
        cancel: CancelToken,
    ) -> Self {
        Self {
            hearing: Hearing::new(vad, segmentation, MIN_SILENCE_MS, cancel.clone()),
            embedding,
            duration: duration.max(PIECE_LEAST),
            hop: hop.clamp(1, duration.max(PIECE_LEAST)),
            measure: Measure::default(),
            cancel,
            open: Vec::new(),
            open_start: 0,
            flights: VecDeque::new(),
            ready: Vec::new(),
        }
    }

    /// What was given up to go on since the last call.
    pub fn degraded(&self) -> Vec<Degraded> {
        self.embedding.degraded()
    }

    /// More sound, 16 kHz mono; `start` counts where a piece without a hole begins. Waits while the models are far behind.
    pub fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        self.hearing.push(start, samples)?;
        self.heard();
        self.advance(AHEAD)
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) -> Result<(), EngineError> {
        self.hearing.end_piece()
    }

    /// Waits for all that was heard.
    pub fn finish(&mut self) -> Result<(), EngineError> {
        self.hearing.finish()?;
        self.heard();
        self.close();
        self.advance(0)
    }

    /// What has been heard since the last call, in order.
    pub fn take(&mut self) -> Vec<Spoken> {
        std::mem::take(&mut self.ready)
    }

    /// What was measured of all of it.
    pub fn measured(&self) -> Measured {
        self.measure.measured()
    }

    fn heard(&mut self) {
        for block in self.hearing.take() {
            self.measure.block(&block);
            for range in &block.clean {
                let start = block.start + range.start as u64;
                let follows = block.follows || range.start > 0;
                if !follows || self.open_start + self.open.len() as u64 != start {
                    self.close();
                    self.open_start = start;
                }
                self.open.extend_from_slice(&block.samples[range.clone()]);
                self.cut();
            }
        }
    }

    /// Hands over the whole pieces of the speech that goes on.
    fn cut(&mut self) {
        let mut at = 0;
        // The last one waits: what is left behind it may be too short for one of its own.
        while self.open.len() - at >= self.duration + self.hop {
            self.hand_over(at..at + self.duration);
            at += self.hop;
        }
        self.open.drain(..at);
        self.open_start += at as u64;
    }

    /// The end of a stretch of speech.
    fn close(&mut self) {
        if self.open.len() > self.duration {
            self.hand_over(0..self.duration);
            self.hand_over(self.open.len() - self.duration..self.open.len());
        } else if self.open.len() >= PIECE_LEAST {
            self.hand_over(0..self.open.len());
        }
        self.open_start += self.open.len() as u64;
        self.open.clear();
    }

    fn hand_over(&mut self, range: Range<usize>) {
        let samples: Arc<[f32]> = self.open[range.clone()].into();
        let ticket = self.embedding.submit(samples, (), Class::File, None);
        let at = |n: usize| self.open_start + n as u64;
        self.flights
            .push_back((at(range.start)..at(range.end), ticket));
    }

    /// Takes answers in order until no more than `most` pieces are without.
    fn advance(&mut self, most: usize) -> Result<(), EngineError> {
        loop {
            let is_behind = self.flights.len() > most;
            let Some((_, ticket)) = self.flights.front_mut() else {
                return Ok(());
            };
            let answer = if is_behind {
                ticket.answer(&self.cancel)
            } else {
                match ticket.poll() {
                    Some(answer) => answer,
                    None => return Ok(()),
                }
            };
            let VoiceVector { values } = answer?;
            if let Some((samples, _)) = self.flights.pop_front() {
                self.ready.push(Spoken {
                    samples,
                    vector: values,
                });
            }
        }
    }
}
