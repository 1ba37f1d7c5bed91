// SPDX-License-Identifier: MPL-2.0
//! The same with x86's vectors and tiles.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{GROUP, Grid, Line, PANEL, ROWS, Rows, STEP, Weights};

/// Outputs that are done at once.
const PAIR: usize = 2 * PANEL;
/// Rows of a tile.
const TILE: usize = 16;
/// So much is summed over at once by tiles: two panels of it, and some rows, stay in the nearest cache.
const PART: usize = 512;
const _: () = assert!(ROWS.is_multiple_of(2 * TILE) && PART.is_multiple_of(STEP));

/// What [`super::bytes_of`] does. Smallest and largest pass over what is no number: it comes second there.
///
/// # Safety
///
/// The processor must have the instructions, and there be 64 floats for each line.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn bytes_by_16(from: &[f32], to: &mut [Line], levels: f32) -> (f32, f32) {
    let count = to.len() * STEP;
    assert!(from.len() >= count);
    let from = from.as_ptr();
    let zero = _mm512_setzero_ps();
    let (mut low, mut high, mut odd) = (zero, zero, zero);
    for at in (0..count).step_by(16) {
        // SAFETY: there are so many floats.
        let value = unsafe { _mm512_loadu_ps(from.add(at)) };
        low = _mm512_min_ps(value, low);
        high = _mm512_max_ps(value, high);
        odd = _mm512_fmadd_ps(value, zero, odd);
    }
    let (low, high) = (_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high));
    let grid = Grid::of(low, high, levels);
    let (inverse, place) = (_mm512_set1_ps(grid.inverse), _mm512_set1_ps(grid.zero));
    let to: *mut u8 = to.as_mut_ptr().cast();
    for at in (0..count).step_by(16) {
        // SAFETY: there are so many floats, and bytes.
        unsafe {
            let value = _mm512_mul_ps(_mm512_loadu_ps(from.add(at)), inverse);
            let value = _mm512_max_ps(_mm512_add_ps(value, place), zero);
            let value = _mm512_min_ps(value, _mm512_set1_ps(levels));
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value));
            _mm_storeu_si128(to.add(at).cast(), bytes);
        }
    }
    (grid.step + _mm512_reduce_add_ps(odd), grid.zero)
}

/// The same.
///
/// # Safety
///
/// The same.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn bytes_by_8(from: &[f32], to: &mut [Line], levels: f32) -> (f32, f32) {
    let count = to.len() * STEP;
    assert!(from.len() >= count);
    let from = from.as_ptr();
    let zero = _mm256_setzero_ps();
    let (mut low, mut high, mut odd) = (zero, zero, zero);
    for at in (0..count).step_by(8) {
        // SAFETY: there are so many floats.
        let value = unsafe { _mm256_loadu_ps(from.add(at)) };
        low = _mm256_min_ps(value, low);
        high = _mm256_max_ps(value, high);
        odd = _mm256_fmadd_ps(value, zero, odd);
    }
    let all = |vector: __m256| {
        let mut values = [0.0_f32; 8];
        // SAFETY: there are eight places.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) };
        values
    };
    let (low, high) = (all(low), all(high));
    let least = low.into_iter().fold(0.0, f32::min);
    let grid = Grid::of(least, high.into_iter().fold(0.0, f32::max), levels);
    let (inverse, place) = (_mm256_set1_ps(grid.inverse), _mm256_set1_ps(grid.zero));
    // Words are packed within halves of a vector: this puts them in order.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let to: *mut u8 = to.as_mut_ptr().cast();
    for at in (0..count).step_by(32) {
        // SAFETY: there are so many floats, and bytes: lines of 64.
        unsafe {
            let [a, b, c, d] = [0, 8, 16, 24].map(|more| {
                let value = _mm256_mul_ps(_mm256_loadu_ps(from.add(at + more)), inverse);
                let value = _mm256_max_ps(_mm256_add_ps(value, place), zero);
                _mm256_cvtps_epi32(_mm256_min_ps(value, _mm256_set1_ps(levels)))
            });
            let words = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(words, order);
            _mm256_storeu_si256(to.add(at).cast(), bytes);
        }
    }
    (grid.step + all(odd).iter().sum::<f32>(), grid.zero)
}

