//! The production shape on one machine: Redis, PostgreSQL, Jaeger, Prometheus and several replicas of every service, each
//! a process of its own.

use std::{
    fs,
    fs::Permissions,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error, Home, Jaeger, Postgres, Prometheus, Redis, Result, Server, Spec, free_port, http, io, process::run,
};

/// A service of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Says whether a caller may go on.
    Ratelimiter,
    /// Runs models.
    Classifier,
    /// Counts.
    Stats,
    /// The public edge.
    Ingest,
}

impl Role {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Ratelimiter, Self::Classifier, Self::Stats, Self::Ingest];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ratelimiter => "ratelimiter",
            Self::Classifier => "classifier",
            Self::Stats => "stats",
            Self::Ingest => "ingest",
        }
    }

    /// The first replica's usual port; the others' are 10 apart, and ports for metrics 100 above.
    fn port(self) -> u16 {
        match self {
            Self::Ingest => 7401,
            Self::Classifier => 7402,
            Self::Ratelimiter => 7403,
            Self::Stats => 7404,
        }
    }
}

/// Which ports a cluster takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The usual ones where they are free: for people.
    Usual,
    /// Any free ones: for tests, several at once.
    Free,
}

/// How many of each service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Of the rate limiter.
    pub ratelimiter: usize,
    /// Of the classifier.
    pub classifier: usize,
    /// Of the statistics.
    pub stats: usize,
    /// Of ingest.
    pub ingest: usize,
}

impl Replicas {
    /// As many of each.
    pub fn each(count: usize) -> Self {
        Self { ratelimiter: count, classifier: count, stats: count, ingest: count }
    }

    fn of(self, role: Role) -> usize {
        match role {
            Role::Ratelimiter => self.ratelimiter,
            Role::Classifier => self.classifier,
            Role::Stats => self.stats,
            Role::Ingest => self.ingest,
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program `sightline`.
    pub binary: PathBuf,
    /// The folder of the model to serve.
    pub model: PathBuf,
    /// Where data and logs go; PostgreSQL's user must be able to reach it.
    pub base: PathBuf,
    /// How many of each service.
    pub replicas: Replicas,
    /// Which ports.
    pub ports: Ports,
    /// Whether Jaeger and Prometheus watch.
    pub watched: bool,
    /// More settings, `section.key=value`, for every process.
    pub settings: Vec<String>,
}

/// One replica.
#[derive(Debug)]
pub struct Member {
    /// `classifier-1` and so on.
    pub name: String,
    /// Its service.
    pub role: Role,
    /// Where it takes calls.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub admin: SocketAddr,
    /// The process.
    pub server: Server,
}

/// A running cluster. Everything in it ends with it, in the reverse of the order of its start.
#[derive(Debug)]
pub struct Cluster {
    /// The replicas.
    pub members: Vec<Member>,
    /// Scrapes all replicas.
    pub prometheus: Option<Prometheus>,
    /// Takes the traces.
    pub jaeger: Option<Jaeger>,
    /// Keeps the statistics.
    pub postgres: Postgres,
    /// Keeps the counters of limits.
    pub limits: Redis,
    /// Keeps verdicts.
    pub cache: Redis,
    base: PathBuf,
}

impl Cluster {
    /// Starts all of it; `say` is told what is being done.
    ///
    /// # Errors
    /// [`Error`], naming the log of what did not start.
    pub fn start(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Self> {
        fs::create_dir_all(&plan.base).map_err(io("making the cluster's folder"))?;
        // PostgreSQL's own user has to pass through it.
        fs::set_permissions(&plan.base, Permissions::from_mode(0o711))
            .map_err(io("opening the cluster's folder"))?;
        let home = |name: &str| Home::under(&plan.base, name);
        say("starting Redis (limits, cache) and PostgreSQL");
        let limits =
            Redis::start_at(home("redis-limits")?, plan.port(6379), &["--maxmemory-policy", "noeviction"])?;
        let lru = ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"];
        let cache = Redis::start_at(home("redis-cache")?, plan.port(6380), &lru)?;
        let postgres = Postgres::start_at(home("postgres")?, plan.port(5432), &[])?;
        let jaeger = match plan.watched {
            true => Some(Jaeger::start_at(home("jaeger")?, plan.port(16686))?),
            false => None,
        };
        let mut cluster = Self {
            members: vec![],
            prometheus: None,
            jaeger,
            postgres,
            limits,
            cache,
            base: plan.base.clone(),
        };
        let settings = cluster.settings(plan);
        say("preparing PostgreSQL (sightline migrate)");
        run(sightline(&plan.binary).arg("migrate").args(with_set(&settings)))?;
        for role in Role::ALL {
            let count = plan.replicas.of(role);
            say(&format!("starting {count} × {}", role.name()));
            for number in 1..=count {
                let member = cluster.start_member(plan, role, number, &settings)?;
                cluster.members.push(member);
            }
        }
        if plan.watched {
            say("starting Prometheus");
            let admins = |role| cluster.of(role).map(|member| member.admin.to_string()).collect::<Vec<_>>();
            let jobs: Vec<_> = Role::ALL.into_iter().map(|role| (role.name(), admins(role))).collect();
            cluster.prometheus = Some(Prometheus::start_at(home("prometheus")?, plan.port(9090), &jobs)?);
        }
        Ok(cluster)
    }

    /// The replicas of a service.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.role == role)
    }

    /// The replica of this name.
    pub fn member(&mut self, name: &str) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.name == name)
    }

