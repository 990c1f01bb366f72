//! The fast device: vectorised, multi-threaded kernels in portable Rust.
//!
//! Bodies are written once over vectors of 16 lanes and compiled for each tier of instructions that the
//! processor may have ([`Isa`]). The work of a kernel is split over its outputs, never over a sum, so the
//! number of threads leaves no trace in the results. No kernel allocates once its working memory has
//! grown to size.

// Loops over the rows and columns of register tiles index several arrays by the same number; as chains of
// iterators they would hide it.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod attention_bf16;
mod attention_bwd;
mod conv;
mod gemm;
mod int;
mod isa;
mod kv;
mod limits;
mod linear;
mod loss;
mod math;
mod norm;
mod optim;
#[cfg(target_arch = "x86_64")]
mod pack;
mod pool;
mod quant;
mod quantise;
mod rows;
mod scaled;
mod scan;
mod scan_bwd;
mod scratch;
mod split;
mod tier;
#[cfg(target_arch = "x86_64")]
mod tile_attention;
#[cfg(target_arch = "x86_64")]
mod tile_attention_bwd;
#[cfg(target_arch = "x86_64")]
mod tile_gradient;
#[cfg(target_arch = "x86_64")]
mod tile_linear;
#[cfg(target_arch = "x86_64")]
mod tile_panel;
#[cfg(target_arch = "x86_64")]
mod tile_quant;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_int;

use self::pool::Pool;
use self::split::{Runs, Split};
use crate::{
    Act, AdamW, AdamWBufs, Attention, Buf, CacheRows, Conv, ConvAt, Device, Dtype, FileMap, Linear, Mat,
    Scaled, Scan, ScanAt, ScanGrads,
};

pub use self::isa::{Isa, IsaError};
pub use self::limits::Unit;
pub use self::quantise::QuantError;

/// Elements per chunk of kernels that do little with each. Less work than this runs on the calling thread:
/// calling another costs more.
const GRAIN: usize = 1 << 14;

/// Bytes that a thread uploads at a time: a huge page, so that no two threads wait for the same one to be
/// zeroed.
const PIECE: usize = 2 << 20;

/// Whether an output is so large that it is written past the caches: a line that is written whole need not be read
/// first, of so many none would be found in L2 later, and what is written back from there holds up all else.
fn goes_past<T>(y: &[T]) -> bool {
    const LARGE: usize = 2 << 20;
    size_of_val(y) >= LARGE
}

/// The processor as a [`Device`].
pub struct Cpu {
    isa: Isa,
    pool: Pool,
}

impl Cpu {
    /// The fastest tier of this machine with `threads` threads, or as many as the system offers.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn new(threads: Option<usize>) -> Cpu {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Cpu::with(Isa::detect(), threads.unwrap_or_else(available))
    }

    /// Tier `isa` with `threads` threads, at least one.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn with(isa: Isa, threads: usize) -> Cpu {
        Cpu { isa, pool: Pool::new(threads) }
    }

    /// The tier in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `body` with each piece of `parts` and its number: on the calling thread alone if the whole is
    /// not worth waking another for, which is counted in multiply-adds or the like.
    fn split<P: Split>(&self, work: usize, parts: P, body: impl Fn(usize, P::Piece) + Sync) {
        self.pool.split(work > GRAIN, parts, body);
    }

    /// Calls `body` with each row of `width` elements of `y` and its number.
    fn rows(&self, y: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
        if width == 0 {
            return;
        }
        let rows = GRAIN.div_ceil(width);
        self.pool.split(true, Runs::new(y, rows * width), |index, y: &mut [f32]| {
            for (r, y) in y.chunks_exact_mut(width).enumerate() {
                body(index * rows + r, y);
            }
        });
    }
}

impl Device for Cpu {
    fn name(&self) -> String {
        let plural = if self.threads() == 1 { "" } else { "s" };
        format!("cpu ({}, {} thread{plural})", self.isa, self.threads())
    }

    fn arithmetic(&self) -> String {
        format!("cpu {}", self.isa)
    }

    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn alloc(&self, dtype: Dtype, len: usize) -> Buf {
        Buf::host(dtype, len)
    }

    fn alloc_weights(&self, dtype: Dtype, len: usize) -> Buf {
        Buf::host_to_read(dtype, len)
    }

