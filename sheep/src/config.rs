//! What a sheep is told, merged from the command line and a file and validated before anything starts.
//!
//! Called by `main`. The command line wins over the file, key by key; the defaults are all in this file.
//! Every error names the key, the value and the way out. What the types here hold is valid: the modules
//! that get a piece of it check nothing again.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::lease::QUORUM_FRESH;
use crate::cluster::log::LEADER_LEASE;
use wire::address::Address;
use wire::policy::Copies;

use crate::cli::{Args, Driver, LogFormat, LogLevel, Options, TimingOptions};

const BIND_DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PORT_DEFAULT: u16 = 7000;
const PORT_OFFSET_DEFAULT: u16 = 1;
const NBD_PORT_DEFAULT: u16 = 10809;
const VNODES_DEFAULT: u32 = 128;
const COPIES_DEFAULT: u64 = 3;

/// The most vnodes of one node: 32 times the default is as uneven as a ring of unequal machines gets, and
/// it bounds the ring that every node has to hold.
pub const VNODES_MAX: u32 = 4096;

/// The longest zone name, in bytes.
pub const ZONE_LEN_MAX: usize = 255;

/// The most seeds. One that answers is enough; more only make a start with all of them down slower.
pub const SEEDS_MAX: usize = 64;

/// The longest path a unix socket can be bound to (`sun_path` less its final zero).
const SOCKET_PATH_LEN_MAX: usize = 107;

/// The slowest heartbeat: two of them, and the way of the second one's answer, fit in the time within which a
/// leader must have heard a majority to grant leases. So one that is lost or late costs no lease.
pub const HEARTBEAT_MAX: Duration = Duration::from_millis(100);

const _: () = {
    assert!(2 * HEARTBEAT_MAX.as_millis() + 50 <= QUORUM_FRESH.as_millis());
    assert!(3 * HEARTBEAT_MAX.as_millis() <= LEADER_LEASE.as_millis(), "the log asks for that much");
};

/// A configuration file larger than this is not one.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Everything that a sheep is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the node keeps everything.
    pub dir: PathBuf,
    /// Where the admin API listens. Port 0, with the local driver only, takes a free one.
    pub admin: SocketAddr,
    /// What makes the ring.
    pub cluster: ClusterConfig,
    /// What this node is in the ring.
    pub node: NodeConfig,
    /// Copies that a format takes when it is not told.
    pub copies: Copies,
    /// How to log.
    pub log: LogConfig,
    /// Where NBD listens.
    pub nbd: NbdConfig,
    /// How long things may take before something is taken for dead.
    pub timing: Timing,
}

/// What makes the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterConfig {
    /// This process alone.
    Local,
    /// A full mesh over TCP.
    Mesh {
        /// Where the mesh listens: the admin API's address, its port plus the offset.
        listen: SocketAddr,
        /// What is added to a sheep's admin port to find its mesh, for seeds too.
        port_offset: u16,
        /// Admin addresses of other sheep; without repetitions, may name this sheep.
        seeds: Vec<Address>,
    },
}

/// What this node is in the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Stores nothing.
    pub gateway: bool,
    /// Failure domain; `None` is the node's own id.
    pub zone: Option<String>,
    /// Points on the ring; 0 for a gateway.
    pub vnodes: u32,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// How much.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
}

/// Where NBD listens; nowhere if both are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdConfig {
    /// Over TCP. Port 0 takes a free one.
    pub tcp: Option<SocketAddr>,
    /// On a unix socket.
    pub socket: Option<PathBuf>,
}

/// How long things may take before something is taken for dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the cluster log's leader. Default 100 ms.
    pub heartbeat: Duration,
    /// Shortest silence of the leader after which a voter stands for election. Default 630 ms.
    pub election_min: Duration,
    /// Longest such silence. Default 720 ms.
    pub election_max: Duration,
    /// Silence of a node after which it is taken out of the ring. Default 2.5 s.
    pub dead_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(630),
            election_max: Duration::from_millis(720),
            dead_after: Duration::from_millis(2_500),
        }
    }
}

/// Why a sheep does not start with what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("config file {path}: {source}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be, alone or together with another.
    #[error("{key} {value}: {problem}; {way_out}")]
    Value {
        /// The option's name, as on the command line without dashes and as in the file.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        way_out: String,
    },
}

