//! Cases of `linear` with quantised weights, which have no gradients.
//!
//! Bounds: the integers of weights and activations are exact inputs, and so are their sums; one term per group
//! of columns is left, a product of three numbers.

use super::{Checks, Input, Op, Rng, download, rubbish, upload};
use crate::reference::linear::quantised;
use crate::reference::real::Real;
use crate::{Buf, Device, Dtype, Linear, Mat, quant};
use quant::{GROUP, Quants};

/// What the numbers are like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Values {
    /// Activations from a normal distribution, weights all over their range.
    Normal,
    /// Every weight and activation as large as can be, all products of one sign, so that any register that is
    /// too narrow runs over.
    Largest,
    /// The same with weights of the other sign.
    Least,
    /// Some groups of activations are zero or vanish, some scales are zero.
    Zeros,
}

struct QuantCase {
    dtype: Dtype,
    t: usize,
    groups: usize,
    o: usize,
    i: usize,
    x_stride: usize,
    x_group: usize,
    x_at: usize,
    /// First of the columns of the weights that are used, and how many there are.
    w_at: usize,
    cols: usize,
    bias: bool,
    values: Values,
}

impl QuantCase {
    fn plain(dtype: Dtype, t: usize, o: usize, i: usize, bias: bool) -> Self {
        let values = Values::Normal;
        QuantCase {
            dtype,
            t,
            groups: 1,
            o,
            i,
            x_stride: i,
            x_group: 0,
            x_at: 0,
            w_at: 0,
            cols: i,
            bias,
            values,
        }
    }

    fn args<'a>(&self, x: &'a Buf, w: &'a Mat, bias: Option<&'a Buf>) -> Linear<'a> {
        let &QuantCase { t, groups, o, i, x_stride, x_group, x_at, w_at, .. } = self;
        Linear { t, groups, o, i, x, x_stride, x_group, x_at, w, w_at, bias }
    }

    fn signal(&self, rng: &mut Rng) -> Vec<f32> {
        let mut x = rng.normals(self.t * self.x_stride);
        for (j, x) in x.iter_mut().enumerate() {
            *x = match self.values {
                Values::Normal => *x,
                Values::Largest | Values::Least => 3.5,
                Values::Zeros if (j / GROUP).is_multiple_of(3) => 0.0,
                Values::Zeros if j / GROUP % 3 == 1 => *x * 1e-37,
                Values::Zeros => *x,
            };
        }
        x
    }

    fn integers(&self, rng: &mut Rng) -> Vec<f32> {
        let (least, most) = quant::range(self.dtype);
        let span = f32::from(most) - f32::from(least);
        let any = |z: f32| (f32::from(least) + (z.rem_euclid(1.0) * (span + 1.0)).floor()).min(most.into());
        let len = self.groups * self.o * self.cols;
        match self.values {
            Values::Largest => vec![most.into(); len],
            Values::Least => vec![least.into(); len],
            _ => rng.scaled(len, 10.0).into_iter().map(any).collect(),
        }
    }
}

/// A matrix of `dtype` on `dev` from integers and scales.
fn matrix(dev: &dyn Device, dtype: Dtype, rows: usize, cols: usize, q: &[f32], scales: &[f32]) -> Mat {
    let w = Quants { q: q.iter().map(|q| *q as i8).collect(), scales: scales.to_vec() };
    let mut buf = dev.alloc(dtype, rows * cols);
    dev.put_bytes(&mut buf, &quant::pack(dtype, rows, cols, &w));
    Mat::new(rows, cols, buf)
}

impl Op for QuantCase {
    fn name(&self) -> String {
        let QuantCase { dtype, t, groups, o, i, x_stride, x_group, x_at, w_at, cols, bias, values } = self;
        let layout = format!("stride={x_stride} group={x_group} at={x_at} columns={w_at}/{cols}");
        format!("linear {dtype:?} t={t} groups={groups} o={o} i={i} {layout} bias={bias} {values:?}")
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
        let rows = self.groups * self.o;
        // Scales are whole multiples of 2^-12, which f16 holds.
        let scale = |z: f32| (z.abs() * 256.0).floor() / 4096.0;
        let scales = rng.normals(rows * self.cols / GROUP).into_iter().map(scale).enumerate();
        let some = |(j, scale)| if self.values == Values::Zeros && j % 5 == 0 { 0.0 } else { scale };
        let scales = scales.map(some).collect();
        let mut inputs = vec![self.signal(rng), self.integers(rng), scales];
        if self.bias {
            inputs.push(rng.normals(rows));
        }
        inputs.into_iter().map(Input::fixed).collect()
    }

    fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
        let q = x[1].iter().map(|q| q.value() as i8).collect();
        let w = Quants { q, scales: x[2].iter().map(|s| s.value() as f32).collect() };
        let (rows, empty) = (self.groups * self.o, Buf::host(Dtype::F32, 0));
        let mat = Mat::new(rows, self.cols, Buf::host(self.dtype, rows * self.cols));
        vec![quantised(&self.args(&empty, &mat, None), &x[0], &w, x.get(3).map(|b| &b[..]))]
    }

    fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
        let (q, scales) = (download(dev, &x[1]), download(dev, &x[2]));
        let w = matrix(dev, self.dtype, self.groups * self.o, self.cols, &q, &scales);
        let mut y = rubbish(dev, self.t * self.groups * self.o);
        dev.linear(&mut y, self.args(&x[0], &w, x.get(3)));
        vec![y]
    }

    fn has_backward(&self) -> bool {
        false
    }
}

pub(super) fn cases() -> Vec<Box<dyn Checks>> {
    let mut cases = vec![];
    for dtype in [Dtype::Q8, Dtype::Q4] {
        let plain = |t, o, i, bias| QuantCase::plain(dtype, t, o, i, bias);
        cases.extend([
            plain(1, 16, 128, false),
            plain(1, 48, 256, true),
            plain(2, 32, 128, true),
            plain(3, 16, 384, false),
            plain(5, 16, 128, false),
            plain(7, 112, 256, true),
            plain(8, 48, 640, false),
            plain(13, 32, 256, true),
            plain(16, 48, 128, false),
            plain(31, 80, 256, true),
            plain(33, 16, 384, false),
            // Beyond the block sizes of the fast device.
            plain(1, 1040, 512, false),
            plain(150, 144, 512, true),
            plain(6, 32, 4224, false),
            plain(40, 16, 4224, true),
            plain(66, 16, 32768, false),
            // Two panels of rows that meet the tokens in more than one part of the sum, and more tokens than a chunk has.
            plain(66, 80, 6784, true),
            plain(530, 16, 128, true),
            // A single tile of tokens, with several panels of row blocks in a chunk and an odd number of groups.
            plain(12, 1296, 384, true),
            plain(9, 80, 896, false),
        ]);
        // Few tokens, with more row blocks in a chunk than go side by side.
        cases.extend((2..=8).map(|t| plain(t, 656, 384, true)));
        // A part of the columns of the weights, in whole groups and not.
        let part = |t, o, w_at, i, cols| QuantCase { w_at, cols, ..plain(t, o, i, false) };
        for t in [1, 2, 5, 8, 12, 17, 70] {
            cases.extend([part(t, 80, 0, 640, 1280), part(t, 80, 640, 640, 1280), part(t, 32, 64, 64, 128)]);
            cases.push(QuantCase { bias: true, ..part(t, 144, 200, 900, 1152) });
        }
        for t in [1, 3, 6, 8, 17, 37] {
            for values in [Values::Largest, Values::Least, Values::Zeros] {
                cases.push(QuantCase { values, ..plain(t, 32, 640, false) });
            }
            let groups =
                QuantCase { groups: 2, x_stride: 270, x_group: 135, x_at: 3, ..plain(t, 48, 128, true) };
            cases.push(groups);
        }
    }
    cases.into_iter().map(|c| Box::new(c) as Box<dyn Checks>).collect()
}

/// Checks that each token gets the same bits whole, in pieces, and among others.
pub(super) fn check_cutting(dev: &dyn Device) -> Result<(), String> {
    const TOKENS: usize = 70;
    const PIECES: [&[usize]; 6] =
        [&[1; TOKENS], &[12, 58], &[8, 4, 1, 2, 3, 52], &[69, 1], &[16, 32, 22], &[7, 5, 6, 52]];
    for dtype in [Dtype::Q8, Dtype::Q4] {
        let mut rng = Rng::new("cutting quantised rows");
        let case = QuantCase {
            groups: 2,
            x_stride: 600,
            x_group: 300,
            x_at: 1,
            ..QuantCase::plain(dtype, TOKENS, 32, 256, false)
        };
        let inputs = case.inputs(&mut rng);
        let w = matrix(dev, dtype, 64, 256, &inputs[1].values, &inputs[2].values);
        let call = |x: &[f32]| {
            let t = x.len() / 600;
            let (x, mut y) = (upload(dev, Dtype::F32, x), rubbish(dev, t * 64));
            dev.linear(&mut y, Linear { t, ..case.args(&x, &w, None) });
            download(dev, &y)
        };
        let x = &inputs[0].values;
        let whole = call(x);
        for pieces in PIECES {
            for others in [0, 1, 9] {
                let (mut cut, mut at): (Vec<f32>, usize) = (vec![], 0);
                for len in pieces {
                    let mut rows = rng.normals(others * 600);
                    rows.extend(&x[at * 600..][..len * 600]);
                    cut.extend(&call(&rows)[others * 64..]);
                    at += len;
                }
                if cut.iter().zip(&whole).any(|(a, b)| a.to_bits() != b.to_bits()) {
                    return Err(format!(
                        "linear {dtype:?} on {}: pieces {pieces:?} behind {others} others",
                        dev.name()
                    ));
                }
            }
        }
    }
    Ok(())
}
