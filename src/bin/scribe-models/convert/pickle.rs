// SPDX-License-Identifier: MPL-2.0
//! Reads Python pickles without running anything in them.
//!
//! Only the operations that a PyTorch checkpoint of before version 1.6 consists of are known, and
//! of functions only those in [`GLOBALS`], which become plain values here. Everything else is
//! refused.

use super::{ConvertError, Converted};

/// A value in a pickle.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// None, or something that nobody asks for.
    Nothing,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// An integer of more than 64 bits, little endian.
    Long(Vec<u8>),
    /// A tuple or a list.
    Sequence(Vec<Value>),
    /// A dictionary, in the order of its entries.
    Dict(Vec<(Value, Value)>),
    /// A permitted class or function, as `module name`.
    Global(&'static str),
    /// What a permitted function was called with.
    Call(&'static str, Vec<Value>),
    /// A reference to data beside the pickle.
    Persistent(Box<Value>),
}

/// The only names that a pickle may call for.
const GLOBALS: [&str; 6] = [
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "collections OrderedDict",
    "collections defaultdict",
    "builtins dict",
    "__builtin__ dict",
];

const DEPTH_MAX: usize = 64;

/// Reads one pickle from the front of `data`, which then begins after it.
pub fn read(data: &mut &[u8]) -> Converted<Value> {
    Machine {
        data,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
    }
    .run()
}

impl Value {
    /// The value under a text key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dict(entries) = self else {
            return None;
        };
        entries
            .iter()
            .rev()
            .find(|(k, _)| matches!(k, Self::Text(text) if text == key))
            .map(|(_, value)| value)
    }

    /// The elements of a tuple or list.
    pub fn items(&self) -> Option<&[Self]> {
        if let Self::Sequence(items) = self {
            Some(items)
        } else {
            None
        }
    }

    /// A whole number that is not negative.
    pub fn size(&self) -> Option<usize> {
        if let Self::Int(value) = self {
            usize::try_from(*value).ok()
        } else {
            None
        }
    }

    /// A text.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self {
            Some(text)
        } else {
            None
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::Sequence(items) | Self::Call(_, items) => {
                1 + items.iter().map(Self::depth).max().unwrap_or(0)
            }
            Self::Dict(entries) => {
                1 + entries
                    .iter()
                    .map(|(k, v)| k.depth().max(v.depth()))
                    .max()
                    .unwrap_or(0)
            }
            Self::Persistent(inner) => 1 + inner.depth(),
            _ => 0,
        }
    }
}

