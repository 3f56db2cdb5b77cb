//! What sheep say to each other: the operations of a frame and the messages in their `meta`.
//!
//! Messages are protobuf, so that fields can be added while rings of mixed versions run. Every request
//! about an object names the session it is meant for, the owner's generation and the slot configuration it
//! was made under; the receiver refuses what is older than it knows (`docs/format.md`, "Peer messages").

use crate::id::{Birth, Generation, NodeId, Oid, Session, SlotIndex, VdiId, Version};
use crate::policy::Copies;

mod query;

pub use query::{
    AnsweredReply, AnsweredRequest, CheckFinding, CheckFindingKind, CheckPhase, ClientsReply, ClientsRequest,
    MappedObject, OpenConnection, UnlockRequest, VdiCheckReply, VdiCheckRequest, VdiObjectsReply,
    VdiObjectsRequest,
};

/// Operations, by number. Replica class below 32, forward class from 32, control class from 64.
pub mod op {
    /// Create an object, durably.
    pub const CREATE: u16 = 1;
    /// Apply a write to an object.
    pub const WRITE: u16 = 2;
    /// Read from an object.
    pub const READ: u16 = 3;
    /// Ask for an object's version.
    pub const STAT: u16 = 4;
    /// Record a generation; learn what may be unsettled.
    pub const SEAL: u16 = 5;
    /// The generation's takeover is done.
    pub const SETTLED: u16 = 6;
    /// Ask for an object's block table.
    pub const TABLE: u16 = 7;
    /// Bring blocks of an object to what the settled copy has.
    pub const PATCH: u16 = 8;
    /// Make everything of a VDI durable.
    pub const FLUSH: u16 = 9;
    /// Remove one birth of an object.
    pub const REMOVE: u16 = 10;
    /// Copy an object, leaving out blocks that the asker has.
    pub const PULL: u16 = 11;
    /// List the objects of a slot.
    pub const LIST_SLOT: u16 = 12;
    /// Confirm that an owner has not been superseded.
    pub const CONFIRM: u16 = 13;
    /// List the objects of a VDI that a node holds.
    pub const LIST_VDI: u16 = 14;
    /// Read an object in full against its checksums.
    pub const VERIFY: u16 = 15;

    /// Open a VDI at its owner for a client.
    pub const OPEN: u16 = 32;
    /// A client's read.
    pub const VDI_READ: u16 = 33;
    /// A client's write.
    pub const VDI_WRITE: u16 = 34;
    /// A client's flush.
    pub const VDI_FLUSH: u16 = 35;
    /// A client's trim or write-zeroes.
    pub const VDI_ZERO: u16 = 36;
    /// What is allocated in a range.
    pub const VDI_STATUS: u16 = 37;
    /// A client has gone.
    pub const CLOSE: u16 = 38;
    /// Ask the owner about a VDI it owns.
    pub const VDI_INFO: u16 = 39;
    /// Ask the owner to give a VDI up that nobody has open.
    pub const RELEASE: u16 = 40;
    /// Ask the owner for a part of the object map.
    pub const VDI_OBJECTS: u16 = 41;
    /// Let the owner check a part of the VDI.
    pub const VDI_CHECK: u16 = 42;
    /// Let the owner withdraw connections.
    pub const VDI_UNLOCK: u16 = 43;
    /// List, or withdraw, the connections that a gateway serves.
    pub const GATEWAY_CLIENTS: u16 = 44;
    /// Ask a gateway which requests to a VDI cannot come again.
    pub const ANSWERED: u16 = 45;

    /// A message of the cluster log.
    pub const LOG: u16 = 64;
    /// Renew a session's lease.
    pub const RENEW: u16 = 65;
    /// Report a peer whose connection broke.
    pub const SUSPECT: u16 = 66;
    /// Ask to be let into the ring.
    pub const JOIN: u16 = 67;
    /// Tell and ask what is known of the ring.
    pub const INTRODUCE: u16 = 68;
    /// Ask a node what it is doing, for `dog`.
    pub const NODE_STATUS: u16 = 69;
    /// Stop in order.
    pub const SHUTDOWN: u16 = 70;
}

/// How a request ended. Zero is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The request makes no sense to the receiver.
    Invalid = 1,
    /// A higher generation is known.
    StaleGeneration = 2,
    /// A higher configuration version of the slot is known.
    StaleConfig = 3,
    /// The request was meant for another session of the node.
    WrongSession = 4,
    /// The object or VDI is not there.
    NotFound = 5,
    /// The write's predecessor has not been applied.
    Gap = 6,
    /// The stored bytes do not match their checksum.
    Damaged = 7,
    /// The disk failed.
    Io = 8,
    /// The disk is full.
    NoSpace = 9,
    /// Not now; ask again.
    Busy = 10,
    /// The receiver does not own the VDI.
    NotOwner = 11,
    /// A higher attach generation of the client is known.
    Fenced = 12,
    /// The sender's checksum does not match what arrived.
    BadChecksum = 13,
    /// The node is stopping.
    Stopping = 14,
    /// The cluster log refused.
    Refused = 15,
}

