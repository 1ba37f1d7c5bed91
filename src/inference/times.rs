// SPDX-License-Identifier: MPL-2.0
//! How much processor time the parts of the engines take, and what they do in it.
//!
//! It is the time of the thread that computes: waiting for another lane or for a core is not in it. Engines that compute
//! with threads of their own have no times here.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Samples to a spectrogram.
    Mel,
    /// The encoder's runs.
    Encoder,
    /// The decoder's runs.
    Decoder,
    /// Word times from the decoder's attention.
    Alignment,
    /// The voice activity model's runs.
    Vad,
}

const PARTS: usize = 5;

/// Since a model was loaded, over all its lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    parts: [Duration; PARTS],
    /// Windows encoded.
    pub windows: u64,
    /// Runs of the decoder.
    pub steps: u64,
    /// Windows that those were about, summed: their sound is read once in a run, however many beams they have.
    pub step_windows: u64,
    /// Tokens that the decoder read, those of prompts and of all beams among them.
    pub tokens: u64,
}

impl Times {
    /// Processor time of a part.
    pub fn of(&self, part: Part) -> Duration {
        self.parts[part as usize]
    }

    /// Processor time of all parts.
    pub fn all(&self) -> Duration {
        self.parts.iter().sum()
    }
}

impl Add for Times {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parts: std::array::from_fn(|n| self.parts[n] + other.parts[n]),
            windows: self.windows + other.windows,
            steps: self.steps + other.steps,
            step_windows: self.step_windows + other.step_windows,
            tokens: self.tokens + other.tokens,
        }
    }
}

/// What was done between two looks.
impl Sub for Times {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            parts: std::array::from_fn(|n| self.parts[n].saturating_sub(before.parts[n])),
            windows: self.windows.saturating_sub(before.windows),
            steps: self.steps.saturating_sub(before.steps),
            step_windows: self.step_windows.saturating_sub(before.step_windows),
            tokens: self.tokens.saturating_sub(before.tokens),
        }
    }
}

/// Adds them up, for a model and its lanes.
#[derive(Debug, Default)]
pub(super) struct Meter {
    nanoseconds: [AtomicU64; PARTS],
    windows: AtomicU64,
    steps: AtomicU64,
    step_windows: AtomicU64,
    tokens: AtomicU64,
}

impl Meter {
    /// Does `work`, which is part of `part`.
    pub fn time<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let before = thread_time();
        let out = work();
        let took = thread_time().saturating_sub(before).as_nanos();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        self.nanoseconds[part as usize].fetch_add(took, Ordering::Relaxed);
        if part == Part::Encoder {
            self.windows.fetch_add(1, Ordering::Relaxed);
        }
        out
    }

    /// A run of the decoder about so many windows, which read so many tokens.
    pub fn step(&self, windows: usize, tokens: usize) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.step_windows
            .fetch_add(windows as u64, Ordering::Relaxed);
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// All so far.
    pub fn times(&self) -> Times {
        let get = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Times {
            parts: self
                .nanoseconds
                .each_ref()
                .map(|n| Duration::from_nanos(get(n))),
            windows: get(&self.windows),
            steps: get(&self.steps),
            step_windows: get(&self.step_windows),
            tokens: get(&self.tokens),
        }
    }
}

/// Processor time of this thread.
pub fn thread_time() -> Duration {
    duration(ClockId::ThreadCPUTime)
}

/// Processor time of all threads of this process.
pub fn process_time() -> Duration {
    duration(ClockId::ProcessCPUTime)
}

fn duration(clock: ClockId) -> Duration {
    // Never below 0.
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_in_its_part_and_waiting_is_not() {
        let meter = Meter::default();

        let sum = meter.time(Part::Mel, || {
            (0..2_000_000_u64).fold(1, |a, b| a ^ (a << 1) ^ b)
        });
        meter.time(Part::Vad, || {
            std::thread::sleep(Duration::from_millis(50));
        });
        meter.time(Part::Encoder, || ());
        meter.step(2, 8);
        meter.step(1, 4);

        let times = meter.times();
        assert_ne!(sum, 0);
        assert!(times.of(Part::Mel) > Duration::ZERO);
        assert!(times.of(Part::Vad) < Duration::from_millis(40));
        assert_eq!(times.of(Part::Decoder), Duration::ZERO);
        let counted = [times.windows, times.steps, times.step_windows, times.tokens];
        assert_eq!(counted, [1, 2, 3, 12]);
        assert_eq!(times + times - times, times);
        assert_eq!(times - times, Times::default());
    }
}
