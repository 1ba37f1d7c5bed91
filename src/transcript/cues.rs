// SPDX-License-Identifier: MPL-2.0
//! Words to cues: what a viewer reads at one time, and for how long.
//!
//! [`arrange`] weighs all ways to cut a stretch of words into cues (a dynamic programme) and takes
//! the one that reads best: breaks after sentences and clauses and in pauses, never between an
//! article and its noun, few cues that are too fast or too short. The rules and their figures are
//! those of caption houses; [`CueStyle`] holds them.

mod function_words;
mod lines;

use std::fmt;
use std::str::FromStr;

use super::text;
use super::{Cue, SegmentInfo, Word};
use crate::audio::time::{RunningNs, StreamNs};
use lines::{Measure, Piece};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// The shortest cue there is, so that no format with milliseconds rounds it to nothing.
const SHORTEST_NS: u64 = MS;

/// Times beyond this are nonsense; keeping below it keeps sums from overflowing.
const LATEST_NS: u64 = u64::MAX / 4;

/// A known set of caption rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Two lines of 42 columns, 1 to 7 s, 17 characters a second, 2 frames between cues.
    #[default]
    Netflix,
    /// Two lines of 37 columns, unhurried, no gaps in running speech.
    Bbc,
    /// A sentence a cue on one line, times as spoken: what OpenAI's own writer gives.
    Openai,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 3] = [Self::Netflix, Self::Bbc, Self::Openai];

    /// Its name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Netflix => "netflix",
            Self::Bbc => "bbc",
            Self::Openai => "openai",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, UnknownPreset> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownPreset(name.to_owned()))
    }
}

/// A name that no [`Preset`] has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cue preset is called {0:?}: choose netflix, bbc or openai")]
pub struct UnknownPreset(pub String);

/// The rules that cues follow. Take a preset and change what you want.
#[derive(Clone, Debug, PartialEq)]
pub struct CueStyle {
    /// Columns of a line. A grapheme takes one, an East Asian wide one two.
    pub max_line_width: u32,
    /// Columns of a line in a stretch that is mostly of wide characters: 32 are 16 of them.
    pub max_line_width_wide: u32,
    /// Lines of a cue.
    pub max_lines: u32,
    /// A cue stays at least this long where there is room.
    pub min_duration_ns: u64,
    /// No cue stays longer.
    pub max_duration_ns: u64,
    /// Characters a second from which reading gets hard. 0: any speed will do.
    pub soft_cps: f32,
    /// Characters a second that are too many; exceeded only if the speech is as fast. 0: none are.
    pub hard_cps: f32,
    /// `soft_cps` for wide characters.
    pub soft_cps_wide: f32,
    /// Time between two cues, where there is room.
    pub min_gap_ns: u64,
    /// A shorter time between two cues is closed to `min_gap_ns`. 0: none is.
    pub close_gap_ns: u64,
    /// How long a cue may stay after its last word.
    pub linger_ns: u64,
    /// The same where it cannot be read in time otherwise.
    pub linger_to_read_ns: u64,
    /// A pause that always ends a cue.
    pub forced_pause_ns: u64,
}

impl Default for CueStyle {
    fn default() -> Self {
        Preset::default().into()
    }
}

impl From<Preset> for CueStyle {
    fn from(preset: Preset) -> Self {
        let netflix = Self {
            max_line_width: 42,
            max_line_width_wide: 32,
            max_lines: 2,
            min_duration_ns: SECOND,
            max_duration_ns: 7 * SECOND,
            soft_cps: 17.0,
            hard_cps: 21.0,
            soft_cps_wide: 9.0,
            min_gap_ns: 83 * MS,
            close_gap_ns: 500 * MS,
            linger_ns: 500 * MS,
            linger_to_read_ns: SECOND,
            forced_pause_ns: 1_500 * MS,
        };
        match preset {
            Preset::Netflix => netflix,
            // 160 to 180 words a minute; gaps under a second look like a flash.
            Preset::Bbc => Self {
                max_line_width: 37,
                soft_cps: 14.0,
                hard_cps: 18.0,
                min_gap_ns: 0,
                close_gap_ns: SECOND,
                ..netflix
            },
            Preset::Openai => Self {
                max_line_width: 1000,
                max_line_width_wide: 1000,
                max_lines: 1,
                min_duration_ns: 0,
                max_duration_ns: 30 * SECOND,
                soft_cps: 0.0,
                hard_cps: 0.0,
                soft_cps_wide: 0.0,
                min_gap_ns: 0,
                close_gap_ns: 0,
                linger_ns: 0,
                linger_to_read_ns: 0,
                ..netflix
            },
        }
    }
}

