//! Cross entropy.

use super::isa::{Op, Tier};
use super::math::exp;
use super::split::Runs;
use super::vec::{LANES, V, larger};
use super::{Cpu, GRAIN};
use crate::{Buf, IGNORE};

/// See [`crate::Device::cross_entropy`].
pub(super) fn cross_entropy(
    cpu: &Cpu,
    nll: &mut Buf,
    lse: &mut Buf,
    logits: &Buf,
    targets: &[u32],
    v: usize,
) {
    let t = targets.len();
    let logits = logits.f32();
    assert!(nll.len() == t && lse.len() == t && logits.len() == t * v, "arrays of a loss");
    let rows = (GRAIN / 4).div_ceil(v);
    let parts = (Runs::new(nll.f32_mut(), rows), Runs::new(lse.f32_mut(), rows));
    cpu.pool.split(parts, |index, (nll, lse): (&mut [f32], &mut [f32])| {
        for (j, (nll, lse)) in nll.iter_mut().zip(lse).enumerate() {
            let t = index * rows + j;
            let row = &logits[t * v..][..v];
            *lse = cpu.isa.run(LogSumExp(row));
            *nll = if targets[t] == IGNORE { 0.0 } else { *lse - row[targets[t] as usize] };
        }
    });
}

/// The log of the sum of exponentials of a row: one pass for the maximum, one for the sum, in four vectors
/// of lanes.
struct LogSumExp<'a>(&'a [f32]);

impl Op for LogSumExp<'_> {
    type Out = f32;
    #[inline(always)]
    fn eval<S: Tier>(self) -> f32 {
        let max = row_max(self.0);
        if !max.is_finite() {
            // All logits are -inf, one is +inf, or NaN: the maximum is the answer in each case.
            return max;
        }
        let (body, tail) = self.0.as_chunks::<{ 4 * LANES }>();
        let mut sum = [V::ZERO; 4];
        for chunk in body {
            for j in 0..4 {
                let x = V::load(&chunk[j * LANES..]);
                sum[j] = sum[j].add(x.map(|x| exp::<S>(x - max)));
            }
        }
        for (j, part) in tail.chunks(LANES).enumerate() {
            for (lane, x) in sum[j].0.iter_mut().zip(part) {
                *lane += exp::<S>(x - max);
            }
        }
        let sum = sum[0].add(sum[2]).add(sum[1].add(sum[3])).sum();
        max + f64::from(sum).ln() as f32
    }
}

/// The largest element of a row, or NaN if there is one.
#[inline(always)]
fn row_max(row: &[f32]) -> f32 {
    let mut max = V::splat(f32::NEG_INFINITY);
    // A sum with x - x = 0 would not do for infinities, so NaN is counted apart.
    let mut nan = [0u32; LANES];
    let (body, tail) = row.as_chunks::<LANES>();
    for chunk in body {
        for l in 0..LANES {
            max.0[l] = larger(chunk[l], max.0[l]);
            nan[l] |= u32::from(chunk[l].is_nan());
        }
    }
    for (l, x) in tail.iter().enumerate() {
        max.0[l] = larger(*x, max.0[l]);
        nan[l] |= u32::from(x.is_nan());
    }
    if nan.iter().any(|n| *n != 0) { f32::NAN } else { max.max() }
}

/// See [`crate::Device::cross_entropy_bwd`].
pub(super) fn cross_entropy_bwd(
    cpu: &Cpu,
    dlogits: &mut Buf,
    logits: &Buf,
    lse: &Buf,
    targets: &[u32],
    v: usize,
    scale: f32,
) {
    let (logits, lse) = (logits.f32(), lse.f32());
    assert!(logits.len() == targets.len() * v && dlogits.len() == logits.len(), "arrays of a loss");
    cpu.rows(dlogits.f32_mut(), v, |t, dlogits| {
        if targets[t] != IGNORE {
            cpu.isa.run(LossBwd { dlogits, logits: &logits[t * v..][..v], lse: lse[t], scale });
            dlogits[targets[t] as usize] -= scale;
        }
    });
}

struct LossBwd<'a> {
    dlogits: &'a mut [f32],
    logits: &'a [f32],
    lse: f32,
    scale: f32,
}

impl Op for LossBwd<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        for (d, x) in self.dlogits.iter_mut().zip(self.logits) {
            *d = S::fma(self.scale, exp::<S>(x - self.lse), *d);
        }
    }
}
