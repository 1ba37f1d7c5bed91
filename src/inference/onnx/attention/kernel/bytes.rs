// SPDX-License-Identifier: MPL-2.0
//! The same with vectors of numbers of 8 bits, four times as many to a product as floats.
//!
//! As in SageAttention (arXiv 2410.02367) what all keys have in common is taken off them, which changes no share, and
//! queries and keys have a scale for each row. Values have their mean taken off too, which is added again to what they come
//! to, and a scale for each of a head's places. Shares are counted in 255ths of the largest so far; a block of positions
//! after the other, all scores of some rows first, so that the largest is known before shares are made.

use std::arch::x86_64::*;

use super::{Given, HEAD, Line, PANEL, SCALE, STRIP, fit};
use crate::dsp::vectors::exponential;
use crate::inference::onnx::lanes::{ROUGH, power};

/// Rows at once, so many of them in registers.
const ROWS: usize = 24;
const HELD: usize = 12;
/// Positions whose scores are made before their shares.
const BLOCK: usize = 256;
/// Numbers in a word.
const QUAD: usize = 4;
/// Words of a query or a key.
const WORDS: usize = HEAD / QUAD;
/// The largest of keys and values, and of queries once [`MIDDLE`] is taken off.
const LEVELS: f32 = 127.0;
/// Queries are without a sign, as products want it.
const MIDDLE: i32 = 128;
/// log2(255): the largest share.
const LARGEST: f32 = 7.994_353_4;
/// Less than any score: that of no position.
const NOTHING: f32 = -1e30;
/// Nothing is divided by less.
const LEAST: f32 = 1e-20;
const _: () = assert!(ROWS.is_multiple_of(HELD) && BLOCK.is_multiple_of(HEAD));

/// What lies between inputs and outputs: one head's keys and values, and what some rows come to.
#[derive(Default)]
pub(in super::super) struct Room {
    /// Panels of 16 keys, `[panels, words of a key, 16]`.
    keys: Vec<Line>,
    /// A key's step, `[panels, 16]`.
    steps: Vec<Line>,
    /// What [`MIDDLE`] adds to a key's products, less than 0, `[panels, 16]`.
    offsets: Vec<Line>,
    /// Panels of 16 of a head's 64 values, `[4, words of all positions, 16]`.
    values: Vec<Line>,
    /// `[ROWS, words of a query]`
    queries: Vec<Line>,
    /// `[ROWS, BLOCK]`
    scores: Vec<Line>,
    /// Bytes, `[ROWS, BLOCK]`.
    shares: Vec<Line>,
    /// `[ROWS, 64]`
    context: Vec<Line>,
}

impl Room {
    /// Makes room for so many positions, a multiple of 32.
    fn fit(&mut self, padded: usize) {
        fit(&mut self.keys, padded * WORDS);
        fit(&mut self.values, padded * WORDS);
        fit(&mut self.steps, padded);
        fit(&mut self.offsets, padded);
        fit(&mut self.queries, ROWS * WORDS);
        fit(&mut self.scores, ROWS * BLOCK);
        fit(&mut self.shares, ROWS * BLOCK / QUAD);
        fit(&mut self.context, ROWS * HEAD);
    }
}

/// All heads.
///
/// # Safety
///
/// The processor must have the instructions, and lengths must be those of [`super::attend`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn attend(given: Given<'_>, room: &mut Room, out: &mut [f32]) {
    room.fit(given.positions.next_multiple_of(STRIP));
    let places = Places::of(room, given.positions);
    for head in 0..given.heads {
        // SAFETY: the processor has the instructions, and there is room for all positions.
        unsafe {
            let odd = places.take_keys(given, head);
            let values = places.take_values(given, head);
            for first in (0..given.positions).step_by(ROWS) {
                places.rows(given, head, first, (&values, odd), out);
            }
        }
    }
}

/// What a head's values were made smaller by, for each of its places.
struct Values {
    mean: [f32; HEAD],
    steps: [f32; HEAD],
}

/// The mean of a head's queries (0), keys (1) or values (2).
#[inline(always)]
fn mean_of(which: usize, given: Given<'_>, head: usize) -> [f32; HEAD] {
    let mut sums = [0.0; HEAD];
    for position in 0..given.positions {
        for (sum, value) in sums.iter_mut().zip(given.part(which, head, position)) {
            *sum += value;
        }
    }
    sums.map(|sum| sum / given.positions as f32)
}

