//! What the operating system says of the machine and of this process. Where it says nothing, as outside Linux,
//! the answers are empty.

use std::fs;

/// Name of the processor, as its maker writes it.
pub(crate) fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Most memory that this process has had at once, in bytes, since it started or [`forget_peak`].
pub(crate) fn peak_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Lets [`peak_memory`] begin anew, where the system can.
pub(crate) fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Lets this process open so many files and sockets, or as many as the system allows it; gives how many.
pub(crate) fn allow_descriptors(wanted: u64) -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let now = current?;
    let next = wanted.min(maximum.unwrap_or(wanted));
    if next <= now {
        return Some(now);
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(next), maximum });
    Some(if raised.is_ok() { next } else { now })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_system_answers() {
        assert!(!cpu_model().is_empty());
        let peak = peak_memory().unwrap();
        assert!(peak > 1 << 20, "{peak}");
    }
}
