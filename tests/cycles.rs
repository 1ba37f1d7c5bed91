// SPDX-License-Identifier: MPL-2.0
//! Real models loaded and evicted over and over, elements thrown from state to state: nothing is left behind. And
//! keep-alive: what is asked for again in time is not loaded again, and what goes is really gone.
//!
//! Each run has a process of its own, which measures itself. The long ones are for `make soak`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a watchdog says what hangs")]
#![allow(clippy::print_stdout, reason = "figures of the long runs")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Recorder, buffers, eventually, ms, repository, text_of, there, transcriber_with};
use gst::prelude::*;
use gstscribe::context::registry_context;
use gstscribe::diarize::models::{embedding_spec, segmentation_spec};
use gstscribe::inference::isolated::Isolation;
use gstscribe::inference::onnx::library;
use gstscribe::inference::{BatchParams, CancelToken, VadBlock, VadState, Window};
use gstscribe::registry::{
    Class, Embedding, Registry, Request, Segmentation, VoiceActivity, Whisper, WhisperSpec,
};
use gstscribe::transcribe::file::{speech_spec, vad_spec};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);
/// Nothing that is waited for here takes a minute, however busy the machine.
const WATCHDOG: Duration = Duration::from_secs(300);
/// Bytes a cycle.
const SLOPE_MOST: f64 = 100e3;

/// Whether the real models and ONNX Runtime are here.
fn models() -> bool {
    [
        "models/ggml-tiny.en-q8_0.bin",
        "models/silero-vad-6.2-rows.onnx",
        "models/segmentation-3.0.onnx",
        "models/ge2e-resemblyzer.onnx",
        "target/release/scribe/libonnxruntime.so.1",
    ]
    .iter()
    .all(|file| there(&repository(file), "make models"))
}

/// Ends the process where nothing happens any more.
struct Watchdog(Arc<Mutex<(Instant, String)>>);

impl Watchdog {
    fn new() -> Self {
        let seen = Arc::new(Mutex::new((Instant::now(), String::new())));
        let own = Arc::clone(&seen);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let (at, doing) = own.lock().unwrap().clone();
                if at.elapsed() > WATCHDOG {
                    eprintln!("hangs: {doing}");
                    std::process::abort();
                }
            }
        });
        Self(seen)
    }

    fn doing(&self, what: String) {
        *self.0.lock().unwrap() = (Instant::now(), what);
    }
}

/// Waits until `holds`; the watchdog looks after it.
fn until(holds: impl Fn() -> bool) {
    while !holds() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the process has at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    resident: u64,
    files: usize,
    /// Threads of ours.
    threads: usize,
    all_threads: usize,
}

impl Sample {
    fn take() -> Self {
        let tasks: Vec<String> = std::fs::read_dir("/proc/self/task")
            .unwrap()
            // One that ends in between has no name.
            .filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")).ok())
            .collect();
        Self {
            resident: process::anonymous(),
            files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: tasks.iter().filter(|t| t.starts_with("scribe-")).count(),
            all_threads: tasks.len(),
        }
    }
}

/// Tells what became of `samples`, one every `step` cycles, after a tenth of them to warm up.
fn tell(samples: &[Sample], step: usize) {
    let warm = &samples[(samples.len() / 10).max(1)..];
    let last = warm[warm.len() - 1];
    // Somebody has a file of /proc open now and then: the fewest of some samples are those that stay.
    let few = (warm.len() / 10).max(3).min(warm.len());
    let more = |of: fn(&Sample) -> usize| {
        let fewest = |samples: &[Sample]| samples.iter().map(of).min().unwrap();
        fewest(&warm[warm.len() - few..]) as i64 - fewest(&warm[..few]) as i64
    };
    if std::env::var_os("SCRIBE_TEST_VERBOSE").is_some() {
        for sample in samples {
            eprintln!("{sample:?}");
        }
    }
    let resident: Vec<f64> = warm.iter().map(|s| s.resident as f64).collect();
    process::tell(&format!("slope {}", slope(&resident) / step as f64));
    // ONNX Runtime's arena stays at one level and is 50 MB below it now and then: medians do not see that, and see what stays.
    let third = (warm.len() / 3).max(1);
    let median = |samples: &[Sample]| {
        let mut all: Vec<u64> = samples.iter().map(|s| s.resident).collect();
        all.sort_unstable();
        all[all.len() / 2] as i64
    };
    let growth = median(&warm[warm.len() - third..]) - median(&warm[..third]);
    process::tell(&format!("growth {growth}"));
    process::tell(&format!("resident {}", last.resident));
    process::tell(&format!("files {}", more(|s| s.files)));
    process::tell(&format!("threads {}", more(|s| s.threads)));
    let all = warm.iter().map(|s| s.all_threads).max().unwrap();
    process::tell(&format!("all_threads {all}"));
}

