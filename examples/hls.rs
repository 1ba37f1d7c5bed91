// SPDX-License-Identifier: MPL-2.0
//! A stream in, HLS with captions out: MPEG transport streams, WebVTT beside them, playlists of both.
//!
//! ```sh
//! hls rtsp://camera/1 /var/www/live            # index.m3u8 there is what players open
//! hls --speakers rtmp://server/app/key out     # and who speaks
//! hls film.mp4 out                             # a file, as fast as its words are found
//! ```
//!
//! Pictures in H.264 are passed on as they are, others are encoded; the sound is always. A picture leaves `latency` before its
//! words, but players show both at their own times: a caption's file carries its place on the transport stream's clock,
//! and the playlists say at what time of day each file begins. `hls --help` lists the options; Ctrl-C ends the stream
//! and its playlists. The exit status is 0, 1 if the stream failed, 2 for wrong use.
//!
//! `hls/stream.rs` is the pipeline, `hls/folder.rs` what becomes of finished files, `hls/playlist.rs` what playlists say.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

#[path = "hls/folder.rs"]
mod folder;
#[path = "common/interrupt.rs"]
mod interrupt;
#[path = "hls/options.rs"]
mod options;
#[path = "hls/playlist.rs"]
mod playlist;
#[path = "hls/stream.rs"]
mod stream;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use gst::prelude::*;

use folder::Folder;
use options::Options;

/// What is on its way when Ctrl-C comes has this long to arrive.
const LAST_FILES: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // Ends the program with status 2 where the options are wrong.
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(wrong) => {
            eprintln!("hls: {wrong}");
            ExitCode::from(2)
        }
    }
}

/// Whether the stream came to a good end; an error where it could not even begin.
fn run(options: &Options) -> Result<bool, Failure> {
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let folder = Folder::new(options)?;
    let pipeline = stream::pipeline(options)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    interrupt::heed_ctrl_c(&bus)?;
    let is_good = play(&pipeline, &bus, folder)?;
    pipeline.set_state(gst::State::Null)?;
    Ok(is_good)
}

/// Plays until the stream ends or Ctrl-C. Whether it came to a good end.
fn play(pipeline: &gst::Pipeline, bus: &gst::Bus, mut folder: Folder) -> Result<bool, Failure> {
    if pipeline.set_state(gst::State::Playing).is_err() {
        // Behind the ERROR of the element that failed, which says why; alone if that says nothing.
        gst::element_error!(pipeline, gst::CoreError::StateChange, ["it does not start"]);
    }
    let mut deadline: Option<Instant> = None;
    let left = |deadline: Option<Instant>| {
        let left = deadline?.saturating_duration_since(Instant::now());
        gst::ClockTime::try_from(left).ok()
    };
    while let Some(message) = bus.timed_pop(left(deadline)) {
        match message.view() {
            gst::MessageView::Eos(_) => {
                folder.end()?;
                return Ok(true);
            }
            gst::MessageView::Error(error) => {
                let debug = error.debug().unwrap_or_default();
                eprintln!("hls: {}\n  {debug}", error.error());
                folder.end()?;
                return Ok(false);
            }
            gst::MessageView::Warning(warning) => eprintln!("hls: {}", warning.error()),
            gst::MessageView::Latency(_) => {
                let _ = pipeline.recalculate_latency();
            }
            gst::MessageView::Application(told) if interrupt::is_interrupt(told) => {
                pipeline.send_event(gst::event::Eos::new());
                deadline = Some(Instant::now() + LAST_FILES);
            }
            gst::MessageView::Element(element) => {
                if let Some(structure) = element.structure() {
                    folder.take(structure, pipeline)?;
                }
            }
            _ => {}
        }
    }
    eprintln!("hls: the stream did not end within {LAST_FILES:?}; its last files may be missing");
    folder.end()?;
    Ok(false)
}
