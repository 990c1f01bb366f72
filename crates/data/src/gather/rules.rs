//! What is text worth learning from: rules on a file's name, then on its contents.
//!
//! They keep out what would teach a small model to copy: blobs, tables, generated code, licence texts. The digit rule
//! is Zyda's (`zyda/utils/filtering.py`); the others are about trees of source code.

use serde::Serialize;

use super::Kind;
use crate::filter::{LineLengths, digit_share};

/// Files of less than this many bytes are skipped.
pub(super) const MIN_BYTES: u64 = 200;
/// Files of more than this many bytes are skipped whole: a cut would end them in the middle of an item, and among
/// sources nearly all of them are tables.
pub(super) const MAX_BYTES: u64 = 256 << 10;

/// Why a file was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// A link, pipe or device; links are not followed.
    NotAFile,
    /// A file that cannot be opened or read.
    Unreadable,
    /// A name that starts with a dot, or a folder of build products.
    Hidden,
    /// Neither source code nor prose by its name.
    Extension,
    /// A lock file.
    Lock,
    /// Data that tests read: in a folder such as `testdata` and not source code, or an expected output.
    TestData,
    /// A licence, by name or by its opening words.
    Licence,
    /// Under 200 bytes.
    TooSmall,
    /// Over 256 KiB.
    TooLarge,
    /// Holds a NUL byte or is not UTF-8.
    Binary,
    /// Says of itself, or by its name, that a program wrote it.
    Generated,
    /// Lines too long to have been typed.
    LongLines,
    /// More than a fifth of the characters are digits.
    Digits,
    /// Equal to another file but for white space.
    Duplicate,
    /// Its package has given its share already.
    PackageShare,
    /// Not looked at: enough text was found before.
    NotNeeded,
}

const CODE: [&str; 16] = [
    "rs", "c", "h", "cc", "cpp", "hpp", "py", "js", "ts", "go", "java", "rb", "sh", "toml", "proto", "swift",
];
const PROSE: [&str; 5] = ["md", "markdown", "rst", "txt", "adoc"];
const BUILD: [&str; 4] = ["target", "node_modules", "__pycache__", "vendor"];
const DATA: [&str; 13] = [
    "data",
    "testdata",
    "test_data",
    "test-data",
    "fixtures",
    "snapshots",
    "corpus",
    "res",
    "assets",
    "resources",
    "proptest-regressions",
    "golden",
    "samples",
];
const LICENCES: [&str; 9] =
    ["license", "licence", "licenses", "copying", "copyright", "notice", "notices", "unlicense", "unlicence"];

/// Whether to go into a folder of that name.
pub(super) fn enter(folder: &str) -> bool {
    !folder.starts_with('.') && !BUILD.contains(&folder)
}

/// Judges a file by its path within its package, with `/` between parts.
pub(super) fn by_name(path: &str) -> Result<Kind, Rule> {
    let lower = path.to_lowercase();
    let mut parts = lower.rsplit('/');
    let name = parts.next().unwrap_or("");
    if name.starts_with('.') {
        return Err(Rule::Hidden);
    }
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    // A Rust file may well be called licenses.rs; a licence text is no source.
    let word = name.split(['.', '-', '_']).next().unwrap_or("");
    if LICENCES.contains(&word) && !CODE.contains(&extension) {
        return Err(Rule::Licence);
    }
    if extension == "lock" || matches!(name, "package-lock.json" | "go.sum") {
        return Err(Rule::Lock);
    }
    if name.starts_with("gen_") || stem.ends_with("_generated") || stem == "generated" {
        return Err(Rule::Generated);
    }
    if name.contains(".expected.") || parts.clone().any(|folder| folder == "expected") {
        return Err(Rule::TestData);
    }
    // Cargo publishes a generated Cargo.toml and keeps the author's beside it.
    if name == "cargo.toml.orig" || CODE.contains(&extension) {
        return Ok(Kind::Code);
    }
    if stem == "cmakelists" || (!PROSE.contains(&extension) && !matches!(name, "readme" | "changelog")) {
        return Err(Rule::Extension);
    }
    if parts.any(|folder| DATA.contains(&folder)) || lower.starts_with("tests/") || lower.contains("/tests/")
    {
        return Err(Rule::TestData);
    }
    Ok(Kind::Prose)
}

