// SPDX-License-Identifier: MPL-2.0
//! Models on ONNX Runtime, with the real files: what they answer, what they take, what is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{GUARD, registry, repository, there};
use gst::prelude::*;
use gstscribe::diarize::models::{embedding_spec, segmentation_spec};
use gstscribe::inference::onnx::arena::{DEFAULT_ARENA_CAP, arena_cap, arena_stats, set_arena_cap};
use gstscribe::inference::onnx::embedding::{WaveformModel, WaveformSpec};
use gstscribe::inference::onnx::segmentation::{PyannoteModel, PyannoteSpec};
use gstscribe::inference::onnx::vad::{SileroModel, SileroSpec};
use gstscribe::inference::onnx::{checked, library};
use gstscribe::inference::{
    CancelToken, EmbedderModel, EngineError, Footprint, SEGMENTATION_CLASSES, SEGMENTATION_WINDOW,
    SegmenterModel, VAD_FRAME, VadBlock, VadModel, VadState, VoiceVector,
};
use gstscribe::registry::{
    Class, Embedding, EmbeddingSpec, Lease, Request, Segmentation, SegmentationSpec,
};

const GE2E: &str = "models/ge2e-resemblyzer.onnx";
const PYANNOTE: &str = "models/segmentation-3.0.onnx";
const SILERO: &str = "models/silero-vad-6.2-rows.onnx";
/// The graph that the other was made of.
const SILERO_ORIGINAL: &str = "models/silero_vad_16k_sequence.onnx";
const RUNTIME: &str = "target/release/scribe/libonnxruntime.so.1";
const SECOND: usize = 16_000;
const MIB: u64 = 1 << 20;

/// Whether the real models and ONNX Runtime are here.
fn models() -> bool {
    [GE2E, PYANNOTE, SILERO]
        .iter()
        .all(|model| there(&repository(model), "make models"))
        && there(&repository(RUNTIME), "make models")
}

fn ge2e() -> WaveformSpec {
    match embedding_spec("ge2e").unwrap() {
        EmbeddingSpec::Waveform(spec, _) => spec,
        other => unreachable!("{other:?} takes samples"),
    }
}

fn pyannote() -> PyannoteSpec {
    match segmentation_spec("segmentation-3.0").unwrap() {
        SegmentationSpec::Pyannote(spec, _) => spec,
        SegmentationSpec::Fake(name) => unreachable!("{name} is no fake"),
    }
}

fn size(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

/// A recording of the repository at 16 kHz.
fn recording(name: &str) -> Vec<f32> {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! \
         audio/x-raw,format=F32LE,rate=16000,channels=1 ! appsink name=out sync=false",
        repository("tests/data").join(name).display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("out").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut samples = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let bytes = sample.buffer().unwrap().map_readable().unwrap();
        let (floats, _) = bytes.as_chunks::<4>();
        samples.extend(floats.iter().map(|s| f32::from_le_bytes(*s)));
    }
    pipeline.set_state(gst::State::Null).unwrap();
    samples
}

/// Utterances of `demo.opus` with their voices, as the page beside it says.
fn utterances() -> Vec<(String, Arc<[f32]>)> {
    let sound = recording("demo.opus");
    let table = std::fs::read_to_string(repository("tests/data/demo.ref.tsv")).unwrap();
    let at = |seconds: &str| (seconds.parse::<f64>().unwrap() * SECOND as f64) as usize;
    table
        .lines()
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let samples = sound[at(columns[0])..at(columns[1])].into();
            (columns[3].to_owned(), samples)
        })
        .collect()
}

/// 32 pieces of speech, of 0.4 to 6 seconds.
fn pieces() -> Vec<Arc<[f32]>> {
    let sound = recording("demo.opus");
    let piece = |n: usize| {
        let start = n * sound.len() / 40;
        let length = (6400 + n * 7919 % 89_600).min(sound.len() - start);
        Arc::from(&sound[start..start + length])
    };
    (0..32).map(piece).collect()
}

fn cosine(a: &VoiceVector, b: &VoiceVector) -> f32 {
    a.values.iter().zip(&b.values).map(|(a, b)| a * b).sum()
}

fn silero(file: &str) -> SileroModel {
    let path = repository(file);
    SileroModel::load(&SileroSpec { path }).unwrap()
}

/// The most that any value differs by, as a share of it where it is above 1.
fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    let share = |(a, b): (&f32, &f32)| (a - b).abs() / a.abs().max(1.0);
    pairs.map(share).fold(0.0, f32::max)
}

