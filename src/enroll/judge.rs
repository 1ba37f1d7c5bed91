// SPDX-License-Identifier: MPL-2.0
//! Whether a recording is good enough for a voice to be made of it.

use thiserror::Error;

use super::measure::Measured;
use crate::diarize::cluster::{self, Clustering};
use crate::diarize::voice::VoiceModel;
use crate::voices::print::{self, two_voices};
use crate::voices::{Quality, Take, now};

/// A second voice has so many pieces at least, and so many seconds: of fewer it is one person in another tone.
const SECOND_LEAST: usize = 4;
const SECOND_LEAST_S: f64 = 6.0;

/// What is asked of a recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Least speech of one person alone, seconds.
    pub min_speech_s: f64,
    /// Least speech over noise, dB.
    pub min_snr_db: f64,
    /// Most of the speech's samples that may be cut off, 0 to 1.
    pub max_clipping: f64,
    /// Most of the speech that may be of others, 0 to 1, and the seconds from which on that counts.
    pub max_others: f64,
    /// See above.
    pub others_from_s: f64,
    /// Least cosine of the mean vectors of odd and even pieces.
    pub min_agreement: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_speech_s: 2.0,
            min_snr_db: 5.0,
            max_clipping: 0.02,
            max_others: 0.15,
            others_from_s: 1.5,
            min_agreement: 0.5,
        }
    }
}

/// Why no voice was made of a recording: the figure, the limit, what to do.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Refusal {
    /// There is nothing, or next to nothing.
    #[error(
        "too little speech: {net_speech_s:.1} s of one person alone in {seconds:.1} s of sound{}, and min-speech asks \
         for {limit_s:.1} s. Record more, or lower min-speech",
        overlapped(*.overlapped_s)
    )]
    TooLittleSpeech {
        /// Speech of one person alone.
        net_speech_s: f64,
        /// Sound in all.
        seconds: f64,
        /// Speech of two at once.
        overlapped_s: f64,
        /// What was asked for.
        limit_s: f64,
    },
    /// Too much noise.
    #[error(
        "too much noise: the speech is {snr_db:.1} dB above it, and {limit_db:.1} dB are needed. Record nearer to the \
         microphone, or in a quieter place"
    )]
    Noisy {
        /// Speech over noise.
        snr_db: f64,
        /// What is needed.
        limit_db: f64,
    },
    /// Cut off.
    #[error(
        "the speech is cut off: {percent:.1} % of its samples are as loud as can be, {limit_percent:.1} % at most. Lower the \
         recording level"
    )]
    Clipped {
        /// Samples cut off.
        percent: f64,
        /// At most.
        limit_percent: f64,
    },
    /// Two people.
    #[error(
        "two people speak: a second voice has {percent:.0} % of the speech and is {likeness:.2} like the first, where {limit:.2} \
         is the least of one person's. Enrol from a recording of one person, or put scribediarizer before scribeenroller and \
         use policy=unknown"
    )]
    TwoVoices {
        /// Share of the second voice.
        percent: f64,
        /// How alike they are.
        likeness: f64,
        /// Least of one person.
        limit: f64,
    },
    /// Several people, within seconds of each other.
    #[error(
        "several people speak: {percent:.0} % of the speech is of others than the one who speaks most, or of two at once, and \
         {limit_percent:.0} % is the most. Enrol from a recording of one person, or put scribediarizer before scribeenroller \
         and use policy=unknown"
    )]
    Others {
        /// Their share.
        percent: f64,
        /// At most.
        limit_percent: f64,
    },
    /// Its halves are not alike.
    #[error(
        "the recording is not one voice throughout: its odd and even pieces are {agreement:.2} alike, and {limit:.2} are \
         needed. Use a recording of one person without music"
    )]
    Disagrees {
        /// Cosine.
        agreement: f64,
        /// Least.
        limit: f64,
    },
    /// The name is another voice's.
    #[error(
        "this does not sound like {name}: {score:.2} alike, and {limit:.2} are needed to add to a voice. If it is the same \
         person, enrol under another name and `scribe-voices merge` the two; if not, choose another name"
    )]
    AnotherVoice {
        /// The name.
        name: String,
        /// How alike.
        score: f64,
        /// Least.
        limit: f64,
    },
}

/// Part of a sentence.
fn overlapped(seconds: f64) -> String {
    if seconds < 0.05 {
        return String::new();
    }
    format!(" ({seconds:.1} s more where two talk at once)")
}

impl Limits {
    /// What can be said of one person's recording before any vector is made.
    pub fn recording(&self, measured: &Measured) -> Result<(), Refusal> {
        self.sound(measured)?;
        let others = measured.others_s + measured.overlapped_s;
        let part = others / (measured.net_speech_s + measured.overlapped_s).max(0.1);
        if others >= self.others_from_s && part > self.max_others {
            return Err(Refusal::Others {
                percent: part * 100.0,
                limit_percent: self.max_others * 100.0,
            });
        }
        Ok(())
    }

