//! The command line: what can be said, and nothing of what is done.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use wire::address::Address;
use wire::id::NodeId;
use wire::name::VdiName;
use wire::policy::Copies;
use wire::size::{SizeError, VdiSize, parse_bytes};

const EXAMPLES: &str = "\
Examples:
  dog cluster format --copies 3        found a ring of the sheep that wait
  dog node list                        who is in it
  dog vdi create my-disk 20G           make a disk; reach it as nbd://127.0.0.1/my-disk
  dog cluster check                    is every copy where it should be?
  dog -a 10.0.0.2 vdi list -o json     ask another sheep, for a script

Exit status:
  0  done
  1  refused, or done and redundancy is below what was asked for
  2  the command line is wrong, or a value in it
  3  no sheep answers
  4  data is damaged";

/// Administers a sheepdog ring.
///
/// Any sheep of the ring will do: each answers for all. When the one that is asked goes away, dog asks
/// another.
#[derive(Debug, Parser)]
#[command(name = "dog", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Options that go before or after the verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Host name or IP address of a sheep
    #[arg(short, long, global = true, env = "DOG_ADDR", default_value = "127.0.0.1", value_name = "ADDR")]
    pub(crate) address: String,

    /// Its admin port
    #[arg(short, long, global = true, env = "DOG_PORT", default_value_t = 7000,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,

    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,

    /// Say on stderr which sheep answers, and from which state
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs: sizes in bytes, times in RFC 3339
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// The ring as a whole
    #[command(subcommand)]
    Cluster(Cluster),
    /// The sheep in it
    #[command(subcommand)]
    Node(Node),
    /// Virtual disks
    #[command(subcommand)]
    Vdi(Vdi),
    /// Print a completion script: dog completions bash > /etc/bash_completion.d/dog
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the man page, or write the pages of all commands into a directory
    Man {
        /// Where to write them
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Found a ring of the sheep that wait
    #[command(after_help = "Example: dog cluster format --copies 3")]
    Format {
        /// Copies of new VDIs that do not say otherwise [default: what the sheep was started with]
        #[arg(short, long, value_parser = copies, value_name = "N")]
        copies: Option<Copies>,
        /// Into how many groups objects are sorted; a power of two, 2^8 to 2^20, fixed for ever
        /// [default: 4096]
        #[arg(long, value_parser = slots, value_name = "N")]
        slots: Option<u32>,
        /// Even with fewer nodes than copies, or over an existing ring: ITS DATA IS LOST
        #[arg(long)]
        force: bool,
    },
    /// What the ring is and how it is
    Info,
    /// Is every slot fully redundant? Exits with 1 if not, with 4 if data is damaged
    #[command(after_help = "Without --deep only the ring's records are looked at, which is quick.")]
    Check {
        /// Also read all copies of all objects and compare them
        #[arg(long)]
        deep: bool,
    },
    /// Give up nodes that will never come back, and go on with what is left
    #[command(
        after_help = "Without --force it only says who is waited for and what could be lost without them. Start \
                            those nodes again if there is any way to: then nothing is lost."
    )]
    Recover {
        /// Do it, after asking: WHAT ONLY THOSE NODES HAD IS LOST
        #[arg(long)]
        force: bool,
        /// A node to give up, by its id; may be given several times [default: all that are waited for]
        #[arg(long = "node", value_name = "ID")]
        nodes: Vec<NodeId>,
        /// Do not ask
        #[arg(long, requires = "force")]
        yes: bool,
    },
    /// Stop every sheep once what it has accepted is durable
    Shutdown,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// All nodes, dead ones too; before a format those that wait
    List,
    /// One node in detail
    Info {
        /// Its id or HOST:PORT [default: the sheep that is asked]
        node: Option<NodeRef>,
    },
    /// How far recovery is; pause or slow it down, for the whole ring
    #[command(
        after_help = "Examples:\n  dog node recovery --limit 50M    at most 50 MiB/s into each node\n  \
                            dog node recovery --limit 0      as fast as it goes"
    )]
    Recovery {
        /// Stop copying until --resume; nothing is lost by it, redundancy stays low
        #[arg(long, conflicts_with = "resume")]
        pause: bool,
        /// Go on
        #[arg(long)]
        resume: bool,
        /// Bytes per second into each node, such as 50M; 0 for no limit
        #[arg(long, value_parser = bytes, value_name = "BYTES/s")]
        limit: Option<u64>,
    },
    /// Counters of one node
    Stat {
        /// Its id or HOST:PORT [default: the sheep that is asked]
        node: Option<NodeRef>,
    },
    /// Move everything off a node, so that it can be removed
    #[command(after_help = "The ring goes on with it if dog is interrupted; ask again to watch.")]
    Drain {
        /// Its id or HOST:PORT
        node: NodeRef,
    },
    /// Take a node out of the ring that is drained, or dead for good
    Remove {
        /// Its id or HOST:PORT
        node: NodeRef,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Vdi {
    /// Make a VDI; it takes no space until it is written to
    #[command(
        after_help = "Examples:\n  dog vdi create my-disk 20G\n  dog vdi create scratch 1T --copies 1\n\n\
                            Units are powers of 1024; a size is a multiple of 512 bytes, at most 16P."
    )]
    Create {
        #[arg(value_parser = new_name)]
        name: VdiName,
        #[arg(value_parser = vdi_size)]
        size: VdiSize,
        /// Copies of each object [default: what the ring was formatted with]
        #[arg(short, long, value_parser = copies, value_name = "N")]
        copies: Option<Copies>,
    },
    /// Delete a VDI that nobody has open, and everything in it
    Delete {
        #[arg(value_parser = name)]
        name: VdiName,
    },
    /// All VDIs
    List,
    /// One VDI in detail
    Info {
        #[arg(value_parser = name)]
        name: VdiName,
    },
    /// Where a VDI's objects are
    #[command(after_help = "Examples:\n  dog vdi object my-disk          all that are allocated\n  \
                            dog vdi object my-disk 0 7-9    objects 0, 7, 8 and 9")]
    Object {
        #[arg(value_parser = name)]
        name: VdiName,
        /// Object numbers, of 4 MiB each, or ranges of them
        #[arg(value_parser = index_range)]
        index: Vec<IndexRange>,
    },
    /// Copy a VDI, or a part of it, to stdout; holes stay holes in a new file
    #[command(
        after_help = "Examples:\n  dog vdi read my-disk > disk.raw\n  dog vdi read my-disk 1M 512 | hexdump -C"
    )]
    Read(VdiRange),
    /// Copy stdin into a VDI; done when it is durable
    #[command(after_help = "Example: dog vdi write my-disk < disk.raw\n\n\
                            It is an error if stdin ends before LENGTH.")]
    Write(VdiRange),
    /// Compare all copies of a VDI. Exits with 1 if some are missing, with 4 if data is damaged
    Check {
        #[arg(value_parser = name)]
        name: VdiName,
        /// Put right what other copies allow
        #[arg(long)]
        repair: bool,
    },
    /// Who has VDIs open
    #[command(subcommand)]
    Lock(Lock),
}

