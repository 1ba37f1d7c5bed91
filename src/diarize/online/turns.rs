// SPDX-License-Identifier: MPL-2.0
//! From windows of a stream that is still going on to turns.
//!
//! Nothing of who is who is carried from window to window. With each new one, all windows of the last seconds are looked
//! at again with what is known of the voices by then: those who say enough alone are known by their vectors, the others by
//! whom they share their frames with in other windows. Chains of windows, where each follows the one before, are no good:
//! a slot that holds two voices joins them for good.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::activity::{
    Activity, FRAME_STEP, LOCAL_SPEAKERS, WINDOW_FRAMES, border_of, frame_of,
};
use super::super::cluster;
use super::super::local::says_enough;
use super::super::reconstruct::{Cutting, Talk, Votes};
use super::super::voice::VoiceThresholds;
use super::known::{KnownVoices, Relabelled};
use crate::dsp::vectors::cosine;

/// Frames that a local speaker must have to himself to be known by his vector: a second. From one to three seconds the
/// error is the same.
const STRONG: usize = 16_000 / FRAME_STEP;
/// Part of a local speaker's frames that must be somebody's in other windows to know him by that. From 0.1 to 0.6 the error
/// is the same.
const SHARED: f32 = 0.5;
/// Samples from one window whose vectors are learnt to the next: one second, whatever the step of windows.
const LEARN_EVERY: u64 = 16_000;
/// Parts of turns that are kept to be looked at again once more is known of the voices: half an hour and more.
const LOG_MOST: usize = 4000;
/// How much nearer another person must be for what was told long ago to be given to them, as a part of the distance under
/// which two people are one.
const MARGIN: f32 = 0.3;

/// How turns are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Making {
    pub thresholds: VoiceThresholds,
    /// Samples before the end of the newest window that are not final yet.
    pub lookahead: u64,
    pub max_speakers: usize,
    pub cutting: Cutting,
}

/// What has become final.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Turns, or parts of them: a turn that goes on is told bit by bit, each bit adjoining the one before.
    pub turns: Vec<Talk>,
    /// The same with one speaker at a time.
    pub exclusive: Vec<Talk>,
    /// What was told wrongly before, in this order. Each is for all turns told so far, those above among them.
    pub relabels: Vec<Relabelled>,
    /// Nothing will be told that begins before this sample.
    pub watermark: u64,
}

/// Makes turns of windows.
pub(super) struct LiveTurns {
    how: Making,
    known: KnownVoices,
    /// Where the piece begins in the stream.
    piece: u64,
    /// Those that see what is not settled, from 20 s ago.
    windows: VecDeque<Seen>,
    /// What they say together, from frame `base` of the piece on.
    base: usize,
    votes: Vec<Votes>,
    /// What is before this frame of the piece is told.
    told: usize,
    /// Where each person's last turn ended, by id.
    last: BTreeMap<usize, usize>,
    /// The end of the window that was last learnt from.
    learnt: Option<u64>,
    /// What was told and windows yet to come may know better.
    unsettled: VecDeque<Part>,
    /// What was told before.
    settled: VecDeque<Part>,
    out: Told,
}

/// A window.
struct Seen {
    /// Its first frame in the piece.
    first: usize,
    activity: Activity,
    voices: [Option<Arc<[f32]>>; LOCAL_SPEAKERS],
    /// Places of people.
    who: [Option<usize>; LOCAL_SPEAKERS],
}

/// A part of a turn as it was told.
struct Part {
    frames: std::ops::Range<usize>,
    start: u64,
    end: u64,
    id: usize,
    vector: Option<Arc<[f32]>>,
}

impl LiveTurns {
    pub(super) fn new(how: Making, known: KnownVoices) -> Self {
        Self {
            how,
            known,
            piece: 0,
            windows: VecDeque::new(),
            base: 0,
            votes: Vec::new(),
            told: 0,
            last: BTreeMap::new(),
            learnt: None,
            unsettled: VecDeque::new(),
            settled: VecDeque::new(),
            out: Told::default(),
        }
    }

