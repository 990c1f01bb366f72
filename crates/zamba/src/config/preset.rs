//! Configurations by name.

use super::{Act, ConfigError, FileDtype, LayerKind, ZambaConfig};

/// All names, smallest model first.
pub(super) const NAMES: &[&str] = &["tiny", "demo", "44m", "130m", "zamba-7b"];

/// The sizes that differ between presets: vocabulary, width, layers, attention heads.
struct Sizes(usize, usize, usize, usize);

pub(super) fn by_name(name: &str) -> Result<ZambaConfig, ConfigError> {
    let (sizes, dtype) = match name {
        "tiny" => (Sizes(1024, 96, 8, 4), FileDtype::F32),
        "demo" => (Sizes(4096, 256, 12, 8), FileDtype::F32),
        "44m" => (Sizes(32000, 512, 12, 8), FileDtype::F32),
        "130m" => (Sizes(32000, 768, 24, 12), FileDtype::F32),
        "zamba-7b" => (Sizes(32000, 3712, 76, 16), FileDtype::Bf16),
        _ => return Err(ConfigError::UnknownPreset { name: name.to_owned(), known: NAMES.join(", ") }),
    };
    Ok(with_sizes(sizes, dtype))
}

/// The defaults of `configuration_zamba.py`, which are the published 7B model, at other sizes.
fn with_sizes(Sizes(vocab_size, hidden_size, layers, heads): Sizes, dtype: FileDtype) -> ZambaConfig {
    ZambaConfig {
        vocab_size,
        hidden_size,
        attention_hidden_size: 2 * hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        attention_head_dim: 2 * hidden_size / heads,
        num_key_value_heads: heads,
        n_mamba_heads: 2,
        hidden_act: Act::Gelu,
        hidden_mamba_act: Act::Silu,
        initializer_range: 0.02,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        pad_token_id: Some(0),
        bos_token_id: Some(1),
        eos_token_id: vec![2],
        max_position_embeddings: 4096,
        attn_layer_period: 6,
        attn_layer_offset: 4,
        mamba_d_state: 16,
        mamba_d_conv: 4,
        mamba_expand: 2,
        mamba_dt_rank: hidden_size.div_ceil(16),
        time_step_min: 1e-3,
        time_step_max: 0.1,
        time_step_floor: 1e-4,
        mamba_conv_bias: true,
        mamba_proj_bias: false,
        layers_block_type: schedule(layers, 6, 4),
        dtype,
        quantization: None,
        use_cache: true,
        num_logits_to_keep: 1,
        use_mamba_kernels: true,
        use_associative_scan: true,
    }
}

/// The layer kinds where a file has no explicit list: two Mamba layers, a hybrid one, then layer `i`
/// counted from there is hybrid where `i % period == offset`. Needs `layers >= 3` and `period >= 1`.
pub(super) fn schedule(layers: usize, period: usize, offset: usize) -> Vec<LayerKind> {
    let later =
        (0..layers - 3).map(|i| if i % period == offset { LayerKind::Hybrid } else { LayerKind::Mamba });
    [LayerKind::Mamba, LayerKind::Mamba, LayerKind::Hybrid].into_iter().chain(later).collect()
}
