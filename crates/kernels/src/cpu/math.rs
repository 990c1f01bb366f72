//! Elementary functions without branches, so that loops over them vectorise.
//!
//! Coefficients are minimax fits (Remez exchange in 40 digits, relative error); each function states
//! the error of the fit and the bound in f32 that its test holds over a dense sweep. NaN stays NaN.

use super::isa::Tier;
use crate::Act;

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// `2^n` for `n` in -126 ..= 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// `e^x`: within 2 ulp (3 without fused multiply-add) down to -87.3, below that within the smallest
/// subnormal more; infinite above 88.72.
///
/// Fit: `1 + x + x^2 P(x)` of degree 6 on ±ln 2 / 2, 3.1e-9.
#[inline(always)]
pub(super) fn exp<S: Tier>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_375;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let c = if x < -104.0 { -104.0 } else { x };
    let c = if c > 89.0 { 89.0 } else { c };
    let k = S::fma(c, std::f32::consts::LOG2_E, MAGIC);
    let n = k - MAGIC;
    let r = S::fma(n, -LN2_HI, c);
    let r = S::fma(n, -LN2_LO, r);
    let p = S::fma(1.381_500_8e-3, r, 8.368_864_6e-3);
    let p = S::fma(p, r, 4.166_839_3e-2);
    let p = S::fma(p, r, 1.666_651_9e-1);
    let p = S::fma(p, r, 4.999_999_3e-1);
    let p = S::fma(p * r, r, r) + 1.0;
    // In two factors, because 2^n alone may lie beyond the range where the product does not.
    let n = (k.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    p * power(half) * power(n.wrapping_sub(half))
}

/// `2^x` for `x <= 0`: within 2 ulp, about `2^-126` below -126.
///
/// Fit: `1 + x P(x)` of degree 6 on ±1/2, 2.6e-9.
#[inline(always)]
pub(super) fn exp2_decay<S: Tier>(x: f32) -> f32 {
    let c = if x < -125.0 { -125.0 } else { x };
    let k = c + MAGIC;
    let r = c - (k - MAGIC);
    let p = S::fma(1.559_548_3e-4, r, 1.340_695e-3);
    let p = S::fma(p, r, 9.617_689_3e-3);
    let p = S::fma(p, r, 5.550_309_7e-2);
    let p = S::fma(p, r, 2.402_265_3e-1);
    let p = S::fma(p, r, 6.931_472e-1);
    let p = S::fma(p, r, 1.0);
    p * f32::from_bits((k.to_bits() << 23).wrapping_add(127 << 23))
}

/// `ln(1 + e^x)`, the identity above 20: within 3 ulp (4 without fused multiply-add).
///
/// As `max(x, 0) + ln(1 + u)` with `u = e^-|x|`, and `ln(1 + u) = 2 atanh(u / (2 + u))`, so that nothing
/// cancels. Fit: `s (2 + s^2 P(s^2))`, 4.6e-9.
#[inline(always)]
pub(super) fn softplus<S: Tier>(x: f32) -> f32 {
    let u = exp::<S>(-x.abs());
    let s = u / (2.0 + u);
    let q = s * s;
    let p = S::fma(2.802_445_9e-1, q, 2.799_914e-1);
    let p = S::fma(p, q, 4.002_17e-1);
    let p = S::fma(p, q, 6.666_641_3e-1);
    let log = S::fma(s * q, p, s + s);
    let y = if x > 0.0 { x } else { 0.0 } + log;
    if x <= 20.0 || x.is_nan() { y } else { x }
}

/// `1 / (1 + e^-x)`: within 4 ulp (6 without fused multiply-add) down to -87.3, below that within the
/// smallest subnormal more.
///
/// From `u = e^-|x|`, so that `x * sigmoid(x)` is right where `e^-x` is beyond the range.
#[inline(always)]
pub(super) fn sigmoid<S: Tier>(x: f32) -> f32 {
    let u = exp::<S>(-x.abs());
    (if x < 0.0 { u } else { 1.0 }) / (1.0 + u)
}

