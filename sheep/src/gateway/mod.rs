//! Where clients' requests enter: opens VDIs, finds their owner, retries out of sight.
//!
//! Called by the NBD server and the admin API; calls the owner on this node ([`crate::vdi`]) or forwards
//! to the one elsewhere. This is the only place that retries a client's request: it ends when it is done,
//! when the client is fenced, or when the VDI is gone, never because a node died.

mod export;
mod forward;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod query;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use wire::frame::Payload;
use wire::id::{Generation, Session, VdiId};
use wire::name::{Attach, ExportName, VdiName};
use wire::peer::{Connection, OpenRequest, RequestId, Status, StatusReply, VdiInfoReply, VdiIoRequest, op};

use crate::cluster::entry::{ClusterEntry, ClusterReply, Refusal};
use crate::cluster::state::Vdi;
use crate::machine::wall_ms;
use crate::nbd::{IoError, OpenError};
use crate::peer::Class;
use crate::replica::unpack;
use crate::store::Segment;
use crate::vdi::context::{Context, Failure, LOOK_AGAIN, RETRY_DELAY, answer};
use crate::vdi::owner::{IoFailure, Owner};
use crate::vdi::owners::Owners;

pub(crate) use export::NbdExports;
pub(crate) use forward::Forwarded;

/// How long to wait for the log with something that is tried again anyway.
const LOG_PATIENCE: Duration = Duration::from_millis(1_000);

/// What a client wants of a VDI.
#[derive(Debug, Clone)]
pub(crate) enum Io {
    Read { offset: u64, len: u32 },
    Write { offset: u64, payload: Payload, fua: bool },
    Zero { offset: u64, len: u64, punch: bool, fua: bool },
    Flush,
    Status { offset: u64, len: u64 },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Nothing,
    Read(Vec<Segment>),
    Status(Vec<(u64, bool)>),
}

/// This node's gateway.
pub(crate) struct Gateway {
    pub(crate) context: Arc<Context>,
    pub(crate) owners: Arc<Owners>,
    connections: AtomicU64,
    acquiring: Mutex<HashMap<VdiId, Arc<tokio::sync::Mutex<()>>>>,
    longest_ms: AtomicU64,
    /// Open connections by number.
    handles: Mutex<HashMap<u64, Weak<Handle>>>,
}

/// A client's connection to a VDI.
pub(crate) struct Handle {
    gateway: Arc<Gateway>,
    pub(crate) vdi: VdiId,
    pub(crate) name: VdiName,
    pub(crate) size: u64,
    /// The NBD server takes no writes for it.
    pub(crate) read_only: bool,
    connection: Connection,
    /// The owner that has been told of this connection.
    known_to: Mutex<Option<(Session, Generation)>>,
    /// The connection's right was withdrawn: an owner to come would not know.
    revoked: AtomicBool,
    opened_ms: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.gateway.handles.lock().remove(&self.connection.connection);
    }
}

enum Route {
    Here(Arc<Owner>),
    There(Session, Generation),
    Nobody,
    Gone,
}

impl Gateway {
    pub(crate) fn new(context: Arc<Context>, owners: Arc<Owners>) -> Arc<Self> {
        Arc::new(Self {
            context,
            owners,
            connections: AtomicU64::new(1),
            acquiring: Mutex::default(),
            longest_ms: AtomicU64::new(0),
            handles: Mutex::default(),
        })
    }

    /// How many connections clients have to VDIs here.
    pub(crate) fn open_handles(&self) -> u64 {
        self.handles.lock().len() as u64
    }

    /// The longest that a client's request has taken, in milliseconds.
    pub(crate) fn longest_ms(&self) -> u64 {
        self.longest_ms.load(Ordering::Relaxed)
    }

