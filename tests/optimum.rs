// SPDX-License-Identifier: MPL-2.0
//! Whisper models in Optimum's layout: tiny.en says what our own graphs say, and what is wrong with an export is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;
#[path = "common/optimum.rs"]
mod optimum;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use common::{onnx_encoder, onnx_spec, repository};
use gst::prelude::*;
use gstscribe::inference::isolated::{EngineSpec, Isolation};
use gstscribe::inference::onnx::whisper::{OnnxWhisperModel, OnnxWhisperSpec};
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, Layout, ResultSink, SpeechModel,
    Window, WindowId, WindowSource,
};
use gstscribe::registry::{Kind, Whisper, WhisperSpec};
use gstscribe::transcribe::file::speech_spec;
use gstscribe::transcript::Task;
use optimum::{Like, USUAL};
use tempfile::TempDir;

/// With attention, both branches and positions.
const TIMESTAMPED: Like = Like {
    attention: true,
    places: true,
    ..USUAL
};

/// Exports are made once for all tests of this file: each takes 180 MB.
struct Made {
    folder: TempDir,
    own: PathBuf,
}

fn made() -> Option<&'static Made> {
    static MADE: OnceLock<Option<Made>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let own = onnx_encoder("f32")?;
        let folder = tempfile::tempdir().unwrap();
        let decoder = OnnxWhisperSpec::decoder_beside(&own).unwrap();
        let write = |name: &str, like: Like, ending: &str| {
            optimum::export(&own, &decoder, &folder.path().join(name), like, ending);
        };
        write("usual", USUAL, "");
        write("timestamped", TIMESTAMPED, "");
        let pair = Like {
            merged: false,
            places: true,
            ..USUAL
        };
        write("pair", pair, "");
        let half = Like {
            merged: false,
            half: true,
            ..TIMESTAMPED
        };
        write("half", half, "_fp16");
        let outside = Like {
            outside: true,
            ..USUAL
        };
        write("outside", outside, "");
        Some(Made { folder, own })
    });
    made.as_ref()
}

impl Made {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of an export, with links to its graphs.
    fn copy(&self, name: &str) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("onnx")).unwrap();
        for folder in ["", "onnx"] {
            for file in fs::read_dir(self.path(name).join(folder)).unwrap() {
                let file = file.unwrap().path();
                let place = copy.path().join(folder).join(file.file_name().unwrap());
                if file.is_file() && folder.is_empty() {
                    fs::copy(&file, place).unwrap();
                } else if file.is_file() {
                    std::os::unix::fs::symlink(&file, place).unwrap();
                }
            }
        }
        copy
    }
}

fn spec(path: &Path) -> Result<WhisperSpec, EngineError> {
    let name = path.to_str().unwrap();
    speech_spec(name, None, "cpu", 1, true, Isolation::InProcess)
}

fn load(path: &Path) -> Result<Arc<dyn SpeechModel>, EngineError> {
    Whisper::load(&spec(path)?)
}

fn samples(file: &str) -> Arc<[f32]> {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! audio/x-raw,format=F32LE,rate=16000,channels=1 \
         ! appsink name=out sync=false",
        repository("tests/data").join(file).display()
    ));
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("out").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut samples = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let bytes = sample.buffer().unwrap().map_readable().unwrap();
        let (words, _) = bytes.as_chunks::<4>();
        samples.extend(words.iter().map(|s| f32::from_le_bytes(*s)));
    }
    pipeline.set_state(gst::State::Null).unwrap();
    samples.into()
}

struct Windows(Vec<Window>);

impl WindowSource for Windows {
    fn next(&mut self) -> Option<Window> {
        self.0.pop()
    }
}

#[derive(Default)]
struct Answers(HashMap<WindowId, Decoded>);

impl ResultSink for Answers {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        assert!(self.0.insert(id, result.unwrap()).is_none());
    }
}

/// What a model says of each sound; the second with a prompt.
fn say(model: &dyn SpeechModel, sounds: &[Arc<[f32]>], params: &BatchParams) -> Vec<Decoded> {
    let windows = sounds.iter().zip(0..).map(|(samples, id)| Window {
        id,
        samples: Arc::clone(samples),
        language: Language::Auto,
        task: Task::Transcribe,
        prompt: if id == 1 {
            "A game of cards.".into()
        } else {
            String::new()
        },
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::default(),
    });
    let mut answers = Answers::default();
    let mut lane = model.lane().unwrap();
    lane.run(&mut Windows(windows.collect()), &mut answers, params)
        .unwrap();
    (0..sounds.len() as WindowId)
        .map(|id| answers.0.remove(&id).unwrap())
        .collect()
}

