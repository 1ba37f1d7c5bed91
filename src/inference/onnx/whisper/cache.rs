// SPDX-License-Identifier: MPL-2.0
//! Keys and values of the windows that are decoded side by side: those of the sound, and those of the text so far.
//!
//! The graphs own none of it. Rows lie one behind the other, so that a few of them can be stepped alone, and a row
//! that is done is replaced by the last. Those of the text lie in as many columns as the longest of them needs, rounded up
//! to 32: a step reads all columns of all rows.

use std::ops::Range;

use super::header::{HEAD, Header, TEXT};

/// Columns are added and taken away by so many.
const COLUMNS: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    heads: usize,
    /// Values of a layer's keys, or values, of a row's sound.
    cross_row: usize,
    /// Tokens of each row that are in it.
    lengths: Vec<usize>,
    columns: usize,
    layers: Vec<Layer>,
}

/// What one layer of the decoder reads.
#[derive(Debug)]
struct Layer {
    /// `[rows, heads, 64, 1500]`
    cross_keys: Vec<f32>,
    /// `[rows, heads, 1500, 64]`
    cross_values: Vec<f32>,
    /// `[rows, heads, 64, columns]`
    keys: Vec<f32>,
    /// `[rows, heads, columns, 64]`
    values: Vec<f32>,
}

impl Cache {
    /// With room for all rows of a lane at their longest.
    pub fn new(header: &Header) -> Self {
        let rows = header.rows();
        let cross_row = header.cross_values();
        let own = header.width * TEXT;
        let layer = || Layer {
            cross_keys: vec![0.0; rows * cross_row],
            cross_values: vec![0.0; rows * cross_row],
            keys: vec![0.0; rows * own],
            values: vec![0.0; rows * own],
        };
        Self {
            heads: header.heads,
            cross_row,
            lengths: Vec::with_capacity(rows),
            columns: COLUMNS,
            layers: std::iter::repeat_with(layer).take(header.layers).collect(),
        }
    }

    /// Where the buffers lie and how many bytes each has.
    pub fn rooms(&self) -> impl Iterator<Item = (usize, usize)> {
        let room = |values: &Vec<f32>| (values.as_ptr() as usize, values.len() * 4);
        self.layers
            .iter()
            .flat_map(move |l| [&l.cross_keys, &l.cross_values, &l.keys, &l.values].map(room))
    }

    /// Rows that are in it.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Columns of the text's part.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Tokens of a row.
    pub fn length(&self, row: usize) -> usize {
        self.lengths[row]
    }

    /// Forgets what a row has behind its first `length` tokens.
    pub fn shorten(&mut self, row: usize, length: usize) {
        self.lengths[row] = length;
    }

    /// Adds a row without text. Its sound comes with [`Self::sound`].
    pub fn add(&mut self) {
        self.lengths.push(0);
    }

    /// Where a layer's keys and values of the last row's sound go.
    pub fn sound(&mut self, layer: usize) -> (&mut [f32], &mut [f32]) {
        let end = self.lengths.len() * self.cross_row;
        let range = end - self.cross_row..end;
        let layer = &mut self.layers[layer];
        (
            &mut layer.cross_keys[range.clone()],
            &mut layer.cross_values[range],
        )
    }

    /// Forgets all rows, and what they have left behind: a value that is no number would spread.
    pub fn clear(&mut self) {
        self.lengths.clear();
        for layer in &mut self.layers {
            layer.keys.fill(0.0);
            layer.values.fill(0.0);
        }
    }

    /// The last row takes the place of this one.
    pub fn remove(&mut self, row: usize) {
        let last = self.lengths.len() - 1;
        self.lengths.swap_remove(row);
        if row == last {
            return;
        }
        let own = self.own_row();
        for layer in &mut self.layers {
            for (values, size) in [
                (&mut layer.cross_keys, self.cross_row),
                (&mut layer.cross_values, self.cross_row),
                (&mut layer.keys, own),
                (&mut layer.values, own),
            ] {
                values.copy_within(last * size..(last + 1) * size, row * size);
            }
        }
    }

