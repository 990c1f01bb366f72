//! Objects are objects, and words are words.
//!
//! What serde derives also takes a list in place of an object, field by field, `{"word": null}` in place of a word, and
//! a number in place of the word that tells one kind of object from another. The document knows none of it, so it is
//! refused. Types that are declared here derive their decoding with `#[serde(remote = "Self")]`, which makes a function
//! of it in place of the trait.

use serde::de::value::StringDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess};

/// The fields of an object whose `type` is a word.
pub(crate) struct Tagged<A> {
    fields: A,
    at_type: bool,
}

impl<A> Tagged<A> {
    pub(crate) fn new(fields: A) -> Self {
        Tagged { fields, at_type: false }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Tagged<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(key) = self.fields.next_key::<String>()? else { return Ok(None) };
        self.at_type = key == "type";
        seed.deserialize(StringDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        match self.at_type {
            true => self.fields.next_value_seed(Word(seed)),
            false => self.fields.next_value_seed(seed),
        }
    }
}

/// Something that is to be decoded from a string.
struct Word<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Word<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        word(deserializer).and_then(|word| self.0.deserialize(word))
    }
}

/// A string, to be decoded further.
pub(crate) fn word<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<StringDeserializer<D::Error>, D::Error> {
    String::deserialize(deserializer).map(StringDeserializer::new)
}

/// Decodes types from objects only.
macro_rules! objects {
    ($($name:ident),* $(,)?) => { $crate::api::strict::from_fields!(std::convert::identity; $($name,)*); };
}

/// Decodes enumerations from objects only whose `type` is a string.
macro_rules! tagged {
    ($($name:ident),* $(,)?) => { $crate::api::strict::from_fields!($crate::api::strict::Tagged::new; $($name,)*); };
}

/// Decodes types from the fields of objects, seen through `$see`.
macro_rules! from_fields {
    ($see:path; $($name:ident,)*) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<$name, A::Error> {
                        $name::deserialize(serde::de::value::MapAccessDeserializer::new($see(map)))
                    }
                }
                deserializer.deserialize_map(Visitor)
            }
        }
    )*};
}

/// Decodes enumerations from strings only.
macro_rules! words {
    ($($name:ident),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::api::strict::word(deserializer).and_then($name::deserialize)
            }
        }
    )*};
}

pub(crate) use {from_fields, objects, tagged, words};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::body::decode;
    use crate::api::messages::CountRequest;
    use crate::app::Limits;

    fn taken(body: &Value) -> bool {
        decode::<CountRequest>(body.to_string().as_bytes(), &Limits::default()).is_ok()
    }

    #[test]
    fn lists_numbers_and_wrapped_words_are_no_substitutes() {
        let turn = json!({ "role": "user", "content": "a" });
        let block = json!({ "type": "text", "text": "a", "cache_control": { "type": "ephemeral" } });
        let tool = json!({ "name": "f", "input_schema": {} });
        let with = |field: &str, value: Value| {
            let mut body = json!({ "messages": [turn] });
            body[field] = value;
            body
        };
        for good in [
            with("messages", json!([turn, { "role": "assistant", "content": [block] }])),
            with("system", json!([block])),
            with("thinking", json!({ "type": "disabled" })),
            with("tools", json!([tool])),
            with("tool_choice", json!({ "name": "f", "type": "tool" })),
        ] {
            assert!(taken(&good), "{good}");
        }
        for bad in [
            with("messages", json!([["user", "a"]])),
            with("messages", json!([{ "role": { "user": null }, "content": "a" }])),
            with("messages", json!([{ "role": 0, "content": "a" }])),
            with("messages", json!([{ "role": "user", "content": [["text", "a", null]] }])),
            with("messages", json!([{ "role": "user", "content": [{ "type": 0, "text": "a" }] }])),
            with("system", json!([["text", "a", null]])),
            with("system", json!([{ "type": 0, "text": "a" }])),
            with("system", json!([{ "type": "text", "text": "a", "cache_control": ["ephemeral"] }])),
            with("thinking", json!(["disabled"])),
            with("thinking", json!({ "type": 0 })),
            with("tools", json!([[null, "f", null, {}, null]])),
            with("tool_choice", json!(["auto", null])),
            with("tool_choice", json!({ "type": 0 })),
        ] {
            assert!(!taken(&bad), "{bad}");
        }
    }
}
