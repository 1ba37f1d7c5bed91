// SPDX-License-Identifier: MPL-2.0
//! Who the speakers of a recording are: their voices against those of people who are enrolled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::voice::{VoiceModel, voice_model};
use crate::inference::EngineError;
use crate::voices::matching::{Change, Decision, Gallery, Naming, Probe, SpeakerState, Thresholds};
use crate::voices::{
    Key, KeyError, ModelKey, OpenOptions, Store, StoreError, Voice, VoiceId, names, now,
};

/// Why nobody can be named.
#[derive(Debug, Error)]
pub enum NamesError {
    /// The file of the voices.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Its key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The embedding model.
    #[error("{0}")]
    Engine(#[from] EngineError),
}

/// Voices of people, open for reading.
#[derive(Debug)]
pub struct Voices {
    path: PathBuf,
    store: Store,
    model: Option<ModelKey>,
}

impl Voices {
    /// Opens the file. That it is not there is an error: nobody would be known, and nobody would wonder.
    pub fn open(path: &Path, key_file: Option<&Path>) -> Result<Self, NamesError> {
        let key = Key::find(key_file)?;
        let how = OpenOptions {
            create: false,
            read_only: true,
            require_consent: false,
            key,
        };
        let store = Store::open(path, &how)?;
        let model = store.model()?;
        Ok(Self {
            path: path.to_owned(),
            store,
            model,
        })
    }

    /// The embedding model of the voices, or the one that was asked for, which must be the same.
    pub fn model(&self, asked: Option<&str>) -> Result<VoiceModel, EngineError> {
        model_for(asked, self.model.as_ref(), &self.path)
    }

    /// Whether the voices can be compared with what `model` makes.
    pub fn is_of(&self, model: &VoiceModel) -> bool {
        self.model.as_ref().is_none_or(|own| *own == model.key)
    }
}

/// The model that was asked for, which must be that of the voices; if none was, that of the voices; else the best there is.
pub fn model_for(
    asked: Option<&str>,
    known: Option<&ModelKey>,
    voices: &Path,
) -> Result<VoiceModel, EngineError> {
    let name = asked.or(known.map(|k| k.name.as_str())).unwrap_or_default();
    let model = voice_model(name)?;
    match known {
        Some(known) if *known != model.key => Err(EngineError::Unsupported(format!(
            "the voices in {} are from the embedding model {known}, and {} is to be used: vectors of two models cannot be \
             compared. Leave embedding-model at auto, or enrol everybody again into another file",
            voices.display(),
            model.key
        ))),
        _ => Ok(model),
    }
}

/// People of a store who can be compared with one model's vectors, and what they are called.
#[derive(Clone, Debug)]
pub struct People {
    /// Their voices.
    pub gallery: Arc<Gallery>,
    labels: BTreeMap<VoiceId, Label>,
    /// When the first of them is to be forgotten.
    until: Option<u64>,
}

#[derive(Clone, Debug)]
struct Label {
    text: String,
    is_name: bool,
}

impl People {
    /// Those of `voices` who are there for vectors of `model`.
    pub fn of(voices: &[Voice], model: &ModelKey, thresholds: Thresholds) -> Self {
        let label = |voice: &Voice| Label {
            text: voice.label(),
            is_name: voice.name.is_some(),
        };
        Self {
            gallery: Arc::new(Gallery::new(voices, model, thresholds, now())),
            labels: voices.iter().map(|v| (v.id, label(v))).collect(),
            until: voices.iter().filter_map(|v| v.expires).min(),
        }
    }

    /// Who has this name, to the letter.
    pub fn named(&self, name: &str) -> Option<VoiceId> {
        let name = names::normal(name).ok()?;
        let mut labels = self.labels.iter();
        let found = labels.find(|(_, label)| label.is_name && label.text == name);
        found.map(|(id, _)| *id)
    }

    /// The name of somebody, or "Speaker 7".
    pub fn label(&self, id: VoiceId) -> Option<&str> {
        self.labels.get(&id).map(|label| label.text.as_str())
    }

    /// Whether somebody has a name.
    pub fn is_named(&self, id: VoiceId) -> bool {
        self.labels.get(&id).is_some_and(|label| label.is_name)
    }
}

/// Names speakers. The voices are read again when another process has changed them.
#[derive(Debug)]
pub struct Names {
    store: Store,
    version: i64,
    key: ModelKey,
    people: People,
    /// Of a stream that is still going on.
    naming: Naming,
}

/// Of a stream that is still going on: who a speaker is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// The speaker's number.
    pub speaker: usize,
    /// Who it is; `None` if it was said and is not so.
    pub who: Option<VoiceId>,
    /// Why.
    pub decision: Decision,
}

