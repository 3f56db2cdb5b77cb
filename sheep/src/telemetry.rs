//! Logs: to standard error, as text or JSON lines.

use tracing_subscriber::EnvFilter;

use crate::cli::{LogFormat, LogLevel};
use crate::config::LogConfig;

/// Begins to log. Called once, by `main`.
pub fn start(config: &LogConfig) {
    // openraft reports every attempt to reach a dead node as an error; the log says itself what matters.
    let level = match config.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::new(format!("{level},openraft=off,h2=warn,tonic=warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => tracing::subscriber::set_global_default(subscriber.with_ansi(false).finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(subscriber.json().finish()),
    };
    if started.is_err() {
        tracing::debug!("logging had begun already");
    }
}
