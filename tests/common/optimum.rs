// SPDX-License-Identifier: MPL-2.0
//! tiny.en in the layout of Optimum's exports, made out of our own graphs of 32 bits: names, shapes and files are those of
//! `optimum-cli export onnx`, the operations our own. Nothing of it is kept.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use gstscribe::inference::onnx::float_constants;

const LAYERS: usize = 4;
const HEADS: i64 = 6;
const WIDTH: i64 = 384;
const VOCAB: i64 = 51_864;
const END: i64 = 1 << 31;

const FLOAT: u64 = 1;
const INT64: u64 = 7;
const BOOL: u64 = 9;
const HALF: u64 = 10;

/// What an export is to be like.
#[derive(Clone, Copy, PartialEq)]
pub struct Like {
    /// Both branches in one file.
    pub merged: bool,
    /// Floats that go in and come out have 16 bits.
    pub half: bool,
    /// The decoders show their attention to the sound.
    pub attention: bool,
    /// The decoders take the positions of the tokens.
    pub places: bool,
    /// Weights lie in a file beside each graph.
    pub outside: bool,
}

/// As `onnx-community` has most of them.
pub const USUAL: Like = Like {
    merged: true,
    half: false,
    attention: false,
    places: false,
    outside: false,
};

/// Writes the export to `folder`, from the graphs of type f32 at `encoder` and beside it. `ending` is that of the graphs'
/// names.
pub fn export(encoder: &Path, decoder: &Path, folder: &Path, like: Like, ending: &str) {
    let encoder = fs::read(encoder).unwrap();
    let decoder = fs::read(decoder).unwrap();
    let mut weights = HashMap::new();
    for (side, bytes) in [("e", &encoder), ("d", &decoder)] {
        for constant in float_constants(bytes).unwrap() {
            let shape = constant.shape.iter().map(|n| *n as i64).collect();
            weights.insert(
                format!("{side}:{}", constant.name),
                (shape, constant.raw.to_vec()),
            );
        }
    }
    let graphs = folder.join("onnx");
    fs::create_dir_all(&graphs).unwrap();
    let write = |name: &str, bytes: Vec<u8>| {
        let name = format!("{name}{ending}.onnx");
        let bytes = match like.outside {
            true => {
                let data_name = format!("{name}_data");
                let (bytes, data) = weights_outside(&bytes, &data_name);
                fs::write(graphs.join(data_name), data).unwrap();
                bytes
            }
            false => bytes,
        };
        fs::write(graphs.join(name), bytes).unwrap();
    };
    write("encoder_model", encoder_model(&weights, like));
    if like.merged {
        write("decoder_model_merged", merged(&weights, like));
    } else {
        write("decoder_model", alone(&weights, like, false));
        write("decoder_with_past_model", alone(&weights, like, true));
    }
    texts(folder, &property(&decoder, "vocabulary"));
}

/// `config.json` and its like.
fn texts(folder: &Path, vocabulary: &str) {
    let config = format!(
        r#"{{"model_type": "whisper", "d_model": {WIDTH}, "encoder_layers": 4, "decoder_layers": {LAYERS},
            "encoder_attention_heads": {HEADS}, "decoder_attention_heads": {HEADS}, "num_mel_bins": 80,
            "vocab_size": {VOCAB}, "max_source_positions": 1500, "max_target_positions": 448}}"#
    );
    fs::write(folder.join("config.json"), config).unwrap();
    let generation = r#"{"alignment_heads": [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]],
        "begin_suppress_tokens": [220, 50256], "decoder_start_token_id": 50257, "no_timestamps_token_id": 50362,
        "suppress_tokens": [1, 2, 50357, 50358]}"#;
    fs::write(folder.join("generation_config.json"), generation).unwrap();
    let tokens: Vec<&str> = vocabulary.split('\n').collect();
    let plain = tokens[..50_256].iter().zip(0..);
    let plain: serde_json::Map<_, _> = plain.map(|(t, n)| ((*t).to_owned(), n.into())).collect();
    let marks = tokens[50_256..].iter().zip(50_256..);
    let marks = marks.filter(|(text, _)| !text.is_empty());
    let marks: Vec<_> = marks
        .map(|(text, id)| serde_json::json!({"id": id, "content": text, "special": true}))
        .collect();
    let tokenizer = serde_json::json!({"added_tokens": marks, "model": {"type": "BPE", "vocab": plain, "merges": []}});
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

