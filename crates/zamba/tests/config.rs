//! Every field of a configuration is honoured or refused by name.

use zamba::config::{Act, ConfigError, FileDtype, LayerKind, ZambaConfig};

/// The published configuration of Zyphra/Zamba-7B-v1 in its older form, without a list of layers.
const HUB: &str = r#"{
  "architectures": ["ZambaForCausalLM"], "attention_dropout": 0.0, "attn_layer_offset": 4,
  "attn_layer_period": 6, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "gelu",
  "hidden_size": 3712, "initializer_range": 0.02, "intermediate_size": 14848, "mamba_conv_bias": true,
  "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 232, "mamba_expand": 2,
  "mamba_proj_bias": false, "max_position_embeddings": 4096, "model_type": "zamba", "n_mamba_heads": 2,
  "num_attention_heads": 16, "num_hidden_layers": 76, "num_key_value_heads": 16,
  "num_logits_to_keep": 1, "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_theta": 10000,
  "sliding_window": null, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0",
  "unk_token_id": 0, "use_cache": true, "use_mamba_kernels": true, "vocab_size": 32000 }"#;

/// Everything that `ZambaConfig().to_dict()` of transformers 4.48 holds beyond the model's own fields.
const GENERIC_4: &str = r#""return_dict": true, "output_hidden_states": false, "output_attentions": false,
  "torchscript": false, "torch_dtype": null, "use_bfloat16": false, "tf_legacy_loss": false,
  "pruned_heads": {}, "chunk_size_feed_forward": 0, "is_encoder_decoder": false, "is_decoder": false,
  "cross_attention_hidden_size": null, "add_cross_attention": false, "tie_encoder_decoder": false,
  "max_length": 20, "min_length": 0, "do_sample": false, "early_stopping": false, "num_beams": 1,
  "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
  "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
  "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null, "num_return_sequences": 1,
  "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id": null,
  "forced_eos_token_id": null, "remove_invalid_values": false, "exponential_decay_length_penalty": null,
  "suppress_tokens": null, "begin_suppress_tokens": null, "architectures": null, "finetuning_task": null,
  "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
  "tokenizer_class": null, "prefix": null, "sep_token_id": null, "decoder_start_token_id": null,
  "task_specific_params": null, "problem_type": null, "_name_or_path": "",
  "_attn_implementation_autoset": false, "transformers_version": "4.48.0""#;

fn with(fields: &str) -> Result<ZambaConfig, ConfigError> {
    let comma = if fields.is_empty() { "" } else { "," };
    ZambaConfig::from_json(&format!("{{\"model_type\":\"zamba\"{comma}{fields}}}"))
}

#[test]
fn published_config_is_the_seven_b_preset() {
    assert_eq!(ZambaConfig::from_json(HUB).unwrap(), ZambaConfig::preset("zamba-7b").unwrap());
}

#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    let mut expected = ZambaConfig::preset("zamba-7b").unwrap();
    expected.dtype = FileDtype::F32;
    assert_eq!(with("").unwrap(), expected);
    assert_eq!(with(GENERIC_4).unwrap(), expected);
}

#[test]
fn presets_are_valid_of_the_stated_size_and_survive_writing() {
    let size: Vec<u64> = ZambaConfig::preset_names()
        .iter()
        .map(|name| {
            let config = ZambaConfig::preset(name).unwrap();
            config.check().unwrap();
            assert_eq!(ZambaConfig::from_json(&config.to_json()).unwrap(), config, "{name}");
            config.parameters() / 100_000
        })
        .collect();
    assert_eq!(size, [9, 81, 440, 1327, 72324]);
    let message = ZambaConfig::preset("13b").unwrap_err().to_string();
    assert!(message.contains("13b") && message.contains("zamba-7b"), "{message}");
}

