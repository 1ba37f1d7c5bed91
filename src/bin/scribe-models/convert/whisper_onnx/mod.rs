// SPDX-License-Identifier: MPL-2.0
//! Whisper models as two ONNX graphs, out of CTranslate2's form, whisper.cpp's or transformers'.
//!
//! H heads of 64 values; layers are those of the decoder. The encoder, one window a run:
//!
//! ```text
//! in   mel        f32 [B, T, mels]       log-mel, a row for each frame of 10 ms, T even and 3000 at most
//! out  cross_k_l  f32 [B, H, 64, T/2]    keys of layer l, transposed
//!      cross_v_l  f32 [B, H, T/2, 64]    values
//! ```
//!
//! The decoder, n tokens for each of R rows (R = W windows of N beams, the beams of a window side by side):
//!
//! ```text
//! in   tokens     i64 [R, n]
//!      pos        i64 [R, n]             position of each token, from 0
//!      mask       f32 [R, 1, n, P + n]   added to the scores: 0 or -1e9
//!      self_k_l   f32 [R, H, 64, P]      cache of any capacity P, 0 among them
//!      self_v_l   f32 [R, H, P, 64]
//!      cross_k_l, cross_v_l              from the encoder, [W, …]
//! out  logits     f32 [R, tokens]        of the last token
//!      align      f32 [W, A, N * n, T/2] attention of the A alignment heads to the sound, after the softmax
//!      new_k_l    f32 [R, H, 64, n]      the caller writes these into its cache
//!      new_v_l    f32 [R, H, n, 64]
//! ```
//!
//! The encoder's states never leave it: what the decoder wants of them does. The cache is the caller's, the graph does not
//! copy it. Convolutions are written as products with three shifted copies.
//!
//! Notes (`metadata_props`): `whisper` in both, the sizes as JSON; in the decoder also `vocabulary`, the tokens in the
//! order of their numbers, those that are text at least, one a line, in GPT-2's alphabet (a character a byte).
//!
//! With `int8` weights are symmetric per output channel and activations are unsigned bytes with a scale per row, found
//! in each run, by an operator of ours (`gstscribe::inference::onnx::linear`); before that, norms are balanced (`balance`). The
//! convolutions and the attention's output of the encoder's first layer, whose inputs have outliers, stay f32. The table of
//! tokens is f16 in any case.
//!
//! With `int8` too, attention is operators of ours. The encoder's is `gstscribe::inference::onnx::attention`; the decoder's are two. That to the sound (`gstscribe::inference::onnx::cross`)
//! takes `cross_k_l` and `cross_v_l` as bytes with scales, in an order of its own. That to the text (`…::past`) takes halves.
//! The note `whisper` then says `operators`, the version of their form:
//!
//! ```text
//! in   index      i64 [R, P]             instead of `mask`: the entry of each token of a row's text
//!      past_l     u16 [E, 2, H, 64]      instead of `self_k_l` and `self_v_l`: keys and values of entries
//! out  new_l      u16 [R, n, 2, H, 64]   instead of `new_k_l` and `new_v_l`
//! ```
//!
//! With `f16` all weights and everything between inputs and outputs have 16 bits, which is for cards. Inputs and outputs stay
//! f32, with casts behind and before them: a caller then has one form of cache for all types. Scores that are masked are
//! -30000 instead of -1e9, which 16 bits do not hold.

mod balance;

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use gstscribe::inference::manifest::GraphType;
use gstscribe::inference::onnx::{attention, cross, past};

use self::balance::Balance;
use super::checkpoint::{Array, Checkpoint};
use super::ct2::{HEAD_WIDTH, Shape, Weights, read_config, read_tokens};
use super::ggml::{self, Ggml};
use super::graph::{Graph, Linear, Port, Value};
use super::protobuf::{Attribute, Dimension, Element};
use super::safetensors::Safetensors;
use super::{ConvertError, Converted, halves};

/// To the end, in a slice.
const END: i64 = 1 << 31;
/// Scores are divided by the root of a head's width.
const SCORE_SCALE: f32 = 0.125;
/// The same as a length in the graphs.
const WIDTH: Dimension<'static> = Dimension::Fixed(HEAD_WIDTH as u64);

/// Layer and head.
type Head = (usize, usize);
/// Width, layers of the decoder, and tokens.
type Size = (usize, usize, usize);

