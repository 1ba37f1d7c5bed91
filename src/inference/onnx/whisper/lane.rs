// SPDX-License-Identifier: MPL-2.0
//! A lane: takes windows while rows are free, encodes each alone, and decodes all of them together, a token a step. Each
//! leaves when its text is complete.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorRef};

use super::alignment::Attention;
use super::cache::Cache;
use super::decode::{self, Chance, Choice};
use super::header::{HEAD, MARKS, POSITIONS, TEXT};
use super::{Graph, Shared, TASK};
use crate::dsp::mel::{LogMel, WINDOW_FRAMES};
use crate::inference::onnx::checked;
use crate::inference::whisper::{
    MAX_PROMPT_TOKENS, gaps, language_code, language_id, prompt_text, unknown_language,
};
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, MAX_WINDOW_SAMPLES, ResultSink,
    SpeechToText, Token, Window, WindowId, WindowSource, pages,
};
use crate::transcript::Task;

/// Most samples drawn of a window's text.
const SAMPLES_MAX: u32 = 8;
/// Any word.
const WARM_TOKEN: i64 = 1000;

/// See the module.
pub(super) struct Lane {
    shared: Arc<Shared>,
    encoder: Graph,
    decoder: Graph,
    names: Vec<LayerNames>,
    mel: LogMel,
    /// A window's spectrogram, `[3000, mels]`.
    frames: Vec<f32>,
    cache: Cache,
    rows: Vec<Row>,
    /// Of rows that nobody is in.
    spare: Vec<Attention>,
    mask: Vec<f32>,
}

/// Names of a layer's tensors.
struct LayerNames {
    cross_keys: String,
    cross_values: String,
    keys: String,
    values: String,
    new_keys: String,
    new_values: String,
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
        }
    }
}

/// A window on its way to a text.
struct Row {
    id: WindowId,
    cancel: CancelToken,
    samples: usize,
    language: Language,
    task: Task,
    prompt: Vec<u32>,
    attention: Attention,
    no_speech: f32,
    /// Tokens before the text.
    marks: usize,
    /// What follows the marks, less what may not: kept where several samples are drawn.
    first: Vec<f32>,
    chance: Chance,
    text: Vec<Choice>,
    samples_left: u32,
    best: Option<Decoded>,
}

/// What a step of the decoder gave.
struct Step {
    /// `[rows, vocabulary]`
    logits: DynValue,
    /// `[rows, heads, steps, 1500]`
    attention: Option<DynValue>,
}

/// Runs both graphs on a tone, as a check of what they give.
pub(super) fn try_once(
    shared: &Arc<Shared>,
    encoder: &Graph,
    decoder: &Graph,
) -> Result<(), EngineError> {
    let mut lane = Lane::cold(Arc::clone(shared), Arc::clone(encoder), Arc::clone(decoder));
    let spec = &shared.spec;
    lane.encode(&checked::probe(16_000))
        .map_err(|e| checked::refused(e, &spec.encoder))?;
    let start = i64::from(shared.vocabulary.start());
    let checked = lane.step(0..1, &[start], 1).and_then(|mut step| {
        let logits = step.logits(shared.header.vocab)?;
        match logits.iter().find(|v| !v.is_finite()) {
            Some(odd) => Err(failed(format!("the output logits holds {odd}"))),
            None => Ok(()),
        }
    });
    checked.map_err(|e| checked::refused(e, &spec.decoder))
}

impl Lane {
    /// Makes one with all the room that it will ever take.
    pub fn new(
        shared: Arc<Shared>,
        encoder: Graph,
        decoder: Graph,
        tried: bool,
    ) -> Result<Self, EngineError> {
        let mut lane = Self::cold(shared, encoder, decoder);
        lane.warm_up(tried)?;
        Ok(lane)
    }

    fn cold(shared: Arc<Shared>, encoder: Graph, decoder: Graph) -> Self {
        let header = &shared.header;
        let mel = LogMel::new(header.mels);
        let attention = || Attention::new(header.alignment_heads.len());
        Self {
            frames: vec![0.0; mel.len()],
            mel,
            cache: Cache::new(header),
            rows: Vec::with_capacity(header.rows()),
            spare: std::iter::repeat_with(attention)
                .take(header.rows())
                .collect(),
            mask: Vec::new(),
            names: (0..header.layers).map(LayerNames::of).collect(),
            encoder,
            decoder,
            shared,
        }
    }

