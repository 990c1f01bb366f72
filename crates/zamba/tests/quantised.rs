//! Quantised models: equal bits however a sequence is cut up, and folders that load or are refused.

mod common;
mod files;

use std::collections::BTreeSet;
use std::path::Path;

use common::{cpus, devices, lively, logits, tokens, wide_config};
use files::{Tensors, pack, plain, unpack};
use zamba::checkpoint::{Checkpoint, LoadError, LoadOptions, SaveOptions, Weights, save_quantised};
use zamba::config::{ConfigError, FileDtype, QuantFormat, ZambaConfig};
use zamba::{Batch, State, Workspace, Zamba};
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{Device, Dtype};

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8, QuantFormat::Q4];
const PROMPT: usize = 48;

fn config(format: QuantFormat) -> ZambaConfig {
    ZambaConfig { quantization: Some(format), ..wide_config() }
}

fn chunked(model: &Zamba, ws: &Workspace, toks: &[u32], cuts: &[usize]) -> Vec<u32> {
    let mut state = State::new(model, 1, toks.len());
    let (mut out, mut at) = (vec![], 0);
    for &len in cuts {
        let mut batch = Batch::default();
        batch.push(0, at, &toks[at..at + len]);
        out.extend(logits(model, ws, batch, Some(&mut state)));
        at += len;
    }
    assert_eq!(at, toks.len());
    out
}

/// Every uniform chunk size and every single cut.
fn chunkings() -> Vec<Vec<usize>> {
    let uniform = (1..PROMPT).map(|c| {
        let mut v = vec![c; PROMPT / c];
        v.extend((!PROMPT.is_multiple_of(c)).then_some(PROMPT % c));
        v
    });
    uniform.chain((1..PROMPT).map(|c| vec![c, PROMPT - c])).collect()
}

#[test]
fn whole_prefill_equals_every_chunking_and_one_by_one() {
    for format in FORMATS {
        for dev in cpus(2) {
            let model = lively(&config(format), dev.clone(), Dtype::Bf16, 1);
            let ws = Workspace::new(dev.clone());
            let toks = tokens(PROMPT, 61, 9);
            let whole = logits(&model, &ws, Batch::of(&toks), None);
            for cuts in chunkings() {
                assert!(chunked(&model, &ws, &toks, &cuts) == whole, "{} {format:?} {cuts:?}", dev.name());
            }
        }
    }
}

#[test]
fn a_sequence_among_others_equals_alone() {
    for format in FORMATS {
        for dev in devices() {
            let model = lively(&config(format), dev.clone(), Dtype::Bf16, 2);
            let ws = Workspace::new(dev.clone());
            let seqs: Vec<_> = [17, 1, 40, 3].iter().map(|&n| tokens(n, 61, n as u64)).collect();
            let alone: Vec<_> = seqs.iter().map(|s| logits(&model, &ws, Batch::of(s), None)).collect();
            let mut together = Batch::default();
            for (j, s) in seqs.iter().enumerate() {
                together.push(3 - j, 0, s);
            }
            assert!(logits(&model, &ws, together, None) == alone.concat(), "{} {format:?}", dev.name());
        }
    }
}

#[test]
fn thread_counts_agree() {
    let toks = tokens(PROMPT, 61, 4);
    for format in FORMATS {
        for isa in Isa::available() {
            let run = |threads| {
                let dev: std::sync::Arc<dyn Device> = std::sync::Arc::new(Cpu::with(isa, threads));
                let model = lively(&config(format), dev.clone(), Dtype::Bf16, 4);
                logits(&model, &Workspace::new(dev), Batch::of(&toks), None)
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3), "{isa} {format:?}");
        }
    }
}

/// Saves the weights of `model` as they are.
fn save(dir: &Path, model: &Zamba, options: &SaveOptions) {
    save_quantised(dir, &model.config, options, &mut |spec, content| {
        let id = model.specs().iter().position(|s| s.name == spec.name).unwrap();
        let mat = model.params()[id].mat();
        if mat.dtype().is_quantised() {
            content.bytes = model.device().to_bytes(&mat.buf);
        } else {
            model.read_param(id, &mut content.numbers);
        }
        Ok(())
    })
    .unwrap();
}

