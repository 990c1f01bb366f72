//! Checkpoint folders: `config.json` and safetensors weights, checked before anything is used.
//!
//! [`Checkpoint::open`] reads headers only. Each rule a file must keep has its own variant of
//! [`LoadError`], and everything a file claims is checked before it sizes an allocation, so that a
//! hostile file costs a second and little memory. Weights are read by position into private memory:
//! a file that is cut short while it is used gives an error, not a signal. Only [`Weights::Map`] gives
//! that up.
//!
//! [`mod@write`] and [`save`] are the way back: [`write::write_safetensors`] streams tensors of any size,
//! [`save_folder`] publishes a whole model folder or nothing.

mod convert;
mod error;
mod file;
mod index;
mod layout;
mod load;
pub mod manifest;
mod quantised;
pub mod safetensors;
pub mod save;
pub mod write;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub use self::convert::{narrow, widen};
pub use self::error::LoadError;
pub use self::load::Weights;
pub use self::save::{Content, SaveOptions, save_folder, save_quantised};
pub use self::write::WriteError;
pub use crate::config::FileDtype;

use self::file::{Folder, OpenFile};
use self::quantised::{Found, Scales};
use self::safetensors::Entry;
use crate::config::ZambaConfig;
use crate::spec::{TensorKind, TensorSpec, tensors};

/// File of the configuration.
const CONFIG: &str = "config.json";
/// File of the weights where they are not in shards.
const SINGLE: &str = "model.safetensors";
/// File that says which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// Largest `config.json` read. An honest one has a few kilobytes.
const CONFIG_LIMIT: u64 = 4 << 20;
/// Bytes read at a time where a tensor is compared or converted.
const CHUNK: usize = 1 << 20;
/// Above this, `exp(A_log)` leaves the range of f32; below its negative, it is zero.
const A_LOG_LIMIT: f32 = 80.0;
/// Softplus of the dt bias is a time step; trained ones are within (-12, 12).
const DT_BIAS_LIMIT: f32 = 1000.0;

/// How strictly a checkpoint is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Accept weights that are NaN, infinite or beyond any trained range. For inspecting a damaged file.
    pub allow_nonfinite: bool,
    /// Refuse checkpoints whose weights have more bytes than this.
    pub max_bytes: Option<u64>,
    /// What is compared with `MANIFEST.json`, if the folder has one, before anything is used.
    pub manifest: Verify,
}

/// What of a folder is compared with its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Sizes and hashes of all files.
    Everything,
    /// Sizes alone, which costs nothing and finds files that were cut short.
    Sizes,
    /// Nothing.
    Nothing,
}

impl Default for LoadOptions {
    /// Everything is checked; no limit on size.
    fn default() -> Self {
        LoadOptions { allow_nonfinite: false, max_bytes: None, manifest: Verify::Everything }
    }
}

/// An open checkpoint: the configuration is valid, every tensor located with the right shape, and no
/// weight read yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// The configuration of the folder. If `config.json` does not say how weights are stored, `dtype`
    /// is that of the embedding.
    pub config: ZambaConfig,
    specs: Vec<TensorSpec>,
    located: Vec<Located>,
    by_name: HashMap<String, usize>,
    files: Vec<OpenFile>,
    path: PathBuf,
    allow_nonfinite: bool,
}

/// Where the bytes of a tensor are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Located {
    name: String,
    file: usize,
    begin: u64,
    bytes: usize,
    dtype: FileDtype,
    /// If the tensor is quantised.
    scales: Option<Scales>,
}

impl Located {
    /// Bytes of the tensor, with its scales.
    fn total(&self) -> usize {
        self.bytes + self.scales.as_ref().map_or(0, |scales| scales.bytes)
    }
}

