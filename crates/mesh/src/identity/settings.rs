//! What operators say about TLS.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use sightline_config::HumanDuration;

use super::{AllowList, HandshakeLimits, Identity, TlsFiles};

sightline_config::settings! {
    /// TLS at the public edge. Without files it speaks plain HTTP: for loopback, or behind a proxy that ends TLS.
    pub struct EdgeTlsConfig in "edge_tls" {
        /// The certificate and its intermediates, PEM. Files are read again when they change.
        pub cert_file: Option<PathBuf> = None,
        /// The certificate's private key, PEM.
        pub key_file: Option<PathBuf> = None,
        /// How often the files are looked at; SIGHUP looks at once.
        pub reload_interval: HumanDuration = HumanDuration::from_secs(10),
        /// How long a handshake may take. Phones on bad networks need several round trips of seconds.
        pub handshake_timeout: HumanDuration = HumanDuration::from_secs(10),
        /// Handshakes at once; connections beyond it are closed.
        pub max_handshakes: usize = 1024,
    }
}

sightline_config::settings! {
    /// Mutual TLS between services. Without files they speak plain HTTP/2: for loopback and closed networks.
    pub struct MeshTlsConfig in "tls" {
        /// This process's certificate and its intermediates, PEM; it names one URI, `spiffe://TRUST-DOMAIN/…`.
        /// Files are read again when they change.
        pub cert_file: Option<PathBuf> = None,
        /// The certificate's private key, PEM.
        pub key_file: Option<PathBuf> = None,
        /// The authorities of the other services' certificates, PEM. While an authority is exchanged: both.
        pub ca_file: Option<PathBuf> = None,
        /// Who may call a service, by its name: `{ stats = ["spiffe://mesh.example/ns/prod/sa/ingest"] }`. An entry is an
        /// exact id, or ends in `/*` for all ids below. A service without entries refuses to start.
        pub callers: BTreeMap<String, Vec<String>> = BTreeMap::new(),
        /// Who must answer for a service, by its name, written as `callers`. A service without entries is verified by
        /// the host's name.
        pub servers: BTreeMap<String, Vec<String>> = BTreeMap::new(),
        /// How often the files are looked at; SIGHUP looks at once.
        pub reload_interval: HumanDuration = HumanDuration::from_secs(10),
        /// How long a handshake may take.
        pub handshake_timeout: HumanDuration = HumanDuration::from_secs(5),
        /// Handshakes at once, per listener; connections beyond it are closed.
        pub max_handshakes: usize = 256,
    }
}

/// The shortest interval between two looks at files.
const MIN_RELOAD: Duration = Duration::from_secs(1);

impl EdgeTlsConfig {
    /// Reads the files; `None` when no setting names any.
    ///
    /// # Errors
    /// A text naming the setting.
    pub fn identity(&self) -> Result<Option<Arc<Identity>>, String> {
        check_times("edge_tls", self.reload_interval, self.handshake_timeout, self.max_handshakes)?;
        match (&self.cert_file, &self.key_file) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => {
                let files = TlsFiles {
                    setting: "edge_tls.cert_file",
                    cert: cert.clone(),
                    key: key.clone(),
                    ca: None,
                };
                Identity::load("edge", files).map(Some).map_err(|error| error.to_string())
            }
            (Some(_), None) => {
                Err("`edge_tls.cert_file` is set and `edge_tls.key_file` is not: set both".into())
            }
            (None, Some(_)) => {
                Err("`edge_tls.key_file` is set and `edge_tls.cert_file` is not: set both".into())
            }
        }
    }

    /// Of the listener.
    pub fn limits(&self) -> HandshakeLimits {
        HandshakeLimits { timeout: self.handshake_timeout.0, at_once: self.max_handshakes }
    }
}

impl MeshTlsConfig {
    /// Reads the files; `None` when no setting names any. `services` are the names that `callers` and `servers` may use.
    ///
    /// # Errors
    /// A text naming the setting.
    pub fn identity(&self, services: &[&str]) -> Result<Option<Arc<Identity>>, String> {
        check_times("tls", self.reload_interval, self.handshake_timeout, self.max_handshakes)?;
        for (key, map) in [("callers", &self.callers), ("servers", &self.servers)] {
            for (service, entries) in map {
                if !services.contains(&service.as_str()) {
                    return Err(format!(
                        "`tls.{key}` names {service:?}, which is none of {}",
                        services.join(", ")
                    ));
                }
                AllowList::new(&format!("tls.{key}.{service}"), entries)?;
            }
        }
        let all = [("cert_file", &self.cert_file), ("key_file", &self.key_file), ("ca_file", &self.ca_file)];
        let [Some(cert), Some(key), Some(ca)] = all.map(|(_, path)| path.clone()) else {
            let missing = all.iter().find(|(_, path)| path.is_none()).map_or("", |(name, _)| name);
            let set = all.iter().any(|(_, path)| path.is_some());
            return match (set, self.callers.is_empty() && self.servers.is_empty()) {
                (true, _) => Err(format!(
                    "`tls.{missing}` is not set: mutual TLS needs `tls.cert_file`, `tls.key_file` and `tls.ca_file`"
                )),
                (false, false) => Err(format!(
                    "`tls.callers` and `tls.servers` have no effect without certificates: set `tls.{missing}` and its \
                     fellows, or remove the lists"
                )),
                (false, true) => Ok(None),
            };
        };
        let files = TlsFiles { setting: "tls.cert_file", cert, key, ca: Some(ca) };
        let identity = Identity::load("mesh", files).map_err(|error| error.to_string())?;
        match identity.id() {
            Some(_) => Ok(Some(identity)),
            None => Err(
                "`tls.cert_file`: the certificate does not name exactly one SPIFFE id (a URI `spiffe://…` \
                         among its subject's alternative names): other services could not tell who calls"
                    .into(),
            ),
        }
    }

