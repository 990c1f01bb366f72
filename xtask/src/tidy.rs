//! The rules of the house that a program can hold (ARCHITECTURE.md has the reasons).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::steps::{Result, root};

/// Longest source file that can be read in a sitting, in lines.
const LONGEST: usize = 900;

/// Files that may contain unsafe code. Every other crate forbids it and this one denies it by default.
const UNSAFE: &[&str] = &[
    "crates/kernels/src/cpu/amx/bf16.rs",
    "crates/kernels/src/cpu/amx/column.rs",
    "crates/kernels/src/cpu/amx/int8.rs",
    "crates/kernels/src/cpu/amx/mod.rs",
    "crates/kernels/src/cpu/isa.rs",
    "crates/kernels/src/cpu/limits.rs",
    "crates/kernels/src/cpu/pack.rs",
    "crates/kernels/src/cpu/pool.rs",
    "crates/kernels/src/cpu/split.rs",
    "crates/kernels/src/cpu/x86.rs",
    "crates/kernels/src/cpu/x86_int.rs",
    // Maps files.
    "crates/kernels/src/mem.rs",
    // An allocator that counts, in the test that kernels do not allocate.
    "crates/kernels/tests/allocation.rs",
];

/// Which members of the workspace each member may depend on.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("zamba", &["zamba-kernels"]),
    ("eval", &["zamba", "zamba-kernels"]),
    ("data", &["zamba"]),
    ("train", &["zamba", "zamba-kernels", "zamba-data", "zamba-eval"]),
    ("serve", &["zamba", "zamba-kernels"]),
    ("cli", &["zamba", "zamba-kernels", "zamba-data", "zamba-eval", "zamba-train", "zamba-serve"]),
    ("xtask", &["zamba-kernels"]),
];

/// Rooms that neither print nor read the environment: that is for `cli` alone.
const QUIET: &[&str] = &["kernels", "zamba", "eval", "data", "train", "serve"];
const PRINTING: &[&str] = &["println!", "eprintln!", "print!(", "eprint!(", "dbg!("];
const ENVIRONMENT: &[&str] = &["env::var", "env::vars", "env::set_var", "option_env!"];

/// Marks of unfinished work. Written in two pieces so that this file passes its own check.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Names of places that exist on one machine or network only.
const PLACES: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("arti", "factory"),
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
];

/// Checks every file that git tracks or would track.
pub(crate) fn check() -> Result {
    let root = root();
    let mut wrong = vec![];
    for path in files(&root)? {
        // A file that is deleted but not yet committed is still listed.
        let Ok(bytes) = fs::read(root.join(&path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            wrong.extend(wrong_in(&path, &text));
        }
    }
    wrong.extend(
        UNSAFE.iter().filter(|p| !root.join(p).exists()).map(|p| format!("{p}: listed here, not found")),
    );
    for line in &wrong {
        println!("    {line}");
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} rules are broken", wrong.len())) }
}

fn files(root: &Path) -> Result<Vec<String>> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(args).current_dir(root).output();
    let output = output.map_err(|e| format!("git does not start: {e}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let mut all: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    all.sort();
    all.dedup();
    Ok(all)
}

/// All that is wrong in one file.
fn wrong_in(path: &str, text: &str) -> Vec<String> {
    let mut wrong = vec![];
    if path.ends_with("Cargo.lock") {
        return wrong;
    }
    words(path, text, &mut wrong);
    if path.ends_with(".rs") || path.ends_with(".py") {
        let lines = text.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{path}: {lines} lines, {LONGEST} at most"));
        }
    }
    if path.ends_with(".rs") {
        rust(path, text, &mut wrong);
    }
    if path.ends_with("Cargo.toml") && path != "Cargo.toml" {
        manifest(path, text, &mut wrong);
    }
    wrong
}

/// Words that stand in no file.
fn words(path: &str, text: &str, wrong: &mut Vec<String>) {
    for (i, line) in text.lines().enumerate() {
        for word in PLACES.iter().filter(|word| line.contains(**word)) {
            wrong.push(format!("{path}:{}: names a place that others do not have: {word}", i + 1));
        }
        let marks = line.split(|c: char| !c.is_ascii_alphanumeric());
        for word in marks.filter(|word| UNFINISHED.contains(word)) {
            wrong.push(format!("{path}:{}: unfinished: {word}", i + 1));
        }
    }
}

/// Rules for Rust sources.
fn rust(path: &str, text: &str, wrong: &mut Vec<String>) {
    let lifted = text.lines().any(|l| l.trim_start().starts_with("#") && l.contains("allow(unsafe_code"));
    if lifted && !UNSAFE.contains(&path) {
        wrong.push(format!("{path}: unsafe code is for {} alone", UNSAFE.join(", ")));
    }
    let Some((room, file)) = path.strip_prefix("crates/").and_then(|p| p.split_once("/src/")) else { return };
    if room == "zamba" && text.to_lowercase().contains("cuda") {
        wrong.push(format!("{path}: the model never names a device"));
    }
    let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
    let test_file = file.ends_with("tests.rs") || file.contains("tests/");
    if !QUIET.contains(&room) || test_file {
        return;
    }
    for (i, line) in text[..tests].lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        for word in PRINTING.iter().chain(ENVIRONMENT).filter(|word| calls(code, word)) {
            wrong.push(format!("{path}:{}: {word} is for the cli alone", i + 1));
        }
    }
}