impl CueStyle {
    /// With lines of at most `columns`, in wide scripts too.
    pub fn with_max_line_width(mut self, columns: u32) -> Self {
        self.max_line_width = columns;
        self.max_line_width_wide = if columns > 42 {
            columns
        } else {
            self.max_line_width_wide.min(columns)
        };
        self
    }

    /// With `hard_cps` as given and the soft bound in the usual proportion below it.
    pub fn with_max_cps(mut self, cps: f32) -> Self {
        self.hard_cps = cps;
        self.soft_cps = cps * 17.0 / 21.0;
        self.soft_cps_wide = self.soft_cps_wide.min(self.soft_cps);
        self
    }

    /// The nearest style that can be followed: a line has two columns, a cue a line and some time.
    fn followable(&self) -> Self {
        let mut style = self.clone();
        style.max_line_width = style.max_line_width.max(2);
        style.max_line_width_wide = style.max_line_width_wide.max(2);
        style.max_lines = style.max_lines.max(1);
        style.max_duration_ns = style.max_duration_ns.clamp(10 * MS, LATEST_NS);
        style.min_duration_ns = style.min_duration_ns.min(style.max_duration_ns);
        style
    }
}

/// What is known about the time around the words of one call of [`arrange`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// End of the last cue that was given out; no cue starts before it.
    pub previous_end: Option<StreamNs>,
    /// No later word starts before this, so the last cue may stay until then. `None`: unknown, the
    /// last cue stays only as long as its words and the minimum duration need.
    pub until: Option<StreamNs>,
}

/// Cuts `words` into cues.
///
/// The words are those of one decoded window (or less), in order. A cue lies in one segment, and a
/// segment is a run of cues up to one that ends a sentence, to a pause or change of speaker that
/// always ends a cue, or to the end of the words. Each segment is a copy of `window` with an id of
/// its own, counted on in `next_segment_id`, and with its words' tokens: `tokens[i]` are those of
/// `words[i]`. An empty `tokens` gives the window's to the first segment.
///
/// Never gives cues that overlap, last no time or hold no text; words without visible text are
/// left out. A word wider than a line is cut into several with times in proportion.
pub fn arrange(
    words: Vec<Word>,
    tokens: &[Vec<u32>],
    window: &SegmentInfo,
    next_segment_id: &mut u64,
    bounds: Bounds,
    style: &CueStyle,
) -> Vec<Cue> {
    let style = style.followable();
    let items = prepare(words, tokens, window);

    let mut drafts: Vec<Draft> = Vec::new();
    let mut rest = items.as_slice();
    while !rest.is_empty() {
        let (run, later) = rest.split_at(run_length(rest, &style));
        rest = later;
        let gap_after_ns = rest.first().map(|next| {
            next.word
                .start
                .0
                .saturating_sub(run[run.len() - 1].word.end.0)
        });
        drafts.extend(cut_run(run, &window.language, gap_after_ns, &style));
    }

    let times = place(&drafts, bounds, &style);
    let mut info: Option<SegmentInfo> = None;
    let mut cues: Vec<Cue> = Vec::with_capacity(drafts.len());
    let mut first_of_segment = 0;
    for (draft, (start, end)) in drafts.into_iter().zip(times) {
        let segment = info.get_or_insert_with(|| {
            first_of_segment = cues.len();
            let id = *next_segment_id;
            *next_segment_id += 1;
            SegmentInfo {
                id,
                tokens: Vec::new(),
                ..window.clone()
            }
        });
        segment.tokens.extend(&draft.tokens);
        let ends_segment = draft.ends_segment;
        cues.push(draft.into_cue(StreamNs(start), StreamNs(end)));
        if ends_segment && let Some(finished) = info.take() {
            for cue in &mut cues[first_of_segment..] {
                cue.segment = finished.clone();
            }
        }
    }
    cues
}

