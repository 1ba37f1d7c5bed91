// SPDX-License-Identifier: MPL-2.0
//! Joins two windows that overlap because no pause was found to cut at.

use crate::audio::{SAMPLE_RATE, SampleIndex};

use super::file::Spoken;
use super::{RawWord, folded};

/// Words on either side that are compared.
const COMPARED: usize = 12;
/// The same word at about the same time, in samples: 0.3 s.
const SAME_TIME: u64 = SAMPLE_RATE as u64 * 3 / 10;

/// Removes what both windows have heard: `first` keeps up to the middle of the words they share, `second`
/// from there; without any the cut decides. `cut` is where `first` ends.
pub fn join(first: &mut Spoken, second: &mut Spoken, cut: SampleIndex) {
    let tail = first.words.len().saturating_sub(COMPARED);
    let head = second.words.len().min(COMPARED);
    if let Some((a, b, len)) = longest_common(&first.words[tail..], &second.words[..head]) {
        let keep = tail + a + len.div_ceil(2);
        let from = b + len.div_ceil(2);
        truncate(first, keep);
        drop_front(second, from);
        return;
    }
    // Half of the overlap each.
    let middle = SampleIndex((second.start.0 + cut.0) / 2);
    let before = |w: &RawWord| (w.start.0 + w.end.0) / 2 < middle.0;
    let keep = first.words.iter().take_while(|w| before(w)).count();
    let from = second.words.iter().take_while(|w| before(w)).count();
    truncate(first, keep);
    drop_front(second, from);
}

fn truncate(spoken: &mut Spoken, len: usize) {
    spoken.words.truncate(len);
    spoken.tokens.truncate(len);
}

fn drop_front(spoken: &mut Spoken, count: usize) {
    spoken.words.drain(..count.min(spoken.words.len()));
    spoken.tokens.drain(..count.min(spoken.tokens.len()));
}

/// Longest run of the same words at about the same times: where in `a`, where in `b`, how many.
fn longest_common(a: &[RawWord], b: &[RawWord]) -> Option<(usize, usize, usize)> {
    let same = |x: &RawWord, y: &RawWord| {
        folded(&x.text) == folded(&y.text) && x.start.0.abs_diff(y.start.0) <= SAME_TIME
    };
    let mut best: Option<(usize, usize, usize)> = None;
    for i in 0..a.len() {
        for j in 0..b.len() {
            let len = a[i..]
                .iter()
                .zip(&b[j..])
                .take_while(|(x, y)| same(x, y))
                .count();
            if len > best.map_or(0, |(_, _, l)| l) {
                best = Some((i, j, len));
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::SegmentInfo;

    fn spoken(start: u64, words: &[(&str, u64)]) -> Spoken {
        let words: Vec<RawWord> = words
            .iter()
            .map(|(text, at)| RawWord {
                text: format!(" {text}"),
                start: SampleIndex(*at),
                end: SampleIndex(at + 4_000),
                probability: 1.0,
                confidence: 1.0,
            })
            .collect();
        Spoken {
            start: SampleIndex(start),
            end: SampleIndex(start + 480_000),
            tokens: vec![Vec::new(); words.len()],
            words,
            info: SegmentInfo::default(),
            complete: true,
        }
    }

    fn text(spoken: &Spoken) -> String {
        spoken.words.iter().map(|w| w.text.as_str()).collect()
    }

    #[test]
    fn shared_words_are_said_once() {
        let mut a = spoken(
            0,
            &[
                ("we", 400_000),
                ("will", 460_000),
                ("never", 466_000),
                ("for", 476_000),
            ],
        );
        let mut b = spoken(
            464_000,
            &[("Never", 467_000), ("forget", 474_000), ("it", 485_000)],
        );

        join(&mut a, &mut b, SampleIndex(480_000));

        assert_eq!(text(&a) + &text(&b), " we will never forget it");
    }

    #[test]
    fn without_shared_words_the_middle_of_the_overlap_decides() {
        let mut a = spoken(0, &[("one", 462_000), ("two", 476_000)]);
        let mut b = spoken(464_000, &[("ones", 464_000), ("too", 476_500)]);

        join(&mut a, &mut b, SampleIndex(480_000));

        assert_eq!(text(&a) + &text(&b), " one too");
    }
}
