//! Speed of the kernels that carry a model, beside the peak of this machine.
//!
//! `cargo run --release -p zamba-kernels --example speed [-- ISA [THREADS [PART [TOKENS]]]]`, where PART is one
//! of linear, quant, scan, attention and others; TOKENS chooses among the cases of quant.

use std::hint::black_box;
use std::time::Instant;

use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{
    Act, AdamW, AdamWBufs, Attention, Buf, CacheRows, Conv, ConvAt, Device, Dtype, Linear, Mat, Scan, ScanAt,
    ScanGrads, Span, quant,
};

/// Best seconds of a call over about half a second of them.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < 0.5 {
        let call = Instant::now();
        f();
        best = best.min(call.elapsed().as_secs_f64());
    }
    best
}

fn random(dev: &dyn Device, dtype: Dtype, len: usize, scale: f32) -> Buf {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 2.0 * scale
    };
    let values: Vec<f32> = (0..len).map(|_| next()).collect();
    let mut buf = dev.alloc(dtype, len);
    dev.upload(&mut buf, 0, &values);
    buf
}

fn linear(dev: &Cpu, dtype: Dtype, t: usize, i: usize, o: usize, backward: bool) {
    let x = random(dev, Dtype::F32, t * i, 1.0);
    let w = Mat::new(o, i, random(dev, dtype, o * i, 0.1));
    let mut y = dev.alloc(Dtype::F32, t * o);
    let map =
        Linear { t, groups: 1, o, i, x: &x, x_stride: i, x_group: 0, x_at: 0, w: &w, w_at: 0, bias: None };
    let flops = (2 * t * i * o) as f64;
    let forward = time(|| dev.linear(&mut y, map));
    print!("linear {dtype:?} t={t} {i}->{o}: forward {:.1} GFLOP/s", flops / forward / 1e9);
    if t == 1 {
        print!(" ({:.1} GB/s)", (i * o * dtype.size()) as f64 / forward / 1e9);
    }
    if backward {
        let mut dx = dev.alloc(Dtype::F32, t * i);
        let mut dw = dev.alloc(Dtype::F32, o * i);
        let seconds = time(|| dev.linear_dx(&mut dx, &y, map));
        print!(", dx {:.1}", flops / seconds / 1e9);
        let seconds = time(|| dev.linear_dw(&mut dw, 0, None, &y, map));
        print!(", dw {:.1}", flops / seconds / 1e9);
    }
    println!();
}

/// Seconds per token and channel of a scan in a plain loop on one thread, with the library's `expf`: what a
/// compiler makes of the formula. The state of a channel is `[n]`, as such programs keep it.
fn plain_scan(e: usize, h: usize, n: usize) -> f64 {
    const T: usize = 16;
    let values = |len: usize, from: f32| -> Vec<f32> {
        (0..len).map(|i| from + (i * 37 % 64) as f32 / 64.0).collect()
    };
    let (x, dt, z) = (values(T * e, -0.5), values(T * e, -0.5), values(T * e, -0.5));
    let (b, c) = (values(T * h * n, -0.5), values(T * h * n, -0.5));
    let (a, d) = (values(e * n, -2.0), values(e, 0.0));
    let (mut s, mut y) = (vec![0.0f32; e * n], vec![0.0f32; T * e]);
    let seconds = time(|| {
        for t in 0..T {
            for i in 0..e {
                let (te, th) = (t * e + i, t * h + i / (e / h));
                let raw = dt[te];
                let step = if raw > 20.0 { raw } else { raw.exp().ln_1p() };
                let step_x = step * x[te];
                let mut sum = d[i] * x[te];
                for j in 0..n {
                    let state = &mut s[i * n + j];
                    *state = *state * (step * a[i * n + j]).exp() + b[th * n + j] * step_x;
                    sum += *state * c[th * n + j];
                }
                y[te] = sum * z[te] / (1.0 + (-z[te]).exp());
            }
        }
        black_box(&y);
    });
    seconds / (T * e) as f64
}

