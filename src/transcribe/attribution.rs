// SPDX-License-Identifier: MPL-2.0
//! Which speaker said each word.
//!
//! Borders of words and of turns are both good to a fifth of a second, so the speaker who covers most of a word is the
//! wrong one at many a change. The words of a window are looked at together instead (Viterbi): a word is likely said by
//! whom it lies under, and a change of speaker costs something, much within a sentence, little at a comma and nothing
//! after its end or a pause.

/// Someone speaking, nanoseconds of running time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start.
    pub start: u64,
    /// End.
    pub end: u64,
    /// Who.
    pub speaker: usize,
}

/// A word as far as it matters here, nanoseconds of running time.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Start.
    pub start: u64,
    /// End.
    pub end: u64,
    /// The text.
    pub text: &'a str,
}

/// A word that nobody covers is said by somebody who speaks so near to it.
const REACH_NS: u64 = 500_000_000;
/// A pause after which a change costs nothing.
const PAUSE_NS: u64 = 400_000_000;
/// Words are looked at with so much around them, for borders are no sharper.
const BLUR_NS: u64 = 50_000_000;
/// Likeness of a speaker who does not cover the word at all: never zero, so that single words can be wrong.
const FLOOR: f64 = 0.05;
/// How much one speaker at a time counts beside all who are heard.
const EXCLUSIVE_PART: f64 = 0.7;
/// What a change of speaker costs, in natural logarithms of likeness.
const IN_SENTENCE: f64 = 1.2;
const AT_COMMA: f64 = 0.3;

/// The speaker of each word; `None` where nobody speaks near. `exclusive` are spans of one speaker at a time, `all` may
/// overlap; both ordered by start.
pub fn attribute(words: &[Heard], exclusive: &[Span], all: &[Span]) -> Vec<Option<usize>> {
    let mut out = vec![None; words.len()];
    let mut first = 0;
    while first < words.len() {
        // Words apart by minutes have nothing to say to each other, and their speakers need not be kept together.
        let mut last = first + 1;
        while last < words.len()
            && words[last].start.saturating_sub(words[last - 1].end) < 10 * PAUSE_NS
        {
            last += 1;
        }
        let found = run(&words[first..last], exclusive, all);
        out[first..last].copy_from_slice(&found);
        first = last;
    }
    out
}

fn run(words: &[Heard], exclusive: &[Span], all: &[Span]) -> Vec<Option<usize>> {
    let begin = words[0].start.saturating_sub(REACH_NS);
    let end = words.iter().map(|w| w.end).max().unwrap_or(0) + REACH_NS;
    let near = |spans: &[Span]| -> Vec<Span> {
        let spans = spans.iter().filter(|s| s.end > begin && s.start < end);
        spans.copied().collect()
    };
    let (exclusive, all) = (near(exclusive), near(all));
    let mut speakers: Vec<usize> = exclusive.iter().chain(&all).map(|s| s.speaker).collect();
    speakers.sort_unstable();
    speakers.dedup();
    if speakers.is_empty() {
        return vec![None; words.len()];
    }
    let likely: Vec<Vec<f64>> = words
        .iter()
        .map(|word| emissions(word, &speakers, &exclusive, &all))
        .collect();
    let path = viterbi(words, &likely, speakers.len());
    let is_near = |word: &Heard| {
        let (start, end) = (
            word.start.saturating_sub(REACH_NS),
            word.end.saturating_add(REACH_NS),
        );
        exclusive
            .iter()
            .chain(&all)
            .any(|s| s.end >= start && s.start <= end)
    };
    let mut out: Vec<Option<usize>> = path
        .iter()
        .zip(words)
        .map(|(&n, word)| is_near(word).then_some(speakers[n]))
        .collect();
    // Between two words of one speaker it is his, however far.
    for n in 0..out.len() {
        if out[n].is_none() {
            let before = out[..n].iter().rev().find_map(|s| *s);
            let after = out[n + 1..].iter().find_map(|s| *s);
            out[n] = before.filter(|b| Some(*b) == after);
        }
    }
    out
}

/// Logarithm of how likely each of `speakers` says the word.
fn emissions(word: &Heard, speakers: &[usize], exclusive: &[Span], all: &[Span]) -> Vec<f64> {
    let start = word.start.saturating_sub(BLUR_NS);
    let end = word.end.max(word.start).saturating_add(BLUR_NS);
    let cover = |spans: &[Span], speaker: usize| -> f64 {
        let own = spans.iter().filter(|s| s.speaker == speaker);
        let covered: u64 = own
            .map(|s| s.end.min(end).saturating_sub(s.start.max(start)))
            .sum();
        covered as f64 / (end - start) as f64
    };
    let mut likely: Vec<f64> = speakers
        .iter()
        .map(|&s| EXCLUSIVE_PART * cover(exclusive, s) + (1.0 - EXCLUSIVE_PART) * cover(all, s))
        .collect();
    if likely.iter().all(|l| *l <= 0.0) {
        // Nobody covers it: the nearer, the likelier.
        likely = speakers
            .iter()
            .map(|&speaker| {
                let own = exclusive.iter().chain(all).filter(|s| s.speaker == speaker);
                let away = own
                    .map(|s| s.start.saturating_sub(end).max(start.saturating_sub(s.end)))
                    .min()
                    .unwrap_or(u64::MAX);
                0.5 * (1.0 - away.min(REACH_NS) as f64 / REACH_NS as f64)
            })
            .collect();
    }
    let sum: f64 = likely.iter().sum::<f64>() + FLOOR * likely.len() as f64;
    likely.iter().map(|l| ((l + FLOOR) / sum).ln()).collect()
}

