//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;

use serde_json::Value;

use super::LoadError;
use super::file::OpenFile;
use super::safetensors::{MAX_HEADER, MAX_NAME, MAX_TENSORS, from_json_error, quoted};
use crate::json::{self, Limits};

/// Most shards of a model.
pub(super) const MAX_SHARDS: usize = 1000;

/// The index, with its shard names checked to be plain names.
#[derive(Debug)]
pub(super) struct Index {
    /// Bytes of all tensors, if stated.
    pub(super) total_size: Option<u64>,
    /// Tensor to shard.
    pub(super) shard_of: BTreeMap<String, String>,
    /// Distinct shards, sorted.
    pub(super) shards: Vec<String>,
}

pub(super) fn read(file: &OpenFile) -> Result<Index, LoadError> {
    let text = file.text(MAX_HEADER)?;
    // The index, a map in it, and lists or maps that other programs keep under `metadata`.
    let limits = Limits { depth: 4, values: 2 * MAX_TENSORS };
    let value = json::parse(&text, limits).map_err(|error| from_json_error(&file.name, error))?;
    let name = || file.name.clone();
    let malformed = |message: &str| LoadError::Malformed { file: name(), message: message.to_owned() };
    let Value::Object(top) = value else { return Err(malformed("the index is not an object")) };
    let (mut total_size, mut shard_of) = (None, None);
    for (field, value) in top {
        match (field.as_str(), value) {
            ("metadata", Value::Object(metadata)) => {
                let total = metadata.get("total_size").map(|total| {
                    let bad = || LoadError::BadNumber { file: name(), place: "total_size".into() };
                    total.as_u64().ok_or_else(bad)
                });
                total_size = total.transpose()?;
            }
            ("metadata", Value::Null) => {}
            ("weight_map", Value::Object(map)) => shard_of = Some(weight_map(&file.name, map)?),
            ("metadata" | "weight_map", _) => {
                return Err(malformed(&format!("`{field}` is not an object")));
            }
            _ => {
                let place = "the index".into();
                return Err(LoadError::UnknownField { file: name(), place, field });
            }
        }
    }
    let shard_of = shard_of.ok_or_else(|| malformed("the index has no `weight_map`"))?;
    let mut shards: Vec<String> = shard_of.values().cloned().collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.len() > MAX_SHARDS {
        return Err(LoadError::TooManyShards { file: name(), limit: MAX_SHARDS });
    }
    Ok(Index { total_size, shard_of, shards })
}

fn weight_map(
    file: &str,
    map: serde_json::Map<String, Value>,
) -> Result<BTreeMap<String, String>, LoadError> {
    let name = || file.to_owned();
    if map.len() > MAX_TENSORS {
        return Err(LoadError::TooManyTensors { file: name(), limit: MAX_TENSORS });
    }
    let mut shard_of = BTreeMap::new();
    for (tensor, shard) in map {
        if tensor.is_empty() || tensor.len() > MAX_NAME || tensor.chars().any(char::is_control) {
            return Err(LoadError::TensorName { file: name(), name: quoted(&tensor) });
        }
        let Value::String(shard) = shard else {
            let message = format!("the shard of `{tensor}` is not a string");
            return Err(LoadError::Malformed { file: name(), message });
        };
        if !is_plain_shard_name(&shard) {
            return Err(LoadError::ShardName { file: name(), shard: quoted(&shard) });
        }
        shard_of.insert(tensor, shard);
    }
    Ok(shard_of)
}

/// A name without any folder part on any system, so that joining it to a folder stays inside.
fn is_plain_shard_name(name: &str) -> bool {
    let stem = name.strip_suffix(".safetensors").unwrap_or("");
    !stem.is_empty()
        && !stem.starts_with('.')
        && name.len() <= 255
        && name.chars().all(|c| !c.is_control() && !matches!(c, '/' | '\\' | ':'))
}