#[test]
fn unusual_values_survive_writing() {
    let config = with(
        r#""hidden_size": 64, "num_hidden_layers": 2, "layers_block_type": ["hybrid", "mamba"],
        "num_attention_heads": 4, "num_key_value_heads": 2, "attention_head_dim": 24, "n_mamba_heads": 4,
        "hidden_act": "gelu_new", "hidden_mamba_act": "relu", "pad_token_id": null, "bos_token_id": null,
        "eos_token_id": [2, 7], "tie_word_embeddings": false, "mamba_proj_bias": true, "dtype": "float16",
        "mamba_conv_bias": false, "mamba_dt_rank": 3, "mamba_expand": 3, "rms_norm_eps": 1e-6,
        "num_logits_to_keep": null, "use_cache": false, "use_mamba_kernels": false"#,
    )
    .unwrap();
    assert_eq!(config.hidden_act, Act::GeluTanh);
    assert_eq!(config.eos_token_id, [2, 7]);
    assert_eq!((config.pad_token_id, config.num_logits_to_keep), (None, 0));
    assert_eq!((config.q_width(), config.kv_width(), config.mamba_head_dim()), (96, 48, 48));
    assert_eq!(config.layers_block_type, [LayerKind::Hybrid, LayerKind::Mamba]);
    assert_eq!(ZambaConfig::from_json(&config.to_json()).unwrap(), config);
    let mut none = config;
    none.eos_token_id.clear();
    assert_eq!(ZambaConfig::from_json(&none.to_json()).unwrap(), none);
}

