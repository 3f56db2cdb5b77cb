//! Which members have answered a request, and under which configuration of the slot. Pure.
//!
//! Who answers knows the configuration it answers under (`replica/mod.rs` `check`). An answer under an earlier one
//! says nothing of what its giver remembers if it dies before it hears who was taken out, so it does not count under
//! the present one, and the member is asked again (decision 0014).

use wire::id::Session;

use crate::cluster::slots::SlotConfig;
use crate::mutant::{Mutant, planted};

/// The answers to one request.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    given: Vec<(Session, u64)>,
}

impl Answers {
    /// A member has answered under a version of the configuration.
    pub(crate) fn note(&mut self, session: Session, version: u64) {
        self.given.retain(|(s, _)| *s != session);
        self.given.push((session, version));
    }

    /// Whether a member's answer counts under a version.
    pub(crate) fn counts(&self, session: Session, version: u64) -> bool {
        self.given.iter().any(|(s, v)| *s == session && *v >= version)
    }

    /// Whether all members have answered under the configuration.
    pub(crate) fn all_of(&self, config: &SlotConfig) -> bool {
        if planted(Mutant::AckAtOne) && !self.given.is_empty() {
            return true;
        }
        config.members.iter().all(|m| self.counts(m.session, config.version))
    }

    /// Who has answered, under whichever configuration.
    pub(super) fn sessions(self) -> Vec<Session> {
        self.given.into_iter().map(|(session, _)| session).collect()
    }
}

#[cfg(test)]
mod tests {
    use wire::id::NodeId;

    use super::*;
    use crate::cluster::slots::Live;

    fn session(node: u64) -> Session {
        Session { node: NodeId(node), start: 1 }
    }

    fn config(version: u64, nodes: &[u64]) -> SlotConfig {
        SlotConfig::new(version, nodes.iter().map(|n| Live { session: session(*n), boot: 1, reached: &[] }))
    }

    #[test]
    fn an_answer_under_an_earlier_configuration_does_not_count() {
        let mut answers = Answers::default();
        answers.note(session(1), 4);
        assert!(!answers.all_of(&config(4, &[1, 2])));
        // 2 is taken out: 1 has to say it again, knowing that.
        assert!(!answers.all_of(&config(5, &[1])));
        assert!(answers.counts(session(1), 4) && !answers.counts(session(1), 5));
        answers.note(session(1), 5);
        assert!(answers.all_of(&config(5, &[1])));
        assert_eq!(answers.sessions(), [session(1)]);
    }

    #[test]
    fn who_is_no_member_is_not_needed() {
        let mut answers = Answers::default();
        answers.note(session(1), 4);
        answers.note(session(3), 4);
        assert!(!answers.all_of(&config(4, &[1, 2])));
        answers.note(session(2), 4);
        assert!(answers.all_of(&config(4, &[1, 2])));
    }
}
