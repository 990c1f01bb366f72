//! A line of `samples_TASK_*.jsonl`.

use serde_json::{Map, Value, json};

use super::sha256;
use crate::metric::{self, Response};
use crate::python::{self, Doc};
use crate::task::{Case, Request};

/// A document with what the model answered, under one filter.
pub(crate) struct Sample {
    pub(crate) case: Case,
    pub(crate) doc: Doc,
    pub(crate) responses: Vec<Response>,
    pub(crate) filtered: Vec<Response>,
    pub(crate) filter: String,
    pub(crate) values: Vec<metric::Value>,
}

impl Sample {
    pub(super) fn line(&self, metrics: &[&str], generation: Option<&Value>) -> Map<String, Value> {
        let Sample { case, doc, .. } = self;
        let arguments: Map<String, Value> = case
            .requests
            .iter()
            .enumerate()
            .map(|(i, r)| (format!("gen_args_{i}"), arguments(r, generation)))
            .collect();
        let prompt = match &case.requests[0] {
            Request::Loglikelihood { context, .. } | Request::Generate { context, .. } => context,
            Request::Rolling { text } => text,
        };
        let target = python::str(&case.target);
        let line = json!({
            "doc_id": case.index,
            "doc": doc,
            "target": target,
            "arguments": arguments,
            "resps": self.responses.iter().map(|r| json!([response(r)])).collect::<Vec<_>>(),
            "filtered_resps": self.filtered.iter().map(response).collect::<Vec<_>>(),
            "filter": self.filter,
            "metrics": metrics,
            "doc_hash": sha256(&python::json(&Value::Object(doc.clone()), Some(2))),
            "prompt_hash": sha256(prompt),
            "target_hash": sha256(&target),
        });
        let Value::Object(mut line) = line else { return Map::new() };
        for (name, value) in metrics.iter().zip(&self.values) {
            let value = match value {
                metric::Value::Flag(flag) => json!(u8::from(*flag)),
                metric::Value::Number(x) => json!(x),
                metric::Value::Weighted(x, n) => json!([x, n]),
            };
            line.insert((*name).to_owned(), value);
        }
        line
    }
}

fn arguments(request: &Request, generation: Option<&Value>) -> Value {
    match request {
        Request::Loglikelihood { context, continuation } => json!({"arg_0": context, "arg_1": continuation}),
        Request::Rolling { text } => json!({ "arg_0": text }),
        Request::Generate { context, until, max_tokens } => {
            let default = json!({
                "temperature": 0.0, "do_sample": false, "max_gen_toks": max_tokens, "until": until,
            });
            json!({"arg_0": context, "arg_1": generation.unwrap_or(&default)})
        }
    }
}

/// A response as text, as lm-evaluation-harness writes it.
fn response(response: &Response) -> Value {
    match response {
        Response::Score(score) => {
            let greedy = if score.greedy { "True" } else { "False" };
            json!([python::float(score.loglikelihood), greedy])
        }
        Response::Rolling(ll) => python::float(*ll).into(),
        Response::Text(text) => text.as_str().into(),
    }
}
