//! Templates of prompts: jinja2 as lm-evaluation-harness sets it up, in minijinja.

use std::collections::HashSet;

use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use serde_json::Value as Json;

use crate::python::{self, Doc, is_space};

/// Renders templates. Unknown fields are errors, and values are written as Python writes them.
pub(crate) struct Templates {
    environment: Environment<'static>,
}

impl Templates {
    pub(crate) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // The option is a constant that the builder accepts.
        if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_debug(false);
        environment.set_formatter(format);
        environment.set_unknown_method_callback(method);
        environment.add_filter("regex_replace", regex_replace);
        Templates { environment }
    }

    /// The text of a template for a document.
    pub(crate) fn render(&self, template: &str, doc: &Doc) -> Result<String, String> {
        let compiled = self.environment.template_from_str(template).map_err(|e| explain(&e))?;
        compiled.render(context(doc)).map_err(|e| match e.kind() {
            ErrorKind::UndefinedError => missing(compiled.undeclared_variables(true), doc),
            _ => explain(&e),
        })
    }

    /// The value of a template that is nothing but an expression in double braces, or else of the Python
    /// literal that the template renders to.
    pub(crate) fn evaluate(&self, template: &str, doc: &Doc) -> Result<Json, String> {
        let inner = template.trim().strip_prefix("{{").and_then(|t| t.strip_suffix("}}"));
        if let Some(expression) = inner.filter(|t| !t.contains("{{") && !t.contains("}}")) {
            let expression = self.environment.compile_expression(expression).map_err(|e| explain(&e))?;
            let failed = |e: Error| match e.kind() {
                ErrorKind::UndefinedError => missing(expression.undeclared_variables(true), doc),
                _ => explain(&e),
            };
            let value = expression.eval(context(doc)).map_err(failed)?;
            if value.kind() != ValueKind::String {
                // A list may hold what is missing.
                return json(&value).map_err(failed);
            }
        }
        python::literal_eval(&self.render(template, doc)?)
    }
}

fn context(doc: &Doc) -> Value {
    Value::from_pairs(doc.iter().map(|(key, value)| (key.as_str(), engine_value(value))))
}

/// A value as the engine has it.
fn engine_value(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(engine_value).collect::<Vec<_>>()),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(k, v)| (k.as_str(), engine_value(v)))),
    }
}

/// A value of the engine.
fn json(value: &Value) -> Result<Json, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, format!("{value} is no plain value"));
    Ok(match value.kind() {
        ValueKind::Undefined => return Err(ErrorKind::UndefinedError.into()),
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => match i64::try_from(value.clone()) {
            Ok(whole) if value.is_integer() => whole.into(),
            _ => f64::try_from(value.clone())
                .ok()
                .and_then(serde_json::Number::from_f64)
                .ok_or_else(wrong)?
                .into(),
        },
        ValueKind::String => value.as_str().ok_or_else(wrong)?.into(),
        ValueKind::Seq | ValueKind::Iterable => {
            Json::Array(value.try_iter()?.map(|item| json(&item)).collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let mut fields = serde_json::Map::new();
            for key in value.try_iter()? {
                let name = key.as_str().ok_or_else(wrong)?.to_owned();
                fields.insert(name, json(&value.get_item(&key)?)?);
            }
            Json::Object(fields)
        }
        _ => return Err(wrong()),
    })
}

/// What went wrong, on one line.
fn explain(error: &Error) -> String {
    let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
    format!("{}{detail}", error.kind())
}

/// Names the field that a template asks for and a document lacks.
fn missing(fields: HashSet<String>, doc: &Doc) -> String {
    let there = |path: &str| {
        let mut parts = path.split('.');
        let first = parts.next().and_then(|name| doc.get(name));
        parts.fold(first, |value, name| value.and_then(|v| v.get(name))).is_some()
    };
    let mut absent: Vec<String> = fields.into_iter().filter(|path| !there(path)).collect();
    absent.sort();
    match absent.first() {
        Some(path) => format!("there is no field `{path}`"),
        None => "a list is too short, or a value in it is missing".to_owned(),
    }
}

