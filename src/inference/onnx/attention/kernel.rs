// SPDX-License-Identifier: MPL-2.0
//! Attention of one head, by what the processor has.
//!
//! With numbers of 8 bits it is made otherwise ([`bytes`]); of the others this is said:
//!
//! Some rows of queries at a time go through all keys, a strip of 32 after the other: a strip's scores, their exponentials,
//! and when there are enough of those, what the values come to. So nothing leaves the processor's nearer caches, and no
//! score is ever written to memory.
//!
//! Exponentials are of scores less a row's reference, which is the first strip's largest and rises only where a score
//! is so far above it that it matters ([`SLACK`]): then all that the row has come to is scaled.
//!
//! Products are of words of 32 bits: a float, or two numbers of 16 bits (bf16) whose products are summed up. What belongs
//! to both of a word's numbers is 16 places apart, so that nothing has to be shuffled.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::HEAD;
use crate::dsp::vectors::exponential;
#[cfg(target_arch = "x86_64")]
use crate::inference::onnx::lanes;
use crate::inference::onnx::lanes::{Lanes, Plain};
#[cfg(target_arch = "x86_64")]
use crate::inference::onnx::tiles;

/// Keys whose scores are made at once, and values of a head that are summed up at once.
pub(super) const STRIP: usize = 32;
/// Columns side by side in a panel of keys or values.
const PANEL: usize = 16;
/// Positions whose shares are kept before the values are summed up.
const BLOCK: usize = 256;
/// Rows at once, at the most.
const ROWS_MAX: usize = 64;
/// Scores are divided by the root of a head's width.
const SCALE: f32 = 0.125;
/// So far may a score, not yet scaled, be above the reference: e^50 times 1500 is no large float.
const SLACK: f32 = 50.0 / SCALE;
const _: () = assert!(HEAD == 64 && BLOCK.is_multiple_of(STRIP));

/// What a processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Tiles of numbers of 16 bits.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// Vectors of numbers of 8 bits.
    #[cfg(target_arch = "x86_64")]
    Bytes,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

impl Isa {
    /// All that this processor can do, the fastest first.
    pub fn known() -> Vec<Self> {
        let mut known = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = has!("avx512f") && has!("avx512dq");
            if avx512 && tiles::may_use_tiles() {
                known.push(Self::Amx);
            }
            if lanes::has_vnni() {
                known.push(Self::Bytes);
            }
            if avx512 {
                known.push(Self::Avx512);
            }
            if has!("avx2") && has!("fma") {
                known.push(Self::Avx2);
            }
        }
        known.push(Self::Plain);
        known
    }

    /// Of so many bits are the numbers that it multiplies.
    pub fn bits(self) -> u32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Bytes => 8,
            _ => 32,
        }
    }
}

/// A line of the processor's caches.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; PANEL]);

/// Makes room for so many words, if there is less.
fn fit(room: &mut Vec<Line>, words: usize) {
    if room.len() < words / PANEL {
        room.resize(words / PANEL, Line([0; PANEL]));
    }
}

/// What lies between inputs and outputs: one head's keys and values, and what some rows come to.
#[derive(Default)]
pub(super) struct Room {
    /// Panels of 16 keys, `[panels, words of a key, 16]`.
    keys: Vec<Line>,
    /// Panels of 16 of a head's 64 values, `[4, words of all positions, 16]`.
    values: Vec<Line>,
    /// `[rows, words of a query]`
    queries: Vec<Line>,
    /// Two strips' scores, `[2, rows, 32]`.
    scores: Vec<Line>,
    /// A block's exponentials, `[rows, words of a block]`.
    shares: Vec<Line>,
    /// `[rows, 64]`
    context: Vec<Line>,
    /// Sums of exponentials, `[rows, 32]`.
    sums: Vec<Line>,
    /// For numbers of 8 bits; then there is nothing in the others.
    #[cfg(target_arch = "x86_64")]
    bytes: bytes::Room,
}

impl Room {
    /// Makes room for so many positions, a multiple of 32.
    fn fit(&mut self, padded: usize) {
        fit(&mut self.keys, padded * HEAD);
        fit(&mut self.values, padded * HEAD);
        fit(&mut self.queries, ROWS_MAX * HEAD);
        fit(&mut self.scores, 2 * ROWS_MAX * STRIP);
        fit(&mut self.shares, ROWS_MAX * BLOCK);
        fit(&mut self.context, ROWS_MAX * HEAD);
        fit(&mut self.sums, ROWS_MAX * STRIP);
    }
}

