//! Tasks, groups and tags by name: those inside this program, and those of folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Number, Value};

use super::TaskError;
use super::config::{GroupConfig, TaskConfig};

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../../tasks/", $name)))),*] };
}

/// The files that are part of this program.
const EMBEDDED: [(&str, &str); 14] = embedded![
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
const INCLUDES: usize = 16;

/// Where a definition stands.
#[derive(Debug, Clone)]
enum Origin {
    Embedded,
    Folder(PathBuf),
}

/// Definitions by name.
#[derive(Debug, Default)]
pub struct Library {
    tasks: BTreeMap<String, Entry<TaskConfig>>,
    groups: BTreeMap<String, Entry<GroupConfig>>,
    /// Names of tasks by tag, in the order of their definitions.
    tags: BTreeMap<String, Vec<String>>,
}

#[derive(Debug)]
struct Entry<T> {
    config: T,
    file: String,
    /// Folder of the file, to which paths in it are relative.
    folder: PathBuf,
}

/// What was asked for, resolved: tasks, each once, and the groups above them.
#[derive(Debug, Default)]
pub struct Selection {
    pub(crate) tasks: Vec<SelectedTask>,
    pub(crate) groups: Vec<SelectedGroup>,
}

#[derive(Debug, Clone)]
pub(crate) struct SelectedTask {
    pub(crate) config: TaskConfig,
    pub(crate) file: String,
    pub(crate) folder: PathBuf,
}

/// A group with the names of its members, after those groups that are its members.
#[derive(Debug, Clone)]
pub(crate) struct SelectedGroup {
    pub(crate) config: GroupConfig,
    pub(crate) children: Vec<String>,
    /// The tasks below it, in order.
    pub(crate) leaves: Vec<String>,
}

impl Selection {
    /// Names of the tasks.
    pub fn task_names(&self) -> impl Iterator<Item = &str> {
        self.tasks.iter().map(|t| t.config.task.as_str())
    }
}

impl Library {
    /// The tasks of this program, and then those of the `.yaml` files in `folders`, which may replace some.
    ///
    /// # Errors
    /// [`TaskError`] if a folder cannot be read or a file in it is wrong.
    pub fn new(folders: &[PathBuf]) -> Result<Self, TaskError> {
        let mut library = Library::default();
        for (name, _) in EMBEDDED {
            library.read(&Origin::Embedded, name)?;
        }
        for folder in folders {
            for name in yaml_files(folder)? {
                library.read(&Origin::Folder(folder.clone()), &name)?;
            }
        }
        Ok(library)
    }

    /// All names: tasks, groups, tags.
    pub fn names(&self) -> BTreeSet<&str> {
        let names = self.tasks.keys().chain(self.groups.keys()).chain(self.tags.keys());
        names.map(String::as_str).collect()
    }

    fn read(&mut self, origin: &Origin, name: &str) -> Result<(), TaskError> {
        for document in documents(origin, name)? {
            let document = include(origin, name, document, 0)?;
            self.add(origin, name, document)?;
        }
        Ok(())
    }

    fn add(&mut self, origin: &Origin, name: &str, document: Map<String, Value>) -> Result<(), TaskError> {
        let file = show(origin, name);
        let wrong = |file: &str, e: serde_json::Error| definition(file, e.to_string());
        let folder = match origin {
            Origin::Embedded => PathBuf::new(),
            Origin::Folder(folder) => folder.join(name).parent().map(Path::to_owned).unwrap_or_default(),
        };
        if let Some(Value::String(group)) = document.get("group") {
            let group = group.clone();
            let config: GroupConfig =
                serde_json::from_value(Value::Object(document)).map_err(|e| wrong(&file, e))?;
            self.groups.insert(group, Entry { config, file, folder });
        } else if let Some(Value::String(task)) = document.get("task") {
            let (task, place) = (task.clone(), file.clone() + ", task " + task);
            let config: TaskConfig =
                serde_json::from_value(Value::Object(document)).map_err(|e| wrong(&place, e))?;
            for tag in config.tag.as_slice() {
                let members = self.tags.entry(tag.clone()).or_default();
                if !members.contains(&task) {
                    members.push(task.clone());
                }
            }
            self.tasks.insert(task, Entry { config, file, folder });
        }
        // A document that is neither exists to be included.
        Ok(())
    }

    /// Resolves names and patterns with `*`, `?` and `[...]`.
    ///
    /// # Errors
    /// [`TaskError::Unknown`] for a name that nothing has; [`TaskError::Definition`] for a group that
    /// contains itself or names something unknown.
    pub fn select(&self, patterns: &[String]) -> Result<Selection, TaskError> {
        let mut selection = Selection::default();
        for pattern in patterns {
            let found: Vec<&str> =
                self.names().into_iter().filter(|name| matches(pattern.as_bytes(), name.as_bytes())).collect();
            if found.is_empty() {
                let own: Vec<&str> = self.names().into_iter().filter(|n| !n.starts_with("mmlu_")).collect();
                let hint = format!("there are {} and the subjects mmlu_*", own.join(", "));
                return Err(TaskError::Unknown { name: pattern.clone(), hint });
            }
            for name in found {
                self.choose(name, &mut selection, 0)?;
            }
        }
        Ok(selection)
    }

    /// Adds what `name` stands for and returns the names of its tasks.
    fn choose(&self, name: &str, into: &mut Selection, depth: usize) -> Result<Vec<String>, TaskError> {
        if let Some(entry) = self.tasks.get(name) {
            if !into.tasks.iter().any(|t| t.config.task == name) {
                let Entry { config, file, folder } = entry;
                let (config, file, folder) = (config.clone(), file.clone(), folder.clone());
                into.tasks.push(SelectedTask { config, file, folder });
            }
            return Ok(vec![name.to_owned()]);
        }
        let mut leaves = vec![];
        if let Some(entry) = self.groups.get(name) {
            if depth > INCLUDES {
                return Err(definition(&entry.file, format!("group {name} contains itself")));
            }
            let mut children = vec![];
            for member in entry.config.task.as_slice() {
                if !self.names().contains(member.as_str()) {
                    let reason = format!("group {name} names `{member}`, and there is no such task or group");
                    return Err(definition(&entry.file, reason));
                }
                let below = self.choose(member, into, depth + 1)?;
                // A tag stands for its tasks; they become members themselves.
                match self.tags.get(member) {
                    Some(_) if !self.groups.contains_key(member) => children.extend(below.iter().cloned()),
                    _ => children.push(member.clone()),
                }
                leaves.extend(below);
            }
            if !into.groups.iter().any(|g| g.config.group == name) {
                let config = entry.config.clone();
                into.groups.push(SelectedGroup { config, children, leaves: leaves.clone() });
            }
        } else {
            for member in self.tags.get(name).into_iter().flatten() {
                leaves.extend(self.choose(member, into, depth + 1)?);
            }
        }
        Ok(leaves)
    }
}

fn definition(file: &str, reason: impl Into<String>) -> TaskError {
    TaskError::Definition { file: file.to_owned(), reason: reason.into() }
}

fn show(origin: &Origin, name: &str) -> String {
    match origin {
        Origin::Embedded => format!("built-in {name}"),
        Origin::Folder(folder) => folder.join(name).display().to_string(),
    }
}

/// Paths of all task files below a folder, relative to it, in order.
fn yaml_files(folder: &Path) -> Result<Vec<String>, TaskError> {
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
fn documents(origin: &Origin, name: &str) -> Result<Vec<Map<String, Value>>, TaskError> {
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
fn include(
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
            Value::String(name) => Value::Object([("!function".to_owned(), Value::String(name))].into_iter().collect()),
            other => return Err(format!("!function {other}: expected a name")),
        },
        Yaml::Tagged(tag, _) => return Err(format!("the tag {}{} is not known", tag.handle, tag.suffix)),
        Yaml::Alias(_) | Yaml::BadValue | Yaml::Representation(..) => {
            return Err("it holds a value that cannot be read".to_owned());
        }
    })
}

