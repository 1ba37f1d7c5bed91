// SPDX-License-Identifier: MPL-2.0
//! Damaged ONNX files without a digest to tell: each is refused with a reason, or loaded and answers with numbers or an
//! error. None ends the process, hangs, or takes more memory than was promised.
//!
//! Every file is made from a real model by its number alone: what a run has found, the next one finds again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "the outcome in figures")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{repository, there};
use gstscribe::diarize::models::{embedding_spec, segmentation_spec};
use gstscribe::inference::onnx::arena::set_arena_cap;
use gstscribe::inference::onnx::embedding::{WaveformModel, WaveformSpec};
use gstscribe::inference::onnx::segmentation::{PyannoteModel, PyannoteSpec};
use gstscribe::inference::onnx::vad::{SileroModel, SileroSpec};
use gstscribe::inference::{
    EmbedderModel, EngineError, Footprint, SEGMENTATION_WINDOW, SegmenterModel, VAD_FRAME,
    VadBlock, VadModel, VadState,
};
use gstscribe::registry::{EmbeddingSpec, SegmentationSpec};

/// Items in a batch: what a file may take follows from it.
const BATCH: usize = 2;
/// A file that takes longer hangs. Whole ones take a fifth of a second.
const HANGS: Duration = Duration::from_secs(120);
/// Files that one process tries.
const FILES_A_PROCESS: usize = 50;
const MIB: u64 = 1 << 20;
/// What the process may take beside the model: malloc's blocks, the test's own sound.
const SLACK: u64 = 8 * MIB;

/// The real models.
const MODELS: [&str; 3] = ["segmentation", "embedding", "voice activity"];

type Answer = dyn Fn(&Path) -> Result<(), EngineError>;

/// A real model.
struct Subject {
    /// The whole file.
    path: PathBuf,
    footprint: Footprint,
    /// Loads a file in its place, makes a lane and runs a batch.
    answer: Box<Answer>,
}

fn tone(samples: usize) -> Arc<[f32]> {
    (0..samples)
        .map(|k| ((k * 37 % 401) as f32 - 200.0) / 800.0)
        .collect()
}

fn subject(model: &str) -> Subject {
    match model {
        "segmentation" => {
            let SegmentationSpec::Pyannote(spec, _) = segmentation_spec("").unwrap() else {
                unreachable!("it is no fake");
            };
            let spec = PyannoteSpec {
                max_batch: BATCH,
                ..spec
            };
            Subject {
                path: spec.path.clone(),
                footprint: spec.footprint(spec.path.metadata().unwrap().len()),
                answer: Box::new(move |path| {
                    let model = PyannoteModel::load(&PyannoteSpec {
                        path: path.to_owned(),
                        ..spec.clone()
                    })?;
                    let windows = vec![tone(SEGMENTATION_WINDOW); BATCH];
                    let scores = model.lane()?.run(&windows)?;
                    let all = scores.iter().flat_map(|s| &s.scores);
                    assert!(all.into_iter().all(|v| v.is_finite()));
                    Ok(())
                }),
            }
        }
        "embedding" => {
            let EmbeddingSpec::Waveform(spec, _) = embedding_spec("ge2e").unwrap() else {
                unreachable!("it is no fake");
            };
            let spec = WaveformSpec {
                max_batch: BATCH,
                ..spec
            };
            Subject {
                path: spec.path.clone(),
                footprint: spec.footprint(spec.path.metadata().unwrap().len()),
                answer: Box::new(move |path| {
                    let model = WaveformModel::load(&WaveformSpec {
                        path: path.to_owned(),
                        ..spec.clone()
                    })?;
                    let vectors = model.lane()?.run(&vec![tone(80_000); BATCH])?;
                    let all = vectors.iter().flat_map(|v| &v.values);
                    assert!(all.into_iter().all(|v| v.is_finite()));
                    Ok(())
                }),
            }
        }
        _ => {
            let path = repository("models/silero-vad-6.2-rows.onnx");
            let spec = SileroSpec { path: path.clone() };
            Subject {
                footprint: spec.footprint(path.metadata().unwrap().len()),
                path,
                answer: Box::new(|path| {
                    let model = SileroModel::load(&SileroSpec {
                        path: path.to_owned(),
                    })?;
                    let block = VadBlock {
                        samples: tone(100 * VAD_FRAME).to_vec(),
                        state: VadState::default(),
                    };
                    let probs = model.lane()?.run(block)?.probs;
                    assert!(probs.iter().all(|v| v.is_finite()));
                    Ok(())
                }),
            }
        }
    }
}