type Weights = HashMap<String, (Vec<i64>, Vec<u8>)>;

// protobuf

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(field: u64, value: u64, out: &mut Vec<u8>) {
    varint(field << 3, out);
    varint(value, out);
}

fn bytes(field: u64, value: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// A property of a model.
fn property(model: &[u8], key: &str) -> String {
    let read = |at: &mut usize| {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = model[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let mut at = 0;
    while at < model.len() {
        let field = read(&mut at);
        let value = read(&mut at);
        if field & 7 != 2 {
            continue;
        }
        let end = at + value as usize;
        let mut entry = Vec::new();
        bytes(1, key.as_bytes(), &mut entry);
        if field >> 3 == 14 && model[at..end].starts_with(&entry) {
            at += entry.len() + 1;
            let length = read(&mut at) as usize;
            return String::from_utf8(model[at..at + length].to_vec()).unwrap();
        }
        at = end;
    }
    panic!("no property {key}");
}

fn tensor(name: &str, kind: u64, shape: &[i64], raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    shape.iter().for_each(|n| number(1, *n as u64, &mut out));
    number(2, kind, &mut out);
    bytes(8, name.as_bytes(), &mut out);
    bytes(9, raw, &mut out);
    out
}

/// An input or an output; a length below 0 is open.
fn port(name: &str, kind: u64, shape: &[i64]) -> Vec<u8> {
    let mut lengths = Vec::new();
    for (n, length) in shape.iter().enumerate() {
        let mut dim = Vec::new();
        match length {
            0.. => number(1, *length as u64, &mut dim),
            _ => bytes(2, format!("{name}.{n}").as_bytes(), &mut dim),
        }
        bytes(1, &dim, &mut lengths);
    }
    let mut tensor = Vec::new();
    number(1, kind, &mut tensor);
    bytes(2, &lengths, &mut tensor);
    let mut of = Vec::new();
    bytes(1, &tensor, &mut of);
    let mut out = Vec::new();
    bytes(1, name.as_bytes(), &mut out);
    bytes(2, &of, &mut out);
    out
}

enum Attribute<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Float(f32),
    Graph(&'a [u8]),
}

/// A graph as it grows. Names of its values begin with `prefix`, so that two fit into one.
struct Graph<'a> {
    prefix: &'static str,
    weights: &'a Weights,
    nodes: Vec<Vec<u8>>,
    constants: HashMap<String, Vec<u8>>,
    count: usize,
}

impl<'a> Graph<'a> {
    fn new(prefix: &'static str, weights: &'a Weights) -> Self {
        Self {
            prefix,
            weights,
            nodes: Vec::new(),
            constants: HashMap::new(),
            count: 0,
        }
    }

    fn named(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        let mut out = Vec::new();
        inputs.iter().for_each(|v| bytes(1, v.as_bytes(), &mut out));
        outputs
            .iter()
            .for_each(|v| bytes(2, v.as_bytes(), &mut out));
        bytes(4, op.as_bytes(), &mut out);
        for (name, value) in attributes {
            let mut of = Vec::new();
            bytes(1, name.as_bytes(), &mut of);
            let kind = match value {
                Attribute::Int(value) => {
                    number(3, *value as u64, &mut of);
                    2
                }
                Attribute::Ints(values) => {
                    values.iter().for_each(|v| number(8, *v as u64, &mut of));
                    7
                }
                Attribute::Float(value) => {
                    varint(2 << 3 | 5, &mut of);
                    of.extend_from_slice(&value.to_le_bytes());
                    1
                }
                Attribute::Graph(graph) => {
                    bytes(6, graph, &mut of);
                    5
                }
            };
            number(20, kind, &mut of);
            bytes(5, &of, &mut out);
        }
        if op == "MultiHeadAttention" {
            bytes(7, b"com.microsoft", &mut out);
        }
        self.nodes.push(out);
    }

    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("{}{}", self.prefix, self.count)
    }

    fn with(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let name = self.fresh();
        self.named(op, inputs, &[&name], attributes);
        name
    }

    fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.with(op, inputs, &[])
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let words: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("i{}", words.join("_"));
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = tensor(&name, INT64, &[values.len() as i64], &raw);
        self.constants.insert(name.clone(), tensor);
        name
    }

    /// A number without a shape.
    fn int(&mut self, value: i64) -> String {
        let name = format!("s{value}");
        self.constants.insert(
            name.clone(),
            tensor(&name, INT64, &[], &value.to_le_bytes()),
        );
        name
    }

    fn float(&mut self, name: &str, value: f32) -> String {
        self.constants
            .insert(name.into(), tensor(name, FLOAT, &[], &value.to_le_bytes()));
        name.into()
    }

    /// A weight of our own graphs.
    fn weight(&mut self, name: &str) -> String {
        let (shape, raw) = self
            .weights
            .get(name)
            .unwrap_or_else(|| panic!("no {name}"));
        self.constants
            .insert(name.into(), tensor(name, FLOAT, shape, raw));
        name.into()
    }

    fn linear(&mut self, x: &str, name: &str) -> String {
        let w = self.weight(&format!("{name}.w"));
        let product = self.op("MatMul", &[x, &w]);
        let bias = self.weight(&format!("{name}.bias"));
        self.op("Add", &[&product, &bias])
    }

    fn norm(&mut self, x: &str, name: &str) -> String {
        let (g, b) = (
            self.weight(&format!("{name}.g")),
            self.weight(&format!("{name}.b")),
        );
        let attributes = [
            ("axis", Attribute::Int(-1)),
            ("epsilon", Attribute::Float(1e-5)),
        ];
        self.with("LayerNormalization", &[x, &g, &b], &attributes)
    }

    fn slice(&mut self, x: &str, from: i64, to: i64, axis: i64) -> String {
        let (from, to, axis) = (self.ints(&[from]), self.ints(&[to]), self.ints(&[axis]));
        self.op("Slice", &[x, &from, &to, &axis])
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape])
    }

    fn transpose(&mut self, x: &str, axes: &[i64]) -> String {
        self.with("Transpose", &[x], &[("perm", Attribute::Ints(axes))])
    }

    fn concat(&mut self, values: &[&str], axis: i64) -> String {
        self.with("Concat", values, &[("axis", Attribute::Int(axis))])
    }

    fn split<const N: usize>(&mut self, x: &str, axis: i64) -> [String; N] {
        let names: [String; N] = std::array::from_fn(|_| self.fresh());
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        let attributes = [
            ("axis", Attribute::Int(axis)),
            ("num_outputs", Attribute::Int(N as i64)),
        ];
        self.named("Split", &[x], &outputs, &attributes);
        names
    }

    fn softmax(&mut self, x: &str) -> String {
        self.with("Softmax", &[x], &[("axis", Attribute::Int(-1))])
    }

    fn heads(&mut self, x: &str, all: i64) -> String {
        let x = self.reshape(x, &[0, 0, all * HEADS, 64]);
        self.transpose(&x, &[0, 2, 1, 3])
    }

    fn together(&mut self, x: &str) -> String {
        let x = self.transpose(x, &[0, 2, 1, 3]);
        self.reshape(&x, &[0, 0, WIDTH])
    }

    /// An input of floats as the graph works with them.
    fn inward(&mut self, name: &str, half: bool) -> String {
        match half {
            true => self.with("Cast", &[name], &[("to", Attribute::Int(FLOAT as i64))]),
            false => name.into(),
        }
    }

    /// Has a value come out under that name.
    fn outward(&mut self, value: &str, name: &str, half: bool) {
        match half {
            true => self.named(
                "Cast",
                &[value],
                &[name],
                &[("to", Attribute::Int(HALF as i64))],
            ),
            false => self.named("Identity", &[value], &[name], &[]),
        }
    }

    fn graph(&self, inputs: &[Vec<u8>], outputs: &[Vec<u8>], with_constants: bool) -> Vec<u8> {
        let mut out = Vec::new();
        self.nodes.iter().for_each(|node| bytes(1, node, &mut out));
        bytes(2, b"graph", &mut out);
        if with_constants {
            self.constants.values().for_each(|c| bytes(5, c, &mut out));
        }
        inputs.iter().for_each(|port| bytes(11, port, &mut out));
        outputs.iter().for_each(|port| bytes(12, port, &mut out));
        out
    }
}

