//! Where a VDI's objects are.

use std::collections::VecDeque;
use std::time::Duration;

use wire::admin::{CopyState, ObjectCopy, ObjectPlace, ObjectReply, ObjectRequest};
use wire::id::{Oid, VdiId};
use wire::peer::MappedObject;

use super::stream::{Ended, Sink};
use super::{Admin, error};
use crate::cluster::slots::MemberState;
use crate::cluster::state::{ClusterState, Vdi};

/// Places in one answer: some 100 bytes for each copy.
const BATCH: usize = 512;
/// How long a page of the map may take to be read.
const MAP_PATIENCE: Duration = Duration::from_secs(30);

/// The id of an object that the map names.
pub(super) fn oid(object: &MappedObject) -> Oid {
    // The index comes from another node: out of range it names nothing that exists.
    Oid::data(VdiId(object.creator), object.index.min(Oid::INDEX_MAX))
}

/// Where an object is, or would be.
fn place(state: &ClusterState, vdi: &Vdi, index: u64, mapped: Option<&MappedObject>) -> ObjectPlace {
    let name = mapped.map_or(Oid::data(vdi.id, index), oid);
    let slot = state.slot_of(name);
    let config = state.slot(vdi.copies, slot);
    let members = config.map(|c| c.members.as_slice()).unwrap_or_default();
    let copies = members.iter().map(|m| ObjectCopy {
        node: m.session.node.0,
        state: match m.state {
            MemberState::InSync => CopyState::InSync,
            MemberState::CatchingUp | MemberState::Returned => CopyState::CatchingUp,
        }
        .into(),
        up: state.serves(m.session),
    });
    ObjectPlace {
        index,
        allocated: mapped.is_some(),
        oid: mapped.map(|_| name.to_string()).unwrap_or_default(),
        birth: mapped.map_or(0, |m| m.birth),
        slot: slot.0,
        config: config.map_or(0, |c| c.version),
        copies: copies.collect(),
    }
}

/// The next batch of places; moves `at` on, and takes what it shows from `mapped`, which is by index.
fn places(
    state: &ClusterState,
    vdi: &Vdi,
    (at, end): (&mut u64, u64),
    mapped: &mut VecDeque<MappedObject>,
    allocated_only: bool,
) -> Vec<ObjectPlace> {
    let mut batch = Vec::new();
    while *at < end && batch.len() < BATCH {
        if allocated_only {
            *at = mapped.front().map_or(end, |object| object.index);
        }
        if *at < end {
            let here = mapped.pop_front_if(|object| object.index == *at);
            batch.push(place(state, vdi, *at, here.as_ref()));
            *at += 1;
        }
    }
    batch
}

impl Admin {
    /// The places of a range of objects, in batches.
    pub(super) async fn objects(
        &self,
        sink: &Sink<ObjectReply>,
        vdi: &Vdi,
        request: &ObjectRequest,
    ) -> Result<(), Ended> {
        let end = vdi.object_count();
        let to = match request.count {
            0 => end,
            count => request.first.saturating_add(count).min(end),
        };
        let open = self.open_vdi(&vdi.name).await?;
        let (mut told, only) = (false, request.allocated_only);
        let mut at = request.first.min(to);
        while at < to {
            let asked = tokio::time::timeout(MAP_PATIENCE, open.objects(at, to, false));
            let reply = match asked.await {
                Ok(reply) => reply.map_err(|e| error::io(vdi.name.as_str(), e))?,
                Err(_) => return Err(self.waits(vdi).await.into()),
            };
            let next = reply.next.filter(|next| *next > at && *next < to).unwrap_or(to);
            let mut mapped: VecDeque<MappedObject> = reply.objects.into();
            mapped.retain(|o| (at..next).contains(&o.index));
            while at < next {
                let objects =
                    places(&self.gateway.context.view.state(), vdi, (&mut at, next), &mut mapped, only);
                if !objects.is_empty() {
                    sink.send(ObjectReply { view: self.view(), objects }).await?;
                    told = true;
                }
            }
        }
        if !told {
            sink.send(ObjectReply { view: self.view(), objects: Vec::new() }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::tests::{apply, evicted, founded};
    use super::*;
    use crate::cluster::entry::ClusterEntry;

    #[test]
    fn an_object_is_where_its_slot_is_and_the_dead_are_marked() {
        let name: wire::name::VdiName = "v".parse().expect("a name");
        let create = ClusterEntry::CreateVdi { name: name.clone(), size: 1 << 30, copies: None, now_ms: 1 };
        let state = apply(founded(1, 1), &create);
        let vdi = state.vdi_named(&name).expect("created").clone();
        let object = MappedObject { index: 3, creator: vdi.id.0, birth: 9 };
        let there = place(&state, &vdi, 3, Some(&object));
        assert!(there.allocated);
        assert_eq!((there.oid, there.birth), (Oid::data(vdi.id, 3).to_string(), 9));
        assert_eq!(there.copies.iter().map(|c| (c.node, c.up)).collect::<Vec<_>>(), [(1, true)]);
        let gone = place(&evicted(state, &[1]), &vdi, 3, None);
        assert_eq!((gone.allocated, gone.oid.as_str(), gone.birth), (false, "", 0));
        assert_eq!(gone.copies.iter().map(|c| c.up).collect::<Vec<_>>(), [false]);
    }

    #[test]
    fn places_come_in_batches_with_or_without_the_gaps() {
        let name: wire::name::VdiName = "v".parse().expect("a name");
        let create = ClusterEntry::CreateVdi { name: name.clone(), size: 1 << 40, copies: None, now_ms: 1 };
        let state = apply(founded(1, 1), &create);
        let vdi = state.vdi_named(&name).expect("created").clone();
        let mapped = [3, 600].map(|index| MappedObject { index, creator: vdi.id.0, birth: 9 });
        let collect = |only| {
            let (mut at, mut left, mut all) = (1, VecDeque::from(mapped), Vec::new());
            while at < 700 {
                let batch = places(&state, &vdi, (&mut at, 700), &mut left, only);
                assert!(batch.len() <= BATCH);
                all.extend(batch.into_iter().map(|p| (p.index, p.allocated)));
            }
            all
        };
        assert_eq!(collect(true), [(3, true), (600, true)]);
        let all = collect(false);
        assert_eq!(all.iter().map(|p| p.0).collect::<Vec<_>>(), (1..700).collect::<Vec<u64>>());
        assert_eq!(all.iter().filter(|p| p.1).map(|p| p.0).collect::<Vec<_>>(), [3, 600]);
    }
}