#[test]
fn both_voice_activity_graphs_hear_the_same_in_blocks_of_any_size() {
    if !models()
        || !there(
            &repository(SILERO_ORIGINAL),
            "scripts/models.sh silero-vad-6.2-sequence",
        )
    {
        return;
    }
    let (ours, theirs) = (silero(SILERO), silero(SILERO_ORIGINAL));
    let (mut ours, mut theirs) = (ours.lane().unwrap(), theirs.lane().unwrap());
    for name in ["speech_short.flac", "demo.opus"] {
        let sound = recording(name);
        for frames in [1, 7, 32, 33, 500] {
            let mut states = [VadState::default(), VadState::default()];
            let mut all = Vec::new();
            for samples in sound[..sound.len() / VAD_FRAME * VAD_FRAME].chunks(frames * VAD_FRAME) {
                let [a, b] = states.map(|state| VadBlock {
                    samples: samples.to_vec(),
                    state,
                });
                let (a, b) = (ours.run(a).unwrap(), theirs.run(b).unwrap());
                let apart = [
                    furthest(&b.probs, &a.probs),
                    furthest(&b.state.h, &a.state.h),
                    furthest(&b.state.c, &a.state.c),
                ];
                // The state adds up for as long as somebody speaks, to 76 in a minute, and roundings with it: worked out
                // with 64 bits it is 4e-5 from the original's.
                let near = apart[0] <= 1e-5 && apart[1..].iter().all(|apart| *apart <= 2e-4);
                assert!(near, "{name}, blocks of {frames}: {apart:?}");
                all.extend(a.probs);
                states = [a.state, b.state];
            }
            let [speech, silence] = [all.iter().any(|p| *p > 0.9), all.iter().any(|p| *p < 0.1)];
            assert!(speech && silence, "{name} has speech and silence");
        }
    }
}

fn assert_same(a: &[VoiceVector], b: &[VoiceVector]) {
    assert_eq!(a.len(), b.len());
    for (n, (a, b)) in a.iter().zip(b).enumerate() {
        let far = a.values.iter().zip(&b.values);
        let far = far.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far <= 1e-5, "vector {n} differs by {far}");
    }
}

#[test]
fn ge2e_gives_the_vector_that_resemblyzer_gives() {
    if !models() {
        return;
    }
    // The graph's own sound is level enough to stay as it is, and a single window long.
    let sound: Arc<[f32]> = (0..25_840)
        .map(|k| ((k * 37 % 401) as f32 - 200.0) / 800.0)
        .collect();
    let model = WaveformModel::load(&ge2e()).unwrap();

    let vector = model.lane().unwrap().run(&[sound]).unwrap().remove(0);

    // From a plain LSTM over the original weights.
    let largest = [
        (15, 0.2310),
        (9, 0.2186),
        (137, 0.2149),
        (89, 0.1995),
        (2, 0.1841),
        (208, 0.1821),
    ];
    assert_eq!(vector.values.len(), 256);
    for (place, value) in largest {
        let found = vector.values[place];
        assert!(
            (found - value).abs() < 0.0005,
            "{place}: {found}, not {value}"
        );
    }
}

#[test]
fn a_voice_is_more_like_itself_than_like_another() {
    if !models() {
        return;
    }
    let utterances = utterances();
    let segments: Vec<Arc<[f32]>> = utterances.iter().map(|(_, s)| Arc::clone(s)).collect();
    let model = WaveformModel::load(&ge2e()).unwrap();

    let vectors = model.lane().unwrap().run(&segments).unwrap();

    let (mut same, mut other) = (Vec::new(), Vec::new());
    for (n, a) in vectors.iter().enumerate() {
        assert!((cosine(a, a) - 1.0).abs() < 1e-5);
        for (m, b) in vectors.iter().enumerate().skip(n + 1) {
            let alike = utterances[n].0 == utterances[m].0;
            if alike { &mut same } else { &mut other }.push(cosine(a, b));
        }
    }
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    assert!(
        mean(&same) > mean(&other) + 0.15,
        "{} against {}",
        mean(&same),
        mean(&other)
    );
}

