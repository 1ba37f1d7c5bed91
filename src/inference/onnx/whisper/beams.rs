// SPDX-License-Identifier: MPL-2.0
//! Several texts of one window followed at once: the likeliest ones so far, until as many are complete.
//!
//! Source: openai-whisper, `decoding.py`: `BeamSearchDecoder` with a patience of 1, and texts compared by their mean
//! log-probability.

use super::decode::{self, Choice};
use super::vocabulary::Vocabulary;

/// See the module. Texts live in rows, and stay in theirs where they can: what a row remembers is large.
#[derive(Debug)]
pub(super) struct Beams {
    rows: Vec<Option<Text>>,
    /// Most tokens of a text.
    most: usize,
    complete: Vec<Text>,
    /// The best of those that were stopped: what is left if nothing else is.
    stopped: Option<Text>,
}

#[derive(Clone, Debug, Default)]
struct Text {
    choices: Vec<Choice>,
    /// Sum of the log-probabilities.
    sum: f32,
}

impl Text {
    fn with(&self, choice: Choice) -> Self {
        let mut choices = Vec::with_capacity(self.choices.len() + 1);
        choices.extend_from_slice(&self.choices);
        choices.push(choice);
        Self {
            choices,
            sum: self.sum + choice.logprob,
        }
    }

    fn worth(&self) -> f32 {
        self.sum / self.choices.len().max(1) as f32
    }
}

impl Beams {
    /// With a row for each of `count` texts of up to `most` tokens, of which one is empty and the others are none yet.
    pub fn new(count: usize, most: usize) -> Self {
        let mut rows = vec![None; count];
        if let Some(first) = rows.first_mut() {
            *first = Some(Text::default());
        }
        Self {
            rows,
            most,
            complete: Vec::with_capacity(count),
            stopped: None,
        }
    }

    /// Nothing was written yet.
    pub fn are_new(&self) -> bool {
        let first = self.rows.first().and_then(Option::as_ref);
        first.is_some_and(|text| text.choices.is_empty())
    }

    /// The last token of each row; `end` where a row has no text.
    pub fn last(&self, end: u32) -> impl Iterator<Item = u32> {
        let last = |text: &Option<Text>| text.as_ref()?.choices.last().map(|c| c.token);
        self.rows.iter().map(move |text| last(text).unwrap_or(end))
    }

