//! Functions that a model may call: how it is told of them, what it may write, and what it wrote.
//!
//! A call has the form that Hermes and Qwen models were trained on, and the grammar lets a model write no other:
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Paris"}}
//! </tool_call>
//! ```

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use crate::grammar::{Grammar, with_options};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Most functions of a request.
const MAX_TOOLS: usize = 128;

/// A function that may be called.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments.
    pub(crate) parameters: Map<String, Value>,
}

/// Which functions are to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Those that the model wants, or none.
    Auto,
    /// At least one.
    Required,
    /// The one with this number.
    Named(usize),
}

/// What a request says about functions.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) list: Vec<Tool>,
    pub(crate) choice: Choice,
    /// Whether more than one call is allowed.
    pub(crate) parallel: bool,
}

impl Tools {
    /// Checks names and sizes.
    pub(crate) fn check(&self, grammar_bytes: usize) -> Result<(), ApiError> {
        if self.list.len() > MAX_TOOLS {
            return Err(ApiError::invalid("tools", format!("at most {MAX_TOOLS} functions")));
        }
        let mut names = HashSet::new();
        let mut bytes = 0;
        for (at, tool) in self.list.iter().enumerate() {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            if tool.name.is_empty() || tool.name.len() > 64 || !tool.name.bytes().all(allowed) {
                let message = "a function's name has 1 to 64 letters, digits, _ and -";
                return Err(ApiError::invalid(format!("tools[{at}].name"), message));
            }
            if !names.insert(&tool.name) {
                return Err(ApiError::invalid(format!("tools[{at}].name"), "another function has this name"));
            }
            match tool.parameters.get("type") {
                None => {}
                Some(Value::String(kind)) if kind == "object" => {}
                Some(_) => {
                    let message = "the arguments of a function are an object: type must be \"object\"";
                    return Err(ApiError::invalid(format!("tools[{at}].parameters.type"), message));
                }
            }
            bytes += Value::Object(tool.parameters.clone()).to_string().len();
        }
        if bytes > grammar_bytes {
            return Err(ApiError::invalid(
                "tools",
                format!("the schemas have more than {grammar_bytes} bytes"),
            ));
        }
        Ok(())
    }

    /// What an answer may be: calls, or where the choice is free an answer of another kind, JSON if `answer` says how.
    pub(crate) fn grammar(&self, answer: Option<Value>) -> Result<Grammar, ApiError> {
        let wrong = |error: crate::grammar::GrammarError| ApiError::invalid("tools", error.to_string());
        let allowed: Vec<usize> = match self.choice {
            Choice::Named(at) => vec![at],
            _ => (0..self.list.len()).collect(),
        };
        let more = if self.parallel && !matches!(self.choice, Choice::Named(_)) { "more*" } else { "" };
        let quoted = |text: &str| Value::from(text).to_string();
        let mut lark = match (self.choice, answer) {
            (Choice::Auto, None) => {
                // Free text ends with the answer, or with the beginning of a call.
                format!(
                    "start: TEXT | open call {more}\nopen[lazy]: /(.|\\n)*{OPEN}/\n\
                     TEXT: /(.|\\n)*/ & ~/(.|\\n)*{OPEN}(.|\\n)*/\n"
                )
            }
            (Choice::Auto, Some(schema)) => {
                let schema = with_options(schema).map_err(wrong)?;
                format!("start: answer | {} call {more}\nanswer: %json {schema}\n", quoted(OPEN))
            }
            _ => format!("start: {} call {more}\n", quoted(OPEN)),
        };
        if !more.is_empty() {
            lark.push_str(&format!("more: {} call\n", quoted(&format!("\n{OPEN}"))));
        }
        let calls: Vec<String> = allowed.iter().map(|at| format!("call_{at}")).collect();
        lark.push_str(&format!("call: {}\n", calls.join(" | ")));
        for at in allowed {
            let tool = &self.list[at];
            let head = quoted(&format!("\n{{\"name\": \"{}\", \"arguments\": ", tool.name));
            let mut schema = tool.parameters.clone();
            schema.entry("type").or_insert_with(|| "object".into());
            let schema = with_options(Value::Object(schema)).map_err(wrong)?;
            let tail = quoted(&format!("}}\n{CLOSE}"));
            lark.push_str(&format!(
                "call_{at}: {head} arguments_{at} {tail}\narguments_{at}: %json {schema}\n"
            ));
        }
        Ok(Grammar::Lark(lark))
    }
}

