// SPDX-License-Identifier: MPL-2.0
//! The documents say what the code does: pages made from it are up to date, tables agree, layers hold.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gst::prelude::*;
use gstscribe::error::engine_error;
use gstscribe::inference::EngineError;

#[path = "../examples/elements_doc.rs"]
mod elements_doc;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn the_page_of_elements_is_up_to_date() {
    gst::init().unwrap();
    gstscribe::plugin_register_static().unwrap();

    let made = elements_doc::markdown();

    if std::env::var_os("SCRIBE_BLESS").is_some() {
        std::fs::write(root().join("docs/elements.md"), &made).unwrap();
    }
    assert!(
        page("docs/elements.md") == made,
        "docs/elements.md is old: SCRIBE_BLESS=1 scripts/test.sh --test docs"
    );
}

#[test]
fn the_table_of_errors_names_the_codes_that_are_posted() {
    gst::init().unwrap();
    let table = page("docs/errors.md");
    let text = || "text".to_owned();
    let path = || PathBuf::from("/a/model.bin");
    let errors = [
        ("ModelMissing", EngineError::ModelMissing(text())),
        (
            "ModelFile",
            EngineError::ModelFile {
                path: path(),
                why: text(),
            },
        ),
        (
            "InvalidModel",
            EngineError::InvalidModel {
                path: path(),
                why: text(),
            },
        ),
        ("OutOfMemory", EngineError::OutOfMemory { what: text() }),
        ("Runtime", EngineError::Runtime(text())),
        ("Unsupported", EngineError::Unsupported(text())),
        (
            "Failed",
            EngineError::Failed {
                what: text(),
                why: text(),
            },
        ),
    ];

    for (name, error) in errors {
        let code = posted(&error);
        let row = table
            .lines()
            .find(|l| l.starts_with(&format!("| `EngineError::{name}`")))
            .unwrap_or_else(|| panic!("no row for EngineError::{name}"));
        assert!(
            row.contains(&format!("`{code}`")),
            "{name} is {code}: {row}"
        );
    }
}

/// Domain and code that an application sees.
fn posted(error: &EngineError) -> String {
    let pipeline = gst::Pipeline::new();
    pipeline.post_error_message(engine_error(error));
    let message = pipeline
        .bus()
        .unwrap()
        .pop_filtered(&[gst::MessageType::Error]);
    let message = message.unwrap();
    let gst::MessageView::Error(posted) = message.view() else {
        unreachable!("filtered");
    };
    let error = posted.error();
    if let Some(kind) = error.kind::<gst::ResourceError>() {
        format!("ResourceError::{kind:?}")
    } else if let Some(kind) = error.kind::<gst::LibraryError>() {
        format!("LibraryError::{kind:?}")
    } else {
        format!("{error:?}")
    }
}

#[test]
fn every_kind_of_error_is_in_the_table() {
    let table = page("docs/errors.md");
    for (file, name) in [
        ("src/inference/mod.rs", "EngineError"),
        ("src/inference/manifest/error.rs", "ModelError"),
    ] {
        let source = page(file);
        let body = source.split_once(&format!("pub enum {name} {{")).unwrap().1;
        let body = body.split_once("\n}").unwrap().0;
        let variants = body.lines().filter_map(|line| {
            let line = line.strip_prefix("    ")?;
            let end = line.find(['(', ' ', ','])?;
            line.starts_with(char::is_uppercase).then(|| &line[..end])
        });
        let variants: Vec<_> = variants.collect();
        assert!(variants.len() > 5, "{variants:?}");
        for variant in variants {
            assert!(
                table.contains(&format!("`{name}::{variant}`")),
                "no {name}::{variant}"
            );
        }
    }
}

/// Source lines of a folder, without comments.
fn lines(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            out.extend(lines(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
            out.extend(code.map(|l| (path.clone(), l.to_owned())));
        }
    }
    out
}

#[test]
fn only_inference_and_ffi_are_unsafe() {
    let src = root().join("src");
    for (path, line) in lines(&src) {
        let allowed = path.starts_with(src.join("inference")) || path == src.join("ffi.rs");
        let is_unsafe = line.contains("unsafe {")
            || line.contains("unsafe fn")
            || line.contains("unsafe impl")
            || line.contains("unsafe extern")
            || line.contains("allow(unsafe_code");
        assert!(allowed || !is_unsafe, "{}: {line}", path.display());
    }
}

#[test]
fn logic_registry_inference_and_arrays_know_nothing_of_gstreamer() {
    for folder in [
        "audio",
        "transcribe",
        "diarize",
        "enroll",
        "voices",
        "transcript",
        "registry",
        "inference",
        "dsp",
    ] {
        for (path, line) in lines(&root().join("src").join(folder)) {
            let knows = ["gst::", "gst_audio::", "gst_base::", "glib::"]
                .iter()
                .any(|name| line.contains(name));
            assert!(!knows, "{}: {line}", path.display());
        }
    }
}

#[test]
fn imports_are_those_of_the_table_in_the_architecture() {
    let page = page("docs/architecture.md");
    let table: BTreeMap<&str, BTreeSet<&str>> = page
        .lines()
        .skip_while(|l| !l.starts_with("| folder | may use |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|row| {
            let mut cells = row.split('|').skip(1);
            let name = cells.next().unwrap().split('`').nth(1).unwrap();
            let uses = cells
                .next()
                .unwrap()
                .split('`')
                .skip(1)
                .step_by(2)
                .collect();
            (name, uses)
        })
        .collect();
    assert!(table.len() >= 7, "{table:?}");

    for (folder, uses) in &table {
        for (path, line) in lines(&root().join("src").join(folder)) {
            for import in line.split("crate::").skip(1) {
                let end = import
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(import.len());
                let name = &import[..end];
                let is_module = root().join("src").join(name).is_dir()
                    || root().join("src").join(format!("{name}.rs")).is_file();
                assert!(
                    !is_module || name == *folder || uses.contains(name),
                    "{} uses {name}, and docs/architecture.md does not let {folder} do so",
                    path.display()
                );
            }
        }
    }
}
