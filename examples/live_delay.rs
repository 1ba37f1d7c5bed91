// SPDX-License-Identifier: MPL-2.0
//! Plays recordings as live sources and notes when each word comes: `live_delay [element=DESCRIPTION] [out=FILE] RECORDING...`.
//!
//! Every recording is a stream of its own, all at once, in real time: a buffer of 20 ms is pushed when its sound would have
//! been recorded. What is written is JSON: for each recording its words in the order in which they came, with the times of
//! their sound (`start`, `end`) and when they came (`at`), seconds of running time; partial texts; and what was given up.
//! `virtual=1` runs faster: a clock of its own, on which a decoding takes no time, and the defaults of the element but for `step=MS`.
//! `gap=FROM:TO` loses the sound between two seconds; `drop=N` loses one buffer in N; `speed=X` plays faster.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

#[path = "common/asked.rs"]
mod asked;
#[path = "common/decode.rs"]
mod decode;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use asked::Asked;
use decode::decode;
use gst::prelude::*;
use gstscribe::audio::SampleIndex;
use gstscribe::inference::CancelToken;
use gstscribe::inference::isolated::Isolation;
use gstscribe::meta;
use gstscribe::registry::Registry;
use gstscribe::transcribe::file::{Models, SessionParams, speech_spec, vad_spec};
use gstscribe::transcribe::live::Session;
use gstscribe::transcribe::live::policy::LiveParams;
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const RATE: usize = 16_000;
const BUFFER: usize = RATE / 50;
const ELEMENT: &str = "scribetranscriber unit=word";

/// What came of one stream.
#[derive(Default)]
struct Noted {
    words: Vec<Value>,
    partials: Vec<Value>,
    told: Vec<Value>,
    gaps: u64,
    backwards: u64,
    last: f64,
}

fn main() -> Outcome<()> {
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let asked = Asked::read(std::env::args().skip(1));
    let element = asked.text("element", ELEMENT).to_owned();
    let speed: f64 = asked.text("speed", "1").parse()?;
    let gap = asked.text("gap", "");
    let gap = match gap.split_once(':') {
        Some((from, to)) => Some((from.parse::<f64>()?, to.parse::<f64>()?)),
        None => None,
    };
    let drop_every = asked.number("drop", 0)?;
    let mut files: Vec<PathBuf> = Vec::new();
    while let Ok(word) = asked.word(files.len()) {
        files.push(word.into());
    }
    if files.is_empty() {
        return Err("no recording: see the top of this program's source".into());
    }
    let sounds = files
        .iter()
        .map(|f| decode(f))
        .collect::<Outcome<Vec<_>>>()?;
    let step = asked.number("step", 800)?;
    let made_up = asked.number("virtual", 0)? > 0;
    let seconds: Vec<f64> = sounds
        .iter()
        .map(|s| s.len() as f64 / RATE as f64)
        .collect();
    let threads: Vec<_> = sounds
        .into_iter()
        .map(|sound| {
            let element = element.clone();
            std::thread::spawn(move || match made_up {
                true => walk(&sound, step),
                false => play(&sound, &element, speed, gap, drop_every),
            })
        })
        .collect();
    let mut out = Vec::new();
    for (thread, file) in threads.into_iter().zip(&files) {
        let noted = thread.join().map_err(|_| "a stream panicked")??;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        out.push(json!({
            "id": name,
            "words": noted.words,
            "partials": noted.partials,
            "told": noted.told,
            "gaps": noted.gaps,
            "backwards": noted.backwards,
        }));
    }
    let text = serde_json::to_string(
        &json!({ "element": element, "cpu": cpu_seconds(), "seconds": seconds, "streams": out }),
    )?;
    match asked.text("out", "") {
        "" => println!("{text}"),
        file => std::fs::write(Path::new(file), text)?,
    }
    Ok(())
}

/// Seconds of processor time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / 100.0
}

