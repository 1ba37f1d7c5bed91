// SPDX-License-Identifier: MPL-2.0
//! What Whisper hears: the logarithm of the power in 80 or 128 bands of Slaney's mel scale, every 10 ms of a window of 30 s.
//!
//! Frames are rows, as our encoder graphs take them: frame `k` is centred on sample `160 k`, so its 400 samples begin 200
//! earlier. Before the window's first sample and behind its last one the sound goes on as in a mirror.
//!
//! Source: openai-whisper, `audio.py`: `log_mel_spectrogram`; the filters are those of librosa, `filters.mel`, whose values
//! OpenAI keeps in `mel_filters.npz`.

use std::f64::consts::TAU;
use std::fmt;
use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};

/// Samples a second.
pub const RATE: usize = 16_000;
/// Samples of a window: 30 s.
pub const WINDOW_SAMPLES: usize = 30 * RATE;
/// Frames of a window.
pub const WINDOW_FRAMES: usize = WINDOW_SAMPLES / HOP;
/// From the middle of one frame to that of the next: 10 ms.
pub const HOP: usize = 160;
/// Samples of a frame: 25 ms.
const FRAME: usize = 400;
/// Bins of a frame's spectrum.
pub const BINS: usize = FRAME / 2 + 1;
/// Samples of a frame before its middle.
const HALF: usize = FRAME / 2;
/// Least power of a band; its logarithm is -10.
const FLOOR: f32 = 1e-10;
/// What lies so far below the loudest value of a window, in powers of ten, is lifted to that.
const RANGE: f32 = 8.0;

/// Frames of a window whose middle lies in its first `samples` samples: the others hold no sound but an edge of it.
pub fn frames_with_sound(samples: usize) -> usize {
    samples.div_ceil(HOP).min(WINDOW_FRAMES)
}

/// Slaney's mel filters from 0 to 8000 Hz, normalised by area: `[bands][201]`, nearly all of them 0.
///
/// Rounding to f32 before *and* after the normalisation gives OpenAI's own values bit for bit.
pub fn filters(bands: usize) -> Vec<f32> {
    const LINEAR_HZ: f64 = 200.0 / 3.0;
    const KNEE_HZ: f64 = 1000.0;
    let log_step = 6.4_f64.ln() / 27.0;
    let knee = KNEE_HZ / LINEAR_HZ;
    let to_hz = |mel: f64| {
        if mel < knee {
            mel * LINEAR_HZ
        } else {
            KNEE_HZ * (log_step * (mel - knee)).exp()
        }
    };
    let nyquist = RATE as f64 / 2.0;
    let top = knee + (nyquist / KNEE_HZ).ln() / log_step;
    let points: Vec<f64> = up_to(top, bands + 2).into_iter().map(to_hz).collect();
    let bins = up_to(nyquist, BINS);
    let mut filters = Vec::with_capacity(bands * BINS);
    for band in points.windows(3) {
        let area = 2.0 / (band[2] - band[0]);
        for bin in &bins {
            let rising = (bin - band[0]) / (band[1] - band[0]);
            let falling = (band[2] - bin) / (band[2] - band[1]);
            let weight = rising.min(falling).max(0.0) as f32;
            filters.push((f64::from(weight) * area) as f32);
        }
    }
    filters
}

/// `count` numbers from 0 to `last`, evenly spread.
fn up_to(last: f64, count: usize) -> Vec<f64> {
    let step = last / (count - 1) as f64;
    (0..count)
        .map(|n| {
            if n + 1 == count {
                last
            } else {
                n as f64 * step
            }
        })
        .collect()
}

/// Makes windows of a number of bands. Holds all the room that it works in: only the first one is allocated for.
pub struct LogMel {
    bands: Vec<Band>,
    hann: [f32; FRAME],
    fft: Arc<dyn RealToComplex<f32>>,
    frame: Vec<f32>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
    power: [f32; BINS],
}

/// A band: the bins that it weighs, from `first` on. No more than 15 of 201 are.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

impl fmt::Debug for LogMel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogMel")
            .field("bands", &self.bands.len())
            .finish_non_exhaustive()
    }
}

