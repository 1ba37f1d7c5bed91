// SPDX-License-Identifier: MPL-2.0
//! pyannote segmentation-3.0: who talks when in ten seconds, as classes of up to two of three local speakers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::checked::{self, BatchGraph, Ports};
use crate::inference::manifest::Entry;
use crate::inference::{
    EngineError, Footprint, SEGMENTATION_CLASSES, SEGMENTATION_WINDOW, SegmentationScores,
    Segmenter, SegmenterModel,
};

const TASK: &str = "speaker segmentation";
/// Windows in a batch where the manifest does not say.
const BATCH_MAX: usize = 32;
/// How far the probabilities of a frame may be from 1 in sum.
const SUM_TOLERANCE: f32 = 1e-3;
/// Local speakers of each class, as [`SegmentationScores`] has them.
const CLASSES: [&[i64]; SEGMENTATION_CLASSES] = [&[], &[0], &[1], &[2], &[0, 1], &[0, 2], &[1, 2]];

/// Which segmentation model to load. Equal specs share one session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PyannoteSpec {
    /// The ONNX file.
    pub path: PathBuf,
    /// What goes in and comes out.
    pub ports: Ports,
    /// Frames of a window.
    pub frames: usize,
    /// Most windows in a batch.
    pub max_batch: usize,
}

impl PyannoteSpec {
    /// For the file at `path`, of which the manifest says `entry`. [`EngineError::Unsupported`] if the contract there is
    /// another than this code serves.
    pub fn new(path: &Path, entry: &Entry) -> Result<Self, EngineError> {
        let contract = &entry.contract;
        let unsupported = |why: String| {
            EngineError::Unsupported(format!(
                "{} cannot be used for speaker segmentation: {why}",
                entry.id
            ))
        };
        let window = contract.number("window_samples");
        if window != Some(SEGMENTATION_WINDOW as f64) || contract.sample_rate != 16_000 {
            return Err(unsupported(format!(
                "its windows are not {SEGMENTATION_WINDOW} samples at 16 kHz"
            )));
        }
        let classes = contract
            .details
            .get("classes")
            .and_then(toml::Value::as_array);
        let same = |(found, wanted): (&toml::Value, &&[i64])| {
            let found = found.as_array().into_iter().flatten();
            found
                .map(toml::Value::as_integer)
                .eq(wanted.iter().copied().map(Some))
        };
        let same_classes =
            classes.is_some_and(|c| c.len() == CLASSES.len() && c.iter().zip(&CLASSES).all(same));
        if !same_classes || contract.text("scale") != Some("log") {
            return Err(unsupported(
                "its classes are not nobody, A, B, C, A+B, A+C, B+C, as logarithms".into(),
            ));
        }
        let frames = contract.number("window_frames");
        let frames = frames.filter(|n| *n >= 1.0).ok_or_else(|| {
            unsupported("its contract does not say how many frames a window has".into())
        })?;
        Ok(Self {
            path: path.to_owned(),
            ports: Ports::of(contract).map_err(unsupported)?,
            frames: frames as usize,
            max_batch: entry
                .cost("max_batch")
                .map_or(BATCH_MAX, |n| (n as usize).max(1)),
        })
    }

    /// What it takes, for a file of `file_bytes`. A window of ten seconds takes 10.4 MiB of the arena and 0.6 MiB of
    /// input, in batches of 1 to 32 alike.
    /// A lane beyond the first has a session of its own, so each is reckoned with the weights.
    pub fn footprint(&self, file_bytes: u64) -> Footprint {
        // A session of its own: measured, 9 to 15 MiB, as what ONNX Runtime takes once a process is there already.
        let session_bytes = checked::weights_bytes(file_bytes) - ONCE_A_PROCESS;
        let lane_bytes = (16 << 20) + session_bytes;
        Footprint {
            weights_bytes: checked::weights_bytes(file_bytes),
            // One window is tried on the way.
            load_extra_bytes: checked::load_extra_bytes(file_bytes).max(lane_bytes),
            lane_bytes,
            item_bytes: 12 << 20,
            decoder_bytes: 0,
        }
    }
}

/// Bytes of [`checked::weights_bytes`] that a process takes but once.
const ONCE_A_PROCESS: u64 = 8 << 20;

