// SPDX-License-Identifier: MPL-2.0
//! `scribediarizer` and what is behind it: sound passes, turns come, words get their speakers. Fakes where timing and
//! failures matter, real models where voices do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use gst::prelude::*;
use gstscribe::context::registry_context;
use gstscribe::inference::EngineError;
use gstscribe::inference::fake::{FakeBatches, FakeSpeech};
use gstscribe::messages;
use gstscribe::meta;

/// The fake embedding model takes the first sample for an angle: sound of one level is one voice.
const ANN: f32 = 0.3;
const BEN: f32 = 1.2;

/// A diarizer on fakes of this name.
fn diarizer(name: &str) -> gst::Element {
    init();
    let element = gst::ElementFactory::make("scribediarizer")
        .property("segmentation-model", format!("fake:{name}"))
        .property("embedding-model", format!("fake:{name}"))
        .build()
        .unwrap();
    element.set_context(&registry_context(&registry()));
    element
}

fn fakes(name: &str) -> gst::Element {
    FakeBatches::default().register(name);
    diarizer(name)
}

/// Pushes `level` from `from` to `to`, seconds, a buffer each half second.
fn level(rig: &Rig, from: u64, to: u64, level: f32) {
    for n in from * 2..to * 2 {
        rig.push(steady(n * 500, level)).unwrap();
    }
}

fn steady(at_ms: u64, level: f32) -> gst::Buffer {
    let samples: Vec<u8> = std::iter::repeat_n(level, 8_000)
        .flat_map(f32::to_le_bytes)
        .collect();
    buffer(samples, at_ms)
}

/// Ann, a pause longer than a window, Ben, a pause, Ann again.
fn conversation(rig: &Rig) {
    level(rig, 0, 15, ANN);
    level(rig, 15, 27, 0.0);
    level(rig, 27, 42, BEN);
    level(rig, 42, 54, 0.0);
    level(rig, 54, 69, ANN);
}

/// Names of events, `sound` for buffers: the order of things.
fn names(out: &[Out]) -> Vec<String> {
    let events = out.iter().map(|out| match out {
        Out::Event(event) => Out::Event(event.clone()),
        Out::Buffer(_) => Out::Buffer(gst::Buffer::from_slice("sound")),
    });
    order(&events.collect::<Vec<_>>())
}

fn told(out: &[Out]) -> Vec<messages::Turns> {
    events(out, gst::EventType::CustomDownstream)
        .iter()
        .filter_map(|e| messages::turns_of(e.structure()?))
        .collect()
}

/// Speaker and seconds, rounded, of the turns that were told.
fn turns(out: &[Out]) -> Vec<(String, u64, u64)> {
    let seconds = |ns: u64| (ns + 500 * MS) / (1000 * MS);
    told(out)
        .iter()
        .flat_map(|t| &t.all)
        .map(|t| {
            (
                t.turn.speaker_id.clone(),
                seconds(t.turn.start.0),
                seconds(t.turn.end.0),
            )
        })
        .collect()
}

#[test]
fn sound_passes_untouched_and_turns_come_before_the_end() {
    let rig = Rig::of(fakes("passes"), false);
    rig.begin();
    conversation(&rig);
    let out = rig.finish();

    let sound = buffers(&out);
    assert_eq!(sound.len(), 138);
    for (n, buffer) in sound.iter().enumerate() {
        assert_eq!(buffer.pts(), Some(ms(n as u64 * 500)));
        assert_eq!(buffer.size(), 32_000);
    }
    let order = names(&out);
    let at = |name: &str| order.iter().position(|o| o == name).unwrap();
    let sticky = events(&out, gst::EventType::CustomDownstreamSticky);
    assert_eq!(sticky[0].structure().unwrap().name(), messages::DIARIZATION);
    assert_eq!(
        sticky[0].structure().unwrap().get::<&str>("mode"),
        Ok("offline")
    );
    assert!(at("segment") < at("custom-downstream-sticky"));
    assert_eq!(at(messages::TURNS) + 1, at("eos"));
    assert_eq!(
        turns(&out),
        [
            ("speaker-1".to_owned(), 0, 15),
            ("speaker-2".to_owned(), 27, 42),
            ("speaker-1".to_owned(), 54, 69),
        ]
    );
    assert_eq!(told(&out)[0].watermark.0, 69_000 * MS);
    let posted = structures(&rig, messages::TURN);
    assert_eq!(posted.len(), 3);
    assert_eq!(posted[1].get::<&str>("speaker"), Ok("Speaker 2"));
}

