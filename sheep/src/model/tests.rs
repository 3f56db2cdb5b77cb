//! What the model finds, and what it does not find.
//!
//! `MODEL=full` explores what takes minutes; `STORY=1` prints the way to every planted error.

use super::explore::{Bounds, Explored, explore};
use super::small::{Kinds, Scope, Small};
use crate::mutant::{Mutant, plant};

/// More states than any of these has: one that has more has got out of hand.
const STATES_MAX: usize = 20_000_000;

const NONE: Kinds = Kinds { crash: false, power: 0, torn: false, demote: false, cut: false };
const CRASH: Kinds = Kinds { crash: true, ..NONE };
const DEMOTE: Kinds = Kinds { demote: true, ..NONE };
const CUT: Kinds = Kinds { cut: true, ..NONE };

/// Two machines lose their power, and the third its process.
const DARK: Kinds = Kinds { crash: true, power: 2, ..NONE };

fn scope(failures: u8, kinds: Kinds, writes: usize) -> Scope {
    Scope { failures, kinds, writes, begun: 0, flush: false, slow: None }
}

fn run(scope: Scope, progress: bool, mutant: Option<Mutant>) -> Explored<Small> {
    plant(mutant);
    let explored = explore(&mut Small::new(scope), Bounds { progress, states: STATES_MAX });
    plant(None);
    println!(
        "{mutant:?}, {scope:?}: {} states, {} steps, {} deep",
        explored.states, explored.steps, explored.depth
    );
    explored
}

/// The way to what is wrong, as a person reads it.
fn story(explored: &Explored<Small>) -> String {
    let Some((what, way)) = &explored.wrong else { return "nothing is wrong".to_owned() };
    let steps = way.iter().enumerate().map(|(i, (step, world))| format!("{:>3}. {step}\n    {world}", i + 1));
    format!("{}\n{what}", steps.collect::<Vec<_>>().join("\n"))
}

fn nothing_is_wrong(scope: Scope) {
    let explored = run(scope, true, None);
    assert!(explored.wrong.is_none(), "{scope:?}\n{}", story(&explored));
}

/// The error is found, and the shortest way to it has so many steps.
fn is_found(mutant: Mutant, scope: Scope, steps: usize) {
    let explored = run(scope, false, Some(mutant));
    let way = explored.wrong.as_ref().map(|(_, way)| way.len());
    if std::env::var_os("STORY").is_some() {
        println!("{mutant:?}\n{}", story(&explored));
    }
    assert_eq!(way, Some(steps), "{mutant:?}\n{}", story(&explored));
}

fn is_full() -> bool {
    std::env::var("MODEL").is_ok_and(|m| m == "full")
}

#[test]
fn nothing_is_wrong_whatever_overtakes_what() {
    nothing_is_wrong(scope(0, NONE, 3));
}

#[test]
fn nothing_is_wrong_when_a_process_dies() {
    nothing_is_wrong(scope(1, CRASH, if is_full() { 3 } else { 2 }));
}

#[test]
fn nothing_is_wrong_when_a_node_is_cut_off() {
    nothing_is_wrong(scope(1, CUT, if is_full() { 3 } else { 2 }));
}

#[test]
fn nothing_is_wrong_when_a_copy_is_taken_out() {
    nothing_is_wrong(scope(1, DEMOTE, if is_full() { 3 } else { 2 }));
    nothing_is_wrong(scope(2, DEMOTE, 1));
    if is_full() {
        nothing_is_wrong(scope(2, Kinds { crash: true, ..DEMOTE }, 1));
    }
}

#[test]
fn nothing_is_wrong_when_a_node_is_behind_in_the_log() {
    for slow in 0..3 {
        nothing_is_wrong(Scope { slow: Some(slow), ..scope(1, CUT, 1) });
        nothing_is_wrong(Scope { slow: Some(slow), ..scope(1, CRASH, 1) });
    }
}

#[test]
fn nothing_is_wrong_when_machines_lose_their_power() {
    let most = if is_full() { 3 } else { 1 };
    for power in 1..=most {
        nothing_is_wrong(Scope { flush: true, ..scope(1, Kinds { power, torn: power == 1, ..NONE }, 1) });
    }
}

#[test]
fn nothing_is_wrong_when_all_copies_are_away_at_once() {
    if is_full() {
        nothing_is_wrong(Scope { begun: 1, ..scope(2, DARK, 1) });
    }
}

#[test]
fn a_write_that_follows_anything_is_found() {
    is_found(Mutant::AnyPredecessor, scope(0, NONE, 2), 6);
}

#[test]
fn an_admission_before_all_is_there_is_found() {
    is_found(Mutant::AdmitEarly, scope(1, CRASH, 2), 8);
}

#[test]
fn a_takeover_without_a_seal_is_found() {
    is_found(Mutant::NoSeal, scope(1, CUT, 3), 5);
}

#[test]
fn a_request_of_a_generation_that_has_ended_is_found() {
    is_found(Mutant::NoFencing, scope(1, CUT, 3), 10);
}

#[test]
fn a_set_that_resumes_without_its_memory_is_found() {
    is_found(Mutant::AnyBoot, Scope { begun: 1, ..scope(2, DARK, 1) }, 8);
}

#[test]
fn a_read_without_a_lease_is_found() {
    is_found(Mutant::NoLeaseCheck, Scope { slow: Some(0), ..scope(1, CUT, 1) }, 9);
}

#[test]
fn an_answer_with_one_copy_is_found() {
    is_found(Mutant::AckAtOne, scope(1, CRASH, 2), 2);
}
