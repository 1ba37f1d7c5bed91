// SPDX-License-Identifier: MPL-2.0
//! What the worker does for a live stream alone: it notices that no sound comes, tells text that may still change, and
//! what was given up to keep up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::branch::{Branch, Ground};
use super::imp::Way;
use super::load::{Loaded, Loading};
use super::worker::{Placed, Stop, Stream, Worker};
use crate::audio::SampleIndex;
use crate::intake::inbox::Take;
use crate::messages;
use crate::registry::Degraded;
use crate::transcribe::live::Skipped;
use crate::transcribe::live::policy::LiveParams;

/// How often a live stream is looked at where no sound comes.
pub(super) const LIVE_TICK: Duration = Duration::from_millis(100);
/// Without sound for so long, what was said is complete.
const STALL: Duration = Duration::from_millis(700);
const SAMPLES_A_MS: u64 = 16;
/// A better model is tried again after so much sound with time to spare; after each time in vain, twice as much.
const CLIMB: u64 = 60_000 * SAMPLES_A_MS;
/// Live sound that is kept until there are models, in samples: half a minute.
const MOST_EARLY: u64 = 30_000 * SAMPLES_A_MS;

/// See the module.
#[derive(Debug)]
pub(super) struct Live {
    /// The source is live, and waits for nobody.
    paced: bool,
    heard: Instant,
    stalled: bool,
    due_ms: u64,
    /// Pieces of speech that were given up.
    skipped: u64,
    /// Sound with much time to spare before a better model is tried, samples.
    climbs_after: u64,
}

impl Live {
    /// Sound has come.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
        self.stalled = false;
    }
}

impl Ground {
    /// What is settled while there is no session: what was due.
    pub(super) fn settled_without_sessions(&self) -> SampleIndex {
        match &self.live {
            Some(live) if live.paced && !self.early.is_empty() => {
                SampleIndex(self.end.0.saturating_sub(live.due_ms * SAMPLES_A_MS))
            }
            Some(_) if !self.early.is_empty() => SampleIndex(0),
            _ => self.end,
        }
    }

    /// Whether the source is live, and waits for nobody.
    fn is_paced(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.paced)
    }

    /// So much sound waits for models that a source which can wait does so too.
    pub(super) fn is_full(&self) -> bool {
        let first = self.early.front().map(|placed| placed.place.start);
        !self.is_paced() && first.is_some_and(|first| self.end.since(first) >= MOST_EARLY)
    }

    /// Keeps sound until there are models: of a source that waits for nobody no more than could still give words in time.
    pub(super) fn hold(&mut self, placed: Placed) {
        self.early.push_back(placed);
        while self.is_paced()
            && let Some(first) = self.early.front()
            && self.end.since(first.end()) > MOST_EARLY
        {
            self.early.pop_front();
        }
    }
}

impl Worker {
    /// Whether the stream is live, as far as is known.
    pub(super) fn is_live(&self) -> bool {
        let element = self.element.upgrade();
        element.is_some_and(|e| matches!(e.imp().way(), Way::Live { .. }))
    }

    /// Sound has come to a stream: notes whether it is live.
    pub(super) fn be_live(&self, stream: &mut Stream) {
        if let Some(live) = &mut stream.ground.live {
            live.heard();
            return;
        }
        if !stream.main.sessions.is_empty() {
            return;
        }
        let Some(element) = self.element.upgrade() else {
            return;
        };
        if let Way::Live { paced } = element.imp().way() {
            stream.ground.live = Some(Live {
                paced,
                heard: Instant::now(),
                stalled: false,
                due_ms: element.imp().due_ms(),
                skipped: 0,
                climbs_after: CLIMB,
            });
        }
    }

    /// The models have come: what was heard meanwhile is worked on.
    pub(super) fn catch_up(&self, stream: &mut Stream, loading: &Loading) {
        let Some(loaded) = loading.loaded() else {
            return;
        };
        for placed in std::mem::take(&mut stream.ground.early) {
            self.give(stream, &placed, loaded);
        }
    }

    /// Until the models have come.
    pub(super) fn wait_for_models(
        &self,
        stream: &mut Stream,
        loading: &mut Loading,
    ) -> Result<(), Stop> {
        while loading.loaded().is_none() && !stream.ground.early.is_empty() {
            match self.inbox.take(self.epoch, false, LIVE_TICK) {
                Take::Shutdown | Take::Flushed { .. } => return Err(Stop::Interrupted),
                Take::Item(_) | Take::Nothing => {
                    if self.element.upgrade().is_none() {
                        return Err(Stop::Interrupted);
                    }
                }
            }
            if loading.poll(self)? {
                self.catch_up(stream, loading);
            }
        }
        Ok(())
    }

