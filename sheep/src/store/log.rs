//! A small append-only log with group commit, replaced by a shorter one when it has grown.
//!
//! Under the write intents and the seals, which keep their live content in memory. A log is one file,
//! `<stem>.<n>`; the highest `n` counts. Numbers are little endian:
//!
//! ```text
//! header, 64 bytes:  0 magic "SHEEPLOG"   8 format = 1 u32   12 kind u32   16 n u64
//!                   24 snapshot u32      28 zeros           60 CRC32C of 0..60 u32
//! record, 64 bytes:  0 CRC32C u32         4 base u32          8 body, 56 bytes
//! ```
//!
//! A record's checksum covers n, its index in the file, `base` and the body. The first `snapshot` records
//! were durable before the file got its name. After that records come in batches, each synced before the next
//! is written, and `base` is the index of the batch's first record: so a record proves that all before its
//! base were durable once. A bad record that a later one proves durable is damage; any other is what a
//! crash left of the last batch, whose writers had no answer yet.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};

use super::error::{Error, same};
use super::io::{File, FileSystem};

pub(super) const BODY_LEN: usize = 56;
const RECORD_LEN: usize = 64;
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"SHEEPLOG";
/// Longer files are not read: four times what the callers let a log grow to is either damage or not ours.
const FILE_LEN_MAX: u64 = 4 << 30;

pub(super) type Body = [u8; BODY_LEN];

/// Which log a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogKind {
    Intents = 1,
    Seals = 2,
}

impl LogKind {
    fn stem(self) -> &'static str {
        match self {
            Self::Intents => "intents",
            Self::Seals => "seals",
        }
    }
}

/// What a log held.
pub(super) struct Replay {
    pub(super) path: PathBuf,
    pub(super) number: u64,
    pub(super) bodies: Vec<Body>,
    /// Why `bodies` is not all of it, if so.
    pub(super) damage: Option<String>,
}

/// Records handed to [`AppendLog::append`] together; durable together.
struct Batch {
    result: OnceLock<io::Result<()>>,
}

/// Stands for an appended record until it is durable.
pub(super) struct Ticket(Arc<Batch>);

pub(super) struct AppendLog {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    kind: LogKind,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    file: Arc<dyn File>,
    number: u64,
    /// Records in the file; all durable.
    count: u32,
    pending: Vec<Body>,
    batch: Arc<Batch>,
    /// Whether a thread writes the file just now.
    busy: bool,
    /// Set once a sync has failed.
    failed: Option<io::Error>,
}

fn new_batch() -> Arc<Batch> {
    Arc::new(Batch { result: OnceLock::new() })
}

impl AppendLog {
    /// Reads the newest log of a kind in `dir`; `None` when there is none.
    pub(super) fn replay(fs: &dyn FileSystem, dir: &Path, kind: LogKind) -> Result<Option<Replay>, Error> {
        let Some(number) = numbers(fs, dir, kind)?.into_iter().max() else { return Ok(None) };
        let path = dir.join(format!("{}.{number}", kind.stem()));
        let read = || {
            let file = fs.open(&path)?;
            let len = file.size()?;
            if len > FILE_LEN_MAX {
                return Ok(None);
            }
            let mut bytes = vec![0; len as usize];
            file.read_at(&mut bytes, 0)?;
            Ok(Some(bytes))
        };
        let (bodies, damage) = match read().map_err(|e| Error::io(&path, e))? {
            Some(bytes) => decode(&bytes, kind, number),
            None => (Vec::new(), Some("it is too long".to_owned())),
        };
        Ok(Some(Replay { path, number, bodies, damage }))
    }