impl Checkpoint {
    /// Opens the folder `dir` and checks everything but the values of weights.
    ///
    /// Tensors that the model shares may be stored more than once; the copies are read and compared.
    ///
    /// # Errors
    /// The first rule broken; see [`LoadError`].
    pub fn open(dir: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        let folder = Folder::open(dir)?;
        if !folder.has(CONFIG) {
            return Err(LoadError::NoConfig { path: folder.path().to_owned() });
        }
        let config_file = folder.file(CONFIG)?;
        let (index_file, index) = find_weights(&folder)?;
        let shards = index.as_ref().map_or_else(|| vec![SINGLE.to_owned()], |index| index.shards.clone());
        let files = shards.iter().map(|name| folder.file(name)).collect::<Result<Vec<_>, _>>()?;
        if options.manifest != Verify::Nothing {
            let used: Vec<&OpenFile> = files.iter().chain(&index_file).chain([&config_file]).collect();
            manifest::verify(&folder, &used, options.manifest)?;
        }
        let (mut config, dtype_stated) = ZambaConfig::from_json_with_dtype(&config_file.text(CONFIG_LIMIT)?)?;
        let found = tensors_of(&files, index.as_ref())?;
        let found = quantised::join(found, config.quantization.is_some(), &files)?;
        let specs = tensors(&config);
        let located = locate(&config, &specs, &found, &files)?;
        if !dtype_stated && let Some(embedding) = located.first() {
            config.dtype = embedding.dtype;
        }
        let by_name = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        let path = folder.path().to_owned();
        let allow_nonfinite = options.allow_nonfinite;
        let checkpoint = Checkpoint { config, specs, located, by_name, files, path, allow_nonfinite };
        let needed = checkpoint.total_bytes();
        match options.max_bytes {
            Some(limit) if needed > limit => Err(LoadError::MemoryLimit { needed, limit }),
            _ => Ok(checkpoint),
        }
    }

    /// The tensors of the model, in the one order; see [`tensors`].
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The folder, with links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all weights as stored, shared tensors once.
    pub fn total_bytes(&self) -> u64 {
        self.located.iter().map(|tensor| tensor.total() as u64).sum()
    }

    /// How the file stores the tensor called `name` in [`specs`](Self::specs); bytes if it is quantised.
    ///
    /// # Panics
    /// If the model has no such tensor.
    pub fn dtype(&self, name: &str) -> FileDtype {
        self.find(name).unwrap_or_else(|error| panic!("{error}")).1.dtype
    }

    /// The tensors that are not stored as `config.dtype` says, for saving a copy that is stored alike.
    pub fn exceptions(&self) -> HashMap<String, FileDtype> {
        let stored = self.specs.iter().zip(&self.located);
        stored
            .filter(|(_, place)| place.scales.is_none() && place.dtype != self.config.dtype)
            .map(|(spec, place)| (spec.name.clone(), place.dtype))
            .collect()
    }

    /// Reads numbers `at .. at + out.len()` of a tensor, widened exactly from however they are stored.
    ///
    /// # Errors
    /// If the range or name is wrong, the tensor is quantised, the file was changed since it was opened, or,
    /// unless the options allow it, a value is not finite or beyond what the model's exponentials can take.
    pub fn read_f32(&self, name: &str, at: usize, out: &mut [f32]) -> Result<(), LoadError> {
        let (spec, place) = self.find(name)?;
        if place.scales.is_some() {
            return Err(LoadError::Whole { tensor: name.to_owned() });
        }
        let size = place.dtype.size();
        check_range(name, place.bytes / size, at, out.len())?;
        let mut bytes = vec![0; CHUNK.min(out.len() * size)];
        let mut begin = place.begin + (at * size) as u64;
        for part in out.chunks_mut(CHUNK / size) {
            let bytes = &mut bytes[..part.len() * size];
            self.files[place.file].read_at(begin, bytes)?;
            widen(place.dtype, bytes, part);
            begin += bytes.len() as u64;
        }
        if self.allow_nonfinite { Ok(()) } else { check_values(spec, at, out) }
    }

    /// Reads the numbers of a tensor, whatever it is stored as, into `out`; quantised ones are multiplied out.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32) and [`read_quants`](Self::read_quants).
    pub fn read_whole(&self, name: &str, out: &mut Vec<f32>) -> Result<(), LoadError> {
        let (spec, place) = self.find(name)?;
        out.resize(spec.len(), 0.0);
        let Some(format) = self.config.quantization.filter(|_| place.scales.is_some()) else {
            return self.read_f32(name, 0, out);
        };
        let mut bytes = vec![0; place.total()];
        self.read_quants(name, 0, &mut bytes)?;
        let (rows, cols) = spec.rows_cols();
        zamba_kernels::quant::widen(format.dtype(), rows, cols, &bytes, out);
        Ok(())
    }

