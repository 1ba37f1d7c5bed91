// SPDX-License-Identifier: MPL-2.0
//! TTML 1 in the IMSC 1 text profile: <https://www.w3.org/TR/ttml-imsc1.0.1/>.

use std::io;

use quick_xml::escape::escape;

use super::{Shown, clock};

pub(super) fn document(cues: &[Shown], language: &str, out: &mut impl io::Write) -> io::Result<()> {
    let mut agents: Vec<&str> = Vec::new();
    for speaker in cues.iter().filter_map(|c| c.speaker.as_deref()) {
        if !agents.contains(&speaker) {
            agents.push(speaker);
        }
    }

    let language = if is_language(language) { language } else { "" };
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        out,
        concat!(
            r#"<tt xmlns="http://www.w3.org/ns/ttml""#,
            r#" xmlns:ttm="http://www.w3.org/ns/ttml#metadata""#,
            r#" xmlns:ttp="http://www.w3.org/ns/ttml#parameter""#,
            r#" xmlns:tts="http://www.w3.org/ns/ttml#styling""#,
            r#" ttp:profile="http://www.w3.org/ns/ttml/profile/imsc1/text""#,
            r#" ttp:timeBase="media" xml:lang="{}">"#
        ),
        language
    )?;
    writeln!(out, "  <head>")?;
    if !agents.is_empty() {
        writeln!(out, "    <metadata>")?;
        for (n, name) in agents.iter().enumerate() {
            writeln!(
                out,
                concat!(
                    r#"      <ttm:agent type="person" xml:id="speaker{}">"#,
                    r#"<ttm:name type="full">{}</ttm:name></ttm:agent>"#
                ),
                n + 1,
                escape(*name)
            )?;
        }
        writeln!(out, "    </metadata>")?;
    }
    writeln!(
        out,
        concat!(
            "    <styling>\n",
            r##"      <style xml:id="plain" tts:color="#FFFFFF" tts:fontFamily="proportionalSansSerif""##,
            r#" tts:fontSize="100%" tts:textAlign="center"/>"#,
            "\n    </styling>\n    <layout>\n",
            r#"      <region xml:id="bottom" tts:origin="10% 75%" tts:extent="80% 20%""#,
            r#" tts:displayAlign="after"/>"#,
            "\n    </layout>\n  </head>"
        )
    )?;
    writeln!(out, r#"  <body region="bottom" style="plain">"#)?;
    writeln!(out, "    <div>")?;
    for (n, cue) in cues.iter().enumerate() {
        let agent = cue
            .speaker
            .as_deref()
            .and_then(|s| agents.iter().position(|a| *a == s))
            .map(|n| format!(r#" ttm:agent="speaker{}""#, n + 1));
        let lines: Vec<_> = cue.lines.iter().map(|line| escape(line.as_str())).collect();
        writeln!(
            out,
            r#"      <p xml:id="cue{}" begin="{}" end="{}"{}>{}</p>"#,
            n + 1,
            clock(cue.start_ms, '.'),
            clock(cue.end_ms, '.'),
            agent.unwrap_or_default(),
            lines.join("<br/>")
        )?;
    }
    writeln!(out, "    </div>\n  </body>\n</tt>")
}

fn is_language(code: &str) -> bool {
    code.starts_with(|c: char| c.is_ascii_alphabetic())
        && code.split('-').all(|part| {
            (1..=8).contains(&part.len()) && part.chars().all(|c| c.is_ascii_alphanumeric())
        })
}
