//! Paths and URLs alike: `s3://bucket/path` lies in an object store, anything else on the disk.
//!
//! An object store has no folders, no renames and no half-written objects. Here a folder is whatever has something in it; a file
//! appears when it is synced; a rename is a copy within the store and a removal. Requests go through `ureq`, so that the crate
//! brings no second HTTP stack.

mod http;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};

use super::{Entry, Fs, FsRead, FsWrite, Kind, RealFs};

/// See the module. Cloning shares connections.
#[derive(Clone, Default)]
pub struct UrlFs {
    options: Arc<Vec<(String, String)>>,
    stores: Arc<Mutex<HashMap<String, Arc<dyn ObjectStore>>>>,
}

/// Where a path leads.
enum Place {
    Disk,
    Object(Remote, Key),
}

/// A store, and what is in front of its keys.
#[derive(Clone)]
struct Remote {
    store: Arc<dyn ObjectStore>,
    runtime: Arc<tokio::runtime::Runtime>,
}

/// Size of a part of an upload; S3 takes no smaller ones, and 10,000 of them at most.
const PART: usize = 16 << 20;

impl UrlFs {
    /// Object stores are set up by these options, named as the AWS tools name them in the environment (`AWS_ACCESS_KEY_ID`,
    /// `AWS_REGION`, `AWS_ENDPOINT_URL` and so on); names that the store does not know are passed over.
    pub fn new(options: Vec<(String, String)>) -> UrlFs {
        UrlFs { options: Arc::new(options), stores: Arc::default() }
    }

    /// Puts a store of one's own behind `SCHEME://HOST`.
    pub fn with_store(self, root: &str, store: Arc<dyn ObjectStore>) -> UrlFs {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).insert(root.to_owned(), store);
        self
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let Some((scheme, rest)) = path.to_str().and_then(|text| text.split_once("://")) else {
            return Ok(Place::Disk);
        };
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        let store = self.store(scheme, host)?;
        let key = Key::parse(key.trim_end_matches('/')).map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Place::Object(Remote { store, runtime: Arc::new(runtime) }, key))
    }

    fn store(&self, scheme: &str, host: &str) -> io::Result<Arc<dyn ObjectStore>> {
        let root = format!("{scheme}://{host}");
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&root) {
            return Ok(store.clone());
        }
        if scheme != "s3" {
            let what = format!("{scheme}:// is not supported; use s3:// or a path");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(host)
            .with_http_connector(http::Connector)
            // One object is removed at a time, and every server knows how.
            .with_disable_bulk_delete(true);
        for (name, value) in self.options.iter() {
            if let Ok(key) = name.to_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let store: Arc<dyn ObjectStore> = Arc::new(builder.build().map_err(io::Error::other)?);
        stores.insert(root, store.clone());
        Ok(store)
    }
}

impl Remote {
    fn wait<T>(&self, work: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(work).map_err(|error| match error {
            object_store::Error::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, error),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                io::Error::new(io::ErrorKind::PermissionDenied, error)
            }
            other => io::Error::other(other),
        })
    }

    /// What is directly below a key.
    fn list(&self, key: &Key) -> io::Result<Vec<Entry>> {
        let below = self.wait(self.store.list_with_delimiter(Some(key)))?;
        let mut names: BTreeMap<String, Kind> = BTreeMap::new();
        let name = |key: &Key| key.filename().map(str::to_owned);
        // An object may have the name of a folder too; then the folder counts, as what is in it could not be reached.
        names.extend(below.objects.iter().filter_map(|object| Some((name(&object.location)?, Kind::File))));
        names.extend(below.common_prefixes.iter().filter_map(|key| Some((name(key)?, Kind::Dir))));
        Ok(names.into_iter().map(|(name, kind)| Entry { name: name.into(), kind }).collect())
    }
}

struct ObjectRead {
    remote: Remote,
    key: Key,
    len: u64,
}

impl FsRead for ObjectRead {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = self.len.min(offset.saturating_add(buf.len() as u64));
        if offset >= end {
            return Ok(0);
        }
        let bytes = self.remote.wait(self.remote.store.get_range(&self.key, offset..end))?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }
}

/// Collects parts. The object comes into being when it is synced; without that, dropping this leaves nothing.
struct ObjectWrite {
    remote: Remote,
    key: Key,
    buffer: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
    synced: bool,
}

