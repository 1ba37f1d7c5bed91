// SPDX-License-Identifier: MPL-2.0
//! Runs an export: one window at a time, its texts side by side.
//!
//! The graphs return the whole of the cache, which goes in again as it is. What was read without a past is one text's, and is
//! copied for the others. The branch with a past takes one token a step and no more (it was traced with one), so whatever
//! has more is read from the beginning, without a past.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::{
    HasSelectedOutputs, OutputSelector, RunOptions, Session, SessionInputValue, SessionOutputs,
};
use ort::value::{DynTensor, DynValue, TensorRef};

use super::graphs::{
    BRANCH, Decoder, FEATURES, Graphs, Kinds, LOGITS, Names, PLACES, SOUND, STATES, TOKENS,
};
use super::tensor;
use crate::dsp::mel::{LogMel, WINDOW_FRAMES};
use crate::inference::EngineError;
use crate::inference::onnx::checked;
use crate::inference::onnx::whisper::TASK;
use crate::inference::onnx::whisper::header::{HEAD, Header, POSITIONS, TEXT};
use crate::inference::onnx::whisper::runner::{Floats, Runner, Step, failed, of_numbers};
use crate::inference::times::{Meter, Part};

/// Any word.
const WARM_TOKEN: i64 = 1000;

/// See the module.
pub(super) struct ExportRunner {
    header: Arc<Header>,
    graphs: Arc<Mutex<Graphs>>,
    kinds: Kinds,
    meter: Arc<Meter>,
    names: Vec<Names>,
    /// Outputs that are wanted of the encoder, of a text read from its beginning, and of a step. Others are not made: some
    /// exports show all of their attention, which is larger than all else.
    outputs: [RunOptions<HasSelectedOutputs>; 3],
    mel: LogMel,
    /// A window's spectrogram, `[3000, mels]`.
    frames: Vec<f32>,
    /// The same as the encoder takes it, `[mels, 3000]`.
    bands: Vec<f32>,
    features: DynTensor,
    rows: usize,
    rows_most: usize,
    window: Option<Heard>,
    /// Keys and values of the sound for each row, a layer's behind the other's. They stay from window to window.
    sound: Vec<DynTensor>,
}

/// The window in work.
struct Heard {
    /// The encoder's states.
    states: DynTensor,
    /// The decoder's keys and values of them have been taken.
    known: bool,
    /// Tokens of each row.
    texts: Vec<Vec<i64>>,
    /// Keys and values of the texts, of as many rows as were run last; none before the first token.
    past: Vec<DynTensor>,
}

impl Heard {
    fn length(&self) -> usize {
        self.texts[0].len()
    }

    fn rows(&self) -> usize {
        let first = self.past.first();
        first.map_or(0, |tensor| tensor::lengths(tensor)[0])
    }
}

impl ExportRunner {
    /// Of sessions with room for `rows_most` texts.
    pub fn new(
        header: Arc<Header>,
        graphs: Arc<Mutex<Graphs>>,
        meter: Arc<Meter>,
        rows_most: usize,
    ) -> Result<Self, EngineError> {
        let kinds = lock(&graphs).kinds;
        let mel = LogMel::new(header.mels);
        let features = [1, header.mels, WINDOW_FRAMES];
        let names: Vec<Names> = (0..header.layers).map(Names::of).collect();
        let outputs = [
            wanted(std::iter::once(STATES)),
            wanted(given_of(&names, &header, true)),
            wanted(given_of(&names, &header, false)),
        ];
        let [encoder, first, step] = outputs;
        Ok(Self {
            outputs: [encoder?, first?, step?],
            features: tensor::zeros(kinds.features, &features)?,
            frames: vec![0.0; mel.len()],
            bands: vec![0.0; mel.len()],
            mel,
            names,
            rows: 1,
            rows_most,
            window: None,
            sound: Vec::new(),
            kinds,
            header,
            graphs,
            meter,
        })
    }

