//! The `tojson` filter of chat templates, which writes what Python's `json.dumps` writes.
//!
//! The engine's own filter escapes for HTML and puts no choice of separators.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// Deepest nesting, so that a value that a template nests in a loop cannot exhaust the stack.
const MAX_DEPTH: usize = 100;

/// Longest output, in bytes: as long as a rendering may be.
const MAX_LENGTH: usize = super::MAX_OUTPUT;

/// JSON as the engine's own kind of value. As deep as the JSON, whose reader bounds that.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, json)| (key.as_str(), value(json)))),
    }
}

struct Style {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

/// `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, as `transformers` defines it.
pub(super) fn to_json(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(value)?.min(64)),
        }),
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?.unwrap_or_default();
    // With an indent, lines end after the comma.
    let item = if indent.is_some() { "," } else { ", " };
    let style = Style {
        ensure_ascii: match ensure_ascii {
            Some(flag) => flag,
            None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        },
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_separator: separators.first().cloned().unwrap_or_else(|| item.to_owned()),
        key_separator: separators.get(1).cloned().unwrap_or_else(|| ": ".to_owned()),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

fn fail(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(fail("tojson: nested too deeply"));
        }
        if out.len() > MAX_LENGTH {
            return Err(fail("tojson: too long"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.write_items(['[', ']'], items, depth, out, |style, item, out| {
                    style.write(&item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(['{', '}'], keys.into_iter(), depth, out, |style, key, out| {
                    match key.as_str() {
                        Some(text) => style.write_string(text, out),
                        None => style.write_string(&key.to_string(), out),
                    }
                    out.push_str(&style.key_separator);
                    style.write(&value.get_item(&key)?, depth + 1, out)
                })?;
            }
            _ => return Err(fail("tojson: the value is undefined or not plain data")),
        }
        Ok(())
    }

    fn write_items(
        &self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Value>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Self, Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                out.push_str(&self.item_separator);
            }
            empty = false;
            self.new_line(depth + 1, out);
            write(self, item, out)?;
        }
        if !empty {
            self.new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    c.encode_utf16(&mut [0; 2])
                        .iter()
                        .for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
