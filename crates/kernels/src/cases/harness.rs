//! Runs the kernels of an [`Op`] and holds the results against its definition.

use super::numbers::{Dual, Rounded};
use super::{Checks, Grads, Input, Op, Rng, Role, download, upload, upload_all};
use crate::reference::real::Real;
use crate::{Buf, Device, Dtype, round_bf16};

impl<O: Op> Checks for O {
    fn title(&self) -> String {
        self.name()
    }

    fn numbers(&self) -> usize {
        self.inputs(&mut Rng::new(&self.name())).iter().map(|input| input.values.len()).sum()
    }

    fn has_gradient(&self) -> bool {
        self.has_backward()
    }

    fn check(&self, dev: &dyn Device) -> Result<(), String> {
        let results = Results::run(self, dev)?;
        let x: Vec<Vec<Rounded>> = results.inputs.iter().map(|i| lift(&i.values)).collect();
        let want = self.define(&x);
        for (k, want) in want.iter().enumerate() {
            compare(&format!("output {k}"), &results.outputs[k], want)?;
        }
        let y: Vec<Vec<Rounded>> =
            want.into_iter().map(|y| y.into_iter().map(Real::stored).collect()).collect();
        if !self.has_backward() {
            return Ok(());
        }
        for (k, grad) in self.define_bwd(&x, &y, &lift(&results.dy)).into_iter().enumerate() {
            let start: Vec<Rounded> = lift(&results.grad_starts[k]);
            let want: Vec<Rounded> = start.into_iter().zip(grad).map(|(s, g)| s + g).collect();
            compare(&format!("gradient {k}"), &results.grads[k], &want)?;
        }
        Ok(())
    }

    fn check_gradient(&self) -> Result<(), String> {
        check_gradient(self)
    }

    fn run_bits(&self, dev: &dyn Device) -> Vec<u32> {
        let results = Results::run(self, dev).expect("a kernel wrote outside its parameter");
        results.outputs.iter().chain(&results.grads).flatten().map(|v| v.to_bits()).collect()
    }
}

/// `values` as exact numbers.
fn lift<R: Real>(values: &[f32]) -> Vec<R> {
    values.iter().map(|&v| R::of(f64::from(v))).collect()
}

/// Checks each element against its bound.
fn compare(what: &str, got: &[f32], want: &[Rounded]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what} has {} elements, expected {}", got.len(), want.len()));
    }
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((f64::from(got) - want.value()).abs(), want.bound());
        assert!(bound.is_finite(), "{what}[{i}] has no finite bound");
        // NaN fails too.
        if !matches!(error.partial_cmp(&bound), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            let want = want.value();
            return Err(format!(
                "{what}[{i}] is {got:e}, expected {want:e} within {bound:.1e}, off by {error:.1e}"
            ));
        }
    }
    Ok(())
}

/// Everything that a device computed for a case, and what went in.
struct Results {
    inputs: Vec<Input>,
    outputs: Vec<Vec<f32>>,
    dy: Vec<f32>,
    grad_starts: Vec<Vec<f32>>,
    grads: Vec<Vec<f32>>,
}

impl Results {
    /// Runs forward and backward kernels of `op`.
    fn run<O: Op>(op: &O, dev: &dyn Device) -> Result<Self, String> {
        let mut rng = Rng::new(&op.name());
        let inputs = op.inputs(&mut rng);
        let outputs = op.run(dev, upload_all(dev, &inputs));
        let host_outputs: Vec<Vec<f32>> =
            outputs.iter().filter(|y| y.dtype() == Dtype::F32).map(|y| download(dev, y)).collect();
        let mut results =
            Results { inputs, outputs: host_outputs, dy: vec![], grad_starts: vec![], grads: vec![] };
        if op.has_backward() {
            results.dy = op.dy(&mut rng, outputs[0].len());
            results.run_bwd(op, dev, &outputs, &mut rng)?;
        }
        Ok(results)
    }