/// SplitMix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Places in the file that are not inside a long tensor: names, shapes, attributes, lengths. Nine tenths of a file are
/// weights, and a bit there changes an answer a little.
fn structure(bytes: &[u8]) -> Vec<usize> {
    /// Longer runs of raw data are weights.
    const WEIGHTS: usize = 1024;
    fn varint(bytes: &[u8], at: &mut usize) -> usize {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    /// Marks what lies in weights below a message at `from..end` on this path of fields.
    fn walk(bytes: &[u8], from: usize, end: usize, path: &[usize], weights: &mut [bool]) {
        let mut at = from;
        while at < end {
            let key = varint(bytes, &mut at);
            match key & 7 {
                0 => {
                    varint(bytes, &mut at);
                }
                1 => at += 8,
                2 => {
                    let length = varint(bytes, &mut at);
                    match path {
                        [last] if key >> 3 == *last && length > WEIGHTS => {
                            weights[at..at + length].fill(true);
                        }
                        [next, rest @ ..] if key >> 3 == *next && !rest.is_empty() => {
                            walk(bytes, at, at + length, rest, weights);
                        }
                        _ => {}
                    }
                    at += length;
                }
                _ => at += 4,
            }
        }
    }
    let mut weights = vec![false; bytes.len()];
    // graph, initializer, raw_data.
    walk(bytes, 0, bytes.len(), &[7, 5, 9], &mut weights);
    let places = weights.iter().enumerate().filter(|(_, weight)| !**weight);
    places.map(|(at, _)| at).collect()
}

/// The damaged file number `n` of a model.
fn mutant(whole: &[u8], structure: &[usize], n: usize) -> (&'static str, Vec<u8>) {
    let mut random = Random(n as u64);
    let mut bytes = whole.to_vec();
    let place = |random: &mut Random| structure[random.below(structure.len())];
    let kind = match n % 10 {
        0 => {
            for _ in 0..=random.below(8) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            "bits anywhere"
        }
        1..=3 => {
            for _ in 0..=random.below(3) {
                bytes[place(&mut random)] ^= 1 << random.below(8);
            }
            "bits of the structure"
        }
        4 => {
            for _ in 0..=random.below(3) {
                bytes[place(&mut random)] = random.next() as u8;
            }
            "bytes of the structure"
        }
        5 => {
            // A length or a number that has no end, is the largest there is, or is zero.
            let extremes: [&[u8]; 5] = [
                &[0xff; 10],
                &[0xff, 0xff, 0xff, 0xff, 0x0f],
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                &[0; 4],
                &[0x80, 0x80, 0x80, 0x80, 0x08],
            ];
            let extreme = extremes[random.below(extremes.len())];
            let at = place(&mut random).min(bytes.len() - extreme.len());
            bytes[at..at + extreme.len()].copy_from_slice(extreme);
            "extreme numbers"
        }
        6 => {
            bytes.truncate(random.below(bytes.len()));
            "cut off"
        }
        7 => {
            let from = place(&mut random);
            let end = (from + 1 + random.below(64)).min(bytes.len());
            bytes.drain(from..end);
            "cut out"
        }
        8 => {
            let length = 1 + random.below(64);
            let a = place(&mut random).min(bytes.len() - length);
            let b = place(&mut random).min(bytes.len() - length);
            for n in 0..length {
                bytes.swap(a + n, b + n);
            }
            "swapped"
        }
        _ => {
            let at = random.below(bytes.len() - 400) / 4 * 4;
            let odd = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN, 1e-45];
            let odd = odd[random.below(odd.len())];
            for float in bytes[at..at + 400].as_chunks_mut::<4>().0 {
                *float = odd.to_le_bytes();
            }
            "odd weights"
        }
    };
    (kind, bytes)
}

