//! Each rule at its threshold from both sides.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::fs::FaultFs;

fn filter(toml: &str) -> Filter {
    let settings = Settings::from_toml(toml, Path::new("/lists")).unwrap();
    Filter::new(&FaultFs::new(), &settings).unwrap()
}

/// A filter with one rule at a threshold.
fn only(rule: &str, limit: f64) -> Filter {
    filter(&format!("preset = \"none\"\n[rules]\n{rule} = {limit}"))
}

fn verdict(filter: &Filter, text: &str) -> Option<String> {
    match filter.judge(text, "web") {
        Verdict::Keep(_) => None,
        Verdict::Reject { rule, .. } => Some(rule.to_owned()),
    }
}

/// `inside` is kept and `outside`, which is one step further, is not.
fn edge(rule: &str, preset: &str, limit: f64, inside: &str, outside: &str) {
    let named = RULES.iter().find(|one| one.name == rule).unwrap_or_else(|| panic!("no rule {rule}"));
    let column = ["zyda", "gopher", "fineweb", "code"].iter().position(|name| *name == preset).unwrap();
    assert_eq!(named.presets[column], Some(limit), "{rule} of {preset}");
    let filter = only(rule, limit);
    assert_eq!(verdict(&filter, inside), None, "{rule} inside");
    assert_eq!(verdict(&filter, outside).as_deref(), Some(rule), "{rule} outside");
}

#[test]
fn zydas_rules_hold_at_their_thresholds() {
    let x = |n: usize| "x".repeat(n);
    edge("min_chars", "zyda", 100.0, &"ä".repeat(100), &"ä".repeat(99));
    // Pieces of 3, 3, 3; with one letter less, of 3, 3, 2.
    edge("min_mean_word_chars", "zyda", 3.0, "abc def-ghi", "abc def-gh");
    // Breaks next to each other have empty pieces between them.
    edge("min_mean_word_chars", "zyda", 3.0, "abcdef/.ghi", "abcdef/.gh");
    edge(
        "max_mean_word_chars",
        "zyda",
        12.0,
        &format!("{} {}", x(12), x(12)),
        &format!("{} {}", x(12), x(13)),
    );
    edge("max_symbol_share", "zyda", 0.3, &format!("{}***", x(7)), &format!("{}****", x(9)));
    edge("max_symbol_share", "zyda", 0.3, "_ x x x„“!", "  x x x„“!?");
    edge("max_digit_share", "zyda", 0.2, &format!("{}12", x(8)), &format!("{}12", x(7)));
    let runs = |n: usize| format!("{} ", x(7)).repeat(n);
    edge("max_repeated_runs", "zyda", 50.0, &runs(50), &runs(51));
    edge("max_repeated_runs", "zyda", 50.0, &runs(50), &(runs(50) + "ééééééé"));
    edge("max_repeated_runs", "zyda", 50.0, &(runs(50) + "eeeeee éééééé ......."), &(runs(50) + "_______"));
}

#[test]
fn zydas_patterns_hold_at_their_thresholds() {
    let filter = filter("[rules]\nmin_chars = false\nmax_symbol_share = false\nmin_mean_word_chars = false");
    let of = |length: usize, piece: &str, n: usize| {
        let text = piece.repeat(n);
        format!("{text}{}", "word ".repeat(length.div_ceil(5))).chars().take(length).collect::<String>()
    };
    for (piece, length, most) in [
        ("xml", 1000, 10),
        ("<?xml version=", 10_000, 1),
        ("lorem ipsum", 1000, 2),
        ("https://", 1000, 2),
        ("<", 1000, 30),
        ("\":", 1000, 2),
        ("www.", 1000, 10),
    ] {
        assert_eq!(verdict(&filter, &of(length, piece, most)), None, "{piece} {most} times");
        assert_eq!(verdict(&filter, &of(length, piece, most + 1)).as_deref(), Some(piece), "{piece}");
    }
    // Shares are of the text as it is kept.
    let long_rule = format!("{}{}", of(991, "https://", 2), "-".repeat(1000));
    assert_eq!(verdict(&filter, &long_rule).as_deref(), Some("https://"));
}

