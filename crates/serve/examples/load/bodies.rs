//! Bodies that no client should send. All are answered, none with an error of the server's, and it goes on.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Result;
use crate::args::Bodies;
use crate::http::{Connection, Trouble, request};
use crate::numbers::{Draws, ms, quantile};
use crate::server::Server;

/// One body and where it goes.
struct Hostile {
    path: &'static str,
    body: Vec<u8>,
    /// Whether anything but a refusal is wrong.
    refused: bool,
}

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

pub(crate) async fn run(server: &Server, load: &Bodies) -> Result<Value> {
    let all = all(server.seed, load.count);
    let (mut statuses, mut wrong, mut times) = (BTreeMap::<String, usize>::new(), vec![], vec![]);
    let mut unshaped = 0;
    for hostile in &all {
        let (what, shaped, took) = send(server, hostile).await;
        let refused = what.starts_with('4');
        if what.starts_with('5') || what.len() != 3 || (hostile.refused && !refused) {
            let start = String::from_utf8_lossy(&hostile.body[..hostile.body.len().min(160)]).into_owned();
            wrong.push(format!("{} {what}: {start}", hostile.path));
        }
        if refused {
            times.push(took);
            unshaped += usize::from(!shaped);
        }
        *statuses.entry(what).or_default() += 1;
    }
    let under_way = server.wait_until_idle(std::time::Duration::from_secs(60)).await.is_ok();
    Ok(json!({
        "bodies": all.len(),
        "replies": statuses,
        "wrong": wrong.len(),
        "first_wrong": wrong.iter().take(10).collect::<Vec<_>>(),
        "refusals_without_an_error_object": unshaped,
        "refusal_p50_ms": quantile(&times, 0.5),
        "refusal_p99_ms": quantile(&times, 0.99),
        "idle_afterwards": under_way,
    }))
}

/// Status or trouble, whether the body is an error as OpenAI shapes it, and how long it took.
async fn send(server: &Server, hostile: &Hostile) -> (String, bool, f64) {
    let begun = Instant::now();
    let talk = async {
        let mut connection = Connection::open(server.address).await?;
        // A server that has seen enough of a body may answer and close before its end.
        let sent = connection.send(&request("POST", hostile.path, Some(&hostile.body))).await;
        let reply = connection.reply().await;
        match (sent, reply) {
            (_, Ok(reply)) => Ok(reply),
            (Err(trouble), _) | (Ok(()), Err(trouble)) => Err(trouble),
        }
    };
    let reply: std::result::Result<_, Trouble> = talk.await;
    let took = ms(begun.elapsed());
    match reply {
        Ok(reply) => {
            let error = reply.json();
            let shaped = error["error"]["message"].is_string() && error["error"]["type"].is_string();
            (reply.head.status.to_string(), shaped, took)
        }
        Err(trouble) => (trouble.to_string(), false, took),
    }
}

fn all(seed: u64, least: usize) -> Vec<Hostile> {
    let mut all = vec![];
    raw(&mut all);
    nesting(&mut all);
    for (path, base) in [(COMPLETIONS, completion()), (CHAT, chat())] {
        fields(&mut all, path, &base);
        cuts(&mut all, path, &base);
    }
    prompts(&mut all);
    let mut draws = Draws::new(seed, 8_000_000);
    while all.len() < least {
        let path = [COMPLETIONS, CHAT][draws.below(2)];
        let length = draws.below(300);
        all.push(Hostile { path, body: (0..length).map(|_| draws.next() as u8).collect(), refused: true });
    }
    all
}

fn completion() -> Value {
    json!({"prompt": [5, 6, 7], "max_tokens": 2})
}

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2})
}

fn push(all: &mut Vec<Hostile>, path: &'static str, body: impl Into<Vec<u8>>, refused: bool) {
    all.push(Hostile { path, body: body.into(), refused });
}

/// What is no JSON object, or is one in a way that readers disagree about.
fn raw(all: &mut Vec<Hostile>) {
    let texts = [
        "",
        " ",
        "null",
        "true",
        "0",
        "\"text\"",
        "[]",
        "[{}]",
        "{",
        "}",
        "{}",
        "{]",
        "{\"prompt\"}",
        "{\"prompt\":}",
        "{\"prompt\":[5],}",
        "{'prompt':[5]}",
        "{prompt:[5]}",
        "{\"prompt\":[5]} {}",
        "{\"prompt\":[5]}x",
        "{\"prompt\":[05]}",
        "{\"prompt\":[+5]}",
        "{\"prompt\":[0x5]}",
        "{\"prompt\":[5],\"prompt\":[6]}",
        "{\"prompt\":[NaN]}",
        "{\"prompt\":[Infinity]}",
        "{\"prompt\":[1e999]}",
        "{\"prompt\":\"\\ud800\"}",
        "{\"prompt\":\"\\udc00\\ud800\"}",
        "{\"prompt\":\"\\x41\"}",
        "{\"prompt\":\"\\u00\"}",
        "{\"prompt\":\"a\nb\"}",
        "{\"prompt\":[5],\"\":1}",
        "{\"prompt\":[5],\"__proto__\":{}}",
        "{\"prompt\":[5]/**/}",
        "\u{feff}{\"prompt\":[5]}",
        "{\"prompt\":[5],\"max_tokens\":1,\"max_tokens\":2}",
    ];
    for text in texts {
        push(all, COMPLETIONS, text, true);
        push(all, CHAT, text, true);
    }
    for bytes in [
        &b"{\"prompt\":\"\xff\"}"[..],
        b"\xff\xfe{\x00}\x00",
        b"{\"prompt\":\"\xed\xa0\x80\"}",
        b"{\"prompt\":\"\xc0\xaf\"}",
        b"\x00",
        b"\x1f\x8b\x08\x00",
    ] {
        push(all, COMPLETIONS, bytes, true);
        push(all, CHAT, bytes, true);
    }
    let long = format!("{{\"prompt\":\"{}\"}}", "a".repeat((2 << 20) + 1));
    push(all, COMPLETIONS, long, true);
    push(all, CHAT, vec![b' '; (2 << 20) + 1], true);
}

