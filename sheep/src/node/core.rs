//! Everything in a node but its frontends: identity, membership, log, copies, owners, gateway, recovery.
//!
//! Started by [`super::Node`], and by simulations, which bring a network, a disk and a clock of their own.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::address::Address;
use wire::id::Session;

use super::NodeError;
use super::ground::{Ground, set_aside};
use super::host::{DiskUse, NodeHost};
use super::watch::{tick, watch_disk, watch_peers};
use crate::cluster::clock::Clock;
use crate::cluster::entry::NodeSpec;
use crate::cluster::leader::Leader;
use crate::cluster::log::{ClusterLog, LEADER_LEASE, LogConfig, OpenedLog};
use crate::cluster::session::{Lease, Me};
use crate::cluster::state::ClusterState;
use crate::cluster::view::View;
use crate::config::{ClusterConfig, Config};
use crate::gateway::{Forwarded, Gateway};
use crate::identity::{Identity, IdentityFile};
use crate::introduce::Seeds;
use crate::machine::{blocking, wall_ms};
use crate::membership::{Membership, MeshGreeter, Ring, Standing};
use crate::peer::{Listener, Net, Peers};
use crate::recovery::Recovery;
use crate::replica::Replica;
use crate::service::{MeshLogNet, NodeService, Started};
use crate::store::{self, LocalStore, lockfile};
use crate::vdi::context::Context;
use crate::vdi::owners::Owners;
use crate::vdi::requests::OpenRequests;

/// The machine as the core sees it; the file system comes with the [`Ground`].
pub(crate) struct Seams {
    pub(crate) net: Arc<dyn Net>,
    pub(crate) seeds: Arc<dyn Seeds>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Bounds of the store.
    pub(crate) store: store::Options,
}

/// Where a node is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// The admin API.
    pub(crate) admin: SocketAddr,
    /// Where the mesh listens, if there is one.
    pub(crate) mesh_listen: Option<SocketAddr>,
    /// Where others reach the mesh.
    pub(crate) mesh: SocketAddr,
}

/// A running node without its frontends.
pub(crate) struct Core {
    pub(crate) me: Arc<Me>,
    pub(crate) host: Arc<NodeHost>,
    pub(crate) service: Arc<NodeService>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) tasks: TaskTracker,
    /// Ends background work, once the node has left its ring.
    pub(crate) cancel: CancellationToken,
    pub(crate) membership: Arc<Membership>,
    pub(crate) ring: Arc<Ring>,
    pub(crate) replica: Option<Arc<Replica>>,
    pub(crate) recovery: Option<Arc<Recovery>>,
    pub(crate) owners: Arc<Owners>,
    pub(crate) shutdown: CancellationToken,
    mesh: Mesh,
    _lock: lockfile::DirLock,
}

/// This node among others, before its log has started.
struct Mesh {
    peers: Peers,
    listener: Option<Listener>,
}

impl Mesh {
    async fn stop(&self) {
        if let Some(listener) = &self.listener {
            listener.stop().await;
        }
        self.peers.stop().await;
    }
}

/// What every start of a node is told.
struct Start<'a> {
    config: &'a Config,
    places: Places,
    seams: &'a Seams,
    tasks: TaskTracker,
    local: bool,
}

/// Who a node is, and what it has to be that with.
struct Somebody {
    me: Arc<Me>,
    membership: Arc<Membership>,
    service: Arc<NodeService>,
    mesh: Mesh,
    log: OpenedLog<ClusterState>,
}

