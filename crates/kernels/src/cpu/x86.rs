//! The vector tiers of x86-64.
//!
//! The functions below may only be reached from a function compiled with the features of their tier, as
//! [`Isa::run`](super::isa::Isa::run) does after the features were found; that is what every SAFETY line
//! here rests on. They are always inlined, so nothing outside such a function can hold their code. Closures
//! cannot be marked so, hence there are none around vectors.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use super::tier::{LANES, MAGIC, Tier};

/// AVX2 and FMA: a vector is a pair of registers, lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

type Pair = (__m256, __m256);

/// Whether sixteen floats are a cache line.
#[inline(always)]
fn is_line(y: &[f32; LANES]) -> bool {
    y.as_ptr().addr().is_multiple_of(size_of_val(y))
}

/// Applies a two-operand intrinsic to both halves.
macro_rules! halves {
    ($intrinsic:ident, $a:expr, $b:expr) => {
        // SAFETY: see the module text; the intrinsic needs AVX at most.
        unsafe { ($intrinsic($a.0, $b.0), $intrinsic($a.1, $b.1)) }
    };
}

impl Tier for Avx2 {
    type V = Pair;
    const WIDE: bool = false;
    type Part = __m256;
    const PARTS: usize = 2;

    #[inline(always)]
    fn part(x: &[f32; LANES], p: usize) -> __m256 {
        let x = &x.as_chunks::<8>().0[p];
        // SAFETY: see the module text; the read is the chunk.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store_part(v: __m256, y: &mut [f32; LANES], p: usize) {
        let y = &mut y.as_chunks_mut::<8>().0[p];
        // SAFETY: see the module text; the write is the chunk.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn fma_part(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the module text.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn whole(_: __m256) -> Option<Pair> {
        None
    }

