//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::harness::{Bench, alone, ids, plain};

const PATH: &str = "/v1/chat/completions";

fn hello() -> Value {
    json!({"messages": [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
        "seed": 3, "max_completion_tokens": 20})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn served_tokens_are_those_computed_alone() {
    let bench = Bench::shared();
    let text = "<s><system>Be brief.;<user>Hello;<assistant>";
    let prompt = bench.tokenizer.encode(text, false).unwrap();
    let reply = bench.ok(PATH, &with(hello(), json!({"n": 2, "return_token_ids": true}))).await;
    assert_eq!(ids(&reply["prompt_token_ids"]), prompt);
    for (i, choice) in reply["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(ids(&choice["token_ids"]), alone(&prompt, 20, plain(1.0, 3 + i as u64)));
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!(choice["message"]["refusal"], Value::Null);
    }
    assert_eq!(reply["usage"]["prompt_tokens"], prompt.len());
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let bench = Bench::shared();
    let body = with(hello(), json!({"n": 2, "logprobs": true, "top_logprobs": 2}));
    let whole = bench.ok(PATH, &body).await;
    let mut events = bench.events(PATH, with(body, json!({"stream_options": {"include_usage": true}}))).await;
    assert_eq!(events.pop().unwrap()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    for choice in whole["choices"].as_array().unwrap() {
        let parts: Vec<&Value> =
            events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == choice["index"]).collect();
        assert_eq!(parts[0]["delta"], json!({"role": "assistant", "content": ""}));
        let text: String = parts.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
        let logprobs: Vec<Value> =
            parts.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().cloned().collect();
        assert_eq!(choice["logprobs"]["content"], Value::Array(logprobs));
        assert_eq!(parts.last().unwrap()["finish_reason"], choice["finish_reason"]);
        assert_eq!(parts.last().unwrap()["delta"], json!({}));
    }
}

#[tokio::test]
async fn json_follows_its_schema() {
    let bench = Bench::shared();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 9},
        "b": {"enum": ["x", "yé"]}}, "required": ["a", "b"], "additionalProperties": false});
    for seed in 0..6 {
        let format = json!({"type": "json_schema", "json_schema": {"name": "s", "strict": seed % 2 == 0, "schema": schema}});
        let body =
            with(hello(), json!({"response_format": format, "seed": seed, "max_completion_tokens": 400}));
        let reply = bench.ok(PATH, &body).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "stop");
        let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!((3..=9).contains(&value["a"].as_i64().unwrap()), "{value}");
        assert!(value["b"] == "x" || value["b"] == "yé", "{value}");
        assert_eq!(value.as_object().unwrap().len(), 2);
    }
    // The quote and the brace are made likely, so that the random model comes to an end.
    let bias = json!({"128": 9, "37": 6});
    let body =
        json!({"response_format": {"type": "json_object"}, "logit_bias": bias, "max_completion_tokens": 300});
    let reply = bench.ok(PATH, &with(hello(), body)).await;
    let value: Value =
        serde_json::from_str(reply["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(value.is_object());
}

fn weather() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters":
            {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
             "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

#[tokio::test]
async fn forced_calls_are_calls() {
    let bench = Bench::shared();
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [json!("required"), named.clone()] {
        let body = with(
            hello(),
            json!({"tools": weather(), "tool_choice": choice, "parallel_tool_calls": false,
            "max_completion_tokens": 400}),
        );
        let reply = bench.ok(PATH, &body).await;
        let got = &reply["choices"][0];
        assert_eq!(got["finish_reason"], "tool_calls");
        assert_eq!(got["message"]["content"], Value::Null);
        let calls = got["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        let function = &calls[0]["function"];
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        match function["name"].as_str().unwrap() {
            "get_weather" => assert!(arguments["city"] == "Rome" || arguments["city"] == "Oslo"),
            "now" => assert_eq!(arguments, json!({})),
            name => panic!("{name}"),
        }
        let events = bench.events(PATH, body).await;
        let deltas: Vec<&Value> = events
            .iter()
            .filter_map(|e| e["choices"][0]["delta"]["tool_calls"].as_array())
            .flatten()
            .collect();
        assert_eq!(deltas[0]["function"]["name"], function["name"]);
        assert!(deltas[0]["id"].as_str().unwrap().starts_with("call_"));
        let streamed: String = deltas.iter().map(|d| d["function"]["arguments"].as_str().unwrap()).collect();
        assert_eq!(function["arguments"], streamed);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn free_answers_may_hold_calls_or_none() {
    let bench = Bench::shared();
    // A model that wants to end at once says nothing, and is free to.
    let body = with(hello(), json!({"tools": weather(), "logit_bias": {"2": 100}}));
    let reply = bench.ok(PATH, &body).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["choices"][0]["message"]["content"], "");
    assert!(reply["choices"][0]["message"]["tool_calls"].is_null());
    // And one that goes on writes text.
    let body = with(hello(), json!({"tools": weather(), "logit_bias": {"100": 100}}));
    let reply = bench.ok(PATH, &body).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "a".repeat(20));
}

#[tokio::test]
async fn earlier_calls_are_told_in_the_template_s_words() {
    let bench = Bench::shared();
    let body = json!({"messages": [
        {"role": "user", "content": "w"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
            "function": {"name": "now", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"}],
        "tools": weather(), "max_tokens": 1, "return_token_ids": true});
    let reply = bench.ok(PATH, &body).await;
    let prompt = bench.tokenizer.decode(&ids(&reply["prompt_token_ids"]), false).unwrap();
    assert_eq!(
        prompt,
        "<s><user>w;<assistant>[now {\"a\": 1}];<tool>12:00;tools:get_weather now <assistant>"
    );
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let bench = Bench::shared();
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}});
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (more, param) in [
        (schema(json!({"type": "array", "uniqueItems": true, "contains": {}})), "response_format"),
        (schema(json!({"type": "string", "format": "no-such-format"})), "response_format"),
        (schema(json!({"type": "string", "pattern": "(["})), "response_format"),
        (schema(json!({"$ref": "http://example.com/x.json"})), "response_format"),
        (schema(json!({"type": "nothing"})), "response_format"),
        (schema(json!({"x-guidance": {"lenient": true}, "not": {}})), "response_format"),
        (schema(json!({"type": "string", "minLength": 5, "maxLength": 2})), "response_format"),
        (tool(json!({"name": "a b"})), "tools[0].name"),
        (tool(json!({"name": "a", "parameters": {"type": "string"}})), "tools[0].parameters.type"),
        (tool(json!({"name": "a", "parameters": {"type": "object", "not": {}}})), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tools": weather(), "tool_choice": {"type": "function", "function": {"name": "x"}}}),
            "tool_choice.function.name",
        ),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"response_format": {"type": "json_object"}, "ignore_eos": true}), "ignore_eos"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"functions": []}), "functions"),
        (json!({"audio": {}}), "audio"),
        (json!({"max_tokens": 3}), "max_completion_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "messages[0].content",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (json!({"messages": [{"role": "user", "content": "x", "foo": 1}]}), "messages[0].foo"),
    ] {
        let body = with(hello(), more);
        assert_eq!(bench.refused(PATH, &body, 400).await, param, "{body}");
    }
}

#[tokio::test]
async fn schemas_that_cost_too_much_are_refused_and_not_followed_in_part() {
    let bench = Bench::shared();
    let words: Vec<String> = (0..6000).map(|n| format!("word-{n:09}")).collect();
    let deep = (0..14).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    for schema in [
        json!({"enum": words}),
        json!({"type": "string", "pattern": "(a{1,2000}){1,2000}"}),
        json!({"type": "string", "pattern": "^(([a-z]{1,9}){1,9}){1,200}$"}),
        json!({"type": "array", "items": {"type": "string"}, "minItems": 4_000_000_000u64}),
        json!({"anyOf": (0..3000).map(|n| json!({"const": n})).collect::<Vec<_>>()}),
        deep,
    ] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
        let body = with(hello(), json!({"response_format": format, "max_completion_tokens": 2}));
        let reply = bench.post(PATH, body.to_string()).await;
        assert!(reply.status == 200 || reply.status == 400, "{} {}", reply.status, reply.text);
    }
}
