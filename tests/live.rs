// SPDX-License-Identifier: MPL-2.0
//! `scribetranscriber` live, on a fake engine that hears a tone's level as a word: what comes when, whatever happens to
//! the sound.
//!
//! Sound is pushed faster than real time and waits for the models after each tenth of a second, so that nothing here
//! depends on how fast the machine is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use gst::prelude::*;
use gstscribe::context::registry_context;
use gstscribe::inference::EngineError;
use gstscribe::inference::fake::FakeSpeech;

const WORD_MS: u64 = 300;
const PAUSE_MS: u64 = 120;

/// A live stream on its way.
struct Stream {
    rig: Rig,
    at: Cell<u64>,
    pushed_ms: Cell<u64>,
    /// Every so many buffers one is lost.
    loses: Cell<u64>,
    lost: Cell<bool>,
    waits: Cell<bool>,
}

fn hearing(name: &str) -> gst::Element {
    FakeSpeech::hearing().register(name);
    let element = transcriber(name);
    element.set_property_from_str("unit", "word");
    element
}

impl Stream {
    fn of(element: gst::Element) -> Self {
        let rig = Rig::of(element, true);
        rig.begin();
        Self {
            rig,
            at: Cell::new(0),
            pushed_ms: Cell::new(0),
            loses: Cell::new(0),
            lost: Cell::new(false),
            waits: Cell::new(true),
        }
    }

    fn new(name: &str) -> Self {
        Self::of(hearing(name))
    }

    fn push(&self, ms: u64, level: f32) {
        let end = self.at.get() + ms;
        while self.at.get() < end {
            let at = self.at.get();
            let length = (end - at).min(20);
            let n = at / 20;
            let lost = self.loses.get() > 0 && n % self.loses.get() == self.loses.get() - 1;
            if !lost {
                let mut buffer = sound(at, length, level);
                if self.lost.replace(false) {
                    let flags = gst::BufferFlags::DISCONT;
                    buffer.get_mut().unwrap().set_flags(flags);
                }
                self.rig.push(buffer).unwrap();
                self.pushed_ms.set(self.pushed_ms.get() + length);
            }
            self.lost.set(self.lost.get() || lost);
            self.at.set(at + length);
            if n % 5 == 4 {
                self.settle();
            }
        }
    }

    /// Until all that was pushed was worked on.
    fn settle(&self) {
        if !self.waits.get() {
            return;
        }
        let wanted = self.pushed_ms.get() as f64 / 1000.0 - 0.001;
        eventually("the models answer", || {
            let stats = self.rig.element.property::<gst::Structure>("stats");
            stats.get::<f64>("audio-seconds").unwrap() >= wanted
                && stats.get::<u64>("in-work").unwrap() == 0
        });
    }

    fn word(&self, number: u64) -> &Self {
        self.push(WORD_MS, number as f32 / 100.0);
        self.quiet(PAUSE_MS)
    }

    fn words(&self, numbers: impl IntoIterator<Item = u64>) -> &Self {
        for number in numbers {
            self.word(number);
        }
        self
    }

    fn quiet(&self, ms: u64) -> &Self {
        self.push(ms, 0.0);
        self
    }

    /// Words that came out so far.
    fn heard(&self) -> Vec<String> {
        texts(&self.rig.out.all())
    }

    fn messages(&self, name: &str) -> Vec<gst::Structure> {
        structures(&self.rig, name)
    }
}

fn names(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("w{n}")).collect()
}

#[test]
fn words_come_while_somebody_speaks_at_their_times() {
    let stream = Stream::new("live_words");

    stream.quiet(1000).words(2..22);
    let soon = stream.heard();
    stream.quiet(2000);
    let before_the_end = stream.heard();
    let out = stream.rig.finish();

    // The last two seconds have yet to be heard twice.
    assert!(soon.len() >= 13, "{soon:?}");
    assert_eq!(before_the_end, names(2..22));
    assert_eq!(texts(&out), names(2..22));
    let end = assert_continuous(&out, ms(0));
    assert!(end >= ms(1000 + 20 * (WORD_MS + PAUSE_MS) + 1900), "{end}");
    for (n, (_, start, end)) in words(&out).into_iter().enumerate() {
        let wanted = 1000 + n as u64 * (WORD_MS + PAUSE_MS);
        assert!(start.abs_diff(wanted) < 100, "{n}: {start} for {wanted}");
        assert!(end.abs_diff(wanted + WORD_MS) < 100, "{n}: {end}");
    }
    assert!(stream.rig.element.property::<u32>("max-observed-delay") < 4000);
}

