//! The server under load: starts it, looks at it from outside, ends it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::Result;
use crate::args::Common;
use crate::http::Connection;

/// How long loading a model may take.
const START: Duration = Duration::from_secs(300);

/// A server of this machine.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) vocab: u32,
    pub(crate) seed: u64,
    child: Option<Child>,
}

/// What the system says of the server's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    /// Memory that is no file's, in RAM and swapped out, in KiB.
    pub(crate) anonymous_kib: u64,
    /// All memory in RAM, in KiB.
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

/// Looks at a process of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pid: Option<u32>,
}

impl Look {
    pub(crate) fn process(self) -> Option<Process> {
        let pid = self.pid?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let get = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Process {
            anonymous_kib: get("RssAnon")? + get("VmSwap")?,
            resident_kib: get("VmRSS")?,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            threads: get("Threads")?,
        })
    }
}

impl Server {
    pub(crate) async fn find(args: &Common) -> Result<Server> {
        let (vocab, seed) = (args.vocab, args.seed);
        let address = match args.url {
            Some(address) if !address.ip().is_loopback() => {
                return Err(format!("{address} is not of this machine, and load is for no other one"));
            }
            Some(address) => address,
            None => free_address()?,
        };
        let child = if args.url.is_some() { None } else { Some(start(args, address)?) };
        let mut server = Server { address, vocab, seed, child };
        server.wait_until_healthy().await?;
        Ok(server)
    }

    async fn wait_until_healthy(&mut self) -> Result {
        let begun = Instant::now();
        while begun.elapsed() < START {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().map_err(|e| e.to_string())?
            {
                return Err(format!("zamba serve ends with {status} before it answers"));
            }
            let healthy = async {
                let mut connection = Connection::open(self.address).await.ok()?;
                Some(connection.ask("GET", "/health", None).await.ok()?.head.status)
            };
            if healthy.await == Some(200) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(format!("the server at {} is not healthy after {} s", self.address, START.as_secs()))
    }

    /// Its metrics: values without labels by name.
    pub(crate) async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let mut connection = Connection::open(self.address).await.map_err(|e| e.to_string())?;
        let reply = connection.ask("GET", "/metrics", None).await.map_err(|e| e.to_string())?;
        if reply.head.status != 200 {
            return Err(format!("/metrics answers {}", reply.head.status));
        }
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(text.lines().filter(|line| !line.starts_with('#')).filter_map(pair).collect())
    }

    /// Requests in slots, in the queue, and parked.
    pub(crate) async fn under_way(&self) -> Result<f64> {
        let metrics = self.metrics().await?;
        let get = |name: &str| metrics.get(name).copied().ok_or_else(|| format!("/metrics has no {name}"));
        Ok(get("vllm:num_requests_running")? + get("vllm:num_requests_waiting")? + get("zamba_parked")?)
    }

    /// Waits until nothing is under way; how long that took.
    pub(crate) async fn wait_until_idle(&self, most: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let under_way = self.under_way().await?;
            if under_way == 0.0 {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > most {
                return Err(format!("{under_way} requests are still under way after {} s", most.as_secs()));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// A way to look at its process from other tasks.
    pub(crate) fn look(&self) -> Look {
        Look { pid: self.child.as_ref().and_then(Child::id) }
    }

    /// What the system says of it; only of a server that was started here.
    pub(crate) fn process(&self) -> Option<Process> {
        self.look().process()
    }

    /// Ends a server that was started here, as an operator would.
    pub(crate) async fn stop(mut self) -> Result {
        let Some(child) = &mut self.child else { return Ok(()) };
        let Some(pid) = child.id() else { return Err("the server is gone".to_owned()) };
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Err(format!("the server ended by itself: {status}"));
        }
        let kill = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
        kill.await.map_err(|e| e.to_string())?;
        match tokio::time::timeout(Duration::from_secs(60), child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("after SIGTERM the server ends with {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the server does not end within 60 s of SIGTERM".to_owned()),
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| format!("no free port: {e}"))?;
    any.local_addr().map_err(|e| e.to_string())
}

fn start(args: &Common, address: SocketAddr) -> Result<Child> {
    let binary = args.zamba.as_ref().ok_or("give --zamba BIN and --model DIR, or --url")?;
    let model = args.model.as_ref().ok_or("--model DIR is needed to start a server")?;
    let mut command = Command::new(binary);
    command.arg("serve").arg("-m").arg(model).args(["--port", &address.port().to_string()]);
    command.args(args.flags.split_whitespace());
    // A log line per request would be written into the figures.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|e| format!("{} does not start: {e}", binary.display()))
}
