//! Checks of `tokenizer.json` before the `tokenizers` library sees it.
//!
//! The library trusts the file: `BpeBuilder::build` copies both halves of a merge into a buffer as long as the longest
//! vocabulary entry, cuts the prefix of a later piece off by length without looking, and calls the result UTF-8 unchecked;
//! a decoder that strips at the end, or a pre-tokeniser that cuts to length 0, panics when used. Each of those is refused
//! here by a message that names the field.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::AddedToken;

use super::TokenizerError;

/// Ids may leave gaps, but tables by id must stay in proportion to the file.
const MAX_GAPS: usize = 65_536;

/// Nested parts of a pipeline (a `Sequence` in a `Sequence`).
const MAX_PARTS: usize = 256;

/// What the rest of loading needs to know of a file that passed.
#[derive(Debug)]
pub(super) struct Checked {
    /// `added_tokens`, in order of id.
    pub(super) added: Vec<AddedToken>,
    pub(super) warnings: Vec<String>,
}

#[derive(Deserialize)]
struct RawFile {
    model: RawModel,
    #[serde(default)]
    added_tokens: Vec<RawAdded>,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct RawAdded {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct RawModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: RawVocab,
    merges: Option<Vec<RawMerge>>,
    continuing_subword_prefix: Option<String>,
    unk_token: Option<String>,
    unk_id: Option<u64>,
}

/// `{"piece": id, …}`, or `[["piece", score], …]` for unigram models, where the place is the id.
enum RawVocab {
    Ids(Vec<(String, u32)>),
    Scores(Vec<String>),
}

/// `["a", "b"]` or `"a b"`.
enum RawMerge {
    Pair(String, String),
    Text(String),
}

/// Reads `text` as a `tokenizer.json` and checks it.
pub(super) fn check(path: &Path, text: &str) -> Result<Checked, TokenizerError> {
    let raw: RawFile = serde_json::from_str(text)
        .map_err(|e| TokenizerError::Json { path: path.to_owned(), message: super::one_line(e) })?;
    let invalid = |what| TokenizerError::Invalid { path: path.to_owned(), what };
    let vocab = check_vocab(&raw.model).map_err(invalid)?;
    if let Some(&highest) = vocab.values().max() {
        check_density(path, highest, vocab.len())?;
    }
    check_model(&raw.model, &vocab).map_err(invalid)?;
    check_parts(&raw.pre_tokenizer, "pre_tokenizer", &mut 0).map_err(invalid)?;
    check_parts(&raw.decoder, "decoder", &mut 0).map_err(invalid)?;
    let warnings = check_added(&raw.added_tokens, &vocab).map_err(invalid)?;
    drop(vocab);
    let mut added = raw.added_tokens;
    added.sort_by_key(|a| a.id);
    Ok(Checked { added: added.into_iter().map(|a| a.token).collect(), warnings })
}

/// Refuses ids so sparse that a table by id would be out of proportion.
pub(super) fn check_density(path: &Path, highest: u32, count: usize) -> Result<(), TokenizerError> {
    if highest as usize <= 2 * count + MAX_GAPS {
        return Ok(());
    }
    let what = format!("vocab has {count} tokens but ids up to {highest}; number them without large gaps");
    Err(TokenizerError::Invalid { path: path.to_owned(), what })
}

fn check_vocab(model: &RawModel) -> Result<HashMap<&str, u32>, String> {
    let entries: Vec<(&str, u32)> = match &model.vocab {
        RawVocab::Ids(list) => list.iter().map(|(piece, id)| (piece.as_str(), *id)).collect(),
        RawVocab::Scores(list) => {
            list.iter().enumerate().map(|(id, piece)| (piece.as_str(), id as u32)).collect()
        }
    };
    if entries.is_empty() {
        return Err("vocab is empty".to_owned());
    }
    let mut vocab = HashMap::with_capacity(entries.len());
    let mut ids = HashSet::with_capacity(entries.len());
    for (piece, id) in entries {
        if vocab.insert(piece, id).is_some() {
            return Err(format!("vocab has {piece:?} twice; each token stands once"));
        }
        if !ids.insert(id) {
            return Err(format!("vocab gives id {id} to two tokens, one of them {piece:?}; ids are unique"));
        }
    }
    Ok(vocab)
}

fn check_model(model: &RawModel, vocab: &HashMap<&str, u32>) -> Result<(), String> {
    let scored = matches!(model.vocab, RawVocab::Scores(_));
    match model.kind.as_deref() {
        Some("BPE") => {}
        // Files of the first versions of the library leave the type out; merges tell a BPE model.
        None if model.merges.is_some() => {}
        Some("Unigram") | None if scored => return check_unigram(model, vocab),
        Some("WordPiece" | "WordLevel") | None if !scored => return check_unknown(model, vocab),
        Some(kind) => {
            return Err(format!("model type {kind:?} does not fit its vocab; expected BPE with an object"));
        }
        None => return Err("model has no type".to_owned()),
    }
    if scored {
        return Err("vocab of a BPE model is a list; expected an object from token to id".to_owned());
    }
    check_unknown(model, vocab)?;
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("");
    for (rank, merge) in model.merges.as_deref().unwrap_or(&[]).iter().enumerate() {
        check_merge(rank, merge, prefix, vocab)?;
    }
    Ok(())
}

fn check_unknown(model: &RawModel, vocab: &HashMap<&str, u32>) -> Result<(), String> {
    match &model.unk_token {
        Some(token) if !vocab.contains_key(token.as_str()) => {
            Err(format!("unk_token {token:?} is not in vocab; add it or set unk_token to null"))
        }
        _ => Ok(()),
    }
}

fn check_unigram(model: &RawModel, vocab: &HashMap<&str, u32>) -> Result<(), String> {
    if vocab.contains_key("") {
        return Err("vocab of a unigram model has an empty token".to_owned());
    }
    match model.unk_id {
        Some(id) if id >= vocab.len() as u64 => {
            Err(format!("unk_id {id} is outside vocab of {} tokens", vocab.len()))
        }
        _ => Ok(()),
    }
}

fn check_merge(
    rank: usize,
    merge: &RawMerge,
    prefix: &str,
    vocab: &HashMap<&str, u32>,
) -> Result<(), String> {
    let (left, right) = match merge {
        RawMerge::Pair(left, right) => (left.as_str(), right.as_str()),
        RawMerge::Text(text) if text.starts_with("#version") => return Ok(()),
        RawMerge::Text(text) => {
            text.split_once(' ').filter(|(_, right)| !right.contains(' ')).ok_or_else(|| {
                format!("merges[{rank}] is {text:?}; expected two tokens with one space between")
            })?
        }
    };
    if left.is_empty() || right.is_empty() {
        return Err(format!("merges[{rank}] has an empty token"));
    }
    let tail = right
        .strip_prefix(prefix)
        .ok_or_else(|| format!("merges[{rank}]: {right:?} lacks continuing_subword_prefix {prefix:?}"))?;
    let joined = format!("{left}{tail}");
    for piece in [left, right, &joined] {
        if !vocab.contains_key(piece) {
            return Err(format!("merges[{rank}] needs token {piece:?}, which is not in vocab"));
        }
    }
    Ok(())
}

/// Added tokens are unique, and those in the vocabulary should have its ids.
///
/// The library numbers added tokens by itself and only logs a difference; so does this, because `transformers` follows the
/// library and models were trained with the result.
fn check_added(added: &[RawAdded], vocab: &HashMap<&str, u32>) -> Result<Vec<String>, String> {
    let (mut contents, mut ids) = (HashSet::new(), HashSet::new());
    let mut warnings = Vec::new();
    for RawAdded { id, token } in added {
        let content = token.content.as_str();
        if !contents.insert(content) {
            return Err(format!("added_tokens has {content:?} twice; each token stands once"));
        }
        if !ids.insert(id) {
            return Err(format!(
                "added_tokens gives id {id} to two tokens, one of them {content:?}; ids are unique"
            ));
        }
        if let Some(own) = vocab.get(content)
            && own != id
        {
            warnings.push(format!(
                "added token {content:?} has id {id} in added_tokens but {own} in vocab; {own} is used"
            ));
        }
    }
    Ok(warnings)
}

/// Walks a pre-tokeniser or decoder with all its parts.
fn check_parts(part: &Value, field: &str, parts: &mut usize) -> Result<(), String> {
    *parts += 1;
    if *parts > MAX_PARTS {
        return Err(format!("{field} has more than {MAX_PARTS} parts"));
    }
    let number = |name: &str| part.get(name).and_then(Value::as_u64);
    match part.get("type").and_then(Value::as_str) {
        Some("Strip") if field == "decoder" && number("stop") != Some(0) => {
            return Err(
                "decoder Strip with stop above 0 fails on short tokens; only start is supported".to_owned()
            );
        }
        Some("FixedLength") if number("length") == Some(0) => {
            return Err("pre_tokenizer FixedLength has length 0".to_owned());
        }
        _ => {}
    }
    for list in ["pretokenizers", "decoders"] {
        for inner in part.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice) {
            check_parts(inner, field, parts)?;
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for RawVocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Vocab;
        impl<'de> Visitor<'de> for Vocab {
            type Value = RawVocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from token to id or a list of [token, score]")
            }

            // A map of serde_json would keep the last of two equal keys without a word, so entries are kept one by one.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawVocab, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    list.push(entry);
                }
                Ok(RawVocab::Ids(list))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawVocab, A::Error> {
                let mut list = Vec::new();
                while let Some((piece, score)) = seq.next_element::<(String, f64)>()? {
                    if !score.is_finite() {
                        return Err(A::Error::custom("a score of vocab is not finite"));
                    }
                    list.push(piece);
                }
                Ok(RawVocab::Scores(list))
            }
        }
        deserializer.deserialize_any(Vocab)
    }
}

impl<'de> Deserialize<'de> for RawMerge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Merge;
        impl<'de> Visitor<'de> for Merge {
            type Value = RawMerge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens, as a list or as a string with a space")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawMerge, E> {
                Ok(RawMerge::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawMerge, A::Error> {
                let mut next = |place| {
                    seq.next_element::<String>()?
                        .ok_or_else(|| A::Error::invalid_length(place, &"two tokens"))
                };
                let (left, right) = (next(0)?, next(1)?);
                match seq.next_element::<String>()? {
                    None => Ok(RawMerge::Pair(left, right)),
                    Some(_) => Err(A::Error::invalid_length(3, &"two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Merge)
    }
}
