//! Fuzz target `peer_messages`: requests of another node to a replica.
//!
//! The bytes are requests one after another: operation, message, data. Messages come as they are, or with the names
//! of objects that exist and rights that hold put into them, so that more is looked at than those. What must hold:
//! every message comes back from its bytes, every request is answered once, the disk is never taken for
//! failed, and whatever an object then gives to read matches its checksums.

use std::path::Path;
use std::sync::LazyLock;
use std::sync::mpsc;
use std::time::Duration;

use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use wire::checksum;
use wire::frame::Payload;
use wire::peer::*;

use super::alone::{ME, VDI, ring};
use super::*;
use crate::cluster::log::Applied;
use crate::fuzz::Source;
use crate::store::{Options, Segment, SimFs};

const SIZE: u32 = 1 << 15;
const OBJECTS: u8 = 3;
const REQUESTS_MAX: usize = 24;
/// A request that is not answered by then never will be.
const PATIENCE: Duration = Duration::from_secs(20);

/// Requests that wait for the disk run on its threads.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).build().expect("a runtime")
});

static RING: LazyLock<Arc<ClusterState>> = LazyLock::new(|| Arc::new(ring()));

/// A disk with objects that have a few blocks each.
static DISK: LazyLock<SimFs> = LazyLock::new(|| {
    let fs = SimFs::new();
    let store = open(&fs);
    for index in 0..OBJECTS {
        let key = key_of(&object(index)).expect("in range");
        store.create(&key, SIZE).expect("created");
        let data = Bytes::from(vec![index + 1; 6000]);
        let kind = store::WriteKind::Data { crcs: checksum::of_pieces(100, &data), data };
        let version = Version { generation: Generation(1), seq: 1 };
        store.write(&key, &store::Write { version, offset: 100, kind }).expect("written");
    }
    store.close().expect("closed");
    drop(store);
    fs
});

fn open(fs: &SimFs) -> LocalStore {
    let options = Options { boot: 7, flush_threads: 1, ..Options::default() };
    LocalStore::open(Arc::new(fs.clone()), Path::new("/"), options).expect("as it was written")
}

fn object(index: u8) -> ObjectRef {
    let oid = Oid::data(VDI, index.into());
    let birth = Birth::new(Generation(1), 1 + u64::from(index)).expect("in range");
    ObjectRef::new(oid, birth, Copies::new(1).expect("in range"), RING.slot_of(oid), SIZE)
}

/// A right that holds for an object.
fn fence(object: &ObjectRef) -> Fence {
    let copies = Copies::new(1).expect("in range");
    let config = RING.slot(copies, SlotIndex(object.slot)).map_or(0, |config| config.version);
    Fence { to_start: ME.start, vdi: VDI.0, generation: 1, config, epoch: RING.epoch().0 }
}

pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let fs = DISK.copy();
    let _entered = RUNTIME.enter();
    let (_applied, view) = watch::channel(Applied { index: 3, state: RING.clone() });
    let replica = Replica::new(Me::new(ME, 7), Arc::new(open(&fs)), View::new(view));
    for _ in 0..REQUESTS_MAX {
        if source.is_empty() {
            break;
        }
        let (op, how) = (u16::from(source.u8() % 20), source.u8());
        let mut ahead = source;
        every_message(ahead.piece());
        let meta = if how & 1 == 0 { source.piece().to_vec() } else { likely(op, &mut source) };
        let data = Bytes::copy_from_slice(source.piece());
        let payload = match how & 2 {
            0 => Payload::new(source.u16().into(), data),
            // As it might come: as many checksums as there should be, whatever they are.
            _ => {
                let crcs = vec![source.u32(); checksum::pieces(0, data.len()).count()];
                Payload::with_crcs(0, data, crcs).expect("as many as there are pieces")
            }
        };
        let (done, answered) = mpsc::sync_channel(1);
        serve(&replica, op, meta.into(), payload, move |status, meta, _| {
            done.send((status, meta)).expect("answered once, while somebody waits");
        });
        let (status, _) = answered.recv_timeout(PATIENCE).expect("an answer");
        assert_ne!(status, Status::Io, "a request has made the disk fail");
    }
    assert_eq!(*replica.failure().borrow(), None);
    for key in replica.store.list_vdi(VDI).expect("listed") {
        look(&replica.store, &key);
    }
}

/// What can be read of an object is as its checksums say.
fn look(store: &LocalStore, key: &ObjectKey) {
    let size = store.size(key).expect("a header");
    assert!(store.verify(key).expect("readable").is_empty(), "damaged by requests");
    let out = store.read(key, 0, size).expect("readable");
    let mut at = 0;
    for segment in &out.segments {
        if let Segment::Data { data, crcs } = segment {
            checksum::verify(at, data, crcs).expect("as its checksums say");
        }
        at += segment.len();
    }
    assert_eq!(at, u64::from(size));
}

