// SPDX-License-Identifier: MPL-2.0
//! The stream's worker: one thread that takes sound and events in order, runs the logic, and pushes.
//!
//! It never waits for anything but its inbox, so that a flush or a shutdown reaches it at once: models load
//! and run on the registry's threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::imp::CAT;
use super::live::{LIVE_TICK, Live};
use super::load::{Loaded, Loading};
use super::output::{Out, Output};
use super::settings::Settings;
use super::speakers::Speakers;
use crate::audio::{Placement, SAMPLE_RATE, SampleIndex, StreamNs, Timeline};
use crate::error::engine_error;
use crate::inference::CancelToken;
use crate::intake::inbox::{Inbox, Item, Sound, Take};
use crate::intake::segment_map;
use crate::messages;
use crate::registry::limit::human_bytes;
use crate::registry::{Degraded, Registry};
use crate::transcribe::file::{self, Models, SessionStats, Spoken};
use crate::transcribe::session::Session;
use crate::transcript::Word;
use crate::transcript::cues::{self, Bounds, CueStyle};

/// How long the worker sleeps when nothing happens: answers and input wake it.
const TICK: Duration = Duration::from_millis(500);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const LOG_EVERY: Duration = Duration::from_secs(10);

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
    pub timeline: Timeline,
    pub sessions: Vec<Session>,
    /// What is live alone; nothing for a file.
    pub live: Option<Live>,
    /// Words of sessions that wait for the other channels.
    pending: Vec<Vec<Spoken>>,
    next_segment: u64,
    previous_end: Option<StreamNs>,
    /// End of the sound so far.
    pub end: SampleIndex,
    /// Played backwards: its sound gives no text.
    backwards: bool,
    /// Tags and custom events, with the sample they came before: they leave in their place between the words.
    waiting: VecDeque<(SampleIndex, gst::Event)>,
    /// Who speaks, where a diarizer tells.
    speakers: Option<Speakers>,
    /// Words that wait for their speakers.
    held: VecDeque<Spoken>,
    /// Live sound that came before the models.
    pub early: VecDeque<Placed>,
}

