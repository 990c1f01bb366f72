//! Device memory.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::quant;

/// Element type of a [`Buf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// Brain float: the upper half of an `F32`.
    Bf16,
    /// Integers of 8 bits with a scale per group, of a matrix alone; see [`mod@crate::quant`].
    Q8,
    /// Integers of 4 bits with a scale per group, of a matrix alone; see [`mod@crate::quant`].
    Q4,
}

impl Dtype {
    /// Bytes per element.
    ///
    /// # Panics
    /// For quantised types, whose elements share bytes; see [`Dtype::bytes`].
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
            Dtype::Q8 | Dtype::Q4 => panic!("an element of {self:?} has no size of its own"),
        }
    }

    /// Bytes of `len` elements. Quantised ones count with their scales.
    pub fn bytes(self, len: usize) -> usize {
        match self {
            Dtype::F32 | Dtype::Bf16 => len * self.size(),
            Dtype::Q8 | Dtype::Q4 => quant::quant_bytes(self, len) + len / quant::GROUP * size_of::<f16>(),
        }
    }

    /// Whether elements are integers that share a scale.
    pub fn is_quantised(self) -> bool {
        matches!(self, Dtype::Q8 | Dtype::Q4)
    }
}

/// One cache line; gives host memory its alignment without unsafe code.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An allocation of `len` elements on a device, 64-byte aligned when it lies in host memory.
///
/// Opaque outside this crate: nothing else dereferences it. Copies to and from the host go through
/// [`Device::upload`](crate::Device::upload) and [`Device::download`](crate::Device::download), so a
/// device with memory of its own needs no change in its callers.
pub struct Buf {
    dtype: Dtype,
    len: usize,
    mem: Mem,
}

enum Mem {
    Host(Vec<Line>),
}

impl Buf {
    /// Zeroed host memory. Untouched pages cost no memory until they are written.
    ///
    /// # Panics
    /// If the type is quantised and the elements are not whole blocks.
    pub(crate) fn host(dtype: Dtype, len: usize) -> Self {
        let whole = !dtype.is_quantised() || len.is_multiple_of(quant::ROWS * quant::GROUP);
        assert!(whole, "{len} elements are not whole blocks of {dtype:?}");
        let lines = dtype.bytes(len).div_ceil(64);
        Buf { dtype, len, mem: Mem::Host(bytemuck::zeroed_vec(lines)) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.len)
    }

    /// The elements as f32.
    ///
    /// # Panics
    /// If the elements are not f32.
    pub(crate) fn f32(&self) -> &[f32] {
        assert_eq!(self.dtype, Dtype::F32);
        let Mem::Host(lines) = &self.mem;
        &bytemuck::cast_slice(lines)[..self.len]
    }

    /// The elements as mutable f32.
    ///
    /// # Panics
    /// If the elements are not f32.
    pub(crate) fn f32_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, Dtype::F32);
        let Mem::Host(lines) = &mut self.mem;
        &mut bytemuck::cast_slice_mut(lines)[..self.len]
    }

    /// The elements as bf16.
    ///
    /// # Panics
    /// If the elements are not bf16.
    pub(crate) fn bf16(&self) -> &[bf16] {
        assert_eq!(self.dtype, Dtype::Bf16);
        let Mem::Host(lines) = &self.mem;
        &bytemuck::cast_slice(lines)[..self.len]
    }

    /// The elements as mutable bf16.
    ///
    /// # Panics
    /// If the elements are not bf16.
    pub(crate) fn bf16_mut(&mut self) -> &mut [bf16] {
        assert_eq!(self.dtype, Dtype::Bf16);
        let Mem::Host(lines) = &mut self.mem;
        &mut bytemuck::cast_slice_mut(lines)[..self.len]
    }

    /// Packed integers and scales of a quantised matrix, in the order of [`mod@crate::quant`].
    ///
    /// # Panics
    /// If the elements are not quantised.
    pub(crate) fn quants(&self) -> (&[u8], &[f16]) {
        assert!(self.dtype.is_quantised(), "{self:?} is not quantised");
        let (quants, scales) = self.raw().split_at(quant::quant_bytes(self.dtype, self.len));
        (quants, bytemuck::cast_slice(scales))
    }

    /// All bytes.
    pub(crate) fn raw(&self) -> &[u8] {
        let Mem::Host(lines) = &self.mem;
        &bytemuck::cast_slice(lines)[..self.bytes()]
    }

    /// All bytes, to be written.
    pub(crate) fn raw_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes();
        let Mem::Host(lines) = &mut self.mem;
        &mut bytemuck::cast_slice_mut(lines)[..bytes]
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf[{:?}; {}]", self.dtype, self.len)
    }
}
