//! Zamba: one file, one forward.
//!
//! ```text
//! x0 = embed(tokens)                       h = x0
//! for each layer:
//!   u = h                                  (Mamba layer)
//!   u = h + link(shared([h, x0]))          (hybrid layer; the shared block has no residual of its own)
//!   h = h + mamba(norm(u))
//! logits = head(norm(h))
//! ```
//!
//! Source: `modeling_zamba.py` of transformers 5.23; figure 2 and equation 6 of arXiv 2405.16712.

use std::collections::HashMap;
use std::sync::Arc;

use zamba_kernels::{Buf, Device, Dtype, Mat, quant};

use crate::config::{LayerKind, QuantFormat, ZambaConfig};
use crate::ctx::Ctx;
use crate::ops::{AttentionSizes, MambaSizes, ScanParams};
use crate::param::Param;
use crate::pool::Var;
use crate::spec::{TensorSpec, tensors};

/// Counts the changes to the order or the rounding of the model's sums. Where this and a device's
/// [`arithmetic`](Device::arithmetic) are the same, results are the same in bits: what is kept for later names both.
pub const ARITHMETIC: u32 = 2;

/// A Zamba model: its config and weights on a device.
pub struct Zamba {
    /// What the model is.
    pub config: ZambaConfig,
    dev: Arc<dyn Device>,
    specs: Vec<TensorSpec>,
    embed: Param, // [v, d]
    layers: Vec<Layer>,
    shared: Option<Shared>,
    final_norm: Param,   // [d]
    head: Option<Param>, // [v, d]; the embedding when absent
}

/// One layer; every layer has a Mamba mixer, hybrid ones also use the shared block.
#[derive(Clone)]
struct Layer {
    index: usize,
    hybrid: Option<Hybrid>,
    norm: Param, // [d]
    mamba: Mamba,
}

/// What a hybrid layer owns of its use of the shared block.
#[derive(Clone)]
struct Hybrid {
    site: usize,
    link: Param, // [d, d]
}

#[derive(Clone)]
struct Mamba {
    in_proj: Param,           // [2e, d], rows interleaved: signal, gate
    in_bias: Option<Param>,   // [2e]
    conv: Param,              // [e, k]
    conv_bias: Option<Param>, // [e]
    x_proj: Param,            // [h * (r + 2n), p]
    dt_proj: Param,           // [h * p, r]
    scan: ScanParams,         // a_log [e, n], d [e], dt_bias [e]
    out_proj: Param,          // [d, e]
    out_bias: Option<Param>,  // [d]
}

/// The global shared block: attention and MLP over the hidden state beside the original embedding.
#[derive(Clone)]
struct Shared {
    norm: Param,    // [2d]
    q: Param,       // [h * p, 2d]
    k: Param,       // [kv * p, 2d]
    v: Param,       // [kv * p, 2d]
    o: Param,       // [d, h * p]
    ff_norm: Param, // [d]
    gate: Param,    // [f, d]
    up: Param,      // [f, d]
    down: Param,    // [d, f]
}

/// Sizes that the forward pass hands to operations.
#[derive(Clone, Copy)]
struct Sizes {
    mamba: MambaSizes,
    attention: AttentionSizes,
    eps: f32,
    hidden_act: zamba_kernels::Act,
    mamba_act: zamba_kernels::Act,
}

impl Mamba {
    fn forward(&self, ctx: &mut Ctx, u: &Var, s: &Sizes, layer: usize) -> Var {
        let MambaSizes { e, h, n, r } = s.mamba;
        let xz = ctx.linear(u, &self.in_proj, self.in_bias.as_ref());
        let x = ctx.conv(&xz, &self.conv, self.conv_bias.as_ref(), s.mamba_act, layer);
        let p = ctx.linear_heads(&x, &self.x_proj, h, e / h);
        let dt = ctx.linear_heads(&p, &self.dt_proj, h, r + 2 * n);
        let y = ctx.scan((&x, &dt, &p, &xz), &self.scan, s.mamba, layer);
        ctx.linear(&y, &self.out_proj, self.out_bias.as_ref())
    }
}

/// The untouched embedding as the shared block sees it beside the running stream.
///
/// Queries, keys and values are `W [h, x0] / rms([h, x0])`, `W` with the weights of the norm in it. As a sum over
/// columns that is `(W_h h + W_x x0) / rms([h, x0])`, and `W_x x0` is the same wherever the block is used: it is
/// computed once per token instead of once per use.
#[derive(Clone)]
struct Beside {
    x: Var, // [t, d], times the weights of the norm
    q: Var, // [t, h * p]
    k: Var, // [t, kv * p]
    v: Var, // [t, kv * p]
}

