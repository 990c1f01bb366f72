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

/// Free activations keyed by number of elements, and the source of their identities.
pub(crate) struct Pool {
    dev: Arc<dyn Device>,
    free: RefCell<HashMap<usize, Vec<Rc<VarData>>>>,
    next_id: Cell<usize>,
    allocated: Cell<usize>,
}

impl Pool {
    pub(crate) fn new(dev: Arc<dyn Device>) -> Rc<Self> {
        Rc::new(Pool {
            dev,
            free: RefCell::new(HashMap::new()),
            next_id: Cell::new(0),
            allocated: Cell::new(0),
        })
    }

    pub(crate) fn dev(&self) -> &Arc<dyn Device> {
        &self.dev
    }

    /// Starts numbering values from 0 again. Only valid while no tape is alive.
    pub(crate) fn restart_ids(&self) {
        self.next_id.set(0);
    }

    pub(crate) fn ids(&self) -> usize {
        self.next_id.get()
    }

    /// Bytes that the pool has ever asked the device for.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.allocated.get()
    }

    /// Memory with unspecified contents.
    pub(crate) fn take(self: &Rc<Self>, rows: usize, cols: usize) -> Var {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let len = rows * cols;
        let reused = self.free.borrow_mut().get_mut(&len).and_then(Vec::pop);
        let mut data = reused.unwrap_or_else(|| {
            self.allocated.set(self.allocated.get() + len * 4);
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
        self.free.borrow_mut().entry(data.buf.len()).or_default().push(data);
    }
}
