// SPDX-License-Identifier: MPL-2.0
//! `scribeenc` in a pipeline: what goes in as buffers and events comes out as a file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Once;

use gst::prelude::*;
use gstscribe::audio::{RunningNs, StreamNs};
use gstscribe::meta;
use gstscribe::transcript::cues::{Bounds, CueStyle, arrange, spread};
use gstscribe::transcript::formats::{self, Format, Options, json};
use gstscribe::transcript::{Cue, Segment, SegmentInfo, Transcript, Turn};

const MS: u64 = 1_000_000;
const UTF8: &str = "text/x-raw,format=utf8";

fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gstscribe::plugin_register_static().unwrap();
    });
}

#[test]
fn text_without_a_meta_becomes_cues_at_its_times() {
    let mut h = harness("vtt", UTF8);

    push(&mut h, "Hello & welcome.", 1000, Some(1500));
    push(&mut h, "No duration", 3000, None);
    h.push_event(gst::event::Eos::new());

    assert_eq!(
        output(&mut h),
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.500\nHello &amp; welcome.\n\n\
         00:00:03.000 --> 00:00:04.000\nNo duration\n\n"
    );
}

#[test]
fn streamed_formats_give_each_cue_as_it_comes() {
    for format in Format::ALL.into_iter().filter(|f| !f.is_document()) {
        let mut h = harness(format.as_str(), UTF8);

        push(&mut h, "First", 0, Some(1000));

        assert!(output(&mut h).contains("First"), "{format}");
        push(&mut h, "Second", 1000, Some(1000));
        assert!(output(&mut h).contains("Second"), "{format}");
    }
}

#[test]
fn document_formats_come_whole_at_eos() {
    for format in [Format::Json, Format::Ttml] {
        let mut h = harness(format.as_str(), UTF8);

        push(&mut h, "First", 0, Some(1000));
        assert_eq!(output(&mut h), "", "{format}");
        h.push_event(gst::event::Eos::new());

        assert!(output(&mut h).contains("First"), "{format}");
    }
}

#[test]
fn an_empty_stream_gives_a_valid_empty_file_in_every_format() {
    for format in Format::ALL {
        let mut h = harness(format.as_str(), UTF8);

        h.push_event(gst::event::Eos::new());

        assert_eq!(
            output(&mut h),
            file(format, &Transcript::default()),
            "{format}"
        );
        let last = std::iter::from_fn(|| h.try_pull_event()).last().unwrap();
        assert_eq!(last.type_(), gst::EventType::Eos);
    }
}

#[test]
fn a_stream_that_ends_before_it_begins_gives_a_file_too() {
    init();
    let enc = gst::ElementFactory::make("scribeenc")
        .property_from_str("format", "json")
        .build()
        .unwrap();
    let mut h = gst_check::Harness::with_element(&enc, None, Some("src"));
    h.play();

    let sink = enc.static_pad("sink").unwrap();
    sink.send_event(gst::event::StreamStart::new("a"));
    sink.send_event(gst::event::Eos::new());

    assert_eq!(output(&mut h), file(Format::Json, &Transcript::default()));
}

#[test]
fn words_and_figures_of_the_meta_are_in_the_file_byte_for_byte() {
    let transcript = transcript();
    for format in Format::ALL {
        let mut h = harness(format.as_str(), UTF8);
        for turn in &transcript.turns {
            let mut buffer = text_buffer("name", 0, Some(1));
            meta::write_turn(buffer.make_mut(), turn);
            h.push(buffer).unwrap();
        }
        for cue in &transcript.cues {
            h.push(cue_buffer(cue)).unwrap();
        }
        let end = ms(transcript.duration.0 / MS);
        h.push_event(
            gst::event::Gap::builder(end)
                .duration(gst::ClockTime::NSECOND)
                .build(),
        );
        h.push_event(gst::event::Eos::new());

        assert_eq!(output(&mut h), file(format, &transcript), "{format}");
    }
}

