// SPDX-License-Identifier: MPL-2.0
//! Whisper models in CTranslate2 form with weights out of the air.

/// The sizes of one.
#[derive(Clone, Copy)]
pub struct Ct2 {
    /// Width, a multiple of 64.
    pub width: usize,
    /// Layers of each side.
    pub layers: usize,
    pub mel_bands: usize,
    pub tokens: usize,
}

impl Ct2 {
    /// The bytes of `model.bin`.
    pub fn model(&self) -> Vec<u8> {
        let width = self.width;
        let mut model = Writer {
            width,
            bytes: Vec::new(),
            variables: 0,
            seed: 0.1,
        };
        for (side, context) in [("encoder", 1500), ("decoder", 448)] {
            model.floats(
                &format!("{side}/position_encodings/encodings"),
                &[context, width],
                false,
            );
            model.norm(&format!("{side}/layer_norm"));
            for layer in 0..self.layers {
                let layer = format!("{side}/layer_{layer}");
                model.norm(&format!("{layer}/ffn/layer_norm"));
                model.linear(&format!("{layer}/ffn/linear_0"), 4 * width, width);
                model.linear(&format!("{layer}/ffn/linear_1"), width, 4 * width);
                model.attention(&format!("{layer}/self_attention"), &[3, 1]);
                if side == "decoder" {
                    model.attention(&format!("{layer}/attention"), &[1, 2, 1]);
                }
            }
        }
        model.floats("encoder/conv1/weight", &[width, self.mel_bands, 3], false);
        model.floats("encoder/conv1/bias", &[width], false);
        model.floats("encoder/conv2/weight", &[width, width, 3], false);
        model.floats("encoder/conv2/bias", &[width], false);
        model.floats("decoder/embeddings/weight", &[self.tokens, width], false);
        model.finish()
    }

    /// Of `vocabulary.txt`, in GPT-2's alphabet, where U+0120 stands for a space.
    pub fn vocabulary(&self) -> String {
        (0..self.tokens).map(|n| format!("\u{120}t{n}\n")).collect()
    }
}

struct Writer {
    width: usize,
    bytes: Vec<u8>,
    variables: u32,
    seed: f32,
}

impl Writer {
    fn attention(&mut self, name: &str, stacked: &[usize]) {
        self.norm(&format!("{name}/layer_norm"));
        for (n, parts) in stacked.iter().enumerate() {
            self.floats(
                &format!("{name}/linear_{n}/weight"),
                &[parts * self.width, self.width],
                false,
            );
            // All zeros, so also those of the keys, as in Whisper.
            self.floats(
                &format!("{name}/linear_{n}/bias"),
                &[parts * self.width],
                true,
            );
        }
    }

    fn norm(&mut self, name: &str) {
        self.floats(&format!("{name}/gamma"), &[self.width], false);
        self.floats(&format!("{name}/beta"), &[self.width], false);
    }

    fn linear(&mut self, name: &str, rows: usize, columns: usize) {
        self.floats(&format!("{name}/weight"), &[rows, columns], false);
        self.floats(&format!("{name}/bias"), &[rows], false);
    }

    fn floats(&mut self, name: &str, shape: &[usize], zeros: bool) {
        self.text(name);
        self.bytes.push(u8::try_from(shape.len()).unwrap());
        shape
            .iter()
            .for_each(|&n| self.bytes.extend(u32::try_from(n).unwrap().to_le_bytes()));
        self.bytes.push(0);
        let count: usize = shape.iter().product();
        self.bytes
            .extend(u32::try_from(4 * count).unwrap().to_le_bytes());
        for _ in 0..count {
            self.seed = (self.seed * 37.77 + 0.123) % 1.0;
            let value = if zeros { 0.0 } else { self.seed - 0.5 };
            self.bytes.extend(value.to_le_bytes());
        }
        self.variables += 1;
    }

    fn text(&mut self, text: &str) {
        self.bytes
            .extend(u16::try_from(text.len() + 1).unwrap().to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn finish(self) -> Vec<u8> {
        let mut whole = Self {
            width: 0,
            bytes: 6_u32.to_le_bytes().to_vec(),
            variables: 0,
            seed: 0.0,
        };
        whole.text("WhisperSpec");
        whole.bytes.extend(3_u32.to_le_bytes());
        whole.bytes.extend(self.variables.to_le_bytes());
        whole.bytes.extend(self.bytes);
        whole.bytes.extend(0_u32.to_le_bytes());
        whole.bytes
    }
}

/// Names, shapes and bytes of a model's variables.
#[allow(dead_code, reason = "not every test looks into a model")]
pub fn variables(model: &[u8]) -> Vec<(String, Vec<usize>, &[u8])> {
    let number = |at: usize| u32::from_le_bytes(model[at..at + 4].try_into().unwrap()) as usize;
    let text = |at: usize| {
        let length = usize::from(u16::from_le_bytes([model[at], model[at + 1]]));
        (&model[at + 2..at + 1 + length], at + 2 + length)
    };
    let (_, spec_end) = text(4);
    let mut at = spec_end + 8;
    let mut found = Vec::new();
    for _ in 0..number(spec_end + 4) {
        let (name, end) = text(at);
        let rank = usize::from(model[end]);
        let shape = (0..rank).map(|n| number(end + 1 + 4 * n)).collect();
        // Behind the shape there is the kind of the values.
        let length = number(end + 2 + 4 * rank);
        at = end + 6 + 4 * rank;
        let name = String::from_utf8(name.to_vec()).unwrap();
        found.push((name, shape, &model[at..at + length]));
        at += length;
    }
    found
}
