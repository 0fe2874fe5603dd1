//! Replicas by the EndpointSlices of a Kubernetes Service: listed, then watched.
//!
//! A watch tells of a new or stopping pod within milliseconds and names its zone, which DNS does not. While the API cannot
//! be reached, or refuses us, DNS stands in; the last good set is in use until one of the two has an answer.
//!
//! The client is ours, of two requests on hyper, rustls and serde_json, which are here anyway. The crate `kube` would add 35
//! crates (ARCHITECTURE.md has the figures) for kubeconfig files, exec plugins and kinds that a pod's discovery never sees.

mod access;
mod api;
mod slices;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use access::Access;
use api::{Api, Problem, Watch};
use slices::Slices;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_stream::StreamExt;
use tracing::{debug, info, warn};

use super::{
    AddressStream, Discover,
    dns::{Dns, DnsOptions},
    outlet::Outlet,
    pace::{Pace, PaceOptions},
    target::PortRef,
};

/// A watch that ended sooner is no progress: the next one waits like after a failure.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// Until a list after a 410 at most: all clients of an API server lose their place at once.
const RELIST_WITHIN: Duration = Duration::from_secs(1);
/// Refusals in a row that are believed by one who had the right before: an API server that starts refuses everybody until
/// it has read its rules.
const REFUSED_FOR_SURE: u32 = 3;

/// How Kubernetes is asked.
#[derive(Debug, Clone)]
pub struct KubernetesOptions {
    /// Where the API server is and who we are.
    pub access: Access,
    /// The cluster's DNS domain, for the fallback.
    pub cluster_domain: String,
    /// Until a connection to the API server is made.
    pub connect_timeout: Duration,
    /// A page of a list, or the beginning of a watch.
    pub request_timeout: Duration,
    /// About how long one watch lasts, told to the server. Each new one shows the token as it is then.
    pub watch_for: Duration,
    /// An API server that was silent for so long is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Without one for so long the connection is given up.
    pub keepalive_timeout: Duration,
    /// The largest page of a list, and the largest event.
    pub max_message: usize,
    /// Pauses after failures. Its floor and ceiling are not used: the API says what changes.
    pub pace: PaceOptions,
    /// How long the API may be away until DNS is asked in its place: longer than a restart of the API server's front.
    pub fallback_after: Duration,
    /// The same while no set is known at all.
    pub first_fallback_after: Duration,
    /// Until a right that was refused is asked for again.
    pub forbidden_retry: Duration,
}

impl KubernetesOptions {
    /// The defaults.
    pub fn new(access: Access) -> Self {
        Self {
            access,
            cluster_domain: "cluster.local".into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            watch_for: Duration::from_secs(290),
            // Half of client-go's: it is endpoints that change, not controllers that wait.
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
            max_message: 16 << 20,
            pace: PaceOptions {
                floor: Duration::ZERO,
                ceiling: Duration::ZERO,
                first_retry: Duration::from_millis(250),
                last_retry: Duration::from_secs(10),
            },
            fallback_after: Duration::from_secs(5),
            first_fallback_after: Duration::from_secs(1),
            forbidden_retry: Duration::from_secs(60),
        }
    }
}

/// Finds the endpoints of a Service.
#[derive(Debug, Clone)]
pub struct Kubernetes {
    namespace: String,
    service: String,
    port: PortRef,
    options: Arc<KubernetesOptions>,
    dns: DnsOptions,
}

/// How it stands with the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Starting,
    /// What it said last is what holds.
    Followed,
    Away,
    Forbidden,
}

impl Kubernetes {
    /// `port` of every endpoint of `service`. `dns` is how the fallback asks, and says which address family is taken.
    pub fn new(
        namespace: impl Into<String>,
        service: impl Into<String>,
        port: PortRef,
        options: KubernetesOptions,
        dns: DnsOptions,
    ) -> Self {
        let (namespace, service, options) = (namespace.into(), service.into(), Arc::new(options));
        Self { namespace, service, port, options, dns }
    }

