//! Checkpoints that are right: every layout and type is read, and what is written reads back bit for bit.

mod files;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use files::{pack, plain, save, small_config, unpack, values};
use zamba::ZambaConfig;
use zamba::checkpoint::write::{WriteEntry, write_safetensors};
use zamba::checkpoint::{
    Checkpoint, FileDtype, LoadError, LoadOptions, SaveOptions, WriteError, narrow, save_folder, widen,
};
use zamba::config::LayerKind;
use zamba::spec::{TensorKind, tensors};

fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(dir, &LoadOptions::default()).unwrap()
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let spec = checkpoint.specs().iter().find(|spec| spec.name == name).unwrap();
    let mut out = vec![0.0; spec.len()];
    checkpoint.read_f32(name, 0, &mut out).unwrap();
    out
}

fn assert_holds_values(checkpoint: &Checkpoint, config: &ZambaConfig) {
    for spec in checkpoint.specs() {
        assert_eq!(read(checkpoint, &spec.name), values(config, spec), "{}", spec.name);
    }
}

fn options(dtype: FileDtype) -> SaveOptions {
    SaveOptions { dtype, ..SaveOptions::default() }
}

#[test]
fn what_is_saved_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small_config();
    for (i, dtype) in [FileDtype::F32, FileDtype::F16].into_iter().enumerate() {
        for (tie, bias) in [(true, false), (false, true)] {
            config.tie_word_embeddings = tie;
            config.mamba_proj_bias = bias;
            let folder = dir.path().join(format!("{i}-{tie}"));
            save(&folder, &config, &options(dtype));
            let checkpoint = open(&folder);
            assert_eq!(checkpoint.config, ZambaConfig { dtype, ..config.clone() });
            assert_eq!(checkpoint.total_bytes(), config.bytes_of_weights(dtype));
            assert_eq!(checkpoint.dtype("model.embed_tokens.weight"), dtype);
            assert_holds_values(&checkpoint, &config);
        }
    }
}

/// Rounding happens once: what was read from a bf16 file and saved as bf16 is the same file.
#[test]
fn saving_what_was_read_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let a_log = tensors(&small_config()).into_iter().filter(|spec| spec.kind == TensorKind::ALog);
    let exceptions: HashMap<_, _> = a_log.map(|spec| (spec.name, FileDtype::F32)).collect();
    let options =
        SaveOptions { max_shard_bytes: 1000, exceptions: exceptions.clone(), ..options(FileDtype::Bf16) };
    save(&one, &small_config(), &options);
    let checkpoint = open(&one);
    assert_eq!(checkpoint.exceptions(), exceptions);
    save_folder(&two, &checkpoint.config, &options, &mut |spec, out| {
        out.resize(spec.len(), 0.0);
        checkpoint.read_f32(&spec.name, 0, out).map_err(io::Error::other)
    })
    .unwrap();
    let mut names: Vec<_> = fs::read_dir(&one).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert!(names.len() > 6, "several shards: {names:?}");
    for name in names {
        assert_eq!(fs::read(one.join(&name)).unwrap(), fs::read(two.join(&name)).unwrap(), "{name:?}");
    }
}

/// The files are read by the reader that others use, with the names, shapes and bytes intended.
#[test]
fn the_reference_reader_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &options(FileDtype::Bf16));
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let checkpoint = open(&folder);
    assert_eq!(file.len(), checkpoint.specs().len());
    for spec in checkpoint.specs() {
        let tensor = file.tensor(&spec.name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::BF16);
        assert_eq!(tensor.shape(), spec.shape);
        let mut raw = vec![0; tensor.data().len()];
        checkpoint.read_raw(&spec.name, 0, &mut raw).unwrap();
        assert_eq!(raw, tensor.data());
        let mut expected = Vec::new();
        narrow(FileDtype::Bf16, &values(&config, spec), &mut expected);
        assert_eq!(raw, expected);
    }
}

