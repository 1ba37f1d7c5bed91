// SPDX-License-Identifier: MPL-2.0
//! Streaming half of `scribetranscriber`: pads, events, queries, state changes.
//! What a window is lives in `transcribe`; what a model does lives in `inference`.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::ports::text_caps;
use super::settings::{Settings, properties};
use super::translations::{TranslatePad, Translations};
use super::unsynced::Unsynced;
use super::worker::Worker;
use super::{CuePreset, Mode};
use crate::context::registry_of;
use crate::inference::whisper_cpp::logging::Level;
use crate::inference::{ProcessStats, exit};
use crate::intake::ear::{Ear, Refusal};
use crate::intake::{is_live, sound_caps};
use crate::registry::ModelStats;
use crate::transcribe::file::{Models, SessionStats};
use crate::transcript::cues::{CueStyle, Preset};

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "scribetranscriber",
        gst::DebugColorFlags::empty(),
        Some("scribe's transcriber"),
    )
});

/// What whisper.cpp and ggml say of themselves.
static WHISPER_CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "scribe-whisper",
        gst::DebugColorFlags::empty(),
        Some("whisper.cpp under scribe"),
    )
});

/// Hands on a line of whisper.cpp.
pub(super) fn whisper_line(level: Level, line: &str) {
    let level = match level {
        Level::Error => gst::DebugLevel::Error,
        Level::Warning => gst::DebugLevel::Warning,
        Level::Info => gst::DebugLevel::Debug,
        Level::Debug => gst::DebugLevel::Log,
    };
    gst::log_with_level!(WHISPER_CAT, level, "{line}");
}

/// The speech model, for `stats`.
#[derive(Default)]
struct Engine {
    name: String,
    layout: &'static str,
    word_times: bool,
}

/// What streaming has built up. Reset on PAUSED to READY; a flush resets what the worker holds.
#[derive(Default)]
struct State {
    worker: Option<JoinHandle<()>>,
    group: Option<gst::GroupId>,
    flow: Option<gst::FlowError>,
    engine: Engine,
    stats: SessionStats,
    model: Option<ModelStats>,
    max_delay_ms: u32,
    process: Option<ProcessStats>,
    segment_seen: bool,
    /// It was played and is paused: time stands still.
    paused: bool,
    way: Way,
    /// What was last said downstream.
    tags: Option<gst::TagList>,
}

/// How the stream is heard, from its first segment on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Way {
    /// As a file.
    #[default]
    File,
    /// Words while somebody speaks; `paced`: the source is live and waits for nobody.
    Live {
        /// See above.
        paced: bool,
    },
}

// Lock order: settings, then state, then the ear's own. None is held across a push, a peer query or an
// inference.
pub struct Transcriber {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    unsynced: Unsynced,
    translations: Translations,
    settings: Mutex<Settings>,
    state: Mutex<State>,
    ear: Ear,
}

impl Transcriber {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn srcpad(&self) -> &gst::Pad {
        &self.srcpad
    }

    pub(super) fn sinkpad(&self) -> &gst::Pad {
        &self.sinkpad
    }

    pub(super) fn unsynced(&self) -> &Unsynced {
        &self.unsynced
    }

    pub(super) fn translations(&self) -> &Translations {
        &self.translations
    }

    /// The worker looks at what has changed.
    pub(super) fn wake(&self) {
        self.ear.inbox().poke();
    }

    pub(super) fn way(&self) -> Way {
        self.state().way
    }

