//! Integers on the vector tiers of x86-64.
//!
//! As in [`x86`](super::x86): these functions may only be reached from a function compiled with the features
//! of their tier, as [`Isa::run_int`](super::isa::Isa::run_int) does after the features were found.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::f16;

use super::int::IntTier;
use super::tier::LANES;
use super::x86::{Avx2, Avx512};
use crate::quant::{GROUP, LINE, TINY};

/// [`Avx512`] with the dot products of VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vnni;

type Pair = (__m256i, __m256i);

impl IntTier for Avx2 {
    type F = Avx2;
    type I = Pair;
    type Line = Pair;
    const SIGNED_8: bool = true;

    #[inline(always)]
    fn quantise(x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, i32) {
        // SAFETY: see the module text; reads of 8 floats at multiples of 8 below 128 lie in `x`, and writes
        // of 32 bytes at multiples of 32 in `q`.
        unsafe {
            let bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
            // As integers, magnitudes are in the order of the numbers, and what is not finite is largest.
            let mut most = _mm256_setzero_si256();
            for j in 0..GROUP / 8 {
                let x = _mm256_loadu_ps(x.as_ptr().add(8 * j));
                most = _mm256_max_epi32(most, _mm256_castps_si256(_mm256_and_ps(x, bits)));
            }
            let most = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
            let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0x4e>(most));
            let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0xb1>(most));
            let (factor, scale) = factors(_mm_cvtsi128_si32(most));
            let factor = _mm256_set1_ps(factor);
            let mut sum = _mm256_setzero_si256();
            let ones = _mm256_set1_epi16(1);
            for j in 0..GROUP / 32 {
                let mut int = [_mm256_setzero_si256(); 4];
                for k in 0..4 {
                    let x = _mm256_loadu_ps(x.as_ptr().add(32 * j + 8 * k));
                    int[k] = _mm256_cvtps_epi32(_mm256_mul_ps(x, factor));
                }
                let (low, high) = (_mm256_packs_epi32(int[0], int[1]), _mm256_packs_epi32(int[2], int[3]));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(low, high), ones));
                // Packing works within halves; the words come back in order by their 32 bits.
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
                _mm256_storeu_si256(q.as_mut_ptr().add(32 * j).cast(), bytes);
            }
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0x4e>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0xb1>(sum));
            (scale, _mm_cvtsi128_si32(sum))
        }
    }
    #[inline(always)]
    fn start(value: i32) -> Pair {
        // SAFETY: see the module text.
        unsafe { (_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }
    #[inline(always)]
    fn line8(bytes: &[u8; LINE]) -> Pair {
        let (low, high) = Avx2::line4(bytes);
        // SAFETY: see the module text. Flipping the top bit subtracts 128.
        unsafe {
            let top = _mm256_set1_epi8(-128);
            (_mm256_xor_si256(low, top), _mm256_xor_si256(high, top))
        }
    }
    #[inline(always)]
    fn line4(bytes: &[u8; LINE]) -> Pair {
        // SAFETY: see the module text; both reads of 32 bytes lie in the array.
        unsafe {
            (_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast()))
        }
    }
    #[inline(always)]
    fn lines4(part: &[u8; LINE]) -> (Pair, Pair) {
        let (low, high) = Avx2::line4(part);
        // SAFETY: see the module text.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let even = (_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
            let (low, high) = (_mm256_srli_epi16::<4>(low), _mm256_srli_epi16::<4>(high));
            (even, (_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)))
        }
    }
    #[inline(always)]
    fn signed8(line: &[u8; LINE], signed: &mut [u8; LINE]) {
        Avx2::store4(Avx2::line8(line), signed);
    }
    #[inline(always)]
    fn signed4(part: &[u8; LINE], low: &mut [u8; LINE], high: &mut [u8; LINE]) {
        let (even, odd) = Avx2::lines4(part);
        // SAFETY: see the module text.
        unsafe {
            let zero = _mm256_set1_epi8(8);
            Avx2::store4((_mm256_sub_epi8(even.0, zero), _mm256_sub_epi8(even.1, zero)), low);
            Avx2::store4((_mm256_sub_epi8(odd.0, zero), _mm256_sub_epi8(odd.1, zero)), high);
        }
    }
    #[inline(always)]
    fn sums(sums: &[i32; LANES]) -> Pair {
        // SAFETY: see the module text; both reads of 8 sums lie in the array.
        unsafe { (_mm256_loadu_si256(sums.as_ptr().cast()), _mm256_loadu_si256(sums.as_ptr().add(8).cast())) }
    }
    #[inline(always)]
    fn store4(line: Pair, bytes: &mut [u8; LINE]) {
        // SAFETY: see the module text; both writes of 32 bytes lie in the array.
        unsafe {
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), line.0);
            _mm256_storeu_si256(bytes.as_mut_ptr().add(32).cast(), line.1);
        }
    }
    #[inline(always)]
    fn dot8(sum: Pair, line: Pair, x: [i8; 4]) -> Pair {
        /// The sign of the weight goes to the activation: two products of at most 127 x 127 fit 16 bits.
        #[inline(always)]
        unsafe fn half(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // SAFETY: see the module text.
            unsafe {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            }
        }
        // SAFETY: see the module text.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            (half(sum.0, line.0, x), half(sum.1, line.1, x))
        }
    }
    #[inline(always)]
    fn dot4(sum: Pair, line: Pair, x: [i8; 4]) -> Pair {
        /// Two products of at most 15 x 127 fit 16 bits.
        #[inline(always)]
        unsafe fn half(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // SAFETY: see the module text.
            unsafe {
                let pairs = _mm256_maddubs_epi16(w, x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            }
        }
        // SAFETY: see the module text.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            (half(sum.0, line.0, x), half(sum.1, line.1, x))
        }
    }
    #[inline(always)]
    fn add(a: Pair, b: Pair) -> Pair {
        // SAFETY: see the module text.
        unsafe { (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    fn float(sum: Pair) -> (__m256, __m256) {
        // SAFETY: see the module text.
        unsafe { (_mm256_cvtepi32_ps(sum.0), _mm256_cvtepi32_ps(sum.1)) }
    }
    #[inline(always)]
    fn scales(scales: &[f16; LANES]) -> (__m256, __m256) {
        // SAFETY: see the module text; both reads of 8 scales lie in the array.
        unsafe {
            (
                _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().add(8).cast())),
            )
        }
    }
}

