// SPDX-License-Identifier: MPL-2.0
//! What must be known of an embedding model to tell people apart by it: what it looks at, and how far apart its vectors
//! are. Both come from its manifest entry, for both are the model's own: a threshold made for another model puts all people
//! into one, or parts one into many.

use super::models::embedding_spec;
use crate::inference::EngineError;
use crate::inference::manifest::{self, Entry, Task, file_digest};
use crate::registry::{Embedding, EmbeddingSpec, Kind as _};
use crate::voices::ModelKey;
use crate::voices::matching;

/// How the vectors of one person differ from those of another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VoiceThresholds {
    /// Distance of unit vectors (0 to 2) up to which windows are one person in the first stage.
    pub link: f32,
    /// Cosine distance (0 to 2) under which two people of the first stage are one.
    pub merge: f32,
    /// Least speech of a person in the first stage, in seconds.
    pub least_seconds: f32,
}

/// What an embedding model looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoiceInput {
    /// Samples that it looks at at once; 0 for as much as there is.
    pub piece: usize,
    /// Fewest samples that it takes.
    pub min_samples: usize,
}

/// An embedding model with all that is known of its vectors.
#[derive(Clone, Debug)]
pub struct VoiceModel {
    /// How it is loaded.
    pub spec: EmbeddingSpec,
    /// What it looks at.
    pub input: VoiceInput,
    /// How its vectors are told apart.
    pub thresholds: VoiceThresholds,
    /// Its vectors are no other model's.
    pub key: ModelKey,
    /// How its vectors are known again, or what its manifest entry lacks for that: see [`VoiceModel::matching`].
    pub known_again: Result<matching::Thresholds, matching::MissingThreshold>,
}

impl VoiceModel {
    /// Its name, for people.
    pub fn name(&self) -> String {
        Embedding::name(&self.spec)
    }

    /// How its vectors are known again. [`EngineError::Unsupported`] for a model that can only tell speakers apart, because
    /// its manifest entry does not say when two recordings are of one person.
    pub fn matching(&self) -> Result<matching::Thresholds, EngineError> {
        let missing = |why: &matching::MissingThreshold| {
            EngineError::Unsupported(format!(
                "the voice model {} cannot be used for names: {why}",
                self.name()
            ))
        };
        self.known_again.as_ref().copied().map_err(missing)
    }
}

/// Finds the embedding model that `model` names (empty or `auto`: the best one on disk). [`EngineError::Unsupported`] for one whose
/// manifest entry gives no thresholds.
pub fn voice_model(model: &str) -> Result<VoiceModel, EngineError> {
    let model = if model == "auto" { "" } else { model };
    let spec = embedding_spec(model)?;
    #[cfg(any(test, feature = "test-support"))]
    if model.starts_with("fake:") {
        return Ok(VoiceModel {
            key: ModelKey {
                name: model.to_owned(),
                version: "0".repeat(64),
                dimension: spec.dimension(),
            },
            spec,
            input: VoiceInput {
                piece: 0,
                min_samples: 400,
            },
            thresholds: VoiceThresholds {
                link: 0.45,
                merge: 0.15,
                least_seconds: 4.0,
            },
            known_again: Ok(matching::Thresholds {
                accept: 0.85,
                stranger: 0.6,
                strong: 0.95,
                same: 0.85,
                two: 0.75,
                slack: 0.1,
                half_s: 0.0,
                least_s: 2.0,
            }),
        });
    }
    let found = manifest::resolve(model, Task::Embedding)
        .map_err(|e| EngineError::ModelMissing(e.to_string()))?;
    let entry = found.entry.as_ref().ok_or_else(|| {
        EngineError::Unsupported(format!("no manifest describes {}", found.path.display()))
    })?;
    let version = file_digest(&found.path).map_err(|e| EngineError::ModelMissing(e.to_string()))?;
    Ok(VoiceModel {
        key: ModelKey {
            name: entry.id.clone(),
            version,
            dimension: spec.dimension(),
        },
        spec,
        input: input(entry),
        thresholds: thresholds(entry)?,
        known_again: matching::Thresholds::read(|name| entry.threshold(name)),
    })
}

fn input(entry: &Entry) -> VoiceInput {
    let samples = |name: &str| entry.contract.number(name).map(|n| n.max(0.0) as usize);
    VoiceInput {
        piece: samples("window_samples").unwrap_or(0),
        // Two frames of Kaldi's features are 560 samples, and no vector of less than this says much.
        min_samples: samples("min_samples").unwrap_or(6_400),
    }
}

fn thresholds(entry: &Entry) -> Result<VoiceThresholds, EngineError> {
    let number = |name: &str, most: f64| {
        let value = entry.threshold(name).filter(|v| (0.0..=most).contains(v));
        value.map(|v| v as f32).ok_or_else(|| {
            EngineError::Unsupported(format!(
                "the manifest entry of {} has no threshold {name} from 0 to {most}, and that of another model would put \
                 people together wrongly: docs/models.md says how it is measured",
                entry.id
            ))
        })
    };
    Ok(VoiceThresholds {
        link: number("cluster_link", 2.0)?,
        merge: number("cluster_merge", 2.0)?,
        least_seconds: number("cluster_least_s", 3600.0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::manifest::Manifest;

    #[test]
    fn every_embedding_model_of_the_manifest_can_diarize_and_name() {
        let manifest = Manifest::load(None).unwrap();
        let entries = manifest.entries().iter();
        let entries: Vec<&Entry> = entries.filter(|e| e.task == Task::Embedding).collect();

        assert!(entries.len() >= 3);
        for entry in entries {
            assert!(thresholds(entry).is_ok(), "{}", entry.id);
            let names = matching::Thresholds::read(|name| entry.threshold(name)).unwrap();
            assert!(names.stranger < names.accept, "{}", entry.id);
            assert!(names.accept < names.strong, "{}", entry.id);
            assert!(names.two < names.same, "{}", entry.id);
        }
    }

    #[test]
    fn a_model_that_cannot_name_says_which_and_why() {
        let mut model = voice_model("fake:any").unwrap();
        assert!(model.matching().is_ok());

        model.known_again = matching::Thresholds::read(|_| None);

        let text = model.matching().unwrap_err().to_string();
        assert!(
            text.contains("any") && text.contains("voice_accept"),
            "{text}"
        );
    }
}
