// SPDX-License-Identifier: MPL-2.0
//! What the parts of a model have to do, from its dimensions: beside what a machine can do, this is the least time
//! that they take.

use super::header::{HEAD, Header, POSITIONS};
use crate::dsp::mel::WINDOW_FRAMES;
use crate::inference::onnx::attention;

/// Size of a convolution's filters.
const TAPS: usize = 3;
/// Squares of the width that the weights of a layer have: attention's four, and the two of four times the width.
const SELF_SQUARES: usize = 4;
const CROSS_SQUARES: usize = 2;
const FORWARD_SQUARES: usize = 8;

/// Operations, of which a multiplication and the addition after it are two, and bytes that are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Operations of the encoder with weights, a window.
    pub encoder_weights: f64,
    /// Operations of the encoder's attention, a window.
    pub encoder_attention: f64,
    /// Operations of the decoder with weights, a token.
    pub token_weights: f64,
    /// Operations of the decoder's attention to the sound, a token.
    pub token_attention: f64,
    /// Bytes of weights that a run of the decoder reads, however many rows it has.
    pub step_bytes: f64,
    /// Bytes of keys and values of the sound that it reads for each window.
    pub window_bytes: f64,
    /// Weights are of 8 bits, and so is what is multiplied with them.
    pub eight_bits: bool,
    /// Of so many bits are the numbers of the encoder's attention.
    pub attention_bits: u32,
}

impl Work {
    pub(super) fn of(header: &Header) -> Self {
        let (width, frames) = (header.width, WINDOW_FRAMES);
        let square = width * width;
        let convolutions = frames * TAPS * header.mels * width + POSITIONS * TAPS * square;
        let layers = header.encoder_layers * POSITIONS * (SELF_SQUARES + FORWARD_SQUARES) * square;
        // Keys and values of the sound leave the encoder.
        let cross = header.layers * POSITIONS * 2 * square;
        let scores = header.encoder_layers * 2 * POSITIONS * POSITIONS * header.heads * HEAD;
        let weights = header.layers * (SELF_SQUARES + CROSS_SQUARES + FORWARD_SQUARES) * square
            + header.vocab * width;
        let eight_bits = header.weights == "int8";
        Self {
            encoder_weights: 2.0 * (convolutions + layers + cross) as f64,
            encoder_attention: 2.0 * scores as f64,
            token_weights: 2.0 * weights as f64,
            token_attention: 2.0 * (header.layers * 2 * POSITIONS * width) as f64,
            step_bytes: (weights * if eight_bits { 1 } else { size_of::<f32>() }) as f64,
            window_bytes: header.cross_bytes() as f64,
            eight_bits,
            attention_bits: if eight_bits { attention::bits() } else { 32 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_has_the_work_that_was_reckoned_by_hand() {
        let header = Header::parse(
            r#"{"width": 384, "mels": 80, "heads": 6, "enc": 4, "dec": 4, "vocab": 51864, "type": "int8"}"#,
        );

        let work = Work::of(&header.unwrap());

        // 1.9 for the convolutions, 21.2 for the layers, 3.5 for keys and values; 13.8 for attention.
        assert!((work.encoder_weights / 1e9 - 26.65).abs() < 0.05);
        assert!((work.encoder_attention / 1e9 - 13.82).abs() < 0.01);
        assert!((work.token_weights / 1e6 - 56.3).abs() < 0.1);
        assert!((work.token_attention / 1e6 - 9.2).abs() < 0.1);
        assert!((work.step_bytes / 1e6 - 28.2).abs() < 0.1);
        assert!((work.window_bytes / 1e6 - 18.4).abs() < 0.1);
    }
}
