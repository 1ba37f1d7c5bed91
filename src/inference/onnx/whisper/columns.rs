// SPDX-License-Identifier: MPL-2.0
//! Keys and values of the texts so far, as ONNX Runtime's own products read them: in as many columns as the longest text
//! needs, rounded up to 32. A step reads all columns of all rows. The room is for so many columns of all rows together: few
//! long texts, or many short ones.

use std::ops::Range;

use super::cache::{Part, ROOM_OF_TEXTS, Texts};
use super::header::{HEAD, Header, TEXT};
use crate::inference::EngineError;
use crate::inference::pages::Room;

/// Columns are added and taken away by so many.
const COLUMNS: usize = 32;

/// See the module. Rows lie in the order of their windows.
#[derive(Debug)]
pub(super) struct Columns {
    heads: usize,
    /// Columns of all rows that there is room for.
    most: usize,
    columns: usize,
    layers: Vec<Layer>,
    mask: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    /// `[rows, heads, 64, columns]`
    keys: Room<f32>,
    /// `[rows, heads, columns, 64]`
    values: Room<f32>,
}

impl Columns {
    /// Untouched.
    pub fn new(header: &Header) -> Result<Self, EngineError> {
        let most = header.rows() * TEXT;
        let room = || Room::new(most * header.width, ROOM_OF_TEXTS);
        let layer = |_| {
            Ok(Layer {
                keys: room()?,
                values: room()?,
            })
        };
        Ok(Self {
            heads: header.heads,
            most,
            columns: COLUMNS,
            layers: (0..header.layers)
                .map(layer)
                .collect::<Result<_, EngineError>>()?,
            mask: Vec::new(),
        })
    }

    /// Has all its memory handed out.
    pub fn take(&self) {
        for layer in &self.layers {
            layer.keys.take();
            layer.values.take();
        }
    }

    /// Begins with nothing in it; says how many rows a window may have.
    pub fn begin(&mut self) -> usize {
        self.columns = COLUMNS;
        self.most / TEXT
    }

    /// Whether so many rows fit, of up to so many tokens.
    pub fn has_room(&self, rows: usize, tokens: usize) -> bool {
        rows * columns(tokens) <= self.most
    }

    /// Columns that there are now.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Forgets what was left behind: a value that is no number would spread.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            layer.keys.fill(0.0);
            layer.values.fill(0.0);
        }
    }

    /// So many rows take the place of others.
    pub fn replace(&mut self, from: usize, to: usize, rows: usize) {
        let own = self.own_row();
        let [from, to, long] = [from, to, rows].map(|n| n * own);
        for layer in &mut self.layers {
            layer.keys.copy_within(from..from + long, to);
            layer.values.copy_within(from..from + long, to);
        }
    }

    /// Has as many columns as `rows` of texts of so many tokens need.
    pub fn fit(&mut self, rows: usize, tokens: usize) {
        let (old, columns) = (self.columns, columns(tokens));
        if columns == old {
            return;
        }
        for layer in &mut self.layers {
            restride(&mut layer.keys, rows * self.heads * HEAD, old, columns);
            restride(
                &mut layer.values,
                rows * self.heads,
                old * HEAD,
                columns * HEAD,
            );
        }
        self.columns = columns;
    }

    /// What a step reads of a layer's keys and values.
    pub fn layer(&self, layer: usize, rows: Range<usize>) -> [&[f32]; 2] {
        let own = rows.start * self.own_row()..rows.end * self.own_row();
        let layer = &self.layers[layer];
        [&layer.keys[own.clone()], &layer.values[own]]
    }

    /// Takes in what a step of `steps` tokens gave for these: keys `[rows, heads, 64, steps]` and values
    /// `[rows, heads, steps, 64]`. `places`: each row, and how many tokens it has.
    pub fn write(
        &mut self,
        layer: usize,
        places: impl Iterator<Item = (usize, usize)>,
        steps: usize,
        [keys, values]: [&[f32]; 2],
    ) {
        let (heads, columns) = (self.heads, self.columns);
        let layer = &mut self.layers[layer];
        for (n, (row, length)) in places.enumerate() {
            for head in 0..heads {
                let (from, to) = (n * heads + head, row * heads + head);
                for d in 0..HEAD {
                    let from = (from * HEAD + d) * steps;
                    let to = (to * HEAD + d) * columns + length;
                    layer.keys[to..to + steps].copy_from_slice(&keys[from..from + steps]);
                }
                let from = from * steps * HEAD;
                let to = (to * columns + length) * HEAD;
                layer.values[to..to + steps * HEAD]
                    .copy_from_slice(&values[from..from + steps * HEAD]);
            }
        }
    }

    /// Works out what is added to the scores of a step of `steps` tokens of these, `[rows, 1, steps, columns + steps]`:
    /// nothing where a token may look, much where it may not.
    pub fn look(&mut self, windows: &[Texts], part: &Part, steps: usize) {
        const NOT: f32 = -1e9;
        self.mask.clear();
        for window in &windows[part.windows.clone()] {
            for _ in 0..part.rows {
                for step in 0..steps {
                    let old = (0..self.columns).map(|c| if c < window.length { 0.0 } else { NOT });
                    self.mask.extend(old);
                    let new = (0..steps).map(|s| if s <= step { 0.0 } else { NOT });
                    self.mask.extend(new);
                }
            }
        }
    }

    /// What [`Self::look`] has worked out.
    pub fn mask(&self) -> &[f32] {
        &self.mask
    }

    fn own_row(&self) -> usize {
        self.heads * HEAD * self.columns
    }
}

/// Columns for so many tokens.
fn columns(tokens: usize) -> usize {
    tokens.next_multiple_of(COLUMNS).clamp(COLUMNS, TEXT)
}

/// Moves `count` pieces that lie `old` apart to where they lie `new` apart. What is cut off, or lies between, is nothing.
fn restride(values: &mut [f32], count: usize, old: usize, new: usize) {
    let long = old.min(new);
    let mut shift = |n: usize| values.copy_within(n * old..n * old + long, n * new);
    if new > old {
        (0..count).rev().for_each(&mut shift);
    } else {
        (0..count).for_each(&mut shift);
    }
}
