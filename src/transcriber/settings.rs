// SPDX-License-Identifier: MPL-2.0
//! What a user may set: one place for defaults, ranges and units.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use super::{Channels, CuePreset, Engine, IsolationSetting, Mode, TaskSetting, Unit};
use crate::audio::speech::SpeechParams;
use crate::intake::properties::{count, flag, text};
use crate::registry::limit::MemoryLimit;

/// Plain data: no handles, no locks, cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub model: String,
    pub vad_model: String,
    pub language_code: String,
    pub task: TaskSetting,
    pub prompt: String,
    pub vocabulary: Vec<String>,
    pub beam_size: u32,
    pub temperatures: Vec<f64>,
    pub word_times: bool,
    pub vad: bool,
    pub vad_threshold: f64,
    pub vad_neg_threshold: f64,
    pub vad_min_speech_ms: u32,
    pub vad_min_silence_ms: u32,
    pub vad_pad_ms: u32,
    pub verbatim: bool,
    pub unit: Unit,
    pub cue_preset: CuePreset,
    pub max_line_width: u32,
    pub max_lines: u32,
    pub max_cue_duration_ms: u32,
    pub min_cue_duration_ms: u32,
    pub channels: Channels,
    pub threads: u32,
    pub device: String,
    pub fallback: String,
    pub memory_limit: String,
    pub engine: Engine,
    pub isolation: IsolationSetting,
    pub mode: Mode,
    pub latency_ms: u32,
    pub lateness_ms: u32,
    pub max_delay_ms: u32,
    pub step_ms: u32,
    pub max_buffered_ms: u32,
    pub post_messages: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let speech = SpeechParams::default();
        Self {
            model: String::new(),
            vad_model: String::new(),
            language_code: "auto".into(),
            task: TaskSetting::Transcribe,
            prompt: String::new(),
            vocabulary: Vec::new(),
            beam_size: 0,
            temperatures: vec![0.4, 0.8],
            word_times: true,
            vad: true,
            vad_threshold: f64::from(speech.threshold),
            vad_neg_threshold: f64::from(speech.neg_threshold),
            vad_min_speech_ms: speech.min_speech_ms,
            vad_min_silence_ms: speech.min_silence_ms,
            vad_pad_ms: speech.pad_ms,
            verbatim: false,
            unit: Unit::Cue,
            cue_preset: CuePreset::Netflix,
            max_line_width: 0,
            max_lines: 0,
            max_cue_duration_ms: 0,
            min_cue_duration_ms: 0,
            channels: Channels::Mix,
            threads: 1,
            device: "auto".into(),
            fallback: String::new(),
            memory_limit: String::new(),
            engine: Engine::Auto,
            isolation: IsolationSetting::Auto,
            mode: Mode::Auto,
            latency_ms: 4_000,
            lateness_ms: 0,
            max_delay_ms: 10_000,
            step_ms: 800,
            max_buffered_ms: 30_000,
            post_messages: true,
        }
    }
}

