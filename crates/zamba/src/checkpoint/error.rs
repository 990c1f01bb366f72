//! Everything that can be wrong with a checkpoint.

use std::path::PathBuf;

use thiserror::Error;

use crate::config::ConfigError;

/// Why a checkpoint was refused. `file` is the name within the folder.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The operating system refused.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path is no folder.
    #[error("{path} is not a folder; give the folder that holds config.json")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// There is no `config.json`.
    #[error("{path} holds no config.json; it is not a model folder")]
    NoConfig {
        /// The folder.
        path: PathBuf,
    },
    /// There are no safetensors weights.
    #[error("{path} holds neither model.safetensors nor model.safetensors.index.json{hint}")]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// More if there are weights in a format that is never read, or empty.
        hint: &'static str,
    },
    /// `config.json` was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A JSON file is larger than such a file can honestly be.
    #[error("{file} has {size} bytes, more than {limit}; it is not a file of a model")]
    FileTooLarge {
        /// The file.
        file: String,
        /// Its size in bytes.
        size: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// A folder, pipe, device or socket stands where a file is expected.
    #[error("{file} is not a regular file")]
    NotAFile {
        /// The file.
        file: String,
    },
    /// A link leads out of the model's folder.
    #[error("{file} leads to {target}, outside the model's folder; put the file itself into the folder")]
    Outside {
        /// The file.
        file: String,
        /// Where it leads.
        target: PathBuf,
    },
    /// The weights would take more memory than allowed.
    #[error("the weights take {needed} bytes and {limit} are allowed")]
    MemoryLimit {
        /// Bytes of all weights as stored.
        needed: u64,
        /// The limit given.
        limit: u64,
    },

    /// Too short to be a safetensors file.
    #[error("{file} has {size} bytes, too few for a safetensors file; it is cut off or something else")]
    TooShort {
        /// The file.
        file: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The stated header does not fit the file or the limit.
    #[error("{file} states a header of {stated} bytes where at most {limit} are possible")]
    HeaderLength {
        /// The file.
        file: String,
        /// Length stated.
        stated: u64,
        /// Largest length accepted for this file.
        limit: u64,
    },
    /// The header does not start with `{`.
    #[error("{file}: the header does not start with an opening brace; it is not a safetensors file")]
    HeaderStart {
        /// The file.
        file: String,
    },
    /// The header is padded with something other than spaces.
    #[error("{file}: the header is followed by something other than spaces")]
    HeaderPadding {
        /// The file.
        file: String,
    },
    /// The file is not UTF-8 text where it should be.
    #[error("{file} is not UTF-8 text")]
    Encoding {
        /// The file.
        file: String,
    },
    /// Containers nest deeper than the format has levels.
    #[error("{file}: nested deeper than {limit} levels")]
    TooDeep {
        /// The file.
        file: String,
        /// Levels the format has.
        limit: usize,
    },
    /// More values than such a file can honestly have.
    #[error("{file}: more than {limit} values")]
    TooManyValues {
        /// The file.
        file: String,
        /// The limit.
        limit: usize,
    },
    /// A key occurs twice, so two readers could see two models.
    #[error("{file}: the key `{key}` occurs twice")]
    DuplicateKey {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// A field that the format does not have.
    #[error("{file}: unknown field `{field}` in `{place}`")]
    UnknownField {
        /// The file.
        file: String,
        /// Tensor or object that holds it.
        place: String,
        /// The field.
        field: String,
    },
    /// A field of a tensor is absent.
    #[error("{file}: tensor `{tensor}` has no `{field}`")]
    MissingField {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The field.
        field: &'static str,
    },
    /// A number is not a plain whole number that fits 64 bits.
    #[error("{file}: `{place}` has a number that is not a whole number from 0 to 2^64 - 1")]
    BadNumber {
        /// The file.
        file: String,
        /// Tensor or field that holds it.
        place: String,
    },
    /// JSON that is broken or of the wrong shape.
    #[error("{file}: {message}")]
    Malformed {
        /// The file.
        file: String,
        /// The parser's words.
        message: String,
    },
    /// More tensors than any model has.
    #[error("{file}: more than {limit} tensors")]
    TooManyTensors {
        /// The file.
        file: String,
        /// The limit.
        limit: usize,
    },
    /// A tensor name is empty, overlong or holds control characters.
    #[error("{file}: the tensor name {name} is empty, longer than 512 bytes or holds control characters")]
    TensorName {
        /// The file.
        file: String,
        /// The name, escaped and shortened.
        name: String,
    },
    /// More dimensions than any tensor has.
    #[error("{file}: tensor `{tensor}` has {rank} dimensions, more than {limit}")]
    Rank {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Dimensions, counted no further than just beyond the limit.
        rank: usize,
        /// The limit.
        limit: usize,
    },
    /// A dimension is zero.
    #[error("{file}: tensor `{tensor}` has a dimension of zero")]
    ZeroDimension {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// The size of a tensor does not fit 64 bits or this machine's addresses.
    #[error("{file}: tensor `{tensor}` is larger than this machine can address")]
    SizeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A storage type nobody knows.
    #[error("{file}: tensor `{tensor}` has the unknown type {dtype}")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type, escaped and shortened.
        dtype: String,
    },
    /// A storage type of the format that weights here never have.
    #[error("{file}: tensor `{tensor}` has type {dtype}; weights are read from F32, F16 and BF16")]
    UnsupportedDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type.
        dtype: String,
    },
    /// The bytes of a tensor are not as many as its shape and type need.
    #[error("{file}: tensor `{tensor}` has {found} bytes and its shape needs {needed}")]
    ByteCount {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Bytes between its offsets.
        found: u64,
        /// Bytes of its shape and type.
        needed: u64,
    },
    /// Two tensors share bytes, or offsets run backwards.
    #[error("{file}: tensor `{tensor}` overlaps the tensor before it")]
    Overlap {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// Bytes that belong to no tensor lie before this one.
    #[error("{file}: {bytes} unused bytes before tensor `{tensor}`")]
    Hole {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// How many bytes.
        bytes: u64,
    },
    /// The tensors do not end where the file ends.
    #[error(
        "{file}: the tensors end at byte {end} and the file at byte {size}; it is cut off or has something appended"
    )]
    FileEnd {
        /// The file.
        file: String,
        /// Where the last tensor ends.
        end: u64,
        /// The size of the file.
        size: u64,
    },

    /// A shard name is more than the plain name of a safetensors file.
    #[error("{file}: {shard} is not the plain name of a .safetensors file")]
    ShardName {
        /// The index.
        file: String,
        /// The name, escaped and shortened.
        shard: String,
    },
    /// More shards than any model has.
    #[error("{file}: more than {limit} shards")]
    TooManyShards {
        /// The index.
        file: String,
        /// The limit.
        limit: usize,
    },
    /// Two shards hold the same tensor.
    #[error("tensor `{tensor}` is in both {first} and {second}")]
    TensorTwice {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// Index and shards disagree about where a tensor is.
    #[error("tensor `{tensor}`: the index says {index} and it is in {found}")]
    IndexDisagrees {
        /// The tensor.
        tensor: String,
        /// What the index says.
        index: String,
        /// Where it is.
        found: String,
    },
    /// The index states another total of bytes.
    #[error("{file}: total_size is {stated} and the tensors have {found} bytes")]
    TotalSize {
        /// The index.
        file: String,
        /// Bytes stated.
        stated: u64,
        /// Bytes of all tensors.
        found: u64,
    },
    /// A tensor that the configuration needs is absent.
    #[error("tensor `{tensor}` is missing ({count} in all); weights and config.json do not belong together")]
    Missing {
        /// The first one.
        tensor: String,
        /// How many.
        count: usize,
    },
    /// A tensor that the configuration does not know.
    #[error(
        "tensor `{tensor}` does not belong to this model ({count} such in all); weights and config.json do not belong together"
    )]
    Extra {
        /// The first one.
        tensor: String,
        /// How many.
        count: usize,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}` has shape {found:?} and config.json says {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<u64>,
        /// Shape of the configuration.
        expected: Vec<usize>,
    },
    /// A tensor is stored in another way than the configuration says.
    #[error("tensor `{tensor}` is stored as {found} and config.json says {expected}")]
    Storage {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        found: &'static str,
        /// What the configuration says.
        expected: &'static str,
    },
    /// The integers of a quantised tensor have no scales.
    #[error("tensor `{tensor}` has `.q` and no `.scale`; quantise the original checkpoint again")]
    NoScales {
        /// The tensor.
        tensor: String,
    },
    /// A tensor is there both quantised and not.
    #[error("tensors `{first}` and `{second}` are one tensor of the model, stored in two ways")]
    Twofold {
        /// The plain one.
        first: String,
        /// The quantised one.
        second: String,
    },
    /// A quantised tensor holds what no quantiser writes.
    #[error("tensor `{tensor}` holds {what} at {at}; the checkpoint is damaged")]
    BadQuant {
        /// The tensor in the file.
        tensor: String,
        /// What it holds.
        what: &'static str,
        /// Index of the first.
        at: usize,
    },
    /// Numbers of a quantised tensor were asked for one by one.
    #[error("tensor `{tensor}` is quantised and can only be read as a whole")]
    Whole {
        /// The tensor.
        tensor: String,
    },
    /// Two copies of one shared tensor hold different numbers.
    #[error("tensors `{first}` and `{second}` must be equal, because the model shares them, and are not")]
    TiedDiffer {
        /// The copy that would be used.
        first: String,
        /// The other copy.
        second: String,
    },

    /// A weight is NaN or infinite.
    #[error(
        "tensor `{tensor}` holds {count} values that are not finite, the first at {at}; the checkpoint is damaged"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// How many, in the part read.
        count: usize,
        /// Index of the first.
        at: usize,
    },
    /// A finite weight whose exponential or step size would not be.
    #[error(
        "tensor `{tensor}` holds {value} at {at}, beyond {limit}: no trained model does, the checkpoint is damaged"
    )]
    Implausible {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
        /// Its index.
        at: usize,
        /// Largest magnitude accepted.
        limit: f32,
    },
    /// The file was changed, cut or replaced after it was opened.
    #[error("{file} was changed while it was being read; load it again when nothing writes to it")]
    Changed {
        /// The file.
        file: String,
    },
    /// A tensor was asked for that the model does not have.
    #[error("the model has no tensor `{tensor}`")]
    NoSuchTensor {
        /// The tensor.
        tensor: String,
    },
    /// More of a tensor was asked for than there is.
    #[error("tensor `{tensor}` has {len} elements; {from}..{to} was asked for")]
    Range {
        /// The tensor.
        tensor: String,
        /// Its length in the unit asked for (numbers or bytes).
        len: usize,
        /// Start of the range.
        from: usize,
        /// End of the range.
        to: usize,
    },
    /// A file differs from what the manifest says.
    #[error(
        "{file} differs from MANIFEST.json in {what}; get the file again, or delete MANIFEST.json if you changed it yourself"
    )]
    ManifestMismatch {
        /// The file.
        file: String,
        /// `size` or `sha256`.
        what: &'static str,
    },
    /// A file that is used is not in the manifest.
    #[error("{file} is not listed in MANIFEST.json; delete MANIFEST.json if you added the file yourself")]
    ManifestMissing {
        /// The file.
        file: String,
    },
}
