//! Training a byte-level BPE tokenizer, and saving it as `transformers` loads it.
//!
//! Special tokens and their ids are those of Zamba's own tokenizer: `[PAD]` 0, `<s>` 1, `</s>` 2, and a text begins with
//! `<s>`. Text is cut into words by the pattern of Llama 3 before merges are learnt: numbers of at most three digits,
//! letters with one leading mark or space, runs of marks, runs of white space; this suits source code.

mod fast;
mod words;

pub use fast::Fast;

use std::path::Path;
use std::str::FromStr;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::mix::hex;
use crate::tokenise::Marks;

/// The special tokens, in order of their ids.
pub const SPECIALS: [&str; 3] = ["[PAD]", "<s>", "</s>"];
/// The marks around a document.
pub const MARKS: Marks = Marks { bos: Some(1), eos: Some(2) };
/// The smallest vocabulary: the special tokens and one token per byte.
pub const MIN_VOCAB: u32 = 259;

/// The pattern of Llama 3's tokenizer.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Rulers (`-----`) would otherwise take up entries that no text is made of.
const MAX_TOKEN_BYTES: usize = 32;

/// A tokenizer that was trained here.
pub struct Bpe {
    /// Takes special tokens that are written in a text for text: `</s>` in a source file must not end the document.
    plain: Tokenizer,
    json: String,
    vocab_size: u32,
}

impl Bpe {
    /// Learns a vocabulary of `vocab_size` tokens, or fewer if the texts have too few different words. The result hangs on
    /// the texts alone, not on their order or the number of threads.
    ///
    /// # Errors
    /// If `vocab_size` is below [`MIN_VOCAB`] or the library refuses.
    pub fn train<'a>(texts: impl Iterator<Item = &'a str> + Send, vocab_size: u32) -> Result<Bpe> {
        if vocab_size < MIN_VOCAB {
            return Err(Error::Tokenizer(format!(
                "a vocabulary of {vocab_size} is below {MIN_VOCAB}; ask for more"
            )));
        }
        let split =
            Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false);
        let bytes = ByteLevel::new(false, false, false);
        let special = |token: &&str| AddedToken::from(*token, true);
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size as usize)
            .show_progress(false)
            .special_tokens(SPECIALS.iter().map(special).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .max_token_length(Some(MAX_TOKEN_BYTES))
            .build();
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.map_err(refused)?.into(), bytes.into()])));
        tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, false, false)));
        tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(refused)?;
        let template = TemplateProcessing::builder()
            .try_single("<s> $A")
            .and_then(|builder| builder.try_pair("<s> $A <s>:1 $B:1"))
            .map_err(Error::Tokenizer)?
            .special_tokens(vec![("<s>", 1)])
            .build()
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        tokenizer.with_post_processor(Some(template));
        Bpe::from_json(tokenizer.to_string(true).map_err(refused)?)
    }

    /// By way of the text that is saved, so that what is used is what was saved.
    fn from_json(json: String) -> Result<Bpe> {
        let mut plain = Tokenizer::from_str(&json).map_err(refused)?;
        plain.set_encode_special_tokens(true);
        let vocab_size = plain.get_vocab_size(true) as u32;
        Ok(Bpe { plain, json, vocab_size })
    }

    /// The ids of a text, without `<s>`. Special tokens written in the text are text.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.plain.encode_fast(text, false).map_err(refused)?.get_ids().to_vec())
    }

    /// The text of some ids, with special tokens left out.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.plain.decode(ids, true).map_err(refused)
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// SHA-256 of the `tokenizer.json` in hex.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(self.json.as_bytes()))
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `dir`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn save(&self, fs: &dyn Fs, dir: &Path, model_max_length: usize) -> Result<()> {
        let special = |content: &str| {
            json!({
                "content": content, "lstrip": false, "normalized": false,
                "rstrip": false, "single_word": false, "special": true
            })
        };
        let map = json!({ "bos_token": SPECIALS[1], "eos_token": SPECIALS[2], "pad_token": SPECIALS[0] });
        let config = json!({
            "added_tokens_decoder": { "0": special(SPECIALS[0]), "1": special(SPECIALS[1]), "2": special(SPECIALS[2]) },
            "bos_token": SPECIALS[1],
            "clean_up_tokenization_spaces": false,
            "eos_token": SPECIALS[2],
            "model_max_length": model_max_length,
            "pad_token": SPECIALS[0],
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast"
        });
        fs.create_dirs(dir).map_err(Error::io(dir, "create"))?;
        let files = [
            ("tokenizer.json", self.json.clone()),
            ("tokenizer_config.json", format!("{config:#}\n")),
            ("special_tokens_map.json", format!("{map:#}\n")),
        ];
        for (name, text) in files {
            let path = dir.join(name);
            fs.replace(&path, text.as_bytes()).map_err(Error::io(&path, "write"))?;
        }
        Ok(())
    }
}

fn refused(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FaultFs;

    fn texts() -> Vec<String> {
        let line = |i: u32| format!("fn item_{i}(x: &str) -> usize {{\n    x.len() + {i} // counts\n}}\n");
        (0..200).map(|i| line(i) + "The quick brown fox is quicker than the lazy dog.\n").collect()
    }

    fn train(texts: &[String]) -> Bpe {
        Bpe::train(texts.iter().map(String::as_str), 400).unwrap()
    }

    #[test]
    fn any_text_comes_back() {
        let bpe = train(&texts());
        assert_eq!(bpe.vocab_size(), 400);
        for text in [
            "fn item_7",
            "ünïcödé 漢字 🦀\u{0}",
            "  \n\n\t x",
            "",
            "</s> is not the end, <s> no begin, [PAD]",
        ] {
            let ids = bpe.encode(text).unwrap();
            assert!(ids.iter().all(|&id| (3..400).contains(&id)), "{text}: {ids:?}");
            assert_eq!(bpe.decode(&ids).unwrap(), text);
        }
        let line = "fn item_7(x: &str) -> usize {\n";
        assert!(bpe.encode(line).unwrap().len() < line.len() / 2, "something was learnt");
    }

    #[test]
    fn the_order_of_the_texts_does_not_matter() {
        let mut texts = texts();
        let forward = train(&texts);
        texts.reverse();
        assert_eq!(forward.json, train(&texts).json);
    }

    #[test]
    fn saved_files_say_what_transformers_needs() {
        let fs = FaultFs::new();
        let bpe = train(&texts());
        bpe.save(&fs, Path::new("/out/model"), 512).unwrap();
        let json = fs.read(Path::new("/out/model/tokenizer.json")).unwrap();
        assert_eq!(hex(&Sha256::digest(&json)), bpe.sha256());
        let loaded = Tokenizer::from_bytes(&json).unwrap();
        for (id, token) in SPECIALS.iter().enumerate() {
            assert_eq!(loaded.token_to_id(token), Some(id as u32));
        }
        let ids = loaded.encode("a </s> b", true).unwrap().get_ids().to_vec();
        assert_eq!((ids[0], ids.contains(&2)), (1, true), "begins with <s>, and </s> is special to users");
        let config = fs.read(Path::new("/out/model/tokenizer_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["model_max_length"], 512);
        assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    }

    #[test]
    fn a_vocabulary_below_the_bytes_is_refused() {
        assert!(Bpe::train(["x"].into_iter(), MIN_VOCAB - 1).is_err());
        let bpe = Bpe::train(["x"].into_iter(), 1_000).unwrap();
        assert_eq!(bpe.vocab_size(), MIN_VOCAB, "nothing to merge in one letter");
    }
}
