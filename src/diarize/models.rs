// SPDX-License-Identifier: MPL-2.0
//! Finds the models that tell speakers apart.

use crate::inference::EngineError;
use crate::inference::manifest::{self, Entry, ResolvedModel, Task};
use crate::inference::onnx::embedding::{FbankSpec, WaveformSpec};
use crate::inference::onnx::segmentation::PyannoteSpec;
use crate::registry::{EmbeddingSpec, FileStamp, SegmentationSpec};

/// Finds the segmentation model that `model` names (empty: the default). Reads the file for its digest.
pub fn segmentation_spec(model: &str) -> Result<SegmentationSpec, EngineError> {
    #[cfg(any(test, feature = "test-support"))]
    if let Some(name) = model.strip_prefix("fake:") {
        return Ok(SegmentationSpec::Fake(name.to_owned()));
    }
    let found = resolve(model, Task::Segmentation)?;
    let (path, stamp) = FileStamp::of(&found.path)?;
    let spec = PyannoteSpec::new(&path, described(&found)?)?;
    Ok(SegmentationSpec::Pyannote(spec, stamp))
}

/// Finds the embedding model that `model` names (empty: the best one on disk). Reads the file for its digest.
pub fn embedding_spec(model: &str) -> Result<EmbeddingSpec, EngineError> {
    #[cfg(any(test, feature = "test-support"))]
    if let Some(name) = model.strip_prefix("fake:") {
        return Ok(EmbeddingSpec::Fake(name.to_owned()));
    }
    let found = resolve(model, Task::Embedding)?;
    let (path, stamp) = FileStamp::of(&found.path)?;
    let entry = described(&found)?;
    if entry.contract.text("features") == Some("kaldi-fbank") {
        return Ok(EmbeddingSpec::Fbank(FbankSpec::new(&path, entry)?, stamp));
    }
    let spec = WaveformSpec::new(&path, entry)?;
    Ok(EmbeddingSpec::Waveform(spec, stamp))
}

fn resolve(model: &str, task: Task) -> Result<ResolvedModel, EngineError> {
    manifest::resolve(model, task).map_err(|e| EngineError::ModelMissing(e.to_string()))
}

/// What is known of a model. Without it nobody knows what goes in and what comes out.
fn described(found: &ResolvedModel) -> Result<&Entry, EngineError> {
    found.entry.as_ref().ok_or_else(|| {
        let path = found.path.display();
        EngineError::Unsupported(format!(
            "no manifest describes the model {path}: put a description beside it, {path}.toml, as docs/models.md shows, \
             or name a model that `scribe-models list` shows"
        ))
    })
}
