// SPDX-License-Identifier: MPL-2.0
//! Rows times weights of 8 bits, by what the processor has.
//!
//! Some rows at a time are made unsigned bytes, each with a scale and a zero of its own, and go through all weights, two panels
//! of 16 outputs after the other. Sums are exact; what is made of them then is one multiplication and one addition.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use crate::inference::onnx::tiles;

/// Outputs side by side.
pub(super) const PANEL: usize = 16;
/// What is summed over is taken by so many: the bytes of a word.
pub(super) const GROUP: usize = 4;
/// A tile has so many bytes of a row.
pub(super) const STEP: usize = 64;
/// Rows that are made bytes at once.
const ROWS: usize = 96;

/// What a processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Tiles.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// Vectors of 64 bytes that are multiplied and summed up by fours.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Vectors of 32 bytes whose products are summed up by twos, in 16 bits: rows have 7 bits for that.
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
            let avx512 = has!("avx512f") && has!("fma");
            if avx512 && tiles::may_use_tiles() {
                known.push(Self::Amx);
            }
            if avx512 && has!("avx512vnni") {
                known.push(Self::Vnni);
            }
            if has!("avx2") && has!("fma") {
                known.push(Self::Avx2);
            }
        }
        known.push(Self::Plain);
        known
    }

    /// Steps between the least and the largest value of a row.
    pub fn levels(self) -> f32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 127.0,
            _ => 255.0,
        }
    }
}

/// A line of the processor's caches.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

const EMPTY: Line = Line([0; 64]);

/// Weights as [`super::pack`] lays them, of lengths that belong together.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    bytes: &'a [u8],
    scales: &'a [f32],
    sums: &'a [f32],
    added: &'a [f32],
    outputs: usize,
    inner: usize,
}

impl<'a> Weights<'a> {
    /// The lengths must be those of [`super::Packed`].
    pub fn new(bytes: &'a [u8], columns: &'a [f32], outputs: usize, inner: usize) -> Self {
        let padded = outputs.next_multiple_of(2 * PANEL);
        assert!(inner.is_multiple_of(STEP) && inner > 0 && outputs > 0);
        assert_eq!(bytes.len(), padded * inner);
        assert_eq!(columns.len(), 3 * padded);
        let (scales, rest) = columns.split_at(padded);
        let (sums, added) = rest.split_at(padded);
        Self {
            bytes,
            scales,
            sums,
            added,
            outputs,
            inner,
        }
    }
}

/// What lies between inputs and outputs.
#[derive(Default)]
pub(super) struct Room {
    /// Rows as bytes.
    rows: Vec<Line>,
    /// Sums of all rows and two panels, `[ROWS, 32]` of 32 bits.
    sums: Vec<Line>,
}

/// Rows as bytes, and what they count.
struct Rows {
    bytes: *const u8,
    count: usize,
    scales: [f32; ROWS],
    zeros: [f32; ROWS],
}

/// `values` `[rows, inner]` times the weights, to `out` `[rows, outputs]`. `isa` must be one of [`Isa::known`].
pub(super) fn multiply(
    isa: Isa,
    values: &[f32],
    weights: &Weights<'_>,
    room: &mut Room,
    out: &mut [f32],
) {
    let (inner, outputs) = (weights.inner, weights.outputs);
    assert!(values.len().is_multiple_of(inner));
    assert_eq!(out.len(), values.len() / inner * outputs);
    room.rows.resize(ROWS * inner / STEP, EMPTY);
    room.sums
        .resize(ROWS * 2 * PANEL * size_of::<i32>() / STEP, EMPTY);
    let values = values.chunks(ROWS * inner);
    for (values, out) in values.zip(out.chunks_mut(ROWS * outputs)) {
        let rows = take(isa, values, inner, &mut room.rows);
        let sums = room.sums.as_mut_ptr().cast();
        let out = out.as_mut_ptr();
        match isa {
            // SAFETY: a processor on which this was found has these instructions, the tiles are claimed for as long as it runs,
            // and weights, rows, sums and `out` have their lengths, as was checked or made above.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => tiles::with_tiles(|| unsafe { x86::amx(&rows, weights, sums, out) }),
            // SAFETY: a processor on which this was found has these instructions; lengths are the same.
            #[cfg(target_arch = "x86_64")]
            Isa::Vnni => unsafe { x86::vnni(&rows, weights, out) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::avx2(&rows, weights, out) },
            // SAFETY: lengths are the same, and it needs no instructions that a processor may lack.
            Isa::Plain => unsafe { plain(&rows, weights, out) },
        }
    }
}

