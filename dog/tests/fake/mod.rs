//! A sheep of canned replies, served by tonic from a thread of its own, and a way to run `dog` against it.
//!
//! It records what it is asked, and can refuse, or die in the middle of a call as a killed process does.

use std::net::TcpListener;
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use wire::admin::check_event::Event;
use wire::admin::cluster_service_server::{ClusterService, ClusterServiceServer};
use wire::admin::node_service_server::{NodeService, NodeServiceServer};
use wire::admin::read_vdi_reply::Content;
use wire::admin::vdi_service_server::{VdiService, VdiServiceServer};
use wire::admin::write_vdi_request::Part;
use wire::admin::*;

type Reply<T> = Result<Response<T>, Status>;
type Many<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// 2026-01-02T03:04:05Z.
pub(crate) const CREATED_MS: u64 = 1_767_323_045_000;

/// Bytes of a chunk that the fake sends.
const CHUNK: usize = 4096;

/// How the fake behaves.
#[derive(Default)]
pub(crate) struct Script {
    /// Every call but `node list` fails with this.
    pub(crate) fails: Option<AdminError>,
    /// Every call but `node list` ends with the fake's death.
    pub(crate) dies: bool,
    /// A read ends with the fake's death after the first chunk.
    pub(crate) dies_in_read: bool,
    /// Admin port of another sheep that `node list` tells of.
    pub(crate) other: Option<u16>,
    /// Every answer may be old.
    pub(crate) stale: bool,
    /// Dead nodes that are waited for.
    pub(crate) gone: Vec<u64>,
    /// What checks find.
    pub(crate) findings: Vec<Finding>,
    /// The VDI's content.
    pub(crate) disk: Vec<u8>,
}

/// A running fake. Dies when it is dropped.
pub(crate) struct Fake {
    pub(crate) port: u16,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    script: Script,
    port: u16,
    disk: Mutex<Vec<u8>>,
    asked: Mutex<Vec<String>>,
    death: Notify,
}

impl Fake {
    pub(crate) fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        let port = listener.local_addr().expect("address").port();
        let disk = Mutex::new(script.disk.clone());
        let state = Arc::new(State { script, port, disk, asked: Mutex::default(), death: Notify::new() });
        let served = state.clone();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
                let serve = tonic::transport::Server::builder()
                    .add_service(ClusterServiceServer::new(Sheep(served.clone())))
                    .add_service(NodeServiceServer::new(Sheep(served.clone())))
                    .add_service(VdiServiceServer::new(Sheep(served.clone())))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serve => served.expect("serves"),
                    () = served.death.notified() => {}
                }
            });
            // Cuts connections in the middle, as death does.
            runtime.shutdown_background();
        });
        Self { port, state, thread: Some(thread) }
    }

    /// What was asked, except for the lists of nodes that every client begins with.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.asked.lock().expect("lock").clone()
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        self.state.disk.lock().expect("lock").clone()
    }

    /// Runs `dog -p PORT` with `line`, split at spaces.
    pub(crate) fn dog(&self, line: &str) -> Ran {
        run(dog().args(["-p", &self.port.to_string()]).args(line.split(' ')))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.state.death.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the fake did not panic");
        }
    }
}

/// The binary under test, with nothing from this test's own environment.
pub(crate) fn dog() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dog"));
    command.env_remove("DOG_ADDR").env_remove("DOG_PORT").stdin(Stdio::null());
    command
}

/// How a dog ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }
}

