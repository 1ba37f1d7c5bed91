// SPDX-License-Identifier: MPL-2.0
//! `pipelines/cea608_in_ts.sh`: words leave as closed captions inside H.264, and a reader that is neither scribe's nor
//! GStreamer's (ffmpeg's) reads them back, each where it was said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::*;

const SCRIPT: &str = "pipelines/cea608_in_ts.sh";

/// Whether everything is there that the recipe and the reader want.
fn can_caption() -> bool {
    there(&plugin(), "make build")
        && there(
            &repository("models/whisper-tiny.en-onnx-int8.encoder.onnx"),
            "make models",
        )
        && there(
            &repository("target/tools/gstreamer/libgstrsclosedcaption.so"),
            "make setup-test",
        )
        && runs("gst-launch-1.0", &["--version"], "make setup")
        && runs("gst-inspect-1.0", &["x264enc"], "make setup-test")
        && runs("ffmpeg", &["-version"], "make setup-test")
}

/// Runs a script or program in the environment of a user.
fn run(program: &Path, arguments: &[&Path], variables: &[(&str, &Path)]) -> Output {
    Command::new("timeout")
        .args(["--kill-after=10", "300"])
        .arg(program)
        .args(arguments)
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env(
            "GST_REGISTRY",
            repository("target/test-registry-cea608.bin"),
        )
        .env("LC_ALL", "C")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn done(out: Output) -> Output {
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {errors}", out.status);
    out
}

/// A row of captions, and when its first letters are on the screen, in milliseconds.
#[derive(Debug)]
struct Row {
    text: String,
    from_ms: u64,
}

/// The rows that ffmpeg shows, in order. With `real_time` there is an entry for each change of the screen: the row that
/// is being written is the last, and grows.
fn captions_of(stream: &Path) -> Vec<Row> {
    let folder = stream.parent().unwrap();
    let name = stream.file_name().unwrap().to_str().unwrap();
    let out = Command::new("ffmpeg")
        .current_dir(folder)
        .args(["-v", "error", "-real_time", "1", "-f", "lavfi", "-i"])
        .arg(format!("movie={name}[out0+subcc]"))
        .args(["-map", "s", "-f", "srt", "-"])
        .output()
        .unwrap();
    let text = String::from_utf8(done(out).stdout).unwrap();
    rows(&text.replace('\r', ""))
}

fn rows(srt: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    // What is on the screen, and the row that is written, which may grow.
    let mut writing = String::new();
    for entry in srt.split("\n\n") {
        let mut lines = entry.lines().filter(|l| !l.is_empty());
        let Some(times) = lines.find(|l| l.contains("-->")) else {
            continue;
        };
        let from_ms = milliseconds(times.split(" --> ").next().unwrap());
        let shown: Vec<String> = lines.map(plain).filter(|l| !l.is_empty()).collect();
        let Some(last) = shown.last() else {
            writing.clear();
            continue;
        };
        if writing.is_empty() || !last.starts_with(&writing) {
            rows.push(Row {
                text: last.clone(),
                from_ms,
            });
        } else if let Some(row) = rows.last_mut() {
            row.text.clone_from(last);
        }
        writing.clone_from(last);
    }
    rows
}

/// Without the marks of fonts and places.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut mark = None;
    for c in line.chars() {
        match (mark, c) {
            (None, '<') => mark = Some('>'),
            (None, '{') => mark = Some('}'),
            (None, c) => out.push(c),
            (Some(end), c) if c == end => mark = None,
            _ => {}
        }
    }
    out.trim().to_owned()
}

fn milliseconds(time: &str) -> u64 {
    let parts: Vec<u64> = time
        .trim()
        .split([':', ','])
        .map(|p| p.parse().unwrap())
        .collect();
    ((parts[0] * 60 + parts[1]) * 60 + parts[2]) * 1000 + parts[3]
}

/// Words with their starts in milliseconds, as scribe itself writes them of that recording.
fn transcript_of(recording: &Path, folder: &Path) -> Vec<(String, u64)> {
    let json = folder.join("transcript.json");
    let script = repository("pipelines/file_to_json.sh");
    done(run(&script, &[recording, &json], &[]));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    json["segments"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|s| s["words"].as_array().unwrap())
        .map(|w| {
            let start = w["start"].as_f64().unwrap() * 1000.0;
            (w["word"].as_str().unwrap().trim().to_owned(), start as u64)
        })
        .collect()
}

