// SPDX-License-Identifier: MPL-2.0
//! What GStreamer's `transcriberbin` does to a transcriber, step by step, around ours: written after what is known of it
//! (gst-plugin-closedcaption 0.14 and 0.15), so that each step can be had alone and at the worst moment. And the real one,
//! where it is built.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};

use gst::prelude::*;
use gstscribe::inference::Decoded;
use gstscribe::inference::Token;
use gstscribe::inference::fake::{self, FakeSpeech};

use super::{F32_16K, MS, Out, Recorder, init, ms, tone};

// Talk: words that are the same however the sound is cut into windows.

/// The words that there are: each is a tone of its own loudness.
pub const WORDS: [&str; 16] = [
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett",
    "kilo", "lima", "mike", "november", "oscar", "papa",
];
/// From a word to the next, and how long one lasts.
pub const WORD_EVERY_MS: u64 = 700;
pub const WORD_LASTS_MS: u64 = 400;

/// How loud a word is.
fn level(word: usize) -> f32 {
    0.05 * (word % WORDS.len() + 1) as f32
}

/// Hears in the sound which words it is, and when.
pub fn hears(name: &str) -> FakeSpeech {
    FakeSpeech::new(|window, _| {
        let mut decoded: Decoded = fake::spread("", window);
        decoded.tokens = fake::behind_prefix(heard(&window.samples), window);
        decoded.alignment_end = decoded.tokens.last().and_then(|t| t.end);
        Ok(decoded)
    })
    .register(name)
}

/// A token for each stretch of sound that is louder than silence, by its peak.
fn heard(samples: &[f32]) -> Vec<Token> {
    const BLOCK: usize = 160;
    let peaks: Vec<f32> = samples
        .chunks(BLOCK)
        .map(|block| block.iter().fold(0.0f32, |most, s| most.max(s.abs())))
        .collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < peaks.len() {
        let loud = |p: &&f32| **p > 0.02;
        let length = peaks[at..].iter().take_while(loud).count();
        if length == 0 {
            at += 1;
            continue;
        }
        let peak = peaks[at..at + length].iter().fold(0.0f32, |m, p| m.max(*p));
        let word = ((peak / 0.05).round() as usize).clamp(1, WORDS.len()) - 1;
        tokens.push(Token {
            id: 1000 + word as u32,
            bytes: format!(" {}", WORDS[word]).into_bytes(),
            probability: 0.9,
            start: Some((at * BLOCK) as u32),
            end: Some(((at + length) * BLOCK) as u32),
        });
        at += length;
    }
    tokens
}

/// Silence, with word `n` from `n * 700 ms` on for each `n` in `words`.
fn talk(words: std::ops::Range<usize>, from_ms: u64, to_ms: u64) -> Vec<f32> {
    let mut samples = vec![0.0f32; ((to_ms - from_ms) * 16) as usize];
    for word in words {
        let start = word as u64 * WORD_EVERY_MS;
        for (i, sample) in tone(16_000, WORD_LASTS_MS, level(word)).enumerate() {
            let at = start * 16 + i as u64;
            if (from_ms * 16..to_ms * 16).contains(&at) {
                samples[(at - from_ms * 16) as usize] = sample;
            }
        }
    }
    samples
}

/// Pushes sound from `from_ms` to `to_ms` with the words `words`, a buffer every 100 ms.
pub fn push_talk(
    source: &gst_app::AppSrc,
    words: std::ops::Range<usize>,
    from_ms: u64,
    to_ms: u64,
) {
    let mut at = from_ms;
    while at < to_ms {
        let end = (at + 100).min(to_ms);
        let samples = talk(words.clone(), at, end);
        let bytes = samples.into_iter().flat_map(f32::to_le_bytes).collect();
        let mut buffer = super::buffer(bytes, at);
        buffer.get_mut().unwrap().set_duration(ms(end - at));
        source.push_buffer(buffer).unwrap();
        at = end;
    }
}

