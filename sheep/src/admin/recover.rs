//! `dog cluster recover`: what giving up nodes that will never come back would cost, and doing it.

use std::collections::{BTreeMap, BTreeSet};

use wire::admin::{
    AdminError, ErrorKind, RecoverEvent, RecoverRequest, RecoverSummary, RiskRange, VdiAtRisk, recover_event,
};
use wire::id::{NodeId, Oid, SlotIndex};
use wire::policy::Copies;
use wire::size::OBJECT_LEN;

use super::Admin;
use super::stream::{Ended, Sink};
use crate::cluster::entry::{ClusterEntry, Refusal};
use crate::cluster::state::{ClusterState, Loss, Vdi};
use crate::machine::blocking;
use crate::vdi::map;

/// Ranges of a VDI that are told at most.
const RANGES_MAX: usize = 10_000;

type Losses = BTreeMap<(Copies, SlotIndex), Loss>;

/// What a VDI may lose; `None` if it has no part in those slots. Looks at every object it could have.
fn at_risk(state: &ClusterState, vdi: &Vdi, losses: &Losses) -> Option<VdiAtRisk> {
    let loss_of = |oid: Oid| losses.get(&(vdi.copies, state.slot_of(oid)));
    let mut risk = VdiAtRisk { name: vdi.name.to_string(), ..VdiAtRisk::default() };
    for index in 0..vdi.object_count() {
        let Some(loss) = loss_of(Oid::data(vdi.id, index)) else { continue };
        let (offset, everything) = (index * OBJECT_LEN, *loss == Loss::Everything);
        let length = OBJECT_LEN.min(vdi.size - offset);
        risk.bytes += length;
        let next_to =
            |last: &&mut RiskRange| last.offset + last.length == offset && last.everything == everything;
        if let Some(last) = risk.ranges.last_mut().filter(next_to) {
            last.length += length;
        } else if risk.ranges.len() < RANGES_MAX {
            risk.ranges.push(RiskRange { offset, length, everything });
        } else {
            risk.ranges_left_out += 1;
        }
    }
    // Pages are made as they are needed; a VDI without a root has none.
    let mut pages = vdi.object_count();
    for level in 0..map::levels(vdi.object_count()) {
        pages = pages.div_ceil(map::FANOUT);
        risk.map |= vdi.root.is_some() && (0..pages).any(|n| loss_of(Oid::map(vdi.id, level, n)).is_some());
    }
    (risk.bytes > 0 || risk.map).then_some(risk)
}

impl Admin {
    /// Tells what each VDI may lose without `request.nodes`, and gives those up if it is to.
    pub(super) async fn recover_without(
        &self,
        sink: &Sink<RecoverEvent>,
        request: RecoverRequest,
    ) -> Result<(), Ended> {
        let state = self.gateway.context.view.state();
        let mut nodes: BTreeSet<NodeId> = request.nodes.iter().copied().map(NodeId).collect();
        if request.force && nodes.is_empty() {
            let why = "it must be said which nodes are to be given up";
            return Err(AdminError::new(ErrorKind::Invalid, why).into());
        }
        if nodes.is_empty() {
            nodes = state.awaited();
        }
        for node in nodes.iter().filter(|node| !state.is_removed(**node)) {
            match state.node(*node) {
                None => return Err(AdminError::from(Refusal::NoSuchNode(*node)).into()),
                Some(n) if n.live_session().is_some() => {
                    let why = format!("node {node} is alive");
                    let hint =
                        "only what is down for good is given up; a node that is alive is drained and removed";
                    return Err(AdminError::new(ErrorKind::Refused, why).hint(hint).into());
                }
                Some(_) => {}
            }
        }
        let losses: Losses =
            state.losses(&nodes).map(|(copies, slot, loss)| ((copies, slot), loss)).collect();
        let slots = losses.len() as u64;
        let losses = std::sync::Arc::new(losses);
        let mut vdis: Vec<Vdi> = state.vdis().cloned().collect();
        vdis.sort_by(|a, b| a.name.cmp(&b.name));
        for vdi in vdis {
            let (state, losses) = (state.clone(), losses.clone());
            let risk = blocking(move || at_risk(&state, &vdi, &losses)).await.ok().flatten();
            let Some(risk) = risk else { continue };
            if request.force {
                let VdiAtRisk { name, bytes, map, ranges, .. } = &risk;
                tracing::error!(name, bytes, map, ?ranges, "a VDI may lose this: dead nodes are given up");
            }
            let event = recover_event::Event::Vdi(risk);
            sink.send(RecoverEvent { event: Some(event) }).await?;
        }
        if request.force {
            tracing::error!(?nodes, slots, "nodes are given up for good, as an operator has decided");
            self.propose(ClusterEntry::Abandon { nodes: nodes.iter().copied().collect() }).await?;
        }
        let nodes = nodes.iter().map(|node| node.0).collect();
        let summary = RecoverSummary { view: self.view(), nodes, slots, done: request.force };
        sink.send(RecoverEvent { event: Some(recover_event::Event::Summary(summary)) }).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::tests::{apply, evicted, founded};
    use super::*;

    #[test]
    fn what_a_vdi_may_lose_is_what_lies_in_slots_that_lose_something() {
        let create = |name: &str| ClusterEntry::CreateVdi {
            name: name.parse().expect("a name"),
            size: 64 * OBJECT_LEN + 512,
            copies: None,
            now_ms: 0,
        };
        let state = evicted(apply(founded(3, 1), &create("vol")), &[2]);
        let gone = BTreeSet::from([NodeId(2)]);
        let losses: Losses = state.losses(&gone).map(|(c, slot, loss)| ((c, slot), loss)).collect();
        let vdi = state.vdis().next().expect("created");
        let risk = at_risk(&state, vdi, &losses).expect("of 65 objects some are there");
        let lost = |index: u64| losses.contains_key(&(vdi.copies, state.slot_of(Oid::data(vdi.id, index))));
        let told = |index: u64| {
            let at = index * OBJECT_LEN;
            risk.ranges.iter().any(|r| r.everything && (r.offset..r.offset + r.length).contains(&at))
        };
        assert!((0..65).all(|index| lost(index) == told(index)), "{risk:?}");
        assert!((0..65).any(lost) && !(0..65).all(lost));
        assert_eq!(risk.bytes, risk.ranges.iter().map(|r| r.length).sum::<u64>());
        assert!(risk.ranges.iter().all(|r| r.offset + r.length <= vdi.size));
        assert!(
            risk.ranges.windows(2).all(|pair| pair[0].offset + pair[0].length < pair[1].offset),
            "merged"
        );
        assert_eq!(at_risk(&state, vdi, &Losses::new()), None);
    }
}
