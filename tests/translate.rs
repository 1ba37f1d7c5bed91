// SPDX-License-Identifier: MPL-2.0
//! The pads `translate_src_%u` of `scribetranscriber`, on a fake model that says one thing when it transcribes and another
//! when it translates.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/transcriberbin.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod transcriberbin;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use gst::prelude::*;
use gstscribe::audio::{RunningNs, StreamNs};
use gstscribe::inference::fake::{self, FakeSpeech};
use gstscribe::messages::{self, SpokenTurn, Turns};
use gstscribe::transcript::{Task, Turn};

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// Windows that a model was asked for.
#[derive(Clone, Default)]
struct Asked(Arc<[AtomicUsize; 2]>);

impl Asked {
    fn count(&self, task: Task) {
        self.0[usize::from(task == Task::Translate)].fetch_add(1, Ordering::SeqCst);
    }

    /// To transcribe, and to translate.
    fn windows(&self) -> (usize, usize) {
        let [said, translated] = self.0.each_ref().map(|n| n.load(Ordering::SeqCst));
        (said, translated)
    }
}

/// Somebody says "eins zwei drei" in each window.
fn german(name: &str) -> Asked {
    let asked = Asked::default();
    let own = asked.clone();
    let mut fake = FakeSpeech::new(move |window, _| {
        own.count(window.task);
        let text = match window.task {
            Task::Transcribe => "eins zwei drei",
            Task::Translate => "one two three",
        };
        let mut decoded = fake::spread(text, window);
        decoded.language = "de".into();
        Ok(decoded)
    });
    fake.multilingual = true;
    fake.register(name);
    asked
}

/// Hears words: `w2` to `w99`, and their translations `e2` to `e99`.
fn hearing(name: &str) -> (gst::Element, Asked) {
    let asked = Asked::default();
    let own = asked.clone();
    let hears = FakeSpeech::hearing().answer;
    let mut fake = FakeSpeech::new(move |window, params| {
        own.count(window.task);
        let mut decoded = hears(window, params)?;
        decoded.language = "de".into();
        if window.task == Task::Translate {
            for token in &mut decoded.tokens {
                token.bytes = token
                    .bytes
                    .iter()
                    .map(|b| if *b == b'w' { b'e' } else { *b })
                    .collect();
            }
        }
        Ok(decoded)
    });
    fake.multilingual = true;
    fake.register(name);
    let element = transcriber(name);
    element.set_property_from_str("unit", "word");
    (element, asked)
}

/// A translate pad, and what comes out of it.
struct Tap {
    pad: gst::Pad,
    sink: gst::Pad,
    out: Recorder,
    flow: Arc<Mutex<Flow>>,
}

impl Tap {
    /// Linked, as transcriberbin does it: the language is set right after the pad was asked for.
    fn of(element: &gst::Element, language: Option<&str>) -> Self {
        Self::with_caps(element, language, None)
    }

