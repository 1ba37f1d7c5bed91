// SPDX-License-Identifier: MPL-2.0
//! The contract of GStreamer's transcribers, as `transcriberbin` holds one to it: what it does to `scribetranscriber`, each
//! step by itself around fakes (`common/transcriberbin.rs`), and the whole of it in the real `transcriberbin`, where that
//! is built. `make contract-124` runs the latter in the newest one, on GStreamer 1.24.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/transcriberbin.rs"]
mod transcriberbin;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use gst::prelude::*;
use gstscribe::inference::fake::FakeSpeech;
use gstscribe::inference::{EngineError, Language};
use gstscribe::registry::Registry;
use transcriberbin::*;

/// Two lanes, and models that stay.
fn lasting() -> Registry {
    Registry::new(2, Duration::from_secs(3600))
}

/// A transcriber that gives words, as transcribers of that kind do.
fn words_of(registry: &Registry, model: &str) -> gst::Element {
    let element = transcriber_with(registry, model);
    element.set_property_from_str("unit", "word");
    element
}

fn time_segment(event: &gst::Event) -> gst::FormattedSegment<gst::ClockTime> {
    match event.view() {
        gst::EventView::Segment(e) => e.segment().clone().downcast().unwrap(),
        _ => unreachable!("a SEGMENT"),
    }
}

/// The segments of text that came out, each with the words under it: one a run of the element.
fn runs(out: &[Out]) -> Vec<Vec<Out>> {
    let mut runs: Vec<Vec<Out>> = Vec::new();
    for item in out {
        let starts = matches!(item, Out::Event(e) if e.type_() == gst::EventType::StreamStart);
        if starts || runs.is_empty() {
            runs.push(Vec::new());
        }
        runs.last_mut().unwrap().push(item.clone());
    }
    runs
}

// Properties and the probe.

#[test]
fn latency_and_lateness_are_taken_by_name_and_type() {
    let element = transcriber("unused");

    let set = configure(&element, 2500, 700);

    assert_eq!(set, ["latency", "lateness"]);
    assert_eq!(element.property::<u32>("latency"), 2500);
    assert_eq!(element.property::<u32>("lateness"), 700);
}

#[test]
fn the_probe_is_answered_at_once_and_costs_no_load_that_is_not_used() {
    let mut slow = hears("probed");
    slow.load_delay = Duration::from_millis(300);
    let slow = slow.register("probed");
    let registry = lasting();
    let element = words_of(&registry, "probed");
    configure(&element, 2500, 0);

    for _ in 0..5 {
        let answer = at_once("the probe", || probe(&element));

        assert_eq!(answer, Some((true, ms(2500))));
        assert_eq!(element.current_state(), gst::State::Null);
    }

    let bin = TranscriberBin::around(element, false);
    bin.say(0..3, 0, 3000);
    assert_spoken(&spoken(&bin.finish()), 0..3);
    assert_eq!(slow.loads.load(Ordering::SeqCst), 1);
}

/// A bin whose probe fails is of no use ever after: what is missing is said when the stream comes.
#[test]
fn the_probe_is_answered_without_a_model() {
    for model in [
        "fake:nobody-made-it",
        "/nowhere/ggml-none.bin",
        "no-such-name",
    ] {
        let element = transcriber("unused");
        element.set_property("model", model);
        configure(&element, 4000, 0);

        let answer = at_once("the probe", || probe(&element));

        assert_eq!(answer, Some((true, ms(4000))), "{model}");
    }
}

/// What the probe's own source has answered must not be kept.
#[test]
fn latency_is_that_of_the_present_upstream_and_our_own() {
    hears("upstream");
    let element = words_of(&lasting(), "upstream");
    configure(&element, 3000, 0);
    assert_eq!(probe(&element), Some((true, ms(3000))));

    for live in [true, false] {
        let rig = Rig::of(element.clone(), live);
        let mut query = gst::query::Latency::new();
        assert!(element.static_pad("src").unwrap().query(&mut query));

        // The rig's source has 10 ms.
        let wanted = if live { 3010 } else { 10 };
        assert_eq!(query.result(), (live, ms(wanted), None));
        rig.src
            .unlink(&element.static_pad("sink").unwrap())
            .unwrap();
        element
            .static_pad("src")
            .unwrap()
            .unlink(&rig.sink)
            .unwrap();
    }
}

