// SPDX-License-Identifier: MPL-2.0
//! What a lane runs a model with, and what remembers its windows: the graphs of `scribe-models`.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};

use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorRef};

use super::cache::{self, Cache, Fresh, Look, PastView};
use super::header::{HEAD, Header, MARKS, POSITIONS, TEXT};
use super::sound::SoundView;
use super::{Graph, TASK};
use crate::dsp::mel::{LogMel, WINDOW_FRAMES};
use crate::inference::EngineError;
use crate::inference::onnx::checked;
use crate::inference::onnx::cross::{BLOCK, PADDED, TILE};
use crate::inference::onnx::lanes::widest;
use crate::inference::onnx::past;
use crate::inference::times::{Meter, Part};
use crate::inference::whisper::{MAX_PROMPT_TOKENS, MAX_TOKENS};

/// Any word.
const WARM_TOKEN: i64 = 1000;
/// Texts followed at once when a lane tries how large it gets.
const WARM_ROWS: usize = 5;

/// Encodes windows, and steps the decoder over them. Windows have numbers from 0; each has as many rows, one for a text
/// that is followed in it.
pub(super) trait Runner: Send {
    /// Begins with windows of up to so many rows; says how many there will be. None may be in it.
    fn begin(&mut self, rows: usize) -> usize;
    /// Whether one more window fits, whose texts have up to `most` tokens.
    fn has_room(&self, most: usize) -> bool;
    /// Encodes a sound into a window of its own, the last.
    fn enter(&mut self, samples: &[f32], most: usize) -> Result<(), EngineError>;
    /// Forgets a window; the last takes its place.
    fn remove(&mut self, window: usize);
    /// Forgets all windows.
    fn clear(&mut self);
    /// Tokens of a window's texts.
    fn length(&self, window: usize) -> usize;
    /// Forgets what a window's texts have behind their first `length` tokens.
    fn shorten(&mut self, window: usize, length: usize);
    /// Adds tokens to a window's first row alone.
    fn read(&mut self, window: usize, tokens: &[i64]) -> Result<Step, EngineError>;
    /// All rows of a window remember what its first does.
    fn spread(&mut self, window: usize);
    /// Another row of a window remembers what `from` does.
    fn copy(&mut self, window: usize, from: usize, to: usize);
    /// Adds a token to each row of all windows, `[windows, rows]`.
    fn advance(&mut self, tokens: &[i64]) -> Result<Step, EngineError>;
}

/// What a step of the decoder gave.
pub(super) struct Step {
    /// `[rows, vocabulary]`
    pub logits: Floats,
    /// `[windows, heads, steps of all rows, 1500]`
    pub attention: Option<Floats>,
    pub vocab: usize,
}

/// Values as a graph gave them, or put in order.
pub(super) enum Floats {
    Tensor(DynValue),
    Own(Vec<f32>),
}

impl Floats {
    fn values(&self) -> Result<&[f32], EngineError> {
        match self {
            Self::Tensor(tensor) => {
                let found = tensor.try_extract_tensor::<f32>();
                Ok(found.map_err(|e| checked::error(TASK, &e))?.1)
            }
            Self::Own(values) => Ok(values),
        }
    }
}

impl Step {
    /// Values for the next token of each row, one behind the other.
    pub fn logits(&mut self) -> Result<&mut [f32], EngineError> {
        let values = match &mut self.logits {
            Floats::Tensor(tensor) => {
                let found = tensor.try_extract_tensor_mut::<f32>();
                found.map_err(|e| checked::error(TASK, &e))?.1
            }
            Floats::Own(values) => values,
        };
        debug_assert_eq!(values.len() % self.vocab, 0);
        Ok(values)
    }

    /// How each window's heads looked at the sound, `[heads, tokens of all rows, 1500]` one window behind the other;
    /// nothing if the graph does not say.
    pub fn attention(&self) -> Result<Option<&[f32]>, EngineError> {
        self.attention.as_ref().map(Floats::values).transpose()
    }
}

/// See the module.
pub(super) struct Pair {
    header: Arc<Header>,
    encoder: Graph,
    decoder: Graph,
    meter: Arc<Meter>,
    names: Vec<LayerNames>,
    mel: LogMel,
    /// A window's spectrogram, `[3000, mels]`.
    frames: Vec<f32>,
    cache: Cache,
}

