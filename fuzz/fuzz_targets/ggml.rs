// SPDX-License-Identifier: MPL-2.0
//! Reads anything as a ggml file: a reason or dimensions, without a panic, without memory.
//!
//! The reader is compiled in as it is, without the rest of the plugin, and with the limits for small files: half a
//! megabyte of vocabulary would keep the fuzzer from everything behind it.

#![no_main]

#[path = "../../src/inference/whisper_cpp/header.rs"]
#[allow(dead_code)]
mod header;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use header::{HEADER_BYTES, Limits};
use libfuzzer_sys::fuzz_target;

/// What is allocated, and the most that was.
struct Counting;

static NOW: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

// SAFETY: all is left to the system's allocator; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() as isize;
        MOST.fetch_max(NOW.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        // SAFETY: as for this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as for this call.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let small = header::validate_by(&Limits::SMALL, bytes);
    let most = MOST.load(Ordering::Relaxed) - before;
    assert!(most < (1 << 20) + bytes.len() as isize, "{most} bytes");
    let real = header::validate(bytes);
    // No file is right by both: the smallest real vocabulary is larger than any that the other allows.
    assert!(small.is_err() || real.is_err());
    match small {
        Ok(dimensions) => {
            // The file says the same as was read, and a byte more or less is refused.
            assert!(dimensions.n_text_layer >= 1 && dimensions.n_audio_layer >= 1);
            assert!(header::tensor_bytes(&dimensions) as usize >= bytes.len() / 8);
            assert!(header::validate_by(&Limits::SMALL, &bytes[..bytes.len() - 1]).is_err());
            assert!(header::validate_by(&Limits::SMALL, &[bytes, &[0]].concat()).is_err());
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
    let _ = header::peek(&bytes[..bytes.len().min(HEADER_BYTES)]);
});
