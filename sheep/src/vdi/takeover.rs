//! What a new owner does before its first read: seal, settle (rules 5, 6, 9).
//!
//! 1. Every node that may hold a copy records the new generation durably; nothing older lands after that.
//!    Each tells which objects were written since the last stable mark, and which are suspect after a crash.
//! 2. An object whose in-sync copies differ is rolled forward: the copy with the highest version has the
//!    longest prefix of the writes, and its blocks go to the others. A block that is damaged there is taken
//!    from another copy; if it is torn everywhere, what is there becomes the block: old or new, by sector.
//!    What an in-sync copy may have lost gets a version of this generation, so that no copy outside the set
//!    passes for equal because it has the version that was there before.
//! 3. Of the client requests that were applied only those count that an in-sync copy names, and each in-sync copy
//!    of the object is told of all of them: what another copy has may be gone, or never have been anywhere else.
//! 4. Everybody is told that the generation is settled. Only then requests begin.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::BytesMut;
use prost::Message;
use wire::checksum::BLOCK_SIZE;
use wire::frame::Payload;
use wire::id::{ObjectKind, Session, SlotIndex, Version};
use wire::peer::{
    AppliedList, AppliedRequest, Fence, ObjectRef, ObjectRequest, PatchRequest, ReadReply, SealReply,
    SealRequest, Status, TableReply, VdiRequest, op,
};

use super::context::{Failure, LOOK_AGAIN, RETRY_DELAY};
use super::owner::{IoFailure, Owner};
use super::settle::{Copy, Finding, Forward, believed, compare};
use super::tree::flatten;
use crate::cluster::slots::MemberState;
use crate::mutant::{Mutant, planted};
use crate::replica;
use crate::store::BlockEntry;

/// Objects settled at once.
const PARALLEL: usize = 8;
/// How often torn copies are looked at again before giving up for now.
const ROUNDS_MAX: u32 = 8;

/// What the holders say of an object.
struct Told {
    object: ObjectRef,
    /// Holders whose copies a crash may have touched.
    suspects: Vec<Session>,
    /// Requests that a holder has applied and that may come again.
    applied: Vec<(Session, AppliedRequest)>,
}

/// What came of making the copies of an object the same.
pub(crate) enum Outcome {
    /// They are, as far as it goes.
    Settled(Settled),
    /// There is no such object.
    Gone,
    /// Nobody in sync is there at present. The slot waits, and when it resumes every VDI is taken over anew.
    Waits,
}

/// An object whose in-sync copies are the same.
pub(crate) struct Settled {
    version: Version,
    /// The version before it got one of this generation.
    had: Version,
    /// Whose copies they are, and the version of each: another one where it went no further.
    holders: Vec<(Session, Version)>,
}

/// Why a member's copy cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    Gone,
    /// Its header or version is not as it was written.
    Damaged,
}

/// What comparing the copies of an object led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rolled {
    /// Something was changed, or could not be had: look again.
    LookAgain,
    /// What still differs is damaged on every copy.
    AsFarAsItGoes,
}

/// A block of a copy.
pub(crate) enum Block {
    Data(Vec<u8>),
    Damaged,
    /// The copy cannot be had at the moment, or has changed.
    Unknown,
}

