//! Two number types that make the definitions answer more than "what is the value".

use std::f64::consts::PI;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::reference::real::Real;

/// A value and its derivative in one direction (forward mode).
///
/// Running a forward definition with these gives the derivative of that very definition, to f64
/// accuracy and without looking at the backward definition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dual {
    pub(crate) v: f64,
    pub(crate) d: f64,
}

impl Add for Dual {
    type Output = Dual;
    fn add(self, b: Dual) -> Dual {
        Dual { v: self.v + b.v, d: self.d + b.d }
    }
}

impl Sub for Dual {
    type Output = Dual;
    fn sub(self, b: Dual) -> Dual {
        Dual { v: self.v - b.v, d: self.d - b.d }
    }
}

impl Mul for Dual {
    type Output = Dual;
    fn mul(self, b: Dual) -> Dual {
        Dual { v: self.v * b.v, d: self.d * b.v + self.v * b.d }
    }
}

impl Div for Dual {
    type Output = Dual;
    fn div(self, b: Dual) -> Dual {
        let v = self.v / b.v;
        Dual { v, d: (self.d - v * b.d) / b.v }
    }
}

impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        Dual { v: -self.v, d: -self.d }
    }
}

impl AddAssign for Dual {
    fn add_assign(&mut self, b: Dual) {
        *self = *self + b;
    }
}

impl Real for Dual {
    fn of(x: f64) -> Self {
        Dual { v: x, d: 0.0 }
    }
    fn value(self) -> f64 {
        self.v
    }
    fn stored(self) -> Self {
        Dual { v: self.v.stored(), d: self.d }
    }
    fn to_bf16(self) -> Self {
        Dual { v: self.v.to_bf16(), d: self.d }
    }
    fn rounded_weight(self) -> Self {
        self
    }
    fn exp(self) -> Self {
        let v = self.v.exp();
        Dual { v, d: self.d * v }
    }
    fn ln(self) -> Self {
        Dual { v: self.v.ln(), d: self.d / self.v }
    }
    fn ln_1p(self) -> Self {
        Dual { v: self.v.ln_1p(), d: self.d / (1.0 + self.v) }
    }
    fn sqrt(self) -> Self {
        let v = self.v.sqrt();
        Dual { v, d: self.d * 0.5 / v }
    }
    fn erf(self) -> Self {
        Dual { v: Real::erf(self.v), d: self.d * 2.0 / PI.sqrt() * (-self.v * self.v).exp() }
    }
}

/// Unit roundoff of f32: one rounded operation changes a result by at most this fraction.
pub(crate) const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Unit roundoff of bf16, which has 8 bits of significand.
pub(crate) const UNIT_BF16: f64 = 1.0 / (1 << 8) as f64;

/// What a kernel's own elementary functions may be off by, in [`UNIT`]s: 4 ulp of f32. Relative for exp,
/// ln and ln_1p; absolute for erf, which the definitions only use as `1 + erf`.
pub(crate) const FUNCTION_UNITS: f64 = 8.0;

/// The same for quotients and square roots, which may come from an estimate and a Newton step.
pub(crate) const QUOTIENT_UNITS: f64 = 4.0;

/// A value and a bound on the error of computing it in f32, in whatever order its sums are added up.
///
/// This is running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 3.3). Sums
/// are kept open: `mass` is the sum of the magnitudes of the terms added so far, and a sum of `terms`
/// numbers in any order and association errs by at most `(terms - 1) * UNIT * mass` to first order. A
/// product, quotient or function closes the sum and passes its error on by its derivative. Fused
/// multiply-adds leave roundings out, so they stay within the bound.
///
/// Results that are tiny in f32 may be flushed to zero, which adds the smallest normal number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounded {
    v: f64,
    inherited: f64,
    mass: f64,
    terms: f64,
}

impl Rounded {
    /// A number that is not an open sum, with its error.
    fn closed(v: f64, error: f64) -> Self {
        Rounded { v, inherited: error, mass: v.abs() + error, terms: 1.0 }
    }

    /// Bound of the error of the number before it is stored.
    fn error(self) -> f64 {
        self.inherited + (self.terms - 1.0).max(0.0) * UNIT * self.mass
    }

    /// Largest difference from [`Real::value`] that an f32 result may show.
    pub(crate) fn bound(self) -> f64 {
        self.error() + UNIT * self.v.abs() + f64::from(f32::MIN_POSITIVE)
    }
}

impl Add for Rounded {
    type Output = Rounded;
    fn add(self, b: Rounded) -> Rounded {
        Rounded {
            v: self.v + b.v,
            inherited: self.inherited + b.inherited,
            mass: self.mass + b.mass,
            terms: self.terms + b.terms,
        }
    }
}

impl Sub for Rounded {
    type Output = Rounded;
    fn sub(self, b: Rounded) -> Rounded {
        self + -b
    }
}

impl Mul for Rounded {
    type Output = Rounded;
    fn mul(self, b: Rounded) -> Rounded {
        let (v, ea, eb) = (self.v * b.v, self.error(), b.error());
        Rounded::closed(v, self.v.abs() * eb + b.v.abs() * ea + ea * eb + UNIT * v.abs())
    }
}

