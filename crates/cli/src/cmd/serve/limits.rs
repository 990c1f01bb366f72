//! How much may be asked for, as typed.

use std::time::Duration;

use zamba::ZambaConfig;
use zamba_serve::engine::Costs;
use zamba_serve::{Limits, Settings};

use crate::common;
use crate::cost::Cost;
use crate::error::Stop;

/// Tokens of a sequence unless the user or the model says otherwise.
const CONTEXT: usize = 4096;

/// What the engine may use.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Sequences under way at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
    /// Most tokens of a sequence, its prompt included [default: what the model was meant for, up to 4096].
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    ctx: Option<u32>,
    /// Most tokens of a step [default: 512, or twice `--parallel`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    batch_tokens: Option<u32>,
    /// Most prompt tokens of a step while others generate: it bounds the time between their tokens.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    mixed_tokens: u32,
    /// Bytes for cached beginnings of sequences, such as 1GiB; 0 turns the cache off.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_cache)]
    cache_size: u64,
    /// Tokens between two states that are kept of one sequence.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    cache_interval: u32,
    /// Most requests that wait for a slot; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    max_queue: u32,
    /// Most prompt tokens of all requests that wait.
    #[arg(long, value_name = "N", default_value_t = 1 << 18)]
    max_queue_tokens: usize,
    /// How long a request may wait for a slot.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    queue_timeout: Duration,
    /// How long a request may take in all.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_seconds)]
    request_timeout: Duration,
    /// How long an answer may stay unread before it is given up.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub(super) stall_timeout: Duration,
}

impl EngineArgs {
    pub(super) fn settings(&self, config: &ZambaConfig) -> anyhow::Result<Settings> {
        let batch_tokens = self.batch_tokens()?;
        let meant = config.max_position_embeddings.clamp(2, CONTEXT);
        let context = common::check_context(config, self.ctx.map_or(meant as u64, u64::from))?;
        Ok(Settings {
            slots: self.parallel.into(),
            context,
            batch_tokens,
            mixed_tokens: self.mixed_tokens as usize,
            max_queue: self.max_queue as usize,
            max_queue_tokens: self.max_queue_tokens,
            queue_timeout: self.queue_timeout,
            request_timeout: self.request_timeout,
            stall_timeout: self.stall_timeout,
            cache_bytes: self.cache_size,
            cache_interval: self.cache_interval as usize,
            costs: costs(config),
            ..Settings::default()
        })
    }

    fn batch_tokens(&self) -> Result<usize, Stop> {
        let slots: usize = self.parallel.into();
        match self.batch_tokens.map(|tokens| tokens as usize) {
            None => Ok(Settings::default().batch_tokens.max(2 * slots)),
            Some(tokens) if tokens > slots => Ok(tokens),
            Some(tokens) => Err(Stop::Usage(format!(
                "--batch-tokens {tokens} leaves no room for prompts beside a token of each of {slots} sequences; raise \
                 it, or lower --parallel"
            ))),
        }
    }
}

/// What the work costs at least, so that the metrics can be held against what the machine can do.
fn costs(config: &ZambaConfig) -> Costs {
    let cost = Cost::of(config, config.dtype);
    Costs {
        bytes_per_step: cost.read_per_token,
        bytes_per_sequence: cost.state,
        bytes_per_context: cost.kv_per_token,
        flops_per_token: cost.flops_per_token(0),
        flops_per_context: cost.attention_flops_per_context,
    }
}

/// What one request may ask for.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits of a request")]
pub(crate) struct RequestArgs {
    /// Bytes of a body.
    #[arg(long, value_name = "SIZE", default_value = "2MiB", value_parser = common::parse_size)]
    max_body: u64,
    /// Depth of nested JSON.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(8..=120))]
    json_depth: u8,
    /// Answers per prompt, `n`.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_n: u16,
    /// Prompts per request.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_prompts: u16,
    /// Alternatives per token, `logprobs` and `top_logprobs`.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1024))]
    max_logprobs: u16,
    /// Stop strings.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(0..=1024))]
    max_stops: u16,
    /// Entries of `logit_bias`.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_logit_bias: u16,
    /// Messages of a conversation.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    max_messages: u32,
    /// Bytes of a JSON schema or grammar.
    #[arg(long, value_name = "SIZE", default_value = "128KiB", value_parser = common::parse_size)]
    max_grammar: u64,
}

impl RequestArgs {
    pub(super) fn limits(&self) -> Limits {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Limits {
            body_bytes: size(self.max_body),
            json_depth: self.json_depth.into(),
            n: self.max_n.into(),
            prompts: self.max_prompts.into(),
            logprobs: self.max_logprobs.into(),
            stops: self.max_stops.into(),
            logit_bias: self.max_logit_bias.into(),
            messages: self.max_messages as usize,
            grammar_bytes: size(self.max_grammar),
        }
    }
}

/// Reads a time such as `30` or `0.5`.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let error = || format!("`{text}` is not a number of seconds above 0 and up to 1000000");
    let seconds: f64 = text.parse().map_err(|_| error())?;
    if seconds > 0.0 && seconds <= 1e6 { Ok(Duration::from_secs_f64(seconds)) } else { Err(error()) }
}

fn parse_cache(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { common::parse_size(text) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        engine: EngineArgs,
        #[command(flatten)]
        request: RequestArgs,
    }

    #[test]
    fn what_is_not_typed_is_what_the_library_takes() {
        let flags = Flags::parse_from(["serve"]);
        let config = ZambaConfig::preset("tiny").unwrap();
        let settings = flags.engine.settings(&config).unwrap();
        let library = Settings { costs: settings.costs, ..Settings::default() };
        assert_eq!(format!("{settings:?}"), format!("{library:?}"));
        assert_eq!(format!("{:?}", flags.request.limits()), format!("{:?}", Limits::default()));
    }

    #[test]
    fn times_and_sizes_are_read() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e7", "1s", ""] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_cache("0"), Ok(0));
        assert_eq!(parse_cache("1GiB"), Ok(1 << 30));
    }
}
