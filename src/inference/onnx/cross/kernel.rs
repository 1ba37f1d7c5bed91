// SPDX-License-Identifier: MPL-2.0
//! Attention of a few rows to one head's sound, by what the processor has.
//!
//! Keys and values have 8 bits: reading them takes as long as everything else. So each is read once for all rows, which are
//! six at most: the sums of more would not stay in registers.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod vnni;

use super::{BLOCK, HEAD, MIDDLE, PADDED, POSITIONS, QUAD, SCALES, TILE};
use crate::dsp::vectors::exponential;
use crate::inference::onnx::lanes::{self, Lanes, Plain};
#[cfg(target_arch = "x86_64")]
use crate::inference::onnx::lanes::{Avx2, Avx512};

/// What a processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Products of 8 bits.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Those of floats.
    Floats(lanes::Isa),
}

impl Isa {
    /// All that this processor can do, the fastest first.
    pub fn known() -> Vec<Self> {
        let mut known = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if lanes::has_vnni() {
            known.push(Self::Vnni);
        }
        known.extend(lanes::Isa::known().into_iter().map(Self::Floats));
        known
    }
}

/// Rows that are read for at once.
pub(super) const ROWS: usize = 6;

/// Scores of a row, then its shares, not yet divided by their sum.
pub(super) type Shares = [f32; PADDED];

/// Bytes of a line of the processor's caches.
const LINE: usize = 64;
/// What will be wanted soon lies so much further.
const AHEAD: usize = 2 * BLOCK;

/// What up to six rows want of a head, and where it goes.
pub(super) struct Head<'a> {
    /// A head's part of each row's query.
    pub queries: &'a [&'a [f32; HEAD]],
    /// Blocks of 32 positions: the scale of each, and `[16, 32, 4]`.
    pub keys: &'a [u8],
    /// The same, with `[8, 64, 4]`.
    pub values: &'a [u8],
}

/// Writes each row's shares and their sum's inverse, and what the values come to. `isa` must be one of [`Isa::known`].
pub(super) fn attend(
    isa: Isa,
    head: &Head<'_>,
    shares: &mut [Shares; ROWS],
    inverse: &mut [f32; ROWS],
    context: &mut [[f32; HEAD]; ROWS],
) {
    assert_eq!(head.keys.len(), PADDED / TILE * BLOCK);
    assert_eq!(head.values.len(), PADDED / TILE * BLOCK);
    macro_rules! by_rows {
        ($run:ident) => {
            match head.queries.len() {
                1 => $run::<1>(head, shares, inverse, context),
                2 => $run::<2>(head, shares, inverse, context),
                3 => $run::<3>(head, shares, inverse, context),
                4 => $run::<4>(head, shares, inverse, context),
                5 => $run::<5>(head, shares, inverse, context),
                _ => $run::<6>(head, shares, inverse, context),
            }
        };
    }
    match isa {
        // SAFETY: a processor on which this was found has these instructions, and the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Vnni => unsafe { by_rows!(eight_bits) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Floats(lanes::Isa::Avx512) => unsafe { by_rows!(avx512) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Floats(lanes::Isa::Avx2) => unsafe { by_rows!(avx2) },
        // SAFETY: the lengths were checked above, and it needs no instructions that a processor may lack.
        Isa::Floats(lanes::Isa::Plain) => unsafe { by_rows!(plain) },
    }
}

type Results<'a> = (
    &'a mut [Shares; ROWS],
    &'a mut [f32; ROWS],
    &'a mut [[f32; HEAD]; ROWS],
);

