// SPDX-License-Identifier: MPL-2.0
//! Streaming half of `scribeenroller`: pads, events, state changes.
//! What is learnt of a voice is in `enroll`, what is kept of it in `voices`; what a model does lives in `inference`.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::EnrollPolicy;
use super::settings::{Settings, properties};
use super::worker::Worker;
use crate::context::registry_of;
use crate::inference::exit;
use crate::intake::ear::{Ear, Refusal};
use crate::intake::outbox::Outbox;
use crate::intake::{Channels, is_live, sound_caps};
use crate::messages;

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "scribeenroller",
        gst::DebugColorFlags::empty(),
        Some("scribe's enroller"),
    )
});

/// Name of an event from the streaming thread to the worker, never pushed: all before it is to be done now.
pub(super) const FENCE: &str = "scribe/fence";
/// Name of an event to the worker, never pushed: what was heard so far is enough.
pub(super) const ENROLL: &str = "scribe/enroll";

/// What streaming has built up. Reset on PAUSED to READY; a flush resets what the worker holds.
#[derive(Default)]
struct State {
    worker: Option<JoinHandle<()>>,
    flow: Option<gst::FlowError>,
    /// The first segment of the run was seen, and with it whether the source is live.
    is_known: bool,
    /// Sound was handed in since the last end of a stream.
    has_sound: bool,
    /// A diarizer before us tells who speaks, and tells it at the end.
    is_offline: bool,
    /// The same, at any time.
    is_diarized: bool,
    model: String,
    seconds: f64,
    speech: f64,
    segments: u32,
    enrolled: u32,
}

// Lock order: settings, then state, then those of ear and outbox. None is held across a push, a peer query, an inference or
// work on the voices.
pub struct Enroller {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    settings: Mutex<Settings>,
    state: Mutex<State>,
    ear: Ear,
    outbox: Arc<Outbox>,
}

impl Enroller {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sinkpad(&self) -> &gst::Pad {
        &self.sinkpad
    }

    pub(super) fn is_diarized(&self) -> bool {
        self.state().is_diarized
    }

    pub(super) fn is_offline(&self) -> bool {
        self.state().is_offline
    }

    pub(super) fn set_model(&self, model: &str) {
        self.state().model = model.to_owned();
    }

    pub(super) fn count(&self, seconds: f64, speech: f64) {
        let mut state = self.state();
        state.seconds = seconds;
        state.speech = speech;
    }

