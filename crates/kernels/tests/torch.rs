//! The definition against PyTorch: numbers that `torch` 2 computes in f64 for the same small inputs.
//!
//! The inputs are multiples of 1/16, exact in f32, so only results are rounded. Element `i` of array
//! `seed` is `((37 i + 11 seed) mod 64 - 32) / 16`.

use zamba_kernels::reference::Reference;
use zamba_kernels::{
    Act, AdamW, AdamWBufs, Attention, Buf, Conv, Device, Dtype, IGNORE, Linear, Mat, Scan, Span,
};

const DEV: Reference = Reference;

fn buf(values: &[f32]) -> Buf {
    let mut buf = DEV.alloc(Dtype::F32, values.len());
    DEV.upload(&mut buf, 0, values);
    buf
}

fn seq(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (((i * 37 + seed * 11) % 64) as f32 - 32.0) / 16.0).collect()
}

fn input(seed: usize, len: usize) -> Buf {
    buf(&seq(seed, len))
}

fn empty(len: usize) -> Buf {
    DEV.alloc(Dtype::F32, len)
}

/// Compares to eight units roundoff of the largest element: results are stored in f32, and the scan
/// rounds its state four times on the way.
fn assert_close(got: &Buf, want: &[f64]) {
    let mut values = vec![0.0; got.len()];
    DEV.download(&mut values, got, 0);
    let tolerance = 8.0 * 2f64.powi(-24) * want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    assert_eq!(values.len(), want.len());
    for (got, want) in values.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() <= tolerance, "{got} instead of {want}");
    }
}

fn whole(len: usize) -> [Span; 1] {
    [Span { slot: 0, start: 0, len, pos: 0 }]
}

/// `F.silu`, `F.gelu`, `F.gelu(approximate="tanh")`, `F.relu`
#[test]
fn activations() {
    let x = [-6.0, -1.5, -0.25, 0.0, 0.5, 2.0, 25.0];
    let cases = [
        (Act::Silu, [-0.0148357389, -0.273638286, -0.109455875, 0.0, 0.311229666, 1.76159416, 25.0]),
        (Act::Gelu, [-5.91952587e-09, -0.100210802, -0.100323419, 0.0, 0.345731231, 1.95449974, 25.0]),
        (Act::GeluTanh, [-8.43964898e-11, -0.100428423, -0.100324649, 0.0, 0.34571401, 1.95459769, 25.0]),
        (Act::Relu, [0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 25.0]),
    ];
    for (act, want) in cases {
        for (x, want) in x.into_iter().zip(want) {
            let mut y = empty(1);
            DEV.glu(&mut y, &buf(&[x]), &buf(&[1.0]), act);
            assert_close(&y, &[want]);
        }
    }
}

/// `F.rms_norm(x, (5,), w, 1e-5)`
#[test]
fn rmsnorm() {
    let mut y = empty(10);
    DEV.rmsnorm(&mut y, None, &input(1, 10), &input(2, 5), 1e-5);
    let want = [
        0.759035099,
        1.56144363,
        0.0,
        -2.5373459,
        -0.0361445285,
        0.974023788,
        0.845313502,
        0.0,
        -1.78455073,
        -0.278292511,
    ];
    assert_close(&y, &want);
}

/// `cat([x[:, 1:3] @ w[:2].T, x[:, 4:6] @ w[2:].T], 1) + b`
#[test]
fn linear() {
    let w = Mat::new(4, 2, input(2, 8));
    let (x, bias, mut y) = (input(1, 12), input(3, 4), empty(8));
    let map = Linear {
        t: 2,
        groups: 2,
        o: 2,
        i: 2,
        x: &x,
        x_stride: 6,
        x_group: 3,
        x_at: 1,
        w: &w,
        w_at: 0,
        bias: Some(&bias),
    };
    DEV.linear(&mut y, map);
    let want = [-1.72265625, -0.46484375, 2.5078125, -0.3125, 2.76953125, -3.62890625, 1.6875, 1.2109375];
    assert_close(&y, &want);
}

/// `F.silu(F.conv1d(xz[:, 0::2].T[None], w[:, None], b, padding=2, groups=2)[0, :, :5].T)`
#[test]
fn conv() {
    let (xz, w, b, mut y) = (input(1, 20), input(2, 6), input(3, 2), empty(10));
    let spans = &whole(5);
    let conv = Conv { t: 5, e: 2, k: 3, act: Act::Silu, spans, xz: &xz, w_ek: &w, bias_e: Some(&b) };
    DEV.conv(&mut y, None, conv);
    let want = [
        0.0322262447,
        -0.259571162,
        -0.224085698,
        -0.17464278,
        0.532563916,
        -0.234822982,
        1.87688554,
        -0.173883771,
        -0.116116095,
        -0.0206053977,
    ];
    assert_close(&y, &want);
}