impl Status {
    /// The status of a number from the wire; unknown ones are `Invalid`.
    pub fn from_wire(number: u16) -> Self {
        use Status::*;
        [
            Ok,
            Invalid,
            StaleGeneration,
            StaleConfig,
            WrongSession,
            NotFound,
            Gap,
            Damaged,
            Io,
            NoSpace,
            Busy,
            NotOwner,
            Fenced,
            BadChecksum,
            Stopping,
            Refused,
        ]
        .into_iter()
        .find(|s| *s as u16 == number)
        .unwrap_or(Invalid)
    }
}

/// A session on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SessionRef {
    /// Node id.
    #[prost(fixed64, tag = "1")]
    pub node: u64,
    /// Start counter.
    #[prost(uint64, tag = "2")]
    pub start: u64,
}

impl From<Session> for SessionRef {
    fn from(session: Session) -> Self {
        Self { node: session.node.0, start: session.start }
    }
}

impl From<SessionRef> for Session {
    fn from(session: SessionRef) -> Self {
        Self { node: NodeId(session.node), start: session.start }
    }
}

/// A version on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct VersionRef {
    /// Owner generation.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// Number within the object's life.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

impl From<Version> for VersionRef {
    fn from(version: Version) -> Self {
        Self { generation: version.generation.0, seq: version.seq }
    }
}

impl From<VersionRef> for Version {
    fn from(version: VersionRef) -> Self {
        Self { generation: Generation(version.generation), seq: version.seq }
    }
}

/// An object as requests name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ObjectRef {
    /// Upper half of the oid.
    #[prost(fixed64, tag = "1")]
    pub oid_high: u64,
    /// Lower half of the oid.
    #[prost(fixed64, tag = "2")]
    pub oid_low: u64,
    /// The birth.
    #[prost(fixed64, tag = "3")]
    pub birth: u64,
    /// The policy under which the slot's configuration is kept.
    #[prost(uint32, tag = "4")]
    pub copies: u32,
    /// The slot.
    #[prost(uint32, tag = "5")]
    pub slot: u32,
    /// The object's size in bytes.
    #[prost(uint32, tag = "6")]
    pub size: u32,
}

impl ObjectRef {
    /// Packs an object's name.
    pub fn new(oid: Oid, birth: Birth, copies: Copies, slot: SlotIndex, size: u32) -> Self {
        Self {
            oid_high: (oid.0 >> 64) as u64,
            oid_low: oid.0 as u64,
            birth: birth.0,
            copies: copies.get().into(),
            slot: slot.0,
            size,
        }
    }

    /// The object's id.
    pub fn oid(&self) -> Oid {
        Oid(u128::from(self.oid_high) << 64 | u128::from(self.oid_low))
    }

    /// The object's birth.
    pub fn birth(&self) -> Birth {
        Birth(self.birth)
    }
}

/// What every request of an owner to a replica carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Fence {
    /// The start counter of the session that the request is meant for.
    #[prost(uint64, tag = "1")]
    pub to_start: u64,
    /// The VDI.
    #[prost(uint64, tag = "2")]
    pub vdi: u64,
    /// The owner's generation.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// The slot configuration the request was made under; zero where no slot is meant.
    #[prost(uint64, tag = "4")]
    pub config: u64,
    /// The epoch the request was made in.
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
}

impl Fence {
    /// The VDI's id.
    pub fn vdi(&self) -> VdiId {
        VdiId(self.vdi)
    }

    /// The owner's generation.
    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }
}

/// Which client request a write came from, so that a retry is applied once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct RequestId {
    /// The gateway's node.
    #[prost(fixed64, tag = "1")]
    pub node: u64,
    /// The start counter with which the gateway's process began.
    #[prost(uint64, tag = "2")]
    pub start: u64,
    /// The gateway's number of the request.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// How a write changes its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum WriteKind {
    /// The payload's bytes.
    Data = 0,
    /// Zeros that keep their space.
    Zero = 1,
    /// Zeros that give their space back.
    Punch = 2,
}

