//! Clients that do not read, read slowly, or never finish what they say: they are cut, or served to the end, and others
//! hardly notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::args::Slow;
use crate::ask::{self, Ask, Outcome};
use crate::http::{Connection, Trouble};
use crate::numbers::{Draws, ms};
use crate::server::Server;

/// What a socket of a client that does not read holds at most.
const SMALL: u32 = 4096;

/// Bytes per second of a slow reader.
const RATE: usize = 1000;

pub(crate) async fn run(server: &Server, load: &Slow) -> Result<Value> {
    let seconds = Duration::from_secs(load.seconds);
    healthy(server, load, Duration::from_secs(1)).await?;
    let before = healthy(server, load, seconds).await?;
    let memory = server.process();
    let stalled = stall(server, load).await?;
    let begun = Instant::now();
    let half = half_open(server, load).await?;
    let readers = read_slowly(server, load);
    // What they are sent first goes into buffers, and is computed at full speed.
    sleep(Duration::from_secs(3)).await;
    let during = healthy(server, load, seconds).await?;
    let memory_during = server.process();
    let cut_after = wait_for_cut(server, load, begun).await?;
    let (complete, bytes) = join(readers).await?;
    let closed = close_times(half, load).await;
    let grown = memory.zip(memory_during).map(|(a, b)| b.anonymous_kib as i64 - a.anonymous_kib as i64);
    Ok(json!({
        "healthy_tokens_per_second_before": before,
        "healthy_tokens_per_second_during": during,
        "during_over_before": during / before,
        "stalled": load.stalled,
        "stalled_all_cut_after_s": cut_after,
        "stalled_that_were_told_all": told_all(stalled).await,
        "anonymous_kib_grown": grown,
        "slow_readers": load.readers,
        "slow_readers_served_whole": complete,
        "slow_reader_bytes": bytes,
        "half_open": load.half_open,
        "half_open_closed": closed.len(),
        "half_open_longest_s": closed.iter().copied().fold(0.0, f64::max),
    }))
}

/// Tokens per second of clients that do as they should.
async fn healthy(server: &Server, load: &Slow, seconds: Duration) -> Result<f64> {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut all = JoinSet::new();
    let begun = Instant::now();
    for number in 0..load.healthy {
        let (to, vocab, seed) = (server.address, server.vocab, server.seed);
        let (stop, count) = (stop.clone(), count.clone());
        all.spawn(async move {
            let mut draws = Draws::new(seed, 4_000_000 + number as u64);
            while !stop.load(Ordering::Relaxed) {
                let ask = Ask::new(draws.tokens(16, vocab), 16, number as u64);
                if let Outcome::Answer(answer) = ask::stream(to, &ask).await {
                    count.fetch_add(answer.tokens.len(), Ordering::Relaxed);
                }
            }
        });
    }
    sleep(seconds).await;
    let (tokens, took) = (count.load(Ordering::Relaxed), begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    while all.join_next().await.is_some() {}
    Ok(tokens as f64 / took.as_secs_f64())
}

/// Clients that ask for much and read nothing.
async fn stall(server: &Server, load: &Slow) -> Result<Vec<Connection>> {
    let mut all = vec![];
    for number in 0..load.stalled {
        let mut draws = Draws::new(server.seed, 5_000_000 + number as u64);
        let ask = Ask::new(draws.tokens(16, server.vocab), load.tokens, number as u64);
        let mut connection =
            Connection::with_buffer(server.address, Some(SMALL)).await.map_err(|e| e.to_string())?;
        connection.send(&ask.bytes(true)).await.map_err(|e| e.to_string())?;
        all.push(connection);
    }
    Ok(all)
}

/// Those among stalled clients who, reading at last, find the whole answer: the server cannot have noticed.
async fn told_all(stalled: Vec<Connection>) -> usize {
    let mut whole = 0;
    for mut connection in stalled {
        let all = async {
            connection.head().await?;
            while let Some(event) = connection.event().await? {
                if event == "[DONE]" {
                    return Ok::<bool, Trouble>(true);
                }
            }
            Ok(false)
        };
        whole += usize::from(all.await.unwrap_or(false));
    }
    whole
}

/// Waits until nothing is under way but the slow readers, and gives when that was.
async fn wait_for_cut(server: &Server, load: &Slow, begun: Instant) -> Result<Option<f64>> {
    while begun.elapsed() < Duration::from_secs(load.patience) {
        if server.under_way().await? <= load.readers as f64 {
            return Ok(Some(begun.elapsed().as_secs_f64()));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(None)
}

fn read_slowly(server: &Server, load: &Slow) -> JoinSet<Result<(bool, usize)>> {
    let mut all = JoinSet::new();
    for number in 0..load.readers {
        let mut draws = Draws::new(server.seed, 6_000_000 + number as u64);
        let ask = Ask::new(draws.tokens(16, server.vocab), load.reader_tokens, number as u64);
        let to = server.address;
        all.spawn(async move { slow_reader(to, &ask).await.map_err(|e| e.to_string()) });
    }
    all
}

/// Reads to the end at its own pace; whether the end was there, and how many bytes before it.
async fn slow_reader(to: std::net::SocketAddr, ask: &Ask) -> std::result::Result<(bool, usize), Trouble> {
    let mut connection = Connection::with_buffer(to, Some(SMALL)).await?;
    connection.send(&ask.bytes(true)).await?;
    let (mut bytes, mut end) = (0, vec![]);
    loop {
        let part = connection.raw_bytes(RATE / 4).await?;
        if part.is_empty() {
            return Ok((false, bytes));
        }
        bytes += part.len();
        end.extend(part);
        if end.windows(12).any(|w| w == b"data: [DONE]") {
            return Ok((true, bytes));
        }
        end.drain(..end.len().saturating_sub(11));
        sleep(Duration::from_millis(250)).await;
    }
}

async fn join(mut readers: JoinSet<Result<(bool, usize)>>) -> Result<(usize, usize)> {
    let (mut complete, mut bytes) = (0, 0);
    while let Some(done) = readers.join_next().await {
        let (whole, count) = done.map_err(|e| e.to_string())??;
        complete += usize::from(whole);
        bytes += count;
    }
    Ok((complete, bytes))
}

/// Clients that begin a request and fall silent. Each gives when it was cut off.
async fn half_open(server: &Server, load: &Slow) -> Result<JoinSet<Option<f64>>> {
    let mut all = JoinSet::new();
    for number in 0..load.half_open {
        let mut connection = Connection::open(server.address).await.map_err(|e| e.to_string())?;
        let words: &[u8] = match number % 3 {
            0 => b"",
            1 => b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-le",
            _ => b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{",
        };
        connection.send(words).await.map_err(|e| e.to_string())?;
        let begun = Instant::now();
        all.spawn(async move {
            // An answer such as 408 may come first.
            while connection.raw(4096).await.is_ok_and(|count| count > 0) {}
            let seconds = ms(begun.elapsed()) / 1e3;
            // The client gives up by itself after 120 s.
            (seconds < 110.0).then_some(seconds)
        });
    }
    Ok(all)
}

async fn close_times(mut half: JoinSet<Option<f64>>, load: &Slow) -> Vec<f64> {
    let mut closed = vec![];
    let wait = Duration::from_secs(load.patience);
    while let Ok(Some(done)) = timeout(wait, half.join_next()).await {
        closed.extend(done.ok().flatten());
    }
    closed
}
