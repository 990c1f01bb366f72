//! Running operations, with or without a tape.
//!
//! An operation is a method of [`Ctx`] (see [`crate::ops`]): it runs its kernel, and when a tape is
//! present it pushes a closure that calls the backward kernel. There are no views, strides or
//! broadcasting, so this stays a list of kernels rather than a framework. Fan-in sums, which Zamba
//! needs at every use of the shared block and of the embedding, come out of the tape by themselves,
//! because backward kernels add.

use std::rc::Rc;
use std::sync::Arc;

use zamba_kernels::{Buf, Device, Span};

use crate::moments::SharedMoments;
use crate::pool::{Pool, Var};
use crate::state::State;

/// Packed tokens and the sequences that they belong to: the one way to say what to compute.
///
/// Training packs several spans from position 0; decode has spans of one token; a prompt is one long
/// span, or several when it is cut in chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, all spans one behind the other.
    pub tokens: Vec<u32>,
    /// Sequences, in the order of their rows.
    pub spans: Vec<Span>,
}

impl Batch {
    /// One sequence from its beginning, in slot 0.
    pub fn of(tokens: &[u32]) -> Self {
        let mut b = Batch::default();
        b.push(0, 0, tokens);
        b
    }

    /// Adds `tokens` as the continuation at position `pos` of the sequence in `slot`; at position 0 a new
    /// sequence begins.
    ///
    /// # Panics
    /// If `tokens` is empty.
    pub fn push(&mut self, slot: usize, pos: usize, tokens: &[u32]) {
        assert!(!tokens.is_empty(), "a span has at least one token");
        self.spans.push(Span { slot, start: self.tokens.len(), len: tokens.len(), pos });
        self.tokens.extend_from_slice(tokens);
    }

    /// Packed rows of the last token of each span.
    pub fn last_rows(&self) -> Vec<u32> {
        self.spans.iter().map(|s| (s.start + s.len - 1) as u32).collect()
    }

    /// Number of packed tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Memory for activations, kept between steps. One per thread that runs a model.
pub struct Workspace {
    pool: Rc<Pool>,
    moments: Option<SharedMoments>,
}

impl Workspace {
    /// An empty workspace on `dev`.
    pub fn new(dev: Arc<dyn Device>) -> Self {
        Workspace { pool: Pool::new(dev), moments: None }
    }

    /// An empty workspace whose passes note what linear maps see.
    pub fn observing(dev: Arc<dyn Device>) -> (Self, SharedMoments) {
        let moments = SharedMoments::default();
        (Workspace { pool: Pool::new(dev), moments: Some(moments.clone()) }, moments)
    }

    /// Runs `batch` without a tape, reading and advancing `state` if there is one.
    ///
    /// # Panics
    /// If a span does not continue its slot: its position must be 0 or where the slot stands, and its
    /// end within the context length; each slot may occur once.
    pub fn infer<'a>(&self, batch: Batch, mut state: Option<&'a mut State>) -> Ctx<'a> {
        self.pool.begin_pass();
        match state.as_deref_mut() {
            Some(s) => s.advance(&batch.spans),
            None => assert!(batch.spans.iter().all(|s| s.pos == 0), "continuing a sequence needs its state"),
        }
        Ctx { env: self.env(batch), state, tape: None, recompute_layers: false }
    }

    /// Runs `batch` under a tape. With `recompute_layers` only the inputs of each layer are kept and its
    /// inside is computed again on the way back.
    ///
    /// # Panics
    /// If a span does not begin at position 0.
    pub fn train(&self, batch: Batch, recompute_layers: bool) -> Ctx<'static> {
        self.pool.begin_pass();
        assert!(batch.spans.iter().all(|s| s.pos == 0), "training spans begin at position 0");
        Ctx { env: self.env(batch), state: None, tape: Some(vec![]), recompute_layers }
    }

    /// Bytes of memory for activations, in use or kept for the next pass.
    pub fn held_bytes(&self) -> usize {
        self.pool.held_bytes()
    }

    fn env(&self, batch: Batch) -> Rc<Env> {
        Rc::new(Env { batch, pool: self.pool.clone(), moments: self.moments.clone() })
    }
}

/// What does not change during a forward pass.
pub(crate) struct Env {
    pub(crate) batch: Batch,
    pub(crate) pool: Rc<Pool>,
    /// Where to note what linear maps see, if anyone wants to know.
    pub(crate) moments: Option<SharedMoments>,
}

impl Env {
    pub(crate) fn dev(&self) -> &dyn Device {
        &**self.pool.dev()
    }
}

type Backward = Box<dyn FnOnce(&mut Back)>;

/// One forward pass. Operations are its methods, see [`crate::ops`].
pub struct Ctx<'a> {
    pub(crate) env: Rc<Env>,
    pub(crate) state: Option<&'a mut State>,
    tape: Option<Vec<Backward>>,
    recompute_layers: bool,
}