/// A request about one object: CREATE, READ, STAT, TABLE, REMOVE, CONFIRM, VERIFY.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ObjectRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// READ: offset in bytes.
    #[prost(uint32, tag = "3")]
    pub offset: u32,
    /// READ: length in bytes.
    #[prost(uint32, tag = "4")]
    pub len: u32,
}

/// WRITE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct WriteRequest {
    /// Who writes under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// The write before this one.
    #[prost(message, required, tag = "3")]
    pub predecessor: VersionRef,
    /// This write.
    #[prost(message, required, tag = "4")]
    pub version: VersionRef,
    /// Offset in bytes.
    #[prost(uint32, tag = "5")]
    pub offset: u32,
    /// Length in bytes.
    #[prost(uint32, tag = "6")]
    pub len: u32,
    /// What it does.
    #[prost(enumeration = "WriteKind", tag = "7")]
    pub kind: i32,
    /// The client request it is part of; absent for the owner's own.
    #[prost(message, optional, tag = "8")]
    pub request: Option<RequestId>,
    /// The write's number within the generation, over all objects of the VDI.
    #[prost(uint64, tag = "9")]
    pub number: u64,
    /// All writes of the generation below this number are done and answered.
    #[prost(uint64, tag = "10")]
    pub stable: u64,
    /// What earlier generations left has been dealt with too.
    #[prost(bool, tag = "11")]
    pub inherited_done: bool,
}

/// Whether a replica that has answered also has the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct WriteReply {
    /// The copy's version.
    #[prost(message, required, tag = "1")]
    pub version: VersionRef,
    /// The copy is catching up and will fetch this write with the rest.
    #[prost(bool, tag = "2")]
    pub deferred: bool,
}

/// READ's answer: which parts of the range are holes; the rest is in the payload.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadReply {
    /// Lengths of data and holes in turn, starting with data (perhaps of length 0).
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
}

/// SETTLED, FLUSH.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
}

/// SEAL: also tells, in parts, what may differ between copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SealRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// Unsettled objects after this one, by oid and birth; absent for those from the first.
    #[prost(message, optional, tag = "2")]
    pub after_object: Option<ObjectRef>,
    /// Applied requests after this write: its generation.
    #[prost(fixed64, tag = "3")]
    pub after_generation: u64,
    /// And its number in it.
    #[prost(uint64, tag = "4")]
    pub after_number: u64,
}

/// An object that may not be the same on all copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Unsettled {
    /// The object.
    #[prost(message, required, tag = "1")]
    pub object: ObjectRef,
    /// The copy's version.
    #[prost(message, required, tag = "2")]
    pub version: VersionRef,
    /// The copy may have torn blocks: compare the bytes, not only the version.
    #[prost(bool, tag = "3")]
    pub suspect: bool,
}

/// SEAL's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SealReply {
    /// Objects written since the owner's last stable mark, and suspect ones.
    #[prost(message, repeated, tag = "1")]
    pub unsettled: Vec<Unsettled>,
    /// Client requests that were applied and may not have been answered.
    #[prost(message, repeated, tag = "2")]
    pub applied: Vec<AppliedRequest>,
    /// There is more of either after what this answer holds.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// Where the next part of the applied requests begins: as in the request.
    #[prost(fixed64, tag = "4")]
    pub generation: u64,
    /// And the number.
    #[prost(uint64, tag = "5")]
    pub number: u64,
}

/// A client request whose write to one object was applied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct AppliedRequest {
    /// The request.
    #[prost(message, required, tag = "1")]
    pub request: RequestId,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// Offset within the object: a request may touch one object once only, but a trim may be split.
    #[prost(uint32, tag = "3")]
    pub offset: u32,
    /// The write's version.
    #[prost(message, required, tag = "4")]
    pub version: VersionRef,
}

/// TABLE's answer: the version, and crc and stamp of every block in turn.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TableReply {
    /// The copy's version.
    #[prost(message, required, tag = "1")]
    pub version: VersionRef,
    /// `crc, stamp` of each block.
    #[prost(fixed32, repeated, tag = "2")]
    pub entries: Vec<u32>,
    /// Blocks whose bytes do not match their checksum; only looked for where the copy is suspect.
    #[prost(uint32, repeated, tag = "3")]
    pub damaged: Vec<u32>,
}

/// PATCH: blocks of an object as the settled copy has them. The payload holds the present ones in order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PatchRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// The version the copy has afterwards.
    #[prost(message, required, tag = "3")]
    pub version: VersionRef,
    /// `index, crc, stamp` of each block.
    #[prost(fixed32, repeated, tag = "4")]
    pub blocks: Vec<u32>,
    /// Blocks that are torn on every copy: keep what is there and take its checksum.
    #[prost(uint32, repeated, tag = "5")]
    pub accept: Vec<u32>,
}

