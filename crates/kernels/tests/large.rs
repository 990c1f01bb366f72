//! Outputs so large that they are written past the caches are those of many small calls, bit for bit.

use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{Act, Buf, Conv, Device, Dtype, Linear, Mat, Scaled, Scan, ScanAt, ScanGrads, Span};

/// Rows of a small call, and how many of these a large one is.
const PIECE: usize = 103;
const PIECES: usize = 10;
const ROWS: usize = PIECE * PIECES;
/// Widths whose rows begin with a cache line, and whose rows do not; 10 pieces are more than 2 MiB.
const WIDTHS: [usize; 2] = [512, 518];
const HEADS: usize = 2;
const STATES: usize = 4;
const RANK: usize = 3;

/// Numbers in ±1 that look random.
fn numbers(dev: &dyn Device, len: usize, seed: u32) -> Buf {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    let values: Vec<f32> = (0..len).map(|_| next()).collect();
    let mut buf = dev.alloc(Dtype::F32, len);
    dev.upload(&mut buf, 0, &values);
    buf
}

fn bits(dev: &dyn Device, x: &Buf) -> Vec<u32> {
    let mut host = vec![0.0; x.len()];
    dev.download(&mut host, x, 0);
    host.iter().map(|x| x.to_bits()).collect()
}

/// Sequences of one piece each.
fn spans(t: usize) -> Vec<Span> {
    (0..t / PIECE).map(|s| Span { slot: s, start: s * PIECE, len: PIECE, pos: 0 }).collect()
}

/// Arrays `[t, d]` and such, made of the same rows whether whole or in pieces.
struct Rows<'a> {
    dev: &'a dyn Device,
    first: usize,
    t: usize,
}

impl Rows<'_> {
    /// Rows of `width` numbers.
    fn input(&self, width: usize, seed: u32) -> Buf {
        let all = numbers(self.dev, ROWS * width, seed);
        let mut part = self.dev.alloc(Dtype::F32, self.t * width);
        self.dev.copy(&mut part, 0, &all, self.first * width, self.t * width);
        part
    }

    /// What is to be overwritten.
    fn output(&self, width: usize) -> Buf {
        numbers(self.dev, self.t * width, 99)
    }
}

