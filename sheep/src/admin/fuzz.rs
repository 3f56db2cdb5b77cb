//! Fuzz target `admin_requests`: calls of the admin API, at a ring of one.
//!
//! The bytes are calls one after another: which, and its messages, as they are or likely to be understood. What must
//! hold: each call is answered, with a refusal that says what kind it is if it is not done; whatever has come
//! into the state by then has a name, a size and copies that it may have.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tokio::time::timeout;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use wire::admin::*;
use wire::mesh::Introduction;
use wire::mesh::introductions_server::IntroductionsServer;
use wire::name::{ExportName, VdiName};
use wire::peer::{IntroduceMessage, NodeInfo, SessionRef};
use wire::policy::Copies;
use wire::size::VdiSize;

use super::{Admin, Host};
use crate::fuzz::{RingOfOne, Source};
use crate::introduce::EarlyIntroductions;
use crate::node::core::Core;

const CALLS_MAX: usize = 8;
/// Messages of a stream that are waited for, and how long; then the client hangs up.
const ANSWERS_MAX: usize = 16;
const PATIENCE: Duration = Duration::from_millis(200);

/// Every call but the one that stops the sheep.
const CALLS: &[&str] = &[
    "admin.v1.VdiService/Create",
    "admin.v1.VdiService/Delete",
    "admin.v1.VdiService/List",
    "admin.v1.VdiService/Info",
    "admin.v1.VdiService/Object",
    "admin.v1.VdiService/Read",
    "admin.v1.VdiService/Write",
    "admin.v1.VdiService/Check",
    "admin.v1.VdiService/LockList",
    "admin.v1.VdiService/LockUnlock",
    "admin.v1.ClusterService/Format",
    "admin.v1.ClusterService/Info",
    "admin.v1.ClusterService/Check",
    "admin.v1.NodeService/List",
    "admin.v1.NodeService/Info",
    "admin.v1.NodeService/Recovery",
    "admin.v1.NodeService/SetRecovery",
    "admin.v1.NodeService/Stat",
    "admin.v1.NodeService/Drain",
    "admin.v1.NodeService/Remove",
    "mesh.v1.Introductions/Introduce",
];

/// The ring that inputs go to.
static RING: RingOfOne<Routes> = RingOfOne::new(|core| {
    let admin = Admin::new(core.gateway.clone(), core.host.clone(), core.tasks.clone(), core.cancel.clone());
    let introductions = IntroductionsServer::new(EarlyIntroductions(core.service.clone()));
    super::routes(&admin).add_service(introductions)
});

pub(crate) fn run(data: &[u8]) {
    RING.feed(async |core, routes| {
        let mut source = Source::new(data);
        // Whatever earlier inputs have left is gone.
        let one = Copies::new(1).expect("in range");
        _ = core.host.format(one, 256, true).await;
        for _ in 0..CALLS_MAX {
            if source.is_empty() {
                break;
            }
            let name = source.one_of(CALLS);
            let messages = if source.flag() { likely(name, &mut source) } else { raw(&mut source) };
            call(routes, name, messages).await;
        }
        check(core);
    });
}

async fn call(routes: &Routes, name: &str, messages: Vec<Bytes>) {
    let path = PathAndQuery::try_from(format!("/sheepdog.{name}")).expect("a path");
    let mut client = tonic::client::Grpc::new(routes.clone());
    client.ready().await.expect("routes are always ready");
    let answers = async {
        let request = Request::new(tokio_stream::iter(messages));
        let mut stream = client.streaming(request, path, Plain).await?.into_inner();
        for _ in 0..ANSWERS_MAX {
            if stream.message().await?.is_none() {
                break;
            }
        }
        Ok::<(), Status>(())
    };
    if let Ok(Err(status)) = timeout(PATIENCE, answers).await {
        let strange = matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Aborted);
        let ours = status.code() != Code::Internal || status.message().contains("decode");
        assert!(!strange && ours, "{name}: {status:?}");
    }
}

/// What has come into the state may be there.
fn check(core: &Core) {
    let state = core.ring.view.state();
    assert_eq!(state.validate(), Ok(()));
    for vdi in state.vdis() {
        assert_eq!(VdiName::new_vdi(vdi.name.as_str()), Ok(vdi.name.clone()));
        assert!(VdiSize::new(vdi.size).is_ok() && vdi.created_ms > 0, "{vdi:?}");
        // A name that can be made can be asked for.
        let export: ExportName = vdi.name.as_str().parse().expect("an export's name");
        assert_eq!(export.vdi, vdi.name);
    }
}

