// SPDX-License-Identifier: MPL-2.0
//! Tokens to words with times.
//!
//! Bytes are joined before they are read as UTF-8: a character may span tokens. Which tokens make a word:
//! `split_to_word_tokens` in openai-whisper's tokenizer.py. Times come from the alignment, less the model's
//! constant lateness, held within the speech that voice activity has found.

use crate::audio::SAMPLE_RATE;
use crate::inference::{Decoded, Token};

use super::RawWord;
use super::packer::Plan;

const MS: i64 = SAMPLE_RATE as i64 / 1000;
/// Shortest word.
const LEAST: i64 = 60 * MS;
/// A word may begin this long before the speech that holds its end.
const BEFORE_SPEECH: i64 = 50 * MS;
/// A word may end this long after the speech that holds its start.
const AFTER_SPEECH: i64 = 100 * MS;
/// The median word is taken to be no longer than this.
const MEDIAN_MOST: i64 = 700 * MS;
/// Languages that are written without spaces: each character is a word.
const UNSPACED: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];
const JOIN_NEXT: &str = "\"'“¿([{-«„";
const JOIN_PREVIOUS: &str = "\"'.。,，!！?？:：”)]}、»…;；";

#[derive(Clone, Debug, Default)]
struct Unit {
    text: String,
    tokens: Vec<u32>,
    probability: f32,
    least: f32,
    start: Option<i64>,
    end: Option<i64>,
    /// End of the last token that is not punctuation.
    spoken_end: Option<i64>,
}

/// Words of a window with their token ids. `offset` is the model's constant lateness in samples.
pub fn words(decoded: &Decoded, plan: &Plan, offset: i32) -> Vec<(RawWord, Vec<u32>)> {
    let mut units = units(
        &decoded.tokens,
        UNSPACED.contains(&decoded.language.as_str()),
    );
    units.retain(|u| !u.text.trim().is_empty());
    let len = plan.len() as i64;
    time(&mut units, plan.speech(), i64::from(offset), len);
    units
        .into_iter()
        .map(|unit| {
            let (start, end) = (unit.start.unwrap_or(0), unit.end.unwrap_or(0));
            let start = plan.stream(start.clamp(0, len) as u32);
            let end = plan.stream(end.clamp(0, len) as u32).max(start.plus(1));
            let word = RawWord {
                text: unit.text,
                start,
                end,
                probability: unit.probability,
                // Until it is fitted to labelled words: asr.md 1.8.
                confidence: (unit.least * unit.probability).max(0.0).sqrt(),
            };
            (word, unit.tokens)
        })
        .collect()
}

fn units(tokens: &[Token], unspaced: bool) -> Vec<Unit> {
    let mut out: Vec<Unit> = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    let mut pending: Vec<&Token> = Vec::new();
    for token in tokens {
        bytes.extend_from_slice(&token.bytes);
        pending.push(token);
        match std::str::from_utf8(&bytes) {
            Ok(text) => add(&mut out, text, &pending, unspaced),
            // An incomplete character waits for its next token; at the end it is left out.
            Err(e) if e.error_len().is_none() => continue,
            Err(_) => add(
                &mut out,
                &String::from_utf8_lossy(&bytes),
                &pending,
                unspaced,
            ),
        }
        bytes.clear();
        pending.clear();
    }
    join_next(out)
}

fn add(out: &mut Vec<Unit>, text: &str, tokens: &[&Token], unspaced: bool) {
    let bare = text.trim();
    let punctuation = !bare.is_empty() && bare.chars().all(|c| JOIN_PREVIOUS.contains(c));
    let begins = text.starts_with(' ') || unspaced || out.is_empty();
    let joins = punctuation && !text.starts_with(' ') && !out.is_empty();
    let probability =
        |f: fn(f32, f32) -> f32, init| tokens.iter().map(|t| t.probability).fold(init, f);
    let sum: f32 = tokens.iter().map(|t| t.probability).sum();
    let least = probability(f32::min, 1.0);
    let start = tokens.first().and_then(|t| t.start).map(i64::from);
    let end = tokens.last().and_then(|t| t.end).map(i64::from);
    let ids = tokens.iter().map(|t| t.id);
    if begins && !joins {
        out.push(Unit {
            text: text.to_owned(),
            tokens: ids.collect(),
            probability: sum / tokens.len() as f32,
            least,
            start,
            end,
            spoken_end: if punctuation { None } else { end },
        });
        return;
    }
    let Some(last) = out.last_mut() else { return };
    let (had, has) = (last.tokens.len() as f32, tokens.len() as f32);
    last.text.push_str(text);
    last.tokens.extend(ids);
    if !punctuation {
        last.probability = (last.probability * had + sum) / (had + has);
        last.least = last.least.min(least);
        last.spoken_end = end.or(last.spoken_end);
    }
    last.end = end.or(last.end);
}

