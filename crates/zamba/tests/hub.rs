//! The hub's protocol, against a small server on this machine that answers as the hub does.

mod files;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use files::{plain, save, small_config};
use sha2::{Digest, Sha256};
use zamba::checkpoint::{Checkpoint, LoadError, LoadOptions, SaveOptions};
use zamba::hub::{HubError, HubOptions, Progress, dataset, resolve};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves.
#[derive(Default)]
struct World {
    files: BTreeMap<String, Vec<u8>>,
    /// Names that are announced and not there.
    phantoms: Vec<String>,
    commit: String,
    /// Status of every answer about the repository, if not 200.
    api_status: Option<u16>,
    /// Answer this many requests with status 500 first.
    failures: usize,
    /// Bytes of weights after which the storage closes the connection, for as many requests as given.
    cuts: Vec<usize>,
    /// Announce this tag for weights, whatever they are.
    tag: Option<String>,
    /// Answer requests for a part with the whole.
    no_ranges: bool,
    /// Redirect every file to itself.
    loops: bool,
    /// Address of the storage.
    storage: String,
    /// Requests so far: method, path, range, authorization.
    log: Vec<(String, String, String, String)>,
}

type Shared = Arc<Mutex<World>>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request without its body, which none here has.
struct Request {
    method: String,
    path: String,
    range: String,
    authorization: String,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut request = Request { method, path, range: String::new(), authorization: String::new() };
    for line in lines {
        let line = line.ok()?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => request.range = value.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = value.to_owned();
            }
            Some(_) => {}
            None => break,
        }
    }
    Some(request)
}

/// Answers one request for each connection, on a thread that ends with the process.
fn listen(world: Shared, answer: fn(&Request, &mut World) -> Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some(request) = read_request(&stream) else { continue };
            let bytes = {
                let mut world = world.lock().unwrap();
                let entry = (&request.method, &request.path, &request.range, &request.authorization);
                world.log.push((entry.0.clone(), entry.1.clone(), entry.2.clone(), entry.3.clone()));
                answer(&request, &mut world)
            };
            // The client may have gone, as it does when it has seen enough.
            let _ = stream.write_all(&bytes);
        }
    });
    address
}

fn reply(status: u16, headers: &str, body: &[u8], method: &str) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 {status} Whatever\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    if method != "HEAD" {
        out.extend(body);
    }
    out
}

fn hub(request: &Request, world: &mut World) -> Vec<u8> {
    let method = request.method.as_str();
    if world.failures > 0 {
        world.failures -= 1;
        return reply(500, "", b"busy", method);
    }
    if request.path.starts_with("/api/datasets/owner/name/revision/refs%2Fconvert") {
        return reply(404, "", b"", method);
    }
    let asked = ["/api/models/owner/name/revision/", "/api/datasets/owner/name/revision/"];
    if asked.iter().any(|path| request.path.starts_with(path)) {
        if let Some(status) = world.api_status {
            return reply(status, "", b"{\"error\":\"no\"}", method);
        }
        let names = world.files.keys().chain(&world.phantoms);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": world.commit, "siblings": siblings, "tags": ["zamba"]});
        return reply(200, "Content-Type: application/json\r\n", body.to_string().as_bytes(), method);
    }
    let prefix = format!("/owner/name/resolve/{}/", world.commit);
    // Files of a data set lie below another path and are served alike.
    let path = request.path.strip_prefix("/datasets").unwrap_or(&request.path);
    let name = path.strip_prefix(&prefix).or_else(|| path.strip_prefix("/api/resolve-cache/"));
    let Some((name, bytes)) = name.and_then(|name| world.files.get_key_value(name)) else {
        return reply(404, "X-Error-Code: EntryNotFound\r\n", b"", method);
    };
    let commit = format!("X-Repo-Commit: {}\r\n", world.commit);
    if world.loops {
        return reply(307, &format!("{commit}Location: {}\r\n", request.path), b"", method);
    }
    if name.ends_with(".safetensors") {
        let tag = world.tag.clone().unwrap_or_else(|| hex(&Sha256::digest(bytes)));
        let linked = format!("X-Linked-Etag: \"{tag}\"\r\nX-Linked-Size: {}\r\n", bytes.len());
        let location = format!("Location: {}/store/{name}?signature=1\r\n", world.storage);
        return reply(302, &format!("{commit}{linked}{location}"), b"moved", method);
    }
    if path.starts_with(&prefix) {
        // Small files are served from another path of the hub itself.
        let location = format!("Location: /api/resolve-cache/{name}\r\n");
        return reply(307, &format!("{commit}{location}"), b"", method);
    }
    reply(200, &format!("{commit}ETag: W/\"{}\"\r\n", &hex(&Sha256::digest(bytes))[..40]), bytes, method)
}