    /// A headless Service's name has a record for every pod that is ready.
    fn fallback(&self) -> Dns {
        let Self { namespace, service, .. } = self;
        // The final dot spares the search path.
        let name = format!("{service}.{namespace}.svc.{}.", self.options.cluster_domain);
        match &self.port {
            PortRef::Number(port) => Dns::addresses(name, *port, self.dns.clone()),
            PortRef::Name(port) => Dns::srv(format!("_{port}._tcp.{name}"), self.dns.clone()),
        }
    }

    async fn run(self, outlet: Outlet) {
        let standing = watch::Sender::new(Standing::Starting);
        let one_address = AtomicBool::new(false);
        tokio::select! {
            () = self.follow(&outlet, &standing, &one_address) => {}
            () = self.stand_in(&outlet, standing.subscribe(), &one_address) => {}
        }
    }

    /// Follows the API, over connection after connection.
    async fn follow(&self, outlet: &Outlet, standing: &watch::Sender<Standing>, one_address: &AtomicBool) {
        let mut following = Following {
            of: self,
            outlet,
            standing,
            one_address,
            slices: Slices::default(),
            pace: Pace::new(self.options.pace, self.dns.seed),
            followed: false,
            refused: 0,
        };
        loop {
            let (problem, is, pause) = match following.session().await {
                Problem::Forbidden(said) => {
                    following.refused = following.refused.saturating_add(1);
                    let sure = if following.followed { REFUSED_FOR_SURE } else { 1 };
                    if following.refused == sure {
                        self.say_forbidden(&said);
                    }
                    let text = format!("the API server refuses: {said}");
                    match following.refused >= sure {
                        true => {
                            let pause = following.pace.spread(self.options.forbidden_retry);
                            (text, Standing::Forbidden, pause)
                        }
                        false => (text, Standing::Away, following.pace.after_failure()),
                    }
                }
                Problem::Gone => {
                    let text = "the API server forgets versions faster than they are read".into();
                    (text, Standing::Away, following.pace.after_failure())
                }
                Problem::Away(text) => (text, Standing::Away, following.pace.after_failure()),
            };
            debug!("{}: {problem}; asked again in {pause:?}", self.describe());
            let news = standing.send_if_modified(|now| std::mem::replace(now, is) != is);
            // Told once: DNS has the word until the API is back.
            if news || outlet.known().is_empty() {
                outlet.problem(&problem).await;
            }
            sleep(pause).await;
        }
    }

    fn say_forbidden(&self, said: &str) {
        let Self { namespace, service, .. } = self;
        warn!(
            "{}: the API server refuses to list the EndpointSlices of {service}, and DNS is asked instead, which knows no \
             zones and is later. Grant get, list and watch on endpointslices (discovery.k8s.io) in the namespace \
             {namespace} to this pod's service account; the chart does so with discovery.kind=kubernetes. It said: {said}",
            self.describe()
        );
    }

    /// Asks DNS for as long as the API is not followed. What DNS says of a Service that is not headless (`one_address`) is
    /// the Service's own address, which has no pod's port: no answer is better, as long as pods are known.
    async fn stand_in(
        &self,
        outlet: &Outlet,
        mut standing: watch::Receiver<Standing>,
        one_address: &AtomicBool,
    ) {
        loop {
            let now = *standing.borrow_and_update();
            let patience = match now {
                Standing::Followed => Duration::MAX,
                Standing::Forbidden => Duration::ZERO,
                Standing::Away if outlet.known().is_empty() => Duration::ZERO,
                Standing::Starting => self.options.first_fallback_after,
                Standing::Away => self.options.fallback_after,
            };
            if let Ok(changed) = timeout(patience, standing.changed()).await {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            let numbered = matches!(self.port, PortRef::Number(_));
            if numbered && one_address.load(Ordering::Relaxed) && !outlet.known().is_empty() {
                info!(
                    "{}: the Service is not headless, DNS cannot stand in; the last set stays",
                    self.describe()
                );
                if standing.changed().await.is_err() {
                    return;
                }
                continue;
            }
            info!("{}: DNS stands in for the API server", self.describe());
            tokio::select! {
                biased;
                _ = standing.wait_for(|now| *now == Standing::Followed) => {}
                () = self.by_dns(outlet) => {}
            }
        }
    }

    /// Passes on what DNS says, with the zones that the API told before.
    async fn by_dns(&self, outlet: &Outlet) {
        let known = outlet.known().into_iter().map(|address| (address.authority, address.zone));
        let zones: HashMap<String, Option<String>> = known.collect();
        let mut answers = self.fallback().watch();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(mut set) => {
                    for address in &mut set {
                        address.zone = zones.get(&address.authority).cloned().flatten();
                    }
                    outlet.found(set).await;
                }
                Err(error) => outlet.problem(&error.to_string()).await,
            }
        }
    }
}

