//! The configuration of a Zamba-1 model, as `config.json` states it and with every default resolved.
//!
//! Source: `configuration_zamba.py` of Hugging Face transformers. Each field of a file is honoured or
//! refused by an error that names it ([`ConfigError`]); none is skipped without a word. The files
//! under `config/` hold the reading ([`ZambaConfig::from_json`]), the table of fields that have no
//! effect here, and the writing.

mod inert;
mod parse;
mod preset;
mod write;

use thiserror::Error;

pub use zamba_kernels::Act;
use zamba_kernels::Dtype;

use crate::spec::{TensorSpec, tensors};

/// What a layer of the stack is. Every layer contains a Mamba block; a hybrid one also calls the
/// shared attention block before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Norm, Mamba block, residual.
    Mamba,
    /// Shared attention block, the layer's own linear map, then a Mamba layer that reads their output.
    Hybrid,
}

/// How a number of a weight file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileDtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// A byte of the integers of a quantised matrix; no number of a configuration or of a plain tensor.
    U8,
}

impl FileDtype {
    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            FileDtype::F32 => 4,
            FileDtype::F16 | FileDtype::Bf16 => 2,
            FileDtype::U8 => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            FileDtype::F32 => "F32",
            FileDtype::F16 => "F16",
            FileDtype::Bf16 => "BF16",
            FileDtype::U8 => "U8",
        }
    }

    /// The name in a `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            FileDtype::F32 => "float32",
            FileDtype::F16 => "float16",
            FileDtype::Bf16 => "bfloat16",
            FileDtype::U8 => "uint8",
        }
    }
}

/// How the matrices of a model are quantised; see [`zamba_kernels::quant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// 8 bits and a share of a scale, 8.125 in all.
    Q8,
    /// 4 bits and a share of a scale, 4.125 in all.
    Q4,
}

impl QuantFormat {
    /// The name in a `config.json` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            QuantFormat::Q8 => "q8",
            QuantFormat::Q4 => "q4",
        }
    }

    /// The type in memory.
    pub fn dtype(self) -> Dtype {
        match self {
            QuantFormat::Q8 => Dtype::Q8,
            QuantFormat::Q4 => Dtype::Q4,
        }
    }
}