/// Makes bytes of some rows.
fn take(isa: Isa, values: &[f32], inner: usize, to: &mut [Line]) -> Rows {
    let mut rows = Rows {
        bytes: to.as_ptr().cast(),
        count: values.len() / inner,
        scales: [0.0; ROWS],
        zeros: [0.0; ROWS],
    };
    let lines = to.chunks_exact_mut(inner / STEP);
    let known = rows.scales.iter_mut().zip(&mut rows.zeros);
    for ((from, to), (scale, zero)) in values.chunks_exact(inner).zip(lines).zip(known) {
        (*scale, *zero) = match isa {
            // SAFETY: a processor on which this was found has these instructions, and there are 64 floats for each line.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Vnni => unsafe { x86::bytes_by_16(from, to, isa.levels()) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::bytes_by_8(from, to, isa.levels()) },
            Isa::Plain => bytes_of(from, to, isa.levels()),
        };
    }
    rows
}

/// A row as bytes from 0 to `levels`; what a step is, and which byte is zero. What is no number makes the step none.
fn bytes_of(from: &[f32], to: &mut [Line], levels: f32) -> (f32, f32) {
    let (mut least, mut most, mut odd) = (0.0_f32, 0.0_f32, 0.0);
    for value in from {
        least = least.min(*value);
        most = most.max(*value);
        odd += value * 0.0;
    }
    let grid = Grid::of(least, most, levels);
    for (from, line) in from.chunks_exact(STEP).zip(to) {
        for (value, byte) in from.iter().zip(&mut line.0) {
            let value = (value * grid.inverse + grid.zero).clamp(0.0, levels);
            *byte = value.round_ties_even() as u8;
        }
    }
    (grid.step + odd, grid.zero)
}

/// Where a row's bytes lie.
struct Grid {
    step: f32,
    inverse: f32,
    zero: f32,
}

impl Grid {
    /// From the least value, 0 at most, to the largest, 0 at least.
    fn of(least: f32, most: f32, levels: f32) -> Self {
        let step = (most - least) / levels;
        // So little that its inverse is none is nothing.
        let inverse = if step > f32::MIN_POSITIVE {
            step.recip()
        } else {
            0.0
        };
        Self {
            step,
            inverse,
            zero: (-least * inverse).round_ties_even(),
        }
    }
}

/// # Safety
///
/// Rows and weights must have their lengths, and `out` as many values as there are rows and outputs.
unsafe fn plain(rows: &Rows, weights: &Weights<'_>, out: *mut f32) {
    let (inner, outputs) = (weights.inner, weights.outputs);
    // SAFETY: as the caller promises.
    let (bytes, out) = unsafe {
        let bytes = std::slice::from_raw_parts(rows.bytes, rows.count * inner);
        (
            bytes,
            std::slice::from_raw_parts_mut(out, rows.count * outputs),
        )
    };
    let panels = weights.bytes.chunks_exact(PANEL * inner);
    for (panel, first) in panels.zip((0..outputs).step_by(PANEL)) {
        for (row, bytes) in bytes.chunks_exact(inner).enumerate() {
            let mut sums = [0_i32; PANEL];
            let groups = bytes.as_chunks::<GROUP>().0;
            for (line, group) in panel.chunks_exact(PANEL * GROUP).zip(groups) {
                for (sum, own) in sums.iter_mut().zip(line.as_chunks::<GROUP>().0) {
                    for (weight, value) in own.iter().zip(group) {
                        *sum += i32::from(weight.cast_signed()) * i32::from(*value);
                    }
                }
            }
            let count = PANEL.min(outputs - first);
            let to = &mut out[row * outputs + first..][..count];
            for (n, (to, sum)) in to.iter_mut().zip(sums).enumerate() {
                let at = first + n;
                let sum = sum as f32 - rows.zeros[row] * weights.sums[at];
                *to = sum * (rows.scales[row] * weights.scales[at]) + weights.added[at];
            }
        }
    }
}