impl Config {
    /// Merges the command line with the file that it names, and validates.
    pub fn load(args: Args) -> Result<Self, ConfigError> {
        let file = match args.config {
            Some(path) => read_file(path)?,
            None => Options::default(),
        };
        let dir = args.dir.unwrap_or_default();
        if dir.as_os_str().is_empty() {
            return Err(refused("DIR", "\"\"", "it is empty", "name the directory of this node"));
        }
        validate(dir, merge(args.options, file))
    }
}

fn read_file(path: PathBuf) -> Result<Options, ConfigError> {
    let read = || {
        let len = fs::metadata(&path)?.len();
        if len > FILE_LEN_MAX {
            return Err(io::Error::other(format!("{len} bytes is too large for a configuration file")));
        }
        fs::read_to_string(&path)
    };
    match read() {
        Ok(text) => {
            toml::from_str(&text).map_err(|source| ConfigError::Parse { path, source: Box::new(source) })
        }
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

fn merge(line: Options, file: Options) -> Options {
    Options {
        bind_addr: line.bind_addr.or(file.bind_addr),
        port: line.port.or(file.port),
        cluster_port_offset: line.cluster_port_offset.or(file.cluster_port_offset),
        gateway: line.gateway.or(file.gateway),
        zone: line.zone.or(file.zone),
        vnodes: line.vnodes.or(file.vnodes),
        copies: line.copies.or(file.copies),
        log_level: line.log_level.or(file.log_level),
        log_format: line.log_format.or(file.log_format),
        cluster_driver: line.cluster_driver.or(file.cluster_driver),
        seed: line.seed.or(file.seed),
        nbd: line.nbd.or(file.nbd),
        nbd_port: line.nbd_port.or(file.nbd_port),
        nbd_bind: line.nbd_bind.or(file.nbd_bind),
        nbd_socket: line.nbd_socket.or(file.nbd_socket),
        insecure: line.insecure.or(file.insecure),
        nbd_insecure: line.nbd_insecure.or(file.nbd_insecure),
        timing: file.timing,
    }
}

fn validate(dir: PathBuf, options: Options) -> Result<Config, ConfigError> {
    let admin = admin_address(&options)?;
    let cluster = cluster(&options, admin)?;
    let nbd = nbd(&options)?;
    ports_differ(admin, &cluster, &nbd)?;
    let copies = options.copies.unwrap_or(COPIES_DEFAULT);
    Ok(Config {
        dir,
        admin,
        node: node(&options)?,
        cluster,
        copies: Copies::new(copies).map_err(|_| {
            let problem = "out of range";
            refused("copies", copies, problem, format!("choose 1 to {}", Copies::MAX))
        })?,
        log: LogConfig {
            level: options.log_level.unwrap_or_default(),
            format: options.log_format.unwrap_or_default(),
        },
        nbd,
        timing: timing(&options.timing)?,
    })
}

fn refused(
    key: &'static str,
    value: impl ToString,
    problem: impl Into<String>,
    way_out: impl Into<String>,
) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), problem: problem.into(), way_out: way_out.into() }
}

fn ip(key: &'static str, text: Option<&str>) -> Result<IpAddr, ConfigError> {
    let Some(text) = text else { return Ok(BIND_DEFAULT) };
    text.parse().map_err(|_| {
        let way_out = "write the IP address of an interface, such as 127.0.0.1, 10.0.0.1 or ::1";
        refused(key, format!("{text:?}"), "not an IP address", way_out)
    })
}

fn admin_address(options: &Options) -> Result<SocketAddr, ConfigError> {
    let address = ip("bind-addr", options.bind_addr.as_deref())?;
    if !address.is_loopback() && options.insecure != Some(true) {
        let problem = "not a loopback address, and nothing yet protects the admin API and the mesh there";
        let way_out = "bind to 127.0.0.1, or add --insecure if only trusted machines reach it";
        return Err(refused("bind-addr", address, problem, way_out));
    }
    Ok(SocketAddr::new(address, options.port.unwrap_or(PORT_DEFAULT)))
}

fn cluster(options: &Options, admin: SocketAddr) -> Result<ClusterConfig, ConfigError> {
    let seeds = options.seed.as_deref().unwrap_or_default();
    match options.cluster_driver.unwrap_or_default() {
        Driver::Local => {
            if let Some(seed) = seeds.first() {
                let way_out = "add --cluster-driver sdcluster, or leave the seed out";
                return Err(refused("seed", format!("{seed:?}"), "the local driver has no peers", way_out));
            }
            if options.gateway == Some(true) {
                let problem = "with the local driver there is nobody else to store anything";
                let way_out = "add --cluster-driver sdcluster and a --seed, or leave the gateway out";
                return Err(refused("gateway", true, problem, way_out));
            }
            Ok(ClusterConfig::Local)
        }
        Driver::Sdcluster => {
            let port_offset = options.cluster_port_offset.unwrap_or(PORT_OFFSET_DEFAULT);
            let listen = SocketAddr::new(admin.ip(), mesh_port(admin.port(), port_offset)?);
            Ok(ClusterConfig::Mesh { listen, port_offset, seeds: parse_seeds(seeds, port_offset)? })
        }
    }
}