    /// Has everything as large as it will ever be: a process that fitted does no more when it grows hours later
    /// (docs/adr/0007-lanes-at-their-largest.md).
    fn warm_up(&mut self, tried: bool) -> Result<(), EngineError> {
        let attention = self.spare.iter().map(Attention::room);
        for (address, bytes) in self.cache.rooms().chain(attention) {
            pages::take(address, bytes);
        }
        if !tried {
            self.encode(&[0.0])?;
            self.cache.clear();
        }
        let rows = self.shared.header.rows();
        (0..rows).for_each(|_| self.cache.add());
        let prompt = MAX_PROMPT_TOKENS + 2;
        self.step(0..1, &vec![WARM_TOKEN; prompt], prompt)?;
        self.cache.clear();
        (0..rows).for_each(|_| self.cache.add());
        self.cache.grow(&(0..rows), TEXT - MARKS);
        self.step(0..rows, &vec![WARM_TOKEN; rows], 1)?;
        self.cache.clear();
        Ok(())
    }

    /// Takes windows while there are rows for them, and reads their prompts.
    fn admit(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let before = self.rows.len();
        while self.rows.len() < self.shared.header.rows() {
            let Some(window) = source.next() else { break };
            match self.enter(&window, params) {
                Ok(()) => {}
                Err(error @ EngineError::OutOfMemory { .. }) => return Err(error),
                Err(error) => sink.push(window.id, Err(error)),
            }
        }
        let new = before..self.rows.len();
        if new.is_empty() {
            return Ok(());
        }
        self.read_prompts(new.clone())?;
        self.read_marks(new, params)
    }

    /// Encodes a window into a row of its own.
    fn enter(&mut self, window: &Window, params: &BatchParams) -> Result<(), EngineError> {
        if window.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        if params.timestamps {
            return Err(EngineError::Unsupported(format!(
                "{} on ONNX Runtime writes no timestamps: use engine=whisper-cpp with a ggml file",
                self.shared.spec.name
            )));
        }
        let language = self.language(window)?;
        let samples = prepare(&window.samples);
        self.encode(&samples)?;
        let mut attention = self.spare.pop().unwrap_or_else(|| {
            // There are as many as rows: a row that has left has given its own back.
            Attention::new(self.shared.header.alignment_heads.len())
        });
        attention.begin(samples.len());
        self.rows.push(Row {
            id: window.id,
            cancel: window.cancel.clone(),
            samples: samples.len(),
            language,
            task: window.task,
            prompt: self.prompt(window),
            attention,
            no_speech: 0.0,
            marks: 0,
            first: Vec::new(),
            chance: Chance::new(0),
            text: Vec::new(),
            samples_left: if params.temperature > 0.0 {
                params.best_of.clamp(1, SAMPLES_MAX)
            } else {
                1
            },
            best: None,
        });
        Ok(())
    }

    /// The language to decode in; `Auto` where the model is to decide.
    fn language(&self, window: &Window) -> Result<Language, EngineError> {
        match &window.language {
            Language::Fixed(code) if !self.shared.knows_language(code) => {
                Err(unknown_language(code, &self.shared.spec.name))
            }
            Language::Auto if !self.shared.header.multilingual() => {
                Ok(Language::Fixed("en".into()))
            }
            known => Ok(known.clone()),
        }
    }

    /// Tokens of vocabulary and prompt, the last ones that fit.
    fn prompt(&self, window: &Window) -> Vec<u32> {
        let text = prompt_text(&window.prompt, &window.vocabulary);
        let mut tokens = self.shared.vocabulary.encode(&text);
        let cut = tokens.len().saturating_sub(MAX_PROMPT_TOKENS);
        tokens.drain(..cut);
        tokens
    }

    /// Adds a row to the cache, with keys and values of this sound.
    fn encode(&mut self, samples: &[f32]) -> Result<(), EngineError> {
        self.mel.window(samples, &mut self.frames);
        let what = format!("{TASK}: encoding {:.1} s", samples.len() as f32 / 16_000.0);
        let error = |e: ort::Error| checked::error(&what, &e);
        let shape = [1, WINDOW_FRAMES, self.shared.header.mels];
        let mel = TensorRef::from_array_view((shape, &self.frames[..])).map_err(error)?;
        let mut session = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(ort::inputs!["mel" => mel]).map_err(error)?;
        self.cache.add();
        let cache = &mut self.cache;
        let copied = self
            .names
            .iter()
            .enumerate()
            .try_for_each(|(layer, names)| {
                let (keys, values) = cache.sound(layer);
                let both = [(&names.cross_keys, keys), (&names.cross_values, values)];
                both.into_iter().try_for_each(|(name, to)| {
                    let found = outputs
                        .get(name)
                        .ok_or_else(|| failed(format!("no output named {name}")))?;
                    let (_, found) = found.try_extract_tensor::<f32>().map_err(error)?;
                    copy(found, to, name)
                })
            });
        if copied.is_err() {
            self.cache.remove(self.cache.rows() - 1);
        }
        copied
    }