/// Judges a file by its bytes, and returns its text with `\n` line ends and without a byte order mark.
pub(super) fn by_contents(kind: Kind, bytes: Vec<u8>) -> Result<String, Rule> {
    if bytes.contains(&0) {
        return Err(Rule::Binary);
    }
    let text = String::from_utf8(bytes).map_err(|_| Rule::Binary)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n");
    let text = match kind {
        Kind::Code => without_licence_header(&text).to_owned(),
        Kind::Prose | Kind::DocProse => text,
    };
    if (text.trim().len() as u64) < MIN_BYTES {
        return Err(Rule::TooSmall);
    }
    if is_generated(&text) {
        return Err(Rule::Generated);
    }
    if kind == Kind::Prose && is_licence(&text) {
        return Err(Rule::Licence);
    }
    // Prose is often written with a paragraph per line.
    let (longest, mean) = if kind == Kind::Code { (1_000, 100.0) } else { (5_000, 1_000.0) };
    let lines = LineLengths::of(&text);
    if lines.mean() > mean || lines.longest > longest {
        return Err(Rule::LongLines);
    }
    if digit_share(&text) > 0.2 {
        return Err(Rule::Digits);
    }
    Ok(text)
}

/// The first 2,000 bytes, where a file says what it is.
fn opening(text: &str) -> &str {
    &text[..text.floor_char_boundary(2_000)]
}

fn is_generated(text: &str) -> bool {
    let opening = opening(text).to_lowercase();
    // Written in two parts, so that this file does not match itself.
    let marks =
        ["@gener\u{61}ted", "automatically gener\u{61}ted", "auto-gener\u{61}ted", "code gener\u{61}ted by"];
    marks.iter().any(|mark| opening.contains(mark)) || opening.contains("do not ed\u{69}t")
}

fn is_licence(text: &str) -> bool {
    let words: Vec<String> = opening(text)
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let words = words.join(" ");
    [
        "apache license version 2 0 january 2004",
        "permission is hereby granted free of charge",
        "redistribution and use in source and binary forms",
        "permission to use copy modify and or distribute this software",
        "permission to use copy modify and distribute this software",
        "mozilla public license version",
        "gnu general public license version",
        "gnu lesser general public license version",
        "boost software license version 1 0",
        "this is free and unencumbered software",
        "creative commons legal code",
        "this software is provided as is without any express or implied warranty",
        "unicode license v3",
        "eclipse public license v",
    ]
    .iter()
    .any(|opening| words.contains(opening))
}

