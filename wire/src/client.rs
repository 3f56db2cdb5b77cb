//! [`AdminClient`]: asks a sheep, and another one when that one is gone.
//!
//! Used by dog, and later by the operator and the CSI driver. When it connects it learns the ring's other
//! sheep; when a call then fails because the sheep cannot be reached, or says that it is cut off from the
//! ring, the call goes to the next. These rules keep that safe:
//!
//! - A call that changes something goes elsewhere only if it was certainly not sent, or if it can say that it comes
//!   again: then the ring does it once.
//! - A call that only asks, or that may be made twice, goes elsewhere after any failure to reach.
//!
//! Every wait has a limit: connecting and calls have deadlines, and a stream that a check or a read sends
//! may be silent for as long as the sheep answers the connection's keep-alive.

use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::address::Address;
use crate::admin::cluster_service_client::ClusterServiceClient;
use crate::admin::node_service_client::NodeServiceClient;
use crate::admin::vdi_service_client::VdiServiceClient;
use crate::admin::{self, AdminError, NodeStatus};

/// How many other sheep are kept to fall back on. If that many are gone at once, so is the ring.
const OTHERS_MAX: usize = 8;

/// The largest reply taken: a list of the 6,144 nodes a ring may have is about 1 MiB.
const REPLY_LEN_MAX: usize = 64 << 20;

/// A connection on which nothing comes for this long is asked whether it lives…
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// …and given up if it does not answer in this long.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an [`AdminClient`] waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection to a sheep. Default 3 s.
    pub connect: Duration,
    /// For the reply to a call, or the first answer of a stream. Default 30 s.
    pub call: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), call: Duration::from_secs(30) }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer came from the sheep.
    #[error("no sheep answers at {address}: {cause}")]
    Unreachable {
        /// The sheep that was asked.
        address: Address,
        /// The request changes something and may have been carried out all the same.
        maybe_done: bool,
        /// What was seen.
        cause: Cause,
    },
    /// A sheep answered with an error.
    #[error(transparent)]
    Status(#[from] AdminError),
}

impl ClientError {
    /// Whether the request may have been carried out although no answer came.
    fn maybe_done(&self) -> bool {
        matches!(self, Self::Unreachable { maybe_done: true, .. })
    }

    /// The error of a call that may be made twice: whether it was carried out does not matter.
    fn harmless(mut self) -> Self {
        if let Self::Unreachable { maybe_done, .. } = &mut self {
            *maybe_done = false;
        }
        self
    }
}

/// What was seen instead of an answer. Prints the innermost cause, which is the one that tells.
#[derive(Debug)]
pub enum Cause {
    /// The connection was not made.
    Connect(tonic::transport::Error),
    /// The connection failed during a call.
    Call(Status),
    /// Nothing was seen, for this long.
    Deadline(Duration),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error: &dyn Error = match self {
            Self::Deadline(limit) => return write!(f, "nothing came for {} s", limit.as_secs_f32()),
            Self::Connect(error) => error,
            Self::Call(status) => match status.source() {
                Some(source) => source,
                None => return f.write_str(status.message()),
            },
        };
        while let Some(source) = error.source() {
            error = source;
        }
        write!(f, "{error}")
    }
}

/// When a failed call may be made again at another sheep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Making it twice does no harm.
    Always,
    /// It says that it comes again, so that it is carried out once.
    Told,
    /// Only if it was certainly not sent.
    IfUnsent,
}

impl Again {
    fn allows(self, error: &ClientError) -> bool {
        match (self, error) {
            (Self::Always | Self::Told, ClientError::Unreachable { .. }) => true,
            (Self::Always | Self::Told, ClientError::Status(error)) => error.elsewhere(),
            (Self::IfUnsent, ClientError::Unreachable { maybe_done, .. }) => !maybe_done,
            (Self::IfUnsent, ClientError::Status(_)) => false,
        }
    }
}

/// A connection to a ring's admin API, by way of one sheep at a time.
#[derive(Debug, Clone)]
pub struct AdminClient {
    channel: Channel,
    address: Address,
    others: Vec<Address>,
    deadlines: Deadlines,
}

