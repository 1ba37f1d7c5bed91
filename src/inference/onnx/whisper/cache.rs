// SPDX-License-Identifier: MPL-2.0
//! Keys and values of the windows that are decoded side by side: those of the sound, and those of the texts so far.
//!
//! The graphs own none of it. A window has as many rows as texts are followed in it, one behind the other, and its sound
//! once. Windows lie one behind the other too, and one that is done is replaced by the last. Those of the texts lie in as many
//! columns as the longest of them needs, rounded up to 32: a step reads all columns of all rows. The room is for so many
//! columns of all rows together: few long texts, or many short ones.

use std::ops::Range;

use super::header::{HEAD, Header, TEXT};
use crate::inference::onnx::cross;

/// Columns are added and taken away by so many.
const COLUMNS: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    heads: usize,
    /// Values of a layer's keys, or values, of a window's sound.
    cross_window: usize,
    /// Windows there is room for.
    windows_most: usize,
    /// Columns of all rows that there is room for.
    columns_most: usize,
    /// Rows of a window.
    rows: usize,
    windows: Vec<Texts>,
    columns: usize,
    layers: Vec<Layer>,
}

/// A window's.
#[derive(Clone, Copy, Debug)]
struct Texts {
    /// Tokens of each of its texts.
    length: usize,
    /// Tokens that there may be.
    most: usize,
}

/// What one layer of the decoder reads.
#[derive(Debug)]
struct Layer {
    /// `[windows, heads, 64, 1500]`; halves as [`cross`] wants them.
    cross_keys: Sound,
    /// `[windows, heads, 1500, 64]`; the same.
    cross_values: Sound,
    /// `[rows, heads, 64, columns]`
    keys: Vec<f32>,
    /// `[rows, heads, columns, 64]`
    values: Vec<f32>,
}

/// Keys or values of the sounds.
#[derive(Debug)]
enum Sound {
    Floats(Vec<f32>),
    Halves(Vec<u16>),
}

/// The same of some windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SoundView<'a> {
    Floats(&'a [f32]),
    /// As [`cross`] wants them.
    Halves(&'a [u16]),
}

/// Does the same with values of either kind.
macro_rules! either {
    ($sound:expr, $values:ident => $do:expr) => {
        match $sound {
            Sound::Floats($values) => $do,
            Sound::Halves($values) => $do,
        }
    };
}

impl Sound {
    fn new(length: usize, halves: bool) -> Self {
        if halves {
            Self::Halves(vec![0; length])
        } else {
            Self::Floats(vec![0.0; length])
        }
    }

    /// Where it lies and how many bytes it has.
    fn room(&self) -> (usize, usize) {
        either!(self, values => (values.as_ptr() as usize, size_of_val(&values[..])))
    }

    fn view(&self, range: Range<usize>) -> SoundView<'_> {
        match self {
            Self::Floats(values) => SoundView::Floats(&values[range]),
            Self::Halves(values) => SoundView::Halves(&values[range]),
        }
    }

    fn copy_within(&mut self, range: Range<usize>, to: usize) {
        either!(self, values => values.copy_within(range, to));
    }

    /// Takes in what the encoder gave for a window; halves in another order.
    fn take(&mut self, at: usize, from: &[f32], arrange: fn(&[f32], &mut [u16])) {
        match self {
            Self::Floats(values) => values[at..at + from.len()].copy_from_slice(from),
            Self::Halves(values) => arrange(from, &mut values[at..]),
        }
    }
}

/// What a step reads of a layer.
pub(super) struct LayerView<'a> {
    /// Of the sound.
    pub cross_keys: SoundView<'a>,
    /// Of the sound.
    pub cross_values: SoundView<'a>,
    /// Of the texts.
    pub keys: &'a [f32],
    /// Of the texts.
    pub values: &'a [f32],
}

/// Windows in work, and how many of their rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub windows: Range<usize>,
    /// Of each: the first, or all.
    pub rows: usize,
}

