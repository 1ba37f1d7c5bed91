// SPDX-License-Identifier: MPL-2.0
//! The reading examples, run on real speech with the real model: each prints the words that are said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{plugin, repository, runs, there};

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
