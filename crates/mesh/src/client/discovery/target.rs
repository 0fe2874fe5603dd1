//! What a setting says about where a service is.
//!
//! | text | meaning |
//! |---|---|
//! | `http://host:port`, `https://host:port`, `host:port` | one replica; several of them are a fixed list |
//! | `dns://name:port` | every A or AAAA record of the name is a replica |
//! | `dns+srv://_grpc._tcp.name` | every SRV record is a replica, with its port and weight |
//! | `k8s://namespace/service:port` | every endpoint of a Kubernetes Service; the port by its name or number |
//!
//! While Kubernetes' API is away DNS stands in for it: for a headless Service with a record for each pod.

use std::{fmt, sync::Arc};

use super::{
    Discover, Fixed,
    dns::{Dns, DnsOptions},
    kubernetes::{Kubernetes, KubernetesOptions},
};
use crate::client::Address;

/// The forms, for messages.
const FORMS: &str = "\"http://host:port\", \"dns://name:port\", \"dns+srv://_grpc._tcp.name\" or \
                     \"k8s://namespace/service:port\"";
/// The longest name in DNS (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;
/// The longest label of a name, and of a Kubernetes namespace or Service.
const MAX_LABEL: usize = 63;

/// A setting that names no service. The message names the setting and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct TargetError {
    /// The setting's key.
    pub setting: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

/// A port of a Kubernetes Service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortRef {
    /// By the name that the Service gives it.
    Name(String),
    /// The number that the pods listen on (`targetPort`, not the Service's own).
    Number(u16),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// One entry of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One replica.
    Fixed(Address),
    /// Address records of a name.
    Dns {
        /// Looked up along the search path unless it ends with a dot.
        name: String,
        /// The same for all replicas.
        port: u16,
    },
    /// SRV records of a name.
    Srv {
        /// As for [`Target::Dns`].
        name: String,
    },
    /// Endpoints of a Kubernetes Service.
    Kubernetes {
        /// Its namespace.
        namespace: String,
        /// Its name.
        service: String,
        /// Which of its ports.
        port: PortRef,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => write!(f, "http://{}", address.authority),
            Self::Dns { name, port } => write!(f, "dns://{name}:{port}"),
            Self::Srv { name } => write!(f, "dns+srv://{name}"),
            Self::Kubernetes { namespace, service, port } => write!(f, "k8s://{namespace}/{service}:{port}"),
        }
    }
}

impl Target {
    /// Reads one entry of the setting `setting`.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn parse(setting: &str, text: &str) -> Result<Self, TargetError> {
        let fail = |problem: String| TargetError {
            setting: setting.to_owned(),
            problem: format!("{text:?} {problem}"),
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return Address::new(text).map(Self::Fixed).map_err(|_| fail(format!("is none of {FORMS}")));
        };
        match scheme {
            "http" | "https" => Address::new(text)
                .map(Self::Fixed)
                .map_err(|_| fail(format!("is no address: write \"{scheme}://host:port\""))),
            "dns" => dns(rest).map_err(|problem| fail(format!("{problem}: write \"dns://name:port\""))),
            "dns+srv" => {
                srv(rest).map_err(|problem| fail(format!("{problem}: write \"dns+srv://_grpc._tcp.name\"")))
            }
            "k8s" => kubernetes(rest)
                .map_err(|problem| fail(format!("{problem}: write \"k8s://namespace/service:port\""))),
            other => Err(fail(format!("has the unknown scheme {other:?}: write {FORMS}"))),
        }
    }
}

fn dns(rest: &str) -> Result<Target, String> {
    let (name, port) = rest.rsplit_once(':').ok_or("has no port")?;
    check_name(name)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("has no port {port:?}"))?;
    Ok(Target::Dns { name: name.to_owned(), port })
}

fn srv(rest: &str) -> Result<Target, String> {
    if rest.contains(':') {
        return Err("has a port, which SRV records give".into());
    }
    check_name(rest)?;
    Ok(Target::Srv { name: rest.to_owned() })
}

fn kubernetes(rest: &str) -> Result<Target, String> {
    let (namespace, rest) = rest.split_once('/').ok_or("names no namespace")?;
    let (service, port) = rest.split_once(':').ok_or("names no port")?;
    check_label("namespace", namespace)?;
    check_label("Service", service)?;
    let port = match port.parse::<u16>() {
        Ok(0) => return Err("has the port 0".into()),
        Ok(number) => PortRef::Number(number),
        // RFC 6335 names, as Kubernetes checks them: a number too large is no name either, it has no letter.
        Err(_) if port.len() <= 15 && is_label(port) && port.bytes().any(|b| b.is_ascii_lowercase()) => {
            PortRef::Name(port.to_owned())
        }
        Err(_) => return Err(format!("has {port:?} where a port's name or number belongs")),
    };
    Ok(Target::Kubernetes { namespace: namespace.to_owned(), service: service.to_owned(), port })
}

