//! What Python does to strings and values, where a prompt or a hash depends on it.

mod literal;
mod random;
mod titles;

use std::fmt::Write;

use serde_json::{Map, Value};

pub(crate) use literal::literal_eval;
pub(crate) use random::Random;

/// A document: the fields of a row by name, in the order of the columns.
pub type Doc = Map<String, Value>;

/// `str.isspace` of one character: the white space of Unicode and four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// `str.strip`
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `len(re.split(r"\s+", text))`
pub(crate) fn count_words(text: &str) -> u64 {
    let mut runs = 0;
    let mut inside = false;
    for c in text.chars() {
        let space = is_space(c);
        runs += u64::from(space && !inside);
        inside = space;
    }
    runs + 1
}

/// `str.capitalize`: the first character in title case and all others in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // The lower case of a sigma depends on what stands before it, so the whole text is lowered.
    let lower_first: usize = first.to_lowercase().map(char::len_utf8).sum();
    let lower = text.to_lowercase();
    let mut capital = titles::title(first);
    capital.push_str(&lower[lower_first..]);
    capital
}

/// `str.isdigit` of a whole text, as far as ASCII goes.
pub(crate) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `str(value)`
pub(crate) fn str(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// `repr(value)`
pub(crate) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(&mut out, value);
    out
}

fn write_repr(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(text) => write_str_repr(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, item);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_str_repr(out, key);
                out.push_str(": ");
                write_repr(out, item);
            }
            out.push('}');
        }
    }
}

fn write_str_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        // Writing to a string cannot fail.
        let _ = match c {
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            c if c == quote => write!(out, "\\{c}"),
            c if c == ' ' || !(c.is_control() || c.is_whitespace() || is_format(c)) => write!(out, "{c}"),
            c if (c as u32) < 0x100 => write!(out, "\\x{:02x}", c as u32),
            c if (c as u32) < 0x1_0000 => write!(out, "\\u{:04x}", c as u32),
            c => write!(out, "\\U{:08x}", c as u32),
        };
    }
    out.push(quote);
}

/// Characters of category Cf that occur in text, and noncharacters: Python does not print them.
fn is_format(c: char) -> bool {
    matches!(c as u32, 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
        | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe..=0xffff | 0xe0000..)
}

fn number(n: &serde_json::Number) -> String {
    match n.as_f64() {
        Some(x) if n.is_f64() => float(x),
        _ => n.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent outside 1e-4 ..= 1e16.
pub(crate) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// `json.dumps(value, ensure_ascii=False)`, on lines of their own with `indent`.
pub(crate) fn json(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write_json(&mut out, value, indent, 0);
    out
}

fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let between = |out: &mut String, i: usize| match (i, indent) {
        (0, _) => {}
        (_, None) => out.push_str(", "),
        (_, Some(_)) => out.push(','),
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(text) => write_json_str(out, text),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(fields) if fields.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                between(out, i);
                line(out, depth + 1);
                write_json(out, item, indent, depth + 1);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                between(out, i);
                line(out, depth + 1);
                write_json_str(out, key);
                out.push_str(": ");
                write_json(out, item, indent, depth + 1);
            }
            line(out, depth);
            out.push('}');
        }
    }
}

fn write_json_str(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        let _ = match c {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\x08' => write!(out, "\\b"),
            '\x0c' => write!(out, "\\f"),
            c if (c as u32) < 0x20 => write!(out, "\\u{:04x}", c as u32),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn capital_letters_are_those_of_python() {
        // Made with Python 3.11.
        for (text, want) in [
            ("", ""),
            ("hELLO World", "Hello world"),
            ("ßA", "Ssa"),
            ("ﬁRST", "First"),
            ("ǆX", "ǅx"),
            ("ΑΣ", "Ας"),
            ("ᾳx", "ᾼx"),
            ("აბ", "აბ"),
            ("İX", "İx"),
            ("ŉA", "ʼNa"),
            ("1A", "1a"),
        ] {
            assert_eq!(capitalize(text), want, "{text}");
        }
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = json!({"a": [1, 1.5, true, null, "it's", "\"'\n\u{a0}é"], "b": {}});
        assert_eq!(repr(&value), "{'a': [1, 1.5, True, None, \"it's\", '\"\\'\\n\\xa0é'], 'b': {}}");
        assert_eq!(
            json(&value, None),
            "{\"a\": [1, 1.5, true, null, \"it's\", \"\\\"'\\n\u{a0}é\"], \"b\": {}}"
        );
        assert_eq!(json(&json!({"a": [1], "b": []}), Some(2)), "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}");
        for (x, want) in [
            (1.0, "1.0"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (-1.5e-7, "-1.5e-07"),
            (0.1 + 0.2, "0.30000000000000004"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1e100, "1e+100"),
        ] {
            assert_eq!(float(x), want);
        }
    }

    #[test]
    fn words_are_counted_between_runs_of_white_space() {
        for (text, want) in [("", 1), ("a", 1), (" a  b\n", 4), ("a\x1cb", 2)] {
            assert_eq!(count_words(text), want, "{text:?}");
        }
    }
}