/// Words out of a text without any, with times in proportion to their width: for text that came
/// from elsewhere. Words are split at spaces, and between characters in scripts without spaces.
pub fn spread(text: &str, start: StreamNs, end: StreamNs) -> Vec<Word> {
    use unicode_segmentation::UnicodeSegmentation;

    let clean = text::one_line(text);
    let mut parts: Vec<String> = Vec::new();
    for (n, spaced) in clean.split(' ').enumerate() {
        let mut part = String::from(if n == 0 { "" } else { " " });
        for grapheme in spaced.graphemes(true) {
            let first = grapheme.chars().next().unwrap_or(' ');
            let last = part.chars().next_back().unwrap_or(' ');
            let may_break = (text::is_han_or_kana(first) || text::is_han_or_kana(last))
                && !text::never_starts_line(first)
                && !text::never_ends_line(last);
            if may_break && last != ' ' {
                parts.push(std::mem::take(&mut part));
            }
            part.push_str(grapheme);
        }
        parts.push(part);
    }
    let bare = Word {
        text: String::new(),
        start,
        end,
        running_start: RunningNs::default(),
        running_end: RunningNs::default(),
        probability: 1.0,
        confidence: 1.0,
        speaker_id: None,
        speaker: None,
    };
    share(&bare, parts)
}

/// Whether a sentence ends with `word`: a mark that ends one, quotes after it or not, and no
/// abbreviation.
pub fn ends_sentence(word: &str) -> bool {
    text::ends_sentence(word)
}

/// A word and its tokens.
struct Item {
    word: Word,
    tokens: Vec<u32>,
}

/// Words with visible text, in order of time, each with its tokens.
fn prepare(words: Vec<Word>, tokens: &[Vec<u32>], window: &SegmentInfo) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::with_capacity(words.len());
    let mut orphans: Vec<u32> = Vec::new();
    if tokens.is_empty() {
        orphans.clone_from(&window.tokens);
    }
    let mut earliest = 0;
    for (n, mut word) in words.into_iter().enumerate() {
        let own = tokens.get(n).cloned().unwrap_or_default();
        if text::one_line(&word.text).is_empty() {
            // A word nobody can see: its tokens go to a neighbour.
            match items.last_mut() {
                Some(item) => item.tokens.extend(own),
                None => orphans.extend(own),
            }
            continue;
        }
        word.start.0 = word.start.0.clamp(earliest, LATEST_NS.max(earliest));
        word.end.0 = word.end.0.clamp(word.start.0, LATEST_NS.max(word.start.0));
        earliest = word.start.0;
        let mut tokens = std::mem::take(&mut orphans);
        tokens.extend(own);
        items.push(Item { word, tokens });
    }
    items
}

/// Words up to the first place where a cue always ends.
fn run_length(items: &[Item], style: &CueStyle) -> usize {
    let mut latest_end = 0;
    for (n, pair) in items.windows(2).enumerate() {
        let (word, next) = (&pair[0].word, &pair[1].word);
        latest_end = word.end.0.max(latest_end);
        let pause = next.start.0.saturating_sub(latest_end);
        if pause >= style.forced_pause_ns
            || word.speaker_id != next.speaker_id
            || word.speaker != next.speaker
        {
            return n + 1;
        }
    }
    items.len()
}

/// A cue without its final times.
struct Draft {
    words: Vec<Word>,
    lines: Vec<String>,
    tokens: Vec<u32>,
    start: u64,
    end: u64,
    /// Time that it takes to read, nanoseconds.
    reading: u64,
    ends_segment: bool,
}

impl Draft {
    fn into_cue(self, start: StreamNs, end: StreamNs) -> Cue {
        let (speaker_id, speaker) = match self.words.first() {
            Some(word) => (word.speaker_id.clone(), word.speaker.clone()),
            None => (None, None),
        };
        Cue {
            start,
            end,
            lines: self.lines,
            words: self.words,
            segment: SegmentInfo::default(),
            speaker_id,
            speaker,
        }
    }
}

