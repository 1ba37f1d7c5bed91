// SPDX-License-Identifier: MPL-2.0
//! Answers: tables for people, JSON for programs. Vectors are in neither.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::exit;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use gstscribe::voices::{Removed, Take, Voice, time_text};
use serde_json::{Value, json};

/// Prints a line of the answer. A reader who has seen enough, such as `head`, is no error.
pub fn answer(line: impl Display) {
    let written = writeln!(io::stdout().lock(), "{line}");
    if let Err(err) = written {
        let enough = err.kind() == io::ErrorKind::BrokenPipe;
        if !enough {
            eprintln!("scribe-voices: cannot print the answer: {err}");
        }
        exit(i32::from(!enough));
    }
}

/// "1 voice", "2 voices".
pub fn count(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// Text from the store with everything escaped that could steer a terminal or turn the order of letters round.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let steers = c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if steers {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Everybody, for people.
pub fn table_of(voices: &[Voice]) -> String {
    let mut table = table(&[
        "NUMBER", "NAME", "ID", "GRADE", "SPEECH", "TAKES", "CONSENT", "UPDATED", "EXPIRES",
    ]);
    for voice in voices {
        table.add_row([
            voice.number.to_string(),
            visible(&voice.label()),
            voice.id.to_string(),
            voice.grade().to_string(),
            format!("{:.1} s", voice.net_speech_s()),
            voice.takes.len().to_string(),
            voice
                .consent
                .as_ref()
                .map_or("-".into(), |c| visible(&c.when)),
            day(voice.updated),
            voice.expires.map_or("never".into(), day),
        ]);
    }
    for column in [0, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines_of(&table)
}

/// One voice, for people.
pub fn text_of(voice: &Voice, former_ids: &[String]) -> String {
    let consent = voice.consent.as_ref().map_or_else(
        || "none".to_owned(),
        |c| {
            let (who, when) = (visible(&c.who), visible(&c.when));
            format!("given by {who} on {when} for {}", visible(&c.purpose))
        },
    );
    let mut lines = vec![
        format!("{}  (number {})", visible(&voice.label()), voice.number),
        format!("id        {}", voice.id),
        format!(
            "known     {}: {:.1} s of speech in {}",
            voice.grade(),
            voice.net_speech_s(),
            count(voice.takes.len(), "take")
        ),
        format!("consent   {consent}"),
        format!("created   {}", time_text(voice.created)),
        format!("updated   {}", time_text(voice.updated)),
        format!(
            "expires   {}",
            voice.expires.map_or("never".into(), time_text)
        ),
    ];
    if let Some(take) = voice.takes.first() {
        lines.push(format!("model     {}", visible(&take.model.to_string())));
    }
    if !former_ids.is_empty() {
        lines.push(format!("merged    {}", former_ids.join(" ")));
    }
    let mut takes = table(&[
        "TAKEN",
        "SPEECH",
        "PIECES",
        "SNR",
        "LEVEL",
        "CLIPPED",
        "AGREEMENT",
        "BAND",
    ]);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for take in &voice.takes {
        let quality = &take.quality;
        takes.add_row([
            time_text(take.at),
            format!("{:.1} s", quality.net_speech_s),
            quality.segments.to_string(),
            or_dash(quality.snr_db.map(|snr| format!("{snr:.0} dB"))),
            format!("{:.0} dBFS", quality.level_dbfs),
            format!("{:.1} %", 100.0 * quality.clipping),
            or_dash(quality.agreement.map(|cosine| format!("{cosine:.2}"))),
            if quality.is_telephone {
                "telephone"
            } else {
                "full"
            }
            .to_owned(),
        ]);
    }
    lines.push(String::new());
    lines.push(lines_of(&takes));
    lines.join("\n")
}

/// One voice in the list, for programs.
pub fn json_of(voice: &Voice) -> Value {
    let model = voice.takes.first().map(|take| {
        json!({
            "name": take.model.name,
            "version": take.model.version,
            "dimension": take.model.dimension,
        })
    });
    let consent = voice
        .consent
        .as_ref()
        .map(|c| json!({ "who": c.who, "when": c.when, "for": c.purpose }));
    json!({
        "id": voice.id.to_string(),
        "number": voice.number,
        "name": voice.name,
        "label": voice.label(),
        "grade": voice.grade().to_string(),
        "net_speech_s": voice.net_speech_s(),
        "takes": voice.takes.len(),
        "model": model,
        "consent": consent,
        "created": time_text(voice.created),
        "updated": time_text(voice.updated),
        "expires": voice.expires.map(time_text),
    })
}

/// What was measured of a recording, for programs.
pub fn json_of_take(take: &Take) -> Value {
    let quality = &take.quality;
    json!({
        "at": time_text(take.at),
        "net_speech_s": quality.net_speech_s,
        "segments": quality.segments,
        "snr_db": quality.snr_db,
        "level_dbfs": quality.level_dbfs,
        "clipping": quality.clipping,
        "agreement": quality.agreement,
        "telephone": quality.is_telephone,
        "exemplars": take.exemplars.len(),
    })
}

/// Somebody who goes, for programs.
pub fn json_of_removed(removed: &Removed) -> Value {
    json!({
        "id": removed.id.to_string(),
        "label": removed.label,
        "expires": removed.expires.map(time_text),
    })
}

fn day(at: u64) -> String {
    time_text(at).chars().take(10).collect()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

fn lines_of(table: &Table) -> String {
    let text = table.to_string();
    let lines = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_the_store_steers_a_terminal() {
        assert_eq!(visible("Zoë 李 O'Hara"), "Zoë 李 O'Hara");
        assert_eq!(
            visible("a\u{1b}[31mb\u{202e}c\u{9b}"),
            "a\\u{1b}[31mb\\u{202e}c\\u{9b}"
        );
    }
}