#[test]
fn single_words_become_the_cues_that_they_were() {
    let transcript = Transcript {
        turns: Vec::new(),
        ..transcript()
    };
    let mut h = harness("json", UTF8);

    for cue in &transcript.cues {
        for word in &cue.words {
            let mut one = cue.clone();
            one.words = vec![word.clone()];
            one.lines = vec![word.text.trim().to_owned()];
            (one.start, one.end) = (word.start, word.end);
            let mut buffer = text_buffer(
                word.text.trim(),
                word.start.0 / MS,
                Some((word.end.0 - word.start.0) / MS),
            );
            meta::write_word(buffer.make_mut(), &one);
            h.push(buffer).unwrap();
        }
    }
    let end = ms(transcript.duration.0 / MS);
    h.push_event(
        gst::event::Gap::builder(end)
            .duration(gst::ClockTime::NSECOND)
            .build(),
    );
    h.push_event(gst::event::Eos::new());

    assert_eq!(output(&mut h), file(Format::Json, &transcript));
}

#[test]
fn words_of_other_elements_are_cut_into_cues_on_request() {
    let mut h = harness("vtt", UTF8);
    h.element().unwrap().set_property_from_str("cues", "make");

    // The language says where a line reads well.
    let mut tags = gst::TagList::new();
    tags.make_mut()
        .add::<gst::tags::LanguageCode>(&"en", gst::TagMergeMode::Replace);
    h.push_event(gst::event::Tag::new(tags));

    let text =
        "The quick brown fox jumps over the lazy dog and runs into the dark wood. Then it sleeps.";
    for (n, word) in text.split(' ').enumerate() {
        push(&mut h, word, n as u64 * 300, Some(250));
    }
    h.push_event(gst::event::Eos::new());

    let text = output(&mut h);
    assert_eq!(text.matches("-->").count(), 2, "{text}");
    assert!(text.contains("\nThen it sleeps.\n"), "{text}");
    assert!(text.contains("jumps over\nthe lazy dog and"), "{text}");
}

#[test]
fn waiting_words_leave_in_a_pause() {
    let mut h = harness("vtt", UTF8);
    h.element().unwrap().set_property_from_str("cues", "make");
    push(&mut h, "Unfinished", 0, Some(500));
    assert!(!output(&mut h).contains("Unfinished"));

    h.push_event(gst::event::Gap::builder(ms(500)).duration(ms(2000)).build());

    assert!(output(&mut h).contains("00:00:00.000 --> 00:00:01.000\nUnfinished\n"));
}

#[test]
fn markup_is_taken_off() {
    let mut h = harness("text", "text/x-raw,format=pango-markup");

    push(&mut h, "<i>R&amp;D</i> &lt;now&gt;", 0, Some(1000));
    h.push_event(gst::event::Eos::new());

    assert_eq!(output(&mut h), "R&D <now>\n");
}

#[test]
fn cues_are_in_stream_time() {
    let mut h = harness("vtt", UTF8);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(ms(10_000));
    segment.set_time(ms(60_000));
    h.push_event(gst::event::Segment::new(&segment));

    push(&mut h, "Moved", 11_000, Some(1000));
    push(&mut h, "Before the segment", 1000, Some(1000));
    h.push_event(gst::event::Eos::new());

    let text = output(&mut h);
    assert!(
        text.contains("00:01:01.000 --> 00:01:02.000\nMoved\n"),
        "{text}"
    );
    assert!(!text.contains("Before"), "{text}");
}

#[test]
fn after_a_flush_the_file_begins_anew() {
    for format in [Format::Vtt, Format::Json] {
        let mut h = harness(format.as_str(), UTF8);
        push(&mut h, "Void", 0, Some(1000));
        output(&mut h);

        h.push_event(gst::event::FlushStart::new());
        h.push_event(gst::event::FlushStop::new(true));
        h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<
            gst::ClockTime,
        >::new()));
        push(&mut h, "Valid", 500, Some(1000));
        h.push_event(gst::event::Eos::new());

        let text = output(&mut h);
        let start = if format == Format::Vtt {
            "WEBVTT\n"
        } else {
            "{\n"
        };
        assert!(
            text.starts_with(start) && text.contains("Valid") && !text.contains("Void"),
            "{text}"
        );
    }
}