// What leaves.

#[test]
fn the_source_pad_has_fixed_caps_of_plain_text() {
    hears("caps");
    let bin = TranscriberBin::around(words_of(&lasting(), "caps"), false);
    let pad = bin.transcriber.static_pad("src").unwrap();

    bin.say(0..1, 0, 1000);
    bin.finish();

    assert!(pad.pad_flags().contains(gst::PadFlags::FIXED_CAPS));
    let caps = pad.current_caps().unwrap();
    assert_eq!(caps.to_string(), "text/x-raw, format=(string)utf8");
}

/// `textwrap`, `tttocea608` and their like refuse text without a duration, and a NUL ends it in a muxer.
#[test]
fn words_come_as_consumers_of_captions_need_them() {
    hears("needs");
    let bin = TranscriberBin::around(words_of(&lasting(), "needs"), false);

    bin.say(2..9, 0, 8000);
    let out = bin.finish();

    assert_spoken(&spoken(&out), 2..9);
    for (n, buffer) in buffers(&out).iter().enumerate() {
        assert!(buffer.pts().is_some() && buffer.duration().is_some_and(|d| !d.is_zero()));
        let text = text_of(buffer);
        assert_eq!(text.trim(), text);
        assert!(!text.is_empty() && !text.contains('\0'));
        let discont = buffer.flags().contains(gst::BufferFlags::DISCONT);
        assert_eq!(discont, n == 0, "{n}: {buffer:?}");
    }
    assert_eq!(assert_continuous(&without_marks(&out), ms(0)), ms(8000));
}

/// Without GAPs of no length, which say only that text comes late.
fn without_marks(out: &[Out]) -> Vec<Out> {
    let mark = |out: &&Out| match out {
        Out::Event(e) => matches!(e.view(), gst::EventView::Gap(g) if g.get().1.is_none()),
        Out::Buffer(_) => false,
    };
    out.iter().filter(|o| !mark(o)).cloned().collect()
}

#[test]
fn lateness_goes_into_the_base_of_the_segment_and_into_nothing_else() {
    hears("late");
    let mut found = Vec::new();
    for lateness in [0, 1500] {
        let element = words_of(&lasting(), "late");
        configure(&element, 4000, lateness);
        let rig = Rig::of(element, false);
        let mut segment = gst::FormattedSegment::new();
        segment.set_base(ms(20_000));
        segment.set_start(ms(5000));
        segment.set_time(ms(5000));
        rig.begin_with(F32_16K, &segment);
        rig.silence(5000, 6000)
            .speech(6000, 6400)
            .silence(6400, 7000);
        let out = rig.finish();

        let forward = time_segment(&events(&out, gst::EventType::Segment)[0]);
        assert_eq!(forward.base(), Some(ms(20_000 + u64::from(lateness))));
        let pts = buffers(&out)[0].pts().unwrap();
        let running = forward.to_running_time(pts).unwrap();
        found.push((spoken(&out), running));
    }
    assert_eq!(found[0].0, found[1].0);
    assert_eq!(found[1].1 - found[0].1, ms(1500));
}

#[test]
fn each_text_stream_has_an_id_of_its_own_and_is_sparse() {
    hears("ids");
    let registry = lasting();
    let ids: Vec<String> = (0..2)
        .map(|_| {
            let bin = TranscriberBin::around(words_of(&registry, "ids"), false);
            bin.say(0..1, 0, 1000);
            let out = bin.finish();
            let sound = events(&bin.passed_on.all(), gst::EventType::StreamStart);
            let text = events(&out, gst::EventType::StreamStart);
            assert_eq!(text.len(), 1);
            let id = |event: &gst::Event| match event.view() {
                gst::EventView::StreamStart(e) => (e.stream_id().to_owned(), e.stream_flags()),
                _ => unreachable!(),
            };
            let (text, flags) = id(&text[0]);
            assert!(flags.contains(gst::StreamFlags::SPARSE));
            assert_ne!(text, id(&sound[0]).0);
            text
        })
        .collect();

    assert_ne!(ids[0], ids[1]);
}