/// Whether `word` stands in `code` and is not the end of a longer word, as `print!(` is of `eprint!(`.
fn calls(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Rules for the manifest of a member.
fn manifest(path: &str, text: &str, wrong: &mut Vec<String>) {
    let room = path.trim_end_matches("/Cargo.toml").trim_start_matches("crates/");
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(e) => return wrong.push(format!("{path}: {}", e.message())),
    };
    let Some((_, allowed)) = MAY_DEPEND.iter().find(|(name, _)| *name == room) else {
        return wrong.push(format!("{path}: the table of rooms in xtask/src/tidy.rs lacks {room:?}"));
    };
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(list) = table.get(section).and_then(|x| x.as_table()) else { continue };
        for name in list.keys().filter(|name| *name == "zamba" || name.starts_with("zamba-")) {
            if !allowed.contains(&name.as_str()) {
                wrong.push(format!("{path}: {room} may not depend on {name}"));
            }
        }
    }
    let lints = table.get("lints").and_then(|x| x.as_table());
    let inherited = lints.and_then(|x| x.get("workspace")).and_then(|x| x.as_bool()) == Some(true);
    let own = lints.and_then(|x| x.get("rust")).and_then(|x| x.get("unsafe_code")).and_then(|x| x.as_str());
    if !(inherited || room == "kernels" && own == Some("deny")) {
        wrong.push(format!("{path}: lints are those of the workspace"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINTS: &str = "[lints]\nworkspace = true\n";

    #[test]
    fn clean_files_pass() {
        assert!(wrong_in("crates/zamba/src/a.rs", "//! Sums.\nfn f() {}\n").is_empty());
        assert!(wrong_in("crates/kernels/src/cpu/pool.rs", "#![allow(unsafe_code)]\n").is_empty());
        assert!(wrong_in("crates/cli/src/main.rs", "fn f() { println!(\"x\") }").is_empty());
        assert!(
            wrong_in("crates/zamba/src/a.rs", "#[cfg(test)]\nmod tests { fn f() { println!() } }").is_empty()
        );
        let train = format!("[dependencies]\nzamba-data = {{ workspace = true }}\n{LINTS}");
        assert!(wrong_in("crates/train/Cargo.toml", &train).is_empty());
    }

    #[test]
    fn each_rule_can_fail() {
        let long = "x\n".repeat(LONGEST + 1);
        let upward = format!("[dependencies]\nzamba-train = {{ workspace = true }}\n{LINTS}");
        let sideways = format!("[dev-dependencies]\nzamba-train = {{ workspace = true }}\n{LINTS}");
        for (path, text, says) in [
            ("a.md", concat!("fn TO", "DO()"), "unfinished"),
            ("a.toml", concat!("path = \"/ro", "ot/x\""), "names a place"),
            ("xtask/src/a.rs", long.as_str(), "lines"),
            ("crates/zamba/src/a.rs", "#![allow(unsafe_code)]", "unsafe code"),
            ("crates/zamba/src/a.rs", "// With Cuda.", "never names a device"),
            ("crates/train/src/a.rs", "fn f() { eprintln!(\"x\") }", "cli alone"),
            ("crates/data/src/a.rs", "let x = std::env::var(\"X\");", "cli alone"),
            ("crates/zamba/Cargo.toml", upward.as_str(), "may not depend"),
            ("crates/serve/Cargo.toml", sideways.as_str(), "may not depend"),
            ("crates/new/Cargo.toml", LINTS, "lacks"),
            ("crates/train/Cargo.toml", "[package]", "lints"),
        ] {
            let wrong = wrong_in(path, text);
            assert_eq!(wrong.len(), 1, "{path}: {wrong:?}");
            assert!(wrong[0].contains(says), "{wrong:?}");
        }
    }

    #[test]
    fn unfinished_marks_are_whole_words() {
        assert!(wrong_in("a.md", concat!("a", "XX", "Xb and TO", "DOS")).is_empty());
    }
}