fn play(
    sound: &[f32],
    element: &str,
    speed: f64,
    gap: Option<(f64, f64)>,
    drop_every: usize,
) -> Outcome<Noted> {
    let pipeline = gst::parse::launch(&format!(
        "appsrc name=in is-live=true format=time max-bytes=0 \
         caps=audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved \
         ! {element} ! appsink name=out sync=false async=false"
    ))?
    .downcast::<gst::Pipeline>()
    .map_err(|_| "no pipeline")?;
    let source = pipeline
        .by_name("in")
        .and_then(|e| e.downcast::<gst_app::AppSrc>().ok())
        .ok_or("no source")?;
    let sink = pipeline
        .by_name("out")
        .and_then(|e| e.downcast::<gst_app::AppSink>().ok())
        .ok_or("no sink")?;
    let noted = Arc::new(Mutex::new(Noted::default()));
    let now = {
        let pipeline = pipeline.downgrade();
        move || -> f64 {
            let time = pipeline.upgrade().and_then(|p| p.current_running_time());
            time.map_or(0.0, |t| t.nseconds() as f64 / 1e9)
        }
    };
    let (words, clock) = (Arc::clone(&noted), now.clone());
    let callbacks = gst_app::AppSinkCallbacks::builder()
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let at = clock();
            if let Some(buffer) = sample.buffer() {
                note(
                    &mut words.lock().unwrap_or_else(PoisonError::into_inner),
                    buffer,
                    at,
                );
            }
            Ok(gst::FlowSuccess::Ok)
        })
        .build();
    sink.set_callbacks(callbacks);
    let bus = pipeline.bus().ok_or("no bus")?;
    pipeline.set_state(gst::State::Playing)?;
    wait_for_models(&bus)?;
    // The clock of the sound begins when the model is there, as in an application that waits for it.
    let begin = now();
    let pts0 = begin;
    for (n, samples) in sound.chunks(BUFFER).enumerate() {
        let end = (n * BUFFER + samples.len()) as f64 / RATE as f64;
        let due = begin + end / speed;
        let ahead = due - now();
        if ahead > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(ahead));
        }
        let lost = gap.is_some_and(|(from, to)| end > from && end <= to)
            || (drop_every > 0 && n % drop_every == drop_every - 1);
        if lost {
            continue;
        }
        let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
        let mut buffer = gst::Buffer::from_slice(bytes);
        if let Some(buffer) = buffer.get_mut() {
            let pts = pts0 + (n * BUFFER) as f64 / RATE as f64;
            buffer.set_pts(gst::ClockTime::from_nseconds((pts * 1e9) as u64));
            buffer.set_duration(gst::ClockTime::from_nseconds(
                (samples.len() * 62_500) as u64,
            ));
        }
        source.push_buffer(buffer)?;
        listen(&bus, &noted, now())?;
    }
    source.end_of_stream()?;
    loop {
        let message = bus
            .timed_pop(gst::ClockTime::from_seconds(600))
            .ok_or("no EOS")?;
        match message.view() {
            gst::MessageView::Eos(_) => break,
            _ => hear(&message, &noted, now())?,
        }
    }
    pipeline.set_state(gst::State::Null)?;
    let mut noted = std::mem::take(&mut *noted.lock().unwrap_or_else(PoisonError::into_inner));
    for list in [&mut noted.words, &mut noted.partials, &mut noted.told] {
        for value in list.iter_mut() {
            for key in ["at", "start", "end", "pts"] {
                if let Some(time) = value.get(key).and_then(Value::as_f64) {
                    value[key] = json!(((time - begin) * 1000.0).round() / 1000.0);
                }
            }
        }
    }
    Ok(noted)
}

