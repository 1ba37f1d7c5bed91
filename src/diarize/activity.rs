// SPDX-License-Identifier: MPL-2.0
//! Who talks in a window of ten seconds, and how its frames lie in the recording.
//!
//! The model (pyannote segmentation-3.0, Plaquet and Bredin, Interspeech 2023) names classes of up to two of three local
//! speakers; a speaker's activity is the sum of the classes that he is in.

use crate::inference::{SEGMENTATION_CLASSES, SEGMENTATION_WINDOW, SegmentationScores};

/// Local speakers of a window.
pub const LOCAL_SPEAKERS: usize = 3;
/// Samples from one frame to the next: 16.875 ms.
pub const FRAME_STEP: usize = 270;
/// Frames of a window.
pub const WINDOW_FRAMES: usize = 589;
/// The sample in the middle of a window's first frame: half of the 991 that it sees.
pub(super) const FIRST_CENTRE: usize = 495;

/// Local speakers of each class, as bits.
const CLASSES: [u8; SEGMENTATION_CLASSES] = [0b000, 0b001, 0b010, 0b100, 0b011, 0b101, 0b110];

/// Activity of the local speakers in one window, by frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Probability that each talks, 0 to 255: a few bytes a frame, as all of a recording is kept until its end.
    soft: Box<[[u8; LOCAL_SPEAKERS]]>,
    /// The likeliest class, as bits.
    hard: Box<[u8]>,
}

impl Activity {
    /// From the model's scores; what is behind `samples` of the window is silence that filled it up and has no frames.
    pub fn of(scores: &SegmentationScores, samples: usize) -> Self {
        let frames = scores.scores.chunks_exact(SEGMENTATION_CLASSES);
        let mut soft = Vec::with_capacity(frames.len());
        let mut hard = Vec::with_capacity(frames.len());
        for (n, scores) in frames.enumerate() {
            if samples < SEGMENTATION_WINDOW && centre_of(n) >= samples {
                break;
            }
            let mut talks = [0.0_f32; LOCAL_SPEAKERS];
            let mut best = 0;
            for (class, score) in scores.iter().enumerate() {
                for (speaker, sum) in talks.iter_mut().enumerate() {
                    if CLASSES[class] & (1 << speaker) != 0 {
                        *sum += score.exp();
                    }
                }
                if *score > scores[best] {
                    best = class;
                }
            }
            soft.push(talks.map(|p| (p.clamp(0.0, 1.0) * 255.0).round() as u8));
            hard.push(CLASSES[best]);
        }
        Self {
            soft: soft.into(),
            hard: hard.into(),
        }
    }

    /// Frames.
    pub fn len(&self) -> usize {
        self.hard.len()
    }

    /// Whether it has no frame.
    pub fn is_empty(&self) -> bool {
        self.hard.is_empty()
    }

    /// Probability that a speaker talks in a frame, 0 to 1.
    pub fn probability(&self, frame: usize, speaker: usize) -> f32 {
        f32::from(self.soft[frame][speaker]) / 255.0
    }

    /// Whether the likeliest class of a frame has the speaker in it.
    pub fn talks(&self, frame: usize, speaker: usize) -> bool {
        self.hard[frame] & (1 << speaker) != 0
    }

    /// Whether two talk at once in a frame.
    pub fn is_overlapped(&self, frame: usize) -> bool {
        self.hard[frame].count_ones() > 1
    }

    /// Whether the speaker talks at all.
    pub fn is_heard(&self, speaker: usize) -> bool {
        self.hard.iter().any(|bits| bits & (1 << speaker) != 0)
    }

    /// Frames in which the speaker talks and nobody else does.
    pub fn clean_frames(&self, speaker: usize) -> usize {
        self.hard.iter().filter(|b| **b == 1 << speaker).count()
    }

