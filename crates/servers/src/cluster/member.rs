//! One replica: where it runs and how it is reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Cluster, Plan, Reach, Role, with_set};
use crate::{Home, Namespace, Proxy, Result, Server, Spec, http};

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
    /// Its network, with [`Reach::Namespace`].
    pub namespace: Option<Namespace>,
    /// What stands before it, with [`Reach::Proxy`].
    pub proxy: Option<Proxy>,
    /// Between its namespace and its stores.
    _stores: Vec<Proxy>,
}

impl Member {
    /// The value of a counter or gauge over its series whose labels contain `labels`; 0 before it was first counted.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let text = http::request_at(self.admin, "GET", "/metrics", "")?.body;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (of, value) = rest.rsplit_once(' ')?;
            let ours = of.is_empty() || of.starts_with('{');
            (ours && of.contains(labels)).then(|| value.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// Where ingest calls it.
    fn called_at(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.address, |proxy| ([127, 0, 0, 1], proxy.port()).into())
    }
}

impl Cluster {
    pub(super) fn start_member(
        &self,
        plan: &Plan,
        role: Role,
        number: usize,
        settings: &[String],
    ) -> Result<Member> {
        let name = format!("{}-{number}", role.name());
        let reach = plan.reach(&name);
        let namespace = (reach == Some(Reach::Namespace)).then(Namespace::new).transpose()?;
        let host = namespace.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), Namespace::address);
        let step = u16::try_from(number - 1).unwrap_or(u16::MAX).saturating_mul(10);
        let local = |port: u16| SocketAddr::from((host, plan.port(port + step)));
        let (address, admin) = (local(role.port()), local(role.port() + 100));
        let proxy = match (&self.toxiproxy, reach) {
            (Some(toxiproxy), Some(Reach::Proxy)) => Some(toxiproxy.proxy(address.port())?),
            _ => None,
        };
        let mut settings = settings.to_vec();
        let stores = match &namespace {
            Some(namespace) => self.stores_from(namespace.gateway(), role, &mut settings)?,
            None => vec![],
        };
        let home = Home::under(&plan.base, &name)?;
        let mut own = vec![
            format!("{}.listen={address}", role.name()),
            format!("telemetry.admin_listen={admin}"),
            format!("node.data_dir={}", home.folder().display()),
        ];
        if namespace.is_some() {
            // Its network ends at our end of its link.
            own.push("node.insecure=true".into());
        }
        if role == Role::Ingest {
            own.extend([Role::Ratelimiter, Role::Classifier, Role::Stats].map(|called| self.list(called)));
        }
        own.extend(settings);
        let command = ["serve".to_owned(), role.name().to_owned()];
        let arguments = command.into_iter().chain(with_set(&own)).collect();
        let (program, arguments) = match &namespace {
            Some(namespace) => namespace.within(&plan.binary, arguments),
            None => (plan.binary.clone(), arguments),
        };
        let spec = Spec {
            name: name.clone(),
            program,
            arguments,
            environment: vec![],
            home,
            user: None,
            ready: Box::new(move || http::is_ok_at(admin, "/readyz")),
        };
        let server = Server::start(spec)?;
        Ok(Member { name, role, address, admin, server, namespace, proxy, _stores: stores })
    }

    /// Ingest's list of a service's replicas.
    fn list(&self, called: Role) -> String {
        let addresses: Vec<_> =
            self.of(called).map(|member| format!("http://{}", member.called_at())).collect();
        format!("ingest.{}={addresses:?}", called.name())
    }

    /// Stores listen on loopback, which a namespace has of its own: proxies at its gateway lead to those that a service
    /// needs, and its settings name them.
    fn stores_from(&self, gateway: IpAddr, role: Role, settings: &mut [String]) -> Result<Vec<Proxy>> {
        let ports = match role {
            Role::Ratelimiter => vec![self.limits.port()],
            Role::Stats => vec![self.postgres.port()],
            Role::Classifier => vec![],
            Role::Ingest => vec![self.cache.port()],
        };
        let Some(toxiproxy) = &self.toxiproxy else { return Ok(vec![]) };
        let mut proxies = Vec::new();
        for port in ports {
            let proxy = toxiproxy.proxy_on(gateway, port)?;
            let (here, there) = (format!("127.0.0.1:{port}"), format!("{gateway}:{}", proxy.port()));
            settings.iter_mut().for_each(|setting| *setting = setting.replace(&here, &there));
            proxies.push(proxy);
        }
        Ok(proxies)
    }
}