/// Several matrices in turn: with few tokens so many that no cache holds the weights.
fn quantised(dev: &Cpu, dtype: Dtype, t: usize, i: usize, o: usize) {
    let bytes = dtype.bytes(i * o);
    let count = if t <= 16 { (1usize << 29).div_ceil(bytes).min(24) } else { 2 };
    let w: Vec<Mat> = (0..count)
        .map(|_| {
            if !dtype.is_quantised() {
                return Mat::new(o, i, random(dev, dtype, i * o, 0.1));
            }
            let q = (0..i * o).map(|j| (j * 7919 % 15) as i8 - 7).collect();
            let w = quant::Quants { q, scales: vec![0.01; i * o / quant::GROUP] };
            let mut buf = dev.alloc(dtype, i * o);
            dev.put_bytes(&mut buf, &quant::pack(dtype, o, i, &w));
            Mat::new(o, i, buf)
        })
        .collect();
    let (x, mut y) = (random(dev, Dtype::F32, t * i, 1.0), dev.alloc(Dtype::F32, t * o));
    let seconds = time(|| {
        for w in &w {
            dev.linear(
                &mut y,
                Linear {
                    t,
                    groups: 1,
                    o,
                    i,
                    x: &x,
                    x_stride: i,
                    x_group: 0,
                    x_at: 0,
                    w,
                    w_at: 0,
                    bias: None,
                },
            );
        }
    });
    let seconds = seconds / count as f64;
    let (ops, rate) = ((2 * t * i * o) as f64 / seconds / 1e9, bytes as f64 / seconds / 1e9);
    println!("linear {dtype:?} t={t} {i}->{o}: {ops:.0} GOP/s, weights at {rate:.1} GB/s");
}

fn scan_and_conv(dev: &Cpu, t: usize, e: usize, h: usize, n: usize) {
    let (r, k) = (e / h / 16, 4);
    let spans = [Span { slot: 0, start: 0, len: t, pos: 0 }];
    let f32s = |len, scale| random(dev, Dtype::F32, len, scale);
    let (x_te, dt_te, xz) = (f32s(t * e, 1.0), f32s(t * e, 1.0), f32s(t * 2 * e, 1.0));
    let (p, a_log_en, d_e, dt_bias_e) =
        (f32s(t * h * (r + 2 * n), 1.0), f32s(e * n, 1.0), f32s(e, 1.0), f32s(e, 1.0));
    let scan = Scan {
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
    let buf = |len| dev.alloc(Dtype::F32, len);
    let (mut y, mut saved, mut flat) = (buf(t * e), buf(scan.saved_len()), buf(e * (n + 2)));
    let each = 1e9 / (t * e) as f64;
    let saving = time(|| dev.scan(&mut y, None, Some(&mut saved), scan));
    let forward = time(|| dev.scan(&mut y, None, None, scan));
    let (mut dx, mut ddt, mut dp, mut dxz) = (buf(t * e), buf(t * e), buf(p.len()), buf(t * 2 * e));
    let backward = time(|| {
        let g = ScanGrads { dx_te: &mut dx, ddt_te: &mut ddt, dp: &mut dp, dxz: &mut dxz };
        let at = ScanAt { a_log: 0, d: e * n, dt_bias: e * (n + 1) };
        dev.scan_bwd(g, &mut flat, at, &y, &saved, scan);
    });
    println!(
        "scan t={t} e={e} h={h} n={n}: forward {:.2} ns per token and channel, {:.2} under a tape, backward {:.2}",
        forward * each,
        saving * each,
        backward * each
    );
    let plain = plain_scan(e, h, n);
    println!(
        "scan in a plain loop with expf on one thread: {:.2} ns; ratio {:.1}, per thread {:.1}",
        plain * 1e9,
        plain / (forward * each * 1e-9),
        plain / (forward * each * 1e-9 * dev.threads() as f64)
    );
    let w_ek = f32s(e * k, 1.0);
    let conv = Conv { t, e, k, act: Act::Silu, spans: &spans, xz: &xz, w_ek: &w_ek, bias_e: Some(&d_e) };
    let forward = time(|| dev.conv(&mut y, None, conv));
    let backward = time(|| dev.conv_bwd(&mut dxz, &mut flat, ConvAt { w: 0, bias: None }, &x_te, conv));
    println!(
        "conv t={t} e={e}: forward {:.2} ns per token and channel, backward {:.2}",
        forward * each,
        backward * each
    );
}

fn attention(dev: &Cpu, bf16: bool, t: usize, h: usize, p: usize, backward: bool) {
    let spans = [Span { slot: 0, start: 0, len: t, pos: 0 }];
    let buf = || random(dev, Dtype::F32, t * h * p, 1.0);
    let (q, k, v) = (buf(), buf(), buf());
    let scale = (p as f32).powf(-0.5);
    let a = Attention { t, h, kv: h, p, scale, bf16, spans: &spans, q: &q, k: &k, v: &v, slot_rows: None };
    let (mut y, mut lse) = (buf(), dev.alloc(Dtype::F32, t * h));
    // Half of the pairs are causal; a pair costs two products of width p forward and five backward.
    let flops = (2 * t * t / 2 * h * p) as f64;
    let seconds = time(|| dev.attention(&mut y, Some(&mut lse), a));
    let (speed, ms) = (2.0 * flops / seconds / 1e9, seconds * 1e3);
    let kind = if bf16 { "bf16" } else { "f32" };
    print!("attention {kind} t={t} h={h} p={p}: forward {speed:.1} GFLOP/s ({ms:.2} ms)");
    if backward {
        let (mut dq, mut dk, mut dv) = (buf(), buf(), buf());
        let seconds = time(|| dev.attention_bwd(&mut dq, &mut dk, &mut dv, &q, &y, &lse, a));
        print!(", backward {:.1} ({:.2} ms)", 5.0 * flops / seconds / 1e9, seconds * 1e3);
    }
    println!();
}

/// `t` sequences of `depth` tokens, the last `new` of each as queries.
fn cached(dev: &Cpu, bf16: bool, (t, new, depth): (usize, usize, usize), h: usize, p: usize) {
    let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F32 };
    let cache = || dev.alloc(dtype, t * dev.cache_len(dtype, depth, h, p));
    let (mut keys, mut values) = (cache(), cache());
    for slot in 0..t {
        let spans = [Span { slot, start: 0, len: depth, pos: 0 }];
        let (k, v) =
            (random(dev, Dtype::F32, depth * h * p, 1.0), random(dev, Dtype::F32, depth * h * p, 1.0));
        let rows = CacheRows { kv: h, p, spans: &spans, k: &k, v: &v, slot_rows: depth };
        dev.cache_rows(&mut keys, &mut values, rows);
    }
    let spans: Vec<_> =
        (0..t).map(|slot| Span { slot, start: slot * new, len: new, pos: depth - new }).collect();
    let queries = || random(dev, Dtype::F32, t * new * h * p, 1.0);
    let (q, mut y) = (queries(), queries());
    let (k, v, slot_rows, scale) = (&keys, &values, Some(depth), (p as f32).powf(-0.5));
    let a = Attention { t: t * new, h, kv: h, p, scale, bf16, spans: &spans, q: &q, k, v, slot_rows };
    let seconds = time(|| dev.attention(&mut y, None, a));
    let bytes = (2 * t * depth * h * p * dtype.size()) as f64;
    let flops = (4 * t * new * (depth - new / 2) * h * p) as f64;
    println!(
        "cached {dtype:?} t={t}x{new} depth={depth} h={h} p={p}: {:.2} ms, {:.1} GB/s, {:.1} GFLOP/s",
        seconds * 1e3,
        bytes / seconds / 1e9,
        flops / seconds / 1e9
    );
    let rows = queries();
    let rows = CacheRows { kv: h, p, spans: &spans, k: &rows, v: &rows, slot_rows: depth };
    let seconds = time(|| dev.cache_rows(&mut keys, &mut values, rows));
    println!("cache_rows {dtype:?} t={t}x{new} depth={depth}: {:.1} us", seconds * 1e6);
}