/// The best cues for a run of words that nothing forces apart. `gap_after_ns`: to the next run.
fn cut_run(
    run: &[Item],
    language: &str,
    gap_after_ns: Option<u64>,
    style: &CueStyle,
) -> Vec<Draft> {
    let (columns, wide) = run.iter().fold((0, 0), |(all, wide), item| {
        let line = text::one_line(&item.word.text);
        (all + text::columns(&line), wide + text::wide_columns(&line))
    });
    let is_wide = wide * 2 > columns;
    let shape = Shape {
        width: if is_wide {
            style.max_line_width_wide
        } else {
            style.max_line_width
        },
        is_wide,
        gap_after_ns: gap_after_ns.unwrap_or(0),
        style,
    };

    let mut words: Vec<Word> = Vec::with_capacity(run.len());
    let mut tokens: Vec<&[u32]> = Vec::with_capacity(run.len());
    let mut pieces: Vec<Piece> = Vec::with_capacity(run.len());
    for item in run {
        let parts = match lines::cut(&item.word.text, shape.width) {
            parts if parts.len() == 1 => vec![item.word.clone()],
            parts => share(&item.word, parts),
        };
        let mut own_tokens: &[u32] = &item.tokens;
        for part in parts {
            let piece = Piece::new(&part.text, pieces.last());
            if piece.text.is_empty() {
                continue; // nothing in it can be seen
            }
            tokens.push(std::mem::take(&mut own_tokens));
            pieces.push(piece);
            words.push(part);
        }
    }

    let measure = Measure::new(pieces, language);
    let ends = shape.best_ends(&words, &measure);
    let mut drafts = Vec::with_capacity(ends.len());
    let mut from = 0;
    for to in ends {
        let shown = &words[from..to];
        drafts.push(Draft {
            lines: measure.split(from, to, shape.width, style.max_lines as usize),
            tokens: tokens[from..to].concat(),
            start: shown[0].start.0,
            end: shown.iter().map(|w| w.end.0).max().unwrap_or_default(),
            reading: shape.reading_ns(measure.columns(from, to)),
            ends_segment: to == words.len() || measure.pieces()[to - 1].ends_sentence,
            words: shown.to_vec(),
        });
        from = to;
    }
    drafts
}

/// What the cues of one run must look like.
struct Shape<'a> {
    width: u32,
    is_wide: bool,
    gap_after_ns: u64,
    style: &'a CueStyle,
}

impl Shape<'_> {
    /// Time that it takes to read `columns`, nanoseconds.
    fn reading_ns(&self, columns: u32) -> u64 {
        let (characters, cps) = if self.is_wide {
            (columns as f32 / 2.0, self.style.soft_cps_wide)
        } else {
            (columns as f32, self.style.soft_cps)
        };
        if cps > 0.0 {
            (characters / cps * SECOND as f32) as u64
        } else {
            0
        }
    }

    /// Ends of the cues, the last is `words.len()`: the dynamic programme of asr.md 1.7.2.
    fn best_ends(&self, words: &[Word], measure: &Measure) -> Vec<usize> {
        let n = words.len();
        // best[j]: cost of the first j words, and where the last of their cues starts.
        let mut best = vec![(f32::INFINITY, 0_usize); n + 1];
        best[0].0 = 0.0;
        for from in 0..n {
            let before = best[from].0;
            let mut lines = 1;
            let mut line_from = from;
            let mut end = 0;
            for to in from + 1..=n {
                end = words[to - 1].end.0.max(end);
                if measure.columns(line_from, to) > self.width {
                    lines += 1;
                    line_from = to - 1;
                }
                let duration = end - words[from].start.0;
                let fits = lines <= self.style.max_lines && duration <= self.style.max_duration_ns;
                if !fits && to > from + 1 {
                    break;
                }
                let cost = before + self.cost(words, measure, from, to, duration);
                if cost < best[to].0 {
                    best[to] = (cost, from);
                }
            }
        }
        let mut ends = Vec::new();
        let mut to = n;
        while to > 0 {
            ends.push(to);
            to = best[to].1;
        }
        ends.reverse();
        ends
    }

    fn cost(
        &self,
        words: &[Word],
        measure: &Measure,
        from: usize,
        to: usize,
        duration: u64,
    ) -> f32 {
        let style = self.style;
        let is_last = to == words.len();
        let pause = match words.get(to) {
            Some(next) => next.start.0.saturating_sub(words[to - 1].end.0),
            None => self.gap_after_ns,
        };
        let columns = measure.columns(from, to);
        let mut cost = 0.0;

        let reading = self.reading_ns(columns);
        if reading > 0 {
            let shown = duration + pause.min(style.linger_to_read_ns);
            let speed = (reading as f32 / shown.max(SHORTEST_NS) as f32).min(4.0);
            cost += 4.0 * (speed - 1.0).max(0.0).powi(2);
            if style.hard_cps > 0.0 && speed > style.hard_cps / style.soft_cps.max(0.1) {
                cost += 1.0;
            }
        }
        let shown = duration + pause.min(style.linger_ns.max(style.linger_to_read_ns));
        if shown < style.min_duration_ns {
            cost += 2.0;
        }

        let ends_sentence = measure.pieces()[to - 1].ends_sentence;
        let is_sentence =
            (is_last || ends_sentence) && (from == 0 || measure.pieces()[from - 1].ends_sentence);
        if columns < 12 && !is_sentence && !self.is_wide {
            cost += 0.5; // a scrap of a sentence
        }
        if !is_last {
            let pause_s = pause as f32 / SECOND as f32;
            let mut broken = measure.break_after(to - 1);
            if ends_sentence {
                broken -= 0.3; // a sentence likes a cue of its own
            } else if pause_s >= 0.4 && broken < 2.0 {
                broken = broken.min(0.2);
            }
            cost += broken - 0.5 * pause_s.min(1.0);
        }
        cost
    }
}

