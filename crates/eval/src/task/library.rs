//! Tasks, groups and tags by name: those inside this program, and those of folders.

mod glob;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TaskError;
use super::config::{GroupConfig, TaskConfig};
use glob::matches;
use yaml::{EMBEDDED, INCLUDES, Origin, definition, documents, include, show, yaml_files};

/// Definitions by name.
#[derive(Debug, Default)]
pub struct Library {
    tasks: BTreeMap<String, Entry<TaskConfig>>,
    groups: BTreeMap<String, Entry<GroupConfig>>,
    /// Names of tasks by tag.
    tags: BTreeMap<String, BTreeSet<String>>,
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
                self.tags.entry(tag.clone()).or_default().insert(task.clone());
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
            let found: Vec<&str> = self
                .names()
                .into_iter()
                .filter(|name| matches(pattern.as_bytes(), name.as_bytes()))
                .collect();
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

#[cfg(test)]
mod tests {
    use std::fs;

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
            [
                ("mmlu_stem", 19),
                ("mmlu_other", 13),
                ("mmlu_social_sciences", 12),
                ("mmlu_humanities", 13),
                ("mmlu", 57)
            ]
        );
        assert_eq!(
            all.groups[4].children,
            ["mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]
        );
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
