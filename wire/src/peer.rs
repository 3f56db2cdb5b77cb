//! What sheep say to each other: the operations of a frame and the messages in their `meta`.
//!
//! Messages are protobuf, so that fields can be added while rings of mixed versions run. Every request
//! about an object names the session it is meant for, the owner's generation and the slot configuration it
//! was made under; the receiver refuses what is older than it knows (`docs/format.md`, "Peer messages").

use crate::id::{Birth, Generation, NodeId, Oid, Session, SlotIndex, VdiId, Version};
use crate::policy::Copies;

mod client;
#[cfg(test)]
mod golden;
mod node;
mod object;
mod query;

pub use client::{
    AnsweredReply, AnsweredRequest, Connection, OpenRequest, StatusReply, VdiInfoReply, VdiIoRequest,
};
pub use node::{IntroduceMessage, NodeInfo, NodeStatusReply, ReachedInfo, RenewRequest, SuspectRequest};
pub use object::{
    AppliedList, AppliedRequest, CatchUpRequest, LendReply, ListReply, ListVdiRequest, Listed, ObjectRequest,
    OnDisk, PatchRequest, PullReply, ReadReply, SealReply, SealRequest, TableReply, Unsettled, VdiRequest,
    WriteKind, WriteReply, WriteRequest,
};
pub use query::{
    CheckFinding, CheckFindingKind, CheckPhase, ClientsReply, ClientsRequest, MappedObject, OpenConnection,
    UnlockRequest, VdiCheckReply, VdiCheckRequest, VdiObjectsReply, VdiObjectsRequest,
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
    /// Offer a holder blocks that are damaged there.
    pub const LEND: u16 = 16;

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

impl RequestId {
    /// The gateway's process, named by its first session.
    pub fn process(&self) -> Session {
        Session { node: NodeId(self.node), start: self.start }
    }
}
