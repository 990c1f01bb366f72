//! From bytes to a request: size, form, and names of fields, before anything is done about it.

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use zamba::json::{self, JsonError};

use super::error::ApiError;
use crate::app::Limits;
use crate::media::{declared_length, is_encoded, is_json};

/// Values in one body. A tree takes twenty times the memory of its text, so bytes alone are no bound; this one leaves
/// room for as many token ids as may wait in the queue.
const MAX_VALUES: usize = 1 << 18;

/// Bytes that are decoded on the spot.
const SHORT: usize = 64 << 10;

/// Whether a body is declared to be JSON. A page of another origin cannot declare that without asking first.
pub(crate) fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_encoded(headers) || !is_json(headers) { Err(ApiError::media_type()) } else { Ok(()) }
}

/// The bytes of a body that is declared to be JSON.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Bytes, ApiError> {
    check_media_type(headers)?;
    if declared_length(headers).is_some_and(|length| length > limits.body_bytes as u64) {
        return Err(ApiError::too_large(limits.body_bytes));
    }
    let whole = http_body_util::BodyExt::collect(http_body_util::Limited::new(body, limits.body_bytes)).await;
    match whole {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::too_large(limits.body_bytes))
        }
        Err(_) => Err(ApiError::bad("the body ended before it was complete; send it again")),
    }
}

/// As [`decode`], elsewhere if the body is long, so that other connections do not wait for it.
pub(crate) async fn parse<T>(bytes: Bytes, limits: &Limits) -> Result<T, ApiError>
where
    T: DeserializeOwned + Send + 'static,
{
    if bytes.len() <= SHORT {
        return decode(&bytes, limits);
    }
    let limits = limits.clone();
    let work = tokio::task::spawn_blocking(move || decode(&bytes, &limits)).await;
    work.unwrap_or_else(|_| Err(ApiError::internal("the body could not be decoded")))
}

/// The request that a body holds. Refuses what two readers could read differently, and every field that has no meaning.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], limits: &Limits) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::bad("the body is not UTF-8 text"))?;
    let bounds = json::Limits { depth: limits.json_depth, values: MAX_VALUES };
    let value = json::parse(text, bounds).map_err(|error| match error {
        JsonError::DuplicateKey(key) => ApiError::invalid(short(&key), "this field stands in the body twice"),
        error => {
            let param = place(text, &error, limits.json_depth).and_then(|at| field_at(text, at));
            ApiError { param, ..ApiError::bad(format!("the body is {}", of_body(&error))) }
        }
    })?;
    if !value.is_object() {
        return Err(ApiError::bad("the body must be a JSON object"));
    }
    // Keeping the path of every value takes longer than decoding it, so it is done for a body that is refused.
    T::deserialize(&value).or_else(|_| {
        serde_path_to_error::deserialize(&value).map_err(|error| {
            let path = error.path().to_string();
            explain(if path == "." { "" } else { &path }, &error.into_inner().to_string())
        })
    })
}

fn of_body(error: &JsonError) -> String {
    match error {
        JsonError::TooDeep(limit) => format!("nested deeper than {limit} levels, the limit of this server"),
        JsonError::TooMany(limit) => format!("made of more than {limit} values, the limit of this server"),
        error => error.to_string(),
    }
}

/// Where in the text something is wrong, in bytes.
fn place(text: &str, error: &JsonError, depth: usize) -> Option<usize> {
    match error {
        JsonError::Syntax(message) => {
            // The parser ends its message with the place, `at line 1 column 7`.
            let (line, column) = message.rsplit_once(" at line ")?.1.split_once(" column ")?;
            let (line, column) = (line.parse::<usize>().ok()?, column.parse::<usize>().ok()?);
            let before: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
            Some(before + column)
        }
        JsonError::TooDeep(_) => Tokens::new(text).find(|token| token.depth > depth).map(|token| token.at),
        _ => None,
    }
}

/// The field of the outermost object in whose value the byte `at` lies.
fn field_at(text: &str, at: usize) -> Option<String> {
    let (mut string, mut field) = (None, None);
    for token in Tokens::new(text).take_while(|token| token.at < at) {
        match token.what {
            b'"' if token.depth == 1 => string = Some(token.at),
            b':' if token.depth == 1 => field = string,
            b',' if token.depth == 1 => field = None,
            _ => {}
        }
    }
    let name = text.get(field? + 1..)?;
    Some(short(&name[..name.find('"')?]))
}

