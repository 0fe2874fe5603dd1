//! What a URL means.
//!
//! ```text
//! url      = scheme "://" [ [user] [":" password] "@" ] node *( "," node ) [ "/" path ]
//! scheme   = "redis"          | "rediss"           a plain server: exactly one node; path = number of the database
//!          | "redis+cluster"  | "rediss+cluster"   nodes of a Cluster to start from; no path
//!          | "redis+sentinel" | "rediss+sentinel"  the Sentinels; path = name of the master, and perhaps "/" database
//! node     = host [ ":" port ]                     an IPv6 address stands in brackets; the port defaults to 6379, a
//!                                                  Sentinel's to 26379
//! ```
//!
//! `rediss` is TLS, to Sentinels too. User and password may be percent-encoded. Redis is given them as its ACL user; a
//! password alone is for the user `default`. Sentinels are asked without a user.

use std::{fs, io, path::Path, sync::Once, time::Duration};

use percent_encoding::percent_decode_str;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisResult,
    TlsCertificates, TlsMode,
    aio::MultiplexedConnection,
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use sightline_config::ServerUrl;

/// What is wrong with a URL or its CA file. Never repeats the password.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The text.
    #[error("{url}: {problem}")]
    Url {
        /// With the password masked.
        url: String,
        /// What it must be.
        problem: String,
    },
    /// The CA file.
    #[error("the CA file {path} cannot be read: {source}")]
    CaFile {
        /// As configured.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// What redis-rs refuses.
    #[error("{url}: {source}")]
    Refused {
        /// With the password masked.
        url: String,
        /// Its word.
        source: redis::RedisError,
    },
}

/// What stands behind a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One server: every key can meet every other in a script.
    Server,
    /// Keys meet in a script only when they share a slot, which a hash tag decides.
    Cluster,
    /// One master at a time: as a server.
    Sentinel,
}

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    topology: Topology,
    tls: bool,
    nodes: Vec<(String, u16)>,
    user: Option<String>,
    password: Option<String>,
    database: i64,
    master: String,
}

fn parse(url: &str) -> Result<Parts, String> {
    let (scheme, rest) = url.split_once("://").ok_or("must begin with redis:// or rediss://")?;
    let (tls, kind) = match scheme.strip_prefix("rediss") {
        Some(kind) => (true, kind),
        None => (false, scheme.strip_prefix("redis").unwrap_or("?")),
    };
    let topology =
        match kind {
            "" => Topology::Server,
            "+cluster" => Topology::Cluster,
            "+sentinel" => Topology::Sentinel,
            _ => return Err(
                "must begin with redis://, redis+cluster:// or redis+sentinel://, or the same with rediss"
                    .into(),
            ),
        };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (identity, nodes) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = identity.split_once(':').unwrap_or((identity, ""));
    let port = if topology == Topology::Sentinel { 26379 } else { 6379 };
    let nodes = nodes.split(',').map(|node| parse_node(node, port)).collect::<Result<Vec<_>, _>>()?;
    let (master, database) = match topology {
        Topology::Server => ("", path),
        Topology::Sentinel => path.split_once('/').unwrap_or((path, "")),
        Topology::Cluster if path.is_empty() => ("", ""),
        Topology::Cluster => {
            return Err("a Cluster has no databases: leave out what follows the last /".into());
        }
    };
    if topology == Topology::Server && nodes.len() > 1 {
        return Err("names several nodes: write redis+cluster:// or redis+sentinel://".into());
    }
    if topology == Topology::Sentinel && master.is_empty() {
        return Err("needs the master's name, as in redis+sentinel://host:26379/mymaster".into());
    }
    let database = match database {
        "" => 0,
        number => number.parse().map_err(|_| format!("{number:?} is not the number of a database"))?,
    };
    Ok(Parts {
        topology,
        tls,
        nodes,
        user: decode(user)?,
        password: decode(password)?,
        database,
        master: master.to_owned(),
    })
}

fn parse_node(node: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = match node.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => node.split_once(':').map_or((node, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("a node has no host".into());
    }
    let port = match port {
        None => default,
        Some(port) => port.parse().map_err(|_| format!("{port:?} is not a port"))?,
    };
    Ok((host.to_owned(), port))
}

fn decode(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| Some(text.into_owned())).map_err(|_| "user or password is not UTF-8".into())
}

/// A client that can connect, again and again.
pub(crate) struct Target {
    client: Kind,
    config: AsyncConnectionConfig,
    shown: String,
    pub(crate) topology: Topology,
}

enum Kind {
    Server(Client),
    Cluster(ClusterClient),
    Sentinel(SentinelClient),
}

/// An open connection. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Target {
    /// Checks a URL and its CA file; connects to nothing. `patience` bounds the making of a connection, and no answer is waited
    /// for longer than it even where the caller has gone.
    pub(crate) fn new(
        url: &ServerUrl,
        ca_file: Option<&Path>,
        patience: Duration,
    ) -> Result<Self, TargetError> {
        let shown = url.masked();
        let parts =
            parse(url.reveal()).map_err(|problem| TargetError::Url { url: shown.clone(), problem })?;
        let ca = ca_file.map(read_ca).transpose()?;
        if parts.tls {
            use_ring();
        }
        let certificates = TlsCertificates { client_tls: None, root_cert: ca };
        let client = parts.client(&certificates, patience);
        let client = client.map_err(|source| TargetError::Refused { url: shown.clone(), source })?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(patience))
            .set_pipeline_buffer_size(PIPELINE);
        Ok(Self { client, config, shown, topology: parts.topology })
    }

    /// The URL with its password masked.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) async fn connect(&mut self) -> RedisResult<Connection> {
        match &mut self.client {
            Kind::Server(client) => {
                client.get_multiplexed_async_connection_with_config(&self.config).await.map(Connection::One)
            }
            Kind::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
            Kind::Sentinel(client) => {
                client.get_async_connection_with_config(&self.config).await.map(Connection::One)
            }
        }
    }
}

