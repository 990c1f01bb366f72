//! Probe.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use zamba_data::fs::{Fs, RealFs};
use zamba_data::gather::{self, GatherOptions, Kind};
use zamba_data::*;

fn main() {
    let out = PathBuf::from(std::env::args().nth(1).unwrap());
    let max: u64 = std::env::args().nth(2).unwrap().parse().unwrap();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let t = Instant::now();
    let packages = gather::cargo_packages(&*fs, Path::new("/root/.cargo")).unwrap();
    let g = gather::gather(&*fs, &packages, &GatherOptions { max_bytes: max, ..Default::default() }).unwrap();
    println!("{}", serde_json::to_string_pretty(&g.report).unwrap());
    println!("gather {:?}", t.elapsed());
    std::fs::create_dir_all(&out).unwrap();
    let list: String = g.documents.iter().map(|d| format!("{:?} {} {}\n", d.kind, d.text.len(), d.id)).collect();
    std::fs::write(out.join("list.txt"), list).unwrap();
    let t = Instant::now();
    let split = gather::split(g.documents, 0.02, 0).unwrap();
    println!("{}\nsplit {:?}", serde_json::to_string_pretty(&split.summary).unwrap(), t.elapsed());
    let t = Instant::now();
    let mut sample = 0;
    let texts = split.train.iter().step_by(3).filter(|d| { sample += d.text.len(); sample < 20 << 20 }).map(|d| d.text.as_str());
    let texts: Vec<&str> = texts.collect();
    println!("bpe sample {} bytes", texts.iter().map(|t| t.len()).sum::<usize>());
    let bpe = bpe::Bpe::train(texts.into_iter(), 4096).unwrap();
    bpe.save(&*fs, &out.join("tok"), 512).unwrap();
    println!("bpe {:?}", t.elapsed());
    for (name, docs) in [("train", &split.train), ("held", &split.held_out)] {
        for (part, kinds) in [("text", vec![Kind::Code, Kind::Prose]), ("prose", vec![Kind::DocProse])] {
            let t = Instant::now();
            let docs: Vec<&gather::Document> = docs.iter().filter(|d| kinds.contains(&d.kind)).collect();
            let spec = ShardSpec { vocab_size: bpe.vocab_size(), tokenizer_sha256: bpe.sha256() };
            let m = tokenise::tokenise(fs.clone(), docs.iter().map(|d| Ok(d.text.as_str())), &|s| bpe.encode(s).map_err(|e| e.to_string()),
                bpe::MARKS, spec, &out.join(format!("{name}-{part}")), &mut |_| ()).unwrap();
            println!("{name}-{part}: docs {} bytes {} tokens {} {:.2} B/token {:?}", m.documents, m.source_bytes, m.tokens, m.source_bytes as f64 / m.tokens as f64, t.elapsed());
            if name == "held" {
                let held = Shard::open(fs.clone(), &out.join(format!("held-{part}"))).unwrap();
                let a = Shard::open(fs.clone(), &out.join("train-text")).unwrap();
                let b = Shard::open(fs.clone(), &out.join("train-prose")).unwrap();
                println!("unigram {:.4} gzip {:.4}", baseline::unigram_bits_per_byte(&[&a, &b], &held).unwrap(),
                    baseline::gzip_bits_per_byte(docs.iter().map(|d| d.text.as_str())).unwrap());
                let all: String = docs.iter().map(|d| d.text.as_str()).collect();
                std::fs::write(out.join(format!("held-{part}.txt")), all).unwrap();
                let texts: Vec<&str> = docs.iter().map(|d| d.text.as_str()).collect();
                std::fs::write(out.join(format!("held-{part}.json")), serde_json::to_string(&texts).unwrap()).unwrap();
            }
        }
    }
    let t = Instant::now();
    let src = vec![Source::open(&fs, "text", &[out.join("train-text")]).unwrap(), Source::open(&fs, "prose", &[out.join("train-prose")]).unwrap()];
    println!("open {:?}", t.elapsed());
    let w = |s: &str| SourceWeight { source: s.into(), weight: 1.0 };
    let phases = [PhaseSpec { name: "pretrain".into(), samples: 10_000, sources: vec![w("text")], replay: None },
        PhaseSpec { name: "anneal".into(), samples: 2_000, sources: vec![w("prose")], replay: Some(Replay { phase: "pretrain".into(), fraction: 0.6 }) }];
    let mix = Arc::new(Mixture::new(src, &phases, 1, 256).unwrap());
    let t = Instant::now();
    let n: usize = Loader::new(mix.clone(), 1, 0, Some(20_000), 16).unwrap().map(|s| s.unwrap().predictions()).sum();
    println!("20000 samples {n} predictions {:?}", t.elapsed());
    println!("{:?}", mix.realised(1, 0, 2_000));
}
