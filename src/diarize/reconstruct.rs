// SPDX-License-Identifier: MPL-2.0
//! From windows and who is who in them to turns: the windows that see a frame say together how many talk there, and those
//! whose activity is largest do.

use std::collections::VecDeque;

use super::activity::{Activity, LOCAL_SPEAKERS, border_of, frame_of};

/// A stretch in which one speaker talks, in samples at 16 kHz.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Talk {
    /// The first sample.
    pub start: u64,
    /// The first sample behind it.
    pub end: u64,
    /// Who.
    pub speaker: usize,
    /// Mean probability over its frames that this one talks, 0 to 1.
    pub confidence: f32,
}

impl Talk {
    /// The same so many samples later.
    pub fn later(self, samples: u64) -> Self {
        Self {
            start: self.start + samples,
            end: self.end + samples,
            ..self
        }
    }
}

/// How turns are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cutting {
    /// A pause of one speaker that is not longer is part of the turn, samples.
    pub min_silence: u64,
    /// A shorter turn is none, samples.
    pub min_turn: u64,
    /// Speakers at a time, at most.
    pub at_once: usize,
}

/// Who talks when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turns {
    /// All turns, by start; those of different speakers may overlap.
    pub all: Vec<Talk>,
    /// One speaker at a time: the one who is heard best. For those who give each word a speaker.
    pub exclusive: Vec<Talk>,
}

impl Turns {
    /// For each of so many speakers the samples in which nobody else talks: what there is to know a voice by.
    pub fn alone(&self, speakers: usize) -> Vec<u64> {
        let mut edges: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * self.all.len());
        for turn in &self.all {
            edges.push((turn.start, true, turn.speaker));
            edges.push((turn.end, false, turn.speaker));
        }
        edges.sort_by_key(|(at, ..)| *at);
        let mut out = vec![0; speakers];
        let mut talking: Vec<usize> = Vec::new();
        let mut since = 0;
        for (at, begins, speaker) in edges {
            if let [only] = talking[..]
                && let Some(own) = out.get_mut(only)
            {
                *own += at - since;
            }
            since = at;
            if begins {
                talking.push(speaker);
            } else if let Some(n) = talking.iter().position(|s| *s == speaker) {
                talking.swap_remove(n);
            }
        }
        out
    }
}

/// Takes windows in their order and gives turns. What it holds does not grow with the recording, but for the turns.
pub struct Reconstruction {
    speakers: usize,
    cutting: Cutting,
    /// The recording's frame at the front of `frames`.
    front: usize,
    frames: VecDeque<Votes>,
    all: Vec<Speaker>,
    exclusive: Vec<Speaker>,
}

/// What the windows that see a frame say of it.
#[derive(Clone, Debug)]
pub(super) struct Votes {
    windows: u16,
    talking: f32,
    activity: Vec<f32>,
}

impl Votes {
    /// None yet, for so many speakers.
    pub(super) fn new(speakers: usize) -> Self {
        Self {
            windows: 0,
            talking: 0.0,
            activity: vec![0.0; speakers],
        }
    }

    /// That of one more window: its frame `n`, and for each local speaker who he is.
    pub(super) fn add(&mut self, activity: &Activity, n: usize, who: &[Option<usize>]) {
        self.windows += 1;
        let mut own = [(usize::MAX, 0.0_f32); LOCAL_SPEAKERS];
        for local in 0..LOCAL_SPEAKERS {
            let probability = activity.probability(n, local);
            self.talking += probability;
            if let Some(speaker) = who.get(local).copied().flatten() {
                // Two slots of one person are the same voice.
                match own.iter_mut().find(|o| o.0 == speaker) {
                    Some(same) => same.1 = same.1.max(probability),
                    None => own[local] = (speaker, probability),
                }
            }
        }
        for (speaker, probability) in own {
            if let Some(sum) = self.activity.get_mut(speaker) {
                *sum += probability;
            }
        }
    }

