// SPDX-License-Identifier: MPL-2.0
//! Filter banks as Kaldi makes them (`compute-fbank-feats`, <https://kaldi-asr.org>; torchaudio's and WeSpeaker's are the
//! same): the logarithm of the energy in triangular bands of the mel scale, every 10 ms.
//!
//! At 16 kHz, without dither, for whole frames alone (`snip_edges`). Frame `k` depends on samples `160 k` to `160 k + 399`
//! and on nothing else, so that a stream's frames can be computed once and rows of them be used by whoever needs them; only
//! [`subtract_means`] looks at more than one.

use std::f64::consts::TAU;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};

/// Samples a second.
pub const RATE: usize = 16_000;
/// Samples of a frame: 25 ms.
pub const FRAME: usize = 400;
/// From the start of one frame to that of the next: 10 ms.
pub const SHIFT: usize = 160;
/// A frame is filled with zeros to this length.
const FFT: usize = 512;
/// Bins of the spectrum that bands take from: the last one, half the rate, is in none.
const BINS: usize = FFT / 2;
/// Least energy of a band. Its logarithm is -15.94.
const FLOOR: f32 = f32::EPSILON;

/// Weight of each sample of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// 0.54 - 0.46 cos: WeSpeaker's models.
    Hamming,
    /// Kaldi's own, Hann's to the power of 0.85: 3D-Speaker's models.
    Povey,
}

/// What may differ from model to model.
#[derive(Clone, Copy, Debug)]
pub struct FbankOptions {
    /// Weight of each sample.
    pub window: Window,
    /// What samples of -1 to 1 are multiplied by: 32768 for the scale of 16-bit samples. The least energy does not move
    /// with it.
    pub sample_scale: f32,
    /// Part of a sample that is subtracted from the next one.
    pub preemphasis: f32,
    /// Bands.
    pub bands: usize,
    /// Where the lowest band begins, Hz.
    pub low_hz: f32,
    /// Where the highest band ends, Hz: 8000 at most.
    pub high_hz: f32,
}

impl FbankOptions {
    /// With 80 bands from 20 to 8000 Hz and Kaldi's pre-emphasis.
    pub fn new(window: Window, sample_scale: f32) -> Self {
        Self {
            window,
            sample_scale,
            preemphasis: 0.97,
            bands: 80,
            low_hz: 20.0,
            high_hz: 8_000.0,
        }
    }

    /// Whether frames can be made so; why not, if not.
    pub fn check(&self) -> Result<(), String> {
        let Self {
            sample_scale,
            preemphasis,
            bands: number,
            low_hz,
            high_hz,
            ..
        } = *self;
        if !(sample_scale.is_normal() && sample_scale > 0.0) {
            return Err(format!("samples cannot be multiplied by {sample_scale}"));
        }
        if !(0.0..=1.0).contains(&preemphasis) {
            return Err(format!("its pre-emphasis is {preemphasis}, not 0 to 1"));
        }
        if !(0.0 <= low_hz && low_hz < high_hz && high_hz <= RATE as f32 / 2.0) {
            return Err(format!(
                "its bands go from {low_hz} to {high_hz} Hz, which is not within 0 to {}",
                RATE / 2
            ));
        }
        let is_empty = |bands: &[Band]| bands.iter().any(|band| band.weights.is_empty());
        if !(1..=BINS).contains(&number) || is_empty(&bands(self)) {
            return Err(format!(
                "a spectrum of {BINS} bins cannot fill {number} bands from {low_hz} to {high_hz} Hz"
            ));
        }
        Ok(())
    }

    fn key(&self) -> (Window, [u32; 4], usize) {
        let numbers = [
            self.sample_scale,
            self.preemphasis,
            self.low_hz,
            self.high_hz,
        ];
        (self.window, numbers.map(f32::to_bits), self.bands)
    }
}