/// Defines one method per rpc: which service, and whether it may be made twice.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $client:ident.$rpc:ident($request:ident) -> $reply:ident, $again:ident;)*) => {
        impl AdminClient {
            $($(#[$doc])*
            pub async fn $name(&mut self, request: admin::$request) -> Result<admin::$reply, ClientError> {
                self.call(Again::$again, |channel, _| {
                    let request = request.clone();
                    async move {
                        let mut client = $client::new(channel).max_decoding_message_size(REPLY_LEN_MAX);
                        client.$rpc(request).await
                    }
                })
                .await
            })*
        }
    };
}

/// As `calls`, for rpcs that answer with a stream. Only its start is made again.
macro_rules! streams {
    ($($(#[$doc:meta])* $name:ident: $client:ident.$rpc:ident($request:ident) -> $reply:ident, $again:ident;)*) => {
        impl AdminClient {
            $($(#[$doc])*
            pub async fn $name(
                &mut self,
                request: admin::$request,
            ) -> Result<Events<admin::$reply>, ClientError> {
                let stream = self
                    .call(Again::$again, |channel, _| {
                        let request = request.clone();
                        async move {
                            let mut client = $client::new(channel).max_decoding_message_size(REPLY_LEN_MAX);
                            client.$rpc(request).await
                        }
                    })
                    .await?;
                Ok(Events { stream, address: self.address.clone() })
            })*
        }
    };
}

calls! {
    /// Founds a ring.
    cluster_format: ClusterServiceClient.format(FormatRequest) -> FormatReply, IfUnsent;
    /// What the ring is and how it is.
    cluster_info: ClusterServiceClient.info(ClusterInfoRequest) -> ClusterInfo, Always;
    /// Stops every sheep of the ring.
    cluster_shutdown: ClusterServiceClient.shutdown(ShutdownRequest) -> ShutdownReply, IfUnsent;
    /// The ring's nodes, or those that wait for one.
    node_list: NodeServiceClient.list(ListNodesRequest) -> ListNodesReply, Always;
    /// One node in detail. With node 0, "the sheep asked" may be another after a failure.
    node_info: NodeServiceClient.info(NodeInfoRequest) -> NodeInfo, Always;
    /// How far recovery is, and its settings.
    node_recovery: NodeServiceClient.recovery(RecoveryRequest) -> RecoveryReply, Always;
    /// Sets absolute values, so twice is once.
    node_set_recovery: NodeServiceClient.set_recovery(SetRecoveryRequest) -> RecoveryReply, Always;
    /// A node's counters.
    node_stat: NodeServiceClient.stat(StatRequest) -> StatReply, Always;
    /// Takes a node out of the ring.
    node_remove: NodeServiceClient.remove(RemoveNodeRequest) -> RemoveNodeReply, IfUnsent;
    /// One VDI in detail.
    vdi_info: VdiServiceClient.info(VdiInfoRequest) -> VdiInfo, Always;
    /// Who has VDIs open.
    lock_list: VdiServiceClient.lock_list(LockListRequest) -> LockListReply, Always;
    /// Withdraws the right to write.
    lock_unlock: VdiServiceClient.lock_unlock(LockUnlockRequest) -> LockUnlockReply, IfUnsent;
}

streams! {
    /// Checks every slot's redundancy, and every copy if deep.
    cluster_check: ClusterServiceClient.check(CheckClusterRequest) -> CheckEvent, Always;
    /// What giving up dead nodes would cost, or does it; twice is once.
    cluster_recover: ClusterServiceClient.recover(RecoverRequest) -> RecoverEvent, Always;
    /// Drains a node; asking again for a draining node reports on.
    node_drain: NodeServiceClient.drain(DrainRequest) -> DrainEvent, Always;
    /// All VDIs, in batches.
    vdi_list: VdiServiceClient.list(ListVdisRequest) -> ListVdisReply, Always;
    /// Where objects are, in batches.
    vdi_object: VdiServiceClient.object(ObjectRequest) -> ObjectReply, Always;
    /// A range's content, in order.
    vdi_read: VdiServiceClient.read(ReadVdiRequest) -> ReadVdiReply, Always;
    /// Compares all copies of a VDI's objects; repairing twice is repairing once.
    vdi_check: VdiServiceClient.check(CheckVdiRequest) -> CheckEvent, Always;
}

impl AdminClient {
    /// Connects to the sheep at `address` and learns from it which others there are.
    ///
    /// Fails only if that sheep cannot be reached; one that does not know the others is still of use.
    pub async fn connect(address: Address, deadlines: Deadlines) -> Result<Self, ClientError> {
        let channel = open(&address, deadlines.connect).await?;
        let mut client = Self { channel, address, others: Vec::new(), deadlines };
        match client.node_list(admin::ListNodesRequest {}).await {
            Ok(list) => client.others = fallbacks(&list.nodes),
            Err(error @ ClientError::Unreachable { .. }) => return Err(error),
            Err(ClientError::Status(_)) => {}
        }
        Ok(client)
    }

    /// The sheep that is asked at present.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Makes a VDI. If the answer is lost another sheep is asked, which knows the VDI for this call's own by the
    /// time at which it began.
    pub async fn vdi_create(
        &mut self,
        request: admin::CreateVdiRequest,
    ) -> Result<admin::VdiReply, ClientError> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let began_ms = u64::try_from(since_1970.as_millis()).unwrap_or_default();
        self.call(Again::Told, |channel, again| {
            let request = admin::CreateVdiRequest { began_ms, again, ..request.clone() };
            async move { VdiServiceClient::new(channel).create(request).await }
        })
        .await
    }

    /// Deletes a VDI. If the answer is lost another sheep is asked, for which a VDI that is gone is deleted.
    pub async fn vdi_delete(
        &mut self,
        request: admin::DeleteVdiRequest,
    ) -> Result<admin::DeleteVdiReply, ClientError> {
        self.call(Again::Told, |channel, again| {
            let request = admin::DeleteVdiRequest { again, ..request.clone() };
            async move { VdiServiceClient::new(channel).delete(request).await }
        })
        .await
    }

    /// Writes into a VDI what comes through `parts`, of which the first is a start.
    ///
    /// There is no deadline on the whole, since it takes as long as there is data. If the sheep gives up
    /// early, `parts` is closed, and the error is returned here.
    pub async fn vdi_write(
        &mut self,
        parts: mpsc::Receiver<admin::WriteVdiRequest>,
    ) -> Result<admin::WriteVdiReply, ClientError> {
        let reply = VdiServiceClient::new(self.channel.clone()).write(ReceiverStream::new(parts)).await;
        reply.map(Response::into_inner).map_err(|status| classify(&self.address, status))
    }

    /// Makes a call until it is answered. `make` is told whether an earlier attempt may have been carried out.
    async fn call<T, F, Fut>(&mut self, again: Again, make: F) -> Result<T, ClientError>
    where
        F: Fn(Channel, bool) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut told: Option<ClientError> = None;
        loop {
            let comes_again = told.as_ref().is_some_and(ClientError::maybe_done);
            let attempt = make(self.channel.clone(), comes_again);
            let error = match tokio::time::timeout(self.deadlines.call, attempt).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => classify(&self.address, status),
                Err(_) => {
                    let cause = Cause::Deadline(self.deadlines.call);
                    ClientError::Unreachable { address: self.address.clone(), maybe_done: true, cause }
                }
            };
            let error = if again == Again::Always { error.harmless() } else { error };
            let go_on = again.allows(&error);
            // The first failure is about the sheep that the user named, unless another one gave a reason. That
            // one which may have done it is the last word until a sheep knows better.
            let error = match told.take() {
                Some(first) if first.maybe_done() && go_on => first,
                Some(first) if !error.maybe_done() && matches!(error, ClientError::Unreachable { .. }) => {
                    first
                }
                _ => error,
            };
            if !go_on || !self.move_on().await {
                return Err(error);
            }
            told = Some(error);
        }
    }

    /// Connects to the next sheep that takes a connection; false when none is left.
    async fn move_on(&mut self) -> bool {
        while !self.others.is_empty() {
            let address = self.others.remove(0);
            if let Ok(channel) = open(&address, self.deadlines.connect).await {
                self.channel = channel;
                self.address = address;
                return true;
            }
        }
        false
    }
}

