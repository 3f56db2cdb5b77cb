//! Requests of other nodes: to the log, to this node's copies, to its owners.
//!
//! Called by the peer server's reader tasks, so nothing here waits: what does is done in tasks of its own.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use std::time::Duration;
use tokio_util::task::TaskTracker;
use wire::frame::Payload;
use wire::id::{ClusterId, NodeId};
use wire::peer::{IntroduceMessage, NodeStatusReply, RenewRequest, Status, SuspectRequest, op};

use crate::cluster::log::{LogNet, LogOp, NetError};
use crate::gateway::Forwarded;
use crate::membership::{Membership, Ring};
use crate::peer::{CallError, Class, PeerInfo, Peers, Request, Responder, Service};
use crate::replica::{self, Replica};

/// What requests need once the node has started.
pub(crate) struct Started {
    pub(crate) ring: Arc<Ring>,
    pub(crate) replica: Option<Arc<Replica>>,
    pub(crate) forwarded: Forwarded,
    pub(crate) status: Box<dyn Fn() -> NodeStatusReply + Send + Sync>,
    pub(crate) shutdown: tokio_util::sync::CancellationToken,
}

/// Serves other nodes. Before the log has started only introductions are answered.
pub(crate) struct NodeService {
    pub(crate) membership: Arc<Membership>,
    pub(crate) peers: OnceLock<Peers>,
    pub(crate) started: OnceLock<Arc<Started>>,
    pub(crate) tasks: TaskTracker,
}

fn refuse(reply: Responder, status: Status) {
    reply.send(status as u16, Bytes::new(), Payload::empty());
}

fn accept(reply: Responder, message: impl Message) {
    reply.send(Status::Ok as u16, message.encode_to_vec().into(), Payload::empty());
}

impl Service for NodeService {
    fn submit(&self, from: &Arc<PeerInfo>, request: Request, reply: Responder) {
        if request.op == op::INTRODUCE {
            return self.introduce(from, &request, reply);
        }
        let Some(started) = self.started.get() else { return refuse(reply, Status::Busy) };
        match from.class {
            Class::Replica => match &started.replica {
                None => refuse(reply, Status::Invalid),
                Some(replica) => {
                    replica::serve(
                        replica,
                        request.op,
                        request.meta,
                        request.payload,
                        move |s, meta, payload| {
                            reply.send(s as u16, meta, payload);
                        },
                    );
                }
            },
            Class::Forward => started.forwarded.submit(from, request, reply),
            Class::Control => self.control(started.clone(), request, reply),
        }
    }

    fn closed(&self, _from: &Arc<PeerInfo>) {}
}

impl NodeService {
    fn introduce(&self, from: &Arc<PeerInfo>, request: &Request, reply: Responder) {
        let Ok(message) = IntroduceMessage::decode(request.meta.clone()) else {
            return refuse(reply, Status::Invalid);
        };
        let ip = from.address.ip();
        let Some(answer) = self.introduced(message, (!ip.is_unspecified()).then_some(ip)) else {
            return refuse(reply, Status::Busy);
        };
        self.tasks.spawn(crate::machine::blocking(move || accept(reply, answer())));
    }

