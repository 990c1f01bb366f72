//! `/v1/completions`.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use zamba::Session;
use zamba_serve::Caller;
use zamba_serve::engine::Salt;

use crate::harness::{Bench, CONTEXT, alone, ids, model, plain};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn served_tokens_are_those_computed_alone() {
    let bench = Bench::shared();
    let prompt = bench.tokenizer.encode("Once upon a time", true).unwrap();
    let body = json!({"prompt": ["Once upon a time", "x"], "n": 2, "seed": 5, "max_tokens": 24, "return_token_ids": true});
    let reply = bench.ok(PATH, &body).await;
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], i);
        let prompt = if i < 2 { prompt.clone() } else { bench.tokenizer.encode("x", true).unwrap() };
        let tokens = alone(&prompt, 24, plain(1.0, 5 + (i % 2) as u64));
        assert_eq!(ids(&choice["token_ids"]), tokens);
        assert_eq!(ids(&choice["prompt_token_ids"]), prompt);
        let shown: Vec<u32> = tokens.into_iter().filter(|&id| id != 2).collect();
        assert_eq!(choice["text"], bench.tokenizer.decode(&shown, true).unwrap());
    }
    assert_eq!(reply["usage"]["prompt_tokens"], prompt.len() + 2);
    assert_eq!(reply["system_fingerprint"], "fp_test");
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let bench = Bench::shared();
    for extra in [
        json!({}),
        json!({"echo": true}),
        json!({"logprobs": 2, "echo": true}),
        json!({"n": 3, "logprobs": 0}),
    ] {
        let mut body = json!({"prompt": "Hello é", "seed": 1, "max_tokens": 12, "return_token_ids": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let whole = bench.ok(PATH, &body).await;
        body["stream_options"] = json!({"include_usage": true});
        let mut events = bench.events(PATH, body).await;
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        for choice in whole["choices"].as_array().unwrap() {
            let parts = || events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == choice["index"]);
            let text: String = parts().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(choice["text"], text);
            let tokens: Vec<u32> =
                parts().filter(|c| c["token_ids"].is_array()).flat_map(|c| ids(&c["token_ids"])).collect();
            assert_eq!(ids(&choice["token_ids"]), tokens);
            assert_eq!(parts().next_back().unwrap()["finish_reason"], choice["finish_reason"]);
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let all: Vec<Value> =
                    parts().filter_map(|c| c["logprobs"][list].as_array()).flatten().cloned().collect();
                if choice["logprobs"].is_object() {
                    assert_eq!(choice["logprobs"][list], Value::Array(all), "{list}");
                }
            }
        }
    }
}

