//! From text to hashes of its n-grams.
//!
//! Normalisation is Zyda's: canonical composition (NFC), lower case, ASCII punctuation removed, white space
//! collapsed. A word is what then stands between white space; Zyda's tokenizer also splits some contractions. The n-grams
//! of a text shorter than n units are one: all of it.
//!
//! Hashes, all in wrapping 64-bit arithmetic, so that others can compute them too:
//! - a word: FNV-1a of its UTF-8 bytes, through the finaliser of MurmurHash3 (`fmix64`); a character: `fmix64` of its
//!   code point plus 1;
//! - an n-gram of units `u_0 .. u_(n-1)`: the upper half of `fmix64(sum of u_i * BASE^(n-1-i))`.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::{Settings, Unit};

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
/// Multiplier of the rolling hash: the odd number nearest to 2^64 divided by the golden ratio.
pub const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The 64-bit finaliser of MurmurHash3: a bijection in which every input bit moves every output bit.
#[inline]
pub fn fmix64(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Cuts texts into n-grams; keeps its buffers from one text to the next.
#[derive(Debug, Clone)]
pub struct Shingler {
    unit: Unit,
    n: usize,
    /// `BASE^n`.
    power: u64,
    units: Vec<u64>,
    hashes: Vec<u32>,
}

impl Shingler {
    /// For n-grams of these settings.
    pub fn new(settings: &Settings) -> Shingler {
        let power = (0..settings.ngram).fold(1u64, |power, _| power.wrapping_mul(BASE));
        Shingler { unit: settings.unit, n: settings.ngram, power, units: Vec::new(), hashes: Vec::new() }
    }

    /// The hash of every n-gram of `text`, in order, repeated ones too; empty if the text has no unit.
    pub fn hashes(&mut self, text: &str) -> &[u32] {
        self.units.clear();
        self.hashes.clear();
        match self.unit {
            Unit::Word => words(text, &mut self.units),
            Unit::Char => characters(text, &mut self.units),
        }
        let mut rolling = 0u64;
        for (i, &unit) in self.units.iter().enumerate() {
            // One multiplication in the chain from step to step.
            let gone = if i < self.n { 0 } else { self.units[i - self.n].wrapping_mul(self.power) };
            rolling = rolling.wrapping_mul(BASE).wrapping_add(unit.wrapping_sub(gone));
            if i + 1 >= self.n {
                self.hashes.push((fmix64(rolling) >> 32) as u32);
            }
        }
        if self.hashes.is_empty() && !self.units.is_empty() {
            self.hashes.push((fmix64(rolling) >> 32) as u32);
        }
        &self.hashes
    }
}

/// What a byte of ASCII does to a word: ends it, is passed over, or is taken in lower case.
const ASCII: [u8; 128] = {
    let mut table = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        let c = byte as u8;
        table[byte] = match c {
            b' ' | b'\t'..=b'\r' => SPACE,
            _ if c.is_ascii_punctuation() => SKIPPED,
            _ => c.to_ascii_lowercase(),
        };
        byte += 1;
    }
    table
};
/// Stand-ins in the table for bytes that are never taken.
const SPACE: u8 = b' ';
const SKIPPED: u8 = b'!';

/// A word that is being read.
struct Word {
    hash: u64,
    begun: bool,
}

impl Word {
    const NONE: Word = Word { hash: FNV_OFFSET, begun: false };

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        self.begun = true;
    }

    #[inline]
    fn end(&mut self, units: &mut Vec<u64>) {
        if self.begun {
            units.push(fmix64(self.hash));
            *self = Word::NONE;
        }
    }

    #[inline]
    fn ascii(&mut self, byte: u8, units: &mut Vec<u64>) {
        match ASCII[usize::from(byte)] {
            SPACE => self.end(units),
            SKIPPED => {}
            taken => self.byte(taken),
        }
    }

    fn char(&mut self, c: char, units: &mut Vec<u64>) {
        if c.is_ascii() {
            self.ascii(c as u8, units);
        } else if c.is_whitespace() {
            self.end(units);
        } else {
            for lower in c.to_lowercase() {
                lower.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| self.byte(byte));
            }
        }
    }
}