/// Reading memory with all threads, the most that decoding can reach.
fn read(dev: &Cpu) {
    let x = random(dev, Dtype::F32, 256 << 20, 1.0);
    let seconds = time(|| {
        black_box(dev.sum_squares(&x, 0, x.len()));
    });
    println!("read: {:.1} GB/s", x.bytes() as f64 / seconds / 1e9);
}

fn attentions(dev: &Cpu) {
    read(dev);
    for bf16 in [true, false] {
        attention(dev, bf16, 1024, 8, 128, true);
        for t in [512, 1024, 2048, 4096] {
            attention(dev, bf16, t, 16, 464, bf16 && t <= 1024);
        }
        cached(dev, bf16, (1, 1, 4096), 16, 464);
        cached(dev, bf16, (8, 1, 1024), 16, 464);
        cached(dev, bf16, (1, 33, 2048), 8, 64);
    }
}

fn others(dev: &Cpu) {
    let (t, d, v) = (1024, 512, 4096);
    let (x, w) = (random(dev, Dtype::F32, t * d, 1.0), random(dev, Dtype::F32, d, 1.0));
    let (mut y, mut rstd) = (dev.alloc(Dtype::F32, t * d), dev.alloc(Dtype::F32, t));
    let mut dw = dev.alloc(Dtype::F32, d);
    let each = 1e9 / (t * d) as f64;
    let forward = time(|| dev.rmsnorm(&mut y, Some(&mut rstd), &x, &w, 1e-5));
    let backward = time(|| dev.rmsnorm_bwd(&mut y, &mut dw, 0, &x, &x, &rstd, &w));
    println!(
        "rmsnorm t={t} d={d}: forward {:.3} ns per element, backward {:.3}",
        forward * each,
        backward * each
    );
    let (gate, mut dgate, mut dup) =
        (random(dev, Dtype::F32, t * d, 3.0), dev.alloc(Dtype::F32, t * d), dev.alloc(Dtype::F32, t * d));
    for act in [Act::Silu, Act::Gelu, Act::GeluTanh] {
        let forward = time(|| dev.glu(&mut y, &gate, &x, act));
        let backward = time(|| dev.glu_bwd(&mut dgate, &mut dup, &x, &gate, &x, act));
        println!(
            "glu {act:?}: forward {:.3} ns per element, backward {:.3}",
            forward * each,
            backward * each
        );
    }
    let mut logits = random(dev, Dtype::F32, t * v, 5.0);
    let (mut nll, mut lse) = (dev.alloc(Dtype::F32, t), dev.alloc(Dtype::F32, t));
    let targets: Vec<u32> = (0..t as u32).collect();
    let each = 1e9 / (t * v) as f64;
    let forward = time(|| dev.cross_entropy(&mut nll, &mut lse, &logits, &targets, v));
    let backward = time(|| dev.cross_entropy_bwd(&mut logits, &lse, &targets, v, 0.1));
    println!(
        "cross entropy t={t} v={v}: forward {:.3} ns per logit, backward {:.3}",
        forward * each,
        backward * each
    );
    let len = 8 << 20;
    let buf = || dev.alloc(Dtype::F32, len);
    let (mut w, mut m, mut v, mut g) = (buf(), buf(), buf(), random(dev, Dtype::F32, len, 1.0));
    let mut stored = dev.alloc(Dtype::Bf16, len);
    let c =
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0, step: 5 };
    let step = time(|| {
        let bufs = AdamWBufs { w: &mut w, m: &mut m, v: &mut v, g: &mut g, stored: &mut stored };
        dev.adamw(bufs, 0, len, c);
    });
    let squares = time(|| {
        black_box(dev.sum_squares(&g, 0, len));
    });
    let each = 1e9 / len as f64;
    println!(
        "adamw {:.3} ns per element ({:.1} GB/s), sum of squares {:.3}",
        step * each,
        34.0 / (step * each),
        squares * each
    );
}

