//! Chat templates: from messages to the text that a chat model was trained on.
//!
//! Templates come with a checkpoint, so they are other people's programs. They run in `minijinja` without files,
//! environment or clock, with a budget of instructions and memory (fuel) and a cap on the output, and see nothing but the
//! messages. The environment is that of `transformers` 5.23 (`utils/chat_template_utils.py`): `trim_blocks` and
//! `lstrip_blocks`, loop controls, `raise_exception`, a `tojson` that writes as Python's `json.dumps` does, Python's methods
//! on strings, lists and dictionaries, and `{% generation %}` blocks, which only mark text.

mod clock;
mod json;

use std::io;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

pub use clock::CivilTime;

use crate::tokenizer::{Settings, TokenizerError, read_json_object, read_text};

/// Instructions of one rendering; creating data costs too, about one per 64 bytes, so memory stays near 64 MB.
///
/// One gap is known: `minijinja` 3.1 charges nothing for adding lists to each other, so a template that doubles a list some
/// thirty times can still exhaust memory. Published templates do not add lists; use templates of strangers with that in mind.
const FUEL: u64 = 1_000_000;

/// Longest rendered text, in bytes.
const MAX_OUTPUT: usize = 4 << 20;

/// Longest template, in bytes. The longest published ones have about 20 kB.
const MAX_TEMPLATE: usize = 1 << 20;