fn storage(request: &Request, world: &mut World) -> Vec<u8> {
    let name = request.path.trim_start_matches("/store/").trim_end_matches("?signature=1");
    let bytes = &world.files[name];
    let from =
        request.range.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse().ok());
    let mut out = match from {
        Some(from) if !world.no_ranges => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            reply(206, &range, &bytes[from..], "GET")
        }
        _ => reply(200, "", bytes, "GET"),
    };
    if !world.cuts.is_empty() {
        let body = out.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        out.truncate(body + world.cuts.remove(0));
    }
    out
}

/// A server with a model in it, and a cache.
struct Setting {
    _dir: tempfile::TempDir,
    world: Shared,
    options: HubOptions,
}

impl Setting {
    fn new(save_options: &SaveOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        save(&model, &small_config(), save_options);
        let mut world = World { commit: COMMIT.into(), ..World::default() };
        for entry in fs::read_dir(&model).unwrap() {
            let entry = entry.unwrap();
            world.files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        }
        for name in ["README.md", "zamba.bin", "onnx/model.onnx", "../evil.json"] {
            world.files.insert(name.into(), b"not needed".to_vec());
        }
        let world = Arc::new(Mutex::new(world));
        let store = listen(world.clone(), storage);
        world.lock().unwrap().storage = store;
        let options = HubOptions {
            endpoint: listen(world.clone(), hub),
            token: Some("hf_secret".into()),
            cache: dir.path().join("cache"),
            offline: false,
            proxy: None,
            certificates: None,
            retry_wait: Duration::from_millis(1),
        };
        Setting { _dir: dir, world, options }
    }

    fn plain() -> Self {
        Setting::new(&plain())
    }

    fn resolve(&self) -> Result<PathBuf, HubError> {
        resolve("owner/name", &self.options, &mut |_| {})
    }

    fn repository(&self) -> PathBuf {
        self.options.cache.join("models--owner--name")
    }

    /// Takes the log of requests: method and path.
    fn requests(&self) -> Vec<(String, String)> {
        let log = std::mem::take(&mut self.world.lock().unwrap().log);
        log.into_iter().map(|(method, path, ..)| (method, path)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap());
    }

