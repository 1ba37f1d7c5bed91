// SPDX-License-Identifier: MPL-2.0
//! `pipelines/stream_to_hls.sh`: real speech over RTSP and RTMP in real time, and what players would read. The pictures
//! turn white while somebody speaks: captions are held against them, on the transport stream's own clock.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "hls/read.rs"]
mod read;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::*;
use read::Presentation;
use rustix::process::{Pid, Signal, kill_process};

const SCRIPT: &str = "pipelines/stream_to_hls.sh";
const SERVER: &str = "tests/hls/rtsp_server.py";

/// Utterances of tests/data/demo.opus, in seconds: tests/data/demo.ref.tsv has them.
const SPOKEN: [(f64, f64); 5] = [
    (1.078, 8.064),
    (8.619, 11.516),
    (12.372, 17.146),
    (19.861, 21.667),
    (23.898, 25.773),
];
/// Those that begin a caption, because a long silence is before them, and how.
const BEGINNINGS: [(usize, &str); 3] =
    [(0, "John Dashwood"), (3, "Go somewhere"), (4, "Go forward")];

fn can_stream() -> bool {
    there(&plugin(), "make build")
        && there(
            &program(),
            "cargo build --release --features cli --examples",
        )
        && there(
            &repository("models/whisper-tiny.en-onnx-int8.encoder.onnx"),
            "make models",
        )
        && runs("gst-launch-1.0", &["--version"], "make setup")
        && runs("ffmpeg", &["-version"], "make setup-test")
}

fn can_serve() -> bool {
    let imports = "import gi; gi.require_version('GstRtspServer', '1.0'); \
                   from gi.repository import GstRtspServer";
    runs("/usr/bin/python3", &["-c", imports], "make setup-test")
}

fn program() -> PathBuf {
    repository("target/release/examples/hls")
}

/// A film of the first 29 seconds of the recording: white while somebody speaks, else nearly black. Then silence.
fn film(path: &Path, seconds: u32) {
    let spoken = SPOKEN.map(|(from, to)| format!("between(t,{from},{to})"));
    let pictures = format!(
        "color=0x202020:s=320x180:r=25,drawbox=c=white:t=fill:enable='{}'",
        spoken.join("+")
    );
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", &pictures, "-i"])
        .arg(repository("tests/data/demo.opus"))
        .args(["-af", "atrim=0:29,apad", "-t", &seconds.to_string()])
        // A key picture a second: what is passed on as it is can be cut there.
        .args(["-c:v", "libx264", "-tune", "zerolatency", "-g", "25"])
        .args(["-pix_fmt", "yuv420p", "-c:a", "libopus", "-b:a", "64k"])
        .arg(path)
        .output()
        .unwrap();
    done(made);
}

fn done(out: Output) {
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {errors}", out.status);
}

/// One stream at a time: each has the processor that a live stream needs.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills what it holds when the test is over, however it ends.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server, and its address.
fn serve(film: &Path) -> (Guarded, String) {
    let mut server = Command::new("/usr/bin/python3")
        .arg(repository(SERVER))
        .arg(film)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    let told = server.stdout.take().unwrap();
    let server = Guarded(server);
    BufReader::new(told).read_line(&mut address).unwrap();
    (server, address.trim().to_owned())
}

/// The script, to be killed after three minutes.
fn script(input: &str, folder: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=10", "180"])
        .arg(repository(SCRIPT))
        .arg(input)
        .arg(folder)
        .args(options)
        .env("GST_REGISTRY", repository("target/test-registry-hls.bin"))
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env("SCRIBE_MODELS", repository("models"))
        .env("LC_ALL", "C");
    command
}

