// SPDX-License-Identifier: MPL-2.0
//! Voice activity probabilities become stretches of speech.
//!
//! Source: the state machine of silero-vad 6.2 (`get_speech_timestamps`), shared by faster-whisper and
//! whisper.cpp, fed bit by bit.

use std::collections::VecDeque;

use super::{SAMPLE_RATE, SampleIndex};

/// Samples of a probability: 32 ms.
pub const FRAME: u64 = 512;

/// When speech begins and ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeechParams {
    /// Speech begins with a frame at or above it.
    pub threshold: f32,
    /// Speech ends with frames below it.
    pub neg_threshold: f32,
    /// Shorter speech is none, milliseconds.
    pub min_speech_ms: u32,
    /// A shorter pause ends no speech, milliseconds.
    pub min_silence_ms: u32,
    /// Added on both sides, milliseconds; at most half of the pause between two stretches.
    pub pad_ms: u32,
}

impl Default for SpeechParams {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            neg_threshold: 0.35,
            min_speech_ms: 0,
            min_silence_ms: 160,
            pad_ms: 200,
        }
    }
}

/// A stretch of speech, without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Its first sample.
    pub start: SampleIndex,
    /// Behind its last sample.
    pub end: SampleIndex,
}

/// Speech of one contiguous piece of sound.
#[derive(Clone, Debug)]
pub struct Speech {
    params: SpeechParams,
    first: SampleIndex,
    probs: VecDeque<f32>,
    stretches: VecDeque<Stretch>,
    open: Option<SampleIndex>,
    maybe_end: Option<SampleIndex>,
    speech_samples: u64,
}

fn ms(samples_of: u32) -> u64 {
    u64::from(samples_of) * u64::from(SAMPLE_RATE) / 1000
}

impl Speech {
    /// Nothing heard yet; the first frame will begin at `start`.
    pub fn new(start: SampleIndex, params: SpeechParams) -> Self {
        Self {
            params,
            first: start,
            probs: VecDeque::new(),
            stretches: VecDeque::new(),
            open: None,
            maybe_end: None,
            speech_samples: 0,
        }
    }

    /// Takes the probabilities of the next frames.
    pub fn push(&mut self, probs: &[f32]) {
        for p in probs {
            let at = self.end();
            self.probs.push_back(*p);
            if *p >= self.params.threshold {
                self.maybe_end = None;
                self.open.get_or_insert(at);
            } else if *p < self.params.neg_threshold && self.open.is_some() {
                let end = *self.maybe_end.get_or_insert(at);
                if at.plus(FRAME).since(end) >= ms(self.params.min_silence_ms) {
                    self.close(end);
                }
            }
        }
    }

    fn close(&mut self, end: SampleIndex) {
        if let Some(start) = self.open.take()
            && end.since(start) >= ms(self.params.min_speech_ms).max(1)
        {
            self.speech_samples += end.since(start);
            self.stretches.push_back(Stretch { start, end });
        }
        self.maybe_end = None;
    }

    /// Behind the last frame.
    pub fn end(&self) -> SampleIndex {
        self.first.plus(self.probs.len() as u64 * FRAME)
    }

    /// Samples of finished speech so far.
    pub fn speech_samples(&self) -> u64 {
        self.speech_samples
    }

    /// Samples of speech that has not ended yet.
    pub fn open_samples(&self) -> u64 {
        let end = self.maybe_end.unwrap_or_else(|| self.end());
        self.open.map_or(0, |start| end.since(start))
    }

    /// Stretches so far, the last one as far as it goes yet.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        let open = self.open.map(|start| Stretch {
            start,
            end: self.maybe_end.unwrap_or_else(|| self.end()),
        });
        self.stretches.iter().copied().chain(open)
    }

    /// Whether speech goes on at the end of what was heard.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Padding, in samples.
    pub fn pad(&self) -> u64 {
        ms(self.params.pad_ms)
    }

    /// Mean probability over `[from, to)`, 0 where nothing is known.
    pub fn mean(&self, from: SampleIndex, to: SampleIndex) -> f32 {
        let a = (from.since(self.first) / FRAME) as usize;
        let b = (to.since(self.first).div_ceil(FRAME) as usize).min(self.probs.len());
        if a >= b {
            return 0.0;
        }
        self.probs.range(a..b).sum::<f32>() / (b - a) as f32
    }

    /// Pauses within `[from, to)`: runs of at least `least` samples below the lower threshold.
    pub fn pauses(&self, from: SampleIndex, to: SampleIndex, least: u64) -> Vec<Stretch> {
        let mut out = Vec::new();
        let mut open: Option<SampleIndex> = None;
        let first = (from.since(self.first) / FRAME) as usize;
        let last = (to.since(self.first).div_ceil(FRAME) as usize).min(self.probs.len());
        for i in first..=last {
            let at = self.first.plus(i as u64 * FRAME);
            let quiet = i < last
                && self
                    .probs
                    .get(i)
                    .is_some_and(|p| *p < self.params.neg_threshold);
            match (quiet, open) {
                (true, None) => open = Some(at.max(from)),
                (false, Some(start)) => {
                    let end = at.min(to);
                    if end.since(start) >= least {
                        out.push(Stretch { start, end });
                    }
                    open = None;
                }
                _ => {}
            }
        }
        out
    }

    /// Middle of the frame in `[from, to)` around which speech is least likely: mean of three frames.
    pub fn least_likely(&self, from: SampleIndex, to: SampleIndex) -> SampleIndex {
        let first = (from.since(self.first) / FRAME) as usize;
        let last = (to.since(self.first) / FRAME) as usize;
        let prob = |i: usize| self.probs.get(i).copied().unwrap_or(0.0);
        let smooth = |i: usize| prob(i.saturating_sub(1)) + prob(i) + prob(i + 1);
        (first..last)
            .min_by(|a, b| smooth(*a).total_cmp(&smooth(*b)))
            .map_or(to, |i| self.first.plus(i as u64 * FRAME + FRAME / 2))
    }

    /// Forgets what lies before `index`.
    pub fn drop_before(&mut self, index: SampleIndex) {
        let frames = ((index.since(self.first) / FRAME) as usize).min(self.probs.len());
        self.probs.drain(..frames);
        self.first = self.first.plus(frames as u64 * FRAME);
        while self.stretches.front().is_some_and(|s| s.end <= index) {
            self.stretches.pop_front();
        }
    }
}

