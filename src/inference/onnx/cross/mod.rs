// SPDX-License-Identifier: MPL-2.0
//! The decoder's attention to the sound, an operator of ours (`scribe.CrossAttention`).
//!
//! ONNX Runtime's own products read keys and values as 32 bits, which took two thirds of a step, and copy them once more
//! where a window has several rows. This one reads 8 bits, each once for all rows of its window. They have a scale for each
//! position of a head. Keys are kept less a head's mean key: that takes as much from all scores of a row, so shares are the same,
//! and what all keys have in common takes no bits.
//!
//! ```text
//! in   queries  f32 [R, n, H * 64]       scaled
//!      keys     u8  [W, H, 47, 2176]     blocks of 32 positions: their scales as f32, and bytes [16, 32, 4], four places of
//!                                        a key side by side, 128 above what they are; what is behind position 1500 is nothing
//!      values   u8  [W, H, 47, 2176]     the same, with i8 [8, 64, 4], four positions side by side
//! out  context  f32 [R, n, H * 64]
//!      shares   f32 [W, A, R / W * n, 1500], of the heads that the attribute `heads` names; left out without it
//! ```

mod kernel;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::lanes::widest;
use super::lengths;
use crate::dsp::mel::WINDOW_FRAMES;
use kernel::{Isa, ROWS, Shares};

/// See the module.
pub const NAME: &str = "CrossAttention";
/// Width of an attention head in all of Whisper's models.
pub const HEAD: usize = 64;
/// Positions of the encoder: two frames each.
pub const POSITIONS: usize = WINDOW_FRAMES / 2;
/// Positions whose keys lie side by side.
pub const TILE: usize = 32;
/// Positions with those that fill up the last tile.
pub const PADDED: usize = POSITIONS.next_multiple_of(TILE);

/// Bytes of a block's scales.
const SCALES: usize = TILE * size_of::<f32>();
/// Bytes of a block of positions.
pub const BLOCK: usize = SCALES + TILE * HEAD;
/// Numbers in a word.
const QUAD: usize = 4;
/// The largest byte.
const MOST: f32 = 127.0;
/// Keys are so much above what they are: products of 8 bits want one side without a sign.
const MIDDLE: i32 = 128;

/// Keys as the encoder gives them, `[heads, 64, 1500]`, as this wants them.
pub fn arrange_keys(from: &[f32], to: &mut [u8]) {
    widest(
        #[inline(always)]
        || {
            let heads = from.chunks_exact(HEAD * POSITIONS);
            for (from, to) in heads.zip(to.chunks_exact_mut(PADDED / TILE * BLOCK)) {
                let means = means(from);
                for (tile, to) in to.chunks_exact_mut(BLOCK).enumerate() {
                    keys_block(from, &means, tile * TILE, to);
                }
            }
        },
    );
}

/// The same for values, `[heads, 1500, 64]`.
pub fn arrange_values(from: &[f32], to: &mut [u8]) {
    widest(
        #[inline(always)]
        || {
            let heads = from.chunks_exact(HEAD * POSITIONS);
            for (from, to) in heads.zip(to.chunks_exact_mut(PADDED / TILE * BLOCK)) {
                for (tile, to) in to.chunks_exact_mut(BLOCK).enumerate() {
                    values_block(&from[tile * TILE * HEAD..], to);
                }
            }
        },
    );
}

/// The mean key of a head.
#[inline(always)]
fn means(from: &[f32]) -> [f32; HEAD] {
    let mut means = [0.0; HEAD];
    for (mean, row) in means.iter_mut().zip(from.chunks_exact(POSITIONS)) {
        let mut sums = [0.0_f32; TILE];
        for part in row.chunks(TILE) {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value;
            }
        }
        *mean = sums.iter().sum::<f32>() / POSITIONS as f32;
    }
    means
}

