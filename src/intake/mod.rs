// SPDX-License-Identifier: MPL-2.0
//! How sound comes into an element: converted on the streaming thread, and left there for the stream's worker. What the
//! elements that listen have in common.

pub(crate) mod ear;
pub(crate) mod inbox;
pub(crate) mod input;
pub(crate) mod outbox;
pub(crate) mod properties;

use gst::glib;
use gst::prelude::*;

use crate::audio::SegmentMap;

/// What to do with several channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeChannels")]
pub enum Channels {
    /// All into one.
    #[default]
    #[enum_value(name = "All channels into one", nick = "mix")]
    Mix,
    /// Each on its own, a speaker each.
    #[enum_value(name = "Each channel on its own, a speaker each", nick = "separate")]
    Separate,
}

/// Caps of all the sound that a sink pad takes: any format, rate, number of channels and layout.
pub(crate) fn sound_caps() -> gst::Caps {
    let mut sound = gst_audio::AudioCapsBuilder::new().build();
    let layouts = gst::List::new(["interleaved", "non-interleaved"]);
    sound.make_mut().set("layout", layouts);
    sound
}

/// How a segment maps positions to times.
pub(crate) fn segment_map(segment: &gst::FormattedSegment<gst::ClockTime>) -> SegmentMap {
    let ns = |t: Option<gst::ClockTime>| t.map_or(0, gst::ClockTime::nseconds);
    SegmentMap {
        start_ns: ns(segment.start()),
        stop_ns: segment.stop().map(gst::ClockTime::nseconds),
        base_ns: ns(segment.base()),
        time_ns: ns(segment.time()),
        rate: segment.rate(),
        applied_rate: segment.applied_rate(),
    }
}

/// Hands `count` samples of silence from `start` on to `push`, bit by bit.
pub(crate) fn silence<E>(
    start: u64,
    count: u64,
    mut push: impl FnMut(u64, &[f32]) -> Result<(), E>,
) -> Result<(), E> {
    let zeros = [0.0; 1600];
    let mut done = 0;
    while done < count {
        let now = (count - done).min(zeros.len() as u64);
        push(start + done, &zeros[..now as usize])?;
        done += now;
    }
    Ok(())
}

/// Whether what a sink pad hears is live: its sender says so when asked for its latency.
pub(crate) fn is_live(sinkpad: &gst::Pad) -> bool {
    let mut query = gst::query::Latency::new();
    sinkpad.peer_query(&mut query) && query.result().0
}
