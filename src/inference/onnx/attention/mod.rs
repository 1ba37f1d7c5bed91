// SPDX-License-Identifier: MPL-2.0
//! The encoder's attention, an operator of ours (`scribe.SelfAttention`).
//!
//! ONNX Runtime's own took more than half of an encoder's time: it multiplies 32-bit floats, and writes down the scores of
//! each position for each. This one has numbers of 16 or 8 bits where the processor has products of those (`kernel`,
//! docs/adr/0014-attention-in-16-bits.md, 0018-attention-in-8-bits.md), and writes down no scores. It computes on the thread that it
//! is called on alone.
//!
//! ```text
//! in   qkv      f32 [B, S, 3 * H * 64]   queries, keys and values side by side, not scaled
//! out  context  f32 [B, S, H * 64]
//! ```

mod kernel;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::cross::HEAD;
use super::lengths;
use kernel::{Given, Isa, Room};

/// See the module.
pub const NAME: &str = "SelfAttention";

/// Of so many bits are the numbers that it multiplies here: 8, 16 or 32.
pub fn bits() -> u32 {
    Isa::known()[0].bits()
}

/// For a session's domain.
pub(super) struct SelfAttention;

impl Operator for SelfAttention {
    type Kernel<'attr> = Attention;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Attention> {
        Ok(Attention::new(Isa::known()[0]))
    }
    // No shapes are inferred: ort hands lengths that are open on as -1, and ONNX Runtime refuses those.
}

/// One node's, with room for what it works out.
pub(super) struct Attention {
    isa: Isa,
    room: Room,
}

impl Attention {
    fn new(isa: Isa) -> Self {
        Self {
            isa,
            room: Room::default(),
        }
    }
}

impl Kernel for Attention {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = context.input(0)?;
        let input = input.ok_or_else(|| wrong("its input is missing"))?;
        let (shape, values) = input.try_extract_tensor::<f32>()?;
        let Some(sizes) = Sizes::of(shape) else {
            return Err(wrong(&format!("a shape of {shape:?}")));
        };
        let width = sizes.heads * HEAD;
        let lengths = [sizes.windows, sizes.positions, width].map(|n| n as i64);
        let out = context.output(0, lengths)?;
        let mut out = out.ok_or_else(|| wrong("its output is missing"))?;
        let (_, out) = out.try_extract_tensor_mut::<f32>()?;
        let windows = values.chunks_exact(sizes.positions * 3 * width);
        for (values, out) in windows.zip(out.chunks_exact_mut(sizes.positions * width)) {
            let given = Given {
                values,
                positions: sizes.positions,
                heads: sizes.heads,
            };
            kernel::attend(self.isa, given, &mut self.room, out);
        }
        Ok(())
    }
}

/// What the shape of the input says.
struct Sizes {
    windows: usize,
    positions: usize,
    heads: usize,
}

impl Sizes {
    /// None if there is nothing in it, or the width is not that of queries, keys and values.
    fn of(shape: &[i64]) -> Option<Self> {
        let [windows, positions, width] = lengths(shape)?.try_into().ok()?;
        let fits = windows > 0 && positions > 0 && width > 0 && width.is_multiple_of(3 * HEAD);
        fits.then_some(Self {
            windows,
            positions,
            heads: width / (3 * HEAD),
        })
    }
}

fn wrong(what: &str) -> ort::Error {
    super::wrong(NAME, what)
}

#[cfg(test)]
mod tests;
