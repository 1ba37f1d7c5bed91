// SPDX-License-Identifier: MPL-2.0
//! The main job on one recording: captions in the terminal as they come, and the same words as
//! WebVTT, SubRip and JSON.
//!
//! ```sh
//! demo FILE [FOLDER]        # FOLDER, default demo-output, gets FILE.vtt, FILE.srt and FILE.json
//! ```
//!
//! An application as others would write one: it knows the elements by name alone and links nothing
//! of scribe's. One decoder and one transcriber feed three encoders and an appsink through a tee.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use gst::prelude::*;

/// What the encoders are asked for, each the ending of its file too.
const FORMATS: [&str; 3] = ["vtt", "srt", "json"];

/// One line for the screen.
struct Caption {
    start: gst::ClockTime,
    end: gst::ClockTime,
    text: String,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(recording) = arguments.next().map(PathBuf::from) else {
        eprintln!("demo: no file given\n  usage: demo FILE [FOLDER]");
        return ExitCode::FAILURE;
    };
    let folder = arguments
        .next()
        .map_or_else(|| PathBuf::from("demo-output"), PathBuf::from);

    match run(&recording, &folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("demo: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(recording: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::metadata(recording)
        .map_err(|err| format!("cannot read {}: {err}", recording.display()))?;
    std::fs::create_dir_all(folder)
        .map_err(|err| format!("cannot make {}: {err}", folder.display()))?;
    gst::init()?;
    find_plugin();

    let pipeline = build_pipeline()?;
    by_name(&pipeline, "recording")?.set_property("location", recording);
    let stem = recording.file_stem().unwrap_or(recording.as_os_str());
    let mut written = Vec::new();
    for format in FORMATS {
        let file = folder.join(stem).with_extension(format);
        by_name(&pipeline, format)?.set_property("location", &file);
        written.push(file);
    }
    let captions = receive_captions(&pipeline)?;

    let started = Instant::now();
    let mut screen = Screen::new();
    // The pipeline must come to NULL on every path, or its threads outlive the function.
    let outcome = play(&pipeline, &captions, &mut screen);
    let length = audio_length(&pipeline);
    pipeline.set_state(gst::State::Null)?;
    screen.finish();
    outcome?;

    let took = started.elapsed().as_secs_f64();
    match length {
        Some(length) => {
            println!(
                "\n{:.0} s of audio in {took:.1} s, loading included. The words are in",
                seconds(length)
            );
        }
        None => println!("\nDone in {took:.1} s. The words are in"),
    }
    for file in written {
        println!("  {}", file.display());
    }
    Ok(())
}

/// Without GST_PLUGIN_PATH, takes the plugin out of the folder this program was built into:
/// target/release for target/release/examples/demo.
fn find_plugin() {
    if std::env::var_os("GST_PLUGIN_PATH").is_some() {
        return;
    }
    let folder = std::env::current_exe().ok();
    if let Some(folder) = folder
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::parent)
    {
        gst::Registry::get().scan_path(folder);
    }
}

fn build_pipeline() -> Result<gst::Pipeline, Box<dyn Error>> {
    for name in ["scribediarizer", "scribetranscriber", "scribeenc"] {
        if gst::ElementFactory::find(name).is_none() {
            return Err(format!(
                "GStreamer has no element {name}: build it with `make build`; \
                 `make inspect` shows why a plugin that is there does not load"
            )
            .into());
        }
    }
    // The queues are open and no sink waits for its first buffer (async=false): JSON comes at the end
    // alone, and would keep the pipeline paused, and so the captions back, till then.
    let queue = "queue max-size-buffers=0 max-size-bytes=0 max-size-time=0";
    let mut line = format!(
        "filesrc name=recording ! decodebin ! audioconvert ! scribediarizer ! scribetranscriber name=transcriber ! tee name=words \
         words. ! {queue} ! appsink name=captions sync=false async=false caps=text/x-raw,format=utf8"
    );
    for format in FORMATS {
        line += &format!(
            " words. ! {queue} ! scribeenc format={format} ! filesink name={format} async=false"
        );
    }
    gst::parse::launch(&line)?
        .downcast::<gst::Pipeline>()
        .map_err(|_| "the line makes no pipeline".into())
}

fn by_name(pipeline: &gst::Pipeline, name: &str) -> Result<gst::Element, String> {
    pipeline
        .by_name(name)
        .ok_or_else(|| format!("the pipeline has no element {name}"))
}

/// Captions leave the streaming thread by a channel: printing must not hold up the pipeline.
fn receive_captions(pipeline: &gst::Pipeline) -> Result<mpsc::Receiver<Caption>, Box<dyn Error>> {
    let (sender, receiver) = mpsc::channel();
    let sink = by_name(pipeline, "captions")?
        .downcast::<gst_app::AppSink>()
        .map_err(|_| "captions is no appsink")?;
    let on_sample = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        if let Some(caption) = read_caption(&sample) {
            // Nobody listens any more once the program is leaving.
            let _ = sender.send(caption);
        }
        Ok(gst::FlowSuccess::Ok)
    };
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(on_sample)
            .build(),
    );
    Ok(receiver)
}