#[test]
fn ten_seconds_of_speech_have_589_frames_whose_probabilities_sum_to_1() {
    if !models() {
        return;
    }
    let sound = recording("demo.opus");
    // Somebody reads all the time from 1.1 s to 11.5 s.
    let speech: Arc<[f32]> = sound[SECOND * 11 / 10..][..SEGMENTATION_WINDOW].into();
    let model = PyannoteModel::load(&pyannote()).unwrap();

    let scores = model.lane().unwrap().run(&[speech]).unwrap().remove(0);

    let frames: Vec<&[f32]> = scores.scores.chunks(SEGMENTATION_CLASSES).collect();
    assert_eq!(frames.len(), 589);
    for frame in &frames {
        let sum: f32 = frame.iter().map(|score| score.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{frame:?}");
    }
    let talks = frames.iter().filter(|frame| frame[0].exp() < 0.5).count();
    assert!(talks > 500, "somebody talks in {talks} of 589 frames");
}

#[test]
fn a_short_window_is_filled_with_silence() {
    if !models() {
        return;
    }
    let sound = recording("speech_short.flac");
    let mut filled = sound.clone();
    filled.resize(SEGMENTATION_WINDOW, 0.0);
    let model = PyannoteModel::load(&pyannote()).unwrap();
    let mut lane = model.lane().unwrap();

    let scores = lane
        .run(&[sound.into(), filled.into(), Arc::from([])])
        .unwrap();

    assert_eq!(scores[0], scores[1]);
    assert_eq!(scores[2].scores.len(), 589 * SEGMENTATION_CLASSES);
}

#[test]
fn a_batch_gives_what_its_items_give_alone() {
    if !models() {
        return;
    }
    let pieces = pieces();
    let windows = &pieces[..6];
    let embeddings = WaveformModel::load(&ge2e()).unwrap();
    let mut embedder = embeddings.lane().unwrap();
    let segmentation = PyannoteModel::load(&pyannote()).unwrap();
    let mut segmenter = segmentation.lane().unwrap();

    let together = embedder.run(&pieces).unwrap();
    let alone = pieces
        .chunks(1)
        .flat_map(|piece| embedder.run(piece).unwrap());
    assert_same(&together, &alone.collect::<Vec<_>>());

    let together = segmenter.run(windows).unwrap();
    for (window, scores) in windows.chunks(1).zip(&together) {
        let alone = segmenter.run(window).unwrap().remove(0);
        for (a, b) in alone.scores.iter().zip(&scores.scores) {
            assert!((a.exp() - b.exp()).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn faint_speech_gives_the_vector_of_loud_speech() {
    if !models() {
        return;
    }
    let segment = Arc::clone(&utterances()[0].1);
    let level = |gain: f32| segment.iter().map(|s| s * gain).collect::<Arc<[f32]>>();
    let model = WaveformModel::load(&ge2e()).unwrap();
    let mut lane = model.lane().unwrap();

    // -60 and -80 dBFS or so: both are amplified to -30.
    let vectors = lane.run(&[level(0.01), level(0.001)]).unwrap();

    assert!(cosine(&vectors[0], &vectors[1]) > 0.9999);
}

#[test]
fn a_session_made_anew_answers_as_before_and_only_from_the_same_bytes() {
    if !models() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voice.onnx");
    std::fs::copy(repository(GE2E), &path).unwrap();
    let spec = WaveformSpec {
        path: path.clone(),
        ..ge2e()
    };
    let model = WaveformModel::load(&spec).unwrap();
    let mut lane = model.lane().unwrap();
    let pieces = &pieces()[..3];
    let before = lane.run(pieces).unwrap();

    lane.rebuild().unwrap();
    assert_same(&before, &lane.run(pieces).unwrap());

    std::fs::copy(repository(SILERO), &path).unwrap();
    let refused = lane.rebuild().unwrap_err().to_string();
    assert!(refused.contains("it was replaced"), "{refused}");
    let still = lane.run(pieces).unwrap_err().to_string();
    assert!(still.contains("it was replaced"), "{still}");

    std::fs::copy(repository(GE2E), &path).unwrap();
    assert_same(&before, &lane.run(pieces).unwrap());
}

#[test]
fn what_a_model_cannot_take_is_an_error_that_names_it() {
    if !models() {
        return;
    }
    let embeddings = WaveformModel::load(&ge2e()).unwrap();
    let segmentation = PyannoteModel::load(&pyannote()).unwrap();
    let short: Arc<[f32]> = vec![0.1; 399].into();
    let long: Arc<[f32]> = vec![0.1; SEGMENTATION_WINDOW + 1].into();
    let odd: Arc<[f32]> = vec![f32::NAN; SECOND].into();

    let mut embedder = embeddings.lane().unwrap();
    let too_short = embedder.run(&[short]).unwrap_err().to_string();
    let not_a_number = embedder.run(&[Arc::clone(&odd)]).unwrap_err().to_string();
    let mut segmenter = segmentation.lane().unwrap();
    let too_long = segmenter.run(&[long]).unwrap_err().to_string();

    assert!(too_short.contains("399 samples"), "{too_short}");
    assert!(not_a_number.contains("NaN"), "{not_a_number}");
    assert!(too_long.contains("160001 samples"), "{too_long}");
    assert!(segmenter.run(&[odd]).is_err());
}

/// Writes `bytes` under `name` and says why they are refused as a voice embedding model.
fn refusal(folder: &Path, name: &str, bytes: &[u8]) -> EngineError {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    let spec = WaveformSpec { path, ..ge2e() };
    WaveformModel::load(&spec).err().expect("it is refused")
}

#[test]
fn files_that_are_no_such_model_are_refused_with_the_reason() {
    if !models() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read(repository(GE2E)).unwrap();
    let read = |model: &str| std::fs::read(repository(model)).unwrap();

    for (name, bytes, reason) in [
        ("empty", Vec::new(), "no graph"),
        ("text", b"# a readme\n".repeat(100), "no ONNX file"),
        ("half", good[..good.len() / 2].to_vec(), "cut short"),
        (
            "other",
            read(PYANNOTE),
            "no input named waveform, but input",
        ),
        (
            "silero",
            read(SILERO),
            "no input named waveform, but input, h, c",
        ),
        ("whisper", read("models/ggml-tiny.en-q8_0.bin"), ""),
    ] {
        let error = refusal(folder.path(), name, &bytes);
        assert!(
            matches!(&error, EngineError::InvalidModel { why, .. } if why.contains(reason)),
            "{name}: {error}"
        );
    }
}

#[test]
fn weights_that_make_no_numbers_are_refused() {
    if !models() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let damaged = |model: &str, from_end: usize, byte: u8| {
        let mut bytes = std::fs::read(repository(model)).unwrap();
        let at = bytes.len() - from_end;
        bytes[at..at + 3000].fill(byte);
        bytes
    };
    // Both are weights: of an LSTM, which gives numbers whatever it is given, and of the last layer.
    let (lstm, last_layer) = (3_000_000, 4000);
    let (no_number, huge) = (0xff, 0x7f);
    let path = folder.path().join("segmentation.onnx");
    std::fs::write(&path, damaged(PYANNOTE, last_layer, huge)).unwrap();

    let ge2e = refusal(folder.path(), "nan.onnx", &damaged(GE2E, lstm, no_number)).to_string();
    let spec = PyannoteSpec { path, ..pyannote() };
    let pyannote = PyannoteModel::load(&spec).err().unwrap().to_string();

    assert!(ge2e.contains("no numbers"), "{ge2e}");
    assert!(pyannote.contains("the output holds"), "{pyannote}");
}

/// A field of protobuf with bytes in it.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    out.extend(varint(payload.len() as u64));
    out.extend(payload);
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// An ONNX model of two hundred bytes with the ports of GE2E. It adds to its input the largest of `zeros` zeros, a
/// constant to whoever works out constants beforehand.
fn model_of_zeros(zeros: u64) -> Vec<u8> {
    let node = |kind: &str, inputs: &[&str], output: &str| {
        let mut node: Vec<u8> = inputs.iter().flat_map(|i| field(1, i.as_bytes())).collect();
        node.extend(field(2, output.as_bytes()));
        node.extend(field(4, kind.as_bytes()));
        field(1, &node)
    };
    let float = [8, 1];
    let port = |name: &str, last: &[u8]| {
        let batch = field(1, &field(2, b"batch"));
        let shape = [batch, field(1, last)].concat();
        let tensor = field(1, &[&float[..], &field(2, &shape)].concat());
        [field(1, name.as_bytes()), field(2, &tensor)].concat()
    };
    let shape = [
        vec![8, 1, 16, 7],
        field(8, b"shape"),
        field(9, &zeros.to_le_bytes()),
    ]
    .concat();
    let graph = [
        node("ConstantOfShape", &["shape"], "zeros"),
        node("ReduceMax", &["zeros"], "zero"),
        node("Add", &["waveform", "zero"], "embedding"),
        field(2, b"zeros"),
        field(5, &shape),
        field(11, &port("waveform", &field(2, b"samples"))),
        field(12, &port("embedding", &[&[8][..], &varint(256)].concat())),
    ]
    .concat();
    // IR version 8, the graph, operators of version 15.
    [vec![8, 8], field(7, &graph), field(8, &[16, 15])].concat()
}

#[test]
fn a_shape_of_half_a_gigabyte_in_a_small_file_gets_no_memory() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run(
            "a_shape_of_half_a_gigabyte_in_a_small_file_gets_no_memory",
            "cap",
        );
        return;
    }
    set_arena_cap(64 * MIB).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zeros.onnx");
    let load = |zeros: u64| {
        std::fs::write(&path, model_of_zeros(zeros)).unwrap();
        let spec = WaveformSpec {
            path: path.clone(),
            // So that the small one is a model of its kind.
            window_samples: 256,
            min_samples: 256,
            ..ge2e()
        };
        WaveformModel::load(&spec).map(drop)
    };
    let small = load(1000);
    let before = process::resident();
    process::reset_peak();

    // 512 MiB: less than what ONNX Runtime itself would refuse to work out.
    let large = load(1 << 27);

    let taken = process::peak() - before;
    assert_eq!(small, Ok(()));
    assert!(
        matches!(large, Err(EngineError::OutOfMemory { .. })),
        "{large:?}"
    );
    assert!(taken < 100 * MIB, "{taken} bytes for a file of 200");
}

#[test]
fn what_is_no_readable_file_is_not_read() {
    if !models() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let load = |path: PathBuf| {
        let spec = WaveformSpec { path, ..ge2e() };
        WaveformModel::load(&spec).err().unwrap().to_string()
    };
    // A hole takes no room on the disk.
    let huge = folder.path().join("huge.onnx");
    let file = std::fs::File::create(&huge).unwrap();
    file.set_len(checked::MODEL_BYTES_MAX + 1).unwrap();
    let began = std::time::Instant::now();

    let missing = load(folder.path().join("missing.onnx"));
    let directory = load(folder.path().to_owned());
    let device = load("/dev/zero".into());
    let huge = load(huge);

    assert!(missing.contains("cannot read"), "{missing}");
    assert!(directory.contains("not a plain file"), "{directory}");
    assert!(device.contains("not a plain file"), "{device}");
    assert!(huge.contains("2147483648 bytes"), "{huge}");
    assert!(began.elapsed() < GUARD, "something was read");
}

#[test]
fn a_file_that_nobody_describes_is_not_guessed_at() {
    if !models() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voices.onnx");
    let mut bytes = std::fs::read(repository(GE2E)).unwrap();
    // A field that no reader knows: another file to the manifest, the same model to ONNX Runtime.
    bytes.extend([0xf8, 0x07, 0]);
    std::fs::write(&path, bytes).unwrap();
    let named = path.to_str().unwrap();

    let error = embedding_spec(named).unwrap_err().to_string();
    std::fs::write(
        folder.path().join("voices.onnx.toml"),
        "id = \"voices\"\ntask = \"embedding\"\nengine = \"onnxruntime\"\n[contract]\nfeatures = \"waveform\"\n\
         window_samples = 25840\nhop_samples = 12800\nmin_samples = 400\n\
         inputs = [{ name = \"waveform\", type = \"f32\", shape = [\"batch\", \"samples\"] }]\n\
         outputs = [{ name = \"embedding\", type = \"f32\", shape = [\"batch\", 256] }]\n\
         [cost]\nmax_batch = 3\n",
    )
    .unwrap();
    let described = embedding_spec(named).unwrap();

    assert!(error.contains("voices.onnx.toml"), "{error}");
    let EmbeddingSpec::Waveform(spec, _) = described else {
        unreachable!("it is a file");
    };
    assert_eq!((spec.max_batch, spec.dimension), (3, 256));
    assert_eq!(spec.level_min, None);
    assert!(WaveformModel::load(&spec).is_ok());
}

#[test]
fn an_embedding_model_that_wants_mel_bands_is_not_given_samples() {
    let manifest = gstscribe::inference::manifest::Manifest::load(None).unwrap();
    let campplus = manifest.find("campplus").unwrap();

    let error = WaveformSpec::new(Path::new("/nowhere"), campplus).unwrap_err();

    assert!(
        matches!(&error, EngineError::Unsupported(why) if why.contains("kaldi-fbank")),
        "{error}"
    );
}

#[test]
fn segments_and_windows_go_through_the_registry() {
    if !models() {
        return;
    }
    let pieces = pieces();
    let registry = registry();
    let request = (
        Request(embedding_spec("ge2e").unwrap()),
        Request(segmentation_spec("").unwrap()),
    );
    let (embedding, segmentation): (Lease<Embedding>, Lease<Segmentation>) =
        registry.acquire(request, &CancelToken::new()).unwrap();

    let vectors: Vec<_> = pieces
        .iter()
        .map(|piece| embedding.submit(Arc::clone(piece), (), Class::File, None))
        .collect();
    let scores = segmentation.submit(Arc::clone(&pieces[0]), (), Class::File, None);

    let answer = |mut ticket: gstscribe::registry::Ticket<VoiceVector>| {
        ticket.wait(GUARD).expect("an answer").unwrap()
    };
    let vectors: Vec<VoiceVector> = vectors.into_iter().map(answer).collect();
    let alone = WaveformModel::load(&ge2e()).unwrap().lane().unwrap();
    assert_same(&vectors, &{ alone }.run(&pieces).unwrap());
    let mut scores = scores;
    let scores = scores.wait(GUARD).expect("an answer").unwrap();
    assert_eq!(scores.scores.len(), 589 * SEGMENTATION_CLASSES);
}

/// A library that says it is an ONNX Runtime of long ago.
const OLD_RUNTIME: &str = r#"
static const void *api(unsigned version) { return 0; }
static const char *version(void) { return "1.20.1"; }
static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
const void *OrtGetApiBase(void) { return &base; }
"#;

#[test]
fn a_runtime_that_is_missing_or_too_old_is_named_with_the_remedy_and_may_come_later() {
    if !models() || !common::runs("cc", &["--version"], "apt install gcc") {
        return;
    }
    let name = "a_runtime_that_is_missing_or_too_old_is_named_with_the_remedy_and_may_come_later";
    if process::task().is_some() {
        let error = library::environment().unwrap_err().to_string();
        process::tell(&error);
        library::set_library(&repository(RUNTIME));
        PyannoteModel::load(&pyannote()).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("old.c");
    let old = folder.path().join("libonnxruntime.so");
    std::fs::write(&source, OLD_RUNTIME).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&old, &source])
        .status();
    assert!(built.unwrap().success());

    for (library, reason) in [
        (&old, "1.20.1"),
        (&folder.path().join("missing.so"), "not there"),
    ] {
        let out = process::command(name, "runtime")
            .env("SCRIBE_ORT_LIB", library)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}");
        let error = said.lines().find_map(process::told).unwrap();
        for text in [reason, "1.24 or newer", "scribe-models runtime"] {
            assert!(error.contains(text), "{error}");
        }
    }
}

#[test]
fn the_cap_of_the_arena_is_fixed_at_the_first_use() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run("the_cap_of_the_arena_is_fixed_at_the_first_use", "cap");
        return;
    }
    assert_eq!(arena_cap(), DEFAULT_ARENA_CAP);
    set_arena_cap(1000 * MIB).unwrap();
    set_arena_cap(300 * MIB).unwrap();
    library::environment().unwrap();

    let again = set_arena_cap(300 * MIB);
    let other = set_arena_cap(400 * MIB).unwrap_err().to_string();
    let _model = PyannoteModel::load(&pyannote()).unwrap();

    assert_eq!(again, Ok(()));
    assert!(
        other.contains("314572800") && other.contains("419430400"),
        "{other}"
    );
    assert_eq!(arena_cap(), 300 * MIB);
    assert_eq!(arena_stats().unwrap().limit, 300 * MIB);
}