/// Requests the pad and records what comes there.
fn turns_pad(element: &gst::Element) -> (gst::Pad, Recorder) {
    let sink = gst::Pad::builder(gst::PadDirection::Sink)
        .chain_function(|_, _, _| Ok(gst::FlowSuccess::Ok))
        .event_function(|_, _, _| true)
        .build();
    let out = Recorder::on(&sink);
    sink.set_active(true).unwrap();
    let pad = element.request_pad_simple("turns").unwrap();
    pad.link(&sink).unwrap();
    (sink, out)
}

#[test]
fn turns_alone_are_enough_and_each_is_a_buffer() {
    let element = fakes("alone");
    let (_sink, out) = turns_pad(&element);
    let rig = Rig::of(element, false);
    rig.element
        .static_pad("src")
        .unwrap()
        .unlink(&rig.sink)
        .unwrap();
    rig.begin();
    conversation(&rig);
    assert!(rig.event(gst::event::Eos::new()));

    let out = out.wait_eos();
    assert_eq!(texts(&out), ["Speaker 1", "Speaker 2", "Speaker 1"]);
    let second = &buffers(&out)[1];
    let turn = meta::read_turn(second).unwrap();
    assert_eq!(turn.speaker_id, "speaker-2");
    assert_eq!(second.pts().unwrap().nseconds(), turn.start.0);
    assert_eq!(
        second.duration().unwrap().nseconds(),
        turn.end.0 - turn.start.0
    );
    assert!(turn.confidence > 0.9, "{turn:?}");
    let names = order(&out);
    assert_eq!(names[..4], ["stream-start", "caps", "segment", "gap"]);
    assert_eq!(names.last().map(String::as_str), Some("eos"));
}

#[test]
fn nobody_linked_at_all_is_refused_as_elsewhere() {
    let rig = Rig::of(fakes("nobody"), false);
    rig.element
        .static_pad("src")
        .unwrap()
        .unlink(&rig.sink)
        .unwrap();
    rig.begin();

    assert_eq!(rig.push(steady(0, 0.0)), Err(gst::FlowError::NotLinked));
}

#[test]
fn there_is_one_turns_pad_and_it_can_be_given_back() {
    let element = fakes("one_pad");
    let template = element.pad_template("turns").unwrap();
    let request = || element.request_pad(&template, None, None);
    let pad = request().unwrap();
    assert!(request().is_none());
    element.release_request_pad(&pad);
    assert!(request().is_some());
}

#[test]
fn fewer_voices_than_asked_for_are_kept_and_told() {
    let element = fakes("fewer");
    element.set_property("num-speakers", 4_u32);
    let rig = Rig::of(element, false);
    rig.begin();
    conversation(&rig);
    let out = rig.finish();

    assert_eq!(turns(&out).len(), 3);
    let degraded = structures(&rig, messages::DEGRADED);
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert_eq!(degraded[0].get::<&str>("from"), Ok("4"));
    assert_eq!(degraded[0].get::<&str>("to"), Ok("2"));
}

#[test]
fn no_more_speakers_are_told_than_asked_for() {
    let element = fakes("most");
    element.set_property("max-speakers", 1_u32);
    let rig = Rig::of(element, false);
    rig.begin();
    conversation(&rig);

    let out = rig.finish();

    assert!(turns(&out).iter().all(|t| t.0 == "speaker-1"));
}

#[test]
fn ranges_that_cannot_be_are_refused_on_the_way_to_ready() {
    let element = fakes("ranges");
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    element.set_property("min-speakers", 3_u32);
    element.set_property("max-speakers", 2_u32);

    assert!(element.set_state(gst::State::Ready).is_err());
    let error = error_on(&bus);
    assert!(error.matches(gst::LibraryError::Settings), "{error}");
    assert!(error.message().contains("min-speakers (3)"), "{error}");

    element.set_property("max-speakers", 3_u32);
    element.set_state(gst::State::Ready).unwrap();
    element.set_state(gst::State::Null).unwrap();
    element.set_bus(None);
}

