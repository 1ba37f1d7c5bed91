// SPDX-License-Identifier: MPL-2.0
//! Whisper on whisper.cpp: any ggml file, on the CPU (and on CUDA with the feature `cuda`).
//!
//! whisper-rs 0.16 is used through its safe calls except where they are unsound: the abort callback, whose
//! safe form reads a wrong closure, and the log callbacks. What else is avoided and why stands beside the
//! code that avoids it.

#![allow(unsafe_code)]

pub mod header;
mod lane;
pub mod logging;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use whisper_rs::{
    DtwMode, DtwModelPreset, DtwParameters, WhisperContext, WhisperContextParameters,
};

use super::{EngineError, SpeechModel, SpeechModelInfo, SpeechToText};
use header::Header;

/// One at a time: context load, state creation and both ends. ggml's GPU back-ends keep globals that are
/// written without a lock, and nothing is lost by it.
static NATIVE_INIT: Mutex<()> = Mutex::new(());

fn native_init() -> std::sync::MutexGuard<'static, ()> {
    NATIVE_INIT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which model to load and how. Equal specs share one loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WhisperCppSpec {
    /// The ggml file.
    pub path: PathBuf,
    /// Short name for people.
    pub name: String,
    /// Run on this CUDA device; `None` for the CPU.
    pub cuda_device: Option<u32>,
    /// Threads of a lane: 1 for files, up to 2 for live.
    pub threads: u32,
    /// Constant lateness of this model's word times, in samples.
    pub word_time_offset: i32,
}

/// A loaded ggml model.
pub struct WhisperCppModel {
    context: Arc<ContextBox>,
    info: SpeechModelInfo,
    threads: u32,
    path: PathBuf,
}

/// The context with its end under the same lock as its start.
struct ContextBox(Option<WhisperContext>);

impl ContextBox {
    fn get(&self) -> Result<&WhisperContext, EngineError> {
        self.0.as_ref().ok_or_else(|| EngineError::Failed {
            what: "whisper.cpp".into(),
            why: "the model was unloaded".into(),
        })
    }
}

impl Drop for ContextBox {
    fn drop(&mut self) {
        let _guard = native_init();
        self.0 = None;
    }
}

impl WhisperCppModel {
    /// Checks the file from end to end, then loads the very bytes that were checked.
    #[allow(clippy::field_reassign_with_default)] // A literal would need every field of a foreign type.
    pub fn load(spec: &WhisperCppSpec) -> Result<Self, EngineError> {
        let file = open(&spec.path)?;
        // SAFETY: the mapping is private to us and only read. Somebody who shortens the file meanwhile
        // would raise SIGBUS; models are replaced by rename, never rewritten in place.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| EngineError::ModelFile {
            path: spec.path.clone(),
            why: e.to_string(),
        })?;
        let invalid = |why| EngineError::InvalidModel {
            path: spec.path.clone(),
            why,
        };
        let header = header::validate(&bytes).map_err(invalid)?;
        if spec.cuda_device.is_some() && !cfg!(feature = "cuda") {
            return Err(EngineError::Unsupported(
                "this build of scribe has no CUDA for whisper.cpp: use device=cpu, or build with \
                 `--features cuda`"
                    .into(),
            ));
        }

        logging::install();
        let parameters = WhisperContextParameters {
            use_gpu: spec.cuda_device.is_some(),
            gpu_device: spec.cuda_device.unwrap_or(0) as i32,
            // Flash attention switches word times off and is slower on a CPU.
            flash_attn: false,
            dtw_parameters: alignment(&header),
        };

        let guard = native_init();
        let context = WhisperContext::new_from_buffer_with_params(&bytes, parameters)
            .map_err(|e| invalid(format!("whisper.cpp refused it: {e}")))?;
        drop(guard);

        let info = SpeechModelInfo {
            name: spec.name.clone(),
            engine: format!(
                "whisper.cpp {} ({})",
                whisper_rs::WHISPER_CPP_VERSION,
                simd().join(" ")
            ),
            multilingual: header.multilingual(),
            weight_bytes: bytes.len() as u64,
            max_batch: 1,
            word_time_offset: spec.word_time_offset,
        };
        Ok(Self {
            context: Arc::new(ContextBox(Some(context))),
            info,
            threads: spec.threads.clamp(1, 64),
            path: spec.path.clone(),
        })
    }
}

impl SpeechModel for WhisperCppModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        if self.info.multilingual {
            language_id(code).is_some()
        } else {
            code == "en"
        }
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        Ok(Box::new(lane::Lane::new(
            Arc::clone(&self.context),
            &self.info,
            self.threads,
            &self.path,
        )?))
    }
}

fn open(path: &Path) -> Result<std::fs::File, EngineError> {
    let failed = |why: String| EngineError::ModelFile {
        path: path.to_owned(),
        why,
    };
    let meta = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    if meta.is_dir() {
        return Err(failed("it is a directory; a ggml file is wanted".into()));
    }
    if meta.len() == 0 {
        return Err(failed("it is empty".into()));
    }
    std::fs::File::open(path).map_err(|e| failed(e.to_string()))
}

/// whisper.cpp's number of a language, checked first: an unknown one would give wrong text silently.
fn language_id(code: &str) -> Option<i32> {
    let plain = code.len() <= 3 && code.bytes().all(|b| b.is_ascii_lowercase());
    if plain {
        whisper_rs::get_lang_id(code)
    } else {
        None
    }
}

/// Instruction sets that this build of ggml uses.
pub fn simd() -> Vec<&'static str> {
    whisper_rs::print_system_info()
        .split(['|', ':'])
        .filter_map(|part| part.trim().strip_suffix("= 1"))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Heads that follow the sound, for the word times; from the table of OpenAI's models by their size.
fn alignment(header: &Header) -> DtwParameters<'static> {
    let preset = match (
        header.n_audio_state,
        header.n_text_layer,
        header.multilingual(),
    ) {
        (384, 4, false) => Some((DtwModelPreset::TinyEn, 8)),
        (384, 4, true) => Some((DtwModelPreset::Tiny, 6)),
        (512, 6, false) => Some((DtwModelPreset::BaseEn, 5)),
        (512, 6, true) => Some((DtwModelPreset::Base, 8)),
        (768, 12, false) => Some((DtwModelPreset::SmallEn, 19)),
        (768, 12, true) => Some((DtwModelPreset::Small, 10)),
        (1024, 24, false) => Some((DtwModelPreset::MediumEn, 18)),
        (1024, 24, true) => Some((DtwModelPreset::Medium, 6)),
        (1280, 32, true) if header.n_mels == 128 => Some((DtwModelPreset::LargeV3, 10)),
        (1280, 32, true) => Some((DtwModelPreset::LargeV2, 23)),
        (1280, 4, true) => Some((DtwModelPreset::LargeV3Turbo, 6)),
        _ => None,
    };
    // Distilled and made-up models: all heads of the upper half, OpenAI's default.
    let upper = (header.n_text_layer / 2).max(1);
    let (mode, heads) = match preset {
        Some((model_preset, heads)) => (DtwMode::ModelPreset { model_preset }, heads),
        None => (
            DtwMode::TopMost { n_top: upper },
            (upper * header.n_text_head) as usize,
        ),
    };
    // tokens x positions x heads, four copies in f32; whisper.cpp aborts if it is too little.
    let dtw_mem_size = 448 * 1500 * heads * 4 * 4 + (32 << 20);
    DtwParameters { mode, dtw_mem_size }
}