/// A name, and a call on rows of `d` numbers.
type Kernel = (&'static str, fn(&Rows, usize) -> Vec<Buf>);

const KERNELS: [Kernel; 11] = [
    ("fill", |r, d| {
        let mut y = r.output(d);
        r.dev.fill(&mut y, -1.5);
        vec![y]
    }),
    ("copy", |r, d| {
        let (mut y, x) = (r.output(d), r.input(d, 1));
        r.dev.copy(&mut y, 0, &x, 0, x.len());
        vec![y]
    }),
    ("copy_within", |r, d| {
        let (mut y, x) = (r.dev.alloc(Dtype::F32, 2 * r.t * d), r.input(d, 1));
        r.dev.copy(&mut y, 0, &x, 0, x.len());
        r.dev.copy_within(&mut y, x.len(), 0, x.len());
        let mut half = r.output(d);
        r.dev.copy(&mut half, 0, &y, x.len(), x.len());
        vec![half]
    }),
    ("add", |r, d| {
        let mut y = r.output(d);
        r.dev.add(&mut y, &r.input(d, 1), &r.input(d, 2));
        vec![y]
    }),
    ("scale", |r, d| {
        let mut y = r.output(d);
        let (x_td, w, s) = (r.input(d, 1), numbers(r.dev, d, 2), r.input(1, 3));
        r.dev.scale(&mut y, Scaled { d, x_td: &x_td, w: &w, w_at: 0, s_t: Some(&s) });
        vec![y]
    }),
    ("add_scaled", |r, d| {
        let mut y = r.input(d, 1);
        r.dev.add_scaled(&mut y, &r.input(1, 2), &r.input(d, 3));
        vec![y]
    }),
    ("glu", |r, d| {
        let (mut y, mut dgate, mut dup) = (r.output(d), r.output(d), r.output(d));
        let (gate, up) = (r.input(d, 1), r.input(d, 2));
        r.dev.glu(&mut y, &gate, &up, Act::Gelu);
        r.dev.glu_bwd(&mut dgate, &mut dup, &r.input(d, 3), &gate, &up, Act::Gelu);
        vec![y, dgate, dup]
    }),
    ("rmsnorm", |r, d| {
        let mut y = r.output(d);
        r.dev.rmsnorm(&mut y, None, &r.input(d, 1), &numbers(r.dev, d, 2), 1e-5);
        vec![y]
    }),
    ("linear", |r, d| {
        let (mut y, x) = (r.output(d), r.input(40, 1));
        let mut w = r.dev.alloc(Dtype::Bf16, 40 * d);
        r.dev.copy(&mut w, 0, &numbers(r.dev, 40 * d, 2), 0, 40 * d);
        let (w, bias) = (Mat::new(d, 40, w), numbers(r.dev, d, 3));
        let a = Linear {
            t: r.t,
            groups: 1,
            o: d,
            i: 40,
            x: &x,
            x_stride: 40,
            x_group: 0,
            x_at: 0,
            w: &w,
            w_at: 0,
            bias: None,
        };
        r.dev.linear(&mut y, Linear { bias: Some(&bias), ..a });
        vec![y]
    }),
    ("conv", |r, d| {
        let (mut y, xz) = (r.output(d), r.input(2 * d, 1));
        let (w, bias) = (numbers(r.dev, 4 * d, 2), numbers(r.dev, d, 3));
        let mut window = r.dev.alloc(Dtype::F32, PIECES * 3 * d);
        let a = Conv {
            t: r.t,
            e: d,
            k: 4,
            act: Act::Silu,
            spans: &spans(r.t),
            xz: &xz,
            w_ek: &w,
            bias_e: Some(&bias),
        };
        r.dev.conv(&mut y, Some(&mut window), a);
        vec![y]
    }),
    ("scan", |r, d| {
        let (mut y, row) = (r.output(d), HEADS * (RANK + 2 * STATES));
        let (x, dt, p, xz) = (r.input(d, 1), r.input(d, 2), r.input(row, 3), r.input(2 * d, 4));
        let (a_log, skip, bias) = (numbers(r.dev, d * STATES, 5), numbers(r.dev, d, 6), numbers(r.dev, d, 7));
        let spans = spans(r.t);
        let a = Scan {
            t: r.t,
            e: d,
            h: HEADS,
            n: STATES,
            r: RANK,
            spans: &spans,
            x_te: &x,
            dt_te: &dt,
            p: &p,
            xz: &xz,
            a_log_en: &a_log,
            d_e: &skip,
            dt_bias_e: &bias,
        };
        let mut saved = r.dev.alloc(Dtype::F32, a.saved_len());
        r.dev.scan(&mut y, None, Some(&mut saved), a);
        let (mut dx, mut ddt, mut dxz, mut dp) = (r.output(d), r.output(d), r.output(2 * d), r.output(row));
        let mut flat = r.dev.alloc(Dtype::F32, d * (STATES + 2));
        let at = ScanAt { a_log: 0, d: d * STATES, dt_bias: d * (STATES + 1) };
        let grads = ScanGrads { dx_te: &mut dx, ddt_te: &mut ddt, dp: &mut dp, dxz: &mut dxz };
        r.dev.scan_bwd(grads, &mut flat, at, &r.input(d, 8), &saved, a);
        vec![y, dx, ddt]
    }),
];

#[test]
fn large_outputs_are_those_of_small_calls() {
    for isa in Isa::available() {
        let dev = Cpu::with(isa, 3);
        for (name, kernel) in KERNELS {
            for d in WIDTHS {
                let whole = kernel(&Rows { dev: &dev, first: 0, t: ROWS }, d);
                assert!(whole[0].bytes() >= 2 << 20, "{name} is large");
                let pieces = (0..PIECES).map(|n| kernel(&Rows { dev: &dev, first: n * PIECE, t: PIECE }, d));
                let mut joined = vec![vec![]; whole.len()];
                for piece in pieces {
                    joined.iter_mut().zip(&piece).for_each(|(all, part)| all.extend(bits(&dev, part)));
                }
                for (n, (whole, joined)) in whole.iter().zip(&joined).enumerate() {
                    assert!(bits(&dev, whole) == *joined, "result {n} of {name} at width {d} on {isa}");
                }
            }
        }
    }
}