/// Queries, keys and values side by side, `[positions, 3 * heads * 64]`.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub values: &'a [f32],
    pub positions: usize,
    pub heads: usize,
}

const ZERO: [f32; HEAD] = [0.0; HEAD];

impl Given<'_> {
    /// A head's part of the query (0), the key (1) or the value (2) of a position; zeros behind the last.
    #[inline(always)]
    fn part(&self, which: usize, head: usize, position: usize) -> &[f32; HEAD] {
        let at = ((position * 3 + which) * self.heads + head) * HEAD;
        self.values
            .get(at..)
            .map_or(&ZERO, |rest| rest.first_chunk().unwrap_or(&ZERO))
    }
}

/// Writes what each position's values come to, `[positions, heads * 64]`. `isa` must be one of [`Isa::known`].
pub(super) fn attend(isa: Isa, given: Given<'_>, room: &mut Room, out: &mut [f32]) {
    assert_eq!(given.values.len(), given.positions * 3 * given.heads * HEAD);
    assert_eq!(out.len(), given.positions * given.heads * HEAD);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Bytes {
        // SAFETY: a processor on which this was found has these instructions.
        return unsafe { bytes::attend(given, &mut room.bytes, out) };
    }
    room.fit(given.positions.next_multiple_of(STRIP));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Bytes => {}
        // SAFETY: a processor on which this was found has these instructions, and the tiles are claimed for as long as it
        // runs.
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => tiles::with_tiles(|| unsafe { x86::amx(given, room, out) }),
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::avx512(given, room, out) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2(given, room, out) },
        // SAFETY: it needs no instructions that a processor may lack.
        Isa::Plain => unsafe { heads::<Vectors<Plain, 2, 2, 32>>(given, room, out) },
    }
}

/// How products are made. All of it is unsafe because the processor must have the instructions; what is read and written
/// must be there.
trait Products {
    /// Numbers in a word.
    const PAIR: usize;
    /// Rows at once.
    const ROWS: usize;
    /// `[ROWS, 32]` sums of products of `words` words of rows and of two panels that are `panel` words apart. `ADD`: to
    /// what is there already.
    unsafe fn product<const ADD: bool>(
        rows: (*const u32, usize),
        panels: (*const u32, usize),
        words: usize,
        to: (*mut f32, usize),
    );
    /// Whether one of 32 scores is above a bound.
    unsafe fn above(scores: *const f32, bound: f32) -> bool;
    /// Exponentials of 32 scores less the reference, as words; they are added to 32 sums.
    unsafe fn shares(scores: *const f32, reference: f32, to: *mut u32, sums: *mut f32);
    /// What 32 sums come to.
    unsafe fn total(sums: *const f32) -> f32;
}

/// All heads.
///
/// # Safety
///
/// The processor must have the instructions of `P`, lengths must be those of [`attend`], and the room fit.
#[inline(always)]
unsafe fn heads<P: Products>(given: Given<'_>, room: &mut Room, out: &mut [f32]) {
    for head in 0..given.heads {
        // SAFETY: as the caller promises.
        unsafe {
            take_keys::<P>(given, head, room.keys.as_mut_ptr().cast());
            take_values::<P>(given, head, room.values.as_mut_ptr().cast());
            let places = Places::of(room, given.positions);
            for first in (0..given.positions).step_by(P::ROWS) {
                rows::<P>(given, head, first, places, out);
            }
        }
    }
}

/// A number of 16 bits with the exponent of a float, the nearest.
#[inline(always)]
fn bf16(value: f32) -> u32 {
    // What is no number stays none, but for one whose bits are all set, which no arithmetic makes.
    value.to_bits().wrapping_add(0x8000) >> 16
}

/// Numbers as words of two.
#[inline(always)]
fn pairs(low: [f32; PANEL], high: [f32; PANEL]) -> [u32; PANEL] {
    let mut words = low.map(bf16);
    for (word, high) in words.iter_mut().zip(high.map(bf16)) {
        *word |= high << 16;
    }
    words
}