    /// Reads bytes `at .. at + out.len()` of a quantised tensor, as they are to lie in memory: integers, then
    /// scales.
    ///
    /// # Errors
    /// If the range or name is wrong, the tensor is not quantised, the file was changed since it was opened,
    /// or, unless the options allow it, the bytes are none that a quantiser writes.
    pub fn read_quants(&self, name: &str, at: usize, out: &mut [u8]) -> Result<(), LoadError> {
        let (_, place) = self.find(name)?;
        let (Some(format), Some(scales)) = (self.config.quantization, &place.scales) else {
            let (found, expected) = (place.dtype.safetensors_name(), "quantised");
            return Err(LoadError::Storage { tensor: name.to_owned(), found, expected });
        };
        check_range(name, place.total(), at, out.len())?;
        let quants = out.len().min(place.bytes.saturating_sub(at));
        let (quants, rest) = out.split_at_mut(quants);
        self.files[place.file].read_at(place.begin + at as u64, quants)?;
        let from = (at + quants.len()).saturating_sub(place.bytes);
        self.files[scales.file].read_at(scales.begin + from as u64, rest)?;
        if self.allow_nonfinite {
            return Ok(());
        }
        quantised::check_quants(format, name, at, quants)?;
        quantised::check_scales(name, from, rest)
    }

    /// Reads bytes `at .. at + out.len()` of a tensor as they are stored, for copies that keep every
    /// bit. Nothing is checked but that they can be read.
    ///
    /// # Errors
    /// If the range or name is wrong, or the file was changed since it was opened.
    pub fn read_raw(&self, name: &str, at: usize, out: &mut [u8]) -> Result<(), LoadError> {
        let (_, place) = self.find(name)?;
        check_range(name, place.bytes, at, out.len())?;
        self.files[place.file].read_at(place.begin + at as u64, out)
    }

    fn find(&self, name: &str) -> Result<(&TensorSpec, &Located), LoadError> {
        match self.by_name.get(name) {
            Some(i) => Ok((&self.specs[*i], &self.located[*i])),
            None => Err(LoadError::NoSuchTensor { tensor: name.to_owned() }),
        }
    }
}

fn check_range(name: &str, len: usize, at: usize, count: usize) -> Result<(), LoadError> {
    let to = at.saturating_add(count);
    if to <= len {
        return Ok(());
    }
    Err(LoadError::Range { tensor: name.to_owned(), len, from: at, to })
}

/// Refuses values that no arithmetic of the model can take.
fn check_values(spec: &TensorSpec, at: usize, values: &[f32]) -> Result<(), LoadError> {
    let limit = match spec.kind {
        TensorKind::ALog => A_LOG_LIMIT,
        TensorKind::DtBias => DT_BIAS_LIMIT,
        _ => f32::MAX,
    };
    if values.iter().all(|x| x.abs() <= limit) {
        return Ok(());
    }
    let tensor = spec.name.clone();
    let count = values.iter().filter(|x| !x.is_finite()).count();
    if let Some(first) = values.iter().position(|x| !x.is_finite()) {
        return Err(LoadError::NotFinite { tensor, count, at: at + first });
    }
    let first = values.iter().position(|x| x.abs() > limit).unwrap_or(0);
    Err(LoadError::Implausible { tensor, value: values[first], at: at + first, limit })
}

/// The names of the weight files of a folder, from its index if it has one. They need not exist.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<String>, LoadError> {
    let (_, index) = find_weights(&Folder::open(dir)?)?;
    Ok(index.map_or_else(|| vec![SINGLE.to_owned()], |index| index.shards))
}

/// The single file if there is one, as transformers does, else the index.
fn find_weights(folder: &Folder) -> Result<(Option<OpenFile>, Option<index::Index>), LoadError> {
    if folder.has(SINGLE) {
        return Ok((None, None));
    }
    if folder.has(INDEX) {
        let file = folder.file(INDEX)?;
        let index = index::read(&file)?;
        return Ok((Some(file), Some(index)));
    }
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json", "zamba.bin"];
    let hint = if pickled.iter().any(|name| folder.has(name)) {
        "; pickle files can run code and are never read, convert them to safetensors with transformers"
    } else {
        ""
    };
    Err(LoadError::NoWeights { path: folder.path().to_owned(), hint })
}