    /// Has everything as large as it will ever be.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        self.begin(self.rows_most);
        self.enter(&[0.0], TEXT)?;
        self.read(0, &[WARM_TOKEN; TEXT - 1])?;
        self.advance(&vec![WARM_TOKEN; self.rows])?;
        self.clear();
        Ok(())
    }

    fn encode(&mut self, samples: &[f32]) -> Result<DynTensor, EngineError> {
        let (mels, meter) = (self.header.mels, Arc::clone(&self.meter));
        meter.time(Part::Mel, || {
            self.mel.window(samples, &mut self.frames);
            for (n, frame) in self.frames.chunks_exact(mels).enumerate() {
                let places = self.bands.iter_mut().skip(n).step_by(WINDOW_FRAMES);
                places.zip(frame).for_each(|(place, value)| *place = *value);
            }
        });
        tensor::write(&mut self.features, &self.bands)?;
        let what = format!("{TASK}: encoding {:.1} s", samples.len() as f32 / 16_000.0);
        let error = |e: ort::Error| checked::error(&what, &e);
        let mut graphs = lock(&self.graphs);
        let inputs = ort::inputs![FEATURES => &self.features];
        let mut outputs = meter
            .time(Part::Encoder, || {
                graphs.encoder.run_with_options(inputs, &self.outputs[0])
            })
            .map_err(error)?;
        let states = outputs.remove(STATES).ok_or_else(|| missing(STATES))?;
        let shape = [1, POSITIONS, self.header.width];
        let states = tensor::given(states, STATES, self.kinds.states, &shape)?;
        of_numbers(&tensor::floats(&states)?, STATES)?;
        tensor::as_kind(states, self.kinds.sound)
    }

    /// Reads a text from its beginning, as the first row. Gives what follows it, and how its tokens from `from` on looked at
    /// the sound.
    fn read_all(&mut self, text: &[i64], from: usize) -> Result<Step, EngineError> {
        let header = Arc::clone(&self.header);
        let heads = header.heads;
        let Some(window) = &mut self.window else {
            return Err(nothing());
        };
        let what = format!("{TASK}: reading {} tokens", text.len());
        let error = |e: ort::Error| checked::error(&what, &e);
        // The other branch's, which is not run.
        let none = tensor::zeros(self.kinds.past, &[1, heads, 1, HEAD])?;
        let none_of_sound = tensor::zeros(self.kinds.past, &[1, heads, 1, HEAD])?;
        let places: Vec<i64> = (0..text.len() as i64).collect();
        let mut graphs = lock(&self.graphs);
        let decoder = &mut graphs.decoder;
        let mut inputs =
            inputs_of(decoder, &window.states, (1, text), &places, &[false]).map_err(error)?;
        if decoder.takes_branch {
            for names in &self.names {
                let texts = names.past.iter().map(|name| (name, &none));
                let sound = names.past_sound.iter().map(|name| (name, &none_of_sound));
                for (name, tensor) in texts.chain(sound) {
                    inputs.push((name.as_str().into(), tensor.into()));
                }
            }
        }
        let mut outputs =
            run(decoder, inputs, &self.outputs[1], &self.meter, text.len()).map_err(error)?;
        let mut take = |name: &str| outputs.remove(name).ok_or_else(|| missing(name));
        let own = [1, heads, text.len(), HEAD];
        let of_sound = [1, heads, POSITIONS, HEAD];
        window.past.clear();
        let first = !window.known;
        for (layer, names) in self.names.iter().enumerate() {
            for part in 0..2 {
                let (name, kind) = (&names.present[part], self.kinds.past);
                window
                    .past
                    .push(tensor::given(take(name)?, name, kind, &own)?);
                if first {
                    let name = &names.present_sound[part];
                    let given = tensor::given(take(name)?, name, kind, &of_sound)?;
                    repeat(&given, &mut self.sound[2 * layer + part]);
                }
            }
        }
        window.known = true;
        let logits = logits_of(take(LOGITS)?, &self.kinds, [1, text.len(), header.vocab])?;
        let attention = self.attention_of(&mut take, [1, text.len()], from)?;
        Ok(self.step_of(logits, attention))
    }

    /// Adds a token to each row, with the keys and values of those before.
    fn add(&mut self, tokens: &[i64]) -> Result<Step, EngineError> {
        let header = Arc::clone(&self.header);
        let rows = self.rows;
        let Some(window) = &mut self.window else {
            return Err(nothing());
        };
        let length = window.length();
        let what = format!("{TASK}: decoding {rows} texts");
        let error = |e: ort::Error| checked::error(&what, &e);
        let mut graphs = lock(&self.graphs);
        let Graphs {
            decoder, with_past, ..
        } = &mut *graphs;
        let decoder = with_past.as_mut().unwrap_or(decoder);
        let places = [length as i64];
        let mut inputs =
            inputs_of(decoder, &window.states, (rows, tokens), &places, &[true]).map_err(error)?;
        for (layer, names) in self.names.iter().enumerate() {
            for part in 0..2 {
                let at = 2 * layer + part;
                inputs.push((names.past[part].as_str().into(), (&window.past[at]).into()));
                let sound = &self.sound[at];
                inputs.push((names.past_sound[part].as_str().into(), sound.into()));
            }
        }
        let mut outputs =
            run(decoder, inputs, &self.outputs[2], &self.meter, rows).map_err(error)?;
        let mut take = |name: &str| outputs.remove(name).ok_or_else(|| missing(name));
        let shape = [rows, header.heads, length + 1, HEAD];
        let mut past = Vec::with_capacity(window.past.len());
        for name in self.names.iter().flat_map(|names| &names.present) {
            past.push(tensor::given(take(name)?, name, self.kinds.past, &shape)?);
        }
        window.past = past;
        let logits = logits_of(take(LOGITS)?, &self.kinds, [rows, 1, header.vocab])?;
        let attention = self.attention_of(&mut take, [rows, 1], 0)?;
        Ok(self.step_of(logits, attention))
    }

    /// How the heads that follow the sound looked at it, for the tokens from `from` on: `[heads, tokens of all rows, 1500]`.
    fn attention_of(
        &self,
        take: &mut dyn FnMut(&str) -> Result<DynValue, EngineError>,
        [rows, tokens]: [usize; 2],
        from: usize,
    ) -> Result<Vec<f32>, EngineError> {
        let heads = self.header.heads;
        let shape = [rows, heads, tokens, POSITIONS];
        let followers = &self.header.alignment_heads;
        let mut layers = HashMap::new();
        for [layer, _] in followers {
            if !layers.contains_key(layer) {
                let name = &self.names[*layer].attention;
                let given = tensor::given(take(name)?, name, self.kinds.attention, &shape)?;
                layers.insert(*layer, given);
            }
        }
        let mut out = Vec::with_capacity(followers.len() * rows * (tokens - from) * POSITIONS);
        for [layer, head] in followers {
            let values = tensor::floats(&layers[layer])?;
            for row in 0..rows {
                let start = ((row * heads + head) * tokens + from) * POSITIONS;
                let end = start + (tokens - from) * POSITIONS;
                out.extend_from_slice(&values[start..end]);
            }
        }
        Ok(out)
    }

    fn step_of(&self, logits: Vec<f32>, attention: Vec<f32>) -> Step {
        Step {
            logits: Floats::Own(logits),
            attention: Some(Floats::Own(attention))
                .filter(|_| !self.header.alignment_heads.is_empty()),
            vocab: self.header.vocab,
        }
    }

    /// Room for the sound of so many rows.
    fn make_room(&mut self) -> Result<(), EngineError> {
        let rows = |tensor: &DynTensor| tensor::lengths(tensor)[0];
        if self.sound.first().map(rows) == Some(self.rows) {
            return Ok(());
        }
        self.sound.clear();
        let shape = [self.rows, self.header.heads, POSITIONS, HEAD];
        for _ in 0..2 * self.header.layers {
            self.sound.push(tensor::zeros(self.kinds.past, &shape)?);
        }
        Ok(())
    }

    /// All rows have a past of their own, which is the first one's.
    fn spread_past(&mut self) -> Result<(), EngineError> {
        let rows = self.rows;
        let Some(window) = &mut self.window else {
            return Ok(());
        };
        if window.rows() == rows {
            return Ok(());
        }
        for past in &mut window.past {
            let mut shape = tensor::lengths(past);
            shape[0] = rows;
            let mut all = tensor::zeros(self.kinds.past, &shape)?;
            repeat(past, &mut all);
            *past = all;
        }
        Ok(())
    }
}

