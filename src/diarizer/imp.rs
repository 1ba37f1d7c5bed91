// SPDX-License-Identifier: MPL-2.0
//! Streaming half of `scribediarizer`: pads, events, queries, state changes.
//! Who spoke when is found in `diarize`; what a model does lives in `inference`.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::DiarizerMode;
use super::settings::{Settings, properties};
use super::turns_pad::{self, TurnsQueue, TurnsStream};
use super::worker::{Worker, push_turns};
use crate::context::registry_of;
use crate::diarize::identities::Identities;
use crate::diarize::names::Labels;
use crate::diarize::online::KnownVoices;
use crate::inference::exit;
use crate::intake::ear::{Ear, Refusal};
use crate::intake::outbox::Outbox;
use crate::intake::{Channels, is_live, sound_caps};
use crate::messages;

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "scribediarizer",
        gst::DebugColorFlags::empty(),
        Some("scribe's diarizer"),
    )
});

/// Name of an event from the streaming thread to the worker, never pushed: all before it is to be done now.
pub(super) const FENCE: &str = "scribe/fence";

/// What streaming has built up. Reset on PAUSED to READY; a flush resets what the worker holds.
#[derive(Default)]
struct State {
    worker: Option<JoinHandle<()>>,
    pusher: Option<JoinHandle<()>>,
    flow: Option<gst::FlowError>,
    mode: DiarizerMode,
    is_live: bool,
    /// The first segment of the run was seen, and with it the mode was chosen.
    mode_is_chosen: bool,
    /// Sound was handed in since the last end of a stream: its turns will come.
    has_sound: bool,
    /// The sticky event has been pushed since the last STREAM_START.
    announced: bool,
    models: String,
    seconds: f64,
    speakers: u32,
    turns: u32,
}

// Lock order: settings, then state, then turnspad, then those of ear, outbox and queue. None is held across a push, a peer
// query or an inference.
pub struct Diarizer {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    turnspad: Mutex<Option<gst::Pad>>,
    settings: Mutex<Settings>,
    state: Mutex<State>,
    ear: Ear,
    outbox: Arc<Outbox>,
    queue: Arc<TurnsQueue>,
}

impl Diarizer {
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