/// Of the straight line that is nearest to `values`.
fn slope(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let (x_mean, y_mean) = ((n - 1.0) / 2.0, values.iter().sum::<f64>() / n);
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in values.iter().enumerate() {
        let x = x as f64 - x_mean;
        above += x * (y - y_mean);
        below += x * x;
    }
    above / below
}

/// Figures of the test `name` in a process of its own, by name.
fn figures(name: &str, task: &str) -> HashMap<String, f64> {
    let told = process::run(name, task);
    let figures: HashMap<String, f64> = told
        .iter()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().unwrap()))
        })
        .collect();
    println!("{task}: {figures:#?}");
    figures
}

fn assert_flat(figures: &HashMap<String, f64>) {
    assert!(figures["files"] <= 0.0, "{figures:#?}");
    assert!(figures["threads"] <= 0.0, "{figures:#?}");
}

fn window(samples: &[f32]) -> Window {
    Window {
        id: 0,
        samples: samples.into(),
        language: Default::default(),
        task: Default::default(),
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::new(),
    }
}

fn whisper() -> WhisperSpec {
    let model = repository("models/ggml-tiny.en-q8_0.bin");
    speech_spec(
        model.to_str().unwrap(),
        None,
        "cpu",
        1,
        true,
        Isolation::InProcess,
    )
    .unwrap()
}

/// Whether nothing is loaded and nothing reserved any more.
fn is_empty(registry: &Registry) -> bool {
    registry.stats().is_empty() && registry.memory().iter().all(|m| m.reserved == 0)
}

/// Whether no lane works or is being made.
fn rests(registry: &Registry) -> bool {
    let rests = |s: &gstscribe::registry::ModelStats| s.lanes > 0 && s.busy_lanes == 0;
    registry.stats().iter().all(rests)
}

fn cycles_of_whisper(cycles: usize) {
    let dog = Watchdog::new();
    let registry = Registry::new(2, HOUR);
    let spec = whisper();
    let sound: Vec<f32> = common::tone(16_000, 3000, 0.1).collect();
    let mut samples = Vec::new();
    for n in 0..cycles {
        dog.doing(format!("cycle {n} of Whisper"));
        let request = Request::<Whisper>(spec.clone());
        let lease = registry.acquire(request, &CancelToken::new()).unwrap();
        match n % 10 {
            0 => {
                let params = BatchParams::default();
                let mut ticket = lease.submit(window(&sound), params, Class::File, None);
                ticket.wait(HOUR).unwrap().unwrap();
            }
            // Its lane is still being made when it goes.
            5 => {}
            _ => until(|| rests(&registry)),
        }
        drop(lease);
        registry.evict_idle();
        until(|| is_empty(&registry));
        until(|| Sample::take().threads <= 1);
        samples.push(Sample::take());
    }
    assert_eq!(registry.evicted(), cycles as u64);
    tell(&samples, 1);
}

fn cycles_of_onnx(cycles: usize) {
    let dog = Watchdog::new();
    // It has a thread of its own, which takes the name of the one that first needs it.
    library::environment().unwrap();
    let registry = Registry::new(2, HOUR);
    let vad = Request::<VoiceActivity>(vad_spec("").unwrap());
    let segmentation = Request::<Segmentation>(segmentation_spec("").unwrap());
    let embedding = Request::<Embedding>(embedding_spec("ge2e").unwrap());
    let sound: Arc<[f32]> = common::tone(16_000, 2000, 0.1).collect();
    let mut samples = Vec::new();
    for n in 0..cycles {
        dog.doing(format!("cycle {n} of ONNX"));
        let request = (vad.clone(), segmentation.clone(), embedding.clone());
        let (vad, segmentation, embedding) =
            registry.acquire(request, &CancelToken::new()).unwrap();
        match n % 10 {
            0 => {
                let block = VadBlock {
                    samples: vec![0.0; 5120],
                    state: VadState::default(),
                };
                let mut heard = vad.submit(block, (), Class::File, None);
                let mut who = segmentation.submit(Arc::clone(&sound), (), Class::File, None);
                let mut voice = embedding.submit(Arc::clone(&sound), (), Class::File, None);
                heard.wait(HOUR).unwrap().unwrap();
                who.wait(HOUR).unwrap().unwrap();
                voice.wait(HOUR).unwrap().unwrap();
            }
            5 => {}
            _ => until(|| rests(&registry)),
        }
        drop((vad, segmentation, embedding));
        registry.evict_idle();
        until(|| is_empty(&registry));
        until(|| Sample::take().threads <= 1);
        samples.push(Sample::take());
    }
    assert_eq!(registry.evicted(), 3 * cycles as u64);
    tell(&samples, 1);
}