impl Start<'_> {
    /// Begins to speak to others. The mesh answers introductions before the log starts: others may be
    /// waiting for what this directory remembers of them.
    async fn mesh(
        &self,
        me: &Arc<Me>,
        identity: IdentityFile,
    ) -> Result<(Arc<Membership>, Arc<NodeService>, Mesh), NodeError> {
        let seeds: Vec<Address> = match &self.config.cluster {
            ClusterConfig::Local => Vec::new(),
            ClusterConfig::Mesh { seeds, .. } => seeds.clone(),
        };
        let (reached, nonce) = (identity.identity.reached.clone(), identity.identity.nonce());
        let spec = NodeSpec { reached, nonce, ..spec_of(self.config, me, &self.places) };
        let membership =
            Membership::new(me.clone(), spec, identity, seeds, self.seams.seeds.clone(), self.local);
        let service = Arc::new(NodeService {
            membership: membership.clone(),
            peers: OnceLock::new(),
            started: OnceLock::new(),
            tasks: self.tasks.clone(),
        });
        let greeter = Arc::new(MeshGreeter { membership: membership.clone(), address: self.places.mesh });
        let peers = Peers::new(self.seams.net.clone(), greeter.clone());
        _ = service.peers.set(peers.clone());
        let listener = match self.places.mesh_listen {
            None => None,
            Some(address) => Some(
                Listener::start(&*self.seams.net, address, greeter, service.clone())
                    .await
                    .map_err(|source| NodeError::Listen { what: "the mesh", address, source })?,
            ),
        };
        Ok((membership, service, Mesh { peers, listener }))
    }

    /// Speaks to others as whoever the directory says, or, where it is a copy, as a new node.
    async fn be_somebody(&self, ground: &mut Ground) -> Result<Somebody, NodeError> {
        loop {
            let node = ground.identity.identity.node();
            let log = OpenedLog::open(ground.fs.clone(), &ground.dir, node).await?;
            // Before this process hears of anything more.
            ground.identity.update(|i| i.note_reached(log.reached()))?;
            let identity = &ground.identity.identity;
            let me = Me::new(Session { node: identity.node(), start: identity.start }, ground.boot);
            let fresh = IdentityFile::open(ground.fs.clone(), &ground.dir)?;
            let identity = std::mem::replace(&mut ground.identity, fresh);
            let (membership, service, mesh) = self.mesh(&me, identity).await?;
            let alone = self.local || membership.identity().lock().identity.cluster.is_none();
            let standing = match alone {
                true => Standing::Newest,
                false => membership.standing(&mesh.peers, log.reached()).await.map_err(NodeError::Fatal)?,
            };
            if standing == Standing::Newest {
                membership.identity().lock().update(Identity::take_part)?;
                return Ok(Somebody { me, membership, service, mesh, log });
            }
            mesh.stop().await;
            drop(log);
            ground.identity = IdentityFile::open(ground.fs.clone(), &ground.dir)?;
            set_aside(ground)?;
        }
    }

    async fn store(&self, ground: &Ground) -> Result<Option<Arc<LocalStore>>, NodeError> {
        if self.config.node.gateway {
            return Ok(None);
        }
        let (fs, dir, options) = (ground.fs.clone(), ground.dir.clone(), self.seams.store.clone());
        let options = crate::store::Options { boot: ground.boot, ..options };
        let opened = blocking(move || LocalStore::open(fs, &dir, options));
        Ok(Some(Arc::new(opened.await.map_err(|e| NodeError::Fatal(e.to_string()))??)))
    }

    fn log_config(&self, me: &Me) -> LogConfig {
        let (timing, log) = (&self.config.timing, LogConfig::new(me.session().node));
        let stand = |after: std::time::Duration| after.saturating_sub(LEADER_LEASE);
        LogConfig {
            heartbeat: timing.heartbeat,
            stand_after: (stand(timing.election_min), stand(timing.election_max)),
            ..log
        }
    }
}

