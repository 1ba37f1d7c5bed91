// SPDX-License-Identifier: MPL-2.0
//! Packs speech into windows: as full as may be, cut at pauses, silence left out.
//!
//! Full windows are where the time goes down for free: the encoder costs the same for 5 s as for 29. A window
//! is a contiguous stretch but for pauses of over 3 s, which are shortened to 3 s; pauses tell the model where
//! sentences end.

use crate::audio::buffer::SampleBuffer;
use crate::audio::speech::{Speech, Stretch};
use crate::audio::{SAMPLE_RATE, SampleIndex};

const SECOND: u64 = SAMPLE_RATE as u64;
/// Longest window, in samples kept: room is left for the model to write its end.
const LONGEST: u64 = 28 * SECOND + SECOND / 2;
/// No window is cut before this, if it can be helped.
const EARLIEST_CUT: u64 = 15 * SECOND;
/// A cut without a pause is sought from here on.
const FORCED_FROM: u64 = 20 * SECOND;
/// Windows around a cut without a pause share this.
const OVERLAP: u64 = SECOND;
/// A pause shorter than this is no place to cut.
const LEAST_PAUSE: u64 = SECOND / 10;
/// A pause longer than this is shortened to it, half on either side.
const LONGEST_PAUSE: u64 = 3 * SECOND;
/// A window that holds this much ends at a pause of over [`LONGEST_PAUSE`].
const ENOUGH: u64 = 10 * SECOND;
/// How much a full window counts against a long pause. At 3 windows of read speech are 26 s long on average, at
/// 1 they are 23 s; forced cuts come no more often.
const FULL_WEIGHT: f32 = 3.0;
/// A pause that ends any window, so that sparse speech does not wait for ever.
const ENDING_PAUSE: u64 = 30 * SECOND;
/// A window that spans this much of the stream ends at the next long pause: bounds what is kept.
const LONGEST_SPAN: u64 = 90 * SECOND;
/// A pause that ends this much before the end of a text, in samples, may still be the one behind it: alignments
/// give the last word the pause after it, and a little more. 0.5 s.
const END_SLACK: u32 = SAMPLE_RATE / 2;
/// Kept after a window's last speech.
const TAIL: u64 = SECOND * 4 / 10;

/// A stretch of the stream within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first sample in the stream.
    pub from: SampleIndex,
    /// Samples.
    pub len: u64,
}

/// A window: which sound it holds, and where in it there is speech.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    spans: Vec<Span>,
    speech: Vec<(u32, u32)>,
    pauses: Vec<(u32, u32)>,
    forced_cut: bool,
    overlaps_previous: bool,
}

impl Plan {
    /// The sound from `from` to `to` as it is.
    pub fn whole(from: SampleIndex, to: SampleIndex, speech: &Speech) -> Self {
        let spans = vec![Span {
            from,
            len: to.since(from),
        }];
        let inside = |s: Stretch| Stretch {
            start: s.start.clamp(from, to),
            end: s.end.clamp(from, to),
        };
        let stretches = speech.stretches().map(inside).filter(|s| s.start < s.end);
        Self {
            speech: in_window(&spans, stretches),
            pauses: in_window(&spans, speech.pauses(from, to, LEAST_PAUSE).into_iter()),
            spans,
            forced_cut: false,
            overlaps_previous: false,
        }
    }

    /// First sample in the stream.
    pub fn start(&self) -> SampleIndex {
        self.spans.first().map_or(SampleIndex(0), |s| s.from)
    }

    /// Behind its last sample in the stream.
    pub fn end(&self) -> SampleIndex {
        self.spans
            .last()
            .map_or(SampleIndex(0), |s| s.from.plus(s.len))
    }

