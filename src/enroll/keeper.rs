// SPDX-License-Identifier: MPL-2.0
//! What is done with a voice once it is heard: whose it is, whether it is kept, and under which identity.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::judge::{Limits, Refusal};
use super::measure::Measured;
use super::speakers::{Speaker, Speakers};
use crate::diarize::names::{People, model_for};
use crate::diarize::voice::VoiceModel;
use crate::inference::EngineError;
use crate::transcript::formats::Relabel;
use crate::voices::matching::{Decision, Probe, Verdict};
use crate::voices::{
    Consent, Enrolled, Key, KeyError, OpenOptions, Quality, Store, StoreError, Take, VoiceId, Who,
    now,
};

const DAY_S: u64 = 86_400;
/// How far below the bound a recording may be that is said to be of a person again, in slacks of the model.
const AGAIN_SLACKS: f32 = 3.0;

/// Whose voices are kept, and how.
#[derive(Clone, Debug)]
pub struct KeepOptions {
    /// The file.
    pub voices: PathBuf,
    /// Where its key is; `None` for the environment's.
    pub key_file: Option<PathBuf>,
    /// Whose.
    pub whose: Whose,
    /// Leave to keep them.
    pub consent: Option<Consent>,
    /// Keep nothing without.
    pub require_consent: bool,
    /// Days after which they are to be forgotten.
    pub expires_after_days: Option<u32>,
    /// Embedding model; `None` for that of the voices there are, else the best one on disk.
    pub embedding_model: Option<String>,
}

/// Whose voices are learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The person of this name.
    Named(String),
    /// Of a conversation those whom nobody knows.
    Unknown,
    /// Of a conversation those who are known by name.
    Known,
}

/// Why a voice is not kept.
#[derive(Debug, Error)]
pub enum KeepError {
    /// The file.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// It is to be made, and there is no place for it.
    #[error("{} cannot be made: there is no folder {}. Make it first", path.display(), folder.display())]
    NoFolder {
        /// The file.
        path: PathBuf,
        /// What is not there.
        folder: PathBuf,
    },
    /// Its key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The embedding model.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The voice.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// A voice that was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// What the store says.
    pub enrolled: Enrolled,
    /// What was measured.
    pub quality: Quality,
    /// Somebody else who is enrolled sounds like it.
    pub sounds_like: Option<String>,
    /// The id that a diarizer gave, in a conversation.
    pub was: Option<String>,
}

/// What came of a conversation.
#[derive(Debug, Default)]
pub struct Conversed {
    /// Voices that were kept.
    pub kept: Vec<Kept>,
    /// Ids that are others now.
    pub relabels: Vec<Relabel>,
    /// Who was left out, and why.
    pub left_out: Vec<(String, String)>,
}

/// Opens the voices when they are there, and makes the file with the first voice.
#[derive(Debug)]
pub struct Keeper {
    options: KeepOptions,
    store: Option<Store>,
}

impl Keeper {
    /// With the voices there are, if there are some, and the embedding model that goes with them.
    pub fn open(options: KeepOptions) -> Result<(Self, VoiceModel), KeepError> {
        let must_exist = options.whose == Whose::Known;
        let store = if must_exist || is_there(&options.voices) {
            Some(open(&options, false)?)
        } else {
            has_folder(&options.voices)?;
            None
        };
        let known = store.as_ref().map(Store::model).transpose()?.flatten();
        let model = model_for(
            options.embedding_model.as_deref(),
            known.as_ref(),
            &options.voices,
        )?;
        if !matches!(options.whose, Whose::Named(_)) {
            // Known now and not after hours of a conversation.
            model.matching()?;
        }
        Ok((Self { options, store }, model))
    }

    fn store(&mut self) -> Result<&mut Store, KeepError> {
        if self.store.is_none() {
            self.store = Some(open(&self.options, true)?);
        }
        match &mut self.store {
            Some(store) => Ok(store),
            None => unreachable!("it was opened"),
        }
    }

    /// Everybody there is; `None` for a model whose vectors tell nobody by name.
    fn people(&self, model: &VoiceModel) -> Result<Option<People>, KeepError> {
        let Ok(thresholds) = model.matching() else {
            return Ok(None);
        };
        let voices = match &self.store {
            Some(store) => store.voices()?,
            None => Vec::new(),
        };
        Ok(Some(People::of(&voices, &model.key, thresholds)))
    }

    fn expires(&self) -> Option<u64> {
        let days = self.options.expires_after_days?;
        Some(now() + u64::from(days) * DAY_S)
    }

    /// Keeps what a recording of one person adds.
    pub fn keep(&mut self, take: &Take, model: &VoiceModel) -> Result<Kept, KeepError> {
        let Whose::Named(name) = self.options.whose.clone() else {
            return Err(EngineError::Unsupported("no name to enrol under".into()).into());
        };
        let mut sounds_like = None;
        if let Some(people) = self.people(model)? {
            let gallery = &people.gallery;
            let own = people.named(&name);
            let (bound, slack) = (gallery.thresholds().accept, gallery.thresholds().slack);
            let probe = Probe {
                vector: &take.mean,
                seconds: take.quality.net_speech_s,
            };
            let ranks = gallery.rank(probe, gallery.len());
            let score = |id: VoiceId| ranks.iter().find(|l| l.id == id).map(|l| l.score);
            // A stranger has so much now and then, the same person in another room hardly less.
            let limit = bound - AGAIN_SLACKS * slack;
            if let Some(score) = own.and_then(score).filter(|score| *score < limit) {
                return Err(Refusal::AnotherVoice {
                    name,
                    score: f64::from(score),
                    limit: f64::from(limit),
                }
                .into());
            }
            let other = ranks.iter().find(|l| Some(l.id) != own);
            let other = other.filter(|l| l.score >= bound).map(|l| l.id);
            sounds_like = other.and_then(|id| people.label(id).map(str::to_owned));
        }
        let quality = take.quality.clone();
        let (consent, expires) = (self.options.consent.clone(), self.expires());
        let who = Who::Named(&name);
        let enrolled = self.store()?.enrol(who, take, consent, expires)?;
        Ok(Kept {
            enrolled,
            quality,
            sounds_like,
            was: None,
        })
    }

