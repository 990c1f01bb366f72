//! What MinHash finds and how fast it is, on the sources of the crates that cargo has fetched.
//!
//! ```text
//! dedup quality CARGO_HOME [DOCUMENTS]   pairs found against brute-force Jaccard, beside the curve of the bands
//! dedup speed CARGO_HOME                 MB/s of one thread: signatures and whole sketches
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use zamba_data::dedup::shingles::fmix64;
use zamba_data::dedup::{Settings, Sketcher, Unit};
use zamba_data::fs::RealFs;
use zamba_data::gather::{GatherOptions, Kind, cargo_packages, gather};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["quality", home] => quality(home, 20_000),
        ["quality", home, documents] => quality(home, documents.parse()?),
        ["speed", home] => speed(home),
        _ => Err("see the head of this file for its commands".into()),
    }
}

fn texts(home: &str, bytes: u64, kind: impl Fn(Kind) -> bool) -> Result<Vec<String>> {
    let packages = cargo_packages(&RealFs, Path::new(home))?;
    let options = GatherOptions { max_bytes: bytes, ..GatherOptions::default() };
    let gathered = gather(&RealFs, &packages, &options)?;
    Ok(gathered.documents.into_iter().filter(|d| kind(d.kind)).map(|d| d.text).collect())
}

/// Random numbers, each a function of its place.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        fmix64(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Texts of at most 4 KB, two of five of them originals, the others copies of one with words replaced: so many
/// that similarities from 0.05 to 1 are equally frequent.
fn corpus(home: &str, count: usize) -> Result<Vec<String>> {
    let all = texts(home, 64 << 20, |kind| kind != Kind::DocProse)?;
    let mut numbers = Numbers(1);
    let cut = |text: &String| text[..text.floor_char_boundary(4_000)].to_owned();
    let mut documents: Vec<String> =
        all.iter().filter(|text| text.len() > 800).take(count * 2 / 5).map(cut).collect();
    let originals = documents.len();
    while documents.len() < count {
        let text = &documents[(numbers.next() % originals as u64) as usize];
        let similarity = 0.05 + 0.95 * numbers.unit();
        let surviving = 2.0 * similarity / (1.0 + similarity);
        let rate = 1.0 - surviving.powf(1.0 / 13.0);
        let edit = |word: &str| match numbers.unit() < rate {
            true => format!("w{:x} ", numbers.next()),
            false => format!("{word} "),
        };
        let copy: String = text.split_whitespace().map(edit).collect();
        documents.push(copy);
    }
    Ok(documents)
}

/// The set of 13-grams of each text as sorted numbers, the same for the same words. Nothing here is shared with the
/// code under test: words are cut by the standard library, n-grams are told apart by half of their SHA-256.
fn sets(documents: &[String]) -> Vec<Vec<u32>> {
    let grams = |text: &String| -> Vec<[u8; 16]> {
        let text: String =
            text.chars().filter(|c| !c.is_ascii_punctuation()).flat_map(char::to_lowercase).collect();
        let words: Vec<&str> = text.split_whitespace().collect();
        let width = words.len().min(13);
        let hash = |gram: &[&str]| {
            let digest = Sha256::digest(gram.join(" "));
            std::array::from_fn(|i| digest[i])
        };
        if width == 0 { Vec::new() } else { words.windows(width).map(hash).collect() }
    };
    let hashed: Vec<Vec<[u8; 16]>> = documents.par_iter().map(grams).collect();
    let mut known: HashMap<[u8; 16], u32> = HashMap::new();
    let mut number = |gram: [u8; 16]| {
        let next = known.len() as u32;
        *known.entry(gram).or_insert(next)
    };
    let mut sets = Vec::with_capacity(hashed.len());
    for grams in hashed {
        let mut set: Vec<u32> = grams.into_iter().map(&mut number).collect();
        set.sort_unstable();
        set.dedup();
        sets.push(set);
    }
    sets
}