/// Tries the files `from..end` of a model in this process, and tells what became of each.
fn try_all(model: &str, from: usize, end: usize) {
    let subject = subject(model);
    let whole = std::fs::read(&subject.path).unwrap();
    let structure = structure(&whole);
    let most = subject.footprint.weights_bytes
        + subject
            .footprint
            .load_extra_bytes
            .max(subject.footprint.lane_of(BATCH));
    set_arena_cap(most).unwrap();
    // Whatever ONNX Runtime needs once is there, and whatever asks for far too much is refused it.
    (subject.answer)(&subject.path).unwrap();
    process::limit_address_space(process::address_space() + 2048 * MIB);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.onnx");
    for n in from..end {
        let (kind, bytes) = mutant(&whole, &structure, n);
        std::fs::write(&path, bytes).unwrap();
        process::tell(&format!("{n}"));
        process::trim();
        process::reset_peak();
        let before = process::resident();
        let outcome = match (subject.answer)(&path) {
            Ok(()) => "answers".to_owned(),
            Err(EngineError::InvalidModel { why, .. }) => {
                assert!(!why.is_empty());
                let refused_by = ["ONNX Runtime refused it", "fails: the output holds"];
                let by = refused_by.iter().find(|by| why.contains(*by));
                format!(
                    "refused{}",
                    by.map(|by| format!(", {by}")).unwrap_or_default()
                )
            }
            Err(EngineError::OutOfMemory { .. }) => "out of memory".into(),
            Err(EngineError::Failed { .. }) => "fails".into(),
            Err(other) => panic!("{kind}: {other}"),
        };
        let taken = process::peak().saturating_sub(before);
        assert!(
            taken <= most + SLACK,
            "{model} {n} ({kind}), {outcome}: {taken} bytes taken, {most} promised"
        );
        process::tell(&format!("{n} {taken} {kind}: {outcome}"));
    }
    process::trim();
}

/// Tries the first `files` damaged files of each model, each batch of them in a process of its own.
fn damaged(test: &str, files: usize) {
    if let Some(task) = process::task() {
        let parts: Vec<&str> = task.split('/').collect();
        try_all(
            parts[0],
            parts[1].parse().unwrap(),
            parts[2].parse().unwrap(),
        );
        return;
    }
    let here = [
        "ge2e-resemblyzer",
        "segmentation-3.0",
        "silero-vad-6.2-rows",
    ]
    .iter()
    .all(|m| there(&repository(&format!("models/{m}.onnx")), "make models"));
    if !here {
        return;
    }
    let mut outcomes = BTreeMap::<String, usize>::new();
    let mut most_taken = 0;
    for model in MODELS {
        for from in (0..files).step_by(FILES_A_PROCESS) {
            let end = (from + FILES_A_PROCESS).min(files);
            for line in watched(test, &format!("{model}/{from}/{end}")) {
                // The number alone says that it is being tried.
                if let Some((figures, outcome)) = line.split_once(": ") {
                    let taken = figures.split(' ').nth(1).unwrap();
                    most_taken = most_taken.max(taken.parse::<u64>().unwrap());
                    *outcomes.entry(format!("{model}: {outcome}")).or_default() += 1;
                }
            }
        }
    }
    for (outcome, count) in &outcomes {
        eprintln!("{count:5} {outcome}");
    }
    eprintln!("most memory taken: {} MiB", most_taken / MIB);
    assert_eq!(outcomes.values().sum::<usize>(), MODELS.len() * files);
    for model in MODELS {
        for found in ["answers", "refused"] {
            assert!(
                outcomes.contains_key(&format!("{model}: {found}")),
                "no file of {model} {found}: the damage is all too great or too small"
            );
        }
    }
}

/// Runs a process that must tell something every now and then. What it tells.
fn watched(test: &str, task: &str) -> Vec<String> {
    let mut child = process::command(test, task).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let err = BufReader::new(child.stderr.take().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if let Some(line) = process::told(&line) {
                let _ = tell.send(line);
            }
        }
    });
    let complaints = std::thread::spawn(move || {
        let lines: Vec<String> = err.lines().map_while(Result::ok).collect();
        lines.join("\n")
    });
    let mut all: Vec<String> = Vec::new();
    loop {
        match told.recv_timeout(HANGS) {
            Ok(line) => all.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("{task} hangs at {:?}", all.last());
            }
        }
    }
    let status = child.wait().unwrap();
    assert!(
        status.success(),
        "{task} ended with {status} at {:?}\n{}",
        all.last(),
        complaints.join().unwrap()
    );
    all
}

#[test]
fn damaged_files_are_refused_or_answer_and_take_what_was_promised() {
    damaged(
        "damaged_files_are_refused_or_answer_and_take_what_was_promised",
        34,
    );
}

#[test]
#[ignore = "2001 files take minutes: make soak"]
fn two_thousand_damaged_files_are_refused_or_answer_and_take_what_was_promised() {
    damaged(
        "two_thousand_damaged_files_are_refused_or_answer_and_take_what_was_promised",
        667,
    );
}