fn model(graph: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    number(1, 10, &mut out);
    bytes(7, graph, &mut out);
    for (domain, version) in [("", 20), ("com.microsoft", 1)] {
        let mut set = Vec::new();
        bytes(1, domain.as_bytes(), &mut set);
        number(2, version, &mut set);
        bytes(8, &set, &mut out);
    }
    out
}

/// The fields of a message that are bytes, with the numbers between them as they are.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8], bool)> {
    fn read(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = read(&mut message);
        let before = message;
        let value = read(&mut message);
        if key & 7 == 2 {
            let (own, rest) = message.split_at(value as usize);
            found.push((key >> 3, own, true));
            message = rest;
        } else {
            let length = before.len() - message.len();
            found.push((key >> 3, &before[..length], false));
        }
    }
    found
}

fn put(field: u64, value: &[u8], is_bytes: bool, out: &mut Vec<u8>) {
    if is_bytes {
        return bytes(field, value, out);
    }
    varint(field << 3, out);
    out.extend_from_slice(value);
}

/// The model with the data of its larger weights in another file, as `onnx.save_model(save_as_external_data=True)` puts them, and
/// what is in that.
fn weights_outside(model: &[u8], data_name: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut data) = (Vec::new(), Vec::new());
    for (field, value, is_bytes) in fields(model) {
        if field != 7 {
            put(field, value, is_bytes, &mut out);
            continue;
        }
        let mut graph = Vec::new();
        for (field, value, is_bytes) in fields(value) {
            let mut tensor = Vec::new();
            if field == 5 && value.len() > 1024 {
                for (field, value, is_bytes) in fields(value) {
                    if field != 9 {
                        put(field, value, is_bytes, &mut tensor);
                        continue;
                    }
                    let place = [
                        ("location", data_name.to_owned()),
                        ("offset", data.len().to_string()),
                        ("length", value.len().to_string()),
                    ];
                    for (key, text) in place {
                        let mut entry = Vec::new();
                        bytes(1, key.as_bytes(), &mut entry);
                        bytes(2, text.as_bytes(), &mut entry);
                        bytes(13, &entry, &mut tensor);
                    }
                    number(14, 1, &mut tensor);
                    data.extend_from_slice(value);
                    // They begin where pages do.
                    data.resize(data.len().next_multiple_of(4096), 0);
                }
            }
            let value = if tensor.is_empty() { value } else { &tensor };
            put(field, value, is_bytes, &mut graph);
        }
        bytes(7, &graph, &mut out);
    }
    (out, data)
}

