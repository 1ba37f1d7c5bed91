// SPDX-License-Identifier: MPL-2.0
//! One live stream beside many files on one model: how late its answers are, and what each file gets.
//! `live_beside_files [WINDOWS [FILES [RECORDING]]]`, 120 windows, 15 files and tests/data/demo.opus where nothing is said.
//!
//! The live stream asks for the text of the newest ten seconds, due within a second: once a second, or when the answer
//! before is there if that takes longer, as a live policy does that never queues. A file asks for windows of 27 s back to
//! back, as many at once as a transcriber does. First and last the live stream is alone: what else the machine does slows
//! all parts alike. Between, the lanes run files alone, one window a lane: that is how long a window takes that cannot be
//! interrupted.
//!
//! The last line is JSON with every delay. `make bench-registry` runs it.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "common/decode.rs"]
mod decode;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use decode::decode;
use gstscribe::inference::isolated::Isolation;
use gstscribe::inference::{BatchParams, CancelToken, Decoded, Language, Window};
use gstscribe::registry::{Class, Lease, Registry, RegistrySettings, Request, Ticket, Whisper};
use gstscribe::transcribe::file::speech_spec;
use gstscribe::transcript::Task;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const RATE: usize = 16_000;
/// How often the live stream asks.
const STEP: Duration = Duration::from_secs(1);
/// Newest sound that each of its windows has.
const LIVE_SECONDS: usize = 10;
/// A file's window.
const FILE_SECONDS: usize = 27;
/// Windows for each lane in the part that measures how long one takes.
const UNDISTURBED: usize = 10;
/// Nothing takes longer than this.
const GUARD: Duration = Duration::from_secs(120);

/// A recording that never ends, from a place of one's own in it.
#[derive(Clone)]
struct Sound {
    samples: Arc<[f32]>,
    at: usize,
}

impl Sound {
    /// The next `seconds` of it; then it goes on `step` seconds later.
    fn next(&mut self, seconds: usize, step: usize) -> Arc<[f32]> {
        let all = self.samples.len();
        let window = (0..seconds * RATE)
            .map(|i| self.samples[(self.at + i) % all])
            .collect();
        self.at = (self.at + step * RATE) % all;
        window
    }
}

fn window(samples: Arc<[f32]>) -> Window {
    Window {
        id: 0,
        samples,
        language: Language::Fixed("en".into()),
        task: Task::Transcribe,
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::new(),
    }
}

/// What one file got.
#[derive(Clone, Copy, Default)]
struct Got {
    seconds: f64,
    /// Longest time between two answers.
    longest_wait: Duration,
}

fn main() -> Result<(), Failure> {
    gst::init()?;
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |a| a.parse::<usize>());
    let (windows, files) = (number(120)?, number(15)?);
    let recording = arguments
        .next()
        .unwrap_or_else(|| "tests/data/demo.opus".into());
    let sound = Sound {
        samples: decode(Path::new(&recording))?.into(),
        at: 0,
    };
    let registry = Registry::with_settings(RegistrySettings::from_environment());
    let spec = speech_spec("", None, "cpu", 1, true, Isolation::Auto)?;
    let lease = || registry.acquire(Request::<Whisper>(spec.clone()), &CancelToken::new());
    let live = lease()?;
    let leases: Vec<Lease<Whisper>> = (0..files).map(|_| lease()).collect::<Result<_, _>>()?;

    // The lanes are made at the first jobs.
    undisturbed(&registry, &leases, &sound, 1)?;
    println!("seconds                                   windows  median    95 %    99 %    most");
    let before = run_live(&live, &sound, windows.div_ceil(4))?;
    row("live, alone (before)", &before);
    let alone = undisturbed(&registry, &leases, &sound, UNDISTURBED)?;
    row("a file's window, each lane busy", &alone);
    let (beside, got, seconds) = beside(&registry, &live, &leases, &sound, windows)?;
    row(&format!("live, beside {files} files"), &beside);
    let after = run_live(&live, &sound, windows.div_ceil(4))?;
    row("live, alone (after)", &after);
    let own = [&before[..], &after[..]].concat();
    println!(
        "bound: the longest of a file's windows and the longest of its own alone, {:.2} s",
        most(&alone) + most(&own)
    );
    let sum: f64 = got.iter().map(|g| g.seconds).sum();
    let shares = || got.iter().map(|g| 100.0 * g.seconds / sum);
    println!(
        "files: {sum:.0} s of sound in {seconds:.0} s; each {:.1} to {:.1} % of it (equal shares: {:.1} %), longest wait of \
         one for an answer {:.1} s",
        shares().fold(f64::INFINITY, f64::min),
        shares().fold(0.0, f64::max),
        100.0 / files as f64,
        got.iter()
            .map(|g| g.longest_wait.as_secs_f64())
            .fold(0.0, f64::max)
    );
    let document = serde_json::json!({
        "alone_before": before, "alone_after": after, "beside": beside, "file_window": alone,
        "files": got.iter().map(|g| g.seconds).collect::<Vec<_>>(), "files_seconds": seconds,
        "longest_wait": got.iter().map(|g| g.longest_wait.as_secs_f64()).collect::<Vec<_>>(),
        "lanes": registry.cores(),
    });
    println!("{document}");
    Ok(())
}