/// Drops a first comment that speaks of copyright or licence: the same lines stand in every file of a package.
fn without_licence_header(text: &str) -> &str {
    let start = text.trim_start();
    let end = if start.starts_with("/*") {
        start.find("*/").map_or(0, |at| at + 2)
    } else {
        let comment = |line: &&str| {
            let line = line.trim_start();
            // `//!` begins the documentation of a module, not a header.
            (line.starts_with("//") && !line.starts_with("//!"))
                || (line.starts_with('#') && !line.starts_with("#["))
        };
        start.split_inclusive('\n').take_while(comment).map(str::len).sum()
    };
    let header = start[..end].to_lowercase();
    if header.contains("copyright") || header.contains("license") { start[end..].trim_start() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        for (path, expected) in [
            ("src/lib.rs", Ok(Kind::Code)),
            ("src/licenses.rs", Ok(Kind::Code)),
            ("data/build.py", Ok(Kind::Code)),
            ("Cargo.toml.orig", Ok(Kind::Code)),
            ("README.md", Ok(Kind::Prose)),
            ("README", Ok(Kind::Prose)),
            ("docs/guide.rst", Ok(Kind::Prose)),
            ("LICENSE-MIT", Err(Rule::Licence)),
            ("LICENSE.md", Err(Rule::Licence)),
            ("copying.txt", Err(Rule::Licence)),
            ("UNLICENSE", Err(Rule::Licence)),
            ("Cargo.lock", Err(Rule::Lock)),
            ("src/features/gen_Document.rs", Err(Rule::Generated)),
            ("src/db/generated.rs", Err(Rule::Generated)),
            ("src/generate.rs", Ok(Kind::Code)),
            ("src/out/expected/enum.rs", Err(Rule::TestData)),
            ("src/out/enum.expected.rs", Err(Rule::TestData)),
            ("tests/data/good.txt", Err(Rule::TestData)),
            ("benches/data/novel.txt", Err(Rule::TestData)),
            ("a/testdata/x.md", Err(Rule::TestData)),
            ("c/CMakeLists.txt", Err(Rule::Extension)),
            ("logo.png", Err(Rule::Extension)),
            ("Makefile", Err(Rule::Extension)),
            (".gitignore", Err(Rule::Hidden)),
        ] {
            assert_eq!(by_name(path), expected, "{path}");
        }
        assert!(enter("src") && !enter(".git") && !enter("target"));
    }

    fn repeated(line: &str) -> String {
        line.repeat(400usize.div_ceil(line.len()))
    }

    #[test]
    fn contents_are_judged_at_each_threshold_from_both_sides() {
        let judge = |kind, text: &str| by_contents(kind, text.as_bytes().to_vec()).map(|_| ());
        let line = "let x = answer();\n";
        assert_eq!(judge(Kind::Code, &repeated(line)), Ok(()));
        assert_eq!(judge(Kind::Code, &"a b\n".repeat(49)), Err(Rule::TooSmall));
        assert_eq!(judge(Kind::Code, &("a b\n".repeat(50) + "c")), Ok(()));
        assert_eq!(judge(Kind::Code, &(repeated(line) + "\0")), Err(Rule::Binary));
        assert_eq!(by_contents(Kind::Code, [repeated(line).as_bytes(), b"\xff"].concat()), Err(Rule::Binary));
        let with_line = |n: usize| repeated(line).repeat(10) + &"x".repeat(n) + "\n";
        assert_eq!(judge(Kind::Code, &with_line(1_000)), Ok(()));
        assert_eq!(judge(Kind::Code, &with_line(1_001)), Err(Rule::LongLines));
        assert_eq!(judge(Kind::Prose, &with_line(1_001)), Ok(()));
        assert_eq!(judge(Kind::Prose, &(with_line(5_000) + &repeated(line))), Ok(()));
        assert_eq!(judge(Kind::Prose, &(with_line(5_001) + &repeated(line))), Err(Rule::LongLines));
        assert_eq!(judge(Kind::Code, &format!("{}\n", "y".repeat(99)).repeat(4)), Ok(()));
        assert_eq!(judge(Kind::Code, &format!("{}\n", "y".repeat(101)).repeat(4)), Err(Rule::LongLines));
        assert_eq!(judge(Kind::Code, &"abcdefg89\n".repeat(40)), Ok(()));
        assert_eq!(judge(Kind::Code, &"abcdef789\n".repeat(40)), Err(Rule::Digits));
        let mark = format!("// @{} by a tool\n", "generated");
        assert_eq!(judge(Kind::Code, &(mark.clone() + &repeated(line))), Err(Rule::Generated));
        assert_eq!(judge(Kind::Code, &(repeated(line).repeat(6) + &mark)), Ok(()));
    }

    #[test]
    fn licence_texts_are_known_by_their_opening() {
        let mit = "The MIT License\n\nPermission is hereby granted,\n  free of charge, to any person obtaining a copy";
        let mit = format!("{mit}{}", " of this software".repeat(20));
        assert_eq!(by_contents(Kind::Prose, mit.clone().into_bytes()), Err(Rule::Licence));
        let read_me = format!("{}\n{mit}", "A crate that does things.\n".repeat(100));
        assert_eq!(by_contents(Kind::Prose, read_me.clone().into_bytes()), Ok(read_me));
    }

    #[test]
    fn licence_headers_are_cut_and_line_ends_made_alike() {
        let body = "fn main() {}\n".repeat(20);
        for header in [
            "// Copyright 2020 Someone.\n// See the LICENSE file.\n\n",
            "/* Licensed under\n * the MIT license */\n",
            "\u{feff}# Copyright (c) Someone\n",
        ] {
            let text = by_contents(Kind::Code, format!("{header}{body}").into_bytes()).unwrap();
            assert_eq!(text, body);
        }
        let other = format!("// What this file does.\n{body}");
        assert_eq!(by_contents(Kind::Code, other.replace('\n', "\r\n").into_bytes()).unwrap(), other);
        let docs = format!("//! Copyright law for machines.\n{body}");
        assert_eq!(by_contents(Kind::Code, docs.clone().into_bytes()).unwrap(), docs);
    }
}