    fn weights(&self) -> Vec<u8> {
        self.world.lock().unwrap().files["model.safetensors"].clone()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn chosen_files_of_a_data_set_are_fetched_once() {
    let setting = Setting::plain();
    setting.change(|world| {
        world.files.insert("main/test-00000-of-00001.parquet".into(), b"rows".to_vec());
        world.files.insert("main/train-00000-of-00001.parquet".into(), b"others".to_vec());
    });
    let choose = |wanted: &'static str| {
        move |files: &[&str]| files.iter().filter(|f| f.contains(wanted)).map(|f| f.to_string()).collect()
    };
    let fetch = |wanted, options: &HubOptions| dataset("owner/name", &choose(wanted), options, &mut |_| {});
    let offline = HubOptions { offline: true, ..setting.options.clone() };
    assert!(matches!(fetch("main/test", &offline), Err(HubError::NotCached { .. })));
    let files = fetch("main/test", &setting.options).unwrap();
    assert_eq!(files.len(), 1);
    assert!(files[0].ends_with("main/test-00000-of-00001.parquet"));
    assert!(files[0].starts_with(setting.options.cache.join("datasets--owner--name")));
    assert_eq!(fs::read(&files[0]).unwrap(), b"rows");
    setting.requests();
    assert_eq!(fetch("main/test", &setting.options).unwrap(), files);
    assert_eq!(fetch("main/test", &offline).unwrap(), files);
    assert!(setting.requests().is_empty(), "what is in the cache is not asked for");
    assert_eq!(fs::read(&fetch("main/train", &setting.options).unwrap()[0]).unwrap(), b"others");
    assert!(matches!(fetch("evil", &setting.options), Err(HubError::Incomplete { .. })));
}

#[test]
fn a_model_is_fetched_once_into_the_cache_of_huggingface() {
    let setting = Setting::plain();
    let mut events = Vec::new();
    let size = setting.weights().len() as u64;
    let folder = resolve("owner/name", &setting.options, &mut |event| match event {
        Progress::Start { files, bytes } => events.push((files as u64, bytes)),
        Progress::Bytes { done, total_done, .. } => events.push((done, total_done)),
        other => panic!("{other:?}"),
    })
    .unwrap();
    assert_eq!(events[0], (1, size));
    assert_eq!(events.last(), Some(&(size, size)));
    assert!(events[1..].windows(2).all(|pair| pair[0] <= pair[1]));

    assert_eq!(folder, setting.repository().join("snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(fs::read_to_string(setting.repository().join("refs/main")).unwrap(), COMMIT);
    let hash = hex(&Sha256::digest(setting.weights()));
    let link = fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(&hash));
    assert_eq!(names(&setting.repository().join("blobs")).len(), 3);
    Checkpoint::open(&folder, &LoadOptions::default()).unwrap();

    let log = setting.world.lock().unwrap().log.clone();
    for (_, path, _, authorization) in &log {
        let expected = if path.starts_with("/store/") { "" } else { "Bearer hf_secret" };
        assert_eq!(authorization, expected, "{path}");
        assert!(!["README", "zamba.bin", "onnx", "evil"].iter().any(|name| path.contains(name)), "{path}");
    }
    assert!(log.iter().any(|(_, path, ..)| path == "/store/model.safetensors?signature=1"));

    setting.requests();
    assert_eq!(setting.resolve().unwrap(), folder);
    assert_eq!(setting.requests().len(), 1, "only the commit of the branch is asked again");
    // A commit cannot change: nothing is asked.
    assert_eq!(resolve(&format!("owner/name@{COMMIT}"), &setting.options, &mut |_| {}).unwrap(), folder);
    assert!(setting.requests().is_empty());
}

#[test]
fn a_new_commit_fetches_only_what_changed() {
    let setting = Setting::plain();
    let old = setting.resolve().unwrap();
    setting.requests();
    let next = COMMIT.replace("0123", "3210");
    setting.change(|world| {
        world.commit = next.clone();
        world.files.insert("generation_config.json".into(), b"{}".to_vec());
    });
    let new = setting.resolve().unwrap();
    assert_ne!(old, new);
    assert!(old.join("model.safetensors").is_file());
    assert_eq!(fs::read(new.join("generation_config.json")).unwrap(), b"{}");
    let fetched = setting.requests();
    assert!(!fetched.iter().any(|(_, path)| path.starts_with("/store/")), "{fetched:?}");
    assert_eq!(fs::read_to_string(setting.repository().join("refs/main")).unwrap(), next);
}

#[test]
fn a_connection_that_breaks_is_continued() {
    let setting = Setting::plain();
    let size = setting.weights().len();
    setting.change(|world| world.cuts = vec![1000, 0, 500]);
    let mut retries = 0;
    let folder = resolve("owner/name", &setting.options, &mut |event| {
        retries += usize::from(matches!(event, Progress::Retry { .. }));
    })
    .unwrap();
    assert_eq!(retries, 3);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), setting.weights());
    let log = setting.world.lock().unwrap().log.clone();
    let ranges: Vec<_> =
        log.iter().filter(|entry| entry.1.starts_with("/store/")).map(|e| e.2.as_str()).collect();
    assert_eq!(ranges, ["", "bytes=1000-", "bytes=1000-", "bytes=1500-"]);
    assert!(size > 1500);
}

