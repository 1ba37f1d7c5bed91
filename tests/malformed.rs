// SPDX-License-Identifier: MPL-2.0
//! Model files that are not what their name says: each is refused with its reason, before whisper.cpp sees a byte of
//! it, and none costs more memory than itself and a megabyte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use gstscribe::inference::whisper_cpp::header::{self, HEADER_BYTES, Limits};
use gstscribe::inference::whisper_cpp::made::{self, Made, Weights, smallest};
use gstscribe::inference::whisper_cpp::{WhisperCppModel, WhisperCppSpec, logging};
use gstscribe::inference::{EngineError, SpeechModel};
use proptest::prelude::*;

/// What a thread has allocated, and the most it had.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

#[allow(unsafe_code, reason = "an allocator is")]
// SAFETY: all is left to the system's allocator; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as for this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as for this call.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work`; the bytes that this thread had at the most beyond what it had before.
fn most_allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    MOST.set(before);
    let done = work();
    (done, (MOST.get() - before) as usize)
}

/// Lines that whisper.cpp has logged: it speaks as soon as it is given a file.
static LINES: AtomicUsize = AtomicUsize::new(0);

fn load(path: &Path) -> Result<WhisperCppModel, EngineError> {
    logging::set_sink(|_, _| {
        LINES.fetch_add(1, Ordering::SeqCst);
    });
    WhisperCppModel::load(&WhisperCppSpec {
        path: path.to_owned(),
        name: "made".into(),
        cuda_device: None,
        threads: 1,
        word_times: true,
        word_time_offset: 0,
    })
}

type Mutation = fn(&mut Made);