    /// Who may call `service`.
    ///
    /// # Errors
    /// A text naming the setting: a listener without a list would let in whomever the authority signs.
    pub fn callers_of(&self, service: &str) -> Result<AllowList, String> {
        let setting = format!("tls.callers.{service}");
        match self.callers.get(service) {
            Some(entries) => AllowList::new(&setting, entries),
            None => Err(format!(
                "`{setting}` is not set: list the SPIFFE ids that may call it, or \"spiffe://TRUST-DOMAIN/*\""
            )),
        }
    }

    /// Who must answer for `service`, if that is said.
    ///
    /// # Errors
    /// A text naming the setting.
    pub fn servers_of(&self, service: &str) -> Result<Option<AllowList>, String> {
        let list = |entries: &Vec<String>| AllowList::new(&format!("tls.servers.{service}"), entries);
        self.servers.get(service).map(list).transpose()
    }

    /// Of each listener.
    pub fn limits(&self) -> HandshakeLimits {
        HandshakeLimits { timeout: self.handshake_timeout.0, at_once: self.max_handshakes }
    }
}

fn check_times(
    section: &str,
    reload: HumanDuration,
    handshake: HumanDuration,
    at_once: usize,
) -> Result<(), String> {
    if reload.0 < MIN_RELOAD {
        return Err(format!("`{section}.reload_interval` ({reload}) must be at least 1s"));
    }
    if handshake.0.is_zero() {
        return Err(format!("`{section}.handshake_timeout` must not be 0: no connection would be made"));
    }
    if at_once == 0 {
        return Err(format!("`{section}.max_handshakes` must not be 0: no connection would be made"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: [&str; 2] = ["ingest", "stats"];

    #[test]
    fn what_cannot_work_is_refused_with_the_setting() {
        type Change = fn(&mut MeshTlsConfig);
        let changes: [(&str, Change); 7] = [
            ("`tls.key_file` is not set", |config| config.cert_file = Some("a".into())),
            ("`tls.cert_file` is not set", |config| config.ca_file = Some("a".into())),
            ("`tls.callers` names \"statistics\"", |config| {
                config.callers.insert("statistics".into(), vec!["spiffe://a/b".into()]);
            }),
            ("`tls.servers.stats` is empty", |config| {
                config.servers.insert("stats".into(), vec![]);
            }),
            ("`tls.callers` and `tls.servers` have no effect", |config| {
                config.servers.insert("stats".into(), vec!["spiffe://a/*".into()]);
            }),
            ("`tls.reload_interval` (10ms)", |config| {
                config.reload_interval = HumanDuration::from_millis(10);
            }),
            ("`tls.max_handshakes`", |config| config.max_handshakes = 0),
        ];
        for (expected, change) in changes {
            let mut config = MeshTlsConfig::default();
            change(&mut config);
            let said = config.identity(&SERVICES).unwrap_err();
            assert!(said.starts_with(expected), "{said}");
        }
        assert!(MeshTlsConfig::default().identity(&SERVICES).unwrap().is_none());
        assert!(EdgeTlsConfig::default().identity().unwrap().is_none());
        let half = EdgeTlsConfig { key_file: Some("a".into()), ..EdgeTlsConfig::default() };
        assert!(half.identity().unwrap_err().contains("`edge_tls.cert_file` is not"));
        assert!(MeshTlsConfig::default().callers_of("stats").unwrap_err().starts_with("`tls.callers.stats`"));
    }

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Whole {
        tls: MeshTlsConfig,
    }

    #[test]
    fn lists_come_from_every_layer_and_print_as_they_are_read() {
        use sightline_config::{Layers, Registry, load};
        let registry = Registry::default().with::<MeshTlsConfig>();
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str, environment: &[(&str, &str)], flags: &[&str]| {
            std::fs::write(file.path(), text).unwrap();
            let layers = Layers {
                file: Some(file.path().into()),
                environment: environment
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
                flags: flags.iter().map(ToString::to_string).collect(),
            };
            load(&Whole::default(), &registry, &layers).unwrap()
        };
        let mut expected = Whole::default();
        expected.tls.callers.insert("stats".into(), vec!["spiffe://a/*".into(), "spiffe://b/c".into()]);
        let list = r#"{ stats = ["spiffe://a/*", "spiffe://b/c"] }"#;
        assert_eq!(read(&format!("[tls]\ncallers = {list}\n"), &[], &[]), expected);
        assert_eq!(read("", &[("SIGHTLINE_TLS_CALLERS", list)], &[]), expected);
        assert_eq!(read("", &[], &[&format!("tls.callers={list}")]), expected);
        let printed = registry.render(&toml::Table::try_from(&expected).unwrap());
        assert_eq!(read(&printed, &[], &[]), expected, "{printed}");
    }
}
