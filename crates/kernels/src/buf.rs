//! Device memory.

use half::{bf16, f16};

use crate::quant;

use crate::mem::{FileMap, Mem};

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

/// Bytes of `len` elements, of which quantised ones must be whole blocks.
fn bytes_of(dtype: Dtype, len: usize) -> usize {
    let whole = !dtype.is_quantised() || len.is_multiple_of(quant::ROWS * quant::GROUP);
    assert!(whole, "{len} elements are not whole blocks of {dtype:?}");
    dtype.bytes(len)
}

impl Buf {
    /// Zeroed host memory. Untouched pages cost no memory until they are written.
    ///
    /// # Panics
    /// If the type is quantised and the elements are not whole blocks.
    pub(crate) fn host(dtype: Dtype, len: usize) -> Self {
        Buf { mem: Mem::zeroed(bytes_of(dtype, len)), dtype, len }
    }

    /// As [`Buf::host`], for what is read whole again and again.
    pub(crate) fn host_to_read(dtype: Dtype, len: usize) -> Self {
        Buf { mem: Mem::zeroed_to_read(bytes_of(dtype, len)), dtype, len }
    }

    /// The bytes of `file` from byte `at`, in place and read-only; none if they do not lie at a multiple of
    /// 64, or do not all lie in the file.
    pub(crate) fn in_file(dtype: Dtype, len: usize, file: &FileMap, at: usize) -> Option<Self> {
        let bytes = len.checked_mul(dtype.size())?;
        // What lies in a file is little-endian.
        let mem = Mem::of_file(file, at, bytes).filter(|_| cfg!(target_endian = "little"))?;
        Some(Buf { dtype, len, mem })
    }

    /// Whether this is a part of a file, which cannot be written.
    pub fn is_file(&self) -> bool {
        self.mem.is_file()
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

    /// The memory as bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.mem.bytes()
    }

    /// The memory as bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.mem.bytes_mut()
    }

    /// The elements as f32.
    ///
    /// # Panics
    /// If the elements are not f32.
    pub(crate) fn f32(&self) -> &[f32] {
        assert_eq!(self.dtype, Dtype::F32);
        bytemuck::cast_slice(self.mem.bytes())
    }

    /// The elements as mutable f32.
    ///
    /// # Panics
    /// If the elements are not f32, or are a file's.
    pub(crate) fn f32_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, Dtype::F32);
        bytemuck::cast_slice_mut(self.mem.bytes_mut())
    }

    /// The elements as bf16.
    ///
    /// # Panics
    /// If the elements are not bf16.
    pub(crate) fn bf16(&self) -> &[bf16] {
        assert_eq!(self.dtype, Dtype::Bf16);
        bytemuck::cast_slice(self.mem.bytes())
    }

    /// The elements as mutable bf16.
    ///
    /// # Panics
    /// If the elements are not bf16, or are a file's.
    pub(crate) fn bf16_mut(&mut self) -> &mut [bf16] {
        assert_eq!(self.dtype, Dtype::Bf16);
        bytemuck::cast_slice_mut(self.mem.bytes_mut())
    }

    /// Packed integers and scales of a quantised matrix, in the order of [`mod@crate::quant`].
    ///
    /// # Panics
    /// If the elements are not quantised.
    pub(crate) fn quants(&self) -> (&[u8], &[f16]) {
        assert!(self.dtype.is_quantised(), "{self:?} is not quantised");
        let (quants, scales) = self.as_bytes().split_at(quant::quant_bytes(self.dtype, self.len));
        (quants, bytemuck::cast_slice(scales))
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf[{:?}; {}]", self.dtype, self.len)
    }
}
