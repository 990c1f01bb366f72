//! The definition of every kernel.
//!
//! [`Reference`] is the slow device that says what the fast ones must compute: plain loops over f64,
//! one file per family of kernels, rounded to f32 where a result is stored. It reads best next to the
//! documentation of [`Device`]. The functions are pure: arrays in, arrays out; this file moves them in
//! and out of [`Buf`]s, overwrites or adds, and checks sizes.

pub(crate) mod act;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod norm;
pub(crate) mod optim;
pub(crate) mod real;
pub(crate) mod scaled;
pub(crate) mod scan;

use half::bf16;

use crate::{
    Act, AdamW, AdamWBufs, Attention, Buf, CacheRows, Conv, ConvAt, Device, Dtype, FileMap, Linear, Mat,
    Scaled, Scan, ScanAt, ScanGrads, Span, quant,
};
use attention::AttentionArrays;
use conv::ConvArrays;
use scan::ScanArrays;

/// The scalar device, on one thread. See the [module text](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Reference {
    /// The reference device.
    pub fn new() -> Self {
        Reference
    }
}

/// # Panics
/// If the weights are quantised.
fn refuse_gradients(a: &Linear) {
    assert!(!a.w.dtype().is_quantised(), "quantised weights have no gradients");
}

/// All elements of `x` in f64.
pub(crate) fn read(x: &Buf) -> Vec<f64> {
    match x.dtype() {
        Dtype::F32 => x.f32().iter().map(|&v| f64::from(v)).collect(),
        Dtype::Bf16 => x.bf16().iter().map(|&v| f64::from(v.to_f32())).collect(),
        Dtype::Q8 | Dtype::Q4 => panic!("{x:?} holds no numbers but groups"),
    }
}

/// `y[..] = x`, rounded to f32.
fn store(y: &mut Buf, x: &[f64]) {
    assert_eq!(y.len(), x.len(), "length of the output");
    for (y, &x) in y.f32_mut().iter_mut().zip(x) {
        *y = x as f32;
    }
}

/// `y[at ..] += x`, rounded to f32.
fn add_at(y: &mut Buf, at: usize, x: &[f64]) {
    for (y, &x) in y.f32_mut()[at..][..x.len()].iter_mut().zip(x) {
        *y = (f64::from(*y) + x) as f32;
    }
}

/// `y[..] += x`, rounded to f32.
fn add_all(y: &mut Buf, x: &[f64]) {
    assert_eq!(y.len(), x.len(), "length of the gradient");
    add_at(y, 0, x);
}

/// Spans are not empty and tile rows `0 .. t` in order; without state each starts its sequence.
///
/// # Panics
/// If they do not.
pub(crate) fn check_spans(spans: &[Span], t: usize, has_state: bool) {
    let mut next = 0;
    for s in spans {
        assert!(s.len > 0 && s.start == next, "spans must tile the rows, got {s:?} at row {next}");
        assert!(has_state || s.pos == 0, "{s:?} continues a sequence but there is no state");
        next += s.len;
    }
    assert_eq!(next, t, "spans must tile the rows");
}

fn conv_check(a: &Conv, window: Option<&Buf>) {
    check_spans(a.spans, a.t, window.is_some());
    assert!(a.k > 0, "taps");
    assert_eq!((a.xz.len(), a.w_ek.len()), (a.t * 2 * a.e, a.e * a.k), "lengths of xz and w");
    assert!(a.bias_e.is_none_or(|b| b.len() == a.e), "length of bias");
}

fn scan_check(a: &Scan, has_state: bool) {
    check_spans(a.spans, a.t, has_state);
    assert_eq!(a.e % a.h, 0, "heads divide channels");
    assert_eq!((a.x_te.len(), a.dt_te.len(), a.xz.len()), (a.t * a.e, a.t * a.e, a.t * 2 * a.e), "lengths");
    assert_eq!((a.p.len(), a.a_log_en.len()), (a.t * a.h * (a.r + 2 * a.n), a.e * a.n), "lengths");
    assert_eq!((a.d_e.len(), a.dt_bias_e.len()), (a.e, a.e), "lengths");
}

