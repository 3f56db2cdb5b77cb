//! The bytes of every entry of the cluster's log and of every reply, as they are stored and sent.
//!
//! A field may be added with a default. A new entry waits for the ring's feature level.

use wire::id::{Birth, ClusterId, Generation, NodeId, Session, SlotIndex, VdiId};
use wire::policy::Copies;

use super::golden::check;
use crate::cluster::entry::{ClusterEntry, ClusterReply, NodeSpec, Refusal};

const SESSION: Session = Session { node: NodeId(0x11), start: 0x12 };
const OTHER: Session = Session { node: NodeId(0x13), start: 0x14 };
const VDI: VdiId = VdiId(0x21);
const GENERATION: Generation = Generation(0x22);

fn copies() -> Copies {
    Copies::new(3).unwrap()
}

fn spec() -> NodeSpec {
    NodeSpec {
        session: SESSION,
        process: 0x15,
        boot: 0x16,
        admin: "a".to_owned(),
        mesh: "m".to_owned(),
        zone: "z".to_owned(),
        vnodes: 0x17,
        gateway: true,
        reached: Vec::new(),
        nonce: 0,
    }
}

#[test]
fn entries_about_members_keep_their_bytes() {
    let format = ClusterEntry::Format {
        cluster: ClusterId(0x31),
        copies: copies(),
        slots: 4096,
        nodes: vec![spec()],
        now_ms: 0x32,
    };
    check(
        &format,
        b"\
        \x01\x81\xa6Format\x85\xa7cluster\
        \xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x001\xa6copies\x03\xa5slots\
        \xcd\x10\x00\xa5nodes\x91\x88\xa7session\x82\xa4node\x11\xa5start\x12\xa7process\x15\xa4boot\
        \xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x16\xa5admin\xa1a\xa4mesh\
        \xa1m\xa4zone\xa1z\xa6vnodes\x17\xa7gateway\xc3\xa6now_ms2",
    );
    check(
        &ClusterEntry::Reformat { copies: copies(), slots: 4096, now_ms: 0x32 },
        b"\x01\x81\xa8Reformat\x83\xa6copies\x03\xa5slots\xcd\x10\x00\xa6now_ms2",
    );
    check(
        &ClusterEntry::Join { node: spec(), now_ms: 0x32 },
        b"\
        \x01\x81\xa4Join\x82\xa4node\x88\xa7session\x82\xa4node\x11\xa5start\x12\xa7process\x15\xa4boot\
        \xc4\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x16\xa5admin\xa1a\xa4mesh\
        \xa1m\xa4zone\xa1z\xa6vnodes\x17\xa7gateway\xc3\xa6now_ms2",
    );
    check(
        &ClusterEntry::Evict { sessions: vec![SESSION, OTHER], now_ms: 0x32 },
        b"\
        \x01\x81\xa5Evict\x82\xa8sessions\x92\x82\xa4node\x11\xa5start\x12\x82\xa4node\x13\xa5start\
        \x14\xa6now_ms2",
    );
    let entry = Box::new(ClusterEntry::Out { node: NodeId(0x11) });
    check(
        &ClusterEntry::InTerm { leader: NodeId(0x31), term: 0x32, entry },
        b"\x01\x81\xa6InTerm\x83\xa6leader1\xa4term2\xa5entry\x81\xa3Out\x81\xa4node\x11",
    );
    check(
        &ClusterEntry::Leave { session: SESSION, now_ms: 0x32 },
        b"\x01\x81\xa5Leave\x82\xa7session\x82\xa4node\x11\xa5start\x12\xa6now_ms2",
    );
    check(&ClusterEntry::Out { node: NodeId(0x11) }, b"\x01\x81\xa3Out\x81\xa4node\x11");
    check(
        &ClusterEntry::Drain { node: NodeId(0x11), on: true },
        b"\x01\x81\xa5Drain\x82\xa4node\x11\xa2on\xc3",
    );
    check(&ClusterEntry::Remove { node: NodeId(0x11) }, b"\x01\x81\xa6Remove\x81\xa4node\x11");
    check(&ClusterEntry::Abandon { nodes: vec![NodeId(0x11)] }, b"\x01\x81\xa7Abandon\x81\xa5nodes\x91\x11");
    check(
        &ClusterEntry::Ready { session: SESSION },
        b"\x01\x81\xa5Ready\x81\xa7session\x82\xa4node\x11\xa5start\x12",
    );
    check(
        &ClusterEntry::FailDisk { session: SESSION, reason: "why".to_owned() },
        b"\x01\x81\xa8FailDisk\x82\xa7session\x82\xa4node\x11\xa5start\x12\xa6reason\xa3why",
    );
}

#[test]
fn entries_about_slots_keep_their_bytes() {
    let slots = vec![(SlotIndex(0x31), 0x32), (SlotIndex(0x33), 0x34)];
    check(
        &ClusterEntry::Admit { session: SESSION, copies: copies(), slots, seen: 0x35 },
        b"\
        \x01\x81\xa5Admit\x84\xa7session\x82\xa4node\x11\xa5start\x12\xa6copies\x03\xa5slots\x92\x9212\
        \x9234\xa4seen5",
    );
    check(
        &ClusterEntry::Known { sessions: vec![SESSION, OTHER], index: 0x32 },
        b"\
        \x01\x81\xa5Known\x82\xa8sessions\x92\x82\xa4node\x11\xa5start\x12\x82\xa4node\x13\xa5start\
        \x14\xa5index2",
    );
    let slot = SlotIndex(0x31);
    check(
        &ClusterEntry::Demote { session: SESSION, copies: copies(), slot, version: 0x32 },
        b"\
        \x01\x81\xa6Demote\x84\xa7session\x82\xa4node\x11\xa5start\x12\xa6copies\x03\xa4slot1\
        \xa7version2",
    );
    check(
        &ClusterEntry::SetRecovery { paused: true, limit: Some(0x31) },
        b"\x01\x81\xabSetRecovery\x82\xa6paused\xc3\xa5limit1",
    );
}

