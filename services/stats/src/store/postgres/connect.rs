//! Connections: the URL, TLS, the pool and how long a connection is kept.
//!
//! The pool is bb8: the one the design uses for Redis, kept by rustls's authors, and with lifetimes of its own.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bb8::{ManageConnection, Pool, PooledConnection, RunError};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use sightline_telemetry::dependencies::{Condition, Dependency};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, warn};

use super::error::{Trouble, describe};
use crate::config::StatsConfig;

/// A dead peer is noticed after about this long, even when nothing is being sent.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How often the pool looks for connections past their lifetime.
const REAP: Duration = Duration::from_secs(30);

/// Why PostgreSQL cannot be used. The message names the setting.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PostgresError {
    /// The URL.
    #[error("`stats.postgres_url` ({url}): {problem}")]
    Url {
        /// Without its password.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The certificates.
    #[error("`stats.postgres_ca_file`: {0}")]
    Certificates(String),
    /// It did not answer, or refused.
    #[error("`stats.postgres_url` ({url}): {problem}")]
    Unreachable {
        /// Without its password.
        url: String,
        /// What was said.
        problem: String,
    },
    /// Its tables are not those that this program knows.
    #[error("`stats.postgres_url` ({url}): {problem}")]
    Schema {
        /// Without its password.
        url: String,
        /// What it found and what to run.
        problem: String,
    },
}

/// Makes connections for the pool.
pub(super) struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
    timeout: Duration,
    /// Why the last one failed: the pool itself only says that it waited.
    last: Mutex<Option<String>>,
}

/// A connection, and whether a transaction may be open on it.
pub(super) struct Session {
    pub client: Client,
    /// Set while a transaction is open: a connection that comes back so is thrown away.
    pub open: bool,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(config: &StatsConfig) -> Result<Self, PostgresError> {
        let url = config
            .postgres_url
            .as_ref()
            .ok_or_else(|| PostgresError::Url { url: String::new(), problem: "is not set".into() })?;
        let bad = |problem: String| PostgresError::Url { url: url.masked(), problem };
        // Its error names what is wrong, not the URL.
        let mut postgres: Config = url.reveal().parse().map_err(|error| bad(describe(&error)))?;
        if postgres.get_application_name().is_none() {
            postgres.application_name("sightline-stats");
        }
        let timeout = config.postgres_connect_timeout.0;
        postgres.connect_timeout(timeout).keepalives_idle(KEEPALIVE).tcp_user_timeout(KEEPALIVE);
        Ok(Self {
            config: postgres,
            tls: tls(config.postgres_ca_file.as_deref())?,
            timeout,
            last: Mutex::default(),
        })
    }

    /// How a running statement is cancelled.
    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    /// One connection, made now.
    pub(super) async fn open(&self) -> Result<Session, Trouble> {
        let connecting = tokio::time::timeout(self.timeout, self.config.connect(self.tls.clone())).await;
        let (client, connection) = connecting.map_err(|_| Trouble::Slow(self.timeout))??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("a connection ended: {}", describe(&error));
            }
        });
        Ok(Session { client, open: false })
    }
}

impl ManageConnection for Connector {
    type Connection = Session;
    type Error = Trouble;

    async fn connect(&self) -> Result<Session, Trouble> {
        let made = self.open().await;
        let problem = made.as_ref().err().map(ToString::to_string);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        made
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), Trouble> {
        if self.has_broken(session) {
            return Err(Trouble::Unreachable("the connection is closed".into()));
        }
        Ok(())
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.open || session.client.is_closed()
    }
}

/// The pool, and what is said about the server.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pool: Pool<Shared>,
    connector: Arc<Connector>,
    dependency: Dependency,
}

/// The pool owns its manager; this lets others see it too.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Connector>);

impl ManageConnection for Shared {
    type Connection = Session;
    type Error = Trouble;

    async fn connect(&self) -> Result<Session, Trouble> {
        self.0.connect().await
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), Trouble> {
        self.0.is_valid(session).await
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        self.0.has_broken(session)
    }
}

impl Database {
    pub(super) fn new(config: &StatsConfig, connector: Connector, dependency: Dependency) -> Self {
        let connector = Arc::new(connector);
        // Writers, readers, and one for maintenance: nobody waits for a connection while the server is there.
        let size = config.postgres_writers + config.query_threads + 1;
        let pool = Pool::builder()
            .max_size(u32::try_from(size).unwrap_or(u32::MAX))
            .test_on_check_out(false)
            .connection_timeout(config.postgres_connect_timeout.0)
            .max_lifetime(config.postgres_max_lifetime.0)
            .idle_timeout(config.postgres_idle_timeout.0)
            .reaper_rate(REAP)
            .build_unchecked(Shared(Arc::clone(&connector)));
        Self { pool, connector, dependency }
    }

    pub(super) async fn session(&self) -> Result<PooledConnection<'_, Shared>, Trouble> {
        let session = self.pool.get().await.map_err(|error| match error {
            RunError::User(trouble) => trouble,
            RunError::TimedOut => {
                let last = self.connector.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Trouble::Unreachable(last.unwrap_or_else(|| "every connection is in use".into()))
            }
        });
        session.inspect_err(|trouble| self.report(trouble))
    }

    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.connector.tls()
    }

    /// Tells operators about a failure, if it is the server's.
    pub(super) fn report(&self, trouble: &Trouble) {
        let why = trouble.to_string();
        match trouble {
            // One statement may be too much for a server that does its work.
            Trouble::Slow(_) => self.dependency.report(Condition::Degraded(why)),
            _ if trouble.is_of_the_server() => self.dependency.report(Condition::Down(why)),
            _ => {}
        }
    }

    pub(super) fn healthy(&self) {
        self.dependency.report(Condition::Healthy);
    }
}

/// rustls with the certificates of a file, or the system's. It checks name and chain whenever TLS is used: what libpq
/// calls `verify-full`.
fn tls(ca_file: Option<&Path>) -> Result<MakeRustlsConnect, PostgresError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let fail = |problem: String| PostgresError::Certificates(format!("{}: {problem}", path.display()));
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| fail(error.to_string()))?;
            roots.add(certificate).map_err(|error| fail(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(fail("holds no PEM certificate".into()));
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!("some of the system's certificates cannot be read: {error}");
        }
        roots.add_parsable_certificates(found.certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PostgresError::Certificates(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
