//! Equal bits however a sequence is cut up, and whoever is served beside it.

use super::{Rng, download, rubbish, upload};
use crate::{Act, Attention, Buf, CacheRows, Conv, Device, Dtype, Linear, Mat, Scan, Span};

/// Tokens of the sequence: more than two chunks of the scan.
const TOKENS: usize = 150;
const E: usize = 34;
const N: usize = 16;
const R: usize = 5;
const H: usize = 2;
const K: usize = 4;
/// Slot of the sequence; the other ones belong to neighbours.
const SLOT: usize = 1;
const SLOTS: usize = 3;

/// A layer's worth of inputs and weights, with every kernel that carries state or sums over inputs.
struct Layer {
    dtype: Dtype,
    xz: Vec<f32>,
    w_ek: Buf,
    bias_e: Buf,
    x_proj: Mat,
    dt_proj: Mat,
    a_log_en: Buf,
    d_e: Buf,
    dt_bias_e: Buf,
    norm_e: Buf,
}

/// What a sequence carries from call to call.
struct Carried {
    window: Buf,
    state: Buf,
    keys: Buf,
    values: Buf,
}

impl Carried {
    /// Slots full of NaN: new sequences must not read them.
    fn new(dev: &dyn Device, dtype: Dtype) -> Self {
        let cache = || {
            let mut cache = dev.alloc(dtype, SLOTS * dev.cache_len(dtype, TOKENS, H, E / H));
            dev.fill(&mut cache, f32::NAN);
            cache
        };
        Carried {
            window: rubbish(dev, SLOTS * (K - 1) * E),
            state: rubbish(dev, SLOTS * N * E),
            keys: cache(),
            values: cache(),
        }
    }
}

impl Layer {
    fn new(dev: &dyn Device, dtype: Dtype) -> Self {
        let mut rng = Rng::new("cutting");
        let p = H * (R + 2 * N);
        let a_log: Vec<f32> = (0..E * N).map(|i| ((i % N + 1) as f32).ln()).collect();
        let f32s = |values: &[f32]| upload(dev, Dtype::F32, values);
        Layer {
            dtype,
            xz: rng.normals(TOKENS * 2 * E),
            w_ek: f32s(&rng.normals(E * K)),
            bias_e: f32s(&rng.normals(E)),
            x_proj: Mat::new(p, E / H, upload(dev, dtype, &rng.scaled(p * E / H, 0.2))),
            dt_proj: Mat::new(E, R, upload(dev, dtype, &rng.scaled(E * R, 0.2))),
            a_log_en: f32s(&a_log),
            d_e: f32s(&rng.normals(E)),
            dt_bias_e: f32s(&rng.normals(E)),
            norm_e: f32s(&rng.normals(E)),
        }
    }

    /// One call: convolution, projections, scan, norm, then attention of the result to itself. Returns
    /// the rows of all results.
    fn call(&self, dev: &dyn Device, xz: &[f32], spans: &[Span], carried: &mut Carried) -> Vec<Vec<f32>> {
        let t = xz.len() / (2 * E);
        let xz = &upload(dev, Dtype::F32, xz);
        let mut x_te = rubbish(dev, t * E);
        let (w_ek, bias_e) = (&self.w_ek, Some(&self.bias_e));
        let conv = Conv { t, e: E, k: K, act: Act::Silu, spans, xz, w_ek, bias_e };
        dev.conv(&mut x_te, Some(&mut carried.window), conv);

        let width = R + 2 * N;
        let (mut p, mut dt_te) = (rubbish(dev, t * H * width), rubbish(dev, t * E));
        let map = Linear {
            t,
            groups: H,
            o: width,
            i: E / H,
            x: &x_te,
            x_stride: E,
            x_group: E / H,
            x_at: 0,
            w: &self.x_proj,
            w_at: 0,
            bias: None,
        };
        dev.linear(&mut p, map);
        let dt_map =
            Linear { o: E / H, i: R, x: &p, x_stride: H * width, x_group: width, w: &self.dt_proj, ..map };
        dev.linear(&mut dt_te, dt_map);

        let mut y_te = rubbish(dev, t * E);
        let Layer { a_log_en, d_e, dt_bias_e, .. } = self;
        let (x_te, dt_te, p) = (&x_te, &dt_te, &p);
        let scan = Scan { t, e: E, h: H, n: N, r: R, spans, x_te, dt_te, p, xz, a_log_en, d_e, dt_bias_e };
        dev.scan(&mut y_te, Some(&mut carried.state), None, scan);

        let mut q = rubbish(dev, t * E);
        dev.rmsnorm(&mut q, None, &y_te, &self.norm_e, 1e-5);
        let rows = CacheRows { kv: H, p: E / H, spans, k: &q, v: &y_te, slot_rows: TOKENS };
        dev.cache_rows(&mut carried.keys, &mut carried.values, rows);
        let mut out = rubbish(dev, t * E);
        let (k, v, slot_rows) = (&carried.keys, &carried.values, Some(TOKENS));
        let bf16 = self.dtype == Dtype::Bf16;
        let attention =
            Attention { t, h: H, kv: H, p: E / H, scale: 0.3, bf16, spans, q: &q, k, v, slot_rows };
        dev.attention(&mut out, None, attention);
        [x_te, p, dt_te, &y_te, &q, &out].map(|b| download(dev, b)).to_vec()
    }