/// Every pair that has an n-gram in common, as `(i << 32 | j, similarity)` with i > j, sorted.
fn similarities(sets: &[Vec<u32>]) -> Vec<(u64, f64)> {
    let grams = sets.iter().flatten().max().map_or(0, |most| *most as usize + 1);
    let mut holders: Vec<Vec<u32>> = vec![Vec::new(); grams];
    for (i, set) in sets.iter().enumerate() {
        set.iter().for_each(|&gram| holders[gram as usize].push(i as u32));
    }
    let row = |i: usize| {
        let mut shared: HashMap<u32, u32> = HashMap::new();
        for &gram in &sets[i] {
            let before = holders[gram as usize].iter().take_while(|&&j| (j as usize) < i);
            before.for_each(|&j| *shared.entry(j).or_default() += 1);
        }
        let pair = |(j, common): (u32, u32)| {
            let union = sets[i].len() + sets[j as usize].len() - common as usize;
            ((i as u64) << 32 | u64::from(j), f64::from(common) / union as f64)
        };
        let mut row: Vec<(u64, f64)> = shared.into_iter().map(pair).collect();
        row.sort_unstable_by_key(|pair| pair.0);
        row
    };
    (0..sets.len()).into_par_iter().flat_map_iter(row).collect()
}

/// The pairs that share a band, sorted.
fn found(documents: &[String], settings: &Settings) -> Vec<u64> {
    let keys: Vec<Vec<u64>> = documents
        .par_iter()
        .map_init(|| Sketcher::new(settings), |sketcher, text| sketcher.sketch(text).keys)
        .collect();
    let mut holders: HashMap<u64, Vec<u32>> = HashMap::new();
    for (i, keys) in keys.iter().enumerate() {
        keys.iter().for_each(|key| holders.entry(*key).or_default().push(i as u32));
    }
    let mut pairs = Vec::new();
    for group in holders.values() {
        for (n, &i) in group.iter().enumerate() {
            pairs.extend(group[..n].iter().map(|&j| u64::from(i) << 32 | u64::from(j)));
        }
    }
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

const SEEDS: u32 = 5;
const BINS: usize = 20;
const THRESHOLDS: [f64; 4] = [0.4, 0.5, 0.7, 0.8];

/// Found pairs of one seed.
#[derive(Default)]
struct Seed {
    bins: [f64; BINS],
    recall: [f64; 4],
    precision: [f64; 4],
    unrelated: usize,
}

fn bin(similarity: f64) -> usize {
    ((similarity * BINS as f64) as usize).min(BINS - 1)
}

fn quality(home: &str, count: usize) -> Result {
    let documents = corpus(home, count)?;
    let sets = sets(&documents);
    let truth = similarities(&sets);
    let all = documents.len() as u64 * (documents.len() as u64 - 1) / 2;
    println!("{} documents, {all} pairs, {} of them with a 13-gram in common", documents.len(), truth.len());
    for (bands, rows) in [(32, 4), (14, 8), (8, 16)] {
        let settings = |seed| Settings { bands, rows, seed, ..Settings::default() };
        let seeds: Vec<Seed> =
            (1..=SEEDS).map(|seed| judge(&truth, &found(&documents, &settings(seed)))).collect();
        table(&truth, &settings(1), &seeds);
    }
    Ok(())
}

fn judge(truth: &[(u64, f64)], found: &[u64]) -> Seed {
    let mut seed = Seed::default();
    let similarity = |pair: &u64| truth.binary_search_by_key(pair, |known| known.0).map(|at| truth[at].1);
    let values: Vec<f64> = found.iter().filter_map(|pair| similarity(pair).ok()).collect();
    seed.unrelated = found.len() - values.len();
    values.iter().for_each(|&s| seed.bins[bin(s)] += 1.0);
    for (t, threshold) in THRESHOLDS.iter().enumerate() {
        let above = |values: &mut dyn Iterator<Item = f64>| values.filter(|s| s >= threshold).count() as f64;
        let hits = above(&mut values.iter().copied());
        seed.recall[t] = hits / above(&mut truth.iter().map(|pair| pair.1));
        seed.precision[t] = hits / found.len() as f64;
    }
    seed
}

fn table(truth: &[(u64, f64)], settings: &Settings, seeds: &[Seed]) {
    let (bands, rows) = (settings.bands, settings.rows);
    println!(
        "\n{bands} bands of {rows} rows, {SEEDS} seeds\nsimilarity      pairs   predicted       found    +- of one seed"
    );
    let (mut pairs, mut predicted) = ([0u64; BINS], [0.0; BINS]);
    for &(_, s) in truth {
        pairs[bin(s)] += 1;
        predicted[bin(s)] += settings.probability(s);
    }
    for b in 0..BINS {
        let (mean, deviation) = moments(seeds.iter().map(|seed| seed.bins[b]));
        let (low, high) = (b as f64 / BINS as f64, (b + 1) as f64 / BINS as f64);
        println!(
            "{low:.2} to {high:.2} {:>10} {:>11.1} {mean:>11.1} {deviation:>11.1}",
            pairs[b], predicted[b]
        );
    }
    println!("threshold   recall: predicted     found   +-      precision: predicted     found   +-");
    let total: f64 = predicted.iter().sum();
    for (t, threshold) in THRESHOLDS.iter().enumerate() {
        let above: Vec<f64> = truth.iter().map(|pair| pair.1).filter(|s| s >= threshold).collect();
        let hits: f64 = above.iter().map(|&s| settings.probability(s)).sum();
        let (recall, precision) = (hits / above.len() as f64, hits / total);
        let (r, rd) = moments(seeds.iter().map(|seed| seed.recall[t]));
        let (p, pd) = moments(seeds.iter().map(|seed| seed.precision[t]));
        println!("{threshold:<9} {recall:>20.4} {r:>9.4} {rd:.4} {precision:>22.4} {p:>9.4} {pd:.4}");
    }
    let unrelated: usize = seeds.iter().map(|seed| seed.unrelated).sum();
    println!("found without a 13-gram in common: {unrelated}");
}

/// Mean and standard deviation.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    (mean, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

fn speed(home: &str) -> Result {
    for (name, kind) in [("source code", Kind::Code), ("documentation prose", Kind::DocProse)] {
        let texts = texts(home, 48 << 20, |k| k == kind)?;
        let bytes: usize = texts.iter().map(String::len).sum();
        let words: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
        println!(
            "{name}: {:.1} MB in {} texts, {:.2} bytes per word",
            bytes as f64 / 1e6,
            texts.len(),
            bytes as f64 / words as f64
        );
        for settings in [
            Settings::default(),
            Settings { bands: 14, rows: 8, ngram: 5, ..Settings::default() },
            Settings { bands: 8, rows: 16, unit: Unit::Char, ngram: 25, ..Settings::default() },
        ] {
            let rate = |work: &mut dyn FnMut(&str)| {
                let best = (0..5).map(|_| {
                    let start = Instant::now();
                    texts.iter().for_each(|text| work(text));
                    start.elapsed().as_secs_f64()
                });
                bytes as f64 / 1e6 / best.fold(f64::INFINITY, f64::min)
            };
            let mut sketcher = Sketcher::new(&settings);
            let signatures = rate(&mut |text| {
                let _ = std::hint::black_box(sketcher.signature(text));
            });
            let mut sketcher = Sketcher::new(&settings);
            let sketches = rate(&mut |text| drop(std::hint::black_box(sketcher.sketch(text))));
            println!(
                "  {} permutations, {:?} {}-grams: signatures {signatures:.1} MB/s, with content hash and bands {sketches:.1} MB/s",
                settings.permutations(),
                settings.unit,
                settings.ngram
            );
        }
    }
    Ok(())
}
