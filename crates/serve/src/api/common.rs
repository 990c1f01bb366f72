//! What requests for text have in common, whoever's words they use.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zamba::sampler::SamplerConfig;

use super::error::ApiError;
use super::strict;
use crate::app::{App, Caller};
use crate::engine::{Salt, Usage};

strict::objects!(StreamOptions);
strict::words!(ServiceTier);

/// Longest stop string, salt and the like, in bytes.
pub(crate) const MAX_WORD: usize = 1024;

/// One text, or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// What a stream holds beside the text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct StreamOptions {
    /// Whether a last chunk without choices says what the answer took.
    pub(crate) include_usage: Option<bool>,
    /// Only `false`: this server does not pad its chunks.
    pub(crate) include_obfuscation: Option<bool>,
}

/// Declares a request for text: fields of its own, and those that such requests share.
macro_rules! text_request {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "fields of no effect are checked and not read")]
        pub(crate) struct $name {
            $($(#[$field_meta])* pub(crate) $field: $type,)*
            /// Name of the model, as `/v1/models` lists it. The served one if left out.
            pub(crate) model: Option<String>,
            /// Most new tokens. Cut down to what the context has room for.
            pub(crate) max_tokens: Option<u32>,
            /// 0 always takes the most likely token.
            #[schema(minimum = 0, maximum = 2, default = 1.0)]
            pub(crate) temperature: Option<f64>,
            /// Keep the most likely tokens that together have this probability.
            #[schema(minimum = 0, maximum = 1, default = 1.0)]
            pub(crate) top_p: Option<f64>,
            /// Keep so many of the most likely tokens; 0 keeps all.
            #[schema(default = 0)]
            pub(crate) top_k: Option<u32>,
            /// Keep tokens at least so many times as likely as the most likely one.
            #[schema(minimum = 0, maximum = 1, default = 0.0)]
            pub(crate) min_p: Option<f64>,
            /// Subtracted from the logit of a token once for each time it occurs.
            #[schema(minimum = -2, maximum = 2, default = 0.0)]
            pub(crate) frequency_penalty: Option<f64>,
            /// Subtracted from the logits of tokens that occur.
            #[schema(minimum = -2, maximum = 2, default = 0.0)]
            pub(crate) presence_penalty: Option<f64>,
            /// The logits of tokens that occur are divided by this if positive, and multiplied if not.
            #[schema(exclusive_minimum = 0, maximum = 100, default = 1.0)]
            pub(crate) repetition_penalty: Option<f64>,
            /// How many of the last tokens the penalties look at; all if left out.
            pub(crate) repeat_last_n: Option<u32>,
            /// By token id, what is added to its logit, between -100 and 100.
            #[schema(additional_properties)]
            pub(crate) logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            /// Seed of the draws; choice i draws from seed + i. Another one every time if left out.
            pub(crate) seed: Option<i64>,
            /// Texts before which the answer ends.
            pub(crate) stop: Option<$crate::api::common::OneOrMany>,
            /// Further tokens at which the answer ends.
            pub(crate) stop_token_ids: Option<Vec<u32>>,
            /// Whether to go on after a token that ends a text.
            #[schema(default = false)]
            pub(crate) ignore_eos: Option<bool>,
            /// Answers per prompt.
            #[schema(minimum = 1, default = 1)]
            pub(crate) n: Option<u32>,
            /// Whether the answer comes as it is made.
            #[schema(default = false)]
            pub(crate) stream: Option<bool>,
            /// Only with `stream`.
            pub(crate) stream_options: Option<$crate::api::common::StreamOptions>,
            /// Cached beginnings are shared only between requests with equal salts.
            #[schema(max_length = 1024)]
            pub(crate) cache_salt: Option<String>,
            /// Whether choices hold the ids of their tokens and of the prompt's.
            #[schema(default = false)]
            pub(crate) return_token_ids: Option<bool>,
            /// Who asks on the caller's side. Of no effect.
            pub(crate) user: Option<String>,
            /// Notes of the caller. Of no effect, for nothing is stored.
            #[schema(additional_properties)]
            pub(crate) metadata: Option<std::collections::BTreeMap<String, String>>,
            /// Only `false`: nothing is stored.
            pub(crate) store: Option<bool>,
            /// Only `auto` or `default`: there is one tier.
            pub(crate) service_tier: Option<$crate::api::common::ServiceTier>,
        }

        impl $name {
            /// Takes out what all requests for text have.
            pub(crate) fn shared(&mut self) -> $crate::api::common::Shared {
                $crate::api::common::Shared {
                    model: self.model.take(),
                    max_tokens: self.max_tokens,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    repetition_penalty: self.repetition_penalty,
                    repeat_last_n: self.repeat_last_n,
                    logit_bias: self.logit_bias.take().unwrap_or_default(),
                    seed: self.seed,
                    stop: self.stop.take().map(|stop| stop.into_vec()).unwrap_or_default(),
                    stop_token_ids: self.stop_token_ids.take().unwrap_or_default(),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    n: self.n,
                    stream: self.stream.unwrap_or(false),
                    stream_options: self.stream_options.take(),
                    cache_salt: self.cache_salt.take(),
                    return_token_ids: self.return_token_ids.unwrap_or(false),
                    store: self.store,
                }
            }
        }
    };
}
pub(crate) use text_request;

