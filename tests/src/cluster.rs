//! A ring of real sheep, on loopback or on hosts of their own.

use std::net::SocketAddr;
use std::ops::{Index, IndexMut};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::hosts::Hosts;
use crate::port::{self, Ports};
use crate::process::Sheep;
use crate::tool::{self, Output};
use crate::turn::{self, Turn};
use crate::wait;

/// How long dog may take.
const DOG_LIMIT: Duration = Duration::from_secs(40);
/// How long a ring may take to form or to be whole again.
const RING_LIMIT: Duration = Duration::from_secs(60);

/// Several sheep, by number from 0. All are killed when it goes.
#[derive(Debug)]
pub struct Ring {
    sheep: Vec<Sheep>,
    work: Option<TempDir>,
    hosts: Option<Hosts>,
    _turn: Turn,
}

impl Ring {
    /// `count` sheep that wait to be founded.
    #[track_caller]
    pub fn waiting(count: usize) -> Self {
        Self::with_options(&vec![&[][..]; count])
    }

    /// `count` sheep with a ring of `min(count, 3)` copies.
    #[track_caller]
    pub fn formatted(count: usize) -> Self {
        let mut ring = Self::waiting(count);
        ring.format(count.min(3));
        ring
    }

    /// Like [`Self::formatted`], and nothing else runs meanwhile: for measuring.
    #[track_caller]
    pub fn alone(count: usize) -> Self {
        let mut ring = Self::start(turn::take_all(), &vec![&[][..]; count]);
        ring.format(count.min(3));
        ring
    }

    /// One waiting sheep for each list of options.
    #[track_caller]
    pub fn with_options(options: &[&[&str]]) -> Self {
        Self::start(turn::take(), options)
    }

    /// One sheep that is a ring by itself, with the `local` driver; not formatted.
    #[track_caller]
    pub fn local() -> Self {
        let mut ring = Self::empty(turn::take());
        ring.add(vec![]);
        ring[0].start();
        ring
    }

    #[track_caller]
    fn start(turn: Turn, options: &[&[&str]]) -> Self {
        let mut ring = Self::empty(turn);
        let ports: Vec<_> = options.iter().map(|_| port::allocate()).collect();
        for (index, own) in options.iter().enumerate() {
            let mut all = sdcluster(ports.iter().map(|ports| ports.admin));
            all.extend(own.iter().map(ToString::to_string));
            let sheep = Sheep::new(ring.work(), &format!("sheep{index}"), ports[index], all);
            ring.sheep.push(sheep);
        }
        for index in 0..options.len() {
            ring[index].start();
        }
        ring
    }

    fn empty(turn: Turn) -> Self {
        let work = tempfile::Builder::new().prefix("sheepdog-test.").tempdir().expect("temporary directory");
        Self { sheep: Vec::new(), work: Some(work), hosts: None, _turn: turn }
    }

    /// Like [`Self::formatted`], each on a host of its own: the ways between them can be cut.
    #[track_caller]
    pub fn on_hosts(count: usize) -> Self {
        let mut ring = Self::empty(turn::take());
        let hosts = Hosts::new(count);
        let port = Ports::USUAL.admin;
        let seeds = (0..count).map(|index| format!("--seed={}:{port}", hosts.place(index).ip));
        let seeds: Vec<String> = seeds.collect();
        for index in 0..count {
            let ip = hosts.place(index).ip.to_string();
            let own =
                ["-b", &ip, "--insecure", "--nbd-bind", &ip, "--nbd-insecure", "--cluster-driver=sdcluster"];
            let options = own.iter().map(ToString::to_string).chain(seeds.iter().cloned()).collect();
            let mut sheep = Sheep::new(ring.work(), &format!("sheep{index}"), Ports::USUAL, options);
            sheep.place = hosts.place(index);
            sheep.start();
            ring.sheep.push(sheep);
        }
        ring.hosts = Some(hosts);
        ring.format(count.min(3));
        ring
    }

    /// The hosts of [`Self::on_hosts`].
    pub fn hosts(&self) -> &Hosts {
        self.hosts.as_ref().expect("sheep on hosts of their own")
    }

    /// The directory in which everything lies.
    pub fn work(&self) -> &Path {
        self.work.as_ref().expect("there until it is dropped").path()
    }

    /// A new sheep with these options and ports of its own, not started; returns its number.
    pub fn add(&mut self, options: Vec<String>) -> usize {
        let index = self.sheep.len();
        let sheep = Sheep::new(self.work(), &format!("sheep{index}"), port::allocate(), options);
        self.sheep.push(sheep);
        index
    }

    /// A new sheep that knows all others as seeds, started; returns its number.
    #[track_caller]
    pub fn join(&mut self, options: &[&str]) -> usize {
        let mut all = sdcluster(self.sheep.iter().map(|sheep| sheep.ports.admin));
        all.extend(options.iter().map(ToString::to_string));
        let index = self.add(all);
        self[index].start();
        index
    }