    fn with_caps(element: &gst::Element, language: Option<&str>, caps: Option<&str>) -> Self {
        let pad = element.request_pad_simple("translate_src_%u").unwrap();
        if let Some(language) = language {
            pad.set_property("language-code", language);
        }
        let flow = Arc::new(Mutex::new(Ok(gst::FlowSuccess::Ok)));
        let answer = Arc::clone(&flow);
        let caps: Option<gst::Caps> = caps.map(|caps| caps.parse().unwrap());
        let sink = gst::Pad::builder(gst::PadDirection::Sink)
            .chain_function(move |_, _, _| *answer.lock().unwrap())
            .event_function(|_, _, _| true)
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Caps(q) if caps.is_some() => {
                    q.set_result(caps.as_ref().unwrap());
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let out = Recorder::on(&sink);
        sink.set_active(true).unwrap();
        pad.link(&sink).unwrap();
        Self {
            pad,
            sink,
            out,
            flow,
        }
    }

    fn says(&self, flow: gst::FlowError) {
        *self.flow.lock().unwrap() = Err(flow);
    }

    fn unlink(&self) {
        self.pad.unlink(&self.sink).unwrap();
    }
}

fn warnings(rig: &Rig) -> Vec<glib::Error> {
    let messages = rig.messages();
    let warnings = messages.iter().filter_map(|m| match m.view() {
        gst::MessageView::Warning(warning) => Some(warning.error()),
        _ => None,
    });
    warnings.collect()
}

fn start_of(out: &[Out]) -> gst::Event {
    events(out, gst::EventType::StreamStart)[0].clone()
}

fn segment_of(out: &[Out]) -> gst::FormattedSegment<gst::ClockTime> {
    match events(out, gst::EventType::Segment)[0].view() {
        gst::EventView::Segment(e) => e.segment().clone().downcast().unwrap(),
        _ => unreachable!("a SEGMENT"),
    }
}

fn discont(buffer: &gst::Buffer) -> bool {
    buffer.flags().contains(gst::BufferFlags::DISCONT)
}

// A file.

#[test]
fn any_number_of_pads_gives_english_from_one_translation() {
    let asked = german("t_file");
    let element = transcriber("t_file");
    element.set_property("lateness", 500u32);
    let taps = [None, Some("en"), Some("en-US"), Some("")].map(|l| Tap::of(&element, l));
    let rig = Rig::of(element, false);

    let group = gst::GroupId::next();
    let start = gst::event::StreamStart::builder("sound").group_id(group);
    rig.event(start.build());
    rig.event(gst::event::Caps::new(&F32_16K.parse().unwrap()));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    rig.event(gst::event::Segment::new(&segment));
    rig.silence(0, 2000).speech(2000, 4000).silence(4000, 6000);
    let said = rig.finish();

    assert_eq!(texts(&said), ["eins zwei drei"]);
    let mut ids = vec![start_of(&said)];
    for tap in &taps {
        let out = tap.out.wait_eos();
        assert_eq!(texts(&out), ["one two three"]);
        let first = ["stream-start", "caps", "segment", "tag"].map(str::to_owned);
        assert_eq!(order(&out)[..4], first);
        assert_eq!(assert_continuous(&out, ms(0)), ms(6000));
        assert_eq!(words(&out)[0].1, words(&said)[0].1);
        assert!(discont(&buffers(&out)[0]));
        assert_eq!(segment_of(&out).base(), Some(ms(500)));
        assert_eq!(events(&out, gst::EventType::Eos).len(), 1);
        assert_eq!(
            order(&out)
                .iter()
                .filter(|n| *n == "rstranscribe/final-transcript")
                .count(),
            1
        );
        let tags = tap.pad.sticky_event::<gst::event::Tag>(0).unwrap();
        let language = tags.tag().get::<gst::tags::LanguageCode>().unwrap();
        assert_eq!(language.get(), "en");
        ids.push(start_of(&out));
    }
    let ids: Vec<String> = ids
        .iter()
        .map(|event| match event.view() {
            gst::EventView::StreamStart(e) => {
                assert_eq!(e.group_id(), Some(group));
                assert!(e.stream_flags().contains(gst::StreamFlags::SPARSE));
                e.stream_id().to_owned()
            }
            _ => unreachable!("a STREAM_START"),
        })
        .collect();
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 5, "{ids:?}");
    assert_eq!(asked.windows(), (1, 1));
}

#[test]
fn what_is_english_already_is_decoded_once() {
    let english = says("t_english", "hello there");
    let spoken = german("t_spoken");
    let translated = german("t_task");
    for (model, property, value, text) in [
        ("t_english", "language-code", "auto", "hello there"),
        ("t_spoken", "language-code", "en-GB", "eins zwei drei"),
        ("t_task", "task", "translate", "one two three"),
    ] {
        let element = transcriber(model);
        element.set_property_from_str(property, value);
        let taps = [Tap::of(&element, None), Tap::of(&element, Some("en"))];
        let rig = Rig::of(element, false);

        rig.begin().speech(0, 2000).silence(2000, 4000);
        let said = rig.finish();

        assert_eq!(texts(&said), [text], "{model}");
        for tap in &taps {
            let out = tap.out.wait_eos();
            assert_eq!(texts(&out), [text], "{model}");
            assert_eq!(words(&out), words(&said), "{model}");
            assert_eq!(assert_continuous(&out, ms(0)), ms(4000));
        }
    }
    assert_eq!(english.windows.load(Ordering::SeqCst), 1);
    assert_eq!(spoken.windows(), (1, 0));
    assert_eq!(translated.windows(), (0, 1));
}

