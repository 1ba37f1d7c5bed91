// SPDX-License-Identifier: MPL-2.0
//! What the two graphs of a Whisper model say of themselves, and what that makes them take.
//!
//! Their converter writes it as JSON into a property of each file; the shapes of inputs and outputs follow from it.

use serde::Deserialize;

use crate::dsp::mel::WINDOW_FRAMES;
use crate::inference::Footprint;
use crate::inference::onnx::checked::{self, Element, Port, Ports};
use crate::inference::onnx::cross::{BLOCK, PADDED, TILE};
pub(super) use crate::inference::onnx::cross::{HEAD, POSITIONS};
use crate::inference::whisper::{MAX_PROMPT_TOKENS, MAX_TOKENS};

/// Property of both files.
pub(super) const PROPERTY: &str = "whisper";
/// Marks before a text: what came before, start, language, task, no timestamps.
pub(super) const MARKS: usize = 5;
/// Positions of the decoder: as many as a prompt and a text can take.
pub(super) const TEXT: usize = 448;
const _: () = assert!(MAX_PROMPT_TOKENS + MARKS + MAX_TOKENS == TEXT);
/// Plain tokens of the English vocabulary and its marks; the multilingual one has one more, large-v3's two.
const VOCABULARY: std::ops::RangeInclusive<usize> = 51_864..=51_866;
/// Windows side by side: beyond eight a step costs as much more as it does more.
const WINDOWS_MAX: usize = 8;
/// For keys and values of the sound of all windows side by side: models that are larger take fewer.
const WINDOWS_BYTES_MAX: usize = 200 << 20;
/// Longest texts that a lane has room for, whatever the number of windows: so that several can be followed in one.
const ROWS_MIN: usize = 4;
/// Texts of each window that there is room for where they share their past, and the same of a single window.
const BEAMS: usize = 5;
const BEAMS_MIN: usize = 8;
const F32: usize = 4;
/// The form in which our operators take keys and values.
const OPERATORS: u32 = 1;
/// The name of a type of weights that a card has no product for.
const INT8: &str = "int8";
const F16: &str = "f16";
/// What CUDA's libraries take on a card for each session: whisper.cpp's take as much (docs/memory.md). Not measured.
const LIBRARIES_BYTES: u64 = 80 << 20;
/// What CUDA takes of the processor's memory for a process that computes on a card. A guess, not measured.
const CUDA_HOST_BYTES: u64 = 256 << 20;

/// Dimensions of a model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Header {
    /// Width of encoder and decoder.
    pub width: usize,
    /// Mel bands.
    pub mels: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Layers of the encoder.
    #[serde(rename = "enc")]
    pub encoder_layers: usize,
    /// Layers of the decoder.
    #[serde(rename = "dec")]
    pub layers: usize,
    /// Tokens, marks included.
    pub vocab: usize,
    /// Type of the weights, for people.
    #[serde(rename = "type")]
    pub weights: String,
    /// Layer and head of those that follow the sound; none where the graph does not give them.
    #[serde(default)]
    pub alignment_heads: Vec<[usize; 2]>,
    /// Form in which our own operators ([`crate::inference::onnx::cross`] and [`crate::inference::onnx::past`]) take keys and
    /// values; 0 without them.
    #[serde(default)]
    pub operators: u32,
    /// The first graphs with an operator of ours said this.
    #[serde(default)]
    pub cross_halves: bool,
}

