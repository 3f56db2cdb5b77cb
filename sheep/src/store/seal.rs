//! Seals: the highest generation of each VDI that this node has promised to serve.
//!
//! A new owner seals its generation here before its first read, and from then on the node refuses writes of
//! older ones, across restarts too: so a seal is durable before it is answered. The log's record bodies:
//!
//! ```text
//! 0 kind u32 (1 seal, 2 forget)   4 zeros   8 vdi u64   16 generation u64   24 zeros, to 56
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use wire::id::{Generation, VdiId};

use super::error::Error;
use super::io::FileSystem;
use super::log::{AppendLog, BODY_LEN, Body, LogKind, Replay};

/// The log is rewritten when it has this many records more than twice those that live.
const SLACK_RECORDS: usize = 8_192;
const SEAL: u32 = 1;
const FORGET: u32 = 2;

pub(super) struct Seals {
    log: AppendLog,
    /// Durable or about to be; [`Seals::sealed`] may be ahead of the disk, never behind it.
    live: Mutex<HashMap<VdiId, Generation>>,
}

impl Seals {
    /// Continues after `replay`, or from nothing.
    pub(super) fn open(fs: Arc<dyn FileSystem>, dir: &Path, replay: Option<Replay>) -> Result<Self, Error> {
        let mut live = HashMap::new();
        let mut number = 1;
        if let Some(replay) = replay {
            if let Some(problem) = replay.damage {
                return Err(Error::Format {
                    path: replay.path,
                    problem,
                    way_out: "what was promised to owners is lost: empty the directory and let the node join anew",
                });
            }
            number = replay.number + 1;
            for body in &replay.bodies {
                apply(&mut live, body);
            }
        }
        let log = AppendLog::start(fs, dir, LogKind::Seals, number, &snapshot(&live))?;
        Ok(Self { log, live: Mutex::new(live) })
    }

    pub(super) fn seal(&self, vdi: VdiId, generation: Generation) -> Result<(), Error> {
        let ticket = {
            let mut live = self.live.lock();
            let sealed = live.entry(vdi).or_default();
            *sealed = generation.max(*sealed);
            // Appended even if nothing is new: the same seal by another thread may not be durable yet.
            self.log.append(encode(SEAL, vdi, *sealed))
        };
        self.log.wait(&ticket).map_err(|e| Error::io(&self.log.path(), e))?;
        self.compact_when_long()
    }

    pub(super) fn sealed(&self, vdi: VdiId) -> Generation {
        self.live.lock().get(&vdi).copied().unwrap_or_default()
    }

    /// All that have a seal.
    pub(super) fn vdis(&self) -> Vec<VdiId> {
        self.live.lock().keys().copied().collect()
    }

    pub(super) fn forget(&self, vdi: VdiId) -> Result<(), Error> {
        let ticket = {
            let mut live = self.live.lock();
            if live.remove(&vdi).is_none() {
                return Ok(());
            }
            self.log.append(encode(FORGET, vdi, Generation(0)))
        };
        self.log.wait(&ticket).map_err(|e| Error::io(&self.log.path(), e))?;
        self.compact_when_long()
    }

    pub(super) fn failure(&self) -> Option<std::io::Error> {
        self.log.failure()
    }

    fn compact_when_long(&self) -> Result<(), Error> {
        let live = self.live.lock().len();
        if self.log.record_count() <= 2 * live + SLACK_RECORDS {
            return Ok(());
        }
        self.log.rewrite(|| snapshot(&self.live.lock())).map_err(|e| Error::io(&self.log.path(), e))
    }
}

fn snapshot(live: &HashMap<VdiId, Generation>) -> Vec<Body> {
    live.iter().map(|(vdi, generation)| encode(SEAL, *vdi, *generation)).collect()
}

fn encode(kind: u32, vdi: VdiId, generation: Generation) -> Body {
    let mut body = [0; BODY_LEN];
    body[..4].copy_from_slice(&kind.to_le_bytes());
    body[8..16].copy_from_slice(&vdi.0.to_le_bytes());
    body[16..24].copy_from_slice(&generation.0.to_le_bytes());
    body
}

fn apply(live: &mut HashMap<VdiId, Generation>, body: &Body) {
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
    let (vdi, generation) = (VdiId(number(8)), Generation(number(16)));
    if number(0) == u64::from(FORGET) {
        live.remove(&vdi);
    } else {
        let sealed = live.entry(vdi).or_default();
        *sealed = generation.max(*sealed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_has_these_bytes_for_ever() {
        let mut golden = [0; BODY_LEN];
        golden[0] = 1;
        golden[8..16].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        golden[16..18].copy_from_slice(&[0x34, 0x12]);
        assert_eq!(encode(SEAL, VdiId(0x0102_0304_0506_0708), Generation(0x1234)), golden);
        let mut live = HashMap::new();
        apply(&mut live, &golden);
        assert_eq!(live[&VdiId(0x0102_0304_0506_0708)], Generation(0x1234));
        golden[0] = 2;
        assert_eq!(encode(FORGET, VdiId(0x0102_0304_0506_0708), Generation(0x1234)), golden);
        apply(&mut live, &golden);
        assert!(live.is_empty());
    }
}
