//! A node: everything in it, started from the disk upwards and stopped the other way round.
//!
//! Called by `main` and by tests that embed a node.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::frame::Payload;
use wire::id::{ClusterId, NodeId, Session};
use wire::mesh::Introduction;
use wire::mesh::introductions_server::{Introductions, IntroductionsServer};
use wire::peer::{IntroduceMessage, NodeStatusReply, Status, SuspectRequest, op};
use wire::policy::Copies;

use crate::admin::{self, Admin, FormatError, Host};
use crate::cluster::clock::RealClock;
use crate::cluster::entry::{ClusterEntry, ClusterReply, NodeSpec, Refusal};
use crate::cluster::leader::{Leader, now_ms};
use crate::cluster::log::{self, ClusterLog, LEADER_LEASE};
use crate::cluster::session::{Lease, Me};
use crate::cluster::view::View;
use crate::config::{ClusterConfig, Config};
use crate::gateway::{Forwarded, Gateway, NbdExports};
use crate::identity::{self, IdentityError, IdentityFile};
use crate::membership::{Membership, MeshGreeter, Ring};
use crate::nbd;
use crate::peer::{Class, Listener, LostReason, PeerEvent, Peers, TcpNet};
use crate::recovery::Recovery;
use crate::replica::Replica;
use crate::service::{MeshLogNet, NodeService, Started};
use crate::store::{self, LocalStore, RealFs, lockfile};
use crate::vdi::context::Context;
use crate::vdi::owners::Owners;
use crate::vdi::requests::OpenRequests;

