//! A node: everything in it, started from the disk upwards and stopped the other way round.
//!
//! Called by `main` and by tests that embed a node.
//!
//! | file | holds |
//! |---|---|
//! | `ground` | the directory, before anything runs |
//! | `core` | everything but the frontends |
//! | `host` | what the admin API asks of the node |
//! | `watch` | what goes on in the background besides |

pub(crate) mod core;
pub(crate) mod ground;
pub(crate) mod host;
mod watch;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use wire::address::Address;
use wire::mesh::introductions_server::IntroductionsServer;

use self::core::{Core, Places, Seams};
use self::ground::{Ground, prepare};
use crate::admin::{self, Admin};
use crate::cluster::clock::RealClock;
use crate::cluster::log;
use crate::config::{ClusterConfig, Config};
use crate::gateway::NbdExports;
use crate::identity::{self, IdentityError};
use crate::introduce::{EarlyIntroductions, GrpcSeeds};
use crate::machine::blocking;
use crate::nbd;
use crate::peer::TcpNet;
use crate::store::{self, RealFs};

/// How long clients' last requests, and then background tasks, may take when the node stops.
const PATIENCE: Duration = Duration::from_secs(3);

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
    nbd: Option<nbd::Server>,
    core: Core,
}

fn prepare_dir(dir: &Path, local: bool) -> Result<Ground, NodeError> {
    let io = |source| NodeError::Dir { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    let dir = dir.canonicalize().map_err(io)?;
    prepare(Arc::new(RealFs), dir, identity::boot_id()?, local)
}

/// The address under which others reach this machine, where it listens on all of its interfaces.
async fn advertised(listen: SocketAddr, seeds: &[Address]) -> IpAddr {
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

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { what, address, source })
}

impl Node {
    /// Starts a node; returns when it serves what it can: admin and mesh always, NBD as configured.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        let local = matches!(config.cluster, ClusterConfig::Local);
        let dir = config.dir.clone();
        let ground = blocking(move || prepare_dir(&dir, local));
        let ground = ground.await.map_err(|e| NodeError::Fatal(e.to_string()))??;

        let admin_listener = listen("the admin API", config.admin).await?;
        let admin_address = admin_listener.local_addr().unwrap_or(config.admin);
        let (mesh_listen, seeds) = match &config.cluster {
            ClusterConfig::Local => (None, &[][..]),
            ClusterConfig::Mesh { listen, seeds, .. } => (Some(*listen), &seeds[..]),
        };
        let ip = advertised(mesh_listen.unwrap_or(admin_address), seeds).await;
        let port = mesh_listen.map_or(admin_address.port(), |m| m.port());
        let places = Places {
            admin: SocketAddr::new(ip, admin_address.port()),
            mesh_listen,
            mesh: SocketAddr::new(ip, port),
        };
        let seams = Seams {
            net: Arc::new(TcpNet),
            seeds: Arc::new(GrpcSeeds),
            clock: Arc::new(RealClock),
            store: store::Options::default(),
        };
        let core = Core::start(&config, ground, places, seams).await?;

        let (gateway, tasks, cancel) = (core.gateway.clone(), core.tasks.clone(), core.cancel.clone());
        let admin = Admin::new(gateway.clone(), core.host.clone(), tasks.clone(), cancel.clone());
        let introductions = IntroductionsServer::new(EarlyIntroductions(core.service.clone()));
        let routes = admin::routes(&admin).add_service(introductions);
        tasks.spawn(admin::serve(admin_listener, routes, cancel));

        let nbd = serve_nbd(&config, NbdExports { gateway }).await?;
        let mut served: Vec<String> =
            nbd.iter().flat_map(|n| n.addresses()).map(|address| address.to_string()).collect();
        served.extend(config.nbd.socket.iter().map(|path| format!("unix:{}", path.display())));
        core.host.nbd_listens(served);

        let mut line = format!("sheep {} serves: admin {admin_address}", core.me.session().node);
        if let Some(mesh) = mesh_listen {
            line += &format!(", mesh {mesh}");
        }
        for address in nbd.iter().flat_map(|n| n.addresses()) {
            line += &format!(", nbd {address}");
        }
        if let Some(path) = &config.nbd.socket {
            line += &format!(", nbd {}", path.display());
        }
        Ok(Self { line, nbd, core })
    }

    /// What to tell whoever started the node: one line, with every address that it serves.
    pub fn serving_line(&self) -> &str {
        &self.line
    }

    /// Returns when the node was asked to stop, or must not go on. Cancel-safe.
    pub async fn ended(&self) -> Result<(), NodeError> {
        self.core.ended().await
    }

    /// Stops in order: clients, then everything else. Others notice nothing but one change of owner.
    pub async fn stop(self) {
        if let Some(nbd) = self.nbd
            && tokio::time::timeout(PATIENCE, nbd.stop()).await.is_err()
        {
            tracing::warn!("clients' last requests did not end in time");
        }
        self.core.stop().await;
    }
}

async fn serve_nbd(config: &Config, exports: NbdExports) -> Result<Option<nbd::Server>, NodeError> {
    let nbd = nbd::Config {
        tcp: config.nbd.tcp.into_iter().collect(),
        unix: config.nbd.socket.clone(),
        ..nbd::Config::default()
    };
    if nbd.tcp.is_empty() && nbd.unix.is_none() {
        return Ok(None);
    }
    Ok(Some(nbd::Server::start(nbd, Arc::new(exports)).await?))
}
