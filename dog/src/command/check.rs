//! Shows what a check finds, of the ring or of a VDI.

use serde::Serialize;
use wire::admin::check_event::Event;
use wire::admin::{CheckEvent, CheckSummary, Finding, FindingKind, Severity};
use wire::client::Events;
use wire::size::{HumanBytes, count as counted};

use crate::exit::{Exit, Failure, Kind};
use crate::output::{BYTES, Output};

use super::node_id;

/// The most findings kept for a JSON document, which is printed at the end.
const FINDINGS_MAX: usize = 100_000;
/// The most reasons for which slots are told apart; beyond it they are only counted.
const REASONS_MAX: usize = 100;
/// Slots that are named of those that lack the same.
const SLOTS_NAMED: usize = 5;

#[derive(Debug, Serialize)]
struct Report {
    status: &'static str,
    slots: u64,
    slots_degraded: u64,
    objects: u64,
    objects_degraded: u64,
    objects_damaged: u64,
    repaired: u64,
    bytes_read: u64,
    possibly_stale: bool,
    findings: Vec<FindingView>,
    findings_left_out: u64,
}

#[derive(Debug, Serialize)]
struct FindingView {
    severity: &'static str,
    kind: &'static str,
    text: String,
    copies: Option<u32>,
    slot: Option<u32>,
    vdi: Option<String>,
    oid: Option<String>,
    node: Option<String>,
    repaired: bool,
}

impl From<Finding> for FindingView {
    fn from(finding: Finding) -> Self {
        let given = |text: String| (!text.is_empty()).then_some(text);
        let slot = (finding.copies != 0).then_some(finding.slot);
        Self {
            severity: severity(finding.severity()),
            kind: match finding.kind() {
                FindingKind::Unspecified => "other",
                FindingKind::TooFewCopies => "too_few_copies",
                FindingKind::SharedZone => "shared_zone",
                FindingKind::NoCopy => "no_copy",
                FindingKind::Missing => "missing",
                FindingKind::Checksum => "checksum",
                FindingKind::Differs => "differs",
                FindingKind::Orphan => "orphan",
                FindingKind::Unreadable => "unreadable",
                FindingKind::Map => "map",
                FindingKind::NoMajority => "no_majority",
            },
            text: finding.text,
            copies: slot.and(Some(finding.copies)),
            slot,
            vdi: given(finding.vdi),
            oid: given(finding.oid),
            node: node_id(finding.node),
            repaired: finding.repaired,
        }
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Unspecified | Severity::Note => "note",
        Severity::Degraded => "degraded",
        Severity::Damaged => "damaged",
    }
}

/// Follows a check to its end. The exit status is that of the worst finding left.
pub(super) async fn follow(
    what: &str,
    mut events: Events<CheckEvent>,
    output: &Output,
) -> Result<Exit, Failure> {
    let bar = output.progress(BYTES);
    let mut findings = Vec::new();
    let mut left_out = 0;
    let mut slots = Slots::default();
    let summary = loop {
        let event = events.next().await.map_err(Failure::client(what))?;
        match event.map(|event| event.event) {
            Some(Some(Event::Progress(progress))) => bar.update(&progress),
            Some(Some(Event::Finding(finding))) => {
                let finding = FindingView::from(finding);
                if !output.is_json() {
                    match finding.slot.filter(|_| finding.vdi.is_none() && finding.oid.is_none()) {
                        Some(slot) => slots.add(finding, slot),
                        None => bar.suspend(|| output.line(&sentence(&finding)))?,
                    }
                } else if findings.len() < FINDINGS_MAX {
                    findings.push(finding);
                } else {
                    left_out += 1;
                }
            }
            Some(Some(Event::Summary(summary))) => break summary,
            // An event of a newer sheep.
            Some(None) => {}
            None => {
                let why = "the check ended before its summary";
                return Err(Failure::new(Kind::Other, what, why).hint("run it again"));
            }
        }
    };
    drop(bar);
    for line in slots.lines() {
        output.line(&line)?;
    }
    output.view(summary.view.as_ref());
    let stale = summary.view.is_some_and(|view| view.possibly_stale);
    let exit = verdict(summary.worst(), stale);
    let status = status(&summary, stale);
    let text = text(status, &summary);
    let report = Report {
        status,
        slots: summary.slots,
        slots_degraded: summary.slots_degraded,
        objects: summary.objects,
        objects_degraded: summary.objects_degraded,
        objects_damaged: summary.objects_damaged,
        repaired: summary.repaired,
        bytes_read: summary.bytes_read,
        possibly_stale: stale,
        findings,
        findings_left_out: left_out,
    };
    output.done(&text, &report)?;
    Ok(exit)
}

