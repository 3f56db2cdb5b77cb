//! Writers and readers through several gateways at once, recorded for the oracle.
//!
//! Workers share the blocks they write and read, so that each sees what the others did. A worker whose
//! sheep goes away takes what it had in flight for unknown and goes on through the next one.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::{Client, Command, FUA};
use crate::cluster::Ring;
use crate::oracle::{History, Moment, Stamp, fill, stamp_of};
use crate::wait;

/// How long a worker goes on looking for a sheep that lets it in.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone)]
pub struct Load {
    /// Export to open.
    pub export: String,
    /// Worker `n` begins at gateway `n` modulo their count, and goes round when one is gone.
    pub gateways: Vec<SocketAddr>,
    /// How many at once.
    pub workers: usize,
    /// Requests of each in flight.
    pub depth: usize,
    /// Size of what is judged as one, at least 16.
    pub block_len: usize,
    /// Blocks that all share. Few make conflicts likely.
    pub blocks: u64,
    /// Distance from one block to the next, so that few blocks lie in many objects.
    pub stride: u64,
    /// Blocks of one request at most, where blocks touch.
    pub run_max: u64,
    /// A pause of each worker between requests, so that a small machine is not all load.
    pub rest: Duration,
}

impl Load {
    /// Two workers a gateway, over two areas of blocks.
    pub fn new(export: &str, gateways: Vec<SocketAddr>) -> Self {
        Self {
            export: export.to_owned(),
            workers: gateways.len() * 2,
            gateways,
            depth: 4,
            block_len: 512,
            blocks: 192,
            stride: 512,
            run_max: 16,
            rest: Duration::from_millis(1),
        }
    }

    /// The same with blocks far apart, in objects of their own.
    pub fn scattered(export: &str, gateways: Vec<SocketAddr>) -> Self {
        Self {
            block_len: 4096,
            blocks: 24,
            stride: (4 << 20) + 4096,
            run_max: 1,
            ..Self::new(export, gateways)
        }
    }

    /// Starts the workers, which run until [`Running::stop`].
    pub fn start(self) -> Running {
        let begin = Instant::now();
        let shared = Arc::new(Shared {
            load: self,
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
        });
        let worker = |number| {
            let shared = shared.clone();
            let spawn = thread::Builder::new().name(format!("load{number}"));
            spawn.spawn(move || Worker::new(number, shared, begin).run()).expect("room for a thread")
        };
        let workers = (0..shared.load.workers).map(worker).collect();
        Running { shared, workers, begin }
    }
}

#[derive(Debug)]
struct Shared {
    load: Load,
    stop: AtomicBool,
    done: AtomicU64,
    /// Nanoseconds, since they were last asked for.
    longest_wait: AtomicU64,
}

/// A load under way. Dropping it leaves the threads to end by themselves.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Outcome>>,
    begin: Instant,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// For the oracle.
    pub history: History,
    /// Requests answered.
    pub answered: u64,
    /// The longest time for which one request waited for its answer.
    pub longest_wait: Duration,
    /// The longest time from a broken connection to the first answer on the next one.
    pub longest_outage: Duration,
    /// Connections that broke.
    pub broken: u64,
    /// Requests refused, as clients see it: I/O errors.
    pub errors: Vec<String>,
}

impl Running {
    /// Waits until `count` more requests were answered: proof that I/O flows.
    #[track_caller]
    pub fn progress(&self, count: u64) {
        let goal = self.shared.done.load(Ordering::Relaxed) + count;
        wait::until(Duration::from_secs(30), "requests are answered", || {
            let done = self.shared.done.load(Ordering::Relaxed);
            if done >= goal { Ok(()) } else { Err(format!("{done} of {goal}")) }
        });
    }

    /// The longest time for which a request that was answered since this was last asked had waited.
    pub fn longest_wait(&self) -> Duration {
        Duration::from_nanos(self.shared.longest_wait.swap(0, Ordering::Relaxed))
    }

    /// Ends the load, reads every block through every gateway of `last`, and hands over what was seen.
    #[track_caller]
    pub fn stop(self, last: &[SocketAddr]) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::new(self.begin);
        for worker in self.workers {
            let Ok(one) = worker.join() else { panic!("a worker of the load panicked") };
            all.merge(one);
        }
        for gateway in last {
            read_back(&self.shared.load, *gateway, &mut all.history);
        }
        all
    }
}

impl Running {
    /// Ends the load once the ring is whole: what was acknowledged is there, for clients at `last` and on all copies.
    #[track_caller]
    pub fn finish(self, ring: &Ring, last: &[SocketAddr], name: &str) -> Outcome {
        ring.wait_full();
        let vdi = self.shared.load.export.clone();
        let outcome = self.stop(last);
        outcome.assert_good(name);
        ring.assert_same_everywhere(&vdi);
        outcome
    }
}

fn read_back(load: &Load, gateway: SocketAddr, history: &mut History) {
    let mut client = Client::connect(gateway, &load.export).unwrap_or_else(|e| panic!("{gateway}: {e}"));
    for block in 0..load.blocks {
        let from = history.now();
        let data = client.read(block * load.stride, load.block_len as u32);
        let data = data.unwrap_or_else(|e| panic!("{gateway}: block {block}: {e}"));
        history.read(block, stamp_of(&data, block), from, history.now());
    }
}

impl Outcome {
    fn new(begin: Instant) -> Self {
        Self {
            history: History::new(begin),
            answered: 0,
            longest_wait: Duration::ZERO,
            longest_outage: Duration::ZERO,
            broken: 0,
            errors: Vec::new(),
        }
    }

    fn merge(&mut self, other: Self) {
        self.history.merge(other.history);
        self.answered += other.answered;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.longest_outage = self.longest_outage.max(other.longest_outage);
        self.broken += other.broken;
        self.errors.extend(other.errors);
    }

