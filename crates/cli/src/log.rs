//! The log of commands that run for long.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};
use zamba_serve::edge::Exporter;

use crate::error::Stop;

/// What is written of what happens.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Log")]
pub(crate) struct LogArgs {
    /// How lines on stderr look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// What they tell of: off, error, warn, info, debug or trace; also as `target=level,…`. `info` has a line per
    /// request.
    #[arg(long, value_name = "LEVEL", env = "ZAMBA_LOG", default_value = "info")]
    log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Where spans are made of which traces consist.
const SPANS: &str = "zamba_serve::span";

impl LogArgs {
    /// Fails if the level is none.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.filter().map(drop)
    }

    fn filter(&self) -> anyhow::Result<EnvFilter> {
        EnvFilter::try_new(&self.log_level).map_err(|e| {
            Stop::Usage(format!("--log-level {}: {e}; give one such as info", self.log_level)).into()
        })
    }

    /// Writes the log from now on, and traces to where they are collected.
    pub(crate) fn start(&self, traces: Option<&Exporter>) -> anyhow::Result<()> {
        // Spans are for traces: lines say by themselves what they are about.
        let lines = self.filter()?.and(filter_fn(|metadata| !metadata.is_span()));
        let plain = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
        let layer = match self.log_format {
            Format::Text => plain.with_filter(lines).boxed(),
            Format::Json => plain.json().flatten_event(true).with_filter(lines).boxed(),
        };
        let traces = traces.map(|exporter| {
            tracing_opentelemetry::layer()
                .with_tracer(exporter.tracer())
                .with_filter(filter_fn(|metadata| metadata.target() == SPANS))
        });
        tracing_subscriber::registry().with(layer).with(traces).try_init()?;
        Ok(())
    }
}
