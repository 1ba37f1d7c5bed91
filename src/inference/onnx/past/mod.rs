// SPDX-License-Identifier: MPL-2.0
//! The decoder's attention to the tokens before, an operator of ours (`scribe.PastAttention`).
//!
//! ONNX Runtime's own products want the past of each row in one piece, so a text that goes on from another had all of it
//! copied, and the new tokens' part was put behind it in twenty small steps. This one is told by a list where each token's
//! entry lies; texts share what they share. Keys and values are halves, the new ones too before anything looks at them: a
//! text comes out the same whether it is read at once or token by token.
//!
//! ```text
//! in   qkv      f32 [R, n, 3 * H * 64]   queries, scaled, keys and values of the new tokens
//!      past     u16 [E, 2, H, 64]        entries: halves of keys and values
//!      index    i64 [R, P]               entry of each token of a row's past
//!      pos      i64 [R, n]               the first is how many tokens a row's past has, P at most
//! out  context  f32 [R, n, H * 64]
//!      new      u16 [R, n, 2, H, 64]     entries of the new tokens
//! ```

mod kernel;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::cross::HEAD;
use super::lanes::{Isa, narrow};
use super::lengths;

/// See the module.
pub const NAME: &str = "PastAttention";

/// Values of an entry.
pub const fn entry(heads: usize) -> usize {
    2 * heads * HEAD
}

pub(super) struct PastAttention;

impl Operator for PastAttention {
    type Kernel<'attr> = Attention;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Uint16),
            OperatorInput::required(TensorElementType::Int64),
            OperatorInput::required(TensorElementType::Int64),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [
            OperatorOutput::required(TensorElementType::Float32),
            OperatorOutput::required(TensorElementType::Uint16),
        ]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Attention> {
        Ok(Attention {
            isa: Isa::known()[0],
            scores: Vec::new(),
        })
    }
    // No shapes are inferred, as with `CrossAttention`.
}

/// One node's, with room for what it works out.
pub(super) struct Attention {
    isa: Isa,
    scores: Vec<f32>,
}

