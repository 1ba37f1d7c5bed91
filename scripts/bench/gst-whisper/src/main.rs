// SPDX-License-Identifier: MPL-2.0
//! whispertranscriber over files: `bench-gst-whisper MODEL OUT THREADS JOBS FILE…`, one text file for each.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use gst::prelude::*;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    gst::init()?;
    gstwhisper::plugin_register_static()?;
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("MODEL OUT THREADS JOBS FILE…");
    let (model, out, threads, jobs) = (next()?, next()?, next()?.parse::<i32>()?, next()?.parse::<usize>()?);
    std::fs::create_dir_all(&out)?;
    let queue = Mutex::new(args.collect::<VecDeque<_>>());
    let failed = Mutex::new(false);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let file = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(file) = file else { return };
                    if let Err(error) = transcribe(&file, &model, &out, threads) {
                        eprintln!("{file}: {error}");
                        if let Ok(mut failed) = failed.lock() {
                            *failed = true;
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(false) => Ok(()),
        _ => Err("a file failed".into()),
    }
}

fn transcribe(file: &str, model: &str, out: &str, threads: i32) -> Result<(), Failure> {
    let pipeline = gst::parse::launch(
        "filesrc name=in ! decodebin ! audioconvert ! audioresample ! whispertranscriber name=t ! fakesink name=end sync=false",
    )?
    .downcast::<gst::Pipeline>()
    .map_err(|_| "no pipeline")?;
    let element = |name: &str| pipeline.by_name(name).ok_or("an element is missing");
    element("in")?.set_property("location", file);
    element("t")?.set_property("model-path", model);
    element("t")?.set_property("n-threads", threads);
    let text = Arc::new(Mutex::new(String::new()));
    let collected = text.clone();
    element("end")?
        .static_pad("sink")
        .ok_or("no pad")?
        .add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer()
                && let Ok(map) = buffer.map_readable()
                && let Ok(mut text) = collected.lock()
            {
                text.push_str(&String::from_utf8_lossy(&map));
                text.push(' ');
            }
            gst::PadProbeReturn::Ok
        });
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let mut outcome = Ok(());
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => {
                outcome = Err(error.error().to_string().into());
                break;
            }
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null)?;
    let stem = Path::new(file).file_stem().ok_or("no file name")?;
    let text = text.lock().map_err(|_| "a probe panicked")?;
    std::fs::write(Path::new(out).join(stem).with_extension("txt"), text.trim())?;
    outcome
}
