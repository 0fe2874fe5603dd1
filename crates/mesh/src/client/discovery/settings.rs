//! Settings of discovery.

use std::{net::SocketAddr, time::Duration};

use sightline_config::HumanDuration;

use super::{
    dns::{DnsOptions, Family},
    kubernetes::{Access, KubernetesOptions},
    pace::PaceOptions,
    target::DiscoverOptions,
};

sightline_config::settings! {
    /// How services are found whose address is a name: "dns://name:port", "dns+srv://_grpc._tcp.name" or
    /// "k8s://namespace/service:port".
    pub struct DiscoveryConfig in "discovery" {
        /// Which address of a replica is used: "prefer_v4", "prefer_v6", "only_v4" or "only_v6".
        pub family: Family = Family::PreferV4,
        /// The shortest time an answer of DNS is used, whatever its TTL.
        pub dns_floor: HumanDuration = HumanDuration::from_secs(1),
        /// The longest time an answer of DNS is used: a new replica is found within it.
        pub dns_ceiling: HumanDuration = HumanDuration::from_secs(30),
        /// How long all questions of one look-up may take together.
        pub dns_timeout: HumanDuration = HumanDuration::from_secs(10),
        /// Name servers to ask, such as "10.96.0.10:53"; empty: those of /etc/resolv.conf, with its search path.
        pub name_servers: Vec<SocketAddr> = vec![],
        /// Domains to try for names without a final dot, where `name_servers` are given.
        pub search_domains: Vec<String> = vec![],
        /// An answer with more addresses is turned away.
        pub max_addresses: usize = 10_000,
        /// The cluster's DNS domain: where DNS stands in for the API of Kubernetes.
        pub kubernetes_domain: String = "cluster.local".into(),
        /// How long the API of Kubernetes may be away until DNS stands in for it.
        pub kubernetes_patience: HumanDuration = HumanDuration::from_secs(5),
        /// How long one watch of the API lasts; each new one shows the token as it is then.
        pub kubernetes_watch: HumanDuration = HumanDuration::from_secs(290),
    }
}

impl DiscoveryConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A text naming the key.
    pub fn validate(&self) -> Result<(), String> {
        if self.dns_floor.0.is_zero() {
            return Err("`discovery.dns_floor` must be more than 0: name servers are no place to poll".into());
        }
        if self.dns_floor > self.dns_ceiling {
            let (floor, ceiling) = (self.dns_floor, self.dns_ceiling);
            return Err(format!(
                "`discovery.dns_floor` ({floor}) is above `discovery.dns_ceiling` ({ceiling})"
            ));
        }
        if self.dns_timeout.0.is_zero() {
            return Err("`discovery.dns_timeout` must be more than 0, such as \"10s\"".into());
        }
        if self.max_addresses == 0 {
            return Err("`discovery.max_addresses` must be at least 1".into());
        }
        if self.kubernetes_watch.0 < Duration::from_secs(1) {
            return Err("`discovery.kubernetes_watch` must be at least 1s".into());
        }
        if self.name_servers.is_empty() && !self.search_domains.is_empty() {
            return Err(
                "`discovery.search_domains` needs `discovery.name_servers`: otherwise the search path of \
                        /etc/resolv.conf is used"
                    .into(),
            );
        }
        Ok(())
    }

    /// As options; `variable` reads the environment, which tells a pod where the API of Kubernetes is.
    pub fn options(&self, variable: impl Fn(&str) -> Option<String>) -> DiscoverOptions {
        let defaults = DnsOptions::default();
        let dns = DnsOptions {
            family: self.family,
            pace: PaceOptions { floor: self.dns_floor.0, ceiling: self.dns_ceiling.0, ..defaults.pace },
            timeout: self.dns_timeout.0,
            max_addresses: self.max_addresses,
            name_servers: self.name_servers.clone(),
            search: self.search_domains.clone(),
            seed: None,
        };
        let kubernetes = Access::in_cluster(variable).map(|access| KubernetesOptions {
            cluster_domain: self.kubernetes_domain.clone(),
            fallback_after: self.kubernetes_patience.0,
            watch_for: self.kubernetes_watch.0,
            ..KubernetesOptions::new(access)
        });
        DiscoverOptions { dns, kubernetes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_options() {
        let config =
            DiscoveryConfig { dns_ceiling: HumanDuration::from_secs(7), ..DiscoveryConfig::default() };
        assert_eq!(config.validate(), Ok(()));
        let outside = config.options(|_| None);
        assert!(outside.kubernetes.is_none());
        assert_eq!(outside.dns.pace.ceiling, Duration::from_secs(7));
        let inside = config.options(|name| {
            let value = if name.ends_with("HOST") { "10.96.0.1" } else { "443" };
            Some(value.to_owned())
        });
        assert_eq!(inside.kubernetes.unwrap().cluster_domain, "cluster.local");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        type Change = fn(&mut DiscoveryConfig);
        let changes: [(&str, Change); 6] = [
            ("`discovery.dns_floor` must", |config| config.dns_floor = HumanDuration::from_secs(0)),
            ("`discovery.dns_floor` (1m) is above `discovery.dns_ceiling` (30s)", |config| {
                config.dns_floor = HumanDuration::from_secs(60);
            }),
            ("`discovery.dns_timeout`", |config| config.dns_timeout = HumanDuration::from_secs(0)),
            ("`discovery.max_addresses`", |config| config.max_addresses = 0),
            ("`discovery.kubernetes_watch`", |config| config.kubernetes_watch = HumanDuration::from_secs(0)),
            ("`discovery.search_domains` needs", |config| config.search_domains = vec!["test".into()]),
        ];
        for (said, change) in changes {
            let mut config = DiscoveryConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
