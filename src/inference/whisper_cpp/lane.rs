// SPDX-License-Identifier: MPL-2.0
//! One whisper.cpp state, used by one thread at a time.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;

use whisper_rs::{FullParams, SamplingStrategy, WhisperError, WhisperState};

use super::{ContextBox, native_init};
use crate::inference::whisper::{
    MAX_PROMPT_TOKENS, MAX_TOKENS, gaps, language_id, prompt_text, unknown_language,
};
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, MAX_WINDOW_SAMPLES, ResultSink,
    SpeechModelInfo, SpeechToText, Token, Window, WindowSource, pages,
};
use crate::transcript::Task;

/// Encoder positions: 29.44 s. 1500 would take a slower path in ggml's matrix kernels, for 0.56 s that a
/// window never has.
const AUDIO_CTX: i32 = 1472;
/// whisper.cpp reads outside a buffer of under 201 samples and ignores one under 100 ms.
const MIN_SAMPLES: usize = 16_000;
/// Most decoders that whisper.cpp has.
const MAX_DECODERS: u32 = 8;
/// A tenth of a millisecond grid: whisper.cpp counts times in hundredths of a second.
const SAMPLES_PER_CENTISECOND: i64 = 160;
/// Most tokens of one decoder pass: a full prompt, or a full text once more for its word times, with their marks.
pub(super) const WIDEST_PASS: usize = MAX_PROMPT_TOKENS + 5;
/// Decoders that a lane has room for from the start: the default's beams, and the samples of a later pass.
pub(super) const WARM_DECODERS: u32 = 4;
/// Any word.
const WARM_TOKEN: i32 = 1000;
/// Encoder positions of the warm-up on the processor: 1.28 s.
const WARM_AUDIO_CTX: i32 = 64;
/// Sound of ten frames: whisper.cpp takes it, and ends before the encoder because so little is left to do.
const NO_PASS_SAMPLES: usize = 1_700;
#[derive(Clone, PartialEq, Eq, Hash)]
struct ParamKey {
    language: String,
    beam: u32,
    best_of: u32,
}

/// Decoders side by side that whisper.cpp makes room for.
pub(super) fn decoders(batch: &BatchParams) -> u32 {
    batch.beam.clamp(1, MAX_DECODERS).max(samples_drawn(batch))
}

fn samples_drawn(batch: &BatchParams) -> u32 {
    if batch.temperature > 0.0 {
        batch.best_of.clamp(1, MAX_DECODERS)
    } else {
        1
    }
}

/// See the module.
pub(super) struct Lane {
    context: Arc<ContextBox>,
    /// `None` once whisper.cpp has freed it itself after a failed allocation.
    state: Option<ManuallyDrop<WhisperState>>,
    multilingual: bool,
    threads: i32,
    name: String,
    /// `FullParams` never frees the strings it was given: one for each language and strategy is made, then
    /// cloned.
    params: HashMap<ParamKey, FullParams<'static, 'static>>,
    prompts: HashMap<String, Vec<i32>>,
}

impl Lane {
    pub(super) fn new(
        context: Arc<ContextBox>,
        info: &SpeechModelInfo,
        threads: u32,
        path: &Path,
        on_card: bool,
    ) -> Result<Self, EngineError> {
        let guard = native_init();
        let state = context
            .get()?
            .create_state()
            .map_err(|e| EngineError::OutOfMemory {
                what: format!("a decoder state for {} ({e})", path.display()),
            })?;
        drop(guard);
        let mut lane = Self {
            context,
            state: Some(ManuallyDrop::new(state)),
            multilingual: info.multilingual,
            threads: threads as i32,
            name: info.name.clone(),
            params: HashMap::new(),
            prompts: HashMap::new(),
        };
        lane.warm_up(on_card)?;
        Ok(lane)
    }

