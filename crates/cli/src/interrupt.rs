//! Ctrl-C and SIGTERM: the first asks the running command to stop at its next safe place, the second ends the
//! program at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::error::Stop;
use crate::out;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static IDLE: AtomicBool = AtomicBool::new(false);

/// Listens for both signals from now on.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let idle = IDLE.load(Ordering::SeqCst);
        if REQUESTED.swap(true, Ordering::SeqCst) || idle {
            out::note("");
            std::process::exit(if idle { 0 } else { 1 });
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The flag itself, for code below that looks at it while it works.
pub(crate) fn flag() -> &'static AtomicBool {
    &REQUESTED
}

/// As [`requested`], and forgets it: the request was for what has just been stopped, not for the whole program.
pub(crate) fn take() -> bool {
    REQUESTED.swap(false, Ordering::SeqCst)
}

/// Says whether the program waits for the user. A signal then ends it at once, and nothing has failed.
pub(crate) fn idle(idle: bool) {
    IDLE.store(idle, Ordering::SeqCst);
}

/// Fails if the user asked to stop; `left` says what that leaves behind.
pub(crate) fn check(left: &'static str) -> Result<(), Stop> {
    if requested() { Err(Stop::Interrupted(left)) } else { Ok(()) }
}
