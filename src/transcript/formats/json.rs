// SPDX-License-Identifier: MPL-2.0
//! JSON: one document, or lines as they come; and their readers.
//!
//! The document holds every key of OpenAI's `verbose_json` with the meaning it has there, and more.
//! docs/transcript.schema.json describes it. Within `scribe-transcript/1` keys are only ever added.

use std::io;

use serde::Deserialize;

use super::{Relabel, Totals, cue_text, seconds, speaker_of};
use crate::audio::time::{RunningNs, StreamNs};
use crate::transcript::{Cue, Segment, SegmentInfo, Task, Transcript, Turn, Word, cues, text};

/// Name and version of the layout, the first key of a document.
pub const SCHEMA: &str = "scribe-transcript/1";

/// What the document says about the whole, gathered cue by cue.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    text: String,
    end: StreamNs,
    task: Option<Task>,
    /// How many segments have each language, in order of appearance.
    languages: Vec<(String, u64)>,
    last_segment: Option<u64>,
    /// Id and name, in order of appearance.
    speakers: Vec<(String, Option<String>)>,
}

impl Summary {
    pub fn add(&mut self, cue: &Cue) {
        text::append(&mut self.text, &cue_text(cue));
        let shown_until = cue.end.max(cue.start);
        let spoken = cue.words.iter().map(|w| w.end.max(w.start)).max();
        self.end = self.end.max(spoken.unwrap_or(shown_until));
        self.task.get_or_insert(cue.segment.task);
        if self.last_segment != Some(cue.segment.id) && !cue.segment.language.is_empty() {
            let language = &cue.segment.language;
            match self.languages.iter_mut().find(|(l, _)| l == language) {
                Some((_, count)) => *count += 1,
                None => self.languages.push((language.clone(), 1)),
            }
        }
        self.last_segment = Some(cue.segment.id);
        self.add_speaker(cue.speaker_id.as_deref(), cue.speaker.as_deref());
        for word in &cue.words {
            self.add_speaker(word.speaker_id.as_deref(), word.speaker.as_deref());
        }
    }

    pub fn add_turn(&mut self, turn: &Turn) {
        self.end = self.end.max(turn.end);
        self.add_speaker(Some(&turn.speaker_id), turn.speaker.as_deref());
    }

    /// The given language, else that of most segments, else that of the totals: empty.
    pub fn language(&self, totals: &Totals) -> String {
        if let Some(language) = &totals.language {
            return language.clone();
        }
        let most = self.languages.iter().map(|(_, n)| *n).max();
        self.languages
            .iter()
            .find(|(_, n)| Some(*n) == most)
            .map(|(language, _)| language.clone())
            .unwrap_or_default()
    }

    fn add_speaker(&mut self, id: Option<&str>, name: Option<&str>) {
        // A person who has a name only is known by it.
        let Some(id) = id.or(name) else {
            return;
        };
        match self.speakers.iter_mut().find(|(known, _)| known == id) {
            Some((_, known)) => {
                if name.is_some() {
                    *known = name.map(str::to_owned);
                }
            }
            None => self.speakers.push((id.to_owned(), name.map(str::to_owned))),
        }
    }

