//! A small model over bytes, as files: for tests that need a folder or a text.

use serde_json::{Value, json};

/// Four layers of width 32 over 300 tokens.
pub(crate) fn config() -> Value {
    json!({
        "model_type": "zamba", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "n_mamba_heads": 2, "mamba_d_state": 4,
        "mamba_dt_rank": 3, "max_position_embeddings": 64, "initializer_range": 0.2, "torch_dtype": "float32",
    })
}

/// A tokenizer whose tokens are bytes: ids 0 to 2 are special, byte b is 3 + b.
pub(crate) fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, special) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert((*special).to_owned(), id.into());
    }
    // GPT-2's printable stand-ins: bytes that print stand for themselves, the others follow from U+0100 on.
    let mut next = 256;
    for byte in 0..256 {
        let prints = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if prints { byte } else { next };
        next += u32::from(!prints);
        vocab.insert(char::from_u32(code).unwrap().to_string(), (3 + byte).into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}
