//! A ring of one sheep, for targets that need a whole node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use wire::address::Address;
use wire::peer::IntroduceMessage;
use wire::policy::Copies;

use crate::cluster::clock::RealClock;
use crate::config::{ClusterConfig, Config, LogConfig, NbdConfig, NodeConfig, Timing};
use crate::introduce::Seeds;
use crate::node::core::{Core, Places, Seams};
use crate::node::ground::prepare;
use crate::peer::TcpNet;
use crate::store::{self, FileSystem, SimFs};

/// The disk of a ring grows with what was deleted; after so many inputs there is a new one.
const INPUTS_MAX: u32 = 2000;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));

/// A ring that inputs are fed to one after another, and what its target has made for it.
pub(crate) struct RingOfOne<T: 'static> {
    make: fn(&Core) -> T,
    running: Mutex<Option<(Core, T, u32)>>,
}

impl<T> RingOfOne<T> {
    pub(crate) const fn new(make: fn(&Core) -> T) -> Self {
        Self { make, running: Mutex::new(None) }
    }

    /// Feeds one input.
    pub(crate) fn feed(&self, input: impl AsyncFnOnce(&Core, &T)) {
        let mut running = self.running.lock();
        let _entered = RUNTIME.enter();
        if running.as_ref().is_some_and(|(.., inputs)| *inputs == INPUTS_MAX)
            && let Some((core, ..)) = running.take()
        {
            RUNTIME.block_on(core.stop());
        }
        let (core, made, inputs) = running.get_or_insert_with(|| {
            let core = RUNTIME.block_on(start());
            let made = (self.make)(&core);
            (core, made, 0)
        });
        *inputs += 1;
        RUNTIME.block_on(input(core, made));
    }
}

async fn start() -> Core {
    let address = ([127, 0, 0, 1], 1).into();
    let dir = PathBuf::from("/sheep");
    let fs = SimFs::new();
    fs.create_dir(&dir).expect("new");
    fs.sync_dir(Path::new("/")).expect("synced");
    let ground = prepare(Arc::new(fs), dir.clone(), 1, true).expect("an empty directory");
    let config = Config {
        dir,
        admin: address,
        cluster: ClusterConfig::Local,
        node: NodeConfig { gateway: false, zone: None, vnodes: 8 },
        copies: Copies::new(1).expect("in range"),
        log: LogConfig { level: crate::cli::LogLevel::Error, format: crate::cli::LogFormat::Text },
        nbd: NbdConfig { tcp: None, socket: None },
        timing: Timing::default(),
    };
    let places = Places { admin: address, mesh_listen: None, mesh: address };
    let seams = Seams {
        net: Arc::new(TcpNet),
        seeds: Arc::new(Nobody),
        clock: Arc::new(RealClock),
        store: store::Options::default(),
    };
    Core::start(&config, ground, places, seams).await.expect("a node")
}

/// No seeds.
struct Nobody;

#[async_trait]
impl Seeds for Nobody {
    async fn introduce(&self, _: &Address, _: IntroduceMessage) -> Option<(IntroduceMessage, IpAddr)> {
        None
    }
}