#[test]
fn a_flush_drops_words_that_wait() {
    let mut h = harness("text", UTF8);
    h.element().unwrap().set_property_from_str("cues", "make");
    push(&mut h, "Waiting", 0, Some(500));

    h.push_event(gst::event::FlushStart::new());
    h.push_event(gst::event::FlushStop::new(true));
    h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<
        gst::ClockTime,
    >::new()));
    h.push_event(gst::event::Eos::new());

    assert_eq!(output(&mut h), "");
}

#[test]
fn segment_done_gives_out_words_that_wait() {
    let mut h = harness("text", UTF8);
    h.element().unwrap().set_property_from_str("cues", "make");
    push(&mut h, "Waiting", 0, Some(500));

    h.push_event(gst::event::SegmentDone::new(ms(1000)));

    assert_eq!(output(&mut h), "Waiting");
}

#[test]
fn a_relabel_mends_a_document() {
    let mut h = harness("json", UTF8);
    for cue in &transcript().cues {
        h.push(cue_buffer(cue)).unwrap();
    }

    let relabel = gst::Structure::builder("scribe/relabel")
        .field("old-id", "B")
        .field("new-id", "C")
        .field("name", "Grace")
        .field("from", 0_u64)
        .build();
    h.push_event(gst::event::CustomDownstream::new(relabel));
    h.push_event(gst::event::Eos::new());

    let document = json::read(&output(&mut h)).unwrap();
    let mended: Vec<_> = document
        .segments
        .iter()
        .flat_map(|s| &s.words)
        .filter_map(|w| w.speaker.as_deref())
        .collect();
    assert!(mended.contains(&"Grace"));
}

#[test]
fn turns_alone_make_an_rttm() {
    let mut h = harness("rttm", UTF8);
    let mut buffer = text_buffer("Ada Lovelace", 500, Some(1000));
    let turn = Turn {
        speaker_id: "A".into(),
        speaker: Some("Ada Lovelace".into()),
        start: StreamNs(500 * MS),
        end: StreamNs(1500 * MS),
        confidence: 1.0,
    };
    meta::write_turn(buffer.make_mut(), &turn);

    h.push(buffer).unwrap();
    h.push_event(gst::event::Eos::new());

    assert_eq!(
        output(&mut h),
        "SPEAKER audio 1 0.500 1.000 <NA> <NA> Ada_Lovelace <NA> <NA>\n"
    );
}

#[test]
fn a_guess_is_not_written() {
    let mut h = harness("vtt", UTF8);
    let mut buffer = text_buffer("Perhaps", 0, Some(1000));
    let cue = transcript().cues.remove(0);

    meta::write_as(buffer.make_mut(), &cue, meta::Unit::Cue, false);
    h.push(buffer).unwrap();
    h.push_event(gst::event::Eos::new());

    assert_eq!(output(&mut h), "WEBVTT\n\n");
}

#[test]
fn downstream_caps_choose_the_format() {
    let cases = [
        ("application/ttml+xml", "<?xml"),
        ("application/x-ndjson", "{\"type\":\"start\""),
        ("application/x-subtitle-vtt-fragmented", "WEBVTT"),
        ("text/plain", "Hello"),
    ];
    for (caps, start) in cases {
        init();
        let mut h = gst_check::Harness::new("scribeenc");
        h.set_caps_str(UTF8, caps);

        push(&mut h, "Hello", 0, Some(1000));
        h.push_event(gst::event::Eos::new());

        let text = output(&mut h);
        assert!(text.starts_with(start), "{caps}: {text}");
    }
}