// Changes while sound flows.

fn a_change_of_language_from_a_pad_probe_reloads_nothing(name: &str, live: bool) {
    let languages = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&languages);
    let listener = hears(name);
    let answer = Arc::clone(&listener.answer);
    let mut model = FakeSpeech::new(move |window, params| {
        asked.lock().unwrap().push(window.language.clone());
        answer(window, params)
    });
    model.multilingual = true;
    let model = model.register(name);
    let element = words_of(&lasting(), name);
    element.set_property("language-code", "en-US");
    let bin = TranscriberBin::around(element, live);

    for (n, code) in ["fr", "de-DE", "en-US"].into_iter().enumerate() {
        let at = n as u64 * 2800;
        bin.say(4 * n..4 * n + 3, at, at + 2800);
        at_once("a change of language", || bin.set_language(code));
        let set: String = bin.transcriber.property("language-code");
        // At once where the pad is idle, else with the next buffer.
        assert!(set == code || !bin.passes_through());
    }
    bin.say(12..15, 8400, 11_200);
    let out = bin.finish();

    assert_eq!(model.loads.load(Ordering::SeqCst), 1);
    assert_eq!(bin.transcriber.property::<String>("language-code"), "en-US");
    let last = runs(&out).pop().unwrap();
    assert_spoken(&spoken(&last), 12..15);
    assert!(
        buffers(&last)[0]
            .flags()
            .contains(gst::BufferFlags::DISCONT)
    );
    let languages = languages.lock().unwrap();
    assert_eq!(languages.last(), Some(&Language::Fixed("en".into())));
    assert_eq!(bin.caught().len(), 0);
    // The sound itself goes on: all of it, and to its end.
    let passed: Vec<_> = buffers(&bin.passed_on.all());
    assert_eq!(passed.len(), 112);
}

#[test]
fn a_change_of_language_from_a_pad_probe_reloads_nothing_in_a_file() {
    a_change_of_language_from_a_pad_probe_reloads_nothing("cycle_file", false);
}

#[test]
fn a_change_of_language_from_a_pad_probe_reloads_nothing_live() {
    a_change_of_language_from_a_pad_probe_reloads_nothing("cycle_live", true);
}

/// In mid-inference, by an engine that heeds nothing: NULL returns all the same.
#[test]
fn a_change_of_language_does_not_wait_for_the_engine() {
    let mut stubborn = hears("cycle_stubborn");
    stubborn.delay = Duration::from_secs(8);
    stubborn.heeds_cancel = false;
    let stubborn = stubborn.register("cycle_stubborn");
    let element = words_of(&registry(), "cycle_stubborn");
    let bin = TranscriberBin::around(element, false);
    // More than a window: the engine is at work.
    bin.say(0..16, 0, 40_000);
    bin.passed_to(40_000);
    eventually("the model is loaded", || {
        stubborn.loads.load(Ordering::SeqCst) == 1
    });

    at_once("a change of language", || {
        bin.set_language("en");
        eventually("it is set", || {
            bin.transcriber.property::<String>("language-code") == "en"
        });
    });
}

fn what_a_leaky_queue_drops_leaves_the_times_right(name: &str, live: bool) {
    hears(name);
    let bin = TranscriberBin::around(words_of(&lasting(), name), live);

    bin.say(0..3, 0, 3500);
    bin.passed_to(3500);
    // 12 s of sound, of which the queue keeps the last five: words 6 to 11 were said in the first five.
    bin.while_it_hangs(|| {
        bin.say(6..12, 3500, 15_500);
        bin.passed_to(15_500);
    });
    bin.say(23..26, 15_500, 19_000);
    let out = bin.finish();

    let got = spoken(&out);
    let kept = |from: u64, to: u64| -> Vec<_> {
        let inside = |w: &&(String, u64, u64)| (from..to).contains(&w.1);
        got.iter().filter(inside).cloned().collect()
    };
    assert_spoken(&kept(0, 3300), 0..3);
    assert_spoken(&kept(15_500, 20_000), 23..26);
    assert_eq!(got.len(), 6, "{got:?}");
    assert_eq!(assert_continuous(&without_marks(&out), ms(0)), ms(19_000));
    assert_eq!(bin.caught().len(), 0);
}

