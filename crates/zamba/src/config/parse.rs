//! Reading a `config.json` and checking that its numbers fit together.

use serde_json::{Map, Value};
use zamba_kernels::quant::GROUP;

use super::preset::schedule;
use super::{Act, ConfigError, FileDtype, LayerKind, QuantFormat, ZambaConfig, inert};
use crate::json::{self, JsonError, Limits};

/// The object, a map of labels, and room for one more level; the longest list of layers, many times.
const LIMITS: Limits = Limits { depth: 4, values: 1 << 16 };

/// `quant_method` of folders that this program quantised.
const METHOD: &str = "zamba";

/// A configuration, and whether the file stated `dtype` or `torch_dtype`.
pub(super) struct Parsed {
    pub(super) config: ZambaConfig,
    pub(super) dtype_stated: bool,
}

pub(super) fn from_json(text: &str) -> Result<Parsed, ConfigError> {
    let value = json::parse(text, LIMITS).map_err(|error| match error {
        JsonError::Syntax(message) => ConfigError::Syntax { message },
        JsonError::DuplicateKey(field) => ConfigError::Duplicate { field },
        JsonError::TooDeep(limit) => ConfigError::TooDeep { limit },
        JsonError::TooMany(limit) => ConfigError::TooLong { limit },
    })?;
    let Value::Object(map) = value else { return Err(ConfigError::NotAnObject) };
    let mut fields = Fields { map };
    refuse_strangers(&mut fields)?;
    let dtype = dtype(&mut fields)?;
    let quantization = quantization(&mut fields)?;
    let config = known_fields(&mut fields, dtype.unwrap_or(FileDtype::F32))?;
    let config = ZambaConfig { quantization, ..config };
    for (field, value) in &fields.map {
        inert::accept(field, value)?;
    }
    Ok(Parsed { config, dtype_stated: dtype.is_some() })
}

/// Looks first at what makes every other message beside the point: another family, code, quantisation.
fn refuse_strangers(fields: &mut Fields) -> Result<(), ConfigError> {
    let found = fields.map.remove("model_type").ok_or(ConfigError::Missing { field: "model_type" })?;
    if found != "zamba" {
        let hint =
            if found == "zamba2" { "; zamba2 is a different architecture (Mamba-2 blocks)" } else { "" };
        return Err(ConfigError::ModelType { found: shorten(&found).trim_matches('"').to_owned(), hint });
    }
    for field in ["auto_map", "custom_pipelines"] {
        if fields.map.contains_key(field) {
            return Err(ConfigError::RemoteCode { field });
        }
    }
    let foreign = |value: &Value| !value.is_null() && value.get("quant_method") != Some(&METHOD.into());
    for (field, foreign) in [
        ("quantization_config", fields.map.get("quantization_config").is_some_and(foreign)),
        ("compression_config", fields.map.remove("compression_config").is_some_and(|v| !v.is_null())),
    ] {
        if foreign {
            return Err(ConfigError::Quantised { field });
        }
    }
    match fields.map.remove("architectures") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(names)) if names.len() == 1 && names[0] == "ZambaForCausalLM" => Ok(()),
        Some(other) => Err(ConfigError::NotSupported {
            field: "architectures".into(),
            found: shorten(&other),
            reason: "only [\"ZambaForCausalLM\"] is implemented",
        }),
    }
}