/// The same without a pipeline and without waiting.
fn walk(sound: &[f32], step_ms: usize) -> Outcome<Noted> {
    let speech = speech_spec("", None, "auto", 1, true, Isolation::InProcess)?;
    let params = SessionParams::new(speech, Some(vad_spec("")?));
    let models = Arc::new(Models::acquire(
        Registry::global(),
        &params,
        &CancelToken::new(),
    )?);
    let (wake, woken) = std::sync::mpsc::channel();
    let wake = Mutex::new(wake);
    let wake = Arc::new(move || {
        let _ = wake.lock().unwrap_or_else(PoisonError::into_inner).send(());
    });
    let live = LiveParams {
        step: (step_ms * RATE / 1000) as u64,
        ..LiveParams::default()
    };
    let mut session = Session::new(models, params, live, wake);
    let mut noted = Noted::default();
    let blocks = sound.chunks(512).map(Some).chain([None]);
    let mut at = 0;
    for block in blocks {
        match block {
            Some(samples) => {
                session.push(SampleIndex(at as u64), samples);
                at += samples.len();
            }
            None => session.end_piece(),
        }
        let seconds = at as f64 / RATE as f64;
        loop {
            for spoken in session.poll()? {
                for word in spoken.words {
                    let [start, end] = [word.start, word.end].map(SampleIndex::seconds);
                    noted.words.push(json!({ "text": word.text.trim(), "start": start, "end": end, "at": seconds }));
                }
            }
            if let Some(partial) = session.partial() {
                noted.partials.push(json!({
                    "at": seconds, "text": partial.text, "start": partial.start.seconds(), "revision": partial.revision,
                }));
            }
            if session.is_waiting() {
                let _ = woken.recv_timeout(Duration::from_secs(60));
            } else if block.is_some() || session.is_idle() {
                break;
            }
        }
    }
    Ok(noted)
}

fn wait_for_models(bus: &gst::Bus) -> Outcome<()> {
    loop {
        let Some(message) = bus.timed_pop(gst::ClockTime::from_seconds(3)) else {
            return Ok(());
        };
        match message.view() {
            gst::MessageView::Progress(p) if p.get().0 == gst::ProgressType::Complete => {
                return Ok(());
            }
            gst::MessageView::Error(e) => return Err(e.error().to_string().into()),
            _ => {}
        }
    }
}

fn listen(bus: &gst::Bus, noted: &Arc<Mutex<Noted>>, at: f64) -> Outcome<()> {
    while let Some(message) = bus.pop() {
        hear(&message, noted, at)?;
    }
    Ok(())
}

fn hear(message: &gst::Message, noted: &Arc<Mutex<Noted>>, at: f64) -> Outcome<()> {
    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
    match message.view() {
        gst::MessageView::Error(e) => return Err(e.error().to_string().into()),
        gst::MessageView::Warning(w) => noted
            .told
            .push(json!({ "at": at, "warning": w.error().to_string() })),
        gst::MessageView::Qos(_) => noted.told.push(json!({ "at": at, "qos": true })),
        gst::MessageView::Element(e) => {
            let Some(s) = e.structure() else {
                return Ok(());
            };
            match s.name().as_str() {
                "scribe/transcript" if !s.get::<bool>("final").unwrap_or(true) => {
                    noted.partials.push(json!({
                        "at": at,
                        "text": s.get::<String>("text").unwrap_or_default(),
                        "start": s.get::<u64>("start").unwrap_or(0) as f64 / 1e9,
                        "revision": s.get::<u32>("revision").unwrap_or(0),
                    }));
                }
                "scribe/degraded" => {
                    let field = |f: &str| s.get::<String>(f).unwrap_or_default();
                    noted.told.push(json!({ "at": at, "from": field("from"), "to": field("to"), "reason": field("reason") }));
                }
                _ => {}
            }
        }
        _ => {}
    }
    Ok(())
}

fn note(noted: &mut Noted, buffer: &gst::BufferRef, at: f64) {
    let pts = buffer.pts().map_or(0.0, |t| t.nseconds() as f64 / 1e9);
    let duration = buffer.duration().map_or(0.0, |t| t.nseconds() as f64 / 1e9);
    if pts < noted.last {
        noted.backwards += 1;
    }
    noted.last = pts;
    let text = buffer.map_readable().map_or_else(
        |_| String::new(),
        |m| String::from_utf8_lossy(&m).into_owned(),
    );
    match meta::read(buffer) {
        Some(heard) if !heard.cue.words.is_empty() => {
            for word in &heard.cue.words {
                noted.words.push(json!({
                    "text": word.text.trim(), "start": word.start.seconds(), "end": word.end.seconds(), "pts": pts, "at": at,
                }));
            }
        }
        _ => noted.words.push(json!({
            "text": text.trim(), "start": pts, "end": pts + duration, "pts": pts, "at": at,
        })),
    }
}
