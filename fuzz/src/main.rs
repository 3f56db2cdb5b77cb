//! Runs one of sheep's fuzz targets, the one that `TARGET` names, under libFuzzer.
//!
//! The targets are in sheep (`sheep/src/fuzz/mod.rs` has their table); here is what only fuzzing needs: the entry,
//! and an allocator that ends the run when a target asks for more at once than it may.

#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use sheep::fuzz::{TARGETS, Target};

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").unwrap_or_default();
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("TARGET={name:?} is none of {names:?}")
    })
});

/// The most that one allocation may ask for; what libFuzzer does beside the target is no concern of ours.
static ALLOCATION_MAX: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, with a limit.
struct Limited;

impl Limited {
    fn check(len: usize) {
        let max = ALLOCATION_MAX.load(Ordering::Relaxed);
        // What tells of a panic may take what it needs.
        if len > max && !std::thread::panicking() {
            ALLOCATION_MAX.store(usize::MAX, Ordering::Relaxed);
            // Unwinding out of an allocator is not allowed; libFuzzer keeps the input of an abort as well.
            eprintln!("{len} bytes are asked for at once, at most {max} are allowed");
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
            std::process::abort();
        }
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        Self::check(len);
        // SAFETY: the caller keeps the same contract.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from here with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    let target = *CHOSEN;
    ALLOCATION_MAX.store(target.allocation_max, Ordering::Relaxed);
    (target.run)(data);
    ALLOCATION_MAX.store(usize::MAX, Ordering::Relaxed);
});
