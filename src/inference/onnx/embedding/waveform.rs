// SPDX-License-Identifier: MPL-2.0
//! Models that take samples: GE2E, whose mel bands are part of the graph.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BATCH_MAX, TASK, failed, normalised};
use crate::inference::manifest::Entry;
use crate::inference::onnx::checked::{self, BatchGraph, Ports};
use crate::inference::{
    Embedder, EmbedderInfo, EmbedderModel, EngineError, Footprint, VoiceVector,
};

/// Rows of a call for a single segment: GE2E takes 9.1 ms for a row alone and 5.7 ms for one of eight, and no less
/// beyond. Each further segment of a batch adds a row.
const ROWS_MIN: usize = 8;
/// Room for a row, for each of its samples: measured with GE2E, and a tenth.
const ROW_BYTES_A_SAMPLE: u64 = 62;

/// Which embedding model to load, and what it wants. Equal specs share one session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WaveformSpec {
    /// The ONNX file.
    pub path: PathBuf,
    /// Short name for people, and the identity of the vectors.
    pub name: String,
    /// What goes in and comes out.
    pub ports: Ports,
    /// Samples the model looks at, at 16 kHz. A longer segment is cut into windows, a shorter one given whole.
    pub window_samples: usize,
    /// From the start of one window to the start of the next.
    pub hop_samples: usize,
    /// Fewest samples it can say anything about.
    pub min_samples: usize,
    /// Segments that are quieter, as the root mean square of their samples, are amplified to this, in hundredths of a
    /// decibel below full scale: -3000 is -30 dBFS.
    pub level_min: Option<i32>,
    /// Values in a vector.
    pub dimension: usize,
    /// Most segments in a batch.
    pub max_batch: usize,
}

impl WaveformSpec {
    /// For the file at `path`, of which the manifest says `entry`. [`EngineError::Unsupported`] if the contract there is
    /// another than this code serves.
    pub fn new(path: &Path, entry: &Entry) -> Result<Self, EngineError> {
        let contract = &entry.contract;
        let unsupported = |why: String| {
            EngineError::Unsupported(format!(
                "{} cannot be used for voice embeddings: {why}",
                entry.id
            ))
        };
        let features = contract.text("features");
        if features != Some("waveform") {
            return Err(unsupported(format!(
                "it wants {}, and supported are samples (features = \"waveform\") and mel bands (\"kaldi-fbank\")",
                features.unwrap_or("features that its contract does not name")
            )));
        }
        if contract.sample_rate != 16_000 {
            return Err(unsupported(format!(
                "it wants {} samples a second, not 16000",
                contract.sample_rate
            )));
        }
        let samples = |name: &str| -> Result<usize, EngineError> {
            let number = contract.number(name).filter(|n| (1.0..1e9).contains(n));
            number
                .map(|n| n as usize)
                .ok_or_else(|| unsupported(format!("its contract gives no {name} of 1 or more")))
        };
        let window_samples = samples("window_samples")?;
        let min_samples = samples("min_samples")?;
        if min_samples > window_samples {
            return Err(unsupported(format!(
                "its min_samples, {min_samples}, are more than its window_samples, {window_samples}"
            )));
        }
        let ports = Ports::of(contract).map_err(unsupported)?;
        let dimension = match ports.outputs.first().map(|port| &port.shape[..]) {
            Some([None, Some(dimension)]) => *dimension as usize,
            _ => {
                return Err(unsupported(
                    "its output is not [\"batch\", DIMENSION]".into(),
                ));
            }
        };
        Ok(Self {
            path: path.to_owned(),
            name: entry.id.clone(),
            ports,
            window_samples,
            hop_samples: samples("hop_samples")?,
            min_samples,
            level_min: contract
                .number("level_dbfs_min")
                .map(|dbfs| (dbfs * 100.0).round() as i32),
            dimension,
            max_batch: entry
                .cost("max_batch")
                .map_or(BATCH_MAX, |n| (n as usize).max(1)),
        })
    }

    /// What it takes, for a file of `file_bytes`. A row takes 53 bytes of the arena for each of its samples and 4 of
    /// input; a lane has room for `ROWS_MIN` rows, and one more for each further segment.
    pub fn footprint(&self, file_bytes: u64) -> Footprint {
        let row_bytes = ROW_BYTES_A_SAMPLE * self.window_samples as u64;
        Footprint {
            weights_bytes: checked::weights_bytes(file_bytes),
            load_extra_bytes: checked::load_extra_bytes(file_bytes).max(row_bytes),
            lane_bytes: ROWS_MIN as u64 * row_bytes,
            item_bytes: row_bytes,
            decoder_bytes: 0,
        }
    }

    /// Where the windows of a segment of `samples` begin.
    fn starts(&self, samples: usize) -> Vec<usize> {
        let Some(spare) = samples.checked_sub(self.window_samples) else {
            return vec![0];
        };
        let mut starts: Vec<usize> = (0..=spare).step_by(self.hop_samples).collect();
        // An end that no window covers counts if it is worth one: half a hop, as Resemblyzer does it.
        let covered = starts.last().copied().unwrap_or(0);
        if spare - covered >= self.hop_samples.div_ceil(2) {
            starts.push(spare);
        }
        starts
    }

    /// What to multiply a segment by.
    fn gain(&self, segment: &[f32]) -> f32 {
        let Some(level_min) = self.level_min else {
            return 1.0;
        };
        let power = segment.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>();
        let level = (power / segment.len() as f64).sqrt();
        let wanted = 10_f64.powf(f64::from(level_min) / 2000.0);
        if level > 0.0 && level < wanted {
            (wanted / level) as f32
        } else {
            1.0
        }
    }
}