/// The words that lie in `out`, with start and end in milliseconds of their PTS.
pub fn spoken(out: &[Out]) -> Vec<(String, u64, u64)> {
    super::buffers(out)
        .iter()
        .map(|b| {
            let start = b.pts().unwrap();
            (
                super::text_of(b),
                start.nseconds() / MS,
                (start + b.duration().unwrap()).nseconds() / MS,
            )
        })
        .collect()
}

/// `got` are the words `wanted`, each where it was said.
pub fn assert_spoken(got: &[(String, u64, u64)], wanted: std::ops::Range<usize>) {
    let names: Vec<&str> = got.iter().map(|w| w.0.as_str()).collect();
    let expected: Vec<&str> = wanted.clone().map(|w| WORDS[w % WORDS.len()]).collect();
    assert_eq!(names, expected, "{got:?}");
    for (word, n) in got.iter().zip(wanted) {
        let start = n as u64 * WORD_EVERY_MS;
        assert!(
            word.1.abs_diff(start) <= 150 && word.2.abs_diff(start + WORD_LASTS_MS) <= 250,
            "said at {start} ms: {word:?}"
        );
    }
}

// Its steps.

/// As it writes its own properties into a transcriber: by name and exact type, the first that is there.
pub fn configure(
    transcriber: &gst::Element,
    latency_ms: u32,
    lateness_ms: u32,
) -> Vec<&'static str> {
    let mut set = Vec::new();
    let mut write = |name: &'static str, value: u32| {
        let there = transcriber.has_property_with_type(name, u32::static_type());
        if there {
            transcriber.set_property(name, value);
            set.push(name);
        }
        there
    };
    if !write("transcribe-latency", latency_ms) {
        write("latency", latency_ms);
    }
    write("translate-latency", 500);
    write("lateness", lateness_ms);
    set
}

/// What a transcriber answers to the probe: live, and its least latency.
pub type Probed = Option<(bool, gst::ClockTime)>;

/// As it asks a transcriber that has no parent, no bus and no caps for its latency.
pub fn probe(transcriber: &gst::Element) -> Probed {
    assert!(transcriber.parent().is_none());
    let source = gst::ElementFactory::make("fakesrc")
        .property("is-live", true)
        .build()
        .unwrap();
    let pad = transcriber.src_pads().first().unwrap().clone();
    source.link(transcriber).unwrap();
    let _ = transcriber.set_state(gst::State::Paused);
    let mut query = gst::query::Latency::new();
    let answered = pad.query(&mut query);
    source.unlink(transcriber);
    let _ = transcriber.set_state(gst::State::Null);
    answered.then(|| (query.result().0, query.result().1))
}

/// Its audio side: `appsrc ! tee`, one branch passes the sound on, the other is a bin with
/// `queue leaky ! audioresample ! audioconvert ! transcriber`. No clock is waited for: a test says what comes when.
pub struct TranscriberBin {
    pub pipeline: gst::Pipeline,
    pub transcriber: gst::Element,
    /// What leaves the transcriber.
    pub out: Recorder,
    /// The sound that is passed on.
    pub passed_on: Recorder,
    source: gst_app::AppSrc,
    inner: Arc<Inner>,
    hangs: AtomicBool,
    /// Upstream says that it is live.
    live: bool,
}

struct Inner {
    tee: gst::Element,
    /// The queue, converters and transcriber, in a bin of their own.
    branch: gst::Bin,
    /// In the bin, before the queue.
    entry: gst::Pad,
    transcriber: gst::Element,
    /// The tee's pad while the branch is linked.
    exit: Mutex<Option<gst::Pad>>,
    /// Errors of the transcriber, that nobody outside hears of.
    caught: Mutex<Vec<gst::Message>>,
    /// An error has been heard of, and the branch is about to go.
    going: AtomicBool,
}

