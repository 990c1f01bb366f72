//! Checkpoint folder to model.
//!
//! All threads of the device read at once, straight into the memory of the weights where the file holds them
//! in the same form, and look at every value while it is at hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zamba_kernels::{Buf, Device, Dtype, FileMap};

use super::{Checkpoint, LoadError, Located, check_values, narrow, widen};
use crate::config::FileDtype;
use crate::model::Zamba;
use crate::spec::{TensorKind, TensorSpec};

/// Bytes read and looked at in one go: small enough to be in L2 for the second look.
const BLOCK: usize = 1 << 18;

/// How the weights of a file get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Read into memory of their own.
    #[default]
    Copy,
    /// Used in place where the file holds them as the model does and at a multiple of 64 bytes, so that the
    /// system's file cache is the only copy; others are read. Whoever makes the file shorter meanwhile kills
    /// this process: see [`FileMap`].
    Map,
}

impl Zamba {
    /// Loads the weights of `checkpoint`. Quantised matrices stay as they are; others are stored as `format`, by
    /// default as in the file, where f16 becomes f32. `progress` receives the bytes of weights read so far.
    ///
    /// # Errors
    /// If a tensor cannot be read or holds values that are not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        dev: Arc<dyn Device>,
        format: Option<Dtype>,
        weights: Weights,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        let format = format.unwrap_or(match checkpoint.config.dtype {
            FileDtype::Bf16 => Dtype::Bf16,
            FileDtype::F16 | FileDtype::F32 | FileDtype::U8 => Dtype::F32,
        });
        let maps = match weights {
            Weights::Copy => vec![],
            Weights::Map => checkpoint.files.iter().map(|file| file.map()).collect::<Result<Vec<_>, _>>()?,
        };
        let mut done = 0;
        let d = dev.clone();
        Zamba::build(checkpoint.config.clone(), dev, format, |spec, buf| {
            let place = checkpoint.find(&spec.name)?.1;
            let source = Source { checkpoint, spec, place };
            match maps.get(place.file).and_then(|map| source.in_place(&*d, map, buf.dtype())) {
                Some(mapped) => {
                    source.look(&*d, &mapped)?;
                    *buf = mapped;
                }
                None => source.read(&*d, buf)?,
            }
            done += place.total() as u64;
            progress(done);
            Ok(())
        })
    }
}

/// One tensor of a file on its way into memory.
#[derive(Clone, Copy)]
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a TensorSpec,
    place: &'a Located,
}

