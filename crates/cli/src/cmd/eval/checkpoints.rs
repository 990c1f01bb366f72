//! `zamba eval --checkpoints`: how a model learned, from the checkpoints of its run.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::Zamba;
use zamba::checkpoint::Checkpoint;
use zamba_data::fs::{Fs, RealFs};
use zamba_eval::{BitsPerByte, Figure, bits_per_byte};
use zamba_train::ckpt::{self, Head};

use super::dynamics::{self, Point};
use super::{Args, tasks, text};
use crate::common;
use crate::error::Stop;
use crate::progress::{Progress, Unit};
use crate::text::{NO_TOKENIZER, Text};
use crate::{interrupt, out};

/// What `--json` prints and `dynamics.json` holds.
#[derive(Debug, Serialize)]
struct Report<'a> {
    run: String,
    checkpoints: &'a [Point],
}

pub(super) fn run(args: &Args, root: &Path) -> anyhow::Result<()> {
    if !args.tasks.wanted() && args.text.bpb.is_none() {
        return Err(
            Stop::Usage("nothing to measure: give --tasks NAMES, --bpb TEXT or both".to_owned()).into()
        );
    }
    let checkpoints = ckpt::all(&RealFs, root)?;
    if checkpoints.is_empty() {
        bail!("{} has no checkpoints; name the --out of a `zamba train`", root.display());
    }
    let suite = args.tasks.wanted().then(|| args.tasks.open(args.offline)).transpose()?;
    let place = args.tasks.out.clone().unwrap_or_else(|| root.join("dynamics"));
    RealFs.create_dirs(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let mut points = vec![];
    for (folder, head) in &checkpoints {
        out::note(&format!("{}: phase {}, {} tokens", folder.display(), head.phase, out::count(head.tokens)));
        let checkpoint = common::open(folder, args.load)?;
        let model = common::load(&checkpoint, &args.device, args.load)?;
        let mut point = Point::new(head);
        if let Some(suite) = &suite {
            let text = Text::find(folder, model.config.vocab_size)?.context(NO_TOKENIZER)?;
            let mut store = tasks::open_store(args, Some(&place), folder)?;
            let outcome = tasks::evaluate(args, suite, &model, &text, &mut store)?;
            point.add(outcome.figures());
        }
        if let Some(path) = &args.text.bpb {
            point.bits_per_byte = Some(bpb(path, folder, &checkpoint, &model)?);
        }
        points.push(point);
    }
    write(root, &place, &points)?;
    let report = Report { run: root.display().to_string(), checkpoints: &points };
    if args.json {
        return out::json(&report);
    }
    dynamics::table(&points).into_iter().try_for_each(|line| out::line(&line))?;
    out::line(&format!("\n{}", place.join("dynamics.html").display()))
}

fn bpb(path: &Path, folder: &Path, checkpoint: &Checkpoint, model: &Zamba) -> anyhow::Result<f64> {
    let (documents, bytes) = text::documents(path, folder, checkpoint.config.vocab_size)?;
    documents.iter().try_for_each(|d| common::check_tokens(&d.tokens, checkpoint.config.vocab_size))?;
    let tokens: u64 = documents.iter().map(|d| d.tokens.len().saturating_sub(1) as u64).sum();
    if tokens == 0 || bytes == 0 {
        bail!("{} holds no text to score", path.display());
    }
    let longest = documents.iter().map(|d| d.tokens.len()).max().unwrap_or(1);
    let context = longest.min(text::MAX_CONTEXT);
    let mut progress = Progress::new("scoring", tokens, Unit::Items("tokens"));
    let documents = documents.into_iter().map(Ok::<_, anyhow::Error>);
    let sum = bits_per_byte(model, context, documents, |scored| {
        progress.add(scored);
        Ok(interrupt::check("nothing was drawn; answers of benchmarks are kept")?)
    })?;
    Ok(BitsPerByte { bytes, ..sum }.value())
}

fn write(root: &Path, place: &Path, points: &[Point]) -> anyhow::Result<()> {
    let report = Report { run: root.display().to_string(), checkpoints: points };
    let json = serde_json::to_vec_pretty(&report).context("cannot write the figures as JSON")?;
    let charts = dynamics::charts(points)?;
    let page = dynamics::page(&report.run, points, &charts);
    let put = |name: &str, bytes: &[u8]| {
        let path = place.join(name);
        RealFs.replace(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    put("dynamics.json", &json)?;
    put("dynamics.svg", charts.as_bytes())?;
    put("dynamics.html", page.as_bytes())
}

impl Point {
    fn new(head: &Head) -> Self {
        let (step, tokens, phase) = (head.step, head.tokens, head.phase.clone());
        Point { step, tokens, phase, bits_per_byte: None, scores: vec![] }
    }

    fn add(&mut self, figures: Vec<Figure>) {
        self.scores.extend(figures.into_iter().map(dynamics::Score::from));
    }
}
