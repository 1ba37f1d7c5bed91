// SPDX-License-Identifier: MPL-2.0
//! A lane: takes windows while there is room, encodes each alone, and decodes all of them together, a token a step. Each
//! leaves when its text is complete.

use std::sync::Arc;

use super::Shared;
use super::alignment::Attention;
use super::beams::Beams;
use super::decode::{self, Chance, Choice};
use super::header::MARKS;
use super::runner::{Runner, Step, failed};
use crate::inference::times::Part;
use crate::inference::whisper::{
    MAX_PROMPT_TOKENS, MAX_TOKENS, gaps, language_code, language_id, prompt_text, unknown_language,
};
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, MAX_WINDOW_SAMPLES, ResultSink,
    SpeechToText, Token, Window, WindowId, WindowSource, pages,
};
use crate::transcript::Task;

/// Most samples drawn of a window's text.
const SAMPLES_MAX: u32 = 8;

/// See the module.
pub(super) struct Lane {
    shared: Arc<Shared>,
    runner: Box<dyn Runner>,
    entries: Vec<Entry>,
    /// Of windows that nobody is in.
    spare: Vec<Attention>,
    /// Taken from the source, and too long to fit beside the others.
    waiting: Option<Window>,
}

/// A window on its way to a text.
struct Entry {
    id: WindowId,
    cancel: CancelToken,
    samples: usize,
    language: Language,
    task: Task,
    prompt: Vec<u32>,
    /// What its text begins with.
    prefix: Vec<u32>,
    /// Most tokens behind it.
    most: usize,
    attention: Attention,
    no_speech: f32,
    stage: Stage,
    /// Language, task, and that no times are wanted.
    marks: Vec<u32>,
    /// Tokens before the text.
    text_at: usize,
    search: Search,
}

/// What the model is told or asked next.
enum Stage {
    /// The start, where it says whether anybody speaks and in which language.
    Start,
    /// The mark of that number.
    Marks(usize),
    /// What follows.
    Text,
}

/// How its text is looked for.
enum Search {
    /// One text after the other, the most likely or drawn by chance.
    One(Samples),
    /// Several at once.
    Beams(Beams),
}

/// One text, or several of which the best is kept.
struct Samples {
    /// What follows the marks, less what may not: kept where several are drawn.
    first: Vec<f32>,
    chance: Chance,
    text: Vec<Choice>,
    left: u32,
    best: Option<Decoded>,
}

impl Lane {
    /// Of a runner that has been as large as it will be; `windows` are decoded side by side at most.
    pub fn new(shared: Arc<Shared>, runner: Box<dyn Runner>, windows: usize) -> Self {
        let attention = || {
            let attention = Attention::new(shared.followers);
            let (address, bytes) = attention.room();
            pages::take(address, bytes);
            attention
        };
        Self {
            entries: Vec::with_capacity(windows),
            spare: std::iter::repeat_with(attention).take(windows).collect(),
            waiting: None,
            runner,
            shared,
        }
    }

    /// Takes a window, if there is one and room for it. One at a time: what is in work goes on meanwhile.
    fn admit(
        &mut self,
        rows: usize,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        while self.runner.has_room(MARKS + MAX_TOKENS) {
            let Some(window) = self.waiting.take().or_else(|| source.next()) else {
                break;
            };
            match self.enter(&window, rows, params) {
                Ok(true) => break,
                Ok(false) => {
                    self.waiting = Some(window);
                    break;
                }
                Err(error @ EngineError::OutOfMemory { .. }) => return Err(error),
                Err(error) => sink.push(window.id, Err(error)),
            }
        }
        Ok(())
    }

