//! Many more clients than places: everyone gets an answer or a refusal, refusals come at once, and those who are let in
//! lose nothing by the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Result;
use crate::args::Burst;
use crate::ask::Ask;
use crate::http::{Connection, Reply, Trouble};
use crate::numbers::{Draws, ms, quantile};
use crate::server::Server;

/// What became of one request.
struct Record {
    /// Status, or what else happened.
    what: String,
    /// From the first byte sent to the last one received.
    took: Duration,
    /// When it ended.
    at: Instant,
    /// When a refusal says to come again.
    retry_after: Option<Duration>,
    tokens: u64,
}

/// What all clients of a run share.
struct Plan {
    address: std::net::SocketAddr,
    next: AtomicUsize,
    requests: usize,
    load: Burst,
    vocab: u32,
    seed: u64,
    records: Mutex<Vec<Record>>,
}

pub(crate) async fn run(server: &Server, load: &Burst) -> Result<Value> {
    let idle = server.process();
    // Untimed: the first requests touch memory for the first time.
    clients(server, &Burst { ramp: 0, ..*load }, load.slots, load.slots * 4).await;
    let (begun, records) = clients(server, &Burst { ramp: 0, ..*load }, load.slots, load.unloaded).await;
    let peak = goodput(&records, begun, load.slots);
    let watch = Watch::start(server);
    let (begun, records) = clients(server, load, load.clients, load.requests).await;
    let highest = watch.stop().await;
    server.wait_until_idle(Duration::from_secs(10)).await?;
    let good = goodput(&records, begun, load.slots);
    Ok(report(load, &records, (peak, good), (idle.map(|p| p.resident_kib), highest)))
}

async fn clients(server: &Server, load: &Burst, clients: usize, requests: usize) -> (Instant, Vec<Record>) {
    let plan = Arc::new(Plan {
        address: server.address,
        next: AtomicUsize::new(0),
        requests,
        load: Burst { ..*load },
        vocab: server.vocab,
        seed: server.seed,
        records: Mutex::default(),
    });
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for number in 0..clients {
        let begin = Duration::from_millis(load.ramp) * number as u32 / clients as u32;
        all.spawn(client(plan.clone(), begin));
    }
    while all.join_next().await.is_some() {}
    let records = std::mem::take(&mut *plan.records.lock().await);
    (begun, records)
}

async fn client(plan: Arc<Plan>, begin: Duration) {
    sleep(begin).await;
    let mut connection = None;
    loop {
        let number = plan.next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests {
            return;
        }
        let record = one(&plan, number, &mut connection).await;
        let pause = plan.load.pause.map(Duration::from_millis).or(record.retry_after);
        let pause = if record.what == "200" { None } else { pause };
        plan.records.lock().await.push(record);
        // What is neither a refusal nor an answer is tried again at once: there should be none.
        sleep(pause.unwrap_or_default()).await;
    }
}

async fn one(plan: &Plan, number: usize, connection: &mut Option<Connection>) -> Record {
    let mut draws = Draws::new(plan.seed, number as u64);
    let ask = Ask::new(draws.tokens(plan.load.prompt, plan.vocab), plan.load.tokens, number as u64);
    let mut begun = Instant::now();
    let reply = async {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(plan.address).await?,
        };
        begun = Instant::now();
        open.send(&ask.bytes(false)).await?;
        let reply = open.reply().await?;
        if reply.head.header("connection") != Some("close") {
            *connection = Some(open);
        }
        Ok(reply)
    };
    let reply: std::result::Result<Reply, Trouble> = reply.await;
    let (took, at) = (begun.elapsed(), Instant::now());
    match reply {
        Ok(reply) => {
            let tokens = reply.json()["usage"]["completion_tokens"].as_u64().unwrap_or(0);
            let header = |name| reply.head.header(name)?.parse().ok();
            // Clients know one or the other, so both have to be there.
            let retry_after = header("retry-after").and(header("retry-after-ms")).map(Duration::from_millis);
            Record { what: reply.head.status.to_string(), took, at, retry_after, tokens }
        }
        Err(trouble) => Record { what: trouble.to_string(), took, at, retry_after: None, tokens: 0 },
    }
}

/// Tokens per second while all slots had work: what is left over at the end of a run says nothing about load.
fn goodput(records: &[Record], begun: Instant, slots: usize) -> f64 {
    let mut done: Vec<(Instant, u64)> =
        records.iter().filter(|r| r.what == "200").map(|r| (r.at, r.tokens)).collect();
    done.sort();
    let busy = done.len().saturating_sub(slots - 1);
    let Some(&(end, _)) = done[..busy].last() else { return f64::NAN };
    let tokens: u64 = done.iter().filter(|(at, _)| *at <= end).map(|(_, tokens)| tokens).sum();
    tokens as f64 / (end - begun).as_secs_f64()
}

fn report(
    load: &Burst,
    records: &[Record],
    (peak, good): (f64, f64),
    memory: (Option<u64>, Option<u64>),
) -> Value {
    let mut what: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        *what.entry(&record.what).or_default() += 1;
    }
    let refused: Vec<&Record> = records.iter().filter(|r| r.what == "429" || r.what == "503").collect();
    let times: Vec<f64> = refused.iter().map(|r| ms(r.took)).collect();
    let served: Vec<f64> = records.iter().filter(|r| r.what == "200").map(|r| ms(r.took)).collect();
    let others: usize = records.len() - refused.len() - served.len();
    json!({
        "clients": load.clients,
        "ramp_ms": load.ramp,
        "requests": records.len(),
        "replies": what,
        "neither_200_nor_429_nor_503": others,
        "refusals_without_retry_after": refused.iter().filter(|r| r.retry_after.is_none()).count(),
        "refusal_p50_ms": quantile(&times, 0.5),
        "refusal_p99_ms": quantile(&times, 0.99),
        "refusal_max_ms": quantile(&times, 1.0),
        "served_p50_ms": quantile(&served, 0.5),
        "served_p99_ms": quantile(&served, 0.99),
        "unloaded_tokens_per_second": peak,
        "goodput_tokens_per_second": good,
        "goodput_over_unloaded": good / peak,
        "resident_idle_kib": memory.0,
        "resident_highest_kib": memory.1,
    })
}

/// Looks at the server's memory from time to time.
struct Watch {
    task: tokio::task::JoinHandle<()>,
    highest: Arc<AtomicUsize>,
}

impl Watch {
    fn start(server: &Server) -> Self {
        let highest = Arc::new(AtomicUsize::new(0));
        let (look, seen) = (server.look(), highest.clone());
        let task = tokio::spawn(async move {
            loop {
                if let Some(process) = look.process() {
                    seen.fetch_max(process.resident_kib as usize, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Watch { task, highest }
    }

    async fn stop(self) -> Option<u64> {
        self.task.abort();
        let highest = self.highest.load(Ordering::Relaxed) as u64;
        (highest > 0).then_some(highest)
    }
}
