//! What the user may set, and what follows from it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rules::{RULES, Rule};
use crate::error::{Error, Result};

/// Where thresholds come from that are not set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Zyda's filter.
    #[default]
    Zyda,
    /// Gopher's quality and repetition of lines and paragraphs.
    Gopher,
    /// Gopher's and FineWeb's line rules.
    Fineweb,
    /// For source code: lengths of lines, share of digits and of letters.
    Code,
    /// Nothing but what is set.
    None,
}

/// A threshold, or `false` for a rule that is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Limit {
    /// The threshold.
    At(f64),
    /// `false`: off. `true` is refused: it says nothing.
    Switch(bool),
}

/// A string that may stand in a text so often and no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// The string.
    pub text: String,
    /// Most occurrences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_count: Option<f64>,
    /// Most occurrences per character of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_share: Option<f64>,
}

/// A list of words that may stand in a text so often, all together, and no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordList {
    /// Its name in counts. The names of Zyda's lists (`sexual`, `profanity`, `cursed`, `zh_pornsignals`) bring their limits with
    /// them.
    pub name: String,
    /// The list: JSON or a word per line.
    pub file: PathBuf,
    /// Most occurrences.
    #[serde(default)]
    pub max_count: Option<f64>,
    /// Most occurrences per character of the text.
    #[serde(default)]
    pub max_share: Option<f64>,
}

/// The settings of a filter, as they stand in a TOML file.
///
/// ```toml
/// preset = "zyda"
/// skip_sources = ["starcoder"]     # kept as they are
/// collapse_runs = true             # ---------- becomes -, and so on
///
/// [rules]
/// max_digit_share = 0.25
/// min_mean_word_chars = false      # off
///
/// [[words]]
/// name = "profanity"
/// file = "profanity.json"
///
/// [[patterns]]                     # these take the place of the preset's
/// text = "lorem ipsum"
/// max_count = 2
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where other thresholds come from.
    pub preset: Preset,
    /// Documents of these sources are kept without a look.
    pub skip_sources: Vec<String>,
    /// Whether long runs of the same punctuation or white space are shortened to one; by default only Zyda's preset does.
    pub collapse_runs: Option<bool>,
    /// Thresholds by the names of [`RULES`].
    pub rules: BTreeMap<String, Limit>,
    /// In place of the preset's patterns.
    pub patterns: Option<Vec<Pattern>>,
    /// Word lists.
    pub words: Vec<WordList>,
}

/// Settings with everything filled in.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) skip_sources: Vec<String>,
    pub(super) collapse_runs: bool,
    pub(super) rules: Vec<(&'static Rule, f64)>,
    pub(super) patterns: Vec<Pattern>,
    pub(super) words: Vec<WordList>,
}

/// Zyda's patterns: text, most occurrences, most per character.
const PATTERNS: [(&str, Option<f64>, Option<f64>); 7] = [
    ("xml", Some(10.0), None),
    ("<?xml version=", Some(1.0), None),
    ("lorem ipsum", Some(2.0), None),
    ("https://", None, Some(0.002)),
    ("<", None, Some(0.03)),
    ("\":", None, Some(0.002)),
    ("www.", None, Some(0.01)),
];

/// The limits of Zyda's word lists, likewise.
const WORDS: [(&str, Option<f64>, Option<f64>); 4] = [
    ("zh_pornsignals", Some(1.0), None),
    ("sexual", Some(10.0), Some(0.001)),
    ("profanity", None, Some(0.0025)),
    ("cursed", None, Some(0.01)),
];

impl Settings {
    /// Reads settings from TOML. The files of word lists are taken relative to `folder`.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn from_toml(text: &str, folder: &std::path::Path) -> std::result::Result<Settings, String> {
        let mut settings: Settings = toml::from_str(text).map_err(|error| error.to_string())?;
        for list in &mut settings.words {
            list.file = folder.join(&list.file);
        }
        settings.resolve().map_err(|error| error.to_string())?;
        Ok(settings)
    }

    pub(super) fn resolve(&self) -> Result<Resolved> {
        let column = match self.preset {
            Preset::Zyda => Some(0),
            Preset::Gopher => Some(1),
            Preset::Fineweb => Some(2),
            Preset::Code => Some(3),
            Preset::None => None,
        };
        if let Some(name) = self.rules.keys().find(|name| !RULES.iter().any(|rule| rule.name == *name)) {
            let names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
            return Err(Error::Setting(format!("there is no rule `{name}`, but {}", names.join(", "))));
        }
        let mut rules = Vec::new();
        for rule in RULES {
            let limit = match self.rules.get(rule.name) {
                Some(Limit::At(limit)) => Some(*limit),
                Some(Limit::Switch(false)) => None,
                Some(Limit::Switch(true)) => {
                    return Err(Error::Setting(format!("`{}` is a number, or false for off", rule.name)));
                }
                None => column.and_then(|column| rule.presets[column]),
            };
            if let Some(limit) = limit {
                rules.push((rule, number(rule.name, limit)?));
            }
        }
        let is_zyda = self.preset == Preset::Zyda;
        let patterns = match &self.patterns {
            Some(patterns) => patterns.clone(),
            None if is_zyda => PATTERNS
                .map(|(text, max_count, max_share)| Pattern { text: text.to_owned(), max_count, max_share })
                .to_vec(),
            None => Vec::new(),
        };
        for pattern in &patterns {
            if pattern.text.is_empty() {
                return Err(Error::Setting("a pattern is empty; give it a `text`".into()));
            }
            limits(&pattern.text, pattern.max_count, pattern.max_share)?;
        }
        Ok(Resolved {
            skip_sources: self.skip_sources.clone(),
            collapse_runs: self.collapse_runs.unwrap_or(is_zyda),
            rules,
            patterns,
            words: self.words.iter().map(with_limits).collect::<Result<_>>()?,
        })
    }
}

/// A list with the limits of Zyda's list of that name, if none are set.
fn with_limits(list: &WordList) -> Result<WordList> {
    let mut list = list.clone();
    if list.max_count.is_none()
        && list.max_share.is_none()
        && let Some((_, max_count, max_share)) = WORDS.iter().find(|(name, ..)| *name == list.name)
    {
        (list.max_count, list.max_share) = (*max_count, *max_share);
    }
    limits(&list.name, list.max_count, list.max_share)?;
    Ok(list)
}

fn limits(name: &str, max_count: Option<f64>, max_share: Option<f64>) -> Result<()> {
    if max_count.is_none() && max_share.is_none() {
        return Err(Error::Setting(format!("`{name}` has no limit; give it `max_count` or `max_share`")));
    }
    max_count.into_iter().chain(max_share).try_for_each(|limit| number(name, limit).map(drop))
}

fn number(name: &str, limit: f64) -> Result<f64> {
    if limit >= 0.0 && limit.is_finite() {
        Ok(limit)
    } else {
        Err(Error::Setting(format!(
            "`{name}` is {limit}; give a number that is not negative, or false for off"
        )))
    }
}
