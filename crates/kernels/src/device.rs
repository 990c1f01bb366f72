//! The interface between the model and the machine.
//!
//! Conventions of every method: outputs come first; forward kernels *overwrite* their outputs;
//! backward kernels *add* to theirs, so that fan-in sums need no kernel of their own. Some say that they
//! overwrite: theirs is the first contribution, and memory that is zeroed and then added to is written
//! twice. Gradients of parameters add up in one flat f32 buffer, `dw_flat`, and a kernel is told at which
//! element its parameter starts (`*_at`). Sizes are asserted, never reported: shapes were checked when the
//! model was opened.
//!
//! The sum behind each output element is added up in an order that depends on the matrix and on
//! absolute positions alone: not on the number of tokens in the call, their chunking, or the number of
//! threads. So equal inputs give equal bits however a sequence is cut up or batched.

use std::sync::{Mutex, PoisonError};

use crate::{Buf, Dtype, FileMap, Mat};

/// A stretch of packed tokens that belong to one sequence.
///
/// `start` is the row of its first token in the packed arrays, `len` their number, `pos` the absolute
/// position of the first one in its sequence and `slot` the place of the sequence in the state buffers.
/// A span with `pos == 0` starts from zero state whatever the slot held before. The spans of a call are
/// not empty and tile its rows in order: each starts where the one before ends. Where there is state, no
/// two spans of a call name the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Slot of the sequence in the state buffers.
    pub slot: usize,
    /// First row in the packed arrays.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Absolute position of the first token.
    pub pos: usize,
}

/// Activation functions of the config's `hidden_act` and `hidden_mamba_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x * sigmoid(x)`
    Silu,
    /// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`
    Gelu,
    /// Tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`)
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

/// A linear map applied to `groups` column blocks of `x`.
///
/// Group `g` multiplies columns `x_at + g * x_group ..+ i` of each row of `x` (rows are `x_stride`
/// apart) by columns `w_at ..+ i` of rows `g * o ..+ o` of `w`, giving columns `g * o ..+ o` of `y`. A plain
/// linear layer has one group, `x_at = w_at = 0` and `x_stride = i`; Mamba's per-head projections have one group
/// per head, and a part of the columns of `w` is a part of each output's sum.
///
/// With bf16 weights every operand of a product is first rounded to bf16 ([`crate::round_bf16`]) and
/// sums are kept in f32; with f32 weights nothing is rounded. With quantised weights the input is quantised
/// too, and products are sums of integers with scales ([`mod@crate::quant`]); these have no gradients.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// Tokens.
    pub t: usize,
    /// Number of column blocks.
    pub groups: usize,
    /// Output width of a group.
    pub o: usize,
    /// Input width of a group.
    pub i: usize,
    /// Input, `[t, x_stride]`.
    pub x: &'a Buf,
    /// Elements from one row of `x` to the next.
    pub x_stride: usize,
    /// Columns from one group's input to the next.
    pub x_group: usize,
    /// First column of the first group's input.
    pub x_at: usize,
    /// Weights, `[groups * o, _]`.
    pub w: &'a Mat,
    /// First column of the weights.
    pub w_at: usize,
    /// Bias, `[groups * o]`.
    pub bias: Option<&'a Buf>,
}

/// Rows scaled by a weight per column and a factor per row: `y[t, c] = w[w_at + c] * s[t] * x[t, c]`.
#[derive(Clone, Copy)]
pub struct Scaled<'a> {
    /// Columns.
    pub d: usize,
    /// Rows, `[t, d]`.
    pub x_td: &'a Buf,
    /// Weights.
    pub w: &'a Buf,
    /// First weight.
    pub w_at: usize,
    /// Factors; 1 if there are none.
    pub s_t: Option<&'a Buf>,
}

/// Causal depthwise convolution with activation over the even columns of `xz`.
///
/// Rows of Zamba's `in_proj` are interleaved: column `2c` of `xz` is channel `c` of the signal and
/// column `2c + 1` its gate. Tap `k - 1` multiplies the current token.
#[derive(Clone, Copy)]
pub struct Conv<'a> {
    /// Tokens.
    pub t: usize,
    /// Channels.
    pub e: usize,
    /// Taps.
    pub k: usize,
    /// Activation after the bias.
    pub act: Act,
    /// Sequences in the packed rows.
    pub spans: &'a [Span],
    /// Signal and gate interleaved, `[t, 2 * e]`.
    pub xz: &'a Buf,
    /// Taps per channel, `[e, k]`.
    pub w_ek: &'a Buf,
    /// Bias, `[e]`.
    pub bias_e: Option<&'a Buf>,
}

