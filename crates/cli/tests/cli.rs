//! The program as a user meets it: what commands print, and what they leave behind.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{Bench, files, floats, ids};
use serde_json::{Value, json};

#[test]
fn init_makes_what_info_describes() {
    let bench = Bench::new();
    bench.write("c.json", common::config().to_string());
    let made = bench.run(["init", "--config", "c.json", "--out", "m", "--seed", "7", "--json"]).json();
    assert_eq!(made["path"], "m");
    let info = bench.run(["info", "-m", "m", "--json", "--ctx", "100"]).json();
    assert_eq!(info["parameters"], made["parameters"]);
    assert_eq!(info["layers"], 4);
    assert_eq!(info["hybrid_layers"], json!([2]));
    assert_eq!(info["dtype"], "float32");
    assert_eq!(info["tokenizer"], false);
    // e = 64, n = 4, k = 4: four layers of (n + k - 1) * e numbers; one site of keys and values of width 64.
    assert_eq!(info["bytes_of_state"], 4 * 7 * 64 * 4);
    assert_eq!(info["bytes_of_kv_per_token"], 2 * 64 * 4);
    assert_eq!(info["bytes_of_sequence"], 4 * 7 * 64 * 4 + 100 * 2 * 64 * 4);
    assert_eq!(info["bytes_of_weights"], 4 * made["parameters"].as_u64().unwrap());
    for key in ["bytes_of_weights_read_per_token", "flops_per_token", "threads"] {
        assert!(info[key].as_u64().unwrap() > 0, "{key}");
    }
    for key in ["device", "isa"] {
        assert!(!info[key].as_str().unwrap().is_empty(), "{key}");
    }
    let table = bench.run(["info", "-m", "m"]).ok().out;
    assert!(table.contains("parameters") && table.contains("state"), "{table}");
    assert_eq!(bench.names("."), ["c.json", "m"]);
}

#[test]
fn init_depends_on_the_seed_alone_and_keeps_what_is_there() {
    let bench = Bench::with_model();
    bench.run(["init", "--config", "c.json", "--out", "again", "--seed", "7"]).ok();
    bench.run(["init", "--config", "c.json", "--out", "other", "--seed", "8"]).ok();
    assert_eq!(files(&bench.path("m")), files(&bench.path("again")));
    assert_ne!(files(&bench.path("m")), files(&bench.path("other")));

    let refused = bench.run(["init", "--config", "c.json", "--out", "m", "--seed", "8"]);
    assert!(refused.fails(1).contains("not empty"), "{}", refused.err);
    assert_eq!(files(&bench.path("m")), files(&bench.path("again")));
    bench.run(["init", "--config", "c.json", "--out", "m", "--seed", "8", "--force"]).ok();
    assert_eq!(files(&bench.path("m")), files(&bench.path("other")));
}

#[test]
fn generate_from_tokens_needs_no_tokenizer_and_repeats_itself() {
    let bench = Bench::with_model();
    let args = ["generate", "-m", "m", "--tokens", "1,20,30", "-n", "12", "--json", "--ignore-eos"];
    let greedy = |extra: &[&str]| bench.run(args.iter().chain(&["--temp", "0"]).chain(extra)).json();
    let first = greedy(&[]);
    assert_eq!(first["text"], Value::Null);
    assert_eq!(first["prompt_tokens"], 3);
    let tokens = ids(&first["tokens"]);
    assert_eq!(tokens.len(), 12);
    assert!(tokens.iter().all(|&id| id < 300 && id != 2));
    for key in
        ["prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second"]
    {
        assert!(first["timings"][key].is_number(), "{key}: {first}");
    }
    for extra in [&["-t", "1"][..], &["-t", "2"], &["--seed", "9"], &["--device", "reference"]] {
        assert_eq!(ids(&greedy(extra)["tokens"]), tokens, "{extra:?}");
    }
    let drawn = |seed: &str| {
        let run =
            bench.run(args.iter().chain(&["--temp", "1.5", "--top-k", "0", "--top-p", "1", "--seed", seed]));
        ids(&run.json()["tokens"])
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));

    let printed = bench
        .run(["generate", "-m", "m", "--tokens", "1,20,30", "-n", "12", "--temp", "0", "--ignore-eos"])
        .ok();
    let printed_ids: Vec<u32> = printed.out.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(printed_ids, tokens);
    assert!(
        printed.err.contains("eval time") && printed.err.contains("tokens per second"),
        "{}",
        printed.err
    );
}