#[inline(always)]
fn keys_block(from: &[f32], means: &[f32; HEAD], first: usize, to: &mut [u8]) {
    let count = TILE.min(POSITIONS - first);
    let mut rows = [[0.0_f32; TILE]; HEAD];
    let mut most = [0.0_f32; TILE];
    for (d, row) in rows.iter_mut().enumerate() {
        let at = d * POSITIONS + first;
        let keys = &from[at..at + count];
        for (most, (to, key)) in most.iter_mut().zip(row.iter_mut().zip(keys)) {
            *to = key - means[d];
            *most = most.max(to.abs());
        }
    }
    let (scales, bytes) = to.split_at_mut(SCALES);
    let inverse = write_scales(&most, scales);
    let words = rows.as_chunks::<QUAD>().0.iter();
    for (rows, to) in words.zip(bytes.chunks_exact_mut(TILE * QUAD)) {
        let mut words = [0; TILE];
        for (n, row) in rows.iter().enumerate() {
            for (word, (value, inverse)) in words.iter_mut().zip(row.iter().zip(&inverse)) {
                *word |= (byte(value * inverse) ^ MIDDLE as u32) << (8 * n);
            }
        }
        write_words(&words, to);
    }
}

#[inline(always)]
fn values_block(from: &[f32], to: &mut [u8]) {
    let (scales, bytes) = to.split_at_mut(SCALES);
    let mut most = [0.0_f32; TILE];
    for (most, row) in most.iter_mut().zip(from.chunks_exact(HEAD)) {
        for value in row {
            *most = most.max(value.abs());
        }
    }
    let inverse = write_scales(&most, scales);
    let words = bytes.chunks_exact_mut(HEAD * QUAD);
    let mut rows = from.chunks_exact(HEAD);
    for (to, inverse) in words.zip(inverse.as_chunks::<QUAD>().0) {
        let mut words = [0; HEAD];
        for ((n, inverse), row) in inverse.iter().enumerate().zip(&mut rows) {
            for (word, value) in words.iter_mut().zip(row) {
                *word |= byte(value * inverse) << (8 * n);
            }
        }
        write_words(&words, to);
    }
}

/// Writes the scales of positions with these largest values, and tells what values are multiplied with.
#[inline(always)]
fn write_scales(most: &[f32; TILE], to: &mut [u8]) -> [f32; TILE] {
    let (to, _) = to.as_chunks_mut::<4>();
    let mut inverse = [0.0; TILE];
    for ((inverse, most), to) in inverse.iter_mut().zip(most).zip(to) {
        let scale = most / MOST;
        *to = scale.to_ne_bytes();
        // So little that its inverse is none is nothing.
        *inverse = if scale > f32::MIN_POSITIVE {
            scale.recip()
        } else {
            0.0
        };
    }
    inverse
}

/// Words of four bytes, the lowest first.
#[inline(always)]
fn write_words(words: &[u32], to: &mut [u8]) {
    for (to, word) in to.as_chunks_mut().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
}

/// The nearest whole number, -127 to 127, as a signed byte.
#[inline(always)]
fn byte(value: f32) -> u32 {
    /// Added, it rounds to a whole number, which then is in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    (value + ROUND).to_bits() & 0xff
}

pub(super) struct CrossAttention;

impl Operator for CrossAttention {
    type Kernel<'attr> = Attention;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Uint8),
            OperatorInput::required(TensorElementType::Uint8),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [
            OperatorOutput::required(TensorElementType::Float32),
            OperatorOutput::optional(TensorElementType::Float32),
        ]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Attention> {
        let heads: Vec<i64> = context.get("heads").unwrap_or_default();
        let heads = heads.into_iter().map(usize::try_from);
        let followers = heads
            .collect::<Result<_, _>>()
            .map_err(|_| wrong("a head below 0"))?;
        Ok(Attention::new(followers))
    }
    // No shapes are inferred: ort hands lengths that are open on as -1, and ONNX Runtime refuses those.
}