fn known_fields(f: &mut Fields, dtype: FileDtype) -> Result<ZambaConfig, ConfigError> {
    let hidden_size = f.int("hidden_size", 3712)?;
    let num_hidden_layers = f.int("num_hidden_layers", 76)?;
    let num_attention_heads = f.int("num_attention_heads", 16)?;
    // Checked here because the defaults of other fields divide by them or are sized by them.
    range("hidden_size", hidden_size, 1, 1 << 20)?;
    range("num_hidden_layers", num_hidden_layers, 1, 4096)?;
    range("num_attention_heads", num_attention_heads, 1, 1 << 16)?;
    let attn_layer_period = f.int("attn_layer_period", 6)?;
    let attn_layer_offset = f.int("attn_layer_offset", 4)?;
    range("attn_layer_period", attn_layer_period, 1, 1 << 16)?;
    let config = ZambaConfig {
        vocab_size: f.int("vocab_size", 32000)?,
        hidden_size,
        attention_hidden_size: f.optional_int("attention_hidden_size", None)?.unwrap_or(2 * hidden_size),
        intermediate_size: f.int("intermediate_size", 14848)?,
        num_hidden_layers,
        num_attention_heads,
        attention_head_dim: f
            .optional_int("attention_head_dim", Some("head_dim"))?
            .unwrap_or(2 * hidden_size / num_attention_heads),
        num_key_value_heads: f.kv_heads(num_attention_heads)?,
        n_mamba_heads: f.int("n_mamba_heads", 2)?,
        hidden_act: f.act("hidden_act", Act::Gelu)?,
        hidden_mamba_act: f.act("hidden_mamba_act", Act::Silu)?,
        initializer_range: f.float("initializer_range", 0.02)?,
        rms_norm_eps: f.float("rms_norm_eps", 1e-5)?,
        tie_word_embeddings: f.bool("tie_word_embeddings", true)?,
        pad_token_id: f.token("pad_token_id", 0)?,
        bos_token_id: f.token("bos_token_id", 1)?,
        eos_token_id: f.tokens("eos_token_id", 2)?,
        max_position_embeddings: f.int("max_position_embeddings", 4096)?,
        attn_layer_period,
        attn_layer_offset,
        mamba_d_state: f.int("mamba_d_state", 16)?,
        mamba_d_conv: f.int("mamba_d_conv", 4)?,
        mamba_expand: f.int("mamba_expand", 2)?,
        mamba_dt_rank: f.dt_rank(hidden_size)?,
        time_step_min: f.float("time_step_min", 1e-3)?,
        time_step_max: f.float("time_step_max", 0.1)?,
        time_step_floor: f.float("time_step_floor", 1e-4)?,
        mamba_conv_bias: f.bool("mamba_conv_bias", true)?,
        mamba_proj_bias: f.bool("mamba_proj_bias", false)?,
        layers_block_type: f.layers(num_hidden_layers, attn_layer_period, attn_layer_offset)?,
        dtype,
        quantization: None,
        use_cache: f.bool("use_cache", true)?,
        num_logits_to_keep: f.logits_to_keep()?,
        use_mamba_kernels: f.bool("use_mamba_kernels", true)?,
        use_associative_scan: f.bool("use_associative_scan", true)?,
    };
    let dropout = f.float("attention_dropout", 0.0)?;
    if dropout != 0.0 {
        return Err(ConfigError::NotSupported {
            field: "attention_dropout".into(),
            found: dropout.to_string(),
            reason: "training has no dropout, set it to 0",
        });
    }
    check(&config)?;
    Ok(config)
}