    /// Samples it holds.
    pub fn len(&self) -> usize {
        self.spans.iter().map(|s| s.len as usize).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Speech in it, in samples of the window, in order.
    pub fn speech(&self) -> &[(u32, u32)] {
        &self.speech
    }

    /// Samples of speech in it.
    pub fn speech_samples(&self) -> u64 {
        self.speech.iter().map(|(a, b)| u64::from(b - a)).sum()
    }

    /// Samples of speech in it from sample `at` of the window on.
    pub fn speech_behind(&self, at: u32) -> u64 {
        let behind = |(a, b): &(u32, u32)| u64::from(b.saturating_sub((*a).max(at)));
        self.speech.iter().map(behind).sum()
    }

    /// Whether it ends where there is no pause: the next window overlaps it.
    pub fn forced_cut(&self) -> bool {
        self.forced_cut
    }

    /// Whether it begins within the window before.
    pub fn overlaps_previous(&self) -> bool {
        self.overlaps_previous
    }

    /// Its sound.
    pub fn copy(&self, buffer: &SampleBuffer) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.len());
        for span in &self.spans {
            out.extend(buffer.copy(span.from, span.from.plus(span.len)));
        }
        out
    }

    /// The sample of the stream that is sample `at` of the window. Never decreases with `at`.
    pub fn stream(&self, at: u32) -> SampleIndex {
        let mut left = u64::from(at);
        for (i, span) in self.spans.iter().enumerate() {
            if left < span.len || i + 1 == self.spans.len() {
                return span.from.plus(left.min(span.len));
            }
            left -= span.len;
        }
        SampleIndex(0)
    }

    /// Two windows, cut in the pause that is longest and nearest to the middle. `None` without one.
    pub fn split(&self) -> Option<(Self, Self)> {
        let len = self.len() as f32;
        let worth = |(a, b): &(u32, u32)| {
            let middle = (*a + *b) as f32 / 2.0 / len;
            ((b - a) as f32 / SECOND as f32).min(1.0) - 2.0 * (middle - 0.5).abs()
        };
        let inner = |(a, b): &&(u32, u32)| {
            let middle = (*a + *b) as f32 / 2.0 / len;
            (0.15..=0.85).contains(&middle)
        };
        let (a, b) = *self
            .pauses
            .iter()
            .filter(inner)
            .max_by(|x, y| worth(x).total_cmp(&worth(y)))?;
        let cut = (a + b) / 2;
        Some((
            self.part(0, cut, true),
            self.part(cut, self.len() as u32, false),
        ))
    }

    /// Two windows, cut in the first pause that ends behind `at`, or just before it. `None` if there is none, or no
    /// speech of `least` samples behind it.
    pub fn split_behind(&self, at: u32, least: u32) -> Option<(Self, Self)> {
        let middle = |(a, b): &(u32, u32)| (a + b) / 2;
        let cut = self
            .pauses
            .iter()
            .find(|pause| pause.1 + END_SLACK >= at && pause.0 > 0)
            .map(middle)?;
        (self.speech_behind(cut) >= u64::from(least)).then(|| {
            let len = self.len() as u32;
            (self.part(0, cut, true), self.part(cut, len, false))
        })
    }

    fn part(&self, from: u32, to: u32, first: bool) -> Self {
        let clip = |ranges: &[(u32, u32)]| {
            ranges
                .iter()
                .map(|(a, b)| ((*a).clamp(from, to) - from, (*b).clamp(from, to) - from))
                .filter(|(a, b)| a < b)
                .collect()
        };
        let mut spans = Vec::new();
        let mut at = 0u64;
        for span in &self.spans {
            let begin = u64::from(from).clamp(at, at + span.len);
            let end = u64::from(to).clamp(at, at + span.len);
            if begin < end {
                spans.push(Span {
                    from: span.from.plus(begin - at),
                    len: end - begin,
                });
            }
            at += span.len;
        }
        Self {
            spans,
            speech: clip(&self.speech),
            pauses: clip(&self.pauses),
            forced_cut: self.forced_cut && !first,
            overlaps_previous: self.overlaps_previous && first,
        }
    }
}

/// See the module. One for each piece of sound.
#[derive(Clone, Debug)]
pub struct Packer {
    /// What lies before is packed, or silence.
    next: SampleIndex,
    only_speech: bool,
    overlap: bool,
}

impl Packer {
    /// Packs from `start` on; only speech, or everything.
    pub fn new(start: SampleIndex, only_speech: bool) -> Self {
        Self {
            next: start,
            only_speech,
            overlap: false,
        }
    }

    /// The windows that are certain, given that all is `heard` up to there; all of them if it is `complete`.
    pub fn plan(&mut self, speech: &Speech, heard: SampleIndex, complete: bool) -> Vec<Plan> {
        let mut out = Vec::new();
        while let Some(plan) = self.window(speech, heard, complete) {
            out.push(plan);
        }
        out
    }

    /// Nothing before this is needed any more.
    pub fn oldest_needed(&self) -> SampleIndex {
        self.next
    }

