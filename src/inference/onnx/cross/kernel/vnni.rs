// SPDX-License-Identifier: MPL-2.0
//! The same with products of 8 bits: queries get a scale for each row, and shares, times the scales of their values, are
//! counted in 255ths of a row's largest. What is cut off by that is spread by a pattern that is the same for all rows, so
//! that many small shares in a row come to what they are together.

use std::arch::x86_64::*;

use super::{AHEAD, Head, LINE, Results, Shares};
use crate::inference::onnx::cross::{
    BLOCK, HEAD, MIDDLE, MOST, PADDED, POSITIONS, QUAD, SCALES, TILE,
};
use crate::inference::onnx::lanes::{EXACT, power};

/// Positions or values side by side.
const PANEL: usize = 16;
/// Words of a query, and of the values of a block.
const WORDS: usize = HEAD / QUAD;
const DEEP: usize = TILE / QUAD;
/// The largest share.
const SHARES: f32 = 255.0;
/// Nothing is divided by less.
const LEAST: f32 = 1e-30;

/// What is added to shares before they are rounded: within half a step, and of neighbours as far apart as can be (multiples of the
/// golden ratio).
static SPREAD: [f32; PADDED] = {
    let mut spread = [0.0; PADDED];
    let mut n = 0;
    while n < PADDED {
        // 2^32 over the golden ratio.
        let fraction = (n as u32).wrapping_mul(2_654_435_769) >> 8;
        spread[n] = fraction as f32 / 16_777_216.0 - 0.5;
        n += 1;
    }
    spread
};

/// A block's scales.
///
/// # Safety
///
/// Keys or values must have their length, and the processor the instructions.
#[inline(always)]
unsafe fn scales(from: &[u8], tile: usize) -> [__m512; 2] {
    // SAFETY: each block begins with 32 floats.
    unsafe {
        let block = from.as_ptr().add(tile * BLOCK).cast::<f32>();
        [_mm512_loadu_ps(block), _mm512_loadu_ps(block.add(PANEL))]
    }
}

/// `Q` rows, as [`super::attend`] says.
///
/// # Safety
///
/// Keys and values must have their lengths, and the processor the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn rows<const Q: usize>(head: &Head<'_>, results: Results<'_>) {
    let (shares, inverse, context) = results;
    let Some(queries) = head.queries.first_chunk::<Q>() else {
        return;
    };
    // SAFETY: as the caller promises.
    unsafe {
        let odd = scores(queries, head.keys, shares);
        let mut bytes = [[0_u32; PADDED / QUAD]; Q];
        let mut steps = [0.0; Q];
        for (row, bytes) in bytes.iter_mut().enumerate() {
            let (sum, most) = share(&mut shares[row], head.values);
            let most = most.max(LEAST);
            count(&shares[row], head.values, SHARES / most, bytes);
            inverse[row] = 1.0 / sum + odd[row];
            steps[row] = most / SHARES * inverse[row];
        }
        sums(&bytes, head.values, &steps, context);
    }
}

/// Scores of all rows. What it returns is 0, or no number where a query has one that is none.
///
/// # Safety
///
/// The same.
#[inline(always)]
unsafe fn scores<const Q: usize>(
    queries: &[&[f32; HEAD]; Q],
    keys: &[u8],
    scores: &mut [Shares],
) -> [f32; Q] {
    // SAFETY: as the caller promises; queries have 64 floats.
    unsafe {
        let mut words = [[0_i32; WORDS]; Q];
        let mut steps = [0.0; Q];
        let mut odd = [0.0; Q];
        let mut first = [_mm512_setzero_si512(); Q];
        for (row, query) in queries.iter().enumerate() {
            let parts = [0, 16, 32, 48].map(|at| _mm512_loadu_ps(query.as_ptr().add(at)));
            let zero = _mm512_setzero_ps();
            let (mut most, mut none) = (zero, zero);
            for part in parts {
                // What is no number is passed over here.
                most = _mm512_max_ps(_mm512_abs_ps(part), most);
                none = _mm512_fmadd_ps(part, zero, none);
            }
            let step = _mm512_reduce_max_ps(most).max(LEAST) / MOST;
            let inverse = _mm512_set1_ps(1.0 / step);
            let mut sum = _mm512_setzero_si512();
            for (part, words) in parts.into_iter().zip(words[row].as_chunks_mut::<4>().0) {
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(part, inverse));
                sum = _mm512_add_epi32(sum, whole);
                _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(whole));
            }
            steps[row] = step;
            odd[row] = _mm512_reduce_add_ps(none);
            // Keys are larger by so much each.
            first[row] = _mm512_set1_epi32(-MIDDLE * _mm512_reduce_add_epi32(sum));
        }
        for tile in 0..PADDED / TILE {
            let block = keys.as_ptr().add(tile * BLOCK);
            let panels = block.add(SCALES);
            let mut sums = first.map(|first| [first; 2]);
            for word in 0..WORDS {
                let at = word * TILE * QUAD;
                let panels = [0, PANEL * QUAD].map(|more| {
                    let from = panels.add(at + more);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                    _mm512_loadu_si512(from.cast())
                });
                for (sums, words) in sums.iter_mut().zip(&words) {
                    let query = _mm512_set1_epi32(words[word]);
                    for (sum, panel) in sums.iter_mut().zip(panels) {
                        *sum = _mm512_dpbusd_epi32(*sum, panel, query);
                    }
                }
            }
            let scales = scales(keys, tile);
            for ((sums, scores), step) in sums.iter().zip(scores.iter_mut()).zip(steps) {
                let scores = scores.as_mut_ptr().add(tile * TILE);
                for (part, (sum, scale)) in sums.iter().zip(scales).enumerate() {
                    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(step));
                    let score = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), scale);
                    _mm512_storeu_ps(scores.add(part * PANEL), score);
                }
            }
        }
        odd
    }
}

