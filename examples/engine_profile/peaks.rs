// SPDX-License-Identifier: MPL-2.0
//! What one thread of this machine can do at the most: products of matrices by ONNX Runtime itself, reading memory.

#[allow(dead_code, reason = "it writes whole models too")]
#[path = "../../src/bin/scribe-models/convert/protobuf.rs"]
mod protobuf;

use std::hint::black_box;

use gstscribe::inference::onnx::library;
use gstscribe::inference::onnx::whisper::Work;
use gstscribe::inference::times::thread_time;
use ort::session::Session;
use ort::value::TensorRef;
use protobuf::{Dimension, Element, Message};

use crate::Outcome;

/// Rows, what is summed over, and columns: the widest matrix of tiny, and one that has four times as much to do for
/// each value that must be made one of 8 bits first.
const SHAPES: [[usize; 3]; 2] = [[1500, 384, 1536], [1500, 1536, 1536]];
const RUNS: usize = 12;
const READS: usize = 12;

/// Of one thread, the best of several runs.
pub struct Peaks {
    /// Operations a second of `MatMul` with 32-bit floats.
    pub f32_gemm: f64,
    /// Operations a second of `DynamicQuantizeMatMul`: 8 bits, and making them.
    pub int8_gemm: f64,
    shapes: Vec<serde_json::Value>,
}

impl Peaks {
    /// Measures them: some seconds.
    pub fn measure() -> Outcome<Self> {
        let mut peaks = Self {
            f32_gemm: 0.0,
            int8_gemm: 0.0,
            shapes: Vec::new(),
        };
        for shape in SHAPES {
            let f32_gemm = product(shape, false)?;
            let int8_gemm = product(shape, true)?;
            peaks.f32_gemm = peaks.f32_gemm.max(f32_gemm);
            peaks.int8_gemm = peaks.int8_gemm.max(int8_gemm);
            peaks.shapes.push(serde_json::json!({
                "shape": shape, "f32_gops": f32_gemm / 1e9, "int8_gops": int8_gemm / 1e9,
            }));
        }
        Ok(peaks)
    }

    /// The better of both: the machine may have been slowed by others.
    pub fn or_better(self, other: Self) -> Self {
        Self {
            f32_gemm: self.f32_gemm.max(other.f32_gemm),
            int8_gemm: self.int8_gemm.max(other.int8_gemm),
            shapes: [self.shapes, other.shapes].concat(),
        }
    }

    /// Operations a second with weights of this model's type.
    pub fn of_weights(&self, work: &Work) -> f64 {
        if work.eight_bits {
            self.int8_gemm
        } else {
            self.f32_gemm
        }
    }

    /// For the document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "f32_gops": self.f32_gemm / 1e9, "int8_gops": self.int8_gemm / 1e9,
            "each": self.shapes,
        })
    }
}

/// Operations a second of the product of `[rows, inner]` with a constant `[inner, columns]`.
fn product([rows, inner, columns]: [usize; 3], eight_bits: bool) -> Outcome<f64> {
    let mut session = load(&graph([rows, inner, columns], eight_bits))?;
    let values: Vec<f32> = (0..rows * inner)
        .map(|n| ((n * 37 % 401) as f32 - 200.0) / 200.0)
        .collect();
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let input = TensorRef::from_array_view(([rows, inner], &values[..]))?;
        let before = thread_time();
        black_box(session.run(ort::inputs!["a" => input])?);
        least = least.min((thread_time() - before).as_secs_f64());
    }
    Ok(2.0 * (rows * inner * columns) as f64 / least)
}

/// With one thread, as the engine's own sessions.
fn load(graph: &[u8]) -> Outcome<Session> {
    let environment = library::environment()?;
    let load = || -> Result<Session, ort::Error> {
        Session::builder(environment)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .commit_from_memory(graph)
    };
    Ok(load()?)
}

/// One node.
fn graph([rows, inner, columns]: [usize; 3], eight_bits: bool) -> Vec<u8> {
    let (wide, high) = (columns as u64, inner as u64);
    let weight = |n: usize| (n * 31 % 255) as i32 - 127;
    let count = inner * columns;
    let (node, constants) = if eight_bits {
        // As the converter writes them: a scale for each column, zeros at 0, no bias.
        let raw: Vec<u8> = (0..count).map(|n| weight(n) as i8 as u8).collect();
        let constants = vec![
            protobuf::tensor("b", &[high, wide], Element::I8, &raw),
            protobuf::floats("scale", &[wide], &vec![0.01; columns]),
            protobuf::tensor("zero", &[wide], Element::I8, &vec![0; columns]),
        ];
        let inputs = ["a", "b", "scale", "zero"];
        let op = "DynamicQuantizeMatMul";
        let node = protobuf::named_node("product", "com.microsoft", op, &inputs, &["c"], &[]);
        (node, constants)
    } else {
        let values: Vec<f32> = (0..count).map(|n| weight(n) as f32 / 100.0).collect();
        let constants = vec![protobuf::floats("b", &[high, wide], &values)];
        (
            protobuf::node("MatMul", &["a", "b"], &["c"], &[]),
            constants,
        )
    };
    let port = |name: &str, columns: u64| {
        let shape = [Dimension::Fixed(rows as u64), Dimension::Fixed(columns)];
        protobuf::value_info(name, Element::F32, &shape)
    };
    let graph = Message::default()
        .message(1, &node)
        .text(2, "product")
        .each(&constants, |m, constant| m.message(5, constant))
        .message(11, &port("a", high))
        .message(12, &port("c", wide));
    let opset = |domain, version| Message::default().text(1, domain).int(2, version);
    Message::default()
        .int(1, 10)
        .message(7, &graph)
        .message(8, &opset("", 20))
        .message(8, &opset("com.microsoft", 1))
        .into_bytes()
}

/// Bytes a second that one thread reads of so many, again and again: from the caches what they hold.
pub fn read(bytes: f64) -> f64 {
    // So many places are read in turn: one alone is not fetched ahead as fast.
    const PLACES: usize = 8;
    let words = (bytes as usize / size_of::<u64>()).next_multiple_of(PLACES * PLACES);
    let buffer = vec![1_u64; words];
    let each = words / PLACES;
    let mut least = f64::INFINITY;
    for _ in 0..READS {
        let buffer = black_box(&buffer);
        let before = thread_time();
        let mut sums = [0_u64; PLACES];
        for at in (0..each).step_by(PLACES) {
            for place in buffer.chunks_exact(each) {
                for (sum, value) in sums.iter_mut().zip(&place[at..at + PLACES]) {
                    *sum = sum.wrapping_add(*value);
                }
            }
        }
        black_box(sums);
        least = least.min((thread_time() - before).as_secs_f64());
    }
    (words * size_of::<u64>()) as f64 / least
}
