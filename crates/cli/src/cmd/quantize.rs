//! `zamba quantize`: a checkpoint with its matrices in 8 or 4 bits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::ZambaConfig;
use zamba::checkpoint::{Checkpoint, Content, SaveOptions};
use zamba::config::QuantFormat;
use zamba::moments::Moments;
use zamba::spec::{TensorSpec, tensors};
use zamba_eval::calibrate;
use zamba_kernels::cpu::{Cpu, QuantError};

use crate::cmd::convert::companions;
use crate::cmd::eval::documents;
use crate::common::{self, DeviceArgs, LoadArgs, ModelArgs};
use crate::progress::{Progress, Unit};
use crate::{interrupt, out};

/// Quantise a checkpoint to 8 or 4 bits per weight.
///
/// The matrices of linear maps become integers with a scale per 128 weights; embedding, head and small tensors stay as
/// they are. All commands but `train` work on the result, which is read as it lies in the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  zamba quantize -m zamba-7b --out zamba-7b-q8 --format q8\n  \
    zamba quantize -m zamba-7b --out zamba-7b-q4 --format q4 --calibrate sample.jsonl")]
pub(crate) struct Args {
    /// The folder to make.
    #[arg(short = 'o', long, value_name = "DIR")]
    out: PathBuf,
    /// q8 takes 8.125 bits per weight, q4 takes 4.125.
    #[arg(short = 'f', long, value_name = "FORMAT")]
    format: Format,
    /// Text like that which the model is for, a .txt or .jsonl file: the model reads it first, and weights that meet
    /// large activations are rounded with more care.
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
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
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Q8,
    Q4,
}

impl From<Format> for QuantFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Q8 => QuantFormat::Q8,
            Format::Q4 => QuantFormat::Q4,
        }
    }
}

/// Longest sequence of a calibration text. What linear maps see depends little on what is further back.
const CONTEXT: usize = 2048;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.model.folder()?;
    let checkpoint = common::open(&folder, args.load)?;
    if checkpoint.config.quantization.is_some() {
        bail!("{} is quantised already; quantise the checkpoint that it was made from", folder.display());
    }
    let config = ZambaConfig { quantization: Some(args.format.into()), ..checkpoint.config.clone() };
    if tensors(&config).iter().all(|spec| spec.quantised(&config).is_none()) {
        bail!(
            "no matrix of {} falls into blocks of 16 rows and 128 columns: it is too small",
            folder.display()
        );
    }
    crate::file::check_folder(&args.out, args.force, config.bytes_of_weights(config.dtype))?;
    let (moments, tokens) = match &args.calibrate {
        Some(text) => moments(args, &folder, &checkpoint, text)?,
        None => (Moments::default(), 0),
    };
    let options = SaveOptions {
        dtype: config.dtype,
        exceptions: checkpoint.exceptions(),
        max_shard_bytes: args.max_shard_size,
        files: companions(&folder)?,
        replace: args.force,
        ..SaveOptions::default()
    };
    let cpu = args.device.cpu()?;
    let mut report = Report::new(args, &checkpoint, &config, tokens);
    let (mut weights, mut done) = (vec![], BTreeSet::new());
    common::save_quantised("quantising", &args.out, &config, &options, &mut |spec, content| {
        let read = |numbers: &mut Vec<f32>| {
            let read = checkpoint.read_whole(&spec.name, numbers);
            read.with_context(|| format!("cannot load {}", folder.display()))
        };
        let Some(format) = spec.quantised(&config) else { return read(&mut content.numbers) };
        read(&mut weights)?;
        let id = checkpoint.specs().iter().position(|s| s.name == spec.name);
        let importance = id.and_then(|id| moments.mean_squares(id)).map(spread);
        let error = quantise(&cpu, format, spec, &weights, importance.as_deref(), content);
        // The scales of a tensor may be asked for after those of others, which takes a second turn.
        if done.insert(spec.name.clone()) {
            report.add(spec, error);
        }
        Ok(())
    })?;
    if args.json { out::json(&report) } else { out::table(&report.rows()) }
}

fn quantise(
    cpu: &Cpu,
    format: QuantFormat,
    spec: &TensorSpec,
    weights: &[f32],
    importance: Option<&[f32]>,
    content: &mut Content,
) -> QuantError {
    content.bytes.resize(format.dtype().bytes(spec.len()), 0);
    cpu.quantise(format.dtype(), spec.rows_cols().1, weights, importance, &mut content.bytes)
}

/// No column is without importance, however silent it was in the text.
fn spread(mut squares: Vec<f32>) -> Vec<f32> {
    let mean = squares.iter().map(|x| f64::from(*x)).sum::<f64>() / squares.len() as f64;
    let least = (mean / 100.0).max(f64::from(f32::MIN_POSITIVE)) as f32;
    squares.iter_mut().for_each(|x| *x += least);
    squares
}