/// Runs what `task` says, as in `whisper 1000`.
fn child(task: &str) {
    let (what, count) = task.split_once(' ').unwrap();
    let count: usize = count.parse().unwrap();
    match what {
        "whisper" => cycles_of_whisper(count),
        "onnx" => cycles_of_onnx(count),
        "states" => changes_of_state(count),
        _ => unreachable!("{task}"),
    }
}

#[test]
fn twenty_loads_and_evictions_leave_nothing_behind() {
    if let Some(task) = process::task() {
        return child(&task);
    }
    if !models() {
        return;
    }
    for task in ["whisper 20", "onnx 20"] {
        let figures = figures("twenty_loads_and_evictions_leave_nothing_behind", task);

        assert_flat(&figures);
        // A model that stayed once would be more than this.
        assert!(figures["growth"] < 8.0 * MIB as f64, "{figures:#?}");
    }
}

#[test]
#[ignore = "takes minutes: make soak"]
fn a_thousand_loads_and_evictions_leave_nothing_behind() {
    if let Some(task) = process::task() {
        return child(&task);
    }
    if !models() {
        return;
    }
    for task in ["whisper 1000", "onnx 1000"] {
        let figures = figures("a_thousand_loads_and_evictions_leave_nothing_behind", task);

        assert_flat(&figures);
        assert!(figures["slope"] < SLOPE_MOST, "{figures:#?}");
    }
}

/// Writes the recording as WAV: decodebin does not bear a seek while it is being plugged.
fn write_wav(to: &Path) {
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! \
         audio/x-raw,format=S16LE,rate=16000,channels=1 ! wavenc ! filesink location={}",
        repository("tests/data/demo.opus").display(),
        to.display()
    ));
    let pipeline = pipeline.unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(None, &kinds);
    assert_eq!(message.unwrap().type_(), gst::MessageType::Eos);
    pipeline.set_state(gst::State::Null).unwrap();
}

/// A recording, a transcriber with the real models, a sink.
struct Line {
    pipeline: gst::Pipeline,
    out: Recorder,
}

impl Line {
    fn new(registry: &Registry, recording: &Path) -> Self {
        let pipeline = gst::parse::launch(&format!(
            "filesrc location={} ! wavparse ! audioconvert ! scribetranscriber name=t threads=1 ! \
             fakesink name=out sync=false",
            recording.display()
        ));
        let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
        let transcriber = pipeline.by_name("t").unwrap();
        transcriber.set_context(&registry_context(registry));
        let sink = pipeline.by_name("out").unwrap();
        let out = Recorder::on(&sink.static_pad("sink").unwrap());
        Self { pipeline, out }
    }

    /// Throws away what is on the bus: it holds elements. An ERROR is a failure.
    fn drain(&self) {
        let bus = self.pipeline.bus().unwrap();
        while let Some(message) = bus.pop() {
            if let gst::MessageView::Error(error) = message.view() {
                panic!("{:?} {:?}", error.error(), error.debug());
            }
        }
    }

    /// The words of the whole recording.
    fn transcript(&self) -> String {
        self.pipeline.set_state(gst::State::Null).unwrap();
        self.out.clear();
        self.pipeline.set_state(gst::State::Playing).unwrap();
        until(|| {
            self.drain();
            common::has(&self.out.all(), gst::EventType::Eos)
        });
        let text: Vec<String> = buffers(&self.out.all()).iter().map(text_of).collect();
        self.pipeline.set_state(gst::State::Null).unwrap();
        self.out.clear();
        text.join("\n")
    }
}

