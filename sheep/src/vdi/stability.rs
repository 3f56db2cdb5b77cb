//! Which of an owner's writes are done and answered: the mark below which replicas may forget. Pure.

use std::collections::BTreeSet;

use parking_lot::Mutex;

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
}
