// SPDX-License-Identifier: MPL-2.0
//! The element messages and events of scribe: built and read in one place. docs/elements.md lists them field
//! by field.

use gst::prelude::*;

use crate::registry::ledger::DeviceMemory;
use crate::transcript::Cue;

/// Final text, as an element message: `text` (string), `start`, `end` (uint64, ns of stream time), `final`
/// (boolean), `language` (string), `speaker`, `speaker-id` (string, if known), `confidence` (double, mean of
/// the words).
pub const TRANSCRIPT: &str = "scribe/transcript";
/// How far the work is: `percent` (double, 0 to 100, or -1 where the length is unknown), `position` (uint64,
/// ns of stream time), `text` (string).
pub const PROGRESS: &str = "scribe/progress";
/// Quality was given up to go on: `what`, `from`, `to`, `reason` (strings).
pub const DEGRADED: &str = "scribe/degraded";
/// Memory of a device, every ten seconds of work: `device` (string), `total`, `capacity` (what scribe could have),
/// `ceiling` (80 % of it), `booked`, `reserved`, `foreign`, `peak` (uint64, bytes), `percent` (double, of the capacity).
pub const MEMORY: &str = "scribe/memory";
/// Serialized downstream event of GStreamer's transcribers: the speaker changes here. `speaker` (string).
pub const SPEAKER_CHANGE: &str = "rstranscribe/speaker-change";
/// Serialized downstream event of GStreamer's transcribers: a stretch of text is complete.
pub const FINAL_TRANSCRIPT: &str = "rstranscribe/final-transcript";

/// See [`TRANSCRIPT`].
pub fn transcript(src: &impl IsA<gst::Object>, cue: &Cue, is_final: bool) -> gst::Message {
    let mut s = gst::Structure::builder(TRANSCRIPT)
        .field("text", cue.text())
        .field("start", cue.start.0)
        .field("end", cue.end.0)
        .field("final", is_final)
        .field("language", cue.segment.language.as_str())
        .build();
    if !cue.words.is_empty() {
        let sum: f64 = cue.words.iter().map(|w| f64::from(w.confidence)).sum();
        s.set("confidence", sum / cue.words.len() as f64);
    }
    if let Some(speaker) = &cue.speaker {
        s.set("speaker", speaker.as_str());
    }
    if let Some(id) = &cue.speaker_id {
        s.set("speaker-id", id.as_str());
    }
    gst::message::Element::builder(s).src(src).build()
}

/// See [`PROGRESS`].
pub fn progress(
    src: &impl IsA<gst::Object>,
    percent: Option<f64>,
    position: u64,
    text: &str,
) -> gst::Message {
    let s = gst::Structure::builder(PROGRESS)
        .field("percent", percent.unwrap_or(-1.0))
        .field("position", position)
        .field("text", text)
        .build();
    gst::message::Element::builder(s).src(src).build()
}

/// See [`DEGRADED`].
pub fn degraded(
    src: &impl IsA<gst::Object>,
    what: &str,
    from: &str,
    to: &str,
    reason: &str,
) -> gst::Message {
    let s = gst::Structure::builder(DEGRADED)
        .field("what", what)
        .field("from", from)
        .field("to", to)
        .field("reason", reason)
        .build();
    gst::message::Element::builder(s).src(src).build()
}

/// See [`MEMORY`].
pub fn memory(src: &impl IsA<gst::Object>, memory: &DeviceMemory) -> gst::Message {
    let s = gst::Structure::builder(MEMORY)
        .field("device", memory.device.to_string())
        .field("total", memory.total)
        .field("capacity", memory.capacity)
        .field("ceiling", memory.ceiling)
        .field("booked", memory.booked)
        .field("reserved", memory.reserved)
        .field("foreign", memory.foreign)
        .field("peak", memory.peak)
        .field("percent", memory.percent())
        .build();
    gst::message::Element::builder(s).src(src).build()
}

/// See [`SPEAKER_CHANGE`].
pub fn speaker_change(speaker: Option<&str>) -> gst::Event {
    let s = gst::Structure::builder(SPEAKER_CHANGE)
        .field("speaker", speaker)
        .build();
    gst::event::CustomDownstream::new(s)
}

/// See [`FINAL_TRANSCRIPT`].
pub fn final_transcript() -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty(FINAL_TRANSCRIPT))
}
