//! The harness itself: a load that a good disk passes is failed by one that breaks its promises.

use std::net::SocketAddr;
use std::sync::Arc;

use sheep::nbd::memory::MemoryExports;
use sheep::nbd::{Config, Server};
use tests::load::{Load, Outcome};

struct Disk {
    runtime: tokio::runtime::Runtime,
    server: Server,
}

impl Disk {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let exports = MemoryExports::default();
        exports.add("vol", 128 << 20, false);
        let tcp = vec!["127.0.0.1:0".parse().expect("an address")];
        let config = Config { tcp, ..Config::default() };
        let server = runtime.block_on(Server::start(config, Arc::new(exports))).expect("starts");
        Self { runtime, server }
    }

    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    fn stop(self) {
        self.runtime.block_on(self.server.stop());
    }
}

fn load(gateways: Vec<SocketAddr>) -> Outcome {
    let load = Load::new("vol", gateways.clone()).start();
    load.progress(2000);
    load.stop(&gateways)
}

#[test]
fn a_disk_in_memory_passes() {
    let disk = Disk::start();
    load(vec![disk.address(), disk.address()]).assert_good("a disk in memory");
    disk.stop();
}

#[test]
fn two_disks_that_pretend_to_be_one_fail() {
    let disks = [Disk::start(), Disk::start()];
    let outcome = load(disks.iter().map(Disk::address).collect());
    assert!(!outcome.history.violations().is_empty());
    disks.into_iter().for_each(Disk::stop);
}

#[test]
fn a_disk_that_forgets_at_a_restart_fails() {
    let (first, second) = (Disk::start(), Disk::start());
    let mut load = Load::new("vol", vec![first.address(), second.address()]);
    load.workers = 1;
    let load = load.start();
    load.progress(500);
    first.stop();
    load.progress(500);
    let outcome = load.stop(&[second.address()]);
    assert_eq!(outcome.broken, 1);
    assert!(!outcome.history.violations().is_empty());
    second.stop();
}
