// SPDX-License-Identifier: MPL-2.0
//! Speed of an engine without the rest: lanes side by side, each with the whole recording.

use std::sync::Barrier;
use std::time::Instant;

use gstscribe::inference::whisper_cpp::WhisperCppModel;
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, ResultSink, SpeechModel,
    SpeechToText, Window, WindowId, WindowSource,
};
use gstscribe::transcript::Task;

use crate::{Asked, Outcome, sound, spec};

struct One(Option<Window>);

impl WindowSource for One {
    fn next(&mut self) -> Option<Window> {
        self.0.take()
    }
}

#[derive(Default)]
struct Answer(Option<Result<Decoded, EngineError>>);

impl ResultSink for Answer {
    fn push(&mut self, _: WindowId, result: Result<Decoded, EngineError>) {
        self.0 = Some(result);
    }
}

/// The text of one window.
pub fn decode(
    lane: &mut dyn SpeechToText,
    samples: &[f32],
    params: &BatchParams,
) -> Outcome<Decoded> {
    let window = Window {
        id: 1,
        samples: samples.into(),
        language: Language::Fixed("en".into()),
        task: Task::Transcribe,
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::default(),
    };
    let mut answer = Answer::default();
    lane.run(&mut One(Some(window)), &mut answer, params)?;
    Ok(answer.0.ok_or("no answer")??)
}

pub fn run(asked: &Asked) -> Outcome<()> {
    let samples = sound(asked.word(2)?)?;
    let device = asked.text("device", "cuda:0");
    if device != "cpu" {
        crate::built_with_cuda()?;
        crate::card()?;
    }
    let lanes = asked.number("lanes", 1)?;
    let beam = u32::try_from(asked.number("beam", 1)?)?;
    let params = BatchParams {
        beam,
        ..BatchParams::default()
    };
    let began = Instant::now();
    let model = WhisperCppModel::load(&spec(asked.word(1)?, device, true)?)?;
    let load = began.elapsed();
    let began = Instant::now();
    let mut made = Vec::new();
    for _ in 0..lanes {
        made.push(model.lane()?);
    }
    let lane = began.elapsed() / u32::try_from(lanes)?;
    let line = Barrier::new(lanes + 1);
    let (texts, took) = std::thread::scope(|scope| -> Outcome<(Vec<String>, f64)> {
        let threads: Vec<_> = made
            .into_iter()
            .map(|mut lane| {
                let (line, samples, params) = (&line, &samples, &params);
                scope.spawn(move || -> Outcome<String> {
                    line.wait();
                    let mut text = Vec::new();
                    for window in samples.chunks(29 * 16_000) {
                        let decoded = decode(lane.as_mut(), window, params)?;
                        text.extend(decoded.tokens.into_iter().flat_map(|t| t.bytes));
                        text.push(b'\n');
                    }
                    Ok(String::from_utf8_lossy(&text).into_owned())
                })
            })
            .collect();
        line.wait();
        let began = Instant::now();
        let mut texts = Vec::new();
        for thread in threads {
            texts.push(thread.join().map_err(|_| "a lane panicked")??);
        }
        Ok((texts, began.elapsed().as_secs_f64()))
    })?;
    let seconds = samples.len() as f64 / 16_000.0 * lanes as f64;
    println!(
        "{device:<7} {lanes:>2} lanes, beam {beam}: {:>7.1} x real time ({seconds:.0} s of sound in {took:.2} s; load \
         {load:.2?}, a lane {lane:.2?}); {} of {} texts as the first",
        seconds / took,
        texts.iter().filter(|t| **t == texts[0]).count(),
        texts.len()
    );
    std::fs::write(asked.word(3)?, &texts[0])?;
    Ok(())
}
