//! VDIs as NBD exports.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wire::frame::Payload;
use wire::name::ExportName;
use wire::size::count;

use super::{Done, Gateway, Handle, Io};
use crate::nbd::{
    BlockExtent, ClientInfo, Export, ExportInfo, Exports, IoError, OpenError, Segment, WriteFlags, ZeroFlags,
};
use crate::store;

/// All VDIs, for the NBD server.
pub(crate) struct NbdExports {
    pub(crate) gateway: Arc<Gateway>,
}

#[async_trait]
impl Exports for NbdExports {
    async fn list(&self) -> Vec<String> {
        self.gateway.context.view.state().vdis().map(|v| v.name.to_string()).collect()
    }

    async fn describe(&self, name: &ExportName) -> Result<ExportInfo, OpenError> {
        let state = self.gateway.context.view.state();
        let vdi = state.vdi_named(&name.vdi).ok_or_else(|| OpenError::NotFound(name.vdi.to_string()))?;
        Ok(ExportInfo {
            name: vdi.name.to_string(),
            description: format!("sheepdog VDI {}, {}", vdi.id, count(vdi.copies.get(), "copy", "copies")),
            size: vdi.size,
            read_only: name.read_only,
        })
    }

    async fn open(&self, name: &ExportName, client: ClientInfo) -> Result<Arc<dyn Export>, OpenError> {
        let handle = self.gateway.open(name, &client.peer).await?;
        Ok(handle)
    }
}

#[async_trait]
impl Export for Handle {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            name: self.name.to_string(),
            description: format!("sheepdog VDI {}", self.vdi),
            size: self.size,
            read_only: self.read_only,
        }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>, IoError> {
        match self.run(Io::Read { offset, len }).await? {
            Done::Read(segments) => Ok(segments
                .into_iter()
                .map(|s| match s {
                    store::Segment::Data { data, .. } => Segment::Data(data),
                    store::Segment::Hole(len) => Segment::Hole(len as u32),
                })
                .collect()),
            Done::Nothing | Done::Status(_) => Err(IoError::Io),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, flags: WriteFlags) -> Result<(), IoError> {
        let payload = Payload::new(offset, data);
        self.run(Io::Write { offset, payload, fua: flags.fua }).await.map(drop)
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.run(Io::Flush).await.map(drop)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.run(Io::Zero { offset, len, punch: true, fua }).await.map(drop)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), IoError> {
        if flags.fast && !flags.may_punch {
            // Zeros that keep their space are written out like any bytes.
            return Err(IoError::Unsupported);
        }
        self.run(Io::Zero { offset, len, punch: flags.may_punch, fua: flags.fua }).await.map(drop)
    }

    async fn cache(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        // Advice, and the kernels of the copies' nodes read ahead on their own.
        Ok(())
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockExtent>, IoError> {
        match self.run(Io::Status { offset, len }).await? {
            Done::Status(runs) => Ok(runs.into_iter().map(|(len, hole)| BlockExtent { len, hole }).collect()),
            Done::Nothing | Done::Read(_) => Err(IoError::Io),
        }
    }

    async fn close(&self) {
        Handle::close(self).await;
    }
}