#[test]
fn what_a_leaky_queue_drops_leaves_the_times_right_in_a_file() {
    what_a_leaky_queue_drops_leaves_the_times_right("leaky_file", false);
}

#[test]
fn what_a_leaky_queue_drops_leaves_the_times_right_live() {
    what_a_leaky_queue_drops_leaves_the_times_right("leaky_live", true);
}

/// Five seconds forward, with DISCONT and without: the words behind are where they were said.
#[test]
fn a_jump_of_five_seconds_leaves_the_times_right() {
    for (name, discont) in [("jump_flag", true), ("jump_plain", false)] {
        says(name, "one two");
        let rig = Rig::of(words_of(&lasting(), name), false);
        rig.begin()
            .silence(0, 1000)
            .speech(1000, 2000)
            .silence(2000, 3000);
        let mut after = sound(8000, 100, 0.0);
        if discont {
            let flags = gst::BufferFlags::DISCONT;
            after.get_mut().unwrap().set_flags(flags);
        }
        rig.push(after).unwrap();
        rig.silence(8100, 9000)
            .speech(9000, 10_000)
            .silence(10_000, 11_000);
        let out = rig.finish();

        let got = spoken(&out);
        // However many windows it takes them for: none of them where nothing was said.
        let said = |w: &(String, u64, u64)| {
            let within = |from: u64, to: u64| w.1 + 150 >= from && w.2 <= to + 150;
            within(1000, 2000) || within(9000, 10_000)
        };
        assert!(got.len() >= 2 && got.iter().all(said), "{name}: {got:?}");
        assert!(got.iter().any(|w| w.1 >= 8850), "{name}: {got:?}");
        assert_eq!(assert_continuous(&without_marks(&out), ms(0)), ms(11_000));
    }
}

// Errors and passthrough.

/// An engine that fails on the word `golf`.
fn fails_on_golf(name: &str) -> FakeSpeech {
    let answer = hears(name).answer;
    FakeSpeech::new(move |window, params| {
        let decoded = answer(window, params)?;
        if decoded.tokens.iter().any(|t| t.bytes == b" golf") {
            return Err(EngineError::Failed {
                what: "decoding".into(),
                why: "as the test wants".into(),
            });
        }
        Ok(decoded)
    })
    .register(name)
}

fn an_error_is_the_transcribers_own_and_the_sound_goes_on(name: &str, live: bool) {
    fails_on_golf(name);
    let bin = TranscriberBin::around(words_of(&lasting(), name), live);

    // A file is not looked at before a window is full; and live sound must not come faster than it is taken.
    let length = if live { 10_000 } else { 40_000 };
    bin.say(5..8, 0, length);
    eventually("it is out of the way", || bin.passes_through());
    bin.say(0..0, length, length + 2000);
    bin.source_ends();

    let caught = bin.caught();
    assert_eq!(caught.len(), 1, "{caught:?}");
    let gst::MessageView::Error(error) = caught[0].view() else {
        unreachable!()
    };
    assert!(error.error().message().contains("as the test wants"));
    assert_eq!(bin.transcriber.current_state(), gst::State::Null);
    // Nobody else has an error: no source that was refused, no queue.
    let others = bin.messages();
    let errors: Vec<_> = others
        .iter()
        .filter(|m| m.type_() == gst::MessageType::Error)
        .collect();
    assert_eq!(errors.len(), 0, "{errors:?}");
    let passed = buffers(&bin.passed_on.all()).len() as u64;
    assert_eq!(passed, (length + 2000) / 100);
}

