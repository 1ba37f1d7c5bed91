// SPDX-License-Identifier: MPL-2.0
//! Several numbers at once, by what the processor has: what our operators are written with.
#![allow(unsafe_code)]

use crate::dsp::vectors::exponential;
use crate::inference::halves;

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, EXACT, ROUGH, power};

/// What a processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
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
            if has!("avx512f") {
                known.push(Self::Avx512);
            }
            if has!("avx2") && has!("f16c") && has!("fma") {
                known.push(Self::Avx2);
            }
        }
        known.push(Self::Plain);
        known
    }
}

/// Whether it has products of numbers of 8 bits in vectors of 512, and what belongs to them.
#[cfg(target_arch = "x86_64")]
pub fn has_vnni() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f")
        && has!("avx512bw")
        && has!("avx512dq")
        && has!("avx512vl")
        && has!("avx512vnni")
}

/// Does something with the widest instructions that the processor has: a compiler makes vectors of what is inlined into it.
#[inline]
pub fn widest<R>(run: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("fma")
            && has!("avx512f")
            && has!("avx512bw")
            && has!("avx512dq")
            && has!("avx512vl")
        {
            // SAFETY: the processor has them.
            return unsafe { x86::widest512(run) };
        }
        if has!("avx2") && has!("fma") {
            // SAFETY: the same.
            return unsafe { x86::widest256(run) };
        }
    }
    run()
}

/// Sum of e to the power of values less `most`, which none of them is above. Blocks are several values each.
pub fn sum_of_exponentials<'a>(blocks: impl Iterator<Item = &'a [f32]>, most: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512dq") {
            // SAFETY: the processor has them.
            return unsafe { x86::sum_of_exponentials(blocks, most) };
        }
    }
    widest(
        #[inline(always)]
        || {
            let mut lanes = [0.0; SUMS];
            for block in blocks {
                let (chunks, rest) = block.as_chunks::<SUMS>();
                for chunk in chunks {
                    for (lane, value) in lanes.iter_mut().zip(chunk) {
                        *lane += exponential(value - most);
                    }
                }
                for (lane, value) in lanes.iter_mut().zip(rest) {
                    *lane += exponential(value - most);
                }
            }
            lanes.iter().sum()
        },
    )
}

/// Sums that do not wait for each other.
const SUMS: usize = 64;

/// The largest half.
const HALF_MAX: f32 = 65_504.0;

/// Numbers as halves; what they cannot hold becomes the largest.
pub fn narrow(from: &[f32], to: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has it.
        return unsafe { x86::narrow(from, to) };
    }
    narrow_plainly(from, to);
}

fn narrow_plainly(from: &[f32], to: &mut [u16]) {
    for (from, to) in from.iter().zip(to) {
        *to = halves::from_f32(from.clamp(-HALF_MAX, HALF_MAX));
    }
}

/// Several floats at once.
///
/// All of it is unsafe because the processor must have the instructions; what is read and written must be there.
pub trait Lanes {
    const N: usize;
    type V: Copy;
    unsafe fn all(value: f32) -> Self::V;
    unsafe fn halves(from: *const u16) -> Self::V;
    /// Of so many words of four signed bytes the one of this number, from 0; `turned` are bits of a byte that are turned over
    /// before.
    unsafe fn byte(from: *const u8, number: usize, turned: u8) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(value: Self::V, to: *mut f32);
    /// What lies there will be wanted soon. It need not be there.
    #[inline(always)]
    fn prefetch(_from: *const u8) {}
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// All of them together.
    unsafe fn sum(value: Self::V) -> f32;
}

/// Without instructions of its own.
pub struct Plain;

impl Lanes for Plain {
    const N: usize = 8;
    type V = [f32; 8];