#[test]
fn nobody_speaks_in_silence_and_an_empty_stream_ends() {
    let rig = Rig::of(fakes("silence"), false);
    rig.begin();
    level(&rig, 0, 12, 0.0);
    assert_eq!(turns(&rig.finish()), []);

    let rig = Rig::of(fakes("empty"), false);
    rig.begin();
    let out = rig.finish();
    assert_eq!(turns(&out), []);
    assert!(has(&out, gst::EventType::Eos));
}

#[test]
fn sound_shorter_than_a_window_has_its_turn() {
    let rig = Rig::of(fakes("short"), false);
    rig.begin();
    rig.push(steady(0, ANN)).unwrap();

    assert_eq!(turns(&rig.finish()), [("speaker-1".to_owned(), 0, 1)]);
}

#[test]
fn no_turn_spans_a_hole() {
    let rig = Rig::of(fakes("hole"), false);
    rig.begin();
    level(&rig, 0, 8, ANN);
    level(&rig, 100, 108, ANN);

    assert_eq!(
        turns(&rig.finish()),
        [
            ("speaker-1".to_owned(), 0, 8),
            ("speaker-1".to_owned(), 100, 108)
        ]
    );
}

#[test]
fn gap_events_pass_and_move_the_turns_on() {
    let rig = Rig::of(fakes("gap"), false);
    rig.begin();
    level(&rig, 0, 8, ANN);
    rig.event(
        gst::event::Gap::builder(ms(8_000))
            .duration(ms(52_000))
            .build(),
    );
    level(&rig, 60, 68, BEN);
    let out = rig.finish();

    assert_eq!(
        turns(&out),
        [
            ("speaker-1".to_owned(), 0, 8),
            ("speaker-2".to_owned(), 60, 68)
        ]
    );
    assert!(has(&out, gst::EventType::Gap));
}

