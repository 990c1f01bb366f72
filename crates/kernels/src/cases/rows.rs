//! Cases of the kernels that move rows: `gather_rows`, `embed`, `copy` and `fill`.
//!
//! Bounds: moves are exact, gradients are sums of as many terms as there are rows with the same index.

use super::{Checks, Grads, Input, Op, Rng, rubbish, take, upload};
use crate::reference::real::{Real, zeros};
use crate::{Buf, Device, Dtype, Mat};

/// `gather_rows` and `scatter_rows`, or `embed` and `embed_bwd`: the same map of different storage.
struct RowsCase {
    /// Storage of the table for `embed`; none for `gather_rows`.
    embed: Option<Dtype>,
    /// Rows of the table.
    from: usize,
    d: usize,
    rows: Vec<u32>,
}

impl Op for RowsCase {
    fn name(&self) -> String {
        let op = self.embed.map_or("gather_rows".into(), |dtype| format!("embed {dtype:?}"));
        format!("{op} from={} d={} rows={:?}", self.from, self.d, self.rows)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let values = rng.normals(self.from * self.d);
        vec![
            self.embed
                .map_or_else(|| Input::signal(values.clone()), |dtype| Input::weight(dtype, values.clone())),
        ]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let row = |&row: &u32| &x[0][row as usize * self.d..][..self.d];
        vec![self.rows.iter().flat_map(row).copied().collect()]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let [table] = take(x);
        let mut y = rubbish(dev, self.rows.len() * self.d);
        match self.embed {
            Some(_) => dev.embed(&mut y, &self.rows, &Mat::new(self.from, self.d, table)),
            None => dev.gather_rows(&mut y, &table, &self.rows, self.d),
        }
        vec![y]
    }

    fn define_bwd<R: Real>(&self, _x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
        let mut dx = zeros(self.from * self.d);
        for (dy, &row) in dy.chunks_exact(self.d).zip(&self.rows) {
            for c in 0..self.d {
                dx[row as usize * self.d + c] += dy[c];
            }
        }
        vec![dx]
    }

    fn run_bwd(&self, dev: &dyn Device, _x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
        match self.embed {
            Some(_) => dev.embed_bwd(&mut g.flat, g.at[0], dy, &self.rows, self.d),
            None => dev.scatter_rows(&mut g.own[0], dy, &self.rows, self.d),
        }
    }
}

/// A stretch through another buffer, from one end of it to the other, and back, surrounded by a filled value.
struct CopyCase {
    len: usize,
    through: Dtype,
}

impl Op for CopyCase {
    fn name(&self) -> String {
        format!("copy len={} through {:?}", self.len, self.through)
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        vec![Input::fixed(rng.normals(self.len + 3))]
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let mut y = vec![R::of(0.25); self.len + 5];
        for i in 0..self.len {
            let value = x[0][i + 3];
            y[i + 2] = if self.through == Dtype::Bf16 { value.to_bf16() } else { value };
        }
        vec![y]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let mut middle = upload(dev, self.through, &vec![9.0; 2 * self.len + 1]);
        let mut y = rubbish(dev, self.len + 5);
        dev.fill(&mut y, 0.25);
        dev.copy(&mut middle, 1, &x[0], 3, self.len);
        dev.copy_within(&mut middle, self.len + 1, 1, self.len);
        dev.copy_within(&mut middle, 0, self.len + 1, self.len);
        dev.copy(&mut y, 2, &middle, 0, self.len);
        vec![y]
    }

    fn has_backward(&self) -> bool {
        false
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let mut cases: Vec<Box<dyn Checks>> = vec![];
    for embed in [None, Some(Dtype::F32), Some(Dtype::Bf16)] {
        // Rows that repeat, so gradients meet; the first and the last row.
        for (from, d, rows) in
            [(1, 17, vec![0]), (9, 33, vec![8, 0, 3, 3, 8, 3]), (40, 16, (0..40).rev().collect())]
        {
            cases.push(Box::new(RowsCase { embed, from, d, rows }));
        }
    }
    for (len, through) in [
        (1, Dtype::F32),
        (33, Dtype::F32),
        (1, Dtype::Bf16),
        (1000, Dtype::Bf16),
        (40_000, Dtype::F32),
        (40_000, Dtype::Bf16),
    ] {
        cases.push(Box::new(CopyCase { len, through }));
    }
    cases
}
