//! The real `dog` against a sheep of canned replies: what it asks, what it prints, how it exits.

mod fake;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use fake::{Fake, Ran, Script, dog, run};
use serde_json::json;
use wire::admin::{AdminError, ErrorKind, Finding, FindingKind, Severity};

fn fake() -> Fake {
    Fake::start(Script { disk: vec![1; 8192], ..Default::default() })
}

/// A port on which nothing listens.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address").port()
}

#[track_caller]
fn done(ran: Ran) -> Ran {
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert_eq!(ran.stderr, "", "{ran:?}");
    ran
}

#[test]
fn nodes_are_listed_as_a_table_or_as_json() {
    let fake = fake();
    let table = done(fake.dog("node list")).stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["Id", "Host", "Port", "VNodes", "Zone", "Space", "Status"]);
    let port = fake.port.to_string();
    let node = ["0000000000000001", "127.0.0.1", &port, "128", "rack-1", "25", "GiB/100", "GiB", "up"];
    assert_eq!(rows[1], node);
    assert_eq!(rows[2].last(), Some(&"down"), "dead members stay listed");

    let list = done(fake.dog("-o json node list")).json();
    let expected = json!({
        "id": "0000000000000001", "host": "127.0.0.1", "port": fake.port, "zone": "rack-1", "vnodes": 128,
        "space": { "total": 100u64 << 30, "free": 75u64 << 30, "used": 25u64 << 30 },
        "status": "up", "self": true,
    });
    assert_eq!(list[0], expected);
    assert_eq!(list.as_array().map(Vec::len), Some(2));
}

#[test]
fn the_sheep_is_named_by_options_on_either_side_of_the_verb_or_by_the_environment() {
    let fake = fake();
    let port = fake.port.to_string();
    done(run(dog().args(["node", "list", "-a", "localhost", "-p", &port, "-o", "json"])));
    done(run(dog().args(["node", "-p", &port, "list"])));
    done(run(dog().env("DOG_PORT", &port).args(["node", "list"])));
    done(run(dog().env("DOG_PORT", &port).env("DOG_ADDR", "localhost").args(["node", "list"])));
    let option_wins = run(dog().env("DOG_PORT", free_port().to_string()).args(["node", "list", "-p", &port]));
    done(option_wins);
    assert_eq!(run(dog().env("DOG_PORT", "x").args(["node", "list"])).exit, 2);
    assert_eq!(run(dog().env("DOG_ADDR", "a b").args(["node", "list"])).exit, 2);
}

#[test]
fn no_sheep_there_is_exit_3_with_the_way_out() {
    let port = free_port().to_string();
    let ran = run(dog().args(["-p", &port, "cluster", "info"]));
    assert_eq!(ran.exit, 3, "{ran:?}");
    assert!(ran.stderr.starts_with("dog: cannot ask the ring: no sheep answers at 127.0.0.1:"), "{ran:?}");
    assert!(ran.stderr.contains("\nhint: ") && ran.stderr.contains("DOG_ADDR"), "{ran:?}");

    let ran = run(dog().args(["-o", "json", "-p", &port, "cluster", "info"]));
    assert_eq!((ran.exit, ran.stdout.as_str()), (3, ""));
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).expect("json");
    assert_eq!(error["kind"], "unreachable");
    assert!(error["error"].as_str().is_some_and(|text| text.contains("refused")), "{error}");
}

#[test]
fn what_a_sheep_refuses_is_told_with_its_hint_and_exit_status() {
    for (kind, exit, name) in [
        (ErrorKind::Refused, 1, "refused"),
        (ErrorKind::NotFound, 1, "not_found"),
        (ErrorKind::AlreadyExists, 1, "already_exists"),
        (ErrorKind::Invalid, 2, "invalid"),
        (ErrorKind::Degraded, 1, "degraded"),
        (ErrorKind::Damaged, 4, "damaged"),
        (ErrorKind::Unavailable, 1, "unavailable"),
        (ErrorKind::NotFormatted, 1, "not_formatted"),
    ] {
        let fails = Some(AdminError::new(kind, "it is so").hint("do this"));
        let fake = Fake::start(Script { fails, ..Default::default() });
        let ran = fake.dog("vdi create my-disk 20G");
        assert_eq!(ran.exit, exit, "{ran:?}");
        assert_eq!(ran.stderr, "dog: vdi create my-disk: it is so\nhint: do this\n");
        let ran = fake.dog("vdi create my-disk 20G -o json");
        let error: serde_json::Value = serde_json::from_str(&ran.stderr).expect("json");
        assert_eq!(
            error,
            json!({ "error": "vdi create my-disk: it is so", "hint": "do this", "kind": name })
        );
    }
}

