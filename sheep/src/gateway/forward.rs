//! The owner's side of forwarded requests: find the owner, do it once, answer.
//!
//! Called by the peer server for the forward class.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio_util::task::TaskTracker;
use wire::frame::Payload;
use wire::id::{Generation, NodeId, Session, VdiId};
use wire::peer::{Connection, OpenRequest, Status, StatusReply, VdiInfoReply, VdiIoRequest, op};

use super::Gateway;
use crate::cluster::state::ClusterState;
use crate::mutant::{Mutant, planted};
use crate::nbd::server::PAYLOAD_LEN_MAX;
use crate::peer::{PeerInfo, Request, Responder};
use crate::vdi::clients::Arrival;
use crate::vdi::owner::{IoFailure, Owner};

/// How long counting a VDI's objects may take; who asks waits 2 s.
const COUNT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// The most that is read at once: what NBD's largest request asks for.
const READ_LEN_MAX: u64 = PAYLOAD_LEN_MAX as u64;

/// Serves requests that other gateways forward to owners on this node.
pub(crate) struct Forwarded {
    gateway: Arc<Gateway>,
    tasks: TaskTracker,
}

pub(super) type Answer = Result<(Bytes, Payload), (Status, Bytes)>;

fn nothing() -> (Bytes, Payload) {
    (Bytes::new(), Payload::empty())
}

pub(super) fn refuse(status: Status) -> (Status, Bytes) {
    (status, Bytes::new())
}

/// Whether a higher attach generation of a connection's client is known.
pub(super) fn is_fenced(state: &ClusterState, vdi: VdiId, connection: &Connection) -> bool {
    !connection.attach_client.is_empty()
        && !planted(Mutant::LateWrites)
        && state
            .vdi(vdi)
            .and_then(|v| v.attached.get(&connection.attach_client))
            .is_some_and(|known| *known > connection.attach_generation)
}

/// Makes a connection known to its owner, once nothing it replaces is under way.
pub(super) async fn open_here(owner: &Owner, connection: Connection) -> Result<(), IoFailure> {
    let state = owner.current()?;
    if is_fenced(&state, owner.vdi, &connection) {
        return Err(IoFailure::Fenced);
    }
    if !connection.attach_client.is_empty() && !planted(Mutant::LateWrites) {
        // Here too, since this owner may not have seen the log's entry yet.
        owner.clients.supersede(&connection.attach_client, connection.attach_generation).await;
    }
    owner.clients.open(connection)?;
    owner.current().map(drop)
}

/// What an owner knows of its VDI.
pub(super) async fn info_of(owner: &Owner) -> VdiInfoReply {
    // While copies are away the map cannot be read; who has the VDI open is known all the same.
    let used_objects = match owner.is_serving() {
        true => tokio::time::timeout(COUNT_PATIENCE, owner.count_used()).await.ok().and_then(Result::ok),
        false => None,
    };
    VdiInfoReply { used_objects, connections: owner.clients.connections(), waiting: owner.waits_for() }
}

impl Forwarded {
    pub(crate) fn new(gateway: Arc<Gateway>, tasks: TaskTracker) -> Self {
        Self { gateway, tasks }
    }

    /// Takes a request; it is answered later. Tasks run to their end: a request that was begun is never
    /// dropped half way, whatever becomes of its connection.
    pub(crate) fn submit(&self, from: &Arc<PeerInfo>, request: Request, responder: Responder) {
        let (gateway, from) = (self.gateway.clone(), from.session);
        self.tasks.spawn(async move {
            match handle(&gateway, from.node, request).await {
                Ok((meta, payload)) => responder.send(Status::Ok as u16, meta, payload),
                Err((status, meta)) => responder.send(status as u16, meta, Payload::empty()),
            }
        });
    }
}

