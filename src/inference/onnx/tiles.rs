// SPDX-License-Identifier: MPL-2.0
//! x86's tiles (AMX): whether this process may use them, and a thread's configuration of them.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// A configuration of tiles as the processor reads and writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
struct Configuration([u8; 64]);

/// Eight tiles of 16 rows of 64 bytes.
const CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

impl Configuration {
    /// # Safety
    ///
    /// The processor must have tiles, and the kernel have let this process use them.
    unsafe fn current() -> Self {
        let mut found = Self([0; 64]);
        // SAFETY: as the caller promises; it writes 64 bytes.
        unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut found, options(nostack)) };
        found
    }

    /// # Safety
    ///
    /// The same, and it must be one that the processor takes.
    unsafe fn load(&self) {
        // SAFETY: as the caller promises; it reads 64 bytes, and the tiles it clears are the compiler's to lose.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) self,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
}

/// The configuration that this thread had, which it gets back.
struct Claimed(Configuration);

impl Drop for Claimed {
    fn drop(&mut self) {
        // SAFETY: it was this thread's own, which the processor has written; tiles may be used where it was read.
        unsafe { self.0.load() };
    }
}

/// Does something with tiles as [`CONFIGURATION`] has them. [`may_use_tiles`] must have said so.
///
/// ONNX Runtime's products of 8 bits use tiles too. Some of its versions configure a thread's once and never look again, later
/// ones compare what is there first. Either finds what it left: configuration and tiles are each thread's own (the kernel
/// saves them with its other registers, for signals too); here they are stored before and loaded again after, also when `run`
/// unwinds; nothing of ONNX Runtime runs between. Where the thread had none, what is stored is all zeros, and loading that
/// puts the tiles back into their first state. What is in the tiles is lost, but no product of ONNX Runtime's begins
/// with what another one left there.
pub fn with_tiles(run: impl FnOnce()) {
    assert!(may_use_tiles());
    // SAFETY: tiles may be used, as was just asked, and the processor takes this configuration.
    let _claimed = unsafe {
        let before = Claimed(Configuration::current());
        CONFIGURATION.load();
        before
    };
    run();
}

/// Whether there are tiles for numbers of 16 and of 8 bits and the kernel lets this process use them.
pub fn may_use_tiles() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| has_tiles() && ask_for_tiles())
}

fn has_tiles() -> bool {
    const BF16_TILE_AND_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    const TILES_STATE: u64 = 0b11 << 17;
    if __get_cpuid_max(0).0 < 7 || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: the kernel has said that it uses XSAVE, without which there is no XGETBV.
    let state = unsafe { xgetbv() };
    state & TILES_STATE == TILES_STATE
        && __cpuid_count(7, 0).edx & BF16_TILE_AND_INT8 == BF16_TILE_AND_INT8
}

/// # Safety
///
/// The processor must have it.
#[target_feature(enable = "xsave")]
unsafe fn xgetbv() -> u64 {
    // SAFETY: as the caller promises.
    unsafe { _xgetbv(0) }
}

/// Linux gives a process room for tiles when it asks (`arch_prctl`). ONNX Runtime asks too; twice does no harm.
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    use std::ffi::c_long;
    const ARCH_PRCTL: c_long = 158;
    const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
    const TILE_DATA: c_long = 18;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    // SAFETY: it takes two numbers, and changes nothing but what this process may use.
    unsafe { syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four tiles of eight rows of 32 bytes.
    fn another() -> Configuration {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for tile in 0..4 {
            bytes[16 + 2 * tile] = 32;
            bytes[48 + tile] = 8;
        }
        Configuration(bytes)
    }

    /// On a thread of its own, which begins without any.
    fn on_a_thread(run: impl FnOnce() + Send) {
        if may_use_tiles() {
            std::thread::scope(|scope| scope.spawn(run).join().unwrap());
        }
    }

    #[test]
    fn a_thread_gets_its_configuration_back() {
        on_a_thread(|| {
            // SAFETY: tiles may be used here, and the processor takes this configuration.
            let (before, between, after) = unsafe {
                another().load();
                let before = Configuration::current();
                let mut between = before;
                with_tiles(|| between = Configuration::current());
                (before, between, Configuration::current())
            };

            assert_eq!(before, another());
            assert_eq!(between, CONFIGURATION);
            assert_eq!(after, before);
        });
    }

    #[test]
    fn a_thread_that_had_none_has_none() {
        on_a_thread(|| {
            // SAFETY: tiles may be used here.
            let before = unsafe { Configuration::current() };

            with_tiles(|| ());

            // SAFETY: the same.
            assert_eq!(unsafe { Configuration::current() }, before);
            assert_eq!(before, Configuration([0; 64]));
        });
    }

    #[test]
    fn it_gets_it_back_when_something_panics() {
        on_a_thread(|| {
            // SAFETY: tiles may be used here, and the processor takes this configuration.
            unsafe { another().load() };

            let outcome = std::panic::catch_unwind(|| with_tiles(|| panic!("on purpose")));

            assert!(outcome.is_err());
            // SAFETY: the same.
            assert_eq!(unsafe { Configuration::current() }, another());
        });
    }
}
