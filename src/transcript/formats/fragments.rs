// SPDX-License-Identifier: MPL-2.0
//! WebVTT as HLS wants it (RFC 8216, 3.5): files of equal length, one after the other, each whole in itself.

use super::{Shown, shown_lines, speaker_of, vtt};
use crate::transcript::Cue;

/// No more files than these at once: a leap over days makes no flood.
const AT_ONCE_MAX: u64 = 10_000;

/// Files of equal length on the clock of a transport stream, from the first moment on and whether anybody speaks or not.
///
/// Times are running time in milliseconds. A file is given out once it is known that no cue will begin before its end. A
/// cue is in every file during which it is shown, with its whole span in each.
#[derive(Clone, Debug)]
pub struct Fragments {
    length_ms: u64,
    /// What a clock of 90 kHz shows at the running time zero.
    mpegts_offset: u64,
    cue_ids: bool,
    /// Of the file that is being written.
    index: u64,
    cues: Vec<(u64, Shown)>,
    /// Cues so far, and the end of the last one.
    count: u64,
    last_end_ms: u64,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Files of this length that lie before it, counted from the running time zero.
    pub index: u64,
    /// Where the span begins that it stands for.
    pub start_ms: u64,
    /// Where that ends: the length of all of them behind the start, or less for the last one.
    pub end_ms: u64,
    /// All of the file.
    pub bytes: Vec<u8>,
}

impl Fragments {
    /// Begins with the file that `at_ms` lies in. `mpegts_offset_ms` is what the transport stream's clock shows at zero.
    pub fn new(length_ms: u64, at_ms: u64, mpegts_offset_ms: u64, cue_ids: bool) -> Self {
        let length_ms = length_ms.max(1);
        Self {
            length_ms,
            mpegts_offset: mpegts_offset_ms.wrapping_mul(90),
            cue_ids,
            index: at_ms / length_ms,
            cues: Vec::new(),
            count: 0,
            last_end_ms: 0,
        }
    }

    /// Takes the next cue, at running time. One that comes too late for its file is shown in the next.
    pub fn cue(&mut self, cue: &Cue) -> Vec<Fragment> {
        let start_ms = cue
            .start
            .millis()
            .max(self.last_end_ms)
            .max(self.start_ms());
        let end_ms = cue.end.millis().max(start_ms.saturating_add(1));
        let mut out = self.reach(start_ms);
        let lines = shown_lines(cue);
        if !lines.is_empty() {
            self.count += 1;
            self.last_end_ms = end_ms;
            let speaker = speaker_of(cue.speaker.as_deref(), cue.speaker_id.as_deref());
            let shown = Shown {
                start_ms,
                end_ms,
                lines,
                speaker,
            };
            self.cues.push((self.count, shown));
        }
        // The next cue begins when this one has gone, or later.
        out.extend(self.reach(end_ms));
        out
    }

    /// No cue will begin before `until_ms`.
    pub fn reach(&mut self, until_ms: u64) -> Vec<Fragment> {
        let due = until_ms / self.length_ms;
        let mut out = Vec::new();
        while self.index < due && (out.len() as u64) < AT_ONCE_MAX {
            out.push(self.close(self.end_ms()));
        }
        if self.index < due {
            self.index = due;
            let start_ms = self.start_ms();
            self.cues.retain(|(_, cue)| cue.end_ms > start_ms);
        }
        out
    }

    /// The last file, which ends at `end_ms` or when the last cue has gone.
    pub fn finish(mut self, end_ms: u64) -> Vec<Fragment> {
        let end_ms = end_ms.max(self.last_end_ms);
        let mut out = self.reach(end_ms);
        if end_ms > self.start_ms() {
            out.push(self.close(end_ms));
        }
        out
    }

    fn start_ms(&self) -> u64 {
        self.index.saturating_mul(self.length_ms)
    }

    fn end_ms(&self) -> u64 {
        self.start_ms().saturating_add(self.length_ms)
    }

