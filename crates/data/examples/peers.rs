//! What programs of other people are compared with; the scripts of `tests/peers` call this.
//!
//! ```text
//! peers signatures FILE.jsonl          per line {"hashes":[..],"signature":[..]} of the field `text`
//! peers write PREFIX VOCABULARY FILE   a shard of the documents in FILE, a JSON array of ids per line
//! peers read PREFIX VOCABULARY         the documents of a shard made elsewhere, a JSON array per line
//! peers blend N WEIGHT...              source and number within it of the samples 0..N, as JSON
//! ```

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use zamba_data::dedup::shingles::Shingler;
use zamba_data::dedup::{Settings, Sketcher};
use zamba_data::fs::{FaultFs, Fs, RealFs};
use zamba_data::{Mixture, PhaseSpec, Shard, ShardSpec, ShardWriter, Source, SourceWeight, input, shards};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["signatures", file] => signatures(file),
        ["write", prefix, vocabulary, file] => write(prefix, vocabulary.parse()?, file),
        ["read", prefix, vocabulary] => read(prefix, vocabulary.parse()?),
        ["blend", n, weights @ ..] => blend(n.parse()?, weights),
        _ => Err("see the head of this file for its commands".into()),
    }
}

fn signatures(file: &str) -> Result {
    let settings = Settings::default();
    let (mut shingler, mut sketcher) = (Shingler::new(&settings), Sketcher::new(&settings));
    let mut out = BufWriter::new(std::io::stdout().lock());
    for text in input::json_lines(&RealFs, Path::new(file))? {
        let text = text?;
        let hashes = shingler.hashes(&text);
        writeln!(out, "{}", json!({ "hashes": hashes, "signature": sketcher.signature(&text) }))?;
    }
    Ok(out.flush()?)
}

fn spec(vocab_size: u32) -> ShardSpec {
    ShardSpec { vocab_size, tokenizer_sha256: String::new() }
}

fn write(prefix: &str, vocabulary: u32, file: &str) -> Result {
    let mut writer = ShardWriter::create(Arc::new(RealFs), Path::new(prefix), spec(vocabulary))?;
    for line in BufReader::new(std::fs::File::open(file)?).lines() {
        let ids: Vec<u32> = serde_json::from_str(&line?)?;
        writer.push(&ids, 0)?;
    }
    writer.finish()?;
    Ok(())
}

fn read(prefix: &str, vocabulary: u32) -> Result {
    shards::adopt(&RealFs, Path::new(prefix), &spec(vocabulary), 0)?;
    let shard = Shard::open(Arc::new(RealFs), Path::new(prefix))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for document in 0..shard.documents() {
        writeln!(out, "{}", json!(shard.doc(document)?))?;
    }
    Ok(out.flush()?)
}

fn blend(n: u64, weights: &[&str]) -> Result {
    let fs: Arc<dyn Fs> = Arc::new(FaultFs::new());
    let (mut sources, mut shares) = (Vec::new(), Vec::new());
    for (i, weight) in weights.iter().enumerate() {
        let (name, prefix) = (format!("source-{i}"), format!("/source-{i}"));
        let mut writer = ShardWriter::create(fs.clone(), Path::new(&prefix), spec(2))?;
        writer.push(&[1, 1, 1], 0)?;
        writer.finish()?;
        sources.push(Source::open(&fs, &name, &[prefix])?);
        shares.push(SourceWeight { source: name, weight: weight.parse()?, max_epochs: None });
    }
    let phase = PhaseSpec { name: "all".into(), samples: n, sources: shares, replay: None };
    let mixture = Mixture::new(sources, &[phase], 0, 1)?;
    let mut counts = vec![0u64; weights.len()];
    let mut served = |i| {
        let source = mixture.pieces(0, i).0;
        counts[source] += 1;
        (source, counts[source] - 1)
    };
    let samples: Vec<(usize, u64)> = (0..n).map(&mut served).collect();
    println!("{}", json!(samples));
    Ok(())
}