fn attention_check(a: &Attention) {
    check_spans(a.spans, a.t, a.slot_rows.is_some());
    assert_eq!(a.h % a.kv, 0, "key/value heads divide heads");
    assert_eq!(a.q.len(), a.t * a.h * a.p, "length of q");
    assert_eq!(a.k.len(), a.v.len(), "lengths of k and v");
    assert!(a.slot_rows.is_some() || a.k.len() == a.t * a.kv * a.p, "length of k and v");
    let dtype = if a.bf16 && a.slot_rows.is_some() { Dtype::Bf16 } else { Dtype::F32 };
    assert_eq!((a.k.dtype(), a.v.dtype()), (dtype, dtype), "types of k and v");
    for s in a.spans {
        assert!(a.slot_rows.is_none_or(|rows| s.pos + s.len <= rows), "{s:?} overruns its slot");
    }
}

impl Device for Reference {
    fn name(&self) -> String {
        "reference (scalar f64, 1 thread)".into()
    }

    fn arithmetic(&self) -> String {
        "reference".to_owned()
    }

    fn threads(&self) -> usize {
        1
    }

    fn alloc(&self, dtype: Dtype, len: usize) -> Buf {
        Buf::host(dtype, len)
    }

    fn map(&self, dtype: Dtype, len: usize, file: &FileMap, at: usize) -> Option<Buf> {
        Buf::in_file(dtype, len, file, at)
    }

    fn upload_bytes(&self, y: &mut Buf, fill: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        fill(0, y.bytes_mut());
    }

    fn download_bytes(&self, x: &Buf, look: &(dyn Fn(usize, &[u8]) + Sync)) {
        look(0, x.as_bytes());
    }

    fn upload(&self, y: &mut Buf, at: usize, x: &[f32]) {
        match y.dtype() {
            Dtype::F32 => y.f32_mut()[at..][..x.len()].copy_from_slice(x),
            Dtype::Bf16 => {
                for (y, &x) in y.bf16_mut()[at..][..x.len()].iter_mut().zip(x) {
                    *y = bf16::from_f32(x);
                }
            }
            Dtype::Q8 | Dtype::Q4 => panic!("{y:?} takes bytes"),
        }
    }

    fn download(&self, y: &mut [f32], x: &Buf, at: usize) {
        match x.dtype() {
            Dtype::F32 => y.copy_from_slice(&x.f32()[at..][..y.len()]),
            Dtype::Bf16 => {
                let x = &x.bf16()[at..][..y.len()];
                for (y, x) in y.iter_mut().zip(x) {
                    *y = x.to_f32();
                }
            }
            Dtype::Q8 | Dtype::Q4 => panic!("{x:?} gives bytes"),
        }
    }

    fn fill(&self, y: &mut Buf, value: f32) {
        let values = vec![value; y.len()];
        self.upload(y, 0, &values);
    }

    fn copy(&self, y: &mut Buf, y_at: usize, x: &Buf, x_at: usize, len: usize) {
        let mut values = vec![0.0; len];
        self.download(&mut values, x, x_at);
        self.upload(y, y_at, &values);
    }

    fn add(&self, y: &mut Buf, a: &Buf, b: &Buf) {
        assert_eq!(a.len(), b.len(), "lengths of the terms");
        let sum: Vec<f64> = read(a).iter().zip(read(b)).map(|(a, b)| a + b).collect();
        store(y, &sum);
    }

    fn accumulate(&self, y: &mut Buf, x: &Buf) {
        add_all(y, &read(x));
    }

    fn pair_rstd(&self, s_t: &mut Buf, a_td: &Buf, b_td: &Buf, eps: f32) {
        assert_eq!(a_td.len(), b_td.len(), "lengths of the pair");
        let d = a_td.len() / s_t.len();
        store(s_t, &scaled::pair_rstd(&read(a_td), &read(b_td), d, eps));
    }

    fn pair_rstd_bwd(&self, dx_td: &mut Buf, ds_t: &Buf, s_t: &Buf, x_td: &Buf) {
        let d = x_td.len() / s_t.len();
        add_all(dx_td, &scaled::pair_rstd_bwd(&read(ds_t), &read(s_t), &read(x_td), d));
    }

