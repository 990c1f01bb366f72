//! Paths that lead elsewhere.

use crate::support::{Running, settings, status};

const DOTS: &[&str] = &[
    "..",
    ".",
    "...",
    "%2e%2e",
    "%2E.",
    ".%2e",
    "%252e%252e",
    "%c0%ae%c0%ae",
    "%e0%80%ae%e0%80%ae",
    "..;",
    "%00..",
    "..%00",
    "%uff0e%uff0e",
    ". .",
    "..%20",
    "%25252e%25252e",
    "．．",
    "..\\",
    "..%5c",
    "%5c..",
];
const SLASHES: &[&str] = &["/", "//", "%2f", "%2F", "\\", "%5c", "%255c", "%252f", "%c0%af", "/./"];
const ROOTS: &[&str] = &["/", "/assets/", "/v1/models/", "/v1/state/", "/static/"];
const TARGETS: &[&str] = &["etc/passwd", "Cargo.toml", "windows/win.ini", "proc/self/environ"];

/// Only what stands in a request line as it is; anything else is not an HTTP request in the first place.
fn sendable(path: &str) -> bool {
    !path.contains(' ')
}

#[test]
fn no_path_leads_to_a_file() {
    let server = Running::start(settings());
    let mut paths = vec![];
    for root in ROOTS {
        for dots in DOTS {
            for slash in SLASHES {
                for (depth, target) in [1, 3].into_iter().zip(TARGETS.iter().cycle().skip(paths.len() % 4)) {
                    paths.push(format!("{root}{}{target}", format!("{dots}{slash}").repeat(depth)));
                }
            }
        }
    }
    paths.retain(|path| sendable(path));
    assert!(paths.len() >= 1000, "{}", paths.len());
    for path in &paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = server.exchange(request);
        // Some are names that a saved state could have, and those are not for reading.
        assert!(matches!(status(&answer), 400 | 404 | 405), "{path}: {answer}");
        for content in ["root:", "[package]", "[fonts]", "PATH="] {
            assert!(!answer.contains(content), "{path}: {answer}");
        }
    }
    server.assert_alive();
}
