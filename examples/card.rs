// SPDX-License-Identifier: MPL-2.0
//! What scribe does on an NVIDIA card, beside what it has promised: memory by the driver's account, speed, text, and
//! workers that are killed. Wants a card and a build with `--features cuda`; docs/memory.md has what came of it.
//!
//! ```text
//! card made SHAPE FILE                   writes a model with random weights: tiny, medium, large-v3, large-v3-q8_0,
//!                                        large-v3-turbo-q8_0
//! card measure MODEL SOUND [words=no]    memory of the model and of four lanes, reckoned and measured
//! card speed MODEL SOUND TEXT [device=cuda:0] [lanes=1] [beam=1]   times real time; the text goes to TEXT
//! card streams MODEL SOUND [streams=8] [limit=4G] [isolation=auto] [kills=0] [device=cuda:0] [lanes=8] [fallback=none]
//! card together PROCESSES and what streams takes    so many of them at once, under one limit
//! card onnx ENCODER SOUND TEXT [device=cuda:0] [windows=32]   ONNX Runtime: text, speed by batch, memory; no --features cuda
//! card compare TEXT TEXT                 how many words differ
//! ```
//!
//! SOUND is a WAV file: 16 kHz, mono, 16 bits.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program: its words go to the terminal"
)]

#[path = "common/asked.rs"]
mod asked;
#[path = "card/measure.rs"]
mod measure;
#[path = "card/onnx.rs"]
mod onnx;
#[path = "card/speed.rs"]
mod speed;
#[path = "card/streams.rs"]
mod streams;
#[path = "card/watch.rs"]
mod watch;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use gstscribe::inference::whisper_cpp::{WhisperCppSpec, header::Header, made};
use gstscribe::registry::device::{Cuda, cards};

use asked::Asked;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Whether whisper.cpp can use cards here.
fn built_with_cuda() -> Outcome<()> {
    if cfg!(feature = "cuda") {
        return Ok(());
    }
    Err("this build has no CUDA: build with --features cuda,test-support".into())
}

/// The card, or why there is none.
fn card() -> Outcome<Cuda> {
    Ok(Cuda::new(0).map_err(|why| format!("a card is needed: {why}"))?)
}

fn spec(model: &str, device: &str, word_times: bool) -> Outcome<WhisperCppSpec> {
    let number = device.strip_prefix("cuda:").map(str::parse).transpose()?;
    Ok(WhisperCppSpec {
        path: Path::new(model).canonicalize()?,
        name: Path::new(model)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        cuda_device: number,
        threads: 1,
        word_times,
        word_time_offset: 0,
    })
}

/// Samples of a WAV file.
fn sound(path: &str) -> Outcome<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    let data = bytes.windows(4).position(|w| w == b"data");
    let from = data.ok_or("no WAV file: it has no data")? + 8;
    let samples = bytes.get(from..).unwrap_or_default().as_chunks::<2>().0;
    Ok(samples
        .iter()
        .map(|b| f32::from(i16::from_le_bytes(*b)) / 32_768.0)
        .collect())
}

fn make(shape: &str, to: &str) -> Outcome<()> {
    let large = |ftype| made::header(1280, 32, 51_866, 128, ftype);
    let header: Header = match shape {
        "tiny" => made::header(384, 4, 51_864, 80, 1),
        "medium" => made::header(1024, 24, 51_865, 80, 1),
        "large-v3-turbo-q8_0" => Header {
            n_audio_layer: 32,
            ..made::header(1280, 4, 51_866, 128, 7)
        },
        "large-v3" => large(1),
        "large-v3-q8_0" => large(7),
        other => return Err(format!("no shape \"{other}\"").into()),
    };
    let made = made::model(&header, 50_257, made::Weights::Noise);
    std::fs::write(to, made.bytes)?;
    Ok(())
}

/// Words of `a` and `b` that have no like, at the least: their edit distance.
fn differences(a: &str, b: &str) -> (usize, usize) {
    let (a, b): (Vec<&str>, Vec<&str>) = (
        a.split_whitespace().collect(),
        b.split_whitespace().collect(),
    );
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let change = before + usize::from(left != right);
            before = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(before + 1);
        }
    }
    (row[b.len()], a.len())
}

fn run(asked: &Asked) -> Outcome<()> {
    match asked.word(0)? {
        "made" => make(asked.word(1)?, asked.word(2)?),
        "measure" => {
            built_with_cuda()?;
            measure::run(&card()?, asked)
        }
        "speed" => speed::run(asked),
        "onnx" => onnx::run(asked),
        "streams" => streams::run(asked),
        "together" => streams::together(asked),
        "compare" => {
            let read = |at| -> Outcome<String> { Ok(std::fs::read_to_string(asked.word(at)?)?) };
            let (differ, of) = differences(&read(1)?, &read(2)?);
            println!(
                "{differ} of {of} words differ: {} {}",
                asked.word(1)?,
                asked.word(2)?
            );
            Ok(())
        }
        "cards" => {
            println!("{:?}", cards());
            Ok(())
        }
        other => Err(format!("nothing called \"{other}\": see the top of examples/card.rs").into()),
    }
}

fn main() -> ExitCode {
    match run(&Asked::read(std::env::args().skip(1))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("card: {error}");
            ExitCode::FAILURE
        }
    }
}
