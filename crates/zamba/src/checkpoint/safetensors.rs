//! A strict reader of safetensors headers.
//!
//! The format: eight bytes that state the length of a header, little-endian; the header, JSON; the
//! bytes of the tensors. Its specification forbids duplicate keys, leading spaces, holes and overlaps,
//! and its reference implementation lets some of them pass. Here a file either means one thing or is
//! refused: <https://github.com/huggingface/safetensors#format>.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::LoadError;
use super::file::OpenFile;
use crate::config::FileDtype;
use crate::json::{self, JsonError, Limits};

/// Longest header accepted. The 784 tensors of the 7B model need 90 KiB.
pub const MAX_HEADER: u64 = 32 << 20;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 100_000;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Longest name of a tensor, in bytes.
pub const MAX_NAME: usize = 512;
/// Most pairs of text under `__metadata__`.
pub const MAX_METADATA: usize = 10_000;
/// The header, a tensor, its shape. Values are bounded by the limits on tensors and metadata.
const LIMITS: Limits = Limits { depth: 3, values: usize::MAX };

/// Types that the format has and that no weight here is stored as.
const OTHER_DTYPES: &[&str] = &[
    "BOOL",
    "I8",
    "U16",
    "I16",
    "U32",
    "I32",
    "U64",
    "I64",
    "F64",
    "C64",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
];

/// A tensor as a header describes it, with offsets from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Storage of each number.
    pub dtype: FileDtype,
    /// Shape, outermost first.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub begin: u64,
    /// One past the last byte in the file.
    pub end: u64,
}

/// A header that was found to describe its file exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors in the order of their bytes.
    pub entries: Vec<Entry>,
    /// The free text under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `file`.
pub(super) fn read(file: &OpenFile) -> Result<Header, LoadError> {
    let too_short = || LoadError::TooShort { file: file.name.clone(), size: file.size };
    let room = file.size.checked_sub(8).filter(|room| *room >= 2).ok_or_else(too_short)?;
    let mut length = [0; 8];
    file.read_at(0, &mut length)?;
    let stated = u64::from_le_bytes(length);
    let limit = room.min(MAX_HEADER);
    if stated > limit || stated < 2 {
        return Err(LoadError::HeaderLength { file: file.name.clone(), stated, limit });
    }
    let mut text = vec![0; stated as usize];
    file.read_at(8, &mut text)?;
    parse(&file.name, &text, file.size)
}

/// Checks the header `text` of a file of `file_size` bytes, named `file` in errors.
///
/// # Errors
/// The first rule broken, as one of the header variants of [`LoadError`].
pub fn parse(file: &str, text: &[u8], file_size: u64) -> Result<Header, LoadError> {
    if text.first() != Some(&b'{') {
        return Err(LoadError::HeaderStart { file: file.to_owned() });
    }
    let text = str::from_utf8(text).map_err(|_| LoadError::Encoding { file: file.to_owned() })?;
    json::check_limits(text.as_bytes(), LIMITS).map_err(|error| from_json_error(file, error))?;
    let padding = text.trim_end_matches(' ');
    if !padding.ends_with('}') {
        return Err(LoadError::HeaderPadding { file: file.to_owned() });
    }
    let failure = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let data_at = 8 + text.len() as u64;
    let seed = HeaderSeed(Scope { file, failure: &failure, data_at });
    let mut header =
        seed.deserialize(&mut reader).and_then(|header| reader.end().map(|()| header)).map_err(|error| {
            let syntax = || LoadError::Malformed { file: file.to_owned(), message: error.to_string() };
            failure.take().unwrap_or_else(syntax)
        })?;
    check_names(file, &header.entries)?;
    check_layout(file, &mut header.entries, data_at, file_size)?;
    Ok(header)
}

pub(super) fn from_json_error(file: &str, error: JsonError) -> LoadError {
    let file = file.to_owned();
    match error {
        JsonError::Syntax(message) => LoadError::Malformed { file, message },
        JsonError::DuplicateKey(key) => LoadError::DuplicateKey { file, key },
        JsonError::TooDeep(limit) => LoadError::TooDeep { file, limit },
        JsonError::TooMany(limit) => LoadError::TooManyValues { file, limit },
    }
}

/// Names are compared after all are read, sorted, so that a hundred thousand cost no second copy.
fn check_names(file: &str, entries: &[Entry]) -> Result<(), LoadError> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(LoadError::DuplicateKey { file: file.to_owned(), key: pair[0].to_owned() }),
        None => Ok(()),
    }
}

/// Sorts tensors by place and checks that together they cover the file exactly.
fn check_layout(file: &str, entries: &mut [Entry], data_at: u64, file_size: u64) -> Result<(), LoadError> {
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    let mut end = data_at;
    for entry in entries.iter() {
        let (file, tensor) = (file.to_owned(), entry.name.clone());
        if entry.begin < end {
            return Err(LoadError::Overlap { file, tensor });
        }
        if entry.begin > end {
            return Err(LoadError::Hole { file, tensor, bytes: entry.begin - end });
        }
        end = entry.end;
    }
    if end != file_size {
        return Err(LoadError::FileEnd { file: file.to_owned(), end, size: file_size });
    }
    Ok(())
}

/// What every level of the parser needs: names for messages, and where to leave a typed failure,
/// because errors of serde carry only text.
#[derive(Clone, Copy)]
struct Scope<'a> {
    file: &'a str,
    failure: &'a RefCell<Option<LoadError>>,
    data_at: u64,
}

impl Scope<'_> {
    fn fail<E: serde::de::Error>(&self, error: LoadError) -> E {
        let text = error.to_string();
        self.failure.replace(Some(error));
        E::custom(text)
    }
    fn file(&self) -> String {
        self.file.to_owned()
    }
}

