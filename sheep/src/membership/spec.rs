//! Nodes' descriptions: as the log has them, and as introductions carry them.

use std::net::{IpAddr, SocketAddr};

use wire::id::{ClusterId, Session};
use wire::peer::NodeInfo;

use crate::cluster::entry::{NodeSpec, Reached};

pub(super) fn bytes_of(cluster: ClusterId) -> Vec<u8> {
    cluster.0.to_be_bytes().to_vec()
}

pub(super) fn info_of(spec: &NodeSpec) -> NodeInfo {
    NodeInfo {
        session: spec.session.into(),
        boot: spec.boot.to_be_bytes().to_vec(),
        admin: spec.admin.clone(),
        mesh: spec.mesh.clone(),
        zone: spec.zone.clone(),
        vnodes: spec.vnodes,
        gateway: spec.gateway,
        process: spec.process,
        nonce: spec.nonce,
        reached: Vec::new(),
        cluster: Vec::new(),
    }
}

/// A node's description, if it is complete and within bounds.
pub(super) fn spec_of(info: &NodeInfo) -> Option<NodeSpec> {
    let session = Session::from(info.session);
    let boot = u128::from_be_bytes(info.boot.as_slice().try_into().ok()?);
    let sound = session.node.0 != 0
        && session.start > 0
        && info.reached.len() <= crate::identity::REACHED_MAX
        && !info.zone.is_empty()
        && info.zone.len() <= 255
        && (1..=crate::placement::MAX_VNODES_PER_NODE).contains(&info.vnodes)
        && info.mesh.parse::<SocketAddr>().is_ok()
        && info.admin.parse::<SocketAddr>().is_ok();
    sound.then(|| NodeSpec {
        session,
        process: info.process,
        nonce: info.nonce,
        boot,
        admin: info.admin.clone(),
        mesh: info.mesh.clone(),
        zone: info.zone.clone(),
        vnodes: info.vnodes,
        gateway: info.gateway,
        reached: info.reached.iter().map(|r| Reached { before: r.before, index: r.index }).collect(),
    })
}

/// An address that others can use: where its owner listens on all interfaces, the one it spoke from.
pub(super) fn reachable(address: &str, from: IpAddr) -> String {
    match address.parse::<SocketAddr>() {
        Ok(a) if a.ip().is_unspecified() => SocketAddr::new(from, a.port()).to_string(),
        _ => address.to_owned(),
    }
}
