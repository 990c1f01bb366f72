//! The steps of the data pipeline, by commands alone.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use common::Bench;
use serde_json::{Value, json};

/// Every file below a folder, temporary ones left out.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "tmp") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Lines of prose, of which every fifth is too short and every seventh is mostly digits.
fn lines(n: usize) -> String {
    let line = |i: usize| {
        let text = match i {
            _ if i.is_multiple_of(5) => "too short".to_owned(),
            _ if i.is_multiple_of(7) => format!("{i} 1234567890 ").repeat(20),
            _ => format!(
                "document {i} tells of things that are worth telling, and it tells them at some length. "
            )
            .repeat(3),
        };
        json!({ "id": i, "text": text, "url": format!("http://example.org/{i}") }).to_string()
    };
    (0..n).map(|i| line(i) + "\n").collect()
}

fn bench(n: usize) -> Bench {
    let bench = Bench::new();
    for folder in ["in", "lists"] {
        std::fs::create_dir(bench.path(folder)).unwrap();
    }
    bench.write("in/a.jsonl", lines(n));
    bench.write(
        "in/b.txt",
        "A file is a document of its own, and this one is long enough to be kept by Zyda's rules. ".repeat(2),
    );
    bench
}

fn filter<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["data", "filter", "--input", "web=in", "--out", out, "--chunk", "4KB", "--json"];
    args.extend(more);
    args
}

#[test]
fn filtering_counts_by_rule_and_shards_make_the_whole() {
    let bench = bench(300);
    let whole = bench.run(filter("whole", &["--rejected"])).json();
    assert_eq!((&whole["complete"], &whole["resumed"]), (&json!(true), &json!(0)));
    let manifest = &whole["manifest"];
    let (short, digits) = (60, 300 / 7 - 300 / 35);
    assert_eq!(
        manifest["counts"],
        json!({ "kept": 301 - short - digits, "rejected: max_digit_share": digits, "rejected: min_chars": short })
    );
    assert_eq!((&manifest["documents_read"], &manifest["bad"]), (&json!(301), &json!(0)));
    assert!(manifest["chunks"].as_u64().unwrap() > 8);
    for i in 0..3 {
        let shard = format!("{i}/3");
        let done = bench.run(filter("shards", &["--rejected", "--shard", &shard, "-t", "2"])).json();
        assert_eq!(done["complete"], json!(i == 2));
    }
    assert_eq!(tree(&bench.path("shards")), tree(&bench.path("whole")));
    let again = bench.run(filter("whole", &["--rejected"])).json();
    assert_eq!(again["finished"], 0, "nothing is left to do");

    // The output is an input, and Parquet holds the same as lines do.
    bench
        .run(["data", "filter", "-i", "whole", "-o", "parquet", "--format", "parquet", "--preset", "none"])
        .ok();
    let to_lines =
        ["data", "filter", "-i", "whole=parquet", "-o", "lines", "--format", "jsonl", "--preset", "none"];
    bench.run(to_lines).ok();
    let lines = std::fs::read_to_string(bench.path("lines/part-00000.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["id"], &first["source"], &first["url"]),
        (&json!("1"), &json!("web"), &json!("http://example.org/1"))
    );
    assert_eq!(lines.lines().count() as u64, manifest["counts"]["kept"].as_u64().unwrap());
}

#[test]
fn settings_come_from_a_file_and_are_honoured_or_refused() {
    let bench = bench(70);
    bench.write("lists/bad.txt", "length\n");
    bench.write(
        "filter.toml",
        "skip_sources = [\"in\"]\n[rules]\nmin_chars = 5\nmax_digit_share = false\n\
         [[words]]\nname = \"mine\"\nfile = \"lists/bad.txt\"\nmax_count = 2\n",
    );
    let counts = |args: &[&str]| bench.run(filter(args[0], &args[1..])).json()["manifest"]["counts"].clone();
    let rejected = counts(&["a", "--config", "filter.toml"]);
    assert_eq!(rejected, json!({ "kept": 14 + 8 + 1, "rejected: mine": 70 - 14 - 8 }));
    let mut skipped = filter("b", &["--config", "filter.toml"]);
    skipped[3] = "in=in";
    assert_eq!(bench.run(skipped).json()["manifest"]["counts"], json!({ "kept": 71 }));
    bench.write("wrong.toml", "[rules]\nmin_char = 5\n");
    let run = bench.run(filter("c", &["--config", "wrong.toml"]));
    assert!(run.fails(1).contains("wrong.toml: there is no rule `min_char`"), "{}", run.err);
    let run = bench.run(filter("a", &["--preset", "gopher"]));
    assert!(run.fails(1).contains("--force"), "{}", run.err);
    bench.run(filter("a", &["--preset", "gopher", "--force"])).json();
    bench.run(filter("d", &["--words", "sexual"])).fails(2);
    bench.run(filter("d", &["--shard", "3/3"])).fails(2);
    let run = bench.run(filter("d", &["--memory", "1MB"]));
    assert!(run.fails(1).contains("--memory"), "{}", run.err);
    let run = bench.run(["data", "filter", "-i", "gs://x/y", "-o", "d"]);
    assert!(run.fails(1).contains("gs://"), "{}", run.err);
}

#[test]
fn bad_input_is_quarantined_up_to_a_limit() {
    let bench = bench(50);
    bench.write("in/c.jsonl", "{\"text\": 1}\nnothing\n");
    let run = bench.run(filter("out", &["--max-bad", "1"]));
    assert!(run.fails(1).contains("web/c.jsonl:12") && run.err.contains("--max-bad 1"), "{}", run.err);
    let done = bench.run(filter("out", &["--max-bad", "2"])).json();
    assert_eq!(done["manifest"]["bad"], 2);
    let quarantine: String = tree(&bench.path("out/quarantine"))
        .into_values()
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .collect();
    let lines: Vec<Value> = quarantine.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["file"], &lines[1]["offset"]), (2, &json!("web/c.jsonl"), &json!(12)));
    assert_eq!(lines[1]["raw"], "nothing");
}