#[test]
fn shards_hold_no_more_than_asked_and_are_indexed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &SaveOptions { max_shard_bytes: 500, ..options(FileDtype::F32) });
    assert!(!folder.join("model.safetensors").exists());
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], config.bytes_of_weights(FileDtype::F32));
    let map = index["weight_map"].as_object().unwrap();
    let shards: std::collections::BTreeSet<&str> = map.values().map(|name| name.as_str().unwrap()).collect();
    for shard in &shards {
        let tensors = unpack(&folder.join(shard));
        let bytes: usize = tensors.iter().map(|tensor| tensor.3.len()).sum();
        assert!(bytes <= 500 || tensors.len() == 1, "{shard}: {bytes}");
    }
    assert!(shards.contains(format!("model-00001-of-{:05}.safetensors", shards.len()).as_str()));
    assert_holds_values(&open(&folder), &config);
}

/// Parts of a tensor, in any split, are the whole; ranges beyond it are refused.
#[test]
fn any_part_of_a_tensor_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &options(FileDtype::F16));
    let checkpoint = open(&folder);
    let spec = &checkpoint.specs()[0];
    let whole = values(&config, spec);
    for at in 0..spec.len() {
        for len in 0..=spec.len() - at {
            let mut part = vec![0.0; len];
            checkpoint.read_f32(&spec.name, at, &mut part).unwrap();
            assert_eq!(part, whole[at..at + len]);
        }
    }
    let beyond = checkpoint.read_f32(&spec.name, spec.len(), &mut [0.0]);
    assert!(matches!(beyond, Err(LoadError::Range { len: 24, from: 24, to: 25, .. })), "{beyond:?}");
    assert!(matches!(checkpoint.read_f32(&spec.name, usize::MAX, &mut [0.0]), Err(LoadError::Range { .. })));
    assert!(matches!(checkpoint.read_raw(&spec.name, 48, &mut [0]), Err(LoadError::Range { len: 48, .. })));
    assert!(matches!(checkpoint.read_f32("x", 0, &mut []), Err(LoadError::NoSuchTensor { .. })));
}

/// Today's name of a tensor of [`small_config`] in the layout of the model authors' fork.
fn name_in_fork(name: &str) -> String {
    let shared = name.strip_prefix("model.layers.1.shared_transf.");
    match (shared, name) {
        (Some("feed_forward.gate_proj.weight"), _) => "model.block.feed_forward.up_proj.weight".into(),
        (Some("feed_forward.up_proj.weight"), _) => "model.block.feed_forward.gate_proj.weight".into(),
        (Some(rest), _) => format!("model.block.{rest}"),
        (None, "model.layers.1.linear.weight") => "model.linear_layers.0.weight".into(),
        (None, "model.layers.3.linear.weight") => "model.linear_layers.1.weight".into(),
        (None, name) => name.replace("model.layers.", "model.mamba_layers.").replace("mamba_decoder.", ""),
    }
}

#[test]
fn the_layout_of_the_fork_is_read_with_gate_and_up_exchanged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &plain());
    let file = folder.join("model.safetensors");
    let mut tensors = unpack(&file);
    for tensor in &mut tensors {
        tensor.0 = name_in_fork(&tensor.0);
    }
    assert!(tensors.iter().any(|tensor| tensor.0 == "model.block.feed_forward.gate_proj.weight"));
    pack(&file, &tensors);
    assert_holds_values(&open(&folder), &config);
    // A file in both layouts at once is neither.
    tensors[5].0 = "model.layers.2.input_layernorm.weight".into();
    pack(&file, &tensors);
    assert!(Checkpoint::open(&folder, &LoadOptions::default()).is_err());
}

