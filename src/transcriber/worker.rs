// SPDX-License-Identifier: MPL-2.0
//! The stream's worker: one thread that takes sound and events in order, runs the logic, and pushes.
//!
//! It never waits for anything but its inbox, so that a flush or a shutdown reaches it at once: models load
//! and run on the registry's threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::TaskSetting;
use super::branch::{Branch, Ground, Serves};
use super::imp::CAT;
use super::live::LIVE_TICK;
use super::load::{Loaded, Loading};
use super::ports::Ports;
use super::report::Report;
use super::settings::Settings;
use super::speakers::Speakers;
use super::translations::ENGLISH;
use crate::audio::{Placement, SampleIndex, StreamNs, Timeline};
use crate::inference::CancelToken;
use crate::intake::inbox::{Inbox, Item, Sound, Take};
use crate::intake::segment_map;
use crate::messages;
use crate::registry::{Degraded, Registry};
use crate::transcribe::file::{self, Models};
use crate::transcribe::live::Session as LiveSession;
use crate::transcribe::live::policy::LiveParams;
use crate::transcribe::session::Session;
use crate::transcript::Task;
use crate::transcript::cues::CueStyle;

/// How long the worker sleeps when nothing happens: answers and input wake it.
const TICK: Duration = Duration::from_millis(500);

/// What the thread needs from the element.
pub(super) struct Worker {
    pub element: glib::WeakRef<super::Transcriber>,
    pub inbox: Arc<Inbox>,
    pub settings: Settings,
    pub registry: Registry,
    pub style: CueStyle,
    pub epoch: u64,
    pub cancel: CancelToken,
    /// A diarizer before us has said, once for the stream, that it will tell who speaks.
    pub diarized: bool,
}

/// The work on one stream between two flushes.
pub(super) struct Stream {
    pub ground: Ground,
    /// What is said.
    pub main: Branch,
    /// That in English, where a pad asks for it and it is something else.
    pub translation: Option<Branch>,
    /// A pad asks for English.
    pub english_wanted: bool,
}

/// Sound, or a hole without any, and where it lies.
pub(super) struct Placed {
    pub place: Placement,
    pub trim: usize,
    pub channels: Vec<Vec<f32>>,
}

impl Placed {
    pub(super) fn end(&self) -> SampleIndex {
        let samples = self.channels.iter().map(Vec::len).max().unwrap_or(0);
        self.place
            .start
            .plus((samples - self.trim.min(samples)) as u64)
    }
}

/// Why the worker stops what it does.
pub(super) enum Stop {
    /// A flush or a shutdown: the inbox knows which.
    Interrupted,
    /// Downstream refused.
    Flow(gst::FlowError),
    /// An error to be posted.
    Error(gst::ErrorMessage),
}

