//! What the cluster log orders: one enum of entries and one of replies.
//!
//! Entries are encoded by name (MessagePack maps), so a field can be added with a default. Times are the
//! proposer's wall clock in milliseconds since 1970, only ever shown to people.

use serde::{Deserialize, Serialize};
use wire::id::{Birth, ClusterId, Generation, NodeId, Session, SlotIndex, VdiId};
use wire::name::VdiName;
use wire::policy::Copies;
use wire::size::count;

/// What a node says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Which start of which node.
    pub session: Session,
    /// The start counter with which its process began: the process may outlive a session, and its clients'
    /// requests with it.
    pub process: u64,
    /// What tells its process from another with the same start.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nonce: u64,
    /// The machine's boot, so that a restart of the process can be told from a loss of memory.
    pub boot: u128,
    /// Where its admin API listens, `host:port`.
    pub admin: String,
    /// Where its mesh listens, `host:port`.
    pub mesh: String,
    /// Failure domain; the node's own id unless configured.
    pub zone: String,
    /// Its weight on the ring.
    pub vnodes: u32,
    /// Stores nothing and does not vote.
    pub gateway: bool,
    /// How far its log had come when its last processes began, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<Reached>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How far a node's log had come when one of its processes began: earlier ones have acted on nothing beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    /// The start counter with which the process began.
    pub before: u64,
    /// The log index.
    pub index: u64,
}

/// An entry of the cluster log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterEntry {
    /// Founds the ring; only ever the first entry that has an effect.
    Format {
        /// Drawn by the founder.
        cluster: ClusterId,
        /// Default copies of a VDI.
        copies: Copies,
        /// Number of slots, a power of two.
        slots: u32,
        /// The first members, all empty.
        nodes: Vec<NodeSpec>,
        /// When.
        now_ms: u64,
    },
    /// Deletes every VDI and lays the slots out anew. Nodes and the ring's identity stay.
    Reformat {
        /// Default copies of a VDI.
        copies: Copies,
        /// Number of slots, a power of two.
        slots: u32,
        /// When.
        now_ms: u64,
    },
    /// A node joins, or comes back as a new session.
    Join {
        /// The node.
        node: NodeSpec,
        /// When.
        now_ms: u64,
    },
    /// Sessions whose lease has run out and that are taken for dead.
    Evict {
        /// Which.
        sessions: Vec<Session>,
        /// When.
        now_ms: u64,
    },
    /// A session ends in order: it has made its data durable and serves nothing any more.
    Leave {
        /// Which.
        session: Session,
        /// When.
        now_ms: u64,
    },
    /// A dead node has been away for so long that others take its place on the ring.
    Out {
        /// Which.
        node: NodeId,
    },
    /// Everything is to be moved off a node, or no longer.
    Drain {
        /// Which.
        node: NodeId,
        /// Whether to drain.
        on: bool,
    },
    /// A drained or dead node is forgotten.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// Nodes that are down will never come back, and are waited for no longer, whatever they alone had.
    Abandon {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// A session that was let in has caught up with the log, and serves the copies on its disk from now on.
    Ready {
        /// Which.
        session: Session,
    },
    /// A session's disk failed: its copies no longer count.
    FailDisk {
        /// Whose.
        session: Session,
        /// What happened, for people.
        reason: String,
    },
    /// Copies of slots have become equal and durable.
    Admit {
        /// Whose copies.
        session: Session,
        /// The slots' policy.
        copies: Copies,
        /// Each slot with the configuration version at which the copy began to catch up.
        slots: Vec<(SlotIndex, u64)>,
        /// The log index that the session had applied when it found them equal.
        seen: u64,
    },
    /// The logs of these sessions have come to an index: they know who was taken out of in-sync sets before.
    Known {
        /// Whose.
        sessions: Vec<Session>,
        /// The log index.
        index: u64,
    },
    /// A copy of a slot turned out to differ from what the in-sync set has.
    Demote {
        /// Whose copy.
        session: Session,
        /// The slot's policy.
        copies: Copies,
        /// The slot.
        slot: SlotIndex,
        /// The configuration in which that was found.
        version: u64,
    },
    /// A new VDI; nothing is allocated for it.
    CreateVdi {
        /// Its name.
        name: VdiName,
        /// Its size in bytes.
        size: u64,
        /// Its copies; the ring's default if absent.
        copies: Option<Copies>,
        /// When.
        now_ms: u64,
    },
    /// A VDI that nobody owns ends.
    DeleteVdi {
        /// Which.
        vdi: VdiId,
    },
    /// A session wants to own a VDI.
    Acquire {
        /// Which VDI.
        vdi: VdiId,
        /// Who.
        session: Session,
    },
    /// The owner has drained its requests and gives the VDI up, or hands it to another session.
    Release {
        /// Which VDI.
        vdi: VdiId,
        /// Under which generation it was owned.
        generation: Generation,
        /// Who owns it next, under the next generation.
        to: Option<Session>,
        /// How many objects are allocated, for listings.
        used: Option<u64>,
    },
    /// The root page of a VDI's object map has been created at every in-sync holder.
    SetRoot {
        /// Which VDI.
        vdi: VdiId,
        /// The owner's generation.
        generation: Generation,
        /// The root page's birth.
        root: Birth,
    },
    /// A client attaches with a generation that fences its lower ones.
    Attach {
        /// Which VDI.
        vdi: VdiId,
        /// The client's name.
        client: String,
        /// The attach generation.
        generation: u64,
    },
    /// What a leader decided by what only it knew, in its term: the leases that it had granted. Void if anybody
    /// else ordered it, or it in another term.
    InTerm {
        /// Who decided.
        leader: NodeId,
        /// In which term.
        term: u64,
        /// What.
        entry: Box<ClusterEntry>,
    },
    /// How recovery may go on.
    SetRecovery {
        /// Whether background copying stands still.
        paused: bool,
        /// Bytes a second per node; no limit if absent.
        limit: Option<u64>,
    },
}