/// Where everything lies; the room's fields say how.
#[derive(Clone, Copy)]
struct Places {
    keys: *mut u32,
    steps: *mut f32,
    offsets: *mut i32,
    values: *mut u32,
    queries: *mut u32,
    scores: *mut f32,
    shares: *mut u8,
    context: *mut f32,
    positions: usize,
    /// Rounded up to strips.
    padded: usize,
}

/// 64 floats less others, times a factor, as 64 bytes.
///
/// # Safety
///
/// The processor must have the instructions.
#[inline(always)]
unsafe fn bytes_of(from: &[f32; HEAD], less: &[f32; HEAD], factor: f32) -> [__m128i; 4] {
    // SAFETY: as the caller promises; 16 floats are there at each.
    unsafe {
        [0, 16, 32, 48].map(|at| {
            let own = _mm512_sub_ps(
                _mm512_loadu_ps(from.as_ptr().add(at)),
                _mm512_loadu_ps(less.as_ptr().add(at)),
            );
            let whole = _mm512_cvtps_epi32(_mm512_mul_ps(own, _mm512_set1_ps(factor)));
            _mm512_cvtsepi32_epi8(whole)
        })
    }
}

/// The largest magnitude of 64 floats less others, but for what is no number.
#[inline(always)]
fn most_of(from: &[f32; HEAD], less: &[f32; HEAD]) -> f32 {
    let mut lanes = [0.0_f32; PANEL];
    for (from, less) in from.as_chunks::<PANEL>().0.iter().zip(less.as_chunks().0) {
        for ((lane, from), less) in lanes.iter_mut().zip(from).zip::<&[f32; PANEL]>(less) {
            let own = (from - less).abs();
            *lane = if own > *lane { own } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

const NONE: [f32; HEAD] = [0.0; HEAD];

impl Places {
    fn of(room: &mut Room, positions: usize) -> Self {
        Self {
            keys: room.keys.as_mut_ptr().cast(),
            steps: room.steps.as_mut_ptr().cast(),
            offsets: room.offsets.as_mut_ptr().cast(),
            values: room.values.as_mut_ptr().cast(),
            queries: room.queries.as_mut_ptr().cast(),
            scores: room.scores.as_mut_ptr().cast(),
            shares: room.shares.as_mut_ptr().cast(),
            context: room.context.as_mut_ptr().cast(),
            positions,
            padded: positions.next_multiple_of(STRIP),
        }
    }

    /// Takes a head's keys. What it returns is 0, or no number if one of theirs is none.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions, and the room fit.
    #[inline(always)]
    unsafe fn take_keys(self, given: Given<'_>, head: usize) -> f32 {
        let mean = mean_of(1, given, head);
        for first in (0..self.padded).step_by(PANEL) {
            let mut panel = [[0_u32; WORDS]; PANEL];
            for (n, own) in panel.iter_mut().enumerate() {
                let position = first + n;
                // Behind the last there are zeros.
                let less = if position < self.positions {
                    &mean
                } else {
                    &NONE
                };
                let key = given.part(1, head, position);
                let step = most_of(key, less).max(LEAST) / LEVELS;
                // SAFETY: as the caller promises; there is a place for each position.
                unsafe {
                    let bytes = bytes_of(key, less, 1.0 / step);
                    *own = std::mem::transmute::<[__m128i; 4], [u32; WORDS]>(bytes);
                    let sum = _mm512_dpbusd_epi32(
                        _mm512_setzero_si512(),
                        _mm512_set1_epi8(1),
                        _mm512_loadu_si512(own.as_ptr().cast()),
                    );
                    *self.steps.add(position) = step;
                    *self.offsets.add(position) = -MIDDLE * _mm512_reduce_add_epi32(sum);
                }
            }
            // SAFETY: a panel has as many lines as a key has words.
            let to = unsafe {
                std::slice::from_raw_parts_mut(
                    self.keys.add(first * WORDS).cast::<[u32; PANEL]>(),
                    WORDS,
                )
            };
            for (word, to) in to.iter_mut().enumerate() {
                *to = panel.each_ref().map(|own| own[word]);
            }
        }
        mean.iter().map(|v| v * 0.0).sum()
    }

    /// Takes a head's values.
    ///
    /// # Safety
    ///
    /// The same.
    #[inline(always)]
    unsafe fn take_values(self, given: Given<'_>, head: usize) -> Values {
        let mean = mean_of(2, given, head);
        let mut most = [LEAST; HEAD];
        for position in 0..self.positions {
            let value = given.part(2, head, position);
            for ((most, value), mean) in most.iter_mut().zip(value).zip(&mean) {
                let own = (value - mean).abs();
                *most = if own > *most { own } else { *most };
            }
        }
        let steps = most.map(|most| most / LEVELS);
        let words = self.padded / QUAD;
        for word in 0..words {
            for panel in 0..HEAD / PANEL {
                let at = panel * PANEL;
                // SAFETY: as the caller promises: each of four panels has as many lines as all positions have words.
                unsafe {
                    let mean = _mm512_loadu_ps(mean.as_ptr().add(at));
                    let steps = _mm512_loadu_ps(steps.as_ptr().add(at));
                    let own = |n: usize| {
                        let position = word * QUAD + n;
                        if position >= self.positions {
                            return _mm512_setzero_si512();
                        }
                        let value = _mm512_loadu_ps(given.part(2, head, position).as_ptr().add(at));
                        let whole =
                            _mm512_cvtps_epi32(_mm512_div_ps(_mm512_sub_ps(value, mean), steps));
                        _mm512_and_si512(whole, _mm512_set1_epi32(0xff))
                    };
                    let low = _mm512_or_si512(own(0), _mm512_slli_epi32::<8>(own(1)));
                    let high = _mm512_or_si512(own(2), _mm512_slli_epi32::<8>(own(3)));
                    let all = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                    let to = self.values.add((panel * words + word) * PANEL);
                    _mm512_storeu_si512(to.cast(), all);
                }
            }
        }
        Values { mean, steps }
    }

    /// Makes the scores of all rows and of positions that begin and end with strips, no more than a block.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions; queries and keys must be taken.
    #[inline(always)]
    unsafe fn score(self, from: usize, to: usize) {
        for first in (0..ROWS).step_by(HELD) {
            for strip in (from..to).step_by(STRIP) {
                // SAFETY: two panels begin at each strip; the rest is as the caller promises.
                unsafe {
                    let offsets =
                        [0, PANEL].map(|c| _mm512_loadu_si512(self.offsets.add(strip + c).cast()));
                    let mut sums = [offsets; HELD];
                    let panels =
                        [0, PANEL].map(|c| self.keys.add((strip + c) * WORDS).cast_const());
                    let rows = self.queries.add(first * WORDS);
                    products(&mut sums, (rows, WORDS), panels, WORDS);
                    let steps = [0, PANEL].map(|c| _mm512_loadu_ps(self.steps.add(strip + c)));
                    for (row, sums) in sums.iter().enumerate() {
                        let to = self.scores.add((first + row) * BLOCK + strip - from);
                        for (c, (sum, step)) in sums.iter().zip(steps).enumerate() {
                            let score = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), step);
                            _mm512_storeu_ps(to.add(c * PANEL), score);
                        }
                    }
                }
            }
        }
        if to > self.positions {
            for row in 0..ROWS {
                for position in self.positions..to {
                    // SAFETY: there is a place for each position of a block.
                    unsafe { *self.scores.add(row * BLOCK + position - from) = NOTHING };
                }
            }
        }
    }

    /// Makes shares of a row's scores, of which there are so many, and returns their sum.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions, and scores be there, of strips.
    #[inline(always)]
    unsafe fn share(self, row: usize, count: usize, factor: f32, reference: f32) -> f32 {
        // SAFETY: as the caller promises.
        unsafe {
            let scores = self.scores.add(row * BLOCK);
            let to = self.shares.add(row * BLOCK);
            let [reference, factor] = [reference, factor].map(|v| _mm512_set1_ps(v));
            let mut sums = _mm512_setzero_si512();
            for at in (0..count).step_by(PANEL) {
                let less = _mm512_sub_ps(_mm512_loadu_ps(scores.add(at)), reference);
                let x = _mm512_fmadd_ps(less, factor, _mm512_set1_ps(LARGEST));
                let whole = _mm512_cvtps_epi32(power(x, &ROUGH));
                sums = _mm512_add_epi32(sums, whole);
                _mm_storeu_si128(to.add(at).cast(), _mm512_cvtusepi32_epi8(whole));
            }
            _mm512_reduce_add_epi32(sums) as f32
        }
    }

    /// Adds up the values of positions whose shares are there.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions; the positions must begin and end with strips, and be no more than a block.
    #[inline(always)]
    unsafe fn sum_up(self, from: usize, to: usize) {
        let words = self.padded / QUAD;
        for first in (0..ROWS).step_by(HELD) {
            for part in (0..HEAD).step_by(STRIP) {
                // SAFETY: there are four panels of values, with a line for each word of all positions.
                unsafe {
                    let mut sums = [[_mm512_setzero_si512(); 2]; HELD];
                    let panels = [0, 1].map(|c| {
                        self.values
                            .add(((part / PANEL + c) * words + from / QUAD) * PANEL)
                            .cast_const()
                    });
                    let rows = self.shares.add(first * BLOCK).cast();
                    products(&mut sums, (rows, BLOCK / QUAD), panels, (to - from) / QUAD);
                    for (row, sums) in sums.iter().enumerate() {
                        let to = self.context.add((first + row) * HEAD + part);
                        for (c, sum) in sums.iter().enumerate() {
                            let to = to.add(c * PANEL);
                            let all = _mm512_add_ps(_mm512_loadu_ps(to), _mm512_cvtepi32_ps(*sum));
                            _mm512_storeu_ps(to, all);
                        }
                    }
                }
            }
        }
    }

    /// Some rows of a head. `odd` is what [`Self::take_keys`] returned.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions, keys and values be taken, lengths be those of [`super::attend`].
    #[inline(always)]
    unsafe fn rows(
        self,
        given: Given<'_>,
        head: usize,
        first: usize,
        (values, odd): (&Values, f32),
        out: &mut [f32],
    ) {
        let count = ROWS.min(self.positions - first);
        // What scores are multiplied by, so that 2 to their power is a share.
        let mut factors = [0.0; ROWS];
        let mut odds = [odd; ROWS];
        let mut references = [f32::NEG_INFINITY; ROWS];
        let mut totals = [0.0; ROWS];
        // SAFETY: as the caller promises; there is room for ROWS rows, and blocks begin and end with strips.
        unsafe {
            for row in 0..ROWS {
                let query = given.part(0, head, first + row);
                let step = most_of(query, &NONE).max(LEAST) / LEVELS;
                let bytes = bytes_of(query, &NONE, 1.0 / step);
                for (n, bytes) in bytes.into_iter().enumerate() {
                    // As if MIDDLE were added: the sign's bit is the other.
                    let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(MIDDLE as u8 as i8));
                    let to = self.queries.add(row * WORDS + n * 4);
                    _mm_storeu_si128(to.cast(), bytes);
                }
                factors[row] = step * SCALE;
                odds[row] += query.iter().map(|v| v * 0.0).sum::<f32>();
            }
            self.context.write_bytes(0, ROWS * HEAD);
            for from in (0..self.padded).step_by(BLOCK) {
                let to = self.padded.min(from + BLOCK);
                self.score(from, to);
                for row in 0..count {
                    let scores = self.scores.add(row * BLOCK);
                    let mut most = _mm512_loadu_ps(scores);
                    for at in (PANEL..to - from).step_by(PANEL) {
                        most = _mm512_max_ps(most, _mm512_loadu_ps(scores.add(at)));
                    }
                    let most = _mm512_reduce_max_ps(most);
                    let reference = references[row];
                    if most > reference {
                        // The first time there is nothing yet.
                        if from > 0 {
                            let less = exponential((reference - most) * factors[row]);
                            totals[row] *= less;
                            let context = &mut *self.context.add(row * HEAD).cast::<[f32; HEAD]>();
                            context.iter_mut().for_each(|v| *v *= less);
                        }
                        references[row] = most;
                    }
                    let factor = factors[row] * std::f32::consts::LOG2_E;
                    totals[row] += self.share(row, to - from, factor, references[row]);
                }
                self.sum_up(from, to);
            }
            for row in 0..count {
                let inverse = 1.0 / totals[row] + odds[row];
                let context = &*self.context.add(row * HEAD).cast::<[f32; HEAD]>();
                let at = ((first + row) * given.heads + head) * HEAD;
                let out = &mut out[at..at + HEAD];
                let scales = values.steps.iter().zip(&values.mean);
                for ((to, v), (step, mean)) in out.iter_mut().zip(context).zip(scales) {
                    *to = *v * inverse * step + mean;
                }
            }
        }
    }
}

/// Adds to sums what rows of words and two panels of words come to.
///
/// # Safety
///
/// The processor must have the instructions. Each row must have `words` words, and each panel as many lines.
#[inline(always)]
unsafe fn products(
    sums: &mut [[__m512i; 2]; HELD],
    (rows, row_words): (*const u32, usize),
    panels: [*const u32; 2],
    words: usize,
) {
    for word in 0..words {
        // SAFETY: as the caller promises.
        unsafe {
            let own = panels.map(|panel| _mm512_loadu_si512(panel.add(word * PANEL).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let row = _mm512_set1_epi32(rows.add(row * row_words + word).read().cast_signed());
                for (sum, panel) in sums.iter_mut().zip(own) {
                    *sum = _mm512_dpbusd_epi32(*sum, row, panel);
                }
            }
        }
    }
}
