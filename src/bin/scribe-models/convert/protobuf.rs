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

    /// A number that always takes four bytes.
    fn fixed(mut self, field: u64, value: [u8; 4]) -> Self {
        varint(&mut self.0, field << 3 | 5);
        self.0.extend_from_slice(&value);
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

    /// Length of a message within this one, with its head.
    pub fn length_within(&self, field: u64) -> u64 {
        self.head(field, 0).len() as u64 + self.0.len() as u64
    }

    /// What comes before this message where it is a field of another, and `further` bytes follow it there.
    pub fn head(&self, field: u64, further: u64) -> Vec<u8> {
        let mut head = Vec::with_capacity(12);
        varint(&mut head, field << 3 | 2);
        varint(&mut head, self.0.len() as u64 + further);
        head
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
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

/// Type of a tensor's elements, by ONNX's numbers.
#[derive(Clone, Copy)]
pub enum Element {
    /// 32-bit floats.
    F32 = 1,
    /// Bytes.
    U8 = 2,
    /// 8-bit whole numbers.
    #[allow(dead_code, reason = "others that include this file write them")]
    I8 = 3,
    /// 16 bits.
    U16 = 4,
    /// 64-bit whole numbers.
    I64 = 7,
    /// 16-bit floats.
    F16 = 10,
}

/// An attribute's value.
#[derive(Clone, Copy)]
pub enum Attribute<'a> {
    /// One whole number.
    Int(i64),
    /// Several.
    Ints(&'a [i64]),
    /// One float.
    Float(f32),
    /// A text.
    Text(&'a str),
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

/// The same with a name of its own, and the domain that its operator is of.
pub fn named_node(
    name: &str,
    domain: &str,
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute<'_>)],
) -> Message {
    Message::default()
        .each(inputs, |m, name| m.text(1, name))
        .each(outputs, |m, name| m.text(2, name))
        .text(3, name)
        .text(4, op)
        .each(attributes, |m, (name, value)| {
            m.message(5, &attribute(name, value))
        })
        .text(7, domain)
}

fn attribute(name: &str, value: &Attribute<'_>) -> Message {
    let named = Message::default().text(1, name);
    match value {
        // What is below 0 takes ten bytes.
        Attribute::Int(value) => named.int(3, value.cast_unsigned()).int(20, 2),
        Attribute::Ints(values) => named
            .each(*values, |m, value| m.int(8, value.cast_unsigned()))
            .int(20, 7),
        Attribute::Float(value) => named.fixed(2, value.to_le_bytes()).int(20, 1),
        Attribute::Text(value) => named.text(4, value).int(20, 3),
    }
}

/// A constant of floats: TensorProto.
pub fn floats(name: &str, shape: &[u64], values: &[f32]) -> Message {
    tensor(name, shape, Element::F32, &bytes_of(values))
}

/// A constant of whole numbers.
pub fn ints(name: &str, values: &[i64]) -> Message {
    let raw: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    tensor(name, &[values.len() as u64], Element::I64, &raw)
}

/// A constant whose values are these bytes.
pub fn tensor(name: &str, shape: &[u64], element: Element, raw: &[u8]) -> Message {
    Message::default()
        .each(shape, |m, dimension| m.int(1, *dimension))
        .int(2, element as u64)
        .text(8, name)
        .bytes(9, raw)
}

/// Floats as a constant holds them.
pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// One dimension of an input or output.
#[derive(Clone, Copy)]
pub enum Dimension<'a> {
    /// Always this.
    Fixed(u64),
    /// Any, under this name.
    Free(&'a str),
}

/// An input or output: ValueInfoProto.
pub fn value_info(name: &str, element: Element, shape: &[Dimension<'_>]) -> Message {
    let dimensions = Message::default().each(shape, |m, dimension| {
        let one = match dimension {
            Dimension::Fixed(size) => Message::default().int(1, *size),
            Dimension::Free(name) => Message::default().text(2, name),
        };
        m.message(1, &one)
    });
    let tensor_type = Message::default()
        .int(1, element as u64)
        .message(2, &dimensions);
    Message::default()
        .text(1, name)
        .message(2, &Message::default().message(1, &tensor_type))
}

/// A note in a model: StringStringEntryProto.
pub fn note(key: &str, value: &str) -> Message {
    Message::default().text(1, key).text(2, value)
}
