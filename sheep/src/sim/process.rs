//! One simulated sheep: a node without frontends, on a runtime of its own whose time is moved by hand.
//!
//! A kill drops the runtime and with it every task, wherever it is. A stop (as by SIGSTOP) just does not let
//! the runtime run; when it goes on it finds that time has passed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use wire::address::Address;
use wire::peer::IntroduceMessage;

use super::net::{Card, Machine, address};
use crate::admin::Host as _;
use crate::cluster::clock::Clock;
use crate::cluster::view::View;
use crate::config::{ClusterConfig, Config, LogConfig, NbdConfig, NodeConfig, Timing};
use crate::gateway::Gateway;
use crate::introduce::Seeds;
use crate::machine::blocking;
use crate::membership::Ring;
use crate::node::core::{Core, Places, Seams};
use crate::node::ground::prepare;
use crate::node::host::NodeHost;
use crate::replica::Replica;
use crate::service::NodeService;
use crate::store::{FileSystem, Options, SimFs};
use tokio_util::sync::CancellationToken;
use wire::id::{NodeId, Session};
use wire::policy::Copies;

const MESH: u16 = 7001;
const ADMIN: u16 = 7000;
/// The directory of every node, on its own machine's disk.
pub(super) const DIR: &str = "/sheep";

/// What a process shows once it runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) node: NodeId,
    /// The session with which the process began.
    pub(super) process: Session,
    pub(super) host: Arc<NodeHost>,
    pub(super) ring: Arc<Ring>,
    pub(super) gateway: Arc<Gateway>,
    pub(super) replica: Option<Arc<Replica>>,
    pub(super) shutdown: CancellationToken,
}

impl Running {
    pub(super) fn view(&self) -> &View {
        &self.ring.view
    }
}

/// How far a process has come.
#[derive(Default)]
struct Progress {
    running: Option<Running>,
    /// It has ended by itself, for this reason.
    ended: Option<String>,
}

/// A sheep on a machine.
pub(super) struct Process {
    runtime: Runtime,
    progress: Arc<Mutex<Progress>>,
}

/// What a process is started with.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) machine: Machine,
    pub(super) machines: usize,
    pub(super) card: Card,
    pub(super) disk: SimFs,
    pub(super) boot: u128,
    /// How many millionths the boot clock is fast, or slow.
    pub(super) drift: i64,
    pub(super) copies: u8,
    pub(super) gateway_only: bool,
    pub(super) zone: Option<String>,
}

/// The boot clock of a machine.
struct BootClock {
    began: Instant,
    drift: i64,
}

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let since = self.began.elapsed();
        let off = since.as_nanos() as i64 / 1_000_000 * self.drift;
        Duration::from_secs(1_000) + Duration::from_nanos((since.as_nanos() as i64 + off) as u64)
    }
}

impl Process {
    /// Starts a sheep.
    pub(super) fn start(plan: Plan) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without input and output takes nothing from the system");
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shown = progress.clone();
        runtime.spawn(async move {
            let end = live(plan, &shown).await;
            let mut progress = shown.lock();
            progress.running = None;
            progress.ended = Some(end);
        });
        Self { runtime, progress }
    }

    /// Lets the process run for a while.
    pub(super) fn run(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// The process has stood still for a while, and goes on.
    pub(super) fn wake(&self, after: Duration) {
        self.runtime.block_on(async { tokio::time::advance(after).await });
    }

    /// What runs, once it does.
    pub(super) fn running(&self) -> Option<Running> {
        self.progress.lock().running.clone()
    }

    /// Looks at what runs, once it does.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Running) -> T) -> Option<T> {
        self.progress.lock().running.as_ref().map(at)
    }

    /// Why it has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        self.progress.lock().ended.clone()
    }

    /// Adds a task to the process: a client at its door, or somebody who looks.
    pub(super) fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(task)
    }

    /// What a task that has ended came to.
    pub(super) fn join<T>(&self, task: tokio::task::JoinHandle<T>) -> Option<T> {
        self.runtime.block_on(task).ok()
    }
}