#[test]
fn a_download_that_failed_is_continued_by_the_next_run() {
    let setting = Setting::plain();
    setting.change(|world| world.cuts = vec![1200, 0, 0, 0, 0, 0, 0]);
    let error = setting.resolve().unwrap_err();
    assert!(matches!(error, HubError::Connection { .. }), "{error:?}");
    let hash = hex(&Sha256::digest(setting.weights()));
    let part = setting.repository().join("blobs").join(format!("{hash}.incomplete"));
    assert_eq!(fs::read(&part).unwrap(), setting.weights()[..1200]);
    assert!(!setting.repository().join("refs").exists());

    setting.change(|world| world.cuts.clear());
    setting.requests();
    let mut first = None;
    let folder = resolve("owner/name", &setting.options, &mut |event| {
        if let Progress::Bytes { done, .. } = event {
            first.get_or_insert(done);
        }
    })
    .unwrap();
    assert!(first.unwrap() > 1200);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), setting.weights());
    assert!(!part.exists());
}

#[test]
fn a_storage_without_ranges_starts_again() {
    let setting = Setting::plain();
    setting.change(|world| {
        world.cuts = vec![1000];
        world.no_ranges = true;
    });
    let folder = setting.resolve().unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), setting.weights());
}

#[test]
fn bytes_that_are_not_those_announced_are_deleted() {
    let setting = Setting::plain();
    let wrong = "ab".repeat(32);
    setting.change(|world| world.tag = Some(wrong.clone()));
    let error = setting.resolve().unwrap_err();
    assert!(matches!(error, HubError::Damaged { what: "SHA-256", .. }), "{error:?}");
    let blobs = names(&setting.repository().join("blobs"));
    assert!(!blobs.iter().any(|name| name.contains(&wrong)), "{blobs:?}");
    assert!(!setting.repository().join("snapshots").join(COMMIT).join("model.safetensors").exists());
    setting.change(|world| world.tag = None);
    setting.resolve().unwrap();
}

#[test]
fn a_part_that_is_damaged_on_disk_is_found_and_fetched_anew() {
    let setting = Setting::plain();
    setting.change(|world| world.cuts = vec![1200, 0, 0, 0, 0, 0, 0]);
    setting.resolve().unwrap_err();
    let hash = hex(&Sha256::digest(setting.weights()));
    let part = setting.repository().join("blobs").join(format!("{hash}.incomplete"));
    fs::write(&part, vec![7; 1200]).unwrap();
    setting.change(|world| world.cuts.clear());
    assert!(matches!(setting.resolve(), Err(HubError::Damaged { .. })));
    setting.resolve().unwrap();
}