struct Machine<'a, 'b> {
    data: &'a mut &'b [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
}

impl Machine<'_, '_> {
    fn run(mut self) -> Converted<Value> {
        loop {
            let [operation] = self.take_array()?;
            match operation {
                b'.' => return self.pop(),
                0x80 => drop(self.take_array::<1>()?), // The protocol's number.
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.push(Value::Nothing)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.take_array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'K' => {
                    let [value] = self.take_array()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take_array()?);
                    self.push(Value::Int(value.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    let value = f64::from_be_bytes(self.take_array()?);
                    self.push(Value::Float(value))?;
                }
                b'X' => self.text()?,
                b'c' => self.global()?,
                b']' | b')' => self.push(Value::Sequence(Vec::new()))?,
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Sequence(items))?;
                }
                0x85..=0x87 => self.tuple(usize::from(operation - 0x84))?,
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(items)?;
                }
                b'R' => self.reduce()?,
                b'b' => drop(self.pop()?), // State of an object: only OrderedDict has it here, with nothing of use.
                b'Q' => {
                    let reference = self.pop()?;
                    self.push(Value::Persistent(Box::new(reference)))?;
                }
                b'q' => {
                    let [slot] = self.take_array()?;
                    self.remember(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.take_array()?);
                    self.remember(slot as usize)?;
                }
                b'h' => {
                    let [slot] = self.take_array()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.take_array()?);
                    self.recall(slot as usize)?;
                }
                other => {
                    return Err(ConvertError::input(format!(
                        "the pickle has the operation {other:#04x}, which is not accepted"
                    )));
                }
            }
        }
    }

    fn push(&mut self, value: Value) -> Converted<()> {
        // Copies of copies could grow without bound; a real checkpoint is a few levels deep.
        if value.depth() > DEPTH_MAX || self.stack.len() > 100_000 {
            return Err(ConvertError::input("the pickle is nested too deep"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Converted<Value> {
        let above_mark = self
            .marks
            .last()
            .is_none_or(|&mark| mark < self.stack.len());
        let value = if above_mark { self.stack.pop() } else { None };
        value.ok_or_else(|| ConvertError::input("the pickle takes a value that is not there"))
    }

    fn pop_to_mark(&mut self) -> Converted<Vec<Value>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        mark.map(|mark| self.stack.split_off(mark))
            .ok_or_else(|| ConvertError::input("the pickle has no mark where one is needed"))
    }

    fn top(&mut self) -> Converted<&mut Value> {
        self.stack
            .last_mut()
            .ok_or_else(|| ConvertError::input("the pickle adds to a value that is not there"))
    }

    fn append(&mut self, items: Vec<Value>) -> Converted<()> {
        match self.top()? {
            Value::Sequence(sequence) => sequence.extend(items),
            _ => return Err(ConvertError::input("the pickle appends to what is no list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<Value>) -> Converted<()> {
        let Value::Dict(entries) = self.top()? else {
            return Err(ConvertError::input(
                "the pickle sets an entry of what is no dictionary",
            ));
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let value = items
                .next()
                .ok_or_else(|| ConvertError::input("the pickle has a key without a value"))?;
            entries.push((key, value));
        }
        Ok(())
    }

    fn tuple(&mut self, size: usize) -> Converted<()> {
        let mut items = (0..size)
            .map(|_| self.pop())
            .collect::<Converted<Vec<_>>>()?;
        items.reverse();
        self.push(Value::Sequence(items))
    }

    fn reduce(&mut self) -> Converted<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Sequence(arguments), Value::Global(name)) = (arguments, function) else {
            return Err(ConvertError::input("the pickle calls what is no function"));
        };
        let is_dict = name.ends_with("Dict") || name.ends_with("dict");
        self.push(if is_dict {
            Value::Dict(Vec::new())
        } else {
            Value::Call(name, arguments)
        })
    }

    fn global(&mut self) -> Converted<()> {
        let name = format!("{} {}", self.line()?, self.line()?);
        match GLOBALS.iter().find(|permitted| **permitted == name) {
            Some(permitted) => self.push(Value::Global(permitted)),
            None => Err(ConvertError::input(format!(
                "the pickle calls for {name}, which is not accepted"
            ))),
        }
    }

    fn long(&mut self) -> Converted<()> {
        let [length] = self.take_array()?;
        let bytes = self.take(length.into())?.to_vec();
        let fits = bytes.len() <= 8;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) {
            0xff
        } else {
            0
        };
        self.push(if fits {
            let mut wide = [sign; 8];
            wide[..bytes.len()].copy_from_slice(&bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Long(bytes)
        })
    }

    fn text(&mut self) -> Converted<()> {
        let length = u32::from_le_bytes(self.take_array()?);
        let text = std::str::from_utf8(self.take(length as usize)?);
        let text = text
            .map_err(|_| ConvertError::input("the pickle has a text that is none"))?
            .to_owned();
        self.push(Value::Text(text))
    }

    fn remember(&mut self, slot: usize) -> Converted<()> {
        let value = self.top()?.clone();
        if slot > 100_000 {
            return Err(ConvertError::input("the pickle remembers too much"));
        }
        if self.memo.len() <= slot {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(value);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Converted<()> {
        let value = self.memo.get(slot).cloned().flatten();
        self.push(
            value.ok_or_else(|| {
                ConvertError::input("the pickle recalls what it has not remembered")
            })?,
        )
    }

    fn line(&mut self) -> Converted<String> {
        let end = self.data.iter().position(|&b| b == b'\n');
        let end = end.ok_or_else(|| ConvertError::input("the pickle ends within a name"))?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn take_array<const N: usize>(&mut self) -> Converted<[u8; N]> {
        let mut array = [0_u8; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, count: usize) -> Converted<&[u8]> {
        let whole = *self.data;
        if count > whole.len() {
            return Err(ConvertError::input("the pickle is cut short"));
        }
        let (front, rest) = whole.split_at(count);
        *self.data = rest;
        Ok(front)
    }
}
