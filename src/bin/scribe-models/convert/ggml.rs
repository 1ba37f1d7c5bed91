// SPDX-License-Identifier: MPL-2.0
//! whisper.cpp's ggml files: written from other forms of a model, looked over, and read for their weights.
//!
//! Little endian:
//!
//! ```text
//! u32 magic; i32 vocabulary, audio context, audio state, audio heads, audio layers,
//!                text context, text state, text heads, text layers, mel bands, file type
//! i32 mel bands, i32 201, f32 filters[bands][201]
//! i32 plain tokens, per token  u32 length, bytes
//! per tensor, to the end  i32 dimensions, i32 length of name, i32 type,
//!                         i32 dimension[] (innermost first), name, data
//! ```
//!
//! whisper.cpp makes up the names of the special tokens itself. Vectors, the two positional
//! tables and the convolutions' biases (`[n, 1]`) are f32; of the rest, what has two dimensions
//! is quantised if asked for, and what has three stays f16. For tiny.en the result is equal,
//! byte for byte, to the files that whisper.cpp publishes.
//!
//! Facts from whisper.cpp: `whisper_model_load`, models/convert-pt-to-ggml.py and
//! examples/common-ggml.cpp.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gstscribe::dsp::mel;
use gstscribe::inference::manifest::WeightType;

use super::checkpoint::{Array, Checkpoint, Names, Tensors};
use super::ct2::{HEAD_WIDTH, Shape, Weights, read_tokens};
use super::safetensors::Safetensors;
use super::{ConvertError, Converted, halves};

const MAGIC: u32 = 0x6767_6d6c;
/// Tokens that are pieces of text, the end of text of the English models among them.
const PLAIN_TOKENS: usize = 50_257;
/// Tokens that are pieces of text.
pub const TEXT_TOKENS: usize = PLAIN_TOKENS - 1;
/// Values a quantised block holds.
const BLOCK: usize = 32;

const F32: i32 = 0;
const F16: i32 = 1;
const Q4_0: i32 = 2;
const Q4_1: i32 = 3;
const Q5_0: i32 = 6;
const Q5_1: i32 = 7;
const Q8_0: i32 = 8;
/// The tensor types that whisper.cpp's files have, with values and bytes a block.
const TENSOR_TYPES: [(i32, usize, usize); 7] = [
    (F32, 1, 4),
    (F16, 1, 2),
    (Q4_0, BLOCK, 18),
    (Q4_1, BLOCK, 20),
    (Q5_0, BLOCK, 22),
    (Q5_1, BLOCK, 24),
    (Q8_0, BLOCK, 34),
];

/// The file type in the header. The thousands are the version of the quantisation's form: loaders
/// ignore them, and these are what the published files have.
fn file_type(weights: WeightType) -> i32 {
    match weights {
        WeightType::F16 => 1,
        WeightType::Q8_0 => 2007,
        WeightType::Q5_1 => 1009,
    }
}

/// Writes the model in `folder` (CTranslate2 form) to `out` as a ggml file.
pub fn from_ct2(folder: &Path, out: File, weights: WeightType) -> Converted<()> {
    let model = Weights::open(&folder.join("model.bin"))?;
    let shape = Shape::of(&model)?;
    let tokens = read_tokens(folder, shape.vocabulary)?;
    write(&model, &shape, &tokens, out, weights)
}

/// The same of a folder as transformers writes it.
pub fn from_safetensors(folder: &Path, out: File, weights: WeightType) -> Converted<()> {
    let model = Safetensors::open(folder)?;
    write(
        &model,
        &Shape::of(&model)?,
        &read_tokens(folder, TEXT_TOKENS)?,
        out,
        weights,
    )
}

