// SPDX-License-Identifier: MPL-2.0
//! Pages of memory: taken before they are needed, given back when they are not.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

use super::EngineError;

const PAGE: usize = 4096;
/// Linux 5.14.
const MADV_POPULATE_WRITE: c_int = 23;

/// Has the system hand out the pages of `bytes` bytes at `address` now, not when they are first written. What is in
/// them stays. An older system does nothing, and hands them out later.
pub(super) fn take(address: usize, bytes: usize) {
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    let from = address / PAGE * PAGE;
    let length = (address + bytes).next_multiple_of(PAGE) - from;
    // SAFETY: this advice changes no byte and unmaps nothing; an address that is not ours is an error that it returns.
    unsafe {
        madvise(
            std::ptr::without_provenance_mut(from),
            length,
            MADV_POPULATE_WRITE,
        )
    };
}

/// Numbers whose bits may be any, all zero among them.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for f32 {}

/// A large buffer with pages of its own, of 2 MiB where the system has such: they are handed out sooner, and the processor
/// looks up fewer. All zero at first. The C library would keep what is freed, and clear by hand what it
/// gives again.
#[derive(Debug)]
pub(super) struct Room<T> {
    map: MmapMut,
    count: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Room<T> {
    /// Untouched: its pages are handed out when they are first written, or with [`Self::take`].
    pub(super) fn new(count: usize, what: &str) -> Result<Self, EngineError> {
        let bytes = count.saturating_mul(size_of::<T>());
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|_| EngineError::OutOfMemory {
            what: format!("{what} ({bytes} bytes)"),
        })?;
        // A system without large pages has the others.
        let _ = map.advise(Advice::HugePage);
        Ok(Self {
            map,
            count,
            of: PhantomData,
        })
    }

    /// Has the system hand out its pages now. An older one than Linux 5.14 does nothing.
    pub(super) fn take(&self) {
        let _ = self.map.advise(Advice::PopulateWrite);
    }
}

impl<T: Plain> Deref for Room<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is as long or longer, begins at a page, lives as long as this, and any bits are a number.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
    }
}

impl<T: Plain> DerefMut for Room<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: the same, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.count) }
    }
}

/// Has the C library give back the pages that it keeps for later: nobody else could have them. Takes some milliseconds.
pub(crate) fn give_back() {
    drop(Lid::put());
}

/// The same of what is free between allocations alone, in less than a millisecond.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches free memory alone.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Lies behind all that the thread which put it there has allocated until then.
///
/// `malloc_trim` gives back what is free between allocations, whichever thread made them. What is free behind the last
/// one it gives back of the main thread's alone: of large buffers that another thread made, and that were freed since, up
/// to 64 MB stay (glibc 2.36: twice the largest block that was ever unmapped, 32 MB at most). Under a lid they lie between
/// allocations.
#[derive(Debug)]
pub(crate) struct Lid {
    #[cfg(target_env = "gnu")]
    block: usize,
}

#[cfg(target_env = "gnu")]
mod libc {
    use super::{c_int, c_void};

    /// Bytes, each modulo 2^32.
    #[repr(C)]
    pub(super) struct Mallinfo {
        arena: c_int,
        ordblks: c_int,
        smblks: c_int,
        hblks: c_int,
        hblkhd: c_int,
        usmblks: c_int,
        fsmblks: c_int,
        uordblks: c_int,
        /// What is free, of all threads.
        pub(super) fordblks: c_int,
        keepcost: c_int,
    }

    unsafe extern "C" {
        pub(super) fn mallinfo() -> Mallinfo;
        pub(super) fn malloc(bytes: usize) -> *mut c_void;
        pub(super) fn free(block: *mut c_void);
        pub(super) fn malloc_trim(pad: usize) -> c_int;
    }
}

impl Lid {
    /// Puts one, and gives back what is free below it.
    #[cfg(target_env = "gnu")]
    pub(crate) fn put() -> Self {
        // Thousands of runs with models that hold nothing: they would spend minutes here.
        if cfg!(feature = "model-check") {
            return Self { block: 0 };
        }
        /// Smaller than what glibc fetches from the system by itself.
        const PIECE: usize = 120 << 10;
        /// A gigabyte. A process with more free memory between its allocations keeps what is behind the last.
        const MOST: usize = (1 << 30) / PIECE;
        // SAFETY: it counts under the allocator's own locks.
        let free = unsafe { libc::mallinfo() }.fordblks.cast_unsigned() as usize;
        // They fill what is free between other allocations first, so that the last of them lies behind all.
        let count = (free / PIECE + 2).min(MOST);
        let mut pieces: Vec<*mut c_void> = Vec::with_capacity(count);
        for _ in 0..count {
            // SAFETY: any size may be asked for. The block is not written to: but for its head it takes no pages.
            pieces.push(unsafe { libc::malloc(PIECE) });
        }
        let last = pieces.pop().unwrap_or(std::ptr::null_mut());
        for piece in pieces {
            // SAFETY: it came from `malloc` above, or is null, which is allowed, and is freed once.
            unsafe { libc::free(piece) };
        }
        trim();
        Self {
            block: last.expose_provenance(),
        }
    }

