//! The few requests that the hub is asked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::{Cache, failed};
use super::id::{ModelId, is_commit, is_plain, is_plain_path};
use super::{HubError, HubOptions, Progress};
use crate::checkpoint::manifest::hex;

/// A connection that gives nothing for this long is given up, and tried again.
const SILENCE: Duration = Duration::from_secs(30);
/// Attempts to fetch a file, without any progress between them, before giving up.
const ATTEMPTS: u32 = 5;
/// Attempts to ask the hub something.
pub(super) const QUESTIONS: u32 = 3;
const REDIRECTS: usize = 5;
/// Longest answer about a repository. One with ten thousand files stays below it.
const ANSWER_LIMIT: u64 = 16 << 20;
/// Bytes read at a time.
const BUFFER: usize = 1 << 18;

/// A repository at one commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// A file as the hub announces it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    /// Names the blob; the SHA-256 of files in large storage.
    tag: String,
    address: String,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
}

/// Why one request failed, and whether to make it again.
enum Failure {
    Passing(String),
    Lasting(HubError),
}

impl<'a> Client<'a> {
    pub(super) fn new(options: &'a HubOptions) -> Result<Self, HubError> {
        let unusable = |option, reason: String| HubError::Option { option, reason };
        if !options.endpoint.starts_with("https://") && !options.endpoint.starts_with("http://") {
            let reason = "it is not an http address".to_owned();
            return Err(unusable("the hub's endpoint", reason));
        }
        if options.token.as_ref().is_some_and(|token| token.chars().any(|c| !c.is_ascii_graphic())) {
            return Err(unusable("the token", "it holds characters that no token has".to_owned()));
        }
        let proxy = options.proxy.as_deref().map(ureq::Proxy::new).transpose();
        let proxy = proxy.map_err(|error| unusable("the proxy", error.to_string()))?;
        let mut tls = TlsConfig::builder();
        if let Some(path) = &options.certificates {
            tls = tls.root_certs(root_certificates(path)?);
        }
        // Redirects are followed here and not there: the token goes to the hub and to no other host.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(tls.build())
            .user_agent(concat!("zamba/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build();
        Ok(Client { agent: config.new_agent(), options })
    }

    /// The commit and files of a revision, asked for at most `attempts` times.
    pub(super) fn repository(&self, id: &ModelId, attempts: u32) -> Result<Repository, HubError> {
        let revision = id.revision.replace('/', "%2F");
        let address =
            format!("{}/api/{}/{}/revision/{revision}", self.options.endpoint, id.kind.plural(), id.name());
        let what = format!("{} at {}", id.name(), id.revision);
        let wrong = |reason: String| HubError::Protocol { what: what.clone(), reason };
        let bytes = self.persist(&what, attempts, &mut || {
            let mut response = self.follow("GET", &address, &what, None)?.0;
            let limited = response.body_mut().with_config().limit(ANSWER_LIMIT);
            limited.read_to_vec().map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => Failure::Lasting(wrong("it is too long".into())),
                other => Failure::Passing(other.to_string()),
            })
        })?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(wrong("it names no commit".into()));
        }
        let files = answer.siblings.into_iter().map(|sibling| sibling.rfilename);
        // Other names are of no use here, and some could lead out of the folder.
        Ok(Repository { commit: answer.sha, files: files.filter(|name| is_plain_path(name)).collect() })
    }

    /// Size, tag and address of a file.
    pub(super) fn file(&self, id: &ModelId, commit: &str, name: &str) -> Result<RemoteFile, HubError> {
        let address = format!("{}/{}/resolve/{commit}/{name}", self.options.endpoint, id.site_path());
        let what = format!("{name} of {}", id.name());
        let wrong = |reason: &str| HubError::Protocol { what: what.clone(), reason: reason.to_owned() };
        let headers = self.persist(&what, QUESTIONS, &mut || {
            let (response, first) = self.follow("HEAD", &address, &what, None)?;
            let mut headers = response.headers().clone();
            // Files in large storage are described by the hub, before it refers to the storage.
            for name in ["x-linked-etag", "x-linked-size", "x-repo-commit"] {
                if let Some(value) = first.get(name) {
                    headers.insert(name, value.clone());
                }
            }
            Ok(headers)
        })?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if text("x-repo-commit").is_some_and(|stated| stated != commit) {
            return Err(wrong("it is of another commit"));
        }
        let tag = text("x-linked-etag").or_else(|| text("etag")).ok_or_else(|| wrong("it has no ETag"))?;
        let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        if !is_plain(tag) {
            return Err(wrong("its ETag is no plain name"));
        }
        let size =
            text("x-linked-size").or_else(|| text("content-length")).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| wrong("it states no size"))?;
        Ok(RemoteFile { name: name.to_owned(), size, tag: tag.to_owned(), address })
    }

    /// Fetches a file into the cache and links it into the snapshot. `before` is what other files of
    /// the same download have brought, for `progress`.
    pub(super) fn download(
        &self,
        cache: &Cache,
        commit: &str,
        file: &RemoteFile,
        before: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let _lock = cache.lock(&file.tag)?;
        let blob = cache.blob(&file.tag);
        // Another process may have brought it while this one waited.
        if !blob.is_file() {
            let path = cache.incomplete(&file.tag);
            self.collect(file, &path, before, progress)?;
            if let Err(error) = verify(file, &path) {
                fs::remove_file(&path).map_err(failed(&path))?;
                return Err(error);
            }
            fs::rename(&path, &blob).map_err(failed(&blob))?;
        }
        progress(Progress::Bytes { file: &file.name, done: file.size, total_done: before + file.size });
        cache.link(commit, &file.name, &file.tag)
    }

    /// Appends to the file at `path` until it has all bytes.
    fn collect(
        &self,
        file: &RemoteFile,
        path: &Path,
        before: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let mut out = OpenOptions::new().create(true).append(true).open(path).map_err(failed(path))?;
        let (mut wait, mut attempt) = (self.options.retry_wait, 0);
        loop {
            let had = out.metadata().map_err(failed(path))?.len();
            match self.collect_once(file, &mut out, path, before, progress) {
                Ok(()) => return out.sync_all().map_err(failed(path)),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(reason)) => {
                    // A connection that brings something each time is slow, not broken.
                    let brought = out.metadata().map_err(failed(path))?.len() > had;
                    attempt = if brought { 1 } else { attempt + 1 };
                    if attempt == ATTEMPTS {
                        return Err(HubError::Connection { what: file.name.clone(), reason });
                    }
                    progress(Progress::Retry { file: &file.name, reason: &reason });
                    std::thread::sleep(wait);
                    wait = if brought { self.options.retry_wait } else { wait * 2 };
                }
            }
        }
    }

    /// One request for the bytes from where the file ends, and what it brings.
    fn collect_once(
        &self,
        file: &RemoteFile,
        out: &mut File,
        path: &Path,
        before: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let disk = |error| Failure::Lasting(failed(path)(error));
        let mut have = out.metadata().map_err(disk)?.len();
        if have > file.size {
            out.set_len(0).map_err(disk)?;
            have = 0;
        }
        if have == file.size {
            return Ok(());
        }
        let (response, _) = self.follow("GET", &file.address, &file.name, Some(have))?;
        if response.status().as_u16() == 206 {
            check_range(file, response.headers(), have)?;
        } else if have > 0 {
            // The server knows no ranges and sends everything again.
            out.set_len(0).map_err(disk)?;
            have = 0;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        while have < file.size {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Err(Failure::Passing("the connection was closed early".into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Passing(error.to_string())),
            };
            let count = count.min((file.size - have) as usize);
            out.write_all(&buffer[..count]).map_err(disk)?;
            have += count as u64;
            progress(Progress::Bytes { file: &file.name, done: have, total_done: before + have });
        }
        Ok(())
    }

    /// Repeats a request that fails in passing.
    fn persist<T>(
        &self,
        what: &str,
        attempts: u32,
        request: &mut dyn FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let mut wait = self.options.retry_wait;
        for attempt in 1.. {
            match request() {
                Ok(value) => return Ok(value),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(reason)) if attempt >= attempts => {
                    return Err(HubError::Connection { what: what.to_owned(), reason });
                }
                Err(Failure::Passing(_)) => std::thread::sleep(wait),
            }
            wait *= 2;
        }
        unreachable!("the last attempt returns")
    }

    /// Makes a request and follows redirects. Returns the last answer and the headers of the first.
    fn follow(
        &self,
        method: &str,
        address: &str,
        what: &str,
        from: Option<u64>,
    ) -> Result<(Response<Body>, HeaderMap), Failure> {
        let wrong = |reason: &str| {
            Failure::Lasting(HubError::Protocol { what: what.to_owned(), reason: reason.to_owned() })
        };
        let (mut address, mut first) = (address.to_owned(), None);
        for _ in 0..=REDIRECTS {
            let response = self.request(method, &address, what, from)?;
            let headers = first.get_or_insert_with(|| response.headers().clone());
            match response.status().as_u16() {
                200 | 206 => return Ok((response, headers.clone())),
                301 | 302 | 303 | 307 | 308 => {
                    let location = response.headers().get("location").and_then(|value| value.to_str().ok());
                    let next = location.and_then(|location| join(&address, location));
                    let next = next.ok_or_else(|| wrong("it redirects to nowhere"))?;
                    // The storage behind the hub has nothing to add once the hub has described the file.
                    if method == "HEAD" && headers.contains_key("x-linked-size") {
                        return Ok((response, headers.clone()));
                    }
                    address = next;
                }
                status => return Err(self.refused(status, what)),
            }
        }
        Err(wrong("it redirects too often"))
    }

    fn request(
        &self,
        method: &str,
        address: &str,
        what: &str,
        from: Option<u64>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = if method == "HEAD" { self.agent.head(address) } else { self.agent.get(address) };
        // Sizes and ranges are of the file and not of a compressed form of it.
        request = request.header("accept-encoding", "identity");
        if let Some(token) = &self.options.token
            && origin(address) == origin(&self.options.endpoint)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from.filter(|from| *from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| failure(address, what, error))
    }

    fn refused(&self, status: u16, what: &str) -> Failure {
        let what = what.to_owned();
        match status {
            401 | 403 => Failure::Lasting(HubError::Forbidden { what, status }),
            404 | 410 => {
                Failure::Lasting(HubError::NotFound { endpoint: self.options.endpoint.clone(), what })
            }
            408 | 425 | 429 | 500..=599 => Failure::Passing(format!("status {status}")),
            _ => Failure::Lasting(HubError::Protocol { what, reason: format!("status {status}") }),
        }
    }
}