    fn run_bwd<O: Op>(&mut self, op: &O, dev: &dyn Device, y: &[Buf], rng: &mut Rng) -> Result<(), String> {
        const GAP: usize = 3;
        let of_role = |role| self.inputs.iter().filter(move |i| i.role == role);
        let own =
            of_role(Role::Signal).map(|i| upload(dev, Dtype::F32, &rng.normals(i.values.len()))).collect();
        let (mut at, mut len) = (vec![], GAP);
        for param in of_role(Role::Param) {
            at.push(len);
            len += param.values.len() + GAP;
        }
        let before = rng.normals(len);
        let mut g = Grads { own, flat: upload(dev, Dtype::F32, &before), at };
        let own_before: Vec<_> = g.own.iter().map(|b| download(dev, b)).collect();

        op.run_bwd(dev, upload_all(dev, &self.inputs), y, &upload(dev, Dtype::F32, &self.dy), &mut g);

        let after = download(dev, &g.flat);
        let (mut own_index, mut param_index) = (0, 0);
        let mut gap = vec![true; len];
        for input in &self.inputs {
            match input.role {
                Role::Fixed => {}
                Role::Signal => {
                    self.grad_starts.push(own_before[own_index].clone());
                    self.grads.push(download(dev, &g.own[own_index]));
                    own_index += 1;
                }
                Role::Param => {
                    let range = g.at[param_index]..g.at[param_index] + input.values.len();
                    self.grad_starts.push(before[range.clone()].to_vec());
                    self.grads.push(after[range.clone()].to_vec());
                    gap[range].fill(false);
                    param_index += 1;
                }
            }
        }
        match (0..len).find(|&i| gap[i] && before[i].to_bits() != after[i].to_bits()) {
            Some(i) => {
                Err(format!("element {i} of the flat gradients, which is no parameter's, was written"))
            }
            None => Ok(()),
        }
    }
}

/// Elements of each input whose derivative is checked one by one; beyond it, directions must do.
const SINGLE_ELEMENTS: usize = 12;

