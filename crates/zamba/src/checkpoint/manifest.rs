//! `MANIFEST.json`: size and SHA-256 of the files of a folder, checked before any of them is used.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::LoadError;
use super::file::{Folder, OpenFile};
use super::safetensors::{from_json_error, quoted};
use crate::json::{self, Limits};

/// Name of the manifest in a model folder.
pub const FILE: &str = "MANIFEST.json";
const LIMIT: u64 = 4 << 20;
/// The object, `files`, a file.
const LIMITS: Limits = Limits { depth: 3, values: 1 << 14 };

/// Checks every file that the manifest lists, and that it lists each of `used`. No manifest, no check.
pub(super) fn verify(folder: &Folder, used: &[&OpenFile]) -> Result<(), LoadError> {
    if !folder.has(FILE) {
        return Ok(());
    }
    let files = read(&folder.file(FILE)?)?;
    if let Some(unlisted) = used.iter().find(|file| !files.contains_key(&file.name)) {
        return Err(LoadError::ManifestMissing { file: unlisted.name.clone() });
    }
    for (name, stated) in &files {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ':', '\0']) {
            let message = format!("{} is not a plain file name", quoted(name));
            return Err(LoadError::Malformed { file: FILE.into(), message });
        }
        // The handles that will be read are the ones hashed; a name could lead elsewhere by then.
        match used.iter().find(|file| file.name == *name) {
            Some(file) => compare(file, stated)?,
            None => compare(&folder.file(name)?, stated)?,
        }
    }
    Ok(())
}

fn read(file: &OpenFile) -> Result<Map<String, Value>, LoadError> {
    let value = json::parse(&file.text(LIMIT)?, LIMITS).map_err(|error| from_json_error(FILE, error))?;
    match value {
        Value::Object(mut top) if top.len() == 1 => match top.remove("files") {
            Some(Value::Object(files)) => Ok(files),
            _ => Err(malformed("expected one object, `files`")),
        },
        _ => Err(malformed("expected one object, `files`")),
    }
}

fn malformed(message: &str) -> LoadError {
    LoadError::Malformed { file: FILE.into(), message: message.to_owned() }
}

fn compare(file: &OpenFile, stated: &Value) -> Result<(), LoadError> {
    let stated = stated.as_object().filter(|fields| fields.len() == 2);
    let size = stated.and_then(|fields| fields.get("size")).and_then(Value::as_u64);
    let hash = stated.and_then(|fields| fields.get("sha256")).and_then(Value::as_str);
    let (Some(size), Some(hash)) = (size, hash) else {
        return Err(malformed(&format!("{} needs exactly `size` and `sha256`", quoted(&file.name))));
    };
    let differs = |what| LoadError::ManifestMismatch { file: file.name.clone(), what };
    if size != file.size {
        return Err(differs("size"));
    }
    let mut hasher = Sha256::new();
    file.stream(&mut |bytes| hasher.update(bytes))?;
    if !hex(&hasher.finalize()).eq_ignore_ascii_case(hash) {
        return Err(differs("sha256"));
    }
    Ok(())
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The text of a manifest of these files: name, size in bytes, SHA-256 in hexadecimal.
pub fn text(files: &[(String, u64, String)]) -> String {
    let files: Map<String, Value> = files
        .iter()
        .map(|(name, size, sha256)| (name.clone(), serde_json::json!({ "size": size, "sha256": sha256 })))
        .collect();
    format!("{:#}\n", serde_json::json!({ "files": files }))
}
