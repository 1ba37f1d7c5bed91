// SPDX-License-Identifier: MPL-2.0
//! The decoder's attention to the sound, an operator of ours (`scribe.CrossAttention`).
//!
//! ONNX Runtime's own products read keys and values as 32 bits, which took two thirds of a step, and copy them once more
//! where a window has several rows. This one reads halves, each once for all rows of its window.
//!
//! ```text
//! in   queries  f32 [R, n, H * 64]       scaled
//!      keys     u16 [W, H, 47, 64, 32]   halves, 32 positions side by side; what is behind position 1500 is nothing
//!      values   u16 [W, H, 1504, 64]     halves
//! out  context  f32 [R, n, H * 64]
//!      shares   f32 [W, A, R / W * n, 1500], of the heads that the attribute `heads` names; left out without it
//! ```

mod kernel;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use crate::dsp::mel::WINDOW_FRAMES;
use kernel::{Isa, ROWS, Shares};

/// The domain of our operators.
pub const DOMAIN: &str = "scribe";
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

/// Keys as the encoder gives them, `[heads, 64, 1500]`, as this wants them. What a half cannot hold becomes the largest.
pub fn arrange_keys(from: &[f32], to: &mut [u16]) {
    let heads = from.chunks_exact(HEAD * POSITIONS);
    for (from, to) in heads.zip(to.chunks_exact_mut(HEAD * PADDED)) {
        for (d, from) in from.chunks_exact(POSITIONS).enumerate() {
            for (from, to) in from.chunks(TILE).zip(to.chunks_exact_mut(HEAD * TILE)) {
                let (row, rest) = to[d * TILE..(d + 1) * TILE].split_at_mut(from.len());
                kernel::narrow(from, row);
                rest.fill(0);
            }
        }
    }
}

/// The same for values, `[heads, 1500, 64]`.
pub fn arrange_values(from: &[f32], to: &mut [u16]) {
    let heads = from.chunks_exact(HEAD * POSITIONS);
    for (from, to) in heads.zip(to.chunks_exact_mut(HEAD * PADDED)) {
        let (values, rest) = to.split_at_mut(from.len());
        kernel::narrow(from, values);
        rest.fill(0);
    }
}

/// For a session's domain.
pub(super) struct CrossAttention;