#[test]
fn a_format_that_downstream_refuses_is_one_error_with_the_remedy() {
    init();
    let pipeline = gst::parse::launch("appsrc name=in format=time caps=text/x-raw,format=utf8 ! scribeenc format=srt ! application/json ! fakesink").unwrap();
    let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
    let source = pipeline
        .by_name("in")
        .unwrap()
        .downcast::<gst_app::AppSrc>()
        .unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let _ = source.push_buffer(text_buffer("x", 0, Some(100)));

    let bus = pipeline.bus().unwrap();
    let message = bus
        .timed_pop_filtered(gst::ClockTime::from_seconds(20), &[gst::MessageType::Error])
        .unwrap();
    pipeline.set_state(gst::State::Null).unwrap();

    let gst::MessageView::Error(err) = message.view() else {
        unreachable!()
    };
    assert!(err.error().matches(gst::CoreError::Negotiation));
    assert!(err.error().to_string().contains("srt"), "{}", err.error());
    while let Some(message) = bus.pop() {
        if let gst::MessageView::Error(err) = message.view() {
            assert!(
                !err.src().unwrap().name().starts_with("scribeenc"),
                "{}",
                err.error()
            );
        }
    }
}

#[test]
fn text_that_is_no_utf8_is_an_error_and_no_panic() {
    init();
    let mut h = harness("vtt", UTF8);
    let bus = gst::Bus::new();
    h.element().unwrap().set_bus(Some(&bus));
    let mut buffer = gst::Buffer::from_slice([0xff_u8, 0xfe, 0x80]);
    buffer.make_mut().set_pts(ms(0));

    assert_eq!(h.push(buffer), Err(gst::FlowError::Error));

    let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(err) = message.view() else {
        unreachable!()
    };
    assert!(err.error().matches(gst::StreamError::Decode));
}

#[test]
fn a_segment_that_counts_bytes_is_an_error() {
    init();
    let mut h = harness("vtt", UTF8);
    let bus = gst::Bus::new();
    h.element().unwrap().set_bus(Some(&bus));

    h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<
        gst::format::Bytes,
    >::new()));

    let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(err) = message.view() else {
        unreachable!()
    };
    assert!(err.error().matches(gst::StreamError::Format));
}

#[test]
fn hls_gets_a_header_and_the_running_cue_in_each_fragment() {
    init();
    let mut h = gst_check::Harness::new("scribeenc");
    h.set_caps_str(UTF8, "application/x-subtitle-vtt-fragmented");
    push(&mut h, "Long", 1000, Some(5000));
    output(&mut h);
    let request = gst::Structure::builder("GstForceKeyUnit")
        .field("running-time", ms(4000))
        .field("all-headers", true)
        .field("count", 0_u32)
        .build();

    h.push_upstream_event(gst::event::CustomUpstream::new(request));
    push(&mut h, "Next", 7000, Some(1000));

    assert_eq!(
        output(&mut h),
        "WEBVTT\n\n00:00:01.000 --> 00:00:06.000\nLong\n\n00:00:07.000 --> 00:00:08.000\nNext\n\n"
    );
}

/// What a program or `multifilesink next-file=buffer` makes files of.
fn fragments(h: &mut gst_check::Harness) -> Vec<(u64, u64, u64, String)> {
    let mut all = Vec::new();
    while let Some(buffer) = h.try_pull() {
        let text = String::from_utf8(buffer.map_readable().unwrap().to_vec()).unwrap();
        let (at, length) = (buffer.pts().unwrap(), buffer.duration().unwrap());
        all.push((buffer.offset(), at.mseconds(), length.mseconds(), text));
    }
    all
}

fn fragmenter() -> gst_check::Harness {
    init();
    let mut h = gst_check::Harness::new("scribeenc");
    h.element()
        .unwrap()
        .set_property("fragment-duration", 6000_u32);
    h.set_src_caps_str(UTF8);
    h
}

fn gap(h: &mut gst_check::Harness, start_ms: u64, length_ms: u64) {
    let gap = gst::event::Gap::builder(ms(start_ms)).duration(ms(length_ms));
    assert!(h.push_event(gap.build()));
}

