// SPDX-License-Identifier: MPL-2.0
//! Sound to words: windows, guards, words. No GStreamer.

pub mod attribution;
pub mod file;
pub mod guards;
pub mod join;
mod language;
pub mod live;
pub mod packer;
pub mod session;
pub mod words;

use crate::audio::SampleIndex;

/// A word as it is compared with others: without case and punctuation.
fn folded(word: &str) -> String {
    let kept = word.chars().filter(|c| c.is_alphanumeric());
    kept.flat_map(char::to_lowercase).collect()
}

/// A word whose times are samples of the stream. Becomes a
/// [`transcript::Word`](crate::transcript::Word) when it leaves the logic.
#[derive(Clone, Debug, PartialEq)]
pub struct RawWord {
    /// The text with the leading space that the model gave.
    pub text: String,
    /// Where it begins.
    pub start: SampleIndex,
    /// Where it ends, after `start`.
    pub end: SampleIndex,
    /// The model's own probability, 0 to 1: mean over the word's tokens.
    pub probability: f32,
    /// How far to trust it, 0 to 1.
    pub confidence: f32,
}
