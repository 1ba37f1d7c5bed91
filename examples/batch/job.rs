// SPDX-License-Identifier: MPL-2.0
//! One recording.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;
use gstscribe::messages;
use gstscribe::transcript::formats::Format;

use super::options::{self, Options};
use super::plan::Work;
use super::screen::Line;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How often a running file looks whether it shall stop.
const LOOK: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// Endings of sidecars, the better one first: WebVTT says what its bytes mean.
const SIDECARS: [&str; 2] = ["vtt", "srt"];

/// What came of a recording.
#[derive(Debug)]
pub enum Outcome {
    /// It was heard.
    Transcribed {
        /// Its length.
        audio: Duration,
        /// How long it took.
        took: Duration,
        /// How often quality was given up to go on.
        degraded: usize,
    },
    /// Its transcript was made from a file beside it.
    FromSidecar {
        /// That file.
        sidecar: PathBuf,
    },
    /// Its transcript is there already.
    Skipped,
    /// Somebody pressed Ctrl-C.
    Stopped,
    /// It could not be done.
    Failed {
        /// Cause and remedy.
        why: String,
    },
}

/// Does one recording. What it writes has another name until it is whole.
pub fn run(
    work: &Work,
    options: &Options,
    properties: &[(String, String)],
    stop: &AtomicBool,
    line: &Line,
) -> Outcome {
    if !options.overwrite && work.is_done() {
        return Outcome::Skipped;
    }
    let partial = work.partial();
    let outcome = prepare(work)
        .and_then(|()| produce(work, &partial, options, properties, stop, line))
        .and_then(|outcome| {
            if !matches!(outcome, Outcome::Stopped) {
                // On the disk first: a machine that loses its power must not leave an empty file with the name of a
                // whole one.
                std::fs::File::open(&partial)?.sync_all()?;
                std::fs::rename(&partial, &work.target)?;
            }
            Ok(outcome)
        });
    // Left by a failure, a stop, or a program that was killed. After a rename there is none.
    let _ = std::fs::remove_file(&partial);
    outcome.unwrap_or_else(|error| Outcome::Failed {
        why: error.to_string(),
    })
}

fn prepare(work: &Work) -> Result<(), Failure> {
    std::fs::metadata(&work.source).map_err(|e| format!("cannot be read: {e}"))?;
    if let Some(folder) = work.target.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    }
    Ok(())
}

fn produce(
    work: &Work,
    partial: &Path,
    options: &Options,
    properties: &[(String, String)],
    stop: &AtomicBool,
    line: &Line,
) -> Result<Outcome, Failure> {
    if options.use_sidecar
        && !options.tells_speakers()
        && let Some(sidecar) = sidecar(&work.source, options.format)
    {
        match take_sidecar(&sidecar, partial, options.format, stop) {
            Ok(true) => return Ok(Outcome::FromSidecar { sidecar }),
            Ok(false) => return Ok(Outcome::Stopped),
            // The recording itself is the better source than half a file of somebody else's.
            Err(error) => line.note(&format!(
                "{} cannot be used ({error}); transcribing",
                sidecar.display()
            )),
        }
    }
    transcribe(&work.source, partial, options, properties, stop, line)
}

/// The file beside a recording that its transcript can be made from.
fn sidecar(source: &Path, format: Format) -> Option<PathBuf> {
    // Words with times, and speakers: no sidecar has them.
    if matches!(format, Format::Ctm | Format::Rttm) {
        return None;
    }
    let same = SIDECARS.iter().filter(|e| **e == format.extension());
    let all = same.chain(&SIDECARS);
    all.map(|ending| source.with_extension(ending))
        .find(|path| path.is_file() && path != source)
}

/// Copies or converts; whether it came to the end.
fn take_sidecar(
    sidecar: &Path,
    partial: &Path,
    format: Format,
    stop: &AtomicBool,
) -> Result<bool, Failure> {
    if sidecar.extension().is_some_and(|e| e == format.extension()) {
        std::fs::copy(sidecar, partial)?;
        return Ok(true);
    }
    let source = file_source(sidecar)?;
    let parser = gst::ElementFactory::make("subparse").build()?;
    let encoder = encoder(format, sidecar)?;
    let sink = file_sink(partial)?;
    let pipeline = gst::Pipeline::new();
    pipeline.add_many([&source, &parser, &encoder, &sink])?;
    gst::Element::link_many([&source, &parser, &encoder, &sink])?;
    play(&pipeline, stop, |_| {})
}

