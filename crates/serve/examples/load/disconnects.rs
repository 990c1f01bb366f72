//! Clients that go away at any moment: in their head, in their body, in the queue, while their prompt is computed, in the
//! middle of their answer. Slots come back, and others do not notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Result;
use crate::args::Disconnects;
use crate::ask::{self, Ask, Outcome, Streamed};
use crate::http::Connection;
use crate::numbers::{Draws, ms};
use crate::server::Server;

/// Tokens of the answers that go on meanwhile.
const OTHERS: usize = 96;

/// How long slots may take to come back after the last one is gone.
const BACK: Duration = Duration::from_secs(10);

pub(crate) async fn run(server: &Server, load: &Disconnects) -> Result<Value> {
    let asks: Vec<Ask> = (0..load.others).map(|i| other(server, i)).collect();
    let mut solo = vec![];
    for ask in &asks {
        solo.push(ask::stream(server.address, ask).await.answer()?);
    }
    server.wait_until_idle(BACK).await?;
    let before = server.process();
    let stop = Arc::new(AtomicBool::new(false));
    let mut others = JoinSet::new();
    for (ask, alone) in asks.into_iter().zip(solo) {
        others.spawn(keep_asking(server.address, ask, alone, stop.clone()));
    }
    let begun = Instant::now();
    let (stages, strange) = all_gone(server, load).await?;
    let seconds = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let (mut compared, mut differ) = (0, vec![]);
    while let Some(done) = others.join_next().await {
        let (count, wrong) = done.map_err(|e| e.to_string())?;
        compared += count;
        differ.extend(wrong);
    }
    let settled = server.wait_until_idle(BACK).await?;
    let extra = computed_for_nobody(server).await?;
    let after = server.process();
    Ok(json!({
        "disconnects": load.count,
        "seconds": seconds,
        "by_stage": stages,
        "answers_before_they_could_leave": strange,
        "other_answers_compared": compared,
        "other_answers_that_differ": differ.len(),
        "first_difference": differ.first(),
        "idle_after_ms": ms(settled),
        "tokens_computed_for_nobody": extra,
        "slot_back_ms": slot_back(server).await?,
        "descriptors_before": before.map(|p| p.descriptors),
        "descriptors_after": after.map(|p| p.descriptors),
    }))
}

/// A request whose answer must stay the same. Its beginning is in the cache at times, and at times not.
fn other(server: &Server, number: usize) -> Ask {
    let mut draws = Draws::new(server.seed, 1_000_000 + number as u64);
    let length = 20 + draws.below(100);
    Ask::new(draws.tokens(length, server.vocab), OTHERS, number as u64)
}