    /// Mean probability that a speaker talks, 0 to 1.
    pub(super) fn probability(&self, speaker: usize) -> f32 {
        match (self.activity.get(speaker), self.windows) {
            (Some(sum), 1..) => sum / f32::from(self.windows),
            _ => 0.0,
        }
    }

    /// Who talks, at most so many: who is heard best is first.
    pub(super) fn talking(&self, at_once: usize) -> Vec<usize> {
        if self.windows == 0 {
            return Vec::new();
        }
        let count = (self.talking / f32::from(self.windows)).round() as usize;
        let mut order: Vec<usize> = (0..self.activity.len())
            .filter(|s| self.activity[*s] > 0.0)
            .collect();
        order.sort_by(|a, b| self.activity[*b].total_cmp(&self.activity[*a]));
        order.truncate(count.min(at_once));
        order
    }
}

/// The turns of one speaker.
#[derive(Clone, Default)]
struct Speaker {
    turns: Vec<Stretch>,
}

/// Frames of one speaker that follow on each other.
#[derive(Clone, Copy)]
struct Stretch {
    start: u64,
    end: u64,
    probability: f32,
    frames: u32,
}

impl Speaker {
    fn talks(&mut self, start: u64, end: u64, probability: f32, min_silence: u64) {
        match self.turns.last_mut() {
            Some(last) if start <= last.end + min_silence => {
                last.end = last.end.max(end);
                last.probability += probability;
                last.frames += 1;
            }
            _ => self.turns.push(Stretch {
                start,
                end,
                probability,
                frames: 1,
            }),
        }
    }
}

impl Reconstruction {
    /// For so many speakers.
    pub fn new(speakers: usize, cutting: Cutting) -> Self {
        Self {
            speakers,
            cutting,
            front: 0,
            frames: VecDeque::new(),
            all: vec![Speaker::default(); speakers],
            exclusive: vec![Speaker::default(); speakers],
        }
    }

    /// The next window: where it begins, and for each local speaker which of the recording's he is.
    pub fn window(&mut self, start: u64, activity: &Activity, who: &[Option<usize>]) {
        let first = frame_of(start);
        // No later window sees what is before this one.
        self.finish_until(first);
        for n in 0..activity.len() {
            let at = first + n - self.front;
            while self.frames.len() <= at {
                self.frames.push_back(Votes::new(self.speakers));
            }
            self.frames[at].add(activity, n, who);
        }
    }

    fn finish_until(&mut self, frame: usize) {
        while self.front < frame {
            if let Some(seen) = self.frames.pop_front() {
                self.cut(self.front, &seen);
            }
            self.front += 1;
        }
    }

    fn cut(&mut self, frame: usize, seen: &Votes) {
        let (start, end) = (border_of(frame), border_of(frame + 1));
        let silence = self.cutting.min_silence;
        let talking = seen.talking(self.cutting.at_once);
        for &speaker in &talking {
            self.all[speaker].talks(start, end, seen.probability(speaker), silence);
        }
        if let Some(&speaker) = talking.first() {
            // Filled pauses would overlap the turns of others here.
            self.exclusive[speaker].talks(start, end, seen.probability(speaker), 0);
        }
    }

