// SPDX-License-Identifier: MPL-2.0
//! A set of sessions, one a channel, and the way of their words to the pads: one for what is said, and one for its
//! translation where a pad asks for that. Neither waits for the other.

use std::collections::VecDeque;

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::live::Live;
use super::ports::{Ports, Text};
use super::speakers::Speakers;
use super::worker::{Placed, Stop, Worker};
use crate::audio::{RunningNs, SAMPLE_RATE, SampleIndex, StreamNs, Timeline};
use crate::error::engine_error;
use crate::messages;
use crate::transcribe::file::{SessionStats, Spoken};
use crate::transcribe::session::Session;
use crate::transcript::cues::{self, Bounds};
use crate::transcript::{Task, Word};

/// Which pads get what a branch gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Serves {
    /// `src`, and translate pads whose language nobody can give.
    pub said: bool,
    /// Translate pads that ask for English.
    pub english: bool,
}

/// See the module.
pub(super) struct Branch {
    pub task: Task,
    pub serves: Serves,
    pub sessions: Vec<Session>,
    /// Words of sessions that wait for the other channels.
    pending: Vec<Vec<Spoken>>,
    next_segment: u64,
    previous_end: Option<StreamNs>,
    /// Tags and custom events, with the sample they came before: they leave in their place between the words.
    waiting: VecDeque<(SampleIndex, gst::Event)>,
    /// Words that wait for their speakers.
    held: VecDeque<Spoken>,
    /// No word before this will ask who speaks.
    attributed: RunningNs,
}

/// What the branches of a stream have in common: its sound, and who speaks.
pub(super) struct Ground {
    pub timeline: Timeline,
    /// End of the sound so far.
    pub end: SampleIndex,
    /// What is live alone; nothing for a file.
    pub live: Option<Live>,
    /// Played backwards: its sound gives no text.
    pub backwards: bool,
    /// Live sound that came before the models.
    pub early: VecDeque<Placed>,
    /// Who speaks, where a diarizer tells.
    pub speakers: Option<Speakers>,
}

impl Ground {
    /// Takes what a diarizer's event tells.
    pub(super) fn hear_of_speakers(&mut self, structure: &gst::StructureRef) {
        let Some(speakers) = &mut self.speakers else {
            return;
        };
        if let Some(turns) = messages::turns_of(structure) {
            speakers.take(&turns);
        } else if let Some(relabel) = messages::relabel_of(structure) {
            speakers.relabel(&relabel);
        }
    }
}

impl Branch {
    pub(super) fn new(task: Task, serves: Serves) -> Self {
        Self {
            task,
            serves,
            sessions: Vec::new(),
            pending: Vec::new(),
            next_segment: 0,
            previous_end: None,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            attributed: RunningNs::default(),
        }
    }

    pub(super) fn add(&mut self, session: Session) {
        self.sessions.push(session);
        self.pending.push(Vec::new());
    }

