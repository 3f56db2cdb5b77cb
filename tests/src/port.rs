//! Free loopback ports, below the range from which the kernel takes the clients' own.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 20_000;
const BLOCK_LEN: u16 = 4;
const BLOCK_COUNT: u16 = 3_000;

/// Ports of one sheep.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The admin API; the mesh is on the next one.
    pub admin: u16,
    /// The NBD server.
    pub nbd: u16,
}

impl Ports {
    /// Those of a sheep that has a host for itself.
    pub const USUAL: Self = Self { admin: 7000, nbd: 10809 };
}

/// A block that nobody listens on now, and that this process does not hand out twice before all were.
pub fn allocate() -> Ports {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries of several users may run at once: each begins elsewhere.
    let start = (std::process::id() * 37 % u32::from(BLOCK_COUNT)) as u16;
    for _ in 0..BLOCK_COUNT {
        let block = (start + NEXT.fetch_add(1, Ordering::Relaxed) % BLOCK_COUNT) % BLOCK_COUNT;
        let base = FIRST + block * BLOCK_LEN;
        if (base..base + 3).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return Ports { admin: base, nbd: base + 2 };
        }
    }
    panic!("no free ports from {FIRST} on");
}