fn floats(like: Like) -> u64 {
    if like.half { HALF } else { FLOAT }
}

fn encoder_model(weights: &Weights, like: Like) -> Vec<u8> {
    let mut g = Graph::new("e", weights);
    let features = g.inward("input_features", like.half);
    let mel = g.transpose(&features, &[0, 2, 1]);
    let edges = g.ints(&[0, 1, 0, 0, 1, 0]);
    let padded = g.op("Pad", &[&mel, &edges]);
    let (before, behind) = (g.slice(&padded, 0, -2, 1), g.slice(&padded, 2, END, 1));
    let x = g.concat(&[&before, &mel, &behind], 2);
    let x = g.linear(&x, "e:conv1");
    let x = g.op("Gelu", &[&x]);
    let pairs = g.reshape(&x, &[0, -1, 2 * WIDTH]);
    let second = g.slice(&pairs, WIDTH, END, 2);
    let edge = g.ints(&[0, 1, 0, 0, 0, 0]);
    let second = g.op("Pad", &[&second, &edge]);
    let before = g.slice(&second, 0, -1, 1);
    let x = g.concat(&[&before, &pairs], 2);
    let x = g.linear(&x, "e:conv2");
    let x = g.op("Gelu", &[&x]);
    let positions = g.weight("e:positions");
    let mut x = g.op("Add", &[&x, &positions]);
    for layer in 0..LAYERS {
        let name = format!("e:encoder/layer_{layer}");
        let y = g.norm(&x, &format!("{name}/self_attention/layer_norm"));
        let y = g.linear(&y, &format!("{name}/qkv"));
        let [q, k, v] = g.split(&y, 2);
        let heads = [("num_heads", Attribute::Int(HEADS))];
        let y = g.with("MultiHeadAttention", &[&q, &k, &v], &heads);
        let y = g.linear(&y, &format!("{name}/attn_out"));
        let z = g.op("Add", &[&x, &y]);
        x = feed_forward(&mut g, &z, &name);
    }
    let x = g.norm(&x, "e:encoder/layer_norm");
    g.outward(&x, "last_hidden_state", like.half);
    let inputs = [port("input_features", floats(like), &[-1, 80, 3000])];
    let outputs = [port("last_hidden_state", floats(like), &[-1, 1500, WIDTH])];
    model(&g.graph(&inputs, &outputs, true))
}