/// The distribution function of the normal law, `(1 + erf(x / sqrt 2)) / 2`: absolute error below 1e-7,
/// within 8 ulp above -3.
///
/// Up to 1 as `1/2 + x Q(x^2)`, fit of degree 5, 7.2e-10. Beyond as `erfc(z) = e^(-z^2) t P(2 t - 1)` with
/// `t = 1 / (1 + 0.4 z)`; around the middle of the range of `t` the coefficients fall off, so Horner's rule
/// loses little. Fit of degree 9, 9.1e-9.
#[inline(always)]
pub(super) fn normal_cdf<S: Tier>(x: f32) -> f32 {
    let q = x * x;
    let p = S::fma(-7.654_206e-6, q, 1.134_863_7e-4);
    let p = S::fma(p, q, -1.186_329_9e-3);
    let p = S::fma(p, q, 9.973_323e-3);
    let p = S::fma(p, q, -6.649_036e-2);
    let p = S::fma(p, q, 3.989_422_8e-1);
    let middle = S::fma(p, x, 0.5);

    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / S::fma(0.4, z, 1.0);
    let u = 2.0 * t - 1.0;
    let p = S::fma(-5.593_183_6e-5, u, 2.498_304_9e-4);
    let p = S::fma(p, u, 2.103_710_3e-4);
    let p = S::fma(p, u, -1.920_417_9e-3);
    let p = S::fma(p, u, -3.368_895_7e-3);
    let p = S::fma(p, u, 1.134_402_8e-2);
    let p = S::fma(p, u, 6.850_193_4e-2);
    let p = S::fma(p, u, 1.815_656_7e-1);
    let p = S::fma(p, u, 3.218_606_9e-1);
    let p = S::fma(p, u, 4.216_127_3e-1);
    let tail = 0.5 * (p * t) * exp::<S>(-0.5 * q);
    let tail = if x > 0.0 { 1.0 - tail } else { tail };
    if q <= 1.0 { middle } else { tail }
}

/// sqrt(2 / pi), and the cubic term of the tanh approximation of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// The activation `act`.
#[inline(always)]
pub(super) fn activate<S: Tier>(act: Act, x: f32) -> f32 {
    match act {
        Act::Silu => x * sigmoid::<S>(x),
        Act::Gelu => x * normal_cdf::<S>(x),
        // (1 + tanh u) / 2 = sigmoid(2 u), which does not cancel where tanh u is near -1.
        Act::GeluTanh => x * sigmoid::<S>(gelu_inner::<S>(x)),
        Act::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
    }
}

/// Twice the argument of the tanh in the tanh approximation of GELU.
#[inline(always)]
fn gelu_inner<S: Tier>(x: f32) -> f32 {
    let cubic = S::fma(GELU_CUBIC * x * x, x, x);
    2.0 * GELU_SCALE * cubic
}

/// The derivative of `act`; 0 at the corner of ReLU.
#[inline(always)]
pub(super) fn slope<S: Tier>(act: Act, x: f32) -> f32 {
    match act {
        Act::Silu => {
            let s = sigmoid::<S>(x);
            s * S::fma(x, 1.0 - s, 1.0)
        }
        Act::Gelu => {
            const DENSITY: f32 = 0.398_942_3;
            let density = DENSITY * exp::<S>(-0.5 * x * x);
            S::fma(x, density, normal_cdf::<S>(x))
        }
        Act::GeluTanh => {
            let s = sigmoid::<S>(gelu_inner::<S>(x));
            let inner = 2.0 * GELU_SCALE * S::fma(3.0 * GELU_CUBIC * x, x, 1.0);
            S::fma(x * s * (1.0 - s), inner, s)
        }
        Act::Relu => {
            if x > 0.0 {
                1.0
            } else if x.is_nan() {
                x
            } else {
                0.0
            }
        }
    }
}

/// Evaluates `$body` with `$name` a constant equal to `$act`, so that loops inside it have one function
/// each instead of a choice per element.
macro_rules! for_act {
    ($act:expr, $name:ident => $body:expr) => {
        match $act {
            Act::Silu => {
                const $name: Act = Act::Silu;
                $body
            }
            Act::Gelu => {
                const $name: Act = Act::Gelu;
                $body
            }
            Act::GeluTanh => {
                const $name: Act = Act::GeluTanh;
                $body
            }
            Act::Relu => {
                const $name: Act = Act::Relu;
                $body
            }
        }
    };
}
pub(super) use for_act;

