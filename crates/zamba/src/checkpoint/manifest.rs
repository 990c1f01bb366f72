//! `MANIFEST.json`: size and SHA-256 of the files of a folder, checked before any of them is used.

use std::fmt::Write as _;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::file::{Folder, OpenFile};
use super::safetensors::{from_json_error, quoted};
use super::{LoadError, Verify};
use crate::json::{self, Limits};

/// Name of the manifest in a model folder.
pub const FILE: &str = "MANIFEST.json";
const LIMIT: u64 = 4 << 20;
/// The object, `files`, a file.
const LIMITS: Limits = Limits { depth: 3, values: 1 << 14 };

/// Checks every file that the manifest lists, and that it lists each of `used`. No manifest, no check.
///
/// Files are hashed on several threads, because the shards of a large model take a single one minutes.
pub(super) fn verify(folder: &Folder, used: &[&OpenFile], what: Verify) -> Result<(), LoadError> {
    if !folder.has(FILE) {
        return Ok(());
    }
    let files = read(&folder.file(FILE)?)?;
    if let Some(unlisted) = used.iter().find(|file| !files.contains_key(&file.name)) {
        return Err(LoadError::ManifestMissing { file: unlisted.name.clone() });
    }
    for name in files.keys() {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ':', '\0']) {
            let message = format!("{} is not a plain file name", quoted(name));
            return Err(LoadError::Malformed { file: FILE.into(), message });
        }
    }
    let all: Vec<_> = files.iter().collect();
    let check = |(name, stated): &(&String, &Value)| {
        // The handles that will be read are the ones hashed; a name could lead elsewhere by then.
        match used.iter().find(|file| file.name == **name) {
            Some(file) => compare(file, stated, what),
            None => compare(&folder.file(name)?, stated, what),
        }
    };
    each(&all, &check)
}

/// Calls `check` with every item, on as many threads as there are processors, and returns the first error in
/// the order of the items.
fn each<T: Sync>(items: &[T], check: &(dyn Fn(&T) -> Result<(), LoadError> + Sync)) -> Result<(), LoadError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = None;
        while let Some((i, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, items.get(i)?)))
        {
            if let Err(error) = check(item) {
                failed = Some((i, error));
                // What lies behind an error is of no interest, what lies before it is being checked.
                next.store(items.len(), Ordering::Relaxed);
            }
        }
        failed
    };
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(items.len());
    let failed = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        // A panic goes on in this thread.
        let others = others.into_iter().filter_map(|t| t.join().unwrap_or_else(|p| resume_unwind(p)));
        others.chain(own).min_by_key(|(i, _)| *i)
    });
    failed.map_or(Ok(()), |(_, error)| Err(error))
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

fn compare(file: &OpenFile, stated: &Value, what: Verify) -> Result<(), LoadError> {
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
    if what == Verify::Sizes {
        return Ok(());
    }
    let mut hasher = Sha256::new();
    file.stream(&mut |bytes| hasher.update(bytes))?;
    if !hex(&hasher.finalize()).eq_ignore_ascii_case(hash) {
        return Err(differs("sha256"));
    }
    Ok(())
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
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