#[test]
fn entries_about_vdis_keep_their_bytes() {
    let name = "disk".parse().unwrap();
    let create = ClusterEntry::CreateVdi { name, size: 0x31_0000, copies: Some(copies()), now_ms: 0x32 };
    check(
        &create,
        b"\x01\x81\xa9CreateVdi\x84\xa4name\xa4disk\xa4size\xce\x001\x00\x00\xa6copies\x03\xa6now_ms2",
    );
    check(&ClusterEntry::DeleteVdi { vdi: VDI }, b"\x01\x81\xa9DeleteVdi\x81\xa3vdi!");
    check(
        &ClusterEntry::Acquire { vdi: VDI, session: SESSION },
        b"\x01\x81\xa7Acquire\x82\xa3vdi!\xa7session\x82\xa4node\x11\xa5start\x12",
    );
    let release =
        ClusterEntry::Release { vdi: VDI, generation: GENERATION, to: Some(OTHER), used: Some(0x31) };
    check(
        &release,
        b"\x01\x81\xa7Release\x84\xa3vdi!\xaageneration\"\xa2to\x82\xa4node\x13\xa5start\x14\xa4used1",
    );
    let kept = ClusterEntry::Release { vdi: VDI, generation: GENERATION, to: None, used: None };
    check(&kept, b"\x01\x81\xa7Release\x84\xa3vdi!\xaageneration\"\xa2to\xc0\xa4used\xc0");
    check(
        &ClusterEntry::SetRoot { vdi: VDI, generation: GENERATION, root: Birth(0x31) },
        b"\x01\x81\xa7SetRoot\x83\xa3vdi!\xaageneration\"\xa4root1",
    );
    check(
        &ClusterEntry::Attach { vdi: VDI, client: "c".to_owned(), generation: 0x31 },
        b"\x01\x81\xa6Attach\x83\xa3vdi!\xa6client\xa1c\xaageneration1",
    );
}

#[test]
fn replies_keep_their_bytes() {
    check(&ClusterReply::Done, b"\x01\xa4Done");
    check(&ClusterReply::Created(VDI), b"\x01\x81\xa7Created!");
    check(
        &ClusterReply::Owner { session: SESSION, generation: GENERATION },
        b"\x01\x81\xa5Owner\x82\xa7session\x82\xa4node\x11\xa5start\x12\xaageneration\"",
    );
    check(&ClusterReply::Admitted(0x31), b"\x01\x81\xa8Admitted1");
    check(&ClusterReply::Refused(Refusal::Exhausted), b"\x01\x81\xa7Refused\xa9Exhausted");
}

#[test]
fn refusals_keep_their_bytes() {
    let node = NodeId(0x11);
    let name = "disk".parse().unwrap();
    check(&Refusal::AlreadyFormatted, b"\x01\xb0AlreadyFormatted");
    check(&Refusal::NotFormatted, b"\x01\xacNotFormatted");
    check(&Refusal::BadSlots(0x31), b"\x01\x81\xa8BadSlots1");
    check(&Refusal::TooManyNodes(0x31), b"\x01\x81\xacTooManyNodes1");
    check(
        &Refusal::TooManyVnodes { node, vnodes: 0x31, others: 0x32 },
        b"\x01\x81\xadTooManyVnodes\x83\xa4node\x11\xa6vnodes1\xa6others2",
    );
    check(&Refusal::NoSuchNode(node), b"\x01\x81\xaaNoSuchNode\x11");
    check(&Refusal::NodeRemoved(node), b"\x01\x81\xabNodeRemoved\x11");
    check(
        &Refusal::StartNotHigher { node, start: 0x31, seen: 0x32 },
        b"\x01\x81\xaeStartNotHigher\x83\xa4node\x11\xa5start1\xa4seen2",
    );
    check(&Refusal::SessionOver(SESSION), b"\x01\x81\xabSessionOver\x82\xa4node\x11\xa5start\x12");
    check(&Refusal::NodeInUse(node), b"\x01\x81\xa9NodeInUse\x11");
    check(&Refusal::LastCopies { node, slots: 0x31 }, b"\x01\x81\xaaLastCopies\x82\xa4node\x11\xa5slots1");
    check(&Refusal::NameTaken(name), b"\x01\x81\xa9NameTaken\xa4disk");
    check(&Refusal::NoSuchVdi(VDI), b"\x01\x81\xa9NoSuchVdi!");
    check(&Refusal::BadSize(0x31), b"\x01\x81\xa7BadSize1");
    check(&Refusal::InUse(node), b"\x01\x81\xa5InUse\x11");
    check(&Refusal::GenerationOver(GENERATION), b"\x01\x81\xaeGenerationOver\"");
    check(&Refusal::TermOver(0x31), b"\x01\x81\xa8TermOver1");
    check(
        &Refusal::AttachFenced { client: "c".to_owned(), known: 0x31 },
        b"\x01\x81\xacAttachFenced\x82\xa6client\xa1c\xa5known1",
    );
}