/// Sizes of OpenAI's models, and their heads that follow the sound: for a model that does not say.
/// Source: openai-whisper, `__init__.py`. large-v1 and large-v2 are of one size: these are the latter's.
#[rustfmt::skip]
const OPENAI_HEADS: [(Size, &[Head]); 11] = [
    ((384, 4, 51_864), &[(1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)]),
    ((384, 4, 51_865), &[(2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5)]),
    ((512, 6, 51_864), &[(3, 3), (4, 7), (5, 1), (5, 5), (5, 7)]),
    ((512, 6, 51_865), &[(3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)]),
    ((768, 12, 51_864), &[
        (6, 6), (7, 0), (7, 3), (7, 8), (8, 2), (8, 5), (8, 7), (9, 0), (9, 4), (9, 8), (9, 10), (10, 0), (10, 1), (10, 2),
        (10, 3), (10, 6), (10, 11), (11, 2), (11, 4),
    ]),
    ((768, 12, 51_865), &[(5, 3), (5, 9), (8, 0), (8, 4), (8, 7), (8, 8), (9, 0), (9, 7), (9, 9), (10, 5)]),
    ((1024, 24, 51_864), &[
        (11, 4), (14, 1), (14, 12), (14, 14), (15, 4), (16, 0), (16, 4), (16, 9), (17, 12), (17, 14), (18, 7), (18, 10),
        (18, 15), (20, 0), (20, 3), (20, 9), (20, 14), (21, 12),
    ]),
    ((1024, 24, 51_865), &[(13, 15), (15, 4), (15, 15), (16, 1), (20, 0), (23, 4)]),
    ((1280, 32, 51_865), &[
        (10, 12), (13, 17), (16, 11), (16, 12), (16, 13), (17, 15), (17, 16), (18, 4), (18, 11), (18, 19), (19, 11), (21, 2),
        (21, 3), (22, 3), (22, 9), (22, 12), (23, 5), (23, 7), (23, 13), (25, 5), (26, 1), (26, 12), (27, 15),
    ]),
    ((1280, 32, 51_866), &[
        (7, 0), (10, 17), (12, 18), (13, 12), (16, 1), (17, 14), (19, 11), (21, 4), (24, 1), (25, 6),
    ]),
    ((1280, 4, 51_866), &[(2, 4), (2, 11), (3, 3), (3, 6), (3, 11), (3, 14)]),
];

/// Writes the model in `folder` (CTranslate2 form) to the two files.
pub fn from_ct2(folder: &Path, graphs: [File; 2], kind: GraphType) -> Converted<()> {
    let weights = Weights::open(&folder.join("model.bin"))?;
    let shape = Shape::of(&weights)?;
    let tokens = read_tokens(folder, shape.vocabulary)?;
    let heads = read_config(folder)?.alignment_heads;
    write(&weights, shape, &tokens, heads, graphs, kind)
}

/// The same of a folder as transformers writes it. Not all of those have all marks among their tokens.
pub fn from_safetensors(folder: &Path, graphs: [File; 2], kind: GraphType) -> Converted<()> {
    let weights = Safetensors::open(folder)?;
    let tokens = read_tokens(folder, ggml::TEXT_TOKENS)?;
    let heads = read_config(folder)?.alignment_heads;
    write(&weights, Shape::of(&weights)?, &tokens, heads, graphs, kind)
}

/// The same of one of whisper.cpp's files.
pub fn from_ggml(file: &Path, graphs: [File; 2], kind: GraphType) -> Converted<()> {
    let weights = Ggml::open(file)?;
    let shape = Shape::of(&weights)?;
    write(&weights, shape, &weights.tokens()?, None, graphs, kind)
}

fn write(
    weights: &dyn Checkpoint,
    shape: Shape,
    tokens: &[String],
    heads: Option<Vec<Head>>,
    [encoder, decoder]: [File; 2],
    kind: GraphType,
) -> Converted<()> {
    if shape.audio_state != shape.text_state {
        return Err(ConvertError::input(format!(
            "an encoder of width {} beside a decoder of width {} is not known",
            shape.audio_state, shape.text_state
        )));
    }
    if shape.audio_layers == 0 || shape.text_layers == 0 {
        return Err(ConvertError::input("it has no layers"));
    }
    let mut parameters = Parameters {
        weights,
        balance: Balance::default(),
    };
    if kind == GraphType::Int8 {
        parameters.balance = Balance::of(&parameters, &shape)?;
    }
    let model = Model {
        parameters,
        width: shape.audio_state,
        heads: (shape.audio_state / HEAD_WIDTH) as i64,
        alignment: alignment_heads(heads, &shape)?,
        vocabulary: vocabulary(tokens, &shape)?,
        shape,
        kind,
    };
    model.encoder(encoder)?;
    model.decoder(decoder)
}