impl Tool {
    /// In the form that chat templates know.
    pub(crate) fn template(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] = Value::Object(self.parameters.clone());
        json!({ "type": "function", "function": function })
    }
}

/// What a model is told of functions where its template has no words of its own.
pub(crate) fn describe(tools: &[Tool]) -> String {
    let mut text =
        "You may call these functions, given with JSON schemas of their arguments:\n<tools>\n".to_owned();
    for tool in tools {
        text.push_str(&format!("{}\n", tool.template()));
    }
    text + "</tools>\nTo call one, write its name and arguments as JSON between tags:\n\
        <tool_call>\n{\"name\": \"NAME\", \"arguments\": {}}\n</tool_call>"
}

/// A call as the model is to see it again.
pub(crate) fn written(name: &str, arguments: &Value) -> String {
    format!("{OPEN}\n{{\"name\": {}, \"arguments\": {arguments}}}\n{CLOSE}", Value::from(name))
}

/// A part of what a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for the reader.
    Text(String),
    /// The beginning of a call of this function.
    Call(String),
    /// More of the arguments of the call that was begun last.
    Arguments(String),
}

/// Takes calls out of a text as it comes.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    state: State,
    /// Text that is not certain yet.
    held: String,
    /// Calls begun so far.
    pub(crate) calls: usize,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Text,
    /// Between the tag and the arguments.
    Head,
    Arguments {
        depth: usize,
        string: bool,
        escaped: bool,
    },
    /// Between the arguments and the closing tag.
    Tail,
}

impl Reader {
    /// Takes more text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Ends the text: what was held back and did not become a call.
    pub(crate) fn finish(&mut self) -> Option<Piece> {
        let rest = std::mem::take(&mut self.held);
        let shown = matches!(self.state, State::Text) && !(self.calls > 0 && rest.trim().is_empty());
        (shown && !rest.is_empty()).then_some(Piece::Text(rest))
    }

