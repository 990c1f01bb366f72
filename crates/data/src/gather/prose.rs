//! Documentation prose out of Rust sources: the text of `///` and `//!` comments.

/// A block with fewer words than this says too little by itself.
const MIN_WORDS: usize = 8;

/// The doc comments of a Rust source file, one string per block, in order. Code blocks, link definitions and headings
/// with nothing under them are left out; blocks of a few words too.
pub(super) fn doc_blocks(source: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    for line in source.lines().chain([""]) {
        match doc_line(line) {
            Some(text) => lines.push(text),
            None => {
                if !lines.is_empty() {
                    blocks.extend(clean(&lines));
                    lines.clear();
                }
            }
        }
    }
    blocks
}

/// The text of a line that is an outer or inner doc comment.
fn doc_line(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line.strip_prefix("//!").or_else(|| line.strip_prefix("///"))?;
    // Four slashes are an ordinary comment, often a ruler.
    if text.starts_with('/') {
        return None;
    }
    Some(text.strip_prefix(' ').unwrap_or(text))
}

fn clean(lines: &[&str]) -> Option<String> {
    let mut paragraphs = paragraphs(lines);
    // A heading stays only above text or a deeper heading; from the end, so that a chain of bare ones goes whole.
    let mut next = 0;
    for at in (0..paragraphs.len()).rev() {
        let level = heading_level(&paragraphs[at]);
        if level > 0 && next <= level {
            paragraphs.remove(at);
        } else {
            next = if level > 0 { level } else { usize::MAX };
        }
    }
    let text = paragraphs.join("\n\n");
    (text.split_whitespace().count() >= MIN_WORDS).then_some(text)
}

/// What lies between empty lines or code blocks, and each heading by itself.
fn paragraphs(lines: &[&str]) -> Vec<String> {
    let mut paragraphs: Vec<String> = Vec::new();
    let mut open = false;
    let mut fence: Option<&str> = None;
    for line in lines {
        let trimmed = line.trim();
        if let Some(mark) = fence {
            if trimmed.starts_with(mark) {
                fence = None;
            }
            continue;
        }
        fence = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        if fence.is_some() || trimmed.is_empty() {
            open = false;
        } else if !is_link_definition(trimmed) {
            let heading = heading_level(trimmed) > 0;
            match paragraphs.last_mut() {
                Some(last) if open && !heading => {
                    last.push('\n');
                    last.push_str(line.trim_end());
                }
                _ => paragraphs.push(line.trim_end().to_owned()),
            }
            open = !heading;
        }
    }
    paragraphs
}

/// The number of `#` of a heading, 0 for other text.
fn heading_level(line: &str) -> usize {
    let level = line.bytes().take_while(|&byte| byte == b'#').count();
    if line[level..].starts_with(' ') { level } else { 0 }
}

/// `[name]: target`
fn is_link_definition(line: &str) -> bool {
    line.starts_with('[') && line.find("]:").is_some_and(|at| !line[1..at].contains(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_kept_and_code_is_not() {
        let source = r#"
//! # A crate
//!
//! This crate does one thing, and it does that one thing well.
//! It never does [another].
//!
//! ## Examples
//!
//! ```
//! let not = "prose";
//! ```
//!
//! [another]: https://example.org
use std::fmt;

//////////////////////////////////////
// An ordinary comment of more than eight words is not documentation at all.

/// Too short to keep.
fn a() {}

    /// Returns the largest of the elements that are equal to the first one.
    ///
    /// # Panics
    ///
    /// Never, whatever you do to it.
    #[inline]
    fn b() {}
"#;
        assert_eq!(
            doc_blocks(source),
            [
                "# A crate\n\nThis crate does one thing, and it does that one thing well.\nIt never does [another].",
                "Returns the largest of the elements that are equal to the first one.\n\n# Panics\n\n\
                 Never, whatever you do to it.",
            ]
        );
    }

    #[test]
    fn chains_of_bare_headings_go() {
        let text =
            ["# One", "## Two", "# Three", "## Four", "one two three four five six seven eight", "# Five"];
        let kept = clean(&text).unwrap();
        assert_eq!(kept, "# Three\n\n## Four\n\none two three four five six seven eight");
    }

    #[test]
    fn an_open_fence_swallows_the_rest() {
        assert_eq!(doc_blocks("/// ```\n/// one two three four five six seven eight nine"), [""; 0]);
    }
}
