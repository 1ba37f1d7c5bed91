// SPDX-License-Identifier: MPL-2.0
//! The scripts in pipelines/ that write no file of words: captions in pictures, words on a terminal.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::*;
use rustix::process::{Pid, Signal, kill_process};

const BURN: &str = "pipelines/burn_captions.sh";
const MANY: &str = "pipelines/many_files.sh";
const MICROPHONE: &str = "pipelines/microphone_to_terminal.sh";

/// Whether the plugin, its model and gst-launch-1.0 are there.
fn can_hear() -> bool {
    there(&plugin(), "make build")
        && there(
            &repository("models/whisper-tiny.en-onnx-int8.encoder.onnx"),
            "make models",
        )
        && runs("gst-launch-1.0", &["--version"], "make setup")
}

/// A script or program in the environment of a user. It is killed after five minutes.
fn command(program: &Path, arguments: &[&Path]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=10", "300"])
        .arg(program)
        .args(arguments)
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env(
            "GST_REGISTRY",
            repository("target/test-registry-pipelines.bin"),
        )
        .env("SCRIBE_MODELS", repository("models"))
        .env("LC_ALL", "C");
    command
}

fn done(out: Output) -> Vec<u8> {
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {errors}", out.status);
    out.stdout
}

const WIDTH: usize = 320;
const HEIGHT: usize = 180;

/// The red, green and blue of a film's picture at a time.
fn picture(film: &Path, at: &str) -> Vec<[u8; 3]> {
    let raw = ["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
    let out = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(film)
        .args(["-ss", at])
        .args(raw)
        .output()
        .unwrap();
    let bytes = done(out);
    assert_eq!(bytes.len(), WIDTH * HEIGHT * 3, "{}", film.display());
    bytes.chunks(3).map(|c| [c[0], c[1], c[2]]).collect()
}

/// The largest difference of any colour.
fn difference(one: &[[u8; 3]], other: &[[u8; 3]]) -> u8 {
    let pairs = one.iter().flatten().zip(other.iter().flatten());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// How yellow the yellowest point is: yellow has no blue.
fn yellow(picture: &[[u8; 3]]) -> i32 {
    let of = |[red, green, blue]: &[u8; 3]| i32::from(*red.min(green)) - i32::from(*blue);
    picture.iter().map(of).max().unwrap()
}

/// The reader speaks until 17.1 s, the caller from 19.9 s to 25.8 s, and a caption stays for a second at most: see
/// tests/data/demo.ref.tsv.
#[test]
fn captions_are_in_the_pictures_while_somebody_speaks_in_colours_of_the_speakers() {
    if !can_hear()
        || !can_tell_speakers()
        || !runs("gst-inspect-1.0", &["textoverlay"], "make setup-test")
        || !runs("gst-inspect-1.0", &["x264enc"], "make setup-test")
        || !runs("ffmpeg", &["-version"], "make setup-test")
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (film, captioned) = (
        folder.path().join("film.mkv"),
        folder.path().join("out.mp4"),
    );
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i"])
        .arg(format!("color=0x404040:s={WIDTH}x{HEIGHT}:r=10"))
        .arg("-i")
        .arg(repository("tests/data/demo.opus"))
        .args([
            "-t", "29", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "copy",
        ])
        .arg(&film)
        .output()
        .unwrap();
    done(made);

    done(
        command(&repository(BURN), &[&film, &captioned])
            .output()
            .unwrap(),
    );

    let lower = WIDTH * HEIGHT / 2..;
    let at = |time| {
        let (before, after) = (picture(&film, time), picture(&captioned, time));
        let above = difference(&before[..lower.start], &after[..lower.start]);
        assert!(above < 30, "{above} above the captions at {time} s");
        (
            difference(&before[lower.clone()], &after[lower.clone()]),
            yellow(&after[lower.clone()]),
        )
    };
    for (time, is_caller) in [("5", false), ("14.5", false), ("20.8", true), ("25", true)] {
        let (shown, yellow) = at(time);
        assert!(shown > 100, "{shown} at {time} s: there is no text");
        assert_eq!(yellow > 80, is_caller, "{yellow} at {time} s");
    }
    for time in ["0.3", "18.9", "28.5"] {
        let (shown, _) = at(time);
        assert!(shown < 30, "{shown} at {time} s, in silence");
    }
    let kinds = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-show_entries",
            "stream=codec_name,pix_fmt",
            "-of",
            "csv=p=0",
        ])
        .arg(&captioned)
        .output()
        .unwrap();
    let kinds = String::from_utf8(done(kinds)).unwrap();
    assert!(
        kinds.contains("h264,yuv420p") && kinds.contains("aac"),
        "{kinds}"
    );
}

