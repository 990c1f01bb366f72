//! From text on disk to a trained checkpoint, by commands alone.

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{Bench, ids};
use serde_json::{Value, json};

/// A bench with a tokenizer, a shard of text, and a recipe of two phases over it.
fn prepared(steps: u64) -> Bench {
    let bench = Bench::new();
    let lines =
        (0..60).map(|i| json!({"text": format!("line {i} of the text, number {}", i * i)}).to_string());
    bench.write("text.jsonl", lines.collect::<Vec<_>>().join("\n"));
    let learned =
        ["data", "tokenizer", "--input", "text.jsonl", "--vocab-size", "280", "--out", "tok", "--json"];
    let learned = bench.run(learned).json();
    assert_eq!((&learned["documents"], &learned["documents_sampled"]), (&json!(60), &json!(60)));
    let tokenize =
        ["data", "tokenize", "--input", "text.jsonl", "--tokenizer", "tok", "--out", "shards/text", "--json"];
    let shard = bench.run(tokenize).json();
    assert_eq!(shard["manifest"]["documents"], 60);
    let phase = |name: &str, more: &str| {
        format!(
            "[[phase]]\nname = \"{name}\"\nsteps = {steps}\npeak = 1e-3\nschedule = {{ kind = \"constant\" }}\n\
             sources = [{{ name = \"text\", path = \"shards/text\", weight = 1 }}]\n{more}"
        )
    };
    bench.write("c.json", common::config().to_string());
    bench.write(
        "run.toml",
        format!(
            "seed = 3\nmodel = \"c.json\"\ntokenizer = \"tok/tokenizer.json\"\nsequence = 32\nmicro_batch = 2\n\
             global_batch = 4\ncheckpoint_every = {steps}\n{}{}",
            phase("one", ""),
            phase("two", "replay = { phase = \"one\", fraction = 0.5 }\n")
        ),
    );
    bench
}

#[test]
fn text_becomes_a_model_that_talks() {
    let bench = prepared(3);
    let inspect =
        ["data", "inspect", "--input", "shards/text", "--document", "0", "--tokenizer", "tok", "--json"];
    let inspected = bench.run(inspect).json();
    assert_eq!(inspected["text"], "<s>line 0 of the text, number 0</s>");
    assert_eq!(ids(&inspected["tokens"])[0], 1);

    let plan = bench.run(["train", "run.toml", "--dry-run", "--json"]).json();
    assert_eq!((&plan["steps"], &plan["tokens"]), (&json!(6), &json!(6 * 4 * 32)));
    let summary = bench.run(["train", "run.toml", "--out", "run", "--json"]).json();
    assert_eq!((&summary["step"], &summary["skipped"]), (&json!(6), &json!(0)));
    let log = std::fs::read_to_string(bench.path("run/log.jsonl")).unwrap();
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(log.len(), 6);
    for key in ["step", "phase", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "seconds"] {
        assert!(log[0].get(key).is_some(), "{key}");
    }
    let checkpoint = summary["checkpoint"].as_str().unwrap();
    let said =
        bench.run(["generate", "-m", checkpoint, "-p", "line", "-n", "4", "--temp", "0", "--json"]).json();
    assert!(!said["text"].as_str().unwrap().is_empty());
    let score = bench.run(["eval", "-m", checkpoint, "--bpb", "shards/text", "--json"]).json();
    let bytes: u64 = (0..60).map(|i| format!("line {i} of the text, number {}", i * i).len() as u64).sum();
    assert_eq!((&score["bytes"], &score["documents"]), (&json!(bytes), &json!(60)));
    assert!(score["bits_per_byte"].as_f64().unwrap() > 0.0);

    assert!(bench.run(["train", "run.toml", "--out", "run"]).fails(1).contains("--resume"));
    steps_and_mixture_are_shown(&bench, &summary);
}