/// A generator whose numbers are the same every time: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[allow(unsafe_code, reason = "the end of GStreamer is")]
fn changes_of_state(changes: usize) {
    const EVERY: usize = 10;
    common::init();
    let dog = Watchdog::new();
    let registry = Registry::new(2, HOUR);
    dog.doing("the first transcript".into());
    let folder = tempfile::tempdir().unwrap();
    let recording = folder.path().join("demo.wav");
    write_wav(&recording);
    let lines: Vec<Line> = (0..3).map(|_| Line::new(&registry, &recording)).collect();
    let undisturbed = lines[0].transcript();
    assert!(undisturbed.len() > 100, "{undisturbed}");
    let mut random = Random(0x5eed_0009);
    let mut samples = Vec::new();
    let (mut slowest, mut seeks) = (Duration::ZERO, 0);
    for n in 1..=changes {
        let line = &lines[random.below(3) as usize];
        let began = Instant::now();
        if random.below(10) < 3 {
            let at = ms(random.below(60_000));
            dog.doing(format!("change {n}: a seek to {at}"));
            // A pipeline that is not there yet refuses.
            seeks += u64::from(line.pipeline.seek_simple(gst::SeekFlags::FLUSH, at).is_ok());
        } else {
            let states = [
                gst::State::Null,
                gst::State::Ready,
                gst::State::Paused,
                gst::State::Playing,
            ];
            let state = states[random.below(4) as usize];
            dog.doing(format!("change {n}: {state:?}"));
            line.pipeline.set_state(state).unwrap();
        }
        slowest = slowest.max(began.elapsed());
        // Sometimes at once, sometimes after some inference.
        std::thread::sleep(Duration::from_millis(random.below(250)));
        lines.iter().for_each(Line::drain);
        if n % EVERY == 0 {
            dog.doing(format!("rest after change {n}"));
            for line in &lines {
                line.pipeline.set_state(gst::State::Null).unwrap();
                line.drain();
                line.out.clear();
            }
            until(|| rests(&registry) && registry.stats().iter().all(|s| s.leases == 0));
            process::trim();
            samples.push(Sample::take());
        }
    }
    for line in &lines {
        dog.doing("the last transcripts".into());
        // whisper.cpp draws at random where it decodes again, and goes on with the numbers of the window before.
        let text = line.transcript();
        let words: Vec<&str> = text.split_whitespace().collect();
        let wanted = undisturbed.split_whitespace();
        let here = wanted.clone().filter(|w| words.contains(w)).count();
        assert!(
            here * 5 >= wanted.count() * 4,
            "{text}\nis not\n{undisturbed}"
        );
    }
    // Nothing was loaded twice.
    assert_eq!(registry.evicted(), 0);
    assert_eq!(registry.stats().len(), 2);
    tell(&samples, EVERY);
    process::tell(&format!("slowest_ms {}", slowest.as_millis()));
    process::tell(&format!("seeks {seeks}"));
    drop(lines);
    drop(registry);
    // SAFETY: nothing of GStreamer is used behind this; the leak tracer reports here.
    unsafe { gst::deinit() };
}

/// Runs `task` with GStreamer's leak tracer, which must be silent.
fn figures_without_leaks(name: &str, task: &str) -> HashMap<String, f64> {
    let out = process::command(name, task)
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let logged = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}\n{said}\n{logged}", out.status);
    let leaks: Vec<&str> = logged
        .lines()
        .filter(|l| l.contains("object-alive,") && l.contains("address=(gpointer)0x"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    let figures: HashMap<String, f64> = said
        .lines()
        .filter_map(process::told)
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().unwrap()))
        })
        .collect();
    println!("{task}: {figures:#?}");
    figures
}

#[test]
fn thirty_changes_of_state_and_seeks_over_three_elements_leave_nothing_behind() {
    if let Some(task) = process::task() {
        return child(&task);
    }
    if !models() {
        return;
    }

    let figures = figures_without_leaks(
        "thirty_changes_of_state_and_seeks_over_three_elements_leave_nothing_behind",
        "states 30",
    );

    assert!(figures["seeks"] > 0.0, "{figures:#?}");
}

#[test]
#[ignore = "takes minutes: make soak"]
fn five_hundred_changes_of_state_and_seeks_over_three_elements_leave_nothing_behind() {
    if let Some(task) = process::task() {
        return child(&task);
    }
    if !models() {
        return;
    }

    let figures = figures_without_leaks(
        "five_hundred_changes_of_state_and_seeks_over_three_elements_leave_nothing_behind",
        "states 500",
    );

    assert_flat(&figures);
    assert!(figures["slope"] < SLOPE_MOST, "{figures:#?}");
}

// Keep-alive.

