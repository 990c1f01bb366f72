//! Quantised matrices on every tier, where the list of cases cannot look.

use zamba_kernels::cases;
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::quant::{self, Quants};
use zamba_kernels::reference::Reference;
use zamba_kernels::{Buf, Device, Dtype, Linear, Mat};

fn devices() -> Vec<Box<dyn Device>> {
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Reference)];
    for isa in Isa::available() {
        devices.push(Box::new(Cpu::with(isa, 2)));
    }
    devices
}

fn matrix(dev: &dyn Device, dtype: Dtype, rows: usize, cols: usize) -> Mat {
    let q = (0..rows * cols).map(|j| (j * 7 % 15) as i8 - 7).collect();
    let w = Quants { q, scales: vec![0.25; rows * cols / quant::GROUP] };
    let mut buf = dev.alloc(dtype, rows * cols);
    dev.put_bytes(&mut buf, &quant::pack(dtype, rows, cols, &w));
    Mat::new(rows, cols, buf)
}

fn buf(dev: &dyn Device, values: &[f32]) -> Buf {
    let mut buf = dev.alloc(Dtype::F32, values.len());
    dev.upload(&mut buf, 0, values);
    buf
}

fn map<'a>(t: usize, o: usize, i: usize, x: &'a Buf, w: &'a Mat) -> Linear<'a> {
    Linear { t, groups: 1, o, i, x, x_stride: i, x_group: 0, x_at: 0, w, w_at: 0, bias: None }
}

fn product(dev: &dyn Device, w: &Mat, x: &[f32]) -> Vec<f32> {
    let (o, i) = (w.rows(), w.cols());
    let t = x.len() / i;
    let (x, mut y) = (buf(dev, x), buf(dev, &vec![7.0; t * o]));
    dev.linear(&mut y, map(t, o, i, &x, w));
    let mut out = vec![0.0; t * o];
    dev.download(&mut out, &y, 0);
    out
}

#[test]
fn a_token_that_is_not_finite_gives_nan_and_leaves_others_alone() {
    for dev in devices() {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            let w = matrix(&*dev, dtype, 32, 256);
            for t in [1, 5, 20] {
                let x: Vec<f32> = (0..t * 256).map(|j| (j % 11) as f32 - 4.0).collect();
                let clean = product(&*dev, &w, &x);
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = x.clone();
                    x[(t - 1) * 256 + 140] = bad;
                    let y = product(&*dev, &w, &x);
                    assert!(y[(t - 1) * 32..].iter().all(|y| y.is_nan()), "{} {dtype:?} {bad}", dev.name());
                    assert_eq!(y[..(t - 1) * 32], clean[..(t - 1) * 32], "{}", dev.name());
                }
            }
        }
    }
}

#[test]
fn fused_tiers_give_the_same_bits() {
    // Sums of integers are exact however they are made; only `scalar` rounds products and sums apart.
    let tiers: Vec<Cpu> = Isa::available()
        .into_iter()
        .filter(|isa| isa.to_string() != "scalar")
        .map(|isa| Cpu::with(isa, 2))
        .collect();
    let Some(first) = tiers.first() else {
        eprintln!("NOT TESTED: this machine has no fused tier");
        return;
    };
    let cases = cases::all();
    let quantised = cases.iter().filter(|case| case.name().starts_with("linear Q"));
    let mut count = 0;
    for case in quantised {
        count += 1;
        let want = case.run_bits(first);
        for other in &tiers[1..] {
            assert!(case.run_bits(other) == want, "{} on {}", case.name(), other.name());
        }
    }
    assert!(count > 40, "{count} cases");
}

#[test]
fn bytes_come_back_and_widen() {
    for dev in devices() {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            let w = matrix(&*dev, dtype, 16, 256);
            let bytes = dev.to_bytes(&w.buf);
            let mut wide = vec![0.0; w.len()];
            quant::widen(dtype, 16, 256, &bytes, &mut wide);
            let want: Vec<f32> = (0..w.len()).map(|j| ((j * 7 % 15) as f32 - 7.0) * 0.25).collect();
            assert_eq!(wide, want, "{} {dtype:?}", dev.name());
        }
    }
}

#[test]
fn gradients_are_refused_in_words() {
    for dev in devices() {
        let w = matrix(&*dev, Dtype::Q8, 16, 128);
        let (x, dy) = (buf(&*dev, &[1.0; 128]), buf(&*dev, &[1.0; 16]));
        let run = || dev.linear_dx(&mut buf(&*dev, &[0.0; 128]), &dy, map(1, 16, 128, &x, &w));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let words = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap();
        assert!(words.contains("no gradients"), "{words}");
    }
}