    #[inline(always)]
    fn splat(x: f32) -> Pair {
        // SAFETY: see the module text.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Pair {
        // SAFETY: see the module text; both reads lie in the array.
        unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(v: Pair, y: &mut [f32; LANES]) {
        // SAFETY: see the module text; both writes lie in the array.
        unsafe {
            _mm256_storeu_ps(y.as_mut_ptr(), v.0);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), v.1);
        }
    }
    #[inline(always)]
    fn stream(v: Pair, y: &mut [f32; LANES]) {
        if !is_line(y) {
            return Self::store(v, y);
        }
        // SAFETY: see the module text; both writes lie in the array, which is aligned.
        unsafe {
            _mm256_stream_ps(y.as_mut_ptr(), v.0);
            _mm256_stream_ps(y.as_mut_ptr().add(8), v.1);
        }
    }
    #[inline(always)]
    fn widen(x: &[bf16; LANES]) -> Pair {
        // SAFETY: see the module text; both reads of 8 bf16 lie in the array.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    fn pairs(x: &[bf16; 2 * LANES]) -> (Pair, Pair) {
        // SAFETY: see the module text; both reads of 16 bf16 lie in the array.
        let words = unsafe {
            [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(LANES).cast())]
        };
        // SAFETY: see the module text.
        unsafe {
            let high = _mm256_set1_epi32(-0x1_0000);
            let even = [_mm256_slli_epi32::<16>(words[0]), _mm256_slli_epi32::<16>(words[1])];
            let odd = [_mm256_and_si256(words[0], high), _mm256_and_si256(words[1], high)];
            (
                (_mm256_castsi256_ps(even[0]), _mm256_castsi256_ps(even[1])),
                (_mm256_castsi256_ps(odd[0]), _mm256_castsi256_ps(odd[1])),
            )
        }
    }
    #[inline(always)]
    fn evens(x: &[f32; 2 * LANES]) -> Pair {
        every_other::<0x88>(x)
    }
    #[inline(always)]
    fn odds(x: &[f32; 2 * LANES]) -> Pair {
        every_other::<0xdd>(x)
    }
    #[inline(always)]
    fn interleave(evens: Pair, odds: Pair, y: &mut [f32; 2 * LANES]) {
        /// Writes eight of each.
        #[inline(always)]
        unsafe fn half(evens: __m256, odds: __m256, y: *mut f32) {
            // SAFETY: see the module text; the caller has room for 16 floats.
            unsafe {
                let (low, high) = (_mm256_unpacklo_ps(evens, odds), _mm256_unpackhi_ps(evens, odds));
                _mm256_storeu_ps(y, _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(y.add(8), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
        // SAFETY: see the module text; 16 floats each at 0 and 16 are the array.
        unsafe {
            half(evens.0, odds.0, y.as_mut_ptr());
            half(evens.1, odds.1, y.as_mut_ptr().add(16));
        }
    }
    #[inline(always)]
    fn add(a: Pair, b: Pair) -> Pair {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(a: Pair, b: Pair) -> Pair {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(a: Pair, b: Pair) -> Pair {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(a: Pair, b: Pair) -> Pair {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: see the module text.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn larger(a: Pair, b: Pair) -> Pair {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn smaller(a: Pair, b: Pair) -> Pair {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn pick(a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        // SAFETY: see the module text.
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1);
            (_mm256_blendv_ps(no.0, yes.0, low), _mm256_blendv_ps(no.1, yes.1, high))
        }
    }
    #[inline(always)]
    fn scale(p: Pair, k: Pair) -> Pair {
        // In two factors, because 2^n alone may lie beyond the range where the product does not. The
        // first product is exact.
        #[inline(always)]
        fn half(p: __m256, k: __m256) -> __m256 {
            // SAFETY: see the module text.
            unsafe {
                let n = _mm256_sub_epi32(_mm256_castps_si256(k), _mm256_set1_epi32(MAGIC.to_bits() as i32));
                let first = _mm256_srai_epi32::<1>(n);
                _mm256_mul_ps(_mm256_mul_ps(p, power(first)), power(_mm256_sub_epi32(n, first)))
            }
        }
        /// `2^n` in each lane, for `n` in -126 ..= 127.
        #[inline(always)]
        fn power(n: __m256i) -> __m256 {
            // SAFETY: see the module text.
            unsafe {
                let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            }
        }
        (half(p.0, k.0), half(p.1, k.1))
    }
    #[inline(always)]
    fn off_nearest(x: Pair) -> Pair {
        #[inline(always)]
        fn half(x: __m256) -> __m256 {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            // SAFETY: see the module text.
            unsafe { _mm256_sub_ps(x, _mm256_round_ps::<NEAREST>(x)) }
        }
        (half(x.0), half(x.1))
    }
    #[inline(always)]
    fn scale_whole(p: Pair, n: Pair) -> Pair {
        // Adds to the exponent. The integer that NaN becomes has no low bits, so p, NaN then, stays.
        #[inline(always)]
        fn half(p: __m256, n: __m256) -> __m256 {
            // SAFETY: see the module text.
            unsafe {
                let n = _mm256_cvtps_epi32(n);
                let bits = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32::<23>(n));
                _mm256_castsi256_ps(bits)
            }
        }
        (half(p.0, n.0), half(p.1, n.1))
    }
    #[inline(always)]
    fn transpose(rows: [Pair; LANES]) -> [Pair; LANES] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rows;
        let top_left = transposed_8([a.0, b.0, c.0, d.0, e.0, f.0, g.0, h.0]);
        let bottom_left = transposed_8([i.0, j.0, k.0, l.0, m.0, n.0, o.0, p.0]);
        let top_right = transposed_8([a.1, b.1, c.1, d.1, e.1, f.1, g.1, h.1]);
        let bottom_right = transposed_8([i.1, j.1, k.1, l.1, m.1, n.1, o.1, p.1]);
        let mut columns = rows;
        for r in 0..8 {
            columns[r] = (top_left[r], bottom_left[r]);
            columns[8 + r] = (top_right[r], bottom_right[r]);
        }
        columns
    }
    #[inline(always)]
    fn sums(rows: [Pair; LANES]) -> Pair {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rows;
        (sums_of_8([a, b, c, d, e, f, g, h]), sums_of_8([i, j, k, l, m, n, o, p]))
    }
    #[inline(always)]
    fn fma1(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn prefetch_l2<T>(at: *const T) {
        prefetch_l2(at);
    }
    #[inline(always)]
    fn prefetch_l1<T>(x: &[T], ahead: usize) {
        prefetch_l1(x, ahead);
    }
}

#[inline(always)]
fn prefetch_l2<T>(at: *const T) {
    // SAFETY: SSE is part of x86-64, and a prefetch reads nothing, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
}

#[inline(always)]
fn prefetch_l1<T>(x: &[T], ahead: usize) {
    // SAFETY: SSE is part of x86-64, and a prefetch reads nothing, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast::<i8>().wrapping_add(ahead)) }
}

/// The even (0x88) or odd (0xdd) elements.
#[inline(always)]
fn every_other<const WHICH: i32>(x: &[f32; 2 * LANES]) -> Pair {
    // SAFETY: see the module text; the reads of 8 floats at 0, 8, 16 and 24 lie in the array.
    unsafe {
        let x = x.as_ptr();
        let low = _mm256_shuffle_ps::<WHICH>(_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8)));
        let high = _mm256_shuffle_ps::<WHICH>(_mm256_loadu_ps(x.add(16)), _mm256_loadu_ps(x.add(24)));
        // Each half has two elements of the first eight, then two of the others: the middle pairs change
        // places.
        let low = _mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(low));
        let high = _mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(high));
        (_mm256_castpd_ps(low), _mm256_castpd_ps(high))
    }
}

/// Sums of the lanes of eight vectors, by halving.
#[inline(always)]
fn sums_of_8(rows: [Pair; 8]) -> __m256 {
    /// Of two rows, 4 lanes each.
    #[inline(always)]
    fn four(a: Pair, b: Pair) -> __m256 {
        // SAFETY: see the module text.
        unsafe {
            let (a, b) = (_mm256_add_ps(a.0, a.1), _mm256_add_ps(b.0, b.1));
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
        }
    }
    #[inline(always)]
    fn two(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module text.
        unsafe { _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b)) }
    }
    #[inline(always)]
    fn one(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the module text.
        unsafe { _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b)) }
    }
    // The lower half of each vector belongs to rows 0..4, the upper to 4..8.
    let [a, b, c, d, e, f, g, h] = rows;
    one(two(four(a, e), four(b, f)), two(four(c, g), four(d, h)))
}