    /// Starts a log numbered `number` that holds `bodies`, and removes all others of its kind.
    pub(super) fn start(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        kind: LogKind,
        number: u64,
        bodies: &[Body],
    ) -> Result<Self, Error> {
        let file = write_tmp(&*fs, dir, kind, number, bodies).map_err(|e| Error::io(dir, e))?;
        name_file(&*fs, dir, kind, number).map_err(|e| Error::io(dir, e))?;
        for old in numbers(&*fs, dir, kind)?.into_iter().filter(|n| *n != number) {
            let path = dir.join(format!("{}.{old}", kind.stem()));
            fs.remove(&path).map_err(|e| Error::io(&path, e))?;
        }
        let count = u32::try_from(bodies.len()).expect("a snapshot is bounded by memory");
        let state =
            State { file, number, count, pending: Vec::new(), batch: new_batch(), busy: false, failed: None };
        Ok(Self { fs, dir: dir.to_owned(), kind, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Queues a record. It is written when somebody [`wait`](Self::wait)s.
    pub(super) fn append(&self, body: Body) -> Ticket {
        let mut state = self.state.lock();
        state.pending.push(body);
        Ticket(state.batch.clone())
    }

    /// How many records the file and the queue hold.
    pub(super) fn record_count(&self) -> usize {
        let state = self.state.lock();
        state.count as usize + state.pending.len()
    }

    /// The error of a sync that failed; nothing works after it.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.state.lock().failed.as_ref().map(same)
    }

    /// Where the log is, for messages.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.{}", self.kind.stem(), self.state.lock().number))
    }

    /// Returns when the record is durable. One of the waiting threads writes for all.
    pub(super) fn wait(&self, ticket: &Ticket) -> io::Result<()> {
        let mut state = self.state.lock();
        loop {
            if let Some(result) = ticket.0.result.get() {
                return result.as_ref().map_err(same).copied();
            }
            if let Some(error) = &state.failed {
                return Err(same(error));
            }
            if !state.busy {
                break;
            }
            self.changed.wait(&mut state);
        }
        state.busy = true;
        let batch = std::mem::replace(&mut state.batch, new_batch());
        let bodies = std::mem::take(&mut state.pending);
        let (file, number, base) = (state.file.clone(), state.number, state.count);
        drop(state);

        let mut bytes = Vec::with_capacity(bodies.len() * RECORD_LEN);
        for (index, body) in (base..).zip(&bodies) {
            bytes.extend_from_slice(&encode_record(number, index, base, body));
        }
        let written = file.write_at(&bytes, record_offset(base));
        let synced = written.is_ok().then(|| file.sync_data());

        let mut state = self.state.lock();
        state.busy = false;
        let result = match (written, synced) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(Err(error))) => {
                state.failed = Some(same(&error));
                Err(error)
            }
            (Ok(()), _) => {
                state.count += bodies.len() as u32;
                Ok(())
            }
        };
        let answer = result.as_ref().map_err(same).copied();
        batch.result.set(result).expect("only the thread that took the batch answers it");
        self.changed.notify_all();
        answer
    }

    /// Replaces the file by one with just the records of `snapshot`, which is called when no batch is being
    /// written and must cover all records appended before. Those appended meanwhile go to the new file.
    pub(super) fn rewrite(&self, snapshot: impl FnOnce() -> Vec<Body>) -> io::Result<()> {
        let mut state = self.state.lock();
        while state.busy {
            self.changed.wait(&mut state);
        }
        if let Some(error) = &state.failed {
            return Err(same(error));
        }
        state.busy = true;
        let number = state.number + 1;
        drop(state);

        let bodies = snapshot();
        let result = write_tmp(&*self.fs, &self.dir, self.kind, number, &bodies).map(|file| {
            name_file(&*self.fs, &self.dir, self.kind, number)?;
            Ok(file)
        });

        let mut state = self.state.lock();
        state.busy = false;
        self.changed.notify_all();
        match result {
            Ok(Ok(file)) => {
                state.file = file;
                state.number = number;
                state.count = bodies.len() as u32;
                drop(state);
                self.fs.remove(&self.dir.join(format!("{}.{}", self.kind.stem(), number - 1)))
            }
            // The old file goes on; a full disk ends up here.
            Err(error) => Err(error),
            Ok(Err(error)) => {
                // The new file may or may not have its name, so going on with the old one could lose
                // what is appended to it.
                state.failed = Some(same(&error));
                Err(error)
            }
        }
    }
}