impl Names {
    /// With `voices` for vectors of `model`.
    pub fn new(voices: Voices, model: &VoiceModel) -> Result<Self, NamesError> {
        let thresholds = model.matching()?;
        let version = voices.store.version()?;
        let people = People::of(&voices.store.voices()?, &model.key, thresholds);
        Ok(Self {
            store: voices.store,
            version,
            key: model.key.clone(),
            naming: Naming::new(Arc::clone(&people.gallery)),
            people,
        })
    }

    /// People who can be known.
    pub fn len(&self) -> usize {
        self.people.gallery.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.people.gallery.is_empty()
    }

    fn refresh(&mut self) -> Result<(), NamesError> {
        let version = self.store.version()?;
        // A term that ends changes no file.
        let has_ended = self.people.until.is_some_and(|until| until <= now());
        if version != self.version || has_ended {
            let thresholds = *self.people.gallery.thresholds();
            self.people = People::of(&self.store.voices()?, &self.key, thresholds);
            self.naming.set_gallery(Arc::clone(&self.people.gallery));
            self.version = version;
        }
        Ok(())
    }

    /// Who each of the speakers of a recording is; they are different people as far as is known.
    pub fn of(&mut self, speakers: &[Probe<'_>]) -> Result<Vec<Decision>, NamesError> {
        self.refresh()?;
        Ok(self.people.gallery.name(speakers))
    }

    /// What is known by now of the speakers of a stream: tells who is somebody else than before.
    pub fn live(&mut self, speakers: &[SpeakerState<'_>]) -> Result<Vec<Named>, NamesError> {
        self.refresh()?;
        let changes = self.naming.update(speakers).into_iter();
        let named = |change| match change {
            Change::Named {
                speaker,
                id,
                decision,
            } => Named {
                speaker,
                who: Some(id),
                decision,
            },
            Change::TakenBack {
                speaker, decision, ..
            } => Named {
                speaker,
                who: None,
                decision,
            },
        };
        Ok(changes.map(named).collect())
    }

    /// Another recording begins: nobody has been heard yet.
    pub fn begin(&mut self) {
        self.naming = Naming::new(Arc::clone(&self.people.gallery));
    }

    /// The name of somebody, or "Speaker 7".
    pub fn label(&self, id: VoiceId) -> Option<&str> {
        self.people.label(id)
    }
}

/// What speakers are called.
#[derive(Debug, Default)]
pub struct Labels {
    /// Voices are there to compare with: who is not among them is unknown.
    pub has_voices: bool,
    named: BTreeMap<usize, (String, String)>,
}

impl Labels {
    /// Speaker number `speaker` is `who`, or nobody who is known.
    pub fn set(&mut self, speaker: usize, who: Option<(VoiceId, &str)>) {
        match who {
            Some((id, label)) => {
                let who = (id.to_string(), label.to_owned());
                self.named.insert(speaker, who);
            }
            None => {
                self.named.remove(&speaker);
            }
        }
    }

    /// Nobody is named any more.
    pub fn clear(&mut self) {
        self.named.clear();
    }

    /// The id: of a person who is known the lasting one.
    pub fn id(&self, speaker: usize) -> String {
        match self.named.get(&speaker) {
            Some((id, _)) => id.clone(),
            None => format!("speaker-{}", speaker + 1),
        }
    }

    /// The name.
    pub fn name(&self, speaker: usize) -> String {
        match self.named.get(&speaker) {
            Some((_, label)) => label.clone(),
            // The voices have speakers of their own that are only numbered.
            None if self.has_voices => format!("Unknown {}", speaker + 1),
            None => format!("Speaker {}", speaker + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_has_a_lasting_id_and_who_is_not_a_number() {
        let mut labels = Labels::default();
        assert_eq!(
            (labels.id(1), labels.name(1)),
            ("speaker-2".into(), "Speaker 2".into())
        );

        labels.has_voices = true;
        labels.set(0, Some((VoiceId(7), "Alice")));

        assert_eq!(labels.id(0), "voice-0000000000000007");
        assert_eq!(labels.name(0), "Alice");
        assert_eq!(
            (labels.id(1), labels.name(1)),
            ("speaker-2".into(), "Unknown 2".into())
        );
        labels.set(0, None);
        assert_eq!(labels.name(0), "Unknown 1");
    }
}
