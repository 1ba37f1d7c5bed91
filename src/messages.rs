// SPDX-License-Identifier: MPL-2.0
//! The element messages and events of scribe: built and read in one place. docs/elements.md lists them field
//! by field.

use gst::glib;
use gst::prelude::*;

use crate::audio::{RunningNs, StreamNs};
use crate::enroll::keeper::Kept;
use crate::registry::ledger::DeviceMemory;
use crate::transcript::formats::Relabel;
use crate::transcript::{Cue, Turn};

/// Final text, as an element message: `text` (string), `start`, `end` (uint64, ns of stream time), `final`
/// (boolean), `language` (string), `speaker`, `speaker-id` (string, if known), `confidence` (double, mean of
/// the words). Text that may still change has `final` false, `revision` (uint, counts up) and no confidence: it is all
/// that was said after the last final text and replaces the partial text before, which an empty one takes back.
pub const TRANSCRIPT: &str = "scribe/transcript";
/// How far the work is: `percent` (double, 0 to 100, or -1 where the length is unknown), `position` (uint64,
/// ns of stream time), `text` (string).
pub const PROGRESS: &str = "scribe/progress";
/// Quality was given up to go on: `what`, `from`, `to`, `reason` (strings).
pub const DEGRADED: &str = "scribe/degraded";
/// Memory of a device, every ten seconds of work: `device` (string), `total`, `capacity` (what scribe could have),
/// `ceiling` (80 % of it), `booked`, `reserved`, `foreign`, `peak` (uint64, bytes), `percent` (double, of the capacity).
pub const MEMORY: &str = "scribe/memory";
/// Somebody spoke, as an element message: `speaker-id`, `speaker` (string), `start`, `end` (uint64, ns of stream time),
/// `confidence` (double, 0 to 1).
pub const TURN: &str = "scribe/turn";
/// Who spoke is mended after the fact, as an element message and as a serialized downstream event: `old-id` (string),
/// `new-id` and `name` (strings, either may be absent), `from` and `to` (uint64, ns of stream time, absent: without bound).
pub const RELABEL: &str = "scribe/relabel";
/// A voice was learnt, as an element message: `id` (string, `voice-…`), `label` (string: the name, or "Speaker 7"), `is-new`
/// (boolean), `net-speech` (double, seconds of speech of one person in this recording), `segments` (uint), `snr`, `level`
/// (doubles, dB and dBFS; `snr` may be absent), `clipping` (double, 0 to 1), `agreement` (double, cosine of the recording's
/// halves; may be absent), `telephone` (boolean), `takes` (uint, recordings of this person so far), `total-speech` (double,
/// seconds in all of them), `grade` (string: weak, fair or good), `sounds-like` (string, somebody else who is enrolled; may
/// be absent), `speaker-id` (string, what the diarizer called them; in conversations).
pub const ENROLLED: &str = "scribe/enrolled";
/// A speaker of a conversation was not learnt, as an element message: `speaker-id`, `reason` (strings).
pub const NOT_ENROLLED: &str = "scribe/not-enrolled";
/// Sticky downstream event before the first buffer behind a diarizer: speakers will be told. `mode` (string: `offline`, the
/// turns come before EOS, or `online`), `latency` (uint64, ns: how far behind the sound turns are final).
pub const DIARIZATION: &str = "scribe/diarization";
/// Serialized downstream event of a diarizer: `watermark` (uint64, ns of running time: no turn will be added that begins
/// before it), `turns` (GstArray of structures `turn` as above, with `running-start` and `running-end`, uint64, besides),
/// `exclusive` (the same with one speaker at a time, for those who give each word a speaker).
pub const TURNS: &str = "scribe/turns";
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