/// The loaded graph.
pub struct WaveformModel {
    graph: Arc<Graph>,
    info: EmbedderInfo,
}

struct Graph {
    graph: BatchGraph,
    spec: WaveformSpec,
}

struct WaveformLane(Arc<Graph>);

impl WaveformModel {
    /// Loads the graph and tries it on a tone: wrong names, shapes or values are refused here.
    pub fn load(spec: &WaveformSpec) -> Result<Self, EngineError> {
        let graph = Graph {
            graph: BatchGraph::load(&spec.path, &spec.ports, TASK)?,
            spec: spec.clone(),
        };
        // Nothing stays of it: a lane begins with its largest batch, and smaller ones live in what that took.
        graph
            .run_and_shrink(&checked::probe(spec.window_samples))
            .and_then(normalised)
            .map_err(|e| checked::refused(e, &spec.path))?;
        let info = EmbedderInfo {
            name: spec.name.clone(),
            dimension: spec.dimension,
            min_samples: spec.min_samples,
        };
        Ok(Self {
            graph: Arc::new(graph),
            info,
        })
    }
}

/// A window of a segment on its way to the model.
struct Row {
    segment: usize,
    samples: Range<usize>,
}

impl Graph {
    fn vectors(&self, segments: &[Arc<[f32]>]) -> Result<Vec<VoiceVector>, EngineError> {
        let mut rows = Vec::new();
        for (n, segment) in segments.iter().enumerate() {
            if segment.len() < self.spec.min_samples {
                return Err(failed(format!(
                    "a segment has {} samples, and {} wants {} or more",
                    segment.len(),
                    self.spec.name,
                    self.spec.min_samples
                )));
            }
            let length = segment.len().min(self.spec.window_samples);
            let starts = self.spec.starts(segment.len()).into_iter();
            rows.extend(starts.map(|start| Row {
                segment: n,
                samples: start..start + length,
            }));
        }
        let gains: Vec<f32> = segments.iter().map(|s| self.spec.gain(s)).collect();
        let most = segments.len() + ROWS_MIN - 1;
        let mut sums = vec![vec![0.0_f32; self.spec.dimension]; segments.len()];
        // Rows of one call are equally long. The longest go first: what they took then serves the others.
        rows.sort_by_key(|row| std::cmp::Reverse(row.samples.len()));
        for alike in rows.chunk_by(|a, b| a.samples.len() == b.samples.len()) {
            for call in alike.chunks(most) {
                let samples: Vec<f32> = call
                    .iter()
                    .flat_map(|row| {
                        let gain = gains[row.segment];
                        segments[row.segment][row.samples.clone()]
                            .iter()
                            .map(move |s| s * gain)
                    })
                    .collect();
                let values = self.run(call.len(), call[0].samples.len(), &samples)?;
                for (row, vector) in call.iter().zip(values.chunks_exact(self.spec.dimension)) {
                    for (sum, value) in sums[row.segment].iter_mut().zip(vector) {
                        *sum += value;
                    }
                }
            }
        }
        sums.into_iter().map(normalised).collect()
    }

    fn run(&self, rows: usize, length: usize, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        self.graph
            .run(&[rows, length], samples, &[rows, self.spec.dimension])
    }

    /// The output for one row; gives back what batches have taken.
    fn run_and_shrink(&self, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        self.graph
            .run_and_shrink(&[1, samples.len()], samples, &[1, self.spec.dimension])
    }

    fn shrink(&self) {
        // Where not even a short row fits nothing is given back, and the next batch says so.
        let _ = self.run_and_shrink(&vec![0.0; self.spec.min_samples]);
    }
}

impl EmbedderModel for WaveformModel {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn max_batch(&self) -> usize {
        self.graph.spec.max_batch
    }

    fn lane(&self) -> Result<Box<dyn Embedder>, EngineError> {
        let graph = Arc::clone(&self.graph);
        let length = graph.spec.window_samples;
        checked::warm(
            graph.spec.max_batch,
            |segments| {
                let rows = segments + ROWS_MIN - 1;
                let silence = vec![0.0; rows * length];
                graph.run(rows, length, &silence).map(drop)
            },
            || graph.shrink(),
        )?;
        Ok(Box::new(WaveformLane(graph)))
    }
}

impl Embedder for WaveformLane {
    fn run(&mut self, segments: &[Arc<[f32]>]) -> Result<Vec<VoiceVector>, EngineError> {
        self.0.vectors(segments)
    }

    fn shrink(&mut self) {
        self.0.shrink();
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        self.0.graph.rebuild()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> WaveformSpec {
        WaveformSpec {
            path: PathBuf::new(),
            name: "test".into(),
            ports: Ports::default(),
            window_samples: 100,
            hop_samples: 40,
            min_samples: 10,
            level_min: Some(-2000),
            dimension: 4,
            max_batch: 1,
        }
    }

    #[test]
    fn a_short_segment_is_one_window() {
        assert_eq!(spec().starts(30), [0]);
        assert_eq!(spec().starts(100), [0]);
    }

    #[test]
    fn an_end_counts_from_half_a_hop_on() {
        assert_eq!(spec().starts(119), [0]);
        assert_eq!(spec().starts(120), [0, 20]);
        assert_eq!(spec().starts(140), [0, 40]);
        assert_eq!(spec().starts(185), [0, 40, 80]);
    }

    #[test]
    fn quiet_sound_is_amplified_and_loud_sound_is_not() {
        let quiet = [0.01, -0.01];

        assert!((spec().gain(&quiet) - 10.0).abs() < 1e-4);
        assert_eq!(spec().gain(&[0.5, -0.5]), 1.0);
        assert_eq!(spec().gain(&[0.0, 0.0]), 1.0);
    }
}