    /// Encodes a window into a place of its own, if it fits with its prompt.
    fn enter(
        &mut self,
        window: &Window,
        rows: usize,
        params: &BatchParams,
    ) -> Result<bool, EngineError> {
        if window.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        if params.timestamps {
            return Err(EngineError::Unsupported(format!(
                "{} on ONNX Runtime writes no timestamps: use engine=whisper-cpp with a ggml file",
                self.shared.name
            )));
        }
        let language = self.language(window)?;
        let prompt = self.prompt(window);
        let room = MAX_TOKENS.saturating_sub(window.prefix.len());
        let vocabulary = &self.shared.vocabulary;
        if room == 0 || window.prefix.iter().any(|t| !vocabulary.is_text(*t)) {
            return Err(EngineError::Unsupported(format!(
                "a prefix of {} tokens is too long, or holds what is no text: it has fewer than {MAX_TOKENS}",
                window.prefix.len()
            )));
        }
        let bound = match window.most_tokens as usize {
            0 => room,
            bound => bound.min(room),
        };
        let most = prompt.len() + MARKS + MAX_TOKENS;
        if !self.runner.has_room(most) {
            return Ok(false);
        }
        let samples = prepare(&window.samples);
        self.runner.enter(&samples, most)?;
        let mut attention = self.spare.pop().unwrap_or_else(|| {
            // There are as many as places: a window that has left has given its own back.
            Attention::new(self.shared.followers)
        });
        attention.begin(samples.len());
        let search = if rows > 1 {
            Search::Beams(Beams::new(rows, bound))
        } else {
            Search::One(Samples {
                first: Vec::new(),
                chance: Chance::new(0),
                text: Vec::new(),
                left: if params.temperature > 0.0 {
                    params.best_of.clamp(1, SAMPLES_MAX)
                } else {
                    1
                },
                best: None,
            })
        };
        self.entries.push(Entry {
            id: window.id,
            cancel: window.cancel.clone(),
            samples: samples.len(),
            language,
            task: window.task,
            prompt,
            prefix: window.prefix.clone(),
            most: bound,
            attention,
            no_speech: 0.0,
            stage: Stage::Start,
            marks: Vec::new(),
            text_at: 0,
            search,
        });
        Ok(true)
    }