#[test]
fn an_error_is_the_transcribers_own_and_the_sound_goes_on_in_a_file() {
    an_error_is_the_transcribers_own_and_the_sound_goes_on("error_file", false);
}

#[test]
fn an_error_is_the_transcribers_own_and_the_sound_goes_on_live() {
    an_error_is_the_transcribers_own_and_the_sound_goes_on("error_live", true);
}

#[test]
fn after_an_error_passthrough_can_be_switched_off_again() {
    let model = fails_on_golf("error_again");
    let bin = TranscriberBin::around(words_of(&lasting(), "error_again"), false);
    bin.say(5..8, 0, 40_000);
    bin.passed_to(40_000);
    eventually("it is out of the way", || bin.passes_through());

    bin.set_passthrough(false);
    // Words of another hundred: 60 to 62, which are 12 to 14 of the names.
    bin.say(60..63, 40_000, 45_000);
    let out = bin.finish();

    let last = runs(&out).pop().unwrap();
    assert_spoken(&spoken(&last), 60..63);
    assert_eq!(bin.caught().len(), 1);
    assert_eq!(model.loads.load(Ordering::SeqCst), 1);
}

fn passthrough_goes_on_and_off_without_a_load(name: &str, live: bool) {
    let model = hears(name);
    let bin = TranscriberBin::around(words_of(&lasting(), name), live);

    for round in 0..3 {
        let at = round as u64 * 5600;
        bin.say(8 * round..8 * round + 3, at, at + 2800);
        bin.passed_to(at + 2800);
        bin.set_passthrough(true);
        eventually("it is out of the way", || bin.passes_through());
        assert_eq!(bin.transcriber.current_state(), gst::State::Null);
        // Nobody hears these.
        bin.say(8 * round + 4..8 * round + 7, at + 2800, at + 5600);
        bin.passed_to(at + 5600);
        bin.set_passthrough(false);
    }
    bin.say(24..27, 16_800, 19_600);
    let out = bin.finish();

    assert_eq!(model.loads.load(Ordering::SeqCst), 1);
    let unheard = |w: &&(String, u64, u64)| w.1 % 5600 >= 2800 && w.1 < 16_800;
    let got = spoken(&out);
    assert_eq!(got.iter().filter(unheard).count(), 0, "{got:?}");
    let last = runs(&out).pop().unwrap();
    assert_spoken(&spoken(&last), 24..27);
    assert!(
        buffers(&last)[0]
            .flags()
            .contains(gst::BufferFlags::DISCONT)
    );
}

#[test]
fn passthrough_goes_on_and_off_without_a_load_in_a_file() {
    passthrough_goes_on_and_off_without_a_load("passthrough_file", false);
}

#[test]
fn passthrough_goes_on_and_off_without_a_load_live() {
    passthrough_goes_on_and_off_without_a_load("passthrough_live", true);
}

// Live.

/// Text leaves while the sound goes on, without an end: where nobody speaks a GAP tells so.
#[test]
fn live_words_and_gaps_do_not_wait_for_the_end() {
    hears("live_flow");
    let element = words_of(&lasting(), "live_flow");
    configure(&element, 2000, 0);
    let bin = TranscriberBin::around(element, true);

    bin.say(1..4, 0, 10_000);

    let reaches = |all: &[Out], to: u64| {
        let all = without_marks(all);
        let told = |o: &Out| {
            matches!(o, Out::Buffer(_))
                || matches!(o, Out::Event(e) if e.type_() == gst::EventType::Gap)
        };
        all.iter().any(told) && assert_continuous(&all, ms(0)) >= ms(to)
    };
    // The sound is there up to 10 s: what is older than the latency is told of.
    let out = bin.out.wait(|all| reaches(all, 8000));
    assert_spoken(&spoken(&out), 1..4);
    let all = bin.finish();
    assert_eq!(assert_continuous(&without_marks(&all), ms(0)), ms(10_000));
}

