// SPDX-License-Identifier: MPL-2.0
//! What a user may set: one place for defaults, ranges and units.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use gst::glib;
use gst::prelude::*;

use super::EnrollPolicy;
use crate::enroll::judge::Limits;
use crate::enroll::keeper::{KeepOptions, Whose};
use crate::enroll::{BATCH_SIZE_MAX, EnrollOptions};
use crate::intake::properties::{count, flag, text};
use crate::registry::limit::MemoryLimit;
use crate::voices::{Consent, consent, names, now, time_text};

/// Plain data: no handles, no locks, cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub name_of: String,
    pub voices: String,
    pub voices_key_file: String,
    pub policy: EnrollPolicy,
    pub consent: String,
    pub require_consent: bool,
    pub expires_after_days: u32,
    pub segment_duration_ms: u32,
    pub segment_hop_ms: u32,
    pub max_segments: u32,
    pub min_speech_ms: u32,
    pub skip_above_s: u32,
    pub batch_size: u32,
    pub segmentation_model: String,
    pub embedding_model: String,
    pub vad_model: String,
    pub device: String,
    pub memory_limit: String,
    pub max_buffered_ms: u32,
    pub post_messages: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name_of: String::new(),
            voices: String::new(),
            voices_key_file: String::new(),
            policy: EnrollPolicy::Name,
            consent: String::new(),
            require_consent: false,
            expires_after_days: 0,
            segment_duration_ms: 3_000,
            segment_hop_ms: 1_500,
            max_segments: 500,
            min_speech_ms: 2_000,
            skip_above_s: 0,
            batch_size: 0,
            segmentation_model: String::new(),
            embedding_model: "auto".into(),
            vad_model: String::new(),
            device: "auto".into(),
            memory_limit: String::new(),
            max_buffered_ms: 30_000,
            post_messages: true,
        }
    }
}

