// SPDX-License-Identifier: MPL-2.0
//! A folder of recordings, one process: the model is loaded once, and the cores are never overrun.
//!
//! ```sh
//! batch --out transcripts --format srt talks/            # every recording below a folder
//! batch --model small-q8_0 --property language-code=de --jobs 4 one.mp4 two.mkv
//! ```
//!
//! A transcript is written under a name of its own and renamed when it is whole: after a stop the same command goes on
//! where it was. One file's failure is its own. `batch --help` lists the options; the exit status is 0 if all went well, 1
//! if some files failed, 2 for wrong use, 130 after Ctrl-C.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

#[path = "batch/job.rs"]
mod job;
#[path = "batch/memory.rs"]
mod memory;
#[path = "batch/options.rs"]
mod options;
#[path = "batch/plan.rs"]
mod plan;
#[path = "batch/screen.rs"]
mod screen;
#[path = "batch/summary.rs"]
mod summary;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;

use job::Outcome;
use options::Options;
use plan::Work;
use screen::Screen;
use summary::Summary;

const STOPPED: u8 = 130;
const TICK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // Ends the program with status 2 where the options are wrong.
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(wrong) => {
            eprintln!("batch: {wrong}");
            ExitCode::from(2)
        }
    }
}

/// The exit status, or what is wrong with the options.
fn run(options: &Options) -> Result<ExitCode, String> {
    memory::limit(options.memory_limit.as_ref())?;
    gst::init().map_err(|e| e.to_string())?;
    gstscribe::plugin_register_static().map_err(|e| e.to_string())?;
    let properties = options.properties()?;
    options.look_at_voices()?;
    let plan = plan::plan(options)?;

    let began = Instant::now();
    let screen = Screen::new(plan.len(), options.memory_limit.as_ref());
    let summary = Mutex::new(Summary::new(plan.len()));
    let queue: Mutex<VecDeque<Work>> = Mutex::new(plan.into());
    let stop = Arc::new(AtomicBool::new(false));
    heed_ctrl_c(&stop, &screen)?;
    let working = AtomicUsize::new(options.jobs());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs() {
            scope.spawn(|| {
                while let Some(work) = next(&queue, &stop) {
                    let line = screen.begin(&work);
                    let outcome = job::run(&work, options, &properties, &stop, &line);
                    screen.end(&work, &line, &outcome);
                    lock(&summary).add(&work, outcome);
                }
                working.fetch_sub(1, Ordering::SeqCst);
            });
        }
        wait(&working, &screen);
    });
    screen.clear();

    let summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    print!("{}", summary.text(began.elapsed(), memory::peak()));
    Ok(if stop.load(Ordering::SeqCst) {
        ExitCode::from(STOPPED)
    } else if summary.has_failures() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn next(queue: &Mutex<VecDeque<Work>>, stop: &AtomicBool) -> Option<Work> {
    if stop.load(Ordering::SeqCst) {
        return None;
    }
    lock(queue).pop_front()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until the workers are done: memory is looked at meanwhile.
fn wait(working: &AtomicUsize, screen: &Screen) {
    while working.load(Ordering::SeqCst) > 0 {
        screen.memory(memory::now());
        std::thread::sleep(TICK);
    }
}

/// The first Ctrl-C (or SIGTERM) lets each file end cleanly, the second one ends the program at once.
fn heed_ctrl_c(stop: &Arc<AtomicBool>, screen: &Screen) -> Result<(), String> {
    let (stop, screen) = (Arc::clone(stop), screen.clone());
    ctrlc::set_handler(move || {
        if stop.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(STOPPED));
        }
        screen.note("stopping; the same command goes on from here. Once more to stop at once");
    })
    .map_err(|e| format!("Ctrl-C cannot be heeded: {e}"))
}

impl Outcome {
    /// One line for people.
    fn line(&self, work: &Work) -> String {
        let source = work.source.display();
        let target = work.target.display();
        match self {
            Self::Transcribed { audio, took, .. } => format!(
                "done     {source} -> {target} ({:.0} s in {:.1} s)",
                audio.as_secs_f64(),
                took.as_secs_f64()
            ),
            Self::FromSidecar { sidecar } => {
                format!("done     {source} -> {target} (from {})", sidecar.display())
            }
            Self::Skipped => format!("skipped  {source}: {target} is there"),
            Self::Stopped => format!("stopped  {source}"),
            Self::Failed { why } => format!("failed   {source}: {why}"),
        }
    }
}