#[test]
fn every_spelling_of_the_layer_list_is_read() {
    use LayerKind::{Hybrid, Mamba};
    for list in [
        r#""layers_block_type": ["mamba", "hybrid", "mamba"]"#,
        r#""layers_block_type": ["linear_attention", "hybrid", "linear_attention"]"#,
        r#""layer_types": ["linear_attention", "hybrid", "linear_attention"]"#,
        r#""layers_block_type": ["m", "g", "m"]"#,
        r#""layers_block_type": ["mamba", "attention+mamba", "mamba"]"#,
        r#""layers_block_type": ["m", "g", "m"], "layer_types": null"#,
    ] {
        let config = with(&format!("\"num_hidden_layers\": 3, {list}")).unwrap();
        assert_eq!(config.layers_block_type, [Mamba, Hybrid, Mamba], "{list}");
    }
    let plain = with(r#""num_hidden_layers": 1, "layers_block_type": ["mamba"]"#).unwrap();
    assert_eq!(plain.shared_block_layer(), None);
}

#[test]
fn the_computed_schedule_uses_period_and_offset() {
    let config = with(r#""num_hidden_layers": 12, "attn_layer_period": 3, "attn_layer_offset": 1"#).unwrap();
    assert_eq!(config.hybrid_layers(), [2, 4, 7, 10]);
    let config = with(r#""num_hidden_layers": 3"#).unwrap();
    assert_eq!(config.hybrid_layers(), [2]);
    let config = with(r#""num_hidden_layers": 9, "attn_layer_offset": 6"#).unwrap();
    assert_eq!(config.hybrid_layers(), [2]);
}

#[test]
fn activations_and_types_are_read_by_every_known_name() {
    for (name, act) in [("silu", Act::Silu), ("swish", Act::Silu), ("gelu", Act::Gelu), ("relu", Act::Relu)] {
        assert_eq!(with(&format!("\"hidden_act\": \"{name}\"")).unwrap().hidden_act, act);
    }
    for name in ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"] {
        assert_eq!(with(&format!("\"hidden_act\": \"{name}\"")).unwrap().hidden_act, Act::GeluTanh);
    }
    for (name, dtype) in [
        ("\"dtype\": \"bfloat16\"", FileDtype::Bf16),
        ("\"torch_dtype\": \"torch.float16\"", FileDtype::F16),
        ("\"dtype\": null, \"torch_dtype\": \"float32\"", FileDtype::F32),
        ("\"dtype\": \"bfloat16\", \"torch_dtype\": \"bfloat16\"", FileDtype::Bf16),
    ] {
        assert_eq!(with(name).unwrap().dtype, dtype, "{name}");
    }
}

/// Each row: fields that must be refused, and the field that the message must name.
#[test]
fn whatever_cannot_be_honoured_is_refused_by_name() {
    let table = [
        (r#""num_experts": 8"#, "num_experts"),
        (r#""use_mem_rope": true"#, "use_mem_rope"),
        (r#""auto_map": {"AutoModel": "modeling.Model"}"#, "auto_map"),
        (r#""auto_map": null"#, "auto_map"),
        (r#""quantization_config": {"bits": 4}"#, "quantization_config"),
        (r#""architectures": ["ZambaForSequenceClassification"]"#, "architectures"),
        (r#""attention_dropout": 0.1"#, "attention_dropout"),
        (r#""attention_hidden_size": 3712"#, "attention_hidden_size"),
        (r#""sliding_window": 1024"#, "sliding_window"),
        (r#""rope_scaling": {"type": "linear"}"#, "rope_scaling"),
        (r#""rope_theta": "big""#, "rope_theta"),
        (r#""is_decoder": true"#, "is_decoder"),
        (r#""chunk_size_feed_forward": 2"#, "chunk_size_feed_forward"),
        (r#""pruned_heads": {"0": [1]}"#, "pruned_heads"),
        (r#""output_attentions": true"#, "output_attentions"),
        (r#""temperature": 0.7"#, "temperature"),
        (r#""per_layer_config": {"1": {}}"#, "per_layer_config"),
        (r#""hidden_act": "mish""#, "hidden_act"),
        (r#""hidden_mamba_act": 3"#, "hidden_mamba_act"),
        (r#""dtype": "float64""#, "dtype"),
        (r#""dtype": "float32", "torch_dtype": "bfloat16""#, "dtype"),
        (r#""layers_block_type": ["mamba"]"#, "layers_block_type"),
        (r#""num_hidden_layers": 1, "layers_block_type": ["attention"]"#, "layers_block_type"),
        (r#""num_hidden_layers": 2"#, "num_hidden_layers"),
        (r#""num_hidden_layers": 1, "layers_block_type": ["m"], "layer_types": ["g"]"#, "layers_block_type"),
        (r#""vocab_size": 0"#, "vocab_size"),
        (r#""vocab_size": -1"#, "vocab_size"),
        (r#""vocab_size": 4096.0"#, "vocab_size"),
        (r#""vocab_size": "4096""#, "vocab_size"),
        (r#""vocab_size": true"#, "vocab_size"),
        (r#""vocab_size": 18446744073709551616"#, "vocab_size"),
        (r#""vocab_size": 9223372036854775807"#, "vocab_size"),
        (r#""hidden_size": 1099511627776"#, "hidden_size"),
        (r#""hidden_size": null"#, "hidden_size"),
        (r#""num_hidden_layers": 4294967296"#, "num_hidden_layers"),
        (r#""intermediate_size": 0"#, "intermediate_size"),
        (r#""num_attention_heads": 0"#, "num_attention_heads"),
        (r#""num_key_value_heads": 3"#, "num_key_value_heads"),
        (r#""num_key_value_heads": 32"#, "num_key_value_heads"),
        (r#""n_mamba_heads": 3"#, "n_mamba_heads"),
        (r#""n_mamba_heads": 0"#, "n_mamba_heads"),
        (r#""attention_head_dim": 0"#, "attention_head_dim"),
        (r#""attention_head_dim": 464, "head_dim": 232"#, "attention_head_dim"),
        (r#""hidden_size": 4, "num_attention_heads": 16"#, "attention_head_dim"),
        (r#""mamba_d_state": 0"#, "mamba_d_state"),
        (r#""mamba_d_conv": 0"#, "mamba_d_conv"),
        (r#""mamba_expand": 0"#, "mamba_expand"),
        (r#""mamba_dt_rank": 0"#, "mamba_dt_rank"),
        (r#""mamba_dt_rank": "full""#, "mamba_dt_rank"),
        (r#""attn_layer_period": 0"#, "attn_layer_period"),
        (r#""attn_layer_offset": -2"#, "attn_layer_offset"),
        (r#""rms_norm_eps": 0"#, "rms_norm_eps"),
        (r#""rms_norm_eps": -1e-5"#, "rms_norm_eps"),
        (r#""rms_norm_eps": {"__float__": "Infinity"}"#, "rms_norm_eps"),
        (r#""initializer_range": -0.1"#, "initializer_range"),
        (r#""time_step_min": 0.2"#, "time_step_min"),
        (r#""time_step_max": 0"#, "time_step_max"),
        (r#""time_step_floor": -1"#, "time_step_floor"),
        (r#""pad_token_id": 32000"#, "pad_token_id"),
        (r#""bos_token_id": -1"#, "bos_token_id"),
        (r#""eos_token_id": [2, 40000]"#, "eos_token_id"),
        (r#""tie_word_embeddings": 1"#, "tie_word_embeddings"),
        (r#""use_cache": null"#, "use_cache"),
        (r#""vocab_size": 8, "vocab_size": 8"#, "vocab_size"),
    ];
    for (fields, named) in table {
        let message = with(fields).expect_err(fields).to_string();
        assert!(message.contains(&format!("`{named}`")), "{fields}: {message}");
        assert!(!message.contains('\n'), "{fields}: {message}");
    }
}

#[test]
fn other_families_and_broken_texts_are_refused() {
    let other = |text: &str| ZambaConfig::from_json(text).unwrap_err();
    assert_eq!(other("{}"), ConfigError::Missing { field: "model_type" });
    assert!(other(r#"{"model_type":"zamba2"}"#).to_string().contains("Mamba-2"));
    assert!(matches!(other(r#"{"model_type":"llama"}"#), ConfigError::ModelType { .. }));
    assert!(matches!(other(r#"{"model_type":7}"#), ConfigError::ModelType { .. }));
    assert_eq!(other("[]"), ConfigError::NotAnObject);
    assert!(matches!(other(r#"{"model_type":"zamba""#), ConfigError::Syntax { .. }));
    assert!(matches!(other(r#"{"model_type":"zamba","rms_norm_eps":NaN}"#), ConfigError::Syntax { .. }));
    assert!(matches!(other(&"[".repeat(100_000)), ConfigError::TooDeep { .. }));
    assert!(matches!(other(&format!("[{}1]", "1,".repeat(100_000))), ConfigError::TooLong { .. }));
}

/// Sizes at the top of every range at once must be refused before anything is sized by them.
#[test]
fn sizes_that_no_memory_can_hold_are_refused() {
    let message = with(
        r#""hidden_size": 1048576, "vocab_size": 16777216, "intermediate_size": 16777216, "mamba_expand": 64,
        "num_hidden_layers": 4096, "num_attention_heads": 65536, "num_key_value_heads": 65536,
        "attention_head_dim": 65536, "mamba_d_state": 4096, "mamba_dt_rank": 1048576"#,
    );
    assert!(matches!(message, Err(ConfigError::OutOfRange { .. })), "{message:?}");
}

#[test]
fn derived_sizes_match_the_reference() {
    let config = ZambaConfig::preset("zamba-7b").unwrap();
    assert_eq!((config.d_inner(), config.mamba_head_dim(), config.x_proj_rows()), (7424, 3712, 264));
    assert_eq!((config.q_width(), config.kv_width()), (7424, 7424));
    assert!((config.attention_scale() - 0.065_653_2).abs() < 1e-7);
    assert_eq!(config.bytes_of_weights(FileDtype::Bf16), 14_464_980_992);
}
