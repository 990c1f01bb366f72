//! The rules that compare a number with a threshold.

use super::measure::Measures;

/// When a number breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Below the threshold.
    Below,
    /// Above it.
    Above,
    /// At it or below.
    AtOrBelow,
    /// At it or above.
    AtOrAbove,
}

/// A rule. A share is in `0..=1`; characters are Unicode scalar values.
pub struct Rule {
    /// Its name in settings and counts.
    pub name: &'static str,
    /// What it demands.
    pub about: &'static str,
    pub(super) side: Side,
    pub(super) measure: fn(&Measures<'_>) -> f64,
    /// Thresholds of the presets `zyda`, `gopher`, `fineweb`, `code`.
    pub(super) presets: [Option<f64>; 4],
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Rule {
    pub(super) fn breaks(&self, measured: f64, limit: f64) -> bool {
        match self.side {
            Side::Below => measured < limit,
            Side::Above => measured > limit,
            Side::AtOrBelow => measured <= limit,
            Side::AtOrAbove => measured >= limit,
        }
    }
}

const fn rule(
    name: &'static str,
    side: Side,
    presets: [Option<f64>; 4],
    measure: fn(&Measures<'_>) -> f64,
    about: &'static str,
) -> Rule {
    Rule { name, about, side, measure, presets }
}

const fn zyda(limit: f64) -> [Option<f64>; 4] {
    [Some(limit), None, None, None]
}

const fn gopher(limit: f64) -> [Option<f64>; 4] {
    [None, Some(limit), Some(limit), None]
}

const fn fineweb(limit: f64) -> [Option<f64>; 4] {
    [None, None, Some(limit), None]
}

const fn code(limit: f64) -> [Option<f64>; 4] {
    [None, None, None, Some(limit)]
}

use Side::{Above, AtOrAbove, AtOrBelow, Below};

/// All rules, in the order in which they are looked at: the cheap ones first.
pub static RULES: &[Rule] = &[
    rule("min_chars", Below, [Some(100.0), None, None, Some(100.0)], |m| m.chars() as f64, "characters"),
    rule(
        "min_mean_word_chars",
        Below,
        zyda(3.0),
        |m| m.mean_piece_chars(),
        "mean characters of the pieces between white space and - / \\ . , empty ones included",
    ),
    rule("max_mean_word_chars", Above, zyda(12.0), |m| m.mean_piece_chars(), "the same"),
    rule(
        "max_symbol_share",
        Above,
        [Some(0.3), None, None, None],
        |m| m.symbol_share(),
        "share of characters that are neither letter, digit, underscore nor white space",
    ),
    rule(
        "min_alphanumeric_share",
        Below,
        code(0.25),
        |m| m.alphanumeric_share(),
        "share of characters that are letters or digits",
    ),
    rule(
        "max_digit_share",
        Above,
        [Some(0.2), None, None, Some(0.2)],
        |m| m.digit_share(),
        "share of characters that are digits",
    ),
    rule(
        "max_repeated_runs",
        Above,
        zyda(50.0),
        |m| m.repeated_runs() as f64,
        "places where a letter, digit or underscore stands seven times or more in a row",
    ),
    rule(
        "max_line_chars",
        Above,
        code(1000.0),
        |m| m.lines().longest as f64,
        "characters of the longest line",
    ),
    rule("max_mean_line_chars", Above, code(100.0), |m| m.lines().mean_chars(), "mean characters of a line"),
    rule("min_words", Below, gopher(50.0), |m| m.words().words as f64, "words"),
    rule("max_words", Above, gopher(100_000.0), |m| m.words().words as f64, "words"),
    rule("min_mean_word_length", Below, gopher(3.0), |m| m.words().mean_chars(), "mean characters of a word"),
    rule("max_mean_word_length", Above, gopher(10.0), |m| m.words().mean_chars(), "the same"),
    rule("max_hashes_per_word", Above, gopher(0.1), |m| m.per_word(m.hashes()), "`#` per word"),
    rule("max_ellipses_per_word", Above, gopher(0.1), |m| m.per_word(m.ellipses()), "`...` and `…` per word"),
    rule(
        "max_bullet_lines",
        Above,
        gopher(0.9),
        |m| m.lines().share(m.lines().bullets),
        "share of lines that begin with `•`",
    ),
    rule(
        "max_ellipsis_lines",
        Above,
        gopher(0.3),
        |m| m.lines().share(m.lines().ellipses),
        "share of lines that end with `...` or `…`",
    ),
    rule(
        "min_alphabetic_words",
        Below,
        gopher(0.8),
        |m| m.per_word(m.words().alphabetic),
        "share of words with a letter",
    ),
    rule(
        "min_stop_words",
        Below,
        gopher(2.0),
        |m| m.words().stop_words as f64,
        "occurrences of the, be, to, of, and, that, have, with",
    ),
    rule(
        "max_duplicate_lines",
        Above,
        gopher(0.3),
        |m| m.duplicates().line_share,
        "share of lines that stood there before",
    ),
    rule(
        "max_duplicate_line_chars",
        Above,
        gopher(0.2),
        |m| m.duplicates().line_char_share,
        "their share of characters",
    ),
    rule(
        "max_duplicate_paragraphs",
        Above,
        gopher(0.3),
        |m| m.duplicates().paragraph_share,
        "share of paragraphs that stood there before",
    ),
    rule(
        "max_duplicate_paragraph_chars",
        Above,
        gopher(0.2),
        |m| m.duplicates().paragraph_char_share,
        "their share of characters",
    ),
    rule(
        "min_punctuated_lines",
        AtOrBelow,
        fineweb(0.12),
        |m| m.lines().share(m.lines().punctuated),
        "share of lines that end with . ' \" ! or ?; must be above the threshold",
    ),
    rule(
        "max_short_lines",
        AtOrAbove,
        fineweb(0.67),
        |m| m.lines().share(m.lines().short),
        "share of lines of at most 30 characters; must be below the threshold",
    ),
    rule(
        "max_repeated_line_chars",
        AtOrAbove,
        fineweb(0.01),
        |m| m.duplicates().filled_line_char_share,
        "share of characters, without line feeds, in lines that stood there before; must be below the threshold",
    ),
    rule(
        "max_line_feeds_per_word",
        Above,
        fineweb(0.3),
        |m| m.per_word(m.line_feeds()),
        "line feeds per word",
    ),
];