impl Owner {
    /// Takes the VDI over. Ends early if somebody else becomes its owner.
    pub(crate) async fn take_over(self: &Arc<Self>) -> Result<(), IoFailure> {
        let began = std::time::Instant::now();
        let replies = if planted(Mutant::NoSeal) { HashMap::new() } else { self.seal_everywhere().await? };
        let mut objects: BTreeMap<(u128, u64), Told> = BTreeMap::new();
        for (holder, reply) in &replies {
            for unsettled in &reply.unsettled {
                let object = unsettled.object;
                let told = Told { object, suspects: Vec::new(), applied: Vec::new() };
                let told = objects.entry((object.oid().0, object.birth)).or_insert(told);
                told.suspects.extend(unsettled.suspect.then_some(*holder));
            }
        }
        for (holder, reply) in &replies {
            for applied in &reply.applied {
                if let Some(told) = objects.get_mut(&(applied.object.oid().0, applied.object.birth)) {
                    told.applied.push((*holder, *applied));
                }
            }
        }
        let count = objects.len();
        // The map's pages from the root down: whether an object was ever there is asked of the map.
        let (mut pages, data): (Vec<_>, Vec<_>) =
            objects.into_values().partition(|told| told.object.oid().kind() == Some(ObjectKind::Map));
        pages.sort_by_key(|told| std::cmp::Reverse(told.object.oid().index() >> 48));
        let mut settled = Vec::new();
        for told in pages {
            settled.push(self.settle_with_requests(told).await?);
        }
        {
            use futures::{StreamExt, TryStreamExt};
            let rest: Vec<_> = futures::stream::iter(data)
                .map(|told| self.settle_with_requests(told))
                .buffer_unordered(PARALLEL)
                .try_collect()
                .await?;
            settled.extend(rest);
        }
        // While a slot waits for its copies nobody knows which requests they have applied. Until then replicas
        // keep what they know of earlier generations.
        let state = self.current()?;
        let waits = state.slots().any(|(copies, _, config)| copies == self.copies && state.waits(config));
        let complete = settled.iter().all(Option::is_some) && (!waits || planted(Mutant::HeirToAll));
        self.inherit(settled.into_iter().flatten().flatten(), complete);
        self.tell_settled().await?;
        self.begin_serving();
        tracing::info!(
            vdi = %self.vdi, generation = %self.generation, objects = count,
            took_ms = began.elapsed().as_millis() as u64, "took a VDI over"
        );
        Ok(())
    }

    /// Settles an object; the client requests that it has applied and that may come again. `None` if nobody in
    /// sync could be asked.
    async fn settle_with_requests(&self, told: Told) -> Result<Option<Vec<AppliedRequest>>, IoFailure> {
        let settled = match self.settle(told.object, &told.suspects).await? {
            Outcome::Settled(settled) => settled,
            Outcome::Gone => return Ok(Some(Vec::new())),
            Outcome::Waits => return Ok(None),
        };
        let in_sync = |holder| settled.holders.iter().any(|(h, _)| *h == holder);
        let list = AppliedList { applied: believed(&told.applied, in_sync, settled.had) };
        for (holder, version) in settled.holders {
            if version != settled.version {
                // It could not be made the same, and has not applied all of them.
                continue;
            }
            let of_holder = told.applied.iter().filter(|(from, _)| *from == holder).map(|(_, a)| a);
            let knows: HashSet<&AppliedRequest> = of_holder.collect();
            if knows != list.applied.iter().collect() {
                self.hand_down(&told.object, holder, version, &list).await?;
            }
        }
        Ok(Some(list.applied))
    }

    /// Tells an in-sync copy which requests it has applied, until it knows or is in sync no longer.
    async fn hand_down(
        &self,
        object: &ObjectRef,
        to: Session,
        version: Version,
        applied: &AppliedList,
    ) -> Result<(), IoFailure> {
        loop {
            let state = self.current()?;
            let config = state.slot(self.copies, SlotIndex(object.slot));
            let Some(config) = config
                .filter(|c| c.member(to).is_some_and(|m| m.state == MemberState::InSync) && state.serves(to))
            else {
                return Ok(());
            };
            let request = PatchRequest {
                fence: Fence { to_start: to.start, ..self.fence(config.version) },
                object: *object,
                version: version.into(),
                applied: Some(applied.clone()),
                ..PatchRequest::default()
            };
            match self.context.ask(to, op::PATCH, request.encode_to_vec().into(), Payload::empty()).await {
                // Damaged, or gone: whoever reads it is told, and a copy in its place comes with its requests.
                Ok(_) | Err(Failure::Status(Status::NotFound | Status::Damaged)) => return Ok(()),
                Err(_) => self.context.view.change(RETRY_DELAY).await,
            }
        }
    }