impl Ctx<'_> {
    /// The packed tokens of this pass.
    pub fn batch(&self) -> &Batch {
        &self.env.batch
    }

    /// Whether the inside of layers is to be computed again on the way back.
    pub fn recomputes_layers(&self) -> bool {
        self.recompute_layers && self.tape.is_some()
    }

    pub(crate) fn has_tape(&self) -> bool {
        self.tape.is_some()
    }

    /// Copies a value to the host.
    ///
    /// # Panics
    /// If `out` is longer than the value from element `at`.
    pub fn read(&self, x: &Var, at: usize, out: &mut [f32]) {
        self.env.dev().download(out, x.buf(), at);
    }

    pub(crate) fn fresh(&self, rows: usize, cols: usize) -> Var {
        self.env.pool.take(rows, cols)
    }

    /// `make` runs only under a tape, so inference neither clones nor boxes anything.
    pub(crate) fn on_backward<B: FnOnce(&mut Back) + 'static>(&mut self, make: impl FnOnce() -> B) {
        if let Some(tape) = &mut self.tape {
            tape.push(Box::new(make()));
        }
    }

    /// Runs `f` keeping only its inputs and result; on the way back `f` runs again under a tape of its own.
    pub fn recompute<F>(&mut self, inputs: &[&Var], f: F) -> Var
    where
        F: Fn(&mut Ctx, &[Var]) -> Var + 'static,
    {
        let inputs: Vec<Var> = inputs.iter().map(|v| (*v).clone()).collect();
        let mut plain = Ctx { env: self.env.clone(), state: None, tape: None, recompute_layers: false };
        let y = f(&mut plain, &inputs);
        self.on_backward(|| {
            let y = y.clone();
            move |b| {
                let Some(dy) = b.take(&y) else { return };
                drop(y);
                let mut again =
                    Ctx { env: b.env.clone(), state: None, tape: Some(vec![]), recompute_layers: false };
                let y = f(&mut again, &inputs);
                b.put(&y, dy);
                b.run(again.tape.take().expect("made with a tape"));
            }
        });
        y
    }

    /// Walks the tape back and adds the gradient of every parameter to `flat`, the f32 buffer of all
    /// parameters in the order of [`crate::model::Zamba::params`].
    ///
    /// # Panics
    /// If the pass was made without a tape.
    pub fn backward(mut self, flat: &mut Buf) {
        let tape = self.tape.take().expect("a training pass has a tape");
        Back { env: self.env.clone(), flat, vars: vec![] }.run(tape);
    }

    /// As [`Ctx::backward`] where the tape has no loss and `dy` is the gradient of its last value, `y`.
    pub(crate) fn backward_from(mut self, y: Var, dy: Var, flat: &mut Buf) {
        let tape = self.tape.take().expect("a training pass has a tape");
        let mut back = Back { env: self.env.clone(), flat, vars: vec![] };
        back.put(&y, dy);
        drop(y);
        back.run(tape);
    }
}

/// The way back: gradients of values by identity, and of parameters in one flat buffer.
pub(crate) struct Back<'f> {
    pub(crate) env: Rc<Env>,
    pub(crate) flat: &'f mut Buf,
    vars: Vec<Option<Var>>,
}

impl Back<'_> {
    fn run(&mut self, tape: Vec<Backward>) {
        for step in tape.into_iter().rev() {
            step(self);
        }
    }

    /// The gradient of `v`, leaving none; `None` when nothing depended on it.
    pub(crate) fn take(&mut self, v: &Var) -> Option<Var> {
        self.vars.get_mut(v.id()).and_then(Option::take)
    }

    /// The gradient of `v` to add to, zero when it is the first contribution. Give it back with `put`.
    pub(crate) fn slot(&mut self, v: &Var) -> Var {
        self.take(v).unwrap_or_else(|| self.env.pool.zeroed(v.rows(), v.cols()))
    }

    pub(crate) fn put(&mut self, v: &Var, g: Var) {
        if self.vars.len() <= v.id() {
            self.vars.resize_with(self.env.pool.ids().max(v.id() + 1), || None);
        }
        self.vars[v.id()] = Some(g);
    }

    /// Adds `g`, which others need too, to the gradient of `v`.
    pub(crate) fn add_copy(&mut self, v: &Var, g: &Var) {
        let sum = match self.take(v) {
            Some(mut sum) => {
                self.env.dev().accumulate(sum.buf_mut(), g.buf());
                sum
            }
            None => {
                let mut copy = self.env.pool.take(v.rows(), v.cols());
                self.env.dev().copy(copy.buf_mut(), 0, g.buf(), 0, g.buf().len());
                copy
            }
        };
        self.put(v, sum);
    }

    /// Adds `g` to the gradient of `v`, without a copy when it is the first contribution.
    pub(crate) fn add(&mut self, v: &Var, g: Var) {
        let sum = match self.take(v) {
            Some(mut sum) => {
                self.env.dev().accumulate(sum.buf_mut(), g.buf());
                sum
            }
            None => g,
        };
        self.put(v, sum);
    }
}
