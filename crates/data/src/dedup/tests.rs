use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::cluster::Job;
use super::*;
use crate::fs::{FaultFs, Fs};
use crate::rng::Rng;

/// Clusters of documents given as chunks of `(source, text)`.
fn clusters(
    chunks: &[Vec<(&str, String)>],
    settings: &Settings,
    ranks: &[&str],
    memory: u64,
) -> Result<Clusters> {
    let sketch = |chunk: &Vec<(&str, String)>| {
        let mut sketcher = Sketcher::new(settings);
        let mut out = ChunkSketch::default();
        chunk.iter().for_each(|(source, text)| out.push(source, sketcher.sketch(text)));
        out
    };
    let sketches: Vec<ChunkSketch> = chunks.par_iter().map(sketch).collect();
    let ranks: Vec<String> = ranks.iter().map(|&rank| rank.to_owned()).collect();
    let fs = FaultFs::new();
    let steps = Cell::new(0);
    let clusters = cluster(Job {
        chunks: chunks.len(),
        read: &|chunk| Ok(sketches[chunk].clone()),
        ranks: &ranks,
        memory,
        fs: &fs,
        scratch: Path::new("/scratch"),
        progress: &mut |done| {
            steps.set(steps.get() + 1);
            assert_eq!(done, steps.get());
            Ok(())
        },
    })?;
    assert_eq!(steps.get(), Job::steps(chunks.len()));
    assert!(!fs.exists(Path::new("/scratch")).unwrap(), "runs are removed");
    Ok(clusters)
}

/// Words that occur nowhere else.
fn fresh(rng: &mut Rng, count: usize) -> Vec<String> {
    (0..count).map(|_| format!("{:016x}", rng.next())).collect()
}

/// Two texts of `n` word 13-grams each, `shared` of them in common: their similarity is `shared / (2 n - shared)`.
fn pair(rng: &mut Rng, n: usize, shared: usize) -> [String; 2] {
    let common = fresh(rng, shared + 12);
    [0, 1].map(|_| {
        let mut words = common.clone();
        words.extend(fresh(rng, n - shared));
        words.join(" ")
    })
}

#[test]
fn pairs_are_found_as_often_as_the_curve_predicts() {
    const PAIRS: usize = 600;
    const NGRAMS: usize = 120;
    for (bands, rows) in [(32, 4), (8, 16), (14, 8)] {
        let settings = Settings { bands, rows, ..Settings::default() };
        let mut rng = Rng::keyed("dedup curve", "", &[bands as u64]);
        for shared in [45, 60, 75, 85, 95, 105, 115] {
            let similarity = shared as f64 / (2 * NGRAMS - shared) as f64;
            let pairs: Vec<[String; 2]> = (0..PAIRS).map(|_| pair(&mut rng, NGRAMS, shared)).collect();
            let found = pairs
                .par_iter()
                .map_init(
                    || Sketcher::new(&settings),
                    |sketcher, [a, b]| {
                        let (a, b) = (sketcher.sketch(a).keys, sketcher.sketch(b).keys);
                        usize::from(a.iter().zip(&b).any(|(a, b)| a == b))
                    },
                )
                .sum::<usize>() as f64;
            // The pairs have no word in common, so they are found independently: a binomial count. Five standard
            // deviations are passed once in 1.7 million times; 21 counts are looked at. The half is for rounding.
            let p = settings.probability(similarity);
            let bound = 5.0 * (PAIRS as f64 * p * (1.0 - p)).sqrt() + 0.5;
            let expected = PAIRS as f64 * p;
            assert!(
                (found - expected).abs() <= bound,
                "{bands}x{rows} at {similarity:.3}: {found} of {PAIRS} instead of {expected:.1} +- {bound:.1}"
            );
        }
    }
}

#[test]
fn similarity_of_signatures_is_that_of_the_sets() {
    let settings = Settings { bands: 128, rows: 1, ..Settings::default() };
    let mut sketcher = Sketcher::new(&settings);
    let mut rng = Rng::keyed("dedup estimate", "", &[]);
    let (mut sum, mut expected, mut variance) = (0.0, 0.0, 0.0);
    for i in 0..400 {
        let shared = 10 + (i * 37) % 110;
        let [a, b] = pair(&mut rng, 120, shared);
        let similarity = shared as f64 / (240 - shared) as f64;
        let a = sketcher.signature(&a).unwrap().to_vec();
        let equal = sketcher.signature(&b).unwrap().iter().zip(&a).filter(|(a, b)| a == b).count();
        sum += equal as f64;
        expected += 128.0 * similarity;
        variance += 128.0 * similarity * (1.0 - similarity);
    }
    assert!((sum - expected).abs() < 5.0 * f64::sqrt(variance), "{sum} instead of {expected}");
}