#[test]
fn another_language_is_one_warning_and_gaps() {
    let asked = german("t_other");
    let element = transcriber("t_other");
    let french = Tap::of(&element, Some("fr"));
    let rig = Rig::of(element, false);

    rig.begin().speech(0, 2000).silence(2000, 4000);
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<
        gst::ClockTime,
    >::new()));
    rig.speech(4000, 5000);
    rig.finish();
    let out = french.out.wait_eos();

    let warnings = warnings(&rig);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].matches(gst::StreamError::NotImplemented));
    let text = warnings[0].message().to_owned();
    assert!(
        text.contains("translate_src_0") && text.contains("fr") && text.contains("Set its"),
        "{text}"
    );
    assert!(buffers(&out).is_empty());
    assert_eq!(assert_continuous(&out, ms(0)), ms(5000));
    assert_eq!(asked.windows().1, 0);
}

#[test]
fn a_pad_that_is_not_linked_costs_nothing() {
    let asked = german("t_unlinked");
    let element = transcriber("t_unlinked");
    let pad = element.request_pad_simple("translate_src_%u").unwrap();
    let rig = Rig::of(element, false);

    rig.begin().speech(0, 2000);
    assert_eq!(texts(&rig.finish()), ["eins zwei drei"]);

    assert_eq!(asked.windows(), (1, 0));
    assert!(!pad.is_linked());
}

#[test]
fn words_on_src_do_not_wait_for_the_translation() {
    let open = Arc::new(AtomicUsize::new(0));
    let gate = Arc::clone(&open);
    let mut fake = FakeSpeech::new(move |window, _| {
        let translates = window.task == Task::Translate;
        while translates && gate.load(Ordering::SeqCst) == 0 && !window.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(fake::spread(
            if translates { "late" } else { "early" },
            window,
        ))
    });
    fake.multilingual = true;
    fake.register("t_slow");
    let element = transcriber("t_slow");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);

    rig.begin().speech(0, 3000).silence(3000, 40_000);
    let said = rig.out.wait(|all| !buffers(all).is_empty());
    let translated = buffers(&tap.out.all()).len();
    open.store(1, Ordering::SeqCst);
    rig.finish();

    assert_eq!(texts(&said), ["early"]);
    assert_eq!(translated, 0);
    assert_eq!(texts(&tap.out.wait_eos()), ["late"]);
    assert_continuous(&tap.out.all(), ms(0));
}

#[test]
fn each_channel_is_translated() {
    german("t_channels");
    let element = transcriber("t_channels");
    element.set_property_from_str("channels", "separate");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    let caps =
        "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved,channel-mask=(bitmask)3";

    rig.begin_with(caps, &gst::FormattedSegment::<gst::ClockTime>::new());
    for n in 0..40u64 {
        let (left, right) = if n < 20 { (0.3, 0.0) } else { (0.0, 0.3) };
        let both = tone(16_000, 100, left).zip(tone(16_000, 100, right));
        let both = both.flat_map(|(l, r)| [l, r]).flat_map(f32::to_le_bytes);
        rig.push(buffer(both.collect(), n * 100)).unwrap();
    }
    rig.finish();
    let out = tap.out.wait_eos();

    assert_eq!(texts(&out), ["one two three", "one two three"]);
    let speaker = |b: &gst::Buffer| gstscribe::meta::read(b).unwrap().cue.speaker.clone();
    let speakers: Vec<_> = buffers(&out).iter().map(speaker).collect();
    assert_eq!(
        speakers,
        [Some("Channel 1".into()), Some("Channel 2".into())]
    );
    assert_continuous(&out, ms(0));
}

