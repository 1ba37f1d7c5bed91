// SPDX-License-Identifier: MPL-2.0
//! What the tests of elements share: a rig around one transcriber, sound to put in, and what came out in
//! order.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;
use gstscribe::context::registry_context;
use gstscribe::inference::fake::FakeSpeech;
use gstscribe::inference::onnx::whisper::OnnxWhisperSpec;
use gstscribe::registry::Registry;

pub const MS: u64 = 1_000_000;
/// Whatever takes longer than this hangs.
pub const GUARD: Duration = Duration::from_secs(30);
/// A state change, a flush or an end may take this long, whatever inference does.
pub const AT_ONCE: Duration = Duration::from_secs(2);
pub const F32_16K: &str = "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";

pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gstscribe::plugin_register_static().unwrap();
    });
}

pub fn ms(ms: u64) -> gst::ClockTime {
    gst::ClockTime::from_mseconds(ms)
}

/// Two cores, and models go soon.
pub fn registry() -> Registry {
    Registry::new(2, Duration::from_secs(1))
}

/// A transcriber on fakes with `registry`.
pub fn transcriber_with(registry: &Registry, model: &str) -> gst::Element {
    init();
    let element = gst::ElementFactory::make("scribetranscriber")
        .property("model", format!("fake:{model}"))
        .property("vad-model", "fake:")
        .build()
        .unwrap();
    element.set_context(&registry_context(registry));
    element
}

/// A transcriber on fakes with a registry of its own.
pub fn transcriber(model: &str) -> gst::Element {
    transcriber_with(&registry(), model)
}

/// What came out.
#[derive(Clone, Debug)]
pub enum Out {
    Buffer(gst::Buffer),
    Event(gst::Event),
}

/// Everything that passes a pad, in order.
#[derive(Clone, Default)]
pub struct Recorder(Arc<(Mutex<Vec<Out>>, Condvar)>);

impl Recorder {
    /// Records what comes to `pad`; a flush clears it.
    pub fn on(pad: &gst::Pad) -> Self {
        let recorder = Self::default();
        let own = recorder.clone();
        let mask = gst::PadProbeType::BUFFER
            | gst::PadProbeType::EVENT_DOWNSTREAM
            | gst::PadProbeType::EVENT_FLUSH;
        pad.add_probe(mask, move |_, info| {
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => own.add(Out::Buffer(buffer.clone())),
                Some(gst::PadProbeData::Event(event)) => {
                    if event.type_() == gst::EventType::FlushStop {
                        own.0.0.lock().unwrap().clear();
                    }
                    own.add(Out::Event(event.clone()));
                }
                _ => {}
            }
            gst::PadProbeReturn::Ok
        });
        recorder
    }

    fn add(&self, out: Out) {
        self.0.0.lock().unwrap().push(out);
        self.0.1.notify_all();
    }

    pub fn all(&self) -> Vec<Out> {
        self.0.0.lock().unwrap().clone()
    }

    pub fn clear(&self) {
        self.0.0.lock().unwrap().clear();
    }

    /// Waits until `until` holds for what has come.
    pub fn wait(&self, until: impl Fn(&[Out]) -> bool) -> Vec<Out> {
        let deadline = Instant::now() + GUARD;
        let mut all = self.0.0.lock().unwrap();
        while !until(&all) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it never came; there is {all:#?}");
            all = self.0.1.wait_timeout(all, left).unwrap().0;
        }
        all.clone()
    }

    pub fn wait_eos(&self) -> Vec<Out> {
        self.wait(|all| has(all, gst::EventType::Eos))
    }
}

pub fn has(all: &[Out], kind: gst::EventType) -> bool {
    all.iter()
        .any(|out| matches!(out, Out::Event(e) if e.type_() == kind))
}

pub fn events(all: &[Out], kind: gst::EventType) -> Vec<gst::Event> {
    all.iter()
        .filter_map(|out| match out {
            Out::Event(e) if e.type_() == kind => Some(e.clone()),
            _ => None,
        })
        .collect()
}

pub fn buffers(all: &[Out]) -> Vec<gst::Buffer> {
    all.iter()
        .filter_map(|out| match out {
            Out::Buffer(b) => Some(b.clone()),
            Out::Event(_) => None,
        })
        .collect()
}

pub fn text_of(buffer: &gst::Buffer) -> String {
    String::from_utf8(buffer.map_readable().unwrap().to_vec()).unwrap()
}

pub fn texts(all: &[Out]) -> Vec<String> {
    buffers(all).iter().map(text_of).collect()
}

/// All words with their stream times in milliseconds, from the metas.
pub fn words(all: &[Out]) -> Vec<(String, u64, u64)> {
    buffers(all)
        .iter()
        .flat_map(|b| gstscribe::meta::read(b).unwrap().cue.words)
        .map(|w| (w.text.trim().to_owned(), w.start.0 / MS, w.end.0 / MS))
        .collect()
}

