//! Decoding what every request has: names, ids, the view that an answer was made from.

use wire::admin::{self, AdminError};
use wire::id::NodeId;
use wire::name::VdiName;
use wire::policy::Copies;

use super::{Admin, error};
use crate::cluster::entry::Refusal;
use crate::cluster::state::{ClusterState, Format, Vdi};

/// What the ring was founded with, if it was.
pub(super) fn formatted(state: &ClusterState) -> Result<&Format, AdminError> {
    state.format().ok_or_else(|| Refusal::NotFormatted.into())
}

/// A VDI's name.
pub(super) fn name(text: &str) -> Result<VdiName, AdminError> {
    text.parse().map_err(|e| error::bad_name(&e))
}

/// The name of a VDI that is to be made.
pub(super) fn new_name(text: &str) -> Result<VdiName, AdminError> {
    VdiName::new_vdi(text).map_err(|e| error::bad_name(&e))
}

/// A number of copies; `None` for 0, which is the default.
pub(super) fn copies(count: u32) -> Result<Option<Copies>, AdminError> {
    match count {
        0 => Ok(None),
        _ => Copies::new(count.into()).map(Some).map_err(error::bad_copies),
    }
}

/// The VDI of a name.
pub(super) fn vdi(state: &ClusterState, text: &str) -> Result<Vdi, AdminError> {
    formatted(state)?;
    state.vdi_named(&name(text)?).cloned().ok_or_else(|| error::no_vdi(text))
}

impl Admin {
    /// The view that an answer is made from now.
    pub(super) fn view(&self) -> Option<admin::View> {
        let applied = self.gateway.context.view.applied();
        Some(admin::View {
            applied_index: applied.index,
            epoch: applied.state.epoch().0,
            possibly_stale: !self.host.view_is_fresh(),
        })
    }

    /// The node that a request means; 0 is the one asked.
    pub(super) fn node_meant(&self, node: u64) -> NodeId {
        if node == 0 { self.host.spec().session.node } else { NodeId(node) }
    }
}