fn model(format: QuantFormat) -> Zamba {
    lively(&config(format), std::sync::Arc::new(Cpu::new(Some(2))), Dtype::F32, 7)
}

fn open(dir: &Path) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(dir, &LoadOptions::default())
}

fn load(dir: &Path) -> Result<Zamba, LoadError> {
    Zamba::load(&open(dir)?, std::sync::Arc::new(Cpu::new(Some(2))), None, Weights::Copy, &mut |_| {})
}

#[test]
fn folders_load_to_the_same_bits_in_one_file_and_in_shards() {
    let toks = tokens(20, 61, 3);
    for format in FORMATS {
        let model = model(format);
        let want = logits(&model, &Workspace::new(model.device().clone()), Batch::of(&toks), None);
        for max_shard_bytes in [1 << 30, 40_000] {
            let tmp = tempfile::tempdir().unwrap();
            let dir = tmp.path().join("m");
            save(&dir, &model, &SaveOptions { max_shard_bytes, manifest: true, ..plain() });
            assert_eq!(dir.join("model.safetensors").exists(), max_shard_bytes > 1 << 20);
            let checkpoint = open(&dir).unwrap();
            assert_eq!(checkpoint.config.quantization, Some(format));
            let mut last = 0;
            let dev: std::sync::Arc<dyn Device> = std::sync::Arc::new(Cpu::new(Some(2)));
            let again =
                Zamba::load(&checkpoint, dev.clone(), None, Weights::Copy, &mut |done| last = done).unwrap();
            assert_eq!(last, checkpoint.total_bytes());
            assert!(logits(&again, &Workspace::new(dev), Batch::of(&toks), None) == want, "{format:?}");
        }
    }
}

#[test]
fn files_are_plain_safetensors_in_the_order_of_memory() {
    for format in FORMATS {
        let model = model(format);
        let tmp = tempfile::tempdir().unwrap();
        save(&tmp.path().join("m"), &model, &plain());
        let tensors = unpack(&tmp.path().join("m/model.safetensors"));
        let name = "model.layers.0.mamba.in_proj.weight";
        let find = |end: &str| tensors.iter().find(|t| t.0 == format!("{name}{end}")).unwrap();
        let (quants, scales) = (find(".q"), find(".scale"));
        let block = if format == QuantFormat::Q8 { 2048 } else { 1024 };
        assert_eq!((quants.1.as_str(), &quants.2[..]), ("U8", &[32, 1, block][..]));
        assert_eq!((scales.1.as_str(), &scales.2[..]), ("F16", &[32, 1, 16][..]));
        let id = model.specs().iter().position(|s| s.name == name).unwrap();
        let mat = model.params()[id].mat();
        let bytes = model.device().to_bytes(&mat.buf);
        assert!(bytes == [&quants.3[..], &scales.3[..]].concat());
        let checkpoint = open(&tmp.path().join("m")).unwrap();
        let (mut wide, mut want) = (vec![], vec![]);
        checkpoint.read_whole(name, &mut wide).unwrap();
        model.read_param(id, &mut want);
        assert_eq!(wide, want);
        assert!(matches!(checkpoint.read_f32(name, 0, &mut [0.0]), Err(LoadError::Whole { .. })));
        // The rest of the folder is in the type of the options.
        let types: BTreeSet<_> = tensors.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(types, BTreeSet::from(["F16", "F32", "U8"]));
    }
}

#[test]
fn untied_models_keep_copies_of_the_quantised_shared_block() {
    let mut config = config(QuantFormat::Q4);
    config.tie_word_embeddings = false;
    let model = lively(&config, std::sync::Arc::new(Cpu::new(Some(2))), Dtype::F32, 7);
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("m");
    save(&dir, &model, &plain());
    load(&dir).unwrap();
    let file = dir.join("model.safetensors");
    let mut tensors = unpack(&file);
    let copy =
        tensors.iter_mut().find(|t| t.0 == "model.layers.3.shared_transf.self_attn.q_proj.weight.scale");
    copy.unwrap().3[0] ^= 1;
    pack(&file, &tensors);
    assert!(matches!(open(&dir).unwrap_err(), LoadError::TiedDiffer { .. }));
}

