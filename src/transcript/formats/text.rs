// SPDX-License-Identifier: MPL-2.0
//! Plain text for people: a line a segment, the speaker's name where another speaks.

use std::io;

use crate::transcript::text;

/// A segment's cues share a line, so the line's end is written when the next line begins.
pub(super) fn cue(
    is_first: bool,
    is_new_line: bool,
    name: Option<String>,
    shown: &str,
    out: &mut impl io::Write,
) -> io::Result<()> {
    if is_new_line {
        let end = if is_first { "" } else { "\n" };
        let name = name.map(|n| format!("{n}: ")).unwrap_or_default();
        return write!(out, "{end}{name}{shown}");
    }
    let spaceless = shown.chars().next().is_some_and(text::is_han_or_kana);
    write!(out, "{}{shown}", if spaceless { "" } else { " " })
}