/// Bytes of the arena that 39 rows of GE2E take, as a batch of 32 segments has them, beside the weights.
const GE2E_BATCH: u64 = 50_700_000;
/// What the weights of either model take of it.
const WEIGHTS: u64 = 6_000_000;

#[test]
fn a_batch_too_large_for_the_arena_is_done_in_halves_and_whole_again_later() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run(
            "a_batch_too_large_for_the_arena_is_done_in_halves_and_whole_again_later",
            "cap",
        );
        return;
    }
    // Enough for a batch of 32, but not beside another model.
    set_arena_cap(GE2E_BATCH + WEIGHTS + 3_000_000).unwrap();
    let pieces = pieces();
    let embeddings = WaveformModel::load(&ge2e()).unwrap();
    let mut lane = embeddings.lane().unwrap();
    let unlimited = lane.run(&pieces).unwrap();
    lane.shrink();
    let segmentation = PyannoteModel::load(&pyannote()).unwrap();

    let refused = lane.run(&pieces);
    lane.shrink();
    let shrunk = lane.run(&pieces);
    lane.shrink();
    let mut halves = lane.run(&pieces[..16]).unwrap();
    halves.extend(lane.run(&pieces[16..]).unwrap());
    drop(segmentation);
    lane.shrink();
    let whole = lane.run(&pieces).unwrap();

    let out_of_memory = Err(EngineError::OutOfMemory {
        what: "voice embedding of a batch of 39".into(),
    });
    assert_eq!(refused, out_of_memory);
    assert_eq!(shrunk, out_of_memory, "the other model's weights are there");
    assert_same(&unlimited, &halves);
    assert_same(&unlimited, &whole);
    let stats = arena_stats().unwrap();
    assert!(stats.allocated <= stats.limit, "{stats:?}");
}