/// The loaded graph. It is the largest part of a diarization, and batches gain nothing on a processor: lanes run side by
/// side, each on a session of its own. The weights are small.
pub struct PyannoteModel {
    /// The session that was loaded first: the lane's that comes first.
    graph: Mutex<Arc<Graph>>,
    max_batch: usize,
}

struct Graph {
    graph: BatchGraph,
    frames: usize,
}

struct PyannoteLane(Arc<Graph>);

impl PyannoteModel {
    /// Loads the graph and tries it on a tone: wrong names, shapes or values are refused here.
    pub fn load(spec: &PyannoteSpec) -> Result<Self, EngineError> {
        let graph = Graph {
            graph: BatchGraph::load(&spec.path, &spec.ports, TASK)?,
            frames: spec.frames,
        };
        let invalid = |why: String| EngineError::InvalidModel {
            path: spec.path.clone(),
            why,
        };
        // Nothing stays of it: a lane begins with its largest batch, and smaller ones live in what that took.
        let scores = graph
            .run_and_shrink(&checked::probe(SEGMENTATION_WINDOW))
            .map_err(|e| checked::refused(e, &spec.path))?;
        for frame in scores.chunks_exact(SEGMENTATION_CLASSES) {
            let sum: f32 = frame.iter().map(|score| score.exp()).sum();
            if (sum - 1.0).abs() > SUM_TOLERANCE {
                return Err(invalid(format!(
                    "the probabilities of a frame sum to {sum}, not 1"
                )));
            }
        }
        Ok(Self {
            graph: Mutex::new(Arc::new(graph)),
            max_batch: spec.max_batch,
        })
    }

    /// A graph that no lane has.
    fn free_graph(&self) -> Result<Arc<Graph>, EngineError> {
        let first = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&first) == 1 {
            return Ok(Arc::clone(&first));
        }
        Ok(Arc::new(Graph {
            graph: first.graph.another()?,
            frames: first.frames,
        }))
    }
}

impl Graph {
    /// Scores of `windows` windows whose samples lie end to end.
    fn run(&self, windows: usize, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        let (shape, wanted) = self.shapes(windows);
        self.graph.run(&shape, samples, &wanted)
    }

    /// Scores of one window; gives back what batches have taken.
    fn run_and_shrink(&self, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        let (shape, wanted) = self.shapes(1);
        self.graph.run_and_shrink(&shape, samples, &wanted)
    }

    fn shrink(&self) {
        // Where not even one window fits nothing is given back, and the next batch says so.
        let _ = self.run_and_shrink(&vec![0.0; SEGMENTATION_WINDOW]);
    }

    fn shapes(&self, windows: usize) -> ([usize; 3], [usize; 3]) {
        (
            [windows, 1, SEGMENTATION_WINDOW],
            [windows, self.frames, SEGMENTATION_CLASSES],
        )
    }
}

impl SegmenterModel for PyannoteModel {
    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn lane(&self) -> Result<Box<dyn Segmenter>, EngineError> {
        let graph = self.free_graph()?;
        checked::warm(
            self.max_batch,
            |items| {
                let silence = vec![0.0; items * SEGMENTATION_WINDOW];
                graph.run(items, &silence).map(drop)
            },
            || graph.shrink(),
        )?;
        Ok(Box::new(PyannoteLane(graph)))
    }
}

impl Segmenter for PyannoteLane {
    fn run(&mut self, windows: &[Arc<[f32]>]) -> Result<Vec<SegmentationScores>, EngineError> {
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let mut samples = Vec::with_capacity(windows.len() * SEGMENTATION_WINDOW);
        for (n, window) in windows.iter().enumerate() {
            if window.len() > SEGMENTATION_WINDOW {
                return Err(EngineError::Failed {
                    what: TASK.into(),
                    why: format!(
                        "a window has {} samples, more than {SEGMENTATION_WINDOW}",
                        window.len()
                    ),
                });
            }
            samples.extend_from_slice(window);
            samples.resize((n + 1) * SEGMENTATION_WINDOW, 0.0);
        }
        let scores = self.0.run(windows.len(), &samples)?;
        Ok(scores
            .chunks_exact(self.0.frames * SEGMENTATION_CLASSES)
            .map(|scores| SegmentationScores {
                scores: scores.to_vec(),
            })
            .collect())
    }

    fn shrink(&mut self) {
        self.0.shrink();
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        self.0.graph.rebuild()
    }
}
