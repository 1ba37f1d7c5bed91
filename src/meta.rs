// SPDX-License-Identifier: MPL-2.0
//! Words and turns on buffers, as custom metas: structures that C and Python read without our headers.
//!
//! `ScribeTranscriptMeta`, on a text buffer that holds one cue or one word:
//!
//! | field | type | |
//! | --- | --- | --- |
//! | `schema` | string | `scribe-transcript/1` |
//! | `start`, `end` | guint64 | stream time in nanoseconds |
//! | `final` | gboolean | false: a guess that later text replaces |
//! | `unit` | string | `cue` or `word`: what the buffer holds |
//! | `segment` | GstStructure | `id`, `seek` (guint64), `task`, `language` (string), `temperature`, `avg-logprob`, `compression-ratio`, `no-speech-prob` (gdouble), `tokens` (GstArray of guint) |
//! | `speaker-id`, `speaker` | string | absent where unknown |
//! | `words` | GstArray of GstStructure | `text` (string, with the model's leading space), `start`, `end` (guint64), `probability`, `confidence` (gdouble), `speaker-id`, `speaker` (string, absent where unknown) |
//!
//! `ScribeTurnMeta`, on a buffer of a turn: `schema`, `speaker-id`, `speaker`, `start`, `end`,
//! `confidence` with the same types.
//!
//! Both are registered without tags, so elements that copy buffers keep them. What is read may
//! come from anyone: fields that are missing or of another type make no words, never a panic.

use gst::glib;
use gst::meta::CustomMeta;

use crate::audio::time::{RunningNs, StreamNs};
use crate::transcript::formats::json::SCHEMA;
use crate::transcript::{Cue, SegmentInfo, Task, Turn, Word};

/// Name of the meta on text buffers.
pub const TRANSCRIPT: &str = "ScribeTranscriptMeta";

/// Name of the meta on turn buffers.
pub const TURN: &str = "ScribeTurnMeta";

/// What a text buffer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A line or two for a viewer.
    #[default]
    Cue,
    /// A single word.
    Word,
}

/// What [`read`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcribed {
    /// The cue: lines from the buffer's text, all else from the meta. Running times are 0.
    pub cue: Cue,
    /// False for a guess that later text replaces.
    pub is_final: bool,
    /// What the buffer holds.
    pub unit: Unit,
}

/// Makes both metas known to GStreamer. May be called again.
pub fn register() {
    use std::sync::Once;
    // Two plugins of one process may both come here: the name itself is asked as well.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in [TRANSCRIPT, TURN] {
            if !CustomMeta::is_registered(name) {
                CustomMeta::register_simple(name);
            }
        }
    });
}

/// Puts a final cue on the buffer that has its text. A meta that is there already is replaced.
pub fn write(buffer: &mut gst::BufferRef, cue: &Cue) {
    write_as(buffer, cue, Unit::Cue, true);
}

/// The same for a buffer of a single word: the word, its times and its segment as a cue.
pub fn write_word(buffer: &mut gst::BufferRef, word: &Cue) {
    write_as(buffer, word, Unit::Word, true);
}

/// The same with every choice: `is_final` is false for a guess that later text replaces.
pub fn write_as(buffer: &mut gst::BufferRef, cue: &Cue, unit: Unit, is_final: bool) {
    register();
    with_structure(buffer, TRANSCRIPT, |s| {
        s.set("schema", SCHEMA);
        s.set("start", cue.start.0);
        s.set("end", cue.end.0);
        s.set("final", is_final);
        s.set(
            "unit",
            match unit {
                Unit::Cue => "cue",
                Unit::Word => "word",
            },
        );
        s.set("segment", segment_structure(&cue.segment));
        set_speaker(s, cue.speaker_id.as_deref(), cue.speaker.as_deref());
        s.set(
            "words",
            gst::Array::new(cue.words.iter().map(word_structure)),
        );
    });
}

/// The cue on a buffer; `None` without a meta, or with one that has no valid times.
pub fn read(buffer: &gst::BufferRef) -> Option<Transcribed> {
    register();
    let meta = CustomMeta::from_buffer(buffer, TRANSCRIPT).ok()?;
    let s = meta.structure();
    let start = time(s, "start")?;
    let end = time(s, "end")?;
    let words: Vec<Word> = match s.get::<gst::ArrayRef>("words") {
        Ok(list) => list.iter().filter_map(word_of).collect(),
        Err(_) => Vec::new(),
    };
    let text = text_of(buffer).unwrap_or_default();
    let (speaker_id, speaker) = speaker_of(s);
    let segment = s.get::<gst::Structure>("segment");
    Some(Transcribed {
        cue: Cue {
            start: StreamNs(start),
            end: StreamNs(end.max(start)),
            lines: text
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty())
                .map(str::to_owned)
                .collect(),
            words,
            segment: segment.map(|s| segment_of(&s)).unwrap_or_default(),
            speaker_id,
            speaker,
        },
        is_final: s.get("final").unwrap_or(true),
        unit: match s.get::<&str>("unit") {
            Ok("word") => Unit::Word,
            _ => Unit::Cue,
        },
    })
}

