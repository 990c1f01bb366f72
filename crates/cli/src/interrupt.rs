//! Ctrl-C and SIGTERM: the first asks the running command to stop at its next safe place, the second ends the
//! program at once.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::Context;

use crate::error::{FAILURE, Stop};
use crate::out;

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Exit code for the first signal while there is nothing to stop; negative while there is.
static LEAVE: AtomicI32 = AtomicI32::new(-1);

/// Listens for both signals from now on.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let code = LEAVE.load(Ordering::SeqCst);
        if REQUESTED.swap(true, Ordering::SeqCst) || code >= 0 {
            out::note("");
            std::process::exit(if code >= 0 { code } else { FAILURE.into() });
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// As [`requested`], and forgets it: the request was for what has just been stopped, not for the whole
/// program.
pub(crate) fn take() -> bool {
    REQUESTED.swap(false, Ordering::SeqCst)
}

/// Says that there is nothing to stop for the time being: the first signal ends the program with this exit
/// code.
pub(crate) fn leave_at_once(code: Option<u8>) {
    LEAVE.store(code.map_or(-1, i32::from), Ordering::SeqCst);
}

/// Fails if the user asked to stop; `left` says what that leaves behind.
pub(crate) fn check(left: &'static str) -> Result<(), Stop> {
    if requested() { Err(Stop::Interrupted(left)) } else { Ok(()) }
}
