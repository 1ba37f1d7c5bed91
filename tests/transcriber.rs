// SPDX-License-Identifier: MPL-2.0
//! `scribetranscriber` on fake engines: what goes in as sound and events comes out as words in their places.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use gst::prelude::*;
use gstscribe::inference::fake::{self, FakeSpeech};
use gstscribe::inference::{EngineError, Token};
use gstscribe::transcript::Transcript;
use gstscribe::transcript::formats::{self, Format, Options};

fn segment(start: u64, base: u64, time: u64) -> gst::FormattedSegment<gst::ClockTime> {
    let mut segment = gst::FormattedSegment::new();
    segment.set_start(ms(start));
    segment.set_base(ms(base));
    segment.set_time(ms(time));
    segment
}

fn about(value: u64, wanted: u64) -> bool {
    value.abs_diff(wanted) <= 150
}

// Sound.

#[test]
fn text_begins_where_the_speech_begins() {
    says("begins", "hello world");
    let rig = Rig::new("begins");

    rig.begin()
        .silence(0, 5000)
        .speech(5000, 6000)
        .silence(6000, 8000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["hello world"]);
    let start = buffers(&out)[0].pts().unwrap().mseconds();
    assert!(about(start, 5000), "{start} ms");
    assert_eq!(assert_continuous(&out, ms(0)), ms(8000));
}

#[test]
fn sound_of_every_kind_is_heard_at_the_same_time() {
    says("kinds", "one two three");
    for (format, bytes) in [
        ("S16LE", 2),
        ("F32LE", 4),
        ("S32LE", 4),
        ("U8", 1),
        ("F64LE", 8),
    ] {
        for rate in [8_000u64, 44_100, 48_000] {
            for channels in [1usize, 2, 6] {
                let kind = format!("{format} {rate} Hz {channels} channels");
                let rig = Rig::new("kinds");
                let mask = match channels {
                    1 => "",
                    2 => ",channel-mask=(bitmask)3",
                    _ => ",channel-mask=(bitmask)0x3f",
                };
                let caps = format!(
                    "audio/x-raw,format={format},rate={rate},channels={channels},layout=interleaved{mask}"
                );
                rig.begin_with(&caps, &segment(0, 0, 0));
                for n in 0..40 {
                    let level = if (10..30).contains(&n) { 0.5 } else { 0.0 };
                    let data: Vec<u8> = tone(rate, 100, level)
                        .flat_map(|s| std::iter::repeat_n(sample(format, s), channels))
                        .flatten()
                        .collect();
                    assert_eq!(data.len() as u64, rate / 10 * (channels * bytes) as u64);
                    rig.push(buffer(data, n * 100)).unwrap();
                }
                let out = rig.finish();

                let words = words(&out);
                assert_eq!(words.len(), 3, "{kind}: {words:?}");
                assert!(
                    about(words[0].1, 1000) && about(words[2].2, 3000),
                    "{kind}: {words:?}"
                );
                let end = assert_continuous(&out, ms(0)).mseconds();
                assert!(end.abs_diff(4000) < 40, "{kind}: ends at {end} ms");
            }
        }
    }
}

fn sample(format: &str, value: f32) -> Vec<u8> {
    match format {
        "U8" => vec![(value * 127.0 + 128.0) as u8],
        "S16LE" => ((value * 32_767.0) as i16).to_le_bytes().to_vec(),
        "S32LE" => ((f64::from(value) * f64::from(i32::MAX)) as i32)
            .to_le_bytes()
            .to_vec(),
        "F64LE" => f64::from(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

#[test]
fn a_gap_buffer_is_silence_in_every_format() {
    says("gap_buffer", "made up");
    for format in ["U8", "S16LE", "F32LE"] {
        let rig = Rig::new("gap_buffer");
        let caps = format!("audio/x-raw,format={format},rate=16000,channels=1,layout=interleaved");
        rig.begin_with(&caps, &segment(0, 0, 0));

        for n in 0..20 {
            // What a GAP buffer holds is not to be read.
            let data: Vec<u8> = tone(16_000, 100, 0.5)
                .flat_map(|s| sample(format, s))
                .collect();
            let mut gap = buffer(data, n * 100);
            gap.get_mut().unwrap().set_flags(gst::BufferFlags::GAP);
            rig.push(gap).unwrap();
        }

        assert_eq!(texts(&rig.finish()), [""; 0], "{format}");
    }
}

#[test]
fn empty_and_broken_buffers_do_no_harm() {
    says("odd", "still here");
    let rig = Rig::new("odd");
    rig.begin();

    rig.push(gst::Buffer::new()).unwrap();
    rig.push(buffer(vec![1, 2, 3], 0)).unwrap();
    rig.speech(0, 1000);
    let mut discont = buffer(Vec::new(), 1000);
    discont
        .get_mut()
        .unwrap()
        .set_flags(gst::BufferFlags::DISCONT);
    rig.push(discont).unwrap();
    let mut odd: Vec<u8> = tone(16_000, 100, 0.3).flat_map(f32::to_le_bytes).collect();
    odd.extend([0, 0, 0]);
    rig.push(buffer(odd, 1000)).unwrap();
    for at in 0..400 {
        rig.push(buffer(
            0.3f32.to_le_bytes().repeat(4).clone(),
            1100 + at / 4,
        ))
        .unwrap();
    }
    let not_finite: Vec<u8> = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30]
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect();
    rig.push(buffer(not_finite, 1200)).unwrap();
    let out = rig.finish();

    assert_eq!(texts(&out), ["still here"]);
    assert_continuous(&out, ms(0));
}

#[test]
fn buffers_without_times_follow_on() {
    says("no_pts", "later on");
    let rig = Rig::new("no_pts");
    rig.begin_with(F32_16K, &segment(20_000, 0, 20_000));

    for n in 0..30 {
        let mut sound = sound(0, 100, if n < 10 { 0.0 } else { 0.3 });
        sound.get_mut().unwrap().set_pts(gst::ClockTime::NONE);
        rig.push(sound).unwrap();
    }

    let words = words(&rig.finish());
    assert!(about(words[0].1, 21_000), "{words:?}");
}

#[test]
fn a_short_hole_is_bridged_and_times_stay_right_behind_it() {
    says("short_hole", "before after");
    let rig = Rig::new("short_hole");

    rig.begin().speech(0, 1000);
    let mut after = sound(1700, 100, 0.3);
    after
        .get_mut()
        .unwrap()
        .set_flags(gst::BufferFlags::DISCONT);
    rig.push(after).unwrap();
    rig.speech(1800, 3000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["before after"]);
    let words = words(&out);
    assert!(about(words[0].1, 0) && about(words[1].2, 3000), "{words:?}");
    assert_eq!(assert_continuous(&out, ms(0)), ms(3000));
}

#[test]
fn no_word_spans_a_long_hole() {
    says("long_hole", "one two");
    let rig = Rig::new("long_hole");

    // Speech up to the very edge of the hole.
    rig.begin().speech(0, 2000).speech(12_000, 14_000);
    let out = rig.finish();

    let words = words(&out);
    assert_eq!(words.len(), 4, "{words:?}");
    assert!(words[1].2 <= 2100, "{words:?}");
    assert!(words[2].1 >= 12_000 && words[3].2 <= 14_100, "{words:?}");
    assert!(
        buffers(&out)
            .iter()
            .all(|b| b.duration().unwrap() < ms(5000))
    );
    assert_eq!(assert_continuous(&out, ms(0)), ms(14_000));
}

#[test]
fn sound_that_comes_twice_is_heard_once() {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    FakeSpeech::new(move |window, _| {
        count.fetch_add(window.samples.len(), Ordering::SeqCst);
        Ok(fake::spread("once", window))
    })
    .register("twice");
    let rig = Rig::new("twice");
    rig.begin().speech(0, 3000);

    let mut again = sound(2000, 500, 0.3);
    again
        .get_mut()
        .unwrap()
        .set_flags(gst::BufferFlags::DISCONT);
    rig.push(again).unwrap();
    rig.speech(2500, 4000);
    rig.finish();

    let heard = heard.load(Ordering::SeqCst);
    assert!(heard.abs_diff(4 * 16_000) < 1600, "{heard} samples");
}

/// Stretches of a window that are loud, with their loudness in tenths, where a pause is 300 ms of silence.
fn bursts(samples: &[f32]) -> Vec<(usize, usize, usize)> {
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    for (n, sample) in samples.iter().enumerate().filter(|(_, s)| s.abs() > 0.01) {
        let level = (sample.abs() * 10.0).round() as usize;
        match found.last_mut().filter(|last| n - last.1 < 4800) {
            Some(last) => *last = (last.0, n, last.2.max(level)),
            None => found.push((n, n, level)),
        }
    }
    found
}

#[test]
fn speech_that_the_model_jumps_over_is_heard_again() {
    let windows = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&windows);
    FakeSpeech::new(move |window, _| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut all = bursts(&window.samples);
        // Of three it leaves out the second, of two the first.
        match all.len() {
            3 => drop(all.remove(1)),
            2 => drop(all.remove(0)),
            _ => {}
        }
        let mut decoded = fake::spread("", window);
        let mut end = 0;
        for (from, to, level) in all {
            let step = (to - from) / 4;
            for n in 0..4 {
                let until = (from + (n + 1) * step) as u32;
                if until > end + 2 * 16_000 {
                    decoded.gaps.push((end, until));
                }
                end = until;
                decoded.tokens.push(Token {
                    id: (level * 10 + n) as u32,
                    bytes: format!(" w{level}{n}").into_bytes(),
                    probability: 0.9,
                    start: Some((from + n * step) as u32),
                    end: Some(until),
                });
            }
        }
        decoded.alignment_end = Some(end);
        Ok(decoded)
    })
    .register("jumps");
    let rig = Rig::new("jumps");
    rig.begin();
    rig.sound(0, 4000, 0.3).silence(4000, 5200);
    rig.sound(5200, 9200, 0.5).silence(9200, 10_400);
    rig.sound(10_400, 14_400, 0.7).silence(14_400, 15_000);

    let out = rig.finish();

    let said: Vec<String> = words(&out).into_iter().map(|w| w.0).collect();
    let wanted = [3, 5, 7].map(|level| [0, 1, 2, 3].map(|n| format!("w{level}{n}")));
    assert_eq!(said, wanted.as_flattened());
    // All, what lies behind the first, and the two by themselves.
    assert_eq!(windows.load(Ordering::SeqCst), 4);
}

