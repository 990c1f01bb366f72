//! The tape as a whole: finite differences, recomputation, documents in one row.

mod common;

use std::sync::Arc;

use common::{cpus, devices, lively, small_config, tokens};
use zamba::{Batch, Workspace, Zamba, ZambaConfig};
use zamba_kernels::reference::Reference;
use zamba_kernels::{Device, Dtype, IGNORE};

fn loss_and_gradient(model: &Zamba, batch: Batch, targets: &[u32], recompute: bool) -> (f64, Vec<f32>) {
    let dev = model.device().clone();
    let ws = Workspace::new(dev.clone());
    let mut ctx = ws.train(batch, recompute);
    let hidden = model.forward(&mut ctx);
    let logits = model.logits(&mut ctx, &hidden);
    let counted = targets.iter().filter(|&&t| t != IGNORE).count() as f32;
    let nll = ctx.cross_entropy(&logits, targets, 1.0 / counted);
    let mut host = vec![0.0; targets.len()];
    ctx.read(&nll, 0, &mut host);
    let mut flat = dev.alloc(Dtype::F32, model.num_parameters());
    ctx.backward(&mut flat);
    let mut grad = vec![0.0; flat.len()];
    dev.download(&mut grad, &flat, 0);
    (host.iter().map(|&x| f64::from(x)).sum::<f64>() / f64::from(counted), grad)
}

/// The loss straight from hidden states: each token's, and the gradient.
fn fused(model: &Zamba, batch: Batch, targets: &[u32], scale: f32) -> (Vec<f32>, Vec<f32>) {
    let dev = model.device().clone();
    let mut flat = dev.alloc(Dtype::F32, model.num_parameters());
    let mut ctx = Workspace::new(dev.clone()).train(batch, false);
    let hidden = model.forward(&mut ctx);
    let nll = model.backward(ctx, hidden, targets, scale, &mut flat);
    let mut grad = vec![0.0; flat.len()];
    dev.download(&mut grad, &flat, 0);
    (nll, grad)
}

/// The same by way of all logits.
fn whole(model: &Zamba, batch: Batch, targets: &[u32], scale: f32) -> (Vec<f32>, Vec<f32>) {
    let dev = model.device().clone();
    let mut flat = dev.alloc(Dtype::F32, model.num_parameters());
    let mut ctx = Workspace::new(dev.clone()).train(batch, false);
    let hidden = model.forward(&mut ctx);
    let logits = model.logits(&mut ctx, &hidden);
    let nll = ctx.cross_entropy(&logits, targets, scale);
    let mut host = vec![0.0; targets.len()];
    ctx.read(&nll, 0, &mut host);
    ctx.backward(&mut flat);
    let mut grad = vec![0.0; flat.len()];
    dev.download(&mut grad, &flat, 0);
    (host, grad)
}

/// A row of up to 256 tokens takes the same sums either way. A longer one adds the gradient of the head up in
/// parts, and everything else is the same still.
#[test]
fn the_loss_from_hidden_states_is_that_of_all_logits() {
    for dev in cpus(2) {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = lively(&small_config(), dev.clone(), dtype, 12);
            let head = model.params()[0].mat().len();
            for len in [5, 512, 600] {
                let batch = Batch::of(&tokens(len, 61, 5));
                let mut targets = tokens(len, 61, 6);
                targets[1] = IGNORE;
                let scale = 1.0 / len as f32;
                let (nll, grad) = fused(&model, batch.clone(), &targets, scale);
                let (all_nll, all_grad) = whole(&model, batch.clone(), &targets, scale);
                assert_eq!(nll, all_nll, "{len} tokens");
                let mut ctx = Workspace::new(dev.clone()).infer(batch, None);
                let hidden = model.forward(&mut ctx);
                let alone = model.nll(&mut ctx, &hidden, &targets);
                let mut host = vec![0.0; len];
                ctx.read(&alone, 0, &mut host);
                assert_eq!(host, nll, "without a tape, {len} tokens");
                let exact = if len <= 512 { 0 } else { head };
                assert_eq!(grad[exact..], all_grad[exact..], "{len} tokens");
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                let off = norm(&mut grad.iter().zip(&all_grad).map(|(a, b)| a - b));
                assert!(off <= 1e-6 * norm(&mut all_grad.iter().copied()), "{len} tokens: {off}");
            }
        }
    }
}

/// What a step holds beside the activations of the layers does not grow with tokens times vocabulary.
#[test]
fn logits_of_all_tokens_are_never_in_memory() {
    let dev: Arc<dyn Device> = cpus(2).swap_remove(0);
    let held = |vocab_size: usize, len: usize| {
        let config = ZambaConfig { vocab_size, ..small_config() };
        let model = lively(&config, dev.clone(), Dtype::F32, 13);
        let mut flat = dev.alloc(Dtype::F32, model.num_parameters());
        let workspace = Workspace::new(dev.clone());
        let (inputs, targets) = (tokens(len, 61, 7), tokens(len, 61, 8));
        let mut ctx = workspace.train(Batch::of(&inputs), false);
        let hidden = model.forward(&mut ctx);
        model.backward(ctx, hidden, &targets, 1.0, &mut flat);
        workspace.held_bytes()
    };
    let more = |len| held(3061, len) - held(61, len);
    assert_eq!(more(1024), more(2048));
    assert!(more(1024) < 1024 * 3000 * 4);
}