/// Start and end of each draft: in order, apart, long enough to read where there is room.
fn place(drafts: &[Draft], bounds: Bounds, style: &CueStyle) -> Vec<(u64, u64)> {
    let mut earliest = bounds.previous_end.map_or(0, |t| t.0);
    let starts: Vec<u64> = drafts
        .iter()
        .map(|draft| {
            let start = draft.start.max(earliest);
            earliest = start.saturating_add(SHORTEST_NS);
            start
        })
        .collect();

    drafts
        .iter()
        .enumerate()
        .map(|(n, draft)| {
            let start = starts[n];
            let next = starts.get(n + 1).copied();
            let wall = next.or(bounds.until.map(|t| t.0));
            let enough = start.saturating_add(style.min_duration_ns);
            let mut end = draft.end.max(enough);
            if let Some(wall) = wall {
                let to_read = start.saturating_add(draft.reading);
                end = end
                    .max(draft.end + style.linger_ns)
                    .max(to_read.min(draft.end + style.linger_to_read_ns));
                // Where there is no room for a gap, the cues touch.
                let limit = if wall.saturating_sub(start) >= 2 * style.min_gap_ns {
                    wall - style.min_gap_ns
                } else {
                    wall
                };
                if end.saturating_add(style.close_gap_ns) > wall {
                    end = limit;
                }
                end = end.min(limit);
            }
            end = end.min(start.saturating_add(style.max_duration_ns));
            (start, end.max(start.saturating_add(SHORTEST_NS)))
        })
        .collect()
}

/// `word` cut into `parts`, each with a share of its time by width.
fn share(word: &Word, parts: Vec<String>) -> Vec<Word> {
    let widths: Vec<u64> = parts
        .iter()
        .map(|part| u64::from(text::columns(part)).max(1))
        .collect();
    let total: u64 = widths.iter().sum();
    let at = |from: u64, to: u64, done: u64| {
        let span = u128::from(to.saturating_sub(from));
        from + (span * u128::from(done) / u128::from(total.max(1))) as u64
    };
    let mut done = 0;
    parts
        .into_iter()
        .zip(widths)
        .map(|(text, width)| {
            let before = done;
            done += width;
            Word {
                text,
                start: StreamNs(at(word.start.0, word.end.0, before)),
                end: StreamNs(at(word.start.0, word.end.0, done)),
                running_start: RunningNs(at(word.running_start.0, word.running_end.0, before)),
                running_end: RunningNs(at(word.running_start.0, word.running_end.0, done)),
                ..word.clone()
            }
        })
        .collect()
}