pub(crate) fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().expect("dog runs");
    Ran {
        exit: status.code().expect("dog was not killed"),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

struct Sheep(Arc<State>);

impl Sheep {
    /// Records the request, and fails or dies if the script says so.
    async fn asked(&self, request: impl std::fmt::Debug) -> Result<(), Status> {
        self.0.asked.lock().expect("lock").push(format!("{request:?}"));
        if self.0.script.dies {
            self.0.death.notify_one();
            std::future::pending::<()>().await;
        }
        self.0.script.fails.clone().map_or(Ok(()), |error| Err(error.into()))
    }

    fn view(&self) -> Option<View> {
        Some(View { applied_index: 42, epoch: 7, possibly_stale: self.0.script.stale })
    }

    fn vdi(&self) -> Vdi {
        Vdi {
            id: 5,
            name: "my-disk".into(),
            size: self.0.disk.lock().expect("lock").len() as u64,
            used: 4096,
            copies: 3,
            min_copies: 2,
            owner: 0,
            created_ms: CREATED_MS,
        }
    }

    fn check(&self) -> Many<CheckEvent> {
        let findings = self.0.script.findings.clone();
        let worst = findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Note.into());
        let summary = CheckSummary { view: self.view(), worst, slots: 4096, ..Default::default() };
        let progress = Progress { objects_done: 1, objects_total: 2, bytes_done: 3, bytes_total: 4 };
        let mut events = vec![Event::Progress(progress)];
        events.extend(findings.into_iter().map(Event::Finding));
        events.push(Event::Summary(summary));
        many(events.into_iter().map(|event| CheckEvent { event: Some(event) }).collect())
    }

    fn recovery(&self, paused: bool) -> RecoveryReply {
        let progress =
            Progress { objects_done: 1, objects_total: 4, bytes_done: 1 << 20, bytes_total: 4 << 20 };
        let node = NodeRecovery { node: 1, slots_left: 9, progress: Some(progress), ..Default::default() };
        let settings = RecoverySettings { paused, limit_bytes_per_second: 50 << 20 };
        RecoveryReply { view: self.view(), settings: Some(settings), nodes: vec![node] }
    }
}

fn many<T: Send + 'static>(items: Vec<T>) -> Many<T> {
    Box::pin(tokio_stream::iter(items.into_iter().map(Ok)))
}

fn info(view: Option<View>) -> ClusterInfo {
    ClusterInfo {
        view,
        status: ClusterStatus::Ok.into(),
        id: "0123456789abcdef0123456789abcdef".into(),
        created_ms: CREATED_MS,
        copies: 3,
        slots: 4096,
        nodes: 3,
        driver: "sdcluster".into(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ClusterService for Sheep {
    async fn format(&self, request: Request<FormatRequest>) -> Reply<FormatReply> {
        let request = request.into_inner();
        self.asked(request).await?;
        Ok(Response::new(FormatReply { cluster: Some(info(self.view())), again: request.force }))
    }

    async fn info(&self, request: Request<ClusterInfoRequest>) -> Reply<ClusterInfo> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(info(self.view())))
    }

    type CheckStream = Many<CheckEvent>;

    async fn check(&self, request: Request<CheckClusterRequest>) -> Reply<Many<CheckEvent>> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(self.check()))
    }

    type RecoverStream = Many<RecoverEvent>;

    async fn recover(&self, request: Request<RecoverRequest>) -> Reply<Many<RecoverEvent>> {
        let request = request.into_inner();
        let (nodes, done) = (request.nodes.clone(), request.force);
        self.asked(request).await?;
        let nodes = if nodes.is_empty() { self.0.script.gone.clone() } else { nodes };
        let range = |offset| RiskRange { offset, length: 4 << 20, everything: offset == 0 };
        let risk = VdiAtRisk {
            name: "my-disk".into(),
            ranges: (0..7).map(|n| range(n << 23)).collect(),
            bytes: 28 << 20,
            map: true,
            ..Default::default()
        };
        let vdis = if nodes.is_empty() { vec![] } else { vec![recover_event::Event::Vdi(risk)] };
        let summary = RecoverSummary { view: self.view(), slots: nodes.len() as u64, nodes, done };
        let events = vdis.into_iter().chain([recover_event::Event::Summary(summary)]);
        Ok(Response::new(many(events.map(|event| RecoverEvent { event: Some(event) }).collect())))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Reply<ShutdownReply> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(ShutdownReply { view: self.view() }))
    }
}

