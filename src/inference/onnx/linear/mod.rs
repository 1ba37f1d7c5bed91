// SPDX-License-Identifier: MPL-2.0
//! Products with weights of 8 bits, an operator of ours (`scribe.Linear`).
//!
//! Each row of what is multiplied has a scale and a zero of its own. ONNX Runtime's own product (`DynamicQuantizeMatMul`) has one of
//! each for the whole tensor: a loud row took bits from all others, and a text depended on what was decoded beside it
//! (docs/adr/0016-products-of-eight-bits.md). Weights have a scale for each output. It computes on the thread that it is called
//! on alone.
//!
//! ```text
//! in   values   f32 [..., K]             K a multiple of 64
//!      weights  u8  [N' / 16, K / 4, 64] signed bytes as `pack` lays them; N' is N rounded up to 32
//!      columns  f32 [3, N']              of each output: the scale, the sum of its bytes, what is added
//! out  product  f32 [..., N]             N is the attribute `outputs`
//! ```

mod kernel;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::lengths;
use kernel::{GROUP, Isa, PANEL, Room, STEP, Weights};

/// See the module.
pub const NAME: &str = "Linear";
/// Its attribute: how many outputs there are.
pub const OUTPUTS: &str = "outputs";
/// The largest byte of a weight.
const MOST: f32 = 127.0;

/// Weights as the operator takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// `[N' / 16, K / 4, 64]`: 16 outputs, four bytes each, side by side.
    pub weights: Vec<u8>,
    /// `[3, N']`
    pub columns: Vec<f32>,
    /// N'
    pub outputs: usize,
}

/// Weights `[outputs, inner]` as bytes with a scale for each output. `bias` is one value for each output, or nothing.
pub fn pack(weights: &[f32], inner: usize, bias: &[f32]) -> Packed {
    let count = weights.len() / inner;
    let outputs = count.next_multiple_of(2 * PANEL);
    let mut packed = vec![0; outputs * inner];
    let mut columns = vec![0.0; 3 * outputs];
    for (n, row) in weights.chunks_exact(inner).enumerate() {
        let largest = row.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        let scale = largest / MOST;
        let mut sum = 0;
        for (d, value) in row.iter().enumerate() {
            let steps = match scale > 0.0 {
                true => (value / scale).round_ties_even().clamp(-MOST, MOST) as i8,
                false => 0,
            };
            sum += i32::from(steps);
            let line = n / PANEL * (inner / GROUP) + d / GROUP;
            let at = line * PANEL * GROUP + n % PANEL * GROUP + d % GROUP;
            packed[at] = steps.cast_unsigned();
        }
        columns[n] = scale;
        columns[outputs + n] = sum as f32;
        columns[2 * outputs + n] = bias.get(n).copied().unwrap_or(0.0);
    }
    Packed {
        weights: packed,
        columns,
        outputs,
    }
}

/// The shape of its weights, which sum over `inner`.
pub fn shape(packed: &Packed, inner: usize) -> [usize; 3] {
    [packed.outputs / PANEL, inner / GROUP, PANEL * GROUP]
}

pub(super) struct Linear;

impl Operator for Linear {
    type Kernel<'attr> = Product;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Uint8),
            OperatorInput::required(TensorElementType::Float32),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Product> {
        let outputs: i64 = context.get(OUTPUTS).unwrap_or(0);
        let outputs = usize::try_from(outputs).ok().filter(|n| *n > 0);
        Ok(Product {
            isa: Isa::known()[0],
            outputs: outputs.ok_or_else(|| wrong("it does not say how many outputs it has"))?,
            room: Room::default(),
        })
    }
    // No shapes are inferred, as with the others of ours.
}

/// One node's, with room for what it works out.
pub(super) struct Product {
    isa: Isa,
    outputs: usize,
    room: Room,
}

impl Kernel for Product {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |n| {
            context
                .input(n)?
                .ok_or_else(|| wrong("an input is missing"))
        };
        let (values, weights, columns) = (input(0)?, input(1)?, input(2)?);
        let (shape, values) = values.try_extract_tensor::<f32>()?;
        let (weights_shape, weights) = weights.try_extract_tensor::<u8>()?;
        let (columns_shape, columns) = columns.try_extract_tensor::<f32>()?;
        let Some(inner) = inner(self.outputs, shape, weights_shape, columns_shape) else {
            return Err(wrong(&format!(
                "shapes {shape:?}, {weights_shape:?} and {columns_shape:?} for {} outputs",
                self.outputs
            )));
        };
        let mut lengths = shape.to_vec();
        if let Some(last) = lengths.last_mut() {
            *last = self.outputs as i64;
        }
        let out = context.output(0, lengths)?;
        let mut out = out.ok_or_else(|| wrong("its output is missing"))?;
        let (_, out) = out.try_extract_tensor_mut::<f32>()?;
        let weights = Weights::new(weights, columns, self.outputs, inner);
        kernel::multiply(self.isa, values, &weights, &mut self.room, out);
        Ok(())
    }
}

