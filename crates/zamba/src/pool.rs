//! Activations and the pool that their memory comes from.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use zamba_kernels::{Buf, Device, Dtype};

/// An activation `[rows, cols]` of f32. Cheap to clone; immutable once it is shared.
///
/// When the last clone goes, its memory returns to the pool that it came from, so that after the first
/// step or token nothing is allocated.
pub struct Var {
    data: Rc<VarData>,
    pool: Rc<Pool>,
}

pub(crate) struct VarData {
    id: usize,
    rows: usize,
    cols: usize,
    buf: Buf,
}

impl Var {
    /// Number of rows, usually tokens.
    pub fn rows(&self) -> usize {
        self.data.rows
    }

    /// Elements per row.
    pub fn cols(&self) -> usize {
        self.data.cols
    }

    /// The memory, for kernels.
    pub fn buf(&self) -> &Buf {
        &self.data.buf
    }

    /// The memory of a value that nobody shares yet.
    ///
    /// # Panics
    /// If the value has been cloned: values are immutable once shared.
    pub(crate) fn buf_mut(&mut self) -> &mut Buf {
        &mut Rc::get_mut(&mut self.data).expect("a shared value is immutable").buf
    }

    pub(crate) fn id(&self) -> usize {
        self.data.id
    }
}

impl Clone for Var {
    fn clone(&self) -> Self {
        Var { data: self.data.clone(), pool: self.pool.clone() }
    }
}

impl Drop for Var {
    fn drop(&mut self) {
        if Rc::strong_count(&self.data) == 1 {
            self.pool.put(self.data.clone());
        }
    }
}

/// Passes that free memory of a size survives without being used. Batches cut documents differently, so
/// some sizes never come back; without a limit they would add up over a long run.
const KEEP_PASSES: u64 = 8;

/// Free activations keyed by number of elements, and the source of their identities.
pub(crate) struct Pool {
    dev: Arc<dyn Device>,
    free: RefCell<HashMap<usize, Class>>,
    next_id: Cell<usize>,
    pass: Cell<u64>,
    held: Cell<usize>,
}

/// Free memory of one size.
#[derive(Default)]
struct Class {
    free: Vec<Rc<VarData>>,
    last_used: u64,
}

impl Pool {
    pub(crate) fn new(dev: Arc<dyn Device>) -> Rc<Self> {
        Rc::new(Pool {
            dev,
            free: RefCell::new(HashMap::new()),
            next_id: Cell::new(0),
            pass: Cell::new(0),
            held: Cell::new(0),
        })
    }

    pub(crate) fn dev(&self) -> &Arc<dyn Device> {
        &self.dev
    }

    /// Begins a pass: numbers values from 0 again and lets go of sizes that have fallen out of use. Only
    /// valid while no tape is alive.
    pub(crate) fn begin_pass(&self) {
        self.next_id.set(0);
        let pass = self.pass.replace(self.pass.get() + 1) + 1;
        self.free.borrow_mut().retain(|len, class| {
            let keep = pass - class.last_used <= KEEP_PASSES;
            if !keep {
                self.held.set(self.held.get() - class.free.len() * len * 4);
            }
            keep
        });
    }

    pub(crate) fn ids(&self) -> usize {
        self.next_id.get()
    }

    /// Bytes of all activations, in use or free.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.get()
    }

    /// Memory with unspecified contents.
    pub(crate) fn take(self: &Rc<Self>, rows: usize, cols: usize) -> Var {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let len = rows * cols;
        let reused = self.free.borrow_mut().get_mut(&len).and_then(|class| {
            class.last_used = self.pass.get();
            class.free.pop()
        });
        let mut data = reused.unwrap_or_else(|| {
            self.held.set(self.held.get() + len * 4);
            Rc::new(VarData { id: 0, rows: 0, cols: 0, buf: self.dev.alloc(Dtype::F32, len) })
        });
        let d = Rc::get_mut(&mut data).expect("free memory is not shared");
        (d.id, d.rows, d.cols) = (id, rows, cols);
        Var { data, pool: self.clone() }
    }

    /// Zeroed memory.
    pub(crate) fn zeroed(self: &Rc<Self>, rows: usize, cols: usize) -> Var {
        let mut v = self.take(rows, cols);
        self.dev.fill(v.buf_mut(), 0.0);
        v
    }

    fn put(&self, data: Rc<VarData>) {
        let mut free = self.free.borrow_mut();
        let class = free.entry(data.buf.len()).or_default();
        class.last_used = self.pass.get();
        class.free.push(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zamba_kernels::reference::Reference;

    #[test]
    fn memory_comes_back_and_sizes_that_fall_out_of_use_are_let_go() {
        let pool = Pool::new(Arc::new(Reference::new()));
        let a = pool.take(3, 5);
        let shared = a.clone();
        drop(a);
        assert_eq!(shared.rows(), 3);
        drop(shared);
        let b = pool.take(5, 3);
        assert_eq!(pool.held_bytes(), 60, "the same memory serves another shape");
        drop(b);
        for size in 1..=100 {
            pool.begin_pass();
            drop(pool.take(1, 1000 + size));
        }
        assert!(pool.held_bytes() <= 4 * 1101 * (KEEP_PASSES as usize + 1), "{}", pool.held_bytes());
    }
}
