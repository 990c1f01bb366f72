//! Arranging operands for tiles: rounding to bf16, pairing neighbours along the sum, transposing.
//!
//! A tile of B holds pairs of numbers that are adjacent along the sum, so an array whose rows run along the
//! sum is transposed in units of pairs, and one whose columns do has two rows interleaved. Rounding is to the
//! nearest, ties to even; subnormal results become zero, as the tile instructions would read them. What lies
//! beyond the array is packed as zero.
//!
//! Functions named `*_in` may only be reached from one compiled with the features that [`Amx`] proves, which is
//! what every SAFETY line here rests on; masked loads touch no element beyond their mask.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use super::amx::{Amx, LINE, SIDE, STEP};

/// Pairs along the sum in a tile.
const PAIRS: usize = STEP / 2;

/// Rows of a tile that is written, wherever they lie.
pub(super) type Rows<'a> = [&'a mut [f32; SIDE]; SIDE];

/// A row-major array that is read in blocks; rows and columns beyond its sizes read as zero.
#[derive(Clone, Copy)]
pub(super) struct Block<'a, T> {
    /// From the first element of the block on.
    pub(super) x: &'a [T],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl<T> Block<'_, T> {
    fn check(&self) {
        let end = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols };
        assert!(end <= self.x.len(), "a block of {} x {} in {}", self.rows, self.cols, self.x.len());
    }
}

/// A type whose values are packed.
pub(super) trait Element: Copy {
    /// Elements `c ..+ 16` of rows `r` and `r + 1` as pairs: lane `l` holds those of column `c + l`.
    ///
    /// # Safety
    /// See the module text; `block` is checked.
    unsafe fn two_rows_in(block: &Block<Self>, r: usize, c: usize) -> __m512i;

    /// Elements `c ..+ 32` of row `r` as pairs of neighbours.
    ///
    /// # Safety
    /// As for [`Element::two_rows_in`].
    unsafe fn one_row_in(block: &Block<Self>, r: usize, c: usize) -> __m512i;
}

/// The first `n` of 16 lanes.
#[inline(always)]
fn lanes(n: usize) -> __mmask16 {
    if n >= 16 { 0xffff } else { (1 << n) - 1 }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn two_rows_in(block: &Block<f32>, r: usize, c: usize) -> __m512i {
        // SAFETY: see the module text.
        unsafe {
            let mix = _mm512_set_epi16(
                31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                3, 18, 2, 17, 1, 16, 0,
            );
            let both = _mm512_cvtne2ps_pbh(load_in(block, r + 1, c), load_in(block, r, c));
            _mm512_permutexvar_epi16(mix, std::mem::transmute::<__m512bh, __m512i>(both))
        }
    }

    #[inline(always)]
    unsafe fn one_row_in(block: &Block<f32>, r: usize, c: usize) -> __m512i {
        // SAFETY: see the module text.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(load_in(block, r, c + 16), load_in(block, r, c));
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    }
}

/// Elements `c ..+ 16` of row `r`.
#[inline(always)]
unsafe fn load_in(block: &Block<f32>, r: usize, c: usize) -> __m512 {
    // SAFETY: see the module text; the mask leaves out what is beyond the row, and all of a row beyond the block.
    unsafe {
        let n = if r < block.rows { block.cols.saturating_sub(c) } else { 0 };
        _mm512_maskz_loadu_ps(lanes(n), block.x.as_ptr().wrapping_add(r * block.stride + c))
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn two_rows_in(block: &Block<bf16>, r: usize, c: usize) -> __m512i {
        // SAFETY: see the module text; as in `load_in`.
        unsafe {
            let load = |r: usize| {
                let n = if r < block.rows { block.cols.saturating_sub(c) } else { 0 };
                let at = block.x.as_ptr().wrapping_add(r * block.stride + c);
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n), at.cast()))
            };
            _mm512_or_si512(load(r), _mm512_slli_epi32::<16>(load(r + 1)))
        }
    }

    #[inline(always)]
    unsafe fn one_row_in(block: &Block<bf16>, r: usize, c: usize) -> __m512i {
        // SAFETY: see the module text; as in `load_in`.
        unsafe {
            let n = if r < block.rows { block.cols.saturating_sub(c).min(32) } else { 0 };
            let mask = if n == 32 { u32::MAX } else { (1 << n) - 1 };
            _mm512_maskz_loadu_epi16(mask, block.x.as_ptr().wrapping_add(r * block.stride + c).cast())
        }
    }
}

