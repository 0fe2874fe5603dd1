//! Replicas by DNS: address records of one name, or SRV records.
//!
//! The name is asked again when its answer's TTL ends, within a floor and a ceiling, and after the floor already when a
//! replica is lost. hickory-resolver does the asking,
//! because the system's `getaddrinfo` gives neither TTLs nor SRV records and blocks a thread; the search path, `ndots`
//! and name servers come from `/etc/resolv.conf`, which is read again after a failure. Its cache is off: asking again is
//! the point.

mod lookup;
mod srv;

use std::{net::IpAddr, sync::Arc, time::Duration};

use lookup::{Failure, Found, Lookup};
use serde::{Deserialize, Serialize};
use srv::Srv;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    AddressStream, Discover,
    outlet::Outlet,
    pace::{Pace, PaceOptions},
};
use crate::client::Address;

/// Which of a replica's addresses is used, where it has one of each kind. Never both: it would count as two replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4; IPv6 where there is no IPv4 address at all.
    #[default]
    PreferV4,
    /// IPv6; IPv4 where there is no IPv6 address at all.
    PreferV6,
    /// IPv4 alone.
    OnlyV4,
    /// IPv6 alone.
    OnlyV6,
}

impl Family {
    /// What is looked for first, and what then: true is IPv4.
    pub(super) fn order(self) -> &'static [bool] {
        match self {
            Self::PreferV4 => &[true, false],
            Self::PreferV6 => &[false, true],
            Self::OnlyV4 => &[true],
            Self::OnlyV6 => &[false],
        }
    }
}

/// How names are looked up.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// Of replicas with addresses of both kinds.
    pub family: Family,
    /// When to ask again.
    pub pace: PaceOptions,
    /// All questions that one answer takes, together. `/etc/resolv.conf` bounds each of them.
    pub timeout: Duration,
    /// Answers with more addresses are turned away: a mistake, or an attack.
    pub max_addresses: usize,
    /// Name servers to ask, by UDP and TCP; empty: those of `/etc/resolv.conf`.
    pub name_servers: Vec<std::net::SocketAddr>,
    /// Domains to try for names without a final dot; used with `name_servers` alone.
    pub search: Vec<String>,
    /// Where random pauses start; `None` in production.
    pub seed: Option<u64>,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            family: Family::default(),
            pace: PaceOptions {
                // CoreDNS answers with a TTL of 5 s, of 30 s as kubeadm sets it up; below a second a mesh of hundreds of pods is a load of its own.
                floor: Duration::from_secs(1),
                // A zone with TTLs of an hour must not hide a new replica for an hour.
                ceiling: Duration::from_secs(30),
                first_retry: Duration::from_millis(500),
                last_retry: Duration::from_secs(10),
            },
            timeout: Duration::from_secs(10),
            max_addresses: 10_000,
            name_servers: Vec::new(),
            search: Vec::new(),
            seed: None,
        }
    }
}

#[derive(Debug, Clone)]
enum Question {
    Addresses { name: String, port: u16 },
    Srv { name: String },
}

/// Finds replicas by DNS. A failed or empty answer is reported; whoever listens keeps the last good set.
#[derive(Debug, Clone)]
pub struct Dns {
    question: Question,
    options: DnsOptions,
    hurried: Arc<Notify>,
}

impl Dns {
    /// Every address of `name` is a replica, on `port`.
    pub fn addresses(name: impl Into<String>, port: u16, options: DnsOptions) -> Self {
        Self::asking(Question::Addresses { name: name.into(), port }, options)
    }

    /// Every SRV record of `name` is a replica, with its own port and weight. Records of a higher priority number than the
    /// lowest there is are spares (RFC 2782) and not used.
    pub fn srv(name: impl Into<String>, options: DnsOptions) -> Self {
        Self::asking(Question::Srv { name: name.into() }, options)
    }

    fn asking(question: Question, options: DnsOptions) -> Self {
        Self { question, options, hurried: Arc::default() }
    }

    async fn run(self, outlet: Outlet) {
        let mut pace = Pace::new(self.options.pace, self.options.seed);
        let mut lookup = None;
        let mut srv = Srv::default();
        loop {
            let soonest = Instant::now() + self.options.pace.floor;
            let answer = timeout(self.options.timeout, self.ask(&mut lookup, &mut srv)).await;
            let pause = match answer {
                Ok(Ok(found)) => {
                    outlet.found(found.addresses).await;
                    let sooner = async {
                        self.hurried.notified().await;
                        sleep_until(soonest).await;
                    };
                    timeout(pace.after_answer(found.ttl), sooner).await.ok();
                    continue;
                }
                Ok(Err(failure)) => {
                    outlet.problem(&failure.problem).await;
                    lookup = None;
                    pace.after_failure()
                }
                Err(_) => {
                    outlet.problem(&format!("no answer within {:?}", self.options.timeout)).await;
                    lookup = None;
                    pace.after_failure()
                }
            };
            sleep(pause).await;
        }
    }

    async fn ask(&self, lookup: &mut Option<Lookup>, srv: &mut Srv) -> Result<Answer, Failure> {
        if lookup.is_none() {
            *lookup = Some(Lookup::new(&self.options).await?);
        }
        let lookup = lookup.as_ref().expect("made above");
        match &self.question {
            Question::Addresses { name, port } => {
                let Found { records, ttl } = lookup.addresses(name).await?;
                Ok(Answer { addresses: records.into_iter().map(|ip| address(ip, *port, 1)).collect(), ttl })
            }
            Question::Srv { name } => srv.ask(lookup, name).await,
        }
    }
}

impl Discover for Dns {
    fn describe(&self) -> String {
        match &self.question {
            Question::Addresses { name, port } => format!("dns://{name}:{port}"),
            Question::Srv { name } => format!("dns+srv://{name}"),
        }
    }

    fn hurry(&self) {
        self.hurried.notify_one();
    }

    fn watch(&self) -> AddressStream {
        let own = self.clone();
        Outlet::stream(self.describe(), self.options.max_addresses, move |outlet| own.run(outlet))
    }
}

/// A whole set, and how long it may be used.
struct Answer {
    addresses: Vec<Address>,
    ttl: Duration,
}

pub(super) fn address(ip: IpAddr, port: u16, weight: u32) -> Address {
    let authority = std::net::SocketAddr::from((ip, port)).to_string();
    Address { authority, zone: None, weight: weight.max(1) }
}
