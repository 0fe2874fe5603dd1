//! A network namespace with one server in it: a replica on a machine of its own, whose network can be cut.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Error, Result, is_root, process::run, tools::find};

/// Namespaces take their addresses from 198.18.0.0/15, which RFC 2544 sets aside for tests of networks: four addresses each.
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// How many such fours there are.
const SUBNETS: u32 = 1 << 15;
/// How many of them are tried before the machine counts as full: others may run tests too.
const TRIES: usize = 64;

/// A namespace, joined to ours by a pair of virtual interfaces. Removed when dropped. Making one takes root.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    link: String,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    ip: PathBuf,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// [`Error::Missing`] without root, `ip` or `nft`; what these say.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            return Err(Error::Missing { program: "root", remedy: "network namespaces are root's to make" });
        }
        find("nft")?;
        let ip = find("ip")?;
        let mut tries = 0;
        loop {
            let subnet = (process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed)) % SUBNETS;
            let first = FIRST + subnet * 4;
            let namespace = Self {
                name: format!("sightline-{subnet:x}"),
                link: format!("sl{subnet:x}"),
                address: Ipv4Addr::from(first + 2),
                gateway: Ipv4Addr::from(first + 1),
                ip: ip.clone(),
            };
            let made = run(namespace.ip().args(["netns", "add", &namespace.name]));
            match made {
                // From here on its drop removes what there is.
                Ok(_) => return namespace.join().map(|()| namespace),
                Err(error) if tries >= TRIES => return Err(namespace.not_made(error)),
                Err(_) => tries += 1,
            }
            // It is somebody else's.
            std::mem::forget(namespace);
        }
    }

    /// What did not come to be is not removed.
    fn not_made(self, error: Error) -> Error {
        std::mem::forget(self);
        error
    }

    fn join(&self) -> Result<()> {
        let (inner, name) = (format!("{}i", self.link), self.name.as_str());
        let wide = |address: Ipv4Addr| format!("{address}/30");
        for words in [
            &["link", "add", &self.link, "type", "veth", "peer", "name", &inner, "netns", name][..],
            &["addr", "add", &wide(self.gateway), "dev", &self.link],
            &["link", "set", &self.link, "up"],
            &["-n", name, "addr", "add", &wide(self.address), "dev", &inner],
            &["-n", name, "link", "set", &inner, "up"],
            &["-n", name, "link", "set", "lo", "up"],
        ] {
            run(self.ip().args(words))?;
        }
        Ok(())
    }

    fn ip(&self) -> Command {
        Command::new(&self.ip)
    }

    /// The address of what runs in it.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// Our address, as it is seen from within.
    pub fn gateway(&self) -> IpAddr {
        self.gateway.into()
    }

    /// A program's command line, so that it runs within.
    pub fn within(&self, program: &Path, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
        let exec = ["netns", "exec", &self.name].map(str::to_owned);
        let rest = [program.display().to_string()].into_iter().chain(arguments);
        (self.ip.clone(), exec.into_iter().chain(rest).collect())
    }

    /// From now on every packet from or to it vanishes without a word.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn black_hole(&self) -> Result<()> {
        self.drop_packets("drop")
    }

    /// From now on so many of a hundred packets vanish, each way.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn lose(&self, percent: u8) -> Result<()> {
        self.drop_packets(&format!("numgen random mod 100 < {percent} drop"))
    }

    /// Its network is whole again.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn heal(&self) -> Result<()> {
        self.nft("flush ruleset")
    }

    fn drop_packets(&self, rule: &str) -> Result<()> {
        let chain = |hook: &str| {
            format!(
                "add chain inet fault {hook} {{ type filter hook {hook} priority 0; }}; add rule inet fault {hook} {rule}"
            )
        };
        // In one transaction: no packet sees half of it.
        self.nft(&format!("flush ruleset; add table inet fault; {}; {}", chain("input"), chain("output")))
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let nft = find("nft")?;
        run(self.ip().args(["netns", "exec", &self.name]).arg(nft).arg(rules)).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The other end of the link goes with it, at the latest when the last process in it has ended.
        run(self.ip().args(["link", "del", &self.link])).ok();
        run(self.ip().args(["netns", "del", &self.name])).ok();
    }
}