/// There is one tier, whatever its name.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub(crate) enum ServiceTier {
    /// The only one.
    Auto,
    /// The same.
    Default,
}

/// A field that this server knows by name and cannot honour: only null.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unsupported;

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<serde::de::IgnoredAny>::deserialize(deserializer)? {
            None => Ok(Unsupported),
            Some(_) => Err(serde::de::Error::custom("this server does not support this field; leave it out")),
        }
    }
}

impl utoipa::PartialSchema for Unsupported {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
        ObjectBuilder::new().schema_type(SchemaType::Type(Type::Null)).into()
    }
}

impl ToSchema for Unsupported {}

/// What all requests for text have, as it came.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) model: Option<String>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) repeat_last_n: Option<u32>,
    pub(crate) logit_bias: BTreeMap<String, f64>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) n: Option<u32>,
    pub(crate) stream: bool,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) return_token_ids: bool,
    pub(crate) store: Option<bool>,
}

/// What all requests for text have, checked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) sampler: SamplerConfig,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) ends: Vec<u32>,
    pub(crate) stops: Vec<String>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) score: Option<usize>,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) token_ids: bool,
    pub(crate) salt: Salt,
    pub(crate) tenant: u64,
}

impl Shared {
    /// Checks everything that can be checked without work.
    pub(crate) fn plan(self, app: &App, caller: &Caller) -> Result<Plan, ApiError> {
        check_model(app, self.model.as_deref())?;
        if self.store == Some(true) {
            return Err(ApiError::invalid("store", "this server stores nothing; leave it out or send false"));
        }
        if self.stream_options.is_some() && !self.stream {
            return Err(ApiError::invalid("stream_options", "only allowed with stream: true"));
        }
        let options = self.stream_options.clone();
        if options.as_ref().is_some_and(|options| options.include_obfuscation == Some(true)) {
            let message = "this server does not pad its chunks; send false";
            return Err(ApiError::invalid("stream_options.include_obfuscation", message));
        }
        let n = self.n.unwrap_or(1) as usize;
        if n == 0 || n > app.limits.n {
            return Err(ApiError::invalid("n", format!("must be between 1 and {}", app.limits.n)));
        }
        check_stops(&self.stop, app, "stop")?;
        Ok(Plan {
            sampler: self.sampler(app)?,
            max_tokens: self.max_tokens.map(|tokens| tokens as usize),
            ends: self.ends(app)?,
            logprobs: None,
            score: None,
            n,
            stream: self.stream,
            include_usage: options.and_then(|options| options.include_usage).unwrap_or(false),
            token_ids: self.return_token_ids || app.tokenizer.is_none(),
            salt: salt(caller, self.cache_salt.as_deref())?,
            tenant: caller.tenant,
            stops: self.stop,
        })
    }

    fn sampler(&self, app: &App) -> Result<SamplerConfig, ApiError> {
        let repetition = within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, 1.0)?;
        if repetition <= 0.0 {
            return Err(ApiError::invalid("repetition_penalty", "must be above 0"));
        }
        Ok(SamplerConfig {
            temperature: within("temperature", self.temperature, 0.0, 2.0, 1.0)?,
            top_k: self.top_k.unwrap_or(0) as usize,
            top_p: within("top_p", self.top_p, 0.0, 1.0, 1.0)?,
            min_p: within("min_p", self.min_p, 0.0, 1.0, 0.0)?,
            repeat_penalty: repetition,
            repeat_last_n: self.repeat_last_n.map_or(usize::MAX, |n| n as usize),
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0)?,
            logit_bias: biases(&self.logit_bias, app)?,
            seed: self.seed.map_or_else(random, |seed| seed as u64),
        })
    }

    fn ends(&self, app: &App) -> Result<Vec<u32>, ApiError> {
        let most = app.limits.stops;
        if self.stop_token_ids.len() > most {
            return Err(ApiError::invalid("stop_token_ids", format!("at most {most} tokens")));
        }
        let vocab = app.handle.facts().vocab;
        if let Some(id) = self.stop_token_ids.iter().find(|&&id| id as usize >= vocab) {
            let message = format!("token {id} is outside the vocabulary, which has {vocab} tokens");
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        let own = if self.ignore_eos { &[] } else { app.ends.as_slice() };
        Ok([own, &self.stop_token_ids].concat())
    }
}

