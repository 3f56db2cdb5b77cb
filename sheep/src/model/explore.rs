//! Visits every state that a model can reach, the nearest first, and finds the shortest way to a wrong one.
//!
//! A state that was seen is known by 64 bits of a hash. With *n* states the chance that two of them are taken for one is
//! about n² / 2⁶⁵: one in ten thousand for fifty million.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use twox_hash::XxHash64;

/// What can be explored.
pub(super) trait Model {
    /// Where it is.
    type State: Clone + Hash;
    /// What leads on.
    type Step: Copy;

    /// Where it begins.
    fn initial(&mut self) -> Self::State;
    /// Every step that can be taken, and where it leads.
    fn next(&mut self, state: &Self::State, into: &mut Vec<(Self::Step, Self::State)>);
    /// What is wrong with a state, if anything is.
    fn wrong(&mut self, state: &Self::State) -> Option<String>;
    /// Whether a step is one that nothing may rely on.
    fn is_fault(&self, step: Self::Step) -> bool;
    /// Whether all is well and everything asked for is done.
    fn is_goal(&mut self, state: &Self::State) -> bool;
}

/// Steps, and the states that they lead to.
pub(super) type Way<M> = Vec<(<M as Model>::Step, <M as Model>::State)>;

/// What was found.
pub(super) struct Explored<M: Model> {
    /// How many states there are, or were seen before the first wrong one.
    pub(super) states: usize,
    /// How many steps were tried.
    pub(super) steps: usize,
    /// The greatest number of steps that the nearest way to a state takes.
    pub(super) depth: usize,
    /// The first wrong state: what is wrong, and the way there.
    pub(super) wrong: Option<(String, Way<M>)>,
}

/// How far to go.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Whether every state must have a way to a goal without a fault. Costs 8 bytes for each step.
    pub(super) progress: bool,
    /// More states than this are a mistake of whoever asked.
    pub(super) states: usize,
}

struct Explorer<'a, M: Model> {
    model: &'a mut M,
    seen: HashMap<u64, u32, BuildHasherDefault<XxHash64>>,
    hashes: Vec<u64>,
    parents: Vec<u32>,
}