/// How long clients' last requests may take when the node stops.
const NBD_PATIENCE: Duration = Duration::from_secs(3);
/// How often the store looks after its marks.
const TICK_EVERY: Duration = Duration::from_secs(2);
/// How often the disk is asked for a sign of life, and how long it may take to give one.
const DISK_EVERY: Duration = Duration::from_secs(5);
const DISK_PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for the log in what an operator asked for.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// Why a node did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The directory cannot be made or read.
    #[error("{path}: {source}", path = path.display())]
    Dir {
        /// The directory, or a file in it.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What the directory remembers cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The objects cannot be used, or another process has the directory.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The cluster log cannot be used.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// A port cannot be had.
    #[error("cannot listen on {address} for {what}: {source}; choose another port or stop what uses it")]
    Listen {
        /// For whom.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The NBD server did not start.
    #[error(transparent)]
    Nbd(#[from] nbd::StartError),
    /// The directory was used in another way before.
    #[error("{dir}: {problem}", dir = dir.display())]
    Misused {
        /// The directory.
        dir: PathBuf,
        /// What does not fit, and the way out.
        problem: String,
    },
    /// The node may not go on.
    #[error("{0}")]
    Fatal(String),
}

/// A running node.
pub struct Node {
    line: String,
    membership: Arc<Membership>,
    ring: Arc<Ring>,
    replica: Option<Arc<Replica>>,
    owners: Arc<Owners>,
    nbd: Option<nbd::Server>,
    listener: Option<Listener>,
    peers: Peers,
    /// Ends background work.
    cancel: CancellationToken,
    /// Ends the admin server, last of the frontends.
    admin_cancel: CancellationToken,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    _lock: lockfile::DirLock,
}

/// What the configuration and the directory say, before anything runs.
struct Ground {
    dir: PathBuf,
    identity: IdentityFile,
    lock: lockfile::DirLock,
    boot: u128,
}

fn prepare(dir: &Path, local: bool) -> Result<Ground, NodeError> {
    let io = |source| NodeError::Dir { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    let dir = dir.canonicalize().map_err(io)?;
    let lock = lockfile::lock(&RealFs, &dir)?;
    let mut identity = IdentityFile::open(&dir)?;
    if identity.identity.start == 0 {
        // A directory with data but no identity is not ours to use.
        for name in ["objects", "log.redb"] {
            if dir.join(name).exists() {
                return Err(NodeError::Misused {
                    problem: format!(
                        "it holds {name:?} but no identity; restore the file \"identity\", or start with an \
                         empty directory"
                    ),
                    dir,
                });
            }
        }
    }
    if local && identity.identity.cluster.is_some() && !identity.identity.local {
        return Err(NodeError::Misused {
            problem: "it belongs to a ring; start it with --cluster-driver sdcluster".to_owned(),
            dir,
        });
    }
    if identity.identity.cluster.is_some()
        && std::fs::metadata(dir.join("log.redb")).map_or(0, |m| m.len()) == 0
    {
        return Err(NodeError::Misused {
            problem: "it belongs to a ring, but \"log.redb\", which knows its VDIs, is missing or empty; restore \
                      it, or start with an empty directory: the node then joins anew and the ring copies its data \
                      back"
                .to_owned(),
            dir,
        });
    }
    identity.update(|i| i.start += 1)?;
    Ok(Ground { dir, identity, lock, boot: identity::boot_id()? })
}

/// Puts a directory's data aside and makes it that of a new, empty node (rule 3).
fn set_aside(ground: &mut Ground) -> Result<(), NodeError> {
    let aside = ground.dir.join(format!("set-aside-{}", now_ms()));
    let io = |source| NodeError::Dir { path: aside.clone(), source };
    std::fs::create_dir(&aside).map_err(io)?;
    for entry in std::fs::read_dir(&ground.dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let ours = text == "objects"
            || text.starts_with("intents.")
            || text.starts_with("seals.")
            || text.starts_with("log.");
        if ours {
            std::fs::rename(entry.path(), aside.join(&name)).map_err(io)?;
        }
    }
    tracing::warn!(
        aside = %aside.display(),
        "the directory is older than what the ring has seen of it (a copy, or restored): its data is set \
         aside, and the node joins as a new, empty one"
    );
    ground.identity.forget()?;
    ground.identity.update(|i| i.start = 1)?;
    Ok(())
}

/// The address under which others reach this machine, where it listens on all of its interfaces.
async fn advertised(listen: SocketAddr, seeds: &[wire::address::Address]) -> IpAddr {
    if !listen.ip().is_unspecified() {
        return listen.ip();
    }
    for seed in seeds {
        let Ok(mut addresses) = tokio::net::lookup_host(seed.to_string()).await else { continue };
        let Some(address) = addresses.find(|a| a.is_ipv4() == listen.is_ipv4()) else { continue };
        // Connecting a datagram socket sends nothing; it only chooses the way.
        if let Ok(socket) = std::net::UdpSocket::bind((listen.ip(), 0))
            && socket.connect(address).is_ok()
            && let Ok(own) = socket.local_addr()
        {
            return own.ip();
        }
    }
    IpAddr::from([127, 0, 0, 1])
}

impl Node {
    /// Starts a node; returns when it serves what it can: admin and mesh always, NBD as configured.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        let local = matches!(config.cluster, ClusterConfig::Local);
        let dir = config.dir.clone();
        let ground = tokio::task::spawn_blocking(move || prepare(&dir, local));
        let mut ground = ground.await.map_err(|e| NodeError::Fatal(e.to_string()))??;
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());

        let bind = |what, address| async move {
            TcpListener::bind(address).await.map_err(|source| NodeError::Listen { what, address, source })
        };
        let admin_listener = bind("the admin API", config.admin).await?;
        let admin_address = admin_listener.local_addr().unwrap_or(config.admin);
        let (mesh_listen, seeds) = match &config.cluster {
            ClusterConfig::Local => (None, Vec::new()),
            ClusterConfig::Mesh { listen, seeds, .. } => (Some(*listen), seeds.clone()),
        };
        let ip = advertised(mesh_listen.unwrap_or(admin_address), &seeds).await;
        let mesh_address = SocketAddr::new(ip, mesh_listen.map_or(admin_address.port(), |m| m.port()));

        // The mesh answers introductions before the log starts: others may be waiting for what this
        // directory remembers of them.
        let (me, membership, service, peers, listener) = loop {
            let me = Me::new(
                Session { node: ground.identity.identity.node(), start: ground.identity.identity.start },
                ground.boot,
            );
            let spec = spec_of(&config, &me, SocketAddr::new(ip, admin_address.port()), mesh_address);
            let identity = std::mem::replace(&mut ground.identity, IdentityFile::open(&ground.dir)?);
            let membership = Membership::new(me.clone(), spec, identity, seeds.clone(), local);
            let service = Arc::new(NodeService {
                membership: membership.clone(),
                peers: OnceLock::new(),
                started: OnceLock::new(),
                tasks: tasks.clone(),
            });
            let greeter = Arc::new(MeshGreeter { membership: membership.clone(), address: mesh_address });
            let peers = Peers::new(Arc::new(TcpNet), greeter.clone());
            _ = service.peers.set(peers.clone());
            let listener = match mesh_listen {
                None => None,
                Some(address) => Some(
                    Listener::start(&TcpNet, address, greeter, service.clone())
                        .await
                        .map_err(|source| NodeError::Listen { what: "the mesh", address, source })?,
                ),
            };
            if local || membership.identity().lock().identity.cluster.is_none() {
                break (me, membership, service, peers, listener);
            }
            if membership.start_seen(&peers).await.map_err(NodeError::Fatal)? < me.session().start {
                membership.join_first(&peers).await.map_err(NodeError::Fatal)?;
                break (me, membership, service, peers, listener);
            }
            if let Some(listener) = listener {
                listener.stop().await;
            }
            peers.stop().await;
            ground.identity = IdentityFile::open(&ground.dir)?;
            set_aside(&mut ground)?;
        };

        let dir = ground.dir.clone();
        let gateway_only = config.node.gateway;
        let store = tokio::task::spawn_blocking(move || {
            if gateway_only {
                return Ok(None);
            }
            LocalStore::open(Arc::new(RealFs), &dir, store::Options::default()).map(|s| Some(Arc::new(s)))
        });
        let store = store.await.map_err(|e| NodeError::Fatal(e.to_string()))??;
        let mut log_config = log::LogConfig::new(me.session().node);
        log_config.heartbeat = config.timing.heartbeat;
        log_config.stand_after = (
            config.timing.election_min.saturating_sub(LEADER_LEASE),
            config.timing.election_max.saturating_sub(LEADER_LEASE),
        );
        let net = Arc::new(MeshLogNet { peers: peers.clone(), membership: membership.clone() });
        let log = ClusterLog::open(&ground.dir, log_config, net).await?;
        let view = View::new(log.watch());
        let clock = Arc::new(RealClock);
        let lease = Arc::new(Lease::new(clock.clone()));
        let leader =
            Leader::new(me.session().node, log.clone(), view.clone(), clock, config.timing.dead_after);
        let ring = Arc::new(Ring {
            log: log.clone(),
            view: view.clone(),
            peers: peers.clone(),
            lease: lease.clone(),
            leader: leader.clone(),
        });
        let replica = store.map(|s| Replica::new(me.clone(), s, view.clone()));
        let context = Arc::new(Context {
            identity: me.clone(),
            view,
            log,
            peers: peers.clone(),
            replica: replica.clone(),
            lease,
            requests: OpenRequests::new(),
        });
        let owners = Owners::new(context.clone(), tasks.clone(), cancel.clone());
        let gateway = Gateway::new(context.clone(), owners.clone());
        let recovery = replica.clone().map(|r| Recovery::new(context.clone(), r));
        let shutdown = CancellationToken::new();
        let host = Arc::new(NodeHost {
            config: config.clone(),
            me: me.clone(),
            membership: membership.clone(),
            ring: ring.clone(),
            context: context.clone(),
            gateway: gateway.clone(),
            recovery: recovery.clone(),
            shutdown: shutdown.clone(),
            dir: ground.dir.clone(),
            used: DiskUse::default(),
            started_ms: now_ms(),
            nbd: OnceLock::new(),
        });
        let (status, listening) = (host.clone(), host.clone());
        let started = Started {
            ring: ring.clone(),
            replica: replica.clone(),
            forwarded: Forwarded::new(gateway.clone(), tasks.clone()),
            status: Box::new(move || status.own_status()),
            shutdown: shutdown.clone(),
        };
        _ = service.started.set(Arc::new(started));

        tasks.spawn(membership.clone().run(ring.clone(), cancel.clone()));
        tasks.spawn(leader.run(tasks.clone(), cancel.clone()));
        tasks.spawn(watch_peers(ring.clone(), cancel.clone()));
        if let Some(recovery) = recovery {
            tasks.spawn(recovery.run(cancel.clone()));
        }
        if let Some(replica) = &replica {
            tasks.spawn(tick(replica.clone(), cancel.clone()));
            tasks.spawn(watch_disk(replica.clone(), ground.dir.clone(), cancel.clone()));
        }
        let admin_cancel = CancellationToken::new();
        let admin = Admin::new(gateway.clone(), host, tasks.clone(), admin_cancel.clone());
        let introductions = IntroductionsServer::new(EarlyIntroductions(service));
        let routes = admin::routes(&admin).add_service(introductions);
        tasks.spawn(admin::serve(admin_listener, routes, admin_cancel.clone()));

        let exports = Arc::new(NbdExports { gateway });
        let nbd_config = nbd::Config {
            tcp: config.nbd.tcp.into_iter().collect(),
            unix: config.nbd.socket.clone(),
            ..nbd::Config::default()
        };
        let nbd = if nbd_config.tcp.is_empty() && nbd_config.unix.is_none() {
            None
        } else {
            Some(nbd::Server::start(nbd_config, exports).await?)
        };
        let mut served: Vec<String> =
            nbd.iter().flat_map(|n| n.addresses()).map(|address| address.to_string()).collect();
        served.extend(config.nbd.socket.iter().map(|path| format!("unix:{}", path.display())));
        _ = listening.nbd.set(served);
        let mut line = format!("sheep {} serves: admin {admin_address}", me.session().node);
        if let Some(mesh) = mesh_listen {
            line += &format!(", mesh {mesh}");
        }
        for address in nbd.iter().flat_map(|n| n.addresses()) {
            line += &format!(", nbd {address}");
        }
        if let Some(path) = &config.nbd.socket {
            line += &format!(", nbd {}", path.display());
        }
        Ok(Self {
            line,
            membership,
            ring,
            replica,
            owners,
            nbd,
            listener,
            peers,
            cancel,
            admin_cancel,
            shutdown,
            tasks,
            _lock: ground.lock,
        })
    }

    /// What to tell whoever started the node: one line, with every address that it serves.
    pub fn serving_line(&self) -> &str {
        &self.line
    }

    /// Returns when the node was asked to stop, or must not go on. Cancel-safe.
    pub async fn ended(&self) -> Result<(), NodeError> {
        let mut fatal = self.membership.fatal();
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            error = self.ring.log.stopped() => Err(error.into()),
            why = fatal.wait_for(Option::is_some) => {
                let why = why.ok().and_then(|w| w.clone()).unwrap_or_default();
                Err(NodeError::Fatal(why))
            }
        }
    }

    /// Stops in order: clients, ownership, data, membership, log, connections. Others notice nothing but
    /// one change of owner.
    pub async fn stop(self) {
        if let Some(nbd) = self.nbd
            && tokio::time::timeout(NBD_PATIENCE, nbd.stop()).await.is_err()
        {
            tracing::warn!("clients' last requests did not end in time");
        }
        self.owners.release_all().await;
        if let Some(replica) = &self.replica {
            let store = replica.store().clone();
            match tokio::task::spawn_blocking(move || store.flush_all()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the last flush failed"),
                Err(error) => tracing::error!(%error, "the last flush failed"),
            }
        }
        if self.ring.view.state().format().is_some() {
            self.membership.leave(&self.ring).await;
            self.ring.log.step_down().await;
        }
        self.cancel.cancel();
        self.admin_cancel.cancel();
        self.ring.log.clone().stop().await;
        if let Some(listener) = &self.listener {
            listener.stop().await;
        }
        self.peers.stop().await;
        if let Some(replica) = &self.replica {
            let store = replica.store().clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.close()).await {
                tracing::error!(%error, "the store was not closed in order");
            }
        }
        self.tasks.close();
        if tokio::time::timeout(NBD_PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!("background tasks did not end in time");
        }
    }
}

