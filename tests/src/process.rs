//! One sheep: its process, its directory, its logs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::hosts::Place;
use crate::port::Ports;
use crate::tool;
use crate::wait;

/// How long a start may take, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Lines of each log that a failing test prints.
const TAIL_LINES: usize = 40;

/// A sheep that refused to start.
#[derive(Debug)]
pub struct Refusal {
    /// With what it exited.
    pub status: ExitStatus,
    /// What it said since it was started.
    pub stderr: String,
}

/// A sheep that may or may not be running.
#[derive(Debug)]
pub struct Sheep {
    /// Where it keeps everything.
    pub dir: PathBuf,
    /// Where it runs.
    pub place: Place,
    /// Where it listens there.
    pub ports: Ports,
    /// Its options apart from ports and DIR.
    pub options: Vec<String>,
    out: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// How long its log was when it was started.
    logged_before: usize,
}

impl Sheep {
    /// A sheep of which everything lies in `work`, under `name`; not started.
    pub fn new(work: &Path, name: &str, ports: Ports, options: Vec<String>) -> Self {
        let file = |suffix: &str| work.join(format!("{name}{suffix}"));
        Self {
            dir: file(""),
            place: Place::LOOPBACK,
            ports,
            options,
            out: file(".out"),
            log: file(".log"),
            child: None,
            logged_before: 0,
        }
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|refusal| panic!("sheep does not start: {refusal:?}"));
    }

    /// Starts it and waits until it serves or ends.
    pub fn try_start(&mut self) -> Result<(), Refusal> {
        self.launch();
        self.wait_serving()
    }

    /// Waits until it serves or ends.
    pub fn wait_serving(&mut self) -> Result<(), Refusal> {
        let logged = self.logged_before;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let child = self.child.as_mut().expect("launched");
            if let Some(status) = child.try_wait().expect("waits for its child") {
                self.child = None;
                let log = fs::read(&self.log).unwrap_or_default();
                let stderr = String::from_utf8_lossy(&log[logged.min(log.len())..]).into_owned();
                return Err(Refusal { status, stderr });
            }
            if self.said().contains('\n') {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "no serving line within {START_LIMIT:?}\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it and waits for nothing.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it is running");
        let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let log = append(&self.log).expect("log file");
        let logged = log.metadata().map_or(0, |meta| meta.len());
        let child = self
            .place
            .command(tool::binary("sheep"))
            .args(["-p", &self.ports.admin.to_string()])
            .args(["--nbd", "--nbd-port", &self.ports.nbd.to_string()])
            .args(&self.options)
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(File::create(&self.out).expect("output file"))
            .stderr(log)
            .spawn()
            .expect("sheep can be executed");
        self.child = Some(child);
        self.logged_before = usize::try_from(logged).unwrap_or(usize::MAX);
    }

    /// What it printed since its start.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Whether it was started and not ended by us.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is running").id()
    }

    /// Sends it a signal; returns once a stop has reached every thread.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        kill_process(pid.expect("it is running"), signal).expect("its own child");
        if signal == Signal::STOP {
            wait::until(Duration::from_secs(5), "every thread stops", || self.stopped());
        }
    }

    fn stopped(&self) -> Result<(), String> {
        let tasks = format!("/proc/{}/task", self.pid());
        for task in fs::read_dir(&tasks).map_err(|error| error.to_string())?.flatten() {
            // The state follows the name, which is in brackets and may hold any character.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            if let Some((_, rest)) = stat.rsplit_once(") ")
                && !rest.starts_with('T')
            {
                return Err(stat);
            }
        }
        Ok(())
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("its own child");
            child.wait().expect("its own child");
        }
    }

    /// SIGTERM, and how it ended and how long that took.
    #[track_caller]
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.signal(Signal::TERM);
        let begin = Instant::now();
        (self.wait_end(Duration::from_secs(15)), begin.elapsed())
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("it is running");
        let status = wait::until(limit, "the sheep ends", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("running".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        self.child = None;
        status
    }

    /// Empties its directory.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "it is running");
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                panic!("{}: {error}", self.dir.display())
            }
            _ => {}
        }
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it is running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux has VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib << 10
    }

    /// Bytes that it wrote to files since its start.
    pub fn written(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.pid())).expect("it is running");
        let count = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("Linux has wchar");
        count.parse().expect("a number")
    }

    /// Everything it logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log, for people.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        let name = self.log.file_stem().unwrap_or_default().to_string_lossy();
        let state = if self.child.is_some() { "running" } else { "not running" };
        format!("---- {name} (port {}, {state}) ----\n{}\n", self.ports.admin, lines[from..].join("\n"))
    }
}

impl Drop for Sheep {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A failure here means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
