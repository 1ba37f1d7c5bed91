// SPDX-License-Identifier: MPL-2.0
//! Reads a ggml Whisper file strictly before whisper.cpp sees it.
//!
//! whisper.cpp trusts its input: truncated or foreign files make it abort, hang, leak or accept garbage.
//! Here every field is checked against what a Whisper model can be, every tensor against the header, and
//! the file must end where its last tensor does. Nothing is allocated by a number from the file.
//!
//! Layout: `whisper_model_load` in whisper.cpp; the writer is `models/convert-pt-to-ggml.py` there.

use std::collections::HashSet;

const MAGIC: u32 = 0x6767_6d6c;
const FILTER_BINS: i32 = 201;
const MAX_TOKEN_BYTES: u32 = 512;
const MAX_NAME_BYTES: i32 = 128;
/// Plain tokens of the English vocabulary; the multilingual one has one more.
const VOCAB_ENGLISH: i32 = 51_864;
const VOCAB_LARGEST: i32 = 51_866;

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
struct TensorType {
    id: i32,
    name: &'static str,
    block: u64,
    block_bytes: u64,
}

const F32: TensorType = TensorType {
    id: 0,
    name: "f32",
    block: 1,
    block_bytes: 4,
};
const F16: TensorType = TensorType {
    id: 1,
    name: "f16",
    block: 1,
    block_bytes: 2,
};

/// Type of the big matrices for a file type (`ggml_ftype_to_ggml_type`).
fn tensor_type(ftype: i32) -> Option<TensorType> {
    let quantised = |id, name, block_bytes| {
        Some(TensorType {
            id,
            name,
            block: 32,
            block_bytes,
        })
    };
    match ftype.rem_euclid(1000) {
        0 => Some(F32),
        1 => Some(F16),
        2 => quantised(2, "q4_0", 18),
        3 => quantised(3, "q4_1", 20),
        7 => quantised(8, "q8_0", 34),
        8 => quantised(6, "q5_0", 22),
        9 => quantised(7, "q5_1", 24),
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

    fn i32_in(&mut self, what: &str, range: std::ops::RangeInclusive<i32>) -> Result<i32, String> {
        let value = self.i32(what)?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(format!(
                "{what} is {value}, not {} to {}",
                range.start(),
                range.end()
            ))
        }
    }
}

/// Checks a whole file and returns its dimensions, or says what is wrong with it.
pub fn validate(bytes: &[u8]) -> Result<Header, String> {
    let mut r = Reader { bytes, at: 0 };
    let header = read_header(&mut r)?;
    read_filters(&mut r, &header)?;
    read_vocabulary(&mut r, &header)?;
    read_tensors(&mut r, &header)?;
    Ok(header)
}

fn read_header(r: &mut Reader) -> Result<Header, String> {
    let magic = r.u32("the magic number")?;
    if magic != MAGIC {
        return Err(match &bytes_of(magic) {
            b"GGUF" => "it is a GGUF file; whisper.cpp reads the ggml form".into(),
            _ => format!("it does not begin like a ggml file (0x{magic:08x}, not 0x{MAGIC:08x})"),
        });
    }
    let header = Header {
        n_vocab: r.i32_in("n_vocab", VOCAB_ENGLISH..=VOCAB_LARGEST)?,
        n_audio_ctx: r.i32_in("n_audio_ctx", 1500..=1500)?,
        n_audio_state: r.i32_in("n_audio_state", 64..=1280)?,
        n_audio_head: r.i32_in("n_audio_head", 1..=20)?,
        n_audio_layer: r.i32_in("n_audio_layer", 1..=32)?,
        n_text_ctx: r.i32_in("n_text_ctx", 448..=448)?,
        n_text_state: r.i32_in("n_text_state", 64..=1280)?,
        n_text_head: r.i32_in("n_text_head", 1..=20)?,
        n_text_layer: r.i32_in("n_text_layer", 1..=32)?,
        n_mels: r.i32_in("n_mels", 80..=128)?,
        ftype: r.i32("ftype")?,
    };
    if header.n_audio_head * 64 != header.n_audio_state
        || header.n_text_head * 64 != header.n_text_state
        || header.n_audio_state != header.n_text_state
    {
        return Err(format!(
            "its widths and heads do not fit: encoder {} in {}, decoder {} in {}",
            header.n_audio_state, header.n_audio_head, header.n_text_state, header.n_text_head
        ));
    }
    if header.n_mels != 80 && header.n_mels != 128 {
        return Err(format!("n_mels is {}, not 80 or 128", header.n_mels));
    }
    if header.ftype < 0 || tensor_type(header.ftype).is_none() {
        return Err(format!("ftype {} is not known", header.ftype));
    }
    Ok(header)
}

fn bytes_of(magic: u32) -> [u8; 4] {
    magic.to_le_bytes()
}

fn read_filters(r: &mut Reader, header: &Header) -> Result<(), String> {
    r.i32_in("the filters' band count", header.n_mels..=header.n_mels)?;
    r.i32_in("the filters' bin count", FILTER_BINS..=FILTER_BINS)?;
    let data = r.take(4 * (header.n_mels * FILTER_BINS) as u64, "the mel filters")?;
    finite_f32(data, "a mel filter")
}

