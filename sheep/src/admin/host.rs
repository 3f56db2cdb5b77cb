//! What the admin API needs of the node besides the data path. Implemented by the node.

use async_trait::async_trait;
use wire::id::NodeId;
use wire::peer::NodeStatusReply;
use wire::policy::Copies;

use crate::cluster::entry::NodeSpec;

/// Why a ring was not founded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    /// This sheep is in a ring.
    #[error("this sheep is in a ring already")]
    AlreadyFormatted,
    /// A VDI is in use through a node; nothing is deleted under its clients.
    #[error("a VDI is in use through node {0}")]
    InUse(NodeId),
    /// A seed is in a ring: this sheep is to join that one.
    #[error("the seed {0} is in a ring already, which this sheep is about to join")]
    SeedInRing(String),
    /// Not enough nodes for the copies.
    #[error("{need} copies need {need} sheep that store, and {have} are there")]
    TooFewNodes {
        /// Nodes that store.
        have: usize,
        /// Nodes that are needed.
        need: usize,
    },
    /// The cluster log could not be founded.
    #[error("the cluster log could not be founded: {0}")]
    Log(String),
    /// The number of slots is not a power of two in range.
    #[error("{0} slots: a power of two from 256 to 1048576 is needed")]
    BadSlots(u32),
}

/// The node, as the admin API sees it.
#[async_trait]
pub(crate) trait Host: Send + Sync + 'static {
    /// This node as it describes itself.
    fn spec(&self) -> NodeSpec;

    /// Before format: the nodes that wait here and are known, this one included.
    fn known_nodes(&self) -> Vec<NodeSpec>;

    /// The copies that a format takes when it is not told.
    fn default_copies(&self) -> Copies;

    /// `local` or `sdcluster`.
    fn driver(&self) -> &'static str;

    /// Founds a ring. Returns once this node has applied the first entry.
    async fn format(&self, copies: Copies, slots: u32, force: bool) -> Result<(), FormatError>;

    /// Whether a majority has confirmed lately that what this node knows is the newest; always before there
    /// is a ring.
    fn view_is_fresh(&self) -> bool;

    /// Waits until the view is fresh, but not for long, and not at all if it has not been for a while: after
    /// a format, a start or a change of leader it takes a moment.
    async fn view_settles(&self);

    /// What a member is doing, this one included. `None` if it does not answer within 2 s.
    async fn node_status(&self, node: NodeId) -> Option<NodeStatusReply>;

    /// Begins an orderly stop of this sheep; does not wait for it.
    fn shutdown(&self);
}
