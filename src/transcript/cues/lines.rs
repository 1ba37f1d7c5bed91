// SPDX-License-Identifier: MPL-2.0
//! Where a line or a cue may break, and what a break costs.

use unicode_segmentation::UnicodeSegmentation;

use super::function_words::FunctionWords;
use crate::transcript::text;

/// A word as it is shown.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Without space at either end.
    pub text: String,
    /// Whether a space stands between it and the piece before, on one line.
    pub spaced: bool,
    /// Columns of `text`.
    pub columns: u32,
    /// A sentence ends with it.
    pub ends_sentence: bool,
}

impl Piece {
    /// `raw` is a word's text with the space that the model gave; `before` is the piece to its left.
    pub fn new(raw: &str, before: Option<&Piece>) -> Self {
        let text = text::one_line(raw);
        let led = raw.starts_with(char::is_whitespace);
        // Models put a space before the first unit of a segment in languages that have none.
        let spaceless = before.is_some_and(|b| {
            b.text.chars().next_back().is_some_and(text::is_han_or_kana)
                && text.chars().next().is_some_and(text::is_han_or_kana)
        });
        Self {
            spaced: led && !spaceless,
            columns: text::columns(&text),
            ends_sentence: text::ends_sentence(&text),
            text,
        }
    }
}

/// Columns and break costs of a run of pieces, ready for any stretch of it.
pub(super) struct Measure {
    pieces: Vec<Piece>,
    /// `columns[k]`: columns of the first `k` pieces with the spaces before each.
    columns: Vec<u32>,
    /// `breaks[k]`: cost of a break after piece `k`, pauses left out.
    breaks: Vec<f32>,
}

