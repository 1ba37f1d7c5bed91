// SPDX-License-Identifier: MPL-2.0
//! A graph as it grows: operations in order, each with its constants, and the file in the end.
//!
//! Constants are kept as the bytes of the file and written one by one: a large model's graph lies in memory once.

use std::collections::HashSet;
use std::io::{self, Write};

use gstscribe::inference::onnx::{self, attention, cross, linear, past};

use super::checkpoint::Array;
use super::halves;
use super::protobuf::{self, Attribute, Dimension, Element, Message};

/// ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";
/// The version of ONNX's form.
const IR_VERSION: u64 = 10;
/// Of ONNX's operators; those of ONNX Runtime are of version 1.
const OPSET: u64 = 20;
/// No message of protobuf is longer.
const FILE_BYTES_MAX: u64 = (1 << 31) - 1;
/// What 16 bits hold, with as much again to spare for the score that it is added to.
const LEAST_SCORE: f32 = -30_000.0;

/// A value in the graph: an input, a constant or what an operation gives.
pub type Value = String;

/// An input or an output: its name, type and shape.
pub struct Port<'a> {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub element: Element,
    /// Its shape.
    pub shape: Vec<Dimension<'a>>,
}

/// How matrices with constant weights are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// Weights of 8 bits, and each row of activations made one of 8 bits in each run: our own product.
    Int8,
    /// Floats, as all of the graph's.
    Plain,
}

/// See the module.
#[derive(Default)]
pub struct Graph {
    /// Its floats have 16 bits inside; those of its inputs and outputs have 32.
    half: bool,
    /// It has an operator of ours.
    ours: bool,
    nodes: Vec<Message>,
    constants: Vec<Message>,
    known: HashSet<String>,
}

impl Graph {
    /// An empty one, whose floats have 16 bits inside or 32.
    pub fn new(half: bool) -> Self {
        Self {
            half,
            ..Self::default()
        }
    }

    /// A value as floats of this type.
    fn cast(&mut self, value: &str, to: Element) -> Value {
        self.op_with("Cast", &[value], &[("to", Attribute::Int(to as i64))])
    }

    /// An input of floats, or others of 32 bits, as the graph works with them.
    pub fn inward(&mut self, input: &str) -> Value {
        match self.half {
            true => self.cast(input, Element::F16),
            false => input.to_owned(),
        }
    }

    /// The same for floats of 16 bits.
    pub fn inward_halves(&mut self, value: &str) -> Value {
        match self.half {
            true => value.to_owned(),
            false => self.cast(value, Element::F32),
        }
    }

    /// The same for what is added to scores: what is too much for 16 bits is as much as they hold, less than infinite.
    pub fn inward_mask(&mut self, input: &str) -> Value {
        if !self.half {
            return input.to_owned();
        }
        let least = protobuf::bytes_of(&[LEAST_SCORE]);
        let least = self.constant("least_score", &[1], Element::F32, &least);
        let bounded = self.op("Max", &[input, &least]);
        self.cast(&bounded, Element::F16)
    }

