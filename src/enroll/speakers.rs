// SPDX-License-Identifier: MPL-2.0
//! Whose a piece of speech is, once it is told who spoke when.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Part of a piece that may be another's, or nobody's.
const TOLERANCE: f64 = 0.1;
/// Pieces that are kept of a speaker at most, spread over what they say: 12 minutes of speech.
const KEPT_MOST: usize = 500;

/// A piece of speech with its vector. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// When, in running time.
    pub running: Range<u64>,
    /// Where it begins in stream time.
    pub stream: u64,
    /// Its vector, of length 1.
    pub vector: Vec<f32>,
}

impl Piece {
    /// Length, seconds.
    pub fn seconds(&self) -> f64 {
        (self.running.end - self.running.start) as f64 / 1e9
    }
}

/// Somebody speaks, running time.
#[derive(Clone, Debug, PartialEq)]
pub struct Talk {
    /// The id.
    pub speaker: String,
    /// When.
    pub running: Range<u64>,
}

/// What is known of a speaker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speaker {
    /// Pieces that are theirs.
    pub pieces: Vec<Piece>,
    /// Seconds that they spoke alone in.
    pub seconds: f64,
    /// One piece in so many is kept.
    every: u64,
    count: u64,
}

impl Speaker {
    fn add(&mut self, piece: Piece) {
        self.every = self.every.max(1);
        if self.count % self.every == 0 {
            self.pieces.push(piece);
        }
        self.count += 1;
        if self.pieces.len() > KEPT_MOST {
            let mut n = 0;
            self.pieces.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.every *= 2;
        }
    }
}

/// See the module. Pieces and turns wait for each other: what is kept is bounded by how far one is behind the other.
#[derive(Debug, Default)]
pub struct Speakers {
    waiting: VecDeque<Piece>,
    all: Vec<Talk>,
    exclusive: Vec<Talk>,
    /// No turn before it will be added.
    until: u64,
    /// No piece before it will be added.
    heard: u64,
    speakers: BTreeMap<String, Speaker>,
}

impl Speakers {
    /// One more piece; they come in order.
    pub fn piece(&mut self, piece: Piece) {
        self.heard = self.heard.max(piece.running.start);
        self.waiting.push_back(piece);
        self.decide();
    }

    /// Who spoke, `all` with overlap and `exclusive` without. Nothing before `until` will be added.
    pub fn turns(&mut self, all: Vec<Talk>, exclusive: Vec<Talk>, until: u64) {
        for talk in &exclusive {
            let speaker = self.speakers.entry(talk.speaker.clone()).or_default();
            speaker.seconds += (talk.running.end - talk.running.start) as f64 / 1e9;
        }
        self.all.extend(all);
        self.exclusive.extend(exclusive);
        self.until = self.until.max(until);
        self.decide();
    }

    fn decide(&mut self) {
        while self
            .waiting
            .front()
            .is_some_and(|p| p.running.end <= self.until)
            && let Some(piece) = self.waiting.pop_front()
        {
            if let Some(speaker) = self.whose(&piece) {
                self.speakers.entry(speaker).or_default().add(piece);
            }
        }
        let from = self.waiting.front().map_or(self.heard, |p| p.running.start);
        self.all.retain(|t| t.running.end > from);
        self.exclusive.retain(|t| t.running.end > from);
    }

    /// Who speaks in a piece from end to end, alone.
    fn whose(&self, piece: &Piece) -> Option<String> {
        let length = piece.running.end.checked_sub(piece.running.start)? as f64;
        let shared = |talk: &Talk| {
            let start = talk.running.start.max(piece.running.start);
            talk.running
                .end
                .min(piece.running.end)
                .saturating_sub(start) as f64
        };
        let mut own: BTreeMap<&str, f64> = BTreeMap::new();
        for talk in &self.exclusive {
            *own.entry(talk.speaker.as_str()).or_default() += shared(talk);
        }
        let (speaker, most) = own.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let others: f64 = self
            .all
            .iter()
            .filter(|t| t.speaker != speaker)
            .map(shared)
            .sum();
        let is_own = most >= (1.0 - TOLERANCE) * length && others <= TOLERANCE * length;
        is_own.then(|| speaker.to_owned())
    }

