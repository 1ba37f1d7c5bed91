// SPDX-License-Identifier: MPL-2.0
//! What a model and its lanes take, reckoned from the header of its file before a byte is loaded.
//!
//! Sizes follow from shapes alone: the same for any model of the same dimensions. They are those of whisper.cpp 1.8.3
//! with this module's settings (no flash attention); the tests compare them with what it logs, so that a version with
//! other buffers is noticed. What counts is memory that nobody can take back: the pages of the model's file while it
//! is read are the system's cache, and address space without pages costs nothing (each lane reserves some 600 MB of it).

use std::sync::LazyLock;

use super::alignment::Alignment;
use super::header::{self, Header};
use super::lane::{WARM_DECODERS, WIDEST_PASS};
use super::simd;
use crate::inference::whisper::MAX_TOKENS;
use crate::inference::{Footprint, MAX_WINDOW_SAMPLES};

/// Positions of the encoder that the buffers are made for. A window has a few less.
const AUDIO_CTX: u64 = 1500;
/// Positions of the decoder that the buffers are made for.
const TEXT_CTX: u64 = 448;
/// The same, rounded up as whisper.cpp's caches are.
const AUDIO_CTX_PADDED: u64 = 1536;
const TEXT_CTX_PADDED: u64 = 512;
/// A graph's own tables: 4096 tensors of 368 bytes, and their index.
const GRAPH_BYTES: u64 = 1_589_800;
const GRAPHS: u64 = 4;
const F32: u64 = 4;
const F16: u64 = 2;
/// Both ways between a token and its text, for each.
const VOCABULARY_ENTRY_BYTES: u64 = 192;
/// Probability, logit and its logarithm of each token, and the pairs that sort them.
const DECODER_ENTRY_BYTES: u64 = 28;
/// Schedulers' tables, beams and texts, and what the C library keeps for later.
const OTHER_BYTES: u64 = 16 << 20;
/// What the check of a file needs beside it.
const CHECK_BYTES: u64 = 4 << 20;
/// What a lane has on a card beside whisper.cpp's buffers and the attention: cuBLAS's workspace and ggml's passing
/// copies. 72 to 75 MiB on an H200 (docs/memory.md).
const LIBRARIES_BYTES: u64 = 80 << 20;

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// The processor's.
    Host,
    /// A card's. What a lane has in the processor's memory beside it is not counted.
    Card,
}

/// Whether this build of ggml multiplies with AMX.
fn has_amx() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| simd().contains(&"AMX_INT8"));
    *HAS
}

/// Footprint of a model with this header, with or without word times.
pub(super) fn footprint(header: &Header, word_times: bool, memory: Memory) -> Footprint {
    let sizes = Sizes::of(header, word_times);
    let tensors = header::tensor_bytes(header, memory == Memory::Host && has_amx());
    // Tensors whose form changes on the way in pass through a copy of their own.
    let load_extra_bytes = CHECK_BYTES + header::largest_tensor_bytes(header);
    match memory {
        Memory::Host => Footprint {
            weights_bytes: tensors + sizes.vocabulary * VOCABULARY_ENTRY_BYTES,
            load_extra_bytes,
            lane_bytes: sizes.lane_on_host(),
            item_bytes: 0,
            decoder_bytes: sizes.kv_self(1) + sizes.decoder(),
        },
        Memory::Card => Footprint {
            weights_bytes: tensors,
            load_extra_bytes: 0,
            lane_bytes: sizes.lane_on_card(),
            item_bytes: 0,
            decoder_bytes: sizes.kv_self(1),
        },
    }
}

/// The buffers of a lane.
struct Sizes {
    vocabulary: u64,
    /// Width of both sides.
    width: u64,
    text_layers: u64,
    mels: u64,
    /// Heads of the encoder.
    heads: u64,
    alignment: Option<Alignment>,
}

impl Sizes {
    fn of(header: &Header, word_times: bool) -> Self {
        // A header is checked: nothing in it is negative.
        let size = |n: i32| u64::from(n.unsigned_abs());
        Self {
            vocabulary: size(header.n_vocab),
            width: size(header.n_audio_state),
            text_layers: size(header.n_text_layer),
            mels: size(header.n_mels),
            heads: size(header.n_audio_head),
            alignment: word_times.then(|| Alignment::of(header)),
        }
    }