    /// Hands sound, or a hole without any, to the sessions.
    pub(super) fn give(&mut self, placed: &Placed) {
        let place = &placed.place;
        for (n, session) in self.sessions.iter_mut().enumerate() {
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

    pub(super) fn end_piece(&mut self) {
        self.sessions.iter_mut().for_each(Session::end_piece);
    }

    pub(super) fn wants_input(&mut self) -> bool {
        self.sessions.iter_mut().all(Session::wants_input)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sessions.iter().all(Session::is_idle)
    }

    pub(super) fn stats(&self) -> SessionStats {
        let stats = self.sessions.iter().map(Session::stats);
        stats.fold(SessionStats::default(), |a, b| a + b)
    }

    /// An event that came before sample `at` leaves in its place between the words, at once where there are none.
    pub(super) fn event(
        &mut self,
        worker: &Worker,
        element: &super::Transcriber,
        ports: &mut Ports,
        at: SampleIndex,
        event: gst::Event,
    ) {
        if self.sessions.is_empty() {
            ports.push_event(worker, element, &ports.of(self.serves), &event);
        } else {
            self.waiting.push_back((at, event));
        }
    }

    /// Events that came before sample `until`.
    pub(super) fn push_waiting(
        &mut self,
        worker: &Worker,
        element: &super::Transcriber,
        ports: &mut Ports,
        until: SampleIndex,
    ) {
        while self.waiting.front().is_some_and(|(at, _)| *at <= until)
            && let Some((_, event)) = self.waiting.pop_front()
        {
            ports.push_event(worker, element, &ports.of(self.serves), &event);
        }
    }

    /// No word before this will ask who speaks.
    pub(super) fn attributed(&self) -> RunningNs {
        self.attributed
    }

    /// Takes what the sessions have, pushes what is complete on all channels. Up to where everything is known.
    pub(super) fn pump(
        &mut self,
        worker: &Worker,
        ground: &mut Ground,
        ports: &mut Ports,
    ) -> Result<SampleIndex, Stop> {
        let several = self.sessions.len() > 1;
        for (session, pending) in self.sessions.iter_mut().zip(&mut self.pending) {
            pending.extend(session.poll().map_err(|e| Stop::Error(engine_error(&e)))?);
        }
        let Some(element) = worker.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        // No word will come before this on any channel. A channel with nothing left waits for what comes.
        let until = self
            .sessions
            .iter()
            .filter(|session| !session.is_idle())
            .map(Session::settled_until)
            .min()
            .unwrap_or_else(|| ground.settled_without_sessions());
        let mut ready: Vec<(usize, Spoken)> = Vec::new();
        for (channel, pending) in self.pending.iter_mut().enumerate() {
            let complete = pending
                .iter()
                .take_while(|s| !several || s.end <= until)
                .count();
            ready.extend(pending.drain(..complete).map(|s| (channel, s)));
        }
        ready.sort_by_key(|(_, spoken)| spoken.start);
        for (channel, spoken) in ready {
            // Channels are speakers by themselves.
            if ground.speakers.is_some() && !several && ground.live.is_none() {
                self.held.push_back(spoken);
                continue;
            }
            let speaker = several.then(|| format!("Channel {}", channel + 1));
            self.push_waiting(worker, &element, ports, spoken.start);
            self.speak(worker, &element, ground, ports, spoken, speaker)?;
        }
        if ground.live.is_some() {
            worker.tell_live(&element, self, ground);
        }
        self.release(worker, ground, ports, false)?;
        let until = self.held.front().map_or(until, |s| until.min(s.start));
        self.push_waiting(worker, &element, ports, until);
        let stream_time = ground.timeline.stream_ns(until);
        worker.advance(&element, ports, self.serves, stream_time)?;
        Ok(until)
    }

    /// Says what has waited for its speakers: what they are known for, or everything.
    pub(super) fn release(
        &mut self,
        worker: &Worker,
        ground: &mut Ground,
        ports: &mut Ports,
        everything: bool,
    ) -> Result<(), Stop> {
        let Some(element) = worker.element.upgrade() else {
            return Err(Stop::Interrupted);
        };
        while let Some(spoken) = self.held.front() {
            let end = ground.timeline.running_ns(spoken.end);
            let known = ground
                .speakers
                .as_ref()
                .is_none_or(|s| s.are_known_until(end));
            if !known && !everything {
                break;
            }
            let Some(spoken) = self.held.pop_front() else {
                break;
            };
            self.push_waiting(worker, &element, ports, spoken.start);
            self.speak(worker, &element, ground, ports, spoken, None)?;
            self.attributed = self.attributed.max(end);
        }
        Ok(())
    }

    fn speak(
        &mut self,
        worker: &Worker,
        element: &super::Transcriber,
        ground: &Ground,
        ports: &mut Ports,
        spoken: Spoken,
        speaker: Option<String>,
    ) -> Result<(), Stop> {
        let timeline = &ground.timeline;
        let id = speaker
            .as_ref()
            .map(|s| s.to_ascii_lowercase().replace(' ', "-"));
        if ground.live.is_some() {
            let late = ground.end.since(spoken.end) * 1000 / u64::from(SAMPLE_RATE);
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
        if let Some(speakers) = &ground.speakers
            && speaker.is_none()
        {
            speakers.attribute(&mut words);
            if ground.live.is_some() {
                let start = timeline.running_ns(spoken.start);
                self.attributed = self.attributed.max(start);
            }
        }
        let mut info = spoken.info.clone();
        info.seek = timeline.stream_ns(spoken.start).0 / 10_000_000;
        let until = Some(timeline.stream_ns(spoken.end));
        if ground.live.is_some() && self.serves.said {
            let unsynced = element.imp().unsynced();
            unsynced.words(element, &words, &info.language);
        }
        let cues = cues::arrange(
            words,
            &spoken.tokens,
            &info,
            &mut self.next_segment,
            Bounds {
                previous_end: self.previous_end,
                until,
            },
            &worker.style,
        );
        self.previous_end = cues.last().map(|c| c.end).or(self.previous_end);
        // An utterance is a segment, however many times some of its words stand.
        if !spoken.complete && self.sessions.len() == 1 && !cues.is_empty() {
            self.next_segment = self.next_segment.saturating_sub(1);
        }
        let is_english = !self.serves.said || worker.says_english(self.sessions.first());
        for n in ports.of(self.serves) {
            let Some(port) = ports.get(n) else {
                continue;
            };
            let takes = match port.text {
                Text::Said => true,
                Text::English => is_english,
                Text::None(_) => false,
            };
            if !takes {
                continue;
            }
            if let Some(caps) = port.renegotiated() {
                ports.push_event(worker, element, &[n], &caps);
            }
            for (i, cue) in cues.iter().enumerate() {
                let ends_segment = match cues.get(i + 1) {
                    Some(next) => next.segment.id != cue.segment.id,
                    None => spoken.complete,
                };
                let Some(port) = ports.get(n) else {
                    continue;
                };
                for out in port.output.cue(element.upcast_ref(), cue, ends_segment) {
                    ports.push(worker, element, n, out)?;
                }
            }
        }
        Ok(())
    }
}