#[test]
fn gap_events_are_silence_and_long_ones_move_the_text_on() {
    says("gaps", "one two three four");
    let rig = Rig::new("gaps");
    rig.begin();

    rig.event(gst::event::Gap::builder(ms(0)).duration(ms(30_000)).build());
    rig.out.wait(|all| has(all, gst::EventType::Gap));
    rig.speech(30_000, 31_000);
    rig.event(
        gst::event::Gap::builder(ms(31_000))
            .duration(ms(500))
            .build(),
    );
    rig.speech(31_500, 32_000);
    rig.event(
        gst::event::Gap::builder(ms(32_000))
            .duration(ms(60_000))
            .build(),
    );
    let mut untimed = sound(0, 1000, 0.3);
    untimed.get_mut().unwrap().set_pts(gst::ClockTime::NONE);
    rig.push(untimed).unwrap();
    rig.event(
        gst::event::Gap::builder(ms(93_000))
            .duration(ms(7_000))
            .build(),
    );
    let out = rig.finish();

    let starts: Vec<u64> = words(&out).iter().map(|w| w.1).collect();
    assert_eq!(starts.len(), 8, "{starts:?}");
    assert!(
        about(starts[0], 30_000) && about(starts[4], 92_000),
        "{starts:?}"
    );
    assert_eq!(assert_continuous(&out, ms(0)), ms(100_000));
}

#[test]
fn another_form_of_sound_in_mid_stream_goes_on_where_the_old_one_ended() {
    says("caps_change", "a b c d");
    let rig = Rig::new("caps_change");
    rig.begin().speech(0, 2000);

    let caps =
        "audio/x-raw,format=S16LE,rate=48000,channels=2,layout=interleaved,channel-mask=(bitmask)3";
    assert!(rig.event(gst::event::Caps::new(&caps.parse().unwrap())));
    for n in 20..40 {
        let data: Vec<u8> = tone(48_000, 100, 0.5)
            .flat_map(|s| sample("S16LE", s).repeat(2))
            .collect();
        rig.push(buffer(data, n * 100)).unwrap();
    }
    let out = rig.finish();

    let words = words(&out);
    assert_eq!(words.first().map(|w| w.0.as_str()), Some("a"));
    assert!(
        about(words[0].1, 0) && about(words.last().unwrap().2, 4000),
        "{words:?}"
    );
    let end = assert_continuous(&out, ms(0)).mseconds();
    assert!(end.abs_diff(4000) < 40, "{end}");
    assert_eq!(events(&out, gst::EventType::Eos).len(), 1);
}

#[test]
fn sound_before_its_caps_is_an_error() {
    says("no_caps", "x");
    let rig = Rig::new("no_caps");
    rig.event(gst::event::StreamStart::new("sound"));
    rig.event(gst::event::Segment::new(&segment(0, 0, 0)));

    let pad = rig.element.static_pad("sink").unwrap();
    let flow = pad.chain(sound(0, 100, 0.3));

    assert_eq!(flow, Err(gst::FlowError::NotNegotiated));
    assert!(rig.error().message().contains("caps"));
}

// Segments.

#[test]
fn positions_and_stream_times_follow_the_segment() {
    says("segment", "hello");
    let rig = Rig::new("segment");

    rig.begin_with(F32_16K, &segment(60_000, 5_000, 100_000));
    rig.silence(60_000, 61_000).speech(61_000, 62_000);
    let out = rig.finish();

    let pts = buffers(&out)[0].pts().unwrap().mseconds();
    assert!(about(pts, 61_000), "{pts}");
    let (_, start, end) = words(&out)[0].clone();
    assert!(
        about(start, 101_000) && about(end, 102_000),
        "{start} {end}"
    );
    let event = &events(&out, gst::EventType::Segment)[0];
    let gst::EventView::Segment(event) = event.view() else {
        unreachable!()
    };
    let forward = event.segment().downcast_ref::<gst::ClockTime>().unwrap();
    assert_eq!(forward, &segment(60_000, 5_000, 100_000));
    assert_eq!(assert_continuous(&out, ms(60_000)), ms(62_000));
}

#[test]
fn lateness_moves_the_running_time_and_nothing_else() {
    says("lateness", "hello");
    let element = transcriber("lateness");
    element.set_property("lateness", 1500u32);
    let rig = Rig::of(element, false);

    rig.begin_with(F32_16K, &segment(0, 2_000, 0))
        .speech(0, 1000);
    let out = rig.finish();

    let event = &events(&out, gst::EventType::Segment)[0];
    let gst::EventView::Segment(event) = event.view() else {
        unreachable!()
    };
    let forward = event.segment().downcast_ref::<gst::ClockTime>().unwrap();
    assert_eq!(forward.base(), Some(ms(3500)));
    assert!(about(buffers(&out)[0].pts().unwrap().mseconds(), 0));
}

#[test]
fn a_segment_without_a_stream_time_loses_no_text() {
    says("no_time", "hello");
    let rig = Rig::new("no_time");
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(ms(7000));
    segment.set_time(gst::ClockTime::NONE);

    rig.begin_with(F32_16K, &segment).speech(7000, 8000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["hello"]);
    assert!(about(buffers(&out)[0].pts().unwrap().mseconds(), 7000));
}