    /// Runs of frames in which the speaker talks, and, if `alone`, nobody else does.
    pub fn runs(&self, speaker: usize, alone: bool) -> Vec<std::ops::Range<usize>> {
        let talks = |bits: u8| {
            if alone {
                bits == 1 << speaker
            } else {
                bits & (1 << speaker) != 0
            }
        };
        let mut runs = Vec::new();
        let mut begin = None;
        for (n, bits) in self.hard.iter().enumerate() {
            match (talks(*bits), begin) {
                (true, None) => begin = Some(n),
                (false, Some(first)) => {
                    runs.push(first..n);
                    begin = None;
                }
                _ => {}
            }
        }
        if let Some(first) = begin {
            runs.push(first..self.hard.len());
        }
        runs
    }
}

/// The sample in the middle of a frame.
pub fn centre_of(frame: usize) -> usize {
    FIRST_CENTRE + frame * FRAME_STEP
}

/// The recording's frame at which a window that begins at `sample` has its first: the nearest.
pub fn frame_of(sample: u64) -> usize {
    ((sample + FRAME_STEP as u64 / 2) / FRAME_STEP as u64) as usize
}

/// The first sample of a stretch that begins with `frame`, or ends before it: half way between two centres.
pub fn border_of(frame: usize) -> u64 {
    (frame * FRAME_STEP + FIRST_CENTRE - FRAME_STEP / 2) as u64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Scores in which each frame has the class that `class` says, with that probability.
    pub(in crate::diarize) fn scores(
        frames: usize,
        class: impl Fn(usize) -> (usize, f32),
    ) -> SegmentationScores {
        let mut scores = Vec::new();
        for frame in 0..frames {
            let (likely, probability) = class(frame);
            let rest = (1.0 - probability) / (SEGMENTATION_CLASSES - 1) as f32;
            scores.extend((0..SEGMENTATION_CLASSES).map(|c| {
                let p: f32 = if c == likely { probability } else { rest };
                p.max(1e-9).ln()
            }));
        }
        SegmentationScores { scores }
    }

    #[test]
    fn a_class_of_two_is_activity_of_both() {
        let activity = Activity::of(&scores(589, |_| (5, 1.0)), SEGMENTATION_WINDOW);

        assert_eq!(activity.len(), 589);
        for frame in 0..589 {
            assert!(activity.talks(frame, 0) && activity.talks(frame, 2));
            assert!(!activity.talks(frame, 1));
            assert!(activity.probability(frame, 0) > 0.99 && activity.probability(frame, 1) < 0.01);
        }
        assert_eq!(activity.clean_frames(0), 0);
        assert!(activity.is_heard(2) && !activity.is_heard(1));
    }

    #[test]
    fn probabilities_are_sums_over_classes() {
        let activity = Activity::of(&scores(1, |_| (1, 0.4)), SEGMENTATION_WINDOW);

        // 0.4 alone, and 0.1 in each of the two classes with another.
        assert!((activity.probability(0, 0) - 0.6).abs() < 0.01);
        assert!((activity.probability(0, 1) - 0.3).abs() < 0.01);
    }

    #[test]
    fn runs_are_stretches_of_talk() {
        let class = |n| match n {
            10..20 => (1, 1.0),
            20..30 => (4, 1.0),
            40..589 => (1, 1.0),
            _ => (0, 1.0),
        };
        let activity = Activity::of(&scores(589, class), SEGMENTATION_WINDOW);

        assert_eq!(activity.runs(0, false), [10..30, 40..589]);
        assert_eq!(activity.runs(0, true), [10..20, 40..589]);
        assert_eq!(activity.runs(1, true), []);
        assert_eq!(activity.clean_frames(0), 559);
    }

    #[test]
    fn nobody_talks_behind_the_end() {
        let activity = Activity::of(&scores(589, |_| (1, 1.0)), 80_000);

        let frames = activity.len();
        assert_eq!(activity.runs(0, true), vec![0..frames; 1]);
        assert!(centre_of(frames - 1) < 80_000 && centre_of(frames) >= 80_000);
    }

    #[test]
    fn frames_of_windows_lie_within_half_a_frame_of_the_recordings() {
        for start in [0_u64, 16_000, 32_000, 1_000_000] {
            let at = centre_of(frame_of(start)) as i64;
            let own = start as i64 + FIRST_CENTRE as i64;
            assert!((at - own).abs() <= FRAME_STEP as i64 / 2, "{start}");
        }
        assert_eq!(border_of(1) - border_of(0), FRAME_STEP as u64);
    }
}
