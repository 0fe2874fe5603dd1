//! How much each peer has open, over all its connections.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::PeerIdentity;

/// Who is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PeerKey {
    /// An address, for want of anything proven.
    Address(IpAddr),
    /// A name that was proven.
    Identity(PeerIdentity),
}

impl PeerKey {
    pub(super) fn new(address: IpAddr, identity: Option<&PeerIdentity>) -> Self {
        match identity {
            Some(identity) => Self::Identity(identity.clone()),
            None => Self::Address(network(address)),
        }
    }
}

/// What one owner of addresses has: an IPv4 address, or a /64 of IPv6 (RFC 6177 gives a site no less).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// The peers that have something open. Bounded by the bound on connections.
#[derive(Debug, Default)]
pub(super) struct Peers {
    table: Arc<Table>,
}

type Table = Mutex<HashMap<PeerKey, Weak<Peer>>>;

/// One peer, for as long as somebody holds it.
#[derive(Debug)]
pub(super) struct Peer {
    key: PeerKey,
    open: AtomicUsize,
    table: Weak<Table>,
}

impl Peers {
    pub(super) fn join(&self, key: PeerKey) -> Arc<Peer> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = table.get(&key).and_then(Weak::upgrade) {
            return peer;
        }
        let table_of = Arc::downgrade(&self.table);
        let peer = Arc::new(Peer { key: key.clone(), open: AtomicUsize::new(0), table: table_of });
        table.insert(key, Arc::downgrade(&peer));
        peer
    }
}

impl Peer {
    /// One more, where the peer has fewer than `limit` (0: any number).
    pub(super) fn take(self: &Arc<Self>, limit: usize) -> Option<Taken> {
        let more = |open: usize| (limit == 0 || open < limit).then_some(open + 1);
        let taken = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Taken(Arc::clone(self)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have come under the same name meanwhile.
        if table.get(&self.key).is_some_and(|peer| peer.strong_count() == 0) {
            table.remove(&self.key);
        }
    }
}

/// One that is open, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken(Arc<Peer>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PeerKey {
        PeerKey::new(text.parse().unwrap(), None)
    }

    #[test]
    fn a_peer_has_one_count_over_all_its_connections_until_the_last_is_gone() {
        let peers = Peers::default();
        let (one, other) = (peers.join(address("10.0.0.1")), peers.join(address("::ffff:10.0.0.1")));
        let first = one.take(2).unwrap();
        let second = other.take(2).unwrap();
        assert!(one.take(2).is_none() && one.take(0).is_some());
        assert!(peers.join(address("10.0.0.2")).take(2).is_some());
        drop(second);
        assert!(one.take(2).is_some());
        drop((one, other));
        assert_eq!(peers.table.lock().unwrap().len(), 1, "the call holds the peer");
        drop(first);
        assert!(peers.table.lock().unwrap().is_empty());
    }

    #[test]
    fn a_site_of_ipv6_is_one_peer_and_a_proven_name_is_another() {
        assert_eq!(address("2001:db8:1:2::1"), address("2001:db8:1:2:ffff::9"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        let name = PeerIdentity("spiffe://mesh/ingest".into());
        let key = |at: &str| PeerKey::new(at.parse().unwrap(), Some(&name));
        assert_eq!(key("10.0.0.1"), key("10.0.0.2"));
        assert_ne!(key("10.0.0.1"), address("10.0.0.1"));
    }
}