#[test]
fn a_segment_sent_again_leaves_the_position_where_it_is() {
    says("segment_again", "hello");
    let rig = Rig::new("segment_again");

    rig.begin().speech(0, 2000);
    rig.event(gst::event::Segment::new(&segment(0, 0, 0)));
    rig.speech(2000, 4000);
    let out = rig.finish();

    assert_eq!(assert_continuous(&out, ms(0)), ms(4000));
}

#[test]
fn what_came_under_a_segment_leaves_before_the_next_one() {
    says("two_segments", "hello");
    let rig = Rig::new("two_segments");

    rig.begin().speech(0, 1000);
    rig.event(gst::event::Segment::new(&segment(500_000, 1000, 500_000)));
    rig.speech(500_000, 501_000);
    let out = rig.finish();

    let order = order(&out);
    let second = order.iter().rposition(|o| o == "segment").unwrap();
    let texts: Vec<usize> = (0..order.len()).filter(|i| order[*i] == "hello").collect();
    assert!(texts[0] < second && second < texts[1], "{order:?}");
    let words = words(&out);
    assert!(
        about(words[0].1, 0) && about(words[1].1, 500_000),
        "{words:?}"
    );
}

#[test]
fn a_segment_in_bytes_is_an_error_with_a_remedy() {
    says("bytes", "x");
    let rig = Rig::new("bytes");
    rig.event(gst::event::StreamStart::new("sound"));
    rig.event(gst::event::Caps::new(&F32_16K.parse().unwrap()));
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<
        gst::format::Bytes,
    >::new()));

    let error = rig.error();

    assert!(error.matches(gst::StreamError::Format), "{error:?}");
    assert!(error.message().contains("put a parser"), "{error:?}");
    rig.stop();
}

// Ends.

#[test]
fn eos_waits_for_every_word() {
    let mut slow = FakeSpeech::saying("word");
    slow.delay = Duration::from_millis(200);
    let windows = Arc::clone(&slow.windows);
    slow.register("eos_drains");
    let rig = Rig::new("eos_drains");

    rig.begin();
    for n in 0..6 {
        rig.speech(n * 20_000, n * 20_000 + 15_000)
            .silence(n * 20_000 + 15_000, n * 20_000 + 20_000);
    }
    let out = rig.finish();

    assert_eq!(texts(&out).len(), windows.load(Ordering::SeqCst));
    assert!(texts(&out).len() >= 4);
    assert!(matches!(out.last(), Some(Out::Event(e)) if e.type_() == gst::EventType::Eos));
    assert_eq!(assert_continuous(&out, ms(0)), ms(120_000));
}

#[test]
fn an_empty_stream_ends() {
    says("empty", "x");
    for sound in [false, true] {
        let rig = Rig::new("empty");
        rig.begin();
        if sound {
            rig.silence(0, 100);
        }

        let out = rig.finish();

        assert_eq!(texts(&out), [""; 0]);
    }
    let rig = Rig::new("empty");
    rig.event(gst::event::StreamStart::new("sound"));
    rig.finish();
}

#[test]
fn segment_done_drains_and_goes_on() {
    says("segment_done", "hello");
    let rig = Rig::new("segment_done");

    rig.begin().speech(0, 1000);
    rig.event(gst::event::SegmentDone::new(ms(1000)));
    let out = rig.out.wait(|all| has(all, gst::EventType::SegmentDone));

    assert_eq!(texts(&out), ["hello"]);
    rig.event(gst::event::Segment::new(&segment(0, 1000, 0)));
    rig.speech(0, 1000);
    assert_eq!(texts(&rig.finish()), ["hello", "hello"]);
}

#[test]
fn a_second_stream_follows_the_first() {
    says("second_stream", "hello");
    let rig = Rig::new("second_stream");

    rig.begin().speech(0, 1000);
    rig.event(gst::event::StreamStart::new("another"));
    rig.event(gst::event::Caps::new(&F32_16K.parse().unwrap()));
    rig.event(gst::event::Segment::new(&segment(0, 1000, 0)));
    rig.speech(0, 1000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["hello", "hello"]);
    let ids: Vec<_> = events(&out, gst::EventType::StreamStart)
        .iter()
        .map(|e| match e.view() {
            gst::EventView::StreamStart(e) => e.stream_id().to_owned(),
            _ => unreachable!(),
        })
        .collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    // Tags belong to a stream: the second one hears its language too.
    assert_eq!(events(&out, gst::EventType::Tag).len(), 2);
}

// Flushes and states.

#[test]
fn a_flush_in_mid_inference_returns_at_once_and_leaves_nothing_old() {
    let mut stubborn = FakeSpeech::new(|window, _| Ok(fake::spread("text", window)));
    stubborn.delay = Duration::from_secs(10);
    stubborn.heeds_cancel = false;
    let windows = Arc::clone(&stubborn.windows);
    let running = Arc::clone(&stubborn.lanes);
    stubborn.register("stubborn_flush");
    says("quick_flush", "text");
    let rig = Rig::new("stubborn_flush");
    rig.begin().speech(0, 35_000);
    eventually("a window runs", || running.load(Ordering::SeqCst) > 0);

    at_once("a flush", || {
        assert!(rig.event(gst::event::FlushStart::new()));
        assert!(rig.event(gst::event::FlushStop::new(true)));
    });
    rig.event(gst::event::Segment::new(&segment(50_000, 0, 50_000)));
    rig.speech(50_000, 51_000);
    at_once("NULL", || rig.element.set_state(gst::State::Null).unwrap());

    assert_eq!(texts(&rig.out.all()), [""; 0]);
    assert_eq!(windows.load(Ordering::SeqCst), 0);
}

#[test]
fn words_after_a_flush_have_the_new_times() {
    says("flush_times", "text");
    let rig = Rig::new("flush_times");
    rig.begin().speech(0, 35_000);

    rig.event(gst::event::FlushStart::new());
    assert_eq!(rig.push(sound(0, 100, 0.3)), Err(gst::FlowError::Flushing));
    rig.event(gst::event::FlushStop::new(true));
    rig.event(gst::event::Segment::new(&segment(100_000, 0, 100_000)));
    rig.speech(100_000, 102_000);
    let out = rig.finish();

    let words = words(&out);
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(about(words[0].1, 100_000), "{words:?}");
    assert!(buffers(&out)[0].flags().contains(gst::BufferFlags::DISCONT));
    assert_eq!(assert_continuous(&out, ms(100_000)), ms(102_000));
}

/// A tone without end, the transcriber, and a sink.
fn tone_pipeline(element: &gst::Element) -> (gst::Pipeline, Recorder) {
    let pipeline = gst::Pipeline::new();
    let source = gst::ElementFactory::make("audiotestsrc")
        .property("samplesperbuffer", 1600i32)
        .property("volume", 0.3f64)
        .build()
        .unwrap();
    let caps = gst::ElementFactory::make("capsfilter")
        .property("caps", F32_16K.parse::<gst::Caps>().unwrap())
        .build()
        .unwrap();
    let sink = gst::ElementFactory::make("fakesink")
        .property("sync", false)
        .build()
        .unwrap();
    pipeline.add_many([&source, &caps, element, &sink]).unwrap();
    gst::Element::link_many([&source, &caps, element, &sink]).unwrap();
    let out = Recorder::on(&sink.static_pad("sink").unwrap());
    (pipeline, out)
}

fn seek(pipeline: &gst::Pipeline, from: u64, to: u64) {
    at_once("a seek", || {
        pipeline
            .seek(
                1.0,
                gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE,
                gst::SeekType::Set,
                ms(from),
                gst::SeekType::Set,
                ms(to),
            )
            .unwrap();
    });
}

fn assert_words_between(out: &[Out], from: u64, to: u64) {
    let words = words(out);
    assert!(!words.is_empty());
    // Words are no longer than people speak them: the tone's few lie anywhere within.
    assert!(
        words.iter().all(|w| w.1 >= from && w.2 <= to + 100),
        "{words:?}"
    );
}

