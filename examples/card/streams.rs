// SPDX-License-Identifier: MPL-2.0
//! Streams as the element runs them, on one registry, under one limit; and several such processes at once.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use gstscribe::audio::SampleIndex;
use gstscribe::inference::CancelToken;
use gstscribe::inference::isolated::Isolation;
use gstscribe::registry::limit::MemoryLimit;
use gstscribe::registry::{Registry, RegistrySettings};
use gstscribe::transcribe::file::{Models, Session, SessionParams, fallback_specs, speech_spec};

use crate::watch::{Peak, mib, until_steady, used};
use crate::{Asked, Outcome, card, sound};

/// What a stream said, and what was given up for it.
struct Said {
    words: Vec<String>,
    given_up: Vec<String>,
    restarts: u64,
}

/// Between two kills of a worker.
const KILL_EVERY: Duration = Duration::from_millis(700);

fn stream(
    registry: &Registry,
    asked: &Asked,
    samples: &[f32],
    kills: &AtomicUsize,
) -> Outcome<Said> {
    let isolation = match asked.text("isolation", "auto") {
        "process" => Isolation::Process,
        "in-process" => Isolation::InProcess,
        _ => Isolation::Auto,
    };
    let (model, device) = (asked.word(1)?, asked.text("device", "cuda:0"));
    let find = |model: &str, device: &str| speech_spec(model, None, device, 1, true, isolation);
    let mut params = SessionParams::new(find(model, device)?, None);
    let chain = asked.text("fallback", "").replace("none", "");
    (params.fallback, params.given_up) = fallback_specs(&chain, model, device, find);
    // Several beams and temperatures make whisper.cpp draw lots.
    params.beam = u32::try_from(asked.number("beam", 1)?)?;
    params.temperatures = Vec::new();
    let models = Models::acquire(registry, &params, &CancelToken::new())?;
    let (wake, woken) = mpsc::channel();
    let wake = Mutex::new(wake);
    let wake = Arc::new(move || {
        let _ = wake.lock().unwrap_or_else(PoisonError::into_inner).send(());
    });
    let mut session = Session::new(Arc::new(models), params, wake);
    let mut said = Said {
        words: Vec::new(),
        given_up: Vec::new(),
        restarts: 0,
    };
    let mut at = 0;
    let mut next_kill = Instant::now() + KILL_EVERY;
    let mut last = None;
    while at < samples.len() || !session.is_idle() {
        while at < samples.len() && session.wants_input() {
            let end = (at + 16_000).min(samples.len());
            session.push(SampleIndex(at as u64), &samples[at..end]);
            at = end;
            if at == samples.len() {
                session.end_piece();
            }
        }
        for spoken in session.poll()? {
            said.words.extend(spoken.words.into_iter().map(|w| w.text));
        }
        if let Some(process) = session.process() {
            said.restarts = process.restarts;
            let left =
                || kills.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if Instant::now() >= next_kill
                && process.pid.is_some()
                && process.pid != last
                && left().is_ok()
            {
                last = process.pid;
                let pid = process.pid.unwrap_or_default().to_string();
                Command::new("kill").args(["-9", &pid]).status()?;
                next_kill = Instant::now() + KILL_EVERY;
            }
        }
        let given_up = session.models().degraded();
        said.given_up.extend(
            given_up
                .iter()
                .map(|d| format!("{}: {} -> {} ({})", d.what, d.from, d.to, d.reason)),
        );
        let _ = woken.recv_timeout(Duration::from_millis(5));
    }
    Ok(said)
}

/// Most lanes, and most bytes booked, that a registry had.
#[derive(Default)]
struct Most {
    lanes: usize,
    booked: u64,
    foreign: u64,
    ceiling: u64,
}

fn look(registry: &Registry, most: &mut Most) {
    let lanes: usize = registry.stats().iter().map(|s| s.lanes).sum();
    most.lanes = most.lanes.max(lanes);
    for memory in registry.memory() {
        if memory.device.to_string().starts_with("cuda") {
            most.booked = most.booked.max(memory.booked);
            most.foreign = memory.foreign;
            most.ceiling = memory.ceiling;
        }
    }
}

