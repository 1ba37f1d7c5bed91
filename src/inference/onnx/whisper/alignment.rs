// SPDX-License-Identifier: MPL-2.0
//! When each token was said, from how the decoder looked at the sound while it wrote them.
//!
//! Source: openai-whisper, `timing.py`: `find_alignment`. It decodes the finished text once more; here the attention is
//! kept while the text is written, which is the same.

use crate::inference::whisper::MAX_TOKENS;

use super::header::POSITIONS;

/// Samples of a position: 20 ms.
const SAMPLES_A_POSITION: usize = 320;
/// Positions that a median is taken of.
const MEDIAN: usize = 7;
/// Moves on the cheapest way.
const BOTH: u8 = 0;
const TOKEN: u8 = 1;
const TIME: u8 = 2;

/// Attention of the heads that follow the sound, one row for each token that was predicted. Room for the longest text is
/// taken at the start.
#[derive(Debug)]
pub(super) struct Attention {
    heads: usize,
    /// Positions with sound.
    positions: usize,
    /// `[rows, heads, positions]`: the upper halves of 32-bit floats, good to one part in 500.
    values: Vec<u16>,
}

impl Attention {
    /// For that many heads.
    pub fn new(heads: usize) -> Self {
        Self {
            heads,
            positions: 0,
            values: Vec::with_capacity(heads * POSITIONS * (MAX_TOKENS + 1)),
        }
    }

    /// Begins anew, for a window of so many samples.
    pub fn begin(&mut self, samples: usize) {
        self.values.clear();
        self.positions = samples.div_ceil(SAMPLES_A_POSITION).clamp(1, POSITIONS);
    }

    /// Begins anew with the first of its rows: those before the text, which all samples of a window share.
    pub fn keep(&mut self, rows: usize) {
        self.values.truncate(rows * self.heads * self.positions);
    }

    /// Where the room lies and how many bytes it has.
    pub fn room(&self) -> (usize, usize) {
        let bytes = self.values.capacity() * size_of::<u16>();
        (self.values.as_ptr() as usize, bytes)
    }

    /// Adds one of the rows that a step gave: `found` is `[heads, rows, 1500]`.
    pub fn push(&mut self, found: &[f32], rows: usize, row: usize) {
        let of_heads = found.chunks_exact(POSITIONS).skip(row).step_by(rows);
        for row in of_heads.take(self.heads) {
            let halves = row[..self.positions]
                .iter()
                .map(|v| (v.to_bits().wrapping_add(0x8000) >> 16) as u16);
            self.values.extend(halves);
        }
    }

    /// Where each of `tokens` tokens ends, in samples of the window; each begins where the one before ends, the first at
    /// 0. `None` where there are too few rows.
    pub fn ends(&self, tokens: usize) -> Option<Vec<u32>> {
        let row = self.heads * self.positions;
        let rows = self.values.len().checked_div(row)?.min(tokens + 1);
        if tokens == 0 || rows < tokens {
            return None;
        }
        let costs = costs(&self.values[..rows * row], self.heads, self.positions);
        let jumps = jumps(&costs, rows, self.positions);
        let end = |token: usize| {
            let position = jumps.get(token + 1).copied().unwrap_or(self.positions);
            (position * SAMPLES_A_POSITION) as u32
        };
        Some((0..tokens).map(end).collect())
    }
}