fn ids(decoded: &[Decoded]) -> Vec<Vec<u32>> {
    let of = |d: &Decoded| d.tokens.iter().map(|t| t.id).collect();
    decoded.iter().map(of).collect()
}

fn sounds() -> Vec<Arc<[f32]>> {
    let demo = samples("demo.opus");
    let piece = |from: usize, to: usize| -> Arc<[f32]> { demo[from * 16_000..to * 16_000].into() };
    vec![piece(0, 12), piece(16, 26)]
}

fn params(beam: u32) -> BatchParams {
    BatchParams {
        beam,
        ..BatchParams::default()
    }
}

#[test]
fn an_export_of_32_bits_says_token_for_token_what_our_own_graphs_say() {
    let Some(made) = made() else { return };
    let own = OnnxWhisperModel::load(&onnx_spec(&made.own)).unwrap();
    let sounds = sounds();
    for beam in [1, 5] {
        let wanted = say(&own, &sounds, &params(beam));
        assert!(wanted.iter().all(|d| d.tokens.len() > 3));
        for name in ["usual", "pair", "timestamped", "outside"] {
            let model = load(&made.path(name)).unwrap();
            let found = say(&*model, &sounds, &params(beam));

            assert_eq!(ids(&found), ids(&wanted), "{name}, {beam} texts");
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!((found.sot_no_speech - wanted.sot_no_speech).abs() < 1e-3);
                assert!((found.avg_logprob - wanted.avg_logprob).abs() < 1e-3);
            }
        }
    }
}

#[test]
fn word_times_come_from_attention_where_a_decoder_shows_it() {
    let Some(made) = made() else { return };
    let own = OnnxWhisperModel::load(&onnx_spec(&made.own)).unwrap();
    let sounds = sounds();
    let ends = |decoded: &[Decoded]| -> Vec<Option<u32>> {
        let tokens = decoded.iter().flat_map(|d| &d.tokens);
        tokens.map(|t| t.end).collect()
    };
    for beam in [1, 5] {
        let wanted = ends(&say(&own, &sounds, &params(beam)));
        let shown = load(&made.path("timestamped")).unwrap();
        let plain = load(&made.path("usual")).unwrap();

        assert!(shown.info().word_times && !plain.info().word_times);
        // A step of 20 ms is no difference: sums are made in another order.
        let found = ends(&say(&*shown, &sounds, &params(beam)));
        let near = |(a, b): (&Option<u32>, &Option<u32>)| a.unwrap().abs_diff(b.unwrap()) <= 320;
        assert_eq!(found.len(), wanted.len());
        assert!(found.iter().zip(&wanted).all(near), "{found:?} {wanted:?}");
        let none = ends(&say(&*plain, &sounds, &params(beam)));
        assert!(none.iter().all(Option::is_none));
    }
}

#[test]
fn floats_of_16_bits_go_in_and_come_out() {
    let Some(made) = made() else { return };
    let sounds = sounds();
    let [half, full] = ["half", "timestamped"].map(|name| load(&made.path(name)).unwrap());

    let found = say(&*half, &sounds, &params(5));

    assert_eq!(ids(&found), ids(&say(&*full, &sounds, &params(5))));
    assert!(found.iter().all(|d| d.alignment_end.is_some()));
    assert!(
        half.info().name.ends_with("half (fp16)"),
        "{}",
        half.info().name
    );
    assert_eq!(half.info().layout, Layout::Optimum);
}

#[test]
fn samples_are_drawn_from_one_window_and_languages_are_known() {
    let Some(made) = made() else { return };
    let model = load(&made.path("usual")).unwrap();
    let hot = BatchParams {
        temperature: 0.6,
        best_of: 3,
        ..params(5)
    };

    let found = say(&*model, &sounds(), &hot);

    assert!(
        found
            .iter()
            .all(|d| !d.tokens.is_empty() && d.temperature == 0.6)
    );
    assert!(model.knows_language("en") && !model.knows_language("de"));
}

