// SPDX-License-Identifier: MPL-2.0
//! NIST's conversation time marks: file, channel, start, duration, word, confidence.

use std::io;

use super::{cue_text, field, seconds};
use crate::transcript::{Cue, cues, text};

/// Returns the start of the last word in milliseconds; none starts before `earliest_ms`.
pub(super) fn cue(
    file_id: &str,
    earliest_ms: u64,
    cue: &Cue,
    out: &mut impl io::Write,
) -> io::Result<u64> {
    let spread;
    let words = if cue.words.is_empty() {
        spread = cues::spread(&cue_text(cue), cue.start, cue.end);
        &spread
    } else {
        &cue.words
    };
    let mut last_ms = earliest_ms;
    for word in words {
        if text::one_line(&word.text).is_empty() {
            continue;
        }
        let start_ms = word.start.millis().max(last_ms);
        let length_ms = word.end.millis().saturating_sub(start_ms).max(1);
        let confidence = if word.confidence.is_finite() {
            word.confidence.clamp(0.0, 1.0)
        } else {
            0.0
        };
        writeln!(
            out,
            "{file_id} 1 {} {} {} {confidence:.3}",
            seconds(start_ms),
            seconds(length_ms),
            field(&word.text, "_"),
        )?;
        last_ms = start_ms;
    }
    Ok(last_ms)
}
