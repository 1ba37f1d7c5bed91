// SPDX-License-Identifier: MPL-2.0
//! `scribeenc`: text with times in, a caption or transcript file out.
//!
//! docs/formats.md says what each format holds.

mod imp;
mod settings;
mod state;

use gst::glib;
use gst::prelude::*;

pub(crate) use imp::caps;

use crate::transcript::cues;
use crate::transcript::formats;

glib::wrapper! {
    /// The element.
    pub struct Encoder(ObjectSubclass<imp::Encoder>) @extends gst::Element, gst::Object;
}

/// Makes `scribeenc` known to GStreamer, and the metas that it reads.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::meta::register();
    gst::Element::register(
        Some(plugin),
        "scribeenc",
        gst::Rank::NONE,
        Encoder::static_type(),
    )
}

/// What `format` may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeFormat")]
pub enum Format {
    /// See [`formats::Format::Vtt`].
    #[default]
    #[enum_value(name = "WebVTT captions", nick = "vtt")]
    Vtt,
    /// See [`formats::Format::Srt`].
    #[enum_value(name = "SubRip captions", nick = "srt")]
    Srt,
    /// See [`formats::Format::Json`].
    #[enum_value(
        name = "JSON document, a superset of OpenAI's verbose_json",
        nick = "json"
    )]
    Json,
    /// See [`formats::Format::Jsonl`].
    #[enum_value(name = "JSON lines, one a cue, written as they come", nick = "jsonl")]
    Jsonl,
    /// See [`formats::Format::Ttml`].
    #[enum_value(name = "TTML captions, IMSC 1 text profile", nick = "ttml")]
    Ttml,
    /// See [`formats::Format::Text`].
    #[enum_value(name = "Plain text, a line a segment", nick = "text")]
    Text,
    /// See [`formats::Format::Rttm`].
    #[enum_value(name = "RTTM speaker turns", nick = "rttm")]
    Rttm,
    /// See [`formats::Format::Stm`].
    #[enum_value(name = "STM utterances", nick = "stm")]
    Stm,
    /// See [`formats::Format::Ctm`].
    #[enum_value(name = "CTM words", nick = "ctm")]
    Ctm,
}

impl From<Format> for formats::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Vtt => Self::Vtt,
            Format::Srt => Self::Srt,
            Format::Json => Self::Json,
            Format::Jsonl => Self::Jsonl,
            Format::Ttml => Self::Ttml,
            Format::Text => Self::Text,
            Format::Rttm => Self::Rttm,
            Format::Stm => Self::Stm,
            Format::Ctm => Self::Ctm,
        }
    }
}

/// What `cues` may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeEncCues")]
pub enum Cues {
    /// Buffers of single words (as `scribetranscriber unit=word` marks them) become cues, all other
    /// text stays as it is.
    #[default]
    #[enum_value(name = "Make cues out of marked words, keep other text", nick = "auto")]
    Auto,
    /// Every buffer is a cue.
    #[enum_value(name = "A cue a buffer", nick = "keep")]
    Keep,
    /// All text is cut into cues anew: for words of other elements, for text without line breaks.
    #[enum_value(name = "Cut all text into cues anew", nick = "make")]
    Make,
}

/// What `cue-preset` may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeEncCuePreset")]
pub enum CuePreset {
    /// See [`cues::Preset::Netflix`].
    #[default]
    #[enum_value(name = "Two lines of 42 characters, 1 to 7 s", nick = "netflix")]
    Netflix,
    /// See [`cues::Preset::Bbc`].
    #[enum_value(
        name = "Two lines of 37 characters, unhurried, no short gaps",
        nick = "bbc"
    )]
    Bbc,
    /// See [`cues::Preset::Openai`].
    #[enum_value(
        name = "A sentence a cue on one line, times as spoken",
        nick = "openai"
    )]
    Openai,
}

impl From<CuePreset> for cues::Preset {
    fn from(preset: CuePreset) -> Self {
        match preset {
            CuePreset::Netflix => Self::Netflix,
            CuePreset::Bbc => Self::Bbc,
            CuePreset::Openai => Self::Openai,
        }
    }
}
