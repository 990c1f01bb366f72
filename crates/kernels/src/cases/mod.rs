//! One list of cases per kernel, for the value check, the gradient check and the benches.
//!
//! * **Value**: a case runs a kernel and its backward on a device and compares every result with the
//!   definition in [`crate::reference`].
//! * **Tolerance**: the definition is run with `Rounded`, numbers that carry a bound of their
//!   rounding error in f32 (length of the sum x magnitude of its terms x unit roundoff, passed through
//!   each function by its derivative). So each element of each result has a tolerance of its own that
//!   follows from the definition; none is written by hand. Inputs are exact: they are the f32 or bf16
//!   values that the device was given.
//! * **Gradient**: the forward definition is run with `Dual`, numbers that carry a derivative,
//!   and compared in f64 with the backward definition. The two roads share no derivative.
//!
//! Forward results land in buffers full of rubbish and backward results on top of random gradients, in a
//! flat buffer with gaps between parameters, so that a kernel that forgets to overwrite, to add or to
//! stay inside its parameter is found out.

mod attention;
mod conv;
mod cutting;
mod elementwise;
mod harness;
mod linear;
mod loss;
mod norm;
mod numbers;
mod optim;
mod quant;
mod rng;
mod rows;
mod scaled;
mod scan;

pub use cutting::check_cutting;

use crate::reference::real::Real;
use crate::{Buf, Device, Dtype, Span, round_bf16};
use rng::Rng;

/// One kernel at one size, with inputs that follow from its name.
pub struct Case {
    op: Box<dyn Checks>,
}

impl Case {
    /// Kernel and sizes, unique in the list.
    pub fn name(&self) -> String {
        self.op.title()
    }

    /// Whether the kernel has a backward kernel at these sizes.
    pub fn has_gradient(&self) -> bool {
        self.op.has_gradient()
    }

    /// Compares all results of forward and backward kernels on `dev` with the definition.
    ///
    /// # Errors
    /// The first element outside its bound, in words.
    pub fn check(&self, dev: &dyn Device) -> Result<(), String> {
        self.op.check(dev).map_err(|e| format!("{} on {}: {e}", self.name(), dev.name()))
    }

    /// Compares the backward definition with the derivative of the forward definition.
    ///
    /// # Errors
    /// The first derivative that differs, in words.
    pub fn check_gradient(&self) -> Result<(), String> {
        self.op.check_gradient().map_err(|e| format!("{}: {e}", self.name()))
    }

    /// How many numbers go in: a measure of how long the case takes, for tests that have no time for all.
    pub fn numbers(&self) -> usize {
        self.op.numbers()
    }

    /// Bits of all results on `dev`, for tests that demand equality (thread counts, repeated runs).
    pub fn run_bits(&self, dev: &dyn Device) -> Vec<u32> {
        self.op.run_bits(dev)
    }
}

/// All cases of all kernels.
pub fn all() -> Vec<Case> {
    let lists: [Vec<Box<dyn Checks>>; 11] = [
        linear::cases(),
        quant::cases(),
        norm::cases(),
        scaled::cases(),
        conv::cases(),
        scan::cases(),
        attention::cases(),
        elementwise::cases(),
        loss::cases(),
        rows::cases(),
        optim::cases(),
    ];
    lists.into_iter().flatten().map(|op| Case { op }).collect()
}

/// What a [`Case`] can do; the form of [`Op`] that fits into a list.
trait Checks: Send + Sync {
    fn title(&self) -> String;
    fn numbers(&self) -> usize;
    fn has_gradient(&self) -> bool;
    fn check(&self, dev: &dyn Device) -> Result<(), String>;
    fn check_gradient(&self) -> Result<(), String>;
    fn run_bits(&self, dev: &dyn Device) -> Vec<u32>;
}

/// What becomes of the gradient of an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It has none.
    Fixed,
    /// It is added to a buffer of its own.
    Signal,
    /// It is added to the flat gradient buffer.
    Param,
}

/// An input of a kernel.
struct Input {
    role: Role,
    dtype: Dtype,
    values: Vec<f32>,
}

impl Input {
    fn fixed(values: Vec<f32>) -> Self {
        Input { role: Role::Fixed, dtype: Dtype::F32, values }
    }

    fn signal(values: Vec<f32>) -> Self {
        Input { role: Role::Signal, dtype: Dtype::F32, values }
    }

    fn param(values: Vec<f32>) -> Self {
        Input { role: Role::Param, dtype: Dtype::F32, values }
    }

