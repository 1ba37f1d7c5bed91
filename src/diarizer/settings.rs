// SPDX-License-Identifier: MPL-2.0
//! What a user may set: one place for defaults, ranges and units.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use super::DiarizerMode;
use crate::enroll::BATCH_SIZE_MAX;
use crate::intake::properties::{count, text};
use crate::registry::limit::MemoryLimit;

/// Most people that are told apart where nobody says how many there are.
pub(super) const SPEAKERS_MOST: u32 = 50;

/// Latencies with `mode=online` that nobody asked for: live words stand after a second and a half and do not wait; with more
/// time fewer turns have to be mended.
const LATENCY_LIVE_MS: u32 = 1_000;
const LATENCY_MS: u32 = 5_000;
const LATENCY_LEAST_MS: u32 = 500;

/// Plain data: no handles, no locks, cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub mode: DiarizerMode,
    pub latency_ms: u32,
    /// Words behind it are live, whatever the source is: scribebin knows.
    pub live_words: bool,
    pub step_ms: u32,
    pub num_speakers: u32,
    pub min_speakers: u32,
    pub max_speakers: u32,
    pub segmentation_model: String,
    pub embedding_model: String,
    pub voices: String,
    pub voices_key_file: String,
    pub clustering_threshold: f64,
    pub min_turn_ms: u32,
    pub min_silence_ms: u32,
    pub batch_size: u32,
    pub device: String,
    pub fallback: String,
    pub memory_limit: String,
    pub max_buffered_ms: u32,
    pub post_messages: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: DiarizerMode::Auto,
            latency_ms: 0,
            live_words: false,
            step_ms: 2_000,
            num_speakers: 0,
            min_speakers: 0,
            max_speakers: 0,
            segmentation_model: String::new(),
            embedding_model: "auto".into(),
            voices: String::new(),
            voices_key_file: String::new(),
            clustering_threshold: 0.0,
            min_turn_ms: 100,
            min_silence_ms: 300,
            batch_size: 0,
            device: "auto".into(),
            fallback: "none".into(),
            memory_limit: String::new(),
            max_buffered_ms: 30_000,
            post_messages: true,
        }
    }
}

impl Settings {
    /// Fewest and most people.
    pub(super) fn speakers(&self) -> (usize, usize) {
        let or = |value: u32, otherwise: u32| if value == 0 { otherwise } else { value };
        if self.num_speakers > 0 {
            return (self.num_speakers as usize, self.num_speakers as usize);
        }
        let most = or(self.max_speakers, SPEAKERS_MOST.max(self.min_speakers));
        (or(self.min_speakers, 1) as usize, most as usize)
    }

    /// The embedding model that was asked for by name; `None` for that of the voices, or the best one.
    pub(super) fn embedding_model(&self) -> Option<&str> {
        let name = self.embedding_model.trim();
        (!name.is_empty() && name != "auto").then_some(name)
    }

    /// The embedding models to try after the one asked for, and whether to go on without speakers in the end.
    pub(super) fn fallback(&self) -> (Vec<String>, bool) {
        let steps = self.fallback.split(',').map(str::trim);
        let steps: Vec<&str> = steps.filter(|s| !s.is_empty()).collect();
        let models = steps.iter().filter(|s| **s != "none");
        (
            models.map(|s| (*s).to_owned()).collect(),
            steps.contains(&"none"),
        )
    }

    /// How far behind the sound turns are final with `mode=online`, milliseconds.
    pub(super) fn online_latency_ms(&self, source_is_live: bool) -> u32 {
        match self.latency_ms {
            0 if source_is_live || self.live_words => LATENCY_LIVE_MS,
            0 => LATENCY_MS,
            asked => asked.max(LATENCY_LEAST_MS),
        }
    }

    /// Contradictions that no model could serve, found before one is loaded.
    pub(super) fn check(&self) -> Result<(), String> {
        let (num, min, max) = (self.num_speakers, self.min_speakers, self.max_speakers);
        if max > 0 && min > max {
            return Err(format!(
                "min-speakers ({min}) is above max-speakers ({max}). Lower it, or raise max-speakers"
            ));
        }
        if num > 0 && (num < min || (max > 0 && num > max)) {
            return Err(format!(
                "num-speakers ({num}) is not within min-speakers ({min}) and max-speakers ({max}). Set num-speakers alone"
            ));
        }
        if !self.memory_limit.is_empty() {
            self.memory_limit.parse::<MemoryLimit>()?;
        }
        let steps: Vec<&str> = self.fallback.split(',').map(str::trim).collect();
        if let Some(at) = steps.iter().position(|s| *s == "none")
            && at + 1 < steps.len()
        {
            return Err(format!(
                "fallback=\"{}\" has steps after none, which never fails. Put none last",
                self.fallback
            ));
        }
        match self.device.as_str() {
            "auto" | "cpu" => Ok(()),
            other => Err(format!(
                "device \"{other}\" is not known to the speaker models: auto or cpu"
            )),
        }
    }