    /// Tells everybody who may hold a copy, and has not been told, that the takeover is done.
    pub(crate) async fn tell_settled(&self) -> Result<(), IoFailure> {
        let untold = self.untold(&*self.current()?);
        for to in untold {
            let fence = Fence { to_start: to.start, ..self.fence(0) };
            let meta = VdiRequest { fence }.encode_to_vec().into();
            if self.context.ask(to, op::SETTLED, meta, Payload::empty()).await.is_ok() {
                self.note_told([to]);
            }
        }
        Ok(())
    }

    /// Seals at one holder; what it says of every part.
    async fn seal_at(&self, to: Session) -> Result<SealReply, Failure> {
        let mut all = SealReply::default();
        let fence = Fence { to_start: to.start, ..self.fence(0) };
        let mut request = SealRequest { fence, ..SealRequest::default() };
        loop {
            let (meta, _) =
                self.context.ask(to, op::SEAL, request.encode_to_vec().into(), Payload::empty()).await?;
            let part = SealReply::decode(meta).map_err(|_| Failure::Status(Status::Invalid))?;
            request.after_object = part.unsettled.last().map(|u| u.object).or(request.after_object);
            (request.after_generation, request.after_number) = (part.generation, part.number);
            all.unsettled.extend(part.unsettled);
            all.applied.extend(part.applied);
            if !part.more {
                return Ok(all);
            }
        }
    }

    /// Seals at every node that may hold a copy, until it answers or no longer counts.
    async fn seal_everywhere(&self) -> Result<HashMap<Session, SealReply>, IoFailure> {
        let mut answers = HashMap::new();
        loop {
            let state = self.current()?;
            let missing: Vec<Session> = state.holders().filter(|s| !answers.contains_key(s)).collect();
            if missing.is_empty() {
                return Ok(answers);
            }
            let ask = |to: Session| async move { (to, self.seal_at(to).await) };
            let asked = futures::future::join_all(missing.into_iter().map(ask));
            tokio::select! {
                // Dropping the questions forgets them; sealing twice does no harm.
                round = asked => {
                    let mut failed = false;
                    for (to, answer) in round {
                        match answer {
                            Ok(reply) => _ = answers.insert(to, reply),
                            Err(failure) => {
                                tracing::debug!(vdi = %self.vdi, %to, ?failure, "a holder is not sealed yet");
                                failed = true;
                            }
                        }
                    }
                    if failed {
                        self.context.view.change(RETRY_DELAY).await;
                    }
                }
                () = self.membership_changes(state.epoch()) => {}
            }
        }
    }

    async fn membership_changes(&self, epoch: wire::id::Epoch) {
        self.context.view.until(|state| state.epoch() != epoch || !self.is_owner_in(state)).await;
    }

    /// Makes all in-sync copies of an object the same. `suspects` are the holders whose copies a crash may have touched.
    pub(crate) async fn settle(&self, object: ObjectRef, suspects: &[Session]) -> Result<Outcome, IoFailure> {
        let mut rounds = 0;
        let mut had = None;
        loop {
            let Some((copies, lacking, complete)) = self.copies_of(&object).await? else {
                return Ok(Outcome::Waits);
            };
            let newest = copies.iter().map(|c| c.version).max();
            let settled = |had: Option<Version>| match newest {
                Some(version) => Outcome::Settled(Settled {
                    version,
                    had: had.unwrap_or(version),
                    holders: copies.iter().map(|c| (c.session, c.version)).collect(),
                }),
                None => Outcome::Gone,
            };
            if !lacking.is_empty() && complete {
                if lacking.values().any(|why| *why == Lack::Gone) && !self.is_mapped(&object).await? {
                    // A creation that did not reach everyone was never acknowledged, nor is it in the map; or it was
                    // trimmed. Not removed now: that takes enough copies in sync, and those that catch up wait for
                    // the end of this takeover.
                    self.doomed.lock().push(object);
                    return Ok(Outcome::Gone);
                }
                for (session, why) in lacking {
                    tracing::error!(vdi = %self.vdi, object = %object.oid(), %session, ?why, "a copy cannot be used");
                    match self.mend_copy(object, session).await {
                        Ok(()) => {}
                        // Nothing to mend it from: whoever reads the object is told, and other objects go on.
                        Err(IoFailure::Io) => return Ok(settled(had)),
                        Err(failure) => return Err(failure),
                    }
                }
            } else if complete {
                match compare(&copies, suspects, self.generation) {
                    Finding::Nothing => return Ok(Outcome::Gone),
                    Finding::Same(_) => {
                        self.note_emptied(&object, &copies);
                        return Ok(settled(had));
                    }
                    Finding::Touched(version, own) => {
                        had = had.or(Some(version));
                        for copy in &copies {
                            self.patch(copy.session, &object, own, Vec::new(), Payload::empty(), Vec::new())
                                .await?;
                        }
                    }
                    Finding::Differ => {
                        if self.roll_forward(&object, &copies).await? == Rolled::AsFarAsItGoes {
                            return Ok(settled(had));
                        }
                    }
                }
            }
            rounds += 1;
            if rounds > ROUNDS_MAX {
                self.context.view.change(LOOK_AGAIN).await;
            }
        }
    }

