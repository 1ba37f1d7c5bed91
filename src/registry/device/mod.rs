// SPDX-License-Identifier: MPL-2.0
//! Devices: how much memory there is, how much is taken, and by whom.

mod cpu;
mod cuda;
#[cfg(any(test, feature = "test-support"))]
pub mod simulated;

use std::time::Duration;

pub use cpu::Cpu;
pub use cuda::{Cuda, CudaFacts, cards};

use crate::inference::DeviceId;

/// Memory of a device at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryView {
    /// What there is: the card's, or what the machine or the control group has.
    pub total: u64,
    /// What could be taken now without anybody suffering. The page cache counts as free.
    pub available: u64,
    /// What this process and its workers hold; `None` where it cannot be told.
    pub own: Option<u64>,
}

/// A device that models run on.
pub trait Device: Send + Sync {
    /// Which one.
    fn id(&self) -> DeviceId;
    /// Reads its memory. May lag behind by [`Device::lag`]. An error says what could not be read.
    fn probe(&self) -> Result<MemoryView, String>;
    /// What another process and its workers hold on it, if it can be told.
    fn held_by(&self, pid: u32) -> Option<u64>;
    /// Every allocation is rounded up to this.
    fn granule(&self) -> u64;
    /// What a process takes by using the device at all.
    fn context_bytes(&self) -> u64;
    /// How long freed memory may stay taken.
    fn lag(&self) -> Duration;
}

/// A process and its workers: their memory is its own.
fn with_workers(pid: u32) -> Vec<u32> {
    let mut out = vec![pid];
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        // The kernel lists children by the thread that started them.
        let children = std::fs::read_to_string(thread.path().join("children"));
        let children = children.unwrap_or_default();
        out.extend(
            children
                .split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok())
                .filter(|child| is_worker(*child)),
        );
    }
    out
}

fn is_worker(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| name.trim_end() == crate::inference::isolated::PROGRAM)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_worker_belongs_to_the_process_that_started_it_and_other_children_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("scribe-worker");
        std::fs::copy("/bin/sleep", &worker).unwrap();
        let start = |program: &std::path::Path| loop {
            match Command::new(program).arg("600").spawn() {
                // A child that another test has forked still has the file open for writing.
                Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                other => break other.unwrap(),
            }
        };
        let mut ours = start(&worker);
        let mut other = start("/bin/sleep".as_ref());

        let found = with_workers(std::process::id());

        for child in [&mut ours, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(found.contains(&std::process::id()) && found.contains(&ours.id()));
        assert!(!found.contains(&other.id()));
    }
}
