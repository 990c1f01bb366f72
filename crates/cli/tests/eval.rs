//! Benchmarks from the command line: data on disk to files of results, errors, resumption, training.

mod common;

use std::fs;

use common::Bench;
use serde_json::{Value, json};

/// A bench with a model and questions of piqa.
fn prepared() -> Bench {
    let bench = Bench::with_text_model();
    data(&bench);
    bench
}

fn data(bench: &Bench) {
    fs::create_dir_all(bench.path("data/piqa")).unwrap();
    let question = |i: u64| json!({"goal": format!("open box {i}"), "sol1": "push the red lid", "sol2": format!("push {i}"), "label": i % 2});
    let lines =
        |range: std::ops::Range<u64>| range.map(|i| question(i).to_string() + "\n").collect::<String>();
    bench.write("data/piqa/validation.jsonl", lines(0..7));
    bench.write("data/piqa/train.jsonl", lines(3..12));
}

fn eval<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["eval", "-m", "m", "--tasks", "piqa", "--data", "data"];
    args.extend(more);
    args
}

/// The only file of a folder whose name begins so.
fn file(bench: &Bench, folder: &str, start: &str) -> String {
    let names: Vec<String> = bench.names(folder).into_iter().filter(|n| n.starts_with(start)).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    fs::read_to_string(bench.path(folder).join(&names[0])).unwrap()
}

#[test]
fn results_and_samples_have_the_keys_of_lm_eval() {
    let bench = prepared();
    let run =
        bench.run(eval(&["--num-fewshot", "2", "--limit", "5", "--out", "o", "--log-samples", "--json"]));
    let results = run.json();
    assert_eq!(results["n-samples"]["piqa"], json!({"original": 7, "effective": 5}));
    assert_eq!((&results["n-shot"]["piqa"], &results["versions"]["piqa"]), (&json!(2), &json!(1.0)));
    assert!(results["results"]["piqa"]["acc_norm_stderr,none"].is_f64());
    for key in
        ["configs", "higher_is_better", "group_subtasks", "task_hashes", "config", "model_name", "date"]
    {
        assert!(results.get(key).is_some(), "{key}");
    }
    let written: Value = serde_json::from_str(&file(&bench, "o/m", "results_")).unwrap();
    assert_eq!(written, results);
    let samples = file(&bench, "o/m", "samples_piqa_");
    let samples: Vec<Value> = samples.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(samples.len(), 5);
    let right = samples.iter().filter(|s| s["acc"] == json!(1.0)).count() as f64;
    assert_eq!(results["results"]["piqa"]["acc,none"], json!(right / 5.0));
    let prompt = samples[0]["arguments"]["gen_args_0"]["arg_0"].as_str().unwrap();
    assert!(
        prompt.ends_with("Question: open box 0\nAnswer:") && prompt.matches("Question:").count() == 3,
        "{prompt}"
    );
    assert_eq!(samples[0]["arguments"]["gen_args_1"]["arg_1"], " push 0");
    assert!(bench.run(eval(&[])).ok().out.contains("|piqa |"));
}

#[test]
fn answers_are_kept_and_do_not_depend_on_what_is_shared() {
    let bench = prepared();
    let figures = |more: &[&str]| {
        let run = bench.run(eval(&[&["--json"], more].concat()));
        (run.json()["results"].clone(), run.err)
    };
    let (plain, said) = figures(&["--no-prefix-reuse"]);
    assert!(said.contains("prefix reuse off") && !said.contains(" 0 tokens computed"), "{said}");
    let (first, said) = figures(&["--out", "o"]);
    assert!(said.contains("prefix reuse on"), "{said}");
    assert_eq!(first, plain);
    let (second, said) = figures(&["--out", "o"]);
    assert!(said.contains("14 answers are known") && said.contains(" 0 tokens computed"), "{said}");
    assert_eq!(second, plain);
    let (third, said) = figures(&["--out", "o", "--no-cache"]);
    assert!(!said.contains("known"), "{said}");
    assert_eq!(third, plain);
    // Another model has other answers.
    bench.run(["init", "--config", "c.json", "--out", "m2", "--seed", "8", "--tokenizer", "t.json"]).ok();
    fs::remove_dir_all(bench.path("m")).unwrap();
    fs::rename(bench.path("m2"), bench.path("m")).unwrap();
    let (_, said) = figures(&["--out", "o"]);
    assert!(!said.contains("known"), "{said}");
}

