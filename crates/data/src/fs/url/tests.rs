//! Against a store in memory, and by HTTP against a server that speaks as much S3 as is needed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::job::tests::{corpus, options, tree};
use crate::job::{ChunkRun, Job, MaxBad, Quiet};
use crate::plan::{Input, Plan};

fn in_memory() -> UrlFs {
    UrlFs::default().with_store("mem://x", Arc::new(object_store::memory::InMemory::new()))
}

/// What a store has in common with a disk.
fn behaves(fs: &UrlFs, root: &str) {
    let p = |s: &str| Path::new(root).join(s);
    fs.create_dirs(&p("a/b")).unwrap();
    let mut file = fs.create(&p("a/f")).unwrap();
    file.write_all(b"hello").unwrap();
    assert!(!fs.exists(&p("a/f")).unwrap(), "an object appears when it is synced");
    file.sync().unwrap();
    assert!(file.write(b"more").is_err());
    assert_eq!(fs.read(&p("a/f")).unwrap(), b"hello");
    let open = fs.open(&p("a/f")).unwrap();
    let mut buf = [0; 3];
    open.read_exact_at(&mut buf, 2).unwrap();
    assert_eq!((&buf, open.len()), (b"llo", 5));
    assert_eq!(open.read_exact_at(&mut buf, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let version = fs.version(&p("a/f")).unwrap();
    fs.replace(&p("a/f"), b"other").unwrap();
    assert_ne!(fs.version(&p("a/f")).unwrap(), version);
    fs.rename(&p("a/f"), &p("a/c d+e/g")).unwrap();
    assert_eq!(fs.read(&p("a/c d+e/g")).unwrap(), b"other");
    for gone in ["a/f", "none"] {
        assert_eq!(fs.open(&p(gone)).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs.kind(&p(gone)).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    fs.write(&p("a/z"), b"").unwrap();
    assert_eq!((fs.kind(&p("a")).unwrap(), fs.kind(&p("a/z")).unwrap()), (Kind::Dir, Kind::File));
    let names: Vec<_> = fs.list(&p("a")).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
    assert_eq!(names, [("c d+e".into(), Kind::Dir), ("z".into(), Kind::File)]);
    assert!(fs.append(&p("a/z")).is_err());
    // More than one part.
    let large: Vec<u8> = (0..2 * PART as u32 / 4 + 100).flat_map(u32::to_le_bytes).collect();
    fs.write(&p("large"), &large).unwrap();
    assert_eq!(fs.read(&p("large")).unwrap(), large);
    drop(fs.create(&p("dropped")).unwrap());
    assert!(!fs.exists(&p("dropped")).unwrap());
    fs.remove_tree(&p("a")).unwrap();
    assert!(!fs.exists(&p("a")).unwrap());
}

#[test]
fn a_store_in_memory_behaves() {
    behaves(&in_memory(), "mem://x/deep/er");
}

#[test]
fn paths_stay_paths_and_unknown_schemes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fs = in_memory();
    fs.write(&dir.path().join("f"), b"x").unwrap();
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"x");
    let error = fs.open(Path::new("gs://bucket/x")).err().unwrap().to_string();
    assert!(error.contains("gs://"), "{error}");
    assert!(fs.rename(&dir.path().join("f"), Path::new("mem://x/f")).is_err());
}

/// A job from one place to another; its output there.
fn job(fs: &UrlFs, root: &str) -> Vec<(String, Vec<u8>)> {
    for (path, bytes) in tree(&corpus(), Path::new("/in")) {
        let path = Path::new(root).join(&path[1..]);
        fs.create_dirs(crate::fs::parent(&path)).unwrap();
        fs.write(&path, &bytes).unwrap();
    }
    let plan = Plan::new(fs, &[Input::new(format!("{root}/in"))], &options()).unwrap();
    let out = format!("{root}/out");
    let job = Job { max_bad: MaxBad::Count(3), ..Job::new("copy", serde_json::Value::Null, Path::new(&out)) };
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let copy = |chunk: &mut ChunkRun<'_>| {
        while let Some(document) = chunk.next()? {
            chunk.keep(&document)?;
        }
        Ok(())
    };
    let done = job.run(&shared, &plan, &Quiet, &copy).unwrap();
    assert_eq!(done.manifest.unwrap().documents(), 622);
    let again = job.run(&shared, &plan, &Quiet, &copy).unwrap();
    assert_eq!((again.finished, again.resumed), (0, again.chunks));
    let plan = Plan::new(fs, &[Input::new(out.clone())], &options()).unwrap();
    assert_eq!(plan.files.len(), done.chunks);
    let all = tree(fs, Path::new(&out));
    // Markers and manifest speak of versions, which each store makes in its own way.
    all.into_iter()
        .filter(|(path, _)| path.contains("part-") && !path.contains(".zamba"))
        .map(|(path, bytes)| (path[out.len()..].to_owned(), bytes))
        .collect()
}

#[test]
fn a_job_in_a_store_writes_what_it_writes_on_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = job(&UrlFs::default(), dir.path().to_str().unwrap());
    assert!(disk.len() > 10);
    assert_eq!(job(&in_memory(), "mem://x"), disk);
}