impl Runner for ExportRunner {
    fn begin(&mut self, rows: usize) -> usize {
        self.rows = rows.clamp(1, self.rows_most);
        self.rows
    }

    fn has_room(&self, _most: usize) -> bool {
        self.window.is_none()
    }

    fn enter(&mut self, samples: &[f32], _most: usize) -> Result<(), EngineError> {
        self.make_room()?;
        let states = self.encode(samples)?;
        self.window = Some(Heard {
            states,
            known: false,
            texts: vec![Vec::with_capacity(TEXT); self.rows],
            past: Vec::new(),
        });
        Ok(())
    }

    fn remove(&mut self, _window: usize) {
        self.window = None;
    }

    fn clear(&mut self) {
        self.window = None;
    }

    fn length(&self, _window: usize) -> usize {
        self.window.as_ref().map_or(0, Heard::length)
    }

    fn shorten(&mut self, _window: usize, length: usize) {
        let Some(window) = &mut self.window else {
            return;
        };
        window
            .texts
            .iter_mut()
            .for_each(|text| text.truncate(length));
        let kept: Result<Vec<DynTensor>, EngineError> = match length {
            0 => Ok(Vec::new()),
            _ => window.past.iter().map(|past| cut(past, length)).collect(),
        };
        // Without room for the rest it is read anew.
        window.past = kept.unwrap_or_default();
    }

