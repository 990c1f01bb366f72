//! A line of JSON as a document.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::Place;
use crate::document::{Document, Fields};

/// Reads one object. `at` is its place, for the message and for the id of a document that has none.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn parse(line: &str, fields: &Fields, place: &Place, at: u64) -> Result<Document, String> {
    let mut reader = serde_json::Deserializer::from_str(line);
    let parsed = Object(fields).deserialize(&mut reader).and_then(|parsed| reader.end().map(|()| parsed));
    let parsed = parsed.map_err(|error| {
        // Its own line number is always 1.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or(&what);
        format!("{what} (column {})", error.column())
    })?;
    Ok(Document {
        text: parsed.text,
        id: parsed.id.unwrap_or_else(|| place.at(at).to_string()),
        source: parsed.source.unwrap_or_else(|| place.source.clone()),
        meta: parsed.meta,
        at: place.at(at),
    })
}

/// What an object holds, sorted by what it is for.
struct Parsed {
    text: String,
    id: Option<String>,
    source: Option<String>,
    meta: Map<String, Value>,
}

struct Object<'a>(&'a Fields);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with `{}`", self.0.text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let fields = self.0;
        let (mut text, mut id, mut source) = (None, None, None);
        let mut meta = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let named = |error: A::Error| A::Error::custom(format!("field `{key}`: {error}"));
            let twice = if key == fields.text {
                text.replace(map.next_value::<String>().map_err(named)?).is_some()
            } else if key == fields.id {
                let value = map.next_value::<Value>()?;
                let new = name(value).map_err(|what| A::Error::custom(format!("field `{key}` {what}")))?;
                id.replace(new).is_some()
            } else if key == fields.source {
                source.replace(map.next_value::<String>().map_err(named)?).is_some()
            } else {
                let value = map.next_value::<Value>()?;
                meta.insert(key.clone(), value).is_some()
            };
            if twice {
                return Err(A::Error::custom(format!("field `{key}` stands there twice")));
            }
        }
        let text = text.ok_or_else(|| A::Error::custom(format!("has no field `{}`", fields.text)))?;
        Ok(Parsed { text, id, source, meta })
    }
}

/// A value that may serve as an id.
pub(super) fn name(value: Value) -> Result<String, String> {
    match value {
        Value::String(name) => Ok(name),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        _ => Err("is neither a string nor a whole number".into()),
    }
}