impl Header {
    /// From the property's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let header: Self = serde_json::from_str(text)
            .map_err(|e| format!("its property \"{PROPERTY}\" is not understood: {e}"))?;
        if header.cross_halves || header.operators > OPERATORS {
            let which = if header.cross_halves {
                "an older"
            } else {
                "a newer"
            };
            return Err(format!(
                "it is of {which} form than this scribe: make it anew, with scribe-models fetch or import"
            ));
        }
        header
            .check()
            .map_err(|what| format!("its property \"{PROPERTY}\" says {what}"))?;
        Ok(header)
    }

    /// Whether there is such a model; what is odd, if not.
    pub fn check(&self) -> Result<(), String> {
        let (header, wrong) = (self, Err);
        if !(1..=20).contains(&header.heads) || header.width != header.heads * HEAD {
            return wrong(format!(
                "a width of {} in {} heads, and heads are {HEAD} wide",
                header.width, header.heads
            ));
        }
        let layers = 1..=32;
        if !layers.contains(&header.layers) || !layers.contains(&header.encoder_layers) {
            return wrong(format!(
                "{} and {} layers, and models have 1 to 32",
                header.encoder_layers, header.layers
            ));
        }
        if ![80, 128].contains(&header.mels) {
            return wrong(format!("{} mel bands, not 80 or 128", header.mels));
        }
        if !VOCABULARY.contains(&header.vocab) {
            return wrong(format!("{} tokens, not {VOCABULARY:?}", header.vocab));
        }
        let mut seen = Vec::new();
        for head in &header.alignment_heads {
            let [layer, number] = *head;
            if layer >= header.layers || number >= header.heads || seen.contains(head) {
                return wrong(format!(
                    "that head {number} of layer {layer} follows the sound"
                ));
            }
            seen.push(*head);
        }
        Ok(())
    }

    /// The decoder's attention is operators of ours.
    pub fn has_operators(&self) -> bool {
        self.operators > 0
    }

    /// More than English.
    pub fn multilingual(&self) -> bool {
        self.vocab > *VOCABULARY.start()
    }

    /// What the encoder takes and gives.
    pub fn encoder_ports(&self) -> Ports {
        Ports {
            inputs: vec![Port::f32("mel", &[None, None, length(self.mels)])],
            outputs: self.cross_outputs(),
        }
    }

    /// What the decoder takes and gives.
    pub fn decoder_ports(&self) -> Ports {
        let number = |name: &str| Port {
            name: name.into(),
            element: Element::I64,
            shape: vec![None, None],
        };
        let (heads, head) = (length(self.heads), length(HEAD));
        let mut inputs = vec![number("tokens"), number("pos")];
        inputs.push(match self.has_operators() {
            true => number("index"),
            false => Port::f32("mask", &[None, Some(1), None, None]),
        });
        let mut outputs = vec![Port::f32("logits", &[None, length(self.vocab)])];
        if !self.alignment_heads.is_empty() {
            let followers = length(self.alignment_heads.len());
            outputs.push(Port::f32("align", &[None, followers, None, None]));
        }
        for l in 0..self.layers {
            if self.has_operators() {
                let entry = [length(2), heads, head];
                let new = [&[None, None], &entry[..]].concat();
                inputs.push(Port::u16(
                    &format!("past_{l}"),
                    &[&[None], &entry[..]].concat(),
                ));
                outputs.push(Port::u16(&format!("new_{l}"), &new));
                continue;
            }
            let keys = [None, heads, head, None];
            let values = [None, heads, None, head];
            inputs.push(Port::f32(&format!("self_k_{l}"), &keys));
            inputs.push(Port::f32(&format!("self_v_{l}"), &values));
            outputs.push(Port::f32(&format!("new_k_{l}"), &keys));
            outputs.push(Port::f32(&format!("new_v_{l}"), &values));
        }
        inputs.extend(self.cross_inputs());
        Ports { inputs, outputs }
    }

    /// Keys and values of the sound as the decoder takes them.
    fn cross_inputs(&self) -> Vec<Port> {
        if !self.has_operators() {
            return self.cross_outputs();
        }
        let shape = [self.heads, PADDED / TILE, BLOCK].map(length);
        let shape = [&[None], &shape[..]].concat();
        let of_layer = |l| {
            let name = |what: &str| format!("cross_{what}_{l}");
            [Port::u8(&name("k"), &shape), Port::u8(&name("v"), &shape)]
        };
        (0..self.layers).flat_map(of_layer).collect()
    }

    /// The same as the encoder gives them.
    fn cross_outputs(&self) -> Vec<Port> {
        let (heads, head) = (length(self.heads), length(HEAD));
        let of_layer = |l| {
            [
                Port::f32(&format!("cross_k_{l}"), &[None, heads, head, None]),
                Port::f32(&format!("cross_v_{l}"), &[None, heads, None, head]),
            ]
        };
        (0..self.layers).flat_map(of_layer).collect()
    }

    /// Values of a layer's keys, or values, of a window's sound, as the encoder gives them.
    pub fn cross_values(&self) -> usize {
        self.width * POSITIONS
    }

    /// Bytes of a layer's keys, or values, of a window's sound as they are kept.
    pub fn cross_kept(&self) -> usize {
        match self.has_operators() {
            true => self.heads * PADDED / TILE * BLOCK,
            false => F32 * self.cross_values(),
        }
    }

    /// The same of all layers' keys and values.
    pub fn cross_bytes(&self) -> usize {
        2 * self.layers * self.cross_kept()
    }

    /// Values of a window's attention that its word times are found in, at most.
    pub fn attention_values(&self) -> usize {
        self.alignment_heads.len() * POSITIONS * (MAX_TOKENS + 1)
    }

    /// Windows that are decoded side by side.
    pub fn windows(&self) -> usize {
        (WINDOWS_BYTES_MAX / self.cross_bytes()).clamp(1, WINDOWS_MAX)
    }

    /// Longest texts that there is room for: half as many again as windows, for several shorter ones of fewer windows.
    pub fn rows(&self) -> usize {
        (self.windows() * 3 / 2).max(ROWS_MIN)
    }

    /// Tokens that there is room for where texts share their past: as many texts in each window as are followed by default,
    /// and a prompt.
    pub fn entries(&self) -> usize {
        (self.windows() * BEAMS).max(BEAMS_MIN) * (MARKS + MAX_TOKENS) + MAX_PROMPT_TOKENS
    }

    /// Bytes of the texts' keys and values, and rows that a step has at most.
    fn past(&self) -> (usize, usize) {
        let of_token = 2 * self.layers * self.width;
        if self.has_operators() {
            let rows = self.entries() / (MARKS + MAX_TOKENS);
            return (size_of::<u16>() * of_token * self.entries(), rows);
        }
        // Without a prompt, when several texts are followed, more of them fit.
        let rows = (self.rows() * TEXT).div_ceil(MARKS + MAX_TOKENS);
        (F32 * of_token * TEXT * self.rows(), rows)
    }

    /// Whether a card can compute with these weights.
    pub fn suits_cards(&self) -> bool {
        self.weights != INT8
    }

    /// Values and their width in bytes as a graph works with them on a card; the processor makes 32 bits of them.
    fn width_on_card(&self) -> usize {
        if self.weights == F16 { 2 } else { F32 }
    }

    /// What the model takes on a card and beside it, for files of these sizes. Reckoned from the graphs, not measured on a
    /// card: attention as if all scores were written down, a quarter on top for what lies between blocks.
    pub fn on_card(&self, encoder_bytes: u64, decoder_bytes: u64) -> OnCard {
        let own = self.width_on_card();
        // In and out everything is f32, and a copy in the graph's type beside it.
        let moved = if own == F32 { F32 } else { F32 + own };
        let cross = 2 * self.layers * self.cross_values();
        let frames = WINDOW_FRAMES * self.mels;
        let encode = own * POSITIONS * (2 * POSITIONS * self.heads + 40 * self.width)
            + (moved + own) * (cross + frames);
        let cache = 2 * self.layers * self.width * TEXT;
        let row = moved * (cross + self.attention_heads() * POSITIONS)
            + (moved + own) * (cache + self.vocab)
            + own * (4 * self.heads * POSITIONS + 24 * self.width);
        let prompt = MAX_PROMPT_TOKENS + MARKS;
        let read = own * prompt * (POSITIONS * 4 * self.heads + 24 * self.width)
            + (moved + own) * prompt * POSITIONS * self.attention_heads();
        let arena = |weights: u64, most: usize| weights + most as u64 * 5 / 4 + (16 << 20);
        let cross_f32 = F32 * cross;
        let host_row = cross_f32
            + F32 * (cache + 3 * self.vocab + TEXT * MARKS)
            + size_of::<u16>() * self.attention_values();
        let times = (F32 + 1) * (MAX_TOKENS + 1) * POSITIONS;
        let host = host_row * self.rows() + cross_f32 + times + F32 * frames;
        OnCard {
            encoder: arena(encoder_bytes, encode),
            decoder: arena(decoder_bytes, row * self.rows() + read),
            host: host as u64
                + CUDA_HOST_BYTES
                + checked::load_extra_bytes(encoder_bytes.max(decoder_bytes)),
        }
    }

    fn attention_heads(&self) -> usize {
        self.alignment_heads.len()
    }

    /// What the model takes, for files of these sizes. A lane has an encoder and a decoder of its own, and is made with room for
    /// all its windows at their longest.
    pub fn footprint(&self, encoder_bytes: u64, decoder_bytes: u64) -> Footprint {
        // The processor works with 32 bits: it has weights of 16 twice.
        let widened = |bytes: u64| bytes * if self.weights == F16 { 3 } else { 1 };
        let encoder = checked::weights_bytes(widened(encoder_bytes));
        let decoder = checked::weights_bytes(widened(decoder_bytes));
        let cross = self.cross_bytes();
        // As the encoder gives them.
        let given = 2 * F32 * self.layers * self.cross_values();
        let (past, steps) = self.past();
        let attention = size_of::<u16>() * self.attention_values();
        // Logits, their copy for a further sample, the mask, and a step's own tensors.
        let step =
            F32 * (2 * self.vocab + MARKS * (TEXT + 2 * self.heads * POSITIONS + 24 * self.width));
        let rows = (cross + attention) * self.windows() + past + step * steps;
        // Attention of each position to each, which our operator does not write down, states of the widest layer, and a
        // window's keys and values on their way out.
        let scores = match self.has_operators() {
            true => 0,
            false => POSITIONS * self.heads,
        };
        let encode = F32 * POSITIONS * (scores + 16 * self.width) + given;
        // Prompts are read one by one: scores and what becomes of them, the attention, and states.
        let prompt = MAX_PROMPT_TOKENS + MARKS;
        let read = F32
            * prompt
            * (POSITIONS * (2 * self.heads + 2 * self.alignment_heads.len()) + 24 * self.width);
        // One text's word times: its attention, smoothed, and the way through it.
        let times = (F32 + 1) * (MAX_TOKENS + 1) * POSITIONS;
        let sound = F32 * WINDOW_FRAMES * self.mels;
        let lane = (rows + encode.max(read) + times + sound) as u64;
        Footprint {
            // With what the run that tries the encoder has taken: the first lane goes on in it.
            weights_bytes: encoder + decoder + encode as u64,
            load_extra_bytes: checked::load_extra_bytes(encoder_bytes.max(decoder_bytes)),
            lane_bytes: lane + encoder + decoder,
            item_bytes: 0,
            decoder_bytes: 0,
        }
    }
}

