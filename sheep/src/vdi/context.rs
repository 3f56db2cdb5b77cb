//! What an owner and a gateway need of the node: its state, its peers, its own copies, its lease.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message;
use tokio::sync::oneshot;
use wire::frame::Payload;
use wire::id::Session;
use wire::peer::{Status, WriteReply, WriteRequest, op};

use super::requests::OpenRequests;
use crate::cluster::log::ClusterLog;
use crate::cluster::session::{Lease, Me};
use crate::cluster::state::ClusterState;
use crate::cluster::view::View;
use crate::peer::{Class, Peers, PendingReply};
use crate::replica::{self, Replica};

/// How long to wait before asking a peer again that was busy or lost, if nothing else happens.
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(5);
/// How long to wait for a change before looking again anyway.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why a member did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It answered so.
    Status(Status),
    /// It could not be reached, or the connection broke; it may have done it.
    Lost,
}

/// The node as seen from the data path.
pub(crate) struct Context {
    pub(crate) identity: Arc<Me>,
    pub(crate) view: View,
    pub(crate) log: ClusterLog<ClusterState>,
    pub(crate) peers: Peers,
    /// Absent on a gateway.
    pub(crate) replica: Option<Arc<Replica>>,
    pub(crate) lease: Arc<Lease>,
    /// Clients' requests through this node's gateway, numbered over all VDIs so that a retry is known.
    pub(crate) requests: OpenRequests,
}

/// An answer of a member: its message and payload.
pub(crate) type Answer = Result<(Bytes, Payload), Failure>;

/// A write on its way to a member.
pub(crate) enum Sent {
    Done(Result<WriteReply, Failure>),
    Local(oneshot::Receiver<Result<WriteReply, Status>>),
    Remote(PendingReply),
    /// Something else than a write whose answer counts like one.
    Other(BoxFuture<'static, Result<WriteReply, Failure>>),
}

impl Sent {
    pub(crate) async fn result(self) -> Result<WriteReply, Failure> {
        match self {
            Self::Done(result) => result,
            Self::Local(done) => match done.await {
                Ok(result) => result.map_err(Failure::Status),
                Err(_) => Err(Failure::Lost),
            },
            Self::Other(result) => result.await,
            Self::Remote(reply) => {
                let (meta, _) = answer(reply).await?;
                WriteReply::decode(meta).map_err(|_| Failure::Status(Status::Invalid))
            }
        }
    }
}

pub(crate) async fn answer(reply: PendingReply) -> Answer {
    let reply = reply.await.map_err(|error| {
        tracing::debug!(%error, "a peer did not answer");
        Failure::Lost
    })?;
    match Status::from_wire(reply.status) {
        Status::Ok => Ok((reply.meta, reply.payload)),
        status => Err(Failure::Status(status)),
    }
}

impl Context {
    /// This node's present session.
    pub(crate) fn me(&self) -> Session {
        self.identity.session()
    }

    /// Sends a write; to this node's own copy by a call. In the order of the calls for one object.
    pub(crate) fn send_write(&self, to: Session, request: &WriteRequest, payload: &Payload) -> Sent {
        let mut request = *request;
        request.fence.to_start = to.start;
        if to != self.me() {
            let meta = request.encode_to_vec().into();
            return Sent::Remote(self.peers.start(to.node, Class::Replica, op::WRITE, meta, payload.clone()));
        }
        let Some(replica) = &self.replica else { return Sent::Done(Err(Failure::Lost)) };
        let (done, mut result) = oneshot::channel();
        let (data, crcs) = payload.clone().into_parts();
        replica.write(request, data, crcs, |result| _ = done.send(result));
        match result.try_recv() {
            Ok(result) => Sent::Done(result.map_err(Failure::Status)),
            Err(_) => Sent::Local(result),
        }
    }

    /// Asks a member something about copies; this node's own by a call.
    pub(crate) fn ask(
        &self,
        to: Session,
        op: u16,
        meta: Bytes,
        payload: Payload,
    ) -> BoxFuture<'static, Answer> {
        if to != self.me() {
            return Box::pin(answer(self.peers.start(to.node, Class::Replica, op, meta, payload)));
        }
        let Some(replica) = self.replica.clone() else {
            return Box::pin(std::future::ready(Err(Failure::Lost)));
        };
        let (done, result) = oneshot::channel();
        replica::serve(&replica, op, meta, payload, move |status, meta, payload| {
            _ = done.send((status, meta, payload));
        });
        Box::pin(async move {
            match result.await {
                Ok((Status::Ok, meta, payload)) => Ok((meta, payload)),
                Ok((status, _, _)) => Err(Failure::Status(status)),
                Err(_) => Err(Failure::Lost),
            }
        })
    }
}
