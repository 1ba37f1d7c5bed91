// SPDX-License-Identifier: MPL-2.0
//! Sound before it is words: clocks, buffers, voice activity. No GStreamer, no models.

pub mod buffer;
pub mod mix;
pub mod speech;
pub mod time;
mod timeline;

pub use time::{RunningNs, SAMPLE_RATE, SampleIndex, StreamNs};
pub use timeline::{Placement, SegmentMap, Timeline};
