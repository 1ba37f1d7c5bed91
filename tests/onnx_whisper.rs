// SPDX-License-Identifier: MPL-2.0
//! Whisper on ONNX Runtime, with real models and real speech.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]
#![allow(clippy::print_stdout, reason = "a child tells its figures")]

mod common;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use common::{onnx_encoder as encoder, onnx_spec as spec, repository};
use gst::prelude::*;
use gstscribe::inference::isolated::Isolation;
use gstscribe::inference::manifest::Engine;
use gstscribe::inference::onnx::whisper::{OnnxWhisperModel, OnnxWhisperSpec};
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, ResultSink, SpeechModel,
    SpeechToText, Window, WindowId, WindowSource,
};
use gstscribe::registry::{Kind, Whisper, WhisperSpec};
use gstscribe::transcribe::file::speech_spec;
use gstscribe::transcript::Task;

/// A step of the reference's word times, in samples.
const STEP: u32 = 320;

fn samples(file: &str) -> Vec<f32> {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audio/x-raw,format=S16LE,rate=16000 ! appsink name=out sync=false",
        repository("tests/data").join(file).display()
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
        let (words, _) = bytes.as_chunks::<2>();
        samples.extend(
            words
                .iter()
                .map(|s| f32::from(i16::from_le_bytes(*s)) / 32_768.0),
        );
    }
    pipeline.set_state(gst::State::Null).unwrap();
    samples
}

/// Three pieces of speech, by the names that the reference has for them.
fn speech() -> [(&'static str, Arc<[f32]>); 3] {
    let two = samples("stereo.flac");
    let channel = |n: usize| two.iter().skip(n).step_by(2).copied().collect();
    [
        ("left", channel(0)),
        ("right", channel(1)),
        ("short", samples("speech_short.flac").into()),
    ]
}

fn window(id: WindowId, samples: &Arc<[f32]>) -> Window {
    Window {
        id,
        samples: Arc::clone(samples),
        language: Language::Auto,
        task: Task::Transcribe,
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::default(),
    }
}

struct Queue(VecDeque<Window>);

impl WindowSource for Queue {
    fn next(&mut self) -> Option<Window> {
        self.0.pop_front()
    }
}

#[derive(Default)]
struct Answers(HashMap<WindowId, Result<Decoded, EngineError>>);

impl ResultSink for Answers {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        let before = self.0.insert(id, result);
        assert!(before.is_none(), "window {id} was answered twice");
    }
}

fn run(
    lane: &mut dyn SpeechToText,
    windows: impl IntoIterator<Item = Window>,
    params: &BatchParams,
) -> HashMap<WindowId, Result<Decoded, EngineError>> {
    let mut answers = Answers::default();
    let mut queue = Queue(windows.into_iter().collect());
    lane.run(&mut queue, &mut answers, params).unwrap();
    assert!(queue.0.is_empty());
    answers.0
}

fn one(lane: &mut dyn SpeechToText, window: Window, params: &BatchParams) -> Decoded {
    let id = window.id;
    run(lane, [window], params).remove(&id).unwrap().unwrap()
}

fn ids(decoded: &Decoded) -> Vec<u32> {
    decoded.tokens.iter().map(|t| t.id).collect()
}

fn text(decoded: &Decoded) -> String {
    let bytes = decoded.tokens.iter().flat_map(|t| t.bytes.clone());
    String::from_utf8(bytes.collect()).unwrap()
}

/// Compares what a lane says of the speech with a file of the reference.
fn assert_as_in(file: &str, beam: u32) {
    let Some(encoder) = encoder("f32") else {
        return;
    };
    let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
    let mut lane = model.lane().unwrap();
    let reference = std::fs::read_to_string(repository(&format!("tests/reference/{file}")));
    let reference = reference.unwrap();
    let params = BatchParams {
        beam,
        ..BatchParams::default()
    };

    // Side by side: they leave one after the other.
    let speech = speech();
    let windows = speech.iter().zip(0..).map(|((_, s), id)| window(id, s));
    let answers = run(&mut *lane, windows, &params);

    for ((name, samples), id) in speech.iter().zip(0..) {
        let decoded = answers[&id].as_ref().unwrap();
        let line = reference
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap();
        let mut fields = line.split_whitespace();
        let mut number = || fields.next().unwrap().parse::<f32>().unwrap();
        let (no_speech, avg_logprob) = (number(), number());
        let pairs = fields.map(|f| f.split_once('@').unwrap());
        let (tokens, ends): (Vec<u32>, Vec<u32>) = pairs
            .map(|(token, end)| (token.parse::<u32>().unwrap(), end.parse::<u32>().unwrap()))
            .unzip();

        assert_eq!(ids(decoded), tokens, "{name}");
        assert!((decoded.sot_no_speech - no_speech).abs() < 1e-3, "{name}");
        assert!((decoded.avg_logprob - avg_logprob).abs() < 1e-3, "{name}");
        assert_eq!(decoded.language, "en");
        let mut before = 0;
        for (token, end) in decoded.tokens.iter().zip(ends) {
            assert_eq!(token.start, Some(before), "{name}");
            before = token.end.unwrap();
            let off = before.abs_diff((end * STEP).min(samples.len() as u32));
            assert!(off <= STEP, "{name}: {before} and not {}", end * STEP);
        }
        assert_eq!(decoded.alignment_end, Some(before));
    }
}