impl Source<'_> {
    /// The tensor as a part of its mapped file, if it is held there as it would be in memory.
    fn in_place(&self, dev: &dyn Device, map: &FileMap, dtype: Dtype) -> Option<Buf> {
        let at = usize::try_from(self.place.begin).ok()?;
        if self.is_plain(dtype) { dev.map(dtype, self.spec.len(), map, at) } else { None }
    }

    /// Whether the bytes of the file are those of memory, and only need to be finite.
    fn is_plain(&self, dtype: Dtype) -> bool {
        let same = match self.place.dtype {
            FileDtype::F32 => dtype == Dtype::F32,
            FileDtype::Bf16 => dtype == Dtype::Bf16,
            FileDtype::F16 | FileDtype::U8 => false,
        };
        // Those that stand in exponentials have limits of their own.
        same && !matches!(self.spec.kind, TensorKind::ALog | TensorKind::DtBias)
    }

    /// Fills all of `buf`.
    fn read(&self, dev: &dyn Device, buf: &mut Buf) -> Result<(), LoadError> {
        let dtype = buf.dtype();
        let faults = Faults::default();
        dev.upload_bytes(buf, &|at, piece| {
            for (index, block) in piece.chunks_mut(BLOCK).enumerate() {
                let at = at + index * BLOCK;
                faults.note(at, || {
                    if dtype.is_quantised() {
                        self.checkpoint.read_quants(&self.spec.name, at, block)
                    } else if self.is_plain(dtype) {
                        self.checkpoint.files[self.place.file]
                            .read_at(self.place.begin + at as u64, block)?;
                        self.check_plain(at, block)
                    } else {
                        self.convert(dtype, at, block)
                    }
                });
            }
        });
        faults.first()
    }

    /// Checks every value of a tensor that is used in place.
    fn look(&self, dev: &dyn Device, mapped: &Buf) -> Result<(), LoadError> {
        let faults = Faults::default();
        dev.download_bytes(mapped, &|at, bytes| faults.note(at, || self.check_plain(at, bytes)));
        faults.first()
    }

    /// Refuses values that are not finite in bytes `at ..` of the tensor.
    fn check_plain(&self, at: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let dtype = self.place.dtype;
        if self.checkpoint.allow_nonfinite || all_finite(dtype, bytes) {
            return Ok(());
        }
        // The slow way finds out which.
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        widen(dtype, bytes, &mut values);
        check_values(self.spec, at / dtype.size(), &values)
    }

    /// Fills bytes `at ..` of memory with numbers that the file holds in another form, or that have limits.
    fn convert(&self, dtype: Dtype, at: usize, out: &mut [u8]) -> Result<(), LoadError> {
        let mut values = vec![0.0; out.len() / dtype.size()];
        self.checkpoint.read_f32(&self.spec.name, at / dtype.size(), &mut values)?;
        let stored = match dtype {
            Dtype::F32 => FileDtype::F32,
            Dtype::Bf16 => FileDtype::Bf16,
            Dtype::Q8 | Dtype::Q4 => unreachable!("quantised tensors are read as they are"),
        };
        let mut bytes = Vec::new();
        narrow(stored, &values, &mut bytes);
        out.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Whether no number has all exponent bits set, as infinities and NaN have.
fn all_finite(dtype: FileDtype, bytes: &[u8]) -> bool {
    // A one added to the lowest of the exponent's bits runs through them into the sign's place if all are
    // set. This has no branches, so the compiler makes vectors of it.
    let sixteen = |mask: u16, one: u16| {
        let carry = |pair: &[u8; 2]| (u16::from_le_bytes(*pair) & mask).wrapping_add(one);
        bytes.as_chunks().0.iter().fold(0, |all, pair| all | carry(pair)) >> 15 == 0
    };
    match dtype {
        FileDtype::F32 => {
            let carry = |four: &[u8; 4]| (u32::from_le_bytes(*four) & 0x7f80_0000).wrapping_add(0x80_0000);
            bytes.as_chunks().0.iter().fold(0, |all, four| all | carry(four)) >> 31 == 0
        }
        FileDtype::Bf16 => sixteen(0x7f80, 0x80),
        FileDtype::F16 => sixteen(0x7c00, 0x400),
        FileDtype::U8 => true,
    }
}

/// What went wrong on several threads: the fault nearest to the beginning counts, and nobody goes on long after
/// one was found.
#[derive(Default)]
struct Faults {
    found: AtomicBool,
    first: Mutex<Option<(usize, LoadError)>>,
}

impl Faults {
    /// Does `work`, which is at byte `at` of a tensor, unless a fault before it is known.
    fn note(&self, at: usize, work: impl FnOnce() -> Result<(), LoadError>) {
        let known = || self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if self.found.load(Ordering::Relaxed) && known().as_ref().is_some_and(|(first, _)| *first < at) {
            return;
        }
        if let Err(error) = work() {
            let mut first = known();
            if first.as_ref().is_none_or(|(other, _)| at < *other) {
                *first = Some((at, error));
            }
            self.found.store(true, Ordering::Relaxed);
        }
    }

    fn first(self) -> Result<(), LoadError> {
        let first = self.first.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Ok(()), |(_, error)| Err(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_means_finite() {
        for dtype in [FileDtype::F32, FileDtype::Bf16, FileDtype::F16] {
            let size = dtype.size();
            for (value, finite) in [
                (0.0, true),
                (-65504.0, true),
                (f32::INFINITY, false),
                (f32::NEG_INFINITY, false),
                (f32::NAN, false),
            ] {
                // Once in every place of a vector and of its tail.
                for place in 0..37 {
                    let mut values = [1.5; 37];
                    values[place] = value;
                    let mut bytes = vec![];
                    narrow(dtype, &values, &mut bytes);
                    assert_eq!(bytes.len(), 37 * size);
                    assert_eq!(all_finite(dtype, &bytes), finite, "{dtype:?} {value} at {place}");
                }
            }
        }
    }
}