#[test]
fn a_question_goes_to_another_sheep_when_the_first_dies_in_the_middle() {
    let other = fake();
    let first = Fake::start(Script { dies: true, other: Some(other.port), ..Default::default() });
    let ran = done(first.dog("cluster info -o json"));
    assert_eq!(ran.json()["epoch"], 7);
    assert_eq!((first.asked().len(), other.asked().len()), (1, 1));
}

#[test]
fn a_question_goes_to_another_sheep_when_the_first_is_cut_off() {
    let other = fake();
    let fails = Some(AdminError::new(ErrorKind::Unavailable, "no majority"));
    let first = Fake::start(Script { fails, other: Some(other.port), ..Default::default() });
    done(first.dog("vdi list"));
    done(first.dog("vdi create a 1G"));
    let ran = first.dog("node remove 00000000000000ff");
    assert_eq!((ran.exit, ran.stderr.as_str()), (1, "dog: node remove 00000000000000ff: no majority\n"));
    assert_eq!(other.asked().len(), 2, "the list and the creation, which can be told from another");
}

#[test]
fn a_change_that_may_have_been_made_is_not_made_again() {
    let other = fake();
    let first = Fake::start(Script { dies: true, other: Some(other.port), ..Default::default() });
    let ran = first.dog("node remove 00000000000000ff");
    assert_eq!(ran.exit, 3, "{ran:?}");
    assert!(ran.stderr.contains("may have been done"), "{ran:?}");
    assert_eq!(other.asked(), [""; 0]);
}

#[test]
fn a_creation_or_deletion_whose_answer_is_lost_says_so_when_it_comes_again() {
    for line in ["vdi create my-disk 1G", "vdi delete my-disk"] {
        let other = fake();
        let first = Fake::start(Script { dies: true, other: Some(other.port), ..Default::default() });
        done(first.dog(line));
        let (first, again) = (first.asked(), other.asked());
        assert_eq!((first.len(), again.len()), (1, 1), "{line}");
        assert!(first[0].contains("again: false"), "{first:?}");
        // The same request, the time at which it began included.
        assert_eq!(first[0].replace("again: false", "again: true"), again[0]);
        if line.contains("create") {
            assert!(!again[0].contains("began_ms: 0,"), "{again:?}");
        }

        let refuses = Some(AdminError::new(ErrorKind::Refused, "it is open"));
        let other = Fake::start(Script { fails: refuses, ..Default::default() });
        let first = Fake::start(Script { dies: true, other: Some(other.port), ..Default::default() });
        let ran = first.dog(line);
        assert_eq!(ran.exit, 1, "the other sheep knows better: {ran:?}");

        for fails in [None, Some(AdminError::new(ErrorKind::Unavailable, "no majority"))] {
            let other = Fake::start(Script { dies: fails.is_none(), fails, ..Default::default() });
            let first = Fake::start(Script { dies: true, other: Some(other.port), ..Default::default() });
            let ran = first.dog(line);
            assert_eq!(ran.exit, 3, "{ran:?}");
            assert!(ran.stderr.contains("may have been done"), "{ran:?}");
        }
    }
}