impl Measure {
    pub fn new(pieces: Vec<Piece>, language: &str) -> Self {
        let words = FunctionWords::of(language);
        let german = language.starts_with("de");
        let breaks = (0..pieces.len())
            .map(|k| match pieces.get(k + 1) {
                Some(next) => break_cost(&pieces[k], next, words, german),
                None => 0.0,
            })
            .collect();
        let mut columns = vec![0];
        let mut sum = 0_u32;
        for piece in &pieces {
            sum = sum.saturating_add(piece.columns + u32::from(piece.spaced));
            columns.push(sum);
        }
        Self {
            pieces,
            columns,
            breaks,
        }
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Cost of a break after piece `k`, pauses left out.
    pub fn break_after(&self, k: usize) -> f32 {
        self.breaks[k]
    }

    /// Columns of pieces `from..to` on one line.
    pub fn columns(&self, from: usize, to: usize) -> u32 {
        let lead = u32::from(self.pieces[from].spaced);
        self.columns[to] - self.columns[from] - lead
    }

    /// Pieces `from..to` on one line.
    pub fn line(&self, from: usize, to: usize) -> String {
        let mut out = String::new();
        for piece in &self.pieces[from..to] {
            if piece.spaced && !out.is_empty() {
                out.push(' ');
            }
            out.push_str(&piece.text);
        }
        out
    }

    /// The best way to show pieces `from..to` on at most `max_lines` lines of `width` columns.
    ///
    /// One line where it fits; else as few lines as hold it, of like length, the lower ones longer,
    /// broken where it reads best. More than `max_lines` only if nothing else is possible.
    pub fn split(&self, from: usize, to: usize, width: u32, max_lines: usize) -> Vec<String> {
        let mut lines = 1;
        loop {
            if let Some(ends) = self.best_ends(from, to, width, lines) {
                let mut start = from;
                return ends
                    .into_iter()
                    .map(|end| {
                        let line = self.line(start, end);
                        start = end;
                        line
                    })
                    .collect();
            }
            if lines >= max_lines.max(1) && lines >= to - from {
                // A piece alone is wider than a line: the caller has cut pieces, so only a width
                // of one column with a wide character comes here.
                return (from..to).map(|k| self.line(k, k + 1)).collect();
            }
            lines += 1;
        }
    }

    /// Ends of exactly `lines` lines, the last is `to`; `None` if they cannot hold the pieces.
    fn best_ends(&self, from: usize, to: usize, width: u32, lines: usize) -> Option<Vec<usize>> {
        let n = to - from;
        if lines > n {
            return None;
        }
        let mean = self.columns(from, to) as f32 / lines as f32;
        // best[l][k]: cost of the first k pieces on l lines, and where the last of them starts.
        let mut best = vec![vec![(f32::INFINITY, 0_usize); n + 1]; lines + 1];
        best[0][0].0 = 0.0;
        for l in 1..=lines {
            for k in l..=n {
                for start in (l - 1..k).rev() {
                    let columns = self.columns(from + start, from + k);
                    if columns > width {
                        break;
                    }
                    let (before, _) = best[l - 1][start];
                    if before == f32::INFINITY {
                        continue;
                    }
                    let at_end = l == lines;
                    let uneven = (columns as f32 - mean).abs() / width.max(1) as f32;
                    // A lower line that is shorter than the one above looks top-heavy.
                    let top_heavy = if !at_end && columns as f32 > mean {
                        0.2
                    } else {
                        0.0
                    };
                    let broken = if at_end {
                        0.0
                    } else {
                        self.breaks[from + k - 1]
                    };
                    let cost = before + uneven + top_heavy + broken;
                    if cost < best[l][k].0 {
                        best[l][k] = (cost, start);
                    }
                }
            }
        }
        if best[lines][n].0 == f32::INFINITY {
            return None;
        }
        let mut ends = Vec::with_capacity(lines);
        let mut k = n;
        for l in (1..=lines).rev() {
            ends.push(from + k);
            k = best[l][k].1;
        }
        ends.reverse();
        Some(ends)
    }
}

/// Cost of a break between two pieces, without the pause between them: asr.md 1.7.2.
fn break_cost(piece: &Piece, next: &Piece, words: FunctionWords, german: bool) -> f32 {
    let last = piece.text.chars().next_back().unwrap_or(' ');
    let first = next.text.chars().next().unwrap_or(' ');
    if text::never_starts_line(first) || text::never_ends_line(last) {
        return 4.0;
    }
    if !next.spaced && !text::is_spaceless(first) && !text::is_spaceless(last) {
        return 4.0; // inside a word
    }
    if piece.ends_sentence {
        return 0.0;
    }
    if text::ends_clause(&piece.text) {
        return 0.3;
    }
    if text::is_abbreviation(&piece.text) || is_number(&piece.text) {
        return 1.5; // a title before its name, a number before the next part or its unit
    }
    let bare = bare(&piece.text);
    if words.leans(&bare) {
        return 2.0;
    }
    let next_bare = self::bare(&next.text);
    if words.opens(&next_bare) {
        return 0.6;
    }
    let capital = |c: char| c.is_uppercase();
    if !german && capital(first) && piece.text.chars().next().is_some_and(capital) {
        return 1.5; // probably a name
    }
    1.0
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn bare(text: &str) -> String {
    text.trim_matches(|c: char| !c.is_alphanumeric())
        .to_lowercase()
}

/// Cuts `text` into parts of at most `width` columns, at spaces where there are any, else between
/// grapheme clusters. Joined, the parts are `text`; a space stands at the start of a part, where it
/// takes no column. Never empty.
pub(super) fn cut(text: &str, width: u32) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut columns = 0;
    let mut spaces = String::new();
    for unit in text.split_word_bounds() {
        if unit.trim().is_empty() {
            spaces.push_str(unit);
            continue;
        }
        let lead = if columns == 0 {
            0
        } else {
            text::columns(&spaces)
        };
        let unit_columns = text::columns(unit);
        if columns > 0 && columns + lead + unit_columns > width {
            parts.push(std::mem::take(&mut part));
            columns = 0;
        } else {
            columns += lead;
        }
        part.push_str(&std::mem::take(&mut spaces));
        for grapheme in unit.graphemes(true) {
            let grapheme_columns = text::grapheme_columns(grapheme);
            if columns > 0 && columns + grapheme_columns > width {
                parts.push(std::mem::take(&mut part));
                columns = 0;
            }
            part.push_str(grapheme);
            columns += grapheme_columns;
        }
    }
    part.push_str(&spaces);
    if !part.is_empty() || parts.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(text: &str, language: &str) -> Measure {
        let mut pieces: Vec<Piece> = Vec::new();
        for word in text.split_inclusive(' ') {
            let raw = format!(" {word}");
            let piece = Piece::new(&raw, pieces.last());
            pieces.push(piece);
        }
        Measure::new(pieces, language)
    }

    fn split(text: &str, width: u32) -> Vec<String> {
        let m = measure(text, "en");
        m.split(0, m.pieces().len(), width, 2)
    }

    #[test]
    fn what_fits_stays_on_one_line() {
        assert_eq!(split("Short and sweet.", 42), ["Short and sweet."]);
    }

    #[test]
    fn a_line_breaks_after_a_comma_rather_than_after_an_article() {
        assert_eq!(
            split("When the rain stopped, they went to the old harbour.", 42),
            ["When the rain stopped,", "they went to the old harbour."]
        );
    }

    #[test]
    fn the_lower_line_is_the_longer_one() {
        let lines = split("aaaa bbbb cccc dddd eeee ffff gggg hhhh iiii", 42);

        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() <= lines[1].len(), "{lines:?}");
    }

    #[test]
    fn a_cut_word_joins_to_itself() {
        let long =
            "https://example.org/a/very/long/address?with=parameters&and=more#and-a-fragment";
        let parts = cut(long, 20);

        assert!(parts.iter().all(|p| text::columns(p) <= 20));
        assert_eq!(parts.concat(), long);
        assert_eq!(cut("", 5), [""]);
    }
}