    fn read(&mut self, _window: usize, tokens: &[i64]) -> Result<Step, EngineError> {
        let Some(window) = &mut self.window else {
            return Err(nothing());
        };
        let from = window.length();
        // Until the rows go on from it, they are what the first is.
        window.texts[0].extend_from_slice(tokens);
        let text = window.texts[0].clone();
        window.texts.fill(text.clone());
        self.read_all(&text, from)
    }

    /// Done when the rows go on: they may not.
    fn spread(&mut self, _window: usize) {}

    fn copy(&mut self, _window: usize, from: usize, to: usize) {
        let Some(window) = &mut self.window else {
            return;
        };
        window.texts[to] = window.texts[from].clone();
        let rows = window.rows();
        if rows <= from.max(to) {
            return;
        }
        for past in &mut window.past {
            let bytes = tensor::bytes_mut(past);
            let own = bytes.len() / rows;
            bytes.copy_within(from * own..(from + 1) * own, to * own);
        }
    }

    fn advance(&mut self, tokens: &[i64]) -> Result<Step, EngineError> {
        let Some(window) = &mut self.window else {
            return Err(nothing());
        };
        let length = window.length();
        if length > 0 && window.past.is_empty() {
            // What a text has in common with the others, for want of room.
            let text = window.texts[0].clone();
            self.read_all(&text, 0)?;
        }
        let step = if length == 0 {
            // All rows begin alike.
            let mut step = self.read_all(&tokens[..1], 0)?;
            for values in [Some(&mut step.logits), step.attention.as_mut()] {
                if let Some(Floats::Own(values)) = values {
                    *values = alike(values, self.rows, &self.header);
                }
            }
            step
        } else {
            self.spread_past()?;
            self.add(tokens)?
        };
        if let Some(window) = &mut self.window {
            let texts = window.texts.iter_mut().zip(tokens);
            texts.for_each(|(text, token)| text.push(*token));
        }
        Ok(step)
    }
}

/// What all rows have alike: logits one behind the other, or attention of each head to the sound.
fn alike(values: &[f32], rows: usize, header: &Header) -> Vec<f32> {
    let size = match values.len() == header.vocab {
        true => header.vocab,
        false => POSITIONS,
    };
    let own = values.chunks_exact(size);
    own.flat_map(|own| std::iter::repeat_n(own, rows))
        .flatten()
        .copied()
        .collect()
}

type Inputs<'a> = Vec<(Cow<'a, str>, SessionInputValue<'a>)>;

