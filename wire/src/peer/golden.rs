//! The bytes of every message between sheep. Every field is set, to a value of its own.
//!
//! Other releases know these bytes and numbers: a field may be added, nothing else may change.

use super::*;
use crate::golden::check;

const SESSION: SessionRef = SessionRef { node: 0x1112, start: 0x13 };
const OLDER: VersionRef = VersionRef { generation: 0x21, seq: 0x22 };
const NEWER: VersionRef = VersionRef { generation: 0x23, seq: 0x24 };
const REQUEST: RequestId = RequestId { node: 0x3132, start: 0x33, number: 0x34 };
const FENCE: Fence = Fence { to_start: 0x41, vdi: 0x42, generation: 0x43, config: 0x44, epoch: 0x45 };
const OBJECT: ObjectRef =
    ObjectRef { oid_high: 0x5152, oid_low: 0x5354, birth: 0x5556, copies: 0x57, slot: 0x58, size: 0x400000 };

const APPLIED: AppliedRequest =
    AppliedRequest { request: REQUEST, object: OBJECT, offset: 0x61, version: NEWER, number: 0x62 };

#[test]
fn operations_keep_their_numbers() {
    use op::*;
    let replica = [
        CREATE, WRITE, READ, STAT, SEAL, SETTLED, TABLE, PATCH, FLUSH, REMOVE, PULL, LIST_SLOT, CONFIRM,
        LIST_VDI, VERIFY, LEND,
    ];
    assert!(replica.into_iter().eq(1..=16));
    let forward = [
        OPEN,
        VDI_READ,
        VDI_WRITE,
        VDI_FLUSH,
        VDI_ZERO,
        VDI_STATUS,
        CLOSE,
        VDI_INFO,
        RELEASE,
        VDI_OBJECTS,
        VDI_CHECK,
        VDI_UNLOCK,
        GATEWAY_CLIENTS,
        ANSWERED,
    ];
    assert!(forward.into_iter().eq(32..=45));
    let control = [LOG, RENEW, SUSPECT, JOIN, INTRODUCE, NODE_STATUS, SHUTDOWN];
    assert!(control.into_iter().eq(64..=70));
}

#[test]
fn statuses_keep_their_numbers() {
    use Status::*;
    let all = [
        Ok,
        Invalid,
        StaleGeneration,
        StaleConfig,
        WrongSession,
        NotFound,
        Gap,
        Damaged,
        Io,
        NoSpace,
        Busy,
        NotOwner,
        Fenced,
        BadChecksum,
        Stopping,
        Refused,
    ];
    assert!(all.iter().map(|status| *status as u16).eq(0..=15));
    assert!(all.iter().all(|status| Status::from_wire(*status as u16) == *status));
    assert_eq!(Status::from_wire(16), Invalid);
}

