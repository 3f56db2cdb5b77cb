//! A check of VDIs: batch after batch at the owner, findings as they come, a summary at the end.

use std::time::Duration;

use wire::admin::{CheckEvent, CheckSummary, Finding, FindingKind, Progress, Severity, check_event};
use wire::peer::{CheckFinding, CheckFindingKind, CheckPhase, VdiCheckReply};
use wire::size::count;

use super::redundancy::worse;
use super::stream::{Ended, Sink};
use super::{Admin, error};
use crate::cluster::state::{OBJECT_SIZE, Vdi};
use crate::nbd::IoError;

/// How long one batch may take, which reads for half a second: longer than any failover.
const BATCH_PATIENCE: Duration = Duration::from_secs(60);
/// How long the search for orphans may take, which lists all that every node has of the VDI.
const ORPHANS_PATIENCE: Duration = Duration::from_secs(600);

/// What a check has come to so far.
#[derive(Default)]
pub(super) struct Tally {
    objects: u64,
    objects_expected: u64,
    degraded: u64,
    damaged: u64,
    repaired: u64,
    bytes: u64,
    worst: Option<Severity>,
}

impl Tally {
    /// So many objects are to be looked at, as far as is known.
    pub(super) fn expect(&mut self, objects: u64) {
        self.objects_expected = self.objects_expected.saturating_add(objects);
    }

    /// The worst that was not put right.
    pub(super) fn worst(&self) -> Severity {
        self.worst.unwrap_or(Severity::Note)
    }

    fn note(&mut self, finding: &Finding) {
        if finding.repaired {
            self.repaired += 1;
        } else {
            self.worst = Some(worse(self.worst(), finding.severity()));
        }
    }

    /// Counts a batch; findings of one object stand together.
    fn add(&mut self, vdi: &str, reply: &VdiCheckReply) -> Vec<Finding> {
        self.objects += reply.objects;
        self.bytes += reply.bytes;
        let all: Vec<Finding> = reply.findings.iter().map(|f| shown(vdi, f)).collect();
        for findings in all.chunk_by(|a, b| a.oid == b.oid) {
            findings.iter().for_each(|f| self.note(f));
            let open = findings.iter().filter(|f| !f.repaired).map(Finding::severity);
            match open.fold(Severity::Note, worse) {
                Severity::Damaged => self.damaged += 1,
                Severity::Degraded => self.degraded += 1,
                Severity::Note | Severity::Unspecified => {}
            }
        }
        all
    }

    fn progress(&self) -> Progress {
        let total = self.objects_expected.max(self.objects);
        Progress {
            objects_done: self.objects,
            objects_total: total,
            bytes_done: self.objects.saturating_mul(u64::from(OBJECT_SIZE)),
            bytes_total: total.saturating_mul(u64::from(OBJECT_SIZE)),
        }
    }

    /// The summary, on top of what is known of the slots.
    pub(super) fn summary(&self, slots: CheckSummary) -> CheckSummary {
        CheckSummary {
            worst: self.worst().into(),
            objects: self.objects,
            objects_degraded: self.degraded,
            objects_damaged: self.damaged,
            repaired: self.repaired,
            bytes_read: self.bytes,
            ..slots
        }
    }
}

/// A finding of an owner as it is shown.
fn shown(vdi: &str, found: &CheckFinding) -> Finding {
    let node = wire::id::NodeId(found.node);
    let oid = found.object.oid();
    let (kind, severity, text) = match found.kind() {
        CheckFindingKind::Damaged => {
            let text = match found.count {
                0 => format!("the file of the copy on {node} is not what it should be"),
                blocks => {
                    format!("the copy on {node} has {}", count(blocks, "damaged block", "damaged blocks"))
                }
            };
            (FindingKind::Checksum, Severity::Damaged, text)
        }
        CheckFindingKind::Missing => {
            (FindingKind::Missing, Severity::Damaged, format!("the copy on {node} is missing"))
        }
        CheckFindingKind::Differs => {
            (FindingKind::Differs, Severity::Damaged, "in-sync copies differ".to_owned())
        }
        CheckFindingKind::Orphan => {
            (FindingKind::Orphan, Severity::Note, format!("node {node} holds it and no map names it"))
        }
        CheckFindingKind::Degraded if found.count == 0 => {
            (FindingKind::NoCopy, Severity::Degraded, "no copy is there that may be read".to_owned())
        }
        CheckFindingKind::Degraded => {
            let text = format!("{} of {} copies are in sync", found.count, found.object.copies);
            (FindingKind::TooFewCopies, Severity::Degraded, text)
        }
        CheckFindingKind::Unreadable => {
            (FindingKind::Unreadable, Severity::Degraded, format!("the copy on {node} could not be read"))
        }
    };
    Finding {
        kind: kind.into(),
        severity: severity.into(),
        text,
        copies: found.object.copies,
        slot: found.object.slot,
        vdi: vdi.to_owned(),
        oid: oid.to_string(),
        node: found.node,
        repaired: found.repaired,
    }
}

