//! From weights to the integers and scales of [`mod@crate::quant`], with the scales that err least.

use half::f16;

use super::Cpu;
use super::split::Runs;
use super::tier::{LANES, MAGIC, Op, Tier, V};
use crate::Dtype;
use crate::quant::{GROUP, LINE, LINES, ROWS, block_bytes, fits, quant_bytes, range};

/// How far quantised weights are from what they stand for: sums over elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantError {
    /// Squares of the differences.
    pub error: f64,
    /// Squares of the weights.
    pub weight: f64,
    /// Squares of the differences, times the importance of their columns.
    pub important_error: f64,
    /// Squares of the weights, times the importance of their columns.
    pub important_weight: f64,
}

impl QuantError {
    /// Root of the mean squared difference over that of the weights.
    pub fn relative(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { (self.error / self.weight).sqrt() }
    }

    /// The same with the importance of columns: an estimate of what a product with the matrix errs by.
    pub fn relative_important(&self) -> f64 {
        if self.important_weight == 0.0 { 0.0 } else { (self.important_error / self.important_weight).sqrt() }
    }
}

impl std::ops::AddAssign for QuantError {
    fn add_assign(&mut self, b: QuantError) {
        self.error += b.error;
        self.weight += b.weight;
        self.important_error += b.important_error;
        self.important_weight += b.important_weight;
    }
}

/// What the largest magnitude of a group is divided by for a first scale. Clipping the largest weights a
/// little can serve all others, the more so the fewer integers there are.
const TRIALS_8: &[f32] = &[127.0, 126.5, 126.0, 125.0];
const TRIALS_4: &[f32] =
    &[6.0, 6.25, 6.5, 6.75, 7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.0, 9.25, 9.5, 9.75, 10.0];

impl Cpu {
    /// Quantises the weights `w [rows, cols]` to `bytes`, in the order of [`mod@crate::quant`].
    ///
    /// For each row and group, of some scales near the largest magnitude over the largest integer, each
    /// improved by least squares, the one is taken whose integers have the least squared error; `importance`
    /// of each column, such as the mean square of the activations it meets, weighs the squares.
    ///
    /// # Panics
    /// If sizes disagree or `dtype` is not quantised.
    pub fn quantise(
        &self,
        dtype: Dtype,
        cols: usize,
        w: &[f32],
        importance: Option<&[f32]>,
        bytes: &mut [u8],
    ) -> QuantError {
        let rows = w.len() / cols;
        assert!(fits(rows, cols) && w.len() == rows * cols && bytes.len() == dtype.bytes(w.len()), "sizes");
        assert!(importance.is_none_or(|i| i.len() == cols), "one importance per column");
        let ones = vec![1.0; if importance.is_none() { cols } else { 0 }];
        let importance = importance.unwrap_or(&ones);
        let (quants, scales) = bytes.split_at_mut(quant_bytes(dtype, w.len()));
        let blocks = cols / GROUP;
        let mut errors = vec![QuantError::default(); rows / ROWS];
        let parts = (
            Runs::new(quants, blocks * block_bytes(dtype)),
            Runs::new(scales, blocks * ROWS * size_of::<f16>()),
            Runs::new(&mut errors, 1),
        );
        type Piece<'a> = (&'a mut [u8], &'a mut [u8], &'a mut [QuantError]);
        self.split(w.len(), parts, |index, (quants, scales, error): Piece| {
            let w = &w[index * ROWS * cols..][..ROWS * cols];
            error[0] = self.isa.run(RowBlock { dtype, cols, w, importance, quants, scales });
        });
        let mut sum = QuantError::default();
        errors.into_iter().for_each(|e| sum += e);
        sum
    }
}

/// Sixteen rows, which lie in the lanes.
struct RowBlock<'a> {
    dtype: Dtype,
    cols: usize,
    w: &'a [f32],
    importance: &'a [f32],
    quants: &'a mut [u8],
    scales: &'a mut [u8],
}

/// A group of columns of 16 rows, column after column.
type Block = [[f32; LANES]; GROUP];

