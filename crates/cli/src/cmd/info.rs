//! `zamba info`: what a checkpoint is and what it will cost, from its headers alone.

use anyhow::Context;
use serde::Serialize;
use zamba::checkpoint::{LoadOptions, Verify};
use zamba::config::QuantFormat;

use crate::common::{self, DeviceArgs, ModelArgs};
use crate::cost::Cost;
use crate::out;

/// Show what a checkpoint is and what it costs to run, without loading its weights.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  zamba info -m zamba-7b")]
pub(crate) struct Args {
    /// Tokens of context that FLOPs per token and bytes per sequence are stated for [default: what the model
    /// was meant for].
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    ctx: Option<u64>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Serialize)]
struct Info {
    model: String,
    parameters: u64,
    layers: usize,
    hybrid_layers: Vec<usize>,
    hidden_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    dtype: &'static str,
    quantization: Option<&'static str>,
    tokenizer: bool,
    bytes_of_file: u64,
    bytes_of_weights: u64,
    bytes_of_weights_read_per_token: u64,
    bytes_of_state: u64,
    bytes_of_kv_per_token: u64,
    context: u64,
    bytes_of_sequence: u64,
    flops_per_token: u64,
    device: String,
    isa: String,
    threads: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.model.folder()?;
    // Hashing all weights against a manifest is for those who use them.
    let options = LoadOptions { manifest: Verify::Nothing, ..LoadOptions::default() };
    let checkpoint = common::open_with(&folder, &options)?;
    let config = &checkpoint.config;
    let cost = Cost::of(config, config.dtype);
    let context = args.ctx.unwrap_or(config.max_position_embeddings as u64);
    let device = args.device.open()?;
    let info = Info {
        model: folder.display().to_string(),
        parameters: config.parameters(),
        layers: config.num_hidden_layers,
        hybrid_layers: config.hybrid_layers(),
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        dtype: config.dtype.torch_name(),
        quantization: config.quantization.map(QuantFormat::name),
        tokenizer: folder.join("tokenizer.json").exists(),
        bytes_of_file: checkpoint.total_bytes(),
        bytes_of_weights: cost.weights,
        bytes_of_weights_read_per_token: cost.read_per_token,
        bytes_of_state: cost.state,
        bytes_of_kv_per_token: cost.kv_per_token,
        context,
        bytes_of_sequence: cost
            .sequence(context)
            .context("the context is too large; choose a smaller --ctx")?,
        flops_per_token: cost.flops_per_token(context),
        device: device.name(),
        isa: args.device.isa_name()?,
        threads: device.threads(),
    };
    if args.json { out::json(&info) } else { out::table(&info.rows()) }
}

impl Info {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let hybrid: Vec<_> = self.hybrid_layers.iter().map(usize::to_string).collect();
        let hybrid = if hybrid.is_empty() { "none".to_owned() } else { hybrid.join(" ") };
        let stored = match self.quantization {
            Some(format) => format!("{format} and {}", self.dtype),
            None => self.dtype.to_owned(),
        };
        vec![
            ("model", self.model.clone()),
            ("parameters", out::count(self.parameters)),
            ("layers", self.layers.to_string()),
            ("hybrid layers", hybrid),
            ("hidden size", self.hidden_size.to_string()),
            ("vocabulary", out::count(self.vocab_size as u64)),
            ("context", format!("{} tokens", out::count(self.context))),
            ("stored as", format!("{stored}, {}", out::bytes(self.bytes_of_file))),
            ("tokenizer", if self.tokenizer { "yes" } else { "no" }.to_owned()),
            ("weights in memory", out::bytes(self.bytes_of_weights)),
            ("weights read per token", out::bytes(self.bytes_of_weights_read_per_token)),
            ("state per sequence", out::bytes(self.bytes_of_state)),
            ("keys and values per token", out::bytes(self.bytes_of_kv_per_token)),
            ("sequence of that context", out::bytes(self.bytes_of_sequence)),
            ("FLOPs per token there", format!("{:.3} G", self.flops_per_token as f64 / 1e9)),
            ("device", self.device.clone()),
            ("instructions", self.isa.clone()),
            ("threads", self.threads.to_string()),
        ]
    }
}
