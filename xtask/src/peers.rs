//! Parity with the pinned Python programs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::steps::{Result, Steps, cargo, root, run};

const REQUIREMENTS: &str = "tests/peers/requirements.txt";
const GOLDEN: &str = "crates/zamba/tests/golden";

/// Runs a script of tests/peers.
fn run_python(python: &Path, script: &str, args: &[&OsStr]) -> Result {
    let script = root().join("tests/peers").join(script);
    let all: Vec<&OsStr> = std::iter::once(script.as_os_str()).chain(args.iter().copied()).collect();
    // No byte code beside the scripts, and no attempt to reach a model hub.
    run(python, &all, &[("PYTHONDONTWRITEBYTECODE", "1"), ("HF_HUB_OFFLINE", "1")])
}

/// `cargo xtask peers`: the committed golden files are what `transformers` computes; the model agrees with larger models that
/// are computed now; checkpoints go both ways without loss; benchmarks are scored as lm-evaluation-harness scores them; the
/// server does what the clients of others and a browser expect of it.
pub(crate) fn parity(steps: &mut Steps, python: Option<PathBuf>, scale: u32) -> Result {
    let python = python_with_packages(steps, python)?;
    compare(steps, &python)?;
    let fresh = root().join("target/peers/golden");
    let scale = scale.to_string();
    steps.step("golden files of larger models", || {
        run_python(
            &python,
            "golden.py",
            &["--out".as_ref(), fresh.as_ref(), "--scale".as_ref(), scale.as_ref()],
        )
    })?;
    let env = [("ZAMBA_GOLDENS", fresh.to_str().ok_or("the path of this repository is not UTF-8")?)];
    // Chosen among all of the workspace, as are the programs below: a package by itself has other features of what it
    // depends on, and so another build of all of it. That of the tests serves here, kernels are optimised in it.
    steps.step("model and training steps against larger models", || {
        cargo(&["test", "--workspace", "--test", "golden", "--test", "golden_steps"], &env)
    })?;
    steps
        .step("programs", || cargo(&["build", "--workspace", "--bin", "zamba", "--example", "peers"], &[]))?;
    let binary = root().join("target/debug/zamba");
    steps.step("round trips", || {
        run_python(
            &python,
            "roundtrip.py",
            &["--zamba".as_ref(), binary.as_ref(), "--golden".as_ref(), GOLDEN.as_ref()],
        )
    })?;
    steps.step("benchmarks as lm-evaluation-harness scores them", || {
        run_python(&python, "eval.py", &["--zamba".as_ref(), binary.as_ref()])
    })?;
    serving(steps, &python, &binary)?;
    data(steps, &python)
}

/// The server under the clients of others, and its page in a browser.
fn serving(steps: &mut Steps, python: &Path, binary: &Path) -> Result {
    let args: [&OsStr; 2] = ["--zamba".as_ref(), binary.as_ref()];
    let scripts = [
        ("the client of OpenAI against the server", "serve_openai.py"),
        ("the client of Anthropic against the server", "serve_anthropic.py"),
        ("lm-evaluation-harness against the server", "serve_lm_eval.py"),
        ("schemathesis over the OpenAPI document", "serve_schemathesis.py"),
        ("the page in Chromium", "serve_page.py"),
    ];
    scripts.iter().try_for_each(|(name, script)| steps.step(name, || run_python(python, script, &args)))
}

/// Duplicates against datasketch; token shards and blending against Megatron-LM.
fn data(steps: &mut Steps, python: &Path) -> Result {
    let program = root().join("target/debug/examples/peers");
    let args: [&OsStr; 2] = ["--program".as_ref(), program.as_ref()];
    steps.step("MinHash against datasketch", || run_python(python, "minhash.py", &args))?;
    steps.step("shards and blending against Megatron-LM", || run_python(python, "shards.py", &args))
}

/// `cargo xtask goldens`.
pub(crate) fn goldens(steps: &mut Steps, python: Option<PathBuf>, replace: bool) -> Result {
    let python = python_with_packages(steps, python)?;
    if replace {
        steps.step("golden files", || run_python(&python, "golden.py", &["--out".as_ref(), GOLDEN.as_ref()]))
    } else {
        compare(steps, &python)
    }
}

fn compare(steps: &mut Steps, python: &Path) -> Result {
    steps.step("committed golden files", || {
        run_python(python, "golden.py", &["--check".as_ref(), GOLDEN.as_ref()])
    })
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
        run("python3", &["-m".as_ref(), "venv".as_ref(), "--clear".as_ref(), venv.as_ref()], &[])?;
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
        run(&python, &install.map(OsStr::new), &[])?;
        fs::write(&mark, &wanted).map_err(|e| format!("{}: {e}", mark.display()))
    })?;
    Ok(python)
}