/// What every run takes, as far as the graph wants it.
fn inputs_of<'a>(
    decoder: &Decoder,
    states: &'a DynTensor,
    (rows, tokens): (usize, &'a [i64]),
    places: &'a [i64],
    branch: &'a [bool],
) -> Result<Inputs<'a>, ort::Error> {
    let steps = tokens.len() / rows;
    let tokens = TensorRef::from_array_view(([rows, steps], tokens))?;
    let mut inputs: Inputs = vec![(TOKENS.into(), tokens.into())];
    if decoder.takes_sound {
        inputs.push((SOUND.into(), states.into()));
    }
    if decoder.takes_branch {
        let branch = TensorRef::from_array_view(([1], branch))?;
        inputs.push((BRANCH.into(), branch.into()));
    }
    if decoder.takes_places {
        let places = TensorRef::from_array_view(([places.len()], places))?;
        inputs.push((PLACES.into(), places.into()));
    }
    Ok(inputs)
}

fn run<'s>(
    decoder: &'s mut Decoder,
    inputs: Inputs<'_>,
    outputs: &'s RunOptions<HasSelectedOutputs>,
    meter: &Meter,
    tokens: usize,
) -> Result<SessionOutputs<'s>, ort::Error> {
    let session: &mut Session = &mut decoder.session;
    let outputs = meter.time(Part::Decoder, || session.run_with_options(inputs, outputs))?;
    meter.step(1, tokens);
    Ok(outputs)
}

/// A run that makes these outputs alone.
fn wanted<'a>(
    names: impl Iterator<Item = &'a str>,
) -> Result<RunOptions<HasSelectedOutputs>, EngineError> {
    let selector = names.fold(OutputSelector::no_default(), OutputSelector::with);
    let options = RunOptions::new().map_err(|e| checked::error(TASK, &e))?;
    Ok(options.with_outputs(selector))
}

/// What a decoder is to give; of the sound as well, or not.
fn given_of<'a>(
    names: &'a [Names],
    header: &'a Header,
    sound: bool,
) -> impl Iterator<Item = &'a str> {
    let of_layer = move |(layer, names): (usize, &'a Names)| {
        let follows = header.alignment_heads.iter().any(|[l, _]| *l == layer);
        let sound = names.present_sound.iter().filter(move |_| sound);
        let attention = Some(&names.attention).filter(|_| follows);
        names.present.iter().chain(sound).chain(attention)
    };
    let of_layers = names
        .iter()
        .enumerate()
        .flat_map(of_layer)
        .map(String::as_str);
    std::iter::once(LOGITS).chain(of_layers)
}

/// What follows the last token of each row.
fn logits_of(
    value: DynValue,
    kinds: &Kinds,
    [rows, tokens, vocab]: [usize; 3],
) -> Result<Vec<f32>, EngineError> {
    let given = tensor::given(value, LOGITS, kinds.logits, &[rows, tokens, vocab])?;
    let values = tensor::floats(&given)?;
    let last = values.chunks_exact(vocab).skip(tokens - 1).step_by(tokens);
    Ok(last.flatten().copied().collect())
}

/// Writes the first row of a tensor into each of another's.
fn repeat(one: &DynTensor, all: &mut DynTensor) {
    let own = tensor::bytes(one);
    for row in tensor::bytes_mut(all).chunks_exact_mut(own.len().max(1)) {
        row.copy_from_slice(own);
    }
}

/// Keys or values `[rows, heads, tokens, 64]` of the first `length` tokens.
fn cut(past: &DynTensor, length: usize) -> Result<DynTensor, EngineError> {
    let mut shape = tensor::lengths(past);
    let before = std::mem::replace(&mut shape[2], length);
    let mut kept = tensor::zeros(*past.data_type(), &shape)?;
    if length > before {
        return Err(failed(format!("{before} tokens are less than {length}")));
    }
    let from = tensor::bytes(past);
    let own = from.len() / (shape[0] * shape[1] * before);
    let pieces = from.chunks_exact(own * before);
    let places = tensor::bytes_mut(&mut kept).chunks_exact_mut(own * length);
    for (place, piece) in places.zip(pieces) {
        place.copy_from_slice(&piece[..own * length]);
    }
    Ok(kept)
}

fn lock(graphs: &Mutex<Graphs>) -> std::sync::MutexGuard<'_, Graphs> {
    graphs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(name: &str) -> EngineError {
    failed(format!("no output named {name}"))
}

fn nothing() -> EngineError {
    failed("no window is in it".into())
}
