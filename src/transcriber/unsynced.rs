// SPDX-License-Identifier: MPL-2.0
//! The pad `unsynced_src`: everything that is known when it is known, as JSON. GStreamer's transcriberbin exposes it as
//! its own; nobody need link it. docs/elements.md describes its objects.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gst::prelude::*;
use serde::Serialize;

use crate::audio::StreamNs;
use crate::transcript::Word;

#[derive(Default)]
struct State {
    id: String,
    group: Option<gst::GroupId>,
    /// STREAM_START and CAPS have gone out.
    begun: bool,
    /// And a SEGMENT since the last flush.
    segment: bool,
    ended: bool,
}

/// See the module.
pub(super) struct Unsynced {
    pad: gst::Pad,
    // Never held across a push.
    state: Mutex<State>,
}

#[derive(Serialize)]
struct Item<'a> {
    text: &'a str,
    start: f64,
    end: f64,
    confidence: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    speaker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speaker_id: Option<&'a str>,
}

impl<'a> Item<'a> {
    fn of(word: &'a Word) -> Self {
        Self {
            text: word.text.trim(),
            start: word.start.seconds(),
            end: word.end.seconds(),
            confidence: word.confidence,
            speaker: word.speaker.as_deref(),
            speaker_id: word.speaker_id.as_deref(),
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Object<'a> {
    Final {
        language: &'a str,
        text: String,
        start: f64,
        end: f64,
        words: Vec<Item<'a>>,
    },
    Partial {
        revision: u32,
        text: &'a str,
        start: f64,
        end: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        speaker: Option<&'a str>,
    },
}

impl Unsynced {
    pub(super) fn new(template: &gst::PadTemplate) -> Self {
        let pad = gst::Pad::builder_from_template(template)
            .flags(gst::PadFlags::FIXED_CAPS)
            .build();
        Self {
            pad,
            state: Mutex::default(),
        }
    }

    pub(super) fn pad(&self) -> &gst::Pad {
        &self.pad
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream begins.
    pub(super) fn stream(&self, element: &impl IsA<gst::Element>, group: Option<gst::GroupId>) {
        let id = self.pad.create_stream_id(element, Some("unsynced"));
        *self.state() = State {
            id: id.into(),
            group,
            ..State::default()
        };
    }

    /// Flushes and the end of the stream.
    pub(super) fn event(&self, event: &gst::Event) {
        if !self.pad.is_linked() {
            return;
        }
        match event.type_() {
            gst::EventType::FlushStart | gst::EventType::FlushStop => {
                self.state().segment = false;
                self.pad.push_event(event.clone());
            }
            gst::EventType::Eos => {
                self.begin();
                self.state().ended = true;
                self.pad.push_event(event.clone());
            }
            _ => {}
        }
    }

    /// Words that stand.
    pub(super) fn words(&self, element: &super::Transcriber, words: &[Word], language: &str) {
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return;
        };
        if !self.pad.is_linked() {
            return;
        }
        let text: String = words.iter().map(|w| w.text.as_str()).collect();
        self.push(
            element,
            &Object::Final {
                language,
                text: text.trim().to_owned(),
                start: first.start.seconds(),
                end: last.end.seconds(),
                words: words.iter().map(Item::of).collect(),
            },
        );
    }

    /// Text that may still change.
    pub(super) fn partial(
        &self,
        element: &super::Transcriber,
        text: &str,
        [start, end]: [StreamNs; 2],
        revision: u32,
        speaker: Option<&str>,
    ) {
        if self.pad.is_linked() {
            let object = Object::Partial {
                revision,
                text,
                start: start.seconds(),
                end: end.seconds(),
                speaker,
            };
            self.push(element, &object);
        }
    }

    fn begin(&self) {
        let (begun, segment, id, group) = {
            let mut state = self.state();
            let begun = std::mem::replace(&mut state.begun, true);
            let segment = std::mem::replace(&mut state.segment, true);
            (begun, segment, state.id.clone(), state.group)
        };
        if !begun {
            let mut start = gst::event::StreamStart::builder(&id).flags(gst::StreamFlags::SPARSE);
            if let Some(group) = group {
                start = start.group_id(group);
            }
            self.pad.push_event(start.build());
            let caps = gst::Caps::new_empty_simple("application/x-json");
            self.pad.push_event(gst::event::Caps::new(&caps));
        }
        if !segment {
            let segment = gst::FormattedSegment::<gst::ClockTime>::new();
            self.pad.push_event(gst::event::Segment::new(&segment));
        }
    }

    /// Its time is when it was known. Who refuses it, or is not there, holds nothing up.
    fn push(&self, element: &super::Transcriber, object: &Object) {
        if self.state().ended {
            return;
        }
        let Ok(bytes) = serde_json::to_vec(object) else {
            return;
        };
        self.begin();
        let mut buffer = gst::Buffer::from_slice(bytes);
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(element.current_running_time());
        }
        if let Err(error) = self.pad.push(buffer) {
            gst::log!(super::imp::CAT, obj = self.pad, "not taken: {error:?}");
        }
    }
}

impl std::fmt::Debug for Unsynced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unsynced").field(&self.pad.name()).finish()
    }
}
