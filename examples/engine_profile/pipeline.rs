// SPDX-License-Identifier: MPL-2.0
//! Where the time of a whole pipeline goes.

use std::time::Instant;

use gst::prelude::*;
use gstscribe::inference::CancelToken;
use gstscribe::inference::times::{Part, Times, process_time};
use gstscribe::registry::{Registry, RegistrySettings};
use gstscribe::transcribe::file::{Models, SessionParams, vad_spec};

use crate::peaks::Peaks;
use crate::{Asked, Outcome, decoder_limit, encoder_limit, model, seconds};

/// What is done once to have everything ready: any speech.
const WARM: &str = "tests/data/speech_short.flac";

struct Run {
    wall: f64,
    cpu: f64,
    times: Times,
    audio: f64,
    words: u64,
}

pub fn run(asked: &Asked) -> Outcome<serde_json::Value> {
    let (name, recording) = (asked.word(1)?, asked.word(2)?);
    let rounds = asked.number("rounds", 3)?;
    gst::init()?;
    gstscribe::plugin_register_static()?;
    Registry::configure(RegistrySettings {
        lanes: asked.number("lanes", 1)?,
        ..RegistrySettings::from_environment()
    })?;
    let (spec, own) = model(name)?;
    let work = own.work()?;
    // The element finds the same ones: they are loaded before anything is measured, and stay.
    let params = SessionParams::new(spec, Some(vad_spec("")?));
    let models = Models::acquire(Registry::global(), &params, &CancelToken::new())?;
    let first = Peaks::measure()?;

    let element = asked.text("element", "");
    play(&transcribing(name, element, WARM), &models)?;
    let decoding = format!(
        "filesrc location=\"{recording}\" ! decodebin ! audioconvert ! audioresample \
         ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! fakesink sync=false"
    );
    let mut runs = Vec::new();
    let mut least = f64::INFINITY;
    for _ in 0..rounds {
        least = least.min(play(&decoding, &models)?.cpu);
        runs.push(play(&transcribing(name, element, recording), &models)?);
    }
    let peaks = first.or_better(Peaks::measure()?);

    let document = runs.iter().map(|run| {
        let times = &run.times;
        let (decoder_limit, rate) = decoder_limit(&work, &peaks, times);
        let rest = run.cpu - times.all().as_secs_f64();
        serde_json::json!({
            "audio": run.audio, "words": run.words, "wall": run.wall, "cpu": run.cpu,
            "mel": seconds(times, Part::Mel), "vad": seconds(times, Part::Vad),
            "encoder": seconds(times, Part::Encoder), "decoder": seconds(times, Part::Decoder),
            "alignment": seconds(times, Part::Alignment),
            "decoding": least, "glue": rest - least,
            "encoder_limit": encoder_limit(&work, &peaks, times),
            "decoder_limit": decoder_limit, "read_gb_s": rate / 1e9,
            "windows": times.windows, "steps": times.steps, "step_windows": times.step_windows, "tokens": times.tokens,
        })
    });
    Ok(serde_json::json!({
        "engine": models.describe(), "lanes": Registry::global().cores(), "peaks": peaks.json(),
        "runs": document.collect::<Vec<_>>(),
    }))
}

fn transcribing(model: &str, element: &str, recording: &str) -> String {
    format!(
        "filesrc location=\"{recording}\" ! decodebin ! audioconvert \
         ! scribetranscriber name=t model={model} language-code=en {element} ! scribeenc format=json ! fakesink sync=false"
    )
}

fn play(description: &str, models: &Models) -> Outcome<Run> {
    let (began, cpu, times) = (Instant::now(), process_time(), models.times());
    let pipeline = gst::parse::launch(description)?
        .downcast::<gst::Pipeline>()
        .map_err(|_| "no pipeline")?;
    let bus = pipeline.bus().ok_or("no bus")?;
    pipeline.set_state(gst::State::Playing)?;
    let message = bus.timed_pop_filtered(
        gst::ClockTime::NONE,
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    let stats = pipeline
        .by_name("t")
        .map(|t| t.property::<gst::Structure>("stats"));
    pipeline.set_state(gst::State::Null)?;
    if let Some(gst::MessageView::Error(error)) = message.as_ref().map(|m| m.view()) {
        return Err(format!("{}: {:?}", error.error(), error.debug()).into());
    }
    let field = |name| stats.as_ref().and_then(|s| s.get(name).ok());
    Ok(Run {
        wall: began.elapsed().as_secs_f64(),
        cpu: (process_time() - cpu).as_secs_f64(),
        times: models.times() - times,
        audio: field("audio-seconds").unwrap_or(0.0),
        words: stats
            .as_ref()
            .and_then(|s| s.get("words").ok())
            .unwrap_or(0),
    })
}