    /// `"task":…` to `"speakers":[…]`, which document and last line share.
    fn head(&self, totals: &Totals) -> Vec<String> {
        let task = totals.task.or(self.task).unwrap_or_default();
        let end = self.end.max(totals.duration);
        let mut keys = vec![
            format!(r#""task":{}"#, quote(task.as_str())),
            format!(r#""language":{}"#, quote(&self.language(totals))),
            format!(r#""duration":{}"#, seconds(end.millis())),
            format!(r#""text":{}"#, quote(&self.text)),
        ];
        if !self.speakers.is_empty() {
            let speakers: Vec<String> = self
                .speakers
                .iter()
                .map(|(id, name)| match name {
                    Some(name) => format!(r#"{{"id":{},"name":{}}}"#, quote(id), quote(name)),
                    None => format!(r#"{{"id":{}}}"#, quote(id)),
                })
                .collect();
            keys.push(format!(r#""speakers":[{}]"#, speakers.join(",")));
        }
        keys
    }
}

/// The whole document, one segment, word and turn a line.
pub(super) fn document(
    cues: &[Cue],
    turns: &[Turn],
    totals: &Totals,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let mut summary = Summary::default();
    cues.iter().for_each(|cue| summary.add(cue));
    turns.iter().for_each(|turn| summary.add_turn(turn));

    writeln!(out, "{{\n\"schema\":{},", quote(SCHEMA))?;
    writeln!(out, "{},", summary.head(totals).join(",\n"))?;
    list(out, "words", cues.iter().flat_map(|c| &c.words), plain_word)?;
    out.write_all(b",\n")?;
    let segments = cues.chunk_by(|a, b| a.segment.id == b.segment.id);
    list(out, "segments", segments, segment)?;
    if !turns.is_empty() {
        out.write_all(b",\n")?;
        list(out, "turns", turns, |turn| {
            format!("{{{}}}", turn_keys(turn))
        })?;
    }
    out.write_all(b"\n}\n")
}

/// First of the JSON lines.
pub(super) fn line_start(out: &mut impl io::Write) -> io::Result<()> {
    writeln!(out, r#"{{"type":"start","schema":{}}}"#, quote(SCHEMA))
}

/// The line of a cue, with the figures of its segment.
pub(super) fn line_cue(cue: &Cue, lines: &[String], out: &mut impl io::Write) -> io::Result<()> {
    let mut keys = vec![
        r#""type":"cue""#.to_owned(),
        format!(r#""start":{}"#, seconds(cue.start.millis())),
        format!(r#""end":{}"#, seconds(cue.end.millis())),
        format!(r#""text":{}"#, quote(&cue_text(cue))),
        format!(r#""lines":{}"#, strings(lines)),
    ];
    keys.extend(speaker_keys(
        cue.speaker.as_deref(),
        cue.speaker_id.as_deref(),
    ));
    keys.push(format!(r#""segment":{{{}}}"#, figures(&cue.segment)));
    if !cue.words.is_empty() {
        let words: Vec<String> = cue.words.iter().map(full_word).collect();
        keys.push(format!(r#""words":[{}]"#, words.join(",")));
    }
    writeln!(out, "{{{}}}", keys.join(","))
}

/// The line of a turn.
pub(super) fn line_turn(turn: &Turn, out: &mut impl io::Write) -> io::Result<()> {
    writeln!(out, r#"{{"type":"turn",{}}}"#, turn_keys(turn))
}

/// The line of a relabel.
pub(super) fn line_relabel(relabel: &Relabel, out: &mut impl io::Write) -> io::Result<()> {
    let mut keys = vec![format!(
        r#""type":"relabel","old_id":{}"#,
        quote(&relabel.old_id)
    )];
    let texts = [("new_id", &relabel.new_id), ("name", &relabel.name)];
    for (key, value) in texts {
        if let Some(value) = value {
            keys.push(format!(r#""{key}":{}"#, quote(value)));
        }
    }
    for (key, time) in [("from", relabel.from), ("to", relabel.to)] {
        if let Some(time) = time {
            keys.push(format!(r#""{key}":{}"#, seconds(time.millis())));
        }
    }
    writeln!(out, "{{{}}}", keys.join(","))
}

/// Last of the JSON lines: who finds it has the whole.
pub(super) fn line_end(
    summary: &Summary,
    totals: &Totals,
    out: &mut impl io::Write,
) -> io::Result<()> {
    writeln!(
        out,
        r#"{{"type":"end",{}}}"#,
        summary.head(totals).join(",")
    )
}

fn list<T>(
    out: &mut impl io::Write,
    key: &str,
    items: impl IntoIterator<Item = T>,
    item: impl Fn(T) -> String,
) -> io::Result<()> {
    write!(out, "\"{key}\":[")?;
    let mut separator = "\n";
    for each in items {
        write!(out, "{separator}{}", item(each))?;
        separator = ",\n";
    }
    out.write_all(if separator == "\n" { b"]" } else { b"\n]" })
}

/// `cues`: all of one segment, at least one.
fn segment(cues: &[Cue]) -> String {
    let mut shown = String::new();
    for cue in cues {
        text::append(&mut shown, &cue_text(cue));
    }
    let words = || cues.iter().flat_map(|c| &c.words);
    let info = cues.first().map(|c| c.segment.clone()).unwrap_or_default();
    let first_cue = cues.first().map(|c| c.start).unwrap_or_default();
    let last_cue = cues.last().map(|c| c.end).unwrap_or_default();
    let start = words().map(|w| w.start).min().unwrap_or(first_cue);
    let end = words().map(|w| w.end).max().unwrap_or(last_cue).max(start);
    let mut keys = vec![
        format!(r#""id":{},"seek":{}"#, info.id, info.seek),
        format!(r#""start":{}"#, seconds(start.millis())),
        format!(r#""end":{}"#, seconds(end.millis())),
        format!(r#""text":{}"#, quote(&shown)),
        figures_tail(&info),
    ];
    if let Some(cue) = cues.first() {
        keys.extend(speaker_keys(
            cue.speaker.as_deref(),
            cue.speaker_id.as_deref(),
        ));
    }
    let words: Vec<String> = words().map(full_word).collect();
    if !words.is_empty() {
        keys.push(format!(r#""words":[{}]"#, words.join(",")));
    }
    format!("{{{}}}", keys.join(","))
}

fn figures(info: &SegmentInfo) -> String {
    format!(
        r#""id":{},"seek":{},"task":{},"language":{},{}"#,
        info.id,
        info.seek,
        quote(info.task.as_str()),
        quote(&info.language),
        figures_tail(info)
    )
}

fn figures_tail(info: &SegmentInfo) -> String {
    let tokens: Vec<String> = info.tokens.iter().map(u32::to_string).collect();
    format!(
        r#""tokens":[{}],"temperature":{},"avg_logprob":{},"compression_ratio":{},"no_speech_prob":{}"#,
        tokens.join(","),
        number(info.temperature),
        number(info.avg_logprob),
        number(info.compression_ratio),
        number(info.no_speech_prob)
    )
}

/// A word of the document's own list, as OpenAI's API has it: without space around it.
fn plain_word(word: &Word) -> String {
    let mut keys = vec![
        format!(r#""word":{}"#, quote(&text::one_line(&word.text))),
        format!(r#""start":{}"#, seconds(word.start.millis())),
        format!(r#""end":{}"#, seconds(word.end.max(word.start).millis())),
        format!(r#""probability":{}"#, number(word.probability)),
    ];
    let speaker = speaker_of(word.speaker.as_deref(), word.speaker_id.as_deref());
    if let Some(speaker) = speaker {
        keys.push(format!(r#""speaker":{}"#, quote(&speaker)));
    }
    format!("{{{}}}", keys.join(","))
}

/// A word of a segment, as OpenAI's program has it: joined, the words are the text.
fn full_word(word: &Word) -> String {
    let led = word.text.starts_with(char::is_whitespace);
    let shown = format!(
        "{}{}",
        if led { " " } else { "" },
        text::one_line(&word.text)
    );
    let mut keys = vec![
        format!(r#""word":{}"#, quote(&shown)),
        format!(r#""start":{}"#, seconds(word.start.millis())),
        format!(r#""end":{}"#, seconds(word.end.max(word.start).millis())),
        format!(r#""probability":{}"#, number(word.probability)),
        format!(r#""confidence":{}"#, number(word.confidence)),
    ];
    keys.extend(speaker_keys(
        word.speaker.as_deref(),
        word.speaker_id.as_deref(),
    ));
    format!("{{{}}}", keys.join(","))
}

fn turn_keys(turn: &Turn) -> String {
    let mut keys = speaker_keys(turn.speaker.as_deref(), Some(&turn.speaker_id));
    keys.push(format!(r#""start":{}"#, seconds(turn.start.millis())));
    keys.push(format!(
        r#""end":{}"#,
        seconds(turn.end.max(turn.start).millis())
    ));
    keys.push(format!(r#""confidence":{}"#, number(turn.confidence)));
    keys.join(",")
}

/// `speaker` is what to show: the name, else the id.
fn speaker_keys(name: Option<&str>, id: Option<&str>) -> Vec<String> {
    let mut keys = Vec::new();
    if let Some(shown) = speaker_of(name, id) {
        keys.push(format!(r#""speaker":{}"#, quote(&shown)));
    }
    if let Some(id) = id {
        keys.push(format!(r#""speaker_id":{}"#, quote(id)));
    }
    keys
}

fn strings(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| quote(s)).collect();
    format!("[{}]", quoted.join(","))
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// At most four decimals. JSON has no infinity and no NaN: those become 0.
fn number(value: f32) -> String {
    if !value.is_finite() {
        return "0.0".into();
    }
    let long = format!("{value:.4}");
    let short = long.trim_end_matches('0');
    match short {
        "-0." => "0.0".into(),
        _ if short.ends_with('.') => format!("{short}0"),
        _ => short.into(),
    }
}

/// Why a file could not be read as a transcript.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It is no JSON, or keys are missing or of another type.
    #[error("cannot read the transcript: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON of another layout.
    #[error("the transcript's schema is {0:?}, and {SCHEMA:?} is what this version reads")]
    Schema(String),
}

/// Reads a document that [`Format::Json`](super::Format::Json) wrote.
///
/// Cues, running times and the language of each segment are not in a document: there are no cues,
/// running times are 0, each segment has the document's language.
pub fn read(document: &str) -> Result<Transcript, ReadError> {
    let document: Document = serde_json::from_str(document)?;
    check_schema(&document.schema)?;
    let segments = document.segments.into_iter().map(|s| {
        let mut words: Vec<Word> = s.words.into_iter().map(Word::from).collect();
        if words.is_empty() {
            words = cues::spread(&s.text, stream(s.start), stream(s.end));
        }
        Segment {
            info: SegmentInfo {
                task: document.head.task,
                language: document.head.language.clone(),
                ..s.figures
            },
            words,
        }
    });
    Ok(Transcript {
        segments: segments.collect(),
        turns: document.turns.into_iter().map(Turn::from).collect(),
        ..document.head.into()
    })
}

/// Reads lines that [`Format::Jsonl`](super::Format::Jsonl) wrote, whole or broken off.
///
/// A last line that is cut in its middle is left out.
pub fn read_lines(lines: &str) -> Result<Transcript, ReadError> {
    let mut transcript = Transcript::default();
    let mut cues: Vec<Cue> = Vec::new();
    let mut turns: Vec<Turn> = Vec::new();
    let mut relabels: Vec<Relabel> = Vec::new();
    let mut summary = Summary::default();
    let mut head: Option<Head> = None;
    let is_whole = lines.ends_with('\n');
    let count = lines.lines().count();
    for (n, line) in lines.lines().enumerate() {
        let line = match serde_json::from_str(line) {
            Ok(line) => line,
            Err(_) if n + 1 == count && !is_whole => break,
            Err(err) => return Err(err.into()),
        };
        match line {
            Line::Start { schema } => check_schema(&schema)?,
            Line::Cue(cue) => {
                let cue = Cue::from(*cue);
                summary.add(&cue);
                cues.push(cue);
            }
            Line::Turn(turn) => turns.push(turn.into()),
            Line::Relabel(relabel) => relabels.push(relabel.into()),
            Line::End(end) => head = Some(end),
        }
    }
    super::apply(&relabels, &mut cues, &mut turns);
    for group in cues.chunk_by(|a, b| a.segment.id == b.segment.id) {
        let words = group.iter().flat_map(|cue| match cue.words.as_slice() {
            [] => cues::spread(&cue_text(cue), cue.start, cue.end),
            words => words.to_vec(),
        });
        transcript.segments.push(Segment {
            words: words.collect(),
            info: group[0].segment.clone(),
        });
    }
    let head = head.unwrap_or_else(|| Head {
        task: summary.task.unwrap_or_default(),
        language: summary.language(&Totals::default()),
        duration: summary.end.seconds(),
    });
    Ok(Transcript {
        cues,
        turns,
        segments: transcript.segments,
        ..head.into()
    })
}

fn check_schema(schema: &str) -> Result<(), ReadError> {
    if schema == SCHEMA {
        Ok(())
    } else {
        Err(ReadError::Schema(schema.to_owned()))
    }
}

#[derive(Deserialize)]
struct Document {
    schema: String,
    #[serde(flatten)]
    head: Head,
    segments: Vec<SegmentKeys>,
    #[serde(default)]
    turns: Vec<TurnKeys>,
}

#[derive(Deserialize)]
struct Head {
    task: Task,
    language: String,
    duration: f64,
}

impl From<Head> for Transcript {
    fn from(head: Head) -> Self {
        Self {
            task: head.task,
            language: head.language,
            duration: stream(head.duration),
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct SegmentKeys {
    #[serde(flatten, deserialize_with = "figures_of")]
    figures: SegmentInfo,
    start: f64,
    end: f64,
    text: String,
    #[serde(default)]
    words: Vec<WordKeys>,
}

#[derive(Deserialize)]
struct Figures {
    id: u64,
    seek: u64,
    #[serde(default)]
    task: Task,
    #[serde(default)]
    language: String,
    tokens: Vec<u32>,
    temperature: f32,
    avg_logprob: f32,
    compression_ratio: f32,
    no_speech_prob: f32,
}

fn figures_of<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SegmentInfo, D::Error> {
    let f = Figures::deserialize(from)?;
    Ok(SegmentInfo {
        id: f.id,
        task: f.task,
        language: f.language,
        seek: f.seek,
        tokens: f.tokens,
        temperature: f.temperature,
        avg_logprob: f.avg_logprob,
        compression_ratio: f.compression_ratio,
        no_speech_prob: f.no_speech_prob,
    })
}

#[derive(Deserialize)]
struct WordKeys {
    word: String,
    start: f64,
    end: f64,
    #[serde(default)]
    probability: f32,
    #[serde(default)]
    confidence: f32,
    speaker: Option<String>,
    speaker_id: Option<String>,
}

impl From<WordKeys> for Word {
    fn from(keys: WordKeys) -> Self {
        Self {
            text: keys.word,
            start: stream(keys.start),
            end: stream(keys.end),
            running_start: RunningNs::default(),
            running_end: RunningNs::default(),
            probability: keys.probability,
            confidence: keys.confidence,
            speaker: name_of(keys.speaker, keys.speaker_id.as_deref()),
            speaker_id: keys.speaker_id,
        }
    }
}

#[derive(Deserialize)]
struct TurnKeys {
    speaker: Option<String>,
    speaker_id: String,
    start: f64,
    end: f64,
    confidence: f32,
}

impl From<TurnKeys> for Turn {
    fn from(keys: TurnKeys) -> Self {
        Self {
            speaker: name_of(keys.speaker, Some(&keys.speaker_id)),
            speaker_id: keys.speaker_id,
            start: stream(keys.start),
            end: stream(keys.end),
            confidence: keys.confidence,
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Start { schema: String },
    Cue(Box<CueKeys>),
    Turn(TurnKeys),
    Relabel(RelabelKeys),
    End(Head),
}

#[derive(Deserialize)]
struct CueKeys {
    start: f64,
    end: f64,
    lines: Vec<String>,
    speaker: Option<String>,
    speaker_id: Option<String>,
    #[serde(deserialize_with = "figures_of")]
    segment: SegmentInfo,
    #[serde(default)]
    words: Vec<WordKeys>,
}

impl From<CueKeys> for Cue {
    fn from(keys: CueKeys) -> Self {
        Self {
            start: stream(keys.start),
            end: stream(keys.end),
            lines: keys.lines,
            words: keys.words.into_iter().map(Word::from).collect(),
            segment: keys.segment,
            speaker: name_of(keys.speaker, keys.speaker_id.as_deref()),
            speaker_id: keys.speaker_id,
        }
    }
}

#[derive(Deserialize)]
struct RelabelKeys {
    old_id: String,
    new_id: Option<String>,
    name: Option<String>,
    from: Option<f64>,
    to: Option<f64>,
}

impl From<RelabelKeys> for Relabel {
    fn from(keys: RelabelKeys) -> Self {
        Self {
            old_id: keys.old_id,
            new_id: keys.new_id,
            name: keys.name,
            from: keys.from.map(stream),
            to: keys.to.map(stream),
        }
    }
}

/// Where no name was known, `speaker` repeats the id.
fn name_of(speaker: Option<String>, id: Option<&str>) -> Option<String> {
    speaker.filter(|name| Some(name.as_str()) != id)
}

/// Whole milliseconds, as they were written.
fn stream(seconds: f64) -> StreamNs {
    let ms = (seconds * 1e3).round();
    StreamNs((ms.clamp(0.0, 1e15) as u64).saturating_mul(1_000_000))
}
