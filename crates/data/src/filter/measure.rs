//! What rules measure. Groups of numbers are computed when a rule first asks for one of them.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashSet;

use super::terms::count;

/// A word character that stands so often in a row makes a repeated run.
const REPEATED: usize = 7;

/// The number of the same character in a row from which Zyda leaves one of them; `None` for characters that it leaves alone.
fn collapses_at(c: char) -> Option<usize> {
    match c {
        ' ' => Some(40),
        '\t' => Some(20),
        '-' | '_' | '/' | '\\' | '\n' | '\r' | '.' | ',' | ':' | '?' | '\u{a0}' => Some(10),
        _ => None,
    }
}

/// The numbers of a text.
pub(super) struct Measures<'a> {
    original: &'a str,
    collapse: bool,
    classes: OnceCell<Classes>,
    runs: OnceCell<Runs<'a>>,
    lines: OnceCell<Lines>,
    words: OnceCell<Words>,
    duplicates: OnceCell<Duplicates>,
}

impl<'a> Measures<'a> {
    pub(super) fn new(original: &'a str, collapse: bool) -> Measures<'a> {
        Measures {
            original,
            collapse,
            classes: OnceCell::new(),
            runs: OnceCell::new(),
            lines: OnceCell::new(),
            words: OnceCell::new(),
            duplicates: OnceCell::new(),
        }
    }

    fn classes(&self) -> &Classes {
        self.classes.get_or_init(|| Classes::of(self.original))
    }

    fn runs(&self) -> &Runs<'a> {
        self.runs.get_or_init(|| Runs::of(self.original, self.collapse))
    }

    /// The text as it will be kept. Zyda takes classes of characters and patterns from the original, lengths and runs from this.
    fn text(&self) -> &str {
        &self.runs().text
    }

    pub(super) fn into_text(self) -> Cow<'a, str> {
        self.runs();
        self.runs.into_inner().map_or(Cow::Borrowed(self.original), |runs| runs.text)
    }

    pub(super) fn chars(&self) -> u64 {
        self.classes().chars - self.runs().removed
    }

    pub(super) fn mean_piece_chars(&self) -> f64 {
        let classes = self.classes();
        (classes.chars - classes.breaks) as f64 / (classes.breaks + 1) as f64
    }

    pub(super) fn symbol_share(&self) -> f64 {
        self.classes().share(self.classes().symbols)
    }

    pub(super) fn alphanumeric_share(&self) -> f64 {
        self.classes().share(self.classes().alphanumerics)
    }

    pub(super) fn digit_share(&self) -> f64 {
        self.classes().share(self.classes().digits)
    }

    pub(super) fn repeated_runs(&self) -> u64 {
        self.runs().repeated
    }

    pub(super) fn lines(&self) -> &Lines {
        self.lines.get_or_init(|| Lines::of(self.text()))
    }

    pub(super) fn words(&self) -> &Words {
        self.words.get_or_init(|| Words::of(self.text()))
    }

    pub(super) fn duplicates(&self) -> &Duplicates {
        self.duplicates.get_or_init(|| Duplicates::of(self.text()))
    }

    pub(super) fn hashes(&self) -> u64 {
        count(self.text(), "#")
    }

    pub(super) fn ellipses(&self) -> u64 {
        count(self.text(), "...") + count(self.text(), "…")
    }

    pub(super) fn line_feeds(&self) -> u64 {
        count(self.text(), "\n")
    }

    pub(super) fn per_word(&self, n: u64) -> f64 {
        n as f64 / self.words().words.max(1) as f64
    }
}

/// The share of characters of a text that are digits; 0 for an empty one.
pub fn digit_share(text: &str) -> f64 {
    let classes = Classes::of(text);
    classes.share(classes.digits)
}

/// Characters by class.
struct Classes {
    chars: u64,
    /// White space and `-`, `/`, `\`, `.`: what stands between Zyda's words.
    breaks: u64,
    symbols: u64,
    digits: u64,
    alphanumerics: u64,
}

/// A counter per class, of LANE bits each.
type Packed = u64;
const LANE: u32 = 12;
const MASK: u64 = (1 << LANE) - 1;

/// The classes of a character, one bit per lane: any, break, symbol, digit, alphanumeric.
const fn classes_of(space: bool, edge: bool, alphanumeric: bool, underscore: bool, digit: bool) -> Packed {
    let symbol = !space && !alphanumeric && !underscore;
    1 | ((space || edge) as u64) << LANE
        | (symbol as u64) << (2 * LANE)
        | (digit as u64) << (3 * LANE)
        | (alphanumeric as u64) << (4 * LANE)
}

