//! Equal bits however a sequence is cut up, batched or spread over threads.

mod common;

use std::sync::Arc;

use common::{cpus, devices, filled, lively, logits, small_config, tokens, wide_config};
use zamba::config::{QuantFormat, ZambaConfig};
use zamba::{ARITHMETIC, Batch, State, Workspace, Zamba};
use zamba_kernels::{Device, Dtype};

const PROMPT: usize = 64;

/// Each device with f32 and with bf16 weights.
fn in_each_format(devices: Vec<Arc<dyn Device>>) -> Vec<(Arc<dyn Device>, Dtype)> {
    let formats = [Dtype::F32, Dtype::Bf16];
    formats.iter().flat_map(|format| devices.iter().map(move |dev| (dev.clone(), *format))).collect()
}

fn chunked(model: &Zamba, ws: &Workspace, toks: &[u32], cuts: &[usize]) -> Vec<u32> {
    let mut state = State::new(model, 1, toks.len());
    let mut out = vec![];
    let mut at = 0;
    for &len in cuts {
        let mut batch = Batch::default();
        batch.push(0, at, &toks[at..at + len]);
        out.extend(logits(model, ws, batch, Some(&mut state)));
        at += len;
    }
    assert_eq!(at, toks.len());
    out
}

/// Every uniform chunk size, every single cut, and 60 random compositions of the prompt.
fn chunkings() -> Vec<Vec<usize>> {
    let uniform = (1..PROMPT).map(|c| {
        let mut v = vec![c; PROMPT / c];
        v.extend((!PROMPT.is_multiple_of(c)).then_some(PROMPT % c));
        v
    });
    let single = (1..PROMPT).map(|c| vec![c, PROMPT - c]);
    let random = (0..60u64).map(|seed| {
        let (mut v, mut left) = (vec![], PROMPT);
        for t in tokens(PROMPT, 12, seed + 5) {
            let len = (t as usize).min(left);
            left -= len;
            v.extend((len > 0).then_some(len));
        }
        v
    });
    uniform.chain(single).chain(random).collect()
}

#[test]
fn whole_prefill_equals_every_chunking_and_one_by_one() {
    for format in [Dtype::F32, Dtype::Bf16] {
        for dev in cpus(2) {
            let model = lively(&small_config(), dev.clone(), format, 1);
            let ws = Workspace::new(dev.clone());
            let toks = tokens(PROMPT, 61, 9);
            let whole = logits(&model, &ws, Batch::of(&toks), None);
            for cuts in chunkings() {
                assert!(chunked(&model, &ws, &toks, &cuts) == whole, "{} {format:?} {cuts:?}", dev.name());
            }
        }
    }
}

/// More keys than any block of attention holds.
#[test]
fn a_long_prompt_equals_its_chunks_and_one_by_one() {
    const LONG: usize = 600;
    let by_sevens = [vec![7; LONG / 7], vec![LONG % 7]].concat();
    let late = [vec![LONG - 40], vec![1; 40]].concat();
    for (dev, format) in in_each_format(cpus(2)) {
        let model = lively(&small_config(), dev.clone(), format, 6);
        let ws = Workspace::new(dev.clone());
        let toks = tokens(LONG, 61, 10);
        let whole = logits(&model, &ws, Batch::of(&toks), None);
        for cuts in [vec![LONG], vec![100, 500], vec![257, 255, 88], by_sevens.clone(), late.clone()] {
            assert!(chunked(&model, &ws, &toks, &cuts) == whole, "{} {format:?} {cuts:?}", dev.name());
        }
    }
}

#[test]
fn a_sequence_among_others_equals_alone() {
    for (dev, format) in in_each_format(devices()) {
        let model = lively(&small_config(), dev.clone(), format, 2);
        let ws = Workspace::new(dev.clone());
        let seqs: Vec<_> = [17, 1, 40, 3].iter().map(|&n| tokens(n, 61, n as u64)).collect();
        let alone: Vec<_> = seqs.iter().map(|s| logits(&model, &ws, Batch::of(s), None)).collect();
        let mut together = Batch::default();
        for (j, s) in seqs.iter().enumerate() {
            together.push(3 - j, 0, s);
        }
        let mut state = State::new(&model, 4, 64);
        assert!(logits(&model, &ws, together.clone(), Some(&mut state)) == alone.concat(), "{}", dev.name());
        assert!(logits(&model, &ws, together, None) == alone.concat(), "{} without state", dev.name());
    }
}

