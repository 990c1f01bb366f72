//! `zamba bench`: what it prints. Nothing here judges a speed.

mod common;

use common::Bench;
use serde_json::Value;

/// Demands numbers that are finite and above zero under all these keys.
#[track_caller]
fn positive(value: &Value, keys: &[&str]) {
    for key in keys {
        let number = value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"));
        assert!(number > 0.0 && number.is_finite(), "{key}: {number}");
    }
}

#[test]
fn a_model_is_measured_beside_the_machine() {
    let bench = Bench::with_model();
    let args =
        ["bench", "-m", "m", "--pp", "8,20", "--tg", "3", "--depth", "0,5", "--batch", "1,2", "-r", "2"];
    let found = bench.run(args.iter().chain(&["--first-token", "-t", "2", "--json"])).json();
    let machine = &found["machine"];
    assert!(!machine["cpu"].as_str().unwrap().is_empty() && !machine["isa"].as_str().unwrap().is_empty());
    positive(machine, &["threads", "read_gbps"]);
    let units = machine["units"].as_array().unwrap();
    assert_eq!(units[0]["unit"], "f32 multiply-adds");
    units.iter().for_each(|unit| positive(unit, &["tera_operations"]));
    positive(
        &found,
        &["parameters", "bytes_of_weights", "bytes_of_state", "bytes_of_kv_per_token", "peak_bytes"],
    );
    positive(&found["first_token"], &["seconds", "load_seconds", "read_seconds", "ratio"]);

    let rows = found["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(names[..6], ["pp8", "pp20", "tg3", "pp8 b2", "pp20 b2", "tg3 b2"]);
    assert_eq!(names[6..9], ["pp8 @ d5", "pp20 @ d5", "tg3 @ d5"]);
    assert_eq!(names.len(), 12);
    for row in rows {
        positive(
            row,
            &["tokens_per_second", "bytes_per_token", "flops_per_token", "read_gbps", "gemm_tflops"],
        );
        positive(row, &["fraction_of_read", "fraction_of_gemm"]);
        assert!(row["stddev"].as_f64().unwrap() >= 0.0);
        let number = |key: &str| row[key].as_f64().unwrap();
        let fraction = number("tokens_per_second") * number("bytes_per_token") / number("read_gbps") / 1e9;
        assert!((fraction / number("fraction_of_read") - 1.0).abs() < 1e-9);
    }
}

#[test]
fn a_training_step_is_measured_by_preset_and_by_recipe() {
    let bench = Bench::new();
    bench.write("c.json", common::config().to_string());
    let recipe = "model = \"c.json\"\nsequence = 24\nmicro_batch = 2\nglobal_batch = 4\ncheckpoint_every = 1\n\
        compute = \"bf16\"\n[[phase]]\nname = \"a\"\nsteps = 1\npeak = 1e-3\nschedule = { kind = \"constant\" }\n\
        sources = [{ name = \"s\", path = \"s\", weight = 1 }]\n";
    bench.write("run.toml", recipe);
    for (what, extra, name, dtype) in [
        ("tiny", &["--tokens", "32"][..], "train tiny t32", "bfloat16"),
        ("tiny", &["--tokens", "32", "--batch", "2", "--dtype", "f32"], "train tiny t32 b2", "float32"),
        ("run.toml", &[], "train run t24 b4", "bfloat16"),
        ("run.toml", &["--tokens", "8", "--batch", "3"], "train run t8 b3", "bfloat16"),
    ] {
        let args = ["bench", "--train", what, "-r", "2", "--json"];
        let found = bench.run(args.iter().chain(extra)).json();
        assert_eq!((found["dtype"].as_str().unwrap(), found["rows"].as_array().unwrap().len()), (dtype, 1));
        let row = &found["rows"][0];
        assert_eq!(row["test"], name);
        positive(row, &["tokens_per_second", "flops_per_token", "gemm_tflops", "fraction_of_gemm"]);
        positive(&row["seconds"], &["forward", "backward", "optimiser"]);
        positive(&found, &["parameters", "peak_bytes"]);
    }
    let refused = bench.run(["bench", "--train", "nothing"]);
    assert!(refused.fails(2).contains("44m"), "{}", refused.err);
    let refused = bench.run(["bench", "--train", "tiny", "--dtype", "f16"]);
    assert!(refused.fails(2).contains("f16"), "{}", refused.err);
}

/// Demands that a profile's kernels, with what lies outside of them, are all of the time, longest first.
#[track_caller]
fn whole(profile: &Value, test: &str, kernels: &[&str]) {
    assert_eq!(profile["test"], test);
    positive(profile, &["seconds"]);
    let lines = profile["kernels"].as_array().unwrap();
    let shares: Vec<_> = lines.iter().map(|line| line["share"].as_f64().unwrap()).collect();
    let outside = profile["share_outside_of_kernels"].as_f64().unwrap();
    assert!(shares.is_sorted_by(|a, b| a >= b) && (0.0..1.0).contains(&outside), "{profile}");
    assert!((shares.iter().sum::<f64>() + outside - 1.0).abs() < 1e-9, "{profile}");
    for line in lines {
        positive(line, &["calls", "seconds", "share", "gbps", "fraction_of_read"]);
    }
    for kernel in kernels {
        let line =
            lines.iter().find(|line| line["kernel"].as_str().unwrap().split(' ').next() == Some(kernel));
        let line = line.unwrap_or_else(|| panic!("{kernel} in {profile}"));
        let counts = kernel.starts_with("linear") || kernel.starts_with("attention");
        assert_eq!(
            line["tera_operations"].is_number() && line["fraction_of_gemm"].is_number(),
            counts,
            "{line}"
        );
    }
}

#[test]
fn a_profile_shows_every_kernel() {
    let bench = Bench::with_model();
    let found = bench.run(["bench", "-m", "m", "--pp", "8", "--tg", "3", "--profile", "--json"]).json();
    let profiles = found["profiles"].as_array().unwrap();
    assert_eq!(profiles.len(), 2);
    for (profile, test) in profiles.iter().zip(["pp8", "tg3"]) {
        whole(profile, test, &["linear", "scan", "conv", "attention", "rmsnorm", "embed"]);
    }
    // Only what counts is timed: three repetitions of one pass, which looks up its tokens once.
    let embed = profiles[0]["kernels"].as_array().unwrap().iter().find(|line| line["kernel"] == "embed");
    assert_eq!(embed.unwrap()["calls"], 3);

    let args = ["bench", "--train", "tiny", "--tokens", "32", "-r", "2", "--profile", "--json"];
    let found = bench.run(args).json();
    let expected = ["linear", "linear_dx", "linear_dw", "scan", "scan_bwd", "attention_bwd", "adamw"];
    whole(&found["profiles"][0], "train tiny t32", &expected);

    let run = bench.run(["bench", "-m", "m", "--pp", "8", "--tg", "0", "-r", "1", "--profile"]).ok();
    assert!(run.out.contains("| kernel") && run.out.contains("| outside of kernels"), "{}", run.out);
    assert!(bench.run(["bench", "--gemm", "--profile"]).fails(2).contains("--profile"));
}

#[test]
fn text_is_a_table_as_llama_bench_prints() {
    let bench = Bench::with_model();
    let run = bench.run(["bench", "-m", "m", "--pp", "0", "--tg", "2", "-r", "1"]).ok();
    let lines: Vec<_> = run.out.lines().collect();
    assert!(lines[0].contains("read") && lines[0].contains("GB/s"), "{}", run.out);
    assert!(lines[2].starts_with("| test"), "{}", run.out);
    assert!(lines[4].starts_with("| tg2") && lines.len() == 5, "{}", run.out);
}

#[test]
fn questions_without_an_answer_are_refused() {
    let bench = Bench::with_model();
    for (args, says) in [
        (&["bench"][..], "--model"),
        (&["bench", "-m", "m", "--pp", "x"], "--pp"),
        (&["bench", "-m", "m", "--batch", "0"], "--batch"),
        (&["bench", "-m", "m", "--tokens", "5"], "--train"),
    ] {
        let run = bench.run(args);
        assert!(run.fails(2).contains(says), "{}", run.err);
    }
    for (args, says) in [
        (&["bench", "-m", "m", "--device", "reference"][..], "reference"),
        (&["bench", "-m", "m", "--pp", "0", "--tg", "0"], "nothing to measure"),
        (&["bench", "-m", "m", "--tg", "1000000000000"], "fewer tokens"),
    ] {
        let run = bench.run(args);
        assert!(run.fails(1).contains(says), "{}", run.err);
    }
}
