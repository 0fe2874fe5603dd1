//! The streams of the world's client: those of [`scripted`], written down.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use sightline_mesh::{
    RpcError,
    client::{Lane, Message, Transport},
};
use sightline_proto::ratelimiter::{
    CheckStreamRequest, CheckStreamResponse, rate_limiter_service_client::RateLimiterServiceClient,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{ledger::Ledger, plant::Plant, scripted::TestLane};

/// One of the client's two lanes.
pub struct SimLane {
    pub lane: TestLane,
    pub ledger: Arc<Ledger>,
    pub plant: Option<Plant>,
}

impl Lane for SimLane {
    type Outbound = CheckStreamRequest;
    type Inbound = CheckStreamResponse;
    type Answer = String;

    async fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<CheckStreamRequest>>,
    ) -> Result<Response<Streaming<CheckStreamResponse>>, Status> {
        let shown = format!("{transport:?}");
        let authority = shown.trim_start_matches("Transport(").trim_end_matches(')');
        let (line, ledger) = (self.ledger.opened(authority), Arc::clone(&self.ledger));
        let watched = outbound.map(|stream| Watched { stream, line, ledger });
        RateLimiterServiceClient::new(transport).check_stream(watched).await
    }

    fn read(&self, inbound: CheckStreamResponse) -> Result<Message<String>, RpcError> {
        let message = self.lane.read(inbound)?;
        Ok(match self.plant {
            Some(plant) => plant.read(message),
            None => message,
        })
    }

    fn repeatable(&self) -> bool {
        self.lane.repeatable() || self.plant == Some(Plant::RepeatsAll)
    }

    fn hello(&self) -> Option<CheckStreamRequest> {
        self.lane.hello()
    }
}

/// What goes out on a stream, written down when the connection takes it.
struct Watched {
    stream: ReceiverStream<CheckStreamRequest>,
    line: usize,
    ledger: Arc<Ledger>,
}

impl Stream for Watched {
    type Item = CheckStreamRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<CheckStreamRequest>> {
        let polled = Pin::new(&mut self.stream).poll_next(context);
        if let Poll::Ready(Some(CheckStreamRequest { check: Some(check), .. })) = &polled {
            self.ledger.sent(self.line, &check.tenant);
        }
        polled
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.ledger.ended(self.line);
    }
}
