//! What nodes say of themselves: leases, suspicions, introductions, and how they are.

use super::SessionRef;

/// RENEW.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RenewRequest {
    /// Whose lease.
    #[prost(message, required, tag = "1")]
    pub session: SessionRef,
    /// The log index that the session has applied.
    #[prost(uint64, tag = "2")]
    pub applied: u64,
    /// The nodes that do not answer this one's attempts to connect.
    #[prost(fixed64, repeated, tag = "3")]
    pub unreached: Vec<u64>,
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
    /// How far its log had come when its last processes began, oldest first; nobody else's.
    #[prost(message, repeated, tag = "11")]
    pub reached: Vec<ReachedInfo>,
    /// The ring it belongs to, 16 bytes; empty before it belongs to one.
    #[prost(bytes = "vec", tag = "8")]
    pub cluster: Vec<u8>,
}

/// How far a node's log had come when one of its processes began.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReachedInfo {
    /// The start counter with which the process began.
    #[prost(uint64, tag = "1")]
    pub before: u64,
    /// The log index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
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
    /// JOIN: the nodes that do not answer the speaker's attempts to connect.
    #[prost(fixed64, repeated, tag = "8")]
    pub unreached: Vec<u64>,
    /// Reply to JOIN: why not yet, for people. The speaker is to ask again.
    #[prost(string, tag = "9")]
    pub wait: String,
    /// The index up to which the speaker's directory holds the log; absent once its process takes part in that.
    #[prost(uint64, optional, tag = "10")]
    pub holds: Option<u64>,
    /// Reply: the node of the one spoken to has held more of the log, so its directory is an older copy.
    #[prost(bool, tag = "11")]
    pub outdated: bool,
    /// Reply to JOIN: that session was in the ring, and has ended; its process is to begin another.
    #[prost(bool, tag = "12")]
    pub over: bool,
    /// The speaker goes on without having been let in: whoever answers is to remember that its process began.
    #[prost(bool, tag = "13")]
    pub remember: bool,
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
