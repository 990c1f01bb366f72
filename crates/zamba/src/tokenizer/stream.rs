//! Decoding one token at a time, without ever showing half a character or text that a later token would change.
//!
//! Decoding the tokens so far again and again would cost quadratic time and still be wrong where a later token changes
//! earlier text. So the decoder of `tokenizer.json` is taken apart into stages, each of which passes text on as soon as no
//! later token can change it. The pieces and the end put together are always exactly the decoding of all ids at once.
//!
//! A consequence for byte fallback: the library decodes a run of byte tokens as a whole, to characters if all of it is
//! UTF-8 and to one U+FFFD per byte if not, so a run is held until the token that ends it.

use tokenizers::decoders::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Decoder, DecoderWrapper};

use super::{Tokenizer, TokenizerError, clean_up, one_line, quiet};

/// Decodes a stream of ids. Made by [`Tokenizer::stream`].
#[derive(Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    stages: Vec<Stage>,
    /// Whether any token took part; without one the text is empty whatever the decoder.
    started: bool,
}

/// One step of a decoder.
#[derive(Clone)]
pub(super) enum Stage {
    /// Changes each token by itself.
    Each(DecoderWrapper),
    /// Turns the replacement character into a space, except in the first token, where it is dropped.
    Metaspace { replacement: char, drop_in_first: bool, first: bool, single: bool },
    /// Puts a space before tokens that do not continue a word.
    WordPiece { decoder: WordPiece, first: bool },
    /// Turns the end-of-word mark into a space, except in the last token, which is therefore held.
    Suffix { suffix: String, held: Option<String> },
    /// Turns runs of byte tokens into characters.
    ByteFallback { bytes: Vec<u8> },
    /// Turns byte-level spelling into text; holds an incomplete character.
    ByteLevel { tail: Vec<u8> },
    /// Takes up to `left` of a character off the head of the whole text.
    Head { content: char, left: usize },
    /// Passes tokens on with a space between: there is no decoder.
    Spaced { first: bool },
    /// Needs every token before it can say anything.
    Whole { decoder: DecoderWrapper, tokens: Vec<String>, single: bool },
    /// Holds the whole text for `clean_up_tokenization_spaces`.
    CleanUp { text: String },
}

impl std::fmt::Debug for DecodeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodeStream").field("skip_special", &self.skip_special).finish_non_exhaustive()
    }
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let mut stages = Vec::new();
        match tokenizer.inner.library.get_decoder() {
            Some(decoder) => add_stages(decoder, &mut false, &mut stages),
            None => stages.push(Stage::Spaced { first: true }),
        }
        if tokenizer.inner.clean_up {
            stages.push(Stage::CleanUp { text: String::new() });
        }
        Self { tokenizer, skip_special, stages, started: false }
    }

    /// Takes the next id; gives the text that is now certain, if any.
    ///
    /// # Errors
    /// If the library fails on this token.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        if !self.tokenizer.inner.shows(id, self.skip_special) {
            return Ok(None);
        }
        self.started = true;
        let token = self.tokenizer.id_to_piece(id).unwrap_or_default();
        self.run(Some(token), false)
    }

    /// Ends the stream: the text that was held back, if any. The stream can then be used for another text.
    ///
    /// # Errors
    /// If the library fails on the tokens that were held.
    pub fn finish(&mut self) -> Result<Option<String>, TokenizerError> {
        let rest = if self.started { self.run(None, true) } else { Ok(None) };
        *self = Self::new(self.tokenizer.clone(), self.skip_special);
        rest
    }

    /// The text that is held back, which [`DecodeStream::finish`] would give; the stream goes on as it is.
    ///
    /// # Errors
    /// If the library fails on the tokens that are held.
    pub fn held(&self) -> Result<Option<String>, TokenizerError> {
        self.clone().finish()
    }

    fn run(&mut self, token: Option<String>, finish: bool) -> Result<Option<String>, TokenizerError> {
        let stages = &mut self.stages;
        let text = quiet::catch(|| {
            let mut tokens: Vec<String> = token.into_iter().collect();
            for stage in stages {
                let mut next = Vec::new();
                for token in tokens {
                    stage.push(token, &mut next)?;
                }
                if finish {
                    stage.finish(&mut next)?;
                }
                tokens = next;
            }
            Ok(tokens.concat())
        });
        let text = text.and_then(|result| result.map_err(|e: tokenizers::Error| one_line(e)));
        let text = text.map_err(|message| TokenizerError::Decode { message })?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// Takes `decoder` apart. `single` says that what arrives is one token in fragments, as after `Fuse`.
pub(super) fn add_stages(decoder: &DecoderWrapper, single: &mut bool, stages: &mut Vec<Stage>) {
    let stage = match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|inner| add_stages(inner, single, stages));
            return;
        }
        DecoderWrapper::Fuse(_) => {
            *single = true;
            return;
        }
        DecoderWrapper::Metaspace(m) => Stage::Metaspace {
            replacement: m.get_replacement(),
            drop_in_first: m.prepend_scheme != PrependScheme::Never,
            first: true,
            single: *single,
        },
        DecoderWrapper::Strip(s) if *single && s.stop == 0 => {
            Stage::Head { content: s.content, left: s.start }
        }
        DecoderWrapper::Strip(_) | DecoderWrapper::Replace(_) if !*single => Stage::Each(decoder.clone()),
        DecoderWrapper::WordPiece(w) if !*single => Stage::WordPiece { decoder: w.clone(), first: true },
        DecoderWrapper::BPE(b) if !*single => Stage::Suffix { suffix: b.suffix.clone(), held: None },
        DecoderWrapper::ByteFallback(_) if !*single => Stage::ByteFallback { bytes: Vec::new() },
        DecoderWrapper::ByteLevel(_) if !*single => {
            *single = true;
            Stage::ByteLevel { tail: Vec::new() }
        }
        _ => Stage::Whole { decoder: decoder.clone(), tokens: Vec::new(), single: *single },
    };
    stages.push(stage);
}

