//! Introductions over the admin port, where seeds are known by: asking a seed, and answering as one.
//!
//! Called by [`crate::membership`] and, as a gRPC service, by the admin server.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prost::Message;
use wire::address::Address;
use wire::mesh::Introduction;
use wire::mesh::introductions_client::IntroductionsClient;
use wire::mesh::introductions_server::Introductions;
use wire::peer::IntroduceMessage;

use crate::service::NodeService;

/// How long an introduction may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Reaches the sheep behind seeds.
#[async_trait]
pub(crate) trait Seeds: Send + Sync + 'static {
    /// Says `message` to the sheep at `seed`; its answer, and where that came from.
    async fn introduce(
        &self,
        seed: &Address,
        message: IntroduceMessage,
    ) -> Option<(IntroduceMessage, IpAddr)>;
}

/// Seeds are admin ports that speak gRPC.
pub(crate) struct GrpcSeeds;

#[async_trait]
impl Seeds for GrpcSeeds {
    async fn introduce(
        &self,
        seed: &Address,
        message: IntroduceMessage,
    ) -> Option<(IntroduceMessage, IpAddr)> {
        let url = format!("http://{seed}");
        let endpoint = tonic::transport::Endpoint::from_shared(url).ok()?.connect_timeout(PATIENCE);
        let mut client = IntroductionsClient::new(endpoint.connect().await.ok()?);
        let call = client.introduce(Introduction { message: message.encode_to_vec().into() });
        let reply = tokio::time::timeout(PATIENCE, call).await.ok()?.ok()?.into_inner();
        let reply = IntroduceMessage::decode(reply.message).ok()?;
        let ip = tokio::net::lookup_host(seed.to_string()).await.ok()?.next()?.ip();
        Some((reply, ip))
    }
}

/// Answers introductions that come over the admin port.
pub(crate) struct EarlyIntroductions(pub(crate) Arc<NodeService>);

#[async_trait]
impl Introductions for EarlyIntroductions {
    async fn introduce(
        &self,
        request: tonic::Request<Introduction>,
    ) -> Result<tonic::Response<Introduction>, tonic::Status> {
        let from = request.remote_addr().map(|a| a.ip());
        let message = IntroduceMessage::decode(request.into_inner().message)
            .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
        let answer = self.0.introduced(message, from);
        let answer = answer.ok_or_else(|| tonic::Status::unavailable("the node is starting"))?;
        let answered = crate::machine::blocking(answer);
        let reply = answered.await.map_err(|error| tonic::Status::internal(error.to_string()))?;
        Ok(tonic::Response::new(Introduction { message: reply.encode_to_vec().into() }))
    }
}