#[tonic::async_trait]
impl NodeService for Sheep {
    async fn list(&self, _: Request<ListNodesRequest>) -> Reply<ListNodesReply> {
        let space = Some(Space { total: 100 << 30, free: 75 << 30, used: 25 << 30 });
        let node = |id, port: u16, status: NodeStatus| Node {
            id,
            host: "127.0.0.1".into(),
            port: port.into(),
            zone: "rack-1".into(),
            vnodes: 128,
            space,
            status: status.into(),
            self_: port == self.0.port,
            ..Default::default()
        };
        let mut nodes = vec![node(1, self.0.port, NodeStatus::Up)];
        nodes.extend(self.0.script.other.map(|port| node(2, port, NodeStatus::Up)));
        nodes.push(node(3, 9, NodeStatus::Down));
        Ok(Response::new(ListNodesReply { view: self.view(), nodes, formatted: true }))
    }

    async fn info(&self, request: Request<NodeInfoRequest>) -> Reply<NodeInfo> {
        let request = request.into_inner();
        self.asked(&request).await?;
        let node = Some(Node { id: request.node.max(1), ..Default::default() });
        Ok(Response::new(NodeInfo { view: self.view(), node, answered: true, ..Default::default() }))
    }

    async fn recovery(&self, request: Request<RecoveryRequest>) -> Reply<RecoveryReply> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(self.recovery(false)))
    }

    async fn set_recovery(&self, request: Request<SetRecoveryRequest>) -> Reply<RecoveryReply> {
        let request = request.into_inner();
        self.asked(request).await?;
        Ok(Response::new(self.recovery(request.paused())))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Reply<StatReply> {
        self.asked(request.into_inner()).await?;
        let counters = vec![Counter { name: "sheep_nbd_read_bytes_total".into(), value: 7, gauge: false }];
        Ok(Response::new(StatReply { node: 1, started_ms: CREATED_MS, counters }))
    }

    type DrainStream = Many<DrainEvent>;

    async fn drain(&self, request: Request<DrainRequest>) -> Reply<Many<DrainEvent>> {
        self.asked(request.into_inner()).await?;
        let event = |slots_left, done| DrainEvent { slots_left, slots_total: 2, done, ..Default::default() };
        Ok(Response::new(many(vec![event(2, false), event(1, false), event(0, true)])))
    }

    async fn remove(&self, request: Request<RemoveNodeRequest>) -> Reply<RemoveNodeReply> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(RemoveNodeReply { view: self.view() }))
    }
}

#[tonic::async_trait]
impl VdiService for Sheep {
    async fn create(&self, request: Request<CreateVdiRequest>) -> Reply<VdiReply> {
        let request = request.into_inner();
        self.asked(&request).await?;
        let vdi = Vdi { name: request.name, size: request.size, ..self.vdi() };
        Ok(Response::new(VdiReply { view: self.view(), vdi: Some(vdi) }))
    }

