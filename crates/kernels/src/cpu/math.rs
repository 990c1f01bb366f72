//! Elementary functions on vectors.
//!
//! Coefficients are minimax fits (Remez exchange in 40 digits, relative error); each function states
//! the error of the fit and the bound in f32 that its test holds over a dense sweep. NaN stays NaN.

// Eight digits name an f32 for certain, even where fewer would do.
#![allow(clippy::excessive_precision)]

use super::tier::{MAGIC, Tier, V};
use crate::Act;

/// The polynomial with the given coefficients, highest power first, by Horner's rule.
#[inline(always)]
fn polynomial<S: Tier, const N: usize>(x: V<S>, coefficients: [f32; N]) -> V<S> {
    let mut sum = V::splat(coefficients[0]);
    for c in &coefficients[1..] {
        sum = sum.fma(x, V::splat(*c));
    }
    sum
}

/// `e^x`: within 2 ulp (3 without fused multiply-add) down to -87.3, below that within the smallest
/// subnormal more; infinite above 88.72.
///
/// Fit: `1 + x + x^2 P(x)` of degree 6 on ±ln 2 / 2, 3.1e-9.
#[inline(always)]
pub(super) fn exp<S: Tier>(x: V<S>) -> V<S> {
    let x = V::splat(-104.0).larger(x);
    let x = V::splat(89.0).smaller(x);
    let (k, p) = exp_parts(x);
    p.scale(k)
}

/// `k` and `p` with `e^x = p * 2^n` and `k = n + MAGIC`.
#[inline(always)]
fn exp_parts<S: Tier>(x: V<S>) -> (V<S>, V<S>) {
    const LN2_HI: f32 = 0.693_359_375;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let k = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(MAGIC));
    let n = k - V::splat(MAGIC);
    let r = n.fma(V::splat(-LN2_HI), x);
    let r = n.fma(V::splat(-LN2_LO), r);
    let p = polynomial(r, [1.381_500_8e-3, 8.368_864_6e-3, 4.166_839_3e-2, 1.666_651_9e-1, 4.999_999_3e-1]);
    (k, (p * r).fma(r, r) + V::splat(1.0))
}

/// `e^x` for `x <= 0`, or a little more: within 2 ulp (3 without fused multiply-add) down to -87, 0 below that,
/// so that no result is subnormal, which some processors are slow to make.
///
/// Fit as of [`exp`].
#[inline(always)]
pub(super) fn exp_weight<S: Tier>(x: V<S>) -> V<S> {
    let (k, p) = exp_parts(x);
    x.below(V::splat(-87.0), V::zero(), p.scale_whole(k - V::splat(MAGIC)))
}

/// `2^x` for `x` in -125 ..= 0: within 2 ulp (3 without fused multiply-add).
///
/// Fit: `1 + r P(r)` of degree 5 on ±1/2, 1.05 ulp on either side of 1. Near 0 it is as good as rounding
/// lets it be: errors of decays near 1 add up over the longest memories.
#[inline(always)]
pub(super) fn exp2_decay<S: Tier>(x: V<S>) -> V<S> {
    let r = x.off_nearest();
    let p = polynomial(r, [1.322_570_9e-3, 9.671_763e-3, 5.550_891_4e-2, 2.402_223_7e-1, 6.931_468e-1, 1.0]);
    p.scale_whole(x - r)
}

/// The lower end of [`exp2_decay`], which keeps results from being subnormal.
pub(super) const LEAST_POWER: f32 = -125.0;

/// `1 / x` for `x` in 1 ..= 2: within 1 ulp (2 without fused multiply-add). A division would take longer.
///
/// A quadratic fit, 1 %, and two Newton steps.
#[inline(always)]
fn reciprocal<S: Tier>(x: V<S>) -> V<S> {
    let one = V::splat(1.0);
    let mut y = polynomial(x, [3.232_323_2e-1, -1.454_545_5, 2.121_212_1]);
    for _ in 0..2 {
        y = y.fma((-x).fma(y, one), y);
    }
    y
}