/// Copies of shared tensors are accepted when equal to the last bit and refused by name otherwise.
#[test]
fn copies_of_shared_tensors_must_be_equal() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &plain());
    let file = folder.join("model.safetensors");
    let mut tensors = unpack(&file);
    let copies: Vec<_> = tensors
        .iter()
        .filter_map(|(name, dtype, shape, bytes)| {
            let copy = match name.as_str() {
                "model.embed_tokens.weight" => "lm_head.weight".to_owned(),
                name => name.contains("shared_transf").then(|| name.replace("layers.1.", "layers.3."))?,
            };
            Some((copy, dtype.clone(), shape.clone(), bytes.clone()))
        })
        .collect();
    assert_eq!(copies.len(), 10);
    let plain_count = tensors.len();
    tensors.extend(copies);
    pack(&file, &tensors);
    assert_holds_values(&open(&folder), &config);
    for i in plain_count..tensors.len() {
        let mut differ = tensors.clone();
        differ[i].3[0] ^= 1;
        pack(&file, &differ);
        match Checkpoint::open(&folder, &LoadOptions::default()) {
            Err(LoadError::TiedDiffer { second, .. }) => assert_eq!(second, differ[i].0),
            other => panic!("{other:?}"),
        }
    }
    // The shared block only under a later hybrid layer: the place says nothing, the numbers do.
    let mut later = tensors;
    later.retain(|tensor| !tensor.0.contains("layers.1.shared_transf"));
    pack(&file, &later);
    assert_holds_values(&open(&folder), &config);
}

#[test]
fn an_unstated_type_is_that_of_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    save(&folder, &small_config(), &SaveOptions { manifest: false, ..options(FileDtype::Bf16) });
    let text = small_config().to_json().replace("\"torch_dtype\": \"float32\",", "");
    assert!(!text.contains("dtype"));
    fs::write(folder.join("config.json"), text).unwrap();
    assert_eq!(open(&folder).config.dtype, FileDtype::Bf16);
}

/// Tensors of one file may differ in type, and none is moved off its alignment.
#[test]
fn types_may_differ_from_tensor_to_tensor() {
    let entry =
        |name: &str, dtype, shape: &[usize]| WriteEntry { name: name.into(), dtype, shape: shape.into() };
    let entries = [
        entry("a", FileDtype::Bf16, &[3]),
        entry("b", FileDtype::F32, &[2, 2]),
        entry("c", FileDtype::F16, &[1]),
        entry("d", FileDtype::F32, &[]),
    ];
    let given: BTreeMap<usize, Vec<f32>> =
        [(0, vec![1.0, -2.5, 3.0]), (1, vec![0.1, 0.2, 0.3, 1e30]), (2, vec![0.5]), (3, vec![7.0])].into();
    let mut out = Vec::new();
    let written = write_safetensors(&mut out, &entries, &mut |i, sink| {
        given[&i].chunks(2).try_for_each(|part| sink.push(part))
    })
    .unwrap();
    assert_eq!(written, out.len() as u64);
    let file = safetensors::SafeTensors::deserialize(&out).unwrap();
    for (i, entry) in entries.iter().enumerate() {
        let tensor = file.tensor(&entry.name).unwrap();
        let offset = tensor.data().as_ptr() as usize - out.as_ptr() as usize;
        assert!(offset.is_multiple_of(entry.dtype.size()), "{}", entry.name);
        let mut found = vec![0.0; given[&i].len()];
        widen(entry.dtype, tensor.data(), &mut found);
        assert_eq!(found, given[&i]);
    }
}

#[test]
fn tensors_that_cannot_be_stored_are_refused() {
    let entry = |dtype| [WriteEntry { name: "a".into(), dtype, shape: vec![2] }];
    let write = |dtype, values: &[f32]| {
        write_safetensors(&mut Vec::new(), &entry(dtype), &mut |_, sink| sink.push(values))
    };
    assert!(write(FileDtype::F16, &[65504.0, -65504.0]).is_ok());
    assert!(matches!(write(FileDtype::F16, &[1.0, 65520.0]), Err(WriteError::NotFinite { at: 1, .. })));
    assert!(matches!(write(FileDtype::Bf16, &[f32::MAX, 1.0]), Err(WriteError::NotFinite { at: 0, .. })));
    assert!(matches!(write(FileDtype::F32, &[1.0, f32::NAN]), Err(WriteError::NotFinite { .. })));
    assert!(matches!(write(FileDtype::F32, &[1.0]), Err(WriteError::Count { given: 1, needed: 2, .. })));
    assert!(matches!(write(FileDtype::F32, &[1.0; 3]), Err(WriteError::Count { given: 3, needed: 2, .. })));
    let twice = [entry(FileDtype::F32), entry(FileDtype::F16)].concat();
    let error = write_safetensors(&mut Vec::new(), &twice, &mut |_, sink| sink.push(&[1.0; 2]));
    assert!(matches!(error, Err(WriteError::Entry { .. })));
}