fn numbers(fs: &dyn FileSystem, dir: &Path, kind: LogKind) -> Result<Vec<u64>, Error> {
    let prefix = format!("{}.", kind.stem());
    let mut numbers = Vec::new();
    for entry in fs.list(dir).map_err(|e| Error::io(dir, e))? {
        let Some(rest) = entry.name.strip_prefix(&prefix) else { continue };
        let path = dir.join(&entry.name);
        match rest.parse::<u64>() {
            Ok(number) if number.to_string() == rest && !entry.is_dir => numbers.push(number),
            _ if rest == "tmp" => fs.remove(&path).map_err(|e| Error::io(&path, e))?,
            _ => {
                return Err(Error::Format {
                    path,
                    problem: "not a file of this store".to_owned(),
                    way_out: "move it away",
                });
            }
        }
    }
    Ok(numbers)
}

/// Writes a new log without its name.
fn write_tmp(
    fs: &dyn FileSystem,
    dir: &Path,
    kind: LogKind,
    number: u64,
    bodies: &[Body],
) -> io::Result<Arc<dyn File>> {
    let tmp = dir.join(format!("{}.tmp", kind.stem()));
    if fs.exists(&tmp)? {
        fs.remove(&tmp)?;
    }
    let file = fs.create(&tmp)?;
    let mut bytes = encode_header(kind, number, bodies.len() as u32).to_vec();
    for (index, body) in (0..).zip(bodies) {
        bytes.extend_from_slice(&encode_record(number, index, 0, body));
    }
    file.write_at(&bytes, 0)?;
    file.sync_data()?;
    Ok(file)
}

/// Gives the new log its name, durably.
fn name_file(fs: &dyn FileSystem, dir: &Path, kind: LogKind, number: u64) -> io::Result<()> {
    let tmp = dir.join(format!("{}.tmp", kind.stem()));
    fs.rename(&tmp, &dir.join(format!("{}.{number}", kind.stem())))?;
    fs.sync_dir(dir)
}

fn record_offset(index: u32) -> u64 {
    (u64::from(index) + 1) * RECORD_LEN as u64
}

fn encode_header(kind: LogKind, number: u64, snapshot: u32) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..16].copy_from_slice(&(kind as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..28].copy_from_slice(&snapshot.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn encode_record(number: u64, index: u32, base: u32, body: &Body) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[4..8].copy_from_slice(&base.to_le_bytes());
    bytes[8..].copy_from_slice(body);
    let crc = record_crc(number, index, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn record_crc(number: u64, index: u32, rest: &[u8]) -> u32 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&number.to_le_bytes());
    place[8..].copy_from_slice(&index.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), rest)
}