pub(crate) fn check_model(app: &App, asked: Option<&str>) -> Result<(), ApiError> {
    match asked {
        Some(name) if name != app.name => {
            let name: String = name.chars().take(100).collect();
            Err(ApiError::not_found(
                "model",
                format!("model: {name:?} is not served here; it is {:?}", app.name),
            ))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_stops(stops: &[String], app: &App, param: &str) -> Result<(), ApiError> {
    let most = app.limits.stops;
    if stops.len() > most {
        return Err(ApiError::invalid(param, format!("at most {most} texts")));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_WORD) {
        return Err(ApiError::invalid(param, format!("each text must have between 1 and {MAX_WORD} bytes")));
    }
    if !stops.is_empty() && app.tokenizer.is_none() {
        return Err(ApiError::invalid(param, "the model has no tokenizer, so there is no text to stop at"));
    }
    Ok(())
}

/// A number in its range, as the sampler takes it.
pub(crate) fn within(
    param: &str,
    value: Option<f64>,
    least: f64,
    most: f64,
    default: f64,
) -> Result<f32, ApiError> {
    let value = value.unwrap_or(default);
    if !(least..=most).contains(&value) {
        return Err(ApiError::invalid(param, format!("must be between {least} and {most}")));
    }
    Ok(value as f32)
}

fn biases(map: &BTreeMap<String, f64>, app: &App) -> Result<Vec<(u32, f32)>, ApiError> {
    let most = app.limits.logit_bias;
    if map.len() > most {
        return Err(ApiError::invalid("logit_bias", format!("at most {most} tokens")));
    }
    let vocab = app.handle.facts().vocab;
    let mut biases = Vec::with_capacity(map.len());
    for (token, &bias) in map {
        let name: String = token.chars().take(20).collect();
        let digits = token.bytes().all(|b| b.is_ascii_digit());
        let id = token.parse::<u32>().ok().filter(|&id| digits && (id as usize) < vocab);
        let Some(id) = id else {
            let message = format!("{name:?} is not the id of a token; they go from 0 to {}", vocab - 1);
            return Err(ApiError::invalid("logit_bias", message));
        };
        biases.push((id, within(&format!("logit_bias.{name}"), Some(bias), -100.0, 100.0, 0.0)?));
    }
    Ok(biases)
}

/// Whose cached beginnings a request may use: the caller's own, and of those only the ones with the same salt.
pub(crate) fn salt(caller: &Caller, own: Option<&str>) -> Result<Salt, ApiError> {
    match own {
        None => Ok(caller.salt.clone()),
        Some(own) if own.len() > MAX_WORD => {
            Err(ApiError::invalid("cache_salt", format!("at most {MAX_WORD} bytes")))
        }
        // The length keeps salts of different callers apart, whatever they contain.
        Some(own) => Ok(Salt(format!("{}:{}:{own}", caller.salt.0.len(), caller.salt.0).into())),
    }
}

/// A number that nobody can guess.
pub(crate) fn random() -> u64 {
    // Each state is keyed by the system's own randomness.
    RandomState::new().build_hasher().finish()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default()
}

/// An id for a new answer.
pub(crate) fn new_id(kind: &str) -> String {
    format!("{kind}{:016x}{:016x}", random(), random())
}

/// What an answer took, in OpenAI's shape.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct UsageBody {
    /// Tokens of all prompts, each counted once.
    pub(crate) prompt_tokens: usize,
    /// New tokens of all choices.
    pub(crate) completion_tokens: usize,
    /// Both together.
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

/// How the prompt was computed.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Prompt tokens whose state was found in the cache.
    pub(crate) cached_tokens: usize,
}

impl UsageBody {
    /// Adds what one sequence took; its prompt counts only for the first choice of that prompt.
    pub(crate) fn add(&mut self, usage: &Usage, first: bool) {
        if first {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// How fast an answer of one sequence was, under llama.cpp's names.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Timings {
    /// Prompt tokens that were found in the cache.
    cache_n: usize,
    /// Prompt tokens that were computed.
    prompt_n: usize,
    /// Milliseconds from a slot to the first token.
    prompt_ms: f64,
    /// Prompt tokens per second.
    prompt_per_second: f64,
    /// New tokens.
    predicted_n: usize,
    /// Milliseconds from the first token to the last.
    predicted_ms: f64,
    /// Tokens per second after the first.
    predicted_per_second: f64,
    /// Milliseconds until a slot was free.
    queued_ms: f64,
}

impl From<&Usage> for Timings {
    fn from(usage: &Usage) -> Self {
        let per_second =
            |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let prompt_n = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let (prefill, decode) = (usage.prefill.as_secs_f64(), usage.decode.as_secs_f64());
        Timings {
            cache_n: usage.cached_tokens,
            prompt_n,
            prompt_ms: prefill * 1e3,
            prompt_per_second: per_second(prompt_n, prefill),
            predicted_n: usage.completion_tokens,
            predicted_ms: decode * 1e3,
            predicted_per_second: per_second(usage.completion_tokens.saturating_sub(1), decode),
            queued_ms: usage.queued.as_secs_f64() * 1e3,
        }
    }
}