    /// Has whisper.cpp make its caches as wide and its buffers as full as they will ever be: otherwise they grow
    /// hours later, at the first window with more text than any before, and a process that fitted does no more.
    /// The compute buffers have their pages already (`native/touched.h`); docs/adr/0007-lanes-at-their-largest.md has
    /// what it costs. On a card ggml keeps room for products of matrices that grows in the same way, and takes the whole
    /// process with it where there is none left: there the first pass is as long and as wide as any.
    fn warm_up(&mut self, on_card: bool) -> Result<(), EngineError> {
        let batch = BatchParams {
            beam: WARM_DECODERS,
            ..BatchParams::default()
        };
        let mut params = self.base_params("en", &batch);
        params.set_no_timestamps(true);
        params.set_single_segment(true);
        params.set_max_tokens(1);
        let widest = [WARM_TOKEN; MAX_PROMPT_TOKENS];
        if on_card {
            params.set_tokens(&widest);
        } else {
            params.set_audio_ctx(WARM_AUDIO_CTX);
        }
        // Too short for a pass of the encoder, and it sets the encoder's context back: the language of the next
        // window would be heard from its first 1.28 s.
        let back = self.base_params("en", &BatchParams::default());
        let state = self.state()?;
        let outcome = state
            .full(params, &[0.0; MIN_SAMPLES])
            .and_then(|()| state.full(back, &[0.0; NO_PASS_SAMPLES]));
        if let Err(error) = outcome {
            if let WhisperError::GenericError(-7) = error {
                // As in `failure`: it is freed already.
                self.state = None;
            }
            return Err(EngineError::OutOfMemory {
                what: format!("a first pass of {} ({})", self.name, reason(&error)),
            });
        }
        // whisper.cpp reserves a row of logits for each of 448 tokens, and fills as many as a pass has.
        if let Ok(logits) = state.get_logits() {
            pages::take(logits.as_ptr() as usize, size_of_val(logits) * WIDEST_PASS);
        }
        Ok(())
    }

    fn decode(&mut self, window: &Window, batch: &BatchParams) -> Result<Decoded, EngineError> {
        if !window.prefix.is_empty() {
            return Err(EngineError::Unsupported(format!(
                "{} on whisper.cpp cannot go on behind a given text: use engine=onnx",
                self.name
            )));
        }
        let samples = prepare(&window.samples);
        let language = self.language(window, &samples)?;
        let prompt = self.prompt(window)?;

        let mut params = self.base_params(&language, batch);
        let most = match window.most_tokens {
            0 => MAX_TOKENS as u32,
            most => most.min(MAX_TOKENS as u32),
        };
        params.set_max_tokens(most as i32);
        params.set_translate(window.task == Task::Translate);
        params.set_temperature(batch.temperature);
        params.set_no_timestamps(!batch.timestamps);
        params.set_single_segment(!batch.timestamps);
        if !prompt.is_empty() {
            params.set_tokens(&prompt);
        }
        // SAFETY: `abort` reads a CancelToken through the pointer; `window` outlives `full`.
        unsafe {
            params.set_abort_callback(Some(abort));
            params.set_abort_callback_user_data((&raw const window.cancel) as *mut c_void);
        }

        let outcome = self.state()?.full(params, &samples);
        if let Err(error) = outcome {
            return Err(self.failure(&error, window));
        }
        let no_speech = self.no_speech()?;
        let mut decoded = self.collect(window.samples.len(), language, no_speech)?;
        decoded.temperature = batch.temperature;
        Ok(decoded)
    }

    fn state(&mut self) -> Result<&mut WhisperState, EngineError> {
        match &mut self.state {
            Some(state) => Ok(state),
            None => Err(EngineError::OutOfMemory {
                what: format!("the decoder state of {}", self.name),
            }),
        }
    }

    /// The language to decode in; detects it from this window where it is not given.
    fn language(&mut self, window: &Window, samples: &[f32]) -> Result<String, EngineError> {
        if !self.multilingual {
            return match &window.language {
                Language::Fixed(code) if code != "en" => Err(unknown_language(code, &self.name)),
                _ => Ok("en".into()),
            };
        }
        match &window.language {
            Language::Fixed(code) if language_id(code).is_some() => Ok(code.clone()),
            Language::Fixed(code) => Err(unknown_language(code, &self.name)),
            Language::Auto => {
                let threads = self.threads as usize;
                let state = self.state()?;
                let failed = |e: WhisperError| EngineError::Failed {
                    what: "language detection".into(),
                    why: e.to_string(),
                };
                state.pcm_to_mel(samples, threads).map_err(failed)?;
                let (id, _) = state.lang_detect(0, threads).map_err(failed)?;
                Ok(whisper_rs::get_lang_str(id).unwrap_or("en").to_owned())
            }
        }
    }

    fn base_params(&mut self, language: &str, batch: &BatchParams) -> FullParams<'static, 'static> {
        let key = ParamKey {
            language: language.to_owned(),
            beam: batch.beam.clamp(1, MAX_DECODERS),
            best_of: samples_drawn(batch),
        };
        let threads = self.threads;
        let params = self.params.entry(key.clone()).or_insert_with(|| {
            let mut params = FullParams::new(if key.beam > 1 {
                SamplingStrategy::BeamSearch {
                    beam_size: key.beam as i32,
                    patience: -1.0,
                }
            } else {
                SamplingStrategy::Greedy {
                    best_of: key.best_of as i32,
                }
            });
            let language: &'static str = whisper_rs::get_lang_id(&key.language)
                .and_then(whisper_rs::get_lang_str)
                .unwrap_or("en");
            params.set_language(Some(language));
            params.set_n_threads(threads);
            params.set_audio_ctx(AUDIO_CTX);
            params.set_no_context(true);
            params.set_suppress_blank(true);
            params.set_suppress_nst(true);
            params.set_print_special(false);
            params.set_print_progress(false);
            params.set_print_realtime(false);
            params.set_print_timestamps(false);
            // The guards above judge a text; whisper.cpp's own reads the wrong no-speech probability.
            params.set_temperature_inc(0.0);
            params.set_entropy_thold(-1.0);
            params.set_logprob_thold(f32::NEG_INFINITY);
            params.set_no_speech_thold(2.0);
            params
        });
        params.clone()
    }