async fn live(plan: Plan, shown: &Mutex<Progress>) -> String {
    let (fs, boot): (Arc<dyn FileSystem>, u128) = (Arc::new(plan.disk.clone()), plan.boot);
    let prepared = blocking(move || {
        fs.create_dir(Path::new(DIR)).map_err(|e| e.to_string())?;
        fs.sync_dir(Path::new("/")).map_err(|e| e.to_string())?;
        prepare(fs, PathBuf::from(DIR), boot, false).map_err(|e| e.to_string())
    });
    let ground = match prepared.await {
        Ok(Ok(ground)) => ground,
        Ok(Err(error)) => return error,
        Err(error) => return error.to_string(),
    };
    let config = config(&plan);
    let (admin, mesh) = (address(plan.machine, ADMIN), address(plan.machine, MESH));
    let places = Places { admin, mesh_listen: Some(mesh), mesh };
    let seams = Seams {
        net: Arc::new(plan.card.clone()),
        seeds: Arc::new(SimSeeds(plan.card.clone())),
        clock: Arc::new(BootClock { began: Instant::now(), drift: plan.drift }),
        store: Options { flush_threads: 1, ..Options::default() },
    };
    let core = match Core::start(&config, ground, places, seams).await {
        Ok(core) => core,
        Err(error) => return error.to_string(),
    };
    core.tasks.spawn(answer_seeds(plan.card.clone(), plan.machine, core.service.clone()));
    let node = core.me.session().node;
    shown.lock().running = Some(Running {
        node,
        process: Session { node, start: core.host.spec().process },
        host: core.host.clone(),
        ring: core.ring.clone(),
        gateway: core.gateway.clone(),
        replica: core.replica.clone(),
        shutdown: core.shutdown.clone(),
    });
    let end = core.ended().await;
    // Clients find the door closed from here on.
    shown.lock().running = None;
    core.stop().await;
    end.err().map_or_else(|| "stopped".to_owned(), |e| e.to_string())
}

fn config(plan: &Plan) -> Config {
    let seeds = (0..plan.machines).filter(|m| *m != plan.machine);
    let seed = |m: usize| format!("10.0.0.{}:{ADMIN}", m + 1).parse().expect("an address");
    Config {
        dir: PathBuf::from(DIR),
        admin: address(plan.machine, ADMIN),
        cluster: ClusterConfig::Mesh {
            listen: address(plan.machine, MESH),
            port_offset: 1,
            seeds: seeds.map(seed).collect(),
        },
        node: NodeConfig { gateway: plan.gateway_only, zone: plan.zone.clone(), vnodes: 16 },
        copies: Copies::new(plan.copies.into()).expect("a few copies"),
        log: LogConfig { level: crate::cli::LogLevel::Info, format: crate::cli::LogFormat::Text },
        nbd: NbdConfig { tcp: None, socket: None },
        timing: Timing::default(),
    }
}

/// Admin ports that know one request: a length, and an introduction of that length.
struct SimSeeds(Card);

#[async_trait]
impl Seeds for SimSeeds {
    async fn introduce(
        &self,
        seed: &Address,
        message: IntroduceMessage,
    ) -> Option<(IntroduceMessage, IpAddr)> {
        let to = seed.to_string().parse().ok()?;
        let ask = async {
            let (mut read, mut write) = self.0.dial(to).await.ok()?;
            send(&mut write, &message).await.ok()?;
            receive(&mut read).await
        };
        let reply = tokio::time::timeout(Duration::from_secs(1), ask).await.ok()??;
        Some((reply, to.ip()))
    }
}

async fn send(to: &mut super::net::Writing, message: &IntroduceMessage) -> std::io::Result<()> {
    let bytes = message.encode_to_vec();
    to.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
    to.write_all(&bytes).await
}

async fn receive(from: &mut super::net::Reading) -> Option<IntroduceMessage> {
    let len = from.read_u32().await.ok()?;
    let mut bytes = vec![0; len as usize];
    from.read_exact(&mut bytes).await.ok()?;
    IntroduceMessage::decode(&bytes[..]).ok()
}

async fn answer_seeds(card: Card, machine: Machine, service: Arc<NodeService>) {
    let port = card.serve(address(machine, ADMIN));
    loop {
        let (mut read, mut write, from) = port.take().await;
        let service = service.clone();
        tokio::spawn(async move {
            let message = receive(&mut read).await?;
            let answer = service.introduced(message, Some(from.ip()))?;
            let reply = blocking(answer).await.ok()?;
            send(&mut write, &reply).await.ok()?;
            // Until the other side has hung up, so that nothing is cut off.
            _ = read.read_u8().await;
            Some(())
        });
    }
}