#[test]
fn s3_by_http_behaves_and_runs_jobs() {
    let server = Server::start();
    let fs = UrlFs::new(vec![
        ("AWS_ENDPOINT_URL".into(), server.url.clone()),
        ("AWS_ALLOW_HTTP".into(), "true".into()),
        ("AWS_ACCESS_KEY_ID".into(), "key".into()),
        ("AWS_SECRET_ACCESS_KEY".into(), "secret".into()),
        ("AWS_REGION".into(), "here".into()),
        ("AWS_PROFILE".into(), "is not for us".into()),
    ]);
    behaves(&fs, "s3://bucket/deep");
    let dir = tempfile::tempdir().unwrap();
    let disk = job(&UrlFs::default(), dir.path().to_str().unwrap());
    assert_eq!(job(&fs, "s3://bucket"), disk);
    assert!(server.requests.lock().unwrap().iter().all(|signed| *signed), "every request is signed");
}

/// A server for one bucket.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<bool>>>,
}

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let objects: Objects = Arc::default();
        let requests: Arc<Mutex<Vec<bool>>> = Arc::default();
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (objects, seen) = (objects.clone(), seen.clone());
                std::thread::spawn(move || {
                    let request = read_request(stream.as_ref().unwrap());
                    let signed =
                        request.headers.get("authorization").is_some_and(|a| a.starts_with("AWS4-HMAC"));
                    seen.lock().unwrap().push(signed);
                    let answer = answer(&request, &objects);
                    let _ = stream.unwrap().write_all(&answer);
                });
            }
        });
        Server { url, requests }
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn read_request(stream: &TcpStream) -> Request {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let pair = |pair: &str| {
        pair.split_once('=')
            .map_or((pair.to_owned(), String::new()), |(k, v)| (k.into(), unescape(&v.replace('+', " "))))
    };
    let key = unescape(path.strip_prefix("/bucket").unwrap()).trim_start_matches('/').to_owned();
    let query = query.split('&').filter(|q| !q.is_empty()).map(pair).collect();
    Request { method, key, query, headers, body }
}

fn tag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(bytes.len() as u64, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    format!("\"{hash:x}\"")
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let date = "Wed, 01 Jan 2025 00:00:00 GMT";
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nLast-Modified: {date}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn answer(request: &Request, objects: &Objects) -> Vec<u8> {
    let mut objects = objects.lock().unwrap();
    let missing = || response("404 Not Found", "", b"");
    let part = |upload: &str, number: &str| format!("\0{upload}/{number:0>5}");
    match (request.method.as_str(), request.query.get("uploadId"), request.query.get("partNumber")) {
        ("PUT", Some(upload), Some(number)) => {
            objects.insert(part(upload, number), request.body.clone());
            response("200 OK", &format!("ETag: {}\r\n", tag(&request.body)), b"")
        }
        ("POST", Some(upload), _) => {
            let prefix = part(upload, "").trim_end_matches('0').to_owned();
            let parts: Vec<_> = objects.keys().filter(|k| k.starts_with(&prefix)).cloned().collect();
            let whole: Vec<u8> = parts.iter().flat_map(|k| objects.remove(k).unwrap()).collect();
            let etag = tag(&whole);
            objects.insert(request.key.clone(), whole);
            let body =
                format!("<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>");
            response("200 OK", "", body.as_bytes())
        }
        ("POST", ..) => {
            let body =
                "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>";
            response("200 OK", "", body.as_bytes())
        }
        ("GET", ..) if request.query.contains_key("list-type") => {
            response("200 OK", "", list(&request.query, &objects).as_bytes())
        }
        ("GET" | "HEAD", ..) => {
            let Some(bytes) = objects.get(&request.key) else { return missing() };
            let etag = format!("ETag: {}\r\n", tag(bytes));
            if request.method == "HEAD" {
                let whole = response("200 OK", &etag, bytes);
                return whole[..whole.len() - bytes.len()].to_vec();
            }
            let Some(range) = request.headers.get("range") else { return response("200 OK", &etag, bytes) };
            let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            let headers = format!("{etag}Content-Range: bytes {start}-{end}/{}\r\n", bytes.len());
            response("206 Partial Content", &headers, &bytes[start..=end])
        }
        ("PUT", ..) => {
            let bytes = match request.headers.get("x-amz-copy-source") {
                Some(from) => {
                    let from = unescape(from);
                    let key = from.trim_start_matches('/').strip_prefix("bucket/").unwrap();
                    let Some(bytes) = objects.get(key) else { return missing() };
                    bytes.clone()
                }
                None => request.body.clone(),
            };
            let etag = tag(&bytes);
            objects.insert(request.key.clone(), bytes);
            let body = format!("<CopyObjectResult><ETag>{etag}</ETag></CopyObjectResult>");
            response("200 OK", &format!("ETag: {etag}\r\n"), body.as_bytes())
        }
        ("DELETE", ..) => {
            objects.remove(&request.key);
            response("204 No Content", "", b"")
        }
        (method, ..) => response("405 Method Not Allowed", "", method.as_bytes()),
    }
}

fn list(query: &BTreeMap<String, String>, objects: &BTreeMap<String, Vec<u8>>) -> String {
    let prefix = query.get("prefix").map_or("", String::as_str);
    let mut body = String::new();
    let mut folders = std::collections::BTreeSet::new();
    for (key, bytes) in objects.iter().filter(|(key, _)| key.starts_with(prefix) && !key.starts_with('\0')) {
        match key[prefix.len()..].split_once('/') {
            Some((folder, _)) => drop(folders.insert(format!("{prefix}{folder}/"))),
            None => write!(
                body,
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2025-01-01T00:00:00Z</LastModified><ETag>{}</ETag></Contents>",
                bytes.len(),
                tag(bytes)
            )
            .unwrap(),
        }
    }
    for folder in folders {
        write!(body, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>").unwrap();
    }
    format!("<ListBucketResult>{body}</ListBucketResult>")
}