#[test]
fn it_takes_no_more_than_it_says() {
    let Some(made) = made() else { return };
    let [plain, shown] = ["usual", "timestamped"]
        .map(|name| Whisper::footprint(&spec(&made.path(name)).unwrap()).unwrap());

    // 33 and 113 MB of weights, and five texts' sound of 18 MB each.
    assert!(plain.weights_bytes > 250 << 20 && plain.weights_bytes < 700 << 20);
    // Two lanes of the exporter's own took 590 MB each.
    assert!(plain.lane_bytes > 600 << 20 && plain.lane_bytes < 900 << 20);
    // Its attention, which the decoder's file says it shows.
    assert!(shown.lane_bytes > plain.lane_bytes);
}

#[test]
fn weights_outside_count_and_what_is_wrong_with_them_is_told() {
    let Some(made) = made() else { return };
    let footprint = |name: &str| Whisper::footprint(&spec(&made.path(name)).unwrap()).unwrap();
    let [inside, outside] = ["usual", "outside"].map(footprint);
    // Pages are filled up.
    let more = outside.weights_bytes - inside.weights_bytes;
    assert!(more < 4 << 20, "{inside:?} {outside:?}");
    let graph = made.path("outside").join("onnx/encoder_model.onnx");
    assert!(fs::metadata(graph).unwrap().len() < 1 << 20);

    let copy = made.copy("outside");
    let data = copy.path().join("onnx/decoder_model_merged.onnx_data");
    let whole = fs::read(&data).unwrap();
    let refused = || load(copy.path()).err().unwrap().to_string();
    fs::remove_file(&data).unwrap();
    assert!(refused().contains("keeps its data outside the file"));
    fs::write(&data, &whole[..whole.len() / 2]).unwrap();
    let short = refused();
    assert!(
        short.contains("decoder_model_merged.onnx_data") && short.contains("it has"),
        "{short}"
    );
    let mut odd = whole.clone();
    odd[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&data, odd).unwrap();
    assert!(refused().contains("no numbers"));
    // The name of another file, of the same length.
    fs::write(&data, &whole).unwrap();
    let path = copy.path().join("onnx/decoder_model_merged.onnx");
    let model = fs::read(&path).unwrap();
    let (name, other) = (
        b"decoder_model_merged.onnx_data",
        b"/tmp/er_model_merged.onnx_data",
    );
    let mut model = model;
    while let Some(at) = model.windows(name.len()).position(|part| part == name) {
        model[at..at + name.len()].copy_from_slice(other);
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, model).unwrap();
    assert!(refused().contains("only decoder_model_merged.onnx_data"));
}

#[test]
fn a_worker_runs_it_and_names_the_engine_it_is_for() {
    let Some(made) = made() else { return };
    let path = made.path("usual");
    let found = spec(&path).unwrap();
    let WhisperSpec::Optimum(inner, stamps) = &found else {
        panic!("{found:?}");
    };
    // Encoder, decoder, config, generation's config, tokens.
    assert_eq!(stamps.len(), 5);
    let footprint = Whisper::footprint(&found).unwrap();
    let apart = EngineSpec::Optimum(inner.clone())
        .footprint(footprint)
        .unwrap();
    assert!(apart.weights_bytes > footprint.weights_bytes);
    let name = path.to_str().unwrap();
    let asked = |engine, device| speech_spec(name, engine, device, 1, true, Isolation::InProcess);
    let other = asked(
        Some(gstscribe::inference::manifest::Engine::WhisperCpp),
        "cpu",
    );
    let card = asked(None, "cuda:0").unwrap_err().to_string();

    assert!(
        other
            .unwrap_err()
            .to_string()
            .contains("is a model for ONNX Runtime")
    );
    assert!(card.contains("set device=cpu"), "{card}");
}

/// Why an export is refused after `change`.
fn refusal(made: &Made, name: &str, change: impl Fn(&Path)) -> String {
    let copy = made.copy(name);
    change(copy.path());
    match load(copy.path()) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(file, text.replace(from, to)).unwrap();
}

