// SPDX-License-Identifier: MPL-2.0
//! Vectors of length 1 and how alike they are; exponentials of many numbers.

/// Cosine similarity of vectors of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Scales to length 1; one of length 0 stays.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|v| *v /= length);
    }
}

/// e to the power of what is 0 at most, within 2 units of the last place; e^-87 for all that is less than -87. What is no
/// number stays none. Without a branch and without a call, so that a compiler makes vectors of several.
#[inline(always)]
pub fn exponential(x: f32) -> f32 {
    /// Added and taken away again, it rounds to a whole number, which then is in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut sum = 1.987_569_1e-4;
    for factor in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        sum = sum * rest + factor;
    }
    let sum = sum * rest * rest + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    f32::from_bits(sum.to_bits().wrapping_add(exponent << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for n in 0..=8700 {
            let x = -0.01 * n as f32;
            let (found, exact) = (exponential(x), f64::from(x).exp());
            assert!(
                (f64::from(found) / exact - 1.0).abs() < 4e-7,
                "{x}: {found}"
            );
        }
        assert!(exponential(f32::NEG_INFINITY) < 2e-38);
        assert!(exponential(f32::NAN).is_nan());
    }
}