    /// An operation whose result is the output `name`. Returns it as the graph works with it.
    pub fn outward(
        &mut self,
        op: &str,
        inputs: &[&str],
        name: &str,
        attributes: &[(&str, Attribute<'_>)],
    ) -> Value {
        if !self.half {
            self.op_named(op, inputs, &[name], attributes);
            return name.to_owned();
        }
        let value = self.op_with(op, inputs, attributes);
        self.give(&value, name);
        value
    }

    /// The name that a value has which becomes the output `name` by [`Self::give`].
    pub fn given(&self, name: &str) -> Value {
        match self.half {
            true => format!("{name}.f16"),
            false => name.to_owned(),
        }
    }

    /// Makes a value the output `name`, if it has another name.
    pub fn give(&mut self, value: &str, name: &str) {
        if value != name {
            let float = [("to", Attribute::Int(Element::F32 as i64))];
            self.op_named("Cast", &[value], &[name], &float);
        }
    }

    /// An operation with one result.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> Value {
        self.op_with(op, inputs, &[])
    }

    /// The same with attributes.
    pub fn op_with(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) -> Value {
        let name = format!("{op}_{}_0", self.nodes.len() + 1);
        self.op_named(op, inputs, &[&name], attributes);
        name
    }

    /// Cuts a value in `N` equal parts along `axis`.
    pub fn split<const N: usize>(&mut self, value: &str, axis: i64) -> [Value; N] {
        let number = self.nodes.len() + 1;
        let names: [Value; N] = std::array::from_fn(|n| format!("Split_{number}_{n}"));
        let outputs = names.each_ref().map(String::as_str);
        self.split_named(value, axis, &outputs);
        names
    }

    /// The same, with names for the parts.
    pub fn split_named(&mut self, value: &str, axis: i64, outputs: &[&str]) {
        let parts = Attribute::Int(outputs.len() as i64);
        let attributes = [("axis", Attribute::Int(axis)), ("num_outputs", parts)];
        self.op_named("Split", &[value], outputs, &attributes);
    }

    /// An operation whose results have these names.
    ///
    /// - `attributes`: in the order of their names.
    pub fn op_named(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) {
        let domain = match op {
            "MultiHeadAttention" => MICROSOFT,
            attention::NAME | cross::NAME | linear::NAME | past::NAME => {
                self.ours = true;
                onnx::DOMAIN
            }
            _ => "",
        };
        let name = format!("{op}_{}", self.nodes.len() + 1);
        let node = protobuf::named_node(&name, domain, op, inputs, outputs, attributes);
        self.nodes.push(node);
    }

    /// Elements `from` to `to` along `axis`.
    pub fn slice(&mut self, value: &str, from: i64, to: i64, axis: i64) -> Value {
        let (from, to, axis) = (self.ints(&[from]), self.ints(&[to]), self.ints(&[axis]));
        self.op("Slice", &[value, &from, &to, &axis])
    }

    /// A value in another shape; 0 is a length as it was, -1 what is left.
    pub fn reshape(&mut self, value: &str, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.op("Reshape", &[value, &shape])
    }

    /// A value with its axes in another order.
    pub fn transpose(&mut self, value: &str, axes: &[i64]) -> Value {
        self.op_with("Transpose", &[value], &[("perm", Attribute::Ints(axes))])
    }

    /// Values side by side along `axis`.
    pub fn concat(&mut self, values: &[&str], axis: i64) -> Value {
        self.op_with("Concat", values, &[("axis", Attribute::Int(axis))])
    }

    /// Length of the axis before `end`.
    pub fn length(&mut self, value: &str, end: i64) -> Value {
        let attributes = [
            ("end", Attribute::Int(end)),
            ("start", Attribute::Int(end - 1)),
        ];
        self.op_with("Shape", &[value], &attributes)
    }

    /// Shares of 1 along the last axis.
    pub fn softmax(&mut self, value: &str) -> Value {
        self.op_with("Softmax", &[value], &[("axis", Attribute::Int(-1))])
    }

    /// A value normalised along its last axis.
    pub fn norm(&mut self, value: &str, name: &str, gamma: &[f32], beta: &[f32]) -> Value {
        let gamma = self.floats(&format!("{name}.g"), &[gamma.len()], gamma);
        let beta = self.floats(&format!("{name}.b"), &[beta.len()], beta);
        let attributes = [
            ("axis", Attribute::Int(-1)),
            ("epsilon", Attribute::Float(1e-5)),
        ];
        self.op_with("LayerNormalization", &[value, &gamma, &beta], &attributes)
    }

    /// `value` times the transpose of `weight` `[out, in]`, plus `bias`.
    pub fn linear(
        &mut self,
        value: &str,
        name: &str,
        weight: &Array,
        bias: Option<&[f32]>,
        kind: Linear,
    ) -> Value {
        if kind == Linear::Int8 {
            let (inputs, outputs) = self.eight_bits(value, name, weight, bias.unwrap_or(&[]));
            let inputs = inputs.each_ref().map(String::as_str);
            return self.op_with(linear::NAME, &inputs, &[(linear::OUTPUTS, outputs)]);
        }
        let w = self.transposed(name, weight);
        let product = self.op("MatMul", &[value, &w]);
        match bias {
            Some(bias) => {
                let bias = self.floats(&format!("{name}.bias"), &[bias.len()], bias);
                self.op("Add", &[&product, &bias])
            }
            None => product,
        }
    }

    /// The same without a bias, as the output `to`.
    pub fn linear_outward(
        &mut self,
        value: &str,
        name: &str,
        weight: &Array,
        kind: Linear,
        to: &str,
    ) {
        if kind == Linear::Int8 {
            let (inputs, outputs) = self.eight_bits(value, name, weight, &[]);
            let inputs = inputs.each_ref().map(String::as_str);
            self.outward(linear::NAME, &inputs, to, &[(linear::OUTPUTS, outputs)]);
            return;
        }
        let w = self.transposed(name, weight);
        self.outward("MatMul", &[value, &w], to, &[]);
    }

    /// What our product takes, and its attribute.
    fn eight_bits(
        &mut self,
        value: &str,
        name: &str,
        weight: &Array,
        bias: &[f32],
    ) -> ([Value; 3], Attribute<'static>) {
        let (rows, columns) = (weight.shape[0], weight.shape[1]);
        let packed = linear::pack(&weight.values, columns, bias);
        let shape = linear::shape(&packed, columns);
        let q = self.constant(&format!("{name}.q"), &shape, Element::U8, &packed.weights);
        let shape = [3, packed.outputs];
        let known = self.floats(&format!("{name}.columns"), &shape, &packed.columns);
        ([value.to_owned(), q, known], Attribute::Int(rows as i64))
    }

    /// A matrix `[out, in]` as `[in, out]`.
    fn transposed(&mut self, name: &str, weight: &Array) -> Value {
        let (rows, columns) = (weight.shape[0], weight.shape[1]);
        let values: Vec<f32> = (0..columns)
            .flat_map(|column| weight.values.iter().skip(column).step_by(columns).copied())
            .collect();
        self.floats(&format!("{name}.w"), &[columns, rows], &values)
    }

    /// Whole numbers, which have their name from their values.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let words: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("i{}", words.join("_"));
        if self.known.insert(name.clone()) {
            self.constants.push(protobuf::ints(&name, values));
        }
        name
    }

