//! Publishing a model folder: complete under its name, or not there at all.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use zamba_kernels::quant::{GROUP, ROWS, block_bytes, quant_bytes};

use super::layout::written_copies;
use super::manifest::{self, hex};
use super::quantised::{QUANTS, SCALES};
use super::write::{WriteEntry, failed, write_safetensors};
use super::{CONFIG, INDEX, SINGLE, WriteError};
use crate::config::{FileDtype, QuantFormat, ZambaConfig};
use crate::spec::{TensorSpec, tensors};

/// What to write beside the weights, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// Storage of every tensor but the exceptions; stated in `config.json` too.
    pub dtype: FileDtype,
    /// Tensors stored otherwise, by name. `transformers` 5 holds `A_log` of a 16-bit model in f32 and
    /// saves it so; see [`Checkpoint::exceptions`](super::Checkpoint::exceptions).
    pub exceptions: HashMap<String, FileDtype>,
    /// Most bytes of tensors in a file; a larger model is cut into shards with an index. A tensor larger
    /// than this gets a shard of its own.
    pub max_shard_bytes: u64,
    /// Further files by plain name, such as `tokenizer.json`.
    pub files: Vec<(String, Vec<u8>)>,
    /// Write `MANIFEST.json`, by which a damaged file is found when it is loaded.
    pub manifest: bool,
    /// Replace the folder if it exists, with everything in it; pass in `files` what is to be kept.
    /// Without this only an absent or empty folder is written.
    pub replace: bool,
}

impl Default for SaveOptions {
    /// bf16, shards of 5 GB as transformers makes them, a manifest, nothing replaced.
    fn default() -> Self {
        SaveOptions {
            dtype: FileDtype::Bf16,
            exceptions: HashMap::new(),
            max_shard_bytes: 5_000_000_000,
            files: Vec::new(),
            manifest: true,
            replace: false,
        }
    }
}

/// Writes the model folder `dir`: weights, `config.json`, `generation_config.json`, further files.
///
/// `source` is called once for each tensor of [`tensors`], and puts its numbers into the vector, which
/// it finds empty. Everything is written to a temporary folder beside `dir`, flushed to disk, and
/// renamed; a failure leaves `dir` as it was. No tensor is quantised, whatever `config` says.
///
/// # Errors
/// If the disk or `source` fails, the target exists, or a value is not finite in the type of the file.
pub fn save_folder(
    dir: &Path,
    config: &ZambaConfig,
    options: &SaveOptions,
    source: &mut dyn FnMut(&TensorSpec, &mut Vec<f32>) -> io::Result<()>,
) -> Result<(), WriteError> {
    let config = ZambaConfig { quantization: None, ..config.clone() };
    save_quantised(dir, &config, options, &mut |spec, content| source(spec, &mut content.numbers))
}

/// What a source gives for a tensor; it finds both empty.
#[derive(Debug, Default)]
pub struct Content {
    /// The numbers of a tensor that is not quantised.
    pub numbers: Vec<f32>,
    /// The bytes of a quantised one, as they lie in memory; see [`zamba_kernels::quant`].
    pub bytes: Vec<u8>,
}

/// As [`save_folder`], for a model some of whose tensors are quantised ([`TensorSpec::quantised`]).
///
/// # Errors
/// As [`save_folder`].
pub fn save_quantised(
    dir: &Path,
    config: &ZambaConfig,
    options: &SaveOptions,
    source: &mut dyn FnMut(&TensorSpec, &mut Content) -> io::Result<()>,
) -> Result<(), WriteError> {
    let occupied = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file();
    if occupied && !options.replace {
        return Err(WriteError::Exists { path: dir.to_owned() });
    }
    let staging = Staging::create(dir)?;
    let mut folder = NewFolder { path: staging.path.clone(), files: Vec::new() };
    folder.weights(config, options, source)?;
    folder.file(CONFIG, ZambaConfig { dtype: options.dtype, ..config.clone() }.to_json().as_bytes())?;
    folder.file("generation_config.json", generation_config(config).as_bytes())?;
    for (name, bytes) in &options.files {
        folder.file(name, bytes)?;
    }
    if options.manifest {
        let text = manifest::text(&folder.files);
        folder.file(manifest::FILE, text.as_bytes())?;
    }
    sync(&staging.path)?;
    staging.publish(dir)
}

/// The tokens that begin and end a text, where `transformers` looks for them.
pub fn generation_config(config: &ZambaConfig) -> String {
    let value = json!({
        "_from_model_config": true,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_json(),
        "pad_token_id": config.pad_token_id,
    });
    format!("{value:#}\n")
}

