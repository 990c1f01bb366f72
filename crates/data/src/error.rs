//! What can go wrong between text and samples.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// All errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A shard has no manifest, so its files cannot be verified.
    #[error("{}: no manifest beside the shard; make it with `zamba data tokenize`, or adopt a shard made elsewhere", path.display())]
    NoManifest {
        /// Where the manifest was looked for.
        path: PathBuf,
    },
    /// A manifest that is not what the writer makes.
    #[error("{}: not a shard manifest: {what}; tokenise the source again", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A shard file is not as long as its manifest says.
    #[error("{}: {found} bytes instead of {expected}; the file is damaged, copy it again", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A shard file does not have the hash that its manifest says.
    #[error("{}: sha-256 {found} instead of {expected}; the file is damaged, copy it again", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Hash in the manifest.
        expected: String,
        /// Hash of the file.
        found: String,
    },
    /// An index that does not follow the Megatron format.
    #[error("{}: at byte {offset}: {what}; the index is damaged or not Megatron's", path.display())]
    Index {
        /// The `.idx` file.
        path: PathBuf,
        /// Byte offset of the offending field.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A token id that the vocabulary does not have.
    #[error("{}: at byte {offset}: token id {id} is not below the vocabulary size {vocab_size}; tokenise with the right tokenizer", path.display())]
    Token {
        /// The `.bin` file.
        path: PathBuf,
        /// Byte offset of the token.
        offset: u64,
        /// The id.
        id: i64,
        /// The vocabulary size.
        vocab_size: u32,
    },
    /// A shard file whose content changed after it had been verified.
    #[error("{}: bytes {offset}.. changed after the file was verified; stop whatever writes to it", path.display())]
    Changed {
        /// The `.bin` file.
        path: PathBuf,
        /// Start of the block that changed.
        offset: u64,
    },
    /// A document that does not fit the shard format.
    #[error("{}: document {document}: {what}", path.display())]
    Document {
        /// The shard's prefix, or the input file.
        path: PathBuf,
        /// Number of the document.
        document: u64,
        /// What is wrong.
        what: String,
    },
    /// Sources, weights or phases that make no mixture.
    #[error("mixture: {0}")]
    Mixture(String),
    /// A background thread could not be started.
    #[error("cannot start a thread: {0}; lower the number of processes")]
    Thread(std::io::Error),
    /// A text that cannot be tokenised.
    #[error("{at}: {what}")]
    Encode {
        /// File and offset.
        at: String,
        /// What is wrong.
        what: String,
    },
    /// A line of a JSON lines file that is not a document.
    #[error("{}: line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// Settings that make no sense.
    #[error("settings: {0}")]
    Settings(String),
    /// More documents than can be joined within the bound on memory.
    #[error("{documents} documents need {} MiB of memory to be joined; give more with --memory, or deduplicate parts first", needed.div_ceil(1 << 20))]
    TooMany {
        /// Documents.
        documents: u64,
        /// Bytes that would do.
        needed: u64,
    },
    /// Too little text to go on.
    #[error("{0}")]
    TooLittle(String),
    /// An input that cannot be read as one.
    #[error("{}: {what}", path.display())]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// An output folder that belongs to something else.
    #[error("{}: {what}; --force starts over, or choose another --out", path.display())]
    Job {
        /// The folder.
        path: PathBuf,
        /// What is different from the job that is to run.
        what: String,
    },
    /// More bad input than allowed.
    #[error(
        "{last}{bad} of {records} records are bad, more than --max-bad {most}; see quarantine in the output folder"
    )]
    TooBad {
        /// The last of them, or empty.
        last: String,
        /// Bad records.
        bad: u64,
        /// All records.
        records: u64,
        /// The limit as given.
        most: String,
    },
    /// A memory limit under which nothing can be done.
    #[error(
        "--memory {given} is not enough for one chunk, which may need {needed}; give more, or lower --max-document"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes given.
        given: u64,
    },
    /// Whoever watches the work asked for its end.
    #[error("stopped")]
    Stopped,
    /// A setting that is unknown or makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The tokenizer library refused.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), action, source }
    }
}
