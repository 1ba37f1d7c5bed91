// SPDX-License-Identifier: MPL-2.0
//! ggml files made for tests, with the places of their parts: what is wrong in a file can then be put there.

use super::header::{self, Header, Limits};

/// What a made model's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// All zero: every answer is the same.
    Zero,
    /// Small numbers by chance, always the same ones.
    Noise,
    /// None at all: whisper.cpp takes such a file for a model whose weights do not matter, and tells its sizes.
    Absent,
}

/// A tensor's record in a made file.
#[derive(Clone, Debug)]
pub struct MadeTensor {
    /// Its name.
    pub name: String,
    /// Where its record begins: dimensions, length of the name, type, each dimension, the name.
    pub at: usize,
    /// Where its values begin.
    pub data: usize,
    /// Where the next record begins.
    pub end: usize,
}

/// A file and where its parts lie.
#[derive(Clone, Debug)]
pub struct Made {
    /// The file.
    pub bytes: Vec<u8>,
    /// Where the filters' two counts stand.
    pub filters: usize,
    /// Where the vocabulary's count stands.
    pub vocabulary: usize,
    /// Where each token's length stands.
    pub tokens: Vec<usize>,
    /// The tensors in their order.
    pub tensors: Vec<MadeTensor>,
}

/// Dimensions of a model that is `width` wide, with as many layers on both sides.
pub fn header(width: i32, layers: i32, vocabulary: i32, mels: i32, ftype: i32) -> Header {
    Header {
        n_vocab: vocabulary,
        n_audio_ctx: Limits::WHISPER.audio_ctx,
        n_audio_state: width,
        n_audio_head: width / Limits::WHISPER.head,
        n_audio_layer: layers,
        n_text_ctx: Limits::WHISPER.text_ctx,
        n_text_state: width,
        n_text_head: width / Limits::WHISPER.head,
        n_text_layer: layers,
        n_mels: mels,
        ftype,
    }
}

/// The smallest English model: one layer, 64 wide, in half precision.
pub fn smallest() -> Made {
    model(&header(64, 1, 51_864, 80, 1), 50_257, Weights::Zero)
}

/// Dimensions within [`Limits::SMALL`].
pub fn small_header(width: i32, ftype: i32) -> Header {
    let limits = Limits::SMALL;
    Header {
        n_vocab: *limits.vocabulary.end(),
        n_audio_ctx: limits.audio_ctx,
        n_text_ctx: limits.text_ctx,
        n_audio_head: width / limits.head,
        n_text_head: width / limits.head,
        ..header(width, 1, 0, limits.mels[0], ftype)
    }
}

/// A file of a few kilobytes that is right by [`Limits::SMALL`].
pub fn small(width: i32, ftype: i32) -> Made {
    let header = small_header(width, ftype);
    model_by(
        &Limits::SMALL,
        &header,
        Limits::SMALL.least_tokens,
        Weights::Zero,
    )
}

/// A whole file with these dimensions and `tokens` tokens.
pub fn model(header: &Header, tokens: i32, weights: Weights) -> Made {
    model_by(&Limits::WHISPER, header, tokens, weights)
}

fn model_by(limits: &Limits, h: &Header, tokens: i32, weights: Weights) -> Made {
    let mut bytes = Vec::new();
    let ints = |bytes: &mut Vec<u8>, values: &[i32]| {
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    };
    bytes.extend(header::MAGIC.to_le_bytes());
    #[rustfmt::skip]
    let dimensions = [
        h.n_vocab, h.n_audio_ctx, h.n_audio_state, h.n_audio_head, h.n_audio_layer, h.n_text_ctx, h.n_text_state,
        h.n_text_head, h.n_text_layer, h.n_mels, h.ftype,
    ];
    ints(&mut bytes, &dimensions);

    let filters = bytes.len();
    ints(&mut bytes, &[h.n_mels, limits.filter_bins]);
    bytes.resize(
        bytes.len() + 4 * (h.n_mels * limits.filter_bins) as usize,
        0,
    );

    let vocabulary = bytes.len();
    ints(&mut bytes, &[tokens]);
    let mut places = Vec::new();
    for i in 0..tokens {
        let token = if i == tokens - 1 {
            " ".to_owned()
        } else {
            format!("t{i}")
        };
        places.push(bytes.len());
        ints(&mut bytes, &[token.len() as i32]);
        bytes.extend(token.as_bytes());
    }

    let mut made = Made {
        bytes,
        filters,
        vocabulary,
        tokens: places,
        tensors: Vec::new(),
    };
    if weights == Weights::Absent {
        return made;
    }
    let mut noise = 1u32;
    for tensor in header::expected_tensors(h) {
        let at = made.bytes.len();
        let count = 1 + tensor.dims.iter().rposition(|d| *d > 1).unwrap_or(0);
        ints(
            &mut made.bytes,
            &[count as i32, tensor.name.len() as i32, tensor.kind.id],
        );
        for dim in &tensor.dims[..count] {
            ints(&mut made.bytes, &[*dim as i32]);
        }
        made.bytes.extend(tensor.name.as_bytes());
        let data = made.bytes.len();
        let end = data + tensor.bytes() as usize;
        made.bytes.resize(end, 0);
        if weights == Weights::Noise {
            fill(&mut made.bytes[data..end], tensor.kind.id, &mut noise);
        }
        made.tensors.push(MadeTensor {
            name: tensor.name,
            at,
            data,
            end,
        });
    }
    made
}

/// Between -1/16 and 1/16, in f32 or f16.
fn fill(values: &mut [u8], kind: i32, noise: &mut u32) {
    let mut next = || {
        *noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *noise >> 16
    };
    if kind == 0 {
        for value in values.as_chunks_mut::<4>().0 {
            *value = (next() as f32 / 524_288.0 - 0.0625).to_le_bytes();
        }
    } else {
        for value in values.as_chunks_mut::<2>().0 {
            // Sign and fraction by chance, exponent of 1/32.
            let bits = (next() as u16 & 0x83ff) | 0x2800;
            *value = bits.to_le_bytes();
        }
    }
}

impl Made {
    /// Writes `value` at `at`.
    pub fn put(&mut self, at: usize, value: i32) -> &mut Self {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Writes dimension `field`, 1 for the first behind the magic number.
    pub fn dimension(&mut self, field: usize, value: i32) -> &mut Self {
        self.put(4 * field, value)
    }

    /// Ends the file at `at`.
    pub fn cut(&mut self, at: usize) -> &mut Self {
        self.bytes.truncate(at);
        self
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> &MadeTensor {
        match self.tensors.iter().find(|t| t.name == name) {
            Some(tensor) => tensor,
            None => panic!("a made model has no tensor {name}"),
        }
    }
}
