// SPDX-License-Identifier: MPL-2.0
//! NIST's segment time marks: file, channel, speaker, start, end, text.

use std::io;

use super::{cue_text, field, seconds, speaker_of};
use crate::transcript::Cue;

pub(super) fn cue(
    file_id: &str,
    (start_ms, end_ms): (u64, u64),
    cue: &Cue,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let speaker = speaker_of(cue.speaker.as_deref(), cue.speaker_id.as_deref());
    let speaker = field(&speaker.unwrap_or_default(), "unknown");
    // Braces mark alternatives, angle brackets at the start a label.
    let text = cue_text(cue).replace(['{', '}'], "");
    let text = text.trim().trim_start_matches('<').trim_start();
    writeln!(
        out,
        "{file_id} 1 {speaker} {} {} {text}",
        seconds(start_ms),
        seconds(end_ms)
    )
}