/// # Safety
///
/// The processor must have the instructions, tiles be claimed, rows and weights have their lengths with room for all
/// [`ROWS`], `sums` room for as many rows of 32, and `out` as many values as there are rows and outputs.
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn amx(rows: &Rows, weights: &Weights<'_>, sums: *mut i32, out: *mut f32) {
    let panel = weights.inner * PANEL;
    for first in (0..weights.outputs).step_by(PAIR) {
        for part in (0..weights.inner).step_by(PART) {
            let steps = PART.min(weights.inner - part) / STEP;
            for row in (0..rows.count).step_by(2 * TILE) {
                // SAFETY: there is room for whole pairs of tiles of rows, and panels come in pairs; each step reads 64 bytes of
                // a row, and a tile of each panel, and there are as many in a part.
                unsafe {
                    let own = rows.bytes.add(row * weights.inner + part);
                    let panels = weights
                        .bytes
                        .as_ptr()
                        .add(first * weights.inner + part * PANEL);
                    let to = sums.add(row * PAIR);
                    let both = rows.count - row > TILE;
                    match (both, part > 0) {
                        (true, false) => {
                            pair::<false>(own, weights.inner, panels, panel, steps, to)
                        }
                        (true, true) => pair::<true>(own, weights.inner, panels, panel, steps, to),
                        (false, false) => {
                            one::<false>(own, weights.inner, panels, panel, steps, to)
                        }
                        (false, true) => one::<true>(own, weights.inner, panels, panel, steps, to),
                    }
                }
            }
        }
        for row in 0..rows.count {
            // SAFETY: 32 sums of each row were written; the rest is as the caller promises.
            unsafe {
                let sums = sums.add(row * PAIR);
                let own = [0, PANEL].map(|at| _mm512_loadu_si512(sums.add(at).cast()));
                finish(own, rows, row, weights, first, out);
            }
        }
    }
}

