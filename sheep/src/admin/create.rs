//! Creating and deleting VDIs.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;
use wire::admin::{AdminError, CreateVdiRequest, DeleteVdiReply, DeleteVdiRequest, ErrorKind, VdiReply};
use wire::id::{NodeId, VdiId};
use wire::name::VdiName;
use wire::policy::Copies;
use wire::size::VdiSize;

use super::list::shown;
use super::{Admin, LOG_PATIENCE, NODES_AT_ONCE, error, nodes, request};
use crate::cluster::entry::{ClusterEntry, ClusterReply, Refusal};
use crate::cluster::log::ProposeError;
use crate::cluster::state::{ClusterState, NodeStatus, Vdi};
use crate::machine::wall_ms;

/// How long creation waits for every sheep to export the VDI; who is slower does so when it has caught up.
const EXPORTED_PATIENCE: Duration = Duration::from_secs(2);
/// First and longest pause between asking a sheep how far it is.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(5));
/// By how much the clocks of a client and a sheep may differ before the sheep believes its own.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(600);
/// How often a creation of unknown outcome is proposed again, under the same name and time.
const ATTEMPTS: usize = 3;

/// What is to be created. Together with the name, the time makes it this creation and no other.
#[derive(Clone)]
struct Wanted {
    name: VdiName,
    size: u64,
    copies: Option<Copies>,
    now: u64,
}

impl Wanted {
    /// Whether this creation made the VDI.
    fn is(&self, vdi: &Vdi) -> bool {
        vdi.created_ms == self.now && vdi.size == self.size && self.copies.is_none_or(|c| c == vdi.copies)
    }
}

/// When a creation began by its client's clock, unless that is too wrong to be shown as the VDI's time.
fn began(client_ms: u64, now_ms: u64) -> Option<u64> {
    let apart = Duration::from_millis(client_ms.abs_diff(now_ms));
    (client_ms != 0 && apart <= CLOCKS_APART_MAX).then_some(client_ms)
}

/// Whether so many copies can ever be had.
fn enough_nodes(state: &ClusterState, copies: Copies) -> Result<(), AdminError> {
    let storing = state.nodes().filter(|n| !n.spec.gateway && n.status != NodeStatus::Out).count();
    if usize::from(copies.get()) <= storing {
        return Ok(());
    }
    Err(AdminError::new(
        ErrorKind::Refused,
        format!(
            "{copies} copies need {copies} nodes, and {storing} {} there",
            if storing == 1 { "is" } else { "are" }
        ),
    )
    .hint(format!("use -c {} or add sheep", storing.max(1))))
}

impl Admin {
    /// Creates a VDI and waits until every sheep exports it.
    pub(super) async fn create_vdi(&self, request: CreateVdiRequest) -> Result<VdiReply, AdminError> {
        let name = request::new_name(&request.name)?;
        let size = VdiSize::new(request.size).map_err(|e| error::bad_size(&e))?.bytes();
        let copies = request::copies(request.copies)?;
        let state = self.gateway.context.view.state();
        request::formatted(&state)?;
        let began = began(request.began_ms, wall_ms());
        let wanted = Wanted { name, size, copies, now: began.unwrap_or_else(wall_ms) };
        let again = request.again && began.is_some();
        let (index, id) = match state.vdi_named(&wanted.name) {
            Some(vdi) if again && wanted.is(vdi) => (self.gateway.context.view.applied().index, vdi.id),
            Some(_) => return Err(Refusal::NameTaken(wanted.name).into()),
            None => {
                if let Some(copies) = copies {
                    enough_nodes(&state, copies)?;
                }
                self.log_creation(wanted, again).await?
            }
        };
        self.await_exported(index).await;
        let state = self.gateway.context.view.state();
        let vdi = state.vdi(id).ok_or_else(|| AdminError::from(Refusal::NoSuchVdi(id)))?;
        Ok(VdiReply { view: self.view(), vdi: Some(shown(vdi, None)) })
    }