fn hash(state: &impl Hash) -> u64 {
    let mut hasher = XxHash64::default();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Visits everything, until something is wrong.
pub(super) fn explore<M: Model>(model: &mut M, bounds: Bounds) -> Explored<M> {
    let initial = model.initial();
    let first = hash(&initial);
    let seen = HashMap::from_iter([(first, 0)]);
    let mut explorer = Explorer { model, seen, hashes: vec![first], parents: vec![0] };
    let (mut frontier, mut depth, mut steps) = (vec![(0, initial)], 0, 0);
    let (mut edges, mut goals) = (Vec::new(), Vec::new());
    let mut next = Vec::new();
    loop {
        let mut reached = Vec::new();
        for (from, state) in frontier {
            if let Some(what) = explorer.model.wrong(&state) {
                let states = explorer.hashes.len();
                let wrong = Some((what, explorer.way_to(from)));
                return Explored { states, steps, depth, wrong };
            }
            if bounds.progress && explorer.model.is_goal(&state) {
                goals.push(from);
            }
            explorer.model.next(&state, &mut next);
            steps += next.len();
            for (step, to_state) in next.drain(..) {
                let (to, is_new) = explorer.number(hash(&to_state), from);
                if bounds.progress && !explorer.model.is_fault(step) {
                    edges.push((to, from));
                }
                if is_new {
                    reached.push((to, to_state));
                }
            }
        }
        assert!(explorer.hashes.len() <= bounds.states, "more than {} states", bounds.states);
        if reached.is_empty() {
            break;
        }
        frontier = reached;
        depth += 1;
    }
    let states = explorer.hashes.len();
    let stuck = bounds.progress.then(|| without_a_way(states, edges, goals)).flatten();
    let wrong = stuck
        .map(|at| ("without a fault nothing leads to the end from here".to_owned(), explorer.way_to(at)));
    Explored { states, steps, depth, wrong }
}

/// The first state from which no goal can be reached. `edges` are (to, from).
fn without_a_way(states: usize, mut edges: Vec<(u32, u32)>, mut goals: Vec<u32>) -> Option<u32> {
    edges.sort_unstable();
    let mut has_way = vec![false; states];
    while let Some(at) = goals.pop() {
        if !std::mem::replace(&mut has_way[at as usize], true) {
            let first = edges.partition_point(|(to, _)| *to < at);
            goals.extend(edges[first..].iter().take_while(|(to, _)| *to == at).map(|(_, from)| *from));
        }
    }
    has_way.iter().position(|has| !has).map(|at| at as u32)
}

impl<M: Model> Explorer<'_, M> {
    /// A state's number, and whether it was not known before.
    fn number(&mut self, hash: u64, parent: u32) -> (u32, bool) {
        let number = self.hashes.len() as u32;
        match self.seen.entry(hash) {
            Entry::Occupied(known) => (*known.get(), false),
            Entry::Vacant(place) => {
                place.insert(number);
                self.hashes.push(hash);
                self.parents.push(parent);
                (number, true)
            }
        }
    }

    /// The steps that led to a state, each with the state after it.
    fn way_to(&mut self, at: u32) -> Vec<(M::Step, M::State)> {
        let mut numbers = vec![at];
        while let Some(&last) = numbers.last().filter(|n| **n != 0) {
            numbers.push(self.parents[last as usize]);
        }
        let mut state = self.model.initial();
        let mut way = Vec::new();
        for number in numbers.into_iter().rev().skip(1) {
            let wanted = self.hashes[number as usize];
            let mut next = Vec::new();
            self.model.next(&state, &mut next);
            let found = next.into_iter().find(|(_, state)| hash(state) == wanted);
            let (step, after) = found.expect("a state that was reached is reached again");
            state = after.clone();
            way.push((step, after));
        }
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two numbers that are counted up in any order, to a limit; the second may be lost.
    struct Counters {
        wrong: (u8, u8),
        goal: (u8, u8),
    }

    impl Model for Counters {
        type State = (u8, u8);
        type Step = char;

        fn initial(&mut self) -> Self::State {
            (0, 0)
        }

        fn next(&mut self, &(a, b): &Self::State, into: &mut Vec<(char, Self::State)>) {
            into.extend((a < 3).then_some(('a', (a + 1, b))));
            into.extend((b < 3).then_some(('b', (a, b + 1))));
            into.extend((b > 0).then_some(('!', (a, 0))));
        }

        fn wrong(&mut self, state: &Self::State) -> Option<String> {
            (*state == self.wrong).then(|| format!("{state:?}"))
        }

        fn is_fault(&self, step: char) -> bool {
            step == '!'
        }

        fn is_goal(&mut self, state: &Self::State) -> bool {
            *state == self.goal
        }
    }

    const ALL: Bounds = Bounds { progress: true, states: 16 };

    #[test]
    fn everything_is_visited_once() {
        let explored = explore(&mut Counters { wrong: (9, 9), goal: (3, 3) }, ALL);
        assert_eq!((explored.states, explored.steps, explored.depth), (16, 12 + 12 + 12, 6));
        assert!(explored.wrong.is_none());
    }

    #[test]
    fn the_shortest_way_to_what_is_wrong_is_found() {
        let (what, way) =
            explore(&mut Counters { wrong: (1, 2), goal: (3, 3) }, ALL).wrong.expect("reachable");
        assert_eq!((what.as_str(), way.len(), way[2].1), ("(1, 2)", 3, (1, 2)));
    }

    #[test]
    fn a_state_that_only_a_fault_leads_out_of_is_stuck() {
        let (_, way) = explore(&mut Counters { wrong: (9, 9), goal: (3, 0) }, ALL).wrong.expect("stuck");
        assert_eq!(way.last().map(|(_, state)| *state), Some((0, 1)));
    }
}
