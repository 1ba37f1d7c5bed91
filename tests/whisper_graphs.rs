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
use gstscribe::inference::halves;
use gstscribe::inference::onnx::checked::{self, Element, Port, Ports};
use gstscribe::inference::onnx::{cross, past};
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
    import(&source, "own", &format!("onnx-{kind}"), folder.path());
    files(folder, "own", kind)
}

/// Takes a model into the folder of models.
fn import(source: &Path, name: &str, kind: &str, folder: &Path) {
    let done = Command::new(env!("CARGO_BIN_EXE_scribe-models"))
        .arg("import")
        .arg(source)
        .args(["--name", name, "--type", kind, "--dir"])
        .arg(folder.join("models"))
        .output()
        .unwrap();
    let news = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{news}");
}

fn files(folder: &TempDir, name: &str, kind: &str) -> [PathBuf; 2] {
    let models = folder.path().join("models");
    ["encoder", "decoder"].map(|side| models.join(format!("{name}-onnx-{kind}.{side}.onnx")))
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

/// The same of a graph with our operators.
fn decoder_ports_of_operators(alignment: u64) -> Ports {
    let Ports { outputs, .. } = decoder_ports(alignment);
    let shape = |free: usize, rest: &[usize]| -> Vec<Option<u64>> {
        let rest = rest.iter().map(|n| Some(*n as u64));
        std::iter::repeat_n(None, free).chain(rest).collect()
    };
    let sound = shape(1, &[HEADS, cross::PADDED / cross::TILE, cross::BLOCK]);
    let mut ports = Ports {
        inputs: vec![whole("tokens"), whole("pos"), whole("index")],
        outputs: outputs.into_iter().take(2).collect(),
    };
    for layer in 0..MODEL.layers {
        ports.inputs.extend([
            Port::u16(&format!("past_{layer}"), &shape(1, &[2, HEADS, HEAD])),
            Port::u8(&format!("cross_k_{layer}"), &sound),
            Port::u8(&format!("cross_v_{layer}"), &sound),
        ]);
        let new = shape(2, &[2, HEADS, HEAD]);
        ports.outputs.push(Port::u16(&format!("new_{layer}"), &new));
    }
    ports
}

/// A tensor: its shape and its values.
type Floats = (Vec<usize>, Vec<f32>);
type Tensors = BTreeMap<String, Floats>;

/// The sound's keys or values as our operator takes them.
fn sound_bytes(name: &str, values: &[f32]) -> (Vec<usize>, Vec<u8>) {
    let windows = values.len() / (HEADS * HEAD * cross::POSITIONS);
    let tiles = cross::PADDED / cross::TILE;
    let mut bytes = vec![0; windows * HEADS * tiles * cross::BLOCK];
    match name.starts_with("cross_k") {
        true => cross::arrange_keys(values, &mut bytes),
        false => cross::arrange_values(values, &mut bytes),
    }
    (vec![windows, HEADS, tiles, cross::BLOCK], bytes)
}

/// What our operator wants of the texts instead of the mask and `[rows, H, 64, P]`, `[rows, H, P, 64]`: a list of entries for
/// each row, here all of its own, and the entries, here in disorder.
fn entries(cache: &Cache) -> (Vec<i64>, Vec<(String, Vec<u16>)>) {
    let count = (cache.rows * cache.capacity).max(1);
    let place = |row: usize, column: usize| count - 1 - (row * cache.capacity + column);
    let index = (0..cache.rows).flat_map(|row| {
        let own = (0..cache.capacity).map(move |column| place(row, column) as i64);
        own.chain((cache.capacity == 0).then_some(0))
    });
    let size = past::entry(HEADS);
    let of_layer = |layer: usize| {
        let mut pool = vec![halves::from_f32(7.0); count * size];
        let keys = &cache.tensors[&format!("self_k_{layer}")].1;
        let values = &cache.tensors[&format!("self_v_{layer}")].1;
        for row in 0..cache.rows {
            for (head, column, d) in (0..HEADS).flat_map(|head| {
                (0..cache.capacity).flat_map(move |c| (0..HEAD).map(move |d| (head, c, d)))
            }) {
                let own = row * HEADS + head;
                let entry = &mut pool[place(row, column) * size..][..size];
                let key = keys[(own * HEAD + d) * cache.capacity + column];
                let value = values[(own * cache.capacity + column) * HEAD + d];
                entry[head * HEAD + d] = halves::from_f32(key);
                entry[(HEADS + head) * HEAD + d] = halves::from_f32(value);
            }
        }
        (format!("past_{layer}"), pool)
    };
    (index.collect(), (0..MODEL.layers).map(of_layer).collect())
}

/// The new tokens' keys `[rows, H, 64, n]` and values `[rows, H, n, 64]` out of their entries.
fn out_of_entries(name: &str, shape: &[usize], entries: &[u16]) -> [(String, Floats); 2] {
    let (rows, tokens) = (shape[0], shape[1]);
    let at = |row: usize, token: usize, part: usize, head: usize, d: usize| {
        let entry = (row * tokens + token) * past::entry(HEADS);
        halves::to_f32(entries[entry + (part * HEADS + head) * HEAD + d])
    };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for row in 0..rows {
        for head in 0..HEADS {
            keys.extend((0..HEAD).flat_map(|d| (0..tokens).map(move |t| at(row, t, 0, head, d))));
            values.extend((0..tokens).flat_map(|t| (0..HEAD).map(move |d| at(row, t, 1, head, d))));
        }
    }
    let layer = name.trim_start_matches("new_");
    [
        (
            format!("new_k_{layer}"),
            (vec![rows, HEADS, HEAD, tokens], keys),
        ),
        (
            format!("new_v_{layer}"),
            (vec![rows, HEADS, tokens, HEAD], values),
        ),
    ]
}

fn run(
    session: &mut Session,
    tokens: &[(&str, Floats)],
    whole: &[(&str, Vec<i64>)],
    cache: Option<&Cache>,
) -> Tensors {
    let takes_bytes = |name: &str| {
        let input = session.inputs().iter().find(|input| input.name() == name);
        input.unwrap().dtype().tensor_type() == Some(TensorElementType::Uint8)
    };
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
    for (name, (shape, values)) in tokens {
        if takes_bytes(name) {
            let tensor = Tensor::from_array(sound_bytes(name, values)).unwrap();
            inputs.push(((*name).into(), tensor.into()));
            continue;
        }
        let tensor = TensorRef::from_array_view((shape.clone(), &values[..])).unwrap();
        inputs.push(((*name).into(), tensor.into()));
    }
    let masked = tokens.iter().find(|(name, _)| *name == "mask");
    let rows = match cache {
        Some(cache) => cache.rows,
        None => masked.map_or(1, |(_, (shape, _))| shape[0]),
    };
    for (name, values) in whole {
        let shape = vec![rows, values.len() / rows];
        let tensor = TensorRef::from_array_view((shape, &values[..])).unwrap();
        inputs.push(((*name).into(), tensor.into()));
    }
    if let Some(cache) = cache {
        let (index, pools) = entries(cache);
        let shape = vec![rows, index.len() / rows];
        inputs.push((
            "index".into(),
            Tensor::from_array((shape, index)).unwrap().into(),
        ));
        for (name, pool) in pools {
            let shape = vec![pool.len() / past::entry(HEADS), 2, HEADS, HEAD];
            inputs.push((
                name.into(),
                Tensor::from_array((shape, pool)).unwrap().into(),
            ));
        }
    }
    let outputs = session.run(inputs).unwrap();
    let mut found = Tensors::new();
    for (name, value) in &outputs {
        let lengths = |shape: &[i64]| -> Vec<usize> {
            shape.iter().map(|&n| usize::try_from(n).unwrap()).collect()
        };
        if let Ok((shape, entries)) = value.try_extract_tensor::<u16>() {
            found.extend(out_of_entries(name, &lengths(shape), entries));
            continue;
        }
        let (shape, values) = value.try_extract_tensor::<f32>().unwrap();
        found.insert(name.to_owned(), (lengths(shape), values.to_vec()));
    }
    found
}

/// A window that looks like sound: -1 to 1, and nothing repeats.
fn window(seed: f32, frames: usize) -> Floats {
    let value = |n: usize| ((n as f32 * 0.37 + seed).sin() * 43.7).sin();
    (vec![1, frames, 128], (0..frames * 128).map(value).collect())
}

fn encode(path: &Path, seed: f32, frames: usize) -> Tensors {
    let mut encoder = checked::session(path, &encoder_ports()).unwrap();
    run(&mut encoder, &[("mel", window(seed, frames))], &[], None)
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
    let whole = [("tokens", tokens.to_vec()), ("pos", positions.collect())];
    let sound = cross
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()));
    if decoder.inputs().iter().any(|input| input.name() == "index") {
        let sound: Vec<(&str, Floats)> = sound.collect();
        return run(decoder, &sound, &whole, Some(cache));
    }
    let texts = cache
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()));
    let floats: Vec<(&str, Floats)> = sound.chain(texts).chain([("mask", mask)]).collect();
    run(decoder, &floats, &whole, None)
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
    let mut decoder = checked::session(&decoder, &decoder_ports_of_operators(3)).unwrap();
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
    // A caller that keeps it in another form is refused.
    let wrong = checked::session(
        &folder.path().join("models/own-onnx-int8.decoder.onnx"),
        &decoder_ports(3),
    );
    let why = wrong.unwrap_err().to_string();
    assert!(why.contains("no input named mask"), "{why}");
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
        "int8" => decoder_ports_of_operators(2),
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
    let decoder = checked::session(&decoder, &decoder_ports_of_operators(3)).unwrap();

    let note = |session: &Session, key: &str| session.metadata().unwrap().custom(key);

    let sizes = note(&decoder, "whisper").unwrap();
    assert_eq!(note(&encoder, "whisper").as_deref(), Some(sizes.as_str()));
    let wanted = serde_json::json!({
        "width": 128, "mels": 128, "heads": 2, "enc": 2, "dec": 2, "vocab": 51_866, "type": "int8",
        "alignment_heads": [[0, 1], [1, 0], [1, 1]], "operators": 1,
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

/// The same model as transformers writes it: parts of it under names of their own, and no bias for keys.
fn safetensors(model: &[u8]) -> Vec<u8> {
    let names = [
        ("position_encodings/encodings", "embed_positions.weight"),
        ("embeddings/weight", "embed_tokens.weight"),
        ("ffn/layer_norm", "final_layer_norm"),
        ("ffn/linear_0", "fc1"),
        ("ffn/linear_1", "fc2"),
        ("self_attention/layer_norm", "self_attn_layer_norm"),
        ("self_attention/linear_0", "self_attn.{q,k,v}_proj"),
        ("self_attention/linear_1", "self_attn.{out}_proj"),
        ("attention/layer_norm", "encoder_attn_layer_norm"),
        ("attention/linear_0", "encoder_attn.{q}_proj"),
        ("attention/linear_1", "encoder_attn.{k,v}_proj"),
        ("attention/linear_2", "encoder_attn.{out}_proj"),
        ("gamma", "weight"),
        ("beta", "bias"),
        ("/layer_norm/", ".layer_norm/"),
        ("/layer_", ".layers."),
        ("/", "."),
    ];
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape, bytes) in ct2::variables(model) {
        let name = names
            .iter()
            .fold(name, |name, (from, to)| name.replacen(from, to, 9));
        let (before, projections, after) = match name.split_once('{') {
            Some((before, rest)) => {
                let (inner, after) = rest.split_once('}').unwrap();
                (before.to_owned(), inner.split(',').collect(), after)
            }
            None => (name.clone(), vec![""], ""),
        };
        let size = bytes.len() / projections.len();
        for (own, bytes) in projections.iter().zip(bytes.chunks_exact(size)) {
            let mut shape = shape.clone();
            shape[0] /= projections.len();
            let name = format!("model.{before}{own}{after}");
            if name.ends_with("k_proj.bias") {
                continue;
            }
            let at = data.len();
            data.extend(bytes);
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, data.len()]});
            header.insert(name, entry);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

fn assert_same(found: &Path, wanted: &Path) {
    let same = fs::read(found).unwrap() == fs::read(wanted).unwrap();
    assert!(same, "{}", found.display());
}

#[test]
fn what_comes_out_of_safetensors_is_what_comes_out_of_ctranslate2() {
    let folder = TempDir::new().unwrap();
    let config = r#"{"alignment_heads": [[1, 1], [0, 1]]}"#;
    let source = folder.path().join("transformers");
    fs::create_dir_all(&source).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(source.join(name), bytes).unwrap();
    put("model.safetensors", &safetensors(&MODEL.model()));
    put("vocabulary.txt", MODEL.vocabulary().as_bytes());
    put("config.json", br#"{"encoder_attention_heads": 2}"#);
    put("generation_config.json", config.as_bytes());
    for kind in ["f32", "int8"] {
        let wanted = graphs(&folder, kind, Some(config));

        import(&source, "same", &format!("onnx-{kind}"), folder.path());

        let found = files(&folder, "same", kind);
        found
            .iter()
            .zip(&wanted)
            .for_each(|(f, w)| assert_same(f, w));
    }
    // Without a fast tokenizer there are the tokens that are text alone.
    let text = MODEL.vocabulary();
    let text = text.lines().take(50_257).enumerate();
    let vocab: BTreeMap<&str, usize> = text.map(|(n, token)| (token, n)).collect();
    put("vocab.json", &serde_json::to_vec(&vocab).unwrap());
    fs::remove_file(source.join("vocabulary.txt")).unwrap();
    import(&source, "slow", "onnx-int8", folder.path());
    let [slow, same] = ["slow", "same"].map(|name| files(&folder, name, "int8"));
    assert_same(&slow[0], &same[0]);

    for (name, source) in [("own", &folder.path().join("own")), ("slow", &source)] {
        import(source, name, "q8_0", folder.path());
    }
    let ggml = |name: &str| folder.path().join(format!("models/ggml-{name}-q8_0.bin"));
    assert_same(&ggml("slow"), &ggml("own"));
}

#[test]
fn graphs_out_of_a_ggml_file_come_near_to_those_of_the_model_it_was_made_of() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let [exact, _] = graphs(&folder, "f32", None);
    let exact = encode(&exact, 0.5, FRAMES);
    for (kind, most) in [("f16", 0.003), ("q8_0", 0.03), ("q5_1", 0.2)] {
        import(&folder.path().join("own"), "own", kind, folder.path());
        let ggml = match kind {
            "f16" => "ggml-own.bin".to_owned(),
            _ => format!("ggml-own-{kind}.bin"),
        };

        import(
            &folder.path().join("models").join(ggml),
            kind,
            "onnx-f32",
            folder.path(),
        );

        let [encoder, decoder] = files(&folder, kind, "f32");
        for (name, (_, found)) in encode(&encoder, 0.5, FRAMES) {
            let far = far(&found, &exact[&name].1);
            assert!((1e-6..most).contains(&far), "{kind}, {name}: {far}");
        }
        let heads = (MODEL.layers / 2..MODEL.layers).count() * HEADS;
        let decoder = checked::session(&decoder, &decoder_ports(heads as u64)).unwrap();
        let vocabulary = decoder.metadata().unwrap().custom("vocabulary").unwrap();
        let tokens: Vec<&str> = vocabulary.split('\n').collect();
        assert_eq!((tokens.len(), tokens[4_711]), (50_256, "\u{120}t4711"));
    }
}

#[test]
fn the_default_models_encoder_is_that_out_of_its_ggml_file() {
    let pinned = repository("models/whisper-tiny.en-onnx-int8.encoder.onnx");
    if !there(&repository(GGML), "make models") || !there(&pinned, "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();

    import(&repository(GGML), "again", "onnx-int8", folder.path());

    let [encoder, _] = files(&folder, "again", "int8");
    assert!(fs::read(encoder).unwrap() == fs::read(pinned).unwrap());
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
