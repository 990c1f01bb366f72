//! Single kernels at the sizes of a 7B layer: a product with bf16 weights beside the arithmetic limit, and the
//! selective scan beside a plain loop.

use std::sync::Arc;
use std::thread;

use serde::Serialize;
use zamba_kernels::cpu::Cpu;
use zamba_kernels::{Buf, Device, Dtype, Linear, Mat, Scan, Span};

use super::limits::{Limits, Machine};
use super::{repeat, seconds, table};
use crate::out;

/// Tokens, width and inner width of the product: `in_proj` of the 7B model.
const PRODUCT: (usize, usize, usize) = (512, 3712, 14848);
/// Tokens, channels, heads, states and rank of the scan.
const SCAN: [usize; 5] = [512, 7424, 2, 16, 232];
/// Calls per repetition of the product, which is short.
const CALLS: usize = 5;

/// What `zamba bench --gemm` found.
#[derive(Debug, Serialize)]
struct Document {
    machine: Machine,
    gemm: Vec<Product>,
    scan: Comparison,
}

/// A product alone; speeds are those of the best call.
#[derive(Debug, Serialize)]
struct Product {
    test: String,
    tflops: f64,
    gemm_tflops: f64,
    fraction_of_gemm: f64,
}

/// The scan alone, beside a loop in scalar code with `expf` on as many threads.
#[derive(Debug, Serialize)]
struct Comparison {
    test: String,
    seconds: f64,
    plain_seconds: f64,
    ratio: f64,
}

pub(crate) fn run(cpu: Arc<Cpu>, repetitions: u32, json: bool) -> anyhow::Result<()> {
    let mut limits = Limits::new(cpu.clone());
    limits.measure();
    let types = [Dtype::Bf16, Dtype::F32];
    let speeds = types.map(|dtype| product(&*cpu, dtype, repetitions));
    let scan = scan(&*cpu, repetitions)?;
    limits.measure();
    let mut gemm = vec![];
    for (dtype, flops) in types.into_iter().zip(speeds) {
        let (flops, limit) = (flops?, limits.arithmetic(dtype));
        let (t, i, o) = PRODUCT;
        gemm.push(Product {
            test: format!("{dtype:?} {t} x {i} -> {o}").to_lowercase(),
            tflops: flops / 1e12,
            gemm_tflops: limit / 1e12,
            fraction_of_gemm: flops / limit,
        });
    }
    let document = Document { machine: limits.machine(), gemm, scan };
    if json { out::json(&document) } else { document.print() }
}

impl Document {
    fn print(&self) -> anyhow::Result<()> {
        out::line(&self.machine.line())?;
        let cells = |p: &Product| {
            let (speed, limit) = (format!("{:.3}", p.tflops), format!("{:.3}", p.gemm_tflops));
            [p.test.clone(), speed, limit, format!("{:.1} %", 100.0 * p.fraction_of_gemm)]
        };
        let rows: Vec<_> = self.gemm.iter().map(cells).collect();
        table(&["product", "TFLOP/s", "limit", "of arithmetic"], &rows)?;
        let Comparison { test, seconds, plain_seconds, ratio } = &self.scan;
        let (ms, plain) = (1e3 * seconds, 1e3 * plain_seconds);
        out::line(&format!("{test}: {ms:.2} ms, a plain loop {plain:.2} ms, {ratio:.1} times as long"))
    }
}

/// Values between -1 and 1 times `scale`, the same for every call.
fn values(len: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 2.0 * scale
    };
    (0..len).map(|_| next()).collect()
}

fn buf(dev: &dyn Device, dtype: Dtype, values: &[f32]) -> Buf {
    let mut buf = dev.alloc(dtype, values.len());
    dev.upload(&mut buf, 0, values);
    buf
}

/// FLOPs per second of the best call.
fn product(dev: &dyn Device, dtype: Dtype, repetitions: u32) -> anyhow::Result<f64> {
    let (t, i, o) = PRODUCT;
    let x = buf(dev, Dtype::F32, &values(t * i, 1.0));
    let w = Mat::new(o, i, buf(dev, dtype, &values(o * i, 0.1)));
    let mut y = dev.alloc(Dtype::F32, t * o);
    let map =
        Linear { t, groups: 1, o, i, x: &x, x_stride: i, x_group: 0, x_at: 0, w: &w, w_at: 0, bias: None };
    let best = || (0..CALLS).map(|_| seconds(|| dev.linear(&mut y, map))).fold(f64::INFINITY, f64::min);
    let mut best = best;
    let times = repeat(repetitions, |_| Ok(best()))?;
    Ok((2 * t * i * o) as f64 / times.into_iter().fold(f64::INFINITY, f64::min))
}

