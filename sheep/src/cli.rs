//! The command line of `sheep`: `sheep [OPTIONS] <DIR>`.
//!
//! [`Options`] is at once what the command line and what the configuration file can say, so that the two
//! cannot drift apart. Nothing is judged here: [`crate::config`] merges both, fills in defaults and
//! validates.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

const EXAMPLES: &str = "\
Examples:
  One process that serves disks on this machine:
    sheep /var/lib/sheep --nbd
    dog cluster format -c 1
    dog vdi create my-disk 10G
    qemu-system-x86_64 -drive file=nbd://127.0.0.1/my-disk,format=raw

  A ring of three on one machine, to try it out:
    sheep a --cluster-driver sdcluster --port 7000 --nbd
    sheep b --cluster-driver sdcluster --port 7010 --seed 127.0.0.1:7000
    sheep c --cluster-driver sdcluster --port 7020 --seed 127.0.0.1:7000
    dog cluster format -c 3

A configuration file has the same keys: `port = 7000`, `seed = [\"10.0.0.1:7000\"]`, `nbd = true`.
It may also have a table [timing]: heartbeat-ms, election-min-ms, election-max-ms, dead-after-ms.";

/// The sheepdog storage daemon: a ring of nodes that serves virtual disks over NBD.
///
/// Runs in the foreground and prints one line when it serves. DIR is made if it is not there.
#[derive(Debug, Clone, Parser)]
#[command(name = "sheep", version, after_long_help = EXAMPLES)]
pub struct Args {
    /// Where this node keeps everything: its identity, its log, its objects
    #[arg(required = true)]
    pub dir: Option<PathBuf>,

    /// Read options from this TOML file; the command line wins over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub options: Options,

    /// Print a completion script and exit
    #[arg(long, value_name = "SHELL", hide = true, exclusive = true)]
    pub generate_completions: Option<Shell>,

    /// Print the man page and exit
    #[arg(long, hide = true, exclusive = true)]
    pub generate_man: bool,
}

/// What the command line and the configuration file can say. `None` is "not said".
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// IP address on which the admin API and the mesh listen [default: 127.0.0.1]
    #[arg(short, long, value_name = "ADDR")]
    pub bind_addr: Option<String>,

    /// Port of the admin API; with the local driver 0 takes a free one [default: 7000]
    #[arg(short, long)]
    pub port: Option<u16>,

    /// The mesh listens on the port of the admin API plus this [default: 1]
    #[arg(long, value_name = "N")]
    pub cluster_port_offset: Option<u16>,

    /// Store nothing: serve NBD for a ring without ever being a placement target or a voter
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub gateway: Option<bool>,

    /// Failure domain; copies go to distinct zones [default: this node's id, so every node is a zone]
    #[arg(short, long, value_name = "NAME")]
    pub zone: Option<String>,

    /// Points on the ring, in proportion to which this node is given data [default: 128]
    #[arg(short, long, value_name = "N")]
    pub vnodes: Option<u32>,

    /// Copies that a format takes when it is not told [default: 3]
    #[arg(short, long, value_name = "N")]
    pub copies: Option<u64>,

    /// How much to log [default: info]
    #[arg(short, long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// How to write the log [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// A ring of this one process, or of many over TCP [default: local]
    #[arg(long, value_name = "DRIVER")]
    pub cluster_driver: Option<Driver>,

    /// Admin address of another sheep of the ring; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub seed: Option<Vec<String>>,

    /// Serve NBD over TCP
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub nbd: Option<bool>,

    /// Port of NBD; 0 takes a free one [default: 10809]
    #[arg(long, value_name = "PORT")]
    pub nbd_port: Option<u16>,

    /// IP address on which NBD listens [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    pub nbd_bind: Option<String>,

    /// Serve NBD on this unix socket, with or without --nbd
    #[arg(long, value_name = "PATH")]
    pub nbd_socket: Option<PathBuf>,

    /// Let the admin API and the mesh listen beyond loopback although nothing protects them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub insecure: Option<bool>,

    /// Let NBD listen beyond loopback although nothing protects it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub nbd_insecure: Option<bool>,

    /// Only in the file: table `[timing]`.
    #[arg(skip)]
    pub timing: TimingOptions,
}

/// Table `[timing]` of the configuration file, all in milliseconds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TimingOptions {
    /// Between two heartbeats of the cluster log's leader.
    pub heartbeat_ms: Option<u64>,
    /// Shortest silence of the leader after which a voter stands for election.
    pub election_min_ms: Option<u64>,
    /// Longest such silence; each voter draws its own in between.
    pub election_max_ms: Option<u64>,
    /// Silence of a node after which it is taken out of the ring.
    pub dead_after_ms: Option<u64>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What lost something or stopped something.
    Error,
    /// What someone should look at.
    Warn,
    /// What changed in the ring.
    #[default]
    Info,
    /// What a developer asks for.
    Debug,
    /// Every request.
    Trace,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What makes the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// This process alone is the ring.
    #[default]
    Local,
    /// A full mesh over TCP.
    Sdcluster,
}

impl Args {
    /// Writes the completion script or man page that was asked for; false if none was.
    pub fn generate(&self, out: &mut dyn Write) -> io::Result<bool> {
        let mut command = Self::command();
        if let Some(shell) = self.generate_completions {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "sheep", &mut script);
            out.write_all(&script)?;
            return Ok(true);
        }
        if self.generate_man {
            clap_mangen::Man::new(command).render(out)?;
            return Ok(true);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_flag_never_takes_the_directory_for_its_value() {
        let args = Args::try_parse_from(["sheep", "--nbd", "true"]).expect("parses");
        assert_eq!(args.options.nbd, Some(true));
        assert_eq!(args.dir, Some(PathBuf::from("true")));
        let args = Args::try_parse_from(["sheep", "d", "-g", "--nbd=false"]).expect("parses");
        assert_eq!((args.options.gateway, args.options.nbd), (Some(true), Some(false)));
    }

    #[test]
    fn the_directory_is_needed_except_to_print_completions_or_the_man_page() {
        assert!(Args::try_parse_from(["sheep"]).is_err());
        assert!(Args::try_parse_from(["sheep", "--config", "f"]).is_err(), "a file does not name it");
        let help = Args::command().render_help().to_string();
        assert!(help.contains("<DIR>") && !help.contains("[DIR]"), "{help}");
        for line in [vec!["sheep", "--generate-man"], vec!["sheep", "--generate-completions", "bash"]] {
            let mut out = Vec::new();
            let args = Args::try_parse_from(&line).expect("parses");
            assert!(args.generate(&mut out).expect("writes"));
            assert!(String::from_utf8_lossy(&out).contains("cluster"), "{line:?}");
        }
    }
}
