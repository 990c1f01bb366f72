//! Objects are objects, and words are words.
//!
//! What serde derives also takes a list in place of an object, field by field, `{"word": null}` in place of a word, and a
//! number in place of the word that tells one kind of object from another. The document knows none of it, so it is refused. Types that are declared here derive their decoding with
//! `#[serde(remote = "Self")]`, which makes a function of it in place of the trait.

/// Decodes types from objects only.
macro_rules! objects {
    ($($name:ident),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<$name, A::Error> {
                        $name::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }
                deserializer.deserialize_map(Visitor)
            }
        }
    )*};
}

/// Decodes enumerations from objects only whose `type` is a string.
macro_rules! tagged {
    ($($name:ident),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error as _;
                let fields: serde_json::Map<_, _> = serde::Deserialize::deserialize(deserializer)?;
                if fields.get("type").is_some_and(|kind: &serde_json::Value| !kind.is_string()) {
                    return Err(D::Error::custom("type must be a string"));
                }
                $name::deserialize(serde_json::Value::Object(fields)).map_err(D::Error::custom)
            }
        }
    )*};
}

/// Decodes enumerations from strings only.
macro_rules! words {
    ($($name:ident),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = <String as serde::Deserialize>::deserialize(deserializer)?;
                $name::deserialize(serde::de::value::StringDeserializer::<D::Error>::new(word))
            }
        }
    )*};
}

pub(crate) use {objects, tagged, words};

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
