//! The production shape on one machine: Redis, PostgreSQL, Jaeger, Prometheus and several replicas of every service, each
//! a process of its own.

mod listing;
mod member;
mod plan;

use std::{
    fs,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

pub use self::{
    listing::{Listing, kill},
    member::Member,
    plan::{Plan, Ports, Reach, Replicas, Role},
};
use crate::{Home, Jaeger, Postgres, Prometheus, Redis, Result, Toxiproxy, io, process::run};

/// A running cluster. Everything in it ends with it, in the reverse of the order of its start.
#[derive(Debug)]
pub struct Cluster {
    /// The replicas.
    pub members: Vec<Member>,
    /// What stands before some replicas, and before the stores of those in a namespace.
    toxiproxy: Option<Toxiproxy>,
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
            toxiproxy: match plan.reach.is_empty() {
                true => None,
                false => Some(Toxiproxy::start()?),
            },
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
        self.metric_where(role, name, "")
    }

    /// The same over the series whose labels contain `labels`, such as `reason="QUEUE_FULL"`.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn metric_where(&self, role: Role, name: &str, labels: &str) -> Result<f64> {
        self.of(role).map(|member| member.metric(name, labels)).sum()
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