/// Asks the same until told to stop; how often, and what was different.
async fn keep_asking(
    to: SocketAddr,
    ask: Ask,
    alone: Streamed,
    stop: Arc<AtomicBool>,
) -> (usize, Vec<String>) {
    let (mut count, mut wrong) = (0, vec![]);
    while !stop.load(Ordering::Relaxed) {
        match ask::stream(to, &ask).await {
            Outcome::Answer(answer) if answer.same(&alone) => {}
            Outcome::Answer(answer) => wrong.push(format!("{answer:?} and alone {alone:?}")),
            // Those who leave may fill the queue; that is no difference.
            Outcome::Refused(429 | 503, _) => {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            outcome => wrong.push(format!("{outcome:?}")),
        }
        count += 1;
    }
    (count, wrong)
}

/// All disconnects, some at once; how many at which stage, and how many got an answer first.
async fn all_gone(server: &Server, load: &Disconnects) -> Result<(BTreeMap<&'static str, usize>, usize)> {
    let room = Arc::new(Semaphore::new(load.at_once));
    let early = Arc::new(AtomicUsize::new(0));
    let mut stages = BTreeMap::new();
    let mut all = JoinSet::new();
    for number in 0..load.count {
        let permit = room.clone().acquire_owned().await.map_err(|e| e.to_string())?;
        let (address, vocab, seed, early) = (server.address, server.vocab, server.seed, early.clone());
        all.spawn(async move {
            let stage = leave(address, Draws::new(seed, number as u64), vocab, &early).await;
            drop(permit);
            stage
        });
        while let Some(done) = all.try_join_next() {
            *stages.entry(done.map_err(|e| e.to_string())??).or_default() += 1;
        }
    }
    while let Some(done) = all.join_next().await {
        *stages.entry(done.map_err(|e| e.to_string())??).or_default() += 1;
    }
    Ok((stages, early.load(Ordering::Relaxed)))
}

/// One client that goes away; where it was.
async fn leave(to: SocketAddr, mut draws: Draws, vocab: u32, early: &AtomicUsize) -> Result<&'static str> {
    let long = draws.below(4) == 0;
    let prompt = 1 + draws.below(if long { 1500 } else { 60 });
    let mut ask = Ask::new(draws.tokens(prompt, vocab), 40 + draws.below(200), draws.next() >> 12);
    ask.salt = (draws.below(3) == 0).then(|| format!("{}", draws.below(5)));
    let bytes = ask.bytes(draws.below(4) > 0);
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 4);
    let mut connection = Connection::open(to).await.map_err(|e| e.to_string())?;
    let reset = draws.below(2) == 0;
    let (stage, sent) = match draws.below(5) {
        0 => ("head", draws.below(head)),
        1 => ("body", head + draws.below(bytes.len() - head)),
        2 => ("at once", bytes.len()),
        3 => ("queue or prompt", bytes.len()),
        _ => ("answer", bytes.len()),
    };
    let gone = connection.send(&bytes[..sent]).await;
    match stage {
        "queue or prompt" => sleep(Duration::from_micros(draws.below(60_000) as u64)).await,
        "answer" => read_some(&mut connection, 1 + draws.below(4000), early).await?,
        _ => {}
    }
    connection.drop_dead(reset);
    gone.map(|()| stage).map_err(|e| e.to_string())
}

/// Reads so many bytes of an answer.
async fn read_some(connection: &mut Connection, most: usize, early: &AtomicUsize) -> Result {
    let mut read = vec![];
    while read.len() < most {
        // A whole answer, refusals among them, can be shorter; its connection would stay open for the next request.
        if whole(&read) {
            early.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        match connection.raw_bytes(most - read.len()).await {
            Ok(bytes) if bytes.is_empty() => {
                return Err(format!("the server ended an answer after {} bytes", read.len()));
            }
            Ok(bytes) => read.extend(bytes),
            Err(trouble) => return Err(trouble.to_string()),
        }
    }
    Ok(())
}

/// Whether an answer has come to its end.
fn whole(answer: &[u8]) -> bool {
    let Some(at) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let (head, body) = answer.split_at(at + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None => body.ends_with(b"\r\n0\r\n\r\n"),
    }
}

/// Tokens that are made while nobody asks.
async fn computed_for_nobody(server: &Server) -> Result<f64> {
    let count = async || {
        let metrics = server.metrics().await?;
        let get = |name: &str| metrics.get(name).copied().unwrap_or(f64::NAN);
        Ok::<_, String>(get("vllm:generation_tokens_total") + get("zamba_prefill_tokens_total"))
    };
    let before = count().await?;
    sleep(Duration::from_millis(500)).await;
    Ok(count().await? - before)
}

/// The longest time, of ten, from the end of a connection in the middle of its answer to an idle server.
async fn slot_back(server: &Server) -> Result<f64> {
    let mut longest = Duration::ZERO;
    for number in 0..10 {
        let mut draws = Draws::new(server.seed, 2_000_000 + number);
        let ask = Ask::new(draws.tokens(20, server.vocab), 2000, number);
        let mut connection = Connection::open(server.address).await.map_err(|e| e.to_string())?;
        connection.send(&ask.bytes(true)).await.map_err(|e| e.to_string())?;
        connection.raw(600).await.map_err(|e| e.to_string())?;
        connection.drop_dead(number % 2 == 0);
        longest = longest.max(server.wait_until_idle(BACK).await?);
    }
    Ok(ms(longest))
}