    fn map(&self, dtype: Dtype, len: usize, file: &FileMap, at: usize) -> Option<Buf> {
        Buf::in_file(dtype, len, file, at)
    }

    fn upload_bytes(&self, y: &mut Buf, fill: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        self.pool.split(true, Runs::new(y.bytes_mut(), PIECE), |index, piece: &mut [u8]| {
            fill(index * PIECE, piece);
        });
    }

    fn download_bytes(&self, x: &Buf, look: &(dyn Fn(usize, &[u8]) + Sync)) {
        let bytes = x.as_bytes();
        self.pool.run(bytes.len().div_ceil(PIECE), |index| {
            let at = index * PIECE;
            look(at, &bytes[at..bytes.len().min(at + PIECE)]);
        });
    }

    fn upload(&self, y: &mut Buf, at: usize, x: &[f32]) {
        rows::upload(self, y, at, x);
    }

    fn download(&self, y: &mut [f32], x: &Buf, at: usize) {
        rows::download(self, y, x, at);
    }

    fn fill(&self, y: &mut Buf, value: f32) {
        rows::fill(self, y, value);
    }

    fn copy(&self, y: &mut Buf, y_at: usize, x: &Buf, x_at: usize, len: usize) {
        rows::copy(self, y, y_at, x, x_at, len);
    }

    fn copy_within(&self, y: &mut Buf, to: usize, from: usize, len: usize) {
        rows::copy_within(self, y, to, from, len);
    }

    fn add(&self, y: &mut Buf, a: &Buf, b: &Buf) {
        rows::add(self, y, a, Some(b));
    }

    fn accumulate(&self, y: &mut Buf, x: &Buf) {
        rows::add(self, y, x, None);
    }

    fn pair_rstd(&self, s_t: &mut Buf, a_td: &Buf, b_td: &Buf, eps: f32) {
        scaled::pair_rstd(self, s_t, a_td, b_td, eps);
    }

    fn pair_rstd_bwd(&self, dx_td: &mut Buf, ds_t: &Buf, s_t: &Buf, x_td: &Buf) {
        scaled::pair_rstd_bwd(self, dx_td, ds_t, s_t, x_td);
    }

    fn scale(&self, y_td: &mut Buf, a: Scaled) {
        scaled::scale(self, y_td, a);
    }

    fn scale_bwd(
        &self,
        dx_td: &mut Buf,
        ds_t: Option<&mut Buf>,
        dw_flat: &mut Buf,
        dw_at: usize,
        dy_td: &Buf,
        a: Scaled,
    ) {
        scaled::scale_bwd(self, dx_td, ds_t, dw_flat, dw_at, dy_td, a);
    }

    fn add_scaled(&self, y: &mut Buf, s_t: &Buf, x: &Buf) {
        scaled::add_scaled(self, y, s_t, x);
    }

    fn add_scaled_bwd(&self, ds_t: &mut Buf, dx: &mut Buf, dy: &Buf, s_t: &Buf, x: &Buf) {
        scaled::add_scaled_bwd(self, ds_t, dx, dy, s_t, x);
    }

    fn gather_rows(&self, y: &mut Buf, x: &Buf, rows: &[u32], d: usize) {
        rows::gather_rows(self, y, x, rows, d);
    }

    fn scatter_rows(&self, dx: &mut Buf, dy: &Buf, rows: &[u32], d: usize) {
        rows::scatter_rows(self, dx.f32_mut(), dy, rows, d);
    }

    fn embed(&self, y_td: &mut Buf, tokens: &[u32], w: &Mat) {
        rows::embed(self, y_td, tokens, w);
    }

    fn embed_bwd(&self, dw_flat: &mut Buf, w_at: usize, dy_td: &Buf, tokens: &[u32], d: usize) {
        // The end of the matrix is not known here; the last row that is named is as good.
        let rows = tokens.iter().max().map_or(0, |last| *last as usize + 1);
        rows::scatter_rows(self, &mut dw_flat.f32_mut()[w_at..][..rows * d], dy_td, tokens, d);
    }

    fn linear(&self, y: &mut Buf, a: Linear) {
        linear::linear(self, y, a);
    }

    fn linear_dx(&self, dx: &mut Buf, dy: &Buf, a: Linear) {
        gemm::linear_dx(self, dx, dy, a);
    }

    fn linear_dw(&self, dw_flat: &mut Buf, w_at: usize, bias_at: Option<usize>, dy: &Buf, a: Linear) {
        gemm::linear_dw(self, dw_flat, w_at, bias_at, dy, a);
    }