impl Settings {
    /// Contradictions that no model could serve, found before one is loaded.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.vad_neg_threshold > self.vad_threshold {
            return Err(format!(
                "vad-neg-threshold ({}) is above vad-threshold ({}): speech would end before it began. Lower it",
                self.vad_neg_threshold, self.vad_threshold
            ));
        }
        if self.max_cue_duration_ms > 0 && self.min_cue_duration_ms > self.max_cue_duration_ms {
            return Err(format!(
                "min-cue-duration ({} ms) is above max-cue-duration ({} ms). Lower it",
                self.min_cue_duration_ms, self.max_cue_duration_ms
            ));
        }
        if let Some(bad) = self.temperatures.iter().find(|t| !(0.0..=1.0).contains(*t)) {
            return Err(format!(
                "temperature-fallback holds {bad}: temperatures are 0 to 1"
            ));
        }
        if !self.memory_limit.is_empty() {
            self.memory_limit.parse::<MemoryLimit>()?;
        }
        let device = self.device.as_str();
        if device != "auto" && device != "cpu" && !device.starts_with("cuda") {
            return Err(format!(
                "device \"{device}\" is not known: auto, cpu or cuda:N"
            ));
        }
        Ok(())
    }

    /// Language as the models write it: the first part of a BCP 47 tag, small letters. `None` for auto.
    pub(super) fn language(&self) -> Option<String> {
        let first = self
            .language_code
            .split(['-', '_'])
            .next()
            .unwrap_or("")
            .to_ascii_lowercase();
        (!first.is_empty() && first != "auto").then_some(first)
    }

    pub(super) fn set(
        &mut self,
        value: &glib::Value,
        pspec: &glib::ParamSpec,
    ) -> Result<(), glib::Error> {
        let failed = |e: String| glib::Error::new(gst::LibraryError::Settings, &e);
        fn get<'v, T: glib::value::FromValue<'v>>(value: &'v glib::Value) -> Result<T, String>
        where
            <T as glib::value::FromValue<'v>>::Checker: glib::value::ValueTypeChecker,
            <<T as glib::value::FromValue<'v>>::Checker as glib::value::ValueTypeChecker>::Error:
                std::fmt::Display,
        {
            value.get::<T>().map_err(|e| e.to_string())
        }
        let text = || get::<Option<String>>(value).map(Option::unwrap_or_default);
        let outcome = (|| -> Result<(), String> {
            match pspec.name() {
                "model" => self.model = text()?,
                "vad-model" => self.vad_model = text()?,
                "language-code" => self.language_code = text()?,
                "task" => self.task = get(value)?,
                "prompt" => self.prompt = text()?,
                "vocabulary" => {
                    let array = get::<gst::Array>(value)?;
                    self.vocabulary = array
                        .iter()
                        .filter_map(|v| v.get::<String>().ok())
                        .collect();
                }
                "beam-size" => self.beam_size = get(value)?,
                "temperature-fallback" => {
                    let array = get::<gst::Array>(value)?;
                    self.temperatures = array.iter().filter_map(|v| v.get::<f64>().ok()).collect();
                }
                "word-times" => self.word_times = get(value)?,
                "vad" => self.vad = get(value)?,
                "vad-threshold" => self.vad_threshold = get(value)?,
                "vad-neg-threshold" => self.vad_neg_threshold = get(value)?,
                "vad-min-speech" => self.vad_min_speech_ms = get(value)?,
                "vad-min-silence" => self.vad_min_silence_ms = get(value)?,
                "vad-pad" => self.vad_pad_ms = get(value)?,
                "verbatim" => self.verbatim = get(value)?,
                "unit" => self.unit = get(value)?,
                "cue-preset" => self.cue_preset = get(value)?,
                "max-line-width" => self.max_line_width = get(value)?,
                "max-lines" => self.max_lines = get(value)?,
                "max-cue-duration" => self.max_cue_duration_ms = get(value)?,
                "min-cue-duration" => self.min_cue_duration_ms = get(value)?,
                "channels" => self.channels = get(value)?,
                "threads" => self.threads = get(value)?,
                "device" => self.device = text()?,
                "fallback" => self.fallback = text()?,
                "memory-limit" => self.memory_limit = text()?,
                "engine" => self.engine = get(value)?,
                "isolation" => self.isolation = get(value)?,
                "mode" => self.mode = get(value)?,
                "latency" => self.latency_ms = get(value)?,
                "lateness" => self.lateness_ms = get(value)?,
                "max-delay" => self.max_delay_ms = get(value)?,
                "step" => self.step_ms = get(value)?,
                "max-buffered" => self.max_buffered_ms = get(value)?,
                "post-messages" => self.post_messages = get(value)?,
                other => return Err(format!("no property {other}")),
            }
            Ok(())
        })();
        outcome.map_err(failed)
    }

    pub(super) fn get(&self, pspec: &glib::ParamSpec) -> Option<glib::Value> {
        Some(match pspec.name() {
            "model" => self.model.to_value(),
            "vad-model" => self.vad_model.to_value(),
            "language-code" => self.language_code.to_value(),
            "task" => self.task.to_value(),
            "prompt" => self.prompt.to_value(),
            "vocabulary" => gst::Array::new(self.vocabulary.iter()).to_value(),
            "beam-size" => self.beam_size.to_value(),
            "temperature-fallback" => gst::Array::new(self.temperatures.iter()).to_value(),
            "word-times" => self.word_times.to_value(),
            "vad" => self.vad.to_value(),
            "vad-threshold" => self.vad_threshold.to_value(),
            "vad-neg-threshold" => self.vad_neg_threshold.to_value(),
            "vad-min-speech" => self.vad_min_speech_ms.to_value(),
            "vad-min-silence" => self.vad_min_silence_ms.to_value(),
            "vad-pad" => self.vad_pad_ms.to_value(),
            "verbatim" => self.verbatim.to_value(),
            "unit" => self.unit.to_value(),
            "cue-preset" => self.cue_preset.to_value(),
            "max-line-width" => self.max_line_width.to_value(),
            "max-lines" => self.max_lines.to_value(),
            "max-cue-duration" => self.max_cue_duration_ms.to_value(),
            "min-cue-duration" => self.min_cue_duration_ms.to_value(),
            "channels" => self.channels.to_value(),
            "threads" => self.threads.to_value(),
            "device" => self.device.to_value(),
            "fallback" => self.fallback.to_value(),
            "memory-limit" => self.memory_limit.to_value(),
            "engine" => self.engine.to_value(),
            "isolation" => self.isolation.to_value(),
            "mode" => self.mode.to_value(),
            "latency" => self.latency_ms.to_value(),
            "lateness" => self.lateness_ms.to_value(),
            "max-delay" => self.max_delay_ms.to_value(),
            "step" => self.step_ms.to_value(),
            "max-buffered" => self.max_buffered_ms.to_value(),
            "post-messages" => self.post_messages.to_value(),
            _ => return None,
        })
    }
}

