// SPDX-License-Identifier: MPL-2.0
//! An NVIDIA card's memory, read through NVML ([`nvml`]).

use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use super::{Device, MemoryView, with_workers};
use crate::inference::{DeviceId, nvml};

/// What a process takes by using the card: on an H200 533 MiB with the first model, up to 615 with all kernels that
/// whisper.cpp and cuBLAS load later. Cards with fewer multiprocessors take less.
const CONTEXT_BYTES: u64 = 640 << 20;
/// The driver's figures lag: on an H200 8 ms behind a model that is dropped, 140 ms behind a process that ends. Where it
/// takes longer, what has not come back counts as another's until it has.
const LAG: Duration = Duration::from_millis(500);
/// Device memory comes in pieces of 2 MiB.
const GRANULE: u64 = 2 << 20;

/// See the module.
#[derive(Debug)]
pub struct Cuda {
    nvml: &'static Nvml,
    number: u32,
    uuid: String,
    /// Whether the driver says which process holds what.
    tells_processes: bool,
}

/// What can be told of a card.
#[derive(Clone, Debug, PartialEq)]
pub struct CudaFacts {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Version of the driver.
    pub driver: String,
    /// Memory, bytes.
    pub total_bytes: u64,
}

/// The cards that this process may use, in their order; an error where there is no driver.
pub fn cards() -> Result<Vec<CudaFacts>, String> {
    let text = |e: NvmlError| e.to_string();
    let driver = nvml::driver()?.sys_driver_version().map_err(text)?;
    nvml::visible_cards()?
        .into_iter()
        .zip(0..)
        .map(|(uuid, number)| {
            let card = Cuda::with_uuid(number, uuid)?;
            Ok(CudaFacts {
                name: card.card()?.name().map_err(text)?,
                driver: driver.clone(),
                total_bytes: card.probe()?.total,
            })
        })
        .collect()
}

impl Cuda {
    /// The card with this number, if there is a driver and such a card.
    pub fn new(number: u32) -> Result<Self, String> {
        let card = Self::with_uuid(number, nvml::card(number)?)?;
        card.probe()?;
        Ok(card)
    }

    fn with_uuid(number: u32, uuid: String) -> Result<Self, String> {
        Ok(Self {
            nvml: nvml::driver()?,
            number,
            uuid,
            tells_processes: nvml::tells_processes(),
        })
    }

    fn card(&self) -> Result<nvml_wrapper::Device<'static>, String> {
        self.nvml
            .device_by_uuid(self.uuid.as_str())
            .map_err(|e| format!("the card {} is gone: {e}", self.uuid))
    }

    /// What these processes hold together.
    fn held(&self, pids: &[u32]) -> Option<u64> {
        if !self.tells_processes {
            return None;
        }
        let processes = self.card().ok()?.running_compute_processes().ok()?;
        let theirs = processes.iter().filter(|p| pids.contains(&p.pid));
        theirs
            .map(|p| match p.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            })
            .sum()
    }
}

impl Device for Cuda {
    fn id(&self) -> DeviceId {
        DeviceId::Cuda(self.number)
    }

    fn probe(&self) -> Result<MemoryView, String> {
        let mut pids = crate::inference::isolated::workers();
        pids.push(std::process::id());
        let own = || self.held(&pids);
        let before = own();
        let info = self.card()?.memory_info().map_err(|e| e.to_string())?;
        Ok(MemoryView {
            total: info.total,
            available: info.free,
            // What we take or give back meanwhile must not be subtracted from what was taken before or after.
            own: before.zip(own()).map(|(before, after)| before.min(after)),
        })
    }

    fn held_by(&self, pid: u32) -> Option<u64> {
        self.held(&with_workers(pid))
    }

    fn granule(&self) -> u64 {
        GRANULE
    }

    fn context_bytes(&self) -> u64 {
        CONTEXT_BYTES
    }

    fn lag(&self) -> Duration {
        LAG
    }
}