/// Text that may still change. See [`TRANSCRIPT`].
pub fn partial(
    src: &impl IsA<gst::Object>,
    text: &str,
    [start, end]: [StreamNs; 2],
    revision: u32,
    channel: Option<&str>,
) -> gst::Message {
    let mut s = gst::Structure::builder(TRANSCRIPT)
        .field("text", text)
        .field("start", start.0)
        .field("end", end.0)
        .field("final", false)
        .field("revision", revision)
        .build();
    s.set_if_some("speaker", channel);
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

/// See [`ENROLLED`].
pub fn enrolled(src: &impl IsA<gst::Object>, kept: &Kept) -> gst::Message {
    let (voice, quality) = (&kept.enrolled, &kept.quality);
    let mut s = gst::Structure::builder(ENROLLED)
        .field("id", voice.id.to_string())
        .field("label", voice.label.as_str())
        .field("is-new", voice.is_new)
        .field("net-speech", quality.net_speech_s)
        .field("segments", quality.segments)
        .field("level", quality.level_dbfs)
        .field("clipping", quality.clipping)
        .field("telephone", quality.is_telephone)
        .field("takes", voice.takes as u32)
        .field("total-speech", voice.net_speech_s)
        .field("grade", voice.grade.to_string())
        .build();
    s.set_if_some("snr", quality.snr_db);
    s.set_if_some("agreement", quality.agreement);
    s.set_if_some("sounds-like", kept.sounds_like.as_deref());
    s.set_if_some("speaker-id", kept.was.as_deref());
    gst::message::Element::builder(s).src(src).build()
}

/// See [`NOT_ENROLLED`].
pub fn not_enrolled(src: &impl IsA<gst::Object>, speaker_id: &str, reason: &str) -> gst::Message {
    let s = gst::Structure::builder(NOT_ENROLLED)
        .field("speaker-id", speaker_id)
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

/// A turn with its place in running time.
#[derive(Clone, Debug, PartialEq)]
pub struct SpokenTurn {
    /// Who, and when in the recording.
    pub turn: Turn,
    /// Running time of its start.
    pub start: RunningNs,
    /// Running time of its end.
    pub end: RunningNs,
}

/// What a [`TURNS`] event says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turns {
    /// No turn will be added that begins before it.
    pub watermark: RunningNs,
    /// Turns since the last event; those of different speakers may overlap.
    pub all: Vec<SpokenTurn>,
    /// The same with one speaker at a time.
    pub exclusive: Vec<SpokenTurn>,
}

/// See [`TURN`].
pub fn turn(src: &impl IsA<gst::Object>, turn: &Turn) -> gst::Message {
    gst::message::Element::builder(turn_structure(TURN, turn))
        .src(src)
        .build()
}

/// See [`DIARIZATION`].
pub fn diarization(mode: &str, latency: gst::ClockTime) -> gst::Event {
    let s = gst::Structure::builder(DIARIZATION)
        .field("mode", mode)
        .field("latency", latency.nseconds())
        .build();
    gst::event::CustomDownstreamSticky::new(s)
}

/// See [`TURNS`].
pub fn turns(turns: &Turns) -> gst::Event {
    let list = |turns: &[SpokenTurn]| gst::Array::new(turns.iter().map(spoken_structure));
    let s = gst::Structure::builder(TURNS)
        .field("watermark", turns.watermark.0)
        .field("turns", list(&turns.all))
        .field("exclusive", list(&turns.exclusive))
        .build();
    gst::event::CustomDownstream::new(s)
}

/// Reads a [`TURNS`] event's structure. What is not understood is left out.
pub fn turns_of(s: &gst::StructureRef) -> Option<Turns> {
    if s.name() != TURNS {
        return None;
    }
    let list = |field: &str| match s.get::<gst::ArrayRef>(field) {
        Ok(list) => list.iter().filter_map(spoken_of).collect(),
        Err(_) => Vec::new(),
    };
    Some(Turns {
        watermark: RunningNs(s.get("watermark").ok()?),
        all: list("turns"),
        exclusive: list("exclusive"),
    })
}

/// See [`RELABEL`].
pub fn relabel(relabel: &Relabel) -> gst::Event {
    gst::event::CustomDownstream::new(relabel_structure(relabel))
}

/// See [`RELABEL`].
pub fn relabel_message(src: &impl IsA<gst::Object>, relabel: &Relabel) -> gst::Message {
    gst::message::Element::builder(relabel_structure(relabel))
        .src(src)
        .build()
}

/// Reads a [`RELABEL`] event's structure.
pub fn relabel_of(s: &gst::StructureRef) -> Option<Relabel> {
    if s.name() != RELABEL {
        return None;
    }
    let time = |field: &str| s.get::<u64>(field).ok().map(StreamNs);
    Some(Relabel {
        old_id: s.get("old-id").ok()?,
        new_id: s.get("new-id").ok(),
        name: s.get("name").ok(),
        from: time("from"),
        to: time("to"),
    })
}

fn relabel_structure(relabel: &Relabel) -> gst::Structure {
    let mut s = gst::Structure::builder(RELABEL)
        .field("old-id", relabel.old_id.as_str())
        .build();
    s.set_if_some("new-id", relabel.new_id.as_deref());
    s.set_if_some("name", relabel.name.as_deref());
    s.set_if_some("from", relabel.from.map(|t| t.0));
    s.set_if_some("to", relabel.to.map(|t| t.0));
    s
}

fn turn_structure(name: &str, turn: &Turn) -> gst::Structure {
    let mut s = gst::Structure::builder(name)
        .field("speaker-id", turn.speaker_id.as_str())
        .field("start", turn.start.0)
        .field("end", turn.end.0)
        .field("confidence", f64::from(turn.confidence))
        .build();
    s.set_if_some("speaker", turn.speaker.as_deref());
    s
}

fn spoken_structure(spoken: &SpokenTurn) -> gst::Structure {
    let mut s = turn_structure("turn", &spoken.turn);
    s.set("running-start", spoken.start.0);
    s.set("running-end", spoken.end.0);
    s
}

fn spoken_of(value: &glib::SendValue) -> Option<SpokenTurn> {
    let s = value.get::<gst::Structure>().ok()?;
    let start = RunningNs(s.get("running-start").ok()?);
    let stream = s.get::<u64>("start").ok()?;
    Some(SpokenTurn {
        turn: Turn {
            speaker_id: s.get("speaker-id").ok()?,
            speaker: s.get("speaker").ok(),
            start: StreamNs(stream),
            end: StreamNs(s.get::<u64>("end").ok()?.max(stream)),
            confidence: s.get::<f64>("confidence").unwrap_or(1.0) as f32,
        },
        start,
        end: RunningNs(s.get::<u64>("running-end").ok()?.max(start.0)),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_out_of_their_event_as_they_went_in() {
        let _ = gst::init();
        let turn = |start: u64, name: Option<&str>| SpokenTurn {
            turn: Turn {
                speaker_id: "speaker-1".into(),
                speaker: name.map(str::to_owned),
                start: StreamNs(start + 7),
                end: StreamNs(start + 100),
                confidence: 0.5,
            },
            start: RunningNs(start),
            end: RunningNs(start + 93),
        };
        let turns = Turns {
            watermark: RunningNs(5_000),
            all: vec![turn(0, Some("Ann")), turn(50, None)],
            exclusive: vec![turn(0, None)],
        };

        let event = super::turns(&turns);

        assert_eq!(event.structure().and_then(turns_of), Some(turns));
        assert_eq!(turns_of(&gst::Structure::new_empty(TURNS)), None);
    }

    #[test]
    fn a_relabel_comes_out_of_its_event_as_it_went_in() {
        let _ = gst::init();
        let relabel = Relabel {
            old_id: "speaker-3".into(),
            new_id: Some("speaker-1".into()),
            name: None,
            from: Some(StreamNs(9)),
            to: None,
        };

        let event = super::relabel(&relabel);

        assert_eq!(event.structure().and_then(relabel_of), Some(relabel));
    }
}