fn words(text: &str, units: &mut Vec<u64>) {
    let mut word = Word::NONE;
    if text.is_ascii() {
        text.bytes().for_each(|byte| word.ascii(byte, units));
    } else {
        composed(text, |c| word.char(c, units));
    }
    word.end(units);
}

fn characters(text: &str, units: &mut Vec<u64>) {
    let mut space = false;
    composed(text, |c| {
        if c.is_whitespace() {
            space = !units.is_empty();
        } else if !c.is_ascii_punctuation() {
            if space {
                units.push(fmix64(u64::from(b' ') + 1));
                space = false;
            }
            units.extend(c.to_lowercase().map(|lower| fmix64(u64::from(u32::from(lower)) + 1)));
        }
    });
}

/// The characters of the text's canonical composition.
fn composed(text: &str, mut each: impl FnMut(char)) {
    // Nearly all text is composed already, and the check is cheaper than composing.
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        text.chars().for_each(&mut each);
    } else {
        text.nfc().for_each(&mut each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn units(unit: Unit, text: &str) -> Vec<u64> {
        let mut units = Vec::new();
        match unit {
            Unit::Word => words(text, &mut units),
            Unit::Char => characters(text, &mut units),
        }
        units
    }

    fn shingles(unit: Unit, n: usize, text: &str) -> Vec<u32> {
        Shingler::new(&Settings { unit, ngram: n, ..Settings::default() }).hashes(text).to_vec()
    }

    #[test]
    fn normalisation_passes_over_what_it_should() {
        let same = |a: &str, b: &str| {
            assert_eq!(units(Unit::Word, a), units(Unit::Word, b), "{a} and {b}");
            assert_eq!(units(Unit::Char, a), units(Unit::Char, b), "{a} and {b}");
        };
        same("Hello, World!", "hello world");
        same("  a\t\n b\u{a0}c ", "a b c");
        same("caf\u{e9} \u{c9}t\u{e9}", "cafe\u{301} e\u{301}t\u{e9}");
        same("it's", "its");
        same("?!", "");
        assert_ne!(units(Unit::Word, "ab c"), units(Unit::Word, "a bc"));
        assert_ne!(units(Unit::Char, "ab c"), units(Unit::Char, "a bc"));
        assert_eq!(units(Unit::Word, "one two  three").len(), 3);
        assert_eq!(units(Unit::Char, " one two ").len(), 7);
    }

    #[test]
    fn a_short_text_is_one_ngram_and_an_empty_one_none() {
        for n in [2, 13] {
            assert_eq!(shingles(Unit::Word, n, "alone").len(), 1);
            assert_eq!(shingles(Unit::Word, n, ""), [] as [u32; 0]);
            assert_eq!(shingles(Unit::Word, n, " .,; "), [] as [u32; 0]);
        }
        let words: Vec<String> = (0..14).map(|i| format!("w{i}")).collect();
        assert_eq!(shingles(Unit::Word, 13, &words[..12].join(" ")).len(), 1);
        assert_eq!(shingles(Unit::Word, 13, &words[..13].join(" ")).len(), 1);
        assert_eq!(shingles(Unit::Word, 13, &words.join(" ")).len(), 2);
    }

    proptest! {
        /// The rolling hash is the sum of its definition, and ASCII text does not depend on the path it takes.
        #[test]
        fn rolling_is_the_definition(text in "[a-zA-Z ,.\u{e9}\u{301}\n]{0,80}", n in 1usize..6) {
            for unit in [Unit::Word, Unit::Char] {
                let units = units(unit, &text);
                let sum = |part: &[u64]| part.iter().fold(0u64, |sum, &u| sum.wrapping_mul(BASE).wrapping_add(u));
                let mut expected: Vec<u32> = units.windows(n).map(|w| (fmix64(sum(w)) >> 32) as u32).collect();
                if expected.is_empty() && !units.is_empty() {
                    expected.push((fmix64(sum(&units)) >> 32) as u32);
                }
                prop_assert_eq!(shingles(unit, n, &text), expected);
            }
            let ascii: String = text.chars().filter(char::is_ascii).collect();
            let mut slow = Vec::new();
            let mut word = Word::NONE;
            ascii.chars().for_each(|c| word.char(c, &mut slow));
            word.end(&mut slow);
            prop_assert_eq!(units(Unit::Word, &ascii), slow);
        }
    }
}
