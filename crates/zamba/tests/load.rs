//! The ways of weights into memory: read or in place, in any form, and never with a value that is not finite.

mod common;
mod files;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{cpus, lively};
use files::{pack, unpack};
use zamba::checkpoint::{Checkpoint, FileDtype, LoadError, LoadOptions, SaveOptions, Weights, save_folder};
use zamba::{Session, Zamba, ZambaConfig};
use zamba_kernels::cpu::Cpu;
use zamba_kernels::reference::Reference;
use zamba_kernels::{Device, Dtype};

/// A folder of a lively model stored as `dtype`. Some of its tensors have more than a piece of bytes.
fn folder(dir: &Path, dtype: FileDtype) -> ZambaConfig {
    let config = ZambaConfig { vocab_size: 12_000, dtype, ..ZambaConfig::preset("tiny").unwrap() };
    let model = lively(&config, Arc::new(Reference::new()), Dtype::F32, 5);
    let options = SaveOptions { dtype, max_shard_bytes: 1 << 20, ..SaveOptions::default() };
    let mut id = 0;
    save_folder(dir, &config, &options, &mut |_, out| {
        model.read_param(id, out);
        id += 1;
        Ok(())
    })
    .unwrap();
    config
}

fn load(dir: &Path, dev: Arc<dyn Device>, how: Weights, format: Option<Dtype>) -> Result<Zamba, LoadError> {
    let checkpoint = Checkpoint::open(dir, &LoadOptions::default())?;
    let total = checkpoint.total_bytes();
    let mut last = 0;
    let model = Zamba::load(&checkpoint, dev, format, how, &mut |done| {
        assert!(done > last && done <= total);
        last = done;
    })?;
    assert_eq!(last, total, "progress ends with the last byte");
    Ok(model)
}

fn logits(model: &Zamba) -> Vec<u32> {
    let tokens: Vec<u32> = (0..20).map(|j| j * 577 % 12_000).collect();
    Session::new(model, 20).feed(&tokens).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn weights_in_place_give_the_same_bits() {
    for dtype in [FileDtype::F32, FileDtype::Bf16, FileDtype::F16] {
        let dir = tempfile::tempdir().unwrap();
        folder(&dir.path().join("m"), dtype);
        for dev in cpus(2) {
            let [copy, map] = [Weights::Copy, Weights::Map]
                .map(|how| load(&dir.path().join("m"), dev.clone(), how, None).unwrap());
            assert_eq!(logits(&copy), logits(&map), "{dtype:?} on {}", dev.name());
            let in_place = |model: &Zamba| model.params().iter().filter(|p| p.mat().buf.is_file()).count();
            assert_eq!(in_place(&copy), 0);
            // Of f16 nothing is used as it is; of the others the embedding at least.
            assert_eq!(in_place(&map) > 0, dtype != FileDtype::F16, "{dtype:?}");
        }
    }
}

#[test]
fn a_model_is_read_in_other_forms_than_the_files() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), FileDtype::F32);
    for how in [Weights::Copy, Weights::Map] {
        let wide = load(dir.path(), Arc::new(Cpu::new(Some(3))), how, None).unwrap();
        let narrow = load(dir.path(), Arc::new(Cpu::new(Some(3))), how, Some(Dtype::Bf16)).unwrap();
        let (mut a, mut b) = (vec![], vec![]);
        for (id, spec) in wide.specs().iter().enumerate() {
            wide.read_param(id, &mut a);
            narrow.read_param(id, &mut b);
            if !spec.keeps_f32() {
                a.iter_mut().for_each(|x| *x = zamba_kernels::round_bf16(*x));
            }
            assert_eq!(a, b, "{}", spec.name);
        }
    }
}

/// Replaces number `at` of a tensor in a file of f32.
fn damage(file: &Path, tensor: &str, at: usize, value: f32) {
    let mut tensors = unpack(file);
    let bytes = &mut tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap().3;
    bytes[4 * at..][..4].copy_from_slice(&value.to_le_bytes());
    pack(file, &tensors);
}

#[test]
fn values_that_are_not_finite_are_found_wherever_they_are() {
    let (embed, a_log) = ("model.embed_tokens.weight", "model.layers.0.mamba.A_log");
    for (tensor, at, value) in [
        (embed, 0, f32::NAN),
        (embed, 12_000 * 96 - 1, f32::INFINITY),
        (embed, 600_001, f32::NEG_INFINITY),
        (a_log, 7, f32::NAN),
        (a_log, 7, 1e4),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = ZambaConfig { vocab_size: 12_000, ..ZambaConfig::preset("tiny").unwrap() };
        let options = SaveOptions { dtype: FileDtype::F32, manifest: false, ..SaveOptions::default() };
        save_folder(dir.path(), &config, &options, &mut |spec, out| {
            out.resize(spec.len(), 0.5);
            Ok(())
        })
        .unwrap();
        let file = dir.path().join("model.safetensors");
        damage(&file, tensor, at, value);
        if tensor == embed {
            // The first of two faults is named.
            damage(&file, tensor, 12_000 * 96 - 1, f32::NAN);
        }
        for dev in [Arc::new(Reference::new()) as Arc<dyn Device>, Arc::new(Cpu::new(Some(2)))] {
            for how in [Weights::Copy, Weights::Map] {
                match load(dir.path(), dev.clone(), how, None) {
                    Err(LoadError::NotFinite { tensor: named, at: place, .. }) => {
                        assert_eq!((named.as_str(), place), (tensor, at), "{how:?}");
                    }
                    Err(LoadError::Implausible { value: found, .. }) => assert_eq!(found, value),
                    other => panic!("{how:?}: {:?}", other.err()),
                }
                let trusting = LoadOptions { allow_nonfinite: true, ..LoadOptions::default() };
                let checkpoint = Checkpoint::open(dir.path(), &trusting).unwrap();
                Zamba::load(&checkpoint, dev.clone(), None, how, &mut |_| {}).unwrap();
            }
        }
    }
}

#[test]
fn a_file_that_was_changed_after_it_was_opened_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = folder(dir.path(), FileDtype::Bf16);
    for how in [Weights::Copy, Weights::Map] {
        let checkpoint = Checkpoint::open(dir.path(), &LoadOptions::default()).unwrap();
        let shard = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        let shard = shard.into_iter().find(|p| p.extension().is_some_and(|e| e == "safetensors")).unwrap();
        let bytes = fs::read(&shard).unwrap();
        fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(bytes.len() as u64 - 10).unwrap();
        let loaded = Zamba::load(&checkpoint, Arc::new(Cpu::new(Some(2))), None, how, &mut |_| {});
        assert!(matches!(loaded, Err(LoadError::Changed { .. })), "{how:?} {}", config.vocab_size);
        fs::write(&shard, &bytes).unwrap();
    }
}