impl ObjectWrite {
    fn send_part(&mut self) -> io::Result<()> {
        if self.upload.is_none() {
            self.upload = Some(self.remote.wait(self.remote.store.put_multipart(&self.key))?);
        }
        let part = PutPayload::from(std::mem::take(&mut self.buffer));
        match &mut self.upload {
            Some(upload) => self.remote.wait(upload.put_part(part)),
            None => Ok(()),
        }
    }
}

impl Write for ObjectWrite {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.synced {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "an object that is written cannot grow"));
        }
        self.buffer.extend_from_slice(buf);
        if self.buffer.len() >= PART {
            self.send_part()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FsWrite for ObjectWrite {
    fn sync(&mut self) -> io::Result<()> {
        if self.synced {
            return Ok(());
        }
        if self.upload.is_some() && !self.buffer.is_empty() {
            self.send_part()?;
        }
        match &mut self.upload {
            Some(upload) => drop(self.remote.wait(upload.complete())?),
            None => {
                let whole = PutPayload::from(std::mem::take(&mut self.buffer));
                self.remote.wait(self.remote.store.put(&self.key, whole))?;
            }
        }
        self.synced = true;
        Ok(())
    }
}

impl Drop for ObjectWrite {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.as_mut().filter(|_| !self.synced) {
            // Best effort: a store has rules for uploads that were left behind.
            let _ = self.remote.runtime.block_on(upload.abort());
        }
    }
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_owned())
}

impl Fs for UrlFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsWrite>> {
        match self.place(path)? {
            Place::Disk => RealFs.create(path),
            Place::Object(remote, key) => {
                Ok(Box::new(ObjectWrite { remote, key, buffer: Vec::new(), upload: None, synced: false }))
            }
        }
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsWrite>> {
        match self.place(path)? {
            Place::Disk => RealFs.append(path),
            Place::Object(..) => Err(unsupported("an object cannot be appended to")),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>> {
        match self.place(path)? {
            Place::Disk => RealFs.open(path),
            Place::Object(remote, key) => {
                let len = remote.wait(remote.store.head(&key))?.size;
                Ok(Box::new(ObjectRead { remote, key, len }))
            }
        }
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let Place::Object(remote, key) = self.place(path)? else { return RealFs.kind(path) };
        if !remote.list(&key)?.is_empty() || key.as_ref().is_empty() {
            return Ok(Kind::Dir);
        }
        remote.wait(remote.store.head(&key)).map(|_| Kind::File)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        match self.place(dir)? {
            Place::Disk => RealFs.list(dir),
            Place::Object(remote, key) => remote.list(&key),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match (self.place(from)?, self.place(to)?) {
            (Place::Disk, Place::Disk) => RealFs.rename(from, to),
            (Place::Object(remote, from), Place::Object(_, to)) => {
                remote.wait(remote.store.copy(&from, &to))?;
                remote.wait(remote.store.delete(&from))
            }
            _ => Err(unsupported("a file cannot be moved between a disk and an object store")),
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.place(path)? {
            Place::Disk => RealFs.replace(path, bytes),
            // One request that takes effect as a whole.
            Place::Object(..) => self.write(path, bytes),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.place(dir)? {
            Place::Disk => RealFs.sync_dir(dir),
            Place::Object(..) => Ok(()),
        }
    }

    fn version(&self, path: &Path) -> io::Result<String> {
        match self.place(path)? {
            Place::Disk => RealFs.version(path),
            Place::Object(remote, key) => {
                let meta = remote.wait(remote.store.head(&key))?;
                let changed = || format!("{}-{}", meta.size, meta.last_modified.timestamp_micros());
                Ok(meta.e_tag.clone().unwrap_or_else(changed))
            }
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        match self.place(path)? {
            Place::Disk => RealFs.remove_file(path),
            Place::Object(remote, key) => remote.wait(remote.store.delete(&key)),
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match self.place(path)? {
            Place::Disk => RealFs.remove_dir(path),
            Place::Object(..) => Ok(()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match self.place(path)? {
            Place::Disk => RealFs.create_dir(path),
            Place::Object(..) => Ok(()),
        }
    }

    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        match self.place(dir)? {
            Place::Disk => RealFs.create_dirs(dir),
            Place::Object(..) => Ok(()),
        }
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        match self.place(dir)? {
            Place::Disk => RealFs.free_space(dir),
            Place::Object(..) => Ok(u64::MAX),
        }
    }
}