/// The bin has asked once, when it got the transcriber.
#[test]
fn live_latency_is_the_probes_while_it_runs() {
    hears("live_latency");
    let element = words_of(&lasting(), "live_latency");
    configure(&element, 2000, 0);
    let probed = probe(&element);
    let bin = TranscriberBin::around(element, true);
    let source = bin.transcriber.static_pad("sink").unwrap();
    let own = || {
        let mut upstream = gst::query::Latency::new();
        assert!(source.peer_query(&mut upstream));
        let mut query = gst::query::Latency::new();
        let pad = bin.transcriber.static_pad("src").unwrap();
        assert!(pad.query(&mut query));
        (query.result().0, query.result().1 - upstream.result().1)
    };

    for second in 0..5 {
        bin.say(1..4, second * 1000, second * 1000 + 1000);
        bin.passed_to(second * 1000 + 1000);
        assert_eq!(Some(own()), probed);
    }
    bin.finish();
    let told = bin.messages();
    let latency = told.iter().filter(|m| {
        m.type_() == gst::MessageType::Latency && m.src() == Some(bin.transcriber.upcast_ref())
    });
    assert_eq!(latency.count(), 0);
}

/// It is looked up by the name of the source pad, and shown to the outside with what it has said of itself.
#[test]
fn the_unsynced_pad_is_found_by_its_name_and_shown_outside() {
    hears("unsynced");
    let element = words_of(&lasting(), "unsynced");
    configure(&element, 2000, 0);
    let name = format!("unsynced_{}", element.static_pad("src").unwrap().name());
    let pad = element.static_pad(&name).expect("a pad of that name");
    assert_eq!(pad.pad_template_caps().to_string(), "application/x-json");
    let bin = TranscriberBin::around(element, true);

    let (outside, _listener, heard) = bin.show_unsynced();
    bin.say(1..6, 0, 8000);
    bin.out.wait(|all| !buffers(all).is_empty());
    bin.finish();

    assert_eq!(outside.name(), "unsynced_src");
    let all = heard.all();
    let kinds: Vec<_> = [
        gst::EventType::StreamStart,
        gst::EventType::Caps,
        gst::EventType::Segment,
    ]
    .map(|kind| events(&all, kind).len())
    .to_vec();
    assert_eq!(kinds, [1, 1, 1], "{all:?}");
    let said = buffers(&all);
    assert!(!said.is_empty());
    for buffer in said {
        let json: serde_json::Value = serde_json::from_str(&text_of(&buffer)).unwrap();
        assert!(json.is_object(), "{json}");
        assert!(buffer.pts().is_some());
    }
}

/// Nobody has to link it.
#[test]
fn an_unsynced_pad_that_nobody_links_holds_up_nothing() {
    hears("unsynced_alone");
    let element = words_of(&lasting(), "unsynced_alone");
    assert!(element.static_pad("unsynced_src").is_some());
    let bin = TranscriberBin::around(element, true);

    bin.say(1..6, 0, 8000);

    assert_spoken(&spoken(&bin.finish()), 1..6);
}

// The real one.

/// `transcriberbin` with ours in it, sound that a test pushes and pictures in step with the clock.
struct Real {
    pipeline: gst::Pipeline,
    bin: gst::Element,
    pad: gst::Pad,
    transcriber: gst::Element,
    source: gst_app::AppSrc,
    out: Recorder,
    /// The captions of the pictures that came out, in pairs of bytes.
    captions: Recorder,
}

