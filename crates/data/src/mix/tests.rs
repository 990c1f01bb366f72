use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::fs::FaultFs;
use crate::loader::Loader;
use crate::sample::{IGNORE, eval_rows};
use crate::shards::{ShardSpec, ShardWriter};

/// A source whose document d of shard s has `lengths[s][d]` tokens. Every token of all sources of a test is another
/// number, so a token says where it comes from: `base`, `base + 1`, ...
fn source(name: &str, base: u32, lengths: &[&[u32]]) -> Source {
    let fs: Arc<dyn Fs> = Arc::new(FaultFs::new());
    let mut next = base;
    let mut prefixes = Vec::new();
    for (s, lengths) in lengths.iter().enumerate() {
        let prefix = PathBuf::from(format!("/{name}-{s}"));
        let spec = ShardSpec { vocab_size: 1 << 20, tokenizer_sha256: String::new() };
        let mut writer = ShardWriter::create(fs.clone(), &prefix, spec).unwrap();
        for &length in *lengths {
            let tokens: Vec<u32> = (next..next + length).collect();
            writer.push(&tokens, 0).unwrap();
            next += length;
        }
        writer.finish().unwrap();
        prefixes.push(prefix);
    }
    Source::open(&fs, name, &prefixes).unwrap()
}

fn phase(name: &str, samples: u64, weights: &[(&str, f64)], replay: Option<(&str, f64)>) -> PhaseSpec {
    PhaseSpec {
        name: name.into(),
        samples,
        sources: weights
            .iter()
            .map(|&(s, weight)| SourceWeight { source: s.into(), weight, max_epochs: None })
            .collect(),
        replay: replay.map(|(phase, fraction)| Replay { phase: phase.into(), fraction }),
    }
}

fn three_sources() -> Vec<Source> {
    vec![
        source("code", 0, &[&[5, 9, 0, 33, 2], &[], &[7, 12]]),
        source("prose", 1_000, &[&[3, 3, 3, 40]]),
        source("notes", 2_000, &[&[1, 20]]),
    ]
}

fn two_phases(seed: u64, seq_len: usize) -> Mixture {
    let phases = [
        phase("pretrain", 40, &[("code", 3.0), ("prose", 1.0)], None),
        phase("anneal", 40, &[("notes", 1.0)], Some(("pretrain", 0.6))),
    ];
    Mixture::new(three_sources(), &phases, seed, seq_len).unwrap()
}

#[test]
fn a_sample_does_not_depend_on_what_was_asked_before() {
    let forward = two_phases(1, 8);
    let samples: Vec<Sample> = (0..200).map(|i| forward.sample(i / 100, i as u64 % 100).unwrap()).collect();
    let backward = two_phases(1, 8);
    for i in (0..200).rev() {
        assert_eq!(backward.sample(i / 100, i as u64 % 100).unwrap(), samples[i]);
    }
    let fresh = two_phases(1, 8);
    for i in [150, 3, 199, 77, 3, 101] {
        assert_eq!(fresh.sample(i / 100, i as u64 % 100).unwrap(), samples[i]);
    }
    let loader = Loader::new(Arc::new(two_phases(1, 8)), 1, 5, Some(60), 3).unwrap();
    let loaded: Vec<Sample> = loader.map(|sample| sample.unwrap()).collect();
    assert_eq!(loaded, samples[105..160]);
}

#[test]
fn an_unfinished_loader_stops_when_dropped() {
    let mixture = Arc::new(two_phases(1, 8));
    let mut loader = Loader::new(mixture.clone(), 0, 0, None, 2).unwrap();
    loader.next().unwrap().unwrap();
    drop(loader);
    assert_eq!(Arc::strong_count(&mixture), 1, "the thread is gone");
    assert!(Loader::new(mixture, 2, 0, None, 2).is_err());
}

