//! `zamba serve`: a model for many at once, over HTTP.

mod fingerprint;
mod limits;
mod listen;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::ZambaConfig;
use zamba_serve::edge::{self, Bound, Drained, Exporter, Server};
use zamba_serve::states::States;
use zamba_serve::{App, Engine, Settings};

use crate::cmd::chat;
use crate::common::{self, DeviceArgs, LoadArgs, ModelArgs};
use crate::cost::Cost;
use crate::log::LogArgs;
use crate::text::{self, Text};
use crate::{interrupt, out};

/// Serve a model over HTTP, as OpenAI's and Anthropic's clients ask for it, with a page to talk to it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The first Ctrl-C or SIGTERM lets requests under way end, the second ends at once.\n\nExamples:\n  \
    zamba serve -m zamba-7b\n  zamba serve -m tiny --port 0 --json\n  \
    zamba serve -m tiny --host 0.0.0.0 --api-key-file keys.txt --parallel 16 --ctx 8192"
)]
pub(crate) struct Args {
    /// Print one JSON document when requests are taken: address, model, memory.
    #[arg(long)]
    json: bool,
    /// The name of the model in requests and answers [default: that of its folder, or its id].
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    model_name: Option<String>,
    /// A folder for saved states of conversations; without one none are saved.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Most bytes of all saved states together.
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = common::parse_size)]
    state_size: u64,
    /// Send traces to this OpenTelemetry collector (OTLP over HTTP), such as http://localhost:4318.
    #[arg(long, value_name = "URL", help_heading = "Log")]
    otlp_endpoint: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    listen: listen::ListenArgs,
    #[command(flatten)]
    connections: listen::ConnectionArgs,
    #[command(flatten)]
    engine: limits::EngineArgs,
    #[command(flatten)]
    request: limits::RequestArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What is said once requests are taken.
#[derive(Debug, Serialize)]
struct Ready {
    url: String,
    address: String,
    port: u16,
    model: String,
    slots: usize,
    context: usize,
    memory: Memory,
}

/// Bytes that the server may come to use.
#[derive(Debug, Serialize)]
struct Memory {
    weights: u64,
    slots: u64,
    cache: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    args.log.check()?;
    // What is wrong with the place is said before minutes go into loading.
    let bound = Bound::new(args.listen.address(), args.edge()?)?;
    let traces = args.otlp_endpoint.as_deref().map(edge::exporter).transpose()?;
    let (app, memory, engine) = args.open()?;
    args.log.start(traces.as_ref())?;
    args.connections.prepare();
    let server = bound.listen(app.clone(), edge::routes(&app))?;
    args.announce(&server, &app, memory)?;
    // The engine outlives whatever goes wrong with a request; without it there is nothing to serve.
    let stop = || interrupt::requested() || engine.is_finished();
    let drained = server.run_until(args.connections.http_threads(), stop);
    let asked = interrupt::requested();
    let fine = engine.join().is_ok();
    traces.into_iter().for_each(Exporter::finish);
    let Drained { cut } = drained.context("the server cannot go on")?;
    if !(asked && fine) {
        bail!("internal error: the engine has ended; start the server again, and please report this");
    }
    match cut {
        0 => out::note("all requests have ended; good-bye"),
        n => out::note(&format!("{n} requests were broken off; good-bye")),
    }
    Ok(())
}

impl Args {
    fn edge(&self) -> anyhow::Result<edge::Settings> {
        Ok(self.connections.settings(self.listen.settings()?, self.engine.stall_timeout))
    }

    /// Loads the model and starts its engine.
    fn open(&self) -> anyhow::Result<(Arc<App>, Memory, JoinHandle<()>)> {
        let folder = self.model.folder()?;
        let checkpoint = common::open(&folder, self.load)?;
        let config = checkpoint.config.clone();
        let text = Text::find(&folder, config.vocab_size)?;
        let template = chat::template(&folder)?;
        let settings = self.engine.settings(&config)?;
        let memory = memory(&config, &settings)?;
        let fingerprint = fingerprint::of(&checkpoint, self.state_dir.is_some())?;
        let states = self.state_dir.as_deref().map(|folder| self.states(folder, &fingerprint)).transpose()?;
        let ends = text::end_tokens(&config, text.as_ref());
        let model = common::load(&checkpoint, &self.device, self.load)?;
        let tokenizer = text.map(|text| text.tokenizer);
        let (handle, engine) =
            Engine::start(model, tokenizer.clone(), settings).context("cannot start the engine")?;
        let app = App {
            handle,
            tokenizer,
            template,
            name: self.model_name.clone().unwrap_or_else(|| self.model.short_name()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            ends,
            limits: self.request.limits(),
            fingerprint,
            states,
        };
        Ok((Arc::new(app), memory, engine))
    }

    fn states(&self, folder: &Path, fingerprint: &str) -> anyhow::Result<States> {
        let states = States::open(folder, fingerprint.to_owned(), self.state_size);
        states.with_context(|| {
            format!("cannot use the folder {}; choose another --state-dir", folder.display())
        })
    }

    fn announce(&self, server: &Server, app: &App, memory: Memory) -> anyhow::Result<()> {
        let facts = app.handle.facts();
        out::note(&format!(
            "serving {} at {}: {} slots of {} tokens, {} for weights, {} for slots, up to {} for the cache",
            app.name,
            server.url(),
            facts.slots,
            out::count(facts.context as u64),
            out::bytes(memory.weights),
            out::bytes(memory.slots),
            out::bytes(memory.cache),
        ));
        if !self.json {
            return Ok(());
        }
        out::json(&Ready {
            url: server.url(),
            address: server.address().to_string(),
            port: server.address().port(),
            model: app.name.clone(),
            slots: facts.slots,
            context: facts.context,
            memory,
        })
    }
}

/// What the server may come to use, if the machine has it.
fn memory(config: &ZambaConfig, settings: &Settings) -> anyhow::Result<Memory> {
    let cost = Cost::of(config, config.dtype);
    let slots = cost.sequence(settings.context as u64).and_then(|one| one.checked_mul(settings.slots as u64));
    let both = slots.and_then(|slots| slots.checked_add(settings.cache_bytes));
    let message = format!(
        "{} sequences of {} tokens and a cache of {} do not fit; choose a smaller --ctx, --parallel or --cache-size",
        settings.slots,
        settings.context,
        out::bytes(settings.cache_bytes)
    );
    common::check_bytes(both, &message)?;
    Ok(Memory { weights: cost.weights, slots: slots.unwrap_or(u64::MAX), cache: settings.cache_bytes })
}
