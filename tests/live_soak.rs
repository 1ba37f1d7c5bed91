// SPDX-License-Identifier: MPL-2.0
//! A day of live sound on its own clock: real speech, the real voice activity model, a fake that writes two words a second.
//! Memory stays flat, times never go back, captions do not drift from their sound. `make soak`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "it tells how far it is")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use gst::prelude::*;
use gstscribe::inference::Token;
use gstscribe::inference::fake::{self, FakeSpeech};

const HOUR_MS: u64 = 3_600_000;
const BUFFER_MS: u64 = 20;
/// Samples from one word to the next.
const WORD_EVERY: usize = 8_000;

/// Two words a second, whatever is said: those of the prefix first.
fn writes(name: &str) {
    FakeSpeech::new(|window, _| {
        let count = (window.samples.len() / WORD_EVERY).max(window.prefix.len());
        let token = |n: usize| {
            let id = window.prefix.get(n).copied();
            let end = ((n + 1) * WORD_EVERY).min(window.samples.len());
            Token {
                id: id.unwrap_or(1000 + (n % 50) as u32),
                bytes: format!(" w{}", n % 50).into_bytes(),
                probability: 0.9,
                start: Some((n * WORD_EVERY).min(end.saturating_sub(1)) as u32),
                end: Some(end as u32),
            }
        };
        let mut decoded = fake::spread("", window);
        decoded.tokens = (0..count).map(token).collect();
        decoded.alignment_end = decoded.tokens.last().and_then(|t| t.end);
        Ok(decoded)
    })
    .register(name);
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kb: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kb << 10
}

/// Speech with pauses of several lengths behind it, 16 kHz.
fn speech() -> Vec<u8> {
    let mut out = Vec::new();
    let file = std::fs::read(repository("tests/data/demo.opus"));
    assert!(file.is_ok());
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample \
         ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! appsink name=out sync=false",
        repository("tests/data/demo.opus").display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("out").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    while let Ok(sample) = sink.pull_sample() {
        out.extend_from_slice(&sample.buffer().unwrap().map_readable().unwrap());
    }
    pipeline.set_state(gst::State::Null).unwrap();
    for seconds in [1, 7, 40] {
        let cut = out.len() / 4 * 4;
        out.truncate(cut);
        out.extend(std::iter::repeat_n(0u8, seconds * 64_000));
    }
    out
}

#[test]
#[ignore = "a day of sound, minutes of work: make soak"]
fn a_day_of_live_sound_leaves_memory_flat_and_times_right() {
    if !there(
        &repository("models/silero_vad_16k_sequence.onnx"),
        "scripts/models.sh silero-vad-6.2-sequence",
    ) {
        return;
    }
    init();
    let hours: u64 = std::env::var("SCRIBE_SOAK_HOURS").map_or(24, |h| h.parse().unwrap());
    writes("soak");
    let element = transcriber("soak");
    element.set_property("vad-model", "");
    element.set_property_from_str("unit", "word");
    element.set_property("post-messages", false);
    let sound = speech();
    let block = (BUFFER_MS * 64) as usize;

    let words = Arc::new(AtomicU64::new(0));
    let position = Arc::new(Mutex::new((gst::ClockTime::ZERO, 0u64)));
    let rig = Rig::of(element, true);
    let (count, at) = (Arc::clone(&words), Arc::clone(&position));
    rig.sink.add_probe(
        gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM,
        move |_, info| {
            let (start, end, word) = match &info.data {
                Some(gst::PadProbeData::Buffer(b)) => (
                    b.pts().unwrap(),
                    b.pts().unwrap() + b.duration().unwrap(),
                    true,
                ),
                Some(gst::PadProbeData::Event(e)) => match e.view() {
                    gst::EventView::Gap(gap) => {
                        (gap.get().0, gap.get().0 + gap.get().1.unwrap(), false)
                    }
                    _ => return gst::PadProbeReturn::Ok,
                },
                _ => return gst::PadProbeReturn::Ok,
            };
            let mut at = at.lock().unwrap();
            if start != at.0 {
                at.1 += 1;
            }
            at.0 = end;
            count.fetch_add(u64::from(word), Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        },
    );
    rig.begin();

    let mut samples = 0u64;
    let mut early = 0;
    let mut worst = 0u64;
    for n in 0..hours * HOUR_MS / BUFFER_MS {
        let from = (n as usize * block) % (sound.len() - block);
        let from = from / 4 * 4;
        rig.push(buffer(sound[from..from + block].to_vec(), n * BUFFER_MS))
            .unwrap();
        samples += BUFFER_MS * 16;
        if n % 25 == 24 {
            let wanted = samples as f64 / 16_000.0 - 0.001;
            eventually("the models answer", || {
                let stats = rig.element.property::<gst::Structure>("stats");
                stats.get::<f64>("audio-seconds").unwrap() >= wanted
                    && stats.get::<u64>("in-work").unwrap() == 0
            });
            let at = position.lock().unwrap().0.mseconds();
            worst = worst.max(((n + 1) * BUFFER_MS).saturating_sub(at));
        }
        // What tests record of it is not the element's.
        if n % 500 == 0 {
            rig.out.clear();
        }
        if ((n + 1) * BUFFER_MS).is_multiple_of(HOUR_MS) {
            let hour = (n + 1) * BUFFER_MS / HOUR_MS;
            let now = resident();
            if hour == 1 {
                early = now;
            }
            eprintln!(
                "hour {hour}: {} MiB, {} words, at most {worst} ms behind",
                now >> 20,
                words.load(Ordering::Relaxed)
            );
        }
    }
    rig.event(gst::event::Eos::new());
    rig.out.wait_eos();

    let (end, breaks) = *position.lock().unwrap();
    assert_eq!(breaks, 0, "holes or steps back");
    assert_eq!(
        end,
        ms(hours * HOUR_MS),
        "captions and sound have drifted apart"
    );
    assert!(words.load(Ordering::Relaxed) > 1000 * hours);
    // `latency`, and what a decoding and the sound before it take.
    assert!(worst <= 4_600, "{worst} ms behind");
    let late = resident();
    assert!(
        hours < 2 || late < early + (24 << 20),
        "{early} bytes, then {late}"
    );
}