/// Slots that lack something, summed up by what it is.
#[derive(Default)]
struct Slots {
    reasons: Vec<Reason>,
    /// With other reasons than those.
    others: u64,
}

/// Slots that lack the same.
struct Reason {
    severity: &'static str,
    text: String,
    copies: u32,
    count: u64,
    first: Vec<u32>,
}

impl Slots {
    fn add(&mut self, finding: FindingView, slot: u32) {
        let copies = finding.copies.unwrap_or_default();
        let same = |r: &Reason| (r.severity, r.copies, &r.text) == (finding.severity, copies, &finding.text);
        let at = match self.reasons.iter().position(same) {
            Some(at) => at,
            None if self.reasons.len() < REASONS_MAX => {
                let FindingView { severity, text, .. } = finding;
                self.reasons.push(Reason { severity, text, copies, count: 0, first: Vec::new() });
                self.reasons.len() - 1
            }
            None => {
                self.others += 1;
                return;
            }
        };
        let reason = &mut self.reasons[at];
        reason.count += 1;
        if reason.first.len() < SLOTS_NAMED {
            reason.first.push(slot);
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.reasons.iter().map(Reason::line).collect();
        if self.others > 0 {
            lines.push(format!("{} more slots, each with a reason of its own: see -o json", self.others));
        }
        lines
    }
}

impl Reason {
    fn line(&self) -> String {
        let Self { severity, text, copies, count, .. } = self;
        let of = counted(*copies, "copy", "copies");
        let mut named: Vec<String> = self.first.iter().map(u32::to_string).collect();
        if *count == 1 {
            return format!("{severity}: slot {} of {of}: {text}", named.concat());
        }
        if *count > named.len() as u64 {
            named.push("…".to_owned());
        }
        format!("{severity}: {count} slots of {of}: {text} (slots {})", named.join(", "))
    }
}

/// A sheep that is cut off cannot know that redundancy is full, so it never makes a check succeed.
fn verdict(worst: Severity, stale: bool) -> Exit {
    let exit = Exit::from(worst);
    if stale { exit.max(Exit::Refused) } else { exit }
}

fn status(summary: &CheckSummary, stale: bool) -> &'static str {
    match summary.worst() {
        Severity::Damaged => "damaged",
        Severity::Degraded => "degraded",
        _ if stale => "unconfirmed",
        _ => "clean",
    }
}

fn sentence(finding: &FindingView) -> String {
    let subject = match (&finding.vdi, &finding.oid) {
        (Some(vdi), Some(oid)) => format!("{vdi}: object {oid}: "),
        (Some(vdi), None) => format!("{vdi}: "),
        (None, Some(oid)) => format!("object {oid}: "),
        (None, None) => String::new(),
    };
    let repaired = if finding.repaired { " [repaired]" } else { "" };
    format!("{}: {subject}{}{repaired}", finding.severity, finding.text)
}

fn text(status: &str, summary: &CheckSummary) -> String {
    let mut parts = Vec::new();
    // A check of one VDI looks at no slots.
    if summary.slots > 0 {
        parts.push(format!("{} of {} slots below full redundancy", summary.slots_degraded, summary.slots));
    }
    if summary.objects > 0 || summary.slots == 0 {
        parts.push(format!(
            "{}, {} degraded, {} damaged, {} repaired",
            counted(summary.objects, "object", "objects"),
            summary.objects_degraded,
            summary.objects_damaged,
            summary.repaired
        ));
    }
    if summary.bytes_read > 0 {
        parts.push(format!("{} read", HumanBytes(summary.bytes_read)));
    }
    format!("{status}: {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheep_that_is_cut_off_never_says_that_all_is_well() {
        assert_eq!(verdict(Severity::Note, false), Exit::Done);
        assert_eq!(verdict(Severity::Note, true), Exit::Refused);
        assert_eq!(verdict(Severity::Damaged, true), Exit::Damage);
    }
}