impl Core {
    /// Starts a node in its directory; returns when it takes part as far as it can.
    pub(crate) async fn start(
        config: &Config,
        mut ground: Ground,
        places: Places,
        seams: Seams,
    ) -> Result<Self, NodeError> {
        let (tasks, cancel, shutdown) =
            (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let local = matches!(config.cluster, ClusterConfig::Local);
        let start = Start { config, places, seams: &seams, tasks: tasks.clone(), local };
        let Somebody { me, membership, service, mesh, log: opened } = start.be_somebody(&mut ground).await?;
        let store = start.store(&ground).await?;
        let net = Arc::new(MeshLogNet { peers: mesh.peers.clone(), membership: membership.clone() });
        let clock = seams.clock.clone();
        let log = ClusterLog::start(opened, start.log_config(&me), net, clock.clone()).await?;
        let view = View::new(log.watch());
        let lease = Arc::new(Lease::new(clock.clone()));
        let leader =
            Leader::new(&me, log.clone(), view.clone(), clock, seams.net.clone(), config.timing.dead_after);
        let ring = Arc::new(Ring {
            log: log.clone(),
            view: view.clone(),
            peers: mesh.peers.clone(),
            lease: lease.clone(),
            leader,
        });
        let replica = store.map(|s| Replica::new(me.clone(), s, view.clone()));
        let context = Arc::new(Context {
            identity: me.clone(),
            view,
            log,
            peers: mesh.peers.clone(),
            replica: replica.clone(),
            lease,
            requests: OpenRequests::new(),
        });
        let owners = Owners::new(context.clone(), tasks.clone(), cancel.clone());
        let gateway = Gateway::new(context.clone(), owners.clone());
        let recovery = replica.clone().map(|r| Recovery::new(context.clone(), r));
        let host = Arc::new_cyclic(|own| NodeHost {
            own: own.clone(),
            config: config.clone(),
            me: me.clone(),
            membership: membership.clone(),
            ring: ring.clone(),
            context,
            gateway: gateway.clone(),
            recovery: recovery.clone(),
            shutdown: shutdown.clone(),
            dir: ground.dir.clone(),
            used: DiskUse::default(),
            started_ms: wall_ms(),
            nbd: OnceLock::new(),
        });
        let status = host.clone();
        let started = Started {
            ring: ring.clone(),
            replica: replica.clone(),
            forwarded: Forwarded::new(gateway.clone(), tasks.clone()),
            status: Box::new(move || status.own_status()),
            shutdown: shutdown.clone(),
        };
        _ = service.started.set(Arc::new(started));
        let core = Self {
            me,
            host,
            service,
            gateway,
            tasks,
            cancel,
            membership,
            ring,
            replica,
            recovery,
            owners,
            shutdown,
            mesh,
            _lock: ground.lock,
        };
        core.work(ground.fs, ground.dir);
        Ok(core)
    }

    /// Starts what goes on in the background.
    fn work(&self, fs: Arc<dyn store::FileSystem>, dir: std::path::PathBuf) {
        let (tasks, cancel) = (&self.tasks, &self.cancel);
        tasks.spawn(self.membership.clone().run(self.ring.clone(), cancel.clone()));
        tasks.spawn(self.ring.leader.clone().run(tasks.clone(), cancel.clone()));
        tasks.spawn(watch_peers(self.ring.clone(), cancel.clone()));
        if let Some(recovery) = &self.recovery {
            tasks.spawn(recovery.clone().run(cancel.clone()));
        }
        if let Some(replica) = &self.replica {
            tasks.spawn(tick(replica.clone(), cancel.clone()));
            tasks.spawn(watch_disk(replica.clone(), fs, dir, cancel.clone()));
        }
    }

    /// Returns when the node was asked to stop, or must not go on. Cancel-safe.
    pub(crate) async fn ended(&self) -> Result<(), NodeError> {
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

    /// Stops in order: ownership, data, membership, log, connections. Clients must have gone. Others notice
    /// nothing but one change of owner.
    pub(crate) async fn stop(self) {
        self.owners.release_all().await;
        if let Some(replica) = &self.replica {
            let store = replica.store().clone();
            match blocking(move || store.flush_all()).await {
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
        self.ring.log.clone().stop().await;
        self.mesh.stop().await;
        if let Some(replica) = &self.replica {
            let store = replica.store().clone();
            if let Ok(Err(error)) = blocking(move || store.close()).await {
                tracing::error!(%error, "the store was not closed in order");
            }
        }
        self.tasks.close();
        if tokio::time::timeout(super::PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!("background tasks did not end in time");
        }
    }
}

fn spec_of(config: &Config, me: &Me, places: &Places) -> NodeSpec {
    let session = me.session();
    NodeSpec {
        session,
        process: me.process,
        nonce: 0,
        boot: me.boot,
        admin: places.admin.to_string(),
        mesh: places.mesh.to_string(),
        zone: config.node.zone.clone().unwrap_or_else(|| session.node.to_string()),
        vnodes: config.node.vnodes.max(1),
        gateway: config.node.gateway,
        reached: Vec::new(),
    }
}