impl Part {
    /// Rows of all its windows.
    pub fn len(&self) -> usize {
        self.windows.len() * self.rows
    }
}

impl Cache {
    /// With room for all windows of a lane at their longest, one text each; or for fewer with more texts.
    pub fn new(header: &Header) -> Self {
        let windows = header.windows();
        let columns = header.rows() * TEXT;
        let cross_window = header.cross_kept();
        let sound = || Sound::new(windows * cross_window, header.cross_halves);
        let layer = || Layer {
            cross_keys: sound(),
            cross_values: sound(),
            keys: vec![0.0; columns * header.width],
            values: vec![0.0; columns * header.width],
        };
        Self {
            heads: header.heads,
            cross_window,
            windows_most: windows,
            columns_most: columns,
            rows: 1,
            windows: Vec::with_capacity(windows),
            columns: COLUMNS,
            layers: std::iter::repeat_with(layer).take(header.layers).collect(),
        }
    }

    /// Where the buffers lie and how many bytes each has.
    pub fn rooms(&self) -> impl Iterator<Item = (usize, usize)> {
        let room = |values: &Vec<f32>| (values.as_ptr() as usize, size_of_val(&values[..]));
        self.layers.iter().flat_map(move |l| {
            let sound = [l.cross_keys.room(), l.cross_values.room()];
            let texts = [room(&l.keys), room(&l.values)];
            sound.into_iter().chain(texts)
        })
    }

    /// Begins with windows of up to so many rows, and says how many there will be. None may be in it.
    pub fn begin(&mut self, rows: usize) -> usize {
        debug_assert!(self.windows.is_empty());
        self.rows = rows.clamp(1, self.columns_most / TEXT);
        self.columns = COLUMNS;
        self.rows
    }

    /// Whether one more window fits, with up to so many tokens in each row.
    pub fn has_room(&self, most: usize) -> bool {
        let longest = self.windows.iter().map(|w| w.most).fold(most, usize::max);
        let windows = self.windows.len() + 1;
        windows <= self.windows_most && windows * self.rows * columns(longest) <= self.columns_most
    }

    /// Windows that are in it.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// All of them.
    pub fn all(&self) -> Part {
        Part {
            windows: 0..self.windows.len(),
            rows: self.rows,
        }
    }

    /// A window's first row.
    pub fn first_row(window: usize) -> Part {
        Part {
            windows: window..window + 1,
            rows: 1,
        }
    }

    /// Columns of the texts' part.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Tokens of a window's texts.
    pub fn length(&self, window: usize) -> usize {
        self.windows[window].length
    }

    /// Forgets what a window's texts have behind their first `length` tokens.
    pub fn shorten(&mut self, window: usize, length: usize) {
        self.windows[window].length = length;
    }

    /// Adds a window without text, for texts of up to `most` tokens. Its sound comes with [`Self::hear_keys`] and
    /// [`Self::hear_values`].
    pub fn add(&mut self, most: usize) {
        self.windows.push(Texts { length: 0, most });
    }

    /// Takes in a layer's keys of the last window's sound: `[heads, 64, 1500]`.
    pub fn hear_keys(&mut self, layer: usize, keys: &[f32]) {
        let at = (self.windows.len() - 1) * self.cross_window;
        self.layers[layer]
            .cross_keys
            .take(at, keys, cross::arrange_keys);
    }

    /// The same of its values: `[heads, 1500, 64]`.
    pub fn hear_values(&mut self, layer: usize, values: &[f32]) {
        let at = (self.windows.len() - 1) * self.cross_window;
        self.layers[layer]
            .cross_values
            .take(at, values, cross::arrange_values);
    }

    /// Forgets all windows, and what they have left behind: a value that is no number would spread.
    pub fn clear(&mut self) {
        self.windows.clear();
        for layer in &mut self.layers {
            layer.keys.fill(0.0);
            layer.values.fill(0.0);
        }
    }