/// Names of the custom events among `all`, buffers as their text: the order of things.
pub fn order(all: &[Out]) -> Vec<String> {
    all.iter()
        .map(|out| match out {
            Out::Buffer(b) => text_of(b),
            Out::Event(e) => match e.structure() {
                Some(s) if e.type_() == gst::EventType::CustomDownstream => s.name().to_string(),
                _ => e.type_().name().to_string(),
            },
        })
        .collect()
}

/// Buffers and GAPs lie end to end from `from`: no hole, no overlap, nothing backwards. Where they end.
pub fn assert_continuous(all: &[Out], from: gst::ClockTime) -> gst::ClockTime {
    let mut position = from;
    for out in all {
        let (start, duration) = match out {
            Out::Buffer(b) => (b.pts().unwrap(), b.duration().unwrap()),
            Out::Event(e) => match e.view() {
                gst::EventView::Gap(gap) => (gap.get().0, gap.get().1.unwrap()),
                _ => continue,
            },
        };
        assert_eq!(start, position, "a hole or a step back in {all:#?}");
        assert!(!duration.is_zero(), "{out:?}");
        position = start + duration;
    }
    position
}

/// One transcriber between two pads of ours: each buffer and event is what the test says.
pub struct Rig {
    pub element: gst::Element,
    pub out: Recorder,
    pub bus: gst::Bus,
    pub src: gst::Pad,
    pub sink: gst::Pad,
    pub flow: Arc<Mutex<Result<gst::FlowSuccess, gst::FlowError>>>,
    /// Caps that downstream takes; `None` for all.
    pub takes: Arc<Mutex<Option<gst::Caps>>>,
}

impl Rig {
    /// Around a transcriber with the fake `model`, in PLAYING, not live.
    pub fn new(model: &str) -> Self {
        Self::of(transcriber(model), false)
    }

    pub fn of(element: gst::Element, live: bool) -> Self {
        Self::with_caps(element, live, None)
    }

    /// Downstream takes `caps` alone.
    pub fn with_caps(element: gst::Element, live: bool, caps: Option<&str>) -> Self {
        init();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let src = gst::Pad::builder(gst::PadDirection::Src)
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Latency(q) => {
                    q.set(live, ms(10), gst::ClockTime::NONE);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let flow = Arc::new(Mutex::new(Ok(gst::FlowSuccess::Ok)));
        let answer = Arc::clone(&flow);
        let takes = Arc::new(Mutex::new(caps.map(|caps| caps.parse().unwrap())));
        let wanted = Arc::clone(&takes);
        let sink = gst::Pad::builder(gst::PadDirection::Sink)
            .chain_function(move |_, _, _| *answer.lock().unwrap())
            .event_function(|_, _, _| true)
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Caps(q) if wanted.lock().unwrap().is_some() => {
                    q.set_result(wanted.lock().unwrap().as_ref().unwrap());
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let out = Recorder::on(&sink);
        src.set_active(true).unwrap();
        sink.set_active(true).unwrap();
        src.link(&element.static_pad("sink").unwrap()).unwrap();
        element.static_pad("src").unwrap().link(&sink).unwrap();
        element.set_state(gst::State::Playing).unwrap();
        Self {
            element,
            out,
            bus,
            src,
            sink,
            flow,
            takes,
        }
    }

    /// STREAM_START, CAPS and a plain SEGMENT.
    pub fn begin(&self) -> &Self {
        self.begin_with(F32_16K, &gst::FormattedSegment::<gst::ClockTime>::new())
    }

    pub fn begin_with(&self, caps: &str, segment: &gst::FormattedSegment<gst::ClockTime>) -> &Self {
        self.event(gst::event::StreamStart::new("sound"));
        self.event(gst::event::Caps::new(&caps.parse().unwrap()));
        self.event(gst::event::Segment::new(segment));
        self
    }

    pub fn event(&self, event: gst::Event) -> bool {
        self.src.push_event(event)
    }

    pub fn push(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.src.push(buffer)
    }

    /// Pushes speech from `from_ms` to `to_ms`, a buffer every 100 ms.
    pub fn speech(&self, from_ms: u64, to_ms: u64) -> &Self {
        self.sound(from_ms, to_ms, 0.3)
    }

    pub fn silence(&self, from_ms: u64, to_ms: u64) -> &Self {
        self.sound(from_ms, to_ms, 0.0)
    }

    pub fn sound(&self, from_ms: u64, to_ms: u64, level: f32) -> &Self {
        let mut at = from_ms;
        while at < to_ms {
            let end = (at + 100).min(to_ms);
            self.push(sound(at, end - at, level)).unwrap();
            at = end;
        }
        self
    }

    /// EOS, and all that came out by then.
    pub fn finish(&self) -> Vec<Out> {
        assert!(self.event(gst::event::Eos::new()));
        self.out.wait_eos()
    }

    /// Messages that are there now.
    pub fn messages(&self) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop()).collect()
    }

    /// Waits for the next ERROR.
    pub fn error(&self) -> glib::Error {
        error_on(&self.bus)
    }

