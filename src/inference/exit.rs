// SPDX-License-Identifier: MPL-2.0
//! Keeps engines and the end of the process apart.
//!
//! When `main` returns, the C library runs the destructors of ONNX Runtime's and ggml's globals while our threads
//! still run: a load that goes on then works on freed memory (seen: an abort in one of three pipelines that
//! failed at once). So the end of the process waits until nobody is inside an engine, and lets nobody in.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait of a process that wants to end. Engines look at their cancel flags between steps only: one step is a
/// second on an idle machine (a 30 s encode), ten on a busy one (seen), and a load of a large model some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

struct Gate {
    inside: usize,
    leaving: bool,
}

static GATE: Mutex<Gate> = Mutex::new(Gate {
    inside: 0,
    leaving: false,
});
static CHANGED: Condvar = Condvar::new();

fn gate() -> MutexGuard<'static, Gate> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held while a thread is inside an engine.
#[derive(Debug)]
#[must_use]
pub struct Inside(());

/// Enters an engine's code. Never returns once the process is ending: what the thread would do is not wanted
/// any more. For threads of our own only.
pub fn enter() -> Inside {
    static ONCE: Once = Once::new();
    ONCE.call_once(watch);
    let mut gate = gate();
    while gate.leaving {
        gate = CHANGED.wait(gate).unwrap_or_else(PoisonError::into_inner);
    }
    gate.inside += 1;
    Inside(())
}

impl Drop for Inside {
    fn drop(&mut self) {
        gate().inside -= 1;
        CHANGED.notify_all();
    }
}

/// Makes the end of the process wait. Handlers run in the reverse of their order, so this is called again after
/// a library with destructors of its own was loaded.
pub fn watch() {
    unsafe extern "C" {
        fn atexit(handler: extern "C" fn()) -> c_int;
    }
    // SAFETY: the handler is a function of this library, which GStreamer never unloads, and does not unwind. A refusal
    // (no memory) leaves things as they would be without it.
    unsafe { atexit(leave) };
}

/// Makes the end of the process wait if this thread is the one that ends it: the main thread, where applications
/// make their elements. Engines make globals whenever they need them, each with a destructor that runs before
/// ours; but those of the ending thread's own variables run before all of them.
pub fn watch_thread() {
    thread_local! {
        static LAST: Last = const { Last };
    }
    // A thread that is ending already needs no watch.
    let _ = LAST.try_with(|_| ());
}

struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        unsafe extern "C" {
            fn getpid() -> c_int;
            fn gettid() -> c_int;
        }
        // SAFETY: both take nothing and cannot fail.
        let is_main = unsafe { getpid() == gettid() };
        if is_main {
            leave();
        }
    }
}

extern "C" fn leave() {
    let until = Instant::now() + PATIENCE;
    let mut gate = gate();
    gate.leaving = true;
    while gate.inside > 0 {
        let Some(rest) = until.checked_duration_since(Instant::now()) else {
            return;
        };
        gate = CHANGED
            .wait_timeout(gate, rest)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}