    async fn delete(&self, request: Request<DeleteVdiRequest>) -> Reply<DeleteVdiReply> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(DeleteVdiReply { view: self.view() }))
    }

    type ListStream = Many<ListVdisReply>;

    async fn list(&self, request: Request<ListVdisRequest>) -> Reply<Many<ListVdisReply>> {
        self.asked(request.into_inner()).await?;
        let batch = |name: &str| {
            let vdi = Vdi { name: name.into(), ..self.vdi() };
            ListVdisReply { view: self.view(), vdis: vec![vdi] }
        };
        Ok(Response::new(many(vec![batch("a"), batch("b")])))
    }

    async fn info(&self, request: Request<VdiInfoRequest>) -> Reply<VdiInfo> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(VdiInfo { view: self.view(), vdi: Some(self.vdi()), ..Default::default() }))
    }

    type ObjectStream = Many<ObjectReply>;

    async fn object(&self, request: Request<ObjectRequest>) -> Reply<Many<ObjectReply>> {
        let request = request.into_inner();
        self.asked(&request).await?;
        let copy = |node, state: CopyState| ObjectCopy { node, state: state.into(), up: true };
        let object = |index| ObjectPlace {
            index,
            allocated: true,
            oid: "01000000000000000500000000000007".into(),
            birth: 3 << 24,
            slot: 17,
            config: 2,
            copies: vec![copy(1, CopyState::InSync), copy(2, CopyState::CatchingUp)],
        };
        let objects = (request.first..request.first + request.count.max(1)).map(object).collect();
        Ok(Response::new(many(vec![ObjectReply { view: self.view(), objects }])))
    }

    type ReadStream = Many<ReadVdiReply>;

    async fn read(&self, request: Request<ReadVdiRequest>) -> Reply<Many<ReadVdiReply>> {
        let request = request.into_inner();
        self.asked(&request).await?;
        let disk = self.0.disk.lock().expect("lock").clone();
        let offset = request.offset as usize;
        let range = &disk[offset..offset + request.length as usize];
        let pieces: Vec<ReadVdiReply> = range
            .chunks(CHUNK)
            .enumerate()
            .map(|(i, chunk)| ReadVdiReply {
                offset: (offset + i * CHUNK) as u64,
                content: Some(match chunk.iter().all(|byte| *byte == 0) {
                    true => Content::Hole(chunk.len() as u64),
                    false => Content::Data(chunk.to_vec().into()),
                }),
            })
            .collect();
        if !self.0.script.dies_in_read {
            return Ok(Response::new(many(pieces)));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let state = self.0.clone();
        tokio::spawn(async move {
            sender.send(Ok(pieces[0].clone())).await.expect("listens");
            // Long enough for the chunk to be on its way; dying earlier tests less, but passes too.
            tokio::time::sleep(Duration::from_millis(200)).await;
            state.death.notify_one();
            std::future::pending::<()>().await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn write(&self, request: Request<Streaming<WriteVdiRequest>>) -> Reply<WriteVdiReply> {
        let mut parts = request.into_inner();
        let mut at = 0;
        let mut written = 0;
        while let Some(part) = parts.next().await {
            let data = match part?.part.expect("a part") {
                Part::Start(start) => {
                    self.asked(&start).await?;
                    at = start.offset as usize;
                    continue;
                }
                Part::Data(data) => data.to_vec(),
                Part::Hole(len) => vec![0; len as usize],
            };
            let mut disk = self.0.disk.lock().expect("lock");
            let Some(place) = disk.get_mut(at..at + data.len()) else {
                let error = AdminError::new(ErrorKind::Invalid, "beyond the end of the VDI");
                return Err(error.hint("write less").into());
            };
            place.copy_from_slice(&data);
            at += data.len();
            written += data.len() as u64;
        }
        Ok(Response::new(WriteVdiReply { written }))
    }

    type CheckStream = Many<CheckEvent>;

    async fn check(&self, request: Request<CheckVdiRequest>) -> Reply<Many<CheckEvent>> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(self.check()))
    }

    async fn lock_list(&self, request: Request<LockListRequest>) -> Reply<LockListReply> {
        self.asked(request.into_inner()).await?;
        let lock = Lock {
            vdi: "my-disk".into(),
            vdi_id: 5,
            client: "10.0.0.9:5000".into(),
            node: 1,
            attach_client: "worker-1".into(),
            attach_generation: 4,
            opened_ms: CREATED_MS,
            read_only: false,
        };
        Ok(Response::new(LockListReply { view: self.view(), locks: vec![lock], unanswered: vec![3] }))
    }

    async fn lock_unlock(&self, request: Request<LockUnlockRequest>) -> Reply<LockUnlockReply> {
        self.asked(request.into_inner()).await?;
        Ok(Response::new(LockUnlockReply { view: self.view(), closed: 2 }))
    }
}