/// A source that fails in the middle leaves what was there, and nothing beside it.
#[test]
fn a_failed_save_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &plain());
    let before = fs::read(folder.join("model.safetensors")).unwrap();
    let again = save_folder(&folder, &config, &plain(), &mut |_, _| Ok(()));
    assert!(matches!(again, Err(WriteError::Exists { .. })));
    let replace = SaveOptions { replace: true, ..plain() };
    let mut count = 0;
    let failed = save_folder(&folder, &config, &replace, &mut |spec, out| {
        count += 1;
        out.resize(spec.len(), 0.0);
        if count == 7 { Err(io::Error::other("no more")) } else { Ok(()) }
    });
    assert!(matches!(failed, Err(WriteError::Io { .. })), "{failed:?}");
    let diverged = save_folder(&folder, &config, &replace, &mut |spec, out| {
        out.resize(spec.len(), f32::NAN);
        Ok(())
    });
    assert!(matches!(diverged, Err(WriteError::NotFinite { .. })), "{diverged:?}");
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let zeros = save_folder(&folder, &config, &replace, &mut |spec, out| {
        out.resize(spec.len(), 0.0);
        Ok(())
    });
    zeros.unwrap();
    assert_eq!(read(&open(&folder), "model.final_layernorm.weight"), [0.0; 4]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn further_files_are_published_with_the_weights_and_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("deep").join("m");
    let file = |name: &str| SaveOptions { files: vec![(name.into(), b"{}".to_vec())], ..plain() };
    save(&folder, &small_config(), &file("tokenizer.json"));
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), b"{}");
    for name in ["../x", "/x", "a/b", "", ".", "..", ".hidden", "config.json"] {
        let other = dir.path().join("other");
        let saved = save_folder(&other, &small_config(), &file(name), &mut |spec, out| {
            out.resize(spec.len(), 0.0);
            Ok(())
        });
        assert!(matches!(saved, Err(WriteError::Io { .. })), "{name}: {saved:?}");
        assert!(!other.exists());
    }
}

/// transformers 5 shares the block of an untied model only if every layer's copy is in the file.
#[test]
fn an_untied_model_is_written_with_its_shared_block_under_every_hybrid_layer() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = ZambaConfig { tie_word_embeddings: false, ..small_config() };
    let mut asked = 0;
    save_folder(&folder, &config, &SaveOptions { max_shard_bytes: 300, ..plain() }, &mut |spec, out| {
        asked += 1;
        out.extend(values(&config, spec));
        Ok(())
    })
    .unwrap();
    assert_eq!(asked, tensors(&config).len());
    let index = fs::read_to_string(folder.join("model.safetensors.index.json")).unwrap();
    assert!(index.contains("model.layers.3.shared_transf.self_attn.q_proj.weight"));
    let checkpoint = open(&folder);
    assert_eq!(checkpoint.total_bytes(), config.bytes_of_weights(FileDtype::F32));
    assert_holds_values(&checkpoint, &config);
}

/// A model without hybrid layers has no shared block, in the file as in the list.
#[test]
fn a_stack_of_mamba_layers_alone_is_saved_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = ZambaConfig { layers_block_type: vec![LayerKind::Mamba; 4], ..small_config() };
    save(&folder, &config, &plain());
    let checkpoint = open(&folder);
    assert!(checkpoint.specs().iter().all(|spec| !spec.name.contains("shared")));
    assert_holds_values(&checkpoint, &config);
}