    fn scale(&self, y_td: &mut Buf, a: Scaled) {
        let s = a.s_t.map(read);
        store(y_td, &scaled::scale(&read(a.x_td), &read(a.w)[a.w_at..][..a.d], s.as_deref()));
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
        let (x, w, s) = (read(a.x_td), read(a.w), a.s_t.map(read));
        let (dx, dw, ds) = scaled::scale_bwd(&read(dy_td), &x, &w[a.w_at..][..a.d], s.as_deref());
        add_all(dx_td, &dx);
        add_at(dw_flat, dw_at + a.w_at, &dw);
        if let Some(ds_t) = ds_t {
            add_all(ds_t, &ds);
        }
    }

    fn add_scaled(&self, y: &mut Buf, s_t: &Buf, x: &Buf) {
        let sum = scaled::add_scaled(&read(y), &read(s_t), &read(x));
        store(y, &sum);
    }

    fn add_scaled_bwd(&self, ds_t: &mut Buf, dx: &mut Buf, dy: &Buf, s_t: &Buf, x: &Buf) {
        let (ds, by_x) = scaled::add_scaled_bwd(&read(dy), &read(s_t), &read(x));
        add_all(ds_t, &ds);
        add_all(dx, &by_x);
    }

    fn gather_rows(&self, y: &mut Buf, x: &Buf, rows: &[u32], d: usize) {
        assert_eq!(y.len(), rows.len() * d, "length of the output");
        for (j, &row) in rows.iter().enumerate() {
            self.copy(y, j * d, x, row as usize * d, d);
        }
    }

    fn scatter_rows(&self, dx: &mut Buf, dy: &Buf, rows: &[u32], d: usize) {
        self.embed_bwd(dx, 0, dy, rows, d);
    }

    fn embed(&self, y_td: &mut Buf, tokens: &[u32], w: &Mat) {
        self.gather_rows(y_td, &w.buf, tokens, w.cols());
    }

    fn embed_bwd(&self, dw_flat: &mut Buf, w_at: usize, dy_td: &Buf, tokens: &[u32], d: usize) {
        assert_eq!(dy_td.len(), tokens.len() * d, "length of dy");
        for (row, &token) in read(dy_td).chunks_exact(d).zip(tokens) {
            add_at(dw_flat, w_at + token as usize * d, row);
        }
    }

    fn linear(&self, y: &mut Buf, a: Linear) {
        a.check();
        let bias = a.bias.map(read);
        let dtype = a.w.dtype();
        if dtype.is_quantised() {
            let w = quant::unpack(dtype, a.w.rows(), a.w.cols(), a.w.buf.as_bytes());
            return store(y, &linear::quantised(&a, &read(a.x), &w, bias.as_deref()));
        }
        store(y, &linear::linear(&a, &read(a.x), &read(&a.w.buf), bias.as_deref()));
    }

    fn linear_dx(&self, dx: &mut Buf, dy: &Buf, a: Linear) {
        a.check();
        refuse_gradients(&a);
        add_all(dx, &linear::linear_dx(&a, &read(dy), &read(&a.w.buf)));
    }

    fn linear_dw(&self, dw_flat: &mut Buf, w_at: usize, bias_at: Option<usize>, dy: &Buf, a: Linear) {
        a.check();
        refuse_gradients(&a);
        let (dw, dbias) = linear::linear_dw(&a, &read(dy), &read(a.x));
        add_at(dw_flat, w_at, &dw);
        if let Some(at) = bias_at {
            add_at(dw_flat, at, &dbias);
        }
    }

    fn rmsnorm(&self, y_td: &mut Buf, rstd_t: Option<&mut Buf>, x_td: &Buf, w_d: &Buf, eps: f32) {
        assert_eq!(x_td.len() % w_d.len(), 0, "rows of x");
        let (y, rstd) = norm::rmsnorm(&read(x_td), &read(w_d), eps);
        store(y_td, &y);
        if let Some(rstd_t) = rstd_t {
            store(rstd_t, &rstd);
        }
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
        assert_eq!((dy_td.len(), x_td.len()), (rstd_t.len() * w_d.len(), dy_td.len()), "lengths");
        let (dx, dw) = norm::rmsnorm_bwd(&read(dy_td), &read(x_td), &read(rstd_t), &read(w_d));
        add_all(dx_td, &dx);
        add_at(dw_flat, w_at, &dw);
    }