impl Div for Rounded {
    type Output = Rounded;
    fn div(self, b: Rounded) -> Rounded {
        let (v, ea, eb) = (self.v / b.v, self.error(), b.error());
        let least = b.v.abs() - eb;
        assert!(least > 0.0, "the divisor {} has an error bound of {eb}", b.v);
        Rounded::closed(v, (ea + v.abs() * eb) / least + QUOTIENT_UNITS * UNIT * v.abs())
    }
}

impl Neg for Rounded {
    type Output = Rounded;
    fn neg(self) -> Rounded {
        Rounded { v: -self.v, ..self }
    }
}

impl AddAssign for Rounded {
    fn add_assign(&mut self, b: Rounded) {
        *self = *self + b;
    }
}

impl Real for Rounded {
    fn of(x: f64) -> Self {
        // Adding zero is exact, so it is no term.
        Rounded { v: x, inherited: 0.0, mass: x.abs(), terms: if x == 0.0 { 0.0 } else { 1.0 } }
    }
    fn value(self) -> f64 {
        self.v
    }
    fn stored(self) -> Self {
        Rounded::closed(self.v.stored(), self.bound())
    }
    fn to_bf16(self) -> Self {
        assert_eq!(self.error(), 0.0, "only inputs of a kernel are rounded to bf16");
        Rounded::of(self.v.to_bf16())
    }
    fn rounded_weight(self) -> Self {
        let error = self.error();
        Rounded::closed(self.v, error + UNIT_BF16 * (self.v.abs() + error))
    }
    fn exp(self) -> Self {
        let v = self.v.exp();
        let flushed = f64::from(f32::MIN_POSITIVE);
        Rounded::closed(v, v * self.error().exp_m1() + FUNCTION_UNITS * UNIT * v + flushed)
    }
    fn ln(self) -> Self {
        let (v, error) = (self.v.ln(), self.error());
        assert!(self.v > error, "the logarithm of {} has an error bound of {error}", self.v);
        Rounded::closed(v, error / (self.v - error) + FUNCTION_UNITS * UNIT * v.abs())
    }
    fn ln_1p(self) -> Self {
        let (v, error) = (self.v.ln_1p(), self.error());
        assert!(1.0 + self.v > error, "the logarithm of 1 + {} has an error bound of {error}", self.v);
        Rounded::closed(v, error / (1.0 + self.v - error) + FUNCTION_UNITS * UNIT * v.abs())
    }
    fn sqrt(self) -> Self {
        let v = self.v.sqrt();
        let least = (self.v - self.error()).max(0.0).sqrt();
        Rounded::closed(v, v - least + QUOTIENT_UNITS * UNIT * v)
    }
    fn erf(self) -> Self {
        let (v, error) = (Real::erf(self.v), self.error());
        let slope = 2.0 / PI.sqrt() * (-self.v * self.v).exp();
        Rounded::closed(v, error * slope + error * error + FUNCTION_UNITS * UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A composition through every operation of [`Real`], with arguments in all their domains.
    fn mixed<R: Real>(x: R) -> R {
        let one = R::of(1.0);
        (x * x + one).ln() / (x.exp() + one).sqrt() - (x.erf() / (x * x + one) + (-x).exp().ln_1p())
    }

    #[test]
    fn dual_derivative_agrees_with_differences() {
        for x in [-2.5, -0.3, 0.01, 0.7, 3.0] {
            let h = 1e-5;
            let difference = (mixed(x + h) - mixed(x - h)) / (2.0 * h);
            let dual = mixed(Dual { v: x, d: 1.0 });
            assert_eq!(dual.v, mixed(x));
            assert!((dual.d - difference).abs() < 1e-8, "at {x}: {} and {difference}", dual.d);
        }
    }

    /// The bound must hold for f32 arithmetic and must not be so wide that it hides faults.
    #[test]
    fn rounded_bound_holds_for_f32_sums_in_two_orders() {
        let mut rng = super::super::Rng::new("sums");
        for len in [1, 2, 17, 1000] {
            let a: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
            let b: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
            let mut want = Rounded::of(0.0);
            let (mut forward, mut backward) = (0f32, 0f32);
            for i in 0..len {
                want += Rounded::of(f64::from(a[i])) * Rounded::of(f64::from(b[i]));
                forward += a[i] * b[i];
                backward += a[len - 1 - i] * b[len - 1 - i];
            }
            for got in [forward, backward] {
                assert!((f64::from(got) - want.value()).abs() <= want.bound());
            }
            let mass: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a * b).abs()).sum();
            assert!(want.bound() < (len + 2) as f64 * UNIT * mass * 1.001 + 1e-37);
        }
    }

    #[test]
    fn rounded_bound_holds_for_f32_functions() {
        for x in [-2.5f32, -0.3, 0.01, 0.7, 3.0] {
            let want = mixed(Rounded::of(f64::from(x)));
            let erf = libm::erff(x);
            let got =
                (x * x + 1.0).ln() / (x.exp() + 1.0).sqrt() - (erf / (x * x + 1.0) + (-x).exp().ln_1p());
            let error = (f64::from(got) - want.value()).abs();
            assert!(error <= want.bound(), "at {x}: {error} exceeds {}", want.bound());
            assert!(want.bound() < 1e-5, "at {x}: a bound of {}", want.bound());
        }
    }
}