    /// Whether the pipeline was played and is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.state().paused
    }

    /// When words are due after their sound, milliseconds.
    pub(super) fn due_ms(&self) -> u64 {
        let settings = self.settings();
        u64::from(settings.latency_ms) + u64::from(settings.lateness_ms)
    }

    pub(super) fn set_flow(&self, error: gst::FlowError) {
        self.state().flow = Some(error);
    }

    pub(super) fn clear_flow(&self) {
        self.state().flow = None;
    }

    pub(super) fn set_engine(&self, models: &Models) {
        self.state().engine = Engine {
            name: models.describe(),
            layout: models.layout().word(),
            word_times: models.word_times(),
        };
    }

    pub(super) fn set_stats(&self, stats: &SessionStats, process: Option<ProcessStats>) {
        let mut state = self.state();
        state.stats = stats.clone();
        state.process = process;
    }

    /// Words of a live stream have left so long after their sound.
    pub(super) fn observe_delay(&self, ms: u32) {
        let longer = {
            let mut state = self.state();
            let longer = ms > state.max_delay_ms;
            state.max_delay_ms = state.max_delay_ms.max(ms);
            longer
        };
        if longer {
            self.obj().notify("max-observed-delay");
        }
    }

    pub(super) fn set_model_stats(&self, stats: ModelStats) {
        self.state().model = Some(stats);
    }

    fn chain(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let most = self.settings().max_buffered_ms as usize * 16;
        match self.ear.hear(buffer, most, "scribetranscriber") {
            Ok(false) => Ok(gst::FlowSuccess::Ok),
            Ok(true) => {
                gst::warning!(
                    CAT,
                    imp = self,
                    "inference is slower than the live source: sound was dropped"
                );
                Ok(gst::FlowSuccess::Ok)
            }
            Err(Refusal::Error(message, flow)) => {
                self.post_error_message(message);
                Err(flow)
            }
            Err(Refusal::Flushing) => Err(gst::FlowError::Flushing),
            Err(Refusal::Failed) => Err(self.state().flow.unwrap_or(gst::FlowError::Error)),
        }
    }

    fn event_in(&self, event: gst::Event) -> bool {
        self.ear.event(event).is_ok()
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        gst::log!(CAT, obj = pad, "{event:?}");
        match event.view() {
            gst::EventView::FlushStart(_) => {
                self.ear.inbox().flush_start();
                self.unsynced.event(&event);
                self.flush_translations(&event);
                self.srcpad.push_event(event)
            }
            gst::EventView::FlushStop(_) => {
                {
                    // The worker is out of its push: downstream has been flushing since FLUSH_START.
                    let _stream = self.srcpad.stream_lock();
                    self.ear.flush_stop();
                    self.state().flow = None;
                }
                self.unsynced.event(&event);
                self.flush_translations(&event);
                self.srcpad.push_event(event)
            }
            gst::EventView::StreamStart(e) => self.stream_start(e),
            gst::EventView::Caps(e) => self.caps(e),
            gst::EventView::Segment(e) => {
                self.segment(e);
                self.event_in(event)
            }
            gst::EventView::Tag(e) => self.tag(e),
            gst::EventView::Eos(_) | gst::EventView::SegmentDone(_) => {
                self.ear.drain();
                self.event_in(event)
            }
            _ if event.is_serialized() => self.event_in(event),
            _ => self.srcpad.push_event(event),
        }
    }

    fn flush_translations(&self, event: &gst::Event) {
        for pad in self.translations.all() {
            pad.push_event(event.clone());
        }
    }

    fn stream_start(&self, event: &gst::event::StreamStart) -> bool {
        let group = event.group_id();
        self.state().group = group;
        self.unsynced.stream(&*self.obj(), group);
        let id = self.srcpad.create_stream_id(&*self.obj(), Some("text"));
        let mut forward = gst::event::StreamStart::builder(&id)
            .seqnum(event.seqnum())
            .flags(gst::StreamFlags::SPARSE);
        if let Some(group) = group {
            forward = forward.group_id(group);
        }
        self.event_in(forward.build())
    }

    fn caps(&self, event: &gst::event::Caps) -> bool {
        let channels = self.settings().channels;
        match self.ear.set_caps(event.caps(), channels) {
            Ok(Some(taken)) => {
                gst::debug!(CAT, imp = self, "{taken} channels out of {}", event.caps());
            }
            Ok(None) => {}
            Err(message) => {
                self.post_error_message(message);
                return false;
            }
        }
        let text = text_caps(&self.srcpad);
        let forward = gst::event::Caps::builder(&text)
            .seqnum(event.seqnum())
            .build();
        self.event_in(forward)
    }

    /// The first segment says whether the source is live.
    fn segment(&self, _event: &gst::event::Segment) {
        let first = !std::mem::replace(&mut self.state().segment_seen, true);
        if !first {
            return;
        }
        let live = is_live(&self.sinkpad);
        self.ear.set_live(live);
        let mode = self.settings().mode;
        self.state().way = match mode {
            Mode::Auto if !live => Way::File,
            Mode::Auto | Mode::Live => Way::Live { paced: live },
            Mode::File => Way::File,
        };
        if live && mode == Mode::File {
            gst::element_imp_warning!(
                self,
                gst::CoreError::Clock,
                ("the source is live and scribetranscriber has mode=file: text comes up to 30 s late. Set mode=auto or mode=live")
            );
        }
    }

    /// Tags of the sound (codec, bitrate) say nothing of the text; title and language stay.
    fn tag(&self, event: &gst::event::Tag) -> bool {
        let mut tags = gst::TagList::new();
        if let Some(out) = tags.get_mut() {
            out.set_scope(event.tag().scope());
            for (name, value) in event
                .tag()
                .iter_generic()
                .flat_map(|(name, values)| values.map(move |v| (name, v)))
            {
                let about_sound = name.contains("codec")
                    || name.contains("bitrate")
                    || name.contains("encoder")
                    || name.contains("container")
                    || name.contains("channel")
                    || name == "language-code";
                if !about_sound {
                    let _ = out.add_value(name, value, gst::TagMergeMode::Append);
                }
            }
        }
        if tags.n_tags() == 0 {
            return true;
        }
        // Decoders repeat all their tags whenever the bitrate changes: several times a second.
        if self.state().tags.replace(tags.clone()).as_ref() == Some(&tags) {
            return true;
        }
        self.event_in(
            gst::event::Tag::builder(tags)
                .seqnum(event.seqnum())
                .build(),
        )
    }

    fn src_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.view_mut() {
            gst::QueryViewMut::Latency(q) => {
                let mut upstream = gst::query::Latency::new();
                if !self.sinkpad.peer_query(&mut upstream) {
                    return false;
                }
                let (live, min, max) = upstream.result();
                if live {
                    let own = gst::ClockTime::from_mseconds(u64::from(self.settings().latency_ms));
                    q.set(true, min + own, max.map(|m| m + own));
                } else {
                    q.set(false, min, max);
                }
                true
            }
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }

    fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.view() {
            // Pools of sound are no use to text.
            gst::QueryView::Allocation(_) => false,
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings().clone();
        let (epoch, cancel) = self.ear.inbox().start();
        self.ear.reset();
        {
            let mut state = self.state();
            let worker = state.worker.take();
            *state = State {
                worker,
                ..State::default()
            };
        }
        let registry = registry_of(&*self.obj());
        let worker = Worker {
            element: self.obj().downgrade(),
            inbox: Arc::clone(self.ear.inbox()),
            style: cue_style(&settings),
            settings,
            registry,
            epoch,
            cancel,
            diarized: false,
        };
        let thread = std::thread::Builder::new()
            .name("scribe-stream".into())
            .spawn(move || worker.run())
            .map_err(|e| {
                gst::error_msg!(
                    gst::ResourceError::Failed,
                    ("no thread for the stream: {e}")
                )
            })?;
        self.state().worker = Some(thread);
        Ok(())
    }

    fn stop(&self) {
        let worker = self.state().worker.take();
        if let Some(worker) = worker {
            // It waits for nothing but the inbox, which is shut: this is over at once. From the worker itself
            // (an application that stops us out of a sync handler) there is nobody to wait for.
            if worker.thread().id() != std::thread::current().id() {
                let _ = worker.join();
            }
        }
        self.ear.reset();
        let mut state = self.state();
        let (engine, stats, model, process) = (
            std::mem::take(&mut state.engine),
            std::mem::take(&mut state.stats),
            state.model.take(),
            state.process,
        );
        let max_delay_ms = state.max_delay_ms;
        // What the last run did can still be read.
        *state = State {
            engine,
            stats,
            model,
            process,
            max_delay_ms,
            ..State::default()
        };
    }

    fn stats(&self) -> gst::Structure {
        let state = self.state();
        let stats = &state.stats;
        let process = state.process;
        gst::Structure::builder("scribe/stats")
            .field("engine", state.engine.name.as_str())
            .field("layout", state.engine.layout)
            .field("word-times", state.engine.word_times)
            .field("audio-seconds", stats.audio_seconds)
            .field("speech-seconds", stats.speech_seconds)
            .field("windows", stats.windows)
            .field("decoded-again", stats.decoded_again)
            .field("refused", stats.refused)
            .field("words", stats.words)
            .field("in-work", stats.in_work)
            .field(
                "buffered-seconds",
                self.ear.inbox().waiting() as f64 / 16_000.0,
            )
            .field_if_some("lanes", state.model.as_ref().map(|m| m.lanes as u32))
            .field_if_some("queued", state.model.as_ref().map(|m| m.queued as u32))
            .field_if_some(
                "memory-reserved",
                state
                    .model
                    .as_ref()
                    .map(|m| m.weights_bytes + m.lanes_bytes),
            )
            .field_if_some(
                "out-of-memory",
                state.model.as_ref().map(|m| m.out_of_memory),
            )
            .field_if_some("worker-pid", process.map(|p| p.pid.unwrap_or(0)))
            .field_if_some("worker-restarts", process.map(|p| p.restarts))
            .build()
    }
}

