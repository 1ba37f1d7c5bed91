// SPDX-License-Identifier: MPL-2.0
//! Many transcribers in one process: `bench-streams ELEMENT FILE…`, each file a branch of one pipeline with an element
//! of its own. ELEMENT is what gst-launch-1.0 takes: `"scribetranscriber beam-size=1"`, `"whispertranscriber …"`.
//!
//! Prints one line of JSON: wall seconds from PLAYING to the end of the last stream (loading inside), seconds of sound,
//! words of each stream, and the process's peak resident memory. Exit status 1 where a stream failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gst::prelude::*;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What went into a transcriber and came out of it.
#[derive(Default)]
struct Stream {
    sound_ns: AtomicU64,
    /// Text of a transcriber may end within a word: counted at the end.
    text: Mutex<String>,
}

fn main() -> Result<(), Failure> {
    gst::init()?;
    let mut arguments = std::env::args().skip(1);
    let element = arguments.next().ok_or("ELEMENT FILE…")?;
    let files: Vec<String> = arguments.collect();
    // scribetranscriber is a plugin that GST_PLUGIN_PATH names; this one is no plugin that is installed anywhere.
    gstwhisper::plugin_register_static()?;
    let branches: Vec<String> = (0..files.len())
        .map(|n| {
            format!(
                "filesrc name=in{n} ! wavparse ! audioconvert ! audioresample ! {element} name=t{n} \
                 ! fakesink name=end{n} sync=false async=false"
            )
        })
        .collect();
    let pipeline = gst::parse::launch(&branches.join(" "))?
        .downcast::<gst::Pipeline>()
        .map_err(|_| "no pipeline")?;
    let mut streams = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let named = |name: &str| {
            pipeline
                .by_name(&format!("{name}{n}"))
                .ok_or("an element is missing")
        };
        named("in")?.set_property("location", file);
        streams.push(watch(&named("t")?)?);
    }

    let began = Instant::now();
    pipeline.set_state(gst::State::Playing)?;
    let failed = wait(&pipeline)?;
    let wall = began.elapsed().as_secs_f64();
    let peak_kib = high_water()?;
    pipeline.set_state(gst::State::Null)?;

    let sound: u64 = streams
        .iter()
        .map(|s| s.sound_ns.load(Ordering::Relaxed))
        .sum();
    let words: Vec<String> = streams
        .iter()
        .map(|s| {
            s.text
                .lock()
                .map(|t| t.split_whitespace().count())
                .unwrap_or(0)
                .to_string()
        })
        .collect();
    println!(
        "{{\"wall\": {wall:.3}, \"sound\": {:.3}, \"peak_kib\": {peak_kib}, \"words\": [{}], \"failed\": {}}}",
        sound as f64 / 1e9,
        words.join(", "),
        failed.is_some()
    );
    failed.map_or(Ok(()), |why| Err(why.into()))
}

/// Counts at both ends of a transcriber.
fn watch(transcriber: &gst::Element) -> Result<Arc<Stream>, Failure> {
    let stream = Arc::<Stream>::default();
    let entry = transcriber.static_pad("sink").ok_or("no sink pad")?;
    let exit = transcriber.static_pad("src").ok_or("no source pad")?;
    let own = stream.clone();
    entry.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(duration) = info.buffer().and_then(|b| b.duration()) {
            own.sound_ns
                .fetch_add(duration.nseconds(), Ordering::Relaxed);
        }
        gst::PadProbeReturn::Ok
    });
    let own = stream.clone();
    exit.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer()
            && let Ok(map) = buffer.map_readable()
            && let Ok(mut text) = own.text.lock()
        {
            text.push(' ');
            text.push_str(&String::from_utf8_lossy(&map));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(stream)
}

/// Waits for the end of all streams; says which failed first.
fn wait(pipeline: &gst::Pipeline) -> Result<Option<String>, Failure> {
    let bus = pipeline.bus().ok_or("no bus")?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => return Ok(None),
            gst::MessageView::Error(error) => {
                let from = message
                    .src()
                    .map(|s| s.name().to_string())
                    .unwrap_or_default();
                return Ok(Some(format!(
                    "{from}: {} ({:?})",
                    error.error(),
                    error.debug()
                )));
            }
            _ => {}
        }
    }
    Err("the bus ended".into())
}

/// The kernel's own mark of this process.
fn high_water() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
