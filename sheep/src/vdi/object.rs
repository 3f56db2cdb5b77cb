//! One object at its owner: numbers its writes, sends them to every member, reads from an in-sync one.
//!
//! Called by [`super::owner`] and [`super::tree`]; calls the members through [`super::context`].
//!
//! - A write is done when every member of the slot's *current* configuration has answered; a member that
//!   does not is waited for until the log removes it.
//! - Writes of an object go out in the order of their numbers, each naming its predecessor (rule 1).
//! - While too few are in sync nothing is answered, but what has a number is sent to those who are there: a copy that
//!   catches up may have it already, and waits for the others to have it too.
//! - A value read is returned only if the owner's lease held after reading, or every in-sync member has
//!   confirmed the owner since (rules 7, 8).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use prost::Message;
use wire::frame::Payload;
use wire::id::{Session, SlotIndex, Version};
use wire::peer::{
    Fence, ObjectRef, ObjectRequest, ReadReply, RequestId, Status, VersionRef, WriteKind, WriteReply,
    WriteRequest, op,
};

use super::answers::Answers;
use super::confirmed::{Confirmed, Open};
use super::context::{Failure, LOOK_AGAIN, RETRY_DELAY, Sent};
use super::owner::{IoFailure, Owner};
use super::turns::{Access, Turns};
use crate::cluster::entry::ClusterEntry;
use crate::cluster::slots::{MemberState, SlotConfig};
use crate::cluster::state::ClusterState;
use crate::mutant::{Mutant, planted};
use crate::replica::{self, key_of};
use crate::store::Segment;

/// How often a member may miss a predecessor that has come to its end before it is called out of sync.
const GAPS_MAX: u32 = 20;
/// How long a full disk is waited for before trying again.
const FULL_DELAY: Duration = Duration::from_millis(200);

/// An object at its owner.
pub(crate) struct Object {
    pub(crate) name: ObjectRef,
    pub(crate) slot: SlotIndex,
    turns: Arc<Turns>,
    newest: Mutex<Newest>,
    confirmed: Arc<Confirmed>,
}

/// What a write does to its range.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Data(Payload),
    Zero { len: u32, punch: bool },
}

impl Change {
    fn len(&self) -> u32 {
        match self {
            Self::Data(payload) => payload.len() as u32,
            Self::Zero { len, .. } => *len,
        }
    }
}

impl Object {
    pub(crate) fn new(name: ObjectRef, version: Version) -> Self {
        Self {
            name,
            slot: SlotIndex(name.slot),
            turns: Arc::default(),
            newest: Mutex::new(Newest { version, number: 0 }),
            confirmed: Arc::default(),
        }
    }

    /// The number of the last write.
    pub(crate) fn last_number(&self) -> u64 {
        self.newest.lock().number
    }
}

/// The last write of an object that was numbered.
#[derive(Debug, Clone, Copy)]
struct Newest {
    version: Version,
    /// Its number among the owner's writes; zero if this owner has written nothing there.
    number: u64,
}

/// A numbered write among those of its object.
struct Place {
    confirmed: Arc<Confirmed>,
    predecessor: Version,
    version: Version,
    _open: Open,
}

/// What is sent to members.
enum Errand {
    Write(Place),
    Create,
    Remove,
}

type MemberResult = (Session, u64, Result<WriteReply, Failure>);

impl Owner {
    /// Whether enough copies are in sync for writes to be answered.
    fn is_enough(&self, state: &ClusterState, config: &SlotConfig) -> bool {
        let in_sync = config.in_state(MemberState::InSync).filter(|m| state.serves(m.session)).count();
        in_sync >= usize::from(self.min_copies).max(1)
    }

    /// The slot's configuration, if enough copies are in sync.
    pub(crate) fn config(&self, slot: SlotIndex) -> Result<Option<Arc<SlotConfig>>, IoFailure> {
        let state = self.current()?;
        let config = state.slot(self.copies, slot).filter(|config| self.is_enough(&state, config));
        Ok(config.cloned())
    }

