//! Compares a VDI's copies with each other and its map with what nodes hold; repairs on request.
//!
//! Called by the admin API through the VDI's owner, who alone can tell a copy that is behind from one that
//! is being written.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use prost::Message;
use wire::frame::Payload;
use wire::id::{ObjectKind, Session, SlotIndex};
use wire::peer::{
    Fence, ListReply, ListVdiRequest, ObjectRef, ObjectRequest, OnDisk, Status, TableReply, op,
};

use super::context::{Failure, LOOK_AGAIN};
use super::owner::{IoFailure, Owner};
use super::takeover::Block;
use crate::cluster::slots::MemberState;
use crate::store::BlockEntry;

/// How often a copy that cannot be read is looked at again before it is reported.
const UNREADABLE_TIMES: u32 = 10;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A copy's bytes do not match their checksums.
    Damaged { object: ObjectRef, session: Session, blocks: usize },
    /// An in-sync copy is missing.
    Missing { object: ObjectRef, session: Session },
    /// In-sync copies differ.
    Differs { object: ObjectRef },
    /// A node holds an object that the map does not name.
    Orphan { object: ObjectRef, session: Session },
    /// Fewer copies than there should be are in sync.
    Degraded { object: ObjectRef, in_sync: usize },
    /// A copy could not be read.
    Unreadable { object: ObjectRef, session: Session },
}

impl Owner {
    /// Checks one object; with `repair` also heals it.
    pub(crate) async fn check_object(
        &self,
        object: ObjectRef,
        repair: bool,
    ) -> Result<Vec<Finding>, IoFailure> {
        self.with_object_alone(&object, async || {
            let mut findings = self.inspect(object).await?;
            let bad = |f: &Finding| !matches!(f, Finding::Degraded { .. } | Finding::Unreadable { .. });
            if repair && findings.iter().any(bad) {
                self.heal(object).await?;
                findings = self.inspect(object).await?;
            }
            Ok(findings)
        })
        .await
    }

    async fn inspect(&self, object: ObjectRef) -> Result<Vec<Finding>, IoFailure> {
        for _ in 0..UNREADABLE_TIMES {
            let findings = self.inspect_once(object).await?;
            if !findings.iter().any(|f| matches!(f, Finding::Unreadable { .. })) {
                return Ok(findings);
            }
            // The configuration is changing under us, or a node is on its way out: that passes.
            self.context.view.change(LOOK_AGAIN).await;
        }
        self.inspect_once(object).await
    }

    async fn inspect_once(&self, object: ObjectRef) -> Result<Vec<Finding>, IoFailure> {
        let state = self.current()?;
        let Some(config) = state.slot(self.copies, SlotIndex(object.slot)) else { return Ok(Vec::new()) };
        let mut findings = Vec::new();
        let mut versions = HashSet::new();
        let members: Vec<Session> =
            config.in_state(MemberState::InSync).map(|m| m.session).filter(|s| state.serves(*s)).collect();
        if members.len() < usize::from(self.copies.get()) {
            findings.push(Finding::Degraded { object, in_sync: members.len() });
        }
        for session in members {
            let fence = Fence { to_start: session.start, ..self.fence(config.version) };
            let request = ObjectRequest { fence, object, offset: 0, len: 0 }.encode_to_vec();
            match self.context.ask(session, op::VERIFY, request.clone().into(), Payload::empty()).await {
                Ok((meta, _)) => {
                    let verified = TableReply::decode(meta).map_err(|_| IoFailure::Io)?;
                    let blocks = verified.damaged.len();
                    match verified.on_disk() {
                        OnDisk::Gone => findings.push(Finding::Missing { object, session }),
                        OnDisk::Other => findings.push(Finding::Damaged { object, session, blocks: 0 }),
                        OnDisk::Same if blocks == 0 => {}
                        OnDisk::Same => findings.push(Finding::Damaged { object, session, blocks }),
                    }
                    let table = self.context.ask(session, op::TABLE, request.into(), Payload::empty()).await;
                    if let Ok((meta, _)) = table {
                        let table = TableReply::decode(meta).map_err(|_| IoFailure::Io)?;
                        versions.insert((table.version, table.entries));
                    }
                }
                Err(Failure::Status(Status::NotFound)) => {
                    findings.push(Finding::Missing { object, session });
                }
                Err(Failure::Status(Status::Damaged)) => {
                    findings.push(Finding::Damaged { object, session, blocks: 0 });
                }
                Err(_) => findings.push(Finding::Unreadable { object, session }),
            }
        }
        if versions.len() > 1 {
            findings.push(Finding::Differs { object });
        }
        Ok(findings)
    }