/// Properties; those that shape the work may change in NULL and READY only.
pub(super) fn properties() -> &'static [glib::ParamSpec] {
    static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(build);
    &PROPERTIES
}

fn share(name: &str, nick: &str, blurb: &str, default: f64) -> glib::ParamSpec {
    glib::ParamSpecDouble::builder(name)
        .nick(nick)
        .blurb(blurb)
        .minimum(0.01)
        .maximum(1.0)
        .default_value(default)
        .mutable_ready()
        .build()
}

/// A set of its own: a parameter specification belongs to one class, and scribebin has the same.
pub(crate) fn build() -> Vec<glib::ParamSpec> {
    let d = Settings::default();
    let ms = |name, nick, blurb, most, default| count(name, nick, blurb, 0..=most, default);
    vec![
        text("model", "Model", "Whisper model: a name (tiny.en, base-q5_1, large-v3-turbo), an id, or the path of a ggml file, of NAME.encoder.onnx, or of a folder with a Whisper model as Optimum exports it (slower). Empty: the default model. `scribe-models list` shows what is there", &d.model),
        text("vad-model", "VAD model", "Voice activity model: a name or the path of the Silero ONNX file. Empty: the default", &d.vad_model),
        text("language-code", "Language", "Language that is spoken, as ISO 639-1 or BCP 47 (en, en-US); auto: heard from the speech", &d.language_code),
        glib::ParamSpecEnum::builder_with_default("task", d.task).nick("Task").blurb("Text in the language that is spoken, or in English").mutable_ready().build(),
        text("prompt", "Prompt", "Text that might have come before: its names, spelling and style are followed. At most 1000 characters; with vocabulary, 223 tokens", &d.prompt),
        gst::ParamSpecArray::builder("vocabulary").nick("Vocabulary").blurb("Words and names to expect, as an array of strings: \"<Ada,Lovelace>\"").element_spec(&glib::ParamSpecString::builder("word").build()).mutable_ready().build(),
        count("beam-size", "Beam size", "Texts followed at once while decoding: 1 is greedy, 0 what is best for the engine (whisper.cpp 4, ONNX Runtime 5)", 0..=8, d.beam_size),
        gst::ParamSpecArray::builder("temperature-fallback").nick("Temperature fallback").blurb("Temperatures tried in turn, as an array of doubles from 0 to 1, on windows that the guards refuse; empty: none. Default: <0.4,0.8>").element_spec(&glib::ParamSpecDouble::builder("temperature").minimum(0.0).maximum(1.0).build()).mutable_ready().build(),
        flag("word-times", "Word times", "Times for each word, from the model's attention. Without, words are spread over the speech, and what a window leaves out at its end goes unnoticed", d.word_times),
        flag("vad", "Voice activity detection", "Only speech reaches the model. Off: everything does, and it may make up words in silence", d.vad),
        share("vad-threshold", "VAD threshold", "Probability from which a frame of 32 ms begins speech, 0.01 to 1", d.vad_threshold),
        share("vad-neg-threshold", "VAD end threshold", "Probability below which speech ends, 0.01 to 1, at most vad-threshold", d.vad_neg_threshold),
        ms("vad-min-speech", "Shortest speech", "Speech shorter than this is none, in milliseconds", 10_000, d.vad_min_speech_ms),
        ms("vad-min-silence", "Shortest silence", "A pause shorter than this ends no speech, in milliseconds", 10_000, d.vad_min_silence_ms),
        ms("vad-pad", "Speech padding", "Kept before and after speech, in milliseconds", 2_000, d.vad_pad_ms),
        flag("verbatim", "Verbatim", "Keep the model's text as it is: no filter for known phrases or for words without speech under them. Loops are still stopped", d.verbatim),
        glib::ParamSpecEnum::builder_with_default("unit", d.unit).nick("Unit").blurb("What a buffer holds").mutable_ready().build(),
        glib::ParamSpecEnum::builder_with_default("cue-preset", d.cue_preset).nick("Cue preset").blurb("How cues are shaped; the four properties after this one change its parts").mutable_ready().build(),
        count("max-line-width", "Line width", "Most characters in a line, wide ones counting two; 0: as the preset", 0..=1000, d.max_line_width),
        count("max-lines", "Lines", "Most lines in a cue; 0: as the preset", 0..=10, d.max_lines),
        ms("max-cue-duration", "Longest cue", "Longest time that a cue's words span, in milliseconds; 0: as the preset", 60_000, d.max_cue_duration_ms),
        ms("min-cue-duration", "Shortest cue", "Shortest time a cue is shown where the next one allows it, in milliseconds; 0: as the preset", 60_000, d.min_cue_duration_ms),
        glib::ParamSpecEnum::builder_with_default("channels", d.channels).nick("Channels").blurb("Mix all channels, or transcribe each as a speaker of its own").mutable_ready().build(),
        count("threads", "Threads", "Threads that one window computes with. 1 is fastest for files: the machine's other cores take other windows", 1..=64, d.threads),
        text("fallback", "Fallback", "Models to use when the one asked for cannot be had, separated by commas, the best first: a name or a path, cpu for the same model on the CPU, or both as in base.en@cpu; empty: none", &d.fallback),
        text("memory-limit", "Memory limit", "Memory that scribe may use of each device, of which it fills 80 %: bytes, a size such as 12G, or a part such as 75%; empty: what SCRIBE_MEMORY_LIMIT says, else what others leave. For the whole process: it can be lowered before the first model is loaded", &d.memory_limit),
        text("device", "Device", "Where the model runs: auto, cpu, or cuda:N, an NVIDIA card: a ggml model in a build with CUDA, an ONNX model with an ONNX Runtime that can use cards", &d.device),
        glib::ParamSpecEnum::builder_with_default("engine", d.engine).nick("Engine").blurb("What runs the model. With no model named, its default; else the one that the file is for").mutable_ready().build(),
        glib::ParamSpecEnum::builder_with_default("isolation", d.isolation).nick("Isolation").blurb("In which process the model runs. In one of its own a crash of the engine costs the application a moment, not its life").mutable_ready().build(),
        glib::ParamSpecEnum::builder_with_default("mode", d.mode).nick("Mode").blurb("For whom the words are").mutable_ready().build(),
        glib::ParamSpecUInt::builder("latency").nick("Latency").blurb("How long words may trail a live source, in milliseconds; what a latency query is answered with").default_value(d.latency_ms).mutable_playing().build(),
        count("lateness", "Lateness", "Added to the running time of the text, in milliseconds: later captions for less latency", 0..=u32::MAX, d.lateness_ms),
        count("max-delay", "Most delay", "Live: no word leaves later than this after its sound, in milliseconds, however busy the machine is. What would is given up: a GAP, scribe/degraded and a QoS message tell", 1_000..=120_000, d.max_delay_ms),
        count("step", "Step", "Live: new sound between two decodings while somebody speaks, in milliseconds. Shorter is sooner and costs as much more; wider where the machine is too slow", 200..=10_000, d.step_ms),
        count("max-buffered", "Buffered sound", "Sound that waits in the element before upstream is held, in milliseconds", 1_000..=600_000, d.max_buffered_ms),
        flag("post-messages", "Post messages", "Post scribe/transcript and scribe/progress element messages", d.post_messages),
        glib::ParamSpecUInt::builder("max-observed-delay").nick("Longest delay").blurb("Live: the longest time from the end of a word's sound until it left, in milliseconds; notified when it grows").read_only().build(),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats").nick("Statistics").blurb("Engine, instruction sets, layout of the model's files (ggml; scribe: our own graphs; optimum: an export, which is slower), whether it gives word times (else they are spread over the speech), seconds of sound and of speech, windows, windows decoded again, words, questions in work; with isolation=process the worker's process id (0: none now) and restarts").read_only().build(),
    ]
}