/// Layers and heads of the decoder whose attention follows the sound, in order: what the model says, those of OpenAI's model
/// of that size, or else all of the upper half, which is OpenAI's default.
fn alignment_heads(stated: Option<Vec<Head>>, shape: &Shape) -> Converted<Vec<Head>> {
    let (layers, heads) = (shape.text_layers, shape.text_state / HEAD_WIDTH);
    let size = (shape.text_state, layers, shape.vocabulary);
    let known = OPENAI_HEADS.iter().find(|(own, _)| *own == size);
    let mut alignment = match stated {
        Some(stated) if !stated.is_empty() => stated,
        _ => match known {
            Some((_, heads)) => heads.to_vec(),
            None => (layers / 2..layers)
                .flat_map(|layer| (0..heads).map(move |head| (layer, head)))
                .collect(),
        },
    };
    alignment.sort_unstable();
    alignment.dedup();
    match alignment.iter().find(|(l, h)| *l >= layers || *h >= heads) {
        Some((layer, head)) => Err(ConvertError::input(format!(
            "its configuration names head {head} of layer {layer}, and there are {layers} layers of {heads}"
        ))),
        None => Ok(alignment),
    }
}

/// The model's tokens, one a line.
fn vocabulary(tokens: &[String], shape: &Shape) -> Converted<String> {
    let tokens = &tokens[..tokens.len().min(shape.vocabulary)];
    // Refuses what is not in the alphabet.
    ggml::plain_tokens(tokens, shape.is_multilingual())?;
    match tokens.iter().position(|token| token.contains('\n')) {
        Some(number) => Err(ConvertError::input(format!(
            "token {number} has more than one line"
        ))),
        None => Ok(tokens.join("\n")),
    }
}

/// The weights as they go into the graphs, their shapes checked.
pub struct Parameters<'a> {
    weights: &'a dyn Checkpoint,
    balance: Balance,
}

impl Parameters<'_> {
    fn array(&self, name: &str, shape: &[usize]) -> Converted<Array> {
        let array = self.weights.array(name)?;
        if array.shape != shape {
            return Err(ConvertError::input(format!(
                "{name} has the shape {:?} and should have {shape:?}",
                array.shape
            )));
        }
        if array.values.iter().all(|value| value.is_finite()) {
            Ok(array)
        } else {
            Err(ConvertError::input(format!(
                "{name} holds values that are no numbers"
            )))
        }
    }

    fn norm(&self, name: &str, width: usize) -> Converted<(Vec<f32>, Vec<f32>)> {
        let mut gamma = self.array(&format!("{name}/gamma"), &[width])?.values;
        let mut beta = self.array(&format!("{name}/beta"), &[width])?.values;
        self.balance.norm(name, &mut gamma);
        self.balance.norm(name, &mut beta);
        Ok((gamma, beta))
    }

    /// A matrix `[rows, columns]`, of any number of rows if none is given, and its bias.
    fn linear(
        &self,
        name: &str,
        rows: Option<usize>,
        columns: usize,
    ) -> Converted<(Array, Vec<f32>)> {
        let weight = format!("{name}/weight");
        let rows = match rows {
            Some(rows) => rows,
            None => self.weights.matrix_shape(&weight)?.0,
        };
        let mut weight = self.array(&weight, &[rows, columns])?;
        let bias = self.array(&format!("{name}/bias"), &[rows])?.values;
        self.balance.matrix(name, &mut weight);
        Ok((weight, bias))
    }

    /// A convolution over three frames as a matrix: each row has the first frame's weights, the second's, the third's.
    fn convolution(&self, name: &str, rows: usize, columns: usize) -> Converted<(Array, Vec<f32>)> {
        let taps = self.array(&format!("{name}/weight"), &[rows, columns, 3])?;
        let bias = self.array(&format!("{name}/bias"), &[rows])?.values;
        let row = |row: &[f32]| {
            let tap = |tap| row.iter().skip(tap).step_by(3).copied();
            (0..3).flat_map(tap).collect::<Vec<_>>()
        };
        let values = taps.values.chunks_exact(3 * columns).flat_map(row);
        let weight = Array {
            shape: vec![rows, 3 * columns],
            values: values.collect(),
        };
        Ok((weight, bias))
    }
}

