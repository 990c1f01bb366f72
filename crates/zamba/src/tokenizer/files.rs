//! The small files around `tokenizer.json`, read and merged as `transformers` 5.23 does
//! (`PreTrainedTokenizerBase._from_pretrained`, `AutoTokenizer.from_pretrained`).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerError;

/// Largest file that is read, in bytes. The largest published `tokenizer.json` files have about 35 MB.
const MAX_FILE: u64 = 64 << 20;

/// Named special tokens in the order in which `transformers` adds them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the small files say.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Names of special tokens (`bos_token` …) in order; their tokens are `special`, place by place.
    pub(crate) names: Vec<String>,
    pub(crate) special: Vec<AddedToken>,
    /// Special tokens without a name.
    pub(crate) extra: Vec<AddedToken>,
    /// Added tokens by id: `added_tokens_decoder`, or else those of `tokenizer.json`.
    pub(crate) declared: Vec<AddedToken>,
    /// Whether `transformers` would use its class `LlamaTokenizer`.
    pub(crate) llama_class: bool,
    pub(crate) legacy: bool,
    pub(crate) add_prefix_space: Option<bool>,
    pub(crate) split_special_tokens: bool,
    pub(crate) clean_up: bool,
    pub(crate) generation_eos_ids: Option<Vec<u32>>,
}

impl Settings {
    /// Reads the files of `dir` that are there. `tokenizer_json` and its `added` tokens were read before.
    pub(crate) fn read(
        dir: &Path,
        tokenizer_json: &str,
        added: &[AddedToken],
    ) -> Result<Self, TokenizerError> {
        let config_path = dir.join("tokenizer_config.json");
        let mut config = read_json_object(&config_path)?.unwrap_or_default();
        let mut settings = Self { declared: added.to_vec(), ..Self::default() };
        let bad = |what: &str| TokenizerError::Invalid { path: config_path.clone(), what: what.to_owned() };

        settings.llama_class = is_llama_class(dir, &config)? && !tokenizer_json.contains("\"ByteLevel\"");
        settings.legacy = flag(&config, "legacy").map_err(bad)?.unwrap_or(false);
        settings.add_prefix_space = flag(&config, "add_prefix_space").map_err(bad)?;
        settings.split_special_tokens = flag(&config, "split_special_tokens").map_err(bad)?.unwrap_or(false);
        settings.clean_up = flag(&config, "clean_up_tokenization_spaces").map_err(bad)?.unwrap_or(false);
        if let Some(declared) = config.get("added_tokens_decoder") {
            settings.declared = declared_tokens(declared).map_err(bad)?;
        } else {
            merge_special_tokens_map(dir, &mut config)?;
        }
        let declared = settings.declared.iter().map(|token| (token.content.clone(), token.clone())).collect();
        settings.take_names(&config, &declared).map_err(bad)?;
        settings.generation_eos_ids = generation_eos_ids(dir)?;
        Ok(settings)
    }

    /// The text of a named special token (`bos_token` …).
    pub(crate) fn named(&self, name: &str) -> Option<&str> {
        let place = self.names.iter().position(|n| n == name)?;
        Some(&self.special[place].content)
    }

    fn take_names(
        &mut self,
        config: &Map<String, Value>,
        declared: &HashMap<String, AddedToken>,
    ) -> Result<(), &'static str> {
        // A named token that is also declared keeps the flags of the declaration.
        let mut push = |name: &str, token: AddedToken| {
            self.names.push(name.to_owned());
            self.special.push(declared.get(&token.content).cloned().unwrap_or(token));
        };
        let llama_class = self.llama_class;
        let llama_defaults = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
        for name in NAMED {
            let default = llama_defaults.iter().find(|(n, _)| llama_class && *n == name);
            match (config.get(name), default) {
                (None, Some((_, token))) => push(name, AddedToken::from(*token, true)),
                (None | Some(Value::Null), _) => {}
                (Some(value), _) => push(name, token(value, false)?),
            }
        }
        // Names of a model's own, such as image_token.
        for (name, value) in config {
            if name.ends_with("_token")
                && !NAMED.contains(&name.as_str())
                && (value.is_string() || value.is_object())
            {
                push(name, token(value, false)?);
            }
        }
        let extra = ["extra_special_tokens", "additional_special_tokens"].iter().find_map(|k| config.get(*k));
        match extra {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                self.extra = list.iter().map(|value| token(value, true)).collect::<Result<_, _>>()?;
            }
            Some(Value::Object(map)) => {
                for (name, value) in map {
                    push(name, token(value, true)?);
                }
            }
            Some(_) => return Err("extra_special_tokens is neither a list nor an object"),
        }
        Ok(())
    }
}

