// SPDX-License-Identifier: MPL-2.0
//! Evens out what is quantised: each layer norm of the encoder is divided by a factor a channel, and the matrices that read
//! it are multiplied by it. The function stays the same; its activations, which are quantised with one scale for all
//! channels, spread less.
//!
//! The factor is `spread^0.7 / widest^0.3`: how far the norm's output reaches (three deviations and the offset), and the
//! largest weight that reads it. Worked out in f64 and rounded once, so that every machine has the same bytes: f32's
//! powers differ between machines.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::Converted;
use super::super::checkpoint::Array;
use super::super::ct2::Shape;
use super::Parameters;

const POWER: f64 = 0.7;
const LEAST: f64 = 1e-5;
const FACTORS: [f64; 2] = [1e-2, 1e2];

/// Factors by the name of the norm, or of the matrix that reads it.
#[derive(Default)]
pub struct Balance {
    norms: HashMap<String, Rc<Vec<f32>>>,
    readers: HashMap<String, Rc<Vec<f32>>>,
}

impl Balance {
    /// Of the encoder's norms.
    pub fn of(plain: &Parameters<'_>, shape: &Shape) -> Converted<Self> {
        let mut balance = Self::default();
        let cross = (0..shape.text_layers).map(|l| format!("decoder/layer_{l}/attention/linear_1"));
        balance.add(plain, shape, "encoder/layer_norm", cross.collect())?;
        for l in 0..shape.audio_layers {
            for part in ["self_attention", "ffn"] {
                let part = format!("encoder/layer_{l}/{part}");
                let norm = format!("{part}/layer_norm");
                balance.add(plain, shape, &norm, vec![format!("{part}/linear_0")])?;
            }
        }
        Ok(balance)
    }

    /// A norm's values, as they are to be written.
    pub fn norm(&self, name: &str, values: &mut [f32]) {
        if let Some(factors) = self.norms.get(name) {
            values.iter_mut().zip(&**factors).for_each(|(v, s)| *v /= s);
        }
    }

    /// The same for a matrix.
    pub fn matrix(&self, name: &str, weight: &mut Array) {
        if let Some(factors) = self.readers.get(name) {
            for row in weight.values.chunks_exact_mut(factors.len()) {
                row.iter_mut().zip(&**factors).for_each(|(v, s)| *v *= s);
            }
        }
    }

    fn add(
        &mut self,
        plain: &Parameters<'_>,
        shape: &Shape,
        norm: &str,
        readers: Vec<String>,
    ) -> Converted<()> {
        let width = shape.audio_state;
        let (gamma, beta) = plain.norm(norm, width)?;
        let mut widest = vec![0.0_f32; width];
        for reader in &readers {
            let weight = plain.linear(reader, None, width)?.0;
            for row in weight.values.chunks_exact(width) {
                let largest = widest.iter_mut().zip(row);
                largest.for_each(|(max, v)| *max = max.max(v.abs()));
            }
        }
        let factors = Rc::new(factors(&gamma, &beta, &widest));
        self.norms.insert(norm.to_owned(), Rc::clone(&factors));
        let readers = readers.into_iter();
        self.readers
            .extend(readers.map(|reader| (reader, Rc::clone(&factors))));
        Ok(())
    }
}

fn factors(gamma: &[f32], beta: &[f32], widest: &[f32]) -> Vec<f32> {
    let factor = |((gamma, beta), widest): ((&f32, &f32), &f32)| {
        let spread = 3.0 * f64::from(gamma.abs()) + f64::from(beta.abs());
        spread.max(LEAST).powf(POWER) / f64::from(*widest).max(LEAST).powf(1.0 - POWER)
    };
    let raw: Vec<f64> = gamma.iter().zip(beta).zip(widest).map(factor).collect();
    // Their geometric mean shall be 1.
    let mean = (raw.iter().map(|s| s.ln()).sum::<f64>() / raw.len() as f64).exp();
    let [least, most] = FACTORS;
    raw.iter()
        .map(|s| (s / mean).clamp(least, most) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_even_out_what_a_norm_gives_against_what_reads_it() {
        let even = factors(&[1.0; 4], &[0.0; 4], &[0.5; 4]);
        let odd = factors(&[1.0, 1.0, 8.0, 1.0], &[0.0; 4], &[0.5, 0.5, 0.5, 4.0]);

        assert_eq!(even, [1.0; 4]);
        assert!(odd[2] > 3.0 * odd[0] && odd[3] < 0.6 * odd[0], "{odd:?}");
        let logarithms: f32 = odd.iter().map(|s| s.ln()).sum();
        assert!(logarithms.abs() < 1e-5, "{odd:?}");
        let wild = factors(&[0.0, 0.0, 1e9], &[0.0; 3], &[1.0; 3]);
        assert!(wild.iter().all(|s| (0.01..=100.0).contains(s)), "{wild:?}");
    }
}
