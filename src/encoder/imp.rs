// SPDX-License-Identifier: MPL-2.0
//! Streaming half of `scribeenc`: pads, events, caps. What a file looks like lives in
//! `transcript::formats`, what becomes of text and words in `state`.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::settings::Settings;
use super::state::{Output, State};
use crate::audio::time::StreamNs;
use crate::messages;
use crate::meta;
use crate::transcript::formats::Format;
use crate::transcript::strip_markup;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "scribeenc",
        gst::DebugColorFlags::empty(),
        Some("scribe's captions and transcripts"),
    )
});

/// Media types by format, the preferred one first.
const CAPS: &[(&str, Format)] = &[
    ("application/x-subtitle-vtt", Format::Vtt),
    (FRAGMENTED, Format::Vtt),
    ("application/x-subtitle", Format::Srt),
    ("application/json", Format::Json),
    ("application/x-ndjson", Format::Jsonl),
    ("application/ttml+xml", Format::Ttml),
    ("text/plain", Format::Text),
    ("text/x-rttm", Format::Rttm),
    ("text/x-stm", Format::Stm),
    ("text/x-ctm", Format::Ctm),
];

/// WebVTT for HLS: hlswebvttsink takes it and asks for fragments, or they are of `fragment-duration` each.
const FRAGMENTED: &str = "application/x-subtitle-vtt-fragmented";

// Lock order: settings, then state. Neither is held across a push or a peer query.
pub struct Encoder {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    settings: Mutex<Settings>,
    state: Mutex<State>,
}

