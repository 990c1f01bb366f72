//! Elementary functions without branches, so that loops over them vectorise.
//!
//! Coefficients are minimax fits (Remez exchange in 40 digits, relative error); each function states
//! the error of the fit and the bound in f32 that its test holds over a dense sweep. NaN stays NaN.

use super::isa::Tier;
use crate::Act;

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// `2^(n - 1)` from the bits of `n + MAGIC`, for `n` in -126 ..= 128.
#[inline(always)]
fn half_power(magic_bits: u32) -> f32 {
    f32::from_bits((magic_bits << 23).wrapping_add(126 << 23))
}

/// `e^x`: within 2 ulp (3 without fused multiply-add), 0 below -87, infinite above 88.72.
///
/// Fit: `1 + x + x^2 P(x)` of degree 6 on ±ln 2 / 2, 3.1e-9.
#[inline(always)]
pub(super) fn exp<S: Tier>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_375;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let c = if x < -87.0 { -87.0 } else { x };
    let c = if c > 88.8 { 88.8 } else { c };
    let k = S::fma(c, std::f32::consts::LOG2_E, MAGIC);
    let n = k - MAGIC;
    let r = S::fma(n, -LN2_HI, c);
    let r = S::fma(n, -LN2_LO, r);
    let p = S::fma(1.381_500_8e-3, r, 8.368_864_6e-3);
    let p = S::fma(p, r, 4.166_839_3e-2);
    let p = S::fma(p, r, 1.666_651_9e-1);
    let p = S::fma(p, r, 4.999_999_3e-1);
    let p = S::fma(p * r, r, r) + 1.0;
    let y = p * half_power(k.to_bits()) * 2.0;
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.722_84 { f32::INFINITY } else { y }
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

/// `1 / (1 + e^-x)`: within 3 ulp above -87, 0 below -88.73.
#[inline(always)]
pub(super) fn sigmoid<S: Tier>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// The distribution function of the normal law, `(1 + erf(x / sqrt 2)) / 2`: absolute error below 1e-7.
///
/// As `erfc(z) = e^(-z^2) t P(t)` with `t = 1 / (1 + 0.4 z)`. Fit of degree 10, 9.1e-9.
#[inline(always)]
pub(super) fn normal_cdf<S: Tier>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / S::fma(0.4, z, 1.0);
    let p = S::fma(-2.862_81e-2, t, 1.928_235_6e-1);
    let p = S::fma(p, t, -4.866_328_3e-1);
    let p = S::fma(p, t, 5.312_328e-1);
    let p = S::fma(p, t, -2.709_284_8e-1);
    let p = S::fma(p, t, 2.648_767_6e-1);
    let p = S::fma(p, t, 1.321_554_2e-1);
    let p = S::fma(p, t, 2.143_909_6e-1);
    let p = S::fma(p, t, 2.250_152_5e-1);
    let p = S::fma(p, t, 2.257_036_8e-1);
    let tail = 0.5 * (p * t) * exp::<S>(-z * z);
    if x > 0.0 { 1.0 - tail } else { tail }
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
