//! `zamba info`: what a checkpoint is and what it will cost, from its headers alone.

use serde::Serialize;

use crate::common::{DeviceArgs, ModelArgs};
use crate::cost::Cost;
use crate::out;

/// Show what a checkpoint is and what it costs to run, without loading its weights.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  zamba info -m zamba-7b")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens of context that FLOPs per token and bytes per sequence are stated for [default: what the model was meant for].
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    ctx: Option<u64>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
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
    layout: String,
    tokenizer: bool,
    chat_template: bool,
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