    /// Opens a VDI for a client. With an attach generation, returns when nothing of the client's lower ones
    /// can still happen (rule 10).
    pub(crate) async fn open(
        self: &Arc<Self>,
        export: &ExportName,
        client: &str,
    ) -> Result<Arc<Handle>, OpenError> {
        let (name, attach) = (&export.vdi, export.attach.as_ref());
        let state = self.context.view.state();
        let Some(vdi) = state.vdi_named(name) else {
            return Err(OpenError::NotFound(name.to_string()));
        };
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(Handle {
            gateway: self.clone(),
            vdi: vdi.id,
            name: name.clone(),
            size: vdi.size,
            read_only: export.read_only,
            connection: Connection {
                gateway: self.context.me().into(),
                connection,
                client: client.to_owned(),
                attach_client: attach.map(|a| a.client.clone()).unwrap_or_default(),
                attach_generation: attach.map(|a| a.generation).unwrap_or_default(),
            },
            known_to: Mutex::new(None),
            revoked: AtomicBool::new(false),
            opened_ms: wall_ms(),
        });
        self.handles.lock().insert(connection, Arc::downgrade(&handle));
        if let Some(attach) = attach {
            self.log_attach(vdi, attach).await?;
        }
        match handle.introduce().await {
            Ok(()) => Ok(handle),
            Err(IoError::Fenced) => Err(self.fenced(handle.vdi, attach)),
            Err(_) => Err(OpenError::NotFound(name.to_string())),
        }
    }

    fn fenced(&self, vdi: VdiId, attach: Option<&Attach>) -> OpenError {
        let (client, generation) = attach.map(|a| (a.client.clone(), a.generation)).unwrap_or_default();
        let state = self.context.view.state();
        let newest = state.vdi(vdi).and_then(|v| v.attached.get(&client).copied()).unwrap_or_default();
        OpenError::Fenced { client, generation, newest }
    }

    /// Records an attach generation, so that every owner to come knows which are over.
    async fn log_attach(&self, vdi: &Vdi, attach: &Attach) -> Result<(), OpenError> {
        let entry = ClusterEntry::Attach {
            vdi: vdi.id,
            client: attach.client.clone(),
            generation: attach.generation,
        };
        loop {
            match self.context.log.propose(entry.clone(), LOG_PATIENCE).await {
                Ok((index, ClusterReply::Done)) => {
                    self.context.view.reaches(index).await;
                    return Ok(());
                }
                Ok((_, ClusterReply::Refused(Refusal::AttachFenced { client, known }))) => {
                    return Err(OpenError::Fenced { client, generation: attach.generation, newest: known });
                }
                Ok(_) => return Err(OpenError::NotFound(vdi.name.to_string())),
                Err(error) => {
                    tracing::debug!(%error, "an attachment could not be logged yet");
                    self.context.view.change(RETRY_DELAY).await;
                }
            }
        }
    }

    fn route(&self, vdi: VdiId) -> Route {
        let state = self.context.view.state();
        let Some(known) = state.vdi(vdi) else {
            return if state.is_deleted(vdi) { Route::Gone } else { Route::Nobody };
        };
        match known.owner.session {
            Some(s) if s == self.context.me() => match self.owners.get(vdi) {
                Some(owner) => Route::Here(owner),
                None => Route::Nobody,
            },
            Some(s) => Route::There(s, known.owner.generation),
            None => Route::Nobody,
        }
    }

    /// Asks the log to make this session the owner, once at a time per VDI.
    async fn acquire(&self, vdi: VdiId) {
        let turn = self.acquiring.lock().entry(vdi).or_default().clone();
        let _turn = turn.lock().await;
        let state = self.context.view.state();
        let owned = state.vdi(vdi).is_none_or(|v| v.owner.session.is_some());
        if owned {
            return;
        }
        if !state.is_live(self.context.me()) {
            self.context.view.change(LOOK_AGAIN).await;
            return;
        }
        let entry = ClusterEntry::Acquire { vdi, session: self.context.me() };
        match self.context.log.propose(entry, LOG_PATIENCE).await {
            Ok((index, ClusterReply::Owner { .. })) => self.context.view.reaches(index).await,
            Ok((_, reply)) => {
                tracing::debug!(%vdi, ?reply, "could not become a VDI's owner");
                self.context.view.change(LOOK_AGAIN).await;
            }
            Err(error) => {
                tracing::debug!(%vdi, %error, "could not become a VDI's owner yet");
                self.context.view.change(RETRY_DELAY).await;
            }
        }
    }

