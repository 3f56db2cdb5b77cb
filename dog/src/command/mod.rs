//! What is done: one file per noun. Each asks a sheep and shows the answer.

mod check;
mod cluster;
mod lock;
mod node;
mod recover;
mod transfer;
mod vdi;

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use wire::address::Address;
use wire::client::{AdminClient, Deadlines};

use crate::cli::{Cli, Global, Noun};
use crate::exit::{Exit, Failure, Kind};
use crate::output::Output;

/// Does what the command line says.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result<Exit, Failure> {
    match cli.noun {
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dog", &mut script);
            io::stdout().write_all(&script).map_err(Failure::io("completions")).map(|()| Exit::Done)
        }
        Noun::Man { dir } => man(dir.as_deref()).map_err(Failure::io("man")).map(|()| Exit::Done),
        Noun::Cluster(verb) => cluster::run(verb, &mut connect(&cli.global, output).await?, output).await,
        Noun::Node(verb) => node::run(verb, &mut connect(&cli.global, output).await?, output).await,
        Noun::Vdi(verb) => {
            // Before anything is asked: these are mistakes on the command line.
            transfer::refuse_terminal(&verb)?;
            vdi::run(verb, &mut connect(&cli.global, output).await?, output).await
        }
    }
}

async fn connect(global: &Global, output: &Output) -> Result<AdminClient, Failure> {
    let what = "cannot ask the ring";
    let address = Address::new(&global.address, global.port)
        .map_err(|error| Failure::new(Kind::Usage, what, error).hint("-a takes a host, -p its port"))?;
    let client = AdminClient::connect(address, Deadlines::default()).await.map_err(Failure::client(what))?;
    output.note(|| format!("asking the sheep at {}", client.address()));
    Ok(client)
}

fn man(dir: Option<&Path>) -> io::Result<()> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            clap_mangen::generate_to(Cli::command(), dir)
        }
        None => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout()),
    }
}

/// An id as it is shown; `None` for 0, which is no node.
fn node_id(id: u64) -> Option<String> {
    (id != 0).then(|| wire::id::NodeId(id).to_string())
}

/// What stands in a table where there is nothing.
fn dash(value: Option<&str>) -> String {
    value.unwrap_or("-").to_owned()
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}
