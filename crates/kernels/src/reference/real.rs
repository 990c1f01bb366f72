//! The number type of the definitions.
//!
//! Every kernel is defined once, as a function over any [`Real`]. With f64 it is the reference device;
//! [`crate::cases`] runs the same definition with numbers that carry a derivative (the gradient check)
//! or a bound of their rounding error (the tolerances).

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::round_bf16;

/// A real number as the definitions see it.
pub(crate) trait Real:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// An exact constant or input.
    fn of(x: f64) -> Self;
    /// The value without what else the number carries. Branches depend on it alone.
    fn value(self) -> f64;
    /// The number after a round trip through f32 memory.
    fn stored(self) -> Self;
    /// The number rounded to bf16. The derivative of rounding is taken to be one.
    fn to_bf16(self) -> Self;
    /// A weight that a kernel may round to bf16 after scaling it as it likes: no other value, but off by up
    /// to 2^-8 of it.
    fn rounded_weight(self) -> Self;
    /// Exponential.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// `ln(1 + self)`, accurate near 0.
    fn ln_1p(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn value(self) -> f64 {
        self
    }
    fn stored(self) -> Self {
        f64::from(self as f32)
    }
    fn to_bf16(self) -> Self {
        f64::from(round_bf16(self as f32))
    }
    fn rounded_weight(self) -> Self {
        self
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn ln_1p(self) -> Self {
        self.ln_1p()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
}

/// `len` zeros.
pub(crate) fn zeros<R: Real>(len: usize) -> Vec<R> {
    vec![R::of(0.0); len]
}