    /// The piece that begins at this sample.
    pub(super) fn begin_piece(&mut self, start: u64) {
        self.piece = start;
        self.windows.clear();
        self.votes.clear();
        self.base = 0;
        self.told = 0;
        self.last.clear();
        self.learnt = None;
        self.out.watermark = self.out.watermark.max(start);
    }

    /// What has become final since the last call.
    pub(super) fn take(&mut self) -> Told {
        let watermark = self.out.watermark;
        std::mem::replace(
            &mut self.out,
            Told {
                watermark,
                ..Told::default()
            },
        )
    }

    pub(super) fn known(&self) -> &KnownVoices {
        &self.known
    }

    pub(super) fn into_known(self) -> KnownVoices {
        self.known
    }

    /// The next window of the piece: its first sample and the first behind it.
    pub(super) fn window(
        &mut self,
        start: u64,
        end: u64,
        activity: Activity,
        voices: [Option<Arc<[f32]>>; LOCAL_SPEAKERS],
    ) {
        let first = frame_of(start);
        // Windows before this see nothing that this one sees, nor what is settled with it.
        let keep = first.saturating_sub(WINDOW_FRAMES + 3 * WINDOW_FRAMES / 10);
        while self.windows.front().is_some_and(|w| w.first < keep) {
            self.windows.pop_front();
        }
        self.windows.push_back(Seen {
            first,
            activity,
            voices,
            who: [None; LOCAL_SPEAKERS],
        });
        let has_looked = self.learn(end);
        self.vote();
        let until = frame_of(end.saturating_sub(self.how.lookahead)).min(self.seen());
        self.tell(until, None);
        self.settle(first);
        if has_looked {
            self.look_again();
        }
    }

    /// Nothing before this sample of the piece will be heard any more, whatever windows are still to come.
    pub(super) fn give_up(&mut self, until: u64) {
        self.tell(frame_of(until), None);
    }

    /// The end of the piece, which has so many samples.
    pub(super) fn end_piece(&mut self, samples: u64) {
        let end = self.seen().max(self.told);
        self.tell(end, Some(samples));
        self.settle(end);
        self.windows.clear();
        self.votes.clear();
    }

    /// The end of the stream: all is looked at once more.
    pub(super) fn finish(&mut self) {
        let how = &self.how;
        let (merged, _) = self.known.mend(how.max_speakers, &how.thresholds, true);
        merged.into_iter().for_each(|merge| self.merged(merge));
        self.look_again();
    }

    /// Learns the voices of the newest window. Whether all people were looked at anew.
    fn learn(&mut self, end: u64) -> bool {
        let Some(new) = self.windows.back() else {
            return false;
        };
        if self.learnt.is_some_and(|last| end < last + LEARN_EVERY) {
            return false;
        }
        let voice = |local: usize| new.voices[local].as_deref();
        let enough: Vec<&[f32]> = (0..LOCAL_SPEAKERS)
            .filter(|local| says_enough(&new.activity, *local))
            .filter_map(voice)
            .collect();
        if enough.is_empty() {
            let locals = (0..LOCAL_SPEAKERS).filter(|local| voice(*local).is_some());
            let best = locals.max_by_key(|local| new.activity.clean_frames(*local));
            if let Some(vector) = best.and_then(voice) {
                self.known.guess(vector);
            }
            return false;
        }
        self.learnt = Some(end);
        let how = &self.how;
        self.known.learn(&enough, how.max_speakers, &how.thresholds);
        let (merged, has_looked) = self.known.mend(how.max_speakers, &how.thresholds, false);
        merged.into_iter().for_each(|merge| self.merged(merge));
        has_looked
    }

