//! `zamba demo` from a folder of text to a report, in few steps.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Bench, ids, interrupt};
use serde_json::Value;

/// A folder of small programs with documentation, unlike one another, and some files that must be left out.
fn write_texts(bench: &Bench) {
    let dir = bench.path("texts");
    std::fs::create_dir(&dir).unwrap();
    let words =
        ["buffer", "length", "index", "parser", "token", "error", "stream", "header", "value", "offset"];
    let word = |i: usize| words[(i * 7 + i / 10) % words.len()];
    for package in 0..24 {
        let src = dir.join(format!("crate{package}/src"));
        std::fs::create_dir_all(&src).unwrap();
        for file in 0..2 {
            let mut text = String::new();
            for item in 0..8 {
                let n = package * 101 + file * 37 + item * 11;
                let (a, b, c) = (word(n), word(n + 3), word(n / 3 + 1));
                text.push_str(&format!(
                    "/// Reads the {a} of the {b} and returns what follows, unless the {c} number {n} is not there yet.\n\
                     /// The {c} must have been checked by the caller, since nothing else looks at the {a} again.\n\
                     pub fn {a}_{b}_{n}({c}: &[u8]) -> Option<usize> {{\n    \
                     let {a} = {c}.len() / {};\n    if {a} > {n} {{ Some({a}) }} else {{ None }}\n}}\n\n",
                    n % 9 + 1
                ));
            }
            std::fs::write(src.join(format!("file{file}.rs")), text).unwrap();
        }
    }
    let copied = std::fs::read_to_string(dir.join("crate3/src/file0.rs")).unwrap();
    std::fs::write(
        dir.join("crate4/src/copied.rs"),
        copied.replacen("following", "behind", 1) + "// The end.\n",
    )
    .unwrap();
    let long = "A text that is long enough to be looked at, if only its name were another one. ".repeat(5);
    std::fs::write(dir.join("crate0/LICENSE"), &long).unwrap();
    std::fs::write(dir.join("crate0/picture.png"), &long).unwrap();
    std::fs::write(dir.join("crate1/guide.md"), &long).unwrap();
    std::fs::write(dir.join("crate2/guide.md"), &long).unwrap();
}

fn demo(bench: &Bench, out: &str, steps: &str) -> Value {
    bench.run(["demo", "--text", "texts", "--out", out, "--steps", steps, "--seed", "3", "--json"]).json()
}

/// All that must not depend on the time of day.
fn numbers(summary: &Value) -> Value {
    let phases: Vec<_> = summary["run"]["phases"].as_array().unwrap().iter().collect();
    serde_json::json!([summary["bits_per_byte"], summary["samples"], summary["corpus"], phases])
}

