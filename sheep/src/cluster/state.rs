//! The cluster state: what the log's entries add up to. Pure; every node computes the same.
//!
//! Called by the cluster log for every committed entry; read by everyone through a shared snapshot.
//! Cloning is cheap (persistent maps). The invariants are in [`ClusterState::validate`].

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use serde::{Deserialize, Serialize};
use wire::id::{Birth, ClusterId, Epoch, Generation, NodeId, Session, SlotIndex, VdiId};
use wire::name::VdiName;
use wire::policy::Copies;
use wire::size::{OBJECT_LEN, VdiSize};

use super::entry::{ClusterEntry, ClusterReply, NodeSpec, Refusal};
use super::log::Ordered;
use super::slots::{Live, MemberState, SlotConfig};
use crate::placement::{
    MAX_NODES, MAX_VNODES, MAX_VNODES_PER_NODE, PlacementTable, Ring, RingNode, SlotCount, slot_of,
};

/// Bytes of a VDI's data in one object.
pub const OBJECT_SIZE: u32 = OBJECT_LEN as u32;
/// The format of an encoded state. Version 1 is MessagePack by field name.
const ENCODING: u8 = 1;

/// Whether a node takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    /// Its session is alive.
    Up,
    /// Its session is over; its place on the ring is kept.
    Down,
    /// It has been away for so long that others took its place.
    Out,
}

/// A member of the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What it said when its current session joined.
    pub spec: NodeSpec,
    /// Whether it takes part.
    pub status: NodeStatus,
    /// Everything is being moved off it.
    pub draining: bool,
    /// Its session has caught up with the log since it was let in. Until then its copies count as away: whoever
    /// writes would wait for it.
    #[serde(default)]
    pub ready: bool,
    /// Its disk failed in this session; why.
    pub disk_failed: Option<String>,
    /// When its status changed last, for people.
    pub since_ms: u64,
}

impl Node {
    /// Its session, if that is alive.
    pub fn live_session(&self) -> Option<Session> {
        (self.status == NodeStatus::Up).then_some(self.spec.session)
    }

    /// Whether it should hold copies.
    fn is_target(&self) -> bool {
        !self.spec.gateway && !self.draining && self.disk_failed.is_none() && self.status != NodeStatus::Out
    }
}

/// Who owns a VDI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Raised by every change of owner; the last one used if nobody owns the VDI.
    pub generation: Generation,
    /// The owner, if there is one.
    pub session: Option<Session>,
}

/// A VDI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdi {
    /// Its id.
    pub id: VdiId,
    /// Its name.
    pub name: VdiName,
    /// Its size in bytes.
    pub size: u64,
    /// Its copies.
    pub copies: Copies,
    /// How many copies must be in sync for a write.
    pub min_copies: u8,
    /// When it was created, milliseconds since 1970.
    pub created_ms: u64,
    /// The birth of its object map's root page; absent while nothing was ever allocated.
    pub root: Option<Birth>,
    /// Who owns it.
    pub owner: Ownership,
    /// The highest attach generation of each client that named itself.
    pub attached: OrdMap<String, u64>,
    /// Allocated objects when the last owner let go of it.
    pub used_objects: u64,
}

impl Vdi {
    /// How many data objects the VDI has at most.
    pub fn object_count(&self) -> u64 {
        self.size.div_ceil(u64::from(OBJECT_SIZE))
    }
}

/// What the ring was founded with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// The ring's identity.
    pub cluster: ClusterId,
    /// Default copies of a VDI.
    pub copies: Copies,
    /// Number of slots.
    pub slots: u32,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// Which features every member must know; raised by an upgrade.
    pub feature_level: u32,
    /// Where versions of slot configurations begin: above all that an earlier format had.
    pub first_version: u64,
}

/// How recovery may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecoveryLimit {
    /// Background copying stands still.
    pub paused: bool,
    /// Bytes a second per node; no limit if absent.
    pub bytes_per_second: Option<u64>,
}

type Slots = Vector<Arc<SlotConfig>>;

impl super::log::Machine for ClusterState {
    type Entry = ClusterEntry;
    type Reply = ClusterReply;

    fn empty() -> Self {
        Self::default()
    }

    fn apply(&mut self, ordered: Ordered, entry: &ClusterEntry) -> ClusterReply {
        let (meant, entry) = match entry {
            ClusterEntry::InTerm { leader, term, entry } => ((*leader, *term), &**entry),
            entry => ((ordered.leader, ordered.term), entry),
        };
        if meant != (ordered.leader, ordered.term) {
            return ClusterReply::Refused(Refusal::TermOver(meant.1));
        }
        let reply = self.apply_entry(ordered.index, entry);
        debug_assert_eq!(self.validate(), Ok(()), "after {entry:?}");
        reply
    }