impl Settings {
    /// Contradictions, and what no model could serve, found before one is loaded.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.voices.is_empty() {
            return Err("voices= is not set: it names the file that voices are kept in".into());
        }
        match (self.policy, self.name_of.trim()) {
            (EnrollPolicy::Name, "") => {
                return Err(
                    "name-of= is not set: whose voice is it? For a conversation put scribediarizer before scribeenroller \
                     and set policy=unknown or policy=named"
                        .into(),
                );
            }
            (EnrollPolicy::Name, name) => {
                names::normal(name).map(drop).map_err(|e| e.to_string())?
            }
            (_, "") => {}
            (_, _) => {
                return Err(
                    "name-of= is for policy=name: who has a name in a conversation is found out by the voice".into(),
                );
            }
        }
        let consent = self.consent()?;
        if self.require_consent && consent.is_none() && self.policy != EnrollPolicy::Named {
            return Err(
                "require-consent=true and no consent= is set. A voiceprint is biometric data: say who gave leave, when and \
                 for what, as in consent=\"Alice Smith; 2026-11-26; minutes of our meetings\""
                    .into(),
            );
        }
        if self.segment_hop_ms > self.segment_duration_ms {
            return Err(format!(
                "segment-hop ({}) is above segment-duration ({}): speech would be left out. Lower it",
                self.segment_hop_ms, self.segment_duration_ms
            ));
        }
        self.options(|name| std::env::var(name).ok())?;
        if !self.memory_limit.is_empty() {
            self.memory_limit.parse::<MemoryLimit>()?;
        }
        match self.device.as_str() {
            "auto" | "cpu" => Ok(()),
            other => Err(format!(
                "device \"{other}\" is not known to the speaker models: auto or cpu"
            )),
        }
    }

    /// Leave to keep the voice, if it is said.
    pub(super) fn consent(&self) -> Result<Option<Consent>, String> {
        if self.consent.trim().is_empty() {
            return Ok(None);
        }
        let parts: Vec<&str> = self.consent.splitn(3, ';').map(str::trim).collect();
        let [who, when, purpose] = parts[..] else {
            return Err(format!(
                "consent=\"{}\" does not say who gave it, when and for what, with semicolons between, as in \
                 \"Alice Smith; 2026-11-26; minutes of our meetings\"",
                self.consent
            ));
        };
        let consent = Consent {
            who: who.to_owned(),
            when: match when {
                "today" => today(),
                date => date.to_owned(),
            },
            purpose: purpose.to_owned(),
        };
        consent::check(&consent).map_err(|e| e.to_string())?;
        Ok(Some(consent))
    }

    /// How enrolment is done; what is not set here may be in the environment.
    pub(super) fn options(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<EnrollOptions, String> {
        let environment = EnrollOptions::from_environment(variable)?;
        Ok(EnrollOptions {
            duration: self.segment_duration_ms as usize * 16,
            hop: self.segment_hop_ms as usize * 16,
            max_segments: self.max_segments as usize,
            batch_size: match self.batch_size {
                0 => environment.batch_size,
                size => size as usize,
            },
            skip_above: (self.skip_above_s > 0)
                .then(|| Duration::from_secs(u64::from(self.skip_above_s))),
        })
    }

    /// Whose voices are kept, and how.
    pub(super) fn keep(&self) -> Result<KeepOptions, String> {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        Ok(KeepOptions {
            voices: PathBuf::from(&self.voices),
            key_file: path(&self.voices_key_file),
            whose: match self.policy {
                EnrollPolicy::Name => Whose::Named(self.name_of.trim().to_owned()),
                EnrollPolicy::Unknown => Whose::Unknown,
                EnrollPolicy::Named => Whose::Known,
            },
            consent: self.consent()?,
            require_consent: self.require_consent,
            expires_after_days: (self.expires_after_days > 0).then_some(self.expires_after_days),
            embedding_model: self.embedding_model().map(str::to_owned),
        })
    }

    /// What is asked of a recording.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            min_speech_s: f64::from(self.min_speech_ms) / 1e3,
            ..Limits::default()
        }
    }

    /// The embedding model that was asked for by name; `None` for the store's, or the best one.
    pub(super) fn embedding_model(&self) -> Option<&str> {
        let name = self.embedding_model.trim();
        (!name.is_empty() && name != "auto").then_some(name)
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
        let flag = || value.get::<bool>().map_err(|e| e.to_string());
        match pspec.name() {
            "name-of" => self.name_of = text()?,
            "voices" => self.voices = text()?,
            "voices-key-file" => self.voices_key_file = text()?,
            "policy" => self.policy = value.get::<EnrollPolicy>().map_err(|e| e.to_string())?,
            "consent" => self.consent = text()?,
            "require-consent" => self.require_consent = flag()?,
            "expires-after" => self.expires_after_days = number()?,
            "segment-duration" => self.segment_duration_ms = number()?,
            "segment-hop" => self.segment_hop_ms = number()?,
            "max-segments" => self.max_segments = number()?,
            "min-speech" => self.min_speech_ms = number()?,
            "skip-enrollment-above" => self.skip_above_s = number()?,
            "batch-size" => self.batch_size = number()?,
            "segmentation-model" => self.segmentation_model = text()?,
            "embedding-model" => self.embedding_model = text()?,
            "vad-model" => self.vad_model = text()?,
            "device" => self.device = text()?,
            "memory-limit" => self.memory_limit = text()?,
            "max-buffered" => self.max_buffered_ms = number()?,
            "post-messages" => self.post_messages = flag()?,
            other => return Err(format!("no property {other}")),
        }
        Ok(())
    }

    pub(super) fn get(&self, pspec: &glib::ParamSpec) -> Option<glib::Value> {
        Some(match pspec.name() {
            "name-of" => self.name_of.to_value(),
            "voices" => self.voices.to_value(),
            "voices-key-file" => self.voices_key_file.to_value(),
            "policy" => self.policy.to_value(),
            "consent" => self.consent.to_value(),
            "require-consent" => self.require_consent.to_value(),
            "expires-after" => self.expires_after_days.to_value(),
            "segment-duration" => self.segment_duration_ms.to_value(),
            "segment-hop" => self.segment_hop_ms.to_value(),
            "max-segments" => self.max_segments.to_value(),
            "min-speech" => self.min_speech_ms.to_value(),
            "skip-enrollment-above" => self.skip_above_s.to_value(),
            "batch-size" => self.batch_size.to_value(),
            "segmentation-model" => self.segmentation_model.to_value(),
            "embedding-model" => self.embedding_model.to_value(),
            "vad-model" => self.vad_model.to_value(),
            "device" => self.device.to_value(),
            "memory-limit" => self.memory_limit.to_value(),
            "max-buffered" => self.max_buffered_ms.to_value(),
            "post-messages" => self.post_messages.to_value(),
            _ => return None,
        })
    }
}

/// The day it is (UTC), as YYYY-MM-DD.
fn today() -> String {
    time_text(now()).chars().take(10).collect()
}

/// Properties; they may change in NULL and READY only.
pub(super) fn properties() -> &'static [glib::ParamSpec] {
    static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(build);
    &PROPERTIES
}