impl LogMel {
    /// For that many bands: 80, or 128 for large-v3 and what was made of it.
    pub fn new(bands: usize) -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(FRAME);
        let hann = |n: usize| (0.5 - 0.5 * (TAU * n as f64 / FRAME as f64).cos()) as f32;
        Self {
            bands: filters(bands).chunks(BINS).map(Band::of).collect(),
            hann: std::array::from_fn(hann),
            frame: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            power: [0.0; BINS],
            fft,
        }
    }

    /// Bands of a frame.
    pub fn bands(&self) -> usize {
        self.bands.len()
    }

    /// Values of a window: 3000 frames of as many as there are bands.
    pub fn len(&self) -> usize {
        WINDOW_FRAMES * self.bands.len()
    }

    /// Whether there are no bands at all.
    pub fn is_empty(&self) -> bool {
        self.bands.is_empty()
    }

    /// The window that begins with `samples` and goes on with silence.
    ///
    /// - `samples`: 16 kHz, -1 to 1, 30 s at most; what is behind those is left out.
    /// - `out`: `[3000, bands]`, filled with values that rise by 1 for each factor of 10⁴ in power, -1.5 where there is
    ///   none. The least is 2 below the largest. Where a sample is no number, its frames are none either.
    ///
    /// # Panics
    /// If `out` has another length than [`Self::len`].
    pub fn window(&mut self, samples: &[f32], out: &mut [f32]) {
        assert_eq!(out.len(), self.len(), "a window has 3000 frames");
        let samples = &samples[..samples.len().min(WINDOW_SAMPLES)];
        // Frames that begin behind the sound are silent without a look. The last ones see the window's end mirrored.
        let heard = match samples.len() {
            0 => 0,
            n => (n + HALF).div_ceil(HOP).min(WINDOW_FRAMES),
        };
        let (loud, silent) = out.split_at_mut(heard * self.bands.len());
        silent.fill(FLOOR.log10());
        for (k, row) in loud.chunks_exact_mut(self.bands.len()).enumerate() {
            self.row(samples, k, row);
        }
        // `max` passes over what is no number, and so must the limit.
        let least = out.iter().copied().fold(f32::NEG_INFINITY, f32::max) - RANGE;
        for value in out {
            let limited = if *value < least { least } else { *value };
            *value = (limited + 4.0) / 4.0;
        }
    }

    /// Logarithms of frame `k`.
    fn row(&mut self, samples: &[f32], k: usize, row: &mut [f32]) {
        let begin = (k * HOP).checked_sub(HALF);
        match begin.and_then(|begin| samples.get(begin..begin + FRAME)) {
            Some(inside) => {
                let weighed = inside.iter().zip(&self.hann).map(|(s, w)| s * w);
                self.frame.iter_mut().zip(weighed).for_each(|(f, s)| *f = s);
            }
            None => {
                for (n, (f, w)) in self.frame.iter_mut().zip(&self.hann).enumerate() {
                    let at = mirrored(k * HOP + n);
                    *f = samples.get(at).map_or(0.0, |s| s * w);
                }
            }
        }
        let done =
            self.fft
                .process_with_scratch(&mut self.frame, &mut self.spectrum, &mut self.scratch);
        debug_assert!(done.is_ok(), "all lengths are the transform's own");
        for (power, bin) in self.power.iter_mut().zip(&self.spectrum) {
            *power = bin.norm_sqr();
        }
        for (value, band) in row.iter_mut().zip(&self.bands) {
            *value = band.log_power(&self.power);
        }
    }
}

/// The sample of a window that is heard at `place`, counted from 200 before its first one.
fn mirrored(place: usize) -> usize {
    let at = place.abs_diff(HALF);
    at.min((2 * (WINDOW_SAMPLES - 1)).saturating_sub(at))
}

impl Band {
    fn of(filter: &[f32]) -> Self {
        let first = filter.iter().position(|w| *w > 0.0).unwrap_or(0);
        let end = filter.iter().rposition(|w| *w > 0.0).map_or(0, |n| n + 1);
        Self {
            first,
            weights: filter[first..end].to_vec(),
        }
    }

