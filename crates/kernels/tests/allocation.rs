//! Once its working memory has grown to size, a kernel allocates nothing.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{Act, Attention, Buf, CacheRows, Conv, Device, Dtype, Linear, Mat, Scan, Span};

/// The system's allocator, counting the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged. The counter has a constant initial value and no destructor,
// so touching it allocates nothing and is fine at any time in a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const E: usize = 192;
const H: usize = 2;
const N: usize = 16;
const R: usize = 12;
const K: usize = 4;
const SLOT_ROWS: usize = 300;

/// The buffers of one layer's decode step for `t` sequences.
struct Step {
    spans: Vec<Span>,
    arrays: [Buf; 7],
    vectors: [Buf; 4],
    weights: [Mat; 2],
    state: [Buf; 2],
    cache: [Buf; 2],
}

impl Step {
    fn new(dev: &Cpu, t: usize, dtype: Dtype) -> Step {
        let buf = |len| dev.alloc(Dtype::F32, len);
        let mat = |rows, cols| Mat::new(rows, cols, dev.alloc(dtype, rows * cols));
        let p = H * (R + 2 * N);
        Step {
            spans: (0..t).map(|slot| Span { slot, start: slot, len: 1, pos: 200 }).collect(),
            arrays: [2 * E, E, p, E, E, E, E].map(|width| buf(t * width)),
            vectors: [E * K, E * N, E, E].map(buf),
            weights: [mat(p, E / H), mat(E, R)],
            state: [t * (K - 1) * E, t * N * E].map(buf),
            cache: [(); 2].map(|()| dev.alloc(dtype, t * dev.cache_len(dtype, SLOT_ROWS, H, E / H))),
        }
    }

    fn run(&mut self, dev: &Cpu) {
        let (t, spans, width) = (self.spans.len(), &self.spans[..], R + 2 * N);
        let [xz, x, p, dt, y, q, out] = &mut self.arrays;
        let [w_ek, a_log_en, d_e, dt_bias_e] = &self.vectors;
        let [x_proj, dt_proj] = &self.weights;
        let ([window, state], [keys, values]) = (&mut self.state, &mut self.cache);
        let conv = Conv { t, e: E, k: K, act: Act::Silu, spans, xz, w_ek, bias_e: Some(d_e) };
        dev.conv(x, Some(window), conv);
        let map = Linear {
            t,
            groups: H,
            o: width,
            i: E / H,
            x,
            x_stride: E,
            x_group: E / H,
            x_at: 0,
            w: x_proj,
            w_at: 0,
            bias: None,
        };
        dev.linear(p, map);
        let map = Linear { o: E / H, i: R, x: p, x_stride: H * width, x_group: width, w: dt_proj, ..map };
        dev.linear(dt, map);
        let scan =
            Scan { t, e: E, h: H, n: N, r: R, spans, x_te: x, dt_te: dt, p, xz, a_log_en, d_e, dt_bias_e };
        dev.scan(y, Some(state), None, scan);
        dev.rmsnorm(q, None, y, d_e, 1e-5);
        let (kv, p, bf16) = (H, E / H, keys.dtype() == Dtype::Bf16);
        dev.cache_rows(keys, values, CacheRows { kv, p, spans, k: q, v: y, slot_rows: SLOT_ROWS });
        let (k, v, slot_rows) = (&*keys, &*values, Some(SLOT_ROWS));
        dev.attention(out, None, Attention { t, h: H, kv, p, scale: 0.1, bf16, spans, q, k, v, slot_rows });
        dev.glu(y, out, q, Act::Gelu);
    }
}

#[test]
fn decode_allocates_nothing_after_the_first_step() {
    for isa in Isa::available() {
        for (t, dtype) in [(1, Dtype::F32), (3, Dtype::Bf16)] {
            let dev = Cpu::with(isa, 1);
            let mut step = Step::new(&dev, t, dtype);
            step.run(&dev);
            let before = CALLS.get();
            step.run(&dev);
            step.run(&dev);
            assert_eq!(CALLS.get() - before, 0, "allocations by {} for {t} tokens", dev.name());
        }
    }
}
