// SPDX-License-Identifier: MPL-2.0
//! Element messages of scribe as what a page is told.

use gstscribe::messages::{DEGRADED, RELABEL, TRANSCRIPT, relabel_of};

use super::feed::{Line, Update};

/// What a message says; `None` where a page does not care. docs/elements.md lists the fields.
pub fn update_of(s: &gst::StructureRef) -> Option<Update> {
    match s.name().as_str() {
        TRANSCRIPT => {
            let line = line(s);
            // Live mode's partial messages hold all text that may still change, and an empty one takes it back. The bus
            // keeps them in the order of their revisions.
            Some(if s.get("final").unwrap_or(true) {
                Update::Final(line)
            } else {
                Update::Partial(line)
            })
        }
        RELABEL => relabel_of(s).map(Update::Relabel),
        DEGRADED => Some(Update::Notice(degraded(s))),
        _ => None,
    }
}

fn line(s: &gst::StructureRef) -> Line {
    let start = s.get("start").unwrap_or_default();
    Line {
        text: text(s, "text").unwrap_or_default(),
        start,
        end: s.get("end").unwrap_or(start).max(start),
        language: text(s, "language").unwrap_or_default(),
        confidence: s.get("confidence").ok(),
        speaker_id: text(s, "speaker-id"),
        speaker: text(s, "speaker"),
    }
}

fn degraded(s: &gst::StructureRef) -> String {
    let [what, from, to, reason] =
        ["what", "from", "to", "reason"].map(|field| text(s, field).unwrap_or_default());
    let mut out = format!("{what}: {to}");
    if from != what && !from.is_empty() {
        out += &format!(" instead of {from}");
    }
    if !reason.is_empty() {
        out += &format!(" ({reason})");
    }
    out
}

fn text(s: &gst::StructureRef, field: &str) -> Option<String> {
    s.get::<Option<String>>(field).ok().flatten()
}
