// SPDX-License-Identifier: MPL-2.0
//! The library as it is released: no fake engines in it, nothing needed that users may lack, nothing shown
//! but the plugin. Wants `make build`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::process::Command;

use common::{plugin, runs, there};

/// Says what `program` prints about the released library; `None` where there is nothing to ask.
fn about_library(program: &str, arguments: &[&str]) -> Option<String> {
    if !there(&plugin(), "make build") || !runs(program, &["--version"], "apt install binutils") {
        return None;
    }
    let out = Command::new(program)
        .args(arguments)
        .arg(plugin())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    Some(String::from_utf8(out.stdout).unwrap())
}

#[test]
fn the_released_library_holds_no_fake_engine() {
    if !there(&plugin(), "make build") {
        return;
    }
    let bytes = std::fs::read(plugin()).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());

    // The first shows that such texts are found at all.
    assert!(holds("scribe-models fetch"));
    assert!(!holds("no fake model named"));
    assert!(!holds("SCRIBE_SIMULATED_CARD"));
}

#[test]
fn the_released_library_needs_neither_cuda_nor_onnx_runtime() {
    let Some(dynamic) = about_library("readelf", &["-d", "-W"]) else {
        return;
    };

    let needed: Vec<&str> = dynamic.lines().filter(|l| l.contains("(NEEDED)")).collect();

    assert!(
        needed.iter().any(|l| l.contains("libgstreamer-1.0")),
        "{dynamic}"
    );
    for unwanted in [
        "libcuda",
        "libcudart",
        "libcublas",
        "libonnxruntime",
        "libgstcheck",
    ] {
        assert!(
            !needed.iter().any(|l| l.contains(unwanted)),
            "{unwanted}: {needed:#?}"
        );
    }
}

#[test]
fn the_released_library_shows_the_plugin_alone() {
    let Some(symbols) = about_library("nm", &["-D", "--defined-only"]) else {
        return;
    };

    let names: Vec<&str> = symbols
        .lines()
        .filter_map(|l| l.split_whitespace().last())
        .collect();

    assert!(names.contains(&"gst_plugin_scribe_register"), "{names:?}");
    assert!(names.contains(&"gst_plugin_scribe_get_desc"), "{names:?}");
    let others: Vec<_> = names
        .iter()
        .filter(|name| !name.starts_with("gst_plugin_scribe_"))
        .collect();
    assert!(
        others.is_empty(),
        "{} others: {:?}",
        others.len(),
        &others[..others.len().min(20)]
    );
}

#[test]
fn whisper_cpp_uses_the_instructions_the_machine_has() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags: Vec<&str> = cpu
        .lines()
        .find(|l| l.starts_with("flags"))
        .map(|l| l.split_whitespace().collect())
        .unwrap_or_default();

    let used = gstscribe::inference::whisper_cpp::simd();

    for (flag, name) in [("avx2", "AVX2"), ("fma", "FMA"), ("f16c", "F16C")] {
        assert!(
            !flags.contains(&flag) || used.contains(&name),
            "{name} is there, used are {used:?}"
        );
    }
}
