// SPDX-License-Identifier: MPL-2.0
//! Models that take mel bands as Kaldi makes them (`dsp::fbank`), any number of frames: WeSpeaker's and 3D-Speaker's CAM++,
//! ResNet34 and others.
//!
//! Which lengths a graph sees. Every new length is a new shape to ONNX Runtime and to its arena, and rows share a call only
//! if they are equally long; so a segment of 64 frames or more is cut, alike at both ends, to the next lower multiple of a
//! sixteenth to a thirty-second of its length, a power of two ([`kept`]). That makes at most sixteen lengths an octave,
//! takes 6 % at the most and 2 % on average, and leaves short segments whole, for which a frame counts most. Segments of more
//! than [`FRAMES_MOST`] frames, ten seconds, are cut into as few equal pieces as fit, each with its own mean subtracted; their
//! vectors, each of length 1, are averaged. Nothing is padded or repeated: that would shift the model's statistics.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BATCH_MAX, TASK, failed, normalised};
use crate::dsp::fbank::{self, Fbank, FbankOptions, Window};
use crate::inference::manifest::{Contract, Entry};
use crate::inference::onnx::checked::{self, BatchGraph, Ports};
use crate::inference::pages;
use crate::inference::{
    Embedder, EmbedderInfo, EmbedderModel, EngineError, Footprint, VoiceVector,
};

/// Most frames of a piece, those of ten seconds, and of all the rows of a call together: convolutions over 10 s, or over 1.25 s
/// each, take as much time in one call as one by one (graphs of ResNet34's and CAM++'s layers: 4 % apart at the most), and
/// four times as much in a call takes four times the memory.
pub const FRAMES_MOST: usize = 998;
/// Segments of fewer frames than this are taken whole.
const WHOLE_BELOW: usize = 64;
/// Fewest samples where the contract does not say: 0.4 s, 38 frames.
const MIN_SAMPLES: usize = 6_400;
/// Room in the arena for each frame of a call, where the manifest does not say, in KiB. ResNet34 takes 30: three tensors of
/// 32 channels and 80 bands at a time; CAM++ 20.
const FRAME_KIB: u64 = 40;

/// Which embedding model to load, and what it wants. Equal specs share one session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FbankSpec {
    /// The ONNX file.
    pub path: PathBuf,
    /// Short name for people, and the identity of the vectors.
    pub name: String,
    /// What goes in and comes out.
    pub ports: Ports,
    /// How frames are made.
    pub options: FbankOptions,
    /// Whether each band's mean over a piece is subtracted.
    pub mean_normalise: bool,
    /// Fewest samples it can say anything about.
    pub min_samples: usize,
    /// Values in a vector.
    pub dimension: usize,
    /// Most segments in a batch.
    pub max_batch: usize,
    /// Bytes that a graph takes for each frame of a call, beside its weights.
    pub frame_bytes: u64,
}

