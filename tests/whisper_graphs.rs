// SPDX-License-Identifier: MPL-2.0
//! The ONNX graphs that `scribe-models` makes of Whisper models, in ONNX Runtime; and Whisper's mel filters.
//!
//! The models are made up: of another size than any of OpenAI's, with 128 mel bands and the vocabulary of all languages.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/ct2.rs"]
mod ct2;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{repository, there};
use ct2::Ct2;
use gstscribe::dsp::mel;
use gstscribe::inference::onnx::checked::{self, Element, Port, Ports};
use gstscribe::inference::onnx::cross;
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, TensorRef};
use tempfile::TempDir;

const RUNTIME: &str = "target/release/scribe/libonnxruntime.so.1";
const GGML: &str = "models/ggml-tiny.en.bin";

/// Two heads, two layers a side.
const MODEL: Ct2 = Ct2 {
    width: 128,
    layers: 2,
    mel_bands: 128,
    tokens: 51_866,
};
const HEADS: usize = 2;
const HEAD: usize = 64;
/// Frames of a window; the graphs take any even number up to 3000.
const FRAMES: usize = 100;
const POSITIONS: usize = FRAMES / 2;
/// A whole window's, which our operator in graphs of 8 bits takes and nothing else.
const ALL_FRAMES: usize = 2 * cross::POSITIONS;
/// What a place of the cache that is not filled adds to a score.
const MASKED: f32 = -1e9;

/// Encoder and decoder as `scribe-models import` writes them.
fn graphs(folder: &TempDir, kind: &str, config: Option<&str>) -> [PathBuf; 2] {
    let source = folder.path().join("own");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("model.bin"), MODEL.model()).unwrap();
    fs::write(source.join("vocabulary.txt"), MODEL.vocabulary()).unwrap();
    if let Some(config) = config {
        fs::write(source.join("config.json"), config).unwrap();
    }
    let models = folder.path().join("models");
    let done = Command::new(env!("CARGO_BIN_EXE_scribe-models"))
        .arg("import")
        .arg(source)
        .args(["--type", &format!("onnx-{kind}"), "--dir"])
        .arg(&models)
        .output()
        .unwrap();
    let news = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{news}");
    ["encoder", "decoder"].map(|side| models.join(format!("own-onnx-{kind}.{side}.onnx")))
}

fn whole(name: &str) -> Port {
    Port {
        element: Element::I64,
        ..Port::f32(name, &[None, None])
    }
}

fn encoder_ports() -> Ports {
    let (heads, head) = (Some(HEADS as u64), Some(HEAD as u64));
    let outputs = (0..MODEL.layers).flat_map(|layer| {
        [
            Port::f32(&format!("cross_k_{layer}"), &[None, heads, head, None]),
            Port::f32(&format!("cross_v_{layer}"), &[None, heads, None, head]),
        ]
    });
    Ports {
        inputs: vec![Port::f32("mel", &[None, None, Some(128)])],
        outputs: outputs.collect(),
    }
}

fn decoder_ports(alignment: u64) -> Ports {
    let (heads, head) = (Some(HEADS as u64), Some(HEAD as u64));
    let mut ports = Ports {
        inputs: vec![
            whole("tokens"),
            whole("pos"),
            Port::f32("mask", &[None, Some(1), None, None]),
        ],
        outputs: vec![
            Port::f32("logits", &[None, Some(MODEL.tokens as u64)]),
            Port::f32("align", &[None, Some(alignment), None, None]),
        ],
    };
    for layer in 0..MODEL.layers {
        let k = |name: &str| Port::f32(&format!("{name}_{layer}"), &[None, heads, head, None]);
        let v = |name: &str| Port::f32(&format!("{name}_{layer}"), &[None, heads, None, head]);
        let inputs = [k("self_k"), v("self_v"), k("cross_k"), v("cross_v")];
        ports.inputs.extend(inputs);
        ports.outputs.extend([k("new_k"), v("new_v")]);
    }
    ports
}

