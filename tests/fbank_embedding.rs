// SPDX-License-Identifier: MPL-2.0
//! Embedding models that take mel bands, by what their description says alone: a small one of our own
//! (tests/reference/tiny_embedding.py), through the registry as an element would use it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{GUARD, registry, repository, there};
use gstscribe::diarize::models::embedding_spec;
use gstscribe::dsp::fbank::{FbankOptions, Window};
use gstscribe::inference::manifest::Manifest;
use gstscribe::inference::onnx::arena::arena_stats;
use gstscribe::inference::onnx::embedding::{FbankModel, FbankSpec};
use gstscribe::inference::onnx::library;
use gstscribe::inference::{
    CancelToken, Embedder, EmbedderModel, EngineError, Footprint, VoiceVector,
};
use gstscribe::registry::{Class, Embedding, EmbeddingSpec, Lease, Registry, Request, Ticket};

include!("reference/sound.rs");

const TINY: &str = "tests/reference/tiny-embedding.onnx";
const RUNTIME: &str = "target/release/scribe/libonnxruntime.so.1";
const DIMENSION: usize = 16;
/// Seed and samples, as in tiny_embedding.py: short and whole, cut to 120 frames, cut to 288, two pieces of 800.
const SEGMENTS: [(u32, u32); 4] = [(1, 6_400), (2, 20_000), (3, 47_123), (4, 260_000)];

fn runtime() -> bool {
    there(&repository(RUNTIME), "make models")
}

fn segments() -> Vec<Arc<[f32]>> {
    let segments = SEGMENTS.iter();
    segments
        .map(|&(seed, length)| sound(seed, length).into())
        .collect()
}

/// What numpy computes for them.
fn reference() -> Vec<f32> {
    let bytes = std::fs::read(repository("tests/reference/tiny-embedding.f32")).unwrap();
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn spec(path: &Path) -> Result<FbankSpec, EngineError> {
    match embedding_spec(path.to_str().unwrap())? {
        EmbeddingSpec::Fbank(spec, _) => Ok(spec),
        other => panic!("{other:?}"),
    }
}

fn tiny() -> FbankSpec {
    spec(&repository(TINY)).unwrap()
}

fn lane() -> Box<dyn Embedder> {
    FbankModel::load(&tiny()).unwrap().lane().unwrap()
}

fn assert_near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let far = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(far <= tolerance, "{far} and not {tolerance}");
}

fn values(vectors: &[VoiceVector]) -> Vec<f32> {
    vectors.iter().flat_map(|v| v.values.clone()).collect()
}

fn leased(registry: &Registry) -> Lease<Embedding> {
    let request =
        Request::<Embedding>(embedding_spec(&repository(TINY).to_string_lossy()).unwrap());
    registry.acquire(request, &CancelToken::new()).unwrap()
}

fn answer(mut ticket: Ticket<VoiceVector>) -> Result<VoiceVector, EngineError> {
    ticket.wait(GUARD).expect("an answer")
}

