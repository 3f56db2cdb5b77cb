use clap::{CommandFactory, Parser};

use super::*;

fn load(line: &[&str]) -> Result<Config, ConfigError> {
    Config::load(Args::try_parse_from([&["sheep", "dir"], line].concat()).expect("parses"))
}

fn load_file(text: &str, line: &[&str]) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(&file, text).expect("writes");
    let path = file.path().to_str().expect("utf-8").to_owned();
    load(&[line, &["--config", &path]].concat())
}

/// The key that the error is about; its text must name value and way out.
fn refused_key(result: Result<Config, ConfigError>) -> &'static str {
    match result {
        Err(ConfigError::Value { key, value, problem, way_out }) => {
            assert!(!value.is_empty() && !problem.is_empty() && !way_out.is_empty());
            key
        }
        other => panic!("not refused for a value: {other:?}"),
    }
}

const MESH: [&str; 2] = ["--cluster-driver", "sdcluster"];

fn mesh(line: &[&str]) -> Result<Config, ConfigError> {
    load(&[&MESH, line].concat())
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = load(&[]).expect("valid");
    assert_eq!(config.dir, PathBuf::from("dir"));
    assert_eq!(config.admin.to_string(), "127.0.0.1:7000");
    assert_eq!(config.cluster, ClusterConfig::Local);
    assert_eq!(config.node, NodeConfig { gateway: false, zone: None, vnodes: 128 });
    assert_eq!(config.copies.get(), 3);
    assert_eq!(config.log, LogConfig { level: LogLevel::Info, format: LogFormat::Text });
    assert_eq!(config.nbd, NbdConfig { tcp: None, socket: None });
    assert_eq!(config.timing, Timing::default());
    assert_eq!(load(&["--nbd"]).expect("valid").nbd.tcp.expect("on").to_string(), "127.0.0.1:10809");

    let help = Args::command().render_long_help().to_string();
    for default in [
        format!("[default: {BIND_DEFAULT}]"),
        format!("[default: {PORT_DEFAULT}]"),
        format!("[default: {PORT_OFFSET_DEFAULT}]"),
        format!("[default: {NBD_PORT_DEFAULT}]"),
        format!("[default: {VNODES_DEFAULT}]"),
        format!("[default: {COPIES_DEFAULT}]"),
    ] {
        assert!(help.contains(&default), "{default} in\n{help}");
    }
}

#[test]
fn every_option_reaches_its_place() {
    let config = load(&[
        "-b",
        "10.0.0.1",
        "-p",
        "8000",
        "--cluster-port-offset",
        "5",
        "-z",
        "rack 1",
        "-v",
        "64",
        "-c",
        "2",
        "-l",
        "debug",
        "--log-format",
        "json",
        "--cluster-driver",
        "sdcluster",
        "--seed",
        "a:7000",
        "--seed",
        "b:7000",
        "--seed",
        "a:7000",
        "--nbd",
        "--nbd-port",
        "1",
        "--nbd-bind",
        "::",
        "--nbd-socket",
        "/s",
        "--insecure",
        "--nbd-insecure",
    ])
    .expect("valid");
    assert_eq!(config.admin.to_string(), "10.0.0.1:8000");
    let ClusterConfig::Mesh { listen, port_offset, seeds } = config.cluster else { panic!("local") };
    assert_eq!((listen.to_string().as_str(), port_offset), ("10.0.0.1:8005", 5));
    assert_eq!(seeds.iter().map(Address::to_string).collect::<Vec<_>>(), ["a:7000", "b:7000"]);
    assert_eq!(config.node, NodeConfig { gateway: false, zone: Some("rack 1".into()), vnodes: 64 });
    assert_eq!(config.copies.get(), 2);
    assert_eq!(config.log, LogConfig { level: LogLevel::Debug, format: LogFormat::Json });
    assert_eq!(config.nbd.tcp.expect("on").to_string(), "[::]:1");
    assert_eq!(config.nbd.socket, Some(PathBuf::from("/s")));
}

#[test]
fn beyond_loopback_each_kind_of_listener_needs_its_own_leave() {
    for address in ["0.0.0.0", "::", "10.0.0.1", "192.168.1.1", "fe80::1"] {
        assert_eq!(refused_key(load(&["-b", address])), "bind-addr");
        assert_eq!(refused_key(load(&["-b", address, "--nbd-insecure"])), "bind-addr");
        assert!(load(&["-b", address, "--insecure"]).is_ok());
        assert_eq!(refused_key(load(&["--nbd", "--nbd-bind", address, "--insecure"])), "nbd-bind");
        assert!(load(&["--nbd", "--nbd-bind", address, "--nbd-insecure"]).is_ok());
    }
    for address in ["127.0.0.1", "127.8.8.8", "::1"] {
        assert!(load(&["-b", address, "--nbd", "--nbd-bind", address]).is_ok());
    }
    for address in ["localhost", "", "127.0.0.1:7000", "[::1]", "256.0.0.1"] {
        assert_eq!(refused_key(load(&["-b", address, "--insecure"])), "bind-addr");
        assert_eq!(refused_key(load(&["--nbd", "--nbd-bind", address])), "nbd-bind");
    }
}

