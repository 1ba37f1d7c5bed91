// SPDX-License-Identifier: MPL-2.0
//! Whisper on whisper.cpp: any ggml file, on the CPU (and on CUDA with the feature `cuda`).
//!
//! whisper-rs 0.16 is used through its safe calls except where they are unsound: the abort callback, whose
//! safe form reads a wrong closure, and the log callbacks. What else is avoided and why stands beside the
//! code that avoids it.

#![allow(unsafe_code)]

mod alignment;
pub(super) mod cuda;
mod footprint;
pub mod header;
mod lane;
pub mod logging;
#[cfg(any(test, feature = "test-support"))]
pub mod made;

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use whisper_rs::{DtwParameters, WhisperContext, WhisperContextParameters};

use super::{
    BatchParams, EngineError, Footprint, Layout, SpeechModel, SpeechModelInfo, SpeechToText, pages,
    whisper,
};
use alignment::Alignment;
use footprint::Memory;

/// One at a time: context load, state creation and both ends. ggml's GPU back-ends keep globals that are
/// written without a lock, and nothing is lost by it.
static NATIVE_INIT: Mutex<()> = Mutex::new(());

fn native_init() -> std::sync::MutexGuard<'static, ()> {
    NATIVE_INIT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Beams where none are asked for (docs/adr/0003-beams-by-default.md): ggml multiplies rows in blocks of four.
const DEFAULT_BEAM: u32 = 4;

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
    /// Word times from the model's attention: a pass more over each text, and its memory. Decided at the load.
    pub word_times: bool,
    /// Constant lateness of this model's word times, in samples.
    pub word_time_offset: i32,
}

impl WhisperCppSpec {
    /// What the model takes, from the first bytes of its file and these settings.
    pub fn footprint(&self) -> Result<Footprint, EngineError> {
        let mut first = [0; header::HEADER_BYTES];
        let mut file = open(&self.path)?;
        let mut read = 0;
        while read < first.len() {
            match file.read(&mut first[read..]) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(EngineError::ModelFile {
                        path: self.path.clone(),
                        why: e.to_string(),
                    });
                }
            }
        }
        let header = header::peek(&first[..read]).map_err(|why| EngineError::InvalidModel {
            path: self.path.clone(),
            why,
        })?;
        let memory = if self.cuda_device.is_some() {
            Memory::Card
        } else {
            Memory::Host
        };
        Ok(footprint::footprint(&header, self.word_times, memory))
    }

    /// Decoders that `params` ask for beyond those that a lane has room for.
    pub fn extra_decoders(params: &BatchParams) -> u32 {
        lane::decoders(params).saturating_sub(lane::WARM_DECODERS)
    }

    /// `params` with no more decoders than a lane has room for.
    pub fn within_a_lane(params: &BatchParams) -> BatchParams {
        BatchParams {
            beam: params.beam.min(lane::WARM_DECODERS),
            best_of: params.best_of.min(lane::WARM_DECODERS),
            ..params.clone()
        }
    }

    /// What a thread of a slow machine takes to encode a window; nothing where the file cannot be read.
    pub(super) fn expected_window(&self) -> Duration {
        let mut head = [0; 64];
        let read = open(&self.path)
            .ok()
            .and_then(|mut file| file.read_exact(&mut head).ok())
            .and_then(|()| header::peek(&head).ok());
        read.map_or(Duration::ZERO, |header| {
            whisper::expected_window(
                header.n_audio_ctx as usize,
                header.n_audio_state as usize,
                header.n_audio_layer as usize,
            )
        })
    }
}

/// A loaded ggml model.
pub struct WhisperCppModel {
    context: Arc<ContextBox>,
    info: SpeechModelInfo,
    threads: u32,
    path: PathBuf,
    on_card: bool,
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
        pages::give_back();
    }
}

impl WhisperCppModel {
    /// Checks the file from end to end, then loads the very bytes that were checked.
    #[allow(clippy::field_reassign_with_default)] // A literal would need every field of a foreign type.
    pub fn load(spec: &WhisperCppSpec) -> Result<Self, EngineError> {
        let file = open(&spec.path)?;
        // SAFETY: the mapping is private to us and only read. Somebody who shortens the file meanwhile
        // would raise SIGBUS; models are replaced by rename, never rewritten in place, and one that is all the
        // same is noticed below.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| EngineError::ModelFile {
            path: spec.path.clone(),
            why: e.to_string(),
        })?;
        let invalid = |why| EngineError::InvalidModel {
            path: spec.path.clone(),
            why,
        };
        let before = moment(&file);
        let header = header::validate(&bytes).map_err(invalid)?;
        if spec.cuda_device.is_some() && !cfg!(feature = "cuda") {
            return Err(EngineError::Unsupported(
                "this build of scribe has no CUDA for whisper.cpp: use device=cpu, or build with \
                 `--features cuda`"
                    .into(),
            ));
        }

        logging::install();
        let guard = native_init();
        let card = spec.cuda_device.map(cuda::device).transpose()?;
        let parameters = WhisperContextParameters {
            use_gpu: card.is_some(),
            gpu_device: card.unwrap_or(0),
            // Flash attention switches word times off and is slower on a CPU.
            flash_attn: false,
            dtw_parameters: if spec.word_times {
                Alignment::of(&header).parameters()
            } else {
                DtwParameters::default()
            },
        };

        let context = WhisperContext::new_from_buffer_with_params(&bytes, parameters)
            .map_err(|e| invalid(format!("whisper.cpp refused it: {e}")))?;
        drop(guard);
        let context = Arc::new(ContextBox(Some(context)));
        if moment(&file) != before {
            return Err(invalid("it was written to while it was read".into()));
        }

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
            default_beam: DEFAULT_BEAM,
            word_time_offset: spec.word_time_offset,
            layout: Layout::Ggml,
            word_times: spec.word_times,
            takes_prefix: false,
        };
        Ok(Self {
            context,
            info,
            threads: spec.threads.clamp(1, 64),
            path: spec.path.clone(),
            on_card: spec.cuda_device.is_some(),
        })
    }
}

impl SpeechModel for WhisperCppModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        whisper::knows_language(self.info.multilingual, code)
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        Ok(Box::new(lane::Lane::new(
            Arc::clone(&self.context),
            &self.info,
            self.threads,
            &self.path,
            self.on_card,
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

/// Length and time of the last change: those of the file that is open, whatever its name means by now.
fn moment(file: &std::fs::File) -> Option<(u64, SystemTime)> {
    let meta = file.metadata().ok()?;
    Some((meta.len(), meta.modified().ok()?))
}

/// Instruction sets that this build of ggml uses.
pub fn simd() -> Vec<&'static str> {
    // A build with CUDA looks for cards at the first call, and says what it finds.
    logging::install();
    whisper_rs::print_system_info()
        .split(['|', ':'])
        .filter_map(|part| part.trim().strip_suffix("= 1"))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}
