// SPDX-License-Identifier: MPL-2.0
//! whisper.cpp, ONNX Runtime, and what they run on.

use gstscribe::inference::onnx::{cuda, library};
use gstscribe::inference::whisper_cpp;
use gstscribe::registry::device::cards;
use gstscribe::registry::limit::human_bytes;

use crate::machine;
use crate::report::Report;

/// Without these whisper.cpp is many times too slow on an x86 processor that has them.
const VECTORS: [(&str, &str); 3] = [("avx2", "AVX2"), ("fma", "FMA"), ("f16c", "F16C")];

/// Adds what is found.
pub fn look(report: &mut Report) {
    report.section("engines");
    report.ok("whisper.cpp", whisper_rs::WHISPER_CPP_VERSION);
    vectors(report);
    match library::environment() {
        Ok(_) => {
            report.ok("ONNX Runtime", runtime());
            match cuda::look() {
                Ok(()) => report.ok("ONNX Runtime, CUDA", "its provider loads"),
                Err(why) => report.note(
                    "ONNX Runtime, CUDA",
                    format!("its models run on the processor alone: {why}"),
                    None,
                ),
            }
        }
        Err(error) => report.missing(
            "ONNX Runtime",
            error.to_string(),
            "scribe-models runtime, or SCRIBE_ORT_LIB=/path/libonnxruntime.so",
        ),
    }
    match cards() {
        Ok(cards) if cards.is_empty() => report.note("GPU", "none, though there is a driver", None),
        Ok(cards) => {
            for (number, card) in cards.iter().enumerate() {
                let size = human_bytes(card.total_bytes);
                let found = format!("{}, {size}, driver {}", card.name, card.driver);
                report.ok(&format!("GPU cuda:{number}"), found);
            }
        }
        Err(why) => report.note("GPU", format!("none: {why}"), None),
    }
    if cfg!(feature = "cuda") {
        report.ok("CUDA", "this build runs whisper.cpp on a card");
    } else {
        report.note(
            "CUDA",
            "this build runs whisper.cpp on the processor alone",
            None,
        );
    }
}

/// The library that was loaded, with its version, which is the end of its file's name.
fn runtime() -> String {
    let path = library::path().unwrap_or_else(|| "loaded".into());
    let path = path.display().to_string();
    match path.rsplit_once(".so.") {
        Some((_, version)) => format!("{version} ({path})"),
        None => path,
    }
}

fn vectors(report: &mut Report) {
    let used = whisper_cpp::simd();
    let has = machine::cpu_flags();
    let unused: Vec<&str> = VECTORS
        .into_iter()
        .filter(|(flag, name)| has.iter().any(|h| h == flag) && !used.contains(name))
        .map(|(_, name)| name)
        .collect();
    let used = if used.is_empty() {
        "none".to_owned()
    } else {
        used.join(" ")
    };
    if unused.is_empty() {
        report.ok("instruction sets", used);
    } else {
        report.note(
            "instruction sets",
            format!(
                "{used}; this processor has {} too: it could be many times faster",
                unused.join(", ")
            ),
            Some("cargo clean --release -p whisper-rs-sys && make build"),
        );
    }
}