#[test]
fn kinds_keep_their_numbers() {
    assert_eq!([WriteKind::Data, WriteKind::Zero, WriteKind::Punch].map(i32::from), [0, 1, 2]);
    let phases = [CheckPhase::Pages, CheckPhase::Objects, CheckPhase::Orphans];
    assert_eq!(phases.map(i32::from), [0, 1, 2]);
    use CheckFindingKind::*;
    assert_eq!([Damaged, Missing, Differs, Orphan, Degraded, Unreadable].map(i32::from), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn what_messages_are_made_of_keeps_its_bytes() {
    check(&SESSION, "0912110000000000001013");
    check(&NEWER, "08231024");
    check(&REQUEST, "09323100000000000010331834");
    check(&FENCE, "08411042184320442845");
    check(&OBJECT, "095251000000000000115453000000000000195655000000000000205728583080808002");
}

#[test]
fn requests_about_objects_keep_their_bytes() {
    check(
        &ObjectRequest { fence: FENCE, object: OBJECT, offset: 0x61, len: 0x62 },
        "\
        0a0a08411042184320442845122409525100000000000011545300000000000019565500000000000020572858308080\
        800218612062",
    );
    let write = WriteRequest {
        fence: FENCE,
        object: OBJECT,
        predecessor: OLDER,
        version: NEWER,
        offset: 0x61,
        len: 0x62,
        kind: WriteKind::Punch.into(),
        request: Some(REQUEST),
        number: 0x63,
        stable: 0x64,
        inherited_done: true,
    };
    check(
        &write,
        "\
        0a0a08411042184320442845122409525100000000000011545300000000000019565500000000000020572858308080\
        80021a0408211022220408231024286130623802420d09323100000000000010331834486350645801",
    );
    let patch = PatchRequest {
        fence: FENCE,
        object: OBJECT,
        version: NEWER,
        blocks: vec![0x61, 0x62, 0x63],
        accept: vec![0x64, 0x65],
        applied: Some(AppliedList { applied: vec![APPLIED] }),
    };
    check(
        &patch,
        "\
        0a0a08411042184320442845122409525100000000000011545300000000000019565500000000000020572858308080\
        80021a0408231024220c6100000062000000630000002a02646532410a3f0a0d09323100000000000010331834122409\
        525100000000000011545300000000000019565500000000000020572858308080800218612204082310242862",
    );
    check(&VdiRequest { fence: FENCE }, "0a0a08411042184320442845");
    let seal =
        SealRequest { fence: FENCE, after_object: Some(OBJECT), after_generation: 0x61, after_number: 0x62 };
    check(
        &seal,
        "\
        0a0a08411042184320442845122409525100000000000011545300000000000019565500000000000020572858308080\
        80021961000000000000002062",
    );
}

#[test]
fn requests_of_who_catches_up_keep_their_bytes() {
    let catch_up = CatchUpRequest {
        to_start: 0x61,
        copies: 0x62,
        slot: 0x63,
        since: 0x64,
        applied: 0x65,
        object: Some(OBJECT),
        at_least: Some(NEWER),
        entries: vec![0x66, 0x67],
        after: Some(OBJECT),
        lends: true,
        lent: vec![0x68, 0x69],
    };
    check(
        &catch_up,
        "\
        086110621863206428653224095251000000000000115453000000000000195655000000000000205728583080808002\
        3a0408231024420866000000670000004a24095251000000000000115453000000000000195655000000000000205728\
        58308080800250015a086800000069000000",
    );
    check(
        &ListVdiRequest { vdi: 0x61, after: Some(OBJECT) },
        "08611224095251000000000000115453000000000000195655000000000000205728583080808002",
    );
}

#[test]
fn answers_about_objects_keep_their_bytes() {
    check(&WriteReply { version: NEWER, deferred: true }, "0a04082310241001");
    check(&ReadReply { runs: vec![0, 0x61, 0x1000] }, "0a0400618020");
    check(
        &TableReply {
            version: NEWER,
            entries: vec![0x61, 0x62],
            damaged: vec![0x63, 0x64],
            on_disk: OnDisk::Other.into(),
        },
        "0a0408231024120861000000620000001a0263642002",
    );
    check(
        &PullReply {
            version: NEWER,
            blocks: vec![0x61, 0x62, 0x63],
            more: true,
            damaged: vec![0x64],
            applied: vec![APPLIED],
        },
        "\
        0a0408231024120c61000000620000006300000018012201642a3f0a0d09323100000000000010331834122409525100\
        000000000011545300000000000019565500000000000020572858308080800218612204082310242862",
    );
    check(&LendReply { taken: 0x61 }, "0861");
    assert_eq!([OnDisk::Same, OnDisk::Gone, OnDisk::Other].map(|on_disk| on_disk as i32), [0, 1, 2]);
    let listed = Listed { object: OBJECT, version: NEWER };
    check(
        &listed,
        "0a24095251000000000000115453000000000000195655000000000000205728583080808002120408231024",
    );
    check(
        &ListReply { objects: vec![listed], more: true },
        "\
        0a2c0a240952510000000000001154530000000000001956550000000000002057285830808080021204082310241001",
    );
}

#[test]
fn answers_to_a_seal_keep_their_bytes() {
    let unsettled = Unsettled { object: OBJECT, version: NEWER, suspect: true };
    check(
        &unsettled,
        "0a240952510000000000001154530000000000001956550000000000002057285830808080021204082310241801",
    );
    check(
        &APPLIED,
        "\
        0a0d09323100000000000010331834122409525100000000000011545300000000000019565500000000000020572858\
        308080800218612204082310242862",
    );
    let reply = SealReply {
        unsettled: vec![unsettled],
        applied: vec![APPLIED],
        more: true,
        generation: 0x62,
        number: 0x63,
    };
    check(
        &reply,
        "\
        0a2e0a240952510000000000001154530000000000001956550000000000002057285830808080021204082310241801\
        123f0a0d0932310000000000001033183412240952510000000000001154530000000000001956550000000000002057\
        285830808080021861220408231024286218012162000000000000002863",
    );
}

#[test]
fn messages_for_clients_keep_their_bytes() {
    let open = OpenRequest {
        vdi: 0x61,
        generation: 0x62,
        connection: 0x63,
        client: "c".to_owned(),
        attach_client: "a".to_owned(),
        attach_generation: 0x64,
        gateway: SESSION,
    };
    check(&open, "0861106218632201632a016130643a0b0912110000000000001013");
    let io = VdiIoRequest {
        vdi: 0x61,
        generation: 0x62,
        connection: 0x63,
        request: REQUEST,
        answered: 0x64,
        offset: 0x65,
        len: 0x66,
        fua: true,
        punch: true,
        gateway: SESSION,
    };
    check(&io, "086110621863220d0932310000000000001033183428643065386640014801520b0912110000000000001013");
    check(&StatusReply { runs: vec![0, 0x61, 0x1_0000_0000] }, "0a0700618080808010");
    check(&connection(), "0a0b091211000000000000101310711a01632201612872");
    let info =
        VdiInfoReply { used_objects: Some(0x61), connections: vec![connection()], waiting: "w".to_owned() };
    check(&info, "086112170a0b091211000000000000101310711a016322016128721a0177");
    check(&AnsweredRequest { process: 0x61, vdi: 0x62 }, "08611062");
    check(&AnsweredReply { below: 0x61 }, "0861");
}

#[test]
fn messages_of_nodes_keep_their_bytes() {
    let renew = RenewRequest { session: SESSION, applied: 0x65, unreached: vec![0x66] };
    check(&renew, "0a0b091211000000000000101310651a086600000000000000");
    check(&SuspectRequest { session: SESSION }, "0a0b0912110000000000001013");
    check(
        &node_info(),
        "\
        0a0b09121100000000000010131210818181818181818181818181818181811a016122016d2a017a3082013801421085\
        8585858585858585858585858585854883015184000000000000005a06088601108701",
    );
    let introduce = IntroduceMessage {
        me: node_info(),
        known: vec![node_info()],
        start_seen: 0x61,
        refused: "r".to_owned(),
        duplicate: true,
        removed: true,
        joined: true,
        unreached: vec![0x66],
        wait: "w".to_owned(),
        holds: Some(0x67),
        outdated: true,
        over: true,
        remember: true,
    };
    check(
        &introduce,
        "\
        0a530a0b09121100000000000010131210818181818181818181818181818181811a016122016d2a017a308201380142\
        10858585858585858585858585858585854883015184000000000000005a0608860110870112530a0b09121100000000\
        000010131210818181818181818181818181818181811a016122016d2a017a3082013801421085858585858585858585\
        8585858585854883015184000000000000005a060886011087011861220172280130013801420866000000000000004a0177\
        5067580160016801",
    );
    let status = NodeStatusReply {
        space_total: 0x61,
        space_free: 0x62,
        space_used: 0x63,
        slots_left: 0x64,
        slots_done: 0x65,
        objects_done: 0x66,
        bytes_done: 0x67,
        counters: [("name".to_owned(), 0x68)].into(),
        applied: 0x69,
        version: "v".to_owned(),
        started_ms: 0x6a,
        nbd: vec!["n".to_owned()],
        connections: 0x6b,
        memory_bytes: 0x6c,
        waiting: "w".to_owned(),
    };
    check(&status, "086110621863206428653066386742080a046e616d6510684869520176586a62016e686b706c7a0177");
}

#[test]
fn messages_of_the_admin_api_to_owners_keep_their_bytes() {
    let objects = VdiObjectsRequest { vdi: 0x61, generation: 0x62, from: 0x63, to: 0x64, count_pages: true };
    check(&objects, "08611062186320642801");
    let mapped = MappedObject { index: 0x61, creator: 0x62, birth: 0x63 };
    check(
        &VdiObjectsReply { objects: vec![mapped], next: Some(0x64), pages: Some(0x65) },
        "0a0d0861106219630000000000000010641865",
    );
    let phase = CheckPhase::Orphans.into();
    let request = VdiCheckRequest { vdi: 0x61, generation: 0x62, phase, from: 0x63, to: 0x64, repair: true };
    check(&request, "086110621802206328643001");
    let kind = CheckFindingKind::Degraded.into();
    let finding = CheckFinding { kind, object: OBJECT, node: 0x61, count: 0x62, repaired: true };
    let reply = VdiCheckReply { findings: vec![finding], next: Some(0x63), objects: 0x64, bytes: 0x65 };
    check(
        &reply,
        "\
        0a3508041224095251000000000000115453000000000000195655000000000000205728583080808002196100000000\
        00000020622801106318642065",
    );
}

#[test]
fn messages_about_connections_keep_their_bytes() {
    check(&UnlockRequest { vdi: 0x61, generation: 0x62, client: "c".to_owned() }, "086110621a0163");
    check(
        &ClientsRequest { to_start: 0x61, vdi: 0x62, client: "c".to_owned(), revoke: true },
        "086110621a01632001",
    );
    let open = OpenConnection { vdi: 0x61, connection: connection(), opened_ms: 0x62, read_only: true };
    check(
        &ClientsReply { connections: vec![open] },
        "0a1f086112170a0b091211000000000000101310711a0163220161287218622001",
    );
}

fn connection() -> Connection {
    Connection {
        gateway: SESSION,
        connection: 0x71,
        client: "c".to_owned(),
        attach_client: "a".to_owned(),
        attach_generation: 0x72,
    }
}

fn node_info() -> NodeInfo {
    NodeInfo {
        session: SESSION,
        boot: vec![0x81; 16],
        admin: "a".to_owned(),
        mesh: "m".to_owned(),
        zone: "z".to_owned(),
        vnodes: 0x82,
        gateway: true,
        process: 0x83,
        nonce: 0x84,
        reached: vec![ReachedInfo { before: 0x86, index: 0x87 }],
        cluster: vec![0x85; 16],
    }
}
