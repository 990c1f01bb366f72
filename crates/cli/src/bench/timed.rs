//! A device that keeps the time of another one's kernels.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zamba_kernels::{
    Act, AdamW, AdamWBufs, Attention, Buf, CacheRows, Conv, ConvAt, Device, Dtype, FileMap, Linear, Mat,
    Scaled, Scan, ScanAt, ScanGrads,
};

/// Calls that are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kernel {
    /// Method of [`Device`].
    pub(crate) name: &'static str,
    /// Input and output width of a group's matrix, for products.
    pub(crate) matrix: Option<(usize, usize)>,
    /// Whether that matrix is quantised.
    pub(crate) quantised: bool,
}

/// What calls of a kernel came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// How many there were.
    pub(crate) calls: u64,
    /// Time from call to return.
    pub(crate) time: Duration,
    /// Operations of products and attention, two per multiply-add; other kernels count none. The gradient of attention
    /// computes its scores again, which counts.
    pub(crate) operations: u64,
    /// Bytes of all operands, each counted once per call, read or written. Of a cache, what the tokens see.
    pub(crate) bytes: u64,
}

/// Passes all calls on to another device, whose calls return when their work is done, and keeps the time of its
/// kernels while it is told to. Copies from and to the host are not kernels.
pub(crate) struct Timed {
    device: Arc<dyn Device>,
    on: AtomicBool,
    spent: Mutex<BTreeMap<Kernel, Spent>>,
}

/// What a call works on.
#[derive(Clone, Copy, Default)]
struct Work {
    matrix: Option<(usize, usize)>,
    quantised: bool,
    operations: usize,
    bytes: usize,
}

impl Timed {
    /// A device that keeps no time yet.
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        Timed { device, on: AtomicBool::new(false), spent: Mutex::default() }
    }

    /// Whether time is kept from now on.
    pub(crate) fn keep(&self, on: bool) {
        self.on.store(on, Relaxed);
    }

    /// What was spent while time was kept, longest first. Begins anew from zero.
    pub(crate) fn take(&self) -> Vec<(Kernel, Spent)> {
        let mut all: Vec<_> = std::mem::take(&mut *self.spent()).into_iter().collect();
        all.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.time));
        all
    }

    fn spent(&self) -> MutexGuard<'_, BTreeMap<Kernel, Spent>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time<R>(&self, name: &'static str, work: Work, call: impl FnOnce(&dyn Device) -> R) -> R {
        if !self.on.load(Relaxed) {
            return call(&*self.device);
        }
        let start = Instant::now();
        let result = call(&*self.device);
        let time = start.elapsed();
        let mut spent = self.spent();
        let Work { matrix, quantised, .. } = work;
        let spent = spent.entry(Kernel { name, matrix, quantised }).or_default();
        spent.calls += 1;
        spent.time += time;
        spent.operations += work.operations as u64;
        spent.bytes += work.bytes as u64;
        result
    }
}

impl Work {
    /// Arrays that are passed over.
    fn of<const N: usize>(arrays: [&Buf; N]) -> Work {
        Work { bytes: arrays.iter().map(|a| a.bytes()).sum(), ..Work::default() }
    }

    /// `rows` rows of `d` numbers of 4 bytes, and as many in `dtype`.
    fn rows(rows: usize, d: usize, dtype: Dtype) -> Work {
        Work { bytes: rows * (4 * d + dtype.bytes(d)), ..Work::default() }
    }

    /// A product with `copies` of the weights in f32 more.
    fn linear(a: &Linear, copies: usize) -> Work {
        let (t, weights) = (a.t * a.groups, a.groups * a.o * a.i);
        Work {
            matrix: Some((a.i, a.o)),
            quantised: a.w.dtype().is_quantised(),
            operations: 2 * t * a.o * a.i,
            bytes: a.w.dtype().bytes(weights) + copies * 4 * weights + 4 * t * (a.o + a.i),
        }
    }

    fn conv(a: &Conv) -> Work {
        Work { bytes: 4 * a.t * 3 * a.e, ..Work::of([a.w_ek]) }
    }

    /// A scan; `passes` are arrays of `[t, e]` beside signal, dt, gate and result.
    fn scan(a: &Scan, saved: Option<&Buf>, state: Option<&Buf>, passes: usize) -> Work {
        let arrays = 4 * a.t * a.e * (5 + passes) + a.p.bytes();
        let states = state.map_or(0, |_| 2 * 4 * a.spans.len() * a.n * a.e);
        Work { bytes: arrays + states + saved.map_or(0, Buf::bytes), ..Work::default() }
    }