    /// The language to decode in; `Auto` where the model is to decide.
    fn language(&self, window: &Window) -> Result<Language, EngineError> {
        match &window.language {
            Language::Fixed(code) if !self.shared.knows_language(code) => {
                Err(unknown_language(code, &self.shared.name))
            }
            Language::Auto if !self.shared.multilingual => Ok(Language::Fixed("en".into())),
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

    /// The next token of each row, whether it is told to the model or chosen by it.
    fn advance(&mut self, rows: usize, params: &BatchParams) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let len = shared.vocabulary.len();
        let tokens: Vec<i64> = self
            .entries
            .iter()
            .flat_map(|entry| entry.next(rows, &shared))
            .collect();
        let mut step = self.runner.advance(&tokens)?;
        if params.word_times {
            self.look(rows, &step)?;
        }
        let found = step.logits()?.chunks_exact_mut(rows * len);
        let (mut prompts, mut prefixes) = (Vec::new(), Vec::new());
        for (at, logits) in found.enumerate() {
            let entry = &mut self.entries[at];
            match entry.stage {
                Stage::Start => {
                    entry.hear(&logits[..len], &shared)?;
                    if !entry.prompt.is_empty() {
                        prompts.push(at);
                    }
                    entry.stage = Stage::Marks(0);
                }
                Stage::Marks(n) if n + 1 < entry.marks.len() => entry.stage = Stage::Marks(n + 1),
                Stage::Marks(_) if !entry.prefix.is_empty() => {
                    entry.stage = Stage::Text;
                    prefixes.push(at);
                }
                Stage::Marks(_) => {
                    entry.text_at = self.runner.length(at);
                    entry.stage = Stage::Text;
                    self.choose(at, logits, params)?;
                }
                Stage::Text => self.choose(at, logits, params)?,
            }
        }
        drop(step);
        prompts
            .into_iter()
            .try_for_each(|at| self.read_prompt(at))?;
        let mut prefixes = prefixes.into_iter();
        prefixes.try_for_each(|at| self.read_prefix(at, params))
    }

    /// What the text begins with, in one step, and what follows it.
    fn read_prefix(&mut self, at: usize, params: &BatchParams) -> Result<(), EngineError> {
        let entry = &mut self.entries[at];
        let tokens: Vec<i64> = entry.prefix.iter().map(|t| i64::from(*t)).collect();
        let mut step = self.runner.read(at, &tokens)?;
        if params.word_times
            && let Some(found) = step.attention()?
        {
            for row in 0..tokens.len() {
                entry.attention.push(found, tokens.len(), row);
            }
        }
        entry.text_at = self.runner.length(at);
        self.runner.spread(at);
        // Of several rows the first alone has a text yet.
        self.choose(at, step.logits()?, params)
    }

    /// What might have come before. It is told after the start was heard: it would have a say in whether anybody speaks,
    /// and in which language.
    fn read_prompt(&mut self, at: usize) -> Result<(), EngineError> {
        let vocabulary = &self.shared.vocabulary;
        let mut tokens = vec![i64::from(vocabulary.previous())];
        tokens.extend(self.entries[at].prompt.iter().map(|t| i64::from(*t)));
        tokens.push(i64::from(vocabulary.start()));
        self.runner.shorten(at, 0);
        self.runner.read(at, &tokens)?;
        self.runner.spread(at);
        Ok(())
    }

    /// Has each window that writes its text keep what its heads look at.
    fn look(&mut self, rows: usize, step: &Step) -> Result<(), EngineError> {
        let Some(found) = step.attention()? else {
            return Ok(());
        };
        let size = found.len() / self.entries.len();
        let entries = self.entries.iter_mut().zip(found.chunks_exact(size.max(1)));
        self.shared.meter.time(Part::Alignment, || {
            for (entry, found) in entries {
                let last_mark = match entry.stage {
                    Stage::Marks(n) => n + 1 == entry.marks.len(),
                    _ => false,
                };
                // Of several texts one is left in the end, and read once more.
                let one = matches!((&entry.stage, &entry.search), (Stage::Text, Search::One(_)));
                if last_mark || one {
                    entry.attention.push(found, rows, 0);
                }
            }
        });
        Ok(())
    }

    /// Chooses what a window goes on with.
    fn choose(
        &mut self,
        at: usize,
        logits: &mut [f32],
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let vocabulary = &self.shared.vocabulary;
        let entry = &mut self.entries[at];
        let begins = entry.prefix.is_empty();
        match &mut entry.search {
            Search::One(samples) => {
                decode::forbid(logits, vocabulary, begins && samples.text.is_empty());
                if samples.text.is_empty() && samples.left > 1 {
                    samples.first = logits.to_vec();
                }
                let choice = decode::choose(logits, params.temperature, &mut samples.chance)
                    .ok_or_else(no_numbers)?;
                samples.text.push(choice);
            }
            Search::Beams(beams) => {
                let first = begins && beams.are_new();
                for logits in logits.chunks_exact_mut(vocabulary.len()) {
                    decode::forbid(logits, vocabulary, first);
                }
                let copies = beams
                    .advance(logits.chunks_exact(vocabulary.len()), vocabulary)
                    .ok_or_else(no_numbers)?;
                for (from, to) in copies {
                    self.runner.copy(at, from, to);
                }
            }
        }
        Ok(())
    }

    /// Windows whose text is complete, and those that nobody wants any more, leave.
    fn leave(
        &mut self,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let mut at = 0;
        while at < self.entries.len() {
            let answer = if self.entries[at].cancel.is_cancelled() {
                Some(Err(EngineError::Cancelled))
            } else {
                self.complete(at, params)?.map(Ok)
            };
            match answer {
                Some(answer) => {
                    let entry = self.entries.swap_remove(at);
                    self.runner.remove(at);
                    self.spare.push(entry.attention);
                    sink.push(entry.id, answer);
                }
                None => at += 1,
            }
        }
        Ok(())
    }

    /// The window's text, if it is complete.
    fn complete(
        &mut self,
        at: usize,
        params: &BatchParams,
    ) -> Result<Option<Decoded>, EngineError> {
        let shared = Arc::clone(&self.shared);
        if !matches!(self.entries[at].stage, Stage::Text) {
            return Ok(None);
        }
        loop {
            let entry = &mut self.entries[at];
            match &mut entry.search {
                Search::One(samples) => {
                    if !decode::is_over(&samples.text, &shared.vocabulary, entry.most) {
                        return Ok(None);
                    }
                    samples.left -= 1;
                    let text = std::mem::take(&mut samples.text);
                    let best = samples.best.take();
                    let better = |best: &Decoded| best.avg_logprob >= decode::mean_logprob(&text);
                    let best = match best {
                        Some(best) if better(&best) => best,
                        _ => entry.answer(&shared, &text, params),
                    };
                    let Search::One(samples) = &mut entry.search else {
                        return Ok(Some(best));
                    };
                    if samples.left == 0 {
                        return Ok(Some(best));
                    }
                    samples.best = Some(best);
                    // Another sample. What is drawn may be all there is of it.
                    let choice =
                        decode::choose(&samples.first, params.temperature, &mut samples.chance)
                            .ok_or_else(no_numbers)?;
                    samples.text.push(choice);
                    entry.attention.keep(1 + entry.prefix.len());
                    self.runner.shorten(at, entry.text_at);
                }
                Search::Beams(beams) => {
                    if !beams.is_over() {
                        return Ok(None);
                    }
                    let text = beams.best().to_vec();
                    if params.word_times {
                        self.read_again(at, &text)?;
                    }
                    return Ok(Some(self.entries[at].answer(&shared, &text, params)));
                }
            }
        }
    }

    /// Reads a text once more, for how its tokens look at the sound.
    fn read_again(&mut self, at: usize, text: &[Choice]) -> Result<(), EngineError> {
        let tokens: Vec<i64> = text.iter().map(|c| i64::from(c.token)).collect();
        if tokens.is_empty() {
            return Ok(());
        }
        self.runner.shorten(at, self.entries[at].text_at);
        let step = self.runner.read(at, &tokens)?;
        if let Some(found) = step.attention()? {
            for row in 0..tokens.len() {
                self.entries[at].attention.push(found, tokens.len(), row);
            }
        }
        Ok(())
    }

    fn decode(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        let rows = self.runner.begin(if params.temperature > 0.0 {
            1
        } else {
            params.beam as usize
        });
        loop {
            self.admit(rows, source, sink, params)?;
            if self.entries.is_empty() {
                return Ok(());
            }
            self.advance(rows, params)?;
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
            self.runner.clear();
            for entry in self.entries.drain(..) {
                self.spare.push(entry.attention);
                if !matches!(error, EngineError::OutOfMemory { .. }) {
                    sink.push(entry.id, Err(error.clone()));
                }
            }
            if let EngineError::OutOfMemory { .. } = error {
                self.waiting = None;
                // They have no answer: whoever runs the lane may make room and do it again.
                return Err(error);
            }
        }
        // Passing copies of the sound, and what word times were found with: the C library keeps them for later otherwise.
        pages::trim();
        Ok(())
    }
}

impl Entry {
    /// The next token of each of its rows.
    fn next(&self, rows: usize, shared: &Shared) -> Vec<i64> {
        let end = shared.vocabulary.end();
        let told = match (&self.stage, &self.search) {
            (Stage::Start, _) => shared.vocabulary.start(),
            (Stage::Marks(n), _) => self.marks[*n],
            (Stage::Text, Search::One(samples)) => samples.text.last().map_or(end, |c| c.token),
            (Stage::Text, Search::Beams(beams)) => return beams.last(end).map(i64::from).collect(),
        };
        vec![i64::from(told); rows]
    }

