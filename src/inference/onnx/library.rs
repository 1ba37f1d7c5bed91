// SPDX-License-Identifier: MPL-2.0
//! Finds ONNX Runtime, checks its version and owns the one environment a process may have.
//!
//! Nothing is linked: a machine without the library can load the plugin and gets an error that names the
//! remedy from the element that needs it. The environment has one arena of CPU memory with a cap (see `arena`);
//! it is given out together with the environment, so that no session is ever made without it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use once_cell::sync::OnceCell;

use super::arena;
use crate::inference::EngineError;

/// Oldest ONNX Runtime that will do.
const OLDEST: &str = "1.24";

/// Where one that can use cards lies, from the folder above the plugin's. Not below the plugin's: GStreamer would try each
/// `.so` in there as a plugin of its own.
const FOR_CARDS: &str = "scribe/cuda";

/// A second environment is refused for the life of the process, even after the first is gone: it stays.
static ENVIRONMENT: OnceCell<ort::environment::Environment> = OnceCell::new();
/// Where the plugin's file lies; set once when GStreamer registers it.
static PLUGIN_FOLDER: OnceCell<PathBuf> = OnceCell::new();
/// Libraries that the process which started this one has told: no others are looked for.
static TOLD: OnceCell<Vec<PathBuf>> = OnceCell::new();
/// The library that the environment is of.
static FOUND: OnceCell<PathBuf> = OnceCell::new();
/// A library named by a property, asked for before the environment exists.
static ASKED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Tells where the plugin's file lies, so that a library beside it is found.
pub fn set_plugin_folder(folder: &Path) {
    // GStreamer may register twice in one process: the same folder then.
    let _ = PLUGIN_FOLDER.set(folder.to_owned());
}

/// The plugin's folder, if GStreamer has told it.
pub fn plugin_folder() -> Option<&'static Path> {
    PLUGIN_FOLDER.get().map(PathBuf::as_path)
}

/// Asks for one library by path. Only heeded before the first use in the process.
pub fn set_library(path: &Path) {
    *ASKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
}

/// What a process that is to use the same library must try: the one in use, or those that would be tried now.
pub(super) fn choices() -> Vec<PathBuf> {
    match FOUND.get() {
        Some(found) => vec![found.clone()],
        None => candidates().into_iter().map(whole).collect(),
    }
}

/// Tries these and no others, as [`choices`] of another process says. Heeded before the first use in the process.
pub(super) fn set_choices(libraries: Vec<PathBuf>) {
    let _ = TOLD.set(libraries);
}

/// The path from the root, whatever folder is the current one later; a bare name stays.
fn whole(library: PathBuf) -> PathBuf {
    match std::path::absolute(&library) {
        Ok(whole) if !is_bare(&library) => whole,
        _ => library,
    }
}

/// A bare name is for the loader to find.
fn is_bare(library: &Path) -> bool {
    library.components().count() == 1
}

/// The environment with its arena, made at the first call. A failure is forgotten, so that a later call, with the
/// library in place, succeeds.
pub fn environment() -> Result<&'static ort::environment::Environment, EngineError> {
    let environment = ENVIRONMENT.get_or_try_init(create)?;
    arena::register(environment)?;
    Ok(environment)
}

fn create() -> Result<ort::environment::Environment, EngineError> {
    let mut tried = Vec::new();
    for candidate in candidates() {
        // Any other path must be a file, or ort looks elsewhere itself.
        if !is_bare(&candidate) && !candidate.is_file() {
            tried.push(format!("{}: not there", candidate.display()));
            continue;
        }
        match ort::init_from(&candidate) {
            Ok(builder) => {
                // Its destructors are known to the C library now: ours must run before them.
                crate::inference::exit::watch();
                let environment = builder
                    .with_name("scribe")
                    .with_telemetry(false)
                    // It would write to stderr, at every batch that does not fit too. What matters comes back in
                    // the texts of errors.
                    .with_logger(Arc::new(|_, _, _, _, _| {}))
                    .build()
                    .map_err(|e| {
                        EngineError::Runtime(format!(
                            "ONNX Runtime at {} does not start: {e}",
                            candidate.display()
                        ))
                    })?;
                environment.set_log_level(ort::logging::LogLevel::Fatal);
                let _ = FOUND.set(whole(candidate));
                return Ok(environment);
            }
            Err(e) => tried.push(format!("{}: {e}", candidate.display())),
        }
    }
    Err(EngineError::Runtime(missing(&tried)))
}

/// The library's file, once it is loaded: an absolute path without links.
pub fn path() -> Option<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::new();
    ENVIRONMENT.get()?;
    let found = FOUND.get_or_try_init(|| {
        // Whoever loads it, by path or by name: the system knows where it was.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let paths = maps
            .lines()
            .filter_map(|line| Some(&line[line.find('/')?..]));
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut paths = paths.filter(|path| name(path).starts_with("libonnxruntime.so"));
        paths.next().map(PathBuf::from).ok_or(())
    });
    found.ok().cloned()
}

fn missing(tried: &[String]) -> String {
    format!(
        "no ONNX Runtime that can be used: {OLDEST} or newer is needed. Get it with `scribe-models runtime`, or name \
         libonnxruntime.so in the environment variable SCRIBE_ORT_LIB. Tried: {}",
        tried.join("; ")
    )
}

fn candidates() -> Vec<PathBuf> {
    if let Some(told) = TOLD.get() {
        return told.clone();
    }
    let mut out = Vec::new();
    let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    out.extend(asked);
    for variable in ["SCRIBE_ORT_LIB", "ORT_DYLIB_PATH"] {
        let value = std::env::var_os(variable).filter(|v| !v.is_empty());
        out.extend(value.map(PathBuf::from));
    }
    if !out.is_empty() {
        // What a person named is used or refused, never passed over in silence.
        return out;
    }
    let folders = folders();
    // One that can use cards does all that the other does.
    for folder in &folders {
        let beside = folder.parent().map(|parent| parent.join(FOR_CARDS));
        for sub in beside.into_iter().chain([folder.join("cuda")]) {
            out.extend(libraries_in(&sub));
        }
    }
    for folder in folders {
        for sub in [folder.join("scribe"), folder] {
            out.extend(libraries_in(&sub));
        }
    }
    out.push("libonnxruntime.so.1".into());
    out.push("libonnxruntime.so".into());
    out
}

/// The plugin's folder; for programs and tests that link the library, the executable's and its parent's
/// (`target/release/deps` and `target/release`); then where `scribe-models runtime` puts it.
pub(in crate::inference) fn folders() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = plugin_folder().map(Path::to_owned).into_iter().collect();
    // GStreamer looks into folders of folders, and may take the copy that cargo keeps in `target/release/deps`.
    let built = plugin_folder().filter(|folder| folder.ends_with("deps"));
    out.extend(built.and_then(Path::parent).map(Path::to_owned));
    if let Ok(program) = std::env::current_exe() {
        out.extend(program.ancestors().skip(1).take(2).map(Path::to_owned));
        // `target/debug` has no copy of its own: the one that set-up put beside the release build serves.
        out.extend(
            program
                .ancestors()
                .skip(1)
                .take(4)
                .map(|a| a.join("release")),
        );
    }
    let data_home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    out.extend(data_home.map(|d| d.join("scribe/lib")));
    out
}

fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(|p| {
            let name = p
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
        })
        .collect();
    // The newest by name first.
    found.sort();
    found.reverse();
    found
}
