//! Rules one by one, then random schedules.

use proptest::prelude::*;

use super::*;
use crate::cluster::lease::{EXPIRY, HeldLease};

const MS: fn(u64) -> Duration = Duration::from_millis;
const LEADER: Session = Session { node: NodeId(1), start: 1 };
const OTHER: Session = Session { node: NodeId(2), start: 4 };

/// A leader since 0 that granted OTHER a lease at `at`.
fn watching(at: Duration) -> (Detector, Grants) {
    let mut detector = Detector::new(LEADER.node, DEAD_AFTER, MS(0));
    detector.set_members([LEADER, OTHER], MS(0));
    let mut grants = Grants::new(MS(0), MS(0));
    grants.renew(OTHER, Some(at), at).expect("granted");
    detector.renewed(OTHER, at);
    detector.judge(&grants, Some(at), at);
    (detector, grants)
}

/// Judges every 10 ms in `from..to` and says when what was first advised.
fn judge_between(detector: &mut Detector, grants: &Grants, from: u64, to: u64) -> Vec<(u64, Verdict)> {
    let mut seen: Vec<(u64, Verdict)> = Vec::new();
    for now in (from..to).step_by(10) {
        for verdict in detector.judge(grants, Some(MS(now)), MS(now)) {
            if seen.iter().all(|(_, other)| *other != verdict) {
                seen.push((now, verdict));
            }
        }
    }
    seen
}

#[test]
fn a_refused_node_is_evicted_when_its_lease_is_over() {
    let (mut detector, grants) = watching(MS(1_000));
    detector.suspect(OTHER.node, MS(1_050));
    assert_eq!(detector.judge(&grants, Some(MS(1_050)), MS(1_050)), [Verdict::Probe(OTHER.node)]);
    assert_eq!(detector.judge(&grants, Some(MS(1_060)), MS(1_060)), [], "one probe at a time");
    detector.probed(OTHER.node, Probe::Refused, MS(1_050));
    let advised = judge_between(&mut detector, &grants, 1_070, 1_600);
    assert!(advised.contains(&(1_520, Verdict::Evict(OTHER))), "{advised:?}");
}

#[test]
fn a_refused_node_that_renews_is_trusted_again() {
    let (mut detector, mut grants) = watching(MS(1_000));
    detector.suspect(OTHER.node, MS(1_050));
    detector.probed(OTHER.node, Probe::Refused, MS(1_050));
    detector.renewed(OTHER, MS(1_100));
    grants.renew(OTHER, Some(MS(1_100)), MS(1_100)).expect("granted");
    detector.probed(OTHER.node, Probe::Refused, MS(1_090));
    let advised = judge_between(&mut detector, &grants, 1_110, 2_000);
    assert!(advised.iter().all(|(_, verdict)| matches!(verdict, Verdict::Probe(_))), "{advised:?}");
}

#[test]
fn silence_alone_takes_the_whole_wait() {
    let (mut detector, grants) = watching(MS(1_000));
    let advised = judge_between(&mut detector, &grants, 1_000, 4_000);
    assert_eq!(advised, [(1_510, Verdict::Probe(OTHER.node)), (3_500, Verdict::Evict(OTHER))]);
}

#[test]
fn an_accepted_probe_does_not_excuse_missing_renewals_for_ever() {
    let (mut detector, grants) = watching(MS(1_000));
    detector.suspect(OTHER.node, MS(1_010));
    detector.probed(OTHER.node, Probe::Accepted, MS(1_020));
    let advised = judge_between(&mut detector, &grants, 1_030, 4_000);
    assert_eq!(advised, [(1_510, Verdict::Probe(OTHER.node)), (3_500, Verdict::Evict(OTHER))]);
}

#[test]
fn a_leader_that_nobody_confirms_takes_nobody_for_silent() {
    let (mut detector, grants) = watching(MS(1_000));
    for now in (1_000..9_000).step_by(10) {
        let verdicts = detector.judge(&grants, Some(MS(1_200)), MS(now));
        assert!(!verdicts.contains(&Verdict::Evict(OTHER)), "{now}: {verdicts:?}");
    }
    // Heard again, those that it could not hear have a lease's time to renew.
    let advised = judge_between(&mut detector, &grants, 9_000, 10_000);
    let evicted = advised.iter().find(|(_, verdict)| *verdict == Verdict::Evict(OTHER));
    assert_eq!(evicted, Some(&(9_500, Verdict::Evict(OTHER))));
}