    /// What the VDI's owner knows of it; `None` if nobody owns it or the owner does not answer.
    pub(crate) async fn owner_info(&self, vdi: VdiId) -> Option<VdiInfoReply> {
        match self.route(vdi) {
            Route::Here(owner) => Some(forward::info_of(&owner).await),
            Route::There(session, generation) => {
                let meta = self.about(vdi, generation).encode_to_vec().into();
                let call = self.context.peers.call(
                    session.node,
                    Class::Forward,
                    op::VDI_INFO,
                    meta,
                    Payload::empty(),
                    Some(Duration::from_secs(2)),
                );
                let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
                VdiInfoReply::decode(reply.meta).ok()
            }
            Route::Nobody | Route::Gone => None,
        }
    }

    /// Asks the VDI's owner to give it up. Returns who has it open if that is why not.
    pub(crate) async fn release(&self, vdi: VdiId) -> Result<(), Vec<Connection>> {
        for _ in 0..20 {
            match self.route(vdi) {
                Route::Nobody | Route::Gone => return Ok(()),
                Route::Here(owner) => {
                    let open = owner.clients.connections();
                    if !open.is_empty() {
                        return Err(open);
                    }
                    self.owners.release(&owner, None).await;
                }
                Route::There(session, generation) => {
                    let meta = self.about(vdi, generation).encode_to_vec().into();
                    let call = self.context.peers.call(
                        session.node,
                        Class::Forward,
                        op::RELEASE,
                        meta,
                        Payload::empty(),
                        Some(Duration::from_secs(2)),
                    );
                    if let Ok(reply) = call.await
                        && reply.status == Status::Busy as u16
                        && let Ok(info) = VdiInfoReply::decode(reply.meta)
                        && !info.connections.is_empty()
                    {
                        return Err(info.connections);
                    }
                }
            }
            self.context.view.change(Duration::from_millis(50)).await;
        }
        Err(Vec::new())
    }

    fn about(&self, vdi: VdiId, generation: Generation) -> OpenRequest {
        OpenRequest {
            vdi: vdi.0,
            generation: generation.0,
            gateway: self.context.me().into(),
            ..OpenRequest::default()
        }
    }
}

impl Handle {
    /// The connection under the present session.
    fn connection(&self) -> Connection {
        Connection { gateway: self.gateway.context.me().into(), ..self.connection.clone() }
    }

    /// Makes the connection known to the VDI's owner, whoever that is.
    async fn introduce(&self) -> Result<(), IoError> {
        loop {
            match self.gateway.route(self.vdi) {
                Route::Gone => return Err(IoError::Shutdown),
                Route::Nobody => self.gateway.acquire(self.vdi).await,
                Route::Here(owner) => match forward::open_here(&owner, self.connection()).await {
                    Ok(()) => return Ok(()),
                    Err(IoFailure::Fenced) => return Err(IoError::Fenced),
                    Err(_) => self.pause().await,
                },
                Route::There(session, generation) => match self.introduce_to(session, generation).await {
                    Ok(()) => return Ok(()),
                    Err(Failure::Status(Status::Fenced)) => return Err(IoError::Fenced),
                    Err(_) => self.pause().await,
                },
            }
        }
    }

    async fn introduce_to(&self, session: Session, generation: Generation) -> Result<(), Failure> {
        let request = OpenRequest {
            vdi: self.vdi.0,
            generation: generation.0,
            connection: self.connection.connection,
            client: self.connection.client.clone(),
            attach_client: self.connection.attach_client.clone(),
            attach_generation: self.connection.attach_generation,
            gateway: self.gateway.context.me().into(),
        };
        let meta = request.encode_to_vec().into();
        self.forwarded(session, op::OPEN, meta, Payload::empty()).await?;
        *self.known_to.lock() = Some((session, generation));
        Ok(())
    }

