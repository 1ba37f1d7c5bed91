// SPDX-License-Identifier: MPL-2.0
//! One person's recording becomes what it adds to a voice: speech alone, in pieces, judged, as vectors.

use std::sync::Arc;

use thiserror::Error;

use super::hearing::Hearing;
use super::judge::{Limits, Refusal};
use super::measure::{Measure, Measured};
use super::pieces::Pieces;
use super::{EnrollOptions, Progress, embed};
use crate::diarize::voice::VoiceModel;
use crate::inference::{CancelToken, EngineError, VoiceVector};
use crate::registry::ledger::DeviceMemory;
use crate::registry::{Embedding, Lease, Segmentation, VoiceActivity};
use crate::voices::Take;

/// A pause of this parts speech, milliseconds: between two words there is none that long.
const MIN_SILENCE_MS: u32 = 100;

/// Why there is no voice.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum EnrollError {
    /// A model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The recording is not good enough.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Hears one person's recording. What is kept of it is speech, in bounded memory; see [`Pieces`].
pub struct Recording {
    hearing: Hearing,
    pieces: Pieces,
    measure: Measure,
    limits: Limits,
}

impl Recording {
    /// With these models.
    pub fn new(
        vad: Arc<Lease<VoiceActivity>>,
        segmentation: Arc<Lease<Segmentation>>,
        options: &EnrollOptions,
        limits: Limits,
        cancel: CancelToken,
    ) -> Self {
        Self {
            hearing: Hearing::new(vad, segmentation, MIN_SILENCE_MS, cancel),
            pieces: Pieces::new(options.duration, options.hop, options.max_segments),
            measure: Measure::default(),
            limits,
        }
    }

    /// More sound, 16 kHz mono; `start` counts where a piece without a hole begins.
    pub fn push(&mut self, start: u64, samples: &[f32]) -> Result<(), EngineError> {
        self.hearing.push(start, samples)?;
        self.take();
        Ok(())
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) -> Result<(), EngineError> {
        self.hearing.end_piece()
    }

    /// Seconds of speech of one person alone, as far as is known.
    pub fn seconds(&self) -> f64 {
        self.pieces.seconds()
    }

    fn take(&mut self) {
        for block in self.hearing.take() {
            self.measure.block(&block);
            for range in &block.clean {
                self.pieces.push(&block.samples[range.clone()]);
            }
        }
    }

    /// No more sound follows: waits until all of it is heard.
    pub fn end(&mut self) -> Result<(), EngineError> {
        self.hearing.finish()?;
        self.take();
        Ok(())
    }

    /// What was measured so far.
    pub fn measured(&self) -> Measured {
        self.measure.measured()
    }

    /// The end: judges the sound, makes the vectors, judges those.
    pub fn finish(
        mut self,
        embedding: &Lease<Embedding>,
        model: &VoiceModel,
        memory: Option<DeviceMemory>,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Take, EnrollError> {
        self.end()?;
        let measured = self.measure.measured();
        self.limits.recording(&measured)?;
        let least = model.input.min_samples.max(1);
        let segments: Vec<Arc<[f32]>> = self.pieces.finish();
        let segments = segments.into_iter().filter(|s| s.len() >= least);
        let segments: Vec<Arc<[f32]>> = segments.collect();
        let vectors = embed(embedding, segments.into_iter(), memory, cancel, progress)?;
        let vectors: Vec<Vec<f32>> = vectors
            .into_iter()
            .map(|VoiceVector { values }| values)
            .collect();
        Ok(self.limits.take(&vectors, &measured, model)?)
    }
}
