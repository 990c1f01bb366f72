//! Completions: requests for them, and answers with their times.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Connection, Trouble, request};

/// A prompt of token ids to be continued.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens: usize,
    pub(crate) seed: u64,
    /// Requests with different salts share no cached beginning.
    pub(crate) salt: Option<String>,
}

impl Ask {
    pub(crate) fn new(prompt: Vec<u32>, tokens: usize, seed: u64) -> Self {
        Ask { prompt, tokens, seed, salt: None }
    }

    pub(crate) fn body(&self, stream: bool) -> Vec<u8> {
        let mut body = json!({
            "prompt": self.prompt, "max_tokens": self.tokens, "ignore_eos": true, "temperature": 1.0, "seed": self.seed,
            "stream": stream, "return_token_ids": true,
        });
        if let Some(salt) = &self.salt {
            body["cache_salt"] = salt.as_str().into();
        }
        if stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        body.to_string().into_bytes()
    }

    pub(crate) fn bytes(&self, stream: bool) -> Vec<u8> {
        request("POST", "/v1/completions", Some(&self.body(stream)))
    }
}

/// A streamed answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Streamed {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    /// Tokens of the prompt whose state was in the cache.
    pub(crate) cached: u64,
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

impl Streamed {
    /// Whether another answer says the same.
    pub(crate) fn same(&self, other: &Streamed) -> bool {
        self.tokens == other.tokens && self.text == other.text
    }
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Streamed),
    /// Another status than 200.
    Refused(u16, Value),
    Trouble(Trouble),
}

impl Outcome {
    pub(crate) fn answer(self) -> crate::Result<Streamed> {
        match self {
            Outcome::Answer(answer) => Ok(answer),
            Outcome::Refused(status, body) => Err(format!("the server answers {status}: {body}")),
            Outcome::Trouble(trouble) => Err(trouble.to_string()),
        }
    }
}

/// Asks on a connection of its own and reads the stream to its end.
pub(crate) async fn stream(to: SocketAddr, ask: &Ask) -> Outcome {
    let mut connection = match Connection::open(to).await {
        Ok(connection) => connection,
        Err(trouble) => return Outcome::Trouble(trouble),
    };
    stream_on(&mut connection, ask).await
}

/// As [`stream`], on a connection that is there.
pub(crate) async fn stream_on(connection: &mut Connection, ask: &Ask) -> Outcome {
    match read(connection, ask).await {
        Ok(outcome) => outcome,
        Err(trouble) => Outcome::Trouble(trouble),
    }
}

async fn read(connection: &mut Connection, ask: &Ask) -> Result<Outcome, Trouble> {
    // Writing the request down is the client's own time.
    let bytes = ask.bytes(true);
    let begun = Instant::now();
    connection.send(&bytes).await?;
    let head = connection.head().await?;
    if head.status != 200 {
        let body = serde_json::from_slice(&connection.body().await?).unwrap_or_default();
        return Ok(Outcome::Refused(head.status, body));
    }
    let mut answer = Streamed::default();
    while let Some(data) = connection.event().await? {
        // And so is reading what has arrived.
        let arrived = begun.elapsed();
        if data == "[DONE]" {
            // The end of the body too, so that the connection can be used again.
            while connection.body_part().await?.is_some() {}
            return Ok(Outcome::Answer(answer));
        }
        let chunk: Value = serde_json::from_str(&data).map_err(|e| Trouble::Nonsense(e.to_string()))?;
        if !chunk["error"].is_null() {
            return Ok(Outcome::Refused(200, chunk));
        }
        take(&mut answer, &chunk, arrived);
    }
    Err(Trouble::Cut("a stream without [DONE]".to_owned()))
}

fn take(answer: &mut Streamed, chunk: &Value, arrived: Duration) {
    let choice = &chunk["choices"][0];
    let ids = choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    let before = answer.tokens.len();
    answer.tokens.extend(ids.map(|id| id as u32));
    answer.text.push_str(choice["text"].as_str().unwrap_or_default());
    if answer.tokens.len() > before {
        answer.last = arrived;
        if before == 0 {
            answer.first = arrived;
        }
    }
    if let Some(cached) = chunk["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() {
        answer.cached = cached;
    }
}
