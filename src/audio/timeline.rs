// SPDX-License-Identifier: MPL-2.0
//! From buffers' times to samples, and from samples to running and stream time.
//!
//! Samples are counted, times are anchored: each block of sound notes which stream position its first sample
//! has. A clock that drifts moves the anchors; a hole or a jump begins a new piece. As
//! `gst_audio::AudioStreamAlign`: 40 ms of tolerance, 1 s of patience before a drift counts as a jump.

use std::collections::VecDeque;

use super::time::{RunningNs, SAMPLE_RATE, SampleIndex, StreamNs, ns_to_samples, samples_to_ns};

/// A block this close to where it is expected follows on.
const TOLERANCE_NS: u64 = 40_000_000;
/// A block farther away than the tolerance must be so for this long before it is believed.
const PATIENCE_SAMPLES: u64 = SAMPLE_RATE as u64;
/// A longer hole ends the piece; a shorter one is filled with silence. Also how far back time may step.
const LONGEST_HOLE_NS: u64 = 1_000_000_000;
/// Anchors are this far apart at least: a second.
const ANCHOR_SAMPLES: u64 = SAMPLE_RATE as u64;

/// A GStreamer segment in plain numbers, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentMap {
    /// First position.
    pub start_ns: u64,
    /// Last position, if there is one.
    pub stop_ns: Option<u64>,
    /// Running time of `start`.
    pub base_ns: u64,
    /// Stream time of `start`.
    pub time_ns: u64,
    /// Speed, above 0.
    pub rate: f64,
    /// Speed that was applied to the sound already.
    pub applied_rate: f64,
}

impl Default for SegmentMap {
    fn default() -> Self {
        Self {
            start_ns: 0,
            stop_ns: None,
            base_ns: 0,
            time_ns: 0,
            rate: 1.0,
            applied_rate: 1.0,
        }
    }
}

impl SegmentMap {
    fn stream_ns(&self, position_ns: u64) -> u64 {
        let offset = position_ns.saturating_sub(self.start_ns);
        let before = self.start_ns.saturating_sub(position_ns);
        (self.time_ns + scale(offset, self.applied_rate.abs())).saturating_sub(before)
    }

    fn running_ns(&self, position_ns: u64) -> u64 {
        let offset = position_ns.saturating_sub(self.start_ns);
        let before = self.start_ns.saturating_sub(position_ns);
        let rate = self.rate.abs();
        let offset = if rate > 0.0 {
            scale(offset, 1.0 / rate)
        } else {
            offset
        };
        (self.base_ns + offset).saturating_sub(before)
    }
}

fn scale(ns: u64, by: f64) -> u64 {
    if (by - 1.0).abs() < f64::EPSILON {
        ns
    } else {
        (ns as f64 * by) as u64
    }
}

/// Where a block of sound goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// Samples at its front that are there already.
    pub trim_front: u64,
    /// Samples of silence to be put before it.
    pub silence_before: u64,
    /// It does not follow on what came before.
    pub new_piece: bool,
    /// Index of its first sample that is kept.
    pub start: SampleIndex,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    at: SampleIndex,
    position_ns: u64,
    segment: SegmentMap,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    segment: SegmentMap,
    anchors: VecDeque<Anchor>,
    next: SampleIndex,
    started: bool,
    fresh_segment: bool,
    /// Since when blocks have been off by more than the tolerance, and how early the first of them was.
    off_since: Option<(SampleIndex, u64)>,
    /// Time stamp of the last block that had one.
    last_pts: Option<u64>,
    /// The last block was there already as a whole: what follows is trimmed, not waited for.
    catching_up: bool,
}

impl Timeline {
    /// At the beginning of time.
    pub fn new() -> Self {
        Self::default()
    }

    /// What comes from now on belongs to `segment`. Another mapping begins a new piece.
    pub fn set_segment(&mut self, segment: SegmentMap) {
        let same = self.segment.base_ns.wrapping_sub(self.segment.start_ns)
            == segment.base_ns.wrapping_sub(segment.start_ns)
            && self.segment.time_ns.wrapping_sub(self.segment.start_ns)
                == segment.time_ns.wrapping_sub(segment.start_ns)
            && self.segment.rate == segment.rate
            && self.segment.applied_rate == segment.applied_rate;
        self.fresh_segment = self.started && !same;
        self.segment = segment;
    }