    /// The last window takes the place of this one.
    pub fn remove(&mut self, window: usize) {
        let last = self.windows.len() - 1;
        self.windows.swap_remove(window);
        if window < last {
            let own = self.rows * self.own_row();
            let cross = self.cross_window;
            for layer in &mut self.layers {
                for sound in [&mut layer.cross_keys, &mut layer.cross_values] {
                    sound.copy_within(last * cross..(last + 1) * cross, window * cross);
                }
                for values in [&mut layer.keys, &mut layer.values] {
                    values.copy_within(last * own..(last + 1) * own, window * own);
                }
            }
        }
        // Whoever comes next has room as the texts are that are left.
        self.fit(0);
    }

    /// Another row of a window remembers what `from` does.
    pub fn copy(&mut self, window: usize, from: usize, to: usize) {
        let own = self.own_row();
        let [from, to] = [from, to].map(|row| (window * self.rows + row) * own);
        for layer in &mut self.layers {
            layer.keys.copy_within(from..from + own, to);
            layer.values.copy_within(from..from + own, to);
        }
    }

    /// All rows of a window remember what its first does.
    pub fn spread(&mut self, window: usize) {
        (1..self.rows).for_each(|row| self.copy(window, 0, row));
    }

    /// Has as many columns as the longest text needs when `more` tokens are added to each.
    pub fn fit(&mut self, more: usize) {
        let lengths = self.windows.iter().map(|w| w.length);
        let columns = columns(lengths.max().unwrap_or(0) + more);
        if columns == self.columns {
            return;
        }
        let (rows, old) = (self.windows.len() * self.rows, self.columns);
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

    /// What a step reads of these.
    pub fn layer(&self, layer: usize, part: &Part) -> LayerView<'_> {
        let cross = part.windows.start * self.cross_window..part.windows.end * self.cross_window;
        let start = part.windows.start * self.rows;
        let own = start * self.own_row()..(start + part.len()) * self.own_row();
        let layer = &self.layers[layer];
        LayerView {
            cross_keys: layer.cross_keys.view(cross.clone()),
            cross_values: layer.cross_values.view(cross),
            keys: &layer.keys[own.clone()],
            values: &layer.values[own],
        }
    }