#[test]
fn a_ring_needs_ports_that_others_can_know() {
    assert_eq!(load(&["-p", "0"]).expect("valid").admin.port(), 0);
    assert_eq!(refused_key(mesh(&["-p", "0"])), "port");
    assert_eq!(refused_key(mesh(&["--cluster-port-offset", "0"])), "cluster-port-offset");
    assert_eq!(refused_key(mesh(&["-p", "65535"])), "cluster-port-offset");
    assert_eq!(refused_key(mesh(&["-p", "2", "--cluster-port-offset", "65534"])), "cluster-port-offset");
    assert!(mesh(&["-p", "1", "--cluster-port-offset", "65534"]).is_ok());
    assert!(load(&["-p", "65535"]).is_ok(), "the local driver has no mesh");
}

#[test]
fn two_listeners_never_share_a_port() {
    assert_eq!(refused_key(load(&["--nbd", "--nbd-port", "7000"])), "nbd-port");
    assert_eq!(refused_key(mesh(&["--nbd", "--nbd-port", "7001"])), "nbd-port");
    assert!(load(&["--nbd", "--nbd-port", "7001"]).is_ok());
    assert!(load(&["--nbd", "--nbd-port", "7000", "--nbd-bind", "127.0.0.2"]).is_ok());
    let anywhere = ["--nbd", "--nbd-port", "7000", "--nbd-bind", "0.0.0.0", "--nbd-insecure"];
    assert_eq!(refused_key(load(&anywhere)), "nbd-port");
    assert!(load(&["-p", "0", "--nbd", "--nbd-port", "0"]).is_ok());
}

#[test]
fn seeds_are_addresses_and_for_a_ring_only() {
    assert_eq!(refused_key(load(&["--seed", "a:7000"])), "seed");
    for bad in ["", "a", "a:", "a:0", "a:99999", ":7000", "::1:7000", "a b:1", "a:65535"] {
        assert_eq!(refused_key(mesh(&["--seed", bad])), "seed", "{bad:?}");
    }
    assert!(mesh(&["--seed", "[::1]:7000"]).is_ok());
    assert!(mesh(&[]).is_ok(), "the first of a ring has no seed");
    let many: Vec<String> = (0..=SEEDS_MAX).map(|i| format!("a{i}:1")).collect();
    let line: Vec<&str> = many.iter().flat_map(|seed| ["--seed", seed.as_str()]).collect();
    assert_eq!(refused_key(mesh(&line)), "seed");
}

#[test]
fn a_gateway_belongs_to_a_ring_and_has_no_vnodes() {
    assert_eq!(refused_key(load(&["-g"])), "gateway");
    let config = mesh(&["-g"]).expect("valid");
    assert_eq!((config.node.gateway, config.node.vnodes), (true, 0));
    assert_eq!(refused_key(mesh(&["-g", "-v", "128"])), "vnodes");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for bad in ["0", "4097", "4294967295"] {
        assert_eq!(refused_key(load(&["-v", bad])), "vnodes");
    }
    assert!(load(&["-v", "1"]).is_ok() && load(&["-v", "4096"]).is_ok());
    for bad in ["0", "32", "18446744073709551615"] {
        assert_eq!(refused_key(load(&["-c", bad])), "copies");
    }
    assert!(load(&["-c", "1"]).is_ok() && load(&["-c", "31"]).is_ok());
    for bad in [["-p", "65536"], ["-p", "-1"], ["-p", "x"], ["-v", "4294967296"], ["-l", "loud"]] {
        assert!(Args::try_parse_from([&["sheep", "dir"][..], &bad].concat()).is_err(), "{bad:?}");
    }
}

#[test]
fn a_zone_is_a_short_printable_name() {
    for bad in ["", "a\nb", "a\0", "\u{7f}", &"x".repeat(256)] {
        assert_eq!(refused_key(load(&["-z", bad])), "zone");
    }
    assert!(load(&["-z", &"x".repeat(255)]).is_ok());
}

