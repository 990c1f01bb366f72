//! `quantize` and what other commands make of its folders.

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{Bench, files, floats, ids};
use serde_json::json;

/// Four layers of width 128 over 300 tokens: wide enough for blocks of 128 columns.
fn bench() -> Bench {
    let bench = Bench::new();
    let mut config = common::config();
    config["hidden_size"] = 128.into();
    config["intermediate_size"] = 256.into();
    bench.write("c.json", config.to_string());
    bench.write("t.json", common::tokenizer().to_string());
    bench.run(["init", "--config", "c.json", "--out", "m", "--seed", "7", "--tokenizer", "t.json"]).ok();
    bench
}

#[test]
fn quantised_folders_are_smaller_and_predict_nearly_the_same() {
    let bench = bench();
    bench.write(
        "t.jsonl",
        "{\"text\":\"the quick brown fox jumps over the lazy dog\"}\n{\"text\":\"and again\"}\n",
    );
    let mut divergence = vec![];
    for (format, bits, most) in [("q8", 8.125, 0.01), ("q4", 4.125, 0.2)] {
        let made = bench.run(["quantize", "-m", "m", "--out", format, "--format", format, "--json"]).json();
        assert_eq!((&made["path"], &made["format"]), (&json!(format), &json!(format)));
        assert_eq!(made["calibration_tokens"], 0);
        let (all, quantised) =
            (made["parameters"].as_f64().unwrap(), made["quantised_parameters"].as_f64().unwrap());
        let bytes = quantised * bits / 8.0 + (all - quantised) * 4.0;
        assert_eq!(made["bytes_of_weights"].as_f64().unwrap(), bytes);
        assert!((made["bits_per_weight"].as_f64().unwrap() - 8.0 * bytes / all).abs() < 1e-9);
        let error = made["relative_error"].as_f64().unwrap();
        assert!(error > 0.001 && error < most, "{error}");
        assert_eq!(made["kinds"]["in_proj"]["tensors"], 4);
        assert!(made["kinds"]["embed_tokens"].is_null() && made["kinds"]["x_proj_weight"].is_null());
        assert!(bench.names(format).contains(&"tokenizer.json".to_owned()));

        let info = bench.run(["info", "-m", format, "--json"]).json();
        assert_eq!((&info["quantization"], &info["dtype"]), (&json!(format), &json!("float32")));
        assert_eq!(info["bytes_of_file"], made["bytes_of_weights"]);
        assert_eq!(info["bytes_of_weights"], made["bytes_of_weights"]);
        let table = bench.run(["info", "-m", format]).ok().out;
        assert!(table.contains(&format!("{format} and float32")), "{table}");

        let eval = bench.run(["eval", "-m", format, "--bpb", "t.jsonl", "--against", "m", "--json"]).json();
        let kl = eval["against"]["kl_divergence"].as_f64().unwrap();
        assert!(kl > 0.0 && eval["against"]["kl_divergence_max"].as_f64().unwrap() >= kl, "{eval}");
        let plain = bench.run(["eval", "-m", "m", "--bpb", "t.jsonl", "--json"]).json();
        let (of_other, alone) = (&eval["against"]["bits_per_byte"], &plain["bits_per_byte"]);
        assert!((of_other.as_f64().unwrap() - alone.as_f64().unwrap()).abs() < 1e-4, "{of_other} {alone}");
        assert!(plain["against"].is_null());
        divergence.push(kl);
    }
    assert!(divergence[0] < divergence[1], "{divergence:?}");
}

#[test]
fn every_device_understands_quantised_weights() {
    let bench = bench();
    bench.run(["quantize", "-m", "m", "--out", "q", "--format", "q4"]).ok();
    let args =
        ["generate", "-m", "q", "--tokens", "1,20,30", "-n", "8", "--json", "--ignore-eos", "--temp", "0"];
    let run = |extra: &[&str]| ids(&bench.run(args.iter().chain(extra)).json()["tokens"]);
    let first = run(&[]);
    assert_eq!(run(&["-t", "1"]), first);
    // Tiers round sums in other places, and where that decides to which integer an activation goes, it moves by a step.
    // All such moves together are a part of what rounding operands does at all, which the same weights multiplied
    // out to f32 show on this very model.
    bench.run(["convert", "-m", "q", "--out", "wide", "--dtype", "f32"]).ok();
    let tokens: Vec<u32> = (0..96).map(|i| (i * 37 + 1) % 300).collect();
    bench.write("score.jsonl", json!({ "tokens": tokens }).to_string());
    let score = |model: &str, extra: &[&str]| {
        let args = ["score", "-m", model, "--input", "score.jsonl"];
        let line = bench.run(args.iter().chain(extra)).json();
        let logprobs = line["logprobs"].as_array().unwrap().clone();
        logprobs.iter().skip(1).map(|x| x.as_f64().unwrap()).collect::<Vec<_>>()
    };
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let first = score("q", &[]);
    let rounding = distance(&first, &score("wide", &["--device", "reference"]));
    assert!(rounding > 0.0);
    for extra in [["--isa", "scalar"], ["--device", "reference"]] {
        let moved = distance(&first, &score("q", &extra));
        assert!(moved < rounding, "{extra:?}: {moved}, while rounding operands does {rounding}");
    }
    bench.write("in.jsonl", "{\"tokens\":[1,20,30,40]}\n");
    let score = bench.run(["score", "-m", "q", "--input", "in.jsonl"]).json();
    assert!(floats(&score["logprobs"])[1].unwrap() < 0.0);
}