    /// A parameter that is stored in `dtype`.
    fn weight(dtype: Dtype, mut values: Vec<f32>) -> Self {
        if dtype == Dtype::Bf16 {
            values.iter_mut().for_each(|v| *v = round_bf16(*v));
        }
        Input { role: Role::Param, dtype, values }
    }
}

/// Where a backward kernel adds its results, in the order of the inputs.
struct Grads {
    /// One buffer per [`Role::Signal`] input.
    own: Vec<Buf>,
    /// Holds the gradients of [`Role::Param`] inputs.
    flat: Buf,
    /// Where each of them starts.
    at: Vec<usize>,
}

impl Grads {
    /// Buffers like `own` for a kernel that overwrites, full of NaN.
    fn fresh(&self, dev: &dyn Device) -> Vec<Buf> {
        self.own.iter().map(|own| rubbish(dev, own.len())).collect()
    }

    /// Adds what such a kernel wrote, since what is held to the definition is a sum.
    fn add(&mut self, dev: &dyn Device, fresh: &[Buf]) {
        for (own, fresh) in self.own.iter_mut().zip(fresh) {
            dev.accumulate(own, fresh);
        }
    }
}

/// A kernel at one size: its inputs, its definition and its call on a device.
trait Op: Send + Sync {
    /// Kernel and sizes.
    fn name(&self) -> String;
    /// Inputs, always in the same order.
    fn inputs(&self, rng: &mut Rng) -> Vec<Input>;
    /// Outputs of the definition; the loss of the gradient check is a weighted sum of the first one.
    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>>;
    /// The same on a device. More outputs than the definition has are for [`Op::run_bwd`] alone.
    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf>;
    /// Whether there is a backward kernel.
    fn has_backward(&self) -> bool {
        true
    }
    /// Gradient of the first output: `len` random numbers unless the kernel fixes it.
    fn dy(&self, rng: &mut Rng, len: usize) -> Vec<f32> {
        rng.normals(len)
    }
    /// Whether the backward kernel rounds that gradient to bf16 though all inputs are f32.
    fn rounds_dy(&self) -> bool {
        false
    }
    /// Gradients of all inputs that have one, from inputs, outputs and the gradient of the first output.
    fn define_bwd<R: Real>(&self, _x: &[Vec<R>], _y: &[Vec<R>], _dy: &[R]) -> Vec<Vec<R>> {
        vec![]
    }
    /// The same on a device.
    fn run_bwd(&self, _dev: &dyn Device, _x: Vec<Buf>, _y: &[Buf], _dy: &Buf, _g: &mut Grads) {}
}

/// A buffer on `dev` with `values`.
fn upload(dev: &dyn Device, dtype: Dtype, values: &[f32]) -> Buf {
    let mut buf = dev.alloc(dtype, values.len());
    dev.upload(&mut buf, 0, values);
    buf
}

fn upload_all(dev: &dyn Device, inputs: &[Input]) -> Vec<Buf> {
    inputs.iter().map(|i| upload(dev, i.dtype, &i.values)).collect()
}

fn download(dev: &dyn Device, x: &Buf) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    dev.download(&mut y, x, 0);
    y
}

/// A buffer whose elements are NaN: a forward kernel must overwrite all of them.
fn rubbish(dev: &dyn Device, len: usize) -> Buf {
    let mut buf = dev.alloc(Dtype::F32, len);
    dev.fill(&mut buf, f32::NAN);
    buf
}

/// Inputs as an array of known length.
fn take<T, const N: usize>(x: Vec<T>) -> [T; N] {
    x.try_into().unwrap_or_else(|x: Vec<T>| panic!("{} inputs, expected {N}", x.len()))
}

/// Whole sequences of the given lengths, each from its start.
fn packed(lens: &[usize]) -> Vec<Span> {
    let of_slot: Vec<_> = lens.iter().enumerate().map(|(slot, &len)| (slot, len, 0)).collect();
    placed(&of_slot)
}

/// Spans `(slot, len, pos)` one after the other.
fn placed(parts: &[(usize, usize, usize)]) -> Vec<Span> {
    let mut start = 0;
    let mut spans = vec![];
    for &(slot, len, pos) in parts {
        spans.push(Span { slot, start, len, pos });
        start += len;
    }
    spans
}

fn tokens(spans: &[Span]) -> usize {
    spans.iter().map(|s| s.len).sum()
}

/// `slot:pos+len` of each span, for names.
fn describe(spans: &[Span]) -> String {
    let parts: Vec<_> = spans.iter().map(|s| format!("{}:{}+{}", s.slot, s.pos, s.len)).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().iter().map(Case::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
