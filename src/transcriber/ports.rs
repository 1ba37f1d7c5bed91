// SPDX-License-Identifier: MPL-2.0
//! The pads that text leaves through, and what each of them has been told: `src`, and the translate pads that are linked.

use std::ops::ControlFlow;

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::branch::Serves;
use super::output::{Out, Output};
use super::settings::Settings;
use super::translations::{ENGLISH, TranslatePad};
use super::worker::{Stop, Worker};

/// Whose text a pad gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// What is said: `src`.
    Said,
    /// That in English.
    English,
    /// None: nothing translates into this language.
    None(String),
}

impl Text {
    fn of(pad: &TranslatePad) -> Self {
        let language = pad.language();
        if language == ENGLISH {
            Self::English
        } else {
            Self::None(language)
        }
    }
}

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// A pad, and where it is.
#[derive(Debug)]
pub(super) struct Port {
    pad: gst::Pad,
    pub text: Text,
    pub output: Output,
    /// What downstream last said.
    flow: Flow,
}

/// See the module. The first is `src`.
#[derive(Debug)]
pub(super) struct Ports {
    all: Vec<Port>,
}

impl Ports {
    pub(super) fn new(src: &gst::Pad, settings: &Settings) -> Self {
        let src = Port {
            pad: src.clone(),
            text: Text::Said,
            output: Output::new(settings.unit, settings.post_messages),
            flow: Ok(gst::FlowSuccess::Ok),
        };
        Self { all: vec![src] }
    }

    /// After a flush.
    pub(super) fn flush(&mut self) {
        for port in &mut self.all {
            port.output.flush();
            port.flow = Ok(gst::FlowSuccess::Ok);
        }
    }

    /// Whether somebody downstream waits for English.
    pub(super) fn want_english(&self) -> bool {
        let wants = |p: &Port| p.text == Text::English && p.flow != Err(gst::FlowError::Eos);
        self.all.iter().any(wants)
    }

    /// Those that a branch serves, by their numbers.
    pub(super) fn of(&self, serves: Serves) -> Vec<usize> {
        let is_served = |port: &Port| match port.text {
            Text::English => serves.english,
            Text::Said | Text::None(_) => serves.said,
        };
        let served = self.all.iter().enumerate().filter(|(_, p)| is_served(p));
        served.map(|(n, _)| n).collect()
    }

    pub(super) fn every(&self) -> Vec<usize> {
        (0..self.all.len()).collect()
    }

    pub(super) fn get(&mut self, n: usize) -> Option<&mut Port> {
        self.all.get_mut(n)
    }

    /// Pads come and go, are linked and not, or ask for another language.
    pub(super) fn look(&mut self, worker: &Worker, element: &super::Transcriber) {
        let mut pads = element.imp().translations().all();
        if pads.is_empty() && self.all.len() == 1 {
            return;
        }
        pads.retain(|pad| pad.is_linked());
        let same = |port: &Port, pad: &TranslatePad| {
            port.pad == *pad.upcast_ref::<gst::Pad>() && port.text == Text::of(pad)
        };
        self.all
            .retain(|port| port.text == Text::Said || pads.iter().any(|pad| same(port, pad)));
        for pad in pads {
            if !self.all.iter().any(|port| same(port, &pad)) {
                self.join(worker, element, &pad);
            }
        }
    }