    /// The in-sync copies, which members have none that can be used, and whether everybody has answered.
    /// `None` while no in-sync member is alive.
    async fn copies_of(
        &self,
        object: &ObjectRef,
    ) -> Result<Option<(Vec<Copy>, BTreeMap<Session, Lack>, bool)>, IoFailure> {
        let state = self.current()?;
        let slot = SlotIndex(object.slot);
        let Some(config) = state.slot(self.copies, slot) else { return Ok(None) };
        let members: Vec<Session> =
            config.in_state(MemberState::InSync).map(|m| m.session).filter(|s| state.serves(*s)).collect();
        if members.is_empty() {
            return Ok(None);
        }
        let version = config.version;
        let ask = |to: Session| async move {
            let meta = self.named(to, *object, version).encode_to_vec().into();
            (to, self.context.ask(to, op::TABLE, meta, Payload::empty()).await)
        };
        let answers = futures::future::join_all(members.into_iter().map(ask)).await;
        let (mut copies, mut lacking, mut complete) = (Vec::new(), BTreeMap::new(), true);
        for (session, answer) in answers {
            match answer {
                Ok((meta, _)) => {
                    let reply = TableReply::decode(meta).map_err(|_| IoFailure::Io)?;
                    let entry = |e: &[u32]| BlockEntry { crc: e[0], stamp: e[1] };
                    let table: Vec<BlockEntry> = reply.entries.chunks_exact(2).map(entry).collect();
                    // An entry that is neither is damaged itself, and no copy is to get it.
                    let neither =
                        |(i, e): (u32, &BlockEntry)| (!e.is_present() && !e.is_absent(i)).then_some(i);
                    let mut damaged: HashSet<u32> = (0..).zip(&table).filter_map(neither).collect();
                    damaged.extend(reply.damaged);
                    copies.push(Copy { session, version: reply.version.into(), table, damaged });
                }
                Err(Failure::Status(Status::NotFound)) => _ = lacking.insert(session, Lack::Gone),
                Err(Failure::Status(Status::Damaged)) => _ = lacking.insert(session, Lack::Damaged),
                Err(_) => complete = false,
            }
        }
        if !complete {
            self.context.view.change(RETRY_DELAY).await;
        }
        Ok(Some((copies, lacking, complete)))
    }

    fn named(&self, to: Session, object: ObjectRef, config: u64) -> ObjectRequest {
        let fence = Fence { to_start: to.start, ..self.fence(config) };
        ObjectRequest { fence, object, offset: 0, len: 0 }
    }

