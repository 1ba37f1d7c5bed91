// SPDX-License-Identifier: MPL-2.0
//! What a name may be, and which names resemble one.

use unicode_normalization::UnicodeNormalization;

use super::error::Problem;
use super::{NAME_BYTES_MAX, Voice, VoiceId};

/// Names to suggest at most.
const NEAREST_MAX: usize = 3;
/// From here on a name resembles another.
const NEAREST_FROM: f64 = 0.7;

/// A name as it is kept: without white space at its ends, and composed (NFC), so that an ü is one letter
/// wherever it was typed.
///
/// # Errors
/// If it is empty, too long, has control characters, or looks like what stands for those without a name.
pub fn normal(name: &str) -> Result<String, Problem> {
    let bad = |why| {
        let name = name.chars().take(NAME_BYTES_MAX / 4).collect();
        Err(Problem::BadName { name, why })
    };
    // Looked at first, so that nothing long is ever composed.
    if name.trim().len() > NAME_BYTES_MAX {
        return bad("it has more than 256 bytes");
    }
    let normal = composed(name);
    match normal.as_str() {
        "" => bad("it is empty"),
        n if n.len() > NAME_BYTES_MAX => bad("it has more than 256 bytes"),
        n if n.chars().any(char::is_control) => bad("it has control characters"),
        n if speaker_number(n).is_some() => bad(
            "this is what voices without a name are called; give the id, as `scribe-voices list` shows it",
        ),
        n if n.parse::<VoiceId>().is_ok() => bad("this is the form of an id"),
        _ => Ok(normal),
    }
}

/// Composed and trimmed, any text.
pub(super) fn composed(text: &str) -> String {
    text.trim().nfc().collect()
}

/// The number in "Speaker 7", in any capitals.
pub(super) fn speaker_number(text: &str) -> Option<u32> {
    let (word, digits) = text.trim().split_once(' ')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    (word.eq_ignore_ascii_case("speaker") && is_number).then(|| digits.parse().ok())?
}

/// What `who` could mean among `voices` if capitals do not count.
pub(super) fn alike<'a>(who: &str, voices: &'a [Voice]) -> Vec<&'a Voice> {
    let who = who.to_lowercase();
    let is_alike = |voice: &&Voice| voice.label().to_lowercase() == who;
    voices.iter().filter(is_alike).collect()
}

/// The labels that resemble `who` most.
pub(super) fn nearest(who: &str, voices: &[Voice]) -> Vec<String> {
    let who: String = who.chars().take(NAME_BYTES_MAX).collect();
    let who = who.to_lowercase();
    let mut near: Vec<_> = voices
        .iter()
        .map(|voice| {
            let label = voice.label();
            (strsim::jaro_winkler(&who, &label.to_lowercase()), label)
        })
        .filter(|(likeness, _)| *likeness >= NEAREST_FROM)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.truncate(NEAREST_MAX);
    near.into_iter().map(|(_, label)| label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_composed_and_without_white_space_at_its_ends() {
        assert_eq!(normal(" Zoe\u{308} O'Hara-李 ").unwrap(), "Zoë O'Hara-李");
        assert_eq!(normal("../../etc/passwd").unwrap(), "../../etc/passwd");
        assert_eq!(normal("Robert'); DROP TABLE voice;--").unwrap().len(), 29);
    }

    #[test]
    fn what_would_be_taken_for_something_else_is_no_name() {
        let long = "ü".repeat(NAME_BYTES_MAX / 2 + 1);
        for wrong in [
            "",
            " \n ",
            "a\u{0}b",
            "a\u{1b}[31mb",
            "a\nb",
            "Speaker 7",
            "speaker 7",
            "voice-00abcdef01234567",
            &long,
        ] {
            assert!(
                matches!(normal(wrong), Err(Problem::BadName { .. })),
                "{wrong:?}"
            );
        }
        assert!(normal("Speaker Pelosi").is_ok());
        assert!(normal(&"ü".repeat(NAME_BYTES_MAX / 2)).is_ok());
    }
}
