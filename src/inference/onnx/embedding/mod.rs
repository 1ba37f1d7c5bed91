// SPDX-License-Identifier: MPL-2.0
//! Voice embeddings: a segment of one voice, 16 kHz mono, becomes a vector of length 1.
//!
//! What a model wants of its samples is in its manifest entry. [`WaveformSpec`] is the contract of those that take the
//! samples themselves, [`FbankSpec`] of those that take Kaldi's mel bands. Both ways to make rows end in a `BatchGraph`.

pub mod fbank;
mod waveform;

pub use fbank::{FbankModel, FbankSpec};
pub use waveform::{WaveformModel, WaveformSpec};

use crate::inference::{EngineError, VoiceVector};

const TASK: &str = "voice embedding";
/// Segments in a batch where the manifest does not say.
const BATCH_MAX: usize = 32;

/// The direction of a sum of vectors.
fn normalised(mut values: Vec<f32>) -> Result<VoiceVector, EngineError> {
    let length = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let length = length.sqrt();
    if !length.is_normal() {
        return Err(failed("the vector is zero".into()));
    }
    for value in &mut values {
        *value = (f64::from(*value) / length) as f32;
    }
    Ok(VoiceVector { values })
}

fn failed(why: String) -> EngineError {
    EngineError::Failed {
        what: TASK.into(),
        why,
    }
}
