// SPDX-License-Identifier: MPL-2.0
//! What cues and formats need to know about text: how wide it is on a screen, where a sentence ends,
//! what has no place in a caption.

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Columns that `text` takes: a grapheme cluster takes one, or two where it is East Asian wide or an
/// emoji. Combining marks and joiners take none of their own.
pub(crate) fn columns(text: &str) -> u32 {
    text.graphemes(true).map(grapheme_columns).sum()
}

/// Columns of one grapheme cluster, 1 or 2.
pub(crate) fn grapheme_columns(grapheme: &str) -> u32 {
    if grapheme.width() >= 2 { 2 } else { 1 }
}

/// Columns of `text` that wide clusters take.
pub(crate) fn wide_columns(text: &str) -> u32 {
    text.graphemes(true)
        .map(grapheme_columns)
        .filter(|&c| c == 2)
        .sum()
}

/// `text` as one line: every run of white space and line breaks is a single space, nothing invisible
/// that a file format forbids is left. Spaces at the ends go.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut space = false;
    for c in text.chars() {
        if c.is_whitespace() || c == '\u{b}' {
            space = true;
        } else if is_allowed(c) {
            if space && !out.is_empty() {
                out.push(' ');
            }
            space = false;
            out.push(c);
        }
    }
    out
}

/// The lines of `text`, each as [`one_line`] makes them, without empty ones.
pub(crate) fn clean_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    lines
        .into_iter()
        .flat_map(|line| line.split(is_line_break))
        .map(one_line)
        .filter(|line| !line.is_empty())
        .collect()
}