macro_rules! tiles {
    ($name:ident, $doc:literal, [$($load:literal),*], [$($begin:literal),*], [$($more:literal),*], [$($store:literal),*]) => {
        #[doc = $doc]
        ///
        /// # Safety
        ///
        /// Tiles must be configured as 16 rows of 64 bytes; `steps` of them are read from the rows, which are `inner` bytes
        /// apart, and from two panels, which are `panel` bytes apart; 32 sums of each row are written, and read before where
        /// `ADD` says so.
        #[inline(always)]
        unsafe fn $name<const ADD: bool>(
            rows: *const u8,
            inner: usize,
            panels: *const u8,
            panel: usize,
            steps: usize,
            to: *mut i32,
        ) {
            macro_rules! run {
                ($first:tt) => {
                    // SAFETY: as the caller promises.
                    unsafe {
                        tiles!(@asm $first, [$($more),*], [$($store),*], rows, inner, panels, panel, steps, to)
                    }
                };
            }
            match ADD {
                true => run!([$($load),*]),
                false => run!([$($begin),*]),
            }
        }
    };
    (@asm [$($first:literal),*], [$($more:literal),*], [$($store:literal),*], $rows:ident, $inner:ident, $panels:ident, $panel:ident, $steps:ident, $to:ident) => {
        asm!(
            $($first,)*
            "2:",
            "tileloadd tmm4, [{rows} + {inner}]",
            "tileloadd tmm6, [{panels} + {line}]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{more_panels} + {line}]",
            "tdpbusd tmm1, tmm4, tmm7",
            $($more,)*
            "add {rows}, 64",
            "add {more_rows}, 64",
            "add {panels}, 1024",
            "add {more_panels}, 1024",
            "dec {steps}",
            "jnz 2b",
            $($store,)*
            rows = inout(reg) $rows => _,
            more_rows = inout(reg) $rows.wrapping_add(TILE * $inner) => _,
            inner = in(reg) $inner,
            panels = inout(reg) $panels => _,
            more_panels = inout(reg) $panels.wrapping_add($panel) => _,
            line = in(reg) STEP,
            steps = inout(reg) $steps => _,
            to = in(reg) $to,
            more = in(reg) $to.wrapping_add(TILE * PAIR),
            width = in(reg) PAIR * size_of::<i32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

tiles!(
    pair,
    "Sums of 32 rows and two panels.",
    [
        "tileloadd tmm0, [{to} + {width}]",
        "tileloadd tmm1, [{to} + {width} + 64]",
        "tileloadd tmm2, [{more} + {width}]",
        "tileloadd tmm3, [{more} + {width} + 64]"
    ],
    [
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3"
    ],
    [
        "tileloadd tmm5, [{more_rows} + {inner}]",
        "tdpbusd tmm2, tmm5, tmm6",
        "tdpbusd tmm3, tmm5, tmm7"
    ],
    [
        "tilestored [{to} + {width}], tmm0",
        "tilestored [{to} + {width} + 64], tmm1",
        "tilestored [{more} + {width}], tmm2",
        "tilestored [{more} + {width} + 64], tmm3"
    ]
);
tiles!(
    one,
    "Sums of 16 rows and two panels.",
    [
        "tileloadd tmm0, [{to} + {width}]",
        "tileloadd tmm1, [{to} + {width} + 64]"
    ],
    ["tilezero tmm0", "tilezero tmm1"],
    [],
    [
        "tilestored [{to} + {width}], tmm0",
        "tilestored [{to} + {width} + 64], tmm1",
        "test {more}, {more}"
    ]
);

/// Makes what they stand for of a row's sums of two panels.
///
/// # Safety
///
/// The processor must have the instructions, and `out` be as long as rows and outputs are.
#[inline(always)]
unsafe fn finish(
    sums: [__m512i; 2],
    rows: &Rows,
    row: usize,
    weights: &Weights<'_>,
    first: usize,
    out: *mut f32,
) {
    for (n, sums) in sums.into_iter().enumerate() {
        let at = first + n * PANEL;
        if at >= weights.outputs {
            break;
        }
        // SAFETY: what belongs to outputs has places for whole pairs of panels; of the last panel only so many are written as
        // there are outputs; the rest is as the caller promises.
        unsafe {
            let sums = _mm512_cvtepi32_ps(sums);
            let zero = _mm512_set1_ps(rows.zeros[row]);
            let sums = _mm512_fnmadd_ps(zero, _mm512_loadu_ps(weights.sums.as_ptr().add(at)), sums);
            let scale = _mm512_loadu_ps(weights.scales.as_ptr().add(at));
            let scale = _mm512_mul_ps(_mm512_set1_ps(rows.scales[row]), scale);
            let added = _mm512_loadu_ps(weights.added.as_ptr().add(at));
            let values = _mm512_fmadd_ps(sums, scale, added);
            let to = out.add(row * weights.outputs + at);
            match weights.outputs - at {
                count @ 0..PANEL => _mm512_mask_storeu_ps(to, (1 << count) - 1, values),
                _ => _mm512_storeu_ps(to, values),
            }
        }
    }
}

/// # Safety
///
/// The processor must have the instructions, rows and weights their lengths, and `out` as many values as there are rows and
/// outputs.
#[target_feature(enable = "avx512f,avx512vnni,fma")]
pub(super) unsafe fn vnni(rows: &Rows, weights: &Weights<'_>, out: *mut f32) {
    /// Rows at once: with two panels their sums fill the registers.
    const MOST: usize = 12;
    // As even as may be: few rows wait for their own last product.
    let parts = rows.count.div_ceil(MOST);
    for first in (0..weights.outputs).step_by(PAIR) {
        for part in 0..parts {
            let [row, end] = [part, part + 1].map(|n| n * rows.count / parts);
            macro_rules! of {
                ($($count:literal),*) => {
                    match end - row {
                        // SAFETY: as the caller promises, and there are so many rows left.
                        $($count => unsafe { vnni_rows::<$count>(rows, row, weights, first, out) },)*
                        _ => {}
                    }
                };
            }
            of!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
        }
    }
}

/// `R` rows and two panels.
///
/// # Safety
///
/// The same, and there must be so many rows.
#[inline(always)]
unsafe fn vnni_rows<const R: usize>(
    rows: &Rows,
    row: usize,
    weights: &Weights<'_>,
    first: usize,
    out: *mut f32,
) {
    let (inner, panel) = (weights.inner, weights.inner * PANEL);
    // SAFETY: panels come in pairs, each with a line for every four bytes of a row; the rest is as the caller promises.
    unsafe {
        let panels = weights.bytes.as_ptr().add(first * inner);
        let mut sums = [[_mm512_setzero_si512(); 2]; R];
        for group in 0..inner / GROUP {
            let line = panels.add(group * STEP);
            let lines = [0, panel].map(|at| _mm512_loadu_si512(line.add(at).cast()));
            if row == 0 {
                // The next two panels: large weights come from memory in half the time.
                let next = line.wrapping_add(2 * panel);
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(panel).cast());
            }
            for (n, sums) in sums.iter_mut().enumerate() {
                let own = rows.bytes.add((row + n) * inner + group * GROUP);
                let own = _mm512_set1_epi32(own.cast::<i32>().read_unaligned());
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum = _mm512_dpbusd_epi32(*sum, own, line);
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            finish(sums, rows, row + n, weights, first, out);
        }
    }
}

/// # Safety
///
/// The same as for [`vnni`]; rows must have 7 bits.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(rows: &Rows, weights: &Weights<'_>, out: *mut f32) {
    for first in (0..weights.outputs).step_by(PANEL) {
        let mut row = 0;
        while row < rows.count {
            // SAFETY: as the caller promises, and there are so many rows left.
            row += unsafe {
                match rows.count - row {
                    4.. => avx2_rows::<4>(rows, row, weights, first, out),
                    _ => avx2_rows::<1>(rows, row, weights, first, out),
                }
            };
        }
    }
}

/// `R` rows and a panel; says `R`.
///
/// # Safety
///
/// The same, and there must be so many rows.
#[inline(always)]
unsafe fn avx2_rows<const R: usize>(
    rows: &Rows,
    row: usize,
    weights: &Weights<'_>,
    first: usize,
    out: *mut f32,
) -> usize {
    const HALF: usize = PANEL / 2;
    let inner = weights.inner;
    // SAFETY: a panel has a line for every four bytes of a row; what belongs to outputs has places for whole panels; the rest
    // is as the caller promises.
    unsafe {
        let panel = weights.bytes.as_ptr().add(first * inner);
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for group in 0..inner / GROUP {
            let line = panel.add(group * STEP);
            let lines = [0, STEP / 2].map(|at| _mm256_loadu_si256(line.add(at).cast()));
            if row == 0 {
                _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(inner * PANEL).cast());
            }
            for (n, sums) in sums.iter_mut().enumerate() {
                let own = rows.bytes.add((row + n) * inner + group * GROUP);
                let own = _mm256_set1_epi32(own.cast::<i32>().read_unaligned());
                for (sum, line) in sums.iter_mut().zip(lines) {
                    // Two products of 7 and 8 bits are below 2^15: nothing is cut off.
                    let twos = _mm256_maddubs_epi16(own, line);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(twos, ones));
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            let row = row + n;
            for (half, sums) in sums.into_iter().enumerate() {
                let at = first + half * HALF;
                if at >= weights.outputs {
                    break;
                }
                let sums = _mm256_cvtepi32_ps(sums);
                let zero = _mm256_set1_ps(rows.zeros[row]);
                let own = _mm256_loadu_ps(weights.sums.as_ptr().add(at));
                let sums = _mm256_fnmadd_ps(zero, own, sums);
                let scale = _mm256_loadu_ps(weights.scales.as_ptr().add(at));
                let scale = _mm256_mul_ps(_mm256_set1_ps(rows.scales[row]), scale);
                let added = _mm256_loadu_ps(weights.added.as_ptr().add(at));
                let mut values = [0.0; HALF];
                _mm256_storeu_ps(values.as_mut_ptr(), _mm256_fmadd_ps(sums, scale, added));
                let count = HALF.min(weights.outputs - at);
                let to = out.add(row * weights.outputs + at);
                std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
            }
        }
    }
    R
}