#[test]
fn a_flush_returns_at_once_and_ids_survive_it() {
    let mut slow = FakeBatches::default();
    let held = Arc::new(AtomicUsize::new(0));
    let gate = Arc::clone(&held);
    slow.before = Arc::new(move |_| {
        while gate.load(Ordering::SeqCst) == 1 {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
    slow.register("flush");
    let rig = Rig::of(diarizer("flush"), false);
    rig.begin();
    level(&rig, 0, 15, BEN);
    let first = rig.finish();
    assert_eq!(turns(&first), [("speaker-1".to_owned(), 0, 15)]);

    // A seek while the models work on another part.
    held.store(1, Ordering::SeqCst);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    rig.event(gst::event::Segment::new(&segment));
    level(&rig, 0, 12, ANN);
    at_once("a flush", || {
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::new(true));
    });
    held.store(0, Ordering::SeqCst);
    rig.event(gst::event::Segment::new(&segment));
    level(&rig, 0, 15, ANN);
    level(&rig, 15, 27, 0.0);
    level(&rig, 27, 42, BEN);
    let out = rig.finish();

    // Ben was there before the seek; what was heard of Ann before the second flush is void, and she is new.
    assert_eq!(
        turns(&out),
        [
            ("speaker-2".to_owned(), 0, 15),
            ("speaker-1".to_owned(), 27, 42)
        ]
    );
}

#[test]
fn an_end_that_waits_for_a_model_is_left_at_once() {
    let stuck = FakeBatches {
        before: Arc::new(|items| {
            // The warm-up passes.
            if items < 32 {
                std::thread::sleep(Duration::from_secs(20));
            }
            Ok(())
        }),
        ..FakeBatches::default()
    };
    stuck.register("stuck");
    let rig = Rig::of(diarizer("stuck"), false);
    rig.begin();
    level(&rig, 0, 11, ANN);
    let src = rig.src.clone();
    let end = std::thread::spawn(move || src.push_event(gst::event::Eos::new()));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!end.is_finished());

    rig.stop();

    end.join().unwrap();
}

#[test]
fn a_second_stream_is_told_for_itself() {
    let rig = Rig::of(fakes("second"), false);
    rig.begin();
    level(&rig, 0, 12, ANN);
    rig.begin();
    level(&rig, 0, 12, BEN);
    let out = rig.finish();

    let told = told(&out);
    assert_eq!(told.len(), 2);
    assert_eq!(told[1].all[0].turn.speaker_id, "speaker-2");
    let sticky = events(&out, gst::EventType::CustomDownstreamSticky);
    assert_eq!(sticky.len(), 2);
    // The first stream's turns come before the second begins.
    let order = names(&out);
    let turns = order.iter().position(|o| o == messages::TURNS).unwrap();
    let start = order.iter().rposition(|o| o == "stream-start").unwrap();
    assert!(turns < start, "{order:?}");
}

fn failing_load(name: &str) {
    FakeBatches {
        load_error: Some(EngineError::Failed {
            what: "a test".into(),
            why: "it is to fail".into(),
        }),
        ..FakeBatches::default()
    }
    .register(name);
}

#[test]
fn without_its_models_sound_goes_on_without_speakers() {
    failing_load("no_models");
    let rig = Rig::of(diarizer("no_models"), false);
    rig.begin();
    level(&rig, 0, 40, ANN);
    let out = rig.finish();

    assert_eq!(buffers(&out).len(), 80);
    assert_eq!(turns(&out), []);
    assert!(told(&out).iter().any(|t| t.watermark.0 == u64::MAX));
    let messages = rig.messages();
    let warned = messages
        .iter()
        .filter(|m| m.type_() == gst::MessageType::Warning);
    assert_eq!(warned.count(), 1);
    let degraded = messages
        .iter()
        .filter_map(|m| m.structure())
        .find(|s| s.name() == messages::DEGRADED)
        .unwrap();
    assert_eq!(degraded.get::<&str>("to"), Ok("none"));
    assert!(degraded.get::<&str>("reason").unwrap().contains("to fail"));
    assert!(
        messages
            .iter()
            .all(|m| m.type_() != gst::MessageType::Error)
    );
}

#[test]
fn a_model_that_fails_in_mid_stream_costs_the_speakers_and_no_more() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    FakeBatches {
        max_batch: 1,
        before: Arc::new(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
            0..6 => Ok(()),
            _ => Err(EngineError::Failed {
                what: "a test".into(),
                why: "enough".into(),
            }),
        }),
        ..FakeBatches::default()
    }
    .register("mid_stream");
    let rig = Rig::of(diarizer("mid_stream"), false);
    rig.begin();
    level(&rig, 0, 60, ANN);
    let out = rig.finish();

    assert_eq!(buffers(&out).len(), 120);
    assert_eq!(told(&out).last().map(|t| t.watermark.0), Some(u64::MAX));
    assert_eq!(structures(&rig, messages::DEGRADED).len(), 1);
}

#[test]
fn where_nothing_would_be_left_a_missing_model_is_an_error() {
    for (name, fallback, with_turns) in [("no_chain", "", false), ("turns_only", "none", true)] {
        failing_load(name);
        let element = diarizer(name);
        element.set_property("fallback", fallback);
        let turns = with_turns.then(|| turns_pad(&element));
        let rig = Rig::of(element, false);
        if turns.is_some() {
            rig.element
                .static_pad("src")
                .unwrap()
                .unlink(&rig.sink)
                .unwrap();
        }
        rig.begin();

        let error = rig.error();

        assert!(error.message().contains("it is to fail"), "{name}: {error}");
        eventually("sound is refused", || rig.push(steady(0, ANN)).is_err());
    }
}

#[test]
fn the_next_embedding_model_of_the_chain_is_taken_and_told() {
    failing_load("first_choice");
    FakeBatches::default().register("second_choice");
    FakeBatches::default().register("segments");
    let element = diarizer("first_choice");
    element.set_property("segmentation-model", "fake:segments");
    element.set_property("fallback", "fake:second_choice,none");
    let rig = Rig::of(element, false);
    rig.begin();
    level(&rig, 0, 12, ANN);
    let out = rig.finish();

    assert_eq!(turns(&out).len(), 1);
    let degraded = structures(&rig, messages::DEGRADED);
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(
        degraded[0]
            .get::<&str>("to")
            .unwrap()
            .contains("second_choice")
    );
    let stats = rig.element.property::<gst::Structure>("stats");
    assert!(
        stats
            .get::<&str>("embedding-model")
            .unwrap()
            .contains("second_choice")
    );
    assert_eq!(stats.get::<u32>("speakers"), Ok(1));
}