/// By byte; the bytes of longer characters count for nothing.
static ASCII: [Packed; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        // Python's \s also takes four separators, as char::is_whitespace does not.
        let space = matches!(b, b' ' | b'\t'..=b'\r' | 0x1c..=0x1f);
        let edge = matches!(b, b'-' | b'/' | b'\\' | b'.');
        table[byte] = classes_of(space, edge, b.is_ascii_alphanumeric(), b == b'_', b.is_ascii_digit());
        byte += 1;
    }
    table
};

impl Classes {
    fn of(text: &str) -> Classes {
        let mut totals = [0u64; 5];
        let mut add = |packed: Packed| {
            for (lane, total) in totals.iter_mut().enumerate() {
                *total += packed >> (lane as u32 * LANE) & MASK;
            }
        };
        // So many that no lane overflows.
        for block in text.as_bytes().chunks(MASK as usize) {
            add(block.iter().map(|&byte| ASCII[byte as usize]).sum());
        }
        if !text.is_ascii() {
            for c in text.chars().filter(|c| !c.is_ascii()) {
                add(classes_of(c.is_whitespace(), false, c.is_alphanumeric(), false, c.is_numeric()));
            }
        }
        let [chars, breaks, symbols, digits, alphanumerics] = totals;
        Classes { chars, breaks, symbols, digits, alphanumerics }
    }

    fn share(&self, n: u64) -> f64 {
        n as f64 / self.chars.max(1) as f64
    }
}

/// Runs of the same character.
struct Runs<'a> {
    text: Cow<'a, str>,
    /// Characters that were taken out.
    removed: u64,
    repeated: u64,
}

impl<'a> Runs<'a> {
    fn of(text: &'a str, collapse: bool) -> Runs<'a> {
        let mut runs = Runs { text: Cow::Borrowed(text), removed: 0, repeated: 0 };
        let mut shorter = String::new();
        let mut copied = 0;
        let mut meet = |c: char, start: usize, len: usize| {
            if collapse && collapses_at(c).is_some_and(|least| len >= least) {
                let end_of_first = start + c.len_utf8();
                shorter.push_str(&text[copied..end_of_first]);
                copied = start + len * c.len_utf8();
                runs.removed += len as u64 - 1;
            } else if len >= REPEATED && (c.is_alphanumeric() || c == '_') {
                runs.repeated += 1;
            }
        };
        if text.is_ascii() {
            runs_of_bytes(text.as_bytes(), &mut meet)
        } else {
            runs_of_chars(text, &mut meet)
        }
        if copied > 0 {
            shorter.push_str(&text[copied..]);
            runs.text = Cow::Owned(shorter);
        }
        runs
    }
}

/// Runs of at least [`REPEATED`] bytes. Each of them holds two neighbours of which the first is at a multiple of its length
/// less one, so only those are looked at.
fn runs_of_bytes(bytes: &[u8], meet: &mut impl FnMut(char, usize, usize)) {
    const STEP: usize = REPEATED - 1;
    let mut at = 0;
    let mut free = 0;
    while at + 1 < bytes.len() {
        if bytes[at] == bytes[at + 1] && at >= free {
            let byte = bytes[at];
            let before = bytes[free..at].iter().rev().take_while(|&&b| b == byte).count();
            let after = bytes[at..].iter().take_while(|&&b| b == byte).count();
            if before + after >= REPEATED {
                meet(char::from(byte), at - before, before + after);
            }
            free = at + after;
        }
        at += STEP;
    }
}

fn runs_of_chars(text: &str, meet: &mut impl FnMut(char, usize, usize)) {
    let mut run: Option<(char, usize, usize)> = None;
    for (at, c) in text.char_indices() {
        match &mut run {
            Some((last, _, len)) if *last == c => *len += 1,
            _ => {
                if let Some((last, start, len)) = run.filter(|(_, _, len)| *len >= REPEATED) {
                    meet(last, start, len);
                }
                run = Some((c, at, 1));
            }
        }
    }
    if let Some((last, start, len)) = run.filter(|(_, _, len)| *len >= REPEATED) {
        meet(last, start, len);
    }
}

/// Lengths of lines, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineLengths {
    /// Lines; a last one that is empty does not count.
    pub lines: u64,
    /// The longest.
    pub longest: u64,
    /// All together, without line ends.
    pub chars: u64,
}

