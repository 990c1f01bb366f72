//! The arithmetic of a training step: forward, backward, update. The run and the bench share it.

use std::convert::Infallible;
use std::sync::Arc;

use zamba::spec::TensorSpec;
use zamba::{Batch, Ctx, Workspace, Zamba, ZambaConfig};
use zamba_kernels::{AdamW, Buf, Device, Dtype};

use crate::recipe::Optimiser;
use crate::state::RunState;

/// Runs `batch` forward under a tape and returns the pass, whose [`Ctx::backward`] adds its gradients, and
/// the sum of its losses in nats. Gradients are those of the sum times `scale`.
pub fn forward(
    model: &Zamba,
    workspace: &Workspace,
    batch: Batch,
    targets: &[u32],
    scale: f32,
    recompute: bool,
) -> (Ctx<'static>, f64) {
    let mut ctx = workspace.train(batch, recompute);
    let hidden = model.forward(&mut ctx);
    let logits = model.logits(&mut ctx, &hidden);
    let nll = ctx.cross_entropy(&logits, targets, scale);
    let mut nll_t = vec![0.0; targets.len()];
    ctx.read(&nll, 0, &mut nll_t);
    (ctx, nll_t.iter().map(|x| f64::from(*x)).sum())
}

/// The global norm of the gradients.
pub fn norm(device: &dyn Device, grads: &Buf) -> f64 {
    device.sum_squares(grads, 0, grads.len()).sqrt()
}

/// AdamW over every tensor with gradients clipped to the global norm, as
/// `torch.nn.utils.clip_grad_norm_` scales them. The weights of the model are the master weights, rounded.
pub fn update(
    model: &mut Zamba,
    state: &mut RunState,
    device: &dyn Device,
    grads: &Buf,
    optimiser: &Optimiser,
    lr: f64,
    norm: f64,
) {
    let o = optimiser;
    let clip = if o.clip > 0.0 { (o.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    state.updates += 1;
    let RunState { weights, m, v, updates, .. } = state;
    let mut at = 0;
    for spec in model.specs() {
        let weight_decay = if spec.decays() { o.weight_decay } else { 0.0 };
        let constants = AdamW {
            lr: lr as f32,
            beta1: o.beta1 as f32,
            beta2: o.beta2 as f32,
            eps: o.eps as f32,
            weight_decay: weight_decay as f32,
            grad_scale: clip as f32,
            step: *updates,
        };
        device.adamw(weights, m, v, grads, at, spec.len(), constants);
        at += spec.len();
    }
    model.set_weights(weights);
}

/// A model of `config` that computes in `format`, with the weights of `state`.
pub fn model(config: &ZambaConfig, device: &Arc<dyn Device>, format: Dtype, state: &RunState) -> Zamba {
    let unset = |_: &TensorSpec, _: &mut Buf| Ok::<_, Infallible>(());
    let mut model = match Zamba::build(config.clone(), device.clone(), format, unset) {
        Ok(model) => model,
        Err(never) => match never {},
    };
    model.set_weights(&state.weights);
    model
}
