//! Working memory of kernels, kept per thread and used again, so that a decode step allocates nothing
//! after the first.

use std::cell::RefCell;

use crate::mem::{HUGE, Mem};

/// Bytes from which on memory is taken as whole huge pages: loops over packed operands and unfinished sums jump
/// from one page to the next, and a processor remembers the addresses of a hundred at its fastest. Each thread keeps
/// such memory, so what would leave most of a huge page empty does not get one.
const LARGE: usize = 256 << 10;

thread_local! {
    static FREE: RefCell<Vec<Mem>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of this thread's working memory, 64-byte aligned and of any content.
///
/// Calls may nest. Memory is handed out last in, first out, so a nest of calls meets the same blocks again
/// and each grows to the largest size asked of it at its depth. Kernels call this before they enter their
/// tier, because a closure is not sure to be inlined.
pub(super) fn floats<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let bytes = len * size_of::<f32>();
    let kept = FREE.with_borrow_mut(Vec::pop).filter(|memory| memory.bytes().len() >= bytes);
    // The content of what is too small is not worth copying.
    let mut memory =
        kept.unwrap_or_else(|| Mem::zeroed(if bytes < LARGE { bytes } else { bytes.next_multiple_of(HUGE) }));
    let result = f(bytemuck::cast_slice_mut(&mut memory.bytes_mut()[..bytes]));
    FREE.with_borrow_mut(|free| free.push(memory));
    result
}

/// Cuts `memory` into parts of `lens` elements, one after the other.
///
/// # Panics
/// If it has too few.
pub(super) fn parts<const N: usize>(mut memory: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    lens.map(|len| memory.split_off_mut(..len).expect("memory for all parts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_nests() {
        let outer = floats(100, |a| {
            a.fill(2.0);
            floats(50, |b| b.fill(1.0));
            assert!(a.iter().all(|x| *x == 2.0));
            a.as_ptr() as usize
        });
        floats(70, |a| {
            assert_eq!(a.as_ptr() as usize, outer);
            assert_eq!((a.len(), outer % 64), (70, 0));
        });
    }
}
