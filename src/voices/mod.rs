// SPDX-License-Identifier: MPL-2.0
//! People and their voiceprints: what is kept of a voice, how it is stored, how it is known again.
//!
//! Vectors come in, never sound. Nothing here knows a model or GStreamer.

pub mod consent;
mod error;
mod exchange;
pub mod matching;
pub mod names;
mod open;
mod people;
pub mod print;
mod purge;
mod record;
mod rows;
mod schema;
mod seal;
mod store;

use std::fmt;
use std::str::FromStr;

pub use error::{Problem, StoreError};
pub use exchange::{Imported, SCHEMA, time_text};
pub use open::OpenOptions;
pub use people::{LeftOut, TAKES_MAX, Who};
pub use purge::Purge;
pub use record::{EXEMPLARS_MAX, TIME_MAX};
pub use seal::{KEY_FILE_VARIABLE, KEY_VARIABLE, Key, KeyError};
pub use store::{Checked, Enrolled, Removed, Store, now};

/// Values that a vector may have at most.
pub const DIMENSION_MAX: usize = 4_096;
/// Bytes of a name at most.
pub const NAME_BYTES_MAX: usize = 256;

/// Which model made a vector. Vectors of two models cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Its id in the manifest, for people.
    pub name: String,
    /// Its version: SHA-256 of the file, 64 hexadecimal digits.
    pub version: String,
    /// Values of a vector.
    pub dimension: usize,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.version.get(..8).unwrap_or(&self.version);
        write!(f, "{} ({short}, {} values)", self.name, self.dimension)
    }
}

/// The lasting identity of a person in a store, and in transcripts the speaker's id: `voice-` and 16 hexadecimal digits.
/// Drawn at random, so that the ids of two stores can meet in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VoiceId(pub u64);

impl fmt::Display for VoiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "voice-{:016x}", self.0)
    }
}

impl FromStr for VoiceId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("voice-").ok_or(())?;
        let is_plain = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_plain {
            return Err(());
        }
        u64::from_str_radix(digits, 16).map(Self).map_err(|_| ())
    }
}

/// How much is known of a voice, by seconds of net speech.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Under 8 s.
    Weak,
    /// Under 20 s.
    Fair,
    /// From 20 s.
    Good,
}

impl Grade {
    /// That of so many seconds.
    pub fn of(net_speech_s: f64) -> Self {
        match net_speech_s {
            s if s < 8.0 => Self::Weak,
            s if s < 20.0 => Self::Fair,
            _ => Self::Good,
        }
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weak => "weak",
            Self::Fair => "fair",
            Self::Good => "good",
        })
    }
}

/// What was measured of the recording that a take is from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// Speech of one person alone, seconds.
    pub net_speech_s: f64,
    /// Pieces that were looked at.
    pub segments: u32,
    /// Speech over noise, dB.
    pub snr_db: Option<f64>,
    /// Level of the speech, dB below full scale (negative).
    pub level_dbfs: f64,
    /// Part of the speech's samples that are cut off, 0 to 1.
    pub clipping: f64,
    /// Cosine of the mean vectors of odd and even pieces.
    pub agreement: Option<f64>,
    /// Nothing above the band of a telephone.
    pub is_telephone: bool,
}

/// What one recording adds to a voice.
#[derive(Clone, Debug, PartialEq)]
pub struct Take {
    /// Who made the vectors.
    pub model: ModelKey,
    /// Mean of all pieces, of length 1.
    pub mean: Vec<f32>,
    /// Pieces that differ most from each other, of length 1; eight at most.
    pub exemplars: Vec<Vec<f32>>,
    /// What was measured.
    pub quality: Quality,
    /// When it was enrolled, seconds since 1970 (UTC).
    pub at: u64,
}

/// Leave to keep a voice: biometric data of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Who gave it.
    pub who: String,
    /// When: a date, YYYY-MM-DD.
    pub when: String,
    /// For what.
    pub purpose: String,
}

/// A person as the store knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Voice {
    /// Lasting.
    pub id: VoiceId,
    /// Who has no name is "Speaker NUMBER". Given once in a store and never again.
    pub number: u32,
    /// The name. Data: any text without control characters, never a path.
    pub name: Option<String>,
    /// Leave to keep it.
    pub consent: Option<Consent>,
    /// Seconds since 1970 (UTC).
    pub created: u64,
    /// Last change, seconds since 1970 (UTC).
    pub updated: u64,
    /// When it is to be forgotten, seconds since 1970 (UTC).
    pub expires: Option<u64>,
    /// What recordings added, the oldest first.
    pub takes: Vec<Take>,
}

impl Voice {
    /// The name, or "Speaker 7".
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => format!("Speaker {}", self.number),
        }
    }

    /// Speech in all takes, seconds.
    pub fn net_speech_s(&self) -> f64 {
        self.takes.iter().map(|t| t.quality.net_speech_s).sum()
    }

    /// See [`Grade`].
    pub fn grade(&self) -> Grade {
        Grade::of(self.net_speech_s())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A take of its own for each `seed`: 10 s of speech, two exemplars.
    pub(super) fn take(seed: u64, dimension: usize) -> Take {
        let vector = |seed: u64| {
            let mut state = seed;
            let mut values: Vec<f32> = std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            })
            .take(dimension)
            .collect();
            let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
            values.iter_mut().for_each(|v| *v /= length);
            values
        };
        Take {
            model: ModelKey {
                name: "fake".into(),
                version: "ab".repeat(32),
                dimension,
            },
            mean: vector(seed),
            exemplars: vec![vector(seed + 1_000), vector(seed + 2_000)],
            quality: Quality {
                net_speech_s: 10.0,
                segments: 5,
                ..Quality::default()
            },
            at: 1_700_000_000 + seed,
        }
    }

    #[test]
    fn ids_are_read_as_they_are_written_and_nothing_else_is() {
        let id = VoiceId(0x00ab_cdef_0123_4567);

        assert_eq!(id.to_string(), "voice-00abcdef01234567");
        assert_eq!("voice-00abcdef01234567".parse(), Ok(id));
        for wrong in [
            "",
            "voice-",
            "voice-12",
            "voice-+0abcdef01234567",
            "speaker-1",
        ] {
            assert_eq!(wrong.parse::<VoiceId>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn grades_begin_at_eight_and_at_twenty_seconds() {
        assert_eq!(Grade::of(2.0), Grade::Weak);
        assert_eq!(Grade::of(7.9), Grade::Weak);
        assert_eq!(Grade::of(8.0), Grade::Fair);
        assert_eq!(Grade::of(19.9), Grade::Fair);
        assert_eq!(Grade::of(20.0), Grade::Good);
    }
}