fn spec_of(config: &Config, me: &Me, admin: SocketAddr, mesh: SocketAddr) -> NodeSpec {
    let session = me.session();
    NodeSpec {
        session,
        process: me.process,
        boot: me.boot,
        admin: admin.to_string(),
        mesh: mesh.to_string(),
        zone: config.node.zone.clone().unwrap_or_else(|| session.node.to_string()),
        vnodes: config.node.vnodes.max(1),
        gateway: config.node.gateway,
    }
}

/// Connections that break are the first sign of a death: the leader hears of them at once.
async fn watch_peers(ring: Arc<Ring>, cancel: CancellationToken) {
    let mut events = ring.peers.events();
    let watch = async {
        loop {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            };
            let PeerEvent::Lost { node, reason, .. } = event else { continue };
            if !matches!(reason, LostReason::Reset | LostReason::Refused | LostReason::Eof) {
                continue;
            }
            if ring.leader.leads() {
                ring.leader.suspect(node);
                continue;
            }
            let leader = ring.log.leader().map(|l| l.node).filter(|l| *l != node);
            let Some(leader) = leader else { continue };
            let session = Session { node, start: 0 };
            let meta = SuspectRequest { session: session.into() }.encode_to_vec().into();
            let report = ring.peers.call(
                leader,
                Class::Control,
                op::SUSPECT,
                meta,
                Payload::empty(),
                Some(Duration::from_millis(200)),
            );
            if let Err(error) = report.await {
                tracing::debug!(%error, "a broken connection was not reported");
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = watch => {}
    }
}

async fn tick(replica: Arc<Replica>, cancel: CancellationToken) {
    while tokio::time::timeout(TICK_EVERY, cancel.cancelled()).await.is_err() {
        let own = replica.clone();
        let ticked = tokio::task::spawn_blocking(move || own.store().tick().map_err(|e| own.status(e)));
        if let Ok(Err(status)) = ticked.await {
            tracing::warn!(?status, "the store could not look after its marks");
        }
    }
}

/// A disk that hangs while the node's heartbeat lives would hold up every write: it is taken out (rule 12).
async fn watch_disk(replica: Arc<Replica>, dir: PathBuf, cancel: CancellationToken) {
    let path = dir.join("alive");
    while tokio::time::timeout(DISK_EVERY, cancel.cancelled()).await.is_err() {
        let path = path.clone();
        let sign = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::create(&path)?;
            file.sync_all()
        });
        match tokio::time::timeout(DISK_PATIENCE, sign).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) if error.kind() == std::io::ErrorKind::StorageFull => {}
            Ok(Ok(Err(error))) => replica.fail(format!("the disk gives no sign of life: {error}")),
            Ok(Err(_)) => return,
            Err(_) => replica.fail(format!("the disk has not answered for {DISK_PATIENCE:?}")),
        }
    }
}

