//! Configurations as members come and go.

use std::collections::BTreeSet;

use super::*;

fn live(node: u64, start: u64, boot: u128) -> Live<'static> {
    Live { session: Session { node: NodeId(node), start }, boot, reached: &[] }
}

fn find<'a>(all: &'a [Live<'a>]) -> impl Fn(NodeId) -> Option<Live<'a>> + 'a {
    |node| all.iter().copied().find(|l| l.session.node == node)
}

fn states(config: &SlotConfig) -> Vec<(u64, u64, MemberState)> {
    let mut all: Vec<_> =
        config.members.iter().map(|m| (m.session.node.0, m.session.start, m.state)).collect();
    all.sort_by_key(|m| m.0);
    all
}

fn copies(count: u64) -> Copies {
    Copies::new(count).expect("in range")
}

/// Those that lack nothing.
fn eligible(config: &SlotConfig) -> Vec<(u64, u128)> {
    config.eligible.iter().filter(|e| e.since == 0).map(|e| (e.node.0, e.boot)).collect()
}

/// Those taken out while enough stayed, and when.
fn taken_out(config: &SlotConfig) -> Vec<(u64, u64)> {
    config.eligible.iter().filter(|e| e.since > 0).map(|e| (e.node.0, e.since)).collect()
}

/// Where the log is.
const AT: u64 = 100;
const TARGETS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
use MemberState::{CatchingUp, InSync, Returned};

#[test]
fn a_dead_member_leaves_and_its_next_session_catches_up() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7), live(3, 1, 7)]);
    let config =
        config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 7)]), &TARGETS, copies(3), AT).expect("changed");
    assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync)]);
    let all = [live(1, 1, 7), live(2, 1, 7), live(3, 2, 7)];
    let config = config.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
    assert_eq!(states(&config), [(1, 1, InSync), (2, 1, InSync), (3, 2, CatchingUp)]);
    assert_eq!(config.version, 3);
    assert_eq!(config.reconfigured(find(&all), &TARGETS, copies(3), AT), None);
}

#[test]
fn a_quick_restart_makes_a_member_catch_up() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 7)]);
    let config = config
        .reconfigured(find(&[live(1, 1, 7), live(2, 2, 7)]), &TARGETS[..2], copies(2), AT)
        .expect("changed");
    assert_eq!(states(&config), [(1, 1, InSync), (2, 2, CatchingUp)]);
}

#[test]
fn a_lost_set_waits_for_all_of_it_or_for_one_with_an_unbroken_boot() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    assert_eq!(config.reconfigured(find(&[]), &TARGETS[..2], copies(2), AT), None);
    // One is back after a power loss, and a stranger is there: neither counts.
    let one = config
        .reconfigured(find(&[live(1, 2, 70), live(3, 1, 9)]), &TARGETS, copies(2), AT)
        .expect("changed");
    assert_eq!(states(&one), [(1, 2, Returned), (2, 1, InSync)]);
    let both = one
        .reconfigured(find(&[live(1, 2, 70), live(2, 2, 80)]), &TARGETS[..2], copies(2), AT)
        .expect("changed");
    assert_eq!(states(&both), [(1, 2, InSync), (2, 2, InSync)]);
    // The other comes back from a mere restart: it alone is enough.
    let unbroken = one.reconfigured(find(&[live(1, 2, 70), live(2, 2, 8)]), &TARGETS[..2], copies(2), AT);
    assert_eq!(states(&unbroken.expect("changed")), [(2, 2, InSync)]);
}

#[test]
fn who_returned_from_a_power_loss_and_restarts_still_does_not_count_alone() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    let config = config.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], copies(2), AT).expect("changed");
    let config = config.reconfigured(find(&[]), &TARGETS[..2], copies(2), AT).expect("changed");
    let config = config.reconfigured(find(&[live(1, 3, 70)]), &TARGETS[..2], copies(2), AT).expect("changed");
    assert_eq!(states(&config), [(1, 3, Returned), (2, 1, InSync)]);
}

#[test]
fn an_old_holder_goes_only_when_the_new_ones_are_in_sync() {
    let config = SlotConfig::new(1, [live(4, 1, 7)]);
    let all = [live(1, 1, 7), live(4, 1, 7)];
    let mut config = config.reconfigured(find(&all), &TARGETS[..1], copies(1), AT).expect("changed");
    assert_eq!(states(&config), [(1, 1, CatchingUp), (4, 1, InSync)]);
    config.members.iter_mut().for_each(|m| m.state = InSync);
    let config = config.reconfigured(find(&all), &TARGETS[..1], copies(1), AT).expect("changed");
    assert_eq!(states(&config), [(1, 1, InSync)]);
}

#[test]
fn who_is_taken_out_while_enough_stay_is_eligible_since_then() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
    let two = config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 8)]), &TARGETS, copies(3), AT);
    let two = two.expect("changed");
    assert_eq!((eligible(&two), taken_out(&two)), (vec![], vec![(3, AT)]));
    // With two copies one is enough for a write.
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2), AT);
    let one = one.expect("changed");
    assert_eq!((eligible(&one), taken_out(&one)), (vec![], vec![(2, AT)]));
    // Once somebody is admitted nobody else counts.
    let mut more = one.reconfigured(find(&[live(1, 1, 7), live(2, 2, 8)]), &TARGETS[..2], copies(2), AT);
    let more = more.as_mut().expect("changed");
    assert_eq!(taken_out(more), [(2, AT)]);
    more.admitted(true);
    assert_eq!(more.eligible, []);
}