    /// Takes in what the model says of the sound before it is told anything.
    fn hear(&mut self, logits: &[f32], shared: &Shared) -> Result<(), EngineError> {
        let vocabulary = &shared.vocabulary;
        self.no_speech =
            decode::probability(logits, vocabulary.no_speech()).ok_or_else(no_numbers)?;
        let languages = vocabulary.languages();
        if self.language == Language::Auto {
            let heard = decode::most_likely(logits, languages.clone());
            let number = heard.map_or(0, |mark| mark as usize - languages.start);
            self.language = Language::Fixed(language_code(number).to_owned());
        }
        if shared.multilingual {
            let number = match &self.language {
                Language::Fixed(code) => language_id(code).unwrap_or(0).unsigned_abs(),
                Language::Auto => 0,
            };
            self.marks.push(languages.start as u32 + number);
            self.marks.push(match self.task {
                Task::Transcribe => vocabulary.transcribe(),
                Task::Translate => vocabulary.translate(),
            });
        }
        self.marks.push(vocabulary.no_timestamps());
        Ok(())
    }

    /// What is told of a text that is over.
    fn answer(&self, shared: &Shared, text: &[Choice], params: &BatchParams) -> Decoded {
        let end = shared.vocabulary.end();
        let avg_logprob = decode::mean_logprob(text);
        let told = self.prefix.iter().map(|token| Choice {
            token: *token,
            logprob: 0.0,
        });
        let chosen = text.iter().copied().filter(|c| c.token != end);
        let text: Vec<Choice> = told.chain(chosen).collect();
        let ends = if params.word_times {
            let meter = &shared.meter;
            meter.time(Part::Alignment, || self.attention.ends(text.len()))
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
        Decoded {
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
        }
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

fn no_numbers() -> EngineError {
    failed("the output logits holds what is no number".into())
}