pub(super) async fn handle(gateway: &Arc<Gateway>, from: NodeId, request: Request) -> Answer {
    match request.op {
        op::OPEN | op::CLOSE | op::RELEASE | op::VDI_INFO => {
            let message = OpenRequest::decode(request.meta).map_err(|_| refuse(Status::Invalid))?;
            let owner = owner_of(gateway, message.vdi, message.generation).await?;
            let asker = Session::from(message.gateway);
            if asker.node != from {
                return Err(refuse(Status::Invalid));
            }
            match request.op {
                op::OPEN => {
                    let connection = Connection {
                        gateway: message.gateway,
                        connection: message.connection,
                        client: message.client,
                        attach_client: message.attach_client,
                        attach_generation: message.attach_generation,
                    };
                    open_here(&owner, connection).await.map_err(|f| refuse(status_of(f)))?;
                    Ok(nothing())
                }
                op::CLOSE => {
                    owner.clients.close(asker, message.connection);
                    Ok(nothing())
                }
                op::VDI_INFO => Ok((info_of(&owner).await.encode_to_vec().into(), Payload::empty())),
                _ => {
                    if owner.clients.connections().is_empty() && gateway.owners.release(&owner, None).await {
                        return Ok(nothing());
                    }
                    Err((Status::Busy, info_of(&owner).await.encode_to_vec().into()))
                }
            }
        }
        op::VDI_OBJECTS | op::VDI_CHECK | op::VDI_UNLOCK | op::GATEWAY_CLIENTS | op::ANSWERED => {
            super::query::serve(gateway, request.op, request.meta).await
        }
        _ => io(gateway, from, request).await,
    }
}

/// The owner on this node, under the generation that the asker means; waits a little for the log if that
/// is newer than what is known here.
pub(super) async fn owner_of(
    gateway: &Arc<Gateway>,
    vdi: u64,
    generation: u64,
) -> Result<Arc<Owner>, (Status, Bytes)> {
    let (vdi, generation) = (VdiId(vdi), Generation(generation));
    for _ in 0..10 {
        if let Some(owner) = gateway.owners.get_generation(vdi, generation) {
            return Ok(owner);
        }
        let state = gateway.context.view.state();
        if state.vdi(vdi).is_some_and(|v| v.owner.generation > generation) {
            break;
        }
        gateway.context.view.change(std::time::Duration::from_millis(20)).await;
    }
    Err(refuse(Status::NotOwner))
}

async fn io(gateway: &Arc<Gateway>, from: NodeId, request: Request) -> Answer {
    let message = VdiIoRequest::decode(request.meta).map_err(|_| refuse(Status::Invalid))?;
    let owner = owner_of(gateway, message.vdi, message.generation).await?;
    let end = message.offset.checked_add(message.len).filter(|end| *end <= owner.size);
    if end.is_none() || message.request.node != from.0 || message.gateway.node != from.0 {
        return Err(refuse(Status::Invalid));
    }
    check(request.op, &message, &request.payload).map_err(refuse)?;
    let state = gateway.context.view.state();
    let fenced = |c: &Connection| is_fenced(&state, owner.vdi, c);
    let Some(begun) = owner.clients.begin(message.gateway.into(), message.connection, fenced) else {
        return Err(refuse(Status::NotOwner));
    };
    let _in_flight = begun.map_err(|f| refuse(status_of(f)))?;
    match request.op {
        op::VDI_READ => {
            let segments = owner.read(message.offset, message.len).await.map_err(|f| refuse(status_of(f)))?;
            let (reply, payload) = crate::replica::pack(message.offset, segments);
            Ok((reply.encode_to_vec().into(), payload))
        }
        op::VDI_STATUS => {
            let runs = owner.status(message.offset, message.len).await.map_err(|f| refuse(status_of(f)))?;
            let mut reply = StatusReply::default();
            for (len, hole) in runs {
                if hole != (reply.runs.len() % 2 == 1) {
                    reply.runs.push(0);
                }
                reply.runs.push(len);
            }
            Ok((reply.encode_to_vec().into(), Payload::empty()))
        }
        op::VDI_WRITE | op::VDI_ZERO | op::VDI_FLUSH => {
            change(&owner, request.op, &message, request.payload).await.map_err(refuse)?;
            Ok(nothing())
        }
        _ => Err(refuse(Status::Invalid)),
    }
}

