//! Names of models and data sets, and which of them may become paths.

/// A repository of the hub. Every part is safe to be put into a path and an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelId {
    pub(super) owner: String,
    pub(super) repository: String,
    pub(super) revision: String,
    /// What it holds.
    pub(super) kind: Kind,
}

/// What a repository holds; the hub has them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// Its name in addresses of the hub's interface and in names of the cache.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

impl ModelId {
    /// Reads `owner/name` or `owner/name@revision`, by the rules that the hub has for names.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, repository) = name.split_once('/')?;
        let valid = is_name(owner) && is_name(repository) && revision.split('/').all(is_plain);
        (valid && revision.len() <= 200).then(|| ModelId {
            owner: owner.to_owned(),
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            kind: Kind::Model,
        })
    }

    /// As [`ModelId::parse`], for a data set.
    pub(super) fn parse_dataset(text: &str) -> Option<Self> {
        ModelId::parse(text).map(|id| ModelId { kind: Kind::Dataset, ..id })
    }

    /// Path of the repository at the hub's address.
    pub(super) fn site_path(&self) -> String {
        match self.kind {
            Kind::Model => self.name(),
            Kind::Dataset => format!("datasets/{}", self.name()),
        }
    }

    /// `owner/name`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.owner, self.repository)
    }

    /// Whether the revision is a full commit hash.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Forty lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The hub allows letters, digits, `-`, `_` and `.`, not doubled and not at the ends; the double dash
/// separates owner and name in the cache.
fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| !matches!(c, '-' | '.'));
    is_plain(text)
        && text.len() <= 96
        && !text.contains("--")
        && !text.contains("..")
        && edge(text.chars().next())
        && edge(text.chars().last())
}

/// Whether `text` can be a path below a folder: components that are plain.
pub(super) fn is_plain_path(text: &str) -> bool {
    text.len() <= 400 && text.split('/').all(is_plain)
}

/// Whether `text` can be one component of a path or an address without meaning anything else.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_and_are_not() {
        let id = ModelId::parse("Zyphra/Zamba-7B-v1").unwrap();
        assert_eq!((id.name().as_str(), id.revision.as_str()), ("Zyphra/Zamba-7B-v1", "main"));
        assert_eq!(ModelId::parse("a/b@refs/pr/1").unwrap().revision, "refs/pr/1");
        assert!(ModelId::parse(&format!("a/b@{}", "0f".repeat(20))).unwrap().is_commit());
        for text in [
            "",
            "gpt2",
            "/b",
            "a/",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/x",
            "a--b/c",
            "a/b c",
            "a/b\n",
            "-a/b",
            "a/b.",
            "a/b@x%2f",
            "./a",
            "C:/a",
            "a\\b/c",
        ] {
            assert_eq!(ModelId::parse(text), None, "{text:?}");
        }
    }
}