fn write(
    model: &dyn Checkpoint,
    shape: &Shape,
    tokens: &[String],
    out: File,
    weights: WeightType,
) -> Converted<()> {
    let mut writer = Writer {
        out: BufWriter::with_capacity(1 << 20, out),
        weights,
    };
    writer.header(shape)?;
    writer.filters(shape.mel_bands)?;
    writer.tokens(&plain_tokens(tokens, shape.is_multilingual())?)?;
    writer.tensors(model, shape)?;
    writer.out.flush()?;
    Ok(())
}

/// The plain tokens as bytes. In the vocabulary every byte is one character of GPT-2's alphabet.
pub fn plain_tokens(tokens: &[String], multilingual: bool) -> Converted<Vec<Vec<u8>>> {
    let mut plain = Vec::with_capacity(PLAIN_TOKENS);
    for (number, token) in tokens.iter().take(TEXT_TOKENS).enumerate() {
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
        plain.push(bytes.ok_or_else(|| {
            ConvertError::input(format!(
                "token {number}, '{token}', is not in GPT-2's alphabet"
            ))
        })?);
    }
    // Number 50256 ends the text in the English models. In the others that is 50257, which is not
    // a plain token, and this one is unused.
    plain.push(if multilingual {
        Vec::new()
    } else {
        b"<|endoftext|>".to_vec()
    });
    Ok(plain)
}

/// The characters of GPT-2's alphabet, in the order of the bytes that they stand for.
fn alphabet() -> Vec<char> {
    let mut others = 0x100..;
    (0..=u8::MAX)
        .map(|byte| match is_plain(byte) {
            true => char::from(byte),
            false => others.next().and_then(char::from_u32).unwrap_or_default(),
        })
        .collect()
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes, in rising order,
/// are U+0100, U+0101 and so on.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&byte| is_plain(byte)),
        code => (0..=u8::MAX)
            .filter(|&byte| !is_plain(byte))
            .nth((code - 0x100) as usize),
    }
}

struct Writer {
    out: BufWriter<File>,
    weights: WeightType,
}

impl Writer {
    fn header(&mut self, shape: &Shape) -> Converted<()> {
        self.out.write_all(&MAGIC.to_le_bytes())?;
        for value in [
            shape.vocabulary,
            shape.audio_context,
            shape.audio_state,
            shape.audio_state / HEAD_WIDTH,
            shape.audio_layers,
            shape.text_context,
            shape.text_state,
            shape.text_state / HEAD_WIDTH,
            shape.text_layers,
            shape.mel_bands,
        ] {
            self.number(value)?;
        }
        self.out.write_all(&file_type(self.weights).to_le_bytes())?;
        Ok(())
    }

    fn filters(&mut self, bands: usize) -> Converted<()> {
        self.number(bands)?;
        self.number(mel::BINS)?;
        self.floats(&mel::filters(bands))
    }

    fn tokens(&mut self, tokens: &[Vec<u8>]) -> Converted<()> {
        self.number(tokens.len())?;
        for token in tokens {
            self.number(token.len())?;
            self.out.write_all(token)?;
        }
        Ok(())
    }

    /// All tensors, in the order of OpenAI's checkpoints.
    fn tensors(&mut self, model: &dyn Checkpoint, shape: &Shape) -> Converted<()> {
        self.table(
            "decoder.positional_embedding",
            model.array("decoder/position_encodings/encodings")?,
        )?;
        self.table(
            "encoder.positional_embedding",
            model.array("encoder/position_encodings/encodings")?,
        )?;
        self.matrix(
            "decoder.token_embedding.weight",
            model.array("decoder/embeddings/weight")?,
        )?;
        for layer in 0..shape.text_layers {
            self.layer(model, "decoder", layer)?;
        }
        self.norm(model, "decoder/layer_norm", "decoder.ln")?;
        for n in 1..=2 {
            self.matrix(
                &format!("encoder.conv{n}.weight"),
                model.array(&format!("encoder/conv{n}/weight"))?,
            )?;
            let mut bias = model.array(&format!("encoder/conv{n}/bias"))?;
            bias.shape.push(1);
            self.table(&format!("encoder.conv{n}.bias"), bias)?;
        }
        for layer in 0..shape.audio_layers {
            self.layer(model, "encoder", layer)?;
        }
        self.norm(model, "encoder/layer_norm", "encoder.ln_post")
    }

