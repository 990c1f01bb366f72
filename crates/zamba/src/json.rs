//! JSON that two readers cannot read differently: duplicate keys and deep nesting are refused.
//!
//! `serde_json` keeps the last of two equal keys without a word. A file whose meaning depends on
//! which reader opens it must not describe a model, and a request that two programs on its way read
//! differently must not be answered, so every JSON text from outside comes through here.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text was refused as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON at all; the parser's own words with line and column.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// An object names this key twice.
    #[error("an object names the key {0:?} twice")]
    DuplicateKey(String),
    /// Containers are nested deeper than this limit.
    #[error("nested deeper than {0} levels")]
    TooDeep(usize),
    /// There are more values than this limit.
    #[error("more than {0} values")]
    TooMany(usize),
}

/// How large a tree a text may describe. A tree takes twenty times the memory of its text, so the
/// length of the text alone is no bound.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nested containers.
    pub depth: usize,
    /// Values, counted by the commas between them.
    pub values: usize,
}

/// Parses `text`, refusing duplicate keys at every level and trees beyond `limits`.
///
/// # Errors
/// If the text is not JSON, names a key twice, or goes beyond `limits`.
pub fn parse(text: &str, limits: Limits) -> Result<Value, JsonError> {
    check_limits(text.as_bytes(), limits)?;
    let duplicate = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let parsed = Strict { duplicate: &duplicate }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    parsed.map_err(|error| match duplicate.take() {
        Some(key) => JsonError::DuplicateKey(key),
        None => JsonError::Syntax(error.to_string()),
    })
}

/// Refuses text whose `{`, `[` and `,` outside strings go beyond `limits`.
///
/// One pass without recursion, so that a file of a million brackets costs a scan and no stack.
///
/// # Errors
/// [`JsonError::TooDeep`] or [`JsonError::TooMany`].
pub fn check_limits(text: &[u8], limits: Limits) -> Result<(), JsonError> {
    let (mut depth, mut commas, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for &byte in text {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => commas += 1,
            _ => continue,
        }
        if depth > limits.depth {
            return Err(JsonError::TooDeep(limits.depth));
        }
        if commas >= limits.values {
            return Err(JsonError::TooMany(limits.values));
        }
    }
    Ok(())
}

/// Builds a [`Value`] and leaves the first duplicate key in `duplicate`.
struct Strict<'a> {
    duplicate: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict { duplicate: self.duplicate })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                self.duplicate.replace(Some(key));
                return Err(serde::de::Error::custom("duplicate key"));
            }
            let value = entries.next_value_seed(Strict { duplicate: self.duplicate })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, depth: usize) -> Result<Value, JsonError> {
        super::parse(text, Limits { depth, values: 8 })
    }

    #[test]
    fn refuses_what_readers_disagree_on() {
        assert_eq!(parse(r#"{"a":1,"a":1}"#, 4), Err(JsonError::DuplicateKey("a".into())));
        assert_eq!(parse(r#"{"a":1,"\u0061":1}"#, 4), Err(JsonError::DuplicateKey("a".into())));
        assert_eq!(parse(r#"{"x":{"a":1,"a":2}}"#, 4), Err(JsonError::DuplicateKey("a".into())));
        assert_eq!(parse("[[[1]]]", 2), Err(JsonError::TooDeep(2)));
        assert!(matches!(parse("{} x", 4), Err(JsonError::Syntax(_))));
        assert!(matches!(parse("1e999", 4), Err(JsonError::Syntax(_))));
        assert!(matches!(parse("{\"a\":NaN}", 4), Err(JsonError::Syntax(_))));
    }

    #[test]
    fn depth_counts_containers_and_not_text() {
        let check = |text: &[u8], depth| check_limits(text, Limits { depth, values: 8 });
        assert_eq!(check(br#"{"[[[[": "{{{{\"[[[[,,,,,,,,,,"}"#, 1), Ok(()));
        assert_eq!(check(br#"["\\", [1]]"#, 1), Err(JsonError::TooDeep(1)));
        assert_eq!(check(&b"[".repeat(1_000_000), 4), Err(JsonError::TooDeep(4)));
        assert_eq!(check(b"[1,2,3,4,5,6,7,8]", 1), Ok(()));
        assert_eq!(check(b"[1,2,3,4,5,6,7,8,9]", 1), Err(JsonError::TooMany(8)));
    }

    #[test]
    fn keeps_values_and_order() {
        let text = r#"{"b":[1,-2,0.5,true,null,"s"],"a":{"n":18446744073709551615}}"#;
        assert_eq!(serde_json::to_string(&parse(text, 4).unwrap()).unwrap(), text);
    }
}
