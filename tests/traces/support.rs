//! Services as processes of their own.

use std::{collections::HashMap, env, fs, io::Write, net::SocketAddr, path::Path, sync::Arc};

use serde_json::Value;
use sightline_proto::ingest::{ClassifyRequest, Frame, ingest_service_client::IngestServiceClient};
use sightline_servers::{Error, Home, Jaeger, Server, Spec, free_port, request};
use sightline_testkit::{Process, models::Small};
use tempfile::TempDir;
use tonic::{Request, Status, transport::Channel};

/// Whoever sends frames here; nowhere but in the statistics may it be seen.
pub const USER: &str = "user-4711-nobody-may-see";

/// Without the program the test is skipped, and says so; `cargo xtask test` makes that a failure.
pub fn there<T>(started: sightline_servers::Result<T>) -> Option<T> {
    match started {
        Err(error @ Error::Missing { .. }) => {
            assert!(env::var_os("SIGHTLINE_TEST_NO_SKIP").is_none(), "{error}");
            // Not eprintln!: what goes through the macro is captured.
            writeln!(std::io::stderr(), "SKIPPED: {error}").ok();
            None
        }
        started => Some(started.unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// One process with its roles.
pub struct Member {
    name: String,
    pub admin: SocketAddr,
    pub server: Server,
}

impl Member {
    /// A page of its admin port.
    pub fn page(&self, path: &str) -> String {
        let answer = request(self.admin.port(), "GET", path, "").unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// The sum over the series of a metric whose line begins with this.
    pub fn metric(&self, beginning: &str) -> f64 {
        let page = self.page("/metrics");
        let value = |line: &str| line.strip_prefix(beginning)?.rsplit_once(' ')?.1.parse::<f64>().ok();
        page.lines().filter_map(value).sum()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.server.log()).unwrap()
    }
}

/// A mesh of processes. They die with it.
pub struct Mesh {
    pub members: Vec<Member>,
    addresses: HashMap<&'static str, Vec<SocketAddr>>,
    _folder: Arc<TempDir>,
}

/// A mesh whose traces go to a Jaeger: only those that a caller wants kept.
pub fn watched(replicas: [usize; 3], settings: &[String]) -> Option<(Jaeger, Mesh)> {
    let jaeger = there(Jaeger::start())?;
    let mut all =
        vec![format!("telemetry.otlp_endpoint={}", jaeger.endpoint()), "telemetry.otlp_sample=0".into()];
    all.extend_from_slice(settings);
    let mesh = Mesh::of(replicas, &all)?;
    Some((jaeger, mesh))
}

/// Which roles run together: three processes.
const PROCESSES: [&[&str]; 3] = [&["ratelimiter", "stats"], &["classifier"], &["ingest"]];

impl Mesh {
    /// `replicas` of each process, or a visible skip.
    pub fn start(replicas: usize, settings: &[String]) -> Option<Self> {
        Self::of([replicas; 3], settings)
    }

    /// So many of each of [`PROCESSES`].
    pub fn of(replicas: [usize; 3], settings: &[String]) -> Option<Self> {
        let binary = Process::binary()?;
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let model = Small::default().write(folder.path());
        let mut mesh = Self { members: vec![], addresses: HashMap::new(), _folder: Arc::clone(&folder) };
        for (roles, replicas) in PROCESSES.into_iter().zip(replicas) {
            let mut addresses: HashMap<&'static str, Vec<SocketAddr>> = HashMap::new();
            for replica in 0..replicas {
                let name = format!("{}-{replica}", roles.join("-"));
                let mut own = vec![format!("classifier.models=[{:?}]", model.display().to_string())];
                for role in roles {
                    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
                    own.push(format!("{role}.listen={address}"));
                    addresses.entry(role).or_default().push(address);
                }
                own.extend(mesh.upstreams());
                own.extend(settings.iter().cloned());
                mesh.members.push(start(&binary, folder.path(), &name, roles, own));
            }
            mesh.addresses.extend(addresses);
        }
        Some(mesh)
    }

    fn upstreams(&self) -> Vec<String> {
        let of = |(role, addresses): (&&str, &Vec<SocketAddr>)| {
            let uris: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
            format!("ingest.{role}={uris:?}")
        };
        self.addresses.iter().map(of).collect()
    }

    /// The first process whose name begins so.
    pub fn member(&mut self, name: &str) -> &mut Member {
        self.members.iter_mut().find(|member| member.name.starts_with(name)).unwrap()
    }

    /// Where one of a role's replicas is.
    pub fn port(&self, role: &str, replica: usize) -> u16 {
        self.addresses[role][replica].port()
    }

    /// How ingest sees a service that it calls.
    fn seen(&self, service: &str) -> Value {
        let page: Value = serde_json::from_str(&self.ingest().page("/mesh")).unwrap();
        page.as_array().unwrap().iter().find(|one| one["service"] == service).unwrap().clone()
    }

    /// Messages that ingest has sent to a service and has no answer to.
    pub fn unanswered(&self, service: &str) -> u64 {
        let seen = self.seen(service);
        seen["streams"].as_array().unwrap().iter().map(|one| one["unanswered"].as_u64().unwrap()).sum()
    }

    /// Replicas of a service that take messages.
    pub fn ready(&self, service: &str) -> usize {
        let seen = self.seen(service);
        let (endpoints, streams) =
            (seen["endpoints"].as_array().unwrap(), seen["streams"].as_array().unwrap());
        let takes = |(endpoint, stream): &(&Value, &Value)| {
            endpoint["state"] == "ready" && stream["open"].as_u64() > Some(0)
        };
        endpoints.iter().zip(streams).filter(takes).count()
    }

    /// Where a role is.
    pub fn uri(&self, role: &str) -> String {
        format!("http://{}", self.addresses[role][0])
    }

    /// The first ingest.
    pub fn ingest(&self) -> &Member {
        self.members.iter().find(|member| member.name.starts_with("ingest")).unwrap()
    }

    pub async fn client(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(Channel::from_shared(self.uri("ingest")).unwrap().connect().await.unwrap())
    }

    /// Classifies one image, with a trace context if one is given.
    pub async fn classify(&self, image: Vec<u8>, traceparent: &str) -> Result<String, Status> {
        let frame = Frame { user_id: USER.into(), image: image.into(), ..Frame::default() };
        let mut request = Request::new(ClassifyRequest { frame: Some(frame) });
        if !traceparent.is_empty() {
            request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        }
        let answer = self.client().await.classify(request).await?;
        Ok(answer.into_inner().verdict.unwrap().frame_id)
    }
}

fn start(binary: &Path, folder: &Path, name: &str, roles: &[&str], mut settings: Vec<String>) -> Member {
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let home = Home::under(folder, name).unwrap();
    settings.push(format!("telemetry.admin_listen={admin}"));
    settings.push(format!("node.data_dir={}", home.folder().display()));
    settings.push("ratelimiter.rules=dev".into());
    let mut arguments = vec!["serve".to_owned()];
    arguments.extend(roles.iter().map(ToString::to_string));
    arguments.extend(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
    let spec = Spec {
        name: name.into(),
        program: binary.to_owned(),
        arguments,
        environment: vec![],
        home,
        user: None,
        ready: Box::new(move || {
            request(admin.port(), "GET", "/readyz", "").is_ok_and(|answer| answer.status == 200)
        }),
    };
    Member { name: name.into(), admin, server: Server::start(spec).unwrap_or_else(|error| panic!("{error}")) }
}
