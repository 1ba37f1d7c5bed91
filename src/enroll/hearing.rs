// SPDX-License-Identifier: MPL-2.0
//! From sound to the speech of one person at a time: voice activity says where speech is, segmentation where two talk at
//! once, which is nobody's voice.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::audio::SampleIndex;
use crate::audio::speech::{Speech, SpeechParams, amplify, gain, is_silent, level};
use crate::diarize::activity::{Activity, FRAME_STEP, LOCAL_SPEAKERS, border_of};
use crate::inference::{
    CancelToken, EngineError, SegmentationScores, VAD_FRAME, VadBlock, VadProbs, VadState,
};
use crate::registry::{Class, Lease, Segmentation, Ticket, VoiceActivity};

/// Samples that are looked at at once: as many whole frames of voice activity as a window of segmentation holds, 9.984 s.
pub const BLOCK: usize = 312 * VAD_FRAME;
/// Blocks that are handed over ahead of their answers.
const AHEAD: usize = 4;
/// Shorter speech of one person alone is left out, samples: 0.25 s.
const RUN_LEAST: usize = 4_000;

/// When speech begins and ends; a pause under `min_silence_ms` is part of it.
fn params(min_silence_ms: u32) -> SpeechParams {
    SpeechParams {
        threshold: 0.5,
        neg_threshold: 0.35,
        min_speech_ms: 0,
        min_silence_ms,
        pad_ms: 0,
    }
}

/// A stretch of sound with all that is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Where it begins.
    pub start: u64,
    /// The sound, 16 kHz mono.
    pub samples: Arc<[f32]>,
    /// Probability of speech for each frame of 512 samples.
    pub probs: Vec<f32>,
    /// Speech of one person alone: ranges of `samples`, in order.
    pub clean: Vec<Range<usize>>,
    /// Speech of two at once, in samples.
    pub overlapped: usize,
    /// What others than the one who speaks most here say alone, in samples, as segmentation hears it.
    pub others: usize,
    /// It follows on the block before.
    pub follows: bool,
}

/// See the module. [`Hearing::push`] waits while the models are far behind.
pub struct Hearing {
    vad: Arc<Lease<VoiceActivity>>,
    segmentation: Arc<Lease<Segmentation>>,
    cancel: CancelToken,
    params: SpeechParams,
    /// Sound of the next block.
    buffer: Vec<f32>,
    start: u64,
    /// A piece has begun, and the next block follows on the last.
    is_open: bool,
    follows: bool,
    flights: VecDeque<Flight>,
    state: VadState,
    speech: Speech,
    loudest: f32,
    ready: Vec<Block>,
}

struct Flight {
    start: u64,
    samples: Arc<[f32]>,
    follows: bool,
    vad: Option<Ticket<VadProbs>>,
    scores: Ticket<SegmentationScores>,
}

impl Hearing {
    /// With these models. A pause of less than `min_silence_ms` does not part speech.
    pub fn new(
        vad: Arc<Lease<VoiceActivity>>,
        segmentation: Arc<Lease<Segmentation>>,
        min_silence_ms: u32,
        cancel: CancelToken,
    ) -> Self {
        let params = params(min_silence_ms);
        Self {
            vad,
            segmentation,
            cancel,
            params,
            buffer: Vec::new(),
            start: 0,
            is_open: false,
            follows: false,
            flights: VecDeque::new(),
            state: VadState::default(),
            speech: Speech::new(SampleIndex(0), params),
            loudest: 0.0,
            ready: Vec::new(),
        }
    }