#[test]
fn a_flush_forgets_on_all_pads() {
    let asked = german("t_flush");
    let element = transcriber("t_flush");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    rig.begin().speech(0, 2000).silence(2000, 40_000);
    tap.out.wait(|all| !buffers(all).is_empty());

    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(ms(10_000));
    segment.set_time(ms(10_000));
    rig.event(gst::event::Segment::new(&segment));
    rig.speech(10_000, 12_000);
    rig.finish();
    let out = tap.out.wait_eos();

    assert_eq!(texts(&out), ["one two three"]);
    assert!(discont(&buffers(&out)[0]));
    assert!(words(&out)[0].1 >= 9900, "{:?}", words(&out));
    assert_eq!(assert_continuous(&out, ms(10_000)), ms(12_000));
    assert_eq!(asked.windows(), (2, 2));
}

#[test]
fn a_pad_negotiates_for_itself() {
    let mut fake = FakeSpeech::new(|window, _| Ok(fake::spread("a < b", window)));
    fake.multilingual = true;
    fake.register("t_caps");
    let element = transcriber("t_caps");
    let tap = Tap::with_caps(&element, None, Some("text/x-raw,format=pango-markup"));
    let rig = Rig::of(element, false);

    rig.begin().speech(0, 2000);

    assert_eq!(texts(&rig.finish()), ["a < b"]);
    assert_eq!(texts(&tap.out.wait_eos()), ["a &lt; b"]);
    let caps = tap.pad.current_caps().unwrap();
    assert_eq!(
        caps.structure(0).unwrap().get::<&str>("format"),
        Ok("pango-markup")
    );
}

#[test]
fn tags_of_the_sound_leave_the_language_on_the_pad() {
    german("t_tags");
    let element = transcriber("t_tags");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);

    rig.begin().speech(0, 1000);
    let mut tags = gst::TagList::new();
    tags.make_mut()
        .add::<gst::tags::Title>(&"A talk", gst::TagMergeMode::Replace);
    rig.event(gst::event::Tag::new(tags));
    rig.speech(1000, 2000);
    rig.finish();
    tap.out.wait_eos();

    let tags = tap.pad.sticky_event::<gst::event::Tag>(0).unwrap();
    let language = tags.tag().get::<gst::tags::LanguageCode>().unwrap();
    assert_eq!(language.get(), "en");
    let title = tags.tag().get::<gst::tags::Title>().unwrap();
    assert_eq!(title.get(), "A talk");
}

#[test]
fn translated_words_have_their_speakers_too() {
    german("t_speakers");
    let element = transcriber("t_speakers");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    rig.begin();
    rig.event(messages::diarization("offline", ms(0)));
    rig.speech(0, 2000)
        .silence(2000, 40_000)
        .speech(40_000, 42_000);

    let turn = |id: &str, start: u64, end: u64| SpokenTurn {
        turn: Turn {
            speaker_id: id.into(),
            speaker: Some(id.to_uppercase()),
            start: StreamNs(start * MS),
            end: StreamNs(end * MS),
            confidence: 1.0,
        },
        start: RunningNs(start * MS),
        end: RunningNs(end * MS),
    };
    let turns = vec![turn("ada", 0, 2000), turn("bob", 40_000, 42_000)];
    rig.event(messages::turns(&Turns {
        watermark: RunningNs(u64::MAX),
        all: turns.clone(),
        exclusive: turns,
    }));
    let said = rig.finish();

    let speakers = |out: &[Out]| -> Vec<Option<String>> {
        let cues = buffers(out).into_iter();
        cues.map(|b| gstscribe::meta::read(&b).unwrap().cue.speaker)
            .collect()
    };
    let out = tap.out.wait_eos();
    let wanted = [Some("ADA".to_owned()), Some("BOB".to_owned())];
    assert_eq!(speakers(&said), wanted);
    assert_eq!(speakers(&out), wanted);
    assert_eq!(texts(&out), ["one two three", "one two three"]);
    assert_continuous(&without_empty_gaps(&out), ms(0));
}

/// A GAP of no length says that text will be late.
fn without_empty_gaps(out: &[Out]) -> Vec<Out> {
    let is_empty = |out: &&Out| match out {
        Out::Event(e) => match e.view() {
            gst::EventView::Gap(gap) => gap.get().1.is_none(),
            _ => false,
        },
        Out::Buffer(_) => false,
    };
    out.iter().filter(|o| !is_empty(o)).cloned().collect()
}

