// SPDX-License-Identifier: MPL-2.0
//! Words leave: cues and word buffers with times, metas, GAPs between them, events before them.

use gst::glib;

use crate::messages;
use crate::meta;
use crate::transcript::{Cue, Word};

use super::Unit;

/// Shortest time that a word is shown.
const LEAST_SHOWN: gst::ClockTime = gst::ClockTime::from_mseconds(60);

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
    /// Its language is not the one that is spoken, and was told before.
    pub translates: bool,
    segment: gst::FormattedSegment<gst::ClockTime>,
    position: Option<gst::ClockTime>,
    discont: bool,
    speaker: Option<String>,
    language: String,
    /// Who has spoken, in the order of their first words: each has a colour.
    speakers: Vec<String>,
}

/// Colours of speakers in markup, readable over a picture: those of broadcasters' subtitles first (EBU Tech 3360: white,
/// yellow, cyan, green), then lighter ones of other hues.
const COLOURS: [&str; 8] = [
    "#ffffff", "#ffff00", "#00ffff", "#00ff00", "#ffb570", "#ff9ed2", "#c3b1ff", "#9fd0ff",
];

impl Output {
    pub(super) fn new(unit: Unit, post_messages: bool) -> Self {
        Self {
            unit,
            pango: false,
            post_messages,
            translates: false,
            segment: gst::FormattedSegment::new(),
            position: None,
            discont: true,
            speaker: None,
            language: String::new(),
            speakers: Vec::new(),
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

    /// Where the text is.
    pub(super) fn position(&self) -> Option<gst::ClockTime> {
        self.position
    }

    /// The text begins there, in mid-segment.
    pub(super) fn start_at(&mut self, position: Option<gst::ClockTime>) {
        self.position = position;
    }

    /// A new stream downstream: tags belong to a stream, so its language is said again.
    pub(super) fn new_stream(&mut self) {
        self.language.clear();
        self.speaker = None;
        self.speakers.clear();
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
        let language = &cue.segment.language;
        if !self.translates && *language != self.language && !language.is_empty() {
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
        // A word that comes too late for its place is still to be seen.
        let end = end.max(start + LEAST_SHOWN);
        out.extend(self.gap(start));
        let text = if self.pango {
            self.markup(cue)
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

    /// The text in the colour of who speaks, where that is known.
    fn markup(&mut self, cue: &Cue) -> String {
        let text = escape(&cue.text());
        let Some(speaker) = cue.speaker_id.as_ref().or(cue.speaker.as_ref()) else {
            return text;
        };
        let known = self.speakers.iter().position(|s| s == speaker);
        let number = known.unwrap_or_else(|| {
            self.speakers.push(speaker.clone());
            self.speakers.len() - 1
        });
        let colour = COLOURS[number % COLOURS.len()];
        format!("<span foreground=\"{colour}\">{text}</span>")
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