/// Puts `turn` on a buffer. A meta that is there already is replaced.
pub fn write_turn(buffer: &mut gst::BufferRef, turn: &Turn) {
    register();
    with_structure(buffer, TURN, |s| {
        s.set("schema", SCHEMA);
        set_speaker(s, Some(&turn.speaker_id), turn.speaker.as_deref());
        s.set("start", turn.start.0);
        s.set("end", turn.end.0);
        s.set("confidence", f64::from(turn.confidence));
    });
}

/// The turn on a buffer; `None` without a meta, or with one that has no speaker or no times.
pub fn read_turn(buffer: &gst::BufferRef) -> Option<Turn> {
    register();
    let meta = CustomMeta::from_buffer(buffer, TURN).ok()?;
    let s = meta.structure();
    let (speaker_id, speaker) = speaker_of(s);
    let start = time(s, "start")?;
    Some(Turn {
        speaker_id: speaker_id?,
        speaker,
        start: StreamNs(start),
        end: StreamNs(time(s, "end")?.max(start)),
        confidence: number(s, "confidence", 1.0),
    })
}

/// The text of a buffer without the NUL that some elements end it with; `None` if it is not UTF-8.
pub fn text_of(buffer: &gst::BufferRef) -> Option<String> {
    let map = buffer.map_readable().ok()?;
    let text = std::str::from_utf8(map.as_slice()).ok()?;
    Some(text.trim_end_matches('\0').to_owned())
}

fn with_structure(
    buffer: &mut gst::BufferRef,
    name: &str,
    fill: impl FnOnce(&mut gst::StructureRef),
) {
    let meta = if CustomMeta::from_buffer(buffer, name).is_ok() {
        CustomMeta::from_mut_buffer(buffer, name)
    } else {
        CustomMeta::add(buffer, name)
    };
    // Adding fails for names that are not registered only, and both are.
    if let Ok(mut meta) = meta {
        let s = meta.mut_structure();
        s.remove_fields(["speaker-id", "speaker"]);
        fill(s);
    }
}

fn set_speaker(s: &mut gst::StructureRef, id: Option<&str>, name: Option<&str>) {
    s.set_if_some("speaker-id", id.map(no_nul));
    s.set_if_some("speaker", name.map(no_nul));
}

fn speaker_of(s: &gst::StructureRef) -> (Option<String>, Option<String>) {
    (s.get("speaker-id").ok(), s.get("speaker").ok())
}

fn segment_structure(info: &SegmentInfo) -> gst::Structure {
    gst::Structure::builder("segment")
        .field("id", info.id)
        .field("task", info.task.as_str())
        .field("language", no_nul(&info.language))
        .field("seek", info.seek)
        .field("tokens", gst::Array::new(info.tokens.iter().copied()))
        .field("temperature", f64::from(info.temperature))
        .field("avg-logprob", f64::from(info.avg_logprob))
        .field("compression-ratio", f64::from(info.compression_ratio))
        .field("no-speech-prob", f64::from(info.no_speech_prob))
        .build()
}

fn segment_of(s: &gst::StructureRef) -> SegmentInfo {
    SegmentInfo {
        id: s.get("id").unwrap_or_default(),
        task: match s.get::<&str>("task") {
            Ok("translate") => Task::Translate,
            _ => Task::Transcribe,
        },
        language: s.get("language").unwrap_or_default(),
        seek: s.get("seek").unwrap_or_default(),
        tokens: match s.get::<gst::ArrayRef>("tokens") {
            Ok(list) => list.iter().filter_map(|t| t.get::<u32>().ok()).collect(),
            Err(_) => Vec::new(),
        },
        temperature: number(s, "temperature", 0.0),
        avg_logprob: number(s, "avg-logprob", 0.0),
        compression_ratio: number(s, "compression-ratio", 0.0),
        no_speech_prob: number(s, "no-speech-prob", 0.0),
    }
}

fn word_structure(word: &Word) -> gst::Structure {
    let mut s = gst::Structure::builder("word")
        .field("text", no_nul(&word.text))
        .field("start", word.start.0)
        .field("end", word.end.0)
        .field("probability", f64::from(word.probability))
        .field("confidence", f64::from(word.confidence))
        .build();
    set_speaker(&mut s, word.speaker_id.as_deref(), word.speaker.as_deref());
    s
}