#[tokio::test]
async fn echo_with_logprobs_scores_the_prompt() {
    let bench = Bench::shared();
    let lists: [Vec<u32>; 2] = [vec![1, 70, 71, 72, 73], vec![80, 81, 82]];
    let body = json!({"model": "tiny", "prompt": lists, "echo": true, "logprobs": 1, "max_tokens": 1,
        "temperature": 0, "seed": 1234});
    let reply = bench.ok(PATH, &body).await;
    let model = model();
    for (tokens, choice) in lists.iter().zip(reply["choices"].as_array().unwrap()) {
        let expected = Session::new(&model, CONTEXT).score(tokens, None);
        let logprobs = &choice["logprobs"];
        let got: Vec<Option<f64>> =
            logprobs["token_logprobs"].as_array().unwrap().iter().map(Value::as_f64).collect();
        assert_eq!(got.len(), tokens.len() + 1);
        let expected: Vec<Option<f64>> = expected.into_iter().map(|p| p.map(f64::from)).collect();
        assert_eq!(got[..tokens.len()], expected);
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        for (at, top) in logprobs["top_logprobs"].as_array().unwrap().iter().enumerate().skip(1) {
            let highest =
                top.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
            assert!(highest >= got[at].unwrap());
        }
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with(&bench.tokenizer.decode(tokens, true).unwrap()));
        assert_eq!(logprobs["text_offset"].as_array().unwrap().len(), tokens.len() + 1);
    }
    let body = json!({"prompt": [1, 70, 71], "echo": true, "logprobs": 1, "max_tokens": 0});
    let reply = bench.ok(PATH, &body).await;
    assert_eq!(reply["choices"][0]["text"], "CD");
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"], json!(["<s>", "C", "D"]));
    assert_eq!(reply["choices"][0]["logprobs"]["text_offset"], json!([0, 0, 1]));
    assert_eq!(reply["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn stops_biases_and_ends_are_honoured() {
    let bench = Bench::shared();
    let bias = json!({"prompt": "x", "logit_bias": {"100": 100}, "max_tokens": 4, "seed": 1});
    let reply = bench.ok(PATH, &bias).await;
    assert_eq!(reply["choices"][0]["text"], "aaaa");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let mut stopped = bias.clone();
    stopped["stop"] = json!("aaa");
    let reply = bench.ok(PATH, &stopped).await;
    assert_eq!(
        (&reply["choices"][0]["text"], &reply["choices"][0]["finish_reason"]),
        (&json!(""), &json!("stop"))
    );
    let mut ended = bias.clone();
    ended["stop_token_ids"] = json!([100]);
    assert_eq!(bench.ok(PATH, &ended).await["usage"]["completion_tokens"], 1);
    let end = json!({"prompt": "x", "logit_bias": {"2": 100}, "max_tokens": 4});
    assert_eq!(bench.ok(PATH, &end).await["choices"][0]["finish_reason"], "stop");
    let mut ignored = end.clone();
    ignored["ignore_eos"] = true.into();
    let reply = bench.ok(PATH, &ignored).await;
    assert_eq!(reply["usage"]["completion_tokens"], 4);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let bench = Bench::shared();
    for (body, param) in [
        (json!({"prompt": "x", "suffix": "y"}), "suffix"),
        (json!({"prompt": "x", "best_of": 2}), "best_of"),
        (json!({"prompt": "x", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "x", "stream_options": {}}), "stream_options"),
        (json!({"prompt": "x", "store": true}), "store"),
        (json!({"prompt": "x", "min_tokens": 3}), "min_tokens"),
        (json!({"prompt": "x", "logit_bias": {"300": 1}}), "logit_bias"),
        (json!({"prompt": "x", "temperature": 2.5}), "temperature"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[1], []]}), "prompt[1]"),
        (json!({"prompt": [[1], [300]]}), "prompt[1]"),
        (json!({"prompt": [1.5]}), "prompt"),
        (json!({"prompt": "x", "n": 17}), "n"),
        (json!({}), "prompt"),
    ] {
        assert_eq!(bench.refused(PATH, &body, 400).await, param, "{body}");
    }
    assert_eq!(bench.refused(PATH, &json!({"prompt": "x", "model": "other"}), 404).await, "model");
    let long = json!({"prompt": vec![5; CONTEXT]});
    let reply = bench.post(PATH, long.to_string()).await;
    let error: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!((reply.status.as_u16(), &error["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[tokio::test]
async fn a_model_without_tokenizer_speaks_in_tokens() {
    let bench = Bench::with(Default::default(), Default::default(), false);
    let reply = bench
        .ok(PATH, &json!({"prompt": [1, 70, 71], "temperature": 0, "max_tokens": 5, "logprobs": 1}))
        .await;
    assert_eq!(ids(&reply["choices"][0]["token_ids"]), alone(&[1, 70, 71], 5, plain(0.0, 0)));
    assert_eq!(bench.refused(PATH, &json!({"prompt": "x"}), 400).await, "prompt");
    assert_eq!(bench.refused(PATH, &json!({"prompt": [1], "stop": "x"}), 400).await, "stop");
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    assert_eq!(bench.refused("/v1/chat/completions", &chat, 400).await, "messages");
}

#[tokio::test]
async fn cached_beginnings_are_shared_only_under_the_same_salt() {
    let bench = Bench::with(Default::default(), Default::default(), true);
    let ask = async |caller: &str, salt: Option<&str>| {
        let body = json!({"prompt": vec![77; 200], "max_tokens": 1, "temperature": 0, "cache_salt": salt});
        let caller = Caller { tenant: 1, salt: Salt(caller.into()) };
        let request = Request::post(PATH).header("content-type", "application/json").extension(caller);
        let reply = bench.send(request.body(Body::from(body.to_string())).unwrap()).await;
        let reply: Value = serde_json::from_str(&reply.text).unwrap();
        (reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(), reply["choices"].clone())
    };
    let (cold, answer) = ask("a", None).await;
    assert_eq!(cold, 0);
    assert_eq!(ask("a", None).await, (200, answer.clone()));
    // A salt of one's own does not lead to another caller's, however it is written.
    for (caller, salt) in [("b", None), ("a", Some("s")), ("", Some("a")), ("", Some("1:a:s"))] {
        assert_eq!(ask(caller, salt).await, (0, answer.clone()), "{caller} {salt:?}");
    }
    assert_eq!(ask("a", Some("s")).await.0, 200);
}