#[test]
fn fragments_of_equal_length_come_when_time_has_passed_them() {
    let mut h = fragmenter();

    push(&mut h, "First", 1000, Some(1000));
    push(&mut h, "Over", 5500, Some(1000));
    let first = fragments(&mut h);
    gap(&mut h, 6500, 5400);
    assert_eq!(fragments(&mut h), [], "a word may still come");
    gap(&mut h, 11_900, 6200);
    let rest = fragments(&mut h);
    push(&mut h, "Last", 18_500, Some(700));
    assert_eq!(fragments(&mut h), []);
    h.push_event(gst::event::Eos::new());
    let last = fragments(&mut h);

    let caps = h.sinkpad().unwrap().current_caps().unwrap();
    let name = caps.structure(0).unwrap().name().to_string();
    assert_eq!(name, "application/x-subtitle-vtt-fragmented");
    let map = |second: u64| {
        format!(
            "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:{second:02}.000,MPEGTS:{}\n\n",
            (3600 + second) * 90_000
        )
    };
    let over = "00:00:05.500 --> 00:00:06.500\nOver\n\n";
    let text = format!("{}00:00:01.000 --> 00:00:02.000\nFirst\n\n{over}", map(0));
    assert_eq!(first, [(0, 0, 6000, text)]);
    let silent = (2, 12_000, 6000, map(12));
    assert_eq!(rest, [(1, 6000, 6000, map(6) + over), silent]);
    let text = map(18) + "00:00:18.500 --> 00:00:19.200\nLast\n\n";
    assert_eq!(last, [(3, 18_000, 1200, text)]);
}

/// The transport stream counts running time, whatever the recording's own time is.
#[test]
fn fragments_lie_on_running_time() {
    let mut h = fragmenter();
    h.element()
        .unwrap()
        .set_property("mpegts-offset", 10_000_u32);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(ms(100_000));
    segment.set_time(ms(50_000));
    segment.set_base(ms(7000));
    h.push_event(gst::event::Segment::new(&segment));

    // Seven seconds and one.
    push(&mut h, "Here", 101_000, Some(1000));
    gap(&mut h, 102_000, 3000);

    let text = "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:06.000,MPEGTS:1440000\n\n\
                00:00:08.000 --> 00:00:09.000\nHere\n\n";
    // The fragment begins before the segment does.
    assert_eq!(fragments(&mut h), [(1, 100_000, 6000, text.to_owned())]);
}

/// Words that wait for the end of their sentence keep their fragment open.
#[test]
fn a_fragment_waits_for_the_words_that_are_no_cue_yet() {
    let mut h = fragmenter();
    h.element().unwrap().set_property_from_str("cues", "make");

    push(&mut h, "Not", 5000, Some(300));
    gap(&mut h, 5300, 1000);
    assert_eq!(fragments(&mut h), []);
    push(&mut h, "yet.", 6300, Some(300));
    h.push_event(gst::event::Eos::new());

    let all = fragments(&mut h);
    assert_eq!(all.len(), 2);
    for (_, _, _, text) in all {
        assert!(
            text.contains("00:00:05.000 -->") && text.contains("Not yet."),
            "{text}"
        );
    }
}

/// Live, each word or two are a segment of their own, and a sentence is a cue all the same: but not for longer than ten
/// seconds, for somebody waits for the fragment.
#[test]
fn words_of_many_segments_are_one_cue_of_a_fragment() {
    let mut h = fragmenter();
    let mut word = |id: u64, text: &str, start_ms: u64| {
        let (start, end) = (StreamNs(start_ms * MS), StreamNs((start_ms + 400) * MS));
        let mut words = spread(text, start, end);
        words[0].text.insert(0, ' ');
        let cue = Cue {
            start,
            end,
            lines: vec![text.to_owned()],
            words,
            segment: SegmentInfo {
                id,
                ..SegmentInfo::default()
            },
            speaker_id: None,
            speaker: None,
        };
        let mut buffer = text_buffer(text, start_ms, Some(400));
        meta::write_as(buffer.make_mut(), &cue, meta::Unit::Word, true);
        h.push(buffer).unwrap();
    };

    for (id, text) in ["So", "it", "goes."].into_iter().enumerate() {
        word(id as u64, text, 1000 + id as u64 * 500);
    }
    // Then somebody who makes no stop.
    for id in 0..30 {
        word(10 + id, "on", 3000 + id * 500);
    }

    let out = fragments(&mut h);
    let text: String = out.iter().map(|(_, _, _, text)| text.as_str()).collect();
    assert!(text.contains("\nSo it goes.\n"), "{text}");
    assert_eq!(
        out.len(),
        2,
        "what is older than ten seconds is out: {text}"
    );
    h.push_event(gst::event::Eos::new());
    assert_eq!(fragments(&mut h).len(), 2);
}