    /// Keys and values of what was said so far, for `factor` texts side by side.
    fn kv_self(&self, factor: u64) -> u64 {
        2 * F16 * TEXT_CTX_PADDED * self.width * self.text_layers * factor
    }

    /// Keys and values of the sound, one set for all texts.
    fn kv_cross(&self) -> u64 {
        2 * F16 * AUDIO_CTX_PADDED * self.width * self.text_layers
    }

    fn kv_pad(&self) -> u64 {
        2 * F16 * AUDIO_CTX_PADDED * self.width
    }

    /// The convolutions' buffer: the spectrogram, its first unrolling, and two layers' output.
    fn conv(&self) -> u64 {
        GRAPH_BYTES + 2 * AUDIO_CTX * self.mels * (F32 + 3 * F16) + 4 * F32 * AUDIO_CTX * self.width
    }

    /// The encoder's: attention of each position to each, twice a head, and some rows.
    fn encode(&self) -> u64 {
        GRAPH_BYTES + F32 * AUDIO_CTX * AUDIO_CTX * self.heads + 4 * F32 * AUDIO_CTX * self.width
    }

    fn cross(&self) -> u64 {
        GRAPH_BYTES + F32 * AUDIO_CTX * self.width
    }

    /// The decoder's: logits above all, and the attention kept for word times.
    fn decode(&self) -> u64 {
        let attention = self.alignment.as_ref().map_or(0, |a| a.decoder_bytes);
        GRAPH_BYTES + TEXT_CTX * self.decode_row() + attention
    }

    /// The part of it that is ever written to.
    fn widest_pass(&self) -> u64 {
        let attention = self.alignment.as_ref().map_or(0, |a| a.pass_bytes);
        GRAPH_BYTES + WIDEST_PASS as u64 * self.decode_row() + attention
    }

    /// What a token takes in it.
    fn decode_row(&self) -> u64 {
        F32 * self.vocabulary + 2 * F32 * self.width
    }

    /// ggml's work buffer: the encoder's attention, rounded to half precision for the product with the values.
    fn work(&self) -> u64 {
        F16 * AUDIO_CTX * AUDIO_CTX * self.heads
    }

    fn logits(&self) -> u64 {
        F32 * self.vocabulary * WIDEST_PASS as u64
    }

    fn decoder(&self) -> u64 {
        DECODER_ENTRY_BYTES * self.vocabulary
    }

    /// A window's samples, the copy that whisper.cpp pads by 30 s and two halves of a frame, its spectrogram and the
    /// part of that which goes into the encoder.
    fn sound(&self) -> u64 {
        let samples = MAX_WINDOW_SAMPLES as u64;
        F32 * (samples + samples + 480_400)
            + F32 * self.mels * (samples / 160 + 3000)
            + F32 * self.mels * 2 * AUDIO_CTX
    }

    /// The alignment of a full text: its attention as it comes and three times over on the way (copied, normalised,
    /// filtered), and what the shortest path through it needs.
    fn word_times(&self) -> u64 {
        let Some(alignment) = &self.alignment else {
            return 0;
        };
        // Start, language, task and end.
        let plane = F32 * (MAX_TOKENS as u64 + 5) * AUDIO_CTX;
        plane * alignment.heads * 4 + plane * 5
    }

    fn lane_on_host(&self) -> u64 {
        let decoders = u64::from(WARM_DECODERS);
        self.kv_self(decoders + 2)
            + self.kv_cross()
            + self.kv_pad()
            + self.conv()
            + self.encode()
            + self.cross()
            + self.widest_pass()
            + self.work()
            + self.logits()
            + self.decoder() * decoders
            + self.sound()
            + self.word_times()
            + OTHER_BYTES
    }

