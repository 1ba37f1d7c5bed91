// SPDX-License-Identifier: MPL-2.0
//! The same with x86's vectors and tiles.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Given, PANEL, Products, ROWS_MAX, Room, SCALE, STRIP, Vectors, Words, heads};
use crate::inference::onnx::lanes::{Avx2, Avx512, EXACT, ROUGH, power};

macro_rules! run {
    ($name:ident, $products:ty, $features:literal) => {
        /// # Safety
        ///
        /// The processor must have the instructions, and lengths must be those of [`super::attend`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(given: Given<'_>, room: &mut Room, out: &mut [f32]) {
            // SAFETY: as the caller promises.
            unsafe { heads::<$products>(given, room, out) }
        }
    };
}

run!(amx, Tiles, "avx512f,avx512dq");
run!(avx512, Vectors<Avx512, 12, 2, 60>, "avx512f,avx512dq");
run!(avx2, Vectors<Avx2, 6, 2, 30>, "avx2,fma");

impl Words for Avx2 {
    type L = Self;
}

impl Words for Avx512 {
    type L = Self;

    #[inline(always)]
    unsafe fn above(scores: *const f32, bound: f32) -> bool {
        // SAFETY: as the caller promises.
        unsafe { above(scores, bound) }
    }

    #[inline(always)]
    unsafe fn shares(scores: *const f32, reference: f32, to: *mut u32, sums: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            for at in [0, PANEL] {
                let share = power(exponent(scores.add(at), reference), &EXACT);
                _mm512_storeu_ps(to.add(at).cast(), share);
                add_to(sums.add(at), share);
            }
        }
    }

    #[inline(always)]
    unsafe fn total(sums: *const f32) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { total(sums) }
    }
}

/// # Safety
///
/// 32 scores must be there, and the processor have the instructions.
#[inline(always)]
unsafe fn above(scores: *const f32, bound: f32) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let most = _mm512_max_ps(_mm512_loadu_ps(scores), _mm512_loadu_ps(scores.add(PANEL)));
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, _mm512_set1_ps(bound)) != 0
    }
}

/// # Safety
///
/// 32 sums must be there, and the processor have the instructions.
#[inline(always)]
unsafe fn total(sums: *const f32) -> f32 {
    // SAFETY: as the caller promises.
    unsafe {
        _mm512_reduce_add_ps(_mm512_add_ps(
            _mm512_loadu_ps(sums),
            _mm512_loadu_ps(sums.add(PANEL)),
        ))
    }
}

/// What 2 is raised to for 16 scores.
///
/// # Safety
///
/// They must be there, and the processor have the instructions.
#[inline(always)]
unsafe fn exponent(scores: *const f32, reference: f32) -> __m512 {
    const FACTOR: f32 = SCALE * std::f32::consts::LOG2_E;
    // SAFETY: as the caller promises.
    unsafe {
        let less = _mm512_set1_ps(reference * FACTOR);
        _mm512_fmsub_ps(_mm512_loadu_ps(scores), _mm512_set1_ps(FACTOR), less)
    }
}

/// # Safety
///
/// 16 sums must be there, and the processor have the instructions.
#[inline(always)]
unsafe fn add_to(sums: *mut f32, values: __m512) {
    // SAFETY: as the caller promises.
    unsafe { _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), values)) }
}

/// Exponentials of 32 scores as 16 words. They are cut off, not rounded, and the sum is that of what is left: so what the
/// cuts take on the average is taken from both, and the shares lose no more than by rounding.
///
/// # Safety
///
/// Scores, words and sums must be there, and the processor have the instructions.
#[inline(always)]
unsafe fn pairs_of_shares(scores: *const f32, reference: f32, to: *mut u32, sums: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let kept = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut halves = [kept; 2];
        for (n, half) in halves.iter_mut().enumerate() {
            let share = power(exponent(scores.add(n * PANEL), reference), &ROUGH);
            *half = _mm512_and_si512(_mm512_castps_si512(share), kept);
            add_to(sums.add(n * PANEL), _mm512_castsi512_ps(*half));
        }
        let [low, high] = halves;
        let words = _mm512_or_si512(_mm512_srli_epi32::<16>(low), high);
        _mm512_storeu_si512(to.cast(), words);
    }
}

/// Products by tiles of 16 rows of 16 words.
struct Tiles;

impl Products for Tiles {
    const PAIR: usize = 2;
    const ROWS: usize = ROWS_MAX;

    #[inline(always)]
    unsafe fn product<const ADD: bool>(
        (rows, row_words): (*const u32, usize),
        (panels, panel): (*const u32, usize),
        words: usize,
        (to, width): (*mut f32, usize),
    ) {
        debug_assert!(words.is_multiple_of(PANEL));
        for first in (0..Self::ROWS).step_by(STRIP) {
            // SAFETY: as the caller promises, and the tiles are configured as `CONFIGURATION` says: two tiles of rows are
            // read at 16 words after the other, two of the panels, and four of sums written, 16 rows of 16 words each.
            unsafe {
                let rows = rows.add(first * row_words);
                let to = to.add(first * width);
                macro_rules! tiles {
                    ($($begin:literal),*) => {
                        asm!(
                            $($begin,)*
                            "2:",
                            "tileloadd tmm4, [{rows} + {row_bytes}]",
                            "tileloadd tmm6, [{panels} + {line}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tileloadd tmm7, [{more_panels} + {line}]",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            "tileloadd tmm5, [{more_rows} + {row_bytes}]",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tdpbf16ps tmm3, tmm5, tmm7",
                            "add {rows}, 64",
                            "add {more_rows}, 64",
                            "add {panels}, 1024",
                            "add {more_panels}, 1024",
                            "dec {steps}",
                            "jnz 2b",
                            "tilestored [{to} + {width}], tmm0",
                            "tilestored [{to} + {width} + 64], tmm1",
                            "tilestored [{more} + {width}], tmm2",
                            "tilestored [{more} + {width} + 64], tmm3",
                            rows = inout(reg) rows => _,
                            more_rows = inout(reg) rows.add(16 * row_words) => _,
                            row_bytes = in(reg) row_words * 4,
                            panels = inout(reg) panels => _,
                            more_panels = inout(reg) panels.add(panel) => _,
                            line = in(reg) 64_usize,
                            steps = inout(reg) words / PANEL => _,
                            to = in(reg) to,
                            more = in(reg) to.add(16 * width),
                            width = in(reg) width * 4,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack),
                        )
                    };
                }
                match ADD {
                    true => tiles!(
                        "tileloadd tmm0, [{to} + {width}]",
                        "tileloadd tmm1, [{to} + {width} + 64]",
                        "tileloadd tmm2, [{more} + {width}]",
                        "tileloadd tmm3, [{more} + {width} + 64]"
                    ),
                    false => tiles!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3"
                    ),
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn above(scores: *const f32, bound: f32) -> bool {
        // SAFETY: as the caller promises.
        unsafe { above(scores, bound) }
    }

    #[inline(always)]
    unsafe fn shares(scores: *const f32, reference: f32, to: *mut u32, sums: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { pairs_of_shares(scores, reference, to, sums) }
    }

    #[inline(always)]
    unsafe fn total(sums: *const f32) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { total(sums) }
    }
}