#[test]
fn generate_streams_text_whole_and_stops_where_told() {
    let bench = Bench::with_text_model();
    let args = ["generate", "-m", "m", "-p", "hé", "-n", "40", "--seed", "3", "--temp", "1", "--ignore-eos"];
    let json = bench.run(args.iter().chain(&["--json"])).json();
    // BOS, h, and the two bytes of é.
    assert_eq!(json["prompt_tokens"], 4);
    let text = json["text"].as_str().unwrap().to_owned();
    assert_eq!(ids(&json["tokens"]).len(), 40);
    let streamed = bench.run(args).ok();
    assert_eq!(streamed.out, format!("{text}\n"));
    let bounded = ["generate", "-m", "m", "-p", "hé", "--ctx", "20", "-n", "40", "--ignore-eos", "--json"];
    let bounded = bench.run(bounded).json();
    assert_eq!((ids(&bounded["tokens"]).len(), &bounded["finish"]), (16, &json!("length")));

    bench.write("prompt.txt", "hé");
    let from_file =
        ["generate", "-m", "m", "-f", "prompt.txt", "-n", "40", "--seed", "3", "--temp", "1", "--ignore-eos"];
    assert_eq!(bench.run(from_file).ok().out, streamed.out);
    let from_stdin =
        ["generate", "-m", "m", "-f", "-", "-n", "40", "--seed", "3", "--temp", "1", "--ignore-eos"];
    assert_eq!(bench.run_with_input(from_stdin, "hé").ok().out, streamed.out);

    // Any piece of the text serves as a stop string.
    let stop: String = text.chars().filter(|c| !c.is_whitespace()).skip(3).take(1).collect();
    let stopped =
        bench.run(args.iter().chain(&["--json", "--stop", stop.as_str(), "--stop", "never seen"])).json();
    assert_eq!(stopped["text"].as_str().unwrap(), text.split(&stop).next().unwrap());
    assert_eq!(stopped["finish"], "stop");
}

#[test]
fn a_bias_or_an_end_token_decides_what_is_said() {
    let bench = Bench::with_text_model();
    let args = ["generate", "-m", "m", "-p", "a", "-n", "5", "--temp", "0", "--json"];
    let json = bench.run(args.iter().chain(&["--logit-bias", "100=1000"])).json();
    assert_eq!(ids(&json["tokens"]), [100; 5]);
    assert_eq!(json["finish"], "length");
    let json = bench.run(args.iter().chain(&["--logit-bias", "2=1000"])).json();
    assert_eq!((ids(&json["tokens"]), &json["finish"], &json["text"]), (vec![2], &json!("eos"), &json!("")));
    let json = bench.run(args.iter().chain(&["--logit-bias", "2=1000", "--ignore-eos"])).json();
    assert_eq!(ids(&json["tokens"]), [2; 5], "the choice stays the highest logit");
    assert_eq!(json["finish"], "length");
}