/// Opening quotes and brackets that stand alone belong to the word after them.
fn join_next(units: Vec<Unit>) -> Vec<Unit> {
    let mut out: Vec<Unit> = Vec::new();
    let mut opening: Option<Unit> = None;
    for mut unit in units {
        if let Some(before) = opening.take() {
            unit.text = format!("{}{}", before.text, unit.text.trim_start());
            unit.tokens = before.tokens.into_iter().chain(unit.tokens).collect();
        }
        let bare = unit.text.trim();
        if !bare.is_empty() && bare.chars().all(|c| JOIN_NEXT.contains(c)) {
            opening = Some(unit);
        } else {
            out.push(unit);
        }
    }
    out.extend(opening);
    out
}

/// Gives every unit a start and an end: in order, not overlapping, within speech.
fn time(units: &mut [Unit], speech: &[(u32, u32)], offset: i64, len: i64) {
    let timed = units
        .iter()
        .filter(|u| u.end.is_some_and(|e| u.start.is_some_and(|s| e > s)))
        .count();
    if timed * 10 < units.len() * 7 {
        spread(units, speech, len);
        return;
    }
    for unit in units.iter_mut() {
        unit.start = unit.start.map(|s| (s - offset).max(0));
        // The time of a comma is the pause behind the word.
        unit.end = unit.spoken_end.or(unit.end).map(|e| (e - offset).max(0));
    }
    clamp_to_speech(units, speech);
    bound_length(units);
    order(units, len);
}

/// Without an alignment: characters evenly over the speech.
fn spread(units: &mut [Unit], speech: &[(u32, u32)], len: i64) {
    let whole = [(0, u32::try_from(len).unwrap_or(u32::MAX))];
    let speech = if speech.is_empty() { &whole } else { speech };
    let total: i64 = speech.iter().map(|(a, b)| i64::from(b - a)).sum();
    let characters: i64 = units
        .iter()
        .map(|u| u.text.chars().count() as i64)
        .sum::<i64>()
        .max(1);
    let place = |spoken: i64| {
        let mut left = spoken;
        for (a, b) in speech {
            let here = i64::from(b - a);
            if left <= here {
                return i64::from(*a) + left;
            }
            left -= here;
        }
        len
    };
    let mut at = 0;
    for unit in units.iter_mut() {
        unit.start = Some(place(at * total / characters));
        at += unit.text.chars().count() as i64;
        unit.end = Some(place(at * total / characters));
    }
    order(units, len);
}

fn clamp_to_speech(units: &mut [Unit], speech: &[(u32, u32)]) {
    if speech.is_empty() {
        return;
    }
    for unit in units {
        let (Some(start), Some(end)) = (unit.start, unit.end) else {
            continue;
        };
        // The speech that holds the end, or the last one before it.
        let of_end = speech
            .iter()
            .rfind(|(a, _)| i64::from(*a) < end - LEAST / 2);
        let mut start = start;
        if let Some((a, _)) = of_end {
            start = start.max(i64::from(*a) - BEFORE_SPEECH);
        }
        let of_start = speech.iter().find(|(_, b)| i64::from(*b) > start);
        let end = match of_start {
            Some((_, b)) => end.min(i64::from(*b) + AFTER_SPEECH),
            None => end,
        };
        unit.start = Some(start);
        unit.end = Some(end.max(start + LEAST));
    }
}

/// A word that is far longer than its neighbours has swallowed a pause.
fn bound_length(units: &mut [Unit]) {
    let mut lengths: Vec<i64> = units
        .iter()
        .filter_map(|u| Some(u.end? - u.start?))
        .filter(|l| *l > LEAST)
        .collect();
    if lengths.len() < 3 {
        return;
    }
    lengths.sort_unstable();
    let most = 2 * lengths[lengths.len() / 2].min(MEDIAN_MOST);
    let mut after_sentence = true;
    for unit in units {
        let (Some(start), Some(end)) = (unit.start, unit.end) else {
            continue;
        };
        if end - start > most.max(LEAST * 4) {
            // After a sentence the pause came first, else it followed.
            if after_sentence {
                unit.start = Some(end - most);
            } else {
                unit.end = Some(start + most.max(LEAST * 4));
            }
        }
        after_sentence = unit
            .text
            .trim_end()
            .ends_with(['.', '!', '?', '。', '！', '？']);
    }
}