    #[inline(always)]
    unsafe fn all(value: f32) -> Self::V {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn halves(from: *const u16) -> Self::V {
        // SAFETY: as the caller promises.
        let halves = unsafe { from.cast::<[u16; 8]>().read() };
        halves.map(half)
    }

    #[inline(always)]
    unsafe fn byte(from: *const u8, number: usize, turned: u8) -> Self::V {
        // SAFETY: as the caller promises.
        let words = unsafe { from.cast::<[[u8; 4]; 8]>().read() };
        words.map(|word| f32::from((word[number] ^ turned).cast_signed()))
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|n| a[n] * b[n])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[f32; 8]>().read() }
    }

    #[inline(always)]
    unsafe fn store(value: Self::V, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[f32; 8]>().write(value) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for (c, (a, b)) in c.iter_mut().zip(a.iter().zip(&b)) {
            *c += a * b;
        }
        c
    }

    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        value.iter().sum()
    }
}

/// The value of a half that is a number: what `halves::to_f32` says, in a form of which a compiler makes vectors.
#[inline(always)]
fn half(half: u16) -> f32 {
    /// 2^112: what the exponents differ by.
    const UP: f32 = f32::from_bits(0x7780_0000);
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * UP;
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{HALF_MAX, Lanes};

    /// # Safety
    ///
    /// The processor must have the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub unsafe fn widest512<R>(run: impl FnOnce() -> R) -> R {
        run()
    }

    /// # Safety
    ///
    /// The processor must have the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn widest256<R>(run: impl FnOnce() -> R) -> R {
        run()
    }

    /// # Safety
    ///
    /// The processor must have the instructions.
    #[target_feature(enable = "f16c")]
    pub unsafe fn narrow(from: &[f32], to: &mut [u16]) {
        let (chunks, rest) = from.as_chunks::<8>();
        let (to, rest_to) = to.as_chunks_mut::<8>();
        let (least, most) = (_mm256_set1_ps(-HALF_MAX), _mm256_set1_ps(HALF_MAX));
        for (from, to) in chunks.iter().zip(to) {
            // SAFETY: eight values are read and eight written, and there are as many.
            unsafe {
                let floats = _mm256_loadu_ps(from.as_ptr());
                let floats = _mm256_min_ps(_mm256_max_ps(floats, least), most);
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats);
                _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
            }
        }
        super::narrow_plainly(rest, rest_to);
    }

    #[inline(always)]
    fn prefetch(from: *const u8) {
        // SAFETY: all these processors have it, and it reads nothing: any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }

    /// Factors of the powers of x in 2^x, x from 0 to 1, the last first: off by 1 in 13,000.
    pub const ROUGH: [f32; 4] = [0.078_024_52, 0.226_067_16, 0.695_833_54, 0.999_925_2];
    /// The same, off by 1 in 13 millions.
    pub const EXACT: [f32; 6] = [
        1.877_576_7e-3,
        8.989_34e-3,
        5.582_632e-2,
        2.401_536_2e-1,
        6.931_531e-1,
        0.999_999_94,
    ];

    /// 2 to the power of `x`; 0 for what is infinite below 0.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions.
    #[inline(always)]
    pub unsafe fn power<const N: usize>(x: __m512, factors: &[f32; N]) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            // What is left above the whole number below.
            let rest = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
            let mut sum = _mm512_set1_ps(factors[0]);
            for factor in &factors[1..] {
                sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(*factor));
            }
            _mm512_scalef_ps(sum, x)
        }
    }

    /// # Safety
    ///
    /// The processor must have the instructions.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub unsafe fn sum_of_exponentials<'a>(
        blocks: impl Iterator<Item = &'a [f32]>,
        most: f32,
    ) -> f32 {
        const N: usize = 16;
        let most = _mm512_set1_ps(most);
        let factor = _mm512_set1_ps(std::f32::consts::LOG2_E);
        // Sums that do not wait for each other.
        let mut sums = [_mm512_setzero_ps(); 4];
        for block in blocks {
            for part in block.chunks(sums.len() * N) {
                for (sum, values) in sums.iter_mut().zip(part.chunks(N)) {
                    let mask = ((1_u32 << values.len()) - 1) as u16;
                    // SAFETY: as many values are read as there are, and the processor has the instructions.
                    unsafe {
                        let values = _mm512_maskz_loadu_ps(mask, values.as_ptr());
                        let x = _mm512_mul_ps(_mm512_sub_ps(values, most), factor);
                        *sum = _mm512_mask_add_ps(*sum, mask, *sum, power(x, &EXACT));
                    }
                }
            }
        }
        let [a, b, c, d] = sums;
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
    }

    /// 16 floats at once.
    pub struct Avx512;

    impl Lanes for Avx512 {
        const N: usize = 16;
        type V = __m512;

        #[inline(always)]
        fn prefetch(from: *const u8) {
            prefetch(from);
        }

        #[inline(always)]
        unsafe fn all(value: f32) -> Self::V {
            // SAFETY: the processor has it, as the caller promises.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn halves(from: *const u16) -> Self::V {
            // SAFETY: 16 halves are there, as the caller promises.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn byte(from: *const u8, number: usize, turned: u8) -> Self::V {
            // SAFETY: 64 bytes are there, as the caller promises.
            unsafe {
                let turned = _mm512_set1_epi8(turned.cast_signed());
                let words = _mm512_xor_si512(_mm512_loadu_si512(from.cast()), turned);
                let left = _mm_cvtsi32_si128(24 - 8 * number as i32);
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_sll_epi32(words, left)))
            }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the processor has it, as the caller promises.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: 16 floats are there, as the caller promises.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(value: Self::V, to: *mut f32) {
            // SAFETY: the same.
            unsafe { _mm512_storeu_ps(to, value) }
        }

        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the processor has it, as the caller promises.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(value: Self::V) -> f32 {
            // SAFETY: the same.
            unsafe { _mm512_reduce_add_ps(value) }
        }
    }

    /// 8 floats at once.
    pub struct Avx2;

    impl Lanes for Avx2 {
        const N: usize = 8;
        type V = __m256;

        #[inline(always)]
        fn prefetch(from: *const u8) {
            prefetch(from);
        }

        #[inline(always)]
        unsafe fn all(value: f32) -> Self::V {
            // SAFETY: the processor has it, as the caller promises.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn halves(from: *const u16) -> Self::V {
            // SAFETY: 8 halves are there, as the caller promises.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn byte(from: *const u8, number: usize, turned: u8) -> Self::V {
            // SAFETY: 32 bytes are there, as the caller promises.
            unsafe {
                let turned = _mm256_set1_epi8(turned.cast_signed());
                let words = _mm256_xor_si256(_mm256_loadu_si256(from.cast()), turned);
                let left = _mm_cvtsi32_si128(24 - 8 * number as i32);
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_sll_epi32(words, left)))
            }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the processor has it, as the caller promises.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: 8 floats are there, as the caller promises.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(value: Self::V, to: *mut f32) {
            // SAFETY: the same.
            unsafe { _mm256_storeu_ps(to, value) }
        }

        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the processor has it, as the caller promises.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(value: Self::V) -> f32 {
            // SAFETY: the same.
            unsafe {
                let halves = [
                    _mm256_castps256_ps128(value),
                    _mm256_extractf128_ps::<1>(value),
                ];
                let four = _mm_add_ps(halves[0], halves[1]);
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_the_nearest_whatever_makes_them_and_the_largest_for_what_is_larger() {
        let mut from: Vec<f32> = (0..1001)
            .map(|n| (n as f32 * 0.7).sin() * 10.0_f32.powi(n % 12 - 8))
            .collect();
        from.extend([1e9, -1e9, 0.0]);
        let mut found = vec![7; from.len()];

        narrow(&from, &mut found);

        let (last, first) = (&found[1001..], &found[..1001]);
        assert_eq!(last, [0x7bff, 0xfbff, 0]);
        let exact: Vec<u16> = from[..1001].iter().map(|v| halves::from_f32(*v)).collect();
        assert_eq!(first, exact);
    }
}
