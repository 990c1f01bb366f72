//! A disk in memory that fails on demand and forgets what was not synced.

use super::{Entry, Fs, FsRead, FsWrite, Kind};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard};

/// How an operation fails. A kind that does not fit the operation (a short write of a rename) has no
/// effect on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Any operation reports an input/output error and has no effect.
    Eio,
    /// Operations that need space report that there is none.
    Enospc,
    /// A write takes only half of the bytes, as `write(2)` may.
    ShortWrite,
    /// A sync fails; what was not durable by then never will be, whatever later syncs say.
    Fsync,
    /// The process dies there: operations fail without any effect, and what was not synced stays in
    /// the balance for [`FaultFs::crash`] to decide. Only makes sense for ever.
    Kill,
}

/// A planned failure.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The operation that fails, counted from 0 by [`FaultFs::ops`].
    pub at: u64,
    /// How.
    pub kind: FaultKind,
    /// Whether all operations from there on fail too.
    pub forever: bool,
}

/// A file system in memory. Clones share one disk. Deterministic as long as one thread uses it.
///
/// Beside the live tree, which is what a process sees, it keeps what a power cut would leave:
/// see [`FaultFs::crash`].
#[derive(Clone, Default)]
pub struct FaultFs(Arc<Mutex<Disk>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Read,
    /// Makes, moves or empties a name.
    Name,
    /// Removes a name, which needs no space.
    Remove,
    Write,
    Sync,
}

/// A change of a file that was not synced.
#[derive(Clone)]
enum Change {
    Truncate,
    Write { at: usize, bytes: Vec<u8> },
}

enum Node {
    File {
        live: Vec<u8>,
        durable: Vec<u8>,
        pending: Vec<Change>,
    },
    Dir {
        live: BTreeMap<String, usize>,
        durable: BTreeMap<String, usize>,
        pending: Vec<(String, Option<usize>)>,
    },
}

struct Disk {
    nodes: Vec<Node>,
    ops: u64,
    fault: Option<Fault>,
    capacity: u64,
    used: u64,
}

const ROOT: usize = 0;