    pub(super) fn turnspad(&self) -> Option<gst::Pad> {
        let pad = self.turnspad.lock();
        pad.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn mode(&self) -> DiarizerMode {
        self.state().mode
    }

    pub(super) fn is_live(&self) -> bool {
        self.state().is_live
    }

    pub(super) fn set_flow(&self, error: gst::FlowError) {
        self.state().flow = Some(error);
    }

    pub(super) fn set_models(&self, models: &str) {
        self.state().models = models.to_owned();
    }

    pub(super) fn count(&self, seconds: f64, speakers: usize, turns: usize) {
        let mut state = self.state();
        state.seconds += seconds;
        state.speakers = speakers as u32;
        state.turns += turns as u32;
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let most = self.settings().max_buffered_ms as usize * 16;
        self.state().has_sound = true;
        match self.ear.hear(&buffer, most, "scribediarizer") {
            Ok(false) => {}
            Ok(true) => gst::warning!(
                CAT,
                imp = self,
                "inference is slower than the live source: sound was not heard for speakers"
            ),
            Err(Refusal::Error(message, flow)) => {
                self.post_error_message(message);
                return Err(flow);
            }
            Err(Refusal::Flushing) => return Err(gst::FlowError::Flushing),
            Err(Refusal::Failed) => {
                return Err(self.state().flow.unwrap_or(gst::FlowError::Error));
            }
        }
        self.push_events();
        match self.srcpad.push(buffer) {
            // Those who want turns alone link nothing here.
            Err(gst::FlowError::NotLinked) if self.turns_are_linked() => Ok(gst::FlowSuccess::Ok),
            outcome => outcome,
        }
    }

    fn turns_are_linked(&self) -> bool {
        self.turnspad().is_some_and(|pad| pad.is_linked())
    }

    /// Pushes what the worker has left for downstream, where the stream has begun.
    fn push_events(&self) {
        if !self.state().announced {
            return;
        }
        for event in self.outbox.take() {
            self.srcpad.push_event(event);
        }
    }

    fn event_in(&self, event: gst::Event) -> bool {
        self.ear.event(event).is_ok()
    }

    /// Hands in the end of a stream or of a part of it. If there was sound, waits for its turns and pushes them.
    fn end(&self, event: &gst::Event) {
        let has_sound = std::mem::take(&mut self.state().has_sound);
        let end = self.outbox.ask();
        let fence = gst::event::CustomDownstream::new(gst::Structure::new_empty(FENCE));
        let is_in = self.event_in(event.clone()) && self.event_in(fence);
        if is_in && has_sound {
            self.outbox.wait(end);
        }
        self.push_events();
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        gst::log!(CAT, obj = pad, "{event:?}");
        match event.view() {
            gst::EventView::FlushStart(_) => {
                self.ear.inbox().flush_start();
                self.outbox.shut();
                self.push_on_turns(&event);
                self.forward(event)
            }
            gst::EventView::FlushStop(_) => {
                {
                    // The worker is out of its push: downstream has been flushing since FLUSH_START.
                    let turns = self.turnspad();
                    let _stream = turns.as_ref().map(|pad| pad.stream_lock());
                    self.ear.flush_stop();
                    self.outbox.open();
                    let mut state = self.state();
                    state.flow = None;
                    state.has_sound = false;
                }
                self.push_on_turns(&event);
                self.forward(event)
            }
            gst::EventView::StreamStart(_) => {
                self.end(&event);
                self.state().announced = false;
                self.forward(event)
            }
            gst::EventView::Caps(e) => {
                match self.ear.set_caps(e.caps(), Channels::Mix) {
                    Ok(_) => {}
                    Err(message) => {
                        self.post_error_message(message);
                        return false;
                    }
                }
                self.forward(event)
            }
            gst::EventView::Segment(_) => {
                self.choose_mode();
                self.end(&event);
                let outcome = self.forward(event);
                self.announce();
                outcome
            }
            gst::EventView::Gap(_) => {
                self.event_in(event.clone());
                self.push_events();
                self.forward(event)
            }
            gst::EventView::Eos(_) | gst::EventView::SegmentDone(_) => {
                self.ear.drain();
                self.end(&event);
                self.forward(event)
            }
            _ => self.forward(event),
        }
    }

    /// Sends an event of the sound on. That nobody is linked to hear it is no refusal while the turns have a taker.
    fn forward(&self, event: gst::Event) -> bool {
        self.srcpad.push_event(event) || (!self.srcpad.is_linked() && self.turns_are_linked())
    }

    fn push_on_turns(&self, event: &gst::Event) {
        if let Some(pad) = self.turnspad() {
            pad.push_event(event.clone());
        }
    }

    pub(super) fn set_live_words(&self, live: bool) {
        self.settings().live_words = live;
    }

    /// The first segment says whether the source is live.
    fn choose_mode(&self) {
        let asked = self.settings().mode;
        if std::mem::replace(&mut self.state().mode_is_chosen, true) {
            return;
        }
        let live = is_live(&self.sinkpad);
        self.ear.set_live(live);
        let mut state = self.state();
        state.is_live = live;
        state.mode = match asked {
            DiarizerMode::Auto if live => DiarizerMode::Online,
            DiarizerMode::Auto => DiarizerMode::Offline,
            asked => asked,
        };
    }

    /// Tells those behind, once a stream, that speakers will be told.
    fn announce(&self) {
        if std::mem::replace(&mut self.state().announced, true) {
            return;
        }
        let latency = self.settings().online_latency_ms(self.is_live());
        let latency = gst::ClockTime::from_mseconds(u64::from(latency));
        let event = match self.mode() {
            DiarizerMode::Online => messages::diarization("online", latency),
            _ => messages::diarization("offline", gst::ClockTime::ZERO),
        };
        self.srcpad.push_event(event);
    }

    fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.view_mut() {
            // The default would ask the turns pad too, which has text.
            gst::QueryViewMut::Caps(q) => {
                let template = pad.pad_template_caps();
                let caps = if self.srcpad.is_linked() {
                    let filter = q.filter_owned();
                    let peer = self.srcpad.peer_query_caps(filter.as_ref());
                    peer.intersect_with_mode(&template, gst::CapsIntersectMode::First)
                } else {
                    match q.filter_owned() {
                        Some(filter) => {
                            filter.intersect_with_mode(&template, gst::CapsIntersectMode::First)
                        }
                        None => template,
                    }
                };
                q.set_result(&caps);
                true
            }
            gst::QueryViewMut::Allocation(_) => self.srcpad.peer_query(query),
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }

    fn turns_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.view_mut() {
            gst::QueryViewMut::Latency(q) => {
                let mut upstream = gst::query::Latency::new();
                if !self.sinkpad.peer_query(&mut upstream) {
                    return false;
                }
                let (live, min, max) = upstream.result();
                if live {
                    let own = self.settings().online_latency_ms(true);
                    let own = gst::ClockTime::from_mseconds(u64::from(own));
                    q.set(true, min + own, max.map(|m| m + own));
                } else {
                    q.set(false, min, max);
                }
                true
            }
            gst::QueryViewMut::Caps(q) => {
                let caps = turns_pad::caps();
                let caps = match q.filter_owned() {
                    Some(filter) => filter.intersect(&caps),
                    None => caps,
                };
                q.set_result(&caps);
                true
            }
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings().clone();
        let (epoch, cancel) = self.ear.inbox().start();
        self.ear.reset();
        self.outbox.open();
        self.queue.open();
        {
            let mut state = self.state();
            let (worker, pusher) = (state.worker.take(), state.pusher.take());
            *state = State {
                worker,
                pusher,
                ..State::default()
            };
        }
        let worker = Worker {
            element: self.obj().downgrade(),
            inbox: Arc::clone(self.ear.inbox()),
            outbox: Arc::clone(&self.outbox),
            settings,
            registry: registry_of(&*self.obj()),
            epoch,
            cancel,
            identities: Identities::default(),
            known: KnownVoices::default(),
            most: 0,
            labels: Labels::default(),
            group: None,
            turns: TurnsStream::default(),
            queue: Arc::clone(&self.queue),
        };
        let element = self.obj().downgrade();
        let queue = Arc::clone(&self.queue);
        let (inbox, outbox) = (Arc::clone(self.ear.inbox()), Arc::clone(&self.outbox));
        let pusher = thread("scribe-turns", move || {
            push_turns(&element, &queue, &inbox, &outbox);
        })?;
        self.state().pusher = Some(pusher);
        let worker = thread("scribe-speakers", move || worker.run())?;
        self.state().worker = Some(worker);
        Ok(())
    }

    fn stop(&self) {
        let threads = {
            let mut state = self.state();
            [state.worker.take(), state.pusher.take()]
        };
        for thread in threads.into_iter().flatten() {
            // They wait for the inbox or the queue, which are shut, for answers while their cancel token is not set, and for
            // downstream of `turns`, whose pad is not active any more: this is over at once. From one of them itself (an
            // application that stops us out of a sync handler) there is nobody to wait for.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        self.ear.reset();
        let mut state = self.state();
        // What the last run did can still be read.
        *state = State {
            models: std::mem::take(&mut state.models),
            seconds: state.seconds,
            speakers: state.speakers,
            turns: state.turns,
            ..State::default()
        };
    }

    fn stats(&self) -> gst::Structure {
        let state = self.state();
        gst::Structure::builder("scribe/stats")
            .field("embedding-model", state.models.as_str())
            .field("audio-seconds", state.seconds)
            .field("speakers", state.speakers)
            .field("turns", state.turns)
            .field(
                "buffered-seconds",
                self.ear.inbox().waiting() as f64 / 16_000.0,
            )
            .build()
    }
}

fn thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, gst::ErrorMessage> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map_err(|e| {
        gst::error_msg!(
            gst::ResourceError::Failed,
            ("no thread for the stream: {e}")
        )
    })
}

#[glib::object_subclass]
impl ObjectSubclass for Diarizer {
    const NAME: &'static str = "GstScribeDiarizer";
    type Type = super::Diarizer;
    type ParentType = gst::Element;

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
                    |imp| imp.chain(buffer),
                )
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_query(pad, query))
            })
            .build();
        let srcpad = gst::Pad::builder_from_template(&template("src")).build();
        Self {
            sinkpad,
            srcpad,
            turnspad: Mutex::default(),
            settings: Mutex::default(),
            state: Mutex::default(),
            ear: Ear::default(),
            outbox: Arc::default(),
            queue: Arc::default(),
        }
    }
}