    /// Takes in what a step of `steps` tokens gave for these: keys `[rows, heads, 64, steps]` and values
    /// `[rows, heads, steps, 64]`. They count once the texts are [`Self::grow`]n.
    pub fn write(&mut self, layer: usize, part: &Part, steps: usize, keys: &[f32], values: &[f32]) {
        let (heads, columns) = (self.heads, self.columns);
        let layer = &mut self.layers[layer];
        for n in 0..part.len() {
            let window = part.windows.start + n / part.rows;
            let row = window * self.rows + n % part.rows;
            let length = self.windows[window].length;
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

    /// The texts of these windows have `steps` tokens more.
    pub fn grow(&mut self, windows: &Range<usize>, steps: usize) {
        self.windows[windows.clone()]
            .iter_mut()
            .for_each(|w| w.length += steps);
    }

    /// Where the tokens of a step of these stand in their texts, `[rows, steps]`.
    pub fn positions(&self, part: &Part, steps: usize) -> Vec<i64> {
        let rows = self.windows[part.windows.clone()]
            .iter()
            .flat_map(|w| std::iter::repeat_n(w.length, part.rows));
        rows.flat_map(|length| (length..length + steps).map(|p| p as i64))
            .collect()
    }

    /// What is added to the scores of a step of `steps` tokens of these, `[rows, 1, steps, columns + steps]`: nothing
    /// where a token may look, much where it may not.
    pub fn mask(&self, part: &Part, steps: usize, mask: &mut Vec<f32>) {
        const NOT: f32 = -1e9;
        mask.clear();
        for window in &self.windows[part.windows.clone()] {
            for _ in 0..part.rows {
                for step in 0..steps {
                    let columns =
                        (0..self.columns).map(|c| if c < window.length { 0.0 } else { NOT });
                    mask.extend(columns);
                    mask.extend((0..steps).map(|s| if s <= step { 0.0 } else { NOT }));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::halves;

    fn cache() -> Cache {
        cache_of(false)
    }

    fn cache_of(halves: bool) -> Cache {
        let text = format!(
            r#"{{"width": 128, "mels": 80, "heads": 2, "enc": 1, "dec": 1, "vocab": 51864, "type": "f32",
                "cross_halves": {halves}}}"#
        );
        Cache::new(&Header::parse(&text).unwrap())
    }

    /// Gives the last window in work a sound of one value, and of its negative.
    fn hear(cache: &mut Cache, tag: f32) {
        cache.hear_keys(0, &vec![tag; 128 * 1500]);
        cache.hear_values(0, &vec![-tag; 128 * 1500]);
    }

    /// The first key and the first value of each window in work.
    fn sounds(cache: &Cache) -> Vec<[f32; 2]> {
        let first = |sound: SoundView<'_>| match sound {
            SoundView::Floats(values) => {
                assert_eq!(values.len(), 128 * 1500);
                values[0]
            }
            SoundView::Halves(values) => {
                assert_eq!(values.len(), 128 * 1504);
                halves::to_f32(values[0])
            }
        };
        let windows = (0..cache.windows.len()).map(|window| {
            let layer = cache.layer(0, &Cache::first_row(window));
            [first(layer.cross_keys), first(layer.cross_values)]
        });
        windows.collect()
    }

    /// A step of `steps` tokens for `part`, with values that tell row, head, dimension and token.
    fn step(cache: &mut Cache, part: &Part, tags: &[f32], steps: usize) {
        cache.fit(steps);
        let mut keys = Vec::new();
        let mut values = Vec::new();
        assert_eq!(tags.len(), part.len());
        for (n, tag) in tags.iter().enumerate() {
            let length = cache.length(part.windows.start + n / part.rows);
            for head in 0..2 {
                let value = |d: usize, s: usize| {
                    tag * 1e5 + (head * 10_000 + d * 100 + (length + s) % 100) as f32
                };
                keys.extend((0..HEAD).flat_map(|d| (0..steps).map(move |s| value(d, s))));
                values.extend((0..steps).flat_map(|s| (0..HEAD).map(move |d| value(d, s))));
            }
        }
        cache.write(0, part, steps, &keys, &values);
        cache.grow(&part.windows, steps);
    }

    fn step_all(cache: &mut Cache, tags: &[f32], steps: usize) {
        let all = cache.all();
        step(cache, &all, tags, steps);
    }

    /// The row, counted over all windows, has these tokens.
    fn assert_row(cache: &Cache, row: usize, tag: f32, tokens: Range<usize>) {
        let LayerView { keys, values, .. } = cache.layer(0, &cache.all());
        let columns = cache.columns();
        for head in 0..2 {
            for d in 0..HEAD {
                for c in tokens.clone() {
                    let expected = tag * 1e5 + (head * 10_000 + d * 100 + c % 100) as f32;
                    let at = row * 2 + head;
                    assert_eq!(keys[(at * HEAD + d) * columns + c], expected);
                    assert_eq!(values[(at * columns + c) * HEAD + d], expected);
                }
            }
        }
    }

    #[test]
    fn tokens_stay_where_they_are_while_columns_and_windows_come_and_go() {
        let mut cache = cache();
        for _ in 0..3 {
            cache.add(TEXT);
        }

        step_all(&mut cache, &[1.0, 2.0, 3.0], 3);
        for _ in 0..70 {
            step_all(&mut cache, &[1.0, 2.0, 3.0], 1);
        }
        assert_eq!((cache.length(0), cache.columns()), (73, 96));
        cache.remove(0);
        for (row, tag) in [(0, 3.0), (1, 2.0)] {
            assert_row(&cache, row, tag, 0..73);
        }
        cache.shorten(0, 3);
        cache.shorten(1, 3);
        step_all(&mut cache, &[3.0, 2.0], 1);

        assert_eq!((cache.length(0), cache.columns()), (4, 32));
        for (row, tag) in [(0, 3.0), (1, 2.0)] {
            assert_row(&cache, row, tag, 0..4);
        }
    }

    #[test]
    fn a_windows_rows_go_on_from_each_other() {
        let mut cache = cache();
        assert_eq!(cache.begin(3), 3);
        for tag in [1.0, 2.0] {
            cache.add(200);
            let window = cache.windows() - 1;
            step(&mut cache, &Cache::first_row(window), &[tag], 2);
            cache.spread(window);
        }

        step_all(&mut cache, &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0], 40);
        cache.copy(1, 2, 0);
        assert_eq!(cache.all().len(), 6);
        for (row, first, later) in [
            (0, 1.0, 1.0),
            (1, 1.0, 3.0),
            (2, 1.0, 5.0),
            (3, 2.0, 6.0),
            (4, 2.0, 4.0),
            (5, 2.0, 6.0),
        ] {
            assert_row(&cache, row, first, 0..2);
            assert_row(&cache, row, later, 2..42);
        }
        cache.remove(0);
        assert_row(&cache, 0, 6.0, 2..42);
        assert_row(&cache, 1, 4.0, 2..42);
    }

    #[test]
    fn there_is_room_for_a_few_windows_of_many_rows() {
        let mut cache = cache();
        let count = |cache: &mut Cache, most: usize| {
            let mut count = 0;
            while cache.has_room(most) {
                cache.add(most);
                count += 1;
            }
            cache.clear();
            count
        };

        assert_eq!((cache.begin(1), count(&mut cache, TEXT)), (1, 8));
        assert_eq!(count(&mut cache, 10), 8);
        assert_eq!((cache.begin(5), count(&mut cache, 229)), (5, 4));
        assert_eq!(count(&mut cache, TEXT), 2);
        // No more than fit at their longest.
        assert_eq!((cache.begin(100), count(&mut cache, TEXT)), (12, 1));
    }

    #[test]
    fn the_room_that_a_long_text_leaves_is_there_for_others() {
        let mut cache = cache();
        cache.begin(6);
        cache.add(TEXT);
        cache.add(10);
        step_all(&mut cache, &[1.0; 12], 1);
        cache.shorten(1, 0);
        cache.grow(&(0..1), TEXT - 2);
        cache.fit(1);
        assert_eq!(cache.columns(), TEXT);

        cache.remove(0);
        while cache.has_room(10) {
            cache.add(10);
        }

        assert_eq!((cache.windows(), cache.columns()), (8, 32));
        step_all(&mut cache, &[2.0; 48], 9);
        assert_row(&cache, 47, 2.0, 0..9);
    }

    #[test]
    fn the_sound_of_the_last_window_moves_with_it() {
        for halves in [false, true] {
            let mut cache = cache_of(halves);
            for tag in [1.0, 2.0, 3.0] {
                cache.add(TEXT);
                hear(&mut cache, tag);
            }

            cache.remove(0);

            assert_eq!(sounds(&cache), [[3.0, -3.0], [2.0, -2.0]]);
        }
    }

    #[test]
    fn a_token_looks_at_its_own_row_and_at_those_before_it() {
        let mut cache = cache();
        cache.add(TEXT);
        cache.grow(&(0..1), 2);
        cache.add(TEXT);
        let mut mask = Vec::new();

        cache.mask(&cache.all(), 2, &mut mask);

        let open: Vec<Vec<usize>> = mask
            .chunks(34)
            .map(|row| (0..34).filter(|c| row[*c] == 0.0).collect())
            .collect();
        assert_eq!(open[..2], [vec![0, 1, 32], vec![0, 1, 32, 33]]);
        assert_eq!(open[2..], [vec![32], vec![32, 33]]);
        assert_eq!(cache.positions(&cache.all(), 2), [2, 3, 0, 1]);
    }
}
