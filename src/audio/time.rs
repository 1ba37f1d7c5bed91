// SPDX-License-Identifier: MPL-2.0
//! The three clocks of scribe. They are different types so that none can stand where another should;
//! [`Timeline`](super::Timeline) alone converts between them.

use serde::{Deserialize, Serialize};

/// Samples a second inside the logic and the models.
pub const SAMPLE_RATE: u32 = 16_000;

/// A sample at 16 kHz, counted since the last flush. What the logic reckons in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleIndex(pub u64);

/// Nanoseconds of running time. What events between elements carry, without `lateness`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RunningNs(pub u64);

/// Nanoseconds of stream time: a position in the recording. What messages, metas and files carry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct StreamNs(pub u64);

impl SampleIndex {
    /// The sample `samples` later.
    pub fn plus(self, samples: u64) -> Self {
        Self(self.0.saturating_add(samples))
    }

    /// Samples from `earlier` to this one, 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds since sample 0, for messages and logs.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / f64::from(SAMPLE_RATE)
    }
}

impl StreamNs {
    /// Seconds from the start of the recording.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Milliseconds, rounded to the nearest.
    pub fn millis(self) -> u64 {
        self.0.saturating_add(500_000) / 1_000_000
    }
}

/// Nanoseconds of `samples` at 16 kHz.
pub fn samples_to_ns(samples: u64) -> u64 {
    (u128::from(samples) * 1_000_000_000 / u128::from(SAMPLE_RATE)).min(u128::from(u64::MAX)) as u64
}

/// Samples at 16 kHz that fit in `ns`, rounded to the nearest.
pub fn ns_to_samples(ns: u64) -> u64 {
    ((u128::from(ns) * u128::from(SAMPLE_RATE) + 500_000_000) / 1_000_000_000)
        .min(u128::from(u64::MAX)) as u64
}
