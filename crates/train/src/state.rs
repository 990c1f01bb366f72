//! All state of a run as one value, saved and restored whole.
//!
//! Weights and moments are flat f32 buffers in the order of [`zamba::spec::tensors`]. There is no random
//! state: the initial weights and the order of the data are functions of the recipe. The phase, the
//! learning rate and the place in the data follow from the step.

use crate::ckpt::{self, CkptError, FileJob, Head, Manifest, Snapshot, VerifiedFile};
use crate::guard::Guard;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use zamba::checkpoint::safetensors;
use zamba::checkpoint::save::{SaveOptions, generation_config, stored};
use zamba::checkpoint::write::{WriteEntry, write_safetensors};
use zamba::config::{FileDtype, ZambaConfig};
use zamba::init::init_tensor;
use zamba::spec::{TensorSpec, tensors};
use zamba_data::fs::Fs;
use zamba_kernels::{Buf, Device, Dtype};

const MODEL: &str = "model.safetensors";
const WEIGHTS: &str = "state/weights.safetensors";
const OPTIMISER: &str = "state/optimiser.safetensors";
const RUN: &str = "state/run.json";
/// Values moved between file and device at a time.
const CHUNK: usize = 1 << 18;
/// Largest header of a file that this program wrote; far above what a hundred thousand tensors need.
const MAX_HEADER: u64 = 32 << 20;

/// Why a verified checkpoint cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error(transparent)]
    Ckpt(#[from] CkptError),
    /// It belongs to another model or was written by another version.
    #[error("{file} of the checkpoint does not fit this run: {problem}")]
    Misfit {
        /// File.
        file: &'static str,
        /// What does not fit.
        problem: String,
    },
}

fn misfit(file: &'static str, problem: impl Into<String>) -> StateError {
    StateError::Misfit { file, problem: problem.into() }
}

/// The state of a run.
pub struct RunState {
    /// Optimiser steps done, skipped ones included.
    pub step: u64,
    /// Updates made: steps without the skipped ones. AdamW's bias correction counts these.
    pub updates: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Memory of the guards.
    pub guard: Guard,
    /// Master weights.
    pub weights: Buf,
    /// First moments.
    pub m: Buf,
    /// Second moments.
    pub v: Buf,
}

/// What of a [`RunState`] is not a buffer, and the recipe's part that it depends on.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scalars {
    step: u64,
    updates: u64,
    tokens: u64,
    guard: Guard,
    trajectory: Value,
}

/// What goes into a checkpoint beside the state.
pub struct Context<'a> {
    /// The model; its `dtype` is the storage of the published weights.
    pub config: &'a ZambaConfig,
    /// The part of the recipe that the weights depend on.
    pub trajectory: &'a Value,
    /// Tokenizer files and the recipe, by name.
    pub files: &'a [(String, Vec<u8>)],
    /// Where the run stands.
    pub head: Head,
}

impl RunState {
    /// The state before the first step: initial weights of `seed`, zero moments.
    pub fn new(config: &ZambaConfig, dev: &dyn Device, seed: u64) -> RunState {
        let specs = tensors(config);
        let len = specs.iter().map(TensorSpec::len).sum();
        let mut weights = dev.alloc(Dtype::F32, len);
        let (mut at, mut values) = (0, Vec::new());
        for spec in &specs {
            init_tensor(config, spec, seed, &mut values);
            dev.upload(&mut weights, at, &values);
            at += spec.len();
        }
        let (m, v) = (dev.alloc(Dtype::F32, len), dev.alloc(Dtype::F32, len));
        RunState { step: 0, updates: 0, tokens: 0, guard: Guard::default(), weights, m, v }
    }