/// Starts a command and kills it without warning once a file has come into being.
#[cfg(unix)]
fn kill_when<'a>(bench: &Bench, args: impl IntoIterator<Item = &'a str>, file: &str) {
    let mut command = bench.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !bench.path(file).exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {file} was there");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_filter_that_is_killed_goes_on_to_the_same_bits() {
    let bench = bench(6000);
    let whole = bench.run(filter("whole", &[])).json();
    for (kill, part) in ["part-00003", "part-00020", "part-00100"].iter().enumerate() {
        let out = format!("killed{kill}");
        kill_when(&bench, filter(&out, &["-t", "1"]), &format!("{out}/.zamba/{part}.json"));
        assert!(!bench.path(&format!("{out}/manifest.json")).exists());
        let done = bench.run(filter(&out, &[])).json();
        let resumed = done["resumed"].as_u64().unwrap();
        assert!(resumed > 0 && resumed < whole["chunks"].as_u64().unwrap(), "{done}");
        assert_eq!(tree(&bench.path(&out)), tree(&bench.path("whole")));
    }
}

fn tokenize<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "data",
        "tokenize",
        "-i",
        "web=in",
        "--tokenizer",
        "tok",
        "--out",
        out,
        "--chunk",
        "4KB",
        "--json",
    ];
    args.extend(more);
    args
}

/// The shard's files.
fn shard(bench: &Bench, prefix: &str) -> Vec<Vec<u8>> {
    ["bin", "idx", "manifest.json"]
        .iter()
        .map(|end| std::fs::read(bench.path(&format!("{prefix}.{end}"))).unwrap())
        .collect()
}

#[cfg(unix)]
#[test]
fn tokenising_gives_one_shard_however_it_is_done() {
    let bench = bench(2000);
    let learn = [
        "data",
        "tokenizer",
        "-i",
        "in",
        "--vocab-size",
        "400",
        "--sample",
        "50KB",
        "--out",
        "tok",
        "--json",
    ];
    let learned = bench.run(learn).json();
    let sampled = learned["bytes_sampled"].as_u64().unwrap();
    assert!(learned["documents"] == 2001 && sampled <= 50_000 && sampled > 25_000, "{learned}");
    let whole = bench.run(tokenize("shards/whole", &[])).json();
    assert_eq!(
        (&whole["manifest"]["documents"], &whole["manifest"]["made_from"]["bad"]),
        (&json!(2001), &json!(0))
    );
    assert!(!bench.path("shards/whole.parts").exists(), "the parts are gone");
    let document =
        ["data", "inspect", "-i", "shards/whole", "--document", "0", "--tokenizer", "tok", "--json"];
    assert_eq!(bench.run(document).json()["text"], "<s>too short</s>");
    for i in 0..3 {
        let of = format!("{i}/3");
        bench.run(tokenize("shards/three", &["--shard", &of, "-t", "2"])).json();
    }
    kill_when(&bench, tokenize("shards/killed", &["-t", "1"]), "shards/killed.parts/.zamba/part-00030.json");
    assert!(!bench.path("shards/killed.idx").exists());
    bench.run(tokenize("shards/killed", &[])).json();
    for other in ["shards/three", "shards/killed"] {
        assert_eq!(shard(&bench, other), shard(&bench, "shards/whole"), "{other}");
    }
    bench.run(tokenize("shards/whole", &[])).json();
    bench.write("in/more.txt", "more");
    let run = bench.run(tokenize("shards/whole", &[]));
    assert!(run.fails(1).contains("shards/whole") && run.err.contains("--force"), "{}", run.err);
    let more = bench.run(tokenize("shards/whole", &["--force"])).json();
    assert_eq!(more["manifest"]["documents"], 2002);
}