/// A transcription on fakes, from the beginning to the end of the stream.
fn play(element: &gst::Element, sound: &gst::Pad, out: &Recorder) {
    element.set_state(gst::State::Playing).unwrap();
    sound.set_active(true).unwrap();
    sound.push_event(gst::event::StreamStart::new("sound"));
    sound.push_event(gst::event::Caps::new(&common::F32_16K.parse().unwrap()));
    sound.push_event(gst::event::Segment::new(&gst::FormattedSegment::<
        gst::ClockTime,
    >::new()));
    sound.push(common::sound(0, 1000, 0.3)).unwrap();
    sound.push_event(gst::event::Eos::new());
    let all = out.wait_eos();
    assert_eq!(common::texts(&all), ["hello"]);
    element.set_state(gst::State::Null).unwrap();
    sound.set_active(false).unwrap();
    out.clear();
}

/// An element on `registry` with a pad for sound and what comes out.
fn element(registry: &Registry, model: &str) -> (gst::Element, gst::Pad, gst::Pad, Recorder) {
    let element = transcriber_with(registry, model);
    let sound = gst::Pad::builder(gst::PadDirection::Src).build();
    let text = gst::Pad::builder(gst::PadDirection::Sink)
        .chain_function(|_, _, _| Ok(gst::FlowSuccess::Ok))
        .event_function(|_, _, _| true)
        .build();
    let out = Recorder::on(&text);
    text.set_active(true).unwrap();
    sound.link(&element.static_pad("sink").unwrap()).unwrap();
    element.static_pad("src").unwrap().link(&text).unwrap();
    (element, sound, text, out)
}

#[test]
fn elements_that_go_through_null_and_back_reload_nothing() {
    let fake = common::says("through_null", "hello");
    let registry = Registry::new(2, HOUR);
    let elements = [0; 3].map(|_| element(&registry, "through_null"));

    for _ in 0..5 {
        for (element, sound, _, out) in &elements {
            play(element, sound, out);
        }
    }

    assert_eq!(fake.windows.load(Ordering::SeqCst), 15);
    assert_eq!(fake.loads.load(Ordering::SeqCst), 1);
    assert_eq!(registry.evicted(), 0);
}

#[test]
fn a_model_that_no_element_has_used_for_its_keep_alive_goes_and_comes_back() {
    let fake = common::says("keep_alive", "hello");
    let registry = Registry::new(2, Duration::from_millis(200));
    let (element, sound, _text, out) = element(&registry, "keep_alive");
    let loads = || fake.loads.load(Ordering::SeqCst);

    play(&element, &sound, &out);
    eventually("it is gone", || is_empty(&registry));
    let (before, evicted) = (loads(), registry.evicted());
    play(&element, &sound, &out);

    assert_eq!(before, 1);
    // The voice activity model went too.
    assert_eq!(evicted, 2);
    assert_eq!(loads(), 2);
}

#[test]
fn an_evicted_model_gives_back_its_memory_and_not_only_its_reservation() {
    if process::task().is_some() {
        let registry = Registry::new(2, Duration::from_millis(500));
        let request = Request::<Whisper>(whisper());
        let before = process::resident();
        let lease = registry.acquire(request, &CancelToken::new()).unwrap();
        until(|| rests(&registry));
        let loaded = process::resident();
        let stats = lease.stats();
        drop(lease);
        // Nobody asks for it: its time is over.
        eventually("nothing is reserved", || {
            registry.memory().iter().all(|m| m.reserved == 0)
        });
        let after = process::resident();
        process::tell(&format!("took {}", loaded - before));
        process::tell(&format!("left {}", after.saturating_sub(before)));
        process::tell(&format!("weights {}", stats.weights_bytes));
        process::tell(&format!(
            "reserved {}",
            stats.weights_bytes + stats.lanes_bytes
        ));
        process::tell(&format!("evicted {}", registry.evicted()));
        return;
    }
    if !models() {
        return;
    }

    let figures = figures(
        "an_evicted_model_gives_back_its_memory_and_not_only_its_reservation",
        "evict",
    );

    assert_eq!(figures["evicted"], 1.0);
    assert!(figures["took"] <= figures["reserved"], "{figures:#?}");
    let freed = figures["took"] - figures["left"];
    assert!(freed > 0.9 * figures["weights"], "{figures:#?}");
    assert!(figures["left"] < 8.0 * MIB as f64, "{figures:#?}");
}

#[test]
fn the_slope_of_a_straight_line_is_found() {
    let line: Vec<f64> = (0..50).map(|n| 7.0 + 3.0 * f64::from(n)).collect();

    assert!((slope(&line) - 3.0).abs() < 1e-9);
    assert!(slope(&[5.0; 10]).abs() < 1e-9);
}