impl Node {
    fn dir() -> Node {
        Node::Dir { live: BTreeMap::new(), durable: BTreeMap::new(), pending: Vec::new() }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Disk { nodes: vec![Node::dir()], ops: 0, fault: None, capacity: 1 << 40, used: 0 }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Truncate => bytes.clear(),
        Change::Write { at, bytes: new } => {
            // A hole left by a lost write before this one reads as zeros.
            if bytes.len() < at + new.len() {
                bytes.resize(at + new.len(), 0);
            }
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
    }
}

impl Disk {
    /// Counts the operation and fails it if that is the plan; for a write, says how much of it to take.
    fn gate(&mut self, op: Op, len: usize) -> io::Result<usize> {
        let n = self.ops;
        self.ops += 1;
        let Some(fault) = self.fault else { return Ok(len) };
        if n != fault.at && !(fault.forever && n > fault.at) {
            return Ok(len);
        }
        match (fault.kind, op) {
            (FaultKind::Eio | FaultKind::Kill, _) | (FaultKind::Fsync, Op::Sync) => {
                Err(io::Error::other("input/output error (injected)"))
            }
            (FaultKind::Enospc, Op::Name | Op::Write | Op::Sync) => Err(no_space()),
            (FaultKind::ShortWrite, Op::Write) => Ok(len / 2),
            _ => Ok(len),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = ROOT;
        for name in names(path)? {
            let Node::Dir { live, .. } = &self.nodes[at] else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            at = *live.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The folder that holds `path`, and the last component.
    fn place(&self, path: &Path) -> io::Result<(usize, String)> {
        let mut names = names(path)?;
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.find(&names.iter().collect::<std::path::PathBuf>())?;
        match self.nodes[dir] {
            Node::Dir { .. } => Ok((dir, last)),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn entry(&self, dir: usize, name: &str) -> Option<usize> {
        match &self.nodes[dir] {
            Node::Dir { live, .. } => live.get(name).copied(),
            Node::File { .. } => None,
        }
    }

    fn set_entry(&mut self, dir: usize, name: &str, node: Option<usize>) {
        if let Node::Dir { live, pending, .. } = &mut self.nodes[dir] {
            match node {
                Some(n) => live.insert(name.into(), n),
                None => live.remove(name),
            };
            pending.push((name.into(), node));
        }
    }

    /// Frees the space of a node that lost its name, or says why it may not lose it.
    fn release(&mut self, node: usize) -> io::Result<()> {
        match &self.nodes[node] {
            Node::File { live, .. } => self.used -= live.len() as u64,
            Node::Dir { live, .. } if live.is_empty() => {}
            Node::Dir { .. } => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
        Ok(())
    }

    fn change(&mut self, node: usize, change: Change) -> io::Result<()> {
        let Node::File { live, pending, .. } = &mut self.nodes[node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let before = live.len() as u64;
        let after = match &change {
            Change::Truncate => 0,
            Change::Write { at, bytes } => before.max((at + bytes.len()) as u64),
        };
        if self.used - before + after > self.capacity {
            return Err(no_space());
        }
        self.used = self.used - before + after;
        apply(live, &change);
        pending.push(change);
        Ok(())
    }

    fn sync(&mut self, node: usize) -> io::Result<()> {
        let outcome = self.gate(Op::Sync, 0);
        if outcome.is_err() && self.fault.is_some_and(|f| f.kind == FaultKind::Kill) {
            return outcome.map(drop);
        }
        match &mut self.nodes[node] {
            Node::File { durable, pending, .. } => {
                for change in std::mem::take(pending) {
                    if outcome.is_ok() {
                        apply(durable, &change);
                    }
                }
            }
            Node::Dir { durable, pending, .. } => {
                for (name, node) in std::mem::take(pending) {
                    match node {
                        _ if outcome.is_err() => {}
                        Some(n) => drop(durable.insert(name, n)),
                        None => drop(durable.remove(&name)),
                    }
                }
            }
        }
        outcome.map(drop)
    }
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on device (injected)")
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    path.components()
        .filter(|c| !matches!(c, Component::RootDir | Component::CurDir))
        .map(|c| match c {
            Component::Normal(name) => Ok(name.to_str().ok_or(io::ErrorKind::InvalidInput)?.to_owned()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
        .collect()
}

/// SplitMix64: enough to pick among crash states.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// How much of the unsynced work a crash lets through.
#[derive(Clone, Copy)]
enum Luck {
    Nothing,
    Everything,
    Some,
}

impl FaultFs {
    /// An empty disk without a plan to fail.
    pub fn new() -> Self {
        Self::default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        // A panic elsewhere must not hide the state of the disk from the test that looks at it.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Operations so far, failed ones included.
    pub fn ops(&self) -> u64 {
        self.disk().ops
    }

    /// Sets or clears the planned failure.
    pub fn plan(&self, fault: Option<Fault>) {
        self.disk().fault = fault;
    }

    /// Limits the bytes in all files together.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk().capacity = bytes;
    }

    /// Flips one bit of a file where it lies, as a bad disk would: uncounted and durable.
    ///
    /// # Errors
    /// If there is no such file or the bit is past its end.
    pub fn flip(&self, path: &Path, bit: usize) -> io::Result<()> {
        let mut disk = self.disk();
        let node = disk.find(path)?;
        let Node::File { live, durable, .. } = &mut disk.nodes[node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        *live.get_mut(bit / 8).ok_or(io::ErrorKind::UnexpectedEof)? ^= 1 << (bit % 8);
        if let Some(byte) = durable.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
        Ok(())
    }

    /// The disk as it may be found after a power cut now: a new one, everything on it durable.
    ///
    /// Each unsynced write is kept, dropped or torn to a prefix, independently of the others, and each
    /// name in a folder with unsynced changes is found in any one of its states since the last sync.
    /// One seed in four loses everything that was not synced, one in four nothing.
    pub fn crash(&self, seed: u64) -> FaultFs {
        let disk = self.disk();
        let mut dice = Dice(seed);
        let luck = match dice.below(4) {
            0 => Luck::Nothing,
            1 => Luck::Everything,
            _ => Luck::Some,
        };
        let mut after = Disk { nodes: Vec::new(), capacity: disk.capacity, ..Disk::default() };
        crash_node(&disk, ROOT, &mut after, luck, &mut dice);
        FaultFs(Arc::new(Mutex::new(after)))
    }
}

/// Copies a node as a crash leaves it; returns its number on the new disk.
fn crash_node(disk: &Disk, node: usize, after: &mut Disk, luck: Luck, dice: &mut Dice) -> usize {
    let number = after.nodes.len();
    match &disk.nodes[node] {
        Node::File { durable, pending, .. } => {
            let bytes = crash_file(durable, pending, luck, dice);
            after.used += bytes.len() as u64;
            after.nodes.push(Node::File { live: bytes.clone(), durable: bytes, pending: Vec::new() });
        }
        Node::Dir { durable, pending, .. } => {
            after.nodes.push(Node::dir());
            let mut entries = BTreeMap::new();
            for (name, node) in crash_names(durable, pending, luck, dice) {
                entries.insert(name, crash_node(disk, node, after, luck, dice));
            }
            after.nodes[number] = Node::Dir { live: entries.clone(), durable: entries, pending: Vec::new() };
        }
    }
    number
}

fn crash_file(durable: &[u8], pending: &[Change], luck: Luck, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    for change in pending {
        let fate = match luck {
            Luck::Nothing => 0,
            Luck::Everything => 3,
            Luck::Some => dice.below(4),
        };
        match (fate, change) {
            (0, _) => {}
            (1, Change::Write { at, bytes: new }) => {
                let torn = new[..dice.below(new.len() + 1)].to_vec();
                apply(&mut bytes, &Change::Write { at: *at, bytes: torn });
            }
            _ => apply(&mut bytes, change),
        }
    }
    bytes
}

fn crash_names(
    durable: &BTreeMap<String, usize>,
    pending: &[(String, Option<usize>)],
    luck: Luck,
    dice: &mut Dice,
) -> BTreeMap<String, usize> {
    let mut states: BTreeMap<&String, Vec<Option<usize>>> = BTreeMap::new();
    for (name, node) in pending {
        states.entry(name).or_insert_with(|| vec![durable.get(name).copied()]).push(*node);
    }
    let mut names = durable.clone();
    for (name, states) in states {
        let pick = match luck {
            Luck::Nothing => 0,
            Luck::Everything => states.len() - 1,
            Luck::Some => dice.below(states.len()),
        };
        match states[pick] {
            Some(node) => drop(names.insert(name.clone(), node)),
            None => drop(names.remove(name)),
        }
    }
    names
}

struct FaultWrite {
    disk: FaultFs,
    node: usize,
}

impl Write for FaultWrite {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut disk = self.disk.disk();
        let n = disk.gate(Op::Write, buf.len())?;
        let Node::File { live, .. } = &disk.nodes[self.node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let at = live.len();
        disk.change(self.node, Change::Write { at, bytes: buf[..n].to_vec() })?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FsWrite for FaultWrite {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.disk().sync(self.node)
    }
}

struct FaultRead {
    disk: FaultFs,
    node: usize,
    len: u64,
}

impl FsRead for FaultRead {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.disk.disk();
        disk.gate(Op::Read, buf.len())?;
        let Node::File { live, .. } = &disk.nodes[self.node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let rest = live.get(offset as usize..).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl FaultFs {
    fn open_write(&self, path: &Path, empty: bool) -> io::Result<Box<dyn FsWrite>> {
        let mut disk = self.disk();
        disk.gate(Op::Name, 0)?;
        let (dir, name) = disk.place(path)?;
        let node = match disk.entry(dir, &name) {
            Some(node) => {
                if empty {
                    disk.change(node, Change::Truncate)?;
                }
                node
            }
            None => {
                disk.nodes.push(Node::File { live: Vec::new(), durable: Vec::new(), pending: Vec::new() });
                let node = disk.nodes.len() - 1;
                disk.set_entry(dir, &name, Some(node));
                node
            }
        };
        Ok(Box::new(FaultWrite { disk: self.clone(), node }))
    }

    fn remove(&self, path: &Path, want_dir: bool) -> io::Result<()> {
        let mut disk = self.disk();
        disk.gate(Op::Remove, 0)?;
        let (dir, name) = disk.place(path)?;
        let node = disk.entry(dir, &name).ok_or(io::ErrorKind::NotFound)?;
        match (&disk.nodes[node], want_dir) {
            (Node::Dir { .. }, false) => return Err(io::ErrorKind::IsADirectory.into()),
            (Node::File { .. }, true) => return Err(io::ErrorKind::NotADirectory.into()),
            _ => disk.release(node)?,
        }
        disk.set_entry(dir, &name, None);
        Ok(())
    }
}

impl Fs for FaultFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsWrite>> {
        self.open_write(path, true)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn FsWrite>> {
        self.open_write(path, false)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsRead>> {
        let mut disk = self.disk();
        disk.gate(Op::Read, 0)?;
        let node = disk.find(path)?;
        let Node::File { live, .. } = &disk.nodes[node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        Ok(Box::new(FaultRead { disk: self.clone(), node, len: live.len() as u64 }))
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let mut disk = self.disk();
        disk.gate(Op::Read, 0)?;
        let node = disk.find(path)?;
        Ok(kind_of(&disk.nodes[node]))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut disk = self.disk();
        disk.gate(Op::Read, 0)?;
        let node = disk.find(dir)?;
        let Node::Dir { live, .. } = &disk.nodes[node] else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        Ok(live.iter().map(|(name, &n)| Entry { name: name.into(), kind: kind_of(&disk.nodes[n]) }).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.gate(Op::Name, 0)?;
        let (from_dir, from_name) = disk.place(from)?;
        let (to_dir, to_name) = disk.place(to)?;
        let node = disk.entry(from_dir, &from_name).ok_or(io::ErrorKind::NotFound)?;
        if let Some(old) = disk.entry(to_dir, &to_name) {
            if kind_of(&disk.nodes[old]) != kind_of(&disk.nodes[node]) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            disk.release(old)?;
        }
        disk.set_entry(from_dir, &from_name, None);
        disk.set_entry(to_dir, &to_name, Some(node));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        let node = disk.find(dir)?;
        disk.sync(node)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.remove(path, false)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.remove(path, true)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.gate(Op::Name, 0)?;
        let (dir, name) = disk.place(path)?;
        if disk.entry(dir, &name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.nodes.push(Node::dir());
        let node = disk.nodes.len() - 1;
        disk.set_entry(dir, &name, Some(node));
        Ok(())
    }

    fn free_space(&self, _dir: &Path) -> io::Result<u64> {
        let mut disk = self.disk();
        disk.gate(Op::Read, 0)?;
        Ok(disk.capacity - disk.used.min(disk.capacity))
    }
}

fn kind_of(node: &Node) -> Kind {
    match node {
        Node::File { .. } => Kind::File,
        Node::Dir { .. } => Kind::Dir,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> &Path {
        Path::new(s)
    }

    #[test]
    fn only_synced_bytes_under_synced_names_are_sure_to_survive() {
        let fs = FaultFs::new();
        fs.write(p("sure"), b"sure").unwrap();
        fs.sync_dir(p("/")).unwrap();
        fs.write(p("name-lost"), b"x").unwrap();
        fs.create(p("sure2")).unwrap().write_all(b"torn or lost").unwrap();
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let after = fs.crash(seed);
            assert_eq!(after.read(p("sure")).unwrap(), b"sure");
            match after.read(p("sure2")) {
                Err(_) => lost += 1,
                Ok(b) if b == b"torn or lost" => kept += 1,
                Ok(b) => {
                    assert!(b"torn or lost".starts_with(&b));
                    torn += 1;
                }
            }
        }
        assert!(lost > 0 && kept > 0 && torn > 0, "{lost} {kept} {torn}");
    }

    #[test]
    fn an_unsynced_rename_may_be_found_before_or_after() {
        let fs = FaultFs::new();
        fs.write(p("a"), b"old").unwrap();
        fs.sync_dir(p("/")).unwrap();
        fs.write(p("a.new"), b"new").unwrap();
        fs.rename(p("a.new"), p("a")).unwrap();
        let found: Vec<_> = (0..100).map(|s| fs.crash(s).read(p("a")).unwrap()).collect();
        assert!(found.iter().any(|b| b == b"old") && found.iter().any(|b| b == b"new"));
        fs.sync_dir(p("/")).unwrap();
        assert!((0..100).all(|s| fs.crash(s).read(p("a")).unwrap() == b"new"));
    }

    #[test]
    fn what_a_failed_sync_lost_no_later_sync_brings_back() {
        let fs = FaultFs::new();
        let mut file = fs.create(p("f")).unwrap();
        fs.sync_dir(p("/")).unwrap();
        file.write_all(b"lost").unwrap();
        fs.plan(Some(Fault { at: fs.ops(), kind: FaultKind::Fsync, forever: false }));
        file.sync().unwrap_err();
        file.write_all(b"kept").unwrap();
        file.sync().unwrap();
        assert_eq!(fs.read(p("f")).unwrap(), b"lostkept");
        assert_eq!(fs.crash(1).read(p("f")).unwrap(), b"\0\0\0\0kept");
    }

    #[test]
    fn faults_strike_the_operation_they_were_planned_for() {
        let fs = FaultFs::new();
        fs.plan(Some(Fault { at: 1, kind: FaultKind::ShortWrite, forever: false }));
        let mut file = fs.create(p("f")).unwrap();
        assert_eq!(file.write(b"abcd").unwrap(), 2);
        assert_eq!(file.write(b"cd").unwrap(), 2);
        fs.plan(Some(Fault { at: fs.ops() + 1, kind: FaultKind::Eio, forever: true }));
        assert_eq!(fs.read(p("f")).unwrap_err().kind(), io::ErrorKind::Other);
        fs.plan(None);
        assert_eq!(fs.read(p("f")).unwrap(), b"abcd");
    }

    #[test]
    fn a_full_disk_refuses_and_frees_on_removal() {
        let fs = FaultFs::new();
        fs.set_capacity(8);
        fs.write(p("a"), &[1; 6]).unwrap();
        assert_eq!(fs.free_space(p("/")).unwrap(), 2);
        assert_eq!(fs.write(p("b"), &[1; 3]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        fs.remove_file(p("a")).unwrap();
        fs.write(p("b"), &[1; 8]).unwrap();
    }
}