    pub(super) fn count_enrolled(&self, segments: usize) {
        let mut state = self.state();
        state.segments += segments as u32;
        state.enrolled += 1;
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let most = self.settings().max_buffered_ms as usize * 16;
        self.state().has_sound = true;
        match self.ear.hear(&buffer, most, "scribeenroller") {
            Ok(false) => {}
            Ok(true) => gst::warning!(
                CAT,
                imp = self,
                "inference is slower than the live source: sound was not learnt from"
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
        self.srcpad.push(buffer)
    }

    /// Pushes what the worker has left for downstream.
    fn push_events(&self) {
        for event in self.outbox.take() {
            self.srcpad.push_event(event);
        }
    }

    fn event_in(&self, event: gst::Event) -> bool {
        self.ear.event(event).is_ok()
    }

    /// Hands an event to the worker. If there was sound, waits until all up to it is done.
    fn hand_in_and_wait(&self, event: &gst::Event) {
        let has_sound = self.state().has_sound;
        let end = self.outbox.ask();
        let fence = gst::event::CustomDownstream::new(gst::Structure::new_empty(FENCE));
        let is_in = self.event_in(event.clone()) && self.event_in(fence);
        if is_in && has_sound {
            self.outbox.wait(end);
        }
        self.push_events();
    }

    /// The end of a stream.
    fn end(&self, event: &gst::Event) {
        self.hand_in_and_wait(event);
        self.state().has_sound = false;
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        gst::log!(CAT, obj = pad, "{event:?}");
        match event.view() {
            gst::EventView::FlushStart(_) => {
                self.ear.inbox().flush_start();
                self.outbox.shut();
            }
            gst::EventView::FlushStop(_) => {
                self.ear.flush_stop();
                self.outbox.open();
                let mut state = self.state();
                state.flow = None;
                state.has_sound = false;
            }
            gst::EventView::StreamStart(_) => self.end(&event),
            gst::EventView::Caps(e) => {
                if let Err(message) = self.ear.set_caps(e.caps(), Channels::Mix) {
                    self.post_error_message(message);
                    return false;
                }
            }
            gst::EventView::Segment(_) => {
                self.look_at_source();
                self.event_in(event.clone());
            }
            gst::EventView::Gap(_) => {
                self.event_in(event.clone());
                self.push_events();
            }
            gst::EventView::Eos(_) | gst::EventView::SegmentDone(_) => {
                self.ear.drain();
                self.end(&event);
            }
            gst::EventView::CustomDownstreamSticky(e) => {
                let mode = e.structure().filter(|s| s.name() == messages::DIARIZATION);
                if let Some(mode) = mode.map(|s| s.get::<String>("mode")) {
                    let mut state = self.state();
                    state.is_diarized = true;
                    state.is_offline = mode.is_ok_and(|mode| mode == "offline");
                }
            }
            gst::EventView::CustomDownstream(e) => {
                let name = e.structure().map(gst::StructureRef::name);
                let is_told = name.is_some_and(|n| n == messages::TURNS || n == messages::RELABEL);
                if is_told && self.settings().policy != EnrollPolicy::Name {
                    if self.is_offline() && name.is_some_and(|n| n == messages::TURNS) {
                        // The worker sends them on, with identities.
                        self.hand_in_and_wait(&event);
                        return true;
                    }
                    self.event_in(event.clone());
                    self.push_events();
                }
            }
            _ => {}
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    /// The first segment says whether the source is live.
    fn look_at_source(&self) {
        if !std::mem::replace(&mut self.state().is_known, true) {
            self.ear.set_live(is_live(&self.sinkpad));
        }
    }

    /// What was heard so far is enough: the action signal.
    fn enroll(&self) -> bool {
        let event = gst::event::CustomDownstream::new(gst::Structure::new_empty(ENROLL));
        self.obj().current_state() > gst::State::Ready && self.event_in(event)
    }

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings().clone();
        let (epoch, cancel) = self.ear.inbox().start();
        self.ear.reset();
        self.outbox.open();
        *self.state() = State::default();
        let worker = Worker {
            element: self.obj().downgrade(),
            inbox: Arc::clone(self.ear.inbox()),
            outbox: Arc::clone(&self.outbox),
            settings,
            registry: registry_of(&*self.obj()),
            epoch,
            cancel,
        };
        let spawned = std::thread::Builder::new()
            .name("scribe-voices".into())
            .spawn(move || worker.run());
        let worker = spawned.map_err(|e| {
            gst::error_msg!(
                gst::ResourceError::Failed,
                ("no thread for the stream: {e}")
            )
        })?;
        self.state().worker = Some(worker);
        Ok(())
    }

    fn stop(&self) {
        let worker = self.state().worker.take();
        if let Some(worker) = worker {
            // It waits for the inbox, which is shut, or for answers while its cancel token is not set: over at once. From
            // the thread itself (an application that stops us out of a sync handler) there is nobody to wait for.
            if worker.thread().id() != std::thread::current().id() {
                let _ = worker.join();
            }
        }
        self.ear.reset();
        let mut state = self.state();
        // What the last run did can still be read.
        *state = State {
            model: std::mem::take(&mut state.model),
            seconds: state.seconds,
            speech: state.speech,
            segments: state.segments,
            enrolled: state.enrolled,
            ..State::default()
        };
    }

    fn stats(&self) -> gst::Structure {
        let state = self.state();
        gst::Structure::builder("scribe/stats")
            .field("embedding-model", state.model.as_str())
            .field("audio-seconds", state.seconds)
            .field("speech-seconds", state.speech)
            .field("segments", state.segments)
            .field("enrolled", state.enrolled)
            .field(
                "buffered-seconds",
                self.ear.inbox().waiting() as f64 / 16_000.0,
            )
            .build()
    }
}

#[glib::object_subclass]
impl ObjectSubclass for Enroller {
    const NAME: &'static str = "GstScribeEnroller";
    type Type = super::Enroller;
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
            .flags(gst::PadFlags::PROXY_CAPS | gst::PadFlags::PROXY_ALLOCATION)
            .build();
        let srcpad = gst::Pad::builder_from_template(&template("src"))
            .flags(gst::PadFlags::PROXY_CAPS)
            .build();
        Self {
            sinkpad,
            srcpad,
            settings: Mutex::default(),
            state: Mutex::default(),
            ear: Ear::default(),
            outbox: Arc::default(),
        }
    }
}

impl ObjectImpl for Enroller {
    fn properties() -> &'static [glib::ParamSpec] {
        properties()
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(|| {
            vec![
                glib::subclass::Signal::builder("enroll")
                    .action()
                    .return_type::<bool>()
                    .class_handler(|args| {
                        let element = args.first()?.get::<super::Enroller>().ok()?;
                        Some(element.imp().enroll().to_value())
                    })
                    .build(),
            ]
        });
        &SIGNALS
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

impl GstObjectImpl for Enroller {}

impl ElementImpl for Enroller {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "scribe enroller",
                "Filter/Analyzer/Audio",
                "Learns voices, so that people are known again; the sound passes untouched",
                "scribe developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let sound = sound_caps();
            [
                ("sink", gst::PadDirection::Sink),
                ("src", gst::PadDirection::Src),
            ]
            .into_iter()
            .filter_map(|(name, direction)| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &sound).ok()
            })
            .collect()
        });
        &TEMPLATES
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