impl Encoder {
    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        gst::log!(CAT, imp = self, "text {buffer:?}");
        self.negotiate()?;
        let settings = self.settings().clone();
        let out = self.take(&settings, &buffer)?;
        self.push(out)
    }

    /// One buffer into what to push.
    fn take(
        &self,
        settings: &Settings,
        buffer: &gst::BufferRef,
    ) -> Result<Vec<gst::Buffer>, gst::FlowError> {
        if let Some(turn) = meta::read_turn(buffer) {
            return Ok(self.state().turn(settings, &turn));
        }
        let Some(text) = meta::text_of(buffer) else {
            gst::element_imp_error!(
                self,
                gst::StreamError::Decode,
                ("The text is not UTF-8. Convert it before scribeenc"),
                [
                    "buffer of {} bytes at {}",
                    buffer.size(),
                    buffer.pts().display()
                ]
            );
            return Err(gst::FlowError::Error);
        };
        let mut state = self.state();
        let text = match state.is_markup {
            true => strip_markup(&text),
            false => text,
        };
        if let Some(mut transcribed) = meta::read(buffer) {
            transcribed.cue.lines = text.lines().map(str::to_owned).collect();
            return Ok(state.transcribed(settings, transcribed));
        }
        let Some((start, end)) = self.span(&state, buffer)? else {
            gst::debug!(CAT, imp = self, "outside the segment: {buffer:?}");
            return Ok(Vec::new());
        };
        if text.trim().is_empty() {
            // Other elements clear the screen with an empty buffer.
            let end = end.unwrap_or(start);
            return Ok(state.gap(settings, end));
        }
        Ok(state.text(settings, &text, start, end))
    }

    /// Start and end of a buffer in stream time; `None` outside the segment.
    fn span(
        &self,
        state: &State,
        buffer: &gst::BufferRef,
    ) -> Result<Option<(StreamNs, Option<StreamNs>)>, gst::FlowError> {
        let (Some(pts), Some(segment)) = (buffer.pts(), &state.segment) else {
            gst::element_imp_error!(
                self,
                gst::StreamError::Format,
                ("Text without a timestamp cannot become captions"),
                ["{buffer:?}, segment {:?}", state.segment]
            );
            return Err(gst::FlowError::Error);
        };
        let end = buffer.duration().and_then(|d| pts.checked_add(d));
        let Some((start, clipped_end)) = segment.clip(pts, end.or(Some(pts))) else {
            return Ok(None);
        };
        let stream = |time: Option<gst::ClockTime>| {
            segment
                .to_stream_time(time)
                .map(|time| StreamNs(time.nseconds()))
        };
        let Some(start) = stream(start) else {
            return Ok(None);
        };
        let Some(end) = end.and_then(|_| stream(clipped_end)) else {
            return Ok(Some((start, None)));
        };
        // Backwards in a segment of negative rate.
        Ok(Some((start.min(end), Some(end.max(start)))))
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        use gst::EventView;

        gst::log!(CAT, obj = pad, "event {event:?}");
        let settings = self.settings().clone();
        match event.view() {
            EventView::Caps(caps) => {
                let format = caps
                    .caps()
                    .structure(0)
                    .and_then(|s| s.get::<&str>("format").ok().map(str::to_owned));
                self.state().is_markup = format.as_deref() == Some("pango-markup");
                // Of text, so it ends here; ours goes out instead.
                return self.negotiate().is_ok();
            }
            EventView::Segment(segment) => {
                let Ok(time) = segment.segment().clone().downcast::<gst::ClockTime>() else {
                    gst::element_imp_error!(
                        self,
                        gst::StreamError::Format,
                        ("Captions need times, and this stream counts in other units"),
                        ["segment {:?}", segment.segment()]
                    );
                    return false;
                };
                if self.negotiate().is_err() {
                    return false;
                }
                let out = {
                    let mut state = self.state();
                    let out = state.release(None);
                    state.segment = Some(time);
                    out
                };
                self.push_or_log(out);
            }
            EventView::Gap(gap) => {
                let (start, duration) = gap.get();
                let end = start + duration.unwrap_or_default();
                if self.negotiate().is_ok() {
                    let out = {
                        let mut state = self.state();
                        let until = state.segment.as_ref().and_then(|s| {
                            let end = s.stop().map_or(end, |stop| end.min(stop));
                            s.to_stream_time(end)
                        });
                        until.map(|t| state.gap(&settings, StreamNs(t.nseconds())))
                    };
                    self.push_or_log(out.unwrap_or_default());
                }
            }
            EventView::FlushStop(_) => self.state().flush(),
            EventView::SegmentDone(_) => {
                let out = self.state().release(None);
                self.push_or_log(out);
            }
            EventView::Eos(_) => self.finish(&settings),
            EventView::Tag(tag) => {
                if let Some(code) = tag.tag().get::<gst::tags::LanguageCode>() {
                    self.state().set_language(code.get());
                }
            }
            EventView::CustomDownstream(custom) => self.custom(&settings, custom.structure()),
            EventView::CustomDownstreamSticky(custom) => {
                self.custom(&settings, custom.structure());
            }
            _ => {}
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    /// Who spoke, as a diarizer tells it through a transcriber.
    fn custom(&self, settings: &Settings, structure: Option<&gst::StructureRef>) {
        let Some(structure) = structure else {
            return;
        };
        if let Some(relabel) = messages::relabel_of(structure) {
            if self.negotiate().is_ok() {
                let out = self.state().relabel(settings, &relabel);
                self.push_or_log(out);
            }
        } else if let Some(turns) = messages::turns_of(structure)
            && self.negotiate().is_ok()
        {
            for spoken in &turns.all {
                let out = self.state().turn(settings, &spoken.turn);
                self.push_or_log(out);
            }
        }
    }

    /// EOS: the rest of the file, and the whole of a document.
    fn finish(&self, settings: &Settings) {
        // A stream that ends before its first buffer may lack what must come before one.
        let start = self.srcpad.sticky_event::<gst::event::StreamStart>(0);
        if start.is_none() {
            let id = self.srcpad.create_stream_id(&*self.obj(), Some("file"));
            let event = gst::event::StreamStart::builder(&id)
                .group_id(gst::GroupId::next())
                .build();
            self.srcpad.push_event(event);
        }
        if self.negotiate().is_err() {
            return;
        }
        if self.srcpad.sticky_event::<gst::event::Segment>(0).is_none() {
            let segment = gst::FormattedSegment::<gst::ClockTime>::new();
            self.srcpad.push_event(gst::event::Segment::new(&segment));
        }
        let out = self.state().finish(settings);
        self.push_or_log(out);
    }

    fn src_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        if let gst::EventView::CustomUpstream(custom) = event.view()
            && let Some(s) = custom.structure().filter(|s| s.has_name("GstForceKeyUnit"))
            && let Ok(time) = s.get::<gst::ClockTime>("running-time")
        {
            self.state().request_fragment(time);
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    /// Agrees on format and caps with downstream, once for each file.
    fn negotiate(&self) -> Result<(), gst::FlowError> {
        {
            let state = self.state();
            let is_settled = state.output.is_some() && self.srcpad.has_current_caps();
            if is_settled && (state.has_begun() || !self.srcpad.check_reconfigure()) {
                return Ok(());
            }
        }
        let settings = self.settings().clone();
        let wanted = Format::from(settings.format);
        let allowed = self
            .srcpad
            .peer_query_caps(Some(&self.srcpad.pad_template_caps()));
        // Fragments are no WebVTT file.
        let fits = |name: &str, format: Format| {
            settings.fragment_duration_ms == 0 || format != Format::Vtt || name == FRAGMENTED
        };
        let offered = || CAPS.iter().filter(|(name, format)| fits(name, *format));
        let by_wish = offered().filter(|(_, format)| *format == wanted);
        let by_caps = offered().filter(|(_, format)| *format != wanted);
        let chosen = by_wish
            .chain(by_caps.take_while(|_| !settings.format_is_set))
            .map(|(name, format)| (caps_of(name), *name, *format))
            .find(|(caps, _, _)| allowed.can_intersect(caps));
        let Some((caps, name, format)) = chosen else {
            self.srcpad.mark_reconfigure();
            if self.srcpad.pad_flags().contains(gst::PadFlags::FLUSHING) {
                return Err(gst::FlowError::Flushing);
            }
            if std::mem::replace(&mut self.state().has_failed, true) {
                return Err(gst::FlowError::NotNegotiated);
            }
            gst::element_imp_error!(
                self,
                gst::CoreError::Negotiation,
                ("Downstream does not take {wanted}. Change scribeenc's property format"),
                ["downstream takes {allowed}"]
            );
            return Err(gst::FlowError::NotNegotiated);
        };
        gst::debug!(CAT, imp = self, "format {format}, caps {caps}");
        self.state().output = Some(Output {
            format,
            is_fragmented: name == FRAGMENTED,
        });
        if self.srcpad.current_caps().as_ref() == Some(&caps) {
            return Ok(());
        }
        // An unlinked pad keeps the event for later; who refuses it says so by a flow of its own.
        self.srcpad.push_event(gst::event::Caps::new(&caps));
        Ok(())
    }

    fn push(&self, buffers: Vec<gst::Buffer>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut last = Ok(gst::FlowSuccess::Ok);
        for buffer in buffers {
            last = self.srcpad.push(buffer);
            last?;
        }
        last
    }

    /// From an event, which cannot return a flow: the next buffer will meet the same one.
    fn push_or_log(&self, buffers: Vec<gst::Buffer>) {
        if let Err(flow) = self.push(buffers) {
            gst::debug!(CAT, imp = self, "downstream says {flow:?}");
        }
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that it can give.
pub(crate) fn caps() -> gst::Caps {
    let mut files = gst::Caps::new_empty();
    for (name, _) in CAPS {
        files.merge(gst::Caps::new_empty_simple(*name));
    }
    files
}

fn caps_of(name: &str) -> gst::Caps {
    let caps = gst::Caps::builder(name);
    if name == FRAGMENTED {
        return caps.field("inline-headers", true).build();
    }
    caps.build()
}

#[glib::object_subclass]
impl ObjectSubclass for Encoder {
    const NAME: &'static str = "GstScribeEnc";
    type Type = super::Encoder;
    type ParentType = gst::Element;

    #[expect(clippy::expect_used, reason = "the templates are those of this class")]
    fn with_class(klass: &Self::Class) -> Self {
        let sink = klass.pad_template("sink").expect("sink template");
        let sinkpad = gst::Pad::builder_from_template(&sink)
            .chain_function(|_, parent, buffer| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::FlowError::Error),
                    |imp| imp.chain(buffer),
                )
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_event(pad, event))
            })
            .build();
        let src = klass.pad_template("src").expect("src template");
        let srcpad = gst::Pad::builder_from_template(&src)
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.src_event(pad, event))
            })
            .flags(gst::PadFlags::FIXED_CAPS)
            .build();
        Self {
            sinkpad,
            srcpad,
            settings: Mutex::default(),
            state: Mutex::default(),
        }
    }
}

impl ObjectImpl for Encoder {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(Settings::properties);
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        self.settings().set(pspec.name(), value);
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        self.settings().get(pspec.name())
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        for pad in [&self.sinkpad, &self.srcpad] {
            if let Err(err) = obj.add_pad(pad) {
                gst::error!(CAT, imp = self, "{err}");
            }
        }
    }
}

impl GstObjectImpl for Encoder {}

impl ElementImpl for Encoder {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Scribe caption and transcript encoder",
                "Codec/Encoder/Subtitle",
                "Writes text with times as WebVTT, SubRip, JSON, TTML, plain text, RTTM, STM or CTM",
                "The scribe authors",
            )
        });
        Some(&*METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let text = gst::Caps::builder("text/x-raw")
                .field("format", gst::List::new(["utf8", "pango-markup"]))
                .build();
            let files = caps();
            [
                ("sink", gst::PadDirection::Sink, text),
                ("src", gst::PadDirection::Src, files),
            ]
            .into_iter()
            .filter_map(|(name, direction, caps)| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
            })
            .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::PausedToReady {
            *self.state() = State::default();
        }
        Ok(success)
    }
}