impl Attention {
    /// One row's new tokens. `qkv` `[n, 3 * heads * 64]`, `past` its entries in order, `context` `[n, heads * 64]`, `new`
    /// `[n, 2, heads, 64]`.
    fn row(
        &mut self,
        heads: usize,
        qkv: &[f32],
        past: &[&[u16]],
        context: &mut [f32],
        new: &mut [u16],
    ) {
        let (width, entry) = (heads * HEAD, entry(heads));
        let tokens = qkv.chunks_exact(3 * width);
        for (qkv, new) in tokens.clone().zip(new.chunks_exact_mut(entry)) {
            narrow(&qkv[width..], new);
        }
        let mut seen = past.to_vec();
        let new = new.chunks_exact(entry);
        for ((qkv, new), context) in tokens.zip(new).zip(context.chunks_exact_mut(width)) {
            seen.push(new);
            self.scores.resize(kernel::places(seen.len()), 0.0);
            kernel::attend(self.isa, &qkv[..width], &seen, &mut self.scores, context);
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
        let (qkv, past, index, pos) = (input(0)?, input(1)?, input(2)?, input(3)?);
        let (qkv_shape, qkv) = qkv.try_extract_tensor::<f32>()?;
        let (past_shape, past) = past.try_extract_tensor::<u16>()?;
        let (index_shape, index) = index.try_extract_tensor::<i64>()?;
        let (pos_shape, pos) = pos.try_extract_tensor::<i64>()?;
        let shapes = [qkv_shape, past_shape, index_shape, pos_shape].map(|shape| &shape[..]);
        let Some(sizes) = Sizes::of(shapes) else {
            return Err(wrong(&format!("shapes {shapes:?}")));
        };
        let Sizes {
            rows,
            tokens,
            heads,
            most,
        } = sizes;
        let missing = || wrong("an output is missing");
        let shape = [rows, tokens, heads * HEAD].map(|n| n as i64);
        let mut out = context.output(0, shape)?.ok_or_else(missing)?;
        let (_, out) = out.try_extract_tensor_mut::<f32>()?;
        let shape = [rows, tokens, 2, heads, HEAD].map(|n| n as i64);
        let mut new = context.output(1, shape)?.ok_or_else(missing)?;
        let (_, new) = new.try_extract_tensor_mut::<u16>()?;
        let entry = entry(heads);
        let width = heads * HEAD;
        let out = out.chunks_exact_mut(tokens * width);
        let new = new.chunks_exact_mut(tokens * entry);
        let qkv = qkv.chunks_exact(tokens * 3 * width);
        let own = index.chunks_exact(most).zip(pos.chunks_exact(tokens));
        for (((qkv, out), new), (index, pos)) in qkv.zip(out).zip(new).zip(own) {
            let length = pos.first().and_then(|n| usize::try_from(*n).ok());
            let index = length.and_then(|length| index.get(..length));
            let index = index.ok_or_else(|| wrong(&format!("a past of {pos:?} of {most}")))?;
            let entry_at = |n: &i64| {
                let at = usize::try_from(*n).ok()?.checked_mul(entry)?;
                past.get(at..at.checked_add(entry)?)
            };
            let seen: Option<Vec<&[u16]>> = index.iter().map(entry_at).collect();
            let seen = seen.ok_or_else(|| wrong("an entry that is not there"))?;
            self.row(heads, qkv, &seen, out, new);
        }
        Ok(())
    }
}

/// What the shapes of the inputs say.
#[derive(Debug, PartialEq)]
struct Sizes {
    rows: usize,
    tokens: usize,
    heads: usize,
    /// Tokens of the longest past.
    most: usize,
}

impl Sizes {
    /// None if they do not belong together.
    fn of([qkv, past, index, pos]: [&[i64]; 4]) -> Option<Self> {
        let [rows, tokens, width] = lengths(qkv)?.try_into().ok()?;
        let [entries, both, heads, head] = lengths(past)?.try_into().ok()?;
        let [of, most] = lengths(index)?.try_into().ok()?;
        let fits = (both, head) == (2, HEAD)
            && heads.checked_mul(3 * HEAD) == Some(width)
            && lengths(pos)? == [rows, tokens]
            && of == rows
            && [rows, tokens, heads, entries, most].iter().all(|n| *n > 0);
        fits.then_some(Self {
            rows,
            tokens,
            heads,
            most,
        })
    }
}

fn wrong(what: &str) -> ort::Error {
    super::wrong(NAME, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::halves;

    /// Values within -`scale` to `scale`, the same each time.
    fn floats(seed: u32, count: usize, scale: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32 * 2.0 - 1.0) * scale
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    /// A token's head, in 64 bits.
    fn plainly(query: &[f32], seen: &[&[u16]], heads: usize, head: usize) -> Vec<f64> {
        let at = |entry: &[u16], part: usize, d: usize| {
            f64::from(halves::to_f32(entry[(part * heads + head) * HEAD + d]))
        };
        let query = &query[head * HEAD..(head + 1) * HEAD];
        let score = |entry: &&[u16]| -> f64 {
            let terms = query.iter().enumerate();
            terms.map(|(d, q)| f64::from(*q) * at(entry, 0, d)).sum()
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let powers: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let context = (0..HEAD).map(|d| {
            let terms = seen.iter().zip(&powers);
            terms.map(|(entry, p)| p / sum * at(entry, 1, d)).sum()
        });
        context.collect()
    }

    #[test]
    fn all_processors_come_to_what_64_bits_do() {
        const HEADS: usize = 3;
        let (width, entry) = (HEADS * HEAD, entry(HEADS));
        let mut pool = vec![0; 500 * entry];
        narrow(&floats(1, 500 * entry, 2.0), &mut pool);
        for isa in Isa::known() {
            for (past, tokens) in [(0, 1), (1, 1), (7, 1), (40, 3), (443, 5), (3, 224)] {
                // All over the place.
                let past: Vec<&[u16]> = (0..past)
                    .map(|n| &pool[(n * 37 % 500) * entry..][..entry])
                    .collect();
                let qkv = floats(9, tokens * 3 * width, 1.0);
                let mut attention = Attention {
                    isa,
                    scores: Vec::new(),
                };
                let (mut context, mut new) =
                    (vec![f32::NAN; tokens * width], vec![7; tokens * entry]);

                attention.row(HEADS, &qkv, &past, &mut context, &mut new);

                let mut seen = past.clone();
                for token in 0..tokens {
                    let from = &qkv[token * 3 * width..(token + 1) * 3 * width];
                    let own = &new[token * entry..(token + 1) * entry];
                    let exact: Vec<u16> =
                        from[width..].iter().map(|v| halves::from_f32(*v)).collect();
                    assert_eq!(own, exact);
                    seen.push(own);
                    for head in 0..HEADS {
                        let exact = plainly(from, &seen, HEADS, head);
                        let found = &context[token * width + head * HEAD..][..HEAD];
                        for (found, exact) in found.iter().zip(&exact) {
                            let off = (f64::from(*found) - exact).abs();
                            assert!(
                                off < 2e-5,
                                "{isa:?}, {} tokens: {found} for {exact}",
                                seen.len()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_text_read_at_once_comes_out_as_token_by_token() {
        let (width, entry) = (2 * HEAD, entry(2));
        let qkv = floats(3, 20 * 3 * width, 1.0);
        let mut attention = Attention {
            isa: Isa::known()[0],
            scores: Vec::new(),
        };
        let (mut whole, mut kept) = (vec![0.0; 20 * width], vec![0; 20 * entry]);
        attention.row(2, &qkv, &[], &mut whole, &mut kept);

        for token in 0..20 {
            let past: Vec<&[u16]> = kept.chunks_exact(entry).take(token).collect();
            let (mut one, mut new) = (vec![0.0; width], vec![0; entry]);
            let own = &qkv[token * 3 * width..(token + 1) * 3 * width];
            attention.row(2, own, &past, &mut one, &mut new);
            assert_eq!(one, whole[token * width..(token + 1) * width]);
        }
    }

    #[test]
    fn extreme_scores_stay_numbers() {
        let (width, entry) = (HEAD, entry(1));
        for scale in [0.0, 1e-8, 60_000.0, 1e30] {
            let qkv = floats(4, 9 * 3 * width, scale);
            for isa in Isa::known() {
                let mut attention = Attention {
                    isa,
                    scores: Vec::new(),
                };
                let (mut context, mut new) = (vec![f32::NAN; 9 * width], vec![0; 9 * entry]);
                attention.row(1, &qkv, &[], &mut context, &mut new);
                assert!(context.iter().all(|v| v.is_finite()), "{isa:?}, {scale}");
            }
        }
    }

    #[test]
    fn shapes_that_do_not_belong_together_are_none() {
        let good: [&[i64]; 4] = [&[4, 2, 1152], &[90, 2, 6, 64], &[4, 30], &[4, 2]];
        let sizes = Sizes::of(good).unwrap();
        assert_eq!(
            (sizes.rows, sizes.tokens, sizes.heads, sizes.most),
            (4, 2, 6, 30)
        );

        for (at, odd) in [
            (0, &[4, 2, 1151][..]),
            (0, &[4, 2]),
            (0, &[4, -1, 1152]),
            (1, &[90, 2, 6, 32]),
            (1, &[90, 1, 6, 64]),
            (1, &[0, 2, 6, 64]),
            (2, &[3, 30]),
            (2, &[4, 0]),
            (3, &[4, 1]),
        ] {
            let mut shapes = good;
            shapes[at] = odd;
            assert_eq!(Sizes::of(shapes), None, "{odd:?}");
        }
    }

    #[test]
    #[ignore = "how long it takes, for people"]
    fn time() {
        let entry = entry(6);
        let pool = vec![0x3c00; 4 * 9160 * entry];
        for isa in Isa::known() {
            for (rows, past) in [(40, 20), (40, 60), (40, 120), (8, 60), (1, 60)] {
                let mut attention = Attention {
                    isa,
                    scores: Vec::new(),
                };
                let qkv = floats(1, 3 * 6 * HEAD, 1.0);
                let (mut context, mut new) = (vec![0.0; 6 * HEAD], vec![0; entry]);
                let mut best = std::time::Duration::MAX;
                for _ in 0..20 {
                    let start = std::time::Instant::now();
                    for layer in 0..4 {
                        for row in 0..rows {
                            // Five rows share all but their last ten tokens.
                            let own = |n: usize| match n + 10 < past {
                                true => row / 5 * 1145 + n * 5,
                                false => row / 5 * 1145 + n * 5 + row % 5,
                            };
                            let at = |n| (layer * 9160 + own(n)) * entry;
                            let seen: Vec<&[u16]> =
                                (0..past).map(|n| &pool[at(n)..][..entry]).collect();
                            attention.row(6, &qkv, &seen, &mut context, &mut new);
                        }
                    }
                    best = best.min(start.elapsed());
                }
                println!("{isa:?}: {rows} rows, {past} tokens, four layers: {best:?}");
            }
        }
    }
}
