//! What can be asked for.

use std::path::PathBuf;

/// Puts load on a server of this machine and says what became of it.
#[derive(Debug, clap::Parser)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) load: Load,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Which server.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// The program to start.
    #[arg(long, global = true, value_name = "BIN", conflicts_with = "url")]
    pub(crate) zamba: Option<PathBuf>,
    /// The model to serve.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// More flags for `zamba serve`, with blanks between.
    #[arg(long, global = true, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub(crate) flags: String,
    /// A server that is there already, such as 127.0.0.1:8080.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    pub(crate) url: Option<std::net::SocketAddr>,
    /// Token ids of prompts are below this.
    #[arg(long, global = true, default_value_t = 256)]
    pub(crate) vocab: u32,
    /// Seed of everything that is drawn.
    #[arg(long, global = true, default_value_t = 1)]
    pub(crate) seed: u64,
    /// One JSON document on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The kinds of load.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Load {
    /// Many more clients than the server has places for.
    Burst(Burst),
    /// Clients that go away at any moment, while others must not notice.
    Disconnects(Disconnects),
    /// Short requests for a long time: does memory grow?
    Soak(Soak),
    /// Several streams at once against one alone.
    Streams(Streams),
    /// Clients that do not read, read slowly, or do not finish their request.
    Slow(Slow),
    /// The second turn of a long conversation.
    Turns(Turns),
    /// The server against the engine alone.
    Overhead(Overhead),
    /// Bodies that no client should send.
    Bodies(Bodies),
}

impl Load {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Load::Burst(_) => "burst",
            Load::Disconnects(_) => "disconnects",
            Load::Soak(_) => "soak",
            Load::Streams(_) => "streams",
            Load::Slow(_) => "slow",
            Load::Turns(_) => "turns",
            Load::Overhead(_) => "overhead",
            Load::Bodies(_) => "bodies",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Burst {
    /// Clients at once.
    #[arg(long, default_value_t = 1024)]
    pub(crate) clients: usize,
    /// Requests of all of them.
    #[arg(long, default_value_t = 4096)]
    pub(crate) requests: usize,
    /// Requests of the unloaded run before it, by as many clients as the server has slots.
    #[arg(long, default_value_t = 256)]
    pub(crate) unloaded: usize,
    /// Slots of the server.
    #[arg(long, default_value_t = 8)]
    pub(crate) slots: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 16)]
    pub(crate) prompt: usize,
    /// New tokens.
    #[arg(long, default_value_t = 32)]
    pub(crate) tokens: usize,
    /// Time within which the clients begin, in milliseconds; 0 for all of them at once.
    #[arg(long, default_value_t = 1000)]
    pub(crate) ramp: u64,
    /// How long a client that was turned away waits before it comes again, in milliseconds [default: as it is told].
    #[arg(long)]
    pub(crate) pause: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Disconnects {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) count: usize,
    /// How many at once.
    #[arg(long, default_value_t = 16)]
    pub(crate) at_once: usize,
    /// Streams that go on meanwhile and must give what they give alone.
    #[arg(long, default_value_t = 3)]
    pub(crate) others: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// How many requests.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) requests: usize,
    /// How many at once.
    #[arg(long, default_value_t = 8)]
    pub(crate) clients: usize,
    /// Most new tokens of a request.
    #[arg(long, default_value_t = 16)]
    pub(crate) tokens: usize,
    /// Requests after which memory is expected not to grow any more [default: a tenth].
    #[arg(long)]
    pub(crate) settled: Option<usize>,
    /// Most KiB by which memory may grow after that; more is a failure [default: any].
    #[arg(long)]
    pub(crate) growth: Option<f64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Streams {
    /// Streams at once.
    #[arg(long, default_value_t = 8)]
    pub(crate) streams: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 16)]
    pub(crate) prompt: usize,
    /// New tokens of a stream.
    #[arg(long, default_value_t = 64)]
    pub(crate) tokens: usize,
    /// How often.
    #[arg(long, default_value_t = 3)]
    pub(crate) repeats: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Slow {
    /// Clients that never read.
    #[arg(long, default_value_t = 4)]
    pub(crate) stalled: usize,
    /// Clients that never finish their head.
    #[arg(long, default_value_t = 200)]
    pub(crate) half_open: usize,
    /// Clients that read a kilobyte per second.
    #[arg(long, default_value_t = 1)]
    pub(crate) readers: usize,
    /// Clients that do as they should.
    #[arg(long, default_value_t = 2)]
    pub(crate) healthy: usize,
    /// New tokens of a slow answer; it must be larger than what sockets hold for nobody to notice.
    #[arg(long, default_value_t = 2000)]
    pub(crate) tokens: usize,
    /// New tokens of an answer that is read slowly.
    #[arg(long, default_value_t = 150)]
    pub(crate) reader_tokens: usize,
    /// How long to look at those who do as they should, in seconds.
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,
    /// How long to wait for the server to cut what stalls, in seconds.
    #[arg(long, default_value_t = 60)]
    pub(crate) patience: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Turns {
    /// Tokens of the history, the first answer included.
    #[arg(long, default_value_t = 2000)]
    pub(crate) history: usize,
    /// Tokens of the first answer.
    #[arg(long, default_value_t = 64)]
    pub(crate) answer: usize,
    /// New tokens of the second question.
    #[arg(long, default_value_t = 32)]
    pub(crate) question: usize,
    /// How often.
    #[arg(long, default_value_t = 7)]
    pub(crate) repeats: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Overhead {
    /// Streams at once; as many slots has either engine.
    #[arg(long, default_value_t = 8)]
    pub(crate) streams: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 16)]
    pub(crate) prompt: usize,
    /// New tokens of a stream.
    #[arg(long, default_value_t = 256)]
    pub(crate) tokens: usize,
    /// How often, in turns.
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Bodies {
    /// How many at least.
    #[arg(long, default_value_t = 500)]
    pub(crate) count: usize,
}
