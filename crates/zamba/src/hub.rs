//! Model folders by name: a folder on this machine, or a repository of the Hugging Face Hub.
//!
//! A repository is downloaded into the usual cache of `huggingface_hub`, in its layout
//! (`models--owner--name/{blobs,snapshots,refs}`), so that both find what the other fetched. A download
//! that was cut continues where it stopped. Only files that are used are fetched, sizes are checked,
//! and so is the SHA-256 that the hub states for weights. Nothing here reads the environment by itself:
//! [`HubOptions::from_env`] is given the way to.

mod cache;
mod client;
mod id;

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use self::cache::Cache;
use self::client::{Client, Repository};
use self::id::ModelId;
use crate::checkpoint::weight_files;

/// Where the hub and its cache are, and how to reach them.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Sent to the hub, and to no other host, to be let in to private and gated models.
    pub token: Option<String>,
    /// Folder of the cache; the repositories stand directly in it.
    pub cache: PathBuf,
    /// Use what is in the cache and connect to nothing.
    pub offline: bool,
    /// Address of a proxy for all connections.
    pub proxy: Option<String>,
    /// A file of PEM certificates to trust in place of the ones built in.
    pub certificates: Option<PathBuf>,
    /// Wait before the first repetition of a request that failed; doubled each time.
    pub retry_wait: Duration,
}

