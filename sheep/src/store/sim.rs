//! A file system in memory whose disk fails and whose power is cut.
//!
//! The fault model, harsher than any real one that keeps the promises of the seam:
//!
//! - Until its file is synced, each 512-byte sector holds after a power cut what it held at the last sync or after
//!   any of the changes since, whatever the others hold. So writes are dropped, reordered and torn.
//! - Until its directory is synced, each name means what it meant at the last sync or what it means now, on its own:
//!   a rename may leave both names, or none.
//! - Any call can be told to fail, once or, as if the machine had stopped, from then on.
//! - A sync that fails leaves some of what it was to write where only the kernel has it: it reads as before, later
//!   syncs succeed, and a power cut takes it away.
//! - A full disk takes no sector and no name more than it has.
//!
//! Sectors never written are not stored, so objects of 4 MiB cost what is written to them.

mod content;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use self::content::{DirNode, FileNode};
use super::io::{DirEntry, File, FileSystem, LockGuard, Space};

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const ENOSPC: i32 = 28;

/// A kind of call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Opening a file.
    Open,
    /// Creating a file.
    Create,
    /// Creating a directory.
    CreateDir,
    /// Renaming.
    Rename,
    /// Removing a file or directory.
    Remove,
    /// Listing a directory.
    List,
    /// Making the names of a directory durable.
    SyncDir,
    /// Reading a file.
    Read,
    /// Writing a file, or changing its length.
    Write,
    /// Punching a hole.
    Punch,
    /// Making a file durable.
    SyncData,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Open,
        Self::Create,
        Self::CreateDir,
        Self::Rename,
        Self::Remove,
        Self::List,
        Self::SyncDir,
        Self::Read,
        Self::Write,
        Self::Punch,
        Self::SyncData,
    ];
}

type Ino = u64;
type Names = BTreeMap<String, Ino>;

enum Node {
    File(FileNode),
    Dir(DirNode),
}

struct State {
    nodes: HashMap<Ino, Node>,
    next: Ino,
    /// Raised at each power cut; files opened before are dead.
    boot: u64,
    calls: u64,
    counts: HashMap<Verb, u64>,
    faults: Vec<(Verb, u64, i32)>,
    halt_at: Option<u64>,
    locks: HashSet<PathBuf>,
    capacity: u64,
    full: bool,
    /// A sync has failed since the last power cut.
    sync_failed: bool,
}

/// The simulated file system; clones are the same one.
#[derive(Clone)]
pub struct SimFs(Arc<Mutex<State>>);

impl Default for SimFs {
    fn default() -> Self {
        Self::new()
    }
}

const ROOT: Ino = 0;