/// A VDI, or a part of it.
#[derive(Debug, Args)]
pub(crate) struct VdiRange {
    #[arg(value_parser = name)]
    pub(crate) name: VdiName,
    #[arg(value_parser = bytes, default_value = "0")]
    pub(crate) offset: u64,
    /// How much [default: all there is]
    #[arg(value_parser = length)]
    pub(crate) length: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Lock {
    /// Which clients have VDIs open, and through which sheep
    List {
        /// Only this VDI
        #[arg(value_parser = name)]
        name: Option<VdiName>,
    },
    /// Close connections to a VDI; what they still have under way is fenced off
    Unlock {
        #[arg(value_parser = name)]
        name: VdiName,
        /// Only this client, as `vdi lock list` shows it [default: all]
        client: Option<String>,
    },
}

/// A node as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeRef {
    Id(NodeId),
    Address(Address),
}

impl std::str::FromStr for NodeRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // In the admin API 0 stands for "the sheep asked", and no node has that id.
        if let Some(id) = text.parse::<NodeId>().ok().filter(|id| id.0 != 0) {
            return Ok(Self::Id(id));
        }
        text.parse().map(Self::Address).map_err(|_| {
            format!(
                "{text:?} is neither a node id (16 hexadecimal digits, see `dog node list`) nor HOST:PORT"
            )
        })
    }
}