fn word_of(value: &glib::SendValue) -> Option<Word> {
    let s = value.get::<gst::Structure>().ok()?;
    let start = time(&s, "start")?;
    let (speaker_id, speaker) = speaker_of(&s);
    Some(Word {
        text: s.get("text").ok()?,
        start: StreamNs(start),
        end: StreamNs(time(&s, "end")?.max(start)),
        running_start: RunningNs::default(),
        running_end: RunningNs::default(),
        probability: number(&s, "probability", 1.0),
        confidence: number(&s, "confidence", 1.0),
        speaker_id,
        speaker,
    })
}

/// A time in nanoseconds. Other programs may have only signed integers to write it with.
fn time(s: &gst::StructureRef, field: &str) -> Option<u64> {
    let value = s.value(field).ok()?;
    if let Ok(time) = value.get::<u64>() {
        return Some(time);
    }
    let signed = value
        .get::<i64>()
        .or_else(|_| value.get::<i32>().map(i64::from));
    signed.ok().and_then(|time| u64::try_from(time).ok())
}

fn number(s: &gst::StructureRef, field: &str, otherwise: f32) -> f32 {
    match s.get::<f64>(field) {
        Ok(value) if value.is_finite() => value as f32,
        _ => otherwise,
    }
}

/// GObject's strings end at a NUL.
fn no_nul(text: &str) -> String {
    text.replace('\0', "")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cue() -> Cue {
        let word = |text: &str, start: u64, end: u64| Word {
            text: text.into(),
            start: StreamNs(start),
            end: StreamNs(end),
            running_start: RunningNs(0),
            running_end: RunningNs(0),
            probability: 0.93,
            confidence: 0.71,
            speaker_id: Some("SPEAKER_00".into()),
            speaker: Some("Alice".into()),
        };
        Cue {
            start: StreamNs(1_000_000_000),
            end: StreamNs(2_500_000_000),
            lines: vec!["Grüß".into(), "Gott".into()],
            words: vec![
                word(" Grüß", 1_000_000_000, 1_400_000_000),
                word(" Gott", 1_400_000_000, 2_000_000_001),
            ],
            segment: SegmentInfo {
                id: 7,
                task: Task::Translate,
                language: "de".into(),
                seek: 100,
                tokens: vec![50364, 1, u32::MAX],
                temperature: 0.2,
                avg_logprob: -0.31,
                compression_ratio: 1.4,
                no_speech_prob: 0.01,
            },
            speaker_id: Some("SPEAKER_00".into()),
            speaker: Some("Alice".into()),
        }
    }

    fn buffer(text: &str) -> gst::Buffer {
        gst::init().unwrap();
        gst::Buffer::from_slice(text.to_owned())
    }

    #[test]
    fn a_cue_comes_back_as_it_was() {
        let mut buffer = buffer("Grüß\nGott");

        write_as(buffer.make_mut(), &cue(), Unit::Word, false);
        let copy = buffer.copy();

        let read = read(&copy).unwrap();
        assert_eq!(read.cue, cue());
        assert_eq!((read.unit, read.is_final), (Unit::Word, false));
    }

    #[test]
    fn writing_again_replaces() {
        let mut buffer = buffer("Grüß\nGott");
        let mut other = cue();
        (other.speaker, other.speaker_id) = (None, None);

        write_as(buffer.make_mut(), &cue(), Unit::Word, false);
        write(buffer.make_mut(), &other);

        assert_eq!(read(&buffer).unwrap().cue, other);
    }

    #[test]
    fn a_turn_comes_back_as_it_was() {
        let mut buffer = buffer("Alice");
        let turn = Turn {
            speaker_id: "SPEAKER_00".into(),
            speaker: None,
            start: StreamNs(5),
            end: StreamNs(9),
            confidence: 0.5,
        };

        write_turn(buffer.make_mut(), &turn);

        assert_eq!(read_turn(&buffer), Some(turn));
        assert_eq!(read(&buffer), None);
    }

    #[test]
    fn fields_of_other_types_are_passed_over() {
        let mut buffer = buffer("\u{0}x");
        register();
        let mut meta = CustomMeta::add(buffer.make_mut(), TRANSCRIPT).unwrap();
        let s = meta.mut_structure();
        s.set("start", 9_i32);
        s.set("end", 3_u64);
        s.set("final", "yes");
        s.set("segment", 3_i32);
        s.set("words", gst::Array::new([1_i32, 2]));
        s.set("speaker", 7_u32);

        let read = read(&buffer).unwrap();

        assert_eq!((read.cue.start, read.cue.end), (StreamNs(9), StreamNs(9)));
        assert!(read.is_final && read.cue.words.is_empty() && read.cue.speaker.is_none());
    }

    #[test]
    fn a_meta_without_times_is_none() {
        let mut buffer = buffer("x");
        register();
        let _ = CustomMeta::add(buffer.make_mut(), TRANSCRIPT).unwrap();
        let _ = CustomMeta::add(buffer.make_mut(), TURN).unwrap();

        assert_eq!(read(&buffer), None);
        assert_eq!(read_turn(&buffer), None);
    }
}
