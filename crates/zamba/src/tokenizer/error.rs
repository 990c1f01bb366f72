//! What can be wrong with a tokenizer's files.

use std::path::PathBuf;

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder has no `tokenizer.json`.
    #[error("{}: not found; add the tokenizer.json of the model, or give token ids instead of text", path.display())]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is larger than any real one.
    #[error("{}: larger than the limit of {limit} bytes; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A file is not JSON of the expected form.
    #[error("{}: {message}; download the file again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A file is well-formed but contradicts itself.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        what: String,
    },
    /// The `tokenizers` library does not accept the file.
    #[error("{}: the tokenizers library refuses it: {message}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The library's message.
        message: String,
    },
    /// A text could not be encoded.
    #[error("cannot encode text: {message}; check tokenizer.json")]
    Encode {
        /// The library's message.
        message: String,
    },
    /// Token ids could not be decoded.
    #[error("cannot decode tokens: {message}; check tokenizer.json")]
    Decode {
        /// The library's message.
        message: String,
    },
    /// The text of a token depends on those around it.
    #[error(
        "the tokenizer's decoder gives tokens a text that depends on their neighbours; this needs one that does not"
    )]
    Context,
}