/// `ln(1 + u)` for `u` in 0 ..= 1: within 2 ulp.
///
/// Fit: `u + u^2 P(u)` of degree 10, 5.1e-9.
#[inline(always)]
fn log_1p<S: Tier>(u: V<S>) -> V<S> {
    let p = polynomial(
        u,
        [
            -3.318_474_4e-3,
            2.020_459_2e-2,
            -5.766_445_8e-2,
            1.068_055_7e-1,
            -1.535_539_8e-1,
            1.969_540_1e-1,
            -2.495_858_8e-1,
            3.333_051_2e-1,
            -4.999_993e-1,
        ],
    );
    (p * u).fma(u, u)
}

/// `ln(1 + e^x)`, the identity above 20: within 3 ulp (4 without fused multiply-add).
///
/// As `max(x, 0) + ln(1 + u)` with `u = e^-|x|`, so that nothing cancels.
#[inline(always)]
pub(super) fn softplus<S: Tier>(x: V<S>) -> V<S> {
    softplus_of(x, exp(-x.abs()))
}

#[inline(always)]
fn softplus_of<S: Tier>(x: V<S>, u: V<S>) -> V<S> {
    let y = V::zero().larger(x) + log_1p(u);
    V::splat(20.0).below(x, x, y)
}

/// [`softplus`] and its derivative.
#[inline(always)]
pub(super) fn softplus_and_slope<S: Tier>(x: V<S>) -> (V<S>, V<S>) {
    let u = exp(-x.abs());
    (softplus_of(x, u), V::splat(20.0).below(x, V::splat(1.0), sigmoid_of(x, u)))
}

/// `1 / (1 + e^-x)`: within 4 ulp (6 without fused multiply-add) down to -87.3, below that within the
/// smallest subnormal more.
///
/// From `u = e^-|x|`, so that `x * sigmoid(x)` is right where `e^-x` is beyond the range.
#[inline(always)]
pub(super) fn sigmoid<S: Tier>(x: V<S>) -> V<S> {
    sigmoid_of(x, exp(-x.abs()))
}

#[inline(always)]
fn sigmoid_of<S: Tier>(x: V<S>, u: V<S>) -> V<S> {
    let one = V::splat(1.0);
    x.below(V::zero(), u, one) * reciprocal(one + u)
}

/// `x * sigmoid(x)`
#[inline(always)]
pub(super) fn silu<S: Tier>(x: V<S>) -> V<S> {
    x * sigmoid(x)
}

/// The distribution function of the normal law, `(1 + erf(x / sqrt 2)) / 2`: absolute error below 1e-7,
/// within 8 ulp above -3.
///
/// Up to 1 as `1/2 + x Q(x^2)`, fit of degree 5, 7.2e-10. Beyond as `erfc(z) = e^(-z^2) t P(2 t - 1)` with
/// `t = 1 / (1 + 0.4 z)`; around the middle of the range of `t` the coefficients fall off, so Horner's rule
/// loses little. Fit of degree 9, 9.1e-9.
#[inline(always)]
pub(super) fn normal_cdf<S: Tier>(x: V<S>) -> V<S> {
    let (half, one) = (V::splat(0.5), V::splat(1.0));
    let q = x * x;
    let near = [-7.654_206e-6, 1.134_863_7e-4, -1.186_329_9e-3, 9.973_323e-3, -6.649_036e-2, 3.989_422_8e-1];
    let middle = polynomial(q, near).fma(x, half);

    let z = x.abs() * V::splat(std::f32::consts::FRAC_1_SQRT_2);
    let t = one / z.fma(V::splat(0.4), one);
    let far = [
        -5.593_183_6e-5,
        2.498_304_9e-4,
        2.103_710_3e-4,
        -1.920_417_9e-3,
        -3.368_895_7e-3,
        1.134_402_8e-2,
        6.850_193_4e-2,
        1.815_656_7e-1,
        3.218_606_9e-1,
        4.216_127_3e-1,
    ];
    let p = polynomial(t + t - one, far);
    let tail = half * (p * t) * exp(-half * q);
    let tail = V::zero().below(x, one - tail, tail);
    one.below(q, tail, middle)
}