impl Beside {
    /// From its four values in order.
    fn of(values: &[Var]) -> Self {
        let [x, q, k, v] = values else { unreachable!("four values") };
        Beside { x: x.clone(), q: q.clone(), k: k.clone(), v: v.clone() }
    }
}

impl Shared {
    fn beside(&self, ctx: &mut Ctx, x0: &Var) -> Beside {
        let d = x0.cols();
        let x = ctx.scale(x0, &self.norm, d, None);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|w| ctx.linear_part(&x, w, d, None));
        Beside { x, q, k, v }
    }

    /// Sees the running stream and the untouched embedding side by side.
    fn forward(&self, ctx: &mut Ctx, h: &Var, x0: &Var, beside: &Beside, s: &Sizes, site: usize) -> Var {
        let rstd = ctx.pair_rstd(h, x0, s.eps);
        let u = ctx.scale(h, &self.norm, 0, Some(&rstd));
        let [q, k, v] =
            [(&self.q, &beside.q), (&self.k, &beside.k), (&self.v, &beside.v)].map(|(w, x_part)| {
                ctx.note_columns(w, 0, &u, None);
                ctx.note_columns(w, u.cols(), &beside.x, Some(&rstd));
                ctx.linear_part(&u, w, 0, Some((&rstd, x_part)))
            });
        let a = ctx.attention(&q, &k, &v, s.attention, site);
        let a = ctx.linear(&a, &self.o, None);
        let u = ctx.rmsnorm(&a, &self.ff_norm, s.eps);
        let gate = ctx.linear(&u, &self.gate, None);
        let up = ctx.linear(&u, &self.up, None);
        let f = ctx.glu(&gate, &up, s.hidden_act);
        ctx.linear(&f, &self.down, None)
    }
}

impl Layer {
    fn forward(
        &self,
        ctx: &mut Ctx,
        h: &Var,
        x0: &Var,
        shared: Option<(&Shared, &Beside)>,
        s: &Sizes,
    ) -> Var {
        // The shared block's output enters the Mamba mixer and never the residual stream.
        let u = match (&self.hybrid, shared) {
            (Some(hybrid), Some((shared, beside))) => {
                let a = shared.forward(ctx, h, x0, beside, s, hybrid.site);
                let a = ctx.linear(&a, &hybrid.link, None);
                ctx.add(h, &a)
            }
            _ => h.clone(),
        };
        let u = ctx.rmsnorm(&u, &self.norm, s.eps);
        let y = self.mamba.forward(ctx, &u, s, self.index);
        ctx.add(h, &y)
    }

    /// [`Layer::forward`] of which the tape keeps the inputs alone.
    fn recomputed(
        &self,
        ctx: &mut Ctx,
        h: &Var,
        x0: &Var,
        shared: Option<(&Shared, &Beside)>,
        s: Sizes,
    ) -> Var {
        let layer = self.clone();
        let Some((shared, Beside { x, q, k, v })) = shared else {
            return ctx.recompute(&[h, x0], move |ctx, v| layer.forward(ctx, &v[0], &v[1], None, &s));
        };
        let shared = shared.clone();
        ctx.recompute(&[h, x0, x, q, k, v], move |ctx, v| {
            let [h, x0, beside @ ..] = v else { unreachable!("as many as were given") };
            layer.forward(ctx, h, x0, Some((&shared, &Beside::of(beside))), &s)
        })
    }
}

impl Zamba {
    /// Hidden states after the final norm, `[t, d]`, of all tokens of the batch: training, scoring,
    /// prefill and decode.
    pub fn forward(&self, ctx: &mut Ctx) -> Var {
        let s = self.sizes();
        let x0 = ctx.embed(&self.embed);
        let mut h = x0.clone();
        let beside = self.shared.as_ref().map(|shared| shared.beside(ctx, &x0));
        for layer in &self.layers {
            let shared = self.shared.as_ref().zip(beside.as_ref()).filter(|_| layer.hybrid.is_some());
            h = if ctx.recomputes_layers() {
                layer.recomputed(ctx, &h, &x0, shared, s)
            } else {
                layer.forward(ctx, &h, &x0, shared, &s)
            };
        }
        ctx.rmsnorm(&h, &self.final_norm, s.eps)
    }

    /// Logits `[t, v]` of hidden states `[t, d]`.
    pub fn logits(&self, ctx: &mut Ctx, hidden: &Var) -> Var {
        ctx.linear(hidden, self.head.as_ref().unwrap_or(&self.embed), None)
    }

    /// Negative log-likelihoods `[t, 1]` of `targets` after hidden states `[t, d]`, as
    /// [`Ctx::cross_entropy`] of [`Zamba::logits`] gives them, without ever holding all logits.
    pub fn nll(&self, ctx: &mut Ctx, hidden: &Var, targets: &[u32]) -> Var {
        ctx.head_loss(hidden, self.head.as_ref().unwrap_or(&self.embed), targets)
    }

