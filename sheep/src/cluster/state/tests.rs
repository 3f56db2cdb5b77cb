//! The state machine under histories, some drawn at random.

use proptest::prelude::*;

use super::super::log::Machine;
use super::*;

fn copies(n: u64) -> Copies {
    Copies::new(n).expect("in range")
}

pub(super) fn session(node: u64, start: u64) -> Session {
    Session { node: NodeId(node), start }
}

pub(super) fn spec(node: u64, start: u64, boot: u128) -> NodeSpec {
    NodeSpec {
        session: session(node, start),
        process: start,
        boot,
        admin: format!("127.0.0.1:{}", 7000 + 10 * node),
        mesh: format!("127.0.0.1:{}", 7001 + 10 * node),
        zone: NodeId(node).to_string(),
        vnodes: 128,
        gateway: false,
        reached: Vec::new(),
        nonce: 0,
    }
}

pub(super) fn founded(nodes: u64, n: u64) -> ClusterState {
    let mut state = ClusterState::default();
    let reply = state.apply_entry(
        1,
        &ClusterEntry::Format {
            cluster: ClusterId(9),
            copies: copies(n),
            slots: 256,
            nodes: (1..=nodes).map(|id| spec(id, 1, 1)).collect(),
            now_ms: 0,
        },
    );
    assert_eq!(reply, ClusterReply::Done);
    state.validate().expect("valid");
    state
}

fn redundant(state: &ClusterState) -> usize {
    state.slots().filter(|(c, _, config)| state.is_fully_redundant(*c, config)).count()
}

/// Every copy that catches up in `session` is admitted.
fn admit_all(state: &mut ClusterState, index: u64, session: Session) -> u32 {
    let mut admitted = 0;
    let policies: Vec<Copies> = state.slots.keys().copied().collect();
    for copies in policies {
        let slots = state
            .slots()
            .filter(|(c, _, _)| *c == copies)
            .filter_map(|(_, slot, config)| {
                let m = config.member(session)?;
                (m.state == MemberState::CatchingUp).then_some((slot, m.since))
            })
            .collect();
        let entry = ClusterEntry::Admit { session, copies, slots, seen: index - 1 };
        if let ClusterReply::Admitted(n) = state.apply_entry(index, &entry) {
            admitted += n;
        }
    }
    admitted
}

#[test]
fn nothing_happens_before_format_and_format_happens_once() {
    let mut state = ClusterState::default();
    let create =
        ClusterEntry::CreateVdi { name: "a".parse().expect("name"), size: 512, copies: None, now_ms: 0 };
    assert_eq!(state.apply_entry(1, &create), ClusterReply::Refused(Refusal::NotFormatted));
    let mut state = founded(3, 3);
    assert_eq!(redundant(&state), 256);
    let again = ClusterEntry::Format {
        cluster: ClusterId(10),
        copies: copies(1),
        slots: 256,
        nodes: vec![],
        now_ms: 0,
    };
    assert_eq!(state.apply_entry(2, &again), ClusterReply::Refused(Refusal::AlreadyFormatted));
    assert_eq!(state.format().map(|f| f.cluster), Some(ClusterId(9)));
}

#[test]
fn a_second_format_deletes_everything_and_no_id_comes_back() {
    let mut state = founded(3, 3);
    let create =
        ClusterEntry::CreateVdi { name: "a".parse().expect("name"), size: 512, copies: None, now_ms: 0 };
    state.apply_entry(2, &create);
    join(&mut state, 3, spec(2, 2, 1));
    state.apply_entry(4, &ClusterEntry::Acquire { vdi: VdiId(1), session: session(1, 1) });
    let anew = |slots| ClusterEntry::Reformat { copies: copies(2), slots, now_ms: 9 };
    assert_eq!(state.apply_entry(5, &anew(512)), ClusterReply::Refused(Refusal::InUse(NodeId(1))));
    let generation = Generation(1);
    state.apply_entry(6, &ClusterEntry::Release { vdi: VdiId(1), generation, to: None, used: None });
    assert_eq!(state.apply_entry(7, &anew(500)), ClusterReply::Refused(Refusal::BadSlots(500)));
    let newest = state.slots().map(|(_, _, config)| config.version).max();
    assert_eq!(state.apply_entry(8, &anew(512)), ClusterReply::Done);
    state.validate().expect("valid");
    assert!(state.is_deleted(VdiId(1)));
    assert_eq!(state.slots().count(), 512);
    for (policy, _, config) in state.slots() {
        assert_eq!((policy, config.in_state(MemberState::InSync).count()), (copies(2), 2));
        assert!(Some(config.version) > newest, "an answer to an old question means nothing");
    }
    assert_eq!(admit_all(&mut state, 9, session(2, 2)), 0);
    assert_eq!(state.apply_entry(10, &create), ClusterReply::Created(VdiId(2)));
}