/// Answers introductions that come over the admin port, where seeds are known by.
struct EarlyIntroductions(Arc<NodeService>);

#[async_trait]
impl Introductions for EarlyIntroductions {
    async fn introduce(
        &self,
        request: tonic::Request<Introduction>,
    ) -> Result<tonic::Response<Introduction>, tonic::Status> {
        let from = request.remote_addr().map(|a| a.ip());
        let message = IntroduceMessage::decode(request.into_inner().message)
            .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
        let service = self.0.clone();
        let Some(peers) = service.peers.get().cloned() else {
            return Err(tonic::Status::unavailable("the node is starting"));
        };
        let state = service.started.get().map(|s| s.ring.view.state()).unwrap_or_default();
        let fresh = service.started.get().is_some_and(|s| s.ring.lease.is_valid());
        let answered = tokio::task::spawn_blocking(move || {
            service.membership.introduced(&message, from, &peers, &state, fresh)
        });
        let reply = answered.await.map_err(|error| tonic::Status::internal(error.to_string()))?;
        Ok(tonic::Response::new(Introduction { message: reply.encode_to_vec().into() }))
    }
}

/// What the admin API needs of this node.
struct NodeHost {
    config: Config,
    me: Arc<Me>,
    membership: Arc<Membership>,
    ring: Arc<Ring>,
    context: Arc<Context>,
    gateway: Arc<Gateway>,
    recovery: Option<Arc<Recovery>>,
    shutdown: CancellationToken,
    dir: PathBuf,
    used: DiskUse,
    started_ms: u64,
    /// Where NBD listens, once it does.
    nbd: OnceLock<Vec<String>>,
}