    fn log_power(&self, power: &[f32; BINS]) -> f32 {
        let bins = power[self.first..].iter().zip(&self.weights);
        let sum = bins.map(|(power, weight)| power * weight).sum::<f32>();
        // `max` would make a number of what is none.
        if sum < FLOOR { FLOOR } else { sum }.log10()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    include!("../../tests/reference/sound.rs");

    /// Made by tests/reference/mel.py: rows of a window, little endian.
    const START_80: &[u8] = include_bytes!("../../tests/reference/mel-80-start.f32");
    const END_80: &[u8] = include_bytes!("../../tests/reference/mel-80-end.f32");
    const START_128: &[u8] = include_bytes!("../../tests/reference/mel-128-start.f32");

    fn values(bytes: &[u8]) -> Vec<f32> {
        let (values, _) = bytes.as_chunks::<4>();
        values.iter().map(|v| f32::from_le_bytes(*v)).collect()
    }

    fn window(bands: usize, samples: &[f32]) -> Vec<f32> {
        let mut mel = LogMel::new(bands);
        let mut out = vec![f32::NAN; mel.len()];
        mel.window(samples, &mut out);
        out
    }

    fn tone(hz: f64, samples: usize) -> Vec<f32> {
        (0..samples)
            .map(|n| (0.5 * (TAU * hz * n as f64 / RATE as f64).sin()) as f32)
            .collect()
    }

    #[test]
    fn windows_are_those_of_the_reference() {
        let short = sound(1, 9_600);
        let whole = sound(2, 480_000);
        for (name, bands, sound, from, reference) in [
            ("80, short", 80, &short, 0, START_80),
            ("80, end of a whole one", 80, &whole, 2_980, END_80),
            ("128, short", 128, &short, 0, START_128),
        ] {
            let reference = values(reference);

            let window = window(bands, sound);

            let rows = &window[from * bands..][..reference.len()];
            let far = rows.iter().zip(&reference).map(|(a, b)| (a - b).abs());
            let mean = far.clone().sum::<f32>() / reference.len() as f32;
            let most = far.fold(0.0, f32::max);
            println!("{name}: mean {mean:.1e}, most {most:.1e}");
            assert!(mean <= 1e-6 && most <= 2e-5, "{name}: {mean} {most}");
        }
    }

    #[test]
    fn silence_is_the_same_however_long_it_is() {
        for samples in [0, 1, 16_000, WINDOW_SAMPLES] {
            let window = window(80, &vec![0.0; samples]);

            assert!(window.iter().all(|value| *value == -1.5), "{samples}");
        }
    }

    #[test]
    fn a_tone_is_loudest_in_the_band_that_it_lies_in() {
        for (bands, hz, band) in [(80, 1_000.0, 26), (80, 4_000.0, 62), (128, 1_000.0, 42)] {
            let window = window(bands, &tone(hz, 16_000));

            // The first frames see the mirror, the last ones the end.
            for (k, row) in window.chunks(bands).enumerate().take(98).skip(2) {
                let loudest = (0..bands).max_by(|a, b| row[*a].total_cmp(&row[*b]));
                assert_eq!(loudest, Some(band), "{hz} Hz, {bands} bands, frame {k}");
            }
            let (low, high) = window
                .iter()
                .fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            assert!((high - low - 2.0).abs() < 1e-6, "{low} to {high}");
        }
    }

    #[test]
    fn sound_ten_times_as_loud_is_half_higher() {
        let soft = window(80, &tone(700.0, 8_000));
        let loud: Vec<f32> = tone(700.0, 8_000).iter().map(|s| s * 10.0).collect();

        let loud = window(80, &loud);

        let largest = |window: &[f32]| window.iter().copied().fold(f32::MIN, f32::max);
        assert!((largest(&loud) - largest(&soft) - 0.5).abs() < 1e-5);
    }

    #[test]
    fn a_window_says_nothing_of_the_one_before() {
        let mut mel = LogMel::new(80);
        let mut out = vec![0.0; mel.len()];
        mel.window(&sound(3, 480_000), &mut out);

        mel.window(&sound(1, 9_600), &mut out);

        assert_eq!(out, window(80, &sound(1, 9_600)));
    }

    #[test]
    fn silence_behind_the_sound_may_be_given_or_not() {
        for samples in [1, 159, 160, 9_600, 479_999] {
            let short = sound(2, samples);
            let mut filled = short.clone();
            filled.resize(WINDOW_SAMPLES, 0.0);

            assert_eq!(window(80, &short), window(80, &filled), "{samples}");
        }
        let long = sound(2, 500_000);
        assert_eq!(window(80, &long), window(80, &long[..WINDOW_SAMPLES]));
    }

    #[test]
    fn frames_with_sound_are_those_whose_middle_is_sound() {
        for (samples, frames) in [
            (0, 0),
            (1, 1),
            (160, 1),
            (161, 2),
            (16_000, 100),
            (480_000, 3_000),
            (500_000, 3_000),
        ] {
            assert_eq!(frames_with_sound(samples), frames, "{samples}");
        }
    }

    #[test]
    fn few_weights_are_not_0_and_each_band_has_some() {
        for (bands, weights) in [(80, 391), (128, 394)] {
            let mel = LogMel::new(bands);

            let spans = mel.bands.iter().map(|band| band.weights.len());

            assert_eq!(mel.bands(), bands);
            assert!(spans.clone().all(|span| (1..=15).contains(&span)));
            assert_eq!(spans.sum::<usize>(), weights);
        }
    }

    #[test]
    fn what_is_no_number_spoils_its_own_frames_and_stays_visible() {
        let mut sound = sound(1, 9_600);
        let good = window(80, &sound);
        sound[1_700] = f32::NAN;

        let spoilt = window(80, &sound);

        for (k, (row, good)) in spoilt.chunks(80).zip(good.chunks(80)).enumerate() {
            let is_hit = (k * HOP..k * HOP + FRAME).contains(&(1_700 + HALF));
            if is_hit {
                assert!(row.iter().all(|value| value.is_nan()), "frame {k}");
            } else {
                assert_eq!(row, good, "frame {k}");
            }
        }
    }
}
