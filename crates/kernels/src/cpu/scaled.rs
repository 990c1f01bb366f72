//! Rows with factors: the parts of a norm over two arrays side by side.

use super::norm::{column_sums, dot, fold};
use super::split::Runs;
use super::tier::{LANES, Op, Tier, V};
use super::{Cpu, GRAIN, goes_past};
use crate::{Buf, Scaled};

/// See [`crate::Device::pair_rstd`].
pub(super) fn pair_rstd(cpu: &Cpu, s: &mut Buf, a: &Buf, b: &Buf, eps: f32) {
    assert!(a.len() == b.len() && a.len().is_multiple_of(s.len().max(1)), "arrays of a pair");
    let d = a.len() / s.len().max(1);
    let (s, a, b) = (s.f32_mut(), a.f32(), b.f32());
    let rows = GRAIN.div_ceil(2 * d.max(1));
    cpu.split(2 * a.len(), Runs::new(s, rows), |index, s: &mut [f32]| {
        for (r, s) in s.iter_mut().enumerate() {
            let row = (index * rows + r) * d..(index * rows + r + 1) * d;
            *s = cpu.isa.run(Pair { a: &a[row.clone()], b: &b[row], eps });
        }
    });
}

/// `1 / rms` of two rows side by side.
struct Pair<'a> {
    a: &'a [f32],
    b: &'a [f32],
    eps: f32,
}

impl Op for Pair<'_> {
    type Out = f32;
    #[inline(always)]
    fn eval<S: Tier>(self) -> f32 {
        let squares = dot::<S>(self.a, self.a) + dot::<S>(self.b, self.b);
        1.0 / (squares / (2 * self.a.len()) as f32 + self.eps).sqrt()
    }
}

/// See [`crate::Device::pair_rstd_bwd`].
pub(super) fn pair_rstd_bwd(cpu: &Cpu, dx: &mut Buf, ds: &Buf, s: &Buf, x: &Buf) {
    assert!(dx.len() == x.len() && s.len() == ds.len(), "gradient of a pair");
    let (d, ds, s, x) = (x.len() / s.len().max(1), ds.f32(), s.f32(), x.f32());
    cpu.rows(dx.f32_mut(), d, |t, dx| {
        let factor = -ds[t] * s[t] * s[t] * s[t] / (2 * d) as f32;
        cpu.isa.run(AddTimes { y: dx, x: &x[t * d..][..d], factor });
    });
}

/// `y += factor * x` for one row.
struct AddTimes<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    factor: f32,
}

impl Op for AddTimes<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = S::fma1(self.factor, *x, *y);
        }
    }
}

/// See [`crate::Device::scale`].
pub(super) fn scale(cpu: &Cpu, y: &mut Buf, a: Scaled) {
    let (d, x, w, s) = (a.d, a.x_td.f32(), weights(&a), a.s_t.map(Buf::f32));
    assert_eq!(y.len(), x.len(), "scaled rows");
    let y = y.f32_mut();
    let past = goes_past(y);
    cpu.rows(y, d, |t, y| {
        let factor = s.map_or(1.0, |s| s[t]);
        cpu.isa.run(Times { y, x: &x[t * d..][..d], w, factor, past });
    });
}

fn weights<'a>(a: &Scaled<'a>) -> &'a [f32] {
    assert!(a.x_td.len().is_multiple_of(a.d), "rows to scale");
    assert!(a.s_t.is_none_or(|s| s.len() * a.d == a.x_td.len()), "a factor per row");
    &a.w.f32()[a.w_at..][..a.d]
}

/// `y = factor * w * x` for one row.
pub(super) struct Times<'a> {
    pub(super) y: &'a mut [f32],
    pub(super) x: &'a [f32],
    pub(super) w: &'a [f32],
    pub(super) factor: f32,
    pub(super) past: bool,
}

impl Op for Times<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        let inputs = self.x.chunks(LANES).zip(self.w.chunks(LANES));
        for (y, (x, w)) in self.y.chunks_mut(LANES).zip(inputs) {
            (V::<S>::load_part(x) * V::splat(self.factor) * V::load_part(w)).put(y, self.past);
        }
    }
}