    fn window(&mut self, speech: &Speech, heard: SampleIndex, complete: bool) -> Option<Plan> {
        let stretches = self.stretches(speech, heard);
        let Some(first) = stretches.first() else {
            self.skip_silence(speech, heard, complete);
            return None;
        };
        let lead = if self.overlap { 0 } else { speech.pad() };
        let start = SampleIndex(first.start.0.saturating_sub(lead)).max(self.next);

        // How many stretches fit, and where a long pause ends the window.
        let mut kept = 0u64;
        let mut before = start;
        for (i, stretch) in stretches.iter().enumerate() {
            let pause = stretch.start.since(before);
            let enough = kept >= ENOUGH || before.since(start) > LONGEST_SPAN;
            if i > 0 && (pause > ENDING_PAUSE || (pause > LONGEST_PAUSE && enough)) {
                return Some(self.close(speech, start, &stretches[..i], heard));
            }
            let kept_before = kept
                + if i > 0 {
                    pause.min(LONGEST_PAUSE)
                } else {
                    pause
                };
            kept = kept_before + stretch.end.since(stretch.start);
            if kept > LONGEST {
                return self.cut(speech, start, &stretches[..=i], kept_before, heard);
            }
            before = stretch.end;
        }
        let quiet = heard.since(before);
        let enough = kept >= ENOUGH || before.since(start) > LONGEST_SPAN;
        let ended = quiet > ENDING_PAUSE || (quiet > LONGEST_PAUSE + TAIL && enough);
        if complete || (!speech.is_open() && ended) {
            return Some(self.close(speech, start, &stretches, heard));
        }
        None
    }

    fn stretches(&self, speech: &Speech, heard: SampleIndex) -> Vec<Stretch> {
        if !self.only_speech {
            let all = Stretch {
                start: self.next,
                end: heard,
            };
            return if all.start < all.end {
                vec![all]
            } else {
                Vec::new()
            };
        }
        speech
            .stretches()
            .map(|s| Stretch {
                start: s.start.max(self.next),
                end: s.end.min(heard),
            })
            .filter(|s| s.start < s.end)
            .collect()
    }

    fn skip_silence(&mut self, speech: &Speech, heard: SampleIndex, complete: bool) {
        // The padding of speech that has yet to begin is kept.
        let keep = if complete { 0 } else { speech.pad() + SECOND };
        self.next = self.next.max(SampleIndex(heard.0.saturating_sub(keep)));
    }

    /// A window of whole stretches.
    fn close(
        &mut self,
        speech: &Speech,
        start: SampleIndex,
        stretches: &[Stretch],
        heard: SampleIndex,
    ) -> Plan {
        let last = stretches.last().map_or(start, |s| s.end);
        let end = last.plus(TAIL).min(heard).max(last);
        self.finish(speech, start, end, stretches, false)
    }

    /// The last of `stretches` goes beyond the longest window: cuts at the best pause, or where speech is least
    /// likely.
    fn cut(
        &mut self,
        speech: &Speech,
        start: SampleIndex,
        stretches: &[Stretch],
        kept_before_last: u64,
        heard: SampleIndex,
    ) -> Option<Plan> {
        let last = stretches.last()?;
        // The latest place that still fits; pauses that were shortened do not count.
        let latest = last.start.plus(LONGEST.saturating_sub(kept_before_last));
        let shortened = last.start.since(start).saturating_sub(kept_before_last);
        let earliest = start.plus(EARLIEST_CUT + shortened);
        let best = speech
            .pauses(earliest.min(latest), latest, LEAST_PAUSE)
            .into_iter()
            .max_by(|a, b| self.worth(a, start).total_cmp(&self.worth(b, start)));
        let inside = |at: SampleIndex| -> Vec<Stretch> {
            stretches
                .iter()
                .map(|s| Stretch {
                    start: s.start,
                    end: s.end.min(at),
                })
                .filter(|s| s.start < s.end)
                .collect()
        };
        if let Some(pause) = best {
            let middle = SampleIndex((pause.start.0 + pause.end.0) / 2);
            let end = if self.only_speech {
                pause.start.plus(TAIL).min(middle)
            } else {
                middle
            };
            let plan = self.finish(speech, start, end, &inside(middle), false);
            self.next = middle.max(plan.end());
            return Some(plan);
        }
        let from = start.plus(FORCED_FROM + shortened).min(latest);
        let at = speech.least_likely(from, latest).min(heard);
        let plan = self.finish(speech, start, at, &inside(at), true);
        self.next = SampleIndex(at.0.saturating_sub(OVERLAP)).max(start.plus(1));
        Some(plan)
    }