/// The words of `rows` are those of `said`, and a row begins to be written within a second of its first word.
fn assert_says(rows: &[Row], said: &[(String, u64)]) {
    let words: Vec<&str> = rows.iter().flat_map(|r| r.text.split(' ')).collect();
    let wanted: Vec<&str> = said.iter().map(|(word, _)| word.as_str()).collect();
    assert_eq!(words, wanted);
    let mut at = 0;
    for row in rows {
        let start = said[at].1;
        assert!(
            row.from_ms + 100 >= start && row.from_ms <= start + 1000,
            "said at {start} ms: {row:?}"
        );
        assert!(row.text.chars().count() <= 32, "{row:?}");
        at += row.text.split(' ').count();
    }
}

#[test]
fn captions_of_a_recording_are_its_words_in_their_places() {
    if !can_caption() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let recording = repository("tests/data/demo.opus");
    let stream = folder.path().join("out.ts");

    done(run(&repository(SCRIPT), &[&recording, &stream], &[]));

    let said = transcript_of(&recording, folder.path());
    assert!(said.len() > 80, "{said:?}");
    assert_says(&captions_of(&stream), &said);
}

/// 25 pictures a second become 29.97: the words stay where they were.
#[test]
fn captions_of_a_film_are_its_words_in_their_places() {
    if !can_caption() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let recording = repository("tests/data/stereo.flac");
    let film = folder.path().join("film.mkv");
    let make = format!(
        "gst-launch-1.0 -q -e matroskamux name=m ! filesink location='{}' \
         videotestsrc num-buffers=250 ! video/x-raw,width=160,height=120,framerate=25/1 ! vp8enc deadline=1 ! m. \
         filesrc location='{}' ! flacparse ! m.",
        film.display(),
        recording.display()
    );
    done(run(
        Path::new("sh"),
        &[Path::new("-c"), Path::new(&make)],
        &[],
    ));
    let stream = folder.path().join("out.ts");

    done(run(&repository(SCRIPT), &[&film, &stream], &[]));

    let said = transcript_of(&film, folder.path());
    assert!(said.len() > 10, "{said:?}");
    assert_says(&captions_of(&stream), &said);
    let pictures = done(run(
        Path::new("ffprobe"),
        &[
            "-v",
            "error",
            "-select_streams",
            "v",
            "-show_entries",
            "stream=codec_name,width,r_frame_rate",
            "-of",
            "csv=p=0",
        ]
        .map(Path::new)
        .into_iter()
        .chain([stream.as_path()])
        .collect::<Vec<_>>(),
        &[],
    ));
    let pictures = String::from_utf8_lossy(&pictures.stdout);
    assert!(
        pictures.contains("h264,160,30000/1001"),
        "the film's own pictures: {pictures}"
    );
}

#[test]
fn without_the_caption_plugin_the_recipe_says_how_to_get_it() {
    if !runs("gst-launch-1.0", &["--version"], "make setup") {
        return;
    }
    // A machine may have it from elsewhere: GStreamer looks nowhere but in its own elements' folder.
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let out = folder.path().join("out.ts");

    let run = run(
        &repository(SCRIPT),
        &[&repository("tests/data/speech_short.flac"), &out],
        &[
            ("SCRIBE_CAPTION_PLUGINS", &nowhere),
            ("GST_PLUGIN_SYSTEM_PATH", folder.path()),
            ("GST_REGISTRY", &folder.path().join("registry.bin")),
        ],
    );

    let errors = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("tttocea608") && errors.contains("scripts/caption_plugins.sh"),
        "{errors}"
    );
    assert!(!out.exists());
}

/// The reader itself: rows roll, grow and are wiped.
#[test]
fn rows_are_told_apart_by_what_they_grow_from() {
    let screens = "1\n00:00:01,000 --> 00:00:02,000\n<font face=\"Monospace\">{\\an7}An</font>\n\n\
                   2\n00:00:01,200 --> 00:00:02,000\n<font face=\"Monospace\">{\\an7}And so</font>\n\n\
                   3\n00:00:02,000 --> 00:00:03,000\n<font face=\"Monospace\">{\\an7}And so\non</font>\n\n\
                   4\n00:00:05,000 --> 00:00:06,000\n<font face=\"Monospace\">{\\an7}\n</font>\n\n\
                   5\n01:00:06,000 --> 01:00:06,500\n<font face=\"Monospace\">{\\an7}on it goes</font>\n\n";

    let rows = rows(screens);

    let told: Vec<_> = rows.iter().map(|r| (r.text.as_str(), r.from_ms)).collect();
    assert_eq!(
        told,
        [("And so", 1000), ("on", 2000), ("on it goes", 3_606_000)]
    );
}
