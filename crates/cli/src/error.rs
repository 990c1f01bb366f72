//! How the program ends: one line for an error, an exit code, and no panic in a user's face.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::error::ErrorKind;
use thiserror::Error;

use crate::out;

/// Endings that are not plain failures.
#[derive(Debug, Error)]
pub(crate) enum Stop {
    /// The command line asks for something that makes no sense; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C or SIGTERM; the words say what was left behind.
    #[error("interrupted; {0}")]
    Interrupted(&'static str),
    /// Whoever reads our output has gone, as `head` does; nothing is wrong.
    #[error("the output was closed")]
    OutputClosed,
}

/// Exit code of a failure.
pub(crate) const FAILURE: u8 = 1;
/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Prints an error as one line and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let code = match error.downcast_ref::<Stop>() {
        Some(Stop::OutputClosed) => return ExitCode::SUCCESS,
        Some(Stop::Usage(_)) => USAGE,
        Some(Stop::Interrupted(_)) | None => FAILURE,
    };
    say(&chain(error));
    ExitCode::from(code)
}

/// Prints help and version as they are, and a wrong command line as one line.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that has gone needs no help.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let rendered = error.render().to_string();
    say(&match error.kind() {
        // The library would print the whole help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            usage_line(&format!("error: no command is given\n{}", usage_of(&rendered)))
        }
        _ => usage_line(&rendered),
    });
    ExitCode::from(USAGE)
}

/// The line of a help text that says how a command is used.
fn usage_of(rendered: &str) -> &str {
    rendered.lines().find(|line| line.starts_with("Usage:")).unwrap_or_default()
}

/// Folds the paragraphs of a usage error into one line: the complaint, the tips, where to find help.
fn usage_line(rendered: &str) -> String {
    let mut complaint = String::new();
    let mut command = "zamba".to_owned();
    for line in rendered.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(usage) = line.strip_prefix("Usage:") {
            let words = usage.split_whitespace().take_while(|w| w.chars().all(|c| c.is_ascii_lowercase()));
            command = words.collect::<Vec<_>>().join(" ");
            break;
        }
        if line.starts_with("For more information") {
            break;
        }
        let line = line.strip_prefix("error: ").unwrap_or(line);
        let joint = match complaint.as_str() {
            "" => "",
            c if c.ends_with(':') || line.starts_with('[') => " ",
            _ if line.starts_with("tip:") => "; ",
            _ => ", ",
        };
        complaint.push_str(joint);
        complaint.push_str(line);
    }
    format!("{complaint}; see `{command} --help`")
}

/// The messages of an error and its causes, joined by colons. A cause that its parent already quotes is left
/// out.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if line.is_empty() {
            line = message;
        } else if !line.contains(&message) {
            line.push_str(": ");
            line.push_str(&message);
        }
    }
    line
}

/// Writes one line to stderr, whatever the text holds: names of files and tensors may carry line breaks or
/// the escape codes of a terminal.
fn say(message: &str) {
    let mut line = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    out::note(&format!("zamba: {line}"));
}

/// The last panic of any thread, in words.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program. A panic that nobody below has caught ends it with one line and exit code 1.
///
/// The hook only takes notes: libraries below contain panics of their own dependencies, and those must
/// neither print nor end the program.
pub(crate) fn catch_panics(program: impl FnOnce() -> ExitCode) -> ExitCode {
    panic::set_hook(Box::new(|info| {
        let words = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{words}{place}"));
    }));
    panic::catch_unwind(AssertUnwindSafe(program)).unwrap_or_else(|_| {
        let words = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        let words = words.unwrap_or_else(|| "no message".to_owned());
        say(&format!("internal error: {words}; please report this with the command that you ran"));
        ExitCode::from(FAILURE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_is_one_line_without_repetition() {
        let error: anyhow::Result<()> = Err(anyhow::anyhow!("disk full"));
        let error = error.context("cannot write a.txt: disk full").context("export").unwrap_err();
        assert_eq!(chain(&error), "export: cannot write a.txt: disk full");
    }

    #[test]
    fn usage_errors_fold_into_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  --out <DIR>\n  --config <C>\n\n\
                        Usage: zamba init --out <DIR>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered),
            "the following required arguments were not provided: --out <DIR>, --config <C>; see `zamba init --help`"
        );
        let rendered = "error: unexpected argument '--tmp' found\n\n  tip: a similar argument exists: '--temp'\n\n\
                        Usage: zamba generate [OPTIONS]\n";
        assert_eq!(
            usage_line(rendered),
            "unexpected argument '--tmp' found; tip: a similar argument exists: '--temp'; see `zamba generate --help`"
        );
    }
}