impl Operator for CrossAttention {
    type Kernel<'attr> = Attention;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Uint16),
            OperatorInput::required(TensorElementType::Uint16),
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
        [keys, values]: [&[u16]; 2],
        context: &mut [f32],
        shares: &mut [f32],
    ) {
        let width = heads * HEAD;
        let rows = queries.len() / width;
        let (mut inverse, mut sums) = ([0.0; ROWS], [[0.0; HEAD]; ROWS]);
        for head in 0..heads {
            let own = head * HEAD * PADDED..(head + 1) * HEAD * PADDED;
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
        let (keys_shape, keys) = keys.try_extract_tensor::<u16>()?;
        let (values_shape, values) = values.try_extract_tensor::<u16>()?;
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
        let sound = sizes.heads * HEAD * PADDED;
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
        let lengths = |shape: &[i64]| -> Option<Vec<usize>> {
            shape.iter().map(|n| usize::try_from(*n).ok()).collect()
        };
        let [rows, tokens, width] = lengths(queries)?.try_into().ok()?;
        let keys: [usize; 5] = lengths(keys)?.try_into().ok()?;
        let [windows, heads, ..] = keys;
        let fits = keys[2..] == [PADDED / TILE, HEAD, TILE]
            && lengths(values)? == [windows, heads, PADDED, HEAD]
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
    ort::Error::new(format!("{DOMAIN}.{NAME}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::halves;

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

    fn as_halves(values: &[f32]) -> Vec<f32> {
        let rounded = values.iter().map(|v| halves::to_f32(halves::from_f32(*v)));
        rounded.collect()
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
        let mut sound = [vec![7; width * PADDED], vec![7; width * PADDED]];
        arrange_keys(&keys, &mut sound[0]);
        arrange_values(&values, &mut sound[1]);
        // What they lose as halves all lose: the rest comes much nearer.
        let (keys, values) = (as_halves(&keys), as_halves(&values));
        for isa in Isa::known() {
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
                            assert!(off < 5e-5, "{isa:?}, {rows} rows: {found} for {exact}");
                        }
                        if head == 1 {
                            let found = &shares[row * POSITIONS..(row + 1) * POSITIONS];
                            for (found, exact) in found.iter().zip(&exact_shares) {
                                let off = (f64::from(*found) - exact).abs();
                                assert!(off < 1e-4 * exact + 1e-9, "{isa:?}: {found} for {exact}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_half_cannot_hold_becomes_the_largest() {
        let mut from = vec![0.0; HEAD * POSITIONS];
        from[POSITIONS - 1] = -1e9;
        let (mut keys, mut values) = (vec![7; HEAD * PADDED], vec![7; HEAD * PADDED]);

        arrange_keys(&from, &mut keys);
        arrange_values(&from, &mut values);

        let at = |halves: &[u16]| halves.iter().position(|h| *h != 0).unwrap();
        assert_eq!(at(&keys), 46 * HEAD * TILE + 27);
        assert_eq!(keys[at(&keys)], 0xfbff);
        assert_eq!(at(&values), POSITIONS - 1);
        assert_eq!(keys.iter().filter(|h| **h != 0).count(), 1);
    }

    #[test]
    fn halves_are_the_nearest_whatever_makes_them() {
        let from: Vec<f32> = floats(5, 1001, 1.0)
            .into_iter()
            .enumerate()
            .map(|(n, v)| v * 10.0_f32.powi(n as i32 % 12 - 8))
            .collect();
        let mut found = vec![7; from.len()];

        kernel::narrow(&from, &mut found);

        let exact: Vec<u16> = from.iter().map(|v| halves::from_f32(*v)).collect();
        assert_eq!(found, exact);
    }

    #[test]
    fn shapes_that_do_not_belong_together_are_none() {
        let (keys, values) = ([2, 6, 47, 64, 32], [2, 6, 1504, 64]);
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
        assert!(Sizes::of(&[2, 1, 384], &[2, 6, 64, 47, 32], &values).is_none());
        assert!(Sizes::of(&[2, 1, 384], &keys, &[2, 6, 1500, 64]).is_none());
        assert!(Sizes::of(&[2, 1, 384], &keys, &[1, 6, 1504, 64]).is_none());
    }

    #[test]
    #[ignore = "how long it takes, for people"]
    fn time() {
        for isa in Isa::known() {
            for (windows, rows) in [(8, 1), (4, 5), (4, 6), (1, 220)] {
                let size = 6 * HEAD * PADDED;
                let halves: Vec<u16> = numbers(3)
                    .map(halves::from_f32)
                    .take(size * windows * 4 * 2)
                    .collect();
                let queries = floats(1, rows * 6 * HEAD, 1.0);
                let mut attention = Attention::new(vec![0, 1]);
                attention.isa = isa;
                let mut context = queries.clone();
                let mut shares = vec![0.0; 2 * rows * POSITIONS];
                let mut best = std::time::Duration::MAX;
                for _ in 0..20 {
                    let start = std::time::Instant::now();
                    for sound in halves.chunks_exact(2 * size) {
                        let (keys, values) = sound.split_at(size);
                        attention.window(6, &queries, [keys, values], &mut context, &mut shares);
                    }
                    best = best.min(start.elapsed());
                }
                println!("{isa:?}: {windows} windows of {rows} rows: {best:?}");
            }
        }
        let from = floats(1, 6 * HEAD * POSITIONS, 1.0);
        let mut to = vec![0; 6 * HEAD * PADDED];
        let start = std::time::Instant::now();
        arrange_keys(&from, &mut to);
        println!("keys: {:?}", start.elapsed());
        let start = std::time::Instant::now();
        arrange_values(&from, &mut to);
        println!("values: {:?}", start.elapsed());
    }
}
