//! Progress bars: on stderr, only if that is a terminal, and only for work of more than two seconds.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that takes less is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(2);
/// Drawings per second.
const RATE: u8 = 5;

/// What a bar counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Bytes, shown in binary units.
    Bytes,
    /// Anything else, by name.
    Items(&'static str),
}

/// A bar that shows itself when the work turns out to be long. It is wiped when dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: bool,
}

impl Progress {
    /// A bar for `total` units of work under a title; 0 stands for an amount that nobody knows.
    pub(crate) fn new(title: &str, total: u64, unit: Unit) -> Self {
        let known = Some(total).filter(|&total| total > 0);
        let bar = ProgressBar::with_draw_target(known, ProgressDrawTarget::hidden());
        let template = match (unit, known) {
            (Unit::Bytes, Some(_)) => {
                "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
                    .to_owned()
            }
            (Unit::Bytes, None) => "{prefix} {spinner} {binary_bytes} {msg}".to_owned(),
            (Unit::Items(name), Some(_)) => {
                format!("{{prefix}} {{wide_bar}} {{human_pos}}/{{human_len}} {name} {{msg}} {{eta}}")
            }
            (Unit::Items(name), None) => format!("{{prefix}} {{spinner}} {{human_pos}} {name} {{msg}}"),
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        Progress { bar, started: Instant::now(), shown: false }
    }

    /// As [`Progress::new`], for work of which the first part was done before.
    pub(crate) fn resumed(title: &str, done: u64, total: u64, unit: Unit) -> Self {
        let progress = Progress::new(title, total, unit);
        progress.bar.set_position(done);
        progress.bar.reset_eta();
        progress
    }

    /// Moves to an absolute position.
    pub(crate) fn set(&mut self, position: u64) {
        if !self.shown && self.started.elapsed() > PATIENCE && self.draws() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
            self.shown = true;
        }
        self.bar.set_position(position);
    }

    /// Moves on.
    pub(crate) fn add(&mut self, amount: u64) {
        self.set(self.bar.position() + amount);
    }

    /// Words beside the bar.
    pub(crate) fn say(&self, words: &str) {
        self.bar.set_message(words.to_owned());
    }

    /// Whether there is a terminal to draw on.
    pub(crate) fn draws(&self) -> bool {
        stderr().is_terminal()
    }

    /// Prints something without tearing the bar.
    pub(crate) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