#[test]
fn gaps_follow_silence_closely() {
    let stream = Stream::new("live_silence");

    stream.quiet(5000);

    let all = stream.rig.out.all();
    let end = assert_continuous(&all, ms(0));
    assert!(end > ms(4500) && end <= ms(5000), "{end}");
    assert!(buffers(&all).is_empty());
}

#[test]
fn time_goes_on_while_a_model_does_not_answer() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let hears = FakeSpeech::hearing().answer;
    FakeSpeech::new(move |window, params| {
        while !gate.load(Ordering::SeqCst) && !window.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(5));
        }
        hears(window, params)
    })
    .register("live_gate");
    let element = transcriber("live_gate");
    element.set_property("latency", 2000u32);
    let stream = Stream::of(element);
    stream.waits.set(false);

    stream.quiet(1000).words(2..20);
    let due = stream.at.get() - 2000;
    let all = stream
        .rig
        .out
        .wait(|all| assert_continuous(all, ms(0)) >= ms(due - 100));
    open.store(true, Ordering::SeqCst);
    let out = stream.rig.finish();

    assert!(buffers(&all).is_empty(), "nothing is known yet");
    assert_continuous(&out, ms(0));
    // Too late for their places, and not lost.
    assert_eq!(words(&out).len(), 18);
}

#[test]
fn time_goes_on_and_nothing_is_lost_while_models_load() {
    let mut slow = FakeSpeech::hearing();
    slow.load_delay = Duration::from_millis(1500);
    slow.register("live_load");
    let element = transcriber("live_load");
    element.set_property_from_str("unit", "word");
    element.set_property("latency", 1000u32);
    let stream = Stream::of(element);
    stream.waits.set(false);

    stream.quiet(500).words(2..10);
    let due = stream.at.get() - 1000;
    let early = stream
        .rig
        .out
        .wait(|all| assert_continuous(all, ms(0)) >= ms(due - 100));
    stream.quiet(1000);
    let out = stream.rig.finish();

    assert!(buffers(&early).is_empty());
    assert_eq!(texts(&out), names(2..10));
    assert_continuous(&out, ms(0));
}

#[test]
fn a_file_that_comes_faster_than_models_load_is_heard_from_its_beginning() {
    let mut slow = FakeSpeech::hearing();
    slow.load_delay = Duration::from_millis(1500);
    slow.register("live_load_file");
    let element = transcriber("live_load_file");
    element.set_property_from_str("unit", "word");
    element.set_property_from_str("mode", "live");
    let rig = Rig::of(element, false);
    rig.begin();
    let mut at = 0;
    for number in 2..100 {
        for (length, level) in [(WORD_MS, number as f32 / 100.0), (PAUSE_MS, 0.0)] {
            rig.push(sound(at, length, level)).unwrap();
            at += length;
        }
    }

    let out = rig.finish();

    assert_eq!(texts(&out), names(2..100));
}

#[test]
fn what_may_still_change_is_told_and_taken_back() {
    let stream = Stream::new("live_partial");

    stream.quiet(500).words(2..12).quiet(2000);
    stream.rig.finish();

    let told = stream.messages("scribe/transcript");
    let is_final = |s: &&gst::Structure| s.get::<bool>("final").unwrap();
    let partial: Vec<_> = told.iter().filter(|s| !is_final(s)).collect();
    let revisions: Vec<u32> = partial.iter().map(|s| s.get("revision").unwrap()).collect();
    assert!(revisions.len() > 3, "{revisions:?}");
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    let text = |s: &gst::Structure| s.get::<String>("text").unwrap();
    assert_eq!(text(partial[partial.len() - 1]), "");
    assert!(partial.iter().any(|s| text(s).split(' ').count() > 1));
    // Put together, finals are what was said; a partial text follows on what is final by then.
    let mut said = Vec::new();
    for s in &told {
        let words: Vec<String> = text(s).split_whitespace().map(str::to_owned).collect();
        if is_final(&s) {
            said.extend(words);
        } else if let Some(first) = words.first() {
            assert_eq!(*first, format!("w{}", 2 + said.len()), "{told:?}");
        }
    }
    assert_eq!(said, names(2..12));
}