#[test]
fn a_lane_begins_with_the_largest_batch_that_fits() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run("a_lane_begins_with_the_largest_batch_that_fits", "cap");
        return;
    }
    // Room for 15 rows and not for 16 or more: of 32, 16, 8 segments the last.
    set_arena_cap(WEIGHTS + 24_000_000).unwrap();
    let pieces = pieces();
    let embeddings = WaveformModel::load(&ge2e()).unwrap();

    let mut lane = embeddings.lane().unwrap();

    let warmed = arena_stats().unwrap();
    for eight in pieces.chunks(8) {
        lane.run(eight).unwrap();
    }
    let ran = arena_stats().unwrap();
    assert_eq!(warmed.allocated, ran.allocated);
    assert_eq!(warmed.extensions, ran.extensions);
}

#[test]
fn memory_that_the_system_refuses_is_out_of_memory_and_the_session_survives_it() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run(
            "memory_that_the_system_refuses_is_out_of_memory_and_the_session_survives_it",
            "limit",
        );
        return;
    }
    let segmentation = PyannoteModel::load(&PyannoteSpec {
        max_batch: 1,
        ..pyannote()
    });
    let mut lane = segmentation.unwrap().lane().unwrap();
    let windows: Vec<Arc<[f32]>> = vec![vec![0.1; SEGMENTATION_WINDOW].into(); 32];
    let before = lane.run(&windows[..1]).unwrap();

    // The samples of the batch fit, its tensors do not.
    process::limit_address_space(process::address_space() + 120 * MIB);
    let refused = lane.run(&windows);
    process::limit_address_space(u64::MAX);
    lane.shrink();
    let after = lane.run(&windows[..1]).unwrap();

    assert!(
        matches!(refused, Err(EngineError::OutOfMemory { .. })),
        "{refused:?}"
    );
    assert_eq!(before, after);
}