impl Discover for Kubernetes {
    fn describe(&self) -> String {
        format!("k8s://{}/{}:{}", self.namespace, self.service, self.port)
    }

    fn watch(&self) -> AddressStream {
        let own = self.clone();
        Outlet::stream(self.describe(), self.dns.max_addresses, move |outlet| own.run(outlet))
    }
}

/// What outlives a connection.
struct Following<'a> {
    of: &'a Kubernetes,
    outlet: &'a Outlet,
    standing: &'a watch::Sender<Standing>,
    /// The Service is not headless: DNS knows one address of it, not its pods'.
    one_address: &'a AtomicBool,
    slices: Slices,
    pace: Pace,
    /// We had the right once.
    followed: bool,
    /// How often in a row it was refused.
    refused: u32,
}

impl Following<'_> {
    /// One connection, until it fails.
    async fn session(&mut self) -> Problem {
        let Kubernetes { options, namespace, service, .. } = self.of;
        let mut api = match Api::connect(Arc::clone(options), namespace, service).await {
            Ok(api) => api,
            Err(problem) => return problem,
        };
        loop {
            match self.list_and_watch(&mut api).await {
                Ok(()) => {}
                Err(Problem::Gone) if self.slices.version().is_some() => {
                    self.slices.expire();
                    let pause = self.pace.spread(RELIST_WITHIN / 2);
                    sleep(pause).await;
                }
                Err(problem) => return problem,
            }
        }
    }

    /// One watch, after a list where that is needed.
    async fn list_and_watch(&mut self, api: &mut Api) -> Result<(), Problem> {
        if self.slices.version().is_none() {
            let (slices, version) = api.list().await?;
            self.slices.replace(slices, version);
            self.pass_on().await;
        }
        let version = self.slices.version().unwrap_or_default().to_owned();
        let lasts = self.pace.spread(self.of.options.watch_for);
        let watch = api.watch(&version, lasts).await?;
        let since = Instant::now();
        // DNS may have stood in meanwhile; from here on the API's word holds again.
        self.pass_on().await;
        let ended = self.read(watch).await;
        if since.elapsed() >= SHORT_WATCH {
            self.pace.reset();
        } else if ended.is_ok() {
            sleep(self.pace.after_failure()).await;
        }
        ended
    }

    /// The events of one watch.
    async fn read(&mut self, mut watch: Watch) -> Result<(), Problem> {
        while let Some(event) = watch.next().await? {
            let changes = event.changes();
            self.slices.apply(event).map_err(|status| Problem::told(&status))?;
            if changes {
                self.pass_on().await;
            }
        }
        Ok(())
    }

    async fn pass_on(&mut self) {
        // First of all: from now on DNS sends nothing more.
        let is = Standing::Followed;
        let news = self.standing.send_if_modified(|now| std::mem::replace(now, is) != is);
        if news && self.followed {
            info!("{}: the API server is followed again", self.of.describe());
        }
        (self.followed, self.refused) = (true, 0);
        if let Some(headless) = self.slices.headless() {
            self.one_address.store(!headless, Ordering::Relaxed);
        }
        match self.slices.addresses(&self.of.port, self.of.dns.family) {
            Ok(set) => self.outlet.found(set).await,
            Err(problem) => self.outlet.problem(&format!("{problem}; the last good set stays in use")).await,
        }
    }
}