/// The same of a graph with our operator.
fn decoder_ports_of_halves(alignment: u64) -> Ports {
    let mut ports = decoder_ports(alignment);
    let tiles = cross::PADDED / cross::TILE;
    for port in &mut ports.inputs {
        let shape = match port.name.rsplit_once('_') {
            Some(("cross_k", _)) => vec![HEADS, tiles, HEAD, cross::TILE],
            Some(("cross_v", _)) => vec![HEADS, cross::PADDED, HEAD],
            _ => continue,
        };
        let rest = shape.into_iter().map(|n| Some(n as u64));
        port.shape = std::iter::once(None).chain(rest).collect();
        port.element = Element::U16;
    }
    ports
}

/// A tensor: its shape and its values.
type Floats = (Vec<usize>, Vec<f32>);
type Tensors = BTreeMap<String, Floats>;

/// What our operator makes of the sound's keys or values.
fn halves(name: &str, values: &[f32]) -> (Vec<usize>, Vec<u16>) {
    let windows = values.len() / (HEADS * HEAD * cross::POSITIONS);
    let mut halves = vec![0; windows * HEADS * HEAD * cross::PADDED];
    let tiles = cross::PADDED / cross::TILE;
    if name.starts_with("cross_k") {
        cross::arrange_keys(values, &mut halves);
        (vec![windows, HEADS, tiles, HEAD, cross::TILE], halves)
    } else {
        cross::arrange_values(values, &mut halves);
        (vec![windows, HEADS, cross::PADDED, HEAD], halves)
    }
}

fn run(session: &mut Session, tokens: &[(&str, Floats)], whole: &[(&str, Vec<i64>)]) -> Tensors {
    let takes_halves = |name: &str| {
        let input = session.inputs().iter().find(|input| input.name() == name);
        input.unwrap().dtype().tensor_type() == Some(TensorElementType::Uint16)
    };
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
    for (name, (shape, values)) in tokens {
        if takes_halves(name) {
            let tensor = Tensor::from_array(halves(name, values)).unwrap();
            inputs.push(((*name).into(), tensor.into()));
            continue;
        }
        let tensor = TensorRef::from_array_view((shape.clone(), &values[..])).unwrap();
        inputs.push(((*name).into(), tensor.into()));
    }
    let rows = tokens
        .iter()
        .find(|(name, _)| *name == "mask")
        .map_or(1, |(_, (shape, _))| shape[0]);
    for (name, values) in whole {
        let shape = vec![rows, values.len() / rows];
        let tensor = TensorRef::from_array_view((shape, &values[..])).unwrap();
        inputs.push(((*name).into(), tensor.into()));
    }
    let outputs = session.run(inputs).unwrap();
    outputs
        .iter()
        .map(|(name, value)| {
            let (shape, values) = value.try_extract_tensor::<f32>().unwrap();
            let shape = shape.iter().map(|&n| usize::try_from(n).unwrap()).collect();
            (name.to_owned(), (shape, values.to_vec()))
        })
        .collect()
}

/// A window that looks like sound: -1 to 1, and nothing repeats.
fn window(seed: f32, frames: usize) -> Floats {
    let value = |n: usize| ((n as f32 * 0.37 + seed).sin() * 43.7).sin();
    (vec![1, frames, 128], (0..frames * 128).map(value).collect())
}

fn encode(path: &Path, seed: f32, frames: usize) -> Tensors {
    let mut encoder = checked::session(path, &encoder_ports()).unwrap();
    run(&mut encoder, &[("mel", window(seed, frames))], &[])
}

/// Keys `[R, H, 64, P]` and values `[R, H, P, 64]` of the tokens so far, as the caller of a decoder keeps them.
struct Cache {
    rows: usize,
    capacity: usize,
    filled: usize,
    tensors: Tensors,
}

impl Cache {
    fn new(rows: usize, capacity: usize) -> Self {
        let length = rows * HEADS * HEAD * capacity;
        let mut tensors = Tensors::new();
        for layer in 0..MODEL.layers {
            let k = vec![rows, HEADS, HEAD, capacity];
            let v = vec![rows, HEADS, capacity, HEAD];
            // What is not filled must not matter.
            tensors.insert(format!("self_k_{layer}"), (k, vec![7.0; length]));
            tensors.insert(format!("self_v_{layer}"), (v, vec![7.0; length]));
        }
        Self {
            rows,
            capacity,
            filled: 0,
            tensors,
        }
    }