/// Object numbers `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

fn index_range(text: &str) -> Result<IndexRange, String> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u64>().ok().filter(|n| digits && *n < wire::size::OBJECTS_MAX)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(IndexRange { first, last }),
        _ => Err(format!("{text:?} is not an object number below 2^32 or a range such as 7-9")),
    }
}

fn name(text: &str) -> Result<VdiName, wire::name::NameError> {
    text.parse()
}

fn new_name(text: &str) -> Result<VdiName, wire::name::NameError> {
    VdiName::new_vdi(text)
}

fn vdi_size(text: &str) -> Result<VdiSize, SizeError> {
    text.parse()
}

fn bytes(text: &str) -> Result<u64, SizeError> {
    parse_bytes(text)
}

fn length(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Ok(0) => Err("a length of 0 is nothing; leave it out for everything".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

fn copies(text: &str) -> Result<Copies, String> {
    let count = text.parse().map_err(|_| format!("{text:?} is not a number of copies"))?;
    Copies::new(count).map_err(|error| error.to_string())
}

fn slots(text: &str) -> Result<u32, String> {
    let ok = |n: &u32| n.is_power_of_two() && (1 << 8..=1 << 20).contains(n);
    text.parse().ok().filter(ok).ok_or_else(|| {
        format!("{text:?} is not a power of two from 256 to 1048576 (4096 suits up to a hundred nodes)")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_before_and_after_the_verb() {
        for line in [
            "dog -o json -p 7001 node list",
            "dog node list -o json -p 7001",
            "dog -p 7001 node -o json list",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!((cli.global.output, cli.global.port), (Format::Json, 7001));
        }
    }

    #[test]
    fn values_that_no_ring_could_take_are_usage_errors() {
        for line in [
            "dog",
            "dog vdi",
            "dog vdi lock",
            "dog lock list",
            "dog -p 0 node list",
            "dog -p 65536 node list",
            "dog -o xml node list",
            "dog cluster format -c 0",
            "dog cluster format -c 32",
            "dog cluster format --slots 128",
            "dog cluster format --slots 1000",
            "dog cluster format --slots 2097152",
            "dog vdi create a/b 1G",
            "dog vdi create a 0",
            "dog vdi create a 17P",
            "dog vdi create a 1000",
            "dog vdi create a -1",
            "dog vdi create a",
            "dog vdi read a 0 0",
            "dog vdi object a 9-7",
            "dog vdi object a 4294967296",
            "dog vdi object a -",
            "dog node drain",
            "dog node drain x",
            "dog node recovery --pause --resume",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_node_is_named_by_id_or_address() {
        assert_eq!("00000000000000ff".parse(), Ok(NodeRef::Id(NodeId(255))));
        assert!("0000000000000000".parse::<NodeRef>().is_err());
        let address = "sheep-0:7000".parse().expect("good");
        assert_eq!("sheep-0:7000".parse(), Ok(NodeRef::Address(address)));
        assert_eq!(index_range("7-9"), Ok(IndexRange { first: 7, last: 9 }));
        assert_eq!(index_range("7"), Ok(IndexRange { first: 7, last: 7 }));
    }
}