/// A query or a key as words.
#[inline(always)]
fn words_of<const PAIR: usize>(from: &[f32; HEAD]) -> [u32; HEAD] {
    if PAIR == 1 {
        return from.map(f32::to_bits);
    }
    let mut words = [0; HEAD];
    let ([a, b, c, d], _) = from.as_chunks::<PANEL>() else {
        return words;
    };
    words[..PANEL].copy_from_slice(&pairs(*a, *b));
    words[PANEL..STRIP].copy_from_slice(&pairs(*c, *d));
    words
}

#[inline(always)]
fn words_as<P: Products>(from: &[f32; HEAD]) -> [u32; HEAD] {
    match P::PAIR {
        1 => words_of::<1>(from),
        _ => words_of::<2>(from),
    }
}

/// # Safety
///
/// There must be room for all positions, rounded up to strips.
#[inline(always)]
unsafe fn take_keys<P: Products>(given: Given<'_>, head: usize, to: *mut u32) {
    let padded = given.positions.next_multiple_of(STRIP);
    let count = HEAD / P::PAIR;
    let mut panel = [[0; HEAD]; PANEL];
    for first in (0..padded).step_by(PANEL) {
        for (n, own) in panel.iter_mut().enumerate() {
            *own = words_as::<P>(given.part(1, head, first + n));
        }
        // SAFETY: a panel has 16 times as many words as a key, and there is one for each 16 positions.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(first * count), PANEL * count) };
        for (word, to) in to.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            *to = panel.each_ref().map(|own| own[word]);
        }
    }
}

/// # Safety
///
/// There must be room for all positions, rounded up to strips.
#[inline(always)]
unsafe fn take_values<P: Products>(given: Given<'_>, head: usize, to: *mut u32) {
    let count = given.positions.next_multiple_of(STRIP) / P::PAIR;
    for word in 0..count {
        let position = match P::PAIR {
            1 => word,
            _ => word / PANEL * STRIP + word % PANEL,
        };
        let (low, _) = given.part(2, head, position).as_chunks::<PANEL>();
        let (high, _) = given.part(2, head, position + PANEL).as_chunks::<PANEL>();
        for panel in 0..HEAD / PANEL {
            // SAFETY: each of four panels has as many lines as all positions have words.
            let to = unsafe {
                &mut *to
                    .add((panel * count + word) * PANEL)
                    .cast::<[u32; PANEL]>()
            };
            *to = match P::PAIR {
                1 => low[panel].map(f32::to_bits),
                _ => pairs(low[panel], high[panel]),
            };
        }
    }
}

/// Where everything lies, in words; the room's fields say how.
#[derive(Clone, Copy)]
struct Places {
    keys: *const u32,
    values: *const u32,
    queries: *mut u32,
    scores: *mut f32,
    shares: *mut u32,
    context: *mut f32,
    sums: *mut f32,
    positions: usize,
    /// Rounded up to strips.
    padded: usize,
}

impl Places {
    fn of(room: &mut Room, positions: usize) -> Self {
        Self {
            keys: room.keys.as_ptr().cast(),
            values: room.values.as_ptr().cast(),
            queries: room.queries.as_mut_ptr().cast(),
            scores: room.scores.as_mut_ptr().cast(),
            shares: room.shares.as_mut_ptr().cast(),
            context: room.context.as_mut_ptr().cast(),
            sums: room.sums.as_mut_ptr().cast(),
            positions,
            padded: positions.next_multiple_of(STRIP),
        }
    }

    /// Makes the scores of a strip, all rows'. Two neighbours' lie beside one another.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions of `P`, and the strip be one of those that there are.
    #[inline(always)]
    unsafe fn score<P: Products>(self, strip: usize) -> *const f32 {
        let words = HEAD / P::PAIR;
        // SAFETY: queries have so many words, and two panels of keys begin at each strip; there are scores of two strips.
        unsafe {
            let to = self.scores.add(strip / STRIP % 2 * P::ROWS * STRIP);
            let panels = (self.keys.add(strip * words), PANEL * words);
            P::product::<false>((self.queries, words), panels, words, (to, STRIP));
            if strip + STRIP > self.positions {
                for row in 0..P::ROWS {
                    let own = &mut *to.add(row * STRIP).cast::<[f32; STRIP]>();
                    own[self.positions - strip..].fill(f32::NEG_INFINITY);
                }
            }
            to
        }
    }