struct HeaderSeed<'a>(Scope<'a>);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Header, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let scope = self.0;
        let (mut entries, mut metadata) = (Vec::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.is_some() {
                    return Err(scope.fail(LoadError::DuplicateKey { file: scope.file(), key: name }));
                }
                metadata = Some(map.next_value_seed(MetadataSeed(scope))?);
                continue;
            }
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return Err(scope.fail(LoadError::TensorName { file: scope.file(), name: quoted(&name) }));
            }
            if entries.len() == MAX_TENSORS {
                return Err(scope.fail(LoadError::TooManyTensors { file: scope.file(), limit: MAX_TENSORS }));
            }
            entries.push(map.next_value_seed(EntrySeed { scope, name })?);
        }
        Ok(Header { entries, metadata: metadata.unwrap_or_default() })
    }
}

/// `text` in quotes with escapes, at most 60 characters of it, for one-line messages.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("{short:?}")
}

struct MetadataSeed<'a>(Scope<'a>);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = BTreeMap<String, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings under __metadata__")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if found.contains_key(&key) {
                return Err(self.0.fail(LoadError::DuplicateKey { file: self.0.file(), key }));
            }
            if found.len() == MAX_METADATA {
                let error = LoadError::TooManyValues { file: self.0.file(), limit: MAX_METADATA };
                return Err(self.0.fail(error));
            }
            let value = map.next_value::<String>()?;
            found.insert(key, value);
        }
        Ok(found)
    }
}

struct EntrySeed<'a> {
    scope: Scope<'a>,
    name: String,
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Entry, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object for tensor `{}`", self.name)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let EntrySeed { scope, name } = self;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            let twice = match field.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Numbers { scope, name: &name })?).is_some(),
                "data_offsets" => {
                    offsets.replace(map.next_value_seed(Numbers { scope, name: &name })?).is_some()
                }
                _ => {
                    let error = LoadError::UnknownField { file: scope.file(), place: name, field };
                    return Err(scope.fail(error));
                }
            };
            if twice {
                return Err(scope.fail(LoadError::DuplicateKey { file: scope.file(), key: field }));
            }
        }
        let missing =
            |field| scope.fail(LoadError::MissingField { file: scope.file(), tensor: name.clone(), field });
        let dtype = dtype.ok_or_else(|| missing("dtype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let offsets = offsets.ok_or_else(|| missing("data_offsets"))?;
        entry(scope, &name, &dtype, shape, &offsets).map_err(|error| scope.fail(error))
    }
}

/// Checks one tensor by itself: type, dimensions, and bytes against shape.
fn entry(
    scope: Scope<'_>,
    name: &str,
    dtype: &str,
    shape: Vec<u64>,
    offsets: &[u64],
) -> Result<Entry, LoadError> {
    let (file, tensor) = (scope.file(), name.to_owned());
    let dtype = match dtype {
        "F32" => FileDtype::F32,
        "F16" => FileDtype::F16,
        "BF16" => FileDtype::Bf16,
        "U8" => FileDtype::U8,
        _ if OTHER_DTYPES.contains(&dtype) => {
            return Err(LoadError::UnsupportedDtype { file, tensor, dtype: dtype.to_owned() });
        }
        _ => return Err(LoadError::UnknownDtype { file, tensor, dtype: quoted(dtype) }),
    };
    if shape.contains(&0) {
        return Err(LoadError::ZeroDimension { file, tensor });
    }
    let bytes = shape.iter().try_fold(dtype.size() as u64, |bytes, n| bytes.checked_mul(*n));
    let needed = bytes.filter(|bytes| isize::try_from(*bytes).is_ok());
    let Some(needed) = needed else { return Err(LoadError::SizeOverflow { file, tensor }) };
    let [begin, end] = *offsets else {
        let message = format!("data_offsets of tensor `{name}` are not two numbers");
        return Err(LoadError::Malformed { file, message });
    };
    let Some(found) = end.checked_sub(begin) else { return Err(LoadError::Overlap { file, tensor }) };
    if found != needed {
        return Err(LoadError::ByteCount { file, tensor, found, needed });
    }
    let (Some(begin), Some(end)) = (begin.checked_add(scope.data_at), end.checked_add(scope.data_at)) else {
        return Err(LoadError::SizeOverflow { file, tensor });
    };
    Ok(Entry { name: tensor, dtype, shape, begin, end })
}

/// A list of plain whole numbers; reading stops one beyond the most dimensions.
struct Numbers<'a> {
    scope: Scope<'a>,
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Numbers<'_> {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Vec<u64>, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Numbers<'_> {
    type Value = Vec<u64>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of numbers in tensor `{}`", self.name)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = list.next_element_seed(NumberSeed { scope: self.scope, name: self.name })? {
            numbers.push(number);
            if numbers.len() > MAX_RANK {
                let (file, tensor) = (self.scope.file(), self.name.to_owned());
                let error = LoadError::Rank { file, tensor, rank: numbers.len(), limit: MAX_RANK };
                return Err(self.scope.fail(error));
            }
        }
        Ok(numbers)
    }
}

struct NumberSeed<'a> {
    scope: Scope<'a>,
    name: &'a str,
}

impl NumberSeed<'_> {
    fn refuse<E: serde::de::Error>(&self) -> E {
        self.scope.fail(LoadError::BadNumber { file: self.scope.file(), place: self.name.to_owned() })
    }
}

impl<'de> DeserializeSeed<'de> for NumberSeed<'_> {
    type Value = u64;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<u64, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NumberSeed<'_> {
    type Value = u64;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number in tensor `{}`", self.name)
    }
    fn visit_u64<E>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<u64, E> {
        Err(self.refuse())
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<u64, E> {
        Err(self.refuse())
    }
}