fn transcribe(
    source: &Path,
    partial: &Path,
    options: &Options,
    properties: &[(String, String)],
    stop: &AtomicBool,
    line: &Line,
) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let pipeline = gst::Pipeline::new();
    let file = file_source(source)?;
    // Pictures are not even decoded.
    let decode = gst::ElementFactory::make("decodebin")
        .property("caps", gst::Caps::new_empty_simple("audio/x-raw"))
        .property("expose-all-streams", false)
        .build()?;
    let transcriber = gst::ElementFactory::make("scribetranscriber").build()?;
    for (name, text) in properties {
        options::set(&transcriber, name, text)?;
    }
    let encoder = encoder(options.format, source)?;
    let sink = file_sink(partial)?;
    pipeline.add_many([&file, &decode, &transcriber, &encoder, &sink])?;
    file.link(&decode)?;
    gst::Element::link_many([&transcriber, &encoder, &sink])?;
    let first = if options.tells_speakers() {
        let diarizer = gst::ElementFactory::make("scribediarizer")
            .property_if_some("voices", options.voices.as_deref().and_then(Path::to_str))
            .build()?;
        pipeline.add(&diarizer)?;
        diarizer.link(&transcriber)?;
        diarizer
    } else {
        transcriber
    };

    let input = first.static_pad("sink").ok_or("no sink pad")?;
    let heard = watch_end(&input);
    let first = input.clone();
    decode.connect_pad_added(move |_, pad| {
        // The first track alone.
        if !first.is_linked() {
            let _ = pad.link(&first);
        }
    });
    let none = input.clone();
    decode.connect_no_more_pads(move |decode| {
        if !none.is_linked() {
            gst::element_error!(decode, gst::StreamError::WrongType, ["only other streams"]);
        }
    });

    let mut degraded = 0;
    let ended = play(&pipeline, stop, |message| match message.view() {
        gst::MessageView::Warning(warning) => line.note(&warning.error().to_string()),
        gst::MessageView::Element(element) => {
            let Some(structure) = element.structure() else {
                return;
            };
            if structure.name() == messages::DEGRADED {
                degraded += 1;
                line.note(&structure.to_string());
            } else if let Ok(percent) = structure.get::<f64>("percent") {
                line.percent(percent);
            }
        }
        _ => {}
    })
    .map_err(|error| {
        // GStreamer speaks of a missing plug-in where a film is mute.
        if heard.load(Ordering::SeqCst) == 0 && !input.is_linked() {
            format!("there is no sound in it that GStreamer can decode ({error})").into()
        } else {
            error
        }
    })?;
    Ok(if ended {
        Outcome::Transcribed {
            audio: Duration::from_nanos(heard.load(Ordering::SeqCst)),
            took: began.elapsed(),
            degraded,
        }
    } else {
        Outcome::Stopped
    })
}

fn file_source(path: &Path) -> Result<gst::Element, Failure> {
    Ok(gst::ElementFactory::make("filesrc")
        .property("location", path)
        .build()?)
}

fn file_sink(path: &Path) -> Result<gst::Element, Failure> {
    Ok(gst::ElementFactory::make("filesink")
        .property("location", path)
        .build()?)
}

/// For a transcript of `recording`: RTTM, STM and CTM name it.
fn encoder(format: Format, recording: &Path) -> Result<gst::Element, Failure> {
    let name = recording.file_stem().unwrap_or_default();
    Ok(gst::ElementFactory::make("scribeenc")
        .property_from_str("format", format.as_str())
        .property("file-id", name.to_string_lossy().as_ref())
        .build()?)
}

/// Where the sound that passed `pad` ends, in nanoseconds of its recording.
fn watch_end(pad: &gst::Pad) -> Arc<AtomicU64> {
    let end = Arc::new(AtomicU64::new(0));
    let to = Arc::clone(&end);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer()
            && let Some(start) = buffer.pts()
        {
            let until = start + buffer.duration().unwrap_or(gst::ClockTime::ZERO);
            to.fetch_max(until.nseconds(), Ordering::SeqCst);
        }
        gst::PadProbeReturn::Ok
    });
    end
}

/// Runs a pipeline; false if it was stopped before its end.
fn play(
    pipeline: &gst::Pipeline,
    stop: &AtomicBool,
    mut on_message: impl FnMut(&gst::MessageRef),
) -> Result<bool, Failure> {
    let bus = pipeline.bus().ok_or("the pipeline has no bus")?;
    // Why it failed is told by an ERROR on the bus.
    let _ = pipeline.set_state(gst::State::Playing);
    let outcome = loop {
        if stop.load(Ordering::SeqCst) {
            break Ok(false);
        }
        let Some(message) = bus.timed_pop(LOOK) else {
            continue;
        };
        match message.view() {
            gst::MessageView::Eos(_) => break Ok(true),
            gst::MessageView::Error(error) => break Err(error.error().to_string().into()),
            _ => on_message(&message),
        }
    };
    // On every path: its threads would outlive the function.
    pipeline.set_state(gst::State::Null)?;
    outcome
}