impl TranscriberBin {
    /// Around `transcriber`, playing. `live`: as upstream answers.
    pub fn around(transcriber: gst::Element, live: bool) -> Self {
        init();
        let pipeline = gst::Pipeline::new();
        let source = gst_app::AppSrc::builder()
            .caps(&F32_16K.parse().unwrap())
            .format(gst::Format::Time)
            .is_live(live)
            .build();
        let make = gst::ElementFactory::make;
        let tee = make("tee")
            .property("allow-not-linked", true)
            .build()
            .unwrap();
        let onward = make("queue").build().unwrap();
        let player = make("fakesink")
            .property("sync", false)
            .property("async", false)
            .build()
            .unwrap();
        pipeline
            .add_many([source.upcast_ref(), &tee, &onward, &player])
            .unwrap();
        gst::Element::link_many([source.upcast_ref(), &tee, &onward, &player]).unwrap();

        let branch = gst::Bin::with_name("transcription-bin");
        let queue = make("queue")
            .name("transqueue")
            .property_from_str("leaky", "downstream")
            .property("max-size-time", 5_000_000_000u64)
            .property("max-size-buffers", 0u32)
            .property("max-size-bytes", 0u32)
            .build()
            .unwrap();
        let ignore = make("errorignore")
            .property("ignore-notnegotiated", false)
            .build()
            .unwrap();
        let resample = make("audioresample").build().unwrap();
        let convert = make("audioconvert").build().unwrap();
        let text = make("fakesink")
            .property("sync", false)
            .property("async", false)
            .build()
            .unwrap();
        let chain = [&queue, &ignore, &resample, &convert, &transcriber, &text];
        branch.add_many(chain).unwrap();
        gst::Element::link_many(chain).unwrap();
        let entry = gst::GhostPad::with_target(&queue.static_pad("sink").unwrap()).unwrap();
        entry.set_active(true).unwrap();
        branch.add_pad(&entry).unwrap();
        pipeline.add(&branch).unwrap();

        let inner = Arc::new(Inner {
            tee,
            branch,
            entry: entry.upcast(),
            transcriber: transcriber.clone(),
            exit: Mutex::default(),
            caught: Mutex::default(),
            going: AtomicBool::new(false),
        });
        inner.link();
        catch_errors(&pipeline, &inner);
        let out = Recorder::on(&text.static_pad("sink").unwrap());
        let passed_on = Recorder::on(&player.static_pad("sink").unwrap());
        pipeline.set_state(gst::State::Playing).unwrap();
        Self {
            pipeline,
            transcriber,
            out,
            passed_on,
            source,
            inner,
            hangs: AtomicBool::new(false),
            live,
        }
    }

    /// Sound from `from_ms` to `to_ms` with the words `words`, a buffer every 100 ms. It waits for the queue before the
    /// transcriber, which leaks what comes too fast, unless the transcriber hangs.
    pub fn say(&self, words: std::ops::Range<usize>, from_ms: u64, to_ms: u64) {
        let mut at = from_ms;
        while at < to_ms {
            let step = if self.live { 100 } else { 1000 };
            let end = (at + step).min(to_ms);
            push_talk(&self.source, words.clone(), at, end);
            at = end;
            if !self.hangs.load(Ordering::SeqCst) {
                self.passed_to(end);
                self.emptied();
                self.answered();
            }
        }
    }

    /// Live sound comes no faster than it is worked on.
    fn answered(&self) {
        if self.live && self.transcriber.current_state() == gst::State::Playing {
            super::eventually("the models answer", || {
                let stats = self.transcriber.property::<gst::Structure>("stats");
                // Nothing is in work while the models load, either.
                let loaded = !stats.get::<&str>("engine").unwrap().is_empty();
                let taken = stats.get::<f64>("buffered-seconds").unwrap() == 0.0;
                let answered = stats.get::<u64>("in-work").unwrap() == 0;
                (loaded && taken && answered) || self.passes_through()
            });
        }
    }

    /// The queue before the transcriber has nothing left.
    fn emptied(&self) {
        let queue = self.inner.branch.by_name("transqueue").unwrap();
        super::eventually("the queue is empty", || {
            queue.property::<u32>("current-level-buffers") == 0
        });
    }