#[test]
fn word_lists_hold_at_their_thresholds() {
    let fs = FaultFs::new();
    fs.create_dirs(Path::new("/lists")).unwrap();
    fs.write(Path::new("/lists/a.json"), b"{\"words\": [\"bad\", \"badword\", \"\"]}").unwrap();
    fs.write(Path::new("/lists/b.json"), b"[\"oops\"]").unwrap();
    fs.write(Path::new("/lists/c.txt"), b"darn\n\n  heck  \n").unwrap();
    let list = |name: &str, file: &str| format!("[[words]]\nname = \"{name}\"\nfile = \"{file}\"\n");
    let of = |name: &str, file: &str| {
        let toml = format!("preset = \"none\"\n{}", list(name, file));
        Filter::new(&fs, &Settings::from_toml(&toml, Path::new("/lists")).unwrap()).unwrap()
    };
    let text = |words: &[(&str, usize)], length: usize| {
        let start: String = words.iter().map(|(word, n)| format!("{word} ").repeat(*n)).collect();
        format!("{start}{}", ".".repeat(length - start.len()))
    };
    for (name, file, word, length, most) in [
        ("zh_pornsignals", "b.json", "oops", 9000, 1),
        ("sexual", "b.json", "oops", 90_000, 10),
        ("sexual", "c.txt", "heck", 2000, 2),
        ("profanity", "c.txt", "darn", 4000, 10),
        ("cursed", "b.json", "oops", 1000, 10),
    ] {
        let filter = of(name, file);
        assert_eq!(verdict(&filter, &text(&[(word, most)], length)), None, "{name} {most}");
        assert_eq!(verdict(&filter, &text(&[(word, most + 1)], length)).as_deref(), Some(name), "{name}");
    }
    // "badword" holds "bad": both count, as if each were searched for alone.
    let filter = of("sexual", "a.json");
    assert_eq!(verdict(&filter, &text(&[("badword", 5)], 90_000)), None);
    assert_eq!(verdict(&filter, &text(&[("badword", 5), ("bad", 1)], 90_000)).as_deref(), Some("sexual"));
    for broken in ["{\"word\": []}", "[1]", "\n"] {
        fs.write(Path::new("/lists/x.json"), broken.as_bytes()).unwrap();
        let settings = format!("{}max_count = 1", list("x", "x.json"));
        let settings = Settings::from_toml(&settings, Path::new("/lists")).unwrap();
        assert!(Filter::new(&fs, &settings).unwrap_err().to_string().contains("x.json"), "{broken}");
    }
}

#[test]
fn gophers_rules_hold_at_their_thresholds() {
    let words = |n: usize| "word ".repeat(n);
    edge("min_words", "gopher", 50.0, &words(50), &(words(49) + " - ..."));
    edge("max_words", "gopher", 100_000.0, &words(100_000), &words(100_001));
    edge("min_mean_word_length", "gopher", 3.0, "(abc) abc!", "(ab) abc!");
    edge("max_mean_word_length", "gopher", 10.0, "abcdefghij", "abcdefghijk");
    edge("max_hashes_per_word", "gopher", 0.1, &(words(10) + "#"), &(words(10) + "# #"));
    edge("max_ellipses_per_word", "gopher", 0.1, &(words(20) + "… ..."), &(words(20) + "… ... ..."));
    let bullets = |n: usize| "  • point\n".repeat(n) + "end";
    edge("max_bullet_lines", "gopher", 0.9, &bullets(9), &bullets(10));
    let lines = |n: usize, rest: usize| "and so on... \nmore…\n".repeat(n) + &"line\n".repeat(rest) + "end";
    edge("max_ellipsis_lines", "gopher", 0.3, &lines(3, 13), &lines(3, 12));
    edge("min_alphabetic_words", "gopher", 0.8, "a b c d 5", "a b c 4 5 f 7 h");
    edge("min_stop_words", "gopher", 2.0, "the end of it", "the end The OF it");
    edge("max_duplicate_lines", "gopher", 0.3, "a\na\nb\nc\nd\ne\nf\na\ng\na", "a\na\nb\nc\nd\ne\na\ng\na");
    // 20 of 100 characters, 20 of 99.
    let filler = |n: usize| (0..n).map(|i| char::from(b'a' + (i % 26) as u8)).collect::<String>();
    let twenty = "t".repeat(20);
    edge(
        "max_duplicate_line_chars",
        "gopher",
        0.2,
        &format!("{twenty}\n{twenty}\n{}", filler(58)),
        &format!("{twenty}\n{twenty}\n{}", filler(57)),
    );
    edge("max_duplicate_paragraphs", "gopher", 0.3, "a\n\na\n\nb\n\nc", "a\n\na\n\n\nb");
    edge(
        "max_duplicate_paragraph_chars",
        "gopher",
        0.2,
        &format!("{twenty}\n\n{twenty}\n\n{}", filler(56)),
        &format!("{twenty}\n\n{twenty}\n\n{}", filler(55)),
    );
}