/// Connections come back; certificates that are not trusted and addresses that are none do not.
fn failure(address: &str, what: &str, error: ureq::Error) -> Failure {
    let lasting = match &error {
        // A certificate that is refused arrives as invalid data, and so do answers that are no HTTP.
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::BadUri(_) | ureq::Error::Http(_) => true,
        _ => false,
    };
    let reason = format!("{}: {error}", origin(address));
    if lasting {
        Failure::Lasting(HubError::Connection { what: what.to_owned(), reason })
    } else {
        Failure::Passing(reason)
    }
}

fn root_certificates(path: &Path) -> Result<RootCerts, HubError> {
    let unusable = |reason: String| HubError::Option { option: "the file of certificates", reason };
    let pem = fs::read(path).map_err(|error| unusable(format!("{}: {error}", path.display())))?;
    let items = parse_pem(&pem).filter_map(Result::ok);
    let found: Vec<_> = items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(unusable(format!("{} holds no certificate", path.display())));
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> &str {
    let start = address.find("://").map_or(0, |at| at + 3);
    let end = address[start..].find(['/', '?', '#']).map_or(address.len(), |at| start + at);
    &address[..end]
}

/// The address that `location` means on a page at `address`. Never from encrypted to plain.
fn join(address: &str, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{}{location}", origin(address)));
    }
    let secure = location.starts_with("https://");
    let plain = location.starts_with("http://") && address.starts_with("http://");
    (secure || plain).then(|| location.to_owned())
}