    /// What was `old`'s is `new`'s, where it begins in `stream` (stream time).
    pub fn relabel(&mut self, old: &str, new: &str, stream: Range<u64>) {
        for talk in self.all.iter_mut().chain(&mut self.exclusive) {
            if talk.speaker == old {
                talk.speaker = new.to_owned();
            }
        }
        let Some(from) = self.speakers.get_mut(old) else {
            return;
        };
        let moves = |p: &Piece| stream.contains(&p.stream);
        let kept = from.pieces.len();
        let moved: Vec<Piece> = from.pieces.extract_if(.., |p| moves(p)).collect();
        // The seconds go with the pieces.
        let part = moved.len() as f64 / kept.max(1) as f64;
        let seconds = if stream == (0..u64::MAX) {
            from.seconds
        } else {
            from.seconds * part
        };
        from.seconds -= seconds;
        if from.pieces.is_empty() && stream == (0..u64::MAX) {
            self.speakers.remove(old);
        }
        let to = self.speakers.entry(new.to_owned()).or_default();
        to.seconds += seconds;
        moved.into_iter().for_each(|piece| to.add(piece));
    }

    /// Everybody so far.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Speaker)> {
        self.speakers
            .iter()
            .map(|(id, speaker)| (id.as_str(), speaker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u64, end: u64) -> Piece {
        Piece {
            running: start * 1_000..end * 1_000,
            stream: start * 1_000,
            vector: vec![start as f32],
        }
    }

    fn talk(speaker: &str, start: u64, end: u64) -> Talk {
        Talk {
            speaker: speaker.into(),
            running: start * 1_000..end * 1_000,
        }
    }

    fn starts(speakers: &Speakers, id: &str) -> Vec<f32> {
        let found = speakers.iter().find(|(known, _)| *known == id);
        found.map_or(Vec::new(), |(_, s)| {
            s.pieces.iter().map(|p| p.vector[0]).collect()
        })
    }

    #[test]
    fn a_piece_is_whose_it_is_from_end_to_end() {
        let mut speakers = Speakers::default();
        for start in [0, 8, 20, 35, 50] {
            speakers.piece(piece(start, start + 10));
        }
        let all = vec![
            talk("a", 0, 12),
            talk("b", 12, 31),
            talk("a", 33, 60),
            talk("b", 50, 60),
        ];
        let alone = vec![talk("a", 0, 12), talk("b", 12, 31), talk("a", 33, 60)];

        speakers.turns(all, alone, 100_000);

        assert_eq!(starts(&speakers, "a"), [0.0, 35.0]);
        assert_eq!(starts(&speakers, "b"), [20.0]);
        let seconds: Vec<f64> = speakers.iter().map(|(_, s)| s.seconds * 1e6).collect();
        assert!((seconds[0] - 39.0).abs() < 1e-6 && (seconds[1] - 19.0).abs() < 1e-6);
    }

    #[test]
    fn online_a_piece_waits_until_all_of_it_is_told() {
        let mut speakers = Speakers::default();
        speakers.piece(piece(0, 10));
        let first = vec![talk("a", 0, 6)];
        speakers.turns(first.clone(), first, 6_000);
        assert_eq!(starts(&speakers, "a"), [0.0; 0]);

        let second = vec![talk("a", 6, 12)];
        speakers.turns(second.clone(), second, 12_000);

        assert_eq!(starts(&speakers, "a"), [0.0]);
        speakers.piece(piece(12, 20));
        assert_eq!((speakers.all.len(), speakers.waiting.len()), (0, 1));
    }

    #[test]
    fn turns_wait_for_pieces_that_come_late() {
        let mut speakers = Speakers::default();
        let told = vec![talk("a", 0, 40)];
        speakers.turns(told.clone(), told, 40_000);
        speakers.turns(vec![], vec![], 90_000);

        for start in [0, 10, 20] {
            speakers.piece(piece(start, start + 10));
        }

        assert_eq!(starts(&speakers, "a"), [0.0, 10.0, 20.0]);
    }

    #[test]
    fn what_is_mended_moves() {
        let mut speakers = Speakers::default();
        for start in [0, 10, 20] {
            speakers.piece(piece(start, start + 10));
        }
        let told = vec![talk("a", 0, 30)];
        speakers.turns(told.clone(), told, 30_000);

        speakers.relabel("a", "b", 10_000..20_000);
        assert_eq!(starts(&speakers, "a"), [0.0, 20.0]);
        assert_eq!(starts(&speakers, "b"), [10.0]);
        speakers.relabel("a", "b", 0..u64::MAX);

        assert_eq!(starts(&speakers, "b"), [10.0, 0.0, 20.0]);
        assert_eq!(speakers.iter().count(), 1);
    }

    #[test]
    fn hours_of_one_speaker_are_no_more_pieces_than_minutes() {
        let mut speakers = Speakers::default();
        for start in 0..5_000 {
            speakers.piece(piece(start, start + 1));
        }
        let told = vec![talk("a", 0, 5_000)];
        speakers.turns(told.clone(), told, 5_000_000);

        let kept = starts(&speakers, "a");

        assert!(kept.len() <= KEPT_MOST && kept.len() > KEPT_MOST / 2);
        assert!(kept[0] < 20.0 && kept[kept.len() - 1] > 4_900.0);
    }
}
