//! How far each member has come with the writes of one object, as its owner knows from their answers.
//!
//! Called by [`super::object`]. A write that is refused because its predecessor is missing is sent again as soon as the
//! predecessor has been answered: writes that were refused all at once, at a change of the slot's configuration, go
//! out in any order then, and each would be refused again and again otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use wire::id::{Session, Version};

/// Members that are remembered; more have come and gone than a slot has.
const MEMBERS_MAX: usize = 16;

/// Who has confirmed which version of an object.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    versions: Vec<(Session, Version)>,
    /// Writes that have not come to their end.
    open: BTreeSet<Version>,
}

/// A write that has not come to its end; it has when this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    confirmed: Arc<Confirmed>,
    version: Version,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.confirmed.known.lock().open.remove(&self.version);
        self.confirmed.changed.notify_waiters();
    }
}

impl Confirmed {
    /// A write begins.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> Open {
        self.known.lock().open.insert(version);
        Open { confirmed: self.clone(), version }
    }

    /// A member has answered that it has `version`.
    pub(crate) fn note(&self, session: Session, version: Version) {
        {
            let versions = &mut self.known.lock().versions;
            match versions.iter_mut().find(|(s, _)| *s == session) {
                Some((_, known)) => *known = version.max(*known),
                None => {
                    if versions.len() == MEMBERS_MAX {
                        versions.remove(0);
                    }
                    versions.push((session, version));
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether a write has not come to its end, and a member has not confirmed it.
    pub(crate) fn is_on_its_way(&self, to: Session, version: Version) -> bool {
        let known = self.known.lock();
        known.open.contains(&version) && !known.versions.iter().any(|(s, v)| *s == to && *v >= version)
    }

    /// Waits until a member has confirmed a write, or the write has come to its end. Cancel-safe.
    pub(crate) async fn until(&self, to: Session, version: Version) {
        loop {
            // Made first: it hears of what happens from here on.
            let changed = self.changed.notified();
            if !self.is_on_its_way(to, version) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::id::{Generation, NodeId};

    use super::*;

    fn version(seq: u64) -> Version {
        Version { generation: Generation(2), seq }
    }

    fn session(node: u64) -> Session {
        Session { node: NodeId(node), start: 1 }
    }

    #[test]
    fn a_write_is_on_its_way_to_a_member_until_that_has_it_or_the_write_has_ended() {
        let confirmed = Arc::new(Confirmed::default());
        assert!(!confirmed.is_on_its_way(session(1), version(4)), "it was there when the object was opened");
        let open = confirmed.begin(version(5));
        confirmed.note(session(1), version(6));
        confirmed.note(session(1), version(4));
        assert!(!confirmed.is_on_its_way(session(1), version(5)));
        assert!(confirmed.is_on_its_way(session(2), version(5)));
        drop(open);
        assert!(!confirmed.is_on_its_way(session(2), version(5)));
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_the_predecessor_is_answered_and_not_before() {
        let confirmed = Arc::new(Confirmed::default());
        let open = [confirmed.begin(version(1)), confirmed.begin(version(2))];
        let mut wait = std::pin::pin!(confirmed.until(session(1), version(2)));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        confirmed.note(session(2), version(2));
        confirmed.note(session(1), version(1));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        confirmed.note(session(1), version(2));
        assert!(futures::poll!(wait.as_mut()).is_ready());
        drop(open);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_write_that_has_ended() {
        let confirmed = Arc::new(Confirmed::default());
        let open = confirmed.begin(version(1));
        let mut wait = std::pin::pin!(confirmed.until(session(1), version(1)));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        drop(open);
        assert!(futures::poll!(wait.as_mut()).is_ready());
    }

    #[test]
    fn members_that_came_and_went_are_forgotten() {
        let confirmed = Arc::new(Confirmed::default());
        (0..100).for_each(|node| confirmed.note(session(node), version(1)));
        assert_eq!(confirmed.known.lock().versions.len(), MEMBERS_MAX);
        let _open = confirmed.begin(version(1));
        assert!(!confirmed.is_on_its_way(session(99), version(1)));
    }
}