/// A partial answer must continue where the file ends and be of the same file.
fn check_range(file: &RemoteFile, headers: &HeaderMap, have: u64) -> Result<(), Failure> {
    let range = headers.get("content-range").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let expected = format!("bytes {have}-{}/{}", file.size - 1, file.size);
    if range == expected {
        return Ok(());
    }
    let reason = format!("it has range `{}` and not `{expected}`", range.escape_debug());
    Err(Failure::Lasting(HubError::Protocol { what: file.name.clone(), reason }))
}

/// Compares a complete file with what the hub announced. Tags of small files are hashes of git, which
/// cover more than the file; their size is compared.
fn verify(file: &RemoteFile, path: &Path) -> Result<(), HubError> {
    let damaged = |what| HubError::Damaged { file: file.name.clone(), what };
    let mut input = File::open(path).map_err(failed(path))?;
    if input.metadata().map_err(failed(path))?.len() != file.size {
        return Err(damaged("size"));
    }
    if file.tag.len() != 64 || !file.tag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer).map_err(failed(path))? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    if hex(&hasher.finalize()) == file.tag.to_ascii_lowercase() { Ok(()) } else { Err(damaged("SHA-256")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_and_never_lose_encryption() {
        let from = "https://hub.co/a/b?x";
        assert_eq!(join(from, "/c/d").as_deref(), Some("https://hub.co/c/d"));
        assert_eq!(join(from, "https://cdn.co/x").as_deref(), Some("https://cdn.co/x"));
        assert_eq!(join("http://hub:1/a", "http://hub:2/x").as_deref(), Some("http://hub:2/x"));
        for location in ["http://hub.co/", "//evil.co/x", "file:///etc/passwd", "x", ""] {
            assert_eq!(join(from, location), None, "{location}");
        }
        assert_eq!(origin("https://hub.co:8/a"), "https://hub.co:8");
        assert_eq!(origin("https://hub.co?a"), "https://hub.co");
        assert_ne!(origin("https://hub.co.evil/a"), origin("https://hub.co"));
    }
}