/// Bytes of memory that the process holds.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// What the objects take on disk: counted when asked, but not more often than every few seconds.
#[derive(Default)]
struct DiskUse(Mutex<Option<(std::time::Instant, u64)>>);

impl DiskUse {
    const FRESH: Duration = Duration::from_secs(2);

    /// Blocks.
    fn bytes(&self, dir: &Path) -> u64 {
        let mut counted = self.0.lock();
        match *counted {
            Some((when, bytes)) if when.elapsed() < Self::FRESH => bytes,
            _ => {
                let bytes = allocated_below(dir);
                *counted = Some((std::time::Instant::now(), bytes));
                bytes
            }
        }
    }
}

/// Bytes allocated to files below a directory; what vanishes meanwhile does not count.
fn allocated_below(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => allocated_below(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

impl NodeHost {
    fn own_status(&self) -> NodeStatusReply {
        let mut reply = NodeStatusReply {
            applied: self.context.view.applied().index,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started_ms,
            nbd: self.nbd.get().cloned().unwrap_or_default(),
            connections: self.gateway.open_handles(),
            memory_bytes: resident_bytes(),
            ..Default::default()
        };
        if let Some(replica) = &self.context.replica {
            if let Ok(space) = replica.store().space() {
                reply.space_total = space.total;
                reply.space_free = space.free;
                reply.space_used = self.used.bytes(&self.dir.join("objects"));
            }
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let counters = &replica.counters;
            reply.counters = HashMap::from([
                ("sheep_replica_writes_total".to_owned(), count(&counters.writes)),
                ("sheep_replica_written_bytes_total".to_owned(), count(&counters.bytes_written)),
                ("sheep_replica_reads_total".to_owned(), count(&counters.reads)),
                ("sheep_replica_read_bytes_total".to_owned(), count(&counters.bytes_read)),
                ("sheep_replica_flushes_total".to_owned(), count(&counters.flushes)),
                ("sheep_replica_refused_total".to_owned(), count(&counters.refused)),
                ("sheep_replica_damaged_total".to_owned(), count(&counters.damaged)),
                ("sheep_replica_recent_writes".to_owned(), replica.recent_writes()),
            ]);
        }
        reply
            .counters
            .insert("sheep_gateway_longest_request_milliseconds".to_owned(), self.gateway.longest_ms());
        if let Some(recovery) = &self.recovery {
            let progress = &recovery.progress;
            reply.slots_left = progress.slots_left.load(Ordering::Relaxed);
            reply.slots_done = progress.slots_done.load(Ordering::Relaxed);
            reply.objects_done = progress.objects_done.load(Ordering::Relaxed);
            reply.bytes_done = progress.bytes_done.load(Ordering::Relaxed);
        }
        reply
    }
}

#[async_trait]
impl Host for NodeHost {
    fn spec(&self) -> NodeSpec {
        self.membership.spec()
    }

    fn default_copies(&self) -> Copies {
        self.config.copies
    }

    fn known_nodes(&self) -> Vec<NodeSpec> {
        self.membership.waiting()
    }

    fn driver(&self) -> &'static str {
        match self.config.cluster {
            ClusterConfig::Local => "local",
            ClusterConfig::Mesh { .. } => "sdcluster",
        }
    }

    async fn format(&self, copies: Copies, slots: u32, force: bool) -> Result<(), FormatError> {
        if let Some(format) = self.context.view.state().format() {
            if !force {
                return Err(FormatError::AlreadyFormatted);
            }
            tracing::warn!(cluster = %format.cluster, "the ring is formatted anew: its VDIs are deleted");
            return self.reformat(copies, slots).await;
        }
        if let Some(other) = self.membership.known_in_ring() {
            return Err(FormatError::SeedInRing(other.admin));
        }
        let nodes = self.membership.waiting();
        let have = nodes.iter().filter(|n| !n.gateway).count();
        let need = usize::from(copies.get());
        if have == 0 || (have < need && !force) {
            return Err(FormatError::TooFewNodes { have, need: need.max(1) });
        }
        if crate::placement::SlotCount::new(slots).is_err() {
            return Err(FormatError::BadSlots(slots));
        }
        // Killed in the middle of a format, the directory may have a ring that is not formatted yet.
        let cluster = self.membership.cluster().unwrap_or_else(|| ClusterId(rand::random()));
        self.membership.belong(cluster).await.map_err(FormatError::Log)?;
        match self.ring.log.found().await {
            Ok(()) | Err(log::LogError::AlreadyFounded) => {}
            Err(error) => return Err(FormatError::Log(error.to_string())),
        }
        let entry = ClusterEntry::Format { cluster, copies, slots, nodes, now_ms: now_ms() };
        match self.ring.log.propose(entry, LOG_PATIENCE).await {
            Ok((_, ClusterReply::Refused(Refusal::AlreadyFormatted))) => Err(FormatError::AlreadyFormatted),
            Ok((_, ClusterReply::Refused(refusal))) => Err(FormatError::Log(refusal.to_string())),
            Ok((index, _)) => {
                self.context.view.reaches(index).await;
                self.wait_for_members(index).await;
                Ok(())
            }
            Err(error) => Err(FormatError::Log(error.to_string())),
        }
    }

    fn view_is_fresh(&self) -> bool {
        self.context.lease.is_valid()
    }

    async fn node_status(&self, node: NodeId) -> Option<NodeStatusReply> {
        if node == self.me.session().node {
            return tokio::task::block_in_place(|| Some(self.own_status()));
        }
        let call = self.ring.peers.call(
            node,
            Class::Control,
            op::NODE_STATUS,
            prost::bytes::Bytes::new(),
            Payload::empty(),
            Some(Duration::from_secs(2)),
        );
        let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
        NodeStatusReply::decode(reply.meta).ok()
    }

    fn shutdown(&self) {
        self.shutdown.cancel();
    }
}

impl NodeHost {
    async fn reformat(&self, copies: Copies, slots: u32) -> Result<(), FormatError> {
        if crate::placement::SlotCount::new(slots).is_err() {
            return Err(FormatError::BadSlots(slots));
        }
        let entry = ClusterEntry::Reformat { copies, slots, now_ms: now_ms() };
        match self.ring.log.propose(entry, LOG_PATIENCE).await {
            Ok((_, ClusterReply::Refused(Refusal::InUse(node)))) => Err(FormatError::InUse(node)),
            Ok((_, ClusterReply::Refused(refusal))) => Err(FormatError::Log(refusal.to_string())),
            Ok((index, _)) => {
                self.context.view.reaches(index).await;
                self.wait_for_members(index).await;
                Ok(())
            }
            Err(error) => Err(FormatError::Log(error.to_string())),
        }
    }

    /// After format: until everybody who was counted in has the log, or a few seconds have passed.
    async fn wait_for_members(&self, index: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while tokio::time::Instant::now() < deadline {
            let state = self.context.view.state();
            let live: Vec<NodeId> = state.nodes().filter_map(|n| n.live_session()).map(|s| s.node).collect();
            let have = futures::future::join_all(live.iter().map(|n| self.node_status(*n))).await;
            let all = have.iter().all(|s| s.as_ref().is_some_and(|s| s.applied >= index));
            if all && self.view_is_fresh() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
