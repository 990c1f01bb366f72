//! Cross entropy.

use super::math::exp;
use super::norm::fold;
use super::split::Runs;
use super::tier::{LANES, Op, Tier, V};
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
    cpu.split(t * v, parts, |index, (nll, lse): (&mut [f32], &mut [f32])| {
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
        let max = row_max::<S>(self.0);
        if !max.is_finite() {
            // All logits are -inf, one is +inf, or NaN: the maximum is the answer in each case.
            return max;
        }
        let top = V::splat(max);
        let (body, tail) = self.0.as_chunks::<{ 4 * LANES }>();
        let mut sum = [V::<S>::zero(); 4];
        for chunk in body {
            for j in 0..4 {
                sum[j] = sum[j] + exp(V::load(&chunk[j * LANES..]) - top);
            }
        }
        for (j, part) in tail.chunks(LANES).enumerate() {
            // Lanes beyond the row hold -inf, whose exponential is 0.
            let mut lanes = [f32::NEG_INFINITY; LANES];
            lanes[..part.len()].copy_from_slice(part);
            sum[j] = sum[j] + exp(V::of(&lanes) - top);
        }
        max + f64::from(fold(sum).sum()).ln() as f32
    }
}

/// The largest element of a row, or NaN if there is one.
#[inline(always)]
fn row_max<S: Tier>(row: &[f32]) -> f32 {
    let mut max = V::<S>::splat(f32::NEG_INFINITY);
    // x * 0 is NaN for NaN and infinities; -inf is common (masked logits), so only the positive part counts.
    let mut odd = V::<S>::zero();
    let (body, tail) = row.as_chunks::<LANES>();
    for chunk in body {
        let x = V::of(chunk);
        max = x.larger(max);
        odd = odd + V::zero().larger(x) * V::zero();
    }
    let mut most = max.max();
    let mut nan = odd.sum().is_nan() && row.iter().any(|x| x.is_nan());
    for x in tail {
        most = if *x > most { *x } else { most };
        nan |= x.is_nan();
    }
    if nan { f32::NAN } else { most }
}

/// See [`crate::Device::cross_entropy_bwd`].
pub(super) fn cross_entropy_bwd(
    cpu: &Cpu,
    logits: &mut Buf,
    lse: &Buf,
    targets: &[u32],
    v: usize,
    scale: f32,
) {
    let lse = lse.f32();
    assert_eq!(logits.len(), targets.len() * v, "arrays of a loss");
    cpu.rows(logits.f32_mut(), v, |t, row| {
        if targets[t] == IGNORE {
            row.fill(0.0);
        } else {
            let target = targets[t] as usize;
            cpu.isa.run(LossBwd { row, lse: lse[t], scale, target });
        }
    });
}

struct LossBwd<'a> {
    row: &'a mut [f32],
    lse: f32,
    scale: f32,
    target: usize,
}

impl Op for LossBwd<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        let (scale, lse) = (V::<S>::splat(self.scale), V::splat(self.lse));
        for x in self.row.chunks_mut(LANES) {
            (scale * exp(V::load_part(x) - lse)).store_part(x);
        }
        self.row[self.target] -= self.scale;
    }
}