fn nesting(all: &mut Vec<Hostile>) {
    for depth in [100, 1000, 100_000, 1_000_000] {
        push(all, COMPLETIONS, format!("{{\"prompt\":{}{}}}", "[".repeat(depth), "]".repeat(depth)), true);
        push(all, COMPLETIONS, "[".repeat(depth), true);
        push(all, COMPLETIONS, "{\"a\":".repeat(depth), true);
        push(all, CHAT, format!("{{\"messages\":{}", "[{\"content\":".repeat(depth / 10)), true);
    }
}

/// Every field with values that it cannot have.
fn fields(all: &mut Vec<Hostile>, path: &'static str, base: &Value) {
    let numbers = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "n",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
    ];
    let never = [
        "\"1\"",
        "[]",
        "{}",
        "true",
        "[1]",
        "1e999",
        "-1e999",
        "nan",
        "\"NaN\"",
        "18446744073709551616",
        "1e30",
    ];
    // Some of these may be right for some fields.
    let odd =
        ["-1", "-9223372036854775809", "9223372036854775807", "1.5", "-0.0", "1e-400", "4294967296", "1e9"];
    let objects = ["1", "true", "\"x\"", "[[[]]]", "{\"a\":{\"b\":[]}}", "[null]"];
    let others =
        ["stop", "logit_bias", "stream_options", "stream", "model", "user", "metadata", "cache_salt"];
    for name in numbers {
        never.iter().for_each(|value| push(all, path, with(base, name, value), true));
        odd.iter().for_each(|value| push(all, path, with(base, name, value), false));
    }
    for name in others {
        objects.iter().for_each(|value| push(all, path, with(base, name, value), false));
    }
    for name in ["suffix", "no_such_field", "Temperature", "temperature ", "prompt_embeds", "audio"] {
        push(all, path, with(base, name, "1"), true);
    }
    let many: Vec<String> = (0..100_000).map(|i| format!("\"{i}\":1")).collect();
    push(all, path, with(base, "logit_bias", &format!("{{{}}}", many.join(","))), true);
    let many: Vec<String> = (0..100_000).map(|i| format!("\"{i}\"")).collect();
    push(all, path, with(base, "stop", &format!("[{}]", many.join(","))), true);
    for bias in [
        "{\"-1\":1}",
        "{\"a\":1}",
        "{\"5\":\"1\"}",
        "{\"5\":1e999}",
        "{\"99999999\":1}",
        "{\"5\":101}",
        "{\"1.0\":1}",
    ] {
        push(all, path, with(base, "logit_bias", bias), true);
    }
    for value in [
        "{\"type\":\"json_schema\"}",
        "{\"type\":\"x\"}",
        "{}",
        "\"json\"",
        "{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\",\"schema\":{\"type\":\"nonsense\"}}}",
    ] {
        push(all, CHAT, with(&chat(), "response_format", value), true);
    }
    for value in [
        "1",
        "[1]",
        "[{}]",
        "[{\"type\":\"function\"}]",
        "[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]",
    ] {
        push(all, CHAT, with(&chat(), "tools", value), true);
    }
}

/// The base with one field more, whose value is given as it is written.
fn with(base: &Value, name: &str, value: &str) -> String {
    let mut base = base.clone();
    if let Some(fields) = base.as_object_mut() {
        fields.remove(name);
    }
    let text = base.to_string();
    format!("{},{}:{value}}}", &text[..text.len() - 1], json!(name))
}

/// A right body that ends too early, at every byte.
fn cuts(all: &mut Vec<Hostile>, path: &'static str, base: &Value) {
    let text = base.to_string();
    for at in 1..text.len() {
        push(all, path, &text.as_bytes()[..at], true);
    }
}

fn prompts(all: &mut Vec<Hostile>) {
    let bad = [
        "null",
        "1",
        "true",
        "{}",
        "[]",
        "[[]]",
        "[\"a\",5]",
        "[5,\"a\"]",
        "[[5],6]",
        "[-1]",
        "[1.5]",
        "[4294967296]",
        "[99999999]",
        "[null]",
        "[[5],[99999999]]",
        "[true]",
        "[{}]",
    ];
    for prompt in bad {
        push(all, COMPLETIONS, format!("{{\"prompt\":{prompt}}}"), true);
    }
    let long = vec!["5"; 200_000].join(",");
    push(all, COMPLETIONS, format!("{{\"prompt\":[{long}]}}"), true);
    let many = vec!["[5]"; 5000].join(",");
    push(all, COMPLETIONS, format!("{{\"prompt\":[{many}]}}"), true);
    let messages = [
        "null",
        "[]",
        "{}",
        "\"a\"",
        "[1]",
        "[{}]",
        "[{\"role\":\"user\"}]",
        "[{\"content\":\"a\"}]",
        "[{\"role\":1,\"content\":\"a\"}]",
        "[{\"role\":\"nobody\",\"content\":\"a\"}]",
        "[{\"role\":\"user\",\"content\":5}]",
        "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}]}]",
        "[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]",
    ];
    for messages in messages {
        push(all, CHAT, format!("{{\"messages\":{messages}}}"), true);
    }
    let many = vec!["{\"role\":\"user\",\"content\":\"a\"}"; 5000].join(",");
    push(all, CHAT, format!("{{\"messages\":[{many}]}}"), true);
}