#[test]
fn tokens_probabilities_and_times_are_those_of_the_plain_way() {
    assert_as_in("whisper-greedy.txt", 1);
}

#[test]
fn with_beams_too() {
    assert_as_in("whisper-beams.txt", 5);
}

#[test]
fn beams_fit_with_prompts_of_any_length_and_more_than_there_is_room_for_are_fewer() {
    let Some(encoder) = encoder("int8") else {
        return;
    };
    let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
    let mut lane = model.lane().unwrap();
    let speech = speech();
    let prompt = "Emma, Mr. Knightley, Highbury, ".repeat(40);

    for beam in [2, 8, 100] {
        let params = BatchParams {
            beam,
            ..BatchParams::default()
        };
        // Some with a long prompt: fewer of them fit side by side.
        let windows = (0..7).map(|n| Window {
            prompt: if n % 3 == 1 {
                prompt.clone()
            } else {
                String::new()
            },
            ..window(n, &speech[n as usize % 3].1)
        });
        let answers = run(&mut *lane, windows, &params);

        assert_eq!(answers.len(), 7);
        for (n, answer) in answers {
            let decoded = answer.unwrap();
            assert!(!decoded.tokens.is_empty(), "{beam} beams, window {n}");
            assert!(decoded.alignment_end.is_some(), "{beam} beams, window {n}");
        }
    }
}

#[test]
fn a_window_has_the_same_text_alone_and_among_others() {
    let speech = speech();
    for (kind, beam) in [("f32", 1), ("int8", 1), ("int8", 5)] {
        let Some(encoder) = encoder(kind) else {
            return;
        };
        let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
        let mut lane = model.lane().unwrap();
        let params = BatchParams {
            beam,
            ..BatchParams::default()
        };
        let alone: Vec<Decoded> = speech
            .iter()
            .map(|(_, s)| one(&mut *lane, window(7, s), &params))
            .collect();

        // More than there are rows: those that leave make room.
        let many = (0..11).map(|n| window(n, &speech[n as usize % 3].1));
        let answers = run(&mut *lane, many, &params);

        assert_eq!(answers.len(), 11);
        for (n, answer) in answers {
            let (decoded, alone) = (answer.unwrap(), &alone[n as usize % 3]);
            assert_eq!(ids(&decoded), ids(alone), "{kind}, {beam}, window {n}");
            // Each row of 8 bits has its own scale: to the bit.
            if kind == "int8" {
                assert_eq!(decoded, *alone, "{beam}, window {n}");
            }
        }
        assert_eq!(
            text(&alone[2]),
            " He might even have been made amiable himself."
        );
    }
}

#[test]
fn a_text_goes_on_behind_the_prefix_it_is_given() {
    let speech = speech();
    for (kind, beam) in [("f32", 1), ("int8", 1), ("int8", 5)] {
        let Some(encoder) = encoder(kind) else {
            return;
        };
        let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
        assert!(model.info().takes_prefix);
        let mut lane = model.lane().unwrap();
        let params = BatchParams {
            beam,
            ..BatchParams::default()
        };
        let whole: Vec<Decoded> = speech
            .iter()
            .map(|(_, s)| one(&mut *lane, window(7, s), &params))
            .collect();

        // Side by side with windows that have none.
        let windows = (0..6).map(|n| {
            let at = n as usize % 3;
            let told = ids(&whole[at]);
            Window {
                prefix: if n < 3 {
                    told[..told.len() / 2].to_vec()
                } else {
                    Vec::new()
                },
                ..window(n, &speech[at].1)
            }
        });
        let answers = run(&mut *lane, windows, &params);

        for (n, answer) in answers {
            let (decoded, whole) = (answer.unwrap(), &whole[n as usize % 3]);
            let told = whole.tokens.len() / 2;
            if beam == 1 {
                assert_eq!(ids(&decoded), ids(whole), "{kind}, window {n}");
                for (n, (again, first)) in decoded.tokens.iter().zip(&whole.tokens).enumerate() {
                    let off = again.end.unwrap().abs_diff(first.end.unwrap());
                    assert!(off <= 2 * STEP, "{kind}, token {n}: {off}");
                }
            } else {
                assert_eq!(ids(&decoded)[..told], ids(whole)[..told], "window {n}");
                assert!(decoded.tokens.len() > told, "window {n}");
                assert!(decoded.alignment_end.is_some(), "window {n}");
            }
        }
    }
}

