// SPDX-License-Identifier: MPL-2.0
//! The stream's worker: one thread that takes sound and events in order and runs the logic. Events for `src` it leaves in
//! the outbox, for the streaming thread; what goes out on `turns` in a queue, for a thread that pushes there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::DiarizerMode;
use super::imp::{CAT, FENCE};
use super::settings::Settings;
use super::turns_pad::{Out, TurnsQueue, TurnsStream};
use crate::audio::{RunningNs, SampleIndex, Timeline};
use crate::diarize::identities::Identities;
use crate::diarize::models::segmentation_spec;
use crate::diarize::names::{Labels, Named, Names, NamesError, Voices};
use crate::diarize::offline::{Offline, OfflineOptions};
use crate::diarize::online::{KnownVoices, Online, OnlineOptions, Relabelled, Told};
use crate::diarize::reconstruct::{Cutting, Talk};
use crate::diarize::voice::{VoiceModel, voice_model};
use crate::error::{engine_error, store_error};
use crate::inference::{CancelToken, EngineError};
use crate::intake::inbox::{Inbox, Item, Sound, Take};
use crate::intake::outbox::Outbox;
use crate::intake::{segment_map, silence};
use crate::messages::{self, SpokenTurn, Turns};
use crate::registry::{Degraded, Embedding, FirstOf, Lease, Registry, Request, Segmentation};
use crate::transcript::Turn;
use crate::transcript::formats::Relabel;
use crate::voices::matching::{Probe, SpeakerState};

/// How long the worker sleeps when nothing happens.
const TICK: Duration = Duration::from_millis(500);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// The watermark is told when it has moved so far, though nobody has spoken: 0.1 s.
const WATERMARK_STEP: u64 = 1_600;
/// Online, times before this are not asked for: what is mended is younger. An hour.
const PAST: u64 = 3600 * 16_000;
/// Speakers at a time, at most: the segmentation model hears no more than two of three.
const AT_ONCE: usize = 3;

/// What the thread needs from the element.
pub(super) struct Worker {
    pub element: glib::WeakRef<super::Diarizer>,
    pub inbox: Arc<Inbox>,
    pub outbox: Arc<Outbox>,
    pub settings: Settings,
    pub registry: Registry,
    pub epoch: u64,
    pub cancel: CancelToken,
    /// Who was heard before, offline and online: ids survive seeks.
    pub identities: Identities,
    pub known: KnownVoices,
    pub group: Option<gst::GroupId>,
    pub turns: TurnsStream,
    pub queue: Arc<TurnsQueue>,
    /// Speakers online, so far.
    pub most: usize,
    /// What speakers are called.
    pub labels: Labels,
}

/// The models.
struct Loaded {
    segmentation: Arc<Lease<Segmentation>>,
    embedding: Arc<Lease<Embedding>>,
    voice: VoiceModel,
    /// People who can be known again.
    names: Option<Names>,
}

/// The work on one stream between two flushes, or between two segments.
struct Stream {
    timeline: Timeline,
    listener: Listener,
    end: SampleIndex,
    told: Instant,
    /// What was told last: nothing will be added before it.
    watermark: u64,
}

enum Listener {
    Offline(Offline),
    Online(Box<Online>),
    /// Going on without speakers: sound is let pass.
    Deaf,
}

/// Why the worker stops what it does.
enum Stop {
    /// A flush or a shutdown: the inbox knows which.
    Interrupted,
    /// An error to be posted.
    Error(gst::ErrorMessage),
}