/// Where the parameters of a [`Conv`] start in the flat gradient buffer.
#[derive(Clone, Copy, Debug)]
pub struct ConvAt {
    /// Taps.
    pub w: usize,
    /// Bias.
    pub bias: Option<usize>,
}

/// Selective scan of Mamba-1 with `h` independent heads, fused with softplus, skip and gate:
///
/// ```text
/// dt = softplus(dt_raw + dt_bias)      (identity above 20)
/// s  = exp(dt * A) * s + dt * B * x    with A = -exp(a_log), per channel and state
/// y  = (sum_n C * s + D * x) * silu(z)
/// ```
///
/// Head `j` owns channels `j * e/h ..+ e/h`; its B and C are columns `j * (r + 2n) + r ..+ n` and `..+ 2n`
/// of `p`. The gate `z` is the odd columns of `xz`.
/// Source: `mamba_selective_scan` of `modeling_zamba.py`; `selective_scan_ref` of mamba-ssm.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    /// Tokens.
    pub t: usize,
    /// Channels.
    pub e: usize,
    /// Heads.
    pub h: usize,
    /// States per channel.
    pub n: usize,
    /// Rank of dt in `p`.
    pub r: usize,
    /// Sequences in the packed rows.
    pub spans: &'a [Span],
    /// Convolved signal, `[t, e]`.
    pub x_te: &'a Buf,
    /// dt before bias and softplus, `[t, e]`.
    pub dt_te: &'a Buf,
    /// Output of `x_proj`, `[t, h * (r + 2n)]`: per head dt_low, B, C.
    pub p: &'a Buf,
    /// Signal and gate interleaved, `[t, 2 * e]`.
    pub xz: &'a Buf,
    /// Logarithm of the negative decay rates, `[e, n]`.
    pub a_log_en: &'a Buf,
    /// Skip weights, `[e]`.
    pub d_e: &'a Buf,
    /// Bias of dt, `[e]`.
    pub dt_bias_e: &'a Buf,
}

/// Positions of a token cache that lie together on every device: it can be cut at their multiples.
pub const CACHE_BLOCK: usize = 32;

/// Tokens between two states that [`Device::scan`] saves for its backward pass.
pub const SCAN_CHUNK: usize = 16;

impl Scan<'_> {
    /// Elements of the buffer of saved states: `n * e`, in an order of the device's own, per [`SCAN_CHUNK`]
    /// tokens of a span.
    pub fn saved_len(&self) -> usize {
        self.spans.iter().map(|s| s.len.div_ceil(SCAN_CHUNK)).sum::<usize>() * self.n * self.e
    }
}

/// Where the parameters of a [`Scan`] start in the flat gradient buffer.
#[derive(Clone, Copy, Debug)]
pub struct ScanAt {
    /// `a_log`.
    pub a_log: usize,
    /// `d`.
    pub d: usize,
    /// `dt_bias`.
    pub dt_bias: usize,
}

/// Gradients of the inputs of a [`Scan`], overwritten.
pub struct ScanGrads<'a> {
    /// Of the signal, `[t, e]`.
    pub dx_te: &'a mut Buf,
    /// Of the raw dt, `[t, e]`.
    pub ddt_te: &'a mut Buf,
    /// Of `p`; 0 in the columns of dt.
    pub dp: &'a mut Buf,
    /// Of `xz`; 0 in the even columns (the signal).
    pub dxz: &'a mut Buf,
}

/// Causal attention without position encoding.
///
/// Query head `j` reads key/value head `j / (h / kv)`. The query at position `q` of a sequence sees keys
/// `0..=q` of it. Without `slot_rows`, the key at position `j` of span `s` is row `s.start + j` of `k` and
/// `v`, the packed rows of this call, which needs `s.pos == 0`. With it, `k` and `v` are a cache that
/// [`Device::cache_rows`] has filled up to the last token of each span.
///
/// With `bf16`, operands of products are rounded to bf16 and sums are kept in f32: `q`, `k`, `v` and `dy` by
/// [`crate::round_bf16`], and the weights of the values and the gradients of the scores in any scale that
/// suits the kernel, so that each is off by up to 2^-8 of itself.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Tokens.
    pub t: usize,
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub kv: usize,
    /// Head width.
    pub p: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether operands are rounded to bf16. The buffers of a cache are bf16 if so, else f32.
    pub bf16: bool,
    /// Sequences in the packed rows.
    pub spans: &'a [Span],
    /// Queries, `[t, h * p]`.
    pub q: &'a Buf,
    /// Keys, `[t, kv * p]` or a cache.
    pub k: &'a Buf,
    /// Values, `[t, kv * p]` or a cache.
    pub v: &'a Buf,
    /// Rows per slot when `k` and `v` are a cache.
    pub slot_rows: Option<usize>,
}