    /// Adds up the values of positions whose shares are there.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions of `P`; the positions must begin and end with strips, and be some and no
    /// more than a block.
    #[inline(always)]
    unsafe fn sum_up<P: Products>(self, from: usize, to: usize) {
        let words = (to - from) / P::PAIR;
        let panel = self.padded / P::PAIR * PANEL;
        for part in (0..HEAD).step_by(STRIP) {
            // SAFETY: there are four panels of values, with a line for each word of all positions.
            unsafe {
                let values = self
                    .values
                    .add(part / PANEL * panel + from / P::PAIR * PANEL);
                let rows = (self.shares.cast_const(), BLOCK / P::PAIR);
                P::product::<true>(rows, (values, panel), words, (self.context.add(part), HEAD));
            }
        }
    }

    /// A row's sums and its context.
    ///
    /// # Safety
    ///
    /// It must be one that there is, and what was handed out before be dropped.
    #[inline(always)]
    unsafe fn row<'a>(self, row: usize) -> (&'a mut [f32; STRIP], &'a mut [f32; HEAD]) {
        // SAFETY: as the caller promises.
        unsafe {
            (
                &mut *self.sums.add(row * STRIP).cast(),
                &mut *self.context.add(row * HEAD).cast(),
            )
        }
    }

    /// Raises a row's reference to the largest of its scores, if one is too far above it.
    ///
    /// # Safety
    ///
    /// The same, and 32 scores must be there.
    #[inline(always)]
    unsafe fn raise(self, row: usize, scores: *const f32, reference: &mut f32) {
        // SAFETY: as the caller promises.
        let (scores, (sums, context)) = unsafe { (&*scores.cast::<[f32; STRIP]>(), self.row(row)) };
        let most = fold(scores, |a, b| if a > b { a } else { b });
        if most > *reference + SLACK {
            // The first time there is nothing yet.
            if *reference > f32::NEG_INFINITY {
                let factor = exponential((*reference - most) * SCALE);
                context.iter_mut().for_each(|v| *v *= factor);
                sums.iter_mut().for_each(|v| *v *= factor);
            }
            *reference = most;
        }
    }
}

/// What becomes of 32 numbers, joined in an order of which a compiler makes vectors.
#[inline(always)]
fn fold(values: &[f32; STRIP], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes: [f32; 8] = std::array::from_fn(|n| values[n]);
    for chunk in &values.as_chunks::<8>().0[1..] {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, *value);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    join(join(join(a, b), join(c, d)), join(join(e, f), join(g, h)))
}

/// Some rows of a head.
///
/// # Safety
///
/// The processor must have the instructions of `P`, keys and values be taken, lengths be those of [`attend`].
#[inline(always)]
unsafe fn rows<P: Products>(
    given: Given<'_>,
    head: usize,
    first: usize,
    places: Places,
    out: &mut [f32],
) {
    let count = P::ROWS.min(places.positions - first);
    let words = HEAD / P::PAIR;
    let mut references = [f32::NEG_INFINITY; ROWS_MAX];
    let references = &mut references[..count];
    // SAFETY: `P::ROWS` is at most `ROWS_MAX`, for which there is room; all strips are some that there are, and a block begins
    // anew when it has as many shares as there is room for.
    unsafe {
        for row in 0..P::ROWS {
            let own = words_as::<P>(given.part(0, head, first + row));
            places
                .queries
                .add(row * words)
                .copy_from_nonoverlapping(own.as_ptr(), words);
        }
        places.context.write_bytes(0, P::ROWS * HEAD);
        places.sums.write_bytes(0, P::ROWS * STRIP);
        let mut begun = 0;
        let mut next = places.score::<P>(0);
        for strip in (0..places.padded).step_by(STRIP) {
            let scores = next;
            if strip + STRIP < places.padded {
                // Before this one's exponentials: tiles and vectors work side by side.
                next = places.score::<P>(strip + STRIP);
            }
            let mut above = false;
            for (row, reference) in references.iter().enumerate() {
                above |= P::above(scores.add(row * STRIP), reference + SLACK);
            }
            if strip > begun && (above || strip - begun == BLOCK) {
                places.sum_up::<P>(begun, strip);
                begun = strip;
            }
            if above {
                for (row, reference) in references.iter_mut().enumerate() {
                    places.raise(row, scores.add(row * STRIP), reference);
                }
            }
            for (row, reference) in references.iter().enumerate() {
                let to = places.shares.add((row * BLOCK + strip - begun) / P::PAIR);
                let sums = places.sums.add(row * STRIP);
                P::shares(scores.add(row * STRIP), *reference, to, sums);
            }
        }
        places.sum_up::<P>(begun, places.padded);
        for row in 0..count {
            let inverse = 1.0 / P::total(places.sums.add(row * STRIP));
            let (_, context) = places.row(row);
            let at = ((first + row) * given.heads + head) * HEAD;
            for (to, v) in out[at..at + HEAD].iter_mut().zip(context) {
                *to = *v * inverse;
            }
        }
    }
}