/// Under -84 dBFS, two steps of 16 bits: there is nothing to hear in it.
const SILENCE_LEVEL: f32 = 0.000_06;
/// Sound under -40 dBFS is faint: models hear it amplified.
const FAINT_LEVEL: f32 = 0.01;
/// What faint sound is amplified to: -26 dBFS.
const WANTED_LEVEL: f32 = 0.05;
/// Most amplification: 40 dB. Below, the steps of 16 bits would be all that is heard.
const MOST_GAIN: f32 = 100.0;

/// Whether sound is so quiet that it holds no speech, whatever a model says.
pub fn is_silent(samples: &[f32]) -> bool {
    !exceeds(samples, SILENCE_LEVEL)
}

/// Whether the 99.5th percentile of the absolute values lies above a level.
fn exceeds(samples: &[f32], level: f32) -> bool {
    samples.iter().filter(|s| s.abs() > level).count() > samples.len() / 200
}

/// How loud faint sound is: the 99.5th percentile of its absolute values, so that clicks do not count. Sound that is not
/// faint has the least level that is not.
pub fn level(samples: &[f32]) -> f32 {
    if samples.is_empty() {
        return 0.0;
    }
    if exceeds(samples, FAINT_LEVEL) {
        return FAINT_LEVEL;
    }
    let mut loud: Vec<f32> = samples.iter().map(|s| s.abs()).collect();
    let at = (loud.len() - 1) - loud.len() / 200;
    *loud.select_nth_unstable_by(at, f32::total_cmp).1
}

/// What sound of this level is multiplied by before a model hears it: 1 unless it is faint, and no silence.
pub fn gain(level: f32) -> f32 {
    if level >= FAINT_LEVEL || level <= SILENCE_LEVEL {
        1.0
    } else {
        (WANTED_LEVEL / level).min(MOST_GAIN)
    }
}

/// Multiplies, within full scale.
pub fn amplify(samples: &mut [f32], gain: f32) {
    if gain > 1.0 {
        for sample in samples {
            *sample = (*sample * gain).clamp(-1.0, 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speech(probs: &[f32]) -> Speech {
        let mut speech = Speech::new(SampleIndex(0), SpeechParams::default());
        speech.push(probs);
        speech
    }

    #[test]
    fn a_short_pause_ends_no_speech() {
        let mut probs = vec![0.9; 10];
        probs.extend([0.1; 4]);
        probs.extend([0.9; 10]);
        probs.extend([0.1; 10]);

        let found: Vec<_> = speech(&probs).stretches().collect();

        assert_eq!(
            found,
            [Stretch {
                start: SampleIndex(0),
                end: SampleIndex(24 * FRAME)
            }]
        );
    }

    #[test]
    fn a_long_pause_does() {
        let mut probs = vec![0.1; 5];
        probs.extend([0.9; 10]);
        probs.extend([0.1; 6]);
        probs.extend([0.6; 10]);

        let found: Vec<_> = speech(&probs).stretches().collect();

        assert_eq!(found.len(), 2);
        assert_eq!(found[0].end, SampleIndex(15 * FRAME));
        assert_eq!(
            found[1],
            Stretch {
                start: SampleIndex(21 * FRAME),
                end: SampleIndex(31 * FRAME)
            }
        );
    }

    #[test]
    fn between_the_thresholds_nothing_changes() {
        assert_eq!(speech(&[0.4; 100]).stretches().count(), 0);
        let mut probs = vec![0.9];
        probs.extend([0.4; 100]);
        assert!(speech(&probs).is_open());
    }

    #[test]
    fn what_is_below_two_steps_of_16_bits_is_silence_and_a_click_does_not_change_it() {
        let mut samples = vec![0.000_03; 16_000];
        samples[500] = 0.9;

        assert!(is_silent(&samples));
        assert!(!is_silent(&[0.0005; 1000]));
        assert!(is_silent(&[]));
    }

    #[test]
    fn faint_sound_alone_is_amplified_and_only_so_far() {
        assert_eq!(gain(level(&[0.02; 1000])), 1.0);
        assert_eq!(level(&[0.02; 1000]), FAINT_LEVEL);
        let mut clicks = [0.001; 1000];
        clicks[..5].fill(0.5);
        assert_eq!(level(&clicks), 0.001);
        clicks[5] = 0.5;
        assert_eq!(level(&clicks), FAINT_LEVEL);
        assert_eq!(gain(level(&[-0.001; 1000])), 50.0);
        assert_eq!(gain(level(&[0.000_1; 1000])), 100.0);
        assert_eq!(gain(0.0), 1.0);
        let mut samples = [0.5, -0.5, 0.001];
        amplify(&mut samples, 50.0);
        assert_eq!(samples, [1.0, -1.0, 0.05]);
    }
}