fn build() -> Vec<glib::ParamSpec> {
    let d = Settings::default();
    vec![
        text(
            "name-of",
            "Name",
            "Whose voice it is. A name that is there already: the recording adds to that voice",
            &d.name_of,
        ),
        text(
            "voices",
            "Voices",
            "The file that voices are kept in, made with the first one. docs/voices.md says what is in it",
            &d.voices,
        ),
        text(
            "voices-key-file",
            "Key file",
            "Where the key of encrypted voices is; empty: as SCRIBE_VOICES_KEY or SCRIBE_VOICES_KEY_FILE say",
            &d.voices_key_file,
        ),
        glib::ParamSpecEnum::builder_with_default("policy", d.policy)
            .nick("Policy")
            .blurb("Whose voices are learnt")
            .mutable_ready()
            .build(),
        text(
            "consent",
            "Consent",
            "Leave to keep the voice, which is biometric data: who gave it, when (a date, or today) and for what, with semicolons between. Kept with the voice",
            &d.consent,
        ),
        flag(
            "require-consent",
            "Require consent",
            "Learn no voice without consent",
            d.require_consent,
        ),
        count(
            "expires-after",
            "Expires after",
            "Days after which the voice is to be forgotten; 0: never",
            0..=36_500,
            d.expires_after_days,
        ),
        count(
            "segment-duration",
            "Segment duration",
            "Speech in a segment, of which a vector is made, in milliseconds",
            1_000..=10_000,
            d.segment_duration_ms,
        ),
        count(
            "segment-hop",
            "Segment hop",
            "From the start of one segment to that of the next, in milliseconds",
            100..=10_000,
            d.segment_hop_ms,
        ),
        count(
            "max-segments",
            "Most segments",
            "How many segments are looked at, at most, spread over the recording",
            1..=5_000,
            d.max_segments,
        ),
        count(
            "min-speech",
            "Least speech",
            "Speech of one person alone that is needed, in milliseconds",
            500..=600_000,
            d.min_speech_ms,
        ),
        count(
            "skip-enrollment-above",
            "Skip above",
            "A longer recording is let pass without learning from it, with scribe/degraded; in seconds; 0: none is too long, and memory does not depend on the length",
            0..=u32::MAX,
            d.skip_above_s,
        ),
        count(
            "batch-size",
            "Batch size",
            "Most segments in a batch; 0: as SCRIBE_ENROLL_BATCH_SIZE (or VOICE_ENROLLMENT_BATCH_SIZE) says, else what the registry finds best",
            0..=BATCH_SIZE_MAX as u32,
            d.batch_size,
        ),
        text(
            "segmentation-model",
            "Segmentation model",
            "Where two talk at once: a name or the path of an ONNX file. Empty: the default",
            &d.segmentation_model,
        ),
        text(
            "embedding-model",
            "Embedding model",
            "Voices as vectors: a name or the path of an ONNX file. auto: that of the voices there are, else the best one on disk",
            &d.embedding_model,
        ),
        text(
            "vad-model",
            "Voice activity model",
            "Where speech is: a name or the path of an ONNX file. Empty: the default",
            &d.vad_model,
        ),
        text(
            "device",
            "Device",
            "Where the models run: auto or cpu",
            &d.device,
        ),
        text(
            "memory-limit",
            "Memory limit",
            "Memory that scribe may use of each device, of which it fills 80 %: bytes, a size such as 12G, or a part such as 75%; empty: what SCRIBE_MEMORY_LIMIT says, else what others leave. For the whole process: it can be lowered before the first model is loaded",
            &d.memory_limit,
        ),
        count(
            "max-buffered",
            "Buffered sound",
            "Sound that waits in the element before upstream is held, in milliseconds",
            1_000..=600_000,
            d.max_buffered_ms,
        ),
        flag(
            "post-messages",
            "Post messages",
            "Post scribe/enrolled, scribe/relabel and scribe/progress element messages",
            d.post_messages,
        ),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb("Seconds of sound and of speech, segments, voices learnt, model")
            .read_only()
            .build(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Settings {
        Settings {
            name_of: "Alice".into(),
            voices: "voices.db".into(),
            ..Settings::default()
        }
    }

    #[test]
    fn what_is_missing_or_contradicts_is_said_before_a_model_loads() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = named();
            change(&mut settings);
            settings.check().unwrap_err()
        };

        assert_eq!(named().check(), Ok(()));
        assert!(refused(|s| s.voices.clear()).contains("voices="));
        assert!(refused(|s| s.name_of = "  ".into()).contains("name-of="));
        assert!(refused(|s| s.policy = EnrollPolicy::Unknown).contains("name-of="));
        assert!(refused(|s| s.require_consent = true).contains("consent="));
        assert!(refused(|s| s.segment_hop_ms = 4_000).contains("segment-hop"));
        assert!(refused(|s| s.device = "cuda".into()).contains("cuda"));
        assert!(refused(|s| s.consent = "yes".into()).contains("yes"));
    }

    #[test]
    fn the_property_counts_more_than_the_environment() {
        let env = |_: &str| Some("8".to_owned());
        let mut settings = named();

        assert_eq!(settings.options(env).map(|o| o.batch_size), Ok(8));
        settings.batch_size = 16;
        assert_eq!(settings.options(env).map(|o| o.batch_size), Ok(16));
        settings.skip_above_s = 1800;
        let options = settings.options(|_| None).unwrap();
        assert_eq!(options.skip_above, Some(Duration::from_secs(1800)));
        assert_eq!((options.duration, options.hop), (48_000, 24_000));
    }
}