#[test]
fn three_hundred_quick_changes_of_state_hang_nothing() {
    let rig = Rig::of(fakes("states"), false);
    for n in 0..100 {
        rig.element.set_state(gst::State::Ready).unwrap();
        rig.element.set_state(gst::State::Playing).unwrap();
        if n % 10 == 0 {
            rig.begin();
            level(&rig, 0, 11, ANN);
        }
        at_once("NULL", || rig.element.set_state(gst::State::Null).unwrap());
        rig.element.set_state(gst::State::Playing).unwrap();
    }
}

fn online(name: &str) -> gst::Element {
    let element = fakes(name);
    element.set_property_from_str("mode", "online");
    element.set_property("latency", 2_000_u32);
    element
}

/// What the first STREAM of `element` is told of the latency, nanoseconds.
fn announced(element: gst::Element, is_live: bool) -> u64 {
    element.set_property_from_str("mode", "online");
    let rig = Rig::of(element, is_live);
    rig.begin();
    level(&rig, 0, 1, ANN);
    let sticky = events(&rig.finish(), gst::EventType::CustomDownstreamSticky);
    let sticky = sticky[0].structure().unwrap();
    sticky.get::<u64>("latency").unwrap()
}

#[test]
fn live_turns_are_told_sooner_unless_a_latency_is_asked_for() {
    assert_eq!(announced(fakes("latency_file"), false), 5_000 * MS);
    assert_eq!(announced(fakes("latency_live"), true), 1_000 * MS);
    let asked = fakes("latency_asked");
    asked.set_property("latency", 3_000_u32);
    assert_eq!(announced(asked, true), 3_000 * MS);
    let least = fakes("latency_least");
    least.set_property("latency", 1_u32);
    assert_eq!(announced(least, true), 500 * MS);
}

#[test]
fn live_words_have_their_speakers_when_they_stand() {
    init();
    FakeBatches::default().register("live_words");
    FakeSpeech::hearing().register("live_words");
    let bin = gst::ElementFactory::make("scribebin")
        .property_from_str("mode", "live")
        .property("segmentation-model", "fake:live_words")
        .property("embedding-model", "fake:live_words")
        .property("model", "fake:live_words")
        .property("vad-model", "fake:")
        .property_from_str("unit", "word")
        .build()
        .unwrap();
    bin.set_context(&registry_context(&registry()));
    let rig = Rig::of(bin, false);
    rig.begin();

    let mut at = 0;
    let mut push = |ms: u64, level: f32| {
        for n in 0..ms / 100 {
            let sound = std::iter::repeat_n(level, 1_600);
            let sound = sound.flat_map(f32::to_le_bytes).collect();
            rig.push(buffer(sound, at + n * 100)).unwrap();
            let wanted = (at + (n + 1) * 100) as f64 / 1000.0 - 0.001;
            eventually("both have heard it", || {
                let stats = rig.element.property::<gst::Structure>("stats");
                let [words, turns] = ["transcriber", "diarizer"]
                    .map(|name| stats.get::<gst::Structure>(name).unwrap());
                words.get::<f64>("audio-seconds").unwrap() >= wanted
                    && words.get::<u64>("in-work").unwrap() == 0
                    && turns.get::<f64>("buffered-seconds") == Ok(0.0)
            });
        }
        at += ms;
    };
    for voice in [ANN, BEN] {
        for n in 0..30 {
            push(300, voice + (n % 2) as f32 / 100.0);
        }
        // The fake takes what lies in a window for one person.
        push(12_000, 0.0);
    }
    let words: Vec<(String, Option<String>)> = buffers(&rig.out.all())
        .iter()
        .flat_map(|b| meta::read(b).unwrap().cue.words)
        .map(|w| (w.text.trim().to_owned(), w.speaker_id))
        .collect();
    rig.finish();

    assert!(words.len() > 50, "{words:?}");
    let of = |voice: &str| -> Vec<&str> {
        let own = words.iter().filter(|(text, _)| text.starts_with(voice));
        own.map(|(_, id)| id.as_deref().unwrap_or("nobody"))
            .collect()
    };
    assert!(of("w3").iter().all(|id| *id == "speaker-1"), "{words:?}");
    // A voice that was never heard is somebody else's for some seconds, until it is told from his.
    let ben = of("w12");
    assert!(!ben.contains(&"nobody"), "{words:?}");
    assert!(ben[15..].iter().all(|id| *id == "speaker-2"), "{words:?}");
}