impl SimFs {
    /// An empty one, with nothing but `/`.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            nodes: HashMap::from([(ROOT, Node::Dir(DirNode::default()))]),
            next: 1,
            boot: 0,
            calls: 0,
            counts: HashMap::new(),
            faults: Vec::new(),
            halt_at: None,
            locks: HashSet::new(),
            capacity: 1 << 40,
            full: false,
            sync_failed: false,
        })))
    }

    /// A disk with what this one shows at the moment, all of it durable: a backup.
    pub fn copy(&self) -> Self {
        let state = self.0.lock();
        let nodes = state.nodes.iter().map(|(ino, node)| {
            let node = match node {
                Node::File(file) => Node::File(file.settled()),
                Node::Dir(dir) => Node::Dir(DirNode { now: dir.now.clone(), durable: dir.now.clone() }),
            };
            (*ino, node)
        });
        let copy = Self::new();
        let mut other = copy.0.lock();
        (other.nodes, other.next) = (nodes.collect(), state.next);
        drop(other);
        copy
    }

    /// Whether the disk takes anything more.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// Whether a sync has failed since the last power cut.
    pub fn sync_has_failed(&self) -> bool {
        self.0.lock().sync_failed
    }

    /// Makes the `nth` call of `verb` from now, counted from 1, fail with an OS error (5 is EIO, 28 ENOSPC).
    pub fn fail(&self, verb: Verb, nth: u64, os_error: i32) {
        let mut state = self.0.lock();
        let at = state.counts.get(&verb).copied().unwrap_or(0) + nth;
        state.faults.push((verb, at, os_error));
    }

    /// Takes back all that [`Self::fail`] has asked for.
    pub fn fail_no_more(&self) {
        self.0.lock().faults.clear();
    }

    /// Lets `calls` more calls through; all others fail, until [`Self::power_cut`].
    pub fn halt_after(&self, calls: u64) {
        let mut state = self.0.lock();
        state.halt_at = Some(state.calls + calls);
    }

    /// Whether calls fail because of [`Self::halt_after`].
    pub fn has_halted(&self) -> bool {
        self.0.lock().halted()
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// How many calls of one kind were made.
    pub fn count(&self, verb: Verb) -> u64 {
        self.0.lock().counts.get(&verb).copied().unwrap_or(0)
    }

    /// Cuts the power and brings it back. What was not synced is chosen by `seed`.
    pub fn power_cut(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = self.0.lock();
        state.restart();
        state.sync_failed = false;
        let mut inos: Vec<Ino> = state.nodes.keys().copied().collect();
        inos.sort_unstable();
        for ino in inos {
            match state.nodes.get_mut(&ino) {
                Some(Node::File(file)) => file.cut(&mut rng),
                Some(Node::Dir(dir)) => dir.cut(&mut rng),
                None => {}
            }
        }
        state.collect();
    }

    /// Ends the process alone: the kernel keeps all that was written.
    pub fn process_kill(&self) {
        self.0.lock().restart();
    }

    /// Flips one bit of a file, on disk and in memory, behind everybody's back.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let ino = state.find(path)?;
        let file = state.file(ino)?;
        file.flip(bit);
        Ok(())
    }

    /// Bytes of the disk that holds everything; only reported, not enforced.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }
}

fn os_error<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl State {
    fn restart(&mut self) {
        self.boot += 1;
        self.halt_at = None;
        self.faults.clear();
        self.locks.clear();
    }

    /// Forgets files that no name leads to any more.
    fn collect(&mut self) {
        let mut reached = HashSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(ino) = next.pop() {
            if let Some(Node::Dir(dir)) = self.nodes.get(&ino) {
                next.extend(dir.now.values().chain(dir.durable.values()).filter(|ino| reached.insert(**ino)));
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }

    fn halted(&self) -> bool {
        self.halt_at.is_some_and(|at| self.calls >= at)
    }

    fn enter(&mut self, verb: Verb) -> io::Result<()> {
        if self.halted() {
            return os_error(EIO);
        }
        self.calls += 1;
        let count = self.counts.entry(verb).or_insert(0);
        *count += 1;
        let now = *count;
        match self.faults.iter().find(|(v, at, _)| (*v, *at) == (verb, now)) {
            Some((_, _, code)) => os_error(*code),
            None => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut ino = ROOT;
        for part in path.components() {
            if let Component::Normal(name) = part {
                let Some(Node::Dir(dir)) = self.nodes.get(&ino) else { return os_error(ENOTDIR) };
                ino = match dir.now.get(&*name.to_string_lossy()) {
                    Some(found) => *found,
                    None => return os_error(ENOENT),
                };
            }
        }
        Ok(ino)
    }

    fn file(&mut self, ino: Ino) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            _ => os_error(EIO),
        }
    }

    fn dir(&mut self, ino: Ino) -> io::Result<&mut DirNode> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => os_error(ENOTDIR),
        }
    }

    /// The directory a path lies in, and its last name.
    fn parent(&mut self, path: &Path) -> io::Result<(&mut DirNode, String)> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let ino = self.find(path.parent().unwrap_or(Path::new("/")))?;
        Ok((self.dir(ino)?, name.unwrap_or_default()))
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<Ino> {
        if self.full {
            return os_error(ENOSPC);
        }
        let ino = self.next;
        let (dir, name) = self.parent(path)?;
        if dir.now.contains_key(&name) {
            return os_error(EEXIST);
        }
        dir.now.insert(name, ino);
        self.next += 1;
        self.nodes.insert(ino, node);
        Ok(ino)
    }
}

struct SimFile {
    fs: SimFs,
    ino: Ino,
    boot: u64,
}

