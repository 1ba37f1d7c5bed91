// SPDX-License-Identifier: MPL-2.0
//! Silero VAD 6.2, either of the graphs that take a sequence of frames: `silero-vad-6.2-rows.onnx`, or
//! `silero_vad_16k_sequence.onnx`, which it is made of.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, Array3};
use ort::session::Session;
use ort::value::TensorRef;

use super::checked::{self, Port, Ports};
use crate::inference::times::{Meter, Part, Times};
use crate::inference::{
    EngineError, Footprint, VAD_FRAME, Vad, VadBlock, VadModel, VadProbs, VadState,
};

const TASK: &str = "voice activity detection";
const CONTEXT: usize = 64;
const ROW: usize = CONTEXT + VAD_FRAME;
const HIDDEN: usize = 128;
/// Frames in one call. Of more than a second's worth each costs no less than 95 % of what it does here, and from 250 on,
/// which leave the cache, more; and memory grows with them.
const FRAMES_A_CALL: usize = 32;

/// Which voice activity model to load. Equal specs share one session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SileroSpec {
    /// The ONNX file.
    pub path: PathBuf,
}

impl SileroSpec {
    /// What it takes, for a file of `file_bytes`: measured, with room to spare.
    pub fn footprint(&self, file_bytes: u64) -> Footprint {
        Footprint {
            weights_bytes: checked::weights_bytes(file_bytes),
            load_extra_bytes: checked::load_extra_bytes(file_bytes),
            lane_bytes: 4 << 20,
            ..Footprint::default()
        }
    }
}

/// The loaded graph. One session serves all streams: a call for a second of sound takes half a millisecond.
pub struct SileroModel {
    session: Arc<Mutex<Session>>,
    meter: Arc<Meter>,
}

struct SileroLane {
    session: Arc<Mutex<Session>>,
    meter: Arc<Meter>,
}

impl SileroModel {
    /// Loads the graph and tries it on a tone: wrong names, shapes or values are refused here.
    pub fn load(spec: &SileroSpec) -> Result<Self, EngineError> {
        let session = checked::load(&spec.path, &ports())?;
        let model = Self {
            session: Arc::new(Mutex::new(session)),
            meter: Arc::default(),
        };
        let probe = VadBlock {
            samples: checked::probe(FRAMES_A_CALL * VAD_FRAME),
            state: VadState::default(),
        };
        let out = model
            .lane()?
            .run(probe)
            .map_err(|e| checked::refused(e, &spec.path))?;
        if let Some(odd) = out.probs.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            return Err(EngineError::InvalidModel {
                path: spec.path.clone(),
                why: format!("it gives {odd}, which is no probability"),
            });
        }
        Ok(model)
    }
}

/// What the graph must take and give.
fn ports() -> Ports {
    let state = [Some(1), Some(1), Some(HIDDEN as u64)];
    Ports {
        inputs: vec![
            Port::f32("input", &[None, Some(ROW as u64)]),
            Port::f32("h", &state),
            Port::f32("c", &state),
        ],
        outputs: vec![
            Port::f32("speech_probs", &[None]),
            Port::f32("hn", &state),
            Port::f32("cn", &state),
        ],
    }
}

impl VadModel for SileroModel {
    fn lane(&self) -> Result<Box<dyn Vad>, EngineError> {
        Ok(Box::new(SileroLane {
            session: Arc::clone(&self.session),
            meter: Arc::clone(&self.meter),
        }))
    }

    fn times(&self) -> Times {
        self.meter.times()
    }
}

impl Vad for SileroLane {
    fn run(&mut self, block: VadBlock) -> Result<VadProbs, EngineError> {
        let VadBlock { samples, mut state } = block;
        let frames = samples.len() / VAD_FRAME;
        if samples.len() % VAD_FRAME != 0 {
            return Err(failed(format!(
                "{} samples are no whole frames of {VAD_FRAME}",
                samples.len()
            )));
        }
        if (state.h.len(), state.c.len(), state.context.len()) != (HIDDEN, HIDDEN, CONTEXT) {
            return Err(failed("a state of a wrong size".into()));
        }
        let mut probs = Vec::with_capacity(frames);
        for piece in samples.chunks(FRAMES_A_CALL * VAD_FRAME) {
            let (piece_probs, next) = self.meter.time(Part::Vad, || self.call(piece, state))?;
            probs.extend(piece_probs);
            state = next;
        }
        Ok(VadProbs { probs, state })
    }
}

impl SileroLane {
    fn call(&self, samples: &[f32], state: VadState) -> Result<(Vec<f32>, VadState), EngineError> {
        let frames = samples.len() / VAD_FRAME;
        let rows = rows(samples, &state.context);
        let input =
            Array2::from_shape_vec((frames, ROW), rows).map_err(|e| failed(e.to_string()))?;
        let h =
            Array3::from_shape_vec((1, 1, HIDDEN), state.h).map_err(|e| failed(e.to_string()))?;
        let c =
            Array3::from_shape_vec((1, 1, HIDDEN), state.c).map_err(|e| failed(e.to_string()))?;

        let ort_failed = |e: ort::Error| checked::error(TASK, &e);
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session
            .run(ort::inputs![
                "input" => TensorRef::from_array_view(&input).map_err(ort_failed)?,
                "h" => TensorRef::from_array_view(&h).map_err(ort_failed)?,
                "c" => TensorRef::from_array_view(&c).map_err(ort_failed)?,
            ])
            .map_err(ort_failed)?;
        let take = |name: &str, wanted: usize| -> Result<Vec<f32>, EngineError> {
            let value = outputs
                .get(name)
                .ok_or_else(|| failed(format!("no output named {name}")))?;
            let (_, data) = value.try_extract_tensor::<f32>().map_err(ort_failed)?;
            if data.len() != wanted || data.iter().any(|v| !v.is_finite()) {
                return Err(failed(format!(
                    "output {name} has {} values, not {wanted}",
                    data.len()
                )));
            }
            Ok(data.to_vec())
        };
        let probs = take("speech_probs", frames)?;
        let state = VadState {
            h: take("hn", HIDDEN)?,
            c: take("cn", HIDDEN)?,
            context: samples[samples.len() - CONTEXT..].to_vec(),
        };
        Ok((probs, state))
    }
}

/// Frames `[frames, 576]`: the 64 samples before each frame, then its own 512.
fn rows(samples: &[f32], context: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(samples.len() / VAD_FRAME * ROW);
    let mut before = context;
    for frame in samples.chunks_exact(VAD_FRAME) {
        out.extend_from_slice(before);
        out.extend_from_slice(frame);
        before = &frame[VAD_FRAME - CONTEXT..];
    }
    out
}

fn failed(why: String) -> EngineError {
    EngineError::Failed {
        what: TASK.into(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_begins_with_the_end_of_the_frame_before() {
        let samples: Vec<f32> = (0..2 * VAD_FRAME).map(|i| i as f32).collect();

        let rows = rows(&samples, &[-1.0; CONTEXT]);

        assert_eq!(rows.len(), 2 * ROW);
        assert_eq!(rows[0], -1.0);
        assert_eq!(rows[CONTEXT], 0.0);
        assert_eq!(rows[ROW], (VAD_FRAME - CONTEXT) as f32);
        assert_eq!(rows[ROW + CONTEXT], VAD_FRAME as f32);
    }
}