/// What is summed over; none if the shapes do not belong together.
fn inner(outputs: usize, values: &[i64], weights: &[i64], columns: &[i64]) -> Option<usize> {
    let values = lengths(values)?;
    let inner = *values.last()?;
    let padded = outputs.next_multiple_of(2 * PANEL);
    let fits = values.iter().all(|n| *n > 0)
        && inner.is_multiple_of(STEP)
        && lengths(weights)? == [padded / PANEL, inner / GROUP, PANEL * GROUP]
        && lengths(columns)? == [3, padded];
    fits.then_some(inner)
}

fn wrong(what: &str) -> ort::Error {
    super::wrong(NAME, what)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn run(isa: Isa, values: &[f32], packed: &Packed, outputs: usize, inner: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; values.len() / inner * outputs];
        let weights = Weights::new(&packed.weights, &packed.columns, outputs, inner);
        kernel::multiply(isa, values, &weights, &mut Room::default(), &mut out);
        out
    }

    /// Weights as they are kept.
    fn kept(packed: &Packed, outputs: usize, inner: usize) -> Vec<f32> {
        let byte = |n: usize, d: usize| {
            let line = n / PANEL * (inner / GROUP) + d / GROUP;
            packed.weights[line * 64 + n % PANEL * GROUP + d % GROUP].cast_signed()
        };
        (0..outputs * inner)
            .map(|at| packed.columns[at / inner] * f32::from(byte(at / inner, at % inner)))
            .collect()
    }

    #[test]
    fn all_processors_come_within_a_step_of_each_row_of_what_64_bits_do() {
        for isa in Isa::known() {
            for (rows, inner, outputs) in [
                (1, 64, 32),
                (2, 128, 1),
                (5, 384, 100),
                (17, 64, 51),
                (40, 384, 96),
                (99, 1536, 48),
            ] {
                let weights = floats(1, outputs * inner, 0.5);
                let bias = floats(2, outputs, 1.0);
                // Rows of very different loudness, one of them above zero alone.
                let loudness = |n: usize| 10.0_f32.powi((n / inner % 7) as i32 - 3);
                let values: Vec<f32> = floats(3, rows * inner, 1.0)
                    .into_iter()
                    .enumerate()
                    .map(|(n, v)| {
                        if n / inner == 1 {
                            v.abs()
                        } else {
                            v * loudness(n)
                        }
                    })
                    .collect();
                let packed = pack(&weights, inner, &bias);
                let kept = kept(&packed, outputs, inner);

                let found = run(isa, &values, &packed, outputs, inner);

                for (row, found) in values.chunks(inner).zip(found.chunks(outputs)) {
                    let (low, high) = row
                        .iter()
                        .fold((0.0_f32, 0.0_f32), |(l, h), v| (l.min(*v), h.max(*v)));
                    let step = (high - low) / isa.levels();
                    for (n, found) in found.iter().enumerate() {
                        let weights = &kept[n * inner..(n + 1) * inner];
                        let terms = row.iter().zip(weights);
                        let exact: f64 = terms.map(|(v, w)| f64::from(*v) * f64::from(*w)).sum();
                        let exact = exact + f64::from(bias[n]);
                        let most: f32 = weights.iter().map(|w| w.abs()).sum();
                        let off = (f64::from(*found) - exact).abs() as f32;
                        assert!(
                            off <= 0.6 * step * most + 1e-5,
                            "{isa:?}: {found} for {exact}"
                        );
                        // Errors go both ways: what they come to is far less than all of them at once.
                        let root: f32 = weights.iter().map(|w| w * w).sum::<f32>().sqrt();
                        assert!(
                            off <= 2.0 * step * root + 1e-5,
                            "{isa:?}: {found} for {exact}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_comes_out_the_same_whatever_is_beside_it() {
        let (inner, outputs) = (384, 80);
        let packed = pack(&floats(1, outputs * inner, 0.5), inner, &[]);
        let mut values = floats(3, 100 * inner, 1.0);
        values[50 * inner..].iter_mut().for_each(|v| *v *= 1e6);
        for isa in Isa::known() {
            let all = run(isa, &values, &packed, outputs, inner);
            for row in [0, 15, 16, 49, 96, 99] {
                let own = &values[row * inner..(row + 1) * inner];
                let alone = run(isa, own, &packed, outputs, inner);
                assert_eq!(
                    alone,
                    all[row * outputs..(row + 1) * outputs],
                    "{isa:?}, row {row}"
                );
            }
        }
    }

    #[test]
    fn all_processors_with_as_many_levels_come_to_the_same() {
        let (inner, outputs) = (1536, 70);
        let packed = pack(
            &floats(1, outputs * inner, 0.5),
            inner,
            &floats(2, outputs, 1.0),
        );
        let values = floats(3, 37 * inner, 3.0);
        let known = Isa::known();
        let exact = run(Isa::Plain, &values, &packed, outputs, inner);
        for isa in known
            .into_iter()
            .filter(|isa| isa.levels() == Isa::Plain.levels())
        {
            let found = run(isa, &values, &packed, outputs, inner);
            for (found, exact) in found.iter().zip(&exact) {
                assert!(
                    (found - exact).abs() <= 1e-5 * exact.abs().max(1.0),
                    "{isa:?}"
                );
            }
        }
    }

    #[test]
    fn silence_is_the_bias_and_what_is_no_number_stays_none_in_its_row() {
        let (inner, outputs) = (64, 33);
        let bias = floats(2, outputs, 1.0);
        let packed = pack(&floats(1, outputs * inner, 0.5), inner, &bias);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.0; 3 * inner];
            values[inner + 7] = odd;
            for isa in Isa::known() {
                let found = run(isa, &values, &packed, outputs, inner);
                assert_eq!(found[..outputs], bias, "{isa:?}");
                assert!(
                    found[outputs..2 * outputs].iter().all(|v| v.is_nan()),
                    "{isa:?}"
                );
                assert_eq!(found[2 * outputs..], bias, "{isa:?}");
            }
        }
    }

    #[test]
    fn shapes_that_do_not_belong_together_are_none() {
        let of =
            |values: &[i64], weights: &[i64], columns: &[i64]| inner(51, values, weights, columns);

        assert_eq!(of(&[2, 7, 128], &[4, 32, 64], &[3, 64]), Some(128));
        for (values, weights, columns) in [
            (&[2, 7, 100][..], &[4, 25, 64][..], &[3, 64][..]),
            (&[2, 0, 128], &[4, 32, 64], &[3, 64]),
            (&[2, -1, 128], &[4, 32, 64], &[3, 64]),
            (&[], &[4, 32, 64], &[3, 64]),
            (&[2, 7, 128], &[3, 32, 64], &[3, 64]),
            (&[2, 7, 128], &[4, 32, 64], &[3, 51]),
            (&[2, 7, 128], &[4, 32, 64], &[2, 64]),
        ] {
            assert_eq!(of(values, weights, columns), None, "{values:?}");
        }
    }

    #[test]
    #[ignore = "how long it takes, for people"]
    fn time() {
        for isa in Isa::known() {
            for (rows, inner, outputs) in [
                (1500, 384, 1152),
                (1500, 384, 384),
                (1500, 384, 1536),
                (1500, 1536, 384),
                (40, 384, 51_864),
                (5, 384, 51_864),
            ] {
                let packed = pack(&floats(1, outputs * inner, 0.5), inner, &[]);
                let weights = Weights::new(&packed.weights, &packed.columns, outputs, inner);
                let values = floats(2, rows * inner, 1.0);
                let (mut room, mut out) = (Room::default(), vec![0.0; rows * outputs]);
                let mut best = std::time::Duration::MAX;
                for _ in 0..if isa == Isa::Plain { 1 } else { 20 } {
                    let start = std::time::Instant::now();
                    kernel::multiply(isa, &values, &weights, &mut room, &mut out);
                    best = best.min(start.elapsed());
                }
                let rate = 2e-9 * (rows * inner * outputs) as f64 / best.as_secs_f64();
                println!("{isa:?}: {rows} x {inner} x {outputs}: {best:?}, {rate:.0} Gop/s");
            }
        }
    }
}
