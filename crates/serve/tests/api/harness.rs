//! A small model behind the router.

#[path = "../../../zamba/tests/common/byte_model.rs"]
mod byte_model;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use zamba::sampler::{Sampler, SamplerConfig};
use zamba::template::ChatTemplate;
use zamba::tokenizer::Tokenizer;
use zamba::{Session, Zamba, ZambaConfig};
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{Device, Dtype};
use zamba_serve::{App, Engine, Handle, Limits, Settings};

pub(crate) const CONTEXT: usize = 512;
pub(crate) const END: u32 = 2;

/// In ChatML's form, with the words that Hermes models use for tools.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
    {% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %};\
    {% endfor %}{% if tools %}tools:{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

/// The router, and what stands behind it for those who compute alone.
pub(crate) struct Bench {
    pub(crate) router: Router,
    pub(crate) handle: Handle,
    pub(crate) tokenizer: Tokenizer,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

fn config() -> ZambaConfig {
    let mut config = byte_model::config();
    config["max_position_embeddings"] = CONTEXT.into();
    ZambaConfig::from_json(&config.to_string()).unwrap()
}

fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), byte_model::tokenizer().to_string()).unwrap();
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string(),
    )
    .unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

pub(crate) fn model() -> Zamba {
    let device: Arc<dyn Device> = Arc::new(Cpu::with(Isa::detect(), 1));
    Zamba::random(config(), device, Dtype::F32, 7)
}

fn template() -> ChatTemplate {
    ChatTemplate::new(TEMPLATE, vec![("bos_token".into(), "<s>".into())]).unwrap()
}

impl Bench {
    /// A model with tokenizer and template. One for all tests of this file's program.
    pub(crate) fn shared() -> &'static Bench {
        static BENCH: OnceLock<Bench> = OnceLock::new();
        BENCH.get_or_init(|| Bench::with(Settings::default(), Limits::default(), true))
    }

    pub(crate) fn with(settings: Settings, limits: Limits, text: bool) -> Bench {
        let settings = Settings { context: CONTEXT, ..settings };
        let tokenizer = tokenizer();
        let known = text.then(|| tokenizer.clone());
        let (handle, _) = Engine::start(model(), known.clone(), settings).unwrap();
        let app = App {
            handle: handle.clone(),
            tokenizer: known,
            template: text.then(template),
            name: "tiny".into(),
            created: 1,
            ends: vec![END],
            limits,
            fingerprint: "fp_test".into(),
            states: None,
        };
        let router = zamba_serve::api::routes(Arc::new(app));
        Bench { router, handle, tokenizer }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Reply {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(body.into()).unwrap()).await
    }

    /// Demands success.
    pub(crate) async fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        serde_json::from_str(&reply.text).unwrap()
    }

    /// Demands a stream that ends as it should; its events but the last.
    pub(crate) async fn events(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let reply = self.post(path, body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        let mut events: Vec<&str> = reply.text.split("\n\n").filter(|e| !e.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", reply.text);
        events.iter().map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    /// Demands a refusal with this status; the field that it names.
    pub(crate) async fn refused(&self, path: &str, body: &Value, status: u16) -> String {
        let reply = self.post(path, body.to_string()).await;
        assert_eq!(reply.status, status, "{}", reply.text);
        let error: Value = serde_json::from_str(&reply.text).unwrap();
        assert!(error["error"]["message"].as_str().unwrap().len() > 5, "{error}");
        error["error"]["param"].as_str().unwrap_or_default().to_owned()
    }
}

/// Tokens that the model gives alone.
pub(crate) fn alone(prompt: &[u32], count: usize, sampler: SamplerConfig) -> Vec<u32> {
    let model = model();
    let mut session = Session::new(&model, CONTEXT);
    let mut sampler = Sampler::new(sampler).unwrap();
    let mut tokens = Vec::new();
    let mut logits = session.feed(prompt).to_vec();
    while tokens.len() < count {
        let token = sampler.sample(&mut logits).unwrap();
        sampler.accept(token);
        tokens.push(token);
        if token == END {
            break;
        }
        logits = session.feed(&[token]).to_vec();
    }
    tokens
}

/// OpenAI's defaults.
pub(crate) fn plain(temperature: f32, seed: u64) -> SamplerConfig {
    SamplerConfig { temperature, seed, repeat_last_n: usize::MAX, ..SamplerConfig::greedy() }
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}
