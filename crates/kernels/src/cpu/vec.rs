//! Sixteen floats that the compiler keeps in vector registers.
//!
//! The lane count is the same in every tier, so the order of accumulation has the same structure
//! everywhere: lane `l` sums the elements whose index is `l` modulo 16, and [`V::sum`] adds the lanes by
//! halving.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::isa::Tier;

/// Lanes of a [`V`].
pub(super) const LANES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct V(pub(super) [f32; LANES]);

impl V {
    pub(super) const ZERO: V = V([0.0; LANES]);

    #[inline(always)]
    pub(super) fn splat(x: f32) -> V {
        V([x; LANES])
    }

    /// The first 16 elements of `x`.
    #[inline(always)]
    pub(super) fn load(x: &[f32]) -> V {
        let mut v = V::ZERO;
        v.0.copy_from_slice(&x[..LANES]);
        v
    }

    /// The first 16 elements of `x`, or all of them and zeros.
    #[inline(always)]
    pub(super) fn load_part(x: &[f32]) -> V {
        if x.len() >= LANES {
            return V::load(x);
        }
        let mut v = V::ZERO;
        for (v, x) in v.0.iter_mut().zip(x) {
            *v = *x;
        }
        v
    }

    #[inline(always)]
    pub(super) fn store(self, y: &mut [f32]) {
        y[..LANES].copy_from_slice(&self.0);
    }

    /// Stores as many lanes as `y` takes.
    #[inline(always)]
    pub(super) fn store_part(self, y: &mut [f32]) {
        if y.len() >= LANES {
            return self.store(y);
        }
        for (y, v) in y.iter_mut().zip(self.0) {
            *y = v;
        }
    }

    #[inline(always)]
    pub(super) fn map(self, f: impl Fn(f32) -> f32) -> V {
        let mut v = self;
        for l in 0..LANES {
            v.0[l] = f(v.0[l]);
        }
        v
    }

    #[inline(always)]
    pub(super) fn zip(self, b: V, f: impl Fn(f32, f32) -> f32) -> V {
        let mut v = self;
        for l in 0..LANES {
            v.0[l] = f(v.0[l], b.0[l]);
        }
        v
    }

    #[inline(always)]
    pub(super) fn add(self, b: V) -> V {
        self.zip(b, |a, b| a + b)
    }

    #[inline(always)]
    pub(super) fn sub(self, b: V) -> V {
        self.zip(b, |a, b| a - b)
    }

    #[inline(always)]
    pub(super) fn mul(self, b: V) -> V {
        self.zip(b, |a, b| a * b)
    }

    /// `self * b + c`
    #[inline(always)]
    pub(super) fn fma<S: Tier>(self, b: V, c: V) -> V {
        let mut v = c;
        for l in 0..LANES {
            v.0[l] = S::fma(self.0[l], b.0[l], c.0[l]);
        }
        v
    }

    /// Lanes added by halving: 8 apart, 4, 2, 1.
    #[inline(always)]
    pub(super) fn sum(self) -> f32 {
        let a = self.0;
        let mut b = [0.0; 8];
        for l in 0..8 {
            b[l] = a[l] + a[l + 8];
        }
        let mut c = [0.0; 4];
        for l in 0..4 {
            c[l] = b[l] + b[l + 4];
        }
        (c[0] + c[2]) + (c[1] + c[3])
    }

    #[inline(always)]
    pub(super) fn max(self) -> f32 {
        let mut m = self.0[0];
        for l in 1..LANES {
            m = larger(m, self.0[l]);
        }
        m
    }

    /// Elements 1, 3, 5 … of the first 32 of `x`.
    #[inline(always)]
    pub(super) fn odds(x: &[f32]) -> V {
        let x = &x[..2 * LANES];
        let mut v = V::ZERO;
        for l in 0..LANES {
            v.0[l] = x[2 * l + 1];
        }
        v
    }
}