#[test]
fn without_textoverlay_the_recipe_says_where_it_is() {
    if !runs("gst-launch-1.0", &["--version"], "make setup") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let captioned = folder.path().join("out.mp4");

    let run = command(
        &repository(BURN),
        &[&repository("tests/data/speech_short.flac"), &captioned],
    )
    // A machine may have it: GStreamer looks nowhere but in an empty folder.
    .env("GST_PLUGIN_SYSTEM_PATH", folder.path())
    .env("GST_REGISTRY", folder.path().join("registry.bin"))
    .output()
    .unwrap();

    let errors = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("textoverlay") && errors.contains("gstreamer1.0-x"),
        "{errors}"
    );
    assert!(!captioned.exists());
}

#[test]
fn many_files_are_captions_at_once() {
    let program = repository("target/release/examples/batch");
    if !can_hear() || !there(&program, "cargo build --release --features cli --examples") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (short, stereo) = (
        repository("tests/data/speech_short.flac"),
        repository("tests/data/stereo.flac"),
    );

    let options = [folder.path(), Path::new("--format"), Path::new("srt")];
    let arguments: Vec<&Path> = options.into_iter().chain([&*short, &*stereo]).collect();
    done(command(&repository(MANY), &arguments).output().unwrap());

    for (file, word) in [("speech_short.srt", "amiable"), ("stereo.srt", "meters")] {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(
            text.starts_with("1\n00:00:0") && text.contains(word),
            "{text}"
        );
    }
}

fn listen(source: &str) -> Child {
    command(&repository(MICROPHONE), &[])
        .env("SOURCE", source)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// As Ctrl-C does: `timeout` passes it on.
fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

/// Real speech as fast as it was spoken. Its words come while it plays, not at its end, and Ctrl-C ends it well.
#[test]
fn words_are_on_the_terminal_while_somebody_speaks() {
    if !can_hear() {
        return;
    }
    let recording = repository("tests/data/demo.opus");
    let mut child = listen(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! identity sync=true",
        recording.display()
    ));
    let mut terminal = child.stdout.take().unwrap();

    let (mut shown, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&shown).contains("leisure to") {
        assert_eq!(
            terminal.read(&mut byte).unwrap(),
            1,
            "it ended: {}",
            String::from_utf8_lossy(&shown)
        );
        shown.push(byte[0]);
    }
    // A minute of the recording is still to come.
    assert!(child.try_wait().unwrap().is_none());
    interrupt(&child);
    terminal.read_to_end(&mut shown).unwrap();
    done(child.wait_with_output().unwrap());

    let shown = String::from_utf8(shown).unwrap();
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert!(
        words.join(" ").starts_with("And Mr. John Dashwood"),
        "{shown}"
    );
    assert!(!shown.contains("amiable"), "that was not yet said: {shown}");
    assert!(shown.ends_with('\n'), "{shown:?}");
}

/// A live source, and nobody speaks.
#[test]
fn silence_is_no_words_on_the_terminal() {
    if !can_hear() {
        return;
    }

    let child = listen("audiotestsrc is-live=true wave=silence num-buffers=100");
    let out = child.wait_with_output().unwrap();

    assert_eq!(String::from_utf8(done(out)).unwrap().trim(), "");
}