/// Writes a value as Python's `str` does.
fn format(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Undefined => return Err(ErrorKind::UndefinedError.into()),
        ValueKind::String => {
            return out.write_str(value.as_str().unwrap_or_default()).map_err(Error::from);
        }
        _ => python::str(&json(value)?),
    };
    out.write_str(&text).map_err(Error::from)
}

/// Methods of Python's strings and lists.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match (name, args) {
            ("strip", []) => return Ok(python::strip(text).into()),
            ("lstrip", []) => return Ok(text.trim_start_matches(is_space).into()),
            ("rstrip", []) => return Ok(text.trim_end_matches(is_space).into()),
            ("capitalize", []) => return Ok(python::capitalize(text).into()),
            ("isspace", []) => return Ok((!text.is_empty() && text.chars().all(is_space)).into()),
            ("split", []) => {
                return Ok(text.split(is_space).filter(|word| !word.is_empty()).map(Value::from).collect());
            }
            _ => {}
        }
    } else if value.kind() == ValueKind::Seq && name == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        let place = value.try_iter()?.position(|item| &item == wanted);
        let missing =
            || Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in the list {value}"));
        return place.map(Value::from).ok_or_else(missing);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `re.sub`
fn regex_replace(text: &str, pattern: &str, by: &str, count: Option<usize>) -> Result<String, Error> {
    let regex = Regex::new(pattern).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
    Ok(regex.replacen(text, count.unwrap_or(0), python_replacement(by).as_str()).into_owned())
}

/// A replacement in the words of Python, in those of the regex library.
fn python_replacement(by: &str) -> String {
    let mut out = String::new();
    let mut chars = by.replace('$', "$$").chars().collect::<Vec<_>>().into_iter().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(d)) if d.is_ascii_digit() => {
                out.push_str(&format!("${{{d}}}"));
                chars.next();
            }
            ('\\', Some('\\')) => {
                out.push('\\');
                chars.next();
            }
            ('\\', Some('n')) => {
                out.push('\n');
                chars.next();
            }
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn doc() -> Doc {
        let doc = json!({
            "text": "a  b\u{a0}c", "n": 3, "x": 1.0, "yes": true, "none": null, "answerKey": "B",
            "choices": {"text": ["it's", "b"], "label": ["A", "B"]}, "list": ["q", 2],
        });
        doc.as_object().unwrap().clone()
    }

    #[test]
    fn templates_render_as_in_python() {
        let (templates, doc) = (Templates::new(), doc());
        for (template, want) in [
            ("{{text.split(' ')[:-1]|join(' ')}}", "a "),
            ("{{' '+text.split(' ')[-1]}}", " b\u{a0}c"),
            ("{{text.split()|length}}", "3"),
            ("{{choices.label.index(answerKey.lstrip())}}", "1"),
            ("{{n}} {{x}} {{yes}} {{none}} {{list}}\n", "3 1.0 True None ['q', 2]\n"),
            ("{{choices.text[0]}}", "it's"),
            ("{{' xY '.strip().capitalize()}}", "Xy"),
            ("{{text|regex_replace('(b).', '<\\\\1>')}}", "a  <b>c"),
            ("{% if n is defined and n > 2 %}more{% endif %}", "more"),
        ] {
            assert_eq!(templates.render(template, &doc).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn values_come_from_expressions_and_literals() {
        let (templates, doc) = (Templates::new(), doc());
        assert_eq!(templates.evaluate("{{choices.text}}", &doc), Ok(json!(["it's", "b"])));
        assert_eq!(templates.evaluate("{{[text, answerKey]}}", &doc), Ok(json!(["a  b\u{a0}c", "B"])));
        assert_eq!(templates.evaluate("['x', {{n}}]", &doc), Ok(json!(["x", 3])));
        assert!(templates.evaluate("{{text}}", &doc).is_err());
    }

    #[test]
    fn unknown_fields_and_values_are_named() {
        let (templates, doc) = (Templates::new(), doc());
        let error = templates.render("Q: {{question}}", &doc).unwrap_err();
        assert!(error.contains("`question`"), "{error}");
        let error = templates.evaluate("{{[text, sol2]}}", &doc).unwrap_err();
        assert!(error.contains("`sol2`"), "{error}");
        let error = templates.render("{{choices.label.index('E')}}", &doc).unwrap_err();
        assert!(error.contains('E') && error.contains("not in the list"), "{error}");
    }
}
