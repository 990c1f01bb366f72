//! Checks of the repository: `cargo xtask ci`, `peers`, `goldens`, `record`, `sanitize`, `miri`, `tiles`,
//! `nightly`, `tidy`.
//!
//! A step prints its name when it starts and its time when it ends; the first one that fails ends the
//! command with a line that says which, and with exit status 1.

mod nightly;
mod peers;
mod record;
mod steps;
mod tidy;
mod tiles;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use steps::{Steps, cargo, program};

/// Checks of the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that needs only Rust: format, lints, docs, rules of the house, optimised tests, licences
    Ci,
    /// Parity with other people's programs; needs Python, installs the pinned packages under `target`
    Peers {
        /// A Python that has the packages of tests/peers/requirements.txt; by default one is set up
        #[arg(long)]
        python: Option<PathBuf>,
        /// Factor on the sizes of the models that are computed afresh
        #[arg(long, default_value_t = 2)]
        scale: u32,
    },
    /// Compute the golden files again and compare them with the committed ones
    Goldens {
        /// Replace the committed ones
        #[arg(long)]
        replace: bool,
        /// A Python that has the packages of tests/peers/requirements.txt; by default one is set up
        #[arg(long)]
        python: Option<PathBuf>,
    },
    /// Run the bench and keep what it prints in benches/record (see benches/README.md)
    Record(record::Args),
    /// The kernels' tests, with every case on every tier, under AddressSanitizer (about five minutes)
    Sanitize,
    /// The kernels' tests under Miri, on the tiers whose instructions it knows, with the cases that are small enough (some
    /// 20 minutes; needs `rustup component add miri rust-src --toolchain nightly`)
    Miri,
    /// The tests of kernels and model on tiles that are emulated, for a machine that has AVX-512 with bf16 and no tiles (needs
    /// Linux on x86-64 and a C compiler; some ten minutes)
    Tiles,
    /// Random schedules of the engine and loads on a server, for hours if wanted
    Nightly {
        /// Requests of the soak
        #[arg(long, default_value_t = 200_000)]
        requests: u64,
        /// Clients that go away at a random moment
        #[arg(long, default_value_t = 10_000)]
        disconnects: u64,
    },
    /// The rules of the house that a program can hold: who depends on whom, where unsafe code stands
    Tidy,
}

fn main() -> ExitCode {
    let mut steps = Steps::default();
    let result = match Args::parse().command {
        Command::Ci => ci(&mut steps),
        Command::Peers { python, scale } => peers::parity(&mut steps, python, scale),
        Command::Goldens { replace, python } => peers::goldens(&mut steps, python, replace),
        Command::Record(args) => record::run(&mut steps, &args),
        Command::Sanitize => sanitize(&mut steps),
        Command::Miri => miri(&mut steps),
        Command::Tiles => tiles::run(&mut steps),
        Command::Nightly { requests, disconnects } => nightly::all(&mut steps, requests, disconnects),
        Command::Tidy => steps.step("tidy", tidy::check),
    };
    steps.finish(result)
}

/// Tests that depend on the instruction set loop over every tier of the machine themselves. They run here
/// in the release profile, because that is what users run and what reorders sums if anything does.
fn ci(steps: &mut Steps) -> steps::Result {
    let tiers: Vec<_> = zamba_kernels::cpu::Isa::available().into_iter().map(|isa| isa.to_string()).collect();
    println!("tiers of this machine: {}", tiers.join(", "));
    steps.step("fmt", || cargo(&["fmt", "--all", "--check"], &[]))?;
    steps.step("tidy", tidy::check)?;
    steps
        .step("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]))?;
    let strict = [("RUSTDOCFLAGS", "-D warnings")];
    steps
        .step("docs", || cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"], &strict))?;
    let optimised = ["test", "--release", "-p", "zamba-kernels", "-p", "zamba", "-p", "zamba-train"];
    steps.step("tests and golden files, optimised, every tier", || cargo(&optimised, &[]))?;
    // The advisory database is a download of its own that a closed network may not offer.
    steps.step("licences, duplicate versions, sources", || {
        cargo(&["deny", "--locked", "check", "licenses", "bans", "sources"], &[])
    })
}

/// The flag is unstable, so the compiler is told to take it all the same; a target directory of its own keeps other
/// builds as they are. Naming the target leaves build scripts and macros without it.
fn sanitize(steps: &mut Steps) -> steps::Result {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let tests =
        ["test", "-p", "zamba-kernels", "--lib", "--test", "kernels", "--test", "cpu", "--test", "quant"];
    let args = [&tests[..], &["--target", &target, "--target-dir", "target/sanitize"]].concat();
    let env = [
        ("RUSTC_BOOTSTRAP", "1"),
        ("RUSTFLAGS", "-Zsanitizer=address"),
        // Buffers that threads keep for the next call are no leak.
        ("ASAN_OPTIONS", "detect_leaks=0"),
    ];
    steps.step("kernels under AddressSanitizer", || cargo(&args, &env))
}

/// Numbers that go into a case, at most, that Miri is given, and into one of quantised weights, which begin there: it runs
/// some ten thousand times as slowly as the machine.
const MIRI_NUMBERS: usize = 700;
const MIRI_QUANTISED: usize = 2_200;

/// What is undefined, and what threads do to each other. Tiers are chosen by what the compiler is told, and those of tiles and
/// AVX-512 stay out, for Miri does not know them; nor does it know how `half` rounds to f16 where the processor can, so
/// quantised weights have a run without.
fn miri(steps: &mut Steps) -> steps::Result {
    let all = zamba_kernels::cases::all();
    let small = |quantised: bool| {
        let chosen = |place: &usize| {
            let most = if quantised { MIRI_QUANTISED } else { MIRI_NUMBERS };
            all[*place].numbers() <= most && all[*place].name().starts_with("linear Q") == quantised
        };
        let places: Vec<String> = (0..all.len()).filter(chosen).map(|place| place.to_string()).collect();
        println!("{} of {} cases, quantised: {quantised}", places.len(), all.len());
        // Miri hands a program the environment in which it was first built, unless it is told otherwise.
        format!(" -Zmiri-env-set=ZAMBA_CASES={}", places.join(","))
    };
    let tests = |folder: &str, features: &str, cases: &str, which: &[&str]| {
        let cargo =
            ["run", "nightly", "cargo", "miri", "test", "-p", "zamba-kernels", "--target-dir", folder];
        let args: Vec<&OsStr> = cargo.iter().chain(which).map(OsStr::new).collect();
        // Time and temporary files are the machine's, and a function like exp gives the same at every call.
        let flags = format!("-Zmiri-disable-isolation -Zmiri-deterministic-floats{cases}");
        program("rustup", &args, &[("RUSTFLAGS", features), ("MIRIFLAGS", &flags)])
    };
    let avx2 = "-Ctarget-feature=+avx2,+fma,+f16c";
    let cases = ["--test", "cpu", "the_number_of_threads"];
    let parts = ["--lib", "--", "--skip", "quant"];
    steps.together(vec![
        ("small cases on scalar and avx2", tests("target/miri/avx2", avx2, &small(false), &cases)),
        ("quantised weights on scalar", tests("target/miri/scalar", "", &small(true), &cases)),
        ("parts of the kernels on scalar and avx2", tests("target/miri/avx2", avx2, "", &parts)),
    ])
}