/// Lets a node in, which has caught up.
fn join(state: &mut ClusterState, index: u64, node: NodeSpec) {
    let session = node.session;
    assert_eq!(state.apply_entry(index, &ClusterEntry::Join { node, now_ms: 6 }), ClusterReply::Done);
    assert_eq!(state.apply_entry(index, &ClusterEntry::Ready { session }), ClusterReply::Done);
}

#[test]
fn what_a_leader_decided_counts_only_if_it_ordered_it_in_that_term() {
    let ordered = |term, leader| Ordered { index: 2, term, leader: NodeId(leader) };
    let evict = ClusterEntry::Evict { sessions: vec![session(2, 1)], now_ms: 6 };
    let decided = ClusterEntry::InTerm { leader: NodeId(1), term: 4, entry: Box::new(evict.clone()) };
    let mut state = founded(3, 3);
    // Since then 3 may have granted 2 a lease, and so may 1, which leads again.
    for late in [ordered(5, 3), ordered(4, 3), ordered(6, 1)] {
        assert_eq!(state.apply(late, &decided), ClusterReply::Refused(Refusal::TermOver(4)));
    }
    assert!(state.is_live(session(2, 1)));
    assert_eq!(state.apply(ordered(4, 1), &decided), ClusterReply::Done);
    assert!(!state.is_live(session(2, 1)));
    let mut other = founded(3, 3);
    assert_eq!(other.apply(ordered(5, 3), &evict), ClusterReply::Done, "anybody may order the rest");
    assert_eq!(other.to_bytes(), state.to_bytes());
}

#[test]
fn nobody_waits_for_a_node_that_has_not_caught_up_with_the_log() {
    let mut state = founded(3, 3);
    assert!(!state.awaits(session(2, 1)), "the log begins with whoever the ring is founded with");
    state.apply_entry(2, &ClusterEntry::Join { node: spec(2, 2, 1), now_ms: 6 });
    let members = |state: &ClusterState, s| state.slots().filter(|(.., c)| c.member(s).is_some()).count();
    assert!(state.is_live(session(2, 2)) && state.awaits(session(2, 2)) && !state.serves(session(2, 2)));
    assert_eq!((members(&state, session(2, 1)), members(&state, session(2, 2))), (0, 0));
    assert_eq!(admit_all(&mut state, 3, session(2, 2)), 0);
    let before = state.epoch();
    let ready = |state: &mut ClusterState, start| {
        state.apply_entry(4, &ClusterEntry::Ready { session: session(2, start) })
    };
    assert!(matches!(ready(&mut state, 1), ClusterReply::Refused(Refusal::SessionOver(_))));
    assert_eq!((ready(&mut state, 2), members(&state, session(2, 2))), (ClusterReply::Done, 256));
    assert_eq!((ready(&mut state, 2), state.epoch().0), (ClusterReply::Done, before.0 + 1), "once");
    state.validate().expect("valid");
    assert_eq!(admit_all(&mut state, 5, session(2, 2)), 256);
}

#[test]
fn a_lost_set_resumes_when_one_of_it_has_caught_up_with_the_log() {
    let mut state = founded(1, 1);
    state.apply_entry(2, &ClusterEntry::Evict { sessions: vec![session(1, 1)], now_ms: 0 });
    state.apply_entry(3, &ClusterEntry::Join { node: spec(1, 2, 1), now_ms: 6 });
    assert!(state.slots().all(|(_, _, config)| state.waits(config)));
    state.apply_entry(4, &ClusterEntry::Ready { session: session(1, 2) });
    assert_eq!(redundant(&state), 256);
}

