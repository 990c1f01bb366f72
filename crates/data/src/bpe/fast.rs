//! Encoding with tokenizers of the kind that [`Bpe::train`](super::Bpe::train) makes, fast enough for a corpus.
//!
//! Text is cut into words by hand ([`WordsOf`]) and each word is looked up among those met before; only new words are merged, by the
//! library. The ids are the library's: a test holds that on arbitrary text.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenizers::{Model, Tokenizer};

use super::WORDS;
use super::words::WordsOf;
use crate::error::Result;

/// Longer words are not remembered: they hardly come twice.
const MAX_WORD: usize = 48;
/// Words remembered by each of the threads; a table that is full is emptied.
const MAX_WORDS: usize = 1 << 17;

/// An encoder for texts, shared by threads.
pub struct Fast {
    tokenizer: Tokenizer,
    /// The letter that stands for each byte.
    letters: [char; 256],
    /// Added tokens that the library cuts out of a text before anything else.
    added: Vec<String>,
    memories: Mutex<Vec<Memory>>,
}

/// Words met before: their ids are a stretch of one list.
#[derive(Default)]
struct Memory {
    words: HashMap<Box<str>, (u32, u32), BuildHasherDefault<Mix>>,
    ids: Vec<u32>,
}

/// A quick hash for short strings, which nobody chooses to be slow: at worst a table degrades until it is emptied.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed =
                (self.0.rotate_left(23) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 = mixed ^ (mixed >> 29);
        }
    }
}

impl Fast {
    /// An encoder for a `tokenizer.json`; `None` if it is not of this kind, and the library has to do it.
    ///
    /// # Errors
    /// If the library cannot read it.
    pub fn new(json: &str) -> Result<Option<Fast>> {
        let is_ours = serde_json::from_str(json).is_ok_and(|value: Value| is_of_this_kind(&value));
        if !is_ours {
            return Ok(None);
        }
        let tokenizer: Tokenizer = json.parse().map_err(super::refused)?;
        let added = tokenizer.get_added_vocabulary().get_vocab().keys().cloned().collect();
        Ok(Some(Fast { tokenizer, letters: letters(), added, memories: Mutex::default() }))
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The ids of a text without marks. `None` if an added token is written in it: what becomes of that is up to the library.
    ///
    /// # Errors
    /// If the library refuses a word.
    pub fn encode(&self, text: &str) -> Result<Option<Vec<u32>>> {
        if self.added.iter().any(|token| memchr::memmem::find(text.as_bytes(), token.as_bytes()).is_some()) {
            return Ok(None);
        }
        let memory = self.memories.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut memory = memory.unwrap_or_default();
        let encoded = self.encode_with(text, &mut memory);
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        encoded.map(Some)
    }

    fn encode_with(&self, text: &str, memory: &mut Memory) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for word in WordsOf::new(text) {
            if let Some(&(start, end)) = memory.words.get(word) {
                ids.extend_from_slice(&memory.ids[start as usize..end as usize]);
                continue;
            }
            let from = ids.len();
            self.merge(word, &mut ids)?;
            if word.len() <= MAX_WORD {
                memory.add(word, &ids[from..]);
            }
        }
        Ok(ids)
    }

