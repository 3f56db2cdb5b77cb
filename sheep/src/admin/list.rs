//! VDIs as they are shown: the list and one in full.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use wire::admin::{self, AdminError, BATCH_LEN_MAX, ListVdisReply, VdiInfo};

use super::stream::{Ended, Sink};
use super::{Admin, request};
use crate::cluster::state::{OBJECT_SIZE, Vdi};
use crate::nbd::IoError;

/// Owners asked at once.
const OWNERS_AT_ONCE: usize = 32;
/// How long reading the object map for `info` may take; then what the cluster state knows is shown.
const MAP_PATIENCE: Duration = Duration::from_secs(5);

/// What the object map says of a VDI.
#[derive(Debug, Default)]
struct MapFigures {
    objects: u64,
    degraded: u64,
    pages: u64,
}

/// A VDI as it is shown; `used` objects if its owner has counted them.
pub(super) fn shown(vdi: &Vdi, used: Option<u64>) -> admin::Vdi {
    admin::Vdi {
        id: vdi.id.0,
        name: vdi.name.to_string(),
        size: vdi.size,
        used: used.unwrap_or(vdi.used_objects).saturating_mul(u64::from(OBJECT_SIZE)),
        copies: vdi.copies.get().into(),
        min_copies: vdi.min_copies.into(),
        owner: vdi.owner.session.map_or(0, |s| s.node.0),
        created_ms: vdi.created_ms,
    }
}

impl Admin {
    /// All VDIs by name, in batches.
    pub(super) async fn list_vdis(&self, sink: &Sink<ListVdisReply>) -> Result<(), Ended> {
        let state = self.gateway.context.view.state();
        let view = self.view();
        let mut vdis: Vec<&Vdi> = state.vdis().collect();
        vdis.sort_by(|a, b| a.name.cmp(&b.name));
        if vdis.is_empty() {
            return sink.send(ListVdisReply { view, vdis: Vec::new() }).await;
        }
        for batch in vdis.chunks(BATCH_LEN_MAX) {
            let show = |vdi: Vdi| async move {
                let used = match vdi.owner.session {
                    Some(_) => self.gateway.owner_info(vdi.id).await.and_then(|i| i.used_objects),
                    None => None,
                };
                shown(&vdi, used)
            };
            let all: Vec<BoxFuture<'_, admin::Vdi>> =
                batch.iter().map(|vdi| show((*vdi).clone()).boxed()).collect();
            let vdis = futures::stream::iter(all).buffered(OWNERS_AT_ONCE).collect().await;
            sink.send(ListVdisReply { view, vdis }).await?;
        }
        Ok(())
    }

    /// One VDI in full.
    pub(super) async fn vdi_info(&self, name: &str) -> Result<VdiInfo, AdminError> {
        self.host.view_settles().await;
        let vdi = request::vdi(&self.gateway.context.view.state(), name)?;
        let (open, _) = self.connections(vdi.id, "", false).await;
        let figures = match vdi.root {
            // Nothing was ever allocated, unless its owner is about to.
            None => Some(MapFigures::default()),
            Some(_) => {
                tokio::time::timeout(MAP_PATIENCE, self.map_figures(&vdi)).await.ok().and_then(Result::ok)
            }
        };
        let used = figures.as_ref().map(|f| f.objects);
        let figures = figures.unwrap_or(MapFigures { objects: vdi.used_objects, ..MapFigures::default() });
        let state = self.gateway.context.view.state();
        let now = state.vdi(vdi.id).unwrap_or(&vdi);
        Ok(VdiInfo {
            view: self.view(),
            vdi: Some(shown(now, used)),
            family: vdi.id.0,
            generation: now.owner.generation.0,
            objects_allocated: figures.objects,
            map_pages: figures.pages,
            connections: open.len() as u64,
            objects_degraded: figures.degraded,
        })
    }

    async fn map_figures(&self, vdi: &Vdi) -> Result<MapFigures, AdminError> {
        let open = self.open_vdi(&vdi.name).await?;
        let failed = |e: IoError| super::error::io(vdi.name.as_str(), e);
        let mut figures = MapFigures::default();
        let mut from = Some(0);
        while let Some(at) = from {
            let reply = open.objects(at, vdi.object_count(), at == 0).await.map_err(failed)?;
            let state = self.gateway.context.view.state();
            figures.pages = reply.pages.unwrap_or(figures.pages);
            figures.objects += reply.objects.len() as u64;
            let whole = |object: &&wire::peer::MappedObject| {
                let slot = state.slot_of(super::object::oid(object));
                state.slot(vdi.copies, slot).is_none_or(|c| state.is_fully_redundant(vdi.copies, c))
            };
            let degraded = reply.objects.len() - reply.objects.iter().filter(whole).count();
            figures.degraded += degraded as u64;
            from = reply.next.filter(|next| *next > at);
        }
        open.close().await;
        Ok(figures)
    }
}