#[test]
fn two_lanes_have_the_weights_once() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run("two_lanes_have_the_weights_once", "lanes");
        return;
    }
    let piece = [pieces().swap_remove(0)];
    let model = WaveformModel::load(&ge2e()).unwrap();
    let mut first = model.lane().unwrap();
    let (weights, before) = (arena_stats().unwrap(), process::resident());

    let mut second = model.lane().unwrap();
    let answers = std::thread::scope(|scope| {
        let other = scope.spawn(|| second.run(&piece));
        [first.run(&piece), other.join().unwrap()]
    });

    let after = arena_stats().unwrap();
    let grown = process::resident().saturating_sub(before);
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].is_ok(), "{answers:?}");
    assert_eq!(weights.in_use, after.in_use);
    assert_eq!(weights.allocated, after.allocated);
    assert!(grown < size(&repository(GE2E)) / 2, "{grown} bytes more");
}

#[test]
fn lanes_of_segmentation_run_at_once_and_answer_alike() {
    if !models() {
        return;
    }
    let sound = recording("demo.opus");
    let window: [Arc<[f32]>; 1] = [Arc::from(&sound[..160_000])];
    let model = PyannoteModel::load(&pyannote()).unwrap();
    let mut first = model.lane().unwrap();
    let alone = first.run(&window).unwrap();
    let mut second = model.lane().unwrap();

    let answers = std::thread::scope(|scope| {
        let other = scope.spawn(|| second.run(&window).unwrap());
        [first.run(&window).unwrap(), other.join().unwrap()]
    });

    assert_eq!(answers[0], alone);
    assert_eq!(answers[1], alone);
}