    /// Keeps what is to be kept of the speakers of a conversation.
    pub fn conversation(
        &mut self,
        speakers: &Speakers,
        measured: &Measured,
        model: &VoiceModel,
        limits: &Limits,
    ) -> Result<Conversed, KeepError> {
        let mut out = Conversed::default();
        model.matching()?;
        let mut found: Vec<(String, Take)> = Vec::new();
        for (id, speaker) in speakers.iter() {
            match take_of(speaker, measured, model, limits) {
                Ok(take) => found.push((id.to_owned(), take)),
                Err(why) => out.left_out.push((id.to_owned(), why.to_string())),
            }
        }
        let Some(people) = self.people(model)? else {
            return Ok(out);
        };
        let probes: Vec<Probe<'_>> = found
            .iter()
            .map(|(_, take)| Probe {
                vector: &take.mean,
                seconds: take.quality.net_speech_s,
            })
            .collect();
        let decisions = people.gallery.name(&probes);
        for ((id, take), decision) in found.iter().zip(decisions) {
            let outcome = match self.options.whose {
                Whose::Named(_) => Err("nobody of a conversation was asked for".to_owned()),
                Whose::Unknown => unknown(id, &decision, &people, &mut out.relabels),
                Whose::Known => known(id, &decision, &people),
            };
            let who = match outcome {
                Ok(who) => who,
                Err(why) => {
                    out.left_out.push((id.clone(), why));
                    continue;
                }
            };
            let (consent, expires) = (self.options.consent.clone(), self.expires());
            let enrolled = self.store()?.enrol(who, take, consent, expires)?;
            if who == Who::Nobody {
                out.relabels.push(relabel(id, enrolled.id, &enrolled.label));
            }
            out.kept.push(Kept {
                enrolled,
                quality: take.quality.clone(),
                sounds_like: None,
                was: Some(id.clone()),
            });
        }
        Ok(out)
    }
}

/// Whether a speaker is somebody new. One who is known after all gets that id.
fn unknown(
    id: &str,
    decision: &Decision,
    people: &People,
    relabels: &mut Vec<Relabel>,
) -> Result<Who<'static>, String> {
    if id.parse::<VoiceId>().is_ok() {
        return Err("known already".to_owned());
    }
    if let Some(who) = decision.id() {
        let label = people.label(who);
        relabels.extend(label.map(|label| relabel(id, who, label)));
        return Err(format!("known already: {decision}"));
    }
    if decision.verdict == Verdict::TooShort {
        return Err(decision.to_string());
    }
    let how = people.gallery.thresholds();
    // Nearly somebody: one person would get two identities.
    match decision.best {
        Some(best) if best.score >= how.accept - how.slack => {
            Err(format!("neither known nor certainly new: {decision}"))
        }
        _ => Ok(Who::Nobody),
    }
}

/// Whether a speaker is certainly somebody who has a name.
fn known(id: &str, decision: &Decision, people: &People) -> Result<Who<'static>, String> {
    let told: Option<VoiceId> = id.parse().ok();
    match decision.verdict {
        // The diarizer has heard all of them at once, and may have had reasons.
        Verdict::Known(who) if told.is_some_and(|told| told != who) => {
            Err(format!("told to be {id}, and heard as {decision}"))
        }
        Verdict::Known(who) if !people.is_named(who) => Err(format!("no name yet: {who}")),
        Verdict::Known(_) if !decision.is_strong => Err(format!(
            "no strong match: {decision}, and {:.2} to learn from it",
            people.gallery.thresholds().strong
        )),
        Verdict::Known(who) => Ok(Who::Known(who)),
        _ => Err(format!("not known for certain: {decision}")),
    }
}

/// What a speaker's pieces add to a voice.
fn take_of(
    speaker: &Speaker,
    measured: &Measured,
    model: &VoiceModel,
    limits: &Limits,
) -> Result<Take, Refusal> {
    let own = Measured {
        net_speech_s: speaker.seconds,
        ..*measured
    };
    limits.sound(&own)?;
    let vectors: Vec<Vec<f32>> = speaker.pieces.iter().map(|p| p.vector.clone()).collect();
    limits.take(&vectors, &own, model)
}

fn relabel(old: &str, new: VoiceId, label: &str) -> Relabel {
    Relabel {
        old_id: old.to_owned(),
        new_id: Some(new.to_string()),
        name: Some(label.to_owned()),
        from: None,
        to: None,
    }
}

fn is_there(path: &Path) -> bool {
    // What cannot be looked at is told when it is opened.
    path.try_exists().unwrap_or(true) || path.is_symlink()
}

/// Known now and not when the voice is to be kept.
fn has_folder(path: &Path) -> Result<(), KeepError> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match folder.is_dir() {
        true => Ok(()),
        false => Err(KeepError::NoFolder {
            path: path.to_owned(),
            folder: folder.to_owned(),
        }),
    }
}

fn open(options: &KeepOptions, create: bool) -> Result<Store, KeepError> {
    let key = Key::find(options.key_file.as_deref())?;
    let how = OpenOptions {
        create,
        read_only: false,
        require_consent: options.require_consent,
        key,
    };
    Ok(Store::open(&options.voices, &how)?)
}
