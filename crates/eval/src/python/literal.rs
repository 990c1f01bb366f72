//! `ast.literal_eval` of what `repr` writes: strings, numbers, lists, tuples, dictionaries, True, False, None.

use serde_json::{Map, Number, Value};

/// Deepest nesting that is read.
const DEPTH: usize = 64;

/// The value of a Python literal; tuples become lists.
///
/// # Errors
/// What is wrong and where, in words.
pub(crate) fn literal_eval(text: &str) -> Result<Value, String> {
    let mut reader = Reader { rest: text.trim_start_matches([' ', '\t']), whole: text.len() };
    let value = reader.value(0)?;
    reader.space();
    if reader.rest.is_empty() { Ok(value) } else { Err(reader.wrong("more than one value")) }
}

struct Reader<'t> {
    rest: &'t str,
    whole: usize,
}

impl Reader<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("{what} at byte {} of a Python literal", self.whole - self.rest.len())
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        let found = self.rest.strip_prefix(c);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(self.wrong("too deep a nesting"));
        }
        self.space();
        match self.rest.chars().next() {
            Some('\'' | '"') => self.strings(),
            Some('[') => self.items('[', ']', depth).map(|(items, _)| Value::Array(items)),
            Some('(') => {
                let (mut items, comma) = self.items('(', ')', depth)?;
                // One value in parentheses is that value, unless a comma follows it.
                if items.len() == 1 && !comma { Ok(items.remove(0)) } else { Ok(Value::Array(items)) }
            }
            Some('{') => self.fields(depth),
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            _ => self.name(),
        }
    }

    fn name(&mut self) -> Result<Value, String> {
        for (name, value) in
            [("None", Value::Null), ("True", Value::Bool(true)), ("False", Value::Bool(false))]
        {
            if let Some(rest) = self.rest.strip_prefix(name) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.wrong("no value"))
    }

    fn number(&mut self) -> Result<Value, String> {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-')));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let digits = word.trim_start_matches(['-', '+']);
        let padded =
            digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        if padded && digits.bytes().any(|b| b != b'0') {
            return Err(self.wrong("a number with leading zeros"));
        }
        let number = word.parse::<i64>().ok().map(Number::from).or_else(|| {
            let x: f64 = word.parse().ok().filter(|_| word.bytes().any(|b| b.is_ascii_digit()))?;
            Number::from_f64(x)
        });
        let number = number.ok_or_else(|| self.wrong("no number"))?;
        self.rest = rest;
        Ok(Value::Number(number))
    }

    /// Strings side by side are one string.
    fn strings(&mut self) -> Result<Value, String> {
        let mut text = String::new();
        while let Some(quote @ ('\'' | '"')) = self.rest.chars().next() {
            self.string(quote, &mut text)?;
            self.space();
        }
        Ok(Value::String(text))
    }

    fn string(&mut self, quote: char, out: &mut String) -> Result<(), String> {
        let triple: String = std::iter::repeat_n(quote, 3).collect();
        let end = if self.rest.starts_with(&triple) { triple } else { quote.to_string() };
        self.rest = &self.rest[end.len()..];
        loop {
            if let Some(rest) = self.rest.strip_prefix(end.as_str()) {
                self.rest = rest;
                return Ok(());
            }
            let c = self.rest.chars().next().ok_or_else(|| self.wrong("a string without end"))?;
            if c == '\n' && end.len() == 1 {
                return Err(self.wrong("a string without end"));
            }
            self.rest = &self.rest[c.len_utf8()..];
            if c == '\\' { self.escape(out)? } else { out.push(c) }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), String> {
        let c = self.rest.chars().next().ok_or_else(|| self.wrong("a string without end"))?;
        self.rest = &self.rest[c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            'x' => out.push(self.code(2)?),
            'u' => out.push(self.code(4)?),
            'U' => out.push(self.code(8)?),
            '0'..='7' => {
                let more = self.rest.bytes().take(2).take_while(|b| matches!(b, b'0'..=b'7')).count();
                let digits = format!("{c}{}", &self.rest[..more]);
                self.rest = &self.rest[more..];
                let code = u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32);
                out.push(code.ok_or_else(|| self.wrong("no character"))?);
            }
            // An unknown escape stays as it is written.
            c => out.extend(['\\', c]),
        }
        Ok(())
    }

    fn code(&mut self, digits: usize) -> Result<char, String> {
        let code = self.rest.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let c = code.and_then(char::from_u32).ok_or_else(|| self.wrong("no character"))?;
        self.rest = &self.rest[digits..];
        Ok(c)
    }

    /// Values between brackets, and whether a comma stood behind the last one.
    fn items(&mut self, open: char, close: char, depth: usize) -> Result<(Vec<Value>, bool), String> {
        self.take(open);
        let (mut items, mut comma) = (vec![], true);
        while !self.take(close) {
            if !comma {
                return Err(self.wrong("no comma"));
            }
            items.push(self.value(depth + 1)?);
            comma = self.take(',');
        }
        Ok((items, comma))
    }

    fn fields(&mut self, depth: usize) -> Result<Value, String> {
        self.take('{');
        let (mut fields, mut comma) = (Map::new(), true);
        while !self.take('}') {
            if !comma {
                return Err(self.wrong("no comma"));
            }
            let key = self.value(depth + 1)?;
            let Value::String(key) = key else { return Err(self.wrong("a key that is no string")) };
            if !self.take(':') {
                return Err(self.wrong("no colon"));
            }
            let value = self.value(depth + 1)?;
            fields.insert(key, value);
            comma = self.take(',');
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_repr_writes() {
        let value = json!([{"question": "It's \"so\"\n\u{e9}\u{2028}\t\\", "options": ["a", "", "1"], "n": -3}, 1.5, true, null]);
        assert_eq!(literal_eval(&crate::python::repr(&value)).unwrap(), value);
        for (text, want) in [
            ("[]", json!([])),
            ("(1,)", json!([1])),
            ("('a' \"b\")", json!("ab")),
            ("{'a': 1, 'b': [2,],}", json!({"a": 1, "b": [2]})),
            ("'\\x41\\u00e9\\U0001F600\\101\\q'", json!("Aé😀A\\q")),
            ("'''a\nb'''", json!("a\nb")),
            ("0", json!(0)),
        ] {
            assert_eq!(literal_eval(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_literal() {
        for text in
            ["", "[1", "'a", "'a\nb'", "x", "1 2", "[1 2]", "{1: 2}", "007", "'\\ud800'", "-", "{'a' 1}"]
        {
            assert!(literal_eval(text).is_err(), "{text}");
        }
        assert!(literal_eval(&"[".repeat(100_000)).is_err());
    }
}