fn mesh_port(port: u16, offset: u16) -> Result<u16, ConfigError> {
    if port == 0 {
        let problem = "the others of a ring could not find a port that is chosen at start";
        return Err(refused("port", port, problem, "choose a port of 1 to 65534"));
    }
    if offset == 0 {
        let problem = "the mesh and the admin API cannot share a port";
        return Err(refused("cluster-port-offset", offset, problem, "choose 1 or more"));
    }
    port.checked_add(offset).ok_or_else(|| {
        let problem = format!("port {port} plus this is above 65535");
        refused("cluster-port-offset", offset, problem, "choose a smaller offset or port")
    })
}

fn parse_seeds(texts: &[String], port_offset: u16) -> Result<Vec<Address>, ConfigError> {
    if texts.len() > SEEDS_MAX {
        let problem = "too many";
        return Err(refused("seed", texts.len(), problem, format!("name {SEEDS_MAX} at most")));
    }
    let mut seeds: Vec<Address> = Vec::with_capacity(texts.len());
    for text in texts {
        let shown = format!("{text:?}");
        let seed: Address = text.parse().map_err(|error: wire::address::AddressError| {
            let way_out = "write the other sheep's admin address, HOST:PORT (its -b and -p)";
            refused("seed", &shown, error.to_string(), way_out)
        })?;
        if seed.port().checked_add(port_offset).is_none() {
            let problem = format!("its port plus cluster-port-offset {port_offset} is above 65535");
            return Err(refused("seed", shown, problem, "name the admin port, and use one offset in a ring"));
        }
        if !seeds.contains(&seed) {
            seeds.push(seed);
        }
    }
    Ok(seeds)
}

fn node(options: &Options) -> Result<NodeConfig, ConfigError> {
    let gateway = options.gateway == Some(true);
    let vnodes = match (gateway, options.vnodes) {
        (true, Some(vnodes)) => {
            let way_out = "leave vnodes out, or leave gateway out";
            return Err(refused("vnodes", vnodes, "a gateway stores nothing", way_out));
        }
        (true, None) => 0,
        (false, vnodes) => vnodes.unwrap_or(VNODES_DEFAULT),
    };
    if !gateway && !(1..=VNODES_MAX).contains(&vnodes) {
        let way_out = format!("choose 1 to {VNODES_MAX}, or --gateway for a node that stores nothing");
        return Err(refused("vnodes", vnodes, "out of range", way_out));
    }
    if let Some(zone) = &options.zone {
        let shown = format!("{zone:?}");
        if zone.is_empty() || zone.len() > ZONE_LEN_MAX {
            let problem = format!("a zone name has 1 to {ZONE_LEN_MAX} bytes, this one has {}", zone.len());
            return Err(refused("zone", shown, problem, "choose another, or none: then this node is a zone"));
        }
        if zone.chars().any(char::is_control) {
            let problem = "a zone name has no control characters";
            return Err(refused("zone", shown, problem, "leave them out"));
        }
    }
    Ok(NodeConfig { gateway, zone: options.zone.clone(), vnodes })
}

fn nbd(options: &Options) -> Result<NbdConfig, ConfigError> {
    let tcp = match options.nbd {
        Some(true) => Some(nbd_tcp(options)?),
        Some(false) | None => {
            nbd_without_tcp(options)?;
            None
        }
    };
    if let Some(path) = &options.nbd_socket {
        let len = path.as_os_str().len();
        if len == 0 || len > SOCKET_PATH_LEN_MAX {
            let problem =
                format!("the path of a unix socket has 1 to {SOCKET_PATH_LEN_MAX} bytes, not {len}");
            return Err(refused("nbd-socket", format!("{path:?}"), problem, "choose a shorter path"));
        }
    }
    Ok(NbdConfig { tcp, socket: options.nbd_socket.clone() })
}