    /// The turns of a recording of so many samples.
    pub fn finish(mut self, samples: u64) -> Turns {
        let last = self.front + self.frames.len();
        self.finish_until(last);
        // The last frame's centre is half its field before the end.
        let end_of = |end: u64| {
            if end >= border_of(last) {
                samples
            } else {
                end.min(samples)
            }
        };
        let list = |speakers: Vec<Speaker>, min_turn: u64| {
            let mut out: Vec<Talk> = speakers
                .into_iter()
                .enumerate()
                .flat_map(|(speaker, own)| {
                    own.turns.into_iter().map(move |stretch| Talk {
                        start: stretch.start,
                        end: stretch.end,
                        speaker,
                        confidence: (stretch.probability / stretch.frames as f32).min(1.0),
                    })
                })
                .map(|t| Talk {
                    end: end_of(t.end),
                    // The first frame's centre is half its field behind the beginning.
                    start: if t.start <= border_of(0) { 0 } else { t.start },
                    ..t
                })
                .filter(|t| t.end > t.start && t.end - t.start >= min_turn)
                .collect();
            out.sort_by_key(|t| (t.start, t.end, t.speaker));
            out
        };
        Turns {
            all: list(self.all, self.cutting.min_turn),
            exclusive: list(self.exclusive, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::activity::tests::scores;
    use super::*;
    use crate::inference::SEGMENTATION_WINDOW;

    const CUTTING: Cutting = Cutting {
        min_silence: 0,
        min_turn: 0,
        at_once: 3,
    };

    #[test]
    fn what_is_said_alone_leaves_out_what_is_said_together() {
        let talk = |start, end, speaker| Talk {
            start,
            end,
            speaker,
            confidence: 1.0,
        };
        let turns = Turns {
            all: vec![
                talk(0, 100, 0),
                talk(60, 150, 1),
                talk(150, 160, 0),
                talk(300, 310, 2),
            ],
            exclusive: Vec::new(),
        };

        assert_eq!(turns.alone(4), [70, 50, 10, 0]);
        assert_eq!(turns.alone(1), [70]);
    }

    fn activity(class: impl Fn(usize) -> (usize, f32)) -> Activity {
        Activity::of(&scores(589, class), SEGMENTATION_WINDOW)
    }

    fn seconds(turns: &[Talk]) -> Vec<(f64, f64, usize)> {
        let round = |samples: u64| (samples as f64 / 1600.0).round() / 10.0;
        turns
            .iter()
            .map(|t| (round(t.start), round(t.end), t.speaker))
            .collect()
    }

    #[test]
    fn one_speaker_over_several_windows_has_one_turn() {
        let mut turns = Reconstruction::new(1, CUTTING);
        for n in 0..5 {
            turns.window(n * 32_000, &activity(|_| (2, 1.0)), &[None, Some(0), None]);
        }

        let turns = turns.finish(18 * 16_000);

        assert_eq!(seconds(&turns.all), [(0.0, 18.0, 0)]);
        assert_eq!(turns.all, turns.exclusive);
    }

    #[test]
    fn two_at_once_overlap_and_one_of_them_is_heard_best() {
        let class = |n| match n {
            0..200 => (1, 0.9),
            200..300 => (4, 0.9),
            _ => (2, 0.9),
        };
        let mut turns = Reconstruction::new(2, CUTTING);
        turns.window(0, &activity(class), &[Some(1), Some(0), None]);

        let turns = turns.finish(160_000);

        assert_eq!(seconds(&turns.all), [(0.0, 5.1, 1), (3.4, 10.0, 0)]);
        let exclusive = turns.exclusive;
        for pair in exclusive.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{exclusive:?}");
        }
        assert_eq!(
            exclusive.iter().map(|t| t.end - t.start).sum::<u64>(),
            160_000
        );
    }

    #[test]
    fn short_pauses_are_filled_and_short_turns_are_none() {
        let class = |n| match n {
            100..110 => (0, 1.0),
            300..305 => (2, 1.0),
            _ => (1, 1.0),
        };
        let cutting = Cutting {
            min_silence: 4_800,
            min_turn: 3_200,
            ..CUTTING
        };
        let mut turns = Reconstruction::new(2, cutting);
        turns.window(0, &activity(class), &[Some(0), Some(1), None]);

        let turns = turns.finish(160_000);

        assert_eq!(seconds(&turns.all), [(0.0, 10.0, 0)]);
    }

    #[test]
    fn windows_that_disagree_say_together_how_many_talk() {
        let mut turns = Reconstruction::new(2, CUTTING);
        // Three of five windows hear somebody in what all of them see.
        for (n, talks) in [true, false, true, false, true].into_iter().enumerate() {
            let class = usize::from(talks);
            turns.window(
                n as u64 * 32_000,
                &activity(move |_| (class, 1.0)),
                &[Some(0), None, None],
            );
        }

        let turns = turns.finish(18 * 16_000);

        assert!(
            turns
                .all
                .iter()
                .any(|t| t.start <= 128_000 && t.end >= 159_000)
        );
    }
}