#[test]
fn a_flush_begins_the_fragments_anew() {
    let mut h = fragmenter();
    push(&mut h, "Void", 1000, Some(1000));

    h.push_event(gst::event::FlushStart::new());
    h.push_event(gst::event::FlushStop::new(true));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    h.push_event(gst::event::Segment::new(&segment));
    gap(&mut h, 0, 6000);

    let all = fragments(&mut h);
    assert_eq!(all.len(), 1);
    assert!(!all[0].3.contains("Void") && all[0].0 == 0, "{all:?}");
}

#[test]
fn other_formats_are_one_file_whatever_the_length_of_fragments() {
    for format in ["srt", "json"] {
        let mut h = harness(format, UTF8);
        h.element()
            .unwrap()
            .set_property("fragment-duration", 1000_u32);

        push(&mut h, "Hello", 0, Some(5000));
        h.push_event(gst::event::Eos::new());

        assert_eq!(
            output(&mut h).matches("Hello").count(),
            if format == "srt" { 1 } else { 2 }
        );
    }
}

#[test]
fn a_hundred_cues_survive_twenty_changes_of_state() {
    init();
    let folder = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        let path = folder.path().join(format.extension());
        let pipeline = gst::parse::launch(&format!(
            "appsrc name=in format=time caps={UTF8} ! scribeenc format={format} ! filesink location={}",
            path.display()
        ))
        .unwrap()
        .downcast::<gst::Pipeline>()
        .unwrap();
        let source = pipeline
            .by_name("in")
            .unwrap()
            .downcast::<gst_app::AppSrc>()
            .unwrap();
        let states = [
            gst::State::Playing,
            gst::State::Paused,
            gst::State::Ready,
            gst::State::Null,
        ];
        let mut random = 7_u32;
        for n in 0..20_u64 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            pipeline
                .set_state(states[(random >> 24) as usize % 4])
                .unwrap();
            let _ = source.push_buffer(text_buffer("Hello.", n * 1000, Some(500)));
        }
        pipeline.set_state(gst::State::Null).unwrap();

        pipeline.set_state(gst::State::Playing).unwrap();
        for n in 0..100_u64 {
            source
                .push_buffer(text_buffer(&format!("Cue {n}."), n * 1000, Some(500)))
                .unwrap();
        }
        source.end_of_stream().unwrap();
        let bus = pipeline.bus().unwrap();
        let types = [gst::MessageType::Error, gst::MessageType::Eos];
        let message = bus
            .timed_pop_filtered(gst::ClockTime::from_seconds(30), &types)
            .unwrap();
        assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
        pipeline.set_state(gst::State::Null).unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        let marks = match format {
            Format::Vtt | Format::Srt => "-->",
            Format::Ttml => "<p ",
            Format::Json => "{\"id\":",
            Format::Jsonl => "\"type\":\"cue\"",
            Format::Rttm => "SPEAKER",
            _ => "Cue",
        };
        // Cues half a second apart are one turn.
        let expected = if format == Format::Rttm { 1 } else { 100 };
        assert_eq!(text.matches(marks).count(), expected, "{format}: {text}");
    }
}

// ---- Helpers ----

