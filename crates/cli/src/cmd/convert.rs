//! `zamba convert`: a checkpoint in another type, other shards, or the current layout of tensors.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use zamba::ZambaConfig;
use zamba::checkpoint::{FileDtype, SaveOptions};

use crate::common::{self, DtypeName, LoadArgs, ModelArgs};
use crate::out;

/// Rewrite a checkpoint in another type, other shards, or today's names.
///
/// Checkpoints with the old tensor names get the current ones. Values stay as they are, bit for bit, unless the
/// chosen type cannot hold them. A quantised checkpoint stays so, unless a type is chosen: then its integers are
/// multiplied out, which does not bring back the weights that they were made from.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  zamba convert -m zamba-7b --out zamba-7b-bf16 --dtype bf16 --max-shard-size 5GB"
)]
pub(crate) struct Args {
    /// The folder to make.
    #[arg(short = 'o', long, value_name = "DIR")]
    out: PathBuf,
    /// How to store the weights [default: each as it is].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    /// Most bytes of weights in a file, such as 500MB or 5GB (or GiB).
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = common::parse_size)]
    max_shard_size: u64,
    /// Replace a model that is there.
    #[arg(long)]
    force: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Serialize)]
struct Made<'a> {
    path: &'a Path,
    parameters: u64,
    bytes_of_weights: u64,
    dtype: &'static str,
    files: Vec<String>,
}

/// Files that belong to a model beside its weights and configuration.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.model.folder()?;
    let checkpoint = common::open(&folder, LoadArgs::COPY)?;
    let config = &checkpoint.config;
    let dtype = args.dtype.map_or(config.dtype, FileDtype::from);
    let exceptions = if args.dtype.is_some() { HashMap::new() } else { checkpoint.exceptions() };
    let files = companions(&folder)?;
    let copied = files.iter().map(|(name, _)| name.clone()).collect();
    let options = SaveOptions {
        dtype,
        exceptions,
        max_shard_bytes: args.max_shard_size,
        files,
        replace: args.force,
        ..SaveOptions::default()
    };
    // Types are for numbers, so who chooses one wants numbers.
    let quantization = config.quantization.filter(|_| args.dtype.is_none());
    let config = &ZambaConfig { quantization, ..config.clone() };
    common::save_quantised("writing", &args.out, config, &options, &mut |spec, content| {
        let read = match spec.quantised(config) {
            Some(format) => {
                content.bytes.resize(format.dtype().bytes(spec.len()), 0);
                checkpoint.read_quants(&spec.name, 0, &mut content.bytes)
            }
            None => checkpoint.read_whole(&spec.name, &mut content.numbers),
        };
        read.with_context(|| format!("cannot load {}", folder.display()))
    })?;
    let (parameters, bytes, dtype) =
        (config.parameters(), config.bytes_of_weights(dtype), dtype.torch_name());
    if args.json {
        return out::json(&Made {
            path: &args.out,
            parameters,
            bytes_of_weights: bytes,
            dtype,
            files: copied,
        });
    }
    let (size, name) = (out::bytes(bytes), args.out.display());
    out::line(&format!("{name}: {} parameters in {dtype}, {size}", out::count(parameters)))
}

/// The files of a folder that belong to its model beside weights and configuration.
pub(crate) fn companions(folder: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let present = COMPANIONS.iter().filter(|name| folder.join(name).is_file());
    let read = |name: &&str| {
        let path = folder.join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(((*name).to_owned(), bytes))
    };
    present.map(read).collect()
}
