//! The VDIs of the cluster state and who owns them. Pure.

use super::*;
use crate::mutant::{Mutant, planted};

impl ClusterState {
    pub(super) fn owned(&mut self, id: VdiId, generation: Generation) -> Result<&mut Vdi, Refusal> {
        let vdi = self.vdis.get_mut(&id).ok_or(Refusal::NoSuchVdi(id))?;
        if vdi.owner.session.is_none() || vdi.owner.generation != generation {
            return Err(Refusal::GenerationOver(generation));
        }
        Ok(vdi)
    }

    pub(super) fn disown(&mut self, which: impl Fn(Session) -> bool) {
        let ids: Vec<VdiId> =
            self.vdis.values().filter(|v| v.owner.session.is_some_and(&which)).map(|v| v.id).collect();
        for id in ids {
            if let Some(vdi) = self.vdis.get_mut(&id) {
                vdi.owner.session = None;
            }
        }
    }

    /// Gives every owned VDI of these policies to its owner again, under the next generation.
    pub(super) fn renew_owners(&mut self, policies: &[Copies]) {
        let meant = |v: &&Vdi| v.owner.session.is_some() && policies.contains(&v.copies);
        let owned: Vec<VdiId> = self.vdis.values().filter(meant).map(|v| v.id).collect();
        for id in owned {
            if let Some(vdi) = self.vdis.get_mut(&id) {
                match next(vdi.owner.generation) {
                    Ok(generation) => vdi.owner.generation = generation,
                    Err(_) => vdi.owner.session = None,
                }
            }
        }
    }

    pub(super) fn create_vdi(
        &mut self,
        name: &VdiName,
        size: u64,
        copies: Option<Copies>,
        now_ms: u64,
    ) -> Result<ClusterReply, Refusal> {
        VdiSize::new(size).map_err(|_| Refusal::BadSize(size))?;
        if self.names.contains_key(name) {
            return Err(Refusal::NameTaken(name.clone()));
        }
        let copies = copies.or(self.format.as_ref().map(|f| f.copies)).ok_or(Refusal::NotFormatted)?;
        self.last_vdi = self.last_vdi.checked_add(1).ok_or(Refusal::Exhausted)?;
        let mut id = VdiId(self.last_vdi);
        if planted(Mutant::IdsAgain) {
            id = (1..=self.last_vdi).map(VdiId).find(|id| !self.vdis.contains_key(id)).unwrap_or(id);
        }
        self.use_policy(copies);
        self.vdis.insert(
            id,
            Vdi {
                id,
                name: name.clone(),
                size,
                copies,
                min_copies: copies.min_default(),
                created_ms: now_ms,
                root: None,
                owner: Ownership { generation: Generation(0), session: None },
                attached: OrdMap::new(),
                used_objects: 0,
            },
        );
        self.names.insert(name.clone(), id);
        Ok(ClusterReply::Created(id))
    }

    pub(super) fn delete_vdi(&mut self, id: VdiId) -> Result<ClusterReply, Refusal> {
        let vdi = self.vdis.get(&id).ok_or(Refusal::NoSuchVdi(id))?;
        if let Some(owner) = vdi.owner.session {
            return Err(Refusal::InUse(owner.node));
        }
        self.names.remove(&vdi.name);
        self.vdis.remove(&id);
        Ok(ClusterReply::Done)
    }

    pub(super) fn acquire(
        &mut self,
        index: u64,
        id: VdiId,
        session: Session,
    ) -> Result<ClusterReply, Refusal> {
        self.live(session)?;
        let vdi = self.vdis.get_mut(&id).ok_or(Refusal::NoSuchVdi(id))?;
        let owner = match vdi.owner.session {
            Some(owner) => owner,
            None => {
                vdi.owner = Ownership { generation: next(vdi.owner.generation)?, session: Some(session) };
                self.owners_changed = index;
                session
            }
        };
        Ok(ClusterReply::Owner { session: owner, generation: vdi.owner.generation })
    }

    pub(super) fn release(
        &mut self,
        index: u64,
        id: VdiId,
        generation: Generation,
        to: Option<Session>,
        used: Option<u64>,
    ) -> Result<ClusterReply, Refusal> {
        let to = to.filter(|s| self.is_live(*s));
        let vdi = self.owned(id, generation)?;
        if let Some(used) = used {
            vdi.used_objects = used;
        }
        vdi.owner = match to {
            Some(_) => Ownership { generation: next(generation)?, session: to },
            None => Ownership { generation, session: None },
        };
        self.owners_changed = index;
        Ok(ClusterReply::Done)
    }
}

/// The next generation; a birth has room for 40 bits of it.
fn next(generation: Generation) -> Result<Generation, Refusal> {
    let next = generation.0 + 1;
    if next < 1 << 40 { Ok(Generation(next)) } else { Err(Refusal::Exhausted) }
}
