// SPDX-License-Identifier: MPL-2.0
//! whisper.cpp's ggml files: written from a CTranslate2 model, and looked over.
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

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use gstscribe::dsp::mel;
use gstscribe::inference::manifest::WeightType;

use super::ct2::{Array, HEAD_WIDTH, Shape, Weights, read_tokens};
use super::{ConvertError, Converted, halves};

const MAGIC: u32 = 0x6767_6d6c;
/// Tokens that are pieces of text, the end of text of the English models among them.
const PLAIN_TOKENS: usize = 50_257;
/// Values a quantised block holds.
const BLOCK: usize = 32;

/// Numbers of the tensor types that whisper.cpp's files have, with values and bytes a block.
const TENSOR_TYPES: [(i32, u64, u64); 7] = [
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
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
    let mut writer = Writer {
        out: BufWriter::with_capacity(1 << 20, out),
        weights,
    };
    writer.header(&shape)?;
    writer.filters(shape.mel_bands)?;
    writer.tokens(&plain_tokens(&tokens, shape.is_multilingual())?)?;
    writer.tensors(&model, &shape)?;
    writer.out.flush()?;
    Ok(())
}

/// The plain tokens as bytes. In the vocabulary every byte is one character of GPT-2's alphabet.
pub fn plain_tokens(tokens: &[String], multilingual: bool) -> Converted<Vec<Vec<u8>>> {
    let mut plain = Vec::with_capacity(PLAIN_TOKENS);
    for (number, token) in tokens.iter().take(PLAIN_TOKENS - 1).enumerate() {
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

/// GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes, in rising order,
/// are U+0100, U+0101 and so on.
fn byte_of(c: char) -> Option<u8> {
    let is_plain = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
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
    fn tensors(&mut self, model: &Weights, shape: &Shape) -> Converted<()> {
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

    fn layer(&mut self, model: &Weights, side: &str, layer: usize) -> Converted<()> {
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

    fn self_attention(&mut self, model: &Weights, from: &str, to: &str) -> Converted<()> {
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

    fn cross_attention(&mut self, model: &Weights, from: &str, to: &str) -> Converted<()> {
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

    fn linear(&mut self, model: &Weights, from: &str, to: &str) -> Converted<()> {
        self.matrix(
            &format!("{to}.weight"),
            model.array(&format!("{from}/weight"))?,
        )?;
        self.table(&format!("{to}.bias"), model.array(&format!("{from}/bias"))?)
    }

    fn norm(&mut self, model: &Weights, from: &str, to: &str) -> Converted<()> {
        self.table(
            &format!("{to}.weight"),
            model.array(&format!("{from}/gamma"))?,
        )?;
        self.table(&format!("{to}.bias"), model.array(&format!("{from}/beta"))?)
    }

    /// A tensor that stays f32.
    fn table(&mut self, name: &str, array: Array) -> Converted<()> {
        self.tensor_header(name, &array.shape, 0)?;
        self.floats(&array.values)
    }

    /// A tensor that is f16 or quantised.
    fn matrix(&mut self, name: &str, array: Array) -> Converted<()> {
        let quantise = array.shape.len() == 2;
        match self.weights {
            WeightType::Q8_0 if quantise => self.blocks(name, &array, 8, q8_0),
            WeightType::Q5_1 if quantise => self.blocks(name, &array, 7, q5_1),
            _ => {
                self.tensor_header(name, &array.shape, 1)?;
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
    for _ in 0..11 {
        input.count(1 << 20)?;
    }
    let filters = input.count(512)? * input.count(1 << 12)?;
    input.skip(filters * 4)?;
    for _ in 0..input.count(1 << 20)? {
        let token = input.count(1 << 12)?;
        input.skip(token)?;
    }
    let mut tensors = 0;
    while input.at < length {
        input.tensor()?;
        tensors += 1;
    }
    if tensors == 0 {
        return Err(ConvertError::input("this ggml file has no weights"));
    }
    Ok(())
}

struct Input {
    reader: BufReader<File>,
    at: u64,
    length: u64,
}

impl Input {
    fn tensor(&mut self) -> Converted<()> {
        let rank = self.count(4)?;
        let name = self.count(256)?;
        let kind = self.number()?;
        let &(_, block, bytes) = TENSOR_TYPES
            .iter()
            .find(|(number, ..)| *number == kind)
            .ok_or_else(|| ConvertError::input(format!("a tensor has the unknown type {kind}")))?;
        let mut values = 1_u64;
        for _ in 0..rank {
            values = values.saturating_mul(self.count(1 << 24)?);
        }
        self.skip(name)?;
        self.skip((values / block).saturating_mul(bytes))
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
