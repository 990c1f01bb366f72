//! Quantised matrices: small integers with a scale per group of 128 columns.
//!
//! Weight `[o, i]` is `q[o, i] * scale[o, i / 128]`. [`Dtype::Q8`] has q in -127 ..= 127 and [`Dtype::Q4`] in
//! -8 ..= 7; scales are f16, whose 11 bits of mantissa move a weight by at most 2^-12 of itself where those
//! of bf16 would move it by 2^-9. That is 8.125 and 4.125 bits per weight.
//!
//! Bytes lie in the order in which kernels read them, in memory and in files:
//!
//! * Blocks of [`ROWS`] rows x [`GROUP`] columns, the groups of a row block one after the other.
//! * A q8 block has 32 *lines* of 64 bytes. Line `k4` holds columns `4 k4 ..+ 4` of all 16 rows, the four of
//!   row 0 first: byte `4 row + k`. A byte is `q + 128`, and never 0.
//! * A q4 block has 16 times 64 bytes: byte `c` of part `j` holds byte `c` of line `2 j` in its low half and
//!   that of line `2 j + 1` in its high half, each `q + 8`.
//! * Behind all blocks, the scales: 16 per block, in the order of the blocks.
//!
//! So one vector of 64 bytes times four activations, repeated 16 times, gives one term for each of 16 rows: no
//! sum runs across a vector, and 16 lines are a tile of integers, two to a group.
//!
//! # Products
//! A linear map with such a matrix quantises its input as well, by token and group (`Activations`), so that
//! products are integers. With `isum` the exact integer sum of the products of a group,
//! `y[t, o] = sum over groups g, in order, of isum * (scale[o, g] * x_scale[t, g])`, in fused multiply-adds
//! of f32; the bias is added last. Integer sums have no order, so every way to compute them gives equal bits.

use half::f16;

use crate::Dtype;

/// Columns that share a scale.
pub const GROUP: usize = 128;
/// Rows of a block.
pub const ROWS: usize = 16;
/// Bytes of a line: four columns of the rows of a block.
pub(crate) const LINE: usize = 64;
/// Lines of a block.
pub(crate) const LINES: usize = GROUP * ROWS / LINE;

/// Whether a matrix falls into whole blocks.
pub fn fits(rows: usize, cols: usize) -> bool {
    rows.is_multiple_of(ROWS) && cols.is_multiple_of(GROUP)
}

/// Bytes of the integers of a block.
///
/// # Panics
/// If `dtype` is not quantised.
pub fn block_bytes(dtype: Dtype) -> usize {
    quant_bytes(dtype, ROWS * GROUP)
}

/// Bytes of the integers of `len` weights, which come before the scales.
///
/// # Panics
/// If `dtype` is not quantised.
pub fn quant_bytes(dtype: Dtype, len: usize) -> usize {
    match dtype {
        Dtype::Q8 => len,
        Dtype::Q4 => len / 2,
        Dtype::F32 | Dtype::Bf16 => panic!("{dtype:?} is not quantised"),
    }
}

/// What is added to an integer where it is stored.
pub(crate) fn zero_point(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::Q8 => 128,
        Dtype::Q4 => 8,
        Dtype::F32 | Dtype::Bf16 => panic!("{dtype:?} is not quantised"),
    }
}

/// Smallest and largest integer.
pub(crate) fn range(dtype: Dtype) -> (i8, i8) {
    match dtype {
        Dtype::Q8 => (-127, 127),
        Dtype::Q4 => (-8, 7),
        Dtype::F32 | Dtype::Bf16 => panic!("{dtype:?} is not quantised"),
    }
}

/// The integers and scales of a matrix, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Quants {
    /// Integers, `[rows, cols]`.
    pub q: Vec<i8>,
    /// Scales, `[rows, cols / 128]`.
    pub scales: Vec<f32>,
}

