//! Running and timing steps.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// Success, or a sentence that says what is wrong.
pub(crate) type Result<T = ()> = std::result::Result<T, String>;

/// Why a lock is not poisoned.
const WHOLE: &str = "no thread panics while it holds this";

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

    /// Runs programs that do not need each other, in their order and two at a time: most of them wait for one thread of their
    /// own. What each wrote is shown when it has ended. After the first that fails no other begins.
    pub(crate) fn together(&mut self, programs: Vec<(&str, Command)>) -> Result {
        let queue = Mutex::new(programs.into_iter());
        let ended = Mutex::new((vec![], Ok(())));
        let work = || {
            loop {
                let next = queue.lock().expect(WHOLE).next();
                let Some((name, mut program)) = next.filter(|_| ended.lock().expect(WHOLE).1.is_ok()) else {
                    return;
                };
                println!("==> {name} (beside others)");
                let start = Instant::now();
                let output = program.output();
                let seconds = start.elapsed().as_secs_f64();
                let (done, result) = &mut *ended.lock().expect(WHOLE);
                done.push((name.to_owned(), seconds));
                match judge(&program, output) {
                    Ok(()) => println!("<== {name}: ok, {seconds:.1} s"),
                    Err(why) => *result = Err(format!("{name}: {why}")),
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(work);
            work();
        });
        let (done, result) = ended.into_inner().expect(WHOLE);
        self.done.extend(done);
        result
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

/// Prints what a program wrote, and says whether it succeeded.
fn judge(program: &Command, output: io::Result<Output>) -> Result {
    let output = output.map_err(|e| format!("{} does not start: {e}", program.get_program().display()))?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(format!("{} from {program:?}", output.status)) }
}

/// A program in the workspace's folder with more environment variables.
///
/// What cargo tells this program about its own package goes no further: build scripts that ask to be run again when
/// those variables change would be, with all that depends on them, at every turn from a shell's cargo to this one.
pub(crate) fn program(name: impl AsRef<OsStr>, args: &[&OsStr], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(name);
    command.args(args).envs(env.iter().copied()).current_dir(root()).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if is_of_a_package(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a [`program`], passing its output through.
pub(crate) fn run(mut program: Command) -> Result {
    let shown = format!("{program:?}");
    let status = program.status().map_err(|e| format!("{shown} does not start: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{status} from {shown}")) }
}

/// Whether cargo sets a variable to say which package it runs.
fn is_of_a_package(variable: &OsStr) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| variable.to_string_lossy().starts_with(start))
}

/// Runs cargo, the one that runs this program.
pub(crate) fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result {
    let name = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    run(program(name, &args, env))
}