    /// What the sessions of a stream that is live work by.
    pub(super) fn live_params(&self, live: &Live, loaded: &Loaded) -> LiveParams {
        let due = live.due_ms * SAMPLES_A_MS;
        let max_delay = u64::from(self.settings.max_delay_ms) * SAMPLES_A_MS;
        LiveParams {
            step: u64::from(self.settings.step_ms) * SAMPLES_A_MS,
            latency: live.paced.then_some(due),
            max_delay: live.paced.then_some(max_delay),
            speech: loaded.params.speech_params,
            verbatim: loaded.params.verbatim,
        }
    }

    /// Notices that no sound comes, and that words are due at another time.
    pub(super) fn watch(&self, stream: &mut Stream, wants: bool) {
        let Some(live) = &mut stream.ground.live else {
            return;
        };
        let element = self.element.upgrade();
        // Who pauses in mid-word goes on with the word.
        if element.as_ref().is_some_and(|e| e.imp().is_paused()) {
            live.heard = Instant::now();
        }
        let stalls = !live.stalled && wants && live.heard.elapsed() >= STALL;
        live.stalled |= stalls;
        let due_ms = element.map(|e| e.imp().due_ms());
        let due_ms = due_ms.filter(|ms| live.paced && *ms != live.due_ms);
        live.due_ms = due_ms.unwrap_or(live.due_ms);
        for session in stream.live_sessions() {
            if stalls {
                session.stall();
            }
            if let Some(due_ms) = due_ms {
                session.set_latency(Some(due_ms * SAMPLES_A_MS));
            }
        }
    }

    /// A smaller model where the present one is too slow for live captions, and the better one again when there is time.
    pub(super) fn switch_models(
        &self,
        element: &super::Transcriber,
        stream: &mut Stream,
        loading: &mut Loading,
    ) {
        let paced = stream.ground.live.as_ref().is_some_and(|live| live.paced);
        if !paced {
            return;
        }
        let (mut slow, mut spare) = (false, u64::MAX);
        for session in stream.live_sessions() {
            slow |= session.wants_smaller();
            spare = spare.min(session.spare());
        }
        let Some(live) = &mut stream.ground.live else {
            return;
        };
        if slow {
            loading.send_for(self, true);
        } else if spare != u64::MAX
            && spare >= live.climbs_after
            && loading.loaded().is_some_and(Loaded::is_fallback)
            && loading.send_for(self, false)
        {
            live.climbs_after = live.climbs_after.saturating_mul(2);
        }
        if let Some(given_up) = loading.switched(self) {
            self.tell_given_up(element, vec![given_up]);
            if let Some(loaded) = loading.loaded() {
                let sessions = stream.live_sessions();
                sessions.for_each(|s| s.set_models(Arc::clone(&loaded.models)));
            }
        }
    }

    /// Text that may still change, and what was given up.
    pub(super) fn tell_live(
        &self,
        element: &super::Transcriber,
        branch: &mut Branch,
        ground: &mut Ground,
    ) {
        let several = branch.sessions.len() > 1;
        for (channel, session) in branch.sessions.iter_mut().enumerate() {
            let speaker = several.then(|| format!("Channel {}", channel + 1));
            if branch.serves.said
                && let Some(partial) = session.partial()
            {
                let times = [partial.start, partial.end].map(|at| ground.timeline.stream_ns(at));
                let speaker = speaker.as_deref();
                let (text, revision) = (&partial.text, partial.revision);
                if self.settings.post_messages {
                    let message = messages::partial(element, text, times, revision, speaker);
                    let _ = element.post_message(message);
                }
                let pad = element.imp().unsynced();
                pad.partial(element, text, times, revision, speaker);
            }
            let mut given_up = session.degraded();
            for Skipped { from, to } in session.skipped() {
                let [start, end] = [from, to].map(|at| ground.timeline.running_ns(at).0);
                let stream_time = ground.timeline.stream_ns(from).0;
                let seconds = end.saturating_sub(start) as f64 / 1e9;
                given_up.push(Degraded {
                    what: "live captions".into(),
                    from: format!("{seconds:.1} s of speech"),
                    to: "a gap".into(),
                    reason: format!(
                        "its words would have come more than {} ms late (max-delay)",
                        self.settings.max_delay_ms
                    ),
                });
                if let Some(live) = &mut ground.live {
                    live.skipped += 1;
                    let message = gst::message::Qos::builder(true)
                        .running_time(gst::ClockTime::from_nseconds(start))
                        .stream_time(gst::ClockTime::from_nseconds(stream_time))
                        .timestamp(gst::ClockTime::from_nseconds(start))
                        .duration(gst::ClockTime::from_nseconds(end.saturating_sub(start)))
                        .stats(
                            gst::format::Buffers::from_u64(session.stats().windows),
                            gst::format::Buffers::from_u64(live.skipped),
                        )
                        .src(element)
                        .build();
                    let _ = element.post_message(message);
                }
            }
            self.tell_given_up(element, given_up);
        }
    }
}