/// What the machine can do at most.
fn limits(dev: &Cpu) {
    for unit in dev.units() {
        let mut operations = 0;
        let seconds = time(|| operations = dev.operations(unit, 20_000));
        println!("{unit}: {:.3} Tera-operations/s", operations as f64 / seconds / 1e12);
    }
    let mut memory = dev.alloc(Dtype::F32, 1 << 28);
    dev.fill(&mut memory, 1.0);
    let seconds = time(|| {
        black_box(dev.read_bytes(&memory));
    });
    println!("read: {:.1} GB/s", memory.bytes() as f64 / seconds / 1e9);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let isa =
        args.first().map_or_else(Isa::detect, |name| Isa::named(name).unwrap_or_else(|e| panic!("{e}")));
    let threads = args.get(1).map(|n| n.parse().expect("threads is a number"));
    let threads = threads.unwrap_or_else(|| Cpu::new(None).threads());
    let wanted = |part: &str| args.get(2).is_none_or(|only| only == part);
    let dev = &Cpu::with(isa, threads);
    println!("{}", dev.name());
    limits(dev);
    if wanted("quant") {
        let tokens = args.get(3).map(|n| n.parse::<usize>().expect("tokens are a number"));
        for t in [1, 2, 4, 6, 8, 16, 512].into_iter().filter(|t| tokens.is_none_or(|only| only == *t)) {
            // Many tokens, with rows of three lengths: how the sum is cut depends on it.
            let products = [(3712, 14848), (7424, 7424), (14848, 3712)];
            for (i, o) in products.into_iter().take(if t > 16 { 3 } else { 1 }) {
                for dtype in [Dtype::Bf16, Dtype::Q8, Dtype::Q4] {
                    quantised(dev, dtype, t, i, o);
                }
            }
        }
    }
    for dtype in [Dtype::F32, Dtype::Bf16].into_iter().filter(|_| wanted("linear")) {
        linear(dev, dtype, 1, 3712, 14848, false);
        linear(dev, dtype, 4, 3712, 14848, false);
        linear(dev, dtype, 512, 3712, 14848, false);
        for (i, o) in [(256, 1024), (512, 2048), (2048, 512)] {
            linear(dev, dtype, 1024, i, o, true);
        }
    }
    if wanted("scan") {
        // What one core does with all arrays in its second-level cache, then two layers.
        scan_and_conv(&Cpu::with(isa, 1), 128, 256, 1, 16);
        scan_and_conv(dev, 1024, 1024, 2, 16);
        scan_and_conv(dev, 512, 7424, 2, 16);
    }
    if wanted("attention") {
        attentions(dev);
    }
    if wanted("others") {
        others(dev);
    }
}