    /// One move; false when more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Text => self.text(pieces),
            State::Head => {
                const BEFORE: &str = "\"arguments\": ";
                let Some(at) = self.held.find(BEFORE) else { return false };
                let name = self.held.split("\"name\": \"").nth(1).and_then(|rest| rest.split('"').next());
                pieces.push(Piece::Call(name.unwrap_or_default().to_owned()));
                self.calls += 1;
                self.held.drain(..at + BEFORE.len());
                self.state = State::Arguments { depth: 0, string: false, escaped: false };
                true
            }
            State::Arguments { depth, string, escaped } => self.arguments(depth, string, escaped, pieces),
            State::Tail => {
                let Some(at) = self.held.find(CLOSE) else { return false };
                self.held.drain(..at + CLOSE.len());
                self.state = State::Text;
                true
            }
        }
    }

    fn text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let (sure, found) = match self.held.find(OPEN) {
            Some(at) => (at, true),
            None => {
                let kept = (1..OPEN.len()).rev().find(|&n| self.held.ends_with(&OPEN[..n])).unwrap_or(0);
                (self.held.len() - kept, false)
            }
        };
        // White space between calls is no answer.
        let blank = self.calls > 0 && self.held[..sure].trim().is_empty();
        if sure > 0 && (found || !blank) {
            let text: String = self.held.drain(..sure).collect();
            if !blank {
                pieces.push(Piece::Text(text));
            }
        }
        if found {
            let at = self.held.find(OPEN).unwrap_or(0);
            self.held.drain(..at + OPEN.len());
            self.state = State::Head;
        }
        found
    }

    fn arguments(
        &mut self,
        mut depth: usize,
        mut string: bool,
        mut escaped: bool,
        out: &mut Vec<Piece>,
    ) -> bool {
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if string => escaped = true,
                b'"' => string = !string,
                b'{' | b'[' if !string => depth += 1,
                b'}' | b']' if !string => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        if !text.is_empty() {
            out.push(Piece::Arguments(text));
        }
        self.state = match end {
            Some(_) => State::Tail,
            None => State::Arguments { depth, string, escaped },
        };
        end.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, cut: usize) -> (String, Vec<(String, String)>) {
        let mut reader = Reader::default();
        let (mut shown, mut calls) = (String::new(), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> =
            chars.chunks(cut).flat_map(|part| reader.push(&part.iter().collect::<String>())).collect();
        pieces.extend(reader.finish());
        for piece in pieces {
            match piece {
                Piece::Text(text) => shown.push_str(&text),
                Piece::Call(name) => calls.push((name, String::new())),
                Piece::Arguments(text) => calls.last_mut().unwrap().1.push_str(&text),
            }
        }
        (shown, calls)
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let arguments = r#"{"a": "}\"{<tool_call>", "b": [{}]}"#;
        let value: Value = serde_json::from_str(arguments).unwrap();
        let text = format!("Wait <tool… é {}\n{}", written("f", &value), written("g-2", &json!({})));
        for cut in 1..text.len() {
            let (shown, calls) = read(&text, cut);
            assert_eq!(shown, "Wait <tool… é ", "{cut}");
            assert_eq!(calls.len(), 2);
            assert_eq!((calls[0].0.as_str(), calls[1].0.as_str()), ("f", "g-2"));
            assert_eq!(serde_json::from_str::<Value>(&calls[0].1).unwrap(), value);
            assert_eq!(calls[1].1, "{}");
        }
    }

    #[test]
    fn text_that_only_begins_like_a_call_is_text() {
        for cut in 1..12 {
            assert_eq!(read("a <tool_cal", cut), ("a <tool_cal".to_owned(), vec![]));
            assert_eq!(read("<tool_calls> \n", cut), ("<tool_calls> \n".to_owned(), vec![]));
        }
    }

    fn tools(choice: Choice, parallel: bool) -> Tools {
        let schema = json!({ "type": "object", "properties": { "n": { "$ref": "#/$defs/n" } }, "required": ["n"],
            "additionalProperties": false, "$defs": { "n": { "type": "integer" } } });
        let tool = |name: &str| Tool {
            name: name.to_owned(),
            description: None,
            parameters: schema.as_object().unwrap().clone(),
        };
        Tools { list: vec![tool("f"), tool("g")], choice, parallel }
    }

    /// Whether a model may write `text`, and may end after it.
    async fn allows(tools: &Tools, answer: Option<Value>, text: &str) -> (bool, bool) {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("../zamba/tests/data/tokenizers/byte_level");
        let tokenizer = zamba::tokenizer::Tokenizer::from_dir(&folder).unwrap();
        let grammars = crate::grammar::Grammars::new(&tokenizer, tokenizer.eos_ids()).unwrap();
        let rule = grammars.compile(tools.grammar(answer).unwrap()).await.unwrap();
        let mut sequence = rule.begin();
        for id in tokenizer.encode(text, false).unwrap() {
            if sequence.accept(id).is_err() {
                return (false, false);
            }
        }
        let mut logits = vec![0.0; tokenizer.max_id() as usize + 1];
        let ends = sequence.finished()
            || sequence.mask(&mut logits).is_ok() && logits[tokenizer.eos_ids()[0] as usize] == 0.0;
        (true, ends)
    }

    #[tokio::test]
    async fn grammars_allow_whole_calls_and_nothing_like_them() {
        let one = |name: &str| written(name, &json!({ "n": 1 }));
        let (f, g) = (one("f"), one("g"));
        let whole = (true, true);
        let none = (false, false);
        let auto = tools(Choice::Auto, true);
        assert_eq!(allows(&auto, None, "Hi <tool_cal there").await, whole);
        assert_eq!(allows(&auto, None, &format!("Hi {f}")).await, whole);
        assert_eq!(allows(&auto, None, &format!("{f}\n{g}")).await, whole);
        assert_eq!(allows(&auto, None, &f[..f.len() - 1]).await, (true, false));
        assert_eq!(allows(&auto, None, "<tool_call>\n{\"name\": \"h\"").await, none);
        assert_eq!(allows(&auto, None, &f.replace('1', "\"x\"")).await, none);
        assert_eq!(allows(&tools(Choice::Auto, false), None, &format!("{f}\n{g}")).await, none);
        let required = tools(Choice::Required, true);
        assert_eq!(allows(&required, None, "Hi").await, none);
        assert_eq!(allows(&required, None, &g).await, whole);
        let named = tools(Choice::Named(1), true);
        assert_eq!(allows(&named, None, &f).await, none);
        assert_eq!(allows(&named, None, &g).await, whole);
        let schema = json!({ "const": "yes" });
        assert_eq!(allows(&auto, Some(schema.clone()), "\"yes\"").await, whole);
        assert_eq!(allows(&auto, Some(schema.clone()), &f).await, whole);
        assert_eq!(allows(&auto, Some(schema), "Hi").await, none);
    }
}
