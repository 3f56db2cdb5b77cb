//! The admin API: what dog, and later the operator and the CSI driver, ask of a sheep.
//!
//! Called by clients over gRPC; calls the cluster log, the gateway and, for what only the node knows, a
//! [`Host`]. Handlers are thin: decode, act, and one table that turns every error into an answer with a way
//! out.
//!
//! | file | holds |
//! |---|---|
//! | `server` | the gRPC server and its limits |
//! | `host` | what the API needs of the node besides the data path |
//! | `error` | the error table |
//! | `request` | decoding: names, ids, views |
//! | `stream` | streamed answers: bounded, and over when the client or the node goes |
//! | `cluster`, `redundancy`, `shutdown` | the cluster service, which slots lack copies, stopping |
//! | `recover` | giving up nodes that will never come back |
//! | `node`, `nodes`, `drain` | the node service, how members are shown, moving everything off one |
//! | `vdi`, `create`, `list`, `object`, `transfer`, `check`, `lock` | the VDI service, by verb |
//!
//! What holds: no request content makes a panic, every wait has a limit or ends with its stream, and what
//! changes data runs in tasks of its own, so that a call that is dropped never leaves half of it.

mod check;
mod cluster;
mod create;
mod drain;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod host;
mod list;
mod lock;
mod node;
mod nodes;
mod object;
mod recover;
mod redundancy;
mod request;
mod server;
mod shutdown;
mod stream;
mod transfer;
mod vdi;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::admin::AdminError;

use crate::cluster::entry::{ClusterEntry, ClusterReply};
use crate::cluster::log::ProposeError;
use crate::gateway::Gateway;

pub(crate) use host::{FormatError, Host};
pub(crate) use server::{routes, serve};

/// How long the log may take for a change; clients wait 30 s for an answer.
const LOG_PATIENCE: Duration = Duration::from_secs(10);
/// How long this node's state may be behind the log after a change.
const APPLY_PATIENCE: Duration = Duration::from_secs(2);
/// Nodes that are asked something at once.
const NODES_AT_ONCE: usize = 64;
/// Streamed answers and transfers at once, over all clients: each holds a few megabytes at most.
const STREAMS_MAX: usize = 64;

/// The admin API's server side. Clones are the same.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) host: Arc<dyn Host>,
    /// Streams and transfers; they end soon after `cancel`.
    tasks: TaskTracker,
    cancel: CancellationToken,
    streams: Arc<Semaphore>,
    shutting_down: Arc<AtomicBool>,
}

impl Admin {
    /// `tasks` counts what goes on after a call has been answered or dropped; it ends soon after `cancel`.
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        host: Arc<dyn Host>,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            gateway,
            host,
            tasks,
            cancel,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            shutting_down: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Orders a change, and returns once this node has applied it, so that what is answered next shows it.
    async fn propose(&self, entry: ClusterEntry) -> Result<(u64, ClusterReply), AdminError> {
        request::formatted(&self.gateway.context.view.state())?;
        let (index, reply) = self.propose_again(entry).await?;
        let applied = self.gateway.context.view.reaches(index);
        if tokio::time::timeout(APPLY_PATIENCE, applied).await.is_err() {
            tracing::debug!(index, "a change is not applied here yet");
        }
        match reply {
            ClusterReply::Refused(refusal) => Err(refusal.into()),
            reply => Ok((index, reply)),
        }
    }

    /// Proposes; an entry that does no harm when it is applied twice is proposed again if the leader was
    /// lost after it was sent.
    async fn propose_again(&self, entry: ClusterEntry) -> Result<(u64, ClusterReply), ProposeError> {
        let harmless = matches!(
            entry,
            ClusterEntry::Drain { .. }
                | ClusterEntry::Remove { .. }
                | ClusterEntry::Abandon { .. }
                | ClusterEntry::SetRecovery { .. }
        );
        let until = tokio::time::Instant::now() + LOG_PATIENCE;
        loop {
            match self.gateway.context.log.propose(entry.clone(), LOG_PATIENCE).await {
                Err(ProposeError::Uncertain(reason)) if harmless && tokio::time::Instant::now() < until => {
                    tracing::debug!(reason, "proposing again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                result => return result,
            }
        }
    }
}
