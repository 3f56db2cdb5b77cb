//! What a directory remembers of its node: id, ring, how often it was started, whom it knew.
//!
//! Called by [`crate::node`] before anything else starts. The file `identity` is text: one line with the
//! format's version and a checksum of the rest, then TOML. It is replaced atomically and durably; a
//! damaged or newer one is refused, never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wire::id::{ClusterId, NodeId};

use crate::cluster::entry::Reached;
use crate::machine::random;
use crate::store::FileSystem;

/// The file's format. Version 1 is the first.
const VERSION: u32 = 1;
const NAME: &str = "identity";
const MAGIC: &str = "sheepdog-identity";
/// Processes of which it is remembered how far their log had come. Without the older ones less can be proved.
pub(crate) const REACHED_MAX: usize = 4;

/// What a directory remembers of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// The node's id, 16 hexadecimal digits.
    pub(crate) node: String,
    /// The start counter of its newest process: how often the directory took part in its ring, or was about to.
    pub(crate) start: u64,
    /// What that process drew, in two halves, since TOML has no unsigned numbers of 64 bits.
    #[serde(default)]
    nonce: [u32; 2],
    /// That process has taken part. One that has not, and so has done nothing, has its start used again: a copy of
    /// the directory that is turned away however often never comes with a higher one than the directory itself.
    #[serde(default)]
    taken: bool,
    /// The ring, 32 hexadecimal digits; absent before it belongs to one.
    pub(crate) cluster: Option<String>,
    /// Whether it was in the ring of one that the `local` driver makes.
    #[serde(default)]
    pub(crate) local: bool,
    /// Voters of the ring's log when last seen, by id.
    #[serde(default)]
    pub(crate) voters: Vec<String>,
    /// Mesh addresses of the ring's nodes when last seen, by id.
    #[serde(default)]
    pub(crate) peers: BTreeMap<String, String>,
    /// The newest process seen of other nodes, by id.
    #[serde(default)]
    pub(crate) seen: BTreeMap<String, Seen>,
    /// How far the log had come when the last processes began, oldest first.
    #[serde(default)]
    pub(crate) reached: Vec<Reached>,
}

/// The newest process seen of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seen {
    /// Its start counter.
    start: u64,
    /// What it drew, in two halves.
    nonce: [u32; 2],
    /// The start counter of the one before it.
    before: u64,
}

impl Seen {
    /// A process says that it is start `start`. Returns what to remember, and the highest start seen of any
    /// other process of the node.
    pub(crate) fn meet(self, start: u64, nonce: u64) -> (Self, u64) {
        let halves = halves(nonce);
        if self.nonce == halves && self.start == start {
            return (self, self.before);
        }
        if start > self.start {
            return (Self { start, nonce: halves, before: self.start }, self.start);
        }
        (self, self.start)
    }
}

fn halves(nonce: u64) -> [u32; 2] {
    [(nonce >> 32) as u32, nonce as u32]
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not as it was written.
    #[error(
        "{path}: damaged ({problem}); restore it from a backup, or start with an empty directory: the node \
         then joins anew and the ring copies its data back",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A later release wrote it.
    #[error("{path}: format {found}, this release reads {VERSION}; start it with the release that wrote it", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl Identity {
    fn fresh() -> Self {
        Self {
            node: NodeId(random::<u64>().max(1)).to_string(),
            start: 0,
            nonce: [0, 0],
            taken: false,
            cluster: None,
            local: false,
            voters: Vec::new(),
            peers: BTreeMap::new(),
            seen: BTreeMap::new(),
            reached: Vec::new(),
        }
    }

    /// A process begins.
    pub(crate) fn begin(&mut self) {
        if self.taken || self.start == 0 {
            self.start += 1;
            self.nonce = halves(random());
            self.taken = false;
        }
    }

    /// What tells the newest process from another one with the same start.
    pub(crate) fn nonce(&self) -> u64 {
        u64::from(self.nonce[0]) << 32 | u64::from(self.nonce[1])
    }

    /// The newest process takes part in its ring from here on.
    pub(crate) fn take_part(&mut self) {
        self.taken = true;
    }

    /// The process that has just begun found its log at `index`; 0 if it holds nothing, or is lost, which says
    /// nothing of how far it had come.
    pub(crate) fn note_reached(&mut self, index: u64) {
        if index == 0 {
            self.reached.clear();
            return;
        }
        self.reached.retain(|r| r.before < self.start);
        self.reached.push(Reached { before: self.start, index });
        let spare = self.reached.len().saturating_sub(REACHED_MAX);
        self.reached.drain(..spare);
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node.parse().expect("checked when it was read")
    }

    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.cluster.as_ref().and_then(|c| c.parse().ok())
    }
}