/// The fields of the file not yet read.
struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Takes a field, or its alias; both only if they agree.
    fn take(
        &mut self,
        field: &'static str,
        alias: Option<&'static str>,
    ) -> Result<Option<Value>, ConfigError> {
        let value = self.map.remove(field);
        let other = alias.and_then(|name| self.map.remove(name));
        match (value, other) {
            (Some(a), Some(b)) if !a.is_null() && !b.is_null() && a != b => {
                let problem = format!("contradicts `{}`; remove one of them", alias.unwrap_or(""));
                Err(ConfigError::Inconsistent { field, problem })
            }
            (Some(Value::Null), Some(value)) | (Some(value), _) | (None, Some(value)) => Ok(Some(value)),
            (None, None) => Ok(None),
        }
    }

    fn int(&mut self, field: &'static str, default: usize) -> Result<usize, ConfigError> {
        self.take(field, None)?.map_or(Ok(default), |value| as_int(field, &value, "a whole number"))
    }

    fn optional_int(
        &mut self,
        field: &'static str,
        alias: Option<&'static str>,
    ) -> Result<Option<usize>, ConfigError> {
        match self.take(field, alias)? {
            None | Some(Value::Null) => Ok(None),
            Some(value) => as_int(field, &value, "a whole number or null").map(Some),
        }
    }

    /// Absent means 16; `null`, which the fork of transformers wrote, means as many as query heads.
    fn kv_heads(&mut self, query_heads: usize) -> Result<usize, ConfigError> {
        let stated = self.map.contains_key("num_key_value_heads");
        let default = if stated { query_heads } else { 16 };
        Ok(self.optional_int("num_key_value_heads", None)?.unwrap_or(default))
    }

    /// Absent means 1; `null` means all, which is written as 0.
    fn logits_to_keep(&mut self) -> Result<usize, ConfigError> {
        let stated = self.map.contains_key("num_logits_to_keep");
        Ok(self.optional_int("num_logits_to_keep", None)?.unwrap_or(usize::from(!stated)))
    }

    fn dt_rank(&mut self, hidden_size: usize) -> Result<usize, ConfigError> {
        let field = "mamba_dt_rank";
        match self.take(field, None)? {
            None => Ok(hidden_size.div_ceil(16)),
            Some(Value::String(text)) if text == "auto" => Ok(hidden_size.div_ceil(16)),
            Some(value) => as_int(field, &value, "a whole number or \"auto\""),
        }
    }

    fn float(&mut self, field: &'static str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.take(field, None)? else { return Ok(default) };
        value.as_f64().ok_or_else(|| wrong_type(field, &value, "a number"))
    }

    fn bool(&mut self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.take(field, None)? else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong_type(field, &value, "true or false"))
    }

    fn token(&mut self, field: &'static str, default: u32) -> Result<Option<u32>, ConfigError> {
        match self.take(field, None)? {
            None => Ok(Some(default)),
            Some(Value::Null) => Ok(None),
            Some(value) => as_token(field, &value).map(Some),
        }
    }

    fn tokens(&mut self, field: &'static str, default: u32) -> Result<Vec<u32>, ConfigError> {
        match self.take(field, None)? {
            None => Ok(vec![default]),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(|id| as_token(field, id)).collect(),
            Some(value) => as_token(field, &value).map(|id| vec![id]),
        }
    }

    fn act(&mut self, field: &'static str, default: Act) -> Result<Act, ConfigError> {
        let Some(value) = self.take(field, None)? else { return Ok(default) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Act::Silu),
            Some("gelu" | "gelu_python") => Ok(Act::Gelu),
            // These spellings differ only in how many digits of sqrt(2 / pi) the reference writes out.
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate") => {
                Ok(Act::GeluTanh)
            }
            Some("relu") => Ok(Act::Relu),
            Some(_) => Err(ConfigError::NotSupported {
                field: field.into(),
                found: shorten(&value),
                reason: "known activations are silu, gelu, gelu_pytorch_tanh and relu",
            }),
            None => Err(wrong_type(field, &value, "the name of an activation")),
        }
    }

    fn layers(&mut self, layers: usize, period: usize, offset: usize) -> Result<Vec<LayerKind>, ConfigError> {
        let field = "layers_block_type";
        match self.take(field, Some("layer_types"))? {
            None | Some(Value::Null) if layers < 3 => Err(ConfigError::Inconsistent {
                field,
                problem: format!(
                    "is absent and `num_hidden_layers` is {layers}: the computed list needs at least 3 layers, state the list"
                ),
            }),
            None | Some(Value::Null) => Ok(schedule(layers, period, offset)),
            Some(Value::Array(kinds)) if kinds.len() != layers => Err(ConfigError::Inconsistent {
                field,
                problem: format!("has {} entries and `num_hidden_layers` is {layers}", kinds.len()),
            }),
            Some(Value::Array(kinds)) => kinds.iter().map(layer_kind).collect(),
            Some(value) => Err(wrong_type(field, &value, "a list of layer types or null")),
        }
    }
}

/// One entry of the list of layers, in any spelling of transformers, its fork, or the training code.
fn layer_kind(value: &Value) -> Result<LayerKind, ConfigError> {
    match value.as_str() {
        Some("mamba" | "linear_attention" | "m") => Ok(LayerKind::Mamba),
        Some("hybrid" | "attention+mamba" | "g") => Ok(LayerKind::Hybrid),
        _ => Err(wrong_type("layers_block_type", value, "\"mamba\" or \"hybrid\" in every place")),
    }
}

fn dtype(fields: &mut Fields) -> Result<Option<FileDtype>, ConfigError> {
    let Some(value) = fields.take("dtype", Some("torch_dtype"))? else { return Ok(None) };
    let Some(name) = value.as_str() else {
        return if value.is_null() {
            Ok(None)
        } else {
            Err(wrong_type("dtype", &value, "the name of a type"))
        };
    };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" | "float" => Ok(Some(FileDtype::F32)),
        "float16" | "half" => Ok(Some(FileDtype::F16)),
        "bfloat16" => Ok(Some(FileDtype::Bf16)),
        _ => Err(ConfigError::NotSupported {
            field: "dtype".into(),
            found: shorten(&value),
            reason: "weights are float32, float16 or bfloat16",
        }),
    }
}

