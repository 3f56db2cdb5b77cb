//! One object's operations run one after another, in the order in which they came.
//!
//! An owner numbers an object's writes and sends them in that order; a lane keeps the order until they are
//! applied. What only touches the page cache runs at once on the caller's thread, everything else on the
//! blocking pool, and then so does what has queued behind it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::store::ObjectKey;

/// Locks over the table of busy objects; a power of two, several times the number of threads.
const SHARDS: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// The lanes of all objects. A key is present exactly while one of its jobs runs.
pub(crate) struct Lanes {
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<ObjectKey, VecDeque<Job>>>>,
}

impl Lanes {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() })
    }

    fn shard(&self, key: &ObjectKey) -> &Mutex<HashMap<ObjectKey, VecDeque<Job>>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Queues `job` behind the object's others. With `quick`, and nothing before it, it runs on this thread.
    pub(crate) fn submit(self: &Arc<Self>, key: ObjectKey, quick: bool, job: impl FnOnce() + Send + 'static) {
        {
            let mut shard = self.shard(&key).lock();
            if let Some(queue) = shard.get_mut(&key) {
                queue.push_back(Box::new(job));
                return;
            }
            shard.insert(key, VecDeque::new());
        }
        if quick {
            job();
            if let Some(next) = self.next(&key) {
                self.run_rest(key, next);
            }
        } else {
            self.run_rest(key, Box::new(job));
        }
    }

    /// The next job of a lane, or the lane's end.
    fn next(&self, key: &ObjectKey) -> Option<Job> {
        let mut shard = self.shard(key).lock();
        let job = shard.get_mut(key)?.pop_front();
        if job.is_none() {
            shard.remove(key);
        }
        job
    }

    fn run_rest(self: &Arc<Self>, key: ObjectKey, first: Job) {
        let lanes = self.clone();
        crate::machine::blocking(move || {
            let mut job = Some(first);
            while let Some(run) = job {
                run();
                job = lanes.next(&key);
            }
        });
    }
}