#[test]
fn wrong_data_and_names_are_errors_that_say_where() {
    let bench = prepared();
    let good = fs::read_to_string(bench.path("data/piqa/validation.jsonl")).unwrap();
    let check = |text: &str, words: &[&str]| {
        bench.write("data/piqa/validation.jsonl", text);
        let run = bench.run(eval(&[]));
        let line = run.fails(1);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    };
    let file = "validation.jsonl";
    check(&good.replacen("\"goal\":\"open box 2\",", "", 1), &[file, "row 3", "`goal`", "doc_to_text"]);
    check(
        &good.replacen("\"sol2\":\"push 4\"", "\"sol3\":1", 1),
        &[file, "row 5", "`sol2`", "doc_to_choice"],
    );
    check(&good.replacen("\"label\":1", "\"label\":2", 1), &[file, "row 2", "label 2", "2 choices"]);
    check(&good.replacen("\"label\":0", "\"label\":null", 1), &[file, "row 1", "label null"]);
    check(&good.replacen("{\"goal\"", "{goal", 1), &[file, "row 1", "JSON"]);
    check("", &[file, "no rows"]);
    check("\n\n", &[file, "no rows"]);
    bench.write("data/piqa/validation.jsonl", &good);
    for (args, code, words) in [
        (vec!["--num-fewshot", "20"], 1, vec!["train", "21", "--num-fewshot"]),
        (vec!["--limit", "0"], 2, vec!["--limit"]),
        (vec!["--tasks", "pica"], 1, vec!["pica", "piqa"]),
        (vec!["--tasks", "sciq", "--offline"], 1, vec!["sciq", "test", "data"]),
        (vec!["--bpb", "c.json"], 2, vec!["--bpb", "--tasks"]),
    ] {
        let run = bench.run(eval(&args));
        let line = run.fails(code);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
    bench.run(["eval", "-m", "m"]).fails(2);
    bench.run(["eval", "--tasks", "piqa", "--data", "data"]).fails(2);
    assert!(bench.run(["eval", "--tasks", "list"]).ok().out.contains("\nmmlu_virology\n"));
}

#[test]
fn a_task_of_the_user_is_a_file() {
    let bench = prepared();
    fs::create_dir_all(bench.path("mine")).unwrap();
    bench.write("mine/q.jsonl", "{\"q\":\"a\",\"options\":[\"b\",\"c\"],\"right\":\"c\"}\n");
    let task = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: q.jsonl}}\ntest_split: test\n\
        output_type: multiple_choice\ndoc_to_text: \"{{q}} is\"\ndoc_to_choice: options\n\
        doc_to_target: \"{{options.index(right)}}\"\nmetric_list: [{metric: acc}, {metric: acc_bytes}]\n";
    bench.write("mine/mine.yaml", task);
    let args = ["eval", "-m", "m", "--tasks", "m?ne", "--include-path", "mine", "--json"];
    let results = bench.run(args).json();
    assert!(results["results"]["mine"]["acc_bytes,none"].is_f64());
    bench.write("mine/mine.yaml", task.replace("output_type", "outputtype"));
    let run = bench.run(args);
    assert!(run.fails(1).contains("outputtype"), "{}", run.err);
}

#[test]
fn a_run_is_followed_and_its_checkpoints_are_scored() {
    let bench = Bench::new();
    data(&bench);
    let lines: Vec<String> =
        (0..40).map(|i| json!({"text": format!("open the box {i} and push")}).to_string()).collect();
    bench.write("text.jsonl", lines.join("\n"));
    bench.run(["data", "tokenizer", "--input", "text.jsonl", "--vocab-size", "280", "--out", "tok"]).ok();
    bench
        .run(["data", "tokenize", "--input", "text.jsonl", "--tokenizer", "tok", "--out", "shards/text"])
        .ok();
    bench.write("c.json", common::config().to_string());
    let phase = |name: &str| {
        format!(
            "[[phase]]\nname = \"{name}\"\nsteps = 2\npeak = 1e-3\nschedule = {{ kind = \"constant\" }}\n\
             sources = [{{ name = \"text\", path = \"shards/text\", weight = 1 }}]\n"
        )
    };
    let head = "model = \"c.json\"\ntokenizer = \"tok/tokenizer.json\"\nsequence = 32\nmicro_batch = 2\nglobal_batch = 4\n\
        checkpoint_every = 1\nkeep = 9\n[eval]\nevery = 2\ntasks = { names = [\"piqa\"], data = \"data\", limit = 4 }\n";
    bench.write("run.toml", format!("{head}{}{}", phase("one"), phase("two")));
    let run = bench.run(["train", "run.toml", "--out", "run", "--json"]).ok();
    assert!(run.err.contains("step 2: piqa acc "), "{}", run.err);
    let log = fs::read_to_string(bench.path("run/tasks.jsonl")).unwrap();
    let log: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<_> =
        log.iter().map(|r| (r["step"].as_u64().unwrap(), r["metric"].as_str().unwrap())).collect();
    assert_eq!(steps, [(2, "acc"), (2, "acc_norm"), (4, "acc"), (4, "acc_norm")]);
    let bad = bench.run(["train", "run.toml", "--out", "run2", "--set", "eval.tasks.data=nowhere"]);
    assert!(bad.fails(1).contains("eval.tasks"), "{}", bad.err);

    let args = [
        "eval",
        "--checkpoints",
        "run",
        "--tasks",
        "piqa",
        "--data",
        "data",
        "--limit",
        "4",
        "--bpb",
        "shards/text",
        "--json",
    ];
    let report = bench.run(args).json();
    let points = report["checkpoints"].as_array().unwrap();
    let stands: Vec<_> =
        points.iter().map(|p| (p["step"].as_u64().unwrap(), p["phase"].as_str().unwrap())).collect();
    assert_eq!(stands, [(1, "one"), (2, "one"), (3, "two"), (4, "two")]);
    assert_eq!(points[1]["scores"][0]["value"], log[0]["value"], "the run and its checkpoint agree");
    assert!(points.iter().all(|p| p["bits_per_byte"].is_f64()));
    let page = fs::read_to_string(bench.path("run/dynamics/dynamics.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("two begins") && page.contains("piqa acc"));
    assert_eq!(bench.run(args).json(), report, "a second run has the same answers");
}