#[test]
fn online_turns_come_while_the_sound_does_and_the_watermark_never_goes_back() {
    let rig = Rig::of(online("online"), false);
    rig.begin();
    level(&rig, 0, 20, ANN);
    // What the worker has found goes out before the next buffer, as that comes.
    for n in 40..64 {
        rig.push(steady(n * 500, 0.0)).unwrap();
        let heard = || rig.element.property::<gst::Structure>("stats");
        eventually("it is heard", || {
            heard().get::<f64>("buffered-seconds") == Ok(0.0)
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    let so_far = told(&rig.out.all());
    assert!(so_far.iter().any(|t| !t.all.is_empty()), "{so_far:?}");
    assert!(
        so_far.iter().map(|t| t.watermark.0).max() >= Some(20_000 * MS),
        "{so_far:?}"
    );
    level(&rig, 32, 47, BEN);
    let out = rig.finish();

    let told = told(&out);
    for pair in told.windows(2) {
        assert!(pair[0].watermark <= pair[1].watermark);
        // Nothing is added before what was final.
        for turn in &pair[1].all {
            assert!(
                turn.start >= pair[0].watermark,
                "{turn:?} {:?}",
                pair[0].watermark
            );
        }
    }
    let sticky = events(&out, gst::EventType::CustomDownstreamSticky);
    let sticky = sticky[0].structure().unwrap();
    assert_eq!(sticky.get::<&str>("mode"), Ok("online"));
    assert_eq!(sticky.get::<u64>("latency"), Ok(2_000 * MS));
    let at = |seconds: u64| -> Option<String> {
        let all = told.iter().flat_map(|t| &t.all);
        let mut there =
            all.filter(|t| (t.turn.start.0..t.turn.end.0).contains(&(seconds * 1000 * MS)));
        there.next().map(|t| t.turn.speaker_id.clone())
    };
    assert_eq!(at(10).as_deref(), Some("speaker-1"));
    assert_eq!(at(26), None);
    assert_eq!(at(40).as_deref(), Some("speaker-2"));
}

#[test]
fn online_ids_survive_a_seek_and_a_flush_returns_at_once() {
    let rig = Rig::of(online("online_seek"), false);
    rig.begin();
    level(&rig, 0, 20, ANN);
    level(&rig, 20, 32, 0.0);
    level(&rig, 32, 52, BEN);
    at_once("a flush", || {
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::new(true));
    });
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    rig.event(gst::event::Segment::new(&segment));
    level(&rig, 0, 20, BEN);
    let out = rig.finish();

    // The first second may be told too soon, and is mended.
    let mut turns = turns(&out);
    let relabels = events(&out, gst::EventType::CustomDownstream);
    let relabels = relabels
        .iter()
        .filter_map(|e| messages::relabel_of(e.structure()?));
    for relabel in relabels {
        let theirs = turns.iter_mut().filter(|t| t.0 == relabel.old_id);
        theirs.for_each(|t| t.0 = relabel.new_id.clone().unwrap());
    }
    assert!(!turns.is_empty());
    assert!(turns.iter().all(|t| t.0 == "speaker-2"), "{turns:?}");
}

#[test]
fn a_live_source_is_told_online_and_its_sound_never_waits() {
    let slow = FakeBatches {
        delay: Duration::from_secs(2),
        ..FakeBatches::default()
    };
    slow.register("live");
    let rig = Rig::of(diarizer("live"), true);
    rig.begin();
    let sticky = events(&rig.out.all(), gst::EventType::CustomDownstreamSticky);
    assert_eq!(
        sticky[0].structure().unwrap().get::<&str>("mode"),
        Ok("online")
    );

    at_once("forty seconds of live sound", || level(&rig, 0, 40, ANN));

    assert_eq!(buffers(&rig.out.all()).len(), 80);
    rig.stop();
}

#[test]
fn online_words_get_their_speakers_before_the_end() {
    let (rig, diarizer) = chain("online_chain", "one two three four");
    diarizer.set_state(gst::State::Null).unwrap();
    diarizer.set_property_from_str("mode", "online");
    diarizer.set_state(gst::State::Playing).unwrap();
    rig.begin();
    level(&rig, 0, 20, ANN);
    level(&rig, 20, 60, 0.0);
    rig.out.wait(|all| !buffers(all).is_empty());

    let cues = cues(&rig.out.all());

    assert_eq!(cues[0].0.as_deref(), Some("Speaker 1"));
    rig.finish();
}

/// diarizer ! transcriber between two pads, on fakes.
fn chain(name: &str, text: &str) -> (Rig, gst::Element) {
    says(name, text);
    FakeBatches::default().register(name);
    chain_of(name)
}

fn chain_of(name: &str) -> (Rig, gst::Element) {
    let bin = gst::Bin::new();
    let (diarizer, transcriber) = (diarizer(name), transcriber(name));
    bin.add_many([&diarizer, &transcriber]).unwrap();
    diarizer.link(&transcriber).unwrap();
    for (element, pad) in [(&diarizer, "sink"), (&transcriber, "src")] {
        let ghost = gst::GhostPad::with_target(&element.static_pad(pad).unwrap()).unwrap();
        ghost.set_active(true).unwrap();
        bin.add_pad(&ghost).unwrap();
    }
    let rig = Rig::of(bin.upcast(), false);
    (rig, diarizer)
}

/// Each cue with its speaker.
fn cues(out: &[Out]) -> Vec<(Option<String>, u64)> {
    buffers(out)
        .iter()
        .map(|b| meta::read(b).unwrap().cue)
        .map(|c| (c.speaker, c.start.0 / (1000 * MS)))
        .collect()
}

#[test]
fn words_wait_for_their_speakers_and_cues_break_where_those_change() {
    let (rig, _) = chain("chain", "one two three four five six");
    rig.begin();
    conversation(&rig);
    assert!(
        buffers(&rig.out.all()).is_empty(),
        "who spoke is not known yet"
    );
    let out = rig.finish();

    let cues = cues(&out);
    assert!(cues.len() >= 3, "{cues:?}");
    for (speaker, start) in &cues {
        let wanted = if (27..42).contains(start) {
            "Speaker 2"
        } else {
            "Speaker 1"
        };
        assert_eq!(speaker.as_deref(), Some(wanted), "{cues:?}");
    }
    // The diarizer's events go on to those who write documents.
    assert_eq!(told(&out).len(), 1);
    let changes = order(&out)
        .iter()
        .filter(|o| *o == messages::SPEAKER_CHANGE)
        .count();
    assert_eq!(changes, 3);
}

#[test]
fn words_come_without_speakers_where_those_cannot_be_had() {
    says("deaf", "one two three");
    failing_load("deaf");
    let (rig, _) = chain_of("deaf");
    rig.begin();
    conversation(&rig);
    let out = rig.finish();

    let cues = cues(&out);
    assert!(!cues.is_empty());
    assert!(cues.iter().all(|c| c.0.is_none()), "{cues:?}");
}

#[test]
fn after_a_seek_words_wait_again() {
    let (rig, _) = chain("seek_chain", "one two three");
    rig.begin();
    level(&rig, 0, 15, ANN);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    rig.event(gst::event::Segment::new(&segment));
    level(&rig, 0, 15, BEN);
    level(&rig, 15, 45, 0.0);
    std::thread::sleep(Duration::from_millis(300));
    assert!(buffers(&rig.out.all()).is_empty());

    let out = rig.finish();

    assert_eq!(cues(&out)[0].0.as_deref(), Some("Speaker 1"));
}

// Programs, on real models and real speech.

/// The recording of three voices with a picture, as an MP4.
fn film(folder: &Path) -> bool {
    if !runs("ffmpeg", &["-version"], "make setup-test") {
        return false;
    }
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi"])
        .args(["-i", "testsrc=size=320x180:rate=5", "-i"])
        .arg(repository("tests/data/demo.opus"))
        .args(["-shortest", "-c:v", "mpeg4", "-c:a", "aac", "a.mp4"])
        .current_dir(folder)
        .status()
        .unwrap();
    assert!(made.success());
    true
}

/// Speaker of each line of an RTTM file with its middle in seconds.
fn rttm(text: &str) -> Vec<(String, f64)> {
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (start, length): (f64, f64) =
                (fields[3].parse().unwrap(), fields[4].parse().unwrap());
            (fields[7].to_owned(), start + length / 2.0)
        })
        .collect()
}

