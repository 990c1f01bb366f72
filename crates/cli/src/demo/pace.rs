//! How many steps fit into the time: measured on this machine, with the model and batch of the run.

use std::sync::Arc;
use std::time::Instant;

use zamba::{Batch, Workspace, Zamba, ZambaConfig};
use zamba_kernels::{AdamW, AdamWBufs, Device, Dtype};
use zamba_train::state::RunState;

use super::corpus::Corpus;
use super::plan::{BATCH, SEQUENCE};
use crate::{interrupt, out};

/// Steps that are timed, after one that is not.
const TRIALS: usize = 4;
/// A run of fewer steps would show nothing.
const MIN_STEPS: u64 = 20;
/// Seconds for saving, exporting, loading and generating.
const REST: f64 = 8.0;
/// Scoring a token takes about this part of training on it.
const SCORING: f64 = 0.4;
/// Part of the time that is planned with: other programs want the machine too.
const CAUTION: f64 = 0.95;

/// The number of steps with which the demo that `began` back then ends `limit` seconds after.
pub(super) fn steps(
    config: &ZambaConfig,
    device: &Arc<dyn Device>,
    corpus: &Corpus,
    limit: f64,
    began: Instant,
) -> anyhow::Result<u64> {
    let step = seconds_per_step(config, device)?;
    let tokens = (BATCH * SEQUENCE) as f64;
    let scoring = 2.0 * corpus.held_out_tokens() as f64 * SCORING * step / tokens;
    let left = (limit - began.elapsed().as_secs_f64() - scoring - REST) * CAUTION;
    let fit = (left / step).max(0.0) as u64;
    out::note(&format!("   {:.0} tokens per second here: {} steps fit", tokens / step, out::count(fit)));
    if fit < MIN_STEPS {
        out::note(&format!(
            "   that is too few to learn anything; doing {MIN_STEPS}, which takes longer than asked"
        ));
    }
    Ok(fit.max(MIN_STEPS))
}

/// Median of a few whole steps: forward, backward, update.
fn seconds_per_step(config: &ZambaConfig, device: &Arc<dyn Device>) -> anyhow::Result<f64> {
    let mut model = Zamba::random(config.clone(), device.clone(), Dtype::F32, 0);
    let mut state = RunState::new(config, &**device, 0);
    let mut grads = device.alloc(Dtype::F32, state.weights.len());
    let workspace = Workspace::new(device.clone());
    let mut seconds = Vec::new();
    for trial in 0..=TRIALS {
        interrupt::check(super::NOTHING_TO_CONTINUE)?;
        let started = Instant::now();
        let token = |i: usize| ((i * 7919 + trial) % config.vocab_size) as u32;
        let mut batch = Batch::default();
        for row in 0..BATCH {
            let tokens: Vec<u32> = (row * SEQUENCE..(row + 1) * SEQUENCE).map(token).collect();
            batch.push(row, 0, &tokens);
        }
        let targets: Vec<u32> = (1..=BATCH * SEQUENCE).map(token).collect();
        let mut ctx = workspace.train(batch, false);
        let hidden = model.forward(&mut ctx);
        model.backward(ctx, hidden, &targets, 1.0 / targets.len() as f32, &mut grads);
        let constants = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 1.0,
            step: trial as u64 + 1,
        };
        let RunState { weights: w, m, v, .. } = &mut state;
        for param in model.params_mut() {
            let (at, len) = (param.at(), param.mat().len());
            let (g, stored) = (&mut grads, &mut param.mat_mut().buf);
            device.adamw(AdamWBufs { w, m, v, g, stored }, at, len, constants);
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[TRIALS / 2])
}
