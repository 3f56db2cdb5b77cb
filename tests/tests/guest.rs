//! The Linux kernel's own NBD client, in a guest that is booted for it, while a sheep is killed.

use std::thread;
use std::time::Duration;

use tests::cluster::Ring;
use tests::tool::run;

fn kernel_nbd(connections: &str) {
    let mut ring = Ring::alone(3);
    ring.create("disk", "128M");
    // The idle connection makes sheep 1 the owner; the guest is at sheep 0.
    let hold = ring.open(1, "disk");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/kernel-nbd");
    let port = ring[0].ports.nbd.to_string();
    let said = thread::scope(|scope| {
        let limit = Duration::from_secs(200);
        let guest = scope.spawn(move || run(limit, script, &[&port, "disk", connections, "12"]));
        // The guest's console is only seen at its end: its first write shows in what the VDI uses.
        tests::wait::until(Duration::from_secs(90), "the guest writes", || {
            let used = ring.dog_json(0, &["vdi", "info", "disk"])["used"].as_u64().unwrap_or(0);
            if used > 4 << 20 || guest.is_finished() { Ok(()) } else { Err(format!("{used} bytes used")) }
        });
        for victim in [1, 2] {
            ring[victim].kill();
            ring.wait_degraded();
            ring[victim].start();
            ring.wait_full();
        }
        guest.join()
    });
    drop(hold);
    let said = said.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).ok();
    println!("{}", said.stdout);
    assert!(said.stdout.contains("guest: OK"), "{said}");
    ring.wait_full();
    ring.assert_same_everywhere("disk");
}

#[test]
fn the_kernel_uses_one_connection() {
    kernel_nbd("1");
}

#[test]
fn the_kernel_uses_two_connections() {
    kernel_nbd("2");
}