    /// A card commits its buffers whole. What ggml's pool keeps for products is the attention in half precision.
    fn lane_on_card(&self) -> u64 {
        let pool = self.work() + LIBRARIES_BYTES;
        // The graphs' tables are the processor's.
        self.kv_self(u64::from(WARM_DECODERS) + 2)
            + self.kv_cross()
            + self.kv_pad()
            + self.conv()
            + self.encode()
            + self.cross()
            + self.decode()
            - GRAPHS * GRAPH_BYTES
            + pool
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::ffi::{CStr, c_char, c_void};

    use whisper_rs::whisper_rs_sys as sys;
    use whisper_rs::{DtwParameters, WhisperContext, WhisperContextParameters};

    use super::super::made::{self, Weights};
    use super::super::{logging, native_init};
    use super::*;

    thread_local! {
        static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    unsafe extern "C" fn keep(_level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
        // SAFETY: ggml passes a NUL-terminated string that is valid during the call.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        LINES.with_borrow_mut(|lines| lines.push(text.trim().to_owned()));
    }

    /// What whisper.cpp logs, in megabytes, when it makes a state for a model with this header and no weights.
    struct Logged {
        weights: f64,
        kv: [f64; 3],
        graphs: [f64; 4],
    }

    fn dry_run(header: &Header, word_times: bool) -> Logged {
        logging::install();
        let _guard = native_init();
        // SAFETY: the callback is a function of this program that takes no user data. Others of this program's tests
        // do without the lines that go here from now on.
        unsafe {
            sys::whisper_log_set(Some(keep), std::ptr::null_mut());
            sys::ggml_log_set(Some(keep), std::ptr::null_mut());
        }
        LINES.take();
        let file = made::model(header, 50_257, Weights::Absent).bytes;
        let parameters = WhisperContextParameters {
            use_gpu: false,
            gpu_device: 0,
            flash_attn: false,
            dtw_parameters: if word_times {
                Alignment::of(header).parameters()
            } else {
                DtwParameters::default()
            },
        };
        let context = WhisperContext::new_from_buffer_with_params(&file, parameters).unwrap();
        drop(context.create_state().unwrap());
        let lines = LINES.take();
        let number = |what: &str| {
            let of_line = |line: &String| -> f64 {
                let (_, number) = line.split_once('=').unwrap();
                number.trim().trim_end_matches(" MB").parse().unwrap()
            };
            let found: Vec<f64> = lines
                .iter()
                .filter(|l| l.contains(what))
                .map(of_line)
                .collect();
            assert!(!found.is_empty(), "no line on {what} in {lines:#?}");
            // The weights may lie in more than one kind of buffer.
            found.iter().sum()
        };
        Logged {
            weights: number("total size"),
            kv: ["kv self", "kv cross", "kv pad"].map(number),
            graphs: ["(conv)", "(encode)", "(cross)", "(decode)"].map(number),
        }
    }

    fn shape(
        width: i32,
        audio_layers: i32,
        text_layers: i32,
        vocabulary: i32,
        mels: i32,
        ftype: i32,
    ) -> Header {
        Header {
            n_audio_layer: audio_layers,
            ..made::header(width, text_layers, vocabulary, mels, ftype)
        }
    }

    /// Within one in a hundred, or the last digit that is logged.
    fn assert_close(reckoned: u64, logged_mb: f64, what: &str) {
        let reckoned = reckoned as f64 / 1e6;
        let off = (reckoned - logged_mb).abs();
        assert!(
            off <= 0.01 * logged_mb || off < 0.006,
            "{what}: {reckoned} reckoned, {logged_mb} logged"
        );
    }

    #[test]
    fn each_buffer_of_openais_models_is_as_large_as_reckoned() {
        let models = [
            ("tiny.en q8_0", shape(384, 4, 4, 51_864, 80, 7)),
            ("tiny.en f16", shape(384, 4, 4, 51_864, 80, 1)),
            ("tiny q5_1", shape(384, 4, 4, 51_865, 80, 9)),
            ("base.en q8_0", shape(512, 6, 6, 51_864, 80, 7)),
            ("base f16", shape(512, 6, 6, 51_865, 80, 1)),
            ("small.en q8_0", shape(768, 12, 12, 51_864, 80, 7)),
            ("small q5_0", shape(768, 12, 12, 51_865, 80, 8)),
            ("medium.en q8_0", shape(1024, 24, 24, 51_864, 80, 7)),
            ("medium q8_0", shape(1024, 24, 24, 51_865, 80, 7)),
            ("large-v2 q8_0", shape(1280, 32, 32, 51_865, 80, 7)),
            ("large-v3 q4_1", shape(1280, 32, 32, 51_866, 128, 3)),
            ("large-v3-turbo q8_0", shape(1280, 32, 4, 51_866, 128, 7)),
            ("large-v3-turbo q4_0", shape(1280, 32, 4, 51_866, 128, 2)),
        ];
        for (name, header) in models {
            for word_times in [true, false] {
                let logged = dry_run(&header, word_times);
                let sizes = Sizes::of(&header, word_times);

                let weights = header::tensor_bytes(&header, has_amx());
                assert_close(weights, logged.weights, name);
                let kv = [sizes.kv_self(1), sizes.kv_cross(), sizes.kv_pad()];
                for (reckoned, logged) in kv.into_iter().zip(logged.kv) {
                    assert_close(reckoned, logged, name);
                }
                let graphs = [sizes.conv(), sizes.encode(), sizes.cross(), sizes.decode()];
                for (reckoned, logged) in graphs.into_iter().zip(logged.graphs) {
                    assert_close(reckoned, logged, name);
                }
            }
        }
    }

    #[test]
    fn a_decoder_of_any_other_shape_takes_no_more_than_reckoned() {
        let shapes = [
            ("distil-small.en", shape(768, 12, 4, 51_864, 80, 7)),
            ("distil-medium.en", shape(1024, 24, 2, 51_864, 80, 7)),
            ("distil-large-v3", shape(1280, 32, 2, 51_866, 128, 7)),
            ("one layer", shape(64, 1, 1, 51_864, 80, 1)),
            ("three layers", shape(512, 6, 3, 51_864, 80, 7)),
            ("wide and deep", shape(1280, 2, 8, 51_866, 128, 7)),
        ];
        for (name, header) in shapes {
            let logged = dry_run(&header, true).graphs[3];
            let reckoned = Sizes::of(&header, true).decode() as f64 / 1e6;

            assert!(logged <= reckoned, "{name}: {logged} of {reckoned}");
            assert!(reckoned < 2.0 * logged, "{name}: {logged} of {reckoned}");
        }
    }

    /// What a lane more took on an NVIDIA H200 by the driver's account, in MiB (`examples/card.rs`, 2026-11-26).
    #[test]
    fn a_lane_on_a_card_takes_no_more_than_reckoned_and_little_less() {
        let measured = [
            ("tiny.en q5_1", shape(384, 4, 4, 51_864, 80, 9), true, 330),
            ("medium", shape(1024, 24, 24, 51_865, 80, 1), true, 980),
            (
                "large-v3-turbo q8_0",
                shape(1280, 32, 4, 51_866, 128, 7),
                true,
                626,
            ),
            (
                "large-v3 q8_0",
                shape(1280, 32, 32, 51_866, 128, 7),
                true,
                1698,
            ),
            ("large-v3", shape(1280, 32, 32, 51_866, 128, 1), true, 1698),
            ("large-v3", shape(1280, 32, 32, 51_866, 128, 1), false, 1220),
        ];
        for (name, header, word_times, mib) in measured {
            let reckoned = footprint(&header, word_times, Memory::Card).lane_bytes;

            assert!(reckoned >= mib << 20, "{name}: {reckoned}");
            assert!(reckoned <= (mib << 20) / 100 * 103, "{name}: {reckoned}");
        }
    }

    #[test]
    fn a_decoder_more_is_a_share_of_the_cache_and_its_rows() {
        let header = shape(384, 4, 4, 51_864, 80, 7);

        let host = footprint(&header, true, Memory::Host);
        let card = footprint(&header, true, Memory::Card);

        // registry.md: 18.9 MB of cache for the six shares of tiny with four beams.
        assert_eq!(card.decoder_bytes, 3_145_728);
        assert_eq!(host.decoder_bytes, 3_145_728 + 28 * 51_864);
        // A card has whole buffers, and no copies of the sound and the vocabulary.
        assert!(card.weights_bytes < host.weights_bytes);
    }
}
