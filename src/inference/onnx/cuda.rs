// SPDX-License-Identifier: MPL-2.0
//! ONNX Runtime on an NVIDIA card.
//!
//! The library that was found may be able to use cards or not; it says so. Its provider is a library of its own beside it,
//! which is opened when the first model wants a card, and is linked with CUDA's: those that lie beside it are opened before
//! it, so that they are found without `LD_LIBRARY_PATH`. What is on a card is a session's own, with a cap.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use once_cell::sync::OnceCell;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::library;
use crate::inference::whisper_cpp::cuda::ORDER;
use crate::inference::{EngineError, nvml};

/// What the provider is linked with, or opens, whatever its version, those first that others want.
const LIBRARIES: [&str; 7] = [
    "libcudart.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libnvrtc.so.",
    "libcudnn.so.",
];
/// How to get a library that can do it.
const REMEDY: &str = "`scribe-models runtime --provider cuda` (in the repository `make build GPU=cuda`) gets an ONNX \
                      Runtime that has all it needs";

/// Room on a card for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// The card's number, as in `cuda:N`.
    pub card: u32,
    /// What weights and tensors of the session may take, bytes. What CUDA's libraries take comes on top.
    pub bytes: u64,
}

/// Has the sessions that are built run on a card, or says why they cannot.
pub(super) fn register(builder: SessionBuilder, room: Room) -> Result<SessionBuilder, EngineError> {
    #[cfg(any(test, feature = "test-support"))]
    if stand_in::is_there() {
        return Ok(builder);
    }
    let device = device(room.card)?;
    let provider = CUDA::default()
        .with_device_id(device)
        .with_memory_limit(usize::try_from(room.bytes).unwrap_or(usize::MAX))
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // The default tries out all it knows, with as much memory as they ask for.
        .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
        .build()
        // Without it the processor would do the work, and nobody would be told.
        .error_on_failure();
    with(builder, provider).map_err(|why| unusable(room.card, &why))
}

/// Opens the provider's library, and nothing on a card yet.
fn with(
    builder: SessionBuilder,
    provider: ExecutionProviderDispatch,
) -> Result<SessionBuilder, String> {
    builder
        .with_execution_providers([provider])
        .map_err(|e| does_not_load(&e.to_string()))
}

/// Why a session that wants a card could not be made, if CUDA is the reason.
pub(super) fn failed(room: Room, why: &str) -> Option<EngineError> {
    let said = why.find("CUDA failure ").map(|at| &why[at..])?;
    let said = said.split([';', '\n']).next().unwrap_or(said).trim();
    let remedy = if said.contains("insufficient") {
        "install a newer driver of NVIDIA: CUDA 13 wants 580 or newer"
    } else {
        "nvidia-smi says whether the card and its driver work"
    };
    Some(unusable(room.card, &format!("{said}: {remedy}")))
}

/// Whether models on ONNX Runtime can run on a card as far as its library goes; why not, where they cannot.
pub fn look() -> Result<(), String> {
    let environment = library::environment().map_err(|e| e.to_string())?;
    if !has_provider() {
        return Err(no_provider());
    }
    preload();
    let provider = CUDA::default().build().error_on_failure();
    let builder = Session::builder(environment).map_err(|e| e.to_string())?;
    with(builder, provider).map(drop)
}

/// What CUDA calls the card, if it and the library can be used. Both reasons are told where neither can.
fn device(number: u32) -> Result<i32, EngineError> {
    library::environment()?;
    let card = nvml::card(number);
    let missing: Vec<String> = [(!has_provider()).then(no_provider), card.err()]
        .into_iter()
        .flatten()
        .collect();
    if !missing.is_empty() {
        return Err(unusable(number, &missing.join("; and ")));
    }
    preload();
    ordinal(number).map_err(|why| unusable(number, &why))
}

fn unusable(number: u32, why: &str) -> EngineError {
    EngineError::Unsupported(format!(
        "device cuda:{number} cannot be used by ONNX Runtime: {why}. Set device=cpu, or a fallback"
    ))
}

fn has_provider() -> bool {
    CUDA::is_available().unwrap_or(false)
}

fn no_provider() -> String {
    let found = library::path().map_or("the one that was found".into(), |path| {
        path.display().to_string()
    });
    format!("{found} has no CUDA provider: {REMEDY}")
}

/// ONNX Runtime's word for a provider that it cannot open, with what to do.
fn does_not_load(why: &str) -> String {
    let said = why.lines().next().unwrap_or_default();
    // Where in its source it was, and then what the system says.
    let said = said.rsplit("with error: ").next().unwrap_or(said).trim();
    let remedy = if said.contains("libcuda.so") {
        "it is part of NVIDIA's driver".to_owned()
    } else {
        REMEDY.to_owned()
    };
    format!("its CUDA provider does not start ({said}): {remedy}")
}

