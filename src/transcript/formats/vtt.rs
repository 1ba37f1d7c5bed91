// SPDX-License-Identifier: MPL-2.0
//! WebVTT: <https://www.w3.org/TR/webvtt1/>.

use std::io;

use super::{Shown, clock};

pub(super) fn header(out: &mut impl io::Write) -> io::Result<()> {
    out.write_all(b"WEBVTT\n\n")
}

/// For HLS: that `local_ms` in this file is `mpegts` on the clock of the transport stream, which has 33 bits.
pub(super) fn header_of_fragment(
    local_ms: u64,
    mpegts: u64,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let (local, mpegts) = (clock(local_ms, '.'), mpegts % (1 << 33));
    write!(
        out,
        "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:{local},MPEGTS:{mpegts}\n\n"
    )
}

pub(super) fn cue(id: Option<u64>, cue: &Shown, out: &mut impl io::Write) -> io::Result<()> {
    if let Some(id) = id {
        writeln!(out, "{id}")?;
    }
    let (start, end) = (clock(cue.start_ms, '.'), clock(cue.end_ms, '.'));
    let text = escape(&cue.lines.join("\n"));
    match &cue.speaker {
        Some(name) => writeln!(out, "{start} --> {end}\n<v {}>{text}</v>\n", escape(name)),
        None => writeln!(out, "{start} --> {end}\n{text}\n"),
    }
}

/// With `>` goes `-->`, which would begin a new cue.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
