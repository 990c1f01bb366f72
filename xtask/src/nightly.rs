//! What takes too long for every change: the server under load for a long time, and many random schedules.

use std::ffi::OsStr;

use crate::steps::{Result, Steps, cargo, program, root, run};

/// Schedules per format of weights, in `served_is_solo`.
const SCHEDULES: &str = "5000";

/// `cargo xtask nightly`: random schedules of the engine, then loads on a server of this machine (loopback only).
pub(crate) fn all(steps: &mut Steps, requests: u64, disconnects: u64) -> Result {
    let schedules = ["test", "-p", "zamba-serve", "--lib", "schedules", "--", "--nocapture"];
    steps.step("served is solo", || cargo(&schedules, &[("ZAMBA_SCHEDULES", SCHEDULES)]))?;
    let build =
        ["build", "--release", "-p", "zamba-cli", "-p", "zamba-serve", "--bin", "zamba", "--example", "load"];
    steps.step("zamba and its load", || cargo(&build, &[]))?;
    let release = root().join("target/release");
    let (zamba, load) = (release.join("zamba"), release.join("examples/load"));
    let model = root().join("target/nightly/demo");
    if !model.exists() {
        let init: [&OsStr; 5] =
            ["init".as_ref(), "--config".as_ref(), "demo".as_ref(), "--out".as_ref(), model.as_ref()];
        steps.step("a model", || run(program(&zamba, &init, &[])))?;
    }
    let (requests, disconnects) = (requests.to_string(), disconnects.to_string());
    let loads: [&[&str]; 8] = [
        &["burst"],
        &["disconnects", "--count", &disconnects],
        // A small cache is soon full: memory that grows from then on is not the cache's.
        &["soak", "--requests", &requests, "--flags", "--cache-size 64MiB", "--growth", "8192"],
        &["streams"],
        &["slow"],
        &["turns"],
        &["overhead"],
        &["bodies"],
    ];
    for args in loads {
        let all =
            ["--zamba".as_ref(), zamba.as_os_str(), "--model".as_ref(), model.as_os_str(), "--json".as_ref()];
        let all: Vec<&OsStr> = all.into_iter().chain(args.iter().map(OsStr::new)).collect();
        steps.step(args[0], || run(program(&load, &all, &[])))?;
    }
    Ok(())
}