/// A temporary folder that is deleted unless it is published.
struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Makes a folder beside `dir`, on the same file system, so that it can be renamed.
    fn create(dir: &Path) -> Result<Self, WriteError> {
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(|source| failed(&parent.display().to_string(), source))?;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for attempt in 0.. {
            let path = parent.join(format!(".{name}.{}-{attempt}.tmp", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Staging { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(source) => return Err(failed(&path.display().to_string(), source)),
            }
        }
        unreachable!("the loop over attempts returns")
    }

    /// Puts the folder in the place of `dir`. What was there is moved aside first and deleted last, so
    /// that a complete folder exists at every moment.
    fn publish(mut self, dir: &Path) -> Result<(), WriteError> {
        let named = |path: &Path| path.display().to_string();
        let mut aside = self.path.clone().into_os_string();
        aside.push(".old");
        let aside = PathBuf::from(aside);
        let existed = dir.exists();
        if existed {
            fs::rename(dir, &aside).map_err(|source| failed(&named(dir), source))?;
        }
        if let Err(source) = fs::rename(&self.path, dir) {
            if existed {
                // Best effort: the error that matters is the first one.
                let _ = fs::rename(&aside, dir);
            }
            return Err(failed(&named(dir), source));
        }
        self.path = PathBuf::new();
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync(parent)?;
        }
        if existed {
            fs::remove_dir_all(&aside).map_err(|source| failed(&named(&aside), source))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // The failure that leads here is already being reported.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Flushes a folder's list of names to disk.
fn sync(folder: &Path) -> Result<(), WriteError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| failed(&folder.display().to_string(), source))
}

/// The folder while it is written, and name, size and hash of what is in it.
struct NewFolder {
    path: PathBuf,
    files: Vec<(String, u64, String)>,
}

impl NewFolder {
    fn create(&self, name: &str) -> Result<Hashing, WriteError> {
        let plain = Path::new(name).file_name().is_some_and(|base| base == name);
        if !plain || name.starts_with('.') {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name");
            return Err(failed(name, error));
        }
        let file = File::create_new(self.path.join(name)).map_err(|source| failed(name, source))?;
        Hashing::new(file).map_err(|source| failed(name, source))
    }

    fn close(&mut self, name: &str, file: Hashing) -> Result<(), WriteError> {
        let (size, hash) = file.finish().map_err(|source| failed(name, source))?;
        self.files.push((name.to_owned(), size, hash));
        Ok(())
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let mut file = self.create(name)?;
        file.write_all(bytes).map_err(|source| failed(name, source))?;
        self.close(name, file)
    }

    fn weights(
        &mut self,
        config: &ZambaConfig,
        options: &SaveOptions,
        source: &mut dyn FnMut(&TensorSpec, &mut Content) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let stored = stored(config, options);
        let bytes = stored.iter().map(Stored::bytes).sum::<u64>();
        let shards = shards(stored, options.max_shard_bytes);
        let mut map = Map::new();
        let mut values = Values { of: None, content: Content::default(), source };
        for (i, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => SINGLE.to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            self.shard(&name, shard, &mut values)?;
            map.extend(shard.iter().map(|tensor| (tensor.entry.name.clone(), json!(name))));
        }
        if shards.len() > 1 {
            let metadata = json!({ "total_parameters": config.parameters(), "total_size": bytes });
            let index = json!({ "metadata": metadata, "weight_map": map });
            self.file(INDEX, format!("{index:#}\n").as_bytes())?;
        }
        Ok(())
    }

    fn shard(&mut self, name: &str, tensors: &[Stored], values: &mut Values<'_>) -> Result<(), WriteError> {
        let entries: Vec<WriteEntry> = tensors.iter().map(|tensor| tensor.entry.clone()).collect();
        let mut file = self.create(name)?;
        write_safetensors(&mut file, &entries, &mut |i, sink| {
            let content = values.get(&tensors[i].spec)?;
            match tensors[i].part {
                Part::Numbers => sink.push(&content.numbers),
                Part::Quants(format) => sink.push_raw(halves(&tensors[i].spec, format, &content.bytes).0),
                Part::Scales(format) => sink.push_raw(halves(&tensors[i].spec, format, &content.bytes).1),
            }
        })?;
        self.close(name, file)
    }
}

/// A tensor of the model under one of the names it is written by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The tensor, whose numbers are written.
    pub spec: TensorSpec,
    /// The name in the file, and the storage.
    pub entry: WriteEntry,
    /// What of the tensor is written.
    part: Part,
}

/// What of a tensor is written under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Numbers,
    Quants(QuantFormat),
    Scales(QuantFormat),
}

impl Stored {
    fn bytes(&self) -> u64 {
        self.entry.shape.iter().product::<usize>() as u64 * self.entry.dtype.size() as u64
    }
}

/// The integers and the scales of a quantised tensor.
fn halves<'a>(spec: &TensorSpec, format: QuantFormat, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    bytes.split_at(quant_bytes(format.dtype(), spec.len()).min(bytes.len()))
}