impl Admin {
    /// Checks one VDI and ends with a summary.
    pub(super) async fn check_one(
        &self,
        sink: &Sink<CheckEvent>,
        vdi: &Vdi,
        repair: bool,
    ) -> Result<(), Ended> {
        let mut tally = Tally::default();
        let info = self.gateway.owner_info(vdi.id).await;
        tally.expect(info.and_then(|i| i.used_objects).unwrap_or(vdi.used_objects));
        self.check_vdi(sink, vdi, repair, &mut tally).await?;
        self.host.view_settles().await;
        let summary = CheckSummary { view: self.view(), ..tally.summary(CheckSummary::default()) };
        sink.send(CheckEvent { event: Some(check_event::Event::Summary(summary)) }).await
    }

    /// Checks one VDI, as a part of a larger check. It stays open meanwhile, so that it keeps its owner.
    pub(super) async fn check_vdi(
        &self,
        sink: &Sink<CheckEvent>,
        vdi: &Vdi,
        repair: bool,
        tally: &mut Tally,
    ) -> Result<(), Ended> {
        let open = self.open_vdi(&vdi.name).await?;
        for phase in [CheckPhase::Pages, CheckPhase::Objects, CheckPhase::Orphans] {
            let patience = if phase == CheckPhase::Orphans { ORPHANS_PATIENCE } else { BATCH_PATIENCE };
            let mut from = Some(0);
            while let Some(at) = from {
                // In a task of its own: a repair that was begun is not dropped half way.
                let checked = open.clone();
                let batch = self.tasks.spawn(async move { checked.check(phase, at, u64::MAX, repair).await });
                let reply = match tokio::time::timeout(patience, batch).await {
                    Ok(Ok(reply)) => reply.map_err(|e| error::io(vdi.name.as_str(), e))?,
                    Ok(Err(_)) => return Err(error::io(vdi.name.as_str(), IoError::Shutdown).into()),
                    Err(_) => return Err(self.waits(vdi).await.into()),
                };
                for finding in tally.add(vdi.name.as_str(), &reply) {
                    sink.send(CheckEvent { event: Some(check_event::Event::Finding(finding)) }).await?;
                }
                let progress = tally.progress();
                sink.send(CheckEvent { event: Some(check_event::Event::Progress(progress)) }).await?;
                // It goes on behind where it began, whatever the owner says: a check ends.
                from = reply.next.filter(|next| *next > at);
            }
        }
        open.close().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wire::peer::ObjectRef;

    use super::*;

    fn found(kind: CheckFindingKind, oid_low: u64, repaired: bool) -> CheckFinding {
        let object = ObjectRef { oid_low, copies: 3, ..ObjectRef::default() };
        CheckFinding { kind: kind.into(), object, node: 2, count: 1, repaired }
    }

    #[test]
    fn an_object_counts_once_and_by_its_worst_finding() {
        use CheckFindingKind::{Damaged, Degraded, Missing, Orphan};
        let mut tally = Tally::default();
        tally.expect(2);
        let findings = vec![found(Degraded, 1, false), found(Damaged, 1, false), found(Degraded, 2, false)];
        let shown = tally.add("v", &VdiCheckReply { findings, objects: 4, bytes: 9, next: None });
        assert_eq!(shown.len(), 3);
        let findings = vec![found(Missing, 3, true), found(Orphan, 4, false)];
        tally.add("v", &VdiCheckReply { findings, objects: 1, bytes: 1, next: None });
        let summary = tally.summary(CheckSummary { slots: 256, ..CheckSummary::default() });
        assert_eq!((summary.objects, summary.objects_damaged, summary.objects_degraded), (5, 1, 1));
        assert_eq!((summary.repaired, summary.bytes_read, summary.slots), (1, 10, 256));
        assert_eq!(summary.worst(), Severity::Damaged);
        assert_eq!(tally.progress().objects_total, 5, "never less than what is done");
    }

    #[test]
    fn a_check_in_which_all_was_put_right_is_clean() {
        let mut tally = Tally::default();
        let findings = vec![found(CheckFindingKind::Differs, 1, true)];
        tally.add("v", &VdiCheckReply { findings, objects: 1, bytes: 1, next: None });
        assert_eq!(tally.summary(CheckSummary::default()).worst(), Severity::Note);
    }
}
