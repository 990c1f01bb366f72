//! `zamba score`: log-likelihood of given text, token by token.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use zamba::checkpoint::FileDtype;
use zamba::checkpoint::write::{self, WriteEntry};
use zamba::{Session, Zamba};

use crate::common::{self, DeviceArgs, LoadArgs, ModelArgs};
use crate::file::NewFile;
use crate::progress::{Progress, Unit};
use crate::text::Text;
use crate::{interrupt, out};

/// Score given text: the natural logarithm of the probability of each token.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints a JSON line per input line: {\"tokens\":[...],\"logprobs\":[null,...]}, where \
    logprobs[j] is log p(tokens[j] | tokens[..j]).\n\nExample:\n  \
    zamba score -m zamba-7b --input lines.jsonl --logits logits.safetensors"
)]
pub(crate) struct Args {
    /// JSON lines {"tokens":[1,2,3]} or {"text":"..."}; - is standard input.
    #[arg(short = 'i', long, value_name = "FILE.jsonl")]
    input: PathBuf,
    /// Write f32 logits [tokens, vocabulary] of line i (from 0) as tensor "i".
    #[arg(long, value_name = "OUT.safetensors")]
    logits: Option<PathBuf>,
    /// The output is JSON lines in any case.
    #[arg(long = "json")]
    _json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A line as typed.
#[derive(Debug, Deserialize)]
struct Line {
    tokens: Option<Vec<u32>>,
    text: Option<String>,
}

#[derive(Debug, Serialize)]
struct Scored<'a> {
    tokens: &'a [u32],
    logprobs: Vec<Option<f32>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let input = common::read_text(&args.input)?;
    let folder = args.model.folder()?;
    let checkpoint = common::open(&folder, args.load)?;
    let text = Text::find(&folder, checkpoint.config.vocab_size)?;
    let lines = parse(&input, &args.input, text.as_ref(), checkpoint.config.vocab_size)?;
    let logits = args.logits.as_deref().map(|path| Logits::begin(path, &lines, checkpoint.config.vocab_size));
    let logits = logits.transpose()?;
    let longest = lines.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let longest = common::check_context(&checkpoint.config, longest as u64)?;
    let model = common::load(&checkpoint, &args.device, args.load)?;
    score(&model, &lines, longest, logits)
}

fn score(
    model: &Zamba,
    lines: &[Vec<u32>],
    longest: usize,
    mut logits: Option<Logits>,
) -> anyhow::Result<()> {
    let mut session = Session::new(model, longest);
    let mut progress = Progress::new("scoring", lines.len() as u64, Unit::Items("lines"));
    for tokens in lines {
        interrupt::check("the lines printed so far are complete")?;
        let logprobs = match &mut logits {
            // An empty line has no first token to start from, and nothing to say.
            _ if tokens.is_empty() => vec![],
            None => session.score(tokens, None),
            Some(logits) => {
                let mut written = Ok(());
                let logprobs = session.score(
                    tokens,
                    Some(&mut |rows| {
                        if written.is_ok() {
                            written = logits.write(rows);
                        }
                    }),
                );
                written?;
                logprobs
            }
        };
        out::json(&Scored { tokens, logprobs })?;
        progress.add(1);
    }
    logits.map_or(Ok(()), Logits::publish)
}

/// All lines as token ids, so that every fault is found before the first is scored.
fn parse(input: &str, name: &Path, text: Option<&Text>, vocab: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let lines = input.trim_end().lines().enumerate();
    lines
        .map(|(i, line)| tokens(line, text, vocab).with_context(|| format!("{}:{}", name.display(), i + 1)))
        .collect()
}

fn tokens(line: &str, text: Option<&Text>, vocab: usize) -> anyhow::Result<Vec<u32>> {
    if line.trim().is_empty() {
        bail!("the line is empty; give {{\"tokens\":[...]}} or {{\"text\":\"...\"}}, or remove it");
    }
    // The parser counts lines within its own text, where there is only one.
    let line: Line = serde_json::from_str(line).map_err(|e| {
        let words = e.to_string();
        let words = words.split(" at line ").next().unwrap_or_default();
        anyhow::anyhow!(
            "column {}: {words}; a line is {{\"tokens\":[...]}} or {{\"text\":\"...\"}}",
            e.column()
        )
    })?;
    let tokens = match line {
        Line { tokens: Some(tokens), text: None } => tokens,
        Line { tokens: None, text: Some(words) } => text.context(NO_TOKENIZER)?.encode(&words)?,
        _ => bail!("a line has either \"tokens\" or \"text\""),
    };
    common::check_tokens(&tokens, vocab)?;
    Ok(tokens)
}

const NO_TOKENIZER: &str = "the model has no tokenizer.json; give \"tokens\" instead of \"text\"";

/// A safetensors file that is written row by row: all shapes are known before the first number is.
struct Logits {
    file: NewFile,
    buffer: Vec<u8>,
}

impl Logits {
    fn begin(path: &Path, lines: &[Vec<u32>], vocab: usize) -> anyhow::Result<Self> {
        let entry = |(i, tokens): (usize, &Vec<u32>)| WriteEntry {
            name: i.to_string(),
            dtype: FileDtype::F32,
            shape: vec![tokens.len(), vocab],
        };
        let entries: Vec<_> = lines.iter().enumerate().map(entry).collect();
        // Tensors of one type follow the header in the order given.
        let (header, _) = write::header(&entries)?;
        let mut file = NewFile::begin(path)?;
        let numbers: u64 = lines.iter().map(|tokens| (tokens.len() * vocab) as u64).sum();
        file.need(4 * numbers + header.len() as u64)?;
        file.file().write_all(&header).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Logits { file, buffer: vec![] })
    }

    fn write(&mut self, rows: &[f32]) -> anyhow::Result<()> {
        self.buffer.clear();
        self.buffer.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
        self.file.file().write_all(&self.buffer).context("cannot write the logits")
    }

    fn publish(self) -> anyhow::Result<()> {
        self.file.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        let lines = parse(&format!("{{\"tokens\":[1]}}\n{line}\n"), Path::new("in.jsonl"), None, 10);
        format!("{:#}", lines.unwrap_err())
    }

    #[test]
    fn faults_name_the_line() {
        assert!(
            error("{\"tokens\":[1,}").starts_with("in.jsonl:2: column 14: "),
            "{}",
            error("{\"tokens\":[1,}")
        );
        assert!(error("{\"tokens\":[1,10]}").contains("in.jsonl:2: token 10"));
        assert!(error("{\"text\":\"a\"}").contains("in.jsonl:2: the model has no tokenizer"));
        assert!(error("{}").contains("either"));
        assert!(error("{\"tokens\":[-1]}").contains("in.jsonl:2"));
        assert!(error(" \n{\"tokens\":[1]}").contains("in.jsonl:2: the line is empty"));
    }

    #[test]
    fn empty_lists_are_lines_of_their_own() {
        let lines = parse("{\"tokens\":[]}\n{\"tokens\":[1,2]}\n\n", Path::new("x"), None, 10).unwrap();
        assert_eq!(lines, [vec![], vec![1, 2]]);
    }
}
