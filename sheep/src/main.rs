//! The sheepdog storage daemon: arguments → configuration → node, until a signal ends it.

use std::process::ExitCode;

use clap::Parser;
use sheep::cli::Args;
use sheep::config::Config;
use sheep::node::Node;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let args = Args::parse();
    match args.generate(&mut std::io::stdout()) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => {}
        Err(error) => return fail(&error.into(), 1),
    }
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => return fail(&error.into(), 2),
    };
    sheep::telemetry::start(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // A thread may be inside a copy to the page cache; the log and the leases must go on meanwhile.
        .worker_threads(std::thread::available_parallelism().map_or(4, |n| n.get().max(4)))
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Our errors name their cause themselves: the chain behind them would say it again.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("sheep: {}", error.to_string().trim_end());
    ExitCode::from(code)
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let starting = Node::start(config);
    let node = tokio::select! {
        node = starting => node?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    println!("{}", node.serving_line());
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        why = node.ended() => why,
    };
    node.stop().await;
    Ok(result?)
}