    /// The start, where the model says whether anybody speaks and in which language; and what came before, if anything
    /// did. It is told afterwards: it would have a say in both.
    fn read_prompts(&mut self, new: Range<usize>) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let vocabulary = &shared.vocabulary;
        let start = i64::from(vocabulary.start());
        let mut step = self.step(new.clone(), &vec![start; new.len()], 1)?;
        let logits = step.logits(shared.header.vocab)?;
        let found = logits.chunks_exact(shared.header.vocab);
        for (row, logits) in self.rows[new.clone()].iter_mut().zip(found) {
            row.no_speech =
                decode::probability(logits, vocabulary.no_speech()).ok_or_else(no_numbers)?;
            if row.language == Language::Auto {
                let languages = vocabulary.languages();
                let heard = decode::most_likely(logits, languages.clone());
                let number = heard.map_or(0, |mark| mark as usize - languages.start);
                row.language = Language::Fixed(language_code(number).to_owned());
            }
        }
        drop(step);
        // One by one: a step of all of them would take room that is never needed again.
        for row in new
            .filter(|row| !self.rows[*row].prompt.is_empty())
            .collect::<Vec<_>>()
        {
            let mut tokens = vec![i64::from(vocabulary.previous())];
            tokens.extend(self.rows[row].prompt.iter().map(|t| i64::from(*t)));
            tokens.push(start);
            self.cache.shorten(row, 0);
            self.step(row..row + 1, &tokens, tokens.len())?;
        }
        Ok(())
    }

    /// Language, task, and that no times are wanted. What follows is the text.
    fn read_marks(&mut self, new: Range<usize>, params: &BatchParams) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let vocabulary = &shared.vocabulary;
        let mut tokens = Vec::new();
        for row in &self.rows[new.clone()] {
            if shared.header.multilingual() {
                let language = match &row.language {
                    Language::Fixed(code) => language_id(code).unwrap_or(0),
                    Language::Auto => 0,
                };
                tokens.push(vocabulary.languages().start as i64 + i64::from(language));
                tokens.push(i64::from(match row.task {
                    Task::Transcribe => vocabulary.transcribe(),
                    Task::Translate => vocabulary.translate(),
                }));
            }
            tokens.push(i64::from(vocabulary.no_timestamps()));
        }
        let steps = tokens.len() / new.len();
        let step = self.step(new.clone(), &tokens, steps)?;
        for row in new.clone() {
            self.rows[row].marks = self.cache.length(row);
        }
        self.write(new, step, steps, params)
    }

    /// The next token of each row.
    fn go_on(&mut self, params: &BatchParams) -> Result<(), EngineError> {
        let rows = 0..self.rows.len();
        let last = |row: &Row| row.text.last().map_or(0, |choice| i64::from(choice.token));
        let tokens: Vec<i64> = self.rows.iter().map(last).collect();
        let step = self.step(rows.clone(), &tokens, 1)?;
        self.write(rows, step, 1, params)
    }

    /// Chooses what each of the rows goes on with.
    fn write(
        &mut self,
        rows: Range<usize>,
        mut step: Step,
        steps: usize,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let vocabulary = &self.shared.vocabulary;
        if params.word_times
            && let Some(attention) = &step.attention
        {
            let heads = self.shared.header.alignment_heads.len();
            let (_, found) = attention
                .try_extract_tensor::<f32>()
                .map_err(|e| checked::error(TASK, &e))?;
            let size = heads * steps * POSITIONS;
            if found.len() != size * rows.len() {
                return Err(failed(format!(
                    "the output align has {} values, not {}",
                    found.len(),
                    size * rows.len()
                )));
            }
            for (row, found) in self.rows[rows.clone()]
                .iter_mut()
                .zip(found.chunks_exact(size))
            {
                row.attention.push(found, steps);
            }
        }
        let size = self.shared.header.vocab;
        let logits = step.logits(size)?;
        for (row, logits) in self.rows[rows]
            .iter_mut()
            .zip(logits.chunks_exact_mut(size))
        {
            decode::forbid(logits, vocabulary, row.text.is_empty());
            if row.text.is_empty() && row.samples_left > 1 {
                row.first = logits.to_vec();
            }
            let choice = decode::choose(logits, params.temperature, &mut row.chance)
                .ok_or_else(no_numbers)?;
            row.text.push(choice);
        }
        Ok(())
    }

    /// Rows whose text is complete, and those that nobody wants any more, leave.
    fn leave(
        &mut self,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let mut at = 0;
        while at < self.rows.len() {
            let row = &mut self.rows[at];
            let answer = if row.cancel.is_cancelled() {
                Some(Err(EngineError::Cancelled))
            } else if decode::is_over(&row.text, &shared.vocabulary) {
                row.complete(&shared, params);
                if row.samples_left == 0 {
                    Some(Ok(row.best.take().unwrap_or_default()))
                } else {
                    self.cache.shorten(at, row.marks);
                    row.draw_again(params)?;
                    // What was drawn may be all there is.
                    continue;
                }
            } else {
                None
            };
            match answer {
                Some(answer) => {
                    let row = self.rows.swap_remove(at);
                    self.cache.remove(at);
                    self.spare.push(row.attention);
                    sink.push(row.id, answer);
                }
                None => at += 1,
            }
        }
        Ok(())
    }

    /// Runs the decoder on `steps` tokens for each of `rows`, and takes in their keys and values.
    fn step(
        &mut self,
        rows: Range<usize>,
        tokens: &[i64],
        steps: usize,
    ) -> Result<Step, EngineError> {
        let count = rows.len();
        let what = format!("{TASK}: decoding {count} windows");
        let error = |e: ort::Error| checked::error(&what, &e);
        let heads = self.shared.header.heads;
        self.cache.fit(steps);
        let columns = self.cache.columns();
        let positions: Vec<i64> = rows
            .clone()
            .flat_map(|row| {
                let length = self.cache.length(row);
                (length..length + steps).map(|p| p as i64)
            })
            .collect();
        self.cache.mask(&rows, steps, &mut self.mask);

        let mut inputs: Vec<(Cow<str>, SessionInputValue)> = Vec::new();
        let numbers = [count, steps];
        let tensor = TensorRef::from_array_view((numbers, tokens)).map_err(error)?;
        inputs.push(("tokens".into(), tensor.into()));
        let tensor = TensorRef::from_array_view((numbers, &positions[..])).map_err(error)?;
        inputs.push(("pos".into(), tensor.into()));
        let shape = [count, 1, steps, columns + steps];
        let tensor = TensorRef::from_array_view((shape, &self.mask[..])).map_err(error)?;
        inputs.push(("mask".into(), tensor.into()));
        for (layer, names) in self.names.iter().enumerate() {
            let [cross_keys, cross_values, keys, values] = self.cache.layer(layer, &rows);
            for (name, values, shape) in [
                (
                    &names.cross_keys,
                    cross_keys,
                    [count, heads, HEAD, POSITIONS],
                ),
                (
                    &names.cross_values,
                    cross_values,
                    [count, heads, POSITIONS, HEAD],
                ),
                (&names.keys, keys, [count, heads, HEAD, columns]),
                (&names.values, values, [count, heads, columns, HEAD]),
            ] {
                let tensor = TensorRef::from_array_view((shape, values)).map_err(error)?;
                inputs.push((name.as_str().into(), tensor.into()));
            }
        }

        let mut session = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outputs = session.run(inputs).map_err(error)?;
        let mut take = |name: &str| outputs.remove(name);
        let missing = |name: &str| failed(format!("no output named {name}"));
        let logits = take("logits").ok_or_else(|| missing("logits"))?;
        let attention = take("align");
        let mut new = Vec::new();
        for names in &self.names {
            let keys = take(&names.new_keys).ok_or_else(|| missing(&names.new_keys))?;
            let values = take(&names.new_values).ok_or_else(|| missing(&names.new_values))?;
            new.push((keys, values));
        }
        drop(outputs);
        // The other lane's turn.
        drop(session);
        let size = count * heads * HEAD * steps;
        for (layer, (keys, values)) in new.iter().enumerate() {
            let (_, keys) = keys.try_extract_tensor::<f32>().map_err(error)?;
            let (_, values) = values.try_extract_tensor::<f32>().map_err(error)?;
            if keys.len() != size || values.len() != size {
                return Err(failed(format!(
                    "keys and values of layer {layer} have {} and {} values, not {size}",
                    keys.len(),
                    values.len()
                )));
            }
            self.cache.write(layer, &rows, steps, keys, values);
        }
        self.cache.grow(&rows, steps);
        let mut step = Step { logits, attention };
        let vocab = self.shared.header.vocab;
        let found = step.logits(vocab)?.len();
        if found != count * vocab {
            return Err(failed(format!(
                "the output logits has {found} values, not {}",
                count * vocab
            )));
        }
        Ok(step)
    }

    fn decode(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        loop {
            self.admit(source, sink, params)?;
            self.leave(sink, params)?;
            if self.rows.is_empty() {
                return Ok(());
            }
            self.go_on(params)?;
            self.leave(sink, params)?;
        }
    }
}

