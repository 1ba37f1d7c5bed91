// SPDX-License-Identifier: MPL-2.0
//! Whisper models in the layout of Optimum's exporter, as `onnx-community` publishes them: any folder with `config.json`,
//! encoder and decoder, of 32 bits, 16 or fewer. Source: Optimum, `exporters/onnx/model_configs.py`, `onnx/graph_transformations.py`.
//!
//! ```text
//! encoder  in   input_features         [B, mels, 3000]
//!          out  last_hidden_state      [B, 1500, D]
//! decoder  in   input_ids              i64 [R, n]
//!               encoder_hidden_states  [R, 1500, D]
//!               past_key_values.N.decoder.{key,value}  [R, H, P, 64]
//!               past_key_values.N.encoder.{key,value}  [R, H, 1500, 64]
//!               use_cache_branch       bool [1]   with both branches in one file
//!               cache_position         i64 [n]    in some versions
//!          out  logits                 [R, n, tokens]
//!               present.N.…            as past_key_values, P + n long
//!               cross_attentions.N     [R, H, n, 1500]  in those named `_timestamped`
//! ```
//!
//! They are slower than our own graphs: a window is decoded alone, the whole cache goes out and in with every step, and each
//! text of a window has the sound's keys and values for itself. They run on the processor. Lanes have sessions of their own.
//!
//! Where a decoder shows no attention there are no word times, and words are spread over the speech.

mod config;
mod graphs;
mod runner;
mod tensor;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::header::{Header, POSITIONS, TEXT};
use super::lane::Lane;
use super::runner::{Runner, failed};
use super::{DEFAULT_BEAM, Shared, checked, protobuf};
use crate::dsp::mel::WINDOW_FRAMES;
use crate::inference::manifest::Export;
use crate::inference::onnx::checked::Digest;
use crate::inference::times::Times;
use crate::inference::whisper::{MAX_TOKENS, expected_window};
use crate::inference::{
    EngineError, Footprint, Layout, SpeechModel, SpeechModelInfo, SpeechToText,
};
use graphs::Graphs;
use runner::ExportRunner;

/// For the sound's keys and values of all texts of a window: models that are larger follow fewer.
const SOUND_BYTES_MAX: usize = 1 << 30;
const F32: usize = 4;

/// Which model to load. Equal specs share one loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OptimumSpec {
    /// Its files.
    pub export: Export,
    /// Short name for people.
    pub name: String,
    /// Constant lateness of this model's word times, in samples.
    pub word_time_offset: i32,
}

impl OptimumSpec {
    /// What the model takes, from its texts and the lengths of its files.
    pub fn footprint(&self) -> Result<Footprint, EngineError> {
        let header = self.header()?;
        let attention = protobuf::has_output(&self.export.decoder, &graphs::attention(0))?;
        let mut weights = 0;
        let mut longest = 0;
        for path in self.export.graphs() {
            let bytes = bytes_of(&self.export, path)?;
            let precision = self.export.precision.as_str();
            // The processor works with 32 bits: it has weights of 16 twice.
            let halves = if precision.contains("16") { 3 } else { 1 };
            weights += checked::weights_bytes(bytes * halves);
            longest = longest.max(bytes);
        }
        let lane = lane_bytes(&header, attention) as u64;
        Ok(Footprint {
            // With what the run that tries them has taken: the first lane goes on in it, and with these sessions.
            weights_bytes: weights + (encode_bytes(&header) + 2 * sound_bytes(&header)) as u64,
            load_extra_bytes: checked::load_extra_bytes(longest),
            lane_bytes: weights + lane,
            item_bytes: 0,
            decoder_bytes: 0,
        })
    }

    /// What a thread of a slow machine takes to encode a window; nothing where the files cannot be read.
    pub(in crate::inference) fn expected_window(&self) -> Duration {
        self.header().map_or(Duration::ZERO, |header| {
            2 * expected_window(POSITIONS, header.width, header.encoder_layers)
        })
    }

    fn header(&self) -> Result<Header, EngineError> {
        config::header(&self.export.folder, &self.export.precision)
    }
}

/// Bytes of a graph, with those that lie in a file beside it.
fn bytes_of(export: &Export, graph: &Path) -> Result<u64, EngineError> {
    let data = export.data_of(graph).map_or(Ok(0), length)?;
    Ok(length(graph)? + data)
}

