//! From a response to an answer.

use fancy_regex::Regex;

use crate::python::{is_space, strip};
use crate::task::{FilterConfig, FilterList};

/// Steps under a name.
pub(crate) struct Filter {
    pub(crate) name: String,
    steps: Vec<Step>,
}

enum Step {
    Regex { regex: Regex, group: i64, fallback: String },
    Lowercase,
    Uppercase,
    RemoveWhitespace,
}

impl Filter {
    /// The filters of a task; without any, one that changes nothing.
    ///
    /// # Errors
    /// What is wrong with a pattern.
    pub(crate) fn of(lists: Option<&[FilterList]>) -> Result<Vec<Filter>, String> {
        let none = || vec![Filter { name: "none".to_owned(), steps: vec![] }];
        lists.map_or_else(|| Ok(none()), |lists| lists.iter().map(Filter::new).collect())
    }

    fn new(list: &FilterList) -> Result<Self, String> {
        let mut steps = vec![];
        for step in &list.filter {
            match step {
                // There is one response only.
                FilterConfig::TakeFirst => {}
                FilterConfig::Lowercase => steps.push(Step::Lowercase),
                FilterConfig::Uppercase => steps.push(Step::Uppercase),
                FilterConfig::RemoveWhitespace => steps.push(Step::RemoveWhitespace),
                FilterConfig::Regex { regex_pattern, group_select, fallback } => {
                    let regex =
                        Regex::new(regex_pattern).map_err(|e| format!("filter {}: {e}", list.name))?;
                    steps.push(Step::Regex { regex, group: *group_select, fallback: fallback.clone() });
                }
            }
        }
        Ok(Filter { name: list.name.clone(), steps })
    }

    /// The answer in a response.
    pub(crate) fn apply(&self, response: &str) -> String {
        self.steps.iter().fold(response.to_owned(), |text, step| match step {
            Step::Lowercase => text.to_lowercase(),
            Step::Uppercase => text.to_uppercase(),
            Step::RemoveWhitespace => text.trim_start_matches(is_space).to_owned(),
            Step::Regex { regex, group, fallback } => {
                find(regex, *group, &text).unwrap_or_else(|| fallback.clone())
            }
        })
    }
}

/// `re.findall(text)[group]`: of a match its text, that of its group, or that of its first group that is not empty.
fn find(regex: &Regex, group: i64, text: &str) -> Option<String> {
    let all: Vec<_> = regex.captures_iter(text).map_while(Result::ok).collect();
    let place =
        if group < 0 { all.len().checked_sub(group.unsigned_abs() as usize)? } else { group as usize };
    let captures = all.get(place)?;
    let groups = || captures.iter().skip(1).map(|g| g.map_or("", |g| g.as_str()));
    let found = match captures.len() {
        1 => captures.get(0).map_or("", |m| m.as_str()),
        2 => groups().next().unwrap_or_default(),
        _ => groups().find(|g| !g.is_empty())?,
    };
    Some(strip(found).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_as_in_gsm8k() {
        let filter = |pattern: &str, group_select| {
            let regex = FilterConfig::Regex {
                regex_pattern: pattern.to_owned(),
                group_select,
                fallback: "[invalid]".to_owned(),
            };
            Filter::new(&FilterList { name: "f".to_owned(), filter: vec![regex, FilterConfig::TakeFirst] })
                .unwrap()
        };
        let strict = filter("#### (\\-?[0-9\\.\\,]+)", 0);
        let flexible = filter("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1);
        // Made with Python's `re.findall`.
        for (text, first, last) in [
            ("so 3 + 4 = 7\n#### 7", "7", "7"),
            ("#### 1,234.5 then #### 6", "1,234.5", "6"),
            ("it costs $1,000.", "[invalid]", "$1,000."),
            ("nothing", "[invalid]", "[invalid]"),
            ("-5 and - 12", "[invalid]", "12"),
            ("", "[invalid]", "[invalid]"),
        ] {
            assert_eq!((strict.apply(text).as_str(), flexible.apply(text).as_str()), (first, last), "{text}");
        }
    }
}
