//! Objects are objects, and words are words.
//!
//! What serde derives also takes a list in place of an object, field by field, and `{"word": null}` in place of a word.
//! Nobody who goes by the document sends that, so it is refused. Types that are declared here derive their decoding with
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

pub(crate) use {objects, words};