/// Eight rows of eight as columns.
#[inline(always)]
fn transposed_8(rows: [__m256; 8]) -> [__m256; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Quads of four rows: column `j` of the lower half, column `j + 4` of the upper.
    #[inline(always)]
    fn quads(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
        // SAFETY: see the module text.
        unsafe {
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xee>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
            ]
        }
    }
    let (upper, lower) = (quads(a, b, c, d), quads(e, f, g, h));
    let mut columns = rows;
    for j in 0..4 {
        // SAFETY: see the module text.
        unsafe {
            columns[j] = _mm256_permute2f128_ps::<0x20>(upper[j], lower[j]);
            columns[4 + j] = _mm256_permute2f128_ps::<0x31>(upper[j], lower[j]);
        }
    }
    columns
}

impl Tier for Avx512 {
    type V = __m512;
    const WIDE: bool = true;
    type Part = __m512;
    const PARTS: usize = 1;

    #[inline(always)]
    fn part(x: &[f32; LANES], _: usize) -> __m512 {
        Self::load(x)
    }
    #[inline(always)]
    fn store_part(v: __m512, y: &mut [f32; LANES], _: usize) {
        Self::store(v, y);
    }
    #[inline(always)]
    fn fma_part(a: __m512, b: __m512, c: __m512) -> __m512 {
        Self::fma(a, b, c)
    }
    #[inline(always)]
    fn whole(v: __m512) -> Option<__m512> {
        Some(v)
    }

    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> __m512 {
        // SAFETY: see the module text; the read is the array.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(v: __m512, y: &mut [f32; LANES]) {
        // SAFETY: see the module text; the write is the array.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn stream(v: __m512, y: &mut [f32; LANES]) {
        if !is_line(y) {
            return Self::store(v, y);
        }
        // SAFETY: see the module text; the write is the array, which is aligned.
        unsafe { _mm512_stream_ps(y.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn widen(x: &[bf16; LANES]) -> __m512 {
        // SAFETY: see the module text; the read of 16 bf16 is the array.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn pairs(x: &[bf16; 2 * LANES]) -> (__m512, __m512) {
        // SAFETY: see the module text; the read of 32 bf16 is the array.
        unsafe {
            let words = _mm512_loadu_si512(x.as_ptr().cast());
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    fn evens(x: &[f32; 2 * LANES]) -> __m512 {
        const INDEX: [i32; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
        permuted(x, INDEX)
    }
    #[inline(always)]
    fn odds(x: &[f32; 2 * LANES]) -> __m512 {
        const INDEX: [i32; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
        permuted(x, INDEX)
    }
    #[inline(always)]
    fn interleave(evens: __m512, odds: __m512, y: &mut [f32; 2 * LANES]) {
        const LOW: [i32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
        const HIGH: [i32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
        // SAFETY: see the module text; the writes of 16 floats at 0 and 16 are the array, and the two types
        // of the indices are 64 bytes of integers.
        unsafe {
            let (low, high) = (transmute::<[i32; 16], __m512i>(LOW), transmute::<[i32; 16], __m512i>(HIGH));
            _mm512_storeu_ps(y.as_mut_ptr(), _mm512_permutex2var_ps(evens, low, odds));
            _mm512_storeu_ps(y.as_mut_ptr().add(LANES), _mm512_permutex2var_ps(evens, high, odds));
        }
    }
    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn larger(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn smaller(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn pick(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn scale(p: __m512, k: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_scalef_ps(p, _mm512_sub_ps(k, _mm512_set1_ps(MAGIC))) }
    }
    #[inline(always)]
    fn off_nearest(x: __m512) -> __m512 {
        // To no digits after the point, and raises nothing.
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the module text.
        unsafe { _mm512_reduce_ps::<NEAREST>(x) }
    }
    #[inline(always)]
    fn scale_whole(p: __m512, n: __m512) -> __m512 {
        // SAFETY: see the module text.
        unsafe { _mm512_scalef_ps(p, n) }
    }
    #[inline(always)]
    fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rows;
        let (q0, q1, q2, q3) = (quads(a, b, c, d), quads(e, f, g, h), quads(i, j, k, l), quads(m, n, o, p));
        let mut columns = rows;
        for r in 0..4 {
            // Quarter `q` of each vector has column `4 q + r`.
            // SAFETY: see the module text.
            unsafe {
                let (low, low2) =
                    (_mm512_shuffle_f32x4::<0x88>(q0[r], q1[r]), _mm512_shuffle_f32x4::<0x88>(q2[r], q3[r]));
                let (high, high2) =
                    (_mm512_shuffle_f32x4::<0xdd>(q0[r], q1[r]), _mm512_shuffle_f32x4::<0xdd>(q2[r], q3[r]));
                columns[r] = _mm512_shuffle_f32x4::<0x88>(low, low2);
                columns[8 + r] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
                columns[4 + r] = _mm512_shuffle_f32x4::<0x88>(high, high2);
                columns[12 + r] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
            }
        }
        columns
    }
    #[inline(always)]
    fn sums(rows: [__m512; LANES]) -> __m512 {
        // Two rows of 8 lanes, four of 4, eight of 2, sixteen of 1.
        #[inline(always)]
        fn eight(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module text.
            unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b)) }
        }
        #[inline(always)]
        fn four(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module text.
            unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)) }
        }
        #[inline(always)]
        fn two(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module text.
            unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b)) }
        }
        #[inline(always)]
        fn one(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module text.
            unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b)) }
        }
        // Quarter `q` of each vector belongs to rows `4 q ..+ 4`.
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rows;
        let first = two(four(eight(a, e), eight(i, m)), four(eight(b, f), eight(j, n)));
        let last = two(four(eight(c, g), eight(k, o)), four(eight(d, h), eight(l, p)));
        one(first, last)
    }
    #[inline(always)]
    fn fma1(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn prefetch_l2<T>(at: *const T) {
        prefetch_l2(at);
    }
    #[inline(always)]
    fn prefetch_l1<T>(x: &[T], ahead: usize) {
        prefetch_l1(x, ahead);
    }
}

/// Quads of four rows: quarter `q` of vector `j` has elements `4 q + j`.
#[inline(always)]
fn quads(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    // SAFETY: see the module text.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0x44>(ab, cd),
            _mm512_shuffle_ps::<0xee>(ab, cd),
            _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
        ]
    }
}

/// Elements `index` of the array.
#[inline(always)]
fn permuted(x: &[f32; 2 * LANES], index: [i32; 16]) -> __m512 {
    // SAFETY: see the module text; the reads of 16 floats at 0 and 16 lie in the array, and the two types
    // of the indices are 64 bytes of integers.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES)));
        _mm512_permutex2var_ps(low, transmute::<[i32; 16], __m512i>(index), high)
    }
}