type Passed = Result<(), tokenizers::Error>;

impl Stage {
    /// Takes a token and passes on what is certain.
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Passed {
        match self {
            Stage::Each(decoder) => out.extend(decoder.decode_chain(vec![token])?),
            Stage::Metaspace { replacement, drop_in_first, first, single } => {
                let drop = *drop_in_first && *first;
                *first = *single;
                out.push(
                    token
                        .chars()
                        .filter(|c| !drop || c != replacement)
                        .map(|c| if c == *replacement { ' ' } else { c })
                        .collect(),
                );
            }
            Stage::WordPiece { decoder, first } => {
                // A token's own place is all that counts, so any other token may stand before it.
                let before = if std::mem::take(first) { None } else { Some(String::new()) };
                let tokens = before.into_iter().chain([token]).collect();
                out.extend(decoder.decode_chain(tokens)?.pop());
            }
            Stage::Suffix { suffix, held } => {
                if let Some(earlier) = held.replace(token) {
                    out.push(earlier.replace(suffix.as_str(), " "));
                }
            }
            Stage::ByteFallback { bytes } => match byte_of(&token) {
                Some(byte) => bytes.push(byte),
                None => {
                    flush_bytes(bytes, out);
                    out.push(token);
                }
            },
            Stage::ByteLevel { tail } => {
                push_byte_level(tail, &token);
                out.push(take_characters(tail));
            }
            Stage::Head { content, left } => {
                let head = token.chars().take(*left).take_while(|c| c == content).count();
                // Another character ends the head for good.
                *left = if token.chars().count() > head { 0 } else { *left - head };
                out.push(token[head * content.len_utf8()..].to_owned());
            }
            Stage::Spaced { first } => {
                if !std::mem::take(first) {
                    out.push(" ".to_owned());
                }
                out.push(token);
            }
            Stage::Whole { tokens, .. } => tokens.push(token),
            Stage::CleanUp { text } => text.push_str(&token),
        }
        Ok(())
    }

    /// Passes on what was held.
    fn finish(&mut self, out: &mut Vec<String>) -> Passed {
        match self {
            Stage::Suffix { suffix, held } => {
                out.extend(held.take().map(|token| token.replace(suffix.as_str(), "")))
            }
            Stage::ByteFallback { bytes } => flush_bytes(bytes, out),
            Stage::ByteLevel { tail } => out.push(String::from_utf8_lossy(tail).into_owned()),
            Stage::Whole { decoder, tokens, single } => {
                let tokens = std::mem::take(tokens);
                out.extend(decoder.decode_chain(if *single { vec![tokens.concat()] } else { tokens })?);
            }
            Stage::CleanUp { text } => out.push(clean_up(text)),
            _ => {}
        }
        Ok(())
    }
}

/// The byte of a token such as `<0x0A>`, read as the library reads it.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Ends a run of byte tokens. No run gives no token: an empty one would count as a word further on.
fn flush_bytes(bytes: &mut Vec<u8>, out: &mut Vec<String>) {
    let count = bytes.len();
    if count == 0 {
        return;
    }
    let text = String::from_utf8(std::mem::take(bytes));
    out.extend(text.map_or_else(|_| vec!["\u{FFFD}".to_owned(); count], |text| vec![text]));
}

/// Appends the bytes that a byte-level token spells; a token with a character outside the alphabet stands for itself.
pub(super) fn push_byte_level(tail: &mut Vec<u8>, token: &str) {
    let before = tail.len();
    for c in token.chars() {
        match byte_level(c) {
            Some(byte) => tail.push(byte),
            None => {
                tail.truncate(before);
                tail.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 for itself, the other 68 bytes, in order, for
/// the characters from U+0100 on.
fn byte_level(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => Some(c as u32 as u8),
        '\u{100}'..='\u{120}' => Some((c as u32 - 0x100) as u8),
        '\u{121}'..='\u{142}' => Some((c as u32 - 0x121 + 0x7F) as u8),
        '\u{143}' => Some(0xAD),
        _ => None,
    }
}

/// Takes the text off `bytes` that more bytes cannot change, invalid sequences as U+FFFD, and leaves the rest: at most the
/// first three bytes of a character.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let invalid = chunk.invalid();
        let unfinished = done + invalid.len() == bytes.len()
            && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
        if invalid.is_empty() || unfinished {
            break;
        }
        text.push('\u{FFFD}');
        done += invalid.len();
    }
    bytes.drain(..done);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_level_alphabet_has_every_byte_once() {
        let mut bytes: Vec<u8> = ('\0'..='\u{200}').filter_map(byte_level).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_level('Ġ'), byte_level('Ċ')), (Some(b' '), Some(b'\n')));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn characters_taken_one_by_one_equal_lossy_decoding(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xE2), Just(0x82), Just(0xAC), Just(0xF0), Just(0x9F)], 0..40)
        ) {
            let (mut tail, mut text) = (Vec::new(), String::new());
            for &byte in &bytes {
                tail.push(byte);
                text.push_str(&take_characters(&mut tail));
                prop_assert!(tail.len() <= 3);
            }
            text.push_str(&String::from_utf8_lossy(&tail));
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
