//! What the admin API asks of a VDI's owner, wherever it is: its map, a check of a part of it, the end of
//! connections. Both sides: the asking and the answering.
//!
//! Asking for the map or a check goes through a [`Handle`], so that the VDI keeps its owner meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use wire::frame::Payload;
use wire::id::{Generation, Session, VdiId};
use wire::peer::{
    AnsweredReply, AnsweredRequest, CheckFinding, CheckFindingKind, CheckPhase, ClientsReply, ClientsRequest,
    Connection, MappedObject, ObjectRef, OpenConnection, Status, UnlockRequest, VdiCheckReply,
    VdiCheckRequest, VdiInfoReply, VdiObjectsReply, VdiObjectsRequest, op,
};

use super::forward::{Answer, owner_of, refuse, status_of};
use super::{Gateway, Handle, Route};
use crate::nbd::IoError;
use crate::peer::Class;
use crate::vdi::check::Finding;
use crate::vdi::context::Failure;
use crate::vdi::owner::{IoFailure, Owner};

/// How long a batch of a check goes on: short enough that progress shows.
const CHECK_BATCH: Duration = Duration::from_millis(500);
/// Objects checked at once: enough to keep several disks busy, few enough not to starve clients.
const CHECK_PARALLEL: usize = 4;
/// How long a gateway has to say which connections it serves.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(2);
/// How long requests under way may take to end when their connection is withdrawn.
const REVOKE_PATIENCE: Duration = Duration::from_secs(5);

/// Whether a connection is the one meant; an empty name means all.
fn is_client(connection: &Connection, name: &str) -> bool {
    name.is_empty() || connection.client == name || connection.attach_client == name
}

// ---- asking ----

/// What is asked of an owner under whatever generation it turns out to have.
#[derive(Clone, Copy)]
enum Question {
    Objects { from: u64, to: u64, count_pages: bool },
    Check { phase: CheckPhase, from: u64, to: u64, repair: bool },
}

impl Question {
    fn op(self) -> u16 {
        match self {
            Self::Objects { .. } => op::VDI_OBJECTS,
            Self::Check { .. } => op::VDI_CHECK,
        }
    }

    fn encode(self, vdi: VdiId, generation: Generation) -> Bytes {
        let (vdi, generation) = (vdi.0, generation.0);
        match self {
            Self::Objects { from, to, count_pages } => {
                VdiObjectsRequest { vdi, generation, from, to, count_pages }.encode_to_vec().into()
            }
            Self::Check { phase, from, to, repair } => {
                let phase = phase.into();
                VdiCheckRequest { vdi, generation, phase, from, to, repair }.encode_to_vec().into()
            }
        }
    }
}

impl Handle {
    /// A part of the VDI's object map.
    pub(crate) async fn objects(
        &self,
        from: u64,
        to: u64,
        count_pages: bool,
    ) -> Result<VdiObjectsReply, IoError> {
        let reply = self.ask_owner(Question::Objects { from, to, count_pages }).await?;
        VdiObjectsReply::decode(reply).map_err(|_| IoError::Unsupported)
    }

    /// Checks a part of the VDI, and repairs it if asked to.
    pub(crate) async fn check(
        &self,
        phase: CheckPhase,
        from: u64,
        to: u64,
        repair: bool,
    ) -> Result<VdiCheckReply, IoError> {
        let reply = self.ask_owner(Question::Check { phase, from, to, repair }).await?;
        VdiCheckReply::decode(reply).map_err(|_| IoError::Unsupported)
    }

    /// Asks whoever owns the VDI, until there is an answer; the caller sets the limit. Not to be
    /// dropped while it repairs: a copy may be half mended then.
    async fn ask_owner(&self, question: Question) -> Result<Bytes, IoError> {
        loop {
            if self.revoked.load(Ordering::Acquire) {
                return Err(IoError::Fenced);
            }
            let answer = match self.gateway.route(self.vdi) {
                Route::Gone => return Err(IoError::Shutdown),
                Route::Nobody => {
                    self.gateway.acquire(self.vdi).await;
                    continue;
                }
                Route::Here(owner) => {
                    let meta = question.encode(self.vdi, owner.generation);
                    let answer = answer_as_owner(&owner, question.op(), meta).await;
                    answer.ok_or(IoError::Invalid)?
                }
                Route::There(session, generation) => {
                    let meta = question.encode(self.vdi, generation);
                    match self.forwarded(session, question.op(), meta, Payload::empty()).await {
                        Ok((meta, _)) => Ok(meta),
                        Err(Failure::Status(Status::Invalid)) => return Err(IoError::Unsupported),
                        Err(failure) => Err(super::failure_of(failure)),
                    }
                }
            };
            match answer {
                Ok(reply) => return Ok(reply),
                Err(IoFailure::NotOwner) => self.pause().await,
                Err(IoFailure::Fenced) => return Err(IoError::Fenced),
                Err(IoFailure::NoSpace) => return Err(IoError::NoSpace),
                Err(IoFailure::Io) => return Err(IoError::Io),
            }
        }
    }
}