macro_rules! run {
    ($name:ident, $lanes:ty, $vectors:literal $(, $features:literal)?) => {
        /// # Safety
        ///
        /// Keys and values must have their lengths, and the processor the instructions.
        $(#[cfg(target_arch = "x86_64")] #[target_feature(enable = $features)])?
        unsafe fn $name<const Q: usize>(
            head: &Head<'_>,
            shares: &mut [Shares; ROWS],
            inverse: &mut [f32; ROWS],
            context: &mut [[f32; HEAD]; ROWS],
        ) {
            // SAFETY: as the caller promises.
            unsafe { rows::<$lanes, Q, $vectors>(head, (shares, inverse, context)) }
        }
    };
}

/// # Safety
///
/// Keys and values must have their lengths, and the processor the instructions.
#[cfg(target_arch = "x86_64")]
unsafe fn eight_bits<const Q: usize>(
    head: &Head<'_>,
    shares: &mut [Shares; ROWS],
    inverse: &mut [f32; ROWS],
    context: &mut [[f32; HEAD]; ROWS],
) {
    // SAFETY: as the caller promises.
    unsafe { vnni::rows::<Q>(head, (shares, inverse, context)) }
}

run!(avx512, Avx512, 4, "avx512f");
run!(avx2, Avx2, 2, "avx2,f16c,fma");
run!(plain, Plain, 2);

/// `Q` rows, as `attend` says; `C` vectors of values are summed up at once.
///
/// # Safety
///
/// Keys and values must have their lengths, and the processor the instructions of `L`.
#[inline(always)]
unsafe fn rows<L: Lanes, const Q: usize, const C: usize>(head: &Head<'_>, results: Results<'_>) {
    let (shares, inverse, context) = results;
    let Some(queries) = head.queries.first_chunk::<Q>() else {
        return;
    };
    // SAFETY: as the caller promises.
    unsafe { scores::<L, Q>(queries, head.keys, shares) };
    for (shares, inverse) in shares.iter_mut().zip(&mut *inverse).take(Q) {
        *inverse = 1.0 / exponentials(shares);
    }
    // SAFETY: as the caller promises.
    unsafe { sums::<L, Q, C>(shares, head.values, context) };
    for (row, inverse) in context.iter_mut().zip(inverse).take(Q) {
        row.iter_mut().for_each(|v| *v *= *inverse);
    }
}

/// # Safety
///
/// Keys must have their length, and the processor the instructions of `L`.
#[inline(always)]
unsafe fn scores<L: Lanes, const Q: usize>(
    queries: &[&[f32; HEAD]; Q],
    keys: &[u8],
    scores: &mut [Shares; ROWS],
) {
    for tile in 0..PADDED / TILE {
        for part in (0..TILE).step_by(2 * L::N) {
            // SAFETY: a block has 32 scales and 64 rows of 32 bytes, of which two vectors of a part are read, and each row
            // of scores as many floats as all blocks have positions.
            unsafe {
                let block = keys.as_ptr().add(tile * BLOCK);
                let keys = block.add(SCALES + part * QUAD);
                let mut sums = [[L::all(0.0); 2]; Q];
                for word in 0..HEAD / QUAD {
                    let keys = keys.add(word * TILE * QUAD);
                    let more = keys.add(L::N * QUAD);
                    L::prefetch(keys.wrapping_add(AHEAD));
                    L::prefetch(more.wrapping_add(AHEAD));
                    for n in 0..QUAD {
                        let keys = [keys, more].map(|keys| L::byte(keys, n, MIDDLE as u8));
                        for (sums, query) in sums.iter_mut().zip(queries) {
                            let query = L::all(query[word * QUAD + n]);
                            for (sum, keys) in sums.iter_mut().zip(keys) {
                                *sum = L::mul_add(query, keys, *sum);
                            }
                        }
                    }
                }
                let scales = block.cast::<f32>().add(part);
                let scales = [L::load(scales), L::load(scales.add(L::N))];
                for (sums, scores) in sums.iter().zip(scores.iter_mut()) {
                    let scores = scores.as_mut_ptr().add(tile * TILE + part);
                    L::store(L::mul(sums[0], scales[0]), scores);
                    L::store(L::mul(sums[1], scales[1]), scores.add(L::N));
                }
            }
        }
    }
}

/// # Safety
///
/// Values must have their length, and the processor the instructions of `L`.
#[inline(always)]
unsafe fn sums<L: Lanes, const Q: usize, const C: usize>(
    shares: &[Shares; ROWS],
    values: &[u8],
    context: &mut [[f32; HEAD]; ROWS],
) {
    for row in context.iter_mut().take(Q) {
        row.fill(0.0);
    }
    for tile in 0..PADDED / TILE {
        // SAFETY: a block has 32 scales, and each row of shares as many floats as all blocks have positions.
        let scaled = unsafe {
            let scales = values.as_ptr().add(tile * BLOCK).cast::<f32>();
            let mut scaled = [[0.0_f32; TILE]; Q];
            for (scaled, shares) in scaled.iter_mut().zip(shares) {
                for part in (0..TILE).step_by(L::N) {
                    let share = L::load(shares.as_ptr().add(tile * TILE + part));
                    let scale = L::load(scales.add(part));
                    L::store(L::mul(share, scale), scaled.as_mut_ptr().add(part));
                }
            }
            scaled
        };
        for part in (0..HEAD).step_by(C * L::N) {
            // SAFETY: behind its scales a block has 32 rows of 64 bytes, and each row's context as many floats, of which the
            // vectors of a part are read and written.
            unsafe {
                let values = values.as_ptr().add(tile * BLOCK + SCALES + part * QUAD);
                let mut sums = [[L::all(0.0); C]; Q];
                for (sums, row) in sums.iter_mut().zip(context.iter()) {
                    for (c, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(row.as_ptr().add(part + c * L::N));
                    }
                }
                for position in 0..TILE {
                    let from = values.add(position / QUAD * HEAD * QUAD);
                    let mut values = [L::all(0.0); C];
                    for (c, value) in values.iter_mut().enumerate() {
                        let from = from.add(c * L::N * QUAD);
                        L::prefetch(from.wrapping_add(AHEAD));
                        *value = L::byte(from, position % QUAD, 0);
                    }
                    for (sums, shares) in sums.iter_mut().zip(&scaled) {
                        let share = L::all(shares[position]);
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = L::mul_add(share, value, *sum);
                        }
                    }
                }
                for (sums, row) in sums.iter().zip(context.iter_mut()) {
                    for (c, sum) in sums.iter().enumerate() {
                        L::store(*sum, row.as_mut_ptr().add(part + c * L::N));
                    }
                }
            }
        }
    }
}

/// Sums are taken in so many parts, which a compiler makes vectors of.
const PARTS: usize = 32;
const _: () = assert!(PADDED.is_multiple_of(PARTS));

/// Makes exponentials of scores, less the largest, and tells their sum. What is behind the last position becomes nothing.
#[inline(always)]
fn exponentials(scores: &mut Shares) -> f32 {
    scores[POSITIONS..].fill(f32::NEG_INFINITY);
    let (chunks, _) = scores.as_chunks_mut::<PARTS>();
    let mut most = [f32::NEG_INFINITY; PARTS];
    for chunk in chunks.iter() {
        for (most, score) in most.iter_mut().zip(chunk) {
            *most = if *score > *most { *score } else { *most };
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; PARTS];
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exponential(*score - most);
            *sum += *score;
        }
    }
    scores[POSITIONS..].fill(0.0);
    // What was behind the end is as good as nothing in the sum: e^-87 each.
    sums.iter().sum()
}