    /// Writes what a step of one token gave.
    fn take(&mut self, given: &Tensors) {
        for layer in 0..MODEL.layers {
            let k = &given[&format!("new_k_{layer}")].1;
            let v = &given[&format!("new_v_{layer}")].1;
            let old_k = &mut self.tensors.get_mut(&format!("self_k_{layer}")).unwrap().1;
            for (n, value) in k.iter().enumerate() {
                old_k[n * self.capacity + self.filled] = *value;
            }
            let old_v = &mut self.tensors.get_mut(&format!("self_v_{layer}")).unwrap().1;
            for (n, value) in v.iter().enumerate() {
                let (head, place) = (n / HEAD, n % HEAD);
                old_v[(head * self.capacity + self.filled) * HEAD + place] = *value;
            }
        }
        self.filled += 1;
    }
}

/// One run of the decoder: the same number of tokens for each row of the cache.
fn decode(decoder: &mut Session, cross: &Tensors, cache: &Cache, tokens: &[i64]) -> Tensors {
    let each = tokens.len() / cache.rows;
    let positions = (0..tokens.len()).map(|n| (cache.filled + n % each) as i64);
    let width = cache.capacity + each;
    let mask = (0..cache.rows * each * width).map(|n| {
        let (token, column) = (n / width % each, n % width);
        let is_open = match column.checked_sub(cache.capacity) {
            None => column < cache.filled,
            Some(new) => new <= token,
        };
        if is_open { 0.0 } else { MASKED }
    });
    let mask = (vec![cache.rows, 1, each, width], mask.collect());
    let mut floats: Vec<(&str, Floats)> = vec![("mask", mask)];
    for (name, tensor) in cross.iter().chain(&cache.tensors) {
        floats.push((name, tensor.clone()));
    }
    let whole = [("tokens", tokens.to_vec()), ("pos", positions.collect())];
    run(decoder, &floats, &whole)
}

/// How far `a` is from `b`, of the length of `b`.
fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (difference / square(&mut b.iter().copied())).sqrt()
}

#[test]
fn a_models_tokens_come_out_alike_in_one_run_and_one_by_one() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let [encoder, decoder] = graphs(&folder, "f32", None);
    let cross = encode(&encoder, 0.0, FRAMES);
    let mut decoder = checked::session(&decoder, &decoder_ports(2)).unwrap();
    let tokens = [50_258, 11, 4_711, 7];

    let at_once = decode(&mut decoder, &cross, &Cache::new(1, 0), &tokens);
    let mut cache = Cache::new(1, 6);
    let mut steps = Vec::new();
    for token in tokens {
        let step = decode(&mut decoder, &cross, &cache, &[token]);
        cache.take(&step);
        steps.push(step);
    }

    let shape = |name: &str| at_once[name].0.clone();
    assert_eq!(shape("logits"), [1, 51_866]);
    assert_eq!(shape("align"), [1, 2, 4, POSITIONS]);
    assert_eq!(shape("new_k_1"), [1, HEADS, HEAD, 4]);
    assert_eq!(shape("new_v_1"), [1, HEADS, 4, HEAD]);
    let logits = far(&steps[3]["logits"].1, &at_once["logits"].1);
    assert!(logits < 1e-4, "{logits}");
    for (n, step) in steps.iter().enumerate() {
        for head in 0..2 {
            let row = &at_once["align"].1[(head * 4 + n) * POSITIONS..][..POSITIONS];
            let stepwise = &step["align"].1[head * POSITIONS..][..POSITIONS];
            assert!(far(stepwise, row) < 1e-4, "token {n}, head {head}");
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
    let other = decode(
        &mut decoder,
        &cross,
        &Cache::new(1, 0),
        &[50_258, 12, 4_711, 7],
    );
    assert!(far(&other["logits"].1, &at_once["logits"].1) > 1e-3);
}

#[test]
fn beams_share_a_windows_sound_and_windows_do_not() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let [encoder, decoder] = graphs(&folder, "f32", None);
    let windows = [encode(&encoder, 0.0, FRAMES), encode(&encoder, 1.0, FRAMES)];
    let mut decoder = checked::session(&decoder, &decoder_ports(2)).unwrap();
    let beams = [[50_258_i64, 5], [50_258, 6]];

    // Two windows of two beams in one run.
    let mut both = windows[0].clone();
    for (name, (shape, values)) in &mut both {
        shape[0] = 2;
        values.extend(&windows[1][name].1);
    }
    let rows = [beams[0], beams[1], beams[0], beams[1]].concat();
    let together = decode(&mut decoder, &both, &Cache::new(4, 0), &rows);

    assert_eq!(together["logits"].0, [4, 51_866]);
    assert_eq!(together["align"].0, [2, 2, 4, POSITIONS]);
    for (row, logits) in together["logits"].1.chunks(MODEL.tokens).enumerate() {
        let (window, beam) = (&windows[row / 2], &beams[row % 2]);
        let alone = decode(&mut decoder, window, &Cache::new(1, 0), beam);
        assert!(far(logits, &alone["logits"].1) < 1e-4, "row {row}");
        for head in 0..2 {
            let place = ((row / 2 * 2 + head) * 4 + row % 2 * 2) * POSITIONS;
            let align = &together["align"].1[place..][..2 * POSITIONS];
            let alone = &alone["align"].1[head * 2 * POSITIONS..][..2 * POSITIONS];
            assert!(far(align, alone) < 1e-4, "row {row}, head {head}");
        }
    }
}