#[test]
fn nothing_grows_after_the_largest_batch() {
    if !models() {
        return;
    }
    if process::task().is_none() {
        process::run("nothing_grows_after_the_largest_batch", "growth");
        return;
    }
    let sound = recording("demo.opus");
    let piece = |n: usize| {
        let length = 400 + n * 7919 % 90_000;
        let start = n * 104_729 % (sound.len() - length);
        Arc::from(&sound[start..start + length])
    };
    let embeddings = WaveformModel::load(&ge2e()).unwrap();
    let mut lane = embeddings.lane().unwrap();
    let warmed = arena_stats().unwrap();

    for run in 0..24 {
        let size = 1 + run * 31 % 32;
        let segments: Vec<Arc<[f32]>> = (0..size).map(|n| piece(run * 32 + n)).collect();
        lane.run(&segments).unwrap();
    }

    let ran = arena_stats().unwrap();
    assert_eq!(warmed.allocated, ran.allocated);
    assert_eq!(warmed.extensions, ran.extensions);
}

/// A load and two batches of `items` in a process of its own: tells how much memory it has taken at the most, how
/// much of the arena, and what was promised.
fn weigh(kind: &str, items: usize) {
    library::environment().unwrap();
    let sound = |length: usize| -> Arc<[f32]> {
        let tone = (0..length).map(|k| ((k * 37 % 401) as f32 - 200.0) / 800.0);
        tone.collect()
    };
    let segments = vec![sound(5 * SECOND); items];
    let windows = vec![sound(SEGMENTATION_WINDOW); items];
    let before = process::resident();
    process::reset_peak();
    let promised = match kind {
        "segmentation" => {
            let spec = PyannoteSpec {
                max_batch: items,
                ..pyannote()
            };
            let model = PyannoteModel::load(&spec).unwrap();
            let mut lane = model.lane().unwrap();
            for _ in 0..2 {
                lane.run(&windows).unwrap();
            }
            spec.footprint(size(&spec.path))
        }
        "embedding" => {
            let spec = WaveformSpec {
                max_batch: items,
                ..ge2e()
            };
            let model = WaveformModel::load(&spec).unwrap();
            let mut lane = model.lane().unwrap();
            for _ in 0..2 {
                lane.run(&segments).unwrap();
            }
            spec.footprint(size(&spec.path))
        }
        _ => {
            let spec = SileroSpec {
                path: repository(SILERO),
            };
            let model = SileroModel::load(&spec).unwrap();
            let block = VadBlock {
                samples: sound(500 * VAD_FRAME).to_vec(),
                state: VadState::default(),
            };
            model.lane().unwrap().run(block).unwrap();
            spec.footprint(size(&spec.path))
        }
    };
    let peak = process::peak() - before;
    let arena = arena_stats().unwrap().max_in_use;
    process::tell(&format!("{peak} {arena} {}", total(&promised, items)));
}

