//! Fields that `transformers` writes into every `config.json` and that do not touch this model.
//!
//! Each is accepted with the value that means "nothing" and refused with any other, because another
//! value would ask for behaviour that is not there. Sources: `PretrainedConfig.__init__` and
//! `_get_global_generation_defaults` of transformers 4.46 to 5.23, and the published
//! `Zyphra/Zamba-7B-v1` configuration.

use serde_json::Value;

use super::ConfigError;
use super::parse::shorten;

/// Which values of an inert field mean "nothing".
enum Means {
    /// Any value: the field is a note to people or to other programs.
    Note,
    /// `null` or `false`.
    Off,
    /// `null` or `true`.
    On,
    /// `null` only.
    Null,
    /// `null` or an empty list or object.
    Empty,
    /// `null` or exactly this number.
    Number(f64),
    /// A finite number or `null`: stated by published files and read by nobody.
    Unused,
    /// `null` or a token number; has a meaning for tokenizers only.
    Token,
}

/// Why a generation setting in the model's configuration is refused.
const GENERATION: &str = "sampling settings belong in generation_config.json or on the command line";
const NOT_CAUSAL: &str = "only the causal language model is implemented";
const NO_POSITIONS: &str = "zamba version 1 has no position encoding and full attention";

fn meaning(field: &str) -> Option<(Means, &'static str)> {
    use Means::*;
    let found = match field {
        "transformers_version" | "_name_or_path" | "name_or_path" | "_commit_hash" => (Note, ""),
        "_attn_implementation_autoset" | "id2label" | "label2id" | "num_labels" => (Note, ""),
        "attn_implementation" | "_attn_implementation" | "keys_to_ignore_at_inference" => (Note, ""),
        "tokenizer_class" | "return_dict" | "finetuning_task" | "torchscript" | "tf_legacy_loss" => {
            (Note, "")
        }
        "output_hidden_states" | "output_attentions" | "use_bfloat16" | "return_dict_in_generate" => {
            (Off, "this output does not exist here")
        }
        "gradient_checkpointing" => (Off, "recomputation is chosen in the training recipe"),
        "pruned_heads" => (Empty, "pruned attention heads are not implemented"),
        "chunk_size_feed_forward" => (Number(0.0), "chunked feed-forward is not implemented"),
        "is_encoder_decoder" | "is_decoder" | "add_cross_attention" | "tie_encoder_decoder" => {
            (Off, NOT_CAUSAL)
        }
        "cross_attention_hidden_size" | "decoder_start_token_id" | "problem_type" => (Null, NOT_CAUSAL),
        "task_specific_params" | "prefix" | "per_layer_config" => {
            (Empty, "it would change how the model is run")
        }
        "rope_theta" => (Unused, NO_POSITIONS),
        "sliding_window" | "rope_scaling" | "rope_parameters" => (Null, NO_POSITIONS),
        "sep_token_id" | "unk_token_id" => (Token, "expected a token number or null"),
        "max_length" => (Number(20.0), GENERATION),
        "min_length" | "diversity_penalty" | "no_repeat_ngram_size" | "encoder_no_repeat_ngram_size" => {
            (Number(0.0), GENERATION)
        }
        "num_beams"
        | "num_beam_groups"
        | "temperature"
        | "top_p"
        | "typical_p"
        | "repetition_penalty"
        | "length_penalty"
        | "num_return_sequences" => (Number(1.0), GENERATION),
        "top_k" => (Number(50.0), GENERATION),
        "do_sample" | "early_stopping" | "output_scores" | "remove_invalid_values" => (Off, GENERATION),
        "bad_words_ids"
        | "forced_bos_token_id"
        | "forced_eos_token_id"
        | "suppress_tokens"
        | "begin_suppress_tokens"
        | "exponential_decay_length_penalty" => (Null, GENERATION),
        "is_causal" => (On, NOT_CAUSAL),
        _ => return None,
    };
    Some(found)
}

/// Accepts `field` if it is known to be without effect at this value.
pub(super) fn accept(field: &str, value: &Value) -> Result<(), ConfigError> {
    let Some((means, reason)) = meaning(field) else {
        return Err(ConfigError::Unknown { field: field.to_owned() });
    };
    let inert = match means {
        Means::Note => true,
        Means::Off => value.is_null() || value == &Value::Bool(false),
        Means::On => value.is_null() || value == &Value::Bool(true),
        Means::Null => value.is_null(),
        Means::Empty => {
            value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty)
        }
        Means::Number(neutral) => value.is_null() || value.as_f64() == Some(neutral),
        Means::Unused => value.is_null() || value.is_number(),
        Means::Token => value.is_null() || value.as_u64().is_some_and(|id| id <= u64::from(u32::MAX)),
    };
    if inert {
        return Ok(());
    }
    Err(ConfigError::NotSupported { field: field.to_owned(), found: shorten(value), reason })
}