    /// As [`Owner::config`], waiting until enough copies are in sync.
    async fn config_when_enough(&self, slot: SlotIndex) -> Result<Arc<SlotConfig>, IoFailure> {
        let mut waiting = None;
        loop {
            if let Some(config) = self.config(slot)? {
                return Ok(config);
            }
            waiting.get_or_insert_with(|| self.waiting_for_copies());
            self.context.view.change(LOOK_AGAIN).await;
        }
    }

    pub(crate) fn fence(&self, config: u64) -> Fence {
        Fence {
            to_start: 0,
            vdi: self.vdi.0,
            generation: self.generation.0,
            config,
            epoch: self.context.view.state().epoch().0,
        }
    }

    fn object_request(&self, to: Session, name: ObjectRef, config: u64) -> ObjectRequest {
        let fence = Fence { to_start: to.start, ..self.fence(config) };
        ObjectRequest { fence, object: name, offset: 0, len: 0 }
    }

    /// Finds out an object's version and makes its handle. All in-sync copies have the same one.
    pub(crate) async fn open_object(&self, name: ObjectRef) -> Result<Object, IoFailure> {
        let slot = SlotIndex(name.slot);
        let meta = self
            .ask_in_sync(slot, op::STAT, |to, config| {
                self.object_request(to, name, config).encode_to_vec().into()
            })
            .await?
            .0;
        let version = VersionRef::decode(meta).map_err(|_| IoFailure::Io)?;
        Ok(Object::new(name, version.into()))
    }

