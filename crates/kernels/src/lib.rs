//! Arrays in, arrays out: the kernels of a Zamba hybrid behind one trait, [`Device`].
//!
//! This crate knows sizes, not models. It holds the only `unsafe` code of the workspace, in the
//! files named in `ARCHITECTURE.md`.
//!
//! * [`reference`](mod@reference) is the definition: scalar loops, sums in f64, written to be read.
//! * [`cpu`] is the fast device. Every kernel of it is held to the reference by [`cases`], one list
//!   that serves the value check, the gradient check and the benches.
//!
//! Dimensions, used as suffixes of array names (docs/NOTATION.md): `t` tokens, `d` model width,
//! `e` inner width, `n` state, `h` heads, `p` head width, `r` dt rank, `k` conv taps,
//! `v` vocabulary, `i`/`o` in/out, `g` groups, `f` feed-forward width.

pub mod buf;
pub mod cases;
pub mod cpu;
pub mod device;
pub mod mat;
mod mem;
pub mod quant;
pub mod reference;

pub use buf::{Buf, Dtype};
pub use device::*;
pub use mat::{Mat, round_bf16};
pub use mem::FileMap;
