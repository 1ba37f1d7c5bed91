// SPDX-License-Identifier: MPL-2.0
//! Keys and values of the texts so far, as our own operator reads them ([`past`]): an entry for each token, and for each text
//! a list of its entries. Texts that begin alike share what they begin with, so a text that goes on from another copies a
//! list and no values.
//!
//! A window has a region of its own for all entries that it may come to need, and fills it from the start. Nothing is moved:
//! what one text wrote may be another's past.

use super::cache::{Part, ROOM_OF_TEXTS};
use super::header::{Header, MARKS, TEXT};
use crate::inference::EngineError;
use crate::inference::onnx::past;
use crate::inference::pages::Room;
use crate::inference::whisper::MAX_TOKENS;

/// Tokens of a text with its marks.
const LONGEST: usize = MARKS + MAX_TOKENS;

/// See the module.
#[derive(Debug)]
pub(super) struct Entries {
    /// Values of an entry in one layer.
    entry: usize,
    /// Entries that there is room for.
    most: usize,
    /// Rows of a window.
    rows: usize,
    /// `[entries, 2, heads, 64]` of each layer
    layers: Vec<Room<u16>>,
    /// In the order of the windows.
    regions: Vec<Region>,
    /// Of windows that are gone.
    spare: Vec<Vec<i64>>,
    /// Of the rows of a step.
    index: Vec<i64>,
}

/// A window's.
#[derive(Debug)]
struct Region {
    start: usize,
    end: usize,
    /// The first that was not written.
    next: usize,
    /// Entries of each row's tokens, [`TEXT`] places a row.
    lists: Vec<i64>,
}

impl Entries {
    /// Untouched.
    pub fn new(header: &Header) -> Result<Self, EngineError> {
        let entry = past::entry(header.heads);
        let most = header.entries();
        let layer = |_| Room::new(most * entry, ROOM_OF_TEXTS);
        Ok(Self {
            entry,
            most,
            rows: 1,
            layers: (0..header.layers).map(layer).collect::<Result<_, _>>()?,
            regions: Vec::new(),
            spare: Vec::new(),
            index: Vec::new(),
        })
    }

    /// Has all its memory handed out.
    pub fn take(&self) {
        self.layers.iter().for_each(Room::take);
    }

    /// Rows that a window may have.
    pub fn most_rows(&self) -> usize {
        self.most / LONGEST
    }

    /// Begins with nothing in it, and windows of so many rows.
    pub fn begin(&mut self, rows: usize) {
        self.rows = rows;
        self.clear();
    }

    pub fn clear(&mut self) {
        let lists = self.regions.drain(..).map(|region| region.lists);
        self.spare.extend(lists);
    }

    /// Entries of a window whose texts have up to `tokens` each: what is more than a text and its marks is read by one row
    /// for all.
    fn size(&self, tokens: usize) -> usize {
        self.rows * tokens.min(LONGEST) + tokens.saturating_sub(LONGEST)
    }

    /// Where a window with so many entries fits.
    fn gap(&self, size: usize) -> Option<usize> {
        let fits = |start: &usize| {
            let end = start + size;
            end <= self.most
                && self
                    .regions
                    .iter()
                    .all(|r| end <= r.start || *start >= r.end)
        };
        let starts = self.regions.iter().map(|region| region.end);
        std::iter::once(0).chain(starts).filter(fits).min()
    }

    /// Whether one more window fits, whose texts have up to so many tokens.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.gap(self.size(tokens)).is_some()
    }

    /// Adds a window. What does not fit has no room, and no step of it will go.
    pub fn add(&mut self, tokens: usize) {
        let size = self.size(tokens);
        let (start, end) = match self.gap(size) {
            Some(start) => (start, start + size),
            None => (0, 0),
        };
        let mut lists = self.spare.pop().unwrap_or_default();
        lists.clear();
        lists.resize(self.rows * TEXT, 0);
        self.regions.push(Region {
            start,
            end,
            next: start,
            lists,
        });
    }

    /// Forgets a window; the last takes its place.
    pub fn remove(&mut self, window: usize) {
        let region = self.regions.swap_remove(window);
        self.spare.push(region.lists);
    }

    /// Another row remembers the first `length` tokens of `from`.
    pub fn copy(&mut self, window: usize, from: usize, to: usize, length: usize) {
        let from = from * TEXT..from * TEXT + length;
        self.regions[window].lists.copy_within(from, to * TEXT);
    }

    /// Forgets what the rows have behind their first `length` tokens.
    pub fn shorten(&mut self, window: usize, length: usize) {
        let region = &mut self.regions[window];
        let kept = region.lists.chunks_exact(TEXT).flat_map(|l| &l[..length]);
        // They are written in the order of their tokens: what is kept lies before what is not.
        let last = kept.filter_map(|n| usize::try_from(*n).ok()).max();
        region.next = last.map_or(region.start, |last| last + 1);
    }

    /// Whether a step of so many tokens has where to write.
    pub fn fits(&self, part: &Part, steps: usize) -> bool {
        let more = part.rows * steps;
        let regions = &mut self.regions[part.windows.clone()].iter();
        regions.all(|region| region.next + more <= region.end)
    }

    /// Works out the entries of the rows of a step, `[rows, most tokens]`, whose texts have `lengths` of them.
    pub fn look(&mut self, lengths: &[usize], part: &Part) {
        // Some, even where nothing was written: a length of nothing is no tensor.
        let most = lengths.iter().copied().max().unwrap_or(0).max(1);
        self.index.clear();
        for (region, length) in self.regions[part.windows.clone()].iter().zip(lengths) {
            for row in region.lists.chunks_exact(TEXT).take(part.rows) {
                self.index.extend(&row[..*length]);
                self.index.extend(std::iter::repeat_n(0, most - length));
            }
        }
    }

    /// What [`Self::look`] has worked out.
    pub fn index(&self) -> &[i64] {
        &self.index
    }

    /// All entries of a layer, `[entries, 2, heads, 64]`.
    pub fn layer(&self, layer: usize) -> &[u16] {
        &self.layers[layer]
    }

    /// Takes in what a step of `steps` tokens gave for these, `[rows, steps, 2, heads, 64]`. It counts once the texts are
    /// [`Self::grow`]n.
    pub fn write(&mut self, layer: usize, part: &Part, steps: usize, values: &[u16]) {
        let own = part.rows * steps * self.entry;
        let layer = &mut self.layers[layer];
        let regions = &self.regions[part.windows.clone()];
        for (region, values) in regions.iter().zip(values.chunks_exact(own)) {
            let at = region.next * self.entry;
            layer[at..at + own].copy_from_slice(values);
        }
    }

    /// The texts of these windows, of so many tokens, have `steps` more.
    pub fn grow(&mut self, lengths: &[usize], part: &Part, steps: usize) {
        let regions = self.regions[part.windows.clone()].iter_mut();
        for (region, length) in regions.zip(lengths) {
            let lists = region.lists.chunks_exact_mut(TEXT).take(part.rows);
            for (row, list) in lists.enumerate() {
                let first = (region.next + row * steps) as i64;
                let places = list[*length..*length + steps].iter_mut();
                places.zip(first..).for_each(|(place, n)| *place = n);
            }
            region.next += part.rows * steps;
        }
    }
}
