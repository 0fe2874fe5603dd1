//! Single questions to name servers.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, Record, RecordType},
};
use tokio::task::spawn_blocking;

use super::{DnsOptions, Family};

/// Records, at least one, and how long they may be used.
pub(super) struct Found<T> {
    pub(super) records: Vec<T>,
    pub(super) ttl: Duration,
}

/// No records.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) problem: String,
    /// A name server said that there are none; otherwise nobody gave a usable answer.
    pub(super) certain: bool,
}

/// One SRV record.
#[derive(Debug, Clone)]
pub(super) struct SrvRecord {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) target: Name,
}

/// SRV records, and the addresses that came along with them.
pub(super) struct FoundSrv {
    pub(super) found: Found<SrvRecord>,
    pub(super) along: Vec<(Name, IpAddr)>,
}

/// Asks name servers.
pub(super) struct Lookup {
    resolver: TokioResolver,
    family: Family,
}

impl Lookup {
    /// Reads `/etc/resolv.conf` and `/etc/hosts`, unless `options` name their own servers.
    pub(super) async fn new(options: &DnsOptions) -> Result<Self, Failure> {
        let family = options.family;
        let options = options.clone();
        let build = spawn_blocking(move || build(&options)).await;
        let resolver = build
            .map_err(|error| unsure(format!("reading the resolver's configuration: {error}")))?
            .map_err(|error| unsure(format!("reading /etc/resolv.conf: {error}")))?;
        Ok(Self { resolver, family })
    }

    /// Addresses of a name, of one family.
    pub(super) async fn addresses(&self, name: &str) -> Result<Found<IpAddr>, Failure> {
        if let Ok(ip) = name.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Found { records: vec![ip], ttl: Duration::MAX });
        }
        self.addresses_of(&self.name(name)?).await
    }

    /// The same, of a name that a record holds.
    pub(super) async fn addresses_of(&self, name: &Name) -> Result<Found<IpAddr>, Failure> {
        let mut last = unsure(format!("{name}: no address family to look for"));
        for v4 in self.family.order() {
            let record_type = if *v4 { RecordType::A } else { RecordType::AAAA };
            match self.ask(name.clone(), record_type, |data| data.ip_addr()).await {
                Ok((found, _)) => return Ok(found),
                // Not known for the first kind: the second may be a different set of replicas.
                Err(failure) if !failure.certain => return Err(failure),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// SRV records of a name.
    pub(super) async fn srv(&self, name: &str) -> Result<FoundSrv, Failure> {
        let read = |data: &RData| match data {
            RData::SRV(srv) => Some(SrvRecord {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.clone(),
            }),
            _ => None,
        };
        let (found, along) = self.ask(self.name(name)?, RecordType::SRV, read).await?;
        let address = |record: &Record| Some((record.name.clone(), record.data.ip_addr()?));
        Ok(FoundSrv { found, along: along.iter().filter_map(address).collect() })
    }

    /// Addresses of our family that an answer brought along, by target.
    pub(super) fn came_along(
        &self,
        along: &[(Name, IpAddr)],
        targets: &HashSet<&Name>,
    ) -> HashMap<Name, Vec<IpAddr>> {
        // Of the second choice only by asking: that there is none of the first is not said here.
        let first = self.family.order()[0];
        let mut found: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        for (name, ip) in along.iter().filter(|(name, ip)| ip.is_ipv4() == first && targets.contains(name)) {
            found.entry(name.clone()).or_default().push(*ip);
        }
        found
    }

    fn name(&self, name: &str) -> Result<Name, Failure> {
        // Names of SRV records have underscores, which host names may not.
        Name::from_str_relaxed(name).map_err(|error| unsure(format!("{name:?} is no name: {error}")))
    }

    async fn ask<T>(
        &self,
        name: Name,
        record_type: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<(Found<T>, Vec<Record>), Failure> {
        let shown = name.to_string();
        let answer = self.resolver.lookup(name, record_type).await;
        let answer = answer.map_err(|error| failure(&shown, record_type, &error))?;
        let records: Vec<T> = answer.answers().iter().filter_map(|record| read(&record.data)).collect();
        if records.is_empty() {
            let problem = format!("{shown} has no {record_type} records");
            return Err(Failure { problem, certain: true });
        }
        // Every alias on the way has its own, and so has what came along.
        let addresses = answer.additionals().iter().filter(|record| record.data.ip_addr().is_some());
        let ttl = answer.answers().iter().chain(addresses).map(|record| record.ttl).min().unwrap_or_default();
        let found = Found { records, ttl: Duration::from_secs(ttl.into()) };
        Ok((found, answer.additionals().to_vec()))
    }
}

fn failure(name: &str, record_type: RecordType, error: &NetError) -> Failure {
    let certain = error.is_no_records_found();
    let problem = match (error.is_nx_domain(), certain) {
        (true, _) => format!("{name} does not exist ({record_type})"),
        (_, true) => format!("{name} has no {record_type} records"),
        _ => format!("looking up {record_type} of {name}: {error}"),
    };
    Failure { problem, certain }
}

fn unsure(problem: String) -> Failure {
    Failure { problem, certain: false }
}

/// Reads files: not for a worker of the runtime.
fn build(options: &DnsOptions) -> Result<TokioResolver, NetError> {
    let mut builder = if options.name_servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let config = ResolverConfig::from_parts(None, search(options)?, servers(options));
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        builder
    };
    let settings: &mut ResolverOpts = builder.options_mut();
    settings.cache_size = 0;
    // An answer cut short by UDP is asked for again by TCP anyway; this does so for one that was lost, too.
    settings.try_tcp_on_error = true;
    builder.build()
}

fn search(options: &DnsOptions) -> Result<Vec<Name>, NetError> {
    options.search.iter().map(|domain| Ok(Name::from_str_relaxed(domain)?)).collect()
}

fn servers(options: &DnsOptions) -> Vec<NameServerConfig> {
    let server = |address: &std::net::SocketAddr| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        server
    };
    options.name_servers.iter().map(server).collect()
}
