// SPDX-License-Identifier: MPL-2.0
//! The reading examples, run on real speech with the real model: each prints the words that are said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{eventually, init, plugin, repository, runs, there};
use gst::prelude::*;
use gstscribe::voices::{OpenOptions, Store};

const SAID: [&str; 8] = [
    "He", "might", "even", "have", "been", "made", "amiable", "himself",
];

fn ready() -> bool {
    there(&repository("models/ggml-tiny.en-q8_0.bin"), "make models")
        && there(&plugin(), "make build")
}

/// Runs an example on the short recording; its lines are start, end, confidence and word.
fn assert_prints_the_words(program: &Path, arguments: &[&Path]) {
    let out = Command::new("timeout")
        .arg("120")
        .arg(program)
        .args(arguments)
        .arg(repository("tests/data/speech_short.flac"))
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env(
            "GST_REGISTRY",
            repository("target/test-registry-examples.bin"),
        )
        .env("SCRIBE_MODELS", repository("models"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{out:?}");

    let mut last = 0.0;
    let mut said = Vec::new();
    for line in printed.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [start, end, confidence]: [f64; 3] = [0, 1, 2].map(|n| fields[n].parse().unwrap());
        assert!(last <= start && start < end && end < 4.5, "{printed}");
        assert!((0.0..=1.0).contains(&confidence), "{printed}");
        last = start;
        said.push(fields[3].trim_end_matches(['.', ',']));
    }
    assert_eq!(said, SAID, "{printed}");
}

/// A test program lies in `deps`, examples beside it.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name)
}

#[test]
fn the_python_example_reads_words_and_times() {
    let python = "/usr/bin/python3";
    let imports = "import gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst; Gst.init(None)";
    if !ready() || !runs(python, &["-c", imports], "apt install python3-gst-1.0") {
        return;
    }

    assert_prints_the_words(Path::new(python), &[&repository("examples/read_meta.py")]);
}

#[test]
fn the_c_example_reads_words_and_times() {
    let pkg_config = ["--exists", "gstreamer-1.0 >= 1.22"];
    let found = ready()
        && runs("cc", &["--version"], "apt install build-essential")
        && runs("pkg-config", &pkg_config, "apt install libgstreamer1.0-dev");
    if !found {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("read_meta");
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", "gstreamer-1.0"])
        .output()
        .unwrap();

    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &repository("examples/read_meta.c")])
        .args(String::from_utf8(flags.stdout).unwrap().split_whitespace())
        .output()
        .unwrap();

    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    assert_prints_the_words(&program, &[]);
}

#[test]
fn the_rust_example_reads_words_and_times() {
    let program = example("app");
    if !ready()
        || !there(
            &program,
            "cargo build --release --example app (a bare cargo test does it)",
        )
    {
        return;
    }

    assert_prints_the_words(&program, &[]);
}

#[test]
fn the_enrolling_example_says_what_it_has_learnt() {
    let program = example("enrol");
    if !there(&plugin(), "make build") || !there(&program, "cargo build --release --example enrol")
    {
        return;
    }
    if !there(&repository("models/ge2e-resemblyzer.onnx"), "make models") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();

    let out = Command::new(&program)
        .args(["Austen", "voices.db"])
        .arg(repository("tests/data/speech_short.flac"))
        .current_dir(folder.path())
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}");
    assert!(said.contains("1/1 batches"), "{said}");
    assert!(
        said.lines()
            .any(|l| l.starts_with("Austen: ") && l.ends_with(", weak")),
        "{said}"
    );
}

/// The batch program in `folder`, with `arguments`.
fn batch(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(example("batch"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("SCRIBE_MODELS", repository("models"))
        .env_remove("SCRIBE_MEMORY_LIMIT");
    command
}

fn batch_ready() -> bool {
    ready()
        && there(
            &example("batch"),
            "cargo build --release --features cli --example batch",
        )
}

fn run_batch(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let out: Output = batch(folder, arguments).output().unwrap();
    let printed = String::from_utf8(out.stdout).unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    (out.status.code(), format!("{printed}{said}"))
}

/// A figure of the summary, as it stands there.
fn figure<'a>(printed: &'a str, name: &str) -> &'a str {
    let line = printed.lines().find_map(|l| l.strip_prefix(name));
    assert!(line.is_some(), "no {name} in {printed}");
    line.unwrap_or_default().trim()
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(files_below(&path));
        } else {
            names.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    names.sort();
    names
}