/// Names of a layer's tensors.
struct LayerNames {
    cross_keys: String,
    cross_values: String,
    keys: String,
    values: String,
    new_keys: String,
    new_values: String,
    past: String,
    new: String,
}

impl LayerNames {
    fn of(layer: usize) -> Self {
        Self {
            cross_keys: format!("cross_k_{layer}"),
            cross_values: format!("cross_v_{layer}"),
            keys: format!("self_k_{layer}"),
            values: format!("self_v_{layer}"),
            new_keys: format!("new_k_{layer}"),
            new_values: format!("new_v_{layer}"),
            past: format!("past_{layer}"),
            new: format!("new_{layer}"),
        }
    }
}

impl Pair {
    /// With all the room that it will take, untouched.
    pub fn new(
        header: Arc<Header>,
        encoder: Graph,
        decoder: Graph,
        meter: Arc<Meter>,
    ) -> Result<Self, EngineError> {
        let mel = LogMel::new(header.mels);
        Ok(Self {
            frames: vec![0.0; mel.len()],
            mel,
            cache: Cache::new(&header)?,
            names: (0..header.layers).map(LayerNames::of).collect(),
            encoder,
            decoder,
            meter,
            header,
        })
    }

    /// Has everything as large as it will ever be: a process that fitted does no more when it grows hours later
    /// (docs/adr/0007-lanes-at-their-largest.md). `tried`: its encoder has run before.
    pub fn warm_up(&mut self, tried: bool) -> Result<(), EngineError> {
        self.cache.take();
        if !tried {
            self.begin(1);
            self.enter(&[0.0], TEXT)?;
            self.clear();
        }
        self.begin(1);
        self.fill(TEXT);
        for steps in [MAX_PROMPT_TOKENS + 2, MAX_TOKENS] {
            self.cache.shorten(0, 0);
            self.read(0, &vec![WARM_TOKEN; steps])?;
        }
        self.cache.clear();
        for (rows, most) in [(1, TEXT), (WARM_ROWS, MARKS + MAX_TOKENS)] {
            self.begin(rows);
            self.fill(most);
            let all = self.cache.all();
            self.cache.grow(&all, most - 1);
            self.advance(&vec![WARM_TOKEN; all.len()])?;
            self.cache.clear();
        }
        Ok(())
    }

    fn fill(&mut self, most: usize) {
        while self.cache.has_room(most) {
            self.cache.add(most);
        }
    }

    fn encode(&mut self, samples: &[f32]) -> Result<(), EngineError> {
        let meter = &self.meter;
        meter.time(Part::Mel, || self.mel.window(samples, &mut self.frames));
        let what = format!("{TASK}: encoding {:.1} s", samples.len() as f32 / 16_000.0);
        let error = |e: ort::Error| checked::error(&what, &e);
        let shape = [1, WINDOW_FRAMES, self.header.mels];
        let mel = TensorRef::from_array_view((shape, &self.frames[..])).map_err(error)?;
        let mut session = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = meter
            .time(Part::Encoder, || session.run(ort::inputs!["mel" => mel]))
            .map_err(error)?;
        let size = self.header.cross_values();
        let given = |name: &str| -> Result<&[f32], EngineError> {
            let found = outputs
                .get(name)
                .ok_or_else(|| failed(format!("no output named {name}")))?;
            let (_, values) = found.try_extract_tensor::<f32>().map_err(error)?;
            of_size(values, size, name)?;
            of_numbers(values, name)?;
            Ok(values)
        };
        for (layer, names) in self.names.iter().enumerate() {
            self.cache.hear_keys(layer, given(&names.cross_keys)?);
            self.cache.hear_values(layer, given(&names.cross_values)?);
        }
        Ok(())
    }

