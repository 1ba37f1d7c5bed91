// SPDX-License-Identifier: MPL-2.0
//! The vectors of a window's local speakers, from what each of them says alone.

use std::sync::Arc;
use std::time::Instant;

use super::activity::{Activity, FRAME_STEP, WINDOW_FRAMES, centre_of};
use super::voice::VoiceInput;
use crate::dsp::vectors::normalise;
use crate::inference::{CancelToken, EngineError, VoiceVector};
use crate::registry::{Class, Embedding, Lease, Ticket};

/// Pieces of a local speaker that are embedded at most; they are spread over what he says alone. With five the error on
/// 23 recordings is the same, with two it is half a point more.
const PIECES_MOST: usize = 3;
/// One piece more for each so many samples: 1.25 s.
const PIECE_EVERY: usize = 20_000;
/// Part of a window's frames that a local speaker must have to himself to take part in clustering: 2 s of 10.
const TRAINING_PART: f64 = 0.2;

/// The voice of a local speaker.
#[derive(Default)]
pub(super) struct LocalVoice {
    pending: Vec<Ticket<VoiceVector>>,
    sum: Vec<f32>,
    is_training: bool,
}

impl LocalVoice {
    /// Has it looked at. `samples` are those of the window.
    pub(super) fn ask(
        embedding: &Lease<Embedding>,
        input: VoiceInput,
        samples: &[f32],
        activity: &Activity,
        local: usize,
        (class, deadline): (Class, Option<Instant>),
    ) -> Self {
        let mut voice = Self::default();
        let clean = gather(samples, activity, local, true);
        // Who never talks alone is known by what is mixed with others.
        let sound = if clean.len() >= input.min_samples.max(centre_of(0)) {
            clean
        } else {
            gather(samples, activity, local, false)
        };
        if sound.len() < input.min_samples.max(1) {
            return voice;
        }
        voice.is_training = says_enough(activity, local);
        let most = match input.piece {
            0 => sound.len(),
            piece => piece.min(sound.len()),
        };
        for start in pieces(sound.len(), input.piece) {
            let samples: Arc<[f32]> = sound[start..start + most].into();
            voice
                .pending
                .push(embedding.submit(samples, (), class, deadline));
        }
        voice
    }

    /// The vector, of length 1, once it is there.
    pub(super) fn vector(&self) -> Option<&[f32]> {
        (!self.sum.is_empty()).then_some(self.sum.as_slice())
    }

    /// Whether it says enough of a person for clustering.
    pub(super) fn is_training(&self) -> bool {
        self.is_training
    }

    /// Whether all answers are there.
    pub(super) fn is_ready(&self) -> bool {
        self.pending.iter().all(Ticket::is_ready)
    }

    /// Waits for the answers.
    pub(super) fn wait(&mut self, cancel: &CancelToken) -> Result<(), EngineError> {
        for mut ticket in std::mem::take(&mut self.pending) {
            let vector = ticket.answer(cancel)?;
            self.sum.resize(vector.values.len(), 0.0);
            let sum = self.sum.iter_mut().zip(vector.values);
            sum.for_each(|(s, v)| *s += v);
        }
        normalise(&mut self.sum);
        Ok(())
    }
}

/// Whether a local speaker says enough alone for clustering.
pub(super) fn says_enough(activity: &Activity, local: usize) -> bool {
    activity.clean_frames(local) as f64 >= TRAINING_PART * WINDOW_FRAMES as f64
}

/// What a local speaker says in a window, end to end; `alone` without what others say at the same time.
fn gather(samples: &[f32], activity: &Activity, local: usize, alone: bool) -> Vec<f32> {
    let mut out = Vec::new();
    for run in activity.runs(local, alone) {
        let half = FRAME_STEP / 2;
        let start = centre_of(run.start).saturating_sub(half).min(samples.len());
        let end = centre_of(run.end - 1)
            .saturating_add(half)
            .min(samples.len());
        out.extend_from_slice(&samples[start..end]);
    }
    out
}

/// Where pieces of `piece` samples begin in `len`: evenly spread, one and one more for each 1.25 s, three at most. One of all
/// there is where `piece` is 0 or more than that.
fn pieces(len: usize, piece: usize) -> Vec<usize> {
    let spare = match len.checked_sub(piece) {
        Some(spare) if piece > 0 => spare,
        _ => return vec![0],
    };
    let count = (1 + spare.div_ceil(PIECE_EVERY)).min(PIECES_MOST);
    (0..count).map(|n| spare * n / (count - 1).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_spread_from_the_beginning_to_the_end() {
        assert_eq!(pieces(10_000, 25_840), [0]);
        assert_eq!(pieces(25_840, 25_840), [0]);
        assert_eq!(pieces(40_000, 25_840), [0, 14_160]);
        assert_eq!(pieces(160_000, 25_840), [0, 67_080, 134_160]);
        assert_eq!(pieces(50_000, 0), [0]);
    }
}