    fn encode(&self) -> Vec<u8> {
        self.to_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::from_bytes(bytes)
    }
}

/// The state that the log's entries add up to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ClusterState {
    format: Option<Format>,
    epoch: Epoch,
    nodes: OrdMap<NodeId, Node>,
    removed: OrdSet<NodeId>,
    slots: OrdMap<Copies, Slots>,
    vdis: OrdMap<VdiId, Vdi>,
    names: OrdMap<VdiName, VdiId>,
    last_vdi: u64,
    /// The index of the last entry that changed an owner: copies found equal before it must look again.
    owners_changed: u64,
    recovery: RecoveryLimit,
    /// Where copies belong; follows from `nodes` and is not encoded.
    #[serde(skip)]
    placement: OrdMap<Copies, Arc<PlacementTable>>,
}

impl ClusterState {
    /// What the ring was founded with; `None` before.
    pub fn format(&self) -> Option<&Format> {
        self.format.as_ref()
    }

    /// The version of the membership.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All members, dead ones included, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One member.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Whether a node was removed for good.
    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed.contains(&id)
    }

    /// Whether a session is alive.
    pub fn is_live(&self, session: Session) -> bool {
        self.node(session.node).and_then(Node::live_session) == Some(session)
    }

    /// Whether a process, named by its node and first start, may still send requests again: it has not been
    /// replaced by another one, though its session may be over.
    pub fn may_return(&self, process: Session) -> bool {
        self.node(process.node).is_some_and(|n| n.spec.process == process.start)
    }

    /// All VDIs by id.
    pub fn vdis(&self) -> impl Iterator<Item = &Vdi> {
        self.vdis.values()
    }

    /// One VDI.
    pub fn vdi(&self, id: VdiId) -> Option<&Vdi> {
        self.vdis.get(&id)
    }

    /// One VDI by name.
    pub fn vdi_named(&self, name: &VdiName) -> Option<&Vdi> {
        self.vdis.get(self.names.get(name)?)
    }

    /// Whether a VDI existed and was deleted. Ids are given in order and never twice, so that needs no list.
    pub fn is_deleted(&self, id: VdiId) -> bool {
        id.0 <= self.last_vdi && !self.vdis.contains_key(&id)
    }

    /// The index of the last entry that may have changed a VDI's owner or its generation.
    pub fn owners_changed(&self) -> u64 {
        self.owners_changed
    }

    /// The number of slots; the default before format.
    pub fn slot_count(&self) -> SlotCount {
        self.format.as_ref().and_then(|f| SlotCount::new(f.slots).ok()).unwrap_or_default()
    }

    /// The slot of an object. VDIs are their own families as long as there are no clones.
    pub fn slot_of(&self, oid: wire::id::Oid) -> SlotIndex {
        slot_of(oid.creator(), oid, self.slot_count())
    }

    /// The configuration of a slot.
    pub fn slot(&self, copies: Copies, slot: SlotIndex) -> Option<&Arc<SlotConfig>> {
        self.slots.get(&copies)?.get(slot.0 as usize)
    }

    /// All slots of all policies in use.
    pub fn slots(&self) -> impl Iterator<Item = (Copies, SlotIndex, &Arc<SlotConfig>)> {
        self.slots.iter().flat_map(|(copies, slots)| {
            slots.iter().enumerate().map(move |(i, config)| (*copies, SlotIndex(i as u32), config))
        })
    }

    /// How recovery may go on.
    pub fn recovery(&self) -> RecoveryLimit {
        self.recovery
    }

    /// Whether a slot has all its copies in sync on live nodes.
    pub fn is_fully_redundant(&self, copies: Copies, config: &SlotConfig) -> bool {
        let in_sync = config.in_state(MemberState::InSync).filter(|m| self.serves(m.session)).count();
        in_sync >= usize::from(copies.get())
    }

    /// Applies one entry. Deterministic; refuses without a change what does not fit.
    pub fn apply_entry(&mut self, index: u64, entry: &ClusterEntry) -> ClusterReply {
        self.try_apply(index, entry).unwrap_or_else(ClusterReply::Refused)
    }

    fn try_apply(&mut self, index: u64, entry: &ClusterEntry) -> Result<ClusterReply, Refusal> {
        if let ClusterEntry::Format { cluster, copies, slots, nodes, now_ms } = entry {
            return self.found(*cluster, *copies, *slots, nodes, *now_ms);
        }
        if self.format.is_none() {
            return Err(Refusal::NotFormatted);
        }
        match entry {
            ClusterEntry::Format { .. } => unreachable!("handled above"),
            ClusterEntry::Reformat { copies, slots, now_ms } => {
                self.reformat(index, *copies, *slots, *now_ms)
            }
            // Who ordered it has been looked at, and it holds no other of its kind.
            ClusterEntry::InTerm { term, .. } => Err(Refusal::TermOver(*term)),
            ClusterEntry::Join { node, now_ms } => self.join(index, node, *now_ms),
            ClusterEntry::Evict { sessions, now_ms } => {
                let mut any = false;
                for session in sessions.iter().filter(|s| self.is_live(**s)).copied().collect::<Vec<_>>() {
                    self.end_session(session, *now_ms);
                    any = true;
                }
                if any {
                    self.membership_changed(index, false);
                }
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Leave { session, now_ms } => {
                if self.is_live(*session) {
                    self.end_session(*session, *now_ms);
                    self.membership_changed(index, false);
                }
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Out { node } => {
                let known = self.nodes.get_mut(node).ok_or(Refusal::NoSuchNode(*node))?;
                if known.status == NodeStatus::Down {
                    known.status = NodeStatus::Out;
                    self.membership_changed(index, true);
                }
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Drain { node, on } => {
                let known = self.nodes.get_mut(node).ok_or(Refusal::NoSuchNode(*node))?;
                if known.draining != *on {
                    known.draining = *on;
                    self.membership_changed(index, true);
                }
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Remove { node } => self.remove(index, *node),
            ClusterEntry::Abandon { nodes } => self.abandon(index, nodes),
            ClusterEntry::Ready { session } => {
                self.live(*session)?;
                if let Some(node) = self.nodes.get_mut(&session.node).filter(|n| !n.ready) {
                    node.ready = true;
                    self.membership_changed(index, false);
                }
                Ok(ClusterReply::Done)
            }
            ClusterEntry::FailDisk { session, reason } => {
                self.live(*session)?;
                if let Some(node) = self.nodes.get_mut(&session.node) {
                    node.disk_failed.get_or_insert_with(|| reason.clone());
                }
                self.distrust(session.node);
                self.membership_changed(index, true);
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Admit { session, copies, slots, seen } => {
                self.live(*session)?;
                Ok(ClusterReply::Admitted(self.admit(*session, *copies, slots, *seen, index)))
            }
            ClusterEntry::Known { sessions, index } => {
                self.known(&sessions.iter().copied().collect(), *index);
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Demote { session, copies, slot, version } => {
                self.demote(*session, *copies, *slot, *version);
                Ok(ClusterReply::Done)
            }
            ClusterEntry::CreateVdi { name, size, copies, now_ms } => {
                self.create_vdi(name, *size, *copies, *now_ms)
            }
            ClusterEntry::DeleteVdi { vdi } => self.delete_vdi(*vdi),
            ClusterEntry::Acquire { vdi, session } => self.acquire(index, *vdi, *session),
            ClusterEntry::Release { vdi, generation, to, used } => {
                self.release(index, *vdi, *generation, *to, *used)
            }
            ClusterEntry::SetRoot { vdi, generation, root } => {
                let vdi = self.owned(*vdi, *generation)?;
                vdi.root.get_or_insert(*root);
                Ok(ClusterReply::Done)
            }
            ClusterEntry::Attach { vdi, client, generation } => {
                let vdi = self.vdis.get_mut(vdi).ok_or(Refusal::NoSuchVdi(*vdi))?;
                match vdi.attached.get(client).copied() {
                    Some(known) if known > *generation => {
                        Err(Refusal::AttachFenced { client: client.clone(), known })
                    }
                    _ => {
                        vdi.attached.insert(client.clone(), *generation);
                        Ok(ClusterReply::Done)
                    }
                }
            }
            ClusterEntry::SetRecovery { paused, limit } => {
                self.recovery = RecoveryLimit { paused: *paused, bytes_per_second: *limit };
                Ok(ClusterReply::Done)
            }
        }
    }

    fn live(&self, session: Session) -> Result<(), Refusal> {
        if self.is_live(session) { Ok(()) } else { Err(Refusal::SessionOver(session)) }
    }

    fn found(
        &mut self,
        cluster: ClusterId,
        copies: Copies,
        slots: u32,
        nodes: &[NodeSpec],
        now_ms: u64,
    ) -> Result<ClusterReply, Refusal> {
        if self.format.is_some() {
            return Err(Refusal::AlreadyFormatted);
        }
        SlotCount::new(slots).map_err(|_| Refusal::BadSlots(slots))?;
        if nodes.len() > MAX_NODES {
            return Err(Refusal::TooManyNodes(MAX_NODES as u32));
        }
        let all: u64 = nodes.iter().map(members::weight).sum();
        for spec in nodes {
            members::has_room(spec, all - members::weight(spec))?;
        }
        self.format =
            Some(Format { cluster, copies, slots, created_ms: now_ms, feature_level: 1, first_version: 1 });
        for spec in nodes {
            // They hold nothing yet, and their logs begin with this.
            let node = Node { ready: true, ..members::new_node(spec, now_ms) };
            self.nodes.insert(spec.session.node, node);
        }
        self.epoch = Epoch(1);
        self.use_policy(copies);
        Ok(ClusterReply::Done)
    }

    fn reformat(
        &mut self,
        index: u64,
        copies: Copies,
        slots: u32,
        now_ms: u64,
    ) -> Result<ClusterReply, Refusal> {
        SlotCount::new(slots).map_err(|_| Refusal::BadSlots(slots))?;
        if let Some(owner) = self.vdis.values().find_map(|v| v.owner.session) {
            return Err(Refusal::InUse(owner.node));
        }
        let newest = self.slots().map(|(_, _, config)| config.version).max().unwrap_or_default();
        let Some(format) = &mut self.format else { return Err(Refusal::NotFormatted) };
        (format.copies, format.slots, format.created_ms) = (copies, slots, now_ms);
        format.first_version = format.first_version.max(newest + 1);
        // Ids are not used again, so what is left of these on any disk, there now or not, counts as deleted.
        self.vdis.clear();
        self.names.clear();
        self.slots.clear();
        self.placement.clear();
        self.owners_changed = index;
        self.epoch = Epoch(self.epoch.0 + 1);
        self.use_policy(copies);
        Ok(ClusterReply::Done)
    }

    /// Whether a slot has an in-sync copy on a live node.
    pub fn has_live_copy(&self, config: &SlotConfig) -> bool {
        config.in_state(MemberState::InSync).any(|m| self.serves(m.session))
    }

    /// Whether enough copies are in sync on live nodes for writes to be acknowledged.
    pub fn is_enough(&self, copies: Copies, config: &SlotConfig) -> bool {
        let in_sync = config.in_state(MemberState::InSync).filter(|m| self.serves(m.session)).count();
        in_sync >= usize::from(copies.min_default())
    }

    /// Whether a slot is on record but nobody who may be read is there.
    pub fn waits(&self, config: &SlotConfig) -> bool {
        !config.members.is_empty() && !self.has_live_copy(config)
    }

    /// Whether a session was let in and has not said that it has caught up.
    pub fn awaits(&self, session: Session) -> bool {
        let node = self.nodes.get(&session.node).filter(|n| n.live_session() == Some(session));
        node.is_some_and(|n| !n.ready)
    }

    /// Whether a session is alive, has caught up with the log, and its disk works.
    pub fn serves(&self, session: Session) -> bool {
        self.live_disk(session.node).is_some_and(|l| l.session == session)
    }

    /// The sessions that may hold copies: all that serve.
    pub(crate) fn holders(&self) -> impl Iterator<Item = Session> {
        let live = self.nodes.keys().filter_map(|id| self.live_disk(*id));
        live.map(|l| l.session)
    }

    /// A node's session, while it is alive and serves the copies on its disk.
    fn live_disk(&self, id: NodeId) -> Option<Live<'_>> {
        let node = self.nodes.get(&id)?;
        let serves = node.ready && node.disk_failed.is_none() && !node.spec.gateway;
        let session = node.live_session().filter(|_| serves)?;
        Some(Live { session, boot: node.spec.boot, reached: &node.spec.reached })
    }

    /// The state as bytes, for the log's snapshots.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![ENCODING];
        rmp_serde::encode::write_named(&mut bytes, self).expect("plain data can always be encoded");
        bytes
    }

    /// The state from a snapshot's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&ENCODING, rest)) => rmp_serde::from_slice(rest).map_err(|e| format!("cluster state: {e}")),
            Some((version, _)) => {
                Err(format!("cluster state has format {version}, this release reads {ENCODING}"))
            }
            None => Err("cluster state is empty".to_owned()),
        }
    }
}

mod abandon;
mod layout;
mod members;
mod validate;
mod vdis;

pub use abandon::Loss;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
