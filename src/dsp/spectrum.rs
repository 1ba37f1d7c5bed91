// SPDX-License-Identifier: MPL-2.0
//! Where in the spectrum sound has its power, on the average.

use std::f32::consts::TAU;
use std::fmt;
use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

/// Samples of a frame: 32 ms at 16 kHz.
const FRAME: usize = 512;
const BINS: usize = FRAME / 2 + 1;
const RATE: f64 = 16_000.0;

/// The mean power spectrum of sound at 16 kHz, from frames of 32 ms (Hann) that do not overlap.
pub struct PowerSpectrum {
    fft: Arc<dyn RealToComplex<f32>>,
    window: [f32; FRAME],
    sums: [f64; BINS],
    frames: u64,
}

impl fmt::Debug for PowerSpectrum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerSpectrum")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Default for PowerSpectrum {
    fn default() -> Self {
        Self::new()
    }
}

impl PowerSpectrum {
    /// Of nothing yet.
    pub fn new() -> Self {
        let hann = |n: usize| 0.5 - 0.5 * (TAU * n as f32 / FRAME as f32).cos();
        Self {
            fft: RealFftPlanner::new().plan_fft_forward(FRAME),
            window: std::array::from_fn(hann),
            sums: [0.0; BINS],
            frames: 0,
        }
    }

    /// More sound; what is no whole frame at its end is left out.
    pub fn add(&mut self, samples: &[f32]) {
        let mut frame = self.fft.make_input_vec();
        let mut out = self.fft.make_output_vec();
        for samples in samples.chunks_exact(FRAME) {
            let weighted = samples.iter().zip(&self.window).map(|(s, w)| s * w);
            frame.iter_mut().zip(weighted).for_each(|(f, s)| *f = s);
            // Fails for wrong lengths alone, and these are its own.
            if self.fft.process(&mut frame, &mut out).is_ok() {
                let sums = self.sums.iter_mut().zip(&out);
                sums.for_each(|(sum, bin)| *sum += f64::from(bin.norm_sqr()));
                self.frames += 1;
            }
        }
    }

    /// Mean power from `low` to `high`, Hz, in a unit of its own: for ratios.
    pub fn band(&self, low: f64, high: f64) -> f64 {
        let bin = |hz: f64| {
            (hz / RATE * FRAME as f64)
                .round()
                .clamp(0.0, (BINS - 1) as f64) as usize
        };
        let sum: f64 = self.sums[bin(low)..=bin(high).max(bin(low))].iter().sum();
        sum / self.frames.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_has_its_power_in_its_band() {
        let mut spectrum = PowerSpectrum::new();
        let tone: Vec<f32> = (0..16_000)
            .map(|n| (n as f32 * TAU * 3_000.0 / 16_000.0).sin())
            .collect();

        spectrum.add(&tone);

        let inside = spectrum.band(2_900.0, 3_100.0);
        assert!(spectrum.band(4_000.0, 8_000.0) < 1e-6 * inside);
        assert!(spectrum.band(0.0, 2_000.0) < 1e-6 * inside);
        assert!(inside > 0.0);
    }
}