#[test]
fn who_refuses_is_dead_even_while_nobody_confirms_the_leader() {
    let (mut detector, grants) = watching(MS(1_000));
    detector.suspect(OTHER.node, MS(1_050));
    detector.probed(OTHER.node, Probe::Refused, MS(1_050));
    assert_eq!(detector.judge(&grants, None, MS(1_600)), [Verdict::Evict(OTHER)]);
}

#[test]
fn a_newer_start_proves_the_older_dead_at_once() {
    let (mut detector, grants) = watching(MS(1_000));
    detector.seen(OTHER);
    assert_eq!(detector.judge(&grants, Some(MS(1_001)), MS(1_001)), []);
    detector.seen(Session { start: 5, ..OTHER });
    assert_eq!(detector.judge(&grants, Some(MS(1_002)), MS(1_002)), [Verdict::Evict(OTHER)]);
    assert_eq!(detector.judge(&grants, Some(MS(1_010)), MS(1_010)), [], "not again at once");
    assert_eq!(judge_between(&mut detector, &grants, 1_020, 1_600), [(1_510, Verdict::Evict(OTHER))]);
}

#[test]
fn the_leader_never_evicts_itself() {
    let (mut detector, grants) = watching(MS(1_000));
    detector.suspect(LEADER.node, MS(1_000));
    detector.probed(LEADER.node, Probe::Refused, MS(1_000));
    detector.seen(Session { start: 9, ..LEADER });
    let advised = judge_between(&mut detector, &grants, 1_000, 9_000);
    assert!(advised.iter().all(|(_, verdict)| *verdict != Verdict::Evict(LEADER)), "{advised:?}");
    assert!(!advised.contains(&(1_000, Verdict::Probe(LEADER.node))));
}

#[test]
fn time_slept_through_is_nobodys_silence() {
    let (mut detector, grants) = watching(MS(1_000));
    assert_eq!(detector.judge(&grants, Some(MS(9_000)), MS(9_000)), []);
    let advised = judge_between(&mut detector, &grants, 9_000, 12_000);
    assert_eq!(advised, [(9_510, Verdict::Probe(OTHER.node)), (11_500, Verdict::Evict(OTHER))]);
}

#[test]
fn a_new_leader_gives_everybody_the_whole_wait() {
    let mut detector = Detector::new(LEADER.node, DEAD_AFTER, MS(5_000));
    detector.set_members([LEADER, OTHER], MS(5_000));
    let grants = Grants::new(MS(5_000), MS(0));
    detector.suspect(OTHER.node, MS(5_000));
    detector.probed(OTHER.node, Probe::Refused, MS(5_001));
    let advised = judge_between(&mut detector, &grants, 5_000, 8_000);
    assert!(advised.contains(&(5_520, Verdict::Evict(OTHER))), "{advised:?}");
}

/// What befalls the watched node.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Its process is killed; connections to it are refused from then on, renewals under way still arrive.
    Killed { at: u64, reset_seen: bool },
    /// It is cut off without a sign.
    Lost { at: u64 },
    /// Its process is stopped and goes on later.
    Stalled { at: u64, lasts: u64 },
    /// Its renewals get lost for a while and its connections are rejected by something in between, which a
    /// peer reports.
    Rejected { at: u64, lasts: u64 },
    /// It is well, but others do not reach it: its leases are withheld from then on.
    Unwanted { at: u64 },
}

fn fates() -> impl Strategy<Value = Fate> {
    let at = 1_000..3_000_u64;
    prop_oneof![
        (at.clone(), any::<bool>()).prop_map(|(at, reset_seen)| Fate::Killed { at, reset_seen }),
        at.clone().prop_map(|at| Fate::Lost { at }),
        (at.clone(), 0..=500_u64).prop_map(|(at, lasts)| Fate::Stalled { at, lasts }),
        (at.clone(), 0..3_000_u64).prop_map(|(at, lasts)| Fate::Rejected { at, lasts }),
        at.prop_map(|at| Fate::Unwanted { at }),
    ]
}

