// SPDX-License-Identifier: MPL-2.0
//! A look through an ONNX file before ONNX Runtime sees it.
//!
//! It reads the parts of `onnx.proto3` that can reach outside the file or claim more memory than the file has bytes:
//! every tensor's data must be in the file and as long as its shape says. External data is refused whole: it could
//! name any file of the machine, and ONNX Runtime has a form of it that names an address in memory. Also refused is
//! what no model of ours needs and an attacker could: functions (they may call one another without end), training
//! graphs, sparse tensors.
//!
//! No length of the file is believed: each is compared with the bytes that are left.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use crate::inference::EngineError;

/// A longer property is passed over.
const PROPERTY_BYTES_MAX: u64 = 4 << 20;
/// Graphs within graphs (loops, conditions).
const NESTED_GRAPHS_MAX: usize = 16;

/// Numbers of a model's graph and of a graph's outputs.
const GRAPH: u64 = 7;
const OUTPUT: u64 = 12;
/// Data types by ONNX's numbers.
const FLOAT: u64 = 1;
const STRING: u64 = 8;

/// Reads one message field by field.
struct Fields<'a> {
    rest: &'a [u8],
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32,
    Fixed64,
}

impl<'a> Fields<'a> {
    fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = key >> 3;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            wire => return Err(format!("it is no ONNX file: a field of kind {wire}")),
        };
        if number == 0 {
            return Err("it is no ONNX file: a field without a number".into());
        }
        Ok(Some((number, value)))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let split = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = split.ok_or_else(|| {
            format!(
                "it is cut short or damaged: {length} bytes are announced where {} are left",
                self.rest.len()
            )
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self
                .rest
                .split_first()
                .ok_or("it is cut short: it ends within a number")?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("it is no ONNX file: a number of more than ten bytes".into())
    }
}

