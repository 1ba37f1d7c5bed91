// SPDX-License-Identifier: MPL-2.0
//! What can be measured of a recording before a voice is made of it: speech over noise, level, clipping, band.

use std::f64::consts::LN_10;

use super::hearing::Block;
use crate::dsp::spectrum::PowerSpectrum;
use crate::inference::VAD_FRAME;

/// From here on a sample counts as cut off, if so many in a row do.
const CLIPPED: f32 = 0.985;
const CLIPPED_RUN: usize = 3;
/// Frames of voice activity below this, and so far from speech, are noise: 200 ms.
const NOISE_PROB: f32 = 0.1;
const NOISE_AWAY: usize = 6;
/// Least frames of noise: half a second. With fewer the quietest tenth of all frames stands for it.
const NOISE_LEAST: u64 = 16;
/// Steps of the histogram of levels, dB, and its lowest.
const STEP_DB: f64 = 0.5;
const LOWEST_DB: f64 = -120.0;
/// A telephone's band has less than this of 1 to 3.4 kHz above 4.2 kHz.
const TELEPHONE_PART: f64 = 1e-4;

/// Sums over a recording, block by block.
#[derive(Debug)]
pub struct Measure {
    clean: u64,
    clean_power: f64,
    overlapped: u64,
    others: u64,
    clipped: u64,
    noise_frames: u64,
    noise_power: f64,
    levels: Vec<u64>,
    spectrum: PowerSpectrum,
    samples: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Sound in all, seconds.
    pub seconds: f64,
    /// Speech of one person alone, seconds.
    pub net_speech_s: f64,
    /// Speech of two at once, seconds.
    pub overlapped_s: f64,
    /// Speech of others than the one who speaks most, each ten seconds for themselves, seconds.
    pub others_s: f64,
    /// Speech over noise, dB, from pauses; `None` without speech.
    pub snr_db: Option<f64>,
    /// Level of the speech, dB below full scale (negative); -120 without speech.
    pub level_dbfs: f64,
    /// Part of the speech's samples that are cut off, 0 to 1.
    pub clipping: f64,
    /// Nothing above the band of a telephone.
    pub is_telephone: bool,
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            clean: 0,
            clean_power: 0.0,
            overlapped: 0,
            others: 0,
            clipped: 0,
            noise_frames: 0,
            noise_power: 0.0,
            levels: vec![0; (-LOWEST_DB / STEP_DB) as usize + 1],
            spectrum: PowerSpectrum::new(),
            samples: 0,
        }
    }
}

impl Measure {
    /// One more block.
    pub fn block(&mut self, block: &Block) {
        self.samples += block.samples.len() as u64;
        self.overlapped += block.overlapped as u64;
        self.others += block.others as u64;
        for range in &block.clean {
            let speech = &block.samples[range.clone()];
            self.clean += speech.len() as u64;
            self.clean_power += power(speech) * speech.len() as f64;
            self.clipped += clipped(speech) as u64;
            self.spectrum.add(speech);
        }
        let frames = block.samples.chunks_exact(VAD_FRAME).zip(&block.probs);
        for (n, (frame, prob)) in frames.enumerate() {
            let power = power(frame);
            let db = decibels(power).max(LOWEST_DB);
            let at = ((db - LOWEST_DB) / STEP_DB) as usize;
            let last = self.levels.len() - 1;
            self.levels[at.min(last)] += 1;
            let near = n.saturating_sub(NOISE_AWAY)..(n + NOISE_AWAY + 1).min(block.probs.len());
            let near = &block.probs[near];
            if *prob < NOISE_PROB && near.iter().all(|p| *p < 0.35) {
                self.noise_frames += 1;
                self.noise_power += power;
            }
        }
    }

    /// What comes of it.
    pub fn measured(&self) -> Measured {
        let speech = self.clean_power / self.clean.max(1) as f64;
        let noise = if self.noise_frames >= NOISE_LEAST {
            self.noise_power / self.noise_frames as f64
        } else {
            self.quiet_power()
        };
        // Noise is in the speech's power too.
        let ratio = ((speech - noise) / noise.max(1e-12)).max(1e-3);
        let has_speech = self.clean > 0;
        Measured {
            seconds: self.samples as f64 / 16_000.0,
            net_speech_s: self.clean as f64 / 16_000.0,
            overlapped_s: self.overlapped as f64 / 16_000.0,
            others_s: self.others as f64 / 16_000.0,
            snr_db: has_speech.then(|| decibels(ratio).min(100.0)),
            level_dbfs: decibels(speech).max(LOWEST_DB),
            clipping: self.clipped as f64 / self.clean.max(1) as f64,
            is_telephone: has_speech
                && self.spectrum.band(4_200.0, 8_000.0)
                    < TELEPHONE_PART * self.spectrum.band(1_000.0, 3_400.0),
        }
    }

