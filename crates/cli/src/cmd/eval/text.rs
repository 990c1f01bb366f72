//! `zamba eval --bpb`: how well a model predicts text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::Zamba;
use zamba_data::fs::RealFs;
use zamba_data::{Shard, input};
use zamba_eval::{BitsPerByte, Divergence, Document, bits_per_byte, divergence};

use super::Args;
use crate::common;
use crate::progress::{Progress, Unit};
use crate::text::{NO_TOKENIZER, Text};
use crate::{interrupt, out};

/// Text to be predicted.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// Text to score: a .jsonl or text file, a folder of such files, or the prefix of a token shard.
    #[arg(long, value_name = "FILE|DIR|SHARD")]
    pub(super) bpb: Option<PathBuf>,
    /// Another model with the same tokens, such as the one that -m was quantised from: report how far the
    /// predictions of -m are from its.
    #[arg(long, value_name = "DIR", requires = "bpb")]
    against: Option<PathBuf>,
    /// Longest sequence; longer documents are scored in parts [default: the longest document, at most 32768].
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ctx: Option<u64>,
}

/// Longest sequence unless the user asks for more: attention takes time that grows with its square.
pub(super) const MAX_CONTEXT: usize = 32_768;

#[derive(Debug, Serialize)]
struct Report {
    bits_per_byte: f64,
    byte_perplexity: f64,
    word_perplexity: Option<f64>,
    loss: f64,
    documents: u64,
    tokens: u64,
    bytes: u64,
    words: Option<u64>,
    documents_cut: u64,
    context: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
}

pub(super) fn run(args: &Args, text: &Path) -> anyhow::Result<()> {
    let folder = args.folder()?;
    let checkpoint = common::open(&folder, args.load)?;
    let config = &checkpoint.config;
    let (documents, bytes) = documents(text, &folder, config.vocab_size)?;
    documents.iter().try_for_each(|d| common::check_tokens(&d.tokens, config.vocab_size))?;
    let tokens: u64 = documents.iter().map(|d| d.tokens.len().saturating_sub(1) as u64).sum();
    if tokens == 0 || bytes == 0 {
        bail!("{} holds no text to score", text.display());
    }
    let longest = documents.iter().map(|d| d.tokens.len()).max().unwrap_or(1);
    let context = args.text.ctx.unwrap_or(longest.min(MAX_CONTEXT) as u64).min(longest as u64);
    let context = common::check_context(config, context)?;
    let model = common::load(&checkpoint, &args.device, args.load)?;
    let other = args.text.against.as_deref().map(|folder| load_other(folder, args, &model)).transpose()?;

    let mut progress = Progress::new("scoring", tokens, Unit::Items("tokens"));
    let documents = documents.into_iter().map(Ok::<_, anyhow::Error>);
    let step = |scored| {
        progress.add(scored);
        Ok(interrupt::check("nothing was measured")?)
    };
    let report = match &other {
        None => {
            let sum = bits_per_byte(&model, context, documents, step)?;
            Report::new(&BitsPerByte { bytes, ..sum }, context)
        }
        Some(other) => {
            let sum = divergence(&model, other, context, documents, step)?;
            let report = Report::new(&BitsPerByte { bytes, ..sum.model }, context);
            Report { against: Some(Against::new(&sum, bytes)), ..report }
        }
    };
    drop(progress);
    if args.json { out::json(&report) } else { out::table(&report.rows()) }
}

/// The other model, and how far ours is from it.
#[derive(Debug, Serialize)]
struct Against {
    bits_per_byte: f64,
    loss: f64,
    kl_divergence: f64,
    kl_divergence_max: f64,
    same_top_token: f64,
}

impl Against {
    fn new(sum: &Divergence, bytes: u64) -> Self {
        let other = BitsPerByte { bytes, ..sum.against };
        Against {
            bits_per_byte: other.value(),
            loss: other.loss(),
            kl_divergence: sum.mean(),
            kl_divergence_max: sum.kl_max,
            same_top_token: sum.agreement(),
        }
    }

