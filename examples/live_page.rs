// SPDX-License-Identifier: MPL-2.0
//! A live stream's captions in a browser, with speakers.
//!
//! ```sh
//! live_page talk.mp3                                   # played as fast as it was spoken
//! live_page --speakers --source pulsesrc               # a microphone
//! live_page --listen 0.0.0.0:8080 rtsp://camera/1      # for phones on the same network, too
//! ```
//!
//! Text that may still change is grey and turns black when it is final. A page that lost its connection, or is loaded
//! again, gets what it has missed. `live_page --help` lists the options; Ctrl-C ends it. The exit status is 0, 1 if the stream
//! failed, 2 for wrong use.
//!
//! `live_page/updates.rs` reads the messages, `feed.rs` is what there is to be seen, `server.rs` brings it to browsers,
//! `page.html`, `page.css` and `page.js` show it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

#[path = "live_page/feed.rs"]
mod feed;
#[path = "common/interrupt.rs"]
mod interrupt;
#[path = "live_page/options.rs"]
mod options;
#[path = "live_page/server.rs"]
mod server;
#[path = "live_page/stream.rs"]
mod stream;
#[path = "live_page/updates.rs"]
mod updates;

use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use gst::prelude::*;

use feed::{Feed, Status, Update};
use options::Options;

/// Words on their way when Ctrl-C comes have this long to arrive.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A viewer that takes nothing in holds up the end no longer than this.
const FAREWELL: Duration = Duration::from_secs(2);

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // Ends the program with status 2 where the options are wrong.
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(wrong) => {
            eprintln!("live_page: {wrong}");
            ExitCode::from(2)
        }
    }
}

/// Whether the stream came to a good end; an error where it could not even begin.
fn run(options: &Options) -> Result<bool, Failure> {
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let pipeline = stream::pipeline(options)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    // Ctrl-C still comes this way when a failed stream is in NULL.
    pipeline.set_auto_flush_bus(false);
    interrupt::heed_ctrl_c(&bus)?;

    let feed = Feed::new(&options.title(), options.history as usize);
    let listener = TcpListener::bind(options.listen)
        .map_err(|e| format!("--listen {}: {e}", options.listen))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let hosts = options.host.clone();
    let served = runtime.spawn(server::serve(listener, Arc::clone(&feed), hosts));
    println!("live_page: http://{address}/ (Ctrl-C ends it)");

    let is_good = play(&pipeline, &bus, &feed, options.exit_at_end);
    let stopped = pipeline.set_state(gst::State::Null);
    feed.close();
    let _ = runtime.block_on(async { tokio::time::timeout(FAREWELL, served).await });
    runtime.shutdown_timeout(Duration::from_millis(100));
    stopped?;
    Ok(is_good)
}

/// Plays until Ctrl-C, or until the stream ends where `exits_at_end`. Whether it came to a good end.
fn play(pipeline: &gst::Pipeline, bus: &gst::Bus, feed: &Feed, exits_at_end: bool) -> bool {
    let mut is_good = true;
    if pipeline.set_state(gst::State::Playing).is_err() {
        // Behind the ERROR of the element that failed, which says why; alone if that says nothing.
        gst::element_error!(pipeline, gst::CoreError::StateChange, ["it does not start"]);
    }
    let mut deadline: Option<Instant> = None;
    let mut is_over = false;
    let left = |deadline: Option<Instant>| {
        let left = deadline?.saturating_duration_since(Instant::now());
        gst::ClockTime::try_from(left).ok()
    };
    while let Some(message) = bus.timed_pop(left(deadline)) {
        match message.view() {
            gst::MessageView::Eos(_) => {
                feed.take(Update::Status(Status::Ended));
                is_over = true;
            }
            gst::MessageView::Error(error) if !is_over => {
                let debug = error.debug().unwrap_or_default();
                eprintln!("live_page: {}\n  {debug}", error.error());
                feed.take(Update::Status(Status::Failed(error.error().to_string())));
                let _ = pipeline.set_state(gst::State::Null);
                (is_over, is_good) = (true, false);
            }
            gst::MessageView::Warning(warning) => eprintln!("live_page: {}", warning.error()),
            gst::MessageView::StateChanged(change)
                if message.src() == Some(pipeline.upcast_ref())
                    && change.current() == gst::State::Playing =>
            {
                feed.take(Update::Status(Status::Live));
            }
            gst::MessageView::Latency(_) => {
                let _ = pipeline.recalculate_latency();
            }
            gst::MessageView::ClockLost(_) if !is_over => {
                let _ = pipeline.set_state(gst::State::Paused);
                let _ = pipeline.set_state(gst::State::Playing);
            }
            gst::MessageView::Application(told) => {
                let is_ours = interrupt::is_interrupt(told);
                if is_ours && !is_over {
                    // The words so far come out.
                    pipeline.send_event(gst::event::Eos::new());
                    deadline = Some(Instant::now() + LAST_WORDS);
                } else if is_ours {
                    return is_good;
                }
            }
            gst::MessageView::Element(element) => {
                if let Some(update) = element.structure().and_then(updates::update_of) {
                    feed.take(update);
                }
            }
            _ => {}
        }
        if is_over && (exits_at_end || deadline.is_some()) {
            return is_good;
        }
    }
    feed.take(Update::Status(Status::Ended));
    is_good
}