fn two_documents() -> (Batch, Vec<u32>) {
    let mut batch = Batch::default();
    let (a, b) = (tokens(11, 61, 3), tokens(7, 61, 4));
    batch.push(0, 0, &a);
    batch.push(1, 0, &b);
    let mut targets = [&a[1..], &[IGNORE], &b[1..], &[IGNORE]].concat();
    targets[4] = IGNORE;
    (batch, targets)
}

/// Along random directions in each tensor, the loss moves as the gradient says.
#[test]
fn gradients_agree_with_finite_differences_of_the_loss() {
    let mut first = small_config();
    // The hidden state of a first layer is the embedding itself, which its shared block then sees twice.
    first.layers_block_type.rotate_left(1);
    compare_with_finite_differences(&small_config(), 1.0);
    // Its loss curves more: halves of the step leave 0.75 % of the embedding's slope where the whole leaves 3.4.
    compare_with_finite_differences(&first, 0.5);
}

/// With `step` times the usual step.
fn compare_with_finite_differences(config: &ZambaConfig, step: f64) {
    let dev: Arc<dyn Device> = Arc::new(Reference::new());
    let mut model = lively(config, dev.clone(), Dtype::F32, 11);
    let (batch, targets) = two_documents();
    let (_, grad) = loss_and_gradient(&model, batch.clone(), &targets, false);
    let specs = model.specs().to_vec();
    for (id, spec) in specs.iter().enumerate() {
        let (at, mut w) = (model.params()[id].at(), vec![]);
        model.read_param(id, &mut w);
        let g = &grad[at..at + spec.len()];
        let norm = g.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{} has no gradient", spec.name);
        // The direction of the gradient itself: its derivative is the norm, the largest there is.
        let scale = w.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt().max(1.0);
        let h = step * (1e-3 / norm).clamp(2e-3, 2e-2) * scale;
        let mut at_offset = |sign: f64| {
            let moved: Vec<f32> = w
                .iter()
                .zip(g)
                .map(|(&x, &d)| (f64::from(x) + sign * h * f64::from(d) / norm) as f32)
                .collect();
            dev.upload(&mut model.params_mut()[id].mat_mut().buf, 0, &moved);
            loss_and_gradient(&model, batch.clone(), &targets, false).0
        };
        let slope = (at_offset(1.0) - at_offset(-1.0)) / (2.0 * h);
        dev.upload(&mut model.params_mut()[id].mat_mut().buf, 0, &w);
        // Activations pass through f32, so a loss near 5 carries a few 1e-7, which the quotient divides by
        // 2h; curvature adds terms of h^2. A missing factor or term would be off by far more than 3 %.
        let noise = 5e-7 / h;
        assert!(noise < 0.2 * norm, "{}: gradient {norm} drowns in {noise}", spec.name);
        assert!((slope - norm).abs() < 0.03 * norm + noise, "{}: slope {slope}, norm {norm}", spec.name);
    }
}

#[test]
fn recomputing_layers_gives_the_same_bits() {
    for dev in devices() {
        let model = lively(&small_config(), dev.clone(), Dtype::F32, 12);
        let (batch, targets) = two_documents();
        let kept = loss_and_gradient(&model, batch.clone(), &targets, false);
        let again = loss_and_gradient(&model, batch, &targets, true);
        assert_eq!(kept.0.to_bits(), again.0.to_bits(), "{}", dev.name());
        assert!(kept.1 == again.1, "{}", dev.name());
    }
}

#[test]
fn documents_in_one_row_do_not_see_each_other() {
    for dev in devices() {
        let model = lively(&small_config(), dev.clone(), Dtype::F32, 13);
        let (a, b) = (tokens(11, 61, 3), tokens(7, 61, 4));
        let mut packed = Batch::default();
        packed.push(0, 0, &a);
        packed.push(1, 0, &b);
        let only_b = [vec![IGNORE; 11], b[1..].to_vec(), vec![IGNORE]].concat();
        let alone = loss_and_gradient(&model, Batch::of(&b), &[&b[1..], &[IGNORE]].concat(), false);
        let beside = loss_and_gradient(&model, packed, &only_b, false);
        assert_eq!(alone.0.to_bits(), beside.0.to_bits(), "{}", dev.name());
        // The sums over tokens are the same but for zeros and their grouping: a few roundings each.
        let diff = alone.1.iter().zip(&beside.1).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
        let norm = alone.1.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        assert!(diff < 1e-6 * norm, "{}: the first document leaks into the second's gradient", dev.name());
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let (batch, targets) = two_documents();
    let runs = [1, 2, 3].map(|threads| {
        cpus(threads)
            .into_iter()
            .map(|dev| {
                loss_and_gradient(
                    &lively(&small_config(), dev, Dtype::Bf16, 14),
                    batch.clone(),
                    &targets,
                    false,
                )
            })
            .collect::<Vec<_>>()
    });
    assert!(runs[0] == runs[1] && runs[1] == runs[2]);
}
