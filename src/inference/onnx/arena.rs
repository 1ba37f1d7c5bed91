// SPDX-License-Identifier: MPL-2.0
//! The one arena of CPU memory that all ONNX sessions of the process share, with a cap.
//!
//! Without it each session has an arena of its own that grows to the next power of two, never gives anything back and
//! knows no limit: it held two and a half times what was in use. This one takes what is asked for and no more, and a
//! batch that does not fit under the cap is an error that the session survives. Weights count under the cap too, in
//! blocks of their own.
//!
//! The cap is fixed when the environment is made: an allocator of an environment is for life.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;

use crate::inference::EngineError;

/// Cap where nobody has asked for one, in bytes: the largest batches of the models that the manifest knows, side by
/// side, with as much again to spare.
pub const DEFAULT_ARENA_CAP: u64 = 2 << 30;

/// ONNX Runtime's number for "take what is asked for"; its default is the next power of two.
const SAME_AS_REQUESTED: usize = 1;

/// What the arena holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ArenaStats {
    /// Bytes that weights and tensors take now.
    pub in_use: u64,
    /// Bytes taken from the system.
    pub allocated: u64,
    /// The most that was in use at once.
    pub max_in_use: u64,
    /// The cap.
    pub limit: u64,
    /// How often it grew.
    pub extensions: u64,
    /// How often it gave something back.
    pub shrinkages: u64,
}

struct Cap {
    asked: Option<u64>,
    /// Set for good once the arena is there.
    fixed: Option<u64>,
}

static CAP: Mutex<Cap> = Mutex::new(Cap {
    asked: None,
    fixed: None,
});

/// The arena as a session shows it. The environment's own list answers with the allocator that it had before.
static SEEN: Mutex<Option<Allocator>> = Mutex::new(None);

fn cap() -> MutexGuard<'static, Cap> {
    CAP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks for a cap in bytes, in place of [`DEFAULT_ARENA_CAP`]. Before the first use of ONNX Runtime in this process the
/// last who asks wins; after it the cap stays as it is, and [`EngineError::Unsupported`] tells both values to whoever
/// asks for another.
pub fn set_arena_cap(bytes: u64) -> Result<(), EngineError> {
    let mut cap = cap();
    match cap.fixed {
        None => {
            cap.asked = Some(bytes);
            Ok(())
        }
        Some(fixed) if fixed == bytes => Ok(()),
        Some(fixed) => Err(EngineError::Unsupported(format!(
            "the memory of ONNX Runtime's batches is limited to {fixed} bytes since its first use in this process, and \
             cannot be limited to {bytes} now: set the limit before the first model is loaded"
        ))),
    }
}

/// The cap in force: what the arena was made with, or will be.
pub fn arena_cap() -> u64 {
    let cap = cap();
    cap.fixed.or(cap.asked).unwrap_or(DEFAULT_ARENA_CAP)
}

/// What the arena holds; `None` before the first model is loaded.
pub fn arena_stats() -> Option<ArenaStats> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    statistics(seen.as_ref()?).ok()
}

/// Keeps the arena in sight: `session` uses it.
pub(super) fn watch(session: &Session) -> Result<(), ort::Error> {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.is_none() {
        // It shares the arena with the environment and outlives the session.
        *seen = Some(Allocator::new(session, memory_info()?)?);
    }
    Ok(())
}

/// Makes the arena, if it is not there yet.
pub(super) fn register(environment: &Environment) -> Result<(), EngineError> {
    let mut cap = cap();
    if cap.fixed.is_some() {
        return Ok(());
    }
    let bytes = cap.asked.unwrap_or(DEFAULT_ARENA_CAP);
    create(environment, bytes).map_err(|e| {
        EngineError::Runtime(format!(
            "ONNX Runtime cannot make its memory arena of {bytes} bytes: {e}"
        ))
    })?;
    cap.fixed = Some(bytes);
    Ok(())
}

fn create(environment: &Environment, bytes: u64) -> Result<(), ort::Error> {
    let max = usize::try_from(bytes).unwrap_or(usize::MAX);
    let settings = [
        (c"max_mem", max),
        (c"arena_extend_strategy", SAME_AS_REQUESTED),
    ];
    let keys = settings.map(|(key, _)| key.as_ptr());
    let values = settings.map(|(_, value)| value);
    let info = memory_info()?;
    let api = ort::api();
    let mut config = ptr::null_mut();
    // SAFETY: as many keys, terminated by NUL, as values, both alive during the call, which copies them. `config` is
    // written if the status is null.
    unsafe {
        let status =
            (api.CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), keys.len(), &mut config);
        ort::Error::result_from_status(status)?;
    }
    // SAFETY: the environment is alive and guards its list of allocators with a lock of its own, hence the pointer
    // that is not const. It copies what the configuration and the memory info say. The configuration is ours and is
    // released once.
    unsafe {
        let status =
            (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), info.ptr(), config);
        (api.ReleaseArenaCfg)(config);
        ort::Error::result_from_status(status)
    }
}

fn memory_info() -> Result<MemoryInfo<'static>, ort::Error> {
    MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Arena,
        MemoryType::Default,
    )
}

fn statistics(arena: &Allocator) -> Result<ArenaStats, ort::Error> {
    let api = ort::api();
    let mut pairs = ptr::null_mut();
    // SAFETY: the allocator is alive; the arena is read under its own lock. `pairs` is written if the status is null.
    unsafe {
        let status = (api.AllocatorGetStats)(arena.ptr(), &mut pairs);
        ort::Error::result_from_status(status)?;
    }
    let value = |key: &CStr| -> u64 {
        // SAFETY: the pairs live until they are released below; a value is a string terminated by NUL that lives with
        // them, or null for a key that is not there.
        unsafe {
            let text = (api.GetKeyValue)(pairs.cast_const(), key.as_ptr());
            if text.is_null() {
                return 0;
            }
            CStr::from_ptr(text)
                .to_str()
                .ok()
                .and_then(|t| t.parse().ok())
                .unwrap_or(0)
        }
    };
    let stats = ArenaStats {
        in_use: value(c"InUse"),
        allocated: value(c"TotalAllocated"),
        max_in_use: value(c"MaxInUse"),
        limit: value(c"Limit"),
        extensions: value(c"NumArenaExtensions"),
        shrinkages: value(c"NumArenaShrinkages"),
    };
    // SAFETY: they are ours, and nobody reads them any more.
    unsafe { (api.ReleaseKeyValuePairs)(pairs) };
    Ok(stats)
}