impl Amx {
    /// Tiles of B for a sum along the rows of `x`: row `j` of `x` becomes column `j`. `out` is
    /// `[steps][16 pairs][columns][2]`.
    ///
    /// # Panics
    /// If `x` has more rows than there are columns, or `out` has another size than its `steps` tiles.
    pub(super) fn pack_rows<T: Element>(self, out: &mut [bf16], x: Block<T>, columns: usize) {
        x.check();
        let steps = x.cols.div_ceil(STEP);
        assert!(x.rows <= columns && columns <= SIDE && out.len() == steps * columns * STEP, "rows to pack");
        // SAFETY: `self` proves the features.
        unsafe { pack_rows(out, x, columns) }
    }

    /// Tiles of B for a sum down the columns of `x`, 16 columns: `out` is `[steps][16 pairs][16][2]`.
    ///
    /// # Panics
    /// If `x` has more than 16 columns, or `out` has another size than its `steps` tiles.
    pub(super) fn pack_columns<T: Element>(self, out: &mut [bf16], x: Block<T>) {
        x.check();
        assert!(x.cols <= SIDE && out.len() == x.rows.div_ceil(STEP) * SIDE * STEP, "columns to pack");
        // SAFETY: `self` proves the features.
        unsafe { pack_columns(out, x) }
    }

    /// Tiles of A for a sum down the columns of `x`: column `j` of `x`, of at most 16, becomes row `j`. `out`
    /// is `[steps][16][32]`.
    ///
    /// # Panics
    /// As [`Amx::pack_columns`].
    pub(super) fn pack_transposed<T: Element>(self, out: &mut [bf16], x: Block<T>) {
        x.check();
        assert!(x.cols <= SIDE && out.len() == x.rows.div_ceil(STEP) * SIDE * STEP, "columns to pack");
        // SAFETY: `self` proves the features.
        unsafe { pack_transposed(out, x) }
    }

    /// The rows of `x` in bf16, each followed by zeros up to a multiple of [`STEP`].
    ///
    /// # Panics
    /// If `out` has another size.
    pub(super) fn pack_plain<T: Element>(self, out: &mut [bf16], x: Block<T>) {
        x.check();
        assert!(out.len() == x.rows * x.cols.next_multiple_of(STEP), "rows to round");
        // SAFETY: `self` proves the features.
        unsafe { pack_plain(out, x) }
    }

    /// Rows of 16 numbers of `a` and of `b` side by side: `out` is `[rows][32]`.
    ///
    /// # Panics
    /// If the sizes do not agree.
    pub(super) fn pack_beside(self, out: &mut [bf16], a: &[f32], b: &[f32]) {
        assert!(a.len() == b.len() && out.len() == 2 * a.len(), "rows to round");
        // SAFETY: `self` proves the features.
        unsafe { pack_beside(out, a, b) }
    }

    /// Row `j` of `y` is column `j` of the 16 x 16 numbers of `x`, plus `bias`. With `past` the caches are left
    /// alone, if the rows begin with a line of them.
    ///
    /// # Panics
    /// If `bias` has not 16 elements.
    pub(super) fn transpose(
        self,
        y: &mut Rows<'_>,
        x: &[f32; SIDE * SIDE],
        bias: Option<&[f32]>,
        past: bool,
    ) {
        assert!(bias.is_none_or(|b| b.len() == SIDE), "a bias of 16");
        let past = past && y.iter().all(|y| y.as_ptr().addr().is_multiple_of(LINE));
        // SAFETY: `self` proves the features.
        unsafe { if past { transpose::<true>(y, x, bias) } else { transpose::<false>(y, x, bias) } }
    }