    /// Adds the gradients of `scale * sum(nll)` to `flat` (see [`Ctx::backward`]) and returns the `nll` of
    /// [`Zamba::nll`]. Ends the pass that gave `hidden`.
    pub fn backward(&self, ctx: Ctx, hidden: Var, targets: &[u32], scale: f32, flat: &mut Buf) -> Vec<f32> {
        let nll =
            ctx.backward_from_head(hidden, self.head.as_ref().unwrap_or(&self.embed), targets, scale, flat);
        let mut host = vec![0.0; targets.len()];
        self.dev.download(&mut host, nll.buf(), 0);
        host
    }

    fn sizes(&self) -> Sizes {
        let c = &self.config;
        Sizes {
            mamba: MambaSizes { e: c.d_inner(), h: c.n_mamba_heads, n: c.mamba_d_state, r: c.mamba_dt_rank },
            attention: AttentionSizes {
                h: c.num_attention_heads,
                kv: c.num_key_value_heads,
                p: c.attention_head_dim,
                scale: c.attention_scale(),
                bf16: self.rounds_attention(),
            },
            eps: c.rms_norm_eps as f32,
            hidden_act: c.hidden_act,
            mamba_act: c.hidden_mamba_act,
        }
    }

    /// Whether attention rounds the operands of its products to bf16, and so keeps keys and values in it: where
    /// weight matrices are not f32.
    pub fn rounds_attention(&self) -> bool {
        self.shared.as_ref().is_some_and(|s| s.k.mat().dtype() != Dtype::F32)
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.dev
    }

    /// Names, shapes and kinds of all tensors, in the order of [`Zamba::params`].
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Number of trainable values, each shared weight once.
    pub fn num_parameters(&self) -> usize {
        self.specs.iter().map(TensorSpec::len).sum()
    }

    /// All weights in the order of [`Zamba::specs`]: the one list that load, save, count, clip, step and
    /// quantise walk.
    pub fn params(&self) -> Vec<&Param> {
        let mut all = vec![&self.embed, &self.final_norm];
        all.extend(&self.head);
        for layer in &self.layers {
            all.push(&layer.norm);
            all.extend(layer.hybrid.as_ref().map(|h| &h.link));
            all.extend(layer.mamba.params());
        }
        all.extend(self.shared.iter().flat_map(Shared::params));
        all.sort_by_key(|p| p.id());
        all
    }

    /// All weights to be written, in the order of [`Zamba::specs`].
    pub fn params_mut(&mut self) -> Vec<&mut Param> {
        let mut all = vec![&mut self.embed, &mut self.final_norm];
        all.extend(&mut self.head);
        for layer in &mut self.layers {
            all.push(&mut layer.norm);
            all.extend(layer.hybrid.as_mut().map(|h| &mut h.link));
            all.extend(layer.mamba.params_mut());
        }
        all.extend(self.shared.iter_mut().flat_map(Shared::params_mut));
        all.sort_by_key(|p| p.id());
        all
    }

    /// Copies weight `id` to the host; a quantised one is multiplied out.
    pub fn read_param(&self, id: usize, out: &mut Vec<f32>) {
        let params = self.params();
        let mat = params[id].mat();
        out.resize(mat.len(), 0.0);
        if !mat.dtype().is_quantised() {
            return self.dev.download(out, &mat.buf, 0);
        }
        let bytes = self.dev.to_bytes(&mat.buf);
        quant::widen(mat.dtype(), mat.rows(), mat.cols(), &bytes, out);
    }

    /// Sets every weight from a flat f32 buffer in the order of [`Zamba::params`], rounding matrices to
    /// their storage format.
    ///
    /// # Panics
    /// If `flat` does not hold [`Zamba::num_parameters`] values, or a matrix is quantised.
    pub fn set_weights(&mut self, flat: &Buf) {
        assert_eq!(flat.len(), self.num_parameters());
        let dev = self.dev.clone();
        for p in self.params_mut() {
            let at = p.at();
            let mat = p.mat_mut();
            let len = mat.len();
            dev.copy(&mut mat.buf, 0, flat, at, len);
        }
    }

