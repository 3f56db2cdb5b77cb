//! Each kind of call to the disk fails in turn.

use super::super::Verb;
use super::*;

const ENOSPC: i32 = 28;

/// Whole blocks only, so that it can be repeated whatever a failure left.
fn script(store: &LocalStore) -> Result<(), Error> {
    for index in 0..2 {
        store.create(&key(index), 8192)?;
        store.write(&key(index), &data(1, 0, block(1)))?;
        store.write(&key(index), &zero(2, 4096, 4096, true))?;
        store.read(&key(index), 0, 8192)?;
    }
    store.flush_all()?;
    store.seal(VdiId(1), Generation(1))?;
    store.list_vdi(VdiId(1))?;
    store.create(&key(5), 4096)?;
    store.remove(&key(5))?;
    Ok(())
}

#[test]
fn a_failure_is_reported_and_one_that_is_no_sync_leaves_the_store_working() {
    for verb in Verb::ALL {
        for os_error in [5, ENOSPC] {
            let mut failures = 0;
            for nth in 1..100 {
                let fs = SimFs::new();
                let store = open(&fs);
                fs.fail(verb, nth, os_error);
                let Err(error) = script(&store) else { break };
                failures += 1;
                match verb {
                    Verb::SyncData | Verb::SyncDir => {
                        let poisoned =
                            matches!(error, Error::Poisoned(_) | Error::Io { .. } | Error::NoSpace { .. });
                        assert!(poisoned, "{verb:?} {nth}: {error}");
                        let again = store.flush_all().expect_err("never again");
                        assert!(matches!(again, Error::Poisoned(_)), "{verb:?} {nth}: {again}");
                        assert!(matches!(store.read(&key(0), 0, 4096), Err(Error::Poisoned(_))));
                    }
                    _ => {
                        let full = matches!(error, Error::NoSpace { .. });
                        assert_eq!(full, os_error == ENOSPC, "{verb:?} {nth}: {error}");
                        script(&store).unwrap_or_else(|e| panic!("{verb:?} {nth}, repeated: {e}"));
                        assert_eq!(read_all(&store, &key(0)).expect("read")[..4096], block(1));
                    }
                }
                drop(store);
                fs.power_cut(nth);
                settle(&open(&fs));
            }
            assert!(failures > 0, "{verb:?} was never called");
        }
    }
}

#[test]
fn a_failure_while_opening_is_reported_and_the_next_start_goes_on() {
    for verb in Verb::ALL {
        for nth in 1..100 {
            let fs = SimFs::new();
            let store = open(&fs);
            script(&store).expect("runs");
            drop(store);
            fs.process_kill();
            fs.fail(verb, nth, 5);
            if try_open(&fs).is_ok() {
                break;
            }
            fs.process_kill();
            let store = open(&fs);
            assert_eq!(store.intent_damage(), None, "{verb:?} {nth}");
            assert_eq!(store.suspects().len(), 2);
            assert_eq!(read_all(&store, &key(0)).expect("read")[..4096], block(1));
            assert_eq!(store.sealed(VdiId(1)), Generation(1));
        }
    }
}

#[test]
fn a_write_that_failed_half_way_is_damage_until_it_is_repeated() {
    let fs = SimFs::new();
    let store = open(&fs);
    store.create(&key(0), 8192).expect("created");
    store.write(&key(0), &data(1, 0, block(1))).expect("written");
    // Data is written, the table is not.
    fs.fail(Verb::Write, 2, 5);
    assert!(matches!(store.write(&key(0), &data(2, 0, block(2))), Err(Error::Io { .. })));
    assert!(matches!(store.read(&key(0), 0, 4096), Err(Error::Damaged { .. })));
    assert_eq!(store.version(&key(0)).expect("whole"), version(1));
    store.write(&key(0), &data(2, 0, block(2))).expect("written");
    assert_eq!(read_all(&store, &key(0)).expect("read")[..4096], block(2));
}
