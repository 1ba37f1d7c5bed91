// SPDX-License-Identifier: MPL-2.0
//! `scribe-doctor`, run where all is there and where nothing is.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{plugin, repository, there};
use serde_json::Value;

/// The program with a home and caches of its own, in a folder from which it finds nothing by itself.
fn doctor(folder: &Path) -> Command {
    let program = folder.join("bin/scribe-doctor");
    if !program.exists() {
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        // By another process, for the reason that tests/models_program.rs gives.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_scribe-doctor"))
            .arg(&program)
            .status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(program);
    command
        .env("HOME", folder)
        .env("GST_REGISTRY", folder.join("registry.bin"))
        .env("GST_PLUGIN_PATH", folder)
        .env("SCRIBE_MODELS", folder.join("models"))
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_CACHE_HOME")
        .env_remove("SCRIBE_ORT_LIB")
        .env_remove("ORT_DYLIB_PATH")
        .env_remove("SCRIBE_MANIFEST")
        .env_remove("SCRIBE_MEMORY_LIMIT");
    command
}

/// Exit status and what was printed.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    (
        out.status.code(),
        format!("{}{said}", String::from_utf8(out.stdout).unwrap()),
    )
}

/// The finding called `name`.
fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = report["sections"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|section| section["findings"].as_array().unwrap())
        .find(|finding| finding["name"] == name);
    assert!(found.is_some(), "no {name} in {report:#}");
    found.unwrap_or(report)
}

#[test]
fn where_all_is_there_the_doctor_says_what_and_where() {
    let ready = there(&plugin(), "make build")
        && there(&repository("models/ggml-tiny.en-q8_0.bin"), "make models");
    if !ready {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = doctor(folder.path());
    command
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env("SCRIBE_MODELS", repository("models"))
        .env("SCRIBE_MEMORY_LIMIT", "12G");

    let (code, printed) = run(&mut command);

    assert_eq!(code, Some(0), "{printed}");
    assert!(
        printed.ends_with("all that is needed is here\n"),
        "{printed}"
    );
    for words in [
        plugin().to_str().unwrap(),
        "whisper.cpp",
        "libonnxruntime.so.1.",
        "whisper-tiny.en-q8_0",
        "digest right",
        "MIT",
        "processor",
        "memory-limit 12.0 GB",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }

    let (code, printed) = run(command.arg("--json"));

    assert_eq!(code, Some(0));
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["complete"], true);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(finding(&report, "plugin")["state"], "ok");
    let gstreamer = finding(&report, "GStreamer")["found"].as_str().unwrap();
    assert!(gstreamer.starts_with("1."), "{gstreamer}");
}

#[test]
fn where_nothing_is_there_each_thing_is_named_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("libonnxruntime.so");
    let mut command = doctor(folder.path());
    command.env("SCRIBE_ORT_LIB", &nowhere);

    let (code, printed) = run(&mut command);

    assert_eq!(code, Some(1), "{printed}");
    assert!(
        printed.contains(
            "missing: plugin, ONNX Runtime, default for speech to text, default for voice activity"
        ),
        "{printed}"
    );
    let (code, printed) = run(command.arg("--json"));
    assert_eq!(code, Some(1));
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["complete"], false);
    for (name, remedy) in [
        ("plugin", "GST_PLUGIN_PATH"),
        ("ONNX Runtime", "scribe-models runtime"),
        (
            "default for speech to text",
            "scribe-models fetch whisper-tiny.en",
        ),
        ("default for voice activity", "scribe-models fetch silero"),
    ] {
        let finding = finding(&report, name);
        assert_eq!(finding["state"], "missing", "{finding:#}");
        let told = finding["remedy"].as_str().unwrap();
        assert!(told.contains(remedy), "{told}");
    }
    // One cannot be installed, the other need not be.
    for name in ["CUDA", "scribe-worker"] {
        assert_ne!(finding(&report, name)["state"], "missing");
    }
}

#[test]
fn a_model_that_is_not_what_its_name_says_is_found_out() {
    let model = repository("models/ggml-tiny.en-q8_0.bin");
    if !there(&model, "make models") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir_all(&models).unwrap();
    let mut bytes = std::fs::read(model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(models.join("ggml-tiny.en-q8_0.bin"), bytes).unwrap();

    let (code, printed) = run(doctor(folder.path()).arg("--json"));

    assert_eq!(code, Some(1));
    let report: Value = serde_json::from_str(&printed).unwrap();
    let model = finding(&report, "whisper-tiny.en-q8_0");
    assert_eq!(model["state"], "note", "{model:#}");
    assert!(
        model["found"].as_str().unwrap().contains("SHA-256"),
        "{model:#}"
    );
    assert_eq!(model["remedy"], "scribe-models fetch whisper-tiny.en-q8_0");
    assert_eq!(
        finding(&report, "default for speech to text")["state"],
        "missing"
    );
}

#[test]
fn wrong_use_is_told_apart_from_something_missing() {
    let folder = tempfile::tempdir().unwrap();

    let (code, printed) = run(doctor(folder.path()).arg("--cure"));

    assert_eq!(code, Some(2), "{printed}");
}