/// `quantization_config` of this program; those of others were refused before.
fn quantization(fields: &mut Fields) -> Result<Option<QuantFormat>, ConfigError> {
    let Some(Value::Object(mut map)) = fields.map.remove("quantization_config") else { return Ok(None) };
    map.remove("quant_method");
    let mut take = |field: &'static str| {
        let name = field.rsplit('.').next().unwrap_or(field);
        map.remove(name).ok_or(ConfigError::Missing { field })
    };
    let exactly = |field: &'static str, value: Value, known: usize, reason: &'static str| {
        if value.as_u64() == Some(known as u64) {
            return Ok(());
        }
        Err(ConfigError::NotSupported { field: field.into(), found: shorten(&value), reason })
    };
    exactly(
        "quantization_config.version",
        take("quantization_config.version")?,
        2,
        "this program knows version 2; quantise the original checkpoint again",
    )?;
    exactly(
        "quantization_config.group_size",
        take("quantization_config.group_size")?,
        GROUP,
        "groups have 128 columns",
    )?;
    let field = "quantization_config.format";
    let format = take(field)?;
    if let Some(other) = map.keys().next() {
        return Err(ConfigError::Unknown { field: format!("quantization_config.{other}") });
    }
    match format.as_str() {
        Some("q8") => Ok(Some(QuantFormat::Q8)),
        Some("q4") => Ok(Some(QuantFormat::Q4)),
        _ => Err(ConfigError::NotSupported {
            field: field.into(),
            found: shorten(&format),
            reason: "known formats are q8 and q4",
        }),
    }
}

fn as_int(field: &str, value: &Value, expected: &'static str) -> Result<usize, ConfigError> {
    let number = value.as_u64().ok_or_else(|| wrong_type(field, value, expected))?;
    usize::try_from(number).map_err(|_| wrong_type(field, value, expected))
}

fn as_token(field: &str, value: &Value) -> Result<u32, ConfigError> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| wrong_type(field, value, "a token number (zero or more) or null"))
}

fn wrong_type(field: &str, value: &Value, expected: &'static str) -> ConfigError {
    ConfigError::WrongType { field: field.to_owned(), found: shorten(value), expected }
}

/// A value for a one-line message: at most 60 characters of its JSON, which escapes control characters.
pub(super) fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn range(field: &str, found: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        field: field.to_owned(),
        found: found.to_string(),
        expected: format!("{low} to {high}"),
    })
}

fn float_range(field: &str, found: f64, low: f64, high: f64) -> Result<(), ConfigError> {
    if found.is_finite() && (low..=high).contains(&found) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        field: field.to_owned(),
        found: found.to_string(),
        expected: format!("{low:e} to {high:e}"),
    })
}

fn divides(field: &'static str, divisor: usize, name: &str, number: usize) -> Result<(), ConfigError> {
    if number.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(ConfigError::Inconsistent {
        field,
        problem: format!("is {divisor}, which does not divide {name}, {number}"),
    })
}

/// Ranges of all fields and the relations between them.
///
/// The ranges are wide of any real model and small enough that every width is below 2^38 and every
/// tensor below 2^63 numbers, so later arithmetic on sizes cannot overflow.
pub(super) fn check(c: &ZambaConfig) -> Result<(), ConfigError> {
    check_ranges(c)?;
    check_floats(c)?;
    if c.attention_hidden_size != 2 * c.hidden_size {
        let problem =
            format!("is {}, and must be twice `hidden_size`, {}", c.attention_hidden_size, 2 * c.hidden_size);
        return Err(ConfigError::Inconsistent { field: "attention_hidden_size", problem });
    }
    if c.layers_block_type.len() != c.num_hidden_layers {
        let problem = format!(
            "has {} entries and `num_hidden_layers` is {}",
            c.layers_block_type.len(),
            c.num_hidden_layers
        );
        return Err(ConfigError::Inconsistent { field: "layers_block_type", problem });
    }
    divides("num_key_value_heads", c.num_key_value_heads, "`num_attention_heads`", c.num_attention_heads)?;
    divides("n_mamba_heads", c.n_mamba_heads, "`mamba_expand` * `hidden_size`", c.d_inner())?;
    check_tokens(c)?;
    check_total(c)
}