/// The text of a property of the ONNX model in `path`; `None` if it has no such property. Reads no more of the file than
/// its properties: for what must be known before it is loaded. What is no ONNX file has none.
pub(super) fn property(path: &Path, key: &str) -> Result<Option<String>, EngineError> {
    let failed = |e: std::io::Error| EngineError::ModelFile {
        path: path.to_owned(),
        why: e.to_string(),
    };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    match find_property(&mut file, key) {
        Ok(found) => Ok(found),
        // Cut short, or another kind of file: the loader says which.
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Whether the graph in `path` has an output of that name. Reads no more of the file than its outputs; what is no ONNX file
/// has none.
pub(super) fn has_output(path: &Path, name: &str) -> Result<bool, EngineError> {
    let failed = |e: std::io::Error| EngineError::ModelFile {
        path: path.to_owned(),
        why: e.to_string(),
    };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut found = false;
    let looked = fields_of(&mut file, None, &mut |file, number, length| {
        if number != GRAPH {
            return Ok(false);
        }
        fields_of(file, Some(length), &mut |file, number, length| {
            if number != OUTPUT || length > PROPERTY_BYTES_MAX {
                return Ok(false);
            }
            let mut value = vec![0; length as usize];
            file.read_exact(&mut value)?;
            let mut fields = Fields::new(&value);
            while let Ok(Some((number, value))) = fields.next() {
                found |=
                    matches!((number, value), (1, Value::Bytes(own)) if own == name.as_bytes());
            }
            Ok(true)
        })?;
        Ok(true)
    });
    match looked {
        Ok(()) => Ok(found),
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
            Ok(found)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Goes through the fields of a message, up to `length` bytes or to the end of the file. `look` is given the number and the
/// length of each that has bytes, and says whether it has read them.
fn fields_of<R: Read + Seek>(
    file: &mut R,
    length: Option<u64>,
    look: &mut dyn FnMut(&mut R, u64, u64) -> std::io::Result<bool>,
) -> std::io::Result<()> {
    let odd = || std::io::Error::from(ErrorKind::InvalidData);
    let end = match length {
        Some(length) => Some(
            file.stream_position()?
                .checked_add(length)
                .ok_or_else(odd)?,
        ),
        None => None,
    };
    while end.is_none() || file.stream_position()? < end.unwrap_or(0) {
        let Some(field) = varint_of(file)? else {
            return Ok(());
        };
        let skip = match field & 7 {
            0 => {
                varint_of(file)?.ok_or_else(odd)?;
                continue;
            }
            1 => 8,
            5 => 4,
            2 => {
                let length = varint_of(file)?.ok_or_else(odd)?;
                if look(file, field >> 3, length)? {
                    continue;
                }
                length
            }
            _ => return Err(odd()),
        };
        let skip = i64::try_from(skip).map_err(|_| odd())?;
        file.seek(SeekFrom::Current(skip))?;
    }
    Ok(())
}

fn find_property(file: &mut (impl Read + Seek), key: &str) -> std::io::Result<Option<String>> {
    let odd = || std::io::Error::from(ErrorKind::InvalidData);
    while let Some(field) = varint_of(file)? {
        let skip = match field & 7 {
            0 => {
                varint_of(file)?.ok_or_else(odd)?;
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint_of(file)?.ok_or_else(odd)?,
            _ => return Err(odd()),
        };
        if field != 14 << 3 | 2 || skip > PROPERTY_BYTES_MAX {
            let skip = i64::try_from(skip).map_err(|_| odd())?;
            file.seek(SeekFrom::Current(skip))?;
            continue;
        }
        let mut entry = vec![0; skip as usize];
        file.read_exact(&mut entry)?;
        let mut fields = Fields::new(&entry);
        let (mut own, mut text) = (None, None);
        while let Some((number, value)) = fields.next().map_err(|_| odd())? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => own = Some(bytes),
                (2, Value::Bytes(bytes)) => text = Some(bytes),
                _ => {}
            }
        }
        if own == Some(key.as_bytes()) {
            let text = text.unwrap_or_default().to_vec();
            return String::from_utf8(text).map(Some).map_err(|_| odd());
        }
    }
    Ok(None)
}

/// The next number; `None` at the end of the file.
fn varint_of(file: &mut impl Read) -> std::io::Result<Option<u64>> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        if file.read(&mut byte)? == 0 {
            let at_end = shift == 0;
            return if at_end {
                Ok(None)
            } else {
                Err(ErrorKind::UnexpectedEof.into())
            };
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(value));
        }
    }
    Err(ErrorKind::InvalidData.into())
}

/// The file beside a graph that the data of its weights lie in.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    /// As the graph must call it.
    pub name: &'a str,
    pub bytes: &'a [u8],
}

/// Whether the bytes are an ONNX model that holds all its data itself; why not, if not.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    check_with(bytes, None)
}

/// The same, where weights may have their data in a file beside it. Those of branches and of constants may not: ONNX Runtime
/// would look for them itself.
pub(super) fn check_with(bytes: &[u8], beside: Option<Beside<'_>>) -> Result<(), String> {
    let mut fields = Fields::new(bytes);
    let mut graphs = 0;
    while let Some((number, value)) = fields.next()? {
        match number {
            7 => {
                graphs += 1;
                graph(message(value)?, 0, beside)?;
            }
            20 => return Err("it has a training graph, which is not supported".into()),
            25 => return Err("it has functions of its own, which are not supported".into()),
            _ => {}
        }
    }
    match graphs {
        1 => Ok(()),
        0 => Err("it is no ONNX file: there is no graph in it".into()),
        _ => Err(format!("it has {graphs} graphs, not one")),
    }
}

/// A constant of a graph.
pub struct FloatConstant<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its lengths.
    pub shape: Vec<u64>,
    /// Its values, four bytes each, little endian: as many as the shape says, none of them NaN.
    pub raw: &'a [u8],
}

