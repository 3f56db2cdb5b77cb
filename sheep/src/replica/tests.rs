//! A replica on its own: what it answers, and what it still knows after its process has died.

use std::path::Path;

use tokio::sync::watch;
use wire::checksum;
use wire::peer::{AppliedList, AppliedRequest, PatchRequest, RequestId, VersionRef};

use super::alone::{ME, VDI, ring};
use super::*;
use crate::cluster::log::Applied;
use crate::store::{Options, SimFs, Verb};

const SIZE: u32 = 1 << 16;

/// A process, with what keeps its view alive.
struct Process {
    replica: Arc<Replica>,
    _applied: watch::Sender<Applied<ClusterState>>,
}

fn start(disk: &SimFs, boot: u128) -> Process {
    let options = Options { boot, flush_threads: 1, ..Options::default() };
    let store = LocalStore::open(Arc::new(disk.clone()), Path::new("/"), options).expect("opens");
    let (applied, view) = watch::channel(Applied { index: 3, state: Arc::new(ring()) });
    let replica = Replica::new(Me::new(ME, boot), Arc::new(store), View::new(view));
    Process { replica, _applied: applied }
}

fn fence() -> Fence {
    let state = ring();
    let config = state.slot(Copies::new(1).expect("in range"), object(0).slot()).expect("formatted").version;
    Fence { to_start: 1, vdi: VDI.0, generation: 1, config, epoch: state.epoch().0 }
}

/// An object's name, and its key.
struct Named(ObjectRef, ObjectKey);

impl Named {
    fn slot(&self) -> SlotIndex {
        self.1.slot
    }
}

fn object(index: u64) -> Named {
    let copies = Copies::new(1).expect("in range");
    let oid = Oid::data(VDI, index);
    let slot = ring().slot_of(oid);
    let birth = Birth::new(Generation(1), 1 + index).expect("in range");
    Named(ObjectRef::new(oid, birth, copies, slot, SIZE), ObjectKey { copies, slot, oid, birth })
}

impl Process {
    fn create(&self, object: &Named) {
        self.replica.create_now(&fence(), &object.1, SIZE).expect("created");
    }

    fn write(&self, object: &Named, seq: u64, fence: Fence) -> Result<(), Status> {
        let number = 10 * object.1.oid.index() + seq;
        let version = |seq| if seq == 0 { VersionRef::default() } else { VersionRef { generation: 1, seq } };
        let request = WriteRequest {
            fence,
            object: object.0,
            predecessor: version(seq - 1),
            version: version(seq),
            offset: 0,
            len: 4096,
            kind: WriteKind::Data.into(),
            request: Some(RequestId { node: 9, start: 1, number }),
            number,
            stable: 1,
            inherited_done: false,
        };
        let data = vec![seq as u8; 4096];
        let crcs = checksum::of_pieces(0, &data);
        let gate = self.replica.vdi(VDI);
        self.replica.write_now(&gate, &object.1, &request, data.into(), crcs).map(drop)
    }

    /// The requests that object 0 has applied.
    fn known(&self) -> Vec<AppliedRequest> {
        let key = object(0).1;
        self.replica.vdi(VDI).recent.lock().of_object((key.oid, key.birth))
    }

    /// The requests that a seal tells of, by number.
    fn applied(&self) -> Vec<u64> {
        let reply = self.replica.seal(&SealRequest { fence: fence(), ..SealRequest::default() }, 100);
        reply.expect("sealed").applied.iter().map(|a| a.request.number).collect()
    }
}

/// A process on an empty disk that has written to object 0 twice.
fn written_twice(disk: &SimFs) -> Process {
    let process = start(disk, 7);
    process.create(&object(0));
    process.write(&object(0), 1, fence()).expect("written");
    process.write(&object(0), 2, fence()).expect("written");
    process
}

