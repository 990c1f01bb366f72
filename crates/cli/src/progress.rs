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
    /// A bar for `total` units of work under a title.
    pub(crate) fn new(title: &str, total: u64, unit: Unit) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let counts = match unit {
            Unit::Bytes => "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}".to_owned(),
            Unit::Items(name) => format!("{{human_pos}}/{{human_len}} {name}"),
        };
        let template = format!("{{prefix}} {{wide_bar}} {counts} {{eta}} {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        Progress { bar, started: Instant::now(), shown: false }
    }

    /// Moves to an absolute position.
    pub(crate) fn set(&mut self, position: u64) {
        if !self.shown && self.started.elapsed() > PATIENCE && stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
            self.shown = true;
        }
        self.bar.set_position(position);
    }

    /// Moves on.
    pub(crate) fn add(&mut self, amount: u64) {
        self.set(self.bar.position() + amount);
    }

    /// Corrects the amount of work, where it becomes known only on the way.
    pub(crate) fn set_total(&mut self, total: u64) {
        self.bar.set_length(total);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