/// All rows of a source, each checked for its shape, as `(input, target)` pairs.
fn transitions(sample: &Sample, seq_len: usize) -> Vec<(u32, u32)> {
    assert_eq!((sample.tokens.len(), sample.targets.len()), (seq_len, seq_len));
    let mut end = 0;
    for &(start, len) in &sample.spans {
        assert_eq!(start, end, "spans are contiguous");
        assert!(len > 0);
        end = start + len;
        // Within a document of these sources tokens count up by one.
        for t in start..end {
            assert_eq!(sample.tokens[t], sample.tokens[start] + (t - start) as u32);
            let inside = t + 1 < end;
            assert!(!inside || sample.targets[t] == sample.tokens[t + 1], "{sample:?}");
            assert!(end == seq_len || t + 1 < end || sample.targets[t] == IGNORE, "{sample:?}");
        }
    }
    assert_eq!(end, seq_len, "spans cover the row");
    sample.tokens.iter().copied().zip(sample.targets.iter().copied()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_epoch_shows_every_document_once(
        lengths in proptest::collection::vec(0u32..30, 1..20),
        more in proptest::collection::vec(0u32..30, 0..5),
        seq_len in 1usize..40,
        seed in any::<u64>(),
    ) {
        let total: u32 = lengths.iter().chain(&more).sum();
        prop_assume!(total > 0);
        let epochs = 3;
        let one = source("one", 0, &[&lengths, &more]);
        let mixture = Mixture::new(vec![one], &[phase("p", 1, &[("one", 1.0)], None)], seed, seq_len).unwrap();
        // Position j of the stream is position j % seq_len of row j / seq_len.
        let rows = (epochs * total as usize).div_ceil(seq_len);
        let mut stream = vec![(u32::MAX, 0); rows * seq_len];
        // All rows of the epochs that begin within these.
        let taken = mixture.sources[0].rows_until(epochs as u64);
        prop_assert!(taken >= rows as u64);
        for i in 0..taken {
            let row = mixture.sources[0].taken(seed, i) as usize;
            let pairs = transitions(&mixture.sample(0, i).unwrap(), seq_len);
            if row < rows {
                stream[row * seq_len..][..seq_len].copy_from_slice(&pairs);
            }
        }
        // The pairs that each document holds: every token once, followed by the next one or by nothing.
        let mut expected = Vec::new();
        let mut token = 0;
        for &length in lengths.iter().chain(&more) {
            for t in 0..length {
                expected.push((token, if t + 1 < length { token + 1 } else { IGNORE }));
                token += 1;
            }
        }
        for epoch in 0..epochs {
            let start = epoch * total as usize;
            let mut seen = stream[start..start + total as usize].to_vec();
            seen.sort_unstable();
            prop_assert_eq!(&seen, &expected, "epoch {}", epoch);
        }
    }

    #[test]
    fn rows_of_an_epoch_are_taken_once_each(
        lengths in proptest::collection::vec(0u32..30, 1..20),
        seq_len in 1usize..40,
        seed in any::<u64>(),
    ) {
        let total: u32 = lengths.iter().sum();
        prop_assume!(total > 0);
        let one = source("one", 0, &[&lengths]);
        let mixture = Mixture::new(vec![one], &[phase("p", 1, &[("one", 1.0)], None)], seed, seq_len).unwrap();
        let stream = &mixture.sources[0];
        for epoch in 0..4 {
            let range = stream.rows_until(epoch)..stream.rows_until(epoch + 1);
            let mut rows: Vec<u64> = range.clone().map(|n| stream.taken(seed, n)).collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, range.collect::<Vec<_>>());
        }
    }

    #[test]
    fn evaluation_rows_show_every_document_once_in_order(
        lengths in proptest::collection::vec(0u32..30, 1..20),
        seq_len in 1usize..40,
    ) {
        let one = source("one", 0, &[&lengths]);
        let shard = &one.shards[0];
        let mut pairs = Vec::new();
        for sample in eval_rows(shard, seq_len) {
            let sample = sample.unwrap();
            prop_assert!(sample.tokens.len() <= seq_len);
            pairs.extend(transitions(&sample, sample.tokens.len()));
        }
        let predicted: Vec<u32> = pairs.iter().map(|&(_, target)| target).filter(|&t| t != IGNORE).collect();
        let mut expected = Vec::new();
        let mut token = 0;
        for &length in &lengths {
            expected.extend(token + 1..token + length.max(1));
            token += length;
        }
        prop_assert_eq!(predicted, expected);
        prop_assert!(pairs.iter().all(|&(input, target)| target == IGNORE || target == input + 1));
    }
}

#[test]
fn seeds_and_names_give_other_orders() {
    let of = |mixture: &Mixture| -> Vec<Sample> { (0..30).map(|i| mixture.sample(0, i).unwrap()).collect() };
    assert_eq!(of(&two_phases(1, 8)), of(&two_phases(1, 8)));
    assert_ne!(of(&two_phases(1, 8)), of(&two_phases(2, 8)));
}