#[test]
fn a_model_named_by_its_path_gives_the_vectors_that_its_description_promises() {
    if !runtime() {
        return;
    }
    let registry = registry();
    let lease = leased(&registry);

    let tickets: Vec<_> = segments()
        .into_iter()
        .map(|segment| lease.submit(segment, (), Class::File, None))
        .collect();
    let vectors: Vec<_> = tickets.into_iter().map(|t| answer(t).unwrap()).collect();

    assert_near(&values(&vectors), &reference(), 1e-4);
    for vector in &vectors {
        let length: f32 = vector.values.iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
}

#[test]
fn a_batch_of_many_lengths_gives_what_its_segments_give_alone() {
    if !runtime() {
        return;
    }
    let mut lane = lane();
    let pieces: Vec<Arc<[f32]>> = (1..=32)
        .map(|n| sound(n, 6_400 + n * 7_919 % 200_000).into())
        .collect();

    let together = lane.run(&pieces).unwrap();

    let alone = pieces.chunks(1).flat_map(|piece| lane.run(piece).unwrap());
    let alone: Vec<_> = alone.collect();
    assert_near(&values(&together), &values(&alone), 1e-5);
    let odd = values(&together)
        .chunks(DIMENSION)
        .filter(|v| **v == together[0].values[..])
        .count();
    assert_eq!(odd, 1, "each has its own");
}

#[test]
fn what_a_model_cannot_take_fails_alone_with_the_reason() {
    if !runtime() {
        return;
    }
    let registry = registry();
    let lease = leased(&registry);
    let short: Arc<[f32]> = sound(1, 6_399).into();
    let mut odd = sound(1, 16_000);
    odd[9_000] = f32::NAN;
    let good = segments().swap_remove(0);

    let tickets = [short, odd.into(), good].map(|s| lease.submit(s, (), Class::File, None));
    let [short, odd, good] = tickets.map(answer);

    let short = short.unwrap_err().to_string();
    assert!(
        short.contains("6399 samples") && short.contains("6400 or more"),
        "{short}"
    );
    let odd = odd.unwrap_err().to_string();
    assert!(odd.contains("NaN"), "{odd}");
    assert_near(&good.unwrap().values, &reference()[..DIMENSION], 1e-4);
}

/// The small model under a description in which `from` is `to`.
fn described(folder: &Path, from: &str, to: &str) -> PathBuf {
    let description = std::fs::read_to_string(repository(&format!("{TINY}.toml"))).unwrap();
    assert!(description.contains(from), "{from}");
    let path = folder.join("voices.onnx");
    std::fs::copy(repository(TINY), &path).unwrap();
    let beside = folder.join("voices.onnx.toml");
    std::fs::write(beside, description.replace(from, to)).unwrap();
    path
}

#[test]
fn contracts_that_are_not_served_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to, reason) in [
        (
            "sample_rate = 16_000",
            "sample_rate = 8_000",
            "8000 samples a second",
        ),
        ("\"kaldi-fbank\"", "\"mfcc\"", "it wants mfcc"),
        ("window = \"hamming\"", "window = \"blackman\"", "blackman"),
        ("window = \"hamming\"", "", "gives no window"),
        ("sample_scale = 32_768.0", "", "gives no sample_scale"),
        (
            "sample_scale = 32_768.0",
            "sample_scale = 0",
            "multiplied by 0",
        ),
        (
            "sample_scale = 32_768.0",
            "sample_scale = \"16 bits\"",
            "no number",
        ),
        ("mel_bins = 80", "mel_bins = 64", "frames\", 64]"),
        ("mel_bins = 80", "mel_bins = 80.5", "80.5 mel_bins"),
        ("mel_bins = 80", "mel_bins = 200", "cannot fill 200 bands"),
        ("high_hz = 8_000.0", "high_hz = 11_025.0", "11025 Hz"),
        (
            "frame_length_ms = 25",
            "frame_length_ms = 32",
            "frame_length_ms is 32",
        ),
        (
            "frame_shift_ms = 10",
            "frame_shift_ms = 12.5",
            "frame_shift_ms is 12.5",
        ),
        (
            "preemphasis = 0.97",
            "preemphasis = 97",
            "pre-emphasis is 97",
        ),
        ("dither = 0.0", "dither = 1.0", "dither is 1"),
        (
            "remove_dc = true",
            "remove_dc = false",
            "remove_dc is false",
        ),
        (
            "snip_edges = true",
            "snip_edges = false",
            "snip_edges is false",
        ),
        (
            "use_power = true",
            "use_power = false",
            "use_power is false",
        ),
        (
            "use_energy = false",
            "use_energy = true",
            "use_energy is true",
        ),
        ("log = true", "log = 1", "log is 1"),
        (
            "\"utterance\"",
            "\"window\"",
            "\"window\", and supported are utterance, none",
        ),
        (
            "mean_normalise = \"utterance\"",
            "",
            "gives no mean_normalise",
        ),
        (
            "mean_normalise",
            "min_samples = 399\nmean_normalise",
            "min_samples are not 400",
        ),
        (
            "shape = [\"batch\", 16]",
            "shape = [\"batch\", \"any\"]",
            "DIMENSION",
        ),
        ("inputs = [{", "outcomes = [{", "lists no inputs"),
    ] {
        let path = described(folder.path(), from, to);

        let error = embedding_spec(path.to_str().unwrap()).unwrap_err();

        assert!(
            matches!(&error, EngineError::Unsupported(why) if why.contains(reason)),
            "{to}: {error}"
        );
    }
}

#[test]
fn what_a_description_leaves_open_is_as_kaldi_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = described(folder.path(), "", "");
    let description = std::fs::read_to_string(repository(&format!("{TINY}.toml"))).unwrap();
    let needed = [
        "window",
        "sample_scale",
        "mel_bins",
        "mean_normalise",
        "features",
    ];
    let needed =
        |line: &str| line.contains(['[', '"']) || needed.iter().any(|n| line.starts_with(n));
    let short: Vec<_> = description.lines().filter(|line| needed(line)).collect();
    assert!(short.len() + 12 < description.lines().count(), "{short:?}");
    std::fs::write(folder.path().join("voices.onnx.toml"), short.join("\n")).unwrap();

    let spec = spec(&path).unwrap();

    assert_eq!(spec.options, FbankOptions::new(Window::Hamming, 32_768.0));
    assert_eq!(
        (spec.options, spec.min_samples),
        (tiny().options, tiny().min_samples)
    );
    assert!(spec.frame_bytes > tiny().frame_bytes, "no cost is named");
}