/// sqrt(2 / pi), and the cubic term of the tanh approximation of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// The activation `act`.
#[inline(always)]
pub(super) fn activate<S: Tier>(act: Act, x: V<S>) -> V<S> {
    match act {
        Act::Silu => silu(x),
        Act::Gelu => x * normal_cdf(x),
        // (1 + tanh u) / 2 = sigmoid(2 u), which does not cancel where tanh u is near -1.
        Act::GeluTanh => x * sigmoid(gelu_inner(x)),
        Act::Relu => V::zero().larger(x),
    }
}

/// Twice the argument of the tanh in the tanh approximation of GELU.
#[inline(always)]
fn gelu_inner<S: Tier>(x: V<S>) -> V<S> {
    let cubic = (V::splat(GELU_CUBIC) * x * x).fma(x, x);
    V::splat(2.0 * GELU_SCALE) * cubic
}

/// The derivative of `act`; 0 at the corner of ReLU.
#[inline(always)]
pub(super) fn slope<S: Tier>(act: Act, x: V<S>) -> V<S> {
    let one = V::splat(1.0);
    match act {
        Act::Silu => silu_slope(x, sigmoid(x)),
        Act::Gelu => {
            const DENSITY: f32 = 0.398_942_3;
            let density = V::splat(DENSITY) * exp(V::splat(-0.5) * x * x);
            x.fma(density, normal_cdf(x))
        }
        Act::GeluTanh => {
            let s = sigmoid(gelu_inner(x));
            let inner = V::splat(2.0 * GELU_SCALE) * (V::splat(3.0 * GELU_CUBIC) * x).fma(x, one);
            (x * s * (one - s)).fma(inner, s)
        }
        // Where x is not above 0, the larger of the two is 0 or NaN.
        Act::Relu => V::zero().below(x, one, V::zero().larger(x)),
    }
}

/// The derivative of `x * sigmoid(x)` with `s = sigmoid(x)`.
#[inline(always)]
pub(super) fn silu_slope<S: Tier>(x: V<S>, s: V<S>) -> V<S> {
    let one = V::splat(1.0);
    s * x.fma(one - s, one)
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
    use super::super::isa::Isa;
    use super::super::tier::{LANES, Op};
    use super::*;

    type Function = (&'static str, fn(f64) -> f64, std::ops::RangeInclusive<f32>, [f64; 2]);

    /// Name, definition in f64, range of the sweep, and bound in ulp with and without fused
    /// multiply-add.
    fn functions() -> [Function; 8] {
        [
            ("exp", f64::exp, -87.3..=88.7, [2.0, 3.0]),
            ("exp_weight", f64::exp, -87.0..=1.0, [2.0, 3.0]),
            ("exp2_decay", f64::exp2, LEAST_POWER..=0.0, [2.0, 3.0]),
            ("reciprocal", |x| 1.0 / x, 1.0..=2.0, [1.0, 2.0]),
            ("log_1p", f64::ln_1p, 0.0..=1.0, [2.0, 2.0]),
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
            let mut ys = self.1.to_vec();
            for y in ys.chunks_mut(LANES) {
                let x = V::<S>::load_part(y);
                let f = match self.0 {
                    "exp" => exp(x),
                    "exp_weight" => exp_weight(x),
                    "exp2_decay" => exp2_decay(x),
                    "reciprocal" => reciprocal(x),
                    "log_1p" => log_1p(x),
                    "softplus" => softplus(x),
                    "sigmoid" => sigmoid(x),
                    _ => normal_cdf(x),
                };
                f.store_part(y);
            }
            ys
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
    #[cfg_attr(miri, ignore = "thousands of values")]
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
    #[cfg_attr(miri, ignore = "thousands of values")]
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
