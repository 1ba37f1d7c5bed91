// SPDX-License-Identifier: MPL-2.0
//! Reads a ggml Whisper file strictly before whisper.cpp sees it.
//!
//! whisper.cpp trusts its input: truncated or foreign files make it abort, hang, leak or accept garbage.
//! Here every field is checked against what a Whisper model can be, every tensor against the header, and
//! the file must end where its last tensor does. Nothing is allocated by a number from the file.
//!
//! Layout: `whisper_model_load` in whisper.cpp; the writer is `models/convert-pt-to-ggml.py` there.

use std::collections::HashMap;
use std::ops::RangeInclusive;

pub(super) const MAGIC: u32 = 0x6767_6d6c;
const MAX_TOKEN_BYTES: u32 = 512;
const MAX_NAME_BYTES: i32 = 128;
/// Plain tokens of the English vocabulary; the multilingual one has one more.
const VOCAB_ENGLISH: i32 = 51_864;

/// What a model may be. There is one set for real files; another, for files of a few kilobytes, is for the fuzzer,
/// which would spend its time on half a megabyte of vocabulary.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `n_vocab`.
    pub vocabulary: RangeInclusive<i32>,
    /// Fewest tokens that are written out; whisper.cpp makes up the specials.
    pub least_tokens: i32,
    /// `n_audio_ctx`.
    pub audio_ctx: i32,
    /// `n_text_ctx`.
    pub text_ctx: i32,
    /// `n_audio_state` and `n_text_state`.
    pub widths: RangeInclusive<i32>,
    /// Width of an attention head.
    pub head: i32,
    /// `n_mels`: one or the other.
    pub mels: [i32; 2],
    /// Frequencies that a mel filter weighs.
    pub filter_bins: i32,
}

impl Limits {
    /// Of Whisper's models, OpenAI's and those made after them.
    pub const WHISPER: Self = Self {
        vocabulary: VOCAB_ENGLISH..=51_866,
        least_tokens: 50_256,
        audio_ctx: 1500,
        text_ctx: 448,
        widths: 64..=1280,
        head: 64,
        mels: [80, 128],
        filter_bins: 201,
    };

    /// For the fuzzer.
    #[cfg(any(test, feature = "test-support"))]
    pub const SMALL: Self = Self {
        vocabulary: 3..=5,
        least_tokens: 3,
        audio_ctx: 2,
        text_ctx: 2,
        widths: 8..=32,
        head: 8,
        mels: [2, 3],
        filter_bins: 3,
    };
}

/// Bytes of a file's magic number and dimensions.
pub const HEADER_BYTES: usize = 48;
/// Bytes that are looked at in one go: few enough to stop soon, and a multiple of every number's size.
const PIECE: usize = 16_384;
/// All of these bits are set in what is no number.
const F32_EXPONENT: u32 = 0x7f80_0000;
const F16_EXPONENT: u16 = 0x7c00;
/// ggml begins each tensor at a multiple of this.
const TENSOR_ALIGNMENT: u64 = 32;
/// What ggml repacks for AMX: rows of a multiple of so many numbers, a multiple of so many rows.
const AMX_ROW: u64 = 2048;
const AMX_ROWS: u64 = 32;
/// What that adds to a block.
const AMX_SUM_BYTES: u64 = 4;

/// The dimensions of a Whisper model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tokens, specials included.
    pub n_vocab: i32,
    /// Positions of the encoder: 1500.
    pub n_audio_ctx: i32,
    /// Width of the encoder.
    pub n_audio_state: i32,
    /// Attention heads of the encoder.
    pub n_audio_head: i32,
    /// Layers of the encoder.
    pub n_audio_layer: i32,
    /// Positions of the decoder: 448.
    pub n_text_ctx: i32,
    /// Width of the decoder.
    pub n_text_state: i32,
    /// Attention heads of the decoder.
    pub n_text_head: i32,
    /// Layers of the decoder.
    pub n_text_layer: i32,
    /// Mel bands: 80 or 128.
    pub n_mels: i32,
    /// File type: tensor type plus 1000 times the version of the quantisation.
    pub ftype: i32,
}

impl Header {
    /// Whether the vocabulary has language tokens.
    pub fn multilingual(&self) -> bool {
        self.n_vocab > VOCAB_ENGLISH
    }

