// SPDX-License-Identifier: MPL-2.0
//! What scribe has heard, as plain data: the only currency between logic, elements and encoders.
//!
//! A [`Transcript`] holds [`Segment`]s (sentences or stretches between pauses), a segment holds
//! [`Word`]s. [`Cue`]s are what a viewer reads: one or more to a segment, never over its border.

pub mod cues;
pub mod formats;
mod text;

pub use text::strip_markup;

use serde::{Deserialize, Serialize};

use crate::audio::time::{RunningNs, StreamNs};

/// A word with its times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// The text with the leading space that the model gave, so that joined words read right in
    /// languages with and without spaces.
    pub text: String,
    /// Where it begins in the recording.
    pub start: StreamNs,
    /// Where it ends in the recording, after `start`.
    pub end: StreamNs,
    /// Running time of `start`, for events between elements.
    pub running_start: RunningNs,
    /// Running time of `end`.
    pub running_end: RunningNs,
    /// The model's own probability, 0 to 1: mean over the word's tokens.
    pub probability: f32,
    /// How far to trust it, 0 to 1: the probability with the guards' evidence weighed in.
    pub confidence: f32,
    /// Stable id of the speaker, where a diarizer gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker_id: Option<String>,
    /// Display name of the speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<String>,
}

/// What the model was asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Text in the language that is spoken.
    #[default]
    Transcribe,
    /// English text.
    Translate,
}

impl Task {
    /// `"transcribe"` or `"translate"`, as in OpenAI's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transcribe => "transcribe",
            Self::Translate => "translate",
        }
    }
}

/// Figures of a segment, as the model gave them: OpenAI's names and meanings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Counts up from 0 over the stream.
    pub id: u64,
    /// What was asked.
    pub task: Task,
    /// ISO 639-1 code of the language.
    pub language: String,
    /// Start of the window in which it was decoded, in hundredths of a second of stream time.
    pub seek: u64,
    /// Token ids of the text.
    pub tokens: Vec<u32>,
    /// Temperature of the pass that gave the text.
    pub temperature: f32,
    /// Mean natural logarithm of the tokens' probabilities over the window.
    pub avg_logprob: f32,
    /// Bytes of the window's text over its bytes after zlib: above 2.4 it is a loop.
    pub compression_ratio: f32,
    /// Probability that the window holds no speech.
    pub no_speech_prob: f32,
}

/// A sentence, or a stretch bounded by pauses, a change of speaker or the edge of a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The window's figures.
    pub info: SegmentInfo,
    /// Its words in order. Never empty in a finished transcript.
    pub words: Vec<Word>,
}

impl Segment {
    /// The words joined and trimmed.
    pub fn text(&self) -> String {
        join_words(&self.words)
    }
}

/// What a viewer reads at one time: a line or two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cue {
    /// When it appears.
    pub start: StreamNs,
    /// When it goes, after `start`. May be later than the last word's end, so that it can be read.
    pub end: StreamNs,
    /// Lines, without leading or trailing space.
    pub lines: Vec<String>,
    /// The words it shows. Empty for text that came without words.
    pub words: Vec<Word>,
    /// The segment it belongs to.
    pub segment: SegmentInfo,
    /// Stable id of the one speaker of all its words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker_id: Option<String>,
    /// Display name of that speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<String>,
}

impl Cue {
    /// The lines joined by line feeds.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// One person speaking for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Stable id.
    pub speaker_id: String,
    /// Display name, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<String>,
    /// Where it begins in the recording.
    pub start: StreamNs,
    /// Where it ends.
    pub end: StreamNs,
    /// 0 to 1.
    pub confidence: f32,
}

/// Everything that was heard in a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// What was asked.
    pub task: Task,
    /// ISO 639-1 code of the language that most of the segments have.
    pub language: String,
    /// Length of the recording in nanoseconds of stream time.
    pub duration: StreamNs,
    /// In order of time.
    pub segments: Vec<Segment>,
    /// In order of time, never overlapping.
    pub cues: Vec<Cue>,
    /// In order of their start; turns of two speakers may overlap.
    pub turns: Vec<Turn>,
}

impl Transcript {
    /// All text: segments joined by spaces where the words bring none.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for segment in &self.segments {
            text::append(&mut out, &segment.text());
        }
        out.trim().to_owned()
    }
}

/// Words joined as the model wrote them, without space at either end.
pub fn join_words(words: &[Word]) -> String {
    let mut out = String::new();
    for word in words {
        out.push_str(&word.text);
    }
    out.trim().to_owned()
}