#[test]
fn fineweb_and_code_rules_hold_at_their_thresholds() {
    let lines = |ends: usize, rest: usize| "It ends!\n".repeat(ends) + &"It does not\n".repeat(rest) + "no";
    edge("min_punctuated_lines", "fineweb", 0.12, &lines(13, 86), &lines(12, 87));
    let short = |short: usize, long: usize| {
        [vec!["s".repeat(30); short], vec!["l".repeat(31); long]].concat().join("\n")
    };
    edge("max_short_lines", "fineweb", 0.67, &short(66, 34), &short(67, 33));
    let one = |filler: usize| format!("y\ny\n\n \n \n{}", "f".repeat(filler));
    // One repeated character of 101, of 100; blank lines are not looked at.
    edge("max_repeated_line_chars", "fineweb", 0.01, &one(97), &one(96));
    edge("max_line_feeds_per_word", "fineweb", 0.3, "a b c d e f g h i\n\n\nj", "a b c d e f g h i\n\n\n\nj");
    edge("min_alphanumeric_share", "code", 0.25, "a{}(", "a{}()");
    edge("max_line_chars", "code", 1000.0, &"é".repeat(1000), &"é".repeat(1001));
    edge(
        "max_mean_line_chars",
        "code",
        100.0,
        &("x".repeat(100) + "\n").repeat(2),
        &("x".repeat(101) + "\n"),
    );
}

#[test]
fn every_rule_has_a_test_at_its_threshold_and_a_line_in_the_manual() {
    let tests: String = include_str!("tests.rs").split_whitespace().collect();
    let manual = include_str!("../../../../docs/DATA.md");
    for rule in RULES {
        assert!(tests.contains(&format!("edge(\"{}\",", rule.name)), "{rule:?}");
        assert!(manual.contains(&format!("`{}`", rule.name)), "{rule:?}");
    }
}

#[test]
fn long_runs_become_one_and_only_those_of_the_list() {
    let filter = filter("preset = \"none\"\ncollapse_runs = true");
    let kept = |text: &str| match filter.judge(text, "") {
        Verdict::Keep(text) => text.into_owned(),
        Verdict::Reject { .. } => unreachable!("there are no rules"),
    };
    for (c, least) in [
        ('-', 10),
        ('_', 10),
        ('/', 10),
        ('\\', 10),
        ('\n', 10),
        ('\r', 10),
        ('.', 10),
        (',', 10),
        (':', 10),
        ('?', 10),
        ('\u{a0}', 10),
        ('\t', 20),
        (' ', 40),
    ] {
        let run = |n: usize| c.to_string().repeat(n);
        for around in ["a", "é", ""] {
            let text = |n: usize| format!("{around}{}{around}", run(n));
            assert_eq!(kept(&text(least - 1)), text(least - 1), "{c:?}");
            assert_eq!(kept(&text(least)), text(1), "{c:?}");
            assert_eq!(kept(&text(3 * least + 1)), text(1), "{c:?}");
        }
    }
    let text = "=".repeat(100);
    assert_eq!(kept(&text), text);
    assert_eq!(kept(&format!("{}x{}", "-".repeat(12), ".".repeat(11))), "-x.");
}