    /// A pad begins where the others are: it is told what they were told.
    fn join(&mut self, worker: &Worker, element: &super::Transcriber, pad: &TranslatePad) {
        let text = Text::of(pad);
        if let Text::None(language) = &text
            && pad.warns_of(language)
        {
            gst::element_warning!(
                element,
                gst::StreamError::NotImplemented,
                (
                    "{} has language-code={language}, and Whisper translates into English alone: the pad gives no text. \
                     Set its language-code to en",
                    pad.name()
                )
            );
        }
        // Text of the branch that serves it may yet come for where the branch is.
        let alike = self.all.iter().find(|p| p.text == text);
        let Some(position) = alike.or(self.all.first()).map(|p| p.output.position()) else {
            return;
        };
        let settings = &worker.settings;
        let mut output = Output::new(settings.unit, false);
        output.translates = true;
        self.all.push(Port {
            pad: pad.clone().upcast(),
            text,
            output,
            flow: Ok(gst::FlowSuccess::Ok),
        });
        let n = self.all.len() - 1;
        let mut told = Vec::new();
        element.imp().srcpad().sticky_events_foreach(|event| {
            told.push(event.clone());
            ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        // Custom ones are behind EOS there.
        told.sort_by_key(|event| event.type_() == gst::EventType::Eos);
        for event in told {
            match event.view() {
                gst::EventView::Segment(e) => {
                    let Some(segment) = e.segment().downcast_ref::<gst::ClockTime>() else {
                        continue;
                    };
                    if let Some(port) = self.all.get_mut(n) {
                        port.output.set_segment(segment);
                        port.output.start_at(position);
                    }
                    let own = from(segment, position);
                    let own = gst::event::Segment::builder(&own).seqnum(event.seqnum());
                    self.segment(worker, element, n, own.build());
                }
                // Of the text in another language.
                gst::EventView::Tag(_) => {}
                _ => self.push_event(worker, element, &[n], &event),
            }
        }
        // A flush came between: it is told in the next epoch.
        if !worker.inbox.is_current(worker.epoch) {
            self.all.truncate(n);
        }
    }

    /// A segment, and behind it in which language the text is.
    pub(super) fn segment(
        &mut self,
        worker: &Worker,
        element: &super::Transcriber,
        n: usize,
        segment: gst::Event,
    ) {
        let Some(port) = self.all.get_mut(n) else {
            return;
        };
        port.flow = Ok(gst::FlowSuccess::Ok);
        let language = (port.text == Text::English).then(|| language_tags(None));
        let _ = self.push(worker, element, n, Out::Event(segment));
        if let Some(tags) = language {
            let _ = self.push(worker, element, n, Out::Event(tags));
        }
    }

    /// Pushes under the stream lock of `src`, and only what belongs to the present epoch.
    pub(super) fn push(
        &mut self,
        worker: &Worker,
        element: &super::Transcriber,
        n: usize,
        out: Out,
    ) -> Result<(), Stop> {
        let Some(port) = self.all.get_mut(n) else {
            return Ok(());
        };
        let out = match out {
            Out::Message(message) => {
                let _ = element.post_message(message);
                return Ok(());
            }
            Out::Event(event) => Out::Event(port.own(element, event)),
            out => out,
        };
        let _stream = element.imp().srcpad().stream_lock();
        if !worker.inbox.is_current(worker.epoch) {
            return Err(Stop::Interrupted);
        }
        match out {
            Out::Buffer(buffer) => {
                port.flow = port.pad.push(buffer);
                match self.combined() {
                    Ok(_) => Ok(()),
                    Err(gst::FlowError::Flushing) if !worker.inbox.is_current(worker.epoch) => {
                        Err(Stop::Interrupted)
                    }
                    // Downstream alone is flushing or shut down: upstream must hear of it, or it would wait for us.
                    Err(error) => Err(Stop::Flow(error)),
                }
            }
            Out::Event(event) => {
                port.pad.push_event(event);
                Ok(())
            }
            Out::Message(_) => Ok(()),
        }
    }

    pub(super) fn push_event(
        &mut self,
        worker: &Worker,
        element: &super::Transcriber,
        ports: &[usize],
        event: &gst::Event,
    ) {
        for n in ports {
            // A refusal shows at the next buffer.
            let _ = self.push(worker, element, *n, Out::Event(event.clone()));
        }
    }

    /// Whether the stream goes on: an error of any pad is the stream's; whoever has had enough, is not there or flushes
    /// behind a translate pad holds nobody up while another takes text.
    fn combined(&self) -> Flow {
        let mut all = gst::FlowError::NotLinked;
        for port in &self.all {
            match port.flow {
                Ok(_) => return self.failed().map_or(Ok(gst::FlowSuccess::Ok), Err),
                Err(gst::FlowError::NotLinked) => {}
                Err(gst::FlowError::Eos) => all = gst::FlowError::Eos,
                Err(error) if all == gst::FlowError::NotLinked => all = error,
                Err(_) => {}
            }
        }
        Err(self.failed().unwrap_or(all))
    }

    fn failed(&self) -> Option<gst::FlowError> {
        let is_error = |port: &&Port| match port.flow {
            Ok(_) | Err(gst::FlowError::NotLinked | gst::FlowError::Eos) => false,
            Err(gst::FlowError::Flushing) => port.text == Text::Said,
            Err(_) => true,
        };
        self.all.iter().find(is_error)?.flow.err()
    }
}

impl Port {
    /// An event of the stream as this pad tells it.
    fn own(&mut self, element: &super::Transcriber, event: gst::Event) -> gst::Event {
        let translates = self.text != Text::Said;
        match event.view() {
            gst::EventView::StreamStart(start) if translates => {
                let id = self
                    .pad
                    .create_stream_id(element, Some(self.pad.name().as_str()));
                let mut own = gst::event::StreamStart::builder(&id)
                    .seqnum(event.seqnum())
                    .flags(start.stream_flags());
                if let Some(group) = start.group_id() {
                    own = own.group_id(group);
                }
                own.build()
            }
            gst::EventView::Caps(_) if translates => {
                let caps = text_caps(&self.pad);
                self.output.pango = is_pango(&caps);
                let own = gst::event::Caps::builder(&caps).seqnum(event.seqnum());
                own.build()
            }
            gst::EventView::Caps(caps) => {
                self.output.pango = is_pango(caps.caps());
                event
            }
            // A pad keeps one list of tags: the language stays in it.
            gst::EventView::Tag(tags) if self.text == Text::English => language_tags(Some(tags)),
            _ => event,
        }
    }

    /// The caps to be said anew, if downstream has asked for others since.
    pub(super) fn renegotiated(&self) -> Option<gst::Event> {
        if !self.pad.check_reconfigure() {
            return None;
        }
        let caps = text_caps(&self.pad);
        let other = self.pad.current_caps().as_ref() != Some(&caps);
        other.then(|| gst::event::Caps::new(&caps))
    }
}

/// `segment` from `position` on: the same times there, and nothing before.
fn from(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    position: Option<gst::ClockTime>,
) -> gst::FormattedSegment<gst::ClockTime> {
    let mut own = segment.clone();
    let running = segment.to_running_time(position);
    let stream = segment.to_stream_time(position);
    if position > segment.start() && running.is_some() && stream.is_some() {
        own.set_start(position);
        own.set_position(position);
        own.set_base(running);
        own.set_time(stream);
        own.set_offset(gst::ClockTime::ZERO);
    }
    own
}

/// Plain text unless downstream takes nothing but markup.
pub(super) fn text_caps(pad: &gst::Pad) -> gst::Caps {
    let of = |format: &str| {
        gst::Caps::builder("text/x-raw")
            .field("format", format)
            .build()
    };
    let (utf8, pango) = (of("utf8"), of("pango-markup"));
    let allowed = pad.allowed_caps();
    let only_pango = allowed.is_some_and(|a| !a.can_intersect(&utf8) && a.can_intersect(&pango));
    if only_pango { pango } else { utf8 }
}

fn is_pango(caps: &gst::CapsRef) -> bool {
    let format = caps.structure(0).map(|s| s.get::<&str>("format"));
    format.is_some_and(|f| f == Ok("pango-markup"))
}

/// `event`, or nothing but the language: English.
fn language_tags(event: Option<&gst::event::Tag>) -> gst::Event {
    let mut tags = event.map_or_else(gst::TagList::new, |e| e.tag_owned());
    if tags.scope() == gst::TagScope::Stream {
        tags.make_mut()
            .add::<gst::tags::LanguageCode>(&ENGLISH, gst::TagMergeMode::Replace);
    }
    let own = gst::event::Tag::builder(tags);
    match event {
        Some(event) => own.seqnum(event.seqnum()).build(),
        None => own.build(),
    }
}