/// 2 was taken out at AT, and then 1 lost its power.
fn taken_out_before_a_loss_of_power() -> SlotConfig {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2), AT);
    let both = one.expect("changed").reconfigured(
        find(&[live(1, 1, 7), live(2, 2, 8)]),
        &TARGETS[..2],
        copies(2),
        AT + 1,
    );
    both.expect("changed")
}

/// One whose log had come to AT - 1, or to AT, when its second process began.
fn knew(start: u64, boot: u128, of_it: bool) -> Live<'static> {
    const UNKNOWN: &[Reached] = &[Reached { before: 2, index: AT - 1 }, Reached { before: 3, index: AT + 3 }];
    const KNOWN: &[Reached] = &[Reached { before: 2, index: AT }];
    Live { reached: if of_it { KNOWN } else { UNKNOWN }, ..live(1, start, boot) }
}

#[test]
fn who_was_taken_out_unknown_to_those_who_lost_their_memory_goes_before_them() {
    let config = taken_out_before_a_loss_of_power();
    let back = |of_it| [knew(3, 70, of_it), live(2, 2, 8)];
    let resumed = config.reconfigured(find(&back(false)), &TARGETS[..2], copies(2), AT + 2);
    let resumed = resumed.expect("changed");
    assert_eq!((states(&resumed), taken_out(&resumed)), (vec![(2, 2, InSync)], vec![]));
    // 1 knew that 2 was taken out, and may have acknowledged something alone.
    let alone = config.reconfigured(find(&back(true)), &TARGETS[..2], copies(2), AT + 2);
    assert_eq!(states(&alone.expect("changed")), [(1, 3, InSync)]);
    // Nobody knows what it knew.
    let unknown = [live(1, 2, 70), live(2, 2, 8)];
    let alone = config.reconfigured(find(&unknown), &TARGETS[..2], copies(2), AT + 2);
    assert_eq!(states(&alone.expect("changed")), [(1, 2, InSync)]);
}

#[test]
fn who_was_taken_out_is_waited_for_if_those_left_did_not_know() {
    let config = taken_out_before_a_loss_of_power();
    let back = [knew(2, 70, false)];
    let waits = config.reconfigured(find(&back), &TARGETS[..2], copies(2), AT + 2).expect("changed");
    assert_eq!((states(&waits), taken_out(&waits)), (vec![(1, 2, Returned)], vec![(2, AT)]));
    // It restarts, and has heard of everything since: what its first process knew counts.
    let gone = waits.reconfigured(find(&[]), &TARGETS[..2], copies(2), AT + 3).expect("changed");
    let back = [knew(3, 70, false)];
    let waits = gone.reconfigured(find(&back), &TARGETS[..2], copies(2), AT + 4).expect("changed");
    assert_eq!(states(&waits), [(1, 3, Returned)]);
    let both = [knew(3, 70, false), live(2, 3, 8)];
    let resumed = waits.reconfigured(find(&both), &TARGETS[..2], copies(2), AT + 5).expect("changed");
    assert_eq!(states(&resumed), [(2, 3, InSync)]);
    // It has lost its memory as well: then the others have what was flushed, and are enough.
    let both = [knew(3, 70, false), live(2, 3, 80)];
    let resumed = waits.reconfigured(find(&both), &TARGETS[..2], copies(2), AT + 5).expect("changed");
    assert_eq!(states(&resumed), [(1, 3, InSync)]);
}

#[test]
fn whoever_resumes_alone_may_not_live_to_acknowledge_anything() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    // Both restart; 1 is back first, and goes on alone.
    let one = config.reconfigured(find(&[live(1, 2, 7)]), &TARGETS[..2], copies(2), AT).expect("changed");
    assert_eq!((states(&one), taken_out(&one)), (vec![(1, 2, InSync)], vec![(2, AT)]));
    // It loses its power before it has heard that.
    const UNKNOWN: &[Reached] = &[Reached { before: 3, index: AT - 1 }];
    let back = [Live { reached: UNKNOWN, ..live(1, 3, 70) }, live(2, 2, 8)];
    let resumed = one.reconfigured(find(&back), &TARGETS[..2], copies(2), AT + 1).expect("changed");
    assert_eq!(states(&resumed), [(2, 2, InSync)]);
}

