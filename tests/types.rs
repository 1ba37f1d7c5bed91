// SPDX-License-Identifier: MPL-2.0
//! A string where a model should be does not compile: the sources in tests/types, given to rustc beside the library that
//! this test was built with. (trybuild would do the same and build whisper.cpp once more for its own profile.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo puts what this test was linked with.
fn deps() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().to_owned()
}

/// What rustc says of a source; nothing if it compiles.
fn compile(source: &str) -> Option<String> {
    let deps = deps();
    let library = deps.join("libgstscribe.rlib");
    assert!(library.is_file(), "no {}", library.display());
    let out = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/types")
        .join(source);
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "lib",
            "--emit",
            "metadata",
        ])
        .arg("--out-dir")
        .arg(out.path())
        .arg("-L")
        .arg(format!("dependency={}", deps.display()))
        .arg("--extern")
        .arg(format!("gstscribe={}", library.display()))
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    (!said.status.success()).then_some(text)
}

#[test]
fn a_lease_compiles_where_a_lease_is_wanted() {
    assert_eq!(compile("right.rs"), None);
}

#[test]
fn a_string_where_a_model_should_be_does_not_compile() {
    for (source, code, words) in [
        (
            "a_name_for_a_model.rs",
            "E0308",
            "expected `&Lease<Whisper>`, found `&str`",
        ),
        (
            "a_name_asked_to_transcribe.rs",
            "E0599",
            "no method named `submit` found for reference `&'static str`",
        ),
        (
            "another_kind_of_model.rs",
            "E0308",
            "expected `&Lease<Whisper>`, found `&Lease<Embedding>`",
        ),
        (
            "a_name_for_a_spec.rs",
            "E0271",
            "type mismatch resolving `<Whisper as Kind>::Spec == &str`",
        ),
    ] {
        let said = compile(source).unwrap_or_else(|| panic!("{source} compiles"));

        assert!(said.contains(&format!("error[{code}]")), "{said}");
        assert!(said.contains(words), "{source}: {said}");
        assert_eq!(said.matches("error[").count(), 1, "{source}: {said}");
    }
}