fn nbd_tcp(options: &Options) -> Result<SocketAddr, ConfigError> {
    let address = ip("nbd-bind", options.nbd_bind.as_deref())?;
    if !address.is_loopback() && options.nbd_insecure != Some(true) {
        let problem = "not a loopback address, and nothing yet protects the disks there";
        let way_out = "bind to 127.0.0.1, or add --nbd-insecure if only trusted machines reach it";
        return Err(refused("nbd-bind", address, problem, way_out));
    }
    Ok(SocketAddr::new(address, options.nbd_port.unwrap_or(NBD_PORT_DEFAULT)))
}

/// An address for a server that is not asked for is a mistake that would be noticed late. In
/// `nbd = false` it is meant: that is how a command line turns off what a file sets up.
fn nbd_without_tcp(options: &Options) -> Result<(), ConfigError> {
    if options.nbd == Some(false) {
        return Ok(());
    }
    let way_out = "add --nbd, or leave it out";
    if let Some(port) = options.nbd_port {
        return Err(refused("nbd-port", port, "NBD over TCP is not turned on", way_out));
    }
    if let Some(address) = &options.nbd_bind {
        return Err(refused("nbd-bind", address, "NBD over TCP is not turned on", way_out));
    }
    Ok(())
}

/// Two listeners on one port would fail too, but at a time and with a message that names neither key.
fn ports_differ(admin: SocketAddr, cluster: &ClusterConfig, nbd: &NbdConfig) -> Result<(), ConfigError> {
    let Some(tcp) = nbd.tcp.filter(|tcp| tcp.port() != 0) else { return Ok(()) };
    let overlap = |other: SocketAddr| {
        let any = other.ip().is_unspecified() || tcp.ip().is_unspecified();
        tcp.port() == other.port() && (any || tcp.ip() == other.ip())
    };
    let taken_by = match cluster {
        _ if overlap(admin) => "the admin API",
        ClusterConfig::Mesh { listen, .. } if overlap(*listen) => "the mesh",
        _ => return Ok(()),
    };
    let problem = format!("{taken_by} of this sheep listens on that port");
    Err(refused("nbd-port", tcp.port(), problem, "choose another port for one of them"))
}

fn timing(options: &TimingOptions) -> Result<Timing, ConfigError> {
    let default = Timing::default();
    let heartbeat = millis("timing.heartbeat-ms", options.heartbeat_ms, default.heartbeat, 10)?;
    let election_min = millis("timing.election-min-ms", options.election_min_ms, default.election_min, 30)?;
    let election_max = millis("timing.election-max-ms", options.election_max_ms, default.election_max, 31)?;
    // A node that stalls for half a second is slow, not dead, and costs no epoch.
    let dead_after = millis("timing.dead-after-ms", options.dead_after_ms, default.dead_after, 600)?;
    let at_least = |key, value: Duration, least: Duration, what: &str| {
        if value >= least {
            return Ok(());
        }
        let problem = format!("{what} is {} ms", least.as_millis());
        let way_out = format!("choose {} or more", least.as_millis());
        Err(refused(key, value.as_millis(), problem, way_out))
    };
    if heartbeat > HEARTBEAT_MAX {
        let (most, fresh) = (HEARTBEAT_MAX.as_millis(), QUORUM_FRESH.as_millis());
        let problem = format!(
            "leases are granted while a majority was heard within {fresh} ms, which two heartbeats must fit in"
        );
        let way_out = format!("choose {most} or less");
        return Err(refused("timing.heartbeat-ms", heartbeat.as_millis(), problem, way_out));
    }
    let least = LEADER_LEASE + Duration::from_millis(10);
    at_least("timing.election-min-ms", election_min, least, "the least above the leader's lease")?;
    let above_min = election_min + Duration::from_millis(1);
    at_least("timing.election-max-ms", election_max, above_min, "the least above election-min-ms")?;
    at_least("timing.dead-after-ms", dead_after, 3 * heartbeat, "three times heartbeat-ms")?;
    Ok(Timing { heartbeat, election_min, election_max, dead_after })
}

fn millis(
    key: &'static str,
    value: Option<u64>,
    default: Duration,
    least: u64,
) -> Result<Duration, ConfigError> {
    /// A minute: what is longer makes a ring that never notices anything.
    const MOST: u64 = 60_000;
    match value {
        None => Ok(default),
        Some(value) if (least..=MOST).contains(&value) => Ok(Duration::from_millis(value)),
        Some(value) => {
            Err(refused(key, value, "out of range", format!("choose {least} to {MOST} milliseconds")))
        }
    }
}

#[cfg(test)]
mod tests;
