//! What a cluster is made of.

use std::{fs, net::TcpListener, path::PathBuf};

use crate::{Result, io, lasting_port};

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
    pub(super) fn port(self) -> u16 {
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

/// How a replica is reached, where that is not plain loopback: what a fault of the network needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It runs in a network namespace of its own, which [`Namespace`](crate::Namespace) can cut off. Needs root.
    Namespace,
    /// Callers go through toxiproxy, which can delay answers.
    Proxy,
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

    pub(super) fn of(self, role: Role) -> usize {
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
    /// Replicas that ingest does not reach over plain loopback, by name (`classifier-3`).
    pub reach: Vec<(String, Reach)>,
}

impl Plan {
    pub(super) fn port(&self, usual: u16) -> u16 {
        match self.ports {
            Ports::Usual if TcpListener::bind(("127.0.0.1", usual)).is_ok() => usual,
            _ => lasting_port(),
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

    pub(super) fn reach(&self, name: &str) -> Option<Reach> {
        self.reach.iter().find(|(member, _)| member == name).map(|(_, reach)| *reach)
    }
}