struct Model<'a> {
    parameters: Parameters<'a>,
    shape: Shape,
    width: usize,
    heads: i64,
    alignment: Vec<Head>,
    vocabulary: String,
    kind: GraphType,
}

/// A cache's port: `[rows, H, …]`.
fn cache<'a>(name: String, rows: &'a str, heads: i64, rest: [Dimension<'a>; 2]) -> Port<'a> {
    let heads = Dimension::Fixed(heads.cast_unsigned());
    Port {
        name,
        element: Element::F32,
        shape: vec![Dimension::Free(rows), heads, rest[0], rest[1]],
    }
}

impl Model<'_> {
    fn encoder(&self, out: File) -> Converted<()> {
        let (width, mels) = (self.width, self.shape.mel_bands);
        let mut g = Graph::new(self.kind == GraphType::F16);
        // Three frames side by side: the one before, itself, the one behind.
        let mel = g.inward("mel");
        let edges = g.ints(&[0, 1, 0, 0, 1, 0]);
        let padded = g.op("Pad", &[&mel, &edges]);
        let before = g.slice(&padded, 0, -2, 1);
        let behind = g.slice(&padded, 2, END, 1);
        let x = g.concat(&[&before, &mel, &behind], 2);
        let (w, b) = self.parameters.convolution("encoder/conv1", width, mels)?;
        let x = g.linear(&x, "conv1", &w, Some(&b), Linear::Plain);
        let x = g.op("Gelu", &[&x]);
        // Every second one: frame t is made of 2t - 1, 2t and 2t + 1.
        let pairs = g.reshape(&x, &[0, -1, 2 * width as i64]);
        let second = g.slice(&pairs, width as i64, END, 2);
        let edge = g.ints(&[0, 1, 0, 0, 0, 0]);
        let second = g.op("Pad", &[&second, &edge]);
        let before = g.slice(&second, 0, -1, 1);
        let x = g.concat(&[&before, &pairs], 2);
        let (w, b) = self.parameters.convolution("encoder/conv2", width, width)?;
        let x = g.linear(&x, "conv2", &w, Some(&b), Linear::Plain);
        let x = g.op("Gelu", &[&x]);
        let mut x = self.encoder_positions(&mut g, &x)?;
        for layer in 0..self.shape.audio_layers {
            x = self.encoder_layer(&mut g, x, layer)?;
        }
        let x = self.norm(&mut g, &x, "encoder/layer_norm")?;
        let mut outputs = Vec::new();
        for layer in 0..self.shape.text_layers {
            outputs.extend(self.cross_keys_and_values(&mut g, &x, layer)?);
        }
        let input = Port {
            name: "mel".into(),
            element: Element::F32,
            shape: vec![
                Dimension::Free("B"),
                Dimension::Free("T"),
                Dimension::Fixed(mels as u64),
            ],
        };
        let notes = [("whisper", self.sizes())];
        self.write(&g, "encoder", out, &[input], &outputs, &notes)
    }

    fn encoder_positions(&self, g: &mut Graph, x: &str) -> Converted<Value> {
        let length = g.length(x, 2);
        let shape = [self.shape.audio_context, self.width];
        let name = "encoder/position_encodings/encodings";
        let table = self.parameters.array(name, &shape)?.values;
        let table = g.floats("positions", &shape, &table);
        let zero = g.ints(&[0]);
        let positions = g.op("Slice", &[&table, &zero, &length, &zero]);
        Ok(g.op("Add", &[x, &positions]))
    }

    fn encoder_layer(&self, g: &mut Graph, x: Value, layer: usize) -> Converted<Value> {
        let name = format!("encoder/layer_{layer}");
        let (own, feed) = (format!("{name}/self_attention"), format!("{name}/ffn"));
        let y = self.norm(g, &x, &format!("{own}/layer_norm"))?;
        let from = format!("{own}/linear_0");
        let y = self.linear(g, &y, &format!("{name}/qkv"), &from, (3, 1))?;
        let y = match self.has_operators() {
            true => g.op(attention::NAME, &[&y]),
            false => {
                let [q, k, v] = g.split(&y, 2);
                let heads = [("num_heads", Attribute::Int(self.heads))];
                g.op_with("MultiHeadAttention", &[&q, &k, &v], &heads)
            }
        };
        let from = format!("{own}/linear_1");
        let to = format!("{name}/attn_out");
        let y = match layer {
            0 => self.exact_linear(g, &y, &to, &from, (1, 1))?,
            _ => self.linear(g, &y, &to, &from, (1, 1))?,
        };
        let x = g.op("Add", &[&x, &y]);
        self.feed_forward(g, x, &name, &feed)
    }

    /// The half of a layer that both sides have.
    fn feed_forward(&self, g: &mut Graph, x: Value, name: &str, feed: &str) -> Converted<Value> {
        let y = self.norm(g, &x, &format!("{feed}/layer_norm"))?;
        let from = format!("{feed}/linear_0");
        let y = self.linear(g, &y, &format!("{name}/ffn1"), &from, (4, 1))?;
        let y = g.op("Gelu", &[&y]);
        let (to, from) = (format!("{name}/ffn2"), format!("{feed}/linear_1"));
        let y = self.linear(g, &y, &to, &from, (1, 4))?;
        Ok(g.op("Add", &[&x, &y]))
    }

    fn cross_keys_and_values(
        &self,
        g: &mut Graph,
        x: &str,
        layer: usize,
    ) -> Converted<[Port<'static>; 2]> {
        let from = format!("decoder/layer_{layer}/attention/linear_1");
        let both = self.linear(g, x, &format!("cross_{layer}"), &from, (2, 1))?;
        let [k, v] = g.split(&both, 2);
        let (k_name, v_name) = (format!("cross_k_{layer}"), format!("cross_v_{layer}"));
        for (part, name, axes) in [(k, &k_name, [0, 2, 3, 1]), (v, &v_name, [0, 2, 1, 3])] {
            let part = g.reshape(&part, &[0, 0, self.heads, HEAD_WIDTH as i64]);
            let axes = [("perm", Attribute::Ints(&axes))];
            g.outward("Transpose", &[&part], name, &axes);
        }
        let positions = Dimension::Free("S");
        Ok([
            cache(k_name, "B", self.heads, [WIDTH, positions]),
            cache(v_name, "B", self.heads, [positions, WIDTH]),
        ])
    }

    fn decoder(&self, out: File) -> Converted<()> {
        let (width, tokens) = (self.width, self.shape.vocabulary);
        let mut g = Graph::new(self.kind == GraphType::F16);
        let name = "decoder/embeddings/weight";
        let table = self.parameters.array(name, &[tokens, width])?;
        let mut x = self.embedded(&mut g, &table)?;
        let free = |name: &'static str| Dimension::Free(name);
        let whole = |name: &str| Port {
            name: name.into(),
            element: Element::I64,
            shape: vec![free("R"), free("n")],
        };
        let mut inputs = vec![whole("tokens"), whole("pos")];
        inputs.push(match self.has_operators() {
            true => Port {
                name: "index".into(),
                element: Element::I64,
                shape: vec![free("R"), free("P")],
            },
            false => Port {
                name: "mask".into(),
                element: Element::F32,
                shape: vec![free("R"), Dimension::Fixed(1), free("n"), free("Pn")],
            },
        });
        let mut outputs = vec![Port {
            name: "logits".into(),
            element: Element::F32,
            shape: vec![free("R"), Dimension::Fixed(tokens as u64)],
        }];
        let (mut fresh, mut align) = (Vec::new(), Vec::new());
        let mask = match self.has_operators() {
            true => Value::new(),
            false => g.inward_mask("mask"),
        };
        for layer in 0..self.shape.text_layers {
            x = self.decoder_layer(&mut g, x, layer, &mask, &mut align)?;
            let port =
                |name: &str, rows, shape| cache(format!("{name}_{layer}"), rows, self.heads, shape);
            if self.has_operators() {
                inputs.extend(self.kept(layer));
                let rows = [free("R"), free("n")];
                fresh.push(self.entries(format!("new_{layer}"), &rows));
                continue;
            }
            inputs.push(port("self_k", "R", [WIDTH, free("P")]));
            inputs.push(port("self_v", "R", [free("P"), WIDTH]));
            inputs.push(port("cross_k", "W", [WIDTH, free("S")]));
            inputs.push(port("cross_v", "W", [free("S"), WIDTH]));
            fresh.push(port("new_k", "R", [WIDTH, free("n")]));
            fresh.push(port("new_v", "R", [free("n"), WIDTH]));
        }
        // The last token's, without the axis of tokens: what the vocabulary makes of it is large to copy.
        let last = g.slice(&x, -1, END, 1);
        let last = g.reshape(&last, &[0, width as i64]);
        let last = self.norm(&mut g, &last, "decoder/layer_norm")?;
        g.linear_outward(&last, "logits_w", &table, self.kind.into(), "logits");
        let align: Vec<&str> = align.iter().map(String::as_str).collect();
        g.outward("Concat", &align, "align", &[("axis", Attribute::Int(1))]);
        outputs.push(Port {
            name: "align".into(),
            element: Element::F32,
            shape: vec![
                free("W"),
                Dimension::Fixed(self.alignment.len() as u64),
                free("Nn"),
                free("S"),
            ],
        });
        outputs.extend(fresh);
        let notes = [
            ("whisper", self.sizes()),
            ("vocabulary", self.vocabulary.clone()),
        ];
        self.write(&g, "decoder", out, &inputs, &outputs, &notes)
    }

    /// The tokens' vectors and their positions'.
    fn embedded(&self, g: &mut Graph, table: &Array) -> Converted<Value> {
        let halves = halves::bytes_of(&table.values);
        let rows = g.constant("tokens.f16", &table.shape, Element::F16, &halves);
        let rows = g.op("Gather", &[&rows, "tokens"]);
        let rows = g.inward_halves(&rows);
        let shape = [self.shape.text_context, self.width];
        let name = "decoder/position_encodings/encodings";
        let positions = self.parameters.array(name, &shape)?.values;
        let positions = g.floats("positions", &shape, &positions);
        let positions = g.op("Gather", &[&positions, "pos"]);
        Ok(g.op("Add", &[&rows, &positions]))
    }

    fn decoder_layer(
        &self,
        g: &mut Graph,
        x: Value,
        layer: usize,
        mask: &str,
        align: &mut Vec<Value>,
    ) -> Converted<Value> {
        let name = format!("decoder/layer_{layer}");
        let y = self.self_attention(g, &x, layer, mask)?;
        let from = format!("{name}/self_attention/linear_1");
        let y = self.linear(g, &y, &format!("{name}/self_out"), &from, (1, 1))?;
        let x = g.op("Add", &[&x, &y]);
        let y = self.cross_attention(g, &x, layer, align)?;
        let from = format!("{name}/attention/linear_2");
        let y = self.linear(g, &y, &format!("{name}/cross_out"), &from, (1, 1))?;
        let x = g.op("Add", &[&x, &y]);
        self.feed_forward(g, x, &name, &format!("{name}/ffn"))
    }

    /// Attention to the tokens before. Those of the cache and the new ones are scored apart, so that nothing of the
    /// cache is copied.
    fn self_attention(&self, g: &mut Graph, x: &str, layer: usize, mask: &str) -> Converted<Value> {
        let name = format!("decoder/layer_{layer}");
        let attention = format!("{name}/self_attention");
        let (mut w, mut b) = self.parameters.linear(
            &format!("{attention}/linear_0"),
            Some(3 * self.width),
            self.width,
        )?;
        let queries = w.values[..self.width * self.width].iter_mut();
        queries
            .chain(&mut b[..self.width])
            .for_each(|v| *v *= SCORE_SCALE);
        let y = self.norm(g, x, &format!("{attention}/layer_norm"))?;
        let y = g.linear(&y, &format!("{name}/qkv"), &w, Some(&b), self.kind.into());
        if self.has_operators() {
            let [past, new, seen] = ["past", "new", "seen"].map(|part| format!("{part}_{layer}"));
            let inputs = [&y, &past, "index", "pos"];
            g.op_named(past::NAME, &inputs, &[&seen, &new], &[]);
            return Ok(seen);
        }
        let y = g.reshape(&y, &[0, 0, 3 * self.heads, HEAD_WIDTH as i64]);
        let y = g.transpose(&y, &[0, 2, 1, 3]);
        let [q, k, new_v, new_k, self_k, self_v] =
            ["q", "k", "new_v", "new_k", "self_k", "self_v"].map(|part| format!("{part}_{layer}"));
        let v = g.given(&new_v);
        g.split_named(&y, 1, &[&q, &k, &v]);
        g.give(&v, &new_v);
        let axes = [("perm", Attribute::Ints(&[0, 1, 3, 2]))];
        let new_k = g.outward("Transpose", &[&k], &new_k, &axes);
        let (old_k, old_v) = (g.inward(&self_k), g.inward(&self_v));
        let old_scores = g.op("MatMul", &[&q, &old_k]);
        let new_scores = g.op("MatMul", &[&q, &new_k]);
        let scores = g.concat(&[&old_scores, &new_scores], 3);
        let scores = g.op("Add", &[&scores, mask]);
        let shares = g.softmax(&scores);
        let kept = g.length(&self_v, 3);
        let (zero, three) = (g.ints(&[0]), g.ints(&[3]));
        let old = g.op("Slice", &[&shares, &zero, &kept, &three]);
        let end = g.ints(&[END]);
        let new = g.op("Slice", &[&shares, &kept, &end, &three]);
        let old = g.op("MatMul", &[&old, &old_v]);
        let new = g.op("MatMul", &[&new, &v]);
        let y = g.op("Add", &[&old, &new]);
        let y = g.transpose(&y, &[0, 2, 1, 3]);
        Ok(g.reshape(&y, &[0, 0, self.width as i64]))
    }

    /// Attention to the sound. All beams of a window read its keys and values together.
    fn cross_attention(
        &self,
        g: &mut Graph,
        x: &str,
        layer: usize,
        align: &mut Vec<Value>,
    ) -> Converted<Value> {
        let name = format!("decoder/layer_{layer}");
        let attention = format!("{name}/attention");
        let (cross_k, cross_v) = (format!("cross_k_{layer}"), format!("cross_v_{layer}"));
        let (mut w, mut b) = self.parameters.linear(
            &format!("{attention}/linear_0"),
            Some(self.width),
            self.width,
        )?;
        let all = w.values.iter_mut().chain(&mut b);
        all.for_each(|v| *v *= SCORE_SCALE);
        let y = self.norm(g, x, &format!("{attention}/layer_norm"))?;
        let y = g.linear(
            &y,
            &format!("{name}/cross_q"),
            &w,
            Some(&b),
            self.kind.into(),
        );
        let followers = self.alignment.iter().filter(|(l, _)| *l == layer);
        let followers: Vec<i64> = followers.map(|&(_, head)| head as i64).collect();
        if self.has_operators() {
            let (context, shares) = (format!("context_{layer}"), format!("shares_{layer}"));
            let inputs = [&y, &cross_k, &cross_v].map(String::as_str);
            if followers.is_empty() {
                g.op_named(cross::NAME, &inputs, &[&context], &[]);
            } else {
                let heads = [("heads", Attribute::Ints(&followers))];
                g.op_named(cross::NAME, &inputs, &[&context, &shares], &heads);
                align.push(shares);
            }
            return Ok(context);
        }
        let windows = g.length(&cross_k, 1);
        let rest = g.ints(&[-1, self.heads, HEAD_WIDTH as i64]);
        let shape = g.concat(&[&windows, &rest], 0);
        let y = g.op("Reshape", &[&y, &shape]);
        let y = g.transpose(&y, &[0, 2, 1, 3]);
        let keys = g.inward(&cross_k);
        let y = g.op("MatMul", &[&y, &keys]);
        let shares = g.softmax(&y);
        for head in followers {
            align.push(g.slice(&shares, head, head + 1, 1));
        }
        let values = g.inward(&cross_v);
        let y = g.op("MatMul", &[&shares, &values]);
        let y = g.transpose(&y, &[0, 2, 1, 3]);
        let rows = g.op("Shape", &["tokens"]);
        let width = g.ints(&[self.width as i64]);
        let shape = g.concat(&[&rows, &width], 0);
        Ok(g.op("Reshape", &[&y, &shape]))
    }

    /// Whether attention is operators of ours, which are for processors.
    fn has_operators(&self) -> bool {
        self.kind == GraphType::Int8
    }

    /// Entries of tokens as our operator takes and gives them, `[…, 2, H, 64]`.
    fn entries<'a>(&self, name: String, of: &[Dimension<'a>]) -> Port<'a> {
        let entry = [
            Dimension::Fixed(2),
            Dimension::Fixed(self.heads.cast_unsigned()),
            WIDTH,
        ];
        Port {
            name,
            element: Element::U16,
            shape: [of, &entry].concat(),
        }
    }

    /// Keys and values of the texts and of the sound as our operators take them.
    fn kept(&self, layer: usize) -> [Port<'static>; 3] {
        let sound = |name: &str| Port {
            name: format!("{name}_{layer}"),
            element: Element::U8,
            shape: vec![
                Dimension::Free("W"),
                Dimension::Fixed(self.heads.cast_unsigned()),
                Dimension::Fixed((cross::PADDED / cross::TILE) as u64),
                Dimension::Fixed(cross::BLOCK as u64),
            ],
        };
        [
            self.entries(format!("past_{layer}"), &[Dimension::Free("E")]),
            sound("cross_k"),
            sound("cross_v"),
        ]
    }

    fn norm(&self, g: &mut Graph, x: &str, name: &str) -> Converted<Value> {
        let (gamma, beta) = self.parameters.norm(name, self.width)?;
        Ok(g.norm(x, name, &gamma, &beta))
    }

    /// A matrix of so many widths out and in, `to` in the graph and `from` in the model.
    fn linear(
        &self,
        g: &mut Graph,
        x: &str,
        to: &str,
        from: &str,
        widths: (usize, usize),
    ) -> Converted<Value> {
        self.linear_as(g, x, to, from, widths, self.kind.into())
    }

    /// The same, never quantised.
    fn exact_linear(
        &self,
        g: &mut Graph,
        x: &str,
        to: &str,
        from: &str,
        widths: (usize, usize),
    ) -> Converted<Value> {
        self.linear_as(g, x, to, from, widths, Linear::Plain)
    }

    fn linear_as(
        &self,
        g: &mut Graph,
        x: &str,
        to: &str,
        from: &str,
        (rows, columns): (usize, usize),
        kind: Linear,
    ) -> Converted<Value> {
        let rows = Some(rows * self.width);
        let (w, b) = self.parameters.linear(from, rows, columns * self.width)?;
        Ok(g.linear(x, to, &w, Some(&b), kind))
    }

    /// The sizes as JSON.
    fn sizes(&self) -> String {
        let alignment: Vec<String> = self
            .alignment
            .iter()
            .map(|(layer, head)| format!("[{layer}, {head}]"))
            .collect();
        let Shape {
            mel_bands,
            audio_layers,
            text_layers,
            vocabulary,
            ..
        } = self.shape;
        format!(
            "{{\"width\": {}, \"mels\": {mel_bands}, \"heads\": {}, \"enc\": {audio_layers}, \"dec\": {text_layers}, \
             \"vocab\": {vocabulary}, \"type\": \"{}\", \"alignment_heads\": [{}]{}}}",
            self.width,
            self.heads,
            self.kind.word(),
            alignment.join(", "),
            match self.has_operators() {
                true => ", \"operators\": 1",
                false => "",
            }
        )
    }

    fn write(
        &self,
        g: &Graph,
        side: &str,
        out: File,
        inputs: &[Port<'_>],
        outputs: &[Port<'_>],
        notes: &[(&str, String)],
    ) -> Converted<()> {
        let mut out = BufWriter::with_capacity(1 << 20, out);
        let written = g.write("whisper", &mut out, inputs, outputs, notes)?;
        written.map_err(|bytes| {
            ConvertError::input(format!(
                "the {side} has {bytes} bytes as {}, and an ONNX file 2 GiB at most: int8 has a quarter of f32",
                self.kind.word()
            ))
        })
    }
}

impl From<GraphType> for Linear {
    fn from(kind: GraphType) -> Self {
        match kind {
            GraphType::Int8 => Self::Int8,
            GraphType::F32 | GraphType::F16 => Self::Plain,
        }
    }
}
