//! Answers that are lost: dog asks again at another sheep, and the ring does what was asked for once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tests::cluster::Ring;
use tests::tool::{self, Output};
use tests::wait;

/// Stands before a sheep's admin port. From the first request that names `word` on, it takes the request there
/// and no answer back; once `done` holds it breaks off, which the flag tells.
fn losing_answers(
    port: u16,
    word: &'static str,
    done: impl Fn() -> bool + Send + Sync + 'static,
) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let own = listener.local_addr().expect("address").port();
    let (done, lost) = (Arc::new(done), Arc::new(AtomicBool::new(false)));
    let told = lost.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let sheep = TcpStream::connect(("127.0.0.1", port)).expect("the sheep takes connections");
            let mute = Arc::new(AtomicBool::new(false));
            let (mut back, mut from) = (client.try_clone().expect("dup"), sheep.try_clone().expect("dup"));
            let silent = mute.clone();
            thread::spawn(move || {
                let mut bytes = vec![0; 65536];
                while let Ok(len @ 1..) = from.read(&mut bytes) {
                    if !silent.load(Ordering::SeqCst) && back.write_all(&bytes[..len]).is_err() {
                        break;
                    }
                }
            });
            let (done, lost) = (done.clone(), lost.clone());
            thread::spawn(move || {
                if forward(client, sheep, word, &mute, &*done) {
                    lost.store(true, Ordering::SeqCst);
                }
            });
        }
    });
    (own, told)
}

/// Returns whether it broke off after what was asked for was done.
fn forward(
    mut client: TcpStream,
    mut sheep: TcpStream,
    word: &str,
    mute: &AtomicBool,
    done: &dyn Fn() -> bool,
) -> bool {
    let mut bytes = vec![0; 65536];
    let mut lost = false;
    while let Ok(len @ 1..) = client.read(&mut bytes) {
        let named = bytes[..len].windows(word.len()).any(|part| part == word.as_bytes());
        mute.fetch_or(named, Ordering::SeqCst);
        if sheep.write_all(&bytes[..len]).is_err() {
            break;
        }
        if named {
            lost = wait::within(Duration::from_secs(20), || if done() { Ok(()) } else { Err(()) }).is_ok();
            break;
        }
    }
    // Either may be gone already.
    let _ = client.shutdown(Shutdown::Both);
    let _ = sheep.shutdown(Shutdown::Both);
    lost
}

/// dog at a sheep whose answer is lost once what was asked for is done.
fn dog_unheard(ring: &Ring, args: &[&str], word: &'static str, listed: bool) -> Output {
    let other = ring[1].ports.admin.to_string();
    let dog = tool::binary("dog").display().to_string();
    let program = dog.clone();
    let done = move || {
        let list = tool::run(Duration::from_secs(20), &program, &["-p", &other, "vdi", "list"]).ok();
        list.stdout.contains(word) == listed
    };
    let (port, lost) = losing_answers(ring[0].ports.admin, word, done);
    let port = port.to_string();
    let output = tool::run(Duration::from_secs(60), &dog, &[&["-p", &port], args].concat());
    wait::until(Duration::from_secs(5), "it was done and the answer was lost", || {
        if lost.load(Ordering::SeqCst) { Ok(()) } else { Err(&output) }
    });
    output
}

#[test]
fn a_vdi_is_created_and_deleted_once_although_the_answer_is_lost() {
    let ring = Ring::formatted(3);
    let created = dog_unheard(&ring, &["vdi", "create", "unheard", "64M"], "unheard", true).ok();
    assert!(created.stdout.contains("unheard created"), "{created}");
    for index in 0..3 {
        ring.open(index, "unheard").write(0, &[1; 512]).expect("written");
        // Who asks a second time is another.
        let second = ring.dog(index, &["vdi", "create", "unheard", "64M"]).exits(1);
        assert!(second.stderr.contains("exists"), "{second}");
    }
    assert_eq!(ring.dog_json(2, &["vdi", "list"]).as_array().map(Vec::len), Some(1));

    let deleted = dog_unheard(&ring, &["vdi", "delete", "unheard"], "unheard", false).ok();
    assert!(deleted.stdout.contains("deleted"), "{deleted}");
    assert_eq!(ring.dog_json(2, &["vdi", "list"]).as_array().map(Vec::len), Some(0));
    ring.dog(0, &["vdi", "delete", "unheard"]).exits(1);
}