/// One holder and one leader, millisecond by millisecond. `rate` is the holder's clock in thousandths of
/// the leader's. Returns when, by the leader's clock, the holder was evicted, if ever.
fn simulate(fate: Fate, rate: u64, period: u64, delays: &[u64]) -> Option<u64> {
    let (mut detector, mut grants) = watching(MS(0));
    let mut held = HeldLease::default();
    let holder_time = |now: u64| Duration::from_micros(now * rate);
    let mut next_renewal = 0;
    // (arrives at the leader, holder's sending time), (arrives at the holder, holder's sending time)
    let mut requests: Vec<(u64, Duration)> = Vec::new();
    let mut answers: Vec<(u64, Duration)> = Vec::new();
    let mut delays = delays.iter().copied().cycle();
    for now in 0..9_000_u64 {
        let (alive, runs, reaches, refuses) = match fate {
            Fate::Killed { at, .. } => (now < at, now < at, true, now >= at),
            Fate::Lost { at } => (true, true, now < at, false),
            Fate::Stalled { at, lasts } => (true, !(at..at + lasts).contains(&now), true, false),
            Fate::Rejected { at, lasts } => {
                let cut = (at..at + lasts).contains(&now);
                (true, true, !cut, cut)
            }
            Fate::Unwanted { .. } => (true, true, true, false),
        };
        if matches!(fate, Fate::Unwanted { at } if at == now) {
            grants.withhold(OTHER);
            detector.unwanted(OTHER);
        }
        if runs && now >= next_renewal {
            next_renewal = now + period;
            if reaches {
                requests.push((now + delays.next().unwrap_or(0), holder_time(now)));
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = requests.into_iter().partition(|(at, _)| *at <= now);
        requests = later;
        for (_, sent) in due {
            detector.renewed(OTHER, MS(now));
            if grants.renew(OTHER, Some(MS(now)), MS(now)).is_err() {
                assert!(matches!(fate, Fate::Unwanted { at } if at <= now), "a lease is refused for nothing");
                continue;
            }
            answers.push((now + delays.next().unwrap_or(0), sent));
        }
        if runs && reaches {
            let (due, later): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(at, _)| *at <= now);
            answers = later;
            due.into_iter().for_each(|(_, sent)| held.granted(sent));
        }
        let reported = match fate {
            Fate::Killed { at, reset_seen: true } | Fate::Rejected { at, .. } => at + 1 == now,
            Fate::Killed { .. } | Fate::Lost { .. } | Fate::Stalled { .. } | Fate::Unwanted { .. } => false,
        };
        if reported {
            detector.suspect(OTHER.node, MS(now));
        }
        if now % 10 != 0 {
            continue;
        }
        for verdict in detector.judge(&grants, Some(MS(now)), MS(now)) {
            match verdict {
                Verdict::Probe(node) => {
                    let probe = match (refuses, reaches) {
                        (true, _) => Probe::Refused,
                        (false, true) => Probe::Accepted,
                        (false, false) => Probe::Silent,
                    };
                    detector.probed(node, probe, MS(now));
                }
                Verdict::Evict(session) => {
                    assert_eq!(session, OTHER);
                    assert!(
                        !alive || !held.is_valid(holder_time(now)),
                        "evicted at {now} with a lease until {:?} at {:?}",
                        held.until(),
                        holder_time(now),
                    );
                    return Some(now);
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_valid_lease_is_evicted_and_the_dead_do_not_stay(
        fate in fates(),
        rate in 990..=1_010_u64,
        period in 50..150_u64,
        delays in prop::collection::vec(0..60_u64, 1..20),
    ) {
        let evicted = simulate(fate, rate, period, &delays);
        let step = 20;
        let expiry = u64::try_from(EXPIRY.as_millis()).expect("small");
        let dead_after = u64::try_from(DEAD_AFTER.as_millis()).expect("small");
        // A renewal sent just before the end arrives up to 60 ms after it.
        let late = 60;
        match fate {
            Fate::Killed { at, .. } => {
                let evicted = evicted.expect("a killed node is evicted");
                prop_assert!(evicted <= at + late + expiry + step, "killed {at}, evicted {evicted}");
            }
            Fate::Lost { at } => {
                let evicted = evicted.expect("a lost node is evicted");
                prop_assert!(evicted <= at + late + dead_after + step, "lost {at}, evicted {evicted}");
                prop_assert!(evicted + period + late >= at + dead_after, "lost {at}, evicted {evicted}");
            }
            Fate::Stalled { .. } => prop_assert_eq!(evicted, None),
            Fate::Rejected { lasts, .. } if lasts < 350 => prop_assert_eq!(evicted, None),
            Fate::Rejected { .. } => {}
            Fate::Unwanted { at } => {
                let evicted = evicted.expect("who is not wanted is evicted");
                prop_assert!(evicted <= at + expiry + step, "unwanted {at}, evicted {evicted}");
            }
        }
    }
}