/// Opens CUDA's libraries that lie beside ONNX Runtime's, once. Those that lie elsewhere the system finds, or the provider
/// says which it misses.
fn preload() {
    static OPEN: OnceCell<Vec<Library>> = OnceCell::new();
    OPEN.get_or_init(|| {
        let folder = library::path().and_then(|path| path.parent().map(Path::to_owned));
        let found = folder.map(|folder| beside(&folder)).unwrap_or_default();
        let open = |path: PathBuf| {
            // SAFETY: CUDA's libraries do nothing at their start that others could notice, and they stay open for the life
            // of the process, as what they are opened for does.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok()
        };
        found.into_iter().filter_map(open).collect()
    });
}

/// CUDA's libraries in a folder, in the order in which they are to be opened.
fn beside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let of = |stem: &&str| names.iter().find(|name| name.starts_with(stem));
    let found = LIBRARIES.iter().filter_map(of);
    found.map(|name| folder.join(name)).collect()
}

/// CUDA's own number of a card: its order is the fastest first where nobody has set another.
fn ordinal(number: u32) -> Result<i32, String> {
    let by_bus = std::env::var_os(ORDER.0).is_some_and(|order| order == ORDER.1);
    if by_bus || nvml::visible_cards()?.len() == 1 {
        return i32::try_from(number).map_err(|e| e.to_string());
    }
    let (domain, bus, device) = nvml::address(number)?;
    at_address(&format!("{domain:04x}:{bus:02x}:{device:02x}.0"))
}

/// The number of the card at an address, of the driver. It makes no context.
fn at_address(address: &str) -> Result<i32, String> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type ByAddress = unsafe extern "C" fn(device: *mut c_int, address: *const c_char) -> c_int;
    let text = |e: libloading::Error| e.to_string();
    let c_address = CString::new(address).map_err(|e| e.to_string())?;
    // SAFETY: NVIDIA's driver, which NVML has opened already.
    let driver = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }.map_err(text)?;
    // SAFETY: the types are those of cuda.h, and the symbols are not used after the library is closed.
    let (init, by_address) = unsafe {
        let init = driver.get::<Init>(c"cuInit").map_err(text)?;
        let by_address = driver.get::<ByAddress>(c"cuDeviceGetByPCIBusId");
        (init, by_address.map_err(text)?)
    };
    let mut device = 0;
    // SAFETY: the flags must be 0; the pointers are to a number and to a string that ends with NUL, alive during the call.
    let answer = unsafe {
        match init(0) {
            0 => by_address(&mut device, c_address.as_ptr()),
            failed => failed,
        }
    };
    if answer == 0 {
        Ok(device)
    } else {
        Err(format!(
            "CUDA does not know the card at {address} (error {answer})"
        ))
    }
}

/// In place of a card, for tests: what is said to run on one runs on the processor.
#[cfg(any(test, feature = "test-support"))]
pub mod stand_in {
    use std::sync::atomic::{AtomicBool, Ordering};

    static THERE: AtomicBool = AtomicBool::new(false);

    /// From now on all sessions of this process that want a card are made without one.
    pub fn put() {
        THERE.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_there() -> bool {
        THERE.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_others_are_linked_with_are_opened_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libcublas.so.13",
            "libcublasLt.so.13",
            "libcudart.so.13",
            "libcurand.so.10",
            "libonnxruntime.so.1",
            "libonnxruntime_providers_cuda.so",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }

        let found = beside(folder.path());

        let names: Vec<_> = found.iter().filter_map(|p| p.file_name()).collect();
        let wanted = [
            "libcudart.so.13",
            "libcublasLt.so.13",
            "libcublas.so.13",
            "libcurand.so.10",
        ];
        assert_eq!(names, wanted);
        assert!(beside(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn what_is_missing_is_told_with_who_has_it() {
        let driver = "provider_bridge_ort.cc:2043 [ONNXRuntimeError] : 1 : FAIL : Failed to load library /x/provider.so \
                      with error: libcuda.so.1: cannot open shared object file\nmore";
        let driver = does_not_load(driver);
        let cublas = does_not_load("libcublasLt.so.13: cannot open shared object file");

        assert!(
            driver.contains("start (libcuda.so.1: cannot open shared object file): it is part of"),
            "{driver}"
        );
        assert!(cublas.contains("--provider cuda"), "{cublas}");
    }
}
