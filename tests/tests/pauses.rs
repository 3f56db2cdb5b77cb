//! For how long I/O stands still at sheep that live while others die, stop or fall silent.
//!
//! These judge times, on a machine that does nothing else: `make prove` runs them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tests::cluster::Ring;
use tests::load::{Load, Running};
use tests::wait;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Pauses by what caused them.
#[derive(Default)]
struct Pauses(BTreeMap<&'static str, Vec<Duration>>);

impl Pauses {
    fn note(&mut self, cause: &'static str, pause: Duration) {
        println!("{cause}: {} ms", pause.as_millis());
        self.0.entry(cause).or_default().push(pause);
    }

    /// Prints how they are distributed, and fails if 1 % or more of those of a cause are longer than its budget.
    #[track_caller]
    fn judge(mut self, budget: impl Fn(&str) -> Duration) {
        let mut over = Vec::new();
        println!("{:<24}{:>6}{:>8}{:>8}{:>8}{:>8}", "cause", "count", "p50", "p90", "p99", "most");
        for (cause, pauses) in &mut self.0 {
            pauses.sort_unstable();
            let at = |percent: usize| pauses[(pauses.len() * percent).div_ceil(100).max(1) - 1];
            let [p50, p90, p99, most] = [50, 90, 99, 100].map(|percent| at(percent).as_millis());
            println!("{cause:<24}{:>6}{p50:>8}{p90:>8}{p99:>8}{most:>8}", pauses.len());
            if at(99) > budget(cause) {
                over.push(format!("{cause}: {p99} ms, {} allowed", budget(cause).as_millis()));
            }
        }
        assert!(over.is_empty(), "{over:?}");
    }
}

fn ring() -> Ring {
    let ring = Ring::alone(3);
    ring.create("vol", "128M");
    ring
}

/// Load of clients at all sheep; those of one that dies go elsewhere.
fn load(ring: &Ring) -> Running {
    let load = Load::new("vol", ring.everywhere()).start();
    load.progress(300);
    load
}

/// What the longest request waited for, once everybody has had an answer since.
fn pause(ring: &Ring, load: &Running) -> Duration {
    ring.wait_full();
    load.progress(200);
    load.longest_wait()
}

fn role(ring: &Ring, index: usize) -> &'static str {
    match (ring.owner("vol") == Some(index), ring.leader() == index) {
        (true, true) => "kill -9 owner and leader",
        (true, false) => "kill -9 owner",
        (false, true) => "kill -9 leader",
        (false, false) => "kill -9 replica",
    }
}

#[test]
#[ignore = "a quarter of an hour on a quiet machine: make prove"]
fn two_hundred_kills() {
    let mut ring = ring();
    let load = load(&ring);
    let mut pauses = Pauses::default();
    for round in 0..200 {
        let victim = match round % 3 {
            0 => ring.owner("vol").expect("it is open"),
            1 => ring.leader(),
            _ => (0..3).find(|index| role(&ring, *index) == "kill -9 replica").unwrap_or(round % 3),
        };
        let cause = role(&ring, victim);
        load.longest_wait();
        ring[victim].kill();
        load.progress(300);
        ring[victim].start();
        pauses.note(cause, pause(&ring, &load));
    }
    load.finish(&ring, &ring.everywhere(), "200 kills");
    pauses.judge(|cause| if cause == "kill -9 owner and leader" { MS(2_000) } else { MS(1_000) });
}

#[test]
#[ignore = "judges times on a quiet machine: make prove"]
fn planned_stops() {
    let mut ring = ring();
    let load = load(&ring);
    let mut pauses = Pauses::default();
    for round in 0..20 {
        let victim = if round % 2 == 0 { ring.owner("vol").expect("it is open") } else { round / 2 % 3 };
        load.longest_wait();
        let (status, _) = ring[victim].terminate();
        assert!(status.success(), "{status}");
        load.progress(300);
        ring[victim].start();
        pauses.note("SIGTERM", pause(&ring, &load));
    }
    load.finish(&ring, &ring.everywhere(), "20 planned stops");
    pauses.judge(|_| MS(500));
}

#[test]
#[ignore = "judges times on a quiet machine: make prove"]
fn silent_partitions() {
    let ring = Ring::on_hosts(3);
    let mut pauses = Pauses::default();
    for round in 0..12 {
        let vdi = format!("vol{round}");
        ring.create(&vdi, "128M");
        let victim = if round % 2 == 0 { ring.leader() } else { (ring.leader() + 1) % 3 };
        // The victim owns it; the clients are elsewhere.
        let first = ring.open(victim, &vdi);
        let others = [(victim + 1) % 3, (victim + 2) % 3];
        let load = Load::new(&vdi, ring.nbds(&others)).start();
        load.progress(300);
        let cause = if ring.leader() == victim { "silent owner and leader" } else { "silent owner" };
        load.longest_wait();
        let begin = Instant::now();
        ring.hosts().isolate(&[victim]);
        let waited = wait::until(Duration::from_secs(20), "the others have noticed", || {
            let waited = load.longest_wait();
            if waited > MS(500) { Ok(waited) } else { Err(format!("{:?}", begin.elapsed())) }
        });
        pauses.note(cause, waited);
        load.progress(300);
        ring.hosts().mend();
        drop(first);
        ring.wait_full();
        let outcome = load.finish(&ring, &ring.everywhere(), cause);
        assert_eq!(outcome.broken, 0, "the clients' own sheep stayed");
    }
    pauses.judge(|_| MS(5_000));
}

#[test]
#[ignore = "judges times on a quiet machine: make prove"]
fn restarts() {
    let mut ring = ring();
    let mut client = ring.open(0, "vol");
    for object in 0..32u64 {
        client.write(object << 22, &[1; 65536]).expect("written");
    }
    let mut pauses = Pauses::default();
    for _ in 0..10 {
        ring[2].kill();
        let begin = Instant::now();
        ring[2].start();
        pauses.note("until it serves", begin.elapsed());
        ring.wait_full();
        pauses.note("until it is all in sync", begin.elapsed());
    }
    pauses.judge(|cause| if cause == "until it serves" { MS(2_000) } else { MS(8_000) });
}
