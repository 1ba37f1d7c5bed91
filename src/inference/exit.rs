// SPDX-License-Identifier: MPL-2.0
//! Keeps engines and the end of the process apart.
//!
//! When `main` returns, the C library runs the destructors of ONNX Runtime's and ggml's globals while our threads
//! still run: a load that goes on then works on freed memory (seen: an abort in one of three pipelines that
//! failed at once). So the end of the process waits until nobody is inside an engine, and lets nobody in. Engines
//! look up between steps only, and a step may take longer than anybody who has pressed Ctrl-C will wait: then the
//! process ends there and then with the status it was given, and no destructor runs at all.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Longest wait of a process that wants to end. A step of an engine is under a second on an idle machine (a 30 s
/// encode of a small model) and ten on a busy one (seen); a load of a large model takes some seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Longest wait for what the process has written but not yet handed to the system.
const FLUSH_PATIENCE: Duration = Duration::from_millis(200);

struct Gate {
    inside: usize,
    /// Since when the process has been ending.
    leaving: Option<Instant>,
}

static GATE: Mutex<Gate> = Mutex::new(Gate {
    inside: 0,
    leaving: None,
});
static CHANGED: Condvar = Condvar::new();

fn gate() -> MutexGuard<'static, Gate> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// How often this thread is inside.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Held while a thread is inside an engine; it stays with the thread.
#[derive(Debug)]
#[must_use]
pub struct Inside(PhantomData<*const ()>);

/// Enters an engine's code. Never returns once the process is ending: what the thread would do is not wanted
/// any more. For threads of our own only.
pub fn enter() -> Inside {
    static ONCE: Once = Once::new();
    ONCE.call_once(watch);
    let mut gate = gate();
    while gate.leaving.is_some() {
        gate = CHANGED.wait(gate).unwrap_or_else(PoisonError::into_inner);
    }
    gate.inside += 1;
    DEPTH.set(DEPTH.get() + 1);
    Inside(PhantomData)
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        gate().inside -= 1;
        CHANGED.notify_all();
    }
}

/// Held while a thread that is inside an engine waits for another process to do the work: the end of this one
/// need not wait for that.
#[derive(Debug)]
#[must_use]
pub(super) struct Outside {
    depth: usize,
    here: PhantomData<*const ()>,
}

/// Steps out until the guard drops. A thread that is not inside stays so.
pub(super) fn outside() -> Outside {
    let depth = DEPTH.take();
    if depth > 0 {
        gate().inside -= depth;
        CHANGED.notify_all();
    }
    Outside {
        depth,
        here: PhantomData,
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if self.depth == 0 {
            return;
        }
        let mut gate = gate();
        while gate.leaving.is_some() {
            gate = CHANGED.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.inside += self.depth;
        DEPTH.set(DEPTH.get() + self.depth);
    }
}

/// Makes the end of the process wait. Handlers run in the reverse of their order, so this is called again after
/// a library with destructors of its own was loaded.
pub fn watch() {
    unsafe extern "C" {
        fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    // SAFETY: the handler is a function of this library, which GStreamer never unloads, does not unwind and does not
    // read its argument. A refusal (no memory) leaves things as they would be without it.
    unsafe { on_exit(last_handler, std::ptr::null_mut()) };
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

extern "C" fn last_handler(status: c_int, _argument: *mut c_void) {
    unsafe extern "C" {
        fn fflush(stream: *mut c_void) -> c_int;
        fn _exit(status: c_int) -> !;
    }
    if leave() {
        return;
    }
    // The C library would flush these later. A stream that somebody reads from is locked, and would hold us for ever:
    // hence the thread.
    let (tell, told) = mpsc::channel();
    let spawned = std::thread::Builder::new().spawn(move || {
        // SAFETY: a null stream means all of them.
        unsafe { fflush(std::ptr::null_mut()) };
        let _ = tell.send(());
    });
    if spawned.is_ok() {
        let _ = told.recv_timeout(FLUSH_PATIENCE);
    }
    // SAFETY: it ends the process at once.
    unsafe { _exit(status) }
}

/// Waits until nobody is inside an engine; false if somebody still is when the patience is over. It is one
/// patience for the whole end of the process, however many ask.
fn leave() -> bool {
    // Nobody may be left behind who would wait for us as a zombie.
    super::isolated::end_all();
    let mut gate = gate();
    let until = *gate.leaving.get_or_insert_with(Instant::now) + PATIENCE;
    while gate.inside > 0 {
        let Some(rest) = until.checked_duration_since(Instant::now()) else {
            return false;
        };
        gate = CHANGED
            .wait_timeout(gate, rest)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    true
}