/// A film with that sound, or a mute one.
fn make_film(to: &Path, sound: Option<&Path>) {
    init();
    let sound = sound.map_or_else(String::new, |path| {
        format!(
            "filesrc location={} ! decodebin ! audioconvert ! vorbisenc ! m.",
            path.display()
        )
    });
    let line = format!(
        "videotestsrc num-buffers=30 ! vp8enc deadline=1 ! matroskamux name=m ! filesink location={} {sound}",
        to.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let end = pipeline.bus().unwrap().timed_pop_filtered(
        gst::ClockTime::try_from(common::GUARD).unwrap(),
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    assert_eq!(end.unwrap().type_(), gst::MessageType::Eos);
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_folder_of_recordings_is_done_although_some_are_bad_and_once_only() {
    if !batch_ready() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let talks = folder.path().join("talks");
    let speech = repository("tests/data/speech_short.flac");
    std::fs::create_dir_all(talks.join("below")).unwrap();
    // Two of one name, one of them with an ending that lies.
    std::fs::copy(&speech, talks.join("below/said.flac")).unwrap();
    std::fs::copy(&speech, talks.join("below/said.mp3")).unwrap();
    make_film(&talks.join("film.mkv"), Some(&speech));
    make_film(&talks.join("mute.mkv"), None);
    std::fs::write(talks.join("bad.wav"), "no sound at all").unwrap();
    std::fs::write(talks.join("notes.txt"), "not a recording").unwrap();
    std::fs::copy(&speech, talks.join("subtitled.flac")).unwrap();
    let subtitle = "1\n00:00:01,000 --> 00:00:02,500\nSomebody wrote this\n";
    std::fs::write(talks.join("subtitled.srt"), subtitle).unwrap();
    // A run that was killed has left half a file.
    let out = folder.path().join("out");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join(".film.vtt.part"), "WEBVTT").unwrap();
    let arguments = ["--use-sidecar", "--memory-limit", "75%", "--jobs", "3"];
    let arguments = [&arguments[..], &["--out", "out", "talks"]].concat();

    let (code, printed) = run_batch(folder.path(), &arguments);

    assert_eq!(code, Some(1), "{printed}");
    assert_eq!(figure(&printed, "Total"), "6", "{printed}");
    assert_eq!(figure(&printed, "Processed"), "4 (1 from sidecars)");
    assert_eq!(figure(&printed, "Errors"), "2");
    assert_eq!(figure(&printed, "Success"), "66.7 %");
    assert_eq!(figure(&printed, "Degraded"), "0");
    assert!(printed.contains("bad.wav: "), "{printed}");
    assert!(printed.contains("mute.mkv: there is no sound"), "{printed}");
    let written = ["film.vtt", "said.flac.vtt", "said.mp3.vtt", "subtitled.vtt"];
    assert_eq!(files_below(&out), written);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert!(read("film.vtt").contains("amiable himself"));
    assert_eq!(read("below/said.flac.vtt"), read("below/said.mp3.vtt"));
    assert!(read("subtitled.vtt").contains("00:01.000 --> "));
    assert!(read("subtitled.vtt").contains("Somebody wrote this"));

    // What is there stays; what is older than its recording does not.
    std::fs::write(out.join("film.vtt"), "mine").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let aged = std::fs::File::options()
        .write(true)
        .open(out.join("below/said.mp3.vtt"));
    aged.unwrap().set_modified(old).unwrap();
    let (code, printed) = run_batch(folder.path(), &arguments);

    assert_eq!(code, Some(1), "{printed}");
    assert_eq!(figure(&printed, "Skipped"), "3", "{printed}");
    assert_eq!(figure(&printed, "Processed"), "1", "{printed}");
    assert_eq!(read("film.vtt"), "mine");

    let (code, printed) = run_batch(
        folder.path(),
        &["--overwrite", "--out", "out", "talks/film.mkv"],
    );

    assert_eq!(code, Some(0), "{printed}");
    assert!(read("film.vtt").contains("amiable himself"));
}

#[test]
fn a_sidecar_is_copied_or_converted_and_left_alone_where_it_cannot_serve() {
    if !batch_ready() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy(
        repository("tests/data/speech_short.flac"),
        path.join("talk.flac"),
    )
    .unwrap();
    let subtitle = "1\r\n00:00:01,000 --> 00:00:02,500\r\nSomebody <b>wrote</b> this\r\n";
    std::fs::write(path.join("talk.srt"), subtitle).unwrap();
    let run = |format: &str| {
        let arguments = [
            "--use-sidecar",
            "--format",
            format,
            "--out",
            ".",
            "talk.flac",
        ];
        // Beside the recording lies the sidecar itself.
        let out = if format == "srt" { "copies" } else { "." };
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|a| if *a == "." { out } else { a })
            .collect();
        let (code, printed) = run_batch(path, &arguments);
        assert_eq!(code, Some(0), "{printed}");
        printed
    };

    assert_eq!(figure(&run("srt"), "Processed"), "1 (1 from sidecars)");
    let copy = std::fs::read_to_string(path.join("copies/talk.srt")).unwrap();
    assert_eq!(copy, subtitle);
    for (format, file) in [
        ("json", "talk.json"),
        ("text", "talk.txt"),
        ("ttml", "talk.ttml"),
    ] {
        assert_eq!(figure(&run(format), "Processed"), "1 (1 from sidecars)");
        let text = std::fs::read_to_string(path.join(file)).unwrap();
        assert!(text.contains("Somebody wrote this"), "{text}");
    }
    // Words with times: nobody wrote those.
    assert_eq!(figure(&run("ctm"), "Processed"), "1");
    let words = std::fs::read_to_string(path.join("talk.ctm")).unwrap();
    assert!(words.contains(" amiable "), "{words}");

    // No subtitles at all, whatever its name says.
    std::fs::remove_file(path.join("talk.srt")).unwrap();
    std::fs::write(path.join("talk.vtt"), [0u8; 64]).unwrap();
    std::fs::remove_file(path.join("talk.txt")).unwrap();
    let printed = run("text");
    assert_eq!(figure(&printed, "Processed"), "1", "{printed}");
    assert!(printed.contains("talk.vtt cannot be used"), "{printed}");
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn ctrl_c_leaves_whole_files_alone_and_the_same_command_goes_on() {
    if !batch_ready() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for n in 1..=4 {
        std::fs::copy(
            repository("tests/data/demo.opus"),
            path.join(format!("{n}.opus")),
        )
        .unwrap();
    }
    let arguments = ["--jobs", "1", "--out", "out", "--format", "json", "."];

    let child = batch(path, &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the second file is begun", || {
        path.join("out/.2.json.part").exists()
    });
    interrupt(&child);
    let out = child.wait_with_output().unwrap();

    let printed = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(130), "{printed}");
    assert_eq!(figure(&printed, "Processed"), "1", "{printed}");
    assert_eq!(figure(&printed, "Not done"), "3", "{printed}");
    assert_eq!(files_below(&path.join("out")), ["1.json"]);
    let first = std::fs::read(path.join("out/1.json")).unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&first).is_ok());

    let (code, printed) = run_batch(path, &arguments);

    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(figure(&printed, "Skipped"), "1", "{printed}");
    assert_eq!(figure(&printed, "Processed"), "3", "{printed}");
    assert_eq!(std::fs::read(path.join("out/1.json")).unwrap(), first);
    assert_eq!(
        files_below(&path.join("out")),
        ["1.json", "2.json", "3.json", "4.json"]
    );
}