    /// No I/O error and no broken promise. Prints the figures.
    #[track_caller]
    pub fn assert_good(&self, name: &str) {
        let (writes, reads) = self.history.counts();
        println!(
            "{name}: {} requests ({writes} blocks written, {reads} read), longest wait {:.2} s, \
             longest outage {:.2} s, {} connections broken",
            self.answered,
            self.longest_wait.as_secs_f64(),
            self.longest_outage.as_secs_f64(),
            self.broken
        );
        assert!(self.errors.is_empty(), "{} I/O errors: {:?}", self.errors.len(), &self.errors[..1]);
        self.history.assert_kept();
    }
}

struct Worker {
    number: usize,
    shared: Arc<Shared>,
    random: StdRng,
    outcome: Outcome,
    gateway: usize,
    stamps: Stamp,
    /// When the last connection broke, until something is answered again.
    out_since: Option<Instant>,
}

/// A request in flight.
struct Sent {
    stamp: Option<Stamp>,
    is_read: bool,
    block: u64,
    count: u64,
    from: Moment,
}

impl Worker {
    fn new(number: usize, shared: Arc<Shared>, begin: Instant) -> Self {
        Self {
            number,
            random: StdRng::seed_from_u64(number as u64 + 1),
            outcome: Outcome::new(begin),
            gateway: number,
            stamps: 0,
            out_since: None,
            shared,
        }
    }

    fn run(mut self) -> Outcome {
        while !self.stopping() {
            let mut sent = HashMap::new();
            let Some(mut client) = self.connect() else { break };
            let Err(_) = self.serve(&mut client, &mut sent) else { continue };
            self.outcome.broken += 1;
            self.out_since.get_or_insert_with(Instant::now);
            for request in sent.into_values() {
                self.wrote(&request, None);
            }
        }
        self.outcome
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Any gateway that lets it in, beginning with the next one.
    fn connect(&mut self) -> Option<Client> {
        let gateways = self.shared.load.gateways.clone();
        let mut last = String::new();
        let connected = wait::within(CONNECT_LIMIT, || {
            if self.stopping() {
                return Ok(None);
            }
            let address = gateways[self.gateway % gateways.len()];
            Client::connect(address, &self.shared.load.export).map(Some).map_err(|error| {
                self.gateway += 1;
                last = format!("{address}: {error}");
            })
        });
        connected.unwrap_or_else(|()| {
            self.outcome.errors.push(format!("no gateway for {CONNECT_LIMIT:?}, the last said {last}"));
            None
        })
    }

    /// Works until told to stop, and then until everything is answered.
    fn serve(&mut self, client: &mut Client, sent: &mut HashMap<u64, Sent>) -> io::Result<()> {
        loop {
            while !self.stopping() && client.in_flight() < self.shared.load.depth {
                self.send(client, sent)?;
            }
            if client.in_flight() == 0 {
                return Ok(());
            }
            let reply = client.receive()?;
            let now = self.outcome.history.now();
            let request =
                sent.remove(&reply.cookie).ok_or_else(|| io::Error::other("an answer to nothing"))?;
            let waited = Duration::from_nanos(now - request.from);
            self.outcome.longest_wait = self.outcome.longest_wait.max(waited);
            self.shared.longest_wait.fetch_max(now - request.from, Ordering::Relaxed);
            if reply.errno != 0 {
                let kind = if request.is_read { "read" } else { "write or flush" };
                let (errno, worker) = (reply.errno, self.number);
                self.outcome.errors.push(format!("worker {worker}: {kind}: errno {errno} after {waited:?}"));
                self.wrote(&request, None);
                continue;
            }
            self.shared.done.fetch_add(1, Ordering::Relaxed);
            self.outcome.answered += 1;
            if let Some(since) = self.out_since.take() {
                self.outcome.longest_outage = self.outcome.longest_outage.max(since.elapsed());
            }
            self.wrote(&request, Some(now));
            if request.is_read {
                let block_len = self.shared.load.block_len;
                for (block, data) in (request.block..).zip(reply.data.chunks(block_len)) {
                    self.outcome.history.read(block, stamp_of(data, block), request.from, now);
                }
            }
            thread::sleep(self.shared.load.rest);
        }
    }

    fn send(&mut self, client: &mut Client, sent: &mut HashMap<u64, Sent>) -> io::Result<()> {
        let load = &self.shared.load;
        let count = self.random.random_range(1..=load.run_max);
        let block = self.random.random_range(0..=load.blocks - count);
        let (offset, len) = (block * load.stride, load.block_len * count as usize);
        let from = self.outcome.history.now();
        let mut request = Sent { stamp: None, is_read: false, block, count, from };
        let mut data = Vec::new();
        let (command, flags, offset, len) = match self.random.random_range(0..100) {
            0..3 => (Command::Flush, 0, 0, 0),
            3..50 => {
                request.is_read = true;
                (Command::Read, 0, offset, len)
            }
            dice => {
                self.stamps += 1;
                let stamp = (self.number as u64 + 1) << 40 | self.stamps;
                request.stamp = Some(stamp);
                data = fill(stamp, block, load.block_len, count);
                (Command::Write, if dice < 55 { FUA } else { 0 }, offset, len)
            }
        };
        // Known before it is sent: what fails half-way may have arrived.
        let cookie = client.next_cookie();
        sent.insert(cookie, request);
        client.send(command, flags, offset, len as u32, &data).map(drop)
    }

    fn wrote(&mut self, request: &Sent, end: Option<Moment>) {
        let Some(stamp) = request.stamp else { return };
        for block in request.block..request.block + request.count {
            self.outcome.history.wrote(block, stamp, request.from, end);
        }
    }
}