    /// Copies the state to host memory as a checkpoint ready to be written by another thread.
    pub fn snapshot(&self, dev: &dyn Device, context: Context) -> Snapshot {
        let scalars = Scalars {
            step: self.step,
            updates: self.updates,
            tokens: self.tokens,
            guard: self.guard.clone(),
            trajectory: context.trajectory.clone(),
        };
        let specs = tensors(context.config);
        let host = |buf: &Buf| {
            let mut values = vec![0.0; buf.len()];
            dev.download(&mut values, buf, 0);
            Arc::new(values)
        };
        let weights = host(&self.weights);
        let published = context.config.dtype;
        let model = model_parts(context.config, &specs);
        // The model's file doubles as master weights where it holds them once and exactly.
        let is_master = published == FileDtype::F32 && model.len() == specs.len();
        let mut files = vec![
            FileJob::bytes("config.json", context.config.to_json().into_bytes()),
            FileJob::bytes("generation_config.json", generation_config(context.config).into_bytes()),
            tensor_file(MODEL, model, vec![weights.clone()]),
            tensor_file(OPTIMISER, parts(&specs, &["m.", "v."]), vec![host(&self.m), host(&self.v)]),
            // The types are plain, with string keys, and always serialise.
            FileJob::bytes(RUN, serde_json::to_vec_pretty(&scalars).expect("plain structs serialise")),
        ];
        if !is_master {
            files.push(tensor_file(WEIGHTS, parts(&specs, &[""]), vec![weights]));
        }
        files.extend(context.files.iter().map(|(name, bytes)| FileJob::bytes(name.clone(), bytes.clone())));
        Snapshot { head: context.head, files }
    }

    /// Restores the state from a verified checkpoint, and gives back the part of the recipe that it was
    /// made with. Files are hashed again while they are read.
    ///
    /// # Errors
    /// If a file cannot be read, was damaged since, or is of another model.
    pub fn load(
        fs: &dyn Fs,
        dir: &Path,
        manifest: &Manifest,
        config: &ZambaConfig,
        dev: &dyn Device,
    ) -> Result<(RunState, Value), StateError> {
        let bytes = ckpt::read_file(fs, dir, manifest, RUN)?;
        let scalars: Scalars = serde_json::from_slice(&bytes).map_err(|e| misfit(RUN, e.to_string()))?;
        if scalars.step != manifest.head.step {
            return Err(misfit(RUN, format!("it is of step {}", scalars.step)));
        }
        let specs = tensors(config);
        let len = specs.iter().map(TensorSpec::len).sum();
        let mut buffers = [(); 3].map(|()| dev.alloc(Dtype::F32, len));
        let [weights, m, v] = &mut buffers;
        let master = if manifest.files.contains_key(WEIGHTS) { WEIGHTS } else { MODEL };
        read_tensors(fs, dir, manifest, master, &specs, &mut [("", weights)], dev)?;
        read_tensors(fs, dir, manifest, OPTIMISER, &specs, &mut [("m.", m), ("v.", v)], dev)?;
        let [weights, m, v] = buffers;
        let Scalars { step, updates, tokens, guard, trajectory } = scalars;
        Ok((RunState { step, updates, tokens, guard, weights, m, v }, trajectory))
    }
}

/// A tensor of a file: what is written, and where its values lie in which buffer.
struct Part {
    entry: WriteEntry,
    buffer: usize,
    at: usize,
    len: usize,
}

/// One flat f32 buffer per prefix, each cut into the tensors of `specs`.
fn parts(specs: &[TensorSpec], prefixes: &[&str]) -> Vec<Part> {
    let mut all = vec![];
    for (buffer, prefix) in prefixes.iter().enumerate() {
        for (spec, at) in specs.iter().zip(starts(specs)) {
            let entry = WriteEntry::of(spec, FileDtype::F32);
            let entry = WriteEntry { name: format!("{prefix}{}", entry.name), ..entry };
            all.push(Part { entry, buffer, at, len: spec.len() });
        }
    }
    all
}