    /// Attention of `products` products per pair of a query and a key, and `passes` arrays as large as the queries.
    fn attention(a: &Attention, products: usize, passes: usize) -> Work {
        let (mut pairs, mut keys) = (0, 0);
        for s in a.spans {
            pairs += s.len * s.pos + s.len * (s.len + 1) / 2;
            keys += s.pos + s.len;
        }
        let each = a.k.dtype().bytes(2 * a.kv * a.p);
        Work {
            operations: products * 2 * pairs * a.h * a.p,
            bytes: keys * each + passes * 4 * a.t * a.h * a.p,
            ..Work::default()
        }
    }
}

impl Device for Timed {
    fn name(&self) -> String {
        self.device.name()
    }

    fn arithmetic(&self) -> String {
        self.device.arithmetic()
    }

    fn threads(&self) -> usize {
        self.device.threads()
    }

    fn alloc(&self, dtype: Dtype, len: usize) -> Buf {
        self.device.alloc(dtype, len)
    }

    fn alloc_weights(&self, dtype: Dtype, len: usize) -> Buf {
        self.device.alloc_weights(dtype, len)
    }

    fn map(&self, dtype: Dtype, len: usize, file: &FileMap, at: usize) -> Option<Buf> {
        self.device.map(dtype, len, file, at)
    }

    fn upload_bytes(&self, y: &mut Buf, fill: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        self.device.upload_bytes(y, fill);
    }

    fn download_bytes(&self, x: &Buf, look: &(dyn Fn(usize, &[u8]) + Sync)) {
        self.device.download_bytes(x, look);
    }

    fn upload(&self, y: &mut Buf, at: usize, x: &[f32]) {
        self.device.upload(y, at, x);
    }

    fn download(&self, y: &mut [f32], x: &Buf, at: usize) {
        self.device.download(y, x, at);
    }

    fn put_bytes(&self, y: &mut Buf, x: &[u8]) {
        self.device.put_bytes(y, x);
    }

    fn to_bytes(&self, x: &Buf) -> Vec<u8> {
        self.device.to_bytes(x)
    }

    fn fill(&self, y: &mut Buf, value: f32) {
        self.time("fill", Work::of([y]), |d| d.fill(y, value));
    }

    fn copy(&self, y: &mut Buf, y_at: usize, x: &Buf, x_at: usize, len: usize) {
        let bytes = x.dtype().bytes(len) + y.dtype().bytes(len);
        self.time("copy", Work { bytes, ..Work::default() }, |d| d.copy(y, y_at, x, x_at, len));
    }

    fn copy_within(&self, y: &mut Buf, to: usize, from: usize, len: usize) {
        let bytes = 2 * y.dtype().bytes(len);
        self.time("copy_within", Work { bytes, ..Work::default() }, |d| d.copy_within(y, to, from, len));
    }

    fn add(&self, y: &mut Buf, a: &Buf, b: &Buf) {
        self.time("add", Work::of([y, a, b]), |d| d.add(y, a, b));
    }

    fn accumulate(&self, y: &mut Buf, x: &Buf) {
        self.time("accumulate", Work::of([y, y, x]), |d| d.accumulate(y, x));
    }

    fn pair_rstd(&self, s_t: &mut Buf, a_td: &Buf, b_td: &Buf, eps: f32) {
        self.time("pair_rstd", Work::of([s_t, a_td, b_td]), |d| d.pair_rstd(s_t, a_td, b_td, eps));
    }

    fn pair_rstd_bwd(&self, dx_td: &mut Buf, ds_t: &Buf, s_t: &Buf, x_td: &Buf) {
        let work = Work::of([dx_td, dx_td, ds_t, s_t, x_td]);
        self.time("pair_rstd_bwd", work, |d| d.pair_rstd_bwd(dx_td, ds_t, s_t, x_td));
    }

    fn scale(&self, y_td: &mut Buf, a: Scaled) {
        self.time("scale", Work::of([y_td, a.x_td]), |d| d.scale(y_td, a));
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
        let work = Work::of([dx_td, dx_td, dy_td, dy_td, a.x_td, a.x_td]);
        self.time("scale_bwd", work, |d| d.scale_bwd(dx_td, ds_t, dw_flat, dw_at, dy_td, a));
    }

    fn add_scaled(&self, y: &mut Buf, s_t: &Buf, x: &Buf) {
        self.time("add_scaled", Work::of([y, y, s_t, x]), |d| d.add_scaled(y, s_t, x));
    }