#[test]
fn our_operator_reads_each_windows_sound_for_all_its_beams() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let config = r#"{"alignment_heads": [[1, 1], [0, 1], [1, 0]]}"#;
    let [encoder, exact_decoder] = graphs(&folder, "f32", Some(config));
    let [_, decoder] = graphs(&folder, "int8", Some(config));
    let mut both = encode(&encoder, 0.0, ALL_FRAMES);
    let second = encode(&encoder, 1.0, ALL_FRAMES);
    for (name, (shape, values)) in &mut both {
        shape[0] = 2;
        values.extend(&second[name].1);
    }
    let mut decoder = checked::session(&decoder, &decoder_ports_of_halves(3)).unwrap();
    let mut exact = checked::session(&exact_decoder, &decoder_ports(3)).unwrap();
    // Two windows of four beams of two tokens: more rows than are read for at once.
    let tokens: Vec<i64> = (0..8).flat_map(|row| [50_258, 300 + 7 * row]).collect();

    let found = decode(&mut decoder, &both, &Cache::new(8, 0), &tokens);
    let wanted = decode(&mut exact, &both, &Cache::new(8, 0), &tokens);

    assert_eq!(found["align"].0, [2, 3, 8, cross::POSITIONS]);
    for (name, parts) in [("align", 48), ("logits", 8)] {
        let (found, wanted) = (&found[name].1, &wanted[name].1);
        let size = wanted.len() / parts;
        for (n, (found, wanted)) in found.chunks(size).zip(wanted.chunks(size)).enumerate() {
            assert!(far(found, wanted) < 0.03, "{name} {n}");
        }
    }
    // Shapes that are not those of a window never reach it.
    let wrong = checked::session(
        &folder.path().join("models/own-onnx-int8.decoder.onnx"),
        &decoder_ports(3),
    );
    let why = wrong.unwrap_err().to_string();
    assert!(why.contains("CrossAttention"), "{why}");
}

/// How far graphs of a type are from those of 32 bits: each output of the encoder, and the decoder's logits.
fn far_from_exact(kind: &str) -> (Vec<(String, f32)>, [u64; 2]) {
    let folder = TempDir::new().unwrap();
    let [exact_encoder, exact_decoder] = graphs(&folder, "f32", None);
    let [encoder, decoder] = graphs(&folder, kind, None);
    let [exact, cross] = [&exact_encoder, &encoder].map(|path| encode(path, 0.0, ALL_FRAMES));
    let run = |path: &Path, ports: Ports| {
        let mut session = checked::session(path, &ports).unwrap();
        let mut cache = Cache::new(1, 6);
        cache.take(&decode(&mut session, &exact, &cache, &[50_258]));
        decode(&mut session, &exact, &cache, &[11, 4_711])
    };
    let ports = match kind {
        "int8" => decoder_ports_of_halves(2),
        _ => decoder_ports(2),
    };
    let wanted = run(&exact_decoder, decoder_ports(2));
    let given = run(&decoder, ports);

    let of = |name: &str, given: &Tensors, wanted: &Tensors| {
        assert_eq!(given[name].0, wanted[name].0, "{name}");
        (name.to_owned(), far(&given[name].1, &wanted[name].1))
    };
    let names = exact.keys();
    let mut all: Vec<_> = names.map(|name| of(name, &cross, &exact)).collect();
    all.extend(["logits", "align"].map(|name| of(name, &given, &wanted)));
    let percent = |a: &Path, b: &Path| {
        let size = |path: &Path| path.metadata().unwrap().len();
        size(a) * 100 / size(b)
    };
    let sizes = [
        percent(&encoder, &exact_encoder),
        percent(&decoder, &exact_decoder),
    ];
    (all, sizes)
}