/// A host name; underscores too, because SRV names begin with them.
fn check_name(name: &str) -> Result<(), String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| !label.is_empty() && label.len() <= MAX_LABEL && label.bytes().all(letter);
    if bare.len() <= MAX_NAME && bare.split('.').all(label) {
        return Ok(());
    }
    Err(format!("has {name:?} where a name belongs"))
}

fn check_label(what: &str, text: &str) -> Result<(), String> {
    if is_label(text) {
        return Ok(());
    }
    Err(format!("has {text:?} where the name of a {what} belongs"))
}

/// RFC 1123 labels, as Kubernetes names its objects.
fn is_label(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(letter)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// How names are looked up, whichever way a setting chooses.
#[derive(Debug, Clone, Default)]
pub struct DiscoverOptions {
    /// For `dns://`, `dns+srv://` and as the fallback of `k8s://`.
    pub dns: DnsOptions,
    /// For `k8s://`; `None` where there is no Kubernetes around us.
    pub kubernetes: Option<KubernetesOptions>,
}

/// What a whole setting says: a fixed list, or one name to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Replicas, as listed; one that is listed twice counts once.
    Fixed(Vec<Address>),
    /// Never [`Target::Fixed`].
    Found(Target),
}

impl Targets {
    /// Reads all entries of the setting `setting`.
    ///
    /// # Errors
    /// [`TargetError`] for an entry that cannot be read, for an empty list, and for names mixed with other entries.
    pub fn parse(setting: &str, entries: &[String]) -> Result<Self, TargetError> {
        let fail = |problem: String| Err(TargetError { setting: setting.to_owned(), problem });
        let mut fixed = Vec::new();
        for entry in entries {
            match Target::parse(setting, entry)? {
                Target::Fixed(address) if fixed.contains(&address) => {}
                Target::Fixed(address) => fixed.push(address),
                found if entries.len() == 1 => return Ok(Self::Found(found)),
                found => {
                    return fail(format!(
                        "{found} stands among other entries: give either this one alone or a list of \
                         \"http://host:port\""
                    ));
                }
            }
        }
        match fixed.is_empty() {
            true => fail(format!("no address is configured: write {FORMS}")),
            false => Ok(Self::Fixed(fixed)),
        }
    }

    /// The name that the replicas' certificates carry where no list of SPIFFE ids says who they are: addresses that were
    /// found by a name are numbers. `None` for a fixed list, in which each address has its own host.
    pub fn certificate_name(&self) -> Option<String> {
        let name = match self {
            Self::Fixed(_) | Self::Found(Target::Fixed(_)) => return None,
            Self::Found(Target::Dns { name, .. }) => name.as_str(),
            // `_grpc._tcp.` says which port is meant (RFC 2782); the rest is the service.
            Self::Found(Target::Srv { name }) => {
                let mut rest = name.as_str();
                while let Some((_, after)) = rest.split_once('.').filter(|_| rest.starts_with('_')) {
                    rest = after;
                }
                rest
            }
            Self::Found(Target::Kubernetes { namespace, service, .. }) => {
                return Some(format!("{service}.{namespace}.svc"));
            }
        };
        Some(name.strip_suffix('.').unwrap_or(name).to_owned())
    }

