// SPDX-License-Identifier: MPL-2.0
//! The stream's worker: one thread that takes sound and events in order and runs the logic. What goes downstream it leaves
//! in the outbox, for the streaming thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::EnrollPolicy;
use super::imp::{CAT, ENROLL, FENCE};
use super::settings::Settings;
use crate::audio::time::samples_to_ns;
use crate::audio::{SampleIndex, Timeline};
use crate::diarize::models::segmentation_spec;
use crate::diarize::voice::VoiceModel;
use crate::enroll::conversation::Conversation;
use crate::enroll::keeper::{Conversed, KeepError, Keeper, Kept};
use crate::enroll::recording::{EnrollError, Recording};
use crate::enroll::speakers::{Piece, Speakers, Talk};
use crate::enroll::{EnrollOptions, Progress};
use crate::error::{engine_error, refusal, store_error};
use crate::inference::{CancelToken, DeviceId, EngineError};
use crate::intake::inbox::{Inbox, Item, Sound, Take};
use crate::intake::outbox::Outbox;
use crate::intake::{segment_map, silence};
use crate::messages::{self, SpokenTurn, Turns};
use crate::registry::{Degraded, Embedding, Lease, Registry, Request, Segmentation, VoiceActivity};
use crate::transcribe::file::vad_spec;
use crate::transcript::formats::Relabel;

/// How long the worker sleeps when nothing happens.
const TICK: Duration = Duration::from_millis(500);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What the thread needs from the element.
pub(super) struct Worker {
    pub element: glib::WeakRef<super::Enroller>,
    pub inbox: Arc<Inbox>,
    pub outbox: Arc<Outbox>,
    pub settings: Settings,
    pub registry: Registry,
    pub epoch: u64,
    pub cancel: CancelToken,
}

/// The models, and where voices are kept.
struct Loaded {
    vad: Arc<Lease<VoiceActivity>>,
    segmentation: Arc<Lease<Segmentation>>,
    embedding: Arc<Lease<Embedding>>,
    model: VoiceModel,
    keeper: Keeper,
    options: EnrollOptions,
}

/// The work on one stream between two flushes.
struct Stream {
    timeline: Timeline,
    job: Job,
    end: SampleIndex,
    /// Sound in all, samples.
    heard: u64,
    told: Instant,
}

enum Job {
    Recording(Box<Recording>),
    Conversation(Box<Conversation>, Speakers),
    /// Enough was heard, or it is too long: the rest passes.
    Done,
}

/// Why the worker stops what it does.
enum Stop {
    /// A flush or a shutdown: the inbox knows which.
    Interrupted,
    /// An error to be posted.
    Error(gst::ErrorMessage),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cancelled => Self::Interrupted,
            error => Self::Error(engine_error(&error)),
        }
    }
}

impl From<EnrollError> for Stop {
    fn from(error: EnrollError) -> Self {
        match error {
            EnrollError::Engine(error) => error.into(),
            EnrollError::Refused(why) => Self::Error(refusal(&why)),
        }
    }
}

impl From<KeepError> for Stop {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Engine(error) => error.into(),
            KeepError::Refused(why) => Self::Error(refusal(&why)),
            KeepError::Store(error) => Self::Error(store_error(&error)),
            KeepError::NoFolder { .. } => {
                Self::Error(gst::error_msg!(gst::ResourceError::NotFound, ("{error}")))
            }
            KeepError::Key(error) => {
                Self::Error(gst::error_msg!(gst::ResourceError::Settings, ("{error}")))
            }
        }
    }
}