/// 3 was taken out at AT, then 2, whose log had come to `knew`, then all the others lost their power.
fn one_after_the_other(knew: u64) -> SlotConfig {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
    let two = config.reconfigured(find(&[live(1, 1, 7), live(2, 1, 8)]), &TARGETS, copies(3), AT);
    let one = two.expect("changed").reconfigured(find(&[live(1, 1, 7)]), &TARGETS, copies(3), AT + 1);
    let one = one.expect("changed");
    assert_eq!((taken_out(&one), eligible(&one)), (vec![(3, AT)], vec![(2, 8)]));
    let first = [live(1, 1, 7), live(3, 2, 9)].map(|l| l.session).into_iter().collect();
    assert!(!one.known_by(&first, AT + 1), "2 is not heard, and may not have known");
    let reached: &[Reached] = &[Reached { before: 2, index: knew }, Reached { before: 3, index: AT + 9 }];
    let of_first: &[Reached] = &[Reached { before: 2, index: AT + 5 }];
    let back =
        [Live { reached: of_first, ..live(1, 2, 70) }, Live { reached, ..live(2, 3, 80) }, live(3, 2, 9)];
    one.reconfigured(find(&back), &TARGETS, copies(3), AT + 2).expect("changed")
}

#[test]
fn who_fell_out_without_knowing_proves_that_nothing_was_acknowledged() {
    assert_eq!(states(&one_after_the_other(AT - 1)), [(3, 2, InSync)]);
    assert_eq!(states(&one_after_the_other(AT)), [(1, 2, InSync), (2, 3, InSync)]);
}

#[test]
fn a_disk_that_failed_is_no_way_back() {
    let mut config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    config.members[1].boot = 0;
    let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(2), AT).expect("changed");
    assert_eq!(one.eligible, []);
}

#[test]
fn who_is_not_needed_any_more_is_on_record_until_those_left_know() {
    let all = [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)];
    let config = SlotConfig::new(1, all);
    let two = config.reconfigured(find(&all), &TARGETS[..2], copies(2), AT).expect("changed");
    assert_eq!(states(&two), [(1, 1, InSync), (2, 1, InSync)]);
    assert_eq!(taken_out(&two), [(3, AT)]);
    let all = BTreeSet::from([all[0].session, all[1].session]);
    assert!(two.known_by(&all, AT) && !two.known_by(&all, AT - 1));
    assert!(!two.known_by(&BTreeSet::from([live(1, 1, 7).session, live(2, 2, 8).session]), AT));
    let mut back = two;
    back.members[1] = Member { boot: 0, state: MemberState::Returned, ..back.members[1].clone() };
    assert!(!back.known_by(&all, AT), "its session knows, but not the one that lost its memory");
}

#[test]
fn who_fell_out_when_writes_stopped_goes_before_a_set_without_memory() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8), live(3, 1, 9)]);
    let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS, copies(3), AT).expect("changed");
    assert_eq!(eligible(&one), [(2, 8), (3, 9)]);
    // 2 comes back without its memory, 3 with it, and 1 loses its own.
    let back = [live(1, 1, 7), live(2, 2, 80), live(3, 2, 9)];
    let back = one.reconfigured(find(&back), &TARGETS, copies(3), AT).expect("changed");
    assert_eq!(states(&back), [(1, 1, InSync), (2, 2, CatchingUp), (3, 2, CatchingUp)]);
    assert_eq!(eligible(&back), [(2, 0), (3, 9)]);
    let others = [live(2, 2, 80), live(3, 2, 9)];
    let lost = back.reconfigured(find(&others), &TARGETS, copies(3), AT).expect("changed");
    // 1 may have shown more than was acknowledged: it is waited for.
    assert_eq!((states(&lost), eligible(&lost)), (vec![(1, 1, InSync)], vec![(2, 0), (3, 9)]));
    let all = [live(1, 2, 70), live(2, 2, 80), live(3, 2, 9)];
    let resumed = lost.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
    assert_eq!(states(&resumed), [(3, 2, InSync)]);
    assert_eq!(eligible(&resumed), [(2, 0), (1, 0)]);
    // Once enough are in sync nobody else counts.
    let mut more = resumed.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
    more.members.iter_mut().find(|m| m.session.node == NodeId(1)).expect("a target").state = InSync;
    let more = more.reconfigured(find(&all), &TARGETS, copies(3), AT).expect("changed");
    assert_eq!(eligible(&more), []);
}

#[test]
fn a_set_without_memory_waits_for_the_eligible_and_then_counts_with_them() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(2, 1, 8)]);
    let one = config.reconfigured(find(&[live(1, 1, 7)]), &TARGETS[..2], copies(3), AT).expect("changed");
    let dark = one.reconfigured(find(&[live(1, 2, 70)]), &TARGETS[..2], copies(3), AT).expect("changed");
    assert_eq!((states(&dark), eligible(&dark)), (vec![(1, 2, Returned)], vec![(2, 8)]));
    let both = [live(1, 2, 70), live(2, 2, 80)];
    let both = dark.reconfigured(find(&both), &TARGETS[..2], copies(3), AT).expect("changed");
    assert_eq!((states(&both), eligible(&both)), (vec![(1, 2, InSync), (2, 2, InSync)], vec![]));
}

#[test]
fn old_holders_stay_while_fewer_are_in_place_than_a_write_needs() {
    let config = SlotConfig::new(1, [live(1, 1, 7), live(4, 1, 7)]);
    let all = [live(1, 1, 7), live(4, 1, 7)];
    assert_eq!(config.reconfigured(find(&all), &TARGETS[..1], copies(3), AT), None);
}