    fn layer(&mut self, model: &dyn Checkpoint, side: &str, layer: usize) -> Converted<()> {
        let (from, to) = (
            format!("{side}/layer_{layer}"),
            format!("{side}.blocks.{layer}"),
        );
        self.norm(
            model,
            &format!("{from}/ffn/layer_norm"),
            &format!("{to}.mlp_ln"),
        )?;
        self.linear(
            model,
            &format!("{from}/ffn/linear_0"),
            &format!("{to}.mlp.0"),
        )?;
        self.linear(
            model,
            &format!("{from}/ffn/linear_1"),
            &format!("{to}.mlp.2"),
        )?;
        self.norm(
            model,
            &format!("{from}/self_attention/layer_norm"),
            &format!("{to}.attn_ln"),
        )?;
        self.self_attention(
            model,
            &format!("{from}/self_attention"),
            &format!("{to}.attn"),
        )?;
        if side == "decoder" {
            self.norm(
                model,
                &format!("{from}/attention/layer_norm"),
                &format!("{to}.cross_attn_ln"),
            )?;
            self.cross_attention(
                model,
                &format!("{from}/attention"),
                &format!("{to}.cross_attn"),
            )?;
        }
        Ok(())
    }

    fn self_attention(&mut self, model: &dyn Checkpoint, from: &str, to: &str) -> Converted<()> {
        let (weight, bias) = (
            format!("{from}/linear_0/weight"),
            format!("{from}/linear_0/bias"),
        );
        self.matrix(&format!("{to}.query.weight"), model.part(&weight, 0, 3)?)?;
        self.table(&format!("{to}.query.bias"), model.part(&bias, 0, 3)?)?;
        check_no_key_bias(from, &model.part(&bias, 1, 3)?)?;
        self.matrix(&format!("{to}.key.weight"), model.part(&weight, 1, 3)?)?;
        self.matrix(&format!("{to}.value.weight"), model.part(&weight, 2, 3)?)?;
        self.table(&format!("{to}.value.bias"), model.part(&bias, 2, 3)?)?;
        self.linear(model, &format!("{from}/linear_1"), &format!("{to}.out"))
    }

    fn cross_attention(&mut self, model: &dyn Checkpoint, from: &str, to: &str) -> Converted<()> {
        let (weight, bias) = (
            format!("{from}/linear_1/weight"),
            format!("{from}/linear_1/bias"),
        );
        self.linear(model, &format!("{from}/linear_0"), &format!("{to}.query"))?;
        check_no_key_bias(from, &model.part(&bias, 0, 2)?)?;
        self.matrix(&format!("{to}.key.weight"), model.part(&weight, 0, 2)?)?;
        self.matrix(&format!("{to}.value.weight"), model.part(&weight, 1, 2)?)?;
        self.table(&format!("{to}.value.bias"), model.part(&bias, 1, 2)?)?;
        self.linear(model, &format!("{from}/linear_2"), &format!("{to}.out"))
    }

    fn linear(&mut self, model: &dyn Checkpoint, from: &str, to: &str) -> Converted<()> {
        self.matrix(
            &format!("{to}.weight"),
            model.array(&format!("{from}/weight"))?,
        )?;
        self.table(&format!("{to}.bias"), model.array(&format!("{from}/bias"))?)
    }

    fn norm(&mut self, model: &dyn Checkpoint, from: &str, to: &str) -> Converted<()> {
        self.table(
            &format!("{to}.weight"),
            model.array(&format!("{from}/gamma"))?,
        )?;
        self.table(&format!("{to}.bias"), model.array(&format!("{from}/beta"))?)
    }

