//! Files of definitions: where they are, what they include, YAML as JSON.

use std::fs;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Number, Value};

use super::super::TaskError;

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../../../tasks/", $name)))),*] };
}

/// The files that are part of this program.
pub(super) const EMBEDDED: [(&str, &str); 14] = embedded![
    "_mmlu.yaml",
    "arc_challenge.yaml",
    "arc_easy.yaml",
    "boolq.yaml",
    "gsm8k.yaml",
    "hellaswag.yaml",
    "lambada_openai.yaml",
    "mmlu.yaml",
    "openbookqa.yaml",
    "piqa.yaml",
    "race.yaml",
    "sciq.yaml",
    "wikitext.yaml",
    "winogrande.yaml",
];

/// Deepest chain of includes.
pub(super) const INCLUDES: usize = 16;

/// Where a definition stands.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Embedded,
    Folder(PathBuf),
}

pub(super) fn definition(file: &str, reason: impl Into<String>) -> TaskError {
    TaskError::Definition { file: file.to_owned(), reason: reason.into() }
}

pub(super) fn show(origin: &Origin, name: &str) -> String {
    match origin {
        Origin::Embedded => format!("built-in {name}"),
        Origin::Folder(folder) => folder.join(name).display().to_string(),
    }
}

/// Paths of all task files below a folder, relative to it, in order.
pub(super) fn yaml_files(folder: &Path) -> Result<Vec<String>, TaskError> {
    let mut found = vec![];
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        let failed = |source| TaskError::Io { path: at.clone(), source };
        for entry in fs::read_dir(&at).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml")
                && let Some(name) = path.strip_prefix(folder).ok().and_then(Path::to_str)
            {
                found.push(name.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn text(origin: &Origin, name: &str) -> Result<String, TaskError> {
    match origin {
        Origin::Embedded => {
            let found = EMBEDDED.iter().find(|(known, _)| *known == name);
            let missing = || definition("built-in tasks", format!("there is no {name}"));
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(missing)
        }
        Origin::Folder(folder) => {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| TaskError::Io { path, source })
        }
    }
}

/// The mappings of a file.
pub(super) fn documents(origin: &Origin, name: &str) -> Result<Vec<Map<String, Value>>, TaskError> {
    let file = show(origin, name);
    let text = text(origin, name)?;
    let documents = Yaml::load_from_str(&text).map_err(|e| definition(&file, e.to_string()))?;
    let values = documents.iter().map(|yaml| match value(yaml) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(definition(&file, "a task file holds a mapping")),
        Err(reason) => Err(definition(&file, reason)),
    });
    values.collect()
}

/// Puts the files that a document includes under it.
pub(super) fn include(
    origin: &Origin,
    name: &str,
    mut document: Map<String, Value>,
    depth: usize,
) -> Result<Map<String, Value>, TaskError> {
    let names = match document.remove("include") {
        None => return Ok(document),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        Some(_) => return Err(definition(&show(origin, name), "include must name a file")),
    };
    if depth > INCLUDES {
        return Err(definition(&show(origin, name), "it includes itself"));
    }
    let mut merged = Map::new();
    for included in names {
        // A path is relative to the file that it stands in.
        let path = Path::new(name).with_file_name(&included);
        let path = path.to_str().unwrap_or(&included);
        let own = matches!(origin, Origin::Folder(folder) if folder.join(path).is_file());
        // A file of the user's may build on one of this program.
        let known = EMBEDDED.iter().any(|(known, _)| *known == included);
        let (from, path) =
            if own || !known { (origin.clone(), path) } else { (Origin::Embedded, included.as_str()) };
        let mut parts = documents(&from, path)?;
        if parts.len() != 1 {
            return Err(definition(&show(&from, path), "an included file holds one document"));
        }
        merged.extend(include(&from, path, parts.remove(0), depth + 1)?);
    }
    merged.extend(document);
    Ok(merged)
}

/// YAML as JSON; `!function name` becomes an object of its own.
fn value(yaml: &Yaml<'_>) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(b)) => Value::Bool(*b),
        Yaml::Value(Scalar::Integer(i)) => Value::Number((*i).into()),
        Yaml::Value(Scalar::FloatingPoint(x)) => {
            let x: f64 = (*x).into();
            Number::from_f64(x).map(Value::Number).ok_or_else(|| format!("{x} is no usable number"))?
        }
        Yaml::Value(Scalar::String(text)) => Value::String(text.to_string()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(value).collect::<Result<_, _>>()?),
        Yaml::Mapping(fields) => {
            let field = |(key, item): (&Yaml<'_>, &Yaml<'_>)| match value(key)? {
                Value::String(key) => Ok((key, value(item)?)),
                other => Err(format!("{other} is no usable key")),
            };
            Value::Object(fields.iter().map(field).collect::<Result<_, String>>()?)
        }
        Yaml::Tagged(tag, inner) if tag.handle == "!" && tag.suffix == "function" => match value(inner)? {
            Value::String(name) => {
                Value::Object([("!function".to_owned(), Value::String(name))].into_iter().collect())
            }
            other => return Err(format!("!function {other}: expected a name")),
        },
        Yaml::Tagged(tag, _) => return Err(format!("the tag {}{} is not known", tag.handle, tag.suffix)),
        Yaml::Alias(_) | Yaml::BadValue | Yaml::Representation(..) => {
            return Err("it holds a value that cannot be read".to_owned());
        }
    })
}