    /// Asks another node, for as long as its session is alive.
    async fn forwarded(
        &self,
        session: Session,
        op: u16,
        meta: Bytes,
        payload: Payload,
    ) -> Result<(Bytes, Payload), Failure> {
        let context = &self.gateway.context;
        let asked = answer(context.peers.start(session.node, Class::Forward, op, meta, payload));
        tokio::select! {
            // Dropping the question forgets it; the owner knows the request if it comes again.
            answer = asked => answer,
            () = context.view.until(|state| !state.is_live(session)) => Err(Failure::Lost),
        }
    }

    async fn pause(&self) {
        self.gateway.context.view.change(RETRY_DELAY).await;
    }

    /// Does what a client wants, however long it takes and whoever dies meanwhile.
    pub(crate) async fn run(&self, io: Io) -> Result<Done, IoError> {
        let began = tokio::time::Instant::now();
        let context = &self.gateway.context;
        let open = context.requests.begin(self.vdi);
        let request =
            RequestId { node: context.me().node.0, start: context.identity.process, number: open.number };
        let result = self.attempt_until_done(&io, request).await;
        drop(open);
        let took = began.elapsed().as_millis() as u64;
        self.gateway.longest_ms.fetch_max(took, Ordering::Relaxed);
        result
    }

    async fn attempt_until_done(&self, io: &Io, request: RequestId) -> Result<Done, IoError> {
        loop {
            if self.revoked.load(Ordering::Acquire) {
                return Err(IoError::Fenced);
            }
            let result = match self.gateway.route(self.vdi) {
                Route::Gone => return Err(IoError::Shutdown),
                Route::Nobody => {
                    self.gateway.acquire(self.vdi).await;
                    continue;
                }
                Route::Here(owner) => self.run_here(&owner, io, request).await,
                Route::There(session, generation) => self.run_there(session, generation, io, request).await,
            };
            match result {
                Ok(done) => return Ok(done),
                Err(IoFailure::NotOwner) => self.pause().await,
                Err(IoFailure::Fenced) => {
                    // For good, whatever the next owner knows of it.
                    self.revoked.store(true, Ordering::Release);
                    return Err(IoError::Fenced);
                }
                Err(IoFailure::NoSpace) => return Err(IoError::NoSpace),
                Err(IoFailure::Io) => return Err(IoError::Io),
            }
        }
    }

    async fn run_here(&self, owner: &Arc<Owner>, io: &Io, request: RequestId) -> Result<Done, IoFailure> {
        let me = self.gateway.context.me();
        let state = self.gateway.context.view.state();
        let fenced = |c: &Connection| forward::is_fenced(&state, self.vdi, c);
        let Some(begun) = owner.clients.begin(me, self.connection.connection, fenced) else {
            forward::open_here(owner, self.connection()).await?;
            return Err(IoFailure::NotOwner);
        };
        let _in_flight = begun?;
        match io {
            Io::Read { offset, len } => owner.read(*offset, u64::from(*len)).await.map(Done::Read),
            Io::Write { offset, payload, fua } => {
                let begun = owner.begin_own(request);
                let written = owner.write(*offset, payload.clone(), *fua, request).await;
                begun.outcome(written).map(|()| Done::Nothing)
            }
            Io::Zero { offset, len, punch, fua } => {
                let begun = owner.begin_own(request);
                let zeroed = owner.zero(*offset, *len, *punch, *fua, request).await;
                begun.outcome(zeroed).map(|()| Done::Nothing)
            }
            Io::Flush => owner.flush().await.map(|()| Done::Nothing),
            Io::Status { offset, len } => owner.status(*offset, *len).await.map(Done::Status),
        }
    }

