//! Serves and calls a service that is none of Sightline's: `cargo run -p sightline-mesh --example greeter`.

use std::{error::Error, time::Duration};

use greeter::{HelloRequest, HelloResponse, greeter_client::GreeterClient, greeter_server};
use sightline_mesh::{
    client::{CallOptions, Channel, Cluster, ClusterOptions, Fixed, MethodPolicies},
    server::{Lifecycle, Server, bind},
};
use tonic::{Request, Response, Status, service::Routes};

#[allow(missing_docs, dead_code, clippy::all)] // generated from greeter/greeter.proto
mod greeter {
    include!("greeter/gen/greeter.v1.rs");
}

struct Host;

#[tonic::async_trait]
impl greeter_server::Greeter for Host {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let greeting = format!("hello {}", request.into_inner().name);
        Ok(Response::new(HelloResponse { greeting }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = bind("greeter.listen", "127.0.0.1:0".parse()?).await?;
    let address = listener.local_addr()?;
    let server = Server {
        name: "greeter",
        listener,
        routes: Routes::new(greeter_server::GreeterServer::new(Host)),
        service_names: vec![greeter_server::SERVICE_NAME],
        web: None,
        drain_timeout: Duration::from_secs(10),
    };
    let life = Lifecycle::default();
    let serving = tokio::spawn(server.run(life.clone()));

    let replicas = Fixed::from_uris("greeter", &[format!("http://{address}")])?;
    let cluster = Cluster::start(ClusterOptions::new("greeter", replicas));
    let channel = Channel::new(cluster, &MethodPolicies::default(), CallOptions::default());
    let mut client = GreeterClient::new(channel);
    let answer = client.hello(HelloRequest { name: "mesh".into(), ..Default::default() }).await?;
    assert_eq!(answer.into_inner().greeting, "hello mesh");

    life.drain();
    serving.await??;
    Ok(())
}

#[test]
fn it_runs() {
    main().expect("it greets");
}
