//! Numbers of a file to f32 and back.

use half::{bf16, f16};

use crate::config::FileDtype;

const QUANTISED: &str = "bytes of a quantised matrix are no numbers by themselves";

/// Widens little-endian numbers of `dtype` to f32; exact for every value. `bytes` holds
/// `out.len() * dtype.size()` bytes, at any alignment.
///
/// # Panics
/// For bytes of quantised matrices, which are no numbers by themselves.
pub fn widen(dtype: FileDtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        FileDtype::F32 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        FileDtype::F16 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks().0) {
                *to = f16::from_le_bytes(*from).to_f32();
            }
        }
        FileDtype::Bf16 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks().0) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
            }
        }
        FileDtype::U8 => panic!("{QUANTISED}"),
    }
}

/// Rounds f32 to little-endian numbers of `dtype`, to nearest and ties to even, and appends them to
/// `out`. Exact for every value that came from that type.
///
/// # Panics
/// For bytes of quantised matrices.
pub fn narrow(dtype: FileDtype, values: &[f32], out: &mut Vec<u8>) {
    out.reserve(values.len() * dtype.size());
    match dtype {
        FileDtype::F32 => values.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        FileDtype::F16 => values.iter().for_each(|x| out.extend_from_slice(&f16::from_f32(*x).to_le_bytes())),
        FileDtype::Bf16 => {
            values.iter().for_each(|x| out.extend_from_slice(&bf16::from_f32(*x).to_le_bytes()))
        }
        FileDtype::U8 => panic!("{QUANTISED}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 65,536 values of both 16-bit types survive the way to f32 and back. A signalling NaN may
    /// come back quiet, and stays a NaN.
    #[test]
    fn every_16_bit_value_survives() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [FileDtype::F16, FileDtype::Bf16] {
            let mut wide = vec![0.0; 1 << 16];
            widen(dtype, &bytes, &mut wide);
            let mut back = Vec::new();
            narrow(dtype, &wide, &mut back);
            for (i, (a, b)) in bytes.chunks(2).zip(back.chunks(2)).enumerate() {
                let mut again = [0.0];
                widen(dtype, b, &mut again);
                assert!(a == b || (wide[i].is_nan() && again[0].is_nan()), "{dtype:?} {i:#x}");
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let mut out = Vec::new();
        // 1 + 2^-8 lies between two bf16 values, 1 and 1 + 2^-7; 1 + 3 * 2^-8 between the next two.
        let step = f32::exp2(-8.0);
        narrow(FileDtype::Bf16, &[1.0 + step, 1.0 + 3.0 * step, 1.004], &mut out);
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f, 0x81, 0x3f]);
    }
}