/// Where the integer at `row, col` lies: its byte, and whether in the high half of it.
fn place(dtype: Dtype, cols: usize, row: usize, col: usize) -> (usize, bool) {
    let block = (row / ROWS * (cols / GROUP) + col / GROUP) * block_bytes(dtype);
    let (line, byte) = (col % GROUP / 4, row % ROWS * 4 + col % 4);
    match dtype {
        Dtype::Q8 => (block + line * LINE + byte, false),
        _ => (block + line / 2 * LINE + byte, line % 2 == 1),
    }
}

/// Number of the scale of a row and group.
fn scale_place(groups: usize, row: usize, group: usize) -> usize {
    (row / ROWS * groups + group) * ROWS + row % ROWS
}

/// The bytes of a matrix `[rows, cols]`; scales are rounded to f16.
///
/// # Panics
/// If sizes disagree or an integer is out of range.
pub fn pack(dtype: Dtype, rows: usize, cols: usize, w: &Quants) -> Vec<u8> {
    let groups = cols / GROUP;
    assert!(fits(rows, cols) && w.q.len() == rows * cols && w.scales.len() == rows * groups, "sizes");
    let (least, most) = range(dtype);
    let mut bytes = vec![0; dtype.bytes(rows * cols)];
    let (quants, scales) = bytes.split_at_mut(quant_bytes(dtype, rows * cols));
    for (at, &q) in w.q.iter().enumerate() {
        assert!((least..=most).contains(&q), "{q} is no integer of {dtype:?}");
        let (byte, high) = place(dtype, cols, at / cols, at % cols);
        quants[byte] |= ((i32::from(q) + zero_point(dtype)) as u8) << (4 * u8::from(high));
    }
    for (at, scale) in w.scales.iter().enumerate() {
        let place = scale_place(groups, at / groups, at % groups);
        scales[place * 2..][..2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
    }
    bytes
}

/// What [`pack`] was given, but for the rounding of scales.
///
/// # Panics
/// If `bytes` are not those of such a matrix.
pub fn unpack(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Quants {
    assert!(fits(rows, cols) && bytes.len() == dtype.bytes(rows * cols), "sizes");
    let (groups, zero) = (cols / GROUP, zero_point(dtype));
    let (quants, scales) = bytes.split_at(quant_bytes(dtype, rows * cols));
    let q = |at: usize| {
        let (byte, high) = place(dtype, cols, at / cols, at % cols);
        let stored = match dtype {
            Dtype::Q8 => quants[byte],
            _ => quants[byte] >> (4 * u8::from(high)) & 15,
        };
        (i32::from(stored) - zero) as i8
    };
    let scale = |at: usize| {
        let place = scale_place(groups, at / groups, at % groups);
        f16::from_le_bytes([scales[place * 2], scales[place * 2 + 1]]).to_f32()
    };
    Quants { q: (0..rows * cols).map(q).collect(), scales: (0..rows * groups).map(scale).collect() }
}

/// The weights `[rows, cols]` that the bytes of a matrix stand for.
///
/// # Panics
/// If sizes disagree.
pub fn widen(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8], out: &mut [f32]) {
    let w = unpack(dtype, rows, cols, bytes);
    assert_eq!(out.len(), w.q.len(), "sizes");
    for ((out, q), scale) in out.chunks_exact_mut(GROUP).zip(w.q.chunks_exact(GROUP)).zip(w.scales) {
        for (out, q) in out.iter_mut().zip(q) {
            *out = f32::from(*q) * scale;
        }
    }
}

/// Groups whose largest magnitude is below this count as zero: the reciprocal of their scale would overflow.
pub(crate) const TINY: f32 = 1.0 / (1u128 << 118) as f32;

/// A group of activations as integers: `x` is `q * scale`, `scale` the largest magnitude over 127.
///
/// All steps are single f32 operations, so every device gets the same integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Activations {
    /// In -127 ..= 127.
    pub(crate) q: [i8; GROUP],
    /// NaN if an activation is not finite, which makes every output that reads it NaN.
    pub(crate) scale: f32,
}