/// A small corpus with chains of near duplicates, equal texts, and texts without words, over three sources.
pub(super) fn corpus() -> Vec<(&'static str, String)> {
    let mut rng = Rng::keyed("dedup corpus", "", &[]);
    let mut documents: Vec<(&'static str, String)> = Vec::new();
    for family in 0..60 {
        let mut words = fresh(&mut rng, 80 + family);
        for member in 0..1 + family % 5 {
            let source = ["web", "code", "papers"][(family + 2 * member) % 3];
            documents.push((source, words.join(" ")));
            if (family + member) % 4 != 0 {
                let at = rng.below(words.len() as u64) as usize;
                words[at] = format!("edit{member}");
            }
        }
    }
    documents.extend(["", " ", "...", "", "...", "word", "word!"].map(|text| ("web", text.to_owned())));
    rng.shuffle(&mut documents);
    documents
}

fn cut(documents: &[(&'static str, String)], size: usize) -> Vec<Vec<(&'static str, String)>> {
    documents.chunks(size).map(<[_]>::to_vec).collect()
}

#[test]
fn clusters_are_the_components_of_all_pairs_and_the_preferred_stays() {
    let documents = corpus();
    let settings = Settings::default();
    let ranks = ["papers", "code"];
    let found = clusters(&cut(&documents, 7), &settings, &ranks, 1 << 30).unwrap();
    // Every pair is looked at, and labels spread until nothing changes.
    let mut sketcher = Sketcher::new(&settings);
    let sketches: Vec<_> = documents.iter().map(|(_, text)| sketcher.sketch(text)).collect();
    let mut label: Vec<usize> = (0..documents.len()).collect();
    loop {
        let before = label.clone();
        for i in 0..documents.len() {
            for j in 0..i {
                let bands = sketches[i].keys.iter().zip(&sketches[j].keys).any(|(a, b)| a == b);
                if bands || documents[i].1 == documents[j].1 {
                    let least = label[i].min(label[j]);
                    (label[i], label[j]) = (least, least);
                }
            }
        }
        if label == before {
            break;
        }
    }
    let rank = |i: usize| match documents[i].0 {
        "papers" => 0,
        "code" => 1,
        _ => 2,
    };
    let mut best: BTreeMap<usize, usize> = BTreeMap::new();
    for (i, &cluster) in label.iter().enumerate() {
        let kept = best.entry(cluster).or_insert(i);
        *kept = (*kept).min_by_key_with(i, |&i| (rank(i), i));
    }
    let keep: Vec<bool> = (0..documents.len()).map(|i| best[&label[i]] == i).collect();
    assert_eq!(found.keep.concat(), keep);
    let report = &found.report;
    assert_eq!(report.kept as usize, best.len());
    assert_eq!(report.cluster_sizes.iter().map(|(&s, &n)| u64::from(s) * n).sum::<u64>(), report.documents);
    let distinct: std::collections::BTreeSet<&String> = documents.iter().map(|(_, text)| text).collect();
    assert_eq!(report.equal as usize, documents.len() - distinct.len());
    assert!(report.kept < distinct.len() as u64 && report.kept > 40, "{}", report.kept);
    for example in &report.examples {
        assert!(example.members[0].kept && example.members[1..].iter().all(|member| !member.kept));
        assert_eq!(example.members.len(), (example.size as usize).min(4));
    }
}

trait MinByKeyWith: Sized {
    fn min_by_key_with<K: Ord>(self, other: Self, key: impl Fn(&Self) -> K) -> Self;
}

impl<T> MinByKeyWith for T {
    fn min_by_key_with<K: Ord>(self, other: T, key: impl Fn(&T) -> K) -> T {
        if key(&other) < key(&self) { other } else { self }
    }
}

#[test]
fn chunks_and_memory_change_nothing() {
    let documents = corpus();
    let settings = Settings::default();
    let whole = clusters(&cut(&documents, 10_000), &settings, &["code"], 1 << 30).unwrap();
    for size in [1, 3, 50] {
        for memory in [4_000, 1 << 30] {
            let found = clusters(&cut(&documents, size), &settings, &["code"], memory).unwrap();
            assert_eq!(found.keep.concat(), whole.keep.concat(), "chunks of {size}, {memory} bytes");
            assert_eq!(found.report.cluster_sizes, whole.report.cluster_sizes);
            assert_eq!(found.report.sources, whole.report.sources);
        }
    }
    let error = clusters(&cut(&documents, 3), &settings, &[], 1_000).unwrap_err();
    assert!(matches!(error, Error::TooMany { .. }), "{error}");
}

#[test]
fn without_minhash_only_equal_texts_go() {
    let settings = Settings { minhash: false, ..Settings::default() };
    let texts = ["a b", "A b", "a b", "", ""].map(|text| ("s", text.to_owned()));
    let found = clusters(&[texts.to_vec()], &settings, &[], 1 << 20).unwrap();
    assert_eq!(found.keep, [[true, true, false, true, false]]);
    assert_eq!((found.report.equal, found.report.kept), (2, 3));
    let found = clusters(&[texts.to_vec()], &Settings::default(), &[], 1 << 20).unwrap();
    assert_eq!(found.keep, [[true, false, false, true, false]]);
    assert!(found.report.table().contains("removed: 2 equal to another, 1 near another"));
}

#[test]
fn senseless_settings_are_refused_by_name() {
    for (settings, name) in [
        (Settings { ngram: 0, ..Settings::default() }, "ngram"),
        (Settings { bands: 0, ..Settings::default() }, "bands"),
        (Settings { rows: 5000, ..Settings::default() }, "rows"),
        (Settings { bands: 4096, rows: 17, ..Settings::default() }, "permutations"),
    ] {
        assert!(settings.check().unwrap_err().to_string().contains(name));
    }
    Settings::default().check().unwrap();
}