/// Whose voice the reference has at `seconds`.
fn truth(reference: &str, seconds: f64) -> Option<String> {
    reference
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let (start, end): (f64, f64) = (fields[0].parse().ok()?, fields[1].parse().ok()?);
            (start..end)
                .contains(&seconds)
                .then(|| fields[fields.len() - 1].to_owned())
        })
}

#[test]
fn the_line_of_the_readme_writes_who_spoke_when() {
    if !can_tell_speakers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        repository("tests/data/demo.opus"),
        folder.path().join("a.opus"),
    )
    .unwrap();

    let out = gst_launch(
        "-q",
        "filesrc location=a.opus ! decodebin ! scribediarizer name=d d.turns ! scribeenc format=rttm ! filesink location=x.rttm",
        folder.path(),
    );

    assert!(out.status.success(), "{out:?}");
    let written = std::fs::read_to_string(folder.path().join("x.rttm")).unwrap();
    let reference = std::fs::read_to_string(repository("tests/data/demo.ref.tsv")).unwrap();
    let turns = rttm(&written);
    let mut voice_of: std::collections::BTreeMap<String, String> = Default::default();
    let mut seen = 0;
    for (speaker, middle) in turns {
        let Some(voice) = truth(&reference, middle) else {
            continue;
        };
        seen += 1;
        let known = voice_of.entry(speaker).or_insert_with(|| voice.clone());
        assert_eq!(*known, voice, "at {middle}: {written}");
    }
    assert!(seen >= 5, "{written}");
    assert_eq!(voice_of.len(), 3, "{written}");
}

