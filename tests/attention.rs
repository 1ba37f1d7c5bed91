// SPDX-License-Identifier: MPL-2.0
//! The encoder's attention, an operator of ours, beside ONNX Runtime's products of 8 bits: both may use the processor's tiles.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[allow(dead_code, reason = "it writes whole models too")]
#[path = "../src/bin/scribe-models/convert/protobuf.rs"]
mod protobuf;

use std::fs;
use std::path::PathBuf;

use common::{repository, there};
use gstscribe::inference::onnx::checked::{self, Port, Ports};
use gstscribe::inference::onnx::{self, attention};
use ort::session::Session;
use ort::value::TensorRef;
use protobuf::{Dimension, Element, Message};
use tempfile::TempDir;

const RUNTIME: &str = "target/release/scribe/libonnxruntime.so.1";
const WIDTH: usize = 128;
const POSITIONS: usize = 300;

/// Small whole numbers, the same each time.
fn numbers(count: usize, seed: usize) -> impl Iterator<Item = i32> {
    (0..count).map(move |n| ((n * 7919 + seed * 104_729) % 251) as i32 - 125)
}

/// `[1, POSITIONS, width]`
fn values(width: usize, seed: usize) -> Vec<f32> {
    numbers(POSITIONS * width, seed)
        .map(|v| v as f32 / 60.0)
        .collect()
}

/// A product with weights of 8 bits, from `from` to `to` values a position.
fn product(from: usize, to: usize) -> (Message, Vec<Message>) {
    let bytes: Vec<u8> = numbers(from * to, 3)
        .map(|v| (v as i8).cast_unsigned())
        .collect();
    let (rows, columns) = (from as u64, to as u64);
    let constants = vec![
        protobuf::tensor("b", &[rows, columns], Element::I8, &bytes),
        protobuf::floats("scale", &[columns], &vec![0.001; to]),
        protobuf::tensor("zero", &[columns], Element::I8, &vec![0; to]),
    ];
    let op = "DynamicQuantizeMatMul";
    let inputs = ["x", "b", "scale", "zero"];
    let node = protobuf::named_node("product", "com.microsoft", op, &inputs, &["y"], &[]);
    (node, constants)
}

fn operator() -> (Message, Vec<Message>) {
    let node = protobuf::named_node("own", onnx::DOMAIN, attention::NAME, &["x"], &["y"], &[]);
    (node, Vec::new())
}

/// A graph with one node, `from` to `to` values a position.
struct One {
    path: PathBuf,
    widths: [usize; 2],
}

impl One {
    fn new(
        folder: &TempDir,
        (node, constants): (Message, Vec<Message>),
        from: usize,
        to: usize,
    ) -> Self {
        let port = |name: &str, width: usize| {
            let shape = [
                Dimension::Fixed(1),
                Dimension::Free("S"),
                Dimension::Fixed(width as u64),
            ];
            protobuf::value_info(name, Element::F32, &shape)
        };
        let graph = Message::default()
            .message(1, &node)
            .text(2, "one")
            .each(&constants, |m, constant| m.message(5, constant))
            .message(11, &port("x", from))
            .message(12, &port("y", to));
        let opset = |domain, version| Message::default().text(1, domain).int(2, version);
        let model = Message::default()
            .int(1, 10)
            .message(7, &graph)
            .message(8, &opset("", 20))
            .message(8, &opset("com.microsoft", 1))
            .message(8, &opset(onnx::DOMAIN, 1));
        let path = folder.path().join(format!("{from}-{to}.onnx"));
        fs::write(&path, model.into_bytes()).unwrap();
        Self {
            path,
            widths: [from, to],
        }
    }

    fn session(&self) -> Session {
        let port = |name, width: usize| Port::f32(name, &[Some(1), None, Some(width as u64)]);
        let ports = Ports {
            inputs: vec![port("x", self.widths[0])],
            outputs: vec![port("y", self.widths[1])],
        };
        checked::session(&self.path, &ports).unwrap()
    }
}

fn run(session: &mut Session, width: usize, values: &[f32]) -> Vec<f32> {
    let shape = [1, values.len() / width, width];
    let x = TensorRef::from_array_view((shape, values)).unwrap();
    let outputs = session.run(ort::inputs!["x" => x]).unwrap();
    outputs["y"].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

#[test]
fn products_of_8_bits_are_the_same_before_behind_and_beside_it() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let first = One::new(&folder, product(WIDTH, 3 * WIDTH), WIDTH, 3 * WIDTH);
    let own = One::new(&folder, operator(), 3 * WIDTH, WIDTH);
    let all = |seed: usize| {
        let (mut first, mut own) = (first.session(), own.session());
        let x = values(WIDTH, seed);
        let before = run(&mut first, WIDTH, &x);
        let context = run(&mut own, 3 * WIDTH, &before);
        (0..4).for_each(|_| {
            assert_eq!(run(&mut first, WIDTH, &x), before, "behind it");
            assert_eq!(run(&mut own, 3 * WIDTH, &before), context, "again");
        });
        (before, context)
    };
    // Each seed on a thread that has had neither; the operator comes first on one.
    let alone: Vec<_> = [1, 2]
        .map(|seed| std::thread::scope(|scope| scope.spawn(|| all(seed)).join().unwrap()))
        .into();
    let turned = std::thread::scope(|scope| {
        let run = || {
            let context = run(&mut own.session(), 3 * WIDTH, &alone[0].0);
            (run(&mut first.session(), WIDTH, &values(WIDTH, 1)), context)
        };
        scope.spawn(run).join().unwrap()
    });
    assert!(turned == alone[0], "the operator first");
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads = [1, 2].map(|seed| scope.spawn(move || all(seed)));
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(together == alone, "two threads at once");

    // The product itself is one of numbers: not all the same, and near what floats come to.
    let x = values(WIDTH, 1);
    let weights: Vec<f32> = numbers(WIDTH * 3 * WIDTH, 3)
        .map(|v| v as f32 * 0.001)
        .collect();
    for (row, column) in [(0, 0), (17, 200), (POSITIONS - 1, 3 * WIDTH - 1)] {
        let terms = (0..WIDTH).map(|n| x[row * WIDTH + n] * weights[n * 3 * WIDTH + column]);
        let (exact, found) = (terms.sum::<f32>(), alone[0].0[row * 3 * WIDTH + column]);
        assert!((exact - found).abs() < 0.1, "{found} for {exact}");
    }
}

#[test]
fn a_width_that_is_not_threefold_is_refused_in_words() {
    if !there(&repository(RUNTIME), "make models") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let odd = One::new(&folder, operator(), 2 * WIDTH, WIDTH);
    let mut session = odd.session();
    let x = values(2 * WIDTH, 1);
    let x = TensorRef::from_array_view(([1, POSITIONS, 2 * WIDTH], &x[..])).unwrap();

    let why = session.run(ort::inputs!["x" => x]).unwrap_err().to_string();

    assert!(why.contains("scribe.SelfAttention: a shape of"), "{why}");
}