fn check_ranges(c: &ZambaConfig) -> Result<(), ConfigError> {
    range("vocab_size", c.vocab_size, 1, 1 << 24)?;
    range("hidden_size", c.hidden_size, 1, 1 << 20)?;
    range("intermediate_size", c.intermediate_size, 1, 1 << 24)?;
    range("num_hidden_layers", c.num_hidden_layers, 1, 4096)?;
    range("num_attention_heads", c.num_attention_heads, 1, 1 << 16)?;
    range("attention_head_dim", c.attention_head_dim, 1, 1 << 16)?;
    range("num_key_value_heads", c.num_key_value_heads, 1, 1 << 16)?;
    range("n_mamba_heads", c.n_mamba_heads, 1, 1 << 16)?;
    range("max_position_embeddings", c.max_position_embeddings, 1, 1 << 31)?;
    range("attn_layer_period", c.attn_layer_period, 1, 1 << 16)?;
    range("attn_layer_offset", c.attn_layer_offset, 0, 1 << 16)?;
    range("mamba_d_state", c.mamba_d_state, 1, 4096)?;
    range("mamba_d_conv", c.mamba_d_conv, 1, 64)?;
    range("mamba_expand", c.mamba_expand, 1, 64)?;
    range("mamba_dt_rank", c.mamba_dt_rank, 1, 1 << 20)?;
    range("num_logits_to_keep", c.num_logits_to_keep, 0, 1 << 31)
}

fn check_floats(c: &ZambaConfig) -> Result<(), ConfigError> {
    float_range("initializer_range", c.initializer_range, 0.0, 100.0)?;
    // Below this the sum with a mean square would not be a normal f32 for an all-zero row.
    float_range("rms_norm_eps", c.rms_norm_eps, 1e-30, 1.0)?;
    float_range("time_step_min", c.time_step_min, 1e-30, 1e3)?;
    float_range("time_step_max", c.time_step_max, 1e-30, 1e3)?;
    float_range("time_step_floor", c.time_step_floor, 0.0, 1e3)?;
    if c.time_step_min > c.time_step_max {
        let problem = format!("is {}, above `time_step_max`, {}", c.time_step_min, c.time_step_max);
        return Err(ConfigError::Inconsistent { field: "time_step_min", problem });
    }
    Ok(())
}

fn check_tokens(c: &ZambaConfig) -> Result<(), ConfigError> {
    let single = [("pad_token_id", c.pad_token_id), ("bos_token_id", c.bos_token_id)];
    let single = single.into_iter().filter_map(|(field, id)| id.map(|id| (field, id)));
    for (field, id) in single.chain(c.eos_token_id.iter().map(|id| ("eos_token_id", *id))) {
        if id as usize >= c.vocab_size {
            let problem = format!("is {id}, and `vocab_size` is {}", c.vocab_size);
            return Err(ConfigError::Inconsistent { field, problem });
        }
    }
    Ok(())
}

/// Refuses sizes whose bytes could not even be counted in the address space of this machine.
fn check_total(c: &ZambaConfig) -> Result<(), ConfigError> {
    let d = c.hidden_size as u128;
    let e = c.d_inner() as u128;
    let rows = c.x_proj_rows() as u128;
    let mamba = 3 * e * d + e * (rows + c.mamba_dt_rank as u128 + (c.mamba_d_state + c.mamba_d_conv) as u128);
    let shared = 2 * d * (c.q_width() + 2 * c.kv_width()) as u128
        + c.q_width() as u128 * d
        + 3 * d * c.intermediate_size as u128;
    let total = 2 * c.vocab_size as u128 * d + c.num_hidden_layers as u128 * (mamba + d * d) + shared;
    // Four bytes a number, and room for the small tensors that the sum leaves out.
    if total > isize::MAX as u128 / 8 {
        return Err(ConfigError::OutOfRange {
            field: "hidden_size".into(),
            found: format!("{} (with the other sizes about {total} weights)", c.hidden_size),
            expected: "sizes that fit this machine's address space".into(),
        });
    }
    Ok(())
}
