//! Where the time of a test goes, kernel by kernel.

use std::sync::Arc;

use serde::Serialize;
use zamba_kernels::Device;

use super::table;
use super::timed::{Kernel, Spent, Timed};
use crate::out;

/// Kernels with a smaller part of the time are not shown to people one by one.
const SHOWN: f64 = 0.005;

/// Looks at the kernels of a device if it is asked to, and does nothing else.
pub(crate) struct Watch {
    device: Arc<dyn Device>,
    timed: Option<Arc<Timed>>,
}

/// What a test took while its kernels were timed.
pub(crate) struct Taken {
    test: String,
    /// In all.
    seconds: f64,
    kernels: Vec<(Kernel, Spent)>,
}

/// The time of a test, kernel by kernel.
#[derive(Debug, Serialize)]
pub(crate) struct Profile {
    test: String,
    seconds: f64,
    /// Part of the time that no kernel took.
    share_outside_of_kernels: f64,
    /// Longest first.
    kernels: Vec<Line>,
}

/// A kernel beside the limits. Bytes count each operand once per call; operations are those of products and attention.
#[derive(Debug, Serialize)]
struct Line {
    kernel: String,
    calls: u64,
    seconds: f64,
    /// Part of the time of the test.
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tera_operations: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_gemm: Option<f64>,
    gbps: f64,
    fraction_of_read: f64,
}

impl Watch {
    pub(crate) fn new(device: Arc<dyn Device>, looks: bool) -> Self {
        let timed = looks.then(|| Arc::new(Timed::new(device.clone())));
        Watch { device, timed }
    }

    /// The device to compute on.
    pub(crate) fn device(&self) -> Arc<dyn Device> {
        match &self.timed {
            Some(timed) => timed.clone(),
            None => self.device.clone(),
        }
    }

    /// Runs `call`, which is looked at if it `counts`.
    pub(crate) fn over<R>(&self, counts: bool, call: impl FnOnce() -> R) -> R {
        let keep = |on| self.timed.iter().for_each(|timed| timed.keep(on));
        keep(counts);
        let result = call();
        keep(false);
        result
    }

    /// What it has seen of a test that took so many seconds in all. Begins anew.
    pub(crate) fn take(&self, test: String, seconds: f64) -> Option<Taken> {
        self.timed.as_ref().map(|timed| Taken { test, seconds, kernels: timed.take() })
    }
}

impl Taken {
    /// The profile beside what the machine can do, in bytes and operations per second: `flops`, and `quantised` where the
    /// matrix is.
    pub(crate) fn beside(self, bytes: f64, flops: f64, quantised: f64) -> Profile {
        let all = self.seconds;
        let line = |(kernel, spent): (Kernel, Spent)| {
            let arithmetic = if kernel.quantised { quantised } else { flops };
            Line::new(kernel, spent, all, bytes, arithmetic)
        };
        let kernels: Vec<Line> = self.kernels.into_iter().map(line).collect();
        let inside: f64 = kernels.iter().map(|line| line.share).sum();
        Profile { test: self.test, seconds: all, share_outside_of_kernels: 1.0 - inside, kernels }
    }
}

impl Line {
    fn new(kernel: Kernel, spent: Spent, all: f64, bytes: f64, flops: f64) -> Line {
        let seconds = spent.time.as_secs_f64().max(1e-9);
        let name = kernel.name;
        let speed = (spent.operations > 0).then_some(spent.operations as f64 / seconds);
        Line {
            kernel: kernel.matrix.map_or(name.to_owned(), |(i, o)| format!("{name} {i} -> {o}")),
            calls: spent.calls,
            seconds,
            share: seconds / all,
            tera_operations: speed.map(|speed| speed / 1e12),
            fraction_of_gemm: speed.map(|speed| speed / flops),
            gbps: spent.bytes as f64 / seconds / 1e9,
            fraction_of_read: spent.bytes as f64 / seconds / bytes,
        }
    }

    fn cells(&self) -> [String; 8] {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        [
            self.kernel.clone(),
            self.calls.to_string(),
            format!("{:.1}", 1e3 * self.seconds),
            percent(self.share),
            self.tera_operations.map_or(String::new(), |speed| format!("{speed:.2}")),
            self.fraction_of_gemm.map_or(String::new(), percent),
            format!("{:.1}", self.gbps),
            percent(self.fraction_of_read),
        ]
    }
}

impl Profile {
    /// Prints a table, the kernels that take next to nothing in one line.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let (shown, small): (Vec<&Line>, Vec<&Line>) = self.kernels.iter().partition(|l| l.share >= SHOWN);
        let rest = |name: String, calls: String, share: f64| {
            let (ms, share) =
                (format!("{:.1}", 1e3 * share * self.seconds), format!("{:.1} %", 100.0 * share));
            [name, calls, ms, share, String::new(), String::new(), String::new(), String::new()]
        };
        let mut rows: Vec<_> = shown.into_iter().map(Line::cells).collect();
        if !small.is_empty() {
            let calls = small.iter().map(|line| line.calls).sum::<u64>().to_string();
            rows.push(rest(format!("{} others", small.len()), calls, small.iter().map(|l| l.share).sum()));
        }
        rows.push(rest("outside of kernels".to_owned(), String::new(), self.share_outside_of_kernels));
        out::line(&format!("\n{}, {:.2} s", self.test, self.seconds))?;
        let heads = ["kernel", "calls", "ms", "of time", "T/s", "of arithmetic", "GB/s", "of read"];
        table(&heads, &rows)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn kernels_and_the_rest_are_the_whole_time() {
        let spent = |seconds, operations| Spent {
            calls: 2,
            time: Duration::from_secs(seconds),
            operations,
            bytes: 8,
        };
        let product = Kernel { name: "linear", matrix: Some((4, 8)), quantised: false };
        let quantised = Kernel { quantised: true, ..product };
        let add = Kernel { name: "add", matrix: None, quantised: false };
        let kernels = vec![(product, spent(3, 6)), (quantised, spent(3, 12)), (add, spent(1, 0))];
        let profile = Taken { test: "pp1".into(), seconds: 8.0, kernels }.beside(2.0, 4.0, 16.0);
        let [product, quantised, add] = &profile.kernels[..] else { panic!("three kernels") };
        assert_eq!((product.kernel.as_str(), product.share), ("linear 4 -> 8", 0.375));
        assert_eq!((product.tera_operations, product.fraction_of_gemm), (Some(2e-12), Some(0.5)));
        assert_eq!((quantised.tera_operations, quantised.fraction_of_gemm), (Some(4e-12), Some(0.25)));
        assert_eq!((add.kernel.as_str(), add.tera_operations, add.fraction_of_read), ("add", None, 4.0));
        assert_eq!(profile.share_outside_of_kernels, 0.125);
    }
}
