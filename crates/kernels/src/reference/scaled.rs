//! Rows with factors: the parts of a norm over two arrays side by side.

use super::real::{Real, zeros};

/// `1 / sqrt(mean(u^2) + eps)` of each row `u = [a_t, b_t]`, both of width `d`.
pub(crate) fn pair_rstd<R: Real>(a: &[R], b: &[R], d: usize, eps: f32) -> Vec<R> {
    let rows = a.chunks_exact(d).zip(b.chunks_exact(d));
    rows.map(|(a, b)| {
        let mut squares = R::of(0.0);
        for &v in a.iter().chain(b) {
            squares += v * v;
        }
        R::of(1.0) / (squares / R::of(2.0 * d as f64) + R::of(f64::from(eps))).sqrt()
    })
    .collect()
}

/// Gradient of either array, `x`: `-ds * s^3 * x / (2 d)`.
pub(crate) fn pair_rstd_bwd<R: Real>(ds: &[R], s: &[R], x: &[R], d: usize) -> Vec<R> {
    let pull = |t: usize| -(ds[t] * s[t] * s[t] * s[t]) / R::of(2.0 * d as f64);
    x.iter().enumerate().map(|(j, &x)| pull(j / d) * x).collect()
}

/// `w[c] * s[t] * x[t, c]`, with factors 1 if there is no `s`.
pub(crate) fn scale<R: Real>(x: &[R], w: &[R], s: Option<&[R]>) -> Vec<R> {
    let d = w.len();
    let factor = |t: usize| s.map_or(R::of(1.0), |s| s[t]);
    x.iter().enumerate().map(|(j, &x)| x * factor(j / d) * w[j % d]).collect()
}

/// Gradients of `x`, `w` and `s`; the last is of no use where there is no `s`.
pub(crate) fn scale_bwd<R: Real>(dy: &[R], x: &[R], w: &[R], s: Option<&[R]>) -> (Vec<R>, Vec<R>, Vec<R>) {
    let d = w.len();
    let (mut dw, mut ds) = (zeros(d), zeros(x.len() / d));
    for (j, (&dy, &x)) in dy.iter().zip(x).enumerate() {
        let (t, c) = (j / d, j % d);
        dw[c] += dy * (x * s.map_or(R::of(1.0), |s| s[t]));
        ds[t] += dy * w[c] * x;
    }
    (scale(dy, w, s), dw, ds)
}

/// `y[t, c] + s[t] * x[t, c]`
pub(crate) fn add_scaled<R: Real>(y: &[R], s: &[R], x: &[R]) -> Vec<R> {
    let d = x.len() / s.len();
    y.iter().zip(x).enumerate().map(|(j, (&y, &x))| y + s[j / d] * x).collect()
}

/// Gradients of `s` and `x`.
pub(crate) fn add_scaled_bwd<R: Real>(dy: &[R], s: &[R], x: &[R]) -> (Vec<R>, Vec<R>) {
    let d = x.len() / s.len();
    let mut ds = zeros(s.len());
    for (j, (&dy, &x)) in dy.iter().zip(x).enumerate() {
        ds[j / d] += dy * x;
    }
    (ds, dy.iter().enumerate().map(|(j, &dy)| s[j / d] * dy).collect())
}
