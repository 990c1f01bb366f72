//! Short requests for a long time: memory, descriptors and threads come to rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Result;
use crate::args::Soak;
use crate::ask::{self, Ask, Outcome};
use crate::http::Connection;
use crate::numbers::{Draws, median, ms, slope};
use crate::server::{Look, Process, Server};

/// Looks at the process in the course of a run.
const LOOKS: usize = 200;

/// What all clients share.
struct Plan {
    address: std::net::SocketAddr,
    next: AtomicUsize,
    requests: usize,
    most: usize,
    vocab: u32,
    seed: u64,
    look: Look,
    seen: Mutex<Vec<(usize, Process)>>,
    times: Mutex<Vec<f32>>,
    failed: Mutex<Vec<String>>,
}

pub(crate) async fn run(server: &Server, load: &Soak) -> Result<Value> {
    let before =
        server.process().ok_or("soak watches a process, so it must start the server: give --zamba")?;
    let plan = Arc::new(Plan {
        address: server.address,
        next: AtomicUsize::new(0),
        requests: load.requests,
        most: load.tokens,
        vocab: server.vocab,
        seed: server.seed,
        look: server.look(),
        seen: Mutex::default(),
        times: Mutex::default(),
        failed: Mutex::default(),
    });
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for number in 0..load.clients {
        all.spawn(client(plan.clone(), number));
    }
    while let Some(done) = all.join_next().await {
        done.map_err(|e| e.to_string())?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    server.wait_until_idle(Duration::from_secs(10)).await?;
    // Idle connections and their descriptors need a moment to go.
    sleep(Duration::from_secs(1)).await;
    let after = server.process().ok_or("the server is gone")?;
    let seen = plan.seen.lock().await;
    let times: Vec<f64> = plan.times.lock().await.iter().map(|&t| f64::from(t)).collect();
    let failed = plan.failed.lock().await;
    report(load, seconds, (before, after), &seen, &times, &failed)
}

/// Every other client keeps its connection; the others make a new one for each request.
async fn client(plan: Arc<Plan>, number: usize) {
    let mut kept = None;
    loop {
        let at = plan.next.fetch_add(1, Ordering::Relaxed);
        if at >= plan.requests {
            return;
        }
        if at.is_multiple_of((plan.requests / LOOKS).max(1)) {
            plan.seen.lock().await.extend(plan.look.process().map(|process| (at, process)));
        }
        let mut draws = Draws::new(plan.seed, at as u64);
        let length = 4 + draws.below(28);
        let ask = Ask::new(draws.tokens(length, plan.vocab), 1 + draws.below(plan.most), at as u64);
        let begun = Instant::now();
        match one(&plan, &ask, draws.below(2) == 0, &mut kept).await {
            Ok(()) => plan.times.lock().await.push(ms(begun.elapsed()) as f32),
            Err(why) => plan.failed.lock().await.push(why),
        }
        if number.is_multiple_of(2) {
            kept = None;
        }
    }
}

async fn one(plan: &Plan, ask: &Ask, streamed: bool, kept: &mut Option<Connection>) -> Result {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(plan.address).await.map_err(|e| e.to_string())?,
    };
    if streamed {
        let Outcome::Answer(answer) = ask::stream_on(&mut connection, ask).await else {
            return Err("a stream that does not come".to_owned());
        };
        if answer.tokens.len() != ask.tokens {
            return Err(format!("{} tokens instead of {}", answer.tokens.len(), ask.tokens));
        }
    } else {
        let reply = connection.ask("POST", "/v1/completions", Some(&ask.body(false))).await;
        let reply = reply.map_err(|e| e.to_string())?;
        if reply.head.status != 200 {
            return Err(format!("{}: {}", reply.head.status, reply.json()));
        }
    }
    *kept = Some(connection);
    Ok(())
}

fn report(
    load: &Soak,
    seconds: f64,
    (before, after): (Process, Process),
    seen: &[(usize, Process)],
    times: &[f64],
    failed: &[String],
) -> Result<Value> {
    let settled = load.settled.unwrap_or(load.requests / 10);
    let mut points: Vec<(f64, f64)> = seen
        .iter()
        .filter(|(at, _)| *at >= settled)
        .map(|(at, process)| (*at as f64, process.anonymous_kib as f64))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let first = points.first().ok_or("too few requests to see memory settle")?.1;
    let growth = after.anonymous_kib as f64 - first;
    let half = times.len() / 10;
    let (early, late) = (median(&times[half..2 * half.max(1)]), median(&times[times.len() - half.max(1)..]));
    Ok(json!({
        "requests": load.requests,
        "failed": failed.len(),
        "first_failure": failed.first(),
        "seconds": seconds,
        "requests_per_second": load.requests as f64 / seconds,
        "anonymous_kib_at_start": before.anonymous_kib,
        "anonymous_kib_when_settled": first,
        "anonymous_kib_at_end": after.anonymous_kib,
        "growth_kib_since_settled": growth,
        "grew_too_much": load.growth.is_some_and(|most| growth > most),
        "slope_bytes_per_request": slope(&points) * 1024.0,
        "descriptors_before": before.descriptors,
        "descriptors_after": after.descriptors,
        "threads_before": before.threads,
        "threads_after": after.threads,
        "p50_early_ms": early,
        "p50_late_ms": late,
    }))
}
