//! Streamed answers: a task makes them, a short queue holds them, and the task ends when the client is gone
//! or the node stops.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use wire::admin::{AdminError, ErrorKind};

use super::{Admin, error};

/// Messages made ahead of the client: enough to hide a round trip; of up to 1 MiB each.
const AHEAD: usize = 2;

/// A streamed answer.
pub(super) type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Why a producer ends early.
pub(super) enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// It failed; the client is told.
    Failed(AdminError),
}

impl From<AdminError> for Ended {
    fn from(error: AdminError) -> Self {
        Self::Failed(error)
    }
}

/// Where a producer puts its messages.
pub(super) struct Sink<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Sink<T> {
    /// Gives a message to the client; waits while it is slow.
    pub(super) async fn send(&self, message: T) -> Result<(), Ended> {
        self.0.send(Ok(message)).await.map_err(|_| Ended::Unheard)
    }
}

impl Admin {
    /// A permit for a stream or transfer.
    pub(super) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, AdminError> {
        self.streams.clone().try_acquire_owned().map_err(|_| error::busy())
    }

    /// Answers with what `produce` sends. It is dropped at an `.await` when the client goes or the node
    /// stops, so it must leave nothing half done there.
    pub(super) fn stream<T, F>(
        &self,
        produce: impl FnOnce(Self, Sink<T>) -> F,
    ) -> Result<Response<Answers<T>>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Ended>> + Send + 'static,
    {
        let permit = self.stream_permit()?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let sink = Sink(sender.clone());
        let producing = produce(self.clone(), sink);
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            let stopping = || AdminError::new(ErrorKind::Unavailable, "this sheep is stopping");
            let ended = tokio::select! {
                ended = producing => ended,
                () = sender.closed() => Err(Ended::Unheard),
                () = cancel.cancelled() => Err(stopping().hint("ask another sheep").into()),
            };
            if let Err(Ended::Failed(error)) = ended {
                // If the queue is full the client is slow or gone, and learns it from the stream's end; when
                // the node goes on there is time to wait.
                let told = sender.send(Err(error.into()));
                let _in_time = tokio::time::timeout(super::APPLY_PATIENCE, told).await;
            }
        });
        let answers: Answers<T> = Box::pin(ReceiverStream::new(receiver));
        Ok(Response::new(answers))
    }
}