/// Writes a graph anew with other names of the same length.
fn rename(file: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(file).unwrap();
    let mut at = 0;
    while let Some(found) = bytes[at..]
        .windows(from.len())
        .position(|w| w == from.as_bytes())
    {
        at += found;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    fs::remove_file(file).unwrap();
    fs::write(file, bytes).unwrap();
}

#[test]
fn what_is_wrong_with_an_export_is_told_with_the_file_and_the_tensor() {
    let Some(made) = made() else { return };
    let merged = "onnx/decoder_model_merged.onnx";
    let config = |from: &'static str, to: &'static str| {
        refusal(made, "usual", move |folder| {
            edit(&folder.join("config.json"), from, to)
        })
    };
    let graph = |file: &'static str, from: &'static str, to: &'static str| {
        refusal(made, "usual", move |folder| {
            rename(&folder.join(file), from, to)
        })
    };
    let no_decoder = refusal(made, "usual", |f| fs::remove_file(f.join(merged)).unwrap());
    let one_of_two = refusal(made, "pair", |f| {
        fs::remove_file(f.join("onnx/decoder_with_past_model.onnx")).unwrap();
    });
    let no_tokens = refusal(made, "usual", |f| {
        fs::remove_file(f.join("tokenizer.json")).unwrap()
    });
    let cut = refusal(made, "usual", |f| {
        let file = f.join(merged);
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    });
    let mixed = refusal(made, "half", |f| {
        let plain = made.path("pair").join("onnx/decoder_model.onnx");
        let file = f.join("onnx/decoder_model_fp16.onnx");
        fs::remove_file(&file).unwrap();
        fs::copy(plain, file).unwrap();
    });
    let tokens = refusal(made, "usual", |f| {
        edit(
            &f.join("tokenizer.json"),
            "<|notimestamps|>",
            "<|notimestamp|>",
        );
    });
    let no_config = refusal(made, "usual", |f| {
        fs::remove_file(f.join("config.json")).unwrap()
    });

    for (why, parts) in [
        (
            no_decoder,
            vec![
                "is not whole",
                "decoder_model_merged.onnx",
                "decoder_with_past",
            ],
        ),
        (
            one_of_two,
            vec!["is not whole", "decoder_with_past_model.onnx"],
        ),
        (no_tokens, vec!["tokenizer.json", "nor vocab.json"]),
        (no_config, vec!["no config.json"]),
        (
            cut,
            vec!["decoder_model_merged.onnx", "cut short or damaged"],
        ),
        (
            mixed,
            vec![
                "decoder_with_past_model_fp16.onnx",
                "past_key_values.0.decoder.key",
                "f16",
                "f32",
            ],
        ),
        (tokens, vec!["tokenizer.json", "<|notimestamps|>", "50362"]),
        (
            config("\"whisper\"", "\"moonshine\""),
            vec!["config.json", "moonshine"],
        ),
        (
            config("384", "512"),
            vec!["config.json", "a width of 512 in 6 heads"],
        ),
        (
            config("\"num_mel_bins\": 80", "\"num_mel_bins\": 128"),
            vec![
                "encoder_model.onnx",
                "input_features",
                "[?, 80, 3000]",
                "[?, 128, 3000]",
            ],
        ),
        (
            config("\"decoder_layers\": 4", "\"decoder_layers\": 5"),
            vec!["no input past_key_values.4.decoder.key"],
        ),
        (config("51864", "51865"), vec!["<|endoftext|>", "51865"]),
        (config("{", "["), vec!["config.json", "not understood"]),
        (
            graph(
                "onnx/encoder_model.onnx",
                "last_hidden_state",
                "last_hidden_stage",
            ),
            vec!["encoder_model.onnx", "no output last_hidden_state"],
        ),
        (
            graph(merged, "encoder_hidden_states", "encoder_hidden_stages"),
            vec!["no input encoder_hidden_states"],
        ),
        (
            graph(merged, "use_cache_branch", "use_cache_bronch"),
            vec!["no input use_cache_branch", "use_cache_bronch"],
        ),
    ] {
        for part in parts {
            assert!(why.contains(part), "{part}: {why}");
        }
    }
}

#[test]
fn stats_say_that_it_is_an_export_and_that_words_are_spread() {
    let Some(made) = made() else { return };
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! scribetranscriber name=t isolation=in-process model={} beam-size=1 \
         ! fakesink sync=false",
        repository("tests/data/speech_short.flac").display(),
        made.path("usual").display()
    ));
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let wanted = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = bus
        .timed_pop_filtered(gst::ClockTime::from_seconds(300), &wanted)
        .unwrap();
    assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    let element = pipeline.by_name("t").unwrap();
    let stats = element.property::<gst::Structure>("stats");
    pipeline.set_state(gst::State::Null).unwrap();

    assert_eq!(stats.get::<String>("layout").unwrap(), "optimum");
    assert!(!stats.get::<bool>("word-times").unwrap());
    let engine = stats.get::<String>("engine").unwrap();
    assert!(
        engine.contains("usual (fp32)") && engine.contains("slower"),
        "{engine}"
    );
    assert!(stats.get::<u64>("words").unwrap() > 3);
}
