//! Everything that is not text: vectors, tokens, models, methods, load.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use zamba_serve::{Limits, Settings};

use crate::harness::{Bench, CONTEXT, ids};

#[tokio::test]
async fn vectors_are_means_of_hidden_states_and_the_same_in_both_forms() {
    let bench = Bench::shared();
    let body = json!({"input": ["Hello", "x"], "model": "tiny"});
    let numbers = bench.ok("/v1/embeddings", &body).await;
    let mut body = body;
    body["encoding_format"] = "base64".into();
    let bytes = bench.ok("/v1/embeddings", &body).await;
    for at in 0..2 {
        let vector: Vec<f64> = numbers["data"][at]["embedding"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect();
        assert_eq!(vector.len(), 32);
        assert!(vector.iter().any(|x| x.abs() > 1e-3));
        use base64::Engine as _;
        let encoded = bytes["data"][at]["embedding"].as_str().unwrap();
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        let decoded: Vec<f32> =
            decoded.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        assert_eq!(decoded, vector.iter().map(|x| *x as f32).collect::<Vec<f32>>());
    }
    // Alone or in a batch, as text or as tokens.
    let tokens = bench.tokenizer.encode("x", true).unwrap();
    let alone = bench.ok("/v1/embeddings", &json!({"input": tokens, "dimensions": 32})).await;
    assert_eq!(alone["data"][0]["embedding"], numbers["data"][1]["embedding"]);
    assert_eq!(numbers["usage"]["prompt_tokens"], 6 + 2);
    for (body, param) in [
        (json!({"input": "x", "dimensions": 8}), "dimensions"),
        (json!({"input": [""], "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": []}), "input"),
        (json!({"input": [[1], [999]]}), "input[1]"),
    ] {
        assert_eq!(bench.refused("/v1/embeddings", &body, 400).await, param);
    }
}

#[tokio::test]
async fn tokens_go_there_and_back() {
    let bench = Bench::shared();
    let body = json!({"prompt": "Hé", "return_token_strs": true});
    let reply = bench.ok("/tokenize", &body).await;
    let tokens = bench.tokenizer.encode("Hé", true).unwrap();
    assert_eq!(ids(&reply["tokens"]), tokens);
    assert_eq!((&reply["count"], &reply["max_model_len"]), (&json!(4), &json!(CONTEXT)));
    assert_eq!(reply["token_strs"][0], "<s>");
    let back = bench.ok("/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(back["prompt"], "<s>Hé");
    let bare = bench.ok("/tokenize", &json!({"prompt": "Hé", "add_special_tokens": false})).await;
    assert_eq!(ids(&bare["tokens"]), tokens[1..]);
    let chat = bench.ok("/tokenize", &json!({"messages": [{"role": "user", "content": "x"}]})).await;
    assert_eq!(ids(&chat["tokens"]), bench.tokenizer.encode("<s><user>x;<assistant>", false).unwrap());
    let info: Value = serde_json::from_str(&bench.get("/tokenizer_info").await.text).unwrap();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert!(info["chat_template"].as_str().unwrap().contains("messages"));
    assert_eq!(bench.refused("/tokenize", &json!({}), 400).await, "prompt");
    assert_eq!(bench.refused("/detokenize", &json!({"tokens": [1, 400]}), 400).await, "tokens");
}

#[tokio::test]
async fn models_are_listed_by_name() {
    let bench = Bench::shared();
    let list: Value = serde_json::from_str(&bench.get("/v1/models").await.text).unwrap();
    assert_eq!(
        (&list["data"][0]["id"], &list["data"][0]["max_model_len"]),
        (&json!("tiny"), &json!(CONTEXT))
    );
    assert_eq!(bench.get("/v1/models/tiny").await.status, 200);
    assert_eq!(bench.get("/v1/models/other").await.status, 404);
}

#[tokio::test]
async fn methods_and_media_types_that_do_not_belong_are_named() {
    let bench = Bench::shared();
    let reply = bench.get("/v1/completions").await;
    assert_eq!((reply.status.as_u16(), &reply.headers["allow"]), (405, &"POST".parse().unwrap()));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let request =
            Request::post("/v1/completions").header("content-type", kind).body(Body::from("{}")).unwrap();
        assert_eq!(bench.send(request).await.status, 415);
    }
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(Limits::default().body_bytes));
    assert_eq!(bench.post("/v1/completions", large).await.status, 413);
}

#[tokio::test]
async fn the_document_names_every_path_and_its_references_lead_somewhere() {
    let bench = Bench::shared();
    let text = bench.get("/openapi.json").await.text;
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["paths"].as_object().unwrap().len(), 16);
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let request = &document["components"]["schemas"]["CompletionRequest"];
    assert_eq!(request["required"], json!(["prompt"]));
    assert_eq!(request["additionalProperties"], json!(false));
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let settings = Settings { slots: 1, max_queue: 1, ..Settings::default() };
    let bench = Bench::with(settings, Limits::default(), true);
    let held: Vec<_> = (0..2).map(|_| bench.handle.admit().unwrap()).collect();
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/messages"] {
        // Not even the body is looked at.
        let reply = bench.post(path, "nonsense").await;
        assert_eq!(reply.status, 429);
        let header = |name| reply.headers[name].to_str().unwrap().parse::<u64>().unwrap();
        assert!(header("retry-after-ms") >= 1000 && header("retry-after") * 1000 >= header("retry-after-ms"));
    }
    drop(held);
    assert_eq!(bench.refused("/v1/completions", &json!({"prompt": "x", "n": 3}), 400).await, "");
    let held = bench.handle.admit().unwrap();
    assert_eq!(bench.refused("/v1/completions", &json!({"prompt": "x", "n": 2}), 429).await, "");
    drop(held);
    assert_eq!(bench.handle.in_flight(), 0);
    bench.handle.close();
    let reply = bench.post("/v1/completions", r#"{"prompt": "x"}"#).await;
    assert_eq!(reply.status, 503);
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn whoever_goes_away_frees_the_slot() {
    use tower::ServiceExt;
    let bench = Bench::with(Settings { slots: 1, ..Settings::default() }, Limits::default(), true);
    for stream in [true, false] {
        let body =
            json!({"prompt": "x", "max_tokens": 500, "ignore_eos": true, "stream": stream}).to_string();
        let request = Request::post("/v1/completions").header("content-type", "application/json");
        let answer = bench.router.clone().oneshot(request.body(Body::from(body)).unwrap());
        match stream {
            true => drop(answer.await.unwrap()),
            // The handler itself is dropped where it waits.
            false => drop(tokio::time::timeout(std::time::Duration::from_millis(5), answer).await),
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while bench.handle.in_flight() > 0 {
            assert!(std::time::Instant::now() < deadline, "the slot is not free");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_broken_off_says_so() {
    let bench = Bench::with(Settings::default(), Limits::default(), true);
    for (path, more, mark) in [
        ("/v1/completions", json!({"prompt": "x"}), "data: {\"error\":"),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": "x"}]}), "event: error\n"),
    ] {
        let mut body = more;
        body["stream"] = true.into();
        body["max_tokens"] = 400.into();
        body["ignore_eos"] = true.into();
        if path == "/v1/messages" {
            body.as_object_mut().unwrap().remove("ignore_eos");
        }
        // The engine has ended before it could answer.
        bench.handle.stop();
        let reply = bench.post(path, body.to_string()).await;
        if reply.status == 200 {
            assert!(reply.text.contains(mark) && !reply.text.contains("[DONE]"), "{}", reply.text);
        } else {
            assert_eq!(reply.status, 503);
        }
    }
}