    /// A tensor that stays f32.
    fn table(&mut self, name: &str, array: Array) -> Converted<()> {
        self.tensor_header(name, &array.shape, F32)?;
        self.floats(&array.values)
    }

    /// A tensor that is f16 or quantised.
    fn matrix(&mut self, name: &str, array: Array) -> Converted<()> {
        let quantise = array.shape.len() == 2;
        match self.weights {
            WeightType::Q8_0 if quantise => self.blocks(name, &array, Q8_0, q8_0),
            WeightType::Q5_1 if quantise => self.blocks(name, &array, Q5_1, q5_1),
            _ => {
                self.tensor_header(name, &array.shape, F16)?;
                Ok(self.out.write_all(&halves::bytes_of(&array.values))?)
            }
        }
    }

    fn blocks(
        &mut self,
        name: &str,
        array: &Array,
        kind: i32,
        block: fn(&[f32], &mut Vec<u8>),
    ) -> Converted<()> {
        if array.shape.last().is_none_or(|width| width % BLOCK != 0) {
            return Err(ConvertError::input(format!(
                "{name}: rows of the shape {:?} cannot be cut in blocks of {BLOCK}",
                array.shape
            )));
        }
        self.tensor_header(name, &array.shape, kind)?;
        let mut bytes = Vec::with_capacity(array.values.len() * 34 / BLOCK);
        array
            .values
            .chunks_exact(BLOCK)
            .for_each(|values| block(values, &mut bytes));
        Ok(self.out.write_all(&bytes)?)
    }

    fn tensor_header(&mut self, name: &str, shape: &[usize], kind: i32) -> Converted<()> {
        self.number(shape.len())?;
        self.number(name.len())?;
        self.out.write_all(&kind.to_le_bytes())?;
        for &dimension in shape.iter().rev() {
            self.number(dimension)?;
        }
        Ok(self.out.write_all(name.as_bytes())?)
    }

    fn floats(&mut self, values: &[f32]) -> Converted<()> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Ok(self.out.write_all(&bytes)?)
    }

    fn number(&mut self, value: usize) -> Converted<()> {
        let value = i32::try_from(value)
            .map_err(|_| ConvertError::input(format!("{value} is too large for a ggml file")))?;
        Ok(self.out.write_all(&value.to_le_bytes())?)
    }
}

fn check_no_key_bias(name: &str, bias: &Array) -> Converted<()> {
    if bias.values.iter().all(|&value| value == 0.0) {
        return Ok(());
    }
    Err(ConvertError::input(format!(
        "{name}: the keys have a bias, for which a ggml file has no place"
    )))
}

/// 32 values as `f16 scale, i8[32]`; value = scale * q. As ggml's `quantize_row_q8_0_ref`.
fn q8_0(values: &[f32], out: &mut Vec<u8>) {
    let largest = values.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(halves::from_f32(scale).to_le_bytes());
    // f32::round takes halves away from zero, as C's roundf does.
    out.extend(
        values
            .iter()
            .map(|v| ((v * inverse).round() as i8).cast_unsigned()),
    );
}

/// 32 values as `f16 scale, f16 minimum, u32 of the fifth bits, 16 bytes with the low four bits`:
/// those of values 0 to 15 below, of 16 to 31 above. As ggml's `quantize_row_q5_1_ref`.
fn q5_1(values: &[f32], out: &mut Vec<u8>) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (high - low) / 31.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let quantised: Vec<u8> = values
        .iter()
        .map(|v| ((v - low) * inverse + 0.5) as u8)
        .collect();
    let fifth = quantised
        .iter()
        .enumerate()
        .fold(0_u32, |bits, (n, q)| bits | (u32::from(q >> 4) & 1) << n);
    out.extend(halves::from_f32(scale).to_le_bytes());
    out.extend(halves::from_f32(low).to_le_bytes());
    out.extend(fifth.to_le_bytes());
    out.extend((0..BLOCK / 2).map(|n| quantised[n] & 15 | (quantised[n + BLOCK / 2] & 15) << 4));
}

