//! Speed of the kernels that carry a model, beside the peak of this machine.
//!
//! `cargo run --release -p zamba-kernels --example speed [-- ISA [THREADS [quant TOKENS...]]]`

use std::hint::black_box;
use std::time::Instant;

use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{
    Act, AdamW, Attention, Buf, Conv, ConvAt, Device, Dtype, Linear, Mat, Scan, ScanAt, ScanGrads, Span,
    quant,
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
    let map = Linear { t, groups: 1, o, i, x: &x, x_stride: i, x_group: 0, x_at: 0, w: &w, bias: None };
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

/// Reads memory with all threads, nothing else; as fast as weights can come.
fn read_speed(threads: usize) -> f64 {
    let memory: Vec<u64> = (0..1u64 << 26).collect();
    let seconds = time(|| {
        std::thread::scope(|s| {
            for part in memory.chunks(memory.len().div_ceil(threads)) {
                s.spawn(move || {
                    let mut sums = [0u64; 32];
                    for line in part.as_chunks::<32>().0 {
                        for (sum, x) in sums.iter_mut().zip(line) {
                            *sum ^= x;
                        }
                    }
                    black_box(sums);
                });
            }
        });
    });
    (memory.len() * 8) as f64 / seconds / 1e9
}

/// Several matrices in turn, so that no cache holds the weights.
fn quantised(dev: &Cpu, dtype: Dtype, t: usize, i: usize, o: usize) {
    let bytes = dtype.bytes(i * o);
    let count = if t == 1 { (1usize << 30).div_ceil(bytes).min(24) } else { 1 };
    let w: Vec<Mat> = (0..count)
        .map(|_| {
            let mut buf = dev.alloc(dtype, i * o);
            if dtype.is_quantised() {
                let q = (0..i * o).map(|j| (j * 7919 % 15) as i8 - 7).collect();
                let w = quant::Quants { q, scales: vec![0.01; i * o / 64] };
                dev.upload_bytes(&mut buf, 0, &quant::pack(dtype, o, i, &w));
            } else {
                dev.fill(&mut buf, 0.01);
            }
            Mat::new(o, i, buf)
        })
        .collect();
    let (x, mut y) = (random(dev, Dtype::F32, t * i, 1.0), dev.alloc(Dtype::F32, t * o));
    let seconds = time(|| {
        for w in &w {
            dev.linear(
                &mut y,
                Linear { t, groups: 1, o, i, x: &x, x_stride: i, x_group: 0, x_at: 0, w, bias: None },
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
    let forward = time(|| dev.scan(&mut y, None, Some(&mut saved), scan));
    let (mut dx, mut ddt, mut dp, mut dxz) = (buf(t * e), buf(t * e), buf(p.len()), buf(t * 2 * e));
    let backward = time(|| {
        let g = ScanGrads { dx_te: &mut dx, ddt_te: &mut ddt, dp: &mut dp, dxz: &mut dxz };
        let at = ScanAt { a_log: 0, d: e * n, dt_bias: e * (n + 1) };
        dev.scan_bwd(g, &mut flat, at, &y, &saved, scan);
    });
    println!(
        "scan t={t} e={e} h={h} n={n}: forward {:.2} ns per token and channel, backward {:.2}",
        forward * each,
        backward * each
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

fn attention(dev: &Cpu, t: usize, h: usize, p: usize) {
    let spans = [Span { slot: 0, start: 0, len: t, pos: 0 }];
    let buf = || random(dev, Dtype::F32, t * h * p, 1.0);
    let (q, k, v) = (buf(), buf(), buf());
    let scale = (p as f32).powf(-0.5);
    let a = Attention { t, h, kv: h, p, scale, spans: &spans, q: &q, k: &k, v: &v, slot_rows: None };
    let (mut y, mut lse) = (buf(), dev.alloc(Dtype::F32, t * h));
    // Half of the pairs are causal; a pair costs two products of width p forward and five backward.
    let flops = (2 * t * t / 2 * h * p) as f64;
    let forward = time(|| dev.attention(&mut y, Some(&mut lse), a));
    let (mut dq, mut dk, mut dv) = (buf(), buf(), buf());
    let backward = time(|| dev.attention_bwd(&mut dq, &mut dk, &mut dv, &q, &y, &lse, a));
    println!(
        "attention t={t} h={h} p={p}: forward {:.1} GFLOP/s ({:.2} ms), backward {:.1} ({:.2} ms)",
        2.0 * flops / forward / 1e9,
        forward * 1e3,
        5.0 * flops / backward / 1e9,
        backward * 1e3
    );
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
    let logits = random(dev, Dtype::F32, t * v, 5.0);
    let mut dlogits = dev.alloc(Dtype::F32, t * v);
    let (mut nll, mut lse) = (dev.alloc(Dtype::F32, t), dev.alloc(Dtype::F32, t));
    let targets: Vec<u32> = (0..t as u32).collect();
    let each = 1e9 / (t * v) as f64;
    let forward = time(|| dev.cross_entropy(&mut nll, &mut lse, &logits, &targets, v));
    let backward = time(|| dev.cross_entropy_bwd(&mut dlogits, &logits, &lse, &targets, v, 0.1));
    println!(
        "cross entropy t={t} v={v}: forward {:.3} ns per logit, backward {:.3}",
        forward * each,
        backward * each
    );
    let len = 8 << 20;
    let buf = || dev.alloc(Dtype::F32, len);
    let (mut w, mut m, mut v, g) = (buf(), buf(), buf(), random(dev, Dtype::F32, len, 1.0));
    let c =
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0, step: 5 };
    let step = time(|| dev.adamw(&mut w, &mut m, &mut v, &g, 0, len, c));
    let squares = time(|| {
        black_box(dev.sum_squares(&g, 0, len));
    });
    let each = 1e9 / len as f64;
    println!(
        "adamw {:.3} ns per element ({:.1} GB/s), sum of squares {:.3}",
        step * each,
        28.0 / (step * each),
        squares * each
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let isa =
        args.first().map_or_else(Isa::detect, |name| Isa::named(name).unwrap_or_else(|e| panic!("{e}")));
    let threads = args.get(1).map(|n| n.parse().expect("threads is a number"));
    let threads = threads.unwrap_or_else(|| Cpu::new(None).threads());
    let dev = &Cpu::with(isa, threads);
    println!("{}", dev.name());
    let mut flops = 0;
    let seconds = time(|| flops = dev.multiply_adds(20_000));
    println!("peak: {:.1} GFLOP/s in f32", flops as f64 / seconds / 1e9);
    if let Some(flops) = dev.tile_multiply_adds(100) {
        let seconds = time(|| {
            dev.tile_multiply_adds(20_000);
        });
        println!("peak: {:.1} GFLOP/s in bf16 tiles", 200.0 * flops as f64 / seconds / 1e9);
    }
    if args.get(2).is_some_and(|what| what == "quant") {
        let tokens: Vec<usize> = args[3..].iter().map(|t| t.parse().expect("tokens are numbers")).collect();
        for t in tokens {
            println!("plain read by all threads: {:.1} GB/s", read_speed(threads));
            for dtype in [Dtype::Bf16, Dtype::Q8, Dtype::Q4] {
                // Short calls find quiet moments on a machine that others use too.
                quantised(dev, dtype, t, 3712, if t < 64 { 14848 } else { 4096 });
            }
        }
        println!("plain read by all threads: {:.1} GB/s", read_speed(threads));
        return;
    }
    for dtype in [Dtype::F32, Dtype::Bf16] {
        linear(dev, dtype, 1, 3712, 14848, false);
        linear(dev, dtype, 4, 3712, 14848, false);
        linear(dev, dtype, 512, 3712, 14848, false);
        for (i, o) in [(256, 1024), (512, 2048), (2048, 512)] {
            linear(dev, dtype, 1024, i, o, true);
        }
    }
    scan_and_conv(dev, 1024, 1024, 2, 16);
    scan_and_conv(dev, 512, 7424, 2, 16);
    attention(dev, 1024, 8, 64);
    attention(dev, 512, 16, 464);
    others(dev);
}
