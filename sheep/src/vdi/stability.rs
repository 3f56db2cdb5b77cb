//! Which of an owner's writes are done and answered: the mark below which replicas may forget. Pure.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::clients::Outcome;
use super::owner::IoFailure;

/// Numbers writes and knows the lowest that may still be sent again.
#[derive(Debug)]
pub(crate) struct Stability {
    open: Mutex<(u64, BTreeSet<u64>)>,
}

impl Stability {
    pub(crate) fn new() -> Self {
        Self { open: Mutex::new((1, BTreeSet::new())) }
    }

    /// A new write's number, and the mark to send with it.
    pub(crate) fn begin(&self) -> (u64, u64) {
        let mut open = self.open.lock();
        let number = open.0;
        open.0 += 1;
        open.1.insert(number);
        (number, mark(&open))
    }

    /// Everything below it will never be sent again.
    pub(crate) fn mark(&self) -> u64 {
        mark(&self.open.lock())
    }

    /// A client request has come to this end, and these are the numbers of its writes. One that this owner can no
    /// longer do comes again, to the next one, which has to find what was done of it: the mark stays below it, for
    /// others of this owner's writes may be on their way to copies that do not know of the next one yet.
    pub(crate) fn ended(&self, numbers: Vec<u64>, outcome: Outcome) {
        if outcome != Err(IoFailure::NotOwner) {
            numbers.into_iter().for_each(|number| self.end(number));
        }
    }

    /// A write will never be sent again.
    pub(crate) fn end(&self, number: u64) {
        self.open.lock().1.remove(&number);
    }
}

fn mark((next, open): &(u64, BTreeSet<u64>)) -> u64 {
    open.first().copied().unwrap_or(*next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_the_oldest_open_write() {
        let stability = Stability::new();
        assert_eq!(stability.begin(), (1, 1));
        assert_eq!(stability.begin(), (2, 1));
        stability.end(1);
        assert_eq!((stability.mark(), stability.begin()), (2, (3, 2)));
        stability.end(3);
        stability.end(2);
        assert_eq!(stability.mark(), 4);
        assert_eq!(stability.begin(), (4, 4));
    }

    #[test]
    fn what_a_request_wrote_stays_known_if_it_comes_again() {
        let stability = Stability::new();
        let numbers: Vec<u64> = (0..4).map(|_| stability.begin().0).collect();
        stability.ended(vec![numbers[0]], Ok(()));
        assert_eq!(stability.begin().1, numbers[1]);
        // The client has been told that it failed.
        stability.ended(vec![numbers[1]], Err(IoFailure::NoSpace));
        assert_eq!(stability.begin().1, numbers[2]);
        stability.ended(vec![numbers[2], numbers[3]], Err(IoFailure::NotOwner));
        assert_eq!(stability.begin().1, numbers[2], "another owner will be asked to do it");
    }
}
