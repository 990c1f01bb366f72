//! What a tier can do with the integers of quantised matrices.
//!
//! Sums of integers are exact, so tiers are free in how they add them up. A *line* is four columns of 16 rows
//! (see [`mod@crate::quant`]); a vector of sums holds one sum for each of the rows.

use half::f16;

use super::tier::{LANES, Scalar, Tier};
use crate::quant::{Activations, GROUP, LINE};

/// A kernel body with its arguments; the same rules as for [`Op`](super::tier::Op).
pub(super) trait IntOp {
    type Out;
    fn eval<S: IntTier>(self) -> Self::Out;
}

/// The operations on integers that kernels are written in.
pub(super) trait IntTier: Copy + Send + Sync + 'static {
    /// The tier for floats.
    type F: Tier;
    /// Sixteen sums of 32 bits.
    type I: Copy;
    /// A line, ready to be multiplied.
    type Line: Copy;
    /// Whether lines of 8 bits are multiplied as `q`; if not, and for lines of 4 bits, as they are stored, and
    /// [`IntTier::start`] makes up for the zero point.
    const SIGNED_8: bool;

    /// Quantises a group of activations. Gives the scale and the sum of the integers.
    fn quantise(x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, i32);
    /// Sixteen times `value`.
    fn start(value: i32) -> Self::I;
    /// A line of 8 bits from memory.
    fn line8(bytes: &[u8; LINE]) -> Self::Line;
    /// A line of unpacked 4 bits from memory, one integer per byte.
    fn line4(bytes: &[u8; LINE]) -> Self::Line;
    /// Lines `2 j` and `2 j + 1` from part `j` of a block of 4 bits.
    fn lines4(part: &[u8; LINE]) -> (Self::Line, Self::Line);
    /// Writes a line of 8 bits as signed bytes.
    fn signed8(line: &[u8; LINE], signed: &mut [u8; LINE]);
    /// Writes lines `2 j` and `2 j + 1` from part `j` of a block of 4 bits as signed bytes.
    fn signed4(part: &[u8; LINE], low: &mut [u8; LINE], high: &mut [u8; LINE]);
    /// Sixteen sums from memory.
    fn sums(sums: &[i32; LANES]) -> Self::I;
    /// Writes a line that came from [`IntTier::lines4`].
    fn store4(line: Self::Line, bytes: &mut [u8; LINE]);
    /// Adds the products of a line of 8 bits with four activations.
    fn dot8(sum: Self::I, line: Self::Line, x: [i8; 4]) -> Self::I;
    /// Adds the products of a line of 4 bits with four activations.
    fn dot4(sum: Self::I, line: Self::Line, x: [i8; 4]) -> Self::I;
    /// Sum of two vectors of sums.
    fn add(a: Self::I, b: Self::I) -> Self::I;
    /// Sums as floats; exact below 2^24.
    fn float(sum: Self::I) -> <Self::F as Tier>::V;
    /// Widens scales.
    fn scales(scales: &[f16; LANES]) -> <Self::F as Tier>::V;
}

impl IntTier for Scalar {
    type F = Scalar;
    type I = [i32; LANES];
    type Line = [u8; LINE];
    const SIGNED_8: bool = false;

    #[inline(always)]
    fn quantise(x: &[f32; GROUP], q: &mut [i8; GROUP]) -> (f32, i32) {
        let a = Activations::of(x);
        *q = a.q;
        (a.scale, a.q.iter().map(|q| i32::from(*q)).sum())
    }
    #[inline(always)]
    fn start(value: i32) -> [i32; LANES] {
        [value; LANES]
    }
    #[inline(always)]
    fn line8(bytes: &[u8; LINE]) -> [u8; LINE] {
        *bytes
    }
    #[inline(always)]
    fn line4(bytes: &[u8; LINE]) -> [u8; LINE] {
        *bytes
    }
    #[inline(always)]
    fn lines4(part: &[u8; LINE]) -> ([u8; LINE], [u8; LINE]) {
        let (mut low, mut high) = (*part, *part);
        for c in 0..LINE {
            (low[c], high[c]) = (part[c] & 15, part[c] >> 4);
        }
        (low, high)
    }
    #[inline(always)]
    fn signed8(line: &[u8; LINE], signed: &mut [u8; LINE]) {
        for (signed, q) in signed.iter_mut().zip(line) {
            *signed = q ^ 128;
        }
    }
    #[inline(always)]
    fn signed4(part: &[u8; LINE], low: &mut [u8; LINE], high: &mut [u8; LINE]) {
        for c in 0..LINE {
            low[c] = (part[c] & 15).wrapping_sub(8);
            high[c] = (part[c] >> 4).wrapping_sub(8);
        }
    }
    #[inline(always)]
    fn sums(sums: &[i32; LANES]) -> [i32; LANES] {
        *sums
    }
    #[inline(always)]
    fn store4(line: [u8; LINE], bytes: &mut [u8; LINE]) {
        *bytes = line;
    }
    #[inline(always)]
    fn dot8(mut sum: [i32; LANES], line: [u8; LINE], x: [i8; 4]) -> [i32; LANES] {
        for (sum, w) in sum.iter_mut().zip(line.as_chunks::<4>().0) {
            for k in 0..4 {
                *sum += i32::from(w[k]) * i32::from(x[k]);
            }
        }
        sum
    }
    #[inline(always)]
    fn dot4(sum: [i32; LANES], line: [u8; LINE], x: [i8; 4]) -> [i32; LANES] {
        Scalar::dot8(sum, line, x)
    }
    #[inline(always)]
    fn add(mut a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }
    #[inline(always)]
    fn float(sum: [i32; LANES]) -> <Scalar as Tier>::V {
        let mut y = [0.0; LANES];
        for (y, sum) in y.iter_mut().zip(sum) {
            *y = sum as f32;
        }
        Scalar::load(&y)
    }
    #[inline(always)]
    fn scales(scales: &[f16; LANES]) -> <Scalar as Tier>::V {
        let mut y = [0.0; LANES];
        for (y, scale) in y.iter_mut().zip(scales) {
            *y = scale.to_f32();
        }
        Scalar::load(&y)
    }
}