impl SpeechToText for Lane {
    fn run(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        // A step that fails is one of all its rows: they have this answer, and others are taken.
        while let Err(error) = self.decode(source, sink, params) {
            self.cache.clear();
            for row in self.rows.drain(..) {
                self.spare.push(row.attention);
                if !matches!(error, EngineError::OutOfMemory { .. }) {
                    sink.push(row.id, Err(error.clone()));
                }
            }
            if let EngineError::OutOfMemory { .. } = error {
                // They have no answer: whoever runs the lane may make room and do it again.
                return Err(error);
            }
        }
        // Passing copies of the sound, and what word times were found with: the C library keeps them for later otherwise.
        pages::trim();
        Ok(())
    }
}

impl Step {
    /// Values for the rows' next tokens.
    fn logits(&mut self, vocab: usize) -> Result<&mut [f32], EngineError> {
        let found = self.logits.try_extract_tensor_mut::<f32>();
        let (_, values) = found.map_err(|e| checked::error(TASK, &e))?;
        debug_assert_eq!(values.len() % vocab, 0);
        Ok(values)
    }
}

impl Row {
    /// Takes a text that is over, if it is the best so far.
    fn complete(&mut self, shared: &Shared, params: &BatchParams) {
        self.samples_left -= 1;
        let avg_logprob = decode::mean_logprob(&self.text);
        if self
            .best
            .as_ref()
            .is_some_and(|b| b.avg_logprob >= avg_logprob)
        {
            return;
        }
        let end = shared.vocabulary.end();
        let text: Vec<&Choice> = self.text.iter().filter(|c| c.token != end).collect();
        let ends = if params.word_times {
            self.attention.ends(text.len())
        } else {
            None
        };
        let mut before = 0;
        let mut tokens = Vec::with_capacity(text.len());
        for (n, choice) in text.iter().enumerate() {
            let end = ends.as_ref().map(|ends| ends[n].min(self.samples as u32));
            tokens.push(Token {
                id: choice.token,
                bytes: shared.vocabulary.token(choice.token).to_vec(),
                probability: choice.logprob.exp().clamp(0.0, 1.0),
                start: end.map(|_| before),
                end,
            });
            before = end.unwrap_or(before);
        }
        self.best = Some(Decoded {
            alignment_end: tokens.last().and_then(|t| t.end),
            gaps: gaps(&tokens),
            tokens,
            language: match &self.language {
                Language::Fixed(code) => code.clone(),
                Language::Auto => String::new(),
            },
            sot_no_speech: self.no_speech,
            avg_logprob,
            temperature: params.temperature,
        });
    }

