//! One slot catches up: what the source lists is compared, and what differs is pulled.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use wire::frame::Payload;
use wire::id::{Birth, Oid, Session, SlotIndex, Version};
use wire::peer::{
    AppliedRequest, CatchUpRequest, LendReply, ListReply, Listed, ObjectRef, PullReply, Status, op,
};
use wire::policy::Copies;

use super::Recovery;
use crate::cluster::log::Applied;
use crate::cluster::slots::MemberState;
use crate::cluster::state::ClusterState;
use crate::mutant::{Mutant, planted};
use crate::replica::{Replica, key_of};
use crate::store::{BlockEntry, Error, ObjectKey};
use crate::vdi::context::Failure;

/// How often to ask a source again that is busy, before the slot's turn is over.
const ASK_TIMES: u32 = 40;
/// How long to wait in between.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// Blocks lent at once, and how often for one object in one turn.
const LEND_BLOCKS_MAX: usize = 512;
const LEND_TIMES: u32 = 8;

type Name = (Oid, Birth);

/// A slot's turn has ended early; it is tried again later.
struct NotNow;

/// What a copy holds that was there before.
struct Own {
    version: Option<Version>,
    suspect: Option<u64>,
}

impl Recovery {
    /// One turn of a slot: true if all its objects are equal to the source's and stay so, and this node
    /// has committed itself to hear of any gap.
    pub(super) async fn catch_up(
        &self,
        applied: &Applied<ClusterState>,
        copies: Copies,
        slot: SlotIndex,
        since: u64,
    ) -> bool {
        let Some(config) = applied.state.slot(copies, slot) else { return false };
        let sources: Vec<Session> = config
            .in_state(MemberState::InSync)
            .map(|m| m.session)
            .filter(|s| *s != self.context.me() && applied.state.serves(*s))
            .collect();
        // Another one each time: a source may be unable for reasons of its own.
        let turn = slot.0 as usize + self.turns.fetch_add(1, Ordering::Relaxed);
        let Some(source) = sources.get(turn % sources.len().max(1)).copied() else { return false };
        let (state, applied) = (&applied.state, applied.index);
        let pass = Pass { recovery: self, state, source, copies, slot, since, applied };
        if planted(Mutant::AdmitEarly) {
            return true;
        }
        if pass.run().await.is_err() {
            return false;
        }
        self.replica.with_fill(copies, slot, since, |fill| fill.commit()).unwrap_or(false)
    }
}

struct Pass<'a> {
    recovery: &'a Recovery,
    state: &'a ClusterState,
    source: Session,
    copies: Copies,
    slot: SlotIndex,
    since: u64,
    applied: u64,
}

