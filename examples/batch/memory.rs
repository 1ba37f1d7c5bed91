// SPDX-License-Identifier: MPL-2.0
//! Memory of this process, and the limit that scribe keeps to.

use gstscribe::registry::limit::MemoryLimit;
use gstscribe::registry::{Registry, RegistrySettings};

/// Has the process's registry keep to `limit`.
pub fn limit(limit: Option<&MemoryLimit>) -> Result<(), String> {
    let Some(limit) = limit else { return Ok(()) };
    Registry::configure(RegistrySettings {
        memory_limit: Some(*limit),
        ..RegistrySettings::from_environment()
    })
}

/// Memory of the machine, in bytes.
pub fn total() -> u64 {
    field("/proc/meminfo", "MemTotal:")
}

/// Memory of this process now, in bytes.
pub fn now() -> u64 {
    field("/proc/self/status", "VmRSS:")
}

/// The most it had.
pub fn peak() -> u64 {
    field("/proc/self/status", "VmHWM:")
}

/// A line of one of the system's tables, in bytes; 0 where there is none.
fn field(table: &str, name: &str) -> u64 {
    std::fs::read_to_string(table)
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .unwrap_or(0)
        * 1024
}