#[test]
fn calibration_weighs_errors_and_depends_on_the_text() {
    let bench = bench();
    bench.write("t.txt", "some text that the model is for, over and over and over");
    let made =
        bench.run(["quantize", "-m", "m", "--out", "c", "-f", "q4", "--calibrate", "t.txt", "--json"]).json();
    assert!(made["calibration_tokens"].as_u64().unwrap() > 40);
    let plain = bench.run(["quantize", "-m", "m", "--out", "p", "-f", "q4", "--json"]).json();
    assert!(made["relative_error"].as_f64() > plain["relative_error"].as_f64());
    assert!(made["relative_output_error"].as_f64() < made["relative_error"].as_f64());
    assert_eq!(plain["relative_output_error"], plain["relative_error"]);
    assert_ne!(files(&bench.path("c")), files(&bench.path("p")));
    bench.run(["quantize", "-m", "m", "--out", "again", "-f", "q4", "--calibrate", "t.txt"]).ok();
    assert_eq!(files(&bench.path("c")), files(&bench.path("again")));
}

#[test]
fn convert_keeps_or_multiplies_out() {
    let bench = bench();
    bench.run(["quantize", "-m", "m", "--out", "q", "--format", "q8"]).ok();
    bench.run(["convert", "-m", "q", "--out", "shards", "--max-shard-size", "50KB"]).ok();
    assert!(bench.names("shards").iter().filter(|n| n.ends_with(".safetensors")).count() > 3);
    bench.run(["convert", "-m", "shards", "--out", "one"]).ok();
    assert_eq!(files(&bench.path("one")), files(&bench.path("q")));
    bench.run(["convert", "-m", "q", "--out", "wide", "--dtype", "f32"]).ok();
    let info = bench.run(["info", "-m", "wide", "--json"]).json();
    assert!(info["quantization"].is_null());
    assert_eq!(info["bytes_of_file"], 4 * info["parameters"].as_u64().unwrap());
    // What was multiplied out is quantised to the same integers again.
    let again = bench.run(["quantize", "-m", "wide", "--out", "q2", "--format", "q8", "--json"]).json();
    assert!(again["relative_error"].as_f64().unwrap() < 0.006, "{again}");
}

#[test]
fn what_cannot_be_quantised_or_used_is_refused_in_one_line() {
    let bench = bench();
    bench.run(["quantize", "-m", "m", "--out", "q", "--format", "q8"]).ok();
    let twice = bench.run(["quantize", "-m", "q", "--out", "x", "--format", "q4"]);
    assert!(twice.fails(1).contains("quantised already"), "{}", twice.err);
    let taken = bench.run(["quantize", "-m", "m", "--out", "q", "--format", "q4"]);
    assert!(taken.fails(1).contains("not empty"), "{}", taken.err);
    // Of this model only some matrices fall into blocks.
    let mut small = common::config();
    small["hidden_size"] = 64.into();
    bench.write("small.json", small.to_string());
    bench.run(["init", "--config", "small.json", "--out", "small"]).ok();
    bench.run(["quantize", "-m", "small", "--out", "x", "--format", "q4"]).ok();
    let mut tiny = common::config();
    (tiny["hidden_size"], tiny["intermediate_size"]) = (16.into(), 24.into());
    bench.write("tiny.json", tiny.to_string());
    bench.run(["init", "--config", "tiny.json", "--out", "tiny"]).ok();
    let nothing = bench.run(["quantize", "-m", "tiny", "--out", "y", "--format", "q4"]);
    assert!(nothing.fails(1).contains("too small"), "{}", nothing.err);
    let config = bench.path("q/config.json");
    let init = bench.run(["init", "--config", config.to_str().unwrap(), "--out", "y"]);
    assert!(init.fails(1).contains("zamba quantize"), "{}", init.err);
    bench.write("empty.txt", "");
    let empty = bench.run(["quantize", "-m", "m", "--out", "y", "-f", "q4", "--calibrate", "empty.txt"]);
    assert_eq!(empty.code, Some(1), "{empty:?}");
    let against = bench.run(["eval", "-m", "q", "--bpb", "c.json", "--against", "nowhere"]);
    assert!(against.fails(1).contains("nowhere"), "{}", against.err);
    assert!(!bench.path("y").exists());
}

#[test]
fn an_interrupted_quantisation_leaves_nothing() {
    let bench = Bench::new();
    bench.run(["init", "--config", "44m", "--out", "m"]).ok();
    let mut command = bench.command(["quantize", "-m", "m", "--out", "q", "--format", "q4"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(250));
    common::interrupt(child.id());
    let status = child.wait().unwrap();
    if !status.success() {
        assert_eq!(status.code(), Some(1));
        assert_eq!(bench.names("."), ["m"]);
    }
}
