//! What the system says of this process, under the names that Prometheus' own clients use.

use std::fmt::Error;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

/// Looks at the process whenever metrics are asked for. Elsewhere than on Linux it sees nothing.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut tell = |name: &str, help: &str, value: Option<i64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name| field(&status, name).and_then(|n| n.checked_mul(1024));
        tell("process_resident_memory_bytes", "Memory in RAM", kib("VmRSS"))?;
        tell("process_virtual_memory_bytes", "Address space", kib("VmSize"))?;
        tell("process_threads", "Threads", field(&status, "Threads"))?;
        let open = fs::read_dir("/proc/self/fd").ok().and_then(|list| i64::try_from(list.count()).ok());
        tell("process_open_fds", "Open descriptors", open)
    }
}

/// The number of a line such as `VmRSS:   1234 kB`.
fn field(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_and_descriptors_are_told() {
        let text = Metrics::default().text();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} is missing in {text}")).parse::<u64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1 << 20);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1 && value("process_open_fds") >= 3);
    }
}