    async fn run_there(
        &self,
        session: Session,
        generation: Generation,
        io: &Io,
        request: RequestId,
    ) -> Result<Done, IoFailure> {
        if *self.known_to.lock() != Some((session, generation)) {
            self.introduce_to(session, generation).await.map_err(failure_of)?;
        }
        let mut message = VdiIoRequest {
            vdi: self.vdi.0,
            generation: generation.0,
            connection: self.connection.connection,
            request,
            answered: self.gateway.context.requests.answered_below(self.vdi),
            gateway: self.gateway.context.me().into(),
            ..VdiIoRequest::default()
        };
        let (op, payload) = match io {
            Io::Read { offset, len } => {
                (message.offset, message.len) = (*offset, u64::from(*len));
                (op::VDI_READ, Payload::empty())
            }
            Io::Write { offset, payload, fua } => {
                (message.offset, message.len, message.fua) = (*offset, payload.len() as u64, *fua);
                (op::VDI_WRITE, payload.clone())
            }
            Io::Zero { offset, len, punch, fua } => {
                (message.offset, message.len, message.fua) = (*offset, *len, *fua);
                message.punch = *punch;
                (op::VDI_ZERO, Payload::empty())
            }
            Io::Flush => (op::VDI_FLUSH, Payload::empty()),
            Io::Status { offset, len } => {
                (message.offset, message.len) = (*offset, *len);
                (op::VDI_STATUS, Payload::empty())
            }
        };
        let bytes = payload.len().max(message.len.min(wire_read_max(op)) as usize);
        let _permit = self.gateway.context.peers.reserve(session.node, Class::Forward, bytes).await;
        let meta = message.encode_to_vec().into();
        let (meta, payload) = match self.forwarded(session, op, meta, payload).await {
            Ok(answer) => answer,
            Err(failure) => {
                // It may not know the connection any more.
                *self.known_to.lock() = None;
                return Err(failure_of(failure));
            }
        };
        match io {
            Io::Read { len, .. } => {
                // Damaged on the way: as good as lost.
                payload.verify().map_err(|_| IoFailure::NotOwner)?;
                let reply = wire::peer::ReadReply::decode(meta).map_err(|_| IoFailure::NotOwner)?;
                unpack(&reply, payload.data(), *len).map(Done::Read).ok_or(IoFailure::NotOwner)
            }
            Io::Status { .. } => {
                let reply = StatusReply::decode(meta).map_err(|_| IoFailure::NotOwner)?;
                let runs = reply.runs.iter().enumerate().filter(|(_, len)| **len > 0);
                Ok(Done::Status(runs.map(|(i, len)| (*len, i % 2 == 1)).collect()))
            }
            Io::Write { .. } | Io::Zero { .. } | Io::Flush => Ok(Done::Nothing),
        }
    }

    /// The client has gone: its owner is told, but nobody waits for it.
    pub(crate) async fn close(&self) {
        let connection = self.connection.connection;
        self.gateway.handles.lock().remove(&connection);
        let me = self.gateway.context.me();
        if let Some(owner) = self.gateway.owners.all().into_iter().find(|o| o.vdi == self.vdi) {
            owner.clients.close(me, connection);
        }
        let known_to = *self.known_to.lock();
        if let Some((session, generation)) = known_to {
            let request = OpenRequest { connection, ..self.gateway.about(self.vdi, generation) };
            let meta = request.encode_to_vec().into();
            let peers = &self.gateway.context.peers;
            let call = peers.call(
                session.node,
                Class::Forward,
                op::CLOSE,
                meta,
                Payload::empty(),
                Some(Duration::from_secs(1)),
            );
            if let Err(error) = call.await {
                tracing::debug!(%error, "the owner was not told of a closed connection");
            }
        }
    }
}

/// How many bytes of answer a request stands for in the budget.
fn wire_read_max(op: u16) -> u64 {
    if op == op::VDI_READ { u64::from(crate::cluster::state::OBJECT_SIZE) * 8 } else { 0 }
}

fn failure_of(failure: Failure) -> IoFailure {
    match failure {
        Failure::Status(Status::Fenced) => IoFailure::Fenced,
        Failure::Status(Status::NoSpace) => IoFailure::NoSpace,
        Failure::Status(Status::Io) => IoFailure::Io,
        Failure::Status(_) | Failure::Lost => IoFailure::NotOwner,
    }
}
