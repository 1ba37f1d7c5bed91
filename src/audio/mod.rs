// SPDX-License-Identifier: MPL-2.0
//! Sound before it is words: clocks, buffers, voice activity. No GStreamer, no models.

pub mod time;

pub use time::{RunningNs, SAMPLE_RATE, SampleIndex, StreamNs};