/// The published model: the tensors of `specs`, and the copies that other programs need of an untied one.
fn model_parts(config: &ZambaConfig, specs: &[TensorSpec]) -> Vec<Part> {
    let places: HashMap<&str, usize> = specs.iter().map(|s| s.name.as_str()).zip(starts(specs)).collect();
    let options = SaveOptions { dtype: config.dtype, ..SaveOptions::default() };
    let part = |s: zamba::checkpoint::save::Stored| {
        let at = places[s.spec.name.as_str()];
        Part { entry: s.entry, buffer: 0, at, len: s.spec.len() }
    };
    stored(config, &options).into_iter().map(part).collect()
}

/// First element of each tensor in a flat buffer.
fn starts(specs: &[TensorSpec]) -> impl Iterator<Item = usize> {
    specs.iter().scan(0, |next, spec| {
        let at = *next;
        *next += spec.len();
        Some(at)
    })
}

/// A safetensors file of parts of flat buffers.
fn tensor_file(name: &str, parts: Vec<Part>, buffers: Vec<Arc<Vec<f32>>>) -> FileJob {
    let bytes: usize = parts.iter().map(|p| p.len * p.entry.dtype.size() + p.entry.name.len() + 128).sum();
    let write = move |out: &mut dyn Write| -> io::Result<()> {
        let entries: Vec<WriteEntry> = parts.iter().map(|p| p.entry.clone()).collect();
        let written = write_safetensors(out, &entries, &mut |i, sink| {
            let p = &parts[i];
            sink.push(&buffers[p.buffer][p.at..][..p.len])
        });
        written.map(drop).map_err(|e| match e {
            zamba::checkpoint::WriteError::Io { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })
    };
    FileJob { name: name.into(), bytes: bytes as u64, write: Box::new(write) }
}

/// Reads an f32 safetensors file into flat buffers; the reverse of [`tensor_file`].
fn read_tensors(
    fs: &dyn Fs,
    dir: &Path,
    manifest: &Manifest,
    name: &'static str,
    specs: &[TensorSpec],
    buffers: &mut [(&str, &mut Buf)],
    dev: &dyn Device,
) -> Result<(), StateError> {
    let sum = manifest.files.get(name).ok_or_else(|| misfit(name, "it is not there"))?;
    let mut file = VerifiedFile::open(fs, dir, name, sum)?;
    let header = read_header(&mut file, name, sum.bytes)?;
    let mut places = HashMap::new();
    for (b, (prefix, _)) in buffers.iter().enumerate() {
        let mut at = 0;
        for spec in specs {
            places.insert(format!("{prefix}{}", spec.name), (b, at, spec));
            at += spec.len();
        }
    }
    if header.entries.len() != places.len() {
        let problem = format!("{} tensors instead of {}", header.entries.len(), places.len());
        return Err(misfit(name, problem));
    }
    let mut bytes = vec![0; CHUNK * 4];
    for entry in &header.entries {
        let fits = |(_, _, spec): &&(usize, usize, &TensorSpec)| {
            entry.dtype == FileDtype::F32
                && entry.shape.iter().copied().eq(spec.shape.iter().map(|n| *n as u64))
        };
        let Some(&(b, mut at, spec)) = places.get(&entry.name).filter(fits) else {
            return Err(misfit(name, format!("tensor `{}` has another name, type or shape", entry.name)));
        };
        let mut left = spec.len();
        while left > 0 {
            let n = left.min(CHUNK);
            file.read_exact(&mut bytes[..n * 4]).map_err(|e| misfit(name, e.to_string()))?;
            let values: Vec<f32> =
                bytes[..n * 4].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            dev.upload(buffers[b].1, at, &values);
            at += n;
            left -= n;
        }
    }
    Ok(file.finish()?)
}

fn read_header(
    file: &mut VerifiedFile,
    name: &'static str,
    size: u64,
) -> Result<safetensors::Header, StateError> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| misfit(name, e.to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER.min(size) {
        return Err(misfit(name, format!("a header of {length} bytes")));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(|e| misfit(name, e.to_string()))?;
    safetensors::parse(name, &text, size).map_err(|e| misfit(name, e.to_string()))
}
