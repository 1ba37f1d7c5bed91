// SPDX-License-Identifier: MPL-2.0
//! Files of every format: against goldens, against what was written, against other people's parsers.
//!
//! `SCRIBE_BLESS=1 cargo test --test formats` writes the goldens anew; look at the difference.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;

use gstscribe::audio::{RunningNs, StreamNs};
use gstscribe::transcript::cues::{Bounds, CueStyle, Preset, arrange, spread};
use gstscribe::transcript::formats::{Format, Options, Relabel, Totals, Writer, json, write};
use gstscribe::transcript::{Cue, Segment, SegmentInfo, Task, Transcript, Turn, Word};
use proptest::prelude::*;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

const MS: u64 = 1_000_000;

// ---- Goldens ----

#[test]
fn every_format_writes_the_sample_as_it_did() {
    for format in Format::ALL {
        golden(
            &format!("sample.{}", format.extension()),
            &file(format, &sample()),
        );
    }
}

#[test]
fn every_format_writes_a_valid_file_of_nothing() {
    for format in Format::ALL {
        golden(
            &format!("empty.{}", format.extension()),
            &file(format, &Transcript::default()),
        );
    }
}

#[test]
fn every_preset_shapes_the_sample_as_it_did() {
    for preset in Preset::ALL {
        let options = Options {
            style: preset.into(),
            cue_ids: true,
            ..Options::default()
        };
        let transcript = Transcript {
            cues: Vec::new(),
            ..sample()
        };
        let mut bytes = Vec::new();
        write(Format::Vtt, &transcript, &options, &mut bytes).unwrap();

        golden(
            &format!("preset-{preset}.vtt"),
            &String::from_utf8(bytes).unwrap(),
        );
    }
}

// ---- What was written is what was meant ----

#[test]
fn a_streamed_file_is_the_document_byte_for_byte() {
    let transcript = sample();
    for format in Format::ALL {
        let mut writer = Writer::new(format, Options::default());
        let mut streamed = Vec::new();
        for turn in &transcript.turns {
            writer.turn(turn, &mut streamed).unwrap();
        }
        for cue in &transcript.cues {
            writer.cue(cue, &mut streamed).unwrap();
        }
        let totals = Totals {
            duration: transcript.duration,
            ..Totals::default()
        };
        writer.finish(&totals, &mut streamed).unwrap();

        assert_eq!(
            String::from_utf8(streamed).unwrap(),
            file(format, &transcript),
            "{format}"
        );
    }
}

#[test]
fn a_streamed_file_that_breaks_off_holds_every_cue_so_far() {
    let transcript = sample();
    for format in Format::ALL.into_iter().filter(|f| !f.is_document()) {
        let mut writer = Writer::new(format, Options::default());
        let mut streamed = Vec::new();
        for cue in &transcript.cues {
            writer.cue(cue, &mut streamed).unwrap();
        }

        let streamed = String::from_utf8(streamed).unwrap();
        let last = transcript.cues.last().unwrap().words.last().unwrap();
        assert!(streamed.contains(last.text.trim()), "{format}: {streamed}");
    }
}

#[test]
fn json_comes_back_as_it_was() {
    let transcript = sample();

    let document = json::read(&file(Format::Json, &transcript)).unwrap();
    let lines = json::read_lines(&file(Format::Jsonl, &transcript)).unwrap();

    // Each segment of a document has the document's language.
    let mut expected = transcript.clone();
    expected.cues = Vec::new();
    for segment in &mut expected.segments {
        segment.info.language.clone_from(&transcript.language);
        segment.info.task = transcript.task;
    }
    assert_eq!(document, expected);
    assert_eq!(lines.segments, transcript.segments);
    assert_eq!(lines.cues, transcript.cues);
    assert_eq!(lines.turns, transcript.turns);
}

