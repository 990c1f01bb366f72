//! Root-mean-square norm.

use super::real::{Real, zeros};

/// `w * x / sqrt(mean(x^2) + eps)` per row, and `1 / sqrt(mean(x^2) + eps)` of each row.
pub(crate) fn rmsnorm<R: Real>(x: &[R], w: &[R], eps: f32) -> (Vec<R>, Vec<R>) {
    let d = w.len();
    let (mut y, mut rstd) = (vec![], vec![]);
    for row in x.chunks_exact(d) {
        let mut squares = R::of(0.0);
        for &v in row {
            squares += v * v;
        }
        let r = R::of(1.0) / (squares / R::of(d as f64) + R::of(f64::from(eps))).sqrt();
        rstd.push(r);
        y.extend((0..d).map(|c| w[c] * (row[c] * r)));
    }
    (y, rstd)
}

/// Gradients of `x` and `w`. With `x^ = x * rstd` and `g = dy * w`:
/// `dx = rstd * (g - x^ * mean(g * x^))`, `dw = sum_t dy * x^`.
pub(crate) fn rmsnorm_bwd<R: Real>(dy: &[R], x: &[R], rstd: &[R], w: &[R]) -> (Vec<R>, Vec<R>) {
    let d = w.len();
    let (mut dx, mut dw) = (vec![], zeros(d));
    for (t, &r) in rstd.iter().enumerate() {
        let (dy, x) = (&dy[t * d..][..d], &x[t * d..][..d]);
        let mut dot = R::of(0.0);
        for c in 0..d {
            let xhat = x[c] * r;
            dot += dy[c] * w[c] * xhat;
            dw[c] += dy[c] * xhat;
        }
        let mean = dot / R::of(d as f64);
        dx.extend((0..d).map(|c| r * (dy[c] * w[c] - x[c] * r * mean)));
    }
    (dx, dw)
}