/// Delays of `windows` answers, in seconds.
fn run_live(lease: &Lease<Whisper>, sound: &Sound, windows: usize) -> Result<Vec<f64>, Failure> {
    let mut sound = sound.clone();
    let mut delays = Vec::new();
    for _ in 0..windows {
        let job = window(sound.next(LIVE_SECONDS, 1));
        let submitted = Instant::now();
        let deadline = Some(submitted + STEP);
        let params = BatchParams::default();
        let mut ticket = lease.submit(job, params, Class::LiveDeadline, deadline);
        ticket.wait(GUARD).ok_or("a live window has no answer")??;
        delays.push(submitted.elapsed().as_secs_f64());
        std::thread::sleep(STEP.saturating_sub(submitted.elapsed()));
    }
    Ok(delays)
}

/// Files alone, one window a lane: how long one takes while all lanes work.
fn undisturbed(
    registry: &Registry,
    leases: &[Lease<Whisper>],
    sound: &Sound,
    windows: usize,
) -> Result<Vec<f64>, Failure> {
    let each = |(n, lease): (usize, &Lease<Whisper>)| -> Result<Vec<f64>, Failure> {
        let mut sound = place(sound, n, registry.cores());
        let mut took = Vec::new();
        for _ in 0..windows {
            let job = window(sound.next(FILE_SECONDS, FILE_SECONDS));
            let submitted = Instant::now();
            let mut ticket = lease.submit(job, beams(), Class::File, None);
            ticket
                .wait(GUARD)
                .ok_or("a file's window has no answer")??;
            took.push(submitted.elapsed().as_secs_f64());
        }
        Ok(took)
    };
    let outcomes: Vec<Result<Vec<f64>, Failure>> = std::thread::scope(|scope| {
        let lanes = leases.iter().enumerate().take(registry.cores());
        let threads: Vec<_> = lanes.map(|one| scope.spawn(move || each(one))).collect();
        threads.into_iter().map(joined).collect()
    });
    let all: Vec<Vec<f64>> = outcomes.into_iter().collect::<Result<_, _>>()?;
    Ok(all.concat())
}

/// The live stream with all files at work; what each file got, and in how many seconds.
fn beside(
    registry: &Registry,
    live: &Lease<Whisper>,
    leases: &[Lease<Whisper>],
    sound: &Sound,
    windows: usize,
) -> Result<(Vec<f64>, Vec<Got>, f64), Failure> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, files) = (&stop, leases.len());
        let threads: Vec<_> = leases
            .iter()
            .enumerate()
            .map(|(n, lease)| {
                let sound = place(sound, n, files);
                let at_once = registry.cores() + 1;
                scope.spawn(move || run_file(lease, sound, at_once, stop))
            })
            .collect();
        let began = Instant::now();
        let delays = run_live(live, sound, windows);
        stop.store(true, Ordering::SeqCst);
        let seconds = began.elapsed().as_secs_f64();
        let got: Result<Vec<Got>, Failure> = threads.into_iter().map(joined).collect();
        Ok((delays?, got?, seconds))
    })
}

/// A file until `stop`: the next window is asked for when the oldest is answered.
fn run_file(
    lease: &Lease<Whisper>,
    mut sound: Sound,
    at_once: usize,
    stop: &AtomicBool,
) -> Result<Got, Failure> {
    let mut flying: VecDeque<Ticket<Decoded>> = VecDeque::new();
    let mut got = Got::default();
    let mut last = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        while flying.len() < at_once {
            let job = window(sound.next(FILE_SECONDS, FILE_SECONDS));
            flying.push_back(lease.submit(job, beams(), Class::File, None));
        }
        let Some(oldest) = flying.front_mut() else {
            continue;
        };
        if let Some(answer) = oldest.wait(Duration::from_millis(100)) {
            answer?;
            flying.pop_front();
            got.seconds += FILE_SECONDS as f64;
            got.longest_wait = got.longest_wait.max(last.elapsed());
            last = Instant::now();
        }
    }
    got.longest_wait = got.longest_wait.max(last.elapsed());
    Ok(got)
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().map_err(|_| "a thread panicked")?
}

/// Where stream `n` of `all` begins.
fn place(sound: &Sound, n: usize, all: usize) -> Sound {
    Sound {
        samples: Arc::clone(&sound.samples),
        at: sound.samples.len() * n / all.max(1),
    }
}

/// A transcriber's default for files.
fn beams() -> BatchParams {
    BatchParams {
        beam: 4,
        ..BatchParams::default()
    }
}

fn row(what: &str, delays: &[f64]) {
    println!(
        "{what:<41} {:>7} {:>7.2} {:>7.2} {:>7.2} {:>7.2}",
        delays.len(),
        percentile(delays, 50.0),
        percentile(delays, 95.0),
        percentile(delays, 99.0),
        most(delays)
    );
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// The smallest value that `percent` of all do not pass.
fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}
