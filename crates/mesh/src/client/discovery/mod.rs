//! Where the replicas of a service are.
//!
//! [`Targets`] reads what a setting says; each kind of target has its [`Discover`]: [`Fixed`], [`Dns`], [`Kubernetes`].

mod dns;
mod kubernetes;
mod outlet;
mod pace;
mod settings;
mod target;

use std::{fmt, pin::Pin};

use tokio_stream::Stream;

pub use dns::{Dns, DnsOptions, Family};
pub use kubernetes::{Access, Kubernetes, KubernetesOptions};
pub use pace::PaceOptions;
pub use settings::DiscoveryConfig;
pub use target::{DiscoverOptions, PortRef, Target, TargetError, Targets};

use super::{Address, EndpointError};

/// Sets of addresses, one after another.
pub type AddressStream = Pin<Box<dyn Stream<Item = Result<Vec<Address>, DiscoverError>> + Send>>;

/// Finds the replicas of one service.
pub trait Discover: fmt::Debug + Send + Sync + 'static {
    /// What is asked and how, for logs and `mesh top`: `dns:classifier:7401`.
    fn describe(&self) -> String;

    /// The whole set as soon as it is known, then the whole set after each change. An error says that an answer could not
    /// be had; it ends nothing, and whoever listens keeps the last set that was not empty. A stream that ends leaves
    /// the last set as it is.
    fn watch(&self) -> AddressStream;

    /// A replica broke, could not be reached, or stops: the set is probably another one now. Whoever asks from time to
    /// time asks sooner; whoever is told of changes has nothing to do.
    fn hurry(&self) {}
}

/// An answer that could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{source_name}: {problem}")]
pub struct DiscoverError {
    /// What was asked, as [`Discover::describe`] names it.
    pub source_name: String,
    /// What went wrong.
    pub problem: String,
}

/// A list that never changes.
#[derive(Debug, Clone)]
pub struct Fixed {
    addresses: Vec<Address>,
}

impl Fixed {
    /// These addresses.
    pub fn new(addresses: Vec<Address>) -> Self {
        Self { addresses }
    }

    /// Reads `host:port` or `http://host:port`, one replica each.
    ///
    /// # Errors
    /// [`EndpointError`] for one that is no address, and for an empty list.
    pub fn from_uris(service: &str, uris: &[String]) -> Result<Self, EndpointError> {
        if uris.is_empty() {
            let problem = format!("no address of {service} is configured");
            return Err(EndpointError { uri: String::new(), problem });
        }
        let addresses = uris.iter().map(|uri| Address::new(uri)).collect::<Result<_, _>>()?;
        Ok(Self { addresses })
    }
}

impl Discover for Fixed {
    fn describe(&self) -> String {
        let names: Vec<&str> = self.addresses.iter().map(|address| address.authority.as_str()).collect();
        format!("fixed:{}", names.join(","))
    }

    fn watch(&self) -> AddressStream {
        Box::pin(tokio_stream::once(Ok(self.addresses.clone())))
    }
}
