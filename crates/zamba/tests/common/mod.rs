//! Small models whose every part matters, on every device of this machine.
#![allow(dead_code)] // Each test binary uses its own part.

use std::convert::Infallible;
use std::sync::Arc;

use zamba::config::{LayerKind, ZambaConfig};
use zamba::init::init_tensor;
use zamba::spec::{TensorKind, TensorSpec};
use zamba::{Batch, State, Workspace, Zamba};
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::reference::Reference;
use zamba_kernels::{Device, Dtype};

/// All devices to test on: the reference and every CPU tier that the machine has.
pub(crate) fn devices() -> Vec<Arc<dyn Device>> {
    let mut all: Vec<Arc<dyn Device>> = vec![Arc::new(Reference::new())];
    all.extend(cpus(2));
    all
}

/// Every CPU tier that the machine has.
pub(crate) fn cpus(threads: usize) -> Vec<Arc<dyn Device>> {
    Isa::available().into_iter().map(|isa| Arc::new(Cpu::with(isa, threads)) as Arc<dyn Device>).collect()
}

/// A config small enough for a debug build and odd enough to catch swapped sizes.
pub(crate) fn small_config() -> ZambaConfig {
    let mut c = ZambaConfig::preset("tiny").unwrap();
    c.vocab_size = 61;
    c.hidden_size = 24;
    c.attention_hidden_size = 48;
    c.intermediate_size = 40;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.attention_head_dim = 10;
    c.n_mamba_heads = 2;
    c.mamba_d_state = 5;
    c.mamba_d_conv = 4;
    c.mamba_expand = 2;
    c.mamba_dt_rank = 3;
    c.layers_block_type =
        [LayerKind::Mamba, LayerKind::Hybrid, LayerKind::Mamba, LayerKind::Hybrid, LayerKind::Mamba].to_vec();
    c.num_hidden_layers = c.layers_block_type.len();
    c.check().unwrap();
    c
}

/// A small config whose linear maps can be quantised.
pub(crate) fn wide_config() -> ZambaConfig {
    let mut c = small_config();
    c.hidden_size = 128;
    c.attention_hidden_size = 256;
    c.intermediate_size = 256;
    c.attention_head_dim = 32;
    c.check().unwrap();
    c
}

/// A model with weights large enough that attention, gates and decays are far from their linear range.
pub(crate) fn lively(config: &ZambaConfig, dev: Arc<dyn Device>, format: Dtype, seed: u64) -> Zamba {
    filled(config, dev, format, |spec, values| {
        init_tensor(config, spec, seed, values);
        let factor = match spec.kind {
            TensorKind::Linear | TensorKind::XProj | TensorKind::Conv => 10.0,
            TensorKind::Embedding | TensorKind::Head => 25.0,
            TensorKind::DtProj => 4.0,
            _ => 1.0,
        };
        values.iter_mut().for_each(|x| *x *= factor);
        if spec.kind == TensorKind::DtBias {
            // Large steps, so that decays forget within a few tokens and dt matters.
            values.iter_mut().for_each(|x| *x += 3.0);
        }
    })
}

/// A model whose weights are what `draw` leaves behind.
pub(crate) fn filled(
    config: &ZambaConfig,
    dev: Arc<dyn Device>,
    format: Dtype,
    mut draw: impl FnMut(&TensorSpec, &mut Vec<f32>),
) -> Zamba {
    let mut values = vec![];
    let d = dev.clone();
    let built = Zamba::build(config.clone(), dev, format, |spec, buf| {
        draw(spec, &mut values);
        if buf.dtype().is_quantised() {
            let mut bytes = vec![0; buf.bytes()];
            Cpu::new(Some(1)).quantise(buf.dtype(), spec.rows_cols().1, &values, None, &mut bytes);
            d.put_bytes(buf, &bytes);
        } else {
            d.upload(buf, 0, &values);
        }
        Ok::<(), Infallible>(())
    });
    built.unwrap_or_else(|never| match never {})
}

/// Deterministic token ids in `1..vocab`.
pub(crate) fn tokens(n: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (1 + x % (vocab as u64 - 1)) as u32
        })
        .collect()
}

/// Logits of all tokens of `batch`, as bits.
pub(crate) fn logits(model: &Zamba, ws: &Workspace, batch: Batch, state: Option<&mut State>) -> Vec<u32> {
    let mut ctx = ws.infer(batch, state);
    let hidden = model.forward(&mut ctx);
    let logits = model.logits(&mut ctx, &hidden);
    let mut host = vec![0.0; logits.rows() * logits.cols()];
    ctx.read(&logits, 0, &mut host);
    host.into_iter().map(f32::to_bits).collect()
}