#[test]
fn window_scale_and_mean_are_what_the_description_says() {
    if !runtime() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let segment = [segments().swap_remove(0)];
    let vector = |from: &str, to: &str| {
        let spec = spec(&described(folder.path(), from, to)).unwrap();
        let lane = FbankModel::load(&spec).unwrap().lane();
        lane.unwrap().run(&segment).unwrap().remove(0).values
    };
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let hamming = vector("hamming", "hamming");

    for (from, to) in [
        ("hamming", "povey"),
        ("32_768.0", "1"),
        ("\"utterance\"", "\"none\""),
        ("preemphasis = 0.97", "preemphasis = 0"),
    ] {
        let other = vector(from, to);
        let alike = cosine(&hamming, &other);
        assert!(alike < 0.9999, "{to} changes nothing: {alike}");
    }
    assert_near(&hamming, &reference()[..DIMENSION], 1e-4);
}

#[test]
fn a_graph_that_is_not_what_its_description_says_is_refused_with_the_reason() {
    if !runtime() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (from, to, reason) in [
        (
            "\"feats\"",
            "\"waveform\"",
            "no input named waveform, but feats",
        ),
        (
            "\"embs\"",
            "\"xvector\"",
            "no output named xvector, but embs",
        ),
        ("[\"batch\", 16]", "[\"batch\", 512]", "its output embs is"),
        ("[\"batch\", 16]", "[\"batch\", 15]", "its output embs is"),
    ] {
        let spec = spec(&described(folder.path(), from, to)).unwrap();

        let error = FbankModel::load(&spec).err().unwrap();

        assert!(
            matches!(&error, EngineError::InvalidModel { why, .. } if why.contains(reason)),
            "{to}: {error}"
        );
    }
}

#[test]
fn the_models_of_the_manifest_are_served() {
    let manifest = Manifest::load(None).unwrap();
    for (name, dimension) in [("campplus", 512), ("resnet34-lm", 256)] {
        let entry = manifest.find(name).unwrap();

        let spec = FbankSpec::new(Path::new("/nowhere"), entry).unwrap();

        assert_eq!(spec.dimension, dimension);
        assert_eq!(spec.options, FbankOptions::new(Window::Hamming, 32_768.0));
        assert!(spec.mean_normalise);
    }
}

/// The model whose memory is looked at: the small one, or what `SCRIBE_TEST_FBANK` names, for whoever wants the figures of
/// another.
fn weighed() -> PathBuf {
    std::env::var_os("SCRIBE_TEST_FBANK").map_or(repository(TINY), PathBuf::from)
}

#[test]
fn nothing_grows_after_the_largest_batch() {
    if !runtime() {
        return;
    }
    if process::task().is_none() {
        process::run("nothing_grows_after_the_largest_batch", "growth");
        return;
    }
    let mut lane = FbankModel::load(&spec(&weighed()).unwrap())
        .unwrap()
        .lane()
        .unwrap();
    let warmed = arena_stats().unwrap();

    for run in 0..24 {
        let size = 1 + run * 31 % 32;
        let piece = |n: u32| sound(n, 6_400 + (run * 32 + n) * 7_919 % 250_000).into();
        let segments: Vec<Arc<[f32]>> = (0..size).map(piece).collect();
        lane.run(&segments).unwrap();
    }

    let ran = arena_stats().unwrap();
    assert_eq!(warmed.allocated, ran.allocated);
    assert_eq!(warmed.extensions, ran.extensions);
}

/// The most that a load and one lane may take.
fn total(footprint: &Footprint) -> u64 {
    footprint.weights_bytes + footprint.load_extra_bytes.max(footprint.lane_bytes)
}

#[test]
#[allow(clippy::print_stderr, reason = "figures for the documents")]
fn a_model_takes_what_its_footprint_promises_and_at_least_half_of_it() {
    if !runtime() {
        return;
    }
    let name = "a_model_takes_what_its_footprint_promises_and_at_least_half_of_it";
    if let Some(task) = process::task() {
        let items: usize = task.parse().unwrap();
        library::environment().unwrap();
        let path = weighed();
        let segments: Vec<Arc<[f32]>> = vec![sound(1, 250_000).into(); items];
        let before = process::resident();
        process::reset_peak();
        let mut spec = spec(&path).unwrap();
        spec.max_batch = items;
        let mut lane = FbankModel::load(&spec).unwrap().lane().unwrap();
        for _ in 0..2 {
            lane.run(&segments).unwrap();
        }
        let peak = process::peak() - before;
        let arena = arena_stats().unwrap().max_in_use;
        let promised = total(&spec.footprint(path.metadata().unwrap().len()));
        process::tell(&format!("{peak} {arena} {promised}"));
        return;
    }
    for items in [1, 32] {
        let said = process::run(name, &items.to_string());
        let mut figures = said[0]
            .split(' ')
            .map(|figure| figure.parse::<f64>().unwrap());
        let [peak, arena, promised] = std::array::from_fn(|_| figures.next().unwrap());
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        eprintln!(
            "batch of {items}: {:.1} MiB ({:.1} of the arena), promised {:.1}",
            mib(peak),
            mib(arena),
            mib(promised)
        );
        assert!(peak <= promised && arena <= promised, "{items}");
        assert!(promised <= 2.0 * peak, "{items}");
    }
}