impl Gateway {
    /// The connections that another node, or this one, serves; with `revoke` they are withdrawn. `None` if
    /// it does not answer.
    pub(crate) async fn clients_at(&self, session: Session, ask: &ClientsRequest) -> Option<ClientsReply> {
        if session == self.context.me() {
            return Some(self.clients(ask));
        }
        let meta = ClientsRequest { to_start: session.start, ..ask.clone() }.encode_to_vec().into();
        let (peers, wait) = (&self.context.peers, Some(CLIENTS_PATIENCE));
        let call =
            peers.call(session.node, Class::Forward, op::GATEWAY_CLIENTS, meta, Payload::empty(), wait);
        let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
        ClientsReply::decode(reply.meta).ok()
    }

    /// Lets the VDI's owner withdraw connections; returns them once nothing is under way on them. `None` if
    /// the owner does not answer, or something stays under way.
    pub(crate) async fn unlock_at_owner(&self, vdi: VdiId, client: &str) -> Option<Vec<Connection>> {
        match self.route(vdi) {
            Route::Nobody | Route::Gone => Some(Vec::new()),
            Route::Here(owner) => unlock(&owner, client).await,
            Route::There(session, generation) => {
                let client = client.to_owned();
                let meta = UnlockRequest { vdi: vdi.0, generation: generation.0, client };
                let meta = meta.encode_to_vec().into();
                let (peers, wait) = (&self.context.peers, Some(REVOKE_PATIENCE + CLIENTS_PATIENCE));
                let call =
                    peers.call(session.node, Class::Forward, op::VDI_UNLOCK, meta, Payload::empty(), wait);
                let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
                VdiInfoReply::decode(reply.meta).ok().map(|r| r.connections)
            }
        }
    }

    fn clients(&self, ask: &ClientsRequest) -> ClientsReply {
        let handles: Vec<Arc<Handle>> =
            self.handles.lock().values().filter_map(std::sync::Weak::upgrade).collect();
        let meant = |h: &&Arc<Handle>| {
            (ask.vdi == 0 || h.vdi.0 == ask.vdi)
                && is_client(&h.connection, &ask.client)
                && !h.revoked.load(Ordering::Acquire)
        };
        let connections = handles.iter().filter(meant).map(|handle| {
            if ask.revoke {
                handle.revoked.store(true, Ordering::Release);
            }
            OpenConnection {
                vdi: handle.vdi.0,
                connection: handle.connection.clone(),
                opened_ms: handle.opened_ms,
                read_only: handle.read_only,
            }
        });
        ClientsReply { connections: connections.collect() }
    }
}

// ---- answering ----

/// Serves the requests of this file. What is asked of an owner counts as long as it is the owner.
pub(super) async fn serve(gateway: &Arc<Gateway>, op: u16, meta: Bytes) -> Answer {
    let invalid = |_: prost::DecodeError| refuse(Status::Invalid);
    let reply: Bytes = match op {
        op::VDI_OBJECTS | op::VDI_CHECK => {
            let (vdi, generation) = match op {
                op::VDI_OBJECTS => {
                    let ask = VdiObjectsRequest::decode(meta.clone()).map_err(invalid)?;
                    (ask.vdi, ask.generation)
                }
                _ => {
                    let ask = VdiCheckRequest::decode(meta.clone()).map_err(invalid)?;
                    (ask.vdi, ask.generation)
                }
            };
            let owner = owner_of(gateway, vdi, generation).await?;
            let answer = answer_as_owner(&owner, op, meta).await.ok_or(refuse(Status::Invalid))?;
            answer.map_err(|failure| refuse(status_of(failure)))?
        }
        op::VDI_UNLOCK => {
            let ask = UnlockRequest::decode(meta).map_err(invalid)?;
            let owner = owner_of(gateway, ask.vdi, ask.generation).await?;
            let connections = unlock(&owner, &ask.client).await.ok_or(refuse(Status::Busy))?;
            VdiInfoReply { connections, ..VdiInfoReply::default() }.encode_to_vec().into()
        }
        op::GATEWAY_CLIENTS => {
            let ask = ClientsRequest::decode(meta).map_err(invalid)?;
            if ask.to_start != gateway.context.me().start {
                return Err(refuse(Status::WrongSession));
            }
            gateway.clients(&ask).encode_to_vec().into()
        }
        op::ANSWERED => {
            let ask = AnsweredRequest::decode(meta).map_err(invalid)?;
            if ask.process != gateway.context.identity.process {
                return Err(refuse(Status::WrongSession));
            }
            let below = gateway.context.requests.answered_below(VdiId(ask.vdi));
            AnsweredReply { below }.encode_to_vec().into()
        }
        _ => return Err(refuse(Status::Invalid)),
    };
    Ok((reply, Payload::empty()))
}

/// Answers what [`Question`] asks; `None` if it does not decode.
async fn answer_as_owner(owner: &Arc<Owner>, op: u16, meta: Bytes) -> Option<Result<Bytes, IoFailure>> {
    Some(match op {
        op::VDI_OBJECTS => {
            let ask = VdiObjectsRequest::decode(meta).ok()?;
            objects(owner, ask).await.map(|reply| reply.encode_to_vec().into())
        }
        op::VDI_CHECK => {
            let ask = VdiCheckRequest::decode(meta).ok()?;
            check(owner, ask).await.map(|reply| reply.encode_to_vec().into())
        }
        _ => return None,
    })
}

