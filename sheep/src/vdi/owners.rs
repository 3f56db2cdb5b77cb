//! The owners on this node: made when the log gives this session a VDI, released when nobody needs them.
//!
//! Called by [`crate::gateway`]; one task per owner does its housekeeping.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::frame::Payload;
use wire::id::{Generation, Session, VdiId};
use wire::peer::{AnsweredReply, AnsweredRequest, Status, op};

use super::context::{Context, RETRY_DELAY};
use super::owner::Owner;
use crate::cluster::entry::ClusterEntry;
use crate::cluster::log::ProposeError;
use crate::peer::Class;

/// How often an owner looks after itself.
const HOUSEKEEPING: Duration = Duration::from_millis(250);
/// How often gateways are asked that have not said that they have answered their requests.
const QUIET: Duration = Duration::from_secs(1);
/// How long they may take to say it.
const ASK_PATIENCE: Duration = Duration::from_millis(300);
/// How long nobody may have had a VDI open before it is released.
const IDLE: Duration = Duration::from_secs(2);
/// How long a planned change of owner may hold requests up before it is called off.
const DRAIN_PATIENCE: Duration = Duration::from_millis(300);
/// How long to wait for the log with something that can be tried again.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// The owners on this node.
pub(crate) struct Owners {
    context: Arc<Context>,
    owners: Mutex<HashMap<VdiId, Arc<Owner>>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Owners {
    pub(crate) fn new(context: Arc<Context>, tasks: TaskTracker, cancel: CancellationToken) -> Arc<Self> {
        let owners = Arc::new(Self { context, owners: Mutex::default(), tasks, cancel });
        owners.tasks.spawn(owners.clone().follow());
        owners
    }

    /// Takes over at once what the log gives to this session: copies that catch up wait for that, whether a
    /// client asks for anything or not.
    async fn follow(self: Arc<Self>) {
        let mut applied = self.context.view.subscribe();
        let mut seen = 0;
        loop {
            let state = applied.borrow_and_update().state.clone();
            if state.owners_changed() != seen {
                seen = state.owners_changed();
                let me = self.context.me();
                for vdi in state.vdis().filter(|v| v.owner.session == Some(me)) {
                    self.get(vdi.id);
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                changed = applied.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The owner of a VDI on this node, if the newest state says that this session owns it.
    pub(crate) fn get(self: &Arc<Self>, vdi: VdiId) -> Option<Arc<Owner>> {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get(&vdi).filter(|o| o.current().is_ok()) {
            return Some(owner.clone());
        }
        let state = self.context.view.state();
        let known = state.vdi(vdi).filter(|v| v.owner.session == Some(self.context.me()))?;
        let owner = Owner::new(self.context.clone(), known);
        owners.insert(vdi, owner.clone());
        drop(owners);
        let (all, serving) = (self.clone(), owner.clone());
        self.tasks.spawn(async move {
            let cancel = all.cancel.clone();
            tokio::select! {
                () = cancel.cancelled() => {}
                () = all.look_after(&serving) => {}
            }
            let mut owners = all.owners.lock();
            if owners.get(&serving.vdi).is_some_and(|o| Arc::ptr_eq(o, &serving)) {
                owners.remove(&serving.vdi);
            }
        });
        Some(owner)
    }

    /// The owner for a generation, if it is on this node.
    pub(crate) fn get_generation(self: &Arc<Self>, vdi: VdiId, generation: Generation) -> Option<Arc<Owner>> {
        self.get(vdi).filter(|o| o.generation == generation)
    }

    /// All owners on this node.
    pub(crate) fn all(&self) -> Vec<Arc<Owner>> {
        self.owners.lock().values().cloned().collect()
    }

    async fn look_after(self: &Arc<Self>, owner: &Arc<Owner>) {
        if let Err(failure) = owner.take_over().await {
            tracing::info!(vdi = %owner.vdi, generation = %owner.generation, %failure, "did not take a VDI over");
            return;
        }
        let mut idle_since = tokio::time::Instant::now();
        let mut elsewhere_since = None;
        let mut asked_quiet = idle_since;
        while owner.current().is_ok() {
            tokio::time::sleep(HOUSEKEEPING).await;
            let Ok(state) = owner.current() else { break };
            if !owner.untold(&state).is_empty()
                && let Err(failure) = owner.tell_settled().await
            {
                tracing::debug!(vdi = %owner.vdi, %failure, "not everybody knows of the takeover");
            }
            for number in owner.clients.retain_gateways(|s| state.is_live(s), |p| state.may_return(p)) {
                owner.stability.end(number);
            }
            if asked_quiet.elapsed() >= QUIET {
                asked_quiet = tokio::time::Instant::now();
                self.ask_quiet_gateways(owner).await;
            }
            owner.forget_inherited(|id| {
                !state.may_return(id.process()) || id.number < owner.clients.answered(id)
            });
            if let Err(failure) = owner.reclaim().await {
                tracing::debug!(vdi = %owner.vdi, %failure, "objects that hold nothing stay for now");
            }
            if owner.has_doomed()
                && let Err(failure) = owner.flush().await
            {
                tracing::debug!(vdi = %owner.vdi, %failure, "could not flush before removing objects");
            }
            for object in owner.take_damaged() {
                let healed = owner.with_object_alone(&object, async || owner.heal(object).await).await;
                if let Err(failure) = healed {
                    tracing::warn!(vdi = %owner.vdi, object = %object.oid(), %failure, "could not heal an object");
                }
            }
            let connections = owner.clients.connections();
            let now = tokio::time::Instant::now();
            if !connections.is_empty() {
                idle_since = now;
            } else if now - idle_since >= IDLE && self.release(owner, None).await {
                break;
            }
            // The last client here has gone and others are elsewhere: the VDI follows them.
            let here = connections.iter().any(|c| Session::from(c.gateway) == self.context.me());
            let first = connections.iter().map(|c| Session::from(c.gateway)).min();
            elsewhere_since = first.filter(|_| !here).map(|to| elsewhere_since.unwrap_or((now, to)));
            if let Some((since, to)) = elsewhere_since
                && now - since >= IDLE
            {
                if self.release(owner, Some(to)).await {
                    break;
                }
                elsewhere_since = None;
            }
        }
    }

    /// Asks gateways that may still send requests again whether they will: one that has nothing more to say
    /// would keep the owner, and so every copy, from ever forgetting a write.
    async fn ask_quiet_gateways(&self, owner: &Arc<Owner>) {
        let mut quiet = owner.inherited_from();
        quiet.extend(owner.clients.unanswered());
        let ask = |process: Session| async move {
            let below = self.answered_below(owner.vdi, process).await?;
            let freed = owner.clients.note_answered(process, below);
            freed.into_iter().for_each(|number| owner.stability.end(number));
            Some(())
        };
        futures::future::join_all(quiet.into_iter().map(ask)).await;
    }

    async fn answered_below(&self, vdi: VdiId, process: Session) -> Option<u64> {
        let context = &self.context;
        if process.node == context.me().node {
            let own = process.start == context.identity.process;
            return own.then(|| context.requests.answered_below(vdi));
        }
        let meta = AnsweredRequest { process: process.start, vdi: vdi.0 }.encode_to_vec().into();
        let (node, wait) = (process.node, Some(ASK_PATIENCE));
        let call = context.peers.call(node, Class::Forward, op::ANSWERED, meta, Payload::empty(), wait);
        let reply = call.await.ok().filter(|r| r.status == Status::Ok as u16)?;
        AnsweredReply::decode(reply.meta).ok().map(|r| r.below)
    }

    /// Gives a VDI up, perhaps to another session. False if requests did not end in time, or the log did
    /// not take it.
    pub(crate) async fn release(&self, owner: &Arc<Owner>, to: Option<Session>) -> bool {
        if !owner.is_serving() {
            return false;
        }
        let used = match to {
            None => owner.count_used().await.ok(),
            Some(_) => None,
        };
        let Some(_drained) = owner.drain(DRAIN_PATIENCE).await else { return false };
        if to.is_none() && !owner.clients.connections().is_empty() {
            return false;
        }
        owner.set_released();
        let entry = ClusterEntry::Release { vdi: owner.vdi, generation: owner.generation, to, used };
        loop {
            match self.context.log.propose(entry.clone(), LOG_PATIENCE).await {
                Ok((index, _)) => {
                    self.context.view.reaches(index).await;
                    return true;
                }
                Err(error @ (ProposeError::NoLeader | ProposeError::Refused(_))) => {
                    tracing::debug!(vdi = %owner.vdi, %error, "a VDI could not be released yet");
                    owner.unset_released();
                    return false;
                }
                // It may have been applied, and somebody else may own the VDI: nothing is served here until
                // that is known. Proposed twice, it is refused the second time.
                Err(error) => {
                    tracing::debug!(vdi = %owner.vdi, %error, "whether a VDI was released is not known yet");
                    if owner.current().is_err() {
                        return true;
                    }
                    self.context.view.change(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Gives up all VDIs, to gateways that have them open where there are such.
    pub(crate) async fn release_all(&self) {
        let release = |owner: Arc<Owner>| async move {
            let to = owner
                .clients
                .connections()
                .iter()
                .map(|c| Session::from(c.gateway))
                .filter(|s| *s != self.context.me())
                .min();
            if !self.release_now(&owner, to).await {
                tracing::warn!(vdi = %owner.vdi, "a VDI was not released in order; its next owner settles it");
            }
        };
        futures::future::join_all(self.all().into_iter().map(release)).await;
    }

    async fn release_now(&self, owner: &Arc<Owner>, to: Option<Session>) -> bool {
        if !owner.is_serving() {
            return false;
        }
        let Some(_drained) = owner.drain(DRAIN_PATIENCE).await else { return false };
        owner.set_released();
        let entry = ClusterEntry::Release { vdi: owner.vdi, generation: owner.generation, to, used: None };
        self.context.log.propose(entry, LOG_PATIENCE).await.is_ok()
    }
}
