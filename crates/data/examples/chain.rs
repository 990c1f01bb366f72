//! The whole chain on a large input: filter, dedup, tokenize, under a bound on memory.
//!
//! ```text
//! chain IN OUT MEMORY_MIB      IN: a folder of JSON lines, such as `corpus` writes
//! ```
//!
//! Prints for each step its seconds, its speed over the text that it read, and the peak of the process's memory so far
//! (`VmHWM`, where the system tells it).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use zamba_data::ShardSpec;
use zamba_data::bpe::{Bpe, Fast, MARKS};
use zamba_data::dedup::{Dedup, Settings};
use zamba_data::filter::{self, Filter, Preset};
use zamba_data::fs::{Fs, RealFs};
use zamba_data::job::{Job, Quiet};
use zamba_data::plan::{Input, Plan, ReadOptions};
use zamba_data::read::{Record, Records};
use zamba_data::tokenise::Tokenise;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Text that the tokenizer learns from.
const SAMPLE: usize = 20 << 20;
/// Memory of a chunk at work: the longest document here is far below the usual limit.
const CHUNK_MEMORY: u64 = 256 << 20;

fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, out, mib] = args.as_slice() else { return Err("usage: chain IN OUT MEMORY_MIB".into()) };
    let memory = mib.parse::<u64>()? << 20;
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let out = Path::new(out);
    let [filtered, unique, tokenizer] = ["filtered", "unique", "tokenizer"].map(|name| out.join(name));

    let plan = plan(&fs, Path::new(input))?;
    let settings = filter::Settings { preset: Preset::Code, ..filter::Settings::default() };
    let filter = Filter::new(&*fs, &settings)?;
    let job = |name: &str, out: &Path| Job {
        memory: Some(memory),
        chunk_memory: CHUNK_MEMORY,
        ..Job::new(name, json!(filter.config()), out)
    };
    let start = Instant::now();
    let done = job("filter", &filtered).run(&fs, &plan, &Quiet, &|chunk| filter.run(chunk, false))?;
    let manifest = done.manifest.ok_or("the filter has not finished")?;
    said("filter", start, manifest.text_bytes_read);
    println!("  {} of {} documents", manifest.documents(), manifest.documents_read);

    let plan = self::plan(&fs, &filtered)?;
    let dedup = Dedup::new(Settings::default(), Vec::new(), false, job("", &unique))?;
    let start = Instant::now();
    let sketched = dedup.sketch(&fs, &plan, &Quiet)?;
    let bytes = sketched.manifest.map_or(0, |manifest| manifest.text_bytes_read);
    said("signatures", start, bytes);
    let start = Instant::now();
    let report = dedup.cluster(&fs, &plan, &mut |_, _| Ok(()))?;
    said("clusters", start, bytes);
    let start = Instant::now();
    dedup.write(&fs, &plan, &Quiet)?;
    said("writing", start, bytes);
    print!("{}", report.table());
    fs.remove_tree(&filtered)?;

    let plan = self::plan(&fs, &unique)?;
    let start = Instant::now();
    tokenizer_of(&fs, &plan)?.save(&*fs, &tokenizer, 4096)?;
    said("tokenizer", start, SAMPLE as u64);
    let json = std::fs::read_to_string(tokenizer.join("tokenizer.json"))?;
    let fast = Fast::new(&json)?.ok_or("the tokenizer has no fast encoder")?;
    // Texts that hold the names of special tokens are the library's.
    let library = tokenizers::Tokenizer::from_bytes(&json).map_err(|error| error.to_string())?;
    let encode = |text: &str| match fast.encode(text) {
        Ok(Some(ids)) => Ok(ids),
        Ok(None) => match library.encode(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(error.to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    let spec = ShardSpec { vocab_size: fast.vocab_size() as u32, tokenizer_sha256: String::new() };
    let prefix: PathBuf = out.join("shards").join("code");
    let step = Tokenise { encode: &encode, marks: MARKS, spec, prefix };
    let job = Job { memory: Some(memory), chunk_memory: CHUNK_MEMORY, ..step.job() };
    let start = Instant::now();
    let shard = step.run(&fs, &plan, &job, &Quiet)?.shard.ok_or("tokenising has not finished")?;
    said("tokenize", start, shard.source_bytes);
    println!("  {} documents, {} tokens", shard.documents, shard.tokens);
    Ok(())
}

fn plan(fs: &Arc<dyn Fs>, input: &Path) -> Result<Plan> {
    Ok(Plan::new(&**fs, &[Input::new(input)], &ReadOptions::default())?)
}

/// A tokenizer of 32,000 entries from the first documents.
fn tokenizer_of(fs: &Arc<dyn Fs>, plan: &Plan) -> Result<Bpe> {
    let mut texts = Vec::new();
    let mut bytes = 0;
    for record in plan.chunks.iter().flat_map(|chunk| Records::new(&**fs, plan, chunk)) {
        if let Record::Document(document) = record? {
            bytes += document.text.len();
            texts.push(document.text);
            if bytes >= SAMPLE {
                break;
            }
        }
    }
    Ok(Bpe::train(texts.iter().map(String::as_str), 32_000)?)
}

fn said(step: &str, start: Instant, bytes: u64) {
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or(" unknown").trim();
    println!("{step:<11} {seconds:>7.1} s {:>8.1} MB/s  peak {peak}", bytes as f64 / 1e6 / seconds);
}