#[test]
fn stream_times_are_right_after_a_seek_in_paused_and_in_playing() {
    says("seeks", "some words here");
    let (pipeline, out) = tone_pipeline(&transcriber("seeks"));
    pipeline.set_state(gst::State::Paused).unwrap();
    pipeline
        .state(gst::ClockTime::try_from(GUARD).unwrap())
        .0
        .unwrap();

    seek(&pipeline, 100_000, 110_000);
    pipeline.set_state(gst::State::Playing).unwrap();
    assert_words_between(&out.wait_eos(), 100_000, 110_000);

    seek(&pipeline, 3_000, 60_000);
    assert_words_between(&out.wait_eos(), 3_000, 60_000);
    seek(&pipeline, 0, 600_000);
    out.wait(|all| !buffers(all).is_empty());
    seek(&pipeline, 7_000, 9_000);
    assert_words_between(&out.wait_eos(), 7_000, 9_000);

    at_once("NULL", || pipeline.set_state(gst::State::Null).unwrap());
}

#[test]
fn fifty_seeks_on_end_leave_the_last_ones_words() {
    let mut slow = FakeSpeech::saying("some words here");
    slow.delay = Duration::from_millis(15);
    slow.register("fifty");
    let (pipeline, out) = tone_pipeline(&transcriber("fifty"));
    pipeline.set_state(gst::State::Playing).unwrap();

    for n in 0..50u64 {
        seek(&pipeline, n * 1000, n * 1000 + 45_000);
        if n % 7 == 0 {
            out.wait(|all| !buffers(all).is_empty());
        }
    }

    assert_words_between(&out.wait_eos(), 49_000, 94_000);
    at_once("NULL", || pipeline.set_state(gst::State::Null).unwrap());
}

#[test]
fn a_seek_while_inference_runs_and_heeds_nothing_returns_at_once() {
    let mut stubborn = FakeSpeech::saying("x");
    stubborn.delay = Duration::from_secs(10);
    stubborn.heeds_cancel = false;
    let lanes = Arc::clone(&stubborn.lanes);
    stubborn.register("stubborn_seek");
    let (pipeline, _) = tone_pipeline(&transcriber("stubborn_seek"));
    pipeline.set_state(gst::State::Playing).unwrap();
    eventually("a window runs", || lanes.load(Ordering::SeqCst) > 0);

    seek(&pipeline, 50_000, 60_000);
    seek(&pipeline, 70_000, 80_000);

    at_once("NULL", || pipeline.set_state(gst::State::Null).unwrap());
}

#[test]
fn two_hundred_quick_changes_of_state_hang_nothing() {
    let mut slow = FakeSpeech::saying("some words");
    slow.delay = Duration::from_millis(20);
    slow.register("states");
    let (pipeline, out) = tone_pipeline(&transcriber("states"));
    let states = [
        gst::State::Playing,
        gst::State::Paused,
        gst::State::Ready,
        gst::State::Playing,
        gst::State::Null,
        gst::State::Paused,
        gst::State::Playing,
        gst::State::Ready,
    ];

    for n in 0..200 {
        at_once("a state change", || {
            pipeline.set_state(states[n % states.len()]).unwrap()
        });
        if n % 16 == 3 {
            out.wait(|all| !buffers(all).is_empty());
        }
        std::thread::sleep(Duration::from_millis(n as u64 % 5));
    }
    out.clear();
    pipeline.set_state(gst::State::Playing).unwrap();
    seek(&pipeline, 5_000, 8_000);

    assert_words_between(&out.wait_eos(), 5_000, 8_000);
    at_once("NULL", || pipeline.set_state(gst::State::Null).unwrap());
}

#[test]
fn null_while_the_model_loads_returns_at_once() {
    let mut slow = FakeSpeech::saying("x");
    slow.load_delay = Duration::from_secs(10);
    slow.register("slow_load");
    let rig = Rig::new("slow_load");
    rig.begin().speech(0, 1000);
    rig.event(gst::event::Eos::new());
    std::thread::sleep(Duration::from_millis(100));

    rig.stop();

    let kinds: Vec<_> = rig
        .messages()
        .iter()
        .filter_map(|m| match m.view() {
            gst::MessageView::Progress(p) => Some(p.get().0),
            _ => None,
        })
        .collect();
    assert_eq!(
        kinds,
        [gst::ProgressType::Start, gst::ProgressType::Canceled]
    );
}

#[test]
fn a_full_element_holds_upstream_until_it_is_stopped() {
    let mut stubborn = FakeSpeech::saying("x");
    stubborn.delay = Duration::from_secs(10);
    stubborn.heeds_cancel = false;
    stubborn.register("full");
    let element = transcriber("full");
    element.set_property("max-buffered", 2000u32);
    let rig = Rig::of(element, false);
    rig.begin();
    let pad = rig.src.clone();
    let pusher =
        std::thread::spawn(move || (0..).find_map(|n| pad.push(sound(n * 1000, 1000, 0.3)).err()));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!pusher.is_finished());

    rig.stop();

    assert_eq!(pusher.join().unwrap(), Some(gst::FlowError::Flushing));
}

#[test]
fn stopping_from_a_sync_handler_neither_hangs_nor_confuses_the_next_run() {
    says("sync_stop", "hello");
    let rig = Rig::new("sync_stop");
    let element = rig.element.downgrade();
    let once = AtomicUsize::new(0);
    rig.bus.set_sync_handler(move |_, message| {
        let is_text = message
            .structure()
            .is_some_and(|s| s.name() == "scribe/transcript");
        if is_text && once.fetch_add(1, Ordering::SeqCst) == 0 {
            let element = element.upgrade().unwrap();
            element.set_state(gst::State::Null).unwrap();
            element.set_state(gst::State::Playing).unwrap();
        }
        gst::BusSyncReply::Pass
    });
    rig.begin().speech(0, 1000);
    rig.event(gst::event::Eos::new());
    eventually("the element starts anew", || {
        rig.element.current_state() == gst::State::Playing
            && rig
                .src
                .peer()
                .unwrap()
                .sticky_event::<gst::event::Eos>(0)
                .is_none()
            && rig.out.all().len() > 3
    });

    rig.out.clear();
    rig.src.set_active(false).unwrap();
    rig.src.set_active(true).unwrap();
    rig.begin().speech(0, 1000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["hello"]);
    assert_eq!(events(&out, gst::EventType::Eos).len(), 1);
    rig.bus.unset_sync_handler();
}

// Errors.

/// ERRORs that the transcriber itself has posted.
fn errors_of(messages: &[gst::Message], element: &gst::Element) -> usize {
    messages
        .iter()
        .filter(|m| m.type_() == gst::MessageType::Error && m.src() == Some(element.upcast_ref()))
        .count()
}

/// Sound and EOS into `rig`: refused as soon as the error is known.
fn feed(rig: &Rig) {
    rig.begin();
    for n in 0..20 {
        if rig.push(sound(n * 100, 100, 0.3)).is_err() {
            return;
        }
    }
    rig.event(gst::event::Eos::new());
}

#[test]
fn the_error_is_told_before_upstream_is_refused() {
    FakeSpeech::new(|_, _| {
        Err(EngineError::Failed {
            what: "decoding".into(),
            why: "a test".into(),
        })
    })
    .register("told_first");
    let rig = Rig::new("told_first");
    let (pad, flow) = (rig.src.clone(), Arc::new(Mutex::new(None)));
    let seen = Arc::clone(&flow);
    rig.bus.set_sync_handler(move |_, message| {
        if message.type_() == gst::MessageType::Error {
            *seen.lock().unwrap() = Some(pad.push(sound(1000, 100, 0.3)));
        }
        gst::BusSyncReply::Pass
    });

    // A window at once, and no EOS, behind which a pad takes nothing.
    rig.begin().speech(0, 1000);
    rig.event(gst::event::SegmentDone::new(ms(1000)));
    rig.error();

    assert_eq!(*flow.lock().unwrap(), Some(Ok(gst::FlowSuccess::Ok)));
    eventually("upstream is refused", || {
        rig.push(sound(1000, 100, 0.3)) == Err(gst::FlowError::Error)
    });
    rig.bus.unset_sync_handler();
}