    /// Runs the decoder on `steps` tokens for each row of `part`, and takes in their keys and values.
    fn step(
        &mut self,
        part: &cache::Part,
        tokens: &[i64],
        steps: usize,
    ) -> Result<Step, EngineError> {
        let (rows, windows) = (part.len(), part.windows.len());
        let what = format!("{TASK}: decoding {windows} windows");
        let error = |e: ort::Error| checked::error(&what, &e);
        let (heads, vocab) = (self.header.heads, self.header.vocab);
        if !self.cache.prepare(part, steps) {
            return Err(failed(format!(
                "no room for {steps} more tokens of {windows} windows"
            )));
        }
        let positions = self.cache.positions(part, steps);

        let mut inputs: Vec<(Cow<str>, SessionInputValue)> = Vec::new();
        let numbers = [rows, steps];
        let tensor = TensorRef::from_array_view((numbers, tokens)).map_err(error)?;
        inputs.push(("tokens".into(), tensor.into()));
        let tensor = TensorRef::from_array_view((numbers, &positions[..])).map_err(error)?;
        inputs.push(("pos".into(), tensor.into()));
        let (name, input): (_, SessionInputValue) = match self.cache.look() {
            Look::Mask(mask, columns) => {
                let shape = [rows, 1, steps, columns + steps];
                let tensor = TensorRef::from_array_view((shape, mask)).map_err(error)?;
                ("mask", tensor.into())
            }
            Look::Index(index) => {
                let shape = [rows, index.len() / rows.max(1)];
                let tensor = TensorRef::from_array_view((shape, index)).map_err(error)?;
                ("index", tensor.into())
            }
        };
        inputs.push((name.into(), input));
        for (layer, names) in self.names.iter().enumerate() {
            let [cross_keys, cross_values] = self.cache.sound(layer, part);
            for (name, sound, floats) in [
                (
                    &names.cross_keys,
                    cross_keys,
                    [windows, heads, HEAD, POSITIONS],
                ),
                (
                    &names.cross_values,
                    cross_values,
                    [windows, heads, POSITIONS, HEAD],
                ),
            ] {
                let bytes = [windows, heads, PADDED / TILE, BLOCK];
                let input = match sound {
                    SoundView::Floats(values) => {
                        TensorRef::from_array_view((floats, values)).map(SessionInputValue::from)
                    }
                    SoundView::Bytes(values) => {
                        TensorRef::from_array_view((bytes, values)).map(SessionInputValue::from)
                    }
                };
                inputs.push((name.as_str().into(), input.map_err(error)?));
            }
            match self.cache.past(layer, part) {
                PastView::Columns([keys, values]) => {
                    let columns = keys.len() / (rows * heads * HEAD).max(1);
                    for (name, values, shape) in [
                        (&names.keys, keys, [rows, heads, HEAD, columns]),
                        (&names.values, values, [rows, heads, columns, HEAD]),
                    ] {
                        let tensor = TensorRef::from_array_view((shape, values)).map_err(error)?;
                        inputs.push((name.as_str().into(), tensor.into()));
                    }
                }
                PastView::Entries(values) => {
                    let shape = [values.len() / past::entry(heads), 2, heads, HEAD];
                    let tensor = TensorRef::from_array_view((shape, values)).map_err(error)?;
                    inputs.push((names.past.as_str().into(), tensor.into()));
                }
            }
        }

        let mut session = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let meter = &self.meter;
        let mut outputs = meter
            .time(Part::Decoder, || session.run(inputs))
            .map_err(error)?;
        meter.step(windows, rows * steps);
        let mut take = |name: &str| outputs.remove(name);
        let missing = |name: &str| failed(format!("no output named {name}"));
        let logits = take("logits").ok_or_else(|| missing("logits"))?;
        let attention = take("align");
        let mut new = Vec::new();
        for names in &self.names {
            let wanted: &[&String] = match self.header.has_operators() {
                true => &[&names.new],
                false => &[&names.new_keys, &names.new_values],
            };
            let taken = wanted.iter().map(|n| take(n).ok_or_else(|| missing(n)));
            new.push(taken.collect::<Result<Vec<_>, _>>()?);
        }
        drop(outputs);
        // The other lane's turn.
        drop(session);
        let size = rows * heads * HEAD * steps;
        for (layer, new) in new.iter().enumerate() {
            let fresh = match &new[..] {
                [keys, values] => {
                    let (_, keys) = keys.try_extract_tensor::<f32>().map_err(error)?;
                    let (_, values) = values.try_extract_tensor::<f32>().map_err(error)?;
                    of_size(keys, size, "new_k")?;
                    of_size(values, size, "new_v")?;
                    Fresh::Columns([keys, values])
                }
                [both, ..] => {
                    let (_, values) = both.try_extract_tensor::<u16>().map_err(error)?;
                    of_size(values, 2 * size, "new")?;
                    Fresh::Entries(values)
                }
                [] => continue,
            };
            self.cache.write(layer, part, steps, fresh);
        }
        self.cache.grow(part, steps);
        let mut step = Step {
            logits: Floats::Tensor(logits),
            attention: attention.map(Floats::Tensor),
            vocab,
        };
        of_size(step.logits()?, rows * vocab, "logits")?;
        if let Some(found) = step.attention()? {
            let followers = self.header.alignment_heads.len();
            of_size(found, rows * steps * followers * POSITIONS, "align")?;
        }
        Ok(step)
    }
}

