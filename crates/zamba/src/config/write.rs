//! Writing a `config.json`.

use serde_json::{Value, json};
use zamba_kernels::quant::GROUP;

use super::{Act, LayerKind, ZambaConfig};

/// The spelling that every version of transformers knows.
fn act_name(act: Act) -> &'static str {
    match act {
        Act::Silu => "silu",
        Act::Gelu => "gelu",
        Act::GeluTanh => "gelu_pytorch_tanh",
        Act::Relu => "relu",
    }
}

/// `null`, a number, or a list, as transformers writes end tokens.
pub(super) fn eos_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

pub(super) fn to_json(c: &ZambaConfig) -> String {
    // Versions before 5 know layer types only by the older name, and 5 reads it; the same holds for
    // `torch_dtype` beside the newer `dtype`.
    let kinds: Vec<&str> = c
        .layers_block_type
        .iter()
        .map(|kind| match kind {
            LayerKind::Mamba => "mamba",
            LayerKind::Hybrid => "hybrid",
        })
        .collect();
    let mut value = json!({
        "architectures": ["ZambaForCausalLM"],
        "model_type": "zamba",
        "attention_dropout": 0.0,
        "attention_head_dim": c.attention_head_dim,
        "attention_hidden_size": c.attention_hidden_size,
        "attn_layer_offset": c.attn_layer_offset,
        "attn_layer_period": c.attn_layer_period,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": eos_json(&c.eos_token_id),
        "hidden_act": act_name(c.hidden_act),
        "hidden_mamba_act": act_name(c.hidden_mamba_act),
        "hidden_size": c.hidden_size,
        "initializer_range": c.initializer_range,
        "intermediate_size": c.intermediate_size,
        "layers_block_type": kinds,
        "mamba_conv_bias": c.mamba_conv_bias,
        "mamba_d_conv": c.mamba_d_conv,
        "mamba_d_state": c.mamba_d_state,
        "mamba_dt_rank": c.mamba_dt_rank,
        "mamba_expand": c.mamba_expand,
        "mamba_proj_bias": c.mamba_proj_bias,
        "max_position_embeddings": c.max_position_embeddings,
        "n_mamba_heads": c.n_mamba_heads,
        "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "num_logits_to_keep": c.num_logits_to_keep,
        "pad_token_id": c.pad_token_id,
        "rms_norm_eps": c.rms_norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "time_step_floor": c.time_step_floor,
        "time_step_max": c.time_step_max,
        "time_step_min": c.time_step_min,
        "torch_dtype": c.dtype.torch_name(),
        "use_associative_scan": c.use_associative_scan,
        "use_cache": c.use_cache,
        "use_mamba_kernels": c.use_mamba_kernels,
        "vocab_size": c.vocab_size,
    });
    if let Some(format) = c.quantization {
        value["quantization_config"] = json!({
            "quant_method": "zamba",
            "version": 2,
            "format": format.name(),
            "group_size": GROUP,
        });
    }
    format!("{value:#}\n")
}