    /// Tokens of vocabulary and prompt, the last ones that fit.
    fn prompt(&mut self, window: &Window) -> Result<Vec<i32>, EngineError> {
        let text = prompt_text(&window.prompt, &window.vocabulary);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(tokens) = self.prompts.get(&text) {
            return Ok(tokens.clone());
        }
        // Never more tokens than bytes: with too little room the crate would set a wrong length.
        let room = text.len() + 1;
        let mut tokens =
            self.context
                .get()?
                .tokenize(&text, room)
                .map_err(|e| EngineError::Failed {
                    what: "reading the prompt".into(),
                    why: e.to_string(),
                })?;
        let cut = tokens.len().saturating_sub(MAX_PROMPT_TOKENS);
        tokens.drain(..cut);
        if self.prompts.len() > 64 {
            self.prompts.clear();
        }
        self.prompts.insert(text, tokens.clone());
        Ok(tokens)
    }

    /// Probability of "no speech" after the start token alone. whisper.cpp's own figure is read from a row
    /// that it has not written whenever the prompt has more than one token.
    fn no_speech(&mut self) -> Result<f32, EngineError> {
        let context = Arc::clone(&self.context);
        let context = context.get()?;
        let (sot, nosp) = (context.token_sot(), context.token_nosp());
        let threads = self.threads as usize;
        let state = self.state()?;
        let failed = |e: WhisperError| EngineError::Failed {
            what: "the no-speech probability".into(),
            why: e.to_string(),
        };
        state.decode(&[sot], 0, threads).map_err(failed)?;
        let logits = state.get_logits().map_err(failed)?;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
        let own = usize::try_from(nosp)
            .ok()
            .and_then(|i| logits.get(i))
            .copied();
        Ok(own.map_or(0.0, |l| ((l - max).exp() / sum).clamp(0.0, 1.0)))
    }

    fn collect(
        &mut self,
        window_samples: usize,
        language: String,
        sot_no_speech: f32,
    ) -> Result<Decoded, EngineError> {
        let context = Arc::clone(&self.context);
        let context = context.get()?;
        let end_of_text = context.token_eot();
        let state = self.state()?;
        let mut tokens: Vec<Token> = Vec::new();
        let mut sum_logprob = 0.0f64;
        let mut counted = 0usize;
        let mut last_time: Option<u32> = None;
        for segment in state.as_iter() {
            for i in 0..segment.n_tokens() {
                let Some(token) = segment.get_token(i) else {
                    continue;
                };
                let data = token.token_data();
                if data.plog.is_finite() {
                    sum_logprob += f64::from(data.plog);
                    counted += 1;
                }
                if data.id >= end_of_text {
                    continue;
                }
                let bytes = context
                    .token_to_bytes(data.id)
                    .map(<[u8]>::to_vec)
                    .unwrap_or_default();
                // whisper.cpp notes the jump to the *next* row: a token's end. The start is the end before.
                let end = (data.t_dtw >= 0).then(|| {
                    let samples = data.t_dtw.saturating_mul(SAMPLES_PER_CENTISECOND);
                    u32::try_from(samples)
                        .unwrap_or(u32::MAX)
                        .min(window_samples as u32)
                });
                tokens.push(Token {
                    id: data.id as u32,
                    bytes,
                    probability: data.p.clamp(0.0, 1.0),
                    start: if end.is_some() {
                        Some(last_time.unwrap_or(0))
                    } else {
                        None
                    },
                    end,
                });
                last_time = end.or(last_time);
            }
        }
        // The end token's own probability is not kept by whisper.cpp: it counts as certain.
        let avg_logprob = (sum_logprob / (counted + 1) as f64) as f32;
        Ok(Decoded {
            alignment_end: last_time,
            gaps: gaps(&tokens),
            tokens,
            language,
            sot_no_speech,
            avg_logprob,
            temperature: 0.0,
        })
    }