fn value(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// What it costs to be at a position with a row, `[rows, positions]`: less the more all heads look there, compared with
/// what they do at other rows.
fn costs(attention: &[u16], heads: usize, positions: usize) -> Vec<f32> {
    let row = heads * positions;
    let rows = attention.len() / row;
    let mut mean = vec![0.0f32; row];
    let mut spread = vec![0.0f32; row];
    for values in attention.chunks_exact(row) {
        for (mean, v) in mean.iter_mut().zip(values) {
            *mean += value(*v);
        }
    }
    mean.iter_mut().for_each(|m| *m /= rows as f32);
    for values in attention.chunks_exact(row) {
        for ((spread, mean), v) in spread.iter_mut().zip(&mean).zip(values) {
            *spread += (value(*v) - mean).powi(2);
        }
    }
    for s in &mut spread {
        let deviation = (*s / rows as f32).sqrt();
        *s = if deviation > 0.0 {
            1.0 / deviation
        } else {
            0.0
        };
    }
    let mut costs = vec![0.0f32; rows * positions];
    let mut line = vec![0.0f32; positions + MEDIAN - 1];
    for (values, costs) in attention
        .chunks_exact(row)
        .zip(costs.chunks_exact_mut(positions))
    {
        for head in 0..heads {
            let own = head * positions..(head + 1) * positions;
            let scaled = values[own.clone()]
                .iter()
                .zip(&mean[own.clone()])
                .zip(&spread[own])
                .map(|((v, m), s)| (value(*v) - m) * s);
            for (place, v) in line[MEDIAN / 2..].iter_mut().zip(scaled) {
                *place = v;
            }
            mirror(&mut line);
            medians(&line, costs);
        }
        costs.iter_mut().for_each(|c| *c /= heads as f32);
    }
    costs
}

/// Fills the ends with what lies on the other side of the first and the last value.
fn mirror(line: &mut [f32]) {
    let pad = MEDIAN / 2;
    let last = line.len() - pad - 1;
    for n in 1..=pad {
        // A line that is shorter than the filter repeats its ends.
        line[pad - n] = line[(pad + n).min(last)];
        line[last + n] = line[last.saturating_sub(n).max(pad)];
    }
}

/// Takes the median of each seven neighbours off `costs`. In blocks, so that the compiler does many at once.
fn medians(line: &[f32], costs: &mut [f32]) {
    const WIDE: usize = 16;
    let block = |at: usize, n: usize| -> [f32; WIDE] {
        std::array::from_fn(|i| line.get(at + n + i).copied().unwrap_or(0.0))
    };
    for (k, costs) in costs.chunks_mut(WIDE).enumerate() {
        let mut v: [[f32; WIDE]; MEDIAN] = std::array::from_fn(|n| block(k * WIDE, n));
        // Comparisons that sort the middle of seven into place (John L. Smith, XAPP953; also Devillard's opt_med7).
        for (a, b) in [
            (0, 5),
            (0, 3),
            (1, 6),
            (2, 4),
            (0, 1),
            (3, 5),
            (2, 6),
            (2, 3),
            (3, 6),
            (4, 5),
            (1, 4),
            (1, 3),
            (3, 4),
        ] {
            let (x, y) = (v[a], v[b]);
            v[a] = std::array::from_fn(|i| if x[i] < y[i] { x[i] } else { y[i] });
            v[b] = std::array::from_fn(|i| if x[i] < y[i] { y[i] } else { x[i] });
        }
        for (cost, median) in costs.iter_mut().zip(v[3]) {
            *cost -= median;
        }
    }
}

/// The first position of each row on the cheapest way through `costs`. Of ways that cost the same the one that stays
/// longer with a row is taken.
fn jumps(costs: &[f32], rows: usize, positions: usize) -> Vec<usize> {
    let mut moves = vec![TIME; rows * positions];
    let mut above = vec![f32::INFINITY; positions];
    let mut own = vec![f32::INFINITY; positions];
    for row in 0..rows {
        let costs = &costs[row * positions..(row + 1) * positions];
        let moves = &mut moves[row * positions..(row + 1) * positions];
        // Where the way comes from left of the first column; the very first cell comes from nowhere.
        let mut diagonal = if row == 0 { 0.0 } else { f32::INFINITY };
        let mut left = f32::INFINITY;
        for j in 0..positions {
            let up = above[j];
            let (before, way) = if diagonal < up && diagonal < left {
                (diagonal, BOTH)
            } else if up < diagonal && up < left {
                (up, TOKEN)
            } else {
                (left, TIME)
            };
            own[j] = costs[j] + before;
            moves[j] = way;
            left = own[j];
            diagonal = up;
        }
        std::mem::swap(&mut above, &mut own);
    }
    let mut first = vec![0; rows];
    let (mut row, mut j) = (rows - 1, positions - 1);
    loop {
        first[row] = j;
        match moves[row * positions + j] {
            _ if row == 0 && j == 0 => break,
            // The edges leave one way only.
            _ if row == 0 => j -= 1,
            _ if j == 0 => row -= 1,
            BOTH => (row, j) = (row - 1, j - 1),
            TOKEN => row -= 1,
            _ => j -= 1,
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One head that looks at these positions in turn, a little beside them too.
    fn looking_at(places: &[usize], positions: usize) -> Attention {
        let mut attention = Attention::new(1);
        attention.begin(positions * SAMPLES_A_POSITION);
        for place in places {
            let mut row = vec![1e-4; POSITIONS];
            for (j, v) in row.iter_mut().enumerate() {
                let far = j.abs_diff(*place) as f32;
                *v += (-far * far / 50.0).exp();
            }
            attention.push(&row, 1, 0);
        }
        attention
    }

    #[test]
    fn tokens_end_where_the_decoder_goes_on_to_the_next() {
        let attention = looking_at(&[10, 30, 70, 95], 100);

        let ends = attention.ends(3).unwrap();

        let between = [20, 50, 82].map(|p: u32| p * 320);
        for (end, wanted) in ends.iter().zip(between) {
            assert!(end.abs_diff(wanted) <= 2 * 320, "{ends:?}");
        }
    }

    #[test]
    fn one_row_of_a_step_with_several_is_taken_of_each_head() {
        let mut attention = Attention::new(2);
        attention.begin(3 * SAMPLES_A_POSITION);
        let found: Vec<f32> = (0..4).flat_map(|n| vec![n as f32; POSITIONS]).collect();

        attention.push(&found, 2, 1);

        let kept: Vec<f32> = attention.values.iter().map(|v| value(*v)).collect();
        assert_eq!(kept, [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]);
    }

    #[test]
    fn a_text_without_tokens_or_rows_has_no_times() {
        assert_eq!(looking_at(&[10], 20).ends(0), None);
        assert_eq!(looking_at(&[10], 20).ends(2), None);
        // Stopped by length: the last token ends with the sound.
        assert_eq!(looking_at(&[5, 15], 20).ends(2).unwrap()[1], 20 * 320);
    }

    #[test]
    fn the_median_of_seven_is_the_sorted_middle() {
        let line: Vec<f32> = (0..40).map(|n| ((n * 37) % 23) as f32).collect();
        let mut costs = vec![0.0; 34];

        medians(&line, &mut costs);

        for (at, cost) in costs.iter().enumerate() {
            let mut seven = line[at..at + 7].to_vec();
            seven.sort_by(f32::total_cmp);
            assert_eq!(-cost, seven[3]);
        }
    }

    #[test]
    fn the_ends_of_a_line_are_mirrored() {
        let mut line = vec![0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0];

        mirror(&mut line);

        assert_eq!(
            line,
            [4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0]
        );
    }

    #[test]
    fn the_cheapest_way_is_found() {
        // A staircase of zeros among ones.
        #[rustfmt::skip]
        let costs = [
            0.0, 0.0, 1.0, 1.0, 1.0,
            1.0, 1.0, 0.0, 1.0, 1.0,
            1.0, 1.0, 1.0, 0.0, 0.0,
        ];

        assert_eq!(jumps(&costs, 3, 5), [0, 2, 3]);
    }
}