impl LineLengths {
    /// The lengths of the lines of a text.
    pub fn of(text: &str) -> LineLengths {
        let ascii = text.is_ascii();
        text.lines().fold(LineLengths::default(), |lengths, line| {
            let chars = if ascii { line.len() } else { line.chars().count() } as u64;
            LineLengths {
                lines: lengths.lines + 1,
                longest: lengths.longest.max(chars),
                chars: lengths.chars + chars,
            }
        })
    }

    /// Mean characters of a line; 0 without lines.
    pub fn mean(&self) -> f64 {
        self.chars as f64 / self.lines.max(1) as f64
    }
}

/// Numbers about lines.
pub(super) struct Lines {
    lengths: LineLengths,
    pub(super) longest: u64,
    /// Lines that begin with a bullet.
    pub(super) bullets: u64,
    /// Lines that end with an ellipsis.
    pub(super) ellipses: u64,
    /// Lines that end a sentence or a quotation.
    pub(super) punctuated: u64,
    pub(super) short: u64,
    /// Pieces between line feeds, of which there is one more than line feeds.
    pieces: u64,
}

/// The longest line that FineWeb calls short, in characters.
const SHORT_LINE: usize = 30;

impl Lines {
    fn of(text: &str) -> Lines {
        let lengths = LineLengths::of(text);
        let mut lines = Lines {
            lengths,
            longest: lengths.longest,
            bullets: 0,
            ellipses: 0,
            punctuated: 0,
            short: 0,
            pieces: 0,
        };
        for line in text.split('\n') {
            lines.pieces += 1;
            lines.bullets += u64::from(line.trim_start().starts_with('•'));
            let end = line.trim_end();
            lines.ellipses += u64::from(end.ends_with("...") || end.ends_with('…'));
            lines.punctuated += u64::from(line.ends_with(['.', '\'', '"', '!', '?']));
            lines.short += u64::from(line.chars().nth(SHORT_LINE).is_none());
        }
        lines
    }

    pub(super) fn mean_chars(&self) -> f64 {
        self.lengths.mean()
    }

    pub(super) fn share(&self, n: u64) -> f64 {
        n as f64 / self.pieces.max(1) as f64
    }
}

/// Numbers about words.
#[derive(Default)]
pub(super) struct Words {
    pub(super) words: u64,
    chars: u64,
    pub(super) alphabetic: u64,
    pub(super) stop_words: u64,
}

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

impl Words {
    fn of(text: &str) -> Words {
        let mut all = Words::default();
        for piece in text.split_whitespace() {
            let word = piece.trim_matches(|c: char| c.is_ascii_punctuation());
            if word.is_empty() {
                continue;
            }
            all.words += 1;
            all.chars += word.chars().count() as u64;
            all.alphabetic += u64::from(word.chars().any(char::is_alphabetic));
            all.stop_words += u64::from(STOP_WORDS.contains(&word));
        }
        all
    }

    pub(super) fn mean_chars(&self) -> f64 {
        self.chars as f64 / self.words.max(1) as f64
    }
}

/// What stands in a text twice.
pub(super) struct Duplicates {
    pub(super) line_share: f64,
    pub(super) line_char_share: f64,
    pub(super) paragraph_share: f64,
    pub(super) paragraph_char_share: f64,
    /// Of lines that are not blank, and of all characters but line feeds.
    pub(super) filled_line_char_share: f64,
}

impl Duplicates {
    fn of(text: &str) -> Duplicates {
        let chars = text.chars().count().max(1) as f64;
        let filled = text.chars().filter(|&c| c != '\n').count().max(1) as f64;
        let (lines, line_chars, all_lines) = repeated(text.lines());
        let (paragraphs, paragraph_chars, all_paragraphs) =
            repeated(text.trim().split("\n\n").map(|p| p.trim_start_matches('\n')).filter(|p| !p.is_empty()));
        let (_, filled_line_chars, _) = repeated(text.split('\n').filter(|line| !line.trim().is_empty()));
        Duplicates {
            line_share: lines as f64 / all_lines.max(1) as f64,
            line_char_share: line_chars as f64 / chars,
            paragraph_share: paragraphs as f64 / all_paragraphs.max(1) as f64,
            paragraph_char_share: paragraph_chars as f64 / chars,
            filled_line_char_share: filled_line_chars as f64 / filled,
        }
    }
}

/// Of some pieces: how many stood there before, their characters, and how many there are.
fn repeated<'a>(pieces: impl Iterator<Item = &'a str>) -> (u64, u64, u64) {
    let mut seen = HashSet::new();
    let (mut again, mut chars, mut all) = (0, 0, 0);
    for piece in pieces {
        all += 1;
        if !seen.insert(piece) {
            again += 1;
            chars += piece.chars().count() as u64;
        }
    }
    (again, chars, all)
}
