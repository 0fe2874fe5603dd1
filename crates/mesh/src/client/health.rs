//! What a server says of itself over `grpc.health.v1`.

use std::{convert::Infallible, time::Duration};

use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::{HealthOptions, Transport, dice::Dice};

/// How long a watch may go without its first answer before it is opened anew: a server that is alive answers at once.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Follows the server's word on one connection: `heard` is told `Ok` when it serves and the reason when it does not.
///
/// A server without the health service counts as serving. A watch that ends leaves the last word as it is and is opened
/// again; one that cannot be opened is a server that does not serve, unless it is only full: then it is asked each time.
pub(super) async fn watch(
    transport: &Transport,
    options: &HealthOptions,
    dice: &Dice,
    heard: impl Fn(Result<(), String>),
) -> Infallible {
    let Some(service) = &options.service else {
        heard(Ok(()));
        return std::future::pending().await;
    };
    let mut client = HealthClient::new(transport.clone());
    loop {
        let asked = timeout(FIRST_ANSWER, client.watch(request(service))).await;
        match asked.unwrap_or_else(|_| Err(Status::unavailable("no answer"))) {
            Ok(answers) => {
                let mut answers = answers.into_inner();
                while let Ok(Some(answer)) = answers.message().await {
                    heard(read(answer));
                }
            }
            Err(status) if status.code() == Code::Unimplemented => {
                heard(Ok(()));
                return std::future::pending().await;
            }
            // As many watch it as may: it still answers questions.
            Err(status) if status.code() == Code::ResourceExhausted => heard(check(transport, options).await),
            Err(status) => heard(Err(format!("its health cannot be watched: {}", status.message()))),
        }
        sleep(dice.jitter(options.pause)).await;
    }
}

/// Asks once whether the server serves; no answer in time is a no.
pub(super) async fn check(transport: &Transport, options: &HealthOptions) -> Result<(), String> {
    let Some(service) = &options.service else { return Ok(()) };
    let mut client = HealthClient::new(transport.clone());
    match timeout(options.pause, client.check(request(service))).await {
        Ok(Ok(answer)) => read(answer.into_inner()),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(()),
        Ok(Err(status)) => Err(format!("its health cannot be checked: {}", status.message())),
        Err(_) => Err(format!("its health check took longer than {:?}", options.pause)),
    }
}

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

fn read(answer: HealthCheckResponse) -> Result<(), String> {
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        ServingStatus::ServiceUnknown => Err("it does not know the service".into()),
        ServingStatus::NotServing | ServingStatus::Unknown => Err("it says that it is not serving".into()),
    }
}