impl Pass<'_> {
    async fn run(&self) -> Result<(), NotNow> {
        // Begin to listen before asking what there is.
        self.fill(|_| ())?;
        let mut listed = self.list().await?;
        // What a deleted VDI left goes by itself, here and there, whatever has become of it.
        listed.retain(|l| !self.state.is_deleted(l.object.oid().creator()));
        let mut own = self.own().await?;
        // Objects in use first: their writes wait for us.
        listed.sort_by_key(|l| {
            let vdi = self.state.vdi(l.object.oid().creator());
            (vdi.is_none_or(|v| v.owner.session.is_none()), l.object.oid(), l.object.birth)
        });
        let mut there: HashMap<Name, ObjectRef> = HashMap::new();
        for item in &listed {
            let name = (item.object.oid(), item.object.birth());
            there.insert(name, item.object);
            let mine = own.remove(&name);
            if self.fill(|fill| fill.is_filled(name))? {
                continue;
            }
            let equal = mine
                .as_ref()
                .is_some_and(|m| m.suspect.is_none() && m.version == Some(Version::from(item.version)));
            if equal {
                self.fill(|fill| fill.found_equal(name))?;
                continue;
            }
            self.pull(item.object, mine).await?;
        }
        // What the source does not have was deleted, or never came to be.
        for (name, _) in own {
            if !self.fill(|fill| fill.is_filled(name))? && !planted(Mutant::KeepUnlisted) {
                self.remove(name).await?;
            }
        }
        // What came to be, or was written too early, since the list was made.
        for name in self.fill(|fill| fill.unfilled())? {
            match there.get(&name) {
                _ if self.state.is_deleted(name.0.creator()) => self.fill(|fill| fill.removed(name))?,
                Some(object) => self.pull(*object, None).await?,
                None => return Err(NotNow),
            }
        }
        Ok(())
    }

    fn fill<T>(&self, f: impl FnOnce(&mut crate::replica::SlotFill) -> T) -> Result<T, NotNow> {
        self.recovery.replica.with_fill(self.copies, self.slot, self.since, f).ok_or(NotNow)
    }

    fn request(&self) -> CatchUpRequest {
        CatchUpRequest {
            to_start: self.source.start,
            copies: self.copies.get().into(),
            slot: self.slot.0,
            since: self.since,
            applied: self.applied,
            ..CatchUpRequest::default()
        }
    }

    async fn ask(
        &self,
        op: u16,
        request: &CatchUpRequest,
        payload: Payload,
    ) -> Result<(Bytes, Payload), Failure> {
        let mut times = 0;
        loop {
            let meta = request.encode_to_vec().into();
            match self.recovery.context.ask(self.source, op, meta, payload.clone()).await {
                Err(Failure::Status(Status::Busy)) if times < ASK_TIMES => {
                    times += 1;
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    async fn list(&self) -> Result<Vec<Listed>, NotNow> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let request = CatchUpRequest { after, ..self.request() };
            let (meta, _) = self.ask(op::LIST_SLOT, &request, Payload::empty()).await.map_err(|_| NotNow)?;
            let reply = ListReply::decode(meta).map_err(|_| NotNow)?;
            after = reply.objects.last().map(|l| l.object).filter(|_| reply.more);
            all.extend(reply.objects);
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    async fn own(&self) -> Result<HashMap<Name, Own>, NotNow> {
        let replica = self.recovery.replica.clone();
        let (copies, slot) = (self.copies, self.slot);
        let listed = crate::machine::blocking(move || {
            let suspects: HashMap<ObjectKey, u64> = replica.store().suspects().into_iter().collect();
            let stats = replica.store().list_slot(copies, slot).map_err(|e| replica.status(e))?;
            let own = stats.into_iter().map(|s| {
                let key = ObjectKey { copies, slot, oid: s.oid, birth: s.birth };
                let version = s.content.map(|(version, _)| version);
                ((s.oid, s.birth), Own { version, suspect: suspects.get(&key).copied() })
            });
            Ok::<_, Status>(own.collect())
        });
        listed.await.map_err(|_| NotNow)?.map_err(|_| NotNow)
    }

    /// Makes this node's copy of an object equal to the source's.
    async fn pull(&self, object: ObjectRef, mine: Option<Own>) -> Result<(), NotNow> {
        let Ok(key) = key_of(&object) else { return Err(NotNow) };
        let name = (key.oid, key.birth);
        let own = mine.as_ref().and_then(|m| m.version).unwrap_or_default();
        let owner = self.state.vdi(key.oid.creator()).map(|v| v.owner).filter(|o| o.session.is_some());
        let at_least = self.fill(|fill| fill.begin(name, own, owner.map(|o| o.generation)))?;
        let mut entries = self.prepare(key, object.size, mine).await?;
        let mut lent = 0;
        loop {
            let request = CatchUpRequest {
                object: Some(object),
                at_least: Some(at_least.into()),
                entries: entries.iter().flat_map(|e| [e.crc, e.stamp]).collect(),
                lends: true,
                ..self.request()
            };
            let (meta, payload) = match self.ask(op::PULL, &request, Payload::empty()).await {
                Ok(answer) => answer,
                Err(Failure::Status(Status::NotFound)) => return self.remove(name).await,
                Err(_) => {
                    self.fill(|fill| fill.gap(name, at_least))?;
                    return Err(NotNow);
                }
            };
            let reply = PullReply::decode(meta).map_err(|_| NotNow)?;
            if !reply.damaged.is_empty() {
                lent += 1;
                if lent > LEND_TIMES || !self.lend(object, key, reply.damaged).await {
                    self.fill(|fill| fill.gap(name, at_least))?;
                    return Err(NotNow);
                }
                continue;
            }
            let bytes = payload.len() as u64;
            for block in reply.blocks.chunks_exact(3) {
                if let Some(entry) = entries.get_mut(block[0] as usize) {
                    *entry = BlockEntry { crc: block[1], stamp: block[2] };
                }
            }
            self.put(key, reply.blocks, payload).await?;
            self.recovery.progress.bytes_done.fetch_add(bytes, Ordering::Relaxed);
            self.recovery.throttle.spend(bytes).await;
            if !reply.more {
                self.finish(key, reply.version.into(), reply.applied).await?;
                self.recovery.progress.objects_done.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    /// Offers the source what is damaged there and sound here; whether it took any of it.
    async fn lend(&self, object: ObjectRef, key: ObjectKey, damaged: Vec<u32>) -> bool {
        let replica = self.recovery.replica.clone();
        let read = crate::machine::blocking(move || {
            let damaged = damaged.into_iter().take(LEND_BLOCKS_MAX);
            let read = damaged.filter_map(|index| replica.store().read_blocks(&key, &[index]).ok());
            read.flatten().collect::<Vec<_>>()
        });
        let Ok(blocks) = read.await else { return false };
        if blocks.is_empty() {
            return false;
        }
        let lent = blocks.iter().flat_map(|b| [b.index, b.entry.crc, b.entry.stamp]).collect();
        let data: Vec<u8> = blocks.iter().filter_map(|b| b.data.as_deref()).flatten().copied().collect();
        let request = CatchUpRequest { object: Some(object), lent, ..self.request() };
        match self.ask(op::LEND, &request, Payload::new(0, data.into())).await {
            Ok((meta, _)) => LendReply::decode(meta).is_ok_and(|reply| reply.taken > 0),
            Err(_) => false,
        }
    }

    /// The copy's block table, as far as its blocks are sound; creates the copy if there is none.
    async fn prepare(&self, key: ObjectKey, size: u32, mine: Option<Own>) -> Result<Vec<BlockEntry>, NotNow> {
        let prepare = move |replica: &Replica| {
            let store = replica.store();
            let prepare = || -> Result<Vec<BlockEntry>, Error> {
                if mine.as_ref().is_some_and(|m| m.version.is_none()) {
                    // Its head is damaged: nothing of it can be told.
                    store.remove(&key)?;
                }
                store.create(&key, size)?;
                let mut table = store.table(&key)?;
                if let Some(mask) = mine.and_then(|m| m.suspect) {
                    for block in store.settle_torn(&key, mask)? {
                        // No sound block has this entry, so the source sends its own.
                        table[block as usize] = BlockEntry { crc: 0, stamp: 0 };
                    }
                }
                Ok(table)
            };
            prepare().map_err(|e| replica.status(e))
        };
        self.recovery.replica.while_catching_up(key, self.since, prepare).await.map_err(|_| NotNow)
    }

    async fn put(&self, key: ObjectKey, blocks: Vec<u32>, payload: Payload) -> Result<(), NotNow> {
        let put = move |replica: &Replica| replica.put_blocks(&key, &blocks, &payload);
        self.recovery.replica.while_catching_up(key, self.since, put).await.map_err(|_| NotNow)
    }

    /// In the object's lane: the copy has the source's version, then the writes kept meanwhile are applied.
    async fn finish(
        &self,
        key: ObjectKey,
        version: Version,
        applied: Vec<AppliedRequest>,
    ) -> Result<(), NotNow> {
        self.recovery.replica.finish_pull(key, self.since, version, applied).await.map_err(|_| NotNow)
    }

    async fn remove(&self, name: Name) -> Result<(), NotNow> {
        let key = ObjectKey { copies: self.copies, slot: self.slot, oid: name.0, birth: name.1 };
        let remove = move |replica: &Replica| replica.remove_copy(&key);
        self.recovery.replica.while_catching_up(key, self.since, remove).await.map_err(|_| NotNow)?;
        self.fill(|fill| fill.removed(name))
    }
}