/// What `inspect` says of a run, a recipe and a page, held against the text and against each other.
fn steps_and_mixture_are_shown(bench: &Bench, summary: &Value) {
    let step = |n: &str, from: [&str; 2]| {
        bench.run(["data", "inspect", from[0], from[1], "--step", n, "--json"]).json()
    };
    let mut tokens = 0;
    for (n, phase) in [("1", "one"), ("3", "one"), ("4", "two")] {
        let shown = step(n, ["--run", "run"]);
        assert_eq!(shown, step(n, ["--recipe", "run.toml"]));
        assert_eq!((&shown["phase"], shown["rows"].as_array().unwrap().len()), (&json!(phase), 4));
        for row in shown["rows"].as_array().unwrap() {
            for piece in row["documents"].as_array().unwrap() {
                let (document, from, to) =
                    (&piece["document"], piece["from"].as_u64().unwrap(), piece["to"].as_u64().unwrap());
                tokens += to - from;
                // The text is part of the line that the document was made of.
                let n = document.as_u64().unwrap();
                let line = format!("<s>line {n} of the text, number {}</s>", n * n);
                assert!(line.contains(piece["text"].as_str().unwrap()), "{piece}");
                assert_eq!(from == 0, piece["text"].as_str().unwrap().starts_with("<s>"), "{piece}");
            }
        }
    }
    assert_eq!(tokens, 3 * 4 * 32);
    let mixture =
        bench.run(["data", "inspect", "--recipe", "run.toml", "--html", "mixture.html", "--json"]).json();
    assert_eq!(mixture["phases"][0]["mixture"][0]["samples"], 12);
    let epochs = |phase: &Value| phase["mixture"][0]["epochs"].as_f64().unwrap();
    let ran = &summary["phases"][1]["sources"][0]["epochs"];
    assert!(ran.is_null() || *ran == json!(epochs(&mixture["phases"][1])), "{summary}");
    assert_eq!(mixture["sources"][0]["lengths"]["documents"], 60);
    let page = std::fs::read_to_string(bench.path("mixture.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Phase two") && !page.contains("src="));
    let row = bench.run(["data", "inspect", "--run", "run", "--step", "2", "--row", "1"]).ok().out;
    assert!(row.contains("row 1, source text") && row.contains("shards/text:"), "{row}");
    let run = bench.run(["data", "inspect", "--run", "run", "--step", "7"]);
    assert!(run.fails(1).contains("6 steps"), "{}", run.err);
    let capped = ["--set", "phase.0.sources.text.max_epochs=0.1"];
    let run = bench.run(["data", "inspect", "--recipe", "run.toml"].iter().chain(&capped));
    assert!(run.fails(1).contains("max_epochs"), "{}", run.err);
    // Other data under the same name is found.
    let again =
        ["data", "tokenize", "--input", "run.toml", "--tokenizer", "tok", "--out", "shards/text", "--force"];
    bench.run(again).ok();
    let run = bench.run(["data", "inspect", "--run", "run", "--step", "1"]);
    assert!(run.fails(1).contains("other data"), "{}", run.err);
}

#[test]
fn wrong_recipes_and_inputs_are_named() {
    let bench = prepared(3);
    bench.run(["train", "run.toml", "--out", "run", "--set", "seed"]).fails(2);
    bench.run(["train", "run.toml"]).fails(2);
    let run = bench.run(["train", "run.toml", "--out", "run", "--set", "sequense=4"]);
    assert!(run.fails(1).contains("sequense"), "{}", run.err);
    let run = bench.run(["train", "absent.toml", "--out", "run"]);
    assert!(run.fails(1).contains("absent.toml"), "{}", run.err);
    let run = bench.run(["data", "inspect", "--input", "shards/text", "--document", "60"]);
    assert!(run.fails(1).contains("60 documents"), "{}", run.err);
    let run = bench.run(["data", "tokenizer", "--input", "absent", "--out", "t"]);
    assert!(run.fails(1).contains("absent"), "{}", run.err);
    let bin = bench.path("shards/text.bin");
    let mut bytes = std::fs::read(&bin).unwrap();
    bytes[10] ^= 1;
    std::fs::write(bin, bytes).unwrap();
    let run = bench.run(["data", "inspect", "--input", "shards/text"]);
    assert!(run.fails(1).contains("text.bin"), "{}", run.err);
}

/// Trains until the log has a line for a step after `after`, interrupts, and returns the summary and what was
/// said.
#[cfg(unix)]
fn train_and_interrupt(bench: &Bench, after: u64, extra: &[&str]) -> (Value, String) {
    let args = ["train", "run.toml", "--out", "run", "--json"];
    let mut command = bench.command(args.iter().chain(extra));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = bench.path("run/log.jsonl");
    while std::fs::File::open(&log).map_or(0, |f| BufReader::new(f).lines().count() as u64) <= after {
        assert!(child.try_wait().unwrap().is_none(), "it ended before step {}", after + 1);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    common::interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("interrupted") && stderr.contains("--resume"), "{stderr}");
    (serde_json::from_slice(&output.stdout).unwrap(), stderr)
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_resume_goes_on() {
    let bench = prepared(100_000);
    let (first, _) = train_and_interrupt(&bench, 0, &[]);
    let step = first["step"].as_u64().unwrap();
    assert!(step > 0);
    bench.run(["info", "-m", first["checkpoint"].as_str().unwrap()]).ok();
    let (second, said) = train_and_interrupt(&bench, step, &["--resume"]);
    assert!(said.contains(&format!("step-{step}")), "it says where it resumes: {said}");
    assert!(second["step"].as_u64().unwrap() > step);
}