/// Host arrays of a scan, in the order of [`Scan`].
struct Arrays {
    x_te: Vec<f32>,
    dt_te: Vec<f32>,
    p: Vec<f32>,
    xz: Vec<f32>,
    a_log_en: Vec<f32>,
    d_e: Vec<f32>,
    dt_bias_e: Vec<f32>,
}

fn scan(dev: &dyn Device, repetitions: u32) -> anyhow::Result<Comparison> {
    let [t, e, h, n, r] = SCAN;
    let host = Arrays {
        x_te: values(t * e, 1.0),
        dt_te: values(t * e, 1.0),
        p: values(t * h * (r + 2 * n), 1.0),
        xz: values(t * 2 * e, 1.0),
        a_log_en: values(e * n, 1.0),
        d_e: values(e, 1.0),
        dt_bias_e: values(e, 1.0),
    };
    let f32s = |values: &[f32]| buf(dev, Dtype::F32, values);
    let spans = [Span { slot: 0, start: 0, len: t, pos: 0 }];
    let (x_te, dt_te, p, xz) = (f32s(&host.x_te), f32s(&host.dt_te), f32s(&host.p), f32s(&host.xz));
    let (a_log_en, d_e, dt_bias_e) = (f32s(&host.a_log_en), f32s(&host.d_e), f32s(&host.dt_bias_e));
    let mut y = dev.alloc(Dtype::F32, t * e);
    let mut state = dev.alloc(Dtype::F32, n * e);
    let args = Scan {
        t,
        e,
        h,
        n,
        r,
        spans: &spans,
        x_te: &x_te,
        dt_te: &dt_te,
        p: &p,
        xz: &xz,
        a_log_en: &a_log_en,
        d_e: &d_e,
        dt_bias_e: &dt_bias_e,
    };
    let ours = repeat(repetitions, |_| Ok(seconds(|| dev.scan(&mut y, Some(&mut state), None, args))))?;
    let mut plain_y = vec![0.0; t * e];
    let theirs = repeat(repetitions, |_| Ok(seconds(|| plain_scan(&mut plain_y, &host, dev.threads()))))?;
    check(dev, &y, &plain_y);
    let best = |times: Vec<f64>| times.into_iter().fold(f64::INFINITY, f64::min);
    let (seconds, plain_seconds) = (best(ours), best(theirs));
    let test = format!("scan of {t} tokens, {e} channels, {n} states");
    Ok(Comparison { test, seconds, plain_seconds, ratio: plain_seconds / seconds })
}

/// Both loops computed the same, or the comparison is worth nothing.
fn check(dev: &dyn Device, y: &Buf, plain_et: &[f32]) {
    let [t, e, ..] = SCAN;
    let mut ours = vec![0.0; t * e];
    dev.download(&mut ours, y, 0);
    let far = |row: usize, c: usize| (ours[row * e + c] - plain_et[c * t + row]).abs() > 1e-2;
    assert!(!(0..t).any(|row| (0..e).any(|c| far(row, c))), "the plain loop computes something else");
}

/// The scan as it is written down, channels split over `threads`; `y` is `[e, t]`.
fn plain_scan(y_et: &mut [f32], a: &Arrays, threads: usize) {
    let [t, e, ..] = SCAN;
    let share = e.div_ceil(threads.max(1));
    thread::scope(|scope| {
        for (part, y) in y_et.chunks_mut(share * t).enumerate() {
            scope.spawn(move || {
                for (c, y_t) in y.chunks_mut(t).enumerate() {
                    plain_channel(y_t, a, part * share + c);
                }
            });
        }
    });
}

/// All tokens of channel `c`, with the exponentials of the standard library.
fn plain_channel(y_t: &mut [f32], a: &Arrays, c: usize) {
    let [_, e, h, n, r] = SCAN;
    let (width, head) = (h * (r + 2 * n), c / (e / h));
    let mut state = [0.0_f32; SCAN[3]];
    let rates: [f32; SCAN[3]] = std::array::from_fn(|j| -a.a_log_en[c * n + j].exp());
    for (row, y) in y_t.iter_mut().enumerate() {
        let raw = a.dt_te[row * e + c] + a.dt_bias_e[c];
        let dt = if raw > 20.0 { raw } else { raw.exp().ln_1p() };
        let x = a.x_te[row * e + c];
        let bc = &a.p[row * width + head * (r + 2 * n) + r..][..2 * n];
        let mut sum = 0.0;
        for j in 0..n {
            state[j] = (dt * rates[j]).exp() * state[j] + dt * bc[j] * x;
            sum += bc[n + j] * state[j];
        }
        let z = a.xz[row * 2 * e + 2 * c + 1];
        *y = (sum + a.d_e[c] * x) * z / (1.0 + (-z).exp());
    }
}
