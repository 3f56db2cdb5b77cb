//! How answers are shown: tables for people, JSON for programs, from the same structs.
//!
//! Answers go to stdout; warnings, progress and failures to stderr. Nothing is coloured, and progress is
//! shown only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};
use wire::admin::{Progress, View};
use wire::name::is_unseen;

use crate::cli::Format;
use crate::exit::Failure;

/// A line of a table.
pub(crate) trait Row: Serialize {
    /// The table's head.
    const HEAD: &'static [&'static str];

    /// As many cells as the head has.
    fn cells(&self) -> Vec<String>;
}

/// A thing shown as labels and values, one a line.
pub(crate) trait Record: Serialize {
    fn fields(&self) -> Vec<(&'static str, String)>;
}

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    verbose: bool,
}

impl Output {
    pub(crate) fn new(format: Format, verbose: bool) -> Self {
        Self { format, verbose }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A table, or a JSON array.
    pub(crate) fn list<R: Row>(&self, rows: &[R]) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(&rows),
            Format::Table => {
                let mut table = Builder::default();
                table.push_record(R::HEAD.iter().copied());
                for row in rows {
                    table.push_record(row.cells().iter().map(|cell| printable(cell)));
                }
                lines(table)
            }
        }
    }

    /// Labels and values, or a JSON object.
    pub(crate) fn record<R: Record>(&self, record: &R) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(record),
            Format::Table => {
                let mut table = Builder::default();
                for (label, value) in record.fields() {
                    table.push_record([format!("{label}:"), printable(&value)]);
                }
                lines(table)
            }
        }
    }

    /// A sentence for people; for programs what it is about.
    pub(crate) fn done<T: Serialize>(&self, text: &str, subject: &T) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(subject),
            Format::Table => print(&format!("{}\n", printable(text))),
        }
    }

    /// A line for people only.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        match self.format {
            Format::Json => Ok(()),
            Format::Table => print(&format!("{}\n", printable(text))),
        }
    }

    pub(crate) fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::from).map_err(stdout_failed)?;
        print(&format!("{text}\n"))
    }

    /// Says which state an answer was made from when that matters: it may be old, or `-v` asks for it.
    pub(crate) fn view(&self, view: Option<&View>) {
        let Some(view) = view else { return };
        if view.possibly_stale {
            self.warn("this may be out of date: the sheep that answered is cut off from the ring's majority");
        }
        self.note(|| format!("state of log index {}, epoch {}", view.applied_index, view.epoch));
    }

    /// Something that `-v` asks for.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            self.stderr("note", &text());
        }
    }

    /// Something to know that is no failure.
    pub(crate) fn warn(&self, text: &str) {
        self.stderr("warning", text);
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        match self.format {
            Format::Json => {
                let Failure { kind, hint, .. } = failure;
                let error = serde_json::json!({ "error": failure.to_string(), "hint": hint, "kind": kind });
                eprintln!("{error}");
            }
            Format::Table => {
                eprintln!("dog: {}", printable(&failure.to_string()));
                if !failure.hint.is_empty() {
                    eprintln!("hint: {}", printable(&failure.hint));
                }
            }
        }
    }

    fn stderr(&self, kind: &'static str, text: &str) {
        match self.format {
            Format::Json => eprintln!("{}", serde_json::json!({ kind: text })),
            Format::Table => eprintln!("{kind}: {}", printable(text)),
        }
    }

    /// Progress of a long piece of work, counted in bytes, or in whatever `template` says.
    pub(crate) fn progress(&self, template: &str) -> Bar {
        let shown = self.format == Format::Table && io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if shown {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Bar(bar)
    }
}

/// For work that is counted in bytes.
pub(crate) const BYTES: &str =
    "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {msg}";
/// For work that is counted in things.
pub(crate) const THINGS: &str = "{wide_bar} {pos}/{len} {eta} {msg}";

/// A progress bar, which leaves the terminal when it is dropped.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn set(&self, done: u64, total: u64, message: &str) {
        self.0.set_length(total);
        self.0.set_position(done);
        if !message.is_empty() {
            self.0.set_message(printable(message));
        }
    }

    /// Bytes if there are any to count, else objects.
    pub(crate) fn update(&self, progress: &Progress) {
        match progress.bytes_total {
            0 => self.set(progress.objects_done, progress.objects_total, ""),
            total => {
                let objects = format!("{}/{} objects", progress.objects_done, progress.objects_total);
                self.set(progress.bytes_done, total, &objects);
            }
        }
    }

    /// Runs `print` without the bar in its way.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What a terminal would act on, or not show, is shown as a replacement: names, hosts and messages come from
/// elsewhere.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_unseen(c) { '\u{fffd}' } else { c }).collect()
}

/// The longest name in a table, in characters: one line holds it and what stands beside it.
const NAME_SHOWN: usize = 48;
/// So many of them from its end, where names that a program makes tend to differ.
const NAME_END: usize = 15;

/// A name as a table shows it: cut in the middle if it is long. JSON has all of it.
pub(crate) fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= NAME_SHOWN {
        return name.to_owned();
    }
    let begin: String = name.chars().take(NAME_SHOWN - NAME_END - 1).collect();
    let end: String = name.chars().skip(count - NAME_END).collect();
    format!("{begin}…{end}")
}

fn lines(table: Builder) -> Result<(), Failure> {
    let mut table = table.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    print(&text)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match written {
        // The reader has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(stdout_failed),
    }
}

fn stdout_failed(error: io::Error) -> Failure {
    Failure::io("cannot write to stdout")(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_in_the_middle() {
        for whole in ["my-disk".to_owned(), "x".repeat(48), "ä".repeat(48)] {
            assert_eq!(shortened(&whole), whole);
        }
        let cut = shortened(&format!("begin{}end", "ö".repeat(200)));
        assert_eq!(cut.chars().count(), 48);
        assert!(cut.starts_with("begin") && cut.contains("ö…ö") && cut.ends_with("end"), "{cut}");
    }

    #[test]
    fn what_a_terminal_would_act_on_is_replaced() {
        assert_eq!(printable("a\u{1b}[31m\u{202e}b"), "a\u{fffd}[31m\u{fffd}b");
    }
}