/// LIST_SLOT and PULL: from who catches up to an in-sync holder.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CatchUpRequest {
    /// The start counter of the session asked.
    #[prost(uint64, tag = "1")]
    pub to_start: u64,
    /// The policy.
    #[prost(uint32, tag = "2")]
    pub copies: u32,
    /// The slot.
    #[prost(uint32, tag = "3")]
    pub slot: u32,
    /// The holder must have seen this configuration, so that whatever it takes from now on is sent to the
    /// asker too.
    #[prost(uint64, tag = "4")]
    pub since: u64,
    /// The log index the holder must have applied.
    #[prost(uint64, tag = "5")]
    pub applied: u64,
    /// PULL: the object.
    #[prost(message, optional, tag = "6")]
    pub object: Option<ObjectRef>,
    /// PULL: the holder's version must be at least this.
    #[prost(message, optional, tag = "7")]
    pub at_least: Option<VersionRef>,
    /// PULL: the asker's `crc, stamp` of each block; empty if it has nothing to compare.
    #[prost(fixed32, repeated, tag = "8")]
    pub entries: Vec<u32>,
    /// LIST_SLOT: only objects after this oid and birth.
    #[prost(message, optional, tag = "9")]
    pub after: Option<ObjectRef>,
}

/// PULL's answer; the payload holds the present blocks in order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PullReply {
    /// The version of the copy taken.
    #[prost(message, required, tag = "1")]
    pub version: VersionRef,
    /// `index, crc, stamp` of each block that differs.
    #[prost(fixed32, repeated, tag = "2")]
    pub blocks: Vec<u32>,
    /// There is more: ask again with what has come.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// An object and its version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Listed {
    /// The object.
    #[prost(message, required, tag = "1")]
    pub object: ObjectRef,
    /// The copy's version.
    #[prost(message, required, tag = "2")]
    pub version: VersionRef,
}

/// LIST_SLOT's and LIST_VDI's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListReply {
    /// The objects, in order.
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<Listed>,
    /// There are more after the last.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// LIST_VDI.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListVdiRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// Only objects after this one.
    #[prost(message, optional, tag = "2")]
    pub after: Option<ObjectRef>,
}

/// OPEN, CLOSE, RELEASE and VDI_INFO: a client's connection to a VDI, or the VDI alone.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OpenRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The gateway's number of the connection.
    #[prost(uint64, tag = "3")]
    pub connection: u64,
    /// The client's address.
    #[prost(string, tag = "4")]
    pub client: String,
    /// The client's name, if it gave one.
    #[prost(string, tag = "5")]
    pub attach_client: String,
    /// Its attach generation.
    #[prost(uint64, tag = "6")]
    pub attach_generation: u64,
    /// The gateway's session.
    #[prost(message, required, tag = "7")]
    pub gateway: SessionRef,
}

/// VDI_READ, VDI_WRITE, VDI_FLUSH, VDI_ZERO, VDI_STATUS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiIoRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The gateway's number of the connection.
    #[prost(uint64, tag = "3")]
    pub connection: u64,
    /// The request; a retry has the same.
    #[prost(message, required, tag = "4")]
    pub request: RequestId,
    /// Every request of the gateway to this VDI below this number has been answered to its client.
    #[prost(uint64, tag = "5")]
    pub answered: u64,
    /// Offset in bytes.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// Length in bytes.
    #[prost(uint64, tag = "7")]
    pub len: u64,
    /// To be durable when answered.
    #[prost(bool, tag = "8")]
    pub fua: bool,
    /// VDI_ZERO: space may be given back.
    #[prost(bool, tag = "9")]
    pub punch: bool,
    /// The gateway's session, under which the connection is known.
    #[prost(message, required, tag = "10")]
    pub gateway: SessionRef,
}

/// A client's connection as its owner knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Connection {
    /// The gateway's session.
    #[prost(message, required, tag = "1")]
    pub gateway: SessionRef,
    /// The gateway's number of it.
    #[prost(uint64, tag = "2")]
    pub connection: u64,
    /// The client's address.
    #[prost(string, tag = "3")]
    pub client: String,
    /// The client's name, if it gave one.
    #[prost(string, tag = "4")]
    pub attach_client: String,
    /// Its attach generation.
    #[prost(uint64, tag = "5")]
    pub attach_generation: u64,
}

