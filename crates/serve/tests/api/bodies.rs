//! Hostile bodies: at every place where a request has a value, values that do not belong there.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::Bench;

/// Values that no field takes, as text, for JSON has no form for some of them.
fn strange() -> Vec<String> {
    let mut list: Vec<String> = [
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "-1",
        "9223372036854775808",
        "18446744073709551616",
        "1.5",
        "1e308",
        "0.1e-400",
        "\"\\ud800\"",
        "\"\\udc00x\"",
        "\"\u{1}\"",
        "[[[[]]]]",
        "{\"a\":{\"a\":{}}}",
        "[null]",
        "{\"\":0}",
        "\"1\"",
        "tru",
        "01",
        "[1,]",
        "{\"k\":1,\"k\":2}",
        "\"\"",
        "true",
        "\"x\"",
    ]
    .map(str::to_owned)
    .to_vec();
    list.push(format!("{}1{}", "[".repeat(3000), "]".repeat(3000)));
    list.push(format!("\"{}\"", "a".repeat(5000)));
    list
}

fn whole() -> Vec<(&'static str, Value)> {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    vec![
        (
            "/v1/completions",
            json!({
                "prompt": "x", "model": "tiny", "max_tokens": 1, "temperature": 1, "top_p": 1, "top_k": 1, "min_p": 0,
                "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "repeat_last_n": 1,
                "logit_bias": {"5": 1}, "seed": 1, "stop": ["zzz"], "stop_token_ids": [9], "ignore_eos": false, "n": 1,
                "stream": false, "stream_options": null, "cache_salt": "s", "echo": false, "logprobs": 1, "best_of": 1,
                "suffix": null, "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
            }),
        ),
        (
            "/v1/chat/completions",
            json!({
                "messages": [{"role": "user", "content": "x", "name": "n"}], "max_completion_tokens": 1, "logprobs": true,
                "top_logprobs": 1, "response_format": {"type": "text"}, "tools": [tool], "tool_choice": "none",
                "parallel_tool_calls": true, "modalities": ["text"], "seed": 1, "functions": null,
            }),
        ),
        (
            "/v1/messages",
            json!({
                "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "system": "s", "stop_sequences": ["zzz"],
                "temperature": 1, "top_p": 1, "top_k": 1, "metadata": {"user_id": "u"}, "service_tier": "auto",
                "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "none"},
            }),
        ),
        (
            "/v1/embeddings",
            json!({"input": "x", "model": "tiny", "encoding_format": "float", "dimensions": 32}),
        ),
        ("/tokenize", json!({"prompt": "x", "add_special_tokens": true, "return_token_strs": false})),
        ("/detokenize", json!({"tokens": [1]})),
    ]
}

#[tokio::test]
async fn whatever_stands_in_a_field_is_answered_or_refused() {
    let bench = Bench::shared();
    let (mut bodies, mut refused, mut named) = (0, 0, BTreeSet::new());
    for (path, body) in whole() {
        bench.ok(path, &body).await;
        let fields: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
        for field in &fields {
            for value in strange() {
                // The value may not be JSON, so it is put into the text.
                let mut marked = body.clone();
                marked[field] = "MARK".into();
                let reply = bench.post(path, marked.to_string().replace("\"MARK\"", &value)).await;
                let short: String = value.chars().take(30).collect();
                assert!(
                    reply.status == 200 || reply.status.is_client_error(),
                    "{path} {field} {short} {}",
                    reply.text
                );
                bodies += 1;
                if reply.status != 200 {
                    refused += 1;
                    let error: Value = serde_json::from_str(&reply.text).unwrap();
                    let message = error["error"]["message"].as_str().unwrap();
                    assert!(
                        !message.is_empty() && message.len() < 2500 && !message.contains("panic"),
                        "{message}"
                    );
                    named.insert(error["error"]["param"].as_str().unwrap_or_default().to_owned());
                }
            }
            let text = body.to_string();
            let twice = format!("{},{:?}:null}}", &text[..text.len() - 1], field);
            assert_eq!(bench.post(path, twice).await.status, 400, "{path} {field} twice");
        }
        let mut more = body.clone();
        more["no_such_field"] = 1.into();
        let reply = bench.post(path, more.to_string()).await;
        assert_eq!(reply.status, 400);
        assert!(reply.text.contains("no_such_field"), "{}", reply.text);
    }
    assert!(bodies >= 500 && refused >= bodies / 2, "{bodies} {refused}");
    assert!(named.len() >= 30, "{named:?}");
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_refused() {
    let bench = Bench::shared();
    let huge = "[".repeat(1_000_000);
    let many = format!("{{\"prompt\": [{}1]}}", "1,".repeat(400_000));
    let bodies: Vec<Vec<u8>> = vec![
        vec![],
        b" ".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"x\"".to_vec(),
        b"{".to_vec(),
        b"{}{}".to_vec(),
        b"{\"prompt\": \"\xff\"}".to_vec(),
        b"\xef\xbb\xbf{\"prompt\": \"x\"}".to_vec(),
        b"{\"prompt\": \"x\"\0}".to_vec(),
        huge.into_bytes(),
        many.into_bytes(),
    ];
    for (path, _) in whole() {
        for body in &bodies {
            let reply = bench.post(path, body.clone()).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(30)]).into_owned();
            assert_eq!(reply.status, 400, "{path} {shown} {}", reply.text);
        }
    }
}