    /// Other C libraries are left to themselves.
    #[cfg(not(target_env = "gnu"))]
    pub(crate) fn put() -> Self {
        Self {}
    }
}

#[cfg(target_env = "gnu")]
impl Drop for Lid {
    fn drop(&mut self) {
        // SAFETY: it came from `malloc` in `put`, or is null, and is freed here alone.
        unsafe { libc::free(std::ptr::with_exposed_provenance_mut(self.block)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE
    }

    /// Runs `work` in a process of its own: other tests allocate too. `name` is the test's.
    fn alone(name: &str, work: impl FnOnce()) {
        const CHILD: &str = "SCRIBE_PAGES_CHILD";
        if std::env::var_os(CHILD).is_some() {
            return work();
        }
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("inference::pages::tests::{name}")])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
    }

    const BUFFER: usize = 12 << 20;

    /// Once a block of this size has gone back to the system, glibc keeps twice as much for later.
    fn raise_what_is_kept() {
        drop(std::hint::black_box(vec![1u8; 2 * BUFFER]));
    }

    /// Nothing is allocated behind them.
    fn buffers() -> [Vec<u8>; 2] {
        [1u8, 2].map(|n| std::hint::black_box(vec![n; BUFFER]))
    }

    #[test]
    fn a_thread_keeps_nothing_of_large_buffers_that_it_has_freed() {
        alone(
            "a_thread_keeps_nothing_of_large_buffers_that_it_has_freed",
            || {
                raise_what_is_kept();
                let before = resident_bytes();

                let thread = std::thread::spawn(|| {
                    drop(buffers());
                    give_back();
                });
                thread.join().unwrap();

                let left = resident_bytes().saturating_sub(before);
                assert!(left < BUFFER / 4, "{left}");
            },
        );
    }

    #[test]
    fn what_one_thread_has_made_under_a_lid_another_gives_back() {
        alone(
            "what_one_thread_has_made_under_a_lid_another_gives_back",
            || {
                raise_what_is_kept();
                let before = resident_bytes();
                let thread = std::thread::spawn(|| (buffers(), Lid::put()));
                let (buffers, lid) = thread.join().unwrap();
                let taken = resident_bytes() - before;

                drop(buffers);
                give_back();
                drop(lid);

                let left = resident_bytes().saturating_sub(before);
                assert!(taken > BUFFER, "{taken}");
                assert!(left < BUFFER / 4, "{left}");
            },
        );
    }

    #[test]
    fn a_room_is_zero_and_its_own_and_there_once_taken_and_gone_once_dropped() {
        alone(
            "a_room_is_zero_and_its_own_and_there_once_taken_and_gone_once_dropped",
            || {
                let before = resident_bytes();
                let mut rooms = [0, 1].map(|_| Room::<f32>::new(4 << 20, "a test").unwrap());
                let untouched = resident_bytes() - before;

                rooms[0].take();
                let taken = resident_bytes() - before;
                rooms[0][(4 << 20) - 1] = 1.0;

                assert!(rooms[0][..(4 << 20) - 1].iter().all(|v| *v == 0.0));
                assert!(rooms[1].iter().all(|v| *v == 0.0));
                assert!(untouched < 1 << 20, "{untouched}");
                assert!(taken >= 16 << 20, "{taken}");
                drop(rooms);
                let left = resident_bytes().saturating_sub(before);
                assert!(left < 1 << 20, "{left}");
            },
        );
    }

    #[test]
    fn a_room_that_the_system_does_not_have_is_an_error() {
        let error = Room::<u16>::new(1 << 60, "keys and values").unwrap_err();

        assert!(error.to_string().contains("keys and values"), "{error}");
        assert!(Room::<u8>::new(0, "nothing").unwrap().is_empty());
    }

    #[test]
    fn pages_are_there_once_taken_and_gone_once_given_back() {
        // Beside other tests of the process anybody's memory would count.
        alone(
            "pages_are_there_once_taken_and_gone_once_given_back",
            pages_taken_and_given_back,
        );
    }

    fn pages_taken_and_given_back() {
        const BYTES: usize = 256 << 20;
        let before = resident_bytes();
        // Zeroed memory of this size comes from the system as it is, without a page.
        let mut room = vec![0u8; BYTES];
        room[1] = 7;
        let asked = resident_bytes() - before;

        take(room.as_ptr() as usize, BYTES);

        let taken = resident_bytes() - before;
        assert!(asked < BYTES / 8, "{asked}");
        assert!(taken > BYTES / 8 * 7, "{taken}");
        assert_eq!(room[1], 7);
        drop(room);
        give_back();
        assert!(resident_bytes() - before.min(resident_bytes()) < BYTES / 8);
    }
}