fn cue_style(settings: &Settings) -> CueStyle {
    let mut style = CueStyle::from(match settings.cue_preset {
        CuePreset::Netflix => Preset::Netflix,
        CuePreset::Bbc => Preset::Bbc,
        CuePreset::Openai => Preset::Openai,
    });
    if settings.max_line_width > 0 {
        style = style.with_max_line_width(settings.max_line_width);
    }
    if settings.max_lines > 0 {
        style.max_lines = settings.max_lines;
    }
    if settings.max_cue_duration_ms > 0 {
        style.max_duration_ns = u64::from(settings.max_cue_duration_ms) * 1_000_000;
    }
    if settings.min_cue_duration_ms > 0 {
        style.min_duration_ns = u64::from(settings.min_cue_duration_ms) * 1_000_000;
    }
    style
}

#[glib::object_subclass]
impl ObjectSubclass for Transcriber {
    const NAME: &'static str = "GstScribeTranscriber";
    type Type = super::Transcriber;
    type ParentType = gst::Element;
    type Interfaces = (gst::ChildProxy,);

    fn with_class(klass: &Self::Class) -> Self {
        let template = |name: &str| {
            klass
                .pad_template(name)
                .unwrap_or_else(|| unreachable!("made below: {name}"))
        };
        let sinkpad = gst::Pad::builder_from_template(&template("sink"))
            .chain_function(|_, parent, buffer| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::FlowError::Error),
                    |imp| imp.chain(&buffer),
                )
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_query(pad, query))
            })
            .build();
        let srcpad = gst::Pad::builder_from_template(&template("src"))
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.src_query(pad, query))
            })
            .flags(gst::PadFlags::FIXED_CAPS)
            .build();
        Self {
            sinkpad,
            srcpad,
            unsynced: Unsynced::new(&template("unsynced_src")),
            translations: Translations::default(),
            settings: Mutex::default(),
            state: Mutex::default(),
            ear: Ear::default(),
        }
    }
}