    fn rows(&self) -> [(&'static str, String); 5] {
        [
            ("bits per byte of the other", format!("{:.4}", self.bits_per_byte)),
            ("loss per token of the other", format!("{:.4}", self.loss)),
            ("KL divergence per token", format!("{:.6} nats", self.kl_divergence)),
            ("largest KL divergence", format!("{:.4} nats", self.kl_divergence_max)),
            ("same most likely token", format!("{:.2} %", 100.0 * self.same_top_token)),
        ]
    }
}

/// The model to compare with, if its tokens are those of `model`.
fn load_other(folder: &Path, args: &Args, model: &Zamba) -> anyhow::Result<Zamba> {
    let checkpoint = common::open(folder, args.load)?;
    let (other, ours) = (checkpoint.config.vocab_size, model.config.vocab_size);
    if other != ours {
        bail!(
            "{} has {other} tokens and the model has {ours}: their predictions cannot be compared",
            folder.display()
        );
    }
    common::load(&checkpoint, &args.device, args.load)
}

impl Report {
    fn new(sum: &BitsPerByte, context: usize) -> Self {
        let words = Some(sum.words).filter(|&words| words > 0);
        Report {
            bits_per_byte: sum.value(),
            byte_perplexity: sum.byte_perplexity(),
            word_perplexity: words.map(|_| sum.word_perplexity()),
            loss: sum.loss(),
            documents: sum.documents,
            tokens: sum.tokens,
            bytes: sum.bytes,
            words,
            documents_cut: sum.cut,
            context,
            against: None,
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        let mut rows = vec![
            ("bits per byte", format!("{:.4}", self.bits_per_byte)),
            ("byte perplexity", format!("{:.4}", self.byte_perplexity)),
            ("word perplexity", known(self.word_perplexity.map(|p| format!("{p:.2}")))),
            ("loss per token", format!("{:.4}", self.loss)),
            ("documents", out::count(self.documents)),
            ("of these cut", out::count(self.documents_cut)),
            ("tokens", out::count(self.tokens)),
            ("bytes", out::count(self.bytes)),
            ("words", known(self.words.map(out::count))),
        ];
        rows.extend(self.against.iter().flat_map(Against::rows));
        rows
    }
}

/// The documents at `path`, as tokens of the model in the folder `model`, and the bytes of text that they were made from.
pub(crate) fn documents(path: &Path, model: &Path, vocab: usize) -> anyhow::Result<(Vec<Document>, u64)> {
    let prefix = if path.extension().is_some_and(|e| e == "idx" || e == "bin") {
        path.with_extension("")
    } else {
        path.to_owned()
    };
    let mut index = prefix.clone().into_os_string();
    index.push(".idx");
    if Path::new(&index).is_file() {
        return shard(&prefix);
    }
    let texts = input::documents(&RealFs, path)?;
    let text = Text::find(model, vocab)?.context(NO_TOKENIZER)?;
    let mut documents = vec![];
    for contents in texts {
        documents.push(document(&text, &contents?)?);
    }
    let bytes = documents.iter().map(|d| d.bytes).sum();
    Ok((documents, bytes))
}

/// A document with BOS in front, also where the tokenizer would not put it there: without it the first token
/// of each document would go unscored.
fn document(text: &Text, contents: &str) -> anyhow::Result<Document> {
    let mut tokens = text.encode(contents)?;
    if let Some(bos) = text.tokenizer.bos_id().filter(|&bos| tokens.first() != Some(&bos)) {
        tokens.insert(0, bos);
    }
    Ok(Document::new(contents, tokens))
}

fn shard(prefix: &Path) -> anyhow::Result<(Vec<Document>, u64)> {
    let shard = Shard::open(Arc::new(RealFs), prefix)?;
    let read = |i| Ok(Document { tokens: shard.doc(i)?, ..Document::default() });
    let documents = (0..shard.documents()).map(read).collect::<anyhow::Result<_>>()?;
    Ok((documents, shard.manifest().source_bytes))
}