    pub(super) fn set(
        &mut self,
        value: &glib::Value,
        pspec: &glib::ParamSpec,
    ) -> Result<(), String> {
        let text = || match value.get::<Option<String>>() {
            Ok(text) => Ok(text.unwrap_or_default()),
            Err(error) => Err(error.to_string()),
        };
        let number = || value.get::<u32>().map_err(|e| e.to_string());
        match pspec.name() {
            "mode" => {
                self.mode = value.get::<DiarizerMode>().map_err(|e| e.to_string())?;
            }
            "latency" => self.latency_ms = number()?,
            "step" => self.step_ms = number()?,
            "num-speakers" => self.num_speakers = number()?,
            "min-speakers" => self.min_speakers = number()?,
            "max-speakers" => self.max_speakers = number()?,
            "segmentation-model" => self.segmentation_model = text()?,
            "embedding-model" => self.embedding_model = text()?,
            "voices" => self.voices = text()?,
            "voices-key-file" => self.voices_key_file = text()?,
            "clustering-threshold" => {
                self.clustering_threshold = value.get::<f64>().map_err(|e| e.to_string())?;
            }
            "min-turn" => self.min_turn_ms = number()?,
            "min-silence" => self.min_silence_ms = number()?,
            "batch-size" => self.batch_size = number()?,
            "device" => self.device = text()?,
            "fallback" => self.fallback = text()?,
            "memory-limit" => self.memory_limit = text()?,
            "max-buffered" => self.max_buffered_ms = number()?,
            "post-messages" => {
                self.post_messages = value.get::<bool>().map_err(|e| e.to_string())?;
            }
            other => return Err(format!("no property {other}")),
        }
        Ok(())
    }

    pub(super) fn get(&self, pspec: &glib::ParamSpec) -> Option<glib::Value> {
        Some(match pspec.name() {
            "mode" => self.mode.to_value(),
            "latency" => self.latency_ms.to_value(),
            "step" => self.step_ms.to_value(),
            "num-speakers" => self.num_speakers.to_value(),
            "min-speakers" => self.min_speakers.to_value(),
            "max-speakers" => self.max_speakers.to_value(),
            "segmentation-model" => self.segmentation_model.to_value(),
            "embedding-model" => self.embedding_model.to_value(),
            "voices" => self.voices.to_value(),
            "voices-key-file" => self.voices_key_file.to_value(),
            "clustering-threshold" => self.clustering_threshold.to_value(),
            "min-turn" => self.min_turn_ms.to_value(),
            "min-silence" => self.min_silence_ms.to_value(),
            "batch-size" => self.batch_size.to_value(),
            "device" => self.device.to_value(),
            "fallback" => self.fallback.to_value(),
            "memory-limit" => self.memory_limit.to_value(),
            "max-buffered" => self.max_buffered_ms.to_value(),
            "post-messages" => self.post_messages.to_value(),
            _ => return None,
        })
    }
}

/// Properties; those that shape the work may change in NULL and READY only.
pub(crate) fn properties() -> &'static [glib::ParamSpec] {
    static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(build);
    &PROPERTIES
}

