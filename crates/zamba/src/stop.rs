//! Stop strings: ends a stream of text at the first stop string, and never shows part of one.
//!
//! Text arrives in pieces, as a tokenizer's stream decodes them, so a stop string may be spread over several. The
//! matcher holds back the longest end of the text that may still become a stop string, and emits the rest.
//!
//! The result is a function of the whole text alone, not of how it was cut into pieces: the stream stops at the first
//! byte where any stop string is complete, and if several end there the longest counts. The stop string itself and
//! everything after it are not emitted, as in the OpenAI API.

/// What one [`StopStrings::push`] gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutcome {
    /// Text that is certain to stand before any stop string; may be empty.
    pub text_to_emit: String,
    /// Whether a stop string is complete. Everything pushed later is dropped.
    pub stopped: bool,
}

/// One stop string with its failure table (Knuth, Morris and Pratt, 1977), and how much of it the text ends with.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// `failure[k]`: length of the longest proper prefix of the pattern that is also a suffix of its first `k + 1` bytes.
    failure: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut failure = vec![0; bytes.len()];
        let mut k = 0;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = failure[k - 1];
            }
            if bytes[i] == bytes[k] {
                k += 1;
            }
            failure[i] = k;
        }
        Self { bytes, failure, matched: 0 }
    }

    /// Takes one more byte of text; true when the pattern has just ended.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.failure[self.matched - 1];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

/// A streaming matcher of stop strings. Linear in the text for each stop string, whatever either contains.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// Text seen and not emitted: exactly the longest suffix that begins some stop string.
    held: String,
    /// The pattern that is complete.
    stopped: Option<usize>,
}

impl StopStrings {
    /// A matcher for `stops`. Empty strings are left out: they would end every text before its first character.
    pub fn new(stops: Vec<String>) -> Self {
        let patterns = stops.iter().filter(|s| !s.is_empty()).map(|s| Pattern::new(s)).collect();
        Self { patterns, held: String::new(), stopped: None }
    }

    /// Whether a stop string has been seen.
    pub fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that has been seen.
    pub fn stopped_by(&self) -> Option<&str> {
        std::str::from_utf8(&self.patterns[self.stopped?].bytes).ok()
    }

    /// Takes the next piece of text and says what may be shown now.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped() {
            return StopOutcome { text_to_emit: String::new(), stopped: true };
        }
        let piece_start = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            if let Some(pattern) = self.step(byte) {
                let len = self.patterns[pattern].bytes.len();
                self.stopped = Some(pattern);
                self.held.truncate(piece_start + i + 1 - len);
                return StopOutcome { text_to_emit: std::mem::take(&mut self.held), stopped: true };
            }
        }
        // A suffix that begins a stop string starts with the first byte of a character, so this is a boundary.
        let keep = self.patterns.iter().map(|p| p.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopOutcome { text_to_emit: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Ends the stream: what was held back did not become a stop string and is released.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Feeds one byte to every pattern; the longest that ends here.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut longest = None;
        for (i, pattern) in self.patterns.iter_mut().enumerate() {
            if pattern.step(byte) {
                longest = longest.max(Some((pattern.bytes.len(), i)));
            }
        }
        longest.map(|(_, i)| i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the shortest prefix of the text that ends with a stop string, less the longest such string.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in (0..=text.len()).filter(|&e| text.is_char_boundary(e)) {
            let hits = stops.iter().filter(|s| !s.is_empty() && text[..end].ends_with(s.as_str()));
            if let Some(len) = hits.map(|s| s.len()).max() {
                return (text[..end - len].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, bool) {
        let mut matcher = StopStrings::new(stops.to_vec());
        let mut shown = String::new();
        for piece in pieces {
            shown.push_str(&matcher.push(piece).text_to_emit);
        }
        shown.push_str(&matcher.finish());
        (shown, matcher.stopped())
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopStrings::new(vec!["<|end|>".into()]);
        assert_eq!(matcher.push("hi <"), StopOutcome { text_to_emit: "hi ".into(), stopped: false });
        assert_eq!(matcher.push("b> <|en"), StopOutcome { text_to_emit: "<b> ".into(), stopped: false });
        assert_eq!(matcher.push("d|> more"), StopOutcome { text_to_emit: String::new(), stopped: true });
        assert_eq!(matcher.push("later"), StopOutcome { text_to_emit: String::new(), stopped: true });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn finish_releases_what_was_held() {
        let mut matcher = StopStrings::new(vec!["\n\n".into()]);
        assert_eq!(matcher.push("line\n").text_to_emit, "line");
        assert_eq!(matcher.finish(), "\n");
        assert!(!matcher.stopped());
    }

    #[test]
    fn empty_stop_strings_do_nothing() {
        assert_eq!(run(&["abc".into()], &[String::new()]), ("abc".into(), false));
    }

    #[test]
    fn several_strings_that_end_together_take_the_longest() {
        assert_eq!(run(&["xab".into(), "c".into()], &["bc".into(), "abc".into()]), ("x".into(), true));
        // "b" is complete before "abc" is.
        assert_eq!(run(&["xabc".into()], &["b".into(), "abc".into()]), ("xa".into(), true));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn equals_naive_search_however_the_text_is_cut(
            pieces in prop::collection::vec("[abé→]{0,4}", 0..12),
            stops in prop::collection::vec("[abé→]{0,5}", 0..4),
        ) {
            prop_assert_eq!(run(&pieces, &stops), naive(&pieces.concat(), &stops));
        }

        #[test]
        fn nothing_is_held_that_is_not_the_start_of_a_stop_string(
            pieces in prop::collection::vec("[abé→]{0,4}", 0..12),
            stops in prop::collection::vec("[abé→]{1,5}", 0..4),
        ) {
            let mut matcher = StopStrings::new(stops.clone());
            let (mut seen, mut shown) = (String::new(), String::new());
            for piece in &pieces {
                seen.push_str(piece);
                let outcome = matcher.push(piece);
                shown.push_str(&outcome.text_to_emit);
                if outcome.stopped {
                    break;
                }
                let longest = seen
                    .char_indices()
                    .map(|(i, _)| &seen[i..])
                    .find(|tail| stops.iter().any(|s| s.starts_with(tail)))
                    .unwrap_or("");
                prop_assert_eq!(format!("{shown}{longest}"), seen.clone());
            }
        }
    }
}