    /// Has the library merge a word.
    fn merge(&self, word: &str, ids: &mut Vec<u32>) -> Result<()> {
        let spelt: String = word.bytes().map(|byte| self.letters[usize::from(byte)]).collect();
        let tokens = self.tokenizer.get_model().tokenize(&spelt).map_err(super::refused)?;
        ids.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}

impl Memory {
    fn add(&mut self, word: &str, ids: &[u32]) {
        if self.words.len() == MAX_WORDS {
            *self = Memory::default();
        }
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(ids);
        self.words.insert(word.into(), (start, self.ids.len() as u32));
    }
}

/// Whether a tokenizer is byte-level BPE over Llama 3's words and nothing else.
fn is_of_this_kind(json: &Value) -> bool {
    let model = &json["model"];
    let steps = json["pre_tokenizer"]["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice);
    let [split, bytes] = steps else { return false };
    json["normalizer"].is_null()
        && json["pre_tokenizer"]["type"] == "Sequence"
        && split["type"] == "Split"
        && split["pattern"]["Regex"] == WORDS
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
        && model["type"] == "BPE"
        && model["dropout"].is_null()
        && model["continuing_subword_prefix"].as_str().unwrap_or("").is_empty()
        && model["end_of_word_suffix"].as_str().unwrap_or("").is_empty()
        && json["added_tokens"].as_array().is_some_and(|added| {
            added.iter().all(|token| token["normalized"] == false && token["content"].as_str() != Some(""))
        })
}

/// The letters by which byte-level BPE spells bytes: printable ones stand for themselves, the others follow from U+0100 on.
fn letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let shown = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let letter = if shown {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(letter).unwrap_or('?')
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpe::Bpe;

    fn both() -> (Bpe, Fast) {
        let text = "The quick brown fox's 1234 dogs don't   care.\n\nfn main() {\n    println!(\"{x:?}\");\n}\n\t漢字 été ";
        let texts: Vec<String> =
            (0..50).map(|i| format!("{text}{i} {}", &text[i..].trim_start_matches(' '))).collect();
        let bpe = Bpe::train(texts.iter().map(String::as_str), 500).unwrap();
        let fast = Fast::new(&bpe.json).unwrap().expect("of this kind");
        (bpe, fast)
    }

    #[test]
    fn the_ids_are_the_librarys() {
        let (bpe, fast) = both();
        let pieces = "('|'S|'ſ|'Ll|'re|'x|a|ab|the|fox| |  |\t|\r|\n|\u{a0}|\u{2028}|1|٣|½|漢|é|\u{301}|ª|-|\\.|🦀|\u{0}|ǅ){0,40}";
        let text = prop_oneof![proptest::string::string_regex(pieces).unwrap(), ".{0,60}"];
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
        runner
            .run(&text, |text| {
                let ids = fast.encode(&text).unwrap().expect("no added token");
                prop_assert_eq!(ids, bpe.encode(&text).unwrap(), "{:?}", text);
                Ok(())
            })
            .unwrap();
        let source = include_str!("fast.rs");
        assert_eq!(fast.encode(&source[..3000]).unwrap().unwrap(), bpe.encode(&source[..3000]).unwrap());
    }

    #[test]
    fn every_character_is_cut_as_by_the_library() {
        let (bpe, fast) = both();
        for start in (0..0x11_0000u32).step_by(64) {
            let text: String = (start..start + 64)
                .filter_map(char::from_u32)
                .flat_map(|c| [c, 'a', c, '1', c, '.', c, ' '])
                .collect();
            assert_eq!(fast.encode(&text).unwrap().unwrap(), bpe.encode(&text).unwrap(), "from U+{start:x}");
        }
    }

    #[test]
    fn words_of_a_full_memory_are_learnt_again() {
        let mut memory = Memory::default();
        for i in 0..=MAX_WORDS {
            memory.add(&i.to_string(), &[i as u32]);
        }
        assert_eq!(memory.words.len(), 1);
    }

    #[test]
    fn other_kinds_and_added_tokens_are_left_to_the_library() {
        let (bpe, fast) = both();
        assert_eq!(fast.encode("a </s> b").unwrap(), None);
        assert!(fast.encode("a < /s> b").unwrap().is_some());
        let json: Value = serde_json::from_str(&bpe.json).unwrap();
        for (pointer, value) in [
            ("/normalizer", serde_json::json!({ "type": "NFC" })),
            ("/model/dropout", serde_json::json!(0.1)),
            ("/pre_tokenizer/pretokenizers/0/behavior", "Removed".into()),
            ("/pre_tokenizer/pretokenizers/1/add_prefix_space", true.into()),
        ] {
            let mut json = json.clone();
            *json.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
            assert!(Fast::new(&json.to_string()).unwrap().is_none(), "{pointer}");
        }
    }
}