/// Equal to the bit: what is equal then gives equal frames.
impl PartialEq for FbankOptions {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for FbankOptions {}

impl Hash for FbankOptions {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// Frames in `samples` samples: none below 400, then one more for each further 160.
pub fn count(samples: usize) -> usize {
    samples
        .checked_sub(FRAME)
        .map_or(0, |spare| 1 + spare / SHIFT)
}

/// Samples that `frames` frames lie on.
pub fn samples_of(frames: usize) -> usize {
    match frames {
        0 => 0,
        _ => FRAME + (frames - 1) * SHIFT,
    }
}

/// Subtracts from each band its mean over all of `frames`, which are rows of `bands` values.
pub fn subtract_means(frames: &mut [f32], bands: usize) {
    if bands == 0 || frames.len() < bands {
        return;
    }
    let mut means = vec![0.0_f64; bands];
    for frame in frames.chunks_exact(bands) {
        for (mean, value) in means.iter_mut().zip(frame) {
            *mean += f64::from(*value);
        }
    }
    let count = (frames.len() / bands) as f64;
    means.iter_mut().for_each(|mean| *mean /= count);
    for frame in frames.chunks_exact_mut(bands) {
        for (value, mean) in frame.iter_mut().zip(&means) {
            *value = (f64::from(*value) - mean) as f32;
        }
    }
}

/// A band: the bins that it weighs, from `first` on.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

/// Window, transform and bands, ready to use. Threads may share it.
pub struct Fbank {
    options: FbankOptions,
    window: Vec<f32>,
    fft: Arc<dyn RealToComplex<f32>>,
    bands: Vec<Band>,
}

impl Fbank {
    /// For these options.
    pub fn new(options: &FbankOptions) -> Self {
        Self {
            options: *options,
            window: window(options.window),
            fft: RealFftPlanner::new().plan_fft_forward(FFT),
            bands: bands(options),
        }
    }

    /// What it was made for.
    pub fn options(&self) -> &FbankOptions {
        &self.options
    }

    /// The frames of `samples` (16 kHz, -1 to 1), `count(samples.len())` rows of `bands` values. Nothing is subtracted
    /// from them. Where a sample is no number, its frames are none either.
    pub fn frames(&self, samples: &[f32]) -> Vec<f32> {
        let mut frames = Vec::with_capacity(count(samples.len()) * self.bands.len());
        self.append(samples, &mut frames);
        frames
    }

    /// The same, at the end of `frames`.
    pub fn append(&self, samples: &[f32], frames: &mut Vec<f32>) {
        let mut sound = [0.0_f32; FRAME];
        let mut input = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = [0.0_f32; BINS];
        for frame in samples.windows(FRAME).step_by(SHIFT) {
            self.prepare(frame, &mut sound, &mut input);
            let done = self
                .fft
                .process_with_scratch(&mut input, &mut spectrum, &mut scratch);
            debug_assert!(done.is_ok(), "all lengths are the transform's own");
            for (power, bin) in power.iter_mut().zip(&spectrum) {
                *power = Complex32::norm_sqr(bin);
            }
            frames.extend(self.bands.iter().map(|band| band.log_energy(&power)));
        }
    }