fn read_vocabulary(r: &mut Reader, header: &Header) -> Result<(), String> {
    let count = r.i32_in("the vocabulary's count", 50_256..=header.n_vocab)?;
    let mut seen = HashSet::with_capacity(65_536);
    let mut empty = 0;
    for i in 0..count {
        let len = r.u32("a token's length")?;
        if len > MAX_TOKEN_BYTES {
            return Err(format!("token {i} has {len} bytes, over {MAX_TOKEN_BYTES}"));
        }
        let token = r.take(u64::from(len), "the vocabulary")?;
        if token.is_empty() {
            empty += 1;
        } else if !seen.insert(token) {
            return Err(format!("token {i} stands twice in the vocabulary"));
        }
    }
    if empty > 1 {
        return Err(format!("{empty} tokens are empty"));
    }
    if !seen.contains(&b" "[..]) {
        return Err("the vocabulary has no single space".into());
    }
    Ok(())
}

fn read_tensors(r: &mut Reader, header: &Header) -> Result<(), String> {
    let expected = expected_tensors(header);
    let mut seen = HashSet::with_capacity(expected.len());
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
        let Some(want) = expected.iter().find(|t| t.name == name) else {
            return Err(format!(
                "it has a tensor {name}, which a Whisper model of its size has not"
            ));
        };
        if !seen.insert(want.name.as_str()) {
            return Err(format!("tensor {name} stands twice"));
        }
        if dims != want.dims || type_id != want.kind.id {
            return Err(format!(
                "tensor {name} is {dims:?} of type {type_id}, not {:?} of type {}",
                want.dims, want.kind.id
            ));
        }
        let elements: u64 = dims.iter().product();
        let data = r.take(elements / want.kind.block * want.kind.block_bytes, name)?;
        if want.kind == F32 {
            finite_f32(data, name)?;
        }
    }
    if seen.len() != expected.len() {
        return Err(format!(
            "it has {} tensors of {}",
            seen.len(),
            expected.len()
        ));
    }
    Ok(())
}

fn finite_f32(data: &[u8], what: &str) -> Result<(), String> {
    let bad = data
        .as_chunks::<4>()
        .0
        .iter()
        .any(|b| !f32::from_le_bytes(*b).is_finite());
    if bad {
        Err(format!("{what} holds values that are not numbers"))
    } else {
        Ok(())
    }
}

struct Tensor {
    name: String,
    dims: [u64; 3],
    kind: TensorType,
}

fn expected_tensors(h: &Header) -> Vec<Tensor> {
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
    use super::*;

    /// A model of one layer and width 64 with zero weights, as bytes.
    pub(super) fn tiny_model() -> Vec<u8> {
        let h = Header {
            n_vocab: VOCAB_ENGLISH,
            n_audio_ctx: 1500,
            n_audio_state: 64,
            n_audio_head: 1,
            n_audio_layer: 1,
            n_text_ctx: 448,
            n_text_state: 64,
            n_text_head: 1,
            n_text_layer: 1,
            n_mels: 80,
            ftype: 1,
        };
        let mut out = MAGIC.to_le_bytes().to_vec();
        let int = |out: &mut Vec<u8>, v: i32| out.extend(v.to_le_bytes());
        for v in [
            h.n_vocab,
            h.n_audio_ctx,
            h.n_audio_state,
            h.n_audio_head,
            h.n_audio_layer,
            h.n_text_ctx,
            h.n_text_state,
            h.n_text_head,
            h.n_text_layer,
            h.n_mels,
            h.ftype,
        ] {
            int(&mut out, v);
        }
        int(&mut out, 80);
        int(&mut out, FILTER_BINS);
        out.resize(out.len() + 4 * 80 * 201, 0);
        int(&mut out, 50_257);
        for i in 0..50_257 {
            let token = if i == 220 {
                " ".to_owned()
            } else {
                format!("t{i}")
            };
            int(&mut out, token.len() as i32);
            out.extend(token.as_bytes());
        }
        for t in expected_tensors(&h) {
            let n_dims = if t.dims[2] > 1 {
                3
            } else if t.dims[1] > 1 {
                2
            } else {
                1
            };
            int(&mut out, n_dims);
            int(&mut out, t.name.len() as i32);
            int(&mut out, t.kind.id);
            for dim in &t.dims[..n_dims as usize] {
                int(&mut out, *dim as i32);
            }
            out.extend(t.name.as_bytes());
            let elements: u64 = t.dims.iter().product();
            out.resize(
                out.len() + (elements / t.kind.block * t.kind.block_bytes) as usize,
                0,
            );
        }
        out
    }

    #[test]
    fn a_whole_model_is_accepted() {
        let header = validate(&tiny_model()).unwrap();

        assert_eq!(header.n_audio_state, 64);
        assert_eq!(header.type_name(), "f16");
        assert!(!header.multilingual());
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let model = tiny_model();

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
    fn junk_behind_the_last_tensor_is_refused() {
        let mut model = tiny_model();
        model.extend([7; 100]);

        assert!(validate(&model).is_err());
    }

    #[test]
    fn every_wrong_header_field_is_refused() {
        let model = tiny_model();

        for field in 1..=11 {
            for value in [-1i32, 0, 1 << 28, i32::MAX, 99] {
                let mut bad = model.clone();
                bad[field * 4..field * 4 + 4].copy_from_slice(&value.to_le_bytes());
                // ftype 0 is f32, which the tensors then contradict.
                assert!(validate(&bad).is_err(), "field {field} = {value}");
            }
        }
    }

    #[test]
    fn foreign_files_are_named() {
        assert!(validate(b"GGUF\x03\0\0\0").unwrap_err().contains("GGUF"));
        assert!(validate(b"RIFF....WAVE").unwrap_err().contains("ggml"));
        assert!(validate(b"").is_err());
    }
}
