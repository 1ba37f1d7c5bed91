// SPDX-License-Identifier: MPL-2.0
//! The file: a template with style, script and data put in.
//!
//! Words and names are anybody's text. They stand in the file as JSON in which no `<` is left, and the script shows
//! them as text alone. Should it err, the policy in the page's head lets no script run but its own, known by its hash.

use gst::glib;
use sha2::{Digest, Sha256};

use super::sound::Sound;
use super::view::View;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// One script, and nothing of it for others to see: its parts share their names.
const SCRIPT: &str = concat!(
    "'use strict';\n(() => {\n",
    include_str!("script/data.js"),
    include_str!("script/text.js"),
    include_str!("script/player.js"),
    include_str!("script/lanes.js"),
    include_str!("script/search.js"),
    "})();\n"
);

/// The whole file.
pub fn html(view: &View, sound: Option<&Sound>) -> String {
    let inside = match sound {
        Some(Sound::Embedded(uri)) => uri.as_str(),
        _ => "",
    };
    let mut out = String::with_capacity(TEMPLATE.len() + inside.len() + 64 * 1024);
    let mut rest = TEMPLATE;
    // One pass: what is put in is never looked through for more places.
    while let Some((before, (name, after))) = rest
        .split_once("{{")
        .and_then(|(before, after)| Some((before, after.split_once("}}")?)))
    {
        out.push_str(before);
        match name {
            "title" => out.push_str(&as_text(&view.title)),
            "policy" => out.push_str(&policy()),
            "style" => out.push_str(STYLE),
            "script" => out.push_str(SCRIPT),
            "data" => out.push_str(&as_data(view)),
            "sound" => out.push_str(inside),
            other => unreachable!("the template has no place {other}"),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Nothing but the page's own style and script, and sound: from beside it or from inside. No connection of any kind.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; media-src 'self' file: blob:; \
         base-uri 'none'; form-action 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn hash(text: &str) -> String {
    format!("sha256-{}", glib::base64_encode(&Sha256::digest(text)))
}

fn as_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// JSON that ends no `<script>` and begins no comment: `<` stands in strings alone, where it may be written otherwise.
/// So may the two line separators that old scripts take for the end of a line.
fn as_data(view: &View) -> String {
    serde_json::to_string(view)
        .unwrap_or_else(|_| unreachable!("keys are strings and numbers are whole"))
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}