impl Worker {
    /// Runs until the element goes to READY. A panic becomes an error on the bus and ends the epoch, as any error does.
    pub(super) fn run(mut self) {
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.epoch()));
            let stop = outcome.unwrap_or_else(|_| {
                Stop::Error(gst::error_msg!(
                    gst::LibraryError::Failed,
                    ("scribediarizer's worker panicked: this is a bug. Set the element to NULL and back to go on")
                ))
            });
            self.stopped(stop);
            loop {
                match self.inbox.take(self.epoch, false, TICK) {
                    Take::Shutdown => return,
                    Take::Flushed { epoch, cancel } => {
                        self.epoch = epoch;
                        self.cancel = cancel;
                        self.turns.flush();
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

    fn stopped(&self, stop: Stop) {
        if let Stop::Error(message) = stop {
            if self.inbox.is_current(self.epoch)
                && let Some(element) = self.element.upgrade()
            {
                element.imp().post_error_message(message);
            }
            self.inbox.fail(self.epoch);
            self.outbox.shut();
        }
    }

    /// Works until a flush, an error or the end.
    fn epoch(&mut self) -> Stop {
        let mut loaded = match self.load() {
            Ok(loaded) => loaded,
            Err(stop) => return stop,
        };
        self.labels.has_voices = loaded.as_ref().is_some_and(|l| l.names.is_some());
        let mut segment: Option<gst::FormattedSegment<gst::ClockTime>> = None;
        let mut stream: Option<Stream> = None;
        loop {
            let mut step = match self.inbox.take(self.epoch, true, TICK) {
                Take::Shutdown | Take::Flushed { .. } => Err(Stop::Interrupted),
                Take::Nothing => match self.element.upgrade() {
                    Some(_) => Ok(()),
                    None => Err(Stop::Interrupted),
                },
                Take::Item(Item::Sound(sound)) => {
                    let stream =
                        stream.get_or_insert_with(|| self.begin(&segment, loaded.as_ref()));
                    self.sound(stream, &sound)
                }
                Take::Item(Item::Event(event)) => {
                    self.event(&event, &mut stream, &mut segment, &mut loaded)
                }
            };
            if step.is_ok()
                && let Some(stream) = &mut stream
            {
                step = self.poll(stream, &mut loaded);
            }
            if let Err(stop) = step {
                if let Some(stream) = stream {
                    self.remember(stream);
                }
                return stop;
            }
        }
    }

    /// Keeps who was heard in a stream that is over.
    fn remember(&mut self, stream: Stream) {
        if let Listener::Online(online) = stream.listener {
            self.known = online.into_known();
        }
    }

    /// Online: tells what has become final.
    fn poll(&mut self, stream: &mut Stream, loaded: &mut Option<Loaded>) -> Result<(), Stop> {
        let Listener::Online(online) = &mut stream.listener else {
            return Ok(());
        };
        match online.poll() {
            Ok(told) => {
                let Some(element) = self.element.upgrade() else {
                    return Err(Stop::Interrupted);
                };
                let voices = voices_of(&told, online);
                self.tell_online(&element, stream, &told);
                self.tell_names(&element, loaded, &voices);
                Ok(())
            }
            Err(error) => self.heard(stream, Err(error)),
        }
    }

    fn is_online(&self) -> bool {
        let element = self.element.upgrade();
        element.is_some_and(|e| e.imp().mode() == DiarizerMode::Online)
    }

    fn online(&mut self, loaded: &Loaded) -> Online {
        let is_live = self.element.upgrade().is_some_and(|e| e.imp().is_live());
        let options = OnlineOptions {
            thresholds: loaded.voice.thresholds,
            latency: self.settings.online_latency_ms(is_live) as usize * 16,
            max_speakers: self.settings.speakers().1,
            cutting: self.cutting(),
            // A file comes faster than the models, and waits for them.
            lockstep: !is_live,
        };
        Online::new(
            Arc::clone(&loaded.segmentation),
            Arc::clone(&loaded.embedding),
            loaded.voice.input,
            options,
            std::mem::take(&mut self.known),
            self.cancel.clone(),
        )
    }

    fn cutting(&self) -> Cutting {
        Cutting {
            min_silence: u64::from(self.settings.min_silence_ms) * 16,
            min_turn: u64::from(self.settings.min_turn_ms) * 16,
            at_once: AT_ONCE,
        }
    }

    fn begin(
        &mut self,
        segment: &Option<gst::FormattedSegment<gst::ClockTime>>,
        loaded: Option<&Loaded>,
    ) -> Stream {
        let mut timeline = Timeline::new();
        if let Some(segment) = segment {
            timeline.set_segment(segment_map(segment));
        }
        let listener = match loaded {
            Some(loaded) if self.is_online() => Listener::Online(Box::new(self.online(loaded))),
            Some(loaded) => Listener::Offline(Offline::new(
                Arc::clone(&loaded.segmentation),
                Arc::clone(&loaded.embedding),
                self.settings.step_ms as usize * 16,
                loaded.voice.input,
                self.cancel.clone(),
            )),
            None => {
                // Nobody is to wait for speakers in this stream either.
                self.outbox.put(nobody_waits());
                Listener::Deaf
            }
        };
        Stream {
            timeline,
            listener,
            end: SampleIndex(0),
            told: Instant::now(),
            watermark: 0,
        }
    }

    /// Leases on the models, with PROGRESS messages while they load; `None` to go on without.
    fn load(&self) -> Result<Option<Loaded>, Stop> {
        // Voices that cannot be used are no lack of a model, and nothing falls back to strangers.
        let voices = self.voices()?;
        let progress = |kind: gst::ProgressType, text: &str| {
            if let Some(element) = self.element.upgrade() {
                let message = gst::message::Progress::builder(kind, "scribe-model", text)
                    .src(&element)
                    .build();
                let _ = element.post_message(message);
            }
        };
        progress(gst::ProgressType::Start, "Loading the speaker models");
        if !self.settings.memory_limit.is_empty()
            && let Ok(limit) = self.settings.memory_limit.parse()
            && let Err(why) = self.registry.lower_limit(limit)
            && let Some(element) = self.element.upgrade()
        {
            gst::element_warning!(element, gst::LibraryError::Settings, ("{why}"));
        }
        match self.acquire(voices) {
            Ok(loaded) => {
                progress(gst::ProgressType::Complete, "The speaker models are loaded");
                Ok(Some(loaded))
            }
            Err(EngineError::Cancelled) => {
                progress(gst::ProgressType::Canceled, "Loading was stopped");
                Err(Stop::Interrupted)
            }
            Err(error) => {
                progress(gst::ProgressType::Error, &error.to_string());
                self.without_speakers(&error)?;
                Ok(None)
            }
        }
    }

    /// The voices that people are to be known by.
    fn voices(&self) -> Result<Option<Voices>, Stop> {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let Some(voices) = path(&self.settings.voices) else {
            return Ok(None);
        };
        let key_file = path(&self.settings.voices_key_file);
        Voices::open(&voices, key_file.as_deref())
            .map(Some)
            .map_err(|error| Stop::Error(names_error(&error)))
    }

    fn acquire(&self, known: Option<Voices>) -> Result<Loaded, EngineError> {
        let segmentation = segmentation_spec(&self.settings.segmentation_model)?;
        let asked = self.settings.embedding_model();
        let mut voices: Vec<VoiceModel> = Vec::new();
        let mut missing: Vec<(String, EngineError)> = Vec::new();
        let mut look = |model: &str, found: Result<VoiceModel, EngineError>| match found {
            Ok(voice) => voices.push(voice),
            Err(error) => missing.push((model.to_owned(), error)),
        };
        match &known {
            Some(known) => look(asked.unwrap_or("auto"), known.model(asked)),
            None => look(
                asked.unwrap_or("auto"),
                voice_model(asked.unwrap_or_default()),
            ),
        }
        for model in self.settings.fallback().0 {
            look(&model, voice_model(&model));
        }
        if voices.is_empty() {
            return Err(match missing.into_iter().next() {
                Some((_, error)) => error,
                None => EngineError::Cancelled,
            });
        }
        let request = (
            Request::<Segmentation>(segmentation),
            FirstOf::<Embedding>(voices.iter().map(|v| v.spec.clone()).collect()),
        );
        let (mut segmentation, chosen) = self.registry.acquire(request, &self.cancel)?;
        let mut embedding = chosen.lease;
        segmentation.set_batch_size(self.settings.batch_size as usize);
        embedding.set_batch_size(self.settings.batch_size as usize);
        let mut voice = voices.swap_remove(chosen.step.min(voices.len() - 1));
        for (model, error) in missing {
            self.tell_degraded(&Degraded {
                what: "embedding model".into(),
                from: model,
                to: voice.name(),
                reason: error.to_string(),
            });
        }
        chosen.degraded.iter().for_each(|d| self.tell_degraded(d));
        if self.settings.clustering_threshold > 0.0 {
            voice.thresholds.merge = self.settings.clustering_threshold as f32;
        }
        if let Some(element) = self.element.upgrade() {
            element.imp().set_models(&voice.name());
        }
        let names = match known {
            Some(known) => self.names(known, &voice)?,
            None => None,
        };
        Ok(Loaded {
            segmentation: Arc::new(segmentation),
            embedding: Arc::new(embedding),
            voice,
            names,
        })
    }

    /// The people who can be known by what `voice` makes of voices: none if it fell back to another model than theirs.
    fn names(&self, known: Voices, voice: &VoiceModel) -> Result<Option<Names>, EngineError> {
        if !known.is_of(voice) {
            self.tell_degraded(&Degraded {
                what: "names".into(),
                from: "names".into(),
                to: "none".into(),
                reason: format!(
                    "the voices are not from {}, which is used instead",
                    voice.key
                ),
            });
            return Ok(None);
        }
        match Names::new(known, voice) {
            Ok(names) => Ok(Some(names)),
            Err(NamesError::Engine(error)) => Err(error),
            Err(error) => Err(EngineError::Failed {
                what: "reading the voices".into(),
                why: error.to_string(),
            }),
        }
    }

    /// Goes on without speakers, where there is somebody to go on for.
    fn without_speakers(&self, error: &EngineError) -> Result<(), Stop> {
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        let goes_on = self.settings.fallback().1 && element.imp().srcpad().is_linked();
        if !goes_on {
            return Err(Stop::Error(engine_error(error)));
        }
        gst::element_warning!(
            element,
            gst::ResourceError::Settings,
            ("Going on without speakers: {error}")
        );
        self.tell_degraded(&Degraded {
            what: "speakers".into(),
            from: "speakers".into(),
            to: "none".into(),
            reason: error.to_string(),
        });
        self.outbox.put(nobody_waits());
        Ok(())
    }

    fn tell_degraded(&self, degraded: &Degraded) {
        let Some(element) = self.element.upgrade() else {
            return;
        };
        let Degraded {
            what,
            from,
            to,
            reason,
        } = degraded;
        gst::info!(
            CAT,
            obj = element,
            "Falling back to {to} ({what}, not {from}): {reason}"
        );
        if self.settings.post_messages {
            let _ = element.post_message(messages::degraded(&element, what, from, to, reason));
        }
    }

    fn sound(&self, stream: &mut Stream, sound: &Sound) -> Result<(), Stop> {
        let samples = sound.channels.first().map_or(0, Vec::len);
        if samples == 0 && !sound.discont {
            return Ok(());
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
        let heard = match &mut stream.listener {
            Listener::Deaf => Ok(()),
            listener => (|| {
                if place.new_piece {
                    listener.end_piece()?;
                }
                let silence = place.silence_before.min(place.start.0);
                listener.push_silence(place.start.0 - silence, silence)?;
                let channel = sound.channels.first();
                let kept = channel.and_then(|c| c.get(trim..)).unwrap_or_default();
                listener.push(place.start.0, kept)
            })(),
        };
        self.heard(stream, heard)?;
        self.tell_progress(stream);
        Ok(())
    }

    /// What a listener's failure comes to.
    fn heard(&self, stream: &mut Stream, outcome: Result<(), EngineError>) -> Result<(), Stop> {
        match outcome {
            Ok(()) => Ok(()),
            Err(EngineError::Cancelled) => Err(Stop::Interrupted),
            Err(error) => {
                self.without_speakers(&error)?;
                stream.listener = Listener::Deaf;
                Ok(())
            }
        }
    }

    fn event(
        &mut self,
        event: &gst::Event,
        stream: &mut Option<Stream>,
        segment: &mut Option<gst::FormattedSegment<gst::ClockTime>>,
        loaded: &mut Option<Loaded>,
    ) -> Result<(), Stop> {
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        match event.view() {
            gst::EventView::StreamStart(e) => {
                self.conclude(&element, stream.take(), loaded)?;
                let group = e.group_id();
                if group != self.group {
                    self.group = group;
                    self.identities = Identities::default();
                    self.known = KnownVoices::default();
                    self.labels.clear();
                    if let Some(names) = loaded.as_mut().and_then(|l| l.names.as_mut()) {
                        names.begin();
                    }
                }
                self.turns.begin(group);
            }
            gst::EventView::Segment(e) => {
                self.conclude(&element, stream.take(), loaded)?;
                let Some(new) = e.segment().downcast_ref::<gst::ClockTime>() else {
                    return Err(Stop::Error(gst::error_msg!(
                        gst::StreamError::Format,
                        (
                            "the sound has no segment in time but in {:?}: put a parser or audiorate before scribediarizer",
                            e.segment().format()
                        )
                    )));
                };
                *segment = Some(new.clone());
                self.turns.set_segment(new);
                self.queue_turns(&element, Vec::new());
            }
            gst::EventView::Gap(e) => {
                let (pts, duration) = e.get();
                if let Some(duration) = duration {
                    let stream = stream.get_or_insert_with(|| self.begin(segment, loaded.as_ref()));
                    self.silence(stream, pts, duration)?;
                }
            }
            gst::EventView::Eos(_) | gst::EventView::SegmentDone(_) => {
                self.conclude(&element, stream.take(), loaded)?;
                self.queue_turns(&element, vec![Out::Event(event.clone())]);
            }
            gst::EventView::CustomDownstream(e)
                if e.structure().is_some_and(|s| s.name() == FENCE) =>
            {
                self.outbox.done();
            }
            _ => {}
        }
        Ok(())
    }

    /// A GAP is silence; a long one ends the piece.
    fn silence(
        &self,
        stream: &mut Stream,
        pts: gst::ClockTime,
        duration: gst::ClockTime,
    ) -> Result<(), Stop> {
        let place = stream.timeline.gap(pts.nseconds(), duration.nseconds());
        let heard = match &mut stream.listener {
            Listener::Deaf => Ok(()),
            listener if place.new_piece => listener.end_piece(),
            listener => {
                let silence = place.silence_before.min(place.start.0);
                listener.push_silence(place.start.0 - silence, silence)
            }
        };
        stream.end = stream.end.max(place.start);
        self.heard(stream, heard)
    }

    /// The end of a stream or a segment: who spoke in it.
    fn conclude(
        &mut self,
        element: &super::Diarizer,
        stream: Option<Stream>,
        loaded: &mut Option<Loaded>,
    ) -> Result<(), Stop> {
        let Some(mut stream) = stream else {
            return Ok(());
        };
        if loaded.is_none() {
            return Ok(());
        }
        let degraded = stream.listener.degraded();
        degraded.iter().for_each(|d| self.tell_degraded(d));
        match std::mem::replace(&mut stream.listener, Listener::Deaf) {
            Listener::Offline(offline) => self.conclude_offline(element, &stream, loaded, offline),
            Listener::Online(mut online) => {
                let told = online.finish();
                let voices = told.as_ref().map(|told| voices_of(told, &online));
                let voices = voices.unwrap_or_default();
                self.known = online.into_known();
                match told {
                    Ok(told) => {
                        self.tell_online(element, &mut stream, &told);
                        self.tell_names(element, loaded, &voices);
                        Ok(())
                    }
                    Err(EngineError::Cancelled) => Err(Stop::Interrupted),
                    Err(error) => self.without_speakers(&error),
                }
            }
            Listener::Deaf => Ok(()),
        }
    }

    fn conclude_offline(
        &mut self,
        element: &super::Diarizer,
        stream: &Stream,
        loaded: &mut Option<Loaded>,
        offline: Offline,
    ) -> Result<(), Stop> {
        let Some(loaded) = loaded else {
            return Ok(());
        };
        let (fewest, most) = self.settings.speakers();
        let options = OfflineOptions {
            thresholds: loaded.voice.thresholds,
            min_speakers: fewest,
            max_speakers: most,
            cutting: self.cutting(),
        };
        let heard = match offline.finish() {
            Ok(heard) => heard,
            Err(EngineError::Cancelled) => return Err(Stop::Interrupted),
            Err(error) => return self.without_speakers(&error),
        };
        let found = heard.diarization(&options);
        let voices = found.voices.len();
        if voices < fewest && voices > 0 {
            self.tell_degraded(&Degraded {
                what: "number of speakers".into(),
                from: fewest.to_string(),
                to: voices.to_string(),
                reason: "no more voices than that could be told apart".into(),
            });
        }
        let merge = loaded.voice.thresholds.merge;
        let ids = self.identities.of(&found.voices, merge);
        if let Some(names) = &mut loaded.names {
            let alone = found.turns.alone(found.voices.len());
            let voices = found.voices.iter().zip(alone);
            let speakers: Vec<Probe<'_>> = voices
                .map(|(voice, samples)| Probe {
                    vector: voice,
                    seconds: samples as f64 / 16_000.0,
                })
                .collect();
            match names.of(&speakers) {
                Ok(decisions) => {
                    for (number, decision) in ids.iter().zip(decisions) {
                        gst::info!(CAT, obj = element, "speaker {}: {decision}", number + 1);
                        let who = decision.id();
                        let who = who.and_then(|id| Some((id, names.label(id)?)));
                        self.labels.set(*number, who);
                    }
                }
                Err(error) => self.without_names(element, &error),
            }
        }
        let number = |talk: &Talk| ids.get(talk.speaker).copied().unwrap_or(talk.speaker);
        let labels = &self.labels;
        let spoken = |talk: &Talk| spoken(&stream.timeline, labels, talk, number(talk));
        let turns = Turns {
            watermark: stream.timeline.running_ns(stream.end),
            all: found.turns.all.iter().map(spoken).collect(),
            exclusive: found.turns.exclusive.iter().map(spoken).collect(),
        };
        gst::info!(
            CAT,
            obj = element,
            "{voices} speakers in {} turns",
            turns.all.len()
        );
        let seconds = stream.end.seconds();
        element.imp().count(seconds, voices, turns.all.len());
        self.tell(element, &stream.timeline, stream.end, &turns);
        Ok(())
    }

    /// Online: what has become final, and what was wrong.
    fn tell_online(&mut self, element: &super::Diarizer, stream: &mut Stream, told: &Told) {
        let timeline = &stream.timeline;
        let until = SampleIndex(told.watermark);
        if !told.turns.is_empty() || told.watermark >= stream.watermark + WATERMARK_STEP {
            let seconds = told.watermark.saturating_sub(stream.watermark) as f64 / 16_000.0;
            stream.watermark = told.watermark;
            let labels = &self.labels;
            let spoken = |talk: &Talk| spoken(timeline, labels, talk, talk.speaker);
            let turns = Turns {
                watermark: timeline.running_ns(until),
                all: told.turns.iter().map(spoken).collect(),
                exclusive: told.exclusive.iter().map(spoken).collect(),
            };
            let speakers = self.speakers_so_far(&told.turns);
            element.imp().count(seconds, speakers, turns.all.len());
            self.tell(element, timeline, until, &turns);
        }
        for wrong in &told.relabels {
            let relabel = relabel(timeline, &self.labels, wrong);
            self.tell_relabel(element, &relabel);
        }
        let past = SampleIndex(told.watermark.saturating_sub(PAST));
        stream.timeline.forget_before(past);
    }

    fn tell_relabel(&self, element: &super::Diarizer, relabel: &Relabel) {
        gst::info!(CAT, obj = element, "Relabelled: {relabel:?}");
        self.outbox.put(messages::relabel(relabel));
        if self.settings.post_messages {
            let _ = element.post_message(messages::relabel_message(element, relabel));
        }
    }

    /// Online: whose voices are known by now. What was told of them gets the name.
    fn tell_names(
        &mut self,
        element: &super::Diarizer,
        loaded: &mut Option<Loaded>,
        voices: &[(usize, Vec<f32>, f64)],
    ) {
        let Some(names) = loaded.as_mut().and_then(|l| l.names.as_mut()) else {
            return;
        };
        if voices.is_empty() {
            return;
        }
        let states = voices
            .iter()
            .map(|(speaker, vector, seconds)| SpeakerState {
                speaker: *speaker,
                probe: Probe {
                    vector,
                    seconds: *seconds,
                },
            });
        let speakers: Vec<SpeakerState<'_>> = states.collect();
        let changes = match names.live(&speakers) {
            Ok(changes) => changes,
            Err(error) => {
                self.without_names(element, &error);
                if let Some(loaded) = loaded {
                    loaded.names = None;
                }
                return;
            }
        };
        for Named {
            speaker,
            who,
            decision,
        } in changes
        {
            gst::info!(CAT, obj = element, "speaker {}: {decision}", speaker + 1);
            let old_id = self.labels.id(speaker);
            self.labels
                .set(speaker, who.and_then(|id| Some((id, names.label(id)?))));
            let relabel = Relabel {
                old_id,
                new_id: Some(self.labels.id(speaker)),
                name: Some(self.labels.name(speaker)),
                from: None,
                to: None,
            };
            self.tell_relabel(element, &relabel);
        }
    }

    /// The voices could be read and cannot any more: speakers are numbered from now on.
    fn without_names(&self, element: &super::Diarizer, error: &NamesError) {
        gst::element_warning!(
            element,
            gst::ResourceError::Read,
            ("Going on without names: {error}")
        );
        self.tell_degraded(&Degraded {
            what: "names".into(),
            from: "names".into(),
            to: "none".into(),
            reason: error.to_string(),
        });
    }

    /// The highest number that was given so far.
    fn speakers_so_far(&mut self, turns: &[Talk]) -> usize {
        let most = turns.iter().map(|t| t.speaker + 1).max().unwrap_or(0);
        self.most = self.most.max(most);
        self.most
    }

    /// Tells who spoke: to the bus, to those behind `src`, to those behind `turns`.
    fn tell(
        &mut self,
        element: &super::Diarizer,
        timeline: &Timeline,
        until: SampleIndex,
        turns: &Turns,
    ) {
        self.outbox.put(messages::turns(turns));
        let mut out = Vec::new();
        for turn in &turns.all {
            if self.settings.post_messages {
                let _ = element.post_message(messages::turn(element, &turn.turn));
            }
            out.extend(self.turns.turn(turn));
        }
        out.extend(self.turns.advance(timeline.stream_ns(until).0));
        self.queue_turns(element, out);
    }

    /// Has `out` pushed on `turns`, and before it what must come first, if somebody has asked for that pad.
    fn queue_turns(&mut self, element: &super::Diarizer, out: Vec<Out>) {
        if let Some(pad) = element.imp().turnspad() {
            let head = self.turns.head(element, &pad);
            self.queue.put(self.epoch, head.into_iter().chain(out));
        }
    }

    fn tell_progress(&self, stream: &mut Stream) {
        if stream.told.elapsed() < PROGRESS_EVERY {
            return;
        }
        stream.told = Instant::now();
        let Some(element) = self.element.upgrade() else {
            return;
        };
        let degraded = stream.listener.degraded();
        degraded.iter().for_each(|d| self.tell_degraded(d));
        if !self.settings.post_messages || element.imp().mode() == DiarizerMode::Online {
            return;
        }
        let position = stream.timeline.stream_ns(stream.end).0;
        let duration = element
            .imp()
            .sinkpad()
            .peer_query_duration::<gst::ClockTime>();
        let percent = duration
            .filter(|d| !d.is_zero())
            .map(|d| (position as f64 / d.nseconds() as f64 * 100.0).min(100.0));
        let text = format!("{:.3} s heard for speakers", position as f64 / 1e9);
        let _ = element.post_message(messages::progress(&element, percent, position, &text));
    }
}

/// Tells those behind that no speaker will be told, so that they do not wait.
fn nobody_waits() -> gst::Event {
    messages::turns(&Turns {
        watermark: RunningNs(u64::MAX),
        ..Turns::default()
    })
}

impl Listener {
    fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        match self {
            Self::Offline(offline) => offline.push(start, samples),
            Self::Online(online) => online.push(start, samples),
            Self::Deaf => Ok(()),
        }
    }

    fn push_silence(&mut self, start: u64, count: u64) -> Result<(), EngineError> {
        silence(start, count, |at, zeros| self.push(at, zeros))
    }

    fn end_piece(&mut self) -> Result<(), EngineError> {
        match self {
            Self::Offline(offline) => offline.end_piece(),
            Self::Online(online) => online.end_piece(),
            Self::Deaf => Ok(()),
        }
    }

    /// What was given up to go on since the last call.
    fn degraded(&self) -> Vec<Degraded> {
        match self {
            Self::Offline(offline) => offline.degraded(),
            Self::Online(online) => online.degraded(),
            Self::Deaf => Vec::new(),
        }
    }
}

/// The people that `told` has turns of: number, voice, seconds of speech.
fn voices_of(told: &Told, online: &Online) -> Vec<(usize, Vec<f32>, f64)> {
    if told.turns.is_empty() && told.relabels.is_empty() {
        return Vec::new();
    }
    let voices = online.known().voices();
    voices
        .map(|(id, voice, seconds)| (id, voice.to_vec(), seconds))
        .collect()
}

fn names_error(error: &NamesError) -> gst::ErrorMessage {
    match error {
        NamesError::Store(error) => store_error(error),
        NamesError::Key(error) => gst::error_msg!(gst::ResourceError::Settings, ("{error}")),
        NamesError::Engine(error) => engine_error(error),
    }
}

/// A turn of the speaker of that number.
fn spoken(timeline: &Timeline, labels: &Labels, talk: &Talk, number: usize) -> SpokenTurn {
    let (start, end) = (SampleIndex(talk.start), SampleIndex(talk.end));
    SpokenTurn {
        turn: Turn {
            speaker_id: labels.id(number),
            speaker: Some(labels.name(number)),
            start: timeline.stream_ns(start),
            end: timeline.stream_ns(end),
            confidence: talk.confidence,
        },
        start: timeline.running_ns(start),
        end: timeline.running_ns(end),
    }
}

fn relabel(timeline: &Timeline, labels: &Labels, wrong: &Relabelled) -> Relabel {
    let whole = wrong.from == 0 && wrong.to == u64::MAX;
    let time = |sample: u64| (!whole).then(|| timeline.stream_ns(SampleIndex(sample)));
    Relabel {
        old_id: labels.id(wrong.old),
        new_id: Some(labels.id(wrong.new)),
        name: Some(labels.name(wrong.new)),
        from: time(wrong.from),
        to: time(wrong.to),
    }
}

/// Pushes on `turns` what the worker has queued, until the element goes to READY.
pub(super) fn push_turns(
    element: &glib::WeakRef<super::Diarizer>,
    queue: &TurnsQueue,
    inbox: &Inbox,
    outbox: &Outbox,
) {
    while let Some((epoch, out)) = queue.take() {
        let Some(element) = element.upgrade() else {
            return;
        };
        let Some(pad) = element.imp().turnspad() else {
            continue;
        };
        let flow = {
            let _stream = pad.stream_lock();
            // Under the lock: FLUSH_STOP takes it before the next epoch begins.
            if !inbox.is_current(epoch) {
                continue;
            }
            match out {
                Out::Buffer(buffer) => pad.push(buffer).map(drop),
                Out::Event(event) => {
                    pad.push_event(event);
                    Ok(())
                }
            }
        };
        match flow {
            Ok(()) => {}
            Err(gst::FlowError::Flushing) if !inbox.is_current(epoch) => {}
            // Nobody takes the turns, or not any more; the sound goes on.
            Err(gst::FlowError::NotLinked | gst::FlowError::Eos)
                if element.imp().srcpad().is_linked() => {}
            Err(error) => {
                if !matches!(error, gst::FlowError::Flushing | gst::FlowError::Eos) {
                    element.imp().post_error_message(gst::error_msg!(
                        gst::StreamError::Failed,
                        ("what comes after scribediarizer's turns refused them: {error:?}"),
                        ["streaming stopped, reason {error:?}"]
                    ));
                }
                element.imp().set_flow(error);
                inbox.fail(epoch);
                outbox.shut();
            }
        }
    }
}
