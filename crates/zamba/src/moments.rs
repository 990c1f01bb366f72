//! What linear maps see: second moments of their inputs, for quantisation that knows what matters.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use zamba_kernels::Device;

use crate::param::Param;
use crate::pool::Var;

/// Sums of squares of the inputs of linear maps, by weight.
#[derive(Debug, Default)]
pub struct Moments {
    of: BTreeMap<usize, Sums>,
    host: Vec<f32>,
    factors: Vec<f32>,
}

#[derive(Debug)]
struct Sums {
    tokens: u64,
    squares: Vec<f64>,
}

/// Shared between a [`Workspace`](crate::Workspace), whose passes add to it, and whoever wants the result.
pub type SharedMoments = Rc<RefCell<Moments>>;

impl Moments {
    /// Adds the rows of `x`, which columns `at ..` of weight `w` meet, each times its factor if there are any. Tokens count where
    /// the first column does.
    pub(crate) fn add(&mut self, dev: &dyn Device, w: &Param, x: &Var, at: usize, factors: Option<&Var>) {
        let Moments { of, host, factors: by } = self;
        host.resize(x.rows() * x.cols(), 0.0);
        dev.download(host, x.buf(), 0);
        by.clear();
        by.resize(x.rows(), 1.0);
        if let Some(factors) = factors {
            dev.download(by, factors.buf(), 0);
        }
        let empty = || Sums { tokens: 0, squares: vec![0.0; w.mat().cols()] };
        let sums = of.entry(w.id()).or_insert_with(empty);
        sums.tokens += if at == 0 { x.rows() as u64 } else { 0 };
        for (row, by) in host.chunks_exact(x.cols()).zip(by) {
            for (sum, x) in sums.squares[at..].iter_mut().zip(row) {
                let x = x * *by;
                *sum += f64::from(x * x);
            }
        }
    }

    /// The mean square of each input column of weight `id`, if any token has passed it.
    pub fn mean_squares(&self, id: usize) -> Option<Vec<f32>> {
        let sums = self.of.get(&id).filter(|sums| sums.tokens > 0)?;
        Some(sums.squares.iter().map(|sum| (sum / sums.tokens as f64) as f32).collect())
    }
}