    /// Results of the sequence cut into `pieces`, each packed after `before` and before `after` tokens of
    /// neighbours.
    fn run(&self, dev: &dyn Device, pieces: &[usize], before: usize, after: usize) -> Vec<Vec<u32>> {
        let mut carried = Carried::new(dev, self.dtype);
        let mut rng = Rng::new("neighbours");
        let mut results = vec![vec![]; 6];
        let mut pos = 0;
        for &len in pieces {
            let mut xz = rng.normals(before * 2 * E);
            xz.extend(&self.xz[pos * 2 * E..][..len * 2 * E]);
            xz.extend(rng.normals(after * 2 * E));
            let mut spans = vec![
                Span { slot: 2, start: 0, len: before, pos: 0 },
                Span { slot: SLOT, start: before, len, pos },
                Span { slot: 0, start: before + len, len: after, pos: 0 },
            ];
            spans.retain(|s| s.len > 0);
            let t = before + len + after;
            for (all, rows) in results.iter_mut().zip(self.call(dev, &xz, &spans, &mut carried)) {
                let width = rows.len() / t;
                all.extend(rows[before * width..][..len * width].iter().map(|v| v.to_bits()));
            }
            pos += len;
        }
        assert_eq!(pos, TOKENS, "pieces make up the sequence");
        results
    }
}

/// Checks that a sequence gives the same bits on `dev` whole, in chunks and token by token, alone and
/// among others, through convolution, linear maps, scan, norm, cache and attention.
///
/// # Errors
/// The first kernel and cut whose bits differ, in words.
pub fn check_cutting(dev: &dyn Device) -> Result<(), String> {
    const NAMES: [&str; 6] = ["conv", "x_proj", "dt_proj", "scan", "rmsnorm", "attention"];
    let ones = [1; TOKENS];
    let cuts: [(&[usize], usize, usize); 7] = [
        (&[TOKENS], 3, 0),
        (&[64, 64, 22], 0, 0),
        (&[3, 60, 1, 86], 0, 0),
        (&[1, 2, 1, 100, 46], 1, 0),
        (&[65, 63, 22], 70, 5),
        (&ones, 0, 0),
        (&ones, 1, 2),
    ];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let layer = Layer::new(dev, dtype);
        let whole = layer.run(dev, &[TOKENS], 0, 0);
        for (pieces, before, after) in cuts {
            let cut = layer.run(dev, pieces, before, after);
            for (name, (cut, whole)) in NAMES.iter().zip(cut.iter().zip(&whole)) {
                if let Some(i) = (0..whole.len()).find(|&i| cut[i] != whole[i]) {
                    let (got, want) = (f32::from_bits(cut[i]), f32::from_bits(whole[i]));
                    let cut = format!("{dtype:?} pieces {pieces:?} after {before} and before {after} others");
                    return Err(format!(
                        "{name} on {}: element {i} is {got:e} for {cut}, {want:e} whole",
                        dev.name()
                    ));
                }
            }
        }
    }
    super::quant::check_cutting(dev)
}
