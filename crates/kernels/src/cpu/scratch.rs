//! Working memory of kernels, kept per thread and used again, so that a decode step allocates nothing
//! after the first.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

/// A cache line, for alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of this thread's working memory, 64-byte aligned and of any content.
///
/// Calls may nest. Memory is handed out last in, first out, so a nest of calls meets the same blocks again
/// and each grows to the largest size asked of it at its depth. Kernels call this before they enter their
/// tier, because a closure is not sure to be inlined.
pub(super) fn floats<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = len.div_ceil(16);
    if memory.len() < lines {
        // The old content is not worth copying.
        memory = bytemuck::zeroed_vec(lines);
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut memory)[..len]);
    FREE.with_borrow_mut(|free| free.push(memory));
    result
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