fn feed_forward(g: &mut Graph, x: &str, name: &str) -> String {
    let y = g.norm(x, &format!("{name}/ffn/layer_norm"));
    let y = g.linear(&y, &format!("{name}/ffn1"));
    let y = g.op("Gelu", &[&y]);
    let y = g.linear(&y, &format!("{name}/ffn2"));
    g.op("Add", &[x, &y])
}

/// One branch; its outputs have `end` behind their names. Gives the names of the outputs.
fn branch(g: &mut Graph, like: Like, past: bool, end: &str) -> Vec<String> {
    let mut outputs = vec![format!("logits{end}")];
    let zero = g.int(0);
    let one = g.int(1);
    let length = |g: &mut Graph, x: &str, axis: i64| {
        let attributes = [
            ("end", Attribute::Int(axis + 1)),
            ("start", Attribute::Int(axis)),
        ];
        let length = g.with("Shape", &[x], &attributes);
        g.op("Squeeze", &[&length])
    };
    let steps = length(g, "input_ids", 1);
    let kept = match past {
        true => length(g, "past_key_values.0.decoder.key", 2),
        false => zero.clone(),
    };
    let all = g.op("Add", &[&kept, &steps]);
    let counted = g.op("Range", &[&kept, &all, &one]);
    let places = if like.places && past {
        "cache_position".to_owned()
    } else {
        counted
    };
    let table = g.weight("d:logits_w.w");
    let rows = g.with(
        "Gather",
        &[&table, "input_ids"],
        &[("axis", Attribute::Int(1))],
    );
    let rows = g.transpose(&rows, &[1, 2, 0]);
    let positions = g.weight("d:positions");
    let positions = g.op("Gather", &[&positions, &places]);
    let mut x = g.op("Add", &[&rows, &positions]);
    let columns = g.op("Range", &[&zero, &all, &one]);
    let last = g.ints(&[1]);
    let places = g.op("Unsqueeze", &[&places, &last]);
    let open = g.op("LessOrEqual", &[&columns, &places]);
    let (nothing, much) = (g.float("nothing", 0.0), g.float("much", -1e9));
    let mask = g.op("Where", &[&open, &nothing, &much]);
    for layer in 0..LAYERS {
        let name = format!("d:decoder/layer_{layer}");
        let of = |what: &str, side: &str, part: &str| format!("{what}.{layer}.{side}.{part}");
        let y = g.norm(&x, &format!("{name}/self_attention/layer_norm"));
        let y = g.linear(&y, &format!("{name}/qkv"));
        let y = g.heads(&y, 3);
        let [q, mut k, mut v] = g.split(&y, 1);
        if past {
            let old = g.inward(&of("past_key_values", "decoder", "key"), like.half);
            k = g.concat(&[&old, &k], 2);
            let old = g.inward(&of("past_key_values", "decoder", "value"), like.half);
            v = g.concat(&[&old, &v], 2);
        }
        for (part, value) in [("key", &k), ("value", &v)] {
            let output = of("present", "decoder", part) + end;
            g.outward(value, &output, like.half);
            outputs.push(output);
        }
        let keys = g.transpose(&k, &[0, 1, 3, 2]);
        let scores = g.op("MatMul", &[&q, &keys]);
        let scores = g.op("Add", &[&scores, &mask]);
        let shares = g.softmax(&scores);
        let y = g.op("MatMul", &[&shares, &v]);
        let y = g.together(&y);
        let y = g.linear(&y, &format!("{name}/self_out"));
        x = g.op("Add", &[&x, &y]);
        let y = g.norm(&x, &format!("{name}/attention/layer_norm"));
        let y = g.linear(&y, &format!("{name}/cross_q"));
        let q = g.heads(&y, 1);
        let [k, v] = if past {
            ["key", "value"]
                .map(|part| g.inward(&of("past_key_values", "encoder", part), like.half))
        } else {
            let states = g.inward("encoder_hidden_states", like.half);
            let both = g.linear(&states, &format!("e:cross_{layer}"));
            let parts: [String; 2] = g.split(&both, 2);
            parts.map(|part| g.heads(&part, 1))
        };
        if !past {
            for (part, value) in [("key", &k), ("value", &v)] {
                let output = of("present", "encoder", part) + end;
                g.outward(value, &output, like.half);
                outputs.push(output);
            }
        }
        let keys = g.transpose(&k, &[0, 1, 3, 2]);
        let scores = g.op("MatMul", &[&q, &keys]);
        let shares = g.softmax(&scores);
        if like.attention {
            let output = format!("cross_attentions.{layer}{end}");
            g.outward(&shares, &output, like.half);
            outputs.push(output);
        }
        let y = g.op("MatMul", &[&shares, &v]);
        let y = g.together(&y);
        let y = g.linear(&y, &format!("{name}/cross_out"));
        let z = g.op("Add", &[&x, &y]);
        x = feed_forward(g, &z, &name);
    }
    let x = g.norm(&x, "d:decoder/layer_norm");
    let logits = g.op("MatMul", &[&x, &table]);
    g.outward(&logits, &format!("logits{end}"), like.half);
    outputs
}