type Change = fn(&mut Tensors);
type Expect = fn(&LoadError) -> bool;

fn of<'a>(tensors: &'a mut Tensors, end: &str) -> &'a mut (String, String, Vec<usize>, Vec<u8>) {
    tensors.iter_mut().find(|t| t.0.ends_with(&format!("in_proj.weight{end}"))).unwrap()
}

#[test]
fn broken_folders_are_refused_by_the_rule_they_break() {
    let rules: [(&str, Change, Expect); 12] = [
        (
            "no scales",
            |t| t.retain(|t| !t.0.ends_with("layers.0.mamba.in_proj.weight.scale")),
            |e| matches!(e, LoadError::NoScales { .. }),
        ),
        (
            "no integers",
            |t| t.retain(|t| !t.0.ends_with("layers.0.mamba.in_proj.weight.q")),
            |e| matches!(e, LoadError::Missing { count: 1, .. }),
        ),
        (
            "shape of integers",
            |t| of(t, ".q").2 = vec![1, 32, 2048],
            |e| matches!(e, LoadError::Shape { .. }),
        ),
        ("flat integers", |t| of(t, ".q").2 = vec![32 * 2048], |e| matches!(e, LoadError::Shape { .. })),
        ("shape of scales", |t| of(t, ".scale").2 = vec![32, 16], |e| matches!(e, LoadError::Shape { .. })),
        (
            "type of scales",
            |t| of(t, ".scale").1 = "BF16".into(),
            |e| matches!(e, LoadError::Storage { expected: "F16", .. }),
        ),
        (
            "plain beside quantised",
            |t| {
                let name = of(t, ".q").0.trim_end_matches(".q").to_owned();
                t.push((name, "F32".into(), vec![512, 128], vec![0; 512 * 128 * 4]));
            },
            |e| matches!(e, LoadError::Twofold { .. }),
        ),
        (
            "plain in place of quantised",
            |t| {
                let name = of(t, ".q").0.trim_end_matches(".q").to_owned();
                t.retain(|t| !t.0.starts_with(&name));
                t.push((name, "F32".into(), vec![512, 128], vec![0; 512 * 128 * 4]));
            },
            |e| matches!(e, LoadError::Storage { found: "F32", expected: "q8", .. }),
        ),
        (
            "bytes that are no integers",
            |t| t.push(("x".into(), "U8".into(), vec![1], vec![1])),
            |e| matches!(e, LoadError::UnsupportedDtype { .. }),
        ),
        (
            "quantised norm",
            |t| {
                let norm = t.iter_mut().find(|t| t.0 == "model.final_layernorm.weight").unwrap();
                (norm.0, norm.1) = ("model.final_layernorm.weight.q".into(), "U8".into());
                norm.2 = vec![512];
                t.push(("model.final_layernorm.weight.scale".into(), "F16".into(), vec![1], vec![0; 2]));
            },
            |e| matches!(e, LoadError::Storage { found: "bytes", .. }),
        ),
        (
            "scales of nothing",
            |t| t.push(("y.scale".into(), "F16".into(), vec![1], vec![0; 2])),
            |e| matches!(e, LoadError::Extra { .. }),
        ),
        ("integers cut off", |t| of(t, ".q").3.truncate(1024), |e| matches!(e, LoadError::ByteCount { .. })),
    ];
    let model = model(QuantFormat::Q8);
    for (rule, change, expect) in rules {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("m");
        save(&dir, &model, &plain());
        let file = dir.join("model.safetensors");
        let mut tensors = unpack(&file);
        change(&mut tensors);
        pack(&file, &tensors);
        let error = open(&dir).expect_err(rule);
        assert!(expect(&error), "{rule}: {error:?}");
        assert!(!error.to_string().contains('\n'), "{rule}");
    }
}

