//! `zamba bench`: speed beside the limits of the machine.

use std::path::PathBuf;

use anyhow::Context;

use crate::bench::train::Wishes;
use crate::bench::{self, Plan};
use crate::common::{DeviceArgs, DtypeName, LoadArgs, ModelArgs};
use crate::error::Stop;

/// Measure speed, beside what this machine can do at most.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tests are named as llama-bench names them: pp512 takes a prompt of 512 tokens, tg32 generates 32 \
    tokens, `@ d1024` after 1,024 tokens of context, `b8` for 8 sequences at once. Every test runs once to warm up \
    and then -r times; the speed is the mean. The limits, plain reading of memory and arithmetic from registers on \
    all threads, are measured before and after in the same run, and the best counts.\n\n\
    Examples:\n  zamba bench -m zamba-7b --pp 512 --tg 32\n  zamba bench -m zamba-7b --pp 0 --tg 32 --batch 1,8 --json\n  \
    zamba bench --gemm\n  zamba bench --train 130m --tokens 1024 --profile"
)]
pub(crate) struct Args {
    /// A folder as Hugging Face transformers writes it, or the id of a model on the hub.
    #[arg(short = 'm', long, value_name = "DIR|OWNER/NAME", env = "ZAMBA_MODEL")]
    model: Option<PathBuf>,
    /// Never use the network: a hub id must be in the local cache.
    #[arg(long)]
    offline: bool,
    /// Measure single kernels instead of a model: a bf16 product and a selective scan of a 7B layer.
    #[arg(long, conflicts_with = "train")]
    gemm: bool,
    /// Measure training steps of a preset, or of the model and sizes of a recipe, on random tokens.
    #[arg(long, value_name = "NAME|RUN.toml")]
    train: Option<PathBuf>,
    /// Tokens of the prompts; 0 for no such test.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "512")]
    pp: Vec<usize>,
    /// Tokens to generate; 0 for no such test.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "32")]
    tg: Vec<usize>,
    /// Tokens that each sequence already has.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences at once [default: 1].
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
    /// Times that each test is measured.
    #[arg(short = 'r', long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Also take the time from the start to the first token, beside that of reading the files.
    #[arg(long)]
    first_token: bool,
    /// Also show where the time goes: every kernel beside the limits.
    #[arg(long, conflicts_with = "gemm")]
    profile: bool,
    /// Tokens per row of a training step [default: 1024, or as the recipe says]; --batch gives the rows.
    #[arg(long, value_name = "N", requires = "train")]
    #[arg(value_parser = parse_tokens)]
    tokens: Option<usize>,
    /// Arithmetic of the matrices in training [default: bf16, or as the recipe says].
    #[arg(long, value_name = "TYPE", requires = "train")]
    dtype: Option<DtypeName>,
    /// Seed of the random tokens.
    #[arg(short = 's', long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cpu = args.device.cpu().context("bench")?;
    if args.gemm {
        return bench::kernels::run(cpu, args.repetitions, args.json);
    }
    let batches: Vec<usize> = args.batch.iter().map(|b| usize::from(*b)).collect();
    if let Some(what) = &args.train {
        if batches.len() > 1 {
            return Err(Stop::Usage("--train takes one --batch".to_owned()).into());
        }
        let wishes = Wishes {
            tokens: args.tokens,
            rows: batches.first().copied(),
            dtype: args.dtype,
            repetitions: args.repetitions,
            profile: args.profile,
            seed: args.seed,
        };
        return bench::train::run(cpu, what, &wishes, args.json);
    }
    let Some(model) = &args.model else {
        let words = "bench needs --model DIR, --gemm or --train NAME; see `zamba bench --help`";
        return Err(Stop::Usage(words.to_owned()).into());
    };
    let plan = Plan {
        prompts: args.pp.clone(),
        generated: args.tg.clone(),
        depths: args.depth.clone(),
        batches: if batches.is_empty() { vec![1] } else { batches },
        repetitions: args.repetitions,
        first_token: args.first_token,
        profile: args.profile,
        seed: args.seed,
        load: args.load,
    };
    let folder = ModelArgs::new(model.clone(), args.offline).folder()?;
    bench::model::run(cpu, &folder, &plan, args.json)
}

fn parse_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=16_777_216) => Ok(n),
        _ => Err("expected a number from 1 to 16777216".to_owned()),
    }
}
