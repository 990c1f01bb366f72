//! Tests on emulated tiles.
//!
//! The emulator is a library in C, preloaded into the test programs, which are built with an option that takes tiles for
//! granted. It shows that results are right and never how fast they come.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::steps::{Result, Steps, cargo, program, root, run as run_program};

/// Builds the emulator and runs the tests of kernels and model under it.
pub(crate) fn run(steps: &mut Steps) -> Result {
    let folder = root().join("target/tiles");
    let (library, log) = (folder.join("libemulate.so"), folder.join("tiles.log"));
    steps.step("emulator of tiles", || {
        fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        build(&library)
    })?;
    steps.step("tests on emulated tiles", || {
        fs::write(&log, "").map_err(|e| format!("cannot write {}: {e}", log.display()))?;
        let runner = format!("env LD_PRELOAD={} TILES_LOG={}", library.display(), log.display());
        let env = [
            ("RUSTFLAGS", "--cfg zamba_emulated_tiles"),
            ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", &runner),
        ];
        cargo(&["test", "-p", "zamba-kernels", "-p", "zamba", "--target-dir", "target/tiles"], &env)?;
        println!("{} tile instructions", executed(&log)?);
        Ok(())
    })
}

fn build(library: &Path) -> Result {
    let source = root().join("tests/tiles/emulate.c");
    let flags = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-mno-red-zone", "-o"].map(OsStr::new);
    let args = [&flags[..], &[library.as_os_str(), source.as_os_str()]].concat();
    run_program(program("cc", &args, &[]))
}

/// How many tile instructions the test programs executed: if none, nothing was tested.
fn executed(log: &Path) -> Result<u64> {
    let text = fs::read_to_string(log).map_err(|e| format!("cannot read {}: {e}", log.display()))?;
    let count = |line: &str| line.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    match text.lines().filter_map(count).sum() {
        0 => Err("no tile instruction was executed".into()),
        all => Ok(all),
    }
}