fn harness(format: &str, caps: &str) -> gst_check::Harness {
    init();
    let mut h = gst_check::Harness::new("scribeenc");
    h.element().unwrap().set_property_from_str("format", format);
    h.set_src_caps_str(caps);
    h
}

fn ms(ms: u64) -> gst::ClockTime {
    gst::ClockTime::from_mseconds(ms)
}

fn text_buffer(text: &str, start_ms: u64, length_ms: Option<u64>) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(text.to_owned());
    let inner = buffer.make_mut();
    inner.set_pts(ms(start_ms));
    inner.set_duration(length_ms.map(ms));
    buffer
}

fn cue_buffer(cue: &Cue) -> gst::Buffer {
    let length = (cue.end.0 - cue.start.0) / MS;
    let mut buffer = text_buffer(&cue.text(), cue.start.0 / MS, Some(length));
    meta::write(buffer.make_mut(), cue);
    buffer
}

fn push(h: &mut gst_check::Harness, text: &str, start_ms: u64, length_ms: Option<u64>) {
    assert_eq!(
        h.push(text_buffer(text, start_ms, length_ms)),
        Ok(gst::FlowSuccess::Ok)
    );
}

/// All bytes that came out since the last call.
fn output(h: &mut gst_check::Harness) -> String {
    let mut bytes = Vec::new();
    while let Some(buffer) = h.try_pull() {
        bytes.extend_from_slice(buffer.map_readable().unwrap().as_slice());
    }
    String::from_utf8(bytes).unwrap()
}

fn file(format: Format, transcript: &Transcript) -> String {
    let mut bytes = Vec::new();
    formats::write(format, transcript, &Options::default(), &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Two windows, two speakers, cues with words.
fn transcript() -> Transcript {
    let parts = [
        (
            "A",
            Some("Ada"),
            500,
            6000,
            "We built an engine, and it never ran. Nobody minded that, least of all the two of us.",
        ),
        ("B", None, 8000, 11_000, "Tell me more about it, please."),
    ];
    let mut cues: Vec<Cue> = Vec::new();
    let mut next = 0;
    for (id, name, start, end, text) in parts {
        let mut words = spread(text, StreamNs(start * MS), StreamNs(end * MS));
        words[0].text.insert(0, ' ');
        for word in &mut words {
            word.speaker_id = Some(id.into());
            word.speaker = name.map(str::to_owned);
            word.probability = 0.75;
            word.confidence = 0.5;
            word.start = StreamNs(word.start.millis() * MS);
            word.end = StreamNs(word.end.millis() * MS);
            (word.running_start, word.running_end) = (RunningNs(0), RunningNs(0));
        }
        let tokens: Vec<Vec<u32>> = (0..words.len() as u32).map(|n| vec![n, n + 100]).collect();
        let window = SegmentInfo {
            language: "en".into(),
            seek: start / 10,
            avg_logprob: -0.5,
            ..SegmentInfo::default()
        };
        let bounds = Bounds {
            previous_end: cues.last().map(|c| c.end),
            until: None,
        };
        let mut made = arrange(
            words,
            &tokens,
            &window,
            &mut next,
            bounds,
            &CueStyle::default(),
        );
        for cue in &mut made {
            cue.start = StreamNs(cue.start.millis() * MS);
            cue.end = StreamNs(cue.end.millis() * MS);
        }
        cues.extend(made);
    }
    let segments = cues
        .chunk_by(|a, b| a.segment.id == b.segment.id)
        .map(|group| Segment {
            info: group[0].segment.clone(),
            words: group.iter().flat_map(|c| c.words.clone()).collect(),
        });
    Transcript {
        language: "en".into(),
        duration: StreamNs(12_000 * MS),
        segments: segments.collect(),
        turns: vec![Turn {
            speaker_id: "A".into(),
            speaker: Some("Ada".into()),
            start: StreamNs(400 * MS),
            end: StreamNs(6100 * MS),
            confidence: 0.9,
        }],
        cues,
        ..Transcript::default()
    }
}