/// A Zamba-1 configuration with `null` and `"auto"` resolved. Widths are counts of numbers.
///
/// Values made by [`from_json`](Self::from_json) and [`preset`](Self::preset) are valid; after editing
/// a field call [`check`](Self::check).
#[derive(Clone, Debug, PartialEq)]
pub struct ZambaConfig {
    /// Rows of the embedding, `v`.
    pub vocab_size: usize,
    /// Width of the residual stream, `d`.
    pub hidden_size: usize,
    /// Input width of the shared block, always `2 * hidden_size`: the stream beside the embedding.
    pub attention_hidden_size: usize,
    /// Width of the shared block's feed-forward part, `f`.
    pub intermediate_size: usize,
    /// Layers, all of which contain a Mamba block.
    pub num_hidden_layers: usize,
    /// Query heads of the shared block.
    pub num_attention_heads: usize,
    /// Width of one attention head, `2 * hidden_size / num_attention_heads` unless stated.
    pub attention_head_dim: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Mamba heads, each with its own dt, B and C; divides [`d_inner`](Self::d_inner).
    pub n_mamba_heads: usize,
    /// Activation of the shared block's feed-forward part.
    pub hidden_act: Act,
    /// Activation after the causal convolution. The output gate is SiLU whatever this says, as in the
    /// reference implementation.
    pub hidden_mamba_act: Act,
    /// Standard deviation of freshly drawn matrices.
    pub initializer_range: f64,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Padding token; its embedding row starts at zero.
    pub pad_token_id: Option<u32>,
    /// Token put before a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; empty if the file says `null`.
    pub eos_token_id: Vec<u32>,
    /// Longest sequence the model was meant for. There is no position encoding, so nothing depends on it.
    pub max_position_embeddings: usize,
    /// Hybrid layers repeat at this distance; used only when the file has no explicit list.
    pub attn_layer_period: usize,
    /// Offset of the hybrid layers in their period; used only when the file has no explicit list.
    pub attn_layer_offset: usize,
    /// States per Mamba channel, `n`.
    pub mamba_d_state: usize,
    /// Taps of the causal convolution, `k`.
    pub mamba_d_conv: usize,
    /// Inner width of a Mamba block over `hidden_size`.
    pub mamba_expand: usize,
    /// Rank of the step-size projection, `r`.
    pub mamba_dt_rank: usize,
    /// Smallest initial step size.
    pub time_step_min: f64,
    /// Largest initial step size.
    pub time_step_max: f64,
    /// Initial step sizes are not let below this.
    pub time_step_floor: f64,
    /// Whether the causal convolution has a bias.
    pub mamba_conv_bias: bool,
    /// Whether the Mamba in and out projections have biases.
    pub mamba_proj_bias: bool,
    /// The kind of each layer; its length is `num_hidden_layers`.
    pub layers_block_type: Vec<LayerKind>,
    /// Storage of the weights as published; of those that are not quantised.
    pub dtype: FileDtype,
    /// How those matrices are stored that can be quantised; see [`crate::spec::TensorSpec::quantised`].
    pub quantization: Option<QuantFormat>,
    /// Kept for other readers of the file; no effect here.
    pub use_cache: bool,
    /// Kept for other readers of the file; 0 stands for `null` (all). No effect here.
    pub num_logits_to_keep: usize,
    /// Kept for other readers of the file; no effect here.
    pub use_mamba_kernels: bool,
    /// Kept for other readers of the file; no effect here.
    pub use_associative_scan: bool,
}

