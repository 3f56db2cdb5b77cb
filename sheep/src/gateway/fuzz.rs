//! Fuzz target `peer_forwards`: what another node asks of an owner and of a gateway, at a ring of one.
//!
//! The bytes are requests one after another: operation, message, data. Messages come as they are, or about the VDI
//! that is owned. What must hold: each request is answered; what a write that was done has written is read
//! back; and the owner serves its own client after all of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::time::timeout;
use wire::checksum;
use wire::frame::Payload;
use wire::name::ExportName;
use wire::peer::*;
use wire::policy::Copies;

use super::forward::handle;
use super::{Done, Handle, Io};
use crate::admin::Host;
use crate::cluster::entry::ClusterEntry;
use crate::fuzz::{RingOfOne, Source};
use crate::node::core::Core;
use crate::peer::Request;
use crate::store::Segment;

const REQUESTS_MAX: usize = 12;
/// Requests wait for owners that may be about to come; after that nobody would ask any more.
const PATIENCE: Duration = Duration::from_secs(10);
const SIZE: u64 = 64 << 20;
const OPS: &[u16] = &[
    op::OPEN,
    op::VDI_READ,
    op::VDI_WRITE,
    op::VDI_FLUSH,
    op::VDI_ZERO,
    op::VDI_STATUS,
    op::CLOSE,
    op::VDI_INFO,
    op::VDI_OBJECTS,
    op::VDI_CHECK,
    op::GATEWAY_CLIENTS,
    op::ANSWERED,
    99,
];

static RING: RingOfOne<()> = RingOfOne::new(|_| ());

pub(crate) fn run(data: &[u8]) {
    RING.feed(async |core, ()| {
        let open = own_client(core).await;
        let mut source = Source::new(data);
        for _ in 0..REQUESTS_MAX {
            if source.is_empty() {
                break;
            }
            ask(core, &mut source).await;
        }
        let data = Bytes::from_static(&[9; 5000]);
        let write = Io::Write { offset: 100, payload: Payload::new(100, data.clone()), fua: true };
        open.run(write).await.expect("the owner's own client is served");
        assert_eq!(read(&open, 100, 5000).await, data);
        open.close().await;
    });
}

/// A client of this node, whose VDI it therefore owns.
async fn own_client(core: &Core) -> Arc<Handle> {
    let one = Copies::new(1).expect("in range");
    if core.ring.view.state().format().is_none() {
        core.host.format(one, 256, true).await.expect("founded");
    }
    let name: ExportName = "v".parse().expect("a name");
    if core.ring.view.state().vdi_named(&name.vdi).is_none() {
        let create = ClusterEntry::CreateVdi { name: name.vdi.clone(), size: SIZE, copies: None, now_ms: 1 };
        let (index, _) = core.ring.log.propose(create, PATIENCE).await.expect("created");
        core.ring.view.reaches(index).await;
    }
    core.gateway.open(&name, "fuzz").await.expect("opened")
}

async fn read(open: &Handle, offset: u64, len: u32) -> Vec<u8> {
    let Ok(Done::Read(segments)) = open.run(Io::Read { offset, len }).await else { panic!("it is not read") };
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data { data, .. } => bytes.extend_from_slice(&data),
            Segment::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
        }
    }
    bytes
}

async fn ask(core: &Core, source: &mut Source<'_>) {
    let me = core.me.session();
    let op = source.one_of(OPS);
    let likely = source.u8() & 3 != 0;
    let data = Bytes::copy_from_slice(source.piece());
    let offset = match source.below(4) {
        0 => source.u64(),
        1 => (4 << 20) - u64::from(source.u8()),
        _ => source.u16().into(),
    };
    let meta = if likely { message(core, op, source, offset, data.len()) } else { source.piece().to_vec() };
    let payload = match source.below(4) {
        0 => Payload::new(source.u16().into(), data.clone()),
        1 => {
            let crcs = vec![source.u32(); checksum::pieces(0, data.len()).count()];
            Payload::with_crcs(0, data.clone(), crcs).expect("as many as there are pieces")
        }
        _ => Payload::new(offset, data.clone()),
    };
    let right = payload.lies_at(offset) && payload.verify().is_ok();
    let request = Request { op, meta: meta.into(), payload };
    let answer = timeout(PATIENCE, handle(&core.gateway, me.node, request)).await.expect("an answer");
    match answer {
        Ok(_) if op == op::VDI_WRITE => assert!(right, "a write of what is damaged was done"),
        Ok(_) => {}
        Err((status, _)) => assert_ne!(status, Status::Ok),
    }
}

fn message(core: &Core, op: u16, source: &mut Source<'_>, offset: u64, len: usize) -> Vec<u8> {
    let state = core.ring.view.state();
    let name = "v".parse().expect("a name");
    let known = state.vdi_named(&name).map_or((0, 0), |vdi| (vdi.id.0, vdi.owner.generation.0));
    // What is not known yet is waited for, so it is seldom asked for.
    let (vdi, generation) = if source.u8() == 255 { (source.u8().into(), source.u8().into()) } else { known };
    let me = core.me.session();
    let (from, to) = (u64::from(source.u8()), u64::from(source.u8()));
    match op {
        op::OPEN | op::CLOSE | op::VDI_INFO => OpenRequest {
            vdi,
            generation,
            connection: source.below(4).into(),
            client: "c".to_owned(),
            attach_client: if source.flag() { "a".to_owned() } else { String::new() },
            attach_generation: source.below(4).into(),
            gateway: me.into(),
        }
        .encode_to_vec(),
        op::VDI_OBJECTS => {
            VdiObjectsRequest { vdi, generation, from, to, count_pages: source.flag() }.encode_to_vec()
        }
        op::VDI_CHECK => {
            let (phase, repair) = (source.below(4).into(), source.flag());
            VdiCheckRequest { vdi, generation, phase, from, to, repair }.encode_to_vec()
        }
        op::GATEWAY_CLIENTS => {
            let client = if source.flag() { "c".to_owned() } else { String::new() };
            ClientsRequest { to_start: me.start, vdi, client, revoke: false }.encode_to_vec()
        }
        op::ANSWERED => AnsweredRequest { process: core.me.process, vdi }.encode_to_vec(),
        _ => VdiIoRequest {
            vdi,
            generation,
            connection: source.below(4).into(),
            request: RequestId { node: me.node.0, start: 1, number: source.u8().into() },
            answered: source.below(8).into(),
            offset,
            len: if source.below(8) == 0 { source.u64() } else { len as u64 },
            fua: source.flag(),
            punch: source.flag(),
            gateway: me.into(),
        }
        .encode_to_vec(),
    }
}