    /// Mends damaged and missing copies from sound ones, and makes those that differ the same. Nobody else
    /// may touch the object meanwhile.
    pub(crate) async fn heal(&self, object: ObjectRef) -> Result<(), IoFailure> {
        let mut failed = None;
        for finding in self.inspect(object).await? {
            let (Finding::Damaged { session, .. } | Finding::Missing { session, .. }) = finding else {
                continue;
            };
            match self.mend_copy(object, session).await {
                Ok(()) => {}
                // Others may be better off.
                Err(IoFailure::Io) => failed = Some(IoFailure::Io),
                Err(failure) => return Err(failure),
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        self.settle(object, &[]).await.map(drop)
    }

    /// Gives `to` a sound copy's blocks where its own are damaged, or all of them where it has nothing.
    pub(crate) async fn mend_copy(&self, object: ObjectRef, to: Session) -> Result<(), IoFailure> {
        let state = self.current()?;
        let Some(config) = state.slot(self.copies, SlotIndex(object.slot)) else { return Ok(()) };
        let request = |session: Session| {
            let fence = Fence { to_start: session.start, ..self.fence(config.version) };
            ObjectRequest { fence, object, offset: 0, len: 0 }.encode_to_vec()
        };
        let verify = |session: Session| async move {
            let answer =
                self.context.ask(session, op::VERIFY, request(session).into(), Payload::empty()).await;
            let (meta, _) = answer.ok()?;
            TableReply::decode(meta).ok()
        };
        let mut own = verify(to).await;
        if let Some(known) = &own
            && (known.on_disk() != OnDisk::Same || !known.damaged.is_empty())
        {
            // What is wrong on disk alone its holder puts back by itself, however little is patched.
            let version = known.version.into();
            self.patch(to, &object, version, Vec::new(), Payload::empty(), Vec::new()).await?;
            own = verify(to).await;
            if own.as_ref().is_some_and(|o| o.on_disk() == OnDisk::Same && o.damaged.is_empty()) {
                tracing::info!(vdi = %self.vdi, object = %object.oid(), %to, "a copy was put back on disk");
                return Ok(());
            }
        }
        let mut sound = None;
        for member in config.in_state(MemberState::InSync).map(|m| m.session).filter(|s| *s != to) {
            if let Some(reply) = verify(member).await
                && reply.damaged.is_empty()
                && sound.is_none_or(|(_, v)| v < reply.version.into())
            {
                sound = Some((member, reply.version.into()));
            }
        }
        let Some((from, version)) = sound else { return Err(IoFailure::Io) };
        if own.is_none() {
            for op in [op::REMOVE, op::CREATE] {
                let asked = self.context.ask(to, op, request(to).into(), Payload::empty());
                asked.await.map_err(|_| IoFailure::Io)?;
            }
        }
        let answer = self.context.ask(from, op::TABLE, request(from).into(), Payload::empty()).await;
        let (meta, _) = answer.map_err(|_| IoFailure::Io)?;
        let table = TableReply::decode(meta).map_err(|_| IoFailure::Io)?.entries;
        let damaged: Option<HashSet<u32>> = own.map(|o| o.damaged.into_iter().collect());
        for (index, entry) in (0u32..).zip(table.chunks_exact(2)) {
            if damaged.as_ref().is_some_and(|d| !d.contains(&index)) {
                continue;
            }
            let entry = BlockEntry { crc: entry[0], stamp: entry[1] };
            let payload = if entry.is_present() {
                let Block::Data(block) = self.block(from, &object, index).await? else {
                    return Err(IoFailure::Io);
                };
                Payload::new(0, block.into())
            } else {
                Payload::empty()
            };
            let blocks = vec![index, entry.crc, entry.stamp];
            self.patch(to, &object, version, blocks, payload, Vec::new()).await?;
        }
        tracing::info!(vdi = %self.vdi, object = %object.oid(), %to, "mended a copy");
        Ok(())
    }

    /// What nodes hold of the VDI without the map naming it.
    pub(crate) async fn orphans(self: &Arc<Self>, repair: bool) -> Result<Vec<Finding>, IoFailure> {
        let mut held: BTreeMap<(u128, u64), (ObjectRef, Vec<Session>)> = BTreeMap::new();
        let state = self.current()?;
        let holders = state.nodes().filter(|n| !n.spec.gateway).filter_map(|n| n.live_session());
        for session in holders.filter(|s| state.serves(*s)) {
            let mut after = None;
            loop {
                let request = ListVdiRequest { vdi: self.vdi.0, after }.encode_to_vec();
                let answer = self.context.ask(session, op::LIST_VDI, request.into(), Payload::empty()).await;
                let Ok((meta, _)) = answer else { break };
                let list = ListReply::decode(meta).map_err(|_| IoFailure::Io)?;
                for listed in &list.objects {
                    let key = (listed.object.oid().0, listed.object.birth);
                    held.entry(key).or_insert((listed.object, Vec::new())).1.push(session);
                }
                after = list.objects.last().map(|l| l.object).filter(|_| list.more);
                if after.is_none() {
                    break;
                }
            }
        }
        let mut findings = Vec::new();
        for (object, sessions) in held.into_values() {
            // Births of this generation may be on their way into the map.
            let old = object.birth().generation() < self.generation;
            if !old || self.is_mapped(&object).await? {
                continue;
            }
            if repair {
                self.remove_object(object).await?;
            } else {
                findings.extend(sessions.into_iter().map(|session| Finding::Orphan { object, session }));
            }
        }
        Ok(findings)
    }

    pub(crate) async fn is_mapped(&self, object: &ObjectRef) -> Result<bool, IoFailure> {
        match object.oid().kind() {
            Some(ObjectKind::Data) => {
                let entry = self.lookup(object.oid().index()).await?;
                Ok(entry.is_some_and(|e| e.birth == object.birth() && e.creator == object.oid().creator()))
            }
            Some(ObjectKind::Map) => {
                let (level, number) =
                    ((object.oid().index() >> 48) as u8, object.oid().index() & ((1 << 48) - 1));
                Ok(self.page_birth(level, number).await? == Some(object.birth()))
            }
            None => Ok(true),
        }
    }
}