/// Whether a request can be done as it came. No copy would take a write that was damaged on its way, and its object
/// would wait for them for ever; the gateway sends it again.
fn check(op: u16, message: &VdiIoRequest, payload: &Payload) -> Result<(), Status> {
    match op {
        op::VDI_READ if message.len > READ_LEN_MAX => Err(Status::Invalid),
        op::VDI_WRITE if payload.len() as u64 != message.len || !payload.lies_at(message.offset) => {
            Err(Status::Invalid)
        }
        op::VDI_WRITE => payload.verify().map_err(|_| Status::BadChecksum),
        _ => Ok(()),
    }
}

/// Does a request that changes something, once: if it comes again, the first one's outcome counts.
async fn change(owner: &Owner, op: u16, message: &VdiIoRequest, payload: Payload) -> Result<(), Status> {
    let mut freed = Vec::new();
    let arrival = owner.clients.arrive(message.request, message.answered, &mut freed);
    freed.into_iter().for_each(|number| owner.stability.end(number));
    match arrival {
        Arrival::Late => Err(Status::Invalid),
        Arrival::Again(mut outcome) => {
            let outcome = outcome.wait_for(Option::is_some).await;
            match outcome.map(|o| *o) {
                Ok(Some(Ok(()))) => Ok(()),
                Ok(Some(Err(failure))) => Err(status_of(failure)),
                // The first one ended without an outcome: the owner is on its way out.
                Ok(None) | Err(_) => Err(Status::NotOwner),
            }
        }
        Arrival::New(done) => {
            let result = match op {
                op::VDI_WRITE => owner.write(message.offset, payload, message.fua, message.request).await,
                op::VDI_ZERO => {
                    let (punch, fua) = (message.punch, message.fua);
                    owner.zero(message.offset, message.len, punch, fua, message.request).await
                }
                _ => owner.flush().await,
            };
            if result.is_err() {
                owner.stability.ended(owner.clients.withdraw(message.request), result);
            }
            done.send_replace(Some(result));
            result.map_err(status_of)
        }
    }
}

pub(super) fn status_of(failure: IoFailure) -> Status {
    match failure {
        IoFailure::NotOwner => Status::NotOwner,
        IoFailure::Fenced => Status::Fenced,
        IoFailure::NoSpace => Status::NoSpace,
        IoFailure::Io => Status::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_no_copy_would_take_and_a_read_of_everything_are_refused() {
        let message = |offset, len| VdiIoRequest { offset, len, ..VdiIoRequest::default() };
        let data = Bytes::from(vec![7; 8192]);
        let at = |offset| Payload::new(offset, data.clone());
        let border = u64::from(crate::cluster::state::OBJECT_SIZE);
        assert_eq!(check(op::VDI_WRITE, &message(border - 100, 8192), &at(border - 100)), Ok(()));
        assert_eq!(check(op::VDI_WRITE, &message(0, 0), &Payload::empty()), Ok(()));
        // Cut elsewhere there is a checksum less than there are pieces.
        assert_eq!(check(op::VDI_WRITE, &message(border - 100, 8192), &at(0)), Err(Status::Invalid));
        assert_eq!(check(op::VDI_WRITE, &message(0, 4096), &at(0)), Err(Status::Invalid));
        let damaged = Payload::with_crcs(0, data.clone(), vec![1, 2]).expect("two pieces");
        assert_eq!(check(op::VDI_WRITE, &message(0, 8192), &damaged), Err(Status::BadChecksum));
        assert_eq!(check(op::VDI_READ, &message(0, READ_LEN_MAX), &Payload::empty()), Ok(()));
        assert_eq!(
            check(op::VDI_READ, &message(0, READ_LEN_MAX + 1), &Payload::empty()),
            Err(Status::Invalid)
        );
    }
}
