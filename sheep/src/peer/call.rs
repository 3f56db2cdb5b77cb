//! A request under way: what it turns into, and how it is waited for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wire::frame::{FrameError, Payload};
use wire::hello::HelloReject;
use wire::id::NodeId;

use super::link::{Link, LostReason};

/// A peer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// As the service set it, or one of [`super::status`].
    pub status: u16,
    /// The operation's result.
    pub meta: Bytes,
    /// Object data, not checked yet: see [`Payload::verify`].
    pub payload: Payload,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer could not be connected to. The request was not sent.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// What happened to the attempt.
        reason: LostReason,
    },
    /// The connection broke while the request was under way: it may have been executed.
    #[error("connection to node {node} lost: {reason}")]
    Disconnected {
        /// The peer.
        node: NodeId,
        /// What happened to the connection.
        reason: LostReason,
    },
    /// No answer by the deadline: the request may have been executed, or still be.
    #[error("node {node} did not answer in time")]
    Timeout {
        /// The peer.
        node: NodeId,
    },
    /// The request is longer than a peer accepts. It was not sent.
    #[error("request too long")]
    TooBig(#[from] FrameError),
    /// The peer does not want to talk to us, or is not whom we want. The request was not sent.
    #[error(transparent)]
    Rejected(HelloReject),
}

pub(super) type ReplySender = oneshot::Sender<Result<Reply, CallError>>;

/// An answer to come. Dropping it forgets the request; the peer may execute it all the same.
#[must_use = "dropping it forgets the request"]
pub struct PendingReply {
    answer: oneshot::Receiver<Result<Reply, CallError>>,
    link: Arc<Link>,
    id: u64,
    permit: Option<Permit>,
}

impl PendingReply {
    pub(super) fn new(answer: oneshot::Receiver<Result<Reply, CallError>>, link: Arc<Link>, id: u64) -> Self {
        Self { answer, link, id, permit: None }
    }

    /// Keeps `permit` until the answer is here.
    pub fn holding(mut self, permit: Permit) -> Self {
        self.permit = Some(permit);
        self
    }
}

impl Future for PendingReply {
    type Output = Result<Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(cx) else { return Poll::Pending };
        self.permit = None;
        Poll::Ready(answer.unwrap_or_else(|_| Err(self.link.stopped())))
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if !self.answer.is_terminated() {
            self.link.forget(self.id);
        }
    }
}

/// A share of a node and class's budget of requests under way. Dropping it returns the share.
#[derive(Debug)]
pub struct Permit {
    pub(super) _count: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}