    /// More sound, 16 kHz mono. It follows on what came since the last piece ended; `start` counts where a piece begins.
    pub fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        if samples.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.is_open, true) {
            self.start = start;
            self.follows = false;
        }
        let mut rest = samples;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == BLOCK {
                self.block()?;
            }
        }
        Ok(())
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) -> Result<(), EngineError> {
        if !self.buffer.is_empty() {
            self.block()?;
        }
        self.is_open = false;
        Ok(())
    }

    /// What has been heard since the last call, in order.
    pub fn take(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.ready)
    }

    /// Waits for all that is in flight.
    pub fn finish(&mut self) -> Result<(), EngineError> {
        self.end_piece()?;
        self.advance(0)
    }

    fn block(&mut self) -> Result<(), EngineError> {
        let samples: Arc<[f32]> = std::mem::take(&mut self.buffer).into();
        let start = self.start;
        self.start += samples.len() as u64;
        let scores = self
            .segmentation
            .submit(Arc::clone(&samples), (), Class::File, None);
        self.flights.push_back(Flight {
            start,
            samples,
            follows: std::mem::replace(&mut self.follows, true),
            vad: None,
            scores,
        });
        self.advance(AHEAD)
    }

    /// Takes answers until no more than `most` blocks are without.
    fn advance(&mut self, most: usize) -> Result<(), EngineError> {
        loop {
            self.ask();
            if self.flights.len() <= most {
                return Ok(());
            }
            let Some(mut flight) = self.flights.pop_front() else {
                return Ok(());
            };
            let Some(vad) = &mut flight.vad else {
                return Ok(());
            };
            let VadProbs { probs, state } = vad.answer(&self.cancel)?;
            self.state = state;
            let scores = flight.scores.answer(&self.cancel)?;
            self.heard(flight.start, flight.samples, flight.follows, probs, &scores);
        }
    }

    /// Voice activity goes block by block: each wants what the one before has left.
    fn ask(&mut self) {
        let Some(flight) = self.flights.front_mut() else {
            return;
        };
        if flight.vad.is_some() {
            return;
        }
        if !flight.follows {
            self.state = VadState::default();
            self.speech = Speech::new(SampleIndex(flight.start), self.params);
            self.loudest = 0.0;
        }
        let mut samples = flight.samples.to_vec();
        self.loudest = self.loudest.max(level(&samples));
        amplify(&mut samples, gain(self.loudest));
        samples.resize(samples.len().next_multiple_of(VAD_FRAME), 0.0);
        let state = self.state.clone();
        let block = VadBlock { samples, state };
        flight.vad = Some(self.vad.submit(block, (), Class::File, None));
    }

    fn heard(
        &mut self,
        start: u64,
        samples: Arc<[f32]>,
        follows: bool,
        mut probs: Vec<f32>,
        scores: &SegmentationScores,
    ) {
        if is_silent(&samples) {
            probs.fill(0.0);
        }
        self.speech.push(&probs);
        let end = start + samples.len() as u64;
        let within = |at: SampleIndex| at.0.clamp(start, end).wrapping_sub(start) as usize;
        let talk = self.speech.stretches();
        let talk = talk.map(|s| within(s.start)..within(s.end));
        let talk: Vec<Range<usize>> = talk.filter(|r| !r.is_empty()).collect();
        self.speech.drop_before(SampleIndex(end));
        let activity = Activity::of(scores, samples.len());
        let both = overlaps(&activity, samples.len());
        let alone: [usize; LOCAL_SPEAKERS] = std::array::from_fn(|n| activity.clean_frames(n));
        let most = alone.iter().max().copied().unwrap_or(0);
        let others = (alone.iter().sum::<usize>() - most) * FRAME_STEP;
        let clean = without(&talk, &both);
        let heard = |ranges: &[Range<usize>]| ranges.iter().map(Range::len).sum::<usize>();
        let overlapped = heard(&talk) - heard(&clean);
        let clean = clean.into_iter().filter(|r| r.len() >= RUN_LEAST).collect();
        self.ready.push(Block {
            start,
            samples,
            probs,
            clean,
            overlapped,
            others,
            follows,
        });
    }
}

/// Where two talk at once, as ranges of a block of `len` samples.
fn overlaps(activity: &Activity, len: usize) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for frame in (0..activity.len()).filter(|f| activity.is_overlapped(*f)) {
        let start = (border_of(frame) as usize).min(len);
        let end = (border_of(frame + 1) as usize).min(len);
        match out.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => out.push(start..end),
        }
    }
    out
}

/// What of `ranges` is in none of `holes`; both in order.
fn without(ranges: &[Range<usize>], holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    for range in ranges {
        let mut at = range.start;
        for hole in holes
            .iter()
            .filter(|h| h.end > range.start && h.start < range.end)
        {
            if hole.start > at {
                out.push(at..hole.start);
            }
            at = at.max(hole.end);
        }
        if at < range.end {
            out.push(at..range.end);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_say_at_once_is_cut_out() {
        assert_eq!(without(&[0..10, 20..30], &[]), [0..10, 20..30]);
        assert_eq!(
            without(&[0..10, 20..30], &[3..5, 8..22, 29..40]),
            [0..3, 5..8, 22..29]
        );
        assert_eq!(without(&[2..4, 5..8], &[0..4, 5..10]), []);
    }
}