    /// Has the log create the VDI, once: if an answer is lost it is asked again, and a VDI of that name with
    /// this creation's own time is this creation's. `again`: an answer may have been lost before.
    async fn log_creation(&self, wanted: Wanted, again: bool) -> Result<(u64, VdiId), AdminError> {
        let Wanted { name, size, copies, now } = wanted.clone();
        let entry = ClusterEntry::CreateVdi { name: name.clone(), size, copies, now_ms: now };
        let context = &self.gateway.context;
        let mut unknown = None;
        for _ in 0..ATTEMPTS {
            match context.log.propose(entry.clone(), LOG_PATIENCE / ATTEMPTS as u32).await {
                Ok((index, reply)) => {
                    let applied = context.view.reaches(index);
                    let _in_time = tokio::time::timeout(super::APPLY_PATIENCE, applied).await;
                    let state = context.view.state();
                    let ours = state.vdi_named(&name).filter(|v| wanted.is(v));
                    return match (reply, ours) {
                        (ClusterReply::Created(id), _) => Ok((index, id)),
                        (ClusterReply::Refused(Refusal::NameTaken(_)), Some(vdi))
                            if again || unknown.is_some() =>
                        {
                            Ok((index, vdi.id))
                        }
                        (ClusterReply::Refused(refusal), _) => Err(refusal.into()),
                        (reply, _) => {
                            let what = format!("creation was answered with {reply:?}");
                            Err(AdminError::new(ErrorKind::Unspecified, what))
                        }
                    };
                }
                Err(error @ (ProposeError::Timeout | ProposeError::Uncertain(_))) => unknown = Some(error),
                // With an attempt before it that may yet be applied, nothing is certain.
                Err(ProposeError::NoLeader) if unknown.is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(unknown.unwrap_or(ProposeError::NoLeader).into())
    }

    /// Waits until every live sheep has applied the entry at `index`, but not for long.
    async fn await_exported(&self, index: u64) {
        let state = self.gateway.context.view.state();
        let me = self.host.spec().session.node;
        let others = nodes::up(&state).into_iter().filter(|id| *id != me);
        let all: Vec<BoxFuture<'_, ()>> = others.map(|id| self.await_applied(id, index).boxed()).collect();
        let all = futures::stream::iter(all).buffer_unordered(NODES_AT_ONCE).collect::<()>();
        if tokio::time::timeout(EXPORTED_PATIENCE, all).await.is_err() {
            tracing::info!(index, "a new VDI is not exported by every sheep yet");
        }
    }

    async fn await_applied(&self, node: NodeId, index: u64) {
        let (mut pause, longest) = POLL;
        let until = Instant::now() + EXPORTED_PATIENCE;
        while Instant::now() < until {
            let status = self.host.node_status(node).await;
            if status.is_some_and(|s| s.applied >= index) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Deletes a VDI that nobody has open.
    pub(super) async fn delete_vdi(&self, ask: DeleteVdiRequest) -> Result<DeleteVdiReply, AdminError> {
        let name = ask.name.as_str();
        let found = request::vdi(&self.gateway.context.view.state(), name);
        let vdi = match found {
            Err(error) if ask.again && error.kind == ErrorKind::NotFound => {
                // Gone is gone, but this sheep may not have heard of the VDI yet.
                self.gateway.context.log.read_barrier(LOG_PATIENCE).await.map_err(|e| error::unsure(&e))?;
                match request::vdi(&self.gateway.context.view.state(), name) {
                    Err(error) if error.kind == ErrorKind::NotFound => {
                        return Ok(DeleteVdiReply { view: self.view() });
                    }
                    found => found?,
                }
            }
            found => found?,
        };
        let (open, unanswered) = self.connections(vdi.id, "", false).await;
        if let Some(node) = unanswered.first() {
            let state = self.gateway.context.view.state();
            return Err(self.silent(&state, *node));
        }
        let mut clients: Vec<String> = open.into_iter().map(|c| c.connection.client).collect();
        if clients.is_empty()
            && let Err(connections) = self.gateway.release(vdi.id).await
        {
            clients = connections.into_iter().map(|c| c.client).collect();
            if clients.is_empty() {
                let why = format!("VDI {name} is not let go of by its owner");
                return Err(AdminError::new(ErrorKind::Unavailable, why).hint("try again in a moment"));
            }
        }
        if !clients.is_empty() {
            clients.sort();
            let why = format!("VDI {name} is open: {}", clients.join(", "));
            return Err(AdminError::new(ErrorKind::Refused, why)
                .hint("close it there; `dog vdi lock list` shows who has it, and `unlock` cuts them off"));
        }
        match self.propose(ClusterEntry::DeleteVdi { vdi: vdi.id }).await {
            Ok(_) => {}
            // An earlier attempt whose answer was lost: gone is gone.
            Err(_) if self.gateway.context.view.state().is_deleted(vdi.id) => {}
            Err(error) => return Err(error),
        }
        Ok(DeleteVdiReply { view: self.view() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::tests::{apply, founded};
    use super::*;

    #[test]
    fn a_vdi_is_a_creations_own_if_all_of_it_and_the_time_agree() {
        let name: VdiName = "v".parse().expect("a name");
        let wanted = Wanted { name: name.clone(), size: 512, copies: None, now: 7 };
        let create = ClusterEntry::CreateVdi { name: name.clone(), size: 512, copies: None, now_ms: 7 };
        let state = apply(founded(3, 3), &create);
        let vdi = state.vdi_named(&name).expect("created");
        let copies = |n| Copies::new(n).ok();
        assert!(wanted.is(vdi) && Wanted { copies: copies(3), ..wanted.clone() }.is(vdi));
        let others = [
            Wanted { now: 8, ..wanted.clone() },
            Wanted { size: 1024, ..wanted.clone() },
            Wanted { copies: copies(2), ..wanted },
        ];
        assert!(others.iter().all(|other| !other.is(vdi)));
    }

    #[test]
    fn a_clients_clock_is_believed_if_it_is_about_right() {
        let now = 1_800_000_000_000;
        assert_eq!(began(0, now), None, "not told");
        assert_eq!(
            (began(now - 600_000, now), began(now + 600_000, now)),
            (Some(now - 600_000), Some(now + 600_000))
        );
        assert_eq!((began(now - 600_001, now), began(u64::MAX, now), began(1, now)), (None, None, None));
    }

    #[test]
    fn more_copies_than_nodes_are_refused_with_what_is_possible() {
        let copies = |n| Copies::new(n).expect("in range");
        assert_eq!(enough_nodes(&founded(3, 3), copies(3)), Ok(()));
        let error = enough_nodes(&founded(3, 3), copies(4)).expect_err("three nodes");
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.hint.contains("-c 3"), "{}", error.hint);
    }
}