/// Name of the template inside the engine. Without a file ending nothing is escaped for HTML.
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of `role` with the text `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Why a chat template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] TokenizerError),
    /// `chat_template` is neither text nor a list of named texts.
    #[error(
        "chat_template is neither a string nor a list of objects with name and template; correct tokenizer_config.json"
    )]
    Form,
    /// Several templates, none of them the default.
    #[error("chat_template has no template named default, only {names}; name one of them default")]
    NoDefault {
        /// The names, with commas between.
        names: String,
    },
    /// The template is longer than any real one.
    #[error("chat template has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The template does not parse.
    #[error("chat template, line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// There is no message to render.
    #[error("a conversation needs at least one message")]
    NoMessages,
    /// The template itself refused the messages by `raise_exception`.
    #[error("chat template refuses the messages: {message}")]
    Raised {
        /// The template's words.
        message: String,
    },
    /// The template ran too long or made too much data.
    #[error("chat template needs more than its budget of {FUEL} instructions; it may be damaged or hostile")]
    OutOfFuel,
    /// The rendered text is too long.
    #[error("chat template gives more than {MAX_OUTPUT} bytes; shorten the conversation")]
    OutputTooLarge,
    /// The template failed.
    #[error("chat template, line {line}: {message}")]
    Render {
        /// Line, from 1; 0 if unknown.
        line: usize,
        /// What went wrong.
        message: String,
    },
}

/// A chat template, parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    /// `bos_token` and the other named special tokens, which templates write out.
    special: Vec<(String, String)>,
}

impl ChatTemplate {
    /// The chat template of the folder `dir`: `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json` (of
    /// several the one named `default`). None if the folder has none.
    ///
    /// # Errors
    /// If a file is unreadable, or the template too long or not a template.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TemplateError> {
        let source = match read_text(&dir.join("chat_template.jinja"))? {
            Some(text) => text,
            None => {
                let config = read_json_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
                match config_template(&config)? {
                    Some(text) => text,
                    None => return Ok(None),
                }
            }
        };
        let tokenizer_json = read_text(&dir.join("tokenizer.json"))?.unwrap_or_default();
        let settings = Settings::read(dir, &tokenizer_json, &[])?;
        let tokens = settings.special.iter().map(|token| token.content.clone());
        Self::new(&source, settings.names.iter().cloned().zip(tokens).collect()).map(Some)
    }

    /// A template from its text; `special` are the names and texts of special tokens (`bos_token` …).
    ///
    /// # Errors
    /// If the text is too long or not a template.
    pub fn new(source: &str, special: Vec<(String, String)>) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE {
            return Err(TemplateError::TooLarge { size: source.len(), limit: MAX_TEMPLATE });
        }
        let mut environment = Environment::new();
        // Both options are constants that the builder accepts.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_debug(false);
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(explain)?;
        Ok(Self { source: source.to_owned(), environment, special })
    }

    /// Gives the template a clock: `strftime_now` then exists and formats `now`. Without it templates that look for the
    /// function take their fixed date, and a rendering depends on the messages alone.
    pub fn set_now(&mut self, now: CivilTime) {
        self.environment.add_function("strftime_now", move |format: String| {
            now.format(&format).map_err(|what| Error::new(ErrorKind::InvalidOperation, what))
        });
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says something about tools. One that does not would leave them out without a word.
    pub fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant's next words begin.
    ///
    /// The template writes BOS itself if the model wants it, so encode the text without adding special tokens.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] if the template refuses the messages; others if it fails or exceeds its budget.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let turns = messages.iter().map(|message| {
            Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        });
        self.render_values(turns.collect(), Value::from(()), add_generation_prompt)
    }

    /// As [`ChatTemplate::render`], for messages that are more than a role and a text: objects in the form that
    /// `apply_chat_template` of `transformers` takes, with `tool_calls`, `tool_call_id` and `name`; and `tools`, the
    /// functions that the model may call, in the same form.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_json(
        &self,
        messages: &[Json],
        tools: Option<&[Json]>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let turns = messages.iter().map(json::value).collect();
        let tools = tools.map(|tools| tools.iter().map(json::value).collect::<Vec<_>>());
        let tools = tools.map_or_else(|| Value::from(()), Value::from);
        self.render_values(turns, tools, add_generation_prompt)
    }

    fn render_values(
        &self,
        turns: Vec<Value>,
        tools: Value,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if turns.is_empty() {
            return Err(TemplateError::NoMessages);
        }
        let special = self.special.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let context = special.chain([
            ("messages", Value::from(turns)),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]);
        let mut output = Capped { text: Vec::new(), full: false };
        let template = self.environment.get_template(NAME).map_err(explain)?;
        let result = template.render_captured_to(Value::from_pairs(context), &mut output).map(drop);
        if output.full {
            return Err(TemplateError::OutputTooLarge);
        }
        result.map_err(explain)?;
        // The engine writes whole strings, so the bytes are UTF-8.
        Ok(String::from_utf8_lossy(&output.text).into_owned())
    }
}

/// `chat_template` of `tokenizer_config.json`.
fn config_template(config: &Map<String, Json>) -> Result<Option<String>, TemplateError> {
    let list = match config.get("chat_template") {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(text)) => return Ok(Some(text.clone())),
        Some(Json::Array(list)) => list,
        Some(_) => return Err(TemplateError::Form),
    };
    let mut names = Vec::new();
    for entry in list {
        let text = |key: &str| entry.get(key).and_then(Json::as_str).ok_or(TemplateError::Form);
        let (name, template) = (text("name")?, text("template")?);
        if name == "default" {
            return Ok(Some(template.to_owned()));
        }
        names.push(name);
    }
    if names.is_empty() { Ok(None) } else { Err(TemplateError::NoDefault { names: names.join(", ") }) }
}

/// Carries the template's own words through the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// Sorts the engine's errors.
fn explain(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref::<Raised>() {
            return TemplateError::Raised { message: message.clone() };
        }
        if inner.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel;
        }
        cause = inner.source();
    }
    let line = error.line().unwrap_or(0);
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.kind() {
        ErrorKind::SyntaxError => TemplateError::Syntax { line, message },
        _ => TemplateError::Render { line, message },
    }
}

/// Turns `{% generation %}` and `{% endgeneration %}`, which mark the assistant's words for training masks and which the
/// engine does not know, into a plain scope.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        text.push_str(before);
        let sign = tag.len() - tag.trim_start_matches(['-', '+']).len();
        let word = tag[sign..].trim_start();
        let replaced =
            [("endgeneration", "endwith"), ("generation", "with")].into_iter().find_map(|(from, to)| {
                let end = word.strip_prefix(from)?;
                end.trim_start().trim_start_matches(['-', '+']).starts_with("%}").then_some((to, end))
            });
        match replaced {
            Some((to, end)) => {
                text.push_str(&tag[..sign]);
                text.push_str(&format!(" {to} "));
                rest = end.trim_start();
            }
            None => rest = tag,
        }
    }
    text.push_str(rest);
    text
}

/// A writer that refuses to grow beyond [`MAX_OUTPUT`].
struct Capped {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_OUTPUT {
            self.full = true;
            return Err(io::Error::other("output too large"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_generation_tags_are_replaced() {
        let cases = [
            ("{% generation %}x{% endgeneration %}", "{% with %}x{% endwith %}"),
            ("{%- generation -%}x{%-endgeneration%}", "{%- with -%}x{%- endwith %}"),
            (
                "{% if generation %}{{ generation }}{% generations %}",
                "{% if generation %}{{ generation }}{% generations %}",
            ),
            ("{% generation", "{% generation"),
            ("no tags {", "no tags {"),
        ];
        for (source, expected) in cases {
            assert_eq!(without_generation_tags(source), expected);
        }
    }
}
