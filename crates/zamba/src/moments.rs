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
}

#[derive(Debug)]
struct Sums {
    tokens: u64,
    squares: Vec<f64>,
}

/// Shared between a [`Workspace`](crate::Workspace), whose passes add to it, and whoever wants the result.
pub type SharedMoments = Rc<RefCell<Moments>>;

impl Moments {
    /// Adds the rows of `x`, an input of the linear map with weight `w`.
    pub(crate) fn add(&mut self, dev: &dyn Device, w: &Param, x: &Var) {
        let Moments { of, host } = self;
        host.resize(x.rows() * x.cols(), 0.0);
        dev.download(host, x.buf(), 0);
        let sums = of.entry(w.id()).or_insert_with(|| Sums { tokens: 0, squares: vec![0.0; x.cols()] });
        sums.tokens += x.rows() as u64;
        for row in host.chunks_exact(x.cols()) {
            for (sum, x) in sums.squares.iter_mut().zip(row) {
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
