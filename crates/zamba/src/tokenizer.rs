//! Text to token ids and back, as a Hugging Face tokenizer folder says.
//!
//! The `tokenizers` library does the work. This module reads the files around `tokenizer.json`, follows what
//! `transformers` (5.23, `AutoTokenizer`) makes of them, so that [`Tokenizer::encode`] gives what `tokenizer(text)["input_ids"]`
//! gives there, and stands between the library and files that would make it panic:
//!
//! - BOS and EOS are added if the post-processor in `tokenizer.json` says so. `add_bos_token` and `add_eos_token` in
//!   `tokenizer_config.json` are without effect beside a `tokenizer.json`, as in `transformers`.
//! - Special tokens named in `tokenizer_config.json` or `special_tokens_map.json` are split off before the model sees the
//!   text, and get a new id if the vocabulary lacks them.
//! - The class `LlamaTokenizer`, which Zamba's files name, brings its own normaliser, pre-tokeniser and decoder and uses only
//!   vocabulary, merges and post-processor of `tokenizer.json` (unless that is byte-level). For other classes the file
//!   counts as it stands.
//! - Truncation, padding and BPE dropout in `tokenizer.json` are ignored: a text has one encoding, and it is whole.

mod bytes;
mod error;
mod files;
mod quiet;
mod stream;
mod validate;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use tokenizers::decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence, strip::Strip};
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, AddedVocabulary, DecoderWrapper, ModelWrapper, NormalizerWrapper};

pub use error::TokenizerError;
pub(crate) use files::{Settings, read_json_object, read_text};
pub use stream::DecodeStream;

type Library = tokenizers::Tokenizer;

/// Special tokens that a post-processor may put around a text; more than any real one, few enough to bound a hostile one.
const MAX_AROUND: usize = 64;