/// Why a configuration was refused. Every message names the field.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("config is not valid JSON: {message}")]
    Syntax {
        /// The parser's words, with line and column.
        message: String,
    },
    /// Containers nest deeper than any configuration needs.
    #[error("config nests deeper than {limit} levels; it is not a zamba config")]
    TooDeep {
        /// Levels allowed.
        limit: usize,
    },
    /// More values than any configuration has.
    #[error("config has more than {limit} values; it is not a zamba config")]
    TooLong {
        /// Values allowed.
        limit: usize,
    },
    /// A key occurs twice in one object.
    #[error("config has the field `{field}` twice; remove one of them")]
    Duplicate {
        /// The key.
        field: String,
    },
    /// The text is JSON but no object.
    #[error("config is not a JSON object")]
    NotAnObject,
    /// A field without a default is absent.
    #[error("config has no field `{field}`; is this the config.json of a zamba model?")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// The model is of another family.
    #[error("config has `model_type` `{found}`, and only `zamba` (version 1) is supported{hint}")]
    ModelType {
        /// What the file says.
        found: String,
        /// More about near relatives, or empty.
        hint: &'static str,
    },
    /// The file asks for code of its own to be run.
    #[error(
        "config has `{field}`, which asks to run code from the model's folder; this is never done, use a model without it"
    )]
    RemoteCode {
        /// The field.
        field: &'static str,
    },
    /// The weights are quantised in a foreign format.
    #[error(
        "config has `{field}`: weights quantised by other programs cannot be read, use the original checkpoint and `zamba quantize`"
    )]
    Quantised {
        /// The field.
        field: &'static str,
    },
    /// A field nobody here knows: honouring it is impossible and skipping it could change the model.
    #[error("config has the unknown field `{field}`; remove it if it does not matter")]
    Unknown {
        /// The field.
        field: String,
    },
    /// A known field holds another type of value.
    #[error("config field `{field}` is {found}, expected {expected}")]
    WrongType {
        /// The field.
        field: String,
        /// The value found, shortened.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A number is outside its range.
    #[error("config field `{field}` is {found}, expected {expected}")]
    OutOfRange {
        /// The field.
        field: String,
        /// The value found.
        found: String,
        /// The range.
        expected: String,
    },
    /// A value that would change the computation in a way that is not implemented.
    #[error("config field `{field}` is {found}, which is not supported: {reason}")]
    NotSupported {
        /// The field.
        field: String,
        /// The value found, shortened.
        found: String,
        /// Why, or what to do.
        reason: &'static str,
    },
    /// Two fields contradict each other.
    #[error("config field `{field}` {problem}")]
    Inconsistent {
        /// The field to correct.
        field: &'static str,
        /// The contradiction.
        problem: String,
    },
    /// No such preset.
    #[error("there is no config named `{name}`; known names: {known}")]
    UnknownPreset {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
}

impl ZambaConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that cannot be honoured exactly.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Ok(parse::from_json(text)?.config)
    }

    /// As [`from_json`](Self::from_json), and says whether the file stated the storage of its weights.
    pub(crate) fn from_json_with_dtype(text: &str) -> Result<(Self, bool), ConfigError> {
        let parsed = parse::from_json(text)?;
        Ok((parsed.config, parsed.dtype_stated))
    }

    /// The text of a `config.json` that `transformers` reads and that reads back as the same value.
    pub fn to_json(&self) -> String {
        write::to_json(self)
    }

    /// End tokens as `transformers` writes them: `null`, a number or a list.
    pub(crate) fn eos_json(&self) -> serde_json::Value {
        write::eos_json(&self.eos_token_id)
    }

    /// A configuration by name, see [`preset_names`](Self::preset_names).
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`], which lists the names.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        preset::by_name(name)
    }

    /// Names that [`preset`](Self::preset) knows, smallest model first.
    pub fn preset_names() -> &'static [&'static str] {
        preset::NAMES
    }

    /// Checks every range and relation between fields; needed only after fields were edited.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        parse::check(self)
    }

    /// Inner width of a Mamba block, `e`.
    pub fn d_inner(&self) -> usize {
        self.mamba_expand * self.hidden_size
    }

    /// Channels per Mamba head, `p`.
    pub fn mamba_head_dim(&self) -> usize {
        self.d_inner() / self.n_mamba_heads
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.attention_head_dim
    }

    /// Outputs per Mamba head of `x_proj`: low-rank dt, B, C.
    pub fn x_proj_rows(&self) -> usize {
        self.mamba_dt_rank + 2 * self.mamba_d_state
    }

    /// Indices of the hybrid layers, ascending.
    pub fn hybrid_layers(&self) -> Vec<usize> {
        let kinds = self.layers_block_type.iter().enumerate();
        kinds.filter(|(_, kind)| **kind == LayerKind::Hybrid).map(|(i, _)| i).collect()
    }

    /// The layer under which a file stores the shared block: the first hybrid one, if there is any.
    pub fn shared_block_layer(&self) -> Option<usize> {
        self.layers_block_type.iter().position(|kind| *kind == LayerKind::Hybrid)
    }

    /// Factor on attention scores, `(head_dim / 2)^-0.5`.
    ///
    /// Half the head width, because a head of the concatenated input is twice as wide as a head of the
    /// stream (`ZambaAttention` in `modeling_zamba.py`).
    pub fn attention_scale(&self) -> f32 {
        (self.attention_head_dim as f64 / 2.0).powf(-0.5) as f32
    }

    /// Numbers in all weights, the shared block and a tied head counted once.
    pub fn parameters(&self) -> u64 {
        tensors(self).iter().map(|spec| spec.len() as u64).sum()
    }

    /// Bytes that all weights take when those that are not quantised are stored as `dtype`.
    pub fn bytes_of_weights(&self, dtype: FileDtype) -> u64 {
        let bytes = |spec: &TensorSpec| {
            let plain = spec.len() * dtype.size();
            spec.quantised(self).map_or(plain, |format| format.dtype().bytes(spec.len())) as u64
        };
        tensors(self).iter().map(bytes).sum()
    }
}
