//! What the admin API asks of a VDI's owner: its object map, a check of a part of it, the end of connections.
//!
//! All of them work in batches that go on where the last one ended, so that no answer and no request grows
//! with the VDI.

use super::{Connection, ObjectRef};

/// VDI_OBJECTS.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct VdiObjectsRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// First object index.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// End of the range, exclusive.
    #[prost(uint64, tag = "4")]
    pub to: u64,
    /// Also count the pages of the map.
    #[prost(bool, tag = "5")]
    pub count_pages: bool,
}

/// An object that the map names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct MappedObject {
    /// Its index.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// The VDI that created it.
    #[prost(uint64, tag = "2")]
    pub creator: u64,
    /// Its birth.
    #[prost(fixed64, tag = "3")]
    pub birth: u64,
}

/// VDI_OBJECTS's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VdiObjectsReply {
    /// What is allocated, by index.
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<MappedObject>,
    /// Where to go on; absent at the end of the range.
    #[prost(uint64, optional, tag = "2")]
    pub next: Option<u64>,
    /// Pages of the whole map, if asked for.
    #[prost(uint64, optional, tag = "3")]
    pub pages: Option<u64>,
}

/// Which part of a VDI a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum CheckPhase {
    /// Pages of the object map; positions count them from the root.
    Pages = 0,
    /// Data objects; positions are indexes.
    Objects = 1,
    /// What nodes hold and no map names; one batch.
    Orphans = 2,
}

/// VDI_CHECK.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct VdiCheckRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// What to look at.
    #[prost(enumeration = "CheckPhase", tag = "3")]
    pub phase: i32,
    /// Where to begin.
    #[prost(uint64, tag = "4")]
    pub from: u64,
    /// Where to end, exclusive.
    #[prost(uint64, tag = "5")]
    pub to: u64,
    /// Put right what other copies allow.
    #[prost(bool, tag = "6")]
    pub repair: bool,
}

/// What is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum CheckFindingKind {
    /// A copy's bytes do not match their checksums.
    Damaged = 0,
    /// An in-sync copy is missing.
    Missing = 1,
    /// In-sync copies differ.
    Differs = 2,
    /// A node holds an object that no map names.
    Orphan = 3,
    /// Fewer copies than there should be are in sync.
    Degraded = 4,
    /// A copy could not be read.
    Unreadable = 5,
}

/// One thing that a check found.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CheckFinding {
    /// What.
    #[prost(enumeration = "CheckFindingKind", tag = "1")]
    pub kind: i32,
    /// Of which object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// Whose copy; zero if it is not about one.
    #[prost(fixed64, tag = "3")]
    pub node: u64,
    /// Damaged blocks, or copies in sync.
    #[prost(uint32, tag = "4")]
    pub count: u32,
    /// It has been put right.
    #[prost(bool, tag = "5")]
    pub repaired: bool,
}

/// VDI_CHECK's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VdiCheckReply {
    /// What was found.
    #[prost(message, repeated, tag = "1")]
    pub findings: Vec<CheckFinding>,
    /// Where to go on; absent at the end.
    #[prost(uint64, optional, tag = "2")]
    pub next: Option<u64>,
    /// Objects looked at.
    #[prost(uint64, tag = "3")]
    pub objects: u64,
    /// Bytes that were read on all nodes together.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
}

/// VDI_UNLOCK: to the owner. Answered once nothing that the connections had under way can still happen.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UnlockRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// Only connections whose client or attach client is this; empty for all.
    #[prost(string, tag = "3")]
    pub client: String,
}

/// GATEWAY_CLIENTS: to a gateway, about the connections that it serves.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ClientsRequest {
    /// The start counter of the gateway's session.
    #[prost(uint64, tag = "1")]
    pub to_start: u64,
    /// Only connections to this VDI; 0 for all.
    #[prost(uint64, tag = "2")]
    pub vdi: u64,
    /// Only connections whose client or attach client is this; empty for all.
    #[prost(string, tag = "3")]
    pub client: String,
    /// Withdraw them.
    #[prost(bool, tag = "4")]
    pub revoke: bool,
}

/// A connection as its gateway knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OpenConnection {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The connection.
    #[prost(message, required, tag = "2")]
    pub connection: Connection,
    /// When it was opened, milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub opened_ms: u64,
    /// It may not write.
    #[prost(bool, tag = "4")]
    pub read_only: bool,
}

/// GATEWAY_CLIENTS's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ClientsReply {
    /// The connections.
    #[prost(message, repeated, tag = "1")]
    pub connections: Vec<OpenConnection>,
}