    /// The sound up to here has gone through the tee.
    pub fn passed_to(&self, to_ms: u64) {
        self.passed_on.wait(|all| {
            super::buffers(all)
                .iter()
                .any(|b| b.pts().unwrap() + b.duration().unwrap() >= ms(to_ms))
        });
    }

    /// The end of the sound, as far as it is passed on.
    pub fn source_ends(&self) {
        self.source.end_of_stream().unwrap();
        self.passed_on.wait_eos();
    }

    /// The same, and all that left the transcriber by then.
    pub fn finish(&self) -> Vec<Out> {
        self.source_ends();
        self.out.wait_eos()
    }

    /// As a pad `unsynced_…` is shown: by ghost pads, with what is sticky on it; and here with a pad that
    /// listens, which a link does not keep alive.
    pub fn show_unsynced(&self) -> (gst::Pad, gst::Pad, Recorder) {
        let name = format!(
            "unsynced_{}",
            self.transcriber.static_pad("src").unwrap().name()
        );
        let inside = self.transcriber.static_pad(&name).unwrap();
        let ghost = |target: &gst::Pad| {
            gst::GhostPad::builder_with_target(target)
                .unwrap()
                .name(name.as_str())
                .build()
        };
        let inner = ghost(&inside);
        self.inner.branch.add_pad(&inner).unwrap();
        let outside = ghost(inner.upcast_ref());
        outside.set_active(true).unwrap();
        inside.sticky_events_foreach(|event| {
            let told = [gst::EventType::StreamStart, gst::EventType::Tag];
            if told.contains(&event.type_()) {
                let _ = outside.store_sticky_event(event);
            }
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        self.pipeline.add_pad(&outside).unwrap();
        let listener = gst::Pad::builder(gst::PadDirection::Sink)
            .chain_function(|_, _, _| Ok(gst::FlowSuccess::Ok))
            .event_function(|_, _, _| true)
            .build();
        let heard = Recorder::on(&listener);
        listener.set_active(true).unwrap();
        outside.link(&listener).unwrap();
        (outside.upcast(), listener, heard)
    }

    /// As a change of its `language-code` goes: out of a pad probe, in whatever thread has the pad.
    pub fn set_language(&self, code: &str) {
        let inner = Arc::clone(&self.inner);
        let code = code.to_owned();
        when_idle(&self.inner.entry, move || {
            inner.unlink();
            inner.branch.set_locked_state(true);
            inner.branch.set_state(gst::State::Null).unwrap();
            // It does not ask whether there is one: without, this panics.
            inner.transcriber.set_property("language-code", &code);
            inner.branch.set_locked_state(false);
            inner.branch.sync_state_with_parent().unwrap();
            inner.link();
        });
    }

    /// As its pad's `passthrough` goes.
    pub fn set_passthrough(&self, on: bool) {
        if on {
            let inner = Arc::clone(&self.inner);
            when_idle(&self.inner.sound(), move || inner.disable());
        } else {
            self.inner.branch.set_locked_state(false);
            self.inner.branch.sync_state_with_parent().unwrap();
            self.inner.link();
        }
    }

    /// Does `work` while nothing comes to the transcriber: the queue before it fills, and leaks its oldest.
    pub fn while_it_hangs(&self, work: impl FnOnce()) {
        let queue = self.inner.branch.by_name("transqueue").unwrap();
        self.emptied();
        let pad = queue.static_pad("src").unwrap();
        let block = gst::PadProbeType::BLOCK_DOWNSTREAM;
        let held = pad
            .add_probe(block, |_, _| gst::PadProbeReturn::Ok)
            .unwrap();
        self.hangs.store(true, Ordering::SeqCst);
        work();
        self.hangs.store(false, Ordering::SeqCst);
        pad.remove_probe(held);
    }

    /// Errors of the transcriber that went no further.
    pub fn caught(&self) -> Vec<gst::Message> {
        self.inner.caught.lock().unwrap().clone()
    }

    /// Whether the transcriber is out of the way.
    pub fn passes_through(&self) -> bool {
        self.inner.exit.lock().unwrap().is_none()
    }

    /// The messages on the pipeline's bus now.
    pub fn messages(&self) -> Vec<gst::Message> {
        let bus = self.pipeline.bus().unwrap();
        std::iter::from_fn(|| bus.pop()).collect()
    }
}

impl Inner {
    fn link(&self) {
        let exit = self.tee.request_pad_simple("src_%u").unwrap();
        exit.link(&self.entry).unwrap();
        *self.exit.lock().unwrap() = Some(exit);
    }

    fn unlink(&self) {
        if let Some(exit) = self.exit.lock().unwrap().take() {
            exit.unlink(&self.entry).unwrap();
            self.tee.release_request_pad(&exit);
        }
    }

    fn disable(&self) {
        self.unlink();
        self.branch.set_locked_state(true);
        self.branch.set_state(gst::State::Null).unwrap();
    }

    /// Where the sound comes in, transcriber or not.
    fn sound(&self) -> gst::Pad {
        self.tee.static_pad("sink").unwrap()
    }
}

/// Does `work` once, from a probe on `pad` that fires when nothing passes or when something is about to.
fn when_idle(pad: &gst::Pad, work: impl FnOnce() + Send + 'static) {
    let work = Mutex::new(Some(work));
    let mask =
        gst::PadProbeType::IDLE | gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad.add_probe(mask, move |_, _| {
        if let Some(work) = work.lock().unwrap().take() {
            work();
        }
        gst::PadProbeReturn::Remove
    });
}

/// Errors of the transcriber stay inside, and the sound goes on without it.
fn catch_errors(pipeline: &gst::Pipeline, inner: &Arc<Inner>) {
    let inner = Arc::downgrade(inner);
    let handler = move |_: &gst::Bus, message: &gst::Message| {
        let Some(inner) = inner.upgrade() else {
            return gst::BusSyncReply::Pass;
        };
        let ours = message
            .src()
            .is_some_and(|src| *src == inner.transcriber || src.has_ancestor(&inner.transcriber));
        if message.type_() != gst::MessageType::Error || !ours {
            return gst::BusSyncReply::Pass;
        }
        inner.caught.lock().unwrap().push(message.clone());
        if !inner.going.swap(true, Ordering::SeqCst) {
            let own = Arc::clone(&inner);
            // Not from the thread that posts: it is the transcriber's own.
            inner.tee.call_async(move |_| {
                let inner = Arc::clone(&own);
                when_idle(&own.sound(), move || {
                    inner.disable();
                    inner.going.store(false, Ordering::SeqCst);
                });
            });
        }
        gst::BusSyncReply::Drop
    };
    pipeline.bus().unwrap().set_sync_handler(handler);
}

impl Drop for TranscriberBin {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
        self.inner.branch.set_locked_state(false);
        let _ = self.inner.branch.set_state(gst::State::Null);
        self.pipeline.bus().unwrap().unset_sync_handler();
    }
}

// The real one.

/// Where it is, with what it uses, if it is built: `SCRIBE_CAPTION_PLUGINS`, else where set-up puts it.
fn folder() -> PathBuf {
    std::env::var_os("SCRIBE_CAPTION_PLUGINS").map_or_else(
        || super::repository("target/tools/gstreamer"),
        PathBuf::from,
    )
}

/// `transcriberbin` itself, if it can be had. It wants a transcriber called `awstranscriber` when it is made, or is of no
/// use ever after: ours has that name too, for this process.
pub fn real() -> Option<gst::Element> {
    init();
    let plugin = folder().join("libgstrsclosedcaption.so");
    if !super::there(&plugin, "make setup-test") {
        return None;
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::Registry::get().scan_path(folder());
        let ours = gst::ElementFactory::make("scribetranscriber")
            .build()
            .unwrap();
        gst::Element::register(None, "awstranscriber", gst::Rank::NONE, ours.type_()).unwrap();
    });
    // GStreamer 1.22 has no cea608mux, the other way's muxer.
    let made = gst::ElementFactory::make("transcriberbin")
        .property_from_str("mux-method", "cea708")
        .build();
    Some(made.unwrap())
}