/// Commands that may wait for the connection's task; callers beyond it wait, within their own timeout.
const PIPELINE: usize = 1024;

impl Parts {
    fn client(&self, certificates: &TlsCertificates, patience: Duration) -> RedisResult<Kind> {
        match self.topology {
            Topology::Server => self.server(certificates).map(Kind::Server),
            Topology::Cluster => self.cluster(certificates, patience).map(Kind::Cluster),
            Topology::Sentinel => self.sentinel(certificates).map(Kind::Sentinel),
        }
    }

    fn addresses(&self) -> impl Iterator<Item = ConnectionAddr> {
        self.nodes.iter().map(|(host, port)| match self.tls {
            true => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            false => ConnectionAddr::Tcp(host.clone(), *port),
        })
    }

    fn server(&self, certificates: &TlsCertificates) -> RedisResult<Client> {
        let address = self.addresses().next().expect("a URL that was parsed has a node");
        let mut settings = RedisConnectionInfo::default().set_db(self.database);
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let info = address.into_connection_info()?.set_redis_settings(settings);
        match self.tls {
            true => Client::build_with_tls(info, certificates.clone()),
            false => Client::open(info),
        }
    }

    /// Its own retries are few: whoever asks has milliseconds, and the link's task reconnects.
    fn cluster(&self, certificates: &TlsCertificates, patience: Duration) -> RedisResult<ClusterClient> {
        let mut builder = ClusterClientBuilder::new(self.addresses())
            .retries(2)
            .connection_timeout(patience)
            .response_timeout(patience)
            .overall_response_timeout(Some(patience));
        if let Some(user) = &self.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.password(password);
        }
        if self.tls {
            builder = builder.tls(TlsMode::Secure).certs(certificates.clone());
        }
        builder.build()
    }

    fn sentinel(&self, certificates: &TlsCertificates) -> RedisResult<SentinelClient> {
        let mut builder =
            SentinelClientBuilder::new(self.addresses(), &self.master, SentinelServerType::Master)?
                .set_client_to_redis_db(self.database);
        if let Some(user) = &self.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password);
        }
        if self.tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()
    }
}

fn read_ca(path: &Path) -> Result<Vec<u8>, TargetError> {
    fs::read(path).map_err(|source| TargetError::CaFile { path: path.display().to_string(), source })
}

/// rustls asks for one cryptography per process; another part may have chosen one before us.
fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().ok();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[(&str, u16)]) -> Vec<(String, u16)> {
        list.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect()
    }

    #[test]
    fn urls_say_what_to_connect_to() {
        let plain = parse("redis://cache").unwrap();
        assert_eq!(
            (plain.topology, plain.tls, &plain.nodes),
            (Topology::Server, false, &nodes(&[("cache", 6379)]))
        );
        assert_eq!((plain.user, plain.password, plain.database), (None, None, 0));

        let acl = parse("rediss://limits:p%40ss@w:rd@[::1]:7000/3").unwrap();
        assert!(acl.tls);
        assert_eq!(acl.nodes, nodes(&[("::1", 7000)]));
        assert_eq!((acl.user.as_deref(), acl.password.as_deref()), (Some("limits"), Some("p@ss@w:rd")));
        assert_eq!(acl.database, 3);

        let cluster = parse("redis+cluster://:secret@a:1,b:2,c").unwrap();
        assert_eq!(cluster.topology, Topology::Cluster);
        assert_eq!(cluster.nodes, nodes(&[("a", 1), ("b", 2), ("c", 6379)]));
        assert_eq!((cluster.user, cluster.password.as_deref()), (None, Some("secret")));

        let sentinel = parse("rediss+sentinel://s1,s2:5/mymaster/2").unwrap();
        assert_eq!(sentinel.topology, Topology::Sentinel);
        assert_eq!(sentinel.nodes, nodes(&[("s1", 26379), ("s2", 5)]));
        assert_eq!((sentinel.master.as_str(), sentinel.database), ("mymaster", 2));
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_password() {
        for (url, problem) in [
            ("127.0.0.1:6379", "must begin with redis://"),
            ("http://u:secret@host", "must begin with redis://, redis+cluster://"),
            ("redis+clutser://u:secret@host", "must begin with redis://, redis+cluster://"),
            ("redis://u:secret@a,b", "names several nodes"),
            ("redis://u:secret@:6379", "a node has no host"),
            ("redis://u:secret@a:port", "\"port\" is not a port"),
            ("redis://u:secret@a/x", "\"x\" is not the number of a database"),
            ("redis+cluster://u:secret@a/1", "a Cluster has no databases"),
            ("redis+sentinel://u:secret@a", "needs the master's name"),
        ] {
            let error =
                Target::new(&ServerUrl::new(url), None, Duration::from_secs(1)).err().unwrap().to_string();
            assert!(error.contains(problem) && !error.contains("secret"), "{error}");
        }
        let url = ServerUrl::new("rediss://host");
        let error =
            Target::new(&url, Some(Path::new("/nowhere/ca.pem")), Duration::from_secs(1)).err().unwrap();
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }
}