#[test]
fn a_check_exits_with_what_it_finds() {
    let finding = |severity: Severity| Finding {
        kind: FindingKind::TooFewCopies.into(),
        severity: severity.into(),
        text: "2 of 3 copies in sync".into(),
        copies: 3,
        slot: 17,
        ..Default::default()
    };
    for (findings, exit, status) in [
        (vec![], 0, "clean"),
        (vec![finding(Severity::Note)], 0, "clean"),
        (vec![finding(Severity::Degraded)], 1, "degraded"),
        (vec![finding(Severity::Degraded), finding(Severity::Damaged)], 4, "damaged"),
    ] {
        let count = findings.len();
        let fake = Fake::start(Script { findings, ..Default::default() });
        for verb in ["cluster check", "cluster check --deep", "vdi check my-disk --repair"] {
            let ran = fake.dog(verb);
            assert_eq!(ran.exit, exit, "{ran:?}");
            assert_eq!(ran.stdout.lines().count(), count + 1, "{ran:?}");
            assert!(ran.stdout.lines().last().is_some_and(|l| l.starts_with(status)), "{ran:?}");
            let json = fake.dog(&format!("{verb} -o json")).json();
            assert_eq!(json["status"], status);
            assert_eq!(json["findings"].as_array().map(Vec::len), Some(count));
        }
        assert!(fake.asked()[2].contains("deep: true"), "{:?}", fake.asked());
    }
}

#[test]
fn slots_that_lack_the_same_are_summed_up_for_people_and_all_told_to_programs() {
    let slot = |slot: u32, text: &str, severity: Severity| Finding {
        kind: FindingKind::TooFewCopies.into(),
        severity: severity.into(),
        text: text.into(),
        copies: 3,
        slot,
        ..Default::default()
    };
    let mut findings: Vec<Finding> =
        (0..4000).map(|n| slot(n, "2 of 3 copies in sync", Severity::Degraded)).collect();
    findings.push(slot(4000, "1 of 3 copies in sync", Severity::Degraded));
    findings.push(slot(4001, "2 of 3 copies in sync", Severity::Degraded));
    findings.push(Finding {
        vdi: "vol".into(),
        oid: "01".into(),
        ..slot(7, "in-sync copies differ", Severity::Damaged)
    });
    let fake = Fake::start(Script { findings, ..Default::default() });
    let ran = fake.dog("cluster check");
    assert_eq!(ran.exit, 4, "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let summed = [
        "damaged: vol: object 01: in-sync copies differ",
        "degraded: 4001 slots of 3 copies: 2 of 3 copies in sync (slots 0, 1, 2, 3, 4, …)",
        "degraded: slot 4000 of 3 copies: 1 of 3 copies in sync",
    ];
    assert_eq!((&lines[..3], lines.len()), (&summed[..], 4), "{ran:?}");
    let json = fake.dog("cluster check -o json").json();
    assert_eq!(json["findings"].as_array().map(Vec::len), Some(4003));

    let findings = (0..300).map(|n| slot(n, &format!("waits for {n}"), Severity::Degraded)).collect();
    let ran = Fake::start(Script { findings, ..Default::default() }).dog("cluster check");
    assert_eq!(ran.stdout.lines().count(), 102, "a limit on reasons: {ran:?}");
    assert!(ran.stdout.contains("200 more slots"), "{ran:?}");
}

#[test]
fn what_may_be_old_is_said_and_never_counts_as_clean() {
    let fake = Fake::start(Script { stale: true, ..Default::default() });
    let ran = fake.dog("node list");
    assert_eq!(ran.exit, 0);
    assert!(ran.stderr.starts_with("warning: this may be out of date"), "{ran:?}");
    let ran = fake.dog("cluster check");
    assert_eq!(ran.exit, 1);
    assert!(ran.stdout.starts_with("unconfirmed"), "{ran:?}");
}