impl ObjectImpl for Diarizer {
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
        if self.obj().current_state() > gst::State::Ready {
            gst::warning!(
                CAT,
                imp = self,
                "property {} changes nothing before the next READY",
                pspec.name()
            );
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        let value = self.settings().get(pspec);
        value.unwrap_or_else(|| pspec.default_value().clone())
    }

    fn constructed(&self) {
        self.parent_constructed();
        // An application may play its pipelines from other threads than the one that makes them, and ends.
        exit::watch_thread();
        let obj = self.obj();
        for pad in [&self.sinkpad, &self.srcpad] {
            if let Err(error) = obj.add_pad(pad) {
                gst::error!(CAT, imp = self, "{error}");
            }
        }
    }
}

impl GstObjectImpl for Diarizer {}

impl ElementImpl for Diarizer {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "scribe diarizer",
                "Filter/Analyzer/Audio",
                "Tells who spoke when; the sound passes untouched",
                "scribe developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let sound = sound_caps();
            [
                (
                    "sink",
                    gst::PadDirection::Sink,
                    gst::PadPresence::Always,
                    sound.clone(),
                ),
                (
                    "src",
                    gst::PadDirection::Src,
                    gst::PadPresence::Always,
                    sound,
                ),
                (
                    "turns",
                    gst::PadDirection::Src,
                    gst::PadPresence::Request,
                    turns_pad::caps(),
                ),
            ]
            .into_iter()
            .filter_map(|(name, direction, presence, caps)| {
                gst::PadTemplate::new(name, direction, presence, &caps).ok()
            })
            .collect()
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        let pad = {
            let turns = self.turnspad.lock();
            let mut turns = turns.unwrap_or_else(PoisonError::into_inner);
            if turns.is_some() {
                gst::warning!(CAT, imp = self, "there is one turns pad, and it is taken");
                return None;
            }
            let pad = gst::Pad::builder_from_template(template)
                .name("turns")
                .query_function(|pad, parent, query| {
                    Self::catch_panic_pad_function(
                        parent,
                        || false,
                        |imp| imp.turns_query(pad, query),
                    )
                })
                .flags(gst::PadFlags::FIXED_CAPS)
                .build();
            *turns = Some(pad.clone());
            pad
        };
        let _ = pad.set_active(self.obj().current_state() > gst::State::Ready);
        if let Err(error) = self.obj().add_pad(&pad) {
            gst::error!(CAT, imp = self, "{error}");
            return None;
        }
        Some(pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        {
            let turns = self.turnspad.lock();
            let mut turns = turns.unwrap_or_else(PoisonError::into_inner);
            if turns.as_ref() != Some(pad) {
                return;
            }
            *turns = None;
        }
        let _ = pad.set_active(false);
        let _ = self.obj().remove_pad(pad);
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
            gst::StateChange::PausedToReady => {
                self.ear.inbox().shutdown();
                self.outbox.shut();
                self.queue.shut();
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