#[test]
fn a_killed_node_returns_through_catching_up() {
    let mut state = founded(3, 3);
    state.apply_entry(2, &ClusterEntry::Evict { sessions: vec![session(2, 1)], now_ms: 5 });
    assert_eq!(redundant(&state), 0);
    assert_eq!(state.epoch(), Epoch(2));
    let stale = ClusterEntry::Join { node: spec(2, 1, 1), now_ms: 6 };
    assert!(matches!(
        state.apply_entry(3, &stale),
        ClusterReply::Refused(Refusal::StartNotHigher { start: 1, seen: 1, .. })
    ));
    join(&mut state, 4, spec(2, 2, 1));
    state.validate().expect("valid");
    assert_eq!(redundant(&state), 0);
    assert_eq!(admit_all(&mut state, 6, session(2, 1)), 0);
    assert_eq!(admit_all(&mut state, 6, session(2, 2)), 256);
    assert_eq!(redundant(&state), 256);
}

#[test]
fn an_admission_found_before_a_change_of_owner_does_not_count() {
    let mut state = founded(3, 3);
    join(&mut state, 2, spec(2, 2, 1));
    let name: VdiName = "a".parse().expect("name");
    state.apply_entry(3, &ClusterEntry::CreateVdi { name, size: 512, copies: None, now_ms: 0 });
    state.apply_entry(9, &ClusterEntry::Acquire { vdi: VdiId(1), session: session(1, 1) });
    assert_eq!(admit_all(&mut state, 9, session(2, 2)), 0);
    assert_eq!(admit_all(&mut state, 10, session(2, 2)), 256);
}

#[test]
fn a_vdi_has_one_live_owner_and_every_change_raises_the_generation() {
    let mut state = founded(3, 3);
    let name: VdiName = "a".parse().expect("name");
    let create = ClusterEntry::CreateVdi { name: name.clone(), size: 512, copies: None, now_ms: 0 };
    assert_eq!(state.apply_entry(2, &create), ClusterReply::Created(VdiId(1)));
    assert_eq!(state.apply_entry(3, &create), ClusterReply::Refused(Refusal::NameTaken(name)));
    let acquire = |s| ClusterEntry::Acquire { vdi: VdiId(1), session: s };
    let owned = |s, g| ClusterReply::Owner { session: s, generation: Generation(g) };
    assert_eq!(state.apply_entry(4, &acquire(session(1, 1))), owned(session(1, 1), 1));
    assert_eq!(state.apply_entry(5, &acquire(session(2, 1))), owned(session(1, 1), 1));
    assert!(matches!(
        state.apply_entry(6, &ClusterEntry::DeleteVdi { vdi: VdiId(1) }),
        ClusterReply::Refused(Refusal::InUse(_))
    ));
    state.apply_entry(7, &ClusterEntry::Evict { sessions: vec![session(1, 1)], now_ms: 0 });
    assert!(matches!(
        state.apply_entry(8, &acquire(session(1, 1))),
        ClusterReply::Refused(Refusal::SessionOver(_))
    ));
    assert_eq!(state.apply_entry(9, &acquire(session(2, 1))), owned(session(2, 1), 2));
    let release = ClusterEntry::Release {
        vdi: VdiId(1),
        generation: Generation(2),
        to: Some(session(3, 1)),
        used: Some(4),
    };
    assert_eq!(state.apply_entry(10, &release), ClusterReply::Done);
    assert_eq!(
        state.apply_entry(11, &release),
        ClusterReply::Refused(Refusal::GenerationOver(Generation(2)))
    );
    assert_eq!(state.apply_entry(12, &acquire(session(2, 1))), owned(session(3, 1), 3));
}

#[test]
fn ids_are_never_used_twice_and_deleted_ones_are_known() {
    let mut state = founded(1, 1);
    let create =
        ClusterEntry::CreateVdi { name: "a".parse().expect("name"), size: 512, copies: None, now_ms: 0 };
    state.apply_entry(2, &create);
    state.apply_entry(3, &ClusterEntry::DeleteVdi { vdi: VdiId(1) });
    assert!(state.is_deleted(VdiId(1)) && !state.is_deleted(VdiId(2)));
    assert_eq!(state.apply_entry(4, &create), ClusterReply::Created(VdiId(2)));
}