/// Every tensor of all files, each in exactly one, and the index telling the truth about them.
fn tensors_of(
    files: &[OpenFile],
    index: Option<&index::Index>,
) -> Result<BTreeMap<String, (usize, Entry)>, LoadError> {
    let mut found: BTreeMap<String, (usize, Entry)> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        for entry in safetensors::read(file)?.entries {
            if let Some((other, _)) = found.get(&entry.name) {
                let (first, second) = (files[*other].name.clone(), file.name.clone());
                return Err(LoadError::TensorTwice { tensor: entry.name, first, second });
            }
            found.insert(entry.name.clone(), (i, entry));
        }
    }
    let Some(index) = index else { return Ok(found) };
    for (tensor, (i, _)) in &found {
        let stated = index.shard_of.get(tensor).map(String::as_str).unwrap_or("no shard");
        if stated != files[*i].name {
            let (index, found) = (stated.to_owned(), files[*i].name.clone());
            return Err(LoadError::IndexDisagrees { tensor: tensor.clone(), index, found });
        }
    }
    if let Some((tensor, shard)) = index.shard_of.iter().find(|(tensor, _)| !found.contains_key(*tensor)) {
        let (index, found) = (shard.clone(), "no shard".to_owned());
        return Err(LoadError::IndexDisagrees { tensor: tensor.clone(), index, found });
    }
    let bytes = found.values().map(|(_, entry)| entry.end - entry.begin).sum();
    match index.total_size {
        Some(stated) if stated != bytes => {
            Err(LoadError::TotalSize { file: INDEX.to_owned(), stated, found: bytes })
        }
        _ => Ok(found),
    }
}

/// Finds each tensor of the model among those of the files and checks shapes and shared copies.
fn locate(
    config: &ZambaConfig,
    specs: &[TensorSpec],
    found: &BTreeMap<String, Found>,
    files: &[OpenFile],
) -> Result<Vec<Located>, LoadError> {
    let places = layout::places(config, specs, found)?;
    let mut located = Vec::with_capacity(specs.len());
    for (spec, place) in specs.iter().zip(places) {
        let first = checked(config, spec, &place.name, found)?;
        for copy in &place.copies {
            let other = checked(config, spec, copy, found)?;
            if first.dtype != other.dtype || !same_bytes(files, &first, &other)? {
                return Err(LoadError::TiedDiffer { first: first.name, second: other.name });
            }
        }
        located.push(first);
    }
    Ok(located)
}

fn checked(
    config: &ZambaConfig,
    spec: &TensorSpec,
    name: &str,
    found: &BTreeMap<String, Found>,
) -> Result<Located, LoadError> {
    let Some(found) = found.get(name) else {
        return Err(LoadError::NoSuchTensor { tensor: name.to_owned() });
    };
    if let Some(format) = spec.quantised(config) {
        return quantised::checked(spec, format, name, found);
    }
    if found.scales.is_some() {
        let (found, expected) = ("bytes", config.dtype.safetensors_name());
        return Err(LoadError::Storage { tensor: name.to_owned(), found, expected });
    }
    let (file, entry) = (found.file, &found.entry);
    if !entry.shape.iter().copied().eq(spec.shape.iter().map(|n| *n as u64)) {
        let (found, expected) = (entry.shape.clone(), spec.shape.clone());
        return Err(LoadError::Shape { tensor: name.to_owned(), found, expected });
    }
    let bytes = (entry.end - entry.begin) as usize;
    let dtype = entry.dtype;
    Ok(Located { name: name.to_owned(), file, begin: entry.begin, bytes, dtype, scales: None })
}

/// Whether two tensors of the same type and shape hold the same bytes.
fn same_bytes(files: &[OpenFile], a: &Located, b: &Located) -> Result<bool, LoadError> {
    let same = same_range(files, (a.file, a.begin), (b.file, b.begin), a.bytes)?;
    match (&a.scales, &b.scales) {
        (Some(a), Some(b)) if same => same_range(files, (a.file, a.begin), (b.file, b.begin), a.bytes),
        _ => Ok(same),
    }
}

fn same_range(files: &[OpenFile], a: (usize, u64), b: (usize, u64), bytes: usize) -> Result<bool, LoadError> {
    let mut left = vec![0; CHUNK.min(bytes)];
    let mut right = left.clone();
    let mut at = 0;
    while at < bytes {
        let part = CHUNK.min(bytes - at);
        files[a.0].read_at(a.1 + at as u64, &mut left[..part])?;
        files[b.0].read_at(b.1 + at as u64, &mut right[..part])?;
        if left[..part] != right[..part] {
            return Ok(false);
        }
        at += part;
    }
    Ok(true)
}