#[test]
fn a_life_in_six_steps() {
    let bench = Bench::new();
    write_texts(&bench);
    let summary = demo(&bench, "out", "6");

    // What is said.
    let corpus = &summary["corpus"];
    assert_eq!(corpus["left_out"]["licence"]["files"], 1, "{corpus}");
    assert_eq!(corpus["left_out"]["extension"]["files"], 1, "{corpus}");
    assert_eq!(corpus["left_out"]["duplicate"]["files"], 1, "{corpus}");
    for part in corpus["cleaned"].as_array().unwrap() {
        let gone = ["equal", "near"].map(|name| part[name].as_u64().unwrap()).iter().sum::<u64>()
            + part["rejected"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
        assert_eq!(part["gathered"].as_u64().unwrap() - gone, part["documents"].as_u64().unwrap(), "{part}");
    }
    // A copy of a file with one word changed, in another package.
    assert_eq!(corpus["cleaned"][0]["near"], 1, "{corpus}");
    assert_eq!(corpus["split"]["by_family"], true);
    assert_eq!(summary["run"]["steps"], 6);
    let phases = summary["run"]["phases"].as_array().unwrap();
    assert_eq!(phases.iter().map(|p| p["steps"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 2]);
    assert_eq!(phases[1]["sources"].as_array().unwrap().len(), 2, "annealing replays phase 1");
    let parts = summary["bits_per_byte"].as_array().unwrap();
    assert_eq!(parts.len(), 2);
    for part in parts {
        for model in ["unigram", "gzip", "phase1", "phase2"] {
            let bits = part[model].as_f64().unwrap();
            assert!(bits.is_finite() && bits > 0.0, "{model}: {part}");
        }
        assert!(part["bytes"].as_u64().unwrap() > 500, "{part}");
    }

    // What is left.
    let files =
        ["data", "demo.json", "phase1", "phase2", "recipe.toml", "report.html", "run", "text", "tokenizer"];
    assert_eq!(bench.names("out"), files);
    let mark: Value = serde_json::from_slice(&std::fs::read(bench.path("out/demo.json")).unwrap()).unwrap();
    assert_eq!((&mark["finished"], numbers(&mark["summary"])), (&Value::Bool(true), numbers(&summary)));
    check_report(&std::fs::read_to_string(bench.path("out/report.html")).unwrap(), &summary);
    for model in ["out/phase1", "out/phase2"] {
        let args =
            ["generate", "-m", model, "-p", "pub fn", "-n", "4", "--temp", "0", "--ignore-eos", "--json"];
        assert_eq!(ids(&bench.run(args).json()["tokens"]).len(), 4);
    }
    let exported =
        |phase: &str| std::fs::read(bench.path("out").join(phase).join("model.safetensors")).unwrap();
    assert_ne!(exported("phase1"), exported("phase2"));

    // The same again, over the old one, on another number of threads.
    let again =
        ["demo", "--text", "texts", "--out", "out", "--steps", "6", "--seed", "3", "--json", "-t", "1"];
    let again = bench.run(again);
    assert!(again.err.contains("replacing the demo in out"), "{}", again.err);
    assert_eq!(numbers(&again.json()), numbers(&summary));
}

#[track_caller]
fn check_report(html: &str, summary: &Value) {
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    for word in [
        "<svg",
        "prefers-color-scheme",
        "viewport",
        "unigram",
        "gzip -9",
        "What annealing did",
        "exact duplicates",
    ] {
        assert!(html.contains(word), "no {word}");
    }
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        // The name space of SVG is no address that anything is loaded from.
        let html = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!html.contains(outside), "the page must need nothing else: {outside}");
    }
    for part in summary["bits_per_byte"].as_array().unwrap() {
        for model in ["unigram", "gzip", "phase1", "phase2"] {
            let cell = format!("<td class=\"n\">{:.3}</td>", part[model].as_f64().unwrap());
            assert!(html.contains(&cell), "no {cell}");
        }
    }
    assert_eq!(html.matches("<pre><b>").count(), 4, "a sample of code and of prose from both phases");
}

#[test]
fn a_run_that_is_stopped_says_how_to_go_on() {
    let bench = Bench::new();
    write_texts(&bench);
    let mut command = bench.command(["demo", "--text", "texts", "--out", "out", "--steps", "100000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&bench.path("out/run/log.jsonl"));
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("zamba train out/recipe.toml --out out/run --resume"), "{err}");
    assert!(err.lines().last().unwrap().starts_with("zamba: interrupted; "), "{err}");
    assert!(bench.path("out/run/LATEST").exists());
    assert!(!bench.path("out/report.html").exists());
}

/// Waits until the log has a step in it.
fn wait_for_line(path: &Path) {
    let limit = Instant::now() + Duration::from_secs(120);
    while std::fs::metadata(path).map_or(0, |meta| meta.len()) == 0 {
        assert!(Instant::now() < limit, "no step in two minutes");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn other_folders_and_odd_values_are_refused() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("mine")).unwrap();
    bench.write("mine/notes.txt", "mine");
    let refused = bench.run(["demo", "--out", "mine"]);
    assert!(refused.fails(1).contains("mine"), "{}", refused.err);
    assert_eq!(bench.names("mine"), ["notes.txt"]);
    let refused = bench.run(["demo", "--out", "mine/notes.txt"]);
    assert!(refused.fails(1).contains("not a folder"), "{}", refused.err);
    for minutes in ["0", "-1", "NaN", "inf", "x"] {
        bench.run(["demo", &format!("--minutes={minutes}")]).fails(2);
    }
    for steps in ["0", "1", "x"] {
        bench.run(["demo", "--steps", steps]).fails(2);
    }
    bench.run(["demo", "--steps", "5", "--minutes", "2"]).fails(2);

    // Where there is no text, or too little, nothing is made.
    std::fs::create_dir(bench.path("empty")).unwrap();
    for text in ["nowhere", "empty"] {
        let failed = bench.run(["demo", "--text", text, "--out", "out", "--steps", "2"]);
        assert_eq!(failed.code, Some(1), "{}", failed.err);
        assert!(!bench.path("out").exists(), "{}", failed.err);
    }
}