    fn rmsnorm(&self, y_td: &mut Buf, rstd_t: Option<&mut Buf>, x_td: &Buf, w_d: &Buf, eps: f32) {
        norm::rmsnorm(self, y_td, rstd_t, x_td, w_d, eps);
    }

    fn rmsnorm_bwd(
        &self,
        dx_td: &mut Buf,
        dw_flat: &mut Buf,
        w_at: usize,
        dy_td: &Buf,
        x_td: &Buf,
        rstd_t: &Buf,
        w_d: &Buf,
    ) {
        norm::rmsnorm_bwd(self, dx_td, dw_flat, w_at, dy_td, x_td, rstd_t, w_d);
    }

    fn conv(&self, y_te: &mut Buf, window: Option<&mut Buf>, a: Conv) {
        conv::conv(self, y_te, window, a);
    }

    fn conv_bwd(&self, dxz: &mut Buf, dw_flat: &mut Buf, at: ConvAt, dy_te: &Buf, a: Conv) {
        conv::conv_bwd(self, dxz, dw_flat, at, dy_te, a);
    }

    fn scan(&self, y_te: &mut Buf, state: Option<&mut Buf>, saved: Option<&mut Buf>, a: Scan) {
        scan::scan(self, y_te, state, saved, a);
    }

    fn scan_bwd(&self, g: ScanGrads, dw_flat: &mut Buf, at: ScanAt, dy_te: &Buf, saved: &Buf, a: Scan) {
        scan_bwd::scan_bwd(self, g, dw_flat, at, dy_te, saved, a);
    }

    fn cache_len(&self, dtype: Dtype, rows: usize, kv: usize, p: usize) -> usize {
        match dtype {
            Dtype::F32 => rows * kv * p,
            Dtype::Bf16 => kv::Shape { kv, p }.len(rows),
            Dtype::Q8 | Dtype::Q4 => panic!("a token cache is not quantised"),
        }
    }

    fn cache_rows(&self, keys: &mut Buf, values: &mut Buf, a: CacheRows) {
        for s in a.spans {
            assert!(s.pos + s.len <= a.slot_rows, "span of {} rows at {} exceeds its slot", s.len, s.pos);
        }
        match keys.dtype() {
            Dtype::F32 => {
                rows::cache_rows(keys, a.k, &a);
                rows::cache_rows(values, a.v, &a);
            }
            Dtype::Bf16 => kv::cache_rows(self, keys, values, a),
            Dtype::Q8 | Dtype::Q4 => panic!("a token cache is not quantised"),
        }
    }

    fn attention(&self, y: &mut Buf, lse_th: Option<&mut Buf>, a: Attention) {
        attention::attention(self, y, lse_th, a);
    }

    fn attention_bwd(
        &self,
        dq: &mut Buf,
        dk: &mut Buf,
        dv: &mut Buf,
        dy: &Buf,
        y: &Buf,
        lse_th: &Buf,
        a: Attention,
    ) {
        attention_bwd::attention_bwd(self, dq, dk, dv, dy, y, lse_th, a);
    }

    fn glu(&self, y: &mut Buf, gate: &Buf, up: &Buf, act: Act) {
        rows::glu(self, y, gate, up, act);
    }

    fn glu_bwd(&self, dgate: &mut Buf, dup: &mut Buf, dy: &Buf, gate: &Buf, up: &Buf, act: Act) {
        rows::glu_bwd(self, dgate, dup, dy, gate, up, act);
    }

    fn cross_entropy(&self, nll_t: &mut Buf, lse_t: &mut Buf, logits_tv: &Buf, targets: &[u32], v: usize) {
        loss::cross_entropy(self, nll_t, lse_t, logits_tv, targets, v);
    }

    fn cross_entropy_bwd(&self, logits_tv: &mut Buf, lse_t: &Buf, targets: &[u32], v: usize, scale: f32) {
        loss::cross_entropy_bwd(self, logits_tv, lse_t, targets, v, scale);
    }

    fn sum_squares(&self, x: &Buf, at: usize, len: usize) -> f64 {
        norm::sum_squares(self, &x.f32()[at..][..len])
    }

    fn adamw(&self, p: AdamWBufs, at: usize, len: usize, c: AdamW) {
        optim::adamw(self, p, at, len, c);
    }
}
