//! The gRPC server of the admin API: an already bound listener, limits, an orderly end.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use wire::admin::CHUNK_LEN_MAX;
use wire::admin::cluster_service_server::ClusterServiceServer;
use wire::admin::node_service_server::NodeServiceServer;
use wire::admin::vdi_service_server::VdiServiceServer;

use super::Admin;

/// The longest message taken: a chunk of a write and its framing.
const MESSAGE_LEN_MAX: usize = CHUNK_LEN_MAX + (64 << 10);
/// The longest answer made: a list of 6,144 nodes fits many times.
const ANSWER_LEN_MAX: usize = 64 << 20;
/// Calls of one connection at once; more wait.
const CALLS_PER_CONNECTION: usize = 64;
/// Header bytes of a call; ours have next to none.
const HEADERS_LEN_MAX: u32 = 16 << 10;
/// A client that is silent for this long is asked whether it lives…
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// …and given up if it does not answer in this long.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls under way may take to end when the node stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The admin API's services; more can be added to them.
pub(crate) fn routes(admin: &Admin) -> Routes {
    let cluster = ClusterServiceServer::new(admin.clone());
    let node = NodeServiceServer::new(admin.clone());
    let vdi = VdiServiceServer::new(admin.clone());
    Routes::new(cluster.max_decoding_message_size(MESSAGE_LEN_MAX).max_encoding_message_size(ANSWER_LEN_MAX))
        .add_service(
            node.max_decoding_message_size(MESSAGE_LEN_MAX).max_encoding_message_size(ANSWER_LEN_MAX),
        )
        .add_service(vdi.max_decoding_message_size(MESSAGE_LEN_MAX).max_encoding_message_size(ANSWER_LEN_MAX))
}

/// Serves `routes` until `cancel`; the task ends when calls under way have ended, or were given up.
pub(crate) fn serve(
    listener: TcpListener,
    routes: Routes,
    cancel: CancellationToken,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .max_concurrent_streams(CALLS_PER_CONNECTION as u32)
        .http2_max_header_list_size(HEADERS_LEN_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_routes(routes);
    tokio::spawn(async move {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let stop = cancel.clone();
        let serving = server.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
        tokio::select! {
            ended = serving => ended,
            () = async { cancel.cancelled().await; tokio::time::sleep(STOP_PATIENCE).await } => Ok(()),
        }
    })
}