    fn merged(&mut self, merge: Relabelled) {
        for part in self.unsettled.iter_mut().chain(&mut self.settled) {
            if part.id == merge.old {
                part.id = merge.new;
            }
        }
        if let Some(frame) = self.last.remove(&merge.old) {
            let own = self.last.entry(merge.new).or_insert(frame);
            *own = (*own).max(frame);
        }
        self.out.relabels.push(merge);
    }

    /// The first frame of the piece that no window has seen.
    fn seen(&self) -> usize {
        self.base + self.votes.len()
    }

    /// Who is who in each window, and what they say together of each frame.
    fn vote(&mut self) {
        let Some(front) = self.windows.front() else {
            return;
        };
        self.base = front.first;
        for window in &mut self.windows {
            let strong = |local: usize| window.activity.clean_frames(local) >= STRONG;
            let vectors: [Option<&[f32]>; LOCAL_SPEAKERS] = std::array::from_fn(|local| {
                window.voices[local].as_deref().filter(|_| strong(local))
            });
            let who = cluster::assign(self.known.centroids(), &vectors);
            window.who = std::array::from_fn(|local| who.get(local).copied().flatten());
        }
        self.count(false);
        // Those with a weak vector before those with none, who go by what the others are.
        for has_voice in [true, false] {
            let links: Vec<_> = self
                .windows
                .iter()
                .map(|w| self.link(w, has_voice))
                .collect();
            for (window, who) in self.windows.iter_mut().zip(links) {
                window.who = who;
            }
            self.count(!has_voice);
        }
    }

    /// Adds up what windows say; without `all`, those in which nobody is known say nothing.
    fn count(&mut self, all: bool) {
        let ends = self.windows.iter().map(|w| w.first + w.activity.len());
        let frames = ends.max().unwrap_or(self.base) - self.base;
        self.votes.clear();
        self.votes.resize(frames, Votes::new(self.known.len()));
        for window in &self.windows {
            if all || window.who.iter().any(Option::is_some) {
                let own = &mut self.votes[window.first - self.base..];
                for (n, votes) in own.iter_mut().take(window.activity.len()).enumerate() {
                    votes.add(&window.activity, n, &window.who);
                }
            }
        }
    }

    /// Who those are in a window who are not known by their vectors: whom they share their frames with, else the likest
    /// that nobody else in the window is.
    fn link(&self, window: &Seen, has_voice: bool) -> [Option<usize>; LOCAL_SPEAKERS] {
        let mut who = window.who;
        for local in 0..LOCAL_SPEAKERS {
            let voice = window.voices[local].as_deref();
            let is_asked = who[local].is_none() && voice.is_some() == has_voice;
            if !is_asked || !window.activity.is_heard(local) {
                continue;
            }
            let mut shared = vec![0.0_f32; self.known.len()];
            let mut frames = 0;
            for n in (0..window.activity.len()).filter(|n| window.activity.talks(*n, local)) {
                frames += 1;
                let votes = &self.votes[window.first - self.base + n];
                for (place, sum) in shared.iter_mut().enumerate() {
                    *sum += votes.probability(place);
                }
            }
            let free = |place: &usize| !who.contains(&Some(*place));
            let places = || (0..self.known.len()).filter(free);
            let best = places().max_by(|a, b| shared[*a].total_cmp(&shared[*b]));
            let best = best.filter(|place| shared[*place] >= SHARED * frames as f32);
            let centroids = self.known.centroids();
            let likest = || {
                let likes = places().map(|p| Some((p, cosine(&centroids[p], voice?))));
                let best = likes.flatten().max_by(|a, b| a.1.total_cmp(&b.1));
                best.map(|b| b.0)
            };
            who[local] = best.or_else(likest);
        }
        who
    }

    /// Who talks in a frame, the best heard first.
    fn talking(&self, frame: usize) -> Vec<usize> {
        let votes = frame.checked_sub(self.base).and_then(|n| self.votes.get(n));
        votes.map_or_else(Vec::new, |v| v.talking(self.how.cutting.at_once))
    }

