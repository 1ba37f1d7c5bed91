// SPDX-License-Identifier: MPL-2.0
//! `scribetranscriber`: audio in, words or cues with times out.

mod branch;
mod imp;
mod live;
mod load;
mod output;
mod ports;
mod report;
pub(crate) mod settings;
mod speakers;
mod translations;
mod unsynced;
mod worker;

use gst::glib;
use gst::prelude::*;

use crate::inference::manifest;
use crate::inference::whisper_cpp::logging;
pub use crate::intake::Channels;
use crate::transcript::Task;
pub use translations::TranslatePad;

glib::wrapper! {
    /// See the module.
    pub struct Transcriber(ObjectSubclass<imp::Transcriber>)
        @extends gst::Element, gst::Object,
        @implements gst::ChildProxy;
}

/// What was asked of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeTask")]
pub enum TaskSetting {
    /// Text in the language that is spoken.
    #[default]
    #[enum_value(name = "Text in the language that is spoken", nick = "transcribe")]
    Transcribe,
    /// English text.
    #[enum_value(name = "English text", nick = "translate")]
    Translate,
}

impl TaskSetting {
    pub(crate) fn task(self) -> Task {
        match self {
            Self::Transcribe => Task::Transcribe,
            Self::Translate => Task::Translate,
        }
    }
}

/// What a buffer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeUnit")]
pub enum Unit {
    /// A line or two, for reading.
    #[default]
    #[enum_value(name = "A cue: a line or two, for reading", nick = "cue")]
    Cue,
    /// One word.
    #[enum_value(name = "One word", nick = "word")]
    Word,
}

/// How cues are shaped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeCuePreset")]
pub enum CuePreset {
    /// Two lines of 42, seven seconds.
    #[default]
    #[enum_value(name = "Two lines of 42 characters, at most 7 s", nick = "netflix")]
    Netflix,
    /// Two lines of 37.
    #[enum_value(name = "Two lines of 37 characters, long pauses kept", nick = "bbc")]
    Bbc,
    /// A segment as OpenAI's own writer makes it.
    #[enum_value(name = "Long lines as OpenAI's writer makes them", nick = "openai")]
    Openai,
}

/// Which engine runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeEngine")]
pub enum Engine {
    /// By the model's file.
    #[default]
    #[enum_value(name = "By the model's file", nick = "auto")]
    Auto,
    /// ggml files.
    #[enum_value(name = "whisper.cpp, for ggml files", nick = "whisper-cpp")]
    WhisperCpp,
    /// Two ONNX files.
    #[enum_value(
        name = "ONNX Runtime, for NAME.encoder.onnx with NAME.decoder.onnx beside it: the fastest on a processor",
        nick = "onnx"
    )]
    Onnx,
}

impl Engine {
    /// The one that is meant; `None` for the one that the model's file is for.
    pub(crate) fn asked(self) -> Option<manifest::Engine> {
        match self {
            Self::Auto => None,
            Self::WhisperCpp => Some(manifest::Engine::WhisperCpp),
            Self::Onnx => Some(manifest::Engine::OnnxRuntime),
        }
    }
}

/// In which process the model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeIsolation")]
pub enum IsolationSetting {
    /// As `SCRIBE_ISOLATION` says, else a process of its own on a card.
    #[default]
    #[enum_value(
        name = "As SCRIBE_ISOLATION in the environment says, else in-process on the processor and in a process of its own on a card",
        nick = "auto"
    )]
    Auto,
    /// In the application's.
    #[enum_value(name = "In the application's process", nick = "in-process")]
    InProcess,
    /// In scribe-worker.
    #[enum_value(
        name = "In a process of its own, scribe-worker, that is started again when it dies",
        nick = "process"
    )]
    Process,
}

/// For whom the words are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeMode")]
pub enum Mode {
    /// File unless upstream says that it is live.
    #[default]
    #[enum_value(name = "File, or live where upstream says that it is", nick = "auto")]
    Auto,
    /// Best text, as fast as the machine can.
    #[enum_value(name = "Best text, as fast as the machine can", nick = "file")]
    File,
    /// Words while somebody speaks.
    #[enum_value(
        name = "Words while they are spoken, at most latency behind",
        nick = "live"
    )]
    Live,
}

/// Registers the element.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    logging::set_sink(imp::whisper_line);
    gst::Element::register(
        Some(plugin),
        "scribetranscriber",
        gst::Rank::NONE,
        Transcriber::static_type(),
    )
}
