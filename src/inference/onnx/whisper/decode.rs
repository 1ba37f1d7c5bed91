// SPDX-License-Identifier: MPL-2.0
//! The next token of a text: what may not follow, what is most likely or drawn by chance, and when to stop.
//!
//! Source: openai-whisper, `decoding.py`.

use crate::inference::onnx::lanes::{sum_of_exponentials, widest};

use super::vocabulary::Vocabulary;

/// Values looked at together: most blocks are so far below the largest value that they add nothing.
const BLOCK: usize = 64;
/// Values that are done together.
const LANES: usize = 16;
/// A value so far below the largest, in natural logarithms, is less than one in eight million of it.
const NEGLIGIBLE: f32 = 16.0;
/// A text that ends in so many copies of the same, over so many tokens, has been caught in a loop.
const LOOP_COPIES: usize = 4;
const LOOP_TOKENS: usize = 40;
/// Longest part that is looked for in a loop, in tokens.
const LOOP_PART_MAX: usize = 16;

/// A token and how likely it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub token: u32,
    /// Natural logarithm of its probability among all that might have followed, at temperature 0.
    pub logprob: f32,
}

/// Takes out of `logits` what may not follow: `first` at the start of a text.
pub(super) fn forbid(logits: &mut [f32], vocabulary: &Vocabulary, first: bool) {
    logits[vocabulary.never()].fill(f32::NEG_INFINITY);
    for token in vocabulary.suppressed() {
        logits[*token as usize] = f32::NEG_INFINITY;
    }
    if first {
        for token in vocabulary.not_first() {
            logits[token as usize] = f32::NEG_INFINITY;
        }
    }
}

/// The most likely token at a temperature of 0; one drawn by chance above. `None` where the values are no numbers.
pub(super) fn choose(logits: &[f32], temperature: f32, chance: &mut Chance) -> Option<Choice> {
    let (tops, max) = tops(logits);
    let best = largest(logits, &tops, max)?;
    let token = if temperature > 0.0 {
        draw(logits, max, temperature, chance).unwrap_or(best)
    } else {
        best
    };
    let logprob = logits[token] - max - sum_exp(logits, &tops, max).ln();
    logprob.is_finite().then_some(Choice {
        token: token as u32,
        logprob,
    })
}

/// The `count` most likely tokens, the likeliest first. `None` where the values are no numbers.
pub(super) fn likeliest(logits: &[f32], count: usize) -> Option<Vec<Choice>> {
    let (tops, max) = tops(logits);
    if !max.is_finite() || count == 0 {
        return None;
    }
    let all = max + sum_exp(logits, &tops, max).ln();
    if !all.is_finite() {
        return None;
    }
    // So many blocks have a value that is no less than this: nothing below it is among the likeliest.
    let mut sorted = tops.clone();
    let nth = count.min(sorted.len()) - 1;
    let (_, least, _) = sorted.select_nth_unstable_by(nth, |a, b| b.total_cmp(a));
    let mut least = *least;
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    for (n, values) in logits.chunks(BLOCK).enumerate() {
        if tops[n] < least || tops[n] == f32::NEG_INFINITY {
            continue;
        }
        for (at, value) in values.iter().enumerate() {
            let is_none = *value == f32::NEG_INFINITY;
            if *value < least || is_none || (best.len() == count && *value <= best[count - 1].0) {
                continue;
            }
            // Before those that are no smaller: of equals the first.
            let place = best.partition_point(|(v, _)| v >= value);
            best.insert(place, (*value, (n * BLOCK + at) as u32));
            best.truncate(count);
            if best.len() == count {
                least = least.max(best[count - 1].0);
            }
        }
    }
    let choice = |(value, token)| Choice {
        token,
        logprob: value - all,
    };
    Some(best.into_iter().map(choice).collect())
}

/// Probability of one token among all, from values that nothing was taken out of.
pub(super) fn probability(logits: &[f32], token: u32) -> Option<f32> {
    let (tops, max) = tops(logits);
    largest(logits, &tops, max)?;
    let own = logits.get(token as usize)?;
    let p = (own - max).exp() / sum_exp(logits, &tops, max);
    p.is_finite().then_some(p.clamp(0.0, 1.0))
}