/// Looks a ggml Whisper file over from end to end without loading it: sizes, names and types make
/// sense and every tensor lies within the file. Finds files that are cut short or of another kind.
pub fn inspect(path: &Path) -> Converted<()> {
    Ggml::open(path).map(drop)
}

/// A model's weights in such a file, read one tensor at a time.
pub struct Ggml {
    file: File,
    heads: [i64; 2],
    tokens: Vec<Vec<u8>>,
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    shape: Vec<usize>,
    kind: i32,
    offset: u64,
}

impl Ggml {
    /// Reads all but the weights, and checks that each tensor lies within the file.
    pub fn open(path: &Path) -> Converted<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut input = Input {
            reader: BufReader::new(file),
            at: 0,
            length,
        };
        if input.number()? != MAGIC.cast_signed() {
            return Err(ConvertError::input(
                "this is no ggml file: it begins otherwise",
            ));
        }
        let mut sizes = [0; 11];
        for size in &mut sizes {
            *size = input.count(1 << 20)?;
        }
        let filters = input.count(512)? * input.count(1 << 12)?;
        input.skip(filters * 4)?;
        let mut tokens = Vec::new();
        for _ in 0..input.count(1 << 20)? {
            let length = input.count(1 << 12)?;
            tokens.push(input.bytes(length)?);
        }
        let mut tensors = BTreeMap::new();
        while input.at < length {
            let (name, tensor) = input.tensor()?;
            tensors.insert(name, tensor);
        }
        if tensors.is_empty() {
            return Err(ConvertError::input("this ggml file has no weights"));
        }
        let [_, _, _, audio_heads, _, _, _, text_heads, ..] = sizes;
        Ok(Self {
            file: input.reader.into_inner(),
            heads: [audio_heads, text_heads].map(u64::cast_signed),
            tokens,
            tensors,
        })
    }

    /// The plain tokens in the order of their numbers, in GPT-2's alphabet.
    pub fn tokens(&self) -> Converted<Vec<String>> {
        if self.tokens.len() < TEXT_TOKENS {
            return Err(ConvertError::input(format!(
                "{} tokens are too few for a Whisper model",
                self.tokens.len()
            )));
        }
        let alphabet: Vec<char> = alphabet();
        let written = |token: &Vec<u8>| token.iter().map(|b| alphabet[usize::from(*b)]).collect();
        Ok(self.tokens[..TEXT_TOKENS].iter().map(written).collect())
    }
}

impl Tensors for Ggml {
    fn names(&self) -> Names {
        Names::OpenAi
    }

