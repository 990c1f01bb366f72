//! Vectors of sixteen floats, and the tiers of instructions that compute with them.
//!
//! The lane count is the same in every tier, so the order of accumulation has the same structure
//! everywhere: lane `l` sums the elements whose index is `l` modulo 16, and the lanes are added by halving.

use std::ops::{Add, Div, Mul, Neg, Sub};

use half::bf16;

use crate::round_bf16;

/// Lanes of a [`V`].
pub(super) const LANES: usize = 16;

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// A kernel body with its arguments.
///
/// `eval` and everything below it that touches a [`V`] must be `#[inline(always)]`, else the callee is compiled
/// without the tier's features, and slow. Closures and the likes of `array::map` cannot be marked so: keep
/// vectors out of them.
pub(super) trait Op {
    type Out;
    fn eval<S: Tier>(self) -> Self::Out;
}

/// The vector operations that kernels are written in.
///
/// All round as IEEE 754 says, so tiers differ in speed and in [`Tier::fma`] alone.
pub(super) trait Tier: Copy + Send + Sync + 'static {
    /// Sixteen floats.
    type V: Copy;
    /// Whether there are 32 registers of 16 lanes, which decides the shapes of register tiles.
    const WIDE: bool;
    /// The lanes of one register.
    type Part: Copy;
    /// How many of them make up a vector.
    const PARTS: usize;

    /// Part `p` of sixteen floats.
    fn part(x: &[f32; LANES], p: usize) -> Self::Part;
    fn store_part(v: Self::Part, y: &mut [f32; LANES], p: usize);
    /// [`Tier::fma`] of parts.
    fn fma_part(a: Self::Part, b: Self::Part, c: Self::Part) -> Self::Part;
    /// The vector of which `v` is the only part.
    fn whole(v: Self::Part) -> Option<Self::V>;

    fn splat(x: f32) -> Self::V;
    fn load(x: &[f32; LANES]) -> Self::V;
    fn store(v: Self::V, y: &mut [f32; LANES]);
    /// As [`Tier::store`], past the caches where the tier can and `y` is a line of them. The pool orders such writes
    /// before the end of a chunk is known.
    #[inline(always)]
    fn stream(v: Self::V, y: &mut [f32; LANES]) {
        Self::store(v, y);
    }
    /// Widens bf16.
    fn widen(x: &[bf16; LANES]) -> Self::V;
    /// Widens elements 0, 2, 4 … and 1, 3, 5 … of bf16.
    fn pairs(x: &[bf16; 2 * LANES]) -> (Self::V, Self::V);
    /// Elements 0, 2, 4 …
    fn evens(x: &[f32; 2 * LANES]) -> Self::V;
    /// Elements 1, 3, 5 …
    fn odds(x: &[f32; 2 * LANES]) -> Self::V;
    /// Writes elements 0, 2, 4 … and 1, 3, 5 …
    fn interleave(evens: Self::V, odds: Self::V, y: &mut [f32; 2 * LANES]);
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the tier has fused multiply-add and twice where it has not.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`, so `b` where either is NaN.
    fn larger(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`, so `b` where either is NaN.
    fn smaller(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? yes : no`, so `no` where either is NaN.
    fn pick(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `p * 2^n` with `k = n + MAGIC`, for integers `n` in -150 ..= 129, rounded once.
    fn scale(p: Self::V, k: Self::V) -> Self::V;
    /// `x` less the nearest integer (even in the middle), which is exact; for `x` in ±2^22. A zero may have
    /// either sign.
    fn off_nearest(x: Self::V) -> Self::V;
    /// `p * 2^n` for `p` from 0.5 to 2 and an integer `n` in -125 ..= 125. NaN stays NaN.
    fn scale_whole(p: Self::V, n: Self::V) -> Self::V;
    /// Lane `j` of the result is the sum of the lanes of `rows[j]`, added by halving: 8 apart, 4, 2, 1.
    fn sums(rows: [Self::V; LANES]) -> Self::V;
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES];

    /// [`Tier::fma`] of single numbers, for loops that the compiler vectorises.
    fn fma1(a: f32, b: f32, c: f32) -> f32;
    /// Asks for the cache line of `at`, wherever that is, ahead of its use, where the tier can: into the second level, for the
    /// first is small, and working memory fills it.
    fn prefetch_l2<T>(at: *const T);
    /// The same into the first level, for the line `ahead` bytes behind the first of `x`, which may be beyond its end.
    fn prefetch_l1<T>(x: &[T], ahead: usize);
}

/// The tier of any machine.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

/// Sixteen floats in memory.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Array([f32; LANES]);

impl Array {
    #[inline(always)]
    fn each(f: impl Fn(usize) -> f32) -> Array {
        let mut v = [0.0; LANES];
        for (l, v) in v.iter_mut().enumerate() {
            *v = f(l);
        }
        Array(v)
    }
}

impl Tier for Scalar {
    type V = Array;
    const WIDE: bool = false;
    type Part = Array;
    const PARTS: usize = 1;

    #[inline(always)]
    fn part(x: &[f32; LANES], _: usize) -> Array {
        Self::load(x)
    }
    #[inline(always)]
    fn store_part(v: Array, y: &mut [f32; LANES], _: usize) {
        Self::store(v, y);
    }
    #[inline(always)]
    fn fma_part(a: Array, b: Array, c: Array) -> Array {
        Self::fma(a, b, c)
    }
    #[inline(always)]
    fn whole(v: Array) -> Option<Array> {
        Some(v)
    }

    #[inline(always)]
    fn splat(x: f32) -> Array {
        Array([x; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Array {
        Array(*x)
    }
    #[inline(always)]
    fn store(v: Array, y: &mut [f32; LANES]) {
        *y = v.0;
    }
    #[inline(always)]
    fn widen(x: &[bf16; LANES]) -> Array {
        Array::each(|l| f32::from_bits(u32::from(x[l].to_bits()) << 16))
    }
    #[inline(always)]
    fn pairs(x: &[bf16; 2 * LANES]) -> (Array, Array) {
        (Array::each(|l| x[2 * l].wide()), Array::each(|l| x[2 * l + 1].wide()))
    }
    #[inline(always)]
    fn evens(x: &[f32; 2 * LANES]) -> Array {
        Array::each(|l| x[2 * l])
    }
    #[inline(always)]
    fn odds(x: &[f32; 2 * LANES]) -> Array {
        Array::each(|l| x[2 * l + 1])
    }
    #[inline(always)]
    fn interleave(evens: Array, odds: Array, y: &mut [f32; 2 * LANES]) {
        for l in 0..LANES {
            (y[2 * l], y[2 * l + 1]) = (evens.0[l], odds.0[l]);
        }
    }
    #[inline(always)]
    fn add(a: Array, b: Array) -> Array {
        Array::each(|l| a.0[l] + b.0[l])
    }
    #[inline(always)]
    fn sub(a: Array, b: Array) -> Array {
        Array::each(|l| a.0[l] - b.0[l])
    }
    #[inline(always)]
    fn mul(a: Array, b: Array) -> Array {
        Array::each(|l| a.0[l] * b.0[l])
    }
    #[inline(always)]
    fn div(a: Array, b: Array) -> Array {
        Array::each(|l| a.0[l] / b.0[l])
    }
    #[inline(always)]
    fn fma(a: Array, b: Array, c: Array) -> Array {
        Array::each(|l| a.0[l] * b.0[l] + c.0[l])
    }
    #[inline(always)]
    fn larger(a: Array, b: Array) -> Array {
        Array::each(|l| if a.0[l] > b.0[l] { a.0[l] } else { b.0[l] })
    }
    #[inline(always)]
    fn smaller(a: Array, b: Array) -> Array {
        Array::each(|l| if a.0[l] < b.0[l] { a.0[l] } else { b.0[l] })
    }
    #[inline(always)]
    fn pick(a: Array, b: Array, yes: Array, no: Array) -> Array {
        Array::each(|l| if a.0[l] < b.0[l] { yes.0[l] } else { no.0[l] })
    }
    #[inline(always)]
    fn scale(p: Array, k: Array) -> Array {
        // In two factors, because 2^n alone may lie beyond the range where the product does not. The
        // first product is exact.
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
        Array::each(|l| {
            let n = (k.0[l].to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
            let half = n >> 1;
            p.0[l] * power(half) * power(n.wrapping_sub(half))
        })
    }
    #[inline(always)]
    fn off_nearest(x: Array) -> Array {
        Array::each(|l| x.0[l] - ((x.0[l] + MAGIC) - MAGIC))
    }
    #[inline(always)]
    fn scale_whole(p: Array, n: Array) -> Array {
        // The low bits of the sum are n.
        let power = |n: f32| f32::from_bits(((n + MAGIC).to_bits() << 23).wrapping_add(127 << 23));
        Array::each(|l| p.0[l] * power(n.0[l]))
    }
    #[inline(always)]
    fn sums(rows: [Array; LANES]) -> Array {
        Array::each(|j| {
            let mut v = rows[j].0;
            for half in [8, 4, 2, 1] {
                for l in 0..half {
                    v[l] += v[l + half];
                }
            }
            v[0]
        })
    }
    #[inline(always)]
    fn transpose(rows: [Array; LANES]) -> [Array; LANES] {
        let mut columns = [Array([0.0; LANES]); LANES];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = Array::each(|l| rows[l].0[j]);
        }
        columns
    }
    #[inline(always)]
    fn fma1(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn prefetch_l2<T>(_: *const T) {}
    #[inline(always)]
    fn prefetch_l1<T>(_: &[T], _: usize) {}
}

/// Asks for the beginning of each memory page of a row that comes next. The processor sees the rest of the
/// page coming, but not the row, whose pages are far from those of this one.
#[inline(always)]
pub(super) fn prefetch_row<S: Tier>(row: &[f32]) {
    const PAGE: usize = 1024;
    let mut at = 0;
    while at < row.len() {
        for line in 0..3 {
            if let Some(x) = row.get(at + line * LANES) {
                S::prefetch_l2(x);
            }
        }
        at += PAGE - (row.as_ptr().addr() / size_of::<f32>() + at) % PAGE;
    }
}

/// Sixteen floats of a tier, with the operators of arithmetic.
#[derive(Clone, Copy)]
pub(super) struct V<S: Tier>(S::V);

impl<S: Tier> V<S> {
    #[inline(always)]
    pub(super) fn zero() -> Self {
        V::splat(0.0)
    }

    #[inline(always)]
    pub(super) fn wrap(v: S::V) -> Self {
        V(v)
    }

    #[inline(always)]
    pub(super) fn splat(x: f32) -> Self {
        V(S::splat(x))
    }

    #[inline(always)]
    pub(super) fn of(x: &[f32; LANES]) -> Self {
        V(S::load(x))
    }

    /// The first 16 elements of `x`.
    #[inline(always)]
    pub(super) fn load(x: &[f32]) -> Self {
        V(S::load(x.first_chunk().expect("16 elements")))
    }

    /// The first 16 elements of `x`, or all of them and zeros.
    #[inline(always)]
    pub(super) fn load_part(x: &[f32]) -> Self {
        match x.first_chunk() {
            Some(x) => V(S::load(x)),
            None => V(S::load(&padded(x))),
        }
    }

    #[inline(always)]
    pub(super) fn to(self, y: &mut [f32; LANES]) {
        S::store(self.0, y);
    }

    #[inline(always)]
    pub(super) fn store(self, y: &mut [f32]) {
        S::store(self.0, y.first_chunk_mut().expect("16 elements"));
    }

    /// Stores as many lanes as `y` takes.
    #[inline(always)]
    pub(super) fn store_part(self, y: &mut [f32]) {
        match y.first_chunk_mut() {
            Some(y) => S::store(self.0, y),
            None => {
                let lanes = self.lanes();
                for (y, lane) in y.iter_mut().zip(lanes) {
                    *y = lane;
                }
            }
        }
    }

    /// As [`V::store_part`], with `past` past the caches; see [`super::goes_past`].
    #[inline(always)]
    pub(super) fn put(self, y: &mut [f32], past: bool) {
        match y.first_chunk_mut() {
            Some(y) if past => S::stream(self.0, y),
            _ => self.store_part(y),
        }
    }

    /// Adds as many lanes to `y` as it takes.
    #[inline(always)]
    pub(super) fn add_to(self, y: &mut [f32]) {
        (V::load_part(y) + self).store_part(y);
    }

    #[inline(always)]
    pub(super) fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        S::store(self.0, &mut lanes);
        lanes
    }

    /// Elements 0, 2, 4 … and 1, 3, 5 … of `x`, widened.
    #[inline(always)]
    pub(super) fn pairs(x: &[bf16; 2 * LANES]) -> (Self, Self) {
        let (evens, odds) = S::pairs(x);
        (V(evens), V(odds))
    }

    /// Every other element of `x` from the first, up to 16 of them, and zeros.
    #[inline(always)]
    pub(super) fn evens(x: &[f32]) -> Self {
        match x.first_chunk() {
            Some(x) => V(S::evens(x)),
            None => V(S::evens(&padded(x))),
        }
    }

    /// Every other element of `x` from the second, up to 16 of them, and zeros.
    #[inline(always)]
    pub(super) fn odds(x: &[f32]) -> Self {
        match x.first_chunk() {
            Some(x) => V(S::odds(x)),
            None => V(S::odds(&padded(x))),
        }
    }

    /// Adds lanes to every other element of `y` from the first, as many as it has.
    #[inline(always)]
    pub(super) fn add_to_evens(self, y: &mut [f32]) {
        match y.first_chunk_mut() {
            Some(y) => S::interleave(S::add(S::evens(y), self.0), S::odds(y), y),
            None => {
                for (y, lane) in y.chunks_mut(2).zip(self.lanes()) {
                    y[0] += lane;
                }
            }
        }
    }

    /// Stores lanes to every other element of `y` from the second, as many as it has, and 0 between them.
    #[inline(always)]
    pub(super) fn store_odds(self, y: &mut [f32]) {
        match y.first_chunk_mut() {
            Some(y) => S::interleave(S::splat(0.0), self.0, y),
            None => {
                for (y, lane) in y.chunks_exact_mut(2).zip(self.lanes()) {
                    (y[0], y[1]) = (0.0, lane);
                }
            }
        }
    }

    /// `self * b + c`
    #[inline(always)]
    pub(super) fn fma(self, b: Self, c: Self) -> Self {
        V(S::fma(self.0, b.0, c.0))
    }

    /// `self > b ? self : b`
    #[inline(always)]
    pub(super) fn larger(self, b: Self) -> Self {
        V(S::larger(self.0, b.0))
    }

    /// `self < b ? self : b`
    #[inline(always)]
    pub(super) fn smaller(self, b: Self) -> Self {
        V(S::smaller(self.0, b.0))
    }

    /// `self < bound ? yes : no`
    #[inline(always)]
    pub(super) fn below(self, bound: Self, yes: Self, no: Self) -> Self {
        V(S::pick(self.0, bound.0, yes.0, no.0))
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        // The first is NaN only where both are.
        (-self).larger(self)
    }

    /// See [`Tier::scale`].
    #[inline(always)]
    pub(super) fn scale(self, k: Self) -> Self {
        V(S::scale(self.0, k.0))
    }

    /// See [`Tier::off_nearest`].
    #[inline(always)]
    pub(super) fn off_nearest(self) -> Self {
        V(S::off_nearest(self.0))
    }

    /// See [`Tier::scale_whole`].
    #[inline(always)]
    pub(super) fn scale_whole(self, n: Self) -> Self {
        V(S::scale_whole(self.0, n.0))
    }

    /// The sum of the lanes, added by halving: 8 apart, 4, 2, 1.
    #[inline(always)]
    pub(super) fn sum(self) -> f32 {
        let mut v = self.lanes();
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                v[l] += v[l + half];
            }
        }
        v[0]
    }

    /// The largest lane that is not NaN, if there is one.
    #[inline(always)]
    pub(super) fn max(self) -> f32 {
        let mut v = self.lanes();
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                v[l] = v[l].max(v[l + half]);
            }
        }
        v[0]
    }

    /// Lane `j` of the result is `rows[j].sum()`, bit for bit, with fewer operations than 16 sums.
    #[inline(always)]
    pub(super) fn sums(rows: [Self; LANES]) -> Self {
        let mut inner = [rows[0].0; LANES];
        for (inner, row) in inner.iter_mut().zip(&rows) {
            *inner = row.0;
        }
        V(S::sums(inner))
    }

    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    #[inline(always)]
    pub(super) fn transpose(rows: &mut [Self; LANES]) {
        let mut inner = [rows[0].0; LANES];
        for (inner, row) in inner.iter_mut().zip(&*rows) {
            *inner = row.0;
        }
        for (row, inner) in rows.iter_mut().zip(S::transpose(inner)) {
            *row = V(inner);
        }
    }
}

/// `x` and zeros.
#[inline(always)]
fn padded<const N: usize>(x: &[f32]) -> [f32; N] {
    let mut y = [0.0; N];
    for (y, x) in y.iter_mut().zip(x) {
        *y = *x;
    }
    y
}

impl<S: Tier> Add for V<S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        V(S::add(self.0, b.0))
    }
}

impl<S: Tier> Sub for V<S> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        V(S::sub(self.0, b.0))
    }
}

impl<S: Tier> Mul for V<S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        V(S::mul(self.0, b.0))
    }
}

impl<S: Tier> Div for V<S> {
    type Output = Self;
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        V(S::div(self.0, b.0))
    }
}

impl<S: Tier> Neg for V<S> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self * V::splat(-1.0)
    }
}

/// An element type of weights.
pub(super) trait Weight: Copy + Send + Sync + 'static {
    /// Whether the other operand of a product is rounded to bf16 first.
    const ROUNDS: bool;
    fn of<S: Tier>(x: &[Self; LANES]) -> V<S>;
    /// Up to 16 elements, and zeros.
    fn load_part<S: Tier>(x: &[Self]) -> V<S>;
    fn wide(self) -> f32;
}

impl Weight for f32 {
    const ROUNDS: bool = false;
    #[inline(always)]
    fn of<S: Tier>(x: &[f32; LANES]) -> V<S> {
        V(S::load(x))
    }
    #[inline(always)]
    fn load_part<S: Tier>(x: &[f32]) -> V<S> {
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
    fn of<S: Tier>(x: &[bf16; LANES]) -> V<S> {
        V(S::widen(x))
    }
    #[inline(always)]
    fn load_part<S: Tier>(x: &[bf16]) -> V<S> {
        if let Some(x) = x.first_chunk() {
            return V(S::widen(x));
        }
        let mut y = [bf16::ZERO; LANES];
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x;
        }
        V(S::widen(&y))
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// An operand of a product with weights of type `W`.
#[inline(always)]
pub(super) fn operand<W: Weight>(x: f32) -> f32 {
    if W::ROUNDS { round_bf16(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::*;

    /// Every operation on awkward numbers, lane by lane as bits.
    struct All<'a>(&'a [[f32; LANES]; LANES]);

    impl Op for All<'_> {
        type Out = Vec<[u32; LANES]>;
        #[inline(always)]
        fn eval<S: Tier>(self) -> Self::Out {
            let rows = self.0.map(|row| V::<S>::of(&row));
            let (a, b, c) = (rows[0], rows[1], rows[2]);
            let both: Vec<f32> = self.0[..2].concat();
            let small: [bf16; LANES] = self.0[3].map(bf16::from_f32);
            let k = V::splat(MAGIC) + V::of(&std::array::from_fn(|l| l as f32 * 18.0 - 149.0));
            let mut mixed: [f32; 2 * LANES] = std::array::from_fn(|l| both[l] * 0.5);
            b.store_odds(&mut mixed);
            c.add_to_evens(&mut mixed);
            c.store_odds(&mut mixed[..6]);
            let pairs: [bf16; 2 * LANES] = std::array::from_fn(|l| bf16::from_f32(both[l]));
            let pairs = V::pairs(&pairs);
            let mut turned = rows;
            V::transpose(&mut turned);
            let n: V<S> = V::of(&std::array::from_fn(|l| l as f32 * 16.0 - 125.0));
            let results = [
                V::load(&mixed),
                V::load(&mixed[LANES..]),
                a + b,
                a - b,
                a * b,
                a / b,
                -a,
                a.abs(),
                a.larger(b),
                a.smaller(b),
                a.below(b, b, c),
                V::splat(1.7).scale(k),
                V::evens(&both),
                V::odds(&both),
                V::odds(&both[..9]),
                V::load_part(&both[..5]),
                Weight::of(&small),
                Weight::load_part(&small[..3]),
                V::sums(rows),
                V::of(&rows.map(V::sum)),
                pairs.0,
                pairs.1,
                V::splat(1.3).scale_whole(n),
                V::splat(0.5).scale_whole(n),
                (n * V::splat(0.7)).off_nearest() + V::zero(),
                turned[0],
                turned[5],
                turned[15],
            ];
            results.map(|v| v.lanes().map(f32::to_bits)).to_vec()
        }
    }

    fn numbers() -> [[f32; LANES]; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (j, row) in rows.iter_mut().enumerate() {
            for (l, x) in row.iter_mut().enumerate() {
                *x = ((j * 37 + l * 11) as f32 * 0.7311).sin() * 10f32.powi((l % 5) as i32 - 2);
            }
        }
        rows[0][..4].copy_from_slice(&[f32::INFINITY, -0.0, 1e-40, -3.0]);
        rows
    }

    #[test]
    fn tiers_agree_bit_for_bit() {
        let want = Isa::available()[0].run(All(&numbers()));
        for isa in Isa::available() {
            let got = isa.run(All(&numbers()));
            for (j, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got, want, "operation {j} on {isa}");
            }
        }
        assert_eq!(want[18][1..], want[19][1..], "joint and single sums");
        for (result, lane) in [(25, 0), (26, 5), (27, 15)] {
            assert_eq!(want[result], numbers().map(|row| row[lane].to_bits()), "lane {lane} of all rows");
        }
    }

    #[test]
    fn comparisons_take_the_second_of_nan() {
        struct Nan;
        impl Op for Nan {
            type Out = [f32; 4];
            #[inline(always)]
            fn eval<S: Tier>(self) -> [f32; 4] {
                let (x, nan) = (V::<S>::splat(3.0), V::splat(f32::NAN));
                [nan.larger(x), nan.smaller(x), nan.below(x, nan, x), x.below(nan, nan, x)]
                    .map(|v| v.lanes()[0])
            }
        }
        for isa in Isa::available() {
            assert_eq!(isa.run(Nan), [3.0; 4], "{isa}");
        }
    }

    #[test]
    fn parts_store_no_more_than_fits() {
        let mut y = [9.0; 5];
        V::<Scalar>::splat(4.0).store_part(&mut y[..3]);
        V::<Scalar>::splat(1.0).add_to(&mut y[2..4]);
        assert_eq!(y, [4.0, 4.0, 5.0, 10.0, 9.0]);
    }
}