    fn worth(&self, pause: &Stretch, start: SampleIndex) -> f32 {
        let seconds = pause.end.since(pause.start) as f32 / SECOND as f32;
        let middle = (pause.start.since(start) + pause.end.since(start)) as f32 / 2.0;
        seconds.min(1.0) + FULL_WEIGHT * middle / LONGEST as f32
    }

    fn finish(
        &mut self,
        speech: &Speech,
        start: SampleIndex,
        end: SampleIndex,
        stretches: &[Stretch],
        forced_cut: bool,
    ) -> Plan {
        let spans = spans(start, end, stretches);
        let mut plan = Plan {
            spans,
            speech: Vec::new(),
            pauses: Vec::new(),
            forced_cut,
            overlaps_previous: std::mem::replace(&mut self.overlap, forced_cut),
        };
        plan.speech = in_window(&plan.spans, stretches.iter().copied());
        plan.pauses = in_window(
            &plan.spans,
            speech.pauses(start, end, LEAST_PAUSE).into_iter(),
        );
        self.next = end;
        plan
    }
}

/// The sound from `start` to `end`, with what is more than [`LONGEST_PAUSE`] between stretches left out.
fn spans(start: SampleIndex, end: SampleIndex, stretches: &[Stretch]) -> Vec<Span> {
    let mut out = Vec::new();
    let mut from = start;
    for pair in stretches.windows(2) {
        let pause = pair[1].start.since(pair[0].end);
        if pause > LONGEST_PAUSE {
            let leave = pair[0].end.plus(LONGEST_PAUSE / 2);
            out.push(Span {
                from,
                len: leave.since(from),
            });
            from = SampleIndex(pair[1].start.0 - LONGEST_PAUSE / 2);
        }
    }
    out.push(Span {
        from,
        len: end.since(from),
    });
    out
}