#[test]
fn decode_rows_beside_a_prompt_chunk_equal_alone() {
    for (dev, format) in in_each_format(cpus(2)) {
        let model = lively(&small_config(), dev.clone(), format, 3);
        let ws = Workspace::new(dev.clone());
        let (a, b) = (tokens(20, 61, 1), tokens(30, 61, 2));
        let row = |bits: &[u32], j: usize| bits[j * 61..(j + 1) * 61].to_vec();
        let (whole_a, whole_b) =
            (logits(&model, &ws, Batch::of(&a), None), logits(&model, &ws, Batch::of(&b), None));
        let mut state = State::new(&model, 2, 64);
        let mut first = Batch::default();
        first.push(1, 0, &a[..19]);
        logits(&model, &ws, first, Some(&mut state));
        let mut mixed = Batch::default();
        mixed.push(1, 19, &a[19..]);
        mixed.push(0, 0, &b);
        let got = logits(&model, &ws, mixed, Some(&mut state));
        assert_eq!(row(&got, 0), row(&whole_a, 19), "{}", dev.name());
        assert!(got[61..] == whole_b, "{}", dev.name());
    }
}

#[test]
fn thread_counts_agree() {
    let toks = tokens(PROMPT, 61, 4);
    let runs: Vec<Vec<Vec<u32>>> = [1, 2, 3]
        .map(|threads| {
            in_each_format(cpus(threads))
                .into_iter()
                .map(|(dev, format)| {
                    let model = lively(&small_config(), dev.clone(), format, 4);
                    logits(&model, &Workspace::new(dev), Batch::of(&toks), None)
                })
                .collect()
        })
        .into();
    assert!(runs[0] == runs[1] && runs[1] == runs[2]);
}

#[test]
fn a_used_slot_starts_clean_and_a_copied_slot_goes_its_own_way() {
    for (dev, format) in in_each_format(devices()) {
        let model = lively(&small_config(), dev.clone(), format, 5);
        let ws = Workspace::new(dev.clone());
        let (a, b) = (tokens(12, 61, 6), tokens(9, 61, 7));
        let mut state = State::new(&model, 2, 64);
        logits(&model, &ws, Batch::of(&tokens(33, 61, 8)), Some(&mut state));
        state.reset(0);
        let fresh = logits(&model, &ws, Batch::of(&a), Some(&mut state));
        assert!(fresh == logits(&model, &ws, Batch::of(&a), None), "{}: slot inherits state", dev.name());

        state.copy_slot(1, 0);
        let mut on_copy = Batch::default();
        on_copy.push(1, 12, &b);
        let mut on_original = Batch::default();
        on_original.push(0, 12, &b);
        let copy = logits(&model, &ws, on_copy, Some(&mut state));
        let original = logits(&model, &ws, on_original, Some(&mut state));
        assert!(copy == original, "{}: copy differs", dev.name());
        let whole = logits(&model, &ws, Batch::of(&[a.clone(), b.clone()].concat()), None);
        assert!(copy == whole[12 * 61..], "{}", dev.name());
    }
}