#[test]
fn an_answer_under_what_is_not_known_yet_is_refused() {
    let process = start(&SimFs::new(), 7);
    process.create(&object(0));
    let known = fence();
    let ahead = Fence { config: known.config + 1, ..known };
    assert_eq!(process.write(&object(0), 1, ahead), Err(Status::Busy));
    assert_eq!(process.replica.flush(&Fence { epoch: known.epoch + 1, ..known }), Err(Status::Busy));
    assert_eq!(process.write(&object(0), 1, known), Ok(()));
    assert_eq!(process.replica.flush(&known), Ok(()));
}

#[test]
fn what_was_applied_outlives_the_process_and_not_the_memory() {
    let disk = SimFs::new();
    let process = written_twice(&disk);
    process.create(&object(1));
    process.write(&object(1), 1, fence()).expect("written");
    drop(process);
    let process = start(&disk, 7);
    let mut applied = process.applied();
    applied.sort_unstable();
    assert_eq!(applied, [1, 2, 11], "of both objects");
    assert_eq!(process.replica.remove_copy(&object(1).1), Ok(()));
    drop(process);
    let process = start(&disk, 7);
    assert_eq!(process.applied(), [1, 2], "those of a copy that is gone are gone");
    drop(process);
    assert!(start(&disk, 8).applied().is_empty());
}

#[test]
fn what_the_copy_does_not_hold_is_not_believed() {
    let disk = SimFs::new();
    let process = start(&disk, 7);
    process.create(&object(0));
    process.write(&object(0), 1, fence()).expect("written");
    // Noted, and then the process died before it had written.
    let of = process.known();
    let early = AppliedRequest {
        request: RequestId { number: 2, ..of[0].request },
        version: VersionRef { generation: 1, seq: 2 },
        number: 2,
        ..of[0]
    };
    process.replica.store.keep_request(&early).expect("kept");
    drop(process);
    let process = start(&disk, 7);
    assert_eq!(process.applied(), [1]);
    // Nor when the copy has come further since.
    process.write(&object(0), 2, fence()).expect("written");
    process.replica.forget_requests(&object(0).1);
    drop(process);
    assert!(start(&disk, 7).applied().is_empty());
}

#[test]
fn a_takeover_has_the_last_word_on_what_a_copy_has_applied() {
    let disk = SimFs::new();
    let process = written_twice(&disk);
    let known = process.known();
    let patch = PatchRequest {
        fence: fence(),
        object: object(0).0,
        version: VersionRef { generation: 1, seq: 2 },
        applied: Some(AppliedList { applied: vec![known[1]] }),
        ..PatchRequest::default()
    };
    process.replica.patch(&patch, &wire::frame::Payload::empty()).expect("patched");
    assert_eq!(process.applied(), [2]);
    drop(process);
    assert_eq!(start(&disk, 7).applied(), [2], "for good");
}

#[test]
fn a_full_disk_stops_no_write_in_place() {
    let disk = SimFs::new();
    let process = written_twice(&disk);
    // The first thing that a write changes is the file of requests, which has to grow.
    disk.fail(Verb::Write, 1, 28);
    assert_eq!(process.write(&object(0), 3, fence()), Ok(()));
    assert_eq!(process.applied(), [1, 2, 3], "the process remembers what the disk has no room for");
    drop(process);
    assert_eq!(start(&disk, 7).applied(), [1, 2]);
}

#[test]
fn a_pull_brings_the_source_s_requests_in_place_of_the_copy_s_own() {
    let disk = SimFs::new();
    let process = written_twice(&disk);
    let of_source = AppliedRequest {
        version: VersionRef { generation: 1, seq: 5 },
        number: 5,
        request: RequestId { node: 9, start: 1, number: 5 },
        ..process.known()[0]
    };
    let version = Version { generation: Generation(1), seq: 5 };
    process.replica.finish_pull_now(&object(0).1, 1, version, &[of_source]).expect("pulled");
    assert_eq!(process.applied(), [5]);
    drop(process);
    assert_eq!(start(&disk, 7).applied(), [5], "for good");
}