#[test]
fn statuses_are_told_apart() {
    let setting = Setting::plain();
    type Expect = fn(&HubError) -> bool;
    let table: [(u16, Expect); 5] = [
        (401, |e| matches!(e, HubError::Forbidden { status: 401, .. })),
        (403, |e| matches!(e, HubError::Forbidden { status: 403, .. })),
        (404, |e| matches!(e, HubError::NotFound { .. })),
        (500, |e| matches!(e, HubError::Connection { .. })),
        (418, |e| matches!(e, HubError::Protocol { .. })),
    ];
    for (status, expect) in table {
        setting.change(|world| world.api_status = Some(status));
        let error = setting.resolve().unwrap_err();
        assert!(expect(&error), "{status}: {error:?}");
        assert!(error.to_string().contains("owner/name"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hf_secret"));
    }
    setting.change(|world| world.api_status = None);
    setting.change(|world| world.failures = 2);
    setting.resolve().unwrap();
}

#[test]
fn repositories_without_a_model_are_refused() {
    let setting = Setting::plain();
    let weights = setting.weights();
    setting.change(|world| drop(world.files.remove("model.safetensors")));
    let error = setting.resolve().unwrap_err();
    assert!(matches!(&error, HubError::Incomplete { file, .. } if file.contains("index")), "{error:?}");
    setting.change(|world| world.phantoms = vec!["model.safetensors".into()]);
    assert!(matches!(setting.resolve(), Err(HubError::NotFound { .. })));
    setting.change(|world| {
        world.phantoms.clear();
        world.files.insert("model.safetensors".into(), weights);
        world.files.remove("config.json");
    });
    assert!(matches!(setting.resolve(), Err(HubError::Incomplete { .. })));
}

#[test]
fn answers_that_lead_astray_are_refused() {
    let setting = Setting::plain();
    for commit in ["main", "../../../x", "", "0123456789ABCDEF0123456789ABCDEF01234567"] {
        setting.change(|world| world.commit = commit.into());
        assert!(matches!(setting.resolve(), Err(HubError::Protocol { .. })), "{commit}");
    }
    setting.change(|world| world.commit = COMMIT.into());
    for tag in ["../../../x", "", "a/b", ".hidden", "x y"] {
        setting.change(|world| world.tag = Some(tag.into()));
        assert!(matches!(setting.resolve(), Err(HubError::Protocol { .. })), "{tag}");
    }
    setting.change(|world| world.tag = None);
    setting.change(|world| world.loops = true);
    fs::remove_dir_all(&setting.options.cache).unwrap();
    assert!(matches!(setting.resolve(), Err(HubError::Protocol { .. })));
    setting.change(|world| world.loops = false);
    setting.change(|world| world.storage = "file:///etc/passwd#".into());
    assert!(matches!(setting.resolve(), Err(HubError::Protocol { .. })));
}

#[test]
fn shards_are_those_of_the_index() {
    let setting = Setting::new(&SaveOptions { max_shard_bytes: 3000, manifest: true, ..plain() });
    setting.change(|world| drop(world.files.insert("other.safetensors".into(), vec![0; 9])));
    let folder = setting.resolve().unwrap();
    assert!(!folder.join("other.safetensors").exists());
    assert!(folder.join("MANIFEST.json").is_file());
    assert!(names(&folder).iter().filter(|name| name.ends_with(".safetensors")).count() > 1);
    Checkpoint::open(&folder, &LoadOptions::default()).unwrap();

    let setting = Setting::new(&SaveOptions { max_shard_bytes: 3000, ..plain() });
    let index = "model.safetensors.index.json";
    setting.change(|world| {
        let text = String::from_utf8(world.files[index].clone()).unwrap();
        let text = text.replace("model-00001-of", "../model-00001-of");
        world.files.insert(index.into(), text.into_bytes());
    });
    let error = setting.resolve().unwrap_err();
    assert!(matches!(error, HubError::Index(LoadError::ShardName { .. })), "{error:?}");
}

#[test]
fn offline_uses_what_is_there_and_asks_nobody() {
    let mut setting = Setting::plain();
    setting.options.offline = true;
    assert!(matches!(setting.resolve(), Err(HubError::NotCached { .. })));
    setting.options.offline = false;
    let folder = setting.resolve().unwrap();
    setting.requests();
    setting.options.offline = true;
    assert_eq!(setting.resolve().unwrap(), folder);
    assert!(matches!(
        resolve("owner/name@other", &setting.options, &mut |_| {}),
        Err(HubError::NotCached { .. })
    ));
    assert!(setting.requests().is_empty());
    // Half a model is no model.
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(matches!(setting.resolve(), Err(HubError::NotCached { .. })));
}

#[test]
fn a_hub_that_is_gone_is_replaced_by_the_cache() {
    let mut setting = Setting::plain();
    let listening = setting.options.endpoint.clone();
    // The near end of a connection: its port is taken, so no other test can come to listen there, and nobody does.
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(far.local_addr().unwrap()).unwrap();
    let deaf = near.local_addr().unwrap();
    setting.options.endpoint = format!("http://{deaf}");
    assert!(matches!(setting.resolve(), Err(HubError::Connection { .. })));
    setting.options.endpoint = listening;
    let folder = setting.resolve().unwrap();
    setting.options.endpoint = format!("http://{deaf}");
    let mut told = false;
    let found = resolve("owner/name", &setting.options, &mut |event| {
        told |= matches!(event, Progress::Cached { .. });
    });
    assert_eq!(found.unwrap(), folder);
    assert!(told);
}

#[test]
fn branches_with_slashes_are_asked_for_and_noted() {
    let setting = Setting::plain();
    let folder = resolve("owner/name@refs/pr/1", &setting.options, &mut |_| {}).unwrap();
    assert!(folder.join("config.json").is_file());
    let asked = setting.requests();
    assert_eq!(asked[0].1, "/api/models/owner/name/revision/refs%2Fpr%2F1");
    assert_eq!(fs::read_to_string(setting.repository().join("refs/refs/pr/1")).unwrap(), COMMIT);
}

#[test]
fn folders_are_taken_as_they_are_and_nonsense_is_refused() {
    let setting = Setting::plain();
    let folder = setting.resolve().unwrap();
    setting.requests();
    assert_eq!(resolve(folder.to_str().unwrap(), &setting.options, &mut |_| {}).unwrap(), folder);
    for model in ["no-such-folder", "../owner/name", "a/b/c", "", "owner/na me"] {
        let error = resolve(model, &setting.options, &mut |_| {}).unwrap_err();
        assert!(matches!(error, HubError::NotAModel { .. }), "{model}: {error:?}");
    }
    assert!(setting.requests().is_empty());
}

#[test]
fn options_that_cannot_work_are_named() {
    let setting = Setting::plain();
    let with = |change: &dyn Fn(&mut HubOptions)| {
        let mut options = setting.options.clone();
        change(&mut options);
        resolve("owner/name", &options, &mut |_| {}).unwrap_err()
    };
    assert!(matches!(with(&|o| o.endpoint = "ftp://x".into()), HubError::Option { .. }));
    assert!(matches!(with(&|o| o.token = Some("a\nb".into())), HubError::Option { option: "the token", .. }));
    assert!(matches!(with(&|o| o.certificates = Some("/nowhere".into())), HubError::Option { .. }));
    let secret = format!("{:?}", setting.options);
    assert!(!secret.contains("hf_secret"), "{secret}");
}

#[test]
fn the_environment_is_read_as_huggingface_hub_does() {
    let from = |pairs: &[(&str, &str)]| {
        HubOptions::from_env(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned()))
    };
    let plain = from(&[("HOME", "/h")]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!((plain.token, plain.offline, plain.proxy), (None, false, None));
    assert_eq!(from(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(from(&[("HOME", "/h"), ("HF_HOME", "/f")]).cache, Path::new("/f/hub"));
    assert_eq!(from(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    assert_eq!(from(&[("HF_ENDPOINT", "http://m/hf/")]).endpoint, "http://m/hf");
    for (value, offline) in [("1", true), ("true", true), ("0", false), ("", false)] {
        assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    fs::write(dir.path().join("token"), "hf_file\n").unwrap();
    assert_eq!(from(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
    assert_eq!(from(&[("HF_HOME", home), ("HF_TOKEN", " hf_env ")]).token.as_deref(), Some("hf_env"));
    let proxied = |extra: (&str, &str)| from(&[("HTTPS_PROXY", "http://p:1"), extra]).proxy;
    assert_eq!(proxied(("", "")).as_deref(), Some("http://p:1"));
    for bypass in ["*", "huggingface.co", "x, .co"] {
        assert_eq!(proxied(("NO_PROXY", bypass)), None, "{bypass}");
    }
    assert!(proxied(("NO_PROXY", "face.co,other")).is_some());
    assert_eq!(from(&[("HF_ENDPOINT", "http://m"), ("HTTPS_PROXY", "http://p:1")]).proxy, None);
}