/// Marks of a text that may be JSON: brackets, commas, colons, and the quotes that begin strings.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

struct Token {
    what: u8,
    at: usize,
    /// Brackets that are open, this one included.
    depth: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Tokens { text: text.as_bytes(), at: 0, depth: 0 }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let (at, &what) = (self.at, self.text.get(self.at)?);
            self.at += 1;
            match what {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b'"' => {
                    let mut escaped = false;
                    while let Some(&byte) = self.text.get(self.at) {
                        self.at += 1;
                        match byte {
                            _ if escaped => escaped = false,
                            b'\\' => escaped = true,
                            b'"' => break,
                            _ => {}
                        }
                    }
                }
                b',' | b':' => {}
                _ => continue,
            }
            return Some(Token { what, at, depth: self.depth });
        }
    }
}

/// Puts the library's words about a field into ours.
fn explain(path: &str, message: &str) -> ApiError {
    let named = |start: &str| message.strip_prefix(start)?.split('`').next().map(|name| join(path, name));
    if let Some(param) = named("unknown field `") {
        return ApiError::invalid(param, "this server does not know this field; leave it out");
    }
    if let Some(param) = named("missing field `") {
        return ApiError::invalid(param, "this field is required");
    }
    if path.is_empty() { ApiError::bad(message) } else { ApiError::invalid(short(path), message) }
}

/// The path of a field, whether or not `path` leads up to it already.
fn join(path: &str, name: &str) -> String {
    let whole = path == name || path.ends_with(&format!(".{name}"));
    short(&if whole {
        path.to_owned()
    } else if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    })
}

/// A name from outside, cut to a length that fits a line.
fn short(name: &str) -> String {
    name.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only decoding is looked at")]
    struct Request {
        a: u32,
        b: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only decoding is looked at")]
    struct Inner {
        c: Vec<f32>,
    }

    #[test]
    fn errors_name_the_field() {
        let param = |text: &str| {
            let error = decode::<Request>(text.as_bytes(), &Limits::default()).unwrap_err();
            assert_eq!(error.status, 400, "{text}");
            error.param.unwrap_or_default()
        };
        assert_eq!(param("{}"), "a");
        assert_eq!(param(r#"{"a":-1}"#), "a");
        assert_eq!(param(r#"{"a":1,"x":1}"#), "x");
        assert_eq!(param(r#"{"a":1,"a":1}"#), "a");
        assert_eq!(param(r#"{"a":1,"b":{"c":[1,"x"]}}"#), "b.c[1]");
        assert_eq!(param(r#"{"a":1,"b":{"c":[],"d":1}}"#), "b.d");
        assert_eq!(param(r#"{"a":1,"b":{}}"#), "b.c");
        assert_eq!(param(r#"[1]"#), "");
    }

    #[test]
    fn text_that_is_no_json_still_has_fields() {
        let param = |text: &str| {
            decode::<Request>(text.as_bytes(), &Limits::default()).unwrap_err().param.unwrap_or_default()
        };
        assert_eq!(param(r#"{"a":1e999}"#), "a");
        assert_eq!(param(r#"{"x":{"y":"}:\"{"},"a":NaN}"#), "a");
        assert_eq!(param("{\"b\":[1,\n\n2],\n\"a\":\"\\ud800\"}"), "a");
        assert_eq!(param(&format!(r#"{{"b":{}}}"#, "[".repeat(100_000))), "b");
        assert_eq!(param("{"), "");
        assert_eq!(param(""), "");
    }

    #[test]
    fn only_declared_json_is_read() {
        let check = |name: header::HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
            headers.insert(name, value.parse().unwrap());
            check_media_type(&headers).is_ok()
        };
        assert!(check(header::CONTENT_TYPE, "Application/JSON; charset=utf-8"));
        assert!(!check(header::CONTENT_TYPE, "text/plain"));
        assert!(!check(header::CONTENT_TYPE, "application/jsonp"));
        assert!(!check(header::CONTENT_ENCODING, "gzip"));
        assert!(check_media_type(&HeaderMap::new()).is_err());
    }
}
