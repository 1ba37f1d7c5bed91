// SPDX-License-Identifier: MPL-2.0
//! What both engines of Whisper share.

use std::time::Duration;

use super::{EngineError, Token};

/// Tokens a window may have: half of the decoder's 448 positions, less the marks before them.
pub(super) const MAX_TOKENS: usize = 220;
/// Longest prompt in characters, longest word in it: whisper.cpp's tokeniser recurses over a word.
const MAX_PROMPT_CHARS: usize = 1_000;
const MAX_PROMPT_WORD: usize = 64;
/// Tokens of a prompt that the decoder has room for.
pub(super) const MAX_PROMPT_TOKENS: usize = 223;
/// A jump of the alignment between neighbouring tokens that is worth reporting, in samples: 2 s.
const GAP_SAMPLES: u32 = 2 * 16_000;

/// A third of what a thread of a machine of 2020 does with f16 weights.
const SLOW_OPERATIONS_PER_SECOND: f64 = 10e9;

/// What a thread of a slow machine takes to encode a window.
pub(super) fn expected_window(positions: usize, width: usize, layers: usize) -> Duration {
    let [positions, width, layers] = [positions, width, layers].map(|n| n as f64);
    // Matrices of twelve times width by width, and each position looks at all others, twice.
    let layer = 12.0 * width * width * positions + 2.0 * positions * positions * width;
    Duration::from_secs_f64(2.0 * layer * layers / SLOW_OPERATIONS_PER_SECOND)
}

/// Codes of all languages that a Whisper model may know.
pub(super) fn languages() -> impl Iterator<Item = &'static str> {
    (0..=whisper_rs::get_lang_max_id()).filter_map(whisper_rs::get_lang_str)
}

/// Whether a model, multilingual or not, knows this ISO 639-1 code.
pub(super) fn knows_language(multilingual: bool, code: &str) -> bool {
    if multilingual {
        language_id(code).is_some()
    } else {
        code == "en"
    }
}

/// whisper.cpp's number of a language, checked first: an unknown one would give wrong text silently.
pub(super) fn language_id(code: &str) -> Option<i32> {
    let plain = code.len() <= 3 && code.bytes().all(|b| b.is_ascii_lowercase());
    if plain {
        whisper_rs::get_lang_id(code)
    } else {
        None
    }
}

/// The language with that number; English for none.
pub(super) fn language_code(number: usize) -> &'static str {
    let number = i32::try_from(number).unwrap_or(-1);
    whisper_rs::get_lang_str(number).unwrap_or("en")
}

/// Vocabulary first, then the prompt, cleaned for the tokenisers.
pub(super) fn prompt_text(prompt: &str, vocabulary: &[String]) -> String {
    let mut text = vocabulary.join(", ");
    if !text.is_empty() && !prompt.is_empty() {
        text.push_str(". ");
    }
    text.push_str(prompt);
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let mut out = String::new();
    for word in clean.split_whitespace() {
        let word: String = word.chars().take(MAX_PROMPT_WORD).collect();
        if out.chars().count() + word.chars().count() >= MAX_PROMPT_CHARS {
            break;
        }
        out.push(' ');
        out.push_str(&word);
    }
    out
}

/// Jumps of the alignment between neighbouring tokens that are worth telling, in samples.
pub(super) fn gaps(tokens: &[Token]) -> Vec<(u32, u32)> {
    let ends = tokens.iter().filter_map(|t| t.end);
    let mut previous = 0u32;
    let mut out = Vec::new();
    for end in ends {
        if end > previous.saturating_add(GAP_SAMPLES) {
            out.push((previous, end));
        }
        previous = previous.max(end);
    }
    out
}

/// What to say of a language that a model does not know.
pub(super) fn unknown_language(code: &str, model: &str) -> EngineError {
    EngineError::Unsupported(format!(
        "{model} does not know the language \"{code}\": set language-code to one it knows (en for English), \
         or to auto with a multilingual model"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_bounded_in_length_and_word_length() {
        let long = "x".repeat(20_000);

        assert_eq!(prompt_text(&long, &[]).chars().count(), MAX_PROMPT_WORD + 1);
        assert!(prompt_text(&"word ".repeat(9_000), &[]).chars().count() <= MAX_PROMPT_CHARS);
        assert_eq!(prompt_text("b\0c", &["A".into(), "B".into()]), " A, B. b c");
    }

    #[test]
    fn a_jump_of_the_alignment_is_a_gap() {
        let token = |end: u32| Token {
            id: 1,
            bytes: vec![],
            probability: 1.0,
            start: Some(0),
            end: Some(end),
        };

        let found = gaps(&[token(8_000), token(100_000), token(110_000)]);

        assert_eq!(found, vec![(8_000, 100_000)]);
    }
}