/// One node's, with room for what it works out.
pub(super) struct Attention {
    /// Heads whose shares are given.
    followers: Vec<usize>,
    isa: Isa,
    shares: Box<[Shares; ROWS]>,
}

impl Attention {
    fn new(followers: Vec<usize>) -> Self {
        Self {
            followers,
            isa: Isa::known()[0],
            shares: Box::new([[0.0; PADDED]; ROWS]),
        }
    }

    /// One window's. `queries` and `context` are `[rows, heads * 64]`, `shares` `[followers, rows, 1500]`.
    fn window(
        &mut self,
        heads: usize,
        queries: &[f32],
        [keys, values]: [&[u8]; 2],
        context: &mut [f32],
        shares: &mut [f32],
    ) {
        let width = heads * HEAD;
        let rows = queries.len() / width;
        let (mut inverse, mut sums) = ([0.0; ROWS], [[0.0; HEAD]; ROWS]);
        for head in 0..heads {
            let size = PADDED / TILE * BLOCK;
            let own = head * size..(head + 1) * size;
            let (keys, values) = (&keys[own.clone()], &values[own]);
            for first in (0..rows).step_by(ROWS) {
                let count = ROWS.min(rows - first);
                let at = |row: usize| (first + row) * width + head * HEAD;
                let mut own: [&[f32; HEAD]; ROWS] = [&[0.0; HEAD]; ROWS];
                for (row, query) in own.iter_mut().take(count).enumerate() {
                    if let Some(found) = queries[at(row)..].first_chunk() {
                        *query = found;
                    }
                }
                let wanted = kernel::Head {
                    queries: &own[..count],
                    keys,
                    values,
                };
                kernel::attend(self.isa, &wanted, &mut self.shares, &mut inverse, &mut sums);
                for (row, sums) in sums[..count].iter().enumerate() {
                    context[at(row)..at(row) + HEAD].copy_from_slice(sums);
                }
                let Some(place) = self.followers.iter().position(|f| *f == head) else {
                    continue;
                };
                let to = &mut shares[(place * rows + first) * POSITIONS..];
                let rows = self.shares.iter().zip(&inverse).take(count);
                for (to, (own, inverse)) in to.chunks_exact_mut(POSITIONS).zip(rows) {
                    for (to, share) in to.iter_mut().zip(own) {
                        *to = share * inverse;
                    }
                }
            }
        }
    }
}

impl Kernel for Attention {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |n| {
            context
                .input(n)?
                .ok_or_else(|| wrong("an input is missing"))
        };
        let (queries, keys, values) = (input(0)?, input(1)?, input(2)?);
        let (shape, queries) = queries.try_extract_tensor::<f32>()?;
        let (keys_shape, keys) = keys.try_extract_tensor::<u8>()?;
        let (values_shape, values) = values.try_extract_tensor::<u8>()?;
        let Some(sizes) = Sizes::of(shape, keys_shape, values_shape) else {
            return Err(wrong(&format!(
                "shapes {shape:?}, {keys_shape:?} and {values_shape:?}"
            )));
        };
        if let Some(head) = self.followers.iter().find(|head| **head >= sizes.heads) {
            return Err(wrong(&format!("head {head} of {}", sizes.heads)));
        }
        let missing = || wrong("an output is missing");
        let mut out = context.output(0, shape.to_vec())?.ok_or_else(missing)?;
        let (_, out) = out.try_extract_tensor_mut::<f32>()?;
        let followers = self.followers.len();
        let mut shares = None;
        if followers > 0 {
            let lengths = [sizes.windows, followers, sizes.rows, POSITIONS];
            let lengths = lengths.map(|n| n as i64);
            shares = Some(context.output(1, lengths)?.ok_or_else(missing)?);
        }
        let mut shares = match &mut shares {
            Some(shares) => shares.try_extract_tensor_mut::<f32>()?.1,
            None => &mut [],
        };
        let row = sizes.rows * sizes.heads * HEAD;
        let sound = sizes.heads * PADDED / TILE * BLOCK;
        let windows = queries.chunks_exact(row).zip(out.chunks_exact_mut(row));
        let sounds = keys.chunks_exact(sound).zip(values.chunks_exact(sound));
        for ((queries, out), (keys, values)) in windows.zip(sounds) {
            let own;
            (own, shares) = shares.split_at_mut(followers * sizes.rows * POSITIONS);
            self.window(sizes.heads, queries, [keys, values], out, own);
        }
        Ok(())
    }
}