#[test]
fn nbd_options_without_nbd_are_a_mistake() {
    assert_eq!(refused_key(load(&["--nbd-port", "1"])), "nbd-port");
    assert_eq!(refused_key(load(&["--nbd-bind", "127.0.0.1"])), "nbd-bind");
    let config = load(&["--nbd-socket", "/s"]).expect("valid");
    assert_eq!(config.nbd, NbdConfig { tcp: None, socket: Some("/s".into()) });
    assert_eq!(refused_key(load(&["--nbd-socket", &"x".repeat(108)])), "nbd-socket");
    assert_eq!(refused_key(load_file("nbd-socket = \"\"", &[])), "nbd-socket");
}

#[test]
fn the_command_line_wins_over_the_file() {
    let file = "port = 8000\nvnodes = 64\nseed = [\"a:1\"]\ncluster-driver = \"sdcluster\"\n\
                nbd = true\nnbd-port = 1\nlog-format = \"json\"\n";
    let config = load_file(file, &["-p", "9000", "--seed", "b:2", "--nbd=false"]).expect("valid");
    assert_eq!(config.admin.port(), 9000);
    assert_eq!(config.node.vnodes, 64);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.nbd.tcp, None);
    let ClusterConfig::Mesh { seeds, .. } = config.cluster else { panic!("local") };
    assert_eq!(seeds.iter().map(Address::to_string).collect::<Vec<_>>(), ["b:2"]);
}

#[test]
fn a_file_with_unknown_keys_or_wrong_types_is_refused_and_the_place_is_named() {
    for (text, named) in [
        ("prot = 1", "prot"),
        ("bind_addr = \"::1\"", "bind_addr"),
        ("[timing]\nheartbeat = 5", "heartbeat"),
        ("dir = \"x\"", "dir"),
        ("port = \"7000\"", "port"),
        ("port = 70000", "70000"),
        ("port = 1\nport = 2", "port"),
        ("log-level = \"loud\"", "loud"),
        ("port =", "line 1"),
        ("\0", "line 1"),
    ] {
        match load_file(text, &[]) {
            Err(error @ ConfigError::Parse { .. }) => {
                assert!(error.to_string().contains(named), "{named:?} in {error}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
    assert!(load_file("", &[]).is_ok());
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(&["--config", "/nonexistent/sheep.toml"]).expect_err("missing");
    assert!(error.to_string().contains("/nonexistent/sheep.toml"), "{error}");
    assert!(matches!(load(&["--config", "/"]), Err(ConfigError::Read { .. })));
}

#[test]
fn values_from_the_file_follow_the_same_rules() {
    assert_eq!(refused_key(load_file("bind-addr = \"0.0.0.0\"", &[])), "bind-addr");
    assert!(load_file("bind-addr = \"0.0.0.0\"\ninsecure = true", &[]).is_ok());
    assert_eq!(refused_key(load_file("copies = 32", &[])), "copies");
}

#[test]
fn timing_keeps_an_order_in_which_elections_end() {
    let timing = |text: &str| load_file(&format!("[timing]\n{text}"), &[]);
    let config =
        timing("heartbeat-ms = 50\nelection-min-ms = 650\nelection-max-ms = 651\ndead-after-ms = 600");
    let expected = Timing {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(650),
        election_max: Duration::from_millis(651),
        dead_after: Duration::from_millis(600),
    };
    assert_eq!(config.expect("valid").timing, expected);
    for (text, key) in [
        ("heartbeat-ms = 9", "timing.heartbeat-ms"),
        ("heartbeat-ms = 60001", "timing.heartbeat-ms"),
        ("heartbeat-ms = 101", "timing.heartbeat-ms"),
        ("election-min-ms = 609", "timing.election-min-ms"),
        ("election-min-ms = 1000", "timing.election-max-ms"),
        ("election-max-ms = 500", "timing.election-max-ms"),
        ("dead-after-ms = 599", "timing.dead-after-ms"),
        ("heartbeat-ms = 1000\nelection-min-ms = 3000\nelection-max-ms = 4000", "timing.heartbeat-ms"),
    ] {
        assert_eq!(refused_key(timing(text)), key, "{text:?}");
    }
    let error = timing("heartbeat-ms = 200").expect_err("too slow").to_string();
    assert!(error.contains("250 ms") && error.contains("100 or less"), "{error}");
    assert!(timing("heartbeat-ms = 100").is_ok());
}

#[test]
fn an_error_reads_as_one_sentence_with_the_way_out() {
    let error = load(&["-b", "0.0.0.0"]).expect_err("refused").to_string();
    assert!(error.starts_with("bind-addr 0.0.0.0: "), "{error}");
    assert!(error.contains("--insecure"), "{error}");
}
