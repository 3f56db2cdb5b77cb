//! Runs a program to its end, within a limit.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// What `timeout` exits with when it had to end the program.
const TIMED_OUT: i32 = 124;

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit status; 128 plus the signal if one ended it.
    pub status: i32,
    /// Its output as it is.
    pub bytes: Vec<u8>,
    /// Its output as text.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

impl Output {
    /// The output of a program that succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// The output of a program that ended with `status`.
    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// The output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, status, stdout, stderr, .. } = self;
        let hung = if *status == TIMED_OUT { " (still running at its time limit)" } else { "" };
        let shown: String = stdout.chars().take(4000).collect();
        write!(f, "{line}: exit status {status}{hung}\n{shown}{stderr}")
    }
}

/// Runs `program` and waits for its end, at most `limit`.
#[track_caller]
pub fn run(limit: Duration, program: &str, args: &[&str]) -> Output {
    run_with(limit, program, args, &[])
}

/// Like [`run`], with something on stdin.
#[track_caller]
pub fn run_with(limit: Duration, program: &str, args: &[&str], stdin: &[u8]) -> Output {
    let seconds = limit.as_secs().max(1).to_string();
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", &seconds, program])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout is part of coreutils");
    let mut pipe = child.stdin.take().expect("piped");
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not want its input closes it; what it says tells why.
            let _ = pipe.write_all(stdin);
        });
        child.wait_with_output().expect("its output is read")
    });
    let status = output.status;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    let result = Output {
        line: format!("{program} {}", args.join(" ")),
        status: status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        bytes: output.stdout,
    };
    assert!(
        result.status != 127,
        "{program} is missing; `make setup` installs what the tests need\n{result}"
    );
    result
}

/// A program of this workspace, which `tests/run` builds before any test starts.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own executable");
    let dir = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps/TEST");
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run tests/run, which builds it first", path.display());
    path
}
