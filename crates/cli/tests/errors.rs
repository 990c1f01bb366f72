//! What goes wrong is one line that names the thing, with the right exit code.

mod common;

use common::Bench;

/// Runs each line of arguments and demands its exit code and words.
#[track_caller]
fn expect(bench: &Bench, code: i32, cases: &[(&str, &[&str])]) {
    for (args, words) in cases {
        let run = bench.run(args.split(' '));
        let line = run.fails(code);
        for word in *words {
            assert!(line.contains(word), "`{args}`: no `{word}` in: {line}");
        }
    }
}

#[test]
fn wrong_usage_exits_with_two() {
    let bench = Bench::with_model();
    expect(
        &bench,
        2,
        &[
            ("generate -m m -p a --tmp 1", &["--tmp", "--help"]),
            ("generate -m m", &["--prompt"]),
            ("generate -m m -p a -n 99999999999999999999999", &["99999999999999999999999"]),
            ("generate -m m -p a -n many", &["many"]),
            ("generate -m m -p a -t 0", &["--threads"]),
            ("generate -m m --tokens 1,x", &["x"]),
            ("generate -m m --tokens 1 --temp -1", &["temperature", "-1"]),
            ("generate -m m --tokens 1 --temp nan", &["temperature"]),
            ("generate -m m --tokens 1 --top-p 1.5", &["top_p"]),
            ("generate -m m --tokens 1 --logit-bias 5", &["logit-bias"]),
            ("generate -m m --tokens 1 --isa sse9", &["sse9"]),
            ("generate -m m --tokens 1 --device gpu", &["gpu", "cpu"]),
            ("init --out x", &["--config"]),
            ("init --config nothing --out x", &["nothing", "tiny"]),
            ("init --config tiny --out x --dtype f8", &["f8", "bf16"]),
            ("convert -m m --out x --max-shard-size 5XB", &["5XB"]),
            ("frobnicate", &["frobnicate"]),
        ],
    );
}

#[test]
fn failures_exit_with_one_and_name_the_thing() {
    let bench = Bench::with_model();
    bench.write("latin1.txt", b"caf\xe9");
    bench.write("bad.jsonl", "{\"tokens\":[1]}\n{\"tokens\":[1,]}\n");
    bench.write("big.jsonl", "{\"tokens\":[300]}\n");
    bench.write("text.jsonl", "{\"text\":\"a\"}\n");
    bench.write("broken.json", "{\"model_type\":\"zamba\",");
    bench.write("llama.json", "{\"model_type\":\"llama\"}");
    expect(
        &bench,
        1,
        &[
            ("info -m nowhere", &["nowhere"]),
            ("info -m c.json", &["c.json"]),
            ("info -m some/thing --offline", &["some/thing"]),
            ("generate -m m -p hello", &["tokenizer.json", "--tokens"]),
            ("generate -m m --tokens 1,300", &["token 300", "300"]),
            ("generate -m m --tokens 1 --logit-bias 300=1", &["300"]),
            ("generate -m m --tokens 1 -n 1 --ctx 99999999999999", &["--ctx"]),
            ("generate -m m --tokens 1,2,3 -n 1 --ctx 2", &["--ctx"]),
            ("generate -m m -f absent.txt", &["absent.txt"]),
            ("generate -m m -f latin1.txt", &["latin1.txt", "UTF-8"]),
            ("chat -m m", &["tokenizer.json"]),
            ("score -m m --input absent.jsonl", &["absent.jsonl"]),
            ("score -m m --input bad.jsonl", &["bad.jsonl:2"]),
            ("score -m m --input big.jsonl", &["big.jsonl:1", "300"]),
            ("score -m m --input text.jsonl", &["text.jsonl:1", "tokenizer.json"]),
            ("score -m m --input big.jsonl --logits m", &["300"]),
            ("init --config broken.json --out x", &["broken.json"]),
            ("init --config llama.json --out x", &["llama.json", "llama"]),
            ("init --config c.json --out c.json", &["c.json", "not a folder"]),
            ("init --config c.json --out c.json/x", &["c.json"]),
            ("init --config c.json --out x --tokenizer absent.json", &["absent.json"]),
            ("init --config c.json --out x --tokenizer broken.json", &["broken.json"]),
            ("convert -m m --out m", &["not empty"]),
            ("eval -m m --bpb absent.txt", &["absent.txt"]),
        ],
    );
    assert!(!bench.path("x").exists(), "nothing is left of a failed init");
}

#[test]
fn a_damaged_checkpoint_is_refused_by_every_command() {
    let bench = Bench::with_model();
    let weights = bench.path("m/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 4]).unwrap();
    bench.write("in.jsonl", "{\"tokens\":[1]}\n");
    let commands =
        ["info -m m", "generate -m m --tokens 1", "score -m m --input in.jsonl", "convert -m m --out y"];
    for command in commands {
        expect(&bench, 1, &[(command, &["model.safetensors"])]);
    }
    let mut nan = whole.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, nan).unwrap();
    expect(&bench, 1, &[("generate -m m --tokens 1", &["model.safetensors", "MANIFEST.json"])]);
    // Without the manifest the values themselves are what gives it away.
    std::fs::remove_file(bench.path("m/MANIFEST.json")).unwrap();
    expect(&bench, 1, &[("generate -m m --tokens 1", &["not finite"])]);
    assert!(!bench.path("y").exists());
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf8_are_no_panic() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::with_model();
    let odd = OsStr::from_bytes(b"caf\xe9");
    let run = bench.run([OsStr::new("info"), OsStr::new("-m"), odd]);
    assert!(run.fails(1).contains("caf"), "{}", run.err);
    bench.run([OsStr::new("generate"), OsStr::new("-m"), OsStr::new("m"), OsStr::new("-p"), odd]).fails(2);
}

#[cfg(unix)]
#[test]
fn names_with_line_breaks_and_escapes_stay_on_one_line() {
    let bench = Bench::new();
    let run = bench.run(["info", "-m", "a\nb\u{1b}[31m"]);
    assert!(!run.fails(1).contains('\u{1b}'), "{:?}", run.err);
}

#[test]
fn a_tokenizer_of_a_larger_vocabulary_is_refused() {
    let bench = Bench::with_text_model();
    let mut config = common::config();
    config["vocab_size"] = 5.into();
    bench.write("small.json", config.to_string());
    bench.run(["init", "--config", "small.json", "--out", "s", "--seed", "7"]).ok();
    std::fs::copy(bench.path("t.json"), bench.path("s/tokenizer.json")).unwrap();
    expect(&bench, 1, &[("generate -m s -p a", &["tokenizer.json", "5 tokens"])]);
}