fn viterbi(words: &[Heard], likely: &[Vec<f64>], speakers: usize) -> Vec<usize> {
    let mut score = likely[0].clone();
    let mut from: Vec<Vec<usize>> = Vec::with_capacity(words.len());
    for (pair, likely) in words.windows(2).zip(&likely[1..]) {
        let cost = change_cost(&pair[0], &pair[1]);
        let best = (0..speakers)
            .max_by(|a, b| score[*a].total_cmp(&score[*b]))
            .unwrap_or(0);
        let mut back = Vec::with_capacity(speakers);
        let next = (0..speakers).map(|s| {
            let (stay, change) = (score[s], score[best] - cost);
            back.push(if stay >= change { s } else { best });
            stay.max(change) + likely[s]
        });
        score = next.collect();
        from.push(back);
    }
    let mut at = (0..speakers)
        .max_by(|a, b| score[*a].total_cmp(&score[*b]))
        .unwrap_or(0);
    let mut path = vec![at];
    for back in from.iter().rev() {
        at = back[at];
        path.push(at);
    }
    path.reverse();
    path
}

fn change_cost(word: &Heard, next: &Heard) -> f64 {
    let text = word.text.trim_end();
    let text = text.trim_end_matches(['"', '\'', '”', '’', '»', ')']);
    let ends = |marks: &[char]| text.ends_with(marks);
    if next.start.saturating_sub(word.end) >= PAUSE_NS
        || ends(&['.', '?', '!', '…', '。', '？', '！'])
    {
        0.0
    } else if ends(&[',', ';', ':', '-', '–', '—', '、', '，']) {
        AT_COMMA
    } else {
        IN_SENTENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn span(start: f64, end: f64, speaker: usize) -> Span {
        Span {
            start: (start * S as f64) as u64,
            end: (end * S as f64) as u64,
            speaker,
        }
    }

    /// A word every half second, 0.4 s long, from `start`.
    fn words(start: f64, text: &str) -> Vec<Heard<'_>> {
        let word = |(n, text)| {
            let at = ((start + 0.5 * n as f64) * S as f64) as u64;
            Heard {
                start: at,
                end: at + 2 * S / 5,
                text,
            }
        };
        text.split(' ').enumerate().map(word).collect()
    }

    fn said(text: &str, spans: &[Span]) -> Vec<Option<usize>> {
        attribute(&words(0.0, text), spans, spans)
    }

    #[test]
    fn a_change_lies_at_the_sentence_and_not_a_word_beside_it() {
        // The turn is cut in the middle of "now.", a fifth of a second early.
        let found = said(
            "we go now. yes we do",
            &[span(0.0, 1.15, 0), span(1.15, 3.0, 1)],
        );

        assert_eq!(found, [0, 0, 0, 1, 1, 1].map(Some));
    }

    #[test]
    fn one_word_half_under_another_is_no_island() {
        let found = said(
            "this is all one long sentence",
            &[span(0.0, 1.2, 0), span(1.2, 1.45, 1), span(1.45, 3.0, 0)],
        );

        assert_eq!(found, [Some(0); 6]);
    }

    #[test]
    fn a_word_of_agreement_in_between_stays() {
        let found = said(
            "so we went, yes, to town",
            &[span(0.0, 1.45, 0), span(1.45, 1.95, 1), span(1.95, 3.0, 0)],
        );

        assert_eq!(found, [0, 0, 0, 1, 0, 0].map(Some));
    }

    #[test]
    fn a_word_beside_a_turn_is_of_it_and_one_far_from_all_is_nobodys() {
        let near = said("well", &[span(0.7, 2.0, 4)]);
        assert_eq!(near, [Some(4)]);

        let far = said("well", &[span(3.0, 4.0, 4)]);
        assert_eq!(far, [None]);

        assert_eq!(said("well", &[]), [None]);
    }

    #[test]
    fn between_words_of_one_speaker_a_word_far_from_turns_is_his() {
        let spans = [span(0.0, 0.4, 2), span(3.5, 4.0, 2)];

        let found = said("a b c d e f g h", &spans);

        assert_eq!(found, [Some(2); 8]);
    }

    #[test]
    fn where_two_talk_at_once_the_one_heard_best_counts() {
        let exclusive = [span(0.0, 2.0, 0)];
        let all = [span(0.0, 2.0, 0), span(0.0, 2.0, 1)];

        let found = attribute(&words(0.0, "both talk here now"), &exclusive, &all);

        assert_eq!(found, [Some(0); 4]);
    }

    #[test]
    fn words_of_no_length_and_no_words_are_no_trouble() {
        assert_eq!(attribute(&[], &[], &[]), []);
        let word = Heard {
            start: S,
            end: S,
            text: "",
        };
        assert_eq!(attribute(&[word], &[span(0.0, 2.0, 1)], &[]), [Some(1)]);
    }
}
