//! What can go wrong with the log.

use std::io;
use std::path::PathBuf;

use wire::id::NodeId;

use super::codec::CodecError;

/// A node must not vote with a log that is not what it wrote; what it stored is in the ring, too.
const WAY_OUT: &str = "; move the directory away and start with an empty one: the node joins anew, the ring copies its data \
                       back, and `dog node remove` takes the old id out. A ring of one has no other copy: restore the file";

/// The way out if it is the file that is wrong, and not just that somebody else has it.
fn unreadable(error: &redb::Error) -> &'static str {
    match error {
        redb::Error::DatabaseAlreadyOpen => "; stop the other process",
        _ => WAY_OUT,
    }
}

/// The log cannot be opened or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The configuration contradicts itself.
    #[error("log configuration: {0}")]
    Config(String),
    /// The directory or file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file's own structure is damaged or it cannot be read.
    #[error("{path}: the cluster log cannot be read: {source}{way_out}", way_out = unreadable(source))]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database says.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record is damaged, or was written by a version this one does not know.
    #[error("{path}: {what} is damaged: {source}{WAY_OUT}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which record.
        what: String,
        /// How.
        #[source]
        source: CodecError,
    },
    /// Records contradict each other: one is missing, or is not where it says it is.
    #[error("{path}: the cluster log is inconsistent: {what}{WAY_OUT}")]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The file is another node's.
    #[error("{path}: belongs to node {found}, not {expected}{WAY_OUT}")]
    WrongNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who opened it.
        expected: NodeId,
    },
    /// This node's log has entries already.
    #[error("the log is founded already")]
    AlreadyFounded,
    /// The log stopped, by request or because its storage failed.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

/// A proposal that did not give a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// There was no leader before the deadline. The entry was not applied and never will be.
    #[error("the cluster log has no leader")]
    NoLeader,
    /// No answer before the deadline. The entry may have been applied, or may yet be.
    #[error("the cluster log did not answer in time; the entry may have been applied")]
    Timeout,
    /// The connection to the leader broke after sending. The entry may have been applied, or may yet be.
    #[error("lost the leader after sending; the entry may have been applied: {0}")]
    Uncertain(String),
    /// The leader does not understand the entry. It was not applied.
    #[error("refused by the leader: {0}")]
    Refused(String),
    /// This node's log has stopped. The entry may have been applied.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

/// Membership of the log was not changed, or not entirely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// Only the leader may.
    #[error("not the leader")]
    NotLeader,
    /// No voters were given.
    #[error("a log needs at least one voter")]
    NoVoters,
    /// Another change has not been committed yet; try again.
    #[error("another membership change is under way")]
    InProgress,
    /// A voter to be has not caught up; it is a learner meanwhile. Try again.
    #[error("node {0} has not caught up")]
    NotReady(NodeId),
    /// The change was not committed before the deadline. It may yet be.
    #[error("the membership change did not commit in time")]
    Timeout,
    /// This node's log has stopped.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

/// A read barrier that could not be passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader with a quorum behind it answered before the deadline.
    #[error("the cluster log has no leader with a quorum")]
    NoLeader,
    /// The state did not reach the index before the deadline.
    #[error("index {wanted} was not applied in time (at {applied})")]
    Timeout {
        /// What was waited for.
        wanted: u64,
        /// How far this node is.
        applied: u64,
    },
    /// This node's log has stopped.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

/// A request of another node that this one could not serve. Its text goes back to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcFailure {
    /// The request does not decode.
    #[error("cluster log request: {0}")]
    Codec(#[from] CodecError),
    /// The request contradicts what is known here.
    #[error("cluster log request refused: {0}")]
    Refused(String),
    /// This node's log has stopped.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}
