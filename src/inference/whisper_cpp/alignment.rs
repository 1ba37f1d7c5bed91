// SPDX-License-Identifier: MPL-2.0
//! Which attention heads follow the sound: whisper.cpp's word times come from them.

use whisper_rs::{DtwMode, DtwModelPreset, DtwParameters};

use super::header::Header;

/// The heads of one model.
#[derive(Debug)]
pub(super) struct Alignment {
    /// By which whisper.cpp picks them.
    mode: Mode,
    /// How many there are.
    pub heads: u64,
    /// What they add to the decoder's buffer, which is made for 448 tokens and 1500 positions. It depends on where
    /// ggml's allocator finds room for each layer's attention while the others' is kept.
    pub decoder_bytes: u64,
    /// What they add to the part of it that a pass over the widest text writes to.
    pub pass_bytes: u64,
}

#[derive(Debug)]
enum Mode {
    Preset(DtwModelPreset),
    /// All heads of the last so many layers.
    Last(i32),
}

impl Alignment {
    /// From the table of OpenAI's models by their size; all heads of the upper half for others, OpenAI's default.
    pub fn of(header: &Header) -> Self {
        use DtwModelPreset as P;
        let english = !header.multilingual();
        // Kilobytes as whisper.cpp logs them, less those of a decoder without word times; and the share of it, in
        // percent, that the widest pass takes. It is that of its tokens where both are laid out alike.
        let alike = 51;
        let (preset, heads, decoder_kb, share) =
            match (header.n_text_state, header.n_text_layer, english) {
                (384, 4, true) => (P::TinyEn, 8, 38_330, alike),
                (384, 4, false) => (P::Tiny, 6, 68_120, alike),
                (512, 6, true) => (P::BaseEn, 5, 13_450, alike),
                (512, 6, false) => (P::Base, 8, 43_930, alike),
                (768, 12, true) => (P::SmallEn, 19, 102_910, alike),
                (768, 12, false) => (P::Small, 10, 70_650, alike),
                (1024, 24, true) => (P::MediumEn, 18, 296_900, alike),
                (1024, 24, false) => (P::Medium, 6, 124_870, alike),
                (1280, 32, false) if header.n_mels == 128 => (P::LargeV3, 10, 501_640, alike),
                (1280, 32, false) => (P::LargeV2, 23, 609_160, alike),
                (1280, 4, false) => (P::LargeV3Turbo, 6, 37_010, 146),
                _ => return Self::upper_half(header),
            };
        Self {
            mode: Mode::Preset(preset),
            heads,
            decoder_bytes: decoder_kb * 1000,
            pass_bytes: decoder_kb * 10 * share,
        }
    }

    fn upper_half(header: &Header) -> Self {
        let layers = (header.n_text_layer / 2).max(1);
        let size = |n: i32| u64::from(n.unsigned_abs());
        let heads = size(layers) * size(header.n_text_head);
        // No more than three times the attention of each: as it is, turned, and picked.
        let decoder_bytes = 448 * (3 * 4 * 1500 * heads + 2 * 4 * size(header.n_text_state));
        Self {
            mode: Mode::Last(layers),
            heads,
            decoder_bytes,
            pass_bytes: decoder_bytes / 100 * 51,
        }
    }

    /// For whisper.cpp.
    pub fn parameters(&self) -> DtwParameters<'static> {
        let mode = match &self.mode {
            Mode::Preset(preset) => DtwMode::ModelPreset {
                model_preset: preset.clone(),
            },
            Mode::Last(layers) => DtwMode::TopMost { n_top: *layers },
        };
        // tokens x positions x heads, four copies in f32; whisper.cpp aborts if it is too little.
        let dtw_mem_size = 448 * 1500 * self.heads as usize * 4 * 4 + (32 << 20);
        DtwParameters { mode, dtw_mem_size }
    }
}
