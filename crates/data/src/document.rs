//! A text with its name, its source and whatever else came with it.

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

/// One text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// A name that is unique as far as the input's own ids are; without them, the place in the input.
    pub id: String,
    /// The data set that it belongs to: its own field, or else the name of the input.
    pub source: String,
    /// All other fields, as they were.
    pub meta: Map<String, Value>,
    /// Where it was read.
    pub at: Location,
}

/// A place in an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, as the plan names it.
    pub file: Arc<str>,
    /// The byte at which its line starts (of what a compressed file unpacks to), its row in a Parquet file, or 0.
    pub offset: u64,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// What the fields of a document are called in JSON lines and Parquet, read and written alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// The text; required.
    pub text: String,
    /// The id; a string or a whole number.
    pub id: String,
    /// The source; a string.
    pub source: String,
}

impl Default for Fields {
    fn default() -> Self {
        Fields { text: "text".into(), id: "id".into(), source: "source".into() }
    }
}

/// A document as the JSON object that stands for it in a file.
pub(crate) struct AsObject<'a>(pub(crate) &'a Document, pub(crate) &'a Fields);

impl Serialize for AsObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AsObject(document, fields) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(&fields.id, &document.id)?;
        map.serialize_entry(&fields.source, &document.source)?;
        map.serialize_entry(&fields.text, &document.text)?;
        for (key, value) in &document.meta {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