/// Several floats at once, by vectors. As unsafe as [`Products`].
trait Words {
    /// What they lie in.
    type L: Lanes;
    /// As in [`Products`].
    #[inline(always)]
    unsafe fn above(scores: *const f32, bound: f32) -> bool {
        // SAFETY: as the caller promises.
        let scores = unsafe { &*scores.cast::<[f32; STRIP]>() };
        scores
            .iter()
            .fold(false, |above, score| above | (*score > bound))
    }
    /// As in [`Products`].
    #[inline(always)]
    unsafe fn total(sums: *const f32) -> f32 {
        // SAFETY: as the caller promises.
        fold(unsafe { &*sums.cast() }, |a, b| a + b)
    }
    /// As in [`Products`].
    #[inline(always)]
    unsafe fn shares(scores: *const f32, reference: f32, to: *mut u32, sums: *mut f32) {
        // SAFETY: as the caller promises.
        let (scores, to, sums) = unsafe {
            (
                &*scores.cast::<[f32; STRIP]>(),
                &mut *to.cast::<[f32; STRIP]>(),
                &mut *sums.cast::<[f32; STRIP]>(),
            )
        };
        for ((score, to), sum) in scores.iter().zip(to).zip(sums) {
            *to = exponential((score - reference) * SCALE);
            *sum += *to;
        }
    }
}

/// Products by vectors: `R` rows of `C` vectors at once, of `ROWS`.
struct Vectors<W, const R: usize, const C: usize, const ROWS: usize>(std::marker::PhantomData<W>);

impl<W: Words, const R: usize, const C: usize, const ROWS: usize> Products
    for Vectors<W, R, C, ROWS>
{
    const PAIR: usize = 1;
    const ROWS: usize = {
        assert!(ROWS.is_multiple_of(R) && ROWS <= ROWS_MAX && STRIP.is_multiple_of(C * W::L::N));
        ROWS
    };

    #[inline(always)]
    unsafe fn product<const ADD: bool>(
        (rows, row_words): (*const u32, usize),
        (panels, panel): (*const u32, usize),
        words: usize,
        (to, width): (*mut f32, usize),
    ) {
        let column = |from: usize, c: usize| {
            let n = from + c * W::L::N;
            n / PANEL * panel + n % PANEL
        };
        for first in (0..ROWS).step_by(R) {
            for from in (0..STRIP).step_by(C * W::L::N) {
                // SAFETY: as the caller promises: each row has its words, each panel a line for each of them.
                unsafe {
                    let rows = rows.add(first * row_words);
                    let to = to.add(first * width + from);
                    let mut sums = [[W::L::all(0.0); C]; R];
                    if ADD {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            for (c, sum) in sums.iter_mut().enumerate() {
                                *sum = W::L::load(to.add(r * width + c * W::L::N));
                            }
                        }
                    }
                    for word in 0..words {
                        let mut panel = [W::L::all(0.0); C];
                        for (c, own) in panel.iter_mut().enumerate() {
                            let line = panels.add(word * PANEL + column(from, c));
                            *own = W::L::load(line.cast());
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let row =
                                W::L::all(f32::from_bits(rows.add(r * row_words + word).read()));
                            for (sum, panel) in sums.iter_mut().zip(panel) {
                                *sum = W::L::mul_add(row, panel, *sum);
                            }
                        }
                    }
                    for (r, sums) in sums.iter().enumerate() {
                        for (c, sum) in sums.iter().enumerate() {
                            W::L::store(*sum, to.add(r * width + c * W::L::N));
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn above(scores: *const f32, bound: f32) -> bool {
        // SAFETY: as the caller promises.
        unsafe { W::above(scores, bound) }
    }

    #[inline(always)]
    unsafe fn shares(scores: *const f32, reference: f32, to: *mut u32, sums: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { W::shares(scores, reference, to, sums) }
    }

    #[inline(always)]
    unsafe fn total(sums: *const f32) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { W::total(sums) }
    }
}

/// Without instructions of its own.
impl Words for Plain {
    type L = Self;
}