    /// Power that a tenth of all frames stays under.
    fn quiet_power(&self) -> f64 {
        let all: u64 = self.levels.iter().sum();
        let mut seen = 0;
        for (n, count) in self.levels.iter().enumerate() {
            seen += count;
            if seen * 10 >= all {
                let db = (n as f64).mul_add(STEP_DB, LOWEST_DB + STEP_DB / 2.0);
                return 10_f64.powf(db / 10.0);
            }
        }
        0.0
    }
}

/// Mean square.
fn power(samples: &[f32]) -> f64 {
    let sum: f64 = samples.iter().map(|s| f64::from(*s) * f64::from(*s)).sum();
    sum / samples.len().max(1) as f64
}

fn decibels(power: f64) -> f64 {
    if power > 0.0 {
        10.0 * power.ln() / LN_10
    } else {
        f64::NEG_INFINITY
    }
}

/// Samples in runs of three and more that are as loud as can be.
fn clipped(samples: &[f32]) -> usize {
    samples
        .chunk_by(|a, b| (a.abs() >= CLIPPED) == (b.abs() >= CLIPPED))
        .filter(|run| run.len() >= CLIPPED_RUN && run[0].abs() >= CLIPPED)
        .map(<[f32]>::len)
        .sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Noise from -1 to 1.
    fn noise(len: usize) -> Vec<f32> {
        let mut state = 7_u32;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// A second of noise at `quiet`, then two of "speech" at `loud`.
    fn block(quiet: f32, loud: f32) -> Block {
        let mut samples = noise(96 * VAD_FRAME);
        let (pause, speech) = samples.split_at_mut(32 * VAD_FRAME);
        pause.iter_mut().for_each(|s| *s *= quiet);
        speech.iter_mut().for_each(|s| *s *= loud);
        let mut probs = vec![0.01; 32];
        probs.resize(96, 0.99);
        Block {
            start: 0,
            clean: std::iter::once(32 * VAD_FRAME..samples.len()).collect(),
            samples: samples.into(),
            probs,
            overlapped: 0,
            others: 0,
            follows: false,
        }
    }

    fn measured(block: &Block) -> Measured {
        let mut measure = Measure::default();
        measure.block(block);
        measure.measured()
    }

    #[test]
    fn speech_ten_times_as_loud_as_the_pauses_is_20_db_over_them() {
        let found = measured(&block(0.01, 0.1));

        let snr = found.snr_db.unwrap();
        assert!((snr - 20.0).abs() < 0.5, "{snr}");
        assert!(
            (found.level_dbfs - -24.77).abs() < 0.2,
            "{}",
            found.level_dbfs
        );
        assert!((found.net_speech_s - 2.048).abs() < 1e-9);
        assert_eq!(found.clipping, 0.0);
        assert!(!found.is_telephone);
    }

    #[test]
    fn without_pauses_the_quietest_tenth_is_the_noise() {
        let mut found = block(0.01, 0.1);
        found.probs = vec![0.9; 96];

        let snr = measured(&found).snr_db.unwrap();

        assert!((snr - 20.0).abs() < 1.0, "{snr}");
    }

    #[test]
    fn samples_cut_off_are_counted_in_runs() {
        let mut samples = vec![0.1_f32; 100];
        samples[10] = 1.0;
        samples[20..25].fill(1.0);
        samples[30..32].fill(-1.0);
        samples[40..43].fill(-1.0);

        assert_eq!(clipped(&samples), 8);
    }

    #[test]
    fn nothing_above_four_kilohertz_is_a_telephone() {
        let mut found = block(0.0, 0.1);
        let tone = |n: usize| (n as f32 * 0.8).sin() * 0.1;
        found.samples = (0..found.samples.len()).map(tone).collect::<Arc<[f32]>>();

        assert!(measured(&found).is_telephone);
    }

    #[test]
    fn silence_has_no_figures_and_divides_by_nothing() {
        let found = measured(&Block {
            start: 0,
            samples: vec![0.0; VAD_FRAME * 4].into(),
            probs: vec![0.0; 4],
            clean: vec![],
            overlapped: 0,
            others: 0,
            follows: false,
        });

        assert_eq!(found.snr_db, None);
        assert_eq!(found.level_dbfs, LOWEST_DB);
        assert_eq!(found.clipping, 0.0);
    }
}
