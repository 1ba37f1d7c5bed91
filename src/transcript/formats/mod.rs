// SPDX-License-Identifier: MPL-2.0
//! Transcripts as files: one writer for each caption and transcript format, and readers for JSON.
//!
//! [`Writer`] takes cues as they come and writes what the format lets it write at once; [`write()`]
//! does the same for a finished [`Transcript`], so both give the same bytes. Whatever comes in, the
//! file is valid: text is cleaned and escaped, cues of a track never overlap, last at least a
//! millisecond and come in order of time. docs/formats.md says what each format holds.

mod ctm;
pub mod fragments;
pub mod json;
mod rttm;
mod srt;
mod stm;
mod text;
mod ttml;
mod vtt;

use std::fmt;
use std::io;
use std::str::FromStr;

use super::cues::{self, Bounds, CueStyle};
use super::text as txt;
use super::{Cue, Task, Transcript, Turn};
use crate::audio::time::StreamNs;

/// A file format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// WebVTT captions, with voice tags where speakers are known.
    #[default]
    Vtt,
    /// SubRip captions.
    Srt,
    /// One JSON document, a superset of OpenAI's `verbose_json`.
    Json,
    /// JSON lines: a line a cue, and a last one with the totals.
    Jsonl,
    /// TTML captions (IMSC 1 text profile).
    Ttml,
    /// Plain text, a line a segment.
    Text,
    /// Speaker turns, NIST's Rich Transcription Time Marked.
    Rttm,
    /// Utterances with speaker and times, NIST's segment time marks.
    Stm,
    /// Words with times, NIST's conversation time marks.
    Ctm,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 9] = [
        Self::Vtt,
        Self::Srt,
        Self::Json,
        Self::Jsonl,
        Self::Ttml,
        Self::Text,
        Self::Rttm,
        Self::Stm,
        Self::Ctm,
    ];

    /// Its name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vtt => "vtt",
            Self::Srt => "srt",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Ttml => "ttml",
            Self::Text => "text",
            Self::Rttm => "rttm",
            Self::Stm => "stm",
            Self::Ctm => "ctm",
        }
    }

    /// The usual end of a file's name, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            other => other.as_str(),
        }
    }

    /// Whether it is written whole at the end. The others are written cue by cue, and a file that
    /// is broken off holds all cues up to there.
    pub fn is_document(self) -> bool {
        matches!(self, Self::Json | Self::Ttml | Self::Rttm)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    /// Takes a name or the usual end of a file's name, in any case.
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|f| {
                f.as_str().eq_ignore_ascii_case(name) || f.extension().eq_ignore_ascii_case(name)
            })
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// A name that no [`Format`] has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no format is called {0:?}: choose vtt, srt, json, jsonl, ttml, text, rttm, stm or ctm")]
pub struct UnknownFormat(pub String);

/// What may be chosen about a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the recording, the first column of RTTM, STM and CTM. White space becomes `_`.
    pub file_id: String,
    /// Number the cues of WebVTT.
    pub cue_ids: bool,
    /// For [`write()`] when a transcript has segments and no cues.
    pub style: CueStyle,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            file_id: "audio".into(),
            cue_ids: false,
            style: CueStyle::default(),
        }
    }
}

/// A speaker's identity mended after the fact: documents follow it, a streamed file cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relabel {
    /// The id that words and turns have so far.
    pub old_id: String,
    /// The id that they get; `None`: the id stays, only the name is new.
    pub new_id: Option<String>,
    /// The display name that they get.
    pub name: Option<String>,
    /// Only what starts at or after this.
    pub from: Option<StreamNs>,
    /// Only what starts before this.
    pub to: Option<StreamNs>,
}

/// What is only known at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Length of the recording. The end of the last word or turn if that is later.
    pub duration: StreamNs,
    /// Language of the whole; `None`: that of most segments.
    pub language: Option<String>,
    /// What was asked; `None`: what the first segment says.
    pub task: Option<Task>,
}