#[test]
fn batch_tells_who_speaks() {
    if !batch_ready() || !there(&repository("models/segmentation-3.0.onnx"), "make models") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy(repository("tests/data/demo.opus"), path.join("talk.opus")).unwrap();

    let (code, printed) = run_batch(path, &["--speakers", "--out", "out", "talk.opus"]);

    assert_eq!(code, Some(0), "{printed}");
    let written = std::fs::read_to_string(path.join("out/talk.vtt")).unwrap();
    assert!(
        written.contains("<v Speaker 1>") && written.contains("<v Speaker 3>"),
        "{written}"
    );
    // The same people by name.
    let learnt = Command::new(repository("pipelines/learn_speakers.sh"))
        .args(["talk.opus", "voices.db", "talk.json"])
        .current_dir(path)
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .status()
        .unwrap();
    assert!(learnt.success());
    let mut store = Store::open(&path.join("voices.db"), &OpenOptions::default()).unwrap();
    let first = store.find("Speaker 1").unwrap().id;
    store.rename(first, "Jane").unwrap();
    drop(store);

    let (code, printed) = run_batch(
        path,
        &["--voices", "voices.db", "--out", "named", "talk.opus"],
    );

    assert_eq!(code, Some(0), "{printed}");
    let written = std::fs::read_to_string(path.join("named/talk.vtt")).unwrap();
    assert!(written.contains("<v Jane>And"), "{written}");
}

#[test]
fn wrong_use_of_batch_is_told_before_any_file_is_begun() {
    if !batch_ready() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy(
        repository("tests/data/speech_short.flac"),
        path.join("talk.flac"),
    )
    .unwrap();
    std::fs::create_dir(path.join("empty")).unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&[], "required"),
        (&["empty"], "no recordings"),
        (&["--format", "doc", "talk.flac"], "choose vtt"),
        (&["--jobs", "0", "talk.flac"], "--jobs"),
        (&["--voices", "none.db", "talk.flac"], "enrol someone first"),
        (&["--memory-limit", "much", "talk.flac"], "12G"),
        (&["--property", "beam-size", "talk.flac"], "NAME=VALUE"),
        (&["--property", "beams=4", "talk.flac"], "no property beams"),
        (&["--property", "beam-size=four", "talk.flac"], "\"four\""),
    ];
    for (arguments, words) in cases {
        let (code, said) = run_batch(path, arguments);

        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert!(!path.join("transcripts").exists());
}