    /// To NULL, at once.
    pub fn stop(&self) {
        at_once("NULL", || self.element.set_state(gst::State::Null).unwrap());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.element.set_state(gst::State::Null);
        // Its messages hold the element, which holds the bus.
        self.element.set_bus(None);
        self.bus.set_flushing(true);
    }
}

pub fn error_on(bus: &gst::Bus) -> glib::Error {
    let message = bus
        .timed_pop_filtered(
            gst::ClockTime::try_from(GUARD).unwrap(),
            &[gst::MessageType::Error],
        )
        .expect("an ERROR on the bus");
    match message.view() {
        gst::MessageView::Error(error) => error.error(),
        _ => unreachable!("filtered"),
    }
}

/// Does `work`, which must be over in two seconds, whatever inference does.
pub fn at_once<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{what} took {took:?}");
    done
}

/// Waits until `holds`.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A tone that the fakes take for speech, or silence.
pub fn sound(at_ms: u64, length_ms: u64, level: f32) -> gst::Buffer {
    let samples: Vec<u8> = tone(16_000, length_ms, level)
        .flat_map(f32::to_le_bytes)
        .collect();
    buffer(samples, at_ms)
}

pub fn buffer(bytes: Vec<u8>, at_ms: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(bytes);
    buffer.get_mut().unwrap().set_pts(ms(at_ms));
    buffer
}

/// Samples of a tone of 220 Hz.
pub fn tone(rate: u64, length_ms: u64, level: f32) -> impl Iterator<Item = f32> {
    (0..rate * length_ms / 1000)
        .map(move |n| level * (n as f32 * 220.0 * std::f32::consts::TAU / rate as f32).sin())
}

/// Says `text` in each window, under a name that is the test's own.
pub fn says(name: &str, text: &str) -> FakeSpeech {
    FakeSpeech::saying(text).register(name)
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The encoder of tiny.en for ONNX Runtime with weights of that type, if it is here.
pub fn onnx_encoder(weights: &str) -> Option<PathBuf> {
    let name = format!("whisper-tiny.en-onnx-{weights}");
    let path = repository(&format!("models/{name}.encoder.onnx"));
    there(&path, &format!("scripts/models.sh {name}")).then_some(path)
}

/// What that model is, with the decoder beside it.
pub fn onnx_spec(encoder: &Path) -> OnnxWhisperSpec {
    OnnxWhisperSpec {
        encoder: encoder.to_owned(),
        decoder: OnnxWhisperSpec::decoder_beside(encoder).unwrap(),
        name: "tiny.en".into(),
        cuda_device: None,
        word_time_offset: 0,
    }
}

/// Whether a test can run that needs `path`: under `SCRIBE_TEST_COMPLETE=1` it must be there, else the test
/// says why it does nothing.
pub fn there(path: &Path, remedy: &str) -> bool {
    if path.exists() {
        return true;
    }
    let complete = std::env::var("SCRIBE_TEST_COMPLETE").is_ok_and(|v| v == "1");
    assert!(!complete, "{} is missing: {remedy}", path.display());
    eprintln!("skipped: {} is missing: {remedy}", path.display());
    false
}

/// The same for a program that must answer `--version` or the like.
pub fn runs(program: &str, arguments: &[&str], remedy: &str) -> bool {
    let ok = Command::new(program)
        .args(arguments)
        .output()
        .is_ok_and(|out| out.status.success());
    if ok {
        return true;
    }
    let complete = std::env::var("SCRIBE_TEST_COMPLETE").is_ok_and(|v| v == "1");
    assert!(!complete, "{program} does not run: {remedy}");
    eprintln!("skipped: {program} does not run: {remedy}");
    false
}

/// The plugin as users have it.
pub fn plugin() -> PathBuf {
    repository("target/release/libgstscribe.so")
}

/// The element messages of that name that are there now.
pub fn structures(rig: &Rig, name: &str) -> Vec<gst::Structure> {
    let messages = rig.messages();
    messages
        .iter()
        .filter_map(|m| m.structure().filter(|s| s.name() == name))
        .map(|s| s.to_owned())
        .collect()
}

/// Plays `line` in `folder` with the plugin of target/release. `flag` is one of gst-launch-1.0's.
pub fn gst_launch(flag: &str, line: &str, folder: &Path) -> Output {
    let program = std::env::current_exe().unwrap();
    let name = program.file_stem().unwrap().to_str().unwrap();
    let name = name.rsplit_once('-').map_or(name, |(name, _hash)| name);
    Command::new("timeout")
        .args([
            "--preserve-status",
            "--signal=INT",
            "--kill-after=60",
            "120",
        ])
        .args(["gst-launch-1.0", flag])
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env(
            "GST_REGISTRY",
            repository(&format!("target/test-registry-{name}.bin")),
        )
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

/// Whether gst-launch-1.0, the plugin and the models of speakers are there.
pub fn can_tell_speakers() -> bool {
    there(&plugin(), "make build")
        && there(&repository("models/segmentation-3.0.onnx"), "make models")
        && there(&repository("models/ge2e-resemblyzer.onnx"), "make models")
        && runs("gst-launch-1.0", &["--version"], "make setup")
}
