// SPDX-License-Identifier: MPL-2.0
//! Parts of a test that need a process of their own: what ONNX Runtime decides at its first use it decides for good,
//! and memory is measured by the process.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::process::{Command, Stdio};

const CHILD: &str = "SCRIBE_TEST_CHILD";

/// What the test's own process was started for; `None` in the process that runs all tests.
pub fn task() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// A command that runs the test `name` of this program, for `task`. Its output goes into pipes.
pub fn command(name: &str, task: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(CHILD, task)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the test `name` in a process of its own, which must succeed. What it `tell`s.
pub fn run(name: &str, task: &str) -> Vec<String> {
    let out = command(name, task).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{name} for {task}: {}\n{said}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    said.lines().filter_map(told).collect()
}

/// Tells `what` to the process that waits for this one.
pub fn tell(what: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // The test harness writes to the same pipe, without an end of line at times.
    writeln!(out, "\n>{what}").unwrap();
    out.flush().unwrap();
}

/// What a line of a process that `tell`s says.
pub fn told(line: &str) -> Option<String> {
    line.strip_prefix('>').map(str::to_owned)
}

/// Bytes of memory that this process holds.
pub fn resident() -> u64 {
    status("VmRSS:")
}

/// The same without pages of files, which the system takes back and gives again as it likes.
pub fn anonymous() -> u64 {
    status("RssAnon:")
}

/// The most it has held since [`reset_peak`].
pub fn peak() -> u64 {
    status("VmHWM:")
}

/// Bytes of its address space.
pub fn address_space() -> u64 {
    status("VmSize:")
}

pub fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

/// Gives back to the system what malloc keeps for later.
#[allow(unsafe_code, reason = "a call of the C library")]
pub fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: it may be called at any time.
    unsafe { malloc_trim(0) };
}

/// Lets the address space grow to `bytes` at most.
#[allow(unsafe_code, reason = "a call of the C library")]
pub fn limit_address_space(bytes: u64) {
    #[repr(C)]
    struct Limit {
        soft: u64,
        hard: u64,
    }
    unsafe extern "C" {
        fn setrlimit(resource: std::ffi::c_int, limit: *const Limit) -> std::ffi::c_int;
    }
    const ADDRESS_SPACE: std::ffi::c_int = 9;
    let limit = Limit {
        soft: bytes,
        hard: u64::MAX,
    };
    // SAFETY: the limit is read during the call.
    let failed = unsafe { setrlimit(ADDRESS_SPACE, &limit) };
    assert_eq!(failed, 0);
}