/// What a sheep sends while it works on a call.
#[derive(Debug)]
pub struct Events<T> {
    stream: Streaming<T>,
    address: Address,
}

impl<T> Events<T> {
    /// The next event, or `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        self.stream.message().await.map_err(|status| classify(&self.address, status).harmless())
    }
}

async fn open(address: &Address, limit: Duration) -> Result<Channel, ClientError> {
    let unreachable = |cause| ClientError::Unreachable { address: address.clone(), maybe_done: false, cause };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| unreachable(Cause::Connect(error)))?
        .connect_timeout(limit)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .tcp_nodelay(true);
    // The connector's own limit covers the TCP connection; this one also covers resolving the name.
    match tokio::time::timeout(limit, endpoint.connect()).await {
        Ok(channel) => channel.map_err(|error| unreachable(Cause::Connect(error))),
        Err(_) => Err(unreachable(Cause::Deadline(limit))),
    }
}

fn fallbacks(nodes: &[admin::Node]) -> Vec<Address> {
    nodes
        .iter()
        .filter(|node| !node.self_ && !matches!(node.status(), NodeStatus::Down | NodeStatus::Out))
        .filter_map(|node| Address::new(&node.host, u16::try_from(node.port).ok()?).ok())
        .take(OTHERS_MAX)
        .collect()
}