/// Compares the backward definition with dual numbers: single elements of each input, then random
/// directions in the space of all inputs, which no wrong element can hide from.
///
/// Both roads are f64, so they agree to the rounding of f64 (1e-16) times the length of the longest sums
/// (1e4) with some room: 1e-11 of the magnitudes involved. That is far below an ulp of f32.
fn check_gradient<O: Op>(op: &O) -> Result<(), String> {
    const TOLERANCE: f64 = 1e-11;
    if !op.has_backward() {
        return Ok(());
    }
    let mut rng = Rng::new(&op.name());
    let inputs = op.inputs(&mut rng);
    let x: Vec<Vec<f64>> = inputs.iter().map(|i| lift(&i.values)).collect();
    let y = op.define(&x);
    let mut dy = op.dy(&mut rng, y[0].len());
    if op.rounds_dy() || inputs.iter().any(|i| i.dtype == Dtype::Bf16) {
        // The backward kernels round dy; with a dy that is already rounded they are the true derivative.
        dy.iter_mut().for_each(|v| *v = round_bf16(*v));
    }
    let dy: Vec<f64> = lift(&dy);
    let grads = op.define_bwd(&x, &y, &dy);
    let with_grad: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].role != Role::Fixed).collect();
    assert_eq!(grads.len(), with_grad.len(), "number of gradients");

    // Derivative of sum(dy * y) along `direction`, with the sum of the magnitudes of its terms.
    let derivative = |direction: &dyn Fn(usize, usize) -> f64| -> (f64, f64) {
        let lifted = |i: usize| {
            let with_grad = inputs[i].role != Role::Fixed;
            let d = |j| if with_grad { direction(i, j) } else { 0.0 };
            x[i].iter().enumerate().map(|(j, &v)| Dual { v, d: d(j) }).collect()
        };
        let duals: Vec<Vec<Dual>> = (0..x.len()).map(lifted).collect();
        let y = op.define(&duals).swap_remove(0);
        let terms = y.iter().zip(&dy).map(|(y, dy)| y.d * dy);
        terms.fold((0.0, 0.0), |(sum, mass), term| (sum + term, mass + term.abs()))
    };

    for (k, &i) in with_grad.iter().enumerate() {
        assert_eq!(grads[k].len(), x[i].len(), "length of gradient {k}");
        let largest = grads[k].iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        for j in rng.sample(x[i].len(), SINGLE_ELEMENTS) {
            let (want, mass) = derivative(&|i2, j2| f64::from(u8::from((i2, j2) == (i, j))));
            let error = (grads[k][j] - want).abs();
            if error.is_nan() || error > TOLERANCE * (mass + largest) {
                return Err(format!("gradient {k}[{j}] is {:e}, the derivative {want:e}", grads[k][j]));
            }
        }
    }
    for _ in 0..3 {
        let u: Vec<Vec<f64>> = x.iter().map(|x| lift(&rng.normals(x.len()))).collect();
        let (want, mut mass) = derivative(&|i, j| u[i][j]);
        let mut got = 0.0;
        for (k, &i) in with_grad.iter().enumerate() {
            for (g, u) in grads[k].iter().zip(&u[i]) {
                got += g * u;
                mass += (g * u).abs();
            }
        }
        let error: f64 = (got - want).abs();
        if error.is_nan() || error > TOLERANCE * mass {
            return Err(format!("the gradients give {got:e} along a direction, the derivative is {want:e}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::take;
    use crate::reference::Reference;

    /// What a [`Square`] does wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        Value,
        LastGradient,
        Definition,
        Overwrites,
        StraysFromParameter,
    }

    /// `y = w * x^2`, with a fault.
    struct Square(Fault);

    impl Op for Square {
        fn name(&self) -> String {
            "square".into()
        }

        fn inputs(&self, rng: &mut Rng) -> Vec<Input> {
            vec![Input::signal(rng.normals(40)), Input::param(rng.normals(40))]
        }

        fn define<R: Real>(&self, x: &[Vec<R>]) -> Vec<Vec<R>> {
            vec![x[0].iter().zip(&x[1]).map(|(&x, &w)| w * x * x).collect()]
        }

        fn run(&self, dev: &dyn Device, x: Vec<Buf>) -> Vec<Buf> {
            let [x, w] = take(x);
            let (x, w) = (download(dev, &x), download(dev, &w));
            let mut y: Vec<f32> = x.iter().zip(&w).map(|(x, w)| w * x * x).collect();
            if self.0 == Fault::Value {
                y[39] *= 1.0 + 1e-6;
            }
            vec![upload(dev, Dtype::F32, &y)]
        }

        fn define_bwd<R: Real>(&self, x: &[Vec<R>], _y: &[Vec<R>], dy: &[R]) -> Vec<Vec<R>> {
            let wrong = if self.0 == Fault::Definition { 2.0 + 1e-8 } else { 2.0 };
            let dx = (0..40).map(|i| dy[i] * R::of(wrong) * x[1][i] * x[0][i]).collect();
            let dw = (0..40).map(|i| dy[i] * x[0][i] * x[0][i]).collect();
            vec![dx, dw]
        }

        fn run_bwd(&self, dev: &dyn Device, x: Vec<Buf>, _y: &[Buf], dy: &Buf, g: &mut Grads) {
            let [x, w] = take(x);
            let (x, w, dy) = (download(dev, &x), download(dev, &w), download(dev, dy));
            let (mut dx, mut flat) = (download(dev, &g.own[0]), download(dev, &g.flat));
            for i in 0..40 {
                if self.0 == Fault::Overwrites {
                    dx[i] = 0.0;
                }
                dx[i] += dy[i] * 2.0 * w[i] * x[i];
                flat[g.at[0] + i] += dy[i] * x[i] * x[i];
            }
            match self.0 {
                Fault::LastGradient => flat[g.at[0] + 39] *= 1.0 + 1e-6,
                Fault::StraysFromParameter => flat[g.at[0] + 40] += 1.0,
                _ => {}
            }
            dev.upload(&mut g.own[0], 0, &dx);
            dev.upload(&mut g.flat, 0, &flat);
        }
    }

    #[test]
    fn faults_are_found() {
        assert_eq!(Square(Fault::None).check(&Reference), Ok(()));
        assert_eq!(Square(Fault::None).check_gradient(), Ok(()));
        for fault in [Fault::Value, Fault::LastGradient, Fault::Overwrites, Fault::StraysFromParameter] {
            assert!(Square(fault).check(&Reference).is_err());
        }
        assert!(Square(Fault::Definition).check_gradient().is_err());
    }

    #[test]
    fn compare_rejects_what_is_outside_the_bound() {
        let want = [Rounded::of(1.0), Rounded::of(0.0)];
        let next = f32::from_bits(1f32.to_bits() + 1);
        assert!(compare("y", &[1.0, 0.0], &want).is_ok());
        assert!(compare("y", &[next, 0.0], &want).is_err());
        assert!(compare("y", &[1.0, f32::NAN], &want).is_err());
        assert!(compare("y", &[1.0], &want).is_err());
    }
}