    /// Everything before is void.
    pub fn flush(&mut self) {
        *self = Self::default();
    }

    /// Places a block of `samples` at `pts_ns`; without a time it follows on.
    pub fn place(&mut self, pts_ns: Option<u64>, discont: bool, samples: u64) -> Placement {
        let expected = self.expected_ns();
        let pts = pts_ns.unwrap_or(expected);
        if !self.started || self.fresh_segment {
            return self.begin(pts, samples);
        }
        let last = self.last_pts.replace(pts);
        let early = expected.saturating_sub(pts);
        let late = pts.saturating_sub(expected);
        if early.max(late) <= TOLERANCE_NS {
            self.off_since = None;
            self.catching_up = false;
            return self.follow(pts, samples, 0, 0);
        }
        let (since, early_then) = *self.off_since.get_or_insert((self.next, early));
        let follows_on = !discont && !self.catching_up;
        let within_reach = early.max(late) <= TOLERANCE_NS * 5;
        let patient = follows_on && within_reach && self.next.since(since) < PATIENCE_SAMPLES;
        // wavparse stamps G.722 and ADPCM at half their speed: stamps that fall behind more and more, in
        // sound that is said to follow on, are wrong, and the sound is whole.
        let steady = within_reach && early.abs_diff(early_then) <= TOLERANCE_NS;
        let back = last.is_some_and(|last| pts.saturating_add(LONGEST_HOLE_NS) < last);
        let slow_stamps = follows_on && early > 0 && !steady && !back;
        if patient || slow_stamps {
            let start = self.next;
            self.next = start.plus(samples);
            return Placement {
                start,
                ..Placement::default()
            };
        }
        if early.max(late) > LONGEST_HOLE_NS {
            return self.begin(pts, samples);
        }
        self.off_since = None;
        let silence = ns_to_samples(late);
        let trim = ns_to_samples(early);
        if trim > 0 && trim >= samples {
            // Nothing of it is new: where it ends says nothing about what comes.
            self.catching_up = true;
            return Placement {
                trim_front: samples,
                start: self.next,
                ..Placement::default()
            };
        }
        self.follow(pts, samples, silence, trim)
    }

    /// A stretch of silence that has no samples: a GAP event. `start` is where it ends.
    pub fn gap(&mut self, pts_ns: u64, duration_ns: u64) -> Placement {
        let end = pts_ns.saturating_add(duration_ns);
        if !self.started || self.fresh_segment {
            return self.begin(end, 0);
        }
        let hole = end.saturating_sub(self.expected_ns());
        if hole > LONGEST_HOLE_NS {
            return self.begin(end, 0);
        }
        let silence = ns_to_samples(hole);
        self.next = self.next.plus(silence);
        Placement {
            silence_before: silence,
            start: self.next,
            ..Placement::default()
        }
    }

    /// Stream time of a sample.
    pub fn stream_ns(&self, at: SampleIndex) -> StreamNs {
        let (segment, position) = self.position(at);
        StreamNs(segment.stream_ns(position))
    }

    /// Running time of a sample.
    pub fn running_ns(&self, at: SampleIndex) -> RunningNs {
        let (segment, position) = self.position(at);
        RunningNs(segment.running_ns(position))
    }

    /// Times before `index` will not be asked for any more.
    pub fn forget_before(&mut self, index: SampleIndex) {
        while self.anchors.get(1).is_some_and(|second| second.at <= index) {
            self.anchors.pop_front();
        }
    }

    fn begin(&mut self, pts: u64, samples: u64) -> Placement {
        let new_piece = self.started;
        self.started = true;
        self.fresh_segment = false;
        self.off_since = None;
        self.last_pts = Some(pts);
        // An index between two pieces belongs to neither: the end of the one is not the start of the other.
        let start = if new_piece {
            self.next.plus(1)
        } else {
            self.next
        };
        self.anchors.push_back(Anchor {
            at: start,
            position_ns: pts,
            segment: self.segment,
        });
        self.next = start.plus(samples);
        Placement {
            new_piece,
            start,
            ..Placement::default()
        }
    }

