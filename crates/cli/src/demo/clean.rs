//! The steps of `zamba data` over the gathered text: filter, then one of each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use zamba_data::dedup::{self, Dedup};
use zamba_data::filter::{self, Filter, Preset};
use zamba_data::fs::Fs;
use zamba_data::gather::{Document, Kind};
use zamba_data::job::{ChunkRun, Job, Watch};
use zamba_data::plan::{Input, Plan, ReadOptions};
use zamba_data::read::{Record, Records};

use super::corpus::Part;
use super::folder::Folder;
use crate::{interrupt, out};

/// What the steps left of a part of the text.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cleaned {
    pub(super) part: Part,
    /// Documents gathered.
    pub(super) gathered: u64,
    /// Documents that a rule of the filter rejected.
    pub(super) rejected: BTreeMap<String, u64>,
    /// Documents equal to another, byte for byte.
    pub(super) equal: u64,
    /// Documents nearly equal to another.
    pub(super) near: u64,
    /// Documents left.
    pub(super) documents: u64,
    /// Bytes of their text.
    pub(super) bytes: u64,
}

/// Filters and deduplicates both parts. A source file and the prose of its comments share most of their words and are meant
/// to, so each part is looked at alone.
pub(super) fn run(
    folder: &Folder,
    documents: Vec<Document>,
) -> anyhow::Result<(Vec<Document>, Vec<Cleaned>)> {
    let (mut kept, mut accounts) = (Vec::new(), Vec::new());
    for part in Part::ALL {
        let own: Vec<&Document> = documents.iter().filter(|document| part.has(document)).collect();
        if own.is_empty() {
            continue;
        }
        let (documents, account) = clean(folder, part, &own)?;
        let gone = account.gathered - account.documents;
        out::note(&format!(
            "   {}: {} of {} texts taken out by rules or as duplicates ({} equal, {} nearly equal)",
            part.title(),
            out::count(gone),
            out::count(account.gathered),
            out::count(account.equal),
            out::count(account.near),
        ));
        kept.extend(documents);
        accounts.push(account);
    }
    Ok((kept, accounts))
}

/// Ctrl-C stops a step.
struct Stoppable;

impl Watch for Stoppable {
    fn advance(&self, _: u64) {}

    fn stopped(&self) -> bool {
        interrupt::requested()
    }
}

fn clean(folder: &Folder, part: Part, documents: &[&Document]) -> anyhow::Result<(Vec<Document>, Cleaned)> {
    let (fs, root) = (folder.fs(), folder.text(part.train_shard()));
    let [gathered, filtered, unique] = ["gathered", "filtered", "unique"].map(|name| root.join(name));
    write(&**fs, &gathered, documents)?;
    let preset = match part {
        Part::Text => Preset::Code,
        Part::DocProse => Preset::Zyda,
    };
    let settings = filter::Settings { preset, ..filter::Settings::default() };
    let filter = Filter::new(&**fs, &settings)?;
    let job = Job::new("filter", json!(filter.config()), &filtered);
    let work = |chunk: &mut ChunkRun<'_>| filter.run(chunk, false);
    let done = job.run(fs, &plan(fs, &gathered)?, &Stoppable, &work)?;
    let counts = done.manifest.context("the filter has not finished")?.counts;

    let plan_filtered = plan(fs, &filtered)?;
    let job = Job::new("", json!({}), &unique);
    let dedup = Dedup::new(dedup::Settings::default(), Vec::new(), false, job)?;
    dedup.sketch(fs, &plan_filtered, &Stoppable)?;
    let report = dedup.cluster(fs, &plan_filtered, &mut |_, _| Ok(()))?;
    dedup.write(fs, &plan_filtered, &Stoppable)?;

    let kept = read(fs, &unique)?;
    let rejected =
        counts.into_iter().filter_map(|(name, n)| Some((name.strip_prefix("rejected: ")?.to_owned(), n)));
    let account = Cleaned {
        part,
        gathered: documents.len() as u64,
        rejected: rejected.collect(),
        equal: report.equal,
        near: report.documents - report.kept - report.equal,
        documents: report.kept,
        bytes: report.bytes_kept,
    };
    Ok((kept, account))
}

/// Small chunks, so that all threads have work on little text.
fn plan(fs: &Arc<dyn Fs>, input: &Path) -> anyhow::Result<Plan> {
    let options = ReadOptions { chunk_bytes: 1 << 20, ..ReadOptions::default() };
    Ok(Plan::new(&**fs, &[Input::new(input)], &options)?)
}

/// Documents as JSON lines.
fn write(fs: &dyn Fs, dir: &Path, documents: &[&Document]) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for document in documents {
        let Document { id, family, kind, text } = document;
        serde_json::to_writer(
            &mut lines,
            &json!({ "id": id, "text": text, "family": family, "kind": kind }),
        )?;
        lines.push(b'\n');
    }
    let path = dir.join("documents.jsonl");
    fs.create_dirs(dir)
        .and_then(|()| fs.replace(&path, &lines))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read(fs: &Arc<dyn Fs>, dir: &Path) -> anyhow::Result<Vec<Document>> {
    let plan = plan(fs, dir)?;
    let mut documents = Vec::new();
    for record in plan.chunks.iter().flat_map(|chunk| Records::new(&**fs, &plan, chunk)) {
        let Record::Document(document) = record? else { continue };
        let field = |name: &str| document.meta.get(name).cloned().unwrap_or_default();
        documents.push(Document {
            family: field("family").as_str().unwrap_or_default().to_owned(),
            kind: serde_json::from_value::<Kind>(field("kind"))?,
            id: document.id,
            text: document.text,
        });
    }
    Ok(documents)
}