    /// Starts all that do not run, at once: of a ring that is down each waits for a majority.
    #[track_caller]
    pub fn start_all(&mut self) {
        self.sheep.iter_mut().filter(|sheep| !sheep.is_running()).for_each(Sheep::launch);
        for sheep in &mut self.sheep {
            sheep.wait_serving().unwrap_or_else(|refusal| panic!("sheep does not start: {refusal:?}"));
        }
    }

    /// How many there are, running or not.
    pub fn count(&self) -> usize {
        self.sheep.len()
    }

    /// Founds the ring once all sheep know each other, and waits until it is whole.
    #[track_caller]
    pub fn format(&mut self, copies: usize) {
        self.wait_nodes(self.sheep.len(), "waiting");
        self.dog(0, &["cluster", "format", "-c", &copies.to_string()]).ok();
        // Each is sure of it as soon as it has its first lease.
        for index in 0..self.count() {
            wait::until(RING_LIMIT, "full redundancy", || self.check(index));
        }
    }

    /// Waits until every running sheep lists `count` nodes, and all of them in this state.
    #[track_caller]
    pub fn wait_nodes(&self, count: usize, status: &str) {
        for index in (0..self.count()).filter(|&index| self[index].is_running()) {
            wait::until(RING_LIMIT, &format!("sheep {index} lists {count} nodes as {status}"), || {
                let output = self.dog(index, &["-o", "json", "node", "list"]);
                let json = if output.status == 0 { output.json() } else { Value::Null };
                let nodes = json.as_array().map(Vec::as_slice).unwrap_or_default();
                let right = nodes.len() == count && nodes.iter().all(|node| node["status"] == status);
                if right { Ok(()) } else { Err(output) }
            });
        }
    }

    /// Waits until the ring says that every slot has its full redundancy.
    #[track_caller]
    pub fn wait_full(&self) {
        let at = self.any();
        wait::until(RING_LIMIT, "full redundancy", || self.check(at));
    }

    /// Waits until the ring has noticed that redundancy is not full.
    #[track_caller]
    pub fn wait_degraded(&self) {
        let at = self.any();
        wait::until(RING_LIMIT, "somebody noticed", || match self.check(at) {
            Ok(()) => Err("clean"),
            Err(_) => Ok(()),
        });
    }

    /// Whether `dog cluster check` at this sheep is content.
    pub fn check(&self, index: usize) -> Result<(), String> {
        let output = self.dog(index, &["cluster", "check"]);
        if output.status == 0 { Ok(()) } else { Err(output.to_string()) }
    }

    /// The first sheep that is running.
    pub fn any(&self) -> usize {
        self.sheep.iter().position(Sheep::is_running).expect("some sheep is running")
    }

    /// dog, asked at one sheep.
    #[track_caller]
    pub fn dog(&self, index: usize, args: &[&str]) -> Output {
        self.dog_with(index, args, &[])
    }

    /// dog with something on stdin.
    #[track_caller]
    pub fn dog_with(&self, index: usize, args: &[&str], stdin: &[u8]) -> Output {
        let (ip, port) = (self[index].place.ip.to_string(), self[index].ports.admin.to_string());
        let all = [&["-a", &ip, "-p", &port], args].concat();
        let dog = tool::binary("dog");
        tool::run_with(DOG_LIMIT, dog.to_str().expect("cargo's paths are text"), &all, stdin)
    }

    /// What dog says as JSON, of a command that succeeds.
    #[track_caller]
    pub fn dog_json(&self, index: usize, args: &[&str]) -> Value {
        self.dog(index, &[&["-o", "json"], args].concat()).ok().json()
    }

    /// Creates a VDI.
    #[track_caller]
    pub fn create(&self, name: &str, size: &str) {
        self.dog(self.any(), &["vdi", "create", name, size]).ok();
    }

    /// A sheep's own id.
    #[track_caller]
    pub fn id(&self, index: usize) -> String {
        let info = self.dog_json(index, &["node", "info"]);
        info["id"].as_str().unwrap_or_else(|| panic!("no id in {info}")).to_owned()
    }

    /// Waits until a node that has ended is removed from the ring.
    #[track_caller]
    pub fn wait_removed(&self, through: usize, id: &str) {
        wait::until(Duration::from_secs(20), "it is removed", || {
            let output = self.dog(through, &["node", "remove", id]);
            if output.status == 0 { Ok(()) } else { Err(output) }
        });
    }

    /// The sheep with this id, if it is running.
    #[track_caller]
    pub fn by_id(&self, id: &str) -> Option<usize> {
        (0..self.count()).find(|&index| self[index].is_running() && self.id(index) == id)
    }

