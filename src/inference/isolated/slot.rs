// SPDX-License-Identifier: MPL-2.0
//! Memory that a lane and its worker share: a page of signs, then room for the samples of each window in work.
//!
//! Its size is sealed: nobody can shorten it under the other, who would die of SIGBUS. Both sides copy samples in or
//! out and keep no reference into it; what one reads while the other writes is a wrong sample, nothing worse.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::MmapRaw;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// Samples that an area has room for: 30 s at 16 kHz.
pub(super) const AREA_SAMPLES: usize = 30 * 16_000;
/// Most areas of a slot, which is most windows that an engine may decode side by side.
pub(super) const MAX_AREAS: usize = 64;
/// Bytes before the first area.
const HEAD: usize = 4096;
/// Where the head has the count of looks that the engine took at its flags: a sign of life.
const BEATS_AT: usize = 0;
/// Where the head has, for each area, the number of the try that nobody wants any more.
const CANCELLED_AT: usize = 64;

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// See the module.
#[derive(Debug)]
pub(super) struct Slot {
    memory: OwnedFd,
    map: MmapRaw,
    areas: usize,
}

/// Bytes of a slot with so many areas.
pub(super) fn size(areas: usize) -> usize {
    HEAD + areas * AREA_SAMPLES * size_of::<f32>()
}

impl Slot {
    /// A new one. `areas` is at most [`MAX_AREAS`].
    pub(super) fn new(areas: usize) -> io::Result<Self> {
        let memory = memfd_create(
            "scribe-slot",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        rustix::fs::ftruncate(&memory, size(areas) as u64)?;
        fcntl_add_seals(&memory, SEALS)?;
        Self::open(memory, areas)
    }

    /// One that the other side has made: only if its size is right and cannot change any more.
    pub(super) fn open(memory: OwnedFd, areas: usize) -> io::Result<Self> {
        let sealed = fcntl_get_seals(&memory)?.contains(SEALS);
        let length = rustix::fs::fstat(&memory)?.st_size;
        if !(1..=MAX_AREAS).contains(&areas) || !sealed || length != size(areas) as i64 {
            return Err(io::Error::other(
                "the memory for samples has a wrong size, or one that may change",
            ));
        }
        let map = MmapRaw::map_raw(&memory)?;
        Ok(Self { memory, map, areas })
    }

    pub(super) fn areas(&self) -> usize {
        self.areas
    }

    /// Copies samples into an area, at most what it has room for; how many that were.
    pub(super) fn write(&self, area: usize, samples: &[f32]) -> usize {
        let count = samples.len().min(AREA_SAMPLES);
        let Some(to) = self.area(area) else { return 0 };
        // SAFETY: the area lies inside the mapping (`area` has looked), has room for `count` samples, and no reference
        // of ours points into it. The other process may write there meanwhile: it reads or leaves what it will.
        unsafe { std::ptr::copy_nonoverlapping(samples.as_ptr(), to, count) };
        count
    }

    /// Copies samples out of an area; `None` if there cannot be so many.
    pub(super) fn read(&self, area: usize, count: usize) -> Option<Vec<f32>> {
        let from = self.area(area).filter(|_| count <= AREA_SAMPLES)?;
        let mut out = vec![0.0; count];
        // SAFETY: as in `write`; any bits are an `f32`.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), count) };
        Some(out)
    }

    /// Says that nobody wants the answer to try `job`, which is in `area`.
    pub(super) fn cancel(&self, area: usize, job: u64) {
        if area < self.areas {
            self.word(CANCELLED_AT + 4 * area)
                .store(job as u32, Ordering::Release);
        }
    }

    /// Whether that was said; counts as a sign of life.
    pub(super) fn look(&self, area: usize, job: u64) -> bool {
        self.word(BEATS_AT).fetch_add(1, Ordering::Relaxed);
        area < self.areas
            && self.word(CANCELLED_AT + 4 * area).load(Ordering::Acquire) == job as u32
    }

    /// Signs of life so far.
    pub(super) fn beats(&self) -> u32 {
        self.word(BEATS_AT).load(Ordering::Relaxed)
    }

    fn area(&self, area: usize) -> Option<*mut f32> {
        let at = HEAD + area * AREA_SAMPLES * size_of::<f32>();
        // SAFETY: the mapping is `size(areas)` bytes long, so the sum stays inside it.
        (area < self.areas).then(|| unsafe { self.map.as_mut_ptr().add(at) }.cast())
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        const { assert!(CANCELLED_AT + 4 * MAX_AREAS <= HEAD) };
        debug_assert!(at + 4 <= HEAD && at.is_multiple_of(4));
        // SAFETY: the head is mapped as long as `self` lives, `at` is a multiple of four inside it, and both sides
        // touch it by atomics alone.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_samples_and_signs() {
        let ours = Slot::new(2).unwrap();
        let theirs = Slot::open(ours.memory.try_clone().unwrap(), 2).unwrap();
        let samples: Vec<f32> = (0..1000).map(|n| n as f32).collect();

        ours.write(1, &samples);
        ours.cancel(1, 5);

        assert_eq!(theirs.read(1, 1000).unwrap(), samples);
        assert!(theirs.look(1, 5) && !theirs.look(1, 6) && !theirs.look(0, 5));
        assert_eq!(ours.beats(), 3);
    }

    #[test]
    fn what_lies_outside_an_area_is_neither_read_nor_written() {
        let slot = Slot::new(1).unwrap();

        assert_eq!(slot.write(0, &vec![0.5; AREA_SAMPLES + 9]), AREA_SAMPLES);
        assert_eq!(slot.write(1, &[0.5]), 0);
        assert_eq!(slot.read(0, AREA_SAMPLES + 1), None);
        assert_eq!(slot.read(1, 1), None);
    }

    #[test]
    fn memory_that_may_still_shrink_or_has_another_size_is_refused() {
        let unsealed = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&unsealed, size(1) as u64).unwrap();

        assert!(Slot::open(unsealed, 1).is_err());
        assert!(Slot::open(Slot::new(1).unwrap().memory, 2).is_err());
        assert!(Slot::open(Slot::new(1).unwrap().memory, MAX_AREAS + 1).is_err());
    }

    #[test]
    fn a_slot_keeps_its_size() {
        let slot = Slot::new(1).unwrap();

        assert!(rustix::fs::ftruncate(&slot.memory, 100).is_err());
        assert!(rustix::fs::ftruncate(&slot.memory, (size(1) + 1) as u64).is_err());
    }
}
