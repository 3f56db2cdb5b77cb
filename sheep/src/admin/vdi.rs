//! The VDI service: what each call decodes to. The verbs are in files of their own.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use wire::admin::vdi_service_server::VdiService;
use wire::admin::{
    AdminError, CheckEvent, CheckVdiRequest, CreateVdiRequest, DeleteVdiReply, DeleteVdiRequest, ErrorKind,
    ListVdisReply, ListVdisRequest, LockListReply, LockListRequest, LockUnlockReply, LockUnlockRequest,
    ObjectReply, ObjectRequest, ReadVdiReply, ReadVdiRequest, VdiInfo, VdiInfoRequest, VdiReply,
    WriteVdiReply, WriteVdiRequest,
};
use wire::name::{ExportName, VdiName};

use super::stream::Answers;
use super::{Admin, error, request};
use crate::cluster::state::Vdi;
use crate::gateway::Handle;
use crate::nbd::OpenError;

/// The client's name of connections that the admin API opens.
const CLIENT: &str = "dog";
/// How long a VDI may take to open: longer than a failover.
const OPEN_PATIENCE: Duration = Duration::from_secs(15);

/// How long an opening that nobody waits for any more goes on.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// A VDI that the admin API has open; closed when this goes, whatever became of the call.
pub(super) struct OpenVdi {
    handle: Arc<Handle>,
    tasks: TaskTracker,
    closed: AtomicBool,
}

impl OpenVdi {
    /// Closes it now, so that a call that follows the answer does not find it open.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.handle.close().await;
    }
}

impl Deref for OpenVdi {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for OpenVdi {
    fn drop(&mut self) {
        if !*self.closed.get_mut() {
            let handle = self.handle.clone();
            self.tasks.spawn(async move { handle.close().await });
        }
    }
}

impl Admin {
    /// Opens a VDI for as long as the result lives. In a task of its own: an owner that has heard of the
    /// connection must also hear of its end, even if the call is dropped in between.
    pub(super) async fn open_vdi(&self, name: &VdiName) -> Result<Arc<OpenVdi>, AdminError> {
        let late = || {
            let why = format!("VDI {name} could not be opened in time: no sheep can become its owner");
            AdminError::new(ErrorKind::Unavailable, why)
                .hint("see `dog cluster info` for whether a majority of the voters is up")
        };
        let (gateway, tasks, cancel) = (self.gateway.clone(), self.tasks.clone(), self.cancel.clone());
        let wanted = ExportName { vdi: name.clone(), attach: None, read_only: false };
        let opening = self.tasks.spawn(async move {
            let opened = tokio::select! {
                opened = tokio::time::timeout(OPEN_MAX, gateway.open(&wanted, CLIENT)) => opened.ok()?,
                () = cancel.cancelled() => Err(OpenError::ShuttingDown),
            };
            Some(opened.map(|handle| Arc::new(OpenVdi { handle, tasks, closed: AtomicBool::new(false) })))
        });
        match tokio::time::timeout(OPEN_PATIENCE, opening).await {
            Ok(Ok(Some(opened))) => Ok(opened?),
            Ok(Ok(None) | Err(_)) | Err(_) => Err(late()),
        }
    }

    /// The error for a VDI whose copies do not come back.
    pub(super) async fn waits(&self, vdi: &Vdi) -> AdminError {
        let waiting = self.gateway.owner_info(vdi.id).await.map(|i| i.waiting).unwrap_or_default();
        error::waits(vdi.name.as_str(), &waiting)
    }

    fn vdi_meant(&self, name: &str) -> Result<Vdi, AdminError> {
        request::vdi(&self.gateway.context.view.state(), name)
    }
}

#[tonic::async_trait]
impl VdiService for Admin {
    async fn create(&self, request: Request<CreateVdiRequest>) -> Result<Response<VdiReply>, Status> {
        Ok(Response::new(self.create_vdi(request.into_inner()).await?))
    }

    async fn delete(&self, request: Request<DeleteVdiRequest>) -> Result<Response<DeleteVdiReply>, Status> {
        Ok(Response::new(self.delete_vdi(request.into_inner()).await?))
    }

    type ListStream = Answers<ListVdisReply>;

    async fn list(&self, _: Request<ListVdisRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.host.view_settles().await;
        request::formatted(&self.gateway.context.view.state())?;
        self.stream(|admin, sink| async move { admin.list_vdis(&sink).await })
    }

    async fn info(&self, request: Request<VdiInfoRequest>) -> Result<Response<VdiInfo>, Status> {
        Ok(Response::new(self.vdi_info(&request.into_inner().name).await?))
    }

    type ObjectStream = Answers<ObjectReply>;

    async fn object(&self, request: Request<ObjectRequest>) -> Result<Response<Self::ObjectStream>, Status> {
        let request = request.into_inner();
        self.host.view_settles().await;
        let vdi = self.vdi_meant(&request.name)?;
        self.stream(move |admin, sink| async move { admin.objects(&sink, &vdi, &request).await })
    }

    type ReadStream = Answers<ReadVdiReply>;

    async fn read(&self, request: Request<ReadVdiRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let vdi = self.vdi_meant(&request.name)?;
        let end = match request.length {
            0 => Some(vdi.size).filter(|end| request.offset <= *end),
            length => request.offset.checked_add(length).filter(|end| *end <= vdi.size),
        };
        let end = end.ok_or_else(|| error::beyond_end(vdi.name.as_str(), vdi.size))?;
        let range = request.offset..end;
        self.stream(move |admin, sink| async move { admin.read_vdi(&sink, &vdi, range).await })
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteVdiRequest>>,
    ) -> Result<Response<WriteVdiReply>, Status> {
        Ok(Response::new(self.write_vdi(request.into_inner()).await?))
    }

    type CheckStream = Answers<CheckEvent>;

    async fn check(&self, request: Request<CheckVdiRequest>) -> Result<Response<Self::CheckStream>, Status> {
        let request = request.into_inner();
        let vdi = self.vdi_meant(&request.name)?;
        self.stream(move |admin, sink| async move { admin.check_one(&sink, &vdi, request.repair).await })
    }

    async fn lock_list(&self, request: Request<LockListRequest>) -> Result<Response<LockListReply>, Status> {
        Ok(Response::new(self.lock_list(&request.into_inner().name).await?))
    }

    async fn lock_unlock(
        &self,
        request: Request<LockUnlockRequest>,
    ) -> Result<Response<LockUnlockReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.lock_unlock(&request.name, &request.client).await?))
    }
}