#[test]
fn eight_bits_come_near_to_thirty_two() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }

    let (far, [encoder, decoder]) = far_from_exact("int8");

    for (name, far) in far {
        assert!((1e-5..0.03).contains(&far), "{name}: {far}");
    }
    assert!(encoder < 100 && decoder < 60);
}

#[test]
fn sixteen_bits_come_nearer() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }

    let (far, [encoder, decoder]) = far_from_exact("f16");

    for (name, far) in far {
        assert!((1e-6..0.003).contains(&far), "{name}: {far}");
    }
    // The table of tokens has 16 bits in both.
    assert!(encoder < 55 && decoder < 75);
}

#[test]
fn the_graphs_say_what_they_are_and_which_tokens_there_are() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let config = r#"{"alignment_heads": [[1, 1], [0, 1], [1, 0]], "more": {}}"#;
    let [encoder, decoder] = graphs(&folder, "int8", Some(config));
    let encoder = checked::session(&encoder, &encoder_ports()).unwrap();
    let decoder = checked::session(&decoder, &decoder_ports_of_halves(3)).unwrap();

    let note = |session: &Session, key: &str| session.metadata().unwrap().custom(key);

    let sizes = note(&decoder, "whisper").unwrap();
    assert_eq!(note(&encoder, "whisper").as_deref(), Some(sizes.as_str()));
    let wanted = serde_json::json!({
        "width": 128, "mels": 128, "heads": 2, "enc": 2, "dec": 2, "vocab": 51_866, "type": "int8",
        "alignment_heads": [[0, 1], [1, 0], [1, 1]], "cross_halves": true,
    });
    let sizes: serde_json::Value = serde_json::from_str(&sizes).unwrap();
    assert_eq!(sizes, wanted);
    let vocabulary = note(&decoder, "vocabulary").unwrap();
    let tokens: Vec<&str> = vocabulary.split('\n').collect();
    assert_eq!((tokens.len(), tokens[4_711]), (51_866, "\u{120}t4711"));
    assert_eq!(note(&encoder, "vocabulary"), None);
}

#[test]
fn heads_that_the_model_does_not_have_are_refused() {
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("own");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("model.bin"), MODEL.model()).unwrap();
    fs::write(source.join("vocabulary.txt"), MODEL.vocabulary()).unwrap();
    for (config, words) in [
        (
            r#"{"alignment_heads": [[2, 0]]}"#,
            "names head 0 of layer 2",
        ),
        (
            r#"{"alignment_heads": [[0, 2]]}"#,
            "names head 2 of layer 0",
        ),
        (r#"{"alignment_heads": [[-1, 0]]}"#, "config.json: "),
        ("{", "config.json: "),
    ] {
        fs::write(source.join("config.json"), config).unwrap();

        let done = Command::new(env!("CARGO_BIN_EXE_scribe-models"))
            .arg("import")
            .arg(&source)
            .args(["--type", "onnx-int8", "--dir"])
            .arg(folder.path())
            .output()
            .unwrap();

        let news = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{config}: {news}");
        assert!(news.contains(words), "{config}: {news}");
    }
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 1, "only the source is there");
}

#[test]
fn mel_filters_are_those_in_whispers_own_file() {
    if !there(&repository(GGML), "make models") {
        return;
    }
    // Behind the header of 48 bytes: bands, bins, and the filters.
    let file = fs::read(repository(GGML)).unwrap();
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let (floats, _) = file[56..56 + 80 * mel::BINS * 4].as_chunks::<4>();

    let filters = mel::filters(80);

    assert_eq!((number(48), number(52)), (80, mel::BINS));
    assert_eq!(filters.len(), floats.len());
    for (n, (ours, theirs)) in filters.iter().zip(floats).enumerate() {
        let theirs = f32::from_le_bytes(*theirs);
        assert!((ours - theirs).abs() < 1e-6, "{n}: {ours}, not {theirs}");
    }
}