/// The factor from activations to integers, and the scale back, for the largest magnitude in bits.
#[inline(always)]
fn factors(bits: i32) -> (f32, f32) {
    let largest = f32::from_bits(bits as u32);
    if !largest.is_finite() {
        (0.0, f32::NAN)
    } else if largest < TINY {
        (0.0, 0.0)
    } else {
        (127.0 / largest, largest / 127.0)
    }
}

/// The operations that the two 512-bit tiers share.
macro_rules! wide {
    () => {
        type F = Avx512;
        type I = __m512i;
        type Line = __m512i;

        #[inline(always)]
        fn quantise(x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, i32) {
            // SAFETY: see the module text; reads of 16 floats at multiples of 16 below 128 lie in `x`, and so do
            // writes of 16 bytes in `q`.
            unsafe {
                let bits = _mm512_set1_epi32(0x7fff_ffff);
                // As integers, magnitudes are in the order of the numbers, and what is not finite is largest.
                let mut most = _mm512_setzero_si512();
                for j in 0..GROUP / 16 {
                    let x = _mm512_loadu_ps(x.as_ptr().add(16 * j));
                    most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(x), bits));
                }
                let (factor, scale) = factors(_mm512_reduce_max_epi32(most));
                let factor = _mm512_set1_ps(factor);
                let mut sum = _mm512_setzero_si512();
                for j in 0..GROUP / 16 {
                    let int =
                        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr().add(16 * j)), factor));
                    sum = _mm512_add_epi32(sum, int);
                    _mm_storeu_si128(q.as_mut_ptr().add(16 * j).cast(), _mm512_cvtepi32_epi8(int));
                }
                (scale, _mm512_reduce_add_epi32(sum))
            }
        }
        #[inline(always)]
        fn start(value: i32) -> __m512i {
            // SAFETY: see the module text.
            unsafe { _mm512_set1_epi32(value) }
        }
        #[inline(always)]
        fn line4(bytes: &[u8; LINE]) -> __m512i {
            // SAFETY: see the module text; 64 bytes are read from 64.
            unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
        }
        #[inline(always)]
        fn lines4(part: &[u8; LINE]) -> (__m512i, __m512i) {
            // SAFETY: see the module text; 64 bytes are read from 64.
            unsafe {
                let (part, mask) = (_mm512_loadu_si512(part.as_ptr().cast()), _mm512_set1_epi8(15));
                (_mm512_and_si512(part, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(part), mask))
            }
        }
        #[inline(always)]
        fn signed8(line: &[u8; LINE], signed: &mut [u8; LINE]) {
            // SAFETY: see the module text. Flipping the top bit subtracts 128.
            Self::store4(unsafe { _mm512_xor_si512(Self::line4(line), _mm512_set1_epi8(-128)) }, signed);
        }
        #[inline(always)]
        fn signed4(part: &[u8; LINE], low: &mut [u8; LINE], high: &mut [u8; LINE]) {
            let (even, odd) = Self::lines4(part);
            // SAFETY: see the module text.
            unsafe {
                let zero = _mm512_set1_epi8(8);
                Self::store4(_mm512_sub_epi8(even, zero), low);
                Self::store4(_mm512_sub_epi8(odd, zero), high);
            }
        }
        #[inline(always)]
        fn sums(sums: &[i32; LANES]) -> __m512i {
            // SAFETY: see the module text; 64 bytes are read from 16 sums.
            unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
        }
        #[inline(always)]
        fn store4(line: __m512i, bytes: &mut [u8; LINE]) {
            // SAFETY: see the module text; 64 bytes are written to 64.
            unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), line) }
        }
        #[inline(always)]
        fn add(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see the module text.
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        fn float(sum: __m512i) -> __m512 {
            // SAFETY: see the module text.
            unsafe { _mm512_cvtepi32_ps(sum) }
        }
        #[inline(always)]
        fn scales(scales: &[f16; LANES]) -> __m512 {
            // SAFETY: see the module text; 32 bytes are read from 16 scales.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast())) }
        }
    };
}