    /// Name of the weights' type: `f16`, `q8_0`.
    pub fn type_name(&self) -> &'static str {
        tensor_type(self.ftype).map_or("unknown", |t| t.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TensorType {
    pub id: i32,
    name: &'static str,
    block: u64,
    block_bytes: u64,
    /// Half-precision numbers at the front of a block that all of it is multiplied by or added to.
    scales: usize,
}

const F32: TensorType = TensorType {
    id: 0,
    name: "f32",
    block: 1,
    block_bytes: 4,
    scales: 0,
};
const F16: TensorType = TensorType {
    id: 1,
    name: "f16",
    block: 1,
    block_bytes: 2,
    scales: 0,
};

/// Type of the big matrices for a file type (`ggml_ftype_to_ggml_type`).
fn tensor_type(ftype: i32) -> Option<TensorType> {
    let quantised = |id, name, block_bytes, scales| {
        Some(TensorType {
            id,
            name,
            block: 32,
            block_bytes,
            scales,
        })
    };
    match ftype.rem_euclid(1000) {
        0 => Some(F32),
        1 => Some(F16),
        2 => quantised(2, "q4_0", 18, 1),
        3 => quantised(3, "q4_1", 20, 2),
        7 => quantised(8, "q8_0", 34, 1),
        8 => quantised(6, "q5_0", 22, 1),
        9 => quantised(7, "q5_1", 24, 2),
        _ => None,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], String> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(piece) => {
                self.at += piece.len();
                Ok(piece)
            }
            None => Err(format!(
                "the file ends inside {what}: {n} bytes are wanted at byte {}, {} are left",
                self.at,
                self.bytes.len() - self.at
            )),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn i32(&mut self, what: &str) -> Result<i32, String> {
        self.u32(what).map(|v| v as i32)
    }

    fn i32_in(&mut self, what: &str, range: RangeInclusive<i32>) -> Result<i32, String> {
        let value = self.i32(what)?;
        if range.contains(&value) {
            return Ok(value);
        }
        Err(if range.start() == range.end() {
            format!("{what} is {value}, not {}", range.start())
        } else {
            format!(
                "{what} is {value}, not {} to {}",
                range.start(),
                range.end()
            )
        })
    }
}

/// Dimensions from the first [`HEADER_BYTES`] of a file. What comes behind them is not looked at.
pub fn peek(first: &[u8]) -> Result<Header, String> {
    let mut r = Reader {
        bytes: first,
        at: 0,
    };
    read_header(&mut r, &Limits::WHISPER)
}

/// Bytes that the tensors of such a model take in memory.
///
/// Where ggml multiplies with `amx`, it repacks matrices of 8 bits whose rows are long enough, with a sum for each block
/// (`ggml_backend_amx_get_alloc_size`).
pub fn tensor_bytes(header: &Header, amx: bool) -> u64 {
    let packed = |t: &Tensor| {
        let repacked = amx
            && t.kind.name == "q8_0"
            && t.dims[0].is_multiple_of(AMX_ROW)
            && t.dims[1].is_multiple_of(AMX_ROWS);
        let sums = if repacked {
            t.dims.iter().product::<u64>() / t.kind.block * AMX_SUM_BYTES
        } else {
            0
        };
        (t.bytes() + sums).next_multiple_of(TENSOR_ALIGNMENT)
    };
    expected_tensors(header).iter().map(packed).sum()
}

/// Bytes of its largest tensor.
pub fn largest_tensor_bytes(header: &Header) -> u64 {
    expected_tensors(header)
        .iter()
        .map(Tensor::bytes)
        .max()
        .unwrap_or(0)
}

/// Checks a whole file and returns its dimensions, or says what is wrong with it.
pub fn validate(bytes: &[u8]) -> Result<Header, String> {
    validate_by(&Limits::WHISPER, bytes)
}

/// The same for what `limits` allow.
pub fn validate_by(limits: &Limits, bytes: &[u8]) -> Result<Header, String> {
    let mut r = Reader { bytes, at: 0 };
    let header = read_header(&mut r, limits)?;
    read_filters(&mut r, &header, limits)?;
    read_vocabulary(&mut r, &header, limits)?;
    read_tensors(&mut r, &header)?;
    Ok(header)
}

fn read_header(r: &mut Reader, limits: &Limits) -> Result<Header, String> {
    if r.bytes.is_empty() {
        return Err("it is empty".into());
    }
    let magic = r.u32("the magic number")?;
    if magic != MAGIC {
        return Err(match &bytes_of(magic) {
            b"GGUF" => "it is a GGUF file; whisper.cpp reads the ggml form".into(),
            _ => format!("it does not begin like a ggml file (0x{magic:08x}, not 0x{MAGIC:08x})"),
        });
    }
    let heads = 1..=limits.widths.end() / limits.head;
    let exactly = |n: i32| n..=n;
    let header = Header {
        n_vocab: r.i32_in("n_vocab", limits.vocabulary.clone())?,
        n_audio_ctx: r.i32_in("n_audio_ctx", exactly(limits.audio_ctx))?,
        n_audio_state: r.i32_in("n_audio_state", limits.widths.clone())?,
        n_audio_head: r.i32_in("n_audio_head", heads.clone())?,
        n_audio_layer: r.i32_in("n_audio_layer", 1..=32)?,
        n_text_ctx: r.i32_in("n_text_ctx", exactly(limits.text_ctx))?,
        n_text_state: r.i32_in("n_text_state", limits.widths.clone())?,
        n_text_head: r.i32_in("n_text_head", heads)?,
        n_text_layer: r.i32_in("n_text_layer", 1..=32)?,
        n_mels: r.i32("n_mels")?,
        ftype: r.i32("ftype")?,
    };
    if header.n_audio_head * limits.head != header.n_audio_state
        || header.n_text_head * limits.head != header.n_text_state
        || header.n_audio_state != header.n_text_state
    {
        return Err(format!(
            "its widths and heads do not fit: encoder {} in {}, decoder {} in {}",
            header.n_audio_state, header.n_audio_head, header.n_text_state, header.n_text_head
        ));
    }
    if !limits.mels.contains(&header.n_mels) {
        let [few, many] = limits.mels;
        return Err(format!("n_mels is {}, not {few} or {many}", header.n_mels));
    }
    let Some(kind) = tensor_type(header.ftype).filter(|_| header.ftype >= 0) else {
        return Err(format!("ftype {} is not known", header.ftype));
    };
    if !(header.n_audio_state as u64).is_multiple_of(kind.block) {
        return Err(format!(
            "it is {} wide, which {} cannot hold in blocks of {}",
            header.n_audio_state, kind.name, kind.block
        ));
    }
    Ok(header)
}

fn bytes_of(magic: u32) -> [u8; 4] {
    magic.to_le_bytes()
}

fn read_filters(r: &mut Reader, header: &Header, limits: &Limits) -> Result<(), String> {
    let bins = limits.filter_bins;
    r.i32_in("the filters' band count", header.n_mels..=header.n_mels)?;
    r.i32_in("the filters' bin count", bins..=bins)?;
    let data = r.take(4 * (header.n_mels * bins) as u64, "the mel filters")?;
    finite(data, F32, "a mel filter")
}

fn read_vocabulary(r: &mut Reader, header: &Header, limits: &Limits) -> Result<(), String> {
    let what = "the vocabulary's count";
    let count = r.i32_in(what, limits.least_tokens..=header.n_vocab)?;
    // Where each token lies, to find those that stand twice: a set of slices would take five times the memory.
    let mut places: Vec<(u32, u32)> = Vec::new();
    let mut empty = 0;
    let mut space = false;
    for i in 0..count {
        let length = r.u32("a token's length")?;
        if length > MAX_TOKEN_BYTES {
            return Err(format!(
                "token {i} has {length} bytes, over {MAX_TOKEN_BYTES}"
            ));
        }
        let at = r.at as u32;
        let token = r.take(u64::from(length), "the vocabulary")?;
        space |= token == b" ";
        if token.is_empty() {
            empty += 1;
        } else {
            places.push((at, length));
        }
    }
    let bytes = r.bytes;
    let token = |(at, length): (u32, u32)| &bytes[at as usize..(at + length) as usize];
    places.sort_unstable_by(|a, b| token(*a).cmp(token(*b)));
    if let Some(pair) = places.windows(2).find(|p| token(p[0]) == token(p[1])) {
        return Err(format!(
            "token \"{}\" stands twice in the vocabulary",
            token(pair[0]).escape_ascii()
        ));
    }
    if empty > 1 {
        return Err(format!("{empty} tokens are empty"));
    }
    if !space {
        return Err("the vocabulary has no single space".into());
    }
    Ok(())
}

fn read_tensors(r: &mut Reader, header: &Header) -> Result<(), String> {
    let expected = expected_tensors(header);
    let numbers: HashMap<&str, usize> = expected
        .iter()
        .enumerate()
        .map(|(n, tensor)| (tensor.name.as_str(), n))
        .collect();
    let mut seen = vec![false; expected.len()];
    while r.at < r.bytes.len() {
        let n_dims = r.i32_in("a tensor's number of dimensions", 1..=3)?;
        let name_len = r.i32_in("a tensor's name length", 1..=MAX_NAME_BYTES)?;
        let type_id = r.i32("a tensor's type")?;
        let mut dims = [1u64; 3];
        for dim in dims.iter_mut().take(n_dims as usize) {
            *dim = r.i32_in("a tensor's dimension", 1..=60_000)? as u64;
        }
        let name = std::str::from_utf8(r.take(name_len as u64, "a tensor's name")?)
            .map_err(|_| "a tensor's name is not text".to_owned())?;
        let Some(&number) = numbers.get(name) else {
            return Err(format!(
                "it has a tensor {}, which a Whisper model of its size has not",
                name.escape_debug()
            ));
        };
        let want = &expected[number];
        if seen[number] {
            return Err(format!("tensor {name} stands twice"));
        }
        seen[number] = true;
        if dims != want.dims || type_id != want.kind.id {
            return Err(format!(
                "tensor {name} is {dims:?} of type {type_id}, not {:?} of type {}",
                want.dims, want.kind.id
            ));
        }
        finite(r.take(want.bytes(), name)?, want.kind, name)?;
    }
    let there = seen.iter().filter(|s| **s).count();
    match seen.iter().position(|s| !s) {
        None => Ok(()),
        Some(first) => Err(format!(
            "it has {there} tensors of {}: {} is missing",
            expected.len(),
            expected[first].name
        )),
    }
}

/// Looks at every number of an f32 or f16 tensor, and at the scales of each quantised block.
fn finite(data: &[u8], kind: TensorType, what: &str) -> Result<(), String> {
    let good = match kind.id {
        0 => data.chunks(PIECE).all(|piece| {
            let bad = |b: &[u8; 4]| u32::from_le_bytes(*b) & F32_EXPONENT == F32_EXPONENT;
            !piece.as_chunks().0.iter().fold(false, |n, b| n | bad(b))
        }),
        1 => data.chunks(PIECE).all(|piece| {
            let bad = |b: &[u8; 2]| u16::from_le_bytes(*b) & F16_EXPONENT == F16_EXPONENT;
            !piece.as_chunks().0.iter().fold(false, |n, b| n | bad(b))
        }),
        _ => data.chunks_exact(kind.block_bytes as usize).all(|block| {
            block[..2 * kind.scales].as_chunks().0.iter().all(|b| {
                let scale = u16::from_le_bytes(*b);
                scale & F16_EXPONENT != F16_EXPONENT
            })
        }),
    };
    if good {
        Ok(())
    } else {
        Err(format!("{what} holds values that are not numbers"))
    }
}

pub(super) struct Tensor {
    pub name: String,
    pub dims: [u64; 3],
    pub kind: TensorType,
}

impl Tensor {
    pub fn bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() / self.kind.block * self.kind.block_bytes
    }
}

pub(super) fn expected_tensors(h: &Header) -> Vec<Tensor> {
    let wide = tensor_type(h.ftype).unwrap_or(F16);
    let conv = if wide == F32 { F32 } else { F16 };
    let (d, mels) = (h.n_audio_state as u64, h.n_mels as u64);
    let mut out = Vec::new();
    let mut add = |name: String, dims: [u64; 3], kind| out.push(Tensor { name, dims, kind });

    add(
        "encoder.positional_embedding".into(),
        [d, h.n_audio_ctx as u64, 1],
        F32,
    );
    add("encoder.conv1.weight".into(), [3, mels, d], conv);
    add("encoder.conv1.bias".into(), [1, d, 1], F32);
    add("encoder.conv2.weight".into(), [3, d, d], conv);
    add("encoder.conv2.bias".into(), [1, d, 1], F32);
    add("encoder.ln_post.weight".into(), [d, 1, 1], F32);
    add("encoder.ln_post.bias".into(), [d, 1, 1], F32);
    add(
        "decoder.positional_embedding".into(),
        [d, h.n_text_ctx as u64, 1],
        F32,
    );
    add(
        "decoder.token_embedding.weight".into(),
        [d, h.n_vocab as u64, 1],
        wide,
    );
    add("decoder.ln.weight".into(), [d, 1, 1], F32);
    add("decoder.ln.bias".into(), [d, 1, 1], F32);

    for (side, layers) in [("encoder", h.n_audio_layer), ("decoder", h.n_text_layer)] {
        for i in 0..layers {
            let mut norm = |part: &str| {
                for end in ["weight", "bias"] {
                    add(format!("{side}.blocks.{i}.{part}.{end}"), [d, 1, 1], F32);
                }
            };
            norm("mlp_ln");
            norm("attn_ln");
            if side == "decoder" {
                norm("cross_attn_ln");
            }
            let mut linear = |part: &str, from: u64, to: u64, bias: bool| {
                add(
                    format!("{side}.blocks.{i}.{part}.weight"),
                    [from, to, 1],
                    wide,
                );
                if bias {
                    add(format!("{side}.blocks.{i}.{part}.bias"), [to, 1, 1], F32);
                }
            };
            linear("mlp.0", d, 4 * d, true);
            linear("mlp.2", 4 * d, d, true);
            let attentions: &[&str] = if side == "decoder" {
                &["attn", "cross_attn"]
            } else {
                &["attn"]
            };
            for attention in attentions {
                linear(&format!("{attention}.query"), d, d, true);
                linear(&format!("{attention}.key"), d, d, false);
                linear(&format!("{attention}.value"), d, d, true);
                linear(&format!("{attention}.out"), d, d, true);
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::made::{self, Weights, smallest};
    use super::*;

    #[test]
    fn a_whole_model_is_accepted() {
        let header = validate(&smallest().bytes).unwrap();

        assert_eq!(header.n_audio_state, 64);
        assert_eq!(header.type_name(), "f16");
        assert!(!header.multilingual());
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let model = smallest().bytes;

        for cut in (0..model.len())
            .step_by(model.len() / 97)
            .chain([model.len() - 1])
        {
            assert!(
                validate(&model[..cut]).is_err(),
                "cut at {cut} of {}",
                model.len()
            );
        }
    }

    #[test]
    fn each_type_of_weights_is_accepted_and_no_number_among_them_is_refused() {
        // A number in the middle of f32 and f16; the second scale of a block that has two.
        let cases = [
            (0, "f32", 4 * 100, 4),
            (1, "f16", 2 * 100, 2),
            (2, "q4_0", 18 * 3, 2),
            (3, "q4_1", 20 * 3 + 2, 2),
            (7, "q8_0", 34 * 3, 2),
            (8, "q5_0", 22 * 3, 2),
            (9, "q5_1", 24 * 3 + 2, 2),
        ];
        for (ftype, name, at, size) in cases {
            let header = made::header(64, 1, 51_865, 80, ftype);
            let made = made::model(&header, 50_258, Weights::Zero);
            let accepted = validate(&made.bytes).unwrap();
            assert_eq!(accepted.type_name(), name);

            let bad = made.tensor("decoder.blocks.0.mlp.0.weight").data + at;
            for filling in [0xff, 0x7c] {
                let mut bytes = made.bytes.clone();
                bytes[bad..bad + size].fill(filling);
                // 0x7c7c is no number in half precision, and one in single.
                let is_number = ftype == 0 && filling == 0x7c;
                let outcome = validate(&bytes);
                assert_eq!(outcome.is_ok(), is_number, "{name}: {outcome:?}");
            }
        }
    }

    #[test]
    fn a_header_alone_tells_the_dimensions() {
        let made = smallest();

        let header = peek(&made.bytes[..HEADER_BYTES]).unwrap();

        assert_eq!(header, validate(&made.bytes).unwrap());
        assert!(
            peek(&made.bytes[..HEADER_BYTES - 1])
                .unwrap_err()
                .contains("ftype")
        );
    }
}