    fn failure(&mut self, error: &WhisperError, window: &Window) -> EngineError {
        if let WhisperError::GenericError(-7) = error {
            // whisper.cpp has freed the state already: dropping ours would free it twice.
            self.state = None;
            return EngineError::OutOfMemory {
                what: format!("a wider cache for {}", self.name),
            };
        }
        // "Aborted" and "failed" have the same numbers: the flag tells them apart.
        if window.cancel.is_cancelled() {
            return EngineError::Cancelled;
        }
        let what = format!(
            "{:.1} s of sound through {}",
            window.samples.len() as f32 / 16_000.0,
            self.name
        );
        EngineError::Failed {
            what,
            why: reason(error),
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
        // whisper.cpp decodes one window at a time: the rest of a batch is for the other lanes.
        while let Some(window) = source.next() {
            let result = self.decode(&window, params);
            if let Err(error @ EngineError::OutOfMemory { .. }) = result {
                // The window has no answer: whoever runs the lane may make room and do it again.
                return Err(error);
            }
            sink.push(window.id, result);
            // The passing copies of the sound and of the attention: the C library keeps them for later otherwise.
            pages::trim();
            if self.state.is_none() {
                return Err(EngineError::OutOfMemory {
                    what: format!("a lane of {}", self.name),
                });
            }
        }
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let _guard = native_init();
            drop(ManuallyDrop::into_inner(state));
            pages::give_back();
        }
    }
}

unsafe extern "C" fn abort(token: *mut c_void) -> bool {
    // SAFETY: set together with the callback to a token that outlives the call.
    unsafe { &*(token as *const CancelToken) }.is_cancelled()
}

/// Finite samples, long enough for whisper.cpp, no longer than the encoder's context.
fn prepare(samples: &[f32]) -> Vec<f32> {
    let mut out: Vec<f32> = samples
        .iter()
        .take(MAX_WINDOW_SAMPLES)
        .map(|s| {
            if s.is_finite() {
                s.clamp(-1.0, 1.0)
            } else {
                0.0
            }
        })
        .collect();
    if out.len() < MIN_SAMPLES {
        out.resize(MIN_SAMPLES, 0.0);
    }
    out
}

fn reason(error: &WhisperError) -> String {
    match error {
        WhisperError::GenericError(-2) => "no spectrogram".into(),
        WhisperError::GenericError(-3) => "unknown language".into(),
        WhisperError::GenericError(-4) => "too many beams".into(),
        WhisperError::GenericError(-5) => "context too long".into(),
        WhisperError::GenericError(-6) => "the encoder failed".into(),
        WhisperError::GenericError(-8 | -9) => "the decoder failed".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{WhisperCppModel, WhisperCppSpec, made};
    use super::*;
    use crate::inference::{CancelToken, SpeechModel};

    #[test]
    fn samples_that_are_no_numbers_become_silence() {
        let out = prepare(&[f32::NAN, f32::INFINITY, 2.0, 0.5]);

        assert_eq!(&out[..4], &[0.0, 0.0, 1.0, 0.5]);
        assert_eq!(out.len(), MIN_SAMPLES);
    }

    #[test]
    fn the_language_is_heard_from_the_whole_window_from_the_first_one_on() {
        let header = made::header(64, 1, 51_865, 80, 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.bin");
        let file = made::model(&header, 50_257, made::Weights::Noise);
        std::fs::write(&path, file.bytes).unwrap();
        let spec = WhisperCppSpec {
            path: path.clone(),
            name: "noise".into(),
            cuda_device: None,
            threads: 1,
            word_times: false,
            word_time_offset: 0,
        };
        let model = WhisperCppModel::load(&spec).unwrap();
        let context = Arc::clone(&model.context);
        let mut lane = Lane::new(context, model.info(), 1, &path, false).unwrap();
        let sound: Vec<f32> = (0..10 * 16_000u32)
            .map(|n| ((n / 1000 * n) % 1000) as f32 / 1000.0 - 0.5)
            .collect();
        let window = Window {
            id: 1,
            samples: sound.clone().into(),
            language: Language::Auto,
            task: Task::Transcribe,
            prompt: String::new(),
            vocabulary: Vec::new(),
            prefix: Vec::new(),
            most_tokens: 0,
            cancel: CancelToken::default(),
        };
        // What the decoder says behind the start depends on all that the encoder was given.
        let heard = |lane: &mut Lane| {
            lane.language(&window, &sound).unwrap();
            let state = lane.state().unwrap();
            state.decode(&[50_258], 0, 1).unwrap();
            state.get_logits().unwrap().to_vec()
        };

        let first = heard(&mut lane);
        let params = lane.base_params("en", &BatchParams::default());
        lane.state().unwrap().full(params, &sound).unwrap();
        let later = heard(&mut lane);

        assert!(first.iter().any(|l| *l != first[0]), "all alike");
        assert_eq!(first, later);
    }
}