/// Text of a file; none if it does not exist.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    let unreadable = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(TokenizerError::TooLarge { path: path.to_owned(), limit: MAX_FILE });
    }
    Ok(Some(text))
}

/// A JSON object from a file; none if it does not exist.
pub(crate) fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|e| TokenizerError::Json { path: path.to_owned(), message: super::one_line(e) })
}

fn flag(config: &Map<String, Value>, name: &str) -> Result<Option<bool>, &'static str> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        // Only numbers 0 and 1 occur in the wild beside true and false.
        Some(Value::Number(number)) => Ok(Some(number.as_f64() != Some(0.0))),
        Some(_) => Err(
            "legacy, add_prefix_space, split_special_tokens and clean_up_tokenization_spaces must be true or false",
        ),
    }
}

/// The class in `tokenizer_config.json`, or else in `config.json`.
fn is_llama_class(dir: &Path, config: &Map<String, Value>) -> Result<bool, TokenizerError> {
    let class =
        |map: &Map<String, Value>| map.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned);
    let class = match class(config) {
        Some(name) => Some(name),
        None => read_json_object(&dir.join("config.json"))?.as_ref().and_then(class),
    };
    Ok(matches!(class.as_deref(), Some("LlamaTokenizer" | "LlamaTokenizerFast")))
}

/// A special token as a string or as an object with flags.
fn token(value: &Value, special: bool) -> Result<AddedToken, &'static str> {
    match value {
        Value::String(text) => Ok(AddedToken::from(text.as_str(), true)),
        Value::Object(map) => {
            let content =
                map.get("content").and_then(Value::as_str).ok_or("a special token has no content")?;
            let set = |name: &str| map.get(name).and_then(Value::as_bool);
            let special = special || set("special").unwrap_or(false);
            Ok(AddedToken::from(content, special)
                .single_word(set("single_word").unwrap_or(false))
                .lstrip(set("lstrip").unwrap_or(false))
                .rstrip(set("rstrip").unwrap_or(false))
                .normalized(set("normalized").unwrap_or(!special)))
        }
        _ => Err("a special token is neither a string nor an object"),
    }
}

/// `added_tokens_decoder`, in order of id.
fn declared_tokens(value: &Value) -> Result<Vec<AddedToken>, &'static str> {
    let map = value.as_object().ok_or("added_tokens_decoder is not an object")?;
    let mut tokens = Vec::with_capacity(map.len());
    for (id, value) in map {
        let id: u32 = id.parse().map_err(|_| "added_tokens_decoder has a key that is not a token id")?;
        tokens.push((id, token(value, false)?));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

/// `special_tokens_map.json` counts only where `tokenizer_config.json` has no `added_tokens_decoder`, and then before it.
fn merge_special_tokens_map(dir: &Path, config: &mut Map<String, Value>) -> Result<(), TokenizerError> {
    for (name, mut value) in read_json_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default() {
        if let Some(token) = value.as_object_mut()
            && token.contains_key("content")
        {
            token.insert("special".to_owned(), Value::Bool(true));
        }
        config.insert(name, value);
    }
    Ok(())
}

fn generation_eos_ids(dir: &Path) -> Result<Option<Vec<u32>>, TokenizerError> {
    let path = dir.join("generation_config.json");
    let config = read_json_object(&path)?.unwrap_or_default();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    let what = "eos_token_id must be a token id or a list of them".to_owned();
    ids.map(Some).ok_or(TokenizerError::Invalid { path, what })
}