    fn probability(&self, frame: usize, place: usize) -> f32 {
        let votes = frame.checked_sub(self.base).and_then(|n| self.votes.get(n));
        votes.map_or(0.0, |v| v.probability(place))
    }

    /// What is before the frame becomes final; `samples` at the end of a piece, which has so many.
    fn tell(&mut self, until: usize, samples: Option<u64>) {
        if until <= self.told && samples.is_none() {
            return;
        }
        let until = until.max(self.told);
        let border = |frame: usize| match samples {
            // The last frame's centre is half its field before the end, and the first one's behind the beginning.
            Some(samples) if frame >= until => samples,
            _ if frame == 0 => 0,
            Some(samples) => border_of(frame).min(samples),
            None => border_of(frame),
        };
        // Also what is seen but not final: who is silent for a moment and goes on was not silent.
        let talking: Vec<Vec<usize>> = (self.told..self.seen().max(until))
            .map(|frame| self.talking(frame))
            .collect();
        let mut parts: Vec<(usize, usize, usize, Talk)> = Vec::new();
        let mut exclusive = Vec::new();
        for place in 0..self.known.len() {
            let Some(id) = self.known.id(place) else {
                continue;
            };
            let talk = |run: &std::ops::Range<usize>| {
                let sum: f32 = run.clone().map(|f| self.probability(f, place)).sum();
                Talk {
                    start: self.piece + border(run.start),
                    end: self.piece + border(run.end),
                    speaker: id,
                    confidence: (sum / run.len().max(1) as f32).min(1.0),
                }
            };
            let first: Vec<bool> = talking.iter().map(|t| t.first() == Some(&place)).collect();
            exclusive.extend(self.runs(&first, until).iter().map(talk));
            let mut talks: Vec<bool> = talking.iter().map(|t| t.contains(&place)).collect();
            self.fill(&mut talks, self.last.get(&id).copied());
            let own = self.runs(&talks, until);
            parts.extend(own.iter().map(|r| (r.start, r.end, id, talk(r))));
            if let Some(run) = own.last() {
                self.last.insert(id, run.end);
            }
        }
        let order = |t: &Talk| (t.start, t.end, t.speaker);
        parts.sort_by_key(|p| order(&p.3));
        exclusive.sort_by_key(order);
        let is_any = |t: &Talk| t.end > t.start;
        self.out
            .exclusive
            .extend(exclusive.into_iter().filter(is_any));
        for (first, last, id, talk) in parts.into_iter().filter(|p| is_any(&p.3)) {
            self.out.turns.push(talk);
            self.unsettled.push_back(Part {
                frames: first..last,
                start: talk.start,
                end: talk.end,
                id,
                vector: None,
            });
        }
        let watermark = self.piece + border(until);
        self.out.watermark = self.out.watermark.max(watermark);
        self.told = until;
    }

    /// Fills short pauses and takes out short turns, as far as is seen. `talks` begins at the first frame that is not told;
    /// the last turn ended at `last`.
    fn fill(&self, talks: &mut [bool], last: Option<usize>) {
        let cutting = &self.how.cutting;
        let pause = cutting.min_silence as usize / FRAME_STEP;
        let mut before = last;
        for n in 0..talks.len() {
            if talks[n] {
                let frame = self.told + n;
                if let Some(end) = before.filter(|end| frame - end.min(&frame) <= pause) {
                    talks[end.saturating_sub(self.told)..n].fill(true);
                }
                before = Some(frame + 1);
            }
        }
        let least = (cutting.min_turn as usize).div_ceil(FRAME_STEP);
        for run in runs(talks) {
            let goes_on = run.start == 0 && last == Some(self.told);
            let is_whole = run.end < talks.len();
            if !goes_on && is_whole && run.len() < least {
                talks[run].fill(false);
            }
        }
    }