/// Waits until the playlist has captions of that number.
fn wait_for_captions(folder: &Path, number: u32) {
    let playlist = folder.join("captions.m3u8");
    let started = Instant::now();
    // Several may come at once.
    let is_there = |text: String| {
        let numbers = text.lines().filter_map(|line| {
            let name = line.strip_prefix("captions")?;
            name.strip_suffix(".vtt")?.parse::<u32>().ok()
        });
        numbers.max() >= Some(number)
    };
    while !std::fs::read_to_string(&playlist).is_ok_and(is_there) {
        assert!(started.elapsed() < GUARD * 4, "it hangs before {number}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// As Ctrl-C does, and it ends well.
fn interrupt(child: Child) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    done(child.wait_with_output().unwrap());
}

/// A caption begins within a second of the white picture with which it was said, on the clock of the transport stream, and
/// no caption is shown where nobody speaks.
fn assert_in_step(shown: &Presentation) {
    let white = shown.white_spans();
    assert_eq!(white.len(), SPOKEN.len(), "{white:?}");
    let cues = shown.cues();
    for (utterance, words) in BEGINNINGS {
        let said = white[utterance].0;
        let cue = cues
            .iter()
            .find(|cue| (cue.start - said).abs() <= 1.0)
            .unwrap_or_else(|| panic!("nothing at {said}: {cues:#?}"));
        assert!(cue.text.contains(words), "{said}: {cue:?}");
    }
    for cue in &cues {
        // It may stay for a second, and a live word is good to as much.
        let is_spoken = |(from, to): &(f64, f64)| cue.start > from - 1.0 && cue.end < to + 2.0;
        let turns = [(white[0].0, white[2].1), white[3], white[4]];
        assert!(turns.iter().any(is_spoken), "{cue:?} outside of {white:?}");
    }
    let text: Vec<&str> = cues.iter().map(|c| c.text.as_str()).collect();
    let text = text.join(" ");
    for word in [
        "Dashwood",
        "leisure",
        "prudently",
        "selfish",
        "somewhere",
        "forward",
    ] {
        assert!(text.contains(word), "no {word:?}: {text}");
    }
}

#[test]
fn speech_over_rtsp_has_captions_where_it_was_said() {
    if !can_stream() || !can_serve() {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (film_at, out) = (folder.path().join("film.mkv"), folder.path().join("out"));
    film(&film_at, 29);
    let (_server, address) = serve(&film_at);

    done(
        script(&address, &out, &["--segment", "4"])
            .output()
            .unwrap(),
    );

    let shown = Presentation::read(&out);
    assert!(shown.has_ended);
    assert!(
        shown.video.len() >= 6 && shown.captions.len() >= 6,
        "{shown:?}"
    );
    assert!(shown.codecs.starts_with("avc1.") && shown.codecs.ends_with(",mp4a.40.2"));
    assert_in_step(&shown);
    // Whole files of equal length, also where nobody speaks.
    let lengths = shown.captions.iter().map(|c| c.length).rev().skip(1);
    for length in lengths {
        assert!((length - 4.0).abs() < 0.002, "{shown:?}");
    }
}

/// ffmpeg is the server: `-listen 1` plays to whoever comes. It numbers no streams, which rtmp2src does not take, and so this
/// is GStreamer's other source of RTMP. When the film is over that ends with an error: it is interrupted before.
#[test]
fn speech_over_rtmp_has_captions_where_it_was_said() {
    if !can_stream() || !runs("gst-inspect-1.0", &["rtmpsrc"], "make setup") {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (film_at, out) = (folder.path().join("film.mkv"), folder.path().join("out"));
    film(&film_at, 60);
    // A port that was free a moment ago.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let address = format!("rtmp://127.0.0.1:{port}/app/talk");
    let server = Command::new("ffmpeg")
        .args(["-v", "error", "-re", "-i"])
        .arg(&film_at)
        .args(["-c:v", "copy", "-c:a", "aac", "-f", "flv", "-listen", "1"])
        .arg(&address)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Guarded(server);
    eventually("ffmpeg listens", || {
        let tcp = std::fs::read_to_string("/proc/net/tcp").unwrap();
        tcp.contains(&format!("0100007F:{port:04X} 00000000:0000 0A"))
    });
    let child = script(&address, &out, &["--segment", "4"])
        .env("GST_PLUGIN_FEATURE_RANK", "rtmp2src:NONE")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    wait_for_captions(&out, 7);
    interrupt(child);

    let shown = Presentation::read(&out);
    assert!(shown.has_ended);
    assert_in_step(&shown);
}

/// Ctrl-C ends the stream and its playlists, and the window holds no more than was asked.
#[test]
fn a_stream_that_is_interrupted_has_whole_playlists_of_its_window() {
    if !can_stream() || !can_serve() {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (film_at, out) = (folder.path().join("film.mkv"), folder.path().join("out"));
    film(&film_at, 29);
    let (_server, address) = serve(&film_at);
    let options = ["--segment", "2", "--window", "3"];
    let child = script(&address, &out, &options)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    wait_for_captions(&out, 4);
    // What players read meanwhile is good, and does not say that it is over.
    let meanwhile = Presentation::read_playlists(&out);
    assert!(!meanwhile.has_ended);
    interrupt(child);

    let shown = Presentation::read(&out);
    assert!(shown.has_ended);
    assert!(
        shown.video.len() <= 3 && shown.first_captions > 0,
        "{shown:?}"
    );
    // Captions are there for the pictures that are there.
    let first = &shown.captions[0];
    let pictures = shown.starts_at();
    assert!(first.start < pictures + 0.05, "{shown:?}");
    assert!(first.start + first.length > pictures - 0.05, "{shown:?}");
}

/// Faster than it was spoken, pictures that are encoded anew: cut to the millisecond, with captions beside each.
#[test]
fn a_file_is_cut_where_its_captions_are() {
    if !can_stream() || !runs("gst-inspect-1.0", &["x264enc"], "make setup-test") {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (film_at, out) = (folder.path().join("film.mkv"), folder.path().join("out"));
    film(&film_at, 29);
    let options = ["--segment", "5", "--encode", "--language", "en"];

    done(
        script(film_at.to_str().unwrap(), &out, &options)
            .output()
            .unwrap(),
    );

    let shown = Presentation::read(&out);
    assert_eq!(shown.language.as_deref(), Some("en"));
    assert_in_step(&shown);
    assert_eq!(shown.video.len(), 6, "{shown:?}");
    for segment in &shown.video[..5] {
        assert!((segment.length - 5.0).abs() < 0.05, "{shown:?}");
    }
}

#[test]
fn a_stream_that_is_not_there_is_an_error() {
    if !can_stream() {
        return;
    }
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();

    let nowhere = folder.path().join("nowhere.mkv");
    let run = script(nowhere.to_str().unwrap(), folder.path(), &[])
        .output()
        .unwrap();

    let errors = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{errors}");
    assert!(errors.contains("nowhere.mkv"), "{errors}");
}