impl Real {
    /// `None` where it is not built, and then it says so. `live` is for the sound: the pictures are in any case, for what
    /// waits for captions would wait for the end of them otherwise.
    fn around(model: &str, live: bool, pictures_ms: u64) -> Option<Self> {
        let bin = real()?;
        let transcriber = words_of(&lasting(), model);
        let pad = bin.static_pad("sink_audio").unwrap();
        bin.set_property("latency", 5000u32);
        bin.set_property("lateness", 100u32);
        let pairs = "closedcaption/x-cea-608,format=raw".parse::<gst::Caps>();
        bin.set_property("cc-caps", pairs.unwrap());
        pad.set_property("transcriber", &transcriber);
        assert_eq!(transcriber.property::<u32>("latency"), 5000);
        assert_eq!(transcriber.property::<u32>("lateness"), 100);

        let pipeline = gst::Pipeline::new();
        let source = gst_app::AppSrc::builder()
            .caps(&F32_16K.parse().unwrap())
            .format(gst::Format::Time)
            .is_live(live)
            .build();
        let make = gst::ElementFactory::make;
        let camera = make("videotestsrc")
            .property("num-buffers", (pictures_ms * 30 / 1000) as i32)
            .property("is-live", true)
            .build()
            .unwrap();
        let filter = make("capsfilter")
            .property(
                "caps",
                "video/x-raw,width=64,height=48,framerate=30/1"
                    .parse::<gst::Caps>()
                    .unwrap(),
            )
            .build()
            .unwrap();
        let ends = "ccextractor name=x ! fakesink sync=true async=false name=pictures \
                    x.caption ! fakesink sync=false async=false name=captions";
        let ends = gst::parse::bin_from_description(ends, false).unwrap();
        let screen = ends.by_name("x").unwrap().static_pad("sink").unwrap();
        ends.add_pad(&gst::GhostPad::with_target(&screen).unwrap())
            .unwrap();
        let player = make("fakesink")
            .property("sync", true)
            .property("async", false)
            .build()
            .unwrap();
        pipeline
            .add_many([
                source.upcast_ref(),
                &camera,
                &filter,
                &bin,
                ends.upcast_ref(),
                &player,
            ])
            .unwrap();
        source
            .link_pads(Some("src"), &bin, Some("sink_audio"))
            .unwrap();
        camera.link(&filter).unwrap();
        filter
            .link_pads(Some("src"), &bin, Some("sink_video"))
            .unwrap();
        bin.link_pads(Some("src_audio"), &player, Some("sink"))
            .unwrap();
        bin.link_pads(Some("src_video"), &ends, Some("sink"))
            .unwrap();
        let out = Recorder::on(&transcriber.static_pad("src").unwrap());
        let captions = ends.by_name("captions").unwrap();
        let captions = Recorder::on(&captions.static_pad("sink").unwrap());
        // As every application must: without, what waits for captions does not know that it is live.
        let weak = pipeline.downgrade();
        pipeline.bus().unwrap().set_sync_handler(move |_, message| {
            if message.type_() == gst::MessageType::Latency
                && let Some(pipeline) = weak.upgrade()
            {
                pipeline.call_async(|pipeline| drop(pipeline.recalculate_latency()));
            }
            gst::BusSyncReply::Pass
        });
        // The pictures begin when it plays: where their caps come on its way there, some of it stays behind for ever.
        camera.set_locked_state(true);
        pipeline.set_state(gst::State::Playing).unwrap();
        eventually("it plays", || bin.current_state() == gst::State::Playing);
        camera.set_locked_state(false);
        camera.sync_state_with_parent().unwrap();
        Some(Self {
            pipeline,
            bin,
            pad,
            transcriber,
            source,
            out,
            captions,
        })
    }

    fn say(&self, words: std::ops::Range<usize>, from_ms: u64, to_ms: u64) {
        push_talk(&self.source, words, from_ms, to_ms);
    }

    /// Waits for the end of all of it; an ERROR is one of the test.
    fn finish(&self) {
        self.source.end_of_stream().unwrap();
        let bus = self.pipeline.bus().unwrap();
        let message = bus
            .timed_pop_filtered(
                gst::ClockTime::try_from(GUARD).unwrap(),
                &[gst::MessageType::Error, gst::MessageType::Eos],
            )
            .expect("an end");
        assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    }

