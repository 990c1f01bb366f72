//! Cutting text into words as the pattern of Llama 3's tokenizer does, without a regular expression.
//!
//! The pattern is
//! `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
//! Every character begins some alternative, so words follow each other without gaps.

use std::sync::OnceLock;

/// What the pattern tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    /// Neither of the others: punctuation, marks, controls.
    Other,
    Letter,
    Number,
    /// White space but CR and LF.
    Space,
    /// CR or LF.
    Break,
}

/// The class of every character.
struct Classes(Vec<Class>);

impl Classes {
    /// From the tables of the regular expression library, so that both agree on the version of Unicode.
    fn new() -> Classes {
        let mut classes = vec![Class::Other; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)]
        {
            // The patterns are constants that the library accepts; without ranges all would be `Other`, which a test would see.
            let Ok(parsed) = regex_syntax::parse(pattern) else { continue };
            if let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(unicode)) =
                parsed.kind()
            {
                for range in unicode.ranges() {
                    classes[range.start() as usize..=range.end() as usize].fill(class);
                }
            }
        }
        classes['\r' as usize] = Class::Break;
        classes['\n' as usize] = Class::Break;
        Classes(classes)
    }

    fn of(&self, c: char) -> Class {
        self.0[c as usize]
    }
}

fn classes() -> &'static Classes {
    static CLASSES: OnceLock<Classes> = OnceLock::new();
    CLASSES.get_or_init(Classes::new)
}

/// The words of a text, in order; together they are the text.
pub(super) struct WordsOf<'a> {
    rest: &'a str,
    classes: &'static Classes,
}

impl<'a> WordsOf<'a> {
    pub(super) fn new(text: &'a str) -> WordsOf<'a> {
        WordsOf { rest: text, classes: classes() }
    }

    /// Bytes of the longest start of `text` whose characters are all of the class.
    fn run(&self, text: &str, class: Class) -> usize {
        text.find(|c| self.classes.of(c) != class).unwrap_or(text.len())
    }

    /// Bytes of the word at the start of a text that is not empty.
    fn first(&self, text: &str) -> usize {
        let mut chars = text.chars();
        let Some(first) = chars.next() else { return 0 };
        let after = chars.as_str();
        let class = self.classes.of(first);
        if first == '\''
            && let Some(len) = contraction(after)
        {
            return 1 + len;
        }
        let second = after.chars().next().map(|c| self.classes.of(c));
        match class {
            Class::Letter => self.run(text, Class::Letter),
            Class::Number => text
                .char_indices()
                .take(3)
                .take_while(|(_, c)| self.classes.of(*c) == Class::Number)
                .last()
                .map_or(0, |(at, c)| at + c.len_utf8()),
            Class::Other | Class::Space if second == Some(Class::Letter) => {
                first.len_utf8() + self.run(after, Class::Letter)
            }
            Class::Other => self.punctuation(text),
            Class::Space if first == ' ' && second == Some(Class::Other) => 1 + self.punctuation(after),
            Class::Space | Class::Break => self.white(text),
        }
    }

    /// Punctuation and the line breaks after it.
    fn punctuation(&self, text: &str) -> usize {
        let marks = self.run(text, Class::Other);
        marks + self.run(&text[marks..], Class::Break)
    }

    /// White space: to the last line break in it; or all but its last character, which belongs to what follows; or all.
    fn white(&self, text: &str) -> usize {
        let is_white = |c| matches!(self.classes.of(c), Class::Space | Class::Break);
        let end = text.find(|c| !is_white(c)).unwrap_or(text.len());
        let run = &text[..end];
        if let Some(at) = run.rfind(['\r', '\n']) {
            return at + 1;
        }
        match run.char_indices().next_back() {
            Some((last, _)) if end < text.len() && last > 0 => last,
            _ => end,
        }
    }
}

impl<'a> Iterator for WordsOf<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (word, rest) = self.rest.split_at(self.first(self.rest));
        self.rest = rest;
        Some(word)
    }
}

/// Bytes of an English contraction's end behind its apostrophe, in either case. The long s folds to s.
fn contraction(after: &str) -> Option<usize> {
    let mut chars = after.chars();
    let first = chars.next()?;
    if matches!(first.to_ascii_lowercase(), 's' | 't' | 'm' | 'd' | 'ſ') {
        return Some(first.len_utf8());
    }
    let pair = (first.to_ascii_lowercase(), chars.next()?.to_ascii_lowercase());
    matches!(pair, ('r', 'e') | ('v', 'e') | ('l', 'l')).then_some(2)
}
