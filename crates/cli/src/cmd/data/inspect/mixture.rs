//! Mixtures of recipes and runs, and the documents of their steps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::tokenizer::Tokenizer;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::{Mixture, Realised};
use zamba_train::ckpt::{self, sha256_hex};
use zamba_train::recipe::Plan;
use zamba_train::{Recipe, data};

use super::lengths::Lengths;
use super::{Args, page, write_page};
use crate::out;

/// Characters of the beginning of a document in a list.
const SHOWN: usize = 60;

/// A recipe with its data open.
struct Opened {
    recipe: Recipe,
    plan: Plan,
    mixture: Arc<Mixture>,
}

/// All that is said of a mixture.
#[derive(Debug, Serialize)]
struct MixtureInfo {
    sources: Vec<SourceInfo>,
    phases: Vec<PhaseInfo>,
}

#[derive(Debug, Serialize)]
struct SourceInfo {
    name: String,
    shards: Vec<PathBuf>,
    lengths: Lengths,
}

#[derive(Debug, Serialize)]
struct PhaseInfo {
    name: String,
    steps: u64,
    rows: u64,
    mixture: Vec<Realised>,
}

/// A step and what the model is shown in it.
#[derive(Debug, Serialize)]
struct StepInfo {
    step: u64,
    phase: String,
    rows: Vec<RowInfo>,
}

#[derive(Debug, Serialize)]
struct RowInfo {
    row: usize,
    source: String,
    documents: Vec<PieceInfo>,
}

/// Tokens `from..to` of a document.
#[derive(Debug, Serialize)]
struct PieceInfo {
    shard: PathBuf,
    document: u64,
    from: u32,
    to: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let opened = open(args)?;
    match args.step {
        Some(step) => show_step(args, &opened, step),
        None => show_mixture(args, &opened),
    }
}

fn open(args: &Args) -> anyhow::Result<Opened> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let newest = args.run.as_deref().map(|run| newest(&*fs, run)).transpose()?;
    let recipe = match (&args.recipe, &newest) {
        (Some(path), _) => Recipe::load(&*fs, path, &args.set)?,
        (None, Some((dir, manifest))) => {
            let bytes = ckpt::read_file(&*fs, dir, manifest, "state/recipe.toml")?;
            let base = args.base.clone().unwrap_or_else(|| PathBuf::from("."));
            Recipe::parse(&String::from_utf8_lossy(&bytes), &base.join("recipe.toml"), &[])?
        }
        (None, None) => bail!("give --recipe or --run"),
    };
    let plan = Plan::new(&recipe)?;
    let config = recipe.model_config(&*fs)?;
    let tokenizer = match &recipe.tokenizer {
        Some(path) => {
            let path = recipe.resolve(path);
            Some(sha256_hex(&fs.read(&path).with_context(|| format!("cannot read {}", path.display()))?))
        }
        None => None,
    };
    let (mixture, _) = data::open(&recipe, &plan, &config, &fs, tokenizer.as_deref())?;
    if let Some((dir, manifest)) = newest {
        let (phase, _) = plan.place(manifest.head.step.saturating_sub(1));
        if mixture.fingerprint(phase) != manifest.head.data_sha256 {
            bail!("{} was made with other data than its recipe names now; restore the shards", dir.display());
        }
    }
    Ok(Opened { recipe, plan, mixture })
}

fn newest(fs: &dyn Fs, run: &Path) -> anyhow::Result<(PathBuf, ckpt::Manifest)> {
    let found = ckpt::newest(fs, run, &mut |text| out::note(&text))?;
    found.with_context(|| format!("{} holds no checkpoint; give the recipe with --recipe", run.display()))
}

fn show_mixture(args: &Args, opened: &Opened) -> anyhow::Result<()> {
    let info = info(opened);
    if let Some(path) = &args.html {
        let mut page = page::Page::new("Mixture");
        for phase in &info.phases {
            page.heading(&format!("Phase {}: {} steps", phase.name, out::count(phase.steps)));
            page.table(&HEAD, &rows(phase));
        }
        for source in &info.sources {
            page.heading(&format!("Source {}", source.name));
            page.table(&["", ""], &source_rows(source));
            page.lengths(&source.lengths)?;
        }
        write_page(path, &page)?;
    }
    if args.json {
        return out::json(&info);
    }
    for phase in &info.phases {
        out::line(&format!(
            "phase {}: {} steps, {} rows",
            phase.name,
            out::count(phase.steps),
            out::count(phase.rows)
        ))?;
        for row in std::iter::once(&HEAD.map(str::to_owned)).chain(&rows(phase)) {
            let [name, numbers @ ..] = row;
            let numbers: String = numbers.iter().map(|cell| format!(" {cell:>15}")).collect();
            out::line(&format!("  {name:<20}{numbers}"))?;
        }
    }
    for source in &info.sources {
        out::line(&format!("source {}", source.name))?;
        for [name, value] in source_rows(source) {
            out::line(&format!("  {name:<22}{value}"))?;
        }
        out::text(&source.lengths.text())?;
    }
    Ok(())
}

const HEAD: [&str; 6] = ["source", "asked for", "share", "rows", "tokens", "epochs read"];