    fn add_scaled_bwd(&self, ds_t: &mut Buf, dx: &mut Buf, dy: &Buf, s_t: &Buf, x: &Buf) {
        let work = Work::of([dx, dx, dy, dy, s_t, x]);
        self.time("add_scaled_bwd", work, |d| d.add_scaled_bwd(ds_t, dx, dy, s_t, x));
    }

    fn gather_rows(&self, y: &mut Buf, x: &Buf, rows: &[u32], d: usize) {
        self.time("gather_rows", Work::of([y, y]), |device| device.gather_rows(y, x, rows, d));
    }

    fn scatter_rows(&self, dx: &mut Buf, dy: &Buf, rows: &[u32], d: usize) {
        self.time("scatter_rows", Work::of([dy, dy, dy]), |device| device.scatter_rows(dx, dy, rows, d));
    }

    fn embed(&self, y_td: &mut Buf, tokens: &[u32], w: &Mat) {
        let work = Work::rows(tokens.len(), w.cols(), w.dtype());
        self.time("embed", work, |d| d.embed(y_td, tokens, w));
    }

    fn embed_bwd(&self, dw_flat: &mut Buf, w_at: usize, dy_td: &Buf, tokens: &[u32], d: usize) {
        let work = Work::of([dy_td, dy_td, dy_td]);
        self.time("embed_bwd", work, |device| device.embed_bwd(dw_flat, w_at, dy_td, tokens, d));
    }

    fn linear(&self, y: &mut Buf, a: Linear) {
        self.time("linear", Work::linear(&a, 0), |d| d.linear(y, a));
    }

    fn linear_dx(&self, dx: &mut Buf, dy: &Buf, a: Linear) {
        self.time("linear_dx", Work::linear(&a, 0), |d| d.linear_dx(dx, dy, a));
    }

    fn linear_dw(&self, dw_flat: &mut Buf, w_at: usize, bias_at: Option<usize>, dy: &Buf, a: Linear) {
        // The weights are not looked at, and their gradients are read and written.
        let mut work = Work::linear(&a, 2);
        work.bytes -= a.w.buf.bytes();
        self.time("linear_dw", work, |d| d.linear_dw(dw_flat, w_at, bias_at, dy, a));
    }

    fn rmsnorm(&self, y_td: &mut Buf, rstd_t: Option<&mut Buf>, x_td: &Buf, w_d: &Buf, eps: f32) {
        self.time("rmsnorm", Work::of([y_td, x_td, w_d]), |d| d.rmsnorm(y_td, rstd_t, x_td, w_d, eps));
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
        let work = Work::of([dx_td, dx_td, dy_td, x_td, w_d]);
        self.time("rmsnorm_bwd", work, |d| d.rmsnorm_bwd(dx_td, dw_flat, w_at, dy_td, x_td, rstd_t, w_d));
    }

    fn conv(&self, y_te: &mut Buf, window: Option<&mut Buf>, a: Conv) {
        self.time("conv", Work::conv(&a), |d| d.conv(y_te, window, a));
    }

    fn conv_bwd(&self, dxz: &mut Buf, dw_flat: &mut Buf, at: ConvAt, dy_te: &Buf, a: Conv) {
        let mut work = Work::conv(&a);
        work.bytes += 2 * dxz.bytes();
        self.time("conv_bwd", work, |d| d.conv_bwd(dxz, dw_flat, at, dy_te, a));
    }

    fn scan(&self, y_te: &mut Buf, state: Option<&mut Buf>, saved: Option<&mut Buf>, a: Scan) {
        let work = Work::scan(&a, saved.as_deref(), state.as_deref(), 0);
        self.time("scan", work, |d| d.scan(y_te, state, saved, a));
    }

    fn scan_bwd(&self, g: ScanGrads, dw_flat: &mut Buf, at: ScanAt, dy_te: &Buf, saved: &Buf, a: Scan) {
        // Gradients of signal, dt, and gate with signal, beside what the forward pass has.
        let mut work = Work::scan(&a, Some(saved), None, 4);
        work.bytes += g.dp.bytes();
        self.time("scan_bwd", work, |d| d.scan_bwd(g, dw_flat, at, dy_te, saved, a));
    }

    fn cache_len(&self, dtype: Dtype, rows: usize, kv: usize, p: usize) -> usize {
        self.device.cache_len(dtype, rows, kv, p)
    }

