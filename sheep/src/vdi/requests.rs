//! Client requests that this node's gateway has not answered yet, by VDI. Pure.
//!
//! An owner keeps what it knows of a request until the request cannot come again (rule 9). Only the
//! gateway knows when that is: below its lowest open number nothing comes again.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;
use wire::id::VdiId;

/// The open requests of a process.
#[derive(Debug)]
pub(crate) struct OpenRequests {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    next: u64,
    open: HashMap<VdiId, BTreeSet<u64>>,
}

/// A request that has not been answered; dropping it says that it is, or that nobody waits for it.
pub(crate) struct OpenRequest<'a> {
    requests: &'a OpenRequests,
    vdi: VdiId,
    /// Its number, unique in the process.
    pub(crate) number: u64,
}

impl OpenRequests {
    pub(crate) fn new() -> Self {
        Self { table: Mutex::new(Table { next: 1, open: HashMap::new() }) }
    }

    /// A client's request to a VDI begins.
    pub(crate) fn begin(&self, vdi: VdiId) -> OpenRequest<'_> {
        let mut table = self.table.lock();
        let number = table.next;
        table.next += 1;
        table.open.entry(vdi).or_default().insert(number);
        OpenRequest { requests: self, vdi, number }
    }

    /// Every request to the VDI below this number has been answered.
    pub(crate) fn answered_below(&self, vdi: VdiId) -> u64 {
        let table = self.table.lock();
        table.open.get(&vdi).and_then(|n| n.first().copied()).unwrap_or(table.next)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let mut table = self.requests.table.lock();
        if let Some(numbers) = table.open.get_mut(&self.vdi) {
            numbers.remove(&self.number);
            if numbers.is_empty() {
                table.open.remove(&self.vdi);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_ends_below_the_oldest_open_request_of_the_vdi() {
        let requests = OpenRequests::new();
        let (a, b) = (VdiId(1), VdiId(2));
        let first = requests.begin(a);
        let second = requests.begin(a);
        let other = requests.begin(b);
        assert_eq!(requests.answered_below(a), first.number);
        assert_eq!(requests.answered_below(b), other.number);
        drop(first);
        assert_eq!(requests.answered_below(a), second.number);
        let third = requests.begin(a);
        drop(second);
        assert_eq!(requests.answered_below(a), third.number);
        drop(third);
        assert_eq!(requests.answered_below(a), requests.begin(a).number);
    }
}
