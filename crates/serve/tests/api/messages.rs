//! `/v1/messages`.

use serde_json::{Value, json};

use crate::harness::{Bench, alone, plain};

const PATH: &str = "/v1/messages";

fn hello() -> Value {
    json!({"model": "tiny", "max_tokens": 12, "temperature": 0, "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The events of a stream, whose names must be those of their data.
async fn events(bench: &Bench, body: Value) -> Vec<Value> {
    let reply = bench.post(PATH, with(body, json!({"stream": true})).to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let events = reply.text.split("\n\n").filter(|event| !event.is_empty());
    let event = |text: &str| {
        let (name, data) = text.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
        data
    };
    events.map(event).collect()
}

#[tokio::test]
async fn whole_and_streamed_answers_agree_with_the_other_protocol() {
    let bench = Bench::shared();
    let whole = bench.ok(PATH, &hello()).await;
    let chat = json!({"max_tokens": 12, "temperature": 0, "messages": [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"}]});
    let other = bench.ok("/v1/chat/completions", &chat).await;
    assert_eq!(whole["content"][0]["text"], other["choices"][0]["message"]["content"]);
    let usage = &whole["usage"];
    let input = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(input, other["usage"]["prompt_tokens"].as_u64().unwrap());
    let events = events(bench, hello()).await;
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(whole["content"][0]["text"], text);
    let last = &events[events.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], whole["stop_reason"]);
    assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
}

#[tokio::test]
async fn tools_are_called_in_blocks() {
    let bench = Bench::shared();
    let tools = json!([{"name": "get", "input_schema": {"type": "object", "properties": {"n": {"type": "integer",
        "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false}}]);
    let body = with(
        hello(),
        json!({"tools": tools, "tool_choice": {"type": "tool", "name": "get"}, "max_tokens": 300}),
    );
    let whole = bench.ok(PATH, &body).await;
    assert_eq!(whole["stop_reason"], "tool_use");
    let block = &whole["content"][0];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("get")));
    assert!((0..=9).contains(&block["input"]["n"].as_i64().unwrap()));
    let events = events(bench, body).await;
    let streamed: String =
        events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&streamed).unwrap(), block["input"]);
    let history = with(
        hello(),
        json!({"tools": tools, "messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "tool_use", "id": "t", "name": "get", "input": {"n": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}, {"type": "text", "text": "go"}]}]}),
    );
    bench.ok(PATH, &history).await;
}

#[tokio::test]
async fn stop_sequences_and_begun_answers() {
    let bench = Bench::shared();
    let text = bench.ok(PATH, &hello()).await["content"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(3).take(2).collect();
    let reply = bench.ok(PATH, &with(hello(), json!({"stop_sequences": [stop]}))).await;
    assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let messages = json!([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hm"}]);
    let reply = bench.ok(PATH, &with(hello(), json!({"messages": messages}))).await;
    let prompt = bench.tokenizer.encode("<s><system>Be brief.;<user>Hello;<assistant>Hm", false).unwrap();
    let tokens = alone(&prompt, 12, plain(0.0, 0));
    assert_eq!(reply["content"][0]["text"], bench.tokenizer.decode(&tokens, true).unwrap());
}

#[tokio::test]
async fn tokens_are_counted_and_errors_have_their_own_shape() {
    let bench = Bench::shared();
    let mut body = hello();
    body.as_object_mut().unwrap().retain(|key, _| key == "messages" || key == "system");
    let count = bench.ok("/v1/messages/count_tokens", &body).await;
    let tokens = bench.tokenizer.encode("<s><system>Be brief.;<user>Hello;<assistant>", false).unwrap();
    assert_eq!(count["input_tokens"], tokens.len());
    for (more, kind, status) in [
        (json!({"max_tokens": 0}), "invalid_request_error", 400),
        (json!({"model": "claude"}), "not_found_error", 404),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 2000}}), "invalid_request_error", 400),
        (json!({"container": "x"}), "invalid_request_error", 400),
        (json!({"temperature": 1.5}), "invalid_request_error", 400),
    ] {
        let reply = bench.post(PATH, with(hello(), more).to_string()).await;
        let error: Value = serde_json::from_str(&reply.text).unwrap();
        assert_eq!(reply.status, status, "{error}");
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
    }
}
