//! Floating-point operations that the model needs per token, and the share of the machine they take.
//!
//! Counted are the multiplications and additions that the model needs, each use of the shared block by itself
//! (13 uses in the 7B: 1.5 times what six operations per parameter would say) but for what queries, keys and
//! values have of the embedding, which is the same at each use and counts once, and nothing that is done twice to
//! save memory. Per token of the forward pass:
//!
//! * two per matrix element and use; the head counts, the look-up of the embedding does not;
//! * attention: `4 * width` per visible key, with `(T + 1) / 2` keys on average under the causal mask,
//!   as if a row of T tokens were one document;
//! * scan: `7 * e * n` per layer, as Megatron-LM counts it; convolution: `2 * e * k`.
//!
//! Training takes three times the forward pass.

use zamba::config::ZambaConfig;

/// Operations of the forward pass per token in rows of `sequence` tokens.
pub fn forward_flops(config: &ZambaConfig, sequence: usize) -> f64 {
    let (d, e, f) = (config.hidden_size as f64, config.d_inner() as f64, config.intermediate_size as f64);
    let (r, n) = (config.mamba_dt_rank as f64, config.mamba_d_state as f64);
    let (q, kv) = (config.q_width() as f64, config.kv_width() as f64);
    let wide = config.attention_hidden_size as f64;
    let sites = config.hybrid_layers().len() as f64;
    let layers = config.num_hidden_layers as f64;

    let mamba = 2.0 * e * d + (r + 2.0 * n) * e + r * e + e * d;
    let half = wide / 2.0 * (q + 2.0 * kv);
    let shared = half + q * d + 3.0 * d * f;
    let embedding = if sites > 0.0 { half } else { 0.0 };
    let matrices = layers * mamba + embedding + sites * (shared + d * d) + config.vocab_size as f64 * d;
    let attention = sites * 4.0 * q * (sequence as f64 + 1.0) / 2.0;
    let scan = layers * (7.0 * e * n + 2.0 * e * config.mamba_d_conv as f64);
    2.0 * matrices + attention + scan
}

/// Operations of a training step per token: forward, gradients of activations, gradients of weights.
pub fn train_flops(config: &ZambaConfig, sequence: usize) -> f64 {
    3.0 * forward_flops(config, sequence)
}

/// Model FLOPs utilisation: the share of `peak_tflops` (10^12 per second) that the model's own operations
/// make up. `None` when the peak is not known.
pub fn mfu(flops_per_token: f64, tokens_per_second: f64, peak_tflops: Option<f64>) -> Option<f64> {
    let peak = peak_tflops.filter(|p| *p > 0.0)?;
    Some(flops_per_token * tokens_per_second / (peak * 1e12))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 11,518,246,912 matrix elements per token with all 13 uses of the shared block, less 12 times the half of queries, keys
    /// and values that meets the embedding, and the causal attention of 13 sites over 4,096 tokens.
    #[test]
    fn the_7b_counts_every_use_of_the_shared_block() {
        let config = ZambaConfig::preset("zamba-7b").unwrap();
        let rest = 13.0 * 4.0 * 7424.0 * 4097.0 / 2.0 + 76.0 * (7.0 * 7424.0 * 16.0 + 8.0 * 7424.0);
        let products = 11_518_246_912.0 - 12.0 * 3.0 * 7424.0 * 3712.0;
        assert_eq!(forward_flops(&config, 4096), 2.0 * products + rest);
        let gflop = train_flops(&config, 4096) / 1e9;
        assert!((gflop - 65.8).abs() < 0.1, "{gflop}");
    }

    #[test]
    fn utilisation_is_unknown_without_a_peak() {
        assert_eq!(mfu(1e9, 100.0, None), None);
        assert_eq!(mfu(1e9, 100.0, Some(0.0)), None);
        assert_eq!(mfu(1e9, 100.0, Some(1.0)), Some(0.1));
    }
}