    /// Floats.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        match self.half {
            true => self.constant(name, shape, Element::F16, &halves::bytes_of(values)),
            false => self.constant(name, shape, Element::F32, &protobuf::bytes_of(values)),
        }
    }

    /// A constant of any type, once for each name.
    pub fn constant(&mut self, name: &str, shape: &[usize], element: Element, raw: &[u8]) -> Value {
        if self.known.insert(name.to_owned()) {
            let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
            self.constants
                .push(protobuf::tensor(name, &shape, element, raw));
        }
        name.to_owned()
    }

    /// Writes the file: a ModelProto whose graph has this name, these inputs, outputs and notes. Returns its length where
    /// that is more than an ONNX file can have, and has then written nothing.
    pub fn write(
        &self,
        name: &str,
        out: &mut impl Write,
        inputs: &[Port<'_>],
        outputs: &[Port<'_>],
        notes: &[(&str, String)],
    ) -> io::Result<Result<(), u64>> {
        let port = |port: &Port<'_>| protobuf::value_info(&port.name, port.element, &port.shape);
        let before = Message::default()
            .each(&self.nodes, |m, node| m.message(1, node))
            .text(2, name);
        let behind = Message::default()
            .each(inputs, |m, input| m.message(11, &port(input)))
            .each(outputs, |m, output| m.message(12, &port(output)));
        let constants: u64 = self.constants.iter().map(|c| c.length_within(5)).sum();
        let head = Message::default().int(1, IR_VERSION).text(2, "scribe");
        let opset = |domain, version| Message::default().text(1, domain).int(2, version);
        let tail = Message::default()
            .message(8, &opset("", OPSET))
            .message(8, &opset(MICROSOFT, 1))
            .each(self.ours.then_some(onnx::DOMAIN), |m, domain| {
                m.message(8, &opset(domain, 1))
            })
            .each(notes, |m, (key, value)| {
                m.message(14, &protobuf::note(key, value))
            });
        let graph = before.head(7, constants + behind.as_bytes().len() as u64);
        let whole = [&head, &before, &behind, &tail].map(|m| m.as_bytes().len() as u64);
        let length = whole.iter().sum::<u64>() + graph.len() as u64 + constants;
        if length > FILE_BYTES_MAX {
            return Ok(Err(length));
        }
        out.write_all(head.as_bytes())?;
        out.write_all(&graph)?;
        out.write_all(before.as_bytes())?;
        for constant in &self.constants {
            out.write_all(&constant.head(5, 0))?;
            out.write_all(constant.as_bytes())?;
        }
        out.write_all(behind.as_bytes())?;
        out.write_all(tail.as_bytes())?;
        out.flush()?;
        Ok(Ok(()))
    }
}
