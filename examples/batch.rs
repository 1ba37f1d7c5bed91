// SPDX-License-Identifier: MPL-2.0
//! Many files at once, one model: `batch --out DIR [--format json] [--jobs 2] [PROPERTY=VALUE …] FILE…`
//!
//! Each file is a pipeline of its own; all share the process's one registry, so the model is loaded once and
//! the cores are never overrun, however many jobs there are.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A program: its words go to the terminal.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gst::prelude::*;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    out: PathBuf,
    format: String,
    jobs: usize,
    properties: Vec<(String, String)>,
    files: VecDeque<PathBuf>,
}

fn main() -> Result<(), Failure> {
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let options = options(std::env::args().skip(1))?;
    std::fs::create_dir_all(&options.out)?;
    let queue = Mutex::new(options.files.clone());
    let failures = Mutex::new(0usize);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(file) = next else { return };
                    // One file's failure is its own: the others go on.
                    if let Err(error) = transcribe(&file, &options) {
                        eprintln!("{}: {error}", file.display());
                        if let Ok(mut failures) = failures.lock() {
                            *failures += 1;
                        }
                    }
                }
            });
        }
    });
    let failed = failures.into_inner().unwrap_or(0);
    println!(
        "{} files, {failed} failed, {:?}",
        options.files.len(),
        gstscribe::registry::Registry::global()
    );
    if failed > 0 {
        Err(format!("{failed} files failed").into())
    } else {
        Ok(())
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, Failure> {
    let mut options = Options {
        out: ".".into(),
        format: "json".into(),
        jobs: 2,
        properties: Vec::new(),
        files: VecDeque::new(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--out" => options.out = value()?.into(),
            "--format" => options.format = value()?,
            "--jobs" => options.jobs = value()?.parse()?,
            _ => match arg.split_once('=') {
                Some((name, value)) if !Path::new(&arg).exists() => {
                    options.properties.push((name.into(), value.into()));
                }
                _ => options.files.push_back(arg.into()),
            },
        }
    }
    Ok(options)
}

fn transcribe(file: &Path, options: &Options) -> Result<(), Failure> {
    let stem = file.file_stem().ok_or("no file name")?;
    let target = options.out.join(stem).with_extension(&options.format);
    let pipeline = gst::Pipeline::new();
    let source = gst::ElementFactory::make("filesrc")
        .property("location", file)
        .build()?;
    let decode = gst::ElementFactory::make("decodebin").build()?;
    let transcriber = gst::ElementFactory::make("scribetranscriber").build()?;
    for (name, value) in &options.properties {
        if !transcriber.has_property(name) {
            return Err(format!("scribetranscriber has no property {name}").into());
        }
        transcriber.set_property_from_str(name, value);
    }
    let encoder = gst::ElementFactory::make("scribeenc")
        .property_from_str("format", &options.format)
        .build()?;
    let sink = gst::ElementFactory::make("filesink")
        .property("location", &target)
        .build()?;
    pipeline.add_many([&source, &decode, &transcriber, &encoder, &sink])?;
    source.link(&decode)?;
    gst::Element::link_many([&transcriber, &encoder, &sink])?;
    let audio = transcriber.static_pad("sink").ok_or("no sink pad")?;
    decode.connect_pad_added(move |_, pad| {
        // Pictures and further audio tracks are left alone.
        let is_audio = pad.current_caps().is_some_and(|caps| {
            caps.structure(0)
                .is_some_and(|s| s.name().starts_with("audio/"))
        });
        if is_audio && !audio.is_linked() {
            let _ = pad.link(&audio);
        }
    });
    let outcome = run(&pipeline);
    pipeline.set_state(gst::State::Null)?;
    outcome
}

fn run(pipeline: &gst::Pipeline) -> Result<(), Failure> {
    let bus = pipeline.bus().ok_or("no bus")?;
    pipeline.set_state(gst::State::Playing)?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => return Err(error.error().to_string().into()),
            _ => {}
        }
    }
    Ok(())
}
