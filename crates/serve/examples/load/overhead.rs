//! The server against the engine alone, in turns: the same model, requests and settings.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use zamba::Zamba;
use zamba::checkpoint::{Checkpoint, LoadOptions, Weights};
use zamba::sampler::SamplerConfig;
use zamba::tokenizer::Tokenizer;
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_serve::engine::{Event, Request};
use zamba_serve::{Engine, Handle, Settings};

use crate::Result;
use crate::args::{Common, Overhead};
use crate::ask::Ask;
use crate::http::Connection;
use crate::numbers::{Draws, median};
use crate::server::Server;

/// Times of one stream, from the common beginning.
type Span = (Duration, Duration);

pub(crate) async fn run(server: &Server, common: &Common, load: &Overhead) -> Result<Value> {
    let folder = common.model.as_ref().ok_or("overhead needs --model, the folder that the server has")?;
    let engine = engine(folder, load)?;
    let (mut alone, mut streamed, mut whole) = (vec![], vec![], vec![]);
    for repeat in 0..=load.repeats {
        let (asks, others) = (asks(server, load, 2 * repeat), asks(server, load, 2 * repeat + 1));
        let address = server.address;
        let a = rate(load, all(&asks, |ask| in_process(engine.clone(), ask)).await)?;
        let s = rate(load, all(&asks, |ask| over_http(address, ask, true)).await)?;
        let w = rate(load, all(&others, |ask| over_http(address, ask, false)).await)?;
        // The first time is for caches of the machine.
        if repeat > 0 {
            alone.push(a);
            streamed.push(s);
            whole.push(w);
        }
    }
    engine.stop();
    let of =
        |rates: &[(f64, f64)], f: fn(&(f64, f64)) -> f64| median(&rates.iter().map(f).collect::<Vec<_>>());
    let (decode, all) = (of(&alone, |r| r.0), of(&alone, |r| r.1));
    Ok(json!({
        "streams": load.streams,
        "tokens": load.tokens,
        "engine_decode_tokens_per_second": decode,
        "server_decode_tokens_per_second": of(&streamed, |r| r.0),
        "decode_overhead_percent": 100.0 * (1.0 - of(&streamed, |r| r.0) / decode),
        "engine_tokens_per_second": all,
        "server_streamed_tokens_per_second": of(&streamed, |r| r.1),
        "server_whole_tokens_per_second": of(&whole, |r| r.1),
        "streamed_overhead_percent": 100.0 * (1.0 - of(&streamed, |r| r.1) / all),
        "whole_overhead_percent": 100.0 * (1.0 - of(&whole, |r| r.1) / all),
        "engine_of_each_repeat": alone,
        "streamed_of_each_repeat": streamed,
    }))
}

/// All requests at once, as tasks of the runtime's one thread, in the manner of a server.
async fn all<F>(asks: &[Ask], one: impl Fn(Ask) -> F) -> Vec<Result<Span>>
where
    F: Future<Output = Result<Span>> + Send + 'static,
{
    let tasks: Vec<_> = asks.iter().map(|ask| tokio::spawn(one(ask.clone()))).collect();
    let ends = join_all(tasks).await;
    ends.into_iter().map(|end| end.map_err(|e| e.to_string()).flatten()).collect()
}

/// Every number asks something new, so that no cache of one server answers.
fn asks(server: &Server, load: &Overhead, number: usize) -> Vec<Ask> {
    let one = |stream: usize| {
        let mut draws = Draws::new(server.seed, (7_000_000 + 1000 * number + stream) as u64);
        Ask::new(draws.tokens(load.prompt, server.vocab), load.tokens, stream as u64)
    };
    (0..load.streams).map(one).collect()
}

fn engine(folder: &Path, load: &Overhead) -> Result<Handle> {
    let shown = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
    let checkpoint = Checkpoint::open(folder, &LoadOptions::default()).map_err(|e| shown(&e))?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let device = Arc::new(Cpu::with(Isa::detect(), threads));
    let model = Zamba::load(&checkpoint, device, None, Weights::Copy, &mut |_| ()).map_err(|e| shown(&e))?;
    let tokenizer = match folder.join("tokenizer.json").exists() {
        true => Some(Tokenizer::from_dir(folder).map_err(|e| shown(&e))?),
        false => None,
    };
    let context = model.config.max_position_embeddings.min(Settings::default().context);
    let settings = Settings { slots: load.streams, context, ..Settings::default() };
    Engine::start(model, tokenizer, settings).map(|(handle, _)| handle).map_err(|e| e.to_string())
}

async fn in_process(engine: Handle, ask: Ask) -> Result<Span> {
    let begun = Instant::now();
    let sampler = SamplerConfig { temperature: 1.0, seed: ask.seed, ..SamplerConfig::greedy() };
    let request = Request::new(ask.prompt, ask.tokens, sampler);
    let permit = engine.admit().map_err(|e| e.to_string())?;
    let mut answer = engine.submit(permit, request).map_err(|e| e.to_string())?;
    let mut first = None;
    while let Some(event) = answer.next().await {
        match event {
            Event::Token(_) => _ = first.get_or_insert_with(|| begun.elapsed()),
            Event::Done(_) => break,
            Event::Failed(failure) => return Err(failure.to_string()),
            _ => {}
        }
    }
    Ok((first.unwrap_or_default(), begun.elapsed()))
}

/// The client does no more than it must: it shares its cores with the server.
async fn over_http(address: SocketAddr, ask: Ask, stream: bool) -> Result<Span> {
    let body = json!({"prompt": ask.prompt, "max_tokens": ask.tokens, "ignore_eos": true, "temperature": 1.0,
        "seed": ask.seed, "stream": stream});
    let bytes = crate::http::request("POST", "/v1/completions", Some(body.to_string().as_bytes()));
    let begun = Instant::now();
    let talk = async {
        let mut connection = Connection::open(address).await?;
        connection.send(&bytes).await?;
        let head = connection.head().await?;
        let mut first = None;
        while connection.body_part().await?.is_some() {
            first.get_or_insert_with(|| begun.elapsed());
        }
        Ok::<_, crate::http::Trouble>((head.status, first.unwrap_or_default()))
    };
    match talk.await {
        Ok((200, first)) => Ok((first, begun.elapsed())),
        Ok((status, _)) => Err(format!("the server answers {status}")),
        Err(trouble) => Err(trouble.to_string()),
    }
}

/// Tokens per second from the first token on, and from the beginning on.
fn rate(load: &Overhead, spans: Vec<Result<Span>>) -> Result<(f64, f64)> {
    let (mut first, mut last) = (Duration::MAX, Duration::ZERO);
    for span in spans {
        let (begin, end) = span?;
        first = first.min(begin);
        last = last.max(end);
    }
    let tokens = load.streams * load.tokens;
    let decode = (tokens - load.streams) as f64 / (last - first).as_secs_f64().max(1e-9);
    Ok((decode, tokens as f64 / last.as_secs_f64()))
}