/// Every kind of message comes back from its bytes.
fn every_message(bytes: &[u8]) {
    fn check<M: Message + Default + PartialEq>(bytes: &[u8]) {
        let Ok(message) = M::decode(bytes) else { return };
        let again = M::decode(&*message.encode_to_vec()).expect("what was encoded can be read");
        assert!(again == message, "{bytes:?} is another message after it was read");
    }
    check::<ObjectRequest>(bytes);
    check::<WriteRequest>(bytes);
    check::<PatchRequest>(bytes);
    check::<CatchUpRequest>(bytes);
    check::<SealRequest>(bytes);
    check::<SealReply>(bytes);
    check::<TableReply>(bytes);
    check::<PullReply>(bytes);
    check::<ListReply>(bytes);
    check::<ListVdiRequest>(bytes);
    check::<OpenRequest>(bytes);
    check::<VdiIoRequest>(bytes);
    check::<StatusReply>(bytes);
    check::<VdiInfoReply>(bytes);
    check::<VdiObjectsReply>(bytes);
    check::<VdiCheckRequest>(bytes);
    check::<VdiCheckReply>(bytes);
    check::<UnlockRequest>(bytes);
    check::<ClientsReply>(bytes);
    check::<AnsweredRequest>(bytes);
    check::<AnsweredReply>(bytes);
    check::<IntroduceMessage>(bytes);
    check::<NodeStatusReply>(bytes);
    if let Ok(reply) = ReadReply::decode(bytes) {
        let segments = unpack(&reply, &Bytes::from_static(&[7; 64]), 128);
        let total: u64 = segments.iter().flatten().map(Segment::len).sum();
        assert!(segments.is_none() || total == 128);
    }
}

/// A request that has the right, about an object that may exist.
fn likely(op: u16, source: &mut Source<'_>) -> Vec<u8> {
    let mut object = object(source.below(OBJECTS + 1));
    if source.below(16) == 0 {
        object.size = source.u32();
    }
    let fence = fence(&object);
    let number = |source: &mut Source<'_>| match source.u8() {
        255 => source.u32(),
        small => u32::from(small) * 512 % (SIZE + 1024),
    };
    let version = |source: &mut Source<'_>| VersionRef { generation: 1, seq: source.below(6).into() };
    let numbers = |source: &mut Source<'_>| -> Vec<u32> {
        (0..source.below(32))
            .map(|_| if source.flag() { source.u32() } else { source.below(9).into() })
            .collect()
    };
    match op {
        op::WRITE => {
            let request = source.flag().then(|| RequestId { node: 9, start: 1, number: source.u8().into() });
            WriteRequest {
                fence,
                object,
                predecessor: version(source),
                version: version(source),
                offset: number(source),
                len: number(source),
                kind: source.below(4).into(),
                request,
                number: source.u8().into(),
                stable: source.u8().into(),
                inherited_done: source.flag(),
            }
            .encode_to_vec()
        }
        op::PATCH => {
            let applied = source.flag().then(|| {
                let applied = AppliedRequest {
                    request: RequestId { node: 9, start: 1, number: source.u8().into() },
                    object,
                    offset: number(source),
                    version: version(source),
                    number: source.u8().into(),
                };
                AppliedList { applied: vec![applied; source.below(3).into()] }
            });
            let (blocks, accept) = (numbers(source), numbers(source));
            PatchRequest { fence, object, version: version(source), blocks, accept, applied }.encode_to_vec()
        }
        op::PULL | op::LEND | op::LIST_SLOT => CatchUpRequest {
            to_start: ME.start,
            copies: 1,
            slot: object.slot,
            since: source.below(4).into(),
            applied: source.below(5).into(),
            object: Some(object),
            at_least: source.flag().then(|| version(source)),
            entries: numbers(source),
            after: source.flag().then_some(object),
            lends: source.flag(),
            lent: numbers(source),
        }
        .encode_to_vec(),
        op::SEAL => SealRequest {
            fence,
            after_object: source.flag().then_some(object),
            after_generation: source.below(3).into(),
            after_number: source.u8().into(),
        }
        .encode_to_vec(),
        op::SETTLED | op::FLUSH => VdiRequest { fence }.encode_to_vec(),
        op::LIST_VDI => ListVdiRequest { vdi: VDI.0, after: source.flag().then_some(object) }.encode_to_vec(),
        _ => ObjectRequest { fence, object, offset: number(source), len: number(source) }.encode_to_vec(),
    }
}
