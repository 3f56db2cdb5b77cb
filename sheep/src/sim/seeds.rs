//! Many seeds, each in a process of its own, and what they came to together.
//!
//! `SEED=s` runs one and tells its story, with `SPARE=mutant` under the faults that bring that out and without it;
//! `SEEDS=n FIRST=s` runs many. The last line counts.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::fault::Fault;
use super::ring::{self, Outcome, Run};
use super::world::MILLISECONDS;
use crate::mutant::Mutant;

/// Seeds of a run that is not told how many.
const SEEDS: u64 = 200;
/// From so many seeds on each kind of fault must have fired.
const ENOUGH: u64 = 60;
/// A simulated millisecond that takes this long never ends.
const STANDSTILL: Duration = Duration::from_secs(40);
/// Tells a child which seed to run: the seed, a mutant's name or `-`, and whether to tell the story.
const CHILD: &str = "SHEEPDOG_SIM_CHILD";
/// What a child's lines begin with that are for its parent.
const MARK: &str = "@sim ";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What a child said.
#[derive(Debug, Clone, Default)]
struct Report {
    broken: Vec<String>,
    fired: BTreeMap<String, u64>,
    counts: Vec<u64>,
    trace: String,
    seconds: f64,
}

/// A run without a bug.
const PLAIN: Run = Run { seed: 0, mutant: None, spared: false, aloud: false };

fn child(run: Run) -> Report {
    let Run { seed, mutant, spared, aloud } = run;
    let name = mutant.map_or("-".to_owned(), |m| format!("{m:?}"));
    let exe = std::env::current_exe().expect("this program has a path");
    let output = Command::new(exe)
        .args(["sim::seeds::child_of_a_run", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{seed} {name} {spared} {aloud}"))
        .stderr(Stdio::inherit())
        .output();
    let output = output.expect("this program can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut report = Report::default();
    for line in text.lines() {
        let Some(line) = line.strip_prefix(MARK) else {
            if aloud {
                println!("{line}");
            }
            continue;
        };
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "broken" => report.broken.push(rest.to_owned()),
            "fired" => {
                let (fault, count) = rest.split_once(' ').unwrap_or((rest, "0"));
                report.fired.insert(fault.to_owned(), count.parse().unwrap_or_default());
            }
            "counts" => report.counts = rest.split(' ').filter_map(|n| n.parse().ok()).collect(),
            "trace" => rest.clone_into(&mut report.trace),
            "time" => report.seconds = rest.parse().unwrap_or_default(),
            _ => {}
        }
    }
    if report.trace.is_empty() {
        report.broken.push(format!("the process died: {}", output.status));
    }
    report
}

fn tell(outcome: &Outcome) {
    for what in &outcome.broken {
        println!("{MARK}broken {}", what.replace('\n', " "));
    }
    for (fault, count) in &outcome.fired {
        println!("{MARK}fired {fault:?} {count}");
    }
    let c = outcome.counts;
    let (epochs, left_over) = (outcome.epochs_in_recovery, outcome.left_over);
    println!(
        "{MARK}counts {} {} {} {} {} {epochs} {left_over}",
        c.writes, c.reads, c.flushes, c.ruins, c.blurs
    );
    println!("{MARK}time {}", outcome.time.as_secs_f64());
    println!("{MARK}trace {:x} {:x} {}", outcome.trace.0, outcome.trace.1, outcome.trace.2);
}

#[test]
#[ignore = "one seed of a run, started by its parent"]
fn child_of_a_run() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let seed = words[0].parse().expect("a seed");
    let mutant = Mutant::ALL.into_iter().find(|m| format!("{m:?}") == words[1]);
    println!();
    std::thread::spawn(watch_time);
    // What the sheep themselves say, for whoever looks into one seed: SIM_LOG=sheep=debug.
    if let Ok(filter) = std::env::var("SIM_LOG") {
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false);
        log.with_writer(std::io::stdout).init();
    }
    let (spared, aloud) = (words[2] == "true", words[3] == "true");
    tell(&ring::run(Run { seed, mutant, spared, aloud }));
}

/// Ends the process when simulated time stands still: somebody goes round in circles without waiting.
#[expect(clippy::disallowed_methods, reason = "the thread that hangs cannot be asked to return")]
fn watch_time() {
    let mut seen = u64::MAX;
    loop {
        std::thread::sleep(STANDSTILL);
        let now = MILLISECONDS.load(Ordering::Relaxed);
        if now == seen {
            println!("{MARK}broken time stands still after {now} ms: something loops without waiting");
            println!("{MARK}trace none");
            std::process::exit(1);
        }
        seen = now;
    }
}

/// Runs seeds side by side, until `enough` says so; reports in the order of the seeds.
fn run_all(first: u64, count: u64, mutant: Option<Mutant>, stop_at_first: bool) -> BTreeMap<u64, Report> {
    let (next, reports) = (AtomicU64::new(first), Mutex::new(BTreeMap::new()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get().min(8)) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = child(Run { seed, mutant, ..PLAIN });
                    if !report.broken.is_empty() && mutant.is_none() {
                        println!("seed {seed} failed: {}", report.broken.join("\n    "));
                    }
                    if stop_at_first && !report.broken.is_empty() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    reports.lock().insert(seed, report);
                }
            });
        }
    });
    reports.into_inner()
}

