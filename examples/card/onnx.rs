// SPDX-License-Identifier: MPL-2.0
//! A model on ONNX Runtime: its text, its speed by batch, and its memory beside what is reserved for it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use gstscribe::inference::isolated::Isolation;
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, DeviceId, EngineError, Language, ResultSink, SpeechToText,
    Window, WindowId, WindowSource,
};
use gstscribe::registry::device::{Cuda, Device};
use gstscribe::registry::{Kind, Whisper};
use gstscribe::transcribe::file::speech_spec;
use gstscribe::transcript::Task;

use crate::measure::row;
use crate::watch::{Peak, until_steady, used};
use crate::{Asked, Outcome, sound};

/// Windows that a speed is measured with.
const WINDOWS: usize = 32;

struct Queue(VecDeque<Window>);

impl WindowSource for Queue {
    fn next(&mut self) -> Option<Window> {
        self.0.pop_front()
    }
}

#[derive(Default)]
struct Answers(BTreeMap<WindowId, Result<Decoded, EngineError>>);

impl ResultSink for Answers {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        self.0.insert(id, result);
    }
}

/// Texts of windows, so many at once.
fn decode(lane: &mut dyn SpeechToText, windows: &[&[f32]], batch: usize) -> Outcome<Vec<String>> {
    let mut texts = Vec::new();
    for some in windows.chunks(batch) {
        let window = |(samples, id): (&&[f32], WindowId)| Window {
            id,
            samples: (*samples).into(),
            language: Language::Fixed("en".into()),
            task: Task::Transcribe,
            prompt: String::new(),
            vocabulary: Vec::new(),
            prefix: Vec::new(),
            most_tokens: 0,
            cancel: CancelToken::default(),
        };
        let mut queue = Queue(some.iter().zip(0..).map(window).collect());
        let mut answers = Answers::default();
        lane.run(&mut queue, &mut answers, &BatchParams::default())?;
        for answer in answers.0.into_values() {
            let bytes: Vec<u8> = answer?.tokens.into_iter().flat_map(|t| t.bytes).collect();
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(texts)
}

/// Anonymous memory of this process, bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib: Option<u64> = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0) << 10
}

pub fn run(asked: &Asked) -> Outcome<()> {
    let samples = sound(asked.word(2)?)?;
    let device = asked.text("device", "cuda:0");
    let spec = speech_spec(asked.word(1)?, None, device, 1, true, Isolation::InProcess)?;
    let card = match Whisper::device(&spec) {
        DeviceId::Cuda(number) => Some(Cuda::new(number)?),
        _ => None,
    };
    let footprint = Whisper::footprint(&spec)?;
    let host = Whisper::host_bytes(&spec)?;
    let taken = || card.as_ref().map_or(Ok(0), used);
    let (base, host_base) = (taken()?, anonymous());
    let context = card.as_ref().map_or(0, Device::context_bytes);

    println!("{:<52} {:>10} {:>10}", "MiB", "reckoned", "measured");
    let peak = card.is_some().then(Peak::watch).transpose()?;
    let began = Instant::now();
    let model = Whisper::load(&spec)?;
    let loaded = began.elapsed();
    let began = Instant::now();
    let mut lane = model.lane()?;
    let made = began.elapsed();
    println!(
        "{}: load {loaded:.2?}, lane {made:.2?}",
        model.info().engine
    );
    row("loaded, with a lane and the context", None, taken()? - base);

    let whole: Vec<&[f32]> = samples.chunks(29 * 16_000).collect();
    let texts = decode(lane.as_mut(), &whole, model.info().max_batch)?;
    std::fs::write(asked.word(3)?, texts.join("\n"))?;
    let many: Vec<&[f32]> = whole.iter().copied().cycle().take(WINDOWS).collect();
    let seconds = many.iter().map(|w| w.len()).sum::<usize>() as f64 / 16_000.0;
    let rounds = asked.number("windows", WINDOWS)?;
    let many = &many[..rounds.clamp(1, WINDOWS)];
    let seconds = seconds * many.len() as f64 / WINDOWS as f64;
    for batch in [1, 2, 4, 8] {
        if batch > model.info().max_batch {
            break;
        }
        let began = Instant::now();
        decode(lane.as_mut(), many, batch)?;
        let took = began.elapsed().as_secs_f64();
        println!(
            "{device:<7} batch {batch}: {:>7.1} x real time ({seconds:.0} s of sound in {took:.2} s)",
            seconds / took
        );
    }
    if let (Some(card), Some(peak)) = (&card, peak) {
        let promised = footprint.weights_bytes + footprint.lane_bytes + context;
        row(
            "on the card at most, with the context",
            Some(promised),
            peak.end() - base,
        );
        row(
            "beside it, in the processor's memory",
            Some(host),
            anonymous() - host_base,
        );
        drop(lane);
        drop(model);
        let (left, after) = until_steady(card)?;
        row(
            &format!("all given back, {after:.2?} later, left of it"),
            None,
            left - base,
        );
    }
    Ok(())
}
