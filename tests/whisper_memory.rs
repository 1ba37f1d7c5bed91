// SPDX-License-Identifier: MPL-2.0
//! Memory of a real model, measured in a process of its own and compared with what was reckoned before it was loaded.
//!
//! What counts is anonymous memory: pages of the model's file are the system's cache, which it takes back as it likes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::{repository, there};
use gst::prelude::*;
use gstscribe::inference::whisper_cpp::{WhisperCppModel, WhisperCppSpec};
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, ResultSink, SpeechModel,
    SpeechToText, Window, WindowId, WindowSource,
};
use gstscribe::registry::{Kind, Whisper};
use gstscribe::transcript::Task;

const MIB: u64 = 1 << 20;
const MODEL: &str = "models/ggml-tiny.en-q8_0.bin";
/// Where the child finds its sound.
const SOUND: &str = "SCRIBE_MEMORY_SOUND";

fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// The most there was since it was made.
struct Peak {
    most: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Peak {
    fn watch() -> Self {
        let (most, end) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (to, until) = (Arc::clone(&most), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                to.fetch_max(anonymous(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { most, end, thread }
    }

    fn end(self) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.most.load(Ordering::SeqCst)
    }
}

struct One(Option<Window>);

impl WindowSource for One {
    fn next(&mut self) -> Option<Window> {
        self.0.take()
    }
}

#[derive(Default)]
struct Answer(Option<Decoded>);

impl ResultSink for Answer {
    fn push(&mut self, _: WindowId, result: Result<Decoded, EngineError>) {
        self.0 = Some(result.unwrap());
    }
}

/// Decodes `samples`; how many tokens came.
fn decode(
    lane: &mut dyn SpeechToText,
    samples: &[f32],
    prompt: &str,
    params: &BatchParams,
) -> usize {
    let window = Window {
        id: 1,
        samples: samples.into(),
        language: Language::Fixed("en".into()),
        task: Task::Transcribe,
        prompt: prompt.into(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::default(),
    };
    let mut answer = Answer::default();
    lane.run(&mut One(Some(window)), &mut answer, params)
        .unwrap();
    let decoded = answer.0.unwrap();
    assert!(decoded.tokens.iter().all(|t| t.end.is_some()));
    decoded.tokens.len()
}

/// Prints `name bytes` of each figure.
#[test]
#[ignore = "the process that the other tests of this file measure"]
fn child() {
    let print = |name: &str, bytes: u64| println!("figure {name} {bytes}");
    let sound: Vec<f32> = std::fs::read(std::env::var(SOUND).unwrap())
        .unwrap()
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let window = |from: usize| &sound[from * 16_000..(from + 29) * 16_000];
    let spec = WhisperCppSpec {
        path: repository(MODEL),
        name: "tiny.en".into(),
        cuda_device: None,
        threads: 1,
        word_times: true,
        word_time_offset: 0,
    };
    let beams = BatchParams {
        beam: 4,
        ..BatchParams::default()
    };
    let footprint = spec.footprint().unwrap();
    print("reckoned_weights", footprint.weights_bytes);
    print("reckoned_load", footprint.load_extra_bytes);
    print("reckoned_lane", footprint.lane_bytes);
    let wide = BatchParams {
        beam: 8,
        ..beams.clone()
    };
    print("reckoned_wide", Whisper::extra_bytes(&footprint, &wide));
    let before = anonymous();

    let peak = Peak::watch();
    let model = WhisperCppModel::load(&spec).unwrap();
    print("load_peak", peak.end() - before);
    let loaded = anonymous();
    print("weights", loaded - before);

    let peak = Peak::watch();
    let mut lane = model.lane().unwrap();
    let warm = anonymous();
    print("lane_warm", warm - loaded);
    let prompt = "Ada Lovelace and Charles Babbage, ".repeat(30);
    // All but the highest temperature gives text that somebody said; that one gives as many tokens as there can be.
    let drawn = |temperature, best_of| BatchParams {
        temperature,
        best_of,
        ..BatchParams::default()
    };
    let mut widest = 0;
    let mut grown = 0;
    for (from, prompt, params) in [
        (0, "", &beams),
        (30, "", &beams),
        (10, prompt.as_str(), &beams),
        (20, "", &drawn(0.4, 3)),
        (15, "", &drawn(4.0, 3)),
        (38, prompt.as_str(), &drawn(4.0, 4)),
    ] {
        let tokens = decode(lane.as_mut(), window(from), prompt, params);
        widest = widest.max(tokens);
        grown = grown.max(anonymous().saturating_sub(warm));
    }
    print("lane_peak", peak.end() - loaded);
    print("grown", grown);
    print("tokens", widest as u64);

    let before_wide = anonymous();
    decode(lane.as_mut(), window(0), "", &wide);
    print("wide", anonymous().saturating_sub(before_wide));

    drop(lane);
    print("lane_left", anonymous().saturating_sub(loaded));
    drop(model);
    print("left", anonymous().saturating_sub(before));
}

/// The child's figures by name, or nothing where there is no model.
fn figures() -> Option<&'static HashMap<String, u64>> {
    static FIGURES: OnceLock<Option<HashMap<String, u64>>> = OnceLock::new();
    FIGURES
        .get_or_init(|| {
            if !there(&repository(MODEL), "make models") {
                return None;
            }
            let folder = tempfile::tempdir().unwrap();
            let sound = folder.path().join("sound.f32");
            write_samples(&repository("tests/data/demo.opus"), &sound);
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--ignored", "--nocapture"])
                .env(SOUND, &sound)
                .output()
                .unwrap();
            assert!(out.status.success(), "{out:?}");
            let printed = String::from_utf8(out.stdout).unwrap();
            let figures = printed.lines().filter_map(|line| {
                let (name, bytes) = line.split_once("figure ")?.1.split_once(' ')?;
                Some((name.to_owned(), bytes.parse().unwrap()))
            });
            Some(figures.collect())
        })
        .as_ref()
}

fn write_samples(from: &Path, to: &Path) {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! \
         audio/x-raw,format=F32LE,rate=16000,channels=1 ! filesink location={}",
        from.display(),
        to.display()
    ))
    .unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let message = pipeline.bus().unwrap().timed_pop_filtered(
        gst::ClockTime::try_from(common::GUARD).unwrap(),
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    assert_eq!(message.unwrap().type_(), gst::MessageType::Eos);
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_model_and_a_lane_take_what_was_reckoned_and_not_much_less() {
    let Some(figures) = figures() else { return };
    let of = |name: &str| figures[name];

    // The widest text was among those that were measured.
    assert_eq!(of("tokens"), 220);
    assert!(of("weights") <= of("reckoned_weights"), "{figures:#?}");
    assert!(
        of("load_peak") <= of("reckoned_weights") + of("reckoned_load"),
        "{figures:#?}"
    );
    assert!(of("lane_peak") <= of("reckoned_lane"), "{figures:#?}");
    assert!(
        2 * of("reckoned_lane") <= 3 * of("lane_peak"),
        "{figures:#?}"
    );
    assert!(
        2 * of("reckoned_weights") <= 3 * of("weights"),
        "{figures:#?}"
    );
}

#[test]
fn a_lane_is_at_its_largest_before_it_is_lent() {
    let Some(figures) = figures() else { return };

    assert!(figures["grown"] < 16 * MIB, "{figures:#?}");
}

#[test]
fn more_beams_than_a_lane_has_room_for_take_what_was_reckoned_for_them() {
    let Some(figures) = figures() else { return };

    assert!(figures["reckoned_wide"] > 0);
    assert!(figures["wide"] <= figures["reckoned_wide"], "{figures:#?}");
}

#[test]
fn a_lane_and_a_model_give_back_what_they_took() {
    let Some(figures) = figures() else { return };

    assert!(figures["lane_left"] < 8 * MIB, "{figures:#?}");
    assert!(figures["left"] < 8 * MIB, "{figures:#?}");
}