    /// Where logs are.
    pub fn logs(&self) -> PathBuf {
        self.base.join("logs")
    }

    /// The value of a counter or gauge, over all its labels and all replicas of a service.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn metric(&self, role: Role, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for member in self.of(role) {
            let text = http::request(member.admin.port(), "GET", "/metrics", "")?.body;
            let values = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
            });
            sum += values.sum::<f64>();
        }
        Ok(sum)
    }

    /// Asks every replica to stop, callers first, and waits.
    ///
    /// # Errors
    /// When one cannot be waited for.
    pub fn stop(mut self) -> Result<()> {
        while let Some(mut member) = self.members.pop() {
            member.server.stop()?;
        }
        Ok(())
    }

    /// Where stores and exporters are, as settings.
    fn settings(&self, plan: &Plan) -> Vec<String> {
        let mut settings = vec![
            format!("ratelimiter.redis_url={}", self.limits.url()),
            format!("ingest.cache_redis_url={}", self.cache.url()),
            format!("stats.postgres_url={}", self.postgres.url()),
            format!("classifier.models=[{:?}]", plan.model.display().to_string()),
        ];
        settings.extend(
            self.jaeger.as_ref().map(|jaeger| format!("telemetry.otlp_endpoint={}", jaeger.endpoint())),
        );
        settings.extend(plan.settings.iter().cloned());
        settings
    }

    fn start_member(&self, plan: &Plan, role: Role, number: usize, settings: &[String]) -> Result<Member> {
        let step = u16::try_from(number - 1).unwrap_or(u16::MAX).saturating_mul(10);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], plan.port(port + step)));
        let (address, admin) = (local(role.port()), local(role.port() + 100));
        let name = format!("{}-{number}", role.name());
        let home = Home::under(&plan.base, &name)?;
        let mut own = vec![
            format!("{}.listen={address}", role.name()),
            format!("telemetry.admin_listen={admin}"),
            format!("node.data_dir={}", home.folder().display()),
        ];
        for called in [Role::Ratelimiter, Role::Classifier, Role::Stats] {
            let addresses: Vec<_> =
                self.of(called).map(|member| format!("http://{}", member.address)).collect();
            if role == Role::Ingest {
                own.push(format!("ingest.{}={addresses:?}", called.name()));
            }
        }
        own.extend(settings.iter().cloned());
        let spec = Spec {
            name: name.clone(),
            program: plan.binary.clone(),
            arguments: ["serve".to_owned(), role.name().to_owned()]
                .into_iter()
                .chain(with_set(&own))
                .collect(),
            environment: vec![],
            home,
            user: None,
            ready: Box::new(move || http::is_ok(admin.port(), "/readyz")),
        };
        Ok(Member { name, role, address, admin, server: Server::start(spec)? })
    }
}

impl Plan {
    fn port(&self, usual: u16) -> u16 {
        match self.ports {
            Ports::Usual if TcpListener::bind(("127.0.0.1", usual)).is_ok() => usual,
            _ => free_port(),
        }
    }

    /// Removes what an earlier cluster left in the base folder.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(&self) -> Result<()> {
        for part in ["data", "logs"] {
            let path = self.base.join(part);
            if path.exists() {
                fs::remove_dir_all(&path).map_err(io(format!("removing {}", path.display())))?;
            }
        }
        Ok(())
    }
}

/// The program without the caller's settings.
fn sightline(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SIGHTLINE_") {
            command.env_remove(name);
        }
    }
    command
}

fn with_set(settings: &[String]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]).collect()
}

/// Sends SIGKILL to a process by its id: what `cargo xtask cluster --kill` does from another terminal.
///
/// # Errors
/// [`Error::Command`] when there is no such process.
pub fn kill(pid: u32) -> Result<()> {
    run(Command::new("kill").args(["-KILL", &pid.to_string()])).map(drop)
}

/// The list of a cluster's processes, which another terminal reads: a name, a process id and an address a line.
#[derive(Debug)]
pub struct Listing(PathBuf);

impl Listing {
    /// The file of the cluster in `base`.
    pub fn of(base: &Path) -> Self {
        Self(base.join("members"))
    }

    /// Writes what runs now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, cluster: &Cluster) -> Result<()> {
        let line = |member: &Member| format!("{} {} {}\n", member.name, member.server.pid(), member.address);
        fs::write(&self.0, cluster.members.iter().map(line).collect::<String>())
            .map_err(io("writing the list"))
    }

    /// The process id of a replica.
    ///
    /// # Errors
    /// [`Error::Command`] when no cluster runs, or none with this name.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let text = fs::read_to_string(&self.0)
            .map_err(io("no cluster runs here: cargo xtask cluster starts one"))?;
        let found =
            text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        found.ok_or_else(|| Error::Command {
            command: format!("--kill {name}"),
            problem: format!("no such replica; there are:\n{text}"),
        })
    }

    /// Removes the list.
    pub fn remove(&self) {
        fs::remove_file(&self.0).ok();
    }
}