    fn dimensions(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    fn read(&self, name: &str) -> Converted<Array> {
        let missing = || ConvertError::input(format!("there is no tensor {name} in it"));
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let (_, block, bytes) = type_of(tensor.kind)?;
        // Cannot overflow: the tensor lies in the file, as was checked.
        let count: usize = tensor.shape.iter().product();
        let mut data = vec![0; count / block * bytes];
        self.file.read_exact_at(&mut data, tensor.offset)?;
        let mut values = Vec::with_capacity(count);
        for block in data.chunks_exact(bytes) {
            unpack(tensor.kind, block, &mut values);
        }
        Ok(Array {
            shape: tensor.shape.clone(),
            values,
        })
    }

    fn heads_of(&self, side: &str) -> Option<i64> {
        Some(self.heads[usize::from(side == "decoder")])
    }
}

/// Number, values and bytes of a block of a tensor type.
fn type_of(kind: i32) -> Converted<(i32, usize, usize)> {
    let known = TENSOR_TYPES.iter().find(|(number, ..)| *number == kind);
    known
        .copied()
        .ok_or_else(|| ConvertError::input(format!("a tensor has the unknown type {kind}")))
}

/// The values of a block, which has as many bytes as its type says. As ggml's `dequantize_row_…`.
fn unpack(kind: i32, block: &[u8], to: &mut Vec<f32>) {
    let half = |at: usize| halves::to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
    let low_bits = |bytes: &[u8], n: usize| match n < BLOCK / 2 {
        true => bytes[n] & 15,
        false => bytes[n - BLOCK / 2] >> 4,
    };
    let fifth = |at: usize, n: usize| (block[at + n / 8] >> (n % 8) & 1) << 4;
    match kind {
        F32 => to.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
        F16 => to.push(half(0)),
        Q8_0 => to.extend(
            block[2..]
                .iter()
                .map(|q| half(0) * f32::from(q.cast_signed())),
        ),
        Q4_0 => {
            to.extend((0..BLOCK).map(|n| half(0) * (f32::from(low_bits(&block[2..], n)) - 8.0)))
        }
        Q4_1 => {
            to.extend((0..BLOCK).map(|n| half(0) * f32::from(low_bits(&block[4..], n)) + half(2)))
        }
        Q5_0 => to.extend(
            (0..BLOCK)
                .map(|n| half(0) * (f32::from(low_bits(&block[6..], n) | fifth(2, n)) - 16.0)),
        ),
        _ => to.extend(
            (0..BLOCK)
                .map(|n| half(0) * f32::from(low_bits(&block[8..], n) | fifth(4, n)) + half(2)),
        ),
    }
}

struct Input {
    reader: BufReader<File>,
    at: u64,
    length: u64,
}

impl Input {
    fn tensor(&mut self) -> Converted<(String, Tensor)> {
        let rank = self.count(4)?;
        let name = self.count(256)?;
        let kind = self.number()?;
        let (_, block, bytes) = type_of(kind)?;
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.push(self.count(1 << 24)? as usize);
        }
        let name = String::from_utf8(self.bytes(name)?)
            .map_err(|_| ConvertError::input("a tensor has a name that is no text"))?;
        // Innermost first: a row is made of whole blocks.
        if shape.first().is_none_or(|width| width % block != 0) {
            return Err(ConvertError::input(format!(
                "{name}: rows of {shape:?} values cannot be of blocks of {block}"
            )));
        }
        shape.reverse();
        let values = shape
            .iter()
            .fold(1, |n: u64, dim| n.saturating_mul(*dim as u64));
        let offset = self.at;
        self.skip((values / block as u64).saturating_mul(bytes as u64))?;
        Ok((
            name,
            Tensor {
                shape,
                kind,
                offset,
            },
        ))
    }

    fn bytes(&mut self, count: u64) -> Converted<Vec<u8>> {
        self.room(count)?;
        let mut bytes = vec![0; count as usize];
        self.reader.read_exact(&mut bytes)?;
        self.at += count;
        Ok(bytes)
    }

    fn count(&mut self, max: u64) -> Converted<u64> {
        let value = self.number()?;
        match u64::try_from(value) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(ConvertError::input(format!(
                "the ggml file has the impossible number {value} before byte {}",
                self.at
            ))),
        }
    }

    fn number(&mut self) -> Converted<i32> {
        self.room(4)?;
        let mut bytes = [0_u8; 4];
        self.reader.read_exact(&mut bytes)?;
        self.at += 4;
        Ok(i32::from_le_bytes(bytes))
    }

    fn skip(&mut self, size: u64) -> Converted<()> {
        self.room(size)?;
        self.at += size;
        self.reader.seek(SeekFrom::Start(self.at))?;
        Ok(())
    }

    fn room(&self, size: u64) -> Converted<()> {
        if size > self.length - self.at {
            return Err(ConvertError::input(format!(
                "the ggml file is cut short: it ends after {} bytes",
                self.length
            )));
        }
        Ok(())
    }
}