#[test]
fn a_model_that_cannot_be_used_is_one_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = std::fs::read(repository("models/ggml-tiny.en-q8_0.bin")).unwrap_or_default();
    let truncated = &whole[..whole.len() / 2];
    let mut cases = vec![
        ("a wrong name", "tinny.en".to_owned(), "tiny.en"),
        (
            "no file",
            "/nowhere/ggml-tiny.bin".to_owned(),
            "scribe-models",
        ),
        (
            "a directory",
            folder.path().to_str().unwrap().to_owned(),
            "is a folder",
        ),
        (
            "an empty file",
            file("empty.bin", b""),
            "get or copy it anew",
        ),
        (
            "a foreign file",
            file("foreign.bin", &b"RIFF and so on ".repeat(100)),
            "scribe-models fetch",
        ),
        (
            "an unknown fake",
            "fake:nobody".to_owned(),
            "no fake model named nobody",
        ),
    ];
    if !truncated.is_empty() {
        cases.push((
            "a truncated file",
            file("cut.bin", truncated),
            "scribe-models fetch",
        ));
    }
    for (what, model, remedy) in cases {
        let element = transcriber("unused");
        element.set_property("model", &model);
        let rig = Rig::of(element, false);

        feed(&rig);
        let error = rig.error();

        let text = error.message();
        assert!(text.contains(remedy), "{what}: {text}");
        // No second one comes, however much is pushed.
        eventually("sound is refused", || rig.push(sound(0, 100, 0.3)).is_err());
        rig.stop();
        assert_eq!(errors_of(&rig.messages(), &rig.element), 0, "{what}");
        assert!(!has(&rig.out.all(), gst::EventType::Eos), "{what}");
    }
}

#[test]
fn after_an_error_null_and_a_mended_property_make_it_work() {
    says("mended", "all is well");
    let rig = Rig::new("not_there_yet");
    feed(&rig);
    rig.error();
    rig.stop();

    rig.element.set_property("model", "fake:mended");
    rig.src.set_active(false).unwrap();
    rig.src.set_active(true).unwrap();
    rig.out.clear();
    rig.element.set_state(gst::State::Playing).unwrap();
    rig.begin().speech(0, 1000);

    assert_eq!(texts(&rig.finish()), ["all is well"]);
}

#[test]
fn a_failed_load_is_told_to_everyone_and_tried_again_later() {
    let mut broken = FakeSpeech::saying("x");
    broken.load_delay = Duration::from_millis(100);
    broken.load_error = Some(EngineError::OutOfMemory {
        what: "loading".into(),
    });
    let loads = Arc::clone(&broken.loads);
    broken.register("breaks");
    let registry = registry();
    let rigs = [(); 3].map(|()| Rig::of(transcriber_with(&registry, "breaks"), false));
    for rig in &rigs {
        let error = rig.error();
        assert!(error.matches(gst::ResourceError::NoSpaceLeft), "{error:?}");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);

    says("breaks", "now it works");
    rigs[0].stop();
    rigs[0].element.set_state(gst::State::Playing).unwrap();
    rigs[0].begin().speech(0, 1000);

    assert_eq!(texts(&rigs[0].finish()), ["now it works"]);
}

#[test]
fn a_flush_after_an_error_begins_anew() {
    let calls = AtomicUsize::new(0);
    FakeSpeech::new(move |window, _| {
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(EngineError::Failed {
                what: "decoding".into(),
                why: "a test".into(),
            });
        }
        Ok(fake::spread("second try", window))
    })
    .register("flush_after_error");
    let rig = Rig::new("flush_after_error");
    feed(&rig);
    let error = rig.error();
    assert!(
        error.message().contains("decoding failed: a test"),
        "{error:?}"
    );

    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    rig.event(gst::event::Segment::new(&segment(0, 0, 0)));
    rig.speech(0, 1000);

    assert_eq!(texts(&rig.finish()), ["second try"]);
}

#[test]
fn an_engine_that_fails_or_panics_stops_its_own_stream_alone() {
    for (name, panics) in [("fails_midway", false), ("panics_midway", true)] {
        let calls = AtomicUsize::new(0);
        FakeSpeech::new(move |window, _| {
            let loud = window.samples.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            // The bad stream is the loud one.
            if loud > 0.5 && calls.fetch_add(1, Ordering::SeqCst) == 1 {
                assert!(!panics, "as the test wants");
                return Err(EngineError::Failed {
                    what: "decoding".into(),
                    why: "a test".into(),
                });
            }
            Ok(fake::spread("word", window))
        })
        .register(name);
        let registry = registry();
        let bad = Rig::of(transcriber_with(&registry, name), false);
        let good = Rig::of(transcriber_with(&registry, name), false);
        bad.begin();
        good.begin();

        for n in 0..900 {
            let _ = bad.push(sound(n * 100, 100, 0.9));
            good.push(sound(n * 100, 100, 0.3)).unwrap();
        }
        let error = bad.error();
        let out = good.finish();

        assert!(error.matches(gst::LibraryError::Failed), "{error:?}");
        assert!(texts(&out).len() >= 3);
        assert_eq!(assert_continuous(&out, ms(0)), ms(90_000));
        assert_eq!(errors_of(&good.messages(), &good.element), 0);
    }
}