    async fn roll_forward(&self, object: &ObjectRef, copies: &[Copy]) -> Result<Rolled, IoFailure> {
        let Some(forward) = Forward::new(copies) else { return Ok(Rolled::LookAgain) };
        let best = forward.best;
        let mut source: HashMap<u32, (BlockEntry, Option<Vec<u8>>)> = HashMap::new();
        let mut torn = Vec::new();
        for index in forward.differing() {
            for (copy, entry) in forward.sources(index) {
                if !entry.is_present() {
                    source.insert(index, (entry, None));
                    break;
                }
                match self.block(copy.session, object, index).await? {
                    Block::Data(data) => {
                        source.insert(index, (entry, Some(data)));
                        break;
                    }
                    Block::Damaged => {}
                    Block::Unknown => return Ok(Rolled::LookAgain),
                }
            }
            if !source.contains_key(&index) {
                torn.push(index);
            }
        }
        // Data that a crash may have torn; anything else is rot, which no copy can be healed of.
        let tearable = |i: &u32| best.damaged.contains(i) && best.table[*i as usize].is_present();
        let (torn, rotten): (Vec<u32>, Vec<u32>) = torn.into_iter().partition(tearable);
        if !torn.is_empty() {
            tracing::warn!(vdi = %self.vdi, object = %object.oid(), blocks = torn.len(),
                "blocks are torn on every copy: what was written last before the crash stays half written");
            self.patch(best.session, object, best.version, Vec::new(), Payload::empty(), torn).await?;
            return Ok(Rolled::LookAgain);
        }
        if !rotten.is_empty() {
            tracing::error!(vdi = %self.vdi, object = %object.oid(), blocks = ?rotten, "damaged on every copy");
        }
        let mut changed = false;
        for copy in copies {
            let mut blocks = Vec::new();
            let mut data = BytesMut::new();
            let mut indexes: Vec<u32> = source.keys().copied().collect();
            indexes.sort_unstable();
            for index in indexes {
                let (entry, content) = &source[&index];
                if !copy.lacks(index, *entry) {
                    continue;
                }
                blocks.extend([index, entry.crc, entry.stamp]);
                data.extend_from_slice(content.as_deref().unwrap_or_default());
            }
            if blocks.is_empty() && copy.version == best.version {
                continue;
            }
            changed = true;
            let payload = Payload::new(0, data.freeze());
            self.patch(copy.session, object, best.version, blocks, payload, Vec::new()).await?;
        }
        Ok(if changed { Rolled::LookAgain } else { Rolled::AsFarAsItGoes })
    }

    pub(crate) async fn block(
        &self,
        from: Session,
        object: &ObjectRef,
        index: u32,
    ) -> Result<Block, IoFailure> {
        let state = self.current()?;
        let slot = SlotIndex(object.slot);
        let Some(config) = state.slot(self.copies, slot) else { return Ok(Block::Unknown) };
        let len = BLOCK_SIZE as u32;
        let request = ObjectRequest { offset: index * len, len, ..self.named(from, *object, config.version) };
        let answer = self.context.ask(from, op::READ, request.encode_to_vec().into(), Payload::empty()).await;
        let (meta, payload) = match answer {
            Ok(answer) => answer,
            Err(Failure::Status(Status::Damaged)) => return Ok(Block::Damaged),
            Err(_) => return Ok(Block::Unknown),
        };
        if payload.verify().is_err() {
            return Ok(Block::Unknown);
        }
        let reply = ReadReply::decode(meta).map_err(|_| IoFailure::Io)?;
        let segments = replica::unpack(&reply, payload.data(), len);
        Ok(segments.map_or(Block::Unknown, |s| Block::Data(flatten(&s))))
    }

    pub(crate) async fn patch(
        &self,
        to: Session,
        object: &ObjectRef,
        version: Version,
        blocks: Vec<u32>,
        payload: Payload,
        accept: Vec<u32>,
    ) -> Result<(), IoFailure> {
        let state = self.current()?;
        let Some(config) = state.slot(self.copies, SlotIndex(object.slot)) else { return Ok(()) };
        let fence = Fence { to_start: to.start, ..self.fence(config.version) };
        let request =
            PatchRequest { fence, object: *object, version: version.into(), blocks, accept, applied: None };
        let meta = request.encode_to_vec().into();
        if self.context.ask(to, op::PATCH, meta, payload).await.is_err() {
            // Whatever it was, the copies are looked at again.
            self.context.view.change(RETRY_DELAY).await;
        }
        self.mark_dirty(SlotIndex(object.slot), &[to]);
        Ok(())
    }
}