async fn unlock(owner: &Owner, client: &str) -> Option<Vec<Connection>> {
    let revoked = owner.clients.revoke(|c| is_client(c, client));
    tokio::time::timeout(REVOKE_PATIENCE, revoked).await.ok()
}

async fn objects(owner: &Owner, ask: VdiObjectsRequest) -> Result<VdiObjectsReply, IoFailure> {
    owner.served().await?;
    let (found, next) = owner.allocated_some(ask.from, ask.to).await?;
    let pages = if ask.count_pages { Some(owner.pages().await?.len() as u64) } else { None };
    let mapped = found.into_iter().map(|(index, entry)| MappedObject {
        index,
        creator: entry.creator.0,
        birth: entry.birth.0,
    });
    Ok(VdiObjectsReply { objects: mapped.collect(), next, pages })
}

async fn check(owner: &Arc<Owner>, ask: VdiCheckRequest) -> Result<VdiCheckReply, IoFailure> {
    owner.served().await?;
    match ask.phase() {
        CheckPhase::Orphans => {
            let found = owner.orphans(false).await?;
            let repaired = ask.repair && !found.is_empty();
            if repaired {
                owner.orphans(true).await?;
            }
            let findings = found.into_iter().map(|f| describe(f, repaired)).collect();
            Ok(VdiCheckReply { findings, ..VdiCheckReply::default() })
        }
        CheckPhase::Pages => {
            let pages = owner.pages().await?;
            let batch = (0u64..).zip(pages).filter(|(at, _)| (ask.from..ask.to).contains(at)).collect();
            check_batch(owner, batch, None, ask.repair).await
        }
        CheckPhase::Objects => {
            let to = ask.to.min(owner.object_count);
            let (found, next) = owner.allocated_some(ask.from, to).await?;
            let batch = found.into_iter().map(|(i, entry)| (i, owner.data_name(i, entry))).collect();
            check_batch(owner, batch, next, ask.repair).await
        }
    }
}

/// Checks objects by position until the batch's time is over; `next` is where to go on after all of them.
async fn check_batch(
    owner: &Owner,
    batch: Vec<(u64, ObjectRef)>,
    next: Option<u64>,
    repair: bool,
) -> Result<VdiCheckReply, IoFailure> {
    let until = tokio::time::Instant::now() + CHECK_BATCH;
    let mut reply = VdiCheckReply { next, ..VdiCheckReply::default() };
    let checks = batch.chunks(CHECK_PARALLEL);
    for objects in checks {
        if reply.objects > 0 && tokio::time::Instant::now() >= until {
            reply.next = objects.first().map(|(at, _)| *at);
            break;
        }
        let some = objects.iter().map(|(_, object)| check_object(owner, *object, repair));
        for findings in futures::future::try_join_all(some).await? {
            reply.findings.extend(findings);
        }
        reply.objects += objects.len() as u64;
        let bytes: u64 = objects.iter().map(|(_, object)| u64::from(object.size)).sum();
        reply.bytes += bytes * u64::from(owner.copies.get());
    }
    Ok(reply)
}

/// What is wrong with an object, and what was put right of it.
async fn check_object(
    owner: &Owner,
    object: ObjectRef,
    repair: bool,
) -> Result<Vec<CheckFinding>, IoFailure> {
    let before = owner.check_object(object, false).await?;
    let harmless = |f: &Finding| matches!(f, Finding::Degraded { .. } | Finding::Unreadable { .. });
    if !repair || before.iter().all(harmless) {
        return Ok(before.into_iter().map(|f| describe(f, false)).collect());
    }
    let after = match owner.check_object(object, true).await {
        Ok(after) => after,
        // No sound copy to repair from: what was found stands.
        Err(IoFailure::Io) => before.clone(),
        Err(failure) => return Err(failure),
    };
    let mended = before.into_iter().filter(|f| !after.contains(f) && !harmless(f));
    let mended: Vec<CheckFinding> = mended.map(|f| describe(f, true)).collect();
    Ok(mended.into_iter().chain(after.iter().cloned().map(|f| describe(f, false))).collect())
}

fn describe(finding: Finding, repaired: bool) -> CheckFinding {
    use CheckFindingKind as Kind;
    let (kind, object, node, count) = match finding {
        Finding::Damaged { object, session, blocks } => (Kind::Damaged, object, Some(session), blocks),
        Finding::Missing { object, session } => (Kind::Missing, object, Some(session), 0),
        Finding::Differs { object } => (Kind::Differs, object, None, 0),
        Finding::Orphan { object, session } => (Kind::Orphan, object, Some(session), 0),
        Finding::Degraded { object, in_sync } => (Kind::Degraded, object, None, in_sync),
        Finding::Unreadable { object, session } => (Kind::Unreadable, object, Some(session), 0),
    };
    CheckFinding {
        kind: kind.into(),
        object,
        node: node.map_or(0, |s| s.node.0),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        repaired,
    }
}