impl Op for RowBlock<'_> {
    type Out = QuantError;

    #[inline(always)]
    fn eval<S: Tier>(self) -> QuantError {
        let mut sum = QuantError::default();
        let (mut x, mut q) = ([[0.0; LANES]; GROUP], [[0.0; LANES]; GROUP]);
        let bytes = block_bytes(self.dtype);
        for g in 0..self.cols / GROUP {
            for row in 0..ROWS {
                for (c, w) in self.w[row * self.cols + g * GROUP..][..GROUP].iter().enumerate() {
                    x[c][row] = *w;
                }
            }
            let importance = self.importance[g * GROUP..].first_chunk().expect("a group of columns");
            let search = Search { x: &x, importance, range: range(self.dtype) };
            let trials = if self.dtype == Dtype::Q8 { TRIALS_8 } else { TRIALS_4 };
            let scale = search.best::<S>(trials);
            // From here on with the scale as it is stored.
            let stored = &mut self.scales[g * ROWS * 2..][..ROWS * 2];
            let mut rounded = [0.0; LANES];
            for ((scale, stored), rounded) in scale.iter().zip(stored.as_chunks_mut().0).zip(&mut rounded) {
                let scale = f16::from_f32(*scale);
                (*stored, *rounded) = (scale.to_le_bytes(), scale.to_f32());
            }
            search.integers::<S>(V::of(&rounded), &mut q);
            store(self.dtype, &q, &mut self.quants[g * bytes..][..bytes]);
            sum += error(&x, &q, &rounded, importance);
        }
        sum
    }
}

/// The search for the scales of a block.
struct Search<'a> {
    x: &'a Block,
    importance: &'a [f32; GROUP],
    range: (i8, i8),
}

impl Search<'_> {
    /// The scale of each row.
    #[inline(always)]
    fn best<S: Tier>(&self, trials: &[f32]) -> [f32; LANES] {
        let mut largest = V::<S>::zero();
        for x in self.x {
            largest = V::of(x).abs().larger(largest);
        }
        // What stays if the squares of huge weights overflow.
        let mut best = (largest * V::splat(1.0 / trials[0])).smaller(V::splat(65_504.0));
        let mut least = V::splat(f32::INFINITY);
        for trial in trials {
            let scale = self.improve::<S>(largest * V::splat(1.0 / trial));
            let error = self.error::<S>(scale);
            best = error.below(least, scale, best);
            least = error.smaller(least);
        }
        best.lanes()
    }

    /// The reciprocal, or 0 for 0.
    #[inline(always)]
    fn reciprocal<S: Tier>(scale: V<S>) -> V<S> {
        // Below this, f16 is zero.
        scale.below(V::splat(2e-8), V::zero(), V::splat(1.0) / scale)
    }

    #[inline(always)]
    fn round<S: Tier>(&self, x: V<S>, reciprocal: V<S>) -> V<S> {
        let (least, most) = self.range;
        let q = (x * reciprocal).larger(V::splat(least.into())).smaller(V::splat(most.into()));
        (q + V::splat(MAGIC)) - V::splat(MAGIC)
    }

    /// The scale with the least squared error for the integers that `scale` gives, to the bits that f16 has.
    #[inline(always)]
    fn improve<S: Tier>(&self, scale: V<S>) -> V<S> {
        let reciprocal = Self::reciprocal(scale);
        let (mut product, mut square) = (V::zero(), V::zero());
        for (x, importance) in self.x.iter().zip(self.importance) {
            let x = V::of(x);
            let q = self.round(x, reciprocal);
            let weighted = q * V::splat(*importance);
            product = weighted.fma(x, product);
            square = weighted.fma(q, square);
        }
        // Without any integer there is nothing to improve.
        let improved = V::splat(1e-30).below(square, product / square, scale);
        // Rounds to 11 bits (Veltkamp's split); the largest f16 is 65,504.
        let split = improved * V::splat(8193.0);
        (split - (split - improved)).larger(V::zero()).smaller(V::splat(65_504.0))
    }

    /// The weighted squared error of each row.
    #[inline(always)]
    fn error<S: Tier>(&self, scale: V<S>) -> V<S> {
        let reciprocal = Self::reciprocal(scale);
        let mut sum = V::zero();
        for (x, importance) in self.x.iter().zip(self.importance) {
            let x = V::of(x);
            let off = x - self.round(x, reciprocal) * scale;
            sum = (off * V::splat(*importance)).fma(off, sum);
        }
        sum
    }

    #[inline(always)]
    fn integers<S: Tier>(&self, scale: V<S>, q: &mut Block) {
        let reciprocal = Self::reciprocal(scale);
        for (x, q) in self.x.iter().zip(q) {
            self.round(V::<S>::of(x), reciprocal).to(q);
        }
    }
}

/// Writes the integers of a block; see [`mod@crate::quant`] for their places.
#[inline(always)]
fn store(dtype: Dtype, q: &Block, bytes: &mut [u8]) {
    if dtype == Dtype::Q8 {
        for (c, q) in q.iter().enumerate() {
            for (row, q) in q.iter().enumerate() {
                bytes[c / 4 * LINE + 4 * row + c % 4] = (*q + 128.0) as u8;
            }
        }
        return;
    }
    for part in 0..LINES / 2 {
        for k in 0..4 {
            let (low, high) = (&q[8 * part + k], &q[8 * part + 4 + k]);
            for row in 0..ROWS {
                let byte = (low[row] + 8.0) as u8 | ((high[row] + 8.0) as u8) << 4;
                bytes[part * LINE + 4 * row + k] = byte;
            }
        }
    }
}

