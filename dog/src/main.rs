//! `dog`: the sheepdog admin CLI.
//!
//! Read in this order: `cli` (what can be said), `command` (one file per noun: ask a sheep, show the
//! answer), `output` (tables, JSON, progress), `exit` (what a script is told).

mod cli;
mod command;
mod exit;
mod output;
mod time;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::output::Output;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.output, cli.global.verbose);
    match command::run(cli, &output).await {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}