/// The larger of two; the second if either is NaN.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Sums of 16 vectors: lane `j` of the result is `rows[j].sum()`, bit for bit.
///
/// Halving two vectors at once keeps all lanes busy: 15 additions instead of 64.
#[inline(always)]
pub(super) fn sums(rows: &[V; LANES]) -> V {
    let mut a = [V::ZERO; 8];
    for j in 0..8 {
        for l in 0..8 {
            a[j].0[l] = rows[j].0[l] + rows[j].0[l + 8];
            a[j].0[l + 8] = rows[j + 8].0[l] + rows[j + 8].0[l + 8];
        }
    }
    let mut b = [V::ZERO; 4];
    for j in 0..4 {
        for s in 0..2 {
            for l in 0..4 {
                b[j].0[8 * s + l] = a[j].0[8 * s + l] + a[j].0[8 * s + l + 4];
                b[j].0[8 * s + l + 4] = a[j + 4].0[8 * s + l] + a[j + 4].0[8 * s + l + 4];
            }
        }
    }
    let mut c = [V::ZERO; 2];
    for j in 0..2 {
        for s in 0..4 {
            for l in 0..2 {
                c[j].0[4 * s + l] = b[j].0[4 * s + l] + b[j].0[4 * s + l + 2];
                c[j].0[4 * s + l + 2] = b[j + 2].0[4 * s + l] + b[j + 2].0[4 * s + l + 2];
            }
        }
    }
    // The halvings met the bits of the row number from the highest down, so lane `j` now holds row `j`.
    let mut d = V::ZERO;
    for s in 0..8 {
        d.0[2 * s] = c[0].0[2 * s] + c[0].0[2 * s + 1];
        d.0[2 * s + 1] = c[1].0[2 * s] + c[1].0[2 * s + 1];
    }
    d
}

/// An element type of weights.
pub(super) trait Weight: Copy + Send + Sync + 'static {
    /// Whether the other operand of a product is rounded to bf16 first.
    const ROUNDS: bool;
    fn load(x: &[Self]) -> V;
    fn load_part(x: &[Self]) -> V;
    fn wide(self) -> f32;
}

impl Weight for f32 {
    const ROUNDS: bool = false;
    #[inline(always)]
    fn load(x: &[f32]) -> V {
        V::load(x)
    }
    #[inline(always)]
    fn load_part(x: &[f32]) -> V {
        V::load_part(x)
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn load(x: &[bf16]) -> V {
        let x = &x[..LANES];
        let mut v = V::ZERO;
        for l in 0..LANES {
            v.0[l] = f32::from_bits(u32::from(x[l].to_bits()) << 16);
        }
        v
    }
    #[inline(always)]
    fn load_part(x: &[bf16]) -> V {
        if x.len() >= LANES {
            return <bf16 as Weight>::load(x);
        }
        let mut v = V::ZERO;
        for (v, x) in v.0.iter_mut().zip(x) {
            *v = x.wide();
        }
        v
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joint_sums_equal_single_sums_bit_for_bit() {
        let mut rows = [V::ZERO; LANES];
        for (j, row) in rows.iter_mut().enumerate() {
            for (l, x) in row.0.iter_mut().enumerate() {
                *x = ((j * 37 + l * 11) as f32 * 0.7311).sin() * 10f32.powi((l % 5) as i32 - 2);
            }
        }
        let joint = sums(&rows);
        for j in 0..LANES {
            assert_eq!(joint.0[j].to_bits(), rows[j].sum().to_bits(), "row {j}");
        }
    }

    #[test]
    fn parts_pad_with_zeros_and_store_no_more_than_fits() {
        let v = V::load_part(&[1.0, 2.0, 3.0]);
        assert_eq!(v.0[..4], [1.0, 2.0, 3.0, 0.0]);
        let mut y = [9.0; 5];
        V::splat(4.0).store_part(&mut y[..3]);
        assert_eq!(y, [4.0, 4.0, 4.0, 9.0, 9.0]);
    }
}