#[test]
fn bytes_that_no_quantiser_writes_are_refused_when_they_are_read() {
    let values: [(&str, &str, Change); 5] = [
        ("byte 0", "in_proj.weight.q", |t| of(t, ".q").3[777] = 0),
        ("infinite scale", "in_proj.weight.scale", |t| of(t, ".scale").3[7] = 0x7c),
        ("NaN scale", "in_proj.weight.scale", |t| of(t, ".scale").3[7] = 0x7e),
        ("negative scale", "in_proj.weight.scale", |t| of(t, ".scale").3[5] = 0x80),
        ("negative infinite scale", "in_proj.weight.scale", |t| of(t, ".scale").3[5] = 0xfc),
    ];
    let model = model(QuantFormat::Q8);
    for (rule, tensor, change) in values {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("m");
        save(&dir, &model, &plain());
        let file = dir.join("model.safetensors");
        let mut tensors = unpack(&file);
        change(&mut tensors);
        pack(&file, &tensors);
        let Err(error) = load(&dir) else { panic!("{rule} was loaded") };
        assert!(
            matches!(&error, LoadError::BadQuant { tensor: t, .. } if t.ends_with(tensor)),
            "{rule}: {error}"
        );
        let options = LoadOptions { allow_nonfinite: true, ..LoadOptions::default() };
        let lenient = Checkpoint::open(&dir, &options).unwrap();
        Zamba::load(&lenient, std::sync::Arc::new(Cpu::new(Some(2))), None, Weights::Copy, &mut |_| {})
            .unwrap();
    }
}

#[test]
fn a_folder_without_the_config_of_quantisation_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("m");
    save(&dir, &model(QuantFormat::Q8), &plain());
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value.as_object_mut().unwrap().remove("quantization_config");
    std::fs::write(dir.join("config.json"), value.to_string()).unwrap();
    assert!(matches!(open(&dir).unwrap_err(), LoadError::UnsupportedDtype { .. }));
}

#[test]
fn every_field_of_the_config_is_honoured_or_refused() {
    for format in FORMATS {
        let config = ZambaConfig { dtype: FileDtype::Bf16, ..config(format) };
        assert_eq!(ZambaConfig::from_json(&config.to_json()).unwrap(), config);
    }
    let good = serde_json::json!({"quant_method": "zamba", "version": 2, "format": "q4", "group_size": 128});
    let with = |field: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(&wide_config().to_json()).unwrap();
        config["quantization_config"] = good.clone();
        if value.is_null() {
            config["quantization_config"].as_object_mut().unwrap().remove(field);
        } else {
            config["quantization_config"][field] = value;
        }
        ZambaConfig::from_json(&config.to_string())
    };
    assert_eq!(with("format", "q4".into()).unwrap().quantization, Some(QuantFormat::Q4));
    let refused = |field: &str, value: serde_json::Value, expect: fn(&ConfigError) -> bool| {
        let error = with(field, value.clone()).expect_err(field);
        assert!(expect(&error), "{field} {value}: {error:?}");
        assert!(error.to_string().contains("quantization_config"), "{error}");
    };
    refused("quant_method", "gptq".into(), |e| matches!(e, ConfigError::Quantised { .. }));
    refused("quant_method", serde_json::Value::Null, |e| matches!(e, ConfigError::Quantised { .. }));
    for (field, bad) in [("version", 1), ("group_size", 64)] {
        refused(field, bad.into(), |e| matches!(e, ConfigError::NotSupported { .. }));
        refused(field, "64".into(), |e| matches!(e, ConfigError::NotSupported { .. }));
        refused(field, serde_json::Value::Null, |e| matches!(e, ConfigError::Missing { .. }));
    }
    refused("format", "q5".into(), |e| matches!(e, ConfigError::NotSupported { .. }));
    refused("format", serde_json::Value::Null, |e| matches!(e, ConfigError::Missing { .. }));
    refused("bits", 4.into(), |e| matches!(e, ConfigError::Unknown { .. }));
}