// Who refuses.

#[test]
fn whoever_has_had_enough_behind_a_pad_holds_up_nobody() {
    for refusal in [
        gst::FlowError::Eos,
        gst::FlowError::Flushing,
        gst::FlowError::NotLinked,
    ] {
        let name = format!("t_refuses_{refusal:?}");
        german(&name);
        let element = transcriber(&name);
        let (refuses, takes) = (Tap::of(&element, None), Tap::of(&element, None));
        let rig = Rig::of(element, false);
        refuses.says(refusal);

        rig.begin().speech(0, 2000).silence(2000, 40_000);
        refuses.out.wait(|all| !buffers(all).is_empty());
        rig.speech(40_000, 42_000);
        let said = rig.finish();

        assert_eq!(texts(&said).len(), 2, "{refusal:?}");
        assert_eq!(texts(&takes.out.wait_eos()).len(), 2, "{refusal:?}");
    }
}

#[test]
fn translations_go_on_where_src_has_had_enough_or_is_not_linked() {
    german("t_src_eos");
    let element = transcriber("t_src_eos");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    *rig.flow.lock().unwrap() = Err(gst::FlowError::Eos);
    rig.begin().speech(0, 2000).silence(2000, 40_000);
    rig.out.wait(|all| !buffers(all).is_empty());
    rig.element
        .static_pad("src")
        .unwrap()
        .unlink(&rig.sink)
        .unwrap();

    rig.speech(40_000, 42_000);
    assert!(rig.event(gst::event::Eos::new()));

    assert_eq!(texts(&tap.out.wait_eos()).len(), 2);
}

#[test]
fn all_that_have_had_enough_are_the_end_upstream_too() {
    german("t_all_eos");
    let element = transcriber("t_all_eos");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    *rig.flow.lock().unwrap() = Err(gst::FlowError::Eos);
    tap.says(gst::FlowError::Eos);

    rig.begin().speech(0, 2000).silence(2000, 40_000);
    eventually("upstream hears of it", || {
        rig.push(sound(40_000, 10, 0.0)) == Err(gst::FlowError::Eos)
    });

    let errors = rig.messages();
    assert!(errors.iter().all(|m| m.type_() != gst::MessageType::Error));
}

#[test]
fn nobody_at_all_is_an_error_as_before() {
    german("t_nobody");
    let element = transcriber("t_nobody");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    tap.unlink();
    rig.element
        .static_pad("src")
        .unwrap()
        .unlink(&rig.sink)
        .unwrap();

    rig.begin();
    let _ = rig.push(sound(0, 2000, 0.3));
    rig.event(gst::event::Eos::new());

    assert!(rig.error().matches(gst::StreamError::Failed));
}

#[test]
fn an_error_behind_a_pad_is_the_streams() {
    german("t_error");
    let element = transcriber("t_error");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    tap.says(gst::FlowError::Error);

    rig.begin().speech(0, 2000);
    rig.event(gst::event::Eos::new());

    assert!(rig.error().matches(gst::StreamError::Failed));
}

// Pads come and go.

#[test]
fn a_pad_can_go_in_any_state() {
    let asked = german("t_release");
    let element = transcriber("t_release");
    let names = |element: &gst::Element| -> Vec<String> {
        element.src_pads().iter().map(|p| p.name().into()).collect()
    };
    let ask = || element.request_pad_simple("translate_src_%u").unwrap();

    let (first, second) = (ask(), ask());
    assert_eq!(
        names(&element),
        ["src", "unsynced_src", "translate_src_0", "translate_src_1"]
    );
    element.release_request_pad(&first);
    assert_eq!(ask().name(), "translate_src_0");
    element.set_state(gst::State::Ready).unwrap();
    element.release_request_pad(&second);
    element.release_request_pad(&element.static_pad("translate_src_0").unwrap());
    assert_eq!(names(&element), ["src", "unsynced_src"]);

    let tap = Tap::of(&element, None);
    let rig = Rig::of(element.clone(), false);
    rig.begin().speech(0, 2000).silence(2000, 40_000);
    tap.out.wait(|all| !buffers(all).is_empty());
    at_once("a release", || element.release_request_pad(&tap.pad));
    rig.speech(40_000, 42_000);
    let said = rig.finish();

    assert_eq!(texts(&said).len(), 2);
    assert_eq!(names(&element), ["src", "unsynced_src"]);
    assert_eq!(asked.windows(), (2, 1));
}

