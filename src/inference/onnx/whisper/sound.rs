// SPDX-License-Identifier: MPL-2.0
//! Keys and values of the sounds of the windows that are decoded side by side, in the order of the windows.

use std::ops::Range;

use super::header::Header;
use crate::inference::EngineError;
use crate::inference::onnx::cross;
use crate::inference::pages::Room;

const ROOM_OF_SOUNDS: &str = "keys and values of the sound";

/// See the module.
#[derive(Debug)]
pub(super) struct Sounds {
    /// Values of a layer's keys, or values, of one window.
    window: usize,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// `[windows, heads, 64, 1500]`; bytes as [`cross`] wants them.
    keys: Sound,
    /// `[windows, heads, 1500, 64]`; the same.
    values: Sound,
}

/// Keys or values of all windows.
#[derive(Debug)]
enum Sound {
    Floats(Room<f32>),
    Bytes(Room<u8>),
}

/// The same of some windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SoundView<'a> {
    Floats(&'a [f32]),
    /// As [`cross`] wants them.
    Bytes(&'a [u8]),
}

/// Does the same with values of either kind.
macro_rules! either {
    ($sound:expr, $values:ident => $do:expr) => {
        match $sound {
            Sound::Floats($values) => $do,
            Sound::Bytes($values) => $do,
        }
    };
}

impl Sound {
    fn new(length: usize, bytes: bool) -> Result<Self, EngineError> {
        Ok(if bytes {
            Self::Bytes(Room::new(length, ROOM_OF_SOUNDS)?)
        } else {
            Self::Floats(Room::new(length, ROOM_OF_SOUNDS)?)
        })
    }

    fn take_pages(&self) {
        either!(self, values => values.take());
    }

    fn view(&self, range: Range<usize>) -> SoundView<'_> {
        match self {
            Self::Floats(values) => SoundView::Floats(&values[range]),
            Self::Bytes(values) => SoundView::Bytes(&values[range]),
        }
    }

    fn copy_within(&mut self, range: Range<usize>, to: usize) {
        either!(self, values => values.copy_within(range, to));
    }

    /// Takes in what the encoder gave for a window; bytes with scales, in another order.
    fn take(&mut self, at: usize, from: &[f32], arrange: fn(&[f32], &mut [u8])) {
        match self {
            Self::Floats(values) => values[at..at + from.len()].copy_from_slice(from),
            Self::Bytes(values) => arrange(from, &mut values[at..]),
        }
    }
}

impl Sounds {
    /// With room for so many windows.
    pub fn new(header: &Header, windows: usize) -> Result<Self, EngineError> {
        let bytes = header.has_operators();
        let window = match bytes {
            true => header.cross_kept(),
            false => header.cross_values(),
        };
        let sound = || Sound::new(windows * window, bytes);
        let layer = |_| {
            Ok(Layer {
                keys: sound()?,
                values: sound()?,
            })
        };
        Ok(Self {
            window,
            layers: (0..header.layers)
                .map(layer)
                .collect::<Result<_, EngineError>>()?,
        })
    }

    /// Has all its memory handed out.
    pub fn take(&self) {
        for layer in &self.layers {
            layer.keys.take_pages();
            layer.values.take_pages();
        }
    }

    /// Takes in a layer's keys of a window's sound: `[heads, 64, 1500]`.
    pub fn hear_keys(&mut self, window: usize, layer: usize, keys: &[f32]) {
        let at = window * self.window;
        self.layers[layer].keys.take(at, keys, cross::arrange_keys);
    }

    /// The same of its values: `[heads, 1500, 64]`.
    pub fn hear_values(&mut self, window: usize, layer: usize, values: &[f32]) {
        let at = window * self.window;
        let kept = &mut self.layers[layer].values;
        kept.take(at, values, cross::arrange_values);
    }

    /// A window takes the place of another.
    pub fn replace(&mut self, from: usize, to: usize) {
        let from = from * self.window..(from + 1) * self.window;
        for layer in &mut self.layers {
            layer.keys.copy_within(from.clone(), to * self.window);
            layer.values.copy_within(from.clone(), to * self.window);
        }
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize, windows: &Range<usize>) -> [SoundView<'_>; 2] {
        let range = windows.start * self.window..windows.end * self.window;
        let layer = &self.layers[layer];
        [layer.keys.view(range.clone()), layer.values.view(range)]
    }
}