/// Tells an answer of the sheep from a failure to get one: only the second has a cause on this side, or
/// lacks the detail that every answer of a sheep carries.
fn classify(address: &Address, status: Status) -> ClientError {
    let answered = status.source().is_none()
        && (admin::detail(&status).is_some()
            || !matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled));
    if answered {
        return AdminError::from(&status).into();
    }
    let maybe_done = !connect_failed(&status);
    ClientError::Unreachable { address: address.clone(), maybe_done, cause: Cause::Call(status) }
}

/// Whether the connection was never made, so that nothing can have been sent.
fn connect_failed(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: u32, status: NodeStatus) -> admin::Node {
        admin::Node { host: host.into(), port, status: status.into(), ..Default::default() }
    }

    #[test]
    fn only_others_that_may_answer_are_kept_to_fall_back_on() {
        let mut asked = node("a", 1, NodeStatus::Up);
        asked.self_ = true;
        let nodes = [
            asked,
            node("b", 2, NodeStatus::Down),
            node("c", 3, NodeStatus::Up),
            node("d", 70000, NodeStatus::Up),
            node("not a host", 5, NodeStatus::Up),
            node("f", 6, NodeStatus::Waiting),
        ];
        let kept: Vec<String> = fallbacks(&nodes).iter().map(Address::to_string).collect();
        assert_eq!(kept, ["c:3", "f:6"]);
    }

    #[test]
    fn a_call_that_changes_something_is_made_again_only_if_it_was_not_sent() {
        let address: Address = "a:1".parse().expect("good");
        let unreachable = |maybe_done| ClientError::Unreachable {
            address: address.clone(),
            maybe_done,
            cause: Cause::Deadline(Duration::from_secs(1)),
        };
        assert!(Again::IfUnsent.allows(&unreachable(false)));
        assert!(!Again::IfUnsent.allows(&unreachable(true)));
        assert!(Again::Always.allows(&unreachable(true)));
        assert!(Again::Told.allows(&unreachable(true)));
        let status = |kind| ClientError::from(AdminError::new(kind, "x"));
        assert!(Again::Always.allows(&status(admin::ErrorKind::Unavailable)));
        assert!(!Again::IfUnsent.allows(&status(admin::ErrorKind::Unavailable)));
        assert!(!Again::Always.allows(&status(admin::ErrorKind::Refused)));
        assert!(!Again::Told.allows(&status(admin::ErrorKind::Refused)));
    }

    #[tokio::test]
    async fn a_sheep_that_takes_connections_and_says_nothing_is_given_up() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address: Address = silent.local_addr().expect("addr").to_string().parse().expect("good");
        let deadlines = Deadlines { call: Duration::from_millis(50), ..Default::default() };
        let error = AdminClient::connect(address, deadlines).await.expect_err("silent");
        assert!(matches!(error, ClientError::Unreachable { maybe_done: false, .. }), "{error:?}");
        assert!(error.to_string().contains("nothing came for 0.05 s"), "{error}");
    }

    #[tokio::test]
    async fn nothing_listening_is_unreachable_and_says_why() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("addr");
        let address: Address = free.to_string().parse().expect("good");
        let error = AdminClient::connect(address, Deadlines::default()).await.expect_err("closed port");
        assert!(matches!(error, ClientError::Unreachable { maybe_done: false, .. }), "{error:?}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