#[test]
fn a_pad_that_goes_while_its_push_is_held_up_lets_the_stream_go_on() {
    german("t_held");
    let element = transcriber("t_held");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element.clone(), false);
    let probe = tap.pad.add_probe(
        gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER,
        |_, _| gst::PadProbeReturn::Ok,
    );
    rig.begin().speech(0, 2000).silence(2000, 40_000);
    eventually("it is held up", || tap.pad.is_blocking());

    at_once("a release", || element.release_request_pad(&tap.pad));
    rig.speech(40_000, 42_000);

    assert!(probe.is_some());
    assert_eq!(texts(&rig.finish()).len(), 2);
}

#[test]
fn an_element_stops_at_once_whose_pad_is_held_up() {
    german("t_held_stop");
    let element = transcriber("t_held_stop");
    let tap = Tap::of(&element, None);
    let rig = Rig::of(element, false);
    let mask = gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER;
    tap.pad.add_probe(mask, |_, _| gst::PadProbeReturn::Ok);
    rig.begin().speech(0, 2000).silence(2000, 40_000);
    eventually("it is held up", || tap.pad.is_blocking());

    rig.stop();

    assert!(buffers(&tap.out.all()).is_empty());
}

#[test]
fn a_pad_can_ask_for_english_while_it_plays() {
    german("t_changes");
    let element = transcriber("t_changes");
    let tap = Tap::of(&element, Some("fr"));
    let rig = Rig::of(element, false);
    rig.begin().speech(0, 2000).silence(2000, 40_000);
    rig.out.wait(|all| !buffers(all).is_empty());

    tap.pad.set_property("language-code", "en");
    tap.out.wait(|all| has(all, gst::EventType::Tag));
    rig.speech(40_000, 42_000);
    let said = rig.finish();

    assert_eq!(texts(&said).len(), 2);
    let out = tap.out.wait_eos();
    assert_eq!(texts(&out), ["one two three"]);
    assert!(words(&out)[0].1 >= 39_900);
    assert_continuous(&out, ms(0));
}

#[test]
fn the_language_of_a_pad_can_be_set_in_a_line_of_gst_launch() {
    init();
    german("t_line");
    let pipeline = gst::parse::launch(
        "appsrc ! scribetranscriber name=t model=fake:t_line vad-model=fake: translate_src_0::language-code=fr \
         t.src ! fakesink t.translate_src_0 ! queue ! fakesink",
    )
    .unwrap();
    let bin = pipeline.downcast::<gst::Bin>().unwrap();
    let element = bin.by_name("t").unwrap();
    let pad = element.static_pad("translate_src_0").unwrap();

    assert_eq!(pad.property::<String>("language-code"), "fr");
    let proxy = element.dynamic_cast_ref::<gst::ChildProxy>().unwrap();
    assert_eq!(proxy.children_count(), 4);
    proxy.set_child_property("translate_src_0::language-code", "en");
    assert_eq!(pad.property::<String>("language-code"), "en");
}

#[test]
fn latency_is_told_on_these_pads_too() {
    german("t_latency");
    let element = transcriber("t_latency");
    element.set_property("latency", 3000u32);
    let tap = Tap::of(&element, None);
    let _rig = Rig::of(element, true);
    let mut query = gst::query::Latency::new();

    assert!(tap.pad.query(&mut query));

    assert_eq!(query.result(), (true, ms(3010), None));
}

// Live.

const WORD_MS: u64 = 300;
const PAUSE_MS: u64 = 120;