/// The largest value among `range`.
pub(super) fn most_likely(logits: &[f32], range: std::ops::Range<usize>) -> Option<u32> {
    let start = range.start;
    let logits = logits.get(range)?;
    let (tops, max) = tops(logits);
    Some((start + largest(logits, &tops, max)?) as u32)
}

/// The largest value of each block, and of all.
fn tops(logits: &[f32]) -> (Vec<f32>, f32) {
    let mut tops = Vec::with_capacity(logits.len().div_ceil(BLOCK));
    let max = widest(
        #[inline(always)]
        || {
            // A loop: what iterators call would not become part of this.
            for values in logits.chunks(BLOCK) {
                tops.push(top(values));
            }
            top(&tops)
        },
    );
    (tops, max)
}

/// Where the largest value is, the first of equals. `None` if there is none or it is no number.
fn largest(logits: &[f32], tops: &[f32], max: f32) -> Option<usize> {
    if !max.is_finite() {
        return None;
    }
    let block = BLOCK * tops.iter().position(|top| *top == max)?;
    let at = logits.get(block..)?.iter().position(|v| *v == max)?;
    Some(block + at)
}

/// The largest of some values; what is no number counts for nothing. Lanes that do not wait for each other are done
/// together by the processor.
#[inline(always)]
fn top(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = larger(*lane, *value);
    }
    // By halves: one after the other, each would wait for the one before.
    let mut half = LANES / 2;
    while half > 0 {
        for n in 0..half {
            lanes[n] = larger(lanes[n], lanes[n + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of `exp(value - max)`.
fn sum_exp(logits: &[f32], tops: &[f32], max: f32) -> f32 {
    let blocks = logits.chunks(BLOCK).zip(tops);
    let blocks = blocks.filter(|(_, top)| **top > max - NEGLIGIBLE);
    sum_of_exponentials(blocks.map(|(values, _)| values), max)
}

fn draw(logits: &[f32], max: f32, temperature: f32, chance: &mut Chance) -> Option<usize> {
    let counts = || {
        let values = logits.iter().enumerate();
        values.filter(|(_, value)| **value > max - NEGLIGIBLE)
    };
    let share = |value: &f32| ((value - max) / temperature).exp();
    let sum: f32 = counts().map(|(_, value)| share(value)).sum();
    let mut left = chance.next() * sum;
    let mut last = None;
    for (at, value) in counts() {
        left -= share(value);
        last = Some(at);
        if left <= 0.0 {
            break;
        }
    }
    last
}

/// Whether a text ends here: with the end token, with `most` tokens, or in a loop.
pub(super) fn is_over(tokens: &[Choice], vocabulary: &Vocabulary, most: usize) -> bool {
    tokens.last().is_some_and(|c| c.token == vocabulary.end())
        || tokens.len() >= most
        || loops(tokens)
}

/// The text ends in copies of the same part.
fn loops(tokens: &[Choice]) -> bool {
    (1..=LOOP_PART_MAX).any(|part| {
        let long = LOOP_TOKENS.max(LOOP_COPIES * part);
        tokens.len() >= long + part && {
            let end = &tokens[tokens.len() - long..];
            let before = &tokens[tokens.len() - long - part..];
            end.iter().zip(before).all(|(a, b)| a.token == b.token)
        }
    })
}

/// Mean natural logarithm of the tokens' probabilities.
pub(super) fn mean_logprob(tokens: &[Choice]) -> f32 {
    let sum: f32 = tokens.iter().map(|c| c.logprob).sum();
    sum / tokens.len().max(1) as f32
}

/// Numbers by chance, the same ones each time: a text does not depend on when it was asked for.
/// (SplitMix64 by Sebastiano Vigna.)
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// The sequence with that number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// 0 up to, not including, 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(tokens: &[u32]) -> Vec<Choice> {
        let certain = |token: &u32| Choice {
            token: *token,
            logprob: 0.0,
        };
        tokens.iter().map(certain).collect()
    }

    #[test]
    fn the_largest_value_is_chosen_and_its_share_is_its_probability() {
        let mut logits = vec![-30.0; 300];
        logits[150] = 3.0f32.ln();
        logits[299] = 1.0f32.ln();

        let choice = choose(&logits, 0.0, &mut Chance::new(0)).unwrap();

        assert_eq!(choice.token, 150);
        assert!((choice.logprob.exp() - 0.75).abs() < 1e-6);
        assert!((probability(&logits, 299).unwrap() - 0.25).abs() < 1e-6);
        assert_eq!(most_likely(&logits, 200..300), Some(299));
    }

    #[test]
    fn the_likeliest_are_in_order_wherever_they_stand() {
        let mut logits = vec![f32::NEG_INFINITY; 1000];
        for (token, share) in [
            (999, 0.5f32),
            (3, 0.2),
            (64, 0.1),
            (500, 0.1),
            (65, 0.06),
            (0, 0.04),
        ] {
            logits[token] = share.ln();
        }

        let found = likeliest(&logits, 4).unwrap();

        let tokens: Vec<u32> = found.iter().map(|c| c.token).collect();
        assert_eq!(tokens, [999, 3, 64, 500]);
        assert!((found[1].logprob.exp() - 0.2).abs() < 1e-6);
        assert_eq!(likeliest(&logits, 10).unwrap().len(), 6);
        assert_eq!(likeliest(&[f32::NAN; 70], 2), None);
    }

    #[test]
    fn sums_of_exponentials_are_those_of_the_library() {
        let values: Vec<f32> = (0..1003).map(|n| -((n * 37 % 200) as f32) / 9.0).collect();
        let exact: f64 = values.iter().map(|v| f64::from(*v).exp()).sum();
        let (tops, max) = tops(&values);
        assert_eq!(max, 0.0);
        assert!((f64::from(sum_exp(&values, &tops, max)) / exact - 1.0).abs() < 1e-5);
    }

    #[test]
    fn the_likeliest_are_those_that_sorting_finds() {
        let mut logits: Vec<f32> = (0..5003u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as f32 / 8192.0)
            .collect();
        logits[77] = logits[4000];
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));

        for count in [1, 6, 100] {
            let found = likeliest(&logits, count).unwrap();
            let tokens: Vec<usize> = found.iter().map(|c| c.token as usize).collect();
            assert_eq!(tokens, order[..count]);
        }
    }

    #[test]
    fn chance_follows_the_probabilities_and_repeats_itself() {
        let mut logits = vec![f32::NEG_INFINITY; 200];
        logits[10] = 3.0f32.ln();
        logits[190] = 1.0f32.ln();
        let drawn = |temperature: f32| {
            let mut chance = Chance::new(7);
            let draws = (0..4000).map(|_| choose(&logits, temperature, &mut chance).unwrap());
            draws.filter(|c| c.token == 190).count()
        };

        // A quarter at a temperature of 1; one in ten at a half, where probabilities are squared.
        assert!((900..1100).contains(&drawn(1.0)), "{}", drawn(1.0));
        assert!((330..470).contains(&drawn(0.5)), "{}", drawn(0.5));
        assert_eq!(drawn(0.5), drawn(0.5));
    }

    #[test]
    fn values_that_are_no_numbers_give_no_token() {
        let mut chance = Chance::new(0);

        assert_eq!(choose(&[f32::NEG_INFINITY; 70], 0.0, &mut chance), None);
        assert_eq!(choose(&[f32::NAN; 70], 0.0, &mut chance), None);
        assert_eq!(choose(&[1.0, f32::INFINITY], 0.0, &mut chance), None);
        assert_eq!(choose(&[1.0, f32::NAN], 0.0, &mut chance), None);
    }

    #[test]
    fn a_text_that_goes_round_is_stopped_and_one_that_says_a_word_often_is_not() {
        let text: Vec<u32> = (100..130).collect();
        let with =
            |tail: &[u32], copies: usize| choices(&[&text[..], &tail.repeat(copies)].concat());

        assert!(!loops(&with(&[5], 40)));
        assert!(loops(&with(&[5], 41)));
        assert!(!loops(&with(&[1, 2, 3, 4], 10)));
        assert!(loops(&with(&[1, 2, 3, 4], 11)));
        assert!(!loops(&with(&text[..17], 5)));
    }
}
