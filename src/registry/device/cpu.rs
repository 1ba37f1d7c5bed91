// SPDX-License-Identifier: MPL-2.0
//! The machine's memory, or that of the control group the process runs in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Device, MemoryView, with_workers};
use crate::inference::DeviceId;

/// See the module.
#[derive(Debug)]
pub struct Cpu {
    /// Folders of the control groups from the process's own up to the root, where version 2 is mounted.
    groups: Vec<PathBuf>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// Finds the control group.
    pub fn new() -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            groups: groups(Path::new("/sys/fs/cgroup"), &own),
        }
    }
}

/// Every group limits those below it.
fn groups(root: &Path, own: &str) -> Vec<PathBuf> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let mut folder = root.join(path);
    let mut out = Vec::new();
    // In a container the path may be that of the host: then only the root is there.
    loop {
        if folder.join("memory.max").is_file() {
            out.push(folder.clone());
        }
        if folder == root || !folder.pop() || !folder.starts_with(root) {
            break;
        }
    }
    out
}

impl Device for Cpu {
    fn id(&self) -> DeviceId {
        DeviceId::Cpu
    }

    fn probe(&self) -> Result<MemoryView, String> {
        let info = read("/proc/meminfo".as_ref())?;
        let field = |name: &str| {
            kilobytes(&info, name).ok_or_else(|| format!("/proc/meminfo has no {name}"))
        };
        // What our workers hold is ours.
        let workers = crate::inference::isolated::workers();
        let own = kilobytes(&read("/proc/self/status".as_ref())?, "VmRSS:").unwrap_or(0)
            + workers.into_iter().filter_map(resident).sum::<u64>();
        let mut view = MemoryView {
            total: field("MemTotal:")?,
            available: field("MemAvailable:")?,
            own: Some(own),
        };
        for group in &self.groups {
            // `max` stands for none.
            let Some(max) = number(&group.join("memory.max")) else {
                continue;
            };
            let current = number(&group.join("memory.current")).unwrap_or(0);
            let stat = read(&group.join("memory.stat")).unwrap_or_default();
            let cache: u64 = ["inactive_file ", "active_file "]
                .iter()
                .filter_map(|name| stat.lines().find_map(|l| l.strip_prefix(name)))
                .filter_map(|n| n.trim().parse::<u64>().ok())
                .sum();
            view.total = view.total.min(max);
            let free = max.saturating_sub(current.saturating_sub(cache));
            view.available = view.available.min(free);
        }
        view.available = view.available.min(view.total);
        Ok(view)
    }

    fn held_by(&self, pid: u32) -> Option<u64> {
        let processes = with_workers(pid).into_iter();
        processes
            .filter_map(resident)
            .reduce(|sum, more| sum + more)
    }

    fn granule(&self) -> u64 {
        4096
    }

    fn context_bytes(&self) -> u64 {
        0
    }

    fn lag(&self) -> Duration {
        Duration::ZERO
    }
}

/// Memory that a process has in pages, bytes.
fn resident(pid: u32) -> Option<u64> {
    let status = read(Path::new(&format!("/proc/{pid}/status"))).ok()?;
    kilobytes(&status, "VmRSS:")
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn number(path: &Path) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

/// A line like `MemTotal:       24576000 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number << 10)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_this_process_some_of_it() {
        let view = Cpu::new().probe().unwrap();

        assert!(
            view.own > Some(0) && view.own < Some(view.total),
            "{view:?}"
        );
        assert!(view.available <= view.total, "{view:?}");
    }

    #[test]
    fn a_control_group_limits_what_there_is_and_its_page_cache_is_free() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("media/scribe");
        std::fs::create_dir_all(&inner).unwrap();
        let put = |folder: &Path, name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
        };
        put(&inner, "memory.max", "max\n");
        put(&root.path().join("media"), "memory.max", "1073741824\n");
        put(&root.path().join("media"), "memory.current", "900000000\n");
        put(
            &root.path().join("media"),
            "memory.stat",
            "anon 1\ninactive_file 200000000\nactive_file 100000000\n",
        );

        let cpu = Cpu {
            groups: groups(root.path(), "0::/media/scribe\n"),
        };
        let view = cpu.probe().unwrap();

        assert_eq!(view.total, 1 << 30);
        assert_eq!(view.available, (1 << 30) - 600_000_000);
    }

    #[test]
    fn without_control_groups_there_are_none() {
        assert!(groups(Path::new("/nowhere"), "0::/a/b\n").is_empty());
        assert!(groups(Path::new("/nowhere"), "12:memory:/old\n").is_empty());
    }
}