fn is_line_break(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// Control characters, the byte order mark and non-characters have no place in a caption; XML even
/// forbids most of them. Joiners and direction marks stay: scripts need them.
fn is_allowed(c: char) -> bool {
    let code = u32::from(c);
    !(c.is_control()
        || c == '\u{feff}'
        || code & 0xfffe == 0xfffe
        || (0xfdd0..=0xfdef).contains(&code))
}

/// Appends `more` to running text, after a space unless both sides are of a script without spaces.
pub(crate) fn append(out: &mut String, more: &str) {
    let (Some(left), Some(right)) = (out.chars().next_back(), more.chars().next()) else {
        out.push_str(more);
        return;
    };
    let spaced = left.is_whitespace() || right.is_whitespace();
    let spaceless = is_han_or_kana(left) && is_han_or_kana(right);
    if !spaced && !spaceless {
        out.push(' ');
    }
    out.push_str(more);
}

/// Pango markup without its tags and with its character references resolved.
///
/// Lenient: what is no tag and no known reference stays as it is.
pub fn strip_markup(markup: &str) -> String {
    let mut out = String::with_capacity(markup.len());
    let mut rest = markup;
    while let Some(at) = rest.find(['<', '&']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with('<') {
            match rest.find('>') {
                Some(end) if is_tag(&rest[1..end]) => {
                    rest = &rest[end + 1..];
                    continue;
                }
                _ => {}
            }
        } else if let Some(end) = rest.find(';').filter(|&end| end <= 10)
            && let Some(c) = reference(&rest[1..end])
        {
            out.push(c);
            rest = &rest[end + 1..];
            continue;
        }
        out.push_str(&rest[..1]);
        rest = &rest[1..];
    }
    out.push_str(rest);
    out
}

fn is_tag(inside: &str) -> bool {
    inside
        .strip_prefix('/')
        .unwrap_or(inside)
        .starts_with(|c: char| c.is_ascii_alphabetic() || c == '!' || c == '?')
}

fn reference(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => {
            let digits = name.strip_prefix('#')?;
            let code = match digits.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => digits.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Whether a sentence ends with `word`. Abbreviations and initials do not end one.
pub(crate) fn ends_sentence(word: &str) -> bool {
    let core = word.trim().trim_end_matches(is_closer);
    let Some(last) = core.chars().next_back() else {
        return false;
    };
    match last {
        '!' | '?' | '…' | '。' | '！' | '？' | '｡' | '؟' | '۔' | '।' | '॥' | '։' | '።' | '။' => {
            true
        }
        '.' => !is_abbreviation(core),
        _ => false,
    }
}

/// Whether a clause ends with `word`: comma, colon, semicolon, dash.
pub(crate) fn ends_clause(word: &str) -> bool {
    word.trim()
        .trim_end_matches(is_closer)
        .chars()
        .next_back()
        .is_some_and(|c| {
            matches!(
                c,
                ',' | ';' | ':' | '–' | '—' | '、' | '，' | '；' | '：' | '،' | '؛'
            )
        })
}

/// A word with a full stop that ends no sentence: a title, an initial, a dotted abbreviation.
pub(crate) fn is_abbreviation(word: &str) -> bool {
    let Some(stem) = word.trim().strip_suffix('.') else {
        return false;
    };
    let stem = stem.trim_start_matches(|c: char| !c.is_alphanumeric());
    let mut chars = stem.chars();
    let initial = matches!((chars.next(), chars.next()), (Some(c), None) if c.is_uppercase());
    // "e.g.", "z.B.", "U.S.": single letters with stops between.
    let dotted = stem.contains('.')
        && stem
            .split('.')
            .all(|p| p.chars().count() == 1 && p.chars().all(char::is_alphabetic));
    initial || dotted || ABBREVIATIONS.contains(&stem.to_lowercase().as_str())
}

const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "hr", "fr", "bzw", "ca", "nr", "sig",
    "dott", "mme", "mlle", "sra", "srta", "dra", "ud", "uds", "gen", "col", "capt", "lt", "rev",
    "hon",
];

/// Quotation marks and brackets that may stand after the mark that ends a sentence.
pub(crate) fn is_closer(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | '”'
            | '’'
            | '»'
            | '«'
            | ')'
            | ']'
            | '}'
            | '」'
            | '』'
            | '）'
            | '】'
            | '》'
            | '〉'
    )
}

/// Characters that may not begin a line.
pub(crate) fn never_starts_line(c: char) -> bool {
    matches!(
        c,
        '.' | ','
            | '!'
            | '?'
            | ':'
            | ';'
            | '%'
            | '…'
            | '。'
            | '、'
            | '，'
            | '！'
            | '？'
            | '：'
            | '；'
            | '・'
            | 'ー'
            | '々'
            | 'っ'
            | 'ッ'
            | 'ゃ'
            | 'ゅ'
            | 'ょ'
            | 'ャ'
            | 'ュ'
            | 'ョ'
    ) || (is_closer(c) && !matches!(c, '"' | '\'' | '«' | '’'))
}

/// Characters that may not end a line.
pub(crate) fn never_ends_line(c: char) -> bool {
    matches!(
        c,
        '(' | '['
            | '{'
            | '「'
            | '『'
            | '（'
            | '【'
            | '《'
            | '〈'
            | '“'
            | '¿'
            | '¡'
            | '$'
            | '€'
            | '£'
    )
}

/// Scripts written without spaces, where a line may break between any two words.
pub(crate) fn is_spaceless(c: char) -> bool {
    is_han_or_kana(c) || matches!(u32::from(c), 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff)
}

/// Chinese characters, kana and their punctuation. Not Hangul: Korean has spaces.
pub(crate) fn is_han_or_kana(c: char) -> bool {
    matches!(
        u32::from(c),
        0x2e80..=0x2fdf | 0x3000..=0x30ff | 0x31f0..=0x31ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff
        | 0xf900..=0xfaff | 0xff01..=0xff9f | 0x20000..=0x323af
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_cluster_takes_two_columns_and_an_emoji_family_is_one_cluster() {
        assert_eq!(columns("abc"), 3);
        assert_eq!(columns("漢字"), 4);
        assert_eq!(columns("👨‍👩‍👧‍👦"), 2);
        assert_eq!(columns("e\u{301}"), 1);
        assert_eq!(wide_columns("a漢"), 2);
    }

    #[test]
    fn a_line_loses_what_no_format_may_hold() {
        assert_eq!(one_line(" a\0b\u{1b}\u{feff} \t c\u{fffe}\r\n"), "ab c");
        assert_eq!(clean_lines(["a\n\n b\u{2028}", " \0 "]), ["a", "b"]);
        assert_eq!(one_line("می\u{200c}خواهم"), "می\u{200c}خواهم");
    }

    #[test]
    fn a_title_or_an_initial_ends_no_sentence() {
        for word in [" done.", "done.\"", "了。", "really?!", "so…"] {
            assert!(ends_sentence(word), "{word}");
        }
        for word in [" Mr.", "J.", "e.g.", "z.B.", "word", "", "so,"] {
            assert!(!ends_sentence(word), "{word}");
        }
    }

    #[test]
    fn markup_goes_and_text_that_looks_like_it_stays() {
        assert_eq!(
            strip_markup("<i>a</i> &amp; &lt;b&gt; &#x41; 1 < 2 & 3 > 2 &unknown;"),
            "a & <b> A 1 < 2 & 3 > 2 &unknown;"
        );
        assert_eq!(strip_markup("<span foreground=\"red\">x"), "x");
        assert_eq!(strip_markup("a <"), "a <");
    }
}