#[cfg(test)]
mod tests {
    use super::super::isa::{Isa, Op};
    use super::*;

    type Function = (&'static str, fn(f64) -> f64, std::ops::RangeInclusive<f32>, [f64; 2]);

    /// Name, definition in f64, range of the sweep, and bound in ulp with and without fused
    /// multiply-add.
    fn functions() -> [Function; 5] {
        [
            ("exp", f64::exp, -87.3..=88.7, [2.0, 3.0]),
            ("exp2_decay", f64::exp2, -125.0..=0.0, [2.0, 3.0]),
            ("softplus", |x| x.exp().ln_1p(), -87.0..=20.0, [3.0, 4.0]),
            ("sigmoid", |x| 1.0 / (1.0 + (-x).exp()), -87.3..=100.0, [4.0, 6.0]),
            ("normal_cdf", |x| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2), -3.0..=6.0, [8.0, 8.0]),
        ]
    }

    /// `ys = f(xs)` on a tier.
    struct Sweep<'a>(&'static str, &'a [f32]);

    impl Op for Sweep<'_> {
        type Out = Vec<f32>;
        #[inline(always)]
        fn eval<S: Tier>(self) -> Vec<f32> {
            let f: fn(f32) -> f32 = match self.0 {
                "exp" => exp::<S>,
                "exp2_decay" => exp2_decay::<S>,
                "softplus" => softplus::<S>,
                "sigmoid" => sigmoid::<S>,
                _ => normal_cdf::<S>,
            };
            self.1.iter().map(|x| f(*x)).collect()
        }
    }

    /// Distance in units of the last place of the f32 next to `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = (want as f32).abs().max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        (f64::from(got) - want).abs() / ulp
    }

    fn grid(from: f32, to: f32) -> Vec<f32> {
        const POINTS: u32 = 400_001;
        let step = (f64::from(to) - f64::from(from)) / f64::from(POINTS - 1);
        let points = (0..POINTS).map(|i| (f64::from(from) + step * f64::from(i)) as f32);
        // Small arguments too, on a logarithmic scale.
        let small = (0..2_000).map(|i| 10f32.powf(-(i as f32) * 0.01) * from.clamp(-1.0, 1.0));
        points.chain(small).filter(|x| (from..=to).contains(x)).collect()
    }

    #[test]
    fn functions_stay_within_their_bounds() {
        for isa in Isa::available() {
            for (name, define, range, bounds) in functions() {
                let bound = if isa.to_string() == "scalar" { bounds[1] } else { bounds[0] };
                let xs = grid(*range.start(), *range.end());
                let ys = isa.run(Sweep(name, &xs));
                let errors = xs.iter().zip(&ys).map(|(x, y)| (ulps(*y, define(f64::from(*x))), x));
                let (worst, at) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
                println!("{name} {isa}: {worst:.2} ulp at {at}");
                assert!(worst <= bound, "{name} on {isa}: {worst} ulp at {at}");
            }
        }
    }

    #[test]
    fn the_normal_distribution_has_a_small_absolute_error() {
        for isa in Isa::available() {
            let xs = grid(-15.0, 15.0);
            for (x, y) in xs.iter().zip(isa.run(Sweep("normal_cdf", &xs))) {
                let want = 0.5 * libm::erfc(-f64::from(*x) / std::f64::consts::SQRT_2);
                assert!((f64::from(y) - want).abs() < 1e-7, "{isa} at {x}: {y} instead of {want}");
            }
        }
    }

    #[test]
    fn extremes_and_nan() {
        const INF: f32 = f32::INFINITY;
        let xs = [-INF, -1e30, -104.5, 89.0, 1e30, INF];
        let expected = [
            ("exp", [0.0, 0.0, 0.0, INF, INF, INF]),
            ("softplus", [0.0, 0.0, 0.0, 89.0, 1e30, INF]),
            ("sigmoid", [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
            ("normal_cdf", [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        ];
        for isa in Isa::available() {
            for (name, want) in expected {
                assert_eq!(isa.run(Sweep(name, &xs)), want, "{name} on {isa}");
            }
            for (name, ..) in functions() {
                assert!(isa.run(Sweep(name, &[f32::NAN]))[0].is_nan(), "{name} of NaN on {isa}");
            }
        }
    }
}
