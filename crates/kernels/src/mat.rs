//! Weight matrices. Only `linear*` and `embed*` kernels look inside one.

use crate::{Buf, Dtype, quant};

/// A weight matrix `[rows, cols]` in the storage format of its [`Buf`]: row-major as in the checkpoint, or
/// in the blocks of [`mod@crate::quant`] if it is quantised. Vectors are matrices of one row and are always
/// [`Dtype::F32`].
#[derive(Debug)]
pub struct Mat {
    rows: usize,
    cols: usize,
    /// The elements.
    pub buf: Buf,
}

impl Mat {
    /// Wraps `buf` as `[rows, cols]`.
    ///
    /// # Panics
    /// If `buf` does not hold `rows * cols` elements, or is quantised and the matrix has no whole blocks.
    pub fn new(rows: usize, cols: usize, buf: Buf) -> Self {
        assert_eq!(buf.len(), rows * cols, "a [{rows}, {cols}] matrix needs {} elements", rows * cols);
        let whole = !buf.dtype().is_quantised() || quant::fits(rows, cols);
        assert!(whole, "a [{rows}, {cols}] matrix cannot be quantised");
        Mat { rows, cols, buf }
    }

    /// Output width of the matrix as a linear map.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width of the matrix as a linear map.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage format.
    pub fn dtype(&self) -> Dtype {
        self.buf.dtype()
    }
}

/// Rounds to the nearest bf16, ties to even, and widens again.
///
/// Products with bf16 weights are defined on operands rounded this way (see [`crate::Linear`]), because
/// tile units take both operands in bf16.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return x;
    }
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(rounded)
}