/// A loaded tokenizer. Cloning it is cheap: clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    library: Library,
    /// By id: what the vocabulary knows of it. Ids in gaps are unknown.
    ids: Vec<IdKind>,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    eos_ids: Vec<u32>,
    generation_eos_ids: Option<Vec<u32>>,
    clean_up: bool,
    warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IdKind {
    Unknown,
    Ordinary,
    Special,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos_id", &self.bos_id())
            .field("eos_ids", &self.eos_ids())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads the tokenizer of the folder `dir`: `tokenizer.json`, and where present `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, and `tokenizer_class` of `config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] if there is no `tokenizer.json`; other variants name the file and what is wrong with it.
    /// A file that would make the `tokenizers` library panic is an error too.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let text = read_text(&path)?.ok_or_else(|| TokenizerError::Missing { path: path.clone() })?;
        let checked = validate::check(&path, &text)?;
        let settings = Settings::read(dir, &text, &checked.added)?;
        let refused = |message: String| TokenizerError::Refused { path: path.clone(), message };

        let mut library =
            quiet::catch(|| Library::from_str(&text)).map_err(refused)?.map_err(|e| refused(one_line(e)))?;
        quiet::catch(|| shape(&mut library, &settings)).map_err(refused)?.map_err(refused)?;
        let inner = Inner::new(&path, library, &settings, checked.warnings)?;
        let tokenizer = Self { inner: Arc::new(inner) };
        tokenizer.check_ends(&path)?;
        Ok(tokenizer)
    }

    /// The ids of `text`; with `add_special`, also those that the post-processor puts around it (BOS for Zamba).
    ///
    /// Special tokens written in the text itself become their ids either way, as in `transformers`.
    ///
    /// # Errors
    /// If the library fails on this text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let failed = |message| TokenizerError::Encode { message };
        let encoding = quiet::catch(|| self.inner.library.encode_fast(text, add_special)).map_err(failed)?;
        Ok(encoding.map_err(|e| failed(one_line(e)))?.get_ids().to_vec())
    }

    /// The text of `ids`; with `skip_special`, without special tokens. Ids that the vocabulary lacks give no text, as a
    /// model's vocabulary may be padded beyond the tokenizer's.
    ///
    /// # Errors
    /// If the library fails on these ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let failed = |message| TokenizerError::Decode { message };
        if !ids.iter().any(|&id| self.inner.shows(id, skip_special)) {
            return Ok(String::new());
        }
        let text = quiet::catch(|| self.inner.library.decode(ids, skip_special)).map_err(failed)?;
        let text = text.map_err(|e| failed(one_line(e)))?;
        Ok(if self.inner.clean_up { clean_up(&text) } else { text })
    }

    /// A decoder that takes one id at a time and gives text as soon as it is certain. See [`DecodeStream`].
    pub fn stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    /// The vocabulary's own spelling of a token (`▁Hello`, `Ġworld`, `<0x0A>`), not its text.
    pub fn id_to_piece(&self, id: u32) -> Option<String> {
        self.inner.library.id_to_token(id)
    }

    /// The id of a token in the vocabulary's own spelling.
    pub fn piece_to_id(&self, piece: &str) -> Option<u32> {
        self.inner.library.token_to_id(piece)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The highest id: a model needs a vocabulary of at least one more. Above `vocab_size() - 1` if there are gaps.
    pub fn max_id(&self) -> u32 {
        self.inner.ids.len() as u32 - 1
    }

    /// The id of `bos_token`, if the files name one. Whether it is added to a text is the post-processor's choice.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The id of `eos_token`, if the files name one.
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.eos
    }

    /// The ids that end generation: `eos_token_id` of `generation_config.json`, or else of `eos_token`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// `eos_token_id` of `generation_config.json` alone, for merging with the model's config.
    pub fn generation_eos_ids(&self) -> Option<&[u32]> {
        self.inner.generation_eos_ids.as_deref()
    }

    /// Whether the token is special: left out of decoded text with `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.kind(id) == IdKind::Special
    }

    /// What is odd about the files but followed all the same, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// Encodes and decodes a letter, so that a file that fails on every text fails when it is loaded, and refuses ids from
    /// the post-processor that the vocabulary lacks: they would index outside the model's embedding.
    fn check_ends(&self, path: &Path) -> Result<(), TokenizerError> {
        let invalid = |what| TokenizerError::Invalid { path: path.to_owned(), what };
        let inside = self.encode("a", false)?.len();
        let ids = self.encode("a", true)?;
        if ids.len() > inside + MAX_AROUND {
            return Err(invalid(format!(
                "post_processor adds {} tokens to a text; at most {MAX_AROUND}",
                ids.len() - inside
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| self.inner.kind(id) == IdKind::Unknown) {
            return Err(invalid(format!("post_processor adds token {id}, which is not in the vocabulary")));
        }
        self.decode(&ids, false).map(drop)
    }
}

impl Inner {
    fn new(
        path: &Path,
        library: Library,
        settings: &Settings,
        mut warnings: Vec<String>,
    ) -> Result<Self, TokenizerError> {
        let vocab = library.get_vocab(true);
        let highest = vocab.values().copied().max().unwrap_or(0);
        validate::check_density(path, highest, vocab.len())?;
        let mut ids = vec![IdKind::Unknown; highest as usize + 1];
        for (piece, &id) in &vocab {
            if ids[id as usize] != IdKind::Unknown {
                let what = format!("token {piece:?} shares id {id} with another token; give each its own id");
                return Err(TokenizerError::Invalid { path: path.to_owned(), what });
            }
            // The library decides by the form that decoding sees, which normalisation may have changed.
            let special = library
                .id_to_token(id)
                .is_some_and(|form| library.get_added_vocabulary().is_special_token(&form));
            ids[id as usize] = if special { IdKind::Special } else { IdKind::Ordinary };
        }
        let id_of = |name: &str| settings.named(name).and_then(|token| library.token_to_id(token));
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let eos_ids = settings.generation_eos_ids.clone().unwrap_or_else(|| eos.into_iter().collect());
        let is_bpe = matches!(library.get_model(), ModelWrapper::BPE(_));
        if settings.clean_up && is_bpe {
            warnings.push(
                "clean_up_tokenization_spaces is ignored for a bpe tokenizer: it would damage text"
                    .to_owned(),
            );
        }
        Ok(Self {
            vocab_size: vocab.len(),
            ids,
            bos,
            eos,
            eos_ids,
            generation_eos_ids: settings.generation_eos_ids.clone(),
            clean_up: settings.clean_up && !is_bpe,
            warnings,
            library,
        })
    }

    fn kind(&self, id: u32) -> IdKind {
        self.ids.get(id as usize).copied().unwrap_or(IdKind::Unknown)
    }

    /// Whether the id takes part in decoding.
    fn shows(&self, id: u32, skip_special: bool) -> bool {
        match self.kind(id) {
            IdKind::Unknown => false,
            IdKind::Ordinary => true,
            IdKind::Special => !skip_special,
        }
    }
}

/// Makes of the library's tokenizer what `transformers` makes of it (`TokenizersBackend.__init__`).
fn shape(library: &mut Library, settings: &Settings) -> Result<(), String> {
    library.with_truncation(None).map_err(one_line)?;
    library.with_padding(None);
    if let ModelWrapper::BPE(bpe) = library.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        library.with_model(bpe);
    }
    if settings.llama_class {
        shape_as_llama(library, settings)?;
    }
    library.set_encode_special_tokens(settings.split_special_tokens);
    add_tokens(library, settings)
}

/// The parts that the class `LlamaTokenizer` builds itself (`models/llama/tokenization_llama.py`).
fn shape_as_llama(library: &mut Library, settings: &Settings) -> Result<(), String> {
    let ModelWrapper::BPE(bpe) = library.get_model() else {
        return Ok(());
    };
    let mut bpe = bpe.clone();
    bpe.unk_token = None;
    bpe.fuse_unk = true;
    bpe.byte_fallback = true;
    bpe.ignore_merges = false;
    library.with_model(bpe);
    library.with_added_vocabulary(AddedVocabulary::new());
    library.with_normalizer(None::<NormalizerWrapper>).map_err(one_line)?;

    let scheme = match (settings.add_prefix_space.unwrap_or(true), settings.legacy) {
        (false, _) => PrependScheme::Never,
        (true, true) => PrependScheme::Always,
        (true, false) => PrependScheme::First,
    };
    library.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(one_line)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if scheme != PrependScheme::Never {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    library.with_decoder(Some(Sequence::new(decoders)));
    Ok(())
}

/// Adds the tokens that the files around `tokenizer.json` name and it lacks, in the order of `transformers`.
fn add_tokens(library: &mut Library, settings: &Settings) -> Result<(), String> {
    let present = library.get_added_tokens_decoder();
    let present: HashMap<&str, &AddedToken> =
        present.values().map(|token| (token.content.as_str(), token)).collect();
    let named: HashSet<&str> = settings.special.iter().map(|token| token.content.as_str()).collect();
    let mut known: HashSet<&str> = present.keys().copied().collect();
    let mut wanted: Vec<AddedToken> = Vec::new();
    for token in &settings.declared {
        if present.get(token.content.as_str()) != Some(&token) {
            wanted.push(token.clone());
        }
        known.insert(&token.content);
    }
    for token in settings.special.iter().chain(&settings.extra) {
        if known.insert(&token.content) {
            wanted.push(token.clone());
        }
    }
    for token in &mut wanted {
        token.special |= named.contains(&token.content.as_str());
    }
    library.add_tokens(wanted).map(drop).map_err(one_line)
}

/// `clean_up_tokenization` of `transformers`, for models other than BPE whose config asks for it.
fn clean_up(text: &str) -> String {
    const RULES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    RULES.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The first line of a message, cut to a length that fits an error line.
fn one_line(message: impl std::fmt::Display) -> String {
    let text = message.to_string();
    text.lines().next().unwrap_or("unknown cause").chars().take(240).collect()
}