impl ObjectImpl for Transcriber {
    fn properties() -> &'static [glib::ParamSpec] {
        properties()
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let outcome = self.settings().set(value, pspec);
        if let Err(error) = outcome {
            gst::warning!(
                CAT,
                imp = self,
                "property {} was not set: {error}",
                pspec.name()
            );
        }
        let working = self.obj().current_state() > gst::State::Ready;
        if working && !pspec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
            gst::warning!(
                CAT,
                imp = self,
                "property {} changes nothing before the next READY",
                pspec.name()
            );
        }
        if pspec.name() == "latency" {
            let _ = self
                .obj()
                .post_message(gst::message::Latency::builder().src(&*self.obj()).build());
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        if pspec.name() == "max-observed-delay" {
            return self.state().max_delay_ms.to_value();
        }
        let value = self.settings().get(pspec);
        value.unwrap_or_else(|| pspec.default_value().clone())
    }

    fn constructed(&self) {
        self.parent_constructed();
        // An application may play its pipelines from other threads than the one that makes them, and ends.
        exit::watch_thread();
        let obj = self.obj();
        // The pad for text is the first source: whoever asks for one without a name means it.
        for pad in [&self.sinkpad, &self.srcpad, self.unsynced.pad()] {
            if let Err(error) = obj.add_pad(pad) {
                gst::error!(CAT, imp = self, "{error}");
            }
        }
    }
}

