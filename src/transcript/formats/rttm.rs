// SPDX-License-Identifier: MPL-2.0
//! NIST's Rich Transcription Time Marked: who spoke when.

use std::io;

use super::{field, seconds, speaker_of, spoken_span};
use crate::transcript::{Cue, Turn};

/// Words of one speaker that are this close are one turn, where no turns were given.
const JOIN_MS: u64 = 1_000;

/// Writes the turns; without any, those that the words' speakers make.
pub(super) fn document(
    file_id: &str,
    cues: &[Cue],
    turns: Vec<Turn>,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let mut spans: Vec<(u64, u64, String)> = if turns.is_empty() {
        spans_of_cues(cues)
    } else {
        turns
            .iter()
            .map(|t| {
                let name = speaker_of(t.speaker.as_deref(), Some(&t.speaker_id));
                (t.start.millis(), t.end.millis(), name.unwrap_or_default())
            })
            .collect()
    };
    spans.sort_by_key(|&(start, _, _)| start);
    for (start, end, speaker) in spans {
        writeln!(
            out,
            "SPEAKER {file_id} 1 {} {} <NA> <NA> {} <NA> <NA>",
            seconds(start),
            seconds(end.saturating_sub(start).max(1)),
            field(&speaker, "unknown"),
        )?;
    }
    Ok(())
}

fn spans_of_cues(cues: &[Cue]) -> Vec<(u64, u64, String)> {
    let mut spans: Vec<(u64, u64, String)> = Vec::new();
    let mut add = |start: u64, end: u64, name: Option<&str>, id: Option<&str>| {
        let speaker = speaker_of(name, id).unwrap_or_default();
        match spans.last_mut() {
            Some(last) if last.2 == speaker && start <= last.1.saturating_add(JOIN_MS) => {
                last.1 = last.1.max(end);
            }
            _ => spans.push((start, end, speaker)),
        }
    };
    for cue in cues {
        if cue.words.is_empty() {
            let (start, end) = spoken_span(cue);
            add(
                start,
                end,
                cue.speaker.as_deref(),
                cue.speaker_id.as_deref(),
            );
        }
        for word in &cue.words {
            let (start, end) = (word.start.millis(), word.end.millis());
            add(
                start,
                end,
                word.speaker.as_deref(),
                word.speaker_id.as_deref(),
            );
        }
    }
    spans
}