/// Makes shares of a row's scores, not yet divided by their sum. Returns that, and the largest times its value's scale.
///
/// # Safety
///
/// The same.
#[inline(always)]
unsafe fn share(scores: &mut Shares, values: &[u8]) -> (f32, f32) {
    scores[POSITIONS..].fill(f32::NEG_INFINITY);
    let parts = scores.as_chunks_mut::<TILE>().0;
    // SAFETY: as the caller promises; each part has 32 floats.
    unsafe {
        let mut most = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
        for part in parts.iter() {
            for (n, most) in most.iter_mut().enumerate() {
                let own = _mm512_loadu_ps(part.as_ptr().add(n * PANEL));
                *most = _mm512_max_ps(own, *most);
            }
        }
        let most = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
        let most = _mm512_set1_ps(most);
        let zero = [_mm512_setzero_ps(); 2];
        let (mut sums, mut largest) = (zero, zero);
        for (tile, part) in parts.iter_mut().enumerate() {
            let scales = scales(values, tile);
            for n in 0..2 {
                let at = part.as_mut_ptr().add(n * PANEL);
                let less = _mm512_sub_ps(_mm512_loadu_ps(at), most);
                let factor = _mm512_set1_ps(std::f32::consts::LOG2_E);
                let share = power(_mm512_mul_ps(less, factor), &EXACT);
                _mm512_storeu_ps(at, share);
                sums[n] = _mm512_add_ps(sums[n], share);
                largest[n] = _mm512_max_ps(_mm512_mul_ps(share, scales[n]), largest[n]);
            }
        }
        (
            _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])),
            _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1])),
        )
    }
}

/// A row's shares, times the scales of their values and a factor, as bytes.
///
/// # Safety
///
/// The same.
#[inline(always)]
unsafe fn count(shares: &Shares, values: &[u8], factor: f32, to: &mut [u32; PADDED / QUAD]) {
    let to: *mut u8 = to.as_mut_ptr().cast();
    // SAFETY: as the caller promises; there is a byte for each position, and a part of the pattern.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        for tile in 0..PADDED / TILE {
            let scales = scales(values, tile);
            for (n, scale) in scales.into_iter().enumerate() {
                let at = tile * TILE + n * PANEL;
                let share = _mm512_mul_ps(_mm512_loadu_ps(shares.as_ptr().add(at)), scale);
                let spread = _mm512_loadu_ps(SPREAD.as_ptr().add(at));
                let whole = _mm512_cvtps_epi32(_mm512_fmadd_ps(share, factor, spread));
                // A little below 0 is 0 already; a little above 255 is that.
                _mm_storeu_si128(to.add(at).cast(), _mm512_cvtusepi32_epi8(whole));
            }
        }
    }
}

/// What the values come to.
///
/// # Safety
///
/// The same.
#[inline(always)]
unsafe fn sums<const Q: usize>(
    shares: &[[u32; PADDED / QUAD]; Q],
    values: &[u8],
    steps: &[f32; Q],
    context: &mut [[f32; HEAD]],
) {
    // SAFETY: as the caller promises; behind its scales a block has eight words of 64 values.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); HEAD / PANEL]; Q];
        for tile in 0..PADDED / TILE {
            let block = values.as_ptr().add(tile * BLOCK + SCALES);
            for word in 0..DEEP {
                let mut panels = [_mm512_setzero_si512(); HEAD / PANEL];
                for (n, panel) in panels.iter_mut().enumerate() {
                    let from = block.add((word * HEAD + n * PANEL) * QUAD);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                    *panel = _mm512_loadu_si512(from.cast());
                }
                for (sums, shares) in sums.iter_mut().zip(shares) {
                    let share = shares[tile * DEEP + word];
                    let share = _mm512_set1_epi32(share.cast_signed());
                    for (sum, panel) in sums.iter_mut().zip(panels) {
                        *sum = _mm512_dpbusd_epi32(*sum, share, panel);
                    }
                }
            }
        }
        for ((sums, step), row) in sums.iter().zip(steps).zip(context) {
            for (n, sum) in sums.iter().enumerate() {
                let own = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), _mm512_set1_ps(*step));
                _mm512_storeu_ps(row.as_mut_ptr().add(n * PANEL), own);
            }
        }
    }
}

const _: () = assert!(LINE == PANEL * QUAD);