/// Sound, or a hole without any, and where it lies.
pub(super) struct Placed {
    place: Placement,
    trim: usize,
    channels: Vec<Vec<f32>>,
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
        let mut output = Output::new(self.settings.unit, self.settings.post_messages);
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.epoch(&mut output)));
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
                        output.flush();
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
    fn epoch(&mut self, output: &mut Output) -> Stop {
        let mut stream: Option<Stream> = None;
        let mut report = Report::new();
        let mut segment: Option<gst::FormattedSegment<gst::ClockTime>> = None;
        let mut loading = match self.begin_loading() {
            Ok(loading) => loading,
            Err(stop) => return stop,
        };
        loop {
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
                None => self.is_live(),
            };
            let tick = match &stream {
                Some(Stream { live: None, .. }) if loading.loaded().is_some() => TICK,
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
                    let stream = stream.get_or_insert_with(|| Stream::new(&segment, self.diarized));
                    self.sound(stream, sound, &loading);
                }
                Take::Item(Item::Event(event)) => {
                    if let Err(stop) = self.event(
                        event,
                        &mut stream,
                        &mut segment,
                        output,
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
                && let Err(stop) = self.pump(stream, output, &mut report)
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
        if (samples == 0 && !sound.discont) || stream.backwards {
            return;
        }
        let place = stream.timeline.place(
            sound.pts.map(gst::ClockTime::nseconds),
            sound.discont,
            samples as u64,
        );
        let trim = usize::try_from(place.trim_front)
            .unwrap_or(usize::MAX)
            .min(samples);
        stream.end = place.start.plus((samples - trim) as u64);
        let placed = Placed {
            place,
            trim,
            channels: sound.channels,
        };
        self.be_live(stream);
        match loading.loaded() {
            Some(loaded) => self.give(stream, &placed, loaded),
            None => stream.hold(placed),
        }
    }

    /// Hands sound, or a hole without any, to the sessions.
    pub(super) fn give(&self, stream: &mut Stream, placed: &Placed, loaded: &Loaded) {
        while stream.sessions.len() < placed.channels.len() {
            let inbox = Arc::clone(&self.inbox);
            let wake = Arc::new(move || inbox.poke());
            let models = Arc::clone(&loaded.models);
            let params = loaded.params.clone();
            let session = match self.live_session(stream, &params, &models, &wake) {
                Some(session) => session,
                None => Session::File(Box::new(file::Session::new(models, params, wake))),
            };
            stream.sessions.push(session);
            stream.pending.push(Vec::new());
        }
        let place = &placed.place;
        for (n, session) in stream.sessions.iter_mut().enumerate() {
            if place.new_piece {
                session.end_piece();
            }
            // A hole with nothing behind it is silence, unless it ends the piece.
            let bridges = !placed.channels.is_empty() || !place.new_piece;
            if place.silence_before > 0 && bridges {
                let at = SampleIndex(place.start.0 - place.silence_before.min(place.start.0));
                session.push_silence(at, place.silence_before);
            }
            if let Some(channel) = placed.channels.get(n) {
                session.push(place.start, channel.get(placed.trim..).unwrap_or_default());
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // The parts of one epoch, which live in its loop.
    fn event(
        &mut self,
        event: gst::Event,
        stream: &mut Option<Stream>,
        segment: &mut Option<gst::FormattedSegment<gst::ClockTime>>,
        output: &mut Output,
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
                    self.drain(stream, output, report)?;
                }
                let mut out = new.clone();
                let lateness = gst::ClockTime::from_mseconds(u64::from(self.settings.lateness_ms));
                out.set_base(new.base().unwrap_or_default() + lateness);
                let forward = gst::event::Segment::builder(&out)
                    .seqnum(event.seqnum())
                    .build();
                output.set_segment(&out);
                if new.rate() < 0.0 {
                    gst::element_warning!(
                        element,
                        gst::StreamError::NotImplemented,
                        ("the sound is played backwards: it gives no text until it is played forwards again")
                    );
                }
                match stream {
                    Some(stream) => {
                        stream.timeline.set_segment(segment_map(new));
                        stream.backwards = new.rate() < 0.0;
                    }
                    None => *stream = Some(Stream::new(&Some(new.clone()), self.diarized)),
                }
                *segment = Some(new.clone());
                output.pango = element.imp().pango();
                self.push_event(&element, forward);
            }
            gst::EventView::Gap(e) => {
                let (pts, duration) = e.get();
                let Some(duration) = duration else {
                    return Ok(());
                };
                let stream = stream.get_or_insert_with(|| Stream::new(segment, self.diarized));
                self.silence(stream, pts, duration, loading);
            }
            gst::EventView::StreamStart(_) => {
                if let Some(stream) = stream {
                    self.drain(stream, output, report)?;
                }
                output.new_stream();
                self.diarized = false;
                if let Some(stream) = stream {
                    stream.speakers = None;
                }
                self.push_event(&element, event);
            }
            gst::EventView::Eos(_) | gst::EventView::SegmentDone(_) => {
                if let Some(stream) = stream {
                    self.drain(stream, output, report)?;
                    let end = stream.timeline.stream_ns(stream.end);
                    if let Some(out) = output.advance(gst::ClockTime::from_nseconds(end.0)) {
                        self.push(&element, out)?;
                    }
                }
                report.done(&element, self.settings.post_messages);
                element.imp().unsynced().event(&event);
                self.push_event(&element, event);
            }
            gst::EventView::CustomDownstreamSticky(e)
                if e.structure()
                    .is_some_and(|s| s.name() == messages::DIARIZATION) =>
            {
                self.diarized = true;
                if let Some(stream) = stream {
                    stream.speakers.get_or_insert_default();
                }
                self.push_event(&element, event);
                if let Some(late) = output.late() {
                    self.push(&element, late)?;
                }
            }
            _ => {
                if let Some(stream) = stream
                    && let Some(structure) = event.structure()
                {
                    stream.hear_of_speakers(structure);
                }
                // Never by a drain: that would cut the window, and decoders send tags all the time.
                match stream {
                    Some(stream) if !stream.sessions.is_empty() => {
                        stream.waiting.push_back((stream.end, event));
                    }
                    _ => self.push_event(&element, event),
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
        let place = stream.timeline.gap(pts.nseconds(), duration.nseconds());
        let placed = Placed {
            place,
            trim: 0,
            channels: Vec::new(),
        };
        self.be_live(stream);
        match loading.loaded() {
            Some(loaded) => self.give(stream, &placed, loaded),
            None => stream.hold(placed),
        }
        stream.end = stream.end.max(place.start);
    }

    /// Waits for all windows in flight and pushes their words.
    fn drain(
        &self,
        stream: &mut Stream,
        output: &mut Output,
        report: &mut Report,
    ) -> Result<(), Stop> {
        for session in &mut stream.sessions {
            session.end_piece();
        }
        loop {
            self.pump(stream, output, report)?;
            if stream.sessions.iter().all(Session::is_idle) {
                // Whose turns have not come by now, have none.
                self.release(stream, output, true)?;
                let element = self.element.upgrade().ok_or(Stop::Interrupted)?;
                if let Some(models) = stream.sessions.first().map(Session::models) {
                    self.look_at(&element, models);
                }
                self.push_waiting(&element, stream, SampleIndex(u64::MAX));
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

    /// Takes what the sessions have, pushes what is complete on all channels.
    fn pump(
        &self,
        stream: &mut Stream,
        output: &mut Output,
        report: &mut Report,
    ) -> Result<(), Stop> {
        let several = stream.sessions.len() > 1;
        for (session, pending) in stream.sessions.iter_mut().zip(&mut stream.pending) {
            pending.extend(session.poll().map_err(|e| Stop::Error(engine_error(&e)))?);
        }
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        // No word will come before this on any channel. A channel with nothing left waits for what comes.
        let until = stream
            .sessions
            .iter()
            .filter(|session| !session.is_idle())
            .map(Session::settled_until)
            .min()
            .unwrap_or_else(|| stream.settled_without_sessions());
        let mut ready: Vec<(usize, Spoken)> = Vec::new();
        for (channel, pending) in stream.pending.iter_mut().enumerate() {
            let complete = pending
                .iter()
                .take_while(|s| !several || s.end <= until)
                .count();
            ready.extend(pending.drain(..complete).map(|s| (channel, s)));
        }
        ready.sort_by_key(|(_, spoken)| spoken.start);
        for (channel, spoken) in ready {
            // Channels are speakers by themselves.
            if stream.speakers.is_some() && !several && stream.live.is_none() {
                stream.held.push_back(spoken);
                continue;
            }
            let speaker = several.then(|| format!("Channel {}", channel + 1));
            self.push_waiting(&element, stream, spoken.start);
            self.speak(&element, stream, spoken, speaker, output)?;
        }
        if stream.live.is_some() {
            self.tell_live(&element, stream, output)?;
        }
        self.release(stream, output, false)?;
        let until = stream.held.front().map_or(until, |s| until.min(s.start));
        self.push_waiting(&element, stream, until);
        let stream_time = stream.timeline.stream_ns(until);
        if let Some(out) = output.advance(gst::ClockTime::from_nseconds(stream_time.0)) {
            self.push(&element, out)?;
        }
        stream.timeline.forget_before(until);
        let stats = stream
            .sessions
            .iter()
            .map(Session::stats)
            .fold(SessionStats::default(), |a, b| a + b);
        let process = stream.sessions.first().and_then(Session::process);
        element.imp().set_stats(&stats, process);
        if report.looks()
            && let Some(models) = stream.sessions.first().map(Session::models)
        {
            self.look_at(&element, models);
        }
        report.tell(
            &element,
            until,
            &stream.timeline,
            &stats,
            &self.registry,
            self.settings.post_messages,
        );
        Ok(())
    }

    /// Says what has waited for its speakers: what they are known for, or everything.
    fn release(
        &self,
        stream: &mut Stream,
        output: &mut Output,
        everything: bool,
    ) -> Result<(), Stop> {
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        while let Some(spoken) = stream.held.front() {
            let end = stream.timeline.running_ns(spoken.end);
            let known = stream
                .speakers
                .as_ref()
                .is_none_or(|s| s.are_known_until(end));
            if !known && !everything {
                break;
            }
            let Some(spoken) = stream.held.pop_front() else {
                break;
            };
            self.push_waiting(&element, stream, spoken.start);
            self.speak(&element, stream, spoken, None, output)?;
            if let Some(speakers) = &mut stream.speakers {
                speakers.forget_before(end);
            }
        }
        Ok(())
    }

    /// Events that came before sample `until`.
    fn push_waiting(&self, element: &super::Transcriber, stream: &mut Stream, until: SampleIndex) {
        while stream.waiting.front().is_some_and(|(at, _)| *at <= until)
            && let Some((_, event)) = stream.waiting.pop_front()
        {
            self.push_event(element, event);
        }
    }

    fn speak(
        &self,
        element: &super::Transcriber,
        stream: &mut Stream,
        spoken: Spoken,
        speaker: Option<String>,
        output: &mut Output,
    ) -> Result<(), Stop> {
        let timeline = &stream.timeline;
        let id = speaker
            .as_ref()
            .map(|s| s.to_ascii_lowercase().replace(' ', "-"));
        if stream.live.is_some() {
            let late = stream.end.since(spoken.end) * 1000 / u64::from(SAMPLE_RATE);
            let late = late.min(u64::from(u32::MAX)) as u32;
            element.imp().observe_delay(late);
        }
        let mut words: Vec<Word> = spoken
            .words
            .iter()
            .map(|w| Word {
                text: w.text.clone(),
                start: timeline.stream_ns(w.start),
                end: timeline.stream_ns(w.end),
                running_start: timeline.running_ns(w.start),
                running_end: timeline.running_ns(w.end),
                probability: w.probability,
                confidence: w.confidence,
                speaker_id: id.clone(),
                speaker: speaker.clone(),
            })
            .collect();
        if let Some(speakers) = &mut stream.speakers
            && speaker.is_none()
        {
            speakers.attribute(&mut words);
            if stream.live.is_some() {
                speakers.forget_before(timeline.running_ns(spoken.start));
            }
        }
        if let Some(caps) = element.imp().renegotiated() {
            output.pango = element.imp().pango();
            self.push_event(element, gst::event::Caps::new(&caps));
        }
        let mut info = spoken.info.clone();
        info.seek = timeline.stream_ns(spoken.start).0 / 10_000_000;
        let until = Some(timeline.stream_ns(spoken.end));
        if stream.live.is_some() {
            element
                .imp()
                .unsynced()
                .words(element, &words, &info.language);
        }
        let cues = cues::arrange(
            words,
            &spoken.tokens,
            &info,
            &mut stream.next_segment,
            Bounds {
                previous_end: stream.previous_end,
                until,
            },
            &self.style,
        );
        stream.previous_end = cues.last().map(|c| c.end).or(stream.previous_end);
        for (i, cue) in cues.iter().enumerate() {
            let last = cues.get(i + 1);
            let ends_segment = match last {
                Some(next) => next.segment.id != cue.segment.id,
                None => spoken.complete,
            };
            for out in output.cue(element.upcast_ref(), cue, ends_segment) {
                self.push(element, out)?;
            }
        }
        Ok(())
    }

    /// Pushes under the source pad's stream lock, and only what belongs to the present epoch.
    pub(super) fn push(&self, element: &super::Transcriber, out: Out) -> Result<(), Stop> {
        let pad = element.imp().srcpad();
        if let Out::Message(message) = out {
            let _ = element.post_message(message);
            return Ok(());
        }
        let _stream = pad.stream_lock();
        if !self.inbox.is_current(self.epoch) {
            return Err(Stop::Interrupted);
        }
        match out {
            Out::Buffer(buffer) => pad.push(buffer).map(drop).map_err(|error| match error {
                gst::FlowError::Flushing if !self.inbox.is_current(self.epoch) => Stop::Interrupted,
                // Downstream alone is flushing or shut down: upstream must hear of it, or it would wait for us.
                error => Stop::Flow(error),
            }),
            Out::Event(event) => {
                pad.push_event(event);
                Ok(())
            }
            Out::Message(_) => Ok(()),
        }
    }

    fn push_event(&self, element: &super::Transcriber, event: gst::Event) {
        // A refusal shows at the next buffer.
        let _ = self.push(element, Out::Event(event));
    }
}

impl Stream {
    fn new(segment: &Option<gst::FormattedSegment<gst::ClockTime>>, diarized: bool) -> Self {
        let mut timeline = Timeline::new();
        if let Some(segment) = segment {
            timeline.set_segment(segment_map(segment));
        }
        Self {
            timeline,
            sessions: Vec::new(),
            pending: Vec::new(),
            next_segment: 0,
            previous_end: None,
            end: SampleIndex(0),
            live: None,
            backwards: segment.as_ref().is_some_and(|s| s.rate() < 0.0),
            waiting: VecDeque::new(),
            speakers: diarized.then(Speakers::default),
            held: VecDeque::new(),
            early: VecDeque::new(),
        }
    }

    /// Takes what a diarizer's event tells.
    fn hear_of_speakers(&mut self, structure: &gst::StructureRef) {
        let Some(speakers) = &mut self.speakers else {
            return;
        };
        if let Some(turns) = messages::turns_of(structure) {
            speakers.take(&turns);
        } else if let Some(relabel) = messages::relabel_of(structure) {
            speakers.relabel(&relabel);
        }
    }

    fn wants_input(&mut self) -> bool {
        self.sessions.iter_mut().all(Session::wants_input)
    }
}

/// `45:14.877`.
fn minutes(ns: u64) -> String {
    let ms = ns / 1_000_000;
    format!("{}:{:02}.{:03}", ms / 60_000, ms / 1000 % 60, ms % 1000)
}

/// Tells how the work goes: messages for applications, INFO lines for people.
struct Report {
    began: Instant,
    told: Option<Instant>,
    looked: Option<Instant>,
    logged: Instant,
    announced: bool,
    heard_ns: u64,
}

impl Report {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            told: None,
            looked: None,
            logged: now,
            announced: false,
            heard_ns: 0,
        }
    }

    /// Whether it is time to look at the models again.
    fn looks(&mut self) -> bool {
        let due = self.looked.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }

    fn tell(
        &mut self,
        element: &super::Transcriber,
        until: SampleIndex,
        timeline: &Timeline,
        stats: &SessionStats,
        registry: &Registry,
        post: bool,
    ) {
        if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            gst::info!(CAT, obj = element, "{stats}");
            for memory in registry.memory().iter().filter(|m| m.reserved > 0) {
                gst::info!(
                    CAT,
                    obj = element,
                    "memory {:.1} % of {} on {}",
                    memory.percent(),
                    human_bytes(memory.capacity),
                    memory.device
                );
                if post {
                    let _ = element.post_message(messages::memory(element, memory));
                }
            }
        }
        if !self.announced {
            self.announced = true;
            let duration = element
                .imp()
                .sinkpad()
                .peer_query_duration::<gst::ClockTime>();
            match duration {
                Some(duration) => gst::info!(
                    CAT,
                    obj = element,
                    "Processing audio with duration {}",
                    minutes(duration.nseconds())
                ),
                None => gst::info!(CAT, obj = element, "Processing audio of unknown duration"),
            }
        }
        if !post || self.told.is_some_and(|t| t.elapsed() < PROGRESS_EVERY) {
            return;
        }
        let position = timeline.stream_ns(until).0;
        if position == self.heard_ns {
            return;
        }
        self.told = Some(Instant::now());
        self.heard_ns = position;
        let duration = element
            .imp()
            .sinkpad()
            .peer_query_duration::<gst::ClockTime>();
        let percent = duration
            .filter(|d| !d.is_zero())
            .map(|d| (position as f64 / d.nseconds() as f64 * 100.0).min(100.0));
        let text = match (percent, duration) {
            (Some(percent), Some(duration)) => {
                format!(
                    "{percent:.0} % of {:.3} s",
                    duration.nseconds() as f64 / 1e9
                )
            }
            _ => format!("{:.3} s", position as f64 / 1e9),
        };
        let _ = element.post_message(messages::progress(element, percent, position, &text));
    }

    fn done(&mut self, element: &super::Transcriber, post: bool) {
        let took = self.began.elapsed().as_secs_f64();
        gst::info!(CAT, obj = element, "Finished after {took:.1} s");
        if post {
            let _ = element.post_message(messages::progress(
                element,
                Some(100.0),
                self.heard_ns,
                "Finished",
            ));
        }
    }
}