fn length(path: &Path) -> Result<u64, EngineError> {
    let meta = path.metadata().map_err(|e| EngineError::ModelFile {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    Ok(meta.len())
}

/// Bytes of keys and values of the sound for one text.
fn sound_bytes(header: &Header) -> usize {
    2 * F32 * header.layers * header.cross_values()
}

/// Texts of a window that there is room for.
fn rows_most(header: &Header) -> usize {
    (SOUND_BYTES_MAX / sound_bytes(header)).clamp(1, DEFAULT_BEAM as usize)
}

/// What a run of the encoder takes: attention of each position to each, and states of the widest layer.
fn encode_bytes(header: &Header) -> usize {
    F32 * POSITIONS * (2 * POSITIONS * header.heads + 16 * header.width)
}

/// What a lane takes beside its sessions. `attention`: its graphs show how they look at the sound.
fn lane_bytes(header: &Header, attention: bool) -> usize {
    let (rows, width, heads) = (rows_most(header), header.width, header.heads);
    let states = F32 * POSITIONS * width;
    let sound = sound_bytes(header) * (rows + 1);
    // The cache goes in and comes out, and is put together on the way.
    let cache = 3 * 2 * F32 * header.layers * width * TEXT * rows;
    let encode = encode_bytes(header);
    // A text that is read from its beginning: logits of each token, scores and what becomes of them.
    let logits = 2 * F32 * TEXT * header.vocab;
    let scores = 2 * F32 * heads * TEXT * (TEXT + POSITIONS);
    // Of the layers that follow the sound, all heads, and what is picked of them.
    let mut followers: Vec<usize> = header.alignment_heads.iter().map(|[l, _]| *l).collect();
    followers.sort_unstable();
    followers.dedup();
    let shown = match attention {
        true => {
            F32 * followers.len() * heads * TEXT * POSITIONS + 2 * F32 * header.attention_values()
        }
        false => 0,
    };
    let read = logits + scores + shown + F32 * TEXT * 24 * width;
    let kept = size_of::<u16>() * header.attention_values();
    let times = (F32 + 1) * (MAX_TOKENS + 1) * POSITIONS;
    let features = 3 * F32 * WINDOW_FRAMES * header.mels;
    states + sound + cache + encode.max(read) + kept + times + features
}

/// A loaded model.
pub struct OptimumModel {
    spec: OptimumSpec,
    header: Arc<Header>,
    shared: Arc<Shared>,
    digests: Vec<Digest>,
    /// The first lane's.
    graphs: Arc<Mutex<Graphs>>,
    rows: usize,
    info: SpeechModelInfo,
}

impl OptimumModel {
    /// Loads all graphs and tries them on a tone: wrong names, types, shapes or values are refused here.
    pub fn load(spec: &OptimumSpec) -> Result<Self, EngineError> {
        let mut header = spec.header()?;
        let vocabulary = config::vocabulary(&spec.export.folder, header.vocab)?;
        let (graphs, digests) = Graphs::load(spec, &header, None)?;
        if !graphs.attention {
            header.alignment_heads.clear();
        }
        let rows = match graphs.one_row {
            true => 1,
            false => rows_most(&header),
        };
        let followers = header.alignment_heads.len();
        let mut weight_bytes = 0;
        for path in spec.export.graphs() {
            weight_bytes += bytes_of(&spec.export, path)?;
        }
        let info = SpeechModelInfo {
            name: spec.name.clone(),
            engine: format!(
                "ONNX Runtime ({}, Optimum's layout: slower than scribe's own)",
                header.weights
            ),
            multilingual: header.multilingual(),
            weight_bytes,
            max_batch: 1,
            default_beam: rows as u32,
            word_time_offset: spec.word_time_offset,
            layout: Layout::Optimum,
            word_times: followers > 0,
            takes_prefix: true,
        };
        let model = Self {
            spec: spec.clone(),
            shared: Arc::new(Shared {
                name: spec.name.clone(),
                multilingual: header.multilingual(),
                vocabulary,
                followers,
                meter: Arc::default(),
            }),
            header: Arc::new(header),
            digests,
            graphs: Arc::new(Mutex::new(graphs)),
            rows,
            info,
        };
        model.try_once()?;
        Ok(model)
    }

    /// Runs both branches on a tone, as a check of what they give.
    fn try_once(&self) -> Result<(), EngineError> {
        let mut runner = self.runner(&self.graphs)?;
        runner.begin(1);
        runner
            .enter(&checked::probe(16_000), TEXT)
            .map_err(|e| checked::refused(e, &self.spec.export.encoder))?;
        let with_past = self.spec.export.with_past.as_ref();
        let decoders = [
            &self.spec.export.decoder,
            with_past.unwrap_or(&self.spec.export.decoder),
        ];
        for path in decoders {
            let start = i64::from(self.shared.vocabulary.start());
            let step = runner.advance(&[start]);
            let checked =
                step.and_then(
                    |mut step| match step.logits()?.iter().find(|v| !v.is_finite()) {
                        Some(odd) => Err(failed(format!("the output logits holds {odd}"))),
                        None => Ok(()),
                    },
                );
            checked.map_err(|e| checked::refused(e, path))?;
        }
        Ok(())
    }

    fn runner(&self, graphs: &Arc<Mutex<Graphs>>) -> Result<ExportRunner, EngineError> {
        let meter = Arc::clone(&self.shared.meter);
        ExportRunner::new(
            Arc::clone(&self.header),
            Arc::clone(graphs),
            meter,
            self.rows,
        )
    }
}

impl SpeechModel for OptimumModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        self.shared.knows_language(code)
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        let graphs = if Arc::strong_count(&self.graphs) == 1 {
            Arc::clone(&self.graphs)
        } else {
            let (graphs, _) = Graphs::load(&self.spec, &self.header, Some(&self.digests))?;
            Arc::new(Mutex::new(graphs))
        };
        let mut runner = self.runner(&graphs)?;
        runner.warm_up()?;
        Ok(Box::new(Lane::new(
            Arc::clone(&self.shared),
            Box::new(runner),
            1,
        )))
    }

    fn times(&self) -> Times {
        self.shared.meter.times()
    }
}