impl Runner for Pair {
    fn begin(&mut self, rows: usize) -> usize {
        self.cache.begin(rows)
    }

    fn has_room(&self, most: usize) -> bool {
        self.cache.has_room(most)
    }

    fn enter(&mut self, samples: &[f32], most: usize) -> Result<(), EngineError> {
        self.cache.add(most);
        let encoded = self.encode(samples);
        if encoded.is_err() {
            self.cache.remove(self.cache.windows() - 1);
        }
        encoded
    }

    fn remove(&mut self, window: usize) {
        self.cache.remove(window);
    }

    fn clear(&mut self) {
        self.cache.clear();
    }

    fn length(&self, window: usize) -> usize {
        self.cache.length(window)
    }

    fn shorten(&mut self, window: usize, length: usize) {
        self.cache.shorten(window, length);
    }

    fn read(&mut self, window: usize, tokens: &[i64]) -> Result<Step, EngineError> {
        self.step(&Cache::first_row(window), tokens, tokens.len())
    }

    fn spread(&mut self, window: usize) {
        self.cache.spread(window);
    }

    fn copy(&mut self, window: usize, from: usize, to: usize) {
        self.cache.copy(window, from, to);
    }

    fn advance(&mut self, tokens: &[i64]) -> Result<Step, EngineError> {
        let all = self.cache.all();
        self.step(&all, tokens, 1)
    }
}

pub(super) fn of_numbers(values: &[f32], name: &str) -> Result<(), EngineError> {
    let all = widest(
        #[inline(always)]
        || {
            // Without an end before the last: a compiler makes vectors of it.
            let mut all = true;
            for value in values {
                all &= value.is_finite();
            }
            all
        },
    );
    if all {
        Ok(())
    } else {
        Err(failed(format!("the output {name} holds what is no number")))
    }
}

pub(super) fn of_size<T>(values: &[T], size: usize, name: &str) -> Result<(), EngineError> {
    if values.len() == size {
        return Ok(());
    }
    Err(failed(format!(
        "the output {name} has {} values, not {size}",
        values.len()
    )))
}

pub(super) fn failed(why: String) -> EngineError {
    EngineError::Failed {
        what: TASK.into(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::inference::onnx::whisper::{OnnxWhisperModel, OnnxWhisperSpec};

    /// Of the encoder that `SCRIBE_STEP_ENCODER` names.
    #[test]
    #[ignore = "how long a step takes, for people"]
    fn time() {
        let encoder = PathBuf::from(std::env::var_os("SCRIBE_STEP_ENCODER").unwrap());
        let spec = OnnxWhisperSpec {
            decoder: OnnxWhisperSpec::decoder_beside(&encoder).unwrap(),
            encoder,
            name: "timed".into(),
            cuda_device: None,
            word_time_offset: 0,
        };
        let model = OnnxWhisperModel::load(&spec).unwrap();
        let mut runner = model.runner(&model.encoder, &model.decoder).unwrap();
        let start = Instant::now();
        for _ in 0..8 {
            runner.begin(1);
            runner.enter(&[0.1; 16_000], TEXT).unwrap();
            runner.clear();
        }
        println!("encoding a window: {:?}", start.elapsed() / 8);
        for (windows, rows) in [(8, 1), (4, 5), (1, 1), (1, 5)] {
            runner.begin(rows);
            for _ in 0..windows {
                runner.cache.add(100);
            }
            let all = runner.cache.all();
            runner.cache.grow(&all, 40);
            let mut best = Duration::MAX;
            for _ in 0..20 {
                let start = Instant::now();
                runner.advance(&vec![WARM_TOKEN; all.len()]).unwrap();
                best = best.min(start.elapsed());
            }
            println!("{windows} windows of {rows} rows: {best:?}");
            runner.clear();
        }
        for tokens in [3, 224] {
            runner.begin(1);
            runner.cache.add(TEXT);
            let start = Instant::now();
            runner.read(0, &vec![WARM_TOKEN; tokens]).unwrap();
            println!("reading {tokens} tokens: {:?}", start.elapsed());
            runner.clear();
        }
    }
}