#[test]
fn rings_keep_their_promises_under_faults() {
    if let Some(seed) = number("SEED") {
        let spared = std::env::var("SPARE").ok();
        let mutant =
            Mutant::ALL.into_iter().find(|m| spared.as_ref().is_some_and(|s| *s == format!("{m:?}")));
        let report = child(Run { seed, mutant, spared: mutant.is_some(), aloud: true });
        println!(
            "{} passed, {} failed",
            u64::from(report.broken.is_empty()),
            u64::from(!report.broken.is_empty())
        );
        assert!(report.broken.is_empty(), "seed {seed}: {:#?}", report.broken);
        return;
    }
    let (first, count) = (number("FIRST").unwrap_or(1), number("SEEDS").unwrap_or(SEEDS));
    let reports = run_all(first, count, None, false);
    let mut fired: BTreeMap<String, u64> = BTreeMap::new();
    let (mut failed, mut counts, mut seconds) = (Vec::new(), [0; 7], 0.0);
    for (seed, report) in &reports {
        for (fault, times) in &report.fired {
            *fired.entry(fault.clone()).or_default() += times;
        }
        counts.iter_mut().zip(&report.counts).for_each(|(sum, n)| *sum += n);
        seconds += report.seconds;
        if !report.broken.is_empty() {
            failed.push(seed);
        }
    }
    let [writes, reads, flushes, ruins, blurs, epochs, left_over] = counts;
    println!(
        "{seconds:.0} s simulated: {writes} writes, {reads} sectors read, {flushes} flushes, {ruins} ruins, {blurs} blurs"
    );
    println!("{epochs} times three epochs during a recovery; {left_over} objects left over by failovers");
    let each: Vec<String> = fired.iter().map(|(fault, times)| format!("{fault} {times}")).collect();
    println!("faults: {}", each.join(", "));
    let never: Vec<String> =
        Fault::ALL.iter().map(|f| format!("{f:?}")).filter(|f| !fired.contains_key(f)).collect();
    println!("{} passed, {} failed", reports.len() - failed.len(), failed.len());
    assert!(failed.is_empty(), "seeds {failed:?}");
    assert!(count < ENOUGH || never.is_empty(), "these faults never happened: {never:?}");
    assert!(count < ENOUGH || epochs > 0, "the membership never changed again and again during a recovery");
}

#[test]
fn a_seed_repeats_itself() {
    for seed in [1, 2] {
        let (once, twice) = (child(Run { seed, ..PLAIN }), child(Run { seed, ..PLAIN }));
        assert_eq!(once.trace, twice.trace, "seed {seed}");
    }
}

/// Each mutant, and from which seed on within how many it has to be caught; where that is rare, beginning near a seed that does, so
/// that it costs little. `MUTANT=name` runs one, `MUTANT_SEEDS=n` that many seeds from 1 at most.
const CAUGHT_WITHIN: [(Mutant, u64, u64); 24] = [
    (Mutant::AckAtOne, 1, 20),
    (Mutant::NoSeal, 1, 40),
    (Mutant::NoLeaseCheck, 1, 40),
    (Mutant::FlushSkips, 1, 50),
    (Mutant::AdmitEarly, 1, 10),
    (Mutant::ApplyTwice, 1, 5),
    (Mutant::BelieveAnyone, 1, 0),
    (Mutant::AnyPredecessor, 1, 60),
    (Mutant::NoFencing, 1, 40),
    (Mutant::AnyBoot, 1, 40),
    (Mutant::NoMarks, 1, 20),
    (Mutant::MarksDropped, 1, 50),
    (Mutant::FirstFlushSome, 1, 80),
    (Mutant::ReadsOvertake, 1, 150),
    (Mutant::LateWrites, 1, 80),
    (Mutant::NamesUnsynced, 1, 10),
    (Mutant::SyncAgain, 1, 60),
    (Mutant::DeleteEarly, 101, 100),
    (Mutant::ReclaimSoon, 801, 40),
    (Mutant::CrcUnchecked, 1, 20),
    (Mutant::KeepUnlisted, 241, 60),
    (Mutant::IdsAgain, 1, 20),
    (Mutant::DeletedStays, 1, 20),
    (Mutant::HeirToAll, 1, 0),
];

#[test]
fn mutants_are_caught() {
    let mut escaped = Vec::new();
    let chosen = std::env::var("MUTANT").ok();
    for (mutant, from, within) in CAUGHT_WITHIN {
        // None of those that were tried has caught it: only on request.
        let rare = within == 0 && chosen.is_none();
        if rare || chosen.as_ref().is_some_and(|name| *name != format!("{mutant:?}")) {
            continue;
        }
        let (from, count) = number("MUTANT_SEEDS").map_or((from, within), |count| (1, count));
        let reports = run_all(from, count, Some(mutant), true);
        let caught = reports.iter().find(|(_, report)| !report.broken.is_empty());
        match caught {
            Some((seed, report)) => {
                println!("{mutant:?}: caught by seed {seed}: {}", report.broken[0]);
                let spared = child(Run { seed: *seed, mutant: Some(mutant), spared: true, ..PLAIN });
                if let Some(broken) = spared.broken.first() {
                    println!("{mutant:?}: seed {seed} fails without it too: {broken}");
                    escaped.push(mutant);
                }
            }
            None => {
                println!("{mutant:?}: not caught");
                escaped.push(mutant);
            }
        }
    }
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}