#[test]
fn one_of_each_cluster_stays_and_stages_make_the_whole() {
    let bench = Bench::new();
    for folder in ["code", "web"] {
        std::fs::create_dir(bench.path(folder)).unwrap();
    }
    let text = |i: usize| -> String {
        (0..60).map(|word| format!("w{} ", (i * 7919 + word * 104_729) % 9973)).collect()
    };
    let lines = |texts: &[String]| -> String {
        texts.iter().map(|text| json!({ "text": text }).to_string() + "\n").collect()
    };
    // Ten texts of the web; of the first three the code has one that is equal and two with another last word.
    let web: Vec<String> = (0..10).map(text).collect();
    let code = [web[0].clone(), web[1].clone() + "more", web[2].clone() + "less"];
    bench.write("web/a.jsonl", lines(&web));
    bench.write("code/a.jsonl", lines(&code));
    let dedup = |out: &str, more: &[&str]| {
        let mut args = vec!["data", "dedup", "-i", "web=web", "-i", "code=code", "--out", out];
        args.extend(["--rank", "code,web", "--removed", "--format", "jsonl", "--json"]);
        args.extend(more);
        bench.run(args).json()
    };
    let whole = dedup("whole", &[]);
    let report = &whole["report"];
    assert_eq!((&report["documents"], &report["kept"]), (&json!(13), &json!(10)), "{whole}");
    let kept = std::fs::read_to_string(bench.path("whole/part-00000.jsonl")).unwrap()
        + &std::fs::read_to_string(bench.path("whole/part-00001.jsonl")).unwrap_or_default();
    let from =
        |source: &str| kept.lines().filter(|l| l.contains(&format!("\"source\":\"{source}\""))).count();
    assert_eq!((from("code"), from("web")), (3, 7), "{kept}");

    for (stage, shards) in [("sketch", 2), ("cluster", 1), ("write", 2)] {
        for i in 0..shards {
            let shard = format!("{i}/{shards}");
            let of =
                if shards > 1 { vec!["--stage", stage, "--shard", &shard] } else { vec!["--stage", stage] };
            dedup("stages", &of);
        }
    }
    assert_eq!(tree(&bench.path("stages")), tree(&bench.path("whole")));
    let table = ["data", "dedup", "-i", "web", "-o", "exact", "--exact"];
    assert!(!bench.run(table).ok().out.is_empty());
    bench.run(["data", "dedup", "-i", "web", "-o", "x", "--exact", "--bands", "3"]).fails(2);
    bench.run(["data", "dedup", "-i", "web", "-o", "x", "--shard", "0/2"]).fails(2);
}

#[cfg(unix)]
#[test]
fn dedup_that_is_killed_goes_on_to_the_same_bits() {
    let bench = bench(6000);
    let dedup = |out: &'static str| {
        let mut args = vec!["data", "dedup", "-i", "web=in", "--out", out, "--removed"];
        args.extend(["--ngram", "3", "--chunk", "4KB", "--json", "-t", "1"]);
        args
    };
    bench.run(dedup("whole")).ok();
    let whole = tree(&bench.path("whole"));
    // Its marks in the order in which they come: signatures, clusters, what stays.
    let marks: Vec<&String> = whole.keys().filter(|name| name.ends_with("part-00020.json")).collect();
    assert!(marks.len() >= 2, "{:?}", whole.keys());
    for (out, mark) in ["killed0", "killed1"].into_iter().zip(marks) {
        kill_when(&bench, dedup(out), &format!("{out}/{mark}"));
        assert!(tree(&bench.path(out)).len() < whole.len(), "killed too late");
        bench.run(dedup(out)).ok();
        assert!(tree(&bench.path(out)) == whole, "{mark}");
    }
}