#[test]
fn a_state_that_was_read_out_goes_on_in_any_slot_of_any_size() {
    for (dev, format) in in_each_format(devices()) {
        let model = lively(&small_config(), dev.clone(), format, 9);
        let ws = Workspace::new(dev.clone());
        let (a, b) = (tokens(75, 61, 10), tokens(40, 61, 11));
        let whole = logits(&model, &ws, Batch::of(&[a.clone(), b.clone()].concat()), None);
        // Ends on and beside the borders of runs, and a sequence that went on after its first rows were read.
        for end in [1, 31, 32, 33, 64, 75] {
            let mut from = State::new(&model, 2, 128);
            let mut head = Batch::default();
            head.push(1, 0, &a[..end.min(32)]);
            logits(&model, &ws, head, Some(&mut from));
            let mut runs = vec![];
            if end >= 32 {
                runs.push(from.rows(1, 0..32));
            }
            if end > 32 {
                let mut rest = Batch::default();
                rest.push(1, 32, &a[32..end]);
                logits(&model, &ws, rest, Some(&mut from));
            }
            for begin in (runs.len() * 32..end).step_by(32) {
                runs.push(from.rows(1, begin..end.min(begin + 32)));
            }
            let recurrent = from.recurrent(1);

            let mut to = State::new(&model, 3, 115);
            assert_eq!(from.layout(), to.layout());
            let mut other = Batch::default();
            other.push(2, 0, &tokens(90, 61, 12));
            logits(&model, &ws, other, Some(&mut to));
            to.restore(2, end, &recurrent, runs.iter());
            let mut rest = Batch::default();
            rest.push(2, end, &[&a[end..], &b].concat());
            let got = logits(&model, &ws, rest, Some(&mut to));
            assert!(got == whole[end * 61..], "{} {format:?}: {end} tokens", dev.name());
        }
    }
}

/// Hashes of results of this [`ARITHMETIC`], by tier and the format of the weights. AVX-512 gives what AVX2 gives.
const RESULTS: [(&str, &str, u64); 6] = [
    ("scalar", "f32", 0x6824_7770_74dc_f196),
    ("scalar", "bf16", 0x2711_e529_2f6a_6542),
    ("scalar", "q8", 0xdee1_51cb_048a_e492),
    ("avx2", "f32", 0x7bb8_0f7a_3a59_8035),
    ("avx2", "bf16", 0x360c_5f6a_6c7a_884e),
    ("avx2", "q8", 0xd3de_fd96_2eb4_07cc),
];

/// What earlier versions kept, states of sequences and scored answers, is used as long as [`ARITHMETIC`] is the same: whoever
/// changes a bit of a result raises it, and writes above what the test prints.
#[test]
fn results_are_those_that_this_arithmetic_stands_for() {
    let quantised = ZambaConfig { quantization: Some(QuantFormat::Q8), ..wide_config() };
    let formats = [
        ("f32", Dtype::F32, wide_config()),
        ("bf16", Dtype::Bf16, wide_config()),
        ("q8", Dtype::Bf16, quantised),
    ];
    let mut changed = vec![];
    for (name, format, config) in &formats {
        for dev in cpus(2) {
            let tier = dev.arithmetic().replace("cpu ", "").replace("avx512", "avx2");
            let Some((.., known)) = RESULTS.iter().find(|known| (known.0, known.1) == (&tier, name)) else {
                println!("SKIPPED: it is not known what {tier} gives with weights in {name}");
                continue;
            };
            let model = plain(config, dev.clone(), *format);
            let bits = logits(&model, &Workspace::new(dev), Batch::of(&tokens(300, 61, 13)), None);
            if fnv(&bits) != *known {
                changed.push(format!("{tier} {name} {:#018x}", fnv(&bits)));
            }
        }
    }
    assert!(changed.is_empty(), "not the results of arithmetic {ARITHMETIC}: {changed:#?}");
}

/// A model whose weights are the same on every machine: a usual draw passes through the system's logarithm.
fn plain(config: &ZambaConfig, dev: Arc<dyn Device>, format: Dtype) -> Zamba {
    let mut seed = 0;
    filled(config, dev, format, |spec, values| {
        seed += 1;
        values.clear();
        values.extend(tokens(spec.len(), 2002, seed).into_iter().map(|t| (t as f32 - 1001.0) / 5000.0));
    })
}

/// The hash FNV-1a, of words in place of bytes.
fn fnv(bits: &[u32]) -> u64 {
    bits.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ u64::from(*word)).wrapping_mul(0x0100_0000_01b3))
}