    /// What finds the replicas.
    ///
    /// # Errors
    /// [`TargetError`] for `k8s://` where `options` has no way to reach Kubernetes.
    pub fn discover(
        self,
        setting: &str,
        options: &DiscoverOptions,
    ) -> Result<Arc<dyn Discover>, TargetError> {
        let dns = options.dns.clone();
        Ok(match self {
            Self::Fixed(addresses) => Arc::new(Fixed::new(addresses)),
            Self::Found(Target::Fixed(address)) => Arc::new(Fixed::new(vec![address])),
            Self::Found(Target::Dns { name, port }) => Arc::new(Dns::addresses(name, port, dns)),
            Self::Found(Target::Srv { name }) => Arc::new(Dns::srv(name, dns)),
            Self::Found(Target::Kubernetes { namespace, service, port }) => match &options.kubernetes {
                Some(kubernetes) => {
                    Arc::new(Kubernetes::new(namespace, service, port, kubernetes.clone(), dns))
                }
                None => {
                    return Err(TargetError {
                        setting: setting.to_owned(),
                        problem: format!(
                            "k8s://{namespace}/{service}:{port} needs a pod's service account and \
                             KUBERNETES_SERVICE_HOST, which are not here: mount the token, or write \
                             \"dns://{service}.{namespace}.svc:PORT\""
                        ),
                    });
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        Target::parse("ingest.classifier", text)
            .map(|target| target.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_is_read_and_printed() {
        for (text, printed) in [
            ("http://127.0.0.1:7402", "http://127.0.0.1:7402"),
            ("https://[::1]:7402/", "http://[::1]:7402"),
            ("classifier-0:7402", "http://classifier-0:7402"),
            ("dns://classifier:7402", "dns://classifier:7402"),
            ("dns://a.b.svc.cluster.local.:7402", "dns://a.b.svc.cluster.local.:7402"),
            ("dns+srv://_grpc._tcp.classifier.mesh.svc", "dns+srv://_grpc._tcp.classifier.mesh.svc"),
            ("k8s://mesh/classifier:grpc", "k8s://mesh/classifier:grpc"),
            ("k8s://mesh/classifier:7402", "k8s://mesh/classifier:7402"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(printed));
        }
        let named = Target::parse("x", "k8s://n/s:7402").unwrap();
        assert!(matches!(named, Target::Kubernetes { port: PortRef::Number(7402), .. }));
    }

    #[test]
    fn a_bad_entry_names_the_setting_and_the_way_out() {
        for (text, said) in [
            ("classifier", "is none of \"http://host:port\""),
            ("", "is none of \"http://host:port\""),
            ("http://classifier", "is no address: write \"http://host:port\""),
            ("redis://x:1", "has the unknown scheme \"redis\": write \"http://host:port\""),
            ("dns://classifier", "has no port: write \"dns://name:port\""),
            ("dns://classifier:0", "has no port \"0\": write"),
            ("dns://classifier:70000", "has no port \"70000\": write"),
            ("dns://class ifier:1", "has \"class ifier\" where a name belongs"),
            ("dns://a..b:1", "has \"a..b\" where a name belongs"),
            ("dns+srv://_grpc._tcp.x:7402", "has a port, which SRV records give: write \"dns+srv://"),
            ("dns+srv://", "has \"\" where a name belongs"),
            ("k8s://classifier:7402", "names no namespace: write \"k8s://namespace/service:port\""),
            ("k8s://mesh/classifier", "names no port"),
            ("k8s://Mesh/classifier:1", "has \"Mesh\" where the name of a namespace belongs"),
            ("k8s://mesh/-x:1", "has \"-x\" where the name of a Service belongs"),
            ("k8s://mesh/x:0", "has the port 0"),
            ("k8s://mesh/x:70000", "has \"70000\" where a port's name or number belongs"),
            ("k8s://mesh/x:GRPC", "has \"GRPC\" where a port's name or number belongs"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("ingest.classifier: {text:?} ")), "{error}");
            assert!(error.contains(said), "{error}\n  should say: {said}");
        }
        let long = format!("dns://{}:1", "a".repeat(64));
        assert!(read(&long).is_err());
    }

    #[test]
    fn certificates_carry_the_name_that_was_looked_up() {
        for (entries, wanted) in [
            (&["http://10.0.0.1:7404"][..], None),
            (&["http://stats-0.x:7404", "http://stats-1.x:7404"], None),
            (&["https://[::1]:7404"], None),
            (&["dns://stats.mesh:7404"], Some("stats.mesh")),
            (&["dns://stats.mesh.svc.cluster.local.:7404"], Some("stats.mesh.svc.cluster.local")),
            (&["dns+srv://_grpc._tcp.stats.mesh"], Some("stats.mesh")),
            (&["dns+srv://stats.mesh"], Some("stats.mesh")),
            (&["k8s://prod/stats:grpc"], Some("stats.prod.svc")),
        ] {
            let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
            let targets = Targets::parse("ingest.stats", &entries).unwrap();
            assert_eq!(targets.certificate_name().as_deref(), wanted, "{entries:?}");
        }
    }

    #[test]
    fn a_list_is_fixed_and_a_name_stands_alone() {
        let parse = |entries: &[&str]| {
            let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
            Targets::parse("ingest.stats", &entries)
        };
        let Targets::Fixed(two) = parse(&["http://a:1", "b:2", "http://a:1"]).unwrap() else { panic!() };
        assert_eq!(two.iter().map(|address| address.authority.as_str()).collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert!(matches!(parse(&["dns://a:1"]).unwrap(), Targets::Found(Target::Dns { port: 1, .. })));
        let mixed = parse(&["dns://a:1", "http://b:2"]).unwrap_err().to_string();
        assert!(mixed.starts_with("ingest.stats: dns://a:1 stands among other entries"), "{mixed}");
        let none = parse(&[]).unwrap_err().to_string();
        assert!(none.starts_with("ingest.stats: no address is configured: write"), "{none}");
        let nowhere = parse(&["k8s://mesh/stats:grpc"]).unwrap();
        let error = nowhere.discover("ingest.stats", &DiscoverOptions::default()).unwrap_err().to_string();
        assert!(
            error.starts_with("ingest.stats: k8s://mesh/stats:grpc needs a pod's service account"),
            "{error}"
        );
    }
}