    /// The owner of a VDI; none if nobody has it open.
    #[track_caller]
    pub fn owner(&self, vdi: &str) -> Option<usize> {
        // Unlike `vdi info` this does not open the VDI.
        let list = self.dog_json(self.any(), &["vdi", "list"]);
        let found = list.as_array()?.iter().find(|entry| entry["name"] == vdi)?;
        found["owner"].as_str().and_then(|id| self.by_id(id))
    }

    /// The leader of the cluster log, as soon as one is known.
    #[track_caller]
    pub fn leader(&self) -> usize {
        let at = self.any();
        wait::until(RING_LIMIT, "a leader", || {
            let info = self.dog_json(at, &["cluster", "info"]);
            info["leader"].as_str().and_then(|id| self.by_id(id)).ok_or_else(|| info.to_string())
        })
    }

    /// The version of the membership.
    #[track_caller]
    pub fn epoch(&self) -> u64 {
        let info = self.dog_json(self.any(), &["cluster", "info"]);
        info["epoch"].as_u64().unwrap_or_else(|| panic!("no epoch in {info}"))
    }

    /// Bytes of disk that all sheep's objects take.
    pub fn stored(&self) -> u64 {
        self.sheep.iter().map(|sheep| disk_usage(&sheep.dir.join("objects"))).sum()
    }

    /// Somebody of the first three who neither owns `vdi` nor leads the log.
    #[track_caller]
    pub fn bystander(&self, vdi: &str) -> usize {
        let (owner, leader) = (self.owner(vdi).expect("it is open"), self.leader());
        (0..3).find(|index| *index != owner && *index != leader).expect("of three one is left")
    }

    /// Where a sheep serves NBD.
    pub fn nbd(&self, index: usize) -> SocketAddr {
        SocketAddr::from((self[index].place.ip, self[index].ports.nbd))
    }

    /// Where these serve NBD.
    pub fn nbds(&self, which: &[usize]) -> Vec<SocketAddr> {
        which.iter().map(|index| self.nbd(*index)).collect()
    }

    /// Where all do.
    pub fn everywhere(&self) -> Vec<SocketAddr> {
        (0..self.count()).map(|index| self.nbd(index)).collect()
    }

    /// The same as foreign clients want it.
    pub fn uri(&self, index: usize, export: &str) -> String {
        format!("nbd://{}/{export}", self.nbd(index))
    }

    /// Opens a VDI through a sheep.
    #[track_caller]
    pub fn open(&self, index: usize, export: &str) -> Client {
        Client::connect(self.nbd(index), export)
            .unwrap_or_else(|error| panic!("{export} at {index}: {error}"))
    }

    /// The VDI's whole content, hashed, through one sheep.
    #[track_caller]
    pub fn digest(&self, index: usize, vdi: &str) -> u64 {
        use std::hash::Hasher;
        let mut client = self.open(index, vdi);
        let mut hash = std::hash::DefaultHasher::new();
        let piece = 1 << 20;
        let mut offset = 0;
        while offset < client.size() {
            let len = piece.min(client.size() - offset);
            let data = client.read(offset, len as u32).unwrap_or_else(|error| panic!("read: {error}"));
            hash.write(&data);
            offset += len;
        }
        hash.finish()
    }

    /// The VDI is the same through every running sheep, and all its copies are equal.
    #[track_caller]
    pub fn assert_same_everywhere(&self, vdi: &str) {
        let running: Vec<_> = (0..self.count()).filter(|&index| self[index].is_running()).collect();
        let digests: Vec<_> = running.iter().map(|&index| self.digest(index, vdi)).collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "through {running:?}: {digests:x?}");
        self.dog(running[0], &["vdi", "check", vdi]).ok();
    }
}

/// Options of a member of a ring with these seeds.
pub fn sdcluster(seeds: impl Iterator<Item = u16>) -> Vec<String> {
    let seeds = seeds.flat_map(|port| ["--seed".to_owned(), format!("127.0.0.1:{port}")]);
    ["--cluster-driver".to_owned(), "sdcluster".to_owned()].into_iter().chain(seeds).collect()
}

/// Files may come and go meanwhile.
fn disk_usage(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let usage = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_usage(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    usage.sum()
}

impl Index<usize> for Ring {
    type Output = Sheep;

    fn index(&self, index: usize) -> &Sheep {
        &self.sheep[index]
    }
}

impl IndexMut<usize> for Ring {
    fn index_mut(&mut self, index: usize) -> &mut Sheep {
        &mut self.sheep[index]
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for sheep in &self.sheep {
                println!("{}", sheep.tail());
            }
        }
        self.sheep.clear();
        if let Some(work) = self.work.take().filter(|_| std::env::var_os("KEEP").is_some()) {
            println!("left behind: {}", work.keep().display());
        }
    }
}
