//! A ring of one node that owns its VDI, for tests and fuzzing of what a replica does.

use wire::id::{ClusterId, NodeId, Session, VdiId};
use wire::policy::Copies;

use crate::cluster::entry::{ClusterEntry, NodeSpec};
use crate::cluster::state::ClusterState;

pub(super) const ME: Session = Session { node: NodeId(1), start: 1 };
pub(super) const VDI: VdiId = VdiId(1);

/// The ring's state, after three entries.
pub(super) fn ring() -> ClusterState {
    let copies = Copies::new(1).expect("in range");
    let node = NodeSpec {
        session: ME,
        process: 1,
        boot: 7,
        admin: String::new(),
        mesh: String::new(),
        zone: "z".to_owned(),
        vnodes: 8,
        gateway: false,
        reached: Vec::new(),
        nonce: 0,
    };
    let mut state = ClusterState::default();
    let entries = [
        ClusterEntry::Format { cluster: ClusterId(1), copies, slots: 256, nodes: vec![node], now_ms: 0 },
        ClusterEntry::CreateVdi {
            name: "disk".parse().expect("a name"),
            size: 1 << 30,
            copies: None,
            now_ms: 0,
        },
        ClusterEntry::Acquire { vdi: VDI, session: ME },
    ];
    (1..).zip(&entries).for_each(|(index, entry)| _ = state.apply_entry(index, entry));
    state
}
