//! The bytes of the cluster state, as snapshots of the log hold it.

use super::super::entry::Reached;
use super::super::slots::{Eligible, Member};
use super::*;

const SESSION: Session = Session { node: NodeId(0x11), start: 0x12 };

/// One of everything, and every kind of status.
fn state() -> ClusterState {
    let copies = Copies::new(2).expect("in range");
    let name: VdiName = "disk".parse().expect("a name");
    let members = [MemberState::InSync, MemberState::CatchingUp, MemberState::Returned].map(|state| Member {
        session: SESSION,
        boot: 0x31,
        state,
        since: 0x32,
        reached: Some(0x36),
    });
    let eligible = vec![Eligible { node: NodeId(0x34), boot: 0x35, since: 0x37, start: 0x38, reached: 0x39 }];
    let config = SlotConfig { version: 0x33, members: members.into(), eligible };
    ClusterState {
        format: Some(Format {
            cluster: ClusterId(0x41),
            copies,
            slots: 256,
            created_ms: 0x42,
            feature_level: 1,
            first_version: 0x49,
        }),
        epoch: Epoch(0x43),
        nodes: [NodeStatus::Up, NodeStatus::Down, NodeStatus::Out]
            .into_iter()
            .enumerate()
            .map(|(i, status)| (NodeId(i as u64 + 1), node(status)))
            .collect(),
        removed: OrdSet::unit(NodeId(0x44)),
        slots: OrdMap::unit(copies, Vector::unit(Arc::new(config))),
        vdis: OrdMap::unit(VdiId(0x45), vdi(name.clone(), copies)),
        names: OrdMap::unit(name, VdiId(0x45)),
        last_vdi: 0x46,
        owners_changed: 0x47,
        recovery: RecoveryLimit { paused: true, bytes_per_second: Some(0x48) },
        placement: OrdMap::new(),
    }
}

fn node(status: NodeStatus) -> Node {
    let spec = NodeSpec {
        session: SESSION,
        process: 0x13,
        nonce: 0,
        boot: 0x14,
        admin: "a".to_owned(),
        mesh: "m".to_owned(),
        zone: "z".to_owned(),
        vnodes: 0x15,
        gateway: true,
        reached: vec![Reached { before: 0x17, index: 0x18 }],
    };
    Node { spec, status, draining: true, ready: true, disk_failed: Some("why".to_owned()), since_ms: 0x16 }
}

fn vdi(name: VdiName, copies: Copies) -> Vdi {
    Vdi {
        id: VdiId(0x45),
        name,
        size: 0x20_0000,
        copies,
        min_copies: 1,
        created_ms: 0x21,
        root: Some(Birth(0x22)),
        owner: Ownership { generation: Generation(0x23), session: Some(SESSION) },
        attached: OrdMap::unit("c".to_owned(), 0x24),
        used_objects: 0x25,
    }
}

#[test]
fn a_snapshot_keeps_its_bytes() {
    let text = |state: &ClusterState| state.to_bytes().escape_ascii().to_string();
    assert_eq!(text(&state()), GOLDEN.escape_ascii().to_string());
    let back = ClusterState::from_bytes(GOLDEN).expect("readable");
    assert_eq!(text(&back), text(&state()));
}

const GOLDEN: &[u8] = b"\
\x01\x8a\xa6format\x86\xa7cluster\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00A\
\xa6copies\x02\xa5slots\xcd\x01\x00\xaacreated_msB\xadfeature_level\x01\xadfirst_versionI\xa5epochC\
\xa5nodes\x83\x01\x86\xa4spec\x89\xa7session\x82\xa4node\x11\xa5start\x12\xa7process\x13\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x14\xa5admin\xa1a\xa4mesh\xa1m\
\xa4zone\xa1z\xa6vnodes\x15\xa7gateway\xc3\xa7reached\x91\x82\xa6before\x17\xa5index\x18\
\xa6status\xa2Up\xa8draining\xc3\xa5ready\xc3\xabdisk_failed\xa3why\
\xa8since_ms\x16\x02\x86\xa4spec\x89\xa7session\x82\xa4node\x11\xa5start\x12\xa7process\x13\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x14\xa5admin\xa1a\xa4mesh\xa1m\
\xa4zone\xa1z\xa6vnodes\x15\xa7gateway\xc3\xa7reached\x91\x82\xa6before\x17\xa5index\x18\
\xa6status\xa4Down\xa8draining\xc3\xa5ready\xc3\xabdisk_failed\xa3why\
\xa8since_ms\x16\x03\x86\xa4spec\x89\xa7session\x82\xa4node\x11\xa5start\x12\xa7process\x13\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x14\xa5admin\xa1a\xa4mesh\xa1m\
\xa4zone\xa1z\xa6vnodes\x15\xa7gateway\xc3\xa7reached\x91\x82\xa6before\x17\xa5index\x18\
\xa6status\xa3Out\xa8draining\xc3\xa5ready\xc3\xabdisk_failed\xa3why\
\xa8since_ms\x16\xa7removed\x91D\xa5slots\x81\x02\x91\x83\xa7version3\xa7members\x93\x85\xa7session\
\x82\xa4node\x11\xa5start\x12\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x001\xa5state\xa6InSync\xa5since2\xa7reached6\
\x85\xa7session\x82\xa4node\x11\xa5start\x12\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x001\xa5state\xaaCatchingUp\xa5since2\xa7reached6\
\x85\xa7session\x82\xa4node\x11\xa5start\x12\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x001\xa5state\xa8Returned\xa5since2\xa7reached6\
\xa8eligible\x91\x85\xa4node4\xa4boot\
\xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x005\xa5since7\xa5start8\xa7reached9\
\xa4vdis\x81E\x8a\xa2idE\xa4name\xa4disk\xa4size\xce\x00 \x00\x00\xa6copies\x02\xaamin_copies\
\x01\xaacreated_ms!\xa4root\"\xa5owner\x82\xaageneration#\xa7session\x82\xa4node\x11\xa5start\
\x12\xa8attached\x81\xa1c$\xacused_objects%\xa5names\x81\xa4diskE\xa8last_vdiF\xaeowners_changedG\
\xa8recovery\x82\xa6paused\xc3\xb0bytes_per_secondH";