    fn close(&mut self, end_ms: u64) -> Fragment {
        let start_ms = self.start_ms();
        let mut bytes = Vec::new();
        let mpegts = self.mpegts_offset.wrapping_add(start_ms.wrapping_mul(90));
        // Memory takes every byte: there is no error.
        let _ = vtt::header_of_fragment(start_ms, mpegts, &mut bytes);
        for (number, cue) in &self.cues {
            let _ = vtt::cue(self.cue_ids.then_some(*number), cue, &mut bytes);
        }
        self.cues.retain(|(_, cue)| cue.end_ms > end_ms);
        let index = self.index;
        self.index += 1;
        Fragment {
            index,
            start_ms,
            end_ms,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use crate::audio::time::StreamNs;
    use crate::transcript::SegmentInfo;

    const HOUR_MS: u64 = 3_600_000;

    fn cue(text: &str, start_ms: u64, end_ms: u64) -> Cue {
        Cue {
            start: StreamNs(start_ms * 1_000_000),
            end: StreamNs(end_ms * 1_000_000),
            lines: vec![text.to_owned()],
            words: Vec::new(),
            segment: SegmentInfo::default(),
            speaker_id: None,
            speaker: None,
        }
    }

    fn text(fragment: &Fragment) -> &str {
        std::str::from_utf8(&fragment.bytes).unwrap()
    }

    #[test]
    fn each_file_says_where_it_lies_on_the_streams_clock() {
        let mut all = Fragments::new(6000, 0, HOUR_MS, false);

        let out = all.reach(12_500);

        assert_eq!(out.len(), 2);
        assert_eq!(
            text(&out[0]),
            "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:324000000\n\n"
        );
        assert_eq!(
            text(&out[1]),
            "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:06.000,MPEGTS:324540000\n\n"
        );
        assert_eq!(
            (out[1].index, out[1].start_ms, out[1].end_ms),
            (1, 6000, 12_000)
        );
    }

    /// 33 bits of 90 kHz are used up after 26.5 hours, and the transport stream counts from zero again.
    #[test]
    fn the_clock_of_33_bits_wraps() {
        let at = 27 * HOUR_MS;
        let mut all = Fragments::new(6000, at, 0, false);

        let out = all.reach(at + 6000);

        let expected = (at * 90) % (1 << 33);
        let first = text(&out[0]);
        assert!(expected < at * 90);
        assert!(
            first.contains(&format!("LOCAL:27:00:00.000,MPEGTS:{expected}\n")),
            "{first}"
        );
    }

    #[test]
    fn a_cue_over_a_border_is_whole_in_both_files() {
        let mut all = Fragments::new(6000, 0, 0, false);

        let mut out = all.cue(&cue("Over", 5000, 7000));
        out.extend(all.cue(&cue("In", 8000, 9000)));
        out.extend(all.finish(10_000));

        let over = "00:00:05.000 --> 00:00:07.000\nOver\n";
        assert_eq!(out.len(), 2);
        assert!(text(&out[0]).contains(over) && !text(&out[0]).contains("In"));
        assert!(text(&out[1]).contains(over) && text(&out[1]).contains("In"));
        assert_eq!((out[1].start_ms, out[1].end_ms), (6000, 10_000));
    }

    #[test]
    fn a_cue_that_ends_on_a_border_is_not_in_the_next_file() {
        let mut all = Fragments::new(6000, 0, 0, false);

        let first = all.cue(&cue("To the border", 5000, 6000));
        let rest = all.finish(7000);

        assert!(text(&first[0]).contains("To the border"));
        assert_eq!(rest.len(), 1);
        assert!(!text(&rest[0]).contains("To the border"));
    }

    #[test]
    fn a_long_cue_is_in_every_file_that_it_lasts_for() {
        let mut all = Fragments::new(2000, 0, 0, true);

        let mut out = all.cue(&cue("Long", 1000, 7000));
        out.extend(all.finish(0));

        assert_eq!(out.len(), 4);
        for fragment in &out {
            assert!(text(fragment).contains("\n1\n00:00:01.000 --> 00:00:07.000\nLong\n"));
        }
        assert_eq!(out[3].end_ms, 7000);
    }

    /// A file is out and cannot be changed: what comes too late for it is in the next one, and after the cue before.
    #[test]
    fn a_cue_too_late_for_its_file_is_in_the_next() {
        let mut all = Fragments::new(6000, 0, 0, false);
        all.reach(6100);

        all.cue(&cue("Late", 5000, 7000));
        all.cue(&cue("Behind", 6500, 7500));
        let out = all.finish(8000);

        assert_eq!(out.len(), 1);
        assert!(text(&out[0]).contains("00:00:06.000 --> 00:00:07.000\nLate"));
        assert!(text(&out[0]).contains("00:00:07.000 --> 00:00:07.500\nBehind"));
    }

    #[test]
    fn an_end_on_a_border_leaves_no_empty_file() {
        let mut all = Fragments::new(6000, 0, 0, false);

        let mut out = all.reach(6000);
        out.extend(all.finish(6000));

        assert_eq!(out.len(), 1);
    }

    #[test]
    fn a_leap_over_ages_is_no_flood() {
        let mut all = Fragments::new(1000, 0, 0, false);
        all.cue(&cue("Before", 0, 500));

        let out = all.reach(u64::MAX);

        assert_eq!(out.len() as u64, AT_ONCE_MAX);
        let last = all.finish(u64::MAX);
        assert!(last.len() <= 1);
    }
}
