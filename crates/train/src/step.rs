//! The arithmetic of a training step around the model's: norm and update. The run and the bench share it.

use std::convert::Infallible;
use std::sync::Arc;

use zamba::spec::TensorSpec;
use zamba::{Zamba, ZambaConfig};
use zamba_kernels::{AdamW, AdamWBufs, Buf, Device, Dtype};

use crate::recipe::Optimiser;
use crate::state::RunState;

/// The global norm of the gradients.
pub fn norm(device: &dyn Device, grads: &Buf) -> f64 {
    device.sum_squares(grads, 0, grads.len()).sqrt()
}

/// AdamW over every tensor with gradients clipped to the global norm, as
/// `torch.nn.utils.clip_grad_norm_` scales them. The weights of the model are the master weights, rounded. The
/// gradients are 0 afterwards.
pub fn update(
    model: &mut Zamba,
    state: &mut RunState,
    device: &dyn Device,
    grads: &mut Buf,
    optimiser: &Optimiser,
    lr: f64,
    norm: f64,
) {
    let o = optimiser;
    let clip = if o.clip > 0.0 { (o.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    state.updates += 1;
    let RunState { weights: w, m, v, updates, .. } = state;
    let decays: Vec<bool> = model.specs().iter().map(TensorSpec::decays).collect();
    for (param, decays) in model.params_mut().into_iter().zip(decays) {
        let weight_decay = if decays { o.weight_decay } else { 0.0 };
        let constants = AdamW {
            lr: lr as f32,
            beta1: o.beta1 as f32,
            beta2: o.beta2 as f32,
            eps: o.eps as f32,
            weight_decay: weight_decay as f32,
            grad_scale: clip as f32,
            step: *updates,
        };
        let (at, len) = (param.at(), param.mat().len());
        let stored = &mut param.mat_mut().buf;
        device.adamw(AdamWBufs { w, m, v, g: grads, stored }, at, len, constants);
    }
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