/// What the shapes of the inputs say.
struct Sizes {
    windows: usize,
    heads: usize,
    /// Rows of all tokens of a window.
    rows: usize,
}

impl Sizes {
    /// None if they do not belong together.
    fn of(queries: &[i64], keys: &[i64], values: &[i64]) -> Option<Self> {
        let [rows, tokens, width] = lengths(queries)?.try_into().ok()?;
        let keys: [usize; 4] = lengths(keys)?.try_into().ok()?;
        let [windows, heads, ..] = keys;
        let fits = keys[2..] == [PADDED / TILE, BLOCK]
            && lengths(values)? == keys
            && heads.checked_mul(HEAD) == Some(width)
            && width > 0
            && tokens > 0
            && windows > 0
            && rows > 0
            && rows.is_multiple_of(windows);
        fits.then(|| Self {
            windows,
            heads,
            rows: rows / windows * tokens,
        })
    }
}

fn wrong(what: &str) -> ort::Error {
    super::wrong(NAME, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values within -1 to 1, the same each time.
    fn numbers(seed: u32) -> impl Iterator<Item = f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        std::iter::from_fn(move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            Some(state as f32 / u32::MAX as f32 * 2.0 - 1.0)
        })
    }

    fn floats(seed: u32, count: usize, scale: f32) -> Vec<f32> {
        numbers(seed).map(|v| v * scale).take(count).collect()
    }

    const SIZE: usize = PADDED / TILE * BLOCK;

    /// What is kept of one head: its scales and bytes, with their signs.
    fn kept(head: &[u8]) -> Vec<(Vec<f32>, Vec<f32>)> {
        let block = |block: &[u8]| {
            let (scales, bytes) = block.split_at(SCALES);
            let (scales, _) = scales.as_chunks::<4>();
            let scales = scales.iter().map(|s| f32::from_ne_bytes(*s)).collect();
            (scales, bytes.iter().map(|b| f32::from(*b as i8)).collect())
        };
        head.chunks_exact(BLOCK).map(block).collect()
    }

    /// Keys as they are kept, `[heads, 64, 1500]`.
    fn kept_keys(sound: &[u8]) -> Vec<f32> {
        let mut sound = sound.to_vec();
        for block in sound.chunks_exact_mut(BLOCK) {
            block[SCALES..].iter_mut().for_each(|b| *b ^= MIDDLE as u8);
        }
        let heads = sound.chunks_exact(SIZE).map(kept);
        let of_head = |blocks: Vec<(Vec<f32>, Vec<f32>)>| {
            (0..HEAD * POSITIONS).map(move |n| {
                let (d, p) = (n / POSITIONS, n % POSITIONS);
                let (scales, bytes) = &blocks[p / TILE];
                scales[p % TILE] * bytes[(d / QUAD * TILE + p % TILE) * QUAD + d % QUAD]
            })
        };
        heads.flat_map(of_head).collect()
    }

    /// Values as they are kept, `[heads, 1500, 64]`.
    fn kept_values(sound: &[u8]) -> Vec<f32> {
        let heads = sound.chunks_exact(SIZE).map(kept);
        let of_head = |blocks: Vec<(Vec<f32>, Vec<f32>)>| {
            (0..HEAD * POSITIONS).map(move |n| {
                let (p, d) = (n / HEAD, n % HEAD);
                let (scales, bytes) = &blocks[p / TILE];
                scales[p % TILE] * bytes[(p % TILE / QUAD * HEAD + d) * QUAD + p % QUAD]
            })
        };
        heads.flat_map(of_head).collect()
    }

    /// Context and shares of one row of one head, in 64 bits; `keys` `[64, 1500]`, `values` `[1500, 64]`.
    fn plainly(query: &[f32], keys: &[f32], values: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let score = |s: usize| -> f64 {
            let terms = query.iter().enumerate();
            terms
                .map(|(d, q)| f64::from(*q) * f64::from(keys[d * POSITIONS + s]))
                .sum()
        };
        let scores: Vec<f64> = (0..POSITIONS).map(score).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let powers: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let shares: Vec<f64> = powers.iter().map(|p| p / sum).collect();
        let context = (0..HEAD).map(|d| {
            let terms = shares.iter().enumerate();
            terms
                .map(|(s, share)| share * f64::from(values[s * HEAD + d]))
                .sum()
        });
        (context.collect(), shares)
    }

    #[test]
    fn all_processors_come_to_what_64_bits_do() {
        const HEADS: usize = 2;
        let width = HEADS * HEAD;
        let (keys, values) = (
            floats(1, width * POSITIONS, 4.0),
            floats(2, width * POSITIONS, 2.0),
        );
        let mut sound = [vec![7; HEADS * SIZE], vec![7; HEADS * SIZE]];
        arrange_keys(&keys, &mut sound[0]);
        arrange_values(&values, &mut sound[1]);
        // What they lose as bytes all lose: the rest comes much nearer.
        let (keys, values) = (kept_keys(&sound[0]), kept_values(&sound[1]));
        for isa in Isa::known() {
            // Scores are spread widely here, by 10: a query in 8 bits takes them up to 0.3 away.
            let (allowed, allowed_share) = match isa {
                Isa::Floats(_) => (5e-5, 1e-4),
                #[cfg(target_arch = "x86_64")]
                Isa::Vnni => (1e-1, 3.5e-1),
            };
            for (beams, tokens) in [(1, 1), (5, 1), (1, 3), (5, 3), (1, 220)] {
                let rows: usize = beams * tokens;
                let queries = floats(rows as u32, rows * width, 1.0);
                let mut attention = Attention::new(vec![1]);
                attention.isa = isa;
                let mut context = vec![f32::NAN; rows * width];
                let mut shares = vec![f32::NAN; rows * POSITIONS];

                attention.window(
                    HEADS,
                    &queries,
                    [&sound[0], &sound[1]],
                    &mut context,
                    &mut shares,
                );

                for row in (0..rows).step_by(rows.div_ceil(9)) {
                    for head in 0..HEADS {
                        let at = row * width + head * HEAD;
                        let own = head * HEAD * POSITIONS..(head + 1) * HEAD * POSITIONS;
                        let query = &queries[at..at + HEAD];
                        let (exact, exact_shares) =
                            plainly(query, &keys[own.clone()], &values[own]);
                        for (found, exact) in context[at..at + HEAD].iter().zip(&exact) {
                            let off = (f64::from(*found) - exact).abs();
                            assert!(off < allowed, "{isa:?}, {rows} rows: {found} for {exact}");
                        }
                        if head == 1 {
                            let found = &shares[row * POSITIONS..(row + 1) * POSITIONS];
                            for (found, exact) in found.iter().zip(&exact_shares) {
                                let off = (f64::from(*found) - exact).abs();
                                assert!(
                                    off < allowed_share * exact + 1e-9,
                                    "{isa:?}: {found} for {exact}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_come_within_half_a_step_of_each_positions_own_scale() {
        // Positions of very different loudness, silence among them, and what is nearly none.
        let loudness = |p: usize| [1.0, 300.0, 1e-3, 0.0, 1e-42, 1e30][p % 6];
        let raw = floats(5, 2 * HEAD * POSITIONS, 1.0);
        let of_keys = |n: usize| raw[n] * loudness(n % POSITIONS);
        let of_values = |n: usize| raw[n] * loudness(n / HEAD % POSITIONS);
        let keys: Vec<f32> = (0..raw.len()).map(of_keys).collect();
        let values: Vec<f32> = (0..raw.len()).map(of_values).collect();
        let mut kept = [vec![7; 2 * SIZE], vec![7; 2 * SIZE]];

        arrange_keys(&keys, &mut kept[0]);
        arrange_values(&values, &mut kept[1]);

        // Of a head's keys their mean is taken.
        let mean = |row: usize| -> f64 {
            let row = &keys[row * POSITIONS..(row + 1) * POSITIONS];
            row.iter().map(|v| f64::from(*v)).sum::<f64>() / POSITIONS as f64
        };
        let means: Vec<f64> = (0..2 * HEAD).map(mean).collect();
        let keys: Vec<f64> = (0..keys.len())
            .map(|n| f64::from(keys[n]) - means[n / POSITIONS])
            .collect();
        let values: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        let of_key = |n: usize| (n / (HEAD * POSITIONS), n % POSITIONS);
        let of_value = |n: usize| (n / (HEAD * POSITIONS), n / HEAD % POSITIONS);
        for (found, wanted, position) in [
            (
                kept_keys(&kept[0]),
                &keys,
                &of_key as &dyn Fn(usize) -> (usize, usize),
            ),
            (kept_values(&kept[1]), &values, &of_value),
        ] {
            let mut most = vec![[0.0_f64; POSITIONS]; 2];
            for (n, value) in wanted.iter().enumerate() {
                let (head, at) = position(n);
                most[head][at] = most[head][at].max(value.abs());
            }
            for (n, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                let (head, at) = position(n);
                let off = (f64::from(*found) - wanted).abs();
                let step = most[head][at] / 127.0;
                assert!(off <= 0.501 * step + 1e-38, "{found} for {wanted}");
            }
        }
        // What fills up the last block is nothing.
        for kept in &kept {
            let (scales, _) = &self::kept(&kept[..SIZE])[PADDED / TILE - 1];
            assert!(scales[POSITIONS % TILE..].iter().all(|s| *s == 0.0));
        }
    }

    #[test]
    fn what_all_keys_have_in_common_takes_no_bits() {
        let (mut keys, values) = (
            floats(1, HEAD * POSITIONS, 1.0),
            vec![0.0; HEAD * POSITIONS],
        );
        for (d, row) in keys.chunks_exact_mut(POSITIONS).enumerate() {
            row.iter_mut().for_each(|v| *v += 30.0 * (d as f32).sin());
        }
        let mut sound = [vec![7; SIZE], vec![7; SIZE]];
        arrange_keys(&keys, &mut sound[0]);
        arrange_values(&values, &mut sound[1]);
        let query = floats(2, HEAD, 0.5);
        let (mut context, mut shares) = (vec![0.0; HEAD], vec![0.0; POSITIONS]);

        Attention::new(vec![0]).window(
            1,
            &query,
            [&sound[0], &sound[1]],
            &mut context,
            &mut shares,
        );

        let (_, exact) = plainly(&query, &keys, &values);
        for (found, exact) in shares.iter().zip(&exact) {
            let off = (f64::from(*found) - exact).abs();
            assert!(off < 0.05 * exact, "{found} for {exact}");
        }
    }

    #[test]
    fn many_small_shares_come_to_what_they_are_together_and_what_is_no_number_stays_none() {
        // One position has a share of a half, all others together the other: each 1 in 3000.
        let (mut keys, mut values) = (vec![0.0; HEAD * POSITIONS], vec![1.0; HEAD * POSITIONS]);
        keys[700] = (POSITIONS as f32 - 1.0).ln();
        values[700 * HEAD..][..HEAD].fill(-1.0);
        let mut sound = [vec![7; SIZE], vec![7; SIZE]];
        arrange_keys(&keys, &mut sound[0]);
        arrange_values(&values, &mut sound[1]);
        for isa in Isa::known() {
            let mut queries = vec![0.0; 2 * HEAD];
            queries[0] = 1.0;
            queries[HEAD + 5] = f32::NAN;
            let mut attention = Attention::new(vec![0]);
            attention.isa = isa;
            let (mut context, mut shares) = (vec![7.0; 2 * HEAD], vec![7.0; 2 * POSITIONS]);

            attention.window(
                1,
                &queries,
                [&sound[0], &sound[1]],
                &mut context,
                &mut shares,
            );

            let (own, odd) = context.split_at(HEAD);
            assert!(own.iter().all(|v| v.abs() < 2e-2), "{isa:?}: {own:?}");
            assert!(odd.iter().all(|v| v.is_nan()), "{isa:?}: {odd:?}");
            assert!(shares[POSITIONS..].iter().all(|v| v.is_nan()), "{isa:?}");
        }
    }

    #[test]
    fn shapes_that_do_not_belong_together_are_none() {
        let (keys, values) = ([2, 6, 47, 2176], [2, 6, 47, 2176]);
        let of = |queries: &[i64]| Sizes::of(queries, &keys, &values);

        assert_eq!(of(&[10, 3, 384]).unwrap().rows, 15);
        for odd in [
            [3, 1, 384],
            [2, 1, 320],
            [0, 1, 384],
            [2, 0, 384],
            [2, -1, 384],
        ] {
            assert!(of(&odd).is_none(), "{odd:?}");
        }
        assert!(of(&[2, 384]).is_none());
        assert!(Sizes::of(&[2, 1, 384], &[2, 6, 47, 64, 34], &values).is_none());
        assert!(Sizes::of(&[2, 1, 384], &keys, &[2, 6, 46, 2176]).is_none());
        assert!(Sizes::of(&[2, 1, 384], &keys, &[1, 6, 47, 2176]).is_none());
    }

    #[test]
    #[ignore = "how long it takes, for people"]
    fn time() {
        for isa in Isa::known() {
            for (windows, rows) in [(8, 1), (4, 5), (4, 6), (1, 220)] {
                let size = 6 * SIZE;
                let from = floats(2, 6 * HEAD * POSITIONS, 2.0);
                let mut sound = vec![0; 2 * size];
                arrange_keys(&from, &mut sound[..size]);
                arrange_values(&from, &mut sound[size..]);
                let bytes = sound.repeat(windows * 4);
                let queries = floats(1, rows * 6 * HEAD, 1.0);
                let mut attention = Attention::new(vec![0, 1]);
                attention.isa = isa;
                let mut context = queries.clone();
                let mut shares = vec![0.0; 2 * rows * POSITIONS];
                let mut best = std::time::Duration::MAX;
                for _ in 0..20 {
                    let start = std::time::Instant::now();
                    for sound in bytes.chunks_exact(2 * size) {
                        let (keys, values) = sound.split_at(size);
                        attention.window(6, &queries, [keys, values], &mut context, &mut shares);
                    }
                    best = best.min(start.elapsed());
                }
                println!("{isa:?}: {windows} windows of {rows} rows: {best:?}");
            }
        }
        let from = floats(1, 6 * HEAD * POSITIONS, 1.0);
        let mut to = vec![0; 6 * SIZE];
        let start = std::time::Instant::now();
        arrange_keys(&from, &mut to);
        println!("keys: {:?}", start.elapsed());
        let start = std::time::Instant::now();
        arrange_values(&from, &mut to);
        println!("values: {:?}", start.elapsed());
    }
}