/// Runs the model over a text. It is gone from memory before anything is quantised.
fn moments(
    args: &Args,
    folder: &Path,
    checkpoint: &Checkpoint,
    text: &Path,
) -> anyhow::Result<(Moments, u64)> {
    let vocab = checkpoint.config.vocab_size;
    let (documents, bytes) = documents(text, folder, vocab)?;
    documents.iter().try_for_each(|d| common::check_tokens(&d.tokens, vocab))?;
    let tokens: u64 = documents.iter().map(|d| d.tokens.len() as u64).sum();
    if bytes == 0 {
        bail!("{} holds no text to calibrate with", text.display());
    }
    let longest = documents.iter().map(|d| d.tokens.len()).max().unwrap_or(1);
    let context = common::check_context(&checkpoint.config, longest.min(CONTEXT) as u64)?;
    let model = common::load(checkpoint, &args.device, args.load)?;
    let mut progress = Progress::new("calibrating", tokens, Unit::Items("tokens"));
    let moments = calibrate(&model, context, documents.into_iter().map(Ok::<_, anyhow::Error>), |seen| {
        progress.add(seen);
        Ok(interrupt::check("nothing was written")?)
    })?;
    Ok((moments, tokens))
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    path: &'a Path,
    format: &'static str,
    parameters: u64,
    quantised_parameters: u64,
    bytes_before: u64,
    bytes_of_weights: u64,
    bits_per_weight: f64,
    calibration_tokens: u64,
    relative_error: f64,
    relative_output_error: f64,
    kinds: BTreeMap<String, Kind>,
    #[serde(skip)]
    error: QuantError,
}

/// All matrices of one name.
#[derive(Debug, Default, Serialize)]
struct Kind {
    tensors: u64,
    parameters: u64,
    relative_error: f64,
    relative_output_error: f64,
    #[serde(skip)]
    error: QuantError,
}

impl<'a> Report<'a> {
    fn new(args: &'a Args, before: &Checkpoint, config: &ZambaConfig, tokens: u64) -> Self {
        let (parameters, bytes) = (config.parameters(), stored_bytes(before, config));
        Report {
            path: &args.out,
            format: QuantFormat::from(args.format).name(),
            parameters,
            quantised_parameters: 0,
            bytes_before: before.total_bytes(),
            bytes_of_weights: bytes,
            bits_per_weight: 8.0 * bytes as f64 / parameters as f64,
            calibration_tokens: tokens,
            relative_error: 0.0,
            relative_output_error: 0.0,
            kinds: BTreeMap::new(),
            error: QuantError::default(),
        }
    }

    fn add(&mut self, spec: &TensorSpec, error: QuantError) {
        let name = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let kind = self.kinds.entry(name.rsplit('.').next().unwrap_or(name).to_owned()).or_default();
        kind.tensors += 1;
        kind.parameters += spec.len() as u64;
        kind.error += error;
        kind.relative_error = kind.error.relative();
        kind.relative_output_error = kind.error.relative_important();
        self.quantised_parameters += spec.len() as u64;
        self.error += error;
        self.relative_error = self.error.relative();
        self.relative_output_error = self.error.relative_important();
    }

    fn rows(&self) -> Vec<(&str, String)> {
        let mut rows = vec![
            ("model", self.path.display().to_string()),
            ("format", self.format.to_owned()),
            ("parameters", out::count(self.parameters)),
            ("of these quantised", out::count(self.quantised_parameters)),
            ("weights before", out::bytes(self.bytes_before)),
            ("weights", out::bytes(self.bytes_of_weights)),
            ("bits per weight", format!("{:.3}", self.bits_per_weight)),
            ("calibration", format!("{} tokens", out::count(self.calibration_tokens))),
            ("relative error", self.errors(self.relative_error, self.relative_output_error)),
        ];
        for (name, kind) in &self.kinds {
            rows.push((name, self.errors(kind.relative_error, kind.relative_output_error)));
        }
        rows
    }

    /// Without a calibration the two are the same.
    fn errors(&self, weights: f64, outputs: f64) -> String {
        match self.calibration_tokens {
            0 => format!("{weights:.5}"),
            _ => format!("{weights:.5}, {outputs:.5} by activations"),
        }
    }
}

/// Bytes of all weights as they will be stored.
fn stored_bytes(before: &Checkpoint, config: &ZambaConfig) -> u64 {
    let bytes = |spec: &TensorSpec| match spec.quantised(config) {
        Some(format) => format.dtype().bytes(spec.len()) as u64,
        None => (spec.len() * before.dtype(&spec.name).size()) as u64,
    };
    before.specs().iter().map(bytes).sum()
}