    /// Adds the 16 x 16 numbers of `x` to the rows of `y`.
    pub(super) fn add_rows(self, y: &mut Rows<'_>, x: &[f32; SIDE * SIDE]) {
        // SAFETY: `self` proves the features.
        unsafe { add_rows(y, x) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_rows<T: Element>(out: &mut [bf16], x: Block<T>, columns: usize) {
    for (step, tile) in out.chunks_exact_mut(columns * STEP).enumerate() {
        // SAFETY: compiled with the features; `x` is checked. A row of the tile is `columns` pairs, and as many
        // lanes are stored.
        unsafe {
            if columns == 1 {
                let pairs = T::one_row_in(&x, 0, step * STEP);
                _mm512_storeu_si512(tile.as_mut_ptr().cast(), pairs);
                continue;
            }
            let mut rows = [_mm512_setzero_si512(); SIDE];
            for (j, row) in rows.iter_mut().enumerate().take(x.rows) {
                *row = T::one_row_in(&x, j, step * STEP);
            }
            let pairs = transpose_in(rows);
            for (j, pair) in pairs.iter().enumerate() {
                let at = tile.as_mut_ptr().add(j * columns * 2);
                _mm512_mask_storeu_epi32(at.cast(), lanes(columns), *pair);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_columns<T: Element>(out: &mut [bf16], x: Block<T>) {
    for (pair, row) in out.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
        // SAFETY: compiled with the features; `x` is checked; the store is the row.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), T::two_rows_in(&x, 2 * pair, 0)) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_transposed<T: Element>(out: &mut [bf16], x: Block<T>) {
    for (step, tile) in out.as_chunks_mut::<{ SIDE * STEP }>().0.iter_mut().enumerate() {
        // SAFETY: compiled with the features; `x` is checked; the stores of 32 elements are the rows of the tile.
        unsafe {
            let mut pairs = [_mm512_setzero_si512(); PAIRS];
            for (j, pair) in pairs.iter_mut().enumerate() {
                *pair = T::two_rows_in(&x, step * STEP + 2 * j, 0);
            }
            for (row, pairs) in tile.as_chunks_mut::<STEP>().0.iter_mut().zip(transpose_in(pairs)) {
                _mm512_storeu_si512(row.as_mut_ptr().cast(), pairs);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_plain<T: Element>(out: &mut [bf16], x: Block<T>) {
    let width = x.cols.next_multiple_of(STEP);
    for (r, row) in out.chunks_exact_mut(width.max(1)).enumerate() {
        for (step, part) in row.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
            // SAFETY: compiled with the features; `x` is checked; the store is the part.
            unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), T::one_row_in(&x, r, step * STEP)) }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_beside(out: &mut [bf16], a: &[f32], b: &[f32]) {
    let rows = a.as_chunks::<SIDE>().0.iter().zip(b.as_chunks::<SIDE>().0);
    for (row, (a, b)) in out.as_chunks_mut::<STEP>().0.iter_mut().zip(rows) {
        // SAFETY: compiled with the features; loads and the store are the rows.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(a.as_ptr()));
            _mm512_storeu_si512(row.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(both));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn transpose<const PAST: bool>(y: &mut Rows<'_>, x: &[f32; SIDE * SIDE], bias: Option<&[f32]>) {
    // SAFETY: compiled with the features; loads and stores of 16 numbers are the rows, which the caller checked; they are
    // aligned to lines when they go past the caches.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for (j, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(x.as_ptr().add(j * SIDE).cast());
        }
        let add = bias.map_or(_mm512_setzero_ps(), |b| _mm512_loadu_ps(b.as_ptr()));
        // Arrays that are iterated by value are copied first.
        for (y, row) in y.iter_mut().zip(&transpose_in(rows)) {
            let row = _mm512_castsi512_ps(*row);
            let row = if bias.is_some() { _mm512_add_ps(row, add) } else { row };
            if PAST {
                _mm512_stream_ps(y.as_mut_ptr(), row);
            } else {
                _mm512_storeu_ps(y.as_mut_ptr(), row);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_rows(y: &mut Rows<'_>, x: &[f32; SIDE * SIDE]) {
    // SAFETY: as in `transpose`.
    unsafe {
        for (j, y) in y.iter_mut().enumerate() {
            let sum = _mm512_add_ps(_mm512_loadu_ps(y.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(j * SIDE)));
            _mm512_storeu_ps(y.as_mut_ptr(), sum);
        }
    }
}

/// The transpose of 16 x 16 numbers: pairs within quarters of 128 bits first, then the quarters.
#[inline(always)]
unsafe fn transpose_in(r: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: see the module text; there is no memory.
    unsafe {
        let mut a = r;
        for j in 0..8 {
            a[2 * j] = _mm512_unpacklo_epi32(r[2 * j], r[2 * j + 1]);
            a[2 * j + 1] = _mm512_unpackhi_epi32(r[2 * j], r[2 * j + 1]);
        }
        // b[4 j + q] holds column q of each quarter, of rows 4 j ..+ 4.
        let mut b = a;
        for j in 0..4 {
            b[4 * j] = _mm512_unpacklo_epi64(a[4 * j], a[4 * j + 2]);
            b[4 * j + 1] = _mm512_unpackhi_epi64(a[4 * j], a[4 * j + 2]);
            b[4 * j + 2] = _mm512_unpacklo_epi64(a[4 * j + 1], a[4 * j + 3]);
            b[4 * j + 3] = _mm512_unpackhi_epi64(a[4 * j + 1], a[4 * j + 3]);
        }
        let mut y = b;
        for q in 0..4 {
            let (low, high) = (b[q], b[4 + q]);
            let even = _mm512_shuffle_i32x4::<0x88>(low, high);
            let odd = _mm512_shuffle_i32x4::<0xdd>(low, high);
            let (low, high) = (b[8 + q], b[12 + q]);
            let even2 = _mm512_shuffle_i32x4::<0x88>(low, high);
            let odd2 = _mm512_shuffle_i32x4::<0xdd>(low, high);
            y[q] = _mm512_shuffle_i32x4::<0x88>(even, even2);
            y[8 + q] = _mm512_shuffle_i32x4::<0xdd>(even, even2);
            y[4 + q] = _mm512_shuffle_i32x4::<0x88>(odd, odd2);
            y[12 + q] = _mm512_shuffle_i32x4::<0xdd>(odd, odd2);
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round_bf16;

    fn amx() -> Option<Amx> {
        let amx = Amx::detect();
        if amx.is_none() {
            eprintln!("NOT TESTED: this machine lacks tiles");
        }
        amx
    }

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.003_906_3f32.powi((i % 7) as i32)).collect()
    }

    /// Element `(r, c)` rounded, zero beyond the block.
    fn at<T>(x: &Block<T>, f: impl Fn(&T) -> f32, r: usize, c: usize) -> f32 {
        if r < x.rows && c < x.cols { round_bf16(f(&x.x[r * x.stride + c])) } else { 0.0 }
    }

    fn check<T: Element>(amx: Amx, x: Block<T>, f: impl Fn(&T) -> f32 + Copy) {
        let steps = x.cols.div_ceil(STEP);
        if x.rows <= SIDE {
            for columns in [x.rows, SIDE] {
                let mut out = vec![bf16::NAN; steps * columns * STEP];
                amx.pack_rows(&mut out, x, columns);
                for (i, got) in out.iter().enumerate() {
                    let (pair, j, half) = (i / 2 / columns, i / 2 % columns, i % 2);
                    assert_eq!(got.to_f32(), at(&x, f, j, 2 * pair + half), "row {j} of {}", x.rows);
                }
            }
        }
        let mut out = vec![bf16::NAN; x.rows * steps * STEP];
        amx.pack_plain(&mut out, x);
        for (i, got) in out.iter().enumerate() {
            assert_eq!(got.to_f32(), at(&x, f, i / (steps * STEP), i % (steps * STEP)));
        }
        if x.cols > SIDE {
            return;
        }
        let steps = x.rows.div_ceil(STEP);
        let mut out = vec![bf16::NAN; steps * SIDE * STEP];
        amx.pack_columns(&mut out, x);
        for (i, got) in out.iter().enumerate() {
            let (pair, c, half) = (i / 2 / SIDE, i / 2 % SIDE, i % 2);
            assert_eq!(got.to_f32(), at(&x, f, 2 * pair + half, c));
        }
        amx.pack_transposed(&mut out, x);
        for (i, got) in out.iter().enumerate() {
            let (step, j, k) = (i / (SIDE * STEP), i / STEP % SIDE, i % STEP);
            assert_eq!(got.to_f32(), at(&x, f, step * STEP + k, j));
        }
    }

    #[test]
    fn packed_operands_hold_every_element_where_tiles_read_it() {
        let Some(amx) = amx() else { return };
        for (rows, cols, stride) in
            [(1, 1, 1), (1, 70, 70), (3, 33, 40), (16, 64, 64), (15, 31, 31), (70, 16, 20), (33, 5, 9)]
        {
            let x = numbers((rows - 1) * stride + cols);
            check(amx, Block { x: &x, stride, rows, cols }, |x: &f32| *x);
            let small: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
            check(amx, Block { x: &small, stride, rows, cols }, |x: &bf16| x.to_f32());
        }
    }

    #[test]
    fn rows_come_side_by_side() {
        let Some(amx) = amx() else { return };
        let (a, b) = (numbers(48), numbers(96)[48..].to_vec());
        let mut out = [bf16::NAN; 96];
        amx.pack_beside(&mut out, &a, &b);
        for (i, got) in out.iter().enumerate() {
            let from = if i % 32 < 16 { &a } else { &b };
            assert_eq!(got.to_f32(), round_bf16(from[i / 32 * 16 + i % 16]));
        }
    }

    #[test]
    fn tiles_are_written_transposed_and_added() {
        let Some(amx) = amx() else { return };
        let x: [f32; SIDE * SIDE] = std::array::from_fn(|i| i as f32);
        let bias: [f32; SIDE] = std::array::from_fn(|i| 1000.0 * i as f32);
        let mut y = [[7.0; SIDE]; SIDE];
        amx.transpose(&mut y.each_mut(), &x, None, false);
        assert_eq!(y[3][7], x[7 * SIDE + 3]);
        amx.add_rows(&mut y.each_mut(), &x);
        assert_eq!(y[3][7], x[7 * SIDE + 3] + x[3 * SIDE + 7]);
        amx.transpose(&mut y.each_mut(), &x, Some(&bias), false);
        assert_eq!(y[3][7], x[7 * SIDE + 3] + 7000.0);
    }
}