/// The identity in a directory.
pub(crate) struct IdentityFile {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    pub(crate) identity: Identity,
}

impl IdentityFile {
    /// Reads the identity of `dir`, or draws a new one for a directory that has none.
    pub(crate) fn open(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(NAME);
        let identity = match read_text(&*fs, &path) {
            Ok(text) => parse(&path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Identity::fresh(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(IdentityError::Damaged { path, problem: "not text".to_owned() });
            }
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        Ok(Self { fs, dir: dir.to_owned(), identity })
    }

    /// Changes the identity durably; nothing is written if nothing changes.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Identity)) -> Result<(), IdentityError> {
        let mut next = self.identity.clone();
        change(&mut next);
        if next != self.identity {
            self.write(&next)?;
            self.identity = next;
        }
        Ok(())
    }

    /// Becomes a new node that belongs to no ring.
    pub(crate) fn forget(&mut self) -> Result<(), IdentityError> {
        let peers = std::mem::take(&mut self.identity.peers);
        self.identity = Identity { peers, ..Identity::fresh() };
        self.write(&self.identity.clone())
    }

    fn write(&self, identity: &Identity) -> Result<(), IdentityError> {
        let text = toml::to_string(identity).expect("plain data can always be encoded");
        let head = format!("{MAGIC} {VERSION} {:08x}\n", crc32c::crc32c(text.as_bytes()));
        let (path, new) = (self.dir.join(NAME), self.dir.join("identity.new"));
        let write = || {
            if self.fs.exists(&new)? {
                self.fs.remove(&new)?;
            }
            let file = self.fs.create(&new)?;
            file.write_at((head + &text).as_bytes(), 0)?;
            file.sync_data()?;
            self.fs.rename(&new, &path)?;
            self.fs.sync_dir(&self.dir)
        };
        write().map_err(|source| IdentityError::Io { path: path.clone(), source })
    }
}

fn read_text(fs: &dyn FileSystem, path: &Path) -> io::Result<String> {
    let file = fs.open(path)?;
    let len = usize::try_from(file.size()?).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn parse(path: &Path, text: &str) -> Result<Identity, IdentityError> {
    let damaged =
        |problem: &str| IdentityError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    let (head, body) = text.split_once('\n').ok_or_else(|| damaged("no first line"))?;
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(damaged("not an identity file"));
    }
    let version = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| damaged("no version"))?;
    if version > VERSION {
        return Err(IdentityError::Newer { path: path.to_owned(), found: version });
    }
    let crc = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
    if crc != Some(crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("its checksum does not match"));
    }
    let identity: Identity = toml::from_str(body).map_err(|e| damaged(e.message()))?;
    if identity.node.parse::<NodeId>().is_err() {
        return Err(damaged("no node id"));
    }
    Ok(identity)
}