fn rows(phase: &PhaseInfo) -> Vec<[String; 6]> {
    let row = |part: &Realised| {
        let share = |share: f64| format!("{:.2} %", 100.0 * share);
        [
            part.name.clone(),
            share(part.uncapped),
            share(part.weight),
            out::count(part.samples),
            out::count(part.tokens),
            format!("{:.3}", part.epochs),
        ]
    };
    phase.mixture.iter().map(row).collect()
}

fn source_rows(source: &SourceInfo) -> Vec<[String; 2]> {
    let shards: Vec<String> = source.shards.iter().map(|path| path.display().to_string()).collect();
    let row = |name: &str, value: String| [name.to_owned(), value];
    vec![
        row("shards", shards.join(", ")),
        row("documents", out::count(source.lengths.documents)),
        row("tokens", out::count(source.lengths.tokens)),
        row("tokens per document", source.lengths.summary()),
    ]
}

fn info(opened: &Opened) -> MixtureInfo {
    let Opened { recipe, plan, mixture } = opened;
    let source = |(i, (name, _)): (usize, (&str, u64))| {
        let shards = mixture.shards(i);
        let lengths = shards.iter().flat_map(|shard| (0..shard.documents()).map(move |d| shard.doc_len(d)));
        SourceInfo {
            name: name.to_owned(),
            shards: shards.iter().map(|shard| shard.prefix().to_owned()).collect(),
            lengths: Lengths::of(lengths),
        }
    };
    let phase = |(p, phase): (usize, &zamba_train::recipe::PhasePlan)| {
        let rows = phase.schedule.steps * recipe.global_batch as u64;
        let mixture = mixture.realised(p, 0, rows);
        PhaseInfo { name: phase.name.clone(), steps: phase.schedule.steps, rows, mixture }
    };
    MixtureInfo {
        sources: mixture.sources().enumerate().map(source).collect(),
        phases: plan.phases.iter().enumerate().map(phase).collect(),
    }
}

fn show_step(args: &Args, opened: &Opened, step: u64) -> anyhow::Result<()> {
    let Opened { recipe, plan, .. } = opened;
    if step > plan.steps() {
        bail!("--step {step}: the run has {} steps", plan.steps());
    }
    if args.row.is_some_and(|row| row >= recipe.global_batch) {
        bail!("--row {}: a step has {} rows, counted from 0", args.row.unwrap_or(0), recipe.global_batch);
    }
    let tokenizer = match (&args.tokenizer, &recipe.tokenizer) {
        (Some(folder), _) => Some(Tokenizer::from_dir(folder)?),
        (None, Some(path)) => {
            let path = recipe.resolve(path);
            Some(Tokenizer::from_dir(path.parent().unwrap_or(Path::new(".")))?)
        }
        (None, None) => None,
    };
    let (phase, at) = plan.place(step - 1);
    let rows = args.row.map_or(0..recipe.global_batch, |row| row..row + 1);
    let whole = args.json || args.row.is_some();
    let rows = rows.map(|row| {
        let sample = at * recipe.global_batch as u64 + row as u64;
        row_info(opened, tokenizer.as_ref(), phase, sample, row, whole)
    });
    let info =
        StepInfo { step, phase: plan.phases[phase].name.clone(), rows: rows.collect::<anyhow::Result<_>>()? };
    if args.json {
        return out::json(&info);
    }
    out::line(&format!("step {step}, phase {}", info.phase))?;
    for row in &info.rows {
        out::line(&format!("row {}, source {}", row.row, row.source))?;
        for piece in &row.documents {
            let PieceInfo { shard, document, from, to, text } = piece;
            out::line(&format!("  {}:{document} tokens {from}..{to}", shard.display()))?;
            if let Some(text) = text {
                out::line(&if whole { text.clone() } else { format!("      {}", beginning(text)) })?;
            }
        }
    }
    Ok(())
}

/// How a text begins, in one line.
fn beginning(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().take(SHOWN).collect();
    words.join(" ").chars().take(SHOWN).collect()
}

fn row_info(
    opened: &Opened,
    tokenizer: Option<&Tokenizer>,
    phase: usize,
    sample: u64,
    row: usize,
    whole: bool,
) -> anyhow::Result<RowInfo> {
    let mixture = &opened.mixture;
    let (source, pieces) = mixture.pieces(phase, sample);
    let shards = mixture.shards(source);
    // The last token of the window is only a target.
    let mut left = mixture.seq_len() as u32;
    let mut documents = Vec::new();
    for piece in pieces {
        let len = piece.len.min(left);
        left -= len;
        if len == 0 {
            continue;
        }
        let shard = &shards[piece.shard];
        let text = match tokenizer {
            Some(tokenizer) => {
                let most = if whole { len } else { len.min(SHOWN as u32) };
                let mut tokens = vec![0; most as usize];
                shard.read(piece.doc, piece.doc_start, &mut tokens)?;
                Some(tokenizer.decode(&tokens, false)?)
            }
            None => None,
        };
        let (from, to) = (piece.doc_start, piece.doc_start + len);
        documents.push(PieceInfo { shard: shard.prefix().to_owned(), document: piece.doc, from, to, text });
    }
    let name = mixture.sources().nth(source).map(|(name, _)| name.to_owned());
    Ok(RowInfo { row, source: name.unwrap_or_default(), documents })
}
