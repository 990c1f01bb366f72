//! Holding out whole families of packages for evaluation.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Document, Kind};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Documents to train on, and documents never to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<Document>,
    /// To measure with.
    pub held_out: Vec<Document>,
    /// How it was made.
    pub summary: SplitSummary,
}

/// What was held out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    /// Families of packages, or single documents where there are too few families.
    pub groups: Vec<String>,
    /// Whether the groups are families.
    pub by_family: bool,
    /// Bytes of code and prose held out.
    pub text_bytes: u64,
    /// Bytes of documentation prose held out.
    pub doc_prose_bytes: u64,
}

/// With fewer families than this, single documents are held out: a family would be too large a part.
const MIN_FAMILIES: usize = 20;

/// Holds out about `fraction` of the bytes of both parts, code and prose on one side and documentation prose on the
/// other. Groups are taken whole, in an order that `seed` decides; one that would hold out more than twice what is
/// wanted is passed over. Since crates of one project share text, a group is a family of packages.
///
/// # Errors
/// If that leaves nothing to measure with or nothing to train on.
pub fn split(documents: Vec<Document>, fraction: f64, seed: u64) -> Result<Split> {
    let families: BTreeSet<&str> = documents.iter().map(|document| document.family.as_str()).collect();
    let by_family = families.len() >= MIN_FAMILIES;
    let group = |document: &Document| {
        // The prose of a source file goes with the file.
        let id = document.id.strip_suffix(super::DOC_SUFFIX).unwrap_or(&document.id);
        if by_family { document.family.clone() } else { id.to_owned() }
    };
    let mut sizes: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for document in &documents {
        sizes.entry(group(document)).or_default()[part(document)] += document.text.len() as u64;
    }
    let held = choose(&sizes, fraction, seed);
    let (held_out, train): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| held.contains(&group(document)));
    if held_out.is_empty() || train.is_empty() {
        return Err(Error::TooLittle(format!(
            "{} documents are too few to hold out {fraction} of them; give more text",
            held_out.len() + train.len()
        )));
    }
    let bytes = |which| held_out.iter().filter(|d| part(d) == which).map(|d| d.text.len() as u64).sum();
    let (text_bytes, doc_prose_bytes) = (bytes(0), bytes(1));
    let groups = held.into_iter().collect();
    Ok(Split { train, held_out, summary: SplitSummary { groups, by_family, text_bytes, doc_prose_bytes } })
}

/// 0 for code and prose, 1 for documentation prose.
fn part(document: &Document) -> usize {
    usize::from(document.kind == Kind::DocProse)
}

fn choose(sizes: &BTreeMap<String, [u64; 2]>, fraction: f64, seed: u64) -> BTreeSet<String> {
    let wanted: [f64; 2] =
        std::array::from_fn(|p| fraction * sizes.values().map(|size| size[p]).sum::<u64>() as f64);
    let mut order: Vec<&String> = sizes.keys().collect();
    Rng::keyed("zamba-data hold out 1", "", &[seed]).shuffle(&mut order);
    let mut held = BTreeSet::new();
    let mut sum = [0.0; 2];
    for name in order {
        let size = sizes[name].map(|bytes| bytes as f64);
        let useful = (0..2).any(|p| sum[p] < wanted[p] && size[p] > 0.0);
        if useful && (0..2).all(|p| sum[p] + size[p] <= 2.0 * wanted[p]) {
            held.insert(name.clone());
            sum = [sum[0] + size[0], sum[1] + size[1]];
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(families: usize) -> Vec<Document> {
        let kinds = [Kind::Code, Kind::Prose, Kind::DocProse];
        let mut rng = Rng::keyed("test", "", &[1]);
        (0..3 * families)
            .map(|i| Document {
                id: format!("p{}-{i}", i / 3),
                family: format!("p{}", i / 3),
                kind: kinds[i % 3],
                text: "x".repeat(500 + rng.below(1_000) as usize),
            })
            .collect()
    }

    #[test]
    fn families_are_never_torn_apart() {
        let all = documents(200);
        let split = split(all.clone(), 0.05, 7).unwrap();
        assert!(split.summary.by_family);
        let families = |docs: &[Document]| docs.iter().map(|d| d.family.clone()).collect::<BTreeSet<_>>();
        assert!(families(&split.train).is_disjoint(&families(&split.held_out)));
        assert_eq!(split.train.len() + split.held_out.len(), all.len());
        let total: usize = all.iter().filter(|d| d.kind == Kind::DocProse).map(|d| d.text.len()).sum();
        let share = split.summary.doc_prose_bytes as f64 / total as f64;
        assert!((0.05..=0.1).contains(&share), "{share}");
        assert!(split.summary.text_bytes > 0);
    }

    #[test]
    fn the_seed_alone_decides() {
        let held = |seed| split(documents(200), 0.05, seed).unwrap().summary;
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
    }

    #[test]
    fn few_families_are_split_by_document() {
        let split = split(documents(15), 0.1, 7).unwrap();
        assert!(!split.summary.by_family);
        assert!(!split.held_out.is_empty() && split.held_out.len() < 15);
        assert!(matches!(super::split(documents(0), 0.1, 7), Err(Error::TooLittle(_))));
        assert!(matches!(super::split(documents(15), 0.0, 7), Err(Error::TooLittle(_))));
    }
}