fn read_caption(sample: &gst::Sample) -> Option<Caption> {
    let buffer = sample.buffer()?;
    // Stream time: what a player's clock shows.
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    let start = segment.to_stream_time(buffer.pts()?)?;
    let map = buffer.map_readable().ok()?;
    let mut text = std::str::from_utf8(&map).ok()?.trim().replace('\n', " ");
    // Who says it, and all else that is known, is a structure on the buffer.
    if let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, "ScribeTranscriptMeta")
        && let Ok(speaker) = meta.structure().get::<&str>("speaker")
        && !text.is_empty()
    {
        text = format!("{speaker}: {text}");
    }
    let end = start + buffer.duration().unwrap_or(gst::ClockTime::ZERO);
    (!text.is_empty()).then_some(Caption { start, end, text })
}

/// Runs to the end of the recording, or to the first error.
fn play(
    pipeline: &gst::Pipeline,
    captions: &mpsc::Receiver<Caption>,
    screen: &mut Screen,
) -> Result<(), Box<dyn Error>> {
    let bus = pipeline.bus().ok_or("the pipeline has no bus")?;
    // A failure is told in full by an ERROR on the bus: read below.
    let _ = pipeline.set_state(gst::State::Playing);
    loop {
        let message = bus.timed_pop(gst::ClockTime::from_mseconds(100));
        // First what is there to show: at EOS the last captions are waiting.
        for caption in captions.try_iter() {
            screen.caption(&caption, audio_length(pipeline));
        }
        let Some(message) = message else { continue };
        match message.view() {
            gst::MessageView::Eos(_) => return Ok(()),
            gst::MessageView::Error(err) => return Err(describe(err).into()),
            gst::MessageView::Warning(warning) => {
                screen.note(&format!("warning: {}", warning.error()))
            }
            // Told while a model loads, which may take longer than all the rest.
            gst::MessageView::Progress(progress) => screen.note(progress.get().2),
            gst::MessageView::Element(element) => {
                if let Some(percent) = element.structure().and_then(read_progress) {
                    screen.progress(percent);
                }
            }
            _ => {}
        }
    }
}

/// The percentage of a `scribe/progress`, whatever type of number it is.
fn read_progress(structure: &gst::StructureRef) -> Option<f64> {
    if structure.name() != "scribe/progress" {
        return None;
    }
    structure
        .value("percent")
        .ok()?
        .transform::<f64>()
        .ok()?
        .get()
        .ok()
}

fn describe(err: &gst::message::Error) -> String {
    let source = err
        .src()
        .map_or_else(String::new, |source| format!("{}: ", source.name()));
    let debug = err
        .debug()
        .map_or_else(String::new, |debug| format!("\n  ({debug})"));
    format!("{source}{}{debug}", err.error())
}

/// How long the recording is, as soon as its parser knows.
fn audio_length(pipeline: &gst::Pipeline) -> Option<gst::ClockTime> {
    let pad = pipeline.by_name("transcriber")?.static_pad("sink")?;
    pad.peer_query_duration::<gst::ClockTime>()
}

fn seconds(time: gst::ClockTime) -> f64 {
    Duration::from(time).as_secs_f64()
}

/// 83.25 s as `01:23.2`.
fn clock(time: gst::ClockTime) -> String {
    let tenths = time.mseconds() / 100;
    format!(
        "{:02}:{:02}.{}",
        tenths / 600,
        tenths / 10 % 60,
        tenths % 10
    )
}

/// The terminal: captions on stdout; how far we are on stderr, as a bar, or as a line every 10 %
/// where there is no terminal.
struct Screen {
    #[cfg(feature = "cli")]
    bar: Option<indicatif::ProgressBar>,
    shown_percent: f64,
}

impl Screen {
    #[cfg(feature = "cli")]
    fn new() -> Self {
        use std::io::IsTerminal;

        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = indicatif::ProgressBar::new(100);
            if let Ok(style) = indicatif::ProgressStyle::with_template(
                "{bar:40} {pos:>3} % {elapsed_precise} {msg}",
            ) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            shown_percent: 0.0,
        }
    }

    #[cfg(not(feature = "cli"))]
    fn new() -> Self {
        Self { shown_percent: 0.0 }
    }

    fn caption(&mut self, caption: &Caption, length: Option<gst::ClockTime>) {
        self.print(&format!(
            "{} - {}  {}",
            clock(caption.start),
            clock(caption.end),
            caption.text
        ));
        if let Some(length) = length.filter(|length| !length.is_zero()) {
            self.progress(seconds(caption.end) / seconds(length) * 100.0);
        }
    }

    /// Never goes back: captions and `scribe/progress` both tell it.
    fn progress(&mut self, percent: f64) {
        let percent = percent.clamp(0.0, 100.0);
        if percent <= self.shown_percent {
            return;
        }
        #[cfg(feature = "cli")]
        if let Some(bar) = &self.bar {
            self.shown_percent = percent;
            // 0 to 100: no loss.
            bar.set_position(percent as u64);
            return;
        }
        if (percent / 10.0).floor() > (self.shown_percent / 10.0).floor() {
            eprintln!("{percent:3.0} %");
        }
        self.shown_percent = percent;
    }

    fn note(&self, text: &str) {
        #[cfg(feature = "cli")]
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            return;
        }
        eprintln!("{text}");
    }

    fn print(&self, line: &str) {
        #[cfg(feature = "cli")]
        if let Some(bar) = &self.bar {
            bar.suspend(|| println!("{line}"));
            return;
        }
        println!("{line}");
    }

    fn finish(&self) {
        #[cfg(feature = "cli")]
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