/// Sound of a live source, at the pace of the models.
struct Talk {
    rig: Rig,
    at: std::cell::Cell<u64>,
    heard_ms: std::cell::Cell<u64>,
}

impl Talk {
    fn of(element: gst::Element) -> Self {
        let rig = Rig::of(element, true);
        rig.begin();
        Self {
            rig,
            at: Default::default(),
            heard_ms: Default::default(),
        }
    }

    fn push(&self, length: u64, level: f32) {
        for _ in 0..length / 20 {
            self.rig.push(sound(self.at.get(), 20, level)).unwrap();
            self.at.set(self.at.get() + 20);
            self.heard_ms.set(self.heard_ms.get() + 20);
            if self.at.get().is_multiple_of(100) {
                self.settle();
            }
        }
    }

    fn settle(&self) {
        let wanted = self.heard_ms.get() as f64 / 1000.0 - 0.001;
        eventually("the models answer", || {
            let stats = self.rig.element.property::<gst::Structure>("stats");
            stats.get::<f64>("audio-seconds").unwrap() >= wanted
                && stats.get::<u64>("in-work").unwrap() == 0
        });
    }

    fn words(&self, numbers: impl IntoIterator<Item = u64>) -> &Self {
        for number in numbers {
            self.push(WORD_MS, number as f32 / 100.0);
            self.push(PAUSE_MS, 0.0);
        }
        self
    }

    fn quiet(&self, ms: u64) -> &Self {
        self.push(ms, 0.0);
        self
    }
}

fn names(letter: char, numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers
        .into_iter()
        .map(|n| format!("{letter}{n}"))
        .collect()
}

#[test]
fn translations_come_while_somebody_speaks() {
    let (element, _) = hearing("t_live");
    let taps = [Tap::of(&element, None), Tap::of(&element, Some("en"))];
    let french = Tap::of(&element, Some("fr"));
    let talk = Talk::of(element);

    talk.quiet(1000).words(2..22);
    let soon = texts(&taps[0].out.all());
    talk.quiet(2000);
    let end = assert_continuous(&talk.rig.out.all(), ms(0));
    let silent = assert_continuous(&french.out.all(), ms(0));
    let before_the_end = texts(&taps[0].out.all());
    let said = talk.rig.finish();

    assert!(soon.len() >= 13, "{soon:?}");
    assert_eq!(before_the_end, names('e', 2..22));
    assert_eq!(texts(&said), names('w', 2..22));
    assert!(
        silent.mseconds().abs_diff(end.mseconds()) <= 1000,
        "{silent} for {end}"
    );
    for tap in &taps {
        let out = tap.out.wait_eos();
        assert_eq!(texts(&out), names('e', 2..22));
        assert_continuous(&out, ms(0));
        for (mine, its) in words(&out).iter().zip(words(&said)) {
            assert!(mine.1.abs_diff(its.1) <= 20, "{mine:?} for {its:?}");
        }
    }
    assert!(buffers(&french.out.wait_eos()).is_empty());
}

#[test]
fn live_english_is_decoded_once() {
    let (element, asked) = hearing("t_live_en");
    element.set_property("language-code", "en");
    let tap = Tap::of(&element, None);
    let talk = Talk::of(element);

    talk.quiet(1000).words(2..12).quiet(2000);
    let said = talk.rig.finish();

    assert_eq!(texts(&tap.out.wait_eos()), names('w', 2..12));
    assert_eq!(words(&tap.out.all()), words(&said));
    assert_eq!(asked.windows().1, 0);
}

#[test]
fn live_flush_forgets_on_all_pads() {
    let (element, _) = hearing("t_live_flush");
    let tap = Tap::of(&element, None);
    let talk = Talk::of(element);
    talk.quiet(500).words(2..12);

    talk.rig.event(gst::event::FlushStart::new());
    talk.rig.event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    talk.rig.event(gst::event::Segment::new(&segment));
    talk.at.set(0);
    talk.heard_ms.set(0);
    talk.quiet(700).words(20..30).quiet(2000);
    talk.rig.finish();
    let out = tap.out.wait_eos();

    assert_eq!(texts(&out), names('e', 20..30));
    assert_continuous(&out, ms(0));
    assert!(discont(&buffers(&out)[0]));
}

