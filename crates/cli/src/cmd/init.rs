//! `zamba init`: a checkpoint with random weights.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::ZambaConfig;
use zamba::checkpoint::{FileDtype, SaveOptions};
use zamba::init::init_tensor;
use zamba::tokenizer::Tokenizer;

use crate::common::{self, DtypeName};
use crate::error::Stop;
use crate::out;

/// Make a checkpoint with random weights.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  zamba init --config tiny --out tiny --seed 1")]
pub(crate) struct Args {
    /// tiny, demo, 44m, 130m, zamba-7b, or the path of a config.json.
    #[arg(long, value_name = "NAME|config.json")]
    config: PathBuf,
    /// The folder to make.
    #[arg(short = 'o', long, value_name = "DIR")]
    out: PathBuf,
    /// How to store the weights [default: as the config says].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    /// Seed of the weights, which depend on it and on the config alone.
    #[arg(short = 's', long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// A tokenizer.json to put into the folder.
    #[arg(long, value_name = "tokenizer.json")]
    tokenizer: Option<PathBuf>,
    /// Replace a model that is there.
    #[arg(long)]
    force: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Made<'a> {
    path: &'a Path,
    parameters: u64,
    bytes_of_weights: u64,
    dtype: &'static str,
    seed: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = config(&args.config)?;
    if config.quantization.is_some() {
        bail!("--config asks for quantised weights; make plain ones and quantise them with `zamba quantize`");
    }
    let dtype = args.dtype.map_or(config.dtype, FileDtype::from);
    let files = args.tokenizer.as_deref().map(|path| tokenizer(path, config.vocab_size)).transpose()?;
    let bytes = config.bytes_of_weights(dtype);
    let options = SaveOptions {
        dtype,
        files: files.into_iter().collect(),
        replace: args.force,
        ..SaveOptions::default()
    };
    common::save(&args.out, &config, &options, &mut |spec, values| {
        init_tensor(&config, spec, args.seed, values);
        Ok(())
    })?;
    let (parameters, dtype) = (config.parameters(), dtype.torch_name());
    if args.json {
        return out::json(&Made {
            path: &args.out,
            parameters,
            bytes_of_weights: bytes,
            dtype,
            seed: args.seed,
        });
    }
    let (size, name) = (out::bytes(bytes), args.out.display());
    out::line(&format!("{name}: {} parameters in {dtype}, {size}", out::count(parameters)))
}

/// A configuration by name or from a file.
fn config(name: &Path) -> anyhow::Result<ZambaConfig> {
    if let Some(preset) = name.to_str().filter(|name| ZambaConfig::preset_names().contains(name)) {
        return Ok(ZambaConfig::preset(preset)?);
    }
    if !name.exists() {
        let (name, known) = (name.display(), ZambaConfig::preset_names().join(", "));
        let message = format!("--config {name} is neither a file nor a known name; the names are {known}");
        return Err(Stop::Usage(message).into());
    }
    let text = common::read_text(name)?;
    ZambaConfig::from_json(&text).with_context(|| name.display().to_string())
}

/// The file under the name that loaders look for, after a look at whether it can be loaded.
fn tokenizer(path: &Path, vocab: usize) -> anyhow::Result<(String, Vec<u8>)> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let trial = tempfile::tempdir().context("cannot make a temporary folder")?;
    let name = "tokenizer.json";
    fs::write(trial.path().join(name), &bytes).context("cannot write into the temporary folder")?;
    // The message of the library names the file in the temporary folder, which would tell the user nothing.
    let shown = |e: zamba::tokenizer::TokenizerError| {
        e.to_string().replace(&trial.path().join(name).display().to_string(), &path.display().to_string())
    };
    let tokenizer = Tokenizer::from_dir(trial.path()).map_err(|e| anyhow::anyhow!(shown(e)))?;
    if tokenizer.max_id() as usize >= vocab {
        let (path, highest) = (path.display(), tokenizer.max_id());
        bail!(
            "{path} has ids up to {highest}, but the config's vocab_size is {vocab}; raise it to {}",
            highest + 1
        );
    }
    Ok((name.to_owned(), bytes))
}