impl std::fmt::Debug for HubOptions {
    /// As derived, but the token is not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "hidden"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// Options from environment variables, which `get` looks up, as `huggingface_hub` reads them:
    /// `HF_ENDPOINT`, `HF_TOKEN` (else the file `HF_TOKEN_PATH`, `$HF_HOME/token`), `HF_HUB_CACHE`
    /// (else `$HF_HOME/hub`), `HF_HOME` (else `huggingface` in `XDG_CACHE_HOME` or `~/.cache`),
    /// `HF_HUB_OFFLINE`; further `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, `REQUESTS_CA_BUNDLE` and
    /// `SSL_CERT_FILE`.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Self {
        let get =
            |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let user_cache =
            path("XDG_CACHE_HOME").unwrap_or_else(|| path("HOME").unwrap_or_default().join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let stored_token = || std::fs::read_to_string(token_file).ok().map(|token| token.trim().to_owned());
        let token = get("HF_TOKEN").or_else(stored_token).filter(|token| !token.is_empty());
        let on = |name: &str| {
            get(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        HubOptions {
            token,
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            proxy: proxy(&get, &endpoint),
            certificates: path("REQUESTS_CA_BUNDLE").or_else(|| path("SSL_CERT_FILE")),
            retry_wait: Duration::from_secs(1),
            endpoint,
        }
    }
}

/// The proxy for `endpoint`, unless `NO_PROXY` names its host.
fn proxy(get: &dyn Fn(&str) -> Option<String>, endpoint: &str) -> Option<String> {
    let either = |name: &str| get(name).or_else(|| get(&name.to_lowercase()));
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    let bypassed = either("NO_PROXY").is_some_and(|list| {
        list.split(',').map(str::trim).any(|entry| {
            let domain = entry.trim_start_matches('.');
            let inside = host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            entry == "*" || (!domain.is_empty() && inside)
        })
    });
    let own = if endpoint.starts_with("http://") { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    if bypassed { None } else { either(own).or_else(|| either("ALL_PROXY")) }
}

/// What is going on, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Weights are about to be fetched.
    Start {
        /// Files to fetch.
        files: usize,
        /// Bytes to fetch, those of interrupted downloads that are there already included.
        bytes: u64,
    },
    /// A part of a weight file has arrived, or was there from an earlier attempt.
    Bytes {
        /// The file.
        file: &'a str,
        /// Bytes of it so far.
        done: u64,
        /// Bytes of all files so far.
        total_done: u64,
    },
    /// A request failed and is made again.
    Retry {
        /// The file.
        file: &'a str,
        /// Why it failed.
        reason: &'a str,
    },
    /// The hub was not reached, and the model as it was last fetched is used.
    Cached {
        /// Why the hub was not reached.
        reason: &'a str,
    },
}

/// Why a model could not be found or fetched. Tokens never appear in the text.
#[derive(Debug, Error)]
pub enum HubError {
    /// Neither a folder nor the name of a repository.
    #[error(
        "{model} is neither a folder here nor a model name of the form owner/name or owner/name@revision"
    )]
    NotAModel {
        /// What was asked for.
        model: String,
    },
    /// Offline, and the model is not in the cache.
    #[error("{model} is not in the cache at {cache}; run once without --offline to fetch it")]
    NotCached {
        /// The model.
        model: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub does not have it.
    #[error("the hub at {endpoint} has no {what}; check the name and revision")]
    NotFound {
        /// Address of the hub.
        endpoint: String,
        /// Model, revision or file.
        what: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "the hub refuses {what} (status {status}): it does not exist, or is private or gated; accept its terms on the website and set HF_TOKEN"
    )]
    Forbidden {
        /// Model or file.
        what: String,
        /// HTTP status.
        status: u16,
    },
    /// The repository lacks a file that every model has.
    #[error("{model} has no {file} on the hub; it is not laid out as models and benchmarks are published")]
    Incomplete {
        /// The model.
        model: String,
        /// The file.
        file: String,
    },
    /// No connection, or one that broke, after all repetitions.
    #[error("cannot fetch {what}: {reason}; what has arrived is kept, run the command again to continue")]
    Connection {
        /// Model or file.
        what: String,
        /// What happened.
        reason: String,
    },
    /// The hub answered something that makes no sense.
    #[error("the hub gave a wrong answer for {what}: {reason}")]
    Protocol {
        /// Model or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not the one that the hub announced.
    #[error("{file} arrived damaged ({what} differs) and was deleted; run the command again")]
    Damaged {
        /// The file.
        file: String,
        /// `size` or `SHA-256`.
        what: &'static str,
    },
    /// The index of shards was refused.
    #[error(transparent)]
    Index(#[from] crate::checkpoint::LoadError),
    /// The cache could not be read or written.
    #[error("cannot use the cache: {path}: {source}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An option is unusable.
    #[error("{option} is not usable: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// Why.
        reason: String,
    },
}

/// The folder of `model`: itself if it is a folder, else the snapshot of the repository `owner/name` at
/// its main branch or at the branch, tag or commit after an `@`, fetched as far as it is not cached.
///
/// If the hub cannot be reached, a complete snapshot from an earlier time is used and `progress` told.
///
/// # Errors
/// [`HubError`]; what has arrived by then is kept for the next time.
pub fn resolve(
    model: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    if Path::new(model).is_dir() {
        return Ok(PathBuf::from(model));
    }
    let id = ModelId::parse(model).ok_or_else(|| HubError::NotAModel { model: model.to_owned() })?;
    let cache = Cache::of(&options.cache, &id);
    let cached = cache.snapshot_of(&id.revision).filter(|snapshot| is_complete(snapshot));
    if options.offline {
        let missing = || HubError::NotCached { model: model.to_owned(), cache: options.cache.clone() };
        return cached.ok_or_else(missing);
    }
    // A commit never changes, so there is nothing to ask.
    if id.is_commit()
        && let Some(snapshot) = cached
    {
        return Ok(snapshot);
    }
    let client = Client::new(options)?;
    // With a copy at hand, a hub that does not answer is not worth waiting for.
    let attempts = if cached.is_some() { 1 } else { client::QUESTIONS };
    match client.repository(&id, attempts) {
        Ok(repository) => fetch(&client, &cache, &id, &repository, progress),
        Err(HubError::Connection { reason, what }) => match cached {
            Some(snapshot) => {
                progress(Progress::Cached { reason: &reason });
                Ok(snapshot)
            }
            None => Err(HubError::Connection { reason, what }),
        },
        Err(other) => Err(other),
    }
}

/// Files of the data set `owner/name` of the hub: those that `choose` picks from the paths of all its files, fetched
/// as far as they are not in the cache. Where the main branch has none to pick, the hub's own conversion to Parquet is
/// looked at.
///
/// # Errors
/// As [`resolve`]; [`HubError::Incomplete`] if there is nothing to pick.
pub fn dataset(
    name: &str,
    choose: &dyn Fn(&[&str]) -> Vec<String>,
    options: &HubOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<PathBuf>, HubError> {
    let main = ModelId::parse_dataset(name).ok_or_else(|| HubError::NotAModel { model: name.to_owned() })?;
    let converted = ModelId { revision: "refs/convert/parquet".to_owned(), ..main.clone() };
    let cache = Cache::of(&options.cache, &main);
    let cached = [&main, &converted].into_iter().find_map(|id| {
        let snapshot = cache.snapshot_of(&id.revision)?;
        let files = below(&snapshot);
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let chosen = choose(&files);
        (!chosen.is_empty()).then(|| chosen.into_iter().map(|file| snapshot.join(file)).collect::<Vec<_>>())
    });
    // A benchmark does not change, so what was fetched once is not asked for again.
    if let Some(files) = cached {
        return Ok(files);
    }
    if options.offline {
        return Err(HubError::NotCached { model: name.to_owned(), cache: options.cache.clone() });
    }
    let client = Client::new(options)?;
    for id in [&main, &converted] {
        let repository = match client.repository(id, client::QUESTIONS) {
            // Not every data set is converted.
            Err(HubError::NotFound { .. }) if id.revision == converted.revision => continue,
            other => other?,
        };
        let files: Vec<&str> = repository.files.iter().map(String::as_str).collect();
        let chosen = choose(&files);
        if !chosen.is_empty() {
            return fetch_files(&client, &cache, id, &repository.commit, &chosen, progress);
        }
    }
    Err(HubError::Incomplete { model: name.to_owned(), file: "file of the wanted split".to_owned() })
}

fn fetch_files(
    client: &Client<'_>,
    cache: &Cache,
    id: &ModelId,
    commit: &str,
    names: &[String],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<PathBuf>, HubError> {
    let snapshot = cache.create(commit)?;
    let files: Vec<_> = names.iter().map(|name| client.file(id, commit, name)).collect::<Result<_, _>>()?;
    progress(Progress::Start { files: files.len(), bytes: files.iter().map(|f| f.size).sum() });
    let mut before = 0;
    for file in &files {
        client.download(cache, commit, file, before, progress)?;
        before += file.size;
    }
    cache.set_ref(&id.revision, commit)?;
    Ok(names.iter().map(|name| snapshot.join(name)).collect())
}

/// Paths of the files in a snapshot whose blobs are there, with `/` between the parts.
fn below(snapshot: &Path) -> Vec<String> {
    let mut files = vec![];
    let mut open = vec![String::new()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(snapshot.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{folder}{name}");
            if entry.path().is_file() {
                files.push(path);
            } else if entry.file_type().is_ok_and(|t| t.is_dir()) {
                open.push(path + "/");
            }
        }
    }
    files
}

/// Small files that are fetched if the repository has them.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "MANIFEST.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Fetches what is missing of a snapshot: first the small files, which say which weights there are.
fn fetch(
    client: &Client<'_>,
    cache: &Cache,
    id: &ModelId,
    repository: &Repository,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    let snapshot = cache.create(&repository.commit)?;
    let has = |name: &str| repository.files.iter().any(|file| file == name);
    let weights = if has(SINGLE) { SINGLE } else { INDEX };
    for file in ["config.json", weights] {
        if !has(file) {
            return Err(HubError::Incomplete { model: id.name(), file: file.to_owned() });
        }
    }
    let small = COMPANIONS.iter().copied().chain((weights == INDEX).then_some(INDEX));
    let mut quiet = |event: Progress<'_>| {
        if matches!(event, Progress::Retry { .. }) {
            progress(event);
        }
    };
    for name in small.filter(|name| has(name)) {
        if !snapshot.join(name).is_file() {
            let file = client.file(id, &repository.commit, name)?;
            client.download(cache, &repository.commit, &file, 0, &mut quiet)?;
        }
    }
    let shards = if weights == SINGLE { vec![SINGLE.to_owned()] } else { weight_files(&snapshot)? };
    let mut missing = Vec::new();
    for name in shards.iter().filter(|name| !snapshot.join(name).is_file()) {
        if !has(name) {
            return Err(HubError::Incomplete { model: id.name(), file: name.clone() });
        }
        missing.push(client.file(id, &repository.commit, name)?);
    }
    if !missing.is_empty() {
        let bytes = missing.iter().map(|file| file.size).sum();
        progress(Progress::Start { files: missing.len(), bytes });
    }
    let mut before = 0;
    for file in &missing {
        client.download(cache, &repository.commit, file, before, progress)?;
        before += file.size;
    }
    cache.set_ref(&id.revision, &repository.commit)?;
    Ok(snapshot)
}

/// Whether a snapshot has a configuration and all the weights that its index names.
fn is_complete(snapshot: &Path) -> bool {
    snapshot.join("config.json").is_file()
        && weight_files(snapshot).is_ok_and(|files| files.iter().all(|name| snapshot.join(name).is_file()))
}