#[test]
fn a_language_the_model_does_not_know_is_an_error_that_names_what_to_do() {
    says("english_only", "x");
    let element = transcriber("english_only");
    element.set_property("language-code", "de-DE");
    let rig = Rig::of(element, false);

    let error = rig.error();

    assert!(error.matches(gst::LibraryError::Settings), "{error:?}");
    assert!(
        error.message().contains("set language-code to en"),
        "{error:?}"
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused_on_the_way_to_ready() {
    let element = transcriber("unused");
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    element.set_property("vad-threshold", 0.3f64);
    element.set_property("vad-neg-threshold", 0.6f64);

    assert!(element.set_state(gst::State::Ready).is_err());

    assert!(error_on(&bus).message().contains("vad-neg-threshold"));
    element.set_property("vad-neg-threshold", 0.2f64);
    element.set_state(gst::State::Ready).unwrap();
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn what_downstream_answers_reaches_upstream() {
    says("flow", "hello");
    for (answer, errors) in [
        (gst::FlowError::Eos, 0),
        (gst::FlowError::Flushing, 0),
        (gst::FlowError::Error, 1),
        (gst::FlowError::NotNegotiated, 1),
    ] {
        let element = transcriber("flow");
        element.set_property("max-buffered", 5_000u32);
        let rig = Rig::of(element, false);
        *rig.flow.lock().unwrap() = Err(answer);
        rig.begin();

        let mut at = 0;
        let mut flow = Ok(gst::FlowSuccess::Ok);
        while flow.is_ok() && at < 600_000 {
            // Long enough for a window, with a pause that ends it.
            let level = if at % 20_000 < 15_000 { 0.3 } else { 0.0 };
            flow = rig.push(sound(at, 100, level));
            at += 100;
        }

        assert_eq!(flow, Err(answer));
        rig.stop();
        assert_eq!(
            errors_of(&rig.messages(), &rig.element),
            errors,
            "{answer:?}"
        );
    }
}

// Queries and what transcriberbin does.

fn latency(pad: &gst::Pad) -> Option<(bool, gst::ClockTime)> {
    let mut query = gst::query::Latency::new();
    pad.query(&mut query)
        .then(|| (query.result().0, query.result().1))
}

#[test]
fn latency_is_added_for_live_sources_alone() {
    says("latency", "x");
    for (live, wanted) in [(false, 10), (true, 10 + 2500)] {
        let element = transcriber("latency");
        element.set_property("latency", 2500u32);
        let rig = Rig::of(element, live);
        rig.begin();

        let answer = latency(&rig.element.static_pad("src").unwrap());

        assert_eq!(answer, Some((live, ms(wanted))));
    }
}

#[test]
fn another_latency_is_told_to_the_pipeline() {
    says("latency_change", "x");
    let rig = Rig::new("latency_change");
    rig.messages();

    rig.element.set_property("latency", 3000u32);

    assert!(
        rig.messages()
            .iter()
            .any(|m| m.type_() == gst::MessageType::Latency)
    );
}

#[test]
fn the_contract_of_transcribers_is_kept_to_the_type() {
    let element = transcriber("unused");

    for name in ["latency", "lateness"] {
        assert_eq!(
            element.find_property(name).unwrap().value_type(),
            u32::static_type()
        );
    }
    let language = element.find_property("language-code").unwrap();
    assert_eq!(language.value_type(), String::static_type());
}

#[test]
fn the_probe_of_transcriberbin_is_answered_and_loads_nothing_twice() {
    let mut model = FakeSpeech::saying("x");
    model.load_delay = Duration::from_millis(200);
    let loads = Arc::clone(&model.loads);
    model.register("probe");
    let element = transcriber("probe");
    element.set_property("latency", 2000u32);
    for _ in 0..3 {
        let source = gst::ElementFactory::make("fakesrc")
            .property("is-live", true)
            .build()
            .unwrap();
        source.link(&element).unwrap();

        at_once("the probe", || {
            element.set_state(gst::State::Paused).unwrap();
            let answer = latency(&element.src_pads()[0]);
            assert_eq!(answer.map(|a| a.0), Some(true));
            assert!(answer.unwrap().1 >= ms(2000));
            source.unlink(&element);
            assert_eq!(latency(&element.src_pads()[0]), None);
            element.set_state(gst::State::Null).unwrap();
        });
    }

    let rig = Rig::of(element, false);
    rig.begin().speech(0, 1000);
    assert_eq!(texts(&rig.finish()), ["x"]);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_live_source_that_is_heard_as_a_file_gets_one_warning() {
    says("live", "hello");
    let element = transcriber("live");
    element.set_property_from_str("mode", "file");
    let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
    let bus = gst::Bus::new();
    h.element().unwrap().set_bus(Some(&bus));
    h.set_src_caps_str(F32_16K);

    for n in 0..20 {
        h.push(sound(n * 100, 100, 0.3)).unwrap();
    }
    let mut again = gst::FormattedSegment::<gst::ClockTime>::new();
    again.set_base(ms(2000));
    h.push_event(gst::event::Segment::new(&again));
    h.push_event(gst::event::Eos::new());

    let text = h.pull().unwrap();
    assert_eq!(text_of(&text), "hello");
    let warnings = std::iter::from_fn(|| bus.pop())
        .filter(|m| m.type_() == gst::MessageType::Warning)
        .count();
    assert_eq!(warnings, 1);
}

#[test]
fn live_sound_is_dropped_rather_than_held_up() {
    let mut stubborn = FakeSpeech::saying("x");
    stubborn.load_delay = Duration::from_secs(10);
    stubborn.register("live_full");
    let element = transcriber("live_full");
    element.set_property("max-buffered", 2000u32);
    let rig = Rig::of(element, true);
    rig.begin();

    at_once("a minute of live sound", || {
        for n in 0..600 {
            rig.push(sound(n * 100, 100, 0.3)).unwrap();
        }
    });

    rig.stop();
}

// What comes out.

#[test]
fn word_buffers_lie_end_to_end_with_gaps_and_say_that_they_are_words() {
    says("unit_word", "one two three");
    let element = transcriber("unit_word");
    element.set_property_from_str("unit", "word");
    let rig = Rig::of(element, false);

    rig.begin()
        .silence(0, 1000)
        .speech(1000, 3000)
        .silence(3000, 5000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["one", "two", "three"]);
    for buffer in buffers(&out) {
        let read = gstscribe::meta::read(&buffer).unwrap();
        assert_eq!(read.unit, gstscribe::meta::Unit::Word);
        assert_eq!(read.cue.words.len(), 1);
        assert_eq!(read.cue.start.0, buffer.pts().unwrap().nseconds());
    }
    assert_eq!(assert_continuous(&out, ms(0)), ms(5000));
}

#[test]
fn markup_is_written_where_downstream_takes_nothing_else() {
    says("markup", "R&D <now>");
    for (takes, wanted) in [
        ("text/x-raw,format=pango-markup", "R&amp;D &lt;now&gt;"),
        ("text/x-raw,format=utf8", "R&D <now>"),
        ("text/x-raw,format={pango-markup,utf8}", "R&D <now>"),
    ] {
        let rig = Rig::with_caps(transcriber("markup"), false, Some(takes));

        rig.begin().speech(0, 1500);
        let out = rig.finish();

        assert_eq!(texts(&out), [wanted], "{takes}");
        let caps = events(&out, gst::EventType::Caps);
        let gst::EventView::Caps(caps) = caps[0].view() else {
            unreachable!()
        };
        assert!(
            takes
                .parse::<gst::Caps>()
                .unwrap()
                .can_intersect(&caps.caps_owned())
        );
    }
}

#[test]
fn downstream_may_change_to_markup_in_mid_stream() {
    says("reconfigure", "R&D");
    let rig = Rig::with_caps(
        transcriber("reconfigure"),
        false,
        Some("text/x-raw,format=utf8"),
    );
    rig.begin().speech(0, 1500);
    rig.event(
        gst::event::Gap::builder(ms(1500))
            .duration(ms(60_000))
            .build(),
    );
    rig.out.wait(|all| !texts(all).is_empty());

    *rig.takes.lock().unwrap() = Some("text/x-raw,format=pango-markup".parse().unwrap());
    rig.sink.push_event(gst::event::Reconfigure::new());
    rig.speech(61_500, 63_000);
    let out = rig.finish();

    assert_eq!(texts(&out), ["R&D", "R&amp;D"]);
    assert_eq!(events(&out, gst::EventType::Caps).len(), 2);
}

#[test]
fn sound_played_backwards_gives_no_text_and_one_warning() {
    says("backwards", "forwards");
    let rig = Rig::new("backwards");
    let mut backwards = segment(0, 0, 0);
    backwards.set_stop(ms(3000));
    backwards.set_rate(-1.0);

    rig.begin_with(F32_16K, &backwards);
    for at in (0..30).rev() {
        rig.push(sound(at * 100, 100, 0.3)).unwrap();
    }
    rig.event(gst::event::Segment::new(&segment(0, 3000, 0)));
    rig.speech(0, 1500);
    let out = rig.finish();

    assert_eq!(texts(&out), ["forwards"]);
    let warnings = rig
        .messages()
        .iter()
        .filter(|m| m.type_() == gst::MessageType::Warning)
        .count();
    assert_eq!(warnings, 1);
}

#[test]
fn events_come_in_the_order_that_transcribers_keep() {
    says("order", "hello");
    let rig = Rig::new("order");

    rig.begin().speech(0, 1000);
    let mut tags = gst::TagList::new();
    let edit = tags.get_mut().unwrap();
    edit.add::<gst::tags::Title>(&"A talk", gst::TagMergeMode::Append);
    edit.add::<gst::tags::AudioCodec>(&"FLAC", gst::TagMergeMode::Append);
    edit.add::<gst::tags::Bitrate>(&64_000, gst::TagMergeMode::Append);
    rig.event(gst::event::Tag::new(tags));
    rig.event(gst::event::CustomDownstream::new(
        gst::Structure::new_empty("marker"),
    ));
    rig.speech(1000, 2000);
    let out = rig.finish();

    let order: Vec<String> = order(&out).into_iter().filter(|o| o != "gap").collect();
    assert_eq!(
        order,
        [
            "stream-start",
            "caps",
            "segment",
            "tag",
            "hello",
            "rstranscribe/final-transcript",
            "tag",
            "marker",
            "eos",
        ]
    );
    let tags = events(&out, gst::EventType::Tag);
    let list = |n: usize| match tags[n].view() {
        gst::EventView::Tag(e) => e.tag_owned(),
        _ => unreachable!(),
    };
    assert_eq!(
        list(0).get::<gst::tags::LanguageCode>().unwrap().get(),
        "en"
    );
    assert_eq!(list(1).get::<gst::tags::Title>().unwrap().get(), "A talk");
    assert_eq!(list(1).n_tags(), 1);
}

#[test]
fn the_text_stream_is_sparse_and_of_the_same_group() {
    says("group", "x");
    let rig = Rig::new("group");
    let group = gst::GroupId::next();
    rig.event(
        gst::event::StreamStart::builder("sound")
            .group_id(group)
            .build(),
    );
    let out = rig.finish();

    let start = events(&out, gst::EventType::StreamStart);
    let gst::EventView::StreamStart(start) = start[0].view() else {
        unreachable!()
    };
    assert_eq!(start.group_id(), Some(group));
    assert!(start.stream_flags().contains(gst::StreamFlags::SPARSE));
    assert_ne!(start.stream_id(), "sound");
}

#[test]
fn channels_of_their_own_are_speakers_of_their_own() {
    says("separate", "hello there");
    let element = transcriber("separate");
    element.set_property_from_str("channels", "separate");
    let rig = Rig::of(element, false);
    let caps =
        "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved,channel-mask=(bitmask)3";
    rig.begin_with(caps, &segment(0, 0, 0));

    // Left speaks, then right, then neither: the silent one must not hold the other's words.
    for n in 0..120u64 {
        let level = |from: u64| {
            if (from..from + 20).contains(&n) {
                0.3
            } else {
                0.0
            }
        };
        let data = tone(16_000, 100, level(10))
            .zip(tone(16_000, 100, level(60)))
            .flat_map(|(l, r)| [l.to_le_bytes(), r.to_le_bytes()].concat())
            .collect();
        rig.push(buffer(data, n * 100)).unwrap();
    }
    let out = rig.finish();

    let cues: Vec<_> = buffers(&out)
        .iter()
        .map(|b| gstscribe::meta::read(b).unwrap().cue)
        .map(|c| {
            (
                c.speaker.unwrap(),
                c.speaker_id.unwrap(),
                c.start.0 / MS / 1000,
            )
        })
        .collect();
    assert_eq!(
        cues,
        [
            ("Channel 1".to_owned(), "channel-1".to_owned(), 1),
            ("Channel 2".to_owned(), "channel-2".to_owned(), 6),
        ]
    );
    let order = order(&out);
    let changes = order
        .iter()
        .filter(|o| *o == "rstranscribe/speaker-change")
        .count();
    assert_eq!(changes, 2, "{order:?}");
    assert_eq!(assert_continuous(&out, ms(0)), ms(12_000));
}

#[test]
fn a_channel_that_says_nothing_keeps_no_words_back() {
    says("one_sided", "hello there");
    let element = transcriber("one_sided");
    element.set_property_from_str("channels", "separate");
    let rig = Rig::of(element, false);
    let caps =
        "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved,channel-mask=(bitmask)3";
    rig.begin_with(caps, &segment(0, 0, 0));

    for n in 0..20 {
        let data = tone(16_000, 100, 0.3)
            .flat_map(|l| [l.to_le_bytes(), 0f32.to_le_bytes()].concat())
            .collect();
        rig.push(buffer(data, n * 100)).unwrap();
    }
    // From here on there is one channel alone.
    rig.event(gst::event::Caps::new(&F32_16K.parse().unwrap()));
    rig.speech(2000, 4000);

    let words = words(&rig.finish());
    assert!(words.len() >= 2, "{words:?}");
    assert!(words.last().unwrap().2 > 2500, "{words:?}");
}

#[test]
fn messages_are_posted_unless_they_are_not_wanted() {
    says("messages", "hello");
    for wanted in [true, false] {
        let element = transcriber("messages");
        element.set_property("post-messages", wanted);
        let rig = Rig::of(element, false);
        rig.begin().speech(0, 1000);
        rig.finish();

        let messages = rig.messages();
        let names: Vec<String> = messages
            .iter()
            .filter(|m| m.type_() == gst::MessageType::Element)
            .map(|m| m.structure().unwrap().name().to_string())
            .collect();

        assert_eq!(
            names.contains(&"scribe/transcript".into()),
            wanted,
            "{names:?}"
        );
        assert_eq!(
            names.contains(&"scribe/progress".into()),
            wanted,
            "{names:?}"
        );
        let transcript = messages
            .iter()
            .filter_map(|m| m.structure())
            .find(|s| s.name() == "scribe/transcript");
        if let Some(s) = transcript {
            assert_eq!(s.get::<&str>("text"), Ok("hello"));
            assert_eq!(s.get::<bool>("final"), Ok(true));
            assert!(s.get::<u64>("end").unwrap() > s.get::<u64>("start").unwrap());
        }
    }
}

#[test]
fn stats_tell_what_was_done_and_stay_after_the_end() {
    says("stats", "one two three");
    let rig = Rig::new("stats");
    rig.begin().silence(0, 1000).speech(1000, 3000);
    rig.finish();
    rig.stop();

    let stats = rig.element.property::<gst::Structure>("stats");

    assert_eq!(stats.get::<&str>("engine"), Ok("fake:stats on fake"));
    assert_eq!(stats.get::<u64>("words"), Ok(3));
    assert_eq!(stats.get::<u64>("windows"), Ok(1));
    assert!(
        (stats.get::<f64>("audio-seconds").unwrap() - 3.0).abs() < 0.1,
        "{stats}"
    );
    assert!(
        (stats.get::<f64>("speech-seconds").unwrap() - 2.0).abs() < 0.3,
        "{stats}"
    );
}

#[test]
fn the_encoder_writes_what_the_metas_hold() {
    says("round_trip", "Hello there, my friends. This is a test.");
    let rig = Rig::new("round_trip");
    rig.begin()
        .speech(0, 4000)
        .silence(4000, 7000)
        .speech(7000, 11_000)
        .silence(11_000, 12_000);
    let out = rig.finish();

    let mut h = gst_check::Harness::new("scribeenc");
    h.element().unwrap().set_property_from_str("format", "json");
    h.set_src_caps_str("text/x-raw,format=utf8");
    for one in &out {
        match one {
            Out::Buffer(b) => drop(h.push(b.clone()).unwrap()),
            Out::Event(e) if e.type_() == gst::EventType::Gap => drop(h.push_event(e.clone())),
            Out::Event(_) => {}
        }
    }
    h.push_event(gst::event::Eos::new());
    let mut written = Vec::new();
    while let Some(buffer) = h.try_pull() {
        written.extend_from_slice(&buffer.map_readable().unwrap());
    }

    let cues: Vec<_> = buffers(&out)
        .iter()
        .map(|b| gstscribe::meta::read(b).unwrap().cue)
        .collect();
    assert!(cues.len() >= 2);
    let transcript = Transcript {
        cues,
        duration: gstscribe::audio::StreamNs(12_000 * MS),
        ..Transcript::default()
    };
    let mut wanted = Vec::new();
    formats::write(Format::Json, &transcript, &Options::default(), &mut wanted).unwrap();
    assert_eq!(
        String::from_utf8(written).unwrap(),
        String::from_utf8(wanted).unwrap()
    );
}

#[test]
fn whatever_times_an_engine_gives_the_text_lies_end_to_end() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::new(proptest::test_runner::Config {
        cases: 24,
        failure_persistence: None,
        ..Default::default()
    });
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let token = (0u32..500_000, 0u32..500_000, any::<bool>(), any::<bool>());
    let windows = prop::collection::vec(token, 1..40);

    runner
        .run(&(windows, any::<bool>()), |(times, as_words)| {
            let name = format!("random_{}", COUNT.fetch_add(1, Ordering::SeqCst));
            FakeSpeech::new(move |window, _| {
                let mut decoded = fake::spread(&"word ".repeat(times.len()), window);
                for (token, (start, end, timed, spaced)) in decoded.tokens.iter_mut().zip(&times) {
                    token.start = timed.then_some(*start);
                    token.end = timed.then_some(*end);
                    if !spaced {
                        token.bytes = b"part".to_vec();
                    }
                }
                Ok(decoded)
            })
            .register(&name);
            let element = transcriber(&name);
            element.set_property_from_str("unit", if as_words { "word" } else { "cue" });
            let rig = Rig::of(element, false);

            rig.begin()
                .speech(0, 12_000)
                .silence(12_000, 14_000)
                .speech(14_000, 18_000);
            let out = rig.finish();

            assert!(assert_continuous(&out, ms(0)) >= ms(18_000));
            for b in buffers(&out) {
                let cue = gstscribe::meta::read(&b).unwrap().cue;
                assert!(
                    cue.words.windows(2).all(|w| w[0].start <= w[1].start),
                    "{cue:?}"
                );
                assert!(!text_of(&b).trim().is_empty());
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn text_in_many_scripts_and_split_characters_arrive_whole() {
    FakeSpeech::new(|window, _| {
        let mut decoded = fake::spread("a b c d", window);
        for (token, bytes) in decoded
            .tokens
            .iter_mut()
            .zip(["你", "好", "é", "😀"].map(str::as_bytes))
        {
            token.bytes = bytes.to_vec();
        }
        // The last character comes in two halves.
        let last = decoded.tokens.pop().unwrap();
        for half in [&last.bytes[..2], &last.bytes[2..]] {
            decoded.tokens.push(Token {
                bytes: half.to_vec(),
                ..last.clone()
            });
        }
        decoded.language = "zh".into();
        Ok(decoded)
    })
    .register("scripts");
    let rig = Rig::new("scripts");

    rig.begin().speech(0, 2000);

    assert_eq!(texts(&rig.finish()), ["你好é😀"]);
}

// Several elements.

#[test]
fn two_transcribers_behind_a_tee_share_one_load() {
    let mut model = FakeSpeech::saying("shared words");
    model.load_delay = Duration::from_millis(200);
    let loads = Arc::clone(&model.loads);
    model.register("tee");
    let pipeline = gst::Pipeline::new();
    pipeline.set_context(&gstscribe::context::registry_context(&registry()));
    let make = |name: &str| gst::ElementFactory::make(name).build().unwrap();
    let source = make("audiotestsrc");
    source.set_property("num-buffers", 30i32);
    source.set_property("samplesperbuffer", 16_000i32);
    let caps = make("capsfilter");
    caps.set_property("caps", F32_16K.parse::<gst::Caps>().unwrap());
    let tee = make("tee");
    pipeline.add_many([&source, &caps, &tee]).unwrap();
    gst::Element::link_many([&source, &caps, &tee]).unwrap();
    let outs: Vec<Recorder> = (0..2)
        .map(|_| {
            let (queue, sink) = (make("queue"), make("fakesink"));
            let element = make("scribetranscriber");
            element.set_property("model", "fake:tee");
            element.set_property("vad-model", "fake:");
            sink.set_property("sync", false);
            pipeline.add_many([&queue, &element, &sink]).unwrap();
            gst::Element::link_many([&tee, &queue, &element, &sink]).unwrap();
            Recorder::on(&sink.static_pad("sink").unwrap())
        })
        .collect();

    pipeline.set_state(gst::State::Playing).unwrap();
    let texts: Vec<Vec<String>> = outs.iter().map(|out| texts(&out.wait_eos())).collect();
    pipeline.set_state(gst::State::Null).unwrap();

    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(!texts[0].is_empty());
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_pipeline_that_is_dropped_leaves_no_element_behind() {
    let mut slow = FakeSpeech::saying("x");
    slow.delay = Duration::from_millis(300);
    slow.register("dropped");
    let element = transcriber("dropped");
    let weak = element.downgrade();
    let (pipeline, out) = tone_pipeline(&element);
    pipeline.set_state(gst::State::Playing).unwrap();
    out.wait(|all| !buffers(all).is_empty());

    pipeline.set_state(gst::State::Null).unwrap();
    drop((pipeline, element));

    eventually("the element is gone", || weak.upgrade().is_none());
}

// Programs.

fn gst_launch(arguments: &[&str]) -> std::process::Command {
    // Interrupted after a minute, with its own status: gst-launch-1.0 ends its main loop where an ERROR is posted, on
    // whatever thread that is, and never ends if the loop was not yet running then (docs/troubleshooting.md). A pipeline
    // that hangs elsewhere does not heed the interrupt and is killed.
    let mut command = std::process::Command::new("timeout");
    command
        .args(["--preserve-status", "--signal=INT", "--kill-after=60", "60"])
        .arg("gst-launch-1.0")
        .args(arguments)
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env(
            "GST_REGISTRY",
            repository("target/test-registry-transcriber.bin"),
        )
        .env("LC_ALL", "C");
    command
}

#[test]
fn gst_launch_ends_with_an_error_where_there_is_no_such_model() {
    if !there(&plugin(), "make build") || !runs("gst-launch-1.0", &["--version"], "make setup") {
        return;
    }

    let out = gst_launch(&[
        "audiotestsrc",
        "!",
        "scribetranscriber",
        "model=tinny.en",
        "!",
        "fakesink",
    ])
    .output()
    .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    // The first: audiotestsrc has one of its own to tell when it is refused.
    let error = said.split("ERROR: ").nth(1).unwrap_or_default();
    assert!(
        error.contains("tiny.en") && error.contains("scribe-models"),
        "{said}"
    );
}

#[test]
fn a_process_ends_with_its_own_status_though_an_engine_heeds_nothing() {
    const STALL: Duration = Duration::from_secs(120);
    let name = "a_process_ends_with_its_own_status_though_an_engine_heeds_nothing";
    if std::env::var_os("SCRIBE_END_CHILD").is_some() {
        let running = Arc::new(AtomicUsize::new(0));
        let entered = Arc::clone(&running);
        FakeSpeech::new(move |window, _| {
            entered.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(STALL);
            Ok(fake::spread("never", window))
        })
        .register("stalls");
        let rig = Rig::new("stalls");
        rig.begin().speech(0, 1000);
        rig.event(gst::event::Eos::new());
        eventually("the engine runs", || running.load(Ordering::SeqCst) > 0);
        drop(rig);
        std::process::exit(7);
    }

    let began = std::time::Instant::now();
    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("SCRIBE_END_CHILD", "1")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "{said}");
    assert!(began.elapsed() < STALL / 2, "it waited for the engine");
}

#[test]
fn nothing_leaks_in_a_run_with_an_end_a_seek_and_an_error() {
    if std::env::var_os("SCRIBE_LEAK_CHILD").is_some() {
        leak_child();
        return;
    }

    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "nothing_leaks_in_a_run_with_an_end_a_seek_and_an_error",
            "--nocapture",
        ])
        .env("SCRIBE_LEAK_CHILD", "1")
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let leaks: Vec<&str> = said
        .lines()
        .filter(|l| l.contains("object-alive,") && l.contains("address=(gpointer)0x"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[allow(unsafe_code, reason = "the end of GStreamer is")]
fn leak_child() {
    says("leaks", "hello");
    let rig = Rig::new("leaks");
    rig.begin().speech(0, 1000);
    rig.finish();
    drop(rig);
    let rig = Rig::new("no_such_fake");
    feed(&rig);
    rig.error();
    drop(rig);
    let (pipeline, out) = tone_pipeline(&transcriber("leaks"));
    pipeline.set_state(gst::State::Playing).unwrap();
    seek(&pipeline, 5_000, 9_000);
    out.wait_eos();
    pipeline.set_state(gst::State::Null).unwrap();
    out.clear();
    drop((pipeline, out));
    // SAFETY: nothing of GStreamer is used behind this; the leak tracer reports here.
    unsafe { gst::deinit() };
}