/// Keys and values of new tokens on their way into a cache, see [`Device::cache_rows`].
#[derive(Clone, Copy)]
pub struct CacheRows<'a> {
    /// Key/value heads.
    pub kv: usize,
    /// Head width.
    pub p: usize,
    /// Sequences in the packed rows. Each continues what its slot holds, or begins at position 0.
    pub spans: &'a [Span],
    /// Keys, `[t, kv * p]`.
    pub k: &'a Buf,
    /// Values, `[t, kv * p]`.
    pub v: &'a Buf,
    /// Rows per slot of the cache.
    pub slot_rows: usize,
}

/// Constants of one AdamW step over one parameter.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; 0 for exempt parameters.
    pub weight_decay: f32,
    /// Factor on the gradient (clipping).
    pub grad_scale: f32,
    /// Step number from 1, for bias correction.
    pub step: u64,
}

/// The buffers of [`Device::adamw`].
pub struct AdamWBufs<'a> {
    /// Master weights of all parameters.
    pub w: &'a mut Buf,
    /// First moments.
    pub m: &'a mut Buf,
    /// Second moments.
    pub v: &'a mut Buf,
    /// Gradients.
    pub g: &'a mut Buf,
    /// The parameter as the model stores it.
    pub stored: &'a mut Buf,
}

/// A target that [`Device::cross_entropy`] skips.
pub const IGNORE: u32 = u32::MAX;

/// What a back end must offer. See the module text for the conventions of all methods.
///
/// Arrays are f32 unless a [`Mat`] is involved.
pub trait Device: Send + Sync {
    /// Name for reports, such as `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;

    /// Names the order and rounding of all sums, and the arrangement of caches: devices with equal ones give equal
    /// bits.
    fn arithmetic(&self) -> String;

    /// Worker threads that kernels use.
    fn threads(&self) -> usize;

    /// Zeroed memory of `len` elements.
    fn alloc(&self, dtype: Dtype, len: usize) -> Buf;

    /// As [`Device::alloc`], for weights: they are read whole for every token, so that a device may take up to a quarter more
    /// memory to have them read faster.
    fn alloc_weights(&self, dtype: Dtype, len: usize) -> Buf {
        self.alloc(dtype, len)
    }

    /// Memory that is a part of a file, read in place: `len` elements from byte `at` on. None if this device
    /// or the place of the bytes does not allow it. See [`FileMap`] for what that risks.
    fn map(&self, _dtype: Dtype, _len: usize, _file: &FileMap, _at: usize) -> Option<Buf> {
        None
    }

    /// Overwrites all of `y` with bytes in the order and form of its elements, little-endian. `fill` is called
    /// once for each of the pieces that make up the whole, with the first byte of the piece, from several
    /// threads at once. Pieces are large, and each but the last has a multiple of 64 bytes.
    fn upload_bytes(&self, y: &mut Buf, fill: &(dyn Fn(usize, &mut [u8]) + Sync));

    /// Shows all of `x` as bytes in the order and form of its elements, little-endian: the reverse of
    /// [`Device::upload_bytes`], in pieces of the same kind.
    fn download_bytes(&self, x: &Buf, look: &(dyn Fn(usize, &[u8]) + Sync));

    /// Copies host values to elements `at ..` of `y`, rounding to its type.
    fn upload(&self, y: &mut Buf, at: usize, x: &[f32]);

    /// Copies elements `at ..` of `x` to the host, widening to f32.
    fn download(&self, y: &mut [f32], x: &Buf, at: usize);

    /// Overwrites all of `y` with the bytes of its elements.
    ///
    /// # Panics
    /// If there are not as many.
    fn put_bytes(&self, y: &mut Buf, x: &[u8]) {
        assert_eq!(x.len(), y.bytes(), "bytes of {y:?}");
        self.upload_bytes(y, &|at, piece| piece.copy_from_slice(&x[at..][..piece.len()]));
    }