#[test]
fn a_node_goes_only_when_nothing_depends_on_it() {
    let mut state = founded(4, 3);
    let remove = |n| ClusterEntry::Remove { node: NodeId(n) };
    assert!(matches!(state.apply_entry(2, &remove(4)), ClusterReply::Refused(Refusal::NodeInUse(_))));
    state.apply_entry(3, &ClusterEntry::Drain { node: NodeId(4), on: true });
    assert!(matches!(state.apply_entry(4, &remove(4)), ClusterReply::Refused(Refusal::LastCopies { .. })));
    for n in 1..=3 {
        admit_all(&mut state, 5, session(n, 1));
    }
    assert_eq!(state.slots().filter(|(_, _, c)| c.on_node(NodeId(4)).is_some()).count(), 0);
    // Those that took over may be dead already: it counts until they say that they know.
    assert!(matches!(state.apply_entry(6, &remove(4)), ClusterReply::Refused(Refusal::LastCopies { .. })));
    let sessions = (1..=3).map(|n| session(n, 1)).collect();
    state.apply_entry(6, &ClusterEntry::Known { sessions, index: 5 });
    assert_eq!(state.apply_entry(6, &remove(4)), ClusterReply::Done);
    assert_eq!(state.apply_entry(7, &remove(4)), ClusterReply::Done);
    assert!(matches!(
        state.apply_entry(8, &ClusterEntry::Join { node: spec(4, 2, 1), now_ms: 0 }),
        ClusterReply::Refused(Refusal::NodeRemoved(_))
    ));
    assert_eq!(redundant(&state), 256);
}

