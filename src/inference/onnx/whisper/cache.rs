// SPDX-License-Identifier: MPL-2.0
//! Keys and values of the windows that are decoded side by side: those of the sound, and those of the texts so far.
//!
//! The graphs own none of it. A window has as many rows as texts are followed in it, one behind the other, and its sound
//! once. Windows lie one behind the other too, and one that is done is replaced by the last.

use std::ops::Range;

use super::columns::Columns;
use super::entries::Entries;
use super::header::Header;
use super::sound::{SoundView, Sounds};
use crate::inference::EngineError;

/// For whoever has no memory for it.
pub(super) const ROOM_OF_TEXTS: &str = "keys and values of the texts";

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    /// Windows there is room for.
    windows_most: usize,
    /// Rows of a window.
    rows: usize,
    windows: Vec<Texts>,
    sounds: Sounds,
    past: Past,
}

/// A window's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Texts {
    /// Tokens of each of its texts.
    pub length: usize,
    /// Tokens that there may be.
    most: usize,
}

/// Keys and values of the texts.
#[derive(Debug)]
enum Past {
    /// For ONNX Runtime's products.
    Columns(Columns),
    /// For our operator.
    Entries(Entries),
}

/// What a step's rows may look at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look<'a> {
    /// `[rows, 1, steps, columns + steps]`, and the columns.
    Mask(&'a [f32], usize),
    /// `[rows, most tokens]`
    Index(&'a [i64]),
}

/// What one layer of the decoder reads of the texts.
#[derive(Clone, Copy, Debug)]
pub(super) enum PastView<'a> {
    /// Keys `[rows, heads, 64, columns]` and values `[rows, heads, columns, 64]`.
    Columns([&'a [f32]; 2]),
    /// `[entries, 2, heads, 64]`
    Entries(&'a [u16]),
}

/// The same of a step's new tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fresh<'a> {
    /// Keys `[rows, heads, 64, steps]` and values `[rows, heads, steps, 64]`.
    Columns([&'a [f32]; 2]),
    /// `[rows, steps, 2, heads, 64]`
    Entries(&'a [u16]),
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
    pub fn new(header: &Header) -> Result<Self, EngineError> {
        let windows = header.windows();
        Ok(Self {
            windows_most: windows,
            rows: 1,
            windows: Vec::with_capacity(windows),
            sounds: Sounds::new(header, windows)?,
            past: if header.has_operators() {
                Past::Entries(Entries::new(header)?)
            } else {
                Past::Columns(Columns::new(header)?)
            },
        })
    }

    /// Has all its memory handed out.
    pub fn take(&self) {
        self.sounds.take();
        match &self.past {
            Past::Columns(columns) => columns.take(),
            Past::Entries(entries) => entries.take(),
        }
    }

    /// Begins with windows of up to so many rows, and says how many there will be. None may be in it.
    pub fn begin(&mut self, rows: usize) -> usize {
        debug_assert!(self.windows.is_empty());
        match &mut self.past {
            Past::Columns(columns) => self.rows = rows.clamp(1, columns.begin()),
            Past::Entries(entries) => {
                self.rows = rows.clamp(1, entries.most_rows());
                entries.begin(self.rows);
            }
        }
        self.rows
    }

    /// Whether one more window fits, with up to so many tokens in each row.
    pub fn has_room(&self, most: usize) -> bool {
        let windows = self.windows.len() + 1;
        windows <= self.windows_most
            && match &self.past {
                Past::Columns(columns) => {
                    let longest = self.windows.iter().map(|w| w.most).fold(most, usize::max);
                    columns.has_room(windows * self.rows, longest)
                }
                Past::Entries(entries) => entries.has_room(most),
            }
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

    /// Tokens of a window's texts.
    pub fn length(&self, window: usize) -> usize {
        self.windows[window].length
    }

    /// Forgets what a window's texts have behind their first `length` tokens.
    pub fn shorten(&mut self, window: usize, length: usize) {
        self.windows[window].length = length;
        if let Past::Entries(entries) = &mut self.past {
            entries.shorten(window, length);
        }
    }

    /// Adds a window without text, for texts of up to `most` tokens. Its sound comes with [`Self::hear_keys`] and
    /// [`Self::hear_values`].
    pub fn add(&mut self, most: usize) {
        self.windows.push(Texts { length: 0, most });
        if let Past::Entries(entries) = &mut self.past {
            entries.add(most);
        }
    }

    /// Takes in a layer's keys of the last window's sound: `[heads, 64, 1500]`.
    pub fn hear_keys(&mut self, layer: usize, keys: &[f32]) {
        self.sounds.hear_keys(self.windows.len() - 1, layer, keys);
    }

    /// The same of its values: `[heads, 1500, 64]`.
    pub fn hear_values(&mut self, layer: usize, values: &[f32]) {
        let last = self.windows.len() - 1;
        self.sounds.hear_values(last, layer, values);
    }

    /// Forgets all windows.
    pub fn clear(&mut self) {
        self.windows.clear();
        match &mut self.past {
            Past::Columns(columns) => columns.clear(),
            Past::Entries(entries) => entries.clear(),
        }
    }

    /// The last window takes the place of this one.
    pub fn remove(&mut self, window: usize) {
        let last = self.windows.len() - 1;
        self.windows.swap_remove(window);
        if window < last {
            self.sounds.replace(last, window);
        }
        match &mut self.past {
            Past::Columns(columns) => {
                if window < last {
                    columns.replace(last * self.rows, window * self.rows, self.rows);
                }
                // Whoever comes next has room as the texts are that are left.
                columns.fit(last * self.rows, longest(&self.windows));
            }
            Past::Entries(entries) => entries.remove(window),
        }
    }

    /// Another row of a window remembers what `from` does.
    pub fn copy(&mut self, window: usize, from: usize, to: usize) {
        match &mut self.past {
            Past::Columns(columns) => {
                let first = window * self.rows;
                columns.replace(first + from, first + to, 1);
            }
            Past::Entries(entries) => {
                entries.copy(window, from, to, self.windows[window].length);
            }
        }
    }

    /// All rows of a window remember what its first does.
    pub fn spread(&mut self, window: usize) {
        (1..self.rows).for_each(|row| self.copy(window, 0, row));
    }

    /// Makes ready for a step of `steps` tokens of these; says if they do not fit.
    pub fn prepare(&mut self, part: &Part, steps: usize) -> bool {
        match &mut self.past {
            Past::Columns(columns) => {
                let rows = self.windows.len() * self.rows;
                columns.fit(rows, longest(&self.windows) + steps);
                columns.look(&self.windows, part, steps);
                true
            }
            Past::Entries(entries) => {
                entries.look(&lengths(&self.windows, part), part);
                entries.fits(part, steps)
            }
        }
    }

    /// What the step that was prepared may look at.
    pub fn look(&self) -> Look<'_> {
        match &self.past {
            Past::Columns(columns) => Look::Mask(columns.mask(), columns.columns()),
            Past::Entries(entries) => Look::Index(entries.index()),
        }
    }

    /// Keys and values of a layer's sound.
    pub fn sound(&self, layer: usize, part: &Part) -> [SoundView<'_>; 2] {
        self.sounds.layer(layer, &part.windows)
    }

    /// The same of its texts, as they were prepared.
    pub fn past(&self, layer: usize, part: &Part) -> PastView<'_> {
        match &self.past {
            Past::Columns(columns) => {
                let start = part.windows.start * self.rows;
                PastView::Columns(columns.layer(layer, start..start + part.len()))
            }
            Past::Entries(entries) => PastView::Entries(entries.layer(layer)),
        }
    }

    /// Takes in what a step of `steps` tokens gave for these. It counts once the texts are [`Self::grow`]n.
    pub fn write(&mut self, layer: usize, part: &Part, steps: usize, fresh: Fresh<'_>) {
        match (&mut self.past, fresh) {
            (Past::Columns(columns), Fresh::Columns(values)) => {
                let (rows, windows) = (self.rows, &self.windows);
                let places = part.windows.clone().flat_map(|window| {
                    let first = window * rows;
                    let own = first..first + part.rows;
                    own.map(move |row| (row, windows[window].length))
                });
                columns.write(layer, places, steps, values);
            }
            (Past::Entries(entries), Fresh::Entries(values)) => {
                entries.write(layer, part, steps, values);
            }
            _ => debug_assert!(false, "another form than this is"),
        }
    }

    /// The texts of these have `steps` tokens more.
    pub fn grow(&mut self, part: &Part, steps: usize) {
        if let Past::Entries(entries) = &mut self.past {
            entries.grow(&lengths(&self.windows, part), part, steps);
        }
        self.windows[part.windows.clone()]
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
}

/// Tokens of the longest text.
fn longest(windows: &[Texts]) -> usize {
    windows.iter().map(|w| w.length).max().unwrap_or(0)
}

/// Tokens of the texts of these.
fn lengths(windows: &[Texts], part: &Part) -> Vec<usize> {
    windows[part.windows.clone()]
        .iter()
        .map(|w| w.length)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::header::{HEAD, TEXT};
    use super::*;
    use crate::inference::halves;
    use crate::inference::onnx::{cross, past};

    fn cache(ours: bool) -> Cache {
        let operators = u32::from(ours);
        let text = format!(
            r#"{{"width": 128, "mels": 80, "heads": 2, "enc": 1, "dec": 1, "vocab": 51864, "type": "f32",
                "operators": {operators}}}"#
        );
        Cache::new(&Header::parse(&text).unwrap()).unwrap()
    }

    /// Gives the last window in work a sound of one value, and of its negative. What all keys have in common is not kept:
    /// here it is nothing.
    fn hear(cache: &mut Cache, tag: f32) {
        cache.hear_keys(0, &[tag, -tag].repeat(64 * 1500));
        cache.hear_values(0, &vec![-tag; 128 * 1500]);
    }

    /// The first key and the first value of each window in work.
    fn sounds(cache: &Cache) -> Vec<[f32; 2]> {
        // Bytes of keys are 128 above what they are.
        let first = |(turned, sound): (u8, SoundView<'_>)| match sound {
            SoundView::Floats(values) => {
                assert_eq!(values.len(), 128 * 1500);
                values[0]
            }
            SoundView::Bytes(values) => {
                assert_eq!(values.len(), 2 * 47 * cross::BLOCK);
                let (scales, bytes) = values.split_at(4 * cross::TILE);
                f32::from_ne_bytes(*scales.first_chunk().unwrap())
                    * f32::from((bytes[0] ^ turned).cast_signed())
            }
        };
        let windows = (0..cache.windows.len()).map(|window| {
            let [keys, values] = cache.sound(0, &Cache::first_row(window));
            [(0x80, keys), (0, values)].map(first)
        });
        windows.collect()
    }

    /// What a token of this text has for a head and a dimension: no number that a half cannot hold.
    fn value(tag: f32, token: usize, head: usize, d: usize) -> f32 {
        tag * 128.0 + ((token + 5 * head + 11 * d) % 128) as f32
    }

    /// A step of `steps` tokens for `part`, with values that tell row, head, dimension and token.
    fn step(cache: &mut Cache, part: &Part, tags: &[f32], steps: usize) {
        assert!(cache.prepare(part, steps));
        assert_eq!(tags.len(), part.len());
        let (mut keys, mut values, mut both) = (Vec::new(), Vec::new(), Vec::new());
        for (n, tag) in tags.iter().enumerate() {
            let length = cache.length(part.windows.start + n / part.rows);
            let of = |s: usize, head: usize, d: usize| value(*tag, length + s, head, d);
            for head in 0..2 {
                keys.extend((0..HEAD).flat_map(|d| (0..steps).map(move |s| of(s, head, d))));
                values.extend((0..steps).flat_map(|s| (0..HEAD).map(move |d| of(s, head, d))));
            }
            for s in 0..steps {
                for sign in [1.0, -1.0] {
                    for head in 0..2 {
                        let values = (0..HEAD).map(|d| halves::from_f32(sign * of(s, head, d)));
                        both.extend(values);
                    }
                }
            }
        }
        values.iter_mut().for_each(|v| *v = -*v);
        let fresh = match &cache.past {
            Past::Columns(_) => Fresh::Columns([&keys, &values]),
            Past::Entries(_) => Fresh::Entries(&both),
        };
        cache.write(0, part, steps, fresh);
        cache.grow(part, steps);
    }

    fn step_all(cache: &mut Cache, tags: &[f32], steps: usize) {
        let all = cache.all();
        step(cache, &all, tags, steps);
    }

    /// The row, counted over all windows, has these tokens.
    fn assert_row(cache: &mut Cache, row: usize, tag: f32, tokens: Range<usize>) {
        let all = cache.all();
        assert!(cache.prepare(&all, 0));
        for (token, head, d) in
            tokens.flat_map(|token| [(token, 0, 0), (token, 0, 63), (token, 1, 17)])
        {
            let found = match (cache.past(0, &all), cache.look()) {
                (PastView::Columns([keys, values]), Look::Mask(_, columns)) => {
                    let at = row * 2 + head;
                    let key = keys[(at * HEAD + d) * columns + token];
                    [key, values[(at * columns + token) * HEAD + d]]
                }
                (PastView::Entries(entries), Look::Index(index)) => {
                    let own = index[row * index.len() / all.len() + token] as usize;
                    let entry = &entries[own * past::entry(2)..][..past::entry(2)];
                    let at = head * HEAD + d;
                    [entry[at], entry[2 * HEAD + at]].map(halves::to_f32)
                }
                _ => panic!("two forms at once"),
            };
            let expected = value(tag, token, head, d);
            assert_eq!(found, [expected, -expected], "token {token} of row {row}");
        }
    }

    #[test]
    fn tokens_are_found_again_while_windows_come_and_go() {
        for ours in [false, true] {
            let mut cache = cache(ours);
            for _ in 0..3 {
                cache.add(TEXT);
            }

            step_all(&mut cache, &[1.0, 2.0, 3.0], 3);
            for _ in 0..70 {
                step_all(&mut cache, &[1.0, 2.0, 3.0], 1);
            }
            assert_eq!(cache.length(0), 73);
            cache.remove(0);
            for (row, tag) in [(0, 3.0), (1, 2.0)] {
                assert_row(&mut cache, row, tag, 0..73);
            }
            cache.shorten(0, 3);
            cache.shorten(1, 3);
            step_all(&mut cache, &[3.0, 2.0], 1);

            assert_eq!(cache.length(0), 4);
            for (row, tag) in [(0, 3.0), (1, 2.0)] {
                assert_row(&mut cache, row, tag, 0..4);
            }
            // Whoever takes the place of one that is gone disturbs nobody.
            cache.add(100);
            step(&mut cache, &Cache::first_row(2), &[9.0], 90);
            for (row, tag) in [(0, 3.0), (1, 2.0)] {
                assert_row(&mut cache, row, tag, 0..4);
            }
            assert_row(&mut cache, 2, 9.0, 0..90);
        }
    }

    #[test]
    fn a_windows_rows_go_on_from_each_other() {
        for ours in [false, true] {
            let mut cache = cache(ours);
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
            let rows = [
                (0, 1.0, 1.0),
                (1, 1.0, 3.0),
                (2, 1.0, 5.0),
                (3, 2.0, 6.0),
                (4, 2.0, 4.0),
                (5, 2.0, 6.0),
            ];
            for (row, first, later) in rows {
                assert_row(&mut cache, row, first, 0..2);
                assert_row(&mut cache, row, later, 2..42);
            }
            // What a row writes now is not in the past of the one that it went on from.
            step_all(&mut cache, &[1.0, 3.0, 5.0, 7.0, 4.0, 6.0], 1);
            assert_row(&mut cache, 3, 6.0, 2..42);
            assert_row(&mut cache, 3, 7.0, 42..43);
            assert_row(&mut cache, 5, 6.0, 2..43);
            cache.remove(0);
            assert_row(&mut cache, 0, 6.0, 2..42);
            assert_row(&mut cache, 1, 4.0, 2..43);
            // The best text is read once more, in its first row.
            cache.shorten(0, 2);
            step(&mut cache, &Cache::first_row(0), &[8.0], 198);
            assert_row(&mut cache, 0, 2.0, 0..2);
            assert_row(&mut cache, 0, 8.0, 2..200);
        }
    }

    fn count(cache: &mut Cache, most: usize) -> usize {
        let mut count = 0;
        while cache.has_room(most) {
            cache.add(most);
            count += 1;
        }
        cache.clear();
        count
    }

    #[test]
    fn there_is_room_for_a_few_windows_of_many_rows() {
        let mut columns = cache(false);
        assert_eq!((columns.begin(1), count(&mut columns, TEXT)), (1, 8));
        assert_eq!(count(&mut columns, 10), 8);
        assert_eq!((columns.begin(5), count(&mut columns, 229)), (5, 4));
        assert_eq!(count(&mut columns, TEXT), 2);
        // No more than fit at their longest.
        assert_eq!((columns.begin(100), count(&mut columns, TEXT)), (12, 1));

        let mut entries = cache(true);
        assert_eq!((entries.begin(1), count(&mut entries, TEXT)), (1, 8));
        assert_eq!((entries.begin(5), count(&mut entries, 229)), (5, 8));
        // A prompt is there once, and one more fits in.
        assert_eq!(count(&mut entries, TEXT), 6);
        assert_eq!((entries.begin(100), count(&mut entries, TEXT)), (40, 1));
    }

    #[test]
    fn the_room_of_one_that_is_gone_is_there_for_others() {
        for ours in [false, true] {
            let mut cache = cache(ours);
            cache.begin(6);
            cache.add(TEXT);
            cache.add(10);
            step_all(&mut cache, &[1.0; 12], 1);
            cache.shorten(1, 0);

            cache.remove(0);
            while cache.has_room(10) {
                cache.add(10);
            }

            assert_eq!(cache.windows(), 8);
            step_all(&mut cache, &[2.0; 48], 9);
            assert_row(&mut cache, 47, 2.0, 0..9);
        }
    }

    #[test]
    fn what_does_not_fit_is_no_step() {
        let mut cache = cache(true);
        cache.begin(5);
        cache.add(10);
        let all = cache.all();

        step_all(&mut cache, &[1.0; 5], 10);

        assert!(!cache.prepare(&all, 1));
    }

    #[test]
    fn the_sound_of_the_last_window_moves_with_it() {
        for ours in [false, true] {
            let mut cache = cache(ours);
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
        let mut cache = cache(false);
        cache.add(TEXT);
        step_all(&mut cache, &[1.0], 2);
        cache.add(TEXT);
        let all = cache.all();

        assert!(cache.prepare(&all, 2));

        let Look::Mask(mask, columns) = cache.look() else {
            panic!("no mask");
        };
        assert_eq!(columns, 32);
        let open: Vec<Vec<usize>> = mask
            .chunks(34)
            .map(|row| (0..34).filter(|c| row[*c] == 0.0).collect())
            .collect();
        assert_eq!(open[..2], [vec![0, 1, 32], vec![0, 1, 32, 33]]);
        assert_eq!(open[2..], [vec![32], vec![32, 33]]);
        assert_eq!(cache.positions(&all, 2), [2, 3, 0, 1]);
    }
}