impl Worker {
    /// Runs until the element goes to READY. A panic becomes an error on the bus and ends the epoch, as any error does.
    pub(super) fn run(mut self) {
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.epoch()));
            let stop = outcome.unwrap_or_else(|_| {
                Stop::Error(gst::error_msg!(
                    gst::LibraryError::Failed,
                    ("scribeenroller's worker panicked: this is a bug. Set the element to NULL and back to go on")
                ))
            });
            self.stopped(stop);
            loop {
                match self.inbox.take(self.epoch, false, TICK) {
                    Take::Shutdown => return,
                    Take::Flushed { epoch, cancel } => {
                        self.epoch = epoch;
                        self.cancel = cancel;
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
        let mut segment: Option<gst::FormattedSegment<gst::ClockTime>> = None;
        let mut stream: Option<Stream> = None;
        loop {
            let step = match self.inbox.take(self.epoch, true, TICK) {
                Take::Shutdown | Take::Flushed { .. } => Err(Stop::Interrupted),
                Take::Nothing => match self.element.upgrade() {
                    Some(_) => Ok(()),
                    None => Err(Stop::Interrupted),
                },
                Take::Item(Item::Sound(sound)) => match &mut stream {
                    Some(stream) => self.sound(stream, &sound),
                    None => self.begin(&segment, &loaded).and_then(|begun| {
                        let stream = stream.insert(begun);
                        self.sound(stream, &sound)
                    }),
                },
                Take::Item(Item::Event(event)) => {
                    self.event(&event, &mut stream, &mut segment, &mut loaded)
                }
            };
            if let Err(stop) = step {
                return stop;
            }
        }
    }

    fn begin(
        &self,
        segment: &Option<gst::FormattedSegment<gst::ClockTime>>,
        loaded: &Loaded,
    ) -> Result<Stream, Stop> {
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        let mut timeline = Timeline::new();
        if let Some(segment) = segment {
            timeline.set_segment(segment_map(segment));
        }
        let models = || {
            (
                Arc::clone(&loaded.vad),
                Arc::clone(&loaded.segmentation),
                self.cancel.clone(),
            )
        };
        let (vad, segmentation, cancel) = models();
        let job = if self.settings.policy == EnrollPolicy::Name {
            let limits = self.settings.limits();
            let recording = Recording::new(vad, segmentation, &loaded.options, limits, cancel);
            Job::Recording(Box::new(recording))
        } else if element.imp().is_diarized() {
            let embedding = Arc::clone(&loaded.embedding);
            let (duration, hop) = (loaded.options.duration, loaded.options.hop);
            let conversation =
                Conversation::new(vad, segmentation, embedding, duration, hop, cancel);
            Job::Conversation(Box::new(conversation), Speakers::default())
        } else {
            return Err(Stop::Error(gst::error_msg!(
                gst::CoreError::Negotiation,
                ("nobody tells scribeenroller who speaks: put scribediarizer before it, or set policy=name and name-of= for \
                     a recording of one person")
            )));
        };
        let mut stream = Stream {
            timeline,
            job,
            end: SampleIndex(0),
            heard: 0,
            told: Instant::now(),
        };
        // Known beforehand in a file; else it shows.
        let duration = element
            .imp()
            .sinkpad()
            .peer_query_duration::<gst::ClockTime>();
        if let Some(duration) = duration {
            self.skip(&mut stream, &loaded.options, duration.into());
        }
        Ok(stream)
    }

    /// Lets a recording pass that is longer than it may be.
    fn skip(&self, stream: &mut Stream, options: &EnrollOptions, duration: Duration) {
        if matches!(stream.job, Job::Done) {
            return;
        }
        if let Some(degraded) = options.skips(duration) {
            self.tell_degraded(&degraded);
            stream.job = Job::Done;
        }
    }

    /// Leases on the models, with PROGRESS messages while they load, and the voices there are.
    fn load(&self) -> Result<Loaded, Stop> {
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
        match self.acquire() {
            Ok(loaded) => {
                progress(gst::ProgressType::Complete, "The speaker models are loaded");
                Ok(loaded)
            }
            Err(Stop::Interrupted) => {
                progress(gst::ProgressType::Canceled, "Loading was stopped");
                Err(Stop::Interrupted)
            }
            Err(stop) => {
                progress(
                    gst::ProgressType::Error,
                    "The speaker models or the voices cannot be used",
                );
                Err(stop)
            }
        }
    }

    fn acquire(&self) -> Result<Loaded, Stop> {
        let settings = &self.settings;
        let keep = settings
            .keep()
            .map_err(|why| Stop::Error(gst::error_msg!(gst::LibraryError::Settings, ("{why}"))))?;
        let (keeper, model) = Keeper::open(keep)?;
        let request = (
            Request::<VoiceActivity>(vad_spec(&settings.vad_model)?),
            Request::<Segmentation>(segmentation_spec(&settings.segmentation_model)?),
            Request::<Embedding>(model.spec.clone()),
        );
        let (vad, segmentation, mut embedding) = self.registry.acquire(request, &self.cancel)?;
        let options = settings
            .options(|name| std::env::var(name).ok())
            .map_err(|why| Stop::Error(gst::error_msg!(gst::LibraryError::Settings, ("{why}"))))?;
        embedding.set_batch_size(options.batch_size);
        if let Some(element) = self.element.upgrade() {
            element.imp().set_model(&model.name());
        }
        Ok(Loaded {
            vad: Arc::new(vad),
            segmentation: Arc::new(segmentation),
            embedding: Arc::new(embedding),
            model,
            keeper,
            options,
        })
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
        stream.heard += (samples - trim) as u64;
        if place.new_piece {
            stream.job.end_piece()?;
        }
        let silence = place.silence_before.min(place.start.0);
        stream.job.push_silence(place.start.0 - silence, silence)?;
        let channel = sound.channels.first();
        let kept = channel.and_then(|c| c.get(trim..)).unwrap_or_default();
        stream.job.push(place.start.0, kept)?;
        stream.collect();
        self.tell_progress(stream);
        Ok(())
    }

    fn event(
        &self,
        event: &gst::Event,
        stream: &mut Option<Stream>,
        segment: &mut Option<gst::FormattedSegment<gst::ClockTime>>,
        loaded: &mut Loaded,
    ) -> Result<(), Stop> {
        let Some(element) = self.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        match event.view() {
            gst::EventView::StreamStart(_)
            | gst::EventView::Eos(_)
            | gst::EventView::SegmentDone(_) => self.conclude(&element, stream.take(), loaded)?,
            gst::EventView::Segment(e) => {
                let Some(new) = e.segment().downcast_ref::<gst::ClockTime>() else {
                    return Err(Stop::Error(gst::error_msg!(
                        gst::StreamError::Format,
                        (
                            "the sound has no segment in time but in {:?}: put a parser or audiorate before scribeenroller",
                            e.segment().format()
                        )
                    )));
                };
                *segment = Some(new.clone());
                if let Some(stream) = stream {
                    stream.job.end_piece()?;
                    stream.timeline.set_segment(segment_map(new));
                }
            }
            gst::EventView::Gap(e) => {
                let (pts, duration) = e.get();
                if let (Some(duration), Some(stream)) = (duration, stream) {
                    let place = stream.timeline.gap(pts.nseconds(), duration.nseconds());
                    if place.new_piece {
                        stream.job.end_piece()?;
                    } else {
                        let silence = place.silence_before.min(place.start.0);
                        let from = place.start.0 - silence;
                        stream.job.push_silence(from, silence)?;
                    }
                    stream.end = stream.end.max(place.start);
                }
            }
            gst::EventView::CustomDownstream(e) => {
                let Some(structure) = e.structure() else {
                    return Ok(());
                };
                match structure.name().as_str() {
                    FENCE => self.outbox.done(),
                    ENROLL if self.waits_for_turns(&element) => {
                        gst::element_warning!(
                            element,
                            gst::LibraryError::Settings,
                            ("nobody has been enrolled yet: scribediarizer tells who speaks at the end of the stream. With \
                                 mode=online it tells it before")
                        );
                    }
                    ENROLL => {
                        if let Some(stream) = stream {
                            self.enroll(&element, stream, loaded)?;
                        }
                    }
                    messages::TURNS => self.turns(&element, structure, stream, loaded)?,
                    messages::RELABEL => {
                        if let (Some(relabel), Some(stream)) =
                            (messages::relabel_of(structure), stream)
                        {
                            stream.relabel(&relabel);
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether voices are learnt when a diarizer tells, at the end, who spoke.
    fn waits_for_turns(&self, element: &super::Enroller) -> bool {
        element.imp().is_offline() && self.settings.policy != EnrollPolicy::Name
    }

    /// A diarizer tells who spoke.
    fn turns(
        &self,
        element: &super::Enroller,
        structure: &gst::StructureRef,
        stream: &mut Option<Stream>,
        loaded: &mut Loaded,
    ) -> Result<(), Stop> {
        let Some(mut told) = messages::turns_of(structure) else {
            return Ok(());
        };
        let is_offline = element.imp().is_offline();
        if let Some(stream) = stream {
            if is_offline {
                // All of the sound is here, and what was said in it is wanted now.
                if let Job::Conversation(conversation, _) = &mut stream.job {
                    conversation.finish()?;
                }
                stream.collect();
            }
            if let Job::Conversation(_, speakers) = &mut stream.job {
                let talks = |turns: &[SpokenTurn]| turns.iter().map(talk).collect();
                speakers.turns(talks(&told.all), talks(&told.exclusive), told.watermark.0);
            }
            if is_offline {
                for relabel in self.conversed(element, stream, loaded)? {
                    rename(&mut told, &relabel);
                    self.tell_relabel(element, &relabel);
                }
                // What comes behind a second segment is learnt by itself.
                if let Job::Conversation(_, speakers) = &mut stream.job {
                    *speakers = Speakers::default();
                }
            }
        }
        if is_offline {
            self.outbox.put(messages::turns(&told));
        }
        Ok(())
    }

    /// What was heard so far is enough.
    fn enroll(
        &self,
        element: &super::Enroller,
        stream: &mut Stream,
        loaded: &mut Loaded,
    ) -> Result<(), Stop> {
        match std::mem::replace(&mut stream.job, Job::Done) {
            Job::Done => Ok(()),
            Job::Recording(recording) => self.recorded(element, stream, *recording, loaded),
            Job::Conversation(mut conversation, speakers) => {
                conversation.finish()?;
                stream.job = Job::Conversation(conversation, speakers);
                stream.collect();
                let relabels = self.conversed(element, stream, loaded)?;
                stream.job = Job::Done;
                for relabel in relabels {
                    self.outbox.put(messages::relabel(&relabel));
                    self.tell_relabel(element, &relabel);
                }
                Ok(())
            }
        }
    }

    /// The end of a stream.
    fn conclude(
        &self,
        element: &super::Enroller,
        stream: Option<Stream>,
        loaded: &mut Loaded,
    ) -> Result<(), Stop> {
        let Some(mut stream) = stream else {
            return Ok(());
        };
        if self.waits_for_turns(element) {
            // They have come, and all was done then.
            return Ok(());
        }
        let heard = Duration::from_nanos(samples_to_ns(stream.heard));
        self.skip(&mut stream, &loaded.options, heard);
        self.enroll(element, &mut stream, loaded)
    }

    /// One person's recording is over.
    fn recorded(
        &self,
        element: &super::Enroller,
        stream: &Stream,
        mut recording: Recording,
        loaded: &mut Loaded,
    ) -> Result<(), Stop> {
        let memory = self.registry.memory();
        let memory = memory.into_iter().find(|m| m.device == DeviceId::Cpu);
        let position = stream.timeline.stream_ns(stream.end).0;
        recording.end()?;
        gst::debug!(CAT, obj = element, "{:?}", recording.measured());
        let take = recording.finish(
            &loaded.embedding,
            &loaded.model,
            memory,
            &self.cancel,
            &mut |progress| {
                gst::info!(CAT, obj = element, "{progress}");
                if self.settings.post_messages {
                    let percent = match &progress {
                        Progress::Begin { .. } => 0.0,
                        Progress::Done { batches, of, .. } => {
                            *batches as f64 / (*of).max(1) as f64 * 100.0
                        }
                    };
                    let text = progress.to_string();
                    let message = messages::progress(element, Some(percent), position, &text);
                    let _ = element.post_message(message);
                }
            },
        )?;
        for degraded in loaded.embedding.degraded() {
            self.tell_degraded(&degraded);
        }
        let seconds = stream.heard as f64 / 16_000.0;
        element.imp().count(seconds, take.quality.net_speech_s);
        let kept = loaded.keeper.keep(&take, &loaded.model)?;
        self.tell_enrolled(element, &kept);
        Ok(())
    }

    /// It is known who spoke in a conversation: learns what is to be learnt. Which ids are others now.
    fn conversed(
        &self,
        element: &super::Enroller,
        stream: &mut Stream,
        loaded: &mut Loaded,
    ) -> Result<Vec<Relabel>, Stop> {
        let Job::Conversation(conversation, speakers) = &stream.job else {
            return Ok(Vec::new());
        };
        for degraded in conversation.degraded() {
            self.tell_degraded(&degraded);
        }
        let measured = conversation.measured();
        element
            .imp()
            .count(stream.heard as f64 / 16_000.0, measured.net_speech_s);
        let limits = self.settings.limits();
        let keeper = &mut loaded.keeper;
        let Conversed {
            kept,
            relabels,
            left_out,
        } = keeper.conversation(speakers, &measured, &loaded.model, &limits)?;
        for (speaker, why) in left_out {
            gst::info!(CAT, obj = element, "{speaker} was not enrolled: {why}");
            if self.settings.post_messages {
                let _ = element.post_message(messages::not_enrolled(element, &speaker, &why));
            }
        }
        for kept in &kept {
            self.tell_enrolled(element, kept);
        }
        Ok(relabels)
    }

    fn tell_enrolled(&self, element: &super::Enroller, kept: &Kept) {
        let voice = &kept.enrolled;
        element.imp().count_enrolled(kept.quality.segments as usize);
        gst::info!(
            CAT,
            obj = element,
            "{} {}: {:.1} s of speech in {} recordings, {}",
            if voice.is_new { "Enrolled" } else { "Added to" },
            voice.label,
            voice.net_speech_s,
            voice.takes,
            voice.grade
        );
        if let Some(other) = &kept.sounds_like {
            gst::element_warning!(
                element,
                gst::LibraryError::Settings,
                (
                    "{} sounds like {other}, who is enrolled too: if they are one person, `scribe-voices merge` makes them one",
                    voice.label
                )
            );
        }
        if self.settings.post_messages {
            let _ = element.post_message(messages::enrolled(element, kept));
        }
    }

    fn tell_relabel(&self, element: &super::Enroller, relabel: &Relabel) {
        if self.settings.post_messages {
            let _ = element.post_message(messages::relabel_message(element, relabel));
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
        let speech = match &stream.job {
            Job::Recording(recording) => recording.seconds(),
            Job::Conversation(conversation, _) => conversation.measured().net_speech_s,
            Job::Done => return,
        };
        element.imp().count(stream.heard as f64 / 16_000.0, speech);
        if !self.settings.post_messages {
            return;
        }
        let position = stream.timeline.stream_ns(stream.end).0;
        let text = format!("{speech:.1} s of speech heard");
        let _ = element.post_message(messages::progress(&element, None, position, &text));
    }
}

impl Stream {
    /// Takes the pieces whose vectors have come.
    fn collect(&mut self) {
        if let Job::Conversation(conversation, speakers) = &mut self.job {
            for spoken in conversation.take() {
                let start = SampleIndex(spoken.samples.start);
                let end = SampleIndex(spoken.samples.end);
                let running = self.timeline.running_ns(start).0..self.timeline.running_ns(end).0;
                speakers.piece(Piece {
                    running,
                    stream: self.timeline.stream_ns(start).0,
                    vector: spoken.vector,
                });
            }
        }
    }

    fn relabel(&mut self, relabel: &Relabel) {
        if let (Job::Conversation(_, speakers), Some(new)) = (&mut self.job, &relabel.new_id) {
            let from = relabel.from.map_or(0, |t| t.0);
            let to = relabel.to.map_or(u64::MAX, |t| t.0);
            speakers.relabel(&relabel.old_id, new, from..to);
        }
    }
}

impl Job {
    fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        match self {
            Self::Recording(recording) => recording.push(start, samples),
            Self::Conversation(conversation, _) => conversation.push(start, samples),
            Self::Done => Ok(()),
        }
    }

    fn push_silence(&mut self, start: u64, count: u64) -> Result<(), EngineError> {
        silence(start, count, |at, zeros| self.push(at, zeros))
    }

    fn end_piece(&mut self) -> Result<(), EngineError> {
        match self {
            Self::Recording(recording) => recording.end_piece(),
            Self::Conversation(conversation, _) => conversation.end_piece(),
            Self::Done => Ok(()),
        }
    }
}

fn talk(spoken: &SpokenTurn) -> Talk {
    Talk {
        speaker: spoken.turn.speaker_id.clone(),
        running: spoken.start.0..spoken.end.0.max(spoken.start.0),
    }
}

/// Gives the turns of a speaker another id.
fn rename(told: &mut Turns, relabel: &Relabel) {
    let Some(new) = &relabel.new_id else {
        return;
    };
    for spoken in told.all.iter_mut().chain(&mut told.exclusive) {
        if spoken.turn.speaker_id == relabel.old_id {
            spoken.turn.speaker_id.clone_from(new);
            spoken.turn.speaker.clone_from(&relabel.name);
        }
    }
}