/// Stretches of the stream in samples of the window.
fn in_window(spans: &[Span], stretches: impl Iterator<Item = Stretch>) -> Vec<(u32, u32)> {
    let place = |at: SampleIndex| {
        let mut before = 0u64;
        for span in spans {
            if at < span.from {
                return before;
            }
            if at < span.from.plus(span.len) {
                return before + at.since(span.from);
            }
            before += span.len;
        }
        before
    };
    stretches
        .map(|s| (place(s.start) as u32, place(s.end) as u32))
        .filter(|(a, b)| a < b)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::audio::speech::{FRAME, SpeechParams};
    use crate::inference::MAX_WINDOW_SAMPLES;
    use proptest::prelude::*;

    /// Speech and pauses in turn, in frames of 32 ms, speech first.
    fn heard(runs: &[u64]) -> (Speech, SampleIndex) {
        let mut speech = Speech::new(SampleIndex(0), SpeechParams::default());
        for (i, run) in runs.iter().enumerate() {
            let p = if i % 2 == 0 { 0.9 } else { 0.05 };
            speech.push(&vec![p; *run as usize]);
        }
        let end = speech.end();
        (speech, end)
    }

    fn seconds(s: f32) -> u64 {
        (s * 16_000.0 / FRAME as f32) as u64
    }

    fn pack(runs: &[u64]) -> Vec<Plan> {
        let (speech, end) = heard(runs);
        Packer::new(SampleIndex(0), true).plan(&speech, end, true)
    }

    #[test]
    fn silence_makes_no_window() {
        assert!(pack(&[0, seconds(600.0)]).is_empty());
    }

    #[test]
    fn short_speech_is_one_window() {
        let plans = pack(&[0, seconds(5.0), seconds(4.0), seconds(10.0)]);

        assert_eq!(plans.len(), 1);
        assert!(plans[0].start().0.abs_diff(5 * SECOND - 3200) < 1024);
        assert!(plans[0].len() as u64 >= 4 * SECOND);
        assert!(!plans[0].forced_cut());
    }

    #[test]
    fn a_window_is_cut_in_a_pause() {
        let runs: Vec<u64> = (0..20).flat_map(|_| [seconds(4.0), seconds(0.5)]).collect();

        let plans = pack(&runs);

        assert!(plans.iter().all(|p| !p.forced_cut()));
        assert!(
            plans
                .iter()
                .rev()
                .skip(1)
                .all(|p| p.len() as u64 > EARLIEST_CUT)
        );
    }

    #[test]
    fn speech_without_a_pause_is_cut_with_an_overlap() {
        let plans = pack(&[seconds(70.0), seconds(2.0)]);

        assert!(plans[0].forced_cut() && plans[1].overlaps_previous());
        assert_eq!(plans[0].end().since(plans[1].start()), OVERLAP);
    }

    #[test]
    fn a_long_pause_is_shortened_and_the_map_knows() {
        let plans = pack(&[seconds(4.0), seconds(9.0), seconds(4.0), seconds(1.0)]);

        assert_eq!(plans.len(), 1);
        let plan = &plans[0];
        assert_eq!(plan.spans.len(), 2);
        assert!(plan.len() as u64 <= 12 * SECOND);
        let (start, end) = plan.speech()[1];
        assert!(plan.stream(start).0.abs_diff(13 * SECOND) <= 2 * FRAME);
        assert!(plan.stream(end).0.abs_diff(17 * SECOND) <= 2 * FRAME);
    }

    #[test]
    fn halves_are_cut_in_a_pause_and_hold_everything() {
        let plan = pack(&[seconds(9.0), seconds(0.6), seconds(9.0), seconds(1.0)]).remove(0);

        let (a, b) = plan.split().unwrap();

        assert_eq!(a.len() + b.len(), plan.len());
        assert_eq!(a.end(), b.start());
        assert!(a.end().since(a.start()) > 9 * SECOND);
        assert!(b.split().is_none());
    }

    #[test]
    fn a_tail_is_cut_off_in_the_pause_behind_the_text() {
        let plan = pack(&[
            seconds(9.0),
            seconds(0.6),
            seconds(5.0),
            seconds(0.5),
            seconds(2.0),
            seconds(1.0),
        ])
        .remove(0);
        let said = plan.speech().last().unwrap().0 - 8_000;

        let (a, b) = plan.split_behind(said, 16_000).unwrap();

        assert!(a.len() as u32 >= said);
        assert_eq!(a.len() + b.len(), plan.len());
        assert_eq!(b.speech().len(), 1);
        assert!(plan.split_behind(said, 3 * 16_000).is_none());
        assert!(plan.split_behind(plan.len() as u32, 1).is_none());
    }

    #[test]
    fn without_voice_activity_everything_is_packed() {
        let (speech, end) = heard(&[0, seconds(60.0)]);

        let plans = Packer::new(SampleIndex(0), false).plan(&speech, end, true);

        let all: u64 = plans.iter().map(|p| p.len() as u64).sum();
        assert!(
            all >= end.0 - plans.len() as u64 * 16_000,
            "{all} of {}",
            end.0
        );
    }

    proptest! {
        #[test]
        fn no_window_is_too_long_and_no_speech_is_lost(
            runs in proptest::collection::vec(1u64..1200, 1..40),
            step in 1usize..40,
        ) {
            let (whole, end) = heard(&runs);
            // Bit by bit must do as well as all at once.
            let mut speech = Speech::new(SampleIndex(0), SpeechParams::default());
            let mut packer = Packer::new(SampleIndex(0), true);
            let mut plans = Vec::new();
            let probs: Vec<f32> = runs.iter().enumerate()
                .flat_map(|(i, run)| vec![if i % 2 == 0 { 0.9 } else { 0.05 }; *run as usize]).collect();
            for piece in probs.chunks(step * 32) {
                speech.push(piece);
                plans.extend(packer.plan(&speech, speech.end(), false));
                speech.drop_before(packer.oldest_needed());
            }
            plans.extend(packer.plan(&speech, speech.end(), true));

            prop_assert!(plans.iter().all(|p| p.len() <= MAX_WINDOW_SAMPLES && !p.is_empty()));
            for pair in plans.windows(2) {
                prop_assert!(pair[1].overlaps_previous() || pair[0].end() <= pair[1].start());
            }
            for stretch in whole.stretches() {
                let mut at = stretch.start;
                while at < stretch.end {
                    let held = plans.iter().any(|p| p.spans.iter().any(|s| s.from <= at && at < s.from.plus(s.len)));
                    prop_assert!(held, "sample {} of {:?}, end {}", at.0, stretch, end.0);
                    at = at.plus(FRAME / 2);
                }
            }
            for plan in &plans {
                let mut last = plan.start();
                for at in (0..plan.len() as u32).step_by(4000) {
                    prop_assert!(plan.stream(at) >= last);
                    last = plan.stream(at);
                }
            }
        }
    }
}