    /// What stands in the captions of the pictures that came out (CEA-608, field 1), without control codes.
    fn captions(&self) -> String {
        let mut text = String::new();
        for pairs in buffers(&self.captions.all()) {
            for pair in pairs.map_readable().unwrap().chunks_exact(2) {
                match [pair[0] & 0x7f, pair[1] & 0x7f] {
                    // A new row.
                    [0x14, 0x2d] => text.push(' '),
                    [0..=0x1f, _] => {}
                    letters => text.extend(
                        letters
                            .iter()
                            .filter(|b| **b >= 0x20)
                            .map(|b| char::from(*b)),
                    ),
                }
            }
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
        self.pipeline.bus().unwrap().unset_sync_handler();
    }
}

#[test]
fn the_real_one_makes_captions_of_what_was_said() {
    hears("real_captions");
    let Some(real) = Real::around("real_captions", false, 6000) else {
        return;
    };

    real.say(0..3, 0, 2500);
    real.finish();

    assert_spoken(&spoken(&real.out.all()), 0..3);
    assert_eq!(real.captions(), "alpha bravo charlie");
    let mut query = gst::query::Latency::new();
    assert!(real.bin.static_pad("src_video").unwrap().query(&mut query));
    let (live, min, _) = query.result();
    assert!(live && min >= ms(5000), "{query:?}");
}

#[test]
fn the_real_one_changes_the_language_without_a_load() {
    let mut model = hears("real_language");
    model.multilingual = true;
    let model = model.register("real_language");
    let Some(real) = Real::around("real_language", false, 6000) else {
        return;
    };

    real.say(0..3, 0, 2800);
    real.out.wait(|all| has(all, gst::EventType::Segment));
    at_once("a change of language", || {
        real.pad.set_property("language-code", "fr")
    });
    eventually("the transcriber has it", || {
        real.transcriber.property::<String>("language-code") == "fr"
    });
    real.say(4..7, 2800, 5600);
    real.finish();

    assert_eq!(model.loads.load(Ordering::SeqCst), 1);
    let last = runs(&real.out.all()).pop().unwrap();
    // Of the words before, those that were not through yet are heard too.
    let heard = spoken(&last);
    assert!(heard.len() >= 3, "{heard:?}");
    assert_spoken(&heard[heard.len() - 3..], 4..7);
}

#[test]
fn the_real_one_goes_on_without_a_transcriber_that_fails() {
    fails_on_golf("real_error");
    let Some(real) = Real::around("real_error", false, 7000) else {
        return;
    };

    real.say(5..8, 0, 6000);
    real.finish();

    eventually("passthrough", || real.pad.property::<bool>("passthrough"));
    eventually("it is stopped", || {
        real.transcriber.current_state() == gst::State::Null
    });
    assert_eq!(real.captions(), "");
}

#[test]
fn the_real_one_switches_passthrough_without_a_load() {
    let model = hears("real_passthrough");
    let Some(real) = Real::around("real_passthrough", false, 8000) else {
        return;
    };

    real.say(0..2, 0, 2000);
    real.out.wait(|all| has(all, gst::EventType::Segment));
    real.pad.set_property("passthrough", true);
    eventually("it is stopped", || {
        real.transcriber.current_state() == gst::State::Null
    });
    real.pad.set_property("passthrough", false);
    real.say(4..7, 2000, 5600);
    real.finish();

    assert_eq!(model.loads.load(Ordering::SeqCst), 1);
    let heard = spoken(&runs(&real.out.all()).pop().unwrap());
    assert!(heard.len() >= 3, "{heard:?}");
    assert_spoken(&heard[heard.len() - 3..], 4..7);
}

#[test]
fn the_real_one_makes_captions_live() {
    hears("real_live");
    let Some(real) = Real::around("real_live", true, 12_000) else {
        return;
    };

    real.say(0..8, 0, 8000);
    real.finish();

    assert_spoken(&spoken(&real.out.all()), 0..8);
    assert_eq!(
        real.captions(),
        "alpha bravo charlie delta echo foxtrot golf hotel"
    );
}

#[test]
fn the_real_one_shows_the_unsynced_pad() {
    hears("real_unsynced");
    let Some(real) = Real::around("real_unsynced", true, 2000) else {
        return;
    };

    assert!(real.bin.static_pad("unsynced_src").is_some());
}