    /// What is transformed of a frame: its mean off, high tones raised, weighed, zeros behind.
    fn prepare(&self, frame: &[f32], sound: &mut [f32; FRAME], input: &mut [f32]) {
        let scale = self.options.sample_scale;
        for (sound, sample) in sound.iter_mut().zip(frame) {
            *sound = sample * scale;
        }
        let mean = sum(sound) / FRAME as f32;
        sound.iter_mut().for_each(|sample| *sample -= mean);
        let (weighed, zeros) = input.split_at_mut(FRAME);
        // The transform has used it as scratch.
        zeros.fill(0.0);
        let part = self.options.preemphasis;
        // Before the first sample comes the first one again.
        weighed[0] = (sound[0] - part * sound[0]) * self.window[0];
        let pairs = sound.iter().zip(&sound[1..]);
        for ((out, (before, sample)), weight) in
            weighed[1..].iter_mut().zip(pairs).zip(&self.window[1..])
        {
            *out = (sample - part * before) * weight;
        }
    }
}

impl Band {
    fn log_energy(&self, power: &[f32; BINS]) -> f32 {
        let bins = power[self.first..].iter().zip(&self.weights);
        let energy = bins.map(|(power, weight)| power * weight).sum::<f32>();
        // `max` would make a number of what is none.
        if energy < FLOOR { FLOOR } else { energy }.ln()
    }
}

/// In eight sums side by side, which is what makes it fast.
fn sum(samples: &[f32; FRAME]) -> f32 {
    let mut sums = [0.0_f32; 8];
    for eight in samples.as_chunks::<8>().0 {
        for (sum, sample) in sums.iter_mut().zip(eight) {
            *sum += sample;
        }
    }
    sums.iter().sum()
}

fn window(window: Window) -> Vec<f32> {
    let weight = |n: usize| {
        let cosine = (TAU * n as f64 / (FRAME - 1) as f64).cos();
        match window {
            Window::Hamming => 0.54 - 0.46 * cosine,
            Window::Povey => (0.5 - 0.5 * cosine).powf(0.85),
        }
    };
    (0..FRAME).map(|n| weight(n) as f32).collect()
}

fn mel(hz: f64) -> f64 {
    1127.0 * (1.0 + hz / 700.0).ln()
}

/// Triangles whose feet are their neighbours' tops, evenly spread over the mel scale.
fn bands(options: &FbankOptions) -> Vec<Band> {
    let low = mel(f64::from(options.low_hz));
    let high = mel(f64::from(options.high_hz));
    let step = (high - low) / (options.bands + 1) as f64;
    let band = |number: usize| {
        let left = low + number as f64 * step;
        let weight = |bin: usize| {
            let at = (mel((bin * RATE) as f64 / FFT as f64) - left) / step;
            at.min(2.0 - at).max(0.0) as f32
        };
        let first = (0..BINS).find(|bin| weight(*bin) > 0.0).unwrap_or(0);
        let weights = (first..BINS).map(weight).take_while(|weight| *weight > 0.0);
        Band {
            first,
            weights: weights.collect(),
        }
    };
    (0..options.bands).map(band).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    include!("../../tests/reference/sound.rs");

    /// Made by tests/reference/fbank.py: frames of 80 values, little endian.
    const HAMMING: &[u8] = include_bytes!("../../tests/reference/fbank-hamming.f32");
    const POVEY: &[u8] = include_bytes!("../../tests/reference/fbank-povey.f32");
    const POVEY_UNIT: &[u8] = include_bytes!("../../tests/reference/fbank-povey-unit.f32");

    fn values(bytes: &[u8]) -> Vec<f32> {
        let (values, _) = bytes.as_chunks::<4>();
        values.iter().map(|v| f32::from_le_bytes(*v)).collect()
    }

    fn hamming() -> Fbank {
        Fbank::new(&FbankOptions::new(Window::Hamming, 32_768.0))
    }

    /// Mean and largest difference.
    fn difference(a: &[f32], b: &[f32]) -> (f32, f32) {
        assert_eq!(a.len(), b.len());
        let far = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        let mean = far.clone().sum::<f32>() / a.len() as f32;
        (mean, far.fold(0.0, f32::max))
    }

    #[test]
    fn frames_are_those_of_kaldi() {
        for (name, window, scale, reference) in [
            ("hamming", Window::Hamming, 32_768.0, HAMMING),
            ("povey", Window::Povey, 32_768.0, POVEY),
            ("povey, -1 to 1", Window::Povey, 1.0, POVEY_UNIT),
        ] {
            let fbank = Fbank::new(&FbankOptions::new(window, scale));

            let frames = fbank.frames(&sound(1, 9600));

            let (mean, most) = difference(&frames, &values(reference));
            println!("{name}: mean {mean:.1e}, most {most:.1e}");
            assert!(mean <= 1e-4 && most <= 2e-3, "{name}: {mean} {most}");
        }
    }

    #[test]
    fn a_frame_needs_400_samples_and_each_further_one_160() {
        for (samples, frames) in [
            (0, 0),
            (399, 0),
            (400, 1),
            (559, 1),
            (560, 2),
            (160_000, 998),
        ] {
            assert_eq!(count(samples), frames, "{samples}");
            let made = hamming().frames(&vec![0.1; samples]);
            assert_eq!(made.len(), frames * 80, "{samples}");
            assert!(samples_of(frames) <= samples);
        }
        assert_eq!(samples_of(998), 159_920);
    }

    #[test]
    fn a_frame_depends_on_its_own_samples_alone() {
        let sound = sound(1, 16_000);
        let all = hamming().frames(&sound);

        let mut pieces = Vec::new();
        for from in [0, 31, 60] {
            let to = [31, 60, count(sound.len())]
                .into_iter()
                .find(|to| *to > from);
            let to = to.unwrap();
            let samples = &sound[from * SHIFT..][..samples_of(to - from)];
            hamming().append(samples, &mut pieces);
        }

        assert_eq!(all, pieces);
    }

    #[test]
    fn silence_is_at_the_floor() {
        let floor = f32::EPSILON.ln();

        let frames = hamming().frames(&[0.0; 1600]);

        assert_eq!(frames.len(), 8 * 80);
        assert!(frames.iter().all(|value| *value == floor));
    }

    #[test]
    fn the_scale_moves_what_is_above_the_floor_and_nothing_else() {
        let unit = Fbank::new(&FbankOptions::new(Window::Hamming, 1.0));
        let sound = sound(1, 3200);

        let (small, large) = (unit.frames(&sound), hamming().frames(&sound));

        let shift = 2.0 * 32_768_f32.ln();
        for (small, large) in small.iter().zip(&large) {
            let wanted = (large - shift).max(f32::EPSILON.ln());
            assert!((small - wanted).abs() < 1e-3, "{small} {large}");
        }
    }

    #[test]
    fn bands_have_a_mean_of_0_after_it_is_subtracted() {
        let mut frames = hamming().frames(&sound(1, 16_000));
        let count = (frames.len() / 80) as f32;

        subtract_means(&mut frames, 80);

        for band in 0..80 {
            let sum: f32 = frames.iter().skip(band).step_by(80).sum();
            assert!((sum / count).abs() < 1e-5, "{band}: {sum}");
        }
        assert!(frames.iter().any(|value| value.abs() > 1.0));
        subtract_means(&mut [], 80);
        subtract_means(&mut [1.0], 0);
    }

    #[test]
    fn what_is_no_number_spoils_its_own_frames_and_stays_visible() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut sound = sound(1, 1600);
            let good = hamming().frames(&sound);
            sound[700] = odd;

            let frames = hamming().frames(&sound);

            for (k, (frame, good)) in frames.chunks(80).zip(good.chunks(80)).enumerate() {
                let is_hit = (k * SHIFT..k * SHIFT + FRAME).contains(&700);
                if is_hit {
                    assert!(frame.iter().all(|v| !v.is_finite()), "{odd}, frame {k}");
                } else {
                    assert_eq!(frame, good, "{odd}, frame {k}");
                }
            }
        }
    }