/// Writes `transcript` as a file of `format`.
///
/// A transcript without cues is cut into cues by `options.style` first.
pub fn write(
    format: Format,
    transcript: &Transcript,
    options: &Options,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let mut writer = Writer::new(format, options.clone());
    for turn in &transcript.turns {
        writer.turn(turn, out)?;
    }
    if transcript.cues.is_empty() {
        for cue in cues_of_segments(transcript, &options.style) {
            writer.cue(&cue, out)?;
        }
    } else {
        for cue in &transcript.cues {
            writer.cue(cue, out)?;
        }
    }
    let language = Some(transcript.language.clone()).filter(|l| !l.is_empty());
    let totals = Totals {
        duration: transcript.duration,
        language,
        task: Some(transcript.task),
    };
    writer.finish(&totals, out)
}

/// Cues that keep to the segments as they are.
fn cues_of_segments(transcript: &Transcript, style: &CueStyle) -> Vec<Cue> {
    let mut all: Vec<Cue> = Vec::new();
    for (n, segment) in transcript.segments.iter().enumerate() {
        let bounds = Bounds {
            previous_end: all.last().map(|c| c.end),
            until: transcript
                .segments
                .get(n + 1)
                .and_then(|s| s.words.first())
                .map(|w| w.start),
        };
        let words = segment.words.clone();
        let mut cues = cues::arrange(words, &[], &segment.info, &mut 0, bounds, style);
        for cue in &mut cues {
            cue.segment = segment.info.clone();
        }
        all.extend(cues);
    }
    all
}

/// Writes one file, piece by piece.
#[derive(Clone, Debug)]
pub struct Writer {
    format: Format,
    options: Options,
    is_started: bool,
    /// Cues written so far.
    count: u64,
    /// End of the last cue, milliseconds.
    last_end_ms: u64,
    /// For a document: everything. For JSON lines: nothing but the running totals.
    cues: Vec<Cue>,
    turns: Vec<Turn>,
    relabels: Vec<Relabel>,
    summary: json::Summary,
    /// Segment and speaker of the last cue.
    last_segment: Option<u64>,
    last_speaker: Option<String>,
}

impl Writer {
    /// A writer of a new file.
    pub fn new(format: Format, options: Options) -> Self {
        Self {
            format,
            options,
            is_started: false,
            count: 0,
            last_end_ms: 0,
            cues: Vec::new(),
            turns: Vec::new(),
            relabels: Vec::new(),
            summary: json::Summary::default(),
            last_segment: None,
            last_speaker: None,
        }
    }

    /// The format it was made for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes what stands before the first cue. Done by the first of the others too, and once only.
    pub fn start(&mut self, out: &mut impl io::Write) -> io::Result<()> {
        if std::mem::replace(&mut self.is_started, true) {
            return Ok(());
        }
        match self.format {
            Format::Vtt => vtt::header(out),
            Format::Jsonl => json::line_start(out),
            _ => Ok(()),
        }
    }

    /// Takes the next cue. One without visible text is left out.
    pub fn cue(&mut self, cue: &Cue, out: &mut impl io::Write) -> io::Result<()> {
        self.start(out)?;
        let lines = shown_lines(cue);
        if lines.is_empty() {
            return Ok(());
        }
        self.count += 1;
        match self.format {
            Format::Json | Format::Ttml | Format::Rttm => self.cues.push(cue.clone()),
            Format::Vtt => {
                let id = self.options.cue_ids.then_some(self.count);
                vtt::cue(id, &self.show(cue, lines), out)?;
            }
            Format::Srt => {
                let shown = self.show(cue, lines);
                let name = self.new_speaker(&shown);
                srt::cue(self.count, &shown, name.as_deref(), out)?;
            }
            Format::Jsonl => {
                self.summary.add(cue);
                json::line_cue(cue, &lines, out)?;
            }
            Format::Text => {
                let shown = self.show(cue, lines);
                let is_new_line = self.last_segment != Some(cue.segment.id);
                let name = self.new_speaker(&shown);
                let is_first = self.count == 1;
                let text = cue_text(cue);
                text::cue(is_first, is_new_line || name.is_some(), name, &text, out)?;
            }
            Format::Stm => {
                let at = self.forward(spoken_span(cue));
                stm::cue(&self.file_id(), at, cue, out)?;
            }
            Format::Ctm => {
                self.last_end_ms = ctm::cue(&self.file_id(), self.last_end_ms, cue, out)?
            }
        }
        self.last_segment = Some(cue.segment.id);
        Ok(())
    }