/// What a model takes on a card, bytes. Its sessions are the model's and serve its one lane: nothing is a lane's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnCard {
    /// Cap of the encoder's arena, its weights included.
    pub encoder: u64,
    /// The same of the decoder's.
    pub decoder: u64,
    /// In the processor's memory: caches, sound, a file while it is loaded, and CUDA's own.
    pub host: u64,
}

impl OnCard {
    /// What is reserved on the card.
    pub fn footprint(&self) -> Footprint {
        Footprint {
            weights_bytes: self.encoder + self.decoder + 2 * LIBRARIES_BYTES,
            ..Footprint::default()
        }
    }
}

fn length(n: usize) -> Option<u64> {
    Some(n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY_EN: &str = r#"{"width": 384, "mels": 80, "heads": 6, "enc": 4, "dec": 4, "vocab": 51864, "type": "int8",
        "alignment_heads": [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]}"#;

    #[test]
    fn dimensions_come_from_the_property() {
        let header = Header::parse(TINY_EN).unwrap();

        assert_eq!((header.width, header.layers, header.heads), (384, 4, 6));
        assert_eq!(header.alignment_heads.len(), 8);
        assert!(!header.multilingual());
        // engine.md 5: 17.6 MiB of keys and values a window.
        assert_eq!(2 * 4 * 4 * header.cross_values(), 18_432_000);
        assert_eq!((header.windows(), header.rows()), (8, 12));
        assert_eq!(header.decoder_ports().inputs.len(), 19);
    }

    #[test]
    fn larger_models_take_fewer_windows_at_once() {
        let of = |width: usize, layers: usize| {
            let text = format!(
                r#"{{"width": {width}, "mels": 80, "heads": {}, "enc": 4, "dec": {layers}, "vocab": 51865, "type": "f32"}}"#,
                width / 64
            );
            Header::parse(&text).unwrap().windows()
        };

        assert_eq!(of(512, 6), 5);
        assert_eq!(of(768, 12), 1);
        assert_eq!(of(1280, 4), 3);
    }

    #[test]
    fn the_sound_as_bytes_takes_a_quarter_and_leaves_room_for_more_windows() {
        let of = |width: usize, layers: usize, operators: u32| {
            let text = format!(
                r#"{{"width": {width}, "mels": 80, "heads": {}, "enc": 4, "dec": {layers}, "vocab": 51865,
                    "type": "int8", "operators": {operators}}}"#,
                width / 64
            );
            Header::parse(&text).unwrap()
        };
        let (before, now) = (of(384, 4, 0), of(384, 4, 1));

        assert_eq!((now.windows(), now.rows()), (8, 12));
        // A quarter of it, scales, and what fills up the last block.
        assert_eq!(before.cross_bytes(), 18_432_000);
        assert_eq!(now.cross_bytes(), 2 * 4 * 6 * 47 * 2_176);
        // Less memory holds forty texts instead of twenty-four that are not of full length.
        assert_eq!(before.past(), (12 * 448 * 12_288, 24));
        assert_eq!(now.past(), ((40 * 225 + 223) * 6_144, 40));
        assert_eq!(of(768, 12, 1).windows(), 7);
        let cross = |header: &Header| header.decoder_ports().inputs.pop().unwrap();
        assert_eq!(cross(&now).element, Element::U8);
        assert_eq!(cross(&now).shape[2], Some(47));
        assert_eq!(cross(&before).element, Element::F32);
        // What the encoder gives is the same.
        assert_eq!(before.encoder_ports(), now.encoder_ports());
    }

    #[test]
    fn on_a_card_halves_take_less_than_floats_and_all_belongs_to_the_model() {
        let of = |kind: &str| {
            let header = Header::parse(&TINY_EN.replace("int8", kind)).unwrap();
            header.on_card(20 << 20, 80 << 20)
        };
        let (half, full) = (of("f16"), of("f32"));

        let footprint = half.footprint();
        assert!(half.encoder < full.encoder);
        // Of the decoder's inputs and outputs there is a copy in 16 bits beside that in 32.
        assert!(half.decoder > full.decoder);
        assert_eq!(half.host, full.host);
        assert_eq!(footprint.lane_of(1), 0);
        assert!(footprint.weights_bytes > half.encoder + half.decoder);
        // Eight windows' keys and values of the sound are 141 MiB, in 32 bits.
        assert!(half.decoder > (80 << 20) + 8 * 18_432_000);
        assert!(!Header::parse(TINY_EN).unwrap().suits_cards());
    }

    #[test]
    fn what_no_whisper_model_has_is_refused_with_the_reason() {
        let changed = |from: &str, to: &str| Header::parse(&TINY_EN.replace(from, to));

        for (from, to, reason) in [
            ("384", "400", "a width of 400 in 6 heads"),
            ("\"dec\": 4", "\"dec\": 0", "4 and 0 layers"),
            ("\"mels\": 80", "\"mels\": 81", "81 mel bands"),
            ("51864", "50000", "50000 tokens"),
            ("[1, 0]", "[4, 0]", "head 0 of layer 4"),
            ("[1, 0]", "[2, 0]", "head 0 of layer 2"),
            ("{\"width\"", "{\"broad\"", "missing field"),
            (
                "{\"width\"",
                "{\"cross_halves\": true, \"width\"",
                "older form",
            ),
            ("{\"width\"", "{\"operators\": 2, \"width\"", "newer form"),
        ] {
            let why = changed(from, to).unwrap_err();
            assert!(why.contains(reason), "{why}");
        }
    }
}