#[test]
fn a_state_survives_encoding() {
    let mut state = founded(3, 2);
    join(&mut state, 2, spec(2, 2, u128::MAX));
    let name: VdiName = "a".parse().expect("name");
    state.apply_entry(3, &ClusterEntry::CreateVdi { name, size: 512, copies: None, now_ms: 0 });
    let bytes = state.to_bytes();
    let back = ClusterState::from_bytes(&bytes).expect("decodes");
    assert_eq!(back.to_bytes(), bytes);
    assert!(ClusterState::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    assert!(ClusterState::from_bytes(&[]).is_err());
    assert!(ClusterState::from_bytes(&[99, 0]).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Evict(u64),
    Restart(u64, bool),
    Leave(u64),
    Out(u64),
    Drain(u64, bool),
    Remove(u64),
    Ready(u64),
    FailDisk(u64),
    AdmitAll(u64),
    Acquire(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 1..=6u64;
    prop_oneof![
        node.clone().prop_map(Step::Evict),
        (node.clone(), any::<bool>()).prop_map(|(n, b)| Step::Restart(n, b)),
        (node.clone(), any::<bool>()).prop_map(|(n, b)| Step::Restart(n, b)),
        node.clone().prop_map(Step::Leave),
        node.clone().prop_map(Step::Out),
        (node.clone(), any::<bool>()).prop_map(|(n, b)| Step::Drain(n, b)),
        node.clone().prop_map(Step::Remove),
        node.clone().prop_map(Step::Ready),
        node.clone().prop_map(Step::Ready),
        node.clone().prop_map(Step::FailDisk),
        node.clone().prop_map(Step::AdmitAll),
        node.prop_map(Step::Acquire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, the invariants hold, and no slot forgets the last set that was in sync: the nodes
    /// in it only change to ones that were caught up, never to nobody.
    #[test]
    fn invariants_hold_under_any_history(steps in prop::collection::vec(step(), 1..60)) {
        let mut state = founded(5, 3);
        let mut starts = [1u64; 7];
        let mut boots = [1u128; 7];
        let name: VdiName = "a".parse().expect("name");
        state.apply_entry(2, &ClusterEntry::CreateVdi { name, size: 512, copies: None, now_ms: 0 });
        for (i, step) in steps.into_iter().enumerate() {
            let index = i as u64 + 3;
            let at = |n: u64| session(n, starts[n as usize]);
            match step {
                Step::Evict(n) => {
                    state.apply_entry(index, &ClusterEntry::Evict { sessions: vec![at(n)], now_ms: 0 });
                }
                Step::Restart(n, lost_memory) => {
                    starts[n as usize] += 1;
                    boots[n as usize] += u128::from(lost_memory);
                    let node = spec(n, starts[n as usize], boots[n as usize]);
                    state.apply_entry(index, &ClusterEntry::Join { node, now_ms: 0 });
                }
                Step::Ready(n) => {
                    state.apply_entry(index, &ClusterEntry::Ready { session: at(n) });
                }
                Step::Leave(n) => {
                    state.apply_entry(index, &ClusterEntry::Leave { session: at(n), now_ms: 0 });
                }
                Step::Out(n) => {
                    state.apply_entry(index, &ClusterEntry::Out { node: NodeId(n) });
                }
                Step::Drain(n, on) => {
                    state.apply_entry(index, &ClusterEntry::Drain { node: NodeId(n), on });
                }
                Step::Remove(n) => {
                    state.apply_entry(index, &ClusterEntry::Remove { node: NodeId(n) });
                }
                Step::FailDisk(n) => {
                    let reason = "EIO".to_owned();
                    state.apply_entry(index, &ClusterEntry::FailDisk { session: at(n), reason });
                }
                Step::AdmitAll(n) => {
                    admit_all(&mut state, index, at(n));
                }
                Step::Acquire(n) => {
                    state.apply_entry(index, &ClusterEntry::Acquire { vdi: VdiId(1), session: at(n) });
                }
            }
            if let Err(problem) = state.validate() {
                return Err(TestCaseError::fail(problem));
            }
            for (_, slot, config) in state.slots() {
                let known = config.members.iter().any(|m| m.state != MemberState::CatchingUp);
                prop_assert!(known, "slot {} has forgotten who was in sync: {:?}", slot, config);
            }
        }
        let back = ClusterState::from_bytes(&state.to_bytes()).expect("decodes");
        prop_assert_eq!(back.to_bytes(), state.to_bytes());
    }
}

#[test]
fn who_comes_back_as_a_gateway_has_no_copies() {
    let mut state = founded(1, 1);
    let evict = ClusterEntry::Evict { sessions: vec![session(1, 1)], now_ms: 0 };
    state.apply_entry(2, &evict);
    let gateway = NodeSpec { gateway: true, ..spec(1, 2, 1) };
    assert_eq!(state.apply_entry(3, &ClusterEntry::Join { node: gateway, now_ms: 0 }), ClusterReply::Done);
    state.validate().expect("valid");
    assert!(state.slots().all(|(_, _, config)| state.waits(config)), "its disk is not served");
    let again = spec(1, 3, 1);
    join(&mut state, 4, again);
    state.validate().expect("valid");
    assert_eq!(redundant(&state), 256, "it is there again, with its memory");
}

#[test]
fn a_node_too_heavy_for_the_ring_is_refused_and_one_that_is_away_keeps_its_place() {
    let heavy = |node, start, vnodes| NodeSpec { vnodes, ..spec(node, start, 1) };
    let join = |state: &mut ClusterState, node: NodeSpec| {
        state.apply_entry(5, &ClusterEntry::Join { node, now_ms: 0 })
    };
    let refused = |reply| matches!(reply, ClusterReply::Refused(Refusal::TooManyVnodes { .. }));
    let mut state = founded(1, 1);
    assert!(refused(join(&mut state, heavy(2, 1, 0))) && refused(join(&mut state, heavy(2, 1, 65_537))));
    for node in 2..=12 {
        assert_eq!(join(&mut state, heavy(node, 1, 65_536)), ClusterReply::Done);
    }
    // 65,408 are left.
    assert!(refused(join(&mut state, heavy(13, 1, 65_409))));
    state.apply_entry(6, &ClusterEntry::Evict { sessions: vec![session(2, 1)], now_ms: 0 });
    state.apply_entry(7, &ClusterEntry::Out { node: NodeId(2) });
    assert!(refused(join(&mut state, heavy(13, 1, 65_536))), "one that is away may come back");
    assert_eq!(join(&mut state, heavy(2, 2, 65_536)), ClusterReply::Done);
    assert_eq!(join(&mut state, heavy(13, 1, 65_408)), ClusterReply::Done);
    let gateway = NodeSpec { gateway: true, ..heavy(14, 1, 1) };
    assert_eq!(join(&mut state, gateway), ClusterReply::Done, "gateways are not on the ring");
    let mut unfounded = ClusterState::default();
    let nodes = (1..=13).map(|node| heavy(node, 1, 65_536)).collect();
    let format =
        ClusterEntry::Format { cluster: ClusterId(1), copies: copies(1), slots: 256, nodes, now_ms: 0 };
    assert!(refused(unfounded.apply_entry(1, &format)) && unfounded.format().is_none());
}