    fn follow(&mut self, pts: u64, samples: u64, silence: u64, trim: u64) -> Placement {
        let start = self.next.plus(silence);
        let position = pts + samples_to_ns(trim);
        // Within the tolerance the newest anchor takes up the drift, so that times stay right for days.
        if self
            .anchors
            .back()
            .is_none_or(|a| start.since(a.at) >= ANCHOR_SAMPLES)
            || silence > 0
        {
            self.anchors.push_back(Anchor {
                at: start,
                position_ns: position,
                segment: self.segment,
            });
        }
        self.next = start.plus(samples - trim);
        Placement {
            trim_front: trim,
            silence_before: silence,
            new_piece: false,
            start,
        }
    }

    fn expected_ns(&self) -> u64 {
        if self.anchors.is_empty() {
            self.segment.start_ns
        } else {
            self.position(self.next).1
        }
    }

    fn position(&self, at: SampleIndex) -> (SegmentMap, u64) {
        let after = self.anchors.partition_point(|a| a.at <= at);
        match self.anchors.get(after.saturating_sub(1)) {
            Some(anchor) if anchor.at <= at => (
                anchor.segment,
                anchor.position_ns + samples_to_ns(at.since(anchor.at)),
            ),
            Some(anchor) => {
                let before = samples_to_ns(anchor.at.since(at));
                (anchor.segment, anchor.position_ns.saturating_sub(before))
            }
            None => (self.segment, self.segment.start_ns + samples_to_ns(at.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn sound_without_holes_is_one_piece() {
        let mut t = Timeline::new();

        for i in 0..100u64 {
            let place = t.place(Some(i * SECOND / 10), false, 1600);
            assert_eq!(
                place,
                Placement {
                    start: SampleIndex(i * 1600),
                    ..Placement::default()
                }
            );
        }
        assert_eq!(t.stream_ns(SampleIndex(16_000 * 5)), StreamNs(5 * SECOND));
    }

    #[test]
    fn a_short_hole_is_filled_and_a_long_one_begins_a_piece() {
        let mut t = Timeline::new();
        t.place(Some(0), false, 16_000);

        let short = t.place(Some(SECOND + SECOND / 2), true, 16_000);
        let long = t.place(Some(10 * SECOND), false, 16_000);

        assert_eq!(short.silence_before, 8_000);
        assert!(!short.new_piece);
        // What ends at the hole ends before it.
        assert_eq!(
            t.stream_ns(short.start.plus(16_000)),
            StreamNs(2 * SECOND + SECOND / 2)
        );
        assert!(long.new_piece);
        assert_eq!(t.stream_ns(long.start), StreamNs(10 * SECOND));
        assert_eq!(t.stream_ns(short.start), StreamNs(SECOND + SECOND / 2));
    }

    #[test]
    fn overlap_is_trimmed_and_a_long_step_back_begins_a_piece() {
        let mut t = Timeline::new();
        t.place(Some(0), false, 32_000);

        let overlap = t.place(Some(SECOND + SECOND / 2), true, 16_000);
        let back = t.place(Some(0), true, 16_000);

        assert_eq!(overlap.trim_front, 8_000);
        assert!(back.new_piece);
    }

    #[test]
    fn blocks_that_are_there_already_move_no_time() {
        let mut t = Timeline::new();
        t.place(Some(0), false, 48_000);

        let again = t.place(Some(2 * SECOND), true, 8_000);
        let rest = t.place(Some(2 * SECOND + SECOND / 2), false, 16_000);

        assert_eq!(again.trim_front, 8_000);
        assert_eq!(rest.trim_front, 8_000);
        assert_eq!(t.stream_ns(rest.start), StreamNs(3 * SECOND));
    }

    #[test]
    fn stamps_at_half_speed_cost_no_sound() {
        let mut t = Timeline::new();

        for i in 0..40u64 {
            let place = t.place(Some(i * SECOND / 4), i == 0, 8_000);

            assert_eq!(place.start, SampleIndex(i * 8_000), "block {i}");
            assert_eq!((place.trim_front, place.new_piece), (0, false), "block {i}");
        }
        assert_eq!(t.stream_ns(SampleIndex(160_000)), StreamNs(10 * SECOND));
    }

    #[test]
    fn a_long_step_back_begins_a_piece_though_nobody_says_discont() {
        let mut t = Timeline::new();
        for i in 0..5 {
            t.place(Some(i * SECOND), false, 16_000);
        }

        assert!(t.place(Some(SECOND), false, 16_000).new_piece);
    }

    #[test]
    fn a_steady_overlap_is_believed_after_a_second() {
        let mut t = Timeline::new();
        t.place(Some(0), false, 16_000);

        let trimmed: u64 = (2..40u64)
            .map(|i| t.place(Some(i * SECOND / 2 - SECOND / 10), false, 8_000))
            .map(|place| place.trim_front)
            .sum();

        assert_eq!(trimmed, 1_600);
    }

    #[test]
    fn a_long_gap_moves_time_for_sound_that_has_none() {
        let mut t = Timeline::new();
        t.place(Some(0), false, 16_000);

        let gap = t.gap(SECOND, 9 * SECOND);
        let sound = t.place(None, false, 16_000);

        assert!(gap.new_piece);
        assert_eq!(t.stream_ns(gap.start), StreamNs(10 * SECOND));
        assert_eq!(t.stream_ns(sound.start), StreamNs(10 * SECOND));
    }

    #[test]
    fn a_clock_200_ppm_fast_for_a_day_makes_no_piece() {
        let mut t = Timeline::new();
        let mut worst = 0;

        for i in 0..86_400u64 {
            let pts = i * (SECOND + 200_000);
            let place = t.place(Some(pts), false, 16_000);
            assert!(
                !place.new_piece && place.silence_before == 0 && place.trim_front == 0,
                "at {i} s"
            );
            worst = worst.max(t.stream_ns(place.start).0.abs_diff(pts));
            t.forget_before(place.start);
        }

        assert!(worst <= TOLERANCE_NS, "{worst} ns");
        assert!(t.anchors.len() < 5);
    }

    #[test]
    fn stream_and_running_time_follow_the_segment() {
        let mut t = Timeline::new();
        t.set_segment(SegmentMap {
            start_ns: 60 * SECOND,
            base_ns: 5 * SECOND,
            time_ns: 100 * SECOND,
            ..SegmentMap::default()
        });

        let place = t.place(Some(61 * SECOND), true, 16_000);

        assert_eq!(t.stream_ns(place.start), StreamNs(101 * SECOND));
        assert_eq!(t.running_ns(place.start), RunningNs(6 * SECOND));
    }

    #[test]
    fn another_segment_begins_a_piece_and_keeps_the_old_times() {
        let mut t = Timeline::new();
        let first = t.place(Some(0), false, 16_000);
        t.set_segment(SegmentMap {
            start_ns: 100 * SECOND,
            base_ns: SECOND,
            time_ns: 100 * SECOND,
            ..SegmentMap::default()
        });

        let second = t.place(Some(100 * SECOND), false, 16_000);

        assert!(second.new_piece);
        assert_eq!(t.stream_ns(first.start), StreamNs(0));
        assert_eq!(t.stream_ns(second.start), StreamNs(100 * SECOND));
        assert_eq!(t.running_ns(second.start), RunningNs(SECOND));
    }

    #[test]
    fn sound_without_times_follows_on() {
        let mut t = Timeline::new();
        t.set_segment(SegmentMap {
            start_ns: 3 * SECOND,
            time_ns: 3 * SECOND,
            ..SegmentMap::default()
        });

        t.place(None, false, 16_000);
        let second = t.place(None, false, 16_000);

        assert_eq!(t.stream_ns(second.start), StreamNs(4 * SECOND));
    }
}