    /// What can be said of somebody's speech before any vector is made.
    pub fn sound(&self, measured: &Measured) -> Result<(), Refusal> {
        if measured.net_speech_s < self.min_speech_s {
            return Err(Refusal::TooLittleSpeech {
                net_speech_s: measured.net_speech_s,
                seconds: measured.seconds,
                overlapped_s: measured.overlapped_s,
                limit_s: self.min_speech_s,
            });
        }
        if let Some(snr_db) = measured.snr_db.filter(|snr| *snr < self.min_snr_db) {
            return Err(Refusal::Noisy {
                snr_db,
                limit_db: self.min_snr_db,
            });
        }
        if measured.clipping > self.max_clipping {
            return Err(Refusal::Clipped {
                percent: measured.clipping * 100.0,
                limit_percent: self.max_clipping * 100.0,
            });
        }
        Ok(())
    }

    /// What speech adds to a voice, from the vectors of its pieces.
    pub fn take(
        &self,
        vectors: &[Vec<f32>],
        measured: &Measured,
        model: &VoiceModel,
    ) -> Result<Take, Refusal> {
        let hop_s = measured.net_speech_s / vectors.len().max(1) as f64;
        self.voices(vectors, hop_s, model)?;
        let quality = Quality {
            net_speech_s: measured.net_speech_s,
            segments: vectors.len() as u32,
            snr_db: measured.snr_db,
            level_dbfs: measured.level_dbfs,
            clipping: measured.clipping,
            agreement: None,
            is_telephone: measured.is_telephone,
        };
        let made = print::take(model.key.clone(), vectors, quality, now());
        let take = made.ok_or(Refusal::TooLittleSpeech {
            net_speech_s: measured.net_speech_s,
            seconds: measured.seconds,
            overlapped_s: measured.overlapped_s,
            limit_s: self.min_speech_s,
        })?;
        self.agreement(take.quality.agreement)?;
        Ok(take)
    }

    /// Whether the vectors of pieces, one each `hop_s` seconds, are one person's. A model that nobody has measured for that
    /// says nothing.
    pub fn voices(
        &self,
        vectors: &[Vec<f32>],
        hop_s: f64,
        model: &VoiceModel,
    ) -> Result<(), Refusal> {
        let second = second_voice(vectors, hop_s, model);
        if second > self.max_others {
            return Err(Refusal::Others {
                percent: second * 100.0,
                limit_percent: self.max_others * 100.0,
            });
        }
        let Ok(how) = model.matching() else {
            return Ok(());
        };
        match two_voices(vectors, hop_s, &how) {
            Some(two) => Err(Refusal::TwoVoices {
                percent: two.part * 100.0,
                likeness: f64::from(two.likeness),
                limit: f64::from(how.two),
            }),
            None => Ok(()),
        }
    }

    /// Whether the halves of a recording are alike.
    fn agreement(&self, agreement: Option<f64>) -> Result<(), Refusal> {
        match agreement {
            Some(agreement) if agreement < self.min_agreement => Err(Refusal::Disagrees {
                agreement,
                limit: self.min_agreement,
            }),
            _ => Ok(()),
        }
    }
}

/// Part of the pieces that is not of the first voice, where the diarizer would hear a second one, 0 to 1.
fn second_voice(vectors: &[Vec<f32>], hop_s: f64, model: &VoiceModel) -> f64 {
    let all: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    let least = (SECOND_LEAST_S / hop_s.max(0.1)).ceil() as usize;
    let how = Clustering {
        link: model.thresholds.link,
        merge: model.thresholds.merge,
        least: least.max(SECOND_LEAST),
        min: 1,
        max: 8,
    };
    let people = cluster::people(&all, &how);
    let mut sizes = vec![0_usize; people.len()];
    for vector in &all {
        if let Some((place, _)) = cluster::nearest(&people, vector) {
            sizes[place] += 1;
        }
    }
    let most = sizes.iter().copied().max().unwrap_or(0);
    let second = all.len() - most;
    if second < how.least {
        return 0.0;
    }
    second as f64 / all.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        Measured {
            seconds: 10.0,
            net_speech_s: 6.0,
            overlapped_s: 0.0,
            others_s: 0.0,
            snr_db: Some(25.0),
            level_dbfs: -25.0,
            clipping: 0.0,
            is_telephone: false,
        }
    }

    #[test]
    fn each_refusal_says_its_figure_and_its_limit() {
        let limits = Limits::default();
        let with = |change: fn(&mut Measured)| {
            let mut m = measured();
            change(&mut m);
            limits.sound(&m).unwrap_err().to_string()
        };

        assert_eq!(limits.sound(&measured()), Ok(()));
        let little = with(|m| {
            m.net_speech_s = 1.24;
            m.overlapped_s = 2.0;
        });
        assert!(
            little.contains("1.2 s of one person alone in 10.0 s of sound (2.0 s more"),
            "{little}"
        );
        assert!(little.contains("asks for 2.0 s"), "{little}");
        let noisy = with(|m| m.snr_db = Some(1.25));
        assert!(
            noisy.contains("1.2 dB above") && noisy.contains("5.0 dB are needed"),
            "{noisy}"
        );
        let cut = with(|m| m.clipping = 0.031);
        assert!(
            cut.contains("3.1 %") && cut.contains("2.0 % at most"),
            "{cut}"
        );
        let odd = limits.agreement(Some(0.3)).unwrap_err().to_string();
        assert!(
            odd.contains("0.30 alike") && odd.contains("0.50 are needed"),
            "{odd}"
        );
        assert_eq!(limits.agreement(None), Ok(()));
    }
}