    /// Goes on with what is likeliest, given the values of each row's next token. Says which rows take over what others
    /// remember, as pairs (from, to): no row is both. `None` where the values are no numbers.
    pub fn advance<'a>(
        &mut self,
        logits: impl Iterator<Item = &'a [f32]>,
        vocabulary: &Vocabulary,
    ) -> Option<Vec<(usize, usize)>> {
        let count = self.rows.len();
        let mut candidates = Vec::with_capacity(count * (count + 1));
        for (row, (text, logits)) in self.rows.iter().zip(logits).enumerate() {
            if let Some(text) = text {
                // One may be the end: there are others to go on with.
                let likely = decode::likeliest(logits, count + 1)?;
                candidates.extend(likely.into_iter().map(|c| (text.sum + c.logprob, row, c)));
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut next = Vec::with_capacity(count);
        for (_, row, choice) in candidates {
            if next.len() == count {
                break;
            }
            let Some(text) = &self.rows[row] else {
                continue;
            };
            let text = text.with(choice);
            if choice.token == vocabulary.end() {
                if self.complete.len() < count {
                    self.complete.push(text);
                }
            } else if decode::is_over(&text.choices, vocabulary, self.most) {
                if self
                    .stopped
                    .as_ref()
                    .is_none_or(|s| s.worth() < text.worth())
                {
                    self.stopped = Some(text);
                }
            } else {
                next.push((row, text));
            }
        }
        Some(self.place(next))
    }

    /// The first text that goes on from a row stays in it, others go where none does.
    fn place(&mut self, texts: Vec<(usize, Text)>) -> Vec<(usize, usize)> {
        let mut rows = vec![None; self.rows.len()];
        let mut more = Vec::new();
        for (row, text) in texts {
            if rows[row].is_none() {
                rows[row] = Some(text);
            } else {
                more.push((row, text));
            }
        }
        let mut copies = Vec::with_capacity(more.len());
        let free = (0..rows.len()).filter(|row| rows[*row].is_none());
        for (to, (from, text)) in free.collect::<Vec<_>>().into_iter().zip(more) {
            rows[to] = Some(text);
            copies.push((from, to));
        }
        self.rows = rows;
        copies
    }

    /// As many are complete as were followed, or none goes on.
    pub fn is_over(&self) -> bool {
        self.complete.len() >= self.rows.len() || self.rows.iter().all(Option::is_none)
    }

    /// The best text.
    pub fn best(&self) -> &[Choice] {
        let best = self
            .complete
            .iter()
            .max_by(|a, b| a.worth().total_cmp(&b.worth()));
        best.or(self.stopped.as_ref())
            .map_or(&[], |text| &text.choices)
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::tests::english;
    use super::*;

    /// Values of a step: all that may follow, with their probabilities.
    fn logits(next: &[(u32, f32)], len: usize) -> Vec<f32> {
        let mut out = vec![f32::NEG_INFINITY; len];
        for (token, probability) in next {
            out[*token as usize] = probability.ln();
        }
        out
    }

    /// Follows a made-up language until it is over; says the best text and how often rows were copied.
    fn follow(
        count: usize,
        language: impl Fn(&[u32]) -> Vec<(u32, f32)>,
    ) -> (Vec<u32>, f32, usize) {
        let vocabulary = english();
        let mut beams = Beams::new(count, 220);
        // What each row remembers.
        let mut pasts: Vec<Vec<u32>> = vec![Vec::new(); count];
        let mut copied = 0;
        while !beams.is_over() {
            let steps: Vec<Vec<f32>> = pasts
                .iter()
                .map(|past| logits(&language(past), 51_864))
                .collect();
            let copies = beams
                .advance(steps.iter().map(Vec::as_slice), &vocabulary)
                .unwrap();
            copied += copies.len();
            for (from, to) in copies {
                pasts[to] = pasts[from].clone();
            }
            for (past, token) in pasts.iter_mut().zip(beams.last(vocabulary.end())) {
                past.push(token);
            }
            for (past, text) in pasts.iter().zip(&beams.rows) {
                if let Some(text) = text {
                    let own: Vec<u32> = text.choices.iter().map(|c| c.token).collect();
                    assert_eq!(*past, own, "a row remembers another text than it has");
                }
            }
        }
        let best = beams.best();
        let sum = best.iter().map(|c| c.logprob).sum();
        (best.iter().map(|c| c.token).collect(), sum, copied)
    }

    /// The likelier start leads nowhere good.
    fn garden_path(past: &[u32], end: u32) -> Vec<(u32, f32)> {
        match past {
            [] => vec![(10, 0.6), (20, 0.4)],
            [10] => vec![(11, 0.3), (12, 0.3), (13, 0.4)],
            [20] => vec![(21, 0.95), (22, 0.05)],
            _ => vec![(end, 1.0)],
        }
    }

    #[test]
    fn a_text_whose_beginning_is_less_likely_wins_if_the_whole_is_likelier() {
        let end = english().end();
        let (one, _, _) = follow(1, |past| garden_path(past, end));
        let (two, sum, copies) = follow(2, |past| garden_path(past, end));

        assert_eq!(one, [10, 13, end]);
        assert_eq!(two, [20, 21, end]);
        assert!((sum.exp() - 0.38).abs() < 1e-4);
        assert!(copies > 0);
    }

    #[test]
    fn texts_that_go_round_end_and_are_taken_only_where_there_is_no_other() {
        let end = english().end();
        let (round, ..) = follow(2, |_| vec![(30, 0.9), (31, 0.1)]);
        let (whole, ..) = follow(2, |past| match past {
            [] => vec![(30, 0.9), (40, 0.1)],
            [40, ..] => vec![(end, 1.0)],
            _ => vec![(30, 1.0)],
        });

        assert!(round.len() >= 41 && round.len() <= 224, "{}", round.len());
        assert_eq!(whole, [40, end]);
    }

    #[test]
    fn values_that_are_no_numbers_end_it_without_an_answer() {
        let vocabulary = english();
        let mut beams = Beams::new(2, 220);
        let nothing = vec![f32::NAN; 51_864];

        assert_eq!(
            beams.advance([&nothing[..], &nothing[..]].into_iter(), &vocabulary),
            None
        );
    }
}
