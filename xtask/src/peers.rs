//! Parity with the pinned Python programs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{Result, Steps, cargo, program, root, run};

const REQUIREMENTS: &str = "tests/peers/requirements.txt";
const GOLDEN: &str = "crates/zamba/tests/golden";
/// What `golden.py` is asked for to compare with the committed files.
const CHECK: [&str; 2] = ["--check", GOLDEN];

/// A script of tests/peers, to be run.
fn script(python: &Path, script: &str, args: &[&OsStr]) -> Command {
    let script = root().join("tests/peers").join(script);
    let all: Vec<&OsStr> = std::iter::once(script.as_os_str()).chain(args.iter().copied()).collect();
    let env = [
        // No byte code beside the scripts, and no attempt to reach a model hub.
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("HF_HUB_OFFLINE", "1"),
        // The models are tiny, and threads of two programs that wait for one another by spinning hold each other up.
        ("OMP_NUM_THREADS", "1"),
    ];
    program(python, &all, &env)
}

/// `cargo xtask peers`: the committed golden files are what `transformers` computes; the model agrees with larger models that
/// are computed now; checkpoints go both ways without loss; benchmarks are scored as lm-evaluation-harness scores them; the
/// server does what the clients of others and a browser expect of it; duplicates are those of datasketch, token shards and
/// blending those of Megatron-LM.
pub(crate) fn parity(steps: &mut Steps, python: Option<PathBuf>, scale: u32) -> Result {
    let python = python_with_packages(steps, python)?;
    // Chosen among all of the workspace, as are the tests below: a package by itself has other features of what it
    // depends on, and so another build of all of it. That of the tests serves here, kernels are optimised in it.
    steps
        .step("programs", || cargo(&["build", "--workspace", "--bin", "zamba", "--example", "peers"], &[]))?;
    let (binary, example) = (root().join("target/debug/zamba"), root().join("target/debug/examples/peers"));
    let zamba: [&OsStr; 2] = ["--zamba".as_ref(), binary.as_ref()];
    let data: [&OsStr; 2] = ["--program".as_ref(), example.as_ref()];
    let fresh = root().join("target/peers/golden");
    let factor = scale.to_string();
    let larger = ["--out".as_ref(), fresh.as_ref(), "--scale".as_ref(), factor.as_ref()];
    let both_ways = [&zamba[..], &["--golden".as_ref(), GOLDEN.as_ref()]].concat();
    // The long ones first, so that none is left over at the end.
    steps.together(vec![
        ("benchmarks as lm-evaluation-harness scores them", script(&python, "eval.py", &zamba)),
        ("golden files of larger models", script(&python, "golden.py", &larger)),
        ("committed golden files", script(&python, "golden.py", &CHECK.map(OsStr::new))),
        ("lm-evaluation-harness against the server", script(&python, "serve_lm_eval.py", &zamba)),
        ("schemathesis over the OpenAPI document", script(&python, "serve_schemathesis.py", &zamba)),
        ("round trips", script(&python, "roundtrip.py", &both_ways)),
        ("shards and blending against Megatron-LM", script(&python, "shards.py", &data)),
        ("MinHash against datasketch", script(&python, "minhash.py", &data)),
    ])?;
    let env = [("ZAMBA_GOLDENS", fresh.to_str().ok_or("the path of this repository is not UTF-8")?)];
    steps.step("model and training steps against larger models", || {
        cargo(&["test", "--workspace", "--test", "golden", "--test", "golden_steps"], &env)
    })?;
    // These look at the clock, so nothing runs beside them.
    for (name, program) in [
        ("the client of OpenAI against the server", "serve_openai.py"),
        ("the client of Anthropic against the server", "serve_anthropic.py"),
        ("the page in Chromium", "serve_page.py"),
    ] {
        steps.step(name, || run(script(&python, program, &zamba)))?;
    }
    Ok(())
}

/// `cargo xtask goldens`.
pub(crate) fn goldens(steps: &mut Steps, python: Option<PathBuf>, replace: bool) -> Result {
    let python = python_with_packages(steps, python)?;
    if replace {
        let args = ["--out", GOLDEN].map(OsStr::new);
        steps.step("golden files", || run(script(&python, "golden.py", &args)))
    } else {
        steps.step("committed golden files", || run(script(&python, "golden.py", &CHECK.map(OsStr::new))))
    }
}

/// The given Python, or one in a virtual environment under `target` with the pinned packages.
fn python_with_packages(steps: &mut Steps, given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(python) = given {
        return Ok(python);
    }
    let venv = root().join("target/peers/venv");
    let python = venv.join("bin/python");
    let wanted = fs::read_to_string(root().join(REQUIREMENTS)).map_err(|e| format!("{REQUIREMENTS}: {e}"))?;
    let mark = venv.join("installed-requirements.txt");
    // The mark is written last, so an installation that was cut short is begun again.
    if fs::read_to_string(&mark).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    steps.step("python packages", || {
        run(program("python3", &["-m".as_ref(), "venv".as_ref(), "--clear".as_ref(), venv.as_ref()], &[]))?;
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            "-r",
            REQUIREMENTS,
        ];
        run(program(&python, &install.map(OsStr::new), &[]))?;
        fs::write(&mark, &wanted).map_err(|e| format!("{}: {e}", mark.display()))
    })?;
    Ok(python)
}