#[test]
fn json_lines_that_break_off_anywhere_can_be_read() {
    let whole = file(Format::Jsonl, &sample());
    for at in (0..whole.len()).filter(|&at| whole.is_char_boundary(at)) {
        let read = json::read_lines(&whole[..at]).unwrap();

        let complete = whole[..at].matches("\n{\"type\":\"cue\"").count();
        assert!(read.cues.len() + 1 >= complete, "cut at {at}");
    }
}

#[test]
fn json_of_another_version_is_refused_with_both_names() {
    let text = file(Format::Json, &sample()).replace("scribe-transcript/1", "scribe-transcript/9");

    let err = json::read(&text).unwrap_err().to_string();

    assert!(
        err.contains("scribe-transcript/9") && err.contains("scribe-transcript/1"),
        "{err}"
    );
}

#[test]
fn a_document_follows_a_relabel_and_a_streamed_file_keeps_what_it_said() {
    let transcript = sample();
    let relabel = Relabel {
        old_id: "SPEAKER_01".into(),
        new_id: Some("SPEAKER_00".into()),
        from: Some(StreamNs(0)),
        ..Relabel::default()
    };
    let relabelled = |format| {
        let mut writer = Writer::new(format, Options::default());
        let mut bytes = Vec::new();
        transcript
            .cues
            .iter()
            .for_each(|cue| writer.cue(cue, &mut bytes).unwrap());
        writer.relabel(&relabel, &mut bytes).unwrap();
        writer.finish(&Totals::default(), &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };

    for format in [Format::Json, Format::Rttm, Format::Ttml] {
        let text = relabelled(format);
        assert!(
            !text.contains("SPEAKER_01") && text.contains("Ada"),
            "{format}: {text}"
        );
    }
    assert!(relabelled(Format::Vtt).contains("SPEAKER_01"));
    let lines = json::read_lines(&relabelled(Format::Jsonl)).unwrap();
    assert!(
        lines
            .cues
            .iter()
            .all(|c| c.speaker_id.as_deref() != Some("SPEAKER_01"))
    );
}

#[test]
fn a_name_of_a_format_is_found_in_any_case_and_by_file_name() {
    assert_eq!("VTT".parse(), Ok(Format::Vtt));
    assert_eq!("txt".parse(), Ok(Format::Text));
    let err = "doc".parse::<Format>().unwrap_err().to_string();
    assert!(err.contains("doc") && err.contains("jsonl"), "{err}");
}

#[test]
fn hours_grow_past_two_digits() {
    let transcript = one_cue("late", 400_000_000 * MS, 400_001_500 * MS);

    assert!(file(Format::Vtt, &transcript).contains("111:06:40.000 --> 111:06:41.500"));
    assert!(file(Format::Srt, &transcript).contains("111:06:40,000 --> 111:06:41,500"));
    assert!(file(Format::Ttml, &transcript).contains(r#"begin="111:06:40.000""#));
}

#[test]
fn what_would_end_a_cue_or_a_document_is_cleaned() {
    let hostile = "a\r\n\r\nb --> c\0\u{1b}\u{2028}</v><script>&amp;]]>\u{fffe}\n1\n";
    let transcript = one_cue(hostile, 0, 1000 * MS);

    let vtt = file(Format::Vtt, &transcript);
    assert_eq!(
        vtt,
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na\nb --&gt; c\n&lt;/v&gt;&lt;script&gt;&amp;amp;]]&gt;\n1\n\n"
    );
    let srt = file(Format::Srt, &transcript);
    assert_eq!(srt.matches("-->").count(), 1);
    assert_eq!(srt.matches("\n\n").count(), 1);
}

// ---- Cues ----

#[test]
fn cues_break_where_a_reader_would() {
    let text = "When the old harbour froze over that winter, the fishermen walked out to their \
                boats across the ice. Nobody had ever seen the like. They talked about it for years.";
    let cues = arrange_text(text, 12_000 * MS, "en", &CueStyle::default());

    let shown: Vec<String> = cues.iter().map(Cue::text).collect();
    assert_eq!(shown.len(), 4, "{shown:#?}");
    assert!(shown[0].ends_with("winter,"), "{shown:#?}");
    assert!(shown[1].ends_with("ice."), "{shown:#?}");
    for cue in &cues {
        assert!(cue.lines.len() <= 2 && cue.lines.iter().all(|l| l.len() <= 42));
    }
}

#[test]
fn chinese_and_japanese_get_no_spaces_and_at_most_16_characters_a_line() {
    let text = "今日はとても良い天気ですね。散歩に行きましょうか、それとも家で本を読みましょうか。\
                どちらでも私は構いませんよ。";
    let cues = arrange_text(text, 12_000 * MS, "ja", &CueStyle::default());

    for line in cues.iter().flat_map(|c| &c.lines) {
        assert!(line.graphemes(true).count() <= 16, "{line}");
        assert!(!line.contains(' '), "{line}");
        assert!(!line.starts_with(['。', '、']), "{line}");
    }
}

#[test]
fn a_pause_a_speaker_and_the_end_of_a_sentence_end_a_segment() {
    let mut words = spread("one two three. four five", StreamNs(0), StreamNs(4000 * MS));
    words[4].start = StreamNs(words[3].end.0 + 1500 * MS);
    words[4].end = StreamNs(words[4].start.0 + 300 * MS);
    let mut other = words[4].clone();
    other.text = " six".into();
    other.speaker_id = Some("B".into());
    other.start = words[4].end;
    other.end = StreamNs(other.start.0 + 400 * MS);
    words.push(other);
    let tokens: Vec<Vec<u32>> = (0..6).map(|n| vec![n]).collect();
    let mut next = 5;

    let cues = arrange(
        words,
        &tokens,
        &SegmentInfo::default(),
        &mut next,
        Bounds::default(),
        &CueStyle::default(),
    );

    let seen: Vec<(u64, String, Vec<u32>)> = cues
        .iter()
        .map(|c| (c.segment.id, c.text(), c.segment.tokens.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            (5, "one two three.".into(), vec![0, 1, 2]),
            (6, "four".into(), vec![3]),
            (7, "five".into(), vec![4]),
            (8, "six".into(), vec![5]),
        ]
    );
    assert_eq!(next, 9);
}

#[test]
fn the_last_cue_lingers_only_as_far_as_is_certain() {
    let style = CueStyle::default();
    let end = |until: Option<u64>| {
        let words = spread("A fairly short line.", StreamNs(0), StreamNs(2000 * MS));
        let bounds = Bounds {
            previous_end: None,
            until: until.map(|ms| StreamNs(ms * MS)),
        };
        let cues = arrange(words, &[], &SegmentInfo::default(), &mut 0, bounds, &style);
        cues[0].end.0 / MS
    };

    assert_eq!(end(None), 2000);
    assert_eq!(end(Some(2300)), 2300 - 83);
    assert_eq!(end(Some(9000)), 2500);
}

#[test]
fn no_cue_starts_before_the_last_one_of_the_window_before_ended() {
    let words = spread("Hello there.", StreamNs(1000 * MS), StreamNs(2000 * MS));
    let bounds = Bounds {
        previous_end: Some(StreamNs(1200 * MS)),
        until: None,
    };

    let style = CueStyle::default();
    let cues = arrange(words, &[], &SegmentInfo::default(), &mut 0, bounds, &style);

    assert_eq!(cues[0].start, StreamNs(1200 * MS));
}

#[test]
fn openai_gives_a_sentence_a_cue_with_the_times_of_its_words() {
    let text = "This is a rather long sentence that would need three lines in any other style, \
                as it goes on and on. And a short one.";
    let style = CueStyle::from(Preset::Openai);
    let cues = arrange_text(text, 10_000 * MS, "en", &style);

    assert_eq!(cues.len(), 2);
    for cue in &cues {
        assert_eq!(cue.lines.len(), 1);
        assert_eq!(cue.start, cue.words[0].start);
        assert_eq!(cue.end, cue.words[cue.words.len() - 1].end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn cues_never_overlap_never_vanish_and_lose_no_word(
        words in words(),
        style in styles(),
        previous_end in proptest::option::of(0..3_000_u64),
        until in proptest::option::of(0..100_000_u64),
    ) {
        let bounds = Bounds {
            previous_end: previous_end.map(|ms| StreamNs(ms * MS)),
            until: until.map(|ms| StreamNs(ms * MS)),
        };
        let tokens: Vec<Vec<u32>> = (0..words.len() as u32).map(|n| vec![n]).collect();
        let mut next = 3;

        let window = SegmentInfo { language: "en".into(), ..SegmentInfo::default() };
        let cues = arrange(words.clone(), &tokens, &window, &mut next, bounds, &style);

        let mut earliest = bounds.previous_end.unwrap_or_default().0;
        for cue in &cues {
            prop_assert!(cue.start.0 >= earliest);
            prop_assert!(cue.end.0 >= cue.start.0 + MS);
            prop_assert!(cue.end.0 - cue.start.0 <= style.max_duration_ns);
            earliest = cue.end.0;
            prop_assert!(!cue.lines.is_empty() && cue.lines.len() <= style.max_lines as usize);
            for line in &cue.lines {
                prop_assert!(!line.trim().is_empty() && line.trim() == line);
                let width = style.max_line_width.max(style.max_line_width_wide);
                prop_assert!(columns(line) <= width as usize, "{:?}", line);
            }
            prop_assert!(cue.words.iter().all(|w| w.speaker_id == cue.speaker_id));
        }
        for pair in cues.windows(2) {
            let room = pair[1].start.0 - pair[0].start.0;
            let gap = pair[1].start.0 - pair[0].end.0;
            prop_assert!(room < 2 * style.min_gap_ns || gap >= style.min_gap_ns);
        }

        let shown: String = cues.iter().flat_map(|c| &c.words).map(|w| &*w.text).collect();
        let meant: String = words.iter().map(|w| &*w.text).collect();
        let visible = |s: &str| s.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect::<String>();
        let all_seen = words.iter().all(|w| w.text.chars().any(|c| c.is_alphanumeric()));
        if all_seen {
            prop_assert_eq!(visible(&shown), visible(&meant));
        }

        let mut ids: Vec<u64> = cues.iter().map(|c| c.segment.id).collect();
        ids.dedup();
        prop_assert_eq!(&ids, &(3..next).collect::<Vec<_>>());
        let segments = cues.chunk_by(|a, b| a.segment.id == b.segment.id);
        let kept: Vec<u32> = segments.flat_map(|s| s[0].segment.tokens.clone()).collect();
        if !cues.is_empty() {
            prop_assert_eq!(kept, tokens.concat());
        }
    }

    #[test]
    fn what_is_written_reads_back_and_times_never_run_backwards(cues in wild_cues()) {
        let transcript = Transcript { cues, ..Transcript::default() };

        for format in [Format::Vtt, Format::Srt] {
            let read = captions(&file(format, &transcript));
            let meant: Vec<String> = transcript.cues.iter().map(visible_text).filter(|t| !t.is_empty()).collect();
            prop_assert_eq!(read.len(), meant.len());
            let mut earliest = 0;
            for ((start, end, text), meant) in read.iter().zip(&meant) {
                prop_assert!(*start >= earliest && end > start);
                earliest = *end;
                if format == Format::Vtt {
                    prop_assert_eq!(text, meant);
                }
            }
        }
        let document = json::read(&file(Format::Json, &transcript)).unwrap();
        let lines = json::read_lines(&file(Format::Jsonl, &transcript)).unwrap();
        prop_assert_eq!(document.segments.len(), lines.segments.len());
        let ctm = file(Format::Ctm, &transcript);
        let starts: Vec<f64> = ctm.lines().map(|l| l.split(' ').nth(2).unwrap().parse().unwrap()).collect();
        prop_assert!(starts.is_sorted());
        prop_assert!(ctm.lines().all(|l| l.split(' ').count() == 6));
    }
}

// ---- Other people's parsers ----

#[test]
fn parsers_that_are_not_ours_read_every_file() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run make test",
        python.display()
    );
    let folder = tempfile::tempdir().unwrap();
    let recordings = [
        ("sample", sample()),
        ("empty", Transcript::default()),
        ("hostile", hostile()),
        ("late", one_cue("late", 400_000_000 * MS, 400_001_500 * MS)),
    ];
    for (name, transcript) in recordings {
        for format in Format::ALL {
            let path = folder.path().join(format!("{name}.{}", format.extension()));
            std::fs::write(path, file(format, &transcript)).unwrap();
        }
    }

    let out = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check_formats.py"))
        .arg(folder.path())
        .output()
        .unwrap();

    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

// ---- Helpers ----

fn file(format: Format, transcript: &Transcript) -> String {
    let mut bytes = Vec::new();
    write(format, transcript, &Options::default(), &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/formats")
        .join(name);
    if std::env::var_os("SCRIBE_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{} differs, found:\n{found}",
        path.display()
    );
}

/// A conversation with everything that formats trip over and real text has.
fn sample() -> Transcript {
    let ada = ("SPEAKER_00", Some("Ada"));
    let unknown = ("SPEAKER_01", None);
    let stretches = [
        (
            ada,
            0,
            "en",
            480,
            4200,
            "Good morning. R&D costs us 3 < 5 million, Mr. Smith, doesn't it?",
        ),
        (
            unknown,
            0,
            "en",
            4300,
            6900,
            "Yes, it does, and the arrow --> points up; that is good.",
        ),
        (
            ada,
            2300,
            "ja",
            9500,
            13000,
            "こんにちは、皆さん。今日はとても良い天気ですね。",
        ),
        (
            unknown,
            2300,
            "ar",
            14000,
            16500,
            "مرحبا بكم في هذا البرنامج الجديد.",
        ),
        (ada, 2300, "en", 17000, 17400, "Emoji 👨‍👩‍👧‍👦 work."),
    ];
    let mut cues: Vec<Cue> = Vec::new();
    let mut next = 0;
    for (n, ((id, name), seek, language, start, end, text)) in stretches.into_iter().enumerate() {
        let mut words = spread(text, StreamNs(start * MS), StreamNs(end * MS));
        if language != "ja" {
            words[0].text.insert(0, ' ');
        }
        for (k, word) in words.iter_mut().enumerate() {
            word.speaker_id = Some(id.into());
            word.speaker = name.map(str::to_owned);
            word.probability = 0.5 + (k % 5) as f32 / 10.0;
            word.confidence = 0.4 + (k % 4) as f32 / 8.0;
            // Whole milliseconds, as files have them.
            word.start = StreamNs(word.start.millis() * MS);
            word.end = StreamNs(word.end.millis() * MS);
        }
        let window = SegmentInfo {
            language: language.into(),
            seek,
            avg_logprob: -0.25,
            compression_ratio: 1.5,
            no_speech_prob: 0.0625,
            temperature: if n == 2 { 0.4 } else { 0.0 },
            ..SegmentInfo::default()
        };
        let tokens: Vec<Vec<u32>> = (0..words.len() as u32).map(|k| vec![1000 + k]).collect();
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
            for word in &mut cue.words {
                word.running_start = RunningNs(0);
                word.running_end = RunningNs(0);
            }
        }
        cues.extend(made);
    }
    let segments = cues
        .chunk_by(|a, b| a.segment.id == b.segment.id)
        .map(|group| Segment {
            info: group[0].segment.clone(),
            words: group.iter().flat_map(|c| c.words.clone()).collect(),
        })
        .collect();
    let turn = |(id, name): (&str, Option<&str>), start: u64, end: u64| Turn {
        speaker_id: id.into(),
        speaker: name.map(str::to_owned),
        start: StreamNs(start * MS),
        end: StreamNs(end * MS),
        confidence: 0.875,
    };
    Transcript {
        task: Task::Transcribe,
        language: "en".into(),
        duration: StreamNs(20_000 * MS),
        segments,
        cues,
        turns: vec![
            turn(ada, 400, 4250),
            turn(unknown, 4200, 7000),
            turn(ada, 9400, 13_100),
        ],
    }
}

/// What no writer should be given.
fn hostile() -> Transcript {
    let texts = [
        "NOTE not a note",
        "--> 00:00:01.000 --> 00:00:02.000",
        "WEBVTT",
        "1",
        "<v Bob>&lt;b&gt;</v> & \u{0}\u{7}\u{1b}[0m ]]> <!-- --",
        "a\r\n\r\n\r\nb\rc\u{2028}d\u{85}e",
        ";; comment",
        "{\\an8} {alternate / other} <ALT>",
        "   ",
        "\"quotes\" 'and' \\backslash\\ \u{feff}bom \u{ffff}",
        "\u{202e}right to left\u{202c} e\u{301}\u{301} 👩🏽‍🚀",
    ];
    let cues = texts.into_iter().enumerate().map(|(n, text)| Cue {
        // Out of order, overlapping, of no length.
        start: StreamNs((n as u64 * 700 % 3000) * MS),
        end: StreamNs((n as u64 * 500 % 3000) * MS),
        lines: vec![text.into(), String::new()],
        words: Vec::new(),
        segment: SegmentInfo {
            id: n as u64,
            avg_logprob: f32::NAN,
            compression_ratio: f32::INFINITY,
            language: "<&\">".into(),
            ..SegmentInfo::default()
        },
        speaker_id: Some("a > b & c --> d\n\n".into()).filter(|_| n % 2 == 0),
        speaker: None,
    });
    Transcript {
        cues: cues.collect(),
        ..Transcript::default()
    }
}

fn one_cue(text: &str, start: u64, end: u64) -> Transcript {
    Transcript {
        cues: vec![Cue {
            start: StreamNs(start),
            end: StreamNs(end),
            lines: vec![text.into()],
            words: Vec::new(),
            segment: SegmentInfo::default(),
            speaker_id: None,
            speaker: None,
        }],
        ..Transcript::default()
    }
}

fn arrange_text(text: &str, length: u64, language: &str, style: &CueStyle) -> Vec<Cue> {
    let words = spread(text, StreamNs(0), StreamNs(length));
    let window = SegmentInfo {
        language: language.into(),
        ..SegmentInfo::default()
    };
    arrange(words, &[], &window, &mut 0, Bounds::default(), style)
}

fn columns(line: &str) -> usize {
    line.graphemes(true)
        .map(|g| if g.width() >= 2 { 2 } else { 1 })
        .sum()
}

fn visible_text(cue: &Cue) -> String {
    let breaks = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let lines: Vec<String> = cue
        .lines
        .iter()
        .flat_map(|l| l.split(breaks))
        .map(|l| {
            let kept: String = l
                .chars()
                .filter(|&c| c.is_whitespace() || !(c.is_control() || is_no_character(c)))
                .collect();
            kept.split_whitespace().collect::<Vec<_>>().join(" ")
        })
        .filter(|l| !l.is_empty())
        .collect();
    lines.join("\n")
}

fn is_no_character(c: char) -> bool {
    let code = u32::from(c);
    c == '\u{feff}' || code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code)
}

/// Start, end and text of each cue of a WebVTT or SubRip file, by the letter of the format.
fn captions(text: &str) -> Vec<(u64, u64, String)> {
    let body = text.strip_prefix("WEBVTT\n\n").unwrap_or(text);
    body.split("\n\n")
        .filter(|block| !block.is_empty())
        .map(|block| {
            let (head, text) = block.split_once(" --> ").unwrap();
            let start = millis(head.lines().last().unwrap());
            let (end, text) = text.split_once('\n').unwrap();
            assert!(!text.contains("-->"), "{text}");
            let text = text
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&amp;", "&");
            (start, millis(end), text)
        })
        .collect()
}

fn millis(clock: &str) -> u64 {
    let parts: Vec<u64> = clock
        .split([':', '.', ','])
        .map(|p| p.parse().unwrap())
        .collect();
    ((parts[0] * 60 + parts[1]) * 60 + parts[2]) * 1000 + parts[3]
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => " [a-zA-Z]{1,12}[.,!?]?",
        1 => " [a-z]{40,120}",
        1 => "[\u{4e00}-\u{4e20}。、]{1,6}",
        1 => "[\u{4e00}-\u{4e20}]{30,60}",
        1 => " [\u{620}-\u{64a}]{1,10}",
        1 => Just(" 👨‍👩‍👧‍👦".to_owned()),
        1 => Just(String::from("👩🏽‍🚀🇩🇪é\u{301}")),
        1 => "\\PC{0,8}",
        1 => any::<String>(),
        1 => Just(" ".to_owned()),
        1 => Just(" New York City, which is a long name for one word, is it not".to_owned()),
    ]
}