impl Activations {
    /// Quantises `x`: the definition.
    pub(crate) fn of(x: &[f32; GROUP]) -> Self {
        if x.iter().any(|x| !x.is_finite()) {
            return Activations { q: [0; GROUP], scale: f32::NAN };
        }
        let largest = x.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
        if largest < TINY {
            return Activations { q: [0; GROUP], scale: 0.0 };
        }
        let factor = 127.0 / largest;
        Activations { q: x.map(|x| (x * factor).round_ties_even() as i8), scale: largest / 127.0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(seed in any::<u64>(), blocks in 1usize..3, groups in 1usize..4, q4 in any::<bool>()) {
            let dtype = if q4 { Dtype::Q4 } else { Dtype::Q8 };
            let (rows, cols) = (blocks * ROWS, groups * GROUP);
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u32
            };
            let (least, most) = range(dtype);
            let span = (i32::from(most) - i32::from(least) + 1) as u32;
            let q: Vec<i8> =
                (0..rows * cols).map(|_| (i32::from(least) + (next() % span) as i32) as i8).collect();
            // Scales that f16 holds.
            let scales: Vec<f32> =
                (0..rows * groups).map(|_| f16::from_bits((next() % 0x7c00) as u16).to_f32()).collect();
            let w = Quants { q, scales };
            let bytes = pack(dtype, rows, cols, &w);
            prop_assert_eq!(bytes.len(), dtype.bytes(rows * cols));
            prop_assert_eq!(unpack(dtype, rows, cols, &bytes), w);
        }

        #[test]
        fn activations_are_off_by_half_a_step_at_most(x in prop::collection::vec(-1e3f32..1e3, GROUP), scale in -80i32..80) {
            let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(scale)).collect();
            let a = Activations::of(x[..].try_into().unwrap());
            for (q, x) in a.q.iter().zip(x) {
                let error = (f32::from(*q) * a.scale - x).abs();
                // Half a step, and three roundings of 2^-24 at up to 127 steps.
                prop_assert!(error <= a.scale * (0.5 + 127.0 * 3.0 / (1 << 24) as f32) + TINY, "{x} {q} {}", a.scale);
            }
        }
    }

    #[test]
    fn bits_per_weight_and_places() {
        assert_eq!((Dtype::Q8.bytes(2048) * 8, Dtype::Q4.bytes(2048) * 8), (2048 * 65 / 8, 2048 * 33 / 8));
        let (rows, cols) = (32, 256);
        let mut w = Quants { q: vec![0; rows * cols], scales: vec![0.0; rows * cols / GROUP] };
        w.q[17 * cols + 128 + 73] = 3;
        w.scales[17 * 2 + 1] = 1.0;
        let at = |dtype| {
            let bytes = pack(dtype, rows, cols, &w);
            let (quants, scales) = bytes.split_at(quant_bytes(dtype, rows * cols));
            let empty = if dtype == Dtype::Q8 { 128 } else { 0x88 };
            let byte = quants.iter().position(|b| *b != empty).unwrap();
            (byte, quants[byte], scales.iter().position(|b| *b != 0).unwrap() / 2)
        };
        // The last of four blocks, line 18, row 1, column 1 of the line.
        assert_eq!(at(Dtype::Q8), (3 * 2048 + 18 * 64 + 4 + 1, 131, 3 * 16 + 1));
        assert_eq!(at(Dtype::Q4), (3 * 1024 + 9 * 64 + 4 + 1, 0x8b, 3 * 16 + 1));
    }

    #[test]
    fn activations_that_are_not_finite_spoil_the_group_and_tiny_ones_vanish() {
        let mut x = [1.0; GROUP];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[5] = bad;
            assert!(Activations::of(&x).scale.is_nan());
        }
        assert_eq!(Activations::of(&[TINY / 2.0; GROUP]), Activations { q: [0; GROUP], scale: 0.0 });
        assert_eq!(Activations::of(&[-f32::MAX; GROUP]).q, [-127; GROUP]);
    }
}