impl IntTier for Vnni {
    wide!();
    const SIGNED_8: bool = false;

    #[inline(always)]
    fn line8(bytes: &[u8; LINE]) -> __m512i {
        Vnni::line4(bytes)
    }
    #[inline(always)]
    fn dot8(sum: __m512i, line: __m512i, x: [i8; 4]) -> __m512i {
        // SAFETY: see the module text.
        unsafe { _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))) }
    }
    #[inline(always)]
    fn dot4(sum: __m512i, line: __m512i, x: [i8; 4]) -> __m512i {
        Vnni::dot8(sum, line, x)
    }
}

impl IntTier for Avx512 {
    wide!();
    const SIGNED_8: bool = true;

    #[inline(always)]
    fn line8(bytes: &[u8; LINE]) -> __m512i {
        // SAFETY: see the module text. Flipping the top bit subtracts 128.
        unsafe { _mm512_xor_si512(Avx512::line4(bytes), _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    fn dot8(sum: __m512i, line: __m512i, x: [i8; 4]) -> __m512i {
        // The sign of the weight goes to the activation: two products of at most 127 x 127 fit 16 bits.
        // SAFETY: see the module text.
        unsafe {
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            let signed = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(line), _mm512_setzero_si512(), x);
            let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(line), signed);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
    #[inline(always)]
    fn dot4(sum: __m512i, line: __m512i, x: [i8; 4]) -> __m512i {
        // SAFETY: see the module text. Two products of at most 15 x 127 fit 16 bits.
        unsafe {
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            let pairs = _mm512_maddubs_epi16(line, x);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
}
