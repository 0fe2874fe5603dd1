//! SRV records (RFC 2782): a question for the records, then one for each target whose address did not come along.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hickory_resolver::proto::rr::Name;

use super::{
    Answer, address,
    lookup::{Failure, Found, Lookup, SrvRecord},
};

/// Targets looked up at once: many pods have a name each, and a name server is shared.
const AT_ONCE: usize = 16;

/// What is known of targets, so that one that cannot be looked up keeps its last addresses.
#[derive(Default)]
pub(super) struct Srv {
    known: HashMap<Name, Vec<IpAddr>>,
}

impl Srv {
    pub(super) async fn ask(&mut self, lookup: &Lookup, name: &str) -> Result<Answer, Failure> {
        let srv = lookup.srv(name).await?;
        let records = first_choice(srv.found.records);
        if records.is_empty() {
            let problem = format!("{name} says that the service is not available (target \".\")");
            return Err(Failure { problem, certain: true });
        }
        let mut ttl = srv.found.ttl;
        let targets: HashSet<&Name> = records.iter().map(|record| &record.target).collect();
        let mut fresh = lookup.came_along(&srv.along, &targets);
        let missing: Vec<Name> =
            targets.iter().filter(|name| !fresh.contains_key(**name)).map(|name| (*name).clone()).collect();
        let answers = stream::iter(missing).map(|name| async move {
            let found = lookup.addresses_of(&name).await;
            (name, found)
        });
        let mut last = None;
        for (name, found) in answers.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match found {
                Ok(Found { records, ttl: own }) => {
                    ttl = ttl.min(own);
                    fresh.insert(name, records);
                }
                Err(failure) => {
                    // Nobody said that it is gone: as before, and asked again soon.
                    if let Some(before) = self.known.get(&name).filter(|_| !failure.certain) {
                        fresh.insert(name, before.clone());
                        ttl = Duration::ZERO;
                    }
                    last = Some(failure);
                }
            }
        }
        self.known = fresh;
        let addresses: Vec<_> = records.iter().flat_map(|record| self.addresses(record)).collect();
        match last {
            Some(failure) if addresses.is_empty() => Err(failure),
            _ => Ok(Answer { addresses, ttl }),
        }
    }

    fn addresses(&self, record: &SrvRecord) -> impl Iterator<Item = crate::client::Address> {
        let (port, weight) = (record.port, u32::from(record.weight));
        let ips = self.known.get(&record.target).into_iter().flatten();
        ips.map(move |ip| address(*ip, port, weight))
    }
}

/// Those with the lowest priority number; others are spares. The target "." stands for no service.
fn first_choice(mut records: Vec<SrvRecord>) -> Vec<SrvRecord> {
    records.retain(|record| !record.target.is_root());
    let first = records.iter().map(|record| record.priority).min();
    records.retain(|record| Some(record.priority) == first);
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_and_the_root_are_left_out() {
        let record = |priority, target: &str| SrvRecord {
            priority,
            weight: 1,
            port: 1,
            target: Name::from_ascii(target).unwrap(),
        };
        let chosen = first_choice(vec![record(20, "a."), record(10, "b."), record(0, "."), record(10, "c.")]);
        assert_eq!(chosen.iter().map(|record| record.target.to_string()).collect::<Vec<_>>(), ["b.", "c."]);
        assert!(first_choice(vec![record(0, ".")]).is_empty());
    }
}