    /// Has as many columns as the longest row needs when `more` tokens are added to each.
    pub fn fit(&mut self, more: usize) {
        let longest = self.lengths.iter().max().copied().unwrap_or(0);
        let columns = (longest + more)
            .next_multiple_of(COLUMNS)
            .clamp(COLUMNS, TEXT);
        if columns == self.columns {
            return;
        }
        let (rows, old) = (self.lengths.len(), self.columns);
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

    /// What a step reads of these rows: keys and values of the sound, then of the text.
    pub fn layer(&self, layer: usize, rows: &Range<usize>) -> [&[f32]; 4] {
        let cross = rows.start * self.cross_row..rows.end * self.cross_row;
        let own = rows.start * self.own_row()..rows.end * self.own_row();
        let layer = &self.layers[layer];
        [
            &layer.cross_keys[cross.clone()],
            &layer.cross_values[cross],
            &layer.keys[own.clone()],
            &layer.values[own],
        ]
    }

    /// Takes in what a step of `steps` tokens gave for these rows: keys `[rows, heads, 64, steps]` and values
    /// `[rows, heads, steps, 64]`. They count once the rows are [`Self::grow`]n.
    pub fn write(
        &mut self,
        layer: usize,
        rows: &Range<usize>,
        steps: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let (heads, columns) = (self.heads, self.columns);
        let layer = &mut self.layers[layer];
        for (n, length) in self.lengths[rows.clone()].iter().enumerate() {
            for head in 0..heads {
                let (from, to) = (n * heads + head, (rows.start + n) * heads + head);
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

    /// These rows have `steps` tokens more.
    pub fn grow(&mut self, rows: &Range<usize>, steps: usize) {
        self.lengths[rows.clone()]
            .iter_mut()
            .for_each(|l| *l += steps);
    }

    /// What is added to the scores of a step of `steps` tokens of these rows, `[rows, 1, steps, columns + steps]`: nothing
    /// where a token may look, much where it may not.
    pub fn mask(&self, rows: &Range<usize>, steps: usize, mask: &mut Vec<f32>) {
        const NOT: f32 = -1e9;
        mask.clear();
        for length in &self.lengths[rows.clone()] {
            for step in 0..steps {
                let columns = (0..self.columns).map(|c| if c < *length { 0.0 } else { NOT });
                mask.extend(columns);
                mask.extend((0..steps).map(|s| if s <= step { 0.0 } else { NOT }));
            }
        }
    }

    fn own_row(&self) -> usize {
        self.heads * HEAD * self.columns
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        let text = r#"{"width": 128, "mels": 80, "heads": 2, "enc": 1, "dec": 1, "vocab": 51864, "type": "f32"}"#;
        Cache::new(&Header::parse(text).unwrap())
    }

    /// A step of `steps` tokens for all rows, with values that tell row, head, dimension and token.
    fn step(cache: &mut Cache, tags: &[f32], steps: usize) {
        cache.fit(steps);
        let mut keys = Vec::new();
        let mut values = Vec::new();
        for (row, tag) in tags.iter().enumerate() {
            for head in 0..2 {
                let value = |d: usize, s: usize| {
                    tag * 1e5 + (head * 10_000 + d * 100 + (cache.length(row) + s) % 100) as f32
                };
                keys.extend((0..HEAD).flat_map(|d| (0..steps).map(move |s| value(d, s))));
                values.extend((0..steps).flat_map(|s| (0..HEAD).map(move |d| value(d, s))));
            }
        }
        let rows = 0..tags.len();
        cache.write(0, &rows, steps, &keys, &values);
        cache.grow(&rows, steps);
    }

    fn assert_row(cache: &Cache, row: usize, tag: f32) {
        let [_, _, keys, values] = cache.layer(0, &(row..row + 1));
        let columns = cache.columns();
        for head in 0..2 {
            for d in 0..HEAD {
                for c in 0..cache.length(row) {
                    let expected = tag * 1e5 + (head * 10_000 + d * 100 + c % 100) as f32;
                    assert_eq!(keys[(head * HEAD + d) * columns + c], expected);
                    assert_eq!(values[(head * columns + c) * HEAD + d], expected);
                }
            }
        }
    }

    #[test]
    fn tokens_stay_where_they_are_while_columns_and_rows_come_and_go() {
        let mut cache = cache();
        for _ in 0..3 {
            cache.add();
        }

        step(&mut cache, &[1.0, 2.0, 3.0], 3);
        for _ in 0..70 {
            step(&mut cache, &[1.0, 2.0, 3.0], 1);
        }
        assert_eq!((cache.length(0), cache.columns()), (73, 96));
        cache.remove(0);
        for (row, tag) in [(0, 3.0), (1, 2.0)] {
            assert_row(&cache, row, tag);
        }
        cache.shorten(0, 3);
        cache.shorten(1, 3);
        step(&mut cache, &[3.0, 2.0], 1);

        assert_eq!((cache.length(0), cache.columns()), (4, 32));
        for (row, tag) in [(0, 3.0), (1, 2.0)] {
            assert_row(&cache, row, tag);
        }
    }

    #[test]
    fn the_sound_of_the_last_row_moves_with_it() {
        let mut cache = cache();
        for tag in [1.0, 2.0, 3.0] {
            cache.add();
            let (keys, values) = cache.sound(0);
            keys.fill(tag);
            values.fill(-tag);
        }

        cache.remove(0);

        let [keys, values, ..] = cache.layer(0, &(0..2));
        assert_eq!(keys.len(), 2 * 128 * 1500);
        assert_eq!((keys[0], values[0]), (3.0, -3.0));
        assert_eq!(cache.layer(0, &(1..2))[0][0], 2.0);
    }

    #[test]
    fn a_token_looks_at_its_own_row_and_at_those_before_it() {
        let mut cache = cache();
        cache.add();
        cache.grow(&(0..1), 2);
        cache.add();
        let mut mask = Vec::new();

        cache.mask(&(0..2), 2, &mut mask);

        let open: Vec<Vec<usize>> = mask
            .chunks(34)
            .map(|row| (0..34).filter(|c| row[*c] == 0.0).collect())
            .collect();
        assert_eq!(open[..2], [vec![0, 1, 32], vec![0, 1, 32, 33]]);
        assert_eq!(open[2..], [vec![32], vec![32, 33]]);
    }
}
