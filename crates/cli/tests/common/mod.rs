//! Runs the built binary in a folder of its own.

// Each test binary uses its own part of this module.
#![allow(dead_code, unreachable_pub)]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

#[path = "../../../zamba/tests/common/byte_model.rs"]
mod byte_model;

pub(crate) use byte_model::{config, tokenizer};

/// What a run of the program gave.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    fn new(output: Output) -> Self {
        Run {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            err: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }

    /// Demands success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    /// The JSON documents on stdout, one per line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Demands a failure with this code, nothing on stdout and one line on stderr, which is returned.
    #[track_caller]
    pub fn fails(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "", "a failure prints nothing on stdout");
        assert_eq!(self.err.lines().count(), 1, "one line: {}", self.err);
        assert!(!self.err.contains("panicked") && !self.err.contains("internal error"), "{}", self.err);
        self.err.trim_end()
    }
}

/// A folder to work in, which goes with the value.
pub struct Bench {
    dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    /// A bench with a model `m`, without tokenizer.
    pub fn with_model() -> Self {
        let bench = Bench::new();
        bench.write("c.json", config().to_string());
        bench.run(["init", "--config", "c.json", "--out", "m", "--seed", "7"]).ok();
        bench
    }

    /// A bench with a model `m` that has a tokenizer of single bytes.
    pub fn with_text_model() -> Self {
        let bench = Bench::new();
        bench.write("c.json", config().to_string());
        bench.write("t.json", tokenizer().to_string());
        bench.run(["init", "--config", "c.json", "--out", "m", "--seed", "7", "--tokenizer", "t.json"]).ok();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// The program with its folder and without the user's environment.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zamba"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["MODEL", "THREADS", "ISA", "DEVICE", "WEIGHTS", "API_KEY", "LOG"] {
            command.env_remove(format!("ZAMBA_{name}"));
        }
        command.env("HF_HOME", self.path("hf-home")).env("HF_HUB_OFFLINE", "1").env_remove("HF_TOKEN");
        command
    }

    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        Run::new(self.command(args).output().unwrap())
    }

    /// As `run`, with something to read on stdin.
    pub fn run_with_input<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &str) -> Run {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Run::new(child.wait_with_output().unwrap())
    }

    /// Names in a folder, hidden ones too.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Sends SIGINT as Ctrl-C does.
pub fn interrupt(pid: u32) {
    let status = Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// The numbers of a JSON list.
#[track_caller]
pub fn floats(list: &Value) -> Vec<Option<f64>> {
    list.as_array().unwrap_or_else(|| panic!("no list: {list}")).iter().map(Value::as_f64).collect()
}

/// The ids of a JSON list.
#[track_caller]
pub fn ids(list: &Value) -> Vec<u32> {
    list.as_array()
        .unwrap_or_else(|| panic!("no list: {list}"))
        .iter()
        .map(|x| x.as_u64().unwrap() as u32)
        .collect()
}

/// Every file of a folder with its contents.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}