    fn cache_rows(&self, keys: &mut Buf, values: &mut Buf, a: CacheRows) {
        let rows = a.spans.iter().map(|s| s.len).sum();
        let work = Work::rows(rows, 2 * a.kv * a.p, keys.dtype());
        self.time("cache_rows", work, |d| d.cache_rows(keys, values, a));
    }

    fn attention(&self, y: &mut Buf, lse_th: Option<&mut Buf>, a: Attention) {
        self.time("attention", Work::attention(&a, 2, 2), |d| d.attention(y, lse_th, a));
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
        let mut work = Work::attention(&a, 5, 4);
        work.bytes += 2 * (dk.bytes() + dv.bytes());
        self.time("attention_bwd", work, |d| d.attention_bwd(dq, dk, dv, dy, y, lse_th, a));
    }

    fn glu(&self, y: &mut Buf, gate: &Buf, up: &Buf, act: Act) {
        self.time("glu", Work::of([y, gate, up]), |d| d.glu(y, gate, up, act));
    }

    fn glu_bwd(&self, dgate: &mut Buf, dup: &mut Buf, dy: &Buf, gate: &Buf, up: &Buf, act: Act) {
        let work = Work::of([dgate, dup, dy, gate, up]);
        self.time("glu_bwd", work, |d| d.glu_bwd(dgate, dup, dy, gate, up, act));
    }

    fn cross_entropy(&self, nll_t: &mut Buf, lse_t: &mut Buf, logits_tv: &Buf, targets: &[u32], v: usize) {
        let work = Work::of([logits_tv]);
        self.time("cross_entropy", work, |d| d.cross_entropy(nll_t, lse_t, logits_tv, targets, v));
    }

    fn cross_entropy_bwd(&self, logits_tv: &mut Buf, lse_t: &Buf, targets: &[u32], v: usize, scale: f32) {
        let work = Work::of([logits_tv, logits_tv]);
        self.time("cross_entropy_bwd", work, |d| d.cross_entropy_bwd(logits_tv, lse_t, targets, v, scale));
    }

    fn sum_squares(&self, x: &Buf, at: usize, len: usize) -> f64 {
        let work = Work { bytes: x.dtype().bytes(len), ..Work::default() };
        self.time("sum_squares", work, |d| d.sum_squares(x, at, len))
    }

    fn adamw(&self, p: AdamWBufs, at: usize, len: usize, c: AdamW) {
        // Weights, two moments and gradients are read and written.
        let work = Work { bytes: 8 * 4 * len + p.stored.bytes(), ..Work::default() };
        self.time("adamw", work, |d| d.adamw(p, at, len, c));
    }
}

#[cfg(test)]
mod tests {
    use zamba_kernels::cases;
    use zamba_kernels::reference::Reference;

    use super::*;

    #[test]
    fn every_kernel_gives_the_bits_of_the_device_behind_it() {
        let timed = Timed::new(Arc::new(Reference::new()));
        timed.keep(true);
        for case in cases::all() {
            assert_eq!(case.run_bits(&timed), case.run_bits(&Reference::new()), "{}", case.name());
        }
        let names: Vec<_> = timed.take().into_iter().map(|(kernel, _)| kernel.name).collect();
        for name in ["linear", "linear_dx", "linear_dw", "scan", "scan_bwd", "attention", "adamw"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
    }

    #[test]
    fn a_product_counts_its_operations_and_bytes_while_time_is_kept() {
        let timed = Timed::new(Arc::new(Reference::new()));
        let (x, w) = (timed.alloc(Dtype::F32, 3 * 4), Mat::new(5, 4, timed.alloc(Dtype::Bf16, 20)));
        let mut y = timed.alloc(Dtype::F32, 3 * 5);
        let a = Linear {
            t: 3,
            groups: 1,
            o: 5,
            i: 4,
            x: &x,
            x_stride: 4,
            x_group: 0,
            x_at: 0,
            w: &w,
            w_at: 0,
            bias: None,
        };
        timed.linear(&mut y, a);
        timed.keep(true);
        timed.linear(&mut y, a);
        timed.linear(&mut y, a);
        timed.keep(false);
        timed.linear(&mut y, a);
        let [(kernel, spent)] = timed.take()[..] else { panic!("one kernel") };
        assert_eq!(kernel, Kernel { name: "linear", matrix: Some((4, 5)), quantised: false });
        assert_eq!((spent.calls, spent.operations), (2, 2 * 2 * 3 * 4 * 5));
        assert_eq!(spent.bytes, 2 * (2 * 20 + 4 * (12 + 15)));
        assert!(timed.take().is_empty());
    }
}