#[test]
fn dead_nodes_are_given_up_only_by_whoever_agrees() {
    let ran = done(fake().dog("cluster recover"));
    assert!(ran.stdout.contains("nobody is waited for"), "{ran:?}");

    let fake = Fake::start(Script { gone: vec![3], ..Default::default() });
    let ran = fake.dog("cluster recover");
    assert_eq!(ran.exit, 1, "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let risk = "my-disk: 28 MiB may be lost: 4 MiB at 0 B (all of it), 4 MiB at 8 MiB (what was written last), \
                4 MiB at 16 MiB (what was written last), 4 MiB at 24 MiB (what was written last), \
                4 MiB at 32 MiB (what was written last), and 2 more ranges, parts of its object map";
    assert_eq!(lines[0], risk);
    assert!(
        lines[1].starts_with("without 0000000000000003, 1 slot may lose something, of 1 VDI."),
        "{ran:?}"
    );

    let ran = fake.dog("cluster recover --force");
    assert_eq!(ran.exit, 1, "nobody is there to agree: {ran:?}");
    assert!(ran.stderr.contains("nothing was done"), "{ran:?}");
    assert!(fake.asked().iter().all(|asked| asked.contains("force: false")), "{:?}", fake.asked());
    let ran = done(fake.dog("cluster recover --force --yes -o json")).json();
    assert_eq!((&ran["done"], &ran["nodes"]), (&json!(true), &json!(["0000000000000003"])));
    assert!(fake.asked().pop().expect("asked").contains("nodes: [3], force: true"));
    assert_eq!(fake.dog("cluster recover --yes").exit, 2);
}

#[test]
fn changes_ask_for_what_the_command_line_says() {
    for (line, asked, told) in [
        ("cluster format -c 2 --slots 512 --force", "copies: 2, slots: 512, force: true", "formatted anew"),
        (
            "cluster format",
            "copies: 0, slots: 0, force: false",
            "ring 0123456789abcdef0123456789abcdef founded: 3 nodes, 3 copies",
        ),
        ("cluster shutdown", "ShutdownRequest", "stopping"),
        ("node recovery", "RecoveryRequest", "recovery is running, at most 50 MiB/s"),
        ("node recovery --pause", "paused: Some(true), limit_bytes_per_second: None", "paused"),
        (
            "node recovery --resume --limit 1M",
            "paused: Some(false), limit_bytes_per_second: Some(1048576)",
            "",
        ),
        ("node drain 0000000000000001", "node: 1", "is empty"),
        ("node drain 127.0.0.1:9", "node: 3", "is empty"),
        ("node remove 00000000000000ff", "node: 255", "removed"),
        ("node stat", "node: 0", "sheep_nbd_read_bytes_total  7"),
        ("vdi create my-disk 20G -c 2", "size: 21474836480, copies: 2", "my-disk created: 20 GiB"),
        ("vdi create my-disk 20G -c 1", "copies: 1", "20 GiB, 3 copies"),
        ("vdi delete my-disk", "my-disk", "deleted"),
        (
            "vdi object my-disk 7-9",
            "first: 7, count: 3, allocated_only: false",
            "0000000000000002 catching up",
        ),
        (
            "vdi object my-disk",
            "first: 0, count: 0, allocated_only: true",
            "01000000000000000500000000000007",
        ),
        ("vdi lock unlock my-disk worker-1", "client: \"worker-1\"", "2 connections closed"),
    ] {
        let fake = fake();
        let ran = done(fake.dog(line));
        assert!(ran.stdout.contains(told), "{line}: {ran:?}");
        let last = fake.asked().pop().expect("asked");
        assert!(last.contains(asked), "{line}: {last}");
        let ran = done(fake.dog(&format!("{line} -o json")));
        ran.json();
    }
    let ran = fake().dog("node remove 127.0.0.1:10");
    assert_eq!(ran.exit, 1);
    assert!(ran.stderr.contains("no node listens at"), "{ran:?}");
}

#[test]
fn answers_carry_times_sizes_and_owners() {
    let fake = fake();
    let list = done(fake.dog("vdi list -o json")).json();
    assert_eq!(list.as_array().map(Vec::len), Some(2), "all batches");
    assert_eq!(list[0]["created"], "2026-01-02T03:04:05.000Z");
    assert_eq!((&list[0]["size"], &list[0]["owner"]), (&json!(8192), &json!(null)));
    assert!(done(fake.dog("vdi list")).stdout.contains("8 KiB"));
    assert!(done(fake.dog("vdi info my-disk")).stdout.contains("writes need 2"));
    assert!(done(fake.dog("node info 00000000000000ff")).stdout.contains("00000000000000ff"));
    assert_eq!(done(fake.dog("cluster info -o json")).json()["status"], "ok");
    let ran = fake.dog("vdi lock list");
    assert!(ran.stdout.contains("worker-1:4"), "{ran:?}");
    assert!(ran.stderr.contains("0000000000000003 does not answer"), "{ran:?}");
    let ran = fake.dog("cluster info -v");
    assert!(ran.stderr.contains("log index 42, epoch 7"), "{ran:?}");
}

#[test]
fn a_disk_is_written_from_stdin_and_read_to_stdout_with_its_holes() {
    let mut disk = vec![0; 16 << 20];
    disk[5 << 20..][..4096].fill(7);
    disk[(16 << 20) - 1] = 9;
    let dir = tempfile::tempdir().expect("temporary directory");
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::write(&source, &disk).expect("writes");
    let fake = Fake::start(Script { disk: vec![1; disk.len()], ..Default::default() });
    let port = fake.port.to_string();
    let write = |line: &[&str]| {
        run(dog().args(["-p", &port, "vdi", "write"]).args(line).stdin(File::open(&source).expect("opens")))
    };
    assert!(done(write(&["my-disk"])).stdout.contains("16777216 bytes written"));
    assert!(fake.disk() == disk);

    let out = File::create(&target).expect("creates");
    done(run(dog().args(["-p", &port, "vdi", "read", "my-disk"]).stdout(out)));
    assert!(fs::read(&target).expect("reads") == disk);
    assert!(fs::metadata(&target).expect("metadata").blocks() * 512 < 1 << 20, "holes stay holes");

    let ran = done(fake.dog("vdi read my-disk 5M 16"));
    assert_eq!(ran.stdout, "\u{7}".repeat(16));
    assert_eq!(fake.dog("vdi read my-disk 17M").exit, 2);

    done(write(&["my-disk", "1M", "4K"]));
    let ran = write(&["my-disk", "15M"]);
    assert_eq!(ran.exit, 2, "{ran:?}");
    assert!(ran.stderr.contains("beyond the end of the VDI\nhint: write less"), "{ran:?}");
    fs::write(&source, b"short").expect("writes");
    let ran = write(&["my-disk", "0", "4K"]);
    assert_eq!(ran.exit, 1);
    assert!(ran.stderr.contains("stdin ended after 5 of 4096 bytes"), "{ran:?}");
}

#[test]
fn a_read_goes_on_where_it_was_when_the_sheep_dies() {
    let disk: Vec<u8> = (0..64 << 10).map(|i| (i / 4096) as u8 + 1).collect();
    let other = Fake::start(Script { disk: disk.clone(), ..Default::default() });
    let script =
        Script { disk: disk.clone(), dies_in_read: true, other: Some(other.port), ..Default::default() };
    let first = Fake::start(script);
    let ran = done(first.dog("vdi read my-disk"));
    assert!(ran.stdout.as_bytes() == disk);
    assert!(other.asked()[0].contains("offset: 4096"), "{:?}", other.asked());
}

#[test]
fn completions_and_man_pages_need_no_sheep() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(done(run(dog().args(["completions", shell]))).stdout.contains("cluster"));
    }
    assert!(done(run(dog().arg("man"))).stdout.contains(".TH dog"));
    let dir = tempfile::tempdir().expect("temporary directory");
    done(run(dog().arg("man").arg(dir.path())));
    assert!(dir.path().join("dog-vdi-create.1").exists());
}

#[test]
fn a_wrong_command_line_is_exit_2_and_help_is_not() {
    assert_eq!(run(dog().args(["vdi", "create", "a/b", "1G"])).exit, 2);
    assert_eq!(run(dog().args(["vdi", "frobnicate"])).exit, 2);
    assert_eq!(run(&mut dog()).exit, 2);
    let help = done(run(dog().arg("--help"))).stdout;
    assert!(help.contains("Examples:") && help.contains("Exit status:"), "{help}");
}