    fn conv(&self, y_te: &mut Buf, window: Option<&mut Buf>, a: Conv) {
        conv_check(&a, window.as_deref());
        let (xz, w_ek, bias, before) =
            (read(a.xz), read(a.w_ek), a.bias_e.map(read), window.as_deref().map(read));
        let arrays = ConvArrays { xz: &xz, w_ek: &w_ek, bias_e: bias.as_deref(), window: before.as_deref() };
        store(y_te, &conv::conv(&a, &arrays));
        if let Some(window) = window {
            store(window, &conv::window_after(&a, &arrays));
        }
    }

    fn conv_bwd(&self, dxz: &mut Buf, dw_flat: &mut Buf, at: ConvAt, dy_te: &Buf, a: Conv) {
        conv_check(&a, None);
        let (xz, w_ek, bias) = (read(a.xz), read(a.w_ek), a.bias_e.map(read));
        let arrays = ConvArrays { xz: &xz, w_ek: &w_ek, bias_e: bias.as_deref(), window: None };
        let (gxz, gw, gbias) = conv::conv_bwd(&a, &arrays, &read(dy_te));
        add_all(dxz, &gxz);
        add_at(dw_flat, at.w, &gw);
        if let Some(at) = at.bias {
            add_at(dw_flat, at, &gbias);
        }
    }

    fn scan(&self, y_te: &mut Buf, state: Option<&mut Buf>, saved: Option<&mut Buf>, a: Scan) {
        scan_check(&a, state.is_some());
        let before = state.as_deref().map(read);
        let out = scan::scan(&a, &ScanBufs::read(&a).arrays(before.as_deref()));
        store(y_te, &out.y_te);
        if let Some(state) = state {
            store(state, &out.state);
        }
        if let Some(saved) = saved {
            store(saved, &out.saved);
        }
    }

    fn scan_bwd(&self, g: ScanGrads, dw_flat: &mut Buf, at: ScanAt, dy_te: &Buf, saved: &Buf, a: Scan) {
        scan_check(&a, false);
        assert_eq!(saved.len(), a.saved_len(), "length of the saved states");
        let d = scan::scan_bwd(&a, &ScanBufs::read(&a).arrays(None), &read(dy_te));
        store(g.dx_te, &d.dx_te);
        store(g.ddt_te, &d.ddt_te);
        store(g.dp, &d.dp);
        store(g.dxz, &d.dxz);
        add_at(dw_flat, at.a_log, &d.da_log_en);
        add_at(dw_flat, at.d, &d.dd_e);
        add_at(dw_flat, at.dt_bias, &d.ddt_bias_e);
    }

    fn cache_len(&self, _: Dtype, rows: usize, kv: usize, p: usize) -> usize {
        rows * kv * p
    }

    fn cache_rows(&self, keys: &mut Buf, values: &mut Buf, a: CacheRows) {
        let width = a.kv * a.p;
        assert_eq!(a.k.len(), a.v.len(), "lengths of k and v");
        check_spans(a.spans, a.k.len() / width, true);
        for s in a.spans {
            assert!(s.pos + s.len <= a.slot_rows, "{s:?} overruns its slot of {} rows", a.slot_rows);
            let at = (s.slot * a.slot_rows + s.pos) * width;
            self.copy(keys, at, a.k, s.start * width, s.len * width);
            self.copy(values, at, a.v, s.start * width, s.len * width);
        }
    }