    /// Makes the answer to an introduction, once there is anything to say. The making blocks: it may write
    /// down a start counter.
    pub(crate) fn introduced(
        &self,
        message: IntroduceMessage,
        from: Option<IpAddr>,
    ) -> Option<impl FnOnce() -> IntroduceMessage + Send + 'static> {
        let peers = self.peers.get()?.clone();
        let started = self.started.get();
        let state = started.map(|s| s.ring.view.state()).unwrap_or_default();
        let fresh = started.is_some_and(|s| s.ring.lease.is_valid());
        let node = NodeId(message.me.session.node);
        let outdated =
            started.zip(message.holds).is_some_and(|(s, holds)| s.ring.leader.is_outdated(node, holds));
        let membership = self.membership.clone();
        Some(move || IntroduceMessage {
            outdated,
            ..membership.introduced(&message, from, &peers, &state, fresh)
        })
    }

    fn control(&self, started: Arc<Started>, request: Request, reply: Responder) {
        match request.op {
            op::RENEW => {
                let Ok(renew) = RenewRequest::decode(request.meta) else {
                    return refuse(reply, Status::Invalid);
                };
                let unreached = renew.unreached.into_iter().map(NodeId).collect();
                let granted = started.ring.leader.renew(renew.session.into(), renew.applied, &unreached);
                refuse(reply, if granted { Status::Ok } else { Status::Busy });
            }
            op::SUSPECT => {
                let Ok(suspect) = SuspectRequest::decode(request.meta) else {
                    return refuse(reply, Status::Invalid);
                };
                started.ring.leader.suspect(NodeId(suspect.session.node));
                refuse(reply, Status::Ok);
            }
            op::LOG => {
                let Some((op, cluster, body)) = split_log(&request.meta) else {
                    return refuse(reply, Status::Invalid);
                };
                let membership = self.membership.clone();
                self.tasks.spawn(async move {
                    if let Err(why) = membership.belong(cluster).await {
                        return reply.send(Status::Refused as u16, why.into(), Payload::empty());
                    }
                    match started.ring.log.handle_rpc(op, &body).await {
                        Ok(answer) => reply.send(Status::Ok as u16, answer.into(), Payload::empty()),
                        Err(failure) => {
                            let text = failure.to_string().into_bytes().into();
                            reply.send(Status::Refused as u16, text, Payload::empty());
                        }
                    }
                });
            }
            op::JOIN => {
                let Ok(message) = IntroduceMessage::decode(request.meta) else {
                    return refuse(reply, Status::Invalid);
                };
                let membership = self.membership.clone();
                self.tasks.spawn(async move {
                    match membership.join_asked(&started.ring, message).await {
                        Some(answer) => accept(reply, answer),
                        None => refuse(reply, Status::Busy),
                    }
                });
            }
            op::NODE_STATUS => {
                self.tasks.spawn(crate::machine::blocking(move || accept(reply, (started.status)())));
            }
            op::SHUTDOWN => {
                started.shutdown.cancel();
                refuse(reply, Status::Ok);
            }
            _ => refuse(reply, Status::Invalid),
        }
    }
}

/// Which message of the log it is, of which ring's log, and the rest.
fn split_log(meta: &Bytes) -> Option<(LogOp, ClusterId, Bytes)> {
    let op = LogOp::try_from(*meta.first()?).ok()?;
    let cluster = u128::from_be_bytes(meta.get(1..LOG_HEAD)?.try_into().ok()?);
    Some((op, ClusterId(cluster), meta.slice(LOG_HEAD..)))
}

/// What [`split_log`] takes apart.
fn join_log(op: LogOp, cluster: ClusterId, body: &[u8]) -> Bytes {
    let mut meta = Vec::with_capacity(LOG_HEAD + body.len());
    meta.push(op as u8);
    meta.extend_from_slice(&cluster.0.to_be_bytes());
    meta.extend_from_slice(body);
    meta.into()
}

/// Bytes before the body of a log's message: which one, and the ring's id.
const LOG_HEAD: usize = 17;

/// Carries the cluster log's messages over the mesh.
pub(crate) struct MeshLogNet {
    pub(crate) peers: Peers,
    pub(crate) membership: Arc<Membership>,
}

#[async_trait]
impl LogNet for MeshLogNet {
    async fn call(
        &self,
        to: NodeId,
        op: LogOp,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, NetError> {
        let Some(cluster) = self.membership.cluster() else { return Err(NetError::Unreachable) };
        let meta = join_log(op, cluster, &body);
        let call = self.peers.call(to, Class::Control, op::LOG, meta, Payload::empty(), Some(timeout));
        match call.await {
            Ok(reply) if reply.status == Status::Ok as u16 => Ok(reply.meta.to_vec()),
            Ok(reply) => Err(NetError::Failed(String::from_utf8_lossy(&reply.meta).into_owned())),
            Err(CallError::Unreachable { .. } | CallError::Rejected(_)) => Err(NetError::Unreachable),
            Err(error) => Err(NetError::Failed(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_log_keeps_its_bytes() {
        let cluster = ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let meta = join_log(LogOp::Succeed, cluster, b"body");
        assert_eq!(&meta[..], b"\x07\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10body");
        let (op, ring, body) = split_log(&meta).expect("whole");
        assert_eq!((op, ring, &body[..]), (LogOp::Succeed, cluster, &b"body"[..]));
        assert!(split_log(&meta.slice(..16)).is_none(), "cut in its head");
    }

    #[test]
    fn messages_of_the_log_keep_their_numbers() {
        use LogOp::*;
        let all = [Append, Vote, Snapshot, Propose, Barrier, Canvass, Succeed];
        assert!(all.into_iter().eq((1..=7).filter_map(|number| LogOp::try_from(number).ok())));
        assert_eq!([LogOp::try_from(0), LogOp::try_from(8)], [Err(0), Err(8)]);
    }
}