/// The tensors of a file that hold the tensor `spec` under `name`.
fn entries(config: &ZambaConfig, spec: &TensorSpec, dtype: FileDtype, name: &str) -> Vec<(WriteEntry, Part)> {
    let Some(format) = spec.quantised(config) else {
        let entry = WriteEntry { name: name.to_owned(), ..WriteEntry::of(spec, dtype) };
        return vec![(entry, Part::Numbers)];
    };
    let (rows, cols) = spec.rows_cols();
    let entry = |end: &str, dtype, last| {
        let (name, shape) = (format!("{name}{end}"), vec![rows / ROWS, cols / GROUP, last]);
        WriteEntry { name, dtype, shape }
    };
    let quants = entry(QUANTS, FileDtype::U8, block_bytes(format.dtype()));
    let scales = entry(SCALES, FileDtype::F16, ROWS);
    vec![(quants, Part::Quants(format)), (scales, Part::Scales(format))]
}

/// Everything a folder stores, in order; copies stand behind what they copy.
///
/// `transformers` 5 shares the block of different layers only where the head is tied too, and draws
/// anew the blocks of an untied model that its file does not hold. So the file of an untied model
/// holds the shared block under each hybrid layer; every other tensor is stored once.
pub fn stored(config: &ZambaConfig, options: &SaveOptions) -> Vec<Stored> {
    let mut list = Vec::new();
    for spec in tensors(config) {
        let dtype = options.exceptions.get(&spec.name).copied().unwrap_or(options.dtype);
        let copies = written_copies(config, &spec.name);
        for name in [spec.name.clone()].into_iter().chain(copies) {
            let entries = entries(config, &spec, dtype, &name).into_iter();
            list.extend(entries.map(|(entry, part)| Stored { spec: spec.clone(), entry, part }));
        }
    }
    list
}

/// The content of the tensor asked for last, so that its scales or a copy do not ask the source again.
struct Values<'a> {
    of: Option<String>,
    content: Content,
    source: &'a mut dyn FnMut(&TensorSpec, &mut Content) -> io::Result<()>,
}

impl Values<'_> {
    fn get(&mut self, spec: &TensorSpec) -> Result<&Content, WriteError> {
        if self.of.as_ref() != Some(&spec.name) {
            self.content.numbers.clear();
            self.content.bytes.clear();
            (self.source)(spec, &mut self.content).map_err(|error| failed(&spec.name, error))?;
            self.of = Some(spec.name.clone());
        }
        Ok(&self.content)
    }
}

/// Cuts the list where the next tensor would not fit.
fn shards(tensors: Vec<Stored>, most: u64) -> Vec<Vec<Stored>> {
    let mut shards: Vec<Vec<Stored>> = vec![Vec::new()];
    let mut room = most;
    for tensor in tensors {
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some(last) if bytes <= room || last.is_empty() => last.push(tensor),
            _ => {
                room = most;
                shards.push(vec![tensor]);
            }
        }
        room = room.saturating_sub(bytes);
    }
    shards
}

/// Bytes that are handed to the writing thread at once.
const BLOCK: usize = 1 << 20;
/// Blocks that wait for it at most.
const WAITING: usize = 8;

/// What the writing thread leaves: the size of the file and its hash.
type Written = io::Result<(u64, String)>;

/// A thread that writes and hashes, so that whoever makes the numbers need not wait for either, and the
/// manifest costs no second reading.
struct Hashing {
    block: Vec<u8>,
    blocks: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<Written>>,
}

impl Hashing {
    fn new(file: File) -> io::Result<Self> {
        let (blocks, received) = sync_channel::<Vec<u8>>(WAITING);
        let work = move || {
            let (mut file, mut hasher, mut size) = (file, Sha256::new(), 0);
            for block in received {
                file.write_all(&block)?;
                hasher.update(&block);
                size += block.len() as u64;
            }
            file.sync_all()?;
            Ok((size, hex(&hasher.finalize())))
        };
        let thread = thread::Builder::new().name("save".into()).spawn(work)?;
        Ok(Hashing { block: Vec::with_capacity(BLOCK), blocks, thread: Some(thread) })
    }

    fn send(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        if self.blocks.send(block).is_ok() {
            return Ok(());
        }
        // It no longer listens, so it has failed.
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => Err(error),
            Some(Err(panic)) => resume_unwind(panic),
            _ => Err(io::Error::other("the file was given up")),
        }
    }

    /// Writes what is left, flushes it to disk and gives size and hash.
    fn finish(mut self) -> io::Result<(u64, String)> {
        self.send()?;
        let Hashing { blocks, thread, .. } = self;
        drop(blocks);
        match thread.map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(io::Error::other("the file was given up")),
        }
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..part]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(part)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
