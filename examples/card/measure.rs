// SPDX-License-Identifier: MPL-2.0
//! Memory of a model and of its lanes on a card, reckoned and measured.

use std::sync::Barrier;

use gstscribe::inference::whisper_cpp::{WhisperCppModel, WhisperCppSpec, made};
use gstscribe::inference::{BatchParams, SpeechModel, SpeechToText};
use gstscribe::registry::device::{Cuda, Device};
use gstscribe::registry::{Kind, Whisper};

use crate::speed::decode;
use crate::watch::{Peak, mib, until_steady, used};
use crate::{Asked, Outcome, sound, spec};

const LANES: usize = 4;

/// A line of the table.
pub fn row(what: &str, reckoned: Option<u64>, measured: u64) {
    let reckoned = reckoned.map_or(String::new(), mib);
    println!("{what:<52} {reckoned:>10} {:>10}", mib(measured));
}

/// The most pages that this process ever had.
fn host_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0) << 10
}

fn beams(beam: u32) -> BatchParams {
    BatchParams {
        beam,
        ..BatchParams::default()
    }
}

/// What a process has taken once it has used the card and given all back.
fn context(card: &Cuda, samples: &[f32]) -> Outcome<u64> {
    let folder = std::env::temp_dir().join(format!("scribe-card-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("smallest.bin");
    std::fs::write(&path, made::smallest().bytes)?;
    let before = used(card)?;
    let small = WhisperCppSpec {
        cuda_device: Some(0),
        ..spec(&path.to_string_lossy(), "cpu", true)?
    };
    let model = WhisperCppModel::load(&small)?;
    row(
        "context, with a model of 7 MB",
        Some(card.context_bytes()),
        used(card)? - before,
    );
    let mut lane = model.lane()?;
    row("  with a lane of it", None, used(card)? - before);
    decode(lane.as_mut(), &samples[..29 * 16_000], &beams(4))?;
    drop(lane);
    drop(model);
    std::fs::remove_dir_all(&folder)?;
    let (left, after) = until_steady(card)?;
    row(
        &format!("  left when both are gone, {after:.2?} later"),
        None,
        left - before,
    );
    Ok(left - before)
}

pub fn run(card: &Cuda, asked: &Asked) -> Outcome<()> {
    let samples = sound(asked.word(2)?)?;
    let windows: Vec<&[f32]> = samples.chunks_exact(29 * 16_000).collect();
    let first = *windows
        .first()
        .ok_or("the recording is shorter than a window")?;
    let spec = spec(
        asked.word(1)?,
        "cuda:0",
        asked.text("words", "yes") == "yes",
    )?;
    let footprint = spec.footprint()?;
    println!("{} word times {}", spec.name, spec.word_times);
    println!("{:<52} {:>10} {:>10}", "MiB", "reckoned", "measured");
    let start = used(card)?;
    context(card, &samples)?;

    let base = used(card)?;
    let peak = Peak::watch()?;
    let model = WhisperCppModel::load(&spec)?;
    row(
        "load, at most",
        Some(footprint.weights_bytes + footprint.load_extra_bytes),
        peak.end() - base,
    );
    let loaded = used(card)?;
    row("weights", Some(footprint.weights_bytes), loaded - base);

    let mut lanes: Vec<Box<dyn SpeechToText>> = Vec::new();
    for n in 1..=LANES {
        let before = used(card)?;
        lanes.push(model.lane()?);
        row(
            &format!("lane {n}, made"),
            Some(footprint.lane_bytes),
            used(card)? - before,
        );
    }
    let made = used(card)?;
    let drawn = |temperature, best_of| BatchParams {
        temperature,
        best_of,
        ..BatchParams::default()
    };
    for (what, params) in [
        ("beam 1", beams(1)),
        ("beam 4", beams(4)),
        ("four samples at 4.0: the longest text", drawn(4.0, 4)),
        ("beam 5", beams(5)),
        ("beam 8", beams(8)),
        ("beam 1 again", beams(1)),
    ] {
        let peak = Peak::watch()?;
        let text = decode(lanes[0].as_mut(), first, &params)?;
        let extra = Whisper::extra_bytes(&footprint, &params);
        let tokens = text.tokens.len();
        row(
            &format!("  lane 1 more, at most: {what}, {tokens} tokens"),
            Some(extra),
            peak.end() - made,
        );
    }
    let before = used(card)?;
    let peak = Peak::watch()?;
    let start_line = Barrier::new(LANES);
    std::thread::scope(|scope| -> Outcome<()> {
        let threads: Vec<_> = lanes
            .iter_mut()
            .map(|lane| {
                let line = &start_line;
                let windows = &windows;
                scope.spawn(move || -> Outcome<()> {
                    line.wait();
                    for window in windows.iter().take(2) {
                        decode(lane.as_mut(), window, &beams(4))?;
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a lane panicked")??;
        }
        Ok(())
    })?;
    row(
        "all lanes at work, more than before",
        Some(0),
        peak.end().saturating_sub(before),
    );
    let in_all = footprint.weights_bytes + LANES as u64 * footprint.lane_bytes;
    let wide = Whisper::extra_bytes(&footprint, &beams(8));
    row(
        "model and four lanes, one for 8 beams",
        Some(in_all + wide),
        used(card)? - base,
    );
    row(
        "  with the context",
        Some(in_all + wide + card.context_bytes()),
        used(card)? - start,
    );

    lanes.truncate(1);
    let (left, after) = until_steady(card)?;
    row(
        &format!("three lanes less, {after:.2?} later"),
        None,
        left - base,
    );
    lanes.clear();
    drop(model);
    let (left, after) = until_steady(card)?;
    row(
        &format!("all given back, {after:.2?} later, left of it"),
        Some(0),
        left.saturating_sub(base),
    );
    row("  memory of the processor, at most", None, host_peak());
    let held = card.held_by(std::process::id());
    row(
        "  this process by the driver's list",
        None,
        held.unwrap_or(0),
    );
    Ok(())
}