/// What is done to a whole model, and words that its refusal must have.
#[rustfmt::skip]
const TABLE: &[(&str, Mutation, &str)] = &[
    ("nothing", |m| { m.cut(0); }, "it is empty"),
    ("a word", |m| { m.bytes = b"not".to_vec(); }, "ends inside the magic number"),
    ("another magic number", |m| { m.put(0, 0x1234_5678); }, "does not begin like a ggml file (0x12345678"),
    ("the magic number backwards", |m| { m.bytes[..4].reverse(); }, "does not begin like a ggml file"),
    ("GGUF", |m| { m.bytes[..4].copy_from_slice(b"GGUF"); }, "GGUF file"),
    ("a page of HTML", |m| { m.bytes = b"<!DOCTYPE html><html>".to_vec(); }, "does not begin like a ggml file"),
    ("the magic number alone", |m| { m.cut(4); }, "ends inside n_vocab"),
    ("cut in the dimensions", |m| { m.cut(34); }, "ends inside n_text_head"),
    ("dimensions alone", |m| { m.cut(HEADER_BYTES); }, "ends inside the filters' band count"),

    ("n_vocab 0", |m| { m.dimension(1, 0); }, "n_vocab is 0"),
    ("n_vocab negative", |m| { m.dimension(1, -1); }, "n_vocab is -1"),
    ("n_vocab one too many", |m| { m.dimension(1, 51_865); }, "decoder.token_embedding.weight is [64, 51864, 1]"),
    ("n_vocab the most", |m| { m.dimension(1, i32::MAX); }, "n_vocab is 2147483647"),
    ("n_audio_ctx 0", |m| { m.dimension(2, 0); }, "n_audio_ctx is 0, not 1500"),
    ("n_audio_ctx huge", |m| { m.dimension(2, 1 << 30); }, "n_audio_ctx is 1073741824"),
    ("n_audio_state 0", |m| { m.dimension(3, 0); }, "n_audio_state is 0"),
    ("n_audio_state huge", |m| { m.dimension(3, 1 << 28); }, "n_audio_state is 268435456"),
    ("n_audio_head 0", |m| { m.dimension(4, 0); }, "n_audio_head is 0"),
    ("n_audio_head that does not divide", |m| { m.dimension(4, 3); }, "widths and heads do not fit: encoder 64 in 3"),
    ("n_audio_layer negative", |m| { m.dimension(5, -1); }, "n_audio_layer is -1"),
    ("n_audio_layer huge", |m| { m.dimension(5, 1 << 28); }, "n_audio_layer is 268435456"),
    ("n_audio_layer one too many", |m| { m.dimension(5, 2); }, "encoder.blocks.1.mlp_ln.weight is missing"),
    ("n_text_ctx 0", |m| { m.dimension(6, 0); }, "n_text_ctx is 0, not 448"),
    ("n_text_ctx huge", |m| { m.dimension(6, 1 << 28); }, "n_text_ctx is 268435456"),
    ("n_text_state of another width", |m| { m.dimension(7, 128).dimension(8, 2); }, "decoder 128 in 2"),
    ("n_text_head 0", |m| { m.dimension(8, 0); }, "n_text_head is 0"),
    ("n_text_layer 0", |m| { m.dimension(9, 0); }, "n_text_layer is 0"),
    ("n_text_layer one too many", |m| { m.dimension(9, 2); }, "it has 50 tensors of 74"),
    ("n_mels 0", |m| { m.dimension(10, 0); }, "n_mels is 0, not 80 or 128"),
    ("n_mels of another model", |m| { m.dimension(10, 128); }, "the filters' band count is 80, not 128"),
    ("ftype unknown", |m| { m.dimension(11, 99); }, "ftype 99 is not known"),
    ("ftype negative", |m| { m.dimension(11, -1); }, "ftype -1 is not known"),
    ("ftype of other tensors", |m| { m.dimension(11, 2); }, "of type 1, not [64, 51864, 1] of type 2"),

    ("filters of 40 bands", |m| { m.put(m.filters, 40); }, "band count is 40"),
    ("filters of a billion bands", |m| { m.put(m.filters, 1 << 30); }, "band count is 1073741824"),
    ("filters of -1 bands", |m| { m.put(m.filters, -1); }, "band count is -1"),
    ("filters of 0 bins", |m| { m.put(m.filters + 4, 0); }, "bin count is 0, not 201"),
    ("a filter that is no number", |m| { m.put(m.filters + 8 + 4 * 999, -1); }, "a mel filter holds values"),
    ("cut in the filters", |m| { m.cut(m.filters + 1000); }, "ends inside the mel filters"),

    ("a vocabulary of -1 tokens", |m| { m.put(m.vocabulary, -1); }, "the vocabulary's count is -1"),
    ("a vocabulary of none", |m| { m.put(m.vocabulary, 0); }, "the vocabulary's count is 0"),
    ("a vocabulary larger than n_vocab", |m| { m.put(m.vocabulary, 51_865); }, "the vocabulary's count is 51865"),
    ("a vocabulary of the most", |m| { m.put(m.vocabulary, i32::MAX); }, "the vocabulary's count is 2147483647"),
    ("a vocabulary that runs into the tensors", |m| { m.put(m.vocabulary, 50_300); }, "token 50259 has"),
    ("a token of a gigabyte", |m| { m.put(m.tokens[0], 1 << 30); }, "token 0 has 1073741824 bytes, over 512"),
    ("a token of nearly 4 GB", |m| { m.put(m.tokens[7], 0xffff_fff0_u32 as i32); }, "token 7 has 4294967280 bytes"),
    ("a token of 513 bytes", |m| { m.put(m.tokens[9], 513); }, "token 9 has 513 bytes"),
    ("a token twice", |m| { let at = m.tokens[12] + 4; m.bytes[at..at + 3].copy_from_slice(b"t11"); },
        "token \"t11\" stands twice"),
    ("no space", |m| { let at = m.tokens[50_256] + 4; m.bytes[at] = b'x'; }, "no single space"),
    ("two tokens without a byte", |m| { for i in [4, 3] { let at = m.tokens[i]; m.put(at, 0);
        m.bytes.drain(at + 4..at + 6); } }, "2 tokens are empty"),
    ("cut in the vocabulary", |m| { m.cut(m.tokens[40_000] + 5); }, "ends inside the vocabulary"),
    ("cut before a token's length", |m| { m.cut(m.tokens[40_000]); }, "ends inside a token's length"),

    ("no tensors", |m| { m.cut(m.tensors[0].at); }, "it has 0 tensors of 50"),
    ("cut in the first tensor", |m| { m.cut(m.tensors[0].data + 5); }, "ends inside encoder.positional_embedding"),
    ("cut in a tensor's name", |m| { m.cut(m.tensors[3].data - 3); }, "ends inside a tensor's name"),
    ("cut between tensors", |m| { m.cut(m.tensors[20].at); }, "it has 20 tensors of 50"),
    ("cut in the last tensor", |m| { m.cut(m.tensors[49].end - 100); },
        "ends inside decoder.blocks.0.cross_attn.out.bias"),
    ("the last byte missing", |m| { m.cut(m.tensors[49].end - 1); }, "256 bytes are wanted"),
    ("junk behind the end", |m| { m.bytes.extend([7; 100]); }, "number of dimensions is 117901063"),
    ("zeros behind the end", |m| { m.bytes.extend([0; 12]); }, "number of dimensions is 0"),
    ("one byte behind the end", |m| { m.bytes.push(1); }, "ends inside a tensor's number of dimensions"),
    ("a tensor of 4 dimensions", |m| { m.put(m.tensors[2].at, 4); }, "number of dimensions is 4"),
    ("a tensor of -1 dimensions", |m| { m.put(m.tensors[2].at, -1); }, "number of dimensions is -1"),
    ("a tensor of 1000 dimensions", |m| { m.put(m.tensors[2].at, 1000); }, "number of dimensions is 1000"),
    ("a name of no length", |m| { m.put(m.tensors[2].at + 4, 0); }, "a tensor's name length is 0"),
    ("a name of -1 bytes", |m| { m.put(m.tensors[2].at + 4, -1); }, "a tensor's name length is -1"),
    ("a name of 2 GB", |m| { m.put(m.tensors[2].at + 4, i32::MAX); }, "a tensor's name length is 2147483647"),
    ("a type that is not there", |m| { m.put(m.tensors[1].at + 8, 99); }, "encoder.conv1.weight is [3, 80, 64] of type 99"),
    ("a type far from there", |m| { m.put(m.tensors[1].at + 8, 1_000_000); }, "of type 1000000, not"),
    ("a negative dimension", |m| { m.put(m.tensors[1].at + 12, -3); }, "a tensor's dimension is -3"),
    ("a huge dimension", |m| { m.put(m.tensors[1].at + 12, i32::MAX); }, "a tensor's dimension is 2147483647"),
    ("dimensions in another order", |m| { let at = m.tensors[1].at; m.put(at + 12, 80).put(at + 16, 3); },
        "encoder.conv1.weight is [80, 3, 64]"),
    ("a name that nobody knows", |m| { let at = m.tensors[4].data - 1; m.bytes[at] = b'?'; },
        "a tensor encoder.conv2.bia?"),
    ("a name that is no text", |m| { let at = m.tensors[4].data - 1; m.bytes[at] = 0xff; }, "name is not text"),
    ("a tensor twice and another missing", |m| { let twice = m.bytes[m.tensors[2].at..m.tensors[2].end].to_vec();
        m.bytes.splice(m.tensors[4].at..m.tensors[4].end, twice); }, "tensor encoder.conv1.bias stands twice"),
    ("a weight that is no number", |m| { m.put(m.tensors[0].data + 400, 0x7fc0_0000); },
        "encoder.positional_embedding holds values"),
    ("an endless weight in half precision", |m| { m.put(m.tensors[49].at - 8192 + 64, 0x7c00_0000); },
        "decoder.blocks.0.cross_attn.out.weight holds values"),
];