    /// Frames before `until` that follow on each other. `talks` begins at the first that is not told.
    fn runs(&self, talks: &[bool], until: usize) -> Vec<std::ops::Range<usize>> {
        let own = &talks[..talks.len().min(until - self.told)];
        let runs = runs(own).into_iter();
        runs.map(|r| self.told + r.start..self.told + r.end)
            .collect()
    }

    /// No window to come sees what is before the frame: who those that did say it was is right.
    fn settle(&mut self, frame: usize) {
        for _ in 0..self.unsettled.len() {
            let Some(mut part) = self.unsettled.pop_front() else {
                return;
            };
            if part.frames.end > frame {
                self.unsettled.push_back(part);
                continue;
            }
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            let places = part.frames.clone().flat_map(|f| self.talking(f));
            for id in places.filter_map(|place| self.known.id(place)) {
                *counts.entry(id).or_default() += 1;
            }
            let own = counts.get(&part.id).copied().unwrap_or(0);
            if let Some((&id, &most)) = counts.iter().max_by_key(|c| *c.1)
                && most > own
                && own * 2 < part.frames.len()
            {
                self.relabel(&mut part, id);
            }
            if let Some(place) = self.known.place(part.id) {
                part.vector = self.vector(&part.frames, place);
            }
            if part.vector.is_some() {
                self.settled.push_back(part);
            }
            if self.settled.len() > LOG_MOST {
                self.settled.pop_front();
            }
        }
    }

    fn relabel(&mut self, part: &mut Part, new: usize) {
        self.out.relabels.push(Relabelled {
            old: part.id,
            new,
            from: part.start,
            to: part.end,
        });
        part.id = new;
    }

    /// The vector of who says most of the frames, from the window in which he says most alone.
    fn vector(&self, frames: &std::ops::Range<usize>, place: usize) -> Option<Arc<[f32]>> {
        let mut best: Option<(usize, &Arc<[f32]>)> = None;
        for window in &self.windows {
            for local in 0..LOCAL_SPEAKERS {
                let clean = window.activity.clean_frames(local);
                let Some(vector) = window.voices[local].as_ref() else {
                    continue;
                };
                let talks = |frame: &usize| {
                    let n = frame.checked_sub(window.first);
                    n.is_some_and(|n| n < window.activity.len() && window.activity.talks(n, local))
                };
                if window.who[local] == Some(place)
                    && clean >= STRONG.max(best.map_or(0, |b| b.0 + 1))
                    && frames.clone().filter(talks).count() * 2 > frames.len()
                {
                    best = Some((clean, vector));
                }
            }
        }
        best.map(|b| Arc::clone(b.1))
    }

    /// Gives what was told to whoever it is like, by what is known now.
    fn look_again(&mut self) {
        let margin = MARGIN * self.how.thresholds.merge;
        let mut parts = std::mem::take(&mut self.settled);
        for part in &mut parts {
            let centroids = self.known.centroids();
            let own = self.known.place(part.id);
            if let (Some(vector), Some(own)) = (&part.vector, own)
                && let Some((best, like)) = cluster::nearest(centroids, vector)
                && like - cosine(&centroids[own], vector) > margin
                && let Some(id) = self.known.id(best)
            {
                self.relabel(part, id);
            }
        }
        self.settled = parts;
    }

    /// What is kept: windows, frames, parts of turns.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 3] {
        let parts = self.unsettled.len() + self.settled.len();
        [self.windows.len(), self.votes.len(), parts]
    }
}

/// Runs of those that are set.
fn runs(set: &[bool]) -> Vec<std::ops::Range<usize>> {
    let mut out: Vec<std::ops::Range<usize>> = Vec::new();
    for (n, _) in set.iter().enumerate().filter(|s| *s.1) {
        match out.last_mut() {
            Some(last) if last.end == n => last.end += 1,
            _ => out.push(n..n + 1),
        }
    }
    out
}