#[test]
fn a_pad_asked_for_while_it_plays_begins_where_the_others_are() {
    let (element, asked) = hearing("t_joins");
    let talk = Talk::of(element.clone());
    talk.quiet(500).words(2..12).quiet(2000);
    assert_eq!(asked.windows().1, 0);

    let tap = Tap::of(&element, Some("en"));
    tap.out.wait(|all| has(all, gst::EventType::Tag));
    let start = segment_of(&tap.out.all());
    talk.words(12..22).quiet(2000);
    let second = Tap::of(&element, Some("en"));
    second.out.wait(|all| has(all, gst::EventType::Tag));
    talk.words(22..32).quiet(2000);
    let said = talk.rig.finish();
    let (out, late) = (tap.out.wait_eos(), second.out.wait_eos());

    assert_eq!(texts(&said), names('w', 2..32));
    assert_eq!(texts(&out), names('e', 12..32));
    assert_eq!(texts(&late), names('e', 22..32));
    let first = ["stream-start", "caps", "segment", "tag"].map(str::to_owned);
    for all in [&out, &late] {
        assert_eq!(order(all)[..4], first);
        assert!(discont(&buffers(all)[0]));
        let segment = segment_of(all);
        assert_continuous(all, segment.start().unwrap());
        // Running times are those of the others.
        assert_eq!(segment.base(), segment.start());
        assert_eq!(segment.time(), segment.start());
    }
    assert!(start.start() > Some(ms(4000)), "{start:?}");
    let times = words(&out);
    assert!(times[0].1.abs_diff(words(&said)[10].1) <= 20, "{times:?}");
}

#[test]
fn a_pad_that_is_unlinked_while_it_plays_ends_the_translation() {
    let (element, asked) = hearing("t_leaves");
    let tap = Tap::of(&element, None);
    let talk = Talk::of(element);
    talk.quiet(500).words(2..12).quiet(2000);
    assert_eq!(texts(&tap.out.all()), names('e', 2..12));

    tap.unlink();
    talk.quiet(100);
    let before = asked.windows().1;
    talk.words(12..22).quiet(2000);
    assert_eq!(asked.windows().1, before);
    tap.pad.link(&tap.sink).unwrap();
    talk.quiet(100);
    talk.words(22..32).quiet(2000);
    talk.rig.finish();

    let mut wanted = names('e', 2..12);
    wanted.extend(names('e', 22..32));
    assert_eq!(texts(&tap.out.wait_eos()), wanted);
}

// As transcriberbin has it.

#[test]
fn a_bin_that_takes_it_to_null_for_another_language_finds_its_pads_as_they_were() {
    let hears = transcriberbin::hears("t_bin").answer;
    let mut fake = FakeSpeech::new(move |window, params| {
        let mut decoded = hears(window, params)?;
        if window.task == Task::Translate {
            for token in &mut decoded.tokens {
                token.bytes.make_ascii_uppercase();
            }
        }
        Ok(decoded)
    });
    fake.multilingual = true;
    fake.register("t_bin");
    let element = transcriber("t_bin");
    element.set_property_from_str("unit", "word");
    transcriberbin::configure(&element, 2500, 0);
    let tap = Tap::of(&element, Some("en-US"));
    assert_eq!(transcriberbin::probe(&element), Some((true, ms(2500))));

    let bin = transcriberbin::TranscriberBin::around(element, true);
    // A bin that takes an element in unlinks it.
    tap.pad.link(&tap.sink).unwrap();
    bin.say(0..5, 0, 6000);
    bin.set_language("de");
    bin.say(9..14, 6000, 12_000);
    let said = bin.finish();

    let upper: Vec<String> = texts(&said).iter().map(|t| t.to_uppercase()).collect();
    assert!(upper.len() >= 8, "{upper:?}");
    let out = tap.out.wait_eos();
    assert_eq!(texts(&out), upper);
    let starts = events(&out, gst::EventType::StreamStart).len();
    assert_eq!(starts, events(&said, gst::EventType::StreamStart).len());
}