impl FbankSpec {
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
        let options = options(contract).map_err(unsupported)?;
        let mean_normalise = match contract.text("mean_normalise") {
            Some("utterance") => true,
            Some("none") => false,
            other => {
                return Err(unsupported(unknown(
                    "mean_normalise",
                    other,
                    "utterance, none",
                )));
            }
        };
        let ports = Ports::of(contract).map_err(unsupported)?;
        let bands = options.bands as u64;
        match ports.inputs.first().map(|port| &port.shape[..]) {
            Some([None, None, Some(found)]) if *found == bands => {}
            _ => {
                return Err(unsupported(format!(
                    "its input is not [\"batch\", \"frames\", {bands}], as its mel_bins say"
                )));
            }
        }
        let dimension = match ports.outputs.first().map(|port| &port.shape[..]) {
            Some([None, Some(dimension)]) => *dimension as usize,
            _ => {
                return Err(unsupported(
                    "its output is not [\"batch\", DIMENSION]".into(),
                ));
            }
        };
        let longest = fbank::samples_of(FRAMES_MOST);
        let min_samples = match contract.details.get("min_samples") {
            None => MIN_SAMPLES,
            Some(_) => contract
                .number("min_samples")
                .filter(|n| (fbank::FRAME as f64..=longest as f64).contains(n))
                .ok_or_else(|| {
                    unsupported(format!(
                        "its min_samples are not {} to {longest}",
                        fbank::FRAME
                    ))
                })? as usize,
        };
        Ok(Self {
            path: path.to_owned(),
            name: entry.id.clone(),
            ports,
            options,
            mean_normalise,
            min_samples,
            dimension,
            max_batch: entry
                .cost("max_batch")
                .map_or(BATCH_MAX, |n| (n as usize).max(1)),
            frame_bytes: entry
                .cost("frame_kib")
                .map_or(FRAME_KIB << 10, |kib| (kib * 1024.0).max(0.0) as u64),
        })
    }

    /// What it takes, for a file of `file_bytes`. A lane has room for the longest piece, and no call is larger, however many
    /// segments it answers.
    pub fn footprint(&self, file_bytes: u64) -> Footprint {
        let frame_bytes = self
            .frame_bytes
            .saturating_add(4 * self.options.bands as u64);
        let lane_bytes = frame_bytes.saturating_mul(FRAMES_MOST as u64);
        Footprint {
            weights_bytes: checked::weights_bytes(file_bytes),
            // A piece is tried while what loading took is still there. ResNet34's layers: 106 MB of 141 for a file of 27.
            load_extra_bytes: checked::load_extra_bytes(file_bytes).saturating_add(lane_bytes),
            lane_bytes,
            item_bytes: 0,
            decoder_bytes: 0,
        }
    }
}

/// How frames are made, as the contract says it; what of it this code does not do.
fn options(contract: &Contract) -> Result<FbankOptions, String> {
    let features = contract.text("features");
    if features != Some("kaldi-fbank") {
        return Err(unknown("features", features, "kaldi-fbank"));
    }
    if contract.sample_rate as usize != fbank::RATE {
        return Err(format!(
            "it wants {} samples a second, not {}",
            contract.sample_rate,
            fbank::RATE
        ));
    }
    let window = match contract.text("window") {
        Some("hamming") => Window::Hamming,
        Some("povey") => Window::Povey,
        other => return Err(unknown("window", other, "hamming, povey")),
    };
    for (name, served) in [
        ("frame_length_ms", 25.0),
        ("frame_shift_ms", 10.0),
        ("dither", 0.0),
    ] {
        if number(contract, name)?.is_some_and(|found| found != served) {
            let found = shown(&contract.details[name]);
            return Err(format!("its {name} is {found}, and {served} is supported"));
        }
    }
    for (name, served) in [
        ("remove_dc", true),
        ("snip_edges", true),
        ("use_power", true),
        ("use_energy", false),
        ("log", true),
    ] {
        let found = contract.details.get(name);
        if let Some(found) = found.filter(|found| found.as_bool() != Some(served)) {
            let found = shown(found);
            return Err(format!("its {name} is {found}, and {served} is supported"));
        }
    }
    let needed =
        |name: &str| number(contract, name)?.ok_or_else(|| format!("its contract gives no {name}"));
    let bands = needed("mel_bins")?;
    if bands.fract() != 0.0 || !(1.0..=1e6).contains(&bands) {
        return Err(format!("it has {bands} mel_bins"));
    }
    let usual = FbankOptions::new(window, needed("sample_scale")? as f32);
    let or = |name: &str, usual: f32| -> Result<f32, String> {
        Ok(number(contract, name)?.map_or(usual, |found| found as f32))
    };
    let options = FbankOptions {
        bands: bands as usize,
        preemphasis: or("preemphasis", usual.preemphasis)?,
        low_hz: or("low_hz", usual.low_hz)?,
        high_hz: or("high_hz", usual.high_hz)?,
        ..usual
    };
    options.check().map(|()| options)
}