/// A set of its own: a parameter specification belongs to one class, and scribebin has the same.
pub(crate) fn build() -> Vec<glib::ParamSpec> {
    let d = Settings::default();
    let most = SPEAKERS_MOST;
    vec![
        glib::ParamSpecEnum::builder_with_default("mode", d.mode).nick("Mode").blurb("When turns are told").mutable_ready().build(),
        count("latency", "Latency", "With mode=online: how far behind the sound a turn is final, in milliseconds, 500 at least; 0: 1000 before live words, which stand soon, else 5000; what the turns pad answers a latency query with", 0..=10_000, d.latency_ms),
        count("step", "Step", "From one window of ten seconds to the next, in milliseconds: 1000 doubles the work of 2000 for a little less error", 500..=10_000, d.step_ms),
        count("num-speakers", "Number of speakers", "How many people speak; 0: to be found out", 0..=most, d.num_speakers),
        count("min-speakers", "Fewest speakers", "How many people speak at least; 0: to be found out", 0..=most, d.min_speakers),
        count("max-speakers", "Most speakers", "How many people speak at most; 0: no more than 50", 0..=most, d.max_speakers),
        text("segmentation-model", "Segmentation model", "Who talks when within ten seconds: a name or the path of an ONNX file. Empty: the default", &d.segmentation_model),
        text("embedding-model", "Embedding model", "Voices as vectors: a name or the path of an ONNX file. auto: that of the voices, else the best one on disk. `scribe-models list` shows what is there", &d.embedding_model),
        text("voices", "Voices", "The file of the voices that people are to be known by: who is in it has the name, the others are unknown. It must be there: scribeenroller makes it. Empty: nobody is named", &d.voices),
        text("voices-key-file", "Key file", "Where the key of encrypted voices is; empty: as SCRIBE_VOICES_KEY or SCRIBE_VOICES_KEY_FILE say", &d.voices_key_file),
        glib::ParamSpecDouble::builder("clustering-threshold").nick("Clustering threshold").blurb("Cosine distance under which two voices are one person, 0 to 2; 0: as the embedding model's manifest entry says").minimum(0.0).maximum(2.0).default_value(d.clustering_threshold).mutable_ready().build(),
        count("min-turn", "Shortest turn", "A shorter turn is none, in milliseconds", 0..=10_000, d.min_turn_ms),
        count("min-silence", "Shortest pause", "A pause of a speaker that is not longer is part of the turn, in milliseconds", 0..=10_000, d.min_silence_ms),
        count("batch-size", "Batch size", "Most windows or voices in a batch; 0: what the registry finds best", 0..=BATCH_SIZE_MAX as u32, d.batch_size),
        text("device", "Device", "Where the models run: auto or cpu", &d.device),
        text("fallback", "Fallback", "Embedding models to use when the one asked for cannot be had, separated by commas, the best first; none, as the last: the sound goes on without speakers, with a WARNING. Empty: an ERROR. Where nothing is linked to src, nothing would be left, and it is an ERROR in any case", &d.fallback),
        text("memory-limit", "Memory limit", "Memory that scribe may use of each device, of which it fills 80 %: bytes, a size such as 12G, or a part such as 75%; empty: what SCRIBE_MEMORY_LIMIT says, else what others leave. For the whole process: it can be lowered before the first model is loaded", &d.memory_limit),
        count("max-buffered", "Buffered sound", "Sound that waits in the element before upstream is held, in milliseconds", 1_000..=600_000, d.max_buffered_ms),
        glib::ParamSpecBoolean::builder("post-messages").nick("Post messages").blurb("Post scribe/turn, scribe/relabel and scribe/progress element messages").default_value(d.post_messages).mutable_ready().build(),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats").nick("Statistics").blurb("Seconds of sound, speakers and turns so far, models").read_only().build(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_nobody_can_fill_are_refused() {
        let with = |num, min, max| Settings {
            num_speakers: num,
            min_speakers: min,
            max_speakers: max,
            ..Settings::default()
        };
        for (num, min, max) in [(0, 3, 2), (1, 2, 0), (5, 0, 4), (2, 3, 4)] {
            assert!(with(num, min, max).check().is_err(), "{num} {min} {max}");
        }
        for (num, min, max) in [(0, 0, 0), (2, 2, 2), (3, 0, 0), (0, 2, 0), (0, 0, 1)] {
            assert!(with(num, min, max).check().is_ok(), "{num} {min} {max}");
        }
        assert_eq!(with(0, 0, 0).speakers(), (1, 50));
        assert_eq!(with(4, 0, 0).speakers(), (4, 4));
        assert_eq!(with(0, 2, 0).speakers(), (2, 50));
    }

    #[test]
    fn none_is_the_last_step() {
        let with = |fallback: &str| Settings {
            fallback: fallback.into(),
            ..Settings::default()
        };
        assert!(with("none, ge2e").check().is_err());
        assert!(with("ge2e, none").check().is_ok());
        assert_eq!(with("ge2e, none").fallback(), (vec!["ge2e".into()], true));
        assert_eq!(with("").fallback(), (vec![], false));
    }
}