    /// Asks one in-sync member after the other until one answers; waits while none is there.
    pub(crate) async fn ask_in_sync(
        &self,
        slot: SlotIndex,
        op: u16,
        meta: impl Fn(Session, u64) -> Bytes,
    ) -> Result<(Bytes, Payload), IoFailure> {
        let mut refusals = 0;
        loop {
            let state = self.current()?;
            let members: Vec<(Session, u64)> = state
                .slot(self.copies, slot)
                .into_iter()
                .flat_map(|c| c.in_state(MemberState::InSync).map(|m| (m.session, c.version)))
                .filter(|(s, _)| state.serves(*s))
                .collect();
            let own_first = |s: &Session| *s != self.context.me();
            let mut order = members.clone();
            order.sort_by_key(|(s, _)| own_first(s));
            for (to, config) in order {
                match self.context.ask(to, op, meta(to, config), Payload::empty()).await {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Status(Status::NotFound | Status::Damaged)) => refusals += 1,
                    Err(_) => {}
                }
            }
            if refusals > 3 * members.len().max(1) {
                return Err(IoFailure::Io);
            }
            self.pause().await;
        }
    }

    async fn pause(&self) {
        self.context.view.change(RETRY_DELAY).await;
    }

    /// Writes to an object; returns when every member has it.
    pub(crate) async fn write_object(
        &self,
        object: &Object,
        offset: u32,
        change: Change,
        request: Option<RequestId>,
    ) -> Result<(), IoFailure> {
        if let Some(id) = request
            && self.was_applied(id, &object.name, offset)
        {
            return Ok(());
        }
        let len = change.len();
        let _turn = object.turns.enter(Access::Write, offset, len).await;
        let config = self.config_when_enough(object.slot).await?;
        let (kind, payload) = match change {
            Change::Data(payload) => (WriteKind::Data, payload),
            Change::Zero { punch: false, .. } => (WriteKind::Zero, Payload::empty()),
            Change::Zero { punch: true, .. } => (WriteKind::Punch, Payload::empty()),
        };
        let mut sent = Vec::with_capacity(config.members.len());
        let mut message;
        let place;
        {
            let mut newest = object.newest.lock();
            let (number, stable) = self.stability.begin();
            let predecessor = newest.version;
            let version = Version { generation: self.generation, seq: predecessor.seq + 1 };
            let confirmed = object.confirmed.clone();
            place = Place { predecessor, version, _open: confirmed.begin(version), confirmed };
            message = WriteRequest {
                fence: self.fence(config.version),
                object: object.name,
                predecessor: predecessor.into(),
                version: version.into(),
                offset,
                len,
                kind: kind.into(),
                request,
                number,
                stable,
                inherited_done: self.inherited_done(),
            };
            *newest = Newest { version, number };
            for member in &config.members {
                let under_way = self.context.send_write(member.session, &message, &payload);
                sent.push((member.session, config.version, under_way));
            }
        }
        let number = message.number;
        let result = self
            .all_members(object.slot, sent, Errand::Write(place), |to, config| {
                message.fence = self.fence(config);
                self.context.send_write(to, &message, &payload)
            })
            .await;
        self.finished(number, request);
        let members = result?;
        self.mark_dirty(object.slot, &members);
        Ok(())
    }

    /// Creates an object at every member, durably.
    pub(crate) async fn create_object(&self, name: ObjectRef) -> Result<Object, IoFailure> {
        self.config_when_enough(SlotIndex(name.slot)).await?;
        self.on_all_members(op::CREATE, name).await?;
        Ok(Object::new(name, Version::default()))
    }

    /// Removes an object's birth from every member.
    pub(crate) async fn remove_object(&self, name: ObjectRef) -> Result<(), IoFailure> {
        self.on_all_members(op::REMOVE, name).await
    }

    async fn on_all_members(&self, op: u16, name: ObjectRef) -> Result<(), IoFailure> {
        let send = |to: Session, config: u64| {
            let meta = self.object_request(to, name, config).encode_to_vec().into();
            let answer = self.context.ask(to, op, meta, Payload::empty());
            Sent::Other(answer.map(|a| a.map(|_| WriteReply::default())).boxed())
        };
        let errand = if op == op::CREATE { Errand::Create } else { Errand::Remove };
        self.all_members(SlotIndex(name.slot), Vec::new(), errand, send).await.map(drop)
    }

    /// Waits until all members of the slot's current configuration have answered under it, and enough of them are in
    /// sync, sending (again) to those that have not; returns them. A full disk is waited for, unless nothing depends
    /// on the object yet.
    async fn all_members(
        &self,
        slot: SlotIndex,
        sent: Vec<(Session, u64, Sent)>,
        errand: Errand,
        mut send: impl FnMut(Session, u64) -> Sent,
    ) -> Result<Vec<Session>, IoFailure> {
        let mut answers = Answers::default();
        let mut under_way: Vec<Session> = Vec::with_capacity(sent.len());
        let mut pending: FuturesUnordered<BoxFuture<'static, MemberResult>> = FuturesUnordered::new();
        for (session, version, sent) in sent {
            match sent {
                Sent::Done(Ok(_)) => {
                    answers.note(session, version);
                    errand.note(session);
                }
                sent => {
                    under_way.push(session);
                    pending.push(errand.answered_or_rested(session, version, sent));
                }
            }
        }
        let mut changes = self.context.view.subscribe();
        let mut gaps = 0;
        let mut missing: Vec<Session> = Vec::new();
        let mut waiting = None;
        loop {
            changes.mark_unchanged();
            let state = self.current()?;
            let config = state.slot(self.copies, slot);
            let is_enough = config.is_some_and(|config| self.is_enough(&state, config));
            if let Some(config) = config {
                let absent = |s: &Session| !state.serves(*s) || under_way.contains(s);
                let to: Vec<Session> =
                    config.members.iter().map(|m| m.session).filter(|s| !absent(s)).collect();
                for session in to.into_iter().filter(|s| !answers.counts(*s, config.version)) {
                    under_way.push(session);
                    let sent = send(session, config.version);
                    pending.push(errand.answered_or_rested(session, config.version, sent));
                }
                if is_enough && answers.all_of(config) {
                    return Ok(answers.sessions());
                }
            }
            if is_enough {
                waiting = None;
            } else {
                waiting.get_or_insert_with(|| self.waiting_for_copies());
            }
            tokio::select! {
                // Cancel-safe: `next` only takes what is ready, `changed` only marks as seen.
                Some((session, version, result)) = pending.next(), if !pending.is_empty() => {
                    under_way.retain(|s| *s != session);
                    match result {
                        Ok(_) => {
                            answers.note(session, version);
                            errand.note(session);
                        }
                        Err(Failure::Status(Status::NoSpace)) if matches!(errand, Errand::Create) => {
                            return Err(IoFailure::NoSpace);
                        }
                        Err(Failure::Status(status @ (Status::Gap | Status::NotFound | Status::Damaged))) => {
                            if status == Status::NotFound && !missing.contains(&session) {
                                missing.push(session);
                            }
                            if self.config(slot)?.is_some_and(|c| {
                                c.in_state(MemberState::InSync).all(|m| missing.contains(&m.session))
                            }) {
                                // Its copies were given up with their nodes (`dog cluster recover --force`).
                                return Err(IoFailure::Io);
                            }
                            gaps += 1;
                            if gaps > GAPS_MAX {
                                gaps = 0;
                                self.demote(session, slot).await;
                            }
                        }
                        Err(_) => {}
                    }
                }
                changed = changes.changed() => changed.map_err(|_| IoFailure::NotOwner)?,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Tells the log that a member lacks what everyone has confirmed.
    async fn demote(&self, session: Session, slot: SlotIndex) {
        let Ok(state) = self.current() else { return };
        let Some(version) = state.slot(self.copies, slot).map(|c| c.version) else { return };
        tracing::error!(%session, %slot, vdi = %self.vdi, "a copy lacks acknowledged writes; it is taken out");
        let entry = ClusterEntry::Demote { session, copies: self.copies, slot, version };
        if let Err(error) = self.context.log.propose(entry, Duration::from_secs(1)).await {
            tracing::warn!(%error, "could not report a copy that lacks writes");
        }
    }

    /// Reads from an object.
    pub(crate) async fn read_object(
        &self,
        object: &Object,
        offset: u32,
        len: u32,
    ) -> Result<Vec<Segment>, IoFailure> {
        let _turn = object.turns.enter(Access::Read, offset, len).await;
        let mut attempts = 0;
        loop {
            let segments = match self.read_own(object, offset, len).await? {
                Some(segments) => segments,
                None => self.read_elsewhere(object, offset, len, &mut attempts).await?,
            };
            // Checked after reading: had the lease ended before, somebody else might have written since.
            if self.context.lease.is_valid()
                || planted(Mutant::NoLeaseCheck)
                || self.confirmed(object).await?
            {
                self.current()?;
                return Ok(segments);
            }
            self.pause().await;
        }
    }

    /// From this node's own copy, if it is in sync and undamaged.
    async fn read_own(
        &self,
        object: &Object,
        offset: u32,
        len: u32,
    ) -> Result<Option<Vec<Segment>>, IoFailure> {
        let Some(replica) = &self.context.replica else { return Ok(None) };
        let state = self.current()?;
        if replica.role(&state, self.copies, object.slot) != replica::Role::InSync {
            return Ok(None);
        }
        let Ok(key) = key_of(&object.name) else { return Ok(None) };
        replica.counters.reads.fetch_add(1, Ordering::Relaxed);
        replica.counters.bytes_read.fetch_add(len.into(), Ordering::Relaxed);
        let read = match replica.store().read_nowait(&key, offset.into(), len) {
            Some(read) => read,
            None => {
                let store = replica.store().clone();
                let read = crate::machine::blocking(move || store.read(&key, offset.into(), len));
                read.await.map_err(|_| IoFailure::NotOwner)?
            }
        };
        match read {
            Ok(out) => Ok(Some(out.segments)),
            Err(error) => {
                let status = replica.status(error);
                if status == Status::Damaged {
                    self.heal_later(object.name);
                }
                Ok(None)
            }
        }
    }

    async fn read_elsewhere(
        &self,
        object: &Object,
        offset: u32,
        len: u32,
        attempts: &mut u32,
    ) -> Result<Vec<Segment>, IoFailure> {
        loop {
            let state = self.current()?;
            let others: Vec<(Session, u64)> = state
                .slot(self.copies, object.slot)
                .into_iter()
                .flat_map(|c| c.in_state(MemberState::InSync).map(|m| (m.session, c.version)))
                .filter(|(s, _)| *s != self.context.me() && state.serves(*s))
                .collect();
            let first = *attempts as usize;
            *attempts += 1;
            for i in 0..others.len() {
                let (to, config) = others[(first + i) % others.len()];
                *attempts += 1;
                let request = ObjectRequest { offset, len, ..self.object_request(to, object.name, config) };
                let meta = request.encode_to_vec().into();
                match self.context.ask(to, op::READ, meta, Payload::empty()).await {
                    Ok((meta, payload)) => {
                        if let Some(segments) = unpack_verified(meta, &payload, len) {
                            return Ok(segments);
                        }
                    }
                    Err(Failure::Status(Status::Damaged)) => self.heal_later(object.name),
                    Err(_) => {}
                }
            }
            // All copies are damaged, or the object is gone everywhere: that is no passing state.
            if *attempts > 64 + 8 * others.len() as u32 && self.is_lost(object).await? {
                return Err(IoFailure::Io);
            }
            self.pause().await;
            if replica_is_in_sync(self, object)?
                && let Some(segments) = self.read_own(object, offset, len).await?
            {
                return Ok(segments);
            }
        }
    }

    /// Whether every in-sync copy says that the object is damaged or not there.
    async fn is_lost(&self, object: &Object) -> Result<bool, IoFailure> {
        let state = self.current()?;
        let Some(config) = state.slot(self.copies, object.slot) else { return Ok(false) };
        let mut any = false;
        for member in config.in_state(MemberState::InSync).filter(|m| state.serves(m.session)) {
            any = true;
            let meta =
                self.object_request(member.session, object.name, config.version).encode_to_vec().into();
            match self.context.ask(member.session, op::VERIFY, meta, Payload::empty()).await {
                Err(Failure::Status(Status::NotFound | Status::Damaged | Status::Io)) => {}
                Ok((meta, _)) => {
                    let reply = wire::peer::TableReply::decode(meta).map_err(|_| IoFailure::Io)?;
                    if reply.damaged.is_empty() {
                        return Ok(false);
                    }
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(any)
    }

    /// Asks every in-sync member whether anybody has superseded this owner; without a lease that is how a
    /// read is known to be current (rule 8).
    async fn confirmed(&self, object: &Object) -> Result<bool, IoFailure> {
        let state = self.current()?;
        let Some(config) = state.slot(self.copies, object.slot) else { return Ok(false) };
        let ask = |to: Session| {
            let meta = self.object_request(to, object.name, config.version).encode_to_vec().into();
            self.context.ask(to, op::CONFIRM, meta, Payload::empty())
        };
        let answers = config.in_state(MemberState::InSync).map(|m| ask(m.session));
        Ok(futures::future::join_all(answers).await.iter().all(Result::is_ok))
    }
}

fn replica_is_in_sync(owner: &Owner, object: &Object) -> Result<bool, IoFailure> {
    let state = owner.current()?;
    let replica = owner.context.replica.as_ref();
    Ok(replica.is_some_and(|r| r.role(&state, owner.copies, object.slot) == replica::Role::InSync))
}

impl Errand {
    /// A member has done it.
    fn note(&self, session: Session) {
        if let Self::Write(place) = self {
            place.confirmed.note(session, place.version);
        }
    }

    /// A member's answer; after a refusal or a lost connection only when it makes sense to send again. Called when it
    /// has been sent.
    fn answered_or_rested(
        &self,
        session: Session,
        version: u64,
        sent: Sent,
    ) -> BoxFuture<'static, MemberResult> {
        let before = match self {
            Self::Write(place) if place.confirmed.is_on_its_way(session, place.predecessor) => {
                Some((place.confirmed.clone(), place.predecessor))
            }
            Self::Write(_) | Self::Create | Self::Remove => None,
        };
        let answer = async move {
            let mut result = sent.result().await;
            match (&result, before) {
                (Ok(_), _) => {}
                (Err(Failure::Status(Status::Gap)), Some((confirmed, predecessor))) => {
                    // It has overtaken what it follows, and says nothing of what the copy lacks.
                    result = Err(Failure::Status(Status::Busy));
                    let answered = confirmed.until(session, predecessor);
                    _ = tokio::time::timeout(LOOK_AGAIN, answered).await;
                }
                (Err(Failure::Status(Status::NoSpace)), _) => tokio::time::sleep(FULL_DELAY).await,
                (Err(_), _) => tokio::time::sleep(RETRY_DELAY).await,
            }
            (session, version, result)
        };
        answer.boxed()
    }
}

/// The segments of a READ's answer, if it is well formed and its bytes match their checksums.
fn unpack_verified(meta: Bytes, payload: &Payload, len: u32) -> Option<Vec<Segment>> {
    payload.verify().ok()?;
    let reply = ReadReply::decode(meta).ok()?;
    replica::unpack(&reply, payload.data(), len)
}