/// See [`crate::Device::scale_bwd`].
pub(super) fn scale_bwd(
    cpu: &Cpu,
    dx: &mut Buf,
    ds: Option<&mut Buf>,
    dw_flat: &mut Buf,
    dw_at: usize,
    dy: &Buf,
    a: Scaled,
) {
    let (d, x, w, s, dy) = (a.d, a.x_td.f32(), weights(&a), a.s_t.map(Buf::f32), dy.f32());
    assert!(dx.len() == x.len() && dy.len() == x.len(), "gradients of scaled rows");
    assert!(ds.as_ref().is_none_or(|ds| ds.len() * d == x.len()), "a gradient per factor");
    let rows = GRAIN.div_ceil(d);
    let parts = (Runs::new(dx.f32_mut(), rows * d), ds.map(|ds| Runs::new(ds.f32_mut(), rows)));
    cpu.split(x.len(), parts, |index, (dx, mut ds): (&mut [f32], Option<&mut [f32]>)| {
        for (r, dx) in dx.chunks_exact_mut(d).enumerate() {
            let t = index * rows + r;
            let (dy, x) = (&dy[t * d..][..d], &x[t * d..][..d]);
            let sum = cpu.isa.run(TimesBwd { dx, dy, x, w, factor: s.map_or(1.0, |s| s[t]) });
            if let Some(ds) = &mut ds {
                ds[r] += sum;
            }
        }
    });
    let dw = &mut dw_flat.f32_mut()[dw_at + a.w_at..][..d];
    column_sums(cpu, dw, dy, Some((x, s)));
}

/// Adds `factor * w * dy` to one row and returns `sum w * x * dy`.
struct TimesBwd<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [f32],
    factor: f32,
}

impl Op for TimesBwd<'_> {
    type Out = f32;
    #[inline(always)]
    fn eval<S: Tier>(self) -> f32 {
        let mut lanes = [V::<S>::zero(); 4];
        let inputs = self.dy.chunks(LANES).zip(self.x.chunks(LANES)).zip(self.w.chunks(LANES));
        for (j, (dx, ((dy, x), w))) in self.dx.chunks_mut(LANES).zip(inputs).enumerate() {
            let g = V::load_part(dy) * V::load_part(w);
            lanes[j % 4] = g.fma(V::load_part(x), lanes[j % 4]);
            (g * V::splat(self.factor)).add_to(dx);
        }
        fold(lanes).sum()
    }
}

/// See [`crate::Device::add_scaled`].
pub(super) fn add_scaled(cpu: &Cpu, y: &mut Buf, s: &Buf, x: &Buf) {
    assert_eq!(y.len(), x.len(), "scaled rows to add");
    let (d, s, x) = (x.len() / s.len().max(1), s.f32(), x.f32());
    cpu.rows(y.f32_mut(), d, |t, y| {
        cpu.isa.run(AddTimes { y, x: &x[t * d..][..d], factor: s[t] });
    });
}

/// See [`crate::Device::add_scaled_bwd`].
pub(super) fn add_scaled_bwd(cpu: &Cpu, ds: &mut Buf, dx: &mut Buf, dy: &Buf, s: &Buf, x: &Buf) {
    assert!(dx.len() == x.len() && dy.len() == x.len() && ds.len() == s.len(), "gradients of added rows");
    let (d, dy, s, x) = (x.len() / s.len().max(1), dy.f32(), s.f32(), x.f32());
    let rows = GRAIN.div_ceil(d.max(1));
    let parts = (Runs::new(dx.f32_mut(), (rows * d).max(1)), Runs::new(ds.f32_mut(), rows));
    cpu.split(x.len(), parts, |index, (dx, ds): (&mut [f32], &mut [f32])| {
        for (r, (dx, ds)) in dx.chunks_exact_mut(d).zip(ds).enumerate() {
            let t = index * rows + r;
            let dy = &dy[t * d..][..d];
            cpu.isa.run(AddTimes { y: dx, x: dy, factor: s[t] });
            *ds += cpu.isa.run(Dot(dy, &x[t * d..][..d]));
        }
    });
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Op for Dot<'_> {
    type Out = f32;
    #[inline(always)]
    fn eval<S: Tier>(self) -> f32 {
        dot::<S>(self.0, self.1)
    }
}