/// The constants of a model's graph that are floats of 32 bits, stored as bytes. Whatever `check` refuses is an error.
pub fn float_constants(bytes: &[u8]) -> Result<Vec<FloatConstant<'_>>, String> {
    check(bytes)?;
    let mut constants = Vec::new();
    for graph in messages(bytes, 7)? {
        for bytes in messages(graph, 5)? {
            let tensor = tensor(bytes, None)?;
            let (FLOAT, Some(raw)) = (tensor.kind, tensor.raw) else {
                continue;
            };
            let name = str::from_utf8(tensor.name)
                .map_err(|_| tensor.wrong("has a name that is no text"))?;
            let shape = tensor.shape;
            constants.push(FloatConstant { name, shape, raw });
        }
    }
    Ok(constants)
}

/// All messages under one number.
fn messages(bytes: &[u8], wanted: u64) -> Result<Vec<&[u8]>, String> {
    let mut fields = Fields::new(bytes);
    let mut found = Vec::new();
    while let Some((number, value)) = fields.next()? {
        if number == wanted {
            found.push(message(value)?);
        }
    }
    Ok(found)
}

fn message(value: Value<'_>) -> Result<&[u8], String> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        _ => Err("it is no ONNX file: a number where a message should be".into()),
    }
}

fn graph(bytes: &[u8], depth: usize, beside: Option<Beside<'_>>) -> Result<(), String> {
    if depth > NESTED_GRAPHS_MAX {
        return Err(format!(
            "graphs are nested more than {NESTED_GRAPHS_MAX} deep"
        ));
    }
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => node(message(value)?, depth)?,
            5 => drop(tensor(message(value)?, beside)?),
            15 => return Err(sparse()),
            _ => {}
        }
    }
    Ok(())
}

fn node(bytes: &[u8], depth: usize) -> Result<(), String> {
    let mut fields = Fields::new(bytes);
    let (mut operator, mut domain) = (&b""[..], &b""[..]);
    while let Some((number, value)) = fields.next()? {
        match number {
            4 => operator = message(value)?,
            5 => attribute(message(value)?, depth)?,
            7 => domain = message(value)?,
            _ => {}
        }
    }
    let known = super::OPERATORS.map(str::as_bytes).contains(&operator);
    if domain == super::DOMAIN.as_bytes() && !known {
        let operator = String::from_utf8_lossy(&operator[..operator.len().min(64)]);
        return Err(format!(
            "it wants an operator {operator:?} of ours, which there is not: it was made by a newer version"
        ));
    }
    Ok(())
}

