//! Checkpoint folders to read, and safetensors files to break.
#![allow(dead_code)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use zamba::ZambaConfig;
use zamba::checkpoint::{FileDtype, SaveOptions, save_folder};
use zamba::config::LayerKind::{Hybrid, Mamba};
use zamba::spec::{TensorSpec, tensors};

/// The smallest model with two hybrid layers.
pub(crate) fn small_config() -> ZambaConfig {
    ZambaConfig {
        vocab_size: 6,
        hidden_size: 4,
        attention_hidden_size: 8,
        intermediate_size: 6,
        num_hidden_layers: 4,
        num_attention_heads: 2,
        attention_head_dim: 4,
        num_key_value_heads: 2,
        mamba_d_state: 2,
        mamba_d_conv: 3,
        mamba_dt_rank: 1,
        layers_block_type: vec![Mamba, Hybrid, Mamba, Hybrid],
        ..ZambaConfig::preset("tiny").unwrap()
    }
}

/// Values that name their place: no two of a model are equal, and all are exact in f16 and f32 and
/// within every range.
pub(crate) fn values(config: &ZambaConfig, spec: &TensorSpec) -> Vec<f32> {
    let before =
        tensors(config).iter().take_while(|other| *other != spec).map(TensorSpec::len).sum::<usize>();
    (before..before + spec.len()).map(|i| (i as f32 - 700.0) / 1024.0).collect()
}

/// A folder of [`values`].
pub(crate) fn save(dir: &Path, config: &ZambaConfig, options: &SaveOptions) {
    save_folder(dir, config, options, &mut |spec, out| {
        out.extend(values(config, spec));
        Ok(())
    })
    .unwrap();
}

/// f32, one file, no manifest: the plainest folder, for changing.
pub(crate) fn plain() -> SaveOptions {
    SaveOptions { dtype: FileDtype::F32, manifest: false, ..SaveOptions::default() }
}

/// A safetensors file of this header and data.
pub(crate) fn raw(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The tensors of a file: name, and its type, shape and bytes.
pub(crate) type Tensors = Vec<(String, String, Vec<usize>, Vec<u8>)>;

/// Reads a file with nothing but a JSON parser.
pub(crate) fn unpack(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let data = &bytes[8 + header_len..];
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, entry)| {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let shape = entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize);
            let dtype = entry["dtype"].as_str().unwrap().to_owned();
            (name.clone(), dtype, shape.collect(), data[at(0)..at(1)].to_vec())
        })
        .collect()
}

/// Writes a file with nothing but a JSON printer.
pub(crate) fn pack(path: &Path, tensors: &Tensors) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    fs::write(path, raw(Value::Object(header).to_string().as_bytes(), &data)).unwrap();
}