#[test]
fn what_follows_a_prefix_is_bounded_and_a_prefix_that_is_no_text_is_refused() {
    let Some(encoder) = encoder("int8") else {
        return;
    };
    let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
    let mut lane = model.lane().unwrap();
    let [(_, left), ..] = speech();
    for beam in [1, 5] {
        let params = BatchParams {
            beam,
            ..BatchParams::default()
        };
        let whole = ids(&one(&mut *lane, window(7, &left), &params));
        let with = |id, prefix: &[u32], most_tokens| Window {
            prefix: prefix.to_vec(),
            most_tokens,
            ..window(id, &left)
        };
        let windows = [
            with(0, &whole[..4], 3),
            with(1, &[], 2),
            with(2, &[50_257], 0),
            with(3, &[400; 220], 0),
            with(4, &[400; 219], 0),
        ];

        let mut answers = run(&mut *lane, windows, &params);

        let mut tokens = |id| ids(&answers.remove(&id).unwrap().unwrap());
        // Of several texts one that ends earlier may be the best.
        let least = if beam == 1 { [7, 2] } else { [4, 0] };
        assert!((least[0]..=7).contains(&tokens(0).len()), "{beam}");
        assert!((least[1]..=2).contains(&tokens(1).len()), "{beam}");
        assert!(tokens(4).starts_with(&[400; 219]));
        for id in [2, 3] {
            let refused = answers.remove(&id).unwrap();
            assert!(
                matches!(refused, Err(EngineError::Unsupported(_))),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn a_window_that_is_not_wanted_or_wrong_leaves_the_others_alone() {
    let Some(encoder) = encoder("int8") else {
        return;
    };
    let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
    let mut lane = model.lane().unwrap();
    let [_, _, (_, short)] = speech();
    let cancelled = window(1, &short);
    cancelled.cancel.cancel();
    let foreign = Window {
        language: Language::Fixed("de".into()),
        ..window(2, &short)
    };
    let empty = window(3, &Arc::from([]));
    let odd = window(4, &[f32::NAN; 8_000].into());

    let windows = [window(0, &short), cancelled, foreign, empty, odd];
    let answers = run(&mut *lane, windows, &BatchParams::default());

    assert!(text(answers[&0].as_ref().unwrap()).contains("amiable"));
    assert_eq!(answers[&1], Err(EngineError::Cancelled));
    let unknown = answers[&2].as_ref().unwrap_err().to_string();
    assert!(
        unknown.contains("does not know the language \"de\""),
        "{unknown}"
    );
    assert!(answers[&3].is_ok() && answers[&4].is_ok());
}

#[test]
fn samples_are_the_same_each_time_and_the_best_of_several_is_kept() {
    let Some(encoder) = encoder("f32") else {
        return;
    };
    let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
    let mut lane = model.lane().unwrap();
    let [_, (_, right), _] = speech();
    let mut sample = |best_of: u32| {
        let params = BatchParams {
            temperature: 0.8,
            best_of,
            ..BatchParams::default()
        };
        one(&mut *lane, window(0, &right), &params)
    };

    let (first, again, best) = (sample(1), sample(1), sample(5));

    assert_eq!(first, again);
    // The first sample is among the five.
    assert!(best.avg_logprob >= first.avg_logprob);
    assert_ne!(ids(&best), ids(&first));
    assert_eq!(best.temperature, 0.8);
    assert!(best.tokens.iter().all(|t| t.end.is_some()));
}

#[test]
fn a_prompt_changes_how_names_are_written() {
    let Some(encoder) = encoder("f32") else {
        return;
    };
    let model = OnnxWhisperModel::load(&spec(&encoder)).unwrap();
    let mut lane = model.lane().unwrap();
    let [(_, left), _, (_, short)] = speech();
    let told = Window {
        prompt: "go forward ten metres. ten of clubs. ten metres more. go back ten metres".into(),
        vocabulary: vec!["metres".into()],
        ..window(1, &left)
    };

    let answers = run(
        &mut *lane,
        [window(0, &left), told, window(2, &short)],
        &BatchParams::default(),
    );

    let of = |id: WindowId| text(answers[&id].as_ref().unwrap()).to_lowercase();
    assert!(of(0).contains("meters"), "{}", of(0));
    assert!(of(1).contains("metres"), "{}", of(1));
    assert!(of(2).contains("amiable"), "{}", of(2));
}

#[test]
fn files_that_do_not_belong_together_are_refused_with_the_reason() {
    let (Some(small), Some(exact)) = (encoder("int8"), encoder("f32")) else {
        return;
    };
    let mixed = OnnxWhisperSpec {
        decoder: spec(&exact).decoder,
        ..spec(&small)
    };
    let swapped = OnnxWhisperSpec {
        encoder: spec(&exact).decoder,
        decoder: spec(&exact).encoder,
        ..spec(&exact)
    };
    let foreign = OnnxWhisperSpec {
        encoder: repository("models/silero-vad-6.2-rows.onnx"),
        ..spec(&small)
    };
    let refusal = |spec: &OnnxWhisperSpec| {
        let error = OnnxWhisperModel::load(spec).err().unwrap();
        assert!(matches!(error, EngineError::InvalidModel { .. }), "{error}");
        error.to_string()
    };

    let why = refusal(&mixed);
    assert!(why.contains("it is of another model"), "{why}");
    let why = refusal(&swapped);
    assert!(why.contains("no input named mel"), "{why}");
    let why = refusal(&foreign);
    assert!(why.contains("no property \"whisper\""), "{why}");
}

#[test]
fn the_file_decides_which_engine_runs_it() {
    let ggml = repository("models/ggml-tiny.en-q8_0.bin");
    let Some(encoder) = encoder("int8") else {
        return;
    };
    let find = |model: &Path, engine, device: &str, isolation| {
        speech_spec(model.to_str().unwrap(), engine, device, 1, true, isolation)
    };
    let auto = Isolation::InProcess;

    let found = find(&encoder, None, "auto", auto).unwrap();
    assert!(matches!(found, WhisperSpec::Onnx(..)));
    let footprint = Whisper::footprint(&found).unwrap();
    assert!(footprint.weights_bytes > 80 << 20);
    let found = find(&ggml, None, "auto", auto).unwrap();
    assert!(matches!(found, WhisperSpec::WhisperCpp(..)));

    let refusal = |model: &Path, engine, device: &str, isolation| {
        find(model, engine, device, isolation)
            .unwrap_err()
            .to_string()
    };
    let why = refusal(&ggml, Some(Engine::OnnxRuntime), "auto", auto);
    assert!(why.contains("engine=onnx was asked for"), "{why}");
    let why = refusal(&encoder, Some(Engine::WhisperCpp), "auto", auto);
    assert!(why.contains("engine=whisper-cpp was asked for"), "{why}");

    let here = find(&encoder, None, "auto", auto).unwrap();
    let apart = find(&encoder, None, "auto", Isolation::Process).unwrap();
    assert_eq!(apart, here.clone().isolated());
    assert!(Whisper::apart(&apart) && !Whisper::apart(&here));
    let [here, apart] = [here, apart].map(|spec| Whisper::footprint(&spec).unwrap());
    assert!(apart.weights_bytes > here.weights_bytes);
    // Room for the samples of eight windows.
    assert!(apart.lane_bytes > here.lane_bytes + 8 * 30 * 16_000 * 4);
}

fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// In a process of its own, where nothing else takes memory. Prints what it measures.
#[test]
#[ignore = "the other half of a_lane_takes_no_more_than_was_reckoned"]
fn memory_child() {
    let (Some(encoder), speech) = (encoder("int8"), speech()) else {
        return;
    };
    let spec = speech_spec(
        encoder.to_str().unwrap(),
        None,
        "cpu",
        1,
        true,
        Isolation::InProcess,
    )
    .unwrap();
    // 29 s of one speech after another.
    let all = speech.iter().cycle().flat_map(|(_, s)| s.iter().copied());
    let full: Arc<[f32]> = all.take(29 * 16_000).collect();
    let before = anonymous();
    let model = Whisper::load(&spec).unwrap();
    let loaded = anonymous();
    let mut lane = model.lane().unwrap();
    let made = anonymous();
    let prompted = |id| Window {
        prompt: "names of people and places, ".repeat(40),
        ..window(id, &full)
    };
    let params = BatchParams {
        temperature: 0.4,
        best_of: 2,
        ..BatchParams::default()
    };
    let mut most = 0;
    for round in 0..2 {
        let answers = run(&mut *lane, (0..8).map(prompted), &params);
        assert!(answers.values().all(Result::is_ok), "round {round}");
        most = anonymous().max(most);
    }
    println!(
        "weights {} lane {} most {}",
        loaded - before,
        made - loaded,
        most - loaded
    );
}

#[test]
fn a_lane_takes_no_more_than_was_reckoned() {
    let Some(encoder) = encoder("int8") else {
        return;
    };
    let model = encoder.to_str().unwrap();
    let spec = speech_spec(model, None, "cpu", 1, true, Isolation::InProcess).unwrap();
    let reckoned = Whisper::footprint(&spec).unwrap();

    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "memory_child"])
        .output()
        .unwrap();

    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let figure = |name: &str| -> u64 {
        let mut words = text.split_whitespace().skip_while(|w| *w != name);
        words.nth(1).unwrap().parse().unwrap()
    };
    let (weights, lane, most) = (figure("weights"), figure("lane"), figure("most"));
    eprintln!("{text}reckoned: {reckoned:?}");
    assert!(weights <= reckoned.weights_bytes, "{text}");
    assert!(most <= reckoned.lane_bytes, "{text}");
    // A lane has from the start what it will ever take.
    assert!(most <= lane + lane / 10, "{text}");
}

/// Words as a scorer sees them.
fn normal(word: &str) -> String {
    let letters = word.chars().filter(|c| c.is_alphanumeric());
    letters.collect::<String>().to_lowercase()
}

#[test]
fn a_recording_is_transcribed_with_times_from_one_end_to_the_other() {
    let Some(encoder) = encoder("int8") else {
        return;
    };
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! scribetranscriber name=text engine=onnx \
         unit=word model={} ! fakesink name=out",
        repository("tests/data/demo.opus").display(),
        encoder.display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    let recorder = common::Recorder::on(&sink);
    pipeline.set_state(gst::State::Playing).unwrap();
    let out = recorder.wait_eos();
    let stats: gst::Structure = pipeline.by_name("text").unwrap().property("stats");
    pipeline.set_state(gst::State::Null).unwrap();
    let engine: String = stats.get("engine").unwrap();
    assert!(engine.contains("ONNX Runtime (int8)"), "{engine}");

    let words: Vec<(String, u64, u64)> = common::words(&out)
        .into_iter()
        .map(|(word, start, end)| (normal(&word), start, end))
        .collect();
    let lines = std::fs::read_to_string(repository("tests/data/demo.ref.tsv")).unwrap();
    let (mut said, mut found, mut ends) = (0, 0, 0);
    for line in lines.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let ms = |field: &str| (field.parse::<f64>().unwrap() * 1000.0) as u64;
        let (start, end) = (ms(fields[0]), ms(fields[1]));
        let wanted: Vec<String> = fields[2].split_whitespace().map(normal).collect();
        let inside = |(_, from, to): &&(String, u64, u64)| *from + 500 >= start && *to <= end + 500;
        let heard: Vec<&(String, u64, u64)> = words.iter().filter(inside).collect();
        said += wanted.len();
        found += wanted
            .iter()
            .filter(|w| heard.iter().any(|h| h.0 == **w))
            .count();
        // First and last words, where they are understood: the reference has no times of those between.
        let near = |a: u64, b: u64| a.abs_diff(b) <= 500;
        let first = heard.iter().find(|h| Some(&h.0) == wanted.first());
        let last = heard.iter().rev().find(|h| Some(&h.0) == wanted.last());
        for (word, off) in [
            (first, first.is_some_and(|w| near(w.1, start))),
            (last, last.is_some_and(|w| near(w.2, end))),
        ] {
            if let Some(word) = word {
                assert!(off, "{word:?} in {start} to {end}");
                ends += 1;
            }
        }
    }
    assert!(found * 10 >= said * 8, "{found} of {said} words: {words:?}");
    assert!(ends >= 14, "{ends} first and last words of 24");
}