/// A number of the contract, if it is there.
fn number(contract: &Contract, name: &str) -> Result<Option<f64>, String> {
    match (contract.details.get(name), contract.number(name)) {
        (None, _) => Ok(None),
        (_, Some(number)) => Ok(Some(number)),
        (Some(other), None) => Err(format!(
            "its {name} is {}, which is no number",
            shown(other)
        )),
    }
}

fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::String(text) => format!("\"{text}\""),
        other => format!("of the type {}", other.type_str()),
    }
}

fn unknown(name: &str, found: Option<&str>, served: &str) -> String {
    match found {
        Some(found) => format!("its {name} is \"{found}\", and supported are {served}"),
        None => format!("its contract gives no {name}: one of {served}"),
    }
}

/// Frames that are used of a piece of `frames`: see the module.
pub fn kept(frames: usize) -> usize {
    if !(WHOLE_BELOW..FRAMES_MOST).contains(&frames) {
        return frames.min(FRAMES_MOST);
    }
    let step = 1 << (frames.ilog2() - 4);
    frames - frames % step
}

/// The frames of each piece of a segment of `frames`.
pub fn pieces(frames: usize) -> impl Iterator<Item = Range<usize>> {
    let number = frames.div_ceil(FRAMES_MOST).max(1);
    (0..number).map(move |n| {
        let (from, to) = (n * frames / number, (n + 1) * frames / number);
        // All pieces are equally long: those of a segment share a call.
        let length = kept(frames / number);
        let from = from + (to - from - length) / 2;
        from..from + length
    })
}

/// The loaded graph.
pub struct FbankModel {
    graph: Arc<Graph>,
    info: EmbedderInfo,
}

struct Graph {
    graph: BatchGraph,
    fbank: Fbank,
    spec: FbankSpec,
}

struct FbankLane(Arc<Graph>);

/// A piece of a segment on its way to the model.
struct Row {
    segment: usize,
    frames: Range<usize>,
}

impl FbankModel {
    /// Loads the graph and tries it on a tone as long and as short as it may get: wrong names, shapes or values are refused
    /// here.
    pub fn load(spec: &FbankSpec) -> Result<Self, EngineError> {
        let graph = Graph {
            graph: BatchGraph::load(&spec.path, &spec.ports, TASK)?,
            fbank: Fbank::new(&spec.options),
            spec: spec.clone(),
        };
        let probe = checked::probe(fbank::samples_of(FRAMES_MOST));
        graph
            .run(1, FRAMES_MOST, &graph.features(&probe))
            .and_then(normalised)
            // Nothing stays of it: a lane begins with its largest batch, and smaller ones live in what that took.
            .and_then(|_| graph.run_and_shrink(&probe[..spec.min_samples]))
            .and_then(normalised)
            .map_err(|e| checked::refused(e, &spec.path))?;
        // What loading took and malloc keeps: 54 MB for a file of 27.
        pages::trim();
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
            let pieces = pieces(fbank::count(segment.len()));
            rows.extend(pieces.map(|frames| Row { segment: n, frames }));
        }
        let mut sums = vec![vec![0.0_f32; self.spec.dimension]; segments.len()];
        // Rows of one call are equally long. The longest go first: what they took then serves the others.
        rows.sort_by_key(|row| std::cmp::Reverse(row.frames.len()));
        let mut features = Vec::new();
        for alike in rows.chunk_by(|a, b| a.frames.len() == b.frames.len()) {
            let frames = alike[0].frames.len();
            for call in alike.chunks((FRAMES_MOST / frames).max(1)) {
                features.clear();
                for row in call {
                    let from = row.frames.start * fbank::SHIFT;
                    let samples = &segments[row.segment][from..][..fbank::samples_of(frames)];
                    self.append_features(samples, &mut features);
                }
                let values = self.run(call.len(), frames, &features)?;
                for (row, vector) in call.iter().zip(values.chunks_exact(self.spec.dimension)) {
                    let vector = normalised(vector.to_vec())?;
                    for (sum, value) in sums[row.segment].iter_mut().zip(&vector.values) {
                        *sum += value;
                    }
                }
            }
        }
        sums.into_iter().map(normalised).collect()
    }

    /// The rows of one piece, as the model wants them.
    fn append_features(&self, samples: &[f32], features: &mut Vec<f32>) {
        let from = features.len();
        self.fbank.append(samples, features);
        if self.spec.mean_normalise {
            fbank::subtract_means(&mut features[from..], self.spec.options.bands);
        }
    }

    fn features(&self, samples: &[f32]) -> Vec<f32> {
        let mut features = Vec::new();
        self.append_features(samples, &mut features);
        features
    }

    /// The outputs for `rows` pieces of `frames` each.
    fn run(&self, rows: usize, frames: usize, features: &[f32]) -> Result<Vec<f32>, EngineError> {
        self.graph.run(
            &[rows, frames, self.spec.options.bands],
            features,
            &[rows, self.spec.dimension],
        )
    }

    /// The output for one piece; gives back what batches have taken.
    fn run_and_shrink(&self, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        let features = self.features(samples);
        let bands = self.spec.options.bands;
        let shape = [1, features.len() / bands, bands];
        self.graph
            .run_and_shrink(&shape, &features, &[1, self.spec.dimension])
    }

    fn shrink(&self) {
        // Where not even a short piece fits nothing is given back, and the next batch says so.
        let _ = self.run_and_shrink(&vec![0.0; self.spec.min_samples]);
    }
}