#[inline(always)]
fn error(x: &Block, q: &Block, scale: &[f32; LANES], importance: &[f32; GROUP]) -> QuantError {
    let mut sum = QuantError::default();
    for ((x, q), importance) in x.iter().zip(q).zip(importance) {
        let (mut error, mut weight) = (0.0, 0.0);
        for row in 0..ROWS {
            let off = x[row] - q[row] * scale[row];
            error += off * off;
            weight += x[row] * x[row];
        }
        sum.error += f64::from(error);
        sum.weight += f64::from(weight);
        sum.important_error += f64::from(error * importance);
        sum.important_weight += f64::from(weight * importance);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::*;
    use crate::quant::{unpack, widen};

    fn weights(len: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.05).collect()
    }

    /// The squared error of rounding to nearest with the largest magnitude on the largest integer.
    fn plain_error(dtype: Dtype, w: &[f32]) -> f64 {
        let most = f32::from(range(dtype).1);
        let group = |x: &[f32]| {
            let scale = x.iter().fold(0.0, |m: f32, x| m.max(x.abs())) / most;
            x.iter().map(|x| f64::from(x - (x / scale).round() * scale).powi(2)).sum::<f64>()
        };
        w.chunks(GROUP).map(group).sum()
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of values")]
    fn the_error_is_what_it_says_and_less_than_that_of_plain_rounding() {
        let (rows, cols) = (48, 256);
        let w = weights(rows * cols);
        for (dtype, most, gain) in [(Dtype::Q8, 0.006, 1.0), (Dtype::Q4, 0.1, 0.85)] {
            let mut bytes = vec![0; dtype.bytes(w.len())];
            let error = Cpu::new(Some(2)).quantise(dtype, cols, &w, None, &mut bytes);
            let mut wide = vec![0.0; w.len()];
            widen(dtype, rows, cols, &bytes, &mut wide);
            let found: f64 = w.iter().zip(&wide).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!((found - error.error).abs() < 1e-5 * found, "{found} {error:?}");
            assert!(error.relative() < most, "{}", error.relative());
            assert!(found <= gain * plain_error(dtype, &w), "{found} and {}", plain_error(dtype, &w));
            assert_eq!(error.error, error.important_error);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of values")]
    fn important_columns_err_less() {
        let cols = 256;
        let w = weights(64 * cols);
        let importance: Vec<f32> = (0..cols).map(|c| if c % 16 == 0 { 100.0 } else { 1.0 }).collect();
        let cpu = Cpu::new(Some(2));
        let mut bytes = vec![0; Dtype::Q4.bytes(w.len())];
        let mut error = |importance: Option<&[f32]>| {
            cpu.quantise(Dtype::Q4, cols, &w, importance, &mut bytes);
            let mut wide = vec![0.0; w.len()];
            widen(Dtype::Q4, 64, cols, &bytes, &mut wide);
            let off = w.iter().zip(&wide).enumerate().filter(|(j, _)| j % 16 == 0);
            off.map(|(_, (a, b))| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let (plain, weighted) = (error(None), error(Some(&importance)));
        assert!(weighted < 0.9 * plain, "{weighted} and {plain}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of values")]
    fn zeros_tiny_and_huge_weights_give_bytes_that_a_file_may_hold() {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            let mut w = vec![0.0; 16 * GROUP];
            w[GROUP..2 * GROUP].fill(1e-12);
            w[2 * GROUP..3 * GROUP].fill(-3e38);
            w[400] = -1.0;
            let mut bytes = vec![0; dtype.bytes(w.len())];
            Cpu::new(Some(1)).quantise(dtype, GROUP, &w, None, &mut bytes);
            let found = unpack(dtype, 16, GROUP, &bytes);
            assert!(found.scales.iter().all(|s| s.is_finite() && *s >= 0.0), "{:?}", found.scales);
            assert!(found.q[..2 * GROUP].iter().all(|q| *q == 0));
            assert_eq!(found.q[2 * GROUP..3 * GROUP], [range(dtype).0; GROUP]);
            assert_eq!(found.q.iter().filter(|q| **q != 0).count(), GROUP + 1);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of values")]
    fn the_number_of_threads_leaves_no_trace() {
        let w = weights(64 * 512);
        let run = |cpu: &Cpu| {
            let mut bytes = vec![0; Dtype::Q4.bytes(w.len())];
            cpu.quantise(Dtype::Q4, 512, &w, None, &mut bytes);
            bytes
        };
        for isa in Isa::available() {
            let one = run(&Cpu::with(isa, 1));
            assert!(one == run(&Cpu::with(isa, 3)), "{isa}");
        }
    }
}
