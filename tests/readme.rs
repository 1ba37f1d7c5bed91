// SPDX-License-Identifier: MPL-2.0
//! Every pipeline in the README is one in pipelines/, and those run on the recordings of the repository.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The gst-launch-1.0 lines of a text, continued lines joined, names of files and people and variables before them taken out.
fn pipelines(text: &str) -> Vec<String> {
    text.replace("\\\n", " ")
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| Some(line[line.find("gst-launch-1.0 ")?..].to_owned()))
        .map(|line| {
            let words = line
                .split_whitespace()
                .map(|word| match word.split_once('=') {
                    Some((property @ ("location" | "voices" | "name-of"), _)) => {
                        format!("{property}=…")
                    }
                    _ => word.to_owned(),
                });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// Scripts whose words are no file or standard output at the end, and the tests that run them.
const ELSEWHERE: [(&str, &str); 5] = [
    ("burn_captions.sh", "tests/pipelines.rs"),
    ("cea608_in_ts.sh", "tests/cea608.rs"),
    ("stream_to_hls.sh", "tests/hls.rs"),
    ("many_files.sh", "tests/pipelines.rs"),
    ("microphone_to_terminal.sh", "tests/pipelines.rs"),
];

fn name_of(script: &Path) -> String {
    script.file_name().unwrap().to_string_lossy().into_owned()
}

fn scripts() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("pipelines")).unwrap();
    let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    all.retain(|p| !p.ends_with("common.sh"));
    all.sort();
    all
}

#[test]
fn every_pipeline_of_the_readme_is_a_script() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let known: Vec<String> = scripts()
        .iter()
        .flat_map(|script| pipelines(&std::fs::read_to_string(script).unwrap()))
        .collect();

    let shown = pipelines(&readme);

    assert!(shown.len() >= 4, "{shown:?}");
    for line in shown {
        assert!(
            known.contains(&line),
            "no script has: {line}\nscripts have:\n{}",
            known.join("\n")
        );
    }
}

/// Whether models and plugin are there. Under `make test` they must be.
fn complete() -> bool {
    let there = root().join("target/release/libgstscribe.so").is_file()
        && root().join("models/ggml-tiny.en-q8_0.bin").is_file()
        && Command::new("gst-launch-1.0")
            .arg("--version")
            .output()
            .is_ok();
    assert!(
        there || std::env::var_os("SCRIBE_TEST_COMPLETE").is_none(),
        "plugin, models or gst-launch-1.0 are missing: make build models"
    );
    if !there {
        println!("skipped: plugin, models or gst-launch-1.0 are missing (make build models)");
    }
    there
}

fn run(program: &Path, arguments: &[&Path]) -> Vec<u8> {
    let cache = tempfile::tempdir().unwrap();
    let out = Command::new(program)
        .args(arguments)
        .env("GST_PLUGIN_PATH", root().join("target/release"))
        .env("GST_REGISTRY", cache.path().join("registry.bin"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {errors}", program.display());
    out.stdout
}

#[test]
fn every_script_writes_the_words_of_a_recording() {
    if !complete() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sound = root().join("tests/data/speech_short.flac");
    let video = folder.path().join("video.mkv");
    let make = format!(
        "gst-launch-1.0 -q matroskamux name=m ! filesink location='{}' \
         videotestsrc num-buffers=60 ! video/x-raw,width=160,height=120,framerate=15/1 ! vp8enc deadline=1 ! m. \
         filesrc location='{}' ! flacparse ! m.",
        video.display(),
        sound.display()
    );
    run(Path::new("sh"), &[Path::new("-c"), Path::new(&make)]);
    let wanted = std::fs::read_to_string(root().join("tests/data/speech_short.ref.txt")).unwrap();
    let longest = wanted
        .split_whitespace()
        .max_by_key(|w| w.len())
        .unwrap()
        .to_lowercase();
    let longest = longest.trim_matches(|c: char| !c.is_alphanumeric());

    for script in scripts() {
        if let Some((_, test)) = ELSEWHERE.iter().find(|(name, _)| script.ends_with(name)) {
            let test = std::fs::read_to_string(root().join(test)).unwrap();
            assert!(test.contains(&format!("pipelines/{}", name_of(&script))));
            continue;
        }
        let out = folder.path().join("out");
        let needs_video = script.ends_with("subtitles_into_mkv.sh");
        let input = if needs_video { &video } else { &sound };

        // The voices are there from the second on: scripts come in the order of their names.
        let voices = folder.path().join("voices.db");
        let name = Path::new("Austen");
        let arguments: &[&Path] = match script.file_name().and_then(|n| n.to_str()) {
            Some("enrol_a_person.sh") => &[input, name, &voices],
            Some("file_to_json_with_names.sh" | "learn_speakers.sh") => &[input, &voices, &out],
            _ => &[input, &out],
        };

        let shown = run(&script, arguments);

        let written = if out.is_file() {
            std::fs::read(&out).unwrap()
        } else {
            shown
        };
        let text = String::from_utf8_lossy(&written).to_lowercase();
        let longest = match script.file_name().and_then(|n| n.to_str()) {
            // Turns have no words.
            Some("who_spoke_when.sh") => "speaker audio 1",
            Some("enrol_a_person.sh") => {
                assert!(voices.is_file());
                continue;
            }
            Some("file_to_json_with_names.sh") => "\"austen\"",
            _ => longest,
        };
        assert!(
            text.contains(longest),
            "{}: no \"{longest}\"",
            script.display()
        );
        let _ = std::fs::remove_file(out);
    }
}
