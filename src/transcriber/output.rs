// SPDX-License-Identifier: MPL-2.0
//! Words leave: cues and word buffers with times, metas, GAPs between them, events before them.

use gst::glib;

use crate::messages;
use crate::meta;
use crate::transcript::{Cue, Word};

use super::Unit;

/// What goes downstream, in order.
#[derive(Debug)]
pub(super) enum Out {
    Event(gst::Event),
    Buffer(gst::Buffer),
    Message(gst::Message),
}

/// Turns cues into buffers and events; remembers the position, so that it never goes backwards and no hole is
/// left.
#[derive(Debug)]
pub(super) struct Output {
    pub unit: Unit,
    pub pango: bool,
    pub post_messages: bool,
    segment: gst::FormattedSegment<gst::ClockTime>,
    position: Option<gst::ClockTime>,
    discont: bool,
    speaker: Option<String>,
    language: String,
}

impl Output {
    pub(super) fn new(unit: Unit, post_messages: bool) -> Self {
        Self {
            unit,
            pango: false,
            post_messages,
            segment: gst::FormattedSegment::new(),
            position: None,
            discont: true,
            speaker: None,
            language: String::new(),
        }
    }

    /// A new segment downstream: the position starts over, unless it is the same one once more.
    pub(super) fn set_segment(&mut self, segment: &gst::FormattedSegment<gst::ClockTime>) {
        let same = self.position.is_some()
            && self.segment.start() == segment.start()
            && self.segment.base() == segment.base()
            && self.segment.offset() == segment.offset()
            && self.segment.time() == segment.time()
            && self.segment.rate() == segment.rate();
        if !same {
            self.position = segment.start();
        }
        self.segment = segment.clone();
    }

    /// A new stream downstream: tags belong to a stream, so its language is said again.
    pub(super) fn new_stream(&mut self) {
        self.language.clear();
        self.speaker = None;
    }

    /// After a flush: the next buffer does not follow on.
    pub(super) fn flush(&mut self) {
        self.position = self.segment.start();
        self.discont = true;
        self.speaker = None;
    }

    /// A cue, as one buffer or a buffer a word.
    pub(super) fn cue(&mut self, src: &gst::Element, cue: &Cue, ends_segment: bool) -> Vec<Out> {
        let mut out = Vec::new();
        if cue.segment.language != self.language && !cue.segment.language.is_empty() {
            self.language.clone_from(&cue.segment.language);
            out.push(Out::Event(language_tag(&self.language)));
        }
        if cue.speaker != self.speaker {
            self.speaker.clone_from(&cue.speaker);
            out.push(Out::Event(messages::speaker_change(
                self.speaker.as_deref(),
            )));
        }
        match self.unit {
            Unit::Cue => self.buffer(cue, Unit::Cue, &mut out),
            Unit::Word if cue.words.is_empty() => self.buffer(cue, Unit::Cue, &mut out),
            Unit::Word => {
                for word in &cue.words {
                    self.buffer(&word_cue(word, cue), Unit::Word, &mut out);
                }
            }
        }
        if ends_segment {
            out.push(Out::Event(messages::final_transcript()));
        }
        if self.post_messages {
            out.push(Out::Message(messages::transcript(src, cue, true)));
        }
        out
    }

    /// Text will come late: a GAP of no length, so that sinks need not wait for it with their preroll.
    pub(super) fn late(&self) -> Option<Out> {
        let at = self.position?;
        Some(Out::Event(gst::event::Gap::builder(at).build()))
    }

    /// Nothing more will come before `stream_time`.
    pub(super) fn advance(&mut self, stream_time: gst::ClockTime) -> Option<Out> {
        let to = self.pts(stream_time)?;
        self.gap(to)
    }

    fn gap(&mut self, to: gst::ClockTime) -> Option<Out> {
        let from = self.position?;
        let duration = to.checked_sub(from).filter(|d| !d.is_zero())?;
        self.position = Some(to);
        Some(Out::Event(
            gst::event::Gap::builder(from).duration(duration).build(),
        ))
    }

    fn buffer(&mut self, cue: &Cue, unit: Unit, out: &mut Vec<Out>) {
        let Some(start) = self.pts(gst::ClockTime::from_nseconds(cue.start.0)) else {
            return;
        };
        let Some(end) = self.pts(gst::ClockTime::from_nseconds(cue.end.0)) else {
            return;
        };
        let start = self.position.map_or(start, |p| p.max(start));
        let end = end.max(start + gst::ClockTime::NSECOND);
        out.extend(self.gap(start));
        let text = if self.pango {
            escape(&cue.text())
        } else {
            cue.text()
        };
        let mut buffer = gst::Buffer::from_slice(text.into_bytes());
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(start);
            buffer.set_duration(end - start);
            if std::mem::take(&mut self.discont) {
                buffer.set_flags(gst::BufferFlags::DISCONT);
            }
            match unit {
                Unit::Cue => meta::write(buffer, cue),
                Unit::Word => meta::write_word(buffer, cue),
            }
        }
        self.position = Some(end);
        out.push(Out::Buffer(buffer));
    }

    /// Position in the segment of a stream time.
    fn pts(&self, stream_time: gst::ClockTime) -> Option<gst::ClockTime> {
        self.segment
            .position_from_stream_time(stream_time)
            .or_else(|| {
                // Outside the segment's bounds (a word that ends after its stop) or in a segment without
                // stream time: reckon from its start. What came before it is held to it.
                let time = self.segment.time().unwrap_or_default();
                let offset = stream_time.saturating_sub(time);
                self.segment.start()?.checked_add(offset)
            })
    }
}

fn word_cue(word: &Word, cue: &Cue) -> Cue {
    Cue {
        start: word.start,
        end: word.end,
        lines: vec![word.text.trim().to_owned()],
        words: vec![word.clone()],
        segment: cue.segment.clone(),
        speaker_id: word.speaker_id.clone(),
        speaker: word.speaker.clone(),
    }
}

fn language_tag(code: &str) -> gst::Event {
    let mut tags = gst::TagList::new();
    if let Some(tags) = tags.get_mut() {
        tags.add::<gst::tags::LanguageCode>(&code, gst::TagMergeMode::Replace);
    }
    gst::event::Tag::new(tags)
}

fn escape(text: &str) -> String {
    glib::markup_escape_text(text).into()
}
