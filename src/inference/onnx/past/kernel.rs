// SPDX-License-Identifier: MPL-2.0
//! Attention of one token to the entries of its past, by what the processor has.
#![allow(unsafe_code)]

use crate::dsp::vectors::exponential;
use crate::inference::onnx::cross::HEAD;
#[cfg(target_arch = "x86_64")]
use crate::inference::onnx::lanes::{Avx2, Avx512};
use crate::inference::onnx::lanes::{Isa, Lanes, Plain};

/// Vectors that a head's values are added up in at once: all of them, or what registers hold.
const WIDE: usize = 4;
const NARROW: usize = 8;

/// Scores are done in so many parts, which a compiler makes vectors of.
const PARTS: usize = 16;

/// Places for the scores of so many entries.
pub(super) fn places(count: usize) -> usize {
    count.next_multiple_of(PARTS)
}

/// `queries` `[heads * 64]` of one token; each of `seen` has keys and values of as many; `scores` has [`places`]
/// for them. Writes what the values come to. `isa` must be one of [`Isa::known`].
pub(super) fn attend(
    isa: Isa,
    queries: &[f32],
    seen: &[&[u16]],
    scores: &mut [f32],
    context: &mut [f32],
) {
    let width = queries.len();
    assert!(width.is_multiple_of(HEAD) && context.len() == width);
    assert!(scores.len() == places(seen.len()));
    assert!(seen.iter().all(|entry| entry.len() == 2 * width));
    match isa {
        // SAFETY: a processor on which this was found has these instructions, and the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(queries, seen, scores, context) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(queries, seen, scores, context) },
        // SAFETY: the lengths were checked above, and it needs no instructions that a processor may lack.
        Isa::Plain => unsafe { heads::<Plain, NARROW>(queries, seen, scores, context) },
    }
}

/// # Safety
///
/// All must have their lengths, and the processor the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(queries: &[f32], seen: &[&[u16]], scores: &mut [f32], context: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { heads::<Avx512, WIDE>(queries, seen, scores, context) }
}

/// # Safety
///
/// The same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn avx2(queries: &[f32], seen: &[&[u16]], scores: &mut [f32], context: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { heads::<Avx2, NARROW>(queries, seen, scores, context) }
}

/// `C` vectors are as wide as a head.
///
/// # Safety
///
/// All must have their lengths, and the processor the instructions of `L`.
#[inline(always)]
unsafe fn heads<L: Lanes, const C: usize>(
    queries: &[f32],
    seen: &[&[u16]],
    scores: &mut [f32],
    context: &mut [f32],
) {
    const { assert!(C * L::N == HEAD) };
    let width = queries.len();
    for head in (0..width).step_by(HEAD) {
        // SAFETY: queries and context have a head's values there, and each entry its keys there and its values so much
        // further; each is read or written in C vectors, which are as long.
        unsafe {
            let query = queries.as_ptr().add(head);
            let query: [L::V; C] = std::array::from_fn(|c| L::load(query.add(c * L::N)));
            for (score, entry) in scores.iter_mut().zip(seen) {
                let keys = entry.as_ptr().add(head);
                let mut sum = L::all(0.0);
                for (c, query) in query.iter().enumerate() {
                    sum = L::mul_add(*query, L::halves(keys.add(c * L::N)), sum);
                }
                *score = L::sum(sum);
            }
            let inverse = 1.0 / exponentials(scores, seen.len());
            let mut sums = [L::all(0.0); C];
            for (share, entry) in scores.iter().zip(seen) {
                let values = entry.as_ptr().add(width + head);
                let share = L::all(*share);
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = L::mul_add(share, L::halves(values.add(c * L::N)), *sum);
                }
            }
            let inverse = L::all(inverse);
            let to = context.as_mut_ptr().add(head);
            for (c, sum) in sums.iter().enumerate() {
                L::store(L::mul_add(*sum, inverse, L::all(0.0)), to.add(c * L::N));
            }
        }
    }
}

/// Makes exponentials of scores, less the largest, and tells their sum. Those behind the last of `count` become nothing.
#[inline(always)]
fn exponentials(scores: &mut [f32], count: usize) -> f32 {
    scores[count..].fill(f32::NEG_INFINITY);
    let (chunks, _) = scores.as_chunks_mut::<PARTS>();
    let mut most = [f32::MIN; PARTS];
    for chunk in chunks.iter() {
        for (most, score) in most.iter_mut().zip(chunk) {
            *most = if *score > *most { *score } else { *most };
        }
    }
    let most = most.into_iter().fold(f32::MIN, f32::max);
    let mut sums = [0.0; PARTS];
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exponential(*score - most);
            *sum += *score;
        }
    }
    // What is behind the end is as good as nothing in the sum: e^-87 each.
    sums.iter().sum()
}