impl GstObjectImpl for Transcriber {}

/// Its pads are its children: `translate_src_0::language-code=en` works in gst-launch-1.0.
impl ChildProxyImpl for Transcriber {
    fn children_count(&self) -> u32 {
        u32::from(self.obj().num_pads())
    }

    fn child_by_index(&self, index: u32) -> Option<glib::Object> {
        let pad = self.obj().pads().into_iter().nth(index as usize)?;
        Some(pad.upcast())
    }

    fn child_by_name(&self, name: &str) -> Option<glib::Object> {
        let pad = self.obj().pads().into_iter().find(|p| p.name() == name)?;
        Some(pad.upcast())
    }
}

impl ElementImpl for Transcriber {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "scribe transcriber",
                "Text/Audio/Filter",
                "Turns speech into words with times (Whisper)",
                "scribe developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let sound = sound_caps();
            let json = gst::Caps::new_empty_simple("application/x-json");
            let text = gst::Caps::builder("text/x-raw")
                .field("format", gst::List::new(["utf8", "pango-markup"]))
                .build();
            let translated = Translations::template(&text);
            [
                ("sink", gst::PadDirection::Sink, sound),
                ("src", gst::PadDirection::Src, text),
                ("unsynced_src", gst::PadDirection::Src, json),
            ]
            .into_iter()
            .filter_map(|(name, direction, caps)| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
            })
            .chain(translated)
            .collect()
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        let Some(name) = self.translations.name(name) else {
            gst::warning!(CAT, imp = self, "no pad can be named {name:?} now");
            return None;
        };
        let pad = gst::PadBuilder::<TranslatePad>::from_template(template)
            .name(name.as_str())
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(
                    parent,
                    || false,
                    |imp| imp.src_query(pad.upcast_ref(), query),
                )
            })
            .flags(gst::PadFlags::FIXED_CAPS)
            .build();
        let _ = pad.set_active(self.obj().current_state() > gst::State::Ready);
        if let Err(error) = self.obj().add_pad(&pad) {
            gst::error!(CAT, imp = self, "{error}");
            return None;
        }
        self.translations.add(&pad);
        self.obj().child_added(&pad, &name);
        Some(pad.upcast())
    }

    fn release_pad(&self, pad: &gst::Pad) {
        if !self.translations.remove(pad) {
            return;
        }
        let _ = pad.set_active(false);
        self.obj().child_removed(pad, &pad.name());
        let _ = self.obj().remove_pad(pad);
        self.wake();
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::NullToReady => {
                exit::watch_thread();
                let checked = self.settings().check();
                if let Err(why) = checked {
                    self.post_error_message(gst::error_msg!(
                        gst::LibraryError::Settings,
                        ("{why}")
                    ));
                    return Err(gst::StateChangeError);
                }
            }
            gst::StateChange::ReadyToPaused => {
                if let Err(message) = self.start() {
                    self.post_error_message(message);
                    return Err(gst::StateChangeError);
                }
            }
            gst::StateChange::PausedToPlaying => self.state().paused = false,
            gst::StateChange::PlayingToPaused => self.state().paused = true,
            gst::StateChange::PausedToReady => {
                self.ear.inbox().shutdown();
                // Before `src`, which waits for the worker: one of them may hold it up.
                for pad in self.translations.all() {
                    let _ = pad.set_active(false);
                }
            }
            _ => {}
        }
        let outcome = self.parent_change_state(transition)?;
        if transition == gst::StateChange::PausedToReady {
            self.stop();
        }
        Ok(outcome)
    }
}