#[test]
fn an_utterance_ends_once() {
    let stream = Stream::new("live_final");

    stream
        .quiet(500)
        .words(2..10)
        .quiet(2000)
        .words(10..14)
        .quiet(2000);
    let out = stream.rig.finish();

    let order = order(&out);
    let ends: Vec<usize> = order
        .iter()
        .enumerate()
        .filter(|(_, name)| *name == "rstranscribe/final-transcript")
        .map(|(n, _)| n)
        .collect();
    assert_eq!(ends.len(), 2, "{order:?}");
    let segment = |b: &gst::Buffer| gstscribe::meta::read(b).unwrap().cue.segment.id;
    let segments: Vec<u64> = buffers(&out).iter().map(segment).collect();
    assert_eq!(segments, [[0; 8].as_slice(), &[1; 4]].concat());
    let before = |at: usize| order[..at].iter().rfind(|n| n.starts_with('w')).cloned();
    assert_eq!(before(ends[0]), Some("w9".into()));
    assert_eq!(before(ends[1]), Some("w13".into()));
}

#[test]
fn everything_is_on_the_pad_unsynced_src_when_it_is_known() {
    let element = hearing("live_unsynced");
    let pad = element.static_pad("unsynced_src").unwrap();
    let sink = gst::Pad::builder(gst::PadDirection::Sink)
        .chain_function(|_, _, _| Ok(gst::FlowSuccess::Ok))
        .event_function(|_, _, _| true)
        .build();
    let out = Recorder::on(&sink);
    sink.set_active(true).unwrap();
    pad.link(&sink).unwrap();
    assert_eq!(element.src_pads()[0].name(), "src");
    let stream = Stream::of(element);

    stream.quiet(500).words(2..12).quiet(2000);
    stream.rig.finish();

    let all = out.wait_eos();
    assert_eq!(
        order(&all)[..3],
        ["stream-start", "caps", "segment"].map(str::to_owned)
    );
    let objects: Vec<serde_json::Value> = buffers(&all)
        .iter()
        .map(|b| serde_json::from_str(&text_of(b)).unwrap())
        .collect();
    let finals = objects.iter().filter(|o| o["type"] == "final");
    let said: Vec<String> = finals
        .flat_map(|o| o["words"].as_array().unwrap().clone())
        .map(|w| w["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(said, names(2..12));
    assert!(objects.iter().any(|o| o["type"] == "partial"
        && o["revision"].is_u64()
        && o["start"].as_f64() >= Some(0.4)));
}

#[test]
fn lost_buffers_lose_no_words_and_double_none() {
    let stream = Stream::new("live_lossy");
    // Each fifth, as a queue that is too full does it.
    stream.loses.set(5);

    stream.quiet(1000).words(2..32).quiet(2000);
    let out = stream.rig.finish();

    assert_eq!(texts(&out), names(2..32));
    assert_continuous(&out, ms(0));
    for (n, (_, start, _)) in words(&out).into_iter().enumerate() {
        let wanted = 1000 + n as u64 * (WORD_MS + PAUSE_MS);
        assert!(start.abs_diff(wanted) < 150, "{n}: {start} for {wanted}");
    }
}

#[test]
fn a_hole_of_half_a_minute_costs_what_was_in_it_alone() {
    let stream = Stream::new("live_hole");

    stream.quiet(500).words(2..12);
    stream.at.set(stream.at.get() + 30_000);
    stream.words(12..20).quiet(2000);
    let out = stream.rig.finish();

    assert_eq!(texts(&out), names(2..20));
    assert_continuous(&out, ms(0));
    let words = words(&out);
    assert!(words[9].2 < 4700 && words[10].1 > 34_500, "{words:?}");
}

#[test]
fn a_source_that_falls_silent_without_sound_has_its_last_words_said() {
    let stream = Stream::new("live_stall");

    stream.quiet(500).words(2..8);
    // No sound, no EOS.
    let all = stream.rig.out.wait(|all| buffers(all).len() == 6);
    stream.words(8..12).quiet(2000);

    assert_eq!(texts(&all), names(2..8));
    assert_eq!(texts(&stream.rig.finish()), names(2..12));
}

#[test]
fn a_pause_in_mid_word_loses_doubles_and_cuts_nothing() {
    let stream = Stream::new("live_pause");
    stream.quiet(500).words(2..8);
    stream.push(WORD_MS / 2, 0.08);

    stream.rig.element.set_state(gst::State::Paused).unwrap();
    // Longer than a source that has fallen silent is waited for.
    std::thread::sleep(Duration::from_millis(1500));
    let meanwhile = stream.heard();
    stream.rig.element.set_state(gst::State::Playing).unwrap();
    stream.push(WORD_MS / 2, 0.08);
    stream.quiet(PAUSE_MS).words(9..14).quiet(2000);
    let out = stream.rig.finish();

    assert!(meanwhile.len() < 7, "{meanwhile:?}");
    assert_eq!(texts(&out), names(2..14));
    assert_continuous(&out, ms(0));
}

#[test]
fn a_flush_forgets_and_what_follows_is_right() {
    let stream = Stream::new("live_flush");

    stream.quiet(500).words(2..12);
    stream.rig.event(gst::event::FlushStart::new());
    stream.rig.event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    stream.rig.event(gst::event::Segment::new(&segment));
    stream.pushed_ms.set(0);
    stream.at.set(0);
    stream.quiet(700).words(20..30).quiet(2000);
    let out = stream.rig.finish();

    assert_eq!(texts(&out), names(20..30));
    assert_continuous(&out, ms(0));
    assert!(buffers(&out)[0].flags().contains(gst::BufferFlags::DISCONT));
}

#[test]
fn another_form_of_sound_in_mid_word_doubles_and_loses_nothing() {
    let stream = Stream::new("live_caps");

    stream.quiet(500).words(2..8);
    let caps =
        "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved,channel-mask=(bitmask)3";
    stream
        .rig
        .event(gst::event::Caps::new(&caps.parse().unwrap()));
    for n in 8..14u64 {
        for level in [n as f32 / 100.0, 0.0] {
            let length = if level > 0.0 { WORD_MS } else { PAUSE_MS };
            let both: Vec<u8> = tone(16_000, length, level)
                .flat_map(|s| [s, s])
                .flat_map(f32::to_le_bytes)
                .collect();
            stream.rig.push(buffer(both, stream.at.get())).unwrap();
            stream.at.set(stream.at.get() + length);
        }
    }
    let out = stream.rig.finish();

    assert_eq!(texts(&out), names(2..14));
    assert_continuous(&out, ms(0));
}

#[test]
fn clocks_that_jump_neither_stop_nor_repeat_it() {
    let stream = Stream::new("live_jump");

    stream.quiet(500).words(2..10).quiet(1500);
    // An hour ahead, and back again.
    stream.at.set(stream.at.get() + 3_600_000);
    stream.words(10..18).quiet(1500);
    stream.at.set(stream.at.get() - 3_000_000);
    stream.waits.set(false);
    stream.words(18..26).quiet(3000);
    let out = stream.rig.finish();

    let texts = texts(&out);
    assert_eq!(texts[..16], names(2..18));
    assert_continuous(&out, ms(0));
    let mut once = texts.clone();
    once.dedup();
    assert_eq!(texts, once);
}

#[test]
fn channels_of_their_own_are_heard_side_by_side() {
    let element = hearing("live_channels");
    element.set_property_from_str("channels", "separate");
    let rig = Rig::of(element, true);
    let caps =
        "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved,channel-mask=(bitmask)3";
    rig.begin_with(caps, &gst::FormattedSegment::new());

    let mut at = 0;
    for n in 0..12u64 {
        for (left, right, length) in [(20 + n, 0, 300), (0, 0, 120), (0, 60 + n, 300), (0, 0, 120)]
        {
            let left = tone(16_000, length, left as f32 / 100.0);
            let right = tone(16_000, length, right as f32 / 100.0);
            let both: Vec<u8> = left
                .zip(right)
                .flat_map(|(l, r)| [l, r])
                .flat_map(f32::to_le_bytes)
                .collect();
            rig.push(buffer(both, at)).unwrap();
            at += length;
        }
    }
    let out = rig.finish();

    let texts = texts(&out);
    let of = |from: u64| -> Vec<String> {
        let own = names(from..from + 12);
        texts.iter().filter(|t| own.contains(t)).cloned().collect()
    };
    assert_eq!(of(20), names(20..32));
    assert_eq!(of(60), names(60..72));
    assert_continuous(&out, ms(0));
}

#[test]
fn in_markup_each_speaker_has_a_colour() {
    FakeSpeech::hearing().register("live_colours");
    let element = transcriber("live_colours");
    element.set_property_from_str("channels", "separate");
    let rig = Rig::with_caps(element, true, Some("text/x-raw,format=pango-markup"));
    let caps =
        "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved,channel-mask=(bitmask)3";
    rig.begin_with(caps, &gst::FormattedSegment::new());

    for (at, left) in [(0, true), (2000, false), (4000, true)] {
        let word = tone(16_000, 500, 0.3).chain(tone(16_000, 1500, 0.0));
        let both: Vec<u8> = word
            .flat_map(|s| if left { [s, 0.0] } else { [0.0, s] })
            .flat_map(f32::to_le_bytes)
            .collect();
        rig.push(buffer(both, at)).unwrap();
    }

    let colour = |c: &str| format!("<span foreground=\"{c}\">w30</span>");
    let wanted = ["#ffffff", "#ffff00", "#ffffff"].map(colour);
    assert_eq!(texts(&rig.finish()), wanted);
}

#[test]
fn who_speaks_is_told_as_far_as_it_is_known_and_nobody_waits() {
    let stream = Stream::new("live_speakers");
    stream
        .rig
        .event(gstscribe::messages::diarization("online", ms(500)));

    stream.quiet(500).words(2..10);
    let early = stream.heard();
    stream.quiet(2000);
    let out = stream.rig.finish();

    assert!(early.len() >= 4, "{early:?}");
    assert_eq!(texts(&out), names(2..10));
}

#[test]
fn a_decoding_that_fails_is_passed_over_and_one_after_the_other_is_an_error() {
    let hears = FakeSpeech::hearing().answer;
    let fails = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&fails);
    let count = std::sync::atomic::AtomicUsize::new(0);
    FakeSpeech::new(move |window, params| {
        let third = count.fetch_add(1, Ordering::SeqCst) % 3 == 1;
        if own.load(Ordering::SeqCst) || third {
            return Err(EngineError::Failed {
                what: "decoding".into(),
                why: "a test says so".into(),
            });
        }
        hears(window, params)
    })
    .register("live_fails");
    let element = transcriber("live_fails");
    element.set_property_from_str("unit", "word");
    let stream = Stream::of(element);

    stream.quiet(500).words(2..20).quiet(2000);
    let heard = stream.heard();
    let told = stream.messages("scribe/degraded");
    fails.store(true, Ordering::SeqCst);
    stream.waits.set(false);
    for number in 20..40 {
        if stream
            .rig
            .push(sound(stream.at.get(), 300, number as f32 / 100.0))
            .is_err()
        {
            break;
        }
        stream.at.set(stream.at.get() + 300);
        std::thread::sleep(Duration::from_millis(20));
    }

    assert!(heard.len() >= 16, "{heard:?}");
    assert!(told.iter().any(|s| {
        s.get::<String>("reason")
            .unwrap()
            .contains("a test says so")
    }));
    let error = stream.rig.error();
    assert!(error.message().contains("a test says so"), "{error}");
}

/// Sound at ten times its speed, with a model that takes `takes` of real time.
fn overloaded(name: &str, takes: Duration, settings: &[(&str, u32)]) -> (Stream, Vec<Out>) {
    let mut slow = FakeSpeech::hearing();
    slow.delay = takes;
    slow.register(name);
    let element = transcriber(name);
    element.set_property_from_str("unit", "word");
    for (name, value) in settings {
        element.set_property(name, value);
    }
    let stream = Stream::of(element);
    stream.waits.set(false);
    stream.quiet(500);
    for n in 0..150u64 {
        stream.word(2 + n % 90);
        std::thread::sleep(Duration::from_millis(42));
    }
    stream.quiet(1000);
    let out = stream.rig.finish();
    (stream, out)
}

#[test]
fn too_slow_a_machine_tells_what_it_gives_up_and_keeps_the_bound() {
    // A decoding takes twelve seconds of sound.
    let (stream, out) = overloaded(
        "live_slow",
        Duration::from_millis(1200),
        &[("max-delay", 8000)],
    );

    let most = stream.rig.element.property::<u32>("max-observed-delay");
    assert!(most <= 8000, "{most} ms");
    assert_continuous(&out, ms(0));
    let messages = stream.rig.messages();
    let told = |name: &str| {
        messages
            .iter()
            .filter(|m| m.structure().is_some_and(|s| s.name() == name))
            .count()
    };
    assert!(told("scribe/degraded") > 0);
    assert!(messages.iter().any(|m| m.type_() == gst::MessageType::Qos));
}

#[test]
fn a_slow_machine_decodes_less_often_and_loses_nothing() {
    // A decoding takes a second and a half of sound, for a step of 0.8 s.
    let (stream, out) = overloaded("live_slower", Duration::from_millis(150), &[]);

    let heard = texts(&out);
    assert_eq!(heard.len(), 150, "{heard:?}");
    let told = stream.messages("scribe/degraded");
    assert!(!told.is_empty());
    assert!(
        told.iter()
            .all(|s| s.get::<String>("what").unwrap() == "live captions")
    );
    assert!(stream.rig.element.property::<u32>("max-observed-delay") <= 10_000);
}

#[test]
fn a_model_that_is_too_slow_gives_way_to_a_smaller_one_and_comes_back() {
    let busy = Arc::new(AtomicBool::new(true));
    let own = Arc::clone(&busy);
    let mut large = FakeSpeech::hearing();
    large.delays = Some(Arc::new(move |_| {
        Duration::from_millis(if own.load(Ordering::SeqCst) { 800 } else { 1 })
    }));
    large.register("live_large");
    FakeSpeech::hearing().register("live_small");
    let element = transcriber("live_large");
    element.set_property("fallback", "fake:live_small");
    element.set_property_from_str("unit", "word");
    let stream = Stream::of(element);
    stream.waits.set(false);
    let engine = || {
        let stats = stream.rig.element.property::<gst::Structure>("stats");
        stats.get::<String>("engine").unwrap()
    };

    stream.quiet(500);
    let mut n = 0u64;
    while !engine().contains("live_small") {
        assert!(n < 2000, "{}", engine());
        stream.word(2 + n % 90);
        n += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    busy.store(false, Ordering::SeqCst);
    stream.waits.set(true);
    while !engine().contains("live_large") {
        assert!(n < 6000, "{}", engine());
        stream.word(2 + n % 90);
        n += 1;
    }

    let told = stream.messages("scribe/degraded");
    let models: Vec<_> = told
        .iter()
        .filter(|s| s.get::<String>("what").unwrap() == "speech model")
        .map(|s| s.get::<String>("to").unwrap())
        .collect();
    assert_eq!(models.len(), 2, "{told:?}");
    assert!(models[0].contains("live_small") && models[1].contains("live_large"));
}

#[test]
fn a_smaller_model_that_cannot_be_had_is_asked_for_once() {
    let mut slow = FakeSpeech::hearing();
    slow.delay = Duration::from_millis(800);
    slow.register("live_stuck");
    let mut never = FakeSpeech::hearing();
    never.load_error = Some(EngineError::Failed {
        what: "loading".into(),
        why: "a test says so".into(),
    });
    let loads = Arc::clone(&never.loads);
    never.register("live_never");
    let element = transcriber("live_stuck");
    element.set_property("fallback", "fake:live_never");
    let stream = Stream::of(element);
    stream.waits.set(false);

    stream.quiet(500);
    let mut n = 0u64;
    let mut behind = 0;
    while behind < 300 {
        assert!(n < 4000, "it was never too slow");
        behind += u64::from(loads.load(Ordering::SeqCst) > 0);
        stream.word(2 + n % 90);
        n += 1;
        std::thread::sleep(Duration::from_millis(10));
    }

    let told = stream.messages("scribe/degraded");
    let reason = |s: &&gst::Structure| s.get::<String>("reason").unwrap();
    let missing = told.iter().filter(|s| reason(s).contains("a test says so"));
    assert_eq!(missing.count(), 1, "{told:?}");
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_file_that_is_played_is_heard_without_a_dead_lock() {
    // The sound goes to a sink with a clock, the text over a picture that waits for it: nothing prerolls before all do.
    FakeSpeech::hearing().register("live_played");
    init();
    let pipeline = gst::parse::launch(
        "audiotestsrc num-buffers=200 samplesperbuffer=320 volume=0.3 ! audio/x-raw,rate=16000,channels=1 ! tee name=t \
         t. ! queue ! fakesink sync=true name=speaker \
         t. ! queue ! scribetranscriber mode=live name=words model=fake:live_played vad-model=fake: ! queue ! over.text_sink \
         videotestsrc num-buffers=100 ! video/x-raw,width=64,height=64,framerate=25/1 ! queue ! textoverlay name=over wait-text=true \
         ! fakesink sync=true",
    )
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    pipeline.set_context(&registry_context(&registry()));
    pipeline.set_state(gst::State::Paused).unwrap();

    let (outcome, state, _) = pipeline.state(gst::ClockTime::from_seconds(60));
    assert!(outcome.is_ok());
    assert_eq!(state, gst::State::Paused);

    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = bus.timed_pop_filtered(gst::ClockTime::from_seconds(60), &kinds);
    assert_eq!(end.map(|m| m.type_()), Some(gst::MessageType::Eos));
    pipeline.set_state(gst::State::Null).unwrap();
}
