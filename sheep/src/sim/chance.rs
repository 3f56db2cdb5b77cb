//! Chance that is not asked for by name: hash maps and tokio's choices take theirs from the system.
//!
//! The standard library asks `getrandom` of the C library. This one answers from a seed on a thread that a
//! simulation runs on, and from the system elsewhere. Counters that libraries keep per process take part
//! too, so only the first simulation of a process is repeated exactly: [`super::seeds`] runs one per process.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// From here on this thread's chance comes from `seed`. To be called before anything else on the thread.
pub(super) fn begin(seed: u64) {
    STATE.set(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
}

fn next() -> Option<u8> {
    let state = STATE.get();
    if state == 0 {
        return None;
    }
    let next = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    STATE.set(next | 1);
    Some((next >> 40) as u8)
}

/// Stands in for the C library's.
#[allow(unsafe_code, reason = "the C library's interface")]
#[unsafe(no_mangle)]
pub(super) extern "C" fn getrandom(out: *mut u8, len: usize, _flags: u32) -> isize {
    // Safety: the caller gives `len` bytes to fill, as to the C library's own.
    let out = unsafe { std::slice::from_raw_parts_mut(out, len) };
    if STATE.get() == 0 {
        let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(out));
        return if read.is_ok() { len as isize } else { -1 };
    }
    out.iter_mut().for_each(|byte| *byte = next().unwrap_or_default());
    len as isize
}