/// The machine's boot id: as long as it stays the same, the kernel still has what processes had written.
pub(crate) fn boot_id() -> Result<u128, IdentityError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text =
        fs::read_to_string(path).map_err(|source| IdentityError::Io { path: path.to_owned(), source })?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map_err(|_| IdentityError::Damaged { path: path.to_owned(), problem: "not a boot id".to_owned() })
}

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealFs;

    fn open(dir: &Path) -> Result<IdentityFile, IdentityError> {
        IdentityFile::open(Arc::new(RealFs), dir)
    }

    #[test]
    fn a_process_that_asks_twice_is_one_and_another_with_its_start_is_not() {
        let (seen, before) = Seen::default().meet(1, 77);
        assert_eq!(before, 0);
        assert_eq!(seen.meet(1, 77), (seen, 0));
        assert_eq!(seen.meet(1, 78), (seen, 1));
        let (next, before) = seen.meet(3, 79);
        assert_eq!(before, 1);
        assert_eq!(next.meet(2, 80), (next, 3));
        assert_eq!(next.meet(3, 79).1, 1);
    }

    #[test]
    fn an_identity_stays_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut file = open(dir.path()).expect("new");
        file.update(|i| i.start += 1).expect("written");
        let node = file.identity.node();
        let again = open(dir.path()).expect("there");
        assert_eq!((again.identity.node(), again.identity.start), (node, 1));
        let path = dir.path().join(NAME);
        let text = fs::read_to_string(&path).expect("readable");
        fs::write(&path, text.replace("start = 1", "start = 7")).expect("written");
        assert!(matches!(open(dir.path()), Err(IdentityError::Damaged { .. })));
        fs::write(&path, text.replace("identity 1", "identity 2")).expect("written");
        assert!(matches!(open(dir.path()), Err(IdentityError::Newer { found: 2, .. })));
        fs::write(&path, "").expect("written");
        assert!(matches!(open(dir.path()), Err(IdentityError::Damaged { .. })));
    }
    #[test]
    fn an_identity_keeps_its_text() {
        let dir = tempfile::tempdir().expect("tempdir");
        let id = |n: u64| NodeId(n).to_string();
        let seen = Seen { start: 4, nonce: [5, 6], before: 3 };
        let identity = Identity {
            node: id(0x11),
            start: 2,
            nonce: [7, 8],
            taken: true,
            cluster: Some(ClusterId(0x12).to_string()),
            local: true,
            voters: vec![id(0x11), id(0x13)],
            peers: [(id(0x13), "127.0.0.1:7001".to_owned())].into(),
            seen: [(id(0x13), seen)].into(),
            reached: vec![Reached { before: 2, index: 0x14 }],
        };
        let mut file = open(dir.path()).expect("new");
        file.update(|known| *known = identity.clone()).expect("written");
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).expect("text"), GOLDEN);
        assert_eq!(open(dir.path()).expect("readable").identity, identity);
    }

    /// Other releases read it: a key may be added with a default, and then only under a new version, since
    /// unknown ones are refused.
    const GOLDEN: &str = r#"sheepdog-identity 1 d4c2e8af
node = "0000000000000011"
start = 2
nonce = [7, 8]
taken = true
cluster = "00000000000000000000000000000012"
local = true
voters = ["0000000000000011", "0000000000000013"]

[peers]
0000000000000013 = "127.0.0.1:7001"

[seen.0000000000000013]
start = 4
nonce = [5, 6]
before = 3

[[reached]]
before = 2
index = 20
"#;

    #[test]
    fn a_process_that_never_took_part_was_none() {
        let mut identity = Identity::fresh();
        identity.begin();
        let first = (identity.start, identity.nonce());
        identity.note_reached(10);
        identity.begin();
        identity.note_reached(10);
        assert_eq!((identity.start, identity.nonce()), first);
        assert_eq!(identity.reached, [Reached { before: 1, index: 10 }]);
        identity.take_part();
        identity.begin();
        assert_eq!(identity.start, 2);
        assert_ne!(identity.nonce(), first.1);
    }

    #[test]
    fn how_far_the_log_had_come_is_remembered_of_the_last_processes_unless_it_is_lost() {
        let mut identity = Identity::fresh();
        for start in 1..=6 {
            identity.begin();
            identity.note_reached(10 * start);
            identity.take_part();
        }
        let all: Vec<(u64, u64)> = identity.reached.iter().map(|r| (r.before, r.index)).collect();
        assert_eq!(all, [(3, 30), (4, 40), (5, 50), (6, 60)]);
        identity.note_reached(0);
        assert_eq!(identity.reached, []);
    }
}