    /// Takes a speaker's turn: RTTM and JSON hold it, the others have no place for it.
    pub fn turn(&mut self, turn: &Turn, out: &mut impl io::Write) -> io::Result<()> {
        self.start(out)?;
        match self.format {
            Format::Json | Format::Rttm => self.turns.push(turn.clone()),
            Format::Jsonl => {
                self.summary.add_turn(turn);
                json::line_turn(turn, out)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Mends who spoke. Documents follow it, JSON lines note it, the others cannot go back.
    pub fn relabel(&mut self, relabel: &Relabel, out: &mut impl io::Write) -> io::Result<()> {
        self.start(out)?;
        match self.format {
            Format::Jsonl => json::line_relabel(relabel, out)?,
            format if format.is_document() => self.relabels.push(relabel.clone()),
            _ => {}
        }
        Ok(())
    }

    /// Writes the rest. Nothing may follow.
    pub fn finish(&mut self, totals: &Totals, out: &mut impl io::Write) -> io::Result<()> {
        self.start(out)?;
        let mut cues = std::mem::take(&mut self.cues);
        let mut turns = std::mem::take(&mut self.turns);
        apply(&self.relabels, &mut cues, &mut turns);
        join(&mut turns);
        match self.format {
            Format::Json => json::document(&cues, &turns, totals, out),
            Format::Jsonl => json::line_end(&self.summary, totals, out),
            Format::Ttml => {
                let shown: Vec<Shown> = cues
                    .iter()
                    .map(|cue| self.show(cue, shown_lines(cue)))
                    .collect();
                let mut summary = json::Summary::default();
                cues.iter().for_each(|cue| summary.add(cue));
                ttml::document(&shown, &summary.language(totals), out)
            }
            Format::Rttm => rttm::document(&self.file_id(), &cues, turns, out),
            Format::Text if self.count > 0 => out.write_all(b"\n"),
            _ => Ok(()),
        }
    }

    /// A cue as a viewer gets it, behind the one before.
    fn show(&mut self, cue: &Cue, lines: Vec<String>) -> Shown {
        let (start_ms, end_ms) = self.forward((cue.start.millis(), cue.end.millis()));
        Shown {
            start_ms,
            end_ms,
            lines,
            speaker: speaker_of(cue.speaker.as_deref(), cue.speaker_id.as_deref()),
        }
    }

    /// The span moved behind everything written so far, at least a millisecond long.
    fn forward(&mut self, (start_ms, end_ms): (u64, u64)) -> (u64, u64) {
        let start_ms = start_ms.max(self.last_end_ms);
        let end_ms = end_ms.max(start_ms.saturating_add(1));
        self.last_end_ms = end_ms;
        (start_ms, end_ms)
    }

    /// The speaker's name if it is another than before.
    fn new_speaker(&mut self, shown: &Shown) -> Option<String> {
        let is_new = shown.speaker != self.last_speaker;
        self.last_speaker.clone_from(&shown.speaker);
        shown.speaker.clone().filter(|_| is_new)
    }

    fn file_id(&self) -> String {
        field(&self.options.file_id, "audio")
    }
}

/// A cue ready to be written: clean lines, times in order.
#[derive(Clone, Debug)]
struct Shown {
    start_ms: u64,
    end_ms: u64,
    lines: Vec<String>,
    speaker: Option<String>,
}

/// The lines that a viewer sees, clean and never empty.
fn shown_lines(cue: &Cue) -> Vec<String> {
    let lines = txt::clean_lines(cue.lines.iter().map(String::as_str));
    if lines.is_empty() {
        return txt::clean_lines([super::join_words(&cue.words).as_str()]);
    }
    lines
}

/// A cue's text on one line, spaced as the model did.
fn cue_text(cue: &Cue) -> String {
    let words = txt::one_line(&super::join_words(&cue.words));
    if !words.is_empty() {
        return words;
    }
    let mut out = String::new();
    for line in txt::clean_lines(cue.lines.iter().map(String::as_str)) {
        txt::append(&mut out, &line);
    }
    out
}

/// When it was spoken, milliseconds; a cue may stay on screen for longer.
fn spoken_span(cue: &Cue) -> (u64, u64) {
    match (cue.words.first(), cue.words.last()) {
        (Some(first), Some(last)) => (first.start.millis(), last.end.millis()),
        _ => (cue.start.millis(), cue.end.millis()),
    }
}

/// A person's display name, else the id, on one line.
fn speaker_of(name: Option<&str>, id: Option<&str>) -> Option<String> {
    [name, id]
        .into_iter()
        .flatten()
        .map(txt::one_line)
        .find(|s| !s.is_empty())
}

/// `text` as a column of a file whose columns end at white space, or `otherwise` if it is empty.
/// Such files take `;;` for a comment.
fn field(text: &str, otherwise: &str) -> String {
    let clean = txt::one_line(text).replace(' ', "_");
    match clean.trim_start_matches(';') {
        "" => otherwise.to_owned(),
        some => some.to_owned(),
    }
}

/// `hh:mm:ss` and milliseconds after `separator`. Hours grow past two digits.
fn clock(ms: u64, separator: char) -> String {
    let (s, ms) = (ms / 1000, ms % 1000);
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    format!("{h:02}:{m:02}:{s:02}{separator}{ms:03}")
}

/// Seconds with three decimals.
fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// Turns that a live diarizer told bit by bit: a speaker's that adjoin are one.
fn join(turns: &mut Vec<Turn>) {
    let mut open: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    let mut joined: Vec<Turn> = Vec::with_capacity(turns.len());
    turns.sort_by_key(|turn| turn.start);
    for turn in turns.drain(..) {
        if let Some(&n) = open.get(&turn.speaker_id)
            && joined[n].end.0 + 1_000_000 >= turn.start.0
        {
            joined[n].end = joined[n].end.max(turn.end);
            continue;
        }
        open.insert(turn.speaker_id.clone(), joined.len());
        joined.push(turn);
    }
    *turns = joined;
}

/// Follows the relabels in the order in which they came.
fn apply(relabels: &[Relabel], cues: &mut [Cue], turns: &mut [Turn]) {
    for relabel in relabels {
        let id = relabel.new_id.as_ref().unwrap_or(&relabel.old_id).clone();
        let known = cues
            .iter()
            .flat_map(|c| &c.words)
            .filter(|w| w.speaker_id.as_ref() == Some(&id))
            .find_map(|w| w.speaker.clone())
            .or_else(|| {
                turns
                    .iter()
                    .filter(|t| t.speaker_id == id)
                    .find_map(|t| t.speaker.clone())
            });
        let name = relabel.name.clone().or(known);
        let meant = |speaker: Option<&str>, start: StreamNs| {
            speaker == Some(&relabel.old_id)
                && relabel.from.is_none_or(|from| start >= from)
                && relabel.to.is_none_or(|to| start < to)
        };
        for cue in cues.iter_mut() {
            for word in &mut cue.words {
                if meant(word.speaker_id.as_deref(), word.start) {
                    word.speaker_id = Some(id.clone());
                    word.speaker.clone_from(&name);
                }
            }
            match cue.words.first() {
                Some(first) if first.speaker_id.is_some() => {
                    cue.speaker_id.clone_from(&first.speaker_id);
                    cue.speaker.clone_from(&first.speaker);
                }
                _ if meant(cue.speaker_id.as_deref(), cue.start) => {
                    cue.speaker_id = Some(id.clone());
                    cue.speaker.clone_from(&name);
                }
                _ => {}
            }
        }
        for turn in turns.iter_mut() {
            if meant(Some(&turn.speaker_id), turn.start) {
                turn.speaker_id.clone_from(&id);
                turn.speaker.clone_from(&name);
            }
        }
    }
}