impl EmbedderModel for FbankModel {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn max_batch(&self) -> usize {
        self.graph.spec.max_batch
    }

    fn lane(&self) -> Result<Box<dyn Embedder>, EngineError> {
        let graph = Arc::clone(&self.graph);
        let silence = vec![0.0; FRAMES_MOST * graph.spec.options.bands];
        graph.run(1, FRAMES_MOST, &silence)?;
        Ok(Box::new(FbankLane(graph)))
    }
}

impl Embedder for FbankLane {
    fn run(&mut self, segments: &[Arc<[f32]>]) -> Result<Vec<VoiceVector>, EngineError> {
        self.0.vectors(segments)
    }

    fn shrink(&mut self) {
        self.0.shrink();
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        let outcome = self.0.graph.rebuild();
        pages::trim();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn short_pieces_are_whole_and_no_piece_loses_more_than_a_sixteenth() {
        let (mut lost, mut all) = (0, 0);
        for frames in 1..=FRAMES_MOST {
            let kept = kept(frames);
            assert!(kept <= frames && (frames - kept) * 16 < frames, "{frames}");
            assert!(frames >= WHOLE_BELOW || kept == frames, "{frames}");
            (lost, all) = (lost + frames - kept, all + frames);
        }
        assert_eq!(kept(FRAMES_MOST), FRAMES_MOST);
        assert!(lost * 40 < all, "2.5 % on average: {lost} of {all}");
    }

    #[test]
    fn a_graph_sees_few_lengths() {
        let lengths: BTreeSet<usize> = (38..20_000).flat_map(pieces).map(|r| r.len()).collect();

        assert!(lengths.len() <= 26 + 4 * 16 + 1, "{}", lengths.len());
        assert_eq!(lengths.last(), Some(&FRAMES_MOST));
    }

    #[test]
    fn pieces_lie_in_the_middle_are_equal_and_cover_nearly_all() {
        for frames in [1, 63, 64, 100, 997, 998, 999, 1997, 5000, 360_000] {
            let pieces: Vec<_> = pieces(frames).collect();
            let covered: usize = pieces.iter().map(|piece| piece.len()).sum();

            assert_eq!(pieces.len(), frames.div_ceil(998), "{frames}");
            assert!(covered * 16 > frames * 15, "{frames}: {covered}");
            assert!(pieces.windows(2).all(|p| p[0].end <= p[1].start));
            assert!(pieces.iter().all(|p| p.len() == pieces[0].len()));
            let (before, behind) = (pieces[0].start, frames - pieces.last().unwrap().end);
            assert!(before.abs_diff(behind) <= 1, "{frames}: {pieces:?}");
        }
    }
}