pub fn run(asked: &Asked) -> Outcome<()> {
    let samples = sound(asked.word(2)?)?;
    let limit: Option<MemoryLimit> = asked.options.get("limit").map(|l| l.parse()).transpose()?;
    let streams = asked.number("streams", 8)?;
    let kills = AtomicUsize::new(asked.number("kills", 0)?);
    let settings = RegistrySettings {
        memory_limit: limit,
        lanes: asked.number("lanes", 8)?,
        keep_alive: Duration::ZERO,
    };
    let card = card().ok();
    let before = card.as_ref().map_or(Ok(0), used)?;
    let peak = card.as_ref().map(|_| Peak::watch()).transpose()?;
    let registry = Registry::with_settings(settings);
    let began = Instant::now();
    let mut most = Most::default();
    let said: Vec<Outcome<Said>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..streams)
            .map(|_| scope.spawn(|| stream(&registry, asked, &samples, &kills)))
            .collect();
        while threads.iter().any(|t| !t.is_finished()) {
            look(&registry, &mut most);
            std::thread::sleep(Duration::from_millis(10));
        }
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err("a stream panicked".into())))
            .collect()
    });
    let took = began.elapsed().as_secs_f64();
    let good: Vec<&Said> = said.iter().filter_map(|s| s.as_ref().ok()).collect();
    for error in said.iter().filter_map(|s| s.as_ref().err()) {
        println!("  failed: {error}");
    }
    let mut given_up: Vec<&String> = good.iter().flat_map(|s| &s.given_up).collect();
    given_up.sort();
    given_up.dedup();
    for event in given_up.iter().take(6) {
        println!("  given up: {event}");
    }
    let alike = good.iter().filter(|s| s.words == good[0].words).count();
    println!(
        "{} of {streams} streams done in {took:.1} s, {:.1} x real time; {} words, {alike} texts alike; {} lanes; {} restarts",
        good.len(),
        good.len() as f64 * samples.len() as f64 / 16_000.0 / took,
        good.first().map_or(0, |s| s.words.len()),
        most.lanes,
        good.iter().map(|s| s.restarts).max().unwrap_or(0),
    );
    if let (Some(peak), Some(card)) = (peak, &card) {
        let peak = peak.end().saturating_sub(before);
        let total = gstscribe::registry::device::Device::probe(card)?.total;
        let of = limit.map_or(total, |l| l.bytes_of(total));
        println!(
            "  MiB: limit {}, booked at most {}, driver's peak {} = {:.1} % of the limit; ceiling {}, others {}",
            mib(of),
            mib(most.booked),
            mib(peak),
            peak as f64 / of as f64 * 100.0,
            mib(most.ceiling),
            mib(most.foreign),
        );
    }
    registry.evict_idle();
    drop(registry);
    if let Some(card) = &card {
        let (left, after) = until_steady(card)?;
        println!(
            "  MiB left when all is dropped, {after:.2?} later: {}",
            mib(left.saturating_sub(before))
        );
    }
    if let Some(to) = asked.options.get("text") {
        std::fs::write(
            to,
            good.first().map(|s| s.words.join(" ")).unwrap_or_default(),
        )?;
    }
    match good.len() == streams {
        true => Ok(()),
        false => Err("a stream was lost".into()),
    }
}

pub fn together(asked: &Asked) -> Outcome<()> {
    let processes: usize = asked.word(1)?.parse()?;
    let card = card()?;
    let before = used(&card)?;
    let peak = Peak::watch()?;
    let arguments: Vec<String> = std::env::args().skip(3).collect();
    let mut children = Vec::new();
    for _ in 0..processes {
        let mut child = Command::new(std::env::current_exe()?);
        children.push(
            child
                .arg("streams")
                .args(&arguments)
                .stdout(Stdio::inherit())
                .spawn()?,
        );
    }
    let mut good = 0;
    for mut child in children {
        good += usize::from(child.wait()?.success());
    }
    let (left, after) = until_steady(&card)?;
    let peak = peak.end().saturating_sub(before);
    let limit: MemoryLimit = asked.text("limit", "100%").parse()?;
    let of = limit.bytes_of(gstscribe::registry::device::Device::probe(&card)?.total);
    println!(
        "{good} of {processes} processes ended well; together at most {} MiB = {:.1} % of {} MiB; left after their end, {after:.2?} later: {} MiB",
        mib(peak),
        peak as f64 / of as f64 * 100.0,
        mib(of),
        mib(left.saturating_sub(before))
    );
    match good == processes {
        true => Ok(()),
        false => Err("a process failed".into()),
    }
}
