//! From files on disk to training rows and back to the text, on the real file system.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use zamba_data::bpe::{Bpe, MARKS};
use zamba_data::fs::{Fs, RealFs};
use zamba_data::gather::{Document, GatherOptions, Kind, cargo_packages, gather, split};
use zamba_data::tokenise::tokenise;
use zamba_data::{
    IGNORE, Loader, Mixture, PhaseSpec, Replay, Shard, ShardSpec, Source, SourceWeight, baseline, eval_rows,
};

/// A cargo home with 30 crates of a few files, one of them in two versions.
fn cargo_home(home: &Path) {
    let registry = home.join("registry/src/index.example");
    let write = |path: &str, text: String| {
        let path = registry.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for c in 0..30 {
        for f in 0..4 {
            let mut text = format!(
                "//! Module {f} of crate {c} does some work that other modules do not want to do.\n\n"
            );
            for i in 0..12 {
                writeln!(
                    text,
                    "/// Returns {i} plus the number of things that module {f} of crate {c} knows about."
                )
                .unwrap();
                writeln!(text, "pub fn things_{i}(known: usize) -> usize {{\n    known + {i}\n}}\n").unwrap();
            }
            write(&format!("crate{c}-1.0.0/src/file{f}.rs"), text);
        }
        write(
            &format!("crate{c}-1.0.0/README.md"),
            format!("# Crate {c}\n\nWords about crate {c}, many.\n").repeat(9),
        );
        write(&format!("crate{c}-1.0.0/LICENSE"), "Permission is hereby granted".repeat(20));
    }
    write("crate0-0.9.0/src/lib.rs", "// An older version of the same crate.\n".repeat(20));
}

struct Corpus {
    fs: Arc<dyn Fs>,
    bpe: Bpe,
    train: Vec<Document>,
    held_out: Vec<Document>,
}

fn corpus(home: &Path) -> Corpus {
    cargo_home(home);
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let packages = cargo_packages(fs.as_ref(), home).unwrap();
    assert_eq!((packages.packages.len(), packages.older_versions), (30, 1));
    let gathered = gather(fs.as_ref(), &packages, &GatherOptions::default()).unwrap();
    let split = split(gathered.documents, 0.1, 5).unwrap();
    let bpe = Bpe::train(split.train.iter().map(|document| document.text.as_str()), 500).unwrap();
    bpe.save(fs.as_ref(), &home.join("tokenizer"), 64).unwrap();
    Corpus { fs, bpe, train: split.train, held_out: split.held_out }
}

impl Corpus {
    fn shard(&self, documents: &[Document], prose: bool, prefix: &Path) -> Shard {
        let chosen: Vec<&Document> =
            documents.iter().filter(|d| (d.kind == Kind::DocProse) == prose).collect();
        let encode = |text: &str| self.bpe.encode(text).map_err(|error| error.to_string());
        let spec = ShardSpec { vocab_size: self.bpe.vocab_size(), tokenizer_sha256: self.bpe.sha256() };
        let texts = chosen.iter().map(|document| Ok(document.text.as_str()));
        tokenise(self.fs.clone(), texts, &encode, MARKS, spec, prefix, &mut |_| ()).unwrap();
        let shard = Shard::open(self.fs.clone(), prefix).unwrap();
        for (d, document) in chosen.iter().enumerate() {
            assert_eq!(self.bpe.decode(&shard.doc(d as u64).unwrap()).unwrap(), document.text);
        }
        shard
    }
}

#[test]
fn from_a_cargo_home_to_rows_of_two_phases() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    let text = corpus.shard(&corpus.train, false, &dir.path().join("text"));
    let prose = corpus.shard(&corpus.train, true, &dir.path().join("prose"));
    let held_out = corpus.shard(&corpus.held_out, false, &dir.path().join("held"));

    let families: BTreeSet<&str> = corpus.train.iter().map(|document| document.family.as_str()).collect();
    assert!(corpus.held_out.iter().all(|document| !families.contains(document.family.as_str())));

    let unigram = baseline::unigram_bits_per_byte(&[&text, &prose], &held_out).unwrap();
    let held_texts = corpus.held_out.iter().filter(|d| d.kind != Kind::DocProse).map(|d| d.text.as_str());
    let gzip = baseline::gzip_bits_per_byte(held_texts).unwrap();
    assert!(gzip < unigram && unigram < 8.0, "repetitive text: gzip {gzip}, unigram {unigram}");
    let predicted: usize = eval_rows(&held_out, 64).map(|row| row.unwrap().predictions()).sum();
    assert_eq!(predicted as u64, held_out.tokens() - held_out.documents());

    let weight = |source: &str| vec![SourceWeight { source: source.into(), weight: 1.0, max_epochs: None }];
    let replay = Some(Replay { phase: "pretrain".into(), fraction: 0.6 });
    let phases = [
        PhaseSpec { name: "pretrain".into(), samples: 50, sources: weight("text"), replay: None },
        PhaseSpec { name: "anneal".into(), samples: 50, sources: weight("prose"), replay },
    ];
    let sources = vec![
        Source { name: "text".into(), shards: vec![text] },
        Source { name: "prose".into(), shards: vec![prose] },
    ];
    let mixture = Arc::new(Mixture::new(sources, &phases, 9, 64).unwrap());
    for phase in 0..2 {
        let rows = Loader::new(mixture.clone(), phase, 0, Some(50), 4).unwrap();
        for (i, row) in rows.enumerate() {
            let row = row.unwrap();
            assert_eq!(row, mixture.sample(phase, i as u64).unwrap());
            for &(start, len) in &row.spans {
                let tokens = &row.tokens[start..start + len];
                assert!(!tokens[1..].contains(&1), "<s> stands only at the start of a span");
                let ends = tokens[len - 1] == 2;
                assert_eq!(row.targets[start + len - 1] == IGNORE, ends, "only </s> predicts nothing");
            }
        }
    }
    let realised = mixture.realised(1, 0, 50);
    assert_eq!(
        realised.iter().map(|one| (one.name.as_str(), one.samples)).collect::<Vec<_>>(),
        [("prose", 20), ("text", 30)]
    );
}
