// SPDX-License-Identifier: MPL-2.0
//! SubRip. There is no standard; this is what every player reads.

use std::io;

use super::{Shown, clock};

/// `name`: the speaker, where another than before speaks.
pub(super) fn cue(
    number: u64,
    cue: &Shown,
    name: Option<&str>,
    out: &mut impl io::Write,
) -> io::Result<()> {
    // Nothing can be escaped in SubRip, and an arrow in the text would be taken for times.
    let text = cue.lines.join("\n").replace("-->", "→");
    let name = name.map(|n| format!("{}: ", n.replace("-->", "→")));
    writeln!(
        out,
        "{number}\n{} --> {}\n{}{text}\n",
        clock(cue.start_ms, ','),
        clock(cue.end_ms, ','),
        name.unwrap_or_default(),
    )
}