    /// Builds a model whose weight matrices are stored as `format`, but for those that `config` says are
    /// quantised; vectors and scan parameters are always f32. `fill` receives each tensor of [`tensors`] in order and the memory to write.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn build<E>(
        config: ZambaConfig,
        dev: Arc<dyn Device>,
        format: Dtype,
        mut fill: impl FnMut(&TensorSpec, &mut Buf) -> Result<(), E>,
    ) -> Result<Self, E> {
        let specs = tensors(&config);
        let mut made = HashMap::new();
        let mut at = 0;
        for (id, spec) in specs.iter().enumerate() {
            let (rows, cols) = spec.rows_cols();
            let plain = if spec.keeps_f32() { Dtype::F32 } else { format };
            let dtype = spec.quantised(&config).map_or(plain, QuantFormat::dtype);
            let mut buf = dev.alloc_weights(dtype, spec.len());
            fill(spec, &mut buf)?;
            made.insert(spec.name.clone(), Param::new(id, at, Mat::new(rows, cols, buf)));
            at += spec.len();
        }
        Ok(Self::assemble(config, dev, specs, Named { prefix: "model.".into(), made }))
    }

    fn assemble(config: ZambaConfig, dev: Arc<dyn Device>, specs: Vec<TensorSpec>, mut p: Named) -> Self {
        let head = p.made.remove("lm_head.weight");
        let embed = p.one("embed_tokens.weight");
        let final_norm = p.one("final_layernorm.weight");
        let mut shared = None;
        let mut site = 0;
        let mut layers = vec![];
        for (index, kind) in config.layers_block_type.iter().enumerate() {
            let prefix = format!("model.layers.{index}.");
            let mut hybrid = None;
            p.prefix = prefix.clone();
            if *kind == LayerKind::Hybrid {
                hybrid = Some(Hybrid { site, link: p.one("linear.weight") });
                site += 1;
                p.prefix = format!("{prefix}shared_transf.");
                shared = shared.or_else(|| Some(Shared::take(&mut p)));
                p.prefix = format!("{prefix}mamba_decoder.");
            }
            let norm = p.one("input_layernorm.weight");
            p.prefix.push_str("mamba.");
            layers.push(Layer { index, hybrid, norm, mamba: Mamba::take(&mut p) });
        }
        assert!(p.made.is_empty(), "tensors without a place in the model: {:?}", p.made.keys());
        Zamba { config, dev, specs, embed, layers, shared, final_norm, head }
    }
}

/// Parameters by name, taken one by one under a moving prefix.
struct Named {
    prefix: String,
    made: HashMap<String, Param>,
}

impl Named {
    fn maybe(&mut self, name: &str) -> Option<Param> {
        self.made.remove(&format!("{}{name}", self.prefix))
    }

    fn one(&mut self, name: &str) -> Param {
        self.maybe(name).unwrap_or_else(|| panic!("the list of tensors lacks {}{name}", self.prefix))
    }
}

impl Mamba {
    fn take(p: &mut Named) -> Self {
        Mamba {
            in_proj: p.one("in_proj.weight"),
            in_bias: p.maybe("in_proj.bias"),
            conv: p.one("conv1d.weight"),
            conv_bias: p.maybe("conv1d.bias"),
            x_proj: p.one("x_proj_weight"),
            dt_proj: p.one("dt_proj_weight"),
            scan: ScanParams { a_log: p.one("A_log"), d: p.one("D"), dt_bias: p.one("dt_proj_bias") },
            out_proj: p.one("out_proj.weight"),
            out_bias: p.maybe("out_proj.bias"),
        }
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        let ScanParams { a_log, d, dt_bias } = &self.scan;
        [&self.in_proj, &self.conv, &self.x_proj, &self.dt_proj, a_log, d, dt_bias, &self.out_proj]
            .into_iter()
            .chain(&self.in_bias)
            .chain(&self.conv_bias)
            .chain(&self.out_bias)
    }

    fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let ScanParams { a_log, d, dt_bias } = &mut self.scan;
        [
            &mut self.in_proj,
            &mut self.conv,
            &mut self.x_proj,
            &mut self.dt_proj,
            a_log,
            d,
            dt_bias,
            &mut self.out_proj,
        ]
        .into_iter()
        .chain(&mut self.in_bias)
        .chain(&mut self.conv_bias)
        .chain(&mut self.out_bias)
    }
}

impl Shared {
    fn take(p: &mut Named) -> Self {
        Shared {
            norm: p.one("input_layernorm.weight"),
            q: p.one("self_attn.q_proj.weight"),
            k: p.one("self_attn.k_proj.weight"),
            v: p.one("self_attn.v_proj.weight"),
            o: p.one("self_attn.o_proj.weight"),
            ff_norm: p.one("pre_ff_layernorm.weight"),
            gate: p.one("feed_forward.gate_proj.weight"),
            up: p.one("feed_forward.up_proj.weight"),
            down: p.one("feed_forward.down_proj.weight"),
        }
    }

    fn params(&self) -> [&Param; 9] {
        let Shared { norm, q, k, v, o, ff_norm, gate, up, down } = self;
        [norm, q, k, v, o, ff_norm, gate, up, down]
    }

    fn params_mut(&mut self) -> [&mut Param; 9] {
        let Shared { norm, q, k, v, o, ff_norm, gate, up, down } = self;
        [norm, q, k, v, o, ff_norm, gate, up, down]
    }
}