/// `fnmatch`: `*`, `?` and sets in brackets.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|at| matches(rest, &name[at..])),
        [b'?', rest @ ..] => !name.is_empty() && matches(rest, &name[1..]),
        [b'[', rest @ ..] if rest.iter().skip(1).any(|c| *c == b']') => {
            let Some((first, name)) = name.split_first() else { return false };
            let end = 1 + rest.iter().skip(1).position(|c| *c == b']').unwrap_or(0);
            let (set, rest) = (&rest[..end], &rest[end + 1..]);
            let (not, set) = if set[0] == b'!' { (true, &set[1..]) } else { (false, set) };
            let inside = set.contains(first)
                || set.windows(3).any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(first));
            inside != not && matches(rest, name)
        }
        [c, rest @ ..] => name.first() == Some(c) && matches(rest, &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(library: &Library, patterns: &[&str]) -> Vec<String> {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        library.select(&patterns).unwrap().task_names().map(str::to_owned).collect()
    }

    #[test]
    fn groups_tags_and_patterns_are_found() {
        let library = Library::new(&[]).unwrap();
        assert_eq!(names(&library, &["piqa"]), ["piqa"]);
        assert_eq!(names(&library, &["arc_*", "arc_easy"]), ["arc_challenge", "arc_easy"]);
        assert_eq!(names(&library, &["ai2_arc"]), ["arc_challenge", "arc_easy"]);
        assert_eq!(names(&library, &["mmlu"]).len(), 57);
        let all = library.select(&["mmlu".to_owned()]).unwrap();
        let sizes: Vec<_> = all.groups.iter().map(|g| (g.config.group.as_str(), g.leaves.len())).collect();
        assert_eq!(
            sizes,
            [("mmlu_stem", 19), ("mmlu_other", 13), ("mmlu_social_sciences", 12), ("mmlu_humanities", 13), ("mmlu", 57)]
        );
        assert_eq!(all.groups[4].children, ["mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]);
        assert!(matches!(library.select(&["pica".to_owned()]), Err(TaskError::Unknown { .. })));
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (pattern, name, want) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[x", "[x", true),
            ("*", "", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), want, "{pattern} {name}");
        }
    }

    #[test]
    fn files_of_the_user_build_on_built_in_ones_and_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let load = || Library::new(&[dir.path().to_owned()]);
        write("mine.yaml", "include: piqa.yaml\ntask: mine\ntag: [a, b]\nnum_fewshot: 2\n");
        let library = load().unwrap();
        assert_eq!(names(&library, &["a"]), ["mine"]);
        assert_eq!(library.tasks["mine"].config.num_fewshot, Some(2));
        for (text, word) in [
            ("task: x\ntask: y\n", "line"),
            ("task: x\nuse_prompt: z\n", "use_prompt"),
            ("include: piqa.yaml\ntask: x\nprocess_docs: !class z\n", "!class"),
            ("include: none.yaml\ntask: x\n", "none.yaml"),
            ("include: bad.yaml\ntask: x\n", "itself"),
            ("include: piqa.yaml\ntask: x\nmetric_list: [{metric: f1}]\n", "f1"),
        ] {
            write("bad.yaml", text);
            let error = load().unwrap_err().to_string();
            assert!(error.contains("bad.yaml") || error.contains("none.yaml"), "{error}");
            assert!(error.contains(word), "{error}");
        }
    }
}