fn raw(source: &mut Source<'_>) -> Vec<Bytes> {
    (0..=source.below(3)).map(|_| Bytes::copy_from_slice(source.piece())).collect()
}

/// Messages that say something.
fn likely(call: &str, source: &mut Source<'_>) -> Vec<Bytes> {
    fn one(message: impl Message) -> Vec<Bytes> {
        vec![message.encode_to_vec().into()]
    }
    let text = |source: &mut Source<'_>| match source.below(8) {
        0 => String::from_utf8_lossy(source.piece()).into_owned(),
        few => format!("v{}", few % 3),
    };
    let number = |source: &mut Source<'_>| match source.below(4) {
        0 => source.u64(),
        1 => u64::MAX - u64::from(source.u8()),
        2 => u64::from(source.u8()) << 20,
        _ => u64::from(source.u16()) * 512,
    };
    let node = |source: &mut Source<'_>| if source.flag() { 0 } else { source.u64() };
    let name = text(source);
    match call {
        "admin.v1.VdiService/Create" => one(CreateVdiRequest {
            name,
            size: number(source),
            copies: source.below(4).into(),
            began_ms: if source.flag() { 0 } else { source.u64() },
            again: source.flag(),
        }),
        "admin.v1.VdiService/Delete" => one(DeleteVdiRequest { name, again: source.flag() }),
        "admin.v1.VdiService/Object" => one(ObjectRequest {
            name,
            first: number(source),
            count: number(source),
            allocated_only: source.flag(),
        }),
        "admin.v1.VdiService/Read" => {
            one(ReadVdiRequest { name, offset: number(source), length: number(source) })
        }
        "admin.v1.VdiService/Write" => {
            let start = WriteVdiStart { name, offset: number(source) };
            let mut parts = vec![write_vdi_request::Part::Start(start)];
            for _ in 0..source.below(4) {
                parts.push(if source.flag() {
                    write_vdi_request::Part::Data(Bytes::copy_from_slice(source.piece()))
                } else {
                    write_vdi_request::Part::Hole(number(source))
                });
            }
            parts.into_iter().flat_map(|part| one(WriteVdiRequest { part: Some(part) })).collect()
        }
        "admin.v1.VdiService/Check" => one(CheckVdiRequest { name, repair: source.flag() }),
        "admin.v1.VdiService/LockUnlock" => one(LockUnlockRequest { name, client: text(source) }),
        "admin.v1.ClusterService/Format" => one(FormatRequest {
            copies: source.below(4).into(),
            // The largest take seconds to lay out.
            slots: if source.flag() { 512 } else { source.u32() & !(3 << 19) },
            force: source.flag(),
        }),
        "admin.v1.ClusterService/Check" => one(CheckClusterRequest { deep: source.flag() }),
        "admin.v1.NodeService/SetRecovery" => one(SetRecoveryRequest {
            paused: source.flag().then(|| source.flag()),
            limit_bytes_per_second: source.flag().then(|| number(source)),
        }),
        "admin.v1.NodeService/Info" => one(NodeInfoRequest { node: node(source) }),
        "admin.v1.NodeService/Stat" => one(StatRequest { node: node(source) }),
        // Itself would be drained for good.
        "admin.v1.NodeService/Drain" => one(DrainRequest { node: source.u64() }),
        "admin.v1.NodeService/Remove" => one(RemoveNodeRequest { node: node(source) }),
        "mesh.v1.Introductions/Introduce" => {
            let me = NodeInfo {
                session: SessionRef { node: node(source), start: source.u8().into() },
                boot: source.bytes(16).to_vec(),
                admin: "127.0.0.1:7000".to_owned(),
                mesh: if source.flag() { "127.0.0.1:7001".to_owned() } else { text(source) },
                zone: text(source),
                vnodes: source.u32(),
                nonce: source.u64(),
                ..NodeInfo::default()
            };
            let known = vec![me.clone(); source.below(3).into()];
            let message = IntroduceMessage { me, known, start_seen: number(source), ..Default::default() };
            one(Introduction { message: message.encode_to_vec().into() })
        }
        _ => one(VdiInfoRequest { name }),
    }
}

/// Messages as bytes.
#[derive(Default, Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