#[test]
fn sources_can_be_passed_over_and_runs_left_alone() {
    let filter = filter("skip_sources = [\"starcoder\"]");
    assert_eq!(filter.judge("short", "starcoder"), Verdict::Keep("short".into()));
    assert!(matches!(filter.judge("short", "web"), Verdict::Reject { rule: "min_chars", .. }));
}

#[test]
fn settings_are_honoured_or_refused() {
    let refused = |toml: &str| Settings::from_toml(toml, Path::new("")).unwrap_err();
    for (toml, word) in [
        ("presett = \"zyda\"", "presett"),
        ("preset = \"c4\"", "c4"),
        ("[rules]\nmin_char = 1", "min_char"),
        ("[rules]\nmin_chars = true", "min_chars"),
        ("[rules]\nmin_chars = -1", "min_chars"),
        ("[rules]\nmin_chars = nan", "min_chars"),
        ("[[words]]\nname = \"mine\"\nfile = \"x\"", "mine"),
        ("[[words]]\nname = \"mine\"\nfile = \"x\"\nmax = 1", "max"),
        ("[[patterns]]\ntext = \"x\"", "`x` has no limit"),
        ("[[patterns]]\ntext = \"\"\nmax_count = 1", "empty"),
    ] {
        let error = refused(toml);
        assert!(error.contains(word), "{toml}: {error}");
    }
    let filter =
        filter("[rules]\nmin_chars = 3\nmax_digit_share = false\n[[patterns]]\ntext = \"q\"\nmax_count = 0");
    assert_eq!(verdict(&filter, "123"), None);
    assert_eq!(verdict(&filter, "12").as_deref(), Some("min_chars"));
    assert_eq!(verdict(&filter, "12q").as_deref(), Some("q"));
    assert_eq!(filter.config()["rules"]["min_chars"], 3.0);
    assert!(filter.config()["rules"].get("max_digit_share").is_none());
}

/// The definitions, word for word and slowly.
fn slow(text: &str) -> (u64, u64, u64, u64, u64) {
    let chars: Vec<char> = text.chars().collect();
    let breaks = chars
        .iter()
        .filter(|c| c.is_whitespace() || matches!(c, '-' | '/' | '\\' | '.' | '\u{1c}'..='\u{1f}'));
    let symbols = chars.iter().filter(|c| {
        !c.is_alphanumeric() && !c.is_whitespace() && **c != '_' && !('\u{1c}'..='\u{1f}').contains(*c)
    });
    let digits = chars.iter().filter(|c| c.is_numeric());
    let mut runs = 0;
    for run in chars.chunk_by(|a, b| a == b) {
        runs += u64::from(run.len() >= 7 && (run[0].is_alphanumeric() || run[0] == '_'));
    }
    (chars.len() as u64, breaks.count() as u64, symbols.count() as u64, digits.count() as u64, runs)
}

proptest! {
    #[test]
    fn fast_counts_are_the_slow_ones(text in "([ab\\-_. \\t\n1é漢½]{1,3}){0,200}|(a{5,9}|b{1,2}|é{6,8}|_{6,8}|.){0,300}") {
        let measures = Measures::new(&text, false);
        let (chars, breaks, symbols, digits, runs) = slow(&text);
        let share = |n: u64| n as f64 / chars.max(1) as f64;
        prop_assert_eq!(measures.chars(), chars);
        prop_assert_eq!(measures.mean_piece_chars(), (chars - breaks) as f64 / (breaks + 1) as f64);
        prop_assert_eq!(measures.symbol_share(), share(symbols));
        prop_assert_eq!(measures.digit_share(), share(digits));
        prop_assert_eq!(measures.repeated_runs(), runs);
    }
}