/// The most that a load and one lane may take.
fn total(footprint: &Footprint, items: usize) -> u64 {
    footprint.weights_bytes + footprint.load_extra_bytes.max(footprint.lane_of(items))
}

#[test]
#[allow(clippy::print_stderr, reason = "figures for docs/benchmarks.md")]
fn models_take_what_their_footprints_promise_and_at_least_half_of_it() {
    if !models() {
        return;
    }
    let name = "models_take_what_their_footprints_promise_and_at_least_half_of_it";
    if let Some(task) = process::task() {
        let (kind, items) = task.split_once(' ').unwrap();
        weigh(kind, items.parse().unwrap());
        return;
    }
    let sizes = [1, 2, 4, 8, 16, 32];
    let cases = sizes.map(|items| ("segmentation", items)).into_iter();
    let cases = cases.chain(sizes.map(|items| ("embedding", items)));
    for (kind, items) in cases.chain([("voice activity", 1)]) {
        let said = process::run(name, &format!("{} {items}", kind.replace(' ', "-")));
        let figures: Vec<u64> = said[0]
            .split(' ')
            .map(|figure| figure.parse().unwrap())
            .collect();
        let [peak, arena, promised] = figures[..] else {
            panic!("{said:?}");
        };
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        eprintln!(
            "{kind}, batch of {items}: {:.1} MiB ({:.1} of the arena), promised {:.1}",
            mib(peak),
            mib(arena),
            mib(promised)
        );
        assert!(peak <= promised && arena <= promised, "{kind} {items}");
        assert!(promised <= 2 * peak, "{kind} {items}");
    }
}
