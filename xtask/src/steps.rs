//! Running and timing steps.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Success, or a sentence that says what is wrong.
pub(crate) type Result<T = ()> = std::result::Result<T, String>;

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The steps done so far.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, f64)>,
}

impl Steps {
    /// Runs one step between a line with its name and a line with its time.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result) -> Result {
        println!("==> {name}");
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        self.done.push((name.to_owned(), seconds));
        match result {
            Ok(()) => {
                println!("<== {name}: ok, {seconds:.1} s");
                Ok(())
            }
            Err(why) => Err(format!("{name}: {why}")),
        }
    }

    /// Prints all times and the result.
    pub(crate) fn finish(self, result: Result) -> ExitCode {
        for (name, seconds) in &self.done {
            println!("{seconds:8.1} s  {name}");
        }
        match result {
            Ok(()) => {
                println!("xtask: all {} steps passed", self.done.len());
                ExitCode::SUCCESS
            }
            Err(why) => {
                println!("xtask: FAILED: {why}");
                ExitCode::FAILURE
            }
        }
    }
}

/// Runs a program in the workspace's folder with more environment variables, passing its output through.
///
/// What cargo tells this program about its own package goes no further: build scripts that ask to be run again when
/// those variables change would be, with all that depends on them, at every turn from a shell's cargo to this one.
pub(crate) fn run(program: impl AsRef<OsStr>, args: &[&OsStr], env: &[(&str, &str)]) -> Result {
    let mut command = Command::new(program.as_ref());
    command.args(args).envs(env.iter().copied()).current_dir(root()).stdin(Stdio::null());
    let shown = format!("{command:?}");
    for (name, _) in std::env::vars_os() {
        if is_of_a_package(&name) {
            command.env_remove(name);
        }
    }
    let status =
        command.status().map_err(|e| format!("{} does not start: {e}", program.as_ref().display()))?;
    if status.success() { Ok(()) } else { Err(format!("{status} from {shown}")) }
}

/// Whether cargo sets a variable to say which package it runs.
fn is_of_a_package(variable: &OsStr) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| variable.to_string_lossy().starts_with(start))
}

/// Runs cargo, the one that runs this program.
pub(crate) fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    run(program, &args, env)
}
