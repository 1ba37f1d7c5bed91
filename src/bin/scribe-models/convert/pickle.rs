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

/// Values within values: a checkpoint has a handful of levels.
const DEPTH_MAX: usize = 64;

/// Values handled in all: a checkpoint has some thousands. Copies count, so that a pickle cannot
/// double itself until memory is full.
const VALUES_MAX: usize = 1_000_000;

/// Slots that a pickle may remember values in.
const SLOTS_MAX: usize = 100_000;

/// Reads one pickle from the front of `data`, which then begins after it.
pub fn read(data: &mut &[u8]) -> Converted<Value> {
    Machine {
        data,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        budget: VALUES_MAX,
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

    /// How many values this one consists of, and how deep they are nested.
    fn extent(&self) -> (usize, usize) {
        let all = |parts: &mut dyn Iterator<Item = &Self>| {
            parts.fold((1, 1), |(count, depth), part| {
                let (inner_count, inner_depth) = part.extent();
                (count + inner_count, depth.max(inner_depth + 1))
            })
        };
        match self {
            Self::Sequence(items) | Self::Call(_, items) => all(&mut items.iter()),
            Self::Dict(entries) => all(&mut entries.iter().flat_map(|(key, value)| [key, value])),
            Self::Persistent(inner) => all(&mut std::iter::once(inner.as_ref())),
            _ => (1, 1),
        }
    }
}

struct Machine<'a, 'b> {
    data: &'a mut &'b [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    /// How many more values may be made, copied or put into others.
    budget: usize,
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
        self.admit(&value)?;
        self.stack.push(value);
        Ok(())
    }

    /// Counts a value that is made, copied or put into another. Whatever the pickle does, the
    /// values in memory are no more than have been counted.
    fn admit(&mut self, value: &Value) -> Converted<()> {
        let (count, depth) = value.extent();
        if depth > DEPTH_MAX {
            return Err(ConvertError::input("the pickle is nested too deep"));
        }
        self.budget = self
            .budget
            .checked_sub(count)
            .ok_or_else(|| ConvertError::input("the pickle has far too many values"))?;
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
        items.iter().try_for_each(|item| self.admit(item))?;
        match self.top()? {
            Value::Sequence(sequence) => sequence.extend(items),
            _ => return Err(ConvertError::input("the pickle appends to what is no list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<Value>) -> Converted<()> {
        items.iter().try_for_each(|item| self.admit(item))?;
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
        if slot > SLOTS_MAX {
            return Err(ConvertError::input("the pickle remembers too much"));
        }
        let value = self.top()?.clone();
        self.admit(&value)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read_all(mut data: &[u8]) -> Result<Value, String> {
        read(&mut data).map_err(|err| err.to_string())
    }

    #[test]
    fn a_function_that_is_not_permitted_is_refused_before_it_is_called() {
        let reason = read_all(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap_err();

        assert_eq!(
            reason,
            "the pickle calls for os system, which is not accepted"
        );
    }

    #[test]
    fn values_are_read_as_python_wrote_them() {
        let value =
            read_all(b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x07X\x01\x00\x00\x00b\x8a\x02\x00\xffu.");

        let value = value.unwrap();
        assert_eq!(value.get("a"), Some(&Value::Int(7)));
        assert_eq!(value.get("b"), Some(&Value::Int(-256)));
    }

    #[test]
    fn whatever_the_bytes_nothing_panics_and_nothing_grows() {
        let good = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00ah\x00M\x01\x02\x86e]q\x01h\x01a.";
        for cut in 0..good.len() {
            let _ = read_all(&good[..cut]);
            for byte in 0..=u8::MAX {
                let mut bytes = good.to_vec();
                bytes[cut] = byte;
                let _ = read_all(&bytes);
            }
        }
        // A value that holds itself twice, again and again, would double each time.
        let doubling = |times| {
            [
                b"\x80\x02]q\x00".as_slice(),
                &b"h\x00h\x00\x86q\x00".repeat(times),
                b".",
            ]
            .concat()
        };
        assert_eq!(
            read_all(&doubling(1_000)).unwrap_err(),
            "the pickle has far too many values"
        );
        let nested = [b"]".repeat(1_000), b"a".repeat(999), b".".to_vec()].concat();
        assert_eq!(
            read_all(&nested).unwrap_err(),
            "the pickle is nested too deep"
        );
    }
}