impl Worker {
    /// Runs until the element goes to READY. A panic becomes an error on the bus and ends the epoch, as any
    /// error does: a flush or the way through NULL begins anew.
    pub(super) fn run(mut self) {
        let Some(element) = self.element.upgrade() else {
            return;
        };
        let mut ports = Ports::new(element.imp().srcpad(), &self.settings);
        drop(element);
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.epoch(&mut ports)));
            let stop = outcome.unwrap_or_else(|_| {
                Stop::Error(gst::error_msg!(
                    gst::LibraryError::Failed,
                    ("scribetranscriber's worker panicked: this is a bug. Set the element to NULL and back to go on")
                ))
            });
            match stop {
                Stop::Interrupted => {}
                Stop::Flow(error) => self.flow_stopped(error),
                Stop::Error(message) => {
                    // Told before upstream is refused: a source posts an error of its own then, which says nothing of the
                    // cause, and whoever acts on the first must not find that one.
                    if self.inbox.is_current(self.epoch)
                        && let Some(element) = self.element.upgrade()
                    {
                        element.imp().post_error_message(message);
                    }
                    self.inbox.fail(self.epoch);
                }
            }
            // Wait here until a flush begins a new epoch, or the end.
            loop {
                match self.inbox.take(self.epoch, false, TICK) {
                    Take::Shutdown => return,
                    Take::Flushed { epoch, cancel } => {
                        self.epoch = epoch;
                        self.cancel = cancel;
                        ports.flush();
                        break;
                    }
                    Take::Item(_) | Take::Nothing => {
                        if self.element.upgrade().is_none() {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn flow_stopped(&self, error: gst::FlowError) {
        let Some(element) = self.element.upgrade() else {
            return;
        };
        gst::debug!(CAT, obj = element, "downstream returned {error:?}");
        let told = matches!(error, gst::FlowError::Flushing | gst::FlowError::Eos);
        if !told && self.inbox.is_current(self.epoch) {
            element.imp().post_error_message(gst::error_msg!(
                gst::StreamError::Failed,
                ("what comes after scribetranscriber refused its text: {error:?}"),
                ["streaming stopped, reason {error:?}"]
            ));
        }
        // Upstream asks for the reason as soon as it is refused.
        element.imp().set_flow(error);
        if !self.inbox.fail(self.epoch) {
            element.imp().clear_flow();
        }
    }

    /// Works until a flush, an error or the end of the stream.
    fn epoch(&mut self, ports: &mut Ports) -> Stop {
        let mut stream: Option<Stream> = None;
        let mut report = Report::new();
        let mut segment: Option<gst::FormattedSegment<gst::ClockTime>> = None;
        let mut loading = match self.begin_loading() {
            Ok(loading) => loading,
            Err(stop) => return stop,
        };
        loop {
            if let Some(element) = self.element.upgrade() {
                ports.look(self, &element);
            }
            if let Some(stream) = &mut stream {
                self.want_english(stream, ports);
            }
            match loading.poll(self) {
                Ok(true) => {
                    if let Some(stream) = &mut stream {
                        self.catch_up(stream, &loading);
                    }
                }
                Ok(false) => {}
                Err(stop) => return stop,
            }
            // Live sound waits for nobody: text may be due before there are models.
            let wants = match loading.loaded() {
                Some(_) => stream.as_mut().is_none_or(Stream::wants_input),
                None => self.is_live() && stream.as_ref().is_none_or(|s| !s.ground.is_full()),
            };
            let tick = match &stream {
                Some(stream) if stream.ground.live.is_none() && loading.loaded().is_some() => TICK,
                _ => LIVE_TICK,
            };
            match self.inbox.take(self.epoch, wants, tick) {
                Take::Shutdown | Take::Flushed { .. } => return Stop::Interrupted,
                Take::Nothing => {
                    if self.element.upgrade().is_none() {
                        return Stop::Interrupted;
                    }
                }
                Take::Item(Item::Sound(sound)) => {
                    let stream = stream.get_or_insert_with(|| Stream::new(&segment, self));
                    self.want_english(stream, ports);
                    self.sound(stream, sound, &loading);
                }
                Take::Item(Item::Event(event)) => {
                    if let Err(stop) = self.event(
                        event,
                        &mut stream,
                        &mut segment,
                        ports,
                        &mut report,
                        &mut loading,
                    ) {
                        return stop;
                    }
                }
            }
            if let Some(stream) = &mut stream {
                self.watch(stream, wants);
                if let Some(element) = self.element.upgrade() {
                    self.switch_models(&element, stream, &mut loading);
                }
            }
            if let Some(stream) = &mut stream
                && let Err(stop) = self.pump(stream, ports, &mut report)
            {
                return stop;
            }
        }
    }

    /// Tells how the models fare: not with each piece of sound, for it takes locks that lanes want.
    fn look_at(&self, element: &super::Transcriber, models: &Models) {
        self.tell_degraded(element, models);
        element.imp().set_model_stats(models.speech_stats());
    }

    /// Tells what was given up to go on.
    pub(super) fn tell_degraded(&self, element: &super::Transcriber, models: &Models) {
        self.tell_given_up(element, models.degraded());
    }

    pub(super) fn tell_given_up(&self, element: &super::Transcriber, given_up: Vec<Degraded>) {
        for Degraded {
            what,
            from,
            to,
            reason,
        } in given_up
        {
            gst::info!(
                CAT,
                obj = element,
                "Falling back to {to} ({what}, not {from}): {reason}"
            );
            if self.settings.post_messages {
                let message = messages::degraded(element, &what, &from, &to, &reason);
                let _ = element.post_message(message);
            }
        }
    }

    /// Sound has its place in the stream, and goes to a session for each channel.
    fn sound(&self, stream: &mut Stream, sound: Sound, loading: &Loading) {
        let samples = sound.channels.iter().map(Vec::len).max().unwrap_or(0);
        if (samples == 0 && !sound.discont) || stream.ground.backwards {
            return;
        }
        let place = stream.ground.timeline.place(
            sound.pts.map(gst::ClockTime::nseconds),
            sound.discont,
            samples as u64,
        );
        let trim = usize::try_from(place.trim_front)
            .unwrap_or(usize::MAX)
            .min(samples);
        stream.ground.end = place.start.plus((samples - trim) as u64);
        let placed = Placed {
            place,
            trim,
            channels: sound.channels,
        };
        self.be_live(stream);
        match loading.loaded() {
            Some(loaded) => self.give(stream, &placed, loaded),
            None => stream.ground.hold(placed),
        }
    }

    /// Hands sound, or a hole without any, to the sessions.
    pub(super) fn give(&self, stream: &mut Stream, placed: &Placed, loaded: &Loaded) {
        let apart = self.translates(&loaded.models);
        stream.translate(stream.english_wanted && apart);
        let live = stream
            .ground
            .live
            .as_ref()
            .map(|live| self.live_params(live, loaded));
        for branch in stream.branches() {
            while branch.sessions.len() < placed.channels.len() {
                branch.add(self.session(branch.task, live.clone(), loaded));
            }
            branch.give(placed);
        }
    }

    /// A session for one more channel.
    fn session(&self, task: Task, live: Option<LiveParams>, loaded: &Loaded) -> Session {
        let inbox = Arc::clone(&self.inbox);
        let wake = Arc::new(move || inbox.poke());
        let models = Arc::clone(&loaded.models);
        let mut params = loaded.params.clone();
        if task != params.task {
            // What might have been said before is not what its translation begins with.
            params.prompt.clear();
            params.task = task;
        }
        match live {
            Some(live) => Session::Live(Box::new(LiveSession::new(models, params, live, wake))),
            None => Session::File(Box::new(file::Session::new(models, params, wake))),
        }
    }

    /// Whether English takes sessions of its own: what is said may be something else, and can be translated.
    fn translates(&self, models: &Models) -> bool {
        self.settings.task == TaskSetting::Transcribe
            && self.settings.language().as_deref() != Some(ENGLISH)
            && models.is_multilingual()
    }

    /// Whether the text of this session on `src` is English by itself.
    pub(super) fn says_english(&self, session: Option<&Session>) -> bool {
        session.is_some_and(|session| !self.translates(session.models()))
    }

    /// Notes whether a pad asks for English. Where none does any more, nothing is translated.
    fn want_english(&self, stream: &mut Stream, ports: &Ports) {
        stream.english_wanted = ports.want_english();
        if !stream.english_wanted {
            stream.translate(false);
        }
    }

    #[allow(clippy::too_many_arguments)] // The parts of one epoch, which live in its loop.
    fn event(
        &mut self,
        event: gst::Event,
        stream: &mut Option<Stream>,
        segment: &mut Option<gst::FormattedSegment<gst::ClockTime>>,
        ports: &mut Ports,
        report: &mut Report,
        loading: &mut Loading,
    ) -> Result<(), Stop> {
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        // What has to be drained waits for the models.
        let drains = matches!(
            event.type_(),
            gst::EventType::Segment
                | gst::EventType::StreamStart
                | gst::EventType::Eos
                | gst::EventType::SegmentDone
        );
        if drains && let Some(stream) = stream {
            self.wait_for_models(stream, loading)?;
        }
        match event.view() {
            gst::EventView::Segment(e) => {
                let Some(new) = e.segment().downcast_ref::<gst::ClockTime>() else {
                    return Err(Stop::Error(gst::error_msg!(
                        gst::StreamError::Format,
                        (
                            "the sound has no segment in time but in {:?}: put a parser or audiorate before scribetranscriber",
                            e.segment().format()
                        )
                    )));
                };
                // What came under the old segment leaves under it.
                if let Some(stream) = stream {
                    self.drain(stream, ports, report)?;
                }
                let mut out = new.clone();
                let lateness = gst::ClockTime::from_mseconds(u64::from(self.settings.lateness_ms));
                out.set_base(new.base().unwrap_or_default() + lateness);
                let forward = gst::event::Segment::builder(&out)
                    .seqnum(event.seqnum())
                    .build();
                if new.rate() < 0.0 {
                    gst::element_warning!(
                        element,
                        gst::StreamError::NotImplemented,
                        ("the sound is played backwards: it gives no text until it is played forwards again")
                    );
                }
                match stream {
                    Some(stream) => {
                        stream.ground.timeline.set_segment(segment_map(new));
                        stream.ground.backwards = new.rate() < 0.0;
                    }
                    None => *stream = Some(Stream::new(&Some(new.clone()), self)),
                }
                *segment = Some(new.clone());
                for n in ports.every() {
                    if let Some(port) = ports.get(n) {
                        port.output.set_segment(&out);
                    }
                    ports.segment(self, &element, n, forward.clone());
                }
            }
            gst::EventView::Gap(e) => {
                let (pts, duration) = e.get();
                let Some(duration) = duration else {
                    return Ok(());
                };
                let stream = stream.get_or_insert_with(|| Stream::new(segment, self));
                self.want_english(stream, ports);
                self.silence(stream, pts, duration, loading);
            }
            gst::EventView::StreamStart(_) => {
                if let Some(stream) = stream {
                    self.drain(stream, ports, report)?;
                }
                self.diarized = false;
                if let Some(stream) = stream {
                    stream.ground.speakers = None;
                }
                for n in ports.every() {
                    if let Some(port) = ports.get(n) {
                        port.output.new_stream();
                    }
                    ports.push_event(self, &element, &[n], &event);
                }
            }
            gst::EventView::Eos(_) | gst::EventView::SegmentDone(_) => {
                if let Some(stream) = stream {
                    self.drain(stream, ports, report)?;
                    let end = stream.ground.timeline.stream_ns(stream.ground.end);
                    for branch in stream.branches() {
                        self.advance(&element, ports, branch.serves, end)?;
                    }
                }
                report.done(&element, self.settings.post_messages);
                element.imp().unsynced().event(&event);
                ports.push_event(self, &element, &ports.every(), &event);
            }
            gst::EventView::CustomDownstreamSticky(e)
                if e.structure()
                    .is_some_and(|s| s.name() == messages::DIARIZATION) =>
            {
                self.diarized = true;
                if let Some(stream) = stream {
                    stream.ground.speakers.get_or_insert_default();
                }
                for n in ports.every() {
                    ports.push_event(self, &element, &[n], &event);
                    let late = ports.get(n).and_then(|port| port.output.late());
                    if let Some(late) = late {
                        ports.push(self, &element, n, late)?;
                    }
                }
            }
            _ => {
                if let Some(stream) = stream
                    && let Some(structure) = event.structure()
                {
                    stream.ground.hear_of_speakers(structure);
                }
                // Never by a drain: that would cut the window, and decoders send tags all the time.
                match stream {
                    Some(stream) => {
                        let end = stream.ground.end;
                        for branch in stream.branches() {
                            branch.event(self, &element, ports, end, event.clone());
                        }
                    }
                    None => ports.push_event(self, &element, &ports.every(), &event),
                }
            }
        }
        Ok(())
    }

    /// A GAP is silence; a long one ends the piece.
    fn silence(
        &self,
        stream: &mut Stream,
        pts: gst::ClockTime,
        duration: gst::ClockTime,
        loading: &Loading,
    ) {
        let place = stream
            .ground
            .timeline
            .gap(pts.nseconds(), duration.nseconds());
        let placed = Placed {
            place,
            trim: 0,
            channels: Vec::new(),
        };
        self.be_live(stream);
        match loading.loaded() {
            Some(loaded) => self.give(stream, &placed, loaded),
            None => stream.ground.hold(placed),
        }
        stream.ground.end = stream.ground.end.max(place.start);
    }

    /// Waits for all windows in flight and pushes their words.
    fn drain(
        &self,
        stream: &mut Stream,
        ports: &mut Ports,
        report: &mut Report,
    ) -> Result<(), Stop> {
        stream.branches().for_each(Branch::end_piece);
        loop {
            self.pump(stream, ports, report)?;
            if stream.branches().all(|branch| branch.is_idle()) {
                let element = self.element.upgrade().ok_or(Stop::Interrupted)?;
                let Stream {
                    ground,
                    main,
                    translation,
                    ..
                } = stream;
                for branch in std::iter::once(main).chain(translation) {
                    // Whose turns have not come by now, have none.
                    branch.release(self, ground, ports, true)?;
                    branch.push_waiting(self, &element, ports, SampleIndex(u64::MAX));
                }
                if let Some(models) = stream.main.sessions.first().map(Session::models) {
                    self.look_at(&element, models);
                }
                return Ok(());
            }
            match self.inbox.take(self.epoch, false, TICK) {
                Take::Shutdown | Take::Flushed { .. } => return Err(Stop::Interrupted),
                Take::Item(_) => {}
                Take::Nothing => {
                    if self.element.upgrade().is_none() {
                        return Err(Stop::Interrupted);
                    }
                }
            }
        }
    }

    /// Takes what the sessions have, pushes what is complete.
    fn pump(
        &self,
        stream: &mut Stream,
        ports: &mut Ports,
        report: &mut Report,
    ) -> Result<(), Stop> {
        let Stream {
            ground,
            main,
            translation,
            ..
        } = stream;
        let until = main.pump(self, ground, ports)?;
        let (mut needed, mut attributed) = (until, main.attributed());
        if let Some(translation) = translation {
            needed = needed.min(translation.pump(self, ground, ports)?);
            attributed = attributed.min(translation.attributed());
        }
        ground.timeline.forget_before(needed);
        if let Some(speakers) = &mut ground.speakers {
            speakers.forget_before(attributed);
        }
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        // Of the translation its work alone: its sound and words are those of the speech.
        let mut stats = main.stats();
        if let Some(translation) = translation {
            let work = translation.stats();
            stats.windows += work.windows;
            stats.decoded_again += work.decoded_again;
            stats.refused += work.refused;
            stats.in_work += work.in_work;
        }
        let process = main.sessions.first().and_then(Session::process);
        element.imp().set_stats(&stats, process);
        if report.looks()
            && let Some(models) = main.sessions.first().map(Session::models)
        {
            self.look_at(&element, models);
        }
        report.tell(
            &element,
            until,
            &ground.timeline,
            &stats,
            &self.registry,
            self.settings.post_messages,
        );
        Ok(())
    }

    /// Nothing more will come before `time` on these pads: GAPs fill what is behind them.
    pub(super) fn advance(
        &self,
        element: &super::Transcriber,
        ports: &mut Ports,
        serves: Serves,
        time: StreamNs,
    ) -> Result<(), Stop> {
        let time = gst::ClockTime::from_nseconds(time.0);
        for n in ports.of(serves) {
            let gap = ports.get(n).and_then(|port| port.output.advance(time));
            if let Some(gap) = gap {
                ports.push(self, element, n, gap)?;
            }
        }
        Ok(())
    }
}

impl Stream {
    fn new(segment: &Option<gst::FormattedSegment<gst::ClockTime>>, worker: &Worker) -> Self {
        let mut timeline = Timeline::new();
        if let Some(segment) = segment {
            timeline.set_segment(segment_map(segment));
        }
        let serves = Serves {
            said: true,
            english: true,
        };
        Self {
            ground: Ground {
                timeline,
                end: SampleIndex(0),
                live: None,
                backwards: segment.as_ref().is_some_and(|s| s.rate() < 0.0),
                early: VecDeque::new(),
                speakers: worker.diarized.then(Speakers::default),
            },
            main: Branch::new(worker.settings.task.task(), serves),
            translation: None,
            english_wanted: false,
        }
    }

    pub(super) fn branches(&mut self) -> impl Iterator<Item = &mut Branch> {
        std::iter::once(&mut self.main).chain(&mut self.translation)
    }

    /// The sessions of all branches that are live.
    pub(super) fn live_sessions(&mut self) -> impl Iterator<Item = &mut LiveSession> {
        let sessions = self.branches().flat_map(|b| &mut b.sessions);
        sessions.filter_map(Session::live)
    }

    fn wants_input(&mut self) -> bool {
        self.branches().all(|branch| branch.wants_input())
    }

    /// What is said is translated from here on, or no longer.
    pub(super) fn translate(&mut self, translates: bool) {
        if translates == self.translation.is_some() {
            return;
        }
        let serves = Serves {
            said: false,
            english: true,
        };
        self.main.serves.english = !translates;
        self.translation = translates.then(|| Branch::new(Task::Translate, serves));
    }
}