    /// Begins another sample of the text.
    fn draw_again(&mut self, params: &BatchParams) -> Result<(), EngineError> {
        self.attention.keep_first();
        self.text.clear();
        let choice = decode::choose(&self.first, params.temperature, &mut self.chance)
            .ok_or_else(no_numbers)?;
        self.text.push(choice);
        Ok(())
    }
}

/// Finite samples, no more than a window has, and at least one.
fn prepare(samples: &[f32]) -> Vec<f32> {
    let clean = |s: &f32| {
        if s.is_finite() {
            s.clamp(-1.0, 1.0)
        } else {
            0.0
        }
    };
    let mut out: Vec<f32> = samples.iter().take(MAX_WINDOW_SAMPLES).map(clean).collect();
    if out.is_empty() {
        out.push(0.0);
    }
    out
}

fn copy(from: &[f32], to: &mut [f32], name: &str) -> Result<(), EngineError> {
    if from.len() != to.len() {
        return Err(failed(format!(
            "the output {name} has {} values, not {}",
            from.len(),
            to.len()
        )));
    }
    to.copy_from_slice(from);
    // One that is none makes each sum none.
    if to.iter().sum::<f32>().is_finite() {
        Ok(())
    } else {
        Err(failed(format!("the output {name} holds what is no number")))
    }
}

fn failed(why: String) -> EngineError {
    EngineError::Failed {
        what: TASK.into(),
        why,
    }
}

fn no_numbers() -> EngineError {
    failed("the output logits holds what is no number".into())
}