/// What applying an entry came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterReply {
    /// Done, or already so.
    Done,
    /// The new VDI's id.
    Created(VdiId),
    /// Who owns the VDI now, and under which generation; not the one who asked if it is alive.
    Owner {
        /// The owner.
        session: Session,
        /// Its generation.
        generation: Generation,
    },
    /// How many of the slots were admitted.
    Admitted(u32),
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why an entry changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The ring exists already.
    #[error("the ring is formatted already")]
    AlreadyFormatted,
    /// There is no ring yet.
    #[error("the ring is not formatted yet")]
    NotFormatted,
    /// The number of slots is not a power of two in range.
    #[error("{0} slots: a power of two from 256 to 1048576 is needed")]
    BadSlots(u32),
    /// Too many nodes.
    #[error("a ring has at most {0} nodes")]
    TooManyNodes(u32),
    /// A node's weight is out of range, or the ring has no room for it.
    #[error("node {node} has {vnodes} vnodes, and {others} are on the ring without it: at most {max_node} and {max} in all", max_node = crate::placement::MAX_VNODES_PER_NODE, max = crate::placement::MAX_VNODES)]
    TooManyVnodes {
        /// Which node.
        node: NodeId,
        /// Its weight.
        vnodes: u32,
        /// Those of all others that store.
        others: u64,
    },
    /// The node is not a member.
    #[error("node {0} is not a member of this ring")]
    NoSuchNode(NodeId),
    /// The node was removed; its directory belongs to nobody.
    #[error("node {0} was removed from this ring")]
    NodeRemoved(NodeId),
    /// The start counter is not higher than the highest seen: the directory was copied or rolled back.
    #[error("node {node} comes with start counter {start}, but start {seen} has been seen already")]
    StartNotHigher {
        /// Which node.
        node: NodeId,
        /// Its counter.
        start: u64,
        /// The highest one seen.
        seen: u64,
    },
    /// The session is not the node's current one.
    #[error("session {0} is over")]
    SessionOver(Session),
    /// The node must be dead or drained for that.
    #[error("node {0} is alive and not drained")]
    NodeInUse(NodeId),
    /// In some slots nobody else is sure to have all that was acknowledged.
    #[error("node {node} may hold what no other node has, in {}", count(*slots, "slot", "slots"))]
    LastCopies {
        /// Which node.
        node: NodeId,
        /// How many slots.
        slots: u32,
    },
    /// The VDI's name is taken.
    #[error("a VDI named {0} exists already")]
    NameTaken(VdiName),
    /// There is no such VDI.
    #[error("there is no VDI with id {0}")]
    NoSuchVdi(VdiId),
    /// Size zero, beyond the limit, or not a multiple of 512.
    #[error("a size of {0} bytes: a multiple of 512 from 512 to {max} is needed", max = wire::size::VdiSize::MAX.bytes())]
    BadSize(u64),
    /// Somebody has the VDI open.
    #[error("the VDI is in use through node {0}")]
    InUse(NodeId),
    /// The generation is not the current one.
    #[error("generation {0} is over")]
    GenerationOver(Generation),
    /// A higher attach generation of that client is known.
    #[error("client {client:?} has attached with generation {known} since")]
    AttachFenced {
        /// The client.
        client: String,
        /// The highest generation known.
        known: u64,
    },
    /// The leader that decided it leads no longer, and others have granted leases since.
    #[error("term {0} of the cluster log is over")]
    TermOver(u64),
    /// No id or generation is left.
    #[error("ids are used up")]
    Exhausted,
}
