//! Text of a sequence as its tokens come: whole characters, and nothing that may become a stop string.

use crate::stop::StopStrings;
use crate::tokenizer::{DecodeStream, Tokenizer, TokenizerError};

/// Turns tokens into text that may be shown: whole characters, and nothing that may become a stop string.
pub struct Writer {
    decoder: DecodeStream,
    /// The end of the prompt's text that the decoder still holds and will give before any new text.
    held: String,
    stops: StopStrings,
    text: String,
}

impl Writer {
    /// A writer of what follows `prompt`. The decoder sees the prompt too, because the text of a token may
    /// depend on what stands before it: many tokenizers take the space off the head of a text.
    ///
    /// # Errors
    /// If the tokenizer fails on a token.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], stops: &[String]) -> Result<Self, TokenizerError> {
        let mut decoder = tokenizer.stream(true);
        for &token in prompt {
            decoder.push(token)?;
        }
        let mut held = decoder.held()?.unwrap_or_default();
        // Half a character at the end of the prompt is completed, not repeated.
        held.truncate(held.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
        Ok(Writer { decoder, held, stops: StopStrings::new(stops.to_vec()), text: String::new() })
    }

    /// Takes a token; the text to show, and whether a stop string is complete.
    ///
    /// # Errors
    /// If the tokenizer fails on it.
    pub fn push(&mut self, token: u32) -> Result<(String, bool), TokenizerError> {
        let piece = self.decoder.push(token)?.unwrap_or_default();
        Ok(self.show(piece))
    }

    /// What is still held back.
    ///
    /// # Errors
    /// If the tokenizer fails on what it holds.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let piece = self.decoder.finish()?.unwrap_or_default();
        let (mut rest, stopped) = self.show(piece);
        if !stopped {
            let end = self.stops.finish();
            self.text.push_str(&end);
            rest.push_str(&end);
        }
        Ok(rest)
    }

    fn show(&mut self, mut piece: String) -> (String, bool) {
        if !self.held.is_empty() && !piece.is_empty() {
            piece = after(&std::mem::take(&mut self.held), &piece).to_owned();
        }
        let outcome = self.stops.push(&piece);
        self.text.push_str(&outcome.text_to_emit);
        (outcome.text_to_emit, outcome.stopped)
    }

    /// The stop string that has ended the text.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stops.stopped_by()
    }

    /// All text that was shown.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// As [`Writer::text`], at the end.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// What of `piece` is new after `held`, which the prompt has shown already. Bytes at the end of the prompt that were
/// characters are decoded anew, to one U+FFFD each, if the bytes that follow them are no UTF-8.
fn after<'a>(held: &str, piece: &'a str) -> &'a str {
    let same = held.chars().zip(piece.chars()).take_while(|(a, b)| a == b);
    let common: usize = same.map(|(a, _)| a.len_utf8()).sum();
    let mut rest = &piece[common..];
    for _ in common..held.len() {
        rest = rest.strip_prefix(char::REPLACEMENT_CHARACTER).unwrap_or(rest);
    }
    rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer in the manner of Llama's: words begin with a space that is taken off the head of a text,
    /// and a line break is a byte.
    fn llama_like() -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")], "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "merges": [],
                "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁a": 4, "▁b": 5, "b": 6, "a": 7, "▁": 8, "<0xC3>": 9}},
        });
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap()
    }

    fn written(text: &Tokenizer, prompt: &[u32], tokens: &[u32], stops: &[&str]) -> String {
        let stops: Vec<_> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut writer = Writer::new(text, prompt, &stops).unwrap();
        let mut shown = String::new();
        for &token in tokens {
            shown.push_str(&writer.push(token).unwrap().0);
        }
        shown.push_str(&writer.finish().unwrap());
        let by = writer.stopped_by().map(str::to_owned);
        assert!(by.is_none_or(|by| stops.contains(&by)));
        assert_eq!(shown, writer.text, "what is shown is what is kept");
        shown
    }

    #[test]
    fn prompt_and_continuation_make_the_whole_text() {
        let text = llama_like();
        for prompt in [&[1, 4][..], &[1, 4, 3], &[1, 4, 3, 3], &[1], &[4, 6]] {
            for tokens in [&[5, 3, 4][..], &[3], &[3, 5], &[6, 7]] {
                let whole = text.decode(&[prompt, tokens].concat(), true).unwrap();
                let head = text.decode(prompt, true).unwrap();
                let rest = written(&text, prompt, tokens, &[]);
                assert_eq!(format!("{head}{rest}"), whole, "{prompt:?} and {tokens:?}");
            }
        }
    }

    #[test]
    fn a_byte_of_the_prompt_is_not_shown_again_as_part_of_none() {
        let text = llama_like();
        // Together the two bytes are no UTF-8, and decode to one U+FFFD each.
        assert_eq!(text.decode(&[1, 4, 3, 9, 5], true).unwrap(), "a\u{FFFD}\u{FFFD} b");
        assert_eq!(written(&text, &[1, 4, 3], &[9, 5], &[]), "\u{FFFD} b");
        assert_eq!(written(&text, &[1, 4, 3, 3], &[9, 9, 5], &[]), "\u{FFFD}\u{FFFD} b");
    }

    #[test]
    fn stop_strings_end_the_text_and_are_not_shown() {
        let text = llama_like();
        assert_eq!(written(&text, &[1, 4], &[5, 3, 4], &["\n"]), " b");
        assert_eq!(written(&text, &[1, 4], &[5, 3, 4, 6], &["ab", "never"]), " b\n ");
        // Held back until the end shows that it is none.
        assert_eq!(written(&text, &[1, 4], &[5, 4], &[" a b"]), " b a");
    }
}