#[test]
fn weights_are_realised_to_within_a_sample() {
    let mixture = two_phases(3, 8);
    for (p, expected) in [
        (0, vec![("code", 0.75), ("prose", 0.25)]),
        (1, vec![("notes", 0.4), ("code", 0.45), ("prose", 0.15)]),
    ] {
        for (from, to) in [(0u64, 1u64), (0, 7), (0, 1000), (0, 70_000)] {
            let realised = mixture.realised(p, from, to);
            assert_eq!(realised.len(), expected.len());
            for (one, (name, weight)) in realised.iter().zip(&expected) {
                assert_eq!(one.name, *name);
                assert!((one.weight - weight).abs() < 1e-12);
                assert!((one.samples as f64 - weight * (to - from) as f64).abs() < 1.0, "{one:?} of {to}");
                assert_eq!(one.tokens, 8 * one.samples);
            }
            assert_eq!(realised.iter().map(|r| r.samples).sum::<u64>(), to - from);
        }
        // A range is counted as its samples say themselves.
        let mut counted: BTreeMap<usize, u64> = BTreeMap::new();
        for i in 13..57 {
            *counted.entry(mixture.sample(p, i).unwrap().source).or_default() += 1;
        }
        let names: Vec<&str> = mixture.sources().map(|(name, _)| name).collect();
        for one in mixture.realised(p, 13, 57) {
            let source = names.iter().position(|name| *name == one.name).unwrap();
            assert_eq!(one.samples, counted.get(&source).copied().unwrap_or(0));
        }
    }
}

#[test]
fn replay_goes_on_where_the_earlier_phase_stopped() {
    let mixture = two_phases(3, 8);
    let stream = |p: usize, range: std::ops::Range<u64>, source: usize| -> Vec<Sample> {
        let all = range.map(|i| mixture.sample(p, i).unwrap());
        all.filter(|sample| sample.source == source).collect()
    };
    // Phase 1 alone, read beyond its end, shows what would have come next.
    for (source, per_100) in [(0, 75), (1, 25)] {
        let beyond = stream(0, 0..200, source);
        let seen = stream(0, 0..40, source).len();
        assert_eq!(seen, per_100 * 40 / 100);
        let replayed = stream(1, 0..40, source);
        assert!(replayed.len() >= 5);
        assert_eq!(replayed, beyond[seen..seen + replayed.len()]);
    }
    let epochs = mixture.realised(1, 0, 40).into_iter().find(|one| one.name == "code").unwrap().epochs;
    assert!((epochs - (30.0 + 18.0) * 8.0 / 68.0).abs() < 1e-9, "{epochs}");
}

#[test]
fn fingerprints_name_all_that_decides_the_samples_and_nothing_else() {
    let phases = |n1: u64, w: f64| {
        [phase("a", n1, &[("code", w), ("prose", 1.0)], None), phase("b", 9, &[("code", 1.0)], None)]
    };
    let make = |n1, w, seed, seq_len| Mixture::new(three_sources(), &phases(n1, w), seed, seq_len).unwrap();
    let base = make(40, 1.0, 1, 8);
    assert_eq!(base.fingerprint(0), make(40, 1.0, 1, 8).fingerprint(0));
    assert_ne!(base.fingerprint(0), base.fingerprint(1));
    assert_ne!(base.fingerprint(0), make(40, 1.5, 1, 8).fingerprint(0));
    assert_ne!(base.fingerprint(0), make(40, 1.0, 2, 8).fingerprint(0));
    assert_ne!(base.fingerprint(0), make(40, 1.0, 1, 9).fingerprint(0));
    let longer = make(41, 1.0, 1, 8);
    assert_eq!(
        base.fingerprint(0),
        longer.fingerprint(0),
        "the length of a phase does not change its own samples"
    );
    assert_ne!(base.fingerprint(1), longer.fingerprint(1));
    let mut sources = three_sources();
    sources[0] = source("code", 1, &[&[5, 9, 0, 33, 2], &[], &[7, 12]]);
    let other = Mixture::new(sources, &phases(40, 1.0), 1, 8).unwrap();
    assert_ne!(base.fingerprint(0), other.fingerprint(0), "other tokens");
}