#[test]
fn one_element_makes_captions_of_a_film_with_speakers_and_without() {
    if !can_tell_speakers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    if !film(folder.path()) {
        return;
    }

    let out = gst_launch(
        "-q",
        "filesrc location=a.mp4 ! decodebin ! scribebin format=vtt ! filesink location=a.vtt",
        folder.path(),
    );
    assert!(out.status.success(), "{out:?}");
    let with = std::fs::read_to_string(folder.path().join("a.vtt")).unwrap();
    for speaker in ["<v Speaker 1>", "<v Speaker 2>", "<v Speaker 3>"] {
        assert!(with.contains(speaker), "{with}");
    }
    assert!(!with.contains("<v Speaker 4>"), "{with}");

    let out = gst_launch(
        "-q",
        "filesrc location=a.mp4 ! decodebin ! scribebin speakers=false format=vtt ! filesink location=b.vtt",
        folder.path(),
    );
    assert!(out.status.success(), "{out:?}");
    let without = std::fs::read_to_string(folder.path().join("b.vtt")).unwrap();
    assert!(
        without.starts_with("WEBVTT") && !without.contains("<v "),
        "{without}"
    );
    assert!(without.to_lowercase().contains("dashwood"), "{without}");
}

#[test]
fn words_and_turns_of_one_pipeline_both_reach_their_files() {
    if !can_tell_speakers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        repository("tests/data/demo.opus"),
        folder.path().join("a.opus"),
    )
    .unwrap();

    // No queue: neither branch may hold up the other's preroll.
    let out = gst_launch(
        "-q",
        "filesrc location=a.opus ! decodebin ! scribediarizer name=d ! scribetranscriber ! scribeenc format=json ! filesink location=a.json d.turns ! scribeenc format=rttm ! filesink location=a.rttm",
        folder.path(),
    );

    assert!(out.status.success(), "{out:?}");
    let json = std::fs::read_to_string(folder.path().join("a.json")).unwrap();
    let transcript = gstscribe::transcript::formats::json::read(&json).unwrap();
    let written = std::fs::read_to_string(folder.path().join("a.rttm")).unwrap();
    assert_eq!(transcript.turns.len(), written.lines().count());
    assert!(transcript.turns.len() >= 5);
    let words = transcript.segments.iter().flat_map(|s| &s.words);
    let (known, all) = words.fold((0, 0), |(known, all), w| {
        (known + usize::from(w.speaker.is_some()), all + 1)
    });
    assert!(all > 50 && known == all, "{known} of {all}");
}
