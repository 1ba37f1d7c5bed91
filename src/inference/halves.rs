// SPDX-License-Identifier: MPL-2.0
//! 16-bit floats (IEEE 754 binary16), as bits.

/// The value of a half.
#[inline]
pub fn to_f32(half: u16) -> f32 {
    let sign = u32::from(half >> 15) << 31;
    let exponent = u32::from(half >> 10) & 0x1f;
    let fraction = u32::from(half) & 0x3ff;
    match (exponent, fraction) {
        // Below the normal range the value is fraction * 2^-24, which f32 holds exactly.
        (0, _) => f32::from_bits(sign | (fraction as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        (0x1f, _) => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The half nearest to a value; of two equally near ones, the one with an even last bit.
#[inline]
pub fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00; // Not a number.
    }
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00; // 65520 and up round to infinity.
    }
    if magnitude < 0x3880_0000 {
        // Below 2^-14 halves are 2^-24 apart: adding 0.5 makes f32 round at just that distance,
        // because f32 values from 0.5 to 1 are 2^-24 apart.
        let rounded = f32::from_bits(magnitude) + 0.5;
        return sign | (rounded.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
}

/// Values as halves, as files hold them.
pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&value| from_f32(value).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_through_f32() {
        for half in 0..=u16::MAX {
            let not_a_number = half & 0x7c00 == 0x7c00 && half & 0x3ff != 0;

            let back = from_f32(to_f32(half));

            assert!(
                if not_a_number {
                    back & 0x7c00 == 0x7c00 && back & 0x3ff != 0
                } else {
                    back == half
                },
                "{half:#x}"
            );
        }
    }

    #[test]
    fn a_value_between_two_halves_goes_to_the_nearer_or_the_even_one() {
        for half in 0..0x7bff_u16 {
            let (low, high) = (f64::from(to_f32(half)), f64::from(to_f32(half + 1)));
            let at = |share: f64| from_f32((low + (high - low) * share) as f32);

            assert_eq!(at(0.25), half);
            assert_eq!(at(0.75), half + 1);
            assert_eq!(at(0.5), half + (half & 1));
        }
        assert_eq!(from_f32(65519.9), 0x7bff);
        assert_eq!(from_f32(65520.0), 0x7c00);
        assert_eq!(from_f32(-1e9), 0xfc00);
    }
}