    /// The bytes of all elements of `x`.
    fn to_bytes(&self, x: &Buf) -> Vec<u8> {
        let all = Mutex::new(vec![0; x.bytes()]);
        self.download_bytes(x, &|at, bytes| {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all[at..][..bytes.len()].copy_from_slice(bytes);
        });
        all.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// `y[..] = value`
    fn fill(&self, y: &mut Buf, value: f32);

    /// `y[y_at ..+ len] = x[x_at ..+ len]`, rounding to the type of `y`.
    fn copy(&self, y: &mut Buf, y_at: usize, x: &Buf, x_at: usize, len: usize);

    /// `y[to ..+ len] = y[from ..+ len]`; the two parts do not overlap.
    fn copy_within(&self, y: &mut Buf, to: usize, from: usize, len: usize) {
        let mut host = vec![0.0; len];
        self.download(&mut host, y, from);
        self.upload(y, to, &host);
    }

    /// `y = a + b`
    fn add(&self, y: &mut Buf, a: &Buf, b: &Buf);

    /// `y += x`
    fn accumulate(&self, y: &mut Buf, x: &Buf);

    /// `s_t = 1 / sqrt(mean(u^2) + eps)` of each row `u = [a_t, b_t]`, which are of equal width.
    fn pair_rstd(&self, s_t: &mut Buf, a_td: &Buf, b_td: &Buf, eps: f32);

    /// Gradient of either array of [`Device::pair_rstd`], `x`.
    fn pair_rstd_bwd(&self, dx_td: &mut Buf, ds_t: &Buf, s_t: &Buf, x_td: &Buf);

    /// `y [t, d]`
    fn scale(&self, y_td: &mut Buf, a: Scaled);

    /// Gradients of [`Device::scale`]; `dw_at` is where the parameter starts of which `w` is a part. `ds_t` is given where there
    /// are factors.
    fn scale_bwd(
        &self,
        dx_td: &mut Buf,
        ds_t: Option<&mut Buf>,
        dw_flat: &mut Buf,
        dw_at: usize,
        dy_td: &Buf,
        a: Scaled,
    );

    /// `y[t, c] += s[t] * x[t, c]`
    fn add_scaled(&self, y: &mut Buf, s_t: &Buf, x: &Buf);

    /// Gradients of `s` and `x` of [`Device::add_scaled`].
    fn add_scaled_bwd(&self, ds_t: &mut Buf, dx: &mut Buf, dy: &Buf, s_t: &Buf, x: &Buf);

    /// Rows `rows` of `x` (`[_, d]`) one below the other.
    fn gather_rows(&self, y: &mut Buf, x: &Buf, rows: &[u32], d: usize);

    /// Adds row `j` of `dy` to row `rows[j]` of `dx`, in order of `j`.
    fn scatter_rows(&self, dx: &mut Buf, dy: &Buf, rows: &[u32], d: usize);

    /// Row `tokens[t]` of `w` widened to f32.
    fn embed(&self, y_td: &mut Buf, tokens: &[u32], w: &Mat);

    /// Adds row `t` of `dy` to row `tokens[t]` of the gradient at `w_at`, in order of `t`.
    fn embed_bwd(&self, dw_flat: &mut Buf, w_at: usize, dy_td: &Buf, tokens: &[u32], d: usize);

    /// `y [t, groups * o]`
    fn linear(&self, y: &mut Buf, a: Linear);

    /// Gradient of the input, in the layout of `x`. The weights must not be quantised.
    fn linear_dx(&self, dx: &mut Buf, dy: &Buf, a: Linear);

    /// Gradients of weights, which must not be quantised, and bias. The bias gradient has no products: its terms are not rounded to bf16.
    fn linear_dw(&self, dw_flat: &mut Buf, w_at: usize, bias_at: Option<usize>, dy: &Buf, a: Linear);

    /// `y = w * x / rms(x)` per row; `rstd_t`, if given, receives `1 / rms` per row.
    fn rmsnorm(&self, y_td: &mut Buf, rstd_t: Option<&mut Buf>, x_td: &Buf, w_d: &Buf, eps: f32);

    /// Gradients of [`Device::rmsnorm`].
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm_bwd(
        &self,
        dx_td: &mut Buf,
        dw_flat: &mut Buf,
        w_at: usize,
        dy_td: &Buf,
        x_td: &Buf,
        rstd_t: &Buf,
        w_d: &Buf,
    );

    /// `y [t, e]`. `window`, if given, is `[slots, k - 1, e]`: the last `k - 1` inputs of each slot,
    /// oldest first (0 before the start of the sequence), read where `pos > 0` and left as they are after
    /// the last token. Without it every span needs `pos == 0`.
    fn conv(&self, y_te: &mut Buf, window: Option<&mut Buf>, a: Conv);

    /// Gradients of [`Device::conv`]; adds to the even columns of `dxz`. Every span needs `pos == 0`.
    fn conv_bwd(&self, dxz: &mut Buf, dw_flat: &mut Buf, at: ConvAt, dy_te: &Buf, a: Conv);

    /// `y [t, e]`. `state`, if given, is `[slots, n, e]`, read where `pos > 0` and left as it is after the
    /// last token; without it every span needs `pos == 0`. `saved`, if given, has [`Scan::saved_len`]
    /// elements and receives what the backward pass needs.
    fn scan(&self, y_te: &mut Buf, state: Option<&mut Buf>, saved: Option<&mut Buf>, a: Scan);

    /// Gradients of [`Device::scan`]. Every span needs `pos == 0`.
    fn scan_bwd(&self, g: ScanGrads, dw_flat: &mut Buf, at: ScanAt, dy_te: &Buf, saved: &Buf, a: Scan);

    /// Elements that a cache of keys, or one of values, has for the first `rows` positions of a slot. Slot `s` of
    /// a cache with `n` rows per slot begins at element `s * cache_len(n)`, and what it holds of a sequence of
    /// `m` tokens is its first `cache_len(m)` elements; at multiples of [`CACHE_BLOCK`] the rest belongs to later
    /// tokens alone. How they are arranged is the device's own business.
    fn cache_len(&self, dtype: Dtype, rows: usize, kv: usize, p: usize) -> usize;

    /// Puts the rows of each span at positions `pos ..` of its slot of the caches, rounding to their type.
    fn cache_rows(&self, keys: &mut Buf, values: &mut Buf, a: CacheRows);

    /// `y [t, h * p]`; `lse_th`, if given, receives the log of the sum of exponentials per query.
    fn attention(&self, y: &mut Buf, lse_th: Option<&mut Buf>, a: Attention);

    /// Gradients of [`Device::attention`] over packed rows (`slot_rows` is `None`).
    #[allow(clippy::too_many_arguments)]
    fn attention_bwd(
        &self,
        dq: &mut Buf,
        dk: &mut Buf,
        dv: &mut Buf,
        dy: &Buf,
        y: &Buf,
        lse_th: &Buf,
        a: Attention,
    );

    /// `y = act(gate) * up`
    fn glu(&self, y: &mut Buf, gate: &Buf, up: &Buf, act: Act);

    /// Gradients of [`Device::glu`], overwritten.
    fn glu_bwd(&self, dgate: &mut Buf, dup: &mut Buf, dy: &Buf, gate: &Buf, up: &Buf, act: Act);

    /// `nll_t = lse_t - logits[t, target]`, 0 where the target is [`IGNORE`]; `lse_t` is the log of the sum
    /// of exponentials of each row of `logits [t, v]`.
    fn cross_entropy(&self, nll_t: &mut Buf, lse_t: &mut Buf, logits_tv: &Buf, targets: &[u32], v: usize);

    /// Turns `logits` into the gradient of `scale * sum(nll)`: `scale * (softmax(logits) - onehot(target))`, 0
    /// where the target is [`IGNORE`]. In place, because logits are the largest array of a step.
    fn cross_entropy_bwd(&self, logits_tv: &mut Buf, lse_t: &Buf, targets: &[u32], v: usize, scale: f32);

    /// Sum of squares of `x[at ..+ len]` in f64, over fixed blocks of 4,096 elements in order.
    fn sum_squares(&self, x: &Buf, at: usize, len: usize) -> f64;

    /// One AdamW step over elements `at ..+ len` of the flat buffers: `w -= lr * (m^ / (sqrt(v^) + eps) +
    /// weight_decay * w)` with bias-corrected moments (decoupled decay, as `torch.optim.AdamW`). In the same
    /// pass over memory it leaves the gradients 0, ready for the next step, and the new weights, rounded to its
    /// type, in `stored`, which has `len` elements.
    fn adamw(&self, p: AdamWBufs, at: usize, len: usize, c: AdamW);
}