#[test]
fn scores_are_the_log_softmax_of_the_logits() {
    let bench = Bench::with_text_model();
    bench.write(
        "in.jsonl",
        "{\"tokens\":[1,5,9,200,7]}\n{\"tokens\":[]}\n{\"text\":\"ab\"}\n{\"tokens\":[4]}\n",
    );
    let args = ["score", "-m", "m", "--input", "in.jsonl", "--logits", "l.safetensors"];
    let lines = bench.run(args).json_lines();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[1], json!({"tokens": [], "logprobs": []}));
    assert_eq!(lines[3], json!({"tokens": [4], "logprobs": [null]}));
    assert_eq!(ids(&lines[2]["tokens"]), [1, 3 + 97, 3 + 98]);

    let bytes = std::fs::read(bench.path("l.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 4);
    for (i, line) in lines.iter().enumerate() {
        let tokens = ids(&line["tokens"]);
        let tensor = tensors.tensor(&i.to_string()).unwrap();
        assert_eq!(tensor.shape(), [tokens.len(), 300]);
        let logits: Vec<f64> =
            tensor.data().chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        for (j, found) in floats(&line["logprobs"]).into_iter().enumerate() {
            let Some(found) = found else {
                assert_eq!(j, 0);
                continue;
            };
            let row = &logits[(j - 1) * 300..j * 300];
            let highest = row.iter().copied().fold(f64::MIN, f64::max);
            let lse = highest + row.iter().map(|x| (x - highest).exp()).sum::<f64>().ln();
            let expected = row[tokens[j] as usize] - lse;
            // A sum of 300 terms in f32 and one rounding of a number below 16.
            assert!((found - expected).abs() < 1e-4, "line {i}, token {j}: {found} and {expected}");
        }
    }
    // The most likely next token is what greedy generation says.
    let row = &tensors.tensor("0").unwrap().data()[4 * 300 * 4..];
    let row: Vec<f32> = row.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let best = (0..300).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    let next = bench
        .run(["generate", "-m", "m", "--tokens", "1,5,9,200,7", "-n", "1", "--temp", "0", "--json"])
        .json();
    assert_eq!(ids(&next["tokens"]), [best as u32]);
    assert_eq!(bench.names("."), ["c.json", "in.jsonl", "l.safetensors", "m", "t.json"]);
}

#[test]
fn devices_agree_and_threads_do_not_matter() {
    let bench = Bench::with_model();
    let tokens: Vec<u32> = (0..70).map(|i| (i * 37 + 11) % 300).collect();
    let line = format!("{}\n", json!({"tokens": tokens}));
    let score = |extra: &[&str]| {
        let args = ["score", "-m", "m", "--input", "-"];
        bench.run_with_input(args.iter().chain(extra), &line).ok().out
    };
    let one = score(&["-t", "1"]);
    assert_eq!(one, score(&["-t", "2"]));
    assert_eq!(one, score(&["-t", "3"]));
    let logprobs = |out: &str| floats(&serde_json::from_str::<Value>(out).unwrap()["logprobs"]);
    let (fast, reference) = (logprobs(&one), logprobs(&score(&["--device", "reference"])));
    assert_eq!(fast.len(), 70);
    for (a, b) in fast.iter().zip(&reference).skip(1) {
        // Sums in f32 against sums in f64, through four layers.
        assert!((a.unwrap() - b.unwrap()).abs() < 1e-3, "{a:?} and {b:?}");
    }
}

#[test]
fn convert_keeps_every_bit_and_every_file() {
    let bench = Bench::with_text_model();
    bench.run(["convert", "-m", "m", "--out", "same"]).ok();
    assert_eq!(files(&bench.path("m")), files(&bench.path("same")));

    bench.run(["convert", "-m", "m", "--out", "shards", "--max-shard-size", "20KB"]).ok();
    let names = bench.names("shards");
    assert!(names.contains(&"model.safetensors.index.json".to_owned()), "{names:?}");
    assert!(names.contains(&"tokenizer.json".to_owned()), "{names:?}");
    assert!(names.iter().any(|n| n.starts_with("model-00002-of-")), "{names:?}");
    bench.write("in.jsonl", "{\"tokens\":[1,5,9,200,7]}\n");
    let score = |dir: &str| bench.run(["score", "-m", dir, "--input", "in.jsonl"]).ok().out;
    assert_eq!(score("m"), score("shards"));

    let half = bench.run(["convert", "-m", "shards", "--out", "half", "--dtype", "bf16", "--json"]).json();
    assert_eq!(half["path"], "half");
    assert_eq!(bench.run(["info", "-m", "half", "--json"]).json()["dtype"], "bfloat16");
    // What is bf16 already survives the way to f32 and back.
    bench.run(["convert", "-m", "half", "--out", "wide", "--dtype", "f32"]).ok();
    bench.run(["convert", "-m", "wide", "--out", "back", "--dtype", "bf16"]).ok();
    assert_eq!(files(&bench.path("half")), files(&bench.path("back")));
}

/// The tensors of a file, renamed and written again.
fn rename_tensors(from: &Path, to: &Path, rename: impl Fn(&str) -> String) {
    let bytes = std::fs::read(from).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors.iter().map(|(name, tensor)| (rename(name), tensor));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    std::fs::write(to, safetensors::serialize(renamed, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn convert_brings_old_names_up_to_date() {
    let bench = Bench::with_model();
    std::fs::create_dir(bench.path("old")).unwrap();
    std::fs::copy(bench.path("m/config.json"), bench.path("old/config.json")).unwrap();
    // Layer 2 is the hybrid one. In the old layout the names of gate and up are swapped.
    rename_tensors(&bench.path("m/model.safetensors"), &bench.path("old/model.safetensors"), |name| {
        let name = match name {
            n if n.contains("gate_proj") => n.replace("gate_proj", "up_proj"),
            n => n.replace("up_proj", "gate_proj"),
        };
        name.replace("model.layers.2.shared_transf.", "model.block.")
            .replace("model.layers.2.linear.", "model.linear_layers.0.")
            .replace("model.layers.2.mamba_decoder.", "model.mamba_layers.2.")
            .replace("model.layers.", "model.mamba_layers.")
    });
    bench.run(["convert", "-m", "old", "--out", "new"]).ok();
    assert_eq!(files(&bench.path("m")), files(&bench.path("new")));
    bench.write("in.jsonl", "{\"tokens\":[1,5,9,200,7]}\n");
    let score = |dir: &str| bench.run(["score", "-m", dir, "--input", "in.jsonl"]).ok().out;
    assert_eq!(score("m"), score("old"));
}

#[test]
fn chat_reads_lines_from_a_pipe() {
    let bench = Bench::with_text_model();
    let args = ["chat", "-m", "m", "-n", "6", "--seed", "1"];
    let run = bench.run_with_input(args, "hello\n/reset\nhello\nagain\n/quit\nnever read\n").ok();
    assert!(run.err.contains("template"), "it says that there is none: {}", run.err);
    let greedy =
        bench.run_with_input(["chat", "-m", "m", "-n", "6", "--temp", "0"], "hello\n/reset\nhello\n").ok();
    let half = greedy.out.len() / 2;
    assert_eq!(greedy.out[..half], greedy.out[half..], "after a reset the same words get the same answer");
}

#[test]
fn chat_with_a_template_carries_the_conversation() {
    let bench = Bench::with_text_model();
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
    bench.write("m/chat_template.jinja", template);
    std::fs::remove_file(bench.path("m/MANIFEST.json")).unwrap();
    let chat = |input: &str| bench.run_with_input(["chat", "-m", "m", "-n", "5", "--temp", "0"], input).ok();
    let once = chat("hello\n");
    assert_eq!(once.err, "");
    // What the template makes of one turn is what generate continues.
    let prompt = ["generate", "-m", "m", "-p", "[user]hello[assistant]", "-n", "5", "--temp", "0", "--json"];
    // The template writes no BOS, so the tokens are given as they are.
    let json = bench.run(prompt).json();
    assert_eq!(json["prompt_tokens"], 23);
    let bytes = "[user]hello[assistant]"
        .bytes()
        .map(|b| (3 + u32::from(b)).to_string())
        .collect::<Vec<_>>()
        .join(",");
    let same =
        bench.run(["generate", "-m", "m", "--tokens", &bytes, "-n", "5", "--temp", "0", "--json"]).json();
    assert_eq!(once.out.trim(), same["text"].as_str().unwrap().trim());
    // A second turn comes after the first, and a reset forgets it.
    let twice = chat("hello\nhello\n/reset\nhello\n");
    assert!(twice.out.starts_with(&once.out) && twice.out.ends_with(&once.out), "{}", twice.out);
}

#[test]
fn bits_per_byte_follow_from_scores() {
    let bench = Bench::with_text_model();
    bench.write("a.txt", "some words, and é");
    let run = bench.run(["eval", "-m", "m", "--bpb", "a.txt", "--json"]).json();
    bench.write("in.jsonl", json!({"text": "some words, and é"}).to_string());
    let lines = bench.run(["score", "-m", "m", "--input", "in.jsonl"]).json_lines();
    let nats: f64 = floats(&lines[0]["logprobs"]).into_iter().flatten().map(|x| -x).sum();
    let expected = nats / std::f64::consts::LN_2 / 18.0;
    assert!(
        (run["bits_per_byte"].as_f64().unwrap() - expected).abs() < 1e-6 * expected,
        "{run} and {expected}"
    );
    assert_eq!((&run["bytes"], &run["tokens"], &run["words"]), (&json!(18), &json!(18), &json!(4)));
    let same = bench.run(["eval", "-m", "m", "--bpb", "in.jsonl", "--json"]).json();
    assert_eq!(same["bits_per_byte"], run["bits_per_byte"]);
}

#[test]
fn help_and_version_succeed_and_nothing_is_wrong_usage() {
    let bench = Bench::new();
    assert!(bench.run(["--help"]).ok().out.contains("generate"));
    assert!(bench.run(["generate", "--help"]).ok().out.contains("Example"));
    assert!(bench.run(["--version"]).ok().out.starts_with("zamba "));
    assert!(bench.run([] as [&str; 0]).fails(2).contains("no command"));
    assert!(bench.run(["data"]).fails(2).contains("zamba data --help"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bench = Bench::with_model();
    bench.write("in.jsonl", "{\"tokens\":[1,5,9,200,7]}\n".repeat(2000));
    let mut command = bench.command(["score", "-m", "m", "--input", "in.jsonl"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_one_line() {
    let bench = Bench::with_model();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = bench.command(["info", "-m", "m", "--json"]).stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("standard output"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_init_leaves_nothing() {
    let bench = Bench::new();
    let mut command = bench.command(["init", "--config", "130m", "--out", "m"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It has begun once its temporary folder is there.
    while bench.names(".").is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    common::interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("interrupted") && stderr.lines().count() == 1, "{stderr}");
    assert!(bench.names(".").is_empty(), "{:?}", bench.names("."));
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_generate_ends_after_a_token() {
    let bench = Bench::with_text_model();
    let args = ["generate", "-m", "m", "-p", "a", "-n", "100000000", "--ctx", "1000000", "--ignore-eos"];
    let mut child = bench.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = vec![0; 16];
    out.read_exact(&mut text).unwrap();
    common::interrupt(child.id());
    out.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert!(
        std::str::from_utf8(&text).is_ok() && text.ends_with(b"\n"),
        "whole characters and a last line break"
    );
}