/// Whether the graph of a model that was checked has an operator of ours.
pub(super) fn wants_ours(bytes: &[u8]) -> Result<bool, String> {
    let (mut model, ours) = (Fields::new(bytes), super::DOMAIN.as_bytes());
    while let Some((number, value)) = model.next()? {
        let mut graph = Fields::new(if number == 7 { message(value)? } else { &[] });
        while let Some((number, value)) = graph.next()? {
            let mut node = Fields::new(if number == 1 { message(value)? } else { &[] });
            while let Some((number, value)) = node.next()? {
                if number == 7 && message(value)? == ours {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Whether a weight of a model's graph says that its data lie in another file.
pub fn keeps_data_outside(model: &[u8]) -> Result<bool, String> {
    for graph in messages(model, 7)? {
        for tensor in messages(graph, 5)? {
            let mut fields = Fields::new(tensor);
            while let Some((number, value)) = fields.next()? {
                if matches!((number, value), (14, Value::Varint(1))) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn attribute(bytes: &[u8], depth: usize) -> Result<(), String> {
    let mut fields = Fields::new(bytes);
    let mut single = 0;
    while let Some((number, value)) = fields.next()? {
        match number {
            5 | 10 => drop(tensor(message(value)?, None)?),
            6 | 11 => graph(message(value)?, depth + 1, None)?,
            22 | 23 => return Err(sparse()),
            _ => {}
        }
        // A reader of protobuf joins two of these into one that nobody has looked at.
        single += usize::from(matches!(number, 5 | 6));
        if single > 1 {
            return Err("an attribute has two values".into());
        }
    }
    Ok(())
}

fn sparse() -> String {
    "it has a sparse tensor, which is not supported".into()
}

#[derive(Default)]
struct Tensor<'a> {
    name: &'a [u8],
    kind: u64,
    shape: Vec<u64>,
    raw: Option<&'a [u8]>,
    /// Values in the fields for single numbers and texts.
    values: usize,
    /// It says that its data lie in another file.
    is_outside: bool,
    /// Where in which file, as keys and texts.
    place: Vec<&'a [u8]>,
}

fn tensor<'a>(bytes: &'a [u8], beside: Option<Beside<'a>>) -> Result<Tensor<'a>, String> {
    let mut tensor = Tensor::default();
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(length)) => tensor.shape.push(length),
            (1, Value::Bytes(packed)) => {
                let mut packed = Fields::new(packed);
                while !packed.rest.is_empty() {
                    tensor.shape.push(packed.varint()?);
                }
            }
            (2, Value::Varint(kind)) => tensor.kind = kind,
            (3, _) => return Err("a tensor is given in pieces, which is not supported".into()),
            (4, Value::Bytes(packed)) => tensor.values += packed.len() / 4,
            (10, Value::Bytes(packed)) => tensor.values += packed.len() / 8,
            (5 | 7 | 11, Value::Bytes(packed)) => {
                // The last byte of each number has its highest bit clear.
                tensor.values += packed.iter().filter(|&&b| b & 0x80 == 0).count();
            }
            (4 | 5 | 6 | 7 | 10 | 11, _) => tensor.values += 1,
            (8, Value::Bytes(name)) => tensor.name = name,
            (9, Value::Bytes(raw)) => {
                let twice = tensor.raw.replace(raw).is_some();
                if twice {
                    return Err(tensor.wrong("has its data twice"));
                }
            }
            (13, Value::Bytes(entry)) => tensor.place.push(entry),
            (14, Value::Varint(place @ 0..=1)) => tensor.is_outside = place == 1,
            (1 | 2 | 8 | 9 | 13 | 14, _) => return Err(tensor.wrong("is damaged")),
            _ => {}
        }
    }
    if tensor.is_outside || !tensor.place.is_empty() {
        tensor.find(beside)?;
    }
    tensor.check()?;
    Ok(tensor)
}

impl<'a> Tensor<'a> {
    /// Finds its data in the file beside the graph.
    fn find(&mut self, beside: Option<Beside<'a>>) -> Result<(), String> {
        let Some(beside) = beside.filter(|_| self.is_outside) else {
            return Err(self.external());
        };
        if self.raw.is_some() || self.values > 0 {
            return Err(self.wrong("has its data twice"));
        }
        let (mut location, mut offset, mut length) = (None, Some(0), None);
        for entry in &self.place {
            let mut fields = Fields::new(entry);
            let (mut key, mut text) = (&b""[..], &b""[..]);
            while let Some((number, value)) = fields.next()? {
                match number {
                    1 => key = message(value)?,
                    2 => text = message(value)?,
                    _ => {}
                }
            }
            let number = || str::from_utf8(text).ok()?.parse::<usize>().ok();
            match key {
                b"location" => location = Some(text),
                b"offset" => offset = number(),
                b"length" => length = number(),
                _ => {}
            }
        }
        if location != Some(beside.name.as_bytes()) {
            let location = location.unwrap_or_default();
            let location = String::from_utf8_lossy(&location[..location.len().min(64)]);
            return Err(self.wrong(&format!(
                "keeps its data in {location:?}: only {} beside the graph is read",
                beside.name
            )));
        }
        let (Some(offset), Some(length)) = (offset, length) else {
            return Err(self.wrong("does not say where in the other file its data are"));
        };
        let end = offset.checked_add(length);
        let found = end.and_then(|end| beside.bytes.get(offset..end));
        let Some(found) = found else {
            return Err(self.wrong(&format!(
                "wants {length} bytes of {} from byte {offset} on, and it has {}",
                beside.name,
                beside.bytes.len()
            )));
        };
        self.raw = Some(found);
        Ok(())
    }

    fn wrong(&self, what: &str) -> String {
        let name = String::from_utf8_lossy(&self.name[..self.name.len().min(64)]);
        format!("its tensor {name:?} {what}")
    }

    fn external(&self) -> String {
        self.wrong("keeps its data outside the file, where none is read")
    }

    fn check(&self) -> Result<(), String> {
        let elements = self
            .shape
            .iter()
            .try_fold(1_u64, |product, &length| product.checked_mul(length));
        let bits = element_bits(self.kind);
        let (Some(elements), Some(bits)) = (elements, bits) else {
            let what = format!("has the shape {:?} and type {}", self.shape, self.kind);
            return Err(self.wrong(&what));
        };
        let held = match self.raw {
            Some(_) if self.kind == STRING => return Err(self.wrong("has texts as raw bytes")),
            Some(raw) if self.kind == FLOAT && holds_nan(raw) => {
                return Err(self.wrong("holds values that are no numbers"));
            }
            Some(raw) => raw.len() as u64 == elements.saturating_mul(bits).div_ceil(8),
            // Two numbers of four bits share a value, a complex number has two.
            None if bits == 4 => self.values as u64 == elements.div_ceil(2),
            None if matches!(self.kind, 14 | 15) => {
                self.values as u64 == elements.saturating_mul(2)
            }
            None => self.values as u64 == elements,
        };
        if held {
            return Ok(());
        }
        let holds = match self.raw {
            Some(raw) => format!("{} bytes", raw.len()),
            None => format!("{} values", self.values),
        };
        Err(self.wrong(&format!(
            "has the shape {:?} of {bits} bits each and holds {holds}",
            self.shape
        )))
    }
}

/// A model can answer with numbers all the same: an LSTM makes some of what is none. (Infinity has its uses.)
fn holds_nan(raw: &[u8]) -> bool {
    let (floats, _) = raw.as_chunks::<4>();
    floats.iter().any(|f| f32::from_le_bytes(*f).is_nan())
}

/// Size of an element by ONNX's number for its type; 0 for texts, `None` for what there is not.
fn element_bits(kind: u64) -> Option<u64> {
    Some(match kind {
        2 | 3 | 9 | 17..=20 => 8,
        4 | 5 | 10 | 16 => 16,
        1 | 6 | 12 => 32,
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        21..=23 => 4,
        STRING => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = payload.len();
        while length > 0x7f {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(payload);
        out
    }

    fn join(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// Two floats of raw data.
    fn good_tensor() -> Vec<u8> {
        join(&[&[0x08, 2, 0x10, 1], &field(8, b"w"), &field(9, &[0; 8])])
    }

    fn with_initializer(tensor: &[u8]) -> Vec<u8> {
        field(7, &field(5, tensor))
    }

    fn refusal(bytes: &[u8]) -> String {
        check(bytes).expect_err("it is refused")
    }

    #[test]
    fn a_property_is_found_behind_the_graph() {
        let entry = |key: &[u8], text: &[u8]| field(14, &join(&[&field(1, key), &field(2, text)]));
        let file = join(&[
            &[0x08, 10],
            &with_initializer(&good_tensor()),
            &entry(b"other", b"no"),
            &entry(b"whisper", b"{}"),
        ]);
        let find = |bytes: &[u8], key: &str| find_property(&mut std::io::Cursor::new(bytes), key);

        assert_eq!(find(&file, "whisper").unwrap(), Some("{}".to_owned()));
        assert_eq!(find(&file, "missing").unwrap(), None);
        assert!(find(&file[..file.len() - 1], "whisper").is_err());
        assert!(find(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "whisper").is_err());
    }

    #[test]
    fn a_tensor_with_its_data_is_taken() {
        let packed_floats = join(&[&[0x08, 2, 0x10, 1], &field(4, &[0; 8])]);
        let packed_shape = join(&[&field(1, &[2, 1]), &[0x10, 7], &field(7, &[0x80, 1, 5])]);

        assert_eq!(check(&with_initializer(&good_tensor())), Ok(()));
        assert_eq!(check(&with_initializer(&packed_floats)), Ok(()));
        assert_eq!(check(&with_initializer(&packed_shape)), Ok(()));
    }

    #[test]
    fn constants_of_floats_are_read_with_name_and_shape_and_others_passed_over() {
        let whole = join(&[&[0x08, 1, 0x10, 7], &field(8, b"i"), &field(9, &[0; 8])]);
        let single = join(&[&[0x08, 2, 0x10, 1], &field(4, &[0; 8])]);
        let graph = join(
            &[&whole, &good_tensor(), &single]
                .map(|t| field(5, t))
                .each_ref()
                .map(Vec::as_slice),
        );
        let file = field(7, &graph);

        let constants = float_constants(&file).unwrap();

        let [only] = &*constants else {
            panic!("{} constants", constants.len());
        };
        assert_eq!(
            (only.name, &*only.shape, only.raw),
            ("w", &[2][..], &[0; 8][..])
        );
        let cut = &file[..file.len() - 1];
        assert!(float_constants(cut).err().unwrap().contains("cut short"));
    }

    #[test]
    fn external_data_is_refused_wherever_a_tensor_can_be() {
        let outside = join(&[&good_tensor(), &[0x70, 1]]);
        let named = join(&[&good_tensor(), &field(13, b"")]);
        for tensor in [outside, named] {
            let attribute = |payload: &[u8]| field(7, &field(1, &field(5, payload)));
            for model in [
                with_initializer(&tensor),
                attribute(&field(5, &tensor)),
                attribute(&field(10, &tensor)),
                attribute(&field(6, &field(5, &tensor))),
                attribute(&field(11, &field(1, &field(5, &field(5, &tensor))))),
            ] {
                assert!(refusal(&model).contains("outside the file"));
            }
        }
    }

    #[test]
    fn weights_may_lie_in_the_file_beside_it_and_nowhere_else() {
        let entry = |key: &str, text: &str| {
            let of = join(&[&field(1, key.as_bytes()), &field(2, text.as_bytes())]);
            field(13, &of)
        };
        let tensor = |entries: &[(&str, &str)]| {
            let mut out = join(&[&[0x08, 2, 0x10, 1], &field(8, b"w"), &[0x70, 1]]);
            for (key, text) in entries {
                out.extend(entry(key, text));
            }
            out
        };
        let (location, length) = (("location", "a.onnx_data"), ("length", "8"));
        let good = tensor(&[location, ("offset", "4"), length, ("checksum", "?")]);
        let mut data = [0; 12];
        let checked = |model: &[u8], bytes: &[u8]| {
            let name = "a.onnx_data";
            check_with(model, Some(Beside { name, bytes }))
        };
        let refused = |tensor: &[u8], bytes: &[u8]| {
            checked(&with_initializer(tensor), bytes).expect_err("it is refused")
        };

        assert_eq!(checked(&with_initializer(&good), &data), Ok(()));
        assert_eq!(keeps_data_outside(&with_initializer(&good)), Ok(true));
        let inside = with_initializer(&good_tensor());
        assert_eq!(keeps_data_outside(&inside), Ok(false));
        assert!(refused(&good, &data[..11]).contains("it has 11"));
        data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(refused(&good, &data).contains("no numbers"));
        data[4..8].fill(0);
        let up = ("location", "../a.onnx_data");
        assert!(refused(&tensor(&[up, length]), &data).contains("only a.onnx_data"));
        assert!(refused(&tensor(&[length]), &data).contains("only a.onnx_data"));
        for odd in ["-1", "", "99999999999999999999999"] {
            let odd = tensor(&[location, ("offset", odd), length]);
            assert!(refused(&odd, &data).contains("does not say where"));
        }
        assert!(refused(&tensor(&[location]), &data).contains("does not say where"));
        let far = tensor(&[location, ("offset", "18446744073709551615"), length]);
        assert!(refused(&far, &data).contains("wants 8 bytes"));
        let short = tensor(&[location, ("length", "4")]);
        assert!(refused(&short, &data).contains("holds 4 bytes"));
        let twice = join(&[&good, &field(9, &[0; 8])]);
        assert!(refused(&twice, &data).contains("twice"));
        // In a constant's node, and in a branch.
        for payload in [field(5, &good), field(6, &field(5, &good))] {
            let model = field(7, &field(1, &field(5, &payload)));
            let refused = checked(&model, &data).expect_err("it is refused");
            assert!(refused.contains("outside the file"));
        }
    }

    #[test]
    fn a_tensor_that_claims_more_than_it_holds_is_refused() {
        let short = join(&[&[0x08, 3, 0x10, 1], &field(9, &[0; 8])]);
        let endless = join(&[
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x08, 4,
            ],
            &[0x10, 1],
            &field(9, &[0; 8]),
        ]);
        let negative = join(&[
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            &[0x10, 1],
            &field(9, &[0; 8]),
        ]);
        let empty = [0x08, 5, 0x10, 1];

        for tensor in [&short[..], &endless, &negative, &empty] {
            assert!(refusal(&with_initializer(tensor)).contains("shape"));
        }
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        let weight = |value: f32| {
            let data = [value.to_le_bytes(), 1_f32.to_le_bytes()].concat();
            with_initializer(&join(&[&[0x08, 2, 0x10, 1], &field(9, &data)]))
        };

        assert_eq!(check(&weight(f32::NEG_INFINITY)), Ok(()));
        assert!(refusal(&weight(f32::NAN)).contains("no numbers"));
    }

    #[test]
    fn graphs_may_nest_but_not_without_end() {
        let mut nested = field(5, &good_tensor());
        for _ in 0..NESTED_GRAPHS_MAX {
            nested = field(1, &field(5, &field(6, &nested)));
        }
        let deeper = field(1, &field(5, &field(6, &nested)));

        assert_eq!(check(&field(7, &nested)), Ok(()));
        assert!(refusal(&field(7, &deeper)).contains("nested"));
    }

    #[test]
    fn what_a_reader_would_join_is_refused() {
        let twice = field(
            5,
            &join(&[&field(5, &good_tensor()), &field(5, &good_tensor())]),
        );
        let data_twice = join(&[&good_tensor(), &field(9, &[0; 8])]);
        let graph = with_initializer(&good_tensor());

        assert!(refusal(&field(7, &field(1, &twice))).contains("two values"));
        assert!(refusal(&with_initializer(&data_twice)).contains("twice"));
        assert!(refusal(&join(&[&graph, &graph])).contains("2 graphs"));
    }

    #[test]
    fn of_our_operators_there_are_three() {
        let model = |operator: &[u8], domain: &[u8]| {
            field(
                7,
                &field(1, &join(&[&field(4, operator), &field(7, domain)])),
            )
        };

        for operator in [&b"CrossAttention"[..], b"PastAttention", b"SelfAttention"] {
            let graph = model(operator, b"scribe");
            assert_eq!(check(&graph), Ok(()));
            assert_eq!(wants_ours(&graph), Ok(true));
            assert_eq!(wants_ours(&model(operator, b"")), Ok(false));
        }
        assert_eq!(check(&model(b"Gelu", b"")), Ok(()));
        for operator in [&b"Gelu"[..], b"crossattention", b""] {
            assert!(refusal(&model(operator, b"scribe")).contains("of ours"));
        }
    }

    #[test]
    fn functions_training_and_sparse_tensors_are_refused() {
        let graph = with_initializer(&good_tensor());
        // Fields above 15 have a key of two bytes.
        let function = join(&[&graph, &[0xca, 0x01, 0]]);
        let training = join(&[&graph, &[0xa2, 0x01, 0]]);

        assert!(refusal(&function).contains("functions"));
        assert!(refusal(&training).contains("training"));
        assert!(refusal(&field(7, &field(15, b""))).contains("sparse"));
    }

    #[test]
    fn every_cut_of_a_model_is_refused() {
        let model = join(&[&[0x08, 8], &with_initializer(&good_tensor())]);
        assert_eq!(check(&model), Ok(()));

        for length in 0..model.len() {
            refusal(&model[..length]);
        }
    }
}