impl SimFs {
    fn handle(&self, state: &State, ino: Ino) -> Arc<dyn File> {
        Arc::new(SimFile { fs: self.clone(), ino, boot: state.boot })
    }
}

impl FileSystem for SimFs {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock();
        state.enter(Verb::Open)?;
        let ino = state.find(path)?;
        state.file(ino)?;
        Ok(self.handle(&state, ino))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock();
        state.enter(Verb::Create)?;
        let ino = state.add(path, Node::File(FileNode::default()))?;
        Ok(self.handle(&state, ino))
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.0.lock();
        state.enter(Verb::CreateDir)?;
        match state.find(path) {
            Ok(ino) => state.dir(ino).map(|_| false),
            Err(_) => state.add(path, Node::Dir(DirNode::default())).map(|_| true),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.enter(Verb::Rename)?;
        let ino = state.find(from)?;
        let (dir, name) = state.parent(to)?;
        dir.now.insert(name, ino);
        let (dir, name) = state.parent(from)?;
        dir.now.remove(&name);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.enter(Verb::Remove)?;
        let ino = state.find(path)?;
        state.file(ino)?;
        let (dir, name) = state.parent(path)?;
        dir.now.remove(&name);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.0.lock();
        state.enter(Verb::List)?;
        let ino = state.find(dir)?;
        let names: Vec<(String, Ino)> =
            state.dir(ino)?.now.iter().map(|(name, ino)| (name.clone(), *ino)).collect();
        let is_dir = |ino| matches!(state.nodes.get(&ino), Some(Node::Dir(_)));
        Ok(names.into_iter().map(|(name, ino)| DirEntry { name, is_dir: is_dir(ino) }).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.0.lock();
        if state.halted() {
            return os_error(EIO);
        }
        Ok(state.find(path).is_ok())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Err(error) = state.enter(Verb::SyncDir) {
            state.sync_failed |= !state.halted();
            return Err(error);
        }
        let ino = state.find(dir)?;
        let dir = state.dir(ino)?;
        dir.durable = dir.now.clone();
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.0.lock();
        let sectors = state.nodes.values().map(|node| match node {
            Node::File(file) => file.space(),
            Node::Dir(_) => 0,
        });
        let used = sectors.sum();
        Ok(Space { total: state.capacity, free: state.capacity.saturating_sub(used), used })
    }

    fn lock(&self, path: &Path) -> io::Result<LockGuard> {
        let mut state = self.0.lock();
        if state.find(path).is_err() {
            state.add(path, Node::File(FileNode::default()))?;
        }
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { fs: self.clone(), path: path.to_owned(), boot: state.boot }))
    }
}

struct SimLock {
    fs: SimFs,
    path: PathBuf,
    boot: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.fs.0.lock();
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

impl SimFile {
    fn with<T>(&self, verb: Verb, call: impl FnOnce(&mut FileNode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.fs.0.lock();
        if state.boot != self.boot {
            return os_error(EIO);
        }
        state.enter(verb)?;
        call(state.file(self.ino)?)
    }
}

impl File for SimFile {
    fn id(&self) -> io::Result<(u64, u64)> {
        Ok((0, self.ino))
    }

    fn size(&self) -> io::Result<u64> {
        self.with(Verb::Read, |file| Ok(file.len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(Verb::Read, |file| file.read(buf, offset))
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let full = self.fs.0.lock().full;
        self.with(Verb::Write, |file| {
            if full && !file.holds(offset, data.len() as u64) {
                return os_error(ENOSPC);
            }
            file.write(data, offset);
            Ok(())
        })
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.with(Verb::Write, |file| {
            file.set_len(size);
            Ok(())
        })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with(Verb::Punch, |file| {
            let end = (offset + len).min(file.len);
            file.clear(offset.min(end), end);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.with(Verb::SyncData, |file| {
            file.sync();
            Ok(())
        });
        if synced.is_err() {
            let mut state = self.fs.0.lock();
            // One that the machine's end cut short is no failure of the disk.
            if state.boot == self.boot && !state.halted() {
                state.sync_failed = true;
                state.file(self.ino)?.fail_sync();
            }
        }
        synced
    }
}