    #[test]
    fn options_that_make_no_frames_are_told_apart() {
        let good = FbankOptions::new(Window::Povey, 1.0);
        let bad = [
            FbankOptions {
                sample_scale: 0.0,
                ..good
            },
            FbankOptions {
                sample_scale: f32::NAN,
                ..good
            },
            FbankOptions {
                preemphasis: 1.5,
                ..good
            },
            FbankOptions {
                low_hz: -1.0,
                ..good
            },
            FbankOptions {
                high_hz: 8001.0,
                ..good
            },
            FbankOptions {
                high_hz: f32::NAN,
                ..good
            },
            FbankOptions {
                low_hz: 100.0,
                high_hz: 100.0,
                ..good
            },
            FbankOptions { bands: 0, ..good },
            // The lowest are narrower than a bin.
            FbankOptions { bands: 200, ..good },
            FbankOptions {
                bands: usize::MAX,
                ..good
            },
        ];

        assert_eq!(good.check(), Ok(()));
        assert_eq!(FbankOptions { bands: 64, ..good }.check(), Ok(()));
        for options in bad {
            assert!(options.check().is_err(), "{options:?}");
            assert_ne!(options, good);
        }
    }

    #[test]
    fn bands_overlap_by_half_and_leave_no_bin_between_them() {
        let bands = bands(&FbankOptions::new(Window::Hamming, 1.0));

        // Between the tops of the lowest and the highest band the weights of a bin sum to 1.
        let mut sums = [0.0_f32; BINS];
        for band in &bands {
            assert!(!band.weights.is_empty());
            for (sum, weight) in sums[band.first..].iter_mut().zip(&band.weights) {
                *sum += weight;
            }
        }
        let inner = sums.iter().skip_while(|s| (**s - 1.0).abs() > 1e-5);
        let inner: Vec<_> = inner.take_while(|s| (**s - 1.0).abs() < 1e-5).collect();
        assert!(inner.len() > 240, "{}", inner.len());
    }
}