fn order(units: &mut [Unit], len: i64) {
    let mut at = 0;
    for unit in units.iter_mut() {
        let start = unit.start.unwrap_or(at).max(at);
        let end = unit.end.unwrap_or(start + LEAST).max(start + LEAST);
        unit.start = Some(start);
        unit.end = Some(end);
        at = end;
    }
    // From the back, so that the last words stay within the window.
    let mut limit = len.max(units.len() as i64);
    for unit in units.iter_mut().rev() {
        let end = unit.end.unwrap_or(limit).min(limit);
        let start = unit.start.unwrap_or(end).min(end - 1).max(0);
        unit.end = Some(end);
        unit.start = Some(start);
        limit = start;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn token(text: &[u8], start: u32, end: u32) -> Token {
        Token {
            id: 1,
            bytes: text.to_vec(),
            probability: 0.5,
            start: Some(start),
            end: Some(end),
        }
    }

    fn texts(tokens: &[Token], unspaced: bool) -> Vec<String> {
        units(tokens, unspaced)
            .into_iter()
            .map(|u| u.text)
            .collect()
    }

    #[test]
    fn characters_that_span_tokens_are_whole() {
        let bytes = " 日本🎉".as_bytes();
        let tokens: Vec<Token> = bytes.iter().map(|b| token(&[*b], 0, 1)).collect();

        assert_eq!(texts(&tokens, false), [" 日本🎉"]);
        assert_eq!(texts(&tokens[..tokens.len() - 1], false), [" 日本"]);
    }

    #[test]
    fn punctuation_joins_the_word_it_belongs_to() {
        let tokens: Vec<Token> = [" He", "llo", ",", " \"", "you", "\"", "."]
            .iter()
            .map(|t| token(t.as_bytes(), 0, 1))
            .collect();

        assert_eq!(texts(&tokens, false), [" Hello,", " \"you\"."]);
    }

    #[test]
    fn without_spaces_each_character_is_a_word() {
        let tokens: Vec<Token> = ["今日", "は", "。"]
            .iter()
            .map(|t| token(t.as_bytes(), 0, 1))
            .collect();

        assert_eq!(texts(&tokens, true), ["今日", "は。"]);
    }

    fn timed(tokens: &[Token], speech: &[(u32, u32)], len: i64) -> Vec<(i64, i64)> {
        let mut units = units(tokens, false);
        time(&mut units, speech, 0, len);
        units
            .iter()
            .map(|u| (u.start.unwrap(), u.end.unwrap()))
            .collect()
    }

    #[test]
    fn the_first_word_begins_where_the_speech_does() {
        let tokens = [
            token(b" one", 0, 40_000),
            token(b" two", 40_000, 48_000),
            token(b" three", 48_000, 56_000),
        ];

        let times = timed(&tokens, &[(32_000, 64_000)], 100_000);

        assert!(times[0].0 >= 32_000 - BEFORE_SPEECH, "{times:?}");
    }

    #[test]
    fn the_last_word_before_a_pause_does_not_last_through_it() {
        let tokens = [
            token(b" one", 0, 8_000),
            token(b" two", 8_000, 60_000),
            token(b" three", 60_000, 68_000),
            token(b" four", 68_000, 76_000),
        ];

        let times = timed(&tokens, &[(0, 16_000), (59_000, 80_000)], 100_000);

        assert!(
            times[1].1 <= 16_000 + AFTER_SPEECH || times[1].0 >= 58_000,
            "{times:?}"
        );
        assert!(times.windows(2).all(|w| w[0].1 <= w[1].0), "{times:?}");
    }

    #[test]
    fn words_without_an_alignment_are_spread_over_the_speech() {
        let mut tokens = [token(b" one", 0, 0), token(b" two", 0, 0)];
        for t in &mut tokens {
            t.start = None;
            t.end = None;
        }

        let times = timed(&tokens, &[(16_000, 32_000)], 100_000);

        assert_eq!(times, [(16_000, 24_000), (24_000, 32_000)]);
    }
}