#[test]
fn each_malformed_file_is_refused_with_its_reason_before_whisper_cpp_sees_it() {
    let whole = smallest();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    let mut reasons = HashSet::new();
    for (what, mutate, words) in TABLE {
        let mut made = whole.clone();
        mutate(&mut made);
        std::fs::write(&path, &made.bytes).unwrap();

        let (outcome, bytes) = most_allocated(|| load(&path));

        let error = outcome.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(words), "{what}: {error}");
        assert!(error.contains("model.bin"), "{what}: {error}");
        assert!(bytes < 1 << 20, "{what}: {bytes} bytes");
        reasons.insert(error);
    }

    assert_eq!(LINES.load(Ordering::SeqCst), 0, "whisper.cpp saw one");
    assert!(TABLE.len() >= 40 && reasons.len() >= 40, "{reasons:#?}");
    // The whole one does reach it: the count above would have told.
    std::fs::write(&path, &whole.bytes).unwrap();
    assert!(!load(&path).unwrap().info().multilingual);
    assert!(LINES.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_whole_model_is_checked_with_less_than_a_megabyte() {
    let made = smallest();

    let (outcome, bytes) = most_allocated(|| header::validate(&made.bytes));

    assert_eq!(outcome.unwrap().n_audio_state, 64);
    assert!(bytes < 1 << 20, "{bytes}");
}

/// Something that happens to a file.
#[derive(Clone, Debug)]
enum Harm {
    Byte(usize, u8),
    Int(usize, i32),
    Cut(usize),
    Gone(usize, usize),
    Twice(usize, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = 0..200_000usize;
    let ints = prop_oneof![
        any::<i32>(),
        -2..70i32,
        Just(i32::MAX),
        Just(i32::MIN),
        Just(1 << 30)
    ];
    prop_oneof![
        3 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Harm::Byte(at, byte)),
        // The dimensions stand at the front.
        2 => (0..13usize, ints.clone()).prop_map(|(field, value)| Harm::Int(4 * field, value)),
        2 => (at.clone(), ints).prop_map(|(at, value)| Harm::Int(at, value)),
        1 => at.clone().prop_map(Harm::Cut),
        1 => (at.clone(), 1..500usize).prop_map(|(at, length)| Harm::Gone(at, length)),
        1 => (at, 1..500usize).prop_map(|(at, length)| Harm::Twice(at, length)),
    ]
}

fn apply(bytes: &mut Vec<u8>, harm: &Harm) {
    let length = bytes.len();
    if length < 8 {
        return;
    }
    match *harm {
        Harm::Byte(at, byte) => bytes[at % length] = byte,
        Harm::Int(at, value) => {
            let at = at % (length - 4);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        Harm::Cut(at) => bytes.truncate(at % length),
        Harm::Gone(at, count) => {
            let at = at % length;
            bytes.drain(at..(at + count).min(length));
        }
        Harm::Twice(at, count) => {
            let at = at % length;
            let piece = bytes[at..(at + count).min(length)].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any harm: a reason or a whole structure, in little memory, without a panic.
    #[test]
    fn no_harm_to_a_file_makes_the_check_panic_or_take_memory(
        kind in prop::sample::select(vec![(8, 0), (8, 1), (32, 2), (32, 7), (32, 9)]),
        harms in prop::collection::vec(harm(), 1..5),
    ) {
        let mut bytes = made::small(kind.0, kind.1).bytes;
        let length = bytes.len();
        for harm in &harms {
            apply(&mut bytes, harm);
        }

        let (outcome, allocated) = most_allocated(|| header::validate_by(&Limits::SMALL, &bytes));

        prop_assert!(allocated < (1 << 20) + bytes.len(), "{allocated}");
        match outcome {
            // What is still accepted has all of its parts: only values and names of tokens may differ.
            Ok(_) => prop_assert!(bytes.len().abs_diff(length) < 1_000),
            Err(reason) => prop_assert!(!reason.is_empty()),
        }
    }
}

#[test]
fn the_files_that_are_harmed_are_whole_before() {
    for (width, ftype) in [(8, 0), (8, 1), (32, 2), (32, 3), (32, 7), (32, 8), (32, 9)] {
        let made = made::small(width, ftype);

        let header = header::validate_by(&Limits::SMALL, &made.bytes).unwrap();

        assert_eq!((header.n_text_state, header.ftype), (width, ftype));
    }
    let noisy = made::model(&made::header(64, 1, 51_864, 80, 1), 50_257, Weights::Noise);
    assert!(header::validate(&noisy.bytes).is_ok());
}