/// VDI_INFO's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VdiInfoReply {
    /// Allocated objects, if they have been counted.
    #[prost(uint64, optional, tag = "1")]
    pub used_objects: Option<u64>,
    /// Who has the VDI open.
    #[prost(message, repeated, tag = "2")]
    pub connections: Vec<Connection>,
    /// What its I/O waits for, if anything; for people.
    #[prost(string, tag = "3")]
    pub waiting: String,
}

/// VDI_STATUS's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StatusReply {
    /// Lengths of data and holes in turn, starting with data (perhaps of length 0).
    #[prost(uint64, repeated, tag = "1")]
    pub runs: Vec<u64>,
}

/// RENEW.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct RenewRequest {
    /// Whose lease.
    #[prost(message, required, tag = "1")]
    pub session: SessionRef,
}

/// SUSPECT.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SuspectRequest {
    /// Whose connection broke.
    #[prost(message, required, tag = "1")]
    pub session: SessionRef,
}

/// A node as it describes itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeInfo {
    /// Its session.
    #[prost(message, required, tag = "1")]
    pub session: SessionRef,
    /// Its machine's boot id, 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub boot: Vec<u8>,
    /// Admin API, `host:port`.
    #[prost(string, tag = "3")]
    pub admin: String,
    /// Mesh, `host:port`.
    #[prost(string, tag = "4")]
    pub mesh: String,
    /// Zone.
    #[prost(string, tag = "5")]
    pub zone: String,
    /// Vnodes.
    #[prost(uint32, tag = "6")]
    pub vnodes: u32,
    /// Gateway only.
    #[prost(bool, tag = "7")]
    pub gateway: bool,
    /// The start counter with which its process began.
    #[prost(uint64, tag = "9")]
    pub process: u64,
    /// Drawn by its process, so that a question asked twice is known as one.
    #[prost(fixed64, tag = "10")]
    pub nonce: u64,
    /// The ring it belongs to, 16 bytes; empty before it belongs to one.
    #[prost(bytes = "vec", tag = "8")]
    pub cluster: Vec<u8>,
}

/// INTRODUCE, both ways, and JOIN.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IntroduceMessage {
    /// Who speaks.
    #[prost(message, required, tag = "1")]
    pub me: NodeInfo,
    /// Everyone it knows of.
    #[prost(message, repeated, tag = "2")]
    pub known: Vec<NodeInfo>,
    /// Reply: the highest start counter seen of the one spoken to, zero if never seen.
    #[prost(uint64, tag = "3")]
    pub start_seen: u64,
    /// Reply to JOIN: why not, for people.
    #[prost(string, tag = "4")]
    pub refused: String,
    /// Reply: the directory of the one spoken to is in use by another running session.
    #[prost(bool, tag = "5")]
    pub duplicate: bool,
    /// Reply to JOIN: the node was removed from the ring.
    #[prost(bool, tag = "6")]
    pub removed: bool,
    /// Reply to JOIN: the session is in the ring.
    #[prost(bool, tag = "7")]
    pub joined: bool,
}

/// NODE_STATUS's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeStatusReply {
    /// Bytes of the disk.
    #[prost(uint64, tag = "1")]
    pub space_total: u64,
    /// Free bytes.
    #[prost(uint64, tag = "2")]
    pub space_free: u64,
    /// Bytes used by objects.
    #[prost(uint64, tag = "3")]
    pub space_used: u64,
    /// Slots still to catch up.
    #[prost(uint64, tag = "4")]
    pub slots_left: u64,
    /// Slots caught up since the node started.
    #[prost(uint64, tag = "5")]
    pub slots_done: u64,
    /// Objects copied since the node started.
    #[prost(uint64, tag = "6")]
    pub objects_done: u64,
    /// Bytes copied since the node started.
    #[prost(uint64, tag = "7")]
    pub bytes_done: u64,
    /// Counters by name, for `dog node stat`.
    #[prost(map = "string, uint64", tag = "8")]
    pub counters: std::collections::HashMap<String, u64>,
    /// The log index applied.
    #[prost(uint64, tag = "9")]
    pub applied: u64,
    /// The program's version.
    #[prost(string, tag = "10")]
    pub version: String,
    /// When the process started, milliseconds since 1970.
    #[prost(uint64, tag = "11")]
    pub started_ms: u64,
    /// NBD listeners: `host:port` or `unix:path`.
    #[prost(string, repeated, tag = "12")]
    pub nbd: Vec<String>,
    /// NBD connections that it serves.
    #[prost(uint64, tag = "13")]
    pub connections: u64,
    /// Memory of the process.
    #[prost(uint64, tag = "14")]
    pub memory_bytes: u64,
    /// Why recovery does not advance, if it does not; for people.
    #[prost(string, tag = "15")]
    pub waiting: String,
}
