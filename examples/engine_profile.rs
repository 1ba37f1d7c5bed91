// SPDX-License-Identifier: MPL-2.0
//! Where the time of Whisper on ONNX Runtime goes, beside what the machine can do at the most.
//!
//! ```text
//! engine_profile pipeline MODEL RECORDING [rounds=3] [lanes=1] [element="beam-size=1 …"]
//!     a whole pipeline, decoding and JSON among it: processor seconds of each part, and of all the rest
//! engine_profile batches MODEL RECORDING [batch=1,2,4,8,16] [windows=16] [seconds=28] [beam=1] [words=yes]
//!     one lane alone: a window's encoding, a step of the decoder by batch, and memory
//! ```
//!
//! MODEL is what the property `model` takes. All computing is done by one thread, and times are that thread's processor
//! time: what else the machine does slows it, but waiting is not in it. The last line is JSON. `scripts/bench.sh where
//! scale sizes` runs it.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "common/asked.rs"]
mod asked;
#[path = "engine_profile/batches.rs"]
mod batches;
#[path = "common/decode.rs"]
mod decode;
#[path = "engine_profile/peaks.rs"]
mod peaks;
#[path = "engine_profile/pipeline.rs"]
mod pipeline;

use std::error::Error;

use asked::Asked;
use gstscribe::inference::isolated::Isolation;
use gstscribe::inference::onnx::whisper::{OnnxWhisperSpec, Work};
use gstscribe::inference::times::{Part, Times};
use gstscribe::registry::WhisperSpec;
use gstscribe::transcribe::file::speech_spec;
use peaks::Peaks;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The model, which must be one for ONNX Runtime.
fn model(name: &str) -> Outcome<(WhisperSpec, OnnxWhisperSpec)> {
    let spec = speech_spec(name, None, "cpu", 1, true, Isolation::InProcess)?;
    let WhisperSpec::Onnx(own, _) = &spec else {
        return Err(format!("{name} is no model for ONNX Runtime").into());
    };
    let own = own.clone();
    Ok((spec, own))
}

/// Least seconds that the encoder can take for what was done: weights and attention at the rate of their numbers. That of 16
/// bits is half that of 8: so it is on processors that have both.
fn encoder_limit(work: &Work, peaks: &Peaks, times: &Times) -> f64 {
    let attention = match work.attention_bits {
        8 => peaks.int8_gemm,
        16 => peaks.int8_gemm / 2.0,
        _ => peaks.f32_gemm,
    };
    let a_window =
        work.encoder_weights / peaks.of_weights(work) + work.encoder_attention / attention;
    times.windows as f64 * a_window
}

/// The same for the decoder, and the bytes a second that memory gives it. It reads its weights once a run and the sound of
/// each window in it; where it has more tokens than that takes time for, it is bound by computing.
fn decoder_limit(work: &Work, peaks: &Peaks, times: &Times) -> (f64, f64) {
    let bytes =
        times.steps as f64 * work.step_bytes + times.step_windows as f64 * work.window_bytes;
    let a_token =
        work.token_weights / peaks.of_weights(work) + work.token_attention / peaks.f32_gemm;
    // As many as a run reads: the caches help as they help the decoder.
    let rate = peaks::read(bytes / times.steps.max(1) as f64);
    ((bytes / rate).max(times.tokens as f64 * a_token), rate)
}

fn seconds(times: &Times, part: Part) -> f64 {
    times.of(part).as_secs_f64()
}

/// A line of `/proc/self/status` in MiB.
fn status_mib(field: &str) -> f64 {
    line_mib("/proc/self/status", field)
}

fn line_mib(file: &str, field: &str) -> f64 {
    let status = std::fs::read_to_string(file).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn main() -> Outcome<()> {
    let asked = Asked::read(std::env::args().skip(1));
    let document = match asked.word(0)? {
        "pipeline" => pipeline::run(&asked)?,
        "batches" => batches::run(&asked)?,
        other => return Err(format!("\"{other}\" is neither pipeline nor batches").into()),
    };
    println!("{document}");
    Ok(())
}