fn words() -> impl Strategy<Value = Vec<Word>> {
    let steps = prop_oneof![
        3 => 0..800_u64,
        1 => Just(0_u64),
        1 => 1_000..20_000_u64,
    ];
    let word = (texts(), steps.clone(), steps, 0..12_u8);
    proptest::collection::vec(word, 0..60).prop_map(|list| {
        let mut now = 0;
        list.into_iter()
            .map(|(text, gap, length, speaker)| {
                // Gaps are rare: mostly words follow one another.
                now += if gap % 4 == 0 { gap } else { 0 };
                let start = now;
                now += length.min(15_000);
                let speaker_id = match speaker {
                    0 => Some("A".to_owned()),
                    1 => Some("B".to_owned()),
                    _ => None,
                };
                Word {
                    text,
                    start: StreamNs(start * MS),
                    end: StreamNs(now * MS),
                    running_start: RunningNs(start * MS),
                    running_end: RunningNs(now * MS),
                    probability: 0.5,
                    confidence: 0.5,
                    speaker_id,
                    speaker: None,
                }
            })
            .collect()
    })
}

fn styles() -> impl Strategy<Value = CueStyle> {
    (0..3_usize, 0..4_u32, 1..4_u32, 1_000..10_000_u64).prop_map(
        |(preset, width, lines, longest)| {
            let mut style = CueStyle::from(Preset::ALL[preset]);
            if width > 0 {
                style = style.with_max_line_width(width * 16);
            }
            style.max_lines = lines;
            style.max_duration_ns = longest * MS;
            style
        },
    )
}

fn wild_cues() -> impl Strategy<Value = Vec<Cue>> {
    let cue = (
        proptest::collection::vec(prop_oneof![texts(), any::<String>()], 0..3),
        0..50_000_u64,
        0..50_000_u64,
        0..4_u64,
    );
    proptest::collection::vec(cue, 0..12).prop_map(|list| {
        list.into_iter()
            .enumerate()
            .map(|(n, (lines, start, end, id))| Cue {
                start: StreamNs(start * MS),
                end: StreamNs(end * MS),
                lines,
                words: Vec::new(),
                segment: SegmentInfo {
                    id: n as u64 / (id + 1),
                    ..SegmentInfo::default()
                },
                speaker_id: None,
                speaker: None,
            })
            .collect()
    })
}