fn inputs(like: Like, past: bool, sound: bool) -> Vec<Vec<u8>> {
    let steps = if sound { -1 } else { 1 };
    let mut inputs = vec![port("input_ids", INT64, &[-1, steps])];
    if sound {
        inputs.push(port(
            "encoder_hidden_states",
            floats(like),
            &[-1, -1, WIDTH],
        ));
    }
    for layer in (0..LAYERS).filter(|_| past) {
        for side in ["decoder", "encoder"] {
            for part in ["key", "value"] {
                let name = format!("past_key_values.{layer}.{side}.{part}");
                inputs.push(port(&name, floats(like), &[-1, HEADS, -1, 64]));
            }
        }
    }
    if like.places && past {
        inputs.push(port("cache_position", INT64, &[-1]));
    }
    inputs
}

fn output(name: &str, shown: &str, like: Like) -> Vec<u8> {
    let shape: &[i64] = match name {
        "logits" => &[-1, -1, VOCAB],
        _ if name.starts_with("cross") => &[-1, HEADS, -1, -1],
        _ => &[-1, HEADS, -1, 64],
    };
    port(shown, floats(like), shape)
}

fn alone(weights: &Weights, like: Like, past: bool) -> Vec<u8> {
    let mut g = Graph::new("d", weights);
    let outputs = branch(&mut g, like, past, "");
    let outputs: Vec<_> = outputs
        .iter()
        .map(|name| output(name, name, like))
        .collect();
    model(&g.graph(&inputs(like, past, !past), &outputs, true))
}

/// Both branches, as Optimum joins them: weights outside, and of the branch with a past empty keys and values of the sound.
fn merged(weights: &Weights, like: Like) -> Vec<u8> {
    let mut first = Graph::new("a", weights);
    let names = branch(&mut first, like, false, ".a");
    let names: Vec<&str> = names
        .iter()
        .map(|name| name.trim_end_matches(".a"))
        .collect();
    let mut past = Graph::new("b", weights);
    branch(&mut past, like, true, ".b");
    let empty = format!("empty{}", like.half);
    let nothing = vec![0; HEADS as usize * 64 * if like.half { 2 } else { 4 }];
    let tensor = tensor(&empty, floats(like), &[1, HEADS, 1, 64], &nothing);
    past.constants.insert(empty.clone(), tensor);
    for name in names.iter().filter(|name| name.contains(".encoder.")) {
        past.named("Identity", &[&empty], &[&format!("{name}.b")], &[]);
    }
    let side = |graph: &Graph, end: &str| {
        let outputs = names
            .iter()
            .map(|name| output(name, &format!("{name}{end}"), like));
        graph.graph(&[], &outputs.collect::<Vec<_>>(), false)
    };
    let (then, otherwise) = (side(&past, ".b"), side(&first, ".a"));
    let mut whole = Graph::new("w", weights);
    whole.constants.extend(first.constants);
    whole.constants.extend(past.constants);
    let branches = [
        ("else_branch", Attribute::Graph(&otherwise)),
        ("then_branch", Attribute::Graph(&then)),
    ];
    whole.named("If", &["use_cache_branch"], &names, &branches);
    let outputs: Vec<_> = names.iter().map(|name| output(name, name, like)).collect();
    let mut inputs = inputs(like, true, true);
    inputs.push(port("use_cache_branch", BOOL, &[1]));
    model(&whole.graph(&inputs, &outputs, true))
}