/// A loop over tokens of `s = exp(delta A) s + delta B x; y = ((s C).sum(1) + D x) F.silu(z)` with
/// `A = -exp(a_log)`, `delta = F.softplus(dt + dt_bias)`, and B and C repeated over the channels of a head
#[test]
fn scan() {
    let (t, e, h, n, r) = (4, 4, 2, 2, 1);
    let a_log: Vec<f32> = seq(5, e * n).iter().map(|v| v * 0.5).collect();
    let (x, dt, p, xz) =
        (input(1, t * e), input(2, t * e), input(3, t * h * (r + 2 * n)), input(4, t * 2 * e));
    let (a_log, d, dt_bias) = (buf(&a_log), input(6, e), input(7, e));
    let (mut y, mut state) = (empty(t * e), empty(n * e));
    let scan = Scan {
        t,
        e,
        h,
        n,
        r,
        spans: &whole(t),
        x_te: &x,
        dt_te: &dt,
        p: &p,
        xz: &xz,
        a_log_en: &a_log,
        d_e: &d,
        dt_bias_e: &dt_bias,
    };
    DEV.scan(&mut y, Some(&mut state), None, scan);
    let want = [
        -0.516908643,
        -1.01573418,
        0.298675311,
        -0.87343365,
        -0.104700625,
        -2.52057792,
        0.0480931482,
        0.620911904,
        -0.0187163284,
        -2.30341082,
        -1.47107579,
        0.806265152,
        -1.20924999,
        -1.15732182,
        -0.232983599,
        -0.169962888,
    ];
    assert_close(&y, &want);
    let want_state = [
        0.689483901,
        -1.78369904,
        0.514201976,
        -0.640385837,
        -0.910194981,
        -3.79054045,
        -0.915244815,
        1.22301372,
    ];
    assert_close(&state, &want_state);
}

/// `F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)`
#[test]
fn attention() {
    let (q, k, v, mut y) = (input(1, 24), input(2, 12), input(3, 12), empty(24));
    let spans = &whole(3);
    let attention = Attention {
        t: 3,
        h: 4,
        kv: 2,
        p: 2,
        scale: 0.5,
        bf16: false,
        spans,
        q: &q,
        k: &k,
        v: &v,
        slot_rows: None,
    };
    DEV.attention(&mut y, None, attention);
    let want = [
        0.0625,
        -1.625,
        0.0625,
        -1.625,
        0.6875,
        -1.0,
        0.6875,
        -1.0,
        1.07106577,
        -0.616434225,
        0.966636836,
        -0.720863164,
        1.15713308,
        -0.530366917,
        1.39742076,
        -0.290079237,
        0.745078749,
        -0.224667624,
        0.354069106,
        -0.0771217264,
        1.16831691,
        -0.184682599,
        1.40570276,
        0.00306422593,
    ];
    assert_close(&y, &want);
}

/// `F.cross_entropy(logits, [3, -100, 0], reduction="none")` and `torch.logsumexp(logits, 1)`
#[test]
fn cross_entropy() {
    let (mut nll, mut lse) = (empty(3), empty(3));
    DEV.cross_entropy(&mut nll, &mut lse, &input(1, 12), &[3, IGNORE, 0], 4);
    assert_close(&nll, &[0.523113554, 0.0, 1.22342776]);
    assert_close(&lse, &[2.14811355, 1.16092776, 2.41092776]);
}

/// Three steps of `AdamW(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)`. The betas are their
/// f32 neighbours here, 3e-8 away, which the moments show.
#[test]
fn adamw() {
    let (mut w, mut m, mut v) = (input(1, 3), empty(3), empty(3));
    for step in 1..=3 {
        let constants =
            AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step };
        let (mut g, mut stored) = (input(step as usize + 1, 3), empty(3));
        let bufs = AdamWBufs { w: &mut w, m: &mut m, v: &mut v, g: &mut g, stored: &mut stored };
        DEV.adamw(bufs, 0, 3, constants);
    }
    assert_close(&w, &[-1.29454209, 0.989998326, -0.700905232]);
    assert_close(&m, &[0.015, -0.05165625, 0.0996875]);
    assert_close(&v, &[0.011484375, 0.0744688721, 0.0292456055]);
}
