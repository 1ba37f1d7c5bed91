// SPDX-License-Identifier: MPL-2.0
//! As much of protobuf and of ONNX's messages as it takes to write a graph.
//!
//! Fields are written in the order of their numbers, as protobuf's own deterministic form has them.
//! Numbers of fields from onnx/onnx.proto.

/// Bytes of one message.
#[derive(Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// A whole number.
    pub fn int(mut self, field: u64, value: u64) -> Self {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value);
        self
    }

    /// Bytes or a message within this one.
    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A text.
    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message within this one.
    pub fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// The same field for each of many values.
    pub fn each<T>(
        self,
        values: impl IntoIterator<Item = T>,
        add: impl Fn(Self, T) -> Self,
    ) -> Self {
        values.into_iter().fold(self, add)
    }

    /// The finished bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const FLOAT: u64 = 1;
const INT64: u64 = 7;

/// An attribute's value.
pub enum Attribute<'a> {
    /// One whole number.
    Int(u64),
    /// Several.
    Ints(&'a [u64]),
}

/// One operation: NodeProto.
pub fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute<'_>)],
) -> Message {
    Message::default()
        .each(inputs, |m, name| m.text(1, name))
        .each(outputs, |m, name| m.text(2, name))
        .text(4, op)
        .each(attributes, |m, (name, value)| {
            m.message(5, &attribute(name, value))
        })
}

fn attribute(name: &str, value: &Attribute<'_>) -> Message {
    let named = Message::default().text(1, name);
    match value {
        Attribute::Int(value) => named.int(3, *value).int(20, 2),
        Attribute::Ints(values) => named.each(*values, |m, value| m.int(8, *value)).int(20, 7),
    }
}

/// A constant of floats: TensorProto.
pub fn floats(name: &str, shape: &[u64], values: &[f32]) -> Message {
    let raw: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    tensor(name, shape, FLOAT, &raw)
}

/// A constant of whole numbers.
pub fn ints(name: &str, values: &[i64]) -> Message {
    let raw: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    tensor(name, &[values.len() as u64], INT64, &raw)
}

fn tensor(name: &str, shape: &[u64], kind: u64, raw: &[u8]) -> Message {
    Message::default()
        .each(shape, |m, dimension| m.int(1, *dimension))
        .int(2, kind)
        .text(8, name)
        .bytes(9, raw)
}

/// One dimension of an input or output.
pub enum Dimension<'a> {
    /// Always this.
    Fixed(u64),
    /// Any, under this name.
    Free(&'a str),
}

/// An input or output of floats: ValueInfoProto.
pub fn value_info(name: &str, shape: &[Dimension<'_>]) -> Message {
    let dimensions = Message::default().each(shape, |m, dimension| {
        let one = match dimension {
            Dimension::Fixed(size) => Message::default().int(1, *size),
            Dimension::Free(name) => Message::default().text(2, name),
        };
        m.message(1, &one)
    });
    let tensor_type = Message::default().int(1, FLOAT).message(2, &dimensions);
    Message::default()
        .text(1, name)
        .message(2, &Message::default().message(1, &tensor_type))
}

/// A note in a model: StringStringEntryProto.
pub fn note(key: &str, value: &str) -> Message {
    Message::default().text(1, key).text(2, value)
}