#[test]
fn phases_that_make_no_sense_are_named() {
    let message = |phases: &[PhaseSpec]| match Mixture::new(three_sources(), phases, 1, 8) {
        Err(Error::Mixture(what)) => what,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    let ok = || phase("a", 1, &[("code", 1.0)], None);
    assert!(message(&[]).contains("no phase"));
    assert!(message(&[phase("a", 1, &[("cod", 1.0)], None)]).contains("`cod`"));
    assert!(message(&[phase("a", 1, &[("code", 0.0)], None)]).contains("weight 0"));
    assert!(message(&[phase("a", 1, &[("code", f64::NAN)], None)]).contains("NaN"));
    assert!(message(&[phase("a", 1, &[("code", 1.0), ("code", 1.0)], None)]).contains("twice"));
    assert!(message(&[phase("a", 1, &[], None)]).contains("no source"));
    assert!(message(&[ok(), ok()]).contains("this name"));
    assert!(message(&[phase("a", 1, &[], Some(("a", 1.0)))]).contains("not an earlier phase"));
    assert!(message(&[ok(), phase("b", 1, &[], Some(("a", 0.5)))]).contains("no source"));
    assert!(message(&[ok(), phase("b", 1, &[("prose", 1.0)], Some(("a", 1.5)))]).contains("1.5"));
    Mixture::new(three_sources(), &[ok(), phase("b", 1, &[], Some(("a", 1.0)))], 1, 8).unwrap();
    assert!(Mixture::new(three_sources(), &[ok()], 1, 0).is_err());
    let empty = vec![source("empty", 0, &[&[0, 0]])];
    assert!(Mixture::new(empty, &[phase("a", 1, &[("empty", 1.0)], None)], 1, 8).is_err());
    let twice = vec![source("code", 0, &[&[1]]), source("code", 0, &[&[1]])];
    assert!(Mixture::new(twice, &[ok()], 1, 8).is_err());
}

#[test]
fn neighbours_of_a_long_document_are_not_taken_one_after_the_other() {
    let long = vec![source("long", 0, &[&[4_000, 4_000]])];
    let mixture = Mixture::new(long, &[phase("p", 1, &[("long", 1.0)], None)], 7, 10).unwrap();
    let rows: Vec<u64> = (0..800).map(|n| mixture.sources[0].taken(7, n)).collect();
    let next = rows.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    // In a random order of 800 each has a neighbour behind it once in 800 times: one on average, Poisson.
    assert!(next < 10, "{next} of 799");
}

#[test]
fn a_source_is_not_read_more_often_than_it_may_be() {
    // `notes` has 21 tokens: 2 epochs are 5 whole rows of 8.
    let capped =
        |source: &str, weight, max_epochs| SourceWeight { source: source.into(), weight, max_epochs };
    let spec = |samples, notes, code| PhaseSpec {
        name: "a".into(),
        samples,
        sources: vec![capped("notes", 1.0, notes), capped("code", 1.0, code)],
        replay: None,
    };
    let mixture = |phases: &[PhaseSpec]| Mixture::new(three_sources(), phases, 1, 8);
    let one = mixture(&[spec(40, Some(2.0), None)]).unwrap();
    let realised = one.realised(0, 0, 40);
    let notes = realised.iter().find(|part| part.name == "notes").unwrap();
    assert!(notes.epochs <= 2.0 && notes.samples >= 3, "{notes:?}");
    assert!((notes.uncapped - 0.5).abs() < 1e-12 && notes.weight < 0.2);
    assert_eq!(realised.iter().map(|part| part.samples).sum::<u64>(), 40);
    // A cap that does not bite changes nothing.
    let free = mixture(&[spec(40, None, None)]).unwrap();
    assert_eq!(mixture(&[spec(40, Some(100.0), None)]).unwrap().fingerprint(0), free.fingerprint(0));
    assert_ne!(one.fingerprint(0), free.fingerprint(0));
    // The cap holds over phases, also where the phase is replayed.
    let replay = phase("b", 40, &[("prose", 1.0)], Some(("a", 0.9)));
    let two = mixture(&[spec(40, Some(2.0), None), replay]).unwrap();
    assert!(two.realised(1, 0, 40).iter().all(|part| part.name != "notes" || part.epochs <= 2.0));
    let Err(error) = mixture(&[spec(4_000, Some(2.0), Some(3.0))]) else { panic!("accepted") };
    assert!(error.to_string().contains("max_epochs"), "{error}");
    let Err(error) = mixture(&[spec(40, Some(0.0), None)]) else { panic!("accepted") };
    assert!(error.to_string().contains("max_epochs 0"), "{error}");
}