fn decode(bytes: &[u8], kind: LogKind, number: u64) -> (Vec<Body>, Option<String>) {
    let u32_at = |record: &[u8], at: usize| {
        u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
    };
    let Some((header, rest)) = bytes.split_at_checked(RECORD_LEN) else {
        return (Vec::new(), Some("it is too short".to_owned()));
    };
    let snapshot = u32_at(header, 24);
    if header != encode_header(kind, number, snapshot) {
        return (Vec::new(), Some("its header is damaged or of another version".to_owned()));
    }
    let mut bodies = Vec::new();
    let (mut first_bad, mut proven) = (None, snapshot);
    for (index, record) in (0..).zip(rest.chunks_exact(RECORD_LEN)) {
        let base = u32_at(record, 4);
        if u32_at(record, 0) == record_crc(number, index, &record[4..]) && base <= index {
            proven = proven.max(base);
            bodies.push(record[8..].try_into().expect("a record less its first 8 bytes is a body"));
        } else {
            first_bad = first_bad.or(Some(index));
        }
    }
    let end = (rest.len() / RECORD_LEN) as u32;
    let bad = first_bad.unwrap_or(end);
    (bodies, (bad < proven).then(|| format!("record {bad} is damaged")))
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimFs;
    use super::*;

    fn body(n: u8) -> Body {
        [n; BODY_LEN]
    }

    fn log_of(batches: &[&[u8]]) -> Vec<u8> {
        let mut bytes = encode_header(LogKind::Seals, 1, 1).to_vec();
        bytes.extend_from_slice(&encode_record(1, 0, 0, &body(0)));
        let mut index = 1;
        for batch in batches {
            let base = index;
            for n in *batch {
                bytes.extend_from_slice(&encode_record(1, index, base, &body(*n)));
                index += 1;
            }
        }
        bytes
    }

    #[test]
    fn a_header_and_a_record_keep_their_bytes() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let number = 0x0102_0304_0506_0708;
        let header = "53484545504c4f47010000000100000008070605040302010d0c0b0a00000000\
                      0000000000000000000000000000000000000000000000000000000081b1e0bd";
        assert_eq!(hex(&encode_header(LogKind::Intents, number, 0x0a0b_0c0d)), header);
        let header = "53484545504c4f47010000000200000008070605040302010d0c0b0a00000000\
                      000000000000000000000000000000000000000000000000000000008d969b99";
        assert_eq!(hex(&encode_header(LogKind::Seals, number, 0x0a0b_0c0d)), header);
        let record = "bb3ba4d111100000777777777777777777777777777777777777777777777777\
                      7777777777777777777777777777777777777777777777777777777777777777";
        assert_eq!(hex(&encode_record(number, 0x1112, 0x1011, &body(0x77))), record);
    }

    #[test]
    fn a_torn_last_batch_is_told_from_damage() {
        let whole = log_of(&[&[1, 2], &[3, 4]]);
        let decode = |bytes: &[u8]| decode(bytes, LogKind::Seals, 1);
        assert_eq!(decode(&whole).0.len(), 5);
        assert_eq!(decode(&whole).1, None);
        // Any cut or flip within the last batch may be a crash; what is left of the batch counts.
        let mut torn = whole.clone();
        torn[record_offset(3) as usize + 9] ^= 1;
        let (bodies, damage) = decode(&torn);
        assert_eq!((bodies.len(), damage), (4, None));
        assert_eq!(decode(&whole[..whole.len() - 70]).1, None);
        // Before it nothing may be bad, once a later record is there to prove it.
        for index in 0..3 {
            let mut bad = whole.clone();
            bad[record_offset(index) as usize + 9] ^= 1;
            assert!(decode(&bad).1.is_some(), "record {index}");
        }
        assert!(decode(&whole[..record_offset(0) as usize]).1.is_some(), "snapshot cut off");
        assert!(super::decode(&whole, LogKind::Intents, 1).1.is_some(), "another kind");
        assert!(super::decode(&whole, LogKind::Seals, 2).1.is_some(), "another number");
    }

    #[test]
    fn what_was_waited_for_survives_a_power_cut_and_a_rewrite() {
        let sim = SimFs::new();
        let fs: Arc<dyn FileSystem> = Arc::new(sim.clone());
        let dir = Path::new("/d");
        fs.create_dir(dir).expect("new");
        fs.sync_dir(Path::new("/")).expect("synced");
        let log = AppendLog::start(fs.clone(), dir, LogKind::Seals, 1, &[body(1)]).expect("starts");
        log.wait(&log.append(body(2))).expect("durable");
        let lazy = log.append(body(3));
        log.rewrite(|| vec![body(1), body(2), body(3)]).expect("rewritten");
        log.wait(&lazy).expect("durable in the new file");
        log.append(body(4));
        drop(log);
        sim.power_cut(7);
        let replay = AppendLog::replay(&*fs, dir, LogKind::Seals).expect("reads").expect("is there");
        assert_eq!(replay.number, 2);
        assert_eq!(replay.damage, None);
        assert_eq!(replay.bodies, [body(1), body(2), body(3), body(3)]);
    }
}
