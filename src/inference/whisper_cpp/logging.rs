// SPDX-License-Identifier: MPL-2.0
//! Takes the log lines of whisper.cpp and ggml away from stderr.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Once, OnceLock};

use whisper_rs::whisper_rs_sys as sys;

/// How bad a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For developers.
    Debug,
    /// For the curious.
    Info,
    /// Something odd.
    Warning,
    /// Something failed.
    Error,
}

type Sink = fn(Level, &str);
static SINK: OnceLock<Sink> = OnceLock::new();
static INSTALL: Once = Once::new();

/// Where lines go from now on. The first call wins; without one they are dropped.
pub fn set_sink(sink: Sink) {
    // A second plugin registration in the same process brings the same function.
    let _ = SINK.set(sink);
}

/// Hands on a line that another process has logged.
pub(in crate::inference) fn forward(level: Level, line: &str) {
    if let Some(sink) = SINK.get() {
        sink(level, line);
    }
}

/// Installs the callbacks. Must come before the first context; further calls do nothing.
pub(super) fn install() {
    // SAFETY: the callback is a plain function that lives as long as the process and takes no user data.
    // Both libraries keep one global each; `Once` keeps us from writing them twice.
    INSTALL.call_once(|| unsafe {
        sys::whisper_log_set(Some(line), std::ptr::null_mut());
        sys::ggml_log_set(Some(line), std::ptr::null_mut());
    });
}

unsafe extern "C" fn line(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    let Some(sink) = SINK.get() else { return };
    if text.is_null() {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that is valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    let level = match level {
        sys::ggml_log_level_GGML_LOG_LEVEL_ERROR => Level::Error,
        sys::ggml_log_level_GGML_LOG_LEVEL_WARN => Level::Warning,
        sys::ggml_log_level_GGML_LOG_LEVEL_INFO => Level::Info,
        _ => Level::Debug,
    };
    // A panic must not cross into C.
    let _ = std::panic::catch_unwind(|| sink(level, text));
}