    fn attention(&self, y: &mut Buf, lse_th: Option<&mut Buf>, a: Attention) {
        attention_check(&a);
        let (q, k, v) = (read(a.q), read(a.k), read(a.v));
        let (out, lse) = attention::attention(&a, &AttentionArrays { q: &q, k: &k, v: &v });
        store(y, &out);
        if let Some(lse_th) = lse_th {
            store(lse_th, &lse);
        }
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
        assert!(a.slot_rows.is_none(), "gradients need packed keys and values");
        attention_check(&a);
        let (q, k, v) = (read(a.q), read(a.k), read(a.v));
        let arrays = AttentionArrays { q: &q, k: &k, v: &v };
        let (gq, gk, gv) = attention::attention_bwd(&a, &arrays, &read(dy), &read(y), &read(lse_th));
        add_all(dq, &gq);
        add_all(dk, &gk);
        add_all(dv, &gv);
    }

    fn glu(&self, y: &mut Buf, gate: &Buf, up: &Buf, act: Act) {
        assert_eq!(gate.len(), up.len(), "lengths of gate and up");
        store(y, &act::glu(&read(gate), &read(up), act));
    }

    fn glu_bwd(&self, dgate: &mut Buf, dup: &mut Buf, dy: &Buf, gate: &Buf, up: &Buf, act: Act) {
        assert_eq!((gate.len(), up.len()), (dy.len(), dy.len()), "lengths of gate and up");
        let (ggate, gup) = act::glu_bwd(&read(dy), &read(gate), &read(up), act);
        store(dgate, &ggate);
        store(dup, &gup);
    }

    fn cross_entropy(&self, nll_t: &mut Buf, lse_t: &mut Buf, logits_tv: &Buf, targets: &[u32], v: usize) {
        assert_eq!(logits_tv.len(), targets.len() * v, "length of the logits");
        let (nll, lse) = loss::cross_entropy(&read(logits_tv), targets, v);
        store(nll_t, &nll);
        store(lse_t, &lse);
    }

    fn cross_entropy_bwd(&self, logits_tv: &mut Buf, lse_t: &Buf, targets: &[u32], v: usize, scale: f32) {
        assert_eq!(logits_tv.len(), targets.len() * v, "length of the logits");
        let dlogits = loss::cross_entropy_bwd(&read(logits_tv), &read(lse_t), targets, v, scale);
        store(logits_tv, &dlogits);
    }

    fn sum_squares(&self, x: &Buf, at: usize, len: usize) -> f64 {
        let square_sum = |block: &[f32]| block.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        x.f32()[at..][..len].chunks(4096).map(square_sum).sum()
    }

    fn adamw(&self, p: AdamWBufs, at: usize, len: usize, c: AdamW) {
        assert_eq!(p.stored.len(), len, "length of the parameter");
        let (w, m, v, g) = (p.w.f32_mut(), p.m.f32_mut(), p.v.f32_mut(), p.g.f32_mut());
        for i in at..at + len {
            let [w1, m1, v1] =
                optim::adamw(&c, f64::from(w[i]), f64::from(m[i]), f64::from(v[i]), f64::from(g[i]));
            (w[i], m[i], v[i], g[i]) = (w1 as f32, m1 as f32, v1 as f32, 0.0);
        }
        self.upload(p.stored, 0, &w[at..][..len]);
    }
}

/// The arrays of a scan in f64.
struct ScanBufs {
    x_te: Vec<f64>,
    dt_te: Vec<f64>,
    p: Vec<f64>,
    xz: Vec<f64>,
    a_log_en: Vec<f64>,
    d_e: Vec<f64>,
    dt_bias_e: Vec<f64>,
}

impl ScanBufs {
    fn read(a: &Scan) -> Self {
        ScanBufs {
            x_te: read(a.x_te),
            dt_te: read(a.dt_te),
            p: read(a.p),
            xz: read(a.xz),
            a_log_en: read(a.a_log_en),
            d_e: read(a.d_e),
            dt_bias_e: read(a.dt_bias_e),
        }
    }

    fn arrays<'a>(&'a self, state: Option<&'a [f64]>) -> ScanArrays<'a, f64> {
        ScanArrays {
            x_te: &self.x_te,
            dt_te: &self.dt_te,
            p: &self.p,
            xz: &self.xz,
            a_log_en: &self.a_log_en,
            d_e: &self.d_e,
            dt_bias_e: &self.dt_bias_e,
            state,
        }
    }
}
